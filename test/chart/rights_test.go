package chart

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// bare is a configuration with all that can be off.
const bare = `
issuer: {name: pca, kind: AWSPCAClusterIssuer, group: awspca.cert-manager.io}
roots: {fromIssuer: true}
distribution: {disabled: true}
api: {disabled: true}
`

// always is what every configuration needs.
var always = []string{
	"create tokenreviews.authentication.k8s.io",
	"create events.events.k8s.io", "patch events.events.k8s.io",
	"create certificaterequests.cert-manager.io in istio-system", "get certificaterequests.cert-manager.io in istio-system",
	"list certificaterequests.cert-manager.io in istio-system", "watch certificaterequests.cert-manager.io in istio-system",
	"delete certificaterequests.cert-manager.io in istio-system",
	"create leases.coordination.k8s.io in istio-system",
	"get leases.coordination.k8s.io signet in istio-system", "update leases.coordination.k8s.io signet in istio-system",
	"create configmaps in istio-system",
	"list configmaps signet-trust-anchors in istio-system", "watch configmaps signet-trust-anchors in istio-system", "update configmaps signet-trust-anchors in istio-system",
	"list configmaps signet-replicas in istio-system", "watch configmaps signet-replicas in istio-system", "patch configmaps signet-replicas in istio-system",
}

