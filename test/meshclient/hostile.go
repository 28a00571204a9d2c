package meshclient

import (
	"crypto/x509"
	encodingasn1 "encoding/asn1"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// HostileCSR is a request with exactly one thing wrong.
type HostileCSR struct {
	// Name says what is wrong, in words that suit the name of a subtest.
	Name string

	// Rule is the protocol rule that tells the server to refuse it.
	Rule string

	// CSR is the request as it is sent: PEM, or what should have been PEM.
	CSR string
}

// hostileChange is one row of the table: what to break in a good template, or in its encoding.
type hostileChange struct {
	name, rule string
	template   func(t *Template)
	der        func(der []byte) []byte
	pem        func(der []byte) string
}

// HostileCSRs makes one request for each way we know to ask for more than id, or to upset a parser
// on the way. Each must be refused, with a code that no client tries again. Keys are new on each call.
func HostileCSRs(id spiffeid.ID) ([]HostileCSR, error) {
	changes := hostileNames(id)
	changes = append(changes, hostileExtensions(id)...)
	changes = append(changes, hostileKeys()...)
	changes = append(changes, hostileEncodings(id)...)
	var requests []HostileCSR
	for _, change := range changes {
		key, err := NewKey(P256)
		if err != nil {
			return nil, err
		}
		template := Template{Key: key, Extensions: []Extension{SAN(true, URIName(id.String()))}}
		if change.template != nil {
			change.template(&template)
		}
		if template.Key == nil {
			return nil, fmt.Errorf("make hostile request %q: no key", change.name)
		}
		der, err := BuildCSR(template)
		if err != nil {
			return nil, fmt.Errorf("make hostile request %q: %w", change.name, err)
		}
		if change.der != nil {
			der = change.der(der)
		}
		text := EncodeCSR(der)
		if change.pem != nil {
			text = change.pem(der)
		}
		requests = append(requests, HostileCSR{Name: change.name, Rule: change.rule, CSR: text})
	}
	return requests, nil
}

// hostileNames ask for another name, or for one more.
func hostileNames(id spiffeid.ID) []hostileChange {
	uri := id.String()
	principal := encodingasn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}
	beside := func(name string, extra []byte) hostileChange {
		return hostileChange{name: name + " beside the URI", rule: "R31", template: func(t *Template) {
			t.Extensions = []Extension{SAN(true, URIName(uri), extra)}
		}}
	}
	instead := func(name, uri string) hostileChange {
		return hostileChange{name: name, rule: "R32", template: func(t *Template) {
			t.Extensions = []Extension{SAN(true, URIName(uri))}
		}}
	}
	subject := func(name string, attributes ...Attribute) hostileChange {
		return hostileChange{name: name, rule: "R31", template: func(t *Template) {
			t.Subject = Subject(attributes...)
		}}
	}
	return []hostileChange{
		beside("otherName", OtherName(principal, "administrator@corp.example")),
		beside("directoryName", DirectoryName(Subject(CommonName("system:admin")))),
		beside("DNS name", DNSName("istiod.istio-system.svc")),
		beside("IP address", IPName([]byte{10, 0, 0, 1})),
		beside("e-mail address", EmailName("admin@example.org")),
		beside("registeredID", RegisteredID([]byte{0x2a, 0x03, 0x04})),
		beside("second URI", URIName("spiffe://"+id.TrustDomain().Name()+"/ns/kube-system/sa/admin")),
		beside("same URI again", URIName(uri)),
		beside("unknown tag", primitiveName(9, []byte("x"))),
		{name: "otherName alone", rule: "R31", template: func(t *Template) {
			t.Extensions = []Extension{SAN(true, OtherName(principal, uri))}
		}},
		{name: "SAN without names", rule: "R31", template: func(t *Template) {
			t.Extensions = []Extension{SAN(true)}
		}},
		{name: "no SAN", rule: "R32", template: func(t *Template) { t.Extensions = nil }},
		instead("other service account", uri+"x"),
		instead("other trust domain", strings.Replace(uri, "spiffe://", "spiffe://other.", 1)),
		instead("upper-case scheme", strings.Replace(uri, "spiffe", "SPIFFE", 1)),
		instead("upper-case trust domain", "spiffe://"+strings.ToUpper(id.TrustDomain().Name())+id.Path()),
		instead("percent encoding", strings.Replace(uri, "/sa/", "/%73a/", 1)),
		instead("trailing slash", uri+"/"),
		instead("empty fragment", uri+"#"),
		instead("empty query", uri+"?"),
		instead("user before the trust domain", strings.Replace(uri, "://", "://x@", 1)),
		instead("port behind the trust domain", "spiffe://"+id.TrustDomain().Name()+":443"+id.Path()),
		instead("dot segment", strings.Replace(uri, "/ns/", "/./ns/", 1)),
		instead("double slash", strings.Replace(uri, "/ns/", "//ns/", 1)),
		instead("zero byte", uri+"\x00"),
		instead("white space", " "+uri),
		subject("common name", CommonName("system:admin")),
		subject("group of cluster admins", Organization("system:masters")),
		subject("two empty organizations", Organization(""), Organization("")),
		subject("empty common name", CommonName("")),
	}
}

