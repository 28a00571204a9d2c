// Package signer turns an authorised request into a verified certificate chain, by way of one
// cert-manager CertificateRequest.
//
// It promises: one CertificateRequest for each certificate, which a retry meets again, on any
// replica; no polling, no watch of a request's own; nothing leaves that was not compared with what
// was asked for; nothing stays behind in the API server.
//
// Its words: a [Request] is the authorised wish; the CertificateRequest is the Kubernetes object it
// becomes; an attempt is one such object; a [Chain] is the verified answer, leaf first.
package signer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
)

// The errors of Sign. What each means for the next try is said at [Signer.Sign].
var (
	// ErrDenied says that an approver denied the request.
	ErrDenied = errors.New("the request was denied")
	// ErrFailed says that the issuer, or the API server's admission, refused.
	ErrFailed = errors.New("the issuer refused")
	// ErrUntrusted says that the issuer answered with something that must not leave Signet.
	ErrUntrusted = errors.New("the issuer's answer was not accepted")
	// ErrNotReady says that there is nothing to sign with: no anchors, no API server.
	ErrNotReady = errors.New("signing is not possible at the moment")
	// ErrTimeout says that the issuer didn't answer in time.
	ErrTimeout = errors.New("the issuer did not answer in time")
)

// Config is how requests are signed and cleaned up.
type Config struct {
	// Timeout bounds one request, all its attempts together. Default 20s, between 1s and 2m. The
	// drain time at shutdown should be longer.
	Timeout setting.Duration `json:"timeout,omitempty"`
	// Usages of workload certificates. Default digital signature, key encipherment, client auth,
	// server auth; policies written for istio-csr may allow only the last two.
	Usages Usages `json:"usages,omitempty"`
	// Annotations are put on every CertificateRequest beside Signet's own, such as for approvers. Signet's own can't be set:
	// istio.cert-manager.io/identities, and those that begin with signet.dev/. Optional.
	Annotations map[string]string `json:"annotations,omitempty"`
	// Sweep is how finished CertificateRequests are deleted.
	Sweep SweepConfig `json:"sweep,omitempty"`
}

// Validate reports what is wrong with c.
func (c Config) Validate(p setting.Problems) {
	p.Duration("timeout", c.Timeout, time.Second, 2*time.Minute)
	c.Usages.Validate(p.At("usages"))
	for _, problem := range apivalidation.ValidateAnnotations(c.Annotations, field.NewPath("annotations")) {
		p.Addf("annotations", "%s", problem.ErrorBody())
	}
	for name := range c.Annotations {
		if name == IdentitiesAnnotation || strings.HasPrefix(name, ownAnnotations) {
			p.Addf("annotations", "%q is one of those that Signet sets itself; it must go", name)
		}
	}
	c.Sweep.Validate(p.At("sweep"))
}

// TimeoutOrDefault is how long one request may take.
func (c Config) TimeoutOrDefault() time.Duration { return c.Timeout.Or(20 * time.Second) }

// UsagesOrDefault is what workload certificates are asked for.
func (c Config) UsagesOrDefault() Usages {
	if len(c.Usages) == 0 {
		return LeafUsages()
	}
	return c.Usages
}

const (
	// maxAttempts bounds the CertificateRequests that one call makes or meets.
	maxAttempts = 6
	// maxUnreachable bounds how long one call tries to reach an API server that doesn't answer.
	maxUnreachable = 5 * time.Second
	// reuseFraction: a finished request answers a repeat while its leaf is younger than this part of
	// its life.
	reuseFraction = 10
)

// Cluster is the Kubernetes API as Signet uses it.
type Cluster struct {
	// Client writes.
	Client client.Client
	// Reader reads from the API server itself, not from a cache.
	Reader client.Reader
	// Namespace is where CertificateRequests are made.
	Namespace string
	// Username is who the API server says we are, such as system:serviceaccount:istio-system:signet.
	Username string
	// Replica is the name of this one, which its CertificateRequests carry. Optional.
	Replica string
}

