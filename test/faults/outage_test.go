package faults

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// agentRetries are the codes after which Istio's agent asks again (R46).
var agentRetries = []codes.Code{codes.Canceled, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Internal, codes.Unavailable}

// persist asks as a patient agent does: again after each code that is worth it, and after no other.
func (w *workload) persist(ctx context.Context, c *meshclient.Client) ([]string, error) {
	for deadline := time.Now().Add(patiently.Timeout); ; time.Sleep(100 * time.Millisecond) {
		chain, err := w.ask(ctx, c)
		if err == nil || !slices.Contains(agentRetries, status.Code(err)) || time.Now().After(deadline) {
			return chain, err
		}
	}
}

// TestWithCertManager: what only the real issuer can show, and outages of the parts of a control plane
// of its own.
func TestWithCertManager(t *testing.T) {
	t.Parallel()
	real, err := controlplane.Start(t.Context(), controlplane.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, real.Stop()) })

	t.Run("quiet", func(t *testing.T) {
		t.Run("R38 a CA that ends soon", func(t *testing.T) {
			t.Parallel()
			testCAThatEndsSoon(t, real, controlplane.CAOptions{Lifetime: 2 * time.Hour})
		})
		t.Run("R38 an intermediate that ends soon", func(t *testing.T) {
			t.Parallel()
			testCAThatEndsSoon(t, real, controlplane.CAOptions{Intermediate: true, Lifetime: 48 * time.Hour, IntermediateLifetime: 2 * time.Hour})
		})
		t.Run("an issuer that goes away", func(t *testing.T) {
			t.Parallel()
			testIssuerThatGoesAway(t, real)
		})
	})

	ns := real.NewNamespace(t, "outage")
	root, err := real.BootstrapCA(t.Context(), ns, "istio-ca", controlplane.CAOptions{})
	require.NoError(t, err)
	r := start(t, real, replica.Config{Namespace: ns, RootPEM: root, Settings: map[string]any{
		"signer.timeout": "2m", "ca.requestTimeout": "150s", "signer.sweep.keep": "10m",
		"ca.token.cacheAccepted": "60s", "ca.token.reviewTimeout": "5s",
	}})
	c := dial(t, r, root)
	pid := r.Process().PID()
	// once requires that a workload was answered, by one CertificateRequest and no other.
	once := func(t *testing.T, w *workload, chain []string, err error) {
		t.Helper()
		w.issued(t, root, chain, err)
		assert.Len(t, w.requests(t), 1, "issued once")
	}

	t.Run("cert-manager stands still", func(t *testing.T) {
		w := newWorkload(t, real, ns, "paused")
		require.NoError(t, real.CertManager().Pause())
		result := w.persistBeside(t, c)
		patiently.Holds(t, func() bool { return len(w.requests(t)) == 1 }, "the request is there")
		require.NoError(t, real.CertManager().Resume())
		a := awaitAnswer(t, result)
		once(t, w, a.chain, a.err)
	})

	t.Run("R23 the API server stands still", func(t *testing.T) {
		unknown, known := newWorkload(t, real, ns, "unknown"), newWorkload(t, real, ns, "known")
		chain, err := known.persist(t.Context(), c)
		once(t, known, chain, err)
		require.NoError(t, real.APIServer().Pause())
		chain, err = unknown.ask(t.Context(), c)
		refused(t, codes.Unavailable, chain, err)
		code, body := readyz(t, r)
		assert.Equal(t, http.StatusOK, code, "it is not the replica's fault: %s", body)
		require.NoError(t, real.APIServer().Resume())
		chain, err = unknown.persist(t.Context(), c)
		once(t, unknown, chain, err)
	})

	t.Run("R23 the API server is away", func(t *testing.T) {
		unknown, known := newWorkload(t, real, ns, "stranger"), newWorkload(t, real, ns, "friend")
		chain, err := known.persist(t.Context(), c)
		known.issued(t, root, chain, err)
		known.newKey(t)
		before := len(known.requests(t))
		require.NoError(t, real.APIServer().Stop())
		chain, err = unknown.ask(t.Context(), c)
		refused(t, codes.Unavailable, chain, err)
		chain, err = known.ask(t.Context(), c)
		refused(t, codes.Unavailable, chain, err)
		require.NoError(t, real.APIServer().Start(t.Context()))
		chain, err = unknown.persist(t.Context(), c)
		once(t, unknown, chain, err)
		chain, err = known.persist(t.Context(), c)
		known.issued(t, root, chain, err)
		assert.Len(t, known.requests(t), before+1)
	})

	t.Run("R49 the API server restarts in the middle of a wait", func(t *testing.T) {
		w := newWorkload(t, real, ns, "waiting")
		require.NoError(t, real.CertManager().Pause())
		result := w.persistBeside(t, c)
		patiently.Holds(t, func() bool { return len(w.requests(t)) == 1 }, "the request is there")
		real.APIServer().Kill()
		require.NoError(t, real.APIServer().Start(t.Context()))
		require.NoError(t, real.CertManager().Resume())
		a := awaitAnswer(t, result)
		once(t, w, a.chain, a.err)
	})

	t.Run("R49 the API server restarts under load", func(t *testing.T) {
		const callers = 6
		stop := make(chan struct{})
		var group sync.WaitGroup
		issued := make([]int, callers)
		failures := make(chan error, callers)
		workloads := make([]*workload, callers)
		for i := range callers {
			w := newWorkload(t, real, ns, fmt.Sprintf("load-%d", i))
			workloads[i] = w
			group.Go(func() {
				for {
					w.newKey(t)
					chain, err := w.persist(t.Context(), c)
					if err == nil {
						err = meshclient.JudgeZtunnel(chain, w.key.Public(), w.id, time.Now())
					}
					if err != nil {
						failures <- err
						return
					}
					issued[i]++
					select {
					case <-stop:
						return
					case <-time.After(100 * time.Millisecond):
					}
				}
			})
		}
		for range 2 {
			real.APIServer().Kill()
			require.NoError(t, real.APIServer().Start(t.Context()))
		}
		close(stop)
		group.Wait()
		close(failures)
		for err := range failures {
			assert.NoError(t, err)
		}
		for i, w := range workloads {
			assert.Len(t, w.requests(t), issued[i], "%s: one CertificateRequest for each certificate", w.id)
		}
	})

	assert.Equal(t, pid, r.Process().PID())
	assert.False(t, r.Process().Ended(), "no outage ends the process")
	code, body := readyz(t, r)
	assert.Equal(t, http.StatusOK, code, body)
}

