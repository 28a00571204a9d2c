package faults

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
	"github.com/signet-ca/signet/test/testca"
)

// behind starts a Signet that reaches the API server through a proxy.
func behind(t *testing.T, m *mesh, settings map[string]any) (*replica.Replica, *proxy) {
	t.Helper()
	p := newProxy(t, m.plane)
	cfg := m.config(settings)
	cfg.Kubeconfig = p.kubeconfig(t, m.plane, m.ns)
	return start(t, m.plane, cfg), p
}

// TestSilentStream: a watch that stays open and tells nothing hides no answer.
func TestSilentStream(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r, p := behind(t, m, nil)
	c := dial(t, r, m.root.PEM())
	before := metric(t, r, "signet_certificaterequest_gap_lists_total", nil)

	p.hold()
	w := m.workload(t, "hidden")
	chain, err := w.ask(t.Context(), c)
	w.issued(t, m.root.PEM(), chain, err)
	assert.Len(t, m.issuer.Seen(w.id.String()), 1)
	assert.Greater(t, metric(t, r, "signet_certificaterequest_gap_lists_total", nil), before)

	// Neither does it hide that an object went away.
	deleted := m.workload(t, "deleted")
	m.issuer.Behave(deleted.id.String(), testca.First(1, testca.Always(testca.Deleted, ""), testca.Good(m.root)))
	chain, err = deleted.ask(t.Context(), c)
	deleted.issued(t, m.root.PEM(), chain, err)
	assert.Len(t, m.issuer.Seen(deleted.id.String()), 2)

	// While somebody waits, the silence can be seen.
	waiting := m.workload(t, "waiting")
	answer := make(chan struct{})
	m.issuer.Behave(waiting.id.String(), testca.After(answer, testca.Good(m.root)))
	result := waiting.askBeside(t, c)
	patiently.Holds(t, func() bool { return metric(t, r, "signet_certificaterequest_watch_silence_seconds", nil) > 1 }, "the silence is measured")
	close(answer)
	a := awaitAnswer(t, result)
	waiting.issued(t, m.root.PEM(), a.chain, a.err)
	assert.Zero(t, metric(t, r, "signet_certificaterequest_watch_silence_seconds", nil))

	p.release()
	noneLeft(t, plane, m.ns)
}

// TestBrokenStream: connections to the API server that break, and stay broken for a while, lose no
// answer that was given meanwhile.
func TestBrokenStream(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r, p := behind(t, m, nil)
	c := dial(t, r, m.root.PEM())
	w := m.workload(t, "waiting")
	answer := make(chan struct{})
	m.issuer.Behave(w.id.String(), testca.After(answer, testca.Good(m.root)))
	result := w.askBeside(t, c)
	patiently.Holds(t, func() bool { return len(m.issuer.Seen(w.id.String())) == 1 }, "the request is with the issuer")

	var refusedCalls atomic.Int64
	p.onCall(func(call) int {
		refusedCalls.Add(1)
		return dropped
	})
	p.server.CloseClientConnections()
	close(answer)
	patiently.Holds(t, func() bool {
		found := w.requests(t)
		return len(found) == 1 && len(found[0].Status.Certificate) > 0
	}, "the issuer has answered")
	patiently.Holds(t, func() bool { return refusedCalls.Load() > 2 }, "Signet tries again")
	p.onCall(nil)
	a := awaitAnswer(t, result)
	w.issued(t, m.root.PEM(), a.chain, a.err)
	assert.Len(t, m.issuer.Seen(w.id.String()), 1)
	noneLeft(t, plane, m.ns)
}