// Signer signs. Safe for concurrent use.
type Signer struct {
	cfg     Config
	cluster Cluster
	issuers *issuer.Store
	health  *issuer.Health
	log     *slog.Logger
	metrics *metrics
	live    *live

	signing atomic.Int64 // calls of Sign under way
	// issuerEnds is the earliest end of the CA certificates in the chain seen last.
	issuerEnds atomic.Pointer[issuerEnd]
}

// issuerEnd says until when an issuer's own chain is valid.
type issuerEnd struct {
	ref  issuer.Ref
	ends time.Time
}

// New makes a Signer, which tells health how the issuers answer. It needs [Signer.Observe] before it signs, and
// [Signer.Guard] while it does.
func New(cfg Config, cluster Cluster, issuers *issuer.Store, health *issuer.Health, log *slog.Logger, reg prometheus.Registerer) *Signer {
	s := &Signer{cfg: cfg, cluster: cluster, issuers: issuers, health: health, log: log}
	s.metrics = newMetrics(reg, s)
	s.live = newLive(cluster.Namespace, cluster.Username, cluster.Reader, log, s.metrics)
	return s
}

// Busy says whether certificates are being signed here at the moment, more than a few.
func (s *Signer) Busy() bool { return s.signing.Load() >= busyAt }

// Observe connects the shared informer for CertificateRequests that carry [RequestLabel].
func (s *Signer) Observe(informer cache.Informer) error {
	if _, err := informer.AddEventHandler(s.live.handler()); err != nil {
		return fmt.Errorf("watch CertificateRequests: %w", err)
	}
	return nil
}

// Guard looks after the informer's stream until ctx ends, which must not be before the last request is
// answered: when it is silent for a second while requests wait, one LIST for all closes the gap.
func (s *Signer) Guard(ctx context.Context) { s.live.guard(ctx) }

// Sign turns req into a certificate. The chain is verified against the anchors in force, the key in
// req.CSR, req.Names and req.Usages. It may live shorter than asked for, never longer than
// req.MaxLifetime, and never longer than its issuer.
//
// ErrDenied, ErrFailed and ErrUntrusted are final. ErrNotReady, ErrTimeout and the error of ctx are
// worth another try, which meets this call's CertificateRequest where there is one.
// Safe for concurrent use.
func (s *Signer) Sign(ctx context.Context, req Request) (*Chain, error) {
	snapshot := s.issuers.Current()
	if snapshot.Anchors.Empty() {
		return nil, fmt.Errorf("%w: no trust anchors are known yet", ErrNotReady)
	}
	ref := req.issuer(snapshot)
	if ref.Name == "" {
		return nil, fmt.Errorf("%w: no issuer is configured", ErrNotReady)
	}
	if err := s.issuers.Fence(time.Now()); err != nil && req.For == ForWorkload {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	// What an issuer may still sign isn't asked of another one, unless the request is for that one.
	if other, ok := s.live.pendingElsewhere(&req, ref); ok && req.Issuer.Name == "" {
		ref = other
	}
	return s.sign(ctx, &req, ref, snapshot)
}

// Trace asks ref for req and returns the anchor that the answer leads to: one that is known or, where it is none of
// them, the root that the answer names, which must be a self-signed CA certificate. The chain must not be used for
// anything else. The errors are those of [Signer.Sign].
func (s *Signer) Trace(ctx context.Context, ref issuer.Ref, req Request) (*Chain, error) {
	return s.sign(ctx, &req, ref, nil)
}

// sign asks ref. Without a snapshot it only traces where the answer leads.
func (s *Signer) sign(ctx context.Context, req *Request, ref issuer.Ref, snapshot *issuer.Snapshot) (*Chain, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.TimeoutOrDefault(), ErrTimeout)
	defer cancel()
	s.signing.Add(1)
	defer s.signing.Add(-1)

	pause := 50 * time.Millisecond
	lifetime := s.clamp(req.Lifetime, ref, time.Now())
	// Attempts are numbered for each issuer, so that a retry meets them; all together they are bounded.
	for attempt, all := 1, 1; ; attempt, all = attempt+1, all+1 {
		chain, err := s.attempt(ctx, req, ref, snapshot, attempt, lifetime)
		s.report(ref, req, err)
		again, ok := errors.AsType[*anotherAttempt](err)
		if !ok || all == maxAttempts {
			return chain, err
		}
		s.metrics.attempts.WithLabelValues(again.cause).Inc()
		s.log.Info("trying again with another certificate request", "names", req.Names.String(),
			"attempt", attempt, "cause", again.cause, "err", again.err)
		if outlives, ok := errors.AsType[*outlivesError](err); ok {
			lifetime = s.shorten(req.Lifetime, outlives.issuer, time.Now())
		}
		if !again.met {
			if err := sleep(ctx, pause); err != nil {
				return nil, err
			}
			pause = min(4*pause, 3*time.Second)
		}
		// This attempt has ended for certain, so the next one may ask the issuer that is in force by now.
		if current := s.issuers.Current(); snapshot != nil && !current.Anchors.Empty() && req.issuer(current) != ref {
			ref, snapshot, attempt = req.issuer(current), current, 0
			lifetime = s.clamp(req.Lifetime, ref, time.Now())
		}
	}
}

