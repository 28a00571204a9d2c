package rotation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"

	"github.com/signet-ca/signet/issuer"
)

func TestPolicies(t *testing.T) {
	require.Len(t, policies, len(kinds))
	for _, kind := range kinds {
		p := kind.Policy()
		assert.Positive(t, p.Due, kind)
		assert.Less(t, p.Due, p.Overdue, kind)
		assert.Less(t, p.Overdue, 1.0, kind)
	}
	const life = 1000 * time.Hour
	for _, row := range []struct {
		kind         Kind
		due, overdue time.Duration
	}{
		{KindLeaf, 500 * time.Hour, 550 * time.Hour},
		{KindAnchor, 800 * time.Hour, 900 * time.Hour},
		{KindIntermediate, 800 * time.Hour, 900 * time.Hour},
		{KindFallbackAnchor, 800 * time.Hour, 900 * time.Hour},
		{KindCRL, 800 * time.Hour, 950 * time.Hour},
	} {
		for age, want := range map[time.Duration]State{
			0: Fresh, row.due - time.Second: Fresh, row.due + time.Second: Due, row.overdue - time.Second: Due,
			row.overdue + time.Second: Overdue, life: Overdue, life + time.Nanosecond: Expired,
		} {
			assert.Equal(t, want, Decide(row.kind.Policy(), epoch, epoch.Add(life), epoch.Add(age)), "%s at %s", row.kind, age)
		}
	}
}

// The state is one thing until the next change, and another from then on; the changes come to an end.
func TestNextChange(t *testing.T) {
	lives := []time.Duration{-time.Hour, 0, 1, time.Second, time.Minute, day, 90 * day, 3650 * day}
	for range 100 {
		lives = append(lives, time.Duration(rand.Int64N(int64(3650*day))))
	}
	for _, kind := range kinds {
		for _, life := range lives {
			policy, end := kind.Policy(), epoch.Add(life)
			var path []State
			at := epoch.Add(-time.Hour) // not begun
			for {
				state := Decide(policy, epoch, end, at)
				path = append(path, state)
				require.LessOrEqual(t, len(path), 4)
				next := nextChange(policy, epoch, end, at)
				if next.IsZero() {
					break
				}
				require.True(t, next.After(at))
				require.Equal(t, state, Decide(policy, epoch, end, next.Add(-1)), "%s of %s at %s", kind, life, at)
				require.NotEqual(t, state, Decide(policy, epoch, end, next), "%s of %s at %s", kind, life, at)
				at = next
			}
			switch {
			case life < 0:
				assert.Equal(t, []State{Expired}, path)
			case life < time.Second:
				assert.Equal(t, Expired, path[len(path)-1])
			default:
				assert.Equal(t, states, path)
			}
		}
	}
	// The longest validities there are (RFC 5280 §4.1.2.5) fit.
	ever := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	assert.Equal(t, Fresh, Decide(KindAnchor.Policy(), epoch, ever, epoch.AddDate(50, 0, 0)))
	assert.True(t, nextChange(KindAnchor.Policy(), epoch, ever, epoch).After(epoch.AddDate(200, 0, 0)))
	assert.Equal(t, 1.0, remaining(epoch, ever, epoch))
}

func TestRemaining(t *testing.T) {
	for age, want := range map[time.Duration]float64{-day: 1, 0: 1, 6 * time.Hour: 0.75, 12 * time.Hour: 0.5, day: 0, 2 * day: 0} {
		assert.Equal(t, want, remaining(epoch, epoch.Add(day), epoch.Add(age)), age)
	}
	assert.Zero(t, remaining(epoch, epoch, epoch.Add(-day)))
	assert.Zero(t, remaining(epoch, epoch.Add(-day), epoch.Add(-2*day)))
}

// recorded is an Event as it was handed over.
type recorded struct {
	at                 time.Time
	about              corev1.ObjectReference
	kind, reason, note string
}

// recorder keeps Events.
type recorder struct {
	mu  sync.Mutex // guards the following
	all []recorded
}

func (r *recorder) Eventf(regarding, _ runtime.Object, kind, reason, _, note string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, recorded{time.Now(), *regarding.(*corev1.ObjectReference), kind, reason, fmt.Sprintf(note, args...)})
}

func (r *recorder) events() []recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]recorded(nil), r.all...)
}

