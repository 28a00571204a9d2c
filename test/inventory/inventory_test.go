package inventory

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
)

func keyOf(o client.Object) client.ObjectKey { return client.ObjectKeyFromObject(o) }

// pod creates a pod of a data plane that runs.
func pod(t *testing.T, namespace, name, account string, change ...func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}, Annotations: map[string]string{}},
		Spec: corev1.PodSpec{
			ServiceAccountName: account, NodeName: "node-a", TerminationGracePeriodSeconds: new(int64),
			Containers: []corev1.Container{{Name: "app", Image: "example.invalid/app"}},
		},
	}
	for _, f := range change {
		f(p)
	}
	require.NoError(t, plane.ServiceAccount(t.Context(), namespace, account))
	require.NoError(t, plane.Client().Create(t.Context(), p))
	ips.Lock()
	ips.n++
	ip := fmt.Sprintf("10.9.%d.%d", ips.n/200, 10+ips.n%200)
	ips.Unlock()
	started := metav1.NewTime(time.Now().Add(-10 * time.Minute)) // too long ago to be young
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, StartTime: &started}
	require.NoError(t, plane.Client().Status().Update(t.Context(), p))
	return p
}

var ips struct {
	sync.Mutex
	n int
}

func sidecar(p *corev1.Pod) {
	p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "istio-proxy", Image: "example.invalid/proxy"})
}

func nativeSidecar(p *corev1.Pod) {
	p.Spec.InitContainers = []corev1.Container{{Name: "istio-proxy", Image: "example.invalid/proxy", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}}
}

func annotated(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations[key] = value }
}

func labelled(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels[key] = value }
}

func TestPodsOfEachClass(t *testing.T) {
	r := start(t, "signet").synced()
	ns := plane.NewNamespace(t, "classes")
	for _, c := range []struct {
		name    string
		changes []func(*corev1.Pod)
		want    api.DataPlane
	}{
		{"ambient", []func(*corev1.Pod){annotated("ambient.istio.io/redirection", "enabled")}, api.Ambient},
		{"gateway", []func(*corev1.Pod){sidecar, labelled("istio", "ingressgateway")}, api.Gateway},
		{"managed", []func(*corev1.Pod){sidecar, labelled("gateway.istio.io/managed", "istio.io-gateway-controller")}, api.Gateway},
		{"native", []func(*corev1.Pod){nativeSidecar}, api.Sidecar},
		{"none", nil, api.NoMesh},
		{"host", []func(*corev1.Pod){func(p *corev1.Pod) { p.Spec.HostNetwork = true }}, api.NoMesh},
		{"pending", []func(*corev1.Pod){labelled("istio.io/dataplane-mode", "ambient")}, api.AmbientPending},
		{"sidecar", []func(*corev1.Pod){sidecar}, api.Sidecar},
		{"status", []func(*corev1.Pod){annotated("sidecar.istio.io/status", "{}")}, api.Sidecar},
		{"waypoint", []func(*corev1.Pod){sidecar, labelled("gateway.istio.io/managed", "istio.io-mesh-controller")}, api.Waypoint},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := r.in(t)
			p := pod(t, ns, c.name, "sa-"+c.name, c.changes...)
			service(t, ns, c.name)
			slice(t, ns, c.name+"-1", c.name, endpoint(p))
			needs := c.want != api.NoMesh && c.want != api.AmbientPending
			r.eventually(ns, c.name, func(t *assert.CollectT, s *api.Service) {
				require.Len(t, s.Pods, 1)
				assert.Equal(t, c.want, s.Pods[0].DataPlane)
				assert.Equal(t, []string{identityOf(ns, "sa-"+c.name)}, s.Identities)
				assert.Equal(t, needs, s.Summary.Missing == 1)
				assert.Equal(t, c.want == api.NoMesh, s.Summary.NoMesh == 1)
			})
			if !needs {
				return
			}
			leaf := leafOf(p)
			if c.want == api.Ambient {
				leaf = leafOf(p, byProxy)
			}
			r.Issued(leaf)
			s, err := r.Service(t.Context(), ns, c.name)
			require.NoError(t, err)
			assert.Equal(t, 1, s.Summary.Fresh)
			assert.Empty(t, s.Problems)
			require.Len(t, s.Pods[0].Certificates, 1)
			assert.Equal(t, leaf.SHA256, s.Pods[0].Certificates[0].SHA256)
			assert.Equal(t, api.Live, s.Pods[0].Certificates[0].Standing)
		})
	}
}

