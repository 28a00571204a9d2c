package ledger

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

// fill records numbers from to to, made at the given time.
func fill(t testing.TB, s *Store, from, to int, at time.Time) {
	t.Helper()
	var group sync.WaitGroup
	for n := from; n < to; n++ {
		group.Go(func() { assert.NoError(t, s.Record(context.Background(), issuance(n, at))) })
	}
	group.Wait()
}

// TestTrim deletes by age and by rows, in small steps, and says what is lost.
func TestTrim(t *testing.T) {
	s := open(t, Config{Retention: RetentionConfig{Age: setting.DurationOf(48 * time.Hour), Rows: 2000}})
	now := time.Now().Truncate(time.Second)
	fill(t, s, 0, 700, now.Add(-72*time.Hour))
	named := issuance(700, now.Add(-72*time.Hour))
	named.SANs = []string{"old.example"}
	require.NoError(t, s.Record(t.Context(), named))
	fill(t, s, 1000, 1500, now.Add(-30*time.Hour))
	cursor, err := s.Local().Tail(t.Context(), Filter{}, OldestCursor, 10)
	require.NoError(t, err)
	steps := 0
	for {
		n, err := s.trimStep(t.Context(), now)
		require.NoError(t, err)
		require.LessOrEqual(t, n, int64(deleteStep))
		if n == 0 {
			break
		}
		steps++
	}
	assert.Equal(t, 4, steps)
	assert.EqualValues(t, 500, count(t, s, `SELECT count(*) FROM issuance`))
	assert.Zero(t, count(t, s, `SELECT count(*) FROM san`))
	coverage, err := s.Local().Coverage(t.Context())
	require.NoError(t, err)
	assert.Empty(t, coverage.Gaps, "they had all expired")
	assert.Equal(t, now.Add(-30*time.Hour).Unix(), coverage.Since.Unix())
	tail, err := s.Local().Tail(t.Context(), Filter{}, cursor.Cursor, 10)
	require.NoError(t, err)
	assert.True(t, tail.Missed, "the reader was too slow")
	assert.EqualValues(t, 702, tail.Records[0].Sequence)
	tail, err = s.Local().Tail(t.Context(), Filter{}, tail.Cursor, 10)
	require.NoError(t, err)
	assert.False(t, tail.Missed)

	fill(t, s, 2000, 3700, now)
	require.NoError(t, s.Trim(t.Context(), now))
	assert.EqualValues(t, 2000, count(t, s, `SELECT count(*) FROM issuance`))
	assert.EqualValues(t, 1700, count(t, s, fmt.Sprintf(`SELECT count(*) FROM issuance WHERE recorded_at = %d`, now.Unix())), "the youngest stay")
	fill(t, s, 4000, 4600, now)
	for {
		n, err := s.trimStep(t.Context(), now)
		require.NoError(t, err)
		require.LessOrEqual(t, n, int64(deleteStep))
		if n == 0 {
			break
		}
	}
	coverage, err = s.Local().Coverage(t.Context())
	require.NoError(t, err)
	require.Len(t, coverage.Gaps, 1, "certificates that were valid")
	assert.Equal(t, GapRetention, coverage.Gaps[0].Kind)
	assert.EqualValues(t, 300, coverage.Gaps[0].Records)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(s.metrics.expelled)
	families, err := registry.Gather()
	require.NoError(t, err)
	assert.Equal(t, 300.0, families[0].GetMetric()[0].GetCounter().GetValue())
	// Sequences are never given out twice.
	fill(t, s, 5000, 5001, now)
	assert.EqualValues(t, 3502, count(t, s, `SELECT max(seq) FROM issuance`))
}

// TestVacuum gives room back to the filesystem when much of it is unused.
func TestVacuum(t *testing.T) {
	s := open(t, Config{})
	require.NoError(t, s.writer.do(t.Context(), func(ctx context.Context, on execer) error {
		_, err := on.ExecContext(ctx, `CREATE TABLE junk AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) SELECT randomblob(4000) AS b FROM n`)
		return err
	}))
	require.NoError(t, s.writer.do(t.Context(), func(ctx context.Context, on execer) error {
		_, err := on.ExecContext(ctx, `DROP TABLE junk`)
		return err
	}))
	before := count(t, s, `SELECT freelist_count FROM pragma_freelist_count()`)
	require.Greater(t, before, int64(1900))
	pages := count(t, s, `SELECT page_count FROM pragma_page_count()`)
	require.NoError(t, s.vacuum(t.Context(), 5000))
	assert.Equal(t, before, count(t, s, `SELECT freelist_count FROM pragma_freelist_count()`), "a few unused ones don't matter")
	require.NoError(t, s.vacuum(t.Context(), 500))
	assert.LessOrEqual(t, count(t, s, `SELECT freelist_count FROM pragma_freelist_count()`), int64(500))
	assert.Less(t, count(t, s, `SELECT page_count FROM pragma_page_count()`), pages-1000)
}