// report tells what an attempt has shown of the issuer itself. Denials and what the API server does are not its
// failures; what it answered is told where the answer is read.
func (s *Signer) report(ref issuer.Ref, req *Request, err error) {
	again, repeated := errors.AsType[*anotherAttempt](err)
	switch {
	case errors.Is(err, errUnanswered), errors.Is(err, ErrFailed) && errors.Is(err, errByIssuer),
		repeated && errors.Is(again.err, errByIssuer):
		s.health.Failed(ref, req.Names.String(), err, time.Now())
	}
}

// errByIssuer says that it was the issuer that failed a request; errUnanswered that it didn't answer in time.
var (
	errByIssuer   = errors.New("the issuer failed it")
	errUnanswered = errors.New("no answer")
)

// anotherAttempt wraps an error after which the next attempt number may succeed, for a cause that can
// be named.
type anotherAttempt struct {
	cause string
	met   bool // by an earlier call, so that there is nothing to wait for
	err   error
}

func (e *anotherAttempt) Error() string { return e.err.Error() }
func (e *anotherAttempt) Unwrap() error { return e.err }

// Causes of another attempt, besides those that transientCause names.
const (
	causeDeleted  = "deleted"
	causeStale    = "stale"
	causeOutlives = "outlives_issuer"
)

// attempt makes one CertificateRequest, or meets the one that is there, and waits for its end.
func (s *Signer) attempt(ctx context.Context, req *Request, ref issuer.Ref, snapshot *issuer.Snapshot, attempt int, lifetime time.Duration) (*Chain, error) {
	want := req.certificateRequest(s.cluster.Namespace, ref, attempt, lifetime)
	for name, value := range s.cfg.Annotations { // none of them is ours
		metav1.SetMetaDataAnnotation(&want.ObjectMeta, name, value)
	}
	if s.cluster.Replica != "" {
		metav1.SetMetaDataAnnotation(&want.ObjectMeta, ReplicaAnnotation, s.cluster.Replica)
	}
	defer s.live.hold(want.Name)()

	began := time.Now()
	cr, met, err := s.create(ctx, want, req.Lifetime)
	s.metrics.observe("create", began)
	if err != nil {
		return nil, err
	}

	began = time.Now()
	final, err := s.live.wait(ctx, cr)
	s.metrics.observe("wait", began)
	switch {
	case errors.Is(err, errDeleted):
		return nil, &anotherAttempt{causeDeleted, false, fmt.Errorf("%w: CertificateRequest %s: %w", ErrNotReady, cr.Name, err)}
	case errors.Is(err, ErrTimeout) && s.live.unapproved(cr.UID):
		return nil, fmt.Errorf("wait for CertificateRequest %s: %w: %w, and no approver has decided on it", cr.Name, errUnanswered, err)
	case errors.Is(err, ErrTimeout):
		return nil, fmt.Errorf("wait for CertificateRequest %s: %w: %w", cr.Name, errUnanswered, err)
	case err != nil:
		return nil, fmt.Errorf("wait for CertificateRequest %s: %w", cr.Name, err)
	}

	began = time.Now()
	defer func() { s.metrics.observe("verify", began) }()
	switch p, _, why := outcome(final); p {
	case denied:
		return nil, fmt.Errorf("%w: CertificateRequest %s: %s", ErrDenied, cr.Name, why)
	case failed:
		if cause := transientCause(why); cause != "" {
			return nil, &anotherAttempt{cause, met, fmt.Errorf("%w: %w: CertificateRequest %s: %s", ErrNotReady, errByIssuer, cr.Name, why)}
		}
		return nil, fmt.Errorf("%w: %w: CertificateRequest %s: %s", ErrFailed, errByIssuer, cr.Name, why)
	}
	if snapshot == nil {
		return s.trace(req, ref, final)
	}
	return s.accept(req, ref, snapshot, final, met)
}