func TestAPodIsDeletedAndMadeAnew(t *testing.T) {
	r := start(t, "signet").synced()
	ns := plane.NewNamespace(t, "anew")
	first := pod(t, ns, "db-0", "db", sidecar)
	service(t, ns, "db")
	slice(t, ns, "db-1", "db", endpoint(first))
	old := leafOf(first, early)
	r.Issued(old)
	r.eventually(ns, "db", func(t *assert.CollectT, s *api.Service) { assert.Equal(t, 1, s.Summary.Fresh) })

	require.NoError(t, plane.Client().Delete(t.Context(), first))
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Equal(c, api.Orphaned, r.standing(c, old)) }, patience, glance)
	r.eventually(ns, "db", func(t *assert.CollectT, s *api.Service) { assert.Zero(t, s.Summary.Total) })

	second := pod(t, ns, "db-0", "db", sidecar)
	require.NotEqual(t, first.UID, second.UID)
	slice(t, ns, "db-1", "db", endpoint(second))
	r.eventually(ns, "db", func(t *assert.CollectT, s *api.Service) {
		require.Len(t, s.Pods, 1)
		assert.Equal(t, string(second.UID), s.Pods[0].UID)
		assert.Empty(t, s.Pods[0].Certificates, "what the first held isn't the second's")
		assert.Equal(t, 1, s.Summary.Missing)
	})
	renewed := leafOf(second)
	r.Issued(renewed)
	r.eventually(ns, "db", func(t *assert.CollectT, s *api.Service) { assert.Equal(t, 1, s.Summary.Fresh) })
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		assert.Equal(c, api.Live, r.standing(c, renewed))
		assert.Equal(c, api.Orphaned, r.standing(c, old))
	}, patience, glance)

	// One that has ended holds nothing either.
	second.Status.Phase = corev1.PodFailed
	require.NoError(t, plane.Client().Status().Update(t.Context(), second))
	r.eventually(ns, "db", func(t *assert.CollectT, s *api.Service) { assert.Zero(t, s.Summary.Total) })
}

func TestTheSelectorOfAServiceChanges(t *testing.T) {
	r := start(t, "signet").synced()
	ns := plane.NewNamespace(t, "selector")
	blue, green := pod(t, ns, "blue", "blue", sidecar), pod(t, ns, "green", "green", sidecar)
	service(t, ns, "web")
	identities := func(want ...string) func(*assert.CollectT, *api.Service) {
		return func(t *assert.CollectT, s *api.Service) { assert.Equal(t, want, s.Identities) }
	}
	slice(t, ns, "web-1", "web", endpoint(blue))
	r.eventually(ns, "web", identities(identityOf(ns, "blue")))
	slice(t, ns, "web-1", "web", endpoint(blue), endpoint(green))
	r.eventually(ns, "web", identities(identityOf(ns, "blue"), identityOf(ns, "green")))
	slice(t, ns, "web-1", "web", endpoint(green))
	r.eventually(ns, "web", identities(identityOf(ns, "green")))

	id, err := r.Identity(t.Context(), identityOf(ns, "green"))
	require.NoError(t, err)
	assert.Equal(t, []api.ObjectRef{{Namespace: ns, Name: "web"}}, id.Services)
	id, err = r.Identity(t.Context(), identityOf(ns, "blue"))
	require.NoError(t, err)
	assert.Empty(t, id.Services)

	require.NoError(t, plane.Client().Delete(t.Context(), &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "web-1"}}))
	r.eventually(ns, "web", func(t *assert.CollectT, s *api.Service) { assert.Zero(t, s.Summary.Total) })
	require.NoError(t, plane.Client().Delete(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "web"}}))
	require.Eventually(t, func() bool { _, err := r.Service(t.Context(), ns, "web"); return err != nil }, patience, glance)
	_, err = r.Service(t.Context(), ns, "web")
	assert.ErrorIs(t, err, api.ErrNotFound)
}

