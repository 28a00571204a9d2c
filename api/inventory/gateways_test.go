package inventory

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/setting"
)

// object is one as an informer of any kind has it.
func object(t testing.TB, text string, args ...any) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	raw, err := yaml.YAMLToJSON(fmt.Appendf(nil, text, args...))
	require.NoError(t, err)
	require.NoError(t, o.UnmarshalJSON(raw))
	return o
}

// follows makes all sources of gateways known, as after their first lists, but for some.
func (r *rig) follows(but ...string) *rig {
	r.followers = nil
	for _, kind := range gatewayKinds {
		f := &follower{gatewayKind: kind, i: r.Inventory}
		f.loaded.Store(true)
		for _, source := range but {
			if source == kind.source {
				f.loaded.Store(false)
			}
		}
		r.followers = append(r.followers, f)
	}
	return r
}

// has is an event that an object is there.
func (r *rig) has(text string, args ...any) *unstructured.Unstructured {
	r.t.Helper()
	o := object(r.t, text, args...)
	r.followerOf(o).Update(o) //nolint:errcheck // it never fails
	return o
}

func (r *rig) followerOf(o *unstructured.Unstructured) *follower {
	r.t.Helper()
	for _, f := range r.followers {
		if f.resource.Group == o.GroupVersionKind().Group && f.resource.Resource == strings.ToLower(o.GetKind())+"s" {
			return f
		}
	}
	r.t.Fatalf("nobody follows %s", o.GroupVersionKind())
	return nil
}

// gatewaysOf are the gateways of a query, in pages of two.
func (r *rig) gatewaysOf(q api.GatewayQuery) []api.GatewayObject {
	r.t.Helper()
	if q.Visible == nil {
		q.Visible = everything{}
	}
	q.Limit = 2
	var all []api.GatewayObject
	for {
		list, err := r.Gateways(r.t.Context(), q)
		require.NoError(r.t, err)
		require.LessOrEqual(r.t, len(list.Items), 2)
		all = append(all, list.Items...)
		if q.Continue = list.Continue; q.Continue == "" {
			return all
		}
	}
}

// one is the only gateway of a namespace.
func (r *rig) one(namespace string, visible ...string) api.GatewayObject {
	r.t.Helper()
	q := api.GatewayQuery{Namespace: namespace}
	if len(visible) > 0 {
		q.Visible = these(visible)
	}
	all := r.gatewaysOf(q)
	require.Len(r.t, all, 1)
	return all[0]
}

func router(labels map[string]string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Labels = labels
		p.Spec.Containers = []corev1.Container{{Name: "istio-proxy", Args: []string{"proxy", "router", "--domain", "x"}}}
	}
}

// written is a Certificate of ninety days, of which some have passed, that is ready.
func (r *rig) written(namespace, name, secret string, age time.Duration, hosts ...string) *unstructured.Unstructured {
	r.t.Helper()
	begin := time.Now().Add(-age).UTC()
	return r.has(`
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {namespace: %s, name: %s, uid: uid-of-it}
spec:
  secretName: %s
  dnsNames: [%s]
  ipAddresses: ["2001:db8::1"]
  issuerRef: {name: web, kind: ClusterIssuer}
status:
  notBefore: %s
  notAfter: %s
  renewalTime: %s
  conditions: [{type: Ready, status: "True", reason: Ready, message: fine}, {type: Issuing, status: "False"}]
`, namespace, name, secret, `"`+strings.Join(hosts, `","`)+`"`, begin.Format(time.RFC3339), begin.Add(90*24*time.Hour).Format(time.RFC3339), begin.Add(60*24*time.Hour).Format(time.RFC3339))
}

const day = 24 * time.Hour

func kubernetesGateway(namespace, listener string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: %s, name: web}
spec:
  gatewayClassName: istio
  listeners:
  - %s