// TestRefusals: equal ones are counted together; a flood of different ones costs a bounded number of
// rows and of bytes in memory, and loses no count.
func TestRefusals(t *testing.T) {
	s := open(t, Config{})
	now := time.Now()
	for range 1000 {
		s.Refused(Refusal{Reason: "no_token", Code: "Unauthenticated", Peer: "10.0.0.1", Last: now})
	}
	s.flush(t.Context())
	s.Refused(Refusal{Reason: "no_token", Code: "Unauthenticated", Peer: "10.0.0.1", Count: 5, Last: now})
	s.flush(t.Context())
	s.flush(t.Context())
	assert.EqualValues(t, 1, count(t, s, `SELECT count(*) FROM refusal`))
	assert.EqualValues(t, 1005, count(t, s, `SELECT sum(count) FROM refusal`))

	const flood = 200_000
	for n := range flood {
		s.Refused(Refusal{Reason: fmt.Sprint("reason ", n%3), Code: "PermissionDenied", Identity: fmt.Sprint(strings.Repeat("x", 5000), n), Peer: fmt.Sprint(n), Last: now})
		if n%1000 == 0 {
			s.refused.mu.Lock()
			kept := len(s.refused.counts)
			s.refused.mu.Unlock()
			require.LessOrEqual(t, kept, maxRefusalKinds+3)
		}
	}
	s.flush(t.Context())
	assert.LessOrEqual(t, count(t, s, `SELECT count(*) FROM refusal`), int64(maxRefusalKinds+1+3))
	assert.EqualValues(t, 1005+flood, count(t, s, `SELECT sum(count) FROM refusal`))
	assert.EqualValues(t, 3, count(t, s, `SELECT count(*) FROM refusal WHERE others = 1 AND peer = '' AND identity = ''`))
	assert.LessOrEqual(t, count(t, s, `SELECT max(length(identity)) FROM refusal`), int64(maxRefusalText))

	// In another minute as many could follow, but the disk's allowance is used up. It is one that the flood can't last to.
	later := now.Add(time.Hour)
	for s.refused.budget.AllowN(later, 1) {
	}
	for n := range 5000 {
		s.refused.add(Refusal{Reason: "reason 0", Code: "PermissionDenied", Peer: fmt.Sprint(n), Last: later}, later)
	}
	s.flush(t.Context())
	assert.LessOrEqual(t, count(t, s, fmt.Sprintf(`SELECT count(*) FROM refusal WHERE others = 0 AND window_at = %d`, later.Truncate(refusalWindow).Unix())), int64(0))
}

// TestRefusalsWait: what can't be written now is written later, in a bounded number of rows.
func TestRefusalsWait(t *testing.T) {
	s := open(t, Config{})
	room := s.disk.ask
	s.disk.ask = func(string) (uint64, error) { return 1 << 20, nil }
	s.disk.look()
	require.True(t, s.disk.low())
	for n := range 500 {
		s.Refused(Refusal{Reason: "identity", Code: "PermissionDenied", Peer: fmt.Sprint(n)})
	}
	s.flush(t.Context())
	assert.Zero(t, count(t, s, `SELECT count(*) FROM refusal`))
	assert.EqualValues(t, 500, valueOf(t, s.metrics.folded))
	text, err := s.Ready(time.Now())
	require.NoError(t, err)
	assert.Contains(t, text, "1 MiB free, below the reserve")
	require.NoError(t, s.Record(t.Context(), issuance(1, time.Now())), "issuances go on")
	s.disk.ask = room
	s.disk.look()

	// The store fails, again and again, over many minutes.
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	now := time.Now()
	for minute := range 300 {
		at := now.Add(-time.Duration(300-minute) * time.Minute)
		for n := range 100 {
			s.refused.add(Refusal{Reason: fmt.Sprint(n % 50), Code: "PermissionDenied", Peer: fmt.Sprint(n), Last: at}, at)
		}
		require.Error(t, s.writer.flush(canceled, s.refused, false))
		require.LessOrEqual(t, len(s.refused.counts), 2*maxRefusalKinds+200)
	}
	s.flush(t.Context())
	assert.EqualValues(t, 500+300*100, count(t, s, `SELECT sum(count) FROM refusal`))
	assert.GreaterOrEqual(t, count(t, s, `SELECT min(window_at) FROM refusal`), now.Add(-2*time.Minute).Truncate(time.Minute).Unix(), "no old window changes")
	require.NoError(t, s.Close())
	s.Refused(Refusal{Reason: "late", Code: "Unavailable"})
}

