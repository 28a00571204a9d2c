package inspect

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
	"github.com/signet-ca/signet/test/testca"
)

// mesh is a namespace for Signet with an issuer, and the settings of the replicas in it.
type mesh struct {
	ns       string
	root     []byte // PEM
	settings map[string]any
	issuer   *testca.Issuer // nil where cert-manager signs
	ca       *testca.Authority
}

// newMesh makes one in which cert-manager signs.
func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{ns: plane.NewNamespace(t, "signet"), settings: map[string]any{"ca.lifetime.min": "5s", "inventory.grace": "1s"}}
	var err error
	m.root, err = plane.BootstrapCA(t.Context(), m.ns, "istio-ca", controlplane.CAOptions{})
	require.NoError(t, err)
	return m
}

// newTestMesh makes one in which the test signs, at once unless it is told otherwise.
func newTestMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{ns: plane.NewNamespace(t, "signet"), settings: map[string]any{"issuer.group": testca.Group, "issuer.kind": testca.Kind, "issuer.name": "any"}}
	var err error
	m.ca, err = testca.NewRoot("root of " + m.ns)
	require.NoError(t, err)
	m.root = m.ca.PEM()
	m.issuer, err = testca.StartIssuer(t.Context(), plane.Admin(), m.ns, testca.Good(m.ca))
	require.NoError(t, err)
	t.Cleanup(func() {
		m.issuer.Stop()
		assert.NoError(t, m.issuer.Err())
	})
	return m
}

// instance is a running Signet.
type instance struct {
	*replica.Replica
	mesh *mesh
	name string
}

// start runs a replica until the test ends. Its records are in dir, a new one where that is empty.
func (m *mesh) start(t *testing.T, name, dir string, settings map[string]any) *instance {
	t.Helper()
	all := maps.Clone(m.settings)
	all["replica"] = name
	if dir != "" {
		all["ledger.dir"] = dir
	}
	maps.Copy(all, settings)
	r, err := replica.Start(t.Context(), plane, replica.Config{Namespace: m.ns, RootPEM: m.root, Settings: all})
	require.NoError(t, err)
	t.Cleanup(r.Stop)
	t.Cleanup(func() {
		log, err := r.Log()
		require.NoError(t, err)
		assert.NotContains(t, log, "DATA RACE")
		if t.Failed() {
			lines := strings.Split(log, "\n")
			t.Logf("the end of the log of %s:\n%s", name, strings.Join(lines[max(0, len(lines)-30):], "\n"))
		}
	})
	return &instance{r, m, name}
}

// dsnFile is the file with the DSN of an empty database.
func dsnFile(t *testing.T) (file, dsn string) {
	t.Helper()
	dsn, err := database.Database(t.Context(), "inspect"+rand.String(8))
	require.NoError(t, err)
	file = filepath.Join(t.TempDir(), "dsn")
	require.NoError(t, os.WriteFile(file, []byte(dsn), 0o600))
	return file, dsn
}

// bearer shows a token with each request.
type bearer struct {
	token string
	base  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.base.RoundTrip(r)
}

// client asks the instance's API with a token, a certificate, or nothing.
func (i *instance) client(t *testing.T, token string, certificate *tls.Certificate) *api.Client {
	t.Helper()
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(i.mesh.root))
	config := &tls.Config{RootCAs: roots}
	if certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := api.NewClient(i.APIURL(), &http.Client{Transport: bearer{token, transport}, Timeout: patiently.Timeout})
	require.NoError(t, err)
	return client
}

// reader asks as one who may see everything.
func (i *instance) reader(t *testing.T) *api.Client {
	t.Helper()
	return i.client(t, tokenOf(t, "all", "signet.dev"), nil)
}

// fresh waits until a service is known with one pod that holds a fresh certificate: the cluster's own news may come after
// the certificate.
func fresh(t *testing.T, client *api.Client, ns, name string) {
	t.Helper()
	patiently.Holds(t, func() bool {
		service, err := client.Service(t.Context(), ns, name)
		return err == nil && service.Summary.Total == 1 && service.Summary.Fresh == 1
	}, "service %s/%s has a pod with a fresh certificate", ns, name)
}

// tokenOf is a token of a user.
func tokenOf(t *testing.T, user, audience string) string {
	t.Helper()
	text, err := plane.Token(t.Context(), "people", user, controlplane.TokenOptions{Audiences: []string{audience}})
	require.NoError(t, err)
	return text
}

// workload is a pod behind a service of the same name.
type workload struct {
	pod   *corev1.Pod
	id    spiffeid.ID
	token string // bound to the pod
}

func newWorkload(t *testing.T, ns, name, node string) *workload {
	t.Helper()
	pod, err := plane.Workload(t.Context(), ns, name, node)
	require.NoError(t, err)
	return workloadOf(t, pod)
}

