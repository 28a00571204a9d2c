// Package ledger keeps one immutable record for each certificate that was issued, and counts of what
// was refused, so that it can be said at any later time who held which certificate.
//
// It promises: when [Store.Record] has returned nil, the record is on disk (fsynced) and survives a
// crash of the process and of the machine; a crash needs no repair by hand; what is missing is known
// and said ([Coverage]). It never holds a token, a private key or a certificate request.
//
// Its words: the store is the replica's own SQLite file; the shared view is a PostgreSQL database to
// which the replicas ship their records, later and at least once; a holder is who keeps a
// certificate (a pod, or a node's proxy), so that the next one for the same identity and holder
// supersedes it; the sequence is the order in which a database learnt its records; a gap is a stretch
// of time in which records may be missing.
//
// A [View] answers questions, the same ones of either database. Every time is in whole seconds.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	// ErrFull says that the disk has no room for the record. It can be tried again once there is some.
	ErrFull = errors.New("the ledger's disk is full")
	// ErrWrite says that the record could not be written for another reason. It can be tried again.
	ErrWrite = errors.New("the ledger can't be written")
	// ErrSerialReused says that the issuer gave one serial number to two certificates (against RFC 5280
	// §4.1.2.2). It is final: the ledger could tell only one of them.
	ErrSerialReused = errors.New("the issuer used a serial number twice")
	// ErrClosed says that the store was closed; the record is not in it.
	ErrClosed = errors.New("the ledger is closed")
	// ErrNewer says that a newer Signet wrote the database, whose schema this one doesn't know.
	ErrNewer = errors.New("the ledger was written by a newer Signet")
	// ErrNotFound says that no such record is held.
	ErrNotFound = errors.New("no such record")
	// ErrFilter says that a question can't be asked in this way; the text says what is wrong with it.
	ErrFilter = errors.New("bad filter")
	// ErrContinue says that a continue or a cursor is broken, or belongs to another filter or another
	// database. The way on is to ask again from the start.
	ErrContinue = errors.New("bad continue")
)

const (
	// fileName and lockName are the store's files below its directory; SQLite adds -wal and -shm.
	fileName = "ledger.db"
	lockName = "ledger.lock"
	// lockWait is how long the process before this one may take to leave the store.
	lockWait = 15 * time.Second

	flushEvery     = 5 * time.Second
	heartbeatEvery = 15 * time.Second
	retainEvery    = time.Minute
)

// Store is a replica's own ledger. Safe for concurrent use.
type Store struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	path    string
	lock    *os.File
	local   *database // for readers
	writer  *writer
	refused *refusals
	disk    *disk
	shipper *shipper // nil without a shared view
	run     int64    // of the run table

	began  time.Time
	closed sync.Once
	ended  error // of Close

	mu      sync.Mutex // guards the following
	changed chan struct{}
	sources map[string]SourceState

	openSince atomic.Int64 // since when certificates go out without a record, Unix s; 0 while they don't
	dropped   atomic.Int64 // records left out since the start
	unsaid    atomic.Int64 // those of them that no gap in the store tells of yet
}

// Open opens the store, or begins an empty one, and starts its writer. It waits a few seconds for
// another process that still holds it. The shared view isn't dialled before [Store.Start].
//
// ErrNewer is final; so is a file that is no ledger or is damaged. reg should add the prefix.
// The caller ends the store with [Store.Close].
func Open(ctx context.Context, cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	cfg = cfg.withDefaults()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the ledger's directory: %w", err)
	}
	lock, err := lockFile(ctx, filepath.Join(cfg.Dir, lockName))
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg:     cfg,
		log:     log,
		path:    filepath.Join(cfg.Dir, fileName),
		lock:    lock,
		disk:    newDisk(cfg.Dir, cfg.reserve()),
		began:   time.Now(),
		changed: make(chan struct{}),
		sources: make(map[string]SourceState),
	}
	s.metrics = newMetrics(reg, s)
	s.refused = newRefusals(cfg.Replica, s.metrics)
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.release())
	}
	return s, nil
}

// open opens the databases of s, which release closes.
func (s *Store) open(ctx context.Context) error {
	writing, err := openSQLite(s.path, true)
	if err != nil {
		return err
	}
	s.writer = newWriter(s, writing)
	if err := migrate(ctx, writing, s.began); err != nil {
		return fmt.Errorf("ledger %s: %w", s.path, err)
	}
	if err := syncDir(s.cfg.Dir); err != nil {
		return err
	}
	if s.run, err = beginRun(ctx, writing, s.cfg.Replica, s.began); err != nil {
		return fmt.Errorf("ledger %s: %w", s.path, err)
	}
	if s.local, err = openSQLite(s.path, false); err != nil {
		return err
	}
	if err := s.local.identify(ctx); err != nil {
		return fmt.Errorf("ledger %s: %w", s.path, err)
	}
	if s.cfg.Postgres.configured() {
		if s.shipper, err = newShipper(s); err != nil {
			return err
		}
	}
	if err := s.writer.start(ctx); err != nil {
		return fmt.Errorf("ledger %s: %w", s.path, err)
	}
	s.disk.look()
	return nil
}