// list is a source whose subjects a test sets.
type list struct {
	mu       sync.Mutex // guards the following
	subjects []Subject
	asked    int
}

func (l *list) set(subjects ...Subject) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.subjects = subjects
}

func (l *list) source() []Subject {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	return l.subjects
}

func (l *list) looks() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

// watching is a watch with all that it tells.
type watching struct {
	*Expiry
	*running // for its values
	list     list
	leaves   *Leaves
	recorder recorder
	log      lockedText
}

func newWatching(t testing.TB) *watching {
	t.Helper()
	w := &watching{running: &running{t: t, registry: prometheus.NewPedanticRegistry()}}
	w.leaves = NewLeaves(w.registry)
	log := slog.New(slog.NewJSONHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	w.Expiry = NewExpiry([]func() []Subject{func() []Subject { return nil }, w.list.source}, w.leaves, &w.recorder, log, w.registry)
	return w
}

// run starts the watch; the bubble must end it with stop.
func (w *watching) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { assert.NoError(w.t, w.Expiry.Start(ctx)) })
	w.stop = func() {
		cancel()
		group.Wait()
	}
	synctest.Wait()
}

// line is a line of the log.
type line struct {
	Time              time.Time
	Level, Msg        string
	Kind, From, State string
	Overdue, Expired  int
	OverdueNow        int `json:"overdue_now"`
	Some              []string
}

func (w *watching) lines() []line {
	w.t.Helper()
	var all []line
	for text := range strings.Lines(w.log.String()) {
		var l line
		require.NoError(w.t, json.Unmarshal([]byte(text), &l))
		all = append(all, l)
	}
	return all
}

// counts are the values of the gauge of subjects of a kind, by state.
func (w *watching) counts(kind Kind) map[State]float64 {
	w.t.Helper()
	values, counts := w.values(), make(map[State]float64)
	for _, state := range states {
		value, ok := values["certificates "+string(kind)+" "+string(state)]
		require.True(w.t, ok, "%s %s is always there", kind, state)
		if value != 0 {
			counts[state] = value
		}
	}
	return counts
}

func subjectOf(kind Kind, key string, notBefore time.Time, life time.Duration) Subject {
	return Subject{
		Kind: kind, Key: key, Text: "CN=" + key + " serial 1f", NotBefore: notBefore, NotAfter: notBefore.Add(life),
		About: &corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: "istio-system", Name: key},
	}
}

// Each kind but leaves: one line and one Event for each change, exactly when it happens.
func TestExpiryOneLife(t *testing.T) {
	for _, kind := range kinds {
		if kind == KindLeaf {
			continue
		}
		t.Run(string(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWatching(t)
				w.Expiry.leaves = nil
				began := time.Now()
				one := subjectOf(kind, "one", began, 21*day+7*time.Second)
				w.list.set(one)
				w.run()
				due, overdue, over := kind.Policy().moments(one.NotBefore, one.NotAfter)
				assert.Equal(t, map[State]float64{Fresh: 1}, w.counts(kind))
				assert.Equal(t, 1.0, w.values()["certificate_remaining_ratio_min "+string(kind)])
				assert.Equal(t, float64(one.NotAfter.Unix()), w.values()["certificate_not_after_timestamp_seconds "+string(kind)])

				from := Fresh
				for i, change := range []struct {
					at           time.Time
					state        State
					level        string
					kind, reason string
				}{
					{due, Due, "INFO", "Normal", "CertificateDue"},
					{overdue, Overdue, "WARN", "Warning", "CertificateOverdue"},
					{over, Expired, "ERROR", "Warning", "CertificateExpired"},
				} {
					pass(time.Until(change.at) - 1)
					assert.Equal(t, map[State]float64{from: 1}, w.counts(kind))
					assert.Len(t, w.lines(), i)
					assert.Len(t, w.recorder.events(), i)
					assert.Equal(t, []Status{{one, from}}, w.Subjects())
					pass(1 + lookApart)
					assert.Equal(t, map[State]float64{change.state: 1}, w.counts(kind))
					assert.Equal(t, []Status{{one, change.state}}, w.Subjects())

					lines, events := w.lines(), w.recorder.events()
					require.Len(t, lines, i+1)
					require.Len(t, events, i+1)
					assert.Less(t, lines[i].Time.Sub(change.at), lookApart+1)
					lines[i].Time = time.Time{}
					assert.Equal(t, line{Level: change.level, Msg: "certificate changed its state", Kind: string(kind), From: string(from), State: string(change.state)}, lines[i])
					assert.Equal(t, *one.About, events[i].about)
					assert.Equal(t, change.kind, events[i].kind)
					assert.Equal(t, change.reason, events[i].reason)
					assert.Contains(t, events[i].note, fmt.Sprintf("certificate is %s: CN=one serial 1f, valid from %s until ", change.state, began.UTC().Format(time.RFC3339)))
					from = change.state
				}
				pass(3 * day)
				assert.Len(t, w.lines(), 3)
				assert.Len(t, w.recorder.events(), 3)
				assert.Zero(t, w.values()["certificate_remaining_ratio_min "+string(kind)])
				w.stop()
			})
		})
	}
}

