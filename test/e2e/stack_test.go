package e2e

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

const day = 24 * time.Hour

// stack is a running Signet, the issuer that signs for it, and the settings it was started with.
type stack struct {
	*replica.Replica
	ns          string // Signet's own
	root        []byte // PEM, of the CA that signs
	trustDomain string // of the identities that it gives
	config      replica.Config
}

// base are the settings of the stacks that several tests share: requests stay for tests to look at,
// the log says all that it ever says, and the API server may stand still for a while.
func base(further map[string]any) map[string]any {
	settings := map[string]any{
		"signer.sweep.keep":      "10m",
		"log.level":              "debug",
		"ca.token.reviewTimeout": "30s",
	}
	maps.Copy(settings, further)
	return settings
}

// shared holds what ends the stacks that are started once, by the first test that wants them.
var shared struct {
	mu   sync.Mutex
	ends []func() error
}

// stopShared stops them, the last one first.
func stopShared() error {
	var all []error
	for _, end := range slices.Backward(shared.ends) {
		all = append(all, end())
	}
	return errors.Join(all...)
}

// onLeaving has end called when all tests have ended.
func onLeaving(end func() error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.ends = append(shared.ends, end)
}

// end ends a replica at once: stopping gracefully, it would sweep what is kept for tests to look at. The
// error says what the race detector has seen, in a program that was built with it.
func end(r *replica.Replica) error {
	r.Kill()
	log, err := r.Log()
	if err != nil {
		return err
	}
	if at := strings.Index(log, "WARNING: DATA RACE"); at >= 0 {
		return fmt.Errorf("signet: %.5000s", log[at:])
	}
	return nil
}

// otherRoot is an anchor that signs nothing: answers carry all anchors (R41).
var otherRoot = sync.OnceValue(func() []byte { return newAuthority("retired root", nil).pem() })

// commonStack has every default that matters: cert-manager's CA issuer, an ECDSA root that signs
// leaves itself. The roots are pinned in one order here, and in another one in [TestR44_OneBundle].
var commonStack = sync.OnceValues(func() (*stack, error) {
	ctx := context.Background()
	ns := "signet-" + rand.String(5)
	root, err := bootstrap(ctx, ns, controlplane.CAOptions{})
	if err != nil {
		return nil, err
	}
	return startShared(ctx, &stack{ns: ns, root: root, trustDomain: "cluster.local", config: replica.Config{
		RootPEM:  append(append([]byte("# in force\n"), root...), otherRoot()...),
		Settings: base(nil),
	}})
})

// variantStack has everything set that can be set: an intermediate that signs leaves, RSA keys, and
// names and bounds of its own.
var variantStack = sync.OnceValues(func() (*stack, error) {
	ctx := context.Background()
	ns := "variant-" + rand.String(5)
	root, err := bootstrap(ctx, ns, controlplane.CAOptions{Intermediate: true, RSA: true})
	if err != nil {
		return nil, err
	}
	return startShared(ctx, &stack{ns: ns, root: root, trustDomain: "my.mesh.example", config: replica.Config{
		RootPEM: root,
		Settings: base(map[string]any{
			"trustDomain":            "my@mesh.example",
			"clusterID":              "east",
			"ca.clusterAliases":      []string{"old-east", "kubernetes-east"},
			"ca.token.audiences":     []string{"mesh-ca", "vault"},
			"ca.token.cacheAccepted": "60s",
			"ca.lifetime.default":    "1h",
			"ca.lifetime.max":        "2h",
			"ca.lifetime.min":        "30s",
			"serving.key":            "RSA-2048",
			"serving.service":        "ca",
			"serving.clusterDomain":  "corp.example",
		}),
	}})
})

// bootstrap makes a namespace for Signet with the CA istio-ca in it.
func bootstrap(ctx context.Context, ns string, opts controlplane.CAOptions) ([]byte, error) {
	if err := plane.Namespace(ctx, ns); err != nil {
		return nil, err
	}
	return plane.BootstrapCA(ctx, ns, "istio-ca", opts)
}

func startShared(ctx context.Context, s *stack) (*stack, error) {
	s.config.Namespace = s.ns
	r, err := replica.Start(ctx, plane, s.config)
	if err != nil {
		return nil, err
	}
	onLeaving(func() error { return end(r) })
	s.Replica = r
	return s, nil
}

