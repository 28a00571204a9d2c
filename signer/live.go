package signer

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
)

const (
	// silenceBound is how long the informer's stream may tell nothing while requests wait, before one
	// LIST looks whether it missed something; the bound doubles to maxSilenceBound while that goes on.
	silenceBound    = time.Second
	maxSilenceBound = 8 * time.Second
	listTimeout     = 10 * time.Second
	listPage        = 500
	// goneFor is how long a deletion is remembered for a call that begins to wait only after it.
	goneFor = time.Minute
)

// errDeleted says that a CertificateRequest went away before it was final.
var errDeleted = errors.New("the CertificateRequest was deleted")

// live is what the one shared informer shows: every CertificateRequest of Signet that exists, of all
// replicas, and who waits for it here. All fields below mu are guarded by it; nothing is called, and
// no I/O is done, while it is held. Safe for concurrent use.
type live struct {
	namespace string
	username  string        // ours, as the API server knows us
	reader    client.Reader // straight to the API server
	log       *slog.Logger
	metrics   *metrics

	mu       sync.Mutex
	requests map[types.UID]*cmapi.CertificateRequest // objects are shared and never changed
	pending  map[issuer.Ref]map[string]types.UID     // those that aren't final, by issuer and name
	waiting  map[types.UID]*waiters
	gone     map[types.UID]time.Time // deleted before they were final, and when; kept for goneFor
	held     map[string]int          // calls of this replica that make or wait for the object of that name
	heard    time.Time               // when the informer last told something
}

// waiters wait for one CertificateRequest.
type waiters struct {
	since time.Time
	done  []chan *cmapi.CertificateRequest // each gets one final object, or nil when it was deleted
}

func newLive(namespace, username string, reader client.Reader, log *slog.Logger, m *metrics) *live {
	return &live{
		namespace: namespace,
		username:  username,
		reader:    reader,
		log:       log,
		metrics:   m,
		requests:  make(map[types.UID]*cmapi.CertificateRequest),
		pending:   make(map[issuer.Ref]map[string]types.UID),
		waiting:   make(map[types.UID]*waiters),
		gone:      make(map[types.UID]time.Time),
		held:      make(map[string]int),
	}
}

// handler feeds live from the informer.
func (l *live) handler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { l.observe(obj) },
		UpdateFunc: func(_, obj any) { l.observe(obj) },
		DeleteFunc: func(obj any) {
			if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = tombstone.Obj
			}
			if cr, ok := obj.(*cmapi.CertificateRequest); ok {
				l.forget(cr)
			}
		},
	}
}

func (l *live) observe(obj any) {
	cr, ok := obj.(*cmapi.CertificateRequest)
	if !ok {
		return
	}
	p, _, _ := outcome(cr)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = time.Now()
	l.requests[cr.UID] = cr
	if p != pending {
		l.settle(cr)
		l.finish(cr.UID, cr)
		return
	}
	if cr.Spec.Username != "" && cr.Spec.Username != l.username {
		return // somebody else's
	}
	ref := issuerOf(cr)
	if l.pending[ref] == nil {
		l.pending[ref] = make(map[string]types.UID)
	}
	l.pending[ref][cr.Name] = cr.UID
}

// settle takes an object out of those that aren't final. The caller holds mu.
func (l *live) settle(cr *cmapi.CertificateRequest) {
	ref := issuerOf(cr)
	if l.pending[ref][cr.Name] == cr.UID {
		delete(l.pending[ref], cr.Name)
	}
	if len(l.pending[ref]) == 0 {
		delete(l.pending, ref)
	}
}

// issuerOf is the issuer that an object asks.
func issuerOf(cr *cmapi.CertificateRequest) issuer.Ref {
	return issuer.Ref{Name: cr.Spec.IssuerRef.Name, Kind: cr.Spec.IssuerRef.Kind, Group: cr.Spec.IssuerRef.Group}.WithDefaults()
}

// forget takes a deleted object out. What it was in the end still answers those who wait.
func (l *live) forget(cr *cmapi.CertificateRequest) {
	p, _, _ := outcome(cr)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = time.Now()
	delete(l.requests, cr.UID)
	l.settle(cr)
	if p == pending {
		maps.DeleteFunc(l.gone, func(_ types.UID, at time.Time) bool { return l.heard.Sub(at) > goneFor })
		l.gone[cr.UID] = l.heard
		l.finish(cr.UID, nil)
	} else {
		l.finish(cr.UID, cr)
	}
}

// finish hands cr, or nil for a deleted one, to those who wait for uid. The caller holds mu.
func (l *live) finish(uid types.UID, cr *cmapi.CertificateRequest) {
	w := l.waiting[uid]
	if w == nil {
		return
	}
	for _, done := range w.done {
		done <- cr // has room for one, and gets no second
	}
	delete(l.waiting, uid)
}

