package probe

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/api/probe"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/test/testca"
)

// fast is a pace that no test meets.
var fast = probe.Config{PerMinute: 10_000, DialsPerSecond: 1000, Timeout: setting.DurationOf(10 * time.Second)}

// TestVerdicts: certificates that cert-manager issued, as they are served and recorded.
func TestVerdicts(t *testing.T) {
	r := start(t, "signet", fast)
	namespace := plane.NewNamespace(t, "verdicts")
	web := r.workload(namespace, "web")
	other := r.workload(namespace, "other")

	first, firstLeaf := issued(t, web)
	r.record(firstLeaf, web, time.Hour) // the records go back so far
	r.serve(web, 8080, first)
	found := r.probed(namespace, "web")
	for end := time.Now().Add(patience); time.Now().Before(end) && len(found.Results) == 1 && found.Results[0].Plaintext == api.PlaintextSilent; {
		r.dials() // the answer to plaintext is waited for two seconds only, which a machine may be busy with something else
		found = r.probed(namespace, "web")
	}
	assert.Equal(t, api.ProbeGood, found.Verdict, "%+v", found.Results)
	r.mu.Lock()
	assert.Contains(t, r.logged.String(), "msg=probed user=test service="+namespace+"/web verdict=good ports=1\n")
	r.mu.Unlock()
	require.Len(t, found.Results, 1)
	got := found.Results[0]
	assert.Equal(t, []string{web.Name, string(web.UID), "node-a"}, []string{got.Pod, got.PodUID, got.Node})
	assert.Equal(t, api.Sidecar, got.DataPlane)
	assert.Equal(t, api.ProbeSidecar, got.Protocol)
	assert.Equal(t, int32(80), got.Port)
	assert.Equal(t, web.Status.PodIP+":8080", got.Address)
	assert.Equal(t, api.ClientCertRequired, got.ClientCertificate)
	assert.Equal(t, api.PlaintextRefused, got.Plaintext)
	assert.Equal(t, "TLS 1.3", got.TLSVersion)
	require.NotNil(t, got.Record)
	assert.Equal(t, got.Chain[0].SHA256, got.Record.SHA256)
	assert.Equal(t, got.Chain[0].Serial, got.Record.Serial)
	assert.Equal(t, []string{"URI:" + identity(web).String()}, got.Chain[0].SANs)
	assert.Equal(t, firstLeaf.NotAfter.UTC(), got.Chain[0].NotAfter)
	assert.Equal(t, 1, found.Pods)
	assert.Equal(t, []string{"a"}, found.Coverage.Replicas)
	assert.Equal(t, []string{web.Status.PodIP + ":8080", web.Status.PodIP + ":8080"}, r.dials(), "for the certificate, and for plaintext")

	// Its holder has renewed it, but goes on serving it.
	_, secondLeaf := issued(t, web)
	r.record(secondLeaf, web, 0)
	found = r.probed(namespace, "web")
	assert.Equal(t, []api.ProbeCode{api.FoundSuperseded}, codes(found))
	assert.Equal(t, api.ProbeWarning, found.Verdict)

	// Another pod serves it.
	r.serve(other, 8080, first)
	found = r.probed(namespace, "other")
	assert.ElementsMatch(t, []api.ProbeCode{api.FoundWrongNames, api.FoundOtherHolder, api.FoundSuperseded}, codes(found))
	assert.Equal(t, api.ProbeAlarm, found.Verdict)

	// One that nobody recorded: as long as it is young it may be another replica's.
	unrecorded, _ := issued(t, other)
	r.serve(other, 8080, unrecorded)
	found = r.probed(namespace, "other")
	assert.Equal(t, []api.ProbeCode{api.FoundUnknown}, codes(found))
	assert.Contains(t, found.Results[0].Findings[0].Detail, "so young")
	assert.Equal(t, api.ProbeUnsure, found.Verdict)
	old, oldLeaf := r.sign(&testca.Template{}, identity(other).String())
	r.serve(other, 8080, old)
	found = r.probed(namespace, "other")
	assert.Equal(t, []api.ProbeCode{api.FoundUnrecorded}, codes(found), "%+v", found.Results)
	assert.Equal(t, api.ProbeAlarm, found.Verdict)
	r.record(oldLeaf, other, time.Minute)
	assert.Equal(t, api.ProbeGood, r.probed(namespace, "other").Verdict)

	// No such service, port or pod.
	for want, q := range map[error]api.ProbeRequest{
		api.ErrNotFound: {Namespace: namespace, Service: "nothing"}, api.ErrBadProbe: {Namespace: namespace, Service: "web", Port: 81},
	} {
		_, err := r.Probe(t.Context(), "test", q, everything{})
		assert.ErrorIs(t, err, want)
	}
	_, err := r.Probe(t.Context(), "test", api.ProbeRequest{Namespace: namespace, Service: "web", Pod: other.Name}, everything{})
	assert.ErrorIs(t, err, api.ErrBadProbe)
	_, err = r.Probe(t.Context(), "test", api.ProbeRequest{Namespace: namespace, Service: "web", Protocol: api.ProbeTLS, ServerName: "10.0.0.1"}, everything{})
	assert.ErrorIs(t, err, api.ErrBadProbe)
}

