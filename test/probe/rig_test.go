package probe

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/api/probe"
	"github.com/signet-ca/signet/api/records"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/testca"
)

const (
	// patience is how long a test waits for what must come; it only ever runs out when it doesn't.
	patience = 3 * time.Minute
	// glance is the pause between two looks.
	glance = 20 * time.Millisecond
)

var trustDomain = spiffeid.RequireTrustDomainFromString("cluster.local")

// rig is a prober with all that it works with, and what it dialed.
type rig struct {
	*probe.Prober
	t         *testing.T
	inventory *inventory.Inventory
	ledger    *ledger.Store
	other     *testca.Authority // a second root of the mesh, whose key the test has
	registry  *prometheus.Registry
	sources   probe.Sources
	log       *slog.Logger

	mu      sync.Mutex // guards the following
	servers map[string]string
	dialed  []string
	told    []string
	logged  strings.Builder // by the prober
}

// logOf writes what the prober logs, to the test's output and for the test to read.
type logOf struct{ *rig }

func (l logOf) Write(line []byte) (int, error) {
	l.mu.Lock()
	l.logged.Write(line)
	l.mu.Unlock()
	return l.t.Output().Write(line)
}

func start(t *testing.T, account string, cfg probe.Config) *rig {
	t.Helper()
	config, err := plane.As(t.Context(), home, account)
	require.NoError(t, err)
	httpClient, err := rest.HTTPClientFor(config)
	require.NoError(t, err)
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme), cmapi.AddToScheme(scheme)))
	mapper := newMapper()
	objects, err := cache.New(config, cache.Options{HTTPClient: httpClient, Scheme: scheme, Mapper: mapper, ByObject: inventory.CacheOptions()})
	require.NoError(t, err)
	reader, err := client.New(config, client.Options{HTTPClient: httpClient, Scheme: scheme, Mapper: mapper})
	require.NoError(t, err)

	r := &rig{t: t, servers: make(map[string]string), registry: prometheus.NewRegistry(), log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	r.other, err = testca.NewRoot("other")
	require.NoError(t, err)
	anchors := x509.NewCertPool()
	require.True(t, anchors.AppendCertsFromPEM(rootPEM))
	anchors.AddCert(r.other.Cert)

	r.ledger, err = ledger.Open(t.Context(), ledger.Config{Dir: t.TempDir(), Replica: "a"}, r.log, prometheus.NewRegistry())
	require.NoError(t, err)
	r.inventory, err = inventory.New(inventory.Config{TrustDomain: trustDomain, Cluster: "Kubernetes", Gateways: inventory.GatewaysConfig{Disabled: true}},
		records.Of(r.ledger), inventory.TrustSources{}, r.log, prometheus.NewRegistry())
	require.NoError(t, err)
	require.NoError(t, r.inventory.Observe(t.Context(), objects))
	r.sources = probe.Sources{
		Inventory: r.inventory, Records: records.Of(r.ledger), Reader: reader, Config: config,
		Anchors: func() *x509.CertPool { return anchors }, Known: probe.Certificates{Reader: reader},
		Tell: func(found *api.Probe, user string, _ time.Duration) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, fmt.Sprintf("%s %s/%s %s", user, found.Namespace, found.Service, found.Verdict))
		},
		Dial: r.dial,
	}
	cfg.TrustDomain = trustDomain
	r.Prober, err = probe.New(cfg, r.sources, slog.New(slog.NewTextHandler(logOf{r}, nil)), r.registry)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(logr.NewContext(context.WithoutCancel(t.Context()), logr.FromSlogHandler(r.log.Handler())))
	var group sync.WaitGroup
	group.Go(func() { assert.NoError(t, objects.Start(ctx)) })
	group.Go(func() { assert.NoError(t, r.inventory.Start(ctx)) })
	group.Go(func() { assert.NoError(t, r.Start(ctx)) })
	t.Cleanup(func() {
		cancel()
		group.Wait()
		httpClient.CloseIdleConnections()
		assert.NoError(t, r.ledger.Close())
	})
	return r
}

