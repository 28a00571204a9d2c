package meshclient

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// KeyType is a kind of key that [NewKey] makes.
type KeyType string

// Istio's clients use RSA2048, P256 and P384; the others are for requests that should be refused or
// that only other clients send.
const (
	P256    KeyType = "P-256"
	P384    KeyType = "P-384"
	RSA2048 KeyType = "RSA-2048"
	RSA3072 KeyType = "RSA-3072"
	RSA4096 KeyType = "RSA-4096"

	P224    KeyType = "P-224"
	P521    KeyType = "P-521"
	Ed25519 KeyType = "Ed25519"
	RSA512  KeyType = "RSA-512"
	RSA1024 KeyType = "RSA-1024"
)

// NewKey makes a new key. The two weakest are of a type of ours, because crypto/rsa refuses to make
// or to use keys below 1024 bits, and must not depend on the GODEBUG setting that allows it.
func NewKey(kind KeyType) (crypto.Signer, error) {
	var key crypto.Signer
	var err error
	switch kind {
	case P224:
		key, err = ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	case P256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case P521:
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case Ed25519:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case RSA512:
		key, err = newWeakRSA(512)
	case RSA1024:
		key, err = newWeakRSA(1024)
	case RSA2048:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	default:
		err = errors.New("no such kind of key")
	}
	if err != nil {
		return nil, fmt.Errorf("make %s key: %w", kind, err)
	}
	return key, nil
}

// weakRSA signs PKCS #1 v1.5 with an RSA key of any size, by the book (RFC 8017 §8.2.1) and without
// any protection against side channels.
type weakRSA struct {
	public  rsa.PublicKey
	private *big.Int
}

// newWeakRSA makes a key of exactly this many bits.
func newWeakRSA(bits int) (*weakRSA, error) {
	e := big.NewInt(65537)
	one := big.NewInt(1)
	for {
		p, err := rand.Prime(rand.Reader, bits/2)
		if err != nil {
			return nil, fmt.Errorf("find a prime: %w", err)
		}
		q, err := rand.Prime(rand.Reader, bits-bits/2)
		if err != nil {
			return nil, fmt.Errorf("find a prime: %w", err)
		}
		n := new(big.Int).Mul(p, q)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(e, phi)
		if p.Cmp(q) == 0 || n.BitLen() != bits || d == nil {
			continue
		}
		return &weakRSA{public: rsa.PublicKey{N: n, E: 65537}, private: d}, nil
	}
}

// Public is the *rsa.PublicKey.
func (k *weakRSA) Public() crypto.PublicKey { return &k.public }

// Sign implements [crypto.Signer] for digests made with SHA-1 and SHA-256.
func (k *weakRSA) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	oid, ok := digestOIDs[opts.HashFunc()]
	if !ok || len(digest) != opts.HashFunc().Size() {
		return nil, fmt.Errorf("sign with %d bit RSA: hash %v is not supported", k.public.N.BitLen(), opts.HashFunc())
	}
	var info cryptobyte.Builder
	info.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1NULL()
		})
		b.AddASN1OctetString(digest)
	})
	der, err := info.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode digest: %w", err)
	}
	size := k.public.Size()
	if size < len(der)+11 {
		return nil, fmt.Errorf("sign with %d bit RSA: digest is too long", k.public.N.BitLen())
	}
	padded := make([]byte, size)
	padded[1] = 1
	for i := 2; i < size-len(der)-1; i++ {
		padded[i] = 0xff
	}
	copy(padded[size-len(der):], der)
	signature := new(big.Int).Exp(new(big.Int).SetBytes(padded), k.private, k.public.N)
	return signature.FillBytes(make([]byte, size)), nil
}
