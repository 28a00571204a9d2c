// Package ca is the endpoint that the mesh asks for certificates: Istio's own gRPC protocol
// (istio.v1.auth.IstioCertificateService, security/v1alpha1/ca.proto of istio.io/api).
//
// It promises: nobody gets an identity that isn't theirs; every request ends within a bounded time,
// with a certificate or with a refusal whose gRPC code fits the caller's next move; what is refused
// costs little and changes nothing.
//
// Its words: a [Caller] is who asks, as proven by one of the [Authenticators]; an identity is the SPIFFE ID that a
// certificate names; a [Grant] is what a caller may be given; a refusal is one of a closed set of reasons; a slot is the
// right to be with the issuer.
package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	istioca "istio.io/api/security/v1alpha1"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/signer"
)

// Signer turns an authorised request into a verified chain; see [signer.Signer.Sign].
type Signer interface {
	Sign(ctx context.Context, req signer.Request) (*signer.Chain, error)
}

// Issuance is one certificate that was issued.
type Issuance struct {
	// Caller is who asked for it, from Address, and Grant what it was given.
	Caller  *Caller
	Grant   Grant
	Address string
	// Requested is the lifetime that was asked for, 0 where the caller left it to us.
	Requested time.Duration
	// Chain is what was issued.
	Chain *signer.Chain
}

// Refusal is one request that was refused.
type Refusal struct {
	// Reason is one of a closed set of words, and Code what the caller got.
	Reason string
	Code   codes.Code
	// Caller is who asked, nil where that was never proven. Address is where it asked from.
	Caller  *Caller
	Address string
}

// Recorder takes note of each certificate that was issued, before it leaves, and of each refusal.
type Recorder interface {
	// Record is on the way of every request, so it must be quick. An error keeps the certificate from leaving; the
	// request may be tried again unless it matches [signer.ErrUntrusted].
	Record(ctx context.Context, issuance Issuance) error
	// Refused must not wait for anything.
	Refused(refusal Refusal)
}

// Server answers CreateCertificate. Safe for concurrent use.
type Server struct {
	cfg        Config
	authn      *authentication
	junk       *junk
	nodes      NodeAuthoriser
	namespaces Namespaces
	signer     Signer
	recorder   Recorder
	policy     csrPolicy
	receiving  *queue // of requests whose message is being received
	admission  *admission
	log        *slog.Logger
	refusals   *rate.Limiter // of log lines about refusals
	muted      atomic.Int64  // refusals without a line of their own since the last one
	metrics    *metrics
	receivers  sync.WaitGroup // that wait for messages
	open       atomic.Int64   // requests that have arrived and are not answered yet
	listener   atomic.Pointer[net.Addr]
	stopping   atomic.Bool
}

// Parts are what a [Server] works with.
type Parts struct {
	// Authenticators prove who calls.
	Authenticators Authenticators
	// Nodes says who may ask for the pods beside it; nil where nobody may.
	Nodes NodeAuthoriser
	// Namespaces are needed where a rule goes by their labels.
	Namespaces Namespaces
	Signer     Signer
	Recorder   Recorder
}

// New makes a Server.
func New(cfg Config, parts Parts, log *slog.Logger, reg prometheus.Registerer) *Server {
	s := &Server{
		cfg:        cfg,
		authn:      newAuthentication(parts.Authenticators, reg),
		junk:       newJunk(reg),
		nodes:      parts.Nodes,
		namespaces: parts.Namespaces,
		signer:     parts.Signer,
		recorder:   parts.Recorder,
		policy:     csrPolicy{keys: cfg.keys(), usages: cfg.Usages},
		receiving:  newQueue(receiving, receivingPerAddress, maxReceiveWaiting),
		admission:  newAdmission(cfg.Admission),
		log:        log,
		refusals:   rate.NewLimiter(20, 200),
	}
	s.metrics = newMetrics(reg, &s.open)
	watchQueue(reg, "receive", s.receiving)
	watchQueue(reg, "sign", s.admission.queue)
	watchQueue(reg, "node", s.admission.nodes)
	return s
}

