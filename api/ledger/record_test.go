package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// count is the number that a query of the store has.
func count(t testing.TB, s *Store, query string) int64 {
	t.Helper()
	var n int64
	require.NoError(t, s.local.QueryRow(query).Scan(&n))
	return n
}

// hold keeps the writer busy until what it returns is called.
func hold(t *testing.T, s *Store) (release func()) {
	t.Helper()
	began, end, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.writer.do(context.Background(), func(context.Context, execer) error {
			close(began)
			<-end
			return nil
		})
	}()
	<-began
	return func() {
		close(end)
		require.NoError(t, <-done)
	}
}

// TestDurable: a commit is fsynced, and another connection sees what was acknowledged.
func TestDurable(t *testing.T) {
	s := open(t, Config{})
	err := s.writer.do(t.Context(), func(ctx context.Context, on execer) error {
		var synchronous int
		var journal string
		require.NoError(t, on.QueryRowContext(ctx, `PRAGMA synchronous`).Scan(&synchronous))
		require.NoError(t, on.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&journal))
		assert.Equal(t, 2, synchronous, "FULL")
		assert.Equal(t, "wal", journal)
		return nil
	})
	require.NoError(t, err)
	for n := range 50 {
		i := issuance(n, time.Now())
		require.NoError(t, s.Record(t.Context(), i))
		_, err := s.Local().Certificate(t.Context(), i.SHA256)
		require.NoError(t, err)
	}
}

// TestCallersShareCommits: those that wait while one commit is under way share the next.
func TestCallersShareCommits(t *testing.T) {
	s := open(t, Config{})
	release := hold(t, s)
	var group sync.WaitGroup
	for n := range 300 {
		group.Go(func() { assert.NoError(t, s.Record(t.Context(), issuance(n, time.Now()))) })
	}
	require.Eventually(t, func() bool { return len(s.writer.queue) == 300 }, 90*time.Second, time.Millisecond)
	changed := s.Changed()
	release()
	group.Wait()
	<-changed
	assert.EqualValues(t, 300, count(t, s, `SELECT count(*) FROM issuance`))
	assert.EqualValues(t, 300, count(t, s, `SELECT sum(records) FROM origin`))
	assert.EqualValues(t, 300, valueOf(t, s.metrics.records))
	assert.EqualValues(t, 1, valueOf(t, s.metrics.commits), "one fsync for all")
}

// valueOf is a counter's value, or how many values a histogram has.
func valueOf(t *testing.T, c prometheus.Collector) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	require.NoError(t, err)
	m := families[0].GetMetric()[0]
	return m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
}

// TestRecordAgain: the key decides; the replica's own record completes what was observed.
func TestRecordAgain(t *testing.T) {
	s := open(t, Config{})
	now := time.Now()
	seen := issuance(1, now.Add(-time.Minute))
	seen.Source, seen.Peer, seen.Credential, seen.PodUID = Observed, "", "", ""
	require.NoError(t, s.Record(t.Context(), seen))
	require.NoError(t, s.Record(t.Context(), seen))
	own := issuance(1, now)
	require.NoError(t, s.Record(t.Context(), own))
	require.NoError(t, s.Record(t.Context(), seen), "nothing is forgotten again")
	changed := own
	changed.Pod = "another"
	require.NoError(t, s.Record(t.Context(), changed), "the first own one counts")

	assert.EqualValues(t, 1, count(t, s, `SELECT count(*) FROM issuance`))
	got, err := s.Local().Certificate(t.Context(), own.SHA256)
	require.NoError(t, err)
	assert.Equal(t, Own, got.Source)
	assert.Equal(t, own.Pod, got.Pod)
	assert.Equal(t, own.Peer, got.Peer)
	assert.Equal(t, seen.RecordedAt.Unix(), got.RecordedAt.Unix())
	latest, err := s.Local().List(t.Context(), Filter{Latest: true, PodUID: own.PodUID}, Page{})
	require.NoError(t, err)
	assert.Len(t, latest.Records, 1)
}

// TestSerialReused: two certificates with one serial number can't both be told; others in the same
// transaction aren't concerned.
func TestSerialReused(t *testing.T) {
	s := open(t, Config{})
	require.NoError(t, s.Record(t.Context(), issuance(1, time.Now())))
	reused := issuance(2, time.Now())
	reused.SerialNumber = issuance(1, time.Now()).SerialNumber
	release := hold(t, s)
	errs := make([]error, 3)
	var group sync.WaitGroup
	for n, i := range []Issuance{issuance(3, time.Now()), reused, issuance(4, time.Now())} {
		group.Go(func() { errs[n] = s.Record(t.Context(), i) })
	}
	require.Eventually(t, func() bool { return len(s.writer.queue) == 3 }, 90*time.Second, time.Millisecond)
	release()
	group.Wait()
	assert.NoError(t, errs[0])
	assert.ErrorIs(t, errs[1], ErrSerialReused)
	assert.NoError(t, errs[2])
	assert.EqualValues(t, 3, count(t, s, `SELECT count(*) FROM issuance`))
	_, err := s.Ready(time.Now())
	assert.NoError(t, err)

	other := reused
	other.IssuerKeyID = "ff"
	assert.NoError(t, s.Record(t.Context(), other), "another issuer may use it")
}

