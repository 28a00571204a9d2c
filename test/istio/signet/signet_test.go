// Package signet shows that Istio's own clients get their certificates from a running Signet: the
// Citadel client and the SDS server of the agent in process, and pilot-agent as it runs in a pod.
package signet

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/istio/istioclient"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/replica"
)

const (
	namespace = "istio-system"
	// patience is how long a test waits for what must come; it only ever runs out when it doesn't.
	patience = 3 * time.Minute
)

var (
	plane  *controlplane.Plane
	signet *replica.Replica
	root   []byte
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	ctx := context.Background()
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var err error
	if plane, err = controlplane.Start(ctx, controlplane.Config{}); err != nil {
		return fail(err)
	}
	defer func() {
		if err := plane.Stop(); err != nil {
			code = fail(err)
		}
	}()
	if err := plane.Namespace(ctx, namespace); err != nil {
		return fail(err)
	}
	if root, err = plane.BootstrapCA(ctx, namespace, "istio-ca", controlplane.CAOptions{Intermediate: true}); err != nil {
		return fail(err)
	}
	signet, err = replica.Start(ctx, plane, replica.Config{
		Namespace: namespace, RootPEM: root, Settings: map[string]any{"ca.lifetime.min": "2s"},
	})
	if err != nil {
		return fail(err)
	}
	defer signet.Stop()
	return m.Run()
}

// workload makes a namespace with the service account "app", and a token that is bound to a pod of it.
func workload(t *testing.T) (ns, token string) {
	t.Helper()
	ns = plane.NewNamespace(t, "app")
	require.NoError(t, plane.ServiceAccount(t.Context(), ns, "app"))
	pod, err := plane.Pod(t.Context(), ns, "app", "app", "node-1")
	require.NoError(t, err)
	token, err = plane.Token(t.Context(), ns, "app", controlplane.TokenOptions{Pod: pod})
	require.NoError(t, err)
	return ns, token
}

func config(t *testing.T, ns, token string) istioclient.Config {
	t.Helper()
	roots := filepath.Join(t.TempDir(), "root-cert.pem")
	require.NoError(t, os.WriteFile(roots, root, 0o600))
	_, port, _ := strings.Cut(signet.CSR(), ":")
	return istioclient.Config{
		Address:   "localhost:" + port, // R4: the client verifies istiod.istio-system.svc then
		RootsFile: roots, Token: token, ClusterID: "Kubernetes", Namespace: ns, ServiceAccount: "app",
	}
}

func TestR4_R15_R30_R39_CitadelClientGetsItsCertificate(t *testing.T) {
	for _, rsa := range []bool{true, false} {
		t.Run(fmt.Sprintf("rsa=%t", rsa), func(t *testing.T) {
			ns, token := workload(t)
			cfg := config(t, ns, token)
			cfg.RSA = rsa
			client, err := istioclient.Citadel(cfg)
			require.NoError(t, err)
			defer client.Close()
			csr, key, err := istioclient.NewCSR(cfg)
			require.NoError(t, err)
			chain, err := client.CSRSign(csr, 3600)
			require.NoError(t, err)
			require.Len(t, chain, 3, "leaf, intermediate, roots")
			block, _ := pem.Decode(key)
			require.NotNil(t, block)
			leaf := parse(t, chain[0])
			assert.Equal(t, "spiffe://cluster.local/ns/"+ns+"/sa/app", leaf.URIs[0].String())
			assert.InDelta(t, time.Hour, leaf.NotAfter.Sub(leaf.NotBefore), float64(2*time.Second))
			assert.Equal(t, string(root), chain[2])
		})
	}
}

func TestR46_CitadelClientIsRefusedForGood(t *testing.T) {
	ns, token := workload(t)
	other := config(t, "kube-system", token)
	client, err := istioclient.Citadel(config(t, ns, token))
	require.NoError(t, err)
	defer client.Close()
	csr, _, err := istioclient.NewCSR(other)
	require.NoError(t, err)
	before := refusals(t)
	_, err = client.CSRSign(csr, 3600)
	require.ErrorContains(t, err, "code = "+codes.PermissionDenied.String()) // the client keeps only the text
	require.Eventually(t, func() bool { return refusals(t) > before }, patience, 20*time.Millisecond)
	assert.Equal(t, before+1, refusals(t), "the client must not try again")
}

func refusals(t *testing.T) float64 {
	t.Helper()
	n, err := signet.Metric(t.Context(), "signet_requests_total", map[string]string{"outcome": "refused"})
	require.NoError(t, err)
	return n
}

// TestR44_SDSServesAndRotates streams both secrets from Istio's SDS server, through two renewals.
func TestR44_SDSServesAndRotates(t *testing.T) {
	ns, token := workload(t)
	cfg := config(t, ns, token)
	cfg.TTL = 16 * time.Second
	t.Chdir(t.TempDir()) // the socket's path is relative
	sds, err := istioclient.StartSDS(cfg)
	require.NoError(t, err)
	defer sds.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	anchors, err := sds.Subscribe(ctx, istioclient.Anchors)
	require.NoError(t, err)
	secret, err := anchors.Next()
	require.NoError(t, err)
	assert.Equal(t, strings.TrimSpace(string(root)), strings.TrimSpace(string(secret.Roots)))

	own, err := sds.Subscribe(ctx, istioclient.Workload)
	require.NoError(t, err)
	seen := make(map[string]bool)
	for len(seen) < 3 {
		secret, err := own.Next()
		require.NoError(t, err)
		leaf := parse(t, string(secret.Chain))
		assert.Equal(t, "spiffe://cluster.local/ns/"+ns+"/sa/app", leaf.URIs[0].String())
		seen[leaf.SerialNumber.String()] = true
	}
}

// TestR21_R37_PilotAgentRotates runs pilot-agent as in a pod, with each kind of key that it can have,
// until it has renewed twice.
func TestR21_R37_PilotAgentRotates(t *testing.T) {
	for _, kind := range []meshclient.KeyType{meshclient.P256, meshclient.P384, meshclient.RSA2048} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			ns, token := workload(t)
			_, port, _ := strings.Cut(signet.CSR(), ":")
			id := spiffeid.RequireFromString("spiffe://cluster.local/ns/" + ns + "/sa/app")
			agent, err := meshclient.StartAgent(t.Context(), meshclient.AgentConfig{
				Address: "localhost:" + port, Roots: root, Token: token, ID: id, Key: kind, TTL: 20 * time.Second,
			})
			require.NoError(t, err)
			defer func() { assert.NoError(t, agent.Stop()) }()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			require.NoError(t, agent.WaitRotations(ctx, 0))
			first := held(t, agent)
			require.NoError(t, agent.WaitRotations(ctx, 2))
			last := held(t, agent)
			assert.NotEqual(t, first.Leaf.SerialNumber, last.Leaf.SerialNumber)
			assert.True(t, last.Leaf.NotAfter.After(first.Leaf.NotAfter))
			assert.Equal(t, id.String(), last.Leaf.URIs[0].String())
			assert.Len(t, last.Chain, 3, "leaf, intermediate, root")
		})
	}
}

// held is what an agent has in its files. It writes the last of them a moment after the certificate is seen.
func held(t *testing.T, agent *meshclient.Agent) *meshclient.Certificate {
	t.Helper()
	var c *meshclient.Certificate
	require.Eventually(t, func() (written bool) {
		read, err := agent.Certificate()
		c = read
		return err == nil
	}, patience, 20*time.Millisecond)
	return c
}

func parse(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	require.NotNil(t, block, "no PEM in %q", text)
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return cert
}
