package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/testca"
)

// shown is what the server shows: a service and a certificate in each of three namespaces.
type shown struct{ changed chan struct{} }

var places = []string{"alpha", "beta", "gamma"}

func digest(namespace string) string {
	for i, place := range places {
		if place == namespace {
			return "000000000000000000000000000000000000000000000000000000000000000" + string(rune('0'+i))
		}
	}
	return ""
}

func sees(v api.Visible, namespace, wanted string) bool {
	return (wanted == "" || wanted == namespace) && v.Namespace(namespace)
}

func (s shown) Services(_ context.Context, q api.ServiceQuery) (*api.ServiceList, error) {
	list := &api.ServiceList{}
	for _, place := range places {
		if sees(q.Visible, place, q.Namespace) {
			list.Items = append(list.Items, api.Service{Namespace: place, Name: "web"})
		}
	}
	return list, nil
}

func (s shown) Service(_ context.Context, namespace, name string) (*api.Service, error) {
	if digest(namespace) == "" || name != "web" {
		return nil, api.ErrNotFound
	}
	return &api.Service{Namespace: namespace, Name: name}, nil
}

func (s shown) Certificates(_ context.Context, q api.CertificateQuery) (*api.CertificateList, error) {
	list := &api.CertificateList{}
	for _, place := range places {
		if sees(q.Visible, place, q.Namespace) {
			list.Items = append(list.Items, api.Certificate{Namespace: place, SHA256: digest(place)})
		}
	}
	return list, nil
}

func (s shown) Certificate(_ context.Context, sha256 string) (*api.Certificate, error) {
	for _, place := range places {
		if digest(place) == sha256 {
			return &api.Certificate{Namespace: place, SHA256: sha256}, nil
		}
	}
	return nil, api.ErrNotFound
}

func (s shown) Identity(_ context.Context, id string) (*api.Identity, error) {
	return &api.Identity{SPIFFEID: id}, nil
}

func (s shown) Issuances(context.Context, api.IssuanceQuery) (*api.IssuanceList, error) {
	return &api.IssuanceList{}, nil
}

func (s shown) Expiring(ctx context.Context, q api.CertificateQuery) (*api.CertificateList, error) {
	return s.Certificates(ctx, q)
}

func (s shown) Gateways(_ context.Context, q api.GatewayQuery) (*api.GatewayList, error) {
	list := &api.GatewayList{}
	for _, place := range places {
		if sees(q.Visible, place, q.Namespace) {
			list.Items = append(list.Items, api.GatewayObject{Namespace: place, Name: "edge"})
		}
	}
	return list, nil
}

func (s shown) Trust(context.Context) (*api.Trust, error) { return &api.Trust{}, nil }
func (s shown) Changed() <-chan struct{}                  { return s.changed }

const (
	cacheTime = 500 * time.Millisecond
	// patience is how long a test waits for what must come; it only ever runs out when it doesn't.
	patience = 3 * time.Minute
)

var trustDomain = spiffeid.RequireTrustDomainFromString("cluster.local")

// rig is a server under its own account, and the CA of the mesh.
type rig struct {
	url   string
	roots atomic.Pointer[x509.CertPool]
	root  *testca.Authority
	stop  context.CancelFunc
	ended chan error // has how the server ended
}

// Serial numbers: of leaves that another cluster of the mesh issued, and of those of which nobody can tell.
var (
	elsewhere = big.NewInt(4711)
	untold    = big.NewInt(4712)
)

func start(t *testing.T, cfg api.Config) *rig {
	t.Helper()
	config, err := plane.As(t.Context(), "istio-system", "signet")
	require.NoError(t, err)
	clients, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	factory := informers.NewSharedInformerFactory(clients, 0)
	namespaces := factory.Core().V1().Namespaces().Lister()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	factory.Start(ctx.Done())
	for _, synced := range factory.WaitForCacheSync(ctx.Done()) {
		require.True(t, synced)
	}

	root, err := testca.NewRoot("mesh")
	require.NoError(t, err)
	r := &rig{root: root, stop: stop, ended: make(chan error, 1)}
	r.roots.Store(poolOf(root))
	serving := r.certificate(t, root, leaf{dns: "localhost"})
	cfg.Listen = "127.0.0.1:0"
	cfg.CacheTime = setting.DurationOf(cacheTime)
	server, err := api.NewServer(cfg, shown{make(chan struct{})},
		func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return serving, nil },
		api.Cluster{Config: config, Namespaces: func() []string {
			all, err := namespaces.List(labels.Everything())
			assert.NoError(t, err)
			var names []string
			for _, namespace := range all {
				names = append(names, namespace.Name)
			}
			return names
		}},
		api.Mesh{TrustDomain: trustDomain, Anchors: r.roots.Load, Local: func(_ context.Context, leaf *x509.Certificate) (string, error) {
			switch {
			case leaf.SerialNumber.Cmp(elsewhere) == 0:
				return "it was issued elsewhere", nil
			case leaf.SerialNumber.Cmp(untold) == 0:
				return "", errors.New("the ledger can't be read")
			}
			return "", nil
		}},
		slog.New(slog.NewTextHandler(os.Stderr, nil)), prometheus.NewRegistry())
	require.NoError(t, err)
	go func() { r.ended <- server.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-r.ended)
		factory.Shutdown()
	})
	require.Eventually(t, func() bool { return server.Address() != nil }, patience, time.Millisecond)
	r.url = "https://" + server.Address().String()
	return r
}

