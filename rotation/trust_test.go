package rotation

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-ca/signet/issuer"
)

// named is a source that always names one anchor.
type named struct{ bundle issuer.Bundle }

func (n named) String() string { return "roots" }

func (n named) Run(ctx context.Context, update func(issuer.Answer)) {
	update(issuer.Answer{Bundle: n.bundle})
	<-ctx.Done()
}

func newTestTrust(t testing.TB, maps *configMaps, sources ...issuer.Source) (*Trust, *issuer.Store) {
	t.Helper()
	store := issuer.NewStore(issuer.Ref{Name: "mesh"})
	return NewTrust(sources, nil, nil, maps, store, slog.New(slog.DiscardHandler), prometheus.NewPedanticRegistry()), store
}

// A state that somebody deletes is made again as it was: nothing of a rollover is lost.
func TestTrustStateThatIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		maps, ca, next := newConfigMaps(), newMemoryCA(t), newMemoryCA(t)
		trust, store := newTestTrust(t, maps, named{ca.bundle()})
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { assert.NoError(t, trust.Start(ctx)) })
		pass(time.Second)
		require.Equal(t, ca.bundle().PEM(), store.Current().Anchors.PEM())

		o := issuer.Observation{Now: time.Now(), LongestLeaf: time.Hour, Answered: map[string]bool{"roots": true}, Waits: "somebody"}
		for _, root := range []*memoryCA{ca, next} {
			o.Named = append(o.Named, issuer.Named{Certificate: root.root, Source: "roots"})
		}
		state, _ := store.Current().Rollover.Step(o)
		data, err := encode(state)
		require.NoError(t, err)
		maps.set(TrustConfigMap, data)
		pass(time.Second)
		require.Len(t, store.Current().Anchors.Anchors(), 2)

		maps.set(TrustConfigMap, nil)
		pass(10 * time.Second)
		assert.Equal(t, data, maps.data(TrustConfigMap))
		assert.Len(t, store.Current().Trusted.Anchors(), 1)
		cancel()
		running.Wait()
	})
}

// A watch that begins anew may bring a state that is older than the one in force.
func TestTrustNeverGoesBack(t *testing.T) {
	ca, next := newMemoryCA(t), newMemoryCA(t)
	trust, store := newTestTrust(t, newConfigMaps())
	object := func(version string, roots ...*memoryCA) *corev1.ConfigMap {
		o := issuer.Observation{Now: time.Now(), Answered: map[string]bool{"roots": true}}
		for _, root := range roots {
			o.Named = append(o.Named, issuer.Named{Certificate: root.root, Source: "roots"})
		}
		state, _ := new(issuer.Rollover).Step(o)
		data, err := encode(state)
		require.NoError(t, err)
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{UID: "one", ResourceVersion: version}, Data: data}
	}
	trust.apply(object("9", ca))
	trust.apply(object("10", ca, next))
	require.Len(t, store.Current().Anchors.Anchors(), 2)
	trust.apply(object("9", ca))
	assert.Len(t, store.Current().Anchors.Anchors(), 2)
	trust.apply(object("11", ca))
	assert.Len(t, store.Current().Anchors.Anchors(), 1)
	other := object("3", ca, next)
	other.UID = "another"
	trust.apply(other)
	assert.Len(t, store.Current().Anchors.Anchors(), 2, "another object begins anew")
}

// What waits is shown on every replica.
func TestTrustSaysWhatIsWaitedFor(t *testing.T) {
	ca, next := newMemoryCA(t), newMemoryCA(t)
	trust, store := newTestTrust(t, newConfigMaps())
	o := issuer.Observation{Now: time.Now(), LongestLeaf: time.Hour, Answered: map[string]bool{"roots": true}, Waits: "one of us"}
	state := new(issuer.Rollover)
	for version, root := range []*memoryCA{ca, next, next} {
		o.Named = append(o.Named, issuer.Named{Certificate: root.root, Source: "roots"})
		state, _ = state.Step(o)
		data, err := encode(state)
		require.NoError(t, err)
		trust.apply(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{UID: "one", ResourceVersion: string(rune('1' + version))}, Data: data})
	}
	assert.Contains(t, store.Current().Rollover.Held(next.root, time.Now()), "waits for one of us")
	text, err := trust.Ready(time.Now())
	require.NoError(t, err)
	assert.Contains(t, text, "is published and waits for one of us")
	assert.Equal(t, map[string]float64{"published": 1, "retiring": 0}, heldUp(t, store))
}

// heldUp is the metric of anchors that don't get on, by phase.
func heldUp(t *testing.T, store *issuer.Store) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(newAnchorsHeldUp(store))
	families, err := registry.Gather()
	require.NoError(t, err)
	found := make(map[string]float64)
	for _, m := range families[0].GetMetric() {
		found[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
	}
	return found
}

// TestAnchorsHeldUp: time that has yet to pass holds nothing up.
func TestAnchorsHeldUp(t *testing.T) {
	store := issuer.NewStore(issuer.Ref{})
	none := map[string]float64{"published": 0, "retiring": 0}
	assert.Equal(t, none, heldUp(t, store))
	past, future := time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	store.Update(func(s *issuer.Snapshot) {
		s.Rollover = &issuer.Rollover{Anchors: []issuer.Anchor{
			{Phase: issuer.Published}, {Phase: issuer.Published, Until: future}, {Phase: issuer.Published, Until: past},
			{Phase: issuer.Retiring, Until: future}, {Phase: issuer.Signing, Until: past}, {Phase: issuer.Distributed, Until: past},
		}}
	})
	assert.Equal(t, none, heldUp(t, store))
	store.Update(func(s *issuer.Snapshot) {
		s.Rollover = &issuer.Rollover{Anchors: []issuer.Anchor{{Phase: issuer.Retiring, Until: past}, {Phase: issuer.Published, Waits: "a namespace"}}}
	})
	assert.Equal(t, map[string]float64{"published": 1, "retiring": 1}, heldUp(t, store))
}

func TestTakeBack(t *testing.T) {
	annotations := map[string]string{"a": "11, 22 ,AA:BB", "b": "33"}
	takeBack(annotations, "a", func(id string) bool { return id == "22" })
	takeBack(annotations, "b", func(id string) bool { return id == "33" })
	takeBack(annotations, "c", func(string) bool { return true })
	assert.Equal(t, map[string]string{"a": "11,aabb"}, annotations)
}
