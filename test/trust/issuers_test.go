package trust

import (
	"context"
	"crypto"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
	"github.com/signet-ca/signet/test/testca"
)

// external adds an issuer outside of cert-manager that does what the test tells it, with a root of its own.
func (m *mesh) external(t *testing.T) (*testca.Issuer, *testca.Authority) {
	t.Helper()
	root, err := testca.NewRoot("external")
	require.NoError(t, err)
	other, err := testca.StartIssuer(t.Context(), plane.Admin(), m.ns, testca.Good(root))
	require.NoError(t, err)
	t.Cleanup(func() {
		other.Stop()
		assert.NoError(t, other.Err())
	})
	m.roots["external"] = root.PEM()
	return other, root
}

// externalFirst are settings with the external issuer as the static one.
func externalFirst(m *mesh, further map[string]any) replica.Config {
	settings := map[string]any{
		"issuer.group": testca.Group, "issuer.kind": testca.Kind,
		"signer.timeout": "2s", "ca.requestTimeout": "10s", "ca.lifetime.min": "5s",
		"roots.configMap.name": rootsMap, "roots.configMap.key": "roots.pem",
		"issuers.runtime.name": runtimeMap,
	}
	maps.Copy(settings, further)
	return replica.Config{Namespace: m.ns, Issuer: "any", Settings: settings}
}

func fallback(names ...string) []any {
	var all []any
	for _, name := range names {
		all = append(all, map[string]any{"name": name})
	}
	return all
}

// request is one request that can be sent again.
type request struct {
	w   *workload
	key crypto.Signer
	csr string
}

func (w *workload) request(t *testing.T) *request {
	t.Helper()
	key, csr, err := meshclient.ZtunnelCSR(w.id)
	require.NoError(t, err)
	return &request{w, key, csr}
}

func (r *request) send(ctx context.Context, c *meshclient.Client) (*holding, error) {
	chain, err := c.Create(ctx, meshclient.Ask{Token: r.w.token, CSR: r.csr, ValiditySeconds: 600, ClusterIDs: []string{"Kubernetes"}})
	if err != nil {
		return nil, err
	}
	return newHolding(chain, r.key)
}

// code is that of the refusal of one request.
func (w *workload) code(t *testing.T, c *meshclient.Client) codes.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	_, err := w.request(t).send(ctx, c)
	return status.Code(err)
}

// says waits until readiness says something.
func says(t *testing.T, r *replica.Replica, text string) {
	t.Helper()
	var body string
	patiently.Holds(t, func() bool { body = readyz(t, r); return strings.Contains(body, text) }, "readiness says %q", text)
}

// TestIssuerChangeWaitsForNoRequest: a request hangs at the issuer while the ConfigMap names another one. The next
// request is answered by that; the one that hangs ends at its own deadline.
func TestIssuerChangeWaitsForNoRequest(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	old, _ := m.external(t)
	m.pin(t, "external", issuerB)
	r := m.startAs(t, externalFirst(m, map[string]any{"signer.timeout": "100s", "ca.requestTimeout": "105s"}))
	c := dial(t, r, m.roots["external"])
	first, second := m.workload(t, "first"), m.workload(t, "second")
	require.Equal(t, "external", m.issuedBy(t, first, c))

	old.Behave(first.id.String(), testca.Never())
	hung := make(chan error, 1)
	began := time.Now()
	request := first.request(t)
	go func() {
		_, err := request.send(context.Background(), c)
		hung <- err
	}()
	patiently.Holds(t, func() bool { return len(old.Seen(first.id.String())) == 2 }, "the request is with the issuer")
	m.want(t, issuerB)
	says(t, r, "[i] issuer: Issuer.cert-manager.io/ca-b is in force")
	require.Equal(t, issuerB, m.issuedBy(t, second, c))
	select {
	case err := <-hung:
		require.Fail(t, "the request that hung has ended", "after %s: %v", time.Since(began), err)
	default:
	}
	err := <-hung
	assert.Equal(t, codes.DeadlineExceeded, status.Code(err), "%v", err)
	assert.GreaterOrEqual(t, time.Since(began), 100*time.Second)
	assert.Len(t, old.Seen(first.id.String()), 2)
}