// TestRights: each feature has the rights that it needs, and without it they aren't there. That they are the right ones is
// for test/privilege to show.
func TestRights(t *testing.T) {
	inspecting := []string{
		"create subjectaccessreviews.authorization.k8s.io", "list,watch services", "list,watch endpointslices.discovery.k8s.io", "list,watch serviceaccounts",
		"list,watch pods", "list,watch namespaces",
	}
	gateways := []string{"list,watch gateways.gateway.networking.k8s.io", "list,watch referencegrants.gateway.networking.k8s.io", "list,watch gateways.networking.istio.io"}
	for _, row := range []struct {
		name   string
		config string // merged into bare
		want   []string
	}{
		{name: "nothing", config: ``},
		{name: "Issuer", config: `issuer: {name: a, kind: null, group: null}`, want: []string{"list,watch issuers.cert-manager.io in istio-system"}},
		{name: "ClusterIssuer", config: `issuer: {kind: ClusterIssuer, group: cert-manager.io}`, want: []string{"list,watch clusterissuers.cert-manager.io"}},
		{name: "fallbacks", config: `issuers: {fallback: [{name: a}, {name: b, kind: ClusterIssuer}]}`, want: []string{
			"list,watch issuers.cert-manager.io in istio-system", "list,watch clusterissuers.cert-manager.io",
		}},
		{name: "runtime", config: `issuers: {runtime: {name: wanted}}`, want: []string{
			"list,watch issuers.cert-manager.io in istio-system", "list,watch clusterissuers.cert-manager.io", "list,watch configmaps wanted in istio-system",
		}},
		{name: "only runtime", config: "issuer: null\nissuers: {runtime: {name: wanted, namespace: platform}}", want: []string{
			"list,watch issuers.cert-manager.io in istio-system", "list,watch clusterissuers.cert-manager.io", "list,watch configmaps wanted in platform",
		}},
		{name: "roots and CRLs in objects", config: "roots: {secret: {name: a}, configMap: {name: b}}\ncrl: {secret: {name: c}}", want: []string{
			"list,watch secrets a in istio-system", "list,watch secrets c in istio-system", "list,watch configmaps b in istio-system",
		}},
		{name: "CRLs in a ConfigMap", config: `crl: {configMap: {name: d}}`, want: []string{"list,watch configmaps d in istio-system"}},
		{name: "distribution", config: `distribution: {disabled: false}`, want: []string{
			"list,watch namespaces", "list,watch,create,patch configmaps istio-ca-root-cert",
			"list,watch,create,patch clustertrustbundles.certificates.k8s.io istio.io:istiod-ca:root-cert", "attest signers.certificates.k8s.io istio.io/istiod-ca",
		}},
		{name: "distribution without ClusterTrustBundle", config: `distribution: {disabled: false, clusterTrustBundle: "off", configMap: roots}`, want: []string{
			"list,watch namespaces", "list,watch,create,patch configmaps roots",
		}},
		{name: "distribution of CRLs", config: "distribution: {disabled: false, clusterTrustBundle: \"off\"}\ncrl: {file: /x}", want: []string{
			"list,watch namespaces", "list,watch,create,patch configmaps istio-ca-root-cert", "list,watch,create,patch configmaps istio-ca-crl",
		}},
		{name: "istiod", config: `istiod: {enabled: true}`, want: []string{
			"list,watch mutatingwebhookconfigurations.admissionregistration.k8s.io",
			"list,watch,create,patch certificates.cert-manager.io istiod-dynamic in istio-system", "list,watch deployments.apps in istio-system",
		}},
		{name: "istiod elsewhere", config: `istiod: {enabled: true, namespace: other, name: cert}`, want: []string{
			"list,watch mutatingwebhookconfigurations.admissionregistration.k8s.io",
			"list,watch,create,patch certificates.cert-manager.io cert in other", "list,watch deployments.apps in other",
		}},
		{name: "istiod off", config: `istiod: {enabled: false, name: cert}`},
		{name: "nodes", config: `ca: {nodes: {accounts: [istio-system/ztunnel]}}`, want: []string{"list,watch,get pods"}},
		{name: "certificates", config: `ca: {certificates: {enabled: true}}`, want: []string{"list,watch pods", "list,watch serviceaccounts"}},
		{name: "local tokens", config: `ca: {token: {authentication: local}}`, want: []string{
			"list,watch pods", "list,watch serviceaccounts", "list,watch nodes", "get /.well-known/openid-configuration", "get /openid/v1/jwks",
		}},
		{name: "reviewed tokens", config: `ca: {token: {authentication: review}}`},
		{name: "registration", config: `ca: {registration: {enabled: true}}`, want: []string{
			"list,watch certificatesigningrequests.certificates.k8s.io", "update certificatesigningrequests/status.certificates.k8s.io",
			"sign signers.certificates.k8s.io signet.dev/*",
		}},
		{name: "registration by another name", config: `ca: {registration: {enabled: true, signerName: ra.example.org/x}}`, want: []string{
			"list,watch certificatesigningrequests.certificates.k8s.io", "update certificatesigningrequests/status.certificates.k8s.io",
			"sign signers.certificates.k8s.io ra.example.org/*",
		}},
		{name: "remote clusters", config: `ca: {remoteClusters: {namespace: clusters, allowed: [{id: west}]}}`, want: []string{"list,watch secrets in clusters"}},
		{name: "rules by labels", config: `ca: {rules: [{namespaceLabels: {a: b}, lifetime: {max: 1h}}]}`, want: []string{"list,watch namespaces"}},
		{name: "rules by namespaces", config: `ca: {rules: [{namespaces: [a], issuer: {name: b}}]}`},
		{name: "inspection alone", config: "api: {disabled: false}\nprobes: {disabled: true}\ninventory: {gateways: {disabled: true}}", want: inspecting},
		{name: "gateways", config: "api: {disabled: false}\nprobes: {disabled: true}", want: slices.Concat(inspecting, gateways, []string{"list,watch certificates.cert-manager.io"})},
		{
			name: "gateways by Secrets", config: "api: {disabled: false}\nprobes: {disabled: true}\ninventory: {gateways: {withoutCertificates: true, readSecrets: [a, b]}}",
			want: slices.Concat(inspecting, gateways, []string{"get secrets in a", "get secrets in b"}),
		},
		{
			name: "probes", config: "api: {disabled: false}\ninventory: {gateways: {disabled: true}}",
			want: slices.Concat(inspecting, []string{"get pods", "get services", "list nodes", "list certificates.cert-manager.io"}),
		},
		{
			name: "probes and gateways", config: "api: {disabled: false}",
			want: slices.Concat(inspecting, gateways, []string{"get pods", "get services", "list nodes", "list,watch certificates.cert-manager.io"}),
		},
		{name: "nothing to inspect", config: "inventory: {gateways: {readSecrets: [a]}}\nprobes: {disabled: false}"},
	} {
		t.Run(row.name, func(t *testing.T) {
			objects, err := Rights("istio-system", map[string]any{"config": configOf(t, bare, row.config)})
			require.NoError(t, err)
			want := slices.Clone(always)
			for _, right := range row.want {
				verbs, what, _ := strings.Cut(right, " ")
				for verb := range strings.SplitSeq(verbs, ",") {
					want = append(want, verb+" "+what)
				}
			}
			granted := grantedTo(t, objects, "istio-system", "signet")
			assert.ElementsMatch(t, want, granted)
			for _, right := range granted {
				assert.NotContains(t, right, "*,", "no right is to everything")
			}
		})
	}
}

