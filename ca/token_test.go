package ca

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/signet-ca/signet/setting"
)

func newTestReviewer(cfg Config) *Reviewer {
	cfg.TrustDomain = spiffeid.RequireTrustDomainFromString("cluster.local")
	return NewReviewer(cfg, nil, prometheus.NewRegistry())
}

// goodStatus is the review of a pod's token.
func goodStatus() *authenticationv1.TokenReviewStatus {
	return &authenticationv1.TokenReviewStatus{
		Authenticated: true,
		Audiences:     []string{"istio-ca"},
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:foo:alice",
			UID:      "sa-uid",
			Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:foo", "system:authenticated"},
			Extra: map[string]authenticationv1.ExtraValue{
				"authentication.kubernetes.io/pod-name":      {"alice-1"},
				"authentication.kubernetes.io/pod-uid":       {"pod-uid"},
				"authentication.kubernetes.io/node-name":     {"node-1"},
				"authentication.kubernetes.io/node-uid":      {"node-uid"},
				"authentication.kubernetes.io/credential-id": {"JTI=1"},
			},
		},
	}
}

func TestR16_R17_Judge(t *testing.T) {
	whole := Caller{
		ID: alice, Namespace: "foo", ServiceAccount: "alice", ServiceAccountUID: "sa-uid",
		PodName: "alice-1", PodUID: "pod-uid", NodeName: "node-1", CredentialID: "JTI=1", Cluster: "Kubernetes",
	}
	for _, row := range []struct {
		name   string
		change func(s *authenticationv1.TokenReviewStatus)
		caller func(c *Caller) // nil where refused
		want   kind
	}{
		{"a pod's", func(*authenticationv1.TokenReviewStatus) {}, func(*Caller) {}, kind{}},
		{"one audience of several", func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"other", "istio-ca"} }, func(*Caller) {}, kind{}},
		{"bound to no pod (R21)", func(s *authenticationv1.TokenReviewStatus) { s.User.Extra = nil },
			func(c *Caller) { c.PodName, c.PodUID, c.NodeName, c.CredentialID = "", "", "", "" }, kind{}},
		{"an extra with two values says nothing", func(s *authenticationv1.TokenReviewStatus) { s.User.Extra[extraPodUID] = []string{"a", "b"} },
			func(c *Caller) { c.PodUID = "" }, kind{}},
		{"account with dots", func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:foo:a.b-c" },
			func(c *Caller) {
				c.ServiceAccount, c.ID = "a.b-c", spiffeid.RequireFromString("spiffe://cluster.local/ns/foo/sa/a.b-c")
			}, kind{}},

		{"not authenticated", func(s *authenticationv1.TokenReviewStatus) { s.Authenticated, s.Error = false, "token expired" }, nil, kindTokenRejected},
		{"nothing", func(s *authenticationv1.TokenReviewStatus) { *s = authenticationv1.TokenReviewStatus{} }, nil, kindTokenRejected},
		{"another audience", func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"https://kubernetes.default.svc"} }, nil, kindTokenAudience},
		{"no audience", func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil }, nil, kindTokenAudience},
		{"a person", func(s *authenticationv1.TokenReviewStatus) {
			s.User.Username, s.User.Groups = "jane", []string{"system:authenticated"}
		}, nil, kindNotServiceAcct},
		{"without the group", func(s *authenticationv1.TokenReviewStatus) { s.User.Groups = s.User.Groups[1:] }, nil, kindNotServiceAcct},
		{"a person in the group", func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "jane" }, nil, kindNotServiceAcct},
		{"a node", func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:node:node-1" }, nil, kindNotServiceAcct},
		{"other first part", func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "x:serviceaccount:foo:alice" }, nil, kindNotServiceAcct},
		{"five parts", func(s *authenticationv1.TokenReviewStatus) { s.User.Username += ":x" }, nil, kindNotServiceAcct},
		{"no namespace", func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount::alice" }, nil, kindNotServiceAcct},
		{"no account", func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:foo:" }, nil, kindNotServiceAcct},
		{"account that makes no SPIFFE ID", func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:foo:a/b" }, nil, kindNotServiceAcct},
		{"account of dots", func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:foo:.." }, nil, kindNotServiceAcct},
	} {
		t.Run(row.name, func(t *testing.T) {
			status := goodStatus()
			row.change(status)
			caller, err := newTestReviewer(Config{}).judge(status)
			if row.caller == nil {
				requireKind(t, row.want, err)
				assert.Nil(t, caller)
				return
			}
			require.NoError(t, err)
			want := whole
			row.caller(&want)
			assert.Equal(t, &want, caller)
		})
	}
}

func TestR16_JudgeConfiguredAudiences(t *testing.T) {
	r := newTestReviewer(Config{ClusterID: "east", Token: TokenConfig{Audiences: []string{"mesh", "istio-ca"}}})
	for audience, good := range map[string]bool{"mesh": true, "istio-ca": true, "": false, "Mesh": false} {
		status := goodStatus()
		status.Audiences = []string{audience}
		caller, err := r.judge(status)
		if good {
			require.NoError(t, err)
			assert.Equal(t, "east", caller.Cluster)
		} else {
			requireKind(t, kindTokenAudience, err)
		}
	}
}

func TestR18_UnknownCluster(t *testing.T) {
	r := newTestReviewer(Config{ClusterID: "east", ClusterAliases: []string{"east-1"}})
	known := &Caller{ID: alice}
	r.accepted.Add(r.key("a.b.c"), known, time.Minute)
	for cluster, good := range map[string]bool{"": true, "east": true, "east-1": true, "west": false, "Kubernetes": false, "EAST": false} {
		caller, err := r.Authenticate(t.Context(), Credentials{Token: "a.b.c", Cluster: cluster})
		if good {
			require.NoError(t, err, cluster)
			assert.Same(t, known, caller)
		} else {
			requireKind(t, kindUnknownCluster, err)
		}
	}
}

func TestRejectedTokensAreRemembered(t *testing.T) {
	r := newTestReviewer(Config{})
	want := kindTokenRejected.because("expired")
	r.rejected.Add(r.key("a.b.c"), error(want), time.Minute)
	_, err := r.Authenticate(t.Context(), Credentials{Token: "a.b.c"})
	assert.Same(t, want, err)
	assert.NotEqual(t, r.key("a.b.c"), r.key("a.b.d"))
	other := newTestReviewer(Config{Token: TokenConfig{Audiences: []string{"mesh"}}})
	assert.NotEqual(t, r.key("a.b.c"), other.key("a.b.c"), "an answer is for its audiences")
}

// TestAnswersAreKept: for as long as the configuration says a token isn't reviewed again, and then it is.
func TestAnswersAreKept(t *testing.T) {
	for name, row := range map[string]struct {
		status *authenticationv1.TokenReviewStatus
		keep   time.Duration
	}{
		"accepted": {goodStatus(), 7 * time.Second},
		"rejected": {&authenticationv1.TokenReviewStatus{}, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				r := NewReviewer(Config{
					TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"),
					Token:       TokenConfig{CacheAccepted: setting.DurationOf(7 * time.Second), CacheRejected: setting.DurationOf(3 * time.Second)},
				}, reviewing{status: *row.status, asked: func() { asked++ }}, prometheus.NewRegistry())
				for reviews := 1; reviews <= 3; reviews++ {
					for range 4 { // being asked doesn't make it stay longer
						_, err := r.Authenticate(t.Context(), Credentials{Token: "a.e30.c"})
						assert.Equal(t, row.status.Authenticated, err == nil, "%v", err)
						assert.Equal(t, reviews, asked)
						time.Sleep(row.keep / 3)
					}
				}
			})
		})
	}
}

func TestTokenConfigDefaults(t *testing.T) {
	c := TokenConfig{}.withDefaults()
	assert.Equal(t, []string{"istio-ca"}, c.Audiences)
	assert.Equal(t, 10*time.Second, c.CacheAccepted.Or(0))
	assert.Equal(t, time.Second, c.CacheRejected.Or(0))
	assert.Equal(t, 5*time.Second, c.ReviewTimeout.Or(0))
	assert.Equal(t, []int{20_000, 32, 16}, []int{c.CacheEntries, c.Reviews, c.ReviewsPerAddress})
	set := TokenConfig{Audiences: []string{"a"}, CacheAccepted: setting.DurationOf(time.Second), CacheEntries: 5}.withDefaults()
	assert.Equal(t, []string{"a"}, set.Audiences)
	assert.Equal(t, time.Second, set.CacheAccepted.Or(0))
	assert.Equal(t, 5, set.CacheEntries)
}
