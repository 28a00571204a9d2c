package ledger

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// refusalWindow is the stretch of time that one count is of.
	refusalWindow = time.Minute
	// maxRefusalKinds is how many different counts are kept in memory; beyond, and where the disk is low,
	// there is one for each reason and code.
	maxRefusalKinds = 1000
	// detailedEvery and detailedBurst bound how many counts with details reach the disk: 86,400 a day and
	// 1,000 more, about 20 MB.
	detailedEvery = time.Second
	detailedBurst = 1000
	// maxRefusalText bounds each text of a count, which callers may have chosen.
	maxRefusalText = 512
)

// Refusal counts requests that were refused for the same reason to the same caller in one minute.
type Refusal struct {
	// Sequence is the count's place in the database it was read from. Not read by Refused.
	Sequence int64
	// Window is the start of the minute, as the replica saw it.
	Window time.Time
	// Reason is one of a closed set of words, and Code the name of the gRPC code.
	Reason, Code string
	// Identity, Namespace and ServiceAccount are the caller's, "" where it wasn't known.
	Identity, Namespace, ServiceAccount string
	// Peer is the IP address it came from.
	Peer string
	// Others says that this counts callers of all kinds, because there were too many to tell apart.
	Others bool
	// Replica refused; Refused fills it in where it is "".
	Replica string
	// Count is how many there were, and First and Last are the times of two of them. Refused takes 1 and
	// the present where they are zero.
	Count       int64
	First, Last time.Time
}

// Refused counts r. It never blocks on the disk and is never durable at once: counts are written every
// few seconds, bounded in number however many callers there are. Safe for concurrent use.
func (s *Store) Refused(r Refusal) { s.refused.add(r, time.Now()) }

// refusalKey is what is counted together.
type refusalKey struct {
	window                                                        int64
	reason, code, identity, namespace, serviceAccount, peer, from string
	others                                                        bool
}

// digest is the key as the database has it.
func (k *refusalKey) digest() []byte {
	sum := sha256.Sum256([]byte(strconv.FormatInt(k.window, 10) + "\x00" + k.reason + "\x00" + k.code + "\x00" + k.identity + "\x00" + k.namespace +
		"\x00" + k.serviceAccount + "\x00" + k.peer + "\x00" + k.from + "\x00" + strconv.FormatBool(k.others)))
	return sum[:16]
}

// other is the key of all of a reason together.
func (k *refusalKey) other() refusalKey {
	return refusalKey{window: k.window, reason: k.reason, code: k.code, from: k.from, others: true}
}

// tally is a count, of what isn't written yet.
type tally struct{ count, first, last int64 }

// refusals counts in memory. Safe for concurrent use.
type refusals struct {
	replica string
	metrics *metrics

	mu       sync.Mutex // guards the following
	counts   map[refusalKey]tally
	detailed map[refusalKey]bool // those of the present window that have a row already, or may get one
	window   int64               // the present one
	budget   *rate.Limiter
	ended    bool
}

func newRefusals(replica string, m *metrics) *refusals {
	return &refusals{
		replica: replica, metrics: m,
		counts: make(map[refusalKey]tally), detailed: make(map[refusalKey]bool),
		budget: rate.NewLimiter(rate.Every(detailedEvery), detailedBurst),
	}
}

func (f *refusals) add(r Refusal, now time.Time) {
	if r.Last.IsZero() {
		r.Last = now
	}
	if r.First.IsZero() {
		r.First = r.Last
	}
	if r.Replica == "" {
		r.Replica = f.replica
	}
	cut := func(s string) string { return clean(s[:min(len(s), maxRefusalText)]) }
	key := refusalKey{
		window: r.Last.Truncate(refusalWindow).Unix(), reason: cut(r.Reason), code: cut(r.Code), identity: cut(r.Identity),
		namespace: cut(r.Namespace), serviceAccount: cut(r.ServiceAccount), peer: cut(r.Peer), from: cut(r.Replica), others: r.Others,
	}
	t := tally{count: max(1, r.Count), first: r.First.Unix(), last: r.Last.Unix()}
	f.metrics.refusals.Add(float64(t.count))

	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return
	}
	f.put(key, t, now)
}

// put counts t under key, or under the others of its reason. The caller holds mu.
func (f *refusals) put(key refusalKey, t tally, now time.Time) {
	if key.window > f.window {
		f.window = key.window
		clear(f.detailed)
	}
	if !key.others && !f.detailed[key] {
		if len(f.detailed) >= maxRefusalKinds || !f.budget.AllowN(now, 1) {
			f.metrics.folded.Add(float64(t.count))
			key = key.other()
		} else {
			f.detailed[key] = true
		}
	}
	f.merge(key, t)
}

// merge adds t. The caller holds mu.
func (f *refusals) merge(key refusalKey, t tally) {
	if known, ok := f.counts[key]; ok {
		t = tally{known.count + t.count, min(known.first, t.first), max(known.last, t.last)}
	}
	f.counts[key] = t
}

// take empties the counts. Where low says that the disk's room is for issuances only, they stay, as few
// as there are reasons.
func (f *refusals) take(low bool) map[refusalKey]tally {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := f.counts
	f.counts = make(map[refusalKey]tally)
	if !low {
		return counts
	}
	for key, t := range counts {
		if !key.others {
			f.metrics.folded.Add(float64(t.count))
		}
		key.window = 0 // that of the writing will do
		f.merge(key.other(), t)
	}
	return nil
}

// restore takes back what could not be written.
func (f *refusals) restore(counts map[refusalKey]tally) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, t := range counts {
		if len(f.counts) >= 2*maxRefusalKinds {
			key.window = 0
			key = key.other()
		}
		f.merge(key, t)
	}
}

// end drops what comes later.
func (f *refusals) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
}

// flush writes the counts, added to those that are in the store already.
func (w *writer) flush(ctx context.Context, f *refusals, low bool) error {
	counts := f.take(low)
	if len(counts) == 0 {
		return nil
	}
	err := w.do(ctx, func(ctx context.Context, on execer) error {
		// A window that is over for long may be in the shared view already, and doesn't change any more.
		present := time.Now().Truncate(refusalWindow)
		for key, t := range counts {
			if key.window < present.Add(-refusalWindow).Unix() {
				key.window = present.Unix()
			}
			if err := putRefusal(ctx, w.db, on, key, t); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		f.restore(counts)
		return fmt.Errorf("write %d counts of refusals: %w", len(counts), err)
	}
	return nil
}

// putRefusal adds t to the row of key.
func putRefusal(ctx context.Context, d *database, on execer, key refusalKey, t tally) error {
	others := 0
	if key.others {
		others = 1
	}
	_, err := on.ExecContext(ctx, d.bind(`INSERT INTO refusal (key, window_at, reason, code, identity, namespace, service_account, peer, replica, others, count, first_at, last_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (key) DO UPDATE SET count = refusal.count + excluded.count, first_at = min(refusal.first_at, excluded.first_at), last_at = max(refusal.last_at, excluded.last_at)`),
		key.digest(), key.window, key.reason, key.code, key.identity, key.namespace, key.serviceAccount, key.peer, key.from, others, t.count, t.first, t.last)
	if err != nil {
		return fmt.Errorf("write a count of refusals: %w", err)
	}
	return nil
}
