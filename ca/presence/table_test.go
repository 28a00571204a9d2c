package presence

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
)

func TestUID(t *testing.T) {
	for _, text := range []string{
		"", "x", "b8cbd2bb-6b5f-4a5f-9e6c-6a5b3a4f8c11", "B8CBD2BB-6B5F-4A5F-9E6C-6A5B3A4F8C11", "{b8cbd2bb-6b5f-4a5f-9e6c-6a5b3a4f8c1",
		"b8cbd2bb6b5f4a5f9e6c6a5b3a4f8c11", "b8cbd2bb06b5f04a5f09e6c06a5b3a4f8c11", "00000000-0000-0000-0000-000000000000",
		"b8cbd2bb-6b5f-4a5f-9e6c-6a5b3a4f8c1g", "d2c4a5f09e6c06a5b3a4f8c11d2c4a5f09e6c06a5b3a4f8c11", "ééééééééé-é",
	} {
		assert.Equal(t, text, parseUID(text).String())
	}
	for range 1000 {
		text := string(uuid.NewUUID())
		u := parseUID(text)
		assert.Nil(t, u.text)
		assert.Equal(t, text, u.String())
	}
}

func podLike(namespace, name, account, node string, more ...func(*corev1.Pod)) *corev1.Pod {
	o := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: uuid.NewUUID()},
		Spec:       corev1.PodSpec{ServiceAccountName: account, NodeName: node},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, change := range more {
		change(o)
	}
	return o
}

func phase(p corev1.PodPhase) func(*corev1.Pod) { return func(o *corev1.Pod) { o.Status.Phase = p } }

func deleted(o *corev1.Pod) {
	o.DeletionTimestamp = &metav1.Time{Time: time.Unix(1_700_000_000, 0)}
}

func TestPodsOfANode(t *testing.T) {
	for _, row := range []struct {
		name string
		pod  *corev1.Pod
		want bool
	}{
		{"running", podLike("shop", "web-1", "web", "n1"), true},
		{"pending on the node", podLike("shop", "web-1", "web", "n1", phase(corev1.PodPending)), true},
		{"unknown", podLike("shop", "web-1", "web", "n1", phase(corev1.PodUnknown)), true},
		{"no phase yet", podLike("shop", "web-1", "web", "n1", phase("")), true},
		{"being deleted", podLike("shop", "web-1", "web", "n1", deleted), true},
		{"failed", podLike("shop", "web-1", "web", "n1", phase(corev1.PodFailed)), false},
		{"succeeded", podLike("shop", "web-1", "web", "n1", phase(corev1.PodSucceeded)), false},
		{"not scheduled", podLike("shop", "web-1", "web", "", phase(corev1.PodPending)), false},
		{"on another node", podLike("shop", "web-1", "web", "n2"), false},
		{"of another account", podLike("shop", "web-1", "web2", "n1"), false},
		{"in another namespace", podLike("shop2", "web-1", "web", "n1"), false},
	} {
		pods := newPodTable()
		pods.see(row.pod)
		assert.Equal(t, row.want, pods.runsOn("n1", "shop", "web"), row.name)
		assert.False(t, pods.runsOn("", "shop", "web"), row.name)
		got, ok := pods.get(row.pod.Namespace, row.pod.Name)
		require.True(t, ok)
		assert.Equal(t, shownOf(row.pod), got, row.name)
		_, ok = pods.get(row.pod.Namespace, "web")
		assert.False(t, ok)
	}
}

// shownOf is what the index must say of a pod.
func shownOf(o *corev1.Pod) Pod {
	p := Pod{
		Namespace: o.Namespace, Name: o.Name, UID: string(o.UID), ServiceAccount: o.Spec.ServiceAccountName, Node: o.Spec.NodeName,
		Ended: o.Status.Phase == corev1.PodFailed || o.Status.Phase == corev1.PodSucceeded,
	}
	if o.DeletionTimestamp != nil {
		p.DeletedAt = o.DeletionTimestamp.Time
	}
	return p
}

// TestAnyOrderOfEvents: after any events the index says the same as a plain list of the pods.
func TestAnyOrderOfEvents(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	one := func(of ...string) string { return of[random.IntN(len(of))] }
	phases := []corev1.PodPhase{corev1.PodPending, corev1.PodRunning, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed}
	something := func() *corev1.Pod {
		o := podLike(one("a", "b"), one("p", "q", "r", "s"), one("x", "y"), one("", "n1", "n2"), phase(phases[random.IntN(len(phases))]))
		if random.IntN(4) == 0 {
			deleted(o)
		}
		if random.IntN(10) == 0 {
			o.UID = types.UID(one("", "odd", "0123456789abcdef"))
		}
		return o
	}

	pods := newPodTable()
	s := &stream{table: pods}
	model := make(map[string]*corev1.Pod)
	for step := range 4000 {
		switch o := something(); random.IntN(20) {
		default:
			require.NoError(t, s.Add(o))
			model[o.Namespace+"/"+o.Name] = o
		case 0, 1, 2, 3, 4:
			require.NoError(t, s.Delete(o)) // also of one that isn't there
			delete(model, o.Namespace+"/"+o.Name)
		case 5:
			// Everything is listed anew; events were missed.
			clear(model)
			s.listed = pods.fill()
			for range random.IntN(8) {
				o := something()
				s.listed.see(o)
				model[o.Namespace+"/"+o.Name] = o
			}
			require.NoError(t, s.Replace(nil, "1"))
		}
		require.Equal(t, len(model), pods.count(), "step %d", step)
		for _, namespace := range []string{"a", "b", "c"} {
			for _, name := range []string{"p", "q", "r", "s", "t"} {
				want, exists := model[namespace+"/"+name]
				got, ok := pods.get(namespace, name)
				require.Equal(t, exists, ok, "step %d", step)
				if ok {
					require.Equal(t, shownOf(want), got, "step %d", step)
				}
			}
			for _, account := range []string{"x", "y", "z"} {
				for _, node := range []string{"", "n1", "n2", "n3"} {
					want := false
					for _, o := range model {
						p := shownOf(o)
						want = want || p.Namespace == namespace && p.ServiceAccount == account && p.Node == node && node != "" && !p.Ended
					}
					require.Equal(t, want, pods.runsOn(node, namespace, account), "step %d: %s/%s on %q", step, namespace, account, node)
				}
			}
		}
	}
	for name := range model {
		o := model[name]
		require.NoError(t, s.Delete(o))
	}
	assert.Empty(t, pods.places, "nothing is left of pods that are gone")
}

