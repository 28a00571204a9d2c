package ca

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// empty says that the queue keeps nothing of anybody.
func (q *queue) empty(t testing.TB) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	assert.Zero(t, q.held)
	assert.Zero(t, q.waiting)
	assert.Empty(t, q.groups)
	assert.Zero(t, q.ring.Len())
}

func take(t testing.TB, q *queue, group, member string) func() {
	t.Helper()
	release, err := q.acquire(t.Context(), group, member)
	require.NoError(t, err)
	return release
}

// served lets each of "group/member" wait in this order behind one slot, and returns the order in
// which they were served, one at a time.
func served(t *testing.T, waiting ...[2]string) []string {
	t.Helper()
	var order []string
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 1, 1000)
		release := take(t, q, "holder", "holder")
		var group sync.WaitGroup
		for i, w := range waiting {
			group.Go(func() {
				release := take(t, q, w[0], w[1])
				order = append(order, fmt.Sprintf("%s%d", w[1], i))
				release()
			})
			synctest.Wait()
		}
		held, n := q.lengths()
		assert.Equal(t, []int{1, len(waiting)}, []int{held, n})
		release()
		group.Wait()
		q.empty(t)
	})
	return order
}

func TestQueueServesGroupsInTurn(t *testing.T) {
	order := served(t, [2]string{"A", "a"}, [2]string{"A", "a"}, [2]string{"A", "a"}, [2]string{"B", "b"}, [2]string{"C", "c"}, [2]string{"C", "c"})
	assert.Equal(t, []string{"a0", "b3", "c4", "a1", "c5", "a2"}, order)
}

func TestQueueServesMembersOfAGroupInTurn(t *testing.T) {
	order := served(t, [2]string{"A", "a"}, [2]string{"A", "a"}, [2]string{"A", "a"}, [2]string{"A", "b"}, [2]string{"B", "c"}, [2]string{"B", "c"})
	assert.Equal(t, []string{"a0", "c4", "b3", "c5", "a1", "a2"}, order)
}

// A group of many members gets no more than a group of one.
func TestQueueManyMembersDontCrowdOutOne(t *testing.T) {
	var waiting [][2]string
	for i := range 50 {
		waiting = append(waiting, [2]string{"crowd", fmt.Sprintf("m%d-", i)})
	}
	order := served(t, append(waiting, [2]string{"small", "s"})...)
	assert.Equal(t, "s50", order[1])
}

func TestQueueBoundsEachMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(4, 2, 1000)
		first, second := take(t, q, "A", "a"), take(t, q, "A", "a")
		var third atomic.Bool
		var group sync.WaitGroup
		group.Go(func() {
			release := take(t, q, "A", "a")
			third.Store(true)
			release()
		})
		synctest.Wait()
		assert.False(t, third.Load(), "it holds as many as it may, though slots are free")
		// Others pass it: in its group, in another, and with its name in another group.
		for _, other := range [][2]string{{"A", "b"}, {"B", "b"}, {"B", "a"}} {
			take(t, q, other[0], other[1])()
		}
		assert.False(t, third.Load())
		first()
		synctest.Wait()
		assert.True(t, third.Load())
		second()
		group.Wait()
		q.empty(t)
	})
}

// The slot that is given back goes past a member that may hold no more, which keeps its place.
func TestQueuePassesOverABoundMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(2, 1, 1000)
		a, b := take(t, q, "A", "a"), take(t, q, "B", "b")
		var order []string
		var group sync.WaitGroup
		for _, name := range []string{"a", "c"} { // of different groups
			group.Go(func() {
				release := take(t, q, map[string]string{"a": "A", "c": "C"}[name], name)
				order = append(order, name)
				release()
			})
			synctest.Wait()
		}
		b()
		synctest.Wait()
		assert.Equal(t, []string{"c"}, order)
		a()
		group.Wait()
		assert.Equal(t, []string{"c", "a"}, order)
		q.empty(t)
	})
}

