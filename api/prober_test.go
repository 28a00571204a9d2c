package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// probes is a Prober that answers what it was asked.
type probes struct {
	err     error
	asked   chan ProbeRequest
	problem []Problem
}

func (p *probes) Probe(_ context.Context, caller string, q ProbeRequest, visible Visible) (*Probe, error) {
	p.asked <- q
	if p.err != nil {
		return nil, p.err
	}
	return &Probe{
		Namespace: q.Namespace, Service: q.Service, Time: time.Unix(1e9, 0).UTC(), Verdict: ProbeAlarm, Pods: 1,
		Results: []ProbeResult{{Pod: q.Pod, Protocol: q.Protocol, Findings: []ProbeFinding{{
			FoundExpired, ProbeAlarm, fmt.Sprint(caller, " ", visible.All(), " ", visible.Namespace("one"), " ", visible.Namespace("two")),
		}}}},
	}, nil
}

func (p *probes) Problems(namespace, service string) []Problem {
	if namespace == "one" {
		return p.problem
	}
	return nil
}

func withProbes(p *probes) func(*Server) {
	p.asked = make(chan ProbeRequest, 10)
	return func(s *Server) { s.SetProber(p) }
}

// post asks for a probe.
func (r *rig) post(t testing.TB, user, contentType, body string) reply {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/v1/probes", strings.NewReader(body))
	require.NoError(t, err)
	if user != "" {
		request.Header.Set("Authorization", "Bearer "+user)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := r.http.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return reply{response.StatusCode, response.Header, string(text)}
}

const (
	jsonType = "application/json"
	probeOne = `{"namespace":"one","service":"web"}`
)

func TestProbe(t *testing.T) {
	p := &probes{}
	r := newRig(t, Config{}, withProbes(p))
	want := ProbeRequest{Namespace: "one", Service: "web", Pod: "web-1", Pods: 5, Port: 443, Protocol: ProbeTLS, ServerName: "shop.example.com", SkipPlaintext: true}
	for user, seen := range map[string]string{"one": "one false true false", "two": "two false true false", "all": "all false true false"} {
		got, err := r.client(t, user).Probe(t.Context(), want)
		require.NoError(t, err)
		assert.Equal(t, want, <-p.asked)
		assert.Equal(t, ProbeAlarm, got.Verdict)
		assert.Equal(t, time.Unix(1e9, 0).UTC(), got.Time)
		assert.Equal(t, seen, got.Results[0].Findings[0].Detail, "only the namespace that is asked about is seen")
		assert.Equal(t, "web-1", got.Results[0].Pod)
	}
	r.api.set(func() {
		last := r.api.reviews[len(r.api.reviews)-1].ResourceAttributes
		assert.Equal(t, []string{"signet.dev", "probes", "create", "one"}, []string{last.Group, last.Resource, last.Verb, last.Namespace})
	})
	got := r.post(t, "one", "application/json; charset=utf-8", probeOne)
	assert.Equal(t, 200, got.status)
	assert.Equal(t, ProbeRequest{Namespace: "one", Service: "web"}, <-p.asked)
	assert.Empty(t, got.header.Get("ETag"))
}

// TestProbeRefused: nothing is asked of the prober.
func TestProbeRefused(t *testing.T) {
	p := &probes{}
	r := newRig(t, Config{}, withProbes(p))
	body := func(field string) string { return `{"namespace":"one","service":"web",` + field + `}` }
	for _, row := range []struct {
		name, user, contentType, body string
		status                        int
		detail                        string
	}{
		{"nobody", "", jsonType, probeOne, 401, "say who you are"},
		{"no right", "none", jsonType, probeOne, 403, "none may not create probes.signet.dev in namespace one; a Role or ClusterRole must grant it"},
		{"no right there", "one", jsonType, `{"namespace":"two","service":"web"}`, 403, "one may not create probes.signet.dev in namespace two"},
		{"no body", "one", jsonType, "", 400, "request body is required"},
		{"no JSON", "one", jsonType, "namespace=one", 400, "validation failed"},
		{"no object", "one", jsonType, `["one","web"]`, 422, "validation failed"},
		{"no namespace", "one", jsonType, `{"service":"web"}`, 422, "validation failed"},
		{"an empty namespace", "all", jsonType, `{"namespace":"","service":"web"}`, 422, "validation failed"},
		{"no service", "one", jsonType, `{"namespace":"one"}`, 422, "validation failed"},
		{"an odd name", "one", jsonType, `{"namespace":"one","service":"../x"}`, 422, "validation failed"},
		{"an unknown field", "one", jsonType, body(`"address":"10.0.0.1"`), 422, "validation failed"},
		{"an unknown protocol", "one", jsonType, body(`"protocol":"ftp"`), 422, "validation failed"},
		{"too many pods", "one", jsonType, body(`"pods":21`), 422, "validation failed"},
		{"a negative port", "one", jsonType, body(`"port":-1`), 422, "validation failed"},
		{"a port that is none", "one", jsonType, body(`"port":70000`), 422, "validation failed"},
		{"a port in words", "one", jsonType, body(`"port":"https"`), 422, "validation failed"},
		{"a large body", "one", jsonType, body(`"serverName":"` + strings.Repeat("a", maxProbeRequestBytes) + `"`), 413, "request body is too large"},
		{"a query", "one", jsonType, "", 422, `query parameter "x"`},
		// What a page of another origin can send without asking.
		{"a form", "one", "application/x-www-form-urlencoded", probeOne, 415, ""},
		{"text", "one", "text/plain", probeOne, 415, ""},
		{"no type", "one", "", probeOne, 415, "the body must be of type application/json"},
		{"another type of JSON", "one", "text/json+json", probeOne, 415, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			var got reply
			if row.name == "a query" {
				got = r.do(t, "POST", "/v1/probes?x=1", "one")
			} else {
				got = r.post(t, row.user, row.contentType, row.body)
			}
			require.Equal(t, row.status, got.status, got.body)
			assert.Contains(t, got.problem(t).Detail, row.detail)
		})
	}
	assert.Empty(t, p.asked)
	assert.Equal(t, 405, r.do(t, "GET", "/v1/probes", "one").status)
}

