package inventory

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-ca/signet/api"
)

// world is what there is, by kind and name.
type world struct {
	pods       map[string]*corev1.Pod
	slices     map[string]*discoveryv1.EndpointSlice
	services   map[string]*metav1.PartialObjectMetadata
	accounts   map[string]*metav1.PartialObjectMetadata
	namespaces map[string]*metav1.PartialObjectMetadata
	leaves     []api.Certificate
	order      *rand.Rand // in which a fresh start is told of them
}

// shuffled are the values of a map in an order that depends on nothing but random.
func shuffled[K cmp.Ordered, V any](random *rand.Rand, of map[K]V) []V {
	var all []V
	for _, key := range slices.Sorted(maps.Keys(of)) {
		all = append(all, of[key])
	}
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// TestEventsEndWhereAFreshStartDoes: after any events, what is said is what an inventory says that is told only how
// things are. It asks between the events, so that an answer that is kept too long shows.
func TestEventsEndWhereAFreshStartDoes(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			r := newRig(t)
			w := world{
				map[string]*corev1.Pod{}, map[string]*discoveryv1.EndpointSlice{}, map[string]*metav1.PartialObjectMetadata{},
				map[string]*metav1.PartialObjectMetadata{}, map[string]*metav1.PartialObjectMetadata{}, nil, rand.New(rand.NewPCG(seed, 8)),
			}
			for range 12 {
				for range 40 {
					w.step(r, random)
					for _, o := range shuffled(w.order, w.services) {
						r.get(o.Namespace, o.Name) // makes the views that must not be kept
					}
				}
				time.Sleep(time.Duration(random.IntN(20)) * time.Minute)
				time.Sleep(lag)
				w.compare(t, r)
			}
		})
	}
}

func (w *world) step(r *rig, random *rand.Rand) {
	namespace := fmt.Sprint("ns-", random.IntN(2))
	named := func(prefix string, n int) (string, string) {
		name := fmt.Sprint(prefix, random.IntN(n))
		return name, namespace + "/" + name
	}
	switch random.IntN(12) {
	case 0, 1: // a pod comes, or another one with its name, or it changes
		name, key := named("p", 6)
		p := w.pods[key]
		if p == nil || random.IntN(2) == 0 {
			r.nextIP++
			p = podLike(namespace, name, fmt.Sprint("sa-", random.IntN(3)), r.nextIP, on(fmt.Sprint("node-", random.IntN(2))))
		}
		p = p.DeepCopy()
		switch random.IntN(4) {
		case 0:
			sidecar(p)
		case 1:
			enrolled(p)
		case 2:
			p.Labels["istio.io/dataplane-mode"] = []string{"ambient", "none"}[random.IntN(2)]
		case 3:
			delete(p.Annotations, redirection)
		}
		w.pods[key] = p
		r.tell("pods", p.DeepCopy())
	case 2:
		_, key := named("p", 6)
		if p := w.pods[key]; p != nil {
			delete(w.pods, key)
			r.gone("pods", p)
		}
	case 3, 4, 5:
		name, key := named("slice", 4)
		s := sliceOf(namespace, name, fmt.Sprint("s", random.IntN(3)))
		for _, at := range slices.Sorted(maps.Keys(w.pods)) {
			if p := w.pods[at]; p.Namespace == namespace && random.IntN(2) == 0 {
				s.Endpoints = append(s.Endpoints, sliceOf(namespace, "", "", p).Endpoints...)
				if random.IntN(8) == 0 {
					s.Endpoints[len(s.Endpoints)-1].TargetRef.UID = types.UID("other")
				}
			}
		}
		w.slices[key] = s
		r.tell("endpointslices", s.DeepCopy())
	case 6:
		_, key := named("slice", 4)
		if s := w.slices[key]; s != nil {
			delete(w.slices, key)
			r.gone("endpointslices", s)
		}
	case 7:
		name, key := named("s", 3)
		if s := w.services[key]; s != nil && random.IntN(3) == 0 {
			delete(w.services, key)
			r.gone("services", s)
		} else if s == nil {
			w.services[key] = metadata(namespace, name, nil)
			r.tell("services", metadata(namespace, name, nil))
		}
	case 8:
		name, key := named("sa-", 3)
		if a := w.accounts[key]; a != nil {
			delete(w.accounts, key)
			r.gone("serviceaccounts", a)
		} else {
			w.accounts[key] = metadata(namespace, name, nil)
			r.tell("serviceaccounts", metadata(namespace, name, nil))
		}
	case 9:
		if n := w.namespaces[namespace]; n != nil && random.IntN(2) == 0 {
			delete(w.namespaces, namespace)
			r.gone("namespaces", n)
		} else {
			labels := map[string]string{"istio.io/dataplane-mode": []string{"ambient", "x"}[random.IntN(2)]}
			w.namespaces[namespace] = metadata("", namespace, labels)
			r.tell("namespaces", metadata("", namespace, maps.Clone(labels)))
		}
	default:
		_, key := named("p", 6)
		if p := w.pods[key]; p != nil {
			c := r.certificate(p, func(c *api.Certificate) {
				c.NotAfter = c.NotBefore.Add(time.Duration(1+random.IntN(5)) * 15 * time.Minute)
				switch random.IntN(7) {
				case 0, 1:
					byProxy(c)
				case 2:
					from(fmt.Sprint("192.0.2.", random.IntN(2)))(c)
				case 6:
					c.Holder = api.Holder{}
				case 3:
					c.Root.SHA256 = digest("root", random.IntN(2))
				}
			})
			w.leaves = append(w.leaves, c)
			r.Issued(c)
		}
	}
}