`, namespace, listener)
}

func TestAGatewayOfKubernetes(t *testing.T) {
	r := newRig(t).follows()
	r.has("%s", kubernetesGateway("shop", `{name: https, hostname: Shop.Example., port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: shop-tls}]}}
  - {name: http, port: 80, protocol: HTTP}
  - {name: tcp, port: 9443, protocol: TLS, hostname: "*.tcp.example", tls: {mode: Passthrough}}
  - {name: mesh, port: 15443, protocol: TLS, tls: {options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}}`))
	bare := r.one("shop")
	assert.Equal(t, "no-certificate", codes(bare.Problems))
	assert.Equal(t, "listener https: no Certificate writes Secret shop/shop-tls", bare.Problems[0].Detail)
	assert.Equal(t, api.CoveredUnknown, bare.Listeners[0].Hosts[0].Covered)
	assert.Empty(t, bare.State)

	r.written("shop", "shop", "shop-tls", day, "other.example", "shop.example")
	g := r.one("shop")
	assert.Equal(t, api.KubernetesGateway, g.API)
	assert.Equal(t, "istio", g.Class)
	assert.Empty(t, g.Problems)
	assert.Equal(t, api.Fresh, g.State)
	require.Len(t, g.Listeners, 4)
	l := g.Listeners[0]
	assert.Equal(t, []api.GatewayHost{{Name: "shop.example", Covered: api.CoveredYes}}, l.Hosts)
	assert.Equal(t, "Terminate", l.TLSMode)
	assert.Equal(t, 443, l.Port)
	require.Len(t, l.Certificates, 1)
	c := l.Certificates[0]
	assert.Equal(t, g.NotAfter, c.NotAfter)
	assert.Equal(t, api.FromCertificate, c.From)
	assert.Equal(t, &api.ObjectRef{Namespace: "shop", Name: "shop-tls"}, c.Secret)
	assert.Equal(t, &api.ObjectRef{Namespace: "shop", Name: "shop", UID: "uid-of-it"}, c.Certificate)
	assert.Equal(t, "ClusterIssuer.cert-manager.io/web", c.Issuer)
	assert.Equal(t, []string{"DNS:other.example", "DNS:shop.example", "IP:2001:db8::1"}, c.SANs)
	assert.Equal(t, 90*day, c.NotAfter.Sub(c.NotBefore))
	assert.Equal(t, 60*day, c.RenewalTime.Sub(c.NotBefore))
	assert.InDelta(t, 89.0/90, c.RemainingRatio, 0.001)
	assert.True(t, *c.Ready)
	assert.Empty(t, c.Unknown)
	for n, mode := range map[int]string{1: "", 2: "Passthrough", 3: "ISTIO_MUTUAL"} {
		assert.Equal(t, mode, g.Listeners[n].TLSMode)
		assert.Empty(t, g.Listeners[n].Certificates)
		assert.Empty(t, g.Listeners[n].Problems)
		assert.Equal(t, api.CoveredUnknown, g.Listeners[n].Hosts[0].Covered)
	}

	// The Certificate is deleted, and the gateway.
	gone := r.written("shop", "shop", "shop-tls", day, "shop.example")
	require.NoError(t, r.followerOf(gone).Delete(gone))
	assert.Equal(t, "no-certificate", codes(r.one("shop").Problems))
	none := r.has("%s", kubernetesGateway("shop", "{name: http, port: 80, protocol: HTTP}"))
	assert.Empty(t, r.one("shop").Problems)
	require.NoError(t, r.followerOf(none).Delete(none))
	assert.Empty(t, r.gatewaysOf(api.GatewayQuery{}))
}

func TestWhatIsWrongWithAGateway(t *testing.T) {
	https := "{name: https, hostname: shop.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: tls}]}}"
	for name, c := range map[string]struct {
		do      func(r *rig)
		want    string
		state   api.State
		covered api.Covered
	}{
		"good":    {func(r *rig) { r.written("shop", "c", "tls", day, "shop.example") }, "", api.Fresh, api.CoveredYes},
		"due":     {func(r *rig) { r.written("shop", "c", "tls", 62*day, "shop.example") }, "", api.Due, api.CoveredYes},
		"overdue": {func(r *rig) { r.written("shop", "c", "tls", 66*day, "shop.example") }, "overdue", api.Overdue, api.CoveredYes},
		"expired": {func(r *rig) { r.written("shop", "c", "tls", 91*day, "shop.example") }, "expired", api.Expired, api.CoveredYes},
		"host":    {func(r *rig) { r.written("shop", "c", "tls", day, "*.shop.example") }, "host-not-covered", api.Fresh, api.CoveredNo},
		"none":    {func(r *rig) {}, "no-certificate", "", api.CoveredUnknown},
		"elsewhere": {func(r *rig) {
			r.written("other", "c", "tls", day, "shop.example")
			r.written("shop", "c", "other", day, "shop.example")
		}, "no-certificate", "", api.CoveredUnknown},
		"moved away": {func(r *rig) {
			r.written("shop", "c", "tls", day, "shop.example")
			r.written("shop", "c", "other", day, "shop.example")
		}, "no-certificate", "", api.CoveredUnknown},
		"not ready": {func(r *rig) {
			r.has(`{apiVersion: cert-manager.io/v1, kind: Certificate, metadata: {namespace: shop, name: c}, spec: {secretName: tls, dnsNames: [shop.example], issuerRef: {name: x}},
              status: {conditions: [{type: Ready, status: "False", reason: DoesNotExist, message: no Secret}]}}`)
		}, "not-ready", "", api.CoveredYes},
		"not issued": {func(r *rig) {
			r.has(`{apiVersion: cert-manager.io/v1, kind: Certificate, metadata: {namespace: shop, name: c}, spec: {secretName: tls, dnsNames: [shop.example], issuerRef: {name: x}}}`)
		}, "not-ready", "", api.CoveredYes},
		"two": {func(r *rig) {
			r.has(`{apiVersion: cert-manager.io/v1, kind: Certificate, metadata: {namespace: shop, name: a}, spec: {secretName: tls, dnsNames: [x.example], issuerRef: {name: x}}}`)
			r.written("shop", "c", "tls", day, "shop.example")
		}, "", api.Fresh, api.CoveredYes},
		"certificates aren't known": {func(r *rig) { r.follows(certificatesSource) }, "", "", api.CoveredUnknown},
		"no reference": {func(r *rig) {
			r.has("%s", kubernetesGateway("shop", "{name: https, hostname: shop.example, port: 443, protocol: HTTPS, tls: {}}"))
		}, "no-certificate", "", api.CoveredUnknown},
		"a reference to something else": {func(r *rig) {
			r.has("%s", kubernetesGateway("shop", "{name: https, hostname: shop.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{group: x.example, kind: Vault, name: tls}]}}"))
		}, "", "", api.CoveredUnknown},
		"one of two isn't known": {func(r *rig) {
			r.written("shop", "c", "tls", day, "x.example")
			r.has("%s", kubernetesGateway("shop", "{name: https, hostname: shop.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: tls}, {name: unknown}]}}"))
		}, "no-certificate", api.Fresh, api.CoveredUnknown},
		"one of two covers": {func(r *rig) {
			r.written("shop", "c", "tls", day, "x.example")
			r.written("shop", "d", "tls-2", 91*day, "shop.example")
			r.has("%s", kubernetesGateway("shop", "{name: https, hostname: shop.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: tls}, {name: tls-2}]}}"))
		}, "expired", api.Expired, api.CoveredYes},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t).follows()
			r.has("%s", kubernetesGateway("shop", https))
			c.do(r)
			g := r.one("shop")
			assert.Equal(t, c.want, codes(g.Problems))
			assert.Equal(t, c.want, codes(g.Listeners[0].Problems))
			assert.Equal(t, c.state, g.State)
			assert.Equal(t, c.covered, g.Listeners[0].Hosts[0].Covered)
			listed := r.gatewaysOf(api.GatewayQuery{Problems: true})
			assert.Equal(t, c.want != "", len(listed) == 1)
			for _, certificate := range g.Listeners[0].Certificates {
				assert.Equal(t, certificate.From == "", certificate.Unknown != "", "what isn't known has a reason")
			}
		})
	}
}

func TestReferencesAcrossNamespaces(t *testing.T) {
	grant := func(r *rig, namespace, to string) *unstructured.Unstructured {
		return r.has(`{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {namespace: %s, name: g}, spec: {
          from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: edge}, {group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}], to: %s}}`, namespace, to)
	}
	r := newRig(t).follows()
	for _, namespace := range []string{"edge", "other"} {
		r.has("%s", kubernetesGateway(namespace, "{name: https, hostname: a.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: tls, namespace: certs}]}}"))
	}
	r.written("certs", "c", "tls", 91*day, "b.example")
	assert.Equal(t, "reference-not-granted expired host-not-covered", codes(r.one("edge").Problems))
	grant(r, "certs", `[{group: "", kind: Secret, name: another}, {group: "", kind: Service}, {group: x, kind: Secret}]`)
	assert.Equal(t, "reference-not-granted expired host-not-covered", codes(r.one("edge").Problems))
	grant(r, "edge", `[{group: "", kind: Secret}]`)
	assert.Equal(t, "reference-not-granted expired host-not-covered", codes(r.one("edge").Problems))
	grant(r, "certs", `[{group: "", kind: Secret, name: tls}]`)
	assert.Equal(t, "expired host-not-covered", codes(r.one("edge").Problems))
	given := grant(r, "certs", `[{group: "", kind: Secret}]`)
	assert.Equal(t, "expired host-not-covered", codes(r.one("edge").Problems))
	assert.Equal(t, "reference-not-granted expired host-not-covered", codes(r.one("other").Problems), "only a HTTPRoute may")

	// Who may see the gateway alone learns nothing of the Secret.
	hidden := r.one("edge", "edge")
	assert.Empty(t, hidden.Problems)
	assert.Empty(t, hidden.State)
	assert.True(t, hidden.NotAfter.IsZero())
	assert.Equal(t, []api.GatewayCertificate{{Secret: &api.ObjectRef{Namespace: "certs", Name: "tls"}, Unknown: outOfSight}}, hidden.Listeners[0].Certificates)
	assert.Equal(t, api.CoveredUnknown, hidden.Listeners[0].Hosts[0].Covered)
	assert.Empty(t, r.gatewaysOf(api.GatewayQuery{Visible: these{"edge"}, Problems: true}))
	assert.Len(t, r.gatewaysOf(api.GatewayQuery{Visible: these{"edge", "certs"}, Problems: true}), 1)

	require.NoError(t, r.followerOf(given).Delete(given))
	assert.Equal(t, "reference-not-granted", codes(r.one("edge", "edge").Problems))
	r.follows(grantsSource)
	assert.Empty(t, r.one("edge", "edge").Problems, "nobody knows")
}

func TestAnIstioGateway(t *testing.T) {
	r := newRig(t).follows()
	gateway := func(servers string) {
		r.has(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {namespace: shop, name: web}
spec:
  selector: {app: edge}
  servers:
  - %s`, servers)
	}
	simple := `{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["shop/Shop.Example", "*/a.example", "./b.example"], tls: {mode: SIMPLE, credentialName: tls}}`
	gateway(simple)
	none := r.one("shop")
	assert.Equal(t, "no-workload", codes(none.Problems))
	assert.Equal(t, &api.ObjectRef{Name: "tls"}, none.Listeners[0].Certificates[0].Secret)
	r.written("shop", "c", "tls", day, "a.example")
	r.written("edge", "c", "tls", day, "shop.example", "a.example", "b.example")
	r.pod("elsewhere", "wrong", "gw", router(map[string]string{"app": "other"}))
	r.pod("elsewhere", "workload", "web", sidecar, func(p *corev1.Pod) { p.Labels["app"] = "edge" })
	assert.Equal(t, "no-workload", codes(r.one("shop").Problems), "neither fits")

	pod := r.pod("edge", "gw", "gw", router(map[string]string{"app": "edge", "version": "1"}))
	g := r.one("shop")
	assert.Empty(t, g.Problems)
	l := g.Listeners[0]
	assert.Equal(t, "https", l.Name)
	assert.Equal(t, "SIMPLE", l.TLSMode)
	assert.Equal(t, []api.GatewayHost{{Name: "shop.example", Covered: api.CoveredYes}, {Name: "a.example", Covered: api.CoveredYes}, {Name: "b.example", Covered: api.CoveredYes}}, l.Hosts)
	require.Len(t, l.Certificates, 1)
	assert.Equal(t, "edge", l.Certificates[0].Secret.Namespace)
	assert.Equal(t, api.Fresh, g.State)

	// Who doesn't see the namespace of the pods doesn't learn which it is.
	hidden := r.one("shop", "shop")
	assert.Equal(t, []api.GatewayCertificate{{Secret: &api.ObjectRef{Name: "tls"}, Unknown: outOfSight}}, hidden.Listeners[0].Certificates)

	// The pods change.
	second := r.pod("edge-2", "gw", "gw", router(map[string]string{"app": "edge"}))
	g = r.one("shop")
	require.Len(t, g.Listeners[0].Certificates, 2)
	assert.Equal(t, "no-certificate", codes(g.Problems))
	pod.Labels = map[string]string{"app": "else"}
	r.tell("pods", pod.DeepCopy())
	assert.Equal(t, "edge-2", r.one("shop").Listeners[0].Certificates[0].Secret.Namespace)
	r.gone("pods", second)
	assert.Equal(t, "no-workload", codes(r.one("shop").Problems))

	r.pod("edge", "gw-2", "gw", router(map[string]string{"app": "edge"}))
	for servers, want := range map[string]struct {
		mode, problems string
		certificates   []string
	}{
		`{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: MUTUAL, credentialNames: [tls, "kubernetes://tls", "kubernetes-gateway://shop/tls"]}}`: {"MUTUAL", "", []string{"edge/tls", "edge/tls", "shop/tls"}},
		`{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["x.example"], tls: {mode: OPTIONAL_MUTUAL, serverCertificate: /etc/x.pem}}`:                              {"OPTIONAL_MUTUAL", "", []string{"/etc/x.pem"}},
		`{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["x.example"], tls: {mode: SIMPLE, tlsCertificates: [{serverCertificate: /a}, {serverCertificate: /b}]}}`: {"SIMPLE", "", []string{"/a", "/b"}},
		`{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["x.example"], tls: {mode: SIMPLE, credentialName: "sds://x"}}`:                                           {"SIMPLE", "", []string{"it is named as sds://x, which is no Secret"}},
		`{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["x.example"], tls: {mode: SIMPLE, credentialName: "builtin://"}}`:                                        {"SIMPLE", "", nil},
		`{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["x.example"], tls: {mode: SIMPLE}}`:                                                                      {"SIMPLE", "no-certificate", nil},
		`{port: {number: 15443, name: tls, protocol: TLS}, hosts: ["*.local"], tls: {mode: AUTO_PASSTHROUGH}}`:                                                                {"AUTO_PASSTHROUGH", "", nil},
		`{port: {number: 15443, name: tls, protocol: TLS}, hosts: ["*.local"], tls: {}}`:                                                                                      {"PASSTHROUGH", "", nil},
		`{port: {number: 15443, name: tls, protocol: TLS}, hosts: ["*.local"], tls: {mode: ISTIO_MUTUAL}}`:                                                                    {"ISTIO_MUTUAL", "", nil},
		`{port: {number: 80, name: http, protocol: HTTP}, hosts: ["x.example"], tls: {httpsRedirect: true}}`:                                                                  {"", "", nil},
	} {
		gateway(servers)
		g := r.one("shop")
		assert.Equal(t, want.mode, g.Listeners[0].TLSMode, servers)
		assert.Equal(t, want.problems, codes(g.Problems), servers)
		var shown []string
		for _, c := range g.Listeners[0].Certificates {
			switch {
			case c.Secret != nil:
				shown = append(shown, c.Secret.Namespace+"/"+c.Secret.Name)
			case c.File != "":
				shown = append(shown, c.File)
			default:
				shown = append(shown, c.Unknown)
			}
		}
		assert.Equal(t, want.certificates, shown, servers)
	}
}

