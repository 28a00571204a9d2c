package rotation

import (
	"crypto/sha256"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unique"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

const day = 24 * time.Hour

// leafOf is a leaf of the nth holder that begins at notBefore; every tenth holder shares an identity.
func leafOf(n int, notBefore time.Time, life time.Duration) Leaf {
	account := fmt.Sprintf("account-%d", n/10)
	return Leaf{
		Identity:  "spiffe://cluster.local/ns/shop/sa/" + account,
		Namespace: "shop", ServiceAccount: account,
		Holder: fmt.Sprintf("6f1c2b4e-0000-4000-8000-%012d", n), PodName: fmt.Sprintf("checkout-7d9c8b6f5-%05d", n),
		Serial: fmt.Sprintf("%040x", n), SHA256: sha256.Sum256(fmt.Append(nil, n, notBefore)),
		NotBefore: notBefore, NotAfter: notBefore.Add(life), Anchor: sha256.Sum256([]byte("anchor")),
	}
}

func newTestLeaves(t testing.TB, most int) (*Leaves, *running) {
	r := &running{t: t, registry: prometheus.NewPedanticRegistry()}
	return newLeaves(r.registry, most), r
}

func (l *Leaves) size() int {
	n := 0
	for range l.All(time.Now()) {
		n++
	}
	return n
}

func TestLeavesSupersede(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leaves, r := newTestLeaves(t, maxLeaves)
		first := leafOf(1, time.Now().UTC(), day)
		leaves.Issued(first)
		other := first
		other.Identity += "-x" // the same pod can hold another identity
		leaves.Issued(other)
		leaves.Issued(leafOf(2, time.Now(), day))
		assert.Equal(t, 3, leaves.size())

		<-time.After(13 * time.Hour)
		leaves.Issued(first)
		assert.Equal(t, 3, leaves.size())
		assert.Zero(t, r.values()["leaf_renewals_total due"], "the same certificate again is no renewal")

		second := leafOf(1, time.Now().UTC(), day)
		leaves.Issued(second)
		assert.Equal(t, 3, leaves.size())
		assert.Equal(t, 1.0, r.values()["leaf_renewals_total due"])
		found := make(map[string]State)
		for leaf, state := range leaves.All(time.Now()) {
			found[leaf.Identity+leaf.Holder] = state
			if leaf.Identity == second.Identity && leaf.Holder == second.Holder {
				assert.Equal(t, second, leaf)
			}
		}
		assert.Equal(t, map[string]State{
			first.Identity + first.Holder: Fresh, other.Identity + other.Holder: Due,
			first.Identity + leafOf(2, epoch, day).Holder: Due,
		}, found)

		for state, after := range map[State]time.Duration{Fresh: time.Hour, Overdue: 14 * time.Hour, Expired: 25 * time.Hour} {
			leaves.Issued(leafOf(77, time.Now(), day))
			<-time.After(after)
			before := r.values()["leaf_renewals_total "+string(state)]
			leaves.Issued(leafOf(77, time.Now(), day))
			assert.Equal(t, before+1, r.values()["leaf_renewals_total "+string(state)], state)
		}
		for range leaves.All(time.Now()) {
			break // early
		}
	})
}

