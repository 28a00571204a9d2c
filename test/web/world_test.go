package web

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/api/records"
	"github.com/signet-ca/signet/api/web"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/testca"
)

// markup is in names wherever somebody else than Kubernetes chooses them. If any of it became markup, it would be noticed:
// as an element, as a refused script, or because it ran.
const markup = `<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>"'&amp;`

// bulk is how many services there are besides those with a story.
const bulk = 519

// manifest has what the server may do, and what the readers may see.
const manifest = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-inspection}
rules:
  - {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
  - {apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}
  - {apiGroups: [""], resources: [namespaces, serviceaccounts, services, pods], verbs: [list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-inspection}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-inspection}
subjects: [{kind: ServiceAccount, name: signet, namespace: istio-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-reader}
rules:
  - {apiGroups: [signet.dev], resources: [services, certificates, identities, issuances, gateways, trust], verbs: [get, list, watch]}
  - {apiGroups: [signet.dev], resources: [probes], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-reader}
subjects: [{kind: ServiceAccount, name: operator, namespace: people}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signet-reader, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-reader}
subjects: [{kind: ServiceAccount, name: shopkeeper, namespace: people}]
`

// world is what the page is about, with the server that tells of it.
type world struct {
	url    string
	pin    string // SHA-256 of the server's key, as Chromium wants it
	tokens map[string]string
	store  *ledger.Store
	view   *view
	root   *testca.Authority
	other  *testca.Authority
	odd    ledger.Issuance // the certificate with names that it should not have

	cancel context.CancelFunc
	group  errgroup.Group
	dir    string
}

// view is the inventory, but that gateways are made up, and that a source can be said to be down.
type view struct {
	*inventory.Inventory
	gateways []api.GatewayObject
	down     atomic.Pointer[string]
}

func (v *view) Services(ctx context.Context, q api.ServiceQuery) (*api.ServiceList, error) {
	list, err := v.Inventory.Services(ctx, q)
	if reason := v.down.Load(); err == nil && reason != nil {
		list.Coverage.Sources = append(list.Coverage.Sources, api.Source{Name: "a source", Reason: *reason})
		list.Coverage.Gaps = append(list.Coverage.Gaps, api.Gap{From: time.Unix(1700000000, 0), To: time.Unix(1700003600, 0), Replica: "signet-1", Reason: *reason})
	}
	return list, err
}

func (v *view) Gateways(_ context.Context, q api.GatewayQuery) (*api.GatewayList, error) {
	list := &api.GatewayList{}
	for _, gateway := range v.gateways {
		if q.Visible.Namespace(gateway.Namespace) && (q.Namespace == "" || q.Namespace == gateway.Namespace) && (!q.Problems || len(gateway.Problems) > 0) {
			list.Items = append(list.Items, gateway)
		}
	}
	return list, nil
}

// newWorld makes it all, and waits until it is known.
func newWorld(ctx context.Context) (_ *world, err error) {
	w := &world{tokens: make(map[string]string)}
	if w.dir, err = os.MkdirTemp("", "signet-web-"); err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(logr.NewContext(context.WithoutCancel(ctx), logr.Discard()))
	w.cancel = cancel
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	if w.root, err = testca.NewRoot("mesh root 2026"); err != nil {
		return nil, err
	}
	if w.other, err = testca.NewRoot("mesh root 2027 " + markup); err != nil {
		return nil, err
	}
	if err := w.accounts(ctx); err != nil {
		return nil, err
	}
	if w.store, err = ledger.Open(ctx, ledger.Config{Dir: w.dir, Replica: "signet-0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err != nil {
		return nil, err
	}
	w.group.Go(func() error { return w.store.Start(running) })
	if err := w.cluster(ctx); err != nil {
		return nil, err
	}
	config, err := plane.As(ctx, "istio-system", "signet")
	if err != nil {
		return nil, err
	}
	if err := w.serve(running, config); err != nil {
		return nil, err
	}
	return w, w.known(ctx)
}

func (w *world) stop() error {
	w.cancel()
	err := w.group.Wait()
	if w.store != nil {
		err = errors.Join(err, w.store.Close())
	}
	return errors.Join(err, os.RemoveAll(w.dir))
}

// accounts makes the readers, with their tokens.
func (w *world) accounts(ctx context.Context) error {
	for _, namespace := range []string{"istio-system", "people", "shop", "payments", "warehouse"} {
		if err := plane.Namespace(ctx, namespace); err != nil {
			return err
		}
	}
	if err := errors.Join(plane.ServiceAccount(ctx, "istio-system", "signet"), plane.Apply(ctx, []byte(manifest))); err != nil {
		return err
	}
	for _, name := range []string{"operator", "shopkeeper", "stranger"} {
		if err := plane.ServiceAccount(ctx, "people", name); err != nil {
			return err
		}
		token, err := plane.Token(ctx, "people", name, controlplane.TokenOptions{Audiences: []string{"signet.dev"}})
		if err != nil {
			return err
		}
		w.tokens[name] = token
	}
	return nil
}

// span is a validity: from so many hours ago until so many hours from now.
type span struct{ since, left float64 }

var (
	fresh   = span{1, 23}
	due     = span{52, 48}
	overdue = span{18, 6}
	expired = span{25, -1}
)

// cluster makes services of every kind, and records what their pods hold.
func (w *world) cluster(ctx context.Context) error {
	for _, one := range []struct {
		namespace, name string
		pods            int
		holds           span // nothing where it is zero
		change          func(n int, i *ledger.Issuance, t *testca.Template) *testca.Authority
	}{
		{"payments", "api", 3, fresh, nil},
		{"payments", "invoices", 1, expired, nil},
		{"payments", "ledger", 2, span{}, nil},
		{"payments", "refunds", 1, fresh, func(_ int, i *ledger.Issuance, t *testca.Template) *testca.Authority {
			t.DNSNames = []string{markup}
			return w.root
		}},
		{"payments", "reports", 2, fresh, func(n int, _ *ledger.Issuance, _ *testca.Template) *testca.Authority {
			return []*testca.Authority{w.root, w.other}[n]
		}},
		{"shop", "cart", 4, fresh, nil},
		{"shop", "catalog", 2, due, nil},
		{"shop", "checkout", 3, overdue, func(n int, i *ledger.Issuance, t *testca.Template) *testca.Authority {
			if n > 0 {
				t.NotBefore, t.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(22*time.Hour)
			}
			return w.root
		}},
		{"shop", "search", 2, fresh, nil},
	} {
		var pods []*corev1.Pod
		if err := plane.ServiceAccount(ctx, one.namespace, one.name); err != nil {
			return err
		}
		for n := range one.pods {
			pod, err := plane.Sidecar(ctx, one.namespace, fmt.Sprintf("%s-7d9f%d", one.name, n), one.name, fmt.Sprintf("node-%c", 'a'+n%3))
			if err != nil {
				return err
			}
			pods = append(pods, pod)
			if one.holds == (span{}) {
				continue
			}
			issued, err := w.issue(one.namespace, one.name, pod, one.holds, n, one.change)
			if err != nil {
				return err
			}
			if one.name == "refunds" {
				w.odd = issued
			}
			if err := w.store.Record(ctx, issued); err != nil {
				return err
			}
		}
		if err := w.service(ctx, one.namespace, one.name); err != nil {
			return err
		}
		if err := plane.Endpoints(ctx, one.namespace, one.name, pods...); err != nil {
			return err
		}
	}
	legacy, err := plane.Pod(ctx, "shop", "legacy-0", "default", "node-a")
	if err != nil {
		return err
	}
	if err := errors.Join(w.service(ctx, "shop", "legacy"), plane.Endpoints(ctx, "shop", "legacy", legacy)); err != nil {
		return err
	}
	w.store.Refused(ledger.Refusal{
		Reason: "identity", Code: "PermissionDenied", Identity: "spiffe://cluster.local/" + markup, Namespace: "shop", ServiceAccount: "cart", Peer: "10.1.2.3", Count: 4,
	})
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for n := range bulk {
		group.Go(func() error { return w.service(ctx, "warehouse", fmt.Sprintf("shelf-%03d", n)) })
	}
	return group.Wait()
}

func (w *world) service(ctx context.Context, namespace, name string) error {
	return plane.Client().Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": name}},
	})
}

// issue makes a real certificate for a pod, and its record.
func (w *world) issue(namespace, account string, pod *corev1.Pod, holds span, n int, change func(int, *ledger.Issuance, *testca.Template) *testca.Authority) (ledger.Issuance, error) {
	hours := func(count float64) time.Duration { return time.Duration(count * float64(time.Hour)) }
	identity := "spiffe://cluster.local/ns/" + namespace + "/sa/" + account
	template := &testca.Template{}
	template.NotBefore, template.NotAfter = time.Now().Add(-hours(holds.since)), time.Now().Add(hours(holds.left))
	var i ledger.Issuance
	by := w.root
	if change != nil {
		by = change(n, &i, template)
	}
	leaf, err := certify(by, template, identity)
	if err != nil {
		return i, err
	}
	if i, err = ledger.NewIssuance(leaf, by.Cert); err != nil {
		return i, err
	}
	root := sha256.Sum256(by.Cert.Raw)
	i.RecordedAt = leaf.NotBefore
	i.RequestedLifetime = 24 * time.Hour
	i.Issuer, i.RootSHA256, i.RootSubject = "Issuer.cert-manager.io/mesh", hex.EncodeToString(root[:]), by.Cert.Subject.String()
	i.Pod, i.PodUID, i.Node, i.Cluster, i.Peer = pod.Name, string(pod.UID), pod.Spec.NodeName, "Kubernetes", pod.Status.PodIP
	i.RequestName = "signet-" + i.SHA256[:20]
	return i, nil
}

// certify makes a leaf with an identity, and the template's DNS names as they are.
func certify(by *testca.Authority, template *testca.Template, identity string) (*x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.Key = key.Public()
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, err
	}
	var names [][]byte
	add := func(tag int, text string) error {
		name, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(text)})
		names = append(names, name)
		return err
	}
	if identity != "" {
		if err := add(6, identity); err != nil {
			return nil, err
		}
	}
	for _, name := range template.DNSNames {
		if err := add(2, name); err != nil {
			return nil, err
		}
	}
	if err := template.SetSAN(names...); err != nil {
		return nil, err
	}
	chain, err := by.Sign(template)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(chain)
	return x509.ParseCertificate(block.Bytes)
}

// serve starts the inventory and the server.
func (w *world) serve(ctx context.Context, config *rest.Config) error {
	scheme, mapper := runtime.NewScheme(), meta.NewDefaultRESTMapper(nil)
	if err := errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme)); err != nil {
		return err
	}
	for _, kind := range inventory.Kinds() {
		scope := meta.RESTScope(meta.RESTScopeNamespace)
		if kind.Kind == "Namespace" {
			scope = meta.RESTScopeRoot
		}
		mapper.Add(kind, scope)
	}
	objects, err := cache.New(config, cache.Options{Scheme: scheme, Mapper: mapper, ByObject: inventory.CacheOptions()})
	if err != nil {
		return err
	}
	kept := records.Of(w.store)
	log := slog.New(slog.DiscardHandler)
	of, err := inventory.New(inventory.Config{
		Grace: setting.DurationOf(time.Millisecond), TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Cluster: "Kubernetes",
		Gateways: inventory.GatewaysConfig{Disabled: true},
	}, kept, w.trust(), log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	if err := of.Observe(ctx, objects); err != nil {
		return err
	}
	w.view = &view{Inventory: of, gateways: gateways()}

	key, serving, err := w.serving()
	if err != nil {
		return err
	}
	w.pin = key
	server, err := api.NewServer(api.Config{Listen: "127.0.0.1:0"}, w.view,
		func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return serving, nil },
		api.Cluster{Config: config, Namespaces: of.Namespaces}, api.Mesh{}, log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	server.SetProber(prober{})
	page := web.Handler()
	server.Mount("/ui", page)
	server.Mount("/ui/", page)
	for _, start := range []func(context.Context) error{objects.Start, of.Start, server.Start} {
		w.group.Go(func() error { return start(ctx) })
	}
	deadline := time.Now().Add(patience)
	for server.Address() == nil {
		if time.Now().After(deadline) {
			return errors.New("the server does not listen")
		}
		time.Sleep(time.Millisecond)
	}
	w.url = "https://" + server.Address().String() + "/ui/"
	return nil
}

// serving is the server's certificate, and the digest of its key.
func (w *world) serving() (pin string, _ *tls.Certificate, _ error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", nil, err
	}
	template := &testca.Template{Key: key.Public()}
	template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: "signet"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	name, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("localhost")})
	if err != nil {
		return "", nil, err
	}
	if err := template.SetSAN(name); err != nil {
		return "", nil, err
	}
	chain, err := w.root.Sign(template)
	if err != nil {
		return "", nil, err
	}
	block, _ := pem.Decode(chain)
	return pinOf(key.Public()), &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}, nil
}

// trust is two roots on their way from one to the other, and what else ends.
func (w *world) trust() inventory.TrustSources {
	now := time.Now()
	return inventory.TrustSources{
		Anchors: func() []inventory.Anchor {
			return []inventory.Anchor{
				{Certificate: w.root.Cert, Phase: "signing", Since: now.Add(-240 * time.Hour), Sources: []string{"Secret istio-system/roots"}},
				{Certificate: w.other.Cert, Phase: "published", Since: now.Add(-2 * time.Hour), Until: now.Add(22 * time.Hour), Waits: "the longest leaf that was answered without it", Sources: []string{"Secret istio-system/roots"}},
			}
		},
		Issuers: func() []string {
			return []string{"Issuer.cert-manager.io/mesh is in force, Ready: Signing CA verified", "Issuer.cert-manager.io/next is held back: its root is not distributed yet"}
		},
		Distribution: func() []string { return []string{"istio-ca-root-cert: 14 of 14 namespaces carry it"} },
		Replicas: func() []string {
			return []string{"signet-0: answers with both anchors", "signet-1: answers with both anchors"}
		},
		Expiring: func() []api.Subject {
			return []api.Subject{
				{Kind: "istiod", Text: "Secret istio-system/istiod-tls", NotBefore: now.Add(-20 * time.Hour), NotAfter: now.Add(4 * time.Hour), State: api.Overdue},
				{Kind: "serving", Text: "signet.istio-system.svc", NotBefore: now.Add(-time.Hour), NotAfter: now.Add(23 * time.Hour), State: api.Fresh},
				{Kind: "anchor", Text: w.root.Cert.Subject.String(), NotBefore: w.root.Cert.NotBefore, NotAfter: w.root.Cert.NotAfter, State: api.Fresh},
			}
		},
	}
}

// gateways are one of each API.
func gateways() []api.GatewayObject {
	now := time.Now().UTC()
	certificate := func(name string, sans []string, since, left time.Duration, state api.State) api.GatewayCertificate {
		return api.GatewayCertificate{
			Secret: &api.ObjectRef{Namespace: "shop", Name: name}, Certificate: &api.ObjectRef{Namespace: "shop", Name: name}, From: api.FromCertificate,
			Issuer: "ClusterIssuer.cert-manager.io/public", SANs: sans, NotBefore: now.Add(-since), NotAfter: now.Add(left), RenewalTime: now.Add(left / 3),
			State: state, Ready: new(true),
		}
	}
	uncovered := api.Problem{Code: api.ProblemNotCovered, Detail: "no certificate of listener https has a name for admin.shop.example"}
	return []api.GatewayObject{
		{
			API: api.IstioGateway, Namespace: "payments", Name: "partners", State: api.Fresh, Listeners: []api.GatewayListener{{
				Name: "partners", Port: 443, Protocol: "HTTPS", TLSMode: "MUTUAL", Hosts: []api.GatewayHost{{Name: markup, Covered: api.CoveredUnknown}},
				Certificates: []api.GatewayCertificate{{File: "/etc/certs/" + markup, Unknown: "it is in a file of the gateway's pods"}},
			}},
		},
		{
			API: api.KubernetesGateway, Namespace: "shop", Name: "front", Class: "istio", State: api.Fresh, Problems: []api.Problem{uncovered},
			Listeners: []api.GatewayListener{
				{Name: "http", Port: 80, Protocol: "HTTP", Hosts: []api.GatewayHost{{Name: "*", Covered: api.CoveredUnknown}}, Certificates: []api.GatewayCertificate{}},
				{
					Name: "https", Port: 443, Protocol: "HTTPS", TLSMode: "Terminate",
					Hosts:        []api.GatewayHost{{Name: "shop.example", Covered: api.CoveredYes}, {Name: "admin.shop.example", Covered: api.CoveredNo}},
					Certificates: []api.GatewayCertificate{certificate("front-tls", []string{"DNS:shop.example", "DNS:www.shop.example"}, 600*time.Hour, 1500*time.Hour, api.Fresh)},
					Problems:     []api.Problem{uncovered},
				},
			},
		},
	}
}

// prober finds the same each time.
type prober struct{}

func (prober) Problems(string, string) []api.Problem { return nil }

func (prober) Probe(_ context.Context, _ string, q api.ProbeRequest, _ api.Visible) (*api.Probe, error) {
	now := time.Now().UTC()
	return &api.Probe{
		Namespace: q.Namespace, Service: q.Service, Time: now, Verdict: api.ProbeAlarm, Pods: 2,
		Results: []api.ProbeResult{{
			Pod: q.Service + "-7d9f0", Address: "10.0.0.1:8080", Protocol: api.ProbeSidecar, Verdict: api.ProbeAlarm, TLSVersion: "TLS 1.3", ALPN: "istio",
			Findings:          []api.ProbeFinding{{Code: api.FoundUnrecorded, Verdict: api.ProbeAlarm, Detail: "it is in no record " + markup}},
			ClientCertificate: api.ClientCertNone, Plaintext: api.PlaintextRefused,
			Chain: []api.ServedCertificate{{SHA256: hex.EncodeToString(make([]byte, 32)), Serial: "4711", SANs: []string{"URI:" + markup}, NotBefore: now, NotAfter: now.Add(time.Hour)}},
		}},
	}, nil
}

// everything may be seen.
type everything struct{}

func (everything) All() bool             { return true }
func (everything) Namespace(string) bool { return true }

// known waits until the inventory has the cluster and the records.
func (w *world) known(ctx context.Context) error {
	deadline := time.Now().Add(2 * patience)
	for {
		problems, err := w.view.Services(ctx, api.ServiceQuery{Visible: everything{}, Problems: true})
		if err != nil {
			return err
		}
		invoices, err := w.view.Service(ctx, "payments", "invoices")
		ready := err == nil && len(invoices.Problems) == 1 && len(problems.Items) == 5
		for _, source := range problems.Coverage.Sources {
			ready = ready && source.Up
		}
		audit, err := w.view.Issuances(ctx, api.IssuanceQuery{Visible: everything{}, Outcome: api.Refused})
		if err != nil {
			return err
		}
		last, err := w.view.Service(ctx, "warehouse", fmt.Sprintf("shelf-%03d", bulk-1))
		if ready && len(audit.Items) == 1 && err == nil && last != nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the inventory does not get to know everything: %d services with problems, %+v", len(problems.Items), problems.Coverage.Sources)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// authorized adds a token to what a proxy passes on.
type authorized struct {
	token string
	base  http.RoundTripper
}

func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+a.token)
	return a.base.RoundTrip(r)
}