func TestPodsOfGatewaysAreRecognised(t *testing.T) {
	for want, change := range map[api.DataPlane]func(*corev1.Pod){
		api.Gateway: router(map[string]string{"any": "label"}),
		api.Sidecar: func(p *corev1.Pod) {
			p.Labels["any"] = "label"
			p.Spec.Containers[0].Args = []string{"router"}
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "istio-proxy", Args: []string{"proxy", "sidecar"}})
		},
		api.NoMesh: func(p *corev1.Pod) {
			p.Spec.Containers = []corev1.Container{{Name: "traefik", Args: []string{"router"}}}
		},
	} {
		shrunk, err := shrinkPod(podLike("n", "p", "a", 1, change))
		require.NoError(t, err)
		p := shrunk.(*corev1.Pod)
		assert.Equal(t, want, classify(p).plane)
		assert.Equal(t, want == api.Gateway, p.Labels["any"] != "", "labels are kept of gateways alone")
	}
}

func TestCovers(t *testing.T) {
	for host, want := range map[string]bool{
		"a.example": true, "b.example": false, "x.wild.example": true, "x.y.wild.example": false, "wild.example": false,
		"*.wild.example": true, "*.example": false, "*.x.wild.example": false, "part.partial.example": false, "192.0.2.1": true, "192.0.2.2": false,
		"2001:db8::1": true, "spiffe://a": false, "x.upper.example": true, ".wild.example": false, "com": false, "x.com": false, "a": false, "cn.example": false, "*": false,
	} {
		assert.Equal(t, want, covers([]string{
			"DNS:A.Example", "DNS:*.wild.example", "DNS:p*.partial.example", "IP:192.0.2.1", "IP:2001:db8:0::1", "URI:spiffe://a", "DNS:*.UPPER.example.", "DNS:*", "DNS:*.", "email:cn.example",
		}, host), host)
	}
	assert.Equal(t, "a.b", normalHost("A.b."))
}

