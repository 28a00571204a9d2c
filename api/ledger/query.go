package ledger

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// MaxLimit and DefaultLimit are how many records a page holds at most, and where nothing is said.
	MaxLimit     = 500
	DefaultLimit = 100
	// maxNamespaces bounds Filter.Namespaces, and maxBranches is for how many of them each is asked for its
	// own latest records: whoever may see few would wait for a search through all the others.
	maxNamespaces = 10_000
	maxBranches   = 50
	// tailStretch is how much of the sequence one call of Tail looks through at most.
	tailStretch = 20_000
)

// State is what a certificate is at a given time.
type State string

const (
	// Live: valid, and the last one for its identity and holder.
	Live State = "live"
	// Superseded: valid, but its holder got another one for the same identity.
	Superseded State = "superseded"
	// Expired: past its last second.
	Expired State = "expired"
)

// Filter chooses issuances; all that is set must hold. The zero value chooses all.
type Filter struct {
	// Namespace, Identity (a SPIFFE ID), Node, Issuer (kind.group/name), Replica and PodUID are equal to the
	// record's.
	Namespace, Identity, Node, Issuer, Replica, PodUID string
	// Namespaces are those that may be seen; nil is all of them, an empty list none. At most 10,000.
	Namespaces []string
	// SAN is one of the certificate's names, the identity among them.
	SAN string
	// Serial is the serial number in hex; colons and leading zeros don't matter.
	Serial string
	// Since and Until bound when the record was made, both included.
	Since, Until time.Time
	// NotAfterFrom and NotAfterTo bound the end of the validity, both included.
	NotAfterFrom, NotAfterTo time.Time
	// ExpiresWithin chooses certificates that are still valid, but not for longer than this.
	ExpiresWithin time.Duration
	// State is what the certificate is at At.
	State State
	// Latest chooses the last certificate of each identity and holder, valid or not.
	Latest bool
	// At is the time that State, Latest and ExpiresWithin are judged at, with only the records made until
	// then. Zero is the present, with all records.
	At time.Time
}

// Page is which part of an answer is wanted.
type Page struct {
	// Limit is how many records, at most MaxLimit. 0 is DefaultLimit.
	Limit int
	// Continue is what the page before ended with, "" for the first. Its filter must be the same.
	Continue string
}

func (p Page) limit() (int, error) {
	switch {
	case p.Limit == 0:
		return DefaultLimit, nil
	case p.Limit < 0 || p.Limit > MaxLimit:
		return 0, fmt.Errorf("%w: limit %d is out of range; it must be between 1 and %d", ErrFilter, p.Limit, MaxLimit)
	}
	return p.Limit, nil
}

// Issuances is one page of records, the latest first, without DER.
type Issuances struct {
	Records []Issuance
	// Continue asks for the next page; "" says that this is the last one.
	Continue string
}

// View answers questions about one database. Safe for concurrent use.
type View struct {
	db     *database
	store  *Store
	shared bool
}

// IsShared says that the view is that of all replicas.
func (v *View) IsShared() bool { return v.shared }

// ready makes sure that the database is one that can be asked.
func (v *View) ready() error {
	if v.shared && !v.store.shipper.reached() {
		return fmt.Errorf("the shared ledger can't be reached: %w", v.store.shipper.contact.Load().err)
	}
	return nil
}

