package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/signet-ca/signet/signer"
)

// maxCSRBytes bounds a CSR in PEM before anything of it is parsed. One with an RSA key of 8192 bits
// has about 3 KiB.
const maxCSRBytes = 16 << 10

// Kinds of keys, as the configuration names them.
const (
	keyRSA     = "RSA"
	keyP256    = "ECDSA-P256"
	keyP384    = "ECDSA-P384"
	keyEd25519 = "Ed25519"
)

var allKeys = []string{keyRSA, keyP256, keyP384, keyEd25519}

// RSA key sizes in bits (R29); beyond the upper one a signature costs too much to check.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// csrPolicy is what a CSR may ask for. Immutable.
type csrPolicy struct {
	keys   []string
	usages signer.Usages
}

var (
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14} // RFC 2985 §5.4.2
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidOrganization     = asn1.ObjectIdentifier{2, 5, 4, 10}
)

// parseCSR reads text, which must be one PEM block of type CERTIFICATE REQUEST and nothing else. The
// signature isn't checked.
func parseCSR(text string) (*x509.CertificateRequest, error) {
	if len(text) > maxCSRBytes {
		return nil, kindTooLarge.saying("the CSR has %d bytes; at most %d are allowed", len(text), maxCSRBytes)
	}
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, "-----BEGIN ") || strings.Count(text, "-----BEGIN ") != 1 {
		return nil, kindCSRMalformed.saying("it must be one PEM block")
	}
	block, rest := pem.Decode([]byte(text))
	switch {
	case block == nil:
		return nil, kindCSRMalformed.saying("it must be one PEM block")
	case block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" || len(block.Headers) != 0:
		return nil, kindCSRMalformed.saying("the PEM block must be of type CERTIFICATE REQUEST, without headers")
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, kindCSRMalformed.saying("text follows the PEM block")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || !wholeCSR(block.Bytes) {
		return nil, kindCSRMalformed.saying("it must be a PKCS#10 request in DER")
	}
	return csr, nil
}

// wholeCSR says whether der is a CertificationRequest (RFC 2986 §4.2) and every structure in it that Go
// reads holds nothing after what it reads: Go passes over surplus elements, other readers may not, and
// the bytes go to the issuer as they are. The attributes are for checkAttributes.
func wholeCSR(der []byte) bool {
	input := cryptobyte.String(der)
	var request, info, key cryptobyte.String
	return input.ReadASN1(&request, cbasn1.SEQUENCE) && input.Empty() &&
		request.ReadASN1(&info, cbasn1.SEQUENCE) &&
		wholeAlgorithm(&request) && request.SkipASN1(cbasn1.BIT_STRING) && request.Empty() &&
		info.SkipASN1(cbasn1.INTEGER) && info.SkipASN1(cbasn1.SEQUENCE) &&
		info.ReadASN1(&key, cbasn1.SEQUENCE) && wholeAlgorithm(&key) && key.SkipASN1(cbasn1.BIT_STRING) && key.Empty()
}

// wholeAlgorithm reads an AlgorithmIdentifier (RFC 5280 §4.1.1.2): an OID and at most one parameter.
func wholeAlgorithm(input *cryptobyte.String) bool {
	var algorithm, parameters cryptobyte.String
	var oid asn1.ObjectIdentifier
	var tag cbasn1.Tag
	return input.ReadASN1(&algorithm, cbasn1.SEQUENCE) && algorithm.ReadASN1ObjectIdentifier(&oid) &&
		(algorithm.Empty() || algorithm.ReadAnyASN1(&parameters, &tag) && algorithm.Empty())
}

// wholeExtensions reads a list of extensions (RFC 5280 §4.1): an OID, perhaps a flag, and a value each.
func wholeExtensions(list cryptobyte.String) bool {
	for !list.Empty() {
		var extension cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !list.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&oid) ||
			!extension.SkipOptionalASN1(cbasn1.BOOLEAN) || !extension.SkipASN1(cbasn1.OCTET_STRING) || !extension.Empty() {
			return false
		}
	}
	return true
}

// otherIdentity is the workload identity that csr asks for where it is, in proper form, not id: the
// caller wants to be somebody else. It is the zero ID for everything that check has to judge.
func otherIdentity(csr *x509.CertificateRequest, id spiffeid.ID) spiffeid.ID {
	if len(csr.URIs) != 1 {
		return spiffeid.ID{}
	}
	asked, err := spiffeid.FromString(csr.URIs[0].String())
	if err != nil || asked == id {
		return spiffeid.ID{}
	}
	names, err := signer.NamesIn(csr.Extensions)
	if err != nil || !names.Equal(signer.IdentityNames(asked)) {
		return spiffeid.ID{}
	}
	return asked
}

// check decides whether csr may become a certificate for id: cheap checks first, the signature last.
// It is a pure function of its arguments.
func (p csrPolicy) check(csr *x509.CertificateRequest, id spiffeid.ID) error {
	if csr.Version != 0 { // RFC 2986 §4.1
		return kindCSRMalformed.saying("its version must be 0")
	}
	if err := p.checkKey(csr); err != nil {
		return err
	}
	if err := checkSubject(csr); err != nil {
		return err
	}
	if err := checkAttributes(csr); err != nil {
		return err
	}
	if err := p.checkExtensions(csr.Extensions, id); err != nil {
		return err
	}
	if weakSignature(csr.SignatureAlgorithm) {
		return kindCSRSignature.saying("it must not be made with SHA-1 or MD5")
	}
	if err := csr.CheckSignature(); err != nil {
		return kindCSRSignature.because("check the CSR's signature: %w", err)
	}
	return nil
}

