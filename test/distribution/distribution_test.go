package distribution

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/test/patiently"
)

func TestR51_EveryNamespace(t *testing.T) {
	doc := certificates("every namespace\n")
	// Those that other tests have left are among them, some of which can't be written.
	r := start(t, options{cfg: issuer.DistributionConfig{NamespaceSelector: "!nothing"}}, doc)
	other := r.namespace(t)
	awaitCarried(t, doc, "default", "kube-system", home, other)
	p := r.await(t, func(p issuer.Progress) bool { return p.Known && p.Documents[0].Carrying >= 4 })
	for _, ns := range []string{"kube-public", "kube-node-lease"} {
		assert.Nil(t, read(t, ns, roots), "in namespace %s", ns)
	}
	assert.Equal(t, map[string]string{rootKey: doc.Data}, read(t, other, roots).Data)
	patiently.Holds(t, func() bool { return r.inState(t, "skipped") >= 2 }, "both are known, and left alone") // the API server makes them when it has started
	assert.Equal(t, issuer.BundleProgress{State: issuer.BundleOff}, p.ClusterTrustBundle)
	assert.Empty(t, p.Trouble)
}

// A pod of a new namespace hangs until the ConfigMap is there.
func TestR51_NewNamespace(t *testing.T) {
	doc := certificates("new namespace\n")
	r := start(t, options{}, doc)
	r.settle(t, doc)
	clients, err := kubernetes.NewForConfig(plane.Admin())
	require.NoError(t, err)
	seen, err := clients.CoreV1().ConfigMaps("").Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + roots})
	require.NoError(t, err)
	defer seen.Stop()
	var took []time.Duration
	for range 20 {
		name := r.namespace(t)
		created := time.Now()
		for e := range seen.ResultChan() {
			if cm, ok := e.Object.(*corev1.ConfigMap); ok && e.Type == watch.Added && cm.Namespace == name {
				break
			}
		}
		took = append(took, time.Since(created))
	}
	slices.Sort(took)
	t.Logf("from a namespace's creation to its ConfigMap: median %s, longest %s", took[len(took)/2], took[len(took)-1])
	r.awaitWhole(t, doc)
	// The last write is counted after it has been seen.
	patiently.Holds(t, func() bool { return r.writes(t, "") == r.writes(t, "ok") }, "that all writes went well")
	assert.Zero(t, r.inState(t, "pending")+r.inState(t, "failing"))
	assert.Zero(t, r.metric(t, "distribution_incomplete_since_timestamp_seconds", nil))
	assert.Equal(t, float64(r.Progress().Documents[0].Carrying), r.inState(t, "carrying"))
}

func TestR52_Drift(t *testing.T) {
	doc := certificates("drift\n")
	r := start(t, options{}, doc)
	for name, with := range map[string]func(*corev1.ConfigMap){
		"other data":      func(cm *corev1.ConfigMap) { cm.Data[rootKey] = "evil\n" },
		"key is gone":     func(cm *corev1.ConfigMap) { delete(cm.Data, rootKey) },
		"no data":         func(cm *corev1.ConfigMap) { cm.Data = nil },
		"label is gone":   func(cm *corev1.ConfigMap) { cm.Labels = nil },
		"label has value": func(cm *corev1.ConfigMap) { cm.Labels["istio.io/config"] = "false" },
		"as binary":       func(cm *corev1.ConfigMap) { cm.Data, cm.BinaryData = nil, map[string][]byte{rootKey: []byte("evil")} },
	} {
		t.Run(name, func(t *testing.T) {
			ns := r.namespace(t)
			awaitCarried(t, doc, ns)
			change(t, ns, roots, "other-ca", with)
			awaitCarried(t, doc, ns)
		})
	}
	t.Run("deleted", func(t *testing.T) {
		ns := r.namespace(t)
		awaitCarried(t, doc, ns)
		for range 2 {
			uid := read(t, ns, roots).UID
			remove(t, ns, roots)
			patiently.Holds(t, func() bool { cm := read(t, ns, roots); return cm != nil && cm.UID != uid }, "another ConfigMap in %s", ns)
			awaitCarried(t, doc, ns)
		}
	})
	t.Run("made by others first", func(t *testing.T) {
		ns := r.namespace(t, map[string]string{"later": "on"})
		require.NoError(t, plane.Client().Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: roots, Labels: map[string]string{"istio.io/config": "true", "mine": "yes"}},
			Data:       map[string]string{rootKey: "istiod's\n", "notes": "keep me"},
		}, client.FieldOwner("pilot-discovery")))
		relabel(t, ns, map[string]string{r.label: "on"})
		awaitCarried(t, doc, ns)
		cm := read(t, ns, roots)
		assert.Equal(t, "keep me", cm.Data["notes"], "what others have beside ours stays")
		assert.Equal(t, "yes", cm.Labels["mine"])
	})
	r.awaitWhole(t, doc)
	patiently.Holds(t, func() bool { return r.writes(t, "") == r.writes(t, "ok") }, "that all writes went well")
}