// List is one page of the issuances that filter chooses, the latest first. All pages of an answer are of
// the moment of the first: what is recorded later changes nothing in them, and what retention deletes
// meanwhile is left out.
//
// ErrFilter and ErrContinue are final; other errors are those of the database, and of ctx.
func (v *View) List(ctx context.Context, filter Filter, page Page) (Issuances, error) {
	if err := v.ready(); err != nil {
		return Issuances{}, err
	}
	limit, err := page.limit()
	if err != nil {
		return Issuances{}, err
	}
	asked := filter
	q, err := v.begin(ctx)
	if err != nil {
		return Issuances{}, err
	}
	from := token{use: 'p', at: time.Now().Unix(), snapshot: q.last}
	if page.Continue != "" {
		if from, err = decodeToken(page.Continue, 'p', v.db.id, asked); err != nil {
			return Issuances{}, err
		}
		q.add(`(i.recorded_at, i.seq) < (?, ?)`, from.recorded, from.seq)
	}
	if err := q.choose(filter, from.at, from.snapshot); err != nil {
		return Issuances{}, err
	}
	rest, args := q.page(limit + 1)
	rows, err := readRowsWithout(ctx, v.db, "der", rest, args...)
	if err != nil {
		return Issuances{}, err
	}
	more := len(rows) > limit
	if more {
		rows = rows[:limit]
	}
	answer := Issuances{Records: make([]Issuance, 0, len(rows))}
	for _, r := range rows {
		answer.Records = append(answer.Records, r.decode())
	}
	if more {
		last := rows[limit-1]
		from.recorded, from.seq = last.recordedAt, last.seq
		if answer.Continue, err = from.encode(v.db.id, asked); err != nil {
			return Issuances{}, err
		}
	}
	return answer, nil
}

// Certificate is the record of one certificate, DER included, by the SHA-256 of the certificate in hex.
// ErrNotFound where none is held, ErrFilter where that is no SHA-256.
func (v *View) Certificate(ctx context.Context, sha256 string) (Issuance, error) {
	if err := v.ready(); err != nil {
		return Issuance{}, err
	}
	sum, err := hex.DecodeString(strings.ReplaceAll(sha256, ":", ""))
	if err != nil || len(sum) != 32 {
		return Issuance{}, fmt.Errorf("%w: a SHA-256 has 64 hex digits", ErrFilter)
	}
	rows, err := readRows(ctx, v.db, `WHERE i.certificate_sha256 = ? LIMIT 1`, sum)
	if err != nil {
		return Issuance{}, err
	}
	if len(rows) == 0 {
		return Issuance{}, fmt.Errorf("%w: certificate %x", ErrNotFound, sum)
	}
	return rows[0].decode(), nil
}

// Tail is what follows a cursor, in the order in which the database learnt it.
type Tail struct {
	Records []Issuance
	// Cursor goes on behind the last record, or behind where nothing was found.
	Cursor string
	// More says that there may be more to read at once; else wait for [Store.Changed], or a second where the
	// view is shared.
	More bool
	// Missed says that retention deleted records behind the cursor before they were told.
	Missed bool
}

// Tail returns the records behind cursor that filter chooses, without DER, the oldest first, at most
// limit (0 is DefaultLimit). The cursor "" begins with what is recorded from now on, OldestCursor with
// the oldest record. None is missed, however many replicas write: records become visible in the order of
// their sequence. State, Latest, ExpiresWithin and At aren't for a tail.
//
// ErrFilter and ErrContinue as List.
func (v *View) Tail(ctx context.Context, filter Filter, cursor string, limit int) (Tail, error) {
	if err := v.ready(); err != nil {
		return Tail{}, err
	}
	limit, err := Page{Limit: limit}.limit()
	if err != nil {
		return Tail{}, err
	}
	if filter.State != "" || filter.Latest || filter.ExpiresWithin != 0 || !filter.At.IsZero() {
		return Tail{}, fmt.Errorf("%w: a tail can't be chosen by state or time of judgement, which change while it is read", ErrFilter)
	}
	q, err := v.begin(ctx)
	if err != nil {
		return Tail{}, err
	}
	from := token{use: 't', seq: q.last}
	answer := Tail{}
	switch cursor {
	case "":
	case OldestCursor:
		from.seq = 0
	default:
		if from, err = decodeToken(cursor, 't', v.db.id, filter); err != nil {
			return Tail{}, err
		}
		answer.Missed = from.seq < q.deleted
	}
	// What lies before the oldest needs no search.
	through := min(q.last, max(from.seq, q.first-1)+tailStretch)
	if through > from.seq {
		q.tail = true
		q.add(`i.seq > ? AND i.seq <= ?`, from.seq, through)
		if err := q.choose(filter, 0, 0); err != nil {
			return Tail{}, err
		}
		rows, err := readRowsWithout(ctx, v.db, "der", q.where()+` ORDER BY i.seq LIMIT ?`, append(q.args, limit)...)
		if err != nil {
			return Tail{}, err
		}
		for _, r := range rows {
			answer.Records = append(answer.Records, r.decode())
		}
		if len(rows) == limit {
			through = rows[limit-1].seq
		}
		from.seq = through
		answer.More = through < q.last
	}
	answer.Cursor, err = from.encode(v.db.id, filter)
	return answer, err
}

