package ledger

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// dialect is what SQLite and PostgreSQL don't have in common.
type dialect int

const (
	sqlite dialect = iota
	postgres
)

// database is one of the two behind database/sql. Statements are written for both, with ? for each
// value. Safe for concurrent use.
type database struct {
	*sql.DB
	kind dialect
	// id tells this database from any other; read by identify, before which it is "".
	id string
}

// bind writes the placeholders of query as the database wants them. No query has a ? of its own.
func (d *database) bind(query string) string {
	if d.kind == sqlite {
		return query
	}
	var b strings.Builder
	for n := 1; ; n++ {
		before, after, found := strings.Cut(query, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteString("$" + strconv.Itoa(n))
		query = after
	}
}

// identify reads id.
func (d *database) identify(ctx context.Context) error {
	if err := d.QueryRowContext(ctx, `SELECT label FROM meta WHERE name = 'store_id'`).Scan(&d.id); err != nil {
		return fmt.Errorf("read the database's id: %w", err)
	}
	return nil
}

// Numbers of meta that are counted upwards.
const (
	longestLife    = "longest_life"    // the most seconds from a record to the end of its certificate
	deletedThrough = "deleted_through" // the highest sequence that retention deleted
	shippedThrough = "shipped_through" // the highest sequence up to which all is in the shared view
	refusalsSent   = "refusals_sent"   // the same of refusals
)

// execer is a connection or a transaction.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// raise sets a number of meta to value where it is less.
func (d *database) raise(ctx context.Context, on execer, name string, value int64) error {
	if _, err := on.ExecContext(ctx, d.bind(`UPDATE meta SET amount = ? WHERE name = ? AND amount < ?`), value, name, value); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// amount reads a number of meta.
func (d *database) amount(ctx context.Context, on execer, name string) (int64, error) {
	var value int64
	if err := on.QueryRowContext(ctx, d.bind(`SELECT amount FROM meta WHERE name = ?`), name).Scan(&value); err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	return value, nil
}

// migrate brings the schema up to date. Several processes may do so at a time.
func migrate(ctx context.Context, d *database, now time.Time) (err error) {
	tx, err := d.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreDone(tx.Rollback()))
		}
	}()
	if d.kind == postgres {
		if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, migrationLock); err != nil {
			return fmt.Errorf("lock the schema: %w", err)
		}
	}
	if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY, applied_at BIGINT NOT NULL)`); err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	var version int
	if err := tx.QueryRowContext(ctx, `SELECT coalesce(max(version), 0) FROM schema_version`).Scan(&version); err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if version > len(migrations) {
		return fmt.Errorf("%w: it has schema %d, this one knows %d; run the Signet that wrote it or a newer one, or give this one another directory or database, which begins an empty ledger", ErrNewer, version, len(migrations))
	}
	for ; version < len(migrations); version++ {
		for statement := range strings.SplitSeq(dialects[d.kind].Replace(migrations[version]), ";\n") {
			if strings.TrimSpace(statement) == "" {
				continue
			}
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return fmt.Errorf("bring the schema to version %d: %w", version+1, err)
			}
		}
		if version == 0 {
			if err := found(ctx, d, tx, now); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, d.bind(`INSERT INTO schema_version (version, applied_at) VALUES (?, ?)`), version+1, now.Unix()); err != nil {
			return fmt.Errorf("write the schema's version: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit the schema: %w", err)
	}
	return nil
}

// found writes what a new database knows of itself.
func found(ctx context.Context, d *database, tx *sql.Tx, now time.Time) error {
	add := d.bind(`INSERT INTO meta (name, amount, label) VALUES (?, ?, ?)`)
	for name, amount := range map[string]int64{"store_id": now.Unix(), longestLife: 0, deletedThrough: 0, shippedThrough: 0, refusalsSent: 0} {
		label := ""
		if name == "store_id" {
			label = rand.Text()
		}
		if _, err := tx.ExecContext(ctx, add, name, amount, label); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// ignoreDone drops the error of a rollback after the transaction has ended by itself.
func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// syncDir makes the names of new files durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the ledger's directory: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}