// fight changes the document back whenever it is written, until it is told to stop; it counts.
func fight(t *testing.T, namespace, manager string) (rounds *atomic.Int64, stop func()) {
	clients, err := kubernetes.NewForConfig(plane.Admin())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	rounds = new(atomic.Int64)
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil {
			seen, err := clients.CoreV1().ConfigMaps(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + roots})
			if err != nil {
				continue
			}
			for e := range seen.ResultChan() {
				cm, ok := e.Object.(*corev1.ConfigMap)
				if !ok || e.Type == watch.Deleted || cm.Data[rootKey] == "theirs\n" {
					continue
				}
				cm.Data[rootKey] = "theirs\n"
				if _, err := clients.CoreV1().ConfigMaps(namespace).Update(ctx, cm, metav1.UpdateOptions{FieldManager: manager}); err == nil {
					rounds.Add(1)
				}
			}
		}
	})
	stop = sync.OnceFunc(func() { cancel(); group.Wait() })
	t.Cleanup(stop)
	return rounds, stop
}

// writeTimes are when writes to one namespace began.
type writeTimes struct {
	namespace atomic.Value // its name

	mu sync.Mutex
	at []time.Time
}

// wrap has the distributor's writes noted.
func (w *writeTimes) wrap(config *rest.Config) {
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			if request.Method == http.MethodPatch && strings.HasSuffix(request.URL.Path, fmt.Sprintf("/namespaces/%v/configmaps/%s", w.namespace.Load(), roots)) {
				w.mu.Lock()
				w.at = append(w.at, time.Now())
				w.mu.Unlock()
			}
			return next.RoundTrip(request)
		})
	})
}

// pauses wants at least n writes, ever longer apart however fast they are undone, or tried again: 0, 0, 0, 1 s, 2 s, 4 s
// and so on lie between them. A slow machine only makes the pauses longer.
func (w *writeTimes) pauses(t *testing.T, n int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	require.GreaterOrEqual(t, len(w.at), n)
	var pauses []time.Duration
	for i := 1; i < len(w.at); i++ {
		pauses = append(pauses, w.at[i].Sub(w.at[i-1]).Round(10*time.Millisecond))
	}
	t.Logf("pauses between writes: %s", pauses)
	for i := 3; i < len(pauses); i++ {
		assert.GreaterOrEqual(t, pauses[i], time.Second<<(i-3)-10*time.Millisecond, "pause %d", i)
	}
}

