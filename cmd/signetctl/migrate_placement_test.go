package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// TestMigrateSelectors: a selector for istio-csr's pods selects Signet's, another one stays, and what can't be so is to do.
func TestMigrateSelectors(t *testing.T) {
	alone(t)
	const labels = "podLabels: {team: mesh}\ncommonLabels: {tier: ca}\n"
	for name, row := range map[string]struct {
		selector string
		want     string // empty where it stays
		todo     string
	}{
		"by app":                        {selector: "{matchLabels: {app: cert-manager-istio-csr}}", want: "{matchLabels: {app.kubernetes.io/name: signet}}"},
		"by all":                        {selector: "{matchLabels: {app: cert-manager-istio-csr, app.kubernetes.io/name: cert-manager-istio-csr, app.kubernetes.io/instance: x, helm.sh/chart: z}}", want: "{matchLabels: {app.kubernetes.io/name: signet}}"},
		"with labels that go with it":   {selector: "{matchLabels: {app: cert-manager-istio-csr, team: mesh, tier: ca}}", want: "{matchLabels: {app.kubernetes.io/name: signet, team: mesh, tier: ca}}"},
		"by expression":                 {selector: "{matchExpressions: [{key: app, operator: In, values: [cert-manager-istio-csr]}]}", want: "{matchExpressions: [{key: app.kubernetes.io/name, operator: In, values: [signet]}]}"},
		"by expression of the name":     {selector: "{matchExpressions: [{key: app.kubernetes.io/name, operator: In, values: [a, cert-manager-istio-csr]}]}", want: "{matchExpressions: [{key: app.kubernetes.io/name, operator: In, values: [a, signet]}]}"},
		"by both":                       {selector: "{matchLabels: {app: cert-manager-istio-csr}, matchExpressions: [{key: app, operator: Exists}, {key: team, operator: Exists}]}", want: "{matchLabels: {app.kubernetes.io/name: signet}, matchExpressions: [{key: team, operator: Exists}]}"},
		"an expression and its release": {selector: "{matchLabels: {app.kubernetes.io/instance: x}, matchExpressions: [{key: app, operator: In, values: [cert-manager-istio-csr]}]}", want: "{matchExpressions: [{key: app.kubernetes.io/name, operator: In, values: [signet]}]}"},
		"all but it":                    {selector: "{matchExpressions: [{key: app, operator: NotIn, values: [cert-manager-istio-csr]}]}", want: "{matchExpressions: [{key: app.kubernetes.io/name, operator: NotIn, values: [signet]}]}"},
		"everybody":                     {selector: "{}"},
		"nobody":                        {selector: "null"},
		"labels that go with it":        {selector: "{matchLabels: {team: mesh}, matchExpressions: [{key: tier, operator: In, values: [ca]}]}"},
		"another":                       {selector: "{matchLabels: {app: istiod}}"},
		"another by expression":         {selector: "{matchExpressions: [{key: app, operator: In, values: [istiod]}, {key: app.kubernetes.io/instance, operator: In, values: [istio]}]}"},
		"all of Helm":                   {selector: "{matchLabels: {app.kubernetes.io/managed-by: Helm}}"},
		"it or another":                 {selector: "{matchExpressions: [{key: app, operator: In, values: [cert-manager-istio-csr, istiod]}]}", todo: "it is for istio-csr's pods, and not for Signet's"},
		"all that have one":             {selector: "{matchExpressions: [{key: app, operator: Exists}]}", todo: "it is for istio-csr's pods, and not for Signet's"},
		"all but it and another":        {selector: "{matchExpressions: [{key: app, operator: NotIn, values: [cert-manager-istio-csr, istiod]}]}", todo: "it isn't for istio-csr's pods, and would be for Signet's"},
		"by its release":                {selector: "{matchLabels: {app.kubernetes.io/instance: istio-csr}}", todo: "whether it is for istio-csr's pods can't be told"},
		"by its chart":                  {selector: "{matchExpressions: [{key: helm.sh/chart, operator: Exists}, {key: team, operator: Exists}]}", todo: "whether it is for istio-csr's pods can't be told"},
	} {
		t.Run(name, func(t *testing.T) {
			want := row.want
			if want == "" {
				want = row.selector
			}
			terms := "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: a, namespaceSelector: {}, labelSelector: " + row.selector + "}]}}\n"
			constraints := "topologySpreadConstraints: [{maxSkew: 1, labelSelector: " + row.selector + "}]\n"
			got, said := migrateText(t, labels+terms+constraints)
			assert.YAMLEq(t, strings.ReplaceAll(terms, row.selector, want), yamlOf(t, "affinity", got))
			assert.YAMLEq(t, strings.ReplaceAll(constraints, row.selector, want), yamlOf(t, "topologySpreadConstraints", got))
			const at = "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector"
			todos, changed, _ := strings.Cut(said, "\nWHAT CHANGES:\n")
			if row.todo != "" {
				assert.Contains(t, todos, "  "+at+" -> affinity\n      "+row.todo)
				assert.Contains(t, todos, "  topologySpreadConstraints[0].labelSelector -> topologySpreadConstraints\n      "+row.todo)
			} else {
				assert.NotContains(t, todos, "labelSelector")
			}
			assert.Equal(t, row.want != "", strings.Contains(changed, "  affinity: {podAntiAffinity} -> affinity\n      label selectors for istio-csr's pods select Signet's"))
			assert.Equal(t, row.want != "", strings.Contains(changed, "  topologySpreadConstraints: 1 of them -> topologySpreadConstraints\n"))
		})
	}
}

