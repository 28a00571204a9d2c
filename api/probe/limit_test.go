package probe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/signet-ca/signet/api"
)

func TestLimitsUnderWay(t *testing.T) {
	l := newLimits(10_000)
	for range maxProbesEach {
		require.NoError(t, l.enter("alice"))
	}
	assert.ErrorIs(t, l.enter("alice"), api.ErrTooManyProbes)
	for n := range maxProbes - maxProbesEach {
		require.NoError(t, l.enter(fmt.Sprint("user ", n)))
	}
	assert.ErrorIs(t, l.enter("bob"), api.ErrTooManyProbes)
	assert.ErrorIs(t, l.enterOwn(), api.ErrTooManyProbes)
	assert.Equal(t, maxProbes, l.underWay())
	l.leave("alice")
	require.NoError(t, l.enterOwn())
	l.leaveOwn()
	require.NoError(t, l.enter("alice"))
	l.leave("alice")
	l.leave("alice")
	assert.NotContains(t, l.each, "alice", "nothing is kept of who has nothing under way")
}

func TestLimitsPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(60)
		once := func(caller string) error {
			if err := l.enter(caller); err != nil {
				return err
			}
			l.leave(caller)
			return nil
		}
		for range 15 {
			require.NoError(t, once("alice"))
		}
		assert.ErrorIs(t, once("alice"), api.ErrTooManyProbes)
		assert.NoError(t, once("bob"), "each has their own")
		time.Sleep(time.Second)
		assert.NoError(t, once("alice"))
		assert.Error(t, once("alice"))
		time.Sleep(time.Hour)
		for range 15 {
			require.NoError(t, once("alice"))
		}
		assert.Error(t, once("alice"))
		for n := range keptCallers + 100 {
			require.NoError(t, once(fmt.Sprint(n)))
		}
		assert.LessOrEqual(t, len(l.paces.Keys()), keptCallers)
	})
}

// TestDials: how many connections are open, and how fast they come, is bounded for all together.
func TestDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Prober{timeout: 3 * time.Second, pace: rate.NewLimiter(rate.Inf, 1), dialing: make(chan struct{}, maxDials)}
		var mu sync.Mutex
		open, most, all := 0, 0, 0
		p.dial = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
			mu.Lock()
			open++
			all++
			most = max(most, open)
			mu.Unlock()
			<-ctx.Done() // nobody answers
			mu.Lock()
			open--
			mu.Unlock()
			return nil, ctx.Err()
		}
		connect := func(ctx context.Context) error { return p.connect(ctx, addrPort(1), 1, nil) }
		var group sync.WaitGroup
		for range 5 * maxDials {
			group.Go(func() { assert.ErrorContains(t, connect(t.Context()), "no connection: context deadline exceeded") })
		}
		group.Wait()
		assert.Equal(t, maxDials, most)
		assert.Equal(t, 5*maxDials, all)

		// Who has no time left doesn't dial, be it for want of a place or of pace.
		p.pace = rate.NewLimiter(1, 1)
		began := time.Now()
		_ = connect(t.Context())
		_ = connect(t.Context())
		assert.Equal(t, 6*time.Second, time.Since(began), "by then it is time")
		p.pace = rate.NewLimiter(1, 1)
		p.pace.Allow()
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		assert.ErrorIs(t, connect(short), errNoTime)
		for range maxDials {
			p.dialing <- struct{}{}
		}
		short, cancel = context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		assert.ErrorIs(t, connect(short), errNoTime)
		assert.Equal(t, 5*maxDials+2, all)
	})
}

// TestDialer: the real one.
func TestDialer(t *testing.T) {
	conn, err := dialer(t.Context(), netip.MustParseAddrPort(listen(t, func(net.Conn) {}).String()))
	require.NoError(t, err)
	conn.Close()
}

func probed(verdict api.ProbeVerdict, code api.ProbeCode) *api.Probe {
	return &api.Probe{Time: time.Unix(1e9, 0), Verdict: verdict, Results: []api.ProbeResult{{
		Pod: "web-1", Port: 80, Verdict: verdict, Findings: []api.ProbeFinding{{Code: code, Verdict: verdict, Detail: "why"}},
	}}}
}

