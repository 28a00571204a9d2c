package e2e

import (
	"context"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

func TestR29_KeysThatAreCertified(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	for _, kind := range []meshclient.KeyType{meshclient.RSA2048, meshclient.RSA3072, meshclient.P256, meshclient.P384} {
		t.Run(string(kind), func(t *testing.T) {
			key, csr := asKind(t, caller.id, kind)
			ask := caller.ask(t)
			ask.CSR = csr
			chain, err := create(t, c, ask)
			require.NoError(t, err)
			assert.NoError(t, meshclient.JudgeSidecar(chain, key.Public(), caller.id, time.Now()))
		})
	}
}

func TestR29_KeysThatAreNot(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	for _, kind := range []meshclient.KeyType{meshclient.RSA512, meshclient.RSA1024, meshclient.P224, meshclient.P521, meshclient.Ed25519} {
		t.Run(string(kind), func(t *testing.T) {
			ask := caller.ask(t)
			_, ask.CSR = asKind(t, caller.id, kind)
			s.makesNone(t, func() { refused(t, c, ask, codes.InvalidArgument) })
		})
	}
}

func TestR30_SubjectsAndCriticality(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	for subjectName, subject := range map[string][]byte{"empty": meshclient.EmptySubject(), "one empty O": meshclient.EmptyOrganization()} {
		for _, critical := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, critical %t", subjectName, critical), func(t *testing.T) {
				key, err := meshclient.NewKey(meshclient.P256)
				require.NoError(t, err)
				der, err := meshclient.BuildCSR(meshclient.Template{
					Key: key, Subject: subject,
					Extensions: []meshclient.Extension{meshclient.SAN(critical, meshclient.URIName(caller.id.String()))},
				})
				require.NoError(t, err)
				ask := caller.ask(t)
				ask.CSR = meshclient.EncodeCSR(der)
				chain, err := create(t, c, ask)
				require.NoError(t, err)
				assert.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), caller.id, time.Now()))
				// It reaches cert-manager as it came.
				requests := s.requestsFor(t, ask.CSR)
				require.Len(t, requests, 1)
				assert.Equal(t, der, derOf(t, string(requests[0].Spec.Request)))
				assert.False(t, requests[0].Spec.IsCA)
			})
		}
	}
}

func TestR30_PEMAsClientsWriteIt(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	for name, write := range map[string]func(csr string) string{
		"no newline at the end": strings.TrimSpace,
		"CRLF":                  func(csr string) string { return strings.ReplaceAll(csr, "\n", "\r\n") },
		"blank lines around":    func(csr string) string { return "\n\n" + csr + "\n\n" },
		"old name of the block": func(csr string) string {
			return strings.ReplaceAll(csr, " CERTIFICATE REQUEST", " NEW CERTIFICATE REQUEST")
		},
	} {
		t.Run(name, func(t *testing.T) {
			ask := caller.ask(t)
			ask.CSR = write(ask.CSR)
			issued(t, c, ask)
		})
	}
}

func TestR31_UsagesAskedForAreThoseGranted(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	san := meshclient.SAN(true, meshclient.URIName(caller.id.String()))
	keyUsage := meshclient.KeyUsage(0xa0) // digital signature, key encipherment
	clientServer := meshclient.ExtKeyUsage(meshclient.ClientAuth, meshclient.ServerAuth)
	for _, test := range []struct {
		name       string
		extensions []meshclient.Extension
		code       codes.Code
	}{
		{"both", []meshclient.Extension{keyUsage, clientServer, san}, codes.OK},
		{"both behind the name", []meshclient.Extension{san, clientServer, keyUsage}, codes.OK},
		// Where one is present, cert-manager compares both.
		{"key usage alone", []meshclient.Extension{keyUsage, san}, codes.InvalidArgument},
		{"extended key usage alone", []meshclient.Extension{san, clientServer}, codes.InvalidArgument},
		// cert-manager's webhook wants them in the order of the request's usages.
		{"extended key usage in the other order", []meshclient.Extension{san, keyUsage, meshclient.ExtKeyUsage(meshclient.ServerAuth, meshclient.ClientAuth)}, codes.InvalidArgument},
		{"only one of two", []meshclient.Extension{san, keyUsage, meshclient.ExtKeyUsage(meshclient.ServerAuth)}, codes.InvalidArgument},
		{"key usage of less", []meshclient.Extension{san, clientServer, meshclient.KeyUsage(0x80)}, codes.InvalidArgument},
		{"empty key usage", []meshclient.Extension{san, clientServer, meshclient.KeyUsage(0)}, codes.InvalidArgument},
		{"no extended key usage in the list", []meshclient.Extension{san, keyUsage, meshclient.ExtKeyUsage()}, codes.InvalidArgument},
	} {
		t.Run(test.name, func(t *testing.T) {
			key, err := meshclient.NewKey(meshclient.P256)
			require.NoError(t, err)
			der, err := meshclient.BuildCSR(meshclient.Template{Key: key, Extensions: test.extensions})
			require.NoError(t, err)
			ask := caller.ask(t)
			ask.CSR = meshclient.EncodeCSR(der)
			if test.code != codes.OK {
				s.makesNone(t, func() { refused(t, c, ask, test.code) })
				return
			}
			chain, err := create(t, c, ask)
			require.NoError(t, err)
			assert.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), caller.id, time.Now()))
		})
	}
}