func TestTheLifeOfACertificate(t *testing.T) {
	at := func(d int) time.Time { return time.Unix(0, 0).Add(time.Duration(d) * day) }
	days := func(from, renewal, to int) life {
		return life{validity{at(from).Unix(), at(to).Unix()}, at(renewal).Unix()}
	}
	for _, c := range []struct {
		life             life
		due, overdue, ex float64 // days
	}{
		{days(100, 160, 190), 160, 164.5, 190},
		{days(100, 189, 190), 189, 189.5, 190}, // renewed late
		{days(100, 190, 190), 190, 190, 190},
		{life{validity{at(100).Unix(), at(190).Unix()}, 0}, 160, 164.5, 190},
	} {
		for moment, want := range map[float64]api.State{c.due - 0.01: api.Fresh, c.due: api.Due, c.overdue: api.Overdue, c.ex: api.Overdue, c.ex + 0.01: api.Expired} {
			if c.due == c.overdue && moment == c.due {
				want = api.Overdue
			}
			assert.Equal(t, want, c.life.state(time.Unix(0, 0).Add(time.Duration(moment*float64(day)))), "%v at %v", c.life, moment)
		}
	}
	assert.Equal(t, api.Expired, days(100, 100, 90).state(at(95)))
}

func TestPagesOfGateways(t *testing.T) {
	r := newRig(t).follows()
	var want []string
	for n := range 5 {
		for _, namespace := range []string{"a", "b", "c"} {
			r.has("{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {namespace: %s, name: g%d}, spec: {gatewayClassName: x}}", namespace, n)
			r.has("{apiVersion: networking.istio.io/v1beta1, kind: Gateway, metadata: {namespace: %s, name: g%d}, spec: {selector: {a: b}}}", namespace, n)
		}
	}
	for _, namespace := range []string{"a", "b", "c"} {
		for n := range 5 {
			want = append(want, fmt.Sprintf("%s/g%d gateway.networking.k8s.io", namespace, n), fmt.Sprintf("%s/g%d networking.istio.io", namespace, n))
		}
	}
	names := func(q api.GatewayQuery) (names []string) {
		for _, g := range r.gatewaysOf(q) {
			names = append(names, g.Namespace+"/"+g.Name+" "+string(g.API))
		}
		return names
	}
	assert.Equal(t, want, names(api.GatewayQuery{}))
	assert.Equal(t, want[10:20], names(api.GatewayQuery{Namespace: "b"}))
	assert.Equal(t, append(want[:10:10], want[20:]...), names(api.GatewayQuery{Visible: these{"a", "c"}}))
	assert.Empty(t, names(api.GatewayQuery{Visible: these{"a"}, Namespace: "b"}))
	assert.Empty(t, names(api.GatewayQuery{Problems: true}))

	list, err := r.Gateways(t.Context(), api.GatewayQuery{Visible: these{"a"}, Page: api.Page{Limit: 3}})
	require.NoError(t, err)
	assert.True(t, list.Restricted)
	_, err = r.Gateways(t.Context(), api.GatewayQuery{Visible: everything{}, Problems: true, Page: api.Page{Continue: list.Continue}})
	assert.ErrorIs(t, err, api.ErrBadContinue, "of other filters")
	nobody, err := r.Gateways(t.Context(), api.GatewayQuery{})
	require.NoError(t, err)
	assert.Empty(t, nobody.Items)

	// A list anew replaces what there was, of its API alone.
	f := r.followerOf(object(t, "{apiVersion: networking.istio.io/v1, kind: Gateway}"))
	require.NoError(t, f.Replace([]any{object(t, "{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {namespace: z, name: z}, spec: {}}")}, "1"))
	assert.Len(t, names(api.GatewayQuery{}), 16)
	f.forget()
	assert.Len(t, names(api.GatewayQuery{}), 15)
	assert.Equal(t, api.Source{Name: istioSource, Up: true, Reason: "not installed in this cluster"}, f.state())
}

