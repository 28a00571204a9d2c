package ca

import (
	"context"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/ca/clusters"
)

// reviewing is a client that answers every TokenReview with the same status.
type reviewing struct {
	client.Client
	status authenticationv1.TokenReviewStatus
	asked  func()
}

func (r reviewing) Create(_ context.Context, object client.Object, _ ...client.CreateOption) error {
	if r.asked != nil {
		r.asked()
	}
	object.(*authenticationv1.TokenReview).Status = r.status
	return nil
}

// TestR18_Clusters: which cluster judges a token.
func TestR18_Clusters(t *testing.T) {
	cfg := Config{
		TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), ClusterID: "east", ClusterAliases: []string{"east-1"},
		RemoteClusters: clusters.Config{Namespace: "signet-clusters", Allowed: []clusters.Allowed{{ID: "west", Aliases: []string{"west-1"}}, {ID: "north"}}},
		Nodes:          NodesConfig{Accounts: []string{"istio-system/ztunnel"}},
	}
	reg := prometheus.NewRegistry()
	r, err := NewRemotes(cfg, &rest.Config{Host: "https://east"}, func(clusters.Refused) {}, slog.New(slog.DiscardHandler), reg)
	require.NoError(t, err)
	local := NewReviewer(cfg, nil, reg)

	ask := func(cluster string) (*Caller, error) {
		return r.Authenticate(t.Context(), Credentials{Token: "a.e30.c", Cluster: cluster})
	}
	for _, name := range []string{"", "east", "east-1"} {
		_, err := ask(name)
		require.ErrorIs(t, err, errNotConcerned, "%q is our own", name)
		require.NoError(t, local.concerned(Credentials{Cluster: name}))
	}
	for _, name := range []string{"west", "west-1", "other"} {
		require.ErrorIs(t, local.concerned(Credentials{Cluster: name}), errNotConcerned)
	}
	_, err = ask("west")
	requireKind(t, kindReviewFailed, err) // the Secrets are not known yet
	_, err = ask("other")
	requireKind(t, kindUnknownCluster, err)

	made, err := r.connect(clusters.Connection{ID: "west", Secret: "west", Config: &rest.Config{Host: "https://west"}})
	require.NoError(t, err)
	r.current.Store(&remoteState{remotes: map[string]*remote{"west": made}})
	made.reviewer.reviews = reviewing{status: *goodStatus()}
	for _, name := range []string{"west", "west-1"} {
		caller, err := ask(name)
		require.NoError(t, err)
		assert.Equal(t, "west", caller.Cluster)
		assert.Equal(t, alice, caller.ID)
	}
	for _, name := range []string{"north", "other", "WEST", "west ", "north\x00"} {
		_, err := ask(name)
		requireKind(t, kindUnknownCluster, err)
		assert.ErrorContains(t, err, `known are ["east" "east-1" "west" "west-1"]`)
	}
	assert.NotNil(t, r.Presence("west"))
	assert.Nil(t, r.Presence("north"))
	assert.Nil(t, r.Presence("east"))
	assert.Len(t, made.reviewer.aliases, 1)
	assert.NotSame(t, local.queue, made.reviewer.queue, "nobody waits for another cluster's reviews")
	assert.LessOrEqual(t, made.reviewer.queue.maxWaiting, maxRemoteReviewsWaiting/2)

	// A cluster that goes while a token of it is under review.
	made.reviewer.reviews = reviewing{status: *goodStatus(), asked: func() { r.current.Store(&remoteState{}) }}
	_, err = r.Authenticate(t.Context(), Credentials{Token: "b.e30.c", Cluster: "west"})
	requireKind(t, kindUnknownCluster, err)
}
