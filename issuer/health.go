package issuer

import (
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"time"
)

// When the circuit of an issuer opens and closes.
const (
	// openAfter failures in a row, of openIdentities different identities at least, open the circuit: one
	// pod's bad requests can't.
	openAfter      = 5
	openIdentities = 3
	// failureMemory is how long a failure counts.
	failureMemory = 2 * time.Minute
	// coolDown is how long an issuer is left alone before it is tried again.
	coolDown = 30 * time.Second
)

// Health is what requests have shown of the issuers: whether they answer, and which anchor they lead to. Safe
// for concurrent use.
type Health struct {
	mu      sync.Mutex
	issuers map[Ref]*record
	notice  Notice // that a circuit or an anchor has changed
}

type record struct {
	anchor   *x509.Certificate // that the last answer led to
	failures []failure         // since the last success, the last ones
	openedAt time.Time         // zero while the circuit is closed
	reason   string
}

type failure struct {
	at  time.Time
	who string
}

// NewHealth knows nothing yet.
func NewHealth() *Health {
	return &Health{issuers: make(map[Ref]*record)}
}

func (h *Health) of(ref Ref) *record {
	r := h.issuers[ref]
	if r == nil {
		r = new(record)
		h.issuers[ref] = r
	}
	return r
}

// Changed is closed when a circuit or an anchor has changed; see [Notice.Changed].
func (h *Health) Changed() <-chan struct{} { return h.notice.Changed() }

// LedTo says that ref has answered with a chain to anchor, whether that was accepted or not.
func (h *Health) LedTo(ref Ref, anchor *x509.Certificate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.of(ref)
	moved := r.anchor == nil || !r.anchor.Equal(anchor)
	wasOpen := !r.openedAt.IsZero()
	r.anchor, r.failures, r.openedAt, r.reason = anchor, nil, time.Time{}, ""
	if moved || wasOpen {
		h.notice.Tell()
	}
}

// Failed says that ref has failed a request of who: it didn't answer in time, or said that it can't sign.
// A denial is no failure.
func (h *Health) Failed(ref Ref, who string, cause error, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.of(ref)
	r.failures = slices.DeleteFunc(r.failures, func(f failure) bool { return now.Sub(f.at) >= failureMemory })
	if len(r.failures) > 100 {
		r.failures = r.failures[1:]
	}
	r.failures = append(r.failures, failure{now, who})
	identities := make(map[string]bool)
	for _, f := range r.failures {
		identities[f.who] = true
	}
	if len(r.failures) < openAfter || len(identities) < openIdentities {
		return
	}
	was := r.openedAt
	r.openedAt = now
	r.reason = fmt.Sprintf("its last %d requests, of %d identities, failed: %v", len(r.failures), len(identities), cause)
	if was.IsZero() {
		h.notice.Tell()
	}
}

// Open says whether the circuit of ref is open, and why; retry that it was for long enough to try again.
func (h *Health) Open(ref Ref, now time.Time) (open, retry bool, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.issuers[ref]
	if r == nil || r.openedAt.IsZero() {
		return false, false, ""
	}
	return true, now.Sub(r.openedAt) >= coolDown, r.reason
}

// LeadsTo is the anchor of the last answer of ref; nil where there was none yet.
func (h *Health) LeadsTo(ref Ref) *x509.Certificate {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.issuers[ref]; r != nil {
		return r.anchor
	}
	return nil
}