// TestRuntimeIssuer: without any issuer a replica starts and says so; one that is named signs; what can't be read changes
// nothing; without the ConfigMap there is none again, or the static one.
func TestRuntimeIssuer(t *testing.T) {
	t.Parallel()
	t.Run("no static one", func(t *testing.T) {
		t.Parallel()
		m := newMesh(t)
		m.pin(t, issuerA, issuerB)
		settings := m.short(map[string]any{"issuer": nil})
		r := m.startAs(t, replica.Config{Namespace: m.ns, Settings: settings, DontWait: true})
		says(t, r, "[i] issuer: none is configured")
		code, _, err := r.Readyz(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 503, code, "it has no serving certificate")

		m.want(t, issuerA)
		waiting, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
		defer cancel()
		require.NoError(t, r.WaitReady(waiting))
		c, w := dial(t, r, m.roots[issuerA], m.roots[issuerB]), m.workload(t, "web")
		assert.Equal(t, issuerA, m.issuedBy(t, w, c))

		for _, row := range []struct{ data, says string }{
			{"issuer-kind=Issuer", "issuer-name: must be set"},
			{"issuer-name=x issuer-kind=Isuer", `"Isuer"`},
		} {
			data := make(map[string]string)
			for field := range strings.FieldsSeq(row.data) {
				key, value, _ := strings.Cut(field, "=")
				data[key] = value
			}
			m.set(t, runtimeMap, data)
			says(t, r, "ConfigMap "+m.ns+"/"+runtimeMap)
			says(t, r, row.says)
			assert.Equal(t, issuerA, m.issuedBy(t, w, c), row.data)
		}
		m.set(t, runtimeMap, map[string]string{"issuer-name": "nowhere"})
		says(t, r, "Issuer.cert-manager.io/nowhere: Missing")
		assert.Equal(t, issuerA, m.issuedBy(t, w, c), "one that isn't there is held back")
		m.want(t, issuerB)
		says(t, r, "[i] issuer: Issuer.cert-manager.io/ca-b is in force")
		assert.Equal(t, issuerB, m.issuedBy(t, w, c))

		require.NoError(t, plane.Client().Delete(t.Context(), get(t, m.ns, runtimeMap)))
		says(t, r, "[i] issuer: none is configured")
		assert.Equal(t, codes.Unavailable, w.code(t, c))
	})
	t.Run("a static one", func(t *testing.T) {
		t.Parallel()
		m := newMesh(t)
		m.pin(t, issuerA, issuerB)
		m.want(t, issuerB)
		r := m.start(t, m.short(nil))
		// The serving certificate follows the issuer after a while.
		c, w := dial(t, r, m.roots[issuerB], m.roots[issuerA]), m.workload(t, "web")
		patiently.Holds(t, func() bool { return m.issuedBy(t, w, c) == issuerB }, "the ConfigMap takes the place of the static issuer")
		require.NoError(t, plane.Client().Delete(t.Context(), get(t, m.ns, runtimeMap)))
		says(t, r, "[i] issuer: Issuer.cert-manager.io/ca-a is in force")
		assert.Equal(t, issuerA, m.issuedBy(t, w, c))
	})
}

// TestFallback: while the wanted issuer isn't ready the fallback signs, and an Event on the issuer says so.
func TestFallback(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.pin(t, issuerA, issuerB)
	r := m.start(t, m.short(map[string]any{"issuers.fallback": fallback("nowhere", issuerB)}))
	c, w := dial(t, r, m.roots[issuerA], m.roots[issuerB]), m.workload(t, "web")
	require.Equal(t, issuerA, m.issuedBy(t, w, c))

	// It is patched, because cert-manager writes its status at the same time.
	secret := func(name string) {
		a := &certmanager.Issuer{ObjectMeta: metav1.ObjectMeta{Namespace: m.ns, Name: issuerA}}
		patch := fmt.Appendf(nil, `{"spec":{"ca":{"secretName":%q}}}`, name)
		require.NoError(t, plane.Client().Patch(t.Context(), a, client.RawPatch(types.MergePatchType, patch)))
	}
	secret("gone")
	says(t, r, "[i] issuer: Issuer.cert-manager.io/ca-b is in force")
	assert.Equal(t, issuerB, m.issuedBy(t, w, c))
	assert.Contains(t, readyz(t, r), "Issuer.cert-manager.io/ca-a: NotReady")
	patiently.Holds(t, func() bool { return event(t, m.ns, issuerA, "NotInForce", "NotReady") }, "an Event on the issuer")
	secret(issuerA)
	says(t, r, "[i] issuer: Issuer.cert-manager.io/ca-a is in force")
	assert.Equal(t, issuerA, m.issuedBy(t, w, c))
}

