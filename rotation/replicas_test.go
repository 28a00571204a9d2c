package rotation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/signet-ca/signet/issuer"
)

// configMaps are the ConfigMaps of one namespace, in memory.
type configMaps struct {
	typedcorev1.ConfigMapInterface // nothing else is called

	mu      sync.Mutex // guards the following
	objects map[string]*corev1.ConfigMap
	version int
	streams map[*watch.RaceFreeFakeWatcher]string // by the name that is watched
	refuses error                                 // all writes
	writes  int                                   // that were tried
	slow    time.Duration                         // that a creation takes; set before there is any
}

func newConfigMaps() *configMaps {
	return &configMaps{objects: make(map[string]*corev1.ConfigMap), streams: make(map[*watch.RaceFreeFakeWatcher]string)}
}

var configMapsResource = schema.GroupResource{Resource: "configmaps"}

// put changes an object; nil data deletes it. The caller holds mu.
func (c *configMaps) put(name string, data map[string]string) {
	c.version++
	kind := watch.Modified
	if c.objects[name] == nil {
		kind = watch.Added
	}
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: name, ResourceVersion: strconv.Itoa(c.version)}, Data: data}
	if data == nil {
		kind = watch.Deleted
		delete(c.objects, name)
	} else {
		c.objects[name] = object
	}
	for stream, watched := range c.streams {
		if watched == name && !stream.IsStopped() {
			stream.Action(kind, object.DeepCopy())
		}
	}
}

// set is put by somebody else.
func (c *configMaps) set(name string, data map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(name, data)
}

// data is what an object holds; nil where there is none.
func (c *configMaps) data(name string) map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.objects[name] == nil {
		return nil
	}
	return maps.Clone(c.objects[name].Data)
}

// refuse has all writes fail; nil has them succeed again.
func (c *configMaps) refuse(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuses = err
}

func (c *configMaps) tried() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

func (c *configMaps) List(_ context.Context, options metav1.ListOptions) (*corev1.ConfigMapList, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(c.version)}}
	if object := c.objects[strings.TrimPrefix(options.FieldSelector, "metadata.name=")]; object != nil {
		list.Items = append(list.Items, *object.DeepCopy())
	}
	return list, nil
}

func (c *configMaps) Watch(_ context.Context, options metav1.ListOptions) (watch.Interface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name, stream := strings.TrimPrefix(options.FieldSelector, "metadata.name="), watch.NewRaceFreeFake()
	c.streams[stream] = name
	if options.SendInitialEvents != nil && *options.SendInitialEvents {
		if object := c.objects[name]; object != nil {
			stream.Add(object.DeepCopy())
		}
		stream.Action(watch.Bookmark, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
			ResourceVersion: strconv.Itoa(c.version), Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
		}})
	}
	return stream, nil
}

func (c *configMaps) Create(_ context.Context, object *corev1.ConfigMap, _ metav1.CreateOptions) (*corev1.ConfigMap, error) {
	time.Sleep(c.slow)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	if c.refuses != nil {
		return nil, c.refuses
	}
	if c.objects[object.Name] != nil {
		return nil, apierrors.NewAlreadyExists(configMapsResource, object.Name)
	}
	c.put(object.Name, maps.Clone(object.Data))
	return c.objects[object.Name].DeepCopy(), nil
}

func (c *configMaps) Patch(_ context.Context, name string, kind types.PatchType, body []byte, _ metav1.PatchOptions, _ ...string) (*corev1.ConfigMap, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	if c.refuses != nil {
		return nil, c.refuses
	}
	if c.objects[name] == nil {
		return nil, apierrors.NewNotFound(configMapsResource, name)
	}
	if kind == types.JSONPatchType {
		return c.removed(name, body)
	}
	if kind != types.MergePatchType {
		return nil, fmt.Errorf("patch of type %s", kind)
	}
	var patch struct{ Data map[string]*string }
	if err := json.Unmarshal(body, &patch); err != nil {
		return nil, err
	}
	data := maps.Clone(c.objects[name].Data)
	if data == nil {
		data = make(map[string]string)
	}
	for key, value := range patch.Data {
		if value == nil {
			delete(data, key)
		} else {
			data[key] = *value
		}
	}
	c.put(name, data)
	return c.objects[name].DeepCopy(), nil
}

