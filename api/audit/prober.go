package audit

import (
	"context"
	"time"

	"github.com/signet-ca/signet/api"
)

// prober tells of each probe that was made.
type prober struct {
	api.Prober
	stream *Stream
}

// Prober is p, with an event for each probe that somebody asks it for. One that was refused, or that failed, is told
// of as a read only.
func (s *Stream) Prober(p api.Prober) api.Prober { return prober{p, s} }

// Probe implements [api.Prober].
func (p prober) Probe(ctx context.Context, caller string, q api.ProbeRequest, visible api.Visible) (*api.Probe, error) {
	begin := time.Now()
	found, err := p.Prober.Probe(ctx, caller, q, visible)
	if err == nil {
		data := ProbeOf(found)
		data.User, data.DurationSeconds = caller, time.Since(begin).Seconds()
		p.stream.Probed(data)
	}
	return found, err
}

// ProbeOf is what the stream says of a probe, but for who asked for it and how long it took.
func ProbeOf(p *api.Probe) Probe {
	data := Probe{Time: p.Time, Namespace: p.Namespace, Service: p.Service, Verdict: string(p.Verdict)}
	for _, r := range p.Results {
		result := ProbeResult{Pod: r.Pod, Target: r.Address, Verdict: string(r.Verdict)}
		if len(r.Chain) > 0 {
			result.SHA256 = r.Chain[0].SHA256
		}
		data.Results = append(data.Results, result)
	}
	return data
}