func TestSourcesOfGateways(t *testing.T) {
	sources := func(r *rig) map[string]api.Source {
		list, err := r.Gateways(t.Context(), api.GatewayQuery{Visible: everything{}})
		require.NoError(t, err)
		all := make(map[string]api.Source)
		for _, s := range list.Coverage.Sources {
			all[s.Name] = s
		}
		return all
	}
	r := newRig(t)
	assert.Equal(t, api.Source{Name: istioSource, Reason: "not watched"}, sources(r)[istioSource])
	assert.Contains(t, sources(r), "pods")
	r = newRig(t, func(c *Config) { c.Gateways.WithoutCertificates = true })
	assert.Contains(t, sources(r)[certificatesSource].Reason, "turned off by inventory.gateways.withoutCertificates")
	r = newRig(t, func(c *Config) { c.Gateways.Disabled = true })
	assert.Contains(t, sources(r)[kubernetesSource].Reason, "turned off by inventory.gateways.disabled")
	r.follows()
	assert.True(t, sources(r)[kubernetesSource].Up)
	list, err := r.Services(t.Context(), api.ServiceQuery{Visible: everything{}})
	require.NoError(t, err)
	for _, s := range list.Coverage.Sources {
		assert.NotEqual(t, istioSource, s.Name, "services don't need it")
	}
}

