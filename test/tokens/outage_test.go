package tokens

import (
	"crypto"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
)

// What is decided while the API server stands still, and while it is away: known callers are authenticated, bad tokens
// are refused, and what would have to be reviewed can't be decided.
func TestAPIServerAway(t *testing.T) {
	w := newWorld(t)
	known := map[string]string{
		"pod":     w.token(t, "web", w.pod),
		"node":    w.token(t, "web", w.node),
		"nothing": w.token(t, "web", nil),
	}
	for name, token := range known {
		require.NotNil(t, requireSame(t, token).caller, name)
	}
	awaitLocal(t, known["pod"])
	gone := w.newPod(t, "gone", "web")
	ofGone := w.token(t, "web", gone)
	w.remove(t, gone)
	w.awaitPod(t, gone.Name, "")
	foreign := opened(t, known["pod"])
	foreign.key, foreign.header = keys.foreign, map[string]any{"alg": "ES256", "kid": keyID(keys.foreign)}
	forged := opened(t, known["pod"])
	forged.key = keys.foreign
	unknown := map[string]string{
		"pod that is gone": ofGone,
		"Secret":           w.token(t, "web", w.secret),
		"unknown key":      foreign.sealed(t),
	}
	bad := map[string]string{"forged": forged.sealed(t), "for somebody else": w.token(t, "web", w.pod, "other")}

	check := func(t *testing.T) {
		before := results(t)
		for name, token := range known {
			got := decide(t, local, token)
			require.Equal(t, codes.OK, got.code, name)
			assert.Equal(t, "web", got.caller.ServiceAccount)
		}
		for name, token := range bad {
			assert.Equal(t, decision{nil, codes.Unauthenticated}, decide(t, local, token), name)
		}
		var asking sync.WaitGroup // each of them for the whole time that a review may take
		for name, token := range unknown {
			asking.Go(func() { assert.Equal(t, decision{nil, codes.Unavailable}, decide(t, local, token), name) })
		}
		asking.Wait()
		assert.Equal(t, map[string]int{accepted: before[accepted] + len(known), rejected: before[rejected] + len(bad), reviewed: before[reviewed] + len(unknown)}, results(t))
	}
	t.Run("standing still", func(t *testing.T) {
		require.NoError(t, plane.APIServer().Pause())
		defer func() { require.NoError(t, plane.APIServer().Resume()) }()
		check(t)
	})
	t.Run("stopped", func(t *testing.T) {
		require.NoError(t, plane.APIServer().Stop())
		defer func() { require.NoError(t, plane.APIServer().Start(t.Context())) }()
		check(t)
	})

	// Back again: what is new is known without a review, what isn't there is refused.
	var pod *corev1.Pod
	t.Run("back", func(t *testing.T) {
		pod = w.newPod(t, "new", "web")
		w.awaitPod(t, pod.Name, string(pod.UID))
		token := w.token(t, "web", pod)
		require.NotNil(t, requireSame(t, token).caller)
		awaitLocal(t, token)
		for name, token := range unknown {
			got := requireSame(t, token)
			assert.Equal(t, name == "Secret", got.caller != nil, name)
		}
	})
}

// awaitLocal waits until a token is accepted without a review.
func awaitLocal(t testing.TB, token string) {
	t.Helper()
	awaitTrue(t, "the token is accepted without a review", func() bool {
		before := results(t)[reviewed]
		got := decide(t, local, token)
		return got.caller != nil && results(t)[reviewed] == before
	})
}

// A key that the API server takes back is soon no more accepted, and a new one soon known.
func TestKeysChange(t *testing.T) {
	w := newWorld(t)
	by := func(key crypto.Signer) string {
		k := opened(t, w.token(t, "web", w.pod))
		k.key, k.header = key, map[string]any{"alg": algorithmOf(key), "kid": keyID(key)}
		return k.sealed(t)
	}
	old := by(keys.rsa)
	coming := by(keys.foreign)
	awaitLocal(t, old)
	require.Equal(t, decision{nil, codes.Unauthenticated}, requireSame(t, coming))

	restart := func() {
		require.NoError(t, plane.APIServer().Stop())
		require.NoError(t, plane.APIServer().Start(t.Context()))
	}
	require.NoError(t, keys.write(keys.p384, keys.p521, keys.foreign))
	restart()
	defer func() {
		require.NoError(t, keys.write(keys.p384, keys.p521, keys.rsa))
		restart()
		// Other tests count on the keys as they were.
		awaitLocal(t, by(keys.rsa))
	}()
	require.Equal(t, decision{nil, codes.Unauthenticated}, decide(t, reference, old), "the API server has taken it back")

	// The new key's token is reviewed, which has the keys looked at again.
	require.NotNil(t, requireSame(t, coming).caller)
	awaitLocal(t, coming)
	require.Equal(t, decision{nil, codes.Unauthenticated}, requireSame(t, old))
}
