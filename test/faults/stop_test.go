package faults

import (
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/testca"
)

// TestR13_GracefulStop: a replica that is told to stop says that it isn't ready, still takes new
// connections for a while, answers what is under way, and leaves nothing pending.
func TestR13_GracefulStop(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, map[string]any{"shutdown.delay": "20s", "shutdown.drain": "2m"})
	code, body := readyz(t, r)
	require.Equal(t, http.StatusOK, code)
	for _, check := range []string{"[+] serving certificate: fresh", "[+] roots: 1 trust anchors", "[+] informer: synced", "[+] listener: " + r.CSR(), "[i] issuer: TestIssuer.test.signet.dev/any is in force, Unknown"} {
		assert.Contains(t, body, check)
	}

	answer := make(chan struct{})
	under := m.workload(t, "under-way")
	m.issuer.Behave(under.id.String(), testca.After(answer, testca.Good(m.root)))
	result := under.askBeside(t, dial(t, r, m.root.PEM()))
	patiently.Holds(t, func() bool { return len(m.issuer.Seen(under.id.String())) == 1 }, "the request is with the issuer")

	late := m.workload(t, "late")
	require.NoError(t, r.Process().Signal(syscall.SIGTERM))
	unreadyWith(t, r, "[-] listener: the server is stopping")
	alive, _ := page(t, r.HealthURL()+"/livez")
	assert.Equal(t, http.StatusOK, alive, "it is alive until it has ended")
	chain, err := late.ask(t.Context(), dial(t, r, m.root.PEM()))
	late.issued(t, m.root.PEM(), chain, err)

	// After the delay nobody new is let in, and who is in gets an answer.
	patiently.Holds(t, func() bool {
		conn, err := net.Dial("tcp", r.CSR())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, "no new connections")
	assert.False(t, r.Process().Ended())
	close(answer)
	a := awaitAnswer(t, result)
	under.issued(t, m.root.PEM(), a.chain, a.err)
	assert.Equal(t, 0, r.Process().ExitCode())
	found, err := listRequests(t.Context(), plane, m.ns)
	require.NoError(t, err)
	for _, cr := range found {
		assert.NotEmpty(t, cr.Status.Certificate, "%s is pending", cr.Name)
	}

	// What is finished is swept by the replica that comes next.
	m.start(t, nil)
	noneLeft(t, plane, m.ns)
}

// TestSecondSignal: a second SIGTERM ends a replica at once, whatever is under way.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, map[string]any{"shutdown.delay": "5m", "shutdown.drain": "5m"})
	w := m.workload(t, "unanswered")
	m.issuer.Behave(w.id.String(), testca.Never())
	result := w.askBeside(t, dial(t, r, m.root.PEM()))
	patiently.Holds(t, func() bool { return len(m.issuer.Seen(w.id.String())) == 1 }, "the request is with the issuer")
	require.NoError(t, r.Process().Signal(syscall.SIGTERM))
	logged(t, r, `"msg":"stopping: not ready any more, still accepting","room":"ca","for_seconds":300}`)
	require.NoError(t, r.Process().Signal(syscall.SIGTERM))
	assert.Equal(t, -1, r.Process().ExitCode(), "ended by the signal")
	a := awaitAnswer(t, result)
	refused(t, codes.Unavailable, a.chain, a.err)
}