func poolOf(root *testca.Authority) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(root.Cert)
	return pool
}

// leaf says how a certificate is.
type leaf struct {
	uris   []string
	dns    string
	serial *big.Int
	ended  bool
	usage  x509.ExtKeyUsage
}

func (r *rig) certificate(t *testing.T, by *testca.Authority, l leaf) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &testca.Template{Key: key.Public()}
	if template.SerialNumber = l.serial; l.serial == nil {
		template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
		require.NoError(t, err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if l.ended {
		template.NotAfter = time.Now().Add(-time.Second)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	if l.usage != 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{l.usage}
	}
	var names [][]byte
	for _, uri := range l.uris {
		name, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)})
		require.NoError(t, err)
		names = append(names, name)
	}
	if l.dns != "" {
		name, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(l.dns)})
		require.NoError(t, err)
		names = append(names, name)
	}
	require.NoError(t, template.SetSAN(names...))
	chain, err := by.Sign(template)
	require.NoError(t, err)
	certificate := &tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		certificate.Certificate = append(certificate.Certificate, block.Bytes)
	}
	return certificate
}

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

// client shows a token, a certificate, both or nothing.
func (r *rig) client(t *testing.T, token string, certificate *tls.Certificate) *api.Client {
	t.Helper()
	config := &tls.Config{RootCAs: poolOf(r.root), ServerName: "localhost"}
	if certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := api.NewClient(r.url, &http.Client{Transport: bearer{token, transport}})
	require.NoError(t, err)
	return client
}

func token(t *testing.T, name string, audiences ...string) string {
	t.Helper()
	if len(audiences) == 0 {
		audiences = []string{"signet.dev"}
	}
	text, err := plane.Token(t.Context(), "people", name, controlplane.TokenOptions{Audiences: audiences})
	require.NoError(t, err)
	return text
}

// status is that of an answer, 200 where there is no error.
func status(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return http.StatusOK
	}
	failure, ok := errors.AsType[*api.ResponseError](err)
	require.True(t, ok, "%v", err)
	require.NotEmpty(t, failure.Problem.Detail)
	return failure.Problem.Status
}

func TestUsers(t *testing.T) {
	r := start(t, api.Config{})
	for _, row := range []struct {
		user                                          string
		list, alphaList, betaList, alpha, beta, trust int
		seen                                          []string
		restricted                                    bool
		watch                                         int
	}{
		{"everything", 200, 200, 200, 200, 200, 200, places, false, 200},
		{"alpha", 200, 200, 403, 200, 403, 403, []string{"alpha"}, true, 200},
		{"nothing", 403, 403, 403, 403, 403, 403, nil, false, 403},
		{"services", 200, 200, 200, 403, 403, 403, places, false, 403},
	} {
		t.Run(row.user, func(t *testing.T) {
			client := r.client(t, token(t, row.user), nil)
			list, err := client.Services(t.Context(), api.ServiceQuery{})
			require.Equal(t, row.list, status(t, err))
			if err == nil {
				var seen []string
				for _, service := range list.Items {
					seen = append(seen, service.Namespace)
				}
				assert.Equal(t, row.seen, seen)
				assert.Equal(t, row.restricted, list.Restricted)
			}
			_, err = client.Services(t.Context(), api.ServiceQuery{Namespace: "alpha"})
			assert.Equal(t, row.alphaList, status(t, err))
			_, err = client.Services(t.Context(), api.ServiceQuery{Namespace: "beta"})
			assert.Equal(t, row.betaList, status(t, err))
			_, err = client.Service(t.Context(), "alpha", "web")
			assert.Equal(t, row.alpha, status(t, err))
			_, err = client.Certificate(t.Context(), digest("alpha"))
			assert.Equal(t, row.alpha, status(t, err))
			_, err = client.Identity(t.Context(), "spiffe://cluster.local/ns/alpha/sa/web")
			assert.Equal(t, row.alpha, status(t, err))
			_, err = client.Service(t.Context(), "beta", "web")
			assert.Equal(t, row.beta, status(t, err))
			_, there := client.Certificate(t.Context(), digest("beta"))
			assert.Equal(t, row.beta, status(t, there))
			_, err = client.Trust(t.Context())
			assert.Equal(t, row.trust, status(t, err))
			if row.beta == 403 {
				_, missing := client.Service(t.Context(), "beta", "nothing")
				_, there := client.Service(t.Context(), "beta", "web")
				assert.EqualError(t, missing, there.Error(), "the same whether it exists or not")
				_, missing = client.Certificate(t.Context(), "f"+digest("beta")[1:])
				_, there = client.Certificate(t.Context(), digest("beta"))
				assert.EqualError(t, missing, there.Error())
			}
			for event, err := range client.WatchServices(t.Context(), api.ServiceQuery{}, "") {
				assert.Equal(t, row.watch, status(t, err))
				if event.Type == api.Synced || err != nil {
					break
				}
			}
		})
	}
}

