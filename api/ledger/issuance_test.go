package ledger

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestNewIssuance reads a real certificate, stores it and reads it back.
func TestNewIssuance(t *testing.T) {
	caKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	now := time.Now().Truncate(time.Second).UTC()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, NotBefore: now, NotAfter: now.Add(time.Hour)}
	rootDER, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	require.NoError(t, err)
	root, err := x509.ParseCertificate(rootDER)
	require.NoError(t, err)
	id, err := url.Parse("spiffe://cluster.local/ns/shop/sa/web")
	require.NoError(t, err)

	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for _, row := range []struct {
		name      string
		leaf      x509.Certificate
		key       any
		algorithm string
		bits      int
		want      Issuance
	}{
		{"workload", x509.Certificate{SerialNumber: big.NewInt(0xabc), URIs: []*url.URL{id}}, caKey.Public(), "ECDSA", 384,
			Issuance{SerialNumber: "0abc", Identity: id.String(), TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web", SANs: []string{id.String()}}},
		{"server", x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.example", "b.example"}, IPAddresses: []net.IP{net.ParseIP("10.0.0.1")}}, rsaKey.Public(), "RSA", 2048,
			Issuance{SerialNumber: "01", SANs: []string{"a.example", "b.example", "10.0.0.1"}}},
		{"nobody", x509.Certificate{SerialNumber: big.NewInt(2)}, edKey.Public(), "Ed25519", 256, Issuance{SerialNumber: "02"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.leaf.NotBefore, row.leaf.NotAfter = now, now.Add(30*time.Minute)
			for _, keyID := range [][]byte{nil, {1, 2, 3}} {
				issuer := *root
				issuer.SubjectKeyId = keyID
				der, err := x509.CreateCertificate(rand.Reader, &row.leaf, &issuer, row.key, caKey)
				require.NoError(t, err)
				leaf, err := x509.ParseCertificate(der)
				require.NoError(t, err)
				got, err := NewIssuance(leaf, root)
				require.NoError(t, err)
				want := row.want
				want.DER, want.SHA256, want.SPKISHA256 = der, hexSHA256(der), hexSHA256(leaf.RawSubjectPublicKeyInfo)
				want.NotBefore, want.NotAfter, want.KeyAlgorithm, want.KeyBits, want.SignatureAlgorithm = now, now.Add(30*time.Minute), row.algorithm, row.bits, "ECDSA-SHA384"
				want.IssuerKeyID = hex.EncodeToString(keyID)
				if keyID == nil {
					sum := sha256.Sum256(root.RawSubjectPublicKeyInfo)
					want.IssuerKeyID = hex.EncodeToString(sum[:])
					_, err := NewIssuance(leaf, nil)
					assert.Error(t, err)
				}
				assert.Equal(t, want, got)
				assert.Equal(t, 30*time.Minute, got.Lifetime())

				s := open(t, Config{})
				before := time.Now().Truncate(time.Second)
				require.NoError(t, s.Record(t.Context(), got))
				back, err := s.Local().Certificate(t.Context(), strings.ToUpper(got.SHA256))
				require.NoError(t, err)
				want.Sequence, want.RecordedAt, want.Replica, want.Source = 1, back.RecordedAt, "signet-0", Own
				assert.False(t, back.RecordedAt.Before(before) || back.RecordedAt.After(time.Now()), "%s", back.RecordedAt)
				assert.Equal(t, want, back)
				found, err := s.Local().List(t.Context(), Filter{Serial: strings.ToUpper(got.SerialNumber)}, Page{})
				require.NoError(t, err)
				assert.Len(t, found.Records, 1)
			}
		})
	}
}

func TestHolder(t *testing.T) {
	for want, i := range map[string]Issuance{
		"pod/uid":    {PodUID: "uid", Node: "node", Peer: "10.0.0.1"},
		"node/node":  {PodUID: "uid", Node: "node", Peer: "10.0.0.1", Impersonated: true},
		"address/10": {Node: "node", Peer: "10"},
		"":           {Node: "node"},
	} {
		assert.Equal(t, want, i.Holder())
	}
	a, b := Issuance{Identity: "i", PodUID: "p"}, Issuance{Identity: "i", PodUID: "q"}
	assert.NotEqual(t, a.holding(), b.holding())
	a, b = Issuance{SANs: []string{"a"}}, Issuance{SANs: []string{"b"}}
	assert.NotEqual(t, a.holding(), b.holding(), "certificates without an identity don't supersede each other")
}

func TestParseSerial(t *testing.T) {
	for s, want := range map[string]string{"ab": "ab", "0A:bC": "0abc", "abc": "0abc", "000abc": "0abc", "00": "00", "0": "00"} {
		got, err := parseSerial(s)
		require.NoError(t, err, s)
		assert.Equal(t, want, hex.EncodeToString(got), s)
	}
	for _, s := range []string{"xyz", "0x12", "-1", strings.Repeat("ab", 65), "a b"} {
		_, err := parseSerial(s)
		assert.ErrorIs(t, err, ErrFilter, s)
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "plain", "a\x00b", "\xff\xfe", strings.Repeat("ü", 2000), strings.Repeat("x", maxText) + "\xc3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := clean(s)
		if !plain(c) || !utf8.ValidString(c) {
			t.Fatalf("%q became %q", s, c)
		}
		if clean(c) != c {
			t.Fatalf("%q changes again", c)
		}
		if plain(s) && c != s {
			t.Fatalf("%q was plain", s)
		}
	})
}

func FuzzDecodeToken(f *testing.F) {
	good, err := token{use: 'p', at: 1, snapshot: 2, recorded: 3, seq: 4}.encode("id", Filter{Namespace: "a"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[1:])
	f.Add("")
	f.Add(strings.Repeat("A", len(good)))
	f.Fuzz(func(t *testing.T, s string) {
		got, err := decodeToken(s, 'p', "id", Filter{Namespace: "a"})
		if s == good {
			if err != nil || got != (token{use: 'p', at: 1, snapshot: 2, recorded: 3, seq: 4}) {
				t.Fatalf("%+v %v", got, err)
			}
			return
		}
		if err != nil && !errors.Is(err, ErrContinue) {
			t.Fatal(err)
		}
		if err == nil { // only what encode would write is read
			again, err := got.encode("id", Filter{Namespace: "a"})
			if err != nil || again != s {
				t.Fatalf("%q is read as %+v", s, got)
			}
		}
	})
}
