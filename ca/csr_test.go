package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/signer"
)

var (
	alice = spiffeid.RequireFromString("spiffe://cluster.local/ns/foo/sa/alice")
	bob   = spiffeid.RequireFromString("spiffe://cluster.local/ns/foo/sa/bob")

	defaultPolicy = csrPolicy{keys: Config{}.keys(), usages: signer.LeafUsages()}
)

// rsaKey makes one key of each size; they cost too much to make one for each test.
var rsaKey = func() func(t testing.TB, bits int) *rsa.PrivateKey {
	var mu sync.Mutex
	made := make(map[int]*rsa.PrivateKey)
	return func(t testing.TB, bits int) *rsa.PrivateKey {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if made[bits] == nil {
			key, err := rsa.GenerateKey(rand.Reader, bits)
			require.NoError(t, err)
			made[bits] = key
		}
		return made[bits]
	}
}()

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	require.NoError(t, err)
	return key
}

// Names as GeneralNames in DER that Go's parser passes over, and a URI.
const (
	otherName     = "\xa0\x11\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x14\x02\x03\xa0\x03\x0c\x01x" // UPN x
	directoryName = "\xa4\x0e\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x03\x0c\x01x"             // CN=x
)

func uriName(id string) string { return "\x86" + string([]byte{byte(len(id))}) + id }

// sequence wraps less than 256 bytes in a SEQUENCE.
func sequence(elements ...string) string {
	content := strings.Join(elements, "")
	if len(content) < 128 {
		return "\x30" + string([]byte{byte(len(content))}) + content
	}
	return "\x30\x81" + string([]byte{byte(len(content))}) + content
}

func san(critical bool, elements ...string) pkix.Extension {
	return pkix.Extension{Id: oidSubjectAltName, Critical: critical, Value: []byte(sequence(elements...))}
}

var (
	goodKeyUsage    = pkix.Extension{Id: oidKeyUsage, Critical: true, Value: []byte("\x03\x02\x05\xa0")}
	goodExtKeyUsage = pkix.Extension{Id: oidExtKeyUsage, Value: []byte("\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01")}
	emptyO          = pkix.Name{Organization: []string{""}}
)

// draft is a CSR in the making, good for alice until changed.
type draft struct {
	t          testing.TB
	key        crypto.Signer
	template   x509.CertificateRequest
	tamper     func(der []byte) []byte // after it was signed
	attributes []asn1.RawValue         // where not nil, in place of those of the template, signed again
	publicKey  []byte                  // where not nil, with attributes: in place of the key's own
}

func newDraft(t testing.TB) *draft {
	t.Helper()
	return &draft{t: t, key: ecKey(t, elliptic.P256()), template: x509.CertificateRequest{
		ExtraExtensions: []pkix.Extension{san(true, uriName(alice.String()))},
	}}
}

func (d *draft) der() []byte {
	d.t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &d.template, d.key)
	require.NoError(d.t, err)
	if d.attributes != nil {
		der = resign(d.t, der, d.key.(*ecdsa.PrivateKey), func(info *certificationRequestInfo) {
			info.Attributes = d.attributes
			if d.publicKey != nil {
				info.PublicKey = asn1.RawValue{FullBytes: d.publicKey}
			}
		})
	}
	if d.tamper != nil {
		der = d.tamper(der)
	}
	return der
}

func (d *draft) csr() *x509.CertificateRequest {
	d.t.Helper()
	csr, err := x509.ParseCertificateRequest(d.der())
	require.NoError(d.t, err)
	return csr
}

func csrPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// RFC 2986 §4, to make requests that the standard library doesn't.
type certificationRequest struct {
	Info      asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

type certificationRequestInfo struct {
	Version    int
	Subject    asn1.RawValue
	PublicKey  asn1.RawValue
	Attributes []asn1.RawValue `asn1:"tag:0,set"`
}

// resign changes the signed part of a request and signs it anew.
func resign(t testing.TB, der []byte, key *ecdsa.PrivateKey, change func(*certificationRequestInfo)) []byte {
	t.Helper()
	var request certificationRequest
	_, err := asn1.Unmarshal(der, &request)
	require.NoError(t, err)
	var info certificationRequestInfo
	_, err = asn1.Unmarshal(request.Info.FullBytes, &info)
	require.NoError(t, err)
	change(&info)
	infoDER, err := asn1.Marshal(info)
	require.NoError(t, err)
	hash := crypto.SHA256.New()
	hash.Write(infoDER)
	signature, err := ecdsa.SignASN1(rand.Reader, key, hash.Sum(nil))
	require.NoError(t, err)
	request.Info = asn1.RawValue{FullBytes: infoDER}
	request.Signature = asn1.BitString{Bytes: signature, BitLength: len(signature) * 8}
	der, err = asn1.Marshal(request)
	require.NoError(t, err)
	return der
}

// attribute is one attribute of a request, with values in DER.
func attribute(t testing.TB, oid asn1.ObjectIdentifier, values ...string) asn1.RawValue {
	t.Helper()
	id, err := asn1.Marshal(oid)
	require.NoError(t, err)
	content := strings.Join(values, "")
	require.Less(t, len(content), 128)
	set := "\x31" + string([]byte{byte(len(content))}) + content
	return asn1.RawValue{FullBytes: []byte(sequence(string(id), set))}
}

func extensionsDER(t testing.TB, extensions ...pkix.Extension) string {
	t.Helper()
	der, err := asn1.Marshal(extensions)
	require.NoError(t, err)
	return string(der)
}

func TestR29_R30_GoodCSRs(t *testing.T) {
	for name, change := range map[string]func(d *draft){
		"P-256, as ztunnel sends it": func(d *draft) {},
		"P-384":                      func(d *draft) { d.key = ecKey(d.t, elliptic.P384()) },
		"RSA-2048 and one empty O, as pilot-agent sends it": func(d *draft) {
			d.key, d.template.Subject = rsaKey(d.t, 2048), emptyO
		},
		"RSA-4096":             func(d *draft) { d.key = rsaKey(d.t, 4096) },
		"RSA-PSS":              func(d *draft) { d.key, d.template.SignatureAlgorithm = rsaKey(d.t, 2048), x509.SHA256WithRSAPSS },
		"SHA-512":              func(d *draft) { d.template.SignatureAlgorithm = x509.ECDSAWithSHA512 },
		"P-256 and an empty O": func(d *draft) { d.template.Subject = emptyO },
		"empty O as a UTF8String": func(d *draft) {
			d.template.RawSubject = []byte("\x30\x0b\x31\x09\x30\x07\x06\x03\x55\x04\x0a\x0c\x00")
		},
		"SAN not critical, as ztunnel 1.23 sent it": func(d *draft) { d.template.ExtraExtensions[0].Critical = false },
		"exact KU and EKU, in front": func(d *draft) {
			d.template.ExtraExtensions = []pkix.Extension{goodKeyUsage, goodExtKeyUsage, d.template.ExtraExtensions[0]}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDraft(t)
			change(d)
			csr, err := parseCSR(csrPEM(d.der()))
			require.NoError(t, err)
			assert.NoError(t, defaultPolicy.check(csr, alice))
			assert.True(t, otherIdentity(csr, alice).IsZero())
		})
	}
}