// TestGateway: the certificate that a gateway serves is that of a Certificate.
func TestGateway(t *testing.T) {
	r := start(t, "signet", fast)
	name := "ingress-" + rand.String(5)
	pod := r.workload(home, name)
	const host = "shop.example.com"
	certificate := &cmapi.Certificate{
		ObjectMeta: metav1.ObjectMeta{Namespace: home, Name: name},
		Spec:       cmapi.CertificateSpec{SecretName: name, DNSNames: []string{host}, IssuerRef: cmmeta.IssuerReference{Name: "istio-ca"}},
	}
	require.NoError(t, plane.Client().Create(t.Context(), certificate))
	secret := &corev1.Secret{}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, plane.Client().Get(t.Context(), client.ObjectKeyFromObject(certificate), certificate))
		require.NotNil(c, certificate.Status.NotAfter)
		require.NoError(c, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: home, Name: name}, secret))
	}, patience, glance)
	served := keyPair(t, secret)
	r.serve(pod, 8080, served)
	asGateway := func(q *api.ProbeRequest) { q.Protocol, q.ServerName = api.ProbeTLS, host }
	found := r.probed(home, name, asGateway)
	assert.Equal(t, api.ProbeGood, found.Verdict, "%+v", found.Results)
	assert.Equal(t, "Certificate istio-system/"+name, found.Results[0].KnownAs)
	assert.Nil(t, found.Results[0].Record)
	found = r.probed(home, name, asGateway, func(q *api.ProbeRequest) { q.ServerName = "pay.example.com" })
	assert.Equal(t, []api.ProbeCode{api.FoundWrongNames}, codes(found))
	unknown, _ := r.sign(&testca.Template{}, host)
	r.serve(pod, 8080, unknown)
	found = r.probed(home, name, asGateway)
	assert.Equal(t, []api.ProbeCode{api.FoundUnknown}, codes(found), "the records begin with the test")
}

// TestAmbient: the node's proxy shows the certificate on a port of its own.
func TestAmbient(t *testing.T) {
	r := start(t, "signet", fast)
	namespace := plane.NewNamespace(t, "ambient")
	pod, err := plane.Pod(t.Context(), namespace, "web", "default", "node-a")
	require.NoError(t, err)
	pod.Annotations = map[string]string{"ambient.istio.io/redirection": "enabled"}
	require.NoError(t, plane.Client().Update(t.Context(), pod))
	service(t, namespace, "web", "redis")
	require.NoError(t, plane.Endpoints(t.Context(), namespace, "web", pod))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		found, err := r.inventory.Service(t.Context(), namespace, "web")
		require.NoError(c, err)
		require.Len(c, found.Pods, 1)
		assert.Equal(c, api.Ambient, found.Pods[0].DataPlane)
	}, patience, glance)
	leaf, parsed := r.sign(&testca.Template{}, identity(pod).String())
	r.record(parsed, pod, time.Hour)
	r.serve(pod, 15008, leaf)
	found := r.probed(namespace, "web")
	assert.Equal(t, api.ProbeGood, found.Verdict, "%+v", found.Results)
	assert.Equal(t, pod.Status.PodIP+":15008", found.Results[0].Address)
	assert.Equal(t, api.PlaintextUnclear, found.Results[0].Plaintext, "nobody listens there")
	assert.Equal(t, []string{pod.Status.PodIP + ":15008", pod.Status.PodIP + ":6379"}, r.dials())
}

