// Package trust changes issuers and trust anchors of a running Signet on a real control plane, while its clients go on
// asking and connecting to one another. A test that proves a rule of the protocol carries its number in its name.
package trust

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"maps"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// glance is the pause between two tries.
const glance = 50 * time.Millisecond

// plane is the control plane that all tests of the package share.
var plane *controlplane.Plane

func TestMain(m *testing.M) {
	// Parallel tests wait for clocks most of the time.
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(controlplane.Run(m, controlplane.Config{}, &plane, nil))
}

// mesh is a namespace for Signet with two issuers, a and b, each with a root of its own, and namespaces of workloads.
type mesh struct {
	ns    string
	label string            // selects the namespaces of the mesh
	roots map[string][]byte // PEM, by issuer
}

// Names of the issuers, and of the ConfigMaps.
const (
	issuerA     = "ca-a"
	issuerB     = "ca-b"
	rootsMap    = "signet-roots"
	runtimeMap  = "signet-issuer"
	stateMap    = "signet-trust-anchors"
	replicasMap = "signet-replicas"
	mountedMap  = "istio-ca-root-cert"
)

func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{ns: plane.NewNamespace(t, "trust"), label: "mesh-" + rand.String(5), roots: make(map[string][]byte)}
	for _, name := range []string{issuerA, issuerB} {
		root, err := plane.BootstrapCA(t.Context(), m.ns, name, controlplane.CAOptions{})
		require.NoError(t, err)
		m.roots[name] = root
	}
	return m
}

// short are settings with which a rollover takes seconds: a leaf lives for 15 of them at most.
func (m *mesh) short(further map[string]any) map[string]any {
	settings := map[string]any{
		"ca.lifetime.default":             "15s",
		"ca.lifetime.max":                 "15s",
		"ca.lifetime.min":                 "5s",
		"signer.timeout":                  shortTimeout.String(),
		"ca.requestTimeout":               "4s",
		"roots.configMap.name":            rootsMap,
		"roots.configMap.key":             "roots.pem",
		"issuers.runtime.name":            runtimeMap,
		"distribution.disabled":           false,
		"distribution.clusterTrustBundle": "off", // the cluster has only one
		"distribution.namespaceSelector":  "mesh=" + m.label,
	}
	maps.Copy(settings, further)
	return settings
}

func (m *mesh) start(t *testing.T, settings map[string]any) *replica.Replica {
	t.Helper()
	return m.startAs(t, replica.Config{Namespace: m.ns, Issuer: issuerA, Settings: settings})
}

func (m *mesh) startAs(t *testing.T, cfg replica.Config) *replica.Replica {
	t.Helper()
	r, err := replica.Start(t.Context(), plane, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		r.Stop()
		log, err := r.Log()
		assert.NoError(t, err)
		if at := strings.Index(log, "WARNING: DATA RACE"); at >= 0 {
			assert.Fail(t, "data race", "%.5000s", log[at:])
		}
		if t.Failed() {
			t.Logf("the log of a replica, without what it issued:\n%s", lastOf(notIssued(log), 12_000))
		}
	})
	return r
}

func notIssued(log string) string {
	var kept []string
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "certificate issued") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func lastOf(text string, most int) string {
	if len(text) > most {
		return "…" + text[len(text)-most:]
	}
	return text
}

// set writes a ConfigMap in Signet's namespace.
func (m *mesh) set(t *testing.T, name string, data map[string]string) {
	t.Helper()
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: m.ns, Name: name}, Data: data}
	err := plane.Client().Update(t.Context(), object)
	if apierrors.IsNotFound(err) {
		err = plane.Client().Create(t.Context(), object)
	}
	require.NoError(t, err)
}

// pin makes the roots of these issuers the ones that the operator names.
func (m *mesh) pin(t *testing.T, issuers ...string) {
	t.Helper()
	var all []byte
	for _, name := range issuers {
		all = append(all, m.roots[name]...)
	}
	m.set(t, rootsMap, map[string]string{"roots.pem": string(all)})
}

// want names the issuer that should sign.
func (m *mesh) want(t *testing.T, name string) {
	t.Helper()
	m.set(t, runtimeMap, map[string]string{"issuer-name": name})
}

// get reads a ConfigMap; its data is nil where there is none.
func get(t *testing.T, ns, name string) *corev1.ConfigMap {
	t.Helper()
	var object corev1.ConfigMap
	err := plane.Client().Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, &object)
	if !apierrors.IsNotFound(err) {
		require.NoError(t, err)
	}
	return &object
}

// state is the rollover as it is kept.
func (m *mesh) state(t *testing.T) *issuer.Rollover {
	t.Helper()
	object := get(t, m.ns, stateMap)
	if object.Data == nil {
		return new(issuer.Rollover)
	}
	state, err := issuer.ParseRollover(object.Data["rollover.json"], object.Data["root-cert.pem"])
	require.NoError(t, err)
	return state
}