// event says whether there is an Event on an object.
func event(t *testing.T, ns, name, reason, note string) bool {
	t.Helper()
	var list eventsv1.EventList
	require.NoError(t, plane.Client().List(t.Context(), &list, client.InNamespace(ns)))
	for _, e := range list.Items {
		if e.Regarding.Name == name && e.Reason == reason && strings.Contains(e.Note, note) {
			return true
		}
	}
	return false
}

// TestFallbackMustBeDistributed: an issuer whose root isn't an anchor is never a fallback.
func TestFallbackMustBeDistributed(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.external(t)
	m.pin(t, "external")
	r := m.startAs(t, externalFirst(m, map[string]any{"issuers.fallback": fallback(issuerB)}))
	says(t, r, "Issuer.cert-manager.io/ca-b: held back: its root")
	m.set(t, runtimeMap, map[string]string{"issuer-name": "nowhere"})
	says(t, r, "Issuer.cert-manager.io/nowhere: Missing")
	c, w := dial(t, r, m.roots["external"]), m.workload(t, "web")
	assert.Equal(t, "external", m.issuedBy(t, w, c))
	assert.Contains(t, readyz(t, r), "TestIssuer.test.signet.dev/any is in force")
}

// TestCircuit: an issuer that fails several identities is left alone, and used again when it answers. One caller's bad
// requests don't do that, a denial doesn't, and what the issuer may still sign isn't asked of another.
func TestCircuit(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	wanted, root := m.external(t)
	m.pin(t, "external", issuerB)
	r := m.startAs(t, externalFirst(m, map[string]any{"issuers.fallback": fallback(issuerB), "signer.timeout": "30s", "ca.requestTimeout": "60s"}))
	c := dial(t, r, m.roots["external"])
	says(t, r, "Issuer.cert-manager.io/ca-b: Ready")
	good := m.workload(t, "good")

	bad := m.workload(t, "bad")
	wanted.Behave(bad.id.String(), testca.Always(testca.Failed, "this one can't be signed"))
	for range 12 {
		assert.Equal(t, codes.FailedPrecondition, bad.code(t, c))
	}
	for n := range 4 {
		denied := m.workload(t, fmt.Sprintf("denied%d", n))
		wanted.Behave(denied.id.String(), testca.Always(testca.Denied, "no"))
		for range 3 {
			assert.Equal(t, codes.FailedPrecondition, denied.code(t, c))
		}
	}
	assert.Contains(t, readyz(t, r), "TestIssuer.test.signet.dev/any is in force")
	assert.Equal(t, "external", m.issuedBy(t, good, c))

	// These hang, and end at their deadline. One of them is sent again.
	hung := m.workload(t, "hung").request(t)
	requests := []*request{hung}
	for n := range 4 {
		w := m.workload(t, fmt.Sprintf("many%d", n))
		requests = append(requests, w.request(t), w.request(t))
	}
	wanted.Otherwise(testca.Never())
	ended := make(chan error, len(requests))
	for _, request := range requests {
		go func() {
			_, err := request.send(t.Context(), c)
			ended <- err
		}()
		patiently.Holds(t, func() bool { return len(wanted.Seen(hung.w.id.String())) == 1 }, "the first is with the issuer")
	}
	for range requests {
		// A late one may be signed by the fallback.
		assert.Contains(t, []codes.Code{codes.DeadlineExceeded, codes.OK}, status.Code(<-ended))
	}
	says(t, r, "Issuer.cert-manager.io/ca-b is in force")
	assert.Contains(t, readyz(t, r), "its circuit is open: its last")
	assert.Equal(t, issuerB, m.issuedBy(t, good, c))
	_, err := hung.send(t.Context(), c)
	assert.Equal(t, codes.DeadlineExceeded, status.Code(err), "the first issuer may still sign this one: %v", err)
	assert.Len(t, wanted.Seen(hung.w.id.String()), 1)
	var all certmanager.CertificateRequestList
	require.NoError(t, plane.Client().List(t.Context(), &all, client.InNamespace(m.ns)))
	for _, cr := range all.Items {
		if cr.Spec.IssuerRef.Name == issuerB {
			assert.NotEqual(t, hung.w.id.String(), cr.Annotations["istio.cert-manager.io/identities"])
		}
	}

	wanted.Otherwise(testca.Good(root))
	says(t, r, "TestIssuer.test.signet.dev/any is in force")
	assert.Equal(t, "external", m.issuedBy(t, good, c))
}