// OldestCursor makes Tail begin with the oldest record.
const OldestCursor = "oldest"

// query gathers the conditions of one question.
type query struct {
	db         *database
	first      int64 // the lowest and the highest sequence, 0 where nothing is held
	last       int64
	deleted    int64 // deletedThrough
	longest    int64 // longestLife
	tail       bool  // the rows are read in the order of the sequence
	conditions []string
	args       []any
	branches   []string // the rows are those of these namespaces, each read from its index
}

// begin reads what a question needs to know of the database.
func (v *View) begin(ctx context.Context) (*query, error) {
	q := &query{db: v.db}
	var first, last sql.NullInt64
	err := v.db.QueryRowContext(ctx, `SELECT (SELECT min(seq) FROM issuance), (SELECT max(seq) FROM issuance),
		(SELECT amount FROM meta WHERE name = 'deleted_through'), (SELECT amount FROM meta WHERE name = 'longest_life')`).Scan(&first, &last, &q.deleted, &q.longest)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	q.first, q.last = first.Int64, last.Int64
	return q, nil
}

func (q *query) add(condition string, args ...any) {
	q.conditions = append(q.conditions, condition)
	q.args = append(q.args, args...)
}

func (q *query) where() string {
	if len(q.conditions) == 0 {
		return ""
	}
	return `WHERE ` + strings.Join(q.conditions, ` AND `)
}

// page is the rest of a statement that reads the latest rows, at most limit, and its values.
func (q *query) page(limit int) (rest string, args []any) {
	const order = ` ORDER BY i.recorded_at DESC, i.seq DESC LIMIT ?`
	if q.branches == nil {
		return q.where() + order, append(q.args, limit)
	}
	q.conditions = append([]string{`i.namespace = ?`}, q.conditions...)
	latest := make([]string, len(q.branches))
	for n, namespace := range q.branches {
		latest[n] = `SELECT seq FROM (SELECT i.seq FROM issuance i ` + q.where() + order + `) AS latest`
		args = append(append(append(args, namespace), q.args...), limit)
	}
	return `WHERE i.seq IN (` + strings.Join(latest, ` UNION ALL `) + `)` + order, append(args, limit)
}

// aside names a column whose index must not be taken: SQLite has no statistics to choose by, and would
// sort what another index has in order.
func (q *query) aside(column string) string {
	if q.db.kind == sqlite {
		return "+" + column
	}
	return column
}

// choose adds the conditions of f, judged at the Unix time at, of records up to the sequence snapshot.
func (q *query) choose(f Filter, at, snapshot int64) error {
	if err := f.check(); err != nil {
		return err
	}
	if !f.At.IsZero() {
		at = f.At.Unix()
	}
	if err := q.chooseTexts(f); err != nil {
		return err
	}
	if !q.tail {
		q.add(q.aside(`i.seq`)+` <= ?`, snapshot)
	}
	q.chooseTimes(f, at)
	q.chooseNewest(f, at, snapshot)
	return nil
}

