package rotation

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"

	"github.com/signet-ca/signet/issuer"
)

var (
	states = []State{Fresh, Due, Overdue, Expired}
	kinds  = []Kind{KindLeaf, KindServing, KindIstiod, KindIntermediate, KindAnchor, KindFallbackAnchor, KindCRL}
)

const (
	// lookEvery is how long the watch goes without looking, whatever the times in certificates say:
	// clocks are set, and subjects come and go.
	lookEvery = time.Minute
	// leavesEvery is how far apart the looks at all leaves are, so that a leaf's state is reported this
	// much late at most.
	leavesEvery = 10 * time.Second
	// lookApart is how far apart any two looks are.
	lookApart = 10 * time.Millisecond
	// eventBurst Events may be recorded at once, and one more each eventEvery.
	eventBurst = 25
	eventEvery = 10 * time.Second
	// namesInSummary is how many leaves a line of the log names.
	namesInSummary = 5
)

// Subject is something that ends.
type Subject struct {
	// Kind is any but KindLeaf, where a source names it.
	Kind Kind
	// Key is stable and unique within the kind. A new certificate may come under the key of the one that
	// it replaces, or under a key of its own.
	Key string
	// Text is for people: subject, serial number.
	Text string
	// NotBefore and NotAfter are the validity, for a CRL thisUpdate and nextUpdate. Both are required.
	NotBefore, NotAfter time.Time
	// Renewal is when whoever renews it is going to; zero where that isn't known, and the policy of the kind decides.
	Renewal time.Time
	// About is the object that Events are recorded on; nil for none. It must not be changed.
	About *corev1.ObjectReference
}

// Status is a subject with its state.
type Status struct {
	Subject
	State State
}

// policy says when it is due and overdue.
func (s *Subject) policy() Policy { return policyFor(s.Kind, s.NotBefore, s.NotAfter, s.Renewal) }

type subjectID struct {
	kind Kind
	key  string
}

// Expiry watches everything that ends, and says by metrics, the log and Kubernetes Events how it stands
// with it. It renews nothing.
type Expiry struct {
	sources []func() []Subject
	leaves  *Leaves
	events  events.EventRecorder
	log     *slog.Logger
	metrics *expiryMetrics

	// The following are used by Start only.
	known      map[subjectID]*watched
	budget     *rate.Limiter // of Events, for all kinds but leaves
	leafBudget *rate.Limiter // of Events about leaves, of which there may be very many
	summaries  *rate.Limiter // of log lines about leaves
	looked     time.Time     // when all leaves were looked at last
	late       int           // leaves that became overdue since the last summary
	gone       int           // leaves that expired since then
	names      []string      // of some that became overdue
}

// watched is what is remembered of a subject from one look to the next.
type watched struct {
	notBefore, notAfter time.Time
	state               State
	told                []State // by an Event, for this validity
	owed                bool    // an Event about state
}

// NewExpiry makes the watch of what the sources name, and of leaves. Sources are asked often and at any
// time, so that they answer from memory; a subject that none names any more is forgotten. Leaves and
// recorder may be nil.
func NewExpiry(sources []func() []Subject, leaves *Leaves, recorder events.EventRecorder, log *slog.Logger, reg prometheus.Registerer) *Expiry {
	return &Expiry{
		sources: sources, leaves: leaves, events: recorder, log: log,
		metrics:    newExpiryMetrics(reg),
		known:      make(map[subjectID]*watched),
		budget:     rate.NewLimiter(rate.Every(eventEvery), eventBurst),
		leafBudget: rate.NewLimiter(rate.Every(eventEvery), eventBurst),
		summaries:  rate.NewLimiter(rate.Every(time.Minute), 1),
	}
}

// NeedLeaderElection says that every replica watches what it holds and sees.
func (e *Expiry) NeedLeaderElection() bool { return false }