// TestDeadLeader: the replica that holds the lease is killed in the middle of a rollover. The next one goes on from the
// state that it left.
func TestDeadLeader(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.pin(t, issuerA)
	longer := m.short(map[string]any{"ca.lifetime.max": "80s", "ca.lifetime.default": "80s"})
	first := m.start(t, longer)
	logged(t, first, "lease acquired")
	second := m.start(t, longer)
	w := m.workload(t, "web")
	c := dial(t, second, m.roots[issuerA], m.roots[issuerB])
	require.Equal(t, issuerA, m.issuedBy(t, w, c))
	patiently.Holds(t, func() bool { return len(get(t, m.ns, replicasMap).Data) == 2 }, "both report")
	patiently.Holds(t, func() bool {
		var lease coordinationv1.Lease
		require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: m.ns, Name: "signet"}, &lease))
		return lease.Spec.HolderIdentity != nil &&
			strings.Contains(readyz(t, first)+readyz(t, second), "[i] distribution: known to "+*lease.Spec.HolderIdentity+", which holds the lease\n")
	}, "the one that doesn't hold the lease names the one that does")

	m.pin(t, issuerA, issuerB)
	m.want(t, issuerB)
	var until time.Time
	patiently.Holds(t, func() bool {
		for _, a := range m.state(t).Anchors {
			if !a.Until.IsZero() {
				until = a.Until
			}
		}
		return !until.IsZero()
	}, "the new root is carried")
	first.Kill()
	assert.Equal(t, issuerA, m.issuedBy(t, w, c))
	logged(t, second, "lease acquired")
	for _, a := range m.state(t).Anchors {
		if !a.Until.IsZero() {
			assert.Equal(t, until, a.Until, "the time that has passed counts")
		}
	}
	patiently.Holds(t, func() bool { return m.issuedBy(t, w, c) == issuerB }, "the new issuer signs")
	assert.False(t, time.Now().Before(until))
	patiently.Holds(t, func() bool { return len(get(t, m.ns, replicasMap).Data) == 1 }, "the dead one is forgotten")
}

