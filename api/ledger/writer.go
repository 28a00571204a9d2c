package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// queueLength is how many records may wait for the writer; who comes then waits to get in.
	queueLength = 4096
	// maxBatch is how many records share one transaction at most.
	maxBatch = 512
	// checkpointEvery is how often what is in the write-ahead log is copied into the store's file beside the
	// records, once checkpointAt of them have come since. Without it a commit would have to, now and then, and
	// all callers would wait for it.
	checkpointEvery = 500 * time.Millisecond
	checkpointAt    = 500
	// keepRuns is how many runs the store remembers.
	keepRuns = 100
)

// Record writes i, and returns when it is durable: nil is the promise that it is in the store. It
// is idempotent by the record's key; the replica's own record replaces what was observed of the same
// certificate.
//
// ErrFull and ErrWrite can be tried again; with failOpen they aren't returned, but counted. The error of
// ctx says that the caller stopped waiting; the record may be written all the same. ErrSerialReused and
// errors about i itself are final. Callers share transactions, so many at a time cost little more than
// one. Safe for concurrent use; i is not kept, but its DER must not change until Record returns.
func (s *Store) Record(ctx context.Context, i Issuance) error {
	r, err := newRow(i, s.cfg.Replica, time.Now())
	if err != nil {
		return err
	}
	w := &write{row: r, args: r.values(), sans: r.moreSANs(), done: make(chan error, 1)}
	began := time.Now()
	err = s.writer.write(ctx, w)
	s.metrics.took.Observe(time.Since(began).Seconds())
	switch {
	case err == nil:
		s.metrics.records.WithLabelValues(r.source).Inc()
		return nil
	case errors.Is(err, ErrFull), errors.Is(err, ErrWrite):
		if s.cfg.FailOpen {
			s.dropped.Add(1)
			s.unsaid.Add(1)
			s.openSince.CompareAndSwap(0, began.Unix())
			s.metrics.dropped.Inc()
			return nil
		}
	}
	s.metrics.failures.WithLabelValues(failureLabel(err)).Inc()
	return err
}

// write is one record on its way; done gets one answer.
type write struct {
	row  *row
	args []any
	sans []string
	done chan error
}

// job is other work on the writer's connection, in a transaction of its own.
type job struct {
	ctx  context.Context
	do   func(ctx context.Context, on execer) error
	done chan error
}

// writer is the one goroutine that writes to the store, and another that makes checkpoints.
type writer struct {
	store *Store
	db    *database
	queue chan *write
	jobs  chan *job
	fresh atomic.Int64 // records since the last checkpoint

	// The following are the goroutine's own.
	conn    *sql.Conn
	insert  *sql.Stmt
	longest int64 // what the store has as longestLife

	stopping      chan struct{} // closed when both should end
	stopped       chan struct{} // closed when the writing one has
	checkpointing sync.WaitGroup
	running       bool // set by start

	mu       sync.Mutex // guards the following
	failed   error      // of the last commit, nil when it went well
	failedAt time.Time
}

