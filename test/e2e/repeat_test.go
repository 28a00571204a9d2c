package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

func TestRepeat_SameRequestSameCertificate(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	ask := caller.ask(t)
	first := issued(t, s.dial(t), ask)
	for range 3 {
		assert.Equal(t, first.Raw, issued(t, s.dial(t), ask).Raw)
	}
	ask.Token = caller.newToken(t) // nor does it matter which of its tokens the caller shows
	assert.Equal(t, first.Raw, issued(t, s.dial(t), ask).Raw)
	ask.ValiditySeconds = 7 * 86400 // which is granted as a day, too
	assert.Equal(t, first.Raw, issued(t, s.dial(t), ask).Raw)
	assert.Len(t, s.requestsFor(t, ask.CSR), 1)

	ask.ValiditySeconds = 3600
	other := issued(t, s.dial(t), ask)
	assert.NotEqual(t, first.SerialNumber, other.SerialNumber)
	assert.Len(t, s.requestsFor(t, ask.CSR), 2)
}

func TestRepeat_OnAnotherReplica(t *testing.T) {
	s := common(t)
	other := s.peer(t, nil, nil)
	caller := s.caller(t)
	ask := caller.ask(t)
	first := issued(t, s.dial(t), ask)
	assert.Equal(t, first.Raw, issued(t, other.dial(t), ask).Raw)
	assert.Len(t, s.requestsFor(t, ask.CSR), 1)
}

func TestRepeat_AtOnce(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	ask := caller.ask(t)
	var all []<-chan outcome
	for range 3 {
		c := s.dial(t)
		for range 4 {
			all = append(all, later(t.Context(), c, ask))
		}
	}
	serials := make(map[string]bool)
	for _, done := range all {
		o := await(t, done)
		require.NoError(t, o.err)
		serials[leafOf(t, o.chain).SerialNumber.String()] = true
	}
	assert.Len(t, serials, 1)
	assert.Len(t, s.requestsFor(t, ask.CSR), 1)
}

// Of two who wait for the same request, the one who made it leaves: the other one, and whoever comes
// again, is answered all the same.
func TestRepeat_WhoLeavesCancelsNobody(t *testing.T) {
	t.Parallel()
	h := slow(t)
	caller := h.caller(t)
	ask := caller.ask(t)
	leaving, leave := context.WithCancel(t.Context())
	defer leave()
	first := later(leaving, h.dial(t), ask)
	h.request(t, ask.CSR) // which the first one made
	counted := map[string]string{"step": "create"}
	before := h.metric(t, "sign_step_duration_seconds", counted)
	second := later(t.Context(), h.dial(t), ask)
	patiently.Holds(t, func() bool { return h.metric(t, "sign_step_duration_seconds", counted) > before }, "the second one doesn't ask")
	leave()
	requireCode(t, await(t, first), codes.Canceled)

	deadline, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	third := await(t, later(deadline, h.dial(t), ask)) // and one whose patience ends
	requireCode(t, third, codes.DeadlineExceeded)

	h.answer(t, ask.CSR, nil)
	o := await(t, second)
	require.NoError(t, o.err)
	again := issued(t, h.dial(t), ask)
	assert.Equal(t, leafOf(t, o.chain).Raw, again.Raw)
	assert.Len(t, h.requestsFor(t, ask.CSR), 1)
}

// A certificate answers a repeat only while it is young: a tenth of its life.
func TestRepeat_NotWithAnOldCertificate(t *testing.T) {
	t.Parallel()
	s := variant(t) // the floor is 30s
	caller := s.caller(t)
	c := s.dial(t)
	ask := caller.ask(t)
	ask.ValiditySeconds = 60
	first := issued(t, c, ask)
	time.Sleep(time.Until(first.NotBefore.Add(7 * time.Second)))
	key, csr, err := meshclient.ZtunnelCSR(caller.id)
	require.NoError(t, err)
	chain, err := create(t, c, ask)
	require.NoError(t, err)
	second := leafOf(t, chain)
	assert.NotEqual(t, first.SerialNumber, second.SerialNumber)
	assert.True(t, second.NotBefore.After(first.NotBefore))
	assert.Len(t, s.requestsFor(t, ask.CSR), 2)

	ask.CSR = csr
	chain, err = create(t, c, ask)
	require.NoError(t, err)
	assert.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), caller.id, time.Now()))
}

func TestR12_ServerBoundsTheRequest(t *testing.T) {
	t.Parallel()
	h := startHand(t, map[string]any{"signer.timeout": "3s", "ca.requestTimeout": "120s"})
	caller := h.caller(t)
	c := h.dial(t)
	ask := caller.ask(t)
	patiently.Holds(t, func() bool { // on a busy machine the time may be up before there is a CertificateRequest
		began := time.Now()
		o := await(t, later(t.Context(), c, ask)) // like Istio's clients, without a deadline
		requireCode(t, o, codes.DeadlineExceeded)
		assert.GreaterOrEqual(t, time.Since(began), 3*time.Second)
		return len(h.requestsFor(t, ask.CSR)) == 1
	}, "nothing is made of the request")
	// The retry meets the same request, which is answered by then.
	retried := later(t.Context(), c, ask)
	h.answer(t, ask.CSR, nil)
	o := await(t, retried)
	patiently.Holds(t, func() bool {
		if status.Code(o.err) == codes.DeadlineExceeded { // a busy machine was slower than three seconds
			o = await(t, later(t.Context(), c, ask))
		}
		return status.Code(o.err) != codes.DeadlineExceeded
	}, "the retry is never answered")
	require.NoError(t, o.err)
	assert.Len(t, h.requestsFor(t, ask.CSR), 1)
}

// A request is bounded from its first header: also one whose message never comes.
func TestR12_ClientThatSendsNothing(t *testing.T) {
	t.Parallel()
	h := startHand(t, map[string]any{"signer.timeout": "3s", "ca.requestTimeout": "3s"})
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+h.caller(t).token), patiently.Timeout)
	defer cancel()
	stream, err := h.conn(t).NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, createMethod)
	require.NoError(t, err)
	var answer []byte
	err = stream.RecvMsg(&answer)
	require.NoError(t, ctx.Err(), "the server waits for ever")
	requireCode(t, outcome{err: err}, codes.DeadlineExceeded)
}