// TestBadRecords are mistakes of the caller; none reaches the store.
func TestBadRecords(t *testing.T) {
	s := open(t, Config{})
	for name, change := range map[string]func(*Issuance){
		"no issuer": func(i *Issuance) { i.IssuerKeyID = "" }, "no serial": func(i *Issuance) { i.SerialNumber = "" }, "serial": func(i *Issuance) { i.SerialNumber = "xyz" },
		"odd digits": func(i *Issuance) { i.SerialNumber = "abc" }, "no certificate": func(i *Issuance) { i.DER = nil }, "no end": func(i *Issuance) { i.NotAfter = time.Time{} },
		"source": func(i *Issuance) { i.Source = "rumour" }, "key hash": func(i *Issuance) { i.SPKISHA256 = "x" },
	} {
		i := issuance(1, time.Now())
		change(&i)
		assert.Error(t, s.Record(t.Context(), i), name)
	}
	assert.Zero(t, count(t, s, `SELECT count(*) FROM issuance`))
}

// TestRecordContext: a caller may stop waiting; what it has queued is written all the same.
func TestRecordContext(t *testing.T) {
	s := open(t, Config{})
	release := hold(t, s)
	ctx, cancel := context.WithCancelCause(t.Context())
	left := errors.New("the caller left")
	done := make(chan error, 1)
	go func() { done <- s.Record(ctx, issuance(1, time.Now())) }()
	require.Eventually(t, func() bool { return len(s.writer.queue) == 1 }, 90*time.Second, time.Millisecond)
	cancel(left)
	require.ErrorIs(t, <-done, left)
	release()
	require.Eventually(t, func() bool { return count(t, s, `SELECT count(*) FROM issuance`) == 1 }, 90*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return s.Record(ctx, issuance(2, time.Now())) != nil }, 90*time.Second, time.Millisecond)
}

// TestQueueIsBounded: who finds it full waits to get in, no longer than its context allows.
func TestQueueIsBounded(t *testing.T) {
	s := open(t, Config{})
	release := hold(t, s)
	var group sync.WaitGroup
	for n := range queueLength {
		group.Go(func() { assert.NoError(t, s.Record(t.Context(), issuance(n, time.Now()))) })
	}
	require.Eventually(t, func() bool { return len(s.writer.queue) == queueLength }, 90*time.Second, time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Record(ctx, issuance(queueLength, time.Now())), context.DeadlineExceeded)
	release()
	group.Wait()
	assert.EqualValues(t, queueLength, count(t, s, `SELECT count(*) FROM issuance`))
}

// TestClose: what was queued before is written; whoever was told nil is in the store; nobody hangs.
func TestClose(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	var acknowledged atomic.Int64
	var group sync.WaitGroup
	began := make(chan struct{}, 64)
	for caller := range 64 {
		group.Go(func() {
			for n := 0; ; n++ {
				err := s.Record(context.Background(), issuance(caller*1_000_000+n, time.Now()))
				if err != nil {
					assert.ErrorIs(t, err, ErrClosed)
					return
				}
				acknowledged.Add(1)
				if n == 0 {
					began <- struct{}{}
				}
			}
		})
	}
	for range 64 {
		<-began
	}
	require.NoError(t, s.Close())
	group.Wait()
	require.NoError(t, s.Close(), "again")
	assert.ErrorIs(t, s.Record(t.Context(), issuance(1, time.Now())), ErrClosed)
	s = open(t, Config{Dir: dir})
	assert.Equal(t, acknowledged.Load(), count(t, s, `SELECT count(*) FROM issuance`))
	coverage, err := s.Local().Coverage(t.Context())
	require.NoError(t, err)
	assert.Empty(t, coverage.Gaps, "it ended in good order")
}

