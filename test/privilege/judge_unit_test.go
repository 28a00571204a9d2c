package privilege

import (
	"testing"

	"github.com/stretchr/testify/assert"
	rbacv1 "k8s.io/api/rbac/v1"
)

// TestJudge: each fault is found, and nothing else.
func TestJudge(t *testing.T) {
	everybody := []grant{{verb: "get", path: "/apis/*"}}
	pods := func(verb, namespace string) grant { return grant{verb: verb, resource: "pods", namespace: namespace} }
	listed := func(namespace string) request {
		return request{need{verb: "list", resource: "pods", namespace: namespace}, 200}
	}
	named := grant{verb: "list", resource: "secrets", name: "roots", namespace: "home"}
	for name, row := range map[string]struct {
		granted  []grant
		requests []request
		want     verdict // of its lists
	}{
		"good":               {[]grant{pods("list", "")}, []request{listed(""), {need{verb: "get", path: "/apis/x"}, 404}}, verdict{}},
		"refused":            {[]grant{pods("list", "")}, []request{listed(""), {need{verb: "get", resource: "nodes", name: "a"}, 403}}, verdict{refused: []string{"get nodes a: 403"}}},
		"refused alone":      {[]grant{pods("list", "home")}, []request{{listed("home").need, 403}}, verdict{refused: []string{"list pods in home: 403"}, unused: []grant{pods("list", "home")}}},
		"unused verb":        {[]grant{pods("list", ""), pods("watch", "")}, []request{listed("")}, verdict{unused: []grant{pods("watch", "")}}},
		"unused name":        {[]grant{named}, []request{{need{verb: "list", resource: "secrets", namespace: "home"}, 200}}, verdict{unused: []grant{named}, unexplained: []string{"list secrets in home"}}},
		"unused wide one":    {[]grant{pods("list", ""), pods("list", "home")}, []request{listed("home")}, verdict{unused: []grant{pods("list", "")}}},
		"both used":          {[]grant{pods("list", ""), pods("list", "home")}, []request{listed("home"), listed("")}, verdict{}},
		"too wide":           {[]grant{pods("list", "")}, []request{listed("home")}, verdict{tooWide: []string{"list pods: only in home"}}},
		"in two namespaces":  {[]grant{pods("list", "")}, []request{listed("a"), listed("b")}, verdict{}},
		"granted by nothing": {[]grant{pods("list", "home")}, []request{listed("home"), listed("away")}, verdict{unexplained: []string{"list pods in away"}}},
	} {
		t.Run(name, func(t *testing.T) {
			requests := make(map[request]int)
			for _, r := range row.requests {
				requests[r]++
			}
			v := judge(row.granted, everybody, requests)
			assert.Equal(t, row.want, verdict{refused: v.refused, unused: v.unused, tooWide: v.tooWide, unexplained: v.unexplained})
			assert.Equal(t, name == "good" || name == "both used" || name == "in two namespaces", v.good())
		})
	}
}

// TestNeeds: what the API server asks for beside a request is known by its answer.
func TestNeeds(t *testing.T) {
	bundle := need{verb: "patch", group: "certificates.k8s.io", resource: "clustertrustbundles", name: "istio.io:istiod-ca:root-cert"}
	create := bundle
	create.verb = "create"
	attest := need{verb: "attest", group: "certificates.k8s.io", resource: "signers", name: "istio.io/istiod-ca"}
	status := need{verb: "update", group: "certificates.k8s.io", resource: "certificatesigningrequests/status", name: "x"}
	sign := need{verb: "sign", group: "certificates.k8s.io", resource: "signers", name: registrationSigner}
	assert.Equal(t, []need{bundle, create, attest}, request{bundle, 201}.needs())
	assert.Equal(t, []need{bundle, attest}, request{bundle, 200}.needs())
	assert.Equal(t, []need{bundle}, request{bundle, 403}.needs())
	assert.Equal(t, []need{status, sign}, request{status, 200}.needs())
	assert.Equal(t, []need{status}, request{status, 409}.needs())
	assert.True(t, grant{verb: "sign", group: sign.group, resource: "signers", name: "signet.dev/*"}.allows(sign))
	assert.False(t, grant{verb: "sign", group: sign.group, resource: "signers", name: "other.dev/*"}.allows(sign))
}

// TestExpand: a rule is taken apart, and what can't be is refused.
func TestExpand(t *testing.T) {
	all, err := expand(rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"a", "b"}, Verbs: []string{"get", "list"}, ResourceNames: []string{"x", "y"}}, "home")
	assert.NoError(t, err)
	assert.Len(t, all, 8)
	for _, rule := range []rbacv1.PolicyRule{
		{APIGroups: []string{"*"}, Resources: []string{"a"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"*"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"pods/*"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"a"}, Verbs: []string{"*"}},
	} {
		_, err := expand(rule, "")
		assert.Error(t, err)
	}
}
