package faults

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
	"github.com/signet-ca/signet/test/testca"
)

// identities is the annotation with the SPIFFE ID that a CertificateRequest is for.
const identities = "istio.cert-manager.io/identities"

// mesh is a namespace with an issuer that does what the test tells it.
type mesh struct {
	plane  *controlplane.Plane
	ns     string
	root   *testca.Authority
	issuer *testca.Issuer
}

// newMesh makes a namespace and an issuer that does what it should.
func newMesh(t *testing.T, plane *controlplane.Plane) *mesh {
	t.Helper()
	root, err := testca.NewRoot("root")
	require.NoError(t, err)
	m := &mesh{plane: plane, ns: plane.NewNamespace(t, "faults"), root: root}
	m.issuer, err = testca.StartIssuer(t.Context(), plane.Admin(), m.ns, testca.Good(root))
	require.NoError(t, err)
	t.Cleanup(func() {
		m.issuer.Stop()
		assert.NoError(t, m.issuer.Err())
	})
	return m
}

// config is that of a Signet for this mesh, with further settings. It waits much longer than it would
// in production, so that only what a test is about ends a request.
func (m *mesh) config(settings map[string]any) replica.Config {
	all := map[string]any{
		"issuer.group":      testca.Group,
		"issuer.kind":       testca.Kind,
		"signer.timeout":    "90s",
		"ca.requestTimeout": "100s",
		"ca.lifetime.max":   "1h",
	}
	maps.Copy(all, settings)
	return replica.Config{Namespace: m.ns, Issuer: "any", RootPEM: m.root.PEM(), Settings: all}
}

func (m *mesh) start(t *testing.T, settings map[string]any) *replica.Replica {
	t.Helper()
	return start(t, m.plane, m.config(settings))
}