func newWriter(s *Store, db *database) *writer {
	return &writer{
		store: s, db: db,
		queue: make(chan *write, queueLength), jobs: make(chan *job),
		stopping: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// start takes the connection and starts the goroutine, which close ends.
func (w *writer) start(ctx context.Context) error {
	var err error
	if w.conn, err = w.db.Conn(ctx); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	names := columnNames("", columns)
	marks := strings.TrimSuffix(strings.Repeat("?, ", len(columns)), ", ")
	w.insert, err = w.conn.PrepareContext(ctx, "INSERT INTO issuance ("+names+") VALUES ("+marks+") ON CONFLICT (serial, issuer_key_id) DO NOTHING")
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if w.longest, err = w.db.amount(ctx, w.conn, longestLife); err != nil {
		return err
	}
	w.running = true
	go w.loop()
	w.checkpointing.Go(w.checkpoint)
	return nil
}

// checkpoint copies from the write-ahead log while records go on being written, until close says so. A
// commit finds little left to copy when the log is so long that it must begin anew.
func (w *writer) checkpoint() {
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-w.stopping:
			return
		}
		if w.fresh.Load() < checkpointAt {
			continue
		}
		w.fresh.Store(0)
		var busy, frames, copied int
		if err := w.store.local.QueryRowContext(context.Background(), `PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &frames, &copied); err != nil {
			w.store.log.Warn("copy the ledger's log into its file", "err", err)
		}
	}
}

// write queues record and waits for the answer.
func (w *writer) write(ctx context.Context, record *write) error {
	select {
	case <-w.stopping:
		return ErrClosed
	default:
	}
	select {
	case w.queue <- record:
	case <-ctx.Done():
		return fmt.Errorf("wait for the ledger: %w", context.Cause(ctx))
	case <-w.stopping:
		return ErrClosed
	}
	select {
	case err := <-record.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the ledger: %w", context.Cause(ctx))
	case <-w.stopped:
	}
	select {
	case err := <-record.done:
		return err
	default:
		return ErrClosed // it came after the last look into the queue
	}
}

// do runs f in a transaction on the writer's connection, between two batches of records. f should be
// short: records wait for it.
func (w *writer) do(ctx context.Context, f func(ctx context.Context, on execer) error) error {
	j := &job{ctx: ctx, do: f, done: make(chan error, 1)}
	select {
	case w.jobs <- j:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.stopped:
		return ErrClosed
	}
	return <-j.done
}

// loop takes what is queued, all of it at once, so that one fsync serves everybody who waits. It ends
// when close says so and the queue is empty.
func (w *writer) loop() {
	defer close(w.stopped)
	batch := make([]*write, 0, maxBatch)
	for {
		batch = batch[:0]
		select {
		case first := <-w.queue:
			batch = append(batch, first)
		case j := <-w.jobs:
			j.done <- w.run(j)
			continue
		case <-w.stopping:
			select {
			case first := <-w.queue:
				batch = append(batch, first)
			default:
				return
			}
		}
	filling:
		for len(batch) < maxBatch {
			select {
			case next := <-w.queue:
				batch = append(batch, next)
			default:
				break filling
			}
		}
		w.commit(batch)
		select { // a flood of records must not keep a job waiting for ever
		case j := <-w.jobs:
			j.done <- w.run(j)
		default:
		}
	}
}

// commit writes a batch and answers it.
func (w *writer) commit(batch []*write) {
	began := time.Now()
	ctx := context.Background() // a batch belongs to many callers; SQLite bounds its own waits
	errs := make([]error, len(batch))
	err := w.transaction(ctx, func() error { return w.insertAll(ctx, batch, errs) })
	if err != nil {
		err = writeError(err)
	}
	w.outcome(err, began)
	if err == nil {
		w.store.metrics.commits.Observe(time.Since(began).Seconds())
		w.store.metrics.batches.Observe(float64(len(batch)))
		w.fresh.Add(int64(len(batch)))
		w.store.tell()
	}
	for n, record := range batch {
		if err != nil {
			record.done <- err
		} else {
			record.done <- errs[n]
		}
	}
}

// run does a job.
func (w *writer) run(j *job) error {
	if err := j.ctx.Err(); err != nil {
		return err
	}
	// A job isn't interrupted in the middle: SQLite would have to roll back what the next one repeats.
	ctx := context.WithoutCancel(j.ctx)
	return w.transaction(ctx, func() error { return j.do(ctx, w.conn) })
}

// transaction runs f between BEGIN and COMMIT; all or nothing of it becomes durable.
func (w *writer) transaction(ctx context.Context, f func() error) error {
	if _, err := w.conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err := f()
	if err == nil {
		if _, err = w.conn.ExecContext(ctx, "COMMIT"); err == nil {
			return nil
		}
		err = fmt.Errorf("commit: %w", err)
	}
	// SQLite has rolled back by itself after some errors, and says so; the connection is fit again.
	_, _ = w.conn.ExecContext(ctx, "ROLLBACK")
	return err
}

// insertAll writes the records of batch. errs are those of single records, which don't concern others.
func (w *writer) insertAll(ctx context.Context, batch []*write, errs []error) error {
	type activity struct{ first, last, records int64 }
	origins := make(map[[2]string]activity, 2)
	longest := w.longest
	for n, record := range batch {
		r := record.row
		result, err := w.insert.ExecContext(ctx, record.args...)
		if err != nil {
			if err = fmt.Errorf("insert: %w", err); !isOfRow(err) {
				return err
			}
			errs[n] = err
			continue
		}
		added, err := result.RowsAffected()
		if err != nil {
			return fmt.Errorf("insert: %w", err)
		}
		if added == 0 {
			if errs[n], err = w.known(ctx, record); err != nil {
				return err
			}
			continue
		}
		if len(record.sans) != 0 {
			seq, err := result.LastInsertId()
			if err != nil {
				return fmt.Errorf("insert: %w", err)
			}
			if err := insertSANs(ctx, w.db, w.conn, seq, record.sans); err != nil {
				return err
			}
		}
		key := [2]string{r.issuance.Replica, r.source}
		a, ok := origins[key]
		if !ok {
			a.first, a.last = r.recordedAt, r.recordedAt
		}
		origins[key] = activity{min(a.first, r.recordedAt), max(a.last, r.recordedAt), a.records + 1}
		longest = max(longest, r.notAfter-r.recordedAt)
	}
	for key, a := range origins {
		if err := addOrigin(ctx, w.db, w.conn, key[0], key[1], a.first, a.last, a.records); err != nil {
			return err
		}
	}
	if longest > w.longest {
		if err := w.db.raise(ctx, w.conn, longestLife, longest); err != nil {
			return err
		}
		w.longest = longest // too high if the commit fails, and then written again at the next start
	}
	return nil
}

// known handles a record whose key is there already. The first error is the record's own.
func (w *writer) known(ctx context.Context, record *write) (ofRecord, err error) {
	r := record.row
	var seq int64
	var sha []byte
	var source string
	err = w.conn.QueryRowContext(ctx, `SELECT seq, certificate_sha256, source FROM issuance WHERE serial = ? AND issuer_key_id = ?`, r.serial, r.issuerKeyID).Scan(&seq, &sha, &source)
	if err != nil {
		return nil, fmt.Errorf("read the known record: %w", err)
	}
	switch {
	case string(sha) != string(r.certificateSHA):
		return fmt.Errorf("%w: serial %x of issuer key %x is that of certificate %x already, now of %x", ErrSerialReused, r.serial, r.issuerKeyID, sha, r.certificateSHA), nil
	case !r.own() || source == string(Own):
		return nil, nil
	}
	// More is known now. The record keeps its place, and when it was made.
	var set []string
	var args []any
	for n, c := range columns {
		if c.name != "recorded_at" {
			set, args = append(set, c.name+" = ?"), append(args, record.args[n])
		}
	}
	if _, err := w.conn.ExecContext(ctx, "UPDATE issuance SET "+strings.Join(set, ", ")+" WHERE seq = ?", append(args, seq)...); err != nil {
		return nil, fmt.Errorf("complete the observed record: %w", err)
	}
	if w.store.shipper != nil {
		if _, err := w.conn.ExecContext(ctx, `INSERT INTO again (seq) VALUES (?) ON CONFLICT DO NOTHING`, seq); err != nil {
			return nil, fmt.Errorf("note to ship again: %w", err)
		}
	}
	return nil, nil
}

// insertSANs writes the names besides the identity, which few certificates have.
func insertSANs(ctx context.Context, d *database, on execer, seq int64, sans []string) error {
	for _, san := range sans {
		if _, err := on.ExecContext(ctx, d.bind(`INSERT INTO san (san, seq) VALUES (?, ?) ON CONFLICT DO NOTHING`), san, seq); err != nil {
			return fmt.Errorf("insert a name: %w", err)
		}
	}
	return nil
}

// addOrigin counts records of a replica.
func addOrigin(ctx context.Context, d *database, on execer, replica, source string, first, last, records int64) error {
	least, most := "min", "max"
	if d.kind == postgres {
		least, most = "least", "greatest"
	}
	_, err := on.ExecContext(ctx, d.bind(`INSERT INTO origin (replica, source, first_at, last_at, records) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (replica, source) DO UPDATE SET first_at = `+least+`(origin.first_at, excluded.first_at),
		last_at = `+most+`(origin.last_at, excluded.last_at), records = origin.records + excluded.records`), replica, source, first, last, records)
	if err != nil {
		return fmt.Errorf("count the replica's records: %w", err)
	}
	return nil
}

// writeError is what callers get when a transaction failed.
func writeError(err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return fmt.Errorf("%w: %w", ErrWrite, err)
}

// outcome remembers whether writing works, and says when that changes.
func (w *writer) outcome(err error, began time.Time) {
	w.mu.Lock()
	before := w.failed
	w.failed = err
	if err != nil && before == nil {
		w.failedAt = began
	}
	w.mu.Unlock()
	switch {
	case err != nil && before == nil && w.store.cfg.FailOpen:
		w.store.log.Error("the ledger can't record; certificates go out without a record, because failOpen is set", "err", err)
	case err != nil && before == nil:
		w.store.log.Error("the ledger can't record, so nothing is signed", "err", err)
	case err == nil && before != nil:
		w.store.log.Info("the ledger records again")
	}
}

// failure is since when transactions fail, and why the last one did; nil when it went well.
func (w *writer) failure() (since time.Time, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failedAt, w.failed
}

func (w *writer) failing() bool {
	_, err := w.failure()
	return err != nil
}

// beat notes in the store that this run is alive, and a gap for what was left out.
func (w *writer) beat(ctx context.Context, now time.Time) error {
	s := w.store
	lost, since := s.unsaid.Load(), s.openSince.Load()
	err := w.do(ctx, func(ctx context.Context, on execer) error {
		if _, err := on.ExecContext(ctx, `UPDATE run SET alive_at = ? WHERE seq = ?`, now.Unix(), s.run); err != nil {
			return fmt.Errorf("note that the run is alive: %w", err)
		}
		if lost == 0 {
			return nil
		}
		return addGap(ctx, w.db, on, s.cfg.Replica, Gap{Kind: GapUnrecorded, From: unix(since), To: now, Records: lost})
	})
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, ErrClosed) {
			w.outcome(writeError(err), now)
		}
		return err
	}
	w.outcome(nil, now)
	if lost > 0 && s.unsaid.Add(-lost) == 0 {
		s.openSince.Store(0)
	}
	return nil
}

// beginRun notes that a process holds the store now, and a gap where the one before didn't leave it in
// good order.
func beginRun(ctx context.Context, d *database, replica string, now time.Time) (run int64, err error) {
	tx, err := d.BeginTx(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("begin: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreDone(tx.Rollback()))
		}
	}()
	var alive int64
	var before string
	err = tx.QueryRowContext(ctx, `SELECT replica, max(alive_at, coalesce((SELECT max(last_at) FROM origin), 0)) FROM run WHERE ended_at = 0 ORDER BY seq DESC LIMIT 1`).Scan(&before, &alive)
	switch {
	case err == nil:
		if err := addGap(ctx, d, tx, before, Gap{Kind: GapCrash, From: unix(min(alive, now.Unix())), To: now}); err != nil {
			return 0, err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE run SET ended_at = ? WHERE ended_at = 0`, now.Unix()); err != nil {
			return 0, fmt.Errorf("end the run before: %w", err)
		}
	case !errors.Is(err, sql.ErrNoRows):
		return 0, fmt.Errorf("read the run before: %w", err)
	}
	result, err := tx.ExecContext(ctx, `INSERT INTO run (replica, started_at, alive_at, ended_at) VALUES (?, ?, ?, 0)`, replica, now.Unix(), now.Unix())
	if err != nil {
		return 0, fmt.Errorf("begin a run: %w", err)
	}
	if run, err = result.LastInsertId(); err != nil {
		return 0, fmt.Errorf("begin a run: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM run WHERE seq <= ?`, run-keepRuns); err != nil {
		return 0, fmt.Errorf("forget old runs: %w", err)
	}
	return run, tx.Commit()
}

// close ends the goroutine when all that is queued has been written, and notes that the run ended well.
func (w *writer) close(ctx context.Context, run int64) error {
	if !w.running {
		return nil
	}
	err := w.beat(ctx, time.Now())
	close(w.stopping)
	<-w.stopped
	w.checkpointing.Wait()
	if err == nil {
		err = w.transaction(ctx, func() error {
			_, err := w.conn.ExecContext(ctx, `UPDATE run SET ended_at = ? WHERE seq = ?`, time.Now().Unix(), run)
			return err
		})
	}
	if err != nil {
		err = fmt.Errorf("end the ledger's run: %w", err)
	}
	return errors.Join(err, w.insert.Close(), w.conn.Close())
}
