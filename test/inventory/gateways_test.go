package inventory

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/test/controlplane"
)

// gatewayRights are what is needed for gateways, beyond rights.
const gatewayRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-gateways}
rules:
  # Which certificates gateways show, and who may name Secrets of other namespaces.
  - apiGroups: [gateway.networking.k8s.io]
    resources: [gateways, referencegrants]
    verbs: [list, watch]
  - apiGroups: [networking.istio.io]
    resources: [gateways]
    verbs: [list, watch]
  # What is known of them without reading a Secret.
  - apiGroups: [cert-manager.io]
    resources: [certificates]
    verbs: [list, watch]
`

// bindGateways gives an account the rights.
func bindGateways(ctx context.Context, account string) error {
	return plane.Apply(ctx, fmt.Appendf(nil, `%s
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-gateways-%s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-gateways}
subjects: [{kind: ServiceAccount, name: %s, namespace: %s}]
`, gatewayRights, account, account, home))
}

// install makes the API server serve both gateway APIs, until the end of the test or the call of what it returns.
func install(t *testing.T) (remove func()) {
	t.Helper()
	text, err := controlplane.GatewayDefinitions(t.Context())
	require.NoError(t, err)
	remove = sync.OnceFunc(func() {
		for _, name := range []string{"gateways.gateway.networking.k8s.io", "referencegrants.gateway.networking.k8s.io", "gateways.networking.istio.io"} {
			definition := &unstructured.Unstructured{}
			definition.SetAPIVersion("apiextensions.k8s.io/v1")
			definition.SetKind("CustomResourceDefinition")
			definition.SetName(name)
			require.NoError(t, client.IgnoreNotFound(plane.Client().Delete(context.Background(), definition)))
			require.Eventually(t, func() bool {
				return apierrors.IsNotFound(plane.Client().Get(context.Background(), keyOf(definition), definition))
			}, patience, glance)
		}
	})
	t.Cleanup(remove)
	require.NoError(t, plane.Apply(t.Context(), text))
	return remove
}

// sourcesOf are those of gateways, by their name without the group.
func (r *rig) sourcesOf(c require.TestingT) map[string]api.Source {
	list, err := r.Gateways(r.t.Context(), api.GatewayQuery{Visible: everything{}})
	require.NoError(c, err)
	all := make(map[string]api.Source)
	for _, s := range list.Coverage.Sources {
		all[s.Name] = s
	}
	return all
}

// eventuallySources waits until sources of gateways are as they should be.
func (r *rig) eventuallySources(up bool, reason string, names ...string) {
	r.t.Helper()
	require.EventuallyWithT(r.t, func(c *assert.CollectT) {
		sources := r.sourcesOf(c)
		for _, name := range names {
			assert.Equal(c, up, sources[name].Up, "%s: %s", name, sources[name].Reason)
			if reason == "" {
				assert.Empty(c, sources[name].Reason)
			} else {
				assert.Contains(c, sources[name].Reason, reason)
			}
		}
	}, patience, glance)
}

// eventuallyGateway waits until a gateway is as it should be.
func (r *rig) eventuallyGateway(namespace, name string, check func(*assert.CollectT, api.GatewayObject)) {
	r.t.Helper()
	require.EventuallyWithT(r.t, func(c *assert.CollectT) {
		list, err := r.Gateways(r.t.Context(), api.GatewayQuery{Visible: everything{}, Namespace: namespace})
		require.NoError(c, err)
		at := slices.IndexFunc(list.Items, func(g api.GatewayObject) bool { return g.Name == name })
		require.GreaterOrEqual(c, at, 0, "gateway %s/%s", namespace, name)
		check(c, list.Items[at])
	}, patience, glance)
}

func problems(g api.GatewayObject) string {
	var all []string
	for _, p := range g.Problems {
		all = append(all, string(p.Code))
	}
	return strings.Join(all, " ")
}

// apply applies a manifest, when the API server takes it: for a moment it knows a kind that was removed and defined anew
// as the one that goes.
func apply(t *testing.T, manifest string, args ...any) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, plane.Apply(t.Context(), fmt.Appendf(nil, manifest, args...)))
	}, patience, glance)
}

// issue has cert-manager issue a certificate, and returns it as the Secret holds it once it is ready for its hosts.
func issue(t *testing.T, namespace, name string, hosts ...string) (*certmanager.Certificate, *x509.Certificate) {
	t.Helper()
	apply(t, `
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {namespace: %s, name: %s}
spec:
  secretName: %s-tls
  duration: 24h
  privateKey: {algorithm: ECDSA, rotationPolicy: Always}
  dnsNames: ["%s"]
  issuerRef: {name: selfsigned}
