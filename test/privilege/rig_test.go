package privilege

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/process"
	"github.com/signet-ca/signet/test/replica"
)

const (
	// patience is how long a test waits for what must come; it only ever runs out when it doesn't.
	patience = 4 * time.Minute
	// glance is the pause between two looks.
	glance = 50 * time.Millisecond
	// listing has client-go list what there is before it watches, as it does where the API server can't stream lists.
	listing = "KUBE_FEATURE_WatchListClient=false"
)

// mesh is a Signet in a namespace of its own, under exactly the rights that the chart renders for its settings.
type mesh struct {
	*testing.T
	ns, account string // account as the API server calls it
	label       string // mesh=label selects the namespaces that anchors are distributed to
	issuer      client.Object
	root        []byte // PEM, of Issuer istio-ca
	config      replica.Config
	granted     []grant
	replica     *replica.Replica
	endpoint    *meshclient.Client
}

// newMesh makes the namespace with the CA in it.
func newMesh(t *testing.T, name string) *mesh {
	t.Helper()
	m := &mesh{T: t, ns: plane.NewNamespace(t, "signet-"+name), label: name + "-" + rand.String(5)}
	m.account = "system:serviceaccount:" + m.ns + ":signet"
	m.issuer = &cmapi.Issuer{ObjectMeta: metav1.ObjectMeta{Namespace: m.ns, Name: "istio-ca"}}
	var err error
	m.root, err = plane.BootstrapCA(t.Context(), m.ns, "istio-ca", controlplane.CAOptions{})
	require.NoError(t, err)
	return m
}

// start runs the replica, which lists before it watches, with settings beside those that make time pass quickly.
func (m *mesh) start(settings map[string]any) {
	m.Helper()
	all := map[string]any{
		"ca.lifetime.min":   "3s",
		"signer.sweep.keep": "3s",
	}
	maps.Copy(all, settings)
	m.config = replica.Config{Namespace: m.ns, Settings: all, Env: []string{listing}}
	if all["roots.configMap"] == nil && all["roots.secret"] == nil {
		m.config.RootPEM = m.root
	}
	objects, err := replica.Rights(m.config)
	require.NoError(m, err)
	m.granted, err = grantsOf(objects, m.account)
	require.NoError(m, err)
	assert.Empty(m, excesses(m.granted, m.ns))
	m.replica = m.run(m.config)
	options := meshclient.SidecarTLS()
	options.ServerName = replica.ServerName
	m.endpoint, err = meshclient.Dial(m.replica.CSR(), m.root, options)
	require.NoError(m, err)
	m.Cleanup(func() { assert.NoError(m, m.endpoint.Close()) })
}

// run runs a replica until the test ends.
func (m *mesh) run(cfg replica.Config) *replica.Replica {
	m.Helper()
	r, err := replica.Start(m.Context(), plane, cfg)
	require.NoError(m, err)
	m.Cleanup(func() {
		r.Stop()
		log, err := r.Log()
		assert.NoError(m, err)
		assert.NotContains(m, log, "DATA RACE")
		if m.Failed() {
			m.Logf("the end of the log of a replica in %s:\n%s", m.ns, process.Tail(r.Process().Log(), 30))
		}
	})
	return r
}

// judge holds what was granted against what was asked for, so far.
func (m *mesh) judge() *verdict {
	m.Helper()
	requests, err := audit.of(m.account)
	require.NoError(m, err)
	return judge(m.granted, everybody, requests)
}

// proven waits until every right was used, and wants no fault to be found.
func (m *mesh) proven() {
	m.Helper()
	var v *verdict
	next := time.Now().Add(looks)
	for end := time.Now().Add(patience); ; time.Sleep(glance) {
		if v = m.judge(); len(v.unused) == 0 && len(v.tooWide) == 0 || time.Now().After(end) {
			break
		}
		if time.Now().After(next) {
			m.overdue() // the last ones were issued too slowly for it to be seen
			next = time.Now().Add(looks)
		}
	}
	m.Logf("%s: %s", strings.Split(m.ns, "-")[1], v)
	assert.True(m, v.good(), "%s", v)
}

// looks is a little more than the time from one look to the next that Signet has for leaves that are overdue.
const looks = 15 * time.Second

// again is the pause after which [mesh.used] does something once more.
const again = time.Second

// used does something, again and again, until a right was used: verb, resource and name, such as "get pods".
func (m *mesh) used(right string, do func()) {
	m.Helper()
	do()
	next := time.Now().Add(again)
	for end := time.Now().Add(patience); ; time.Sleep(glance) {
		for g := range m.judge().used {
			if strings.TrimSpace(g.verb+" "+g.resource+" "+g.name) == right {
				return
			}
		}
		if time.Now().After(end) {
			require.FailNow(m, "it was never asked for", "%s: %s\nrequests:\n%s", right, m.judge(), m.requests())
		}
		if time.Now().After(next) {
			do()
			next = time.Now().Add(again)
		}
	}
}