func TestALargeGateway(t *testing.T) {
	r := newRig(t).follows()
	hosts := make([]string, 5000)
	for n := range hosts {
		hosts[n] = fmt.Sprintf("h%d.example", n)
	}
	text, err := json.Marshal(hosts)
	require.NoError(t, err)
	r.has("{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {namespace: shop, name: web}, spec: {servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: %s, tls: {mode: ISTIO_MUTUAL}}]}}", text)
	g := r.one("shop")
	assert.Equal(t, "too-large", codes(g.Problems))
	assert.Len(t, g.Listeners[0].Hosts, mostOfGateway-1)

	r.has("%s", kubernetesGateway("larger", "{name: a, port: 1, protocol: HTTP}"+strings.Repeat("\n  - {name: a, port: 1, protocol: HTTP}", mostOfGateway)))
	assert.Equal(t, "too-large", codes(r.one("larger").Problems))

	// Many listeners with the same problem are summed up.
	listeners := "{name: l0, port: 1, protocol: HTTPS, tls: {}}"
	for n := range 63 {
		listeners += fmt.Sprintf("\n  - {name: l%d, port: %d, protocol: HTTPS, tls: {}}", n+1, n+2)
	}
	r.has("%s", kubernetesGateway("many", listeners))
	assert.Equal(t, []api.Problem{{Code: api.ProblemNoCertificate, Detail: "64 listeners: l0, l1, l2 and 61 more"}}, r.one("many").Problems)
}

