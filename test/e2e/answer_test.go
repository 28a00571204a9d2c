package e2e

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/signet-ca/signet/test/meshclient"
)

// meshClients are how each of the mesh's clients connects, asks, and reads the answer.
var meshClients = []struct {
	name     string
	options  func() meshclient.Options
	csr      func(spiffeid.ID) (crypto.Signer, string, error)
	metadata func(spiffeid.ID) *structpb.Struct
	judge    func([]string, crypto.PublicKey, spiffeid.ID, time.Time) error
}{
	{"sidecar", meshclient.SidecarTLS,
		func(id spiffeid.ID) (crypto.Signer, string, error) {
			return meshclient.SidecarCSR(id, meshclient.RSA2048)
		},
		func(spiffeid.ID) *structpb.Struct { return meshclient.SidecarMetadata("") }, meshclient.JudgeSidecar},
	{"ztunnel", meshclient.ZtunnelTLS, meshclient.ZtunnelCSR,
		func(id spiffeid.ID) *structpb.Struct { return meshclient.ZtunnelMetadata(id.String()) }, meshclient.JudgeZtunnel},
	{"older ztunnel", meshclient.ZtunnelTLS, meshclient.OldZtunnelCSR,
		func(id spiffeid.ID) *structpb.Struct { return meshclient.ZtunnelMetadata(id.String()) }, meshclient.JudgeZtunnel},
	{"agentgateway", meshclient.ZtunnelTLS, meshclient.AgentgatewayCSR,
		func(spiffeid.ID) *structpb.Struct { return nil }, meshclient.JudgeAgentgateway},
}

// answered has a client of kind n ask s, and returns the answer with its key.
func answered(t *testing.T, s *stack, caller *caller, n int) ([]string, crypto.PublicKey) {
	t.Helper()
	kind := meshClients[n]
	key, csr, err := kind.csr(caller.id)
	require.NoError(t, err)
	ask := caller.ask(t)
	ask.CSR, ask.Metadata = csr, kind.metadata(caller.id)
	c := s.dial(t, kind.options())
	chain, err := create(t, c, ask)
	require.NoError(t, err)
	if strings.Contains(kind.name, "ztunnel") {
		state, err := c.TLS()
		require.NoError(t, err)
		require.NoError(t, meshclient.JudgeZtunnelTLS(state))
	}
	return chain, key.Public()
}

// everyAnswer calls check with an answer to each kind of client, of an issuer that signs with the root
// and of one that signs with an intermediate.
func everyAnswer(t *testing.T, check func(t *testing.T, s *stack, caller *caller, chain []string, key crypto.PublicKey)) {
	t.Helper()
	for name, s := range map[string]*stack{"root": common(t), "intermediate": variant(t)} {
		caller := s.caller(t)
		for n, kind := range meshClients {
			t.Run(name+" "+kind.name, func(t *testing.T) {
				chain, key := answered(t, s, caller, n)
				check(t, s, caller, chain, key)
			})
		}
	}
}

// TestR34_to_R45_JudgedByEveryClient has each client read its answer as strictly as the real one does.
// The tests that follow look at single rules, with eyes of their own.
func TestR34_to_R45_JudgedByEveryClient(t *testing.T) {
	for name, s := range map[string]*stack{"root": common(t), "intermediate": variant(t)} {
		caller := s.caller(t)
		for n, kind := range meshClients {
			t.Run(name+" "+kind.name, func(t *testing.T) {
				chain, key := answered(t, s, caller, n)
				assert.NoError(t, kind.judge(chain, key, caller.id, time.Now()))
			})
		}
	}
}

func TestR34_R35_R36_Leaf(t *testing.T) {
	everyAnswer(t, func(t *testing.T, _ *stack, caller *caller, chain []string, key crypto.PublicKey) {
		leaf := leafOf(t, chain)
		require.Len(t, leaf.URIs, 1)
		assert.Equal(t, caller.id.String(), leaf.URIs[0].String())
		assert.Empty(t, leaf.DNSNames)
		assert.Empty(t, leaf.IPAddresses)
		assert.Empty(t, leaf.EmailAddresses)
		assert.Empty(t, leaf.Subject.CommonName)
		assert.Equal(t, x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment, leaf.KeyUsage)
		assert.ElementsMatch(t, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, leaf.ExtKeyUsage)
		assert.Empty(t, leaf.UnknownExtKeyUsage)
		assert.False(t, leaf.IsCA)
		assert.True(t, key.(interface{ Equal(crypto.PublicKey) bool }).Equal(leaf.PublicKey))

		// It verifies against the last element of its own answer.
		anchors, intermediates := x509.NewCertPool(), x509.NewCertPool()
		for _, anchor := range certificatesIn(t, chain[len(chain)-1]) {
			anchors.AddCert(anchor)
		}
		for _, element := range chain[1 : len(chain)-1] {
			intermediates.AddCert(certificateIn(t, element))
		}
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			_, err := leaf.Verify(x509.VerifyOptions{Roots: anchors, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}})
			assert.NoError(t, err)
		}
	})
}