// testCAThatEndsSoon: cert-manager's CA issuer signs for as long as it is asked, past its own end.
func testCAThatEndsSoon(t *testing.T, real *controlplane.Plane, options controlplane.CAOptions) {
	ns := real.NewNamespace(t, "ending")
	root, err := real.BootstrapCA(t.Context(), ns, "istio-ca", options)
	require.NoError(t, err)
	r := start(t, real, replica.Config{Namespace: ns, RootPEM: root})
	w := newWorkload(t, real, ns, "client")
	w.seconds = 24 * 3600
	chain, err := w.ask(t.Context(), dial(t, r, root))
	leaf := w.issued(t, root, chain, err)
	assert.LessOrEqual(t, leaf.NotAfter.Sub(leaf.NotBefore), 2*time.Hour)
	assert.Greater(t, leaf.NotAfter.Sub(leaf.NotBefore), 90*time.Minute)
	w.gone(t)
}

// testIssuerThatGoesAway: without the issuer requests stay pending and are answered with a code that
// is worth another try; readiness tells of the issuer but doesn't depend on it.
func testIssuerThatGoesAway(t *testing.T, real *controlplane.Plane) {
	ns := real.NewNamespace(t, "away")
	root, err := real.BootstrapCA(t.Context(), ns, "istio-ca", controlplane.CAOptions{})
	require.NoError(t, err)
	r := start(t, real, replica.Config{Namespace: ns, RootPEM: root, Settings: map[string]any{"signer.timeout": "3s"}})
	c := dial(t, r, root)
	says := func(text string) {
		t.Helper()
		patiently.Holds(t, func() bool {
			code, body := readyz(t, r)
			return code == http.StatusOK && strings.Contains(body, text)
		}, "ready, with %s", text)
	}
	says("[i] issuer: Issuer.cert-manager.io/istio-ca is in force, Ready")

	var issuer cmapi.Issuer
	key := client.ObjectKey{Namespace: ns, Name: "istio-ca"}
	require.NoError(t, real.Client().Get(t.Context(), key, &issuer))
	secret := issuer.Spec.CA.SecretName
	issuer.Spec.CA.SecretName = "nothing"
	require.NoError(t, real.Client().Update(t.Context(), &issuer))
	says("[i] issuer: Issuer.cert-manager.io/istio-ca is in force, NotReady")
	pends := func(w *workload) {
		t.Helper()
		patiently.Holds(t, func() bool { // on a busy machine the time may be up before there is a CertificateRequest
			chain, err := w.ask(t.Context(), c)
			refused(t, codes.DeadlineExceeded, chain, err)
			return len(w.requests(t)) == 1
		}, "something is made of the request of %s", w.id)
	}
	notReady := newWorkload(t, real, ns, "not-ready")
	pends(notReady)

	require.NoError(t, real.Client().Delete(t.Context(), &issuer))
	says("[i] issuer: Issuer.cert-manager.io/istio-ca is in force, Missing")
	missing := newWorkload(t, real, ns, "missing")
	pends(missing)
	missing.gone(t)
	notReady.gone(t)

	again := &cmapi.Issuer{}
	again.Namespace, again.Name = ns, "istio-ca"
	again.Spec.CA = &cmapi.CAIssuer{SecretName: secret}
	require.NoError(t, real.Client().Create(t.Context(), again))
	says("[i] issuer: Issuer.cert-manager.io/istio-ca is in force, Ready")
	chain, err := missing.persist(t.Context(), c)
	missing.issued(t, root, chain, err)
}