// TestR31_R32_HostileCSRs drives every row of the table: what asks, in proper form, to be somebody else
// is PermissionDenied, everything else InvalidArgument. The rows name the rule that they break, R29,
// R31 or R32.
func TestR31_R32_HostileCSRs(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	hostile, err := meshclient.HostileCSRs(caller.id)
	require.NoError(t, err)
	require.Greater(t, len(hostile), 60)
	somebodyElse := map[string]bool{"other service account": true, "other trust domain": true}
	for name, id := range map[string]string{
		"foreign namespace":            "spiffe://cluster.local/ns/kube-system/sa/" + caller.sa,
		"foreign trust domain":         "spiffe://other.local/ns/" + caller.ns + "/sa/" + caller.sa,
		"neighbour in the namespace":   "spiffe://cluster.local/ns/" + caller.ns + "/sa/default",
		"Signet itself":                "spiffe://cluster.local/ns/" + s.ns + "/sa/signet",
		"identity of another form":     "spiffe://cluster.local/workload",
		"namespace that starts alike":  strings.TrimSuffix(caller.id.String(), "/sa/"+caller.sa) + "x/sa/" + caller.sa,
		"identity that goes on":        caller.id.String() + "/x",
		"trust domain with one letter": "spiffe://c/ns/" + caller.ns + "/sa/" + caller.sa,
	} {
		somebodyElse[name] = true
		hostile = append(hostile, meshclient.HostileCSR{Name: name, Rule: "R32", CSR: namesCSR(t, meshclient.URIName(id))})
	}
	for name, id := range map[string]string{
		"trust domain alone":       "spiffe://cluster.local/",
		"other scheme":             "https://cluster.local/ns/" + caller.ns + "/sa/" + caller.sa,
		"no scheme":                "//cluster.local/ns/" + caller.ns + "/sa/" + caller.sa,
		"dot segments to somebody": "spiffe://cluster.local/ns/" + caller.ns + "/sa/../sa/default",
		"empty":                    "",
	} {
		hostile = append(hostile, meshclient.HostileCSR{Name: "URI: " + name, Rule: "R32", CSR: namesCSR(t, meshclient.URIName(id))})
	}
	found := 0
	s.makesNone(t, func() {
		for _, row := range hostile {
			t.Run(row.Rule+" "+row.Name, func(t *testing.T) {
				want := codes.InvalidArgument
				if somebodyElse[row.Name] {
					want = codes.PermissionDenied
					found++
				}
				ask := caller.ask(t)
				ask.CSR = row.CSR
				refused(t, c, ask, want)
			})
		}
	})
	assert.Equal(t, len(somebodyElse), found, "a row of the table was renamed")
	issued(t, c, caller.ask(t))
}

// namesCSR is a proper request for these names, with a new key.
func namesCSR(t *testing.T, names ...[]byte) string {
	t.Helper()
	key, err := meshclient.NewKey(meshclient.P256)
	require.NoError(t, err)
	der, err := meshclient.BuildCSR(meshclient.Template{Key: key, Extensions: []meshclient.Extension{meshclient.SAN(true, names...)}})
	require.NoError(t, err)
	return meshclient.EncodeCSR(der)
}