func TestR52_SecondWriter(t *testing.T) {
	doc := certificates("second writer\n")
	var times writeTimes
	r := start(t, options{wrap: times.wrap}, doc)
	fought := r.namespace(t, map[string]string{r.label: "later"})
	times.namespace.Store(fought)
	relabel(t, fought, map[string]string{r.label: "on"})
	quiet := r.namespace(t)
	awaitCarried(t, doc, fought, quiet)
	rounds, stop := fight(t, fought, "other-ca")

	patiently.Holds(t, func() bool { return rounds.Load() >= 7 }, "seven rounds of the fight")
	times.pauses(t, 7)

	event := awaitEvent(t, fought, roots, "SecondWriter")
	assert.Contains(t, event.Note, "other-ca")
	assert.Equal(t, corev1.EventTypeWarning, event.Type)
	assert.Equal(t, read(t, fought, roots).UID, event.Regarding.UID)
	assert.Equal(t, 1.0, r.metric(t, "distribution_second_writers", map[string]string{"manager": "other-ca"}))
	p := r.await(t, func(p issuer.Progress) bool { return len(p.Documents[0].Without) == 1 })
	assert.Equal(t, fought, p.Documents[0].Without[0].Namespace)
	assert.Contains(t, p.Documents[0].Without[0].Reason, "other-ca undid it")
	assert.False(t, p.Carried(doc))

	// It costs others nothing, and ends when the other one ends.
	assert.True(t, carries(t, quiet, doc))
	change(t, quiet, roots, "somebody", func(cm *corev1.ConfigMap) { cm.Data[rootKey] = "once\n" })
	awaitCarried(t, doc, quiet, r.namespace(t))
	stop()
	awaitCarried(t, doc, fought)
	p = r.await(t, func(p issuer.Progress) bool { return p.Documents[0].Carrying == p.Documents[0].Selected })
	assert.Equal(t, 1, p.Documents[0].SecondWriters, "it may go on")
	assert.False(t, p.Carried(doc))
}

// Others who delete it leave no name.
func TestR52_SecondWriterWhoDeletes(t *testing.T) {
	doc := certificates("deleted again and again\n")
	r := start(t, options{}, doc)
	ns := r.namespace(t)
	for range 5 {
		awaitCarried(t, doc, ns)
		remove(t, ns, roots)
	}
	assert.Contains(t, awaitEvent(t, ns, roots, "SecondWriter").Note, "somebody who deletes it")
	awaitCarried(t, doc, ns)
}

// Two installations that don't agree, which both are field manager signet.
func TestR52_SecondSignet(t *testing.T) {
	mine, theirs := certificates("mine\n"), certificates("theirs\n")
	r := start(t, options{}, mine)
	ns := r.namespace(t)
	awaitCarried(t, mine, ns)
	other := start(t, options{cfg: issuer.DistributionConfig{NamespaceSelector: r.label + "=on"}}, theirs)
	assert.Contains(t, awaitEvent(t, ns, roots, "SecondWriter").Note, "another Signet")
	other.stop()
	awaitCarried(t, mine, ns)
}

// Where admission changes what is written, the object never changes, and there is nothing to watch.
func TestR52_ChangedByAdmission(t *testing.T) {
	doc := certificates("changed by admission\n")
	var times writeTimes
	r := start(t, options{wrap: times.wrap}, doc)
	ns := r.namespace(t, map[string]string{r.label: "later"})
	times.namespace.Store(ns)
	require.NoError(t, plane.Apply(t.Context(), []byte(`
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: changes-roots}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: `+ns+`}}
    resourceRules:
      - {apiGroups: [""], apiVersions: [v1], resources: [configmaps], operations: [CREATE, UPDATE]}
  mutations:
    - patchType: ApplyConfiguration
      applyConfiguration: {expression: 'Object{data: {"root-cert.pem": "by admission"}}'}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: changes-roots}
spec: {policyName: changes-roots}
`)))
	probe := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "probe"}}
	patiently.Holds(t, func() bool {
		require.NoError(t, client.IgnoreNotFound(plane.Client().Delete(t.Context(), probe.DeepCopy())))
		made := probe.DeepCopy()
		require.NoError(t, plane.Client().Create(t.Context(), made))
		return made.Data[rootKey] != ""
	}, "the policy in force")
	relabel(t, ns, map[string]string{r.label: "on"})
	assert.Contains(t, awaitEvent(t, ns, roots, "SecondWriter").Note, "admission webhook")
	p := r.await(t, func(p issuer.Progress) bool { return len(p.Documents[0].Without) == 1 })
	assert.False(t, p.Carried(doc))
	patiently.Holds(t, func() bool { return r.writes(t, "ok") >= 6 }, "some writes")
	times.pauses(t, 6)
}