`, namespace, name, name, strings.Join(hosts, `","`))
	certificate, leaf := &certmanager.Certificate{}, &x509.Certificate{}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, certificate))
		at := slices.IndexFunc(certificate.Status.Conditions, func(c certmanager.CertificateCondition) bool { return c.Type == certmanager.CertificateConditionReady })
		require.GreaterOrEqual(c, at, 0)
		ready := certificate.Status.Conditions[at]
		require.Equal(c, "True", string(ready.Status), ready.Message)
		require.Equal(c, certificate.Generation, ready.ObservedGeneration)
		secret := &corev1.Secret{}
		require.NoError(c, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name + "-tls"}, secret))
		block, _ := pem.Decode(secret.Data["tls.crt"])
		require.NotNil(c, block)
		var err error
		leaf, err = x509.ParseCertificate(block.Bytes)
		require.NoError(c, err)
		require.Equal(c, hosts, leaf.DNSNames)
		require.True(c, certificate.Status.NotAfter != nil && certificate.Status.NotAfter.Time.Equal(leaf.NotAfter))
	}, patience, glance)
	return certificate, leaf
}

// only these namespaces may be seen.
type only []string

func (only) All() bool                    { return false }
func (o only) Namespace(name string) bool { return slices.Contains(o, name) }

// TestGateways: both APIs are installed while the inventory runs; what their gateways show is what cert-manager issued,
// and changes with it; then the APIs are removed.
func TestGateways(t *testing.T) {
	edge, app := plane.NewNamespace(t, "edge"), plane.NewNamespace(t, "app")
	require.NoError(t, errors.Join(plane.ServiceAccount(t.Context(), home, "gateways"), bindGateways(t.Context(), "gateways")))
	apply(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-inventory-gateways}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-inventory}
subjects: [{kind: ServiceAccount, name: gateways, namespace: istio-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {namespace: %[1]s, name: signet-secrets}
rules: [{apiGroups: [""], resources: [secrets], resourceNames: [web-tls], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {namespace: %[1]s, name: signet-secrets}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: signet-secrets}
subjects: [{kind: ServiceAccount, name: gateways, namespace: istio-system}]
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {namespace: %[1]s, name: selfsigned}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {namespace: %[2]s, name: selfsigned}
spec: {selfSigned: {}}
`, edge, app)
	config, err := plane.As(t.Context(), home, "gateways")
	require.NoError(t, err)
	var paths sync.Map
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return counting{next, &paths} })
	r := startLooking(t, config, inventory.GatewaysConfig{ReadSecrets: []string{edge}, CheckEvery: setting.DurationOf(time.Second)}).synced()

	const kubernetes, grants, istio, certificates = "gateways.gateway.networking.k8s.io", "referencegrants.gateway.networking.k8s.io", "gateways.networking.istio.io", "certificates.cert-manager.io"
	r.eventuallySources(true, "not installed", kubernetes, grants, istio)
	r.eventuallySources(true, "", certificates, "secrets", "pods")
	remove := install(t)
	r.eventuallySources(true, "", kubernetes, grants, istio)

	certificate, leaf := issue(t, edge, "web", "web.example", "*.wild.example")
	apply(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: %[1]s, name: web}
spec:
  gatewayClassName: istio
  listeners:
  - {name: web, hostname: web.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web-tls}]}}
  - {name: wild, hostname: a.wild.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web-tls}]}}
  - {name: new, hostname: new.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web-tls}]}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {namespace: %[2]s, name: web}
spec:
  selector: {gateway: %[1]s}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: ["%[2]s/web.example", "*/other.example"], tls: {mode: SIMPLE, credentialName: web-tls}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: %[2]s, name: cross}
spec:
  gatewayClassName: istio
  listeners:
  - {name: web, hostname: web.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web-tls, namespace: %[1]s}]}}
