package e2e

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

func TestR50_SurplusIsShed(t *testing.T) {
	t.Parallel()
	h := startHand(t, map[string]any{
		"signer.timeout": "110s", "ca.requestTimeout": "120s",
		"ca.admission.inFlight": 2, "ca.admission.inFlightPerCaller": 1, "ca.admission.queueTime": "500ms",
	})
	c := h.dial(t)
	first, second, third := h.caller(t), h.caller(t), h.caller(t)

	held := first.ask(t)
	firstDone := later(t.Context(), c, held)
	h.request(t, held.CSR)
	// The caller has its share, though a slot is free.
	surplus := first.ask(t)
	refused(t, c, surplus, codes.ResourceExhausted)
	// One in another namespace gets that slot at once.
	abandoned := second.ask(t)
	leaving, leave := context.WithCancel(t.Context())
	defer leave()
	secondDone := later(leaving, c, abandoned)
	h.request(t, abandoned.CSR)
	// Now none is free, not even when its caller leaves: the issuer is at work on it.
	refused(t, c, third.ask(t), codes.ResourceExhausted)
	leave()
	requireCode(t, await(t, secondDone), codes.Canceled)
	refused(t, c, third.ask(t), codes.ResourceExhausted)
	assert.Len(t, h.requests(t), 2, "what was shed made no CertificateRequest")

	h.answer(t, abandoned.CSR, nil)
	patiently.Holds(t, func() bool {
		return h.metric(t, "queue_slots_held", map[string]string{"queue": "sign"}) == 1
	}, "the slot of an abandoned request isn't free when it has ended")
	last := third.ask(t)
	lastDone := later(t.Context(), c, last)
	h.answer(t, last.CSR, nil)
	require.NoError(t, await(t, lastDone).err)
	h.answer(t, held.CSR, nil)
	require.NoError(t, await(t, firstDone).err)
	assert.Equal(t, 3.0, h.metric(t, "requests_total", map[string]string{"reason": "overloaded", "code": codes.ResourceExhausted.String()}))
}

func TestR50_NamespacesTakeTurns(t *testing.T) {
	t.Parallel()
	h := startHand(t, map[string]any{
		"signer.timeout": "110s", "ca.requestTimeout": "120s",
		"ca.admission.inFlight": 1, "ca.admission.queueTime": "60s",
	})
	c := h.dial(t)
	waiting := func(n float64) {
		t.Helper()
		patiently.Holds(t, func() bool { return h.metric(t, "queue_waiting", map[string]string{"queue": "sign"}) == n }, "%v don't wait", n)
	}
	// A herd of two callers of one namespace, in front of one caller of another.
	herd := h.caller(t)
	herdToo := h.callerIn(t, herd.ns, "api")
	held := herd.ask(t)
	var all []<-chan outcome
	ask := func(ask meshclient.Ask) { all = append(all, later(t.Context(), c, ask)) }
	ask(held)
	h.request(t, held.CSR)
	for n := range 4 {
		ask(herd.ask(t))
		waiting(float64(2*n + 1))
		ask(herdToo.ask(t))
		waiting(float64(2*n + 2))
	}
	lonely := h.caller(t)
	ask(lonely.ask(t))
	waiting(9)

	// Answer one after the other, and see who comes.
	var order []string
	seen := make(map[string]bool)
	for range all {
		var next *cmapi.CertificateRequest
		patiently.Holds(t, func() bool {
			for _, cr := range h.requests(t) {
				if !seen[cr.Name] {
					next = &cr
					return true
				}
			}
			return false
		}, "nobody comes after %v", order)
		seen[next.Name] = true
		order = append(order, next.Annotations["signet.dev/caller"])
		require.NoError(t, h.issue(t.Context(), next, nil))
	}
	for _, done := range all {
		require.NoError(t, await(t, done).err)
	}
	before := func(name string) int {
		for n, who := range order {
			if who == name {
				return n
			}
		}
		return len(order)
	}
	assert.LessOrEqual(t, before(lonely.ns+"/web"), 2, "the herd went first: %v", order)
	assert.LessOrEqual(t, before(herdToo.ns+"/api"), 3, "one of the herd went first: %v", order)
}

func TestR50_BudgetsPerMinute(t *testing.T) {
	s := common(t).peer(t, map[string]any{
		"ca.admission.perCallerPerMinute": 2, "ca.admission.perNamespacePerMinute": 3,
	}, nil)
	c := s.dial(t)
	one := s.caller(t)
	two := s.callerIn(t, one.ns, "two")
	refusals := 0
	// spend asks until there is nothing left, and says how many certificates there were, and what was said then.
	spend := func(caller *caller) (n int, said string) {
		patiently.Holds(t, func() bool {
			ask := caller.ask(t)
			_, err := create(t, c, ask)
			if err == nil {
				n++
				return false
			}
			requireCode(t, outcome{err: err}, codes.ResourceExhausted)
			assert.Empty(t, s.requestsFor(t, ask.CSR))
			refusals++
			said = status.Convert(err).Message()
			return true
		}, "the budget of %s is never used up", caller.id)
		return n, said
	}
	// Budgets fill up again all the time, so that on a slow machine there is more than at first.
	began := time.Now()
	budget := func(perMinute int) int { return perMinute + int(time.Since(began).Minutes()*float64(perMinute)) }
	ofOne, said := spend(one)
	assert.Contains(t, said, "last minute")
	assert.GreaterOrEqual(t, ofOne, 2)
	assert.LessOrEqual(t, ofOne, budget(2))
	ofTwo, _ := spend(two) // another caller of the namespace, which uses up the namespace's
	assert.GreaterOrEqual(t, ofOne+ofTwo, 3)
	assert.LessOrEqual(t, ofOne+ofTwo, budget(3))
	issued(t, c, s.caller(t).ask(t)) // and another namespace has its own
	assert.InDelta(t, refusals, s.metric(t, "requests_total", map[string]string{"reason": "budget"}), 0)
	// What is refused for another reason doesn't count.
	bad := s.caller(t)
	for range 4 {
		ask := bad.ask(t)
		ask.ValiditySeconds = 1
		refused(t, c, ask, codes.InvalidArgument)
	}
	issued(t, c, bad.ask(t))
}