// newMapper knows the kinds that are asked for, and nothing has to be discovered.
func newMapper() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, kind := range inventory.Kinds() {
		scope := meta.RESTScopeNamespace
		if kind.Kind == "Namespace" {
			scope = meta.RESTScopeRoot
		}
		mapper.Add(kind, meta.RESTScope(scope))
	}
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	mapper.Add(cmapi.SchemeGroupVersion.WithKind(cmapi.CertificateKind), meta.RESTScopeNamespace)
	return mapper
}

// dial leads to the servers of this process, and remembers what was dialed.
func (r *rig) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	r.mu.Lock()
	r.dialed = append(r.dialed, to.String())
	server := r.servers[to.String()]
	r.mu.Unlock()
	if server == "" {
		return nil, errors.New("nobody listens")
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", server)
}

// dials are the addresses that were dialed since the last time.
func (r *rig) dials() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	dialed := r.dialed
	r.dialed = nil
	return dialed
}

// serve makes a pod serve a certificate on a port, and demand one.
func (r *rig) serve(pod *corev1.Pod, port int, leaf *tls.Certificate) {
	r.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(r.t, err)
	config := &tls.Config{Certificates: []tls.Certificate{*leaf}, ClientAuth: tls.RequireAnyClientCert}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(patience))
				if server := tls.Server(conn, config); server.Handshake() == nil {
					_, _ = io.Copy(io.Discard, server)
				}
			})
		}
	})
	r.t.Cleanup(func() {
		listener.Close()
		group.Wait()
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.servers[fmt.Sprintf("%s:%d", pod.Status.PodIP, port)] = listener.Addr().String()
}

// workload is a service with a pod behind it, with a sidecar, as it is known to the inventory.
func (r *rig) workload(namespace, name string) *corev1.Pod {
	r.t.Helper()
	pod, err := plane.Workload(r.t.Context(), namespace, name, "node-a")
	require.NoError(r.t, err)
	r.known(pod, name)
	return pod
}

// known waits until the inventory knows a pod behind a service, as it is.
func (r *rig) known(pod *corev1.Pod, service string) {
	r.t.Helper()
	require.EventuallyWithT(r.t, func(c *assert.CollectT) {
		found, err := r.inventory.Service(r.t.Context(), pod.Namespace, service)
		require.NoError(c, err)
		require.Len(c, found.Pods, 1)
		assert.Equal(c, string(pod.UID), found.Pods[0].UID)
	}, patience, glance)
}

// listed waits until the inventory knows a service.
func (r *rig) listed(namespace, service string) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		_, err := r.inventory.Service(r.t.Context(), namespace, service)
		return err == nil
	}, patience, glance)
}

// issued is a certificate for the identity of a pod that cert-manager issued.
func issued(t *testing.T, pod *corev1.Pod) (*tls.Certificate, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{identity(pod)}}, key)
	require.NoError(t, err)
	request := &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: home, GenerateName: "by-hand-"},
		Spec: cmapi.CertificateRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), Duration: &metav1.Duration{Duration: time.Hour},
			IssuerRef: cmmeta.IssuerReference{Name: "istio-ca"}, Usages: []cmapi.KeyUsage{cmapi.UsageClientAuth, cmapi.UsageServerAuth},
		},
	}
	require.NoError(t, plane.Client().Create(t.Context(), request))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, plane.Client().Get(t.Context(), client.ObjectKeyFromObject(request), request))
		assert.NotEmpty(c, request.Status.Certificate)
	}, patience, glance)
	return pair(t, request.Status.Certificate, key)
}

func identity(pod *corev1.Pod) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: trustDomain.Name(), Path: "/ns/" + pod.Namespace + "/sa/" + pod.Spec.ServiceAccountName}
}

func pair(t *testing.T, chainPEM []byte, key any) (*tls.Certificate, *x509.Certificate) {
	t.Helper()
	certificate := &tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(chainPEM); block != nil; block, rest = pem.Decode(rest) {
		certificate.Certificate = append(certificate.Certificate, block.Bytes)
	}
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	require.NoError(t, err)
	return certificate, leaf
}