// TestNeverDialed: whatever a pod's status or an EndpointSlice says, and whatever becomes of a pod meanwhile.
func TestNeverDialed(t *testing.T) {
	r := start(t, "signet", fast)
	namespace := plane.NewNamespace(t, "policy")
	service(t, namespace, "web", "http")
	r.listed(namespace, "web")
	for name, row := range map[string]struct {
		change func(*corev1.Pod)
		spec   func(*corev1.Pod)
		detail string // "" where it is dialed
	}{
		"loopback":    {func(p *corev1.Pod) { setIP(p, "127.0.0.1") }, nil, "127.0.0.1 is not a unicast address"},
		"metadata":    {func(p *corev1.Pod) { setIP(p, "169.254.169.254") }, nil, "169.254.169.254 is not a unicast address"},
		"loopback-v6": {func(p *corev1.Pod) { setIP(p, "::1") }, nil, "::1 is not a unicast address"},
		"node":        {func(p *corev1.Pod) { setIP(p, nodeIP) }, nil, nodeIP + " is a node's"},
		"apiserver":   {func(p *corev1.Pod) { setIP(p, "10.96.0.1") }, nil, "10.96.0.1 is the API server's"},
		"own-node":    {func(p *corev1.Pod) { p.Status.HostIP = p.Status.PodIP }, nil, "100.64.0.1 is its node's"},
		"own-node-v6": {func(p *corev1.Pod) {
			setIP(p, "fd00::7")
			p.Status.HostIPs = []corev1.HostIP{{IP: p.Status.HostIP}, {IP: "fd00:0::7"}}
		}, nil, "fd00::7 is its node's"},
		"pending":       {func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, nil, "it isn't running, but Pending"},
		"ended":         {func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, nil, "it isn't running, but Succeeded"},
		"no-address":    {func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "", nil }, nil, "it has no address"},
		"host-network":  {func(*corev1.Pod) {}, func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "it is in the network of its node"},
		"good":          {func(*corev1.Pod) {}, nil, ""},
		"second-is-bad": {func(p *corev1.Pod) { p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "fe80::1"}) }, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
				Spec:       corev1.PodSpec{ServiceAccountName: "default", NodeName: "node-a", Containers: []corev1.Container{{Name: "istio-proxy", Image: "example.invalid/app"}}},
			}
			if row.spec != nil {
				row.spec(pod)
			}
			require.NoError(t, plane.Client().Create(t.Context(), pod))
			pod.Status.Phase, pod.Status.HostIP = corev1.PodRunning, "192.0.2.1"
			pod.Status.HostIPs = []corev1.HostIP{{IP: "192.0.2.1"}}
			setIP(pod, "100.64.0.1")
			row.change(pod)
			if pod.Status.HostIP != pod.Status.HostIPs[0].IP {
				pod.Status.HostIPs[0].IP = pod.Status.HostIP
			}
			require.NoError(t, plane.Client().Status().Update(t.Context(), pod))
			member := api.Pod{Namespace: namespace, Name: name, UID: string(pod.UID), Node: "node-a", ServiceAccount: "default", DataPlane: api.Sidecar}
			found := r.by(stale{r.inventory, func(s *api.Service) { s.Pods = []api.Pod{member} }}, probe.Config{}, namespace)
			if row.detail == "" {
				assert.Equal(t, []api.ProbeCode{api.FoundUnreachable}, codes(found), "nobody listens there")
				assert.Equal(t, []string{"100.64.0.1:8080", "100.64.0.1:8080"}, r.dials())
				return
			}
			require.Equal(t, []api.ProbeCode{api.FoundNotDialed}, codes(found), "%+v", found)
			assert.Contains(t, found.Results[0].Findings[0].Detail, row.detail)
			assert.Equal(t, api.ProbeNotDialed, found.Verdict)
			assert.Empty(t, found.Results[0].Address)
			assert.Empty(t, r.dials())
		})
	}

	// A slice that names another address than the pod's, or an address alone, is that of no pod.
	own, err := plane.Pod(t.Context(), namespace, "own", "default", "node-a")
	require.NoError(t, err)
	to := &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: own.Name, UID: own.UID}
	for name, endpoint := range map[string]discoveryv1.Endpoint{"lying": {Addresses: []string{"203.0.113.1"}, TargetRef: to}, "bare": {Addresses: []string{"203.0.113.2"}}} {
		require.NoError(t, plane.Client().Create(t.Context(), &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{endpoint},
		}))
	}
	pod, err := plane.Pod(t.Context(), namespace, "good-one", "default", "node-a")
	require.NoError(t, err)
	require.NoError(t, plane.Endpoints(t.Context(), namespace, "web", pod))
	r.known(pod, "web") // slices come in their order
	found := r.probed(namespace, "web")
	assert.Equal(t, 1, found.Pods)
	assert.Equal(t, []api.ProbeCode{api.FoundUnreachable}, codes(found))
	assert.Equal(t, []string{pod.Status.PodIP + ":8080", pod.Status.PodIP + ":8080"}, r.dials())

	// What the inventory says is looked at again.
	for detail, change := range map[string]func(*api.Pod){
		"another pod has its name now":                func(p *api.Pod) { p.UID = "another" },
		"it is gone":                                  func(p *api.Pod) { p.Name = "gone" },
		"it is in another namespace than the service": func(p *api.Pod) { p.Namespace = "shop" },
	} {
		found := r.by(stale{r.inventory, func(s *api.Service) { change(&s.Pods[0]) }}, probe.Config{}, namespace)
		require.Equal(t, []api.ProbeCode{api.FoundNotDialed}, codes(found))
		assert.Equal(t, detail, found.Results[0].Findings[0].Detail)
	}

	// Only the networks that are given.
	found = r.by(r.inventory, probe.Config{Networks: []string{"100.64.0.0/10"}}, namespace)
	assert.Contains(t, found.Results[0].Findings[0].Detail, "is in none of probes.networks")
	assert.Empty(t, r.dials())
}

