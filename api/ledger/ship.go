package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// shipBatch is how many records go in one transaction.
	shipBatch = 500
	// shipPause is how long the shipper gathers records before it sends them; shipIdle is how often it
	// looks when nothing is told, and says that it is alive.
	shipPause = 100 * time.Millisecond
	shipIdle  = 5 * time.Second
	// shipTimeout bounds one transaction, at both ends.
	shipTimeout = 15 * time.Second
	// shippable is how old the window of a count of refusals is when it doesn't change any more.
	shippable = 3 * refusalWindow
	// leastBackoff and mostBackoff bound the time between two tries to reach the shared view.
	leastBackoff = 500 * time.Millisecond
	mostBackoff  = 30 * time.Second
)

// backoff is how long to wait after so many tries have failed in a row; roll is between 0 and 1.
func backoff(failures int, roll float64) time.Duration {
	d := leastBackoff << min(max(failures-1, 0), 10)
	d = min(d, mostBackoff)
	return d/2 + time.Duration(roll*float64(d/2))
}

// shipper sends the store's records to the shared view.
type shipper struct {
	store *Store
	db    *database
	woken chan struct{}

	ready   bool // the schema is up to date and the id known; only ship uses it
	sent    string
	trimmed time.Time

	contact atomic.Pointer[contact]
	lagRows atomic.Int64
	oldest  atomic.Int64 // Unix s, of the oldest record that isn't shipped; 0 for none
}

// contact is how the last try to reach the shared view ended. Immutable.
type contact struct {
	err   error
	since time.Time // when that changed
}

func newShipper(s *Store) (*shipper, error) {
	dsn, err := s.cfg.Postgres.dsn()
	if err != nil {
		return nil, err
	}
	db, err := openPostgres(dsn)
	if err != nil {
		return nil, err
	}
	p := &shipper{store: s, db: db, woken: make(chan struct{}, 1)}
	p.contact.Store(&contact{err: errors.New("not asked yet"), since: time.Now()})
	return p, nil
}

// wake tells that there is something to ship. It never blocks.
func (p *shipper) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

func (p *shipper) reached() bool { return p.contact.Load().err == nil }

// note remembers how a try ended, and says when that changes.
func (p *shipper) note(err error) {
	before := p.contact.Load()
	if (err == nil) == (before.err == nil) {
		if err != nil {
			p.contact.Store(&contact{err: err, since: before.since})
		}
		return
	}
	p.contact.Store(&contact{err: err, since: time.Now()})
	if err != nil {
		p.store.log.Warn("the shared ledger can't be reached; records wait in the replica's own", "err", err)
	} else {
		p.store.log.Info("shipping to the shared ledger")
	}
}

// lag is how old the oldest record is that the shared view lacks.
func (p *shipper) lag(now time.Time) time.Duration {
	if oldest := p.oldest.Load(); oldest != 0 {
		return max(0, now.Sub(unix(oldest)))
	}
	return 0
}

// state is how far the shared view is behind now.
func (p *shipper) state(ctx context.Context) (*Shipping, error) {
	through, err := p.store.local.amount(ctx, p.store.local, shippedThrough)
	if err != nil {
		return nil, err
	}
	if err := p.behind(ctx, through); err != nil {
		return nil, err
	}
	state := &Shipping{Reached: p.reached(), Records: p.lagRows.Load()}
	if oldest := p.oldest.Load(); oldest != 0 {
		state.Oldest = unix(oldest)
	}
	return state, nil
}

// text is for people.
func (p *shipper) text(now time.Time) string {
	c := p.contact.Load()
	if c.err == nil {
		return fmt.Sprintf("shared view: %d records behind", p.lagRows.Load())
	}
	return fmt.Sprintf("shared view: not reached since %s, %d records behind by %s: %v", c.since.UTC().Format(time.RFC3339), p.lagRows.Load(), p.lag(now).Round(time.Second), c.err)
}

