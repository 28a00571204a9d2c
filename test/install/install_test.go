package install

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/signer"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/process"
)

const (
	system   = "istio-system"
	identity = "spiffe://cluster.local/ns/shop/sa/cart"

	// The cap of the first values, and that of the upgrade. Signet hands out nothing that is past half of its life.
	first, second = 40 * time.Second, 24 * time.Second
)

// An installation is a release in istio-system with what runs its pods.
type installation struct {
	helm  *helm
	pods  *workloads
	api   *front
	roots string // a file
}

// TestRelease is the life of one release, as its operator and a workload of the mesh see it.
func TestRelease(t *testing.T) {
	t.Parallel()
	i := prepare(t)
	values := map[string]any{
		"config": map[string]any{
			"issuer":   map[string]any{"name": "istio-ca"},
			"roots":    map[string]any{"secret": map[string]any{"name": "mesh-roots"}},
			"ca":       map[string]any{"lifetime": map[string]any{"min": "4s", "default": second.String(), "max": first.String()}},
			"serving":  map[string]any{"dnsNames": []any{"istiod.istio-system.svc"}}, // for an agent that connects to localhost (R4)
			"signer":   map[string]any{"sweep": map[string]any{"keep": "1s"}},        // a replica that leaves waits for it
			"shutdown": map[string]any{"delay": "1s"},
		},
		"ledger": map[string]any{"volume": map[string]any{"type": "claim", "size": "1Gi"}},
	}
	assert.Contains(t, i.helm.install(t, values), "caAddress", "the notes")
	i.rollOut(t, 2)
	i.expose(t)
	guarded{ns: system, policy: "signet-istio-system"}.inForce(t) // whatever is signed from here on is signed under it

	agent := i.startAgent(t)
	i.awaitLifetime(t, agent, first)
	before := i.serials(t)
	i.tells(t)
	i.flows(t)
	i.ports(t)

	lower := map[string]any{"config": map[string]any{"ca": map[string]any{"lifetime": map[string]any{"max": second.String()}}}}
	i.helm.upgrade(t, lower)
	i.rollOut(t, 2)
	i.awaitLifetime(t, agent, second)
	for replica, serials := range i.serials(t) {
		assert.Subset(t, serials, before[replica], "what %s had issued before it was upgraded", replica)
	}

	i.helm.upgrade(t, lower)
	i.rollOut(t, 0) // nothing has changed

	i.helm.rollBack(t, 1)
	i.rollOut(t, 2)
	i.awaitLifetime(t, agent, first)

	log, err := os.ReadFile(agent.LogFile())
	require.NoError(t, err)
	assert.NotContains(t, string(log), "failed to sign")
	require.NoError(t, agent.Stop())
	i.uninstall(t)
}