`, edge, app)

	is := func(t *assert.CollectT, c api.GatewayCertificate, certificate *certmanager.Certificate, leaf *x509.Certificate) {
		assert.Equal(t, &api.ObjectRef{Namespace: edge, Name: "web-tls"}, c.Secret)
		assert.Equal(t, &api.ObjectRef{Namespace: edge, Name: "web", UID: string(certificate.UID)}, c.Certificate)
		assert.Equal(t, "Issuer.cert-manager.io/selfsigned", c.Issuer)
		assert.Equal(t, api.FromSecret, c.From)
		assert.Equal(t, hex.EncodeToString(leaf.SerialNumber.Bytes()), c.Serial)
		assert.Equal(t, leaf.NotBefore.UTC(), c.NotBefore)
		assert.Equal(t, leaf.NotAfter.UTC(), c.NotAfter)
		assert.Equal(t, certificate.Status.RenewalTime.UTC(), c.RenewalTime)
		var names []string
		for _, name := range leaf.DNSNames {
			names = append(names, "DNS:"+name)
		}
		assert.Equal(t, names, c.SANs)
		assert.Equal(t, api.Fresh, c.State)
		require.NotNil(t, c.Ready)
		assert.True(t, *c.Ready)
	}
	covered := func(g api.GatewayObject) (all []api.Covered) {
		for _, l := range g.Listeners {
			for _, h := range l.Hosts {
				all = append(all, h.Covered)
			}
		}
		return all
	}
	r.eventuallyGateway(edge, "web", func(t *assert.CollectT, g api.GatewayObject) {
		assert.Equal(t, api.KubernetesGateway, g.API)
		assert.Equal(t, []api.Covered{api.CoveredYes, api.CoveredYes, api.CoveredNo}, covered(g))
		assert.Equal(t, "host-not-covered", problems(g))
		require.Len(t, g.Listeners[0].Certificates, 1)
		is(t, g.Listeners[0].Certificates[0], certificate, leaf)
	})

	// Istio's needs to know the pods that serve it.
	r.eventuallyGateway(app, "web", func(t *assert.CollectT, g api.GatewayObject) { assert.Equal(t, "no-workload", problems(g)) })
	pod(t, edge, "router", "router", sidecar, labelled("gateway", edge), func(p *corev1.Pod) {
		p.Spec.Containers[1].Args = []string{"proxy", "router"}
	})
	r.eventuallyGateway(app, "web", func(t *assert.CollectT, g api.GatewayObject) {
		assert.Equal(t, api.IstioGateway, g.API)
		assert.Equal(t, []api.Covered{api.CoveredYes, api.CoveredNo}, covered(g))
		assert.Equal(t, "host-not-covered", problems(g))
		require.Len(t, g.Listeners[0].Certificates, 1)
		is(t, g.Listeners[0].Certificates[0], certificate, leaf)
	})

	// A Secret of another namespace has to be granted.
	r.eventuallyGateway(app, "cross", func(t *assert.CollectT, g api.GatewayObject) { assert.Equal(t, "reference-not-granted", problems(g)) })
	apply(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {namespace: %s, name: app}
spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: %s}], to: [{group: "", kind: Secret, name: web-tls}]}
`, edge, app)
	r.eventuallyGateway(app, "cross", func(t *assert.CollectT, g api.GatewayObject) {
		assert.Empty(t, problems(g))
		require.Len(t, g.Listeners[0].Certificates, 1)
		is(t, g.Listeners[0].Certificates[0], certificate, leaf)
	})
	hidden, err := r.Gateways(t.Context(), api.GatewayQuery{Visible: only{app}})
	require.NoError(t, err)
	require.Len(t, hidden.Items, 2)
	for _, g := range hidden.Items {
		assert.Empty(t, g.Problems)
		require.Len(t, g.Listeners[0].Certificates, 1)
		assert.Equal(t, "it is in a namespace that you may not see", g.Listeners[0].Certificates[0].Unknown)
		assert.Empty(t, g.Listeners[0].Certificates[0].SANs)
	}

	// The certificate is issued anew, with the host that was missing. Whoever looks for what changed unseen but once in
	// an hour is told of it too.
	seldom := startLooking(t, config, inventory.GatewaysConfig{ReadSecrets: []string{edge}, CheckEvery: setting.DurationOf(time.Hour)})
	seldom.eventuallyGateway(edge, "web", func(t *assert.CollectT, g api.GatewayObject) {
		require.Len(t, g.Listeners[0].Certificates, 1)
		is(t, g.Listeners[0].Certificates[0], certificate, leaf)
	})
	certificate, renewed := issue(t, edge, "web", "web.example", "*.wild.example", "new.example")
	require.NotEqual(t, leaf.SerialNumber, renewed.SerialNumber)
	for _, r := range []*rig{r, seldom} {
		r.eventuallyGateway(edge, "web", func(t *assert.CollectT, g api.GatewayObject) {
			assert.Equal(t, []api.Covered{api.CoveredYes, api.CoveredYes, api.CoveredYes}, covered(g))
			assert.Empty(t, problems(g))
			require.Len(t, g.Listeners[0].Certificates, 1)
			is(t, g.Listeners[0].Certificates[0], certificate, renewed)
		})
	}

	// Where Secrets aren't read, the Certificate tells.
	own, ownLeaf := issue(t, app, "own", "own.example")
	apply(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: %s, name: own}