// A subject that is renewed under its key is told of once more, as good; one that is renewed in time
// changes nothing else.
func TestExpiryRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatching(t)
		w.Expiry.leaves = nil
		w.list.set(subjectOf(KindServing, "serving", time.Now(), day))
		w.run()
		for range 20 {
			pass(12 * time.Hour)
			w.list.set(subjectOf(KindServing, "serving", time.Now(), day))
		}
		assert.Empty(t, w.lines(), "renewed while it was fresh")
		assert.Empty(t, w.recorder.events())

		pass(21 * time.Hour)
		w.list.set(subjectOf(KindServing, "serving", time.Now(), day))
		pass(time.Minute)
		var told []string
		for _, event := range w.recorder.events() {
			told = append(told, event.reason)
		}
		assert.Equal(t, []string{"CertificateDue", "CertificateOverdue", "CertificateFresh"}, told)
		assert.Len(t, w.lines(), 3)
		pass(16 * time.Hour)
		assert.Len(t, w.recorder.events(), 4, "the new one is told of as well")
		w.stop()
	})
}

func TestExpiryVanishAndReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatching(t)
		w.Expiry.leaves = nil
		one, other := subjectOf(KindAnchor, "one", time.Now(), 10*day), subjectOf(KindAnchor, "other", time.Now(), 20*day)
		w.list.set(one, other)
		w.run()
		assert.Equal(t, map[State]float64{Fresh: 2}, w.counts(KindAnchor))
		assert.Equal(t, float64(one.NotAfter.Unix()), w.values()["certificate_not_after_timestamp_seconds anchor"])

		w.list.set(other)
		pass(9 * day)
		assert.Empty(t, w.lines(), "what isn't there is forgotten")
		assert.Equal(t, map[State]float64{Fresh: 1}, w.counts(KindAnchor))
		assert.Equal(t, float64(other.NotAfter.Unix()), w.values()["certificate_not_after_timestamp_seconds anchor"])

		w.list.set(one, other)
		pass(time.Minute)
		assert.Equal(t, map[State]float64{Fresh: 1, Overdue: 1}, w.counts(KindAnchor))
		require.Len(t, w.lines(), 1, "what returns is told of as it is")
		assert.Equal(t, "overdue", w.lines()[0].State)
		assert.Len(t, w.recorder.events(), 1)

		w.list.set()
		pass(time.Minute)
		assert.Empty(t, w.counts(KindAnchor))
		assert.NotContains(t, w.values(), "certificate_not_after_timestamp_seconds anchor")
		assert.NotContains(t, w.values(), "certificate_remaining_ratio_min anchor")
		assert.Empty(t, w.Expiry.known)
		w.stop()
	})
}

