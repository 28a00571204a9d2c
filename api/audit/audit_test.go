package audit

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/setting"
)

func TestValidate(t *testing.T) {
	for _, row := range []struct {
		cfg  Config
		want string // "" is right
	}{
		{Config{}, ""},
		{Config{Output: "stdout"}, ""},
		{Config{Output: "/var/log/audit.jsonl"}, ""},
		{Config{Output: "/var/log/audit.jsonl", MaxFileMiB: 16}, ""},
		{Config{Output: "audit.jsonl"}, `audit.output: "audit.jsonl" is not an output`},
		{Config{Output: "stderr"}, `audit.output: "stderr" is not an output`},
		{Config{Output: "/var/log/audit.jsonl", MaxFileMiB: 15}, "audit.maxFileMiB: 15 is out of range"},
		{Config{Output: "/var/log/audit.jsonl", MaxFileMiB: -1}, "audit.maxFileMiB: -1 is out of range"},
		{Config{Output: "stdout", MaxFileMiB: 16}, "audit.maxFileMiB: it is set, but output is no file"},
		{Config{MaxFileMiB: 16}, "audit.maxFileMiB: it is set, but output is no file"},
	} {
		p := setting.NewProblems()
		row.cfg.Validate(p.At("audit"))
		if row.want == "" {
			assert.NoError(t, p.Err(), "%+v", row.cfg)
		} else {
			assert.ErrorContains(t, p.Err(), row.want, "%+v", row.cfg)
		}
	}
}

