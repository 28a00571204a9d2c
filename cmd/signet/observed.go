package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/api/records"
	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/signer"
)

const (
	// observeAfter is how long a certificate that was seen waits for the record of the replica itself, which is the
	// better one. It is shorter than the time for which finished requests stay.
	observeAfter = 2 * time.Second
	observeEvery = 500 * time.Millisecond
	// observeAtOnce is how many are recorded at a time; they share commits.
	observeAtOnce = 32
	// maxObserved bounds those that wait to be recorded, while the ledger can't be written. The requests stay in the
	// cluster meanwhile: the sweeper doesn't delete what isn't recorded.
	maxObserved = 100_000
	// rememberFor is how long a request is remembered whose deletion wasn't seen.
	rememberFor = 15 * time.Minute
	// forgetEvery is how far apart the looks are for what need not be remembered any more.
	forgetEvery = 10 * time.Second
	// passTimeout bounds one pass; what it doesn't reach is tried again.
	passTimeout = 30 * time.Second

	observedSource = "observed"
)

// observed records the certificates of CertificateRequests that this replica didn't answer itself: those of other
// replicas, and those that a process which crashed had no time to record. Safe for concurrent use.
type observed struct {
	ledger  *ledger.Store
	signer  *signer.Signer
	issuers *issuer.Store
	cluster string // the ID of our own
	replica string
	issued  func(api.Certificate)
	log     *slog.Logger

	complaints *rate.Limiter // of lines about what could not be recorded

	mu       sync.Mutex // guards the following
	recorded map[types.UID]time.Time
	forgot   time.Time // when recorded was looked through last
	waiting  []sighting
	left     int // deleted when too many were waiting
}

// sighting is a request that carries a certificate.
type sighting struct {
	request *cmapi.CertificateRequest
	at      time.Time
}

func newObserved(cfg Config, store *ledger.Store, sign *signer.Signer, issuers *issuer.Store, issued func(api.Certificate), log *slog.Logger) *observed {
	return &observed{
		ledger: store, signer: sign, issuers: issuers, cluster: cfg.ClusterID, replica: cfg.Replica, issued: issued, log: log,
		complaints: rate.NewLimiter(rate.Every(10*time.Second), 1), recorded: make(map[types.UID]time.Time),
	}
}

// Observe connects the shared informer.
func (o *observed) Observe(informer cache.Informer) error {
	_, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { o.see(object, time.Now(), false) },
		UpdateFunc: func(_, object any) { o.see(object, time.Now(), false) },
		DeleteFunc: func(object any) {
			if tombstone, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
				object = tombstone.Obj
			}
			if request, ok := object.(*cmapi.CertificateRequest); ok {
				o.see(request, time.Now(), true)
				o.leave(request.UID)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch CertificateRequests: %w", err)
	}
	return nil
}

// see takes note of a request that may carry a certificate. Last says that it is deleted, so that there will be no other
// sight of it.
func (o *observed) see(object any, now time.Time, last bool) {
	request, ok := object.(*cmapi.CertificateRequest)
	if !ok || len(request.Status.Certificate) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.recorded[request.UID]; known {
		return
	}
	if len(o.waiting) >= maxObserved {
		if last {
			o.left++
		}
		return
	}
	o.waiting = append(o.waiting, sighting{request, now})
}

// known says that the certificate of a request is in the ledger.
func (o *observed) known(uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.recorded[uid] = time.Now()
}

// leave forgets a request that was deleted, once nobody can ask for it any more.
func (o *observed) leave(uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if at, known := o.recorded[uid]; known {
		// A sighting of it may still wait.
		o.recorded[uid] = at.Add(-rememberFor + 2*observeAfter)
	}
}

// Start records what was seen until ctx ends, and what is left then.
func (o *observed) Start(ctx context.Context, synced func() bool) {
	tick := time.NewTicker(observeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			o.pass(last, time.Now().Add(observeAfter))
			return
		case now := <-tick.C:
			o.pass(ctx, now)
			o.tell(synced())
		}
	}
}