// by is what another prober, which has this inventory, finds of the service web.
func (r *rig) by(known probe.Inventory, cfg probe.Config, namespace string) *api.Probe {
	r.t.Helper()
	sources := r.sources
	sources.Inventory = known
	cfg.TrustDomain = trustDomain
	prober, err := probe.New(cfg, sources, r.log, prometheus.NewRegistry())
	require.NoError(r.t, err)
	found, err := prober.Probe(r.t.Context(), "test", api.ProbeRequest{Namespace: namespace, Service: "web"}, everything{})
	require.NoError(r.t, err)
	return found
}

// stale is an inventory that says something else than what is so.
type stale struct {
	*inventory.Inventory
	change func(*api.Service)
}

func (s stale) Service(ctx context.Context, namespace, name string) (*api.Service, error) {
	found, err := s.Inventory.Service(ctx, namespace, name)
	if err == nil {
		s.change(found)
	}
	return found, err
}

// TestWithoutRights: who doesn't know which addresses are nodes' dials none.
func TestWithoutRights(t *testing.T) {
	r := start(t, "nodeless", fast)
	namespace := plane.NewNamespace(t, "rights")
	r.workload(namespace, "web")
	_, err := r.Probe(t.Context(), "test", api.ProbeRequest{Namespace: namespace, Service: "web"}, everything{})
	assert.ErrorContains(t, err, "what must not be dialed isn't known: list Nodes")
	assert.Empty(t, r.dials())
}