// removed is the answer to a JSON patch that tests a key and removes it. The caller holds mu.
func (c *configMaps) removed(name string, body []byte) (*corev1.ConfigMap, error) {
	var operations []struct{ Op, Path, Value string }
	if err := json.Unmarshal(body, &operations); err != nil || len(operations) != 2 || operations[0].Op != "test" || operations[1].Op != "remove" {
		return nil, fmt.Errorf("patch %s", body)
	}
	data, key := maps.Clone(c.objects[name].Data), strings.TrimPrefix(operations[0].Path, "/data/")
	if data[key] != operations[0].Value {
		return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("ConfigMap").GroupKind(), name, nil)
	}
	delete(data, key)
	c.put(name, data)
	return c.objects[name].DeepCopy(), nil
}

// fleet is some replicas in a bubble of synctest.
type fleet struct {
	t    testing.TB
	maps *configMaps
	ca   *memoryCA
	stop []func()
}

func newFleet(t testing.TB) *fleet {
	return &fleet{t: t, maps: newConfigMaps(), ca: newMemoryCA(t)}
}

// member is a replica that reports.
type member struct {
	*Replicas
	store  *issuer.Store
	health *issuer.Health
	stop   func()
}

// join starts a replica.
func (f *fleet) join(name string) *member {
	m := f.silent(name)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { assert.NoError(f.t, m.Start(ctx)) })
	m.stop = sync.OnceFunc(func() {
		cancel()
		group.Wait()
	})
	f.stop = append(f.stop, m.stop)
	synctest.Wait()
	return m
}

// silent is a replica that doesn't report yet.
func (f *fleet) silent(name string) *member {
	log := slog.New(slog.DiscardHandler)
	m := &member{store: issuer.NewStore(issuer.Ref{Name: "mesh"}), health: issuer.NewHealth()}
	serving := NewServing(ServingConfig{}, "istio-system", f.ca, m.store, log, prometheus.NewPedanticRegistry())
	trust := NewTrust(nil, nil, nil, f.maps, m.store, log, prometheus.NewPedanticRegistry())
	m.Replicas = NewReplicas(name, f.maps, trust, serving, m.health, time.Hour, log)
	return m
}

// watcher is a replica that only looks.
func (f *fleet) watcher() *member {
	m := f.silent("watcher")
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { m.watched.Start(ctx) })
	m.stop = sync.OnceFunc(func() {
		cancel()
		group.Wait()
	})
	f.stop = append(f.stop, m.stop)
	pass(time.Second)
	return m
}

func (f *fleet) end() {
	for _, stop := range f.stop {
		stop()
	}
}

// reported is what a replica says of itself.
func (f *fleet) reported(name string) (report Report) {
	f.t.Helper()
	text, ok := f.maps.data(ReplicasConfigMap)[name]
	require.True(f.t, ok, "%s has reported", name)
	require.NoError(f.t, json.Unmarshal([]byte(text), &report))
	return report
}

// say writes a report as the replica called name would.
func (f *fleet) say(name string, report Report) {
	f.t.Helper()
	text, err := json.Marshal(report)
	require.NoError(f.t, err)
	data := f.maps.data(ReplicasConfigMap)
	if data == nil {
		data = make(map[string]string)
	}
	data[name] = string(text)
	f.maps.set(ReplicasConfigMap, data)
	synctest.Wait()
}

func names(living map[string]Report) []string { return slices.Sorted(maps.Keys(living)) }

func TestReplicasReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		defer f.end()
		m := f.join("one")
		assert.Equal(t, Report{Issuer: "Issuer.cert-manager.io/mesh", LongestLeafSeconds: 3600, At: time.Now().UTC()}, f.reported("one"), "the ConfigMap is made where there is none")

		// What changes is said within a second.
		m.store.SetAnchors(f.ca.bundle())
		pass(reportsApart)
		assert.Equal(t, bundleID(f.ca.bundle()), f.reported("one").Bundle)
		assert.Empty(t, f.reported("one").Anchor, "nothing is signed yet")
		m.health.LedTo(m.store.Current().Ref, f.ca.root)
		pass(reportsApart)
		assert.Equal(t, issuer.AnchorID(f.ca.root), f.reported("one").Anchor)
		assert.Empty(t, f.reported("one").ServingAnchor)
		m.serving.renew(t.Context())
		pass(reportsApart)
		assert.Equal(t, issuer.AnchorID(f.ca.root), f.reported("one").ServingAnchor)

		// What doesn't isn't, but for a sign of life.
		before := f.maps.tried()
		for range 10 {
			m.health.LedTo(m.store.Current().Ref, f.ca.root)
			m.store.Update(func(*issuer.Snapshot) {})
			synctest.Wait()
		}
		assert.Equal(t, before, f.maps.tried())
		pass(reportEvery)
		assert.Equal(t, before+1, f.maps.tried())
		pass(time.Hour)
		assert.InDelta(t, before+361, f.maps.tried(), 2, "one every ten seconds")

		// An anchor that nothing may be signed under is none that is in use.
		m.store.Update(func(s *issuer.Snapshot) { s.Trusted = issuer.Bundle{} })
		pass(reportsApart)
		assert.Empty(t, f.reported("one").Anchor)
		m.store.Update(func(s *issuer.Snapshot) { s.Ref = issuer.Ref{} })
		pass(reportsApart)
		assert.Empty(t, f.reported("one").Issuer)
	})
}