// prepare makes what is there before Signet: the namespace, which lets only pods in that keep to the strictest standard, the
// issuer, and the mesh's roots.
func prepare(t *testing.T) *installation {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, plane.Namespace(ctx, system))
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: system}}
	require.NoError(t, plane.Client().Patch(ctx, ns, client.RawPatch("application/merge-patch+json",
		[]byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`))))
	root, err := plane.BootstrapCA(ctx, system, "istio-ca", controlplane.CAOptions{})
	require.NoError(t, err)
	for _, object := range []client.Object{
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "mesh-roots"},
			Data:       map[string][]byte{"ca.crt": root},
		},
		&corev1.ConfigMap{ // a controller of Kubernetes makes it in each namespace
			ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "kube-root-ca.crt"},
			Data:       map[string]string{"ca.crt": string(plane.Admin().CAData)},
		},
	} {
		if err := plane.Client().Create(ctx, object); !apierrors.IsAlreadyExists(err) {
			require.NoError(t, err)
		}
	}

	dir := t.TempDir()
	node, err := newNode(dir)
	require.NoError(t, err)
	i := &installation{
		helm:  newHelm(t, system, "mesh-ca"),
		pods:  newWorkloads(client.ObjectKey{Namespace: system, Name: "signet"}, node),
		roots: filepath.Join(dir, "roots.pem"),
	}
	require.NoError(t, os.WriteFile(i.roots, root, 0o600))
	t.Cleanup(func() {
		i.pods.kill()
		logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
		assert.NoError(t, err)
		for _, log := range logs {
			text, err := os.ReadFile(log)
			assert.NoError(t, err)
			assert.NotContains(t, string(text), "DATA RACE")
			if t.Failed() {
				t.Logf("the end of %s:\n%s", filepath.Base(log), process.Tail(log, 30))
			}
		}
	})
	return i
}

// rollOut has the pods follow the StatefulSet, and wants that so many are started.
func (i *installation) rollOut(t *testing.T, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	started, err := i.pods.rollOut(ctx)
	require.NoError(t, err)
	require.Equal(t, want, started, "pods that were started")
}

func (i *installation) front(t *testing.T, port int32) *front {
	t.Helper()
	f, err := openFront(t.Context(), client.ObjectKey{Namespace: system, Name: "signet"}, port, i.pods)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, f.close()) })
	return f
}

func (i *installation) expose(t *testing.T) {
	t.Helper()
	i.api = i.front(t, 8443)
}

// startAgent runs a pilot-agent in a pod of namespace shop, with the roots that Signet has brought there, until it has its
// first certificate.
func (i *installation) startAgent(t *testing.T) *meshclient.Agent {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, plane.Namespace(ctx, "shop"))
	pod, err := plane.Workload(ctx, "shop", "cart", "node-2")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, plane.Client().Delete(context.WithoutCancel(t.Context()), pod)) })
	token, err := plane.Token(ctx, "shop", "cart", controlplane.TokenOptions{Pod: pod})
	require.NoError(t, err)
	roots := &corev1.ConfigMap{}
	patiently.Until(t, "roots in namespace shop", func(ctx context.Context) error {
		return plane.Client().Get(ctx, client.ObjectKey{Namespace: "shop", Name: "istio-ca-root-cert"}, roots)
	})
	agent, err := meshclient.StartAgent(context.WithoutCancel(ctx), meshclient.AgentConfig{
		Address: i.front(t, 443).address(), Roots: []byte(roots.Data["root-cert.pem"]), Token: token,
		ID: spiffeid.RequireFromString(identity), TTL: 24 * time.Hour,
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, agent.Stop()) })
	wait, cancel := context.WithTimeout(ctx, patiently.Timeout)
	defer cancel()
	require.NoError(t, agent.WaitRotations(wait, 0))
	return agent
}

// awaitLifetime waits until the agent holds a certificate of this lifetime.
func (i *installation) awaitLifetime(t *testing.T, agent *meshclient.Agent, want time.Duration) {
	t.Helper()
	patiently.Until(t, "the agent's certificate", func(context.Context) error {
		held, err := agent.Certificate()
		if err != nil {
			return err // it may be writing its files
		}
		if is := held.Leaf.NotAfter.Sub(held.Leaf.NotBefore); is != want {
			return fmt.Errorf("lives for %s, not %s", is, want)
		}
		return nil
	})
}

// tells asks as an operator does who has a kubeconfig: signetctl takes a token of the chart's reader.
func (i *installation) tells(t *testing.T) {
	t.Helper()
	_, port, err := net.SplitHostPort(i.api.address())
	require.NoError(t, err)
	patiently.Until(t, "the agent's certificate is told", func(ctx context.Context) error {
		out, err := i.signetctl(ctx, "certificates", "-n", "shop", "-o", "wide", "--server", "https://127.0.0.1:"+port)
		if err == nil && !strings.Contains(out, identity) {
			err = fmt.Errorf("it isn't among these:\n%s", out)
		}
		return err
	})
}

// serials are those that each replica says it has issued to the agent.
func (i *installation) serials(t *testing.T) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	for _, c := range i.pods.containers() {
		port, err := c.port(i.api.port.TargetPort)
		require.NoError(t, err)
		var list api.IssuanceList
		patiently.Until(t, "issuances of "+c.pod.Name, func(ctx context.Context) error {
			out, err := i.signetctl(ctx, "issuances", "-n", "shop", "-o", "json",
				"--server", "https://"+net.JoinHostPort(c.pod.Status.PodIP, strconv.Itoa(int(port))))
			if err != nil {
				return err
			}
			return json.Unmarshal([]byte(out), &list)
		})
		for _, item := range list.Items {
			if cert := item.Certificate; cert != nil && cert.Identity == identity && cert.Replica == c.pod.Name {
				all[c.pod.Name] = append(all[c.pod.Name], cert.Serial)
			}
		}
	}
	assert.NotEmpty(t, all)
	return all
}

// signetctl runs the operator's command as the administrator.
func (i *installation) signetctl(ctx context.Context, args ...string) (string, error) {
	binary, err := process.Find("signetctl", "SIGNET_CTL")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, binary, append(args, "--ca-file", i.roots)...)
	cmd.Env = []string{"KUBECONFIG=" + plane.Kubeconfig()}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("signetctl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// uninstall removes the release, and wants that what the mesh needs to go on is left, and nothing else.
func (i *installation) uninstall(t *testing.T) {
	t.Helper()
	owned := i.owned(t)
	assert.Contains(t, owned, "StatefulSet istio-system/signet")
	assert.Contains(t, owned, "ValidatingAdmissionPolicy /signet-istio-system")
	secrets := &corev1.SecretList{}
	require.NoError(t, plane.Client().List(t.Context(), secrets, client.InNamespace(system), client.MatchingLabels{"owner": "helm"}))
	assert.Len(t, secrets.Items, 4, "the release's revisions: installed, upgraded twice, rolled back")

	patiently.Until(t, "all requests are swept", func(ctx context.Context) error {
		var requests cmapi.CertificateRequestList
		if err := plane.Client().List(ctx, &requests, client.InNamespace(system), client.HasLabels{signer.RequestLabel}); err != nil {
			return err
		}
		if len(requests.Items) > 0 {
			return fmt.Errorf("%d CertificateRequests are left", len(requests.Items))
		}
		return nil
	})

	i.helm.uninstall(t)
	require.NoError(t, i.pods.endAll(t.Context()))
	assert.Empty(t, i.owned(t))
	require.NoError(t, plane.Client().List(t.Context(), secrets, client.InNamespace(system), client.MatchingLabels{"owner": "helm"}))
	assert.Empty(t, secrets.Items)

	for _, left := range []struct {
		object          client.Object
		namespace, name string
	}{
		// Running pods verify each other by these.
		{&corev1.ConfigMap{}, "shop", "istio-ca-root-cert"},
		{&certificatesv1.ClusterTrustBundle{}, "", "istio.io:istiod-ca:root-cert"},
		// A Signet that is installed again goes on with which anchors are trusted since when, and what was issued.
		{&corev1.ConfigMap{}, system, "signet-trust-anchors"},
		{&corev1.PersistentVolumeClaim{}, system, "ledger-signet-0"},
		{&corev1.PersistentVolumeClaim{}, system, "ledger-signet-1"},
	} {
		err := plane.Client().Get(t.Context(), client.ObjectKey{Namespace: left.namespace, Name: left.name}, left.object)
		assert.NoError(t, err, "%T %s/%s", left.object, left.namespace, left.name)
	}
	// These are of no use any more, and deleted by hand: the rights to give the lease back had gone before the pods, and
	// whoever comes next would wait until it ends.
	assert.NoError(t, plane.Client().Delete(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "signet-replicas"}}))
	assert.NoError(t, plane.Client().Delete(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "signet"}}))
}

// owned are all objects of the cluster that belong to the release.
func (i *installation) owned(t *testing.T) []string {
	t.Helper()
	config := plane.Admin()
	config.WarningHandler = rest.NoWarnings{} // of kinds that nobody should use any more
	all, err := discovery.NewDiscoveryClientForConfig(config)
	require.NoError(t, err)
	asking, err := dynamic.NewForConfig(config)
	require.NoError(t, err)
	lists, err := all.ServerPreferredResources()
	require.NoError(t, err)
	var found []string
	for _, list := range discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"list", "delete"}}, lists) {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		require.NoError(t, err)
		for _, resource := range list.APIResources {
			objects, err := asking.Resource(gv.WithResource(resource.Name)).List(t.Context(), metav1.ListOptions{})
			if apierrors.IsNotFound(err) {
				continue // only just defined, by another test
			}
			require.NoError(t, err, resource.Name)
			for _, object := range objects.Items {
				if object.GetAnnotations()["meta.helm.sh/release-name"] == i.helm.release {
					found = append(found, object.GetKind()+" "+client.ObjectKeyFromObject(&object).String())
				}
			}
		}
	}
	return found
}
