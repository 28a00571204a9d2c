package distribution

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/test/patiently"
)

const (
	roots   = "istio-ca-root-cert"
	rootKey = "root-cert.pem"
	crls    = "istio-ca-crl"
	crlKey  = "ca-crl.pem"

	home = "istio-system"
)

// rights are exactly those that the distributor needs.
const rights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-distribution}
rules:
  # Namespaces are selected by their labels.
  - apiGroups: [""]
    resources: [namespaces]
    verbs: [list, watch]
  # The trust documents, and no other ConfigMaps, are looked at and applied in all namespaces.
  - apiGroups: [""]
    resources: [configmaps]
    resourceNames: [istio-ca-root-cert, istio-ca-crl]
    verbs: [list, watch, create, patch]
  # The ClusterTrustBundle.
  - apiGroups: [certificates.k8s.io]
    resources: [clustertrustbundles]
    resourceNames: ["istio.io:istiod-ca:root-cert"]
    verbs: [list, watch, create, patch]
  - apiGroups: [certificates.k8s.io]
    resources: [signers]
    resourceNames: [istio.io/istiod-ca]
    verbs: [attest]
  # What can't be kept is said where it happens.
  - apiGroups: [events.k8s.io]
    resources: [events]
    verbs: [create, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-distribution}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-distribution}
subjects:
  - {kind: ServiceAccount, name: signet, namespace: istio-system}