func TestR52_Terminating(t *testing.T) {
	doc := certificates("terminating\n")
	r := start(t, options{}, doc)
	ns, stays := r.namespace(t), r.namespace(t)
	awaitCarried(t, doc, ns, stays)
	require.NoError(t, plane.Client().Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}))
	r.await(t, func(p issuer.Progress) bool { return p.Documents[0].Selected == 1 })
	remove(t, ns, roots)
	remove(t, stays, roots)
	awaitCarried(t, doc, stays)
	r.settle(t, doc)
	r.awaitWhole(t, doc)
	assert.Nil(t, read(t, ns, roots), "nothing is written to a namespace that is being deleted")
	patiently.Holds(t, func() bool { return r.writes(t, "") == r.writes(t, "ok") }, "that none was tried in vain")
	assert.GreaterOrEqual(t, r.inState(t, "skipped"), 1.0)

	// Gone, and there again: another namespace of the same name.
	finalize(t, ns)
	r.settle(t, doc)
	require.NoError(t, plane.Client().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{r.label: "on"}}}))
	awaitCarried(t, doc, ns)
	r.awaitWhole(t, doc)
}

// finalize makes a namespace that is being deleted go, as the namespace controller would.
func finalize(t *testing.T, name string) {
	t.Helper()
	clients, err := kubernetes.NewForConfig(plane.Admin())
	require.NoError(t, err)
	ns, err := clients.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	ns.Spec.Finalizers = nil
	_, err = clients.CoreV1().Namespaces().Finalize(t.Context(), ns, metav1.UpdateOptions{})
	require.NoError(t, err)
	patiently.Holds(t, func() bool {
		_, err := clients.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}, "the end of namespace %s", name)
}

// roundTripper is a function that is one.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The namespace ends between the decision to write and the write.
func TestR52_NotFoundAndTerminatingAtTheWrite(t *testing.T) {
	doc := certificates("too late\n")
	var ending, ended sync.Map // names of namespaces that end just before they are written to
	r := start(t, options{wrap: func(config *rest.Config) {
		config.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(request *http.Request) (*http.Response, error) {
				if parts := strings.Split(request.URL.Path, "/"); request.Method == http.MethodPatch && len(parts) > 4 {
					if _, ok := ending.LoadAndDelete("any"); ok {
						assert.NoError(t, plane.Client().Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: parts[4]}}))
					}
					if _, ok := ended.LoadAndDelete("any"); ok {
						assert.NoError(t, plane.Client().Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: parts[4]}}))
						finalize(t, parts[4])
					}
				}
				return next.RoundTrip(request)
			})
		})
	}}, doc)
	r.settle(t, doc)

	ending.Store("any", true)
	r.namespace(t)
	patiently.Holds(t, func() bool { return r.writes(t, "terminating") >= 1 }, "a write to a namespace that is being deleted")
	ended.Store("any", true)
	r.namespace(t)
	patiently.Holds(t, func() bool { return r.writes(t, "not_found") >= 1 }, "a write to a namespace that is gone")
	r.awaitWhole(t, doc)
	r.settle(t, doc)
	r.awaitWhole(t, doc)
	assert.Equal(t, 1.0, r.writes(t, "terminating"))
	// It is tried once, unless the watch is more than a second behind.
	tried := r.writes(t, "not_found")
	r.settle(t, doc)
	r.awaitWhole(t, doc)
	assert.Equal(t, tried, r.writes(t, "not_found"))
	assert.Zero(t, r.inState(t, "failing")+r.inState(t, "pending"))
}