func TestR31_BadCSRs(t *testing.T) {
	good := uriName(alice.String())
	names := func(elements ...string) func(d *draft) {
		return func(d *draft) { d.template.ExtraExtensions = []pkix.Extension{san(true, elements...)} }
	}
	also := func(e pkix.Extension) func(d *draft) {
		return func(d *draft) { d.template.ExtraExtensions = append(d.template.ExtraExtensions, e) }
	}
	subject := func(name pkix.Name) func(d *draft) { return func(d *draft) { d.template.Subject = name } }
	uri := func(text string) *url.URL {
		u, err := url.Parse(text)
		require.NoError(t, err)
		return u
	}
	for _, row := range []struct {
		name   string
		change func(d *draft)
		want   kind
	}{
		// key usages, of which cert-manager compares both once either is present (R31)
		{"KU without EKU", also(goodKeyUsage), kindCSRExtensions},
		{"EKU without KU", also(goodExtKeyUsage), kindCSRExtensions},
		// keys (R29)
		{"RSA-1024", func(d *draft) { d.key = weakRSA(d.t) }, kindCSRKey},
		{"P-224", func(d *draft) { d.key = ecKey(d.t, elliptic.P224()) }, kindCSRKey},
		{"P-521", func(d *draft) { d.key = ecKey(d.t, elliptic.P521()) }, kindCSRKey},
		{"Ed25519", func(d *draft) { _, d.key, _ = ed25519.GenerateKey(rand.Reader) }, kindCSRKey},
		// subjects
		{"CN", subject(pkix.Name{CommonName: "admin"}), kindCSRSubject},
		{"O with a value", subject(pkix.Name{Organization: []string{"system:masters"}}), kindCSRSubject},
		{"two empty O", subject(pkix.Name{Organization: []string{"", ""}}), kindCSRSubject},
		{"empty O and CN", subject(pkix.Name{Organization: []string{""}, CommonName: "x"}), kindCSRSubject},
		{"empty OU", subject(pkix.Name{OrganizationalUnit: []string{""}}), kindCSRSubject},
		{"empty RDN", func(d *draft) { d.template.RawSubject = []byte("\x30\x02\x31\x00") }, kindCSRSubject},
		{"O that is no string", func(d *draft) {
			d.template.RawSubject = []byte("\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x0a\x02\x01\x00")
		}, kindCSRSubject},
		// names
		{"another's name", names(uriName(bob.String())), kindCSRNames},
		{"no name", func(d *draft) { d.template.ExtraExtensions = nil }, kindCSRNames},
		{"empty SAN", names(), kindCSRNames},
		{"two URIs", names(good, uriName(bob.String())), kindCSRNames},
		{"the URI twice", names(good, good), kindCSRNames},
		{"DNS name", names(good, "\x82\x01x"), kindCSRNames},
		{"DNS name alone", func(d *draft) {
			d.template.ExtraExtensions, d.template.DNSNames = nil, []string{"istiod.istio-system.svc"}
		}, kindCSRNames},
		{"URI and DNS name made by Go", func(d *draft) {
			d.template.ExtraExtensions, d.template.URIs, d.template.DNSNames = nil, []*url.URL{uri(alice.String())}, []string{"x"}
		}, kindCSRNames},
		{"IP address", func(d *draft) {
			d.template.ExtraExtensions, d.template.URIs, d.template.IPAddresses = nil, []*url.URL{uri(alice.String())}, []net.IP{{192, 0, 2, 1}}
		}, kindCSRNames},
		{"e-mail address", names(good, "\x81\x03a@b"), kindCSRNames},
		{"otherName hidden behind", names(good, otherName), kindCSRNames},
		{"otherName hidden in front", names(otherName, good), kindCSRNames},
		{"directoryName hidden", names(good, directoryName), kindCSRNames},
		{"registeredID hidden", names(good, "\x88\x03\x2a\x03\x04"), kindCSRNames},
		{"identity below", names(uriName(alice.String() + "/x")), kindCSRNames},
		{"slash at the end", names(uriName(alice.String() + "/")), kindCSRNames},
		{"percent-encoded", names(uriName("spiffe://cluster.local/ns/foo/sa/%61lice")), kindCSRNames},
		{"upper-case trust domain", names(uriName("spiffe://CLUSTER.local/ns/foo/sa/alice")), kindCSRNames},
		{"query", names(uriName(alice.String() + "?x")), kindCSRNames},
		{"data behind the SAN", func(d *draft) {
			d.template.ExtraExtensions[0].Value = append(d.template.ExtraExtensions[0].Value, 0)
		}, kindCSRNames},
		{"SAN with a length in long form", func(d *draft) {
			value := d.template.ExtraExtensions[0].Value
			d.template.ExtraExtensions[0].Value = append([]byte{0x30, 0x81}, value[1:]...)
		}, kindCSRMalformed},
		// extensions
		{"basicConstraints of a CA", also(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte("\x30\x03\x01\x01\xff")}), kindCSRExtensions},
		{"basicConstraints of no CA", also(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte("\x30\x00")}), kindCSRExtensions},
		{"unknown extension", also(pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte("\x05\x00")}), kindCSRExtensions},
		{"issuerAltName", also(pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 18}, Value: []byte(sequence(good))}), kindCSRExtensions},
		{"KU that signs certificates", also(pkix.Extension{Id: oidKeyUsage, Value: []byte("\x03\x02\x02\xa4")}), kindCSRExtensions},
		{"KU short", also(pkix.Extension{Id: oidKeyUsage, Value: []byte("\x03\x02\x07\x80")}), kindCSRExtensions},
		{"KU empty", also(pkix.Extension{Id: oidKeyUsage}), kindCSRExtensions},
		{"EKU in another order", also(pkix.Extension{Id: oidExtKeyUsage, Value: []byte("\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02")}), kindCSRExtensions},
		{"EKU short", also(pkix.Extension{Id: oidExtKeyUsage, Value: []byte("\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02")}), kindCSRExtensions},
		{"EKU any", also(pkix.Extension{Id: oidExtKeyUsage, Value: []byte("\x30\x06\x06\x04\x55\x1d\x25\x00")}), kindCSRExtensions},
		// attributes
		{"second attribute with extensions hidden", func(d *draft) {
			d.attributes = []asn1.RawValue{
				attribute(d.t, oidExtensionRequest, extensionsDER(d.t, san(true, good))),
				attribute(d.t, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14}, extensionsDER(d.t, san(true, uriName("spiffe://td/bob")))),
			}
		}, kindCSRExtensions},
		{"challenge password", func(d *draft) {
			d.attributes = []asn1.RawValue{
				attribute(d.t, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, "\x0c\x01x"),
				attribute(d.t, oidExtensionRequest, extensionsDER(d.t, san(true, good))),
			}
		}, kindCSRExtensions},
		{"second list of extensions", func(d *draft) {
			d.attributes = []asn1.RawValue{attribute(d.t, oidExtensionRequest,
				extensionsDER(d.t, san(true, good)), extensionsDER(d.t, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte("\x30\x03\x01\x01\xff")}))}
		}, kindCSRExtensions},
		{"extensions asked for twice", func(d *draft) {
			one := attribute(d.t, oidExtensionRequest, extensionsDER(d.t, san(true, good)))
			d.attributes = []asn1.RawValue{one, one}
		}, kindCSRMalformed},
		{"SAN twice", func(d *draft) {
			d.template.ExtraExtensions = append(d.template.ExtraExtensions, d.template.ExtraExtensions[0])
		}, kindCSRMalformed},
		{"no attributes", func(d *draft) { d.attributes = []asn1.RawValue{} }, kindCSRNames},
		// signatures
		{"signature of something else", func(d *draft) {
			d.tamper = func(der []byte) []byte {
				return bytes.Replace(der, []byte("sa/alice"), []byte("sa/alicf"), 1)
			}
		}, kindCSRNames},
		{"signature changed", func(d *draft) {
			d.tamper = func(der []byte) []byte { der[len(der)-1] ^= 1; return der }
		}, kindCSRSignature},
		{"signed by another key", func(d *draft) {
			d.tamper = func(der []byte) []byte {
				return resign(d.t, der, ecKey(d.t, elliptic.P256()), func(*certificationRequestInfo) {})
			}
		}, kindCSRSignature},
		{"another's public key", func(d *draft) {
			d.tamper = func(der []byte) []byte {
				other, err := x509.MarshalPKIXPublicKey(&ecKey(d.t, elliptic.P256()).PublicKey)
				require.NoError(d.t, err)
				return resign(d.t, der, d.key.(*ecdsa.PrivateKey), func(info *certificationRequestInfo) { info.PublicKey.FullBytes = other })
			}
		}, kindCSRSignature},
		{"SHA-1", func(d *draft) {
			// ecdsa-with-SHA256 becomes ecdsa-with-SHA1, whose OID is a byte shorter, by being written anew.
			d.tamper = func(der []byte) []byte {
				var request certificationRequest
				_, err := asn1.Unmarshal(der, &request)
				require.NoError(d.t, err)
				request.Algorithm.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}
				der, err = asn1.Marshal(request)
				require.NoError(d.t, err)
				return der
			}
		}, kindCSRSignature},
		{"version 1", func(d *draft) {
			d.tamper = func(der []byte) []byte {
				return resign(d.t, der, d.key.(*ecdsa.PrivateKey), func(info *certificationRequestInfo) { info.Version = 1 })
			}
		}, kindCSRMalformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := newDraft(t)
			row.change(d)
			csr, err := parseCSR(csrPEM(d.der()))
			if err == nil {
				err = defaultPolicy.check(csr, alice)
			}
			requireKind(t, row.want, err)
		})
	}
}