// chooseTexts adds what the texts of a record must be. The first text that has an index leads; the others are looked at in
// the rows it finds.
func (q *query) chooseTexts(f Filter) error {
	led := q.tail
	lead := func(column string) string {
		if led {
			return q.aside(column)
		}
		led = true
		return column
	}
	if f.Serial != "" {
		serial, err := parseSerial(f.Serial)
		if err != nil {
			return err
		}
		q.add(lead(`i.serial`)+` = ?`, serial)
	}
	if f.SAN != "" { // that of the identity is in the record itself, others are in their table
		q.add(lead(`i.seq`)+` IN (SELECT s.seq FROM issuance s WHERE s.identity = ? UNION ALL SELECT seq FROM san WHERE san = ?)`, f.SAN, f.SAN)
	}
	for _, equal := range []struct {
		column, value string
		indexed       bool
	}{
		{`i.identity`, f.Identity, true}, {`i.node`, f.Node, true}, {`i.namespace`, f.Namespace, true},
		{`i.issuer`, f.Issuer, false}, {`i.replica`, f.Replica, false}, {`i.pod_uid`, f.PodUID, false},
	} {
		switch {
		case equal.value == "":
		case equal.indexed:
			q.add(lead(equal.column)+` = ?`, equal.value)
		default:
			q.add(equal.column+` = ?`, equal.value)
		}
	}
	switch {
	case f.Namespaces == nil:
	case len(f.Namespaces) == 0:
		q.add(`1 = 0`)
	case !led && len(f.Namespaces) <= maxBranches:
		q.branches = slices.Compact(slices.Sorted(slices.Values(f.Namespaces)))
	default:
		// Among so many, or among the few rows that another index finds, the next row is never far.
		q.add(q.aside(`i.namespace`)+` IN (`+marks(len(f.Namespaces))+`)`, anys(f.Namespaces)...)
	}
	return nil
}

// chooseTimes adds when the certificate may end and when it may have been recorded, as Unix seconds. 0 is no bound.
func (q *query) chooseTimes(f Filter, at int64) {
	// The last second of the validity is part of it (RFC 5280 §4.1.2.5).
	least, most := int64(0), int64(0)
	if !f.NotAfterFrom.IsZero() {
		least = ceilUnix(f.NotAfterFrom)
	}
	if !f.NotAfterTo.IsZero() {
		most = f.NotAfterTo.Unix()
	}
	if f.ExpiresWithin != 0 {
		least, most = max(least, at), earlier(most, at+int64(f.ExpiresWithin/time.Second))
	}
	switch f.State {
	case Live, Superseded:
		least = max(least, at)
	case Expired:
		most = earlier(most, at-1)
	}

	since, until := int64(0), int64(0)
	if !f.Since.IsZero() {
		since = ceilUnix(f.Since)
	}
	if !f.Until.IsZero() {
		until = f.Until.Unix()
	}
	if !f.At.IsZero() && (f.State != "" || f.Latest || f.ExpiresWithin != 0) {
		until = earlier(until, at)
	}

	if least != 0 {
		q.add(`i.not_after >= ?`, least)
		since = max(since, least-q.longest) // nothing older can be valid for so long
	}
	if most != 0 {
		q.add(`i.not_after <= ?`, most)
	}
	recorded := `i.recorded_at`
	if q.tail {
		recorded = q.aside(recorded)
	}
	if since > 0 {
		q.add(recorded+` >= ?`, since)
	}
	if until != 0 {
		q.add(recorded+` <= ?`, until)
	}
}

// earlier is the lower of two bounds, of which the first may be 0 for none.
func earlier(bound, other int64) int64 {
	if bound == 0 || other < bound {
		return other
	}
	return bound
}