func TestQueueSheds(t *testing.T) {
	for _, row := range []struct {
		name             string
		slots, perMember int
		held             int           // slots held by the newcomer's own member
		others           int           // others that hold the rest
		waiting          int           // own requests that wait already
		hold, deadline   time.Duration // deadline 0 is none
		shed             bool
	}{
		{"in time", 1, 1, 0, 1, 0, time.Second, 2 * time.Second, false},
		{"too late", 1, 1, 0, 1, 0, 2 * time.Second, time.Second, true},
		{"no deadline", 1, 1, 0, 1, 0, time.Hour, 0, false},
		{"nothing is known yet", 1, 1, 0, 1, 0, 0, time.Nanosecond, false},
		{"many slots share the wait", 10, 10, 0, 10, 0, 5 * time.Second, time.Second, false},
		{"behind those that wait", 2, 2, 0, 2, 9, time.Second, 3 * time.Second, true},
		{"its own bound counts", 10, 1, 1, 0, 0, 2 * time.Second, time.Second, true},
		{"its own bound leaves time", 10, 1, 1, 0, 0, time.Second, 2 * time.Second, false},
		{"its own that wait before it", 10, 1, 1, 0, 2, time.Second, 2 * time.Second, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(row.slots, row.perMember, 1000)
				var releases []func()
				for range row.held {
					releases = append(releases, take(t, q, "A", "a"))
				}
				for i := range row.others {
					releases = append(releases, take(t, q, "B", fmt.Sprint(i)))
				}
				earlier, leave := context.WithCancel(t.Context())
				var group sync.WaitGroup
				for range row.waiting {
					group.Go(func() {
						_, err := q.acquire(earlier, "A", "a")
						assert.ErrorIs(t, err, errShed)
					})
				}
				synctest.Wait()
				q.hold = row.hold

				ctx, cancel := context.WithCancel(t.Context())
				if row.deadline != 0 {
					ctx, cancel = context.WithTimeout(t.Context(), row.deadline)
				}
				began := time.Now()
				result := make(chan error, 1)
				group.Go(func() {
					release, err := q.acquire(ctx, "A", "a")
					if err == nil {
						release()
					}
					result <- err
				})
				synctest.Wait()
				if row.shed {
					require.NotEmpty(t, result, "it is turned away at once")
					err := <-result
					assert.ErrorIs(t, err, errShed)
					assert.ErrorContains(t, err, "the turn would come in about")
					assert.Zero(t, time.Since(began))
				} else {
					assert.Empty(t, result, "it waits")
				}
				cancel()
				leave()
				group.Wait()
				for _, release := range releases {
					release()
				}
				q.empty(t)
			})
		})
	}
}

// A member whose requests come late isn't shed for the crowd of another: its turn comes soon.
func TestQueuePredictsByTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 1, 1000)
		release := take(t, q, "holder", "holder")
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for range 500 {
			group.Go(func() {
				if release, err := q.acquire(ctx, "A", "a"); err == nil {
					<-time.After(time.Second)
					release()
				}
			})
		}
		synctest.Wait()
		q.hold = time.Second
		waiting, stop := context.WithTimeout(t.Context(), 5*time.Second)
		defer stop()
		_, err := q.acquire(waiting, "A", "a")
		assert.ErrorIs(t, err, errShed)
		assert.NoError(t, waiting.Err(), "the crowd is turned away at once")
		began := time.Now()
		release() // to the crowd's first
		mine, err := q.acquire(waiting, "B", "b")
		require.NoError(t, err)
		assert.Equal(t, 2*time.Second, time.Since(began), "behind the one that was first in turn")
		mine()
		cancel()
		group.Wait()
		q.empty(t)
	})
}

func TestQueueLengthIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 1, 4)
		release := take(t, q, "holder", "holder")
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		wait := func(name string) {
			group.Go(func() { _, _ = q.acquire(ctx, name, name) })
			synctest.Wait()
		}
		wait("A")
		_, err := q.acquire(t.Context(), "A", "other")
		assert.ErrorIs(t, err, errShed, "a group has a quarter of the places")
		for _, name := range []string{"B", "C", "D"} {
			wait(name)
		}
		_, err = q.acquire(t.Context(), "E", "e")
		assert.ErrorIs(t, err, errShed)
		assert.ErrorContains(t, err, "4 wait")
		cancel()
		group.Wait()
		release()
		q.empty(t)
	})
}

func TestQueueLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 1, 1000)
		release := take(t, q, "A", "a")
		why := errors.New("left")
		leaving, leave := context.WithCancelCause(t.Context())
		late, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		var group sync.WaitGroup
		began := time.Now()
		group.Go(func() {
			_, err := q.acquire(leaving, "A", "a")
			assert.ErrorIs(t, err, errShed)
			assert.ErrorIs(t, err, why)
		})
		group.Go(func() {
			_, err := q.acquire(late, "B", "b")
			assert.ErrorIs(t, err, errShed)
			assert.ErrorIs(t, err, context.DeadlineExceeded)
			assert.Equal(t, 3*time.Second, time.Since(began))
		})
		synctest.Wait()
		group.Go(func() { take(t, q, "B", "b")() }) // stays behind one that leaves
		synctest.Wait()
		leave(why)
		<-late.Done()
		synctest.Wait()
		held, waiting := q.lengths()
		assert.Equal(t, []int{1, 1}, []int{held, waiting})
		release()
		release() // a second time gives nothing
		group.Wait()
		q.empty(t)
	})
}

func TestQueueLearnsHowLongSlotsAreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(2, 2, 10)
		// busy holds slots one after the other, the next one before the last one is given back.
		busy := func(each time.Duration) {
			last := take(t, q, "A", "a")
			for range 50 {
				<-time.After(each / 3)
				next := take(t, q, "A", "a")
				<-time.After(each - each/3*2)
				last()
				last = next
			}
			last()
		}
		busy(8 * time.Second)
		assert.InDelta(t, 8*time.Second, q.hold, float64(time.Second))
		busy(time.Millisecond)
		assert.Less(t, q.hold, 50*time.Millisecond, "and follows when they are faster")
	})
}

// After an outage, in which slots were held for long, a burst is not turned away for it.
func TestQueueForgetsWhatWasSlowOnceItIsEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(4, 4, 1000)
		var slots []func()
		for range 4 {
			slots = append(slots, take(t, q, "A", "a"))
		}
		time.Sleep(10 * time.Minute)
		for _, release := range slots {
			release()
		}
		var group sync.WaitGroup
		for range 40 {
			group.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				release, err := q.acquire(ctx, "A", "a")
				if assert.NoError(t, err) {
					time.Sleep(time.Millisecond)
					release()
				}
			})
		}
		group.Wait()
		q.empty(t)
	})
}

// However requests come, leave and end: no bound is exceeded, nobody is forgotten, nothing is kept.
func TestQueueStress(t *testing.T) {
	const slots, perMember = 7, 2
	q := newQueue(slots, perMember, 60)
	var held atomic.Int64
	var got, left atomic.Int64
	var group sync.WaitGroup
	members := make([]atomic.Int64, 12)
	for worker := range 60 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 200 {
				m := random.IntN(len(members))
				ctx, cancel := context.WithCancel(t.Context())
				switch random.IntN(4) {
				case 0:
					cancel()
				case 1:
					go cancel()
				}
				release, err := q.acquire(ctx, fmt.Sprint(m%3), fmt.Sprint(m))
				if err != nil {
					left.Add(1)
					assert.ErrorIs(t, err, errShed)
					cancel()
					continue
				}
				got.Add(1)
				assert.LessOrEqual(t, held.Add(1), int64(slots))
				assert.LessOrEqual(t, members[m].Add(1), int64(perMember))
				if random.IntN(8) == 0 {
					<-time.After(100 * time.Microsecond)
				}
				members[m].Add(-1)
				held.Add(-1)
				release()
				cancel()
			}
		})
	}
	group.Wait()
	assert.Equal(t, int64(60*200), got.Load()+left.Load())
	assert.Positive(t, got.Load())
	q.empty(t)
}

func BenchmarkQueue(b *testing.B) {
	b.Run("free", func(b *testing.B) {
		q := newQueue(64, 16, 10_000)
		b.ReportAllocs()
		for b.Loop() {
			release, err := q.acquire(b.Context(), "namespace", "caller")
			if err != nil {
				b.Fatal(err)
			}
			release()
		}
	})
	b.Run("contended", func(b *testing.B) {
		q := newQueue(4, 2, 10_000)
		var n atomic.Int64
		b.ReportAllocs()
		b.SetParallelism(50)
		b.RunParallel(func(pb *testing.PB) {
			me := n.Add(1)
			group, member := fmt.Sprint(me%10), fmt.Sprint(me)
			for pb.Next() {
				release, err := q.acquire(b.Context(), group, member)
				if err != nil {
					b.Error(err)
					return
				}
				release()
			}
		})
		q.empty(b)
	})
	b.Run("ten thousand wait", func(b *testing.B) {
		q := newQueue(1, 1, 20_000)
		hold, err := q.acquire(b.Context(), "holder", "holder")
		require.NoError(b, err)
		ctx, cancel := context.WithCancel(b.Context())
		var group sync.WaitGroup
		for i := range 10_000 {
			group.Go(func() { _, _ = q.acquire(ctx, fmt.Sprint(i), "caller") })
		}
		for _, waiting := q.lengths(); waiting < 10_000; _, waiting = q.lengths() {
			<-time.After(time.Millisecond)
		}
		gone, leave := context.WithCancel(b.Context())
		leave()
		b.ReportAllocs()
		for b.Loop() { // what a further one costs that comes and leaves
			if _, err := q.acquire(gone, "newcomer", "caller"); err == nil {
				b.Fatal("no slot is free")
			}
		}
		cancel()
		group.Wait()
		hold()
	})
}