// newPod is a workload without a service, of an account that is there.
func newPod(t *testing.T, ns, name, account, node string) *workload {
	t.Helper()
	pod, err := plane.Sidecar(t.Context(), ns, name, account, node)
	require.NoError(t, err)
	return workloadOf(t, pod)
}

func workloadOf(t *testing.T, pod *corev1.Pod) *workload {
	t.Helper()
	account := pod.Spec.ServiceAccountName
	token, err := plane.Token(t.Context(), pod.Namespace, account, controlplane.TokenOptions{Pod: pod})
	require.NoError(t, err)
	return &workload{pod, spiffeid.RequireFromString("spiffe://cluster.local/ns/" + pod.Namespace + "/sa/" + account), token}
}

// agent runs a pilot-agent in the workload's pod, and waits for its first certificate.
func (w *workload) agent(t *testing.T, i *instance, ttl time.Duration, key meshclient.KeyType) *meshclient.Agent {
	t.Helper()
	a, err := meshclient.StartAgent(t.Context(), meshclient.AgentConfig{
		Address: "localhost:" + i.CSR()[strings.LastIndex(i.CSR(), ":")+1:], Roots: i.mesh.root, Token: w.token, ID: w.id, TTL: ttl, Key: key,
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, a.Stop()) })
	rotated(t, a, 0)
	return a
}

// rotated waits until an agent has replaced its certificate n times.
func rotated(t *testing.T, a *meshclient.Agent, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	require.NoError(t, a.WaitRotations(ctx, n))
}

// held is what an agent has in its files now. It writes the last of them a moment after the certificate is seen.
func held(t *testing.T, a *meshclient.Agent) *meshclient.Certificate {
	t.Helper()
	var c *meshclient.Certificate
	patiently.Holds(t, func() bool {
		var err error
		c, err = a.Certificate()
		require.True(t, err == nil || errors.Is(err, os.ErrNotExist), "%v", err)
		return err == nil
	}, "the agent has written all of its files")
	return c
}

// dial makes a client of the instance's gRPC endpoint.
func (i *instance) dial(t *testing.T) *meshclient.Client {
	t.Helper()
	options := meshclient.SidecarTLS()
	options.ServerName = replica.ServerName
	c, err := meshclient.Dial(i.CSR(), i.mesh.root, options)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return c
}

// ask asks for a certificate with a new key.
func (w *workload) ask(ctx context.Context, c *meshclient.Client, lifetime time.Duration) (*x509.Certificate, *tls.Certificate, error) {
	key, csr, err := meshclient.ZtunnelCSR(w.id)
	if err != nil {
		return nil, nil, err
	}
	chain, err := c.Create(ctx, meshclient.Ask{Token: w.token, CSR: csr, ValiditySeconds: int64(lifetime / time.Second)})
	if err != nil {
		return nil, nil, err
	}
	leaf, err := parse(chain[0])
	if err != nil {
		return nil, nil, err
	}
	return leaf, &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// issue is ask for one who gets what it asks for.
func (w *workload) issue(t *testing.T, c *meshclient.Client, lifetime time.Duration) (*x509.Certificate, *tls.Certificate) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	leaf, pair, err := w.ask(ctx, c, lifetime)
	require.NoError(t, err)
	return leaf, pair
}

func parse(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

func shaOf(c *x509.Certificate) string { return fmt.Sprintf("%x", sha256.Sum256(c.Raw)) }

func serialOf(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

// tells asks for the record of a certificate, and wants it to be there now.
func tells(t *testing.T, client *api.Client, leaf *x509.Certificate) *api.Certificate {
	t.Helper()
	c, err := client.Certificate(t.Context(), shaOf(leaf))
	require.NoError(t, err, "serial %s", serialOf(leaf))
	return c
}

// willTell is tells for what may take a moment.
func willTell(t *testing.T, client *api.Client, leaf *x509.Certificate) *api.Certificate {
	t.Helper()
	var c *api.Certificate
	patiently.Holds(t, func() (known bool) {
		var err error
		if c, err = client.Certificate(t.Context(), shaOf(leaf)); err != nil {
			require.ErrorIs(t, err, api.ErrNotFound)
		}
		return err == nil
	}, "certificate %s isn't known", serialOf(leaf))
	return c
}

// serials are those of a list.
func serials(t *testing.T, client *api.Client, q api.CertificateQuery) []string {
	t.Helper()
	list, err := client.Certificates(t.Context(), q)
	require.NoError(t, err)
	require.Empty(t, list.Continue)
	all := []string{}
	for _, c := range list.Items {
		all = append(all, c.Serial)
	}
	return all
}

// status is that of an answer, 200 where there is no error.
func status(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return http.StatusOK
	}
	failure, ok := errors.AsType[*api.ResponseError](err)
	require.True(t, ok, "%v", err)
	return failure.Problem.Status
}