// TestR48_R49_CallsThatFail: each call to the API server fails, before and after it took effect. What
// passes is hidden from the caller, and in no case are there two CertificateRequests.
func TestR48_R49_CallsThatFail(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	// The tokens are reviewed each time, and what was answered stays for longer than a call tries.
	r, p := behind(t, m, map[string]any{"ca.token.cacheAccepted": "1ms", "signer.sweep.keep": "30s"})
	c := dial(t, r, m.root.PEM())

	create := func(w *workload, c call) bool { return c.creates(w) }
	meet := func(_ *workload, c call) bool {
		return c.method == http.MethodGet && strings.Contains(c.path, "/certificaterequests/signet-")
	}
	review := func(_ *workload, c call) bool {
		return c.method == http.MethodPost && strings.HasSuffix(c.path, "/tokenreviews")
	}
	const (
		always   = 1 << 20
		triedFor = 5 * time.Second // how long Signet tries to reach an API server that doesn't answer
	)
	for _, test := range []struct {
		name     string
		call     func(*workload, call) bool
		answer   int // in the place of the real one
		effect   bool
		times    int
		code     codes.Code
		requests int
	}{
		{"create answers 500", create, 500, false, 2, codes.OK, 1},
		{"create answers 503", create, 503, false, 2, codes.OK, 1},
		{"create answers 404 as right after a start", create, 404, false, 2, codes.OK, 1},
		{"create is dropped", create, dropped, false, 2, codes.OK, 1},
		{"create answers 500 after it took effect", create, 500, true, 2, codes.OK, 1},
		{"create answers 504 after it took effect", create, 504, true, 2, codes.OK, 1},
		{"create is dropped after it took effect", create, dropped, true, 2, codes.OK, 1},
		{"create is forbidden by the authorizer, as right after a start", create, 403, false, 2, codes.OK, 1},
		{"create is invalid", create, 422, false, 1, codes.FailedPrecondition, 0},
		{"create never answers but 503", create, 503, false, always, codes.Unavailable, 0},
		{"create never answers but 503, and takes effect", create, 503, true, always, codes.Unavailable, 1},
		{"get answers 500", meet, 500, false, 2, codes.OK, 1},
		{"get is dropped", meet, dropped, false, 2, codes.OK, 1},
		{"R23 review answers 500", review, 500, false, 1, codes.Unavailable, 0},
		{"R23 review is dropped", review, dropped, true, 1, codes.Unavailable, 0},
		{"R23 review is forbidden", review, 403, false, 1, codes.Unavailable, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			var w *workload
			var failed atomic.Int64
			var chain []string
			var err error
			for tries := 1; ; tries++ {
				w = m.workload(t, "w-"+rand.String(8))
				failed.Store(0)
				fail := func(c call) int {
					if test.call(w, c) && failed.Add(1) <= int64(test.times) {
						return test.answer
					}
					return 0
				}
				if test.effect {
					p.onAnswer(fail)
				} else {
					p.onCall(fail)
				}
				if strings.HasPrefix(test.name, "get") {
					// There is something to meet when the first create is told to have failed.
					var first atomic.Bool
					p.onAnswer(func(c call) int {
						if c.creates(w) && !first.Swap(true) {
							return 500
						}
						return 0
					})
				}
				began := time.Now()
				chain, err = w.ask(t.Context(), c)
				p.onCall(nil)
				p.onAnswer(nil)
				// A machine that is so busy that Signet has tried for as long as it may has shown nothing.
				if test.code != codes.OK || status.Code(err) != codes.Unavailable || time.Since(began) <= triedFor || tries == 10 {
					break
				}
			}
			assert.GreaterOrEqual(t, failed.Load(), int64(min(test.times, 2)), "the fault was met")
			if test.code == codes.OK {
				w.issued(t, m.root.PEM(), chain, err)
			} else {
				refused(t, test.code, chain, err)
			}
			if test.requests > 0 {
				patiently.Holds(t, func() bool { return len(m.issuer.Seen(w.id.String())) > 0 }, "the issuer sees the request")
			}
			assert.Len(t, m.issuer.Seen(w.id.String()), test.requests)

			// The caller's retry is served, still without a second CertificateRequest.
			if test.code == codes.Unavailable {
				chain, err = w.persist(t.Context(), c)
				w.issued(t, m.root.PEM(), chain, err)
				assert.Len(t, m.issuer.Seen(w.id.String()), 1)
			}
		})
	}
	noneLeft(t, plane, m.ns)
}