// common is the Signet that most tests share.
func common(t *testing.T) *stack { return must(t, commonStack) }

// variant is the Signet whose settings are not the defaults. Its tokens are for audience mesh-ca.
func variant(t *testing.T) *stack { return must(t, variantStack) }

func must(t *testing.T, start func() (*stack, error)) *stack {
	t.Helper()
	s, err := start()
	require.NoError(t, err)
	require.False(t, s.Process().Ended(), "a Signet that is shared has ended")
	return s
}

// peer starts another replica beside s, with the same settings but for those given, for one test.
func (s *stack) peer(t *testing.T, settings map[string]any, roots []byte) *stack {
	t.Helper()
	other := *s
	other.config.Settings = maps.Clone(s.config.Settings)
	maps.Copy(other.config.Settings, settings)
	if roots != nil {
		other.config.RootPEM = roots
	}
	r, err := replica.Start(t.Context(), plane, other.config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, end(r)) })
	other.Replica = r
	return &other
}

// audience is what the tokens of the stack's callers are for.
func (s *stack) audience() string {
	if audiences, ok := s.config.Settings["ca.token.audiences"].([]string); ok {
		return audiences[0]
	}
	return controlplane.DefaultAudience
}

// dial makes a client with a sidecar's TLS, or with that given.
func (s *stack) dial(t *testing.T, options ...meshclient.Options) *meshclient.Client {
	t.Helper()
	opts := meshclient.SidecarTLS()
	if len(options) > 0 {
		opts = options[0]
	}
	if opts.ServerName == "" {
		opts.ServerName = replica.ServerName
	}
	c, err := meshclient.Dial(s.CSR(), s.root, opts)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return c
}

// caller is somebody with a service account.
type caller struct {
	s      *stack
	ns, sa string
	id     spiffeid.ID
	token  string
}

// caller makes one in a namespace of its own, with a token that is bound to no pod.
func (s *stack) caller(t *testing.T) *caller {
	t.Helper()
	return s.callerIn(t, plane.NewNamespace(t, "team"), "web")
}

// callerIn makes one in a namespace that is there.
func (s *stack) callerIn(t *testing.T, ns, sa string) *caller {
	t.Helper()
	require.NoError(t, plane.ServiceAccount(t.Context(), ns, sa))
	c := &caller{s: s, ns: ns, sa: sa, id: s.identity(t, ns, sa)}
	c.token = c.newToken(t)
	return c
}

func (s *stack) identity(t *testing.T, ns, sa string) spiffeid.ID {
	t.Helper()
	id, err := spiffeid.FromString("spiffe://" + s.trustDomain + "/ns/" + ns + "/sa/" + sa)
	require.NoError(t, err)
	return id
}

// newToken is another token of the caller's service account.
func (c *caller) newToken(t *testing.T) string {
	t.Helper()
	token, err := plane.Token(t.Context(), c.ns, c.sa, controlplane.TokenOptions{Audiences: []string{c.s.audience()}})
	require.NoError(t, err)
	return token
}

// csr is a request of ztunnel's for the caller's own identity, with a new key.
func (c *caller) csr(t *testing.T) string {
	t.Helper()
	_, csr, err := meshclient.ZtunnelCSR(c.id)
	require.NoError(t, err)
	return csr
}

// ask is what the caller would send: its token, a new request, a day.
func (c *caller) ask(t *testing.T) meshclient.Ask {
	t.Helper()
	return meshclient.Ask{Token: c.token, CSR: c.csr(t), ValiditySeconds: int64(day / time.Second), ClusterIDs: []string{c.s.clusterID()}}
}

func (s *stack) clusterID() string {
	if id, ok := s.config.Settings["clusterID"].(string); ok {
		return id
	}
	return "Kubernetes"
}

// create asks, and gives up where there is no answer at all.
func create(t *testing.T, c *meshclient.Client, ask meshclient.Ask) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	return c.Create(ctx, ask)
}

// issued asks, wants a certificate, and returns the leaf.
func issued(t *testing.T, c *meshclient.Client, ask meshclient.Ask) *x509.Certificate {
	t.Helper()
	chain, err := create(t, c, ask)
	require.NoError(t, err)
	return leafOf(t, chain)
}