// A clock that jumps about makes lines, but the Events of one validity only once each.
func TestExpiryClockSteps(t *testing.T) {
	w := newWatching(t)
	w.list.set(subjectOf(KindAnchor, "one", epoch, 100*day))
	w.leaves.Issued(leafOf(1, epoch, 100*day))
	for range 5 {
		for _, step := range []struct {
			days         int
			anchor, leaf State
		}{{10, Fresh, Fresh}, {95, Overdue, Overdue}, {20, Fresh, Fresh}, {85, Due, Overdue}} {
			now := epoch.AddDate(0, 0, step.days)
			next := w.look(now)
			assert.Equal(t, now.Add(leavesEvery), next)
			assert.Equal(t, map[State]float64{step.anchor: 1}, w.counts(KindAnchor), step.days)
			assert.Equal(t, map[State]float64{step.leaf: 1}, w.counts(KindLeaf), step.days)
		}
	}
	reasons := make(map[string]int)
	for _, event := range w.recorder.events() {
		reasons[event.about.Kind+" "+event.reason]++
	}
	assert.Equal(t, map[string]int{"ConfigMap CertificateFresh": 1, "ConfigMap CertificateDue": 1, "ConfigMap CertificateOverdue": 1, "Pod CertificateOverdue": 1}, reasons)
}

// Validities that are no good, or not yet.
func TestExpiryStrangeValidities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatching(t)
		w.Expiry.leaves = nil
		w.list.set(
			subjectOf(KindAnchor, "backwards", time.Now().Add(10*day), -9*day), // "ends" in a day
			subjectOf(KindIntermediate, "later", time.Now().Add(10*day), 10*day),
			subjectOf(KindCRL, "of no length", time.Now().Add(day), 0),
			Subject{Kind: KindIstiod, Key: "empty"},
		)
		w.run()
		assert.Equal(t, map[State]float64{Expired: 1}, w.counts(KindAnchor))
		assert.Equal(t, map[State]float64{Fresh: 1}, w.counts(KindIntermediate))
		assert.Equal(t, map[State]float64{Fresh: 1}, w.counts(KindCRL))
		assert.Equal(t, map[State]float64{Expired: 1}, w.counts(KindIstiod))
		assert.Zero(t, w.values()["certificate_remaining_ratio_min anchor"])
		assert.Equal(t, 1.0, w.values()["certificate_remaining_ratio_min intermediate"])
		assert.Len(t, w.lines(), 2)
		assert.Len(t, w.recorder.events(), 1, "the other is about nothing")

		pass(9 * day)
		assert.Equal(t, map[State]float64{Expired: 1}, w.counts(KindCRL))
		assert.Equal(t, map[State]float64{Fresh: 1}, w.counts(KindIntermediate))
		pass(9*day + lookApart)
		assert.Equal(t, map[State]float64{Due: 1}, w.counts(KindIntermediate))
		w.stop()
	})
}

// However often states change, the watch doesn't spin; with nothing to see, it looks once a minute.
func TestExpiryIsNoBusyLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatching(t)
		w.Expiry.leaves = nil
		w.list.set(subjectOf(KindAnchor, "one", time.Now(), 3650*day), subjectOf(KindAnchor, "gone", time.Now().Add(-day), time.Hour))
		w.run()
		pass(day)
		assert.InDelta(t, day/time.Minute, w.list.looks(), 2)

		var many []Subject
		for n := range 1000 {
			many = append(many, subjectOf(KindCRL, fmt.Sprint(n), time.Now().Add(2*time.Minute), time.Duration(n+1)*time.Millisecond))
		}
		before := w.list.looks()
		w.list.set(many...)
		pass(4 * time.Minute)
		assert.Less(t, w.list.looks()-before, 200, "of 3000 changes in a second")
		assert.Equal(t, map[State]float64{Expired: 1000}, w.counts(KindCRL))
		w.stop()
	})
}

// Leaves that are renewed as Istio's agents do it are never overdue, for weeks.
func TestExpiryLeavesRenewedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatching(t)
		const holders = 30
		renewals := 0
		next := make([]time.Time, holders)
		for n := range next { // they begin one after the other
			next[n] = time.Now().Add(time.Duration(n) * 12 * time.Hour / holders)
		}
		issued := make(map[int]bool)
		w.run()
		for end := time.Now().Add(5 * day); time.Now().Before(end); pass(10 * time.Minute) {
			now := time.Now()
			for n := range next {
				if now.Before(next[n]) {
					continue
				}
				if issued[n] {
					renewals++
				}
				issued[n] = true
				w.leaves.Issued(leafOf(n, now, day))
				next[n] = now.Add(12*time.Hour + time.Duration(rand.Int64N(int64(50*time.Minute)))) // 50 % to 54.2 %, and the step
			}
			require.Zero(t, w.counts(KindLeaf)[Overdue]+w.counts(KindLeaf)[Expired])
		}
		counts := w.counts(KindLeaf)
		assert.Equal(t, float64(holders), counts[Fresh]+counts[Due])
		assert.Equal(t, float64(renewals), w.values()["leaf_renewals_total due"])
		assert.Zero(t, w.values()["leaf_renewals_total overdue"])
		assert.Zero(t, w.values()["leaves_expired_total"])
		assert.Empty(t, w.lines())
		assert.Empty(t, w.recorder.events())
		assert.Less(t, w.values()["certificate_remaining_ratio_min leaf"], 0.6)
		assert.Greater(t, w.values()["certificate_remaining_ratio_min leaf"], 0.44)
		w.stop()
	})
}