// accept verifies what a CertificateRequest was answered with.
func (s *Signer) accept(req *Request, ref issuer.Ref, snapshot *issuer.Snapshot, final *cmapi.CertificateRequest, met bool) (*Chain, error) {
	now := time.Now()
	chain, err := verifyChain(final.Status.Certificate, req, snapshot.Trusted, now)
	if errors.As(err, new(x509.UnknownAuthorityError)) {
		// It may lead to an anchor that not everybody knows yet, or to a root that nobody has vouched for.
		if other, traceErr := traceChain(final, req, snapshot.Anchors, now); traceErr == nil {
			s.health.LedTo(ref, other.Anchor)
			if snapshot.Anchors.Contains(other.Anchor) && snapshot.Rollover != nil {
				return nil, fmt.Errorf("%w: CertificateRequest %s: issuer %s is held back: %s", ErrNotReady, final.Name, ref, snapshot.Rollover.Held(other.Anchor, now))
			}
		}
	}
	if outlives, ok := errors.AsType[*outlivesError](err); ok {
		s.issuerEnds.Store(&issuerEnd{ref: ref, ends: outlives.issuer})
		err = fmt.Errorf("%w: CertificateRequest %s: %w", ErrUntrusted, final.Name, err)
		if s.shorten(req.Lifetime, outlives.issuer, now) == req.Lifetime {
			return nil, err
		}
		return nil, &anotherAttempt{causeOutlives, met, err}
	}
	if met && stale(final, now) {
		return nil, &anotherAttempt{causeStale, met, fmt.Errorf("%w: CertificateRequest %s was answered before", ErrNotReady, final.Name)}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: CertificateRequest %s: %w", ErrUntrusted, final.Name, err)
	}
	s.issuerEnds.Store(&issuerEnd{ref: ref, ends: chain.issuerEnds()})
	s.health.LedTo(ref, chain.Anchor)
	chain.Anchors = snapshot.Anchors
	chain.Issuer = ref
	chain.Request = RequestRef{Name: final.Name, UID: final.UID}
	return chain, nil
}

// trace finds the anchor that an answer leads to.
func (s *Signer) trace(req *Request, ref issuer.Ref, final *cmapi.CertificateRequest) (*Chain, error) {
	now := time.Now()
	chain, err := traceChain(final, req, s.issuers.Current().Anchors, now)
	if outlives, ok := errors.AsType[*outlivesError](err); ok && s.shorten(req.Lifetime, outlives.issuer, now) != req.Lifetime {
		return nil, &anotherAttempt{causeOutlives, true, fmt.Errorf("%w: CertificateRequest %s: %w", ErrUntrusted, final.Name, err)}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: CertificateRequest %s: %w", ErrUntrusted, final.Name, err)
	}
	s.health.LedTo(ref, chain.Anchor)
	chain.Issuer, chain.Request = ref, RequestRef{Name: final.Name, UID: final.UID}
	return chain, nil
}

// clamp shortens a lifetime to what the issuer itself has left, as far as that is known (R38).
func (s *Signer) clamp(lifetime time.Duration, ref issuer.Ref, now time.Time) time.Duration {
	known := s.issuerEnds.Load()
	if known == nil || known.ref != ref {
		return lifetime
	}
	return s.shorten(lifetime, known.ends, now)
}

// shorten is the lifetime for a leaf that must not live past ends.
func (s *Signer) shorten(lifetime time.Duration, ends, now time.Time) time.Duration {
	left := ends.Sub(now)
	// The issuer adds the lifetime to the moment at which it signs, which may be a while from now.
	left = (left - min(left/8, s.cfg.TimeoutOrDefault())).Truncate(time.Second)
	if left >= lifetime || left < time.Second {
		// Nothing is left: the issuer may have been renewed since, so ask and let the answer decide.
		return lifetime
	}
	return left
}