// refused asks, wants exactly this code, and returns the text that came with it.
func refused(t *testing.T, c *meshclient.Client, ask meshclient.Ask, code codes.Code) string {
	t.Helper()
	chain, err := create(t, c, ask)
	require.Error(t, err, "%d elements were answered", len(chain))
	require.Equal(t, code.String(), status.Code(err).String(), "%v", err)
	return status.Convert(err).Message()
}

// leafOf is the first certificate of an answer.
func leafOf(t *testing.T, chain []string) *x509.Certificate {
	t.Helper()
	require.NotEmpty(t, chain)
	return certificateIn(t, chain[0])
}

// certificateIn is the one certificate of a PEM text.
func certificateIn(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	certs := certificatesIn(t, text)
	require.Len(t, certs, 1)
	return certs[0]
}

// certificatesIn are all certificates of a PEM text that holds nothing else.
func certificatesIn(t *testing.T, text string) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for rest := []byte(text); len(bytes.TrimSpace(rest)) > 0; {
		block, after := pem.Decode(rest)
		require.NotNil(t, block, "%s", rest)
		require.Equal(t, "CERTIFICATE", block.Type)
		cert, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		certs = append(certs, cert)
		rest = after
	}
	return certs
}

// derOf is what the first PEM block of text holds.
func derOf(t *testing.T, text string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	require.NotNil(t, block)
	return block.Bytes
}

// requests are the CertificateRequests for workloads that exist.
func (s *stack) requests(t *testing.T) []cmapi.CertificateRequest {
	t.Helper()
	var list cmapi.CertificateRequestList
	require.NoError(t, plane.Client().List(t.Context(), &list, client.InNamespace(s.ns)))
	var found []cmapi.CertificateRequest
	for _, cr := range list.Items {
		switch cr.Labels["signet.dev/request"] {
		case "workload":
			found = append(found, cr)
		case "serving", "":
		default:
			t.Errorf("CertificateRequest %s is labelled %q", cr.Name, cr.Labels["signet.dev/request"])
		}
	}
	return found
}

// requestsFor are those that carry exactly the request csr.
func (s *stack) requestsFor(t *testing.T, csr string) []cmapi.CertificateRequest {
	t.Helper()
	var found []cmapi.CertificateRequest
	for _, cr := range s.requests(t) {
		if bytes.Equal(derOf(t, string(cr.Spec.Request)), derOf(t, csr)) {
			found = append(found, cr)
		}
	}
	return found
}

// makesNone runs do and wants that it made no CertificateRequest for a workload. It is for tests that
// have the stack to themselves.
func (s *stack) makesNone(t *testing.T, do func()) {
	t.Helper()
	before := make(map[string]bool)
	for _, cr := range s.requests(t) {
		before[cr.Name] = true
	}
	do()
	for _, cr := range s.requests(t) {
		assert.True(t, before[cr.Name], "CertificateRequest %s was made for %s", cr.Name, cr.Annotations["istio.cert-manager.io/identities"])
	}
}

// metric reads one metric of Signet, without its prefix.
func (s *stack) metric(t *testing.T, name string, labels map[string]string) float64 {
	t.Helper()
	value, err := s.Metric(t.Context(), "signet_"+name, labels)
	require.NoError(t, err)
	return value
}

// outcome is how one call ended.
type outcome struct {
	chain []string
	err   error
}

// later asks in the background.
func later(ctx context.Context, c *meshclient.Client, ask meshclient.Ask) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		chain, err := c.Create(ctx, ask)
		done <- outcome{chain, err}
	}()
	return done
}

// await waits for a call that was asked in the background.
func await(t *testing.T, done <-chan outcome) outcome {
	t.Helper()
	select {
	case o := <-done:
		return o
	case <-time.After(patiently.Timeout):
		require.FailNow(t, "a call has no end")
		return outcome{}
	}
}

// asKind makes a key and a request of Istio's agent for id.
func asKind(t *testing.T, id spiffeid.ID, kind meshclient.KeyType) (crypto.Signer, string) {
	t.Helper()
	key, csr, err := meshclient.SidecarCSR(id, kind)
	require.NoError(t, err)
	return key, csr
}

// requireCode wants a call to have been refused with exactly this code.
func requireCode(t *testing.T, o outcome, code codes.Code) {
	t.Helper()
	require.Error(t, o.err)
	require.Equal(t, code.String(), status.Code(o.err).String(), "%v", o.err)
}