// TestTrimRefusals keeps a bounded number, the latest.
func TestTrimRefusals(t *testing.T) {
	s := open(t, Config{})
	now := time.Now()
	for n := range 950 {
		s.Refused(Refusal{Reason: "identity", Code: "PermissionDenied", Peer: fmt.Sprint(n), Last: now})
	}
	s.flush(t.Context())
	fill(t, s, 0, 1, now)
	require.NoError(t, s.Trim(t.Context(), now))
	assert.EqualValues(t, 950, count(t, s, `SELECT count(*) FROM refusal`))
	deleted := int64(0)
	for {
		n, err := s.trimRefusals(t.Context(), now, 700)
		require.NoError(t, err)
		require.LessOrEqual(t, n, int64(deleteStep))
		if deleted += n; n == 0 {
			break
		}
	}
	assert.EqualValues(t, 250, deleted)
	assert.EqualValues(t, 251, count(t, s, `SELECT min(seq) FROM refusal`))
	n, err := s.trimRefusals(t.Context(), now.Add(91*24*time.Hour), 700)
	require.NoError(t, err)
	assert.EqualValues(t, deleteStep, n, "those are too old")
}

// TestPlans: each question is answered from an index, in the order that is asked for, so that a page
// costs the same however long the ledger is.
func TestPlans(t *testing.T) {
	s := open(t, Config{})
	for _, row := range []struct {
		name  string
		f     Filter
		index string
		sorts bool
	}{
		{"everything", Filter{}, "issuance_recorded", false},
		{"since", Filter{Since: time.Now()}, "issuance_recorded", false},
		{"live", Filter{State: Live}, "issuance_recorded", false},
		{"expiring", Filter{State: Live, ExpiresWithin: time.Hour}, "issuance_recorded", false},
		{"identity", Filter{Identity: "x"}, "issuance_identity", false},
		{"live ones of an identity", Filter{Identity: "x", State: Live}, "issuance_identity", false},
		{"identity and namespace", Filter{Identity: "x", Namespace: "y", Namespaces: []string{"y", "z"}}, "issuance_identity", false},
		{"namespace", Filter{Namespace: "x", State: Superseded}, "issuance_namespace", false},
		{"node", Filter{Node: "x", Since: time.Now()}, "issuance_node", false},
		{"namespaces", Filter{Namespaces: []string{"x", "y"}}, "COVERING INDEX issuance_namespace", true},
		{"live ones in namespaces", Filter{State: Live, Namespaces: []string{"x", "y"}}, "USING INDEX issuance_namespace", true},
		{"many namespaces", Filter{Namespaces: strings.Split(strings.Repeat("x,", 60), ",")}, "issuance_recorded", false},
		{"serial", Filter{Serial: "ab"}, "issuance_key", true},
		{"name", Filter{SAN: "x"}, "issuance_identity", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			q, err := s.Local().begin(t.Context())
			require.NoError(t, err)
			q.longest = 1
			q.add(`(i.recorded_at, i.seq) < (?, ?)`, 1, 1)
			require.NoError(t, q.choose(row.f, time.Now().Unix(), 5))
			rest, args := q.page(10)
			rows, err := s.local.Query(`EXPLAIN QUERY PLAN SELECT i.seq, `+columnNames("i.", columns)+` FROM issuance i `+rest, args...)
			require.NoError(t, err)
			defer rows.Close()
			var plan strings.Builder
			for rows.Next() {
				var a, b, c int
				var line string
				require.NoError(t, rows.Scan(&a, &b, &c, &line))
				plan.WriteString(line + "\n")
			}
			require.NoError(t, rows.Err())
			assert.Contains(t, plan.String(), row.index)
			assert.Equal(t, row.sorts, strings.Contains(plan.String(), "TEMP B-TREE FOR ORDER BY"), plan.String())
			assert.NotRegexp(t, `SCAN (i|n)\n`, plan.String())
			if row.f.State != "" {
				assert.Regexp(t, `SEARCH n (EXISTS )?USING COVERING INDEX issuance_holding \(holding=\? AND recorded_at>\?\)`, plan.String())
			}
		})
	}
}

// TestColumns: the schema and the code name the same columns.
func TestColumns(t *testing.T) {
	table := schema1[strings.Index(schema1, "CREATE TABLE issuance ("):]
	table = table[:strings.Index(table, ");")]
	var names []string
	for _, match := range regexp.MustCompile(`(?m)^  (\w+) +`).FindAllStringSubmatch(table, -1) {
		names = append(names, match[1])
	}
	require.Equal(t, "seq", names[0])
	var ours []string
	for _, c := range columns {
		ours = append(ours, c.name)
	}
	assert.ElementsMatch(t, names[1:], ours)
	assert.Equal(t, "der", columns[len(columns)-1].name, "lists leave out the last one")
	r, err := newRow(issuance(1, time.Now()), "", time.Now())
	require.NoError(t, err)
	require.Len(t, r.values(), len(columns))
	require.Len(t, r.targets(), len(columns)+1)
	for n, value := range r.values() {
		switch columns[n].kind {
		case numbers:
			assert.IsType(t, int64(0), value, columns[n].name)
		case texts:
			assert.IsType(t, "", value, columns[n].name)
		case blobs:
			assert.IsType(t, []byte(nil), value, columns[n].name)
			assert.NotNil(t, value, columns[n].name)
		}
	}
}