func TestObjects(t *testing.T) {
	objects := newObjectTable()
	s := &stream{table: objects}
	like := func(namespace, name string, uid types.UID) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: uid}}
	}
	first, second := uuid.NewUUID(), uuid.NewUUID()
	require.NoError(t, s.Add(like("shop", "web", first)))
	got, ok := objects.get("shop", "web")
	assert.True(t, ok)
	assert.Equal(t, Object{UID: string(first)}, got)
	_, ok = objects.get("", "web")
	assert.False(t, ok)

	again := like("shop", "web", second)
	at := time.Unix(1_700_000_000, 0)
	again.DeletionTimestamp = &metav1.Time{Time: at}
	require.NoError(t, s.Update(again))
	got, _ = objects.get("shop", "web")
	assert.Equal(t, Object{UID: string(second), DeletedAt: at}, got)

	s.listed = objects.fill()
	s.listed.see(like("", "node-1", first))
	_, ok = objects.get("", "node-1")
	assert.False(t, ok, "not in force before the list is complete")
	require.NoError(t, s.Replace(nil, "1"))
	_, ok = objects.get("shop", "web")
	assert.False(t, ok)
	assert.Equal(t, 1, objects.count())
	require.NoError(t, s.Delete(like("", "node-1", "other")))
	assert.Equal(t, 0, objects.count())
}

func TestState(t *testing.T) {
	now := time.Now()
	for _, row := range []struct {
		name   string
		known  State
		asking time.Duration // for how long
		synced bool
		says   string
	}{
		{"before the first list", State{}, 0, false, "the pods are being listed"},
		{"listed, but not in force yet", State{Heard: now}, 0, false, "the pods are being listed"},
		{"as it should be", State{Listed: true, Heard: now.Add(-70 * time.Second)}, 0, true, "7 pods are known"},
		{"no bookmarks come", State{Listed: true, Heard: now.Add(-4 * time.Minute)}, 0, false, "7 pods, not relied on; the API server has told nothing for 4m0s"},
		{"fails for a moment", State{Listed: true, Heard: now.Add(-10 * time.Second), FailingSince: now.Add(-5 * time.Second), Err: assert.AnError}, 0, true,
			"7 pods, still relied on; they can't be followed for 5s: " + assert.AnError.Error()},
		{"fails for long", State{Listed: true, Heard: now.Add(-50 * time.Second), FailingSince: now.Add(-40 * time.Second), Err: assert.AnError}, 0, false,
			"7 pods, not relied on; they can't be followed for 40s: " + assert.AnError.Error()},
		{"has never worked", State{FailingSince: now.Add(-time.Second), Err: assert.AnError}, 0, false,
			"0 pods, not relied on; they can't be followed for 1s: " + assert.AnError.Error()},
		{"opens its watch", State{Listed: true, Heard: now.Add(-10 * time.Second)}, 5 * time.Second, true, "7 pods are known"},
		{"gets no answer", State{Listed: true, Heard: now.Add(-50 * time.Second)}, 40 * time.Second, false,
			"7 pods, not relied on; the API server has told nothing for 50s"},
	} {
		s := &stream{known: row.known}
		if row.asking > 0 {
			s.asking = now.Add(-row.asking)
		}
		state := s.state(now, defaultStaleAfter)
		assert.Equal(t, row.synced, state.Synced, row.name)
		count := 7
		if !row.known.Listed {
			count = 0
		}
		assert.Equal(t, row.says, state.describe(Pods, count, now), row.name)
	}
}

// BenchmarkPods is 100,000 pods of 20,000 service accounts on 2,000 nodes.
func BenchmarkPods(b *testing.B) {
	const pods = 100_000
	t := newPodTable()
	for n := range pods {
		t.see(podLike(fmt.Sprintf("namespace-%03d", n%200), fmt.Sprintf("service-%06d-7d4b9c5f6d-%05d", n/5, n), fmt.Sprintf("service-%06d", n/5), fmt.Sprintf("node-%04d", n%2000)))
	}
	asked := slices.Collect(func(yield func([3]string) bool) {
		for n := range 1 << 16 {
			p := (n * 7919) % pods
			if !yield([3]string{fmt.Sprintf("node-%04d", p%2000), fmt.Sprintf("namespace-%03d", p%200), fmt.Sprintf("service-%06d", p/5)}) {
				return
			}
		}
	})
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		at := asked[n%len(asked)]
		if !t.runsOn(at[0], at[1], at[2]) {
			b.Fatal(at)
		}
	}
}