// TestAnEndpointSliceNamesForeignAddresses: whoever may write EndpointSlices in one namespace sees nothing of another's.
func TestAnEndpointSliceNamesForeignAddresses(t *testing.T) {
	r := start(t, "signet").synced()
	mine, other := plane.NewNamespace(t, "mine"), plane.NewNamespace(t, "other")
	own, bank := pod(t, mine, "web", "web", sidecar), pod(t, other, "bank", "bank", sidecar)
	r.Issued(leafOf(own))
	r.Issued(leafOf(bank))
	service(t, mine, "web")
	slice(t, mine, "web-1", "web", endpoint(own))

	foreign := endpoint(bank)
	asMine := endpoint(bank)
	asMine.TargetRef.Namespace = mine
	wrongUID := endpoint(own)
	wrongUID.TargetRef.UID = bank.UID
	elsewhere := endpoint(own)
	elsewhere.Addresses = []string{bank.Status.PodIP}
	bare := discoveryv1.Endpoint{Addresses: []string{bank.Status.PodIP}}
	for n, e := range []discoveryv1.Endpoint{foreign, asMine, wrongUID, elsewhere, bare} {
		name := []string{"foreign", "as-mine", "wrong-uid", "elsewhere", "bare"}[n]
		service(t, mine, name)
		slice(t, mine, name+"-1", name, e)
	}
	// A slice that comes after them shows that they have been seen.
	service(t, mine, "last")
	slice(t, mine, "last-1", "last", endpoint(own))
	r.eventually(mine, "last", func(t *assert.CollectT, s *api.Service) { assert.Len(t, s.Pods, 1) })
	for _, name := range []string{"foreign", "as-mine", "wrong-uid", "elsewhere", "bare"} {
		s, err := r.Service(t.Context(), mine, name)
		require.NoError(t, err)
		assert.Empty(t, s.Pods, name)
		assert.Empty(t, s.Identities, name)
		assert.Zero(t, s.Summary.Total, name)
	}
	id, err := r.Identity(t.Context(), identityOf(other, "bank"))
	require.NoError(t, err)
	assert.Len(t, id.Live, 1)
	assert.Empty(t, id.Services)
}

func TestAServiceAccountIsDeleted(t *testing.T) {
	r := start(t, "signet").synced()
	ns := plane.NewNamespace(t, "account")
	p := pod(t, ns, "a", "vm", sidecar)
	service(t, ns, "a")
	slice(t, ns, "a-1", "a", endpoint(p))
	time.Sleep(time.Second) // what is issued later than an account is made is its own
	ofPod, ofVM := leafOf(p), leafOf(p, func(c *api.Certificate) { c.Holder = api.Holder{Cluster: "Kubernetes", Address: "192.0.2.7"} })
	r.Issued(ofPod)
	r.Issued(ofVM)
	both := func(pod, vm api.Standing) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			assert.Equal(c, pod, r.standing(c, ofPod))
			assert.Equal(c, vm, r.standing(c, ofVM))
		}, patience, glance)
	}
	both(api.Live, api.Live)
	require.NoError(t, plane.Client().Delete(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "vm"}}))
	both(api.Live, api.Orphaned)
	s, err := r.Service(t.Context(), ns, "a")
	require.NoError(t, err)
	assert.Equal(t, 1, s.Summary.Fresh, "the pod runs on")
}

