package audit

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
)

// answering is a Prober that answers so.
type answering struct {
	probe *api.Probe
	err   error
}

func (a answering) Probe(context.Context, string, api.ProbeRequest, api.Visible) (*api.Probe, error) {
	return a.probe, a.err
}

func (a answering) Problems(string, string) []api.Problem { return []api.Problem{{}} }

// TestProber: who asks for a probe gets what it found, and the stream what it came to.
func TestProber(t *testing.T) {
	r := newRig(t, Config{}, nil)
	found := &api.Probe{Namespace: "shop", Service: "cart", Verdict: api.ProbeAlarm, Results: []api.ProbeResult{{
		Pod: "cart-1", Address: "10.1.4.17:8080", Verdict: api.ProbeAlarm, Chain: []api.ServedCertificate{{SHA256: "leaf"}, {SHA256: "issuer"}},
	}}}
	p := r.Prober(answering{probe: found})
	got, err := p.Probe(t.Context(), "jane", api.ProbeRequest{}, nil)
	require.NoError(t, err)
	assert.Same(t, found, got)
	assert.Len(t, p.Problems("shop", "cart"), 1)
	_, err = r.Prober(answering{err: errors.ErrUnsupported}).Probe(t.Context(), "jane", api.ProbeRequest{}, nil)
	require.ErrorIs(t, err, errors.ErrUnsupported)
	many := &api.Probe{Results: make([]api.ProbeResult, 130)}
	r.Probed(ProbeOf(many))

	b := &batch{}
	r.queue.take(b)
	events := parse(t, string(b.rest()))
	require.Len(t, events, 2)
	assert.Equal(t, "namespaces/shop/services/cart", events[0].Subject)
	told := data[Probe](t, events[0])
	assert.Positive(t, told.DurationSeconds)
	told.DurationSeconds = 0
	assert.Equal(t, Probe{
		User: "jane", Namespace: "shop", Service: "cart", Verdict: "alarm",
		Results: []ProbeResult{{Pod: "cart-1", Target: "10.1.4.17:8080", Verdict: "alarm", SHA256: "leaf"}},
	}, told)
	cut := data[Probe](t, events[1])
	assert.Len(t, cut.Results, 100)
	assert.Equal(t, 30, cut.ResultsOmitted)
}
