// Package audit writes the audit stream: one CloudEvents 1.0 event in each line, in the JSON format, for each
// certificate that was issued, for what was refused, for each probe and for each read of the inspection API.
//
// It promises: whoever tells it of an event never waits for the disk or for a reader; what it can't write is counted,
// and the stream itself says so; no line is ever broken, and none has a token, a key, a CSR or a certificate in it; a
// flood of refusals is counted by the minute, so that it fills neither memory nor disk. docs/audit.md has an example of
// each event, and what becomes of it in OCSF.
package audit

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/setting"
)

// Config is where the audit stream goes.
type Config struct {
	// Output is stdout, or the absolute path of a file, which is made where it isn't there (its directory isn't) and
	// appended to. A file that was renamed or deleted is made anew before the next line, so that rotation needs no
	// signal; copying and truncating it works too. Default none, for no stream.
	Output string `json:"output,omitempty"`
	// MaxFileMiB is how large the file becomes, in MiB, before Signet itself renames it to one that ends in .1, in
	// place of the one before. Default 0, for rotation by somebody else; at least 16.
	MaxFileMiB int `json:"maxFileMiB,omitempty"`
}

// toStdout is the Output that is no file.
const toStdout = "stdout"

// Validate reports what is wrong with c.
func (c Config) Validate(p setting.Problems) {
	if c.Output != "" && c.Output != toStdout && !filepath.IsAbs(c.Output) {
		p.Addf("output", `%q is not an output; it must be stdout or an absolute path such as /var/log/signet/audit.jsonl`, c.Output)
	}
	p.Count("maxFileMiB", c.MaxFileMiB, 2*maxQueueBytes>>20, 1<<20)
	if c.MaxFileMiB != 0 && (c.Output == "" || c.Output == toStdout) {
		p.Addf("maxFileMiB", "it is set, but output is no file; one of them must change")
	}
}

// Origin is whose events a stream has.
type Origin struct {
	// Cluster is the ID of the cluster, Namespace that of Signet in it, and Replica the name of the pod.
	Cluster, Namespace, Replica string
}

// Bounds of a stream.
const (
	// maxQueueEvents and maxQueueBytes bound what waits to be written; as much may be under way besides.
	maxQueueEvents = 10_000
	maxQueueBytes  = 8 << 20
	// retryPause is how long a write that failed isn't tried again.
	retryPause = time.Second
	// drainTime is how long Start goes on writing when it is told to stop.
	drainTime = 5 * time.Second
)

// Stream is an audit stream. Its methods are safe for concurrent use, and those that tell of an event don't wait for
// it to be written. Until Start runs events are kept, as many as there is room for.
type Stream struct {
	out     *output // nil where there is no stream; used by Start only
	source  string
	run     string // tells the IDs of this process from those of others
	number  atomic.Uint64
	queue   *queue
	refused *tally[refusalKey]
	reads   *tally[readKey]
	log     *slog.Logger
	metrics *metrics
	failing atomic.Pointer[failure] // nil while all is well

	window, retry, drain time.Duration
}

// failure is since when, and why, nothing can be written.
type failure struct {
	since time.Time
	err   error
}

// New makes the stream that cfg says, or one that swallows everything where it says none. A file is opened now. The
// error is that of a path which can't be right: no such directory, no permission, or not a file. What may pass, such
// as a full disk, is no error here; Start tries again.
func New(cfg Config, origin Origin, log *slog.Logger, reg prometheus.Registerer) (*Stream, error) {
	return newStream(cfg, origin, os.Stdout, log, reg)
}

func newStream(cfg Config, origin Origin, stdout *os.File, log *slog.Logger, reg prometheus.Registerer) (*Stream, error) {
	s := &Stream{
		source:  sourceOf(origin),
		run:     rand.Text()[:16],
		queue:   newQueue(maxQueueEvents, maxQueueBytes),
		refused: newTally[refusalKey](),
		reads:   newTally[readKey](),
		log:     log,
		window:  time.Minute, retry: retryPause, drain: drainTime,
	}
	if cfg.Output != "" {
		var err error
		if s.out, err = openOutput(cfg, stdout); err != nil {
			return nil, fmt.Errorf("audit.output: %w", err)
		}
	}
	s.metrics = newMetrics(reg, s)
	return s, nil
}