func TestR52_ForbiddenInOneNamespace(t *testing.T) {
	doc := certificates("forbidden\n")
	r := start(t, options{}, doc)
	closed := r.namespace(t, map[string]string{r.label: "later"})
	require.NoError(t, plane.Apply(t.Context(), []byte(`
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-configmaps}
spec:
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: `+closed+`}}
    resourceRules:
      - {apiGroups: [""], apiVersions: [v1], resources: [configmaps], operations: [CREATE, UPDATE]}
  validations: [{expression: "false", message: nothing may be written here, reason: Forbidden}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-configmaps}
spec: {policyName: no-configmaps, validationActions: [Deny]}
`)))
	patiently.Holds(t, func() bool {
		err := plane.Client().Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: closed, GenerateName: "probe-"}})
		return err != nil
	}, "the policy in force")

	began := time.Now()
	relabel(t, closed, map[string]string{r.label: "on"})
	lacks := r.awaitWithout(t, closed)
	assert.Contains(t, lacks.Reason, "nothing may be written here")
	assert.Contains(t, awaitEvent(t, closed, roots, "NotDistributed").Note, "nothing may be written here")
	assert.Equal(t, 1.0, r.inState(t, "failing"))
	assert.NotZero(t, r.metric(t, "distribution_incomplete_since_timestamp_seconds", nil))
	r.settle(t, doc)
	tries := r.writes(t, "forbidden")
	most := 1.0
	for at := 5 * time.Second; at <= time.Since(began); at = 2*at + 5*time.Second { // after 5 s, 10 s, 20 s and so on
		most++
	}
	assert.LessOrEqual(t, tries, most, "it is tried again slowly")

	require.NoError(t, plane.Client().DeleteAllOf(t.Context(), bindingKind()))
	awaitCarried(t, doc, closed)
	r.awaitWhole(t, doc)
	assert.Zero(t, r.inState(t, "failing"))
}