func TestTokens(t *testing.T) {
	r, strict := start(t, api.Config{}), start(t, api.Config{RefuseAPIServerTokens: true})
	own, err := plane.As(t.Context(), "people", "everything")
	require.NoError(t, err)
	ours := token(t, "everything")
	for _, row := range []struct {
		name, token      string
		status, strictly int
	}{
		{"for us", ours, 200, 200},
		{"for us and others", token(t, "everything", "other", "signet.dev"), 200, 200},
		{"for the API server", own.BearerToken, 200, 401},
		{"for the mesh's CA", token(t, "everything", "istio-ca"), 401, 401},
		{"none", "", 401, 401},
		{"changed", ours[:len(ours)-4] + "AAAA", 401, 401},
		{"no JWT", "abc", 401, 401},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := r.client(t, row.token, nil).Trust(t.Context())
			assert.Equal(t, row.status, status(t, err))
			_, err = strict.client(t, row.token, nil).Trust(t.Context())
			assert.Equal(t, row.strictly, status(t, err))
		})
	}
}

// TestClientCertificates: the certificate's service account is the user, in its groups. Everything else is refused, also
// where a token with it would be good: a refused token isn't made up for by a certificate, nor the other way round.
func TestClientCertificates(t *testing.T) {
	r := start(t, api.Config{})
	other, err := testca.NewRoot("other")
	require.NoError(t, err)
	const web = "spiffe://cluster.local/ns/alpha/sa/web"
	good := r.certificate(t, r.root, leaf{uris: []string{web}})
	list, err := r.client(t, "", good).Services(t.Context(), api.ServiceQuery{})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	assert.Equal(t, "alpha", list.Items[0].Namespace, "by its group")
	assert.True(t, list.Restricted)
	_, err = r.client(t, "", good).Trust(t.Context())
	assert.Equal(t, 403, status(t, err))
	assert.ErrorContains(t, err, "system:serviceaccount:alpha:web may not get trust.signet.dev")

	below, err := r.root.NewIntermediate("below", time.Hour)
	require.NoError(t, err)
	_, err = r.client(t, "", r.certificate(t, below, leaf{uris: []string{web}})).Services(t.Context(), api.ServiceQuery{})
	assert.NoError(t, err, "through an intermediate")

	for name, row := range map[string]struct {
		certificate *tls.Certificate
		text        string
	}{
		"ended":                     {r.certificate(t, r.root, leaf{uris: []string{web}, ended: true}), "expired"},
		"another CA":                {r.certificate(t, other, leaf{uris: []string{web}}), "unknown authority"},
		"another trust domain":      {r.certificate(t, r.root, leaf{uris: []string{"spiffe://elsewhere/ns/alpha/sa/web"}}), `of trust domain "elsewhere"`},
		"another cluster":           {r.certificate(t, r.root, leaf{uris: []string{web}, serial: elsewhere}), "not known to be of this cluster"},
		"two names":                 {r.certificate(t, r.root, leaf{uris: []string{web, "spiffe://cluster.local/ns/people/sa/everything"}}), "exactly one name"},
		"a DNS name beside":         {r.certificate(t, r.root, leaf{uris: []string{web}, dns: "x"}), "exactly one name"},
		"no name":                   {r.certificate(t, r.root, leaf{dns: "x"}), "exactly one name"},
		"no service account":        {r.certificate(t, r.root, leaf{uris: []string{"spiffe://cluster.local/node/a"}}), "not that of a service account"},
		"more than service account": {r.certificate(t, r.root, leaf{uris: []string{web + "/x"}}), "not that of a service account"},
		"for servers":               {r.certificate(t, r.root, leaf{uris: []string{web}, usage: x509.ExtKeyUsageServerAuth}), "incompatible key usage"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.client(t, "", row.certificate).Services(t.Context(), api.ServiceQuery{})
			assert.Equal(t, 401, status(t, err))
			assert.ErrorContains(t, err, row.text)
			_, err = r.client(t, token(t, "everything"), row.certificate).Services(t.Context(), api.ServiceQuery{})
			assert.NoError(t, err, "a token says who it is")
		})
	}
	_, err = r.client(t, "abc", good).Services(t.Context(), api.ServiceQuery{})
	assert.Equal(t, 401, status(t, err), "a bad token isn't made up for")

	_, err = r.client(t, "", r.certificate(t, r.root, leaf{uris: []string{web}, serial: untold})).Services(t.Context(), api.ServiceQuery{})
	assert.Equal(t, 503, status(t, err), "it isn't refused for good")
	assert.ErrorContains(t, err, "it can't be told now whether the client certificate is of this cluster")
	assert.NotContains(t, err.Error(), "the ledger can't be read", "the cause is for the log")

	// What the handshake was done with doesn't stay good.
	client := r.client(t, "", good)
	_, err = client.Services(t.Context(), api.ServiceQuery{})
	require.NoError(t, err)
	r.roots.Store(poolOf(other))
	_, err = client.Services(t.Context(), api.ServiceQuery{})
	assert.Equal(t, 401, status(t, err), "on the same connection, once the anchor has gone")
}