// grantedTo are the rights of a ServiceAccount, one by one, each once.
func grantedTo(t *testing.T, objects []*unstructured.Unstructured, namespace, name string) []string {
	t.Helper()
	all := make(map[string]int)
	for _, binding := range objects {
		if kind := binding.GetKind(); kind != "ClusterRoleBinding" && kind != "RoleBinding" {
			continue
		}
		var b rbacv1.RoleBinding
		require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(binding.Object, &b))
		require.Len(t, b.Subjects, 1)
		if b.Subjects[0] != (rbacv1.Subject{Kind: "ServiceAccount", Namespace: namespace, Name: name}) {
			continue
		}
		at := slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool {
			return o.GetKind() == b.RoleRef.Kind && o.GetName() == b.RoleRef.Name && o.GetNamespace() == b.Namespace
		})
		require.GreaterOrEqual(t, at, 0, "%s is bound, and isn't there", b.RoleRef.Name)
		var role rbacv1.Role
		require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(objects[at].Object, &role))
		for _, rule := range role.Rules {
			for _, right := range rightsOf(rule, b.Namespace) {
				all[right]++
				assert.Equal(t, 1, all[right], "%s is granted twice", right)
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func rightsOf(rule rbacv1.PolicyRule, namespace string) []string {
	var all []string
	in := ""
	if namespace != "" {
		in = " in " + namespace
	}
	for _, verb := range rule.Verbs {
		for _, url := range rule.NonResourceURLs {
			all = append(all, verb+" "+url)
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				if group != "" {
					resource += "." + group
				}
				for _, name := range rule.ResourceNames {
					all = append(all, fmt.Sprintf("%s %s %s%s", verb, resource, name, in))
				}
				if len(rule.ResourceNames) == 0 {
					all = append(all, fmt.Sprintf("%s %s%s", verb, resource, in))
				}
			}
		}
	}
	return all
}

// TestRightsOfNobody: without rbac.create there are none, and readers are told apart.
func TestRightsOfNobody(t *testing.T) {
	objects, err := Rights("istio-system", map[string]any{"config": configOf(t, bare, "api: {disabled: false}"), "rbac": map[string]any{"create": false}})
	require.NoError(t, err)
	assert.Empty(t, grantedTo(t, objects, "istio-system", "signet"))
	var want []string
	for _, resource := range []string{"services", "certificates", "identities", "issuances", "gateways", "trust"} {
		for _, verb := range []string{"get", "list", "watch"} {
			want = append(want, verb+" "+resource+".signet.dev")
		}
	}
	assert.ElementsMatch(t, want, grantedTo(t, objects, "istio-system", "signet-reader"))
}

// configOf reads a configuration, and what is merged into it.
func configOf(t *testing.T, text string, changes ...string) map[string]any {
	t.Helper()
	var config map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(text), &config))
	for _, change := range changes {
		var with map[string]any
		require.NoError(t, yaml.Unmarshal([]byte(change), &with))
		merge(config, with)
	}
	return config
}

// merge puts with into config; null takes away.
func merge(config, with map[string]any) {
	for key, value := range with {
		below, ok := value.(map[string]any)
		into, is := config[key].(map[string]any)
		switch {
		case value == nil:
			delete(config, key)
		case ok && is:
			merge(into, below)
		default:
			config[key] = value
		}
	}
}