// phase is that of the root of an issuer, "" where it is no anchor.
func (m *mesh) phase(t *testing.T, name string) issuer.Phase {
	t.Helper()
	a, _ := m.state(t).Anchor(m.id(t, name))
	return a.Phase
}

// namespace makes one of the mesh's.
func (m *mesh) namespace(t *testing.T, prefix string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: prefix + "-" + rand.String(5), Labels: map[string]string{"mesh": m.label}}}
	require.NoError(t, plane.Client().Create(t.Context(), ns))
	return ns.Name
}

// workload is somebody with a service account in a namespace of the mesh.
type workload struct {
	ns, sa, token string
	id            spiffeid.ID
}

func (m *mesh) workload(t *testing.T, name string) *workload {
	t.Helper()
	w := &workload{ns: m.namespace(t, name), sa: "web"}
	require.NoError(t, plane.ServiceAccount(t.Context(), w.ns, w.sa))
	var err error
	w.token, err = plane.Token(t.Context(), w.ns, w.sa, controlplane.TokenOptions{})
	require.NoError(t, err)
	w.id, err = spiffeid.FromString("spiffe://cluster.local/ns/" + w.ns + "/sa/" + w.sa)
	require.NoError(t, err)
	return w
}

// dial connects to a replica with these roots.
func dial(t *testing.T, r *replica.Replica, roots ...[]byte) *meshclient.Client {
	t.Helper()
	options := meshclient.SidecarTLS()
	options.ServerName = replica.ServerName
	c, err := meshclient.Dial(r.CSR(), bytes.Join(roots, nil), options)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return c
}

// shortTimeout is how long the issuer may take with the settings of short.
const shortTimeout = 3 * time.Second

// tooSlow says whether a request ended because of its deadline, which is seconds away here, so that rollovers are short.
// That it was so is told by different codes, depending on what it waited for.
func tooSlow(err error, took time.Duration) bool {
	switch status.Code(err) {
	case codes.DeadlineExceeded, codes.ResourceExhausted:
		return true
	case codes.Unavailable, codes.Canceled:
		return took >= shortTimeout
	}
	return false
}

// ask asks for a certificate of the longest life that there is. A request that the machine was too slow for says nothing,
// and is made again, as Istio's agent does.
func (w *workload) ask(ctx context.Context, c *meshclient.Client) (*holding, error) {
	ctx, cancel := context.WithTimeout(ctx, patiently.Timeout)
	defer cancel()
	for {
		began := time.Now()
		h, err := w.askOnce(ctx, c)
		if ctx.Err() != nil || !tooSlow(err, time.Since(began)) {
			return h, err
		}
		time.Sleep(glance)
	}
}

func (w *workload) askOnce(ctx context.Context, c *meshclient.Client) (*holding, error) {
	key, csr, err := meshclient.ZtunnelCSR(w.id)
	if err != nil {
		return nil, err
	}
	chain, err := c.Create(ctx, meshclient.Ask{Token: w.token, CSR: csr, ValiditySeconds: 600, ClusterIDs: []string{"Kubernetes"}})
	if err != nil {
		return nil, err
	}
	if err := meshclient.JudgeSidecar(chain, key.Public(), w.id, time.Now()); err != nil {
		return nil, err
	}
	return newHolding(chain, key)
}

// issuedBy asks, wants a certificate, and returns the issuer whose root it leads to.
func (m *mesh) issuedBy(t *testing.T, w *workload, c *meshclient.Client) string {
	t.Helper()
	h, err := w.ask(t.Context(), c)
	require.NoError(t, err)
	return m.issuerOf(h)
}

func (m *mesh) issuerOf(h *holding) string {
	for name, root := range m.roots {
		if h.under(root) {
			return name
		}
	}
	return ""
}

// logged waits until the log of a replica has a text.
func logged(t *testing.T, r *replica.Replica, text string) {
	t.Helper()
	patiently.Holds(t, func() bool { log, err := r.Log(); return err == nil && strings.Contains(log, text) }, "the log says %q", text)
}

// readyz is what a replica says of itself.
func readyz(t *testing.T, r *replica.Replica) string {
	t.Helper()
	_, body, err := r.Readyz(t.Context())
	require.NoError(t, err)
	return body
}

var errNoPEM = errors.New("no PEM block")

// id is the ID of the root of an issuer.
func (m *mesh) id(t *testing.T, name string) string {
	t.Helper()
	certs, err := issuer.ParseCertificates(m.roots[name])
	require.NoError(t, err)
	return issuer.AnchorID(certs[0])
}

// newExpiredRoot is a root that has expired, as PEM.
func newExpiredRoot(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "expired"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