// create makes want, or finds the object that an earlier try made, which met says. An API server that
// doesn't answer is asked again for a while: the name makes that safe.
func (s *Signer) create(ctx context.Context, want *cmapi.CertificateRequest, longest time.Duration) (cr *cmapi.CertificateRequest, met bool, err error) {
	began, pause := time.Now(), 50*time.Millisecond
	for {
		cr := want.DeepCopy()
		err := s.try(ctx, cr)
		if err == nil {
			return cr, false, nil
		}
		err = fmt.Errorf("create CertificateRequest %s/%s: %w", want.Namespace, want.Name, err)
		if apierrors.IsAlreadyExists(err) {
			if cr, err = s.meet(ctx, want, longest); err == nil {
				return cr, true, nil
			}
			if _, ok := errors.AsType[*anotherAttempt](err); ok || errors.Is(err, ErrFailed) {
				return nil, false, err
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, false, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case refused(err):
			return nil, false, fmt.Errorf("%w: %w", ErrFailed, err)
		case time.Since(began) > maxUnreachable:
			return nil, false, fmt.Errorf("%w: %w", ErrNotReady, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, false, err
		}
		pause = min(2*pause, time.Second)
	}
}

// try makes cr, within the time that a try may take.
func (s *Signer) try(ctx context.Context, cr *cmapi.CertificateRequest) error {
	ctx, cancel := context.WithTimeout(ctx, maxUnreachable)
	defer cancel()
	return s.cluster.Client.Create(ctx, cr)
}

// meet reads the object that has the name of want and decides whether it is ours to use.
func (s *Signer) meet(ctx context.Context, want *cmapi.CertificateRequest, longest time.Duration) (*cmapi.CertificateRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, maxUnreachable)
	defer cancel()
	var found cmapi.CertificateRequest
	if err := s.cluster.Reader.Get(ctx, client.ObjectKeyFromObject(want), &found); err != nil {
		return nil, fmt.Errorf("get CertificateRequest %s/%s: %w", want.Namespace, want.Name, err)
	}
	if why := differs(&found, want, s.cluster.Username, longest); why != "" {
		return nil, fmt.Errorf("%w: CertificateRequest %s/%s exists and is not ours: %s", ErrFailed, want.Namespace, want.Name, why)
	}
	if found.DeletionTimestamp != nil {
		return nil, &anotherAttempt{causeDeleted, true, fmt.Errorf("%w: CertificateRequest %s is being deleted", ErrNotReady, want.Name)}
	}
	return &found, nil
}

// refused says that the API server decided against the object, so that the same one won't pass later.
func refused(err error) bool {
	return forbiddenByAdmission(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) ||
		apierrors.IsRequestEntityTooLargeError(err) || apierrors.IsMethodNotSupported(err)
}

// forbiddenByAdmission tells the 403 of admission, which names the object, from that of the authorizer,
// which doesn't, and which is no decision about us: right after its start the API server's RBAC denies
// everything. A ResourceQuota has room again when older requests are swept.
func forbiddenByAdmission(err error) bool {
	status, ok := errors.AsType[*apierrors.StatusError](err)
	return ok && apierrors.IsForbidden(err) && status.ErrStatus.Details != nil && status.ErrStatus.Details.Name != "" &&
		!strings.Contains(err.Error(), "exceeded quota")
}

// stale says that a finished request is too old to answer a repeat: its leaf has lived a tenth since it
// was issued, which is later than NotBefore where the issuer sets that back.
func stale(final *cmapi.CertificateRequest, now time.Time) bool {
	certs, err := ParseChain(final.Status.Certificate)
	if err != nil {
		return false
	}
	leaf := certs[0]
	_, issuedAt, _ := outcome(final)
	if issuedAt.Before(leaf.NotBefore) {
		issuedAt = leaf.NotBefore
	}
	return now.Sub(issuedAt) > leaf.NotAfter.Sub(leaf.NotBefore)/reuseFraction
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
