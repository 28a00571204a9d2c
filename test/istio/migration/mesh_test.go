package migration

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/process"
	"github.com/signet-ca/signet/test/replica"
)

// mesh is a mesh with two authorities below one root: Signet, with the Issuer istio-ca, and an old one, which is istiod's
// with plugged-in cacerts. The old one also has the name of istio-csr.
type mesh struct {
	ns      string
	root    []byte // PEM
	old     *istiod
	oldCA   signer
	replica *replica.Replica
	signet  signer
}

// forgottenAddress is one that the old authority serves, but not Signet.
const forgottenAddress = "forgotten.cert-manager.svc:443"

// host is the name in an address.
func host(address string) string {
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		panic(err) // a constant of ours is wrong
	}
	return name
}

func startMesh(ctx context.Context) (_ *mesh, err error) {
	m := &mesh{ns: "istio-system"}
	defer func() {
		if err != nil {
			m.stop()
		}
	}()
	if err := plane.Namespace(ctx, m.ns); err != nil {
		return nil, err
	}
	if m.root, err = plane.BootstrapCA(ctx, m.ns, "istio-ca", controlplane.CAOptions{Intermediate: true}); err != nil {
		return nil, err
	}
	mounted, err := intermediate(ctx, m.ns, "cacerts", "istio-ca-root")
	if err != nil {
		return nil, err
	}
	if m.oldCA, err = newSigner("old CA", mounted[corev1.TLSCertKey]); err != nil {
		return nil, err
	}
	as, err := actAsIstiod(ctx, m.ns)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(plane.Dir(), "cacerts")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	old, err := pluggedInCA(dir, cacerts{
		cert: mounted[corev1.TLSCertKey], key: mounted[corev1.TLSPrivateKeyKey], chain: mounted[corev1.TLSCertKey], roots: m.root,
	})
	if err != nil {
		return nil, err
	}
	if m.old, err = startCA(old, as, host(istiodAddress), host(istioCSRAddress), host(forgottenAddress)); err != nil {
		return nil, err
	}
	if m.signet, err = signetSigner(ctx, m.ns); err != nil {
		return nil, err
	}
	m.replica, err = startSignet(ctx, replica.Config{Namespace: m.ns, RootPEM: m.root})
	return m, err
}

func (m *mesh) stop() {
	if m.replica != nil {
		m.replica.Stop()
	}
	if m.old != nil {
		m.old.stop()
	}
}

// signetSigner is what the Issuer istio-ca signs with.
func signetSigner(ctx context.Context, ns string) (signer, error) {
	secret := &corev1.Secret{}
	if err := plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: "istio-ca"}, secret); err != nil {
		return signer{}, fmt.Errorf("get Secret %s/istio-ca: %w", ns, err)
	}
	return newSigner("Signet", secret.Data[corev1.TLSCertKey])
}

// startSignet starts Signet with what all of these tests need: it serves the name of its Service and the one that istio-csr
// had, and signs short certificates.
func startSignet(ctx context.Context, cfg replica.Config) (*replica.Replica, error) {
	settings := map[string]any{
		"ca.lifetime.min":  "2s",
		"serving.dnsNames": []any{"localhost", replica.ServerName, host(signetAddress), host(istioCSRAddress)},
	}
	maps.Copy(settings, cfg.Settings)
	cfg.Settings = settings
	return replica.Start(ctx, plane, cfg)
}

// signetFor starts a Signet that ends with the test.
func signetFor(t *testing.T, cfg replica.Config) *replica.Replica {
	t.Helper()
	r, err := startSignet(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		r.Stop()
		if t.Failed() {
			t.Logf("the end of Signet's log:\n%s", process.Tail(r.Process().Log(), 60))
		}
	})
	return r
}