func TestANamespaceAsksForAmbient(t *testing.T) {
	r := start(t, "signet").synced()
	ns := plane.NewNamespace(t, "ambient")
	p := pod(t, ns, "a", "a")
	service(t, ns, "a")
	slice(t, ns, "a-1", "a", endpoint(p))
	is := func(want api.DataPlane) {
		t.Helper()
		r.eventually(ns, "a", func(t *assert.CollectT, s *api.Service) {
			require.Len(t, s.Pods, 1)
			assert.Equal(t, want, s.Pods[0].DataPlane)
		})
	}
	is(api.NoMesh)
	n := &corev1.Namespace{}
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Name: ns}, n))
	n.Labels = map[string]string{"istio.io/dataplane-mode": "ambient"}
	require.NoError(t, plane.Client().Update(t.Context(), n))
	is(api.AmbientPending)
	require.NoError(t, plane.Client().Get(t.Context(), keyOf(p), p))
	p.Annotations = map[string]string{"ambient.istio.io/redirection": "enabled"}
	require.NoError(t, plane.Client().Update(t.Context(), p))
	is(api.Ambient)
	r.Issued(leafOf(p, byProxy))
	r.eventually(ns, "a", func(t *assert.CollectT, s *api.Service) { assert.Equal(t, 1, s.Summary.Fresh) })
}

// TestAfterAStart: what was issued before is known once it is loaded, and pods that are gone by then are gone.
func TestAfterAStart(t *testing.T) {
	ns := plane.NewNamespace(t, "before")
	here, gone := pod(t, ns, "here", "sa", sidecar), pod(t, ns, "gone", "sa", sidecar)
	service(t, ns, "s")
	slice(t, ns, "s-1", "s", endpoint(here), endpoint(gone))
	require.NoError(t, plane.Client().Delete(t.Context(), gone))
	a, b := leafOf(here, early), leafOf(gone, early)
	r := start(t, "signet", a, b).synced()
	r.eventually(ns, "s", func(t *assert.CollectT, s *api.Service) {
		assert.Equal(t, 1, s.Summary.Total)
		assert.Equal(t, 1, s.Summary.Fresh)
	})
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		assert.Equal(c, api.Live, r.standing(c, a))
		assert.Equal(c, api.Orphaned, r.standing(c, b))
	}, patience, glance)
}

// TestChangesAreTold: whoever waits is told of what the cluster does.
func TestChangesAreTold(t *testing.T) {
	r := start(t, "signet").synced()
	ns := plane.NewNamespace(t, "told")
	for {
		changed := r.Changed()
		if _, err := r.Service(t.Context(), ns, "s"); err == nil {
			return
		}
		if service := (&corev1.Service{}); plane.Client().Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "s"}, service) != nil {
			require.NoError(t, plane.Client().Create(t.Context(), &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "s"}, Spec: corev1.ServiceSpec{ClusterIP: "None"},
			}))
		}
		select {
		case <-changed:
		case <-time.After(patience):
			t.Fatal("nothing was told")
		}
	}
}

// TestWithoutRights: what can't be listed is said, and nobody is called orphaned for it.
func TestWithoutRights(t *testing.T) {
	r := start(t, "powerless")
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "any", Name: "p", UID: "u"}}
	leaf := leafOf(p, early)
	r.Issued(leaf)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		list, err := r.Certificates(t.Context(), api.CertificateQuery{Visible: everything{}})
		require.NoError(c, err)
		for _, kind := range []string{"pods", "services", "endpointslices", "namespaces", "serviceaccounts"} {
			at := slices.IndexFunc(list.Coverage.Sources, func(s api.Source) bool { return s.Name == kind })
			require.GreaterOrEqual(c, at, 0, kind)
			assert.False(c, list.Coverage.Sources[at].Up, kind)
			assert.NotEmpty(c, list.Coverage.Sources[at].Reason)
		}
	}, patience, glance)
	list, err := r.Certificates(t.Context(), api.CertificateQuery{Visible: everything{}})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
}

// TestWhatIsAskedFor: five kinds are listed and watched, and no Secret is.
func TestWhatIsAskedFor(t *testing.T) {
	config, err := plane.As(t.Context(), home, "signet")
	require.NoError(t, err)
	var paths sync.Map
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return counting{next, &paths} })
	startWith(t, config).synced()
	var asked []string
	paths.Range(func(path, _ any) bool { asked = append(asked, path.(string)); return true })
	assert.ElementsMatch(t, []string{
		"/api/v1/namespaces", "/api/v1/serviceaccounts", "/api/v1/services", "/api/v1/pods", "/apis/discovery.k8s.io/v1/endpointslices",
	}, asked)
}
