package networkpolicy

import (
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/common/util"
	appsv1 "k8s.io/api/apps/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/test/chart"
)

// What is let in and out unless the values say otherwise.
var (
	serving   = opening{tcp: []int{6443, 8443, 9402, 6060}}
	apiServer = opening{tcp: []int{443, 6443, 8443}}
	dns       = opening{tcp: []int{53, 5353}, udp: []int{53, 5353}}
)

const withoutProbes = "config: {probes: {disabled: true}}\n"

// TestPolicy: what is let in is what is served, to whom values say; what is let out is what the configuration needs.
func TestPolicy(t *testing.T) {
	for _, row := range []struct {
		name, values string
		in, out      []opening
		probes       bool // TCP is let out to every pod
	}{
		{name: "minimal", in: []opening{serving}, out: []opening{apiServer}, probes: true},
		// Signet itself keeps to them.
		{name: "probes in networks", values: "config: {probes: {networks: [10.0.0.0/8, 'fd00::/8']}}", in: []opening{serving}, out: []opening{apiServer}, probes: true},
		{name: "no probes", values: withoutProbes, in: []opening{serving}, out: []opening{apiServer}},
		{name: "no inspection", values: "config: {api: {disabled: true}}", in: []opening{{tcp: []int{6443, 9402, 6060}}}, out: []opening{apiServer}},
		{
			name: "bundle", values: "config: {bundleEndpoint: {listen: ':8444'}, probes: {disabled: true}}",
			in: []opening{serving, {tcp: []int{8444}}}, out: []opening{apiServer},
		},
		{
			name:   "other ports",
			values: "config: {ca: {listen: ':444'}, api: {listen: '[::]:8080'}, health: {listen: ':2'}, metrics: {listen: ':3'}, bundleEndpoint: {listen: ':1'}, probes: {disabled: true}}",
			in:     []opening{{tcp: []int{444, 8080, 2, 3, 1}}}, out: []opening{apiServer},
		},
		{
			name: "metrics for monitoring",
			values: withoutProbes + `
networkPolicy: {from: {metrics: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}, podSelector: {matchLabels: {app: prometheus}}}]}}`,
			in: []opening{{tcp: []int{6443, 8443, 6060}}, {tcp: []int{9402}, who: []string{"prometheus"}}}, out: []opening{apiServer},
		},
		{
			name: "each port for its own",
			values: `
config: {bundleEndpoint: {listen: ':8444'}, probes: {disabled: true}}
networkPolicy:
  from:
    ca:
      - namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [shop, istio-system]}]}
      - ipBlock: {cidr: 203.0.113.0/24}
      - ipBlock: {cidr: '2001:db8::/32'}
    api: [{podSelector: {}}]
    metrics: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
    health: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.10/32]}}]
    bundle: [{ipBlock: {cidr: 198.51.100.20/32}}]`,
			in: []opening{
				{tcp: []int{6443}, who: []string{"cart", "ztunnel", "istiod", "machine", "machine6"}},
				{tcp: []int{8443}, who: []string{"bystander"}},
				{tcp: []int{9402}, who: []string{"prometheus", "grafana"}},
				{tcp: []int{6060}, who: []string{"node"}},
				{tcp: []int{8444}, who: []string{"west"}},
			},
			out: []opening{apiServer},
		},
		{
			name:   "API server known",
			values: withoutProbes + "networkPolicy: {apiServer: {ports: [16443], to: [{ipBlock: {cidr: 192.0.2.10/32}}]}}",
			in:     []opening{serving}, out: []opening{{tcp: []int{16443}, who: []string{"API server"}}},
		},
		{
			name: "PostgreSQL",
			values: `
config: {probes: {disabled: true}, ledger: {postgres: {dsnEnv: DSN}}}
ledger: {postgres: {secretName: signet-postgres}}`,
			in: []opening{serving}, out: []opening{apiServer, dns, {tcp: []int{5432}}},
		},
		{
			name: "PostgreSQL and DNS known",
			values: `
config: {probes: {disabled: true}, ledger: {postgres: {dsnFile: /etc/signet/postgres/dsn}}}
ledger: {postgres: {secretName: signet-postgres}}
networkPolicy:
  apiServer: {to: [{ipBlock: {cidr: 192.0.2.10/32}}]}
  dns:
    ports: [53]
    to:
      - ipBlock: {cidr: 169.254.20.10/32}
      - {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {app: coredns}}}
  postgres:
    ports: [6432]
    to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: data}}, podSelector: {matchLabels: {app: postgres}}}]`,
			in: []opening{serving},
			out: []opening{
				{tcp: []int{443, 6443, 8443}, who: []string{"API server"}},
				{tcp: []int{53}, udp: []int{53}, who: []string{"coredns", "cache of DNS"}},
				{tcp: []int{6432}, who: []string{"postgres"}},
			},
		},
		{
			name: "federation",
			values: `
config:
  probes: {disabled: true}
  roots: {federated: [{trustDomain: a.example, endpointURL: 'https://a.example/b:1'}, {trustDomain: b.example, endpointURL: 'https://b.example:8444/'}]}
networkPolicy: {apiServer: {ports: [6443]}}`,
			in: []opening{serving}, out: []opening{{tcp: []int{6443}}, dns, {tcp: []int{443, 8444}}},
		},
		{
			name: "issuers of tokens",
			values: `
networkPolicy: {apiServer: {ports: [6443]}}
config:
  probes: {disabled: true}
  ca:
    oidc:
      - {issuer: 'https://[2001:db8::1]:444', audiences: [a], match: {sub: '{a}'}, namespace: a, serviceAccount: '{a}'}`,
			in: []opening{serving}, out: []opening{{tcp: []int{6443}}, dns, {tcp: []int{444}}},
		},
		{
			name: "remote clusters",
			values: `
config: {probes: {disabled: true}, ca: {remoteClusters: {namespace: remote, allowed: [{id: west, servers: ['https://west.example:7443', 'https://west.example']}]}}}
networkPolicy: {apiServer: {ports: [16443]}}`,
			in: []opening{serving}, out: []opening{{tcp: []int{16443}}, dns, {tcp: []int{443, 7443}}},
		},
		{
			name: "remote clusters anywhere",
			values: `
config: {probes: {disabled: true}, ca: {remoteClusters: {namespace: remote, allowed: [{id: west}]}}}
networkPolicy: {apiServer: {ports: [16443]}}`,
			in: []opening{serving}, out: []opening{{tcp: []int{16443}}, dns, {tcp: []int{443, 6443}}},
		},
		{
			name: "extra rules",
			values: withoutProbes + `
networkPolicy:
  extraIngress: [{from: [{podSelector: {}}], ports: [{port: 22}]}]
  extraEgress: [{to: [{ipBlock: {cidr: 203.0.113.7/32}}], ports: [{port: 8080, protocol: TCP}]}]`,
			in:  []opening{serving, {tcp: []int{22}, who: []string{"bystander"}}},
			out: []opening{apiServer, {tcp: []int{8080}, who: []string{"machine"}}},
		},
		{
			name: "everything",
			values: `
config:
  bundleEndpoint: {listen: ':8444'}
  ledger: {postgres: {dsnEnv: DSN}}
  ca: {remoteClusters: {namespace: remote, allowed: [{id: west, servers: ['https://west.example:7443']}]}}
ledger: {postgres: {secretName: signet-postgres}}`,
			in: []opening{serving, {tcp: []int{8444}}}, out: []opening{apiServer, dns, {tcp: []int{5432, 7443}}}, probes: true,
		},
		{
			name: "none", values: "networkPolicy: {enabled: false}",
			in:  []opening{{tcp: everyPort, udp: everyPort, sctp: everyPort}},
			out: []opening{{tcp: everyPort, udp: everyPort, sctp: everyPort}},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			namespace := plane.NewNamespace(t, "signet")
			with := newPeers(t, namespace)
			signet := newPod(t, namespace, "signet-0", install(t, namespace, row.values))
			if row.probes {
				row.out = append(slices.Clone(row.out), opening{tcp: everyPort, who: with.pods()})
			}
			policy := policies(t)
			assert.Empty(t, differences(policy, signet, with, true, row.in))
			assert.Empty(t, differences(policy, signet, with, false, row.out))

			// Others in the namespace are left alone.
			all := []opening{{tcp: everyPort, udp: everyPort, sctp: everyPort}}
			bystander := with["bystander"]
			delete(with, "bystander")
			assert.Empty(t, differences(policy, bystander, with, true, all))
			assert.Empty(t, differences(policy, bystander, with, false, all))
		})
	}
}

// install renders the chart into the namespace, applies its policies, and returns the labels of its pods.
func install(t *testing.T, namespace, text string) map[string]string {
	t.Helper()
	values, err := chart.ReadValues(filepath.Join("..", "chart", "testdata", "minimal.yaml"))
	require.NoError(t, err)
	for _, more := range []string{"config: {namespace: " + namespace + "}", text} {
		var with map[string]any
		require.NoError(t, yaml.Unmarshal([]byte(more), &with))
		values = util.CoalesceTables(with, values)
	}
	objects, err := chart.Render(namespace, values)
	require.NoError(t, err)
	var labels map[string]string
	for _, object := range objects {
		switch object.GetKind() {
		case "NetworkPolicy":
			var policy networkingv1.NetworkPolicy
			require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, &policy, true))
			require.NoError(t, plane.Client().Create(t.Context(), &policy))
		case "StatefulSet":
			var set appsv1.StatefulSet
			require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &set))
			labels = maps.Clone(set.Spec.Template.Labels)
		}
	}
	require.NotEmpty(t, labels)
	return labels
}