// One that stops is told of when it is overdue, on its pod, and counted when it expires.
func TestExpiryLeafStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatching(t)
		w.run()
		pass(time.Minute)
		began := time.Now().Truncate(time.Second)
		leaf := leafOf(7, began, 100*time.Hour)
		w.leaves.Issued(leaf)
		at := func(age time.Duration) { pass(time.Until(began.Add(age))) }
		at(leavesEvery)
		assert.Equal(t, float64(leaf.NotAfter.Unix()), w.values()["certificate_not_after_timestamp_seconds leaf"])
		at(50*time.Hour - 1)
		assert.Equal(t, map[State]float64{Fresh: 1}, w.counts(KindLeaf))
		at(50*time.Hour + leavesEvery)
		assert.Equal(t, map[State]float64{Due: 1}, w.counts(KindLeaf))
		assert.Empty(t, w.lines(), "what is due is none of Info's business")
		at(55*time.Hour - time.Second) // 0.55 has no exact binary fraction
		assert.Equal(t, map[State]float64{Due: 1}, w.counts(KindLeaf))
		assert.Empty(t, w.recorder.events())
		at(55*time.Hour + leavesEvery)
		assert.Equal(t, map[State]float64{Overdue: 1}, w.counts(KindLeaf))

		events := w.recorder.events()
		require.Len(t, events, 1)
		assert.Equal(t, *leaf.Subject().About, events[0].about)
		assert.Equal(t, "CertificateOverdue", events[0].reason)
		lines := w.lines()
		require.Len(t, lines, 1)
		assert.Equal(t, line{
			Time: lines[0].Time, Level: "WARN", Msg: "leaves not renewed in time", Overdue: 1, OverdueNow: 1,
			Some: []string{"spiffe://cluster.local/ns/shop/sa/account-0 checkout-7d9c8b6f5-00007"},
		}, lines[0])

		at(100 * time.Hour)
		assert.Equal(t, map[State]float64{Overdue: 1}, w.counts(KindLeaf))
		at(100*time.Hour + leavesEvery + 1)
		assert.Empty(t, w.counts(KindLeaf))
		assert.NotContains(t, w.values(), "certificate_not_after_timestamp_seconds leaf")
		assert.Equal(t, 1.0, w.values()["leaves_expired_total"])
		lines = w.lines()
		require.Len(t, lines, 2)
		assert.Equal(t, 1, lines[1].Expired)
		assert.Empty(t, lines[1].Some)
		assert.Len(t, w.recorder.events(), 1)
		w.stop()
	})
}

// A flood of overdue leaves stays within its budget, and leaves that of other kinds alone.
func TestExpiryFloodOfLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatching(t)
		w.run()
		const flood = 10_000
		began := time.Now().Truncate(time.Second)
		for n := range flood {
			w.leaves.Issued(leafOf(n, began, time.Hour))
		}
		pass(33*time.Minute + leavesEvery + time.Second)
		assert.Equal(t, map[State]float64{Overdue: flood}, w.counts(KindLeaf))
		assert.Len(t, w.recorder.events(), eventBurst)
		values := w.values()
		assert.Equal(t, float64(eventBurst), values["certificate_events_total recorded"])
		assert.Equal(t, float64(flood-eventBurst), values["certificate_events_total suppressed"])
		lines := w.lines()
		require.Len(t, lines, 1)
		assert.Equal(t, flood, lines[0].Overdue)
		assert.Len(t, lines[0].Some, namesInSummary)

		var anchors []Subject
		for n := range 10 {
			anchors = append(anchors, subjectOf(KindAnchor, fmt.Sprint(n), began, 30*time.Minute))
		}
		w.list.set(anchors...)
		pass(leavesEvery)
		events := w.recorder.events()
		require.Len(t, events, eventBurst+10)
		assert.Equal(t, "CertificateExpired", events[eventBurst].reason)

		pass(time.Hour)
		assert.Empty(t, w.counts(KindLeaf))
		assert.Len(t, w.recorder.events(), eventBurst+10)
		w.stop()
	})
}