// weakRSA is a key that the standard library wouldn't make, but reads: of a weakness that only a size
// check finds.
func weakRSA(t testing.TB) crypto.Signer {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	return rsaKey(t, 1024)
}

func requireKind(t testing.TB, want kind, err error) {
	t.Helper()
	require.Error(t, err)
	r := new(refusal)
	require.ErrorAs(t, err, &r)
	require.Equal(t, want.reason, r.reason, "%v", err)
	require.Equal(t, want, r.kind)
}

func TestParseCSR(t *testing.T) {
	der := newDraft(t).der()
	good := csrPEM(der)
	for name, text := range map[string]string{
		"as it is":     good,
		"old type":     string(pem.EncodeToMemory(&pem.Block{Type: "NEW CERTIFICATE REQUEST", Bytes: der})),
		"space around": "\n " + good + " \r\n",
		"CRLF":         strings.ReplaceAll(good, "\n", "\r\n"),
	} {
		csr, err := parseCSR(text)
		require.NoError(t, err, name)
		assert.Equal(t, der, csr.Raw, name)
	}
	key, err := x509.MarshalPKCS8PrivateKey(ecKey(t, elliptic.P256()))
	require.NoError(t, err)
	for _, row := range []struct {
		name, text string
		want       kind
	}{
		{"empty", "", kindCSRMalformed},
		{"no PEM", "hello", kindCSRMalformed},
		{"DER", string(der), kindCSRMalformed},
		{"text in front", "CSR:\n" + good, kindCSRMalformed},
		{"text behind", good + "x", kindCSRMalformed},
		{"two", good + good, kindCSRMalformed},
		{"broken block in front", "-----BEGIN CERTIFICATE REQUEST-----\n!\n" + good, kindCSRMalformed},
		{"cut short", good[:len(good)/2], kindCSRMalformed},
		{"no base64", "-----BEGIN CERTIFICATE REQUEST-----\n!\n-----END CERTIFICATE REQUEST-----\n", kindCSRMalformed},
		{"headers", strings.Replace(good, "-----\n", "-----\nA: b\n\n", 1), kindCSRMalformed},
		{"certificate", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), kindCSRMalformed},
		{"key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})), kindCSRMalformed},
		{"not DER", csrPEM([]byte("no DER")), kindCSRMalformed},
		{"DER cut short", csrPEM(der[:len(der)-1]), kindCSRMalformed},
		{"data behind the DER", csrPEM(append(slices.Clone(der), 0)), kindCSRMalformed},
		{"large", good + strings.Repeat("\n", maxCSRBytes), kindTooLarge},
	} {
		t.Run(row.name, func(t *testing.T) {
			csr, err := parseCSR(row.text)
			requireKind(t, row.want, err)
			assert.Nil(t, csr)
		})
	}
}