// Start looks whenever a state changes, and at least once a minute, until ctx ends.
func (e *Expiry) Start(ctx context.Context) error {
	for {
		now := time.Now()
		pause := max(lookApart, e.look(now).Sub(now))
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// Subjects are all subjects but the leaves, with their states now, in a stable order. For the leaves see
// [Leaves.All]. Safe for concurrent use.
func (e *Expiry) Subjects() []Status {
	now := time.Now()
	var all []Status
	for _, s := range e.subjects() {
		all = append(all, Status{s, Decide(s.policy(), s.NotBefore, s.NotAfter, now)})
	}
	return all
}

// subjects are those that the sources name now, each once, ordered by kind and key.
func (e *Expiry) subjects() []Subject {
	var all []Subject
	for _, source := range e.sources {
		for _, s := range source() {
			if s.Kind != KindLeaf && slices.Contains(kinds, s.Kind) {
				all = append(all, s)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Subject) int {
		if d := slices.Index(kinds, a.Kind) - slices.Index(kinds, b.Kind); d != 0 {
			return d
		}
		return strings.Compare(a.Key, b.Key)
	})
	return slices.CompactFunc(all, func(a, b Subject) bool { return a.Kind == b.Kind && a.Key == b.Key })
}

// look looks at everything, says what has changed, and returns when to look again.
func (e *Expiry) look(now time.Time) time.Time {
	again := now.Add(lookEvery)
	tallies := make(map[Kind]*tally)
	seen := make(map[subjectID]bool)
	for _, s := range e.subjects() {
		seen[subjectID{s.Kind, s.Key}] = true
		state := Decide(s.policy(), s.NotBefore, s.NotAfter, now)
		if tallies[s.Kind] == nil {
			tallies[s.Kind] = new(tally)
		}
		tallies[s.Kind].add(state, s.NotBefore, s.NotAfter, now)
		e.watch(s, state, now)
		if next := nextChange(s.policy(), s.NotBefore, s.NotAfter, now); !next.IsZero() && next.Before(again) {
			again = next
		}
	}
	for id := range e.known {
		if !seen[id] {
			delete(e.known, id)
			e.log.Debug("certificate not watched any more", "kind", id.kind, "key", id.key)
		}
	}
	for _, kind := range kinds {
		if kind != KindLeaf {
			e.metrics.set(kind, tallies[kind])
		}
	}

	if e.leaves == nil {
		return again
	}
	// A clock that was set back may have everything to say anew.
	if since := now.Sub(e.looked); since < 0 || since >= leavesEvery {
		e.looked = now
		e.lookAtLeaves(now)
	}
	if next := e.looked.Add(leavesEvery); next.Before(again) {
		again = next
	}
	return again
}

// watch compares a subject with what was known of it, and says what is new.
func (e *Expiry) watch(s Subject, state State, now time.Time) {
	id := subjectID{s.Kind, s.Key}
	w := e.known[id]
	if w == nil {
		// One that is fresh when it is first seen is as it should be.
		w = &watched{notBefore: s.NotBefore, notAfter: s.NotAfter, state: Fresh}
		e.known[id] = w
	}
	if !w.notBefore.Equal(s.NotBefore) || !w.notAfter.Equal(s.NotAfter) {
		w.notBefore, w.notAfter, w.told = s.NotBefore, s.NotAfter, nil
	}
	if state != w.state {
		level := slog.LevelInfo
		switch state {
		case Overdue:
			level = slog.LevelWarn
		case Expired:
			level = slog.LevelError
		}
		e.log.Log(context.Background(), level, "certificate changed its state", "kind", s.Kind, "subject", s.Text,
			"from", w.state, "state", state, "not_before", s.NotBefore, "not_after", s.NotAfter)
		w.state = state
		w.owed = s.About != nil && e.events != nil && !slices.Contains(w.told, state)
	}
	if w.owed && e.budget.AllowN(now, 1) {
		w.owed = false
		w.told = append(w.told, state)
		e.record(s, state)
	}
}

// lookAtLeaves sums up what has become of the leaves. A line for each would be too many, and so would
// an Error for each that has expired: most of them belonged to pods that are gone.
func (e *Expiry) lookAtLeaves(now time.Time) {
	found := e.leaves.look(now, eventBurst)
	e.metrics.set(KindLeaf, &found.tally)
	if found.due > 0 {
		e.log.Debug("leaves are due", "leaves", found.due)
	}

	e.late += found.overdue
	e.gone += found.expired
	for _, leaf := range found.late {
		s := leaf.Subject()
		if len(e.names) < namesInSummary {
			e.names = append(e.names, strings.TrimSpace(leaf.Identity+" "+leaf.PodName))
		}
		if e.events != nil && s.About != nil && e.leafBudget.AllowN(now, 1) {
			e.record(s, Overdue)
			found.overdue--
		}
	}
	if e.events != nil {
		e.metrics.events.WithLabelValues("suppressed").Add(float64(found.overdue))
	}
	if e.late+e.gone > 0 && e.summaries.AllowN(now, 1) {
		e.log.Warn("leaves not renewed in time", "overdue", e.late, "expired", e.gone, "overdue_now", found.count[Overdue], "some", e.names)
		e.late, e.gone, e.names = 0, 0, nil
	}
}

// record records an Event about a subject.
func (e *Expiry) record(s Subject, state State) {
	e.metrics.events.WithLabelValues("recorded").Inc()
	kind, reason := corev1.EventTypeNormal, "CertificateFresh"
	switch state {
	case Due:
		reason = "CertificateDue"
	case Overdue:
		kind, reason = corev1.EventTypeWarning, "CertificateOverdue"
	case Expired:
		kind, reason = corev1.EventTypeWarning, "CertificateExpired"
	}
	// A note has 1 KiB at most.
	text := s.Text
	if len(text) > 512 {
		text = text[:512] + "…"
	}
	e.events.Eventf(s.About, nil, kind, reason, "Watch", "%s certificate is %s: %s, valid from %s until %s",
		strings.ReplaceAll(string(s.Kind), "_", " "), state, strings.ToValidUTF8(text, "?"),
		s.NotBefore.UTC().Format(time.RFC3339), s.NotAfter.UTC().Format(time.RFC3339))
}

// tally counts subjects of one kind.
type tally struct {
	count map[State]int
	first time.Time // the earliest NotAfter
	least float64   // the smallest part of life that remains
}

func (t *tally) add(state State, notBefore, notAfter, now time.Time) {
	left := remaining(notBefore, notAfter, now)
	if t.count == nil {
		t.count, t.first, t.least = make(map[State]int), notAfter, left
	}
	t.count[state]++
	if notAfter.Before(t.first) {
		t.first = notAfter
	}
	t.least = min(t.least, left)
}

// expiryMetrics are those of everything that ends.
type expiryMetrics struct {
	certificates *prometheus.GaugeVec
	notAfter     *prometheus.GaugeVec
	remaining    *prometheus.GaugeVec
	events       *prometheus.CounterVec
}

func newExpiryMetrics(reg prometheus.Registerer) *expiryMetrics {
	m := &expiryMetrics{
		certificates: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "certificates",
			Help: "What is watched, by kind (leaf, serving, istiod, intermediate, anchor, fallback_anchor, crl) and state (fresh, due, overdue, expired). Leaves that have expired are in leaves_expired_total.",
		}, []string{"kind", "state"}),
		notAfter: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "certificate_not_after_timestamp_seconds",
			Help: "When the first of a kind expires, in seconds since 1970; absent while there is none.",
		}, []string{"kind"}),
		remaining: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "certificate_remaining_ratio_min",
			Help: "The smallest part of its life, 0 to 1, that one of a kind has left; absent while there is none.",
		}, []string{"kind"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certificate_events_total",
			Help: "Kubernetes Events about certificates, by result: recorded, suppressed.",
		}, []string{"result"}),
	}
	for _, kind := range kinds {
		m.set(kind, nil)
	}
	for _, result := range []string{"recorded", "suppressed"} {
		m.events.WithLabelValues(result)
	}
	reg.MustRegister(m.certificates, m.notAfter, m.remaining, m.events)
	return m
}