// TestR48_JunkIsCheap sends what must be refused before the token is even reviewed.
func TestR48_JunkIsCheap(t *testing.T) {
	s := common(t)
	caller := s.caller(t) // its token was never reviewed
	c := s.dial(t)
	good := caller.csr(t)
	block, _ := pem.Decode([]byte(good))
	require.NotNil(t, block)
	withHeader := string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: block.Bytes}))
	reviews := s.metric(t, "token_reviews_total", nil)
	junk := map[string]string{
		"1 MiB":                      strings.Repeat("x", 1<<20),
		"1 MiB of PEM markers":       strings.Repeat("-----BEGIN CERTIFICATE REQUEST-----\n", 1<<20/36),
		"20 KiB":                     strings.Repeat("x", 20<<10),
		"20 KiB around a good one":   good + strings.Repeat("\n", 20<<10),
		"20 KiB within a PEM block":  meshclient.EncodeCSR(append(derOf(t, good), make([]byte, 20<<10)...)),
		"two blocks":                 good + caller.csr(t),
		"the same block twice":       good + good,
		"text after the block":       good + "more",
		"text before the block":      "more\n" + good,
		"a block of another type":    strings.ReplaceAll(good, "CERTIFICATE REQUEST", "PRIVATE KEY"),
		"a block with headers":       withHeader,
		"half a block":               good[:len(good)/2],
		"a block without content":    "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
		"a marker within the block":  strings.Replace(good, "\n", "\n-----BEGIN ", 1),
		"nothing":                    "",
		"DER as text":                fmt.Sprintf("%q", block.Bytes),
		"a block that is no DER":     meshclient.EncodeCSR([]byte("junk")),
		"a block of deep sequences":  meshclient.EncodeCSR([]byte(strings.Repeat("\x30\x80", 5000))),
		"a length beyond the buffer": meshclient.EncodeCSR([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}),
	}
	s.makesNone(t, func() {
		for name, csr := range junk {
			t.Run(name, func(t *testing.T) {
				ask := caller.ask(t)
				ask.CSR = csr
				refused(t, c, ask, codes.InvalidArgument)
				ask.Token = ""
				refused(t, c, ask, codes.Unauthenticated)
			})
		}
		t.Run("many at once", func(t *testing.T) {
			var flood []<-chan outcome
			ask := caller.ask(t)
			ask.CSR = junk["1 MiB"]
			for range 32 {
				flood = append(flood, later(t.Context(), c, ask))
			}
			for _, done := range flood {
				requireCode(t, await(t, done), codes.InvalidArgument)
			}
		})
		t.Run("metadata", func(t *testing.T) {
			ask := caller.ask(t)
			ask.Metadata = structOf(t, map[string]any{"x": strings.Repeat("x", 1<<20)})
			refused(t, c, ask, codes.InvalidArgument)
		})
		t.Run("an empty message", func(t *testing.T) {
			refused(t, c, meshclient.Ask{Token: caller.token}, codes.InvalidArgument)
		})
		for name, message := range map[string][]byte{"no message": nil, "no protobuf": []byte("\xff\xff\xff"), "another protobuf": []byte("\x0a\x02\xff\xfe")} {
			t.Run(name, func(t *testing.T) {
				requireCode(t, outcome{err: s.send(t, caller.token, message)}, codes.InvalidArgument)
			})
		}
	})
	assert.Equal(t, reviews, s.metric(t, "token_reviews_total", nil), "junk had a token reviewed")
	issued(t, c, caller.ask(t))
}

// createMethod is the method that Istio's clients call (R1).
const createMethod = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

// rawBytes is a codec for messages that are bytes already.
type rawBytes struct{}

func (rawBytes) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (rawBytes) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (rawBytes) Name() string                       { return "proto" }

// send calls CreateCertificate with a message that is these bytes, or with none at all, and returns
// the error.
func (s *stack) send(t *testing.T, token string, message []byte) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), patiently.Timeout)
	defer cancel()
	stream, err := s.conn(t).NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, createMethod, grpc.ForceCodec(rawBytes{}))
	require.NoError(t, err)
	if message != nil {
		require.NoError(t, stream.SendMsg(message))
	}
	require.NoError(t, stream.CloseSend())
	var answer []byte
	return stream.RecvMsg(&answer)
}