// hostileExtensions ask for powers.
func hostileExtensions(id spiffeid.ID) []hostileChange {
	san := SAN(true, URIName(id.String()))
	other := SAN(true, URIName(id.String()+"x"))
	with := func(name string, e Extension) hostileChange {
		return hostileChange{name: name, rule: "R31", template: func(t *Template) {
			t.Extensions = append(t.Extensions, e)
		}}
	}
	return []hostileChange{
		with("authority", BasicConstraints(true)),
		with("basic constraints of a leaf", BasicConstraints(false)),
		with("key usage that signs certificates", KeyUsage(0x06)),
		with("key usage with one flag more", KeyUsage(0xe0)),
		with("code signing", ExtKeyUsage(CodeSigning)),
		with("one purpose more", ExtKeyUsage(ServerAuth, ClientAuth, CodeSigning)),
		with("any purpose", ExtKeyUsage(encodingasn1.ObjectIdentifier{2, 5, 29, 37, 0})),
		with("unknown extension", Extension{OID: encodingasn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte{5, 0}}),
		with("same SAN twice", san),
		with("two SANs, the second for another", other),
		{name: "two SANs, the first for another", rule: "R31", template: func(t *Template) {
			t.Extensions = []Extension{other, san}
		}},
		{name: "second extensionRequest for another", rule: "R31", template: func(t *Template) {
			t.Attributes = [][]byte{ExtensionRequest(other)}
		}},
		{name: "second extensionRequest that asks to be an authority", rule: "R31", template: func(t *Template) {
			t.Attributes = [][]byte{ExtensionRequest(BasicConstraints(true))}
		}},
		{name: "two extensionRequests in one attribute", rule: "R31", template: func(t *Template) {
			t.Extensions = nil
			t.Attributes = [][]byte{attribute(oidExtensionRequest, append(extensionList(san), extensionList(other)...))}
		}},
		{name: "challenge password", rule: "R31", template: func(t *Template) {
			t.Attributes = [][]byte{ChallengePassword("secret")}
		}},
	}
}

// hostileKeys are too weak, of the wrong kind, or not the caller's.
func hostileKeys() []hostileChange {
	weak := func(kind KeyType) hostileChange {
		return hostileChange{name: string(kind) + " key", rule: "R29", template: func(t *Template) {
			t.Key, _ = NewKey(kind) // an error leaves nil, which HostileCSRs reports
		}}
	}
	return []hostileChange{
		weak(RSA512), weak(RSA1024), weak(P224), weak(P521), weak(Ed25519),
		{name: "SHA-1 with RSA", rule: "R29", template: func(t *Template) {
			t.Key, _ = NewKey(RSA2048)
			t.Algorithm = x509.SHA1WithRSA
		}},
		{name: "SHA-1 with ECDSA", rule: "R29", template: func(t *Template) { t.Algorithm = x509.ECDSAWithSHA1 }},
		{name: "wrong signature", rule: "R29", template: func(t *Template) {
			t.AlterSignature = func(s []byte) []byte {
				s[len(s)-1] ^= 1
				return s
			}
		}},
		{name: "empty signature", rule: "R29", template: func(t *Template) {
			t.AlterSignature = func([]byte) []byte { return nil }
		}},
		{name: "key of another", rule: "R29", template: func(t *Template) {
			if other, err := NewKey(P256); err == nil {
				t.PublicKey, _ = x509.MarshalPKIXPublicKey(other.Public())
			}
		}},
	}
}

// hostileEncodings mean the right thing, written wrongly.
func hostileEncodings(id spiffeid.ID) []hostileChange {
	san := SAN(true, URIName(id.String()))
	return []hostileChange{
		{name: "bytes behind the request", rule: "R29", der: func(der []byte) []byte { return append(der, 0x30, 0x00) }},
		{name: "long length of the request", rule: "R29", der: LongLength},
		{name: "long length of the signed part", rule: "R29", template: func(t *Template) { t.AlterInfo = LongLength }},
		{name: "long length of the SAN", rule: "R31", template: func(t *Template) {
			t.Extensions = []Extension{{OID: san.OID, Critical: true, Value: LongLength(san.Value)}}
		}},
		{name: "long length of the URI", rule: "R31", template: func(t *Template) {
			t.Extensions = []Extension{SAN(true, LongLength(URIName(id.String())))}
		}},
		{name: "bytes behind the SAN", rule: "R31", template: func(t *Template) {
			t.Extensions = []Extension{{OID: san.OID, Critical: true, Value: append(san.Value, 0x05, 0x00)}}
		}},
		{name: "version 2", rule: "R29", template: func(t *Template) { t.Version = 1 }},
		{name: "half a request", rule: "R29", der: func(der []byte) []byte { return der[:len(der)/2] }},
		{name: "two requests", rule: "R29", pem: func(der []byte) string { return EncodeCSR(der, der) }},
		{name: "text behind the request", rule: "R29", pem: func(der []byte) string { return EncodeCSR(der) + "more\n" }},
		{name: "certificate instead of a request", rule: "R29", pem: func(der []byte) string {
			return strings.ReplaceAll(EncodeCSR(der), "CERTIFICATE REQUEST", "CERTIFICATE")
		}},
		{name: "DER instead of PEM", rule: "R29", pem: func(der []byte) string { return fmt.Sprintf("%x", der) }},
		{name: "nothing", rule: "R29", pem: func([]byte) string { return "" }},
	}
}
