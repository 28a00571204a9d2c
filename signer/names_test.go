package signer

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Names that Go's parser passes over, as GeneralNames in DER.
const (
	// otherName (tag 0) of type 1.3.6.1.4.1.311.20.2.3, a Windows logon name: UTF8String "x".
	otherName = "\xa0\x11\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x14\x02\x03\xa0\x03\x0c\x01x"
	// directoryName (tag 4) CN=x.
	directoryName = "\xa4\x0e\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x03\x0c\x01x"
)

// sequence wraps elements of less than 128 bytes each, and less than 256 together, in a SEQUENCE.
func sequence(elements ...string) string {
	content := ""
	for _, e := range elements {
		content += e
	}
	if len(content) < 128 {
		return "\x30" + string([]byte{byte(len(content))}) + content
	}
	return "\x30\x81" + string([]byte{byte(len(content))}) + content
}

func uriName(text string) string { return encodeName(tagURI, []byte(text)) }
func dnsName(text string) string { return encodeName(tagDNS, []byte(text)) }

func TestParseNames(t *testing.T) {
	a, b := uriName("spiffe://td/a"), uriName("spiffe://td/b")
	for _, row := range []struct {
		name, value string
		want        string // as text, "" is refused
	}{
		{"one URI", sequence(a), `[URI:"spiffe://td/a"]`},
		{"sorted", sequence(b, a, dnsName("d")), `[DNS:"d" URI:"spiffe://td/a" URI:"spiffe://td/b"]`},
		{"each as often as it occurs", sequence(a, b, a), `[URI:"spiffe://td/a" URI:"spiffe://td/a" URI:"spiffe://td/b"]`},
		{"otherName", sequence(a, otherName), `[URI:"spiffe://td/a" [0]]`},
		{"directoryName", sequence(directoryName, a), `[URI:"spiffe://td/a" [4]]`},
		{"constructed URI", sequence("\xa6\x01x"), `[[6]]`},
		{"universal tag", sequence("\x0c\x01x"), `[[12]]`},
		{"empty URI", sequence("\x86\x00"), `[URI:""]`},
		{"none", "\x30\x00", `[]`},
		{"nothing", "", ""},
		{"no sequence", a, ""},
		{"set", "\x31" + sequence(a)[1:], ""},
		{"cut short", sequence(a)[:10], ""},
		{"name cut short", sequence("\x86\x05abc"), ""},
		{"data behind", sequence(a) + "\x00", ""},
		{"second sequence", sequence(a) + sequence(b), ""},
		{"length in long form", "\x30\x81\x03\x86\x01x", ""},
		{"length with a zero in front", "\x30\x82\x00\x03\x86\x01x", ""},
		{"name with length in long form", sequence("\x86\x81\x01x"), ""},
		{"indefinite length", "\x30\x80\x86\x01x\x00\x00", ""},
		{"tag of several bytes", sequence("\x9f\x86\x01\x01x"), ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			names, err := ParseNames([]byte(row.value))
			if row.want == "" {
				require.Error(t, err)
				assert.True(t, names.Empty())
				return
			}
			require.NoError(t, err)
			assert.Equal(t, row.want, names.String())
		})
	}
}

func TestNamesEqual(t *testing.T) {
	id := IdentityNames(alice)
	parse := func(elements ...string) Names {
		names, err := ParseNames([]byte(sequence(elements...)))
		require.NoError(t, err)
		return names
	}
	uri := uriName(alice.String())
	assert.True(t, id.Equal(parse(uri)))
	assert.True(t, Names{}.Equal(parse()))
	server := ServerNames([]string{"b", "a"}, [][]byte{{192, 0, 2, 1}})
	assert.True(t, server.Equal(parse("\x87\x04\xc0\x00\x02\x01", dnsName("a"), dnsName("b"))), "order has no meaning")
	for name, other := range map[string]Names{
		"none":                  {},
		"the URI twice":         parse(uri, uri),
		"with a hidden name":    parse(uri, otherName),
		"with a directory name": parse(directoryName, uri),
		"as a DNS name":         parse(dnsName(alice.String())),
		"longer":                parse(uriName(alice.String() + "\x00")),
	} {
		assert.False(t, id.Equal(other), name)
		assert.False(t, other.Equal(id), name)
	}
}

func TestNamesExtension(t *testing.T) {
	e, err := IdentityNames(alice).Extension(true)
	require.NoError(t, err)
	assert.Equal(t, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: []byte(sequence(uriName(alice.String())))}, e)
	again, err := NamesIn([]pkix.Extension{e})
	require.NoError(t, err)
	assert.True(t, again.Equal(IdentityNames(alice)))
}

func TestNamesIn(t *testing.T) {
	san, err := IdentityNames(alice).Extension(false)
	require.NoError(t, err)
	other := extension(asn1.ObjectIdentifier{2, 5, 29, 18}, false, "issuerAltName") // not looked at
	names, err := NamesIn([]pkix.Extension{other, san})
	require.NoError(t, err)
	assert.True(t, names.Equal(IdentityNames(alice)))

	names, err = NamesIn([]pkix.Extension{other})
	require.NoError(t, err)
	assert.True(t, names.Empty())

	_, err = NamesIn([]pkix.Extension{san, other, san})
	assert.EqualError(t, err, "subjectAltName occurs twice")
	_, err = NamesIn([]pkix.Extension{{Id: oidSAN, Value: nil}})
	assert.EqualError(t, err, "subjectAltName is not one DER sequence")
}

// FuzzParseNames: names that were read are written as they were, but for their order.
func FuzzParseNames(f *testing.F) {
	for _, seed := range []string{"", "\x30\x00", sequence(uriName("spiffe://td/a")), sequence(otherName, uriName("u")), sequence("\x86\x81\x01x"), "\x30\x80\x00\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		names, err := ParseNames(value)
		if err != nil {
			return
		}
		_ = names.String()
		der, err := names.der()
		require.NoError(t, err)
		require.Len(t, der, len(value))
		again, err := ParseNames(der)
		require.NoError(t, err)
		require.True(t, names.Equal(again))
	})
}