func (p csrPolicy) checkKey(csr *x509.CertificateRequest) error {
	var name string
	switch key := csr.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return kindCSRKey.saying("it is RSA with %d bits; %d to %d are allowed", bits, minRSABits, maxRSABits)
		}
		name = keyRSA
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			name = keyP256
		case elliptic.P384():
			name = keyP384
		default:
			name = "ECDSA-" + key.Curve.Params().Name
		}
	case ed25519.PublicKey:
		name = keyEd25519
	default:
		name = csr.PublicKeyAlgorithm.String()
	}
	if !slices.Contains(p.keys, name) {
		return kindCSRKey.saying("it is %s; allowed are %s", name, strings.Join(p.keys, ", "))
	}
	return nil
}

// checkSubject wants the subject empty, or one empty O, which is what Istio's agent sends (R30).
func checkSubject(csr *x509.CertificateRequest) error {
	var subject pkix.RDNSequence
	if rest, err := asn1.Unmarshal(csr.RawSubject, &subject); err != nil || len(rest) != 0 {
		return kindCSRSubject.saying("it can't be read")
	}
	if len(subject) == 0 {
		return nil
	}
	if len(subject) == 1 && len(subject[0]) == 1 {
		attribute := subject[0][0]
		if value, ok := attribute.Value.(string); ok && value == "" && attribute.Type.Equal(oidOrganization) {
			return nil
		}
	}
	return kindCSRSubject.because("the subject is %q", csr.Subject)
}

// checkAttributes wants no attribute but one extensionRequest with one list of extensions: readers
// differ in what they make of more, and Go passes over attributes that it doesn't know.
func checkAttributes(csr *x509.CertificateRequest) error {
	malformed := kindCSRMalformed.saying("its attributes can't be read")
	input := cryptobyte.String(csr.RawTBSCertificateRequest)
	var info, attributes cryptobyte.String
	var present bool
	tag := cbasn1.Tag(0).ContextSpecific().Constructed()
	if !input.ReadASN1(&info, cbasn1.SEQUENCE) || !input.Empty() ||
		!info.SkipASN1(cbasn1.INTEGER) || !info.SkipASN1(cbasn1.SEQUENCE) || !info.SkipASN1(cbasn1.SEQUENCE) ||
		!info.ReadOptionalASN1(&attributes, &present, tag) || !info.Empty() {
		return malformed
	}
	seen := false
	for !attributes.Empty() {
		var attribute, values, extensions cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !attributes.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) ||
			!attribute.ReadASN1(&values, cbasn1.SET) || !attribute.Empty() {
			return malformed
		}
		if !oid.Equal(oidExtensionRequest) {
			return kindCSRExtensions.saying("attribute %s is not allowed", oid)
		}
		if seen || !values.ReadASN1(&extensions, cbasn1.SEQUENCE) || !values.Empty() {
			return kindCSRExtensions.saying("extensions may be asked for once only")
		}
		if !wholeExtensions(extensions) {
			return malformed
		}
		seen = true
	}
	return nil
}

// checkExtensions wants exactly the subjectAltName of id, and key usages absent or exactly those that
// the certificate will have (R31). The names are compared as bytes.
func (p csrPolicy) checkExtensions(extensions []pkix.Extension, id spiffeid.ID) error {
	seen := make(map[string]bool, len(extensions))
	keyUsage, extKeyUsage := false, false
	for _, extension := range extensions {
		oid := extension.Id.String()
		if seen[oid] {
			return kindCSRExtensions.saying("extension %s occurs twice", oid)
		}
		seen[oid] = true
		switch {
		case extension.Id.Equal(oidSubjectAltName):
		case extension.Id.Equal(oidKeyUsage):
			keyUsage = true
			if !p.usages.MatchKeyUsage(extension.Value) {
				return kindCSRExtensions.saying("keyUsage must be absent or that of %q", p.usages)
			}
		case extension.Id.Equal(oidExtKeyUsage):
			extKeyUsage = true
			if !p.usages.MatchExtKeyUsage(extension.Value) {
				return kindCSRExtensions.saying("extendedKeyUsage must be absent or that of %q, in this order", p.usages)
			}
		default:
			return kindCSRExtensions.saying("extension %s is not allowed", oid)
		}
	}
	// cert-manager compares both once either is present.
	if granted := p.usages.KeyUsage(); keyUsage != extKeyUsage && (extKeyUsage && granted != 0 || keyUsage) {
		return kindCSRExtensions.saying("keyUsage and extendedKeyUsage must be asked for together")
	}
	names, err := signer.NamesIn(extensions)
	if err != nil {
		return kindCSRNames.saying("%s", err)
	}
	if want := signer.IdentityNames(id); !names.Equal(want) {
		return &refusal{kind: kindCSRNames, detail: "it must name " + id.String(), cause: fmt.Errorf("the CSR names %s, the caller is %s", names, want)}
	}
	return nil
}

func weakSignature(algorithm x509.SignatureAlgorithm) bool {
	switch algorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return true
	}
	return false
}
