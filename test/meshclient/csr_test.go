package meshclient

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var testID = spiffeid.RequireFromString("spiffe://cluster.local/ns/shop/sa/cart")

func parseCSR(t *testing.T, text string) *x509.CertificateRequest {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	require.NotNil(t, block)
	require.Empty(t, rest)
	require.Equal(t, "CERTIFICATE REQUEST", block.Type)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	require.NoError(t, err)
	return csr
}

func TestR30_ProfilesLookLikeTheRealClients(t *testing.T) {
	sidecar := func(kind KeyType) func(spiffeid.ID) (crypto.Signer, string, error) {
		return func(id spiffeid.ID) (crypto.Signer, string, error) { return SidecarCSR(id, kind) }
	}
	for _, c := range []struct {
		name      string
		build     func(spiffeid.ID) (crypto.Signer, string, error)
		subject   []byte
		critical  bool
		algorithm x509.SignatureAlgorithm
	}{
		{"sidecar RSA", sidecar(RSA2048), EmptyOrganization(), true, x509.SHA256WithRSA},
		{"sidecar P-256", sidecar(P256), EmptyOrganization(), true, x509.ECDSAWithSHA256},
		{"sidecar P-384", sidecar(P384), EmptyOrganization(), true, x509.ECDSAWithSHA384},
		{"ztunnel", ZtunnelCSR, EmptySubject(), true, x509.ECDSAWithSHA256},
		{"old ztunnel", OldZtunnelCSR, EmptySubject(), false, x509.ECDSAWithSHA256},
		{"agentgateway", AgentgatewayCSR, EmptySubject(), false, x509.ECDSAWithSHA256},
	} {
		t.Run(c.name, func(t *testing.T) {
			key, text, err := c.build(testID)
			require.NoError(t, err)
			csr := parseCSR(t, text)
			require.NoError(t, csr.CheckSignature())
			assert.Equal(t, key.Public(), csr.PublicKey)
			assert.Equal(t, c.subject, csr.RawSubject)
			assert.Equal(t, c.algorithm, csr.SignatureAlgorithm)
			require.Len(t, csr.Extensions, 1)
			assert.Equal(t, c.critical, csr.Extensions[0].Critical)
			require.Len(t, csr.URIs, 1)
			assert.Equal(t, testID.String(), csr.URIs[0].String())
		})
	}
}

func TestBuildCSR_EncodesAsGoDoes(t *testing.T) {
	key, err := NewKey(Ed25519) // signs the same bytes the same way each time
	require.NoError(t, err)
	san := SAN(true, URIName(testID.String()))
	ours, err := BuildCSR(Template{Key: key, Subject: EmptyOrganization(), Extensions: []Extension{san}})
	require.NoError(t, err)
	theirs, err := x509.CreateCertificateRequest(nil, &x509.CertificateRequest{
		RawSubject:      EmptyOrganization(),
		ExtraExtensions: pkixExtensions(san),
	}, key)
	require.NoError(t, err)
	assert.Equal(t, theirs, ours)
}

func TestNewKey_EveryKindSigns(t *testing.T) {
	for _, kind := range []KeyType{P224, P256, P384, P521, Ed25519, RSA512, RSA1024, RSA2048, RSA3072} {
		t.Run(string(kind), func(t *testing.T) {
			key, err := NewKey(kind)
			require.NoError(t, err)
			der, err := BuildCSR(Template{Key: key})
			require.NoError(t, err)
			csr, err := x509.ParseCertificateRequest(der)
			require.NoError(t, err)
			if kind == RSA512 { // crypto/rsa will not even look at it
				public, ok := csr.PublicKey.(*rsa.PublicKey)
				require.True(t, ok)
				assert.Equal(t, 512, public.N.BitLen())
				require.Error(t, csr.CheckSignature())
				return
			}
			require.NoError(t, csr.CheckSignature())
		})
	}
	_, err := NewKey("DSA")
	require.ErrorContains(t, err, "no such kind of key")
}

func TestLongLength(t *testing.T) {
	assert.Equal(t, []byte{0x30, 0x81, 0x01, 0x05}, LongLength([]byte{0x30, 0x01, 0x05}))
	long := append([]byte{0x30, 0x81, 0x80}, make([]byte, 0x80)...)
	assert.Equal(t, append([]byte{0x30, 0x82, 0x00, 0x80}, make([]byte, 0x80)...), LongLength(long))
}

func TestHostileCSRs_EachIsWrongAndTheSameOtherwise(t *testing.T) {
	requests, err := HostileCSRs(testID)
	require.NoError(t, err)
	names := map[string]bool{}
	_, good, err := ZtunnelCSR(testID)
	require.NoError(t, err)
	require.Empty(t, whatIsWrong(t, good))
	for _, request := range requests {
		t.Run(request.Name, func(t *testing.T) {
			assert.False(t, names[request.Name], "name is used twice")
			names[request.Name] = true
			assert.NotEmpty(t, request.Rule)
			assert.NotEmpty(t, whatIsWrong(t, request.CSR))
		})
	}
}

// whatIsWrong is a strict reader of requests: any deviation from what ztunnel sends counts, except in
// the key and the signature. It returns "" for a good request.
func whatIsWrong(t *testing.T, text string) string {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(rest) > 0 || block.Type != "CERTIFICATE REQUEST" {
		return "PEM"
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return "encoding"
	}
	if csr.CheckSignature() != nil {
		return "signature"
	}
	if csr.Version != 0 {
		return "version"
	}
	if csr.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return "algorithm"
	}
	var public struct {
		Algorithm struct{ OID, Curve asn1.ObjectIdentifier }
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(csr.RawSubjectPublicKeyInfo, &public); err != nil ||
		!public.Algorithm.Curve.Equal(asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}) {
		return "key"
	}
	info := Template{Subject: EmptySubject(), PublicKey: csr.RawSubjectPublicKeyInfo,
		Extensions: []Extension{SAN(true, URIName(testID.String()))}}
	want, err := encodeInfo(info)
	require.NoError(t, err)
	if string(want) != string(csr.RawTBSCertificateRequest) {
		return "content"
	}
	return ""
}
