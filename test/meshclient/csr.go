package meshclient

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	_ "crypto/sha1" // registers the hash of SHA1WithRSA and ECDSAWithSHA1
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	encodingasn1 "encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Template is a certificate request (RFC 2986 §4) before it is encoded. Key is required; the zero
// value of each other field is what a plain request has. Byte slices are DER and are copied verbatim,
// whatever they hold.
type Template struct {
	// Key signs the request, and its public half is in it.
	Key crypto.Signer

	// Version is the version field. 0 means v1, the only one there is.
	Version int64

	// Subject is the RDNSequence; see [EmptySubject], [EmptyOrganization] and [Subject].
	// nil means an empty one.
	Subject []byte

	// PublicKey replaces the SubjectPublicKeyInfo of Key. Optional.
	PublicKey []byte

	// Extensions are sent together in one extensionRequest attribute, in this order, repeated ones
	// too. None means no such attribute.
	Extensions []Extension

	// Attributes follow the extensionRequest; see [ExtensionRequest] and [ChallengePassword].
	Attributes [][]byte

	// Algorithm of the signature. Optional: the usual one for Key.
	Algorithm x509.SignatureAlgorithm

	// AlterInfo changes the encoded CertificationRequestInfo before it is signed, AlterSignature
	// the signature after that. Both may return their argument changed in place. Optional.
	AlterInfo, AlterSignature func([]byte) []byte
}

// Extension is one X.509 extension, whose value need not be what its OID promises.
type Extension struct {
	OID      encodingasn1.ObjectIdentifier
	Critical bool
	Value    []byte
}

var (
	oidSubjectAltName    = encodingasn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints  = encodingasn1.ObjectIdentifier{2, 5, 29, 19}
	oidKeyUsage          = encodingasn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage       = encodingasn1.ObjectIdentifier{2, 5, 29, 37}
	oidExtensionRequest  = encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
	oidChallengePassword = encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}

	digestOIDs = map[crypto.Hash]encodingasn1.ObjectIdentifier{
		crypto.SHA1:   {1, 3, 14, 3, 2, 26},
		crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
	}
)

// signing is what a signature algorithm needs: its OID, whether its parameters are NULL (the RSA
// family, RFC 4055 §5) or absent, and its hash (zero for Ed25519).
type signing struct {
	oid  encodingasn1.ObjectIdentifier
	null bool
	hash crypto.Hash
}

var signings = map[x509.SignatureAlgorithm]signing{
	x509.SHA1WithRSA:     {encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}, true, crypto.SHA1},
	x509.SHA256WithRSA:   {encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, true, crypto.SHA256},
	x509.SHA384WithRSA:   {encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}, true, crypto.SHA384},
	x509.SHA512WithRSA:   {encodingasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}, true, crypto.SHA512},
	x509.ECDSAWithSHA1:   {encodingasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}, false, crypto.SHA1},
	x509.ECDSAWithSHA256: {encodingasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, false, crypto.SHA256},
	x509.ECDSAWithSHA384: {encodingasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, false, crypto.SHA384},
	x509.ECDSAWithSHA512: {encodingasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, false, crypto.SHA512},
	x509.PureEd25519:     {encodingasn1.ObjectIdentifier{1, 3, 101, 112}, false, 0},
}

// BuildCSR encodes and signs t. The result is DER; [EncodeCSR] makes the PEM that is sent.
func BuildCSR(t Template) ([]byte, error) {
	if t.Key == nil {
		return nil, errors.New("build request: template has no key")
	}
	algorithm := t.Algorithm
	if algorithm == x509.UnknownSignatureAlgorithm {
		algorithm = usualAlgorithm(t.Key.Public())
	}
	how, ok := signings[algorithm]
	if !ok {
		return nil, fmt.Errorf("build request: signature algorithm %v is not supported", algorithm)
	}
	info, err := encodeInfo(t)
	if err != nil {
		return nil, err
	}
	if t.AlterInfo != nil {
		info = t.AlterInfo(info)
	}
	digest := info
	if how.hash != 0 {
		h := how.hash.New()
		h.Write(info)
		digest = h.Sum(nil)
	}
	signature, err := t.Key.Sign(rand.Reader, digest, how.hash)
	if err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	if t.AlterSignature != nil {
		signature = t.AlterSignature(signature)
	}
	var request cryptobyte.Builder
	request.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(how.oid)
			if how.null {
				b.AddASN1NULL()
			}
		})
		b.AddASN1BitString(signature)
	})
	der, err := request.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return der, nil
}

// encodeInfo encodes the CertificationRequestInfo (RFC 2986 §4.1), the part that is signed.
func encodeInfo(t Template) ([]byte, error) {
	subject := t.Subject
	if subject == nil {
		subject = EmptySubject()
	}
	public := t.PublicKey
	if public == nil {
		var err error
		if public, err = x509.MarshalPKIXPublicKey(t.Key.Public()); err != nil {
			return nil, fmt.Errorf("encode public key: %w", err)
		}
	}
	var info cryptobyte.Builder
	info.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(t.Version)
		b.AddBytes(subject)
		b.AddBytes(public)
		b.AddASN1(asn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			if len(t.Extensions) > 0 {
				b.AddBytes(ExtensionRequest(t.Extensions...))
			}
			for _, attribute := range t.Attributes {
				b.AddBytes(attribute)
			}
		})
	})
	der, err := info.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode request info: %w", err)
	}
	return der, nil
}

// usualAlgorithm is the one crypto/x509 would choose for a request, and so Istio's agent.
func usualAlgorithm(public crypto.PublicKey) x509.SignatureAlgorithm {
	switch public := public.(type) {
	case ed25519.PublicKey:
		return x509.PureEd25519
	case *ecdsa.PublicKey:
		switch public.Curve {
		case elliptic.P384():
			return x509.ECDSAWithSHA384
		case elliptic.P521():
			return x509.ECDSAWithSHA512
		}
		return x509.ECDSAWithSHA256
	}
	return x509.SHA256WithRSA
}

// EncodeCSR encodes each DER request as one PEM block, one after the other.
func EncodeCSR(der ...[]byte) string {
	var text []byte
	for _, request := range der {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request})...)
	}
	return string(text)
}