// TestR46_R47_CodesFitTheNextMove is one refusal of each class, by the code that decides whether
// Istio's agent tries again: of those below, only with DeadlineExceeded. ResourceExhausted is shown
// above, Unavailable by the tests of faults.
func TestR46_R47_CodesFitTheNextMove(t *testing.T) {
	t.Parallel()
	h := slow(t)
	caller := h.caller(t)
	c := h.dial(t)
	byHand := func(change func(*cmapi.CertificateRequestStatus)) func(*testing.T, meshclient.Ask) outcome {
		return func(t *testing.T, ask meshclient.Ask) outcome {
			done := later(t.Context(), c, ask)
			require.NoError(t, h.settle(t.Context(), h.request(t, ask.CSR), change))
			return await(t, done)
		}
	}
	asked := func(change func(*meshclient.Ask)) func(*testing.T, meshclient.Ask) outcome {
		return func(t *testing.T, ask meshclient.Ask) outcome {
			change(&ask)
			return await(t, later(t.Context(), c, ask))
		}
	}
	for _, test := range []struct {
		name     string
		how      func(*testing.T, meshclient.Ask) outcome
		code     codes.Code
		requests int // CertificateRequests that it makes
	}{
		{"no token", asked(func(a *meshclient.Ask) { a.Token = "" }), codes.Unauthenticated, 0},
		{"bad token", asked(func(a *meshclient.Ask) { a.Token = "a.b.c" }), codes.Unauthenticated, 0},
		{"bad CSR", asked(func(a *meshclient.Ask) { a.CSR = strings.Replace(a.CSR, "M", "N", 1) }), codes.InvalidArgument, 0},
		{"short lifetime", asked(func(a *meshclient.Ask) { a.ValiditySeconds = 1 }), codes.InvalidArgument, 0},
		{"somebody else's identity", asked(func(a *meshclient.Ask) { a.Metadata = meshclient.ZtunnelMetadata("spiffe://cluster.local/ns/a/sa/b") }), codes.PermissionDenied, 0},
		{"unknown signer", asked(func(a *meshclient.Ask) { a.Metadata = meshclient.SidecarMetadata("x") }), codes.PermissionDenied, 0},
		{"denied", byHand(func(status *cmapi.CertificateRequestStatus) {
			status.Conditions = nil // by the approver, if it was quicker
			setCondition(status, cmapi.CertificateRequestConditionDenied, "Policy")
		}), codes.FailedPrecondition, 1},
		{"failed", byHand(func(status *cmapi.CertificateRequestStatus) {
			setCondition(status, cmapi.CertificateRequestConditionReady, cmapi.CertificateRequestReasonFailed)
		}), codes.FailedPrecondition, 1},
		{"invalid", byHand(func(status *cmapi.CertificateRequestStatus) {
			setCondition(status, cmapi.CertificateRequestConditionInvalidRequest, "Invalid")
		}), codes.FailedPrecondition, 1},
		{"answered with garbage", byHand(func(status *cmapi.CertificateRequestStatus) {
			status.Certificate = []byte("garbage")
			setCondition(status, cmapi.CertificateRequestConditionReady, cmapi.CertificateRequestReasonIssued)
		}), codes.FailedPrecondition, 1},
		{"caller's own deadline", func(t *testing.T, ask meshclient.Ask) outcome {
			var o outcome
			patiently.Holds(t, func() bool { // on a busy machine the time may be up before there is a CertificateRequest
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				o = await(t, later(ctx, c, ask))
				return status.Code(o.err) != codes.DeadlineExceeded || len(h.requestsFor(t, ask.CSR)) > 0
			}, "nothing is made of the request")
			return o
		}, codes.DeadlineExceeded, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			ask := caller.ask(t)
			requireCode(t, test.how(t, ask), test.code)
			assert.Len(t, h.requestsFor(t, ask.CSR), test.requests)
		})
	}
}

// TestSilentCallers: who opens streams and sends no message takes nobody else's turn.
func TestSilentCallers(t *testing.T) {
	t.Parallel()
	s := common(t).peer(t, nil, nil)
	honest := s.caller(t)
	c := s.dial(t)
	issued(t, c, honest.ask(t)) // it is connected, and its token reviewed

	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+honest.token))
	var silent sync.WaitGroup
	defer silent.Wait()
	defer cancel()
	for address := range 9 {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 2, byte(address+1))}}
		conn, err := grpc.NewClient("passthrough:///"+s.CSR(),
			grpc.WithContextDialer(func(ctx context.Context, to string) (net.Conn, error) { return from.DialContext(ctx, "tcp", to) }),
			grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: s.roots(t), ServerName: replica.ServerName})))
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, conn.Close()) })
		for range 16 { // as many as one address may have there
			silent.Go(func() {
				for ctx.Err() == nil { // one after the other
					if stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, createMethod); err == nil {
						_ = stream.RecvMsg(new([]byte))
					}
				}
			})
		}
	}
	patiently.Holds(t, func() bool { return s.metric(t, "queue_slots_held", map[string]string{"queue": "receive"}) >= 128 }, "all places are taken")
	issued(t, c, honest.ask(t))
}
