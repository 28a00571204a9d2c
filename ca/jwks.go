package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// Where an API server says who issues the tokens of service accounts, and by which keys they are verified.
const (
	discoveryPath = "/.well-known/openid-configuration"
	jwksPath      = "/openid/v1/jwks"
)

// KeysPaths are the paths at the API server that [Keys] must be allowed to get.
func KeysPaths() []string { return []string{discoveryPath, jwksPath} }

// The times of the API server's [Keys]. A key that it takes back is used for one keysEvery, and keysTimeout, at most, while
// the API server can be asked.
const (
	keysEvery   = time.Minute      // between two looks
	keysGap     = 5 * time.Second  // least time between two looks, whatever asks for one
	keysTimeout = 10 * time.Second // for one look
)

// Keys are those by which tokens of one issuer are verified, as it publishes them: the API server, see [NewKeys], or one
// of ca.oidc. Safe for concurrent use.
type Keys struct {
	fetch   func(context.Context) (*keySet, error)
	log     *slog.Logger
	every   time.Duration // between two looks
	gap     time.Duration // least time between two looks, whatever asks for one
	current atomic.Pointer[keySet]
	wanted  chan struct{} // holds one when a token names a key that isn't known
	metrics *keysMetrics
}

// keySet is what the issuer said at one moment. It is never changed.
type keySet struct {
	issuer string
	keys   map[string]signingKey // by key ID
	asked  time.Time             // the issuer still had these keys then
}

// signingKey verifies signatures of one algorithm, which its kind of key decides, never a token.
type signingKey struct {
	algorithm jose.SignatureAlgorithm
	public    any // *rsa.PublicKey, *ecdsa.PublicKey or, of ca.oidc only, ed25519.PublicKey
}

// NewKeys makes Keys of the API server that config leads to: what it says of itself as an OIDC issuer. Both documents are
// asked of it with our own credentials; the jwks_uri in the first, which may lead anywhere, isn't followed. There are no
// keys until [Keys.Start] has asked for them.
func NewKeys(config *rest.Config, log *slog.Logger, reg prometheus.Registerer) (*Keys, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make client for the API server's keys: %w", err)
	}
	direct := *client
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // no other server has a say
	config = rest.CopyConfig(config)
	config.GroupVersion = &schema.GroupVersion{}
	config.NegotiatedSerializer = serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
	server, err := rest.UnversionedRESTClientForConfigAndClient(config, &direct)
	if err != nil {
		return nil, fmt.Errorf("make client for the API server's keys: %w", err)
	}
	return newKeys(func(ctx context.Context) (*keySet, error) {
		asked := time.Now()
		discovery, err := server.Get().AbsPath(discoveryPath).MaxRetries(0).DoRaw(ctx)
		if err != nil {
			return nil, fmt.Errorf("get %s: %w", discoveryPath, err)
		}
		jwks, err := server.Get().AbsPath(jwksPath).MaxRetries(0).DoRaw(ctx)
		if err != nil {
			return nil, fmt.Errorf("get %s: %w", jwksPath, err)
		}
		return parseKeys(discovery, jwks, asked)
	}, log, reg), nil
}

func newKeys(fetch func(context.Context) (*keySet, error), log *slog.Logger, reg prometheus.Registerer) *Keys {
	k := &Keys{fetch: fetch, log: log, every: keysEvery, gap: keysGap, wanted: make(chan struct{}, 1)}
	k.metrics = newKeysMetrics(reg, k)
	return k
}

// NeedLeaderElection says that every replica has them.
func (k *Keys) NeedLeaderElection() bool { return false }

// Start asks for the keys until ctx ends: at once, then from time to time, after an error and when a token names an unknown
// key, but not more often than the gap allows. Until an answer comes, those of the last one stay.
func (k *Keys) Start(ctx context.Context) error {
	for {
		err := k.refresh(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !sleep(ctx, k.gap, nil) {
			return nil
		}
		if err == nil && !sleep(ctx, k.every-k.gap, k.wanted) {
			return nil
		}
	}
}

// sleep returns after d, or when early has something; false when ctx has ended.
func sleep(ctx context.Context, d time.Duration, early <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-early:
	case <-ctx.Done():
		return false
	}
	return true
}

// refresh asks once.
func (k *Keys) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	found, err := k.fetch(ctx)
	if err != nil {
		k.metrics.refreshes.WithLabelValues("error").Inc()
		k.log.Warn("the keys of tokens can't be had; those that were known last are used until they are too old", "err", err)
		return err
	}
	k.metrics.refreshes.WithLabelValues("ok").Inc()
	if last := k.current.Load(); last == nil || last.issuer != found.issuer || !sameKeys(last.keys, found.keys) {
		k.log.Info("keys of tokens", "issuer", found.issuer, "keys", len(found.keys))
	}
	k.current.Store(found)
	return nil
}

func sameKeys(a, b map[string]signingKey) bool {
	if len(a) != len(b) {
		return false
	}
	for id := range a {
		if _, ok := b[id]; !ok {
			return false
		}
	}
	return true
}

// want asks for the keys soon. It doesn't wait.
func (k *Keys) want() {
	select {
	case k.wanted <- struct{}{}:
	default: // somebody has asked already
	}
}

// parseKeys reads the documents of an OIDC issuer. Keys that can't be used are left out, and those whose ID isn't theirs
// alone; where none is left, that is an error.
func parseKeys(discovery, jwks []byte, asked time.Time) (*keySet, error) {
	var is struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(discovery, &is); err != nil {
		return nil, fmt.Errorf("parse the OIDC discovery document: %w", err)
	}
	if is.Issuer == "" {
		return nil, errors.New("parse the OIDC discovery document: it names no issuer")
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, fmt.Errorf("parse the JWKS: %w", err)
	}
	found := &keySet{issuer: is.Issuer, keys: make(map[string]signingKey), asked: asked}
	seen := make(map[string]bool)
	for _, key := range set.Keys {
		if seen[key.KeyID] {
			delete(found.keys, key.KeyID)
			continue
		}
		seen[key.KeyID] = true
		algorithm := algorithmOf(key.Key)
		if key.KeyID == "" || algorithm == "" || key.Algorithm != "" && key.Algorithm != string(algorithm) || key.Use != "" && key.Use != "sig" {
			continue
		}
		found.keys[key.KeyID] = signingKey{algorithm, key.Key}
	}
	if len(found.keys) == 0 {
		return nil, fmt.Errorf("parse the JWKS: none of its %d keys can be used", len(set.Keys))
	}
	return found, nil
}

// algorithmOf is the one algorithm with which an API server signs by a kind of key; "" for those that it doesn't have.
func algorithmOf(public any) jose.SignatureAlgorithm {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() >= 2048 {
			return jose.RS256
		}
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return jose.ES256
		case elliptic.P384():
			return jose.ES384
		case elliptic.P521():
			return jose.ES512
		}
	}
	return ""
}