// Replicas don't touch each other's reports. One that stops takes its own back.
func TestReplicasStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		defer f.end()
		one, two := f.join("one"), f.join("two")
		pass(time.Minute)
		living, gone, _ := one.living(time.Now())
		assert.Equal(t, []string{"one", "two"}, names(living))
		assert.Empty(t, gone)
		two.stop()
		synctest.Wait()
		living, gone, _ = one.living(time.Now())
		assert.Equal(t, []string{"one"}, names(living))
		assert.Empty(t, gone, "it has left by itself")
		assert.Equal(t, "Issuer.cert-manager.io/mesh", f.reported("one").Issuer)
	})
}

// A report that can't be written is tried again, and again, not all the time; then it says what holds by then.
func TestReplicasThatCantReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		defer f.end()
		f.maps.refuse(errors.New("away"))
		m := f.join("one")
		pass(5 * time.Minute)
		assert.Nil(t, f.maps.data(ReplicasConfigMap))
		assert.InDelta(t, 300, f.maps.tried(), 6, "every second")
		m.store.SetAnchors(f.ca.bundle())
		f.maps.refuse(nil)
		pass(6 * time.Second)
		assert.Equal(t, bundleID(f.ca.bundle()), f.reported("one").Bundle)

		// The same where a change can't be written, long before the next sign of life.
		m.store.Update(func(s *issuer.Snapshot) { s.Ref.Name = "other" })
		pass(reportsApart)
		require.Equal(t, "Issuer.cert-manager.io/other", f.reported("one").Issuer)
		f.maps.refuse(errors.New("away"))
		m.store.SetAnchors(issuer.Bundle{})
		pass(2 * time.Second)
		assert.NotEmpty(t, f.reported("one").Bundle)
		f.maps.refuse(nil)
		pass(4 * time.Second)
		assert.Empty(t, f.reported("one").Bundle)

		// And where somebody has deleted all reports.
		f.maps.set(ReplicasConfigMap, nil)
		pass(reportEvery)
		assert.Equal(t, "Issuer.cert-manager.io/other", f.reported("one").Issuer)
	})
}

// Two that make the ConfigMap at the same time both report.
func TestReplicasStartTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		defer f.end()
		f.maps.slow = time.Second
		for n := range 5 {
			f.join(strconv.Itoa(n))
		}
		pass(f.maps.slow)
		assert.Len(t, f.maps.data(ReplicasConfigMap), 5)
	})
}

// Who lives is told by our own clock and the changes of a report, not by the time in it.
func TestReplicasLiving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		defer f.end()
		w := f.watcher()
		began := time.Now().UTC()
		living, gone, _ := w.living(began)
		assert.Empty(t, living, "nobody has reported")
		assert.Empty(t, gone)

		past, future := Report{Bundle: "x", At: began.AddDate(-1, 0, 0)}, Report{Bundle: "y", At: began.AddDate(1, 0, 0)}
		_, _, changed := w.living(began)
		f.say("past", past)
		select {
		case <-changed:
		default:
			assert.Fail(t, "a new report isn't told")
		}
		f.say("future", future)
		living, gone, _ = w.living(began)
		assert.Equal(t, map[string]Report{"past": past, "future": future}, living)
		assert.Empty(t, gone)

		living, gone, _ = w.living(began.Add(silentFor))
		assert.Len(t, living, 2, "to the last moment")
		assert.Empty(t, gone)

		// One goes on, the other one doesn't.
		past.At = past.At.Add(reportEvery)
		f.say("past", past)
		living, gone, _ = w.living(began.Add(silentFor + 1))
		assert.Equal(t, []string{"past"}, names(living))
		assert.Equal(t, []string{"future"}, gone)
		living, _, _ = w.living(began.Add(2*silentFor + 1))
		assert.Equal(t, []string{"past"}, names(living), "it is counted from the change")
		living, gone, _ = w.living(began.Add(2*silentFor + 2))
		assert.Empty(t, living)
		assert.Equal(t, []string{"future", "past"}, gone)

		// Whoever speaks again lives again.
		future.At = future.At.Add(time.Second)
		f.say("future", future)
		living, _, _ = w.living(began.Add(time.Hour))
		assert.Equal(t, []string{"future"}, names(living))

		// One that left and says the same again is a new one.
		f.maps.set(ReplicasConfigMap, map[string]string{})
		synctest.Wait()
		living, gone, _ = w.living(began.Add(2 * time.Hour))
		assert.Empty(t, living)
		assert.Empty(t, gone)
		f.say("future", future)
		living, _, _ = w.living(began.Add(3 * time.Hour))
		assert.Equal(t, []string{"future"}, names(living))

		// What can't be read is of another version: it counts as behind until it is silent.
		f.maps.set(ReplicasConfigMap, map[string]string{"newer": "{"})
		synctest.Wait()
		living, _, _ = w.living(began.Add(3 * time.Hour))
		assert.Equal(t, map[string]Report{"newer": {}}, living)
		living, gone, _ = w.living(began.Add(3*time.Hour + silentFor + 1))
		assert.Empty(t, living)
		assert.Equal(t, []string{"newer"}, gone)
	})
}