func TestPolicyFollowsTheConfiguration(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	d := newDraft(t)
	d.key = ed
	onlyEd := csrPolicy{keys: Config{Keys: []string{keyEd25519}}.keys(), usages: signer.LeafUsages()}
	assert.NoError(t, onlyEd.check(d.csr(), alice))
	requireKind(t, kindCSRKey, onlyEd.check(newDraft(t).csr(), alice))

	// With two usages, as policies for istio-csr allow, the exact KU is an empty one.
	two := csrPolicy{keys: Config{}.keys(), usages: signer.Usages{cmapi.UsageClientAuth, cmapi.UsageServerAuth}}
	d = newDraft(t)
	assert.NoError(t, two.check(d.csr(), alice))
	d.template.ExtraExtensions = append(d.template.ExtraExtensions, goodExtKeyUsage)
	assert.NoError(t, two.check(d.csr(), alice))
	d.template.ExtraExtensions = append(d.template.ExtraExtensions, goodKeyUsage)
	requireKind(t, kindCSRExtensions, two.check(d.csr(), alice))
}

// R26: somebody else's identity in proper form is PermissionDenied; anything odd is for check to name.
func TestR26_OtherIdentity(t *testing.T) {
	for _, row := range []struct {
		name  string
		names []string
		want  spiffeid.ID
	}{
		{"own", []string{uriName(alice.String())}, spiffeid.ID{}},
		{"another's", []string{uriName(bob.String())}, bob},
		{"of another trust domain", []string{uriName("spiffe://other/ns/foo/sa/alice")}, spiffeid.RequireFromString("spiffe://other/ns/foo/sa/alice")},
		{"none", nil, spiffeid.ID{}},
		{"two", []string{uriName(bob.String()), uriName(alice.String())}, spiffeid.ID{}},
		{"another's with something hidden", []string{uriName(bob.String()), otherName}, spiffeid.ID{}},
		{"another's as no workload is named", []string{uriName("https://example.org/")}, spiffeid.ID{}},
		{"another's with a slash at the end", []string{uriName(bob.String() + "/")}, spiffeid.ID{}},
		{"percent-encoded", []string{uriName("spiffe://cluster.local/ns/foo/sa/%62ob")}, spiffeid.ID{}},
		{"upper-case scheme", []string{uriName("SPIFFE://cluster.local/ns/foo/sa/bob")}, spiffeid.ID{}},
	} {
		d := newDraft(t)
		d.template.ExtraExtensions = []pkix.Extension{san(true, row.names...)}
		assert.Equal(t, row.want, otherIdentity(d.csr(), alice), row.name)
	}
}