// TestNewRefusesWrongPaths: what can't become right by itself ends the start.
func TestNewRefusesWrongPaths(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for path, want := range map[string]string{
		filepath.Join(dir, "absent", "audit.jsonl"): "no such file or directory",
		dir:  "is a directory",
		pipe: "is no file; name a file, or stdout",
	} {
		_, err := New(Config{Output: path}, Origin{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		require.ErrorContains(t, err, "audit.output: open the audit file:")
		assert.ErrorContains(t, err, want)
	}
}

func TestOff(t *testing.T) {
	reg := prometheus.NewRegistry()
	s, err := New(Config{}, Origin{}, slog.New(slog.DiscardHandler), reg)
	require.NoError(t, err)
	r := (&rig{Stream: s}).start(t)
	s.Issued(issuance(0))
	s.Refused(ledger.Refusal{Reason: "r"})
	s.Probed(Probe{})
	s.Read(api.Read{Status: 401})
	s.Read(api.Read{Status: 200})
	r.stop()
	waiting, lost := s.queue.waiting()
	assert.Zero(t, waiting)
	assert.Zero(t, lost)
	assert.Empty(t, s.refused.take())
	assert.Empty(t, s.reads.take())
	assert.Equal(t, "off", r.ready())
}

// TestFile: what was told before the stream ran is written, in order, with the file's mode, behind what was there.
func TestFile(t *testing.T) {
	r := newRig(t, Config{}, nil)
	info, err := os.Stat(r.path)
	require.NoError(t, err)
	assert.Zero(t, info.Mode().Perm()&^0o640)
	for n := range 100 {
		r.Issued(issuance(n))
	}
	r.start(t)
	eventually(t, func() bool { return r.counted(t, kindIssued, "written") == 100 }, "all are written")
	events := r.events(t)
	require.Len(t, events, 100)
	for n, e := range events {
		assert.Equal(t, issuance(n).SHA256, e.ID)
	}
	assert.Contains(t, r.ready(), "to "+r.path+", 0 events wait, 0 lost")
	r.stop()

	again := newRig(t, Config{Output: r.path}, nil).start(t)
	again.Issued(issuance(100))
	again.stop()
	assert.Len(t, r.events(t), 101)
}

// TestStopDrains: all that was told before the stop is in the file, counts of the minute too; what comes later is
// counted as lost.
func TestStopDrains(t *testing.T) {
	r := newRig(t, Config{}, nil).start(t)
	var tellers sync.WaitGroup
	for teller := range 4 {
		tellers.Go(func() {
			for n := range 500 {
				r.Issued(issuance(teller*500 + n))
				r.Refused(ledger.Refusal{Reason: "token", Code: "Unauthenticated", Peer: "10.0.0.1"})
				r.Read(api.Read{Status: 403, User: "u", Method: "GET", Route: "/v1/trust"})
				r.Read(api.Read{Status: 200, User: "u", Method: "GET", Route: "/v1/trust"})
				r.Probed(Probe{Service: "s"})
			}
		})
	}
	tellers.Wait()
	r.stop()
	of, ids := make(map[string]int), make(map[string]bool)
	for _, e := range r.events(t) {
		of[e.Type]++
		assert.False(t, ids[e.ID], "ID %s occurs twice", e.ID)
		ids[e.ID] = true
		if e.Type == TypeRefused {
			assert.EqualValues(t, 2000, data[Refused](t, e).Count)
		}
		if d := data[Read]; e.Type == TypeRead && d(t, e).Status == 403 {
			assert.EqualValues(t, 2000, d(t, e).Count)
		}
	}
	assert.Equal(t, map[string]int{TypeIssued: 2000, TypeRefused: 1, TypeRead: 2001, TypeProbe: 2000}, of)

	r.Issued(issuance(0))
	assert.Equal(t, 1, r.counted(t, kindIssued, "lost"))
	assert.Contains(t, r.ready(), "1 lost")
}

// TestWindow: counts become events by the minute, without a stop.
func TestWindow(t *testing.T) {
	r := newRig(t, Config{}, nil)
	r.window = 10 * time.Millisecond
	r.start(t)
	r.Refused(ledger.Refusal{Reason: "token", Code: "Unauthenticated", Peer: "10.0.0.1", Count: 3})
	eventually(t, func() bool { return r.counted(t, kindRefused, "written") == 1 }, "the count is written")
	r.Refused(ledger.Refusal{Reason: "token", Code: "Unauthenticated", Peer: "10.0.0.1"})
	eventually(t, func() bool { return r.counted(t, kindRefused, "written") == 2 }, "so is that of the next window")
	events := r.events(t)
	require.Len(t, events, 2)
	assert.EqualValues(t, 3, data[Refused](t, events[0]).Count)
	assert.EqualValues(t, 1, data[Refused](t, events[1]).Count)
	assert.NotEqual(t, events[0].ID, events[1].ID)
}

// TestQueueIsBounded: by number and by bytes; what has no room is told of behind what had, once.
func TestQueueIsBounded(t *testing.T) {
	size := func() int {
		r := newRig(t, Config{}, nil)
		r.Issued(issuance(0))
		return r.queue.bytes()
	}()
	for name, adjust := range map[string]func(*queue){
		"events": func(q *queue) { q.maxEvents = 10 },
		"bytes":  func(q *queue) { q.maxBytes = 10*size + size/2 },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{}, nil)
			adjust(r.queue)
			for n := range 15 {
				r.Issued(issuance(n))
			}
			r.Read(api.Read{Status: 200, Filters: map[string]string{"f": strings.Repeat("x", 200)}, User: strings.Repeat("u", 500), Method: strings.Repeat("m", 500)})
			assert.LessOrEqual(t, r.queue.bytes(), 11*size)
			assert.Contains(t, r.ready(), "10 events wait, 6 lost")
			r.start(t)
			eventually(t, func() bool { return r.counted(t, kindLost, "written") == 1 }, "the loss is told of")
			r.Issued(issuance(20))
			r.stop()
			events := r.events(t)
			require.Len(t, events, 12)
			for n, e := range events[:10] {
				assert.Equal(t, issuance(n).SHA256, e.ID)
			}
			lost := data[Lost](t, events[10])
			assert.Equal(t, TypeLost, events[10].Type)
			assert.EqualValues(t, 6, lost.Count)
			assert.Equal(t, map[string]int64{TypeIssued: 5, TypeRead: 1}, lost.ByType)
			assert.False(t, lost.Until.Before(lost.Since))
			assert.Equal(t, issuance(20).SHA256, events[11].ID)
			assert.Equal(t, 5, r.counted(t, kindIssued, "lost"))
			assert.Equal(t, 1, r.counted(t, kindRead, "lost"))
			assert.Equal(t, 11, r.counted(t, kindIssued, "written"))
			assert.Contains(t, r.log.String(), "audit events were lost")
		})
	}
}