// record makes a certificate one that was issued to a pod some time ago.
func (r *rig) record(leaf *x509.Certificate, pod *corev1.Pod, ago time.Duration) {
	r.t.Helper()
	issuance, err := ledger.NewIssuance(leaf, nil)
	require.NoError(r.t, err)
	issuance.RecordedAt, issuance.Issuer = time.Now().Add(-ago), "Issuer.cert-manager.io/istio-ca"
	issuance.Pod, issuance.PodUID, issuance.Node, issuance.Cluster = pod.Name, string(pod.UID), pod.Spec.NodeName, "Kubernetes"
	require.NoError(r.t, r.ledger.Record(r.t.Context(), issuance))
	r.inventory.Issued(records.Certificate(&issuance))
}

// everything may be seen.
type everything struct{}

func (everything) All() bool             { return true }
func (everything) Namespace(string) bool { return true }

// probed is what a probe of a service by one who may see all finds.
func (r *rig) probed(namespace, service string, change ...func(*api.ProbeRequest)) *api.Probe {
	r.t.Helper()
	q := api.ProbeRequest{Namespace: namespace, Service: service}
	for _, f := range change {
		f(&q)
	}
	found, err := r.Probe(r.t.Context(), "test", q, everything{})
	require.NoError(r.t, err)
	return found
}

func codes(p *api.Probe) []api.ProbeCode {
	all := []api.ProbeCode{}
	for _, r := range p.Results {
		for _, f := range r.Findings {
			all = append(all, f.Code)
		}
	}
	return all
}

// listen starts the inspection API in front of the prober, and returns a client for each user of the namespace people.
func (r *rig) listen() func(user string) *api.Client {
	r.t.Helper()
	serving, _ := r.sign(&testca.Template{}, "localhost")
	server, err := api.NewServer(api.Config{Listen: "127.0.0.1:0"}, r.inventory, func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return serving, nil },
		api.Cluster{Config: r.sources.Config, Namespaces: func() []string { return []string{"shop", "other"} }}, api.Mesh{}, r.log, prometheus.NewRegistry())
	require.NoError(r.t, err)
	server.SetProber(r.Prober)
	ctx, stop := context.WithCancel(context.WithoutCancel(r.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- server.Start(ctx) }()
	r.t.Cleanup(func() {
		stop()
		assert.NoError(r.t, <-ended)
	})
	require.Eventually(r.t, func() bool { return server.Address() != nil }, patience, time.Millisecond)
	roots := x509.NewCertPool()
	roots.AddCert(r.other.Cert)
	return func(user string) *api.Client {
		token, err := plane.Token(r.t.Context(), "people", user, controlplane.TokenOptions{Audiences: []string{"signet.dev"}})
		require.NoError(r.t, err)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}, ForceAttemptHTTP2: true}
		r.t.Cleanup(transport.CloseIdleConnections)
		client, err := api.NewClient("https://"+server.Address().String(), &http.Client{Transport: bearer{token, transport}})
		require.NoError(r.t, err)
		return client
	}
}

type bearer struct {
	token string
	base  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.base.RoundTrip(r)
}

// sign is a certificate of the mesh's second root, half an hour old, for a DNS name or a URI.
func (r *rig) sign(template *testca.Template, name string) (*tls.Certificate, *x509.Certificate) {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(r.t, err)
	template.Key, template.NotBefore, template.NotAfter = key.Public(), time.Now().Add(-30*time.Minute), time.Now().Add(time.Hour)
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	require.NoError(r.t, err)
	if uri, err := url.Parse(name); err == nil && uri.Scheme != "" {
		template.URIs = []*url.URL{uri}
	} else {
		template.DNSNames = []string{name}
	}
	chain, err := r.other.Sign(template)
	require.NoError(r.t, err)
	return pair(r.t, chain, key)
}

// keyPair is what cert-manager keeps in a Secret.
func keyPair(t *testing.T, secret *corev1.Secret) *tls.Certificate {
	t.Helper()
	certificate, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	require.NoError(t, err)
	return &certificate
}
