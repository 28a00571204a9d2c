package inventory

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/setting"
)

const (
	// patience is how long a test waits for what must come; it only ever runs out when it doesn't.
	patience = 3 * time.Minute
	// glance is the pause between two looks.
	glance = 20 * time.Millisecond

	home = "istio-system"
)

// rights are exactly those that the inventory needs.
const rights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-inventory}
rules:
  # Which pods are behind a service, how they take part in the mesh, and whose identity they have.
  - apiGroups: [""]
    resources: [namespaces, serviceaccounts, services, pods]
    verbs: [list, watch]
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-inventory}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-inventory}
subjects:
  - {kind: ServiceAccount, name: signet, namespace: istio-system}
`

// prepareAccounts makes the account with the rights, and one without any.
func prepareAccounts(ctx context.Context) error {
	return errors.Join(
		plane.Namespace(ctx, home),
		plane.ServiceAccount(ctx, home, "signet"),
		plane.ServiceAccount(ctx, home, "powerless"),
		plane.Apply(ctx, []byte(rights)),
	)
}

// everything may be seen.
type everything struct{}

func (everything) All() bool             { return true }
func (everything) Namespace(string) bool { return true }

// records have what was issued before the inventory was started.
type records struct{ before []api.Certificate }

func (r records) Latest(context.Context, inventory.LatestQuery) (inventory.RecordPage, error) {
	return inventory.RecordPage{Items: r.before}, nil
}

func (records) Certificates(context.Context, inventory.RecordQuery) (inventory.RecordPage, error) {
	return inventory.RecordPage{}, nil
}

func (records) Certificate(context.Context, string) (*api.Certificate, error) {
	return nil, api.ErrNotFound
}

func (records) Refusals(context.Context, inventory.RecordQuery) (inventory.IssuancePage, error) {
	return inventory.IssuancePage{}, nil
}

func (records) Coverage(context.Context) (api.Coverage, error) { return api.Coverage{}, nil }

// rig is an inventory of the whole plane, of which a test looks at its own namespaces.
type rig struct {
	*inventory.Inventory
	t *testing.T
}

// newMapper knows the kinds that are watched, and nothing has to be discovered.
func newMapper() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, kind := range inventory.Kinds() {
		scope := meta.RESTScopeNamespace
		if kind.Kind == "Namespace" {
			scope = meta.RESTScopeRoot
		}
		mapper.Add(kind, meta.RESTScope(scope))
	}
	return mapper
}

// start starts an inventory as a ServiceAccount; it is stopped when the test ends.
func start(t *testing.T, account string, before ...api.Certificate) *rig {
	t.Helper()
	config, err := plane.As(t.Context(), home, account)
	require.NoError(t, err)
	return startWith(t, config, before...)
}

func startWith(t *testing.T, config *rest.Config, before ...api.Certificate) *rig {
	t.Helper()
	return startLooking(t, config, inventory.GatewaysConfig{Disabled: true}, before...)
}

// startLooking also looks at gateways.
func startLooking(t *testing.T, config *rest.Config, gateways inventory.GatewaysConfig, before ...api.Certificate) *rig {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme)))
	httpClient, err := rest.HTTPClientFor(config)
	require.NoError(t, err)
	objects, err := cache.New(config, cache.Options{HTTPClient: httpClient, Scheme: scheme, Mapper: newMapper(), ByObject: inventory.CacheOptions()})
	require.NoError(t, err)

	// What is missing is said at once: how long it is waited for is tested elsewhere.
	cfg := inventory.Config{Grace: setting.DurationOf(time.Millisecond), TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Cluster: "Kubernetes", Gateways: gateways}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	r := &rig{t: t}
	r.Inventory, err = inventory.New(cfg, records{before}, inventory.TrustSources{}, log, prometheus.NewRegistry())
	require.NoError(t, err)
	require.NoError(t, r.Observe(t.Context(), objects))
	require.NoError(t, r.ObserveGateways(config))

	ctx, cancel := context.WithCancel(logr.NewContext(context.WithoutCancel(t.Context()), logr.FromSlogHandler(log.Handler())))
	var group sync.WaitGroup
	group.Go(func() { assert.NoError(t, objects.Start(ctx)) })
	group.Go(func() { assert.NoError(t, r.Start(ctx)) })
	t.Cleanup(func() {
		cancel()
		group.Wait()
		httpClient.CloseIdleConnections()
	})
	return r
}

// in is the rig in a test below its own.
func (r *rig) in(t *testing.T) *rig { return &rig{r.Inventory, t} }

// synced waits until all kinds are known.
func (r *rig) synced() *rig {
	r.t.Helper()
	require.EventuallyWithT(r.t, func(c *assert.CollectT) {
		list, err := r.Services(r.t.Context(), api.ServiceQuery{Visible: everything{}})
		require.NoError(c, err)
		for _, source := range list.Coverage.Sources {
			assert.True(c, source.Up, "%s: %s", source.Name, source.Reason)
		}
	}, patience, glance)
	return r
}

// eventually waits until a service is as it should be.
func (r *rig) eventually(namespace, name string, check func(*assert.CollectT, *api.Service)) {
	r.t.Helper()
	require.EventuallyWithT(r.t, func(c *assert.CollectT) {
		s, err := r.Service(r.t.Context(), namespace, name)
		require.NoError(c, err)
		check(c, s)
	}, patience, glance)
}

// standing of the latest leaf of a holder of a namespace.
func (r *rig) standing(c *assert.CollectT, of api.Certificate) api.Standing {
	for _, standing := range []api.Standing{api.Live, api.Orphaned} {
		list, err := r.Certificates(r.t.Context(), api.CertificateQuery{Visible: everything{}, Namespace: of.Namespace, Standing: standing, Serial: of.Serial})
		require.NoError(c, err)
		if len(list.Items) > 0 {
			return standing
		}
	}
	return ""
}

var serials atomic.Int64

// leafOf is a certificate of an hour for a pod.
func leafOf(p *corev1.Pod, change ...func(*api.Certificate)) api.Certificate {
	serial := serials.Add(1)
	sum := sha256.Sum256(fmt.Append(nil, serial))
	now := time.Now().UTC().Truncate(time.Second)
	id := identityOf(p.Namespace, p.Spec.ServiceAccountName)
	c := api.Certificate{
		SHA256: hex.EncodeToString(sum[:]), Serial: fmt.Sprintf("%016x", serial), Identity: id, SANs: []string{"URI:" + id},
		Namespace: p.Namespace, ServiceAccount: p.Spec.ServiceAccountName,
		Holder:   api.Holder{Pod: p.Name, PodUID: string(p.UID), Node: p.Spec.NodeName, Cluster: "Kubernetes", Address: p.Status.PodIP},
		IssuedAt: now, NotBefore: now, NotAfter: now.Add(time.Hour), Issuer: "Issuer.cert-manager.io/mesh",
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// early is a leaf that was issued so long ago that the informers must know its holder.
func early(c *api.Certificate) {
	c.IssuedAt, c.NotBefore = c.IssuedAt.Add(-5*time.Minute), c.NotBefore.Add(-5*time.Minute)
}

func byProxy(c *api.Certificate) {
	c.Holder = api.Holder{Node: c.Holder.Node, Cluster: "Kubernetes", Address: "192.0.2.1", Impersonated: true}
}

func identityOf(namespace, account string) string {
	return "spiffe://cluster.local/ns/" + namespace + "/sa/" + account
}

// service creates a headless Service.
func service(t *testing.T, namespace, name string) {
	t.Helper()
	require.NoError(t, plane.Client().Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: "None", Selector: map[string]string{"app": name}},
	}))
}

// endpoint is a pod as the endpoint controller writes it.
func endpoint(p *corev1.Pod) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: []string{p.Status.PodIP}, NodeName: &p.Spec.NodeName,
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
}

// slice creates or replaces an EndpointSlice of a service.
func slice(t *testing.T, namespace, name, service string, endpoints ...discoveryv1.Endpoint) {
	t.Helper()
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints, Ports: []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
	}
	former := &discoveryv1.EndpointSlice{}
	if err := plane.Client().Get(t.Context(), keyOf(s), former); err == nil {
		s.ResourceVersion = former.ResourceVersion
		require.NoError(t, plane.Client().Update(t.Context(), s))
		return
	}
	require.NoError(t, plane.Client().Create(t.Context(), s))
}

// counting remembers the paths of requests.
type counting struct {
	http.RoundTripper
	paths *sync.Map
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.paths.Store(r.URL.Path, true)
	return c.RoundTripper.RoundTrip(r)
}