// Leaves that become overdue one after the other make a line a minute at most, and lose no count.
func TestExpirySummaries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatching(t)
		w.run()
		began := time.Now().Truncate(time.Second)
		for n := range 600 {
			w.leaves.Issued(leafOf(n, began.Add(time.Duration(n)*time.Second), 4*time.Hour))
		}
		pass(150 * time.Minute)
		lines, overdue := w.lines(), 0
		assert.InDelta(t, 10, len(lines), 2)
		for i, line := range lines {
			overdue += line.Overdue
			if i > 0 {
				assert.GreaterOrEqual(t, line.Time.Sub(lines[i-1].Time), time.Minute)
			}
		}
		assert.InDelta(t, 600, overdue, 60, "the last minute may be still to come")
		pass(2 * time.Hour)
		overdue = 0
		for _, line := range w.lines() {
			overdue += line.Overdue
		}
		assert.Equal(t, 600, overdue)
		assert.LessOrEqual(t, len(w.recorder.events()), eventBurst+int(10*time.Minute/eventEvery)+1)
		w.stop()
	})
}

// Of other kinds every Event is recorded in the end, each once.
func TestExpiryFloodOfAnchors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatching(t)
		w.Expiry.leaves = nil
		var many []Subject
		for n := range 100 {
			many = append(many, subjectOf(KindAnchor, fmt.Sprint(n), time.Now(), 10*day))
		}
		w.list.set(many...)
		w.run()
		pass(8*day + time.Second)
		assert.Len(t, w.recorder.events(), eventBurst)
		assert.Len(t, w.lines(), 100)
		pass(100 * eventEvery)
		names := make(map[string]int)
		for _, event := range w.recorder.events() {
			names[event.about.Name]++
		}
		assert.Len(t, names, 100)
		assert.Len(t, w.recorder.events(), 100)
		assert.Len(t, w.lines(), 100)
		w.stop()
	})
}

// Without anybody to tell, and without leaves, it counts.
func TestExpiryWithoutRecorder(t *testing.T) {
	r := &running{t: t, registry: prometheus.NewPedanticRegistry()}
	l := new(list)
	l.set(subjectOf(KindAnchor, "one", epoch, day))
	e := NewExpiry([]func() []Subject{l.source}, nil, nil, slog.New(slog.DiscardHandler), r.registry)
	assert.Equal(t, epoch.Add(day+1), e.look(epoch.Add(day)))
	assert.Equal(t, epoch.Add(2*day+lookEvery), e.look(epoch.Add(2*day)))
	assert.Equal(t, 1.0, r.values()["certificates anchor expired"])
}

// What sources name twice, or under a kind that isn't theirs, is passed over; the rest is in order.
func TestExpirySubjects(t *testing.T) {
	w := newWatching(t)
	one, two, crl := subjectOf(KindAnchor, "1", epoch, day), subjectOf(KindAnchor, "2", epoch, day), subjectOf(KindCRL, "0", epoch, day)
	again := one
	again.Text = "again"
	w.list.set(crl, two, one, again, subjectOf(KindLeaf, "leaf", epoch, day), subjectOf("other", "x", epoch, day))
	assert.Equal(t, []Subject{one, two, crl}, w.subjects())
	w.look(epoch)
	assert.Equal(t, map[State]float64{Fresh: 2}, w.counts(KindAnchor))
	assert.Equal(t, map[State]float64{Fresh: 1}, w.counts(KindCRL))
	assert.Empty(t, w.counts(KindLeaf))
}

// All combinations of kind and state are there before anything is known, and nothing else.
func TestExpiryMetrics(t *testing.T) {
	w := newWatching(t)
	want := map[string]float64{"leaves_expired_total": 0, "leaves_dropped_total": 0, "certificate_events_total recorded": 0, "certificate_events_total suppressed": 0}
	for _, state := range states {
		want["leaf_renewals_total "+string(state)] = 0
		for _, kind := range kinds {
			want["certificates "+string(kind)+" "+string(state)] = 0
		}
	}
	assert.Equal(t, want, w.values())
	w.look(epoch)
	assert.Equal(t, want, w.values())
}

