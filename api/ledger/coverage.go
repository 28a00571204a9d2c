package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// GapKind is why records may be missing.
type GapKind string

const (
	// GapCrash is from the last sign of life of a process that didn't end in good order to the start of
	// the next: certificates may have been signed that nobody received. Records are unknown (0).
	GapCrash GapKind = "crash"
	// GapUnrecorded is when certificates went out without a record, because failOpen is set.
	GapUnrecorded GapKind = "unrecorded"
	// GapRetention is of certificates that were still valid when retention deleted their records.
	GapRetention GapKind = "retention"
	// GapUnshipped is of records that the shared view never got: retention had to delete them before, or it
	// refused them.
	GapUnshipped GapKind = "unshipped"
	// GapAway is from a process's end in good order to the start of the next: what other replicas issued
	// meanwhile is known only as far as it was still in the cluster. It is of a replica's own store; the shared
	// view has the others' records.
	GapAway GapKind = "away"
)

// Gap is a stretch of time in which records are, or may be, missing.
type Gap struct {
	// Replica is whose records.
	Replica string
	Kind    GapKind
	// From and To are its ends.
	From, To time.Time
	// Records is how many are missing, 0 where that isn't known.
	Records int64
}

// Origin is what one replica recorded.
type Origin struct {
	Replica string
	Source  Source
	// First and Last are when its first and its last record were made, deleted ones included.
	First, Last time.Time
	// Records is how many it made, deleted ones included.
	Records int64
}

// SourceState is whether a source of records works.
type SourceState struct {
	// Name is the source's, such as own or observed.
	Name string
	// Up says that what happens there is being recorded now.
	Up bool
	// Since is when that last changed.
	Since time.Time
	// Detail is for people.
	Detail string
}

// Shipping is how far the shared view is behind the replica that answers.
type Shipping struct {
	// Reached says that the shared view answered when it was last asked.
	Reached bool
	// Records is how many records it lacks, and Oldest when the oldest of them was made; zero where it lacks
	// none.
	Records int64
	Oldest  time.Time
}

// Peer is a store that ships to the shared view.
type Peer struct {
	Replica string
	// Seen is when it last said that it is alive.
	Seen time.Time
}

// Coverage says how complete an answer is.
type Coverage struct {
	// Shared says that the answer is of the shared view, else of one replica's store.
	Shared bool
	// Since is when the oldest record was made that is held; everything later is told but for the gaps.
	// Where there is none it is when the database was made.
	Since time.Time
	// Origins are the replicas whose records are held, by name and source.
	Origins []Origin
	// Sources are those of the replica that answers, by name.
	Sources []SourceState
	// Gaps are those that are known, the latest first, at most 100.
	Gaps []Gap
	// Shipping is nil where no shared view is configured.
	Shipping *Shipping
	// Peers are the stores that ship to the shared view; nil for a replica's own store.
	Peers []Peer
}

const maxGaps = 100

// SetSource says whether a source of records works, so that Coverage can tell. Safe for concurrent use.
func (s *Store) SetSource(name string, up bool, detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, known := s.sources[name]
	state := SourceState{Name: name, Up: up, Since: before.Since, Detail: detail}
	if !known || before.Up != up {
		state.Since = time.Now().UTC().Truncate(time.Second)
	}
	s.sources[name] = state
}

// Coverage says how complete the view's answers are now.
func (v *View) Coverage(ctx context.Context) (Coverage, error) {
	c := Coverage{Shared: v.shared, Sources: v.store.sourceStates()}
	var since sql.NullInt64
	var founded int64
	err := v.db.QueryRowContext(ctx, `SELECT (SELECT min(recorded_at) FROM issuance), (SELECT amount FROM meta WHERE name = 'store_id')`).Scan(&since, &founded)
	if err != nil {
		return Coverage{}, fmt.Errorf("read the ledger's coverage: %w", err)
	}
	c.Since = unix(founded)
	if since.Valid {
		c.Since = unix(since.Int64)
	}
	err = each(ctx, v.db, func(rows *sql.Rows) error {
		var o Origin
		var source string
		var first, last int64
		err := rows.Scan(&o.Replica, &source, &first, &last, &o.Records)
		o.Source, o.First, o.Last = Source(source), unix(first), unix(last)
		c.Origins = append(c.Origins, o)
		return err
	}, `SELECT replica, source, first_at, last_at, records FROM origin ORDER BY replica, source LIMIT 1000`)
	if err != nil {
		return Coverage{}, err
	}
	if c.Gaps, err = gaps(ctx, v.db, maxGaps); err != nil {
		return Coverage{}, err
	}
	if !v.shared {
		away, err := v.away(ctx)
		if err != nil {
			return Coverage{}, err
		}
		c.Gaps = append(c.Gaps, away...)
		slices.SortStableFunc(c.Gaps, func(a, b Gap) int { return b.To.Compare(a.To) })
		c.Gaps = c.Gaps[:min(len(c.Gaps), maxGaps)]
	}
	if lost := v.store.unsaid.Load(); lost > 0 && !v.shared { // those that no row tells of yet
		c.Gaps = append([]Gap{{
			Replica: v.store.cfg.Replica, Kind: GapUnrecorded, From: unix(v.store.openSince.Load()), To: time.Now().UTC().Truncate(time.Second), Records: lost,
		}}, c.Gaps...)
	}
	if v.store.shipper != nil {
		if c.Shipping, err = v.store.shipper.state(ctx); err != nil {
			return Coverage{}, err
		}
	}
	if v.shared {
		err = each(ctx, v.db, func(rows *sql.Rows) error {
			var p Peer
			var seen int64
			err := rows.Scan(&p.Replica, &seen)
			p.Seen = unix(seen)
			c.Peers = append(c.Peers, p)
			return err
		}, `SELECT replica, seen_at FROM shipper ORDER BY seen_at DESC, replica LIMIT 1000`)
	}
	return c, err
}