// ship sends what is new until ctx ends.
func (p *shipper) ship(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		more, err := p.round(ctx)
		if ctx.Err() != nil {
			return
		}
		p.note(err)
		wait := shipPause
		switch {
		case err != nil:
			failures++
			p.store.metrics.shipFailed.Inc()
			p.measure(ctx)
			wait = backoff(failures, rand.Float64())
		case more:
			failures = 0
			continue
		default:
			failures = 0
			idle := time.NewTimer(shipIdle)
			select {
			case <-p.woken:
			case <-idle.C:
			case <-ctx.Done():
			}
			idle.Stop()
		}
		if pause(ctx, wait) != nil {
			return
		}
	}
}

// measure finds how much is not shipped while the shared view can't be reached.
func (p *shipper) measure(ctx context.Context) {
	if _, err := p.state(ctx); err != nil && ctx.Err() == nil {
		p.store.log.Warn("measure what is not shipped", "err", err)
	}
}

// behind sets the lag of a shared view that has everything up to the sequence through.
func (p *shipper) behind(ctx context.Context, through int64) error {
	var last, oldest sql.NullInt64
	err := p.store.local.QueryRowContext(ctx, `SELECT (SELECT max(seq) FROM issuance), (SELECT recorded_at FROM issuance WHERE seq > ? ORDER BY seq LIMIT 1)`, through).Scan(&last, &oldest)
	if err != nil {
		return fmt.Errorf("read the store's end: %w", err)
	}
	p.lagRows.Store(max(0, last.Int64-through)) // sequences of a store have no gaps to speak of
	p.oldest.Store(oldest.Int64)
	return nil
}

// round ships one batch of records, then the rest of what the shared view should know. more says that
// there are further records.
func (p *shipper) round(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, shipTimeout)
	defer cancel()
	if !p.ready {
		if err := migrate(ctx, p.db, time.Now()); err != nil {
			return false, err
		}
		if err := p.db.identify(ctx); err != nil {
			return false, err
		}
		p.ready = true
	}
	local := p.store.local
	var last sql.NullInt64
	if err := local.QueryRowContext(ctx, `SELECT max(seq) FROM issuance`).Scan(&last); err != nil {
		return false, fmt.Errorf("read the store's end: %w", err)
	}
	through, refusals, err := p.cursor(ctx, last.Int64)
	if err != nil {
		return false, err
	}
	if err := p.behind(ctx, through); err != nil {
		return false, err
	}
	rows, err := readRows(ctx, local, `WHERE i.seq > ? ORDER BY i.seq LIMIT ?`, through, shipBatch)
	if err != nil {
		return false, err
	}
	again, err := readRows(ctx, local, `WHERE i.seq IN (SELECT seq FROM again ORDER BY seq LIMIT ?) AND i.seq <= ?`, shipBatch, through)
	if err != nil {
		return false, err
	}
	counts, err := p.readRefusals(ctx, refusals)
	if err != nil {
		return false, err
	}
	if len(rows) != 0 {
		through = rows[len(rows)-1].seq
	}
	if len(counts) != 0 {
		refusals = counts[len(counts)-1].Sequence
	}
	err = p.send(ctx, append(again, rows...), counts, through, refusals)
	if isOfData(err) {
		err = p.sendWithout(ctx, append(again, rows...), counts, through, refusals, err)
	}
	if err != nil {
		return false, err
	}
	p.store.metrics.shipped.Add(float64(len(rows) + len(again)))

	err = p.store.writer.do(ctx, func(ctx context.Context, on execer) error {
		for _, r := range again {
			if _, err := on.ExecContext(ctx, `DELETE FROM again WHERE seq = ?`, r.seq); err != nil {
				return fmt.Errorf("note what was shipped: %w", err)
			}
		}
		if err := local.raise(ctx, on, shippedThrough, through); err != nil {
			return err
		}
		return local.raise(ctx, on, refusalsSent, refusals)
	})
	if err != nil {
		return false, err
	}
	if err := p.behind(ctx, through); err != nil {
		return false, err
	}
	if len(rows) < shipBatch && len(again) < shipBatch && len(counts) < shipBatch {
		return false, p.trim(ctx, time.Now())
	}
	return true, nil
}

