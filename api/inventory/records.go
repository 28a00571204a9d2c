package inventory

import (
	"context"
	"time"

	"github.com/signet-ca/signet/api"
)

// Records are the certificates and refusals that were recorded: the ledger. Safe for concurrent use.
//
// What it returns belongs to the caller. Of a certificate, what is relative to now (RemainingSeconds, RemainingRatio,
// State, Standing) is not read. A continue is the records' own text; one that isn't valid makes an error that matches
// [api.ErrBadContinue].
type Records interface {
	// Latest is a page of the latest record of each holder of an identity, in any order. A record that comes with
	// another one of its holder does no harm: the later one is kept.
	Latest(ctx context.Context, q LatestQuery) (RecordPage, error)
	// Certificates is a page of the records that match all that is set, the latest first.
	Certificates(ctx context.Context, q RecordQuery) (RecordPage, error)
	// Certificate is the record with this SHA-256 (lower-case hex), with its PEM. The error matches
	// [api.ErrNotFound] where there is none.
	Certificate(ctx context.Context, sha256 string) (*api.Certificate, error)
	// Refusals is a page of the counts of refusals, the latest first. Their Time is what they are ordered by.
	Refusals(ctx context.Context, q RecordQuery) (IssuancePage, error)
	// Coverage says how complete the records are.
	Coverage(ctx context.Context) (api.Coverage, error)
}

// LatestQuery selects records of Latest.
type LatestQuery struct {
	// EndsAfter leaves out what ended before.
	EndsAfter time.Time
	Limit     int // 1 to 500
	Continue  string
}

// RecordQuery selects records. Zero values select all. The next page is asked for with the same query but for its limit.
type RecordQuery struct {
	// Namespace, Identity, Node, Issuer and Serial (lower-case hex of whole bytes, without leading zero bytes, 00 for zero)
	// are equal to the record's; refusals are asked for by the first two only.
	Namespace, Identity, Node, Issuer, Serial string
	// SAN is one of the names, without its kind.
	SAN string
	// Namespaces are those that may be seen; nil is all of them.
	Namespaces []string
	// Since leaves out what has an earlier IssuedAt or Time.
	Since time.Time
	// EndsFrom and EndsTo bound the end of the validity, both included.
	EndsFrom, EndsTo time.Time
	// Limit is 1 to 500; a page never has more.
	Limit    int
	Continue string
}

// RecordPage is a page of certificates, by IssuedAt. Continue is empty on the last one.
type RecordPage struct {
	Items    []api.Certificate
	Continue string
}

// IssuancePage is a page of lines of the audit, by Time. Continue is empty on the last one.
type IssuancePage struct {
	Items    []api.Issuance
	Continue string
}