// serviceDesc describes IstioCertificateService with CreateCertificate as a stream, which is the same
// on the wire. A unary handler would see a request only after gRPC has read, and perhaps refused, the
// message; this one looks at the token first and reads the message itself.
func (s *Server) serviceDesc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "istio.v1.auth.IstioCertificateService",
		Streams:     []grpc.StreamDesc{{StreamName: "CreateCertificate", Handler: s.createCertificate, ClientStreams: true}},
		Metadata:    "security/v1alpha1/ca.proto",
	}
}

// exchange is one request on its way: what is known of it so far, for its one line in the log.
type exchange struct {
	began   time.Time
	address string
	agent   string // the client's user-agent
	tried   string // what became of the caller's credentials
	caller  *Caller
	grant   Grant
	chain   *signer.Chain

	requested, lifetime time.Duration // as asked for, and as granted
	unrecorded          bool          // there is a chain, and the recorder has refused it
}

// createCertificate answers one request, and counts and logs its outcome.
func (s *Server) createCertificate(_ any, stream grpc.ServerStream) (err error) {
	x := exchange{began: time.Now()}
	open := s.open.Add(1)
	defer s.open.Add(-1)
	ctx, cancel := context.WithDeadline(stream.Context(), x.began.Add(s.cfg.requestTimeout()))
	defer cancel()

	defer func() {
		if cause := recover(); cause != nil {
			s.log.Error("panic while a request was answered", "cause", cause, "stack", string(debug.Stack()))
			err = kindInternal.because("panic: %v", cause)
		}
		err = s.finish(&x, err)
	}()
	if open > int64(s.admission.cfg.QueueLength+s.admission.cfg.InFlight) {
		return kindOverloaded.because("%d requests are open", open)
	}
	response, err := s.handle(ctx, stream, &x)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(response); err != nil {
		return kindCanceled.because("send the answer: %w", err)
	}
	return nil
}

// handle is the way of one request; each step refuses or goes on.
func (s *Server) handle(ctx context.Context, stream grpc.ServerStream, x *exchange) (*istioca.IstioCertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	x.agent = shorten(strings.Join(md.Get("user-agent"), " "))
	x.address = peerAddress(ctx)

	// 1. What costs nothing: a token of the right shape, a message of bounded size, a CSR that parses.
	proofs := Credentials{Certificates: s.clientCertificates(ctx), Cluster: clusterID(md), Address: x.address}
	token, tokenErr := bearerToken(md)
	if tokenErr != nil && len(proofs.Certificates) == 0 {
		return nil, tokenErr
	}
	proofs.Token = token
	request, err := s.receive(ctx, stream, x.address)
	if err != nil {
		return nil, err
	}
	csr, err := parseCSR(request.GetCsr())
	if err != nil {
		return nil, err
	}

	// 2. Who calls.
	step := time.Now()
	x.caller, x.tried, err = s.authn.authenticate(ctx, proofs, tokenErr)
	s.metrics.observe("authenticate", step)
	if err != nil {
		s.junk.hold(ctx, err)
		return nil, err
	}

	// 3. What the caller may be given, and whether that is what it asks for.
	step = time.Now()
	x.grant, err = s.authorise(ctx, request.GetMetadata(), x.caller)
	s.metrics.observe("authorise", step)
	if err != nil {
		return nil, err
	}
	if x.grant, err = s.named(x.grant, csr); err != nil {
		return nil, err
	}

	// 4 to 7. Whether the CSR may be signed, whose turn it is, sign, record.
	if err := s.issue(ctx, x, csr, request.GetValidityDuration()); err != nil {
		return nil, err
	}

	// 8. Answer: leaf, intermediates, and all anchors as the last element (ca.proto; R39 to R41).
	return &istioca.IstioCertificateResponse{CertChain: append(x.chain.PEM(), x.chain.Anchors.PEM())}, nil
}