// set shows what was counted of a kind; t may be nil for nothing.
func (m *expiryMetrics) set(kind Kind, t *tally) {
	if t == nil {
		t = new(tally)
	}
	for _, state := range states {
		m.certificates.WithLabelValues(string(kind), string(state)).Set(float64(t.count[state]))
	}
	if t.count == nil {
		m.notAfter.DeleteLabelValues(string(kind))
		m.remaining.DeleteLabelValues(string(kind))
		return
	}
	m.notAfter.WithLabelValues(string(kind)).Set(float64(t.first.Unix()))
	m.remaining.WithLabelValues(string(kind)).Set(t.least)
}

// ServingSubjects is the source of the serving certificate. Its successors have the same key.
func ServingSubjects(s *Serving, about corev1.ObjectReference) func() []Subject {
	return func() []Subject {
		current := s.current.Load()
		if current == nil {
			return nil
		}
		leaf := current.Leaf
		return []Subject{{
			Kind: KindServing, Key: "serving", Text: fmt.Sprintf("%s serial %s", s.names, issuer.Serial(leaf.SerialNumber)),
			NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, About: reference(about),
		}}
	}
}

// IstiodSubjects is the source of istiod's certificate. Cert-manager says when it renews it, by istiod.renewBefore.
func IstiodSubjects(s *Istiod) func() []Subject {
	return func() []Subject { return s.Status().subjects() }
}

