package tokens

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// writeKeyring makes the keys, and the file from which a control plane in dir takes them.
func writeKeyring(dir string) (*keyring, error) {
	k := &keyring{file: filepath.Join(dir, "pki", "tokens.key")}
	for _, make := range []struct {
		key   *crypto.Signer
		curve elliptic.Curve
	}{{&k.p256, elliptic.P256()}, {&k.p384, elliptic.P384()}, {&k.p521, elliptic.P521()}, {&k.foreign, elliptic.P256()}} {
		key, err := ecdsa.GenerateKey(make.curve, rand.Reader)
		if err != nil {
			return nil, err
		}
		*make.key = key
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	k.rsa = key
	if err := os.MkdirAll(filepath.Dir(k.file), 0o700); err != nil {
		return nil, err
	}
	return k, k.write(k.p384, k.p521, k.rsa)
}

// write has an API server that is started verify tokens by these keys beside the one by which it signs.
func (k *keyring) write(others ...crypto.Signer) error {
	der, err := x509.MarshalECPrivateKey(k.p256.(*ecdsa.PrivateKey))
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := pem.Encode(&text, &pem.Block{Type: "EC PRIVATE KEY", Bytes: der}); err != nil {
		return err
	}
	for _, key := range others {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return err
		}
		if err := pem.Encode(&text, &pem.Block{Type: "PUBLIC KEY", Bytes: der}); err != nil {
			return err
		}
	}
	return os.WriteFile(k.file, text.Bytes(), 0o600)
}

// keyID is how the API server names a key.
func keyID(key crypto.Signer) string {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(der)
	return encode(sum[:])
}

func encode(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// algorithms are those by which the API server signs with each kind of key.
func algorithmOf(key crypto.Signer) string {
	if key, ok := key.(*ecdsa.PrivateKey); ok {
		return map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[key.Curve.Params().BitSize]
	}
	return "RS256"
}

// signature signs input as an algorithm says, also with a key that isn't of its kind where that can be done at all, and
// with the public key as a secret for HMAC.
func signature(t testing.TB, key crypto.Signer, algorithm, input string) []byte {
	t.Helper()
	if algorithm == "none" || len(algorithm) != 5 {
		return nil
	}
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[algorithm[2:]]
	if hash == 0 {
		return nil
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	require.NoError(t, err)
	h := hash.New()
	if algorithm[:2] == "HS" {
		h = hmac.New(hash.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
	}
	h.Write([]byte(input))
	digest := h.Sum(nil)
	switch key := key.(type) {
	case *rsa.PrivateKey:
		switch algorithm[:2] {
		case "RS":
			signed, err := rsa.SignPKCS1v15(rand.Reader, key, hash, digest)
			require.NoError(t, err)
			return signed
		case "PS":
			signed, err := rsa.SignPSS(rand.Reader, key, hash, digest, nil)
			require.NoError(t, err)
			return signed
		}
	case *ecdsa.PrivateKey:
		if algorithm[:2] == "ES" {
			size := map[string]int{"256": 32, "384": 48, "512": 66}[algorithm[2:]]
			r, s, err := ecdsa.Sign(rand.Reader, key, digest)
			require.NoError(t, err)
			size = max(size, (key.Curve.Params().BitSize+7)/8)
			return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
		}
	}
	return digest
}

// token is one that is put together: a good one at first.
type token struct {
	key     crypto.Signer
	header  map[string]any
	claims  map[string]any
	headers string // in place of header
	payload string // in place of claims
}

// sealed signs it with its key, as its header says or, where that says nothing of use, as its key would.
func (k *token) sealed(t testing.TB) string {
	t.Helper()
	headers, payload := k.headers, k.payload
	if headers == "" {
		headers = text(t, k.header)
	}
	if payload == "" {
		payload = text(t, k.claims)
	}
	input := encode([]byte(headers)) + "." + encode([]byte(payload))
	algorithm, ok := k.header["alg"].(string)
	if !ok || k.headers != "" {
		algorithm = algorithmOf(k.key)
	}
	return input + "." + encode(signature(t, k.key, algorithm, input))
}

// kubernetes are the claims about objects.
func (k *token) kubernetes() map[string]any { return k.claims["kubernetes.io"].(map[string]any) }

// opened is a token of the API server, to be changed and signed again with its key.
func opened(t testing.TB, sealed string) *token {
	t.Helper()
	parts := strings.Split(sealed, ".")
	require.Len(t, parts, 3)
	k := &token{key: keys.p256, header: decoded(t, parts[0]), claims: decoded(t, parts[1])}
	require.Equal(t, keyID(keys.p256), k.header["kid"])
	return k
}

func decoded(t testing.TB, part string) map[string]any {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(part)
	require.NoError(t, err)
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	into := make(map[string]any)
	require.NoError(t, decoder.Decode(&into))
	return into
}

func text(t testing.TB, value any) string {
	t.Helper()
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	require.NoError(t, encoder.Encode(value))
	return strings.TrimSuffix(out.String(), "\n")
}

// with is a copy of a map, in which one value is another.
func with(m map[string]any, key string, value any) map[string]any {
	m = maps.Clone(m)
	m[key] = value
	return m
}

// lastBit changes a bit of base64url's last character; where the length of what is encoded isn't a multiple of three it
// stands for nothing.
func lastBit(part string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	at := strings.IndexByte(alphabet, part[len(part)-1])
	return part[:len(part)-1] + alphabet[at^1:][:1]
}