// issue turns a CSR into a certificate for what the caller was granted, within the time of the request, and records it.
// The lifetime is asked for in seconds.
func (s *Server) issue(ctx context.Context, x *exchange, csr *x509.CertificateRequest, seconds int64) (err error) {
	// 4. Whether the CSR is one that may be signed, and for how long.
	step := time.Now()
	if err := s.policy.check(csr, x.grant.ID); err != nil {
		return err
	}
	x.requested = asked(seconds)
	if x.lifetime, err = x.grant.Lifetime.grant(seconds); err != nil {
		return err
	}
	s.metrics.observe("check", step)

	// 5. Whether it is the caller's turn.
	step = time.Now()
	release, err := s.admission.admit(ctx, x.caller, x.grant)
	s.metrics.observe("queue", step)
	if err != nil {
		return err
	}
	defer release()

	s.log.Debug("asking for a certificate", s.facts(x)...)

	// 6. Sign. A caller that leaves now doesn't end it: the CertificateRequest exists, others may wait
	// for the same one, and the slot is taken until the issuer is done with it.
	step = time.Now()
	signing, cancel := context.WithDeadline(context.WithoutCancel(ctx), x.began.Add(s.cfg.requestTimeout()))
	defer cancel()
	x.chain, err = s.signer.Sign(signing, signer.Request{
		CSR:         csr,
		Names:       signer.IdentityNames(x.grant.ID),
		Usages:      s.cfg.Usages,
		Lifetime:    x.lifetime,
		MaxLifetime: x.grant.Lifetime.MaxOrDefault(),
		Issuer:      x.grant.Issuer,
		For:         signer.ForWorkload,
		Annotations: s.annotations(x.caller, x.grant, x.address),
	})
	s.metrics.observe("sign", step)
	if err != nil {
		return err
	}

	// 7. Record, also for a caller that has left.
	s.issued(x)
	step = time.Now()
	err = s.recorder.Record(signing, Issuance{Caller: x.caller, Grant: x.grant, Address: x.address, Requested: x.requested, Chain: x.chain})
	s.metrics.observe("record", step)
	x.unrecorded = err != nil
	switch {
	case errors.Is(err, signer.ErrUntrusted):
		return kindUntrusted.because("record the certificate: %w", err)
	case err != nil:
		return kindNotReady.because("record the certificate: %w", err)
	}
	return nil
}

// Annotations of CertificateRequests, which say who asked: the service account as namespace/name, the pod and its UID,
// the node, the IP address of a caller that isn't known to be a pod, "true" where it asked for a pod beside it, the
// service account's UID, since when a caller hasn't shown a token that renews with its certificate (RFC 3339), and the ID
// of the caller's cluster where that isn't our own, empty where it is in none.
const (
	CallerAnnotation       = "signet.dev/caller"
	PodAnnotation          = "signet.dev/pod"
	PodUIDAnnotation       = "signet.dev/pod-uid"
	NodeAnnotation         = "signet.dev/node"
	AddressAnnotation      = "signet.dev/address"
	ImpersonatedAnnotation = "signet.dev/impersonated"
	CallerUIDAnnotation    = "signet.dev/caller-uid"
	ProvenAtAnnotation     = "signet.dev/proven-at"
	ClusterAnnotation      = "signet.dev/cluster"
)

// annotations say for whom a CertificateRequest is, to approvers, to other replicas and to people.
func (s *Server) annotations(caller *Caller, grant Grant, address string) map[string]string {
	a := map[string]string{
		signer.IdentitiesAnnotation: grant.ID.String(),
		CallerAnnotation:            caller.Namespace + "/" + caller.ServiceAccount,
		CallerUIDAnnotation:         caller.ServiceAccountUID,
	}
	if caller.PodName != "" {
		a[PodAnnotation] = caller.PodName
		a[PodUIDAnnotation] = caller.PodUID
	} else {
		a[AddressAnnotation] = address
	}
	if caller.NodeName != "" {
		a[NodeAnnotation] = caller.NodeName
	}
	if grant.Impersonated {
		a[ImpersonatedAnnotation] = "true"
	}
	if !caller.ProvenAt.IsZero() {
		a[ProvenAtAnnotation] = caller.ProvenAt.UTC().Format(time.RFC3339)
	}
	if caller.Cluster != s.cfg.clusterID() {
		a[ClusterAnnotation] = caller.Cluster
	}
	return a
}

