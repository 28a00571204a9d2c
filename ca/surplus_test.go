package ca

import (
	"encoding/asn1"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// TestR31_NothingIsHiddenBehindWhatGoReads: encoding/asn1 passes over surplus elements at the end of a
// SEQUENCE, so that bytes which nobody checked would reach the issuer.
func TestR31_NothingIsHiddenBehindWhatGoReads(t *testing.T) {
	hidden := "\x0c\x06hidden" // UTF8String
	good := sequence("\x06\x03\x55\x1d\x11", "\x01\x01\xff", "\x04"+string([]byte{byte(len(san(true, uriName(alice.String())).Value))})+string(san(true, uriName(alice.String())).Value))
	oid, err := asn1.Marshal(asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1})
	require.NoError(t, err)

	for name, change := range map[string]func(d *draft){
		"behind the signature": func(d *draft) {
			d.tamper = func(der []byte) []byte {
				var request asn1.RawValue
				_, err := asn1.Unmarshal(der, &request)
				require.NoError(t, err)
				return []byte(longSequence(t, string(request.Bytes)+hidden))
			}
		},
		"in the signature's algorithm": func(d *draft) {
			d.tamper = func(der []byte) []byte {
				var request certificationRequest
				_, err := asn1.Unmarshal(der, &request)
				require.NoError(t, err)
				signature, err := asn1.Marshal(request.Signature)
				require.NoError(t, err)
				algorithm, err := asn1.Marshal(request.Algorithm.Algorithm)
				require.NoError(t, err)
				return []byte(longSequence(t, string(request.Info.FullBytes)+sequence(string(algorithm), "\x05\x00", hidden)+string(signature)))
			}
		},
		"in an extension": func(d *draft) {
			extension := sequence("\x06\x03\x55\x1d\x11", "\x01\x01\xff", good[len(good)-len(san(true, uriName(alice.String())).Value)-2:], hidden)
			d.attributes = []asn1.RawValue{attribute(t, oidExtensionRequest, sequence(extension))}
		},
		"in the key": func(d *draft) {
			csr := d.csr()
			var key struct {
				Algorithm asn1.RawValue
				Bits      asn1.BitString
			}
			_, err := asn1.Unmarshal(csr.RawSubjectPublicKeyInfo, &key)
			require.NoError(t, err)
			bits, err := asn1.Marshal(key.Bits)
			require.NoError(t, err)
			require.Contains(t, string(key.Algorithm.FullBytes), string(oid))
			d.attributes = []asn1.RawValue{attribute(t, oidExtensionRequest, sequence(good))}
			d.publicKey = []byte(sequence(string(key.Algorithm.FullBytes), string(bits), hidden))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDraft(t)
			change(d)
			csr, err := parseCSR(csrPEM(d.der()))
			if err == nil {
				err = defaultPolicy.check(csr, alice)
			}
			require.Error(t, err)
			assert.Equal(t, codes.InvalidArgument, refuse(err).code)
			assert.Equal(t, kindCSRMalformed, refuse(err).kind, "%v", err)
		})
	}
}

// longSequence wraps less than 64 KiB in a SEQUENCE.
func longSequence(t *testing.T, content string) string {
	t.Helper()
	require.Greater(t, len(content), 255)
	return "\x30\x82" + string([]byte{byte(len(content) >> 8), byte(len(content))}) + content
}