// cursor is what the shared view has of this store. It says so itself, so that one that was restored
// from a backup, or is another one, gets again what it lacks.
func (p *shipper) cursor(ctx context.Context, last int64) (through, refusals int64, err error) {
	err = p.db.QueryRowContext(ctx, `SELECT shipped_through, refusals_sent FROM shipper WHERE store_id = $1`, p.store.local.id).Scan(&through, &refusals)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		through, refusals = 0, 0
	case err != nil:
		return 0, 0, fmt.Errorf("read what the shared ledger has: %w", err)
	case through > last && last > 0:
		through, refusals = 0, 0 // the store itself was restored from a backup
	}
	known, err := p.store.local.amount(ctx, p.store.local, shippedThrough)
	if err != nil {
		return 0, 0, err
	}
	if through < known {
		// What retention may delete goes back too.
		err = p.store.writer.do(ctx, func(ctx context.Context, on execer) error {
			_, err := on.ExecContext(ctx, `UPDATE meta SET amount = CASE name WHEN ? THEN ? ELSE ? END WHERE name IN (?, ?)`, shippedThrough, through, refusals, shippedThrough, refusalsSent)
			return err
		})
	}
	return through, refusals, err
}

// send writes everything in one transaction, during which no other replica adds records.
func (p *shipper) send(ctx context.Context, rows []*row, counts []Refusal, through, refusals int64) (err error) {
	about, said, err := p.about(ctx)
	if err != nil {
		return err
	}
	if len(rows) == 0 && len(counts) == 0 && said == p.sent {
		_, err := p.db.ExecContext(ctx, `UPDATE shipper SET seen_at = $1 WHERE store_id = $2`, time.Now().Unix(), p.store.local.id)
		if err != nil {
			return fmt.Errorf("tell the shared ledger that we are alive: %w", err)
		}
		return nil
	}
	tx, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreDone(tx.Rollback()))
		}
	}()
	if err := insertShared(ctx, p.db, tx, rows); err != nil {
		return err
	}
	if err := insertSharedRefusals(ctx, tx, counts); err != nil {
		return err
	}
	for _, statement := range about {
		if _, err := tx.ExecContext(ctx, statement.query, statement.args...); err != nil {
			return fmt.Errorf("tell the shared ledger of the replica: %w", err)
		}
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO shipper (store_id, replica, shipped_through, refusals_sent, seen_at) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (store_id) DO UPDATE SET replica = excluded.replica, shipped_through = excluded.shipped_through, refusals_sent = excluded.refusals_sent, seen_at = excluded.seen_at`,
		p.store.local.id, p.store.cfg.Replica, through, refusals, time.Now().Unix())
	if err != nil {
		return fmt.Errorf("note what was shipped: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit to the shared ledger: %w", err)
	}
	p.sent = said
	return nil
}

// begin begins a transaction of the only replica that ships now. It ends by itself where the connection is lost in the
// middle, so that the lock isn't held for ever.
func (p *shipper) begin(ctx context.Context) (*sql.Tx, error) {
	tx, err := p.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("reach the shared ledger: %w", err)
	}
	timeout := fmt.Sprint(shipTimeout.Milliseconds())
	_, err = tx.ExecContext(ctx, `SELECT set_config('idle_in_transaction_session_timeout', $1, true), set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true)`, timeout)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin to ship: %w", err), ignoreDone(tx.Rollback()))
	}
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, sequenceLock); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for other replicas that ship: %w", err), ignoreDone(tx.Rollback()))
	}
	return tx, nil
}

// sendWithout finds the records that the shared view refuses for what they hold, and goes on without
// them: one bad record must not keep all later ones away.
func (p *shipper) sendWithout(ctx context.Context, rows []*row, counts []Refusal, through, refusals int64, cause error) error {
	good, bad, err := sift(rows, func(some []*row) error { return p.attempt(ctx, some) })
	if err != nil {
		return err
	}
	var lost int64
	var from, to int64
	for _, b := range bad {
		r := b.row
		p.store.log.Error("the shared ledger refuses a record", "serial", fmt.Sprintf("%x", r.serial), "identity", r.issuance.Identity, "err", b.why)
		if lost == 0 {
			from, to = r.recordedAt, r.recordedAt
		}
		lost, from, to = lost+1, min(from, r.recordedAt), max(to, r.recordedAt)
	}
	if lost == 0 {
		return cause // it isn't one of them
	}
	if err := p.send(ctx, good, counts, through, refusals); err != nil {
		return err
	}
	p.store.metrics.unshipped.Add(float64(lost))
	return p.store.writer.do(ctx, func(ctx context.Context, on execer) error {
		return addGap(ctx, p.store.local, on, p.store.cfg.Replica, Gap{Kind: GapUnshipped, From: unix(from), To: unix(to), Records: lost})
	})
}

// refusedRow is a record that the shared view refuses, and why.
type refusedRow struct {
	row *row
	why error
}

// sift takes out of rows those that try refuses for what they hold. It halves what is refused until single ones are left:
// a try is several round trips, and all of them together must not take longer than one shipment may. Any other error is
// returned.
func sift(rows []*row, try func([]*row) error) (good []*row, bad []refusedRow, err error) {
	if len(rows) == 0 {
		return nil, nil, nil
	}
	switch err := try(rows); {
	case err == nil:
		return rows, nil, nil
	case !isOfData(err):
		return nil, nil, err
	case len(rows) == 1:
		return nil, []refusedRow{{rows[0], err}}, nil
	}
	for _, half := range [][]*row{rows[:len(rows)/2], rows[len(rows)/2:]} {
		some, refused, err := sift(half, try)
		if err != nil {
			return nil, nil, err
		}
		good, bad = append(good, some...), append(bad, refused...)
	}
	return good, bad, nil
}

// attempt looks whether the shared view would take rows.
func (p *shipper) attempt(ctx context.Context, rows []*row) error {
	tx, err := p.begin(ctx)
	if err != nil {
		return err
	}
	return errors.Join(insertShared(ctx, p.db, tx, rows), ignoreDone(tx.Rollback()))
}

// insertShared adds rows to the shared view in a round trip for each statement, not for each row.
// What the replica that issued a certificate says replaces what others observed.
func insertShared(ctx context.Context, d *database, on execer, rows []*row) error {
	if len(rows) == 0 {
		return nil
	}
	var longest int64
	var sans []string
	var serials, keys [][]byte
	for _, r := range rows {
		longest = max(longest, r.notAfter-r.recordedAt)
		for _, san := range r.moreSANs() {
			sans, serials, keys = append(sans, san), append(serials, r.serial), append(keys, r.issuerKeyID)
		}
	}
	// Most of what was observed is known. A conflict would cost each a number of the sequence.
	names := columnNames("", columns)
	query := `INSERT INTO issuance (` + names + `) SELECT ` + columnNames("u.", columns) + ` FROM unnest(` + unnested() + `) WITH ORDINALITY AS u (` + names + `, place)
		WHERE u.source = 'own' OR NOT EXISTS (SELECT 1 FROM issuance e WHERE e.serial = u.serial AND e.issuer_key_id = u.issuer_key_id) ORDER BY u.place
		ON CONFLICT (serial, issuer_key_id) DO UPDATE SET ` + replaced() + ` WHERE issuance.source = 'observed' AND excluded.source = 'own'`
	if _, err := on.ExecContext(ctx, query, arrays(rows)...); err != nil {
		return fmt.Errorf("ship %d records: %w", len(rows), err)
	}
	if len(sans) != 0 {
		_, err := on.ExecContext(ctx, `INSERT INTO san (san, seq) SELECT u.san, i.seq FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS u (san, serial, key)
			JOIN issuance i ON i.serial = u.serial AND i.issuer_key_id = u.key ON CONFLICT DO NOTHING`, sans, serials, keys)
		if err != nil {
			return fmt.Errorf("ship %d names: %w", len(sans), err)
		}
	}
	return d.raise(ctx, on, longestLife, longest)
}

// replaced are the columns that an own record brings to an observed one; its place and time stay.
func replaced() string {
	var set []string
	for _, c := range columns {
		if c.name != "recorded_at" {
			set = append(set, c.name+" = excluded."+c.name)
		}
	}
	return strings.Join(set, ", ")
}

// unnested are the parameters of a statement that takes each column as an array.
func unnested() string {
	types := map[kind]string{numbers: "bigint[]", texts: "text[]", blobs: "bytea[]"}
	var parameters []string
	for n, c := range columns {
		parameters = append(parameters, fmt.Sprintf("$%d::%s", n+1, types[c.kind]))
	}
	return strings.Join(parameters, ", ")
}

// arrays are the columns of rows.
func arrays(rows []*row) []any {
	whole, written, raw := make([][]int64, len(columns)), make([][]string, len(columns)), make([][][]byte, len(columns))
	for _, r := range rows {
		for n, value := range r.values() {
			switch v := value.(type) {
			case int64:
				whole[n] = append(whole[n], v)
			case string:
				written[n] = append(written[n], v)
			case []byte:
				raw[n] = append(raw[n], v)
			}
		}
	}
	args := make([]any, len(columns))
	for n, c := range columns {
		switch c.kind {
		case numbers:
			args[n] = whole[n]
		case texts:
			args[n] = written[n]
		case blobs:
			args[n] = raw[n]
		}
	}
	return args
}

// insertSharedRefusals adds counts to the shared view.
func insertSharedRefusals(ctx context.Context, on execer, counts []Refusal) error {
	if len(counts) == 0 {
		return nil
	}
	var keys [][]byte
	written, whole := make([][]string, 7), make([][]int64, 5)
	for _, r := range counts {
		key := refusalKey{window: r.Window.Unix(), reason: r.Reason, code: r.Code, identity: r.Identity, namespace: r.Namespace, serviceAccount: r.ServiceAccount, peer: r.Peer, from: r.Replica, others: r.Others}
		keys = append(keys, key.digest())
		for n, value := range []string{r.Reason, r.Code, r.Identity, r.Namespace, r.ServiceAccount, r.Peer, r.Replica} {
			written[n] = append(written[n], value)
		}
		var others int64
		if r.Others {
			others = 1
		}
		for n, value := range []int64{r.Window.Unix(), others, r.Count, r.First.Unix(), r.Last.Unix()} {
			whole[n] = append(whole[n], value)
		}
	}
	_, err := on.ExecContext(ctx, `INSERT INTO refusal (key, reason, code, identity, namespace, service_account, peer, replica, window_at, others, count, first_at, last_at)
		SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[])
		ON CONFLICT (key) DO NOTHING`,
		keys, written[0], written[1], written[2], written[3], written[4], written[5], written[6], whole[0], whole[1], whole[2], whole[3], whole[4])
	if err != nil {
		return fmt.Errorf("ship %d counts of refusals: %w", len(counts), err)
	}
	return nil
}

// readRefusals are the counts after sequence after that don't change any more.
func (p *shipper) readRefusals(ctx context.Context, after int64) ([]Refusal, error) {
	all, err := scanRefusals(ctx, p.store.local, `WHERE seq > ? ORDER BY seq LIMIT ?`, after, shipBatch)
	if err != nil {
		return nil, err
	}
	for n, r := range all {
		if time.Since(r.Window) < shippable {
			return all[:n], nil // those behind it wait too, so that one number says what was shipped
		}
	}
	return all, nil
}

// statement is one with its values.
type statement struct {
	query string
	args  []any
}

// about is what the shared view should know of this replica besides its records, and all of it as a
// text, which changes when there is something to tell.
func (p *shipper) about(ctx context.Context) ([]statement, string, error) {
	var statements []statement
	var said strings.Builder
	all, err := gaps(ctx, p.store.local, maxGaps)
	if err != nil {
		return nil, "", err
	}
	for _, g := range all {
		if g.Kind == GapRetention {
			continue // the shared view has them still
		}
		statements = append(statements, statement{`INSERT INTO gap (replica, kind, from_at, to_at, records) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (replica, kind, from_at) DO UPDATE SET to_at = excluded.to_at, records = excluded.records`,
			[]any{g.Replica, string(g.Kind), g.From.Unix(), g.To.Unix(), g.Records}})
		fmt.Fprint(&said, g)
	}
	err = each(ctx, p.store.local, func(rows *sql.Rows) error {
		var replica, source string
		var first, last, records int64
		if err := rows.Scan(&replica, &source, &first, &last, &records); err != nil {
			return err
		}
		statements = append(statements, statement{`INSERT INTO origin (replica, source, first_at, last_at, records) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (replica, source) DO UPDATE SET first_at = least(origin.first_at, excluded.first_at), last_at = greatest(origin.last_at, excluded.last_at), records = greatest(origin.records, excluded.records)`,
			[]any{replica, source, first, last, records}})
		fmt.Fprint(&said, replica, source, first, last, records)
		return nil
	}, `SELECT replica, source, first_at, last_at, records FROM origin`)
	return statements, said.String(), err
}

// trim deletes what is over the retention from the shared view, a few rows in each call and at most
// every minute where there are no more. One replica at a time does so.
func (p *shipper) trim(ctx context.Context, now time.Time) (err error) {
	if now.Sub(p.trimmed) < retainEvery {
		return nil
	}
	tx, err := p.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("reach the shared ledger: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreDone(tx.Rollback()))
		}
	}()
	var ours bool
	if err := tx.QueryRowContext(ctx, `SELECT pg_try_advisory_xact_lock($1)`, retentionLock).Scan(&ours); err != nil {
		return fmt.Errorf("lock the retention: %w", err)
	}
	if !ours {
		p.trimmed = now
		return tx.Rollback()
	}
	age, rows := p.store.cfg.Retention.Age.Or(0), int64(p.store.cfg.Retention.Rows)
	var lowest, highest, over sql.NullInt64 // over is the youngest that is one too many
	if err := tx.QueryRowContext(ctx, `SELECT (SELECT min(seq) FROM issuance), (SELECT max(seq) FROM issuance)`).Scan(&lowest, &highest); err != nil {
		return fmt.Errorf("read the shared ledger's ends: %w", err)
	}
	if highest.Int64-lowest.Int64 >= rows { // there may be too many; the sequence has gaps
		err := tx.QueryRowContext(ctx, `SELECT seq FROM issuance ORDER BY seq DESC OFFSET $1 LIMIT 1`, rows).Scan(&over)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("count the shared ledger's records: %w", err)
		}
	}
	var last, still sql.NullInt64
	var lost int64
	var from, to sql.NullInt64
	err = tx.QueryRowContext(ctx, `WITH gone AS (DELETE FROM issuance WHERE seq IN (SELECT seq FROM issuance
			WHERE recorded_at < $1 OR seq <= $2 ORDER BY recorded_at, seq LIMIT $3) RETURNING seq, recorded_at, not_after)
		SELECT max(seq), count(*) FILTER (WHERE not_after >= $4), min(recorded_at) FILTER (WHERE not_after >= $4), max(recorded_at) FILTER (WHERE not_after >= $4), count(*) FROM gone`,
		now.Add(-age).Unix(), over.Int64, deleteStep, now.Unix()).Scan(&last, &lost, &from, &to, &still)
	if err != nil {
		return fmt.Errorf("delete old records of the shared ledger: %w", err)
	}
	if lost > 0 {
		if err := addGap(ctx, p.db, tx, p.store.cfg.Replica, Gap{Kind: GapRetention, From: unix(from.Int64), To: unix(to.Int64), Records: lost}); err != nil {
			return err
		}
	}
	if last.Valid {
		if err := p.db.raise(ctx, tx, deletedThrough, last.Int64); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM san WHERE seq <= $1 AND NOT EXISTS (SELECT 1 FROM issuance i WHERE i.seq = san.seq)`, last.Int64); err != nil {
			return fmt.Errorf("delete old names of the shared ledger: %w", err)
		}
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM refusal WHERE seq IN (SELECT seq FROM refusal WHERE window_at < $1 OR seq <= (SELECT max(seq) FROM refusal) - $2 ORDER BY seq LIMIT $3)`,
		now.Add(-age).Unix(), int64(maxRefusalRows)*10, deleteStep); err != nil {
		return fmt.Errorf("delete old counts of the shared ledger: %w", err)
	}
	if still.Int64 < deleteStep {
		p.trimmed = now
	} else {
		p.wake()
	}
	return tx.Commit()
}
