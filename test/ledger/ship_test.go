package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // registers pgx
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite" // registers sqlite

	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/test/ledger/postgres"
)

// query opens a database beside the ledger's own connections.
func query(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func number(t *testing.T, db *sql.DB, statement string) int64 {
	t.Helper()
	var n int64
	require.NoError(t, db.QueryRowContext(t.Context(), statement).Scan(&n))
	return n
}

// TestTailOfManyReplicas: who follows the shared view while several replicas ship at once is told every
// record once, in the order of the sequence.
func TestTailOfManyReplicas(t *testing.T) {
	dsnFile, _ := database(t)
	const replicas, each = 4, 300
	var stores []*replica
	for n := range replicas {
		stores = append(stores, start(t, ledger.Config{Replica: fmt.Sprintf("signet-%d", n), Postgres: ledger.PostgresConfig{DSNFile: dsnFile}}))
	}
	follower := stores[0]
	require.Eventually(t, func() bool { return follower.View().IsShared() }, patience, 10*time.Millisecond)

	var group sync.WaitGroup
	for r, s := range stores {
		group.Go(func() {
			for n := range each {
				assert.NoError(t, s.Record(t.Context(), issuance(fmt.Sprintf("%d of %d", n, r), time.Now())))
				time.Sleep(time.Duration(n%7) * time.Millisecond)
			}
		})
	}
	told := make(map[string]int)
	cursor, last := ledger.OldestCursor, int64(0)
	deadline := time.Now().Add(patience)
	for len(told) < replicas*each && time.Now().Before(deadline) {
		tail, err := follower.Shared().Tail(t.Context(), ledger.Filter{}, cursor, 100)
		require.NoError(t, err)
		for _, i := range tail.Records {
			require.Greater(t, i.Sequence, last)
			last = i.Sequence
			told[i.SHA256]++
		}
		cursor = tail.Cursor
		assert.False(t, tail.Missed)
	}
	group.Wait()
	assert.Len(t, told, replicas*each, "all are told")
	for sha, times := range told {
		assert.Equal(t, 1, times, sha)
	}
	coverage, err := follower.Shared().Coverage(t.Context())
	require.NoError(t, err)
	assert.True(t, coverage.Shared)
	assert.Len(t, coverage.Peers, replicas)
	require.Len(t, coverage.Origins, replicas)
	for n, origin := range coverage.Origins {
		assert.Equal(t, fmt.Sprintf("signet-%d", n), origin.Replica)
		assert.Equal(t, ledger.Own, origin.Source)
	}
	assert.Empty(t, coverage.Gaps)
}

// TestTailAndOpenTransactions: a replica whose transaction is open for long keeps the others from adding
// records before it, so that no sequence becomes visible behind who follows.
func TestTailAndOpenTransactions(t *testing.T) {
	dsnFile, dsn := database(t)
	r := start(t, ledger.Config{Postgres: ledger.PostgresConfig{DSNFile: dsnFile}})
	require.NoError(t, r.Record(t.Context(), issuance("first", time.Now())))
	r.shipped(t)
	tail, err := r.Shared().Tail(t.Context(), ledger.Filter{}, ledger.OldestCursor, 0)
	require.NoError(t, err)
	require.Len(t, tail.Records, 1)

	// Another replica has its sequence, and has not committed.
	slow, err := query(t, "pgx", dsn).BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = slow.ExecContext(t.Context(), `SELECT pg_advisory_xact_lock($1)`, int64(0x5349474e45540002))
	require.NoError(t, err)
	copied := `INSERT INTO issuance (issuer_key_id, serial, certificate_sha256, spki_sha256, holding, recorded_at, not_before, not_after, requested_lifetime, identity, trust_domain,
		namespace, service_account, service_account_uid, sans, key_algorithm, key_bits, signature_algorithm, issuer, root_sha256, root_subject, pod, pod_uid, node, credential, cluster, peer,
		impersonated, request_name, request_uid, replica, source, delivered, der)
		SELECT issuer_key_id, '\x7777', '\x7777', spki_sha256, holding, recorded_at, not_before, not_after, requested_lifetime, identity, trust_domain,
		namespace, service_account, service_account_uid, sans, key_algorithm, key_bits, signature_algorithm, issuer, root_sha256, root_subject, pod, pod_uid, node, credential, cluster, peer,
		impersonated, request_name, request_uid, 'slow', source, delivered, der FROM issuance`
	_, err = slow.ExecContext(t.Context(), copied)
	require.NoError(t, err)

	require.NoError(t, r.Record(t.Context(), issuance("second", time.Now())))
	for began := time.Now(); time.Since(began) < 2*time.Second; time.Sleep(50 * time.Millisecond) {
		now, err := r.Shared().Tail(t.Context(), ledger.Filter{}, tail.Cursor, 0)
		require.NoError(t, err)
		require.Empty(t, now.Records, "the second must wait for the slow one")
		tail.Cursor = now.Cursor
	}
	require.NoError(t, slow.Commit())
	r.shipped(t)
	tail, err = r.Shared().Tail(t.Context(), ledger.Filter{}, tail.Cursor, 0)
	require.NoError(t, err)
	require.Len(t, tail.Records, 2)
	assert.Equal(t, "slow", tail.Records[0].Replica)
	assert.Equal(t, "signet-0", tail.Records[1].Replica)
}

// TestOutage: while PostgreSQL is away recording goes on as before; afterwards the shared view catches
// up, also across a restart of the replica.
func TestOutage(t *testing.T) {
	own, err := postgres.Start(t.Context())
	require.NoError(t, err)
	defer func() { assert.NoError(t, own.Stop()) }()
	dsn, err := own.Database(t.Context(), "outage")
	require.NoError(t, err)
	t.Setenv("SIGNET_TEST_DSN", dsn)
	cfg := ledger.Config{Dir: t.TempDir(), Postgres: ledger.PostgresConfig{DSNEnv: "SIGNET_TEST_DSN"}}

	require.NoError(t, own.Down())
	r := start(t, cfg) // starts without it
	record := func(from, to int) {
		// All together take less than they would if each waited for a connection.
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for n := from; n < to; n++ {
			require.NoError(t, r.Record(ctx, issuance(fmt.Sprint(n), time.Now().Add(-time.Minute))))
		}
	}
	began := time.Now().Truncate(time.Second)
	record(0, 700)
	assert.False(t, r.View().IsShared(), "the replica's own store answers")
	_, err = r.Shared().List(t.Context(), ledger.Filter{}, ledger.Page{})
	assert.ErrorContains(t, err, "can't be reached")
	text, err := r.Ready(time.Now())
	require.NoError(t, err, "an outage doesn't concern readiness")
	assert.Contains(t, text, "shared view: not reached since")
	coverage, err := r.Local().Coverage(t.Context())
	require.NoError(t, err)
	assert.False(t, coverage.Shipping.Reached)
	assert.EqualValues(t, 700, coverage.Shipping.Records)
	assert.WithinRange(t, coverage.Shipping.Oldest, began.Add(-time.Minute), time.Now().Add(-time.Minute))
	assert.EqualValues(t, 700, r.metric(t, "ledger_ship_lag_records"))
	lag := r.metric(t, "ledger_ship_lag_seconds")
	assert.GreaterOrEqual(t, lag, 60.0)
	assert.LessOrEqual(t, lag, (time.Minute + time.Since(began)).Seconds())

	require.NoError(t, own.Up(t.Context()))
	r.shipped(t)
	assert.True(t, r.View().IsShared())
	shared := query(t, "pgx", dsn)
	assert.EqualValues(t, 700, number(t, shared, `SELECT count(*) FROM issuance`))
	assert.Zero(t, r.metric(t, "ledger_ship_lag_seconds"))

	require.NoError(t, own.Down())
	record(700, 800)
	require.NoError(t, r.end())
	r = start(t, cfg)
	record(800, 900)
	require.NoError(t, own.Up(t.Context()))
	r.shipped(t)
	assert.EqualValues(t, 900, number(t, shared, `SELECT count(*) FROM issuance`))
	assert.Empty(t, mustCoverage(t, r.Shared()).Gaps)
}

func mustCoverage(t *testing.T, view *ledger.View) ledger.Coverage {
	t.Helper()
	c, err := view.Coverage(t.Context())
	require.NoError(t, err)
	return c
}

// TestShippedAgain: a shared view that lost what it had, or forgot what it has, gets the rest, and
// nothing twice.
func TestShippedAgain(t *testing.T) {
	dsnFile, dsn := database(t)
	cfg := ledger.Config{Dir: t.TempDir(), Postgres: ledger.PostgresConfig{DSNFile: dsnFile}}
	r := start(t, cfg)
	for n := range 1200 {
		if n%400 == 0 {
			require.NoError(t, r.Record(t.Context(), issuance(fmt.Sprint("with a name ", n), time.Now())))
		}
	}
	var group sync.WaitGroup
	for n := range 1200 {
		group.Go(func() { assert.NoError(t, r.Record(t.Context(), issuance(fmt.Sprint(n), time.Now()))) })
	}
	group.Wait()
	r.shipped(t)
	shared := query(t, "pgx", dsn)
	require.EqualValues(t, 1203, number(t, shared, `SELECT count(*) FROM issuance`))

	for _, loss := range []struct{ name, statement string }{
		{"restored from a backup", `WITH lost AS (DELETE FROM issuance WHERE seq NOT IN (SELECT seq FROM issuance ORDER BY seq LIMIT 600)) UPDATE shipper SET shipped_through = 500`},
		{"forgot the replica", `DELETE FROM shipper`},
		{"lost everything", `WITH lost AS (DELETE FROM issuance) DELETE FROM shipper`},
	} {
		t.Run(loss.name, func(t *testing.T) {
			require.NoError(t, r.end())
			_, err := shared.ExecContext(t.Context(), loss.statement)
			require.NoError(t, err)
			r = start(t, cfg)
			require.Eventually(t, func() bool {
				return number(t, shared, `SELECT count(*) FROM issuance`) == 1203 && number(t, shared, `SELECT coalesce(max(shipped_through), 0) FROM shipper`) == 1203
			}, patience, 50*time.Millisecond)
			r.shipped(t)
		})
	}
}

// TestOwnReplacesObserved: what the replica that issued a certificate knows of it wins in the shared
// view, whoever ships first.
func TestOwnReplacesObserved(t *testing.T) {
	dsnFile, dsn := database(t)
	first := start(t, ledger.Config{Replica: "signet-0", Postgres: ledger.PostgresConfig{DSNFile: dsnFile}})
	second := start(t, ledger.Config{Replica: "signet-1", Postgres: ledger.PostgresConfig{DSNFile: dsnFile}})
	own, seen := issuance("one", time.Now()), issuance("one", time.Now().Add(-time.Second))
	seen.Source, seen.Peer, seen.Credential = ledger.Observed, "", ""

	require.NoError(t, second.Record(t.Context(), seen))
	second.shipped(t)
	first.shipped(t)
	got, err := first.Shared().Certificate(t.Context(), own.SHA256)
	require.NoError(t, err)
	assert.Equal(t, ledger.Observed, got.Source)
	assert.Equal(t, "signet-1", got.Replica)

	require.NoError(t, first.Record(t.Context(), own))
	first.shipped(t)
	other := issuance("two", time.Now())
	other.Source = ledger.Observed
	require.NoError(t, second.Record(t.Context(), other))
	second.shipped(t)
	got, err = second.Shared().Certificate(t.Context(), own.SHA256)
	require.NoError(t, err)
	assert.Equal(t, ledger.Own, got.Source)
	assert.Equal(t, "signet-0", got.Replica)
	assert.Equal(t, "10.0.0.1", got.Peer)
	assert.Equal(t, seen.RecordedAt.Unix(), got.RecordedAt.Unix(), "it keeps its place")
	assert.EqualValues(t, 2, number(t, query(t, "pgx", dsn), `SELECT count(*) FROM issuance`))

	// The same on one replica, after the observed one has been shipped.
	two := other
	two.Source = ledger.Own
	require.NoError(t, second.Record(t.Context(), two))
	require.Eventually(t, func() bool {
		got, err := second.Shared().Certificate(t.Context(), two.SHA256)
		return err == nil && got.Source == ledger.Own
	}, patience, 20*time.Millisecond)
	seen.Peer = "changed"
	require.NoError(t, first.Record(t.Context(), seen), "what is observed later changes nothing")
	got, err = first.Local().Certificate(t.Context(), own.SHA256)
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.1", got.Peer)
}

// TestSharedRefusesARecord: one record that PostgreSQL doesn't take keeps no other away, and is a gap.
func TestSharedRefusesARecord(t *testing.T) {
	dsnFile, dsn := database(t)
	cfg := ledger.Config{Dir: t.TempDir(), Postgres: ledger.PostgresConfig{DSNFile: dsnFile}}
	r := start(t, cfg)
	require.NoError(t, r.Record(t.Context(), issuance("first", time.Now())))
	r.shipped(t)
	_, err := query(t, "pgx", dsn).ExecContext(t.Context(), `ALTER TABLE issuance ADD CHECK (pod <> 'web-bad')`)
	require.NoError(t, err)
	var group sync.WaitGroup
	for _, name := range []string{"a", "bad", "b", "c"} {
		group.Go(func() { assert.NoError(t, r.Record(t.Context(), issuance(name, time.Now()))) })
	}
	group.Wait()
	r.shipped(t)
	page, err := r.Shared().List(t.Context(), ledger.Filter{}, ledger.Page{})
	require.NoError(t, err)
	assert.Len(t, page.Records, 4)
	require.Eventually(t, func() bool {
		gaps := mustCoverage(t, r.Shared()).Gaps
		return len(gaps) == 1 && gaps[0].Kind == ledger.GapUnshipped && gaps[0].Records == 1 && gaps[0].Replica == "signet-0"
	}, patience, 50*time.Millisecond)
	require.Eventually(t, func() bool { return r.metric(t, "ledger_unshipped_total") == 1 }, patience, 50*time.Millisecond)
}

// TestSharedIsNewer: a newer replica has brought the shared schema further; this one goes on signing.
func TestSharedIsNewer(t *testing.T) {
	dsnFile, dsn := database(t)
	cfg := ledger.Config{Dir: t.TempDir(), Postgres: ledger.PostgresConfig{DSNFile: dsnFile}}
	r := start(t, cfg)
	require.NoError(t, r.Record(t.Context(), issuance("first", time.Now())))
	r.shipped(t)
	require.NoError(t, r.end())
	_, err := query(t, "pgx", dsn).ExecContext(t.Context(), `INSERT INTO schema_version VALUES (99, 0)`)
	require.NoError(t, err)
	r = start(t, cfg)
	require.NoError(t, r.Record(t.Context(), issuance("second", time.Now())))
	require.Eventually(t, func() bool {
		text, err := r.Ready(time.Now())
		require.NoError(t, err)
		return strings.Contains(text, "it has schema 99") && strings.Contains(text, "run the Signet that wrote it")
	}, patience, 50*time.Millisecond)
}

// TestRefusalsShared: counts come to the shared view once their minute is over for long.
func TestRefusalsShared(t *testing.T) {
	dsnFile, dsn := database(t)
	dir := t.TempDir()
	r := start(t, ledger.Config{Dir: dir, Postgres: ledger.PostgresConfig{DSNFile: dsnFile}})
	for n := range 5 {
		r.Refused(ledger.Refusal{Reason: "identity", Code: "PermissionDenied", Identity: odd[n], Namespace: fmt.Sprintf("team-%d", n%2), Peer: "10.0.0.1"})
	}
	r.Refused(ledger.Refusal{Reason: "no_token", Code: "Unauthenticated", Peer: "10.0.0.2"})
	require.NoError(t, r.end())
	local := query(t, "sqlite", filepath.Join(dir, "ledger.db"))
	_, err := local.ExecContext(t.Context(), `UPDATE refusal SET window_at = window_at - 600`) // ten minutes pass
	require.NoError(t, err)
	require.NoError(t, local.Close())

	r = start(t, ledger.Config{Dir: dir, Postgres: ledger.PostgresConfig{DSNFile: dsnFile}})
	r.Refused(ledger.Refusal{Reason: "no_token", Code: "Unauthenticated", Peer: "10.0.0.2"}) // of the present minute
	shared := query(t, "pgx", dsn)
	require.Eventually(t, func() bool {
		var tables int
		return shared.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_tables WHERE tablename = 'shipper'`).Scan(&tables) == nil && tables == 1 &&
			number(t, shared, `SELECT coalesce(sum(count), 0) FROM refusal`) >= 6
	}, patience, 50*time.Millisecond)
	r.shipped(t)
	for name, view := range map[string]*ledger.View{"SQLite": r.Local(), "PostgreSQL": r.Shared()} {
		t.Run(name, func(t *testing.T) {
			filter := ledger.RefusalFilter{Until: time.Now().Add(-5 * time.Minute)}
			var all []ledger.Refusal
			page := ledger.Page{Limit: 2}
			for {
				answer, err := view.Refusals(t.Context(), filter, page)
				require.NoError(t, err)
				all = append(all, answer.Counts...)
				if page.Continue = answer.Continue; page.Continue == "" {
					break
				}
			}
			require.Len(t, all, 6)
			for _, f := range []struct {
				filter ledger.RefusalFilter
				want   int
			}{
				{ledger.RefusalFilter{Namespace: "team-0"}, 3}, {ledger.RefusalFilter{Identity: odd[0]}, 1}, {ledger.RefusalFilter{Namespaces: []string{"team-1"}}, 2},
				{ledger.RefusalFilter{Namespaces: []string{""}}, 0}, {ledger.RefusalFilter{Namespaces: []string{}}, 0}, {ledger.RefusalFilter{Reason: "identity"}, 5}, {ledger.RefusalFilter{Replica: "signet-9"}, 0},
			} {
				f.filter.Until = filter.Until
				answer, err := view.Refusals(t.Context(), f.filter, ledger.Page{})
				require.NoError(t, err)
				assert.Len(t, answer.Counts, f.want, "%+v", f.filter)
			}
			_, err := view.Refusals(t.Context(), ledger.RefusalFilter{Namespace: "x"}, page)
			require.NoError(t, err)
		})
	}
}

// TestRetentionWaitsForShipping: what the shared view lacks stays in the store for as long as it may.
func TestRetentionWaitsForShipping(t *testing.T) {
	own, err := postgres.Start(t.Context())
	require.NoError(t, err)
	defer func() { assert.NoError(t, own.Stop()) }()
	dsn, err := own.Database(t.Context(), "retention")
	require.NoError(t, err)
	dsnFile := filepath.Join(t.TempDir(), "dsn")
	require.NoError(t, os.WriteFile(dsnFile, []byte(dsn), 0o600))
	require.NoError(t, own.Down())
	r := start(t, ledger.Config{Postgres: ledger.PostgresConfig{DSNFile: dsnFile}, Retention: ledger.RetentionConfig{Rows: 1000}})
	record := func(from, to int) {
		var group sync.WaitGroup
		for n := from; n < to; n++ {
			group.Go(func() {
				assert.NoError(t, r.Record(t.Context(), issuance(fmt.Sprint(n), time.Now().Add(-2*time.Hour))))
			})
		}
		group.Wait()
	}
	count := func() int {
		return len(walk(t, r.Local(), ledger.Filter{}, 500, func() {}))
	}
	record(0, 1500)
	require.NoError(t, r.Trim(t.Context(), time.Now()))
	assert.Equal(t, 1500, count(), "all wait for the shared view")
	record(1500, 2300)
	require.NoError(t, r.Trim(t.Context(), time.Now()))
	assert.Equal(t, 2000, count(), "but twice as many as allowed are too many")
	gaps := mustCoverage(t, r.Local()).Gaps
	require.Len(t, gaps, 1)
	assert.Equal(t, ledger.GapUnshipped, gaps[0].Kind)
	assert.EqualValues(t, 300, gaps[0].Records)

	require.NoError(t, own.Up(context.WithoutCancel(t.Context())))
	r.shipped(t)
	require.NoError(t, r.Trim(t.Context(), time.Now()))
	assert.Equal(t, 1000, count())
	assert.EqualValues(t, 300, r.metric(t, "ledger_unshipped_total"))
	require.Eventually(t, func() bool {
		gaps := mustCoverage(t, r.Shared()).Gaps
		return len(gaps) == 1 && gaps[0].Records == 300
	}, patience, 50*time.Millisecond, "the shared view says so too")
	// The shared view deletes by itself, a few rows at a time.
	shared := query(t, "pgx", dsn)
	assert.Eventually(t, func() bool { return number(t, shared, `SELECT count(*) FROM issuance`) == 1000 }, patience, 100*time.Millisecond)

	tail, err := r.Local().Tail(t.Context(), ledger.Filter{}, ledger.OldestCursor, 1)
	require.NoError(t, err)
	assert.EqualValues(t, 1301, tail.Records[0].Sequence)
	assert.False(t, tail.Missed)
}

// TestLastRecordsAreShipped: what is recorded when the shipping has ended already is in the shared view once the store is
// closed: the store may not outlast its pod.
func TestLastRecordsAreShipped(t *testing.T) {
	dsnFile, _ := database(t)
	cfg := ledger.Config{Postgres: ledger.PostgresConfig{DSNFile: dsnFile}, Dir: t.TempDir(), Replica: "signet-0"}
	var last ledger.Issuance
	var log strings.Builder
	for n := range 10 { // the end of a store is bounded, so that it may come before the last is shipped; that is logged
		log.Reset()
		store, err := ledger.Open(t.Context(), cfg, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- store.Start(ctx) }()
		first := issuance(fmt.Sprint("first ", n), time.Now())
		require.NoError(t, store.Record(t.Context(), first))
		(&replica{Store: store}).shipped(t)
		cancel()
		require.NoError(t, <-ended)
		last = issuance(fmt.Sprint("last ", n), time.Now())
		require.NoError(t, store.Record(t.Context(), last))
		require.NoError(t, store.Close())
		if !strings.Contains(log.String(), "ship the last records") {
			break
		}
	}

	other := start(t, ledger.Config{Postgres: cfg.Postgres, Replica: "signet-1"})
	other.shipped(t)
	_, err := other.Shared().Certificate(t.Context(), last.SHA256)
	assert.NoError(t, err)
}