func TestProbeErrors(t *testing.T) {
	for _, row := range []struct {
		err    error
		status int
		detail string
	}{
		{fmt.Errorf("service one/web: %w", ErrNotFound), 404, "service one/web is not known"},
		{fmt.Errorf("%w: the service has no port 81 over TCP", ErrBadProbe), 422, "it can't be probed: the service has no port 81 over TCP"},
		{fmt.Errorf("%w: 8 are under way", ErrTooManyProbes), 429, "too many probes: 8 are under way"},
		{context.DeadlineExceeded, 503, "the answer took too long"},
		{errors.New("secret words"), 500, "the answer could not be made; the log says why"},
	} {
		r := newRig(t, Config{}, withProbes(&probes{err: row.err}))
		got := r.post(t, "one", jsonType, probeOne)
		require.Equal(t, row.status, got.status)
		assert.Contains(t, got.problem(t).Detail, row.detail)
		assert.NotContains(t, got.body, "secret")
		assert.Equal(t, row.status == 429 || row.status == 503, got.header.Get("Retry-After") != "")
	}
	off := newRig(t, Config{})
	assert.Equal(t, 501, off.post(t, "one", jsonType, probeOne).status)
	assert.Equal(t, 403, off.post(t, "none", jsonType, probeOne).status)
}

// TestProbedProblems: what scheduled probes found is beside what else is wrong with a service.
func TestProbedProblems(t *testing.T) {
	p := &probes{problem: []Problem{{ProblemProbe, "expired"}}}
	r := newRig(t, Config{}, withProbes(p))
	r.data.services = services("one", "two")
	r.data.services[0].Problems = []Problem{{ProblemOverdue, "late"}}
	for range 2 {
		got, err := r.client(t, "all").Service(t.Context(), "one", "s0")
		require.NoError(t, err)
		assert.Equal(t, []Problem{{ProblemOverdue, "late"}, {ProblemProbe, "expired"}}, got.Problems)
	}
	got, err := r.client(t, "all").Service(t.Context(), "two", "s1")
	require.NoError(t, err)
	assert.Empty(t, got.Problems)
}