// TestFull: a store that may not grow is what a full disk is.
func TestFull(t *testing.T) {
	for _, failOpen := range []bool{false, true} {
		t.Run(fmt.Sprint("fail open ", failOpen), func(t *testing.T) {
			s := open(t, Config{FailOpen: failOpen})
			limit := func(pages int) {
				require.NoError(t, s.writer.do(t.Context(), func(ctx context.Context, on execer) error {
					var now int
					return on.QueryRowContext(ctx, fmt.Sprintf(`PRAGMA max_page_count(%d)`, pages)).Scan(&now)
				}))
			}
			limit(1) // as many as there are
			var err error
			n := 0
			for ; n < 1000 && err == nil && s.dropped.Load() == 0; n++ {
				err = s.Record(t.Context(), issuance(n, time.Now()))
			}
			require.Less(t, n, 1000)
			text, ready := s.Ready(time.Now())
			if failOpen {
				require.NoError(t, err)
				require.NoError(t, ready)
				assert.Contains(t, text, "NOT RECORDING since")
				assert.EqualValues(t, 1, valueOf(t, s.metrics.dropped))
			} else {
				require.ErrorIs(t, err, ErrFull)
				assert.ErrorContains(t, err, "the ledger's disk is full")
				require.ErrorIs(t, ready, ErrFull)
				assert.EqualValues(t, 1, valueOf(t, s.metrics.failures))
			}
			assert.EqualValues(t, n-1, count(t, s, `SELECT count(*) FROM issuance`))

			limit(1 << 30)
			s.beat(t.Context()) // as Start does
			text, ready = s.Ready(time.Now())
			require.NoError(t, ready)
			assert.True(t, strings.HasPrefix(text, "recording"), text)
			require.NoError(t, s.Record(t.Context(), issuance(5000, time.Now())))
			coverage, err := s.Local().Coverage(t.Context())
			require.NoError(t, err)
			if !failOpen {
				assert.Empty(t, coverage.Gaps)
				return
			}
			require.Len(t, coverage.Gaps, 1)
			assert.Equal(t, GapUnrecorded, coverage.Gaps[0].Kind)
			assert.EqualValues(t, 1, coverage.Gaps[0].Records)
			assert.Zero(t, s.unsaid.Load())
		})
	}
}

// TestWriteErrors: what fails is told apart, and fits what callers do next.
func TestWriteErrors(t *testing.T) {
	s := open(t, Config{})
	require.NoError(t, s.writer.do(t.Context(), func(ctx context.Context, on execer) error {
		_, err := on.ExecContext(ctx, `ALTER TABLE origin RENAME TO elsewhere`)
		return err
	}))
	err := s.Record(t.Context(), issuance(1, time.Now()))
	require.ErrorIs(t, err, ErrWrite)
	assert.NotErrorIs(t, err, ErrFull)
	assert.Zero(t, count(t, s, `SELECT count(*) FROM issuance`), "all or nothing")
	_, err = s.Ready(time.Now())
	assert.Error(t, err)
	require.NoError(t, s.writer.do(t.Context(), func(ctx context.Context, on execer) error {
		_, err := on.ExecContext(ctx, `ALTER TABLE elsewhere RENAME TO origin`)
		return err
	}))
	require.NoError(t, s.Record(t.Context(), issuance(1, time.Now())), "the connection is fit again")
}