// pass records what has waited for long enough at now. It ends early where the ledger can't be written.
func (o *observed) pass(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	due := o.due(now)
	var failing atomic.Bool
	var mu sync.Mutex
	var again []sighting
	var failure error
	var group sync.WaitGroup
	next := make(chan sighting)
	for range min(observeAtOnce, len(due)) {
		group.Go(func() {
			for s := range next {
				err := errSkipped
				if !failing.Load() {
					err = o.Keep(ctx, s.request)
				}
				if err != nil {
					failing.Store(true)
					mu.Lock()
					again = append(again, s)
					if !errors.Is(err, errSkipped) {
						failure = err
					}
					mu.Unlock()
				}
			}
		})
	}
	for _, s := range due {
		next <- s
	}
	close(next)
	group.Wait()
	if failure != nil && !errors.Is(failure, context.Canceled) && o.complaints.Allow() {
		o.log.Warn("certificates that were seen in the cluster can't be recorded; they are tried again", "certificates", len(again), "err", failure)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting = append(again, o.waiting...)
}

// errSkipped says that a record was not tried, because another one had just failed.
var errSkipped = errors.New("not tried")

// due takes out of those that wait what has waited for long enough at now and isn't recorded.
func (o *observed) due(now time.Time) []sighting {
	o.mu.Lock()
	defer o.mu.Unlock()
	ripe := 0
	for ripe < len(o.waiting) && now.Sub(o.waiting[ripe].at) >= observeAfter {
		ripe++
	}
	var due []sighting
	for _, s := range o.waiting[:ripe] {
		if _, known := o.recorded[s.request.UID]; !known {
			due = append(due, s)
		}
	}
	o.waiting = append([]sighting(nil), o.waiting[ripe:]...)
	if now.Sub(o.forgot) >= forgetEvery {
		o.forgot = now
		maps.DeleteFunc(o.recorded, func(_ types.UID, at time.Time) bool { return now.Sub(at) > rememberFor })
	}
	return due
}

// Keep implements [signer.Keeper]: it records the certificate of a request now, where it isn't recorded.
func (o *observed) Keep(ctx context.Context, request *cmapi.CertificateRequest) error {
	if o.has(request.UID) {
		return nil
	}
	issued, ok := o.signer.Issued(request)
	if !ok {
		return nil
	}
	record, err := o.recordOf(request, issued)
	if err != nil {
		// No other try would end better.
		o.log.Error("a certificate that was seen in the cluster can't be recorded", "request", request.Name, "err", err)
		o.known(request.UID)
		return nil
	}
	switch err := o.ledger.Record(ctx, record); {
	case err == nil:
	case passes(err):
		return fmt.Errorf("record the certificate of CertificateRequest %s: %w", request.Name, err)
	default:
		o.log.Error("a certificate that was seen in the cluster can't be recorded", "request", request.Name, "err", err)
		o.known(request.UID)
		return nil
	}
	o.known(request.UID)
	if o.issued != nil && record.Holder() != "" {
		o.issued(records.Certificate(&record))
	}
	return nil
}

func (o *observed) has(uid types.UID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, known := o.recorded[uid]
	return known
}

// recordOf is what a request tells of its certificate. The caller is known as far as the replica that asked wrote it
// into the annotations.
func (o *observed) recordOf(request *cmapi.CertificateRequest, issued signer.Issued) (ledger.Issuance, error) {
	record, err := newRecord(issued.Chain, o.anchorOf(issued.Chain), issued.Issuer)
	if err != nil {
		return ledger.Issuance{}, err
	}
	record.Source, record.Replica, record.RecordedAt = ledger.Observed, cmp.Or(issued.Replica, o.replica), issued.At
	if d := request.Spec.Duration; d != nil {
		record.RequestedLifetime = d.Duration
	}
	record.RequestName, record.RequestUID = request.Name, string(request.UID)
	if issued.For != signer.ForWorkload {
		return record, nil // Signet's own
	}
	if !asAsked(request, issued.Chain[0], &record) {
		return record, nil // no replica lets it go, so that nobody holds it
	}
	about := func(key string) string { return request.Annotations[key] }
	record.Cluster = o.cluster
	if cluster, other := request.Annotations[ca.ClusterAnnotation]; other {
		record.Cluster = cluster
	}
	record.Pod, record.PodUID, record.Node = about(ca.PodAnnotation), about(ca.PodUIDAnnotation), about(ca.NodeAnnotation)
	record.Peer, record.Impersonated = about(ca.AddressAnnotation), about(ca.ImpersonatedAnnotation) == "true"
	record.ServiceAccountUID = about(ca.CallerUIDAnnotation)
	if at, err := time.Parse(time.RFC3339, about(ca.ProvenAtAnnotation)); err == nil {
		record.ProvenAt = at
	}
	return record, nil
}

// asAsked says whether a leaf is what was asked for, as far as that decides who can use it: it has the key and the
// identity of the request, and leads to an anchor in force.
func asAsked(request *cmapi.CertificateRequest, leaf *x509.Certificate, record *ledger.Issuance) bool {
	block, _ := pem.Decode(request.Spec.Request)
	if block == nil {
		return false
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	return err == nil && bytes.Equal(csr.RawSubjectPublicKeyInfo, leaf.RawSubjectPublicKeyInfo) &&
		record.Identity == request.Annotations[signer.IdentitiesAnnotation] && record.RootSHA256 != ""
}

// anchorOf is the anchor that the last certificate of a chain was signed by; nil where it is none of those in force.
func (o *observed) anchorOf(chain []*x509.Certificate) *x509.Certificate {
	last := chain[len(chain)-1]
	for _, anchor := range o.issuers.Current().Anchors.Anchors() {
		if last.Equal(anchor) || string(last.RawIssuer) == string(anchor.RawSubject) && last.CheckSignatureFrom(anchor) == nil {
			return anchor
		}
	}
	return nil
}

// tell says whether what others issue is being recorded.
func (o *observed) tell(synced bool) {
	o.mu.Lock()
	waiting, left := len(o.waiting), o.left
	o.mu.Unlock()
	switch {
	case !synced:
		o.ledger.SetSource(observedSource, false, "the CertificateRequests are not known yet")
	case left > 0:
		o.ledger.SetSource(observedSource, false, fmt.Sprintf("%d certificates were deleted before they were recorded", left))
	case waiting >= maxObserved/2:
		o.ledger.SetSource(observedSource, false, fmt.Sprintf("%d certificates wait to be recorded", waiting))
	default:
		o.ledger.SetSource(observedSource, true, "")
	}
}