// chooseNewest adds whether there may be a newer record of the same holding, as far as it was known at that time.
func (q *query) chooseNewest(f Filter, at, snapshot int64) {
	if f.State != Live && f.State != Superseded && !f.Latest {
		return
	}
	newer := `EXISTS (SELECT 1 FROM issuance n WHERE n.holding = i.holding AND (n.recorded_at, n.seq) > (i.recorded_at, i.seq) AND n.seq <= ?`
	args := []any{snapshot}
	if !f.At.IsZero() {
		newer += ` AND n.recorded_at <= ?`
		args = append(args, at)
	}
	newer += `)`
	if f.State == Superseded {
		q.add(newer, args...)
	}
	if f.State == Live || f.Latest {
		q.add(`NOT `+newer, args...)
	}
}

// marks are n placeholders.
func marks(n int) string { return strings.TrimSuffix(strings.Repeat(`?, `, n), `, `) }

// anys are texts as values of a statement.
func anys(list []string) []any {
	values := make([]any, len(list))
	for n, s := range list {
		values[n] = s
	}
	return values
}

// check says what can't be asked.
func (f *Filter) check() error {
	for name, value := range map[string]string{"namespace": f.Namespace, "identity": f.Identity, "node": f.Node, "issuer": f.Issuer, "replica": f.Replica, "pod": f.PodUID, "SAN": f.SAN} {
		if !plain(value) {
			return fmt.Errorf("%w: the %s is not a text of at most %d bytes of UTF-8", ErrFilter, name, maxText)
		}
	}
	for _, namespace := range f.Namespaces {
		if !plain(namespace) {
			return fmt.Errorf("%w: a namespace is not a text of at most %d bytes of UTF-8", ErrFilter, maxText)
		}
	}
	switch {
	case len(f.Namespaces) > maxNamespaces:
		return fmt.Errorf("%w: %d namespaces; at most %d are allowed", ErrFilter, len(f.Namespaces), maxNamespaces)
	case f.State != "" && f.State != Live && f.State != Superseded && f.State != Expired:
		return fmt.Errorf("%w: state %q; it must be live, superseded or expired", ErrFilter, f.State)
	case f.ExpiresWithin < 0:
		return fmt.Errorf("%w: expiresWithin %s is negative", ErrFilter, f.ExpiresWithin)
	}
	return nil
}

// parseSerial reads a serial number as people write it.
func parseSerial(s string) ([]byte, error) {
	digits := strings.TrimLeft(strings.ReplaceAll(s, ":", ""), "0")
	if len(digits)%2 == 1 || digits == "" {
		digits = "0" + digits
	}
	if digits == "0" {
		digits = "00"
	}
	serial, err := hex.DecodeString(digits)
	if err != nil || len(serial) > 64 {
		return nil, fmt.Errorf("%w: the serial number is not hex of at most 64 bytes", ErrFilter)
	}
	return serial, nil
}

// ceilUnix is t in Unix seconds, rounded up.
func ceilUnix(t time.Time) int64 {
	seconds := t.Unix()
	if t.Nanosecond() > 0 {
		seconds++
	}
	return seconds
}

// readRows reads whole rows of issuance i.
func readRows(ctx context.Context, d *database, rest string, args ...any) ([]*row, error) {
	return readRowsWithout(ctx, d, "", rest, args...)
}

// readRowsWithout reads rows of issuance i without the last column, where that is named.
func readRowsWithout(ctx context.Context, d *database, without, rest string, args ...any) ([]*row, error) {
	read := columns
	if without != "" {
		read = columns[:len(columns)-1]
	}
	var all []*row
	err := each(ctx, d, func(rows *sql.Rows) error {
		r := new(row)
		all = append(all, r)
		if err := rows.Scan(r.targets()[:1+len(read)]...); err != nil {
			return err
		}
		return r.readSANs()
	}, `SELECT i.seq, `+columnNames("i.", read)+` FROM issuance i `+rest, args...)
	return all, err
}

