package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

const (
	// deleteStep is how many rows one transaction deletes at most, and deletePause how long records have
	// the writer to themselves after it.
	deleteStep  = 200
	deletePause = 20 * time.Millisecond
	// maxRefusalRows is how many counts of refusals are kept at most, about 30 MB.
	maxRefusalRows = 100_000
	// vacuumOver is how many unused pages (4 KiB) the file may have before some are given back; they are
	// used again for new records otherwise. vacuumStep is how many at a time.
	vacuumOver = 16_384
	vacuumStep = 256
)

// retain deletes what is over the retention until ctx ends.
func (s *Store) retain(ctx context.Context) {
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		if err := s.Trim(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.log.Warn("delete old records", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Trim deletes what is over the retention at now, in small steps between which records are written.
// [Store.Start] calls it every minute.
//
// A record that the shared view lacks stays: until there are twice as many as the retention allows, or
// it is twice as old, or the disk is low. A gap tells of those that had to go all the same, and of
// certificates that were still valid.
func (s *Store) Trim(ctx context.Context, now time.Time) error {
	for {
		n, err := s.trimStep(ctx, now)
		if err != nil {
			return err
		}
		s.metrics.deleted.WithLabelValues("issuance").Add(float64(n))
		if n == 0 {
			break
		}
		if err := pause(ctx, deletePause); err != nil {
			return err
		}
	}
	for {
		n, err := s.trimRefusals(ctx, now, maxRefusalRows)
		if err != nil {
			return err
		}
		s.metrics.deleted.WithLabelValues("refusal").Add(float64(n))
		if n == 0 {
			break
		}
		if err := pause(ctx, deletePause); err != nil {
			return err
		}
	}
	return s.vacuum(ctx, vacuumOver)
}

// trimStep deletes the oldest issuances that are due, a few of them, and returns how many.
func (s *Store) trimStep(ctx context.Context, now time.Time) (int64, error) {
	age, rows := s.cfg.Retention.Age.Or(0), int64(s.cfg.Retention.Rows)
	var n int64
	err := s.writer.do(ctx, func(ctx context.Context, on execer) error {
		var first, last sql.NullInt64
		if err := on.QueryRowContext(ctx, `SELECT (SELECT min(seq) FROM issuance), (SELECT max(seq) FROM issuance)`).Scan(&first, &last); err != nil {
			return fmt.Errorf("read the store's ends: %w", err)
		}
		if !first.Valid {
			return nil
		}
		shipped := last.Int64
		if s.shipper != nil {
			var err error
			if shipped, err = s.local.amount(ctx, on, shippedThrough); err != nil {
				return err
			}
		}
		// Rows leave in the order of their sequence, so that what was deleted is one number. Those that were
		// observed late are a little older than their place.
		var due int64
		for _, rule := range []struct {
			rows    int64
			age     time.Duration
			through int64
		}{
			{rows, age, shipped},
			{2 * rows, 2 * age, last.Int64},
		} {
			if s.disk.low() {
				rule.through = last.Int64
			}
			end := max(first.Int64-1, last.Int64-rule.rows)
			var old sql.NullInt64
			if err := on.QueryRowContext(ctx, `SELECT max(seq) FROM (SELECT seq, recorded_at FROM issuance ORDER BY seq LIMIT ?) WHERE recorded_at < ?`, deleteStep, now.Add(-rule.age).Unix()).Scan(&old); err != nil {
				return fmt.Errorf("find old records: %w", err)
			}
			due = max(due, min(max(end, old.Int64), rule.through))
		}
		if due < first.Int64 {
			return nil
		}
		// The last of a step.
		if err := on.QueryRowContext(ctx, `SELECT max(seq) FROM (SELECT seq FROM issuance WHERE seq <= ? ORDER BY seq LIMIT ?)`, due, deleteStep).Scan(&due); err != nil {
			return fmt.Errorf("find old records: %w", err)
		}
		var err error
		n, err = s.deleteThrough(ctx, on, due, shipped, now)
		return err
	})
	return n, err
}

// deleteThrough deletes the issuances up to sequence due, and notes the gaps that this makes.
func (s *Store) deleteThrough(ctx context.Context, on execer, due, shipped int64, now time.Time) (int64, error) {
	for _, loss := range []struct {
		kind  GapKind
		where string
		bound int64
	}{
		{GapUnshipped, `seq > ?`, shipped},
		{GapRetention, `not_after >= ?`, now.Unix()},
	} {
		var records int64
		var from, to sql.NullInt64
		if err := on.QueryRowContext(ctx, `SELECT count(*), min(recorded_at), max(recorded_at) FROM issuance WHERE seq <= ? AND `+loss.where, due, loss.bound).Scan(&records, &from, &to); err != nil {
			return 0, fmt.Errorf("count what is lost: %w", err)
		}
		if records == 0 {
			continue
		}
		lost := s.metrics.expelled
		if loss.kind == GapUnshipped {
			lost = s.metrics.unshipped
		}
		lost.Add(float64(records))
		if err := addGap(ctx, s.local, on, s.cfg.Replica, Gap{Kind: loss.kind, From: unix(from.Int64), To: unix(to.Int64), Records: records}); err != nil {
			return 0, err
		}
	}
	for _, statement := range []string{`DELETE FROM san WHERE seq <= ?`, `DELETE FROM again WHERE seq <= ?`} {
		if _, err := on.ExecContext(ctx, statement, due); err != nil {
			return 0, fmt.Errorf("delete old records: %w", err)
		}
	}
	result, err := on.ExecContext(ctx, `DELETE FROM issuance WHERE seq <= ?`, due)
	if err != nil {
		return 0, fmt.Errorf("delete old records: %w", err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return 0, fmt.Errorf("delete old records: %w", err)
	}
	return n, s.local.raise(ctx, on, deletedThrough, due)
}

// trimRefusals deletes the oldest counts of refusals that are due, a few of them; keep is how many may
// stay.
func (s *Store) trimRefusals(ctx context.Context, now time.Time, keep int) (n int64, err error) {
	err = s.writer.do(ctx, func(ctx context.Context, on execer) error {
		result, err := on.ExecContext(ctx, `DELETE FROM refusal WHERE seq IN (SELECT seq FROM refusal
			WHERE seq <= (SELECT max(seq) FROM refusal) - ? OR window_at < ? ORDER BY seq LIMIT ?)`, keep, now.Add(-s.cfg.Retention.Age.Or(0)).Unix(), deleteStep)
		if err != nil {
			return fmt.Errorf("delete old counts of refusals: %w", err)
		}
		n, err = result.RowsAffected()
		return err
	})
	return n, err
}

// vacuum gives unused pages back to the filesystem, a few at a time, where there are more than over.
func (s *Store) vacuum(ctx context.Context, over int) error {
	for {
		var unused int
		if err := s.local.QueryRowContext(ctx, `PRAGMA freelist_count`).Scan(&unused); err != nil {
			return fmt.Errorf("count unused pages: %w", err)
		}
		if unused <= over {
			return nil
		}
		err := s.writer.do(ctx, func(ctx context.Context, on execer) error {
			rows, err := on.QueryContext(ctx, fmt.Sprintf(`PRAGMA incremental_vacuum(%d)`, vacuumStep))
			if err != nil {
				return fmt.Errorf("give unused pages back: %w", err)
			}
			defer rows.Close()
			for rows.Next() { // each step gives one back
			}
			if err := rows.Err(); err != nil {
				return fmt.Errorf("give unused pages back: %w", err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := pause(ctx, deletePause); err != nil {
			return err
		}
	}
}

// pause waits for d, or for the end of ctx, whose error it returns then.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