// TestFlood: a million refusals, and reads, of strangers who are all different become few events, and none is missing
// in the counts.
func TestFlood(t *testing.T) {
	r := newRig(t, Config{}, nil)
	const many = 1_000_000
	var tellers sync.WaitGroup
	tellers.Go(func() {
		for n := range many {
			r.Refused(ledger.Refusal{Reason: []string{"token", "identity"}[n%2], Code: "Unauthenticated", Peer: strconv.Itoa(n)})
		}
	})
	tellers.Go(func() {
		for n := range many / 100 {
			r.Read(api.Read{Status: 401 + n%3, Method: "GET", Route: "/v1/services", Address: strconv.Itoa(n)})
		}
	})
	tellers.Wait()
	r.start(t)
	r.stop()
	var refused, read, others int64
	events := r.events(t)
	for _, e := range events {
		switch e.Type {
		case TypeRefused:
			d := data[Refused](t, e)
			refused += d.Count
			if d.Others {
				others += d.Count
				assert.Empty(t, d.Identity+d.Address)
			}
		case TypeRead:
			read += data[Read](t, e).Count
		}
	}
	assert.EqualValues(t, many, refused)
	assert.EqualValues(t, many/100, read)
	assert.Greater(t, others, int64(many*9/10))
	assert.LessOrEqual(t, len(events), 2*(maxKinds+maxOthers))
	info, err := os.Stat(r.path)
	require.NoError(t, err)
	assert.Less(t, info.Size(), int64(2<<20))
}

// TestFloodForHours: counts with details are so many a day.
func TestFloodForHours(t *testing.T) {
	tally := newTally[int]()
	at := time.Now()
	events, minutes := 0, 60
	for minute := range minutes {
		for n := range 3000 {
			tally.addAt(at.Add(time.Duration(minute)*time.Minute), minute*3000+n, -1, seen{count: 1})
		}
		events += len(tally.take())
	}
	assert.LessOrEqual(t, events, detailedBurst+minutes*61+minutes)
	assert.Greater(t, events, detailedBurst)
}

// TestOthersAreBounded: even reasons that are no closed set don't fill the memory.
func TestOthersAreBounded(t *testing.T) {
	r := newRig(t, Config{}, nil)
	for n := range 3000 {
		r.Refused(ledger.Refusal{Reason: fmt.Sprint(n), Code: "Internal"})
	}
	assert.Equal(t, 3000-maxKinds-maxOthers, r.counted(t, kindRefused, "lost"))
	assert.Len(t, r.refused.take(), maxKinds+maxOthers)
}

// TestKindsAreBounded: where nothing is written for hours, so many are told apart by then.
func TestKindsAreBounded(t *testing.T) {
	tally := newTally[int]()
	tally.budget.SetLimit(rate.Inf)
	for n := range 3000 {
		assert.True(t, tally.add(n, -1, seen{count: 1}))
	}
	counts := tally.take()
	assert.Len(t, counts, maxKinds+1)
	assert.EqualValues(t, 3000-maxKinds, counts[-1].count)
}

// TestCountsAtTheEnd: counts of the last minute have room behind what waits.
func TestCountsAtTheEnd(t *testing.T) {
	r := newRig(t, Config{}, nil)
	r.queue.maxEvents = 3
	for n := range 3 {
		r.Issued(issuance(n))
	}
	r.Refused(ledger.Refusal{Reason: "token", Code: "Unauthenticated"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, r.Start(ctx))
	events := r.events(t)
	require.Len(t, events, 4)
	assert.Equal(t, TypeRefused, events[3].Type)
}

func BenchmarkIssued(b *testing.B) {
	r := newRig(b, Config{}, nil)
	i := issuance(1)
	b.ReportAllocs()
	written := &batch{}
	for n := 0; b.Loop(); n++ {
		r.Issued(i)
		if n%100 == 0 {
			r.queue.take(written) // as Start does
			written.advance(len(written.rest()))
		}
	}
	require.Zero(b, r.counted(b, kindIssued, "lost"))
}

func BenchmarkRefused(b *testing.B) {
	r := newRig(b, Config{}, nil)
	refusal := ledger.Refusal{Reason: "token", Code: "Unauthenticated", Peer: "10.0.0.1"}
	b.ReportAllocs()
	for b.Loop() {
		r.Refused(refusal)
	}
}