// TestRightsChange: a right that is given or taken away counts once the cache time is over. (On a busy machine a set of
// namespaces is kept for longer, up to a minute.)
func TestRightsChange(t *testing.T) {
	r := start(t, api.Config{})
	client := r.client(t, token(t, "changing"), nil)
	ask := func() int {
		_, err := client.Services(t.Context(), api.ServiceQuery{})
		return status(t, err)
	}
	require.Equal(t, 403, ask())
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: "beta", Name: "changing"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "signet-reader"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "people", Name: "changing"}},
	}
	require.NoError(t, plane.Client().Create(t.Context(), binding))
	begin := time.Now()
	require.Eventually(t, func() bool { return ask() == 200 }, patience, 10*time.Millisecond)
	t.Logf("given: after %s", time.Since(begin))
	require.NoError(t, plane.Client().Delete(t.Context(), binding))
	begin = time.Now()
	require.Eventually(t, func() bool { return ask() == 403 }, patience, 10*time.Millisecond)
	t.Logf("taken away: after %s", time.Since(begin))
}

// TestAPIServerPaused: nobody is let in once what is kept has ended, and the answer says why.
func TestAPIServerPaused(t *testing.T) {
	r := start(t, api.Config{ReviewTimeout: setting.DurationOf(3 * time.Second)})
	client := r.client(t, token(t, "everything"), nil)
	_, err := client.Services(t.Context(), api.ServiceQuery{})
	require.NoError(t, err)
	require.NoError(t, plane.APIServer().Pause())
	t.Cleanup(func() { _ = plane.APIServer().Resume() })
	time.Sleep(cacheTime + 50*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = client.Services(ctx, api.ServiceQuery{})
	require.NoError(t, ctx.Err(), "there is no answer")
	assert.Equal(t, 503, status(t, err))
	assert.ErrorContains(t, err, "the API server does not say now who you are")
	failure, _ := errors.AsType[*api.ResponseError](err)
	assert.Equal(t, time.Second, failure.RetryAfter)
	require.NoError(t, plane.APIServer().Resume())
	assert.Eventually(t, func() bool { _, err := client.Services(t.Context(), api.ServiceQuery{}); return err == nil }, patience, 50*time.Millisecond)
}

// TestStop: a watch is told why it ends, and the server ends.
func TestStop(t *testing.T) {
	r := start(t, api.Config{})
	client := r.client(t, token(t, "everything"), nil)
	var last api.Event[api.Service]
	for event := range client.WatchServices(t.Context(), api.ServiceQuery{}, "") {
		if last = event; event.Type == api.Synced {
			r.stop()
		}
	}
	require.Equal(t, api.End, last.Type)
	assert.Contains(t, last.Problem.Detail, "this replica stops")
	select {
	case err := <-r.ended:
		assert.NoError(t, err)
		r.ended <- err // for who waits too
	case <-time.After(patience):
		t.Fatal("the server doesn't end")
	}
}