func (s IstiodStatus) subjects() []Subject {
	if s.NotAfter.IsZero() {
		return nil
	}
	return []Subject{{
		Kind: KindIstiod, Key: s.Namespace + "/" + s.Name, Text: "istiod's certificate " + s.Namespace + "/" + s.Name,
		NotBefore: s.NotBefore, NotAfter: s.NotAfter, Renewal: s.Renewal,
		About: &corev1.ObjectReference{APIVersion: certificateKind.GroupVersion().String(), Kind: certificateKind.Kind, Namespace: s.Namespace, Name: s.Name},
	}}
}

// AnchorSubjects is the source of the trust anchors in force.
func AnchorSubjects(store *issuer.Store, about corev1.ObjectReference) func() []Subject {
	return func() []Subject {
		var all []Subject
		for _, anchor := range store.Current().Anchors.Anchors() {
			all = append(all, caSubject(KindAnchor, anchor, sha256.Sum256(anchor.Raw), reference(about)))
		}
		return all
	}
}

// caSubject is a CA certificate with the given SHA-256 as it is watched.
func caSubject(kind Kind, cert *x509.Certificate, sum [sha256.Size]byte, about *corev1.ObjectReference) Subject {
	return Subject{
		Kind: kind, Key: hex.EncodeToString(sum[:]), Text: fmt.Sprintf("%s serial %s", cert.Subject, issuer.Serial(cert.SerialNumber)),
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, About: about,
	}
}

// reference is nil for no object.
func reference(about corev1.ObjectReference) *corev1.ObjectReference {
	if about == (corev1.ObjectReference{}) {
		return nil
	}
	return &about
}

const (
	// maxIntermediates bounds how many are remembered; a mesh has a handful.
	maxIntermediates = 256
	// unusedAfter is how long chains go on without an intermediate until it counts as replaced.
	unusedAfter = 24 * time.Hour
)

// Intermediates remembers the CA certificates between leaves and anchors that are in use. One that
// newer chains don't have any more is forgotten after a day; while there are no newer chains, it stays.
//
// Safe for concurrent use.
type Intermediates struct {
	about *corev1.ObjectReference

	latest atomic.Int64 // when a chain was seen last, in seconds since 1970
	mu     sync.RWMutex // guards the following
	known  map[[sha256.Size]byte]*intermediate
}

type intermediate struct {
	cert    *x509.Certificate
	subject Subject
	seen    atomic.Int64 // last, in seconds since 1970
}

// NewIntermediates starts without any. Events are recorded on about, such as the issuer; the zero value
// is for none.
func NewIntermediates(about corev1.ObjectReference) *Intermediates {
	return &Intermediates{about: reference(about), known: make(map[[sha256.Size]byte]*intermediate)}
}

// Seen takes note of the intermediates of a chain, without its anchor. Others than CA certificates are
// passed over. For those that are known it costs a hash of each.
func (i *Intermediates) Seen(certs []*x509.Certificate) {
	now := time.Now().Unix()
	i.latest.Store(now)
	for _, cert := range certs {
		if !cert.IsCA {
			continue
		}
		sum := sha256.Sum256(cert.Raw)
		i.mu.RLock()
		entry := i.known[sum]
		i.mu.RUnlock()
		if entry == nil {
			i.add(cert, sum, now)
		} else if entry.seen.Load() != now {
			entry.seen.Store(now)
		}
	}
}

func (i *Intermediates) add(cert *x509.Certificate, sum [sha256.Size]byte, now int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.known) >= maxIntermediates {
		first, at := sum, now+1
		for other, entry := range i.known {
			if seen := entry.seen.Load(); seen < at {
				first, at = other, seen
			}
		}
		delete(i.known, first)
	}
	entry := &intermediate{cert: cert, subject: caSubject(KindIntermediate, cert, sum, i.about)}
	entry.seen.Store(now)
	i.known[sum] = entry
}

// Certificates are the intermediates in use, in no order.
func (i *Intermediates) Certificates() []*x509.Certificate {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var all []*x509.Certificate
	for _, entry := range i.known {
		all = append(all, entry.cert)
	}
	return all
}

// Subjects is the source of the intermediates in use, in no order.
func (i *Intermediates) Subjects() []Subject {
	i.mu.Lock()
	defer i.mu.Unlock()
	var all []Subject
	for sum, entry := range i.known {
		if time.Duration(i.latest.Load()-entry.seen.Load())*time.Second > unusedAfter {
			delete(i.known, sum)
			continue
		}
		all = append(all, entry.subject)
	}
	return all
}