// RefusalFilter chooses counts of refusals; all that is set must hold.
type RefusalFilter struct {
	// Since and Until bound the window, both included.
	Since, Until time.Time
	// Namespace, Identity, Reason and Replica are equal to the count's.
	Namespace, Identity, Reason, Replica string
	// Namespaces are those that may be seen; nil is all of them. Counts without a namespace are seen only by
	// who may see all. At most 10,000.
	Namespaces []string
}

// Refusals is one page of counts, the latest window first.
type Refusals struct {
	Counts []Refusal
	// Continue asks for the next page; "" says that this is the last one.
	Continue string
}

// Refusals is one page of the counts that filter chooses. Counts of the present minute still grow.
// Errors as List.
func (v *View) Refusals(ctx context.Context, filter RefusalFilter, page Page) (Refusals, error) {
	if err := v.ready(); err != nil {
		return Refusals{}, err
	}
	limit, err := page.limit()
	if err != nil {
		return Refusals{}, err
	}
	as := Filter{Namespace: filter.Namespace, Identity: filter.Identity, Replica: filter.Replica, Namespaces: filter.Namespaces, Issuer: filter.Reason}
	if err := as.check(); err != nil {
		return Refusals{}, err
	}
	var last sql.NullInt64
	if err := v.db.QueryRowContext(ctx, `SELECT max(seq) FROM refusal`).Scan(&last); err != nil {
		return Refusals{}, fmt.Errorf("read the ledger: %w", err)
	}
	q := &query{db: v.db}
	from := token{use: 'r', snapshot: last.Int64}
	if page.Continue != "" {
		if from, err = decodeToken(page.Continue, 'r', v.db.id, filter); err != nil {
			return Refusals{}, err
		}
		q.add(`(window_at, seq) < (?, ?)`, from.recorded, from.seq)
	}
	q.add(q.aside(`seq`)+` <= ?`, from.snapshot)
	for column, value := range map[string]string{`namespace`: filter.Namespace, `identity`: filter.Identity, `reason`: filter.Reason, `replica`: filter.Replica} {
		if value != "" {
			q.add(column+` = ?`, value)
		}
	}
	if !filter.Since.IsZero() {
		q.add(`window_at >= ?`, ceilUnix(filter.Since))
	}
	if !filter.Until.IsZero() {
		q.add(`window_at <= ?`, filter.Until.Unix())
	}
	if filter.Namespaces != nil {
		q.add(`namespace <> ''`)
		if len(filter.Namespaces) == 0 {
			q.add(`1 = 0`)
		} else {
			q.add(`namespace IN (`+marks(len(filter.Namespaces))+`)`, anys(filter.Namespaces)...)
		}
	}
	counts, err := scanRefusals(ctx, v.db, q.where()+` ORDER BY window_at DESC, seq DESC LIMIT ?`, append(q.args, limit+1)...)
	if err != nil {
		return Refusals{}, err
	}
	answer := Refusals{Counts: counts}
	if len(counts) > limit {
		answer.Counts = counts[:limit]
		from.recorded, from.seq = counts[limit-1].Window.Unix(), counts[limit-1].Sequence
		if answer.Continue, err = from.encode(v.db.id, filter); err != nil {
			return Refusals{}, err
		}
	}
	return answer, nil
}

// scanRefusals reads rows of refusal.
func scanRefusals(ctx context.Context, d *database, rest string, args ...any) ([]Refusal, error) {
	var all []Refusal
	err := each(ctx, d, func(rows *sql.Rows) error {
		var r Refusal
		var window, others, first, last int64
		err := rows.Scan(&r.Sequence, &window, &r.Reason, &r.Code, &r.Identity, &r.Namespace, &r.ServiceAccount, &r.Peer, &r.Replica, &others, &r.Count, &first, &last)
		r.Window, r.Others, r.First, r.Last = unix(window), others != 0, unix(first), unix(last)
		all = append(all, r)
		return err
	}, `SELECT seq, window_at, reason, code, identity, namespace, service_account, peer, replica, others, count, first_at, last_at FROM refusal `+rest, args...)
	return all, err
}