// FuzzCheckCSR: nothing panics, and whatever is accepted asks, read by other means, for exactly one
// name, and is signed by the key it carries.
func FuzzCheckCSR(f *testing.F) {
	for _, change := range []func(d *draft){
		func(*draft) {},
		func(d *draft) { d.template.Subject = emptyO },
		func(d *draft) { d.key = rsaKey(f, 2048) },
		func(d *draft) { d.key = ecKey(f, elliptic.P384()) },
		func(d *draft) {
			d.template.ExtraExtensions = append(d.template.ExtraExtensions, goodKeyUsage, goodExtKeyUsage)
		},
		func(d *draft) {
			d.template.ExtraExtensions = []pkix.Extension{san(false, uriName(alice.String()), otherName)}
		},
		func(d *draft) { d.template.ExtraExtensions = []pkix.Extension{san(true, uriName(bob.String()))} },
		func(d *draft) { d.template.ExtraExtensions = nil },
		func(d *draft) { d.template.Subject = pkix.Name{CommonName: "x"} },
	} {
		d := newDraft(f)
		change(d)
		f.Add(csrPEM(d.der()))
	}
	f.Add("")
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n")
	want := []byte(sequence(uriName(alice.String())))
	f.Fuzz(func(t *testing.T, text string) {
		csr, err := parseCSR(text)
		if err != nil {
			requireOneOf(t, err, kindTooLarge, kindCSRMalformed)
			return
		}
		other := otherIdentity(csr, alice)
		if err := defaultPolicy.check(csr, alice); err != nil {
			requireOneOf(t, err, kindCSRMalformed, kindCSRKey, kindCSRSubject, kindCSRExtensions, kindCSRNames, kindCSRSignature)
			return
		}
		require.True(t, other.IsZero())
		require.NoError(t, csr.CheckSignature())
		seen := 0
		for _, e := range csr.Extensions {
			if e.Id.Equal(oidSubjectAltName) {
				seen++
				require.Equal(t, want, e.Value)
			}
		}
		require.Equal(t, 1, seen)
		require.Equal(t, 1, bytes.Count(csr.Raw, want), "the name is in the bytes that go to the issuer, once")
		require.Empty(t, csr.DNSNames)
		require.Empty(t, csr.IPAddresses)
		require.Empty(t, csr.EmailAddresses)
		require.Empty(t, csr.Subject.CommonName)
	})
}

func requireOneOf(t testing.TB, err error, kinds ...kind) {
	t.Helper()
	r := new(refusal)
	require.ErrorAs(t, err, &r)
	require.Contains(t, kinds, r.kind)
}

func BenchmarkCheckCSR(b *testing.B) {
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(b, elliptic.P256()), "RSA-2048": rsaKey(b, 2048)} {
		b.Run(name, func(b *testing.B) {
			d := newDraft(b)
			d.key = key
			text := csrPEM(d.der())
			b.ReportAllocs()
			for b.Loop() {
				csr, err := parseCSR(text)
				if err != nil {
					b.Fatal(err)
				}
				if err := defaultPolicy.check(csr, alice); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
