package meshclient

import (
	encodingasn1 "encoding/asn1"
	"math/bits"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// encode returns what build writes. The builders of this file write constants and byte strings, which
// can only fail on an OID that is none, a mistake in the test that made it.
func encode(build func(b *cryptobyte.Builder)) []byte {
	var b cryptobyte.Builder
	build(&b)
	return b.BytesOrPanic()
}

// Attribute is one attribute of a name, such as the common name.
type Attribute struct {
	OID   encodingasn1.ObjectIdentifier
	Value string
}

// CommonName is the attribute that Kubernetes takes for a user.
func CommonName(cn string) Attribute {
	return Attribute{encodingasn1.ObjectIdentifier{2, 5, 4, 3}, cn}
}

// Organization is the attribute that Kubernetes takes for a group, and that Istio's agent sends empty.
func Organization(o string) Attribute {
	return Attribute{encodingasn1.ObjectIdentifier{2, 5, 4, 10}, o}
}

// EmptySubject is a name without any part, as ztunnel and agentgateway send it (R30).
func EmptySubject() []byte {
	return []byte{0x30, 0x00}
}

// EmptyOrganization is the name that Istio's Go agent sends: one organization, an empty
// PrintableString (R30).
func EmptyOrganization() []byte {
	return []byte{0x30, 0x0b, 0x31, 0x09, 0x30, 0x07, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x00}
}

// Subject is a name with one part for each attribute, in order, as UTF8String.
func Subject(attributes ...Attribute) []byte {
	return encode(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, a := range attributes {
				b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(a.OID)
						b.AddASN1(asn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(a.Value)) })
					})
				})
			}
		})
	})
}

// The kinds of GeneralName by their tag (RFC 5280 §4.2.1.6).
const (
	tagOtherName     = 0
	tagEmail         = 1
	tagDNS           = 2
	tagDirectoryName = 4
	tagURI           = 6
	tagIP            = 7
	tagRegisteredID  = 8
)

// URIName is a uniformResourceIdentifier, the only kind of name a mesh certificate may have.
func URIName(uri string) []byte { return primitiveName(tagURI, []byte(uri)) }

// DNSName is a dNSName.
func DNSName(host string) []byte { return primitiveName(tagDNS, []byte(host)) }

// EmailName is an rfc822Name.
func EmailName(address string) []byte { return primitiveName(tagEmail, []byte(address)) }

// IPName is an iPAddress of 4 or 16 bytes, or of any other length.
func IPName(address []byte) []byte { return primitiveName(tagIP, address) }

// OtherName is an otherName holding a UTF8String, for instance the user principal name of Windows.
// Go's parser drops it without a word (R31).
func OtherName(oid encodingasn1.ObjectIdentifier, value string) []byte {
	return encode(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.Tag(tagOtherName).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(asn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(value)) })
			})
		})
	})
}

// DirectoryName is a directoryName holding the given RDNSequence. Go's parser drops it without a
// word (R31).
func DirectoryName(subject []byte) []byte {
	return encode(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.Tag(tagDirectoryName).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddBytes(subject)
		})
	})
}

// RegisteredID is a registeredID, given as the content bytes of an OID.
func RegisteredID(content []byte) []byte { return primitiveName(tagRegisteredID, content) }

func primitiveName(tag uint8, content []byte) []byte {
	return encode(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.Tag(tag).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(content) })
	})
}

// SAN is the subjectAltName extension with these GeneralNames, in order.
func SAN(critical bool, names ...[]byte) Extension {
	return Extension{OID: oidSubjectAltName, Critical: critical, Value: sequence(names...)}
}

// BasicConstraints is the extension that says whether the subject is an authority.
func BasicConstraints(isCA bool) Extension {
	value := encode(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			if isCA {
				b.AddASN1Boolean(true)
			}
		})
	})
	return Extension{OID: oidBasicConstraints, Critical: true, Value: value}
}

// KeyUsage is the extension with one byte of flags, the first flag (digitalSignature) highest:
// 0xa0 is what mesh certificates carry, 0x06 lets a key sign certificates and CRLs.
func KeyUsage(flags byte) Extension {
	// A list of named bits ends with its last set bit (X.690 §11.2.2).
	unused := byte(bits.TrailingZeros8(flags)) & 7
	return Extension{OID: oidKeyUsage, Critical: true, Value: []byte{0x03, 0x02, unused, flags}}
}

// ExtKeyUsage is the extension with these purposes, in order.
func ExtKeyUsage(purposes ...encodingasn1.ObjectIdentifier) Extension {
	return Extension{OID: oidExtKeyUsage, Value: encode(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, purpose := range purposes {
				b.AddASN1ObjectIdentifier(purpose)
			}
		})
	})}
}

// The purposes a key may have (RFC 5280 §4.2.1.12).
var (
	ServerAuth  = encodingasn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	ClientAuth  = encodingasn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	CodeSigning = encodingasn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 3}
)

// ExtensionRequest is the attribute that carries extensions (RFC 2985 §5.4.2). [BuildCSR] writes one
// by itself; a second one belongs in [Template.Attributes].
func ExtensionRequest(extensions ...Extension) []byte {
	return attribute(oidExtensionRequest, extensionList(extensions...))
}

// extensionList is what an extensionRequest attribute holds: Extensions of RFC 5280 §4.1.
func extensionList(extensions ...Extension) []byte {
	return encode(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, e := range extensions {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(e.OID)
					if e.Critical {
						b.AddASN1Boolean(true)
					}
					b.AddASN1OctetString(e.Value)
				})
			}
		})
	})
}

// ChallengePassword is the attribute of RFC 2985 §5.4.1, which a CA may take for a password.
func ChallengePassword(password string) []byte {
	return attribute(oidChallengePassword, encode(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(password)) })
	}))
}

func attribute(oid encodingasn1.ObjectIdentifier, value []byte) []byte {
	return encode(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(value) })
		})
	})
}

func sequence(parts ...[]byte) []byte {
	return encode(func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, part := range parts {
				b.AddBytes(part)
			}
		})
	})
}

// LongLength writes the length of the first element of der in one byte more than it needs, which BER
// allows and DER does not. Use it on a value before it goes into a template, on the signed part by way
// of [Template.AlterInfo], or on a whole request.
func LongLength(der []byte) []byte {
	if len(der) < 2 {
		return der
	}
	var length []byte
	content := 2
	if der[1] < 0x80 {
		length = []byte{0x81, der[1]}
	} else {
		content += int(der[1] & 0x7f)
		length = append([]byte{der[1] + 1, 0}, der[2:content]...)
	}
	long := append([]byte{der[0]}, length...)
	return append(long, der[content:]...)
}