// Start does what needs no caller to wait, until ctx ends and it has stopped: it writes the counts of
// refusals, keeps the disk's reserve, deletes what is over the retention, and ships to the shared view.
// Recording works before, meanwhile and after.
func (s *Store) Start(ctx context.Context) error {
	var group sync.WaitGroup
	if s.shipper != nil {
		group.Go(func() { s.shipper.ship(ctx) })
	}
	group.Go(func() { s.retain(ctx) })
	flush, heartbeat := time.NewTicker(flushEvery), time.NewTicker(heartbeatEvery)
	defer flush.Stop()
	defer heartbeat.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-flush.C:
			s.disk.look()
			if s.writer.failing() {
				s.beat(ctx) // finds out whether there is room again while nobody asks for a certificate
			}
			s.flush(ctx)
		case <-heartbeat.C:
			s.beat(ctx)
		}
	}
	group.Wait()
	return nil
}

// flush writes the counts of refusals.
func (s *Store) flush(ctx context.Context) {
	if err := s.writer.flush(ctx, s.refused, s.disk.low()); err != nil && ctx.Err() == nil {
		s.log.Warn("write the counts of refusals", "err", err)
	}
}

// beat notes that this run is alive, and which records were left out.
func (s *Store) beat(ctx context.Context) {
	if err := s.writer.beat(ctx, time.Now()); err != nil && ctx.Err() == nil {
		s.log.Warn("write the ledger's heartbeat", "err", err)
	}
}

// Close writes what is still queued, and ends the store. Start must have returned. Further calls
// return the same.
func (s *Store) Close() error {
	s.closed.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s.refused.end()
		s.flush(ctx)
		s.shipLast(ctx)
		s.ended = errors.Join(s.writer.close(ctx, s.run), s.release())
	})
	return s.ended
}

// lastShipping bounds what is shipped when the store ends.
const lastShipping = 3 * time.Second

// shipLast ships what was recorded since Start has ended: the store may not outlast its pod.
func (s *Store) shipLast(ctx context.Context) {
	if s.shipper == nil || !s.shipper.reached() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastShipping)
	defer cancel()
	for more := true; more; {
		var err error
		if more, err = s.shipper.round(ctx); err != nil {
			s.log.Warn("ship the last records", "err", err)
			return
		}
	}
}

// release closes what open opened.
func (s *Store) release() error {
	var errs []error
	if s.shipper != nil {
		errs = append(errs, s.shipper.db.Close())
	}
	if s.local != nil {
		errs = append(errs, s.local.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.db.Close())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// Replica is the replica's name, which its records carry.
func (s *Store) Replica() string { return s.cfg.Replica }

// Local is the replica's own store. It lasts as long as s.
func (s *Store) Local() *View { return &View{db: s.local, store: s} }

// Shared is the view of all replicas, whether it answers now or not; nil where none is configured.
func (s *Store) Shared() *View {
	if s.shipper == nil {
		return nil
	}
	return &View{db: s.shipper.db, store: s, shared: true}
}

// View is the shared view while it answers, else the replica's own store.
func (s *Store) View() *View {
	if s.shipper != nil && s.shipper.reached() {
		return s.Shared()
	}
	return s.Local()
}

// Changed is closed when the next records have become durable here.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// tell wakes those who wait for a change.
func (s *Store) tell() {
	s.mu.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	if s.shipper != nil {
		s.shipper.wake()
	}
}

// Ready says whether certificates can be recorded; the text is for people. With failOpen it isn't an
// error that they can't be.
func (s *Store) Ready(now time.Time) (string, error) {
	since, cause := s.writer.failure()
	if cause != nil && !s.cfg.FailOpen {
		return "", fmt.Errorf("nothing can be recorded since %s, so nothing is signed: %w", since.UTC().Format(time.RFC3339), cause)
	}
	text := "recording"
	if cause != nil {
		text = fmt.Sprintf("NOT RECORDING since %s (failOpen is set): %v", since.UTC().Format(time.RFC3339), cause)
	}
	if n := s.dropped.Load(); n > 0 {
		text += fmt.Sprintf("; %d certificates were issued without a record since the start", n)
	}
	if free, ok := s.disk.free(); ok {
		text += fmt.Sprintf("; %d MiB free", free>>20)
		if s.disk.low() {
			text += ", below the reserve: counts of refusals wait in memory"
		}
	}
	if s.shipper != nil {
		text += "; " + s.shipper.text(now)
	}
	return text, nil
}
