package signer

import (
	"crypto/x509"
	"encoding/asn1"
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

func TestR35_Usages(t *testing.T) {
	bits, extended := LeafUsages().bits()
	assert.Equal(t, x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment, bits)
	assert.ElementsMatch(t, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, extended)
	bits, extended = ServingUsages().bits()
	assert.Equal(t, x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment, bits)
	assert.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, extended)
}

func TestUsagesValidate(t *testing.T) {
	for _, row := range []struct {
		name   string
		usages Usages
		want   []string
	}{
		{"not set", nil, nil},
		{"all", LeafUsages(), nil},
		{"extended only", Usages{cmapi.UsageClientAuth, cmapi.UsageServerAuth}, nil},
		{"server missing", Usages{cmapi.UsageClientAuth}, []string{`usages: "server auth" is missing`}},
		{"client missing", ServingUsages(), []string{`usages: "client auth" is missing`}},
		{"signs certificates", append(LeafUsages(), cmapi.UsageCertSign), []string{`usages: "cert sign" is not a usage of a workload's certificate`}},
		{"unknown alone", Usages{"tls"}, []string{`"tls" is not a usage`, `"client auth" is missing`, `"server auth" is missing`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.usages.Validate(p.At("usages"))
			if row.want == nil {
				assert.NoError(t, p.Err())
			}
			for _, want := range row.want {
				assert.ErrorContains(t, p.Err(), want)
			}
		})
	}
}

func TestR31_MatchKeyUsage(t *testing.T) {
	leaf := LeafUsages()
	for _, row := range []struct {
		name  string
		value string
		want  bool
	}{
		{"exactly", "\x03\x02\x05\xa0", true},
		{"digitalSignature alone", "\x03\x02\x07\x80", false},
		{"keyEncipherment alone", "\x03\x02\x05\x20", false},
		{"and keyCertSign", "\x03\x02\x02\xa4", false},
		{"and decipherOnly", "\x03\x03\x07\xa0\x80", false},
		{"and a bit without meaning", "\x03\x03\x06\xa0\x40", false},
		{"none", "\x03\x01\x00", false},
		{"nothing", "", false},
		{"octets", "\x04\x02\x05\xa0", false},
		{"padding that isn't zero", "\x03\x02\x05\xa1", false},
		{"data behind", "\x03\x02\x05\xa0\x00", false},
		{"length in long form", "\x03\x81\x02\x05\xa0", false},
	} {
		assert.Equal(t, row.want, leaf.MatchKeyUsage([]byte(row.value)), row.name)
	}
	assert.True(t, Usages{cmapi.UsageClientAuth, cmapi.UsageServerAuth}.MatchKeyUsage([]byte("\x03\x01\x00")))
}

func TestR31_MatchExtKeyUsage(t *testing.T) {
	server, client := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	der := func(oids ...asn1.ObjectIdentifier) []byte {
		value, err := asn1.Marshal(oids)
		require.NoError(t, err)
		return value
	}
	leaf := LeafUsages() // client before server
	for _, row := range []struct {
		name  string
		value []byte
		want  bool
	}{
		{"exactly", der(client, server), true},
		{"other order", der(server, client), false},
		{"client alone", der(client), false},
		{"client twice", der(client, client), false},
		{"one more", der(client, server, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 3}), false},
		{"any", der(asn1.ObjectIdentifier{2, 5, 29, 37, 0}), false},
		{"none", der(), false},
		{"nothing", nil, false},
		{"data behind", append(der(client, server), 0), false},
		{"no OIDs", []byte("\x30\x03\x0c\x01x"), false},
	} {
		assert.Equal(t, row.want, leaf.MatchExtKeyUsage(row.value), row.name)
	}
	assert.True(t, ServingUsages().MatchExtKeyUsage(der(server)))
}

// FuzzMatchUsages: neither panics, and a key usage that matches is read the same by Go.
func FuzzMatchUsages(f *testing.F) {
	for _, seed := range []string{"", "\x03\x02\x05\xa0", "\x03\x03\x06\xa0\x40", "\x30\x03\x06\x01\x2a"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		LeafUsages().MatchExtKeyUsage(value)
		if LeafUsages().MatchKeyUsage(value) {
			var bits asn1.BitString
			rest, err := asn1.Unmarshal(value, &bits)
			require.NoError(t, err)
			require.Empty(t, rest)
			for i := range max(bits.BitLength, 9) {
				require.Equal(t, i == 0 || i == 2, bits.At(i) == 1)
			}
		}
	})
}