// wait returns the final state of cr, which the API server answered with. It looks first, at cr
// itself and at what the informer knows already. The error is errDeleted or that of ctx.
func (l *live) wait(ctx context.Context, cr *cmapi.CertificateRequest) (*cmapi.CertificateRequest, error) {
	if p, _, _ := outcome(cr); p != pending {
		return cr, nil
	}
	done := make(chan *cmapi.CertificateRequest, 1)
	l.mu.Lock()
	if known := l.requests[cr.UID]; known != nil {
		if p, _, _ := outcome(known); p != pending {
			l.mu.Unlock()
			return known, nil
		}
	}
	if _, gone := l.gone[cr.UID]; gone {
		l.mu.Unlock()
		return nil, errDeleted
	}
	w := l.waiting[cr.UID]
	if w == nil {
		w = &waiters{since: time.Now()}
		l.waiting[cr.UID] = w
	}
	w.done = append(w.done, done)
	l.mu.Unlock()

	select {
	case final := <-done:
		if final == nil {
			return nil, errDeleted
		}
		return final, nil
	case <-ctx.Done():
		l.leave(cr.UID, done)
		return nil, context.Cause(ctx)
	}
}

func (l *live) leave(uid types.UID, done chan *cmapi.CertificateRequest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.waiting[uid]
	if w == nil {
		return
	}
	for i, d := range w.done {
		if d == done {
			w.done = append(w.done[:i], w.done[i+1:]...)
			break
		}
	}
	if len(w.done) == 0 {
		delete(l.waiting, uid)
	}
}

// unapproved says that an object was seen, and without condition Approved: its issuer hasn't been asked.
func (l *live) unapproved(uid types.UID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	cr := l.requests[uid]
	return cr != nil && !slices.ContainsFunc(cr.Status.Conditions, func(c cmapi.CertificateRequestCondition) bool {
		return c.Type == cmapi.CertificateRequestConditionApproved && c.Status == cmmeta.ConditionTrue
	})
}

// hold keeps the sweeper of this replica from the object of that name until release is called: a create
// that took effect but seemed to fail meets it again.
func (l *live) hold(name string) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[name]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.held[name]--; l.held[name] == 0 {
			delete(l.held, name)
		}
	}
}

// pendingElsewhere finds an unfinished attempt at req with another issuer than ref. It costs next to nothing while all
// requests are for one issuer.
func (l *live) pendingElsewhere(req *Request, ref issuer.Ref) (issuer.Ref, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) == 0 || len(l.pending) == 1 && l.pending[ref] != nil {
		return issuer.Ref{}, false
	}
	for other, requests := range l.pending {
		if other == ref {
			continue
		}
		for attempt := 1; attempt <= maxAttempts; attempt++ {
			if _, ours := requests[req.name(other, attempt)]; ours {
				return other, true
			}
		}
	}
	return issuer.Ref{}, false
}

// snapshot copies the known objects, but for those that calls of this replica hold.
func (l *live) snapshot() []*cmapi.CertificateRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*cmapi.CertificateRequest, 0, len(l.requests))
	for _, cr := range l.requests {
		if l.held[cr.Name] == 0 {
			all = append(all, cr)
		}
	}
	return all
}

// count is the number of CertificateRequests that exist.
func (l *live) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.requests)
}

// finished is the number of those among them that are final.
func (l *live) finished() int {
	n := 0
	for _, cr := range l.snapshot() {
		if p, _, _ := outcome(cr); p != pending {
			n++
		}
	}
	return n
}

// silence is how long the stream has told nothing while somebody waited: 0 when nobody does.
func (l *live) silence(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var oldest time.Time
	for _, w := range l.waiting {
		if oldest.IsZero() || w.since.Before(oldest) {
			oldest = w.since
		}
	}
	if oldest.IsZero() {
		return 0
	}
	if l.heard.After(oldest) {
		oldest = l.heard
	}
	return now.Sub(oldest)
}

// guard closes the gaps of a silent stream until ctx ends: when the informer has told nothing for
// about a second while requests wait, one LIST for all of them looks at the API server itself.
func (l *live) guard(ctx context.Context) {
	bound := silenceBound
	var last time.Time
	tick := time.NewTicker(silenceBound / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			silence := l.silence(now)
			if silence < silenceBound {
				bound = silenceBound
				continue
			}
			if silence < bound || now.Sub(last) < bound {
				continue
			}
			if err := l.list(ctx); err != nil {
				l.log.Warn("list certificate requests that the watch may have missed", "err", err)
			}
			last = time.Now()
			bound = min(2*bound, maxSilenceBound)
		}
	}
}

// list reads all CertificateRequests of Signet and answers those who wait: with final objects, and
// with "deleted" where one that was waited for before the LIST began isn't there.
func (l *live) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	l.metrics.gapLists.Inc()

	l.mu.Lock()
	missing := make(map[types.UID]bool, len(l.waiting))
	for uid := range l.waiting {
		missing[uid] = true
	}
	l.mu.Unlock()

	var found []*cmapi.CertificateRequest
	options := client.ListOptions{Namespace: l.namespace, Limit: listPage}
	client.HasLabels{RequestLabel}.ApplyToList(&options)
	for {
		var page cmapi.CertificateRequestList
		if err := l.reader.List(ctx, &page, &options); err != nil {
			return err
		}
		for i := range page.Items {
			cr := &page.Items[i]
			delete(missing, cr.UID)
			if p, _, _ := outcome(cr); p != pending {
				found = append(found, cr)
			}
		}
		if options.Continue = page.Continue; options.Continue == "" {
			break
		}
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	for _, cr := range found {
		l.finish(cr.UID, cr)
	}
	for uid := range missing {
		l.finish(uid, nil)
	}
	return nil
}
