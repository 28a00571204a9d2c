package remote

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

// TestOIDCIssuer: tokens of another cluster's issuer are verified by the keys that it publishes, and mapped to identities.
func TestOIDCIssuer(t *testing.T) {
	c := dial(t, federated, federatedRoot)
	shop := "shop-" + rand.String(5)
	const audience = "signet.example"
	good := token(t, west, shop, "vm", audience)
	id := identity(shop, "vm")
	patiently.Holds(t, func() bool {
		_, body, err := federated.Readyz(t.Context())
		return err == nil && strings.Contains(body, "[i] OIDC issuer: "+west.Admin().Host+": 1 keys, as it said ")
	}, "the issuer's keys are known")

	c.gets(t, good, "", id)
	c.gets(t, good, "wherever", id) // it is in no cluster
	about := annotationsFor(t, federatedNamespace, id)
	assert.Equal(t, shop+"/vm", about["signet.dev/caller"])
	cluster, ok := about["signet.dev/cluster"]
	assert.True(t, ok)
	assert.Empty(t, cluster)
	assert.NotContains(t, about, "signet.dev/pod")
	ours := token(t, east, shop, "here")
	c.gets(t, ours, "", identity(shop, "here")) // as ever

	parts := strings.Split(good, ".")
	other := strings.Split(token(t, west, shop, "other", audience), ".")
	for _, row := range []struct{ name, token, reason string }{
		{"for another audience", token(t, west, shop, "vm"), "token_audience"},
		{"for its own API server", token(t, west, shop, "vm", west.Admin().Host), "token_audience"},
		{"another's claims", parts[0] + "." + other[1] + "." + parts[2], "token_rejected"},
		{"another's signature", parts[0] + "." + parts[1] + "." + other[2], "token_rejected"},
		{"our own, for that audience", token(t, east, shop, "here", audience), "token_rejected"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, _ := ask(t, row.token, "", id)
			c.refused(t, a, codes.Unauthenticated, row.reason)
		})
	}
	reviews := metric(t, federated, "signet_token_reviews_total", nil)
	a, _ := ask(t, token(t, west, shop, "vm"), "", id)
	c.refused(t, a, codes.Unauthenticated, "token_audience")
	assert.InDelta(t, reviews, metric(t, federated, "signet_token_reviews_total", nil), 0, "nobody else is shown such tokens")

	a, _ = ask(t, good, "", identity(shop, "other"))
	c.refused(t, a, codes.PermissionDenied, "identity")

	// It is in no pod that anybody knows of, so that it is no node's proxy, whatever it is called and its token says.
	pod, err := west.Pod(t.Context(), home, "ztunnel-"+rand.String(5), "ztunnel", "node-1")
	require.NoError(t, err)
	proxy, err := west.Token(t.Context(), home, "ztunnel", controlplane.TokenOptions{Audiences: []string{audience}, Pod: pod})
	require.NoError(t, err)
	c.gets(t, proxy, "", identity(home, "ztunnel"))
	require.NoError(t, east.ServiceAccount(t.Context(), shop, "web"))
	_, err = east.Pod(t.Context(), shop, "web", "web", "node-1")
	require.NoError(t, err)
	a, _ = ask(t, proxy, "", identity(shop, "web"))
	a.Metadata = meshclient.ZtunnelMetadata(identity(shop, "web").String())
	c.refused(t, a, codes.PermissionDenied, "no_node_proxy")

	// The keys are known: the issuer need not be there.
	require.NoError(t, west.APIServer().Pause())
	defer func() { require.NoError(t, west.APIServer().Resume()) }()
	c.gets(t, good, "", id)
}