`

// prepareAccounts makes the account with the rights, and one without any.
func prepareAccounts(ctx context.Context) error {
	return errors.Join(
		plane.Namespace(ctx, home),
		plane.ServiceAccount(ctx, home, "signet"),
		plane.ServiceAccount(ctx, home, "powerless"),
		plane.Apply(ctx, []byte(rights)),
	)
}

// documents are what a distributor is told to distribute.
type documents struct {
	mu      sync.Mutex
	list    []issuer.Document
	changed chan struct{}
}

func (d *documents) get() ([]issuer.Document, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.list, d.changed
}

func (d *documents) set(list ...issuer.Document) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.changed)
	d.list, d.changed = list, make(chan struct{})
}

// rig is a distributor for the namespaces of one test.
type rig struct {
	*issuer.Distributor
	label     string // that selects, with the value "on"
	documents *documents
	registry  *prometheus.Registry
	stop      func() // stops, and waits
}

// options are what differs between rigs.
type options struct {
	cfg     issuer.DistributionConfig
	account string
	wrap    func(*rest.Config)
	like    *rig // the same namespaces and documents as another one
}

// start starts a distributor of documents; it is stopped when the test ends, at the latest.
func start(t *testing.T, o options, list ...issuer.Document) *rig {
	t.Helper()
	r := &rig{label: "test-" + rand.String(6), documents: &documents{list: list, changed: make(chan struct{})}, registry: prometheus.NewRegistry()}
	if o.like != nil {
		r.label, r.documents = o.like.label, o.like.documents
	}
	if o.cfg.NamespaceSelector == "" {
		o.cfg.NamespaceSelector = r.label + "=on"
	}
	if o.cfg.ClusterTrustBundle == "" {
		o.cfg.ClusterTrustBundle = "off"
	}
	config := account(t, o.account)
	if o.wrap != nil {
		o.wrap(config)
	}
	ctx, cancel := context.WithCancel(t.Context())
	recorder, end := record(t, ctx, account(t, o.account))
	var err error
	r.Distributor, err = issuer.NewDistributor(o.cfg, config, r.documents.get, slog.New(slog.NewTextHandler(t.Output(), nil)), r.registry, recorder)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- r.Start(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			assert.NoError(t, err)
		case <-time.After(patiently.Timeout):
			t.Error("the distributor has no end")
		}
		end()
	})
	t.Cleanup(r.stop)
	return r
}

// account is how the account with the rights, or another one, talks to the API server.
func account(t *testing.T, name string) *rest.Config {
	t.Helper()
	if name == "" {
		name = "signet"
	}
	path, err := plane.KubeconfigAs(t.Context(), home, name)
	require.NoError(t, err)
	config, err := clientcmd.BuildConfigFromFlags("", path)
	require.NoError(t, err)
	return config
}

// record makes a recorder of Events that writes them to the API server.
func record(t *testing.T, ctx context.Context, config *rest.Config) (events.EventRecorder, func()) {
	t.Helper()
	clients, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: clients.EventsV1()})
	require.NoError(t, broadcaster.StartRecordingToSinkWithContext(ctx))
	return broadcaster.NewRecorder(plane.Client().Scheme(), "signet.dev/signet"), broadcaster.Shutdown
}

// namespace makes one that is selected, unless other labels are given.
func (r *rig) namespace(t *testing.T, labels ...map[string]string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "d-", Labels: map[string]string{r.label: "on"}}}
	if len(labels) > 0 {
		ns.Labels = labels[0]
	}
	require.NoError(t, plane.Client().Create(t.Context(), ns))
	return ns.Name
}

func (r *rig) namespaces(t *testing.T, n int) []string {
	t.Helper()
	var names []string
	for range n {
		names = append(names, r.namespace(t))
	}
	return names
}

// relabel changes the labels of a namespace; an empty value takes one away.
func relabel(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKeyFromObject(ns), ns))
	before := ns.DeepCopy()
	for key, value := range labels {
		if value == "" {
			delete(ns.Labels, key)
		} else {
			ns.Labels[key] = value
		}
	}
	require.NoError(t, plane.Client().Patch(t.Context(), ns, client.MergeFrom(before)))
}

// certificates is a document of roots; what stands in it doesn't matter here.
func certificates(text string) issuer.Document {
	return issuer.Document{ConfigMap: roots, Key: rootKey, Data: text}
}

func revocations(text string) issuer.Document {
	return issuer.Document{ConfigMap: crls, Key: crlKey, Data: text}
}

// read is the ConfigMap of that name, or nil.
func read(t *testing.T, namespace, name string) *corev1.ConfigMap {
	t.Helper()
	cm := &corev1.ConfigMap{}
	err := plane.Client().Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, cm)
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(t, err)
	return cm
}

// carries says whether a namespace carries a document as Istio wants it.
func carries(t *testing.T, namespace string, d issuer.Document) bool {
	t.Helper()
	cm := read(t, namespace, d.ConfigMap)
	return cm != nil && cm.Data[d.Key] == d.Data && cm.Labels["istio.io/config"] == "true"
}

// awaitCarried waits until all namespaces carry a document.
func awaitCarried(t *testing.T, d issuer.Document, namespaces ...string) {
	t.Helper()
	for _, ns := range namespaces {
		patiently.Holds(t, func() bool { return carries(t, ns, d) }, "%s in namespace %s", d.ConfigMap, ns)
	}
}

// awaitWhole waits until the distributor says that all carry the documents. It may not have seen a
// namespace that was made just before.
func (r *rig) awaitWhole(t *testing.T, list ...issuer.Document) {
	t.Helper()
	r.await(t, func(p issuer.Progress) bool {
		for _, d := range list {
			if !p.Carried(d) {
				return false
			}
		}
		return true
	})
}

// await waits until what the distributor says is as wanted, and returns it. It doesn't poll.
func (r *rig) await(t *testing.T, wanted func(issuer.Progress) bool) issuer.Progress {
	t.Helper()
	end := time.After(patiently.Timeout)
	for {
		p, changed := r.Watch()
		if wanted(p) {
			return p
		}
		select {
		case <-changed:
		case <-end:
			require.FailNow(t, "it never came", "%+v", p)
		}
	}
}

// awaitWithout waits until the first document lacks in exactly one namespace, which is failing.
func (r *rig) awaitWithout(t *testing.T, namespace string) issuer.Without {
	t.Helper()
	p := r.await(t, func(p issuer.Progress) bool {
		return p.Known && len(p.Documents) > 0 && len(p.Documents[0].Without) == 1 && p.Documents[0].Without[0].Failing && p.Documents[0].Without[0].Namespace == namespace
	})
	return p.Documents[0].Without[0]
}

// change changes a ConfigMap as another field manager.
func change(t *testing.T, namespace, name, manager string, with func(*corev1.ConfigMap)) {
	t.Helper()
	patiently.Holds(t, func() bool {
		cm := read(t, namespace, name)
		require.NotNil(t, cm)
		with(cm)
		err := plane.Client().Update(t.Context(), cm, client.FieldOwner(manager))
		if apierrors.IsConflict(err) {
			return false
		}
		require.NoError(t, err)
		return true
	}, "update of %s/%s", namespace, name)
}

func remove(t *testing.T, namespace, name string) {
	t.Helper()
	require.NoError(t, plane.Client().Delete(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}))
}

// awaitEvent waits for an Event about a ConfigMap.
func awaitEvent(t *testing.T, namespace, name, reason string) eventsv1.Event {
	t.Helper()
	var found eventsv1.Event
	patiently.Holds(t, func() bool {
		var list eventsv1.EventList
		require.NoError(t, plane.Client().List(t.Context(), &list, client.InNamespace(namespace)))
		for _, e := range list.Items {
			if e.Reason == reason && e.Regarding.Kind == "ConfigMap" && e.Regarding.Name == name {
				found = e
				return true
			}
		}
		return false
	}, "Event %s about %s/%s", reason, namespace, name)
	return found
}

// metric sums up the samples of a metric that have the labels.
func (r *rig) metric(t *testing.T, name string, labels map[string]string) float64 {
	t.Helper()
	families, err := r.registry.Gather()
	require.NoError(t, err)
	sum := 0.0
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			has := make(map[string]string)
			for _, l := range m.GetLabel() {
				has[l.GetName()] = l.GetValue()
			}
			both := maps.Clone(has)
			maps.Copy(both, labels)
			if maps.Equal(both, has) {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// writes is the number of writes with a result; all of them for "".
func (r *rig) writes(t *testing.T, result string) float64 {
	t.Helper()
	if result == "" {
		return r.metric(t, "distribution_writes_total", nil)
	}
	return r.metric(t, "distribution_writes_total", map[string]string{"result": result})
}

func (r *rig) inState(t *testing.T, state string) float64 {
	t.Helper()
	return r.metric(t, "distribution_namespaces", map[string]string{"state": state})
}

// settle waits until a marker has passed through the distributor: a namespace made after all that
// happened before has got its document.
func (r *rig) settle(t *testing.T, d issuer.Document) {
	t.Helper()
	awaitCarried(t, d, r.namespace(t))
}

// long is a text of n bytes.
func long(n int) string { return strings.Repeat("x", n) }
