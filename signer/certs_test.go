package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/issuer"
)

var (
	epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	alice = spiffeid.RequireFromString("spiffe://cluster.local/ns/foo/sa/alice")
	mesh  = issuer.Ref{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"}
)

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// authority is a CA: its certificate and key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// newAuthority is signed by parent, or by itself where parent is nil. It is valid for a year around
// epoch, after change.
func newAuthority(t testing.TB, name string, parent *authority, change func(*x509.Certificate)) *authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(7),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             epoch.AddDate(0, -6, 0),
		NotAfter:              epoch.AddDate(0, 6, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if change != nil {
		change(template)
	}
	a := &authority{key: newKey(t)}
	if parent == nil {
		parent = &authority{cert: template, key: a.key}
	}
	a.cert = parent.issue(t, template, a.key.Public())
	return a
}

// issue signs template for key.
func (a *authority) issue(t testing.TB, template *x509.Certificate, key crypto.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert
}

// newCSR asks for names, with the given subject.
func newCSR(t testing.TB, key crypto.Signer, names Names, subject pkix.Name) *x509.CertificateRequest {
	t.Helper()
	extension, err := names.Extension(true)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: subject, ExtraExtensions: []pkix.Extension{extension},
	}, key)
	require.NoError(t, err)
	csr, err := x509.ParseCertificateRequest(der)
	require.NoError(t, err)
	return csr
}

// newRequest is a workload's good request for an hour.
func newRequest(t testing.TB, key crypto.Signer) *Request {
	t.Helper()
	names := IdentityNames(alice)
	return &Request{
		CSR:         newCSR(t, key, names, pkix.Name{}),
		Names:       names,
		Usages:      LeafUsages(),
		Lifetime:    time.Hour,
		MaxLifetime: time.Hour,
		For:         ForWorkload,
	}
}

// leafTemplate is what a good issuer makes of newRequest at epoch.
func leafTemplate(t testing.TB, names Names) *x509.Certificate {
	t.Helper()
	extension, err := names.Extension(true)
	require.NoError(t, err)
	return &x509.Certificate{
		SerialNumber:          big.NewInt(99),
		NotBefore:             epoch,
		NotAfter:              epoch.Add(time.Hour),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		ExtraExtensions:       []pkix.Extension{extension},
	}
}

func toPEM(certs ...*x509.Certificate) string {
	var text strings.Builder
	for _, cert := range certs {
		text.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	}
	return text.String()
}

func bundleOf(t testing.TB, anchors ...*x509.Certificate) issuer.Bundle {
	t.Helper()
	bundle, err := issuer.NewBundle(anchors...)
	require.NoError(t, err)
	return bundle
}
