package ca

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseKeys(t *testing.T) {
	rsa, ec := rsaKey(t, 2048).Public(), ecKey(t, elliptic.P256()).Public()
	set := func(keys ...jose.JSONWebKey) string { return encoded(t, jose.JSONWebKeySet{Keys: keys}) }
	key := func(id string, public crypto.PublicKey, algorithm, use string) jose.JSONWebKey {
		return jose.JSONWebKey{KeyID: id, Key: public, Algorithm: algorithm, Use: use}
	}
	const discovery = `{"issuer":"https://issuer","jwks_uri":"https://elsewhere/jwks"}`
	for _, row := range []struct {
		name, discovery, jwks string
		want                  []string // key IDs and algorithms
		problem               string
	}{
		{"as API servers have it", discovery, set(key("a", rsa, "RS256", "sig"), key("b", ec, "ES256", "sig")), []string{"a RS256", "b ES256"}, ""},
		{"without algorithm and use", discovery, set(key("a", ec, "", "")), []string{"a ES256"}, ""},
		{"one of several that can't be used", discovery, set(key("a", ec, "", ""), key("b", ec, "ES384", ""), key("c", ec, "", "enc"), key("", ec, "", "")), []string{"a ES256"}, ""},
		{"a secret", discovery, `{"keys":[{"kty":"oct","kid":"b","k":"c2VjcmV0"},` + encoded(t, key("a", ec, "", "")) + `]}`, []string{"a ES256"}, ""},
		{"one ID for two", discovery, set(key("a", rsa, "", ""), key("b", ec, "", ""), key("a", ec, "", ""), key("a", ec, "", "")), []string{"b ES256"}, ""},
		{"a short RSA key", discovery, set(key("a", rsaKey(t, 1024).Public(), "", "")), nil, "none of its 1 keys can be used"},
		{"another curve", discovery, `{"keys":[{"kty":"EC","kid":"a","crv":"P-224","x":"AA","y":"AA"}]}`, nil, "parse the JWKS"},
		{"none", discovery, `{}`, nil, "none of its 0 keys can be used"},
		{"no JSON", discovery, `x`, nil, "parse the JWKS"},
		{"no issuer", `{}`, set(key("a", ec, "", "")), nil, "it names no issuer"},
		{"no discovery document", `x`, set(key("a", ec, "", "")), nil, "parse the OIDC discovery document"},
	} {
		t.Run(row.name, func(t *testing.T) {
			found, err := parseKeys([]byte(row.discovery), []byte(row.jwks), localNow)
			if row.problem != "" {
				require.ErrorContains(t, err, row.problem)
				assert.Nil(t, found)
				return
			}
			require.NoError(t, err)
			var got []string
			for id, key := range found.keys {
				got = append(got, id+" "+string(key.algorithm))
			}
			slices.Sort(got)
			assert.Equal(t, row.want, got)
			assert.Equal(t, "https://issuer", found.issuer)
			assert.Equal(t, localNow, found.asked)
		})
	}
}

// The keys are looked at each minute, soon when a token names one that isn't known, and not more often than every five
// seconds, however many tokens do.
func TestKeysStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex // guards the following
		var times []time.Duration
		var failing error
		k := newKeys(func(context.Context) (*keySet, error) {
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Since(began))
			return &keySet{issuer: tokenIssuer, asked: time.Now()}, failing
		}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		fail := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			failing = err
		}
		looks := func() []time.Duration { // since the last call
			mu.Lock()
			defer mu.Unlock()
			defer func() { times = nil }()
			return times
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Start(ctx) }()
		pass := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}

		pass(0)
		assert.Equal(t, []time.Duration{0}, looks(), "at once")
		pass(2*time.Minute + time.Second)
		assert.Equal(t, []time.Duration{time.Minute, 2 * time.Minute}, looks())

		for range 1000 {
			k.want()
		}
		pass(30 * time.Second)
		assert.Equal(t, []time.Duration{2*time.Minute + 5*time.Second}, looks(), "once for all")
		k.want()
		pass(0)
		assert.Len(t, looks(), 1, "at once, since the last look is long ago")

		fail(errors.New("the API server is away"))
		last := k.current.Load()
		pass(time.Minute + 12*time.Second)
		assert.Equal(t, []time.Duration{211 * time.Second, 216 * time.Second, 221 * time.Second}, looks(), "again soon, while it fails")
		assert.Same(t, last, k.current.Load(), "the last ones stay")
		fail(nil)
		pass(10 * time.Second)
		assert.NotSame(t, last, k.current.Load())
		stop()
		assert.NoError(t, <-ended)
	})
}

// FuzzParseKeys: whatever an API server says, keys come with the one algorithm of their kind, or not at all.
func FuzzParseKeys(f *testing.F) {
	good, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{KeyID: "a", Key: ecKey(f, elliptic.P256()).Public()}}})
	require.NoError(f, err)
	f.Add([]byte(`{"issuer":"x"}`), good)
	f.Add([]byte(`{"issuer":"x"}`), []byte(`{"keys":[{"kty":"oct","kid":"a","k":"AA"}]}`))
	f.Add([]byte(`{}`), []byte(`{"keys":[null]}`))
	f.Fuzz(func(t *testing.T, discovery, jwks []byte) {
		found, err := parseKeys(discovery, jwks, localNow)
		if err != nil {
			return
		}
		require.NotEmpty(t, found.issuer)
		require.NotEmpty(t, found.keys)
		for id, key := range found.keys {
			require.NotEmpty(t, id)
			require.Equal(t, algorithmOf(key.public), key.algorithm)
			require.NotEmpty(t, key.algorithm)
		}
	})
}