func TestR52_ForbiddenEverywhere(t *testing.T) {
	doc := certificates("no rights\n")
	r := start(t, options{account: "powerless"}, doc)
	ns := r.namespace(t)
	p := r.await(t, func(p issuer.Progress) bool { return p.Trouble != "" })
	assert.False(t, p.Known)
	assert.False(t, p.Carried(doc))
	assert.Contains(t, p.Trouble, "forbidden")
	assert.Nil(t, read(t, ns, roots))

	t.Cleanup(func() {
		assert.NoError(t, plane.Client().Delete(context.Background(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "powerless"}}))
	})
	require.NoError(t, plane.Apply(t.Context(), []byte(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: powerless}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-distribution}
subjects: [{kind: ServiceAccount, name: powerless, namespace: istio-system}]
`)))
	awaitCarried(t, doc, ns)
	r.awaitWhole(t, doc)
	r.await(t, func(p issuer.Progress) bool { return p.Trouble == "" })
}

// The rights that are granted by name are good for nothing else.
func TestRightsAreNarrow(t *testing.T) {
	clients, err := kubernetes.NewForConfig(account(t, "signet"))
	require.NoError(t, err)
	ns := plane.NewNamespace(t, "narrow")
	named := metav1.ListOptions{FieldSelector: "metadata.name=" + roots}
	patiently.Holds(t, func() bool { _, err := clients.CoreV1().ConfigMaps("").List(t.Context(), named); return err == nil }, "the rights in force")
	for name, try := range map[string]func() error{
		"list all": func() error {
			_, err := clients.CoreV1().ConfigMaps("").List(t.Context(), metav1.ListOptions{})
			return err
		},
		"list another": func() error {
			_, err := clients.CoreV1().ConfigMaps("").List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=other"})
			return err
		},
		"get": func() error {
			_, err := clients.CoreV1().ConfigMaps(ns).Get(t.Context(), roots, metav1.GetOptions{})
			return err
		},
		"create another": func() error {
			_, err := clients.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, metav1.CreateOptions{})
			return err
		},
		"apply another": func() error {
			_, err := clients.CoreV1().ConfigMaps(ns).Patch(t.Context(), "other", "application/apply-patch+yaml", []byte(`{"apiVersion":"v1","kind":"ConfigMap"}`), metav1.PatchOptions{FieldManager: "x"})
			return err
		},
		"delete": func() error {
			return clients.CoreV1().ConfigMaps(ns).Delete(t.Context(), roots, metav1.DeleteOptions{})
		},
	} {
		assert.True(t, apierrors.IsForbidden(try()), name)
	}
}

func TestR52_Selection(t *testing.T) {
	doc := certificates("selection\n")
	r := start(t, options{}, doc)
	excluded := r.namespace(t)
	awaitCarried(t, doc, excluded)
	r.stop()
	before := read(t, excluded, roots)
	r = start(t, options{like: r, cfg: issuer.DistributionConfig{ExcludeNamespaces: []string{excluded}}})
	in, out := r.namespace(t), r.namespace(t, map[string]string{r.label: "off"})
	awaitCarried(t, doc, in)

	// One comes, the other leaves and keeps what it has.
	relabel(t, out, map[string]string{r.label: "on"})
	awaitCarried(t, doc, out)
	relabel(t, in, map[string]string{r.label: ""})
	r.await(t, func(p issuer.Progress) bool { return p.Known && p.Documents[0].Selected == 1 })
	change(t, in, roots, "owner", func(cm *corev1.ConfigMap) { cm.Data[rootKey] = "my own\n" })
	newer := certificates("selection, newer\n")
	r.documents.set(newer)
	r.awaitWhole(t, newer)
	awaitCarried(t, newer, out)
	assert.Equal(t, "my own\n", read(t, in, roots).Data[rootKey])
	if after := read(t, excluded, roots); assert.NotNil(t, after) {
		assert.Equal(t, before.Data, after.Data)
	}

	// Back again.
	relabel(t, in, map[string]string{r.label: "on"})
	awaitCarried(t, newer, in)
	r.awaitWhole(t, newer)
}

func TestDocumentsChange(t *testing.T) {
	r := start(t, options{})
	all := r.namespaces(t, 20)
	p := r.Progress()
	assert.False(t, p.Known, "documents aren't known yet")
	first := certificates("first\n")
	assert.False(t, p.Carried(first))
	r.documents.set(first)
	r.awaitWhole(t, first)
	awaitCarried(t, first, all...)

	second, crl := certificates("second\n"), revocations("crl\n")
	r.documents.set(second, crl)
	r.awaitWhole(t, second, crl)
	awaitCarried(t, second, all...)
	awaitCarried(t, crl, all...)
	p = r.Progress()
	assert.Len(t, p.Documents, 2)
	assert.False(t, p.Carried(first))
	assert.Equal(t, second.Hash(), p.Documents[1].Hash)
	// The last write is counted after it has been seen.
	patiently.Holds(t, func() bool { return r.writes(t, "ok") >= 60 }, "all writes")
	assert.Equal(t, 60.0, r.writes(t, "ok"), "each is written once")

	// One that is no longer named is left as it is.
	r.documents.set(second)
	r.await(t, func(p issuer.Progress) bool { return len(p.Documents) == 1 })
	change(t, all[0], crls, "owner", func(cm *corev1.ConfigMap) { cm.Data[crlKey] = "my own\n" })
	remove(t, all[1], roots)
	awaitCarried(t, second, all[1])
	r.settle(t, second)
	assert.Equal(t, "my own\n", read(t, all[0], crls).Data[crlKey])
	assert.True(t, carries(t, all[1], crl))

	// And kept again when it is.
	r.documents.set(second, crl)
	r.awaitWhole(t, second, crl)
	awaitCarried(t, crl, all...)

	// Nothing is known any more: nothing is written.
	r.documents.set()
	r.await(t, func(p issuer.Progress) bool { return len(p.Documents) == 0 && !p.Known })
	remove(t, all[2], roots)
	last := certificates("third\n")
	r.documents.set(last)
	r.awaitWhole(t, last)
	awaitCarried(t, last, all...)
}

func TestTooLarge(t *testing.T) {
	good := certificates("good\n")
	r := start(t, options{}, good)
	ns := r.namespace(t)
	r.awaitWhole(t, good)
	for _, bad := range []issuer.Document{certificates(long(1<<20 + 1)), certificates(""), certificates("\xff")} {
		r.documents.set(bad)
		p := r.await(t, func(p issuer.Progress) bool { return p.Documents[0].Refused != "" })
		assert.False(t, p.Carried(bad))
		assert.False(t, p.Carried(good), "it isn't what is wanted")
		assert.Equal(t, good.Hash(), p.Documents[0].Hash, "the last good one is still kept")
		assert.Equal(t, 1.0, r.metric(t, "distribution_documents_refused", nil))
		drifts := r.namespace(t)
		awaitCarried(t, good, drifts)
		remove(t, drifts, roots)
		awaitCarried(t, good, drifts)
		r.documents.set(good)
		r.awaitWhole(t, good)
		assert.Zero(t, r.metric(t, "distribution_documents_refused", nil))
	}
	largest := certificates(long(1 << 20))
	r.documents.set(largest)
	r.awaitWhole(t, largest)
	awaitCarried(t, largest, ns)
}

func TestImmutable(t *testing.T) {
	doc := certificates("immutable\n")
	r := start(t, options{}, doc)
	ns := r.namespace(t, map[string]string{r.label: "later"})
	require.NoError(t, plane.Client().Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: roots}, Data: map[string]string{rootKey: "theirs\n"}, Immutable: new(true),
	}))
	relabel(t, ns, map[string]string{r.label: "on"})
	assert.Contains(t, r.awaitWithout(t, ns).Reason, "immutable")
	assert.Contains(t, awaitEvent(t, ns, roots, "NotDistributed").Note, "immutable")
	r.await(t, func(p issuer.Progress) bool {
		return len(p.Documents[0].Without) == 1 && strings.Contains(p.Documents[0].Without[0].Reason, "it has to be deleted")
	})
	tried := r.writes(t, "invalid")
	r.settle(t, doc)
	assert.LessOrEqual(t, r.writes(t, "invalid"), tried+1, "there is no use in trying once it is seen, but one may be under way")
	remove(t, ns, roots)
	awaitCarried(t, doc, ns)
	r.awaitWhole(t, doc)

	// One that holds the right text only lacks its label.
	right := r.namespace(t, map[string]string{r.label: "later"})
	require.NoError(t, plane.Client().Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: right, Name: roots}, Data: map[string]string{rootKey: doc.Data}, Immutable: new(true),
	}))
	relabel(t, right, map[string]string{r.label: "on"})
	awaitCarried(t, doc, right)
}

// What others put beside ours can make the object too large.
func TestInvalidForOthersData(t *testing.T) {
	doc := certificates(long(1000))
	r := start(t, options{}, doc)
	ns := r.namespace(t, map[string]string{r.label: "later"})
	require.NoError(t, plane.Client().Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: roots}, Data: map[string]string{"ballast": long(1<<20 - 500)},
	}))
	relabel(t, ns, map[string]string{r.label: "on"})
	assert.Contains(t, r.awaitWithout(t, ns).Reason, "Too long")
	change(t, ns, roots, "owner", func(cm *corev1.ConfigMap) { delete(cm.Data, "ballast") })
	awaitCarried(t, doc, ns)
}

func TestLeaderChange(t *testing.T) {
	doc := certificates("leader\n")
	first := start(t, options{}, doc)
	all := first.namespaces(t, 10)
	awaitCarried(t, doc, all...)
	first.stop()
	assert.False(t, first.Progress().Known, "who doesn't run knows nothing")
	assert.Zero(t, first.inState(t, "carrying"))

	// Nobody runs.
	change(t, all[0], roots, "other-ca", func(cm *corev1.ConfigMap) { cm.Data[rootKey] = "evil\n" })
	remove(t, all[1], roots)
	all = append(all, first.namespace(t))

	second := start(t, options{like: first})
	second.awaitWhole(t, doc)
	awaitCarried(t, doc, all...)
	// The last write is counted after it has been seen.
	patiently.Holds(t, func() bool { return second.writes(t, "") >= 3 }, "all writes")
	assert.Equal(t, 3.0, second.writes(t, ""), "only what is wrong is written")

	// The old one comes back beside the new one, with the same documents: nobody has anything to do.
	third := start(t, options{like: first})
	third.awaitWhole(t, doc)
	third.settle(t, doc)
	assert.LessOrEqual(t, third.writes(t, ""), 1.0)
	second.stop()
	remove(t, all[2], roots)
	awaitCarried(t, doc, all[2])
}

func TestOutage(t *testing.T) {
	doc := certificates("outage\n")
	r := start(t, options{}, doc)
	all := r.namespaces(t, 50)
	awaitCarried(t, doc, all...)

	t.Run("stopped", func(t *testing.T) {
		require.NoError(t, plane.APIServer().Stop())
		started := sync.OnceFunc(func() { require.NoError(t, plane.APIServer().Start(context.Background())) })
		t.Cleanup(started)
		newer := certificates("outage, newer\n")
		r.documents.set(newer)
		patiently.Holds(t, func() bool { return r.writes(t, "unavailable") >= 16 }, "writes that fail")
		p := r.Progress()
		assert.False(t, p.Carried(newer))
		assert.Equal(t, 0, p.Documents[0].Carrying)
		tried := r.writes(t, "unavailable")
		time.Sleep(2 * time.Second)
		assert.Less(t, r.writes(t, "unavailable")-tried, 200.0, "they pause")
		started()
		r.awaitWhole(t, newer)
		awaitCarried(t, newer, append(all, r.namespace(t))...)
	})
	t.Run("paused", func(t *testing.T) {
		require.NoError(t, plane.APIServer().Pause())
		resumed := sync.OnceFunc(func() { require.NoError(t, plane.APIServer().Resume()) })
		t.Cleanup(resumed)
		newest := certificates("outage, newest\n")
		r.documents.set(newest)
		r.await(t, func(p issuer.Progress) bool { return p.Documents[0].Hash == newest.Hash() && !p.Carried(newest) })
		time.Sleep(3 * time.Second)
		resumed()
		r.awaitWhole(t, newest)
		awaitCarried(t, newest, all...)
	})
	t.Run("stops meanwhile", func(t *testing.T) {
		require.NoError(t, plane.APIServer().Pause())
		resumed := sync.OnceFunc(func() { require.NoError(t, plane.APIServer().Resume()) })
		t.Cleanup(resumed)
		r.documents.set(certificates("never written\n"))
		r.stop() // fails the test when it doesn't end
	})
}

// While thousands of writes wait for a new document, a new namespace doesn't.
func TestNewNamespaceGoesAhead(t *testing.T) {
	doc := certificates("before\n")
	r := start(t, options{}, doc)
	all := r.namespaces(t, 300)
	awaitCarried(t, doc, all...)
	newer := certificates("after\n")
	r.documents.set(newer)
	ns := r.namespace(t)
	began := time.Now()
	awaitCarried(t, newer, ns)
	p := r.Progress()
	t.Logf("the new namespace waited %s, when %d of %d others carried the new document", time.Since(began), p.Documents[0].Carrying, len(all))
	r.awaitWhole(t, newer)
}

func TestDisabled(t *testing.T) {
	doc := certificates("disabled\n")
	r := start(t, options{cfg: issuer.DistributionConfig{Disabled: true}}, doc)
	ns := r.namespace(t)
	p := r.Progress()
	assert.True(t, p.Disabled)
	assert.False(t, p.Carried(doc))
	r.stop()
	assert.Nil(t, read(t, ns, roots))
}

// An API server that can't stream lists is asked for them.
func TestServerWithoutStreamedLists(t *testing.T) {
	doc := certificates("older server\n")
	var refused, lists atomic.Int64
	r := start(t, options{wrap: func(config *rest.Config) {
		config.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(request *http.Request) (*http.Response, error) {
				query := request.URL.Query()
				if query.Get("sendInitialEvents") == "true" {
					refused.Add(1)
					query.Set("resourceVersionMatch", "nonsense") // which every server refuses
					request = request.Clone(request.Context())
					request.URL.RawQuery = query.Encode()
				} else if request.Method == http.MethodGet && query.Get("watch") == "" && query.Get("fieldSelector") == "metadata.name="+roots {
					lists.Add(1)
				}
				return next.RoundTrip(request)
			})
		})
	}}, doc)
	ns := r.namespace(t)
	r.awaitWhole(t, doc)
	awaitCarried(t, doc, ns, r.namespace(t))
	assert.NotZero(t, refused.Load())
	assert.NotZero(t, lists.Load())
	remove(t, ns, roots)
	awaitCarried(t, doc, ns)
}