// TestUsers: a probe needs the right to make one in the service's namespace.
func TestUsers(t *testing.T) {
	r := start(t, "signet", fast)
	name := "web-" + rand.String(5)
	web := r.workload("shop", name)
	r.workload("other", name)
	leaf, parsed := r.sign(&testca.Template{}, identity(web).String())
	r.record(parsed, web, time.Hour)
	r.serve(web, 8080, leaf)
	client := r.listen()
	for _, row := range []struct {
		user        string
		shop, other int
	}{{"shop", 200, 403}, {"other", 403, 200}, {"all", 200, 200}, {"nothing", 403, 403}} {
		t.Run(row.user, func(t *testing.T) {
			asking := client(row.user)
			found, err := asking.Probe(t.Context(), api.ProbeRequest{Namespace: "shop", Service: name})
			assert.Equal(t, row.shop, status(t, err))
			if row.shop == 200 {
				assert.Equal(t, api.ProbeGood, found.Verdict, "%+v", found.Results)
				require.NotNil(t, found.Results[0].Record)
				assert.Equal(t, "shop", found.Results[0].Record.Namespace)
			}
			_, err = asking.Probe(t.Context(), api.ProbeRequest{Namespace: "other", Service: name})
			assert.Equal(t, row.other, status(t, err))
			_, missing := asking.Probe(t.Context(), api.ProbeRequest{Namespace: "other", Service: "nothing"})
			if row.other == 200 {
				assert.ErrorIs(t, missing, api.ErrNotFound)
				_, err = asking.Probe(t.Context(), api.ProbeRequest{Namespace: "other", Service: name, Port: 1})
				assert.Equal(t, http.StatusUnprocessableEntity, status(t, err))
			} else {
				assert.EqualError(t, missing, err.Error(), "the same whether it exists or not")
			}
		})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	assert.Equal(t, []string{
		"system:serviceaccount:people:shop shop/" + name + " good", "system:serviceaccount:people:other other/" + name + " unreachable",
		"system:serviceaccount:people:all shop/" + name + " good", "system:serviceaccount:people:all other/" + name + " unreachable",
	}, r.told)
	for _, address := range r.dialed {
		assert.True(t, strings.HasPrefix(address, "10."), address)
	}
}

// TestSchedule: services are probed in turn without being asked, and what was found is seen.
func TestSchedule(t *testing.T) {
	cfg := fast
	cfg.Schedule.Interval = setting.DurationOf(10 * time.Millisecond)
	r := start(t, "signet", cfg)
	namespace := plane.NewNamespace(t, "schedule")
	web, other := r.workload(namespace, "web"), r.workload(namespace, "other")
	good, goodLeaf := r.sign(&testca.Template{}, identity(web).String())
	r.record(goodLeaf, web, time.Hour)
	r.serve(web, 8080, good)
	r.serve(other, 8080, good) // it isn't its own
	client := r.listen()("all")
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		found, err := client.Service(t.Context(), namespace, "other")
		require.NoError(c, err)
		at := slices.IndexFunc(found.Problems, func(p api.Problem) bool { return p.Code == api.ProblemProbe })
		require.GreaterOrEqual(c, at, 0, "%+v", found.Problems)
		assert.Contains(c, found.Problems[at].Detail, "wrong-names")
	}, patience, glance)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		counts := r.results(t)
		assert.Equal(c, 1.0, counts["alarm"])
		assert.Equal(c, 1.0, counts["good"])
	}, patience, glance)
	assert.Empty(t, r.Problems(namespace, "web"))

	// What is served now counts.
	mine, mineLeaf := r.sign(&testca.Template{}, identity(other).String())
	r.record(mineLeaf, other, time.Hour)
	r.serve(other, 8080, mine)
	require.Eventually(t, func() bool { return r.results(t)["good"] == 2 }, patience, glance)
	assert.Empty(t, r.Problems(namespace, "other"))
	r.mu.Lock()
	told := slices.Clone(r.told)
	r.mu.Unlock()
	assert.Contains(t, told, " "+namespace+"/other alarm", "nobody asked for it")

	// A service that is gone is forgotten.
	require.NoError(t, plane.Client().Delete(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web"}}))
	require.Eventually(t, func() bool { return r.results(t)["good"] == 1 }, patience, glance)
}

// results are the services by the verdict of their latest scheduled probe.
func (r *rig) results(t *testing.T) map[string]float64 {
	families, err := r.registry.Gather()
	require.NoError(t, err)
	counts := make(map[string]float64)
	for _, family := range families {
		for _, sample := range family.GetMetric() {
			if family.GetName() == "probe_results" {
				counts[sample.GetLabel()[0].GetValue()] = sample.GetGauge().GetValue()
			}
		}
	}
	return counts
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

func setIP(p *corev1.Pod, ip string) {
	p.Status.PodIP, p.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
}

// service creates a headless Service.
func service(t *testing.T, namespace, name, port string) {
	t.Helper()
	numbers := map[string][2]int32{"http": {80, 8080}, "redis": {6379, 6379}}[port]
	require.NoError(t, plane.Client().Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{
			Name: port, Port: numbers[0], TargetPort: intstr.FromInt32(numbers[1]),
		}}},
	}))
}
