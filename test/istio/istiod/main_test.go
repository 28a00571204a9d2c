// Package istiod shows that a real istiod runs on what Signet gives it: its serving certificate, by way
// of cert-manager's Certificate, and the mesh's roots; and that pilot-agent works with both, istiod for
// its configuration and Signet for its certificate.
//
// The keeper of the Certificate runs in this process, under a service account that has its rights and
// no others. There is no kubelet, so a small one of our own mounts the Secret and the ConfigMap.
package istiod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/patiently"
)

// namespace is istiod's. Istio's agent verifies istiod.istio-system.svc when it connects to localhost.
const namespace = "istio-system"

var (
	plane   *controlplane.Plane
	oldRoot []byte // of the issuer istio-ca
	newRoot []byte // of the issuer istio-ca-2
)

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard()) // or it asks for one
	os.Exit(controlplane.Run(m, controlplane.Config{}, &plane, prepare))
}

// prepare makes Istio's definitions, the namespace and two CAs.
func prepare(ctx context.Context) error {
	crds, err := istioDefinitions(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(plane.Namespace(ctx, namespace), plane.Apply(ctx, crds)); err != nil {
		return err
	}
	if oldRoot, err = plane.BootstrapCA(ctx, namespace, "istio-ca", controlplane.CAOptions{Intermediate: true}); err != nil {
		return err
	}
	newRoot, err = plane.BootstrapCA(ctx, namespace, "istio-ca-2", controlplane.CAOptions{Intermediate: true})
	return err
}

// istioDefinitions are the CustomResourceDefinitions of the Istio that the programs are built from.
func istioDefinitions(ctx context.Context) ([]byte, error) {
	dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "istio.io/istio").Output()
	if err != nil {
		return nil, fmt.Errorf("find module istio.io/istio: %w", err)
	}
	return os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "manifests", "charts", "base", "files", "crd-all.gen.yaml"))
}

// rights are all that the keeper of istiod's Certificate may do, with its namespace to be filled in.
const rights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: signet-istiod, namespace: NAMESPACE}
rules:
- apiGroups: [cert-manager.io]
  resources: [certificates]
  resourceNames: [istiod-dynamic]
  verbs: [list, watch, create, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signet-istiod, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: signet-istiod}
subjects: [{kind: ServiceAccount, name: keeper, namespace: NAMESPACE}]
`

// rightsToRevisions are what it may do to find revisions.
const rightsToRevisions = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: signet-istiod-revisions, namespace: NAMESPACE}
rules:
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signet-istiod-revisions, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: signet-istiod-revisions}
subjects: [{kind: ServiceAccount, name: keeper, namespace: NAMESPACE}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-istiod-NAMESPACE}
rules:
- apiGroups: [admissionregistration.k8s.io]
  resources: [mutatingwebhookconfigurations]
  verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-istiod-NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-istiod-NAMESPACE}
subjects: [{kind: ServiceAccount, name: keeper, namespace: NAMESPACE}]
`

// allow installs rights for the keeper of a namespace, and returns when it may see its Certificate.
func allow(t *testing.T, ns string, manifests ...string) {
	t.Helper()
	require.NoError(t, plane.ServiceAccount(t.Context(), ns, "keeper"))
	for _, manifest := range manifests {
		require.NoError(t, plane.Apply(t.Context(), []byte(strings.ReplaceAll(manifest, "NAMESPACE", ns))))
	}
	require.NoError(t, plane.AwaitAllowed(t.Context(), controlplane.Access{
		User: "system:serviceaccount:" + ns + ":keeper", Verb: "list", Group: "cert-manager.io", Resource: "certificates", Name: "istiod-dynamic", Namespace: ns,
	}))
}

// keeper is a rotation.Istiod that runs, with the issuer that it follows.
type keeper struct {
	*rotation.Istiod
	issuers  *issuer.Store
	registry *prometheus.Registry
	log      *lines
	events   *events.FakeRecorder
	stop     func() // ends it, and waits
}

// keep starts a keeper under the service account of ns. It ends with the test.
func keep(t *testing.T, ns string, cfg rotation.IstiodConfig) *keeper {
	t.Helper()
	config, err := plane.As(t.Context(), ns, "keeper")
	require.NoError(t, err)
	k := &keeper{
		issuers: issuer.NewStore(issuer.Ref{Name: "istio-ca"}), registry: prometheus.NewRegistry(), log: &lines{}, events: events.NewFakeRecorder(1000),
	}
	cfg.Enabled, cfg.Namespace = true, ns
	k.Istiod, err = rotation.NewIstiod(cfg, config,
		func() issuer.Ref { return k.issuers.Current().Ref },
		func() <-chan struct{} { _, replaced := k.issuers.Watch(); return replaced },
		slog.New(slog.NewTextHandler(k.log, nil)), prometheus.WrapRegistererWithPrefix("signet_", k.registry), k.events)
	require.NoError(t, err)
	k.start(t)
	return k
}

// start runs Start, as when the lease is acquired.
func (k *keeper) start(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Start(ctx) }()
	k.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the keeper ended with %v", err)
			}
		case <-time.After(patiently.Timeout):
			t.Error("the keeper does not end")
		}
	})
	t.Cleanup(func() {
		k.stop()
		if t.Failed() {
			t.Logf("log of the keeper:\n%s", k.log)
		}
	})
}

// follow puts another issuer in force.
func (k *keeper) follow(name string) {
	k.issuers.Update(func(s *issuer.Snapshot) { s.Ref = issuer.Ref{Name: name}.WithDefaults() })
}

// lines collects a log.
type lines struct {
	mu   sync.Mutex // guards the following
	text strings.Builder
}

func (l *lines) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(text)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// publish writes the roots of the mesh into a namespace, as Signet does.
func publish(t *testing.T, ns string, roots []byte) {
	t.Helper()
	object := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "istio-ca-root-cert", Labels: map[string]string{"istio.io/config": "true"}},
		Data:       map[string]string{"root-cert.pem": string(roots)},
	}
	err := plane.Client().Create(t.Context(), object)
	if client.IgnoreAlreadyExists(err) == nil {
		err = plane.Client().Update(t.Context(), object)
	}
	require.NoError(t, err)
}
