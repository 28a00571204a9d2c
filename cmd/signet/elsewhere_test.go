package main

import (
	"strings"
	"testing"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/ca"
)

// TestKeepElsewhere: a request of another replica tells which cluster its caller is in, or that it is in none.
func TestKeepElsewhere(t *testing.T) {
	for _, cluster := range []string{"west", ""} {
		r := newRecorder(t)
		request, leaf := r.request(t, func(cr *cmapi.CertificateRequest) { cr.Annotations[ca.ClusterAnnotation] = cluster })
		require.NoError(t, r.observed.Keep(t.Context(), request))
		found := r.record(t, leaf)
		require.NotNil(t, found)
		assert.Equal(t, cluster, found.Cluster)
	}
}

const withElsewhere = minimal + `
clusterID: east
ca:
  clusterAliases: [east-1]
  remoteClusters:
    namespace: signet-clusters
    allowed: [{id: west, servers: ["https://west:6443"], aliases: [west-1]}]
  oidc:
    - issuer: https://issuer.example.com
      audiences: [istio-ca]
      match: {sub: "system:serviceaccount:{ns}:{sa}"}
      namespace: "{ns}"
      serviceAccount: "{sa}"
`

func TestParseConfigElsewhere(t *testing.T) {
	cfg, err := ParseConfig([]byte(withElsewhere))
	require.NoError(t, err)
	assert.True(t, cfg.CA.RemoteClusters.Enabled())
	assert.Contains(t, rights(cfg), right{resource: "secrets", namespace: "signet-clusters", verbs: []string{"list", "watch"}})
	for _, row := range []struct{ from, to, want string }{
		{"id: west", "id: east", `ca.remoteClusters.allowed[0].id: "east" is a name of our own cluster already`},
		{"[west-1]", "[east-1]", `ca.remoteClusters.allowed[0].aliases[0]: "east-1" is a name of our own cluster already`},
		{"namespace: signet-clusters", "allowExec: true", "ca.remoteClusters.namespace: it is not set"},
		{"{ns}:{sa}", "{ns}-{sa}", "ca.oidc[0]: match[sub]: what follows {ns} must not be"},
		{"https://issuer", "http://issuer", "ca.oidc[0].issuer: "},
		{"[istio-ca]", "[]", "ca.oidc[0].audiences: it is empty"},
		{"aliases: [west-1]", "alias: west-1", "unknown field"},
	} {
		_, err := ParseConfig([]byte(replaced(t, withElsewhere, row.from, row.to)))
		assert.ErrorContains(t, err, row.want)
	}
}

func replaced(t *testing.T, text, from, to string) string {
	t.Helper()
	require.Contains(t, text, from)
	return strings.Replace(text, from, to, 1)
}