// A look counts by state, tells of each overdue leaf once, and forgets what has expired, once.
func TestLeavesLook(t *testing.T) {
	leaves, r := newTestLeaves(t, maxLeaves)
	for n := range 100 {
		leaves.Issued(leafOf(n, epoch, 100*time.Hour))
	}
	leaves.Issued(leafOf(100, epoch, 99*time.Hour))
	at := func(age time.Duration) leafTally { return leaves.look(epoch.Add(age), 7) }

	found := at(49 * time.Hour)
	assert.Equal(t, map[State]int{Fresh: 101}, found.count)
	assert.True(t, found.first.Equal(epoch.Add(99*time.Hour)))
	assert.InDelta(t, 50.0/99, found.least, 1e-9)
	assert.Zero(t, found.due+found.overdue+found.expired)

	found = at(50 * time.Hour)
	assert.Equal(t, map[State]int{Due: 101}, found.count)
	assert.Equal(t, 101, found.due)
	assert.Zero(t, at(50*time.Hour).due, "each is newly due once")

	found = at(55*time.Hour - time.Second)
	assert.Equal(t, map[State]int{Due: 100, Overdue: 1}, found.count)
	assert.Equal(t, 1, found.overdue)
	require.Len(t, found.late, 1)
	assert.Equal(t, leafOf(100, epoch, 99*time.Hour).Holder, found.late[0].Holder)
	found = at(55*time.Hour + time.Second)
	assert.Equal(t, map[State]int{Overdue: 101}, found.count)
	assert.Equal(t, 100, found.overdue)
	assert.Len(t, found.late, 7, "as many as asked for")
	assert.Zero(t, at(56*time.Hour).overdue)

	assert.Equal(t, map[State]int{Fresh: 101}, at(0).count, "with the clock set back")
	assert.Zero(t, at(56*time.Hour).overdue, "nothing is told anew")

	assert.Zero(t, at(99*time.Hour).expired, "RFC 5280 §4.1.2.5: the last second belongs to it")
	assert.Equal(t, 1, at(99*time.Hour+time.Nanosecond).expired)
	found = at(200 * time.Hour)
	assert.Equal(t, 100, found.expired)
	assert.Empty(t, found.count)
	assert.Zero(t, at(201*time.Hour).expired)
	assert.Equal(t, 101.0, r.values()["leaves_expired_total"])
	assert.Zero(t, leaves.size())
}

// What is new replaces a leaf that was overdue, and can be overdue itself.
func TestLeavesOverdueAgain(t *testing.T) {
	leaves, _ := newTestLeaves(t, maxLeaves)
	leaves.Issued(leafOf(1, epoch, day))
	assert.Equal(t, 1, leaves.look(epoch.Add(14*time.Hour), 9).overdue)
	leaves.Issued(leafOf(1, epoch.Add(14*time.Hour), day))
	assert.Equal(t, map[State]int{Fresh: 1}, leaves.look(epoch.Add(14*time.Hour), 9).count)
	found := leaves.look(epoch.Add(28*time.Hour), 9)
	assert.Equal(t, 1, found.overdue)
	assert.Equal(t, epoch.Add(14*time.Hour), found.late[0].NotBefore)
}

func TestLeavesFull(t *testing.T) {
	const most = 64 * 32
	leaves, r := newTestLeaves(t, most)
	var given [leafShards][]int64 // when they end
	for n := range 3 * most {
		leaf := leafOf(n, epoch.Add(time.Duration(n)*time.Minute), day)
		leaves.Issued(leaf)
		shard := maphash.Comparable(leaves.seed, leafKey{unique.Make(leaf.Identity), leaf.Holder}) % leafShards
		given[shard] = append(given[shard], leaf.NotAfter.Unix())
		if n%100 == 0 {
			require.LessOrEqual(t, leaves.size(), most)
		}
	}
	size := leaves.size()
	assert.LessOrEqual(t, size, most)
	assert.Greater(t, size, most*8/10, "no more is dropped than necessary")
	assert.Equal(t, float64(3*most-size), r.values()["leaves_dropped_total"])
	for i := range leaves.shards { // how many come to each is left to chance, which of them stay isn't
		var kept []int64
		for _, record := range leaves.shards[i].leaves {
			kept = append(kept, record.notAfter)
		}
		slices.Sort(kept)
		assert.Equal(t, given[i][len(given[i])-len(kept):], kept, "those that end first are dropped")
	}
	leaves.Issued(leafOf(3*most-1, epoch.Add(4*most*time.Minute), day))
	assert.Equal(t, float64(3*most-size), r.values()["leaves_dropped_total"], "a renewal needs no room")
}

func TestLeafSubject(t *testing.T) {
	leaf := leafOf(12, epoch, day)
	s := leaf.Subject()
	assert.Equal(t, KindLeaf, s.Kind)
	assert.Equal(t, leaf.Identity+" "+leaf.Holder, s.Key)
	assert.Equal(t, &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "shop", Name: "checkout-7d9c8b6f5-00012", UID: "6f1c2b4e-0000-4000-8000-000000000012"}, s.About)
	leaf.PodName, leaf.Holder = "", "sa:1:JTI=x"
	assert.Equal(t, &corev1.ObjectReference{APIVersion: "v1", Kind: "ServiceAccount", Namespace: "shop", Name: "account-1"}, leaf.Subject().About)
	assert.Nil(t, Leaf{Identity: "spiffe://x"}.Subject().About)
}

