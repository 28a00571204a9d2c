package ledger

import (
	_ "embed"
	"strings"
)

// Schema 1: times are in Unix seconds, lifetimes in seconds, hashes and numbers in their bytes, flags 0
// or 1; a text or bytes that aren't known are empty, never NULL. What the tables hold:
//
//	meta      what the database knows of itself
//	issuance  one row for each certificate; sans is a JSON list, "" for the identity alone
//	san       the names of certificates besides their identity
//	refusal   counts of refusals, by window of a minute
//	origin    which replica wrote how many records, and when
//	gap       when records may be missing
//	run       when a process held the store, to tell a crash; ended_at is 0 until it has left
//	shipper   in the shared view: what each store has shipped
//	again     in a store: rows to ship again, because more has become known of them
//
//go:embed schema/1.sql
var schema1 string

// migrations lead from each version of the schema to the next; that at n leads to version n+1. A
// released one is never changed.
var migrations = []string{schema1}

// dialects write the schema's types.
var dialects = map[dialect]*strings.Replacer{
	sqlite: strings.NewReplacer(
		"{{sequence}}", "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT",
		"{{bytes}}", "BLOB",
		"{{without_rowid}}", " WITHOUT ROWID",
	),
	postgres: strings.NewReplacer(
		"{{sequence}}", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
		"{{bytes}}", "BYTEA",
		"{{without_rowid}}", "",
	),
}

// Keys of PostgreSQL's advisory locks, which are ours alone.
const (
	migrationLock int64 = 0x5349474e45540001
	// sequenceLock is held by whoever adds records, until they are visible, so that records become visible
	// in the order of their sequence: who follows it misses none.
	sequenceLock  int64 = 0x5349474e45540002
	retentionLock int64 = 0x5349474e45540003
)
