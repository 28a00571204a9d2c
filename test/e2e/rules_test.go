package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// ruledStack has two issuers with a root each, rules that choose the second one, and a trust domain that had another
// name before.
var ruledStack = sync.OnceValues(func() (*stack, error) {
	ctx := context.Background()
	ns := "ruled-" + rand.String(5)
	first, err := bootstrap(ctx, ns, controlplane.CAOptions{})
	if err != nil {
		return nil, err
	}
	second, err := plane.BootstrapCA(ctx, ns, "second", controlplane.CAOptions{})
	if err != nil {
		return nil, err
	}
	return startShared(ctx, &stack{ns: ns, root: first, trustDomain: "cluster.local", config: replica.Config{
		RootPEM: append(append([]byte{}, first...), second...),
		Settings: base(map[string]any{
			"ca.trustDomainAliases": []string{"old.mesh"},
			"ca.rules": []any{
				map[string]any{"certSigner": "second", "namespaceLabels": map[string]any{"signers": "yes"}, "issuer": map[string]any{"name": "second"}},
				map[string]any{"namespaceLabels": map[string]any{"tier": "short"}, "issuer": map[string]any{"name": "second"}, "lifetime": map[string]any{"max": "2h"}},
			},
		}),
	}})
})

// callerLabelled makes a caller in a namespace with labels.
func (s *stack) callerLabelled(t *testing.T, labels map[string]string) *caller {
	t.Helper()
	ns := "team-" + rand.String(5)
	require.NoError(t, plane.Client().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: labels}}))
	return s.callerIn(t, ns, "web")
}

// labelsKnown waits until Signet knows the callers' namespaces: it learns of one that was just made a moment later, and
// without their labels the rules can't be applied.
func labelsKnown(t *testing.T, c *meshclient.Client, callers ...*caller) {
	t.Helper()
	for _, caller := range callers {
		patiently.Holds(t, func() bool { return code(t, c, caller.ask(t)) == codes.OK }, "the labels of namespace %s are known", caller.ns)
	}
}

const (
	bySecond = " second" // the end of the issuer's name
	byFirst  = " istio-ca"
)

// TestCertSigner: a signer that is asked for by name signs for those whom a rule gives it, and a rule for a namespace
// holds without a word of the caller.
func TestCertSigner(t *testing.T) {
	s := must(t, ruledStack)
	c := s.dial(t)
	plain, allowed, short := s.caller(t), s.callerLabelled(t, map[string]string{"signers": "yes"}), s.callerLabelled(t, map[string]string{"tier": "short"})

	labelsKnown(t, c, plain, allowed, short)
	leaf := issued(t, c, plain.ask(t))
	assert.Contains(t, leaf.Issuer.CommonName, byFirst)

	ask := allowed.ask(t)
	ask.Metadata = meshclient.SidecarMetadata("second")
	assert.Contains(t, issued(t, c, ask).Issuer.CommonName, bySecond)
	ask = allowed.ask(t)
	ask.Metadata = meshclient.SidecarMetadata("")
	assert.Contains(t, issued(t, c, ask).Issuer.CommonName, byFirst)

	for _, name := range []string{"third", "Second", "second ", "istio-ca"} {
		ask := allowed.ask(t)
		ask.Metadata = meshclient.SidecarMetadata(name)
		assert.Equal(t, "no such signer is offered", refused(t, c, ask, codes.PermissionDenied), name)
	}
	ask = plain.ask(t)
	ask.Metadata = meshclient.SidecarMetadata("second")
	assert.Equal(t, "no such signer is offered", refused(t, c, ask, codes.PermissionDenied), "its namespace has no such label")

	leaf = issued(t, c, short.ask(t))
	assert.Contains(t, leaf.Issuer.CommonName, bySecond)
	assert.LessOrEqual(t, leaf.NotAfter.Sub(leaf.NotBefore), 2*time.Hour+5*time.Minute, "the rule's longest lifetime, and what issuers set back")
}

// TestR32_FormerTrustDomain: a pod that was injected before the trust domain was renamed goes on renewing under the name
// that it has, for its own service account only.
func TestR32_FormerTrustDomain(t *testing.T) {
	s := must(t, ruledStack)
	c, caller := s.dial(t), s.caller(t)
	labelsKnown(t, c, caller)
	for _, row := range []struct {
		domain, sa string
		want       codes.Code
	}{
		{"old.mesh", caller.sa, codes.OK},
		{"cluster.local", caller.sa, codes.OK},
		{"older.mesh", caller.sa, codes.PermissionDenied},
		{"old.mesh", "other", codes.PermissionDenied},
	} {
		id := spiffeid.RequireFromSegments(spiffeid.RequireTrustDomainFromString(row.domain), "ns", caller.ns, "sa", row.sa)
		_, csr, err := meshclient.ZtunnelCSR(id)
		require.NoError(t, err)
		ask := caller.ask(t)
		ask.CSR = csr
		if row.want != codes.OK {
			refused(t, c, ask, row.want)
			continue
		}
		leaf := issued(t, c, ask)
		require.Len(t, leaf.URIs, 1)
		assert.Equal(t, id.String(), leaf.URIs[0].String())
		line, err := s.Issued(leaf.Raw)
		require.NoError(t, err)
		assert.Equal(t, caller.id.String(), line["caller"])
		assert.NotContains(t, line, "cluster", "it is our own")
		if id == caller.id {
			assert.NotContains(t, line, "for")
		} else {
			assert.Equal(t, id.String(), line["for"])
		}
	}
}

// TestR32_AgentOfAFormerTrustDomain: Istio's own agent, injected under the former name, gets its certificate under it.
func TestR32_AgentOfAFormerTrustDomain(t *testing.T) {
	t.Parallel()
	s := must(t, ruledStack)
	caller := s.caller(t)
	id := spiffeid.RequireFromSegments(spiffeid.RequireTrustDomainFromString("old.mesh"), "ns", caller.ns, "sa", caller.sa)
	agent, err := meshclient.StartAgent(t.Context(), meshclient.AgentConfig{
		Address: s.CSR(), Roots: s.root, Token: caller.token, ID: id, TTL: time.Minute,
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, agent.Stop()) })
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	require.NoError(t, agent.WaitRotations(ctx, 0))
	held, err := agent.Certificate()
	require.NoError(t, err)
	require.Len(t, held.Leaf.URIs, 1)
	assert.Equal(t, id.String(), held.Leaf.URIs[0].String())
}