// Callers, looks and listings at once; for the race detector, and that nothing is lost.
func TestLeavesConcurrently(t *testing.T) {
	leaves, _ := newTestLeaves(t, maxLeaves)
	now := time.Now()
	var group sync.WaitGroup
	for part := range 4 {
		group.Go(func() {
			for n := range 2000 {
				leaves.Issued(leafOf(n, now.Add(time.Duration(part)*time.Second), day))
			}
		})
	}
	group.Go(func() {
		for range 20 {
			leaves.look(now, 10)
			leaves.size()
		}
	})
	group.Wait()
	assert.Equal(t, 2000, leaves.size())
}

func TestLeavesAllocate(t *testing.T) {
	leaves, _ := newTestLeaves(t, maxLeaves)
	both := [2]Leaf{leafOf(1, epoch, day), leafOf(1, epoch.Add(day), day)}
	leaves.Issued(both[0])
	n := 0
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		n++
		leaves.Issued(both[n%2])
	}), "a renewal allocates nothing")
}

// manyLeaves are leaves of as many holders, each a bit older than the next.
func manyLeaves(n int) []Leaf {
	all := make([]Leaf, n)
	now := time.Now().Truncate(time.Second)
	for i := range all {
		all[i] = leafOf(i, now.Add(-time.Duration(rand.IntN(10*3600))*time.Second), day)
	}
	return all
}

const benchLeaves = 100_000

func BenchmarkLeavesIssuedNew(b *testing.B) {
	all := manyLeaves(benchLeaves)
	leaves, n := NewLeaves(prometheus.NewRegistry()), 0
	b.ReportAllocs()
	for b.Loop() {
		if n == len(all) {
			b.StopTimer()
			leaves, n = NewLeaves(prometheus.NewRegistry()), 0
			b.StartTimer()
		}
		leaves.Issued(all[n])
		n++
	}
}

func BenchmarkLeavesIssuedRenewal(b *testing.B) {
	all := manyLeaves(benchLeaves)
	leaves := NewLeaves(prometheus.NewRegistry())
	for _, leaf := range all {
		leaves.Issued(leaf)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		leaf := &all[n%len(all)]
		leaf.SHA256[0]++
		leaves.Issued(*leaf)
		n++
	}
}

// BenchmarkLeavesIssuedFull issues where each new leaf finds no room.
func BenchmarkLeavesIssuedFull(b *testing.B) {
	leaves := newLeaves(prometheus.NewRegistry(), benchLeaves)
	for _, leaf := range manyLeaves(benchLeaves) {
		leaves.Issued(leaf)
	}
	leaf := leafOf(0, time.Now(), day)
	b.ReportAllocs()
	n := benchLeaves
	for b.Loop() {
		n++
		leaf.Holder = fmt.Sprintf("6f1c2b4e-0000-4000-8000-%012d", n)
		leaves.Issued(leaf)
	}
}

// BenchmarkLeavesLook looks at 100,000 leaves.
func BenchmarkLeavesLook(b *testing.B) {
	leaves := NewLeaves(prometheus.NewRegistry())
	for _, leaf := range manyLeaves(benchLeaves) {
		leaves.Issued(leaf)
	}
	b.ReportAllocs()
	for b.Loop() {
		leaves.look(time.Now(), eventBurst)
	}
}

// BenchmarkLeavesMemory reports the bytes that a leaf takes, its strings among them.
func BenchmarkLeavesMemory(b *testing.B) {
	heap := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		leaves := NewLeaves(prometheus.NewRegistry())
		for n := range benchLeaves {
			leaves.Issued(leafOf(n, epoch, day))
		}
		b.ReportMetric(float64(heap()-before)/benchLeaves, "B/leaf")
		runtime.KeepAlive(leaves)
	}
}
