package signer

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Tags of GeneralName (RFC 5280 §4.2.1.6) that Signet itself asks for.
const (
	tagDNS = cbasn1.Tag(2) | cbasn1.Tag(0x80)
	tagURI = cbasn1.Tag(6) | cbasn1.Tag(0x80)
	tagIP  = cbasn1.Tag(7) | cbasn1.Tag(0x80)
)

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// Names is what a certificate says its holder is: all GeneralNames of its subjectAltName, compared
// as bytes. Go's parsed fields leave out otherName, directoryName and others, and CA issuers copy
// the extension as it stands, so that only the bytes tell what a certificate names. The order of
// names has no meaning. Immutable; the zero value holds none.
type Names struct {
	names []string // tag and content of each GeneralName, sorted
}

// IdentityNames is the one URI of a workload's certificate (X509-SVID §2).
func IdentityNames(id spiffeid.ID) Names {
	return newNames([]string{encodeName(tagURI, []byte(id.String()))})
}

// ServerNames are the DNS names and IP addresses of a serving certificate.
func ServerNames(dnsNames []string, addresses [][]byte) Names {
	var names []string
	for _, name := range dnsNames {
		names = append(names, encodeName(tagDNS, []byte(name)))
	}
	for _, address := range addresses {
		names = append(names, encodeName(tagIP, address))
	}
	return newNames(names)
}

// ParseNames reads the value of a subjectAltName extension: DER, strictly.
func ParseNames(value []byte) (Names, error) {
	input := cryptobyte.String(value)
	var sequence cryptobyte.String
	if !input.ReadASN1(&sequence, cbasn1.SEQUENCE) || !input.Empty() {
		return Names{}, errors.New("subjectAltName is not one DER sequence")
	}
	var names []string
	for !sequence.Empty() {
		var element cryptobyte.String
		var tag cbasn1.Tag
		if !sequence.ReadAnyASN1Element(&element, &tag) {
			return Names{}, errors.New("subjectAltName holds a name that is not DER")
		}
		names = append(names, string(element))
	}
	return newNames(names), nil
}

// NamesIn reads the subjectAltName among extensions. One that occurs twice is an error, because
// readers differ in which they believe.
func NamesIn(extensions []pkix.Extension) (Names, error) {
	var found Names
	seen := false
	for _, extension := range extensions {
		if !extension.Id.Equal(oidSAN) {
			continue
		}
		if seen {
			return Names{}, errors.New("subjectAltName occurs twice")
		}
		seen = true
		names, err := ParseNames(extension.Value)
		if err != nil {
			return Names{}, err
		}
		found = names
	}
	return found, nil
}

// Equal says whether both hold the same names, each as often.
func (n Names) Equal(other Names) bool { return slices.Equal(n.names, other.names) }

// Empty says that there are no names.
func (n Names) Empty() bool { return len(n.names) == 0 }

// Extension is the subjectAltName extension that holds these names, as a CSR asks for them.
func (n Names) Extension(critical bool) (pkix.Extension, error) {
	value, err := n.der()
	return pkix.Extension{Id: oidSAN, Critical: critical, Value: value}, err
}

func (n Names) der() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, name := range n.names {
			b.AddBytes([]byte(name))
		}
	})
	return b.Bytes()
}

// String shows the names for logs: kinds Signet knows as text, others by their tag.
func (n Names) String() string {
	var texts []string
	for _, name := range n.names {
		element := cryptobyte.String(name)
		var content cryptobyte.String
		var tag cbasn1.Tag
		if !element.ReadAnyASN1(&content, &tag) {
			continue
		}
		switch tag {
		case tagDNS:
			texts = append(texts, fmt.Sprintf("DNS:%q", content))
		case tagURI:
			texts = append(texts, fmt.Sprintf("URI:%q", content))
		default:
			texts = append(texts, fmt.Sprintf("[%d]", tag&0x1f))
		}
	}
	return "[" + strings.Join(texts, " ") + "]"
}

func newNames(names []string) Names {
	slices.Sort(names)
	return Names{names: names}
}

func encodeName(tag cbasn1.Tag, content []byte) string {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(content) })
	return string(b.BytesOrPanic())
}