func TestWhatIsReadOfASecret(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	begin := time.Now().Add(-time.Hour).Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0x0a1b2c), NotBefore: begin, NotAfter: begin.Add(90 * day), DNSNames: []string{"shop.example"}, IPAddresses: []net.IP{net.ParseIP("192.0.2.1")},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "a", Path: "/b"}}, EmailAddresses: []string{"x@y.example"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	encoded := func(data map[string][]byte) []byte {
		text, err := json.Marshal(&corev1.Secret{Data: data})
		require.NoError(t, err)
		return text
	}
	fact, err := factOf(encoded(map[string][]byte{"tls.key": []byte("no key at all"), "tls.crt": append(append(pem.EncodeToMemory(&pem.Block{Type: "OTHER"}), certificate...), certificate...)}))
	require.NoError(t, err)
	assert.Equal(t, "0a1b2c", fact.serial)
	assert.Equal(t, []string{"DNS:shop.example", "IP:192.0.2.1", "URI:spiffe://a/b", "email:x@y.example"}, fact.sans)
	assert.Equal(t, validity{begin.Unix(), begin.Add(90 * day).Unix()}, fact.validity)
	for _, text := range [][]byte{
		nil, []byte("{"), encoded(nil), encoded(map[string][]byte{"tls.crt": []byte("private words")}), encoded(map[string][]byte{"cert": certificate}),
		encoded(map[string][]byte{"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("private words")})}),
	} {
		_, err := factOf(text)
		require.Error(t, err)
		assert.NotContains(t, err.Error(), "private")
	}

	// What is in the Secret counts, whatever the Certificate says.
	r := newRig(t).follows()
	r.has("%s", kubernetesGateway("shop", "{name: https, hostname: shop.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: tls}]}}"))
	r.gateways.setSecret(name{"shop", "tls"}, &secret{fact: fact})
	byHand := r.one("shop")
	assert.Empty(t, byHand.Problems)
	assert.Equal(t, api.FromSecret, byHand.Listeners[0].Certificates[0].From)
	assert.Equal(t, api.Fresh, byHand.State)
	r.written("shop", "c", "tls", 91*day, "new.example")
	both := r.one("shop").Listeners[0].Certificates[0]
	assert.Equal(t, api.FromSecret, both.From)
	assert.Equal(t, "0a1b2c", both.Serial)
	assert.Equal(t, "ClusterIssuer.cert-manager.io/web", both.Issuer)
	assert.Equal(t, api.Fresh, both.State)
	assert.Zero(t, both.RenewalTime, "it is that of another certificate")
	assert.Equal(t, []name{{"shop", "tls"}}, r.secretsNamed([]string{"shop"}))
	assert.Empty(t, r.secretsNamed([]string{"other"}))
	assert.True(t, r.gateways.keepSecrets([]name{{"shop", "other"}}))
	r.gateways.setSecret(name{"shop", "tls"}, &secret{reason: "there is no such Secret", bad: true})
	assert.Equal(t, "no-certificate expired", codes(r.one("shop").Problems))
}

func TestGatewayMetrics(t *testing.T) {
	r := newRig(t).follows()
	r.has("%s", kubernetesGateway("a", "{name: https, hostname: shop.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: tls}]}}"))
	r.has("%s", kubernetesGateway("b", "{name: https, hostname: shop.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: tls}]}}"))
	r.has("%s", kubernetesGateway("c", "{name: http, port: 80, protocol: HTTP}"))
	r.written("a", "c", "tls", 91*day, "other.example")
	r.written("b", "c", "tls", day, "shop.example")
	r.look(time.Now())
	text := r.scrape()
	for _, line := range []string{
		`signet_gateways{state="expired"} 1`, `signet_gateways{state="fresh"} 1`, `signet_gateways{state="unknown"} 1`, `signet_gateways{state="due"} 0`,
		`signet_gateways_with_problems{problem="expired"} 1`, `signet_gateways_with_problems{problem="host-not-covered"} 1`,
		`signet_gateways_with_problems{problem="any"} 1`, `signet_gateways_with_problems{problem="no-certificate"} 0`,
	} {
		assert.Contains(t, text, line)
	}
}

func TestGatewaysConfig(t *testing.T) {
	check := func(c GatewaysConfig) error {
		p := setting.NewProblems()
		Config{Gateways: c}.Validate(p.At("inventory"))
		return p.Err()
	}
	assert.NoError(t, check(GatewaysConfig{}))
	assert.NoError(t, check(GatewaysConfig{ReadSecrets: []string{"istio-ingress"}, CheckEvery: setting.DurationOf(time.Minute)}))
	assert.ErrorContains(t, check(GatewaysConfig{ReadSecrets: []string{"a", "A/b"}}), "inventory.gateways.readSecrets[1]")
	assert.ErrorContains(t, check(GatewaysConfig{CheckEvery: setting.DurationOf(time.Millisecond)}), "inventory.gateways.checkEvery")
}
