package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseBundle(t *testing.T) {
	a, b := newRoot(t, "a", nil), newRoot(t, "b", nil)
	pa, pb := toPEM(a), toPEM(b)
	for name, text := range map[string]string{
		"one":                     pa,
		"no newline at the end":   strings.TrimSpace(pa),
		"space around and CRLF":   "\r\n\t " + strings.ReplaceAll(pa, "\n", "\r\n") + "\n\n \n",
		"blank lines between":     pa + "\n\n" + pb,
		"comments":                "# root a\n" + pa + "  # root b, indented\n#\n" + pb + "# end",
		"repeated":                pa + pb + pa,
		"comments without blanks": "#a\n#b\n" + pa,
	} {
		t.Run(name, func(t *testing.T) {
			bundle, err := ParseBundle([]byte(text))
			require.NoError(t, err)
			want := []*x509.Certificate{a}
			if strings.Contains(text, "root b") || strings.Contains(text, pb) {
				want = append(want, b)
			}
			assert.Len(t, bundle.Anchors(), len(want))
			for _, cert := range want {
				assert.True(t, bundle.Contains(cert))
			}
		})
	}
}

func TestR42_ParseBundleIsStrict(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	require.NoError(t, err)
	good := toPEM(newRoot(t, "good", nil))
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	block := func(kind string, headers map[string]string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Headers: headers, Bytes: der}))
	}
	body := strings.TrimPrefix(strings.TrimSuffix(good, "-----END CERTIFICATE-----\n"), "-----BEGIN CERTIFICATE-----\n")
	root := newRoot(t, "r", nil)
	notCA := newRoot(t, "leaf", func(c *x509.Certificate) { c.IsCA = false; c.KeyUsage = x509.KeyUsageDigitalSignature })
	noConstraints := newRoot(t, "v1", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false })
	mayNotSign := newRoot(t, "signs nothing", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	for _, row := range []struct{ name, text, want string }{
		{"empty", "", "PEM: no certificate"},
		{"white space", " \n\t\n", "PEM: no certificate"},
		{"only a comment", "# later\n", "PEM: no certificate"},
		{"no PEM", "hello", "PEM: text outside of blocks, after certificate 0"},
		{"DER", string(root.Raw), "PEM: text outside of blocks, after certificate 0"},
		{"private key", block("PRIVATE KEY", nil, keyDER), `PEM: block of type "PRIVATE KEY", after certificate 0`},
		{"private key behind", good + block("PRIVATE KEY", nil, keyDER), `PEM: block of type "PRIVATE KEY", after certificate 1`},
		{"CRL", good + block("X509 CRL", nil, []byte{0x30, 0}), `PEM: block of type "X509 CRL", after certificate 1`},
		{"trusted certificate", block("TRUSTED CERTIFICATE", nil, root.Raw), `block of type "TRUSTED CERTIFICATE"`},
		{"headers", block("CERTIFICATE", map[string]string{"Proc-Type": "4,ENCRYPTED"}, root.Raw), `block of type "CERTIFICATE"`},
		{"text between", good + "root of the mesh\n" + good, "PEM: text outside of blocks, after certificate 1"},
		{"text before", "Certificate:\n" + good, "PEM: text outside of blocks, after certificate 0"},
		{"text after", good + "x", "PEM: text outside of blocks, after certificate 1"},
		{"comment behind a block on its line", strings.TrimSpace(good) + "# a\n", "PEM: "},
		{"begins without end", "-----BEGIN CERTIFICATE-----\n" + body, "PEM: broken block, after certificate 0"},
		{"broken in front of a good one", "-----BEGIN CERTIFICATE-----\n" + body + good, "PEM: broken block, after certificate 0"},
		{"no base64 in front of a good one", "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n" + good, "PEM: broken block, after certificate 0"},
		{"other end", "-----BEGIN CERTIFICATE-----\n" + body + "-----END CERT-----\n" + good, "PEM: broken block, after certificate 0"},
		{"broken behind a good one", good + "-----BEGIN CERTIFICATE-----\n" + body, "PEM: broken block, after certificate 1"},
		{"begin line cut", "-----BEGIN CERTIFICATE\n" + body + good, "PEM: broken block, after certificate 0"},
		{"not DER", block("CERTIFICATE", nil, []byte("no certificate")), "parse certificate 1: "},
		{"second not DER", good + block("CERTIFICATE", nil, []byte{0x30, 0}), "parse certificate 2: "},
		{"empty block", good + "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "parse certificate 2: "},
		{"two in one block", block("CERTIFICATE", nil, slices.Concat(root.Raw, root.Raw)), "parse certificate 1: "},
		{"leaf", good + toPEM(notCA), `certificate "CN=leaf" (serial 01) is not a CA certificate`},
		{"no basicConstraints", toPEM(noConstraints), "is not a CA certificate"},
		{"CA that may not sign", toPEM(mayNotSign), `certificate "CN=signs nothing" (serial 01) may not sign certificates`},
		{"too large", good + strings.Repeat("\n", maxBundleBytes), "at most 262144 are allowed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			bundle, err := ParseBundle([]byte(row.text))
			require.ErrorContains(t, err, row.want)
			assert.True(t, bundle.Empty())
		})
	}
}