// facts are what the log says of a request: for names the identity that was granted where it isn't the caller's own, and
// cluster the caller's where that isn't ours, empty where it is in none or not known.
func (s *Server) facts(x *exchange) []any {
	facts := []any{"address", x.address, "agent", x.agent, "took_seconds", time.Since(x.began).Seconds()}
	if x.tried != "" {
		facts = append(facts, "tried", x.tried)
	}
	if x.caller == nil {
		return facts
	}
	facts = append(facts, "caller", x.caller.ID.String(), "pod", x.caller.PodName, "node", x.caller.NodeName)
	if x.caller.Cluster != s.cfg.clusterID() {
		facts = append(facts, "cluster", x.caller.Cluster)
	}
	if !x.grant.ID.IsZero() && x.grant.ID != x.caller.ID {
		facts = append(facts, "for", x.grant.ID.String())
	}
	return facts
}

// issued counts and logs a certificate, delivered or not: nothing issued goes unseen.
func (s *Server) issued(x *exchange) {
	leaf := x.chain.Leaf
	sum := sha256.Sum256(leaf.Raw)
	s.metrics.lifetime.Observe(x.chain.Lifetime().Seconds())
	s.log.Info("certificate issued", append(s.facts(x), "serial", issuer.Serial(leaf.SerialNumber), "sha256", hex.EncodeToString(sum[:]),
		"not_before", leaf.NotBefore, "not_after", leaf.NotAfter, "lifetime_seconds", x.chain.Lifetime().Seconds(),
		"request", x.chain.Request.Name)...)
}

// finish counts the outcome, logs a refusal, and is what the caller gets.
func (s *Server) finish(x *exchange, err error) error {
	outcome, reason, code := outcomeIssued, "", codes.OK
	var r *refusal
	if err != nil {
		r = refuse(err)
		reason, code = r.reason, r.code
		if x.chain == nil {
			outcome = outcomeRefused
		}
	}
	s.metrics.requests.WithLabelValues(outcome, reason, code.String()).Inc()
	s.metrics.duration.WithLabelValues(outcome).Observe(time.Since(x.began).Seconds())
	if r == nil {
		return nil // never a nil *refusal in an error
	}
	if outcome == outcomeRefused || x.unrecorded {
		s.recorder.Refused(Refusal{Reason: r.reason, Code: r.code, Caller: x.caller, Address: x.address})
	}
	// A flood of junk must not fill the log. What becomes of callers that have
	// proven who they are, and is not their own fault, is never junk.
	if (r.ofTheCaller() || x.caller == nil && r.kind != kindInternal) && !s.refusals.Allow() {
		s.muted.Add(1)
		return r
	}
	level := slog.LevelInfo
	switch r.kind {
	case kindInternal, kindUntrusted:
		level = slog.LevelError
	case kindReviewFailed, kindPodsUnknown, kindFailed, kindNotReady, kindTimeout, kindOverloaded:
		level = slog.LevelWarn
	}
	text := "certificate refused"
	if outcome == outcomeIssued {
		text = "certificate not delivered"
	}
	//nolint:sloglint // the message is one of two constants
	s.log.Log(context.Background(), level, text, append(s.facts(x), "reason", r.reason, "code", r.code.String(),
		"err", cut(r.cause.Error(), maxLogged), "unlogged_before", s.muted.Swap(0))...)
	return r
}

// maxLogged bounds the cause of a refusal in the log, in bytes: it may have names in it that the caller made up.
const maxLogged = 2 << 10

// shorten bounds one thing that a caller says of itself.
func shorten(text string) string { return cut(text, 256) }

// cut is at most the first bytes of a text, and a sign that there was more.
func cut(text string, most int) string {
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}

// clientCertificates are those that the client showed in its TLS handshake, leaf first. Nothing of them is verified.
func (s *Server) clientCertificates(ctx context.Context) []*x509.Certificate {
	if s.authn.Certificate == nil {
		return nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil
	}
	return info.State.PeerCertificates
}

func peerAddress(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	return hostOf(p.Addr)
}

// Ready says whether the listener is open and the server isn't stopping; the text is for people.
func (s *Server) Ready() (string, error) {
	address := s.listener.Load()
	switch {
	case s.stopping.Load():
		return "", errors.New("the server is stopping")
	case address == nil:
		return "", errors.New("the listener is not open yet")
	}
	return (*address).String(), nil
}