// TestCommitFails: what fails at the very end is no success.
func TestCommitFails(t *testing.T) {
	s := open(t, Config{})
	for _, statement := range []string{
		`PRAGMA foreign_keys = ON`,
		`CREATE TABLE child (parent BIGINT REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)`, `CREATE TABLE parent (id BIGINT PRIMARY KEY)`,
		`CREATE TRIGGER orphan AFTER INSERT ON issuance BEGIN INSERT INTO child VALUES (1); END`,
	} {
		_, err := s.writer.conn.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	require.ErrorIs(t, s.Record(t.Context(), issuance(1, time.Now())), ErrWrite)
	assert.Zero(t, count(t, s, `SELECT count(*) FROM issuance`))
	_, err := s.writer.conn.ExecContext(t.Context(), `DROP TRIGGER orphan`)
	require.NoError(t, err)
	require.NoError(t, s.Record(t.Context(), issuance(1, time.Now())))
}

// TestCloseDrains: records that are queued when the store is closed are written, all of them.
func TestCloseDrains(t *testing.T) {
	s := open(t, Config{})
	release := hold(t, s)
	var group sync.WaitGroup
	for n := range 4 * maxBatch {
		group.Go(func() { assert.NoError(t, s.Record(t.Context(), issuance(n, time.Now()))) })
	}
	require.Eventually(t, func() bool { return len(s.writer.queue) == 4*maxBatch }, 90*time.Second, time.Millisecond)
	s.closed.Do(func() { close(s.writer.stopping) }) // as Close does when its own word has been written
	release()
	group.Wait()
	<-s.writer.stopped
	assert.EqualValues(t, 4*maxBatch, count(t, s, `SELECT count(*) FROM issuance`))
	s.writer.checkpointing.Wait()
	require.NoError(t, s.writer.conn.Close())
	require.NoError(t, s.release())
}

// TestCrash: a process that didn't end in good order leaves a gap from its last sign of life.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, Replica: "before"})
	last := time.Now().Add(-10 * time.Minute).Truncate(time.Second)
	require.NoError(t, s.Record(t.Context(), issuance(1, last)))
	require.NoError(t, s.writer.do(t.Context(), func(ctx context.Context, on execer) error {
		_, err := on.ExecContext(ctx, `UPDATE run SET alive_at = ?`, last.Unix()-60)
		return err
	}))
	require.NoError(t, s.release()) // what a crash does: no end of the run, the lock is free

	before := time.Now().Unix()
	s = open(t, Config{Dir: dir, Replica: "after"})
	after := time.Now().Unix()
	coverage, err := s.Local().Coverage(t.Context())
	require.NoError(t, err)
	require.Len(t, coverage.Gaps, 1)
	gap := coverage.Gaps[0]
	assert.Equal(t, GapCrash, gap.Kind)
	assert.Equal(t, "before", gap.Replica)
	assert.Equal(t, last.Unix(), gap.From.Unix())
	assert.GreaterOrEqual(t, gap.To.Unix(), before)
	assert.LessOrEqual(t, gap.To.Unix(), after)
	assert.Equal(t, last.Unix(), coverage.Since.Unix())
	assert.Equal(t, []Origin{{Replica: "before", Source: Own, First: last.UTC(), Last: last.UTC(), Records: 1}}, coverage.Origins)

	s.SetSource("observed", false, "the informer isn't synced")
	s.SetSource("observed", true, "")
	coverage, err = s.Local().Coverage(t.Context())
	require.NoError(t, err)
	require.Len(t, coverage.Sources, 2)
	assert.Equal(t, "own", coverage.Sources[0].Name)
	assert.True(t, coverage.Sources[0].Up)
	assert.Equal(t, "observed", coverage.Sources[1].Name)
	assert.True(t, coverage.Sources[1].Up)
}

// TestOpen refuses what it can't use, and says what to do.
func TestOpen(t *testing.T) {
	try := func(ctx context.Context, cfg Config) error {
		s, err := Open(ctx, cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err == nil {
			require.NoError(t, s.Close())
		}
		return err
	}
	t.Run("newer", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, Config{Dir: dir})
		require.NoError(t, s.writer.do(t.Context(), func(ctx context.Context, on execer) error {
			_, err := on.ExecContext(ctx, `INSERT INTO schema_version VALUES (7, 0)`)
			return err
		}))
		require.NoError(t, s.Close())
		err := try(t.Context(), Config{Dir: dir})
		require.ErrorIs(t, err, ErrNewer)
		assert.ErrorContains(t, err, fmt.Sprintf("it has schema 7, this one knows %d; run the Signet that wrote it or a newer one", len(migrations)))
	})
	t.Run("no ledger", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, fileName), []byte(strings.Repeat("no database at all ", 1000)), 0o600))
		assert.ErrorContains(t, try(t.Context(), Config{Dir: dir}), "file is not a database")
	})
	t.Run("a directory that can't be made", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		assert.ErrorContains(t, try(t.Context(), Config{Dir: filepath.Join(file, "ledger")}), "make the ledger's directory")
	})
	t.Run("odd path", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "a ?b#c%20d&e=f")
		s := open(t, Config{Dir: dir})
		require.NoError(t, s.Record(t.Context(), issuance(1, time.Now())))
		_, err := os.Stat(filepath.Join(dir, fileName))
		assert.NoError(t, err)
	})
	t.Run("another process holds it", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, Config{Dir: dir})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		assert.ErrorContains(t, try(ctx, Config{Dir: dir}), "each replica needs a directory of its own")
		go func() {
			time.Sleep(100 * time.Millisecond)
			_ = s.Close()
		}()
		assert.NoError(t, try(t.Context(), Config{Dir: dir}), "it waits for the one before to end")
	})
	t.Run("no DSN", func(t *testing.T) {
		assert.ErrorContains(t, try(t.Context(), Config{Dir: t.TempDir(), Postgres: PostgresConfig{DSNFile: "/nonexistent"}}), "read the ledger's DSN")
	})
}

// TestCheckpoint: the log is copied into the file beside the records, long before a commit has to.
func TestCheckpoint(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	fill(t, s, 0, 2*checkpointAt, time.Now())
	require.Eventually(t, func() bool {
		info, err := os.Stat(filepath.Join(dir, fileName))
		return err == nil && info.Size() > checkpointAt*1000 // the last ones may wait for more
	}, 90*time.Second, 10*time.Millisecond)
}