// NeedLeaderElection says that every replica has a stream of its own.
func (s *Stream) NeedLeaderElection() bool { return false }

// Issued tells of a certificate that was issued. Its event has the certificate's SHA-256 for an ID, so that one which
// is told of twice can be recognised.
func (s *Stream) Issued(i ledger.Issuance) {
	if s.out == nil {
		return
	}
	id := i.SHA256
	if id == "" {
		id = s.nextID()
	}
	at := i.RecordedAt
	if at.IsZero() {
		at = time.Now()
	}
	send(s, kindIssued, id, cmp.Or(i.Identity, first(i.SANs)), at, issuedData(&i))
}

// Refused counts a refusal, or several where r has a count. There is one event a minute for all that are of the same
// reason, code, caller and address.
func (s *Stream) Refused(r ledger.Refusal) {
	if s.out == nil {
		return
	}
	key, seen := keyOfRefusal(r, time.Now())
	if !s.refused.add(key, key.other(), seen) {
		s.lose(kindRefused)
	}
}

// Probed tells of a probe.
func (s *Stream) Probed(p Probe) {
	if s.out == nil {
		return
	}
	if p.Time.IsZero() {
		p.Time = time.Now()
	}
	data := probeData(p)
	send(s, kindProbe, s.nextID(), "namespaces/"+data.Namespace+"/services/"+data.Service, p.Time, data)
}

// Read implements [api.Auditor]. Reads that were not successful are counted like refusals, since they cost a stranger
// nothing.
func (s *Stream) Read(r api.Read) {
	if s.out == nil {
		return
	}
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	if r.Status >= 400 {
		key, seen := keyOfRead(r)
		if !s.reads.add(key, key.other(), seen) {
			s.lose(kindRead)
		}
		return
	}
	send(s, kindRead, s.nextID(), r.Route, r.Time.Add(r.Duration), readData(r))
}

// send puts an event into the queue.
func send[T any](s *Stream, k kind, id, subject string, at time.Time, data T) {
	// What there is no room for needn't be encoded. The queue counts it.
	if !s.queue.room(k) {
		s.metrics.lost(k)
		return
	}
	line, err := s.encode(k, id, subject, at, data)
	if err != nil {
		s.log.Error("audit event lost: it can't be encoded", "type", k.name(), "err", err)
		s.lose(k)
		return
	}
	if !s.queue.put(k, line) {
		s.metrics.lost(k)
	}
}

func (s *Stream) encode(k kind, id, subject string, at time.Time, data any) ([]byte, error) {
	line, err := json.Marshal(Event[any]{
		SpecVersion: specVersion, ID: text(id, maxName), Source: s.source, Type: k.eventType(), Subject: text(subject, maxName),
		Time: at.UTC(), DataContentType: "application/json", Data: data,
	})
	if err != nil {
		return nil, err
	}
	return append(line, '\n'), nil
}

// lose counts an event that never came into the queue.
func (s *Stream) lose(k kind) {
	s.queue.lose(k)
	s.metrics.lost(k)
}

// nextID is one that no other event of any process has.
func (s *Stream) nextID() string { return s.run + "-" + strconv.FormatUint(s.number.Add(1), 10) }

