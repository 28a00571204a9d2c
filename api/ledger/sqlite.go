package ledger

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"syscall"

	sqlitedriver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// readers is how many connections read the store at a time.
const readers = 4

// openSQLite opens the store at path, for its one writer or for readers. A commit of the writer has
// been fsynced (https://www.sqlite.org/pragma.html#pragma_synchronous: WAL with FULL).
func openSQLite(path string, write bool) (*database, error) {
	pragmas := []string{"busy_timeout(5000)", "temp_store(MEMORY)"}
	if write {
		// The first has an effect only on a file that is still empty, and before the second.
		pragmas = append(pragmas, "auto_vacuum(INCREMENTAL)", "journal_mode(WAL)", "synchronous(FULL)",
			"cache_size(-32768)", "wal_autocheckpoint(16384)", "journal_size_limit(67108864)")
	} else {
		pragmas = append(pragmas, "query_only(1)", "cache_size(-8192)")
	}
	query := url.Values{"_pragma": pragmas}
	if write {
		query.Set("_txlock", "immediate")
	}
	location := url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}
	db, err := sql.Open("sqlite", location.String())
	if err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", path, err)
	}
	db.SetMaxOpenConns(readers)
	db.SetMaxIdleConns(readers)
	if write {
		db.SetMaxOpenConns(1)
	}
	return &database{DB: db, kind: sqlite}, nil
}

// isFull says whether err is that of a disk without room.
func isFull(err error) bool {
	if e, ok := errors.AsType[*sqlitedriver.Error](err); ok {
		return e.Code()&0xff == sqlite3.SQLITE_FULL
	}
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// isOfRow says whether err is that of a single statement, so that others of its transaction may go on.
func isOfRow(err error) bool {
	e, ok := errors.AsType[*sqlitedriver.Error](err)
	if !ok {
		return false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE:
		return true
	}
	return false
}