// sink keeps what client-go sends.
type sink struct{ created chan *eventsv1.Event }

func (s *sink) Create(_ context.Context, event *eventsv1.Event) (*eventsv1.Event, error) {
	s.created <- event
	return event, nil
}

func (s *sink) Update(_ context.Context, event *eventsv1.Event) (*eventsv1.Event, error) {
	return event, nil
}

func (s *sink) Patch(_ context.Context, event *eventsv1.Event, _ []byte) (*eventsv1.Event, error) {
	return event, nil
}

// What client-go makes of our Events is what the API server accepts: in the object's namespace, with an
// action, and a note that isn't too long.
func TestExpiryEventsOfClientGo(t *testing.T) {
	s := &sink{created: make(chan *eventsv1.Event, 10)}
	broadcaster := events.NewBroadcaster(s)
	require.NoError(t, broadcaster.StartRecordingToSinkWithContext(t.Context()))
	t.Cleanup(broadcaster.Shutdown)
	one := subjectOf(KindFallbackAnchor, "one", epoch, day)
	one.Text = strings.Repeat("ä%s", 1000)
	l := new(list)
	l.set(one)
	e := NewExpiry([]func() []Subject{l.source}, nil, broadcaster.NewRecorder(runtime.NewScheme(), "signet.dev/signet"), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	e.look(epoch.Add(22 * time.Hour))
	select {
	case event := <-s.created:
		assert.Equal(t, *one.About, event.Regarding)
		assert.Equal(t, "istio-system", event.Namespace)
		assert.Equal(t, "CertificateOverdue", event.Reason)
		assert.Equal(t, "Watch", event.Action)
		assert.Equal(t, "Warning", event.Type)
		assert.Less(t, len(event.Note), 1024)
		assert.Contains(t, event.Note, "fallback anchor certificate is overdue: ä%sä%s")
		assert.Contains(t, event.Note, "valid from 2030-01-01T00:00:00Z until 2030-01-02T00:00:00Z")
	case <-time.After(3 * time.Minute):
		t.Fatal("no Event")
	}
}

func TestServingSubjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		about := corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Namespace: "istio-system", Name: "signet"}
		r := start(t, ServingConfig{}, false)
		source := ServingSubjects(r.Serving, about)
		synctest.Wait()
		assert.Empty(t, source(), "there is none yet")
		r.issuers.SetAnchors(r.ca.bundle())
		synctest.Wait()
		leaf := r.certificate().Leaf
		want := Subject{
			Kind: KindServing, Key: "serving", Text: r.names.String() + " serial 01",
			NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, About: &about,
		}
		assert.Equal(t, []Subject{want}, source())
		assert.Nil(t, ServingSubjects(r.Serving, corev1.ObjectReference{})()[0].About)

		// Weeks with the real thing: it may be due for the moment that a renewal takes, and no longer.
		w := newWatching(t)
		w.Expiry.leaves = nil
		w.Expiry.sources = append(w.Expiry.sources, source)
		w.run()
		pass(21 * day)
		assert.Equal(t, map[State]float64{Fresh: 1}, w.counts(KindServing))
		for _, line := range w.lines() {
			assert.Contains(t, []string{"due", "fresh"}, line.State)
		}
		assert.Equal(t, "serving", source()[0].Key)
		w.stop()
		r.stop()
	})
}

func TestAnchorSubjects(t *testing.T) {
	ca := newMemoryCA(t)
	store := issuer.NewStore(issuer.Ref{Name: "mesh"})
	about := corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: "istio-system", Name: "roots"}
	source := AnchorSubjects(store, about)
	assert.Empty(t, source())
	second := newMemoryCA(t).root
	bundle, err := issuer.NewBundle(ca.root, second)
	require.NoError(t, err)
	store.SetAnchors(bundle)
	var want []Subject
	for _, anchor := range bundle.Anchors() {
		sum := sha256.Sum256(anchor.Raw)
		want = append(want, Subject{
			Kind: KindAnchor, Key: hex.EncodeToString(sum[:]), Text: "CN=root serial 01",
			NotBefore: anchor.NotBefore, NotAfter: anchor.NotAfter, About: &about,
		})
	}
	assert.Equal(t, want, source())
	assert.Len(t, want, 2)
	store.SetAnchors(ca.bundle())
	assert.Len(t, source(), 1)
}