// TestBadRoots: what a source can't mean is refused with its reason, and the last good state stays in force.
func TestBadRoots(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.pin(t, issuerA)
	r := m.start(t, m.short(nil))
	c, w := dial(t, r, m.roots[issuerA]), m.workload(t, "web")
	patiently.Holds(t, func() bool { return get(t, w.ns, mountedMap).Data["root-cert.pem"] == string(m.roots[issuerA]) }, "the root is distributed")
	expired := newExpiredRoot(t)
	var secret corev1.Secret
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: m.ns, Name: issuerB}, &secret))
	for _, row := range []struct {
		name, text, says string
	}{
		{"broken PEM", string(m.roots[issuerA]) + "-----BEGIN CERTIFICATE-----\nbroken", "PEM"},
		{"a private key", string(m.roots[issuerA]) + string(secret.Data[corev1.TLSPrivateKeyKey]), "only plain CERTIFICATE blocks are allowed"},
		{"only an expired anchor", expired, "expired"},
		{"too large", strings.Repeat("# a comment\n", 30_000) + string(m.roots[issuerB]), "bytes"},
		{"nothing", "", "no"},
	} {
		m.set(t, rootsMap, map[string]string{"roots.pem": row.text})
		says(t, r, "read trust anchors: ")
		says(t, r, row.says)
		assert.Equal(t, issuerA, m.issuedBy(t, w, c), row.name)
		state := m.state(t)
		require.Len(t, state.Anchors, 1, row.name)
		assert.Equal(t, string(m.roots[issuerA]), get(t, w.ns, mountedMap).Data["root-cert.pem"])
		m.pin(t, issuerA)
		patiently.Holds(t, func() bool { return !strings.Contains(readyz(t, r), "read trust anchors: ") }, "it is good again after %s", row.name)
	}

	// An expired anchor beside a good one is left out.
	m.set(t, rootsMap, map[string]string{"roots.pem": string(m.roots[issuerA]) + expired + string(m.roots[issuerB])})
	patiently.Holds(t, func() bool { return len(m.state(t).Anchors) == 2 }, "the good ones are in force")
	patiently.Holds(t, func() bool { return !strings.Contains(get(t, w.ns, mountedMap).Data["root-cert.pem"], expired) }, "the expired one is in no namespace")
	logged(t, r, "expired trust anchor left out")

	// An issuer that leads to a foreign root is held back.
	m.pin(t, issuerA)
	patiently.Holds(t, func() bool { return len(m.state(t).Anchors) == 1 }, "the root that nothing was signed under goes at once or after a while")
	m.want(t, issuerB)
	says(t, r, "Issuer.cert-manager.io/ca-b: held back: its root \"CN="+m.ns+" ca-b\"")
	says(t, r, "is none of the trust anchors; add it to the sources of roots")
	assert.Equal(t, issuerA, m.issuedBy(t, w, c))
	patiently.Holds(t, func() bool { return event(t, m.ns, issuerB, "NotInForce", "held back") }, "an Event on the issuer")

	// A state that somebody has broken changes nothing.
	good := get(t, m.ns, stateMap).Data["rollover.json"]
	m.breakState(t, "{")
	says(t, r, "the last good state stays in force")
	assert.Equal(t, issuerA, m.issuedBy(t, w, c))
	m.breakState(t, good)
	patiently.Holds(t, func() bool { return !strings.Contains(readyz(t, r), "the last good state") }, "it is good again")
}

// breakState writes something else where the state is kept.
func (m *mesh) breakState(t *testing.T, text string) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"rollover.json": text}})
	require.NoError(t, err)
	require.NoError(t, plane.Client().Patch(t.Context(), get(t, m.ns, stateMap), client.RawPatch(types.MergePatchType, patch)))
}

// TestOverride: an operator who can't wait vouches for an anchor, by an annotation.
func TestOverride(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.pin(t, issuerA)
	hours := m.short(map[string]any{"ca.lifetime.max": "2h", "ca.lifetime.default": "1h"})
	r := m.start(t, hours)
	c, w := dial(t, r, m.roots[issuerA]), m.workload(t, "web")
	m.pin(t, issuerA, issuerB)
	m.want(t, issuerB)
	says(t, r, "leaves that were answered without it may live for another 2h")
	annotate := func(key, id string) {
		state := get(t, m.ns, stateMap)
		metav1.SetMetaDataAnnotation(&state.ObjectMeta, key, id)
		require.NoError(t, plane.Client().Patch(t.Context(), state, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, key, id))))
	}
	annotate("signet.dev/distributed-now", m.id(t, issuerB))
	patiently.Holds(t, func() bool { return m.issuedBy(t, w, c) == issuerB }, "the new issuer signs")
	patiently.Holds(t, func() bool {
		return event(t, m.ns, stateMap, "AnchorDistributed", "who doesn't can't verify its leaves")
	}, "the Event says what it risks")

	m.pin(t, issuerB)
	patiently.Holds(t, func() bool { return m.phase(t, issuerA) != "signing" }, "no leaves are issued under the old root")
	assert.NotEmpty(t, m.phase(t, issuerA), "the serving certificate is still under it")
}
