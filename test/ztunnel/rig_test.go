package ztunnel

import (
	"context"
	"crypto"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// proxy is the ztunnel of a node.
type proxy struct {
	node  string
	pod   *corev1.Pod
	token string
	*meshclient.Client
}

// newProxy runs a pod of the service account on a node of its own, and connects as ztunnel does.
func newProxy(t *testing.T, namespace, account string) *proxy {
	t.Helper()
	p := &proxy{node: "node-" + rand.String(8)}
	var err error
	p.pod, err = plane.Pod(t.Context(), namespace, account+"-"+rand.String(5), account, p.node)
	require.NoError(t, err)
	p.token, err = plane.Token(t.Context(), namespace, account, controlplane.TokenOptions{Pod: p.pod})
	require.NoError(t, err)
	options := meshclient.ZtunnelTLS()
	options.ServerName = replica.ServerName
	p.Client, err = meshclient.Dial(signet.CSR(), root, options)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	return p
}

func ztunnel(t *testing.T) *proxy { t.Helper(); return newProxy(t, home, "ztunnel") }

func identity(namespace, account string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://cluster.local/ns/" + namespace + "/sa/" + account)
}

// ask is what ztunnel sends for an identity, and the key of the request.
func (p *proxy) ask(t *testing.T, id spiffeid.ID) (meshclient.Ask, crypto.Signer) {
	t.Helper()
	key, csr, err := meshclient.ZtunnelCSR(id)
	require.NoError(t, err)
	return meshclient.Ask{
		Token: p.token, CSR: csr, ValiditySeconds: 86400, Metadata: meshclient.ZtunnelMetadata(id.String()), ClusterIDs: []string{"Kubernetes"},
	}, key
}

// gets asks for an identity and wants an answer that ztunnel takes.
func (p *proxy) gets(t *testing.T, id spiffeid.ID) []string {
	t.Helper()
	ask, key := p.ask(t, id)
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	chain, err := p.Create(ctx, ask)
	require.NoError(t, err)
	require.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), id, time.Now()))
	return chain
}

// refused sends ask and wants exactly this code, and this reason in Signet's metrics.
func (p *proxy) refused(t *testing.T, ask meshclient.Ask, code codes.Code, reason string) {
	t.Helper()
	before := refusals(t, reason)
	p.denied(t, ask, code)
	// It is counted before it is answered.
	assert.Equal(t, before+1, refusals(t, reason), "reason %s", reason)
}

// denied sends ask and wants exactly this code.
func (p *proxy) denied(t *testing.T, ask meshclient.Ask, code codes.Code) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	chain, err := p.Create(ctx, ask)
	require.Error(t, err, "%d elements were answered", len(chain))
	require.Equal(t, code.String(), status.Code(err).String(), "%v", err)
	if code == codes.PermissionDenied {
		assert.Equal(t, "the identity asked for is not the caller's", status.Convert(err).Message(), "R26")
	}
}

func refusals(t *testing.T, reason string) float64 {
	t.Helper()
	value, err := signet.Metric(t.Context(), "signet_requests_total", map[string]string{"outcome": "refused", "reason": reason})
	require.NoError(t, err)
	return value
}

// runs makes a pod of a new service account in the namespace on a node, and returns the account's identity.
func runs(t *testing.T, namespace, account, node string, change ...func(*corev1.Pod)) (spiffeid.ID, *corev1.Pod) {
	t.Helper()
	require.NoError(t, plane.ServiceAccount(t.Context(), namespace, account))
	pod, err := plane.Pod(t.Context(), namespace, account+"-"+rand.String(5), account, node)
	require.NoError(t, err)
	for _, do := range change {
		do(pod)
		require.NoError(t, plane.Client().Status().Update(t.Context(), pod))
	}
	return identity(namespace, account), pod
}

func phase(p corev1.PodPhase) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Status.Phase = p }
}

// unscheduled makes a pod that waits for a node.
func unscheduled(t *testing.T, namespace, account string) spiffeid.ID {
	t.Helper()
	require.NoError(t, plane.ServiceAccount(t.Context(), namespace, account))
	require.NoError(t, plane.Client().Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account + "-waits"},
		Spec:       corev1.PodSpec{ServiceAccountName: account, Containers: []corev1.Container{{Name: "app", Image: "example.invalid/app"}}},
	}))
	return identity(namespace, account)
}