// TestMigrateKeepsApart: an affinity that takes the place of the chart's own without keeping replicas apart is told of.
func TestMigrateKeepsApart(t *testing.T) {
	alone(t)
	const required = "requiredDuringSchedulingIgnoredDuringExecution"
	for affinity, told := range map[string]bool{
		"{podAntiAffinity: {" + required + ": [{labelSelector: {matchLabels: {app: istiod}}}]}}": true,
		"{podAntiAffinity: {}}": true,
		"{podAffinity: {" + required + ": [{labelSelector: {matchLabels: {app: cert-manager-istio-csr}}}]}, podAntiAffinity: {}}":                                  true,
		"{podAffinity: {" + required + ": [{labelSelector: {matchLabels: {app: istiod}}}]}}":                                                                       false,
		"{podAntiAffinity: {" + required + ": [{labelSelector: {matchLabels: {app: istiod}}}, {labelSelector: {matchLabels: {app: cert-manager-istio-csr}}}]}}":    false,
		"{podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{podAffinityTerm: {labelSelector: {matchLabels: {app: cert-manager-istio-csr}}}}]}}": false,
		"{podAntiAffinity: {" + required + ": [{labelSelector: null}]}}":                                                                                           true,
	} {
		_, said := migrateText(t, "affinity: "+affinity)
		todos, _, _ := strings.Cut(said, "\nWHAT CHANGES:\n")
		assert.Equal(t, told, strings.Contains(todos, "  affinity.podAntiAffinity -> affinity\n"), affinity)
	}
}

// TestMigrateNamespacesOfTerms: a term for Signet's pods looks for them in Signet's namespace, one for others where it did.
func TestMigrateNamespacesOfTerms(t *testing.T) {
	alone(t)
	term := func(app, namespaces string) string {
		return "affinity: {podAntiAffinity: {required: [{" + namespaces + ", labelSelector: {matchLabels: {" + app + "}}}]}}"
	}
	const own, ours, other = "app: cert-manager-istio-csr", "app.kubernetes.io/name: signet", "app: istiod"
	for from, want := range map[string]string{
		term(own, "namespaces: [a, cert-manager, b]"):            term(ours, "namespaces: [a, istio-system, b]"),
		term(own, "namespaces: [istio-system, cert-manager]"):    term(ours, "namespaces: [istio-system]"),
		term(own, "namespaces: [a]"):                             term(ours, "namespaces: [a]"),
		term(other, "namespaces: [cert-manager]"):                term(other, "namespaces: [cert-manager]"),
		term(other, "namespaceSelector: {matchLabels: {a: b}}"):  term(other, "namespaceSelector: {matchLabels: {a: b}}"),
		term(own, "namespaceSelector: {matchLabels: {"+own+"}}"): term(ours, "namespaceSelector: {matchLabels: {"+own+"}}"),
	} {
		got, said := migrateText(t, from)
		assert.YAMLEq(t, want, yamlOf(t, "affinity", got))
		assert.Equal(t, strings.Contains(from, "namespaceSelector: {matchLabels: {app:"), strings.Contains(said, "required[0].namespaceSelector -> affinity\n      carried over as it is; see that it selects istio-system"))
	}
	in := term(own, "namespaces: [cert-manager], namespaceSelector: {matchLabels: {a: b}}")
	got, said := migrateText(t, in, "-n", "istio-system")
	assert.NotContains(t, said, "namespaceSelector")
	assert.YAMLEq(t, term(ours, "namespaces: [cert-manager], namespaceSelector: {matchLabels: {a: b}}"), yamlOf(t, "affinity", got), "istio-csr isn't there")
}

// TestMigrateDeploymentsSelectors: of a Deployment the labels of its pods are known, whatever they are.
func TestMigrateDeploymentsSelectors(t *testing.T) {
	alone(t)
	for selector, want := range map[string]string{
		"{matchLabels: {app: mesh-ca}}":                                     "{matchLabels: {app.kubernetes.io/name: signet}}",
		"{matchLabels: {app.kubernetes.io/instance: west}}":                 "{matchLabels: {app.kubernetes.io/name: signet}}",
		"{matchLabels: {run: csr}}":                                         "{matchLabels: {run: csr}}",
		"{matchLabels: {app: cert-manager-istio-csr}}":                      "{matchLabels: {app: cert-manager-istio-csr}}",
		"{matchExpressions: [{key: app, operator: In, values: [mesh-ca]}]}": "{matchExpressions: [{key: app.kubernetes.io/name, operator: In, values: [signet]}]}",
	} {
		text := strings.Replace(csrDeployment("image: x"), "{template: {spec: {", "{template: {metadata: {labels: {app: mesh-ca, run: csr, app.kubernetes.io/instance: west}}, "+
			"spec: {topologySpreadConstraints: [{maxSkew: 1, topologyKey: a, whenUnsatisfiable: DoNotSchedule, labelSelector: "+selector+"}], ", 1)
		got, said := migrateText(t, text)
		assert.YAMLEq(t, "topologySpreadConstraints: [{maxSkew: 1, topologyKey: a, whenUnsatisfiable: DoNotSchedule, labelSelector: "+want+"}]", yamlOf(t, "topologySpreadConstraints", got))
		assert.NotContains(t, said, "[0].labelSelector")
	}
}

// yamlOf is one of several values.
func yamlOf(t *testing.T, name string, values map[string]any) string {
	t.Helper()
	text, err := yaml.Marshal(map[string]any{name: values[name]})
	require.NoError(t, err)
	return string(text)
}