// Start writes until ctx ends, and then for a few seconds what is left. What comes later, and what could not be
// written by then, is lost, and the log says how much. So it is to be stopped after all that tells it of events. It
// can be called once, and is never the reason why anything else stops: the error is always nil.
func (s *Stream) Start(ctx context.Context) error {
	if s.out == nil {
		<-ctx.Done()
		return nil
	}
	window := time.NewTicker(s.window)
	defer window.Stop()
	b := &batch{}
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-window.C:
			s.flush(ctx, b) // so that there is room
			s.count()
		case <-s.queue.more:
		}
		s.flush(ctx, b)
	}
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.drain)
	defer cancel()
	s.flush(draining, b)
	s.count()
	s.queue.end()
	s.flush(draining, b)
	s.out.close()
	s.abandon(b)
	return nil
}

// count makes events of what was counted in the window that ends.
func (s *Stream) count() {
	for key, seen := range s.refused.take() {
		send(s, kindRefused, s.nextID(), key.identity, seen.last, key.data(seen))
	}
	for key, seen := range s.reads.take() {
		send(s, kindRead, s.nextID(), key.route, seen.last, key.data(seen))
	}
}

// flush writes what b has left, and then what waits, until that is done or ctx ends.
func (s *Stream) flush(ctx context.Context, b *batch) {
	if !s.write(ctx, b) {
		return
	}
	if lost := s.queue.take(b); lost.sum() > 0 {
		s.confess(b, lost)
	}
	s.write(ctx, b)
}

// write writes what b has left, and says whether it came to the end.
func (s *Stream) write(ctx context.Context, b *batch) bool {
	for len(b.rest()) > 0 && ctx.Err() == nil {
		written, err := s.out.write(b.rest())
		for _, k := range b.advance(written) {
			s.metrics.written(k)
		}
		s.say(err)
		if err == nil {
			continue
		}
		again := time.NewTimer(s.retry)
		select {
		case <-ctx.Done():
			again.Stop()
		case <-again.C:
		}
	}
	return len(b.rest()) == 0
}

// confess adds to b an event about those that were lost before it.
func (s *Stream) confess(b *batch, l lost) {
	now := time.Now()
	data := Lost{Count: l.sum(), ByType: l.byType(), Since: l.since.UTC(), Until: now.UTC()}
	s.log.Warn("audit events were lost", "count", data.Count, "since", data.Since)
	line, err := s.encode(kindLost, s.nextID(), "", now, data)
	if err != nil { // it is made of numbers and times of this process
		s.log.Error("audit events were lost, and the event about it can't be encoded", "err", err)
		return
	}
	b.add(kindLost, line)
}

// abandon counts what is never written.
func (s *Stream) abandon(b *batch) {
	left := len(b.left())
	for _, k := range b.left() {
		s.metrics.lost(k)
	}
	rest := &batch{}
	after := s.queue.take(rest)
	left += len(rest.kinds)
	for _, k := range rest.kinds {
		s.metrics.lost(k)
	}
	if total := int64(left) + after.sum(); total > 0 {
		s.log.Error("audit events lost at the end", "count", total)
	}
}

// say notes whether writing works, and logs when that changes.
func (s *Stream) say(err error) {
	before := s.failing.Load()
	switch {
	case err != nil:
		s.metrics.failures.Inc()
		now := failure{time.Now(), err}
		if before != nil {
			now.since = before.since
		} else {
			s.log.Error("the audit stream can't be written; events wait, and are lost when there are too many", "output", s.out.name, "err", err)
		}
		s.failing.Store(&now)
	case before != nil:
		s.failing.Store(nil)
		s.log.Info("the audit stream is written again", "output", s.out.name, "after_seconds", time.Since(before.since).Seconds())
	}
}

// Ready says for people how things are. It is never an error, because a replica can sign without its audit stream.
func (s *Stream) Ready(now time.Time) (string, error) {
	if s.out == nil {
		return "off", nil
	}
	waiting, lost := s.queue.waiting()
	state := fmt.Sprintf("to %s, %d events wait, %d lost since the start", s.out.name, waiting, lost)
	if f := s.failing.Load(); f != nil {
		state += fmt.Sprintf("; nothing written for %s: %v", now.Sub(f.since).Round(time.Second), f.err)
	}
	return state, nil
}

func first(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}