// Nobody is gone for a replica that has only begun to look, however old the reports are.
func TestReplicasLivingForANewLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		defer f.end()
		f.say("old", Report{Bundle: "x", At: time.Now().AddDate(-1, 0, 0)})
		pass(24 * time.Hour)
		w := f.watcher()
		living, gone, _ := w.living(time.Now())
		assert.Equal(t, []string{"old"}, names(living))
		assert.Empty(t, gone)
		living, gone, _ = w.living(time.Now().Add(silentFor + 1))
		assert.Empty(t, living)
		assert.Equal(t, []string{"old"}, gone)
	})
}

func TestReplicasForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		defer f.end()
		one := f.join("one")
		f.say("dead", Report{Bundle: "x"})
		pass(time.Second)
		one.living(time.Now())
		pass(silentFor + time.Second)
		living, gone, _ := one.living(time.Now())
		assert.Equal(t, []string{"one"}, names(living))
		require.Equal(t, []string{"dead"}, gone)

		f.maps.refuse(errors.New("away"))
		one.forget(t.Context(), gone)
		assert.Contains(t, f.maps.data(ReplicasConfigMap), "dead")
		f.maps.refuse(nil)
		f.say("dead", Report{Bundle: "y"})
		one.forget(t.Context(), gone)
		assert.Contains(t, f.maps.data(ReplicasConfigMap), "dead", "it has said something meanwhile")
		f.say("dead", Report{Bundle: "x"})
		one.forget(t.Context(), gone)
		assert.Equal(t, []string{"one"}, slices.Sorted(maps.Keys(f.maps.data(ReplicasConfigMap))))
		synctest.Wait()
		_, gone, _ = one.living(time.Now())
		assert.Empty(t, gone)
	})
}

// While the others may have forgotten this replica, it is fenced: it signs again once it has read the state anew and
// said so.
func TestReplicasFence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		defer f.end()
		silent := f.silent("silent")
		assert.ErrorContains(t, silent.store.Fence(time.Now()), "don't know of this one yet")
		m := f.join("one")
		require.NoError(t, m.store.Fence(time.Now()))
		f.maps.refuse(errors.New("away"))
		pass(20 * time.Second)
		require.NoError(t, m.store.Fence(time.Now()), "nobody has forgotten it yet")
		pass(silentFor - 20*time.Second)
		require.ErrorContains(t, m.store.Fence(time.Now()), "hasn't reached the API server")

		// Meanwhile the anchors have changed. The watch is behind; the state is read before the report.
		state := new(issuer.Rollover)
		state, _ = state.Step(issuer.Observation{Now: time.Now(), Named: []issuer.Named{{Certificate: f.ca.root, Source: "roots"}}, Answered: map[string]bool{"roots": true}})
		data, err := encode(state)
		require.NoError(t, err)
		f.maps.set(TrustConfigMap, data)
		f.maps.refuse(nil)
		pass(2 * reportsApart)
		require.NoError(t, m.store.Fence(time.Now()))
		assert.Equal(t, bundleID(f.ca.bundle()), f.reported("one").Bundle)
		assert.False(t, m.store.Current().Anchors.Empty(), "by the list alone: nothing watches the state here")
	})
}