func TestParseCertificatesKeepsOrder(t *testing.T) {
	leaf := newRoot(t, "leaf", func(c *x509.Certificate) { c.IsCA = false; c.KeyUsage = 0 })
	a, b := newRoot(t, "a", nil), newRoot(t, "b", nil)
	certs, err := ParseCertificates([]byte(toPEM(leaf, b, a, b)))
	require.NoError(t, err)
	require.Len(t, certs, 4, "nothing is left out, nothing must be a CA")
	for i, want := range []*x509.Certificate{leaf, b, a, b} {
		assert.True(t, want.Equal(certs[i]), "certificate %d", i)
	}
	_, err = ParseCertificates([]byte("# comments are for bundles\n" + toPEM(a)))
	assert.ErrorContains(t, err, "PEM: text outside of blocks")
}

// Agents compare bytes: two replicas whose sources list the same anchors differently must agree.
func TestR44_BundleBytesDontDependOnOrder(t *testing.T) {
	var anchors []*x509.Certificate
	for _, name := range []string{"a", "b", "c", "d"} {
		anchors = append(anchors, newRoot(t, name, nil))
	}
	first, err := NewBundle(anchors...)
	require.NoError(t, err)
	for range 20 {
		shuffled := slices.Concat(anchors, anchors[1:3])
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		bundle, err := ParseBundle([]byte(toPEM(shuffled...)))
		require.NoError(t, err)
		require.Equal(t, first.PEM(), bundle.PEM())
		require.Len(t, bundle.Anchors(), 4)
	}
}

func TestR45_BundlePEM(t *testing.T) {
	bundle, err := NewBundle(newRoot(t, "a", nil), newRoot(t, "b", nil))
	require.NoError(t, err)
	assert.Equal(t, toPEM(bundle.Anchors()...), bundle.PEM())
	assert.True(t, strings.HasSuffix(bundle.PEM(), "-----END CERTIFICATE-----\n"))
	again, err := ParseBundle([]byte(bundle.PEM()))
	require.NoError(t, err)
	assert.Equal(t, bundle.PEM(), again.PEM())
	assert.True(t, bundle.Pool().Equal(again.Pool()))
}

// Two certificates of one key and name are two anchors: a root that was renewed.
func TestBundleKeepsRenewedRoot(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	require.NoError(t, err)
	old := selfSign(t, key, "root", nil)
	renewed := selfSign(t, key, "root", func(c *x509.Certificate) { c.NotAfter = epoch.Add(48 * time.Hour) })
	bundle, err := NewBundle(old, renewed)
	require.NoError(t, err)
	assert.Len(t, bundle.Anchors(), 2)
}

func TestBundleValid(t *testing.T) {
	long := newRoot(t, "long", func(c *x509.Certificate) { c.NotAfter = epoch.Add(48 * time.Hour) })
	bundle, err := NewBundle(newRoot(t, "short", nil), long)
	require.NoError(t, err)
	for at, want := range map[time.Duration]int{
		-time.Second:                0,
		0:                           2,
		24 * time.Hour:              2, // RFC 5280 §4.1.2.5: the last second belongs to it
		24*time.Hour + 1:            1,
		48 * time.Hour:              1,
		48*time.Hour + time.Hour:    0,
		-100 * 365 * 24 * time.Hour: 0,
	} {
		assert.Equal(t, want, bundle.Valid(epoch.Add(at)), "at %s", at)
	}
}

func TestBundleZero(t *testing.T) {
	var b Bundle
	assert.True(t, b.Empty())
	assert.Empty(t, b.PEM())
	assert.Nil(t, b.Pool())
	assert.Zero(t, b.Valid(epoch))
	assert.False(t, b.Contains(newRoot(t, "a", nil)))
	none, err := NewBundle()
	require.NoError(t, err)
	assert.True(t, none.Empty())
}

// FuzzParseBundle: what is accepted holds CA certificates only, and reads back to the same bytes.
func FuzzParseBundle(f *testing.F) {
	a, b := toPEM(newRoot(f, "a", nil)), toPEM(newRoot(f, "b", nil))
	for _, seed := range []string{
		"", a, a + b, b + "# between\n" + a, "x" + a, a + "\nx",
		"-----BEGIN CERTIFICATE-----\n" + a, strings.ReplaceAll(a, "\n", "\r\n"),
		strings.Replace(a, "-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1),
		toPEM(newRoot(f, "leaf", func(c *x509.Certificate) { c.IsCA = false; c.KeyUsage = 0 })),
		"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" + a,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		bundle, err := ParseBundle(text)
		if err != nil {
			require.True(t, bundle.Empty())
			return
		}
		require.False(t, bundle.Empty())
		for _, anchor := range bundle.Anchors() {
			require.True(t, anchor.IsCA)
		}
		// What clients read, block by block, is exactly the anchors.
		rest := []byte(bundle.PEM())
		for _, anchor := range bundle.Anchors() {
			var block *pem.Block
			block, rest = pem.Decode(rest)
			require.NotNil(t, block)
			require.Equal(t, "CERTIFICATE", block.Type)
			require.Empty(t, block.Headers)
			require.Equal(t, anchor.Raw, block.Bytes)
		}
		require.Empty(t, rest)
		again, err := ParseBundle([]byte(bundle.PEM()))
		require.NoError(t, err)
		require.Equal(t, bundle.PEM(), again.PEM())
	})
}