// sourceStates are the sources by name, with our own among them.
func (s *Store) sourceStates() []SourceState {
	own := SourceState{Name: string(Own), Up: true, Since: s.began.UTC().Truncate(time.Second)}
	if since, err := s.writer.failure(); err != nil {
		own = SourceState{Name: string(Own), Since: since.UTC().Truncate(time.Second), Detail: err.Error()}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	states := []SourceState{own}
	for _, name := range slices.Sorted(maps.Keys(s.sources)) {
		states = append(states, s.sources[name])
	}
	return states
}

// away are the stretches of time in which no process held the store, as far back as its oldest record.
func (v *View) away(ctx context.Context) ([]Gap, error) {
	var all []Gap
	err := each(ctx, v.db, func(rows *sql.Rows) error {
		g := Gap{Replica: v.store.cfg.Replica, Kind: GapAway}
		var from, to int64
		err := rows.Scan(&from, &to)
		g.From, g.To = unix(from), unix(to)
		all = append(all, g)
		return err
	}, `SELECT * FROM (SELECT lag(ended_at) OVER (ORDER BY seq) AS from_at, started_at FROM run) AS runs
		WHERE from_at > 0 AND started_at > from_at ORDER BY started_at DESC LIMIT ?`, maxGaps)
	return all, err
}

// addGap writes a gap, or lengthens the one of the same kind that begins at the same time or ended
// less than a minute before, so that many small ones don't pile up.
func addGap(ctx context.Context, d *database, on execer, replica string, g Gap) error {
	from, to := g.From.Unix(), g.To.Unix()
	var before int64
	err := on.QueryRowContext(ctx, d.bind(`SELECT from_at FROM gap WHERE replica = ? AND kind = ? AND from_at <= ? AND to_at >= ? ORDER BY from_at LIMIT 1`),
		replica, string(g.Kind), to, from-60).Scan(&before)
	if err == nil {
		_, err = on.ExecContext(ctx, d.bind(`UPDATE gap SET to_at = CASE WHEN to_at < ? THEN ? ELSE to_at END, records = records + ? WHERE replica = ? AND kind = ? AND from_at = ?`),
			to, to, g.Records, replica, string(g.Kind), before)
	} else if errors.Is(err, sql.ErrNoRows) {
		_, err = on.ExecContext(ctx, d.bind(`INSERT INTO gap (replica, kind, from_at, to_at, records) VALUES (?, ?, ?, ?, ?)`), replica, string(g.Kind), from, to, g.Records)
	}
	if err != nil {
		return fmt.Errorf("write a gap: %w", err)
	}
	return nil
}

// gaps are the latest ones.
func gaps(ctx context.Context, d *database, limit int) ([]Gap, error) {
	var all []Gap
	err := each(ctx, d, func(rows *sql.Rows) error {
		var g Gap
		var kind string
		var from, to int64
		err := rows.Scan(&g.Replica, &kind, &from, &to, &g.Records)
		g.Kind, g.From, g.To = GapKind(kind), unix(from), unix(to)
		all = append(all, g)
		return err
	}, `SELECT replica, kind, from_at, to_at, records FROM gap ORDER BY to_at DESC, from_at DESC, replica, kind LIMIT ?`, limit)
	return all, err
}

// each calls f with every row that query has.
func each(ctx context.Context, d *database, f func(*sql.Rows) error, query string, args ...any) error {
	rows, err := d.QueryContext(ctx, d.bind(query), args...)
	if err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return fmt.Errorf("read the ledger: %w", err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	return rows.Close()
}
