package api

import (
	"context"
	"errors"
	"mime"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// Prober makes probes. Safe for concurrent use.
type Prober interface {
	// Probe asks the pods behind a service, which is in a namespace that the caller may probe. Caller is their name,
	// whose share of the probes is bounded; of records, only those that are visible are told of. The error matches
	// ErrNotFound, ErrBadProbe or ErrTooManyProbes, or is a fault of ours.
	Probe(ctx context.Context, caller string, q ProbeRequest, visible Visible) (*Probe, error)
	// Problems are what the latest scheduled probe of a service makes somebody look at; it answers from memory.
	Problems(namespace, service string) []Problem
}

// Errors of a Prober. What their text says is for the caller.
var (
	// ErrBadProbe says that a request asks for what there is not, such as a port that the service doesn't have.
	ErrBadProbe = errors.New("it can't be probed")
	// ErrTooManyProbes says that asking again later helps.
	ErrTooManyProbes = errors.New("too many probes")
)

// SetProber makes the server answer POST /v1/probes. To be called before Start.
func (s *Server) SetProber(p Prober) { s.prober = p }

type probeInput struct {
	ContentType string `header:"Content-Type" hidden:"true"`
	Body        ProbeRequest
}

// maxProbeRequestBytes bounds the body that asks for a probe.
const maxProbeRequestBytes = 4 << 10

func (s *Server) routeProbes(api huma.API) {
	operation := readOperation("create-probe", "/v1/probes", "Ask the pods behind a service which certificates they really serve.",
		s.rights(verbCreate, resourceProbes)+" It is asked for in the service's namespace. Only addresses of pods are dialed, see docs/probes.md.")
	operation.Method = http.MethodPost
	operation.MaxBodyBytes = maxProbeRequestBytes
	operation.Errors = append(operation.Errors, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusNotImplemented)
	register(api, operation, s.createProbe)
}

func (s *Server) createProbe(ctx context.Context, in *probeInput) (*output[Probe], error) {
	// A page of another origin can't send this type without asking first (Fetch, CORS-safelisted request-header).
	if kind, _, err := mime.ParseMediaType(in.ContentType); err != nil || kind != "application/json" {
		return nil, newFault(http.StatusUnsupportedMediaType, "the body must be of type application/json, and its Content-Type say so")
	}
	c := callOf(ctx)
	visible, err := s.authz.visible(ctx, c.caller, verbCreate, resourceProbes, in.Body.Namespace)
	if err != nil {
		return nil, err
	}
	if s.prober == nil {
		return nil, newFault(http.StatusNotImplemented, "probes are turned off in this Signet's configuration (probes.disabled)")
	}
	found, err := s.prober.Probe(ctx, c.caller.name, in.Body, visible) // it waits for others, so it isn't at work
	switch {
	case errors.Is(err, ErrBadProbe):
		return nil, newFault(http.StatusUnprocessableEntity, err.Error())
	case errors.Is(err, ErrTooManyProbes):
		return nil, newFault(http.StatusTooManyRequests, err.Error())
	case err != nil:
		return nil, fromViews(ctx, err, "service "+in.Body.Namespace+"/"+in.Body.Service)
	}
	return &output[Probe]{found}, nil
}
