// Package remote drives a running Signet with callers of another cluster: two real control planes at once, one of which is
// Signet's own. The other is a remote cluster for one Signet, by a Secret with a kubeconfig, and an OIDC issuer for a second
// one, by the keys that it publishes.
package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/process"
	"github.com/signet-ca/signet/test/replica"
)

var (
	// east is Signet's own control plane, and west the other.
	east, west *controlplane.Plane
	// signet serves west as a remote cluster, and the node proxies of both; federated takes west's tokens as an OIDC issuer's.
	signet, federated *replica.Replica
	// home is Signet's namespace, secrets that of the Secrets, and readers that of Signet's account in west.
	home, secrets, readers = "signet-" + rand.String(5), "clusters-" + rand.String(5), "readers-" + rand.String(5)
	// federatedNamespace is that of the second Signet.
	federatedNamespace = home + "-oidc"
	// root and federatedRoot are the anchors of the CAs that sign, PEM.
	root, federatedRoot []byte
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctrl.SetLogger(logr.FromSlogHandler(slog.DiscardHandler)) // or it asks for one
	ctx := context.Background()
	code := 1
	err := start(ctx)
	if err == nil {
		code = m.Run()
	}
	err = errors.Join(err, end(signet), end(federated))
	for _, plane := range []*controlplane.Plane{east, west} {
		if plane != nil {
			err = errors.Join(err, plane.Stop())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// end ends a Signet at once: stopping gracefully, it would sweep what is kept for tests to look at. The error says what the
// race detector has seen, in a program that was built with it.
func end(r *replica.Replica) error {
	if r == nil {
		return nil
	}
	r.Kill()
	log, err := r.Log()
	if at := strings.Index(log, "WARNING: DATA RACE"); err == nil && at >= 0 {
		err = fmt.Errorf("signet: %.5000s", log[at:])
	}
	return err
}

func start(ctx context.Context) error {
	var planes errgroup.Group
	planes.Go(func() (err error) { east, err = controlplane.Start(ctx, controlplane.Config{}); return err })
	planes.Go(func() (err error) {
		west, err = controlplane.Start(ctx, controlplane.Config{WithoutCertManager: true, OwnIssuer: true})
		return err
	})
	if err := planes.Wait(); err != nil {
		return err
	}
	if err := prepareWest(ctx); err != nil {
		return err
	}
	var replicas errgroup.Group
	replicas.Go(func() error { return startSignet(ctx) })
	replicas.Go(func() error { return startFederated(ctx) })
	if err := replicas.Wait(); err != nil {
		return err
	}
	return awaitRemote(ctx)
}

// awaitRemote waits until callers of the remote cluster are served, of which readiness says nothing.
func awaitRemote(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patiently.Timeout)
	defer cancel()
	for {
		_, body, err := signet.Readyz(ctx)
		if err == nil && strings.Contains(body, "[i] remote cluster: west: its callers are served") {
			return nil
		}
		select {
		case <-time.After(patiently.Glance):
		case <-ctx.Done():
			return fmt.Errorf("wait for the remote cluster: %w: %w\n%s", ctx.Err(), err, body)
		}
	}
}

// manifest is a file of deploy, for namespaces of ours.
func manifest(name string, replaced ...string) ([]byte, error) {
	root, err := process.Root()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(root, "deploy", name))
	return []byte(strings.NewReplacer(replaced...).Replace(string(text))), err
}

// prepareWest gives Signet its account there, and lets anybody read the keys of its tokens.
func prepareWest(ctx context.Context) error {
	for _, namespace := range []string{readers, home} {
		if err := west.Namespace(ctx, namespace); err != nil {
			return err
		}
	}
	rights, err := manifest("rbac-in-remote-cluster.yaml", "istio-system", readers)
	if err != nil {
		return err
	}
	if err := west.Apply(ctx, rights); err != nil {
		return err
	}
	return west.Apply(ctx, []byte(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: issuer-discovery}, `+
		`roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:service-account-issuer-discovery"}, `+
		`subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:unauthenticated"}]}`))
}

func startSignet(ctx context.Context) (err error) {
	if err := east.Namespace(ctx, home); err != nil {
		return err
	}
	if root, err = east.BootstrapCA(ctx, home, "istio-ca", controlplane.CAOptions{}); err != nil {
		return err
	}
	for _, plane := range []*controlplane.Plane{east, west} {
		if err := plane.ServiceAccount(ctx, home, "ztunnel"); err != nil {
			return err
		}
	}
	if err := east.ServiceAccount(ctx, home, "auditor"); err != nil {
		return err
	}
	auditor := `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: auditor}, ` +
		`roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}, ` +
		`subjects: [{kind: ServiceAccount, name: auditor, namespace: ` + home + `}]}`
	if err := east.Apply(ctx, []byte(auditor)); err != nil {
		return err
	}
	if err := east.Namespace(ctx, secrets); err != nil {
		return err
	}
	kubeconfig, err := readerKubeconfig(ctx)
	if err != nil {
		return err
	}
	if err := east.Client().Create(ctx, clusterSecret("west", map[string][]byte{"west": kubeconfig})); err != nil {
		return err
	}
	// One that has no label is nobody's business.
	unlabelled := clusterSecret("unlabelled", map[string][]byte{"north": kubeconfig})
	unlabelled.Labels = nil
	if err := east.Client().Create(ctx, unlabelled); err != nil {
		return err
	}
	signet, err = replica.Start(ctx, east, replica.Config{Namespace: home, RootPEM: root, Settings: map[string]any{
		"clusterID":                   "east",
		"ca.clusterAliases":           []string{"east-1"},
		"ca.nodes.accounts":           []string{home + "/ztunnel"},
		"ca.remoteClusters.namespace": secrets,
		"ca.remoteClusters.allowed": []any{
			map[string]any{"id": "west", "servers": []string{west.Admin().Host}, "aliases": []string{"west-1"}},
			map[string]any{"id": "north"},
		},
		"signer.sweep.keep": "10m",
	}})
	return err
}

// clusterSecret is a Secret as `istioctl create-remote-secret` makes it.
func clusterSecret(name string, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: secrets, Name: name, Labels: map[string]string{"istio/multiCluster": "true"}}, Data: data}
}

// readerKubeconfig is one for west with a new token of Signet's account there.
func readerKubeconfig(ctx context.Context) ([]byte, error) {
	path, err := west.KubeconfigAs(ctx, readers, "signet-remote")
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

func startFederated(ctx context.Context) (err error) {
	if err := east.Namespace(ctx, federatedNamespace); err != nil {
		return err
	}
	if federatedRoot, err = east.BootstrapCA(ctx, federatedNamespace, "istio-ca", controlplane.CAOptions{}); err != nil {
		return err
	}
	caFile := filepath.Join(east.Dir(), "west-ca.pem")
	if err := os.WriteFile(caFile, west.Admin().CAData, 0o600); err != nil {
		return err
	}
	federated, err = replica.Start(ctx, east, replica.Config{Namespace: federatedNamespace, RootPEM: federatedRoot, Settings: map[string]any{
		"ca.nodes.accounts": []string{home + "/ztunnel"},
		"ca.oidc": []any{map[string]any{
			"issuer": west.Admin().Host, "audiences": []string{"signet.example"}, "caFile": caFile,
			"match":     map[string]string{"sub": "system:serviceaccount:{ns}:{sa}", "/kubernetes.io/namespace": "{same}"},
			"namespace": "{same}", "serviceAccount": "{sa}",
		}},
		"signer.sweep.keep": "10m",
	}})
	return err
}