func TestLatest(t *testing.T) {
	r := newRig(t, Config{Schedule: ScheduleConfig{Max: 3}})
	l := r.latest
	assert.Empty(t, r.Problems("a", "web"))
	assert.True(t, l.set("a", "web", probed(api.ProbeAlarm, api.FoundExpired), 1))
	assert.False(t, l.set("a", "web", probed(api.ProbeAlarm, api.FoundExpired), 1), "nothing new")
	assert.Equal(t, []api.Problem{{Code: api.ProblemProbe, Detail: "probed at 2001-09-09T01:46:40Z: pod web-1, port 80: expired: why"}}, r.Problems("a", "web"))
	l.set("b", "web", probed(api.ProbeUnreachable, api.FoundUnreachable), 2)
	assert.Empty(t, r.Problems("b", "web"), "that isn't for somebody to look at")
	l.set("c", "web", probed(api.ProbeGood, ""), 2)
	l.set("d", "web", probed(api.ProbeAlarm, api.FoundExpired), 2)
	assert.Empty(t, r.Problems("d", "web"), "there is no place for it")
	counts := func() map[string]float64 { return samples(t, r.registry, "probe_results") }
	assert.Equal(t, map[string]float64{"alarm": 1, "good": 1, "unreachable": 1, "not-dialed": 0, "unsure": 0, "warning": 0}, counts())
	l.forget(1)
	assert.Empty(t, r.Problems("a", "web"))
	assert.Equal(t, map[string]float64{"alarm": 0, "good": 1, "unreachable": 1, "not-dialed": 0, "unsure": 0, "warning": 0}, counts())
	l.set("d", "web", probed(api.ProbeAlarm, api.FoundExpired), 3)
	assert.Len(t, r.Problems("d", "web"), 1)
	assert.True(t, l.set("d", "web", probed(api.ProbeGood, ""), 3))
	assert.Empty(t, r.Problems("d", "web"))
	many := probed(api.ProbeAlarm, api.FoundExpired)
	for range 100 {
		many.Results = append(many.Results, many.Results[0])
	}
	l.set("d", "web", many, 3)
	assert.Len(t, r.Problems("d", "web"), maxFindings)
}

func TestNewRefuses(t *testing.T) {
	_, err := New(Config{}, Sources{}, nil, prometheus.NewRegistry())
	assert.ErrorContains(t, err, "trust domain")
}

// TestChosen: some pods, or the one that is named.
func TestChosen(t *testing.T) {
	var pods []api.Pod
	for n := range 50 {
		pods = append(pods, api.Pod{Name: fmt.Sprintf("web-%02d", n)})
	}
	for asked, want := range map[int]int{0: defaultPods, 1: 1, 7: 7, maxPods: maxPods, 1000: maxPods, -1: defaultPods} {
		got, err := chosen(pods, api.ProbeRequest{Pods: asked})
		require.NoError(t, err)
		assert.Len(t, got, want)
		assert.IsIncreasing(t, names(got))
	}
	seen := make(map[string]bool)
	for range 1000 {
		got, err := chosen(pods, api.ProbeRequest{Pods: 1})
		require.NoError(t, err)
		seen[got[0].Name] = true
	}
	assert.Greater(t, len(seen), 25, "any of them")
	assert.Equal(t, "web-00", pods[0].Name, "what the inventory has isn't changed")
	got, err := chosen(pods, api.ProbeRequest{Pod: "web-07"})
	require.NoError(t, err)
	assert.Equal(t, []string{"web-07"}, names(got))
	_, err = chosen(pods, api.ProbeRequest{Pod: "other"})
	assert.ErrorIs(t, err, api.ErrBadProbe)
}

func names(pods []api.Pod) []string {
	var all []string
	for _, pod := range pods {
		all = append(all, pod.Name)
	}
	return all
}

// TestOutcomes: what becomes of probes is counted.
func TestOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the pace has a clock
		r := newRig(t, Config{PerMinute: 12})
		r.data.services = []api.Service{{Namespace: "shop", Name: "web"}, {Namespace: "other", Name: "web"}}
		for _, row := range []struct {
			q   api.ProbeRequest
			err error
		}{
			{api.ProbeRequest{Namespace: "other", Service: "web"}, api.ErrNotFound}, // not to be seen
			{api.ProbeRequest{Namespace: "shop", Service: "web", Protocol: "ftp"}, api.ErrBadProbe},
			{api.ProbeRequest{Namespace: "shop", Service: "web", ServerName: "10.0.0.1"}, api.ErrBadProbe},
			{api.ProbeRequest{Namespace: "shop", Service: "nothing"}, api.ErrTooManyProbes}, // the fourth
		} {
			_, err := r.Probe(t.Context(), "alice", row.q, only("shop"))
			assert.ErrorIs(t, err, row.err, "%+v", row.q)
		}
		_, err := r.Probe(t.Context(), "bob", api.ProbeRequest{Namespace: "shop", Service: "web", ServerName: "UPPER.example"}, only("shop"))
		assert.ErrorIs(t, err, api.ErrBadProbe)
		assert.Equal(t, map[string]float64{"bad": 4, "too-many": 1}, samples(t, r.registry, "probes_total"))
		assert.Zero(t, r.limits.underWay())
	})
}