// TestR6_ServingCertificate: it is renewed without dropping a connection. When it can't be, readiness
// and a metric say so before it expires; then the replica isn't ready; and it recovers by itself.
func TestR6_ServingCertificate(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	// The first one has lived a while already, so that it is due after 18s and ends 24s later; there is time to look.
	m.issuer.Otherwise(testca.Changed(m.root, func(t *testca.Template) error {
		t.NotBefore = t.NotBefore.Add(-30 * time.Second)
		t.NotAfter = t.NotBefore.Add(72 * time.Second)
		return nil
	}))
	r := m.start(t, map[string]any{"serving.lifetime": "72s"})
	m.issuer.Otherwise(testca.Always(testca.Failed, "out of order"))
	overdue := func() float64 { return metric(t, r, "signet_serving_certificate_overdue", nil) }
	c := dial(t, r, m.root.PEM())
	w := m.workload(t, "client")
	m.issuer.Behave(w.id.String(), testca.Good(m.root))
	chain, err := w.ask(t.Context(), c)
	w.issued(t, m.root.PEM(), chain, err)
	state, err := c.TLS()
	require.NoError(t, err)
	first := state.PeerCertificates[0]
	assert.Equal(t, float64(first.NotAfter.Unix()), metric(t, r, "signet_serving_certificate_not_after_timestamp_seconds", nil))
	assert.Zero(t, overdue())

	patiently.Holds(t, func() bool {
		code, body := readyz(t, r)
		return code == http.StatusOK && strings.Contains(body, "can't be renewed") && strings.Contains(body, "out of order")
	}, "readiness says that it can't be renewed, while it is ready")
	patiently.Holds(t, func() bool {
		metricSays := overdue() == 1
		code, _ := readyz(t, r)
		return metricSays && code == http.StatusOK
	}, "the metric says so before it expires")
	unreadyWith(t, r, "[-] serving certificate: expired")
	alive, _ := page(t, r.HealthURL()+"/livez")
	assert.Equal(t, http.StatusOK, alive)
	_, err = w.ask(t.Context(), dial(t, r, m.root.PEM()))
	require.Error(t, err, "no new client trusts it")

	// A connection that is there goes on all the time.
	w.newKey(t)
	chain, err = w.ask(t.Context(), c)
	w.issued(t, m.root.PEM(), chain, err)

	m.issuer.Otherwise(testca.Changed(m.root, func(t *testca.Template) error {
		t.NotAfter = t.NotBefore.Add(36 * time.Second)
		return nil
	}))
	require.NoError(t, r.WaitReady(t.Context()))
	assert.Zero(t, overdue())
	fresh := dial(t, r, m.root.PEM())
	w.newKey(t)
	chain, err = w.ask(t.Context(), fresh)
	w.issued(t, m.root.PEM(), chain, err)
	state, err = fresh.TLS()
	require.NoError(t, err)
	second := state.PeerCertificates[0].SerialNumber
	assert.NotEqual(t, first.SerialNumber, second)

	// Nobody waits for the next renewal, and nobody notices it.
	renewed := metric(t, r, "signet_serving_certificate_renewals_total", map[string]string{"result": "ok"})
	patiently.Holds(t, func() bool {
		return metric(t, r, "signet_serving_certificate_renewals_total", map[string]string{"result": "ok"}) > renewed
	}, "it is renewed in time")
	for _, c := range []struct {
		name string
		ask  func() ([]string, error)
	}{
		{"the old connection", func() ([]string, error) { return w.ask(t.Context(), c) }},
		{"the fresh connection", func() ([]string, error) { return w.ask(t.Context(), fresh) }},
		{"a new connection", func() ([]string, error) { return w.ask(t.Context(), dial(t, r, m.root.PEM())) }},
	} {
		w.newKey(t)
		chain, err := c.ask()
		w.issued(t, m.root.PEM(), chain, err)
	}
}

// TestR13_SilentStreamWhileStopping: a silent watch hides no answer from those who wait while the
// replica stops.
func TestR13_SilentStreamWhileStopping(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r, p := behind(t, m, map[string]any{"signer.timeout": "30s", "shutdown.drain": "2m"})
	w := m.workload(t, "under-way")
	answer := make(chan struct{})
	m.issuer.Behave(w.id.String(), testca.After(answer, testca.Good(m.root)))
	result := w.askBeside(t, dial(t, r, m.root.PEM()))
	patiently.Holds(t, func() bool { return len(m.issuer.Seen(w.id.String())) == 1 }, "the request is with the issuer")
	p.hold()
	require.NoError(t, r.Process().Signal(syscall.SIGTERM))
	logged(t, r, "stopping: not ready any more")
	close(answer)
	a := awaitAnswer(t, result)
	w.issued(t, m.root.PEM(), a.chain, a.err)
	assert.Equal(t, 0, r.Process().ExitCode())
}