func TestIntermediates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := newMemoryCA(t), newMemoryCA(t)
		about := corev1.ObjectReference{APIVersion: "cert-manager.io/v1", Kind: "Issuer", Namespace: "istio-system", Name: "mesh"}
		seen := NewIntermediates(about)
		assert.Empty(t, seen.Subjects())
		seen.Seen([]*x509.Certificate{old.middle})
		parsedAgain, err := x509.ParseCertificate(old.middle.Raw)
		require.NoError(t, err)
		seen.Seen([]*x509.Certificate{parsedAgain, {Raw: []byte("a leaf")}})
		sum := sha256.Sum256(old.middle.Raw)
		want := Subject{
			Kind: KindIntermediate, Key: hex.EncodeToString(sum[:]), Text: "CN=middle serial 01",
			NotBefore: old.middle.NotBefore, NotAfter: old.middle.NotAfter, About: &about,
		}
		assert.Equal(t, []Subject{want}, seen.Subjects())

		pass(30 * day)
		assert.Equal(t, []Subject{want}, seen.Subjects(), "it stays while nothing is issued")
		seen.Seen([]*x509.Certificate{old.middle})
		pass(12 * time.Hour)
		seen.Seen([]*x509.Certificate{next.middle})
		assert.Len(t, seen.Subjects(), 2)
		pass(12 * time.Hour)
		seen.Seen([]*x509.Certificate{next.middle})
		assert.Len(t, seen.Subjects(), 2)
		pass(time.Second)
		seen.Seen(nil)
		got := seen.Subjects()
		require.Len(t, got, 1, "chains have gone on for a day without it")
		assert.NotEqual(t, want.Key, got[0].Key)
		assert.Equal(t, []*x509.Certificate{next.middle}, seen.Certificates())
	})
}

func TestIntermediatesBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := NewIntermediates(corev1.ObjectReference{})
		first := &x509.Certificate{IsCA: true, Raw: []byte("first")}
		for n := range 3 * maxIntermediates {
			seen.Seen([]*x509.Certificate{first, {IsCA: true, Raw: fmt.Append(nil, n)}})
			<-time.After(time.Second)
		}
		got := seen.Subjects()
		assert.Len(t, got, maxIntermediates)
		sum := sha256.Sum256(first.Raw)
		assert.Contains(t, got, caSubject(KindIntermediate, first, sum, nil), "what is in use stays")
	})
}

func TestIntermediatesConcurrently(t *testing.T) {
	seen := NewIntermediates(corev1.ObjectReference{})
	var group sync.WaitGroup
	for part := range 4 {
		group.Go(func() {
			for n := range 1000 {
				seen.Seen([]*x509.Certificate{{IsCA: true, Raw: bytes.Repeat([]byte{byte(n % 10)}, 10+part%2)}})
				if n%50 == 0 {
					seen.Subjects()
				}
			}
		})
	}
	group.Wait()
	assert.Len(t, seen.Subjects(), 20)
}

// Listings of the inspection API while the watch looks; for the race detector.
func TestExpiryConcurrently(t *testing.T) {
	w := newWatching(t)
	w.list.set(subjectOf(KindAnchor, "one", time.Now().Add(-day), day))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group sync.WaitGroup
	group.Go(func() { assert.NoError(t, w.Expiry.Start(ctx)) })
	for range 2 {
		group.Go(func() {
			for n := range 200 {
				w.leaves.Issued(leafOf(n, time.Now(), day))
				assert.Len(t, w.Subjects(), 1)
				_, err := w.registry.Gather()
				assert.NoError(t, err)
			}
			cancel()
		})
	}
	group.Wait()
}

func BenchmarkIntermediatesSeen(b *testing.B) {
	ca := newMemoryCA(b)
	seen := NewIntermediates(corev1.ObjectReference{})
	certs := []*x509.Certificate{ca.middle}
	b.ReportAllocs()
	for b.Loop() {
		seen.Seen(certs)
	}
}
