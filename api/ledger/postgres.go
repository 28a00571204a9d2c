package ledger

import (
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// openPostgres prepares the shared view; it doesn't dial. No error holds any of the DSN.
func openPostgres(dsn string) (*database, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, errors.New("the ledger's DSN is not one of PostgreSQL; it must be such as postgres://user:password@host/database?sslmode=verify-full")
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "signet"
	}
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(readers + 1) // and the shipper's
	db.SetMaxIdleConns(2)
	db.SetConnMaxLifetime(30 * time.Minute)
	return &database{DB: db, kind: postgres}, nil
}

// isOfData says whether PostgreSQL refused what was sent, and would again: classes 22 and 23 of its
// error codes, bad data and violated constraints.
func isOfData(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (strings.HasPrefix(e.Code, "22") || strings.HasPrefix(e.Code, "23"))
}
