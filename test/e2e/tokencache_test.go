package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

func TestTokenCache_RevokedTokenEnds(t *testing.T) {
	t.Parallel()
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	ask := caller.ask(t)
	accepted := time.Now() // before the review, so that the cache can't have run out before this and 10s
	issued(t, c, ask)

	require.NoError(t, plane.Client().Delete(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: caller.ns, Name: caller.sa}}))
	revoked := time.Now()
	_, err := create(t, c, ask)
	if time.Since(accepted) < 10*time.Second {
		assert.NoError(t, err, "an accepted token is good for the cache's time")
	}
	untilRefused(t, c, ask)
	// 20s with the defaults, by the documentation of ca.token, where the machine isn't busy.
	t.Logf("refused %s after its service account was deleted", time.Since(revoked).Round(100*time.Millisecond))
	refused(t, c, ask, codes.Unauthenticated)
}

// untilRefused asks until the token isn't accepted any more.
func untilRefused(t *testing.T, c *meshclient.Client, ask meshclient.Ask) {
	t.Helper()
	patiently.Holds(t, func() bool {
		_, err := create(t, c, ask)
		if err == nil {
			time.Sleep(200 * time.Millisecond)
			return false
		}
		require.Equal(t, codes.Unauthenticated.String(), status.Code(err).String(), "%v", err)
		return true
	}, "the token is not refused")
}

// A token isn't kept past its expiry, however long others are kept. (The API server itself accepts it
// for another minute, the tolerance that its JWT library has for clocks.)
func TestTokenCache_NotPastExpiry(t *testing.T) {
	t.Parallel()
	s := variant(t).peer(t, nil, nil) // cacheAccepted: 60s; with counts of its own
	caller := s.caller(t)
	c := s.dial(t)
	hits := func() float64 { return s.metric(t, "token_cache_hits_total", map[string]string{"entry": "accepted"}) }
	ask := caller.ask(t)
	expiry := time.Now().Add(8 * time.Second)
	ask.Token = caller.expiring(t, expiry)
	issued(t, c, ask)
	time.Sleep(time.Until(expiry))

	hitsBefore, reviewsBefore := hits(), s.metric(t, "token_reviews_total", nil)
	for range 3 {
		if _, err := create(t, c, ask); err != nil {
			require.Equal(t, codes.Unauthenticated.String(), status.Code(err).String(), "%v", err)
		}
	}
	assert.Equal(t, hitsBefore, hits(), "the token was kept past its expiry")
	assert.Greater(t, s.metric(t, "token_reviews_total", nil), reviewsBefore)
}

// While the API server stands still, all who come with one token wait for the one review that is under
// way, and go on waiting when the one who began it leaves.
func TestTokenCache_OneReviewForMany(t *testing.T) {
	s := variant(t) // cacheAccepted: 60s
	caller := s.caller(t)
	c := s.dial(t)
	ask := caller.ask(t)
	reviews := func() float64 { return s.metric(t, "token_reviews_total", nil) }
	joined := func() float64 { return s.metric(t, "token_cache_hits_total", map[string]string{"entry": "joined"}) }
	hits := func() float64 { return s.metric(t, "token_cache_hits_total", map[string]string{"entry": "accepted"}) }
	issued(t, c, s.caller(t).ask(t)) // the connections are there
	reviewsBefore, joinedBefore, hitsBefore := reviews(), joined(), hits()

	require.NoError(t, plane.APIServer().Pause())
	resume := func() { assert.NoError(t, plane.APIServer().Resume()) }
	defer func() { resume() }()
	leaving, leave := context.WithCancel(t.Context())
	defer leave()
	first := later(leaving, c, ask)
	patiently.Holds(t, func() bool {
		return s.metric(t, "queue_slots_held", map[string]string{"queue": "review"}) == 1
	}, "no review is under way")
	const many = 30
	var others []<-chan outcome
	for range many {
		others = append(others, later(t.Context(), c, ask))
	}
	patiently.Holds(t, func() bool { return joined() == joinedBefore+many }, "not all wait for the same review")
	leave()
	assert.Equal(t, codes.Canceled, status.Code(await(t, first).err))
	resume()
	resume = func() {}

	for _, done := range others {
		require.NoError(t, await(t, done).err)
	}
	assert.Equal(t, reviewsBefore+1, reviews())
	for range 5 {
		issued(t, c, ask)
	}
	assert.Equal(t, reviewsBefore+1, reviews(), "an accepted token is not reviewed again")
	assert.Equal(t, hitsBefore+5, hits())
	assert.Len(t, s.requestsFor(t, ask.CSR), 1)
}

// The same, all at once and with an API server that answers.
func TestTokenCache_Flood(t *testing.T) {
	s := variant(t) // cacheAccepted: 60s
	caller := s.caller(t)
	before := s.metric(t, "token_reviews_total", nil)
	ask := caller.ask(t)
	var flood []<-chan outcome
	for range 4 {
		c := s.dial(t)
		for range 16 {
			flood = append(flood, later(t.Context(), c, ask))
		}
	}
	for _, done := range flood {
		require.NoError(t, await(t, done).err)
	}
	assert.Equal(t, before+1, s.metric(t, "token_reviews_total", nil))
}

// A refused token isn't reviewed again for a second either.
func TestTokenCache_Rejected(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	ask := caller.ask(t)
	ask.Token = resigned(t, caller.token, newAuthority("unused", nil).key, nil)
	counted := func(name string, labels map[string]string) float64 { return s.metric(t, name, labels) }
	rejected := map[string]string{"entry": "rejected"}
	patiently.Holds(t, func() bool {
		before := counted("token_cache_hits_total", rejected)
		for range 3 {
			refused(t, c, ask, codes.Unauthenticated)
		}
		return counted("token_cache_hits_total", rejected) > before // unless a busy machine took seconds
	}, "a rejected token is reviewed each time")
}
