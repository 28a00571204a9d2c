// Package testca is a certificate authority that does what it is told, wrong things above all.
//
// An [Authority] makes roots, intermediates and leaves in memory. An [Issuer] is an external issuer
// of cert-manager: it approves the CertificateRequests of one namespace and answers each as a
// [Behaviour] says, so that a test can see what becomes of answers that cert-manager's own issuers
// can't be made to give.
package testca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
)

// Authority is a CA certificate with its key, ECDSA P-256. Immutable.
type Authority struct {
	Cert   *x509.Certificate
	key    crypto.Signer
	parent *Authority // nil for a root
}

// NewRoot makes a self-signed CA that is valid for ten years.
func NewRoot(name string) (*Authority, error) {
	now := time.Now()
	return newAuthority(nil, name, now.Add(-time.Hour), now.AddDate(10, 0, 0))
}

// NewIntermediate makes a CA below a that is valid for the given time from now, and was an hour before.
func (a *Authority) NewIntermediate(name string, lifetime time.Duration) (*Authority, error) {
	now := time.Now()
	return newAuthority(a, name, now.Add(-time.Hour), now.Add(lifetime))
}

func newAuthority(parent *Authority, name string, notBefore, notAfter time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of CA %s: %w", name, err)
	}
	a := &Authority{key: key, parent: parent}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	signer, above := crypto.Signer(key), template
	if parent != nil {
		signer, above = parent.key, parent.Cert
	}
	der, err := x509.CreateCertificate(rand.Reader, template, above, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign CA %s: %w", name, err)
	}
	if a.Cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("parse CA %s: %w", name, err)
	}
	return a, nil
}

// Root is the authority at which the chain of a ends.
func (a *Authority) Root() *Authority {
	for a.parent != nil {
		a = a.parent
	}
	return a
}

// PEM is the authority's own certificate.
func (a *Authority) PEM() []byte { return encode(a.Cert.Raw) }

// Template is a leaf before it is signed.
type Template struct {
	x509.Certificate
	// Key is certified.
	Key crypto.PublicKey
}

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// NewTemplate is the leaf that cert-manager's CA issuer makes of a request: the subjectAltName is the
// CSR's, byte by byte.
func NewTemplate(ask Ask) *Template {
	t := &Template{Key: ask.CSR.PublicKey}
	t.SerialNumber = serial()
	t.RawSubject = ask.CSR.RawSubject
	t.NotBefore = time.Now().Truncate(time.Second)
	t.NotAfter = t.NotBefore.Add(cmapi.DefaultCertificateDuration)
	if ask.Object.Spec.Duration != nil {
		t.NotAfter = t.NotBefore.Add(ask.Object.Spec.Duration.Duration)
	}
	t.BasicConstraintsValid = true
	for _, usage := range ask.Object.Spec.Usages {
		if bit, ok := apiutil.KeyUsageType(usage); ok {
			t.KeyUsage |= bit
		} else if extended, ok := apiutil.ExtKeyUsageType(usage); ok {
			t.ExtKeyUsage = append(t.ExtKeyUsage, extended)
		}
	}
	for _, extension := range ask.CSR.Extensions {
		if extension.Id.Equal(oidSAN) {
			t.ExtraExtensions = append(t.ExtraExtensions, extension)
		}
	}
	return t
}

// SetSAN replaces the subjectAltName by one with these GeneralNames, each in DER.
func (t *Template) SetSAN(names ...[]byte) error {
	var raw []asn1.RawValue
	for _, name := range names {
		raw = append(raw, asn1.RawValue{FullBytes: name})
	}
	value, err := asn1.Marshal(raw)
	if err != nil {
		return fmt.Errorf("encode subjectAltName: %w", err)
	}
	t.ExtraExtensions = []pkix.Extension{{Id: oidSAN, Critical: true, Value: value}}
	return nil
}

// Sign makes the leaf, and returns the chain in PEM: the leaf, then a and what is above it, but not
// the root.
func (a *Authority) Sign(t *Template) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, &t.Certificate, a.Cert, t.Key, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign leaf: %w", err)
	}
	chain := encode(der)
	for ; a.parent != nil; a = a.parent {
		chain = append(chain, a.PEM()...)
	}
	return chain, nil
}

func encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// serial is positive and unlike any other (RFC 5280 §4.1.2.2).
func serial() *big.Int {
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails
	random[0] = random[0]&0x7f | 0x40
	return new(big.Int).SetBytes(random)
}