// start runs a Signet until the test ends.
func start(t *testing.T, plane *controlplane.Plane, cfg replica.Config) *replica.Replica {
	t.Helper()
	r, err := replica.Start(t.Context(), plane, cfg)
	require.NoError(t, err)
	t.Cleanup(r.Stop)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		if log, err := r.Log(); err == nil {
			lines := strings.Split(log, "\n")
			t.Logf("the end of the replica's log:\n%s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	})
	return r
}

// workload is one service account with a key and a request.
type workload struct {
	plane   *controlplane.Plane
	ns      string
	id      spiffeid.ID
	token   string
	key     crypto.Signer
	csr     string
	seconds int64 // the lifetime it asks for
}

// newWorkload makes a service account, its token, a key and a CSR.
func newWorkload(t *testing.T, plane *controlplane.Plane, ns, name string) *workload {
	t.Helper()
	require.NoError(t, plane.ServiceAccount(t.Context(), ns, name))
	w := &workload{plane: plane, ns: ns, id: spiffeid.RequireFromString("spiffe://cluster.local/ns/" + ns + "/sa/" + name), seconds: 3600}
	var err error
	w.token, err = plane.Token(t.Context(), ns, name, controlplane.TokenOptions{})
	require.NoError(t, err)
	w.newKey(t)
	return w
}

func (m *mesh) workload(t *testing.T, name string) *workload {
	t.Helper()
	return newWorkload(t, m.plane, m.ns, name)
}

func (w *workload) newKey(t *testing.T) {
	t.Helper()
	var err error
	w.key, w.csr, err = meshclient.ZtunnelCSR(w.id)
	require.NoError(t, err)
}

// dial connects to a replica, whose certificate must chain to rootPEM.
func dial(t *testing.T, r *replica.Replica, rootPEM []byte) *meshclient.Client {
	t.Helper()
	options := meshclient.ZtunnelTLS()
	options.ServerName = replica.ServerName
	c, err := meshclient.Dial(r.CSR(), rootPEM, options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() }) // tests that stop the server have closed it before
	return c
}

// ask asks for the workload's certificate.
func (w *workload) ask(ctx context.Context, c *meshclient.Client) ([]string, error) {
	return c.Create(ctx, meshclient.Ask{Token: w.token, CSR: w.csr, ValiditySeconds: w.seconds, Metadata: meshclient.ZtunnelMetadata(w.id.String())})
}

// answered is what a call that runs beside the test came back with.
type answered struct {
	chain []string
	err   error
}

// askBeside asks, and returns where the answer will be.
func (w *workload) askBeside(t *testing.T, c *meshclient.Client) <-chan answered {
	result := make(chan answered, 1)
	ctx := t.Context()
	go func() {
		chain, err := w.ask(ctx, c)
		result <- answered{chain, err}
	}()
	return result
}

// persistBeside is askBeside, but asks as a patient agent does.
func (w *workload) persistBeside(t *testing.T, c *meshclient.Client) <-chan answered {
	result := make(chan answered, 1)
	ctx := t.Context()
	go func() {
		chain, err := w.persist(ctx, c)
		result <- answered{chain, err}
	}()
	return result
}

// issued requires that an answer holds up against ztunnel's judgement and leads to root, and returns
// its leaf.
func (w *workload) issued(t *testing.T, rootPEM []byte, chain []string, err error) *x509.Certificate {
	t.Helper()
	require.NoError(t, err)
	require.NoError(t, meshclient.JudgeZtunnel(chain, w.key.Public(), w.id, time.Now()))
	require.Equal(t, string(rootPEM), chain[len(chain)-1], "the last element is the trust anchor")
	block, _ := pem.Decode([]byte(chain[0]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return leaf
}

// refused requires that a call was refused with code, and that nothing came with it.
func refused(t *testing.T, code codes.Code, chain []string, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, code, status.Code(err), "%v", err)
	require.Empty(t, chain)
}

// requests are the CertificateRequests of the workload that exist.
func (w *workload) requests(t *testing.T) []cmapi.CertificateRequest {
	t.Helper()
	list, err := w.list(t.Context())
	require.NoError(t, err)
	return list
}

func (w *workload) list(ctx context.Context) ([]cmapi.CertificateRequest, error) {
	all, err := listRequests(ctx, w.plane, w.ns)
	var found []cmapi.CertificateRequest
	for _, cr := range all {
		if cr.Annotations[identities] == w.id.String() {
			found = append(found, cr)
		}
	}
	return found, err
}

func listRequests(ctx context.Context, plane *controlplane.Plane, ns string) ([]cmapi.CertificateRequest, error) {
	var list cmapi.CertificateRequestList
	err := plane.Client().List(ctx, &list, client.InNamespace(ns))
	return list.Items, err
}

// gone waits until no CertificateRequest of the workload exists.
func (w *workload) gone(t *testing.T) {
	t.Helper()
	patiently.Holds(t, func() bool {
		found, err := w.list(t.Context())
		return err == nil && len(found) == 0
	}, "CertificateRequests of %s are swept", w.id)
}

// noneLeft waits until no CertificateRequest of the namespace exists.
func noneLeft(t *testing.T, plane *controlplane.Plane, ns string) {
	t.Helper()
	patiently.Holds(t, func() bool {
		found, err := listRequests(t.Context(), plane, ns)
		return err == nil && len(found) == 0
	}, "all CertificateRequests of %s are swept", ns)
}

// logged waits until the replica has logged text.
func logged(t *testing.T, r *replica.Replica, text string) {
	t.Helper()
	patiently.Holds(t, func() bool { return logCount(t, r, text) > 0 }, "the log says %q", text)
}

func logCount(t *testing.T, r *replica.Replica, text string) int {
	t.Helper()
	log, err := r.Log()
	require.NoError(t, err)
	return strings.Count(log, text)
}

// metric is one value of the replica's metrics.
func metric(t *testing.T, r *replica.Replica, name string, labels map[string]string) float64 {
	t.Helper()
	value, err := r.Metric(t.Context(), name, labels)
	require.NoError(t, err)
	return value
}

// readyz requires an answer, and returns it.
func readyz(t *testing.T, r *replica.Replica) (int, string) {
	t.Helper()
	code, body, err := r.Readyz(t.Context())
	require.NoError(t, err)
	return code, body
}

// unreadyWith waits until the replica says that it isn't ready, in these words.
func unreadyWith(t *testing.T, r *replica.Replica, text string) {
	t.Helper()
	var last string
	patiently.Holds(t, func() bool {
		code, body, err := r.Readyz(t.Context())
		last = fmt.Sprintf("%d %v\n%s", code, err, body)
		return err == nil && code == http.StatusServiceUnavailable && strings.Contains(body, text)
	}, "not ready: %s", text)
	t.Log(last)
}

// page is what an HTTP endpoint of the replica answers.
func page(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(body)
}

// awaitAnswer waits for a call that runs beside the test.
func awaitAnswer(t *testing.T, result <-chan answered) answered {
	t.Helper()
	select {
	case a := <-result:
		return a
	case <-time.After(patiently.Timeout):
		t.Fatal("the call has no answer")
		return answered{}
	}
}

// logLine is the first line of the log that holds all texts, "" where there is none.
func logLine(t *testing.T, r *replica.Replica, texts ...string) string {
	t.Helper()
	log, err := r.Log()
	require.NoError(t, err)
	for line := range strings.Lines(log) {
		all := true
		for _, text := range texts {
			all = all && strings.Contains(line, text)
		}
		if all {
			return line
		}
	}
	return ""
}

// sample is the value of one line of metrics without labels.
func sample(t *testing.T, metrics, name string) float64 {
	t.Helper()
	for line := range strings.Lines(metrics) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			value, err := strconv.ParseFloat(text, 64)
			require.NoError(t, err)
			return value
		}
	}
	require.Failf(t, "no such metric", "%s", name)
	return 0
}