spec:
  gatewayClassName: istio
  listeners:
  - {name: web, hostname: own.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: own-tls}]}}
`, app)
	r.eventuallyGateway(app, "own", func(t *assert.CollectT, g api.GatewayObject) {
		assert.Empty(t, problems(g))
		c := g.Listeners[0].Certificates[0]
		assert.Equal(t, api.FromCertificate, c.From)
		assert.Equal(t, []string{"DNS:own.example"}, c.SANs)
		assert.Equal(t, ownLeaf.NotAfter.UTC(), c.NotAfter)
		assert.Equal(t, own.Status.RenewalTime.UTC(), c.RenewalTime)
		assert.Empty(t, c.Serial)
	})
	require.NoError(t, plane.Client().Delete(t.Context(), own))
	r.eventuallyGateway(app, "own", func(t *assert.CollectT, g api.GatewayObject) { assert.Equal(t, "no-certificate", problems(g)) })
	// One that is named and isn't there, or may not be read, where Secrets are read.
	apply(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: %s, name: web}
spec:
  gatewayClassName: istio
  listeners:
  - {name: web, hostname: web.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: not-allowed}]}}
`, edge)
	r.eventuallyGateway(edge, "web", func(t *assert.CollectT, g api.GatewayObject) {
		require.Len(t, g.Listeners, 1)
		assert.Contains(t, g.Listeners[0].Certificates[0].Unknown, "forbidden")
	})
	r.eventuallySources(false, "forbidden", "secrets")

	var secrets []string
	paths.Range(func(path, _ any) bool {
		if strings.Contains(path.(string), "secrets") {
			secrets = append(secrets, path.(string))
		}
		return true
	})
	at := "/api/v1/namespaces/" + edge + "/secrets/"
	assert.ElementsMatch(t, []string{at + "web-tls", at + "not-allowed"}, secrets, "no Secret is listed, and none is read elsewhere")

	// The APIs are removed.
	remove()
	r.eventuallySources(true, "not installed", kubernetes, grants, istio)
	list, err := r.Gateways(t.Context(), api.GatewayQuery{Visible: everything{}})
	require.NoError(t, err)
	assert.Empty(t, list.Items)
}

// TestGatewaysWithoutRights: what may not be listed is said, nobody is alarmed for it, and a right that is granted
// later is noticed.
func TestGatewaysWithoutRights(t *testing.T) {
	install(t)
	account := "late-" + plane.NewNamespace(t, "late")
	require.NoError(t, plane.ServiceAccount(t.Context(), home, account))
	config, err := plane.As(t.Context(), home, account)
	require.NoError(t, err)
	r := startLooking(t, config, inventory.GatewaysConfig{CheckEvery: setting.DurationOf(time.Second)})
	names := []string{"gateways.gateway.networking.k8s.io", "referencegrants.gateway.networking.k8s.io", "gateways.networking.istio.io", "certificates.cert-manager.io"}
	r.eventuallySources(false, "forbidden", names...)

	ns := plane.NewNamespace(t, "unknown")
	apply(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: %s, name: web}
spec: {gatewayClassName: x, listeners: [{name: web, hostname: web.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web-tls}]}}]}
`, ns)
	require.NoError(t, bindGateways(t.Context(), account))
	r.eventuallySources(true, "", names...)
	r.eventuallyGateway(ns, "web", func(t *assert.CollectT, g api.GatewayObject) { assert.Equal(t, "no-certificate", problems(g)) })

	// Certificates aren't asked for where that is turned off.
	without := startLooking(t, config, inventory.GatewaysConfig{WithoutCertificates: true, CheckEvery: setting.DurationOf(time.Second)})
	without.eventuallySources(false, "turned off", "certificates.cert-manager.io")
	without.eventuallyGateway(ns, "web", func(t *assert.CollectT, g api.GatewayObject) {
		assert.Empty(t, problems(g))
		assert.Contains(t, g.Listeners[0].Certificates[0].Unknown, "turned off")
	})
}