func TestR37_R38_Validity(t *testing.T) {
	everyAnswer(t, func(t *testing.T, _ *stack, _ *caller, chain []string, _ crypto.PublicKey) {
		leaf, now := leafOf(t, chain), time.Now()
		assert.False(t, leaf.NotBefore.After(now))
		assert.True(t, now.Before(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore)/2)))
		for _, element := range chain[1:] {
			for _, issuer := range certificatesIn(t, element) {
				assert.False(t, leaf.NotAfter.After(issuer.NotAfter))
			}
		}
	})
}

func TestR39_to_R43_R45_Elements(t *testing.T) {
	everyAnswer(t, func(t *testing.T, s *stack, _ *caller, chain []string, _ crypto.PublicKey) {
		want, anchors := 2, 2 // the root that signs, and another one that is pinned
		if s == variant(t) {
			want, anchors = 3, 1
		}
		require.Len(t, chain, want)
		for i, element := range chain {
			assert.True(t, strings.HasPrefix(element, "-----BEGIN CERTIFICATE-----\n"), "element %d", i)
			assert.True(t, strings.HasSuffix(element, "-----END CERTIFICATE-----\n"), "element %d", i)
		}
		// R39, R40: one certificate in each element but the last, each signed by the next.
		below := leafOf(t, chain)
		for i, element := range chain[1 : len(chain)-1] {
			cert := certificateIn(t, element)
			assert.NoError(t, below.CheckSignatureFrom(cert), "element %d", i+1)
			assert.NotEqual(t, cert.RawSubject, cert.RawIssuer, "element %d is a root", i+1) // R43
			below = cert
		}
		// R41: the last one holds all anchors, and R42 nothing else.
		last := certificatesIn(t, chain[len(chain)-1])
		assert.Len(t, last, anchors)
		assert.True(t, slices.ContainsFunc(last, func(c *x509.Certificate) bool { return below.CheckSignatureFrom(c) == nil }))
		assert.True(t, slices.ContainsFunc(last, certificateIn(t, string(s.root)).Equal))
	})
}

// Two replicas whose anchors were pinned in another order, twice, and with comments, answer with the
// same bytes.
func TestR44_OneBundle(t *testing.T) {
	s := common(t)
	other := s.peer(t, nil, bytes.Join([][]byte{otherRoot(), s.root, []byte("# again\n\n"), otherRoot(), s.root}, nil))
	caller := s.caller(t)
	last := func(s *stack) string {
		chain, err := create(t, s.dial(t), caller.ask(t))
		require.NoError(t, err)
		return chain[len(chain)-1]
	}
	first := last(s)
	assert.Len(t, certificatesIn(t, first), 2)
	for range 3 {
		assert.Equal(t, first, last(s))
		assert.Equal(t, first, last(other))
	}
}

// What an issuer answers that clients would fetch again at once, or not accept, doesn't leave.
func TestR36_R37_R38_AnswersThatStay(t *testing.T) {
	t.Parallel()
	h := slow(t)
	caller := h.caller(t)
	c := h.dial(t)
	for name, change := range map[string]func(*x509.Certificate){
		"past half of its life": func(leaf *x509.Certificate) {
			leaf.NotBefore, leaf.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(50*time.Minute)
		},
		"not valid yet": func(leaf *x509.Certificate) { leaf.NotBefore = time.Now().Add(time.Hour) },
		"expired": func(leaf *x509.Certificate) {
			leaf.NotBefore, leaf.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		},
		"longer than the cap": func(leaf *x509.Certificate) { leaf.NotAfter = time.Now().Add(25 * time.Hour) },
		"for servers only":    func(leaf *x509.Certificate) { leaf.ExtKeyUsage = leaf.ExtKeyUsage[:1] },
		"without key usage":   func(leaf *x509.Certificate) { leaf.KeyUsage = 0 },
		"one more usage":      func(leaf *x509.Certificate) { leaf.ExtKeyUsage = append(leaf.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) },
		"without names":       func(leaf *x509.Certificate) { leaf.ExtraExtensions = nil },
		"with a DNS name beside": func(leaf *x509.Certificate) {
			leaf.URIs, leaf.DNSNames, leaf.ExtraExtensions = nil, []string{"istiod.istio-system.svc"}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			ask := caller.ask(t)
			done := later(t.Context(), c, ask)
			h.answer(t, ask.CSR, change)
			requireCode(t, await(t, done), codes.FailedPrecondition)
			assert.Len(t, h.requestsFor(t, ask.CSR), 1)
		})
	}
}