// requests are all that the account has made, for people.
func (m *mesh) requests() string {
	all, err := audit.of(m.account)
	require.NoError(m, err)
	var lines []string
	for r, n := range all {
		lines = append(lines, fmt.Sprintf("%s, %d times", r, n))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// eventually waits until what becomes true.
func (m *mesh) eventually(what func() bool, format string, args ...any) {
	m.Helper()
	for end := time.Now().Add(patience); !what(); time.Sleep(glance) {
		if time.Now().After(end) {
			require.FailNow(m, "it never came", fmt.Sprintf(format, args...))
		}
	}
}

// apply makes what a manifest says, as the administrator.
func (m *mesh) apply(manifest string, args ...any) {
	m.Helper()
	require.NoError(m, plane.Apply(m.Context(), fmt.Appendf(nil, manifest, args...)))
}

// set writes a ConfigMap.
func (m *mesh) set(namespace, name string, data map[string]string) {
	m.Helper()
	m.write(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: data})
}

// setSecret writes a Secret.
func (m *mesh) setSecret(namespace, name string, labels map[string]string, data map[string][]byte) {
	m.Helper()
	m.write(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}, Data: data})
}

func (m *mesh) write(object client.Object) {
	m.Helper()
	err := plane.Client().Update(m.Context(), object)
	if apierrors.IsNotFound(err) {
		err = plane.Client().Create(m.Context(), object)
	}
	require.NoError(m, err)
}

// namespace makes one that anchors are distributed to.
func (m *mesh) namespace(prefix string) string {
	m.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: prefix + "-" + rand.String(5), Labels: map[string]string{"mesh": m.label}}}
	require.NoError(m, plane.Client().Create(m.Context(), ns))
	return ns.Name
}

// workload is a pod with a sidecar behind a service of its name.
type workload struct {
	pod   *corev1.Pod
	id    spiffeid.ID
	token string // bound to the pod
}

// workload makes one in a namespace of the mesh, on a node.
func (m *mesh) workload(name, node string) *workload {
	m.Helper()
	pod, err := plane.Workload(m.Context(), m.namespace(name), name, node)
	require.NoError(m, err)
	token, err := plane.Token(m.Context(), pod.Namespace, name, controlplane.TokenOptions{Pod: pod})
	require.NoError(m, err)
	return &workload{pod, identity(pod.Namespace, name), token}
}

func identity(namespace, account string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://cluster.local/ns/" + namespace + "/sa/" + account)
}

// issue asks an endpoint for a certificate for an identity and has it.
func (m *mesh) issue(from *meshclient.Client, ask meshclient.Ask, id spiffeid.ID) *tls.Certificate {
	m.Helper()
	key, csr, err := meshclient.ZtunnelCSR(id)
	require.NoError(m, err)
	ask.CSR = csr
	return m.pair(key, m.answer(from, ask))
}

// answer asks and wants to be answered.
func (m *mesh) answer(from *meshclient.Client, ask meshclient.Ask) []string {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), patience)
	defer cancel()
	chain, err := from.Create(ctx, ask)
	require.NoError(m, err)
	return chain
}

// pair is a leaf with its key.
func (m *mesh) pair(key any, chain []string) *tls.Certificate {
	m.Helper()
	block, _ := pem.Decode([]byte(chain[0]))
	require.NotNil(m, block)
	return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
}

// inspection asks the inspection API as the auditor.
func (m *mesh) inspection() *api.Client {
	m.Helper()
	token, err := plane.Token(m.Context(), "people", "auditor", controlplane.TokenOptions{Audiences: []string{"signet.dev"}})
	require.NoError(m, err)
	roots := x509.NewCertPool()
	require.True(m, roots.AppendCertsFromPEM(m.root))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	m.Cleanup(transport.CloseIdleConnections)
	asking, err := api.NewClient(m.replica.APIURL(), &http.Client{Transport: bearer{token, transport}, Timeout: patience})
	require.NoError(m, err)
	return asking
}

// bearer shows a token with each request.
type bearer struct {
	token string
	base  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.base.RoundTrip(r)
}

// flip has the issuer be not ready, and then ready again, each for so long that Signet knows.
func (m *mesh) flip() {
	m.Helper()
	for _, state := range []string{"NotReady", "Ready"} {
		// Cert-manager may write its status at the same time.
		require.NoError(m, retry.RetryOnConflict(retry.DefaultBackoff, func() error {
			if err := plane.Client().Get(m.Context(), client.ObjectKeyFromObject(m.issuer), m.issuer); err != nil {
				return err
			}
			var spec *cmapi.IssuerSpec
			switch issuer := m.issuer.(type) {
			case *cmapi.Issuer:
				spec = &issuer.Spec
			case *cmapi.ClusterIssuer:
				spec = &issuer.Spec
			}
			spec.CA.SecretName = strings.TrimSuffix(spec.CA.SecretName, "-missing")
			if state == "NotReady" {
				spec.CA.SecretName += "-missing"
			}
			return plane.Client().Update(m.Context(), m.issuer)
		}))
		m.eventually(func() bool {
			_, body, err := m.replica.Readyz(m.Context())
			require.NoError(m, err)
			return strings.Contains(body, "/"+m.issuer.GetName()+" is in force, "+state)
		}, "Signet says that %s is %s", m.issuer.GetName(), state)
	}
}