func (w *world) compare(t *testing.T, r *rig) {
	t.Helper()
	fresh := newRig(t)
	for _, c := range w.leaves {
		fresh.Issued(c)
	}
	for _, s := range shuffled(w.order, w.slices) {
		fresh.tell("endpointslices", s.DeepCopy())
	}
	for _, p := range shuffled(w.order, w.pods) {
		fresh.tell("pods", p.DeepCopy())
	}
	rest := map[string]map[string]*metav1.PartialObjectMetadata{"services": w.services, "serviceaccounts": w.accounts, "namespaces": w.namespaces}
	for _, kind := range slices.Sorted(maps.Keys(rest)) {
		for _, o := range shuffled(w.order, rest[kind]) {
			fresh.tell(kind, o.DeepCopy())
		}
	}
	require.Equal(t, fresh.all(api.ServiceQuery{}), r.all(api.ServiceQuery{}))
	require.Equal(t, fresh.all(api.ServiceQuery{Problems: true}), r.all(api.ServiceQuery{Problems: true}))
	for _, o := range shuffled(w.order, w.services) {
		require.Equal(t, fresh.get(o.Namespace, o.Name), r.get(o.Namespace, o.Name))
	}
	for _, standing := range []api.Standing{api.Live, api.Orphaned} {
		for _, namespace := range []string{"", "ns-0", "ns-1"} {
			q := api.CertificateQuery{Standing: standing, Namespace: namespace}
			require.Equal(t, fresh.digests(q, fresh.Certificates), r.digests(q, r.Certificates))
			require.Equal(t, fresh.digests(q, fresh.Expiring), r.digests(q, r.Expiring))
		}
	}
	for n := range 3 {
		for m := range 2 {
			id := identityOf(fmt.Sprint("ns-", m), fmt.Sprint("sa-", n))
			want, wantErr := fresh.Identity(t.Context(), id)
			got, err := r.Identity(t.Context(), id)
			require.Equal(t, wantErr == nil, err == nil, id)
			if err == nil {
				require.Equal(t, want.Live, got.Live)
				require.Equal(t, want.Services, got.Services)
			}
		}
	}
	require.Len(t, r.index.leaves, len(fresh.index.leaves))
	require.Len(t, r.index.accounts, len(fresh.index.accounts))
	require.Len(t, r.index.naming, len(fresh.index.naming))
	require.Len(t, r.index.placed, len(fresh.index.placed))
	require.Len(t, r.index.namespaces, len(fresh.index.namespaces))
}

// TestEverybodyAtOnce: events, issuances and questions at the same time; the race detector looks on.
func TestEverybodyAtOnce(t *testing.T) {
	r := newRig(t)
	const pods = 64
	var all []*corev1.Pod
	for n := range pods {
		p := r.pod("ns", fmt.Sprint("p", n), fmt.Sprint("sa-", n%8), sidecar)
		all = append(all, p)
		r.service("ns", fmt.Sprint("s", n), p)
	}
	stop := make(chan struct{})
	var writers, readers sync.WaitGroup
	write := func(f func(n int)) {
		writers.Go(func() {
			for n := range 2000 {
				f(n)
			}
		})
	}
	read := func(f func()) {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	write(func(n int) {
		r.Issued(certificateFor(all[n%pods], n+1, func(c *api.Certificate) { c.IssuedAt = c.IssuedAt.Add(time.Duration(n) * time.Second) }))
	})
	write(func(n int) {
		p := all[n%pods]
		if n%3 == 0 {
			r.unseen("pods", p)
		} else {
			r.tell("pods", p.DeepCopy())
		}
	})
	write(func(n int) {
		r.tell("endpointslices", sliceOf("ns", fmt.Sprint("x", n%pods), fmt.Sprint("s", n%7), all[n%pods]))
	})
	ctx := t.Context()
	read(func() { _, _ = r.Services(ctx, api.ServiceQuery{Visible: everything{}}) })
	read(func() { _, _ = r.Service(ctx, "ns", "s1") })
	read(func() {
		_, _ = r.Certificates(ctx, api.CertificateQuery{Visible: everything{}, Identity: identityOf("ns", "sa-1")})
		_, _ = r.Expiring(ctx, api.CertificateQuery{Visible: everything{}})
		_, _ = r.Identity(ctx, identityOf("ns", "sa-2"))
		r.look(time.Now())
		r.scrape()
	})
	writers.Wait()
	close(stop)
	readers.Wait()
}
