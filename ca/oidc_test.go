package ca

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/signet-ca/signet/setting"
)

const pipelines = "https://pipelines.example.com"

// newTestOIDC is OIDC with one issuer, whose keys are given.
func newTestOIDC(t testing.TB, keys map[string]signingKey, more ...OIDCConfig) *OIDC {
	t.Helper()
	first := OIDCConfig{Issuer: pipelines, Audiences: []string{"signet"}, Match: map[string]string{"repository": "acme/{repo}", "ref": "refs/heads/main"}, Namespace: "ci", ServiceAccount: "{repo}"}
	cfg := Config{TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), OIDC: append([]OIDCConfig{first}, more...)}
	p := setting.NewProblems()
	for n, c := range cfg.OIDC {
		c.validate(p, cfg.OIDC[:n])
	}
	require.NoError(t, p.Err())
	o, err := NewOIDC(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	o.issuers[pipelines].keys.current.Store(&keySet{issuer: pipelines, keys: keys, asked: localNow})
	return o
}

func pipelineClaims() map[string]any {
	now := localNow.Unix()
	return map[string]any{
		"iss": pipelines, "sub": "repo:acme/web:ref:refs/heads/main", "aud": "signet", "exp": now + 300, "nbf": now - 60, "iat": now - 60,
		"repository": "acme/web", "ref": "refs/heads/main", "run_id": 17, "azp": "anybody",
	}
}

func TestOIDC(t *testing.T) {
	key, other := rsaKey(t, 2048), ecKey(t, elliptic.P256())
	keys := map[string]signingKey{"a": {jose.RS256, key.Public()}, "e": {jose.ES256, other.Public()}}
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	now := localNow.Unix()
	set := func(claim string, value any) func(map[string]any) {
		return func(c map[string]any) { c[claim] = value }
	}
	without := func(claim string) func(map[string]any) { return func(c map[string]any) { delete(c, claim) } }
	good := func(map[string]any) {}
	const header = `{"alg":"RS256","kid":"a","typ":"JWT","x5t":"x"}`
	for _, row := range []struct {
		name   string
		header string
		key    crypto.Signer
		change func(map[string]any)
		want   *kind // nil where it is accepted
	}{
		{"good", header, key, good, nil},
		{"by another key of the issuer", `{"alg":"ES256","kid":"e"}`, other, good, nil},
		{"several audiences", header, key, set("aud", []any{"x", "signet"}), nil},
		{"no nbf and iat", header, key, func(c map[string]any) { delete(c, "nbf"); delete(c, "iat") }, nil},
		{"times with fractions", header, key, set("exp", float64(now)+0.5), nil},
		{"just expired", header, key, set("exp", now-29), nil},
		{"clocks that differ", header, key, set("nbf", now+29), nil},

		{"expired", header, key, set("exp", now-30), &kindTokenRejected},
		{"not yet", header, key, set("nbf", now+31), &kindTokenRejected},
		{"from the future", header, key, set("iat", now+31), &kindTokenRejected},
		{"no expiry", header, key, without("exp"), &kindTokenRejected},
		{"a text for an expiry", header, key, set("exp", "9999999999"), &kindTokenRejected},
		{"an expiry of null", header, key, set("exp", nil), &kindTokenRejected},
		{"an expiry beyond time", header, key, set("exp", 1e300), &kindTokenRejected},
		{"a text for nbf", header, key, set("nbf", "0"), &kindTokenRejected},
		{"another audience", header, key, set("aud", "other"), &kindTokenAudience},
		{"no audience", header, key, without("aud"), &kindTokenAudience},
		{"an audience in a list of others", header, key, set("aud", []any{"signet", 1}), &kindTokenAudience},
		{"an audience as an object", header, key, set("aud", map[string]any{"signet": true}), &kindTokenAudience},
		{"azp is no audience", header, key, func(c map[string]any) { c["aud"], c["azp"] = "other", "signet" }, &kindTokenAudience},
		{"no sub", header, key, without("sub"), &kindTokenRejected},
		{"another repository", header, key, set("repository", "evil/web"), &kindTokenClaims},
		{"another branch", header, key, set("ref", "refs/pull/1/merge"), &kindTokenClaims},
		{"no branch", header, key, without("ref"), &kindTokenClaims},
		{"unknown key", `{"alg":"RS256","kid":"b"}`, key, good, &kindTokenRejected},
		{"no key ID", `{"alg":"RS256"}`, key, good, &kindTokenRejected},
		{"another's signature", header, stranger, good, &kindTokenRejected},
		{"none", `{"alg":"none","kid":"a"}`, key, good, &kindTokenRejected},
		{"None", `{"alg":"None","kid":"a"}`, key, good, &kindTokenRejected},
		{"another algorithm of the key", `{"alg":"PS256","kid":"a"}`, key, good, &kindTokenRejected},
		{"the algorithm of another key", `{"alg":"ES256","kid":"a"}`, other, good, &kindTokenRejected},
		{"HMAC", `{"alg":"HS256","kid":"a"}`, key, good, &kindTokenRejected},
		{"no algorithm", `{"kid":"a"}`, key, good, &kindTokenRejected},
		{"a header that isn't JSON", `x`, key, good, &kindTokenRejected},
		{"a critical header", `{"alg":"RS256","kid":"a","crit":["x"],"x":1}`, key, good, &kindTokenRejected},
		{"another issuer", header, key, set("iss", "https://other"), &kind{}},
		{"nearly the issuer", header, key, set("iss", pipelines+"/"), &kind{}},
		{"issuers in a list", header, key, set("iss", []any{pipelines}), &kind{}},
		{"no issuer", header, key, without("iss"), &kind{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			o := newTestOIDC(t, keys)
			claims := pipelineClaims()
			row.change(claims)
			caller, err := o.authenticate(sealed(t, row.key, row.header, encoded(t, claims)), localNow)
			switch {
			case row.want == nil:
				require.NoError(t, err)
				sum := sha256.Sum256([]byte(pipelines + "\x00repo:acme/web:ref:refs/heads/main"))
				assert.Equal(t, &Caller{
					ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/ci/sa/web"), Namespace: "ci", ServiceAccount: "web",
					CredentialID: fmt.Sprintf("OIDC=%x", sum[:16]),
				}, caller)
			case *row.want == kind{}:
				assert.ErrorIs(t, err, errNotConcerned)
			default:
				requireKind(t, *row.want, err)
				assert.Nil(t, caller)
				assert.Equal(t, codes.Unauthenticated, refuse(err).code)
			}
		})
	}

	// The public key as the secret of an HMAC.
	o := newTestOIDC(t, keys)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	require.NoError(t, err)
	for _, secret := range [][]byte{der, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})} {
		input := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","kid":"a"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(encoded(t, pipelineClaims())))
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		_, err := o.authenticate(input+"."+base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), localNow)
		requireKind(t, kindTokenRejected, err)
	}
	// A good signature by an algorithm that the key isn't for.
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.PS256, Key: jose.JSONWebKey{Key: key, KeyID: "a"}}, nil)
	require.NoError(t, err)
	signed, err := signer.Sign([]byte(encoded(t, pipelineClaims())))
	require.NoError(t, err)
	compact, err := signed.CompactSerialize()
	require.NoError(t, err)
	_, err = o.authenticate(compact, localNow)
	requireKind(t, kindTokenRejected, err)
	// A claim that is there twice.
	for _, payload := range []string{
		strings.Replace(encoded(t, pipelineClaims()), `"repository":"acme/web"`, `"repository":"evil/web","repository":"acme/web"`, 1),
		strings.Replace(encoded(t, pipelineClaims()), `"iss"`, `"iss":"https://other","iss"`, 1),
	} {
		_, err := o.authenticate(sealed(t, key, header, payload), localNow)
		assert.Error(t, err)
	}
	// Keys that aren't known, or known too long ago.
	token := sealed(t, key, header, encoded(t, pipelineClaims()))
	o.issuers[pipelines].keys.current.Store(&keySet{issuer: pipelines, keys: keys, asked: localNow.Add(-oidcMaxStale - time.Second)})
	_, err = o.authenticate(token, localNow)
	requireKind(t, kindReviewFailed, err)
	o.issuers[pipelines].keys.current.Store(nil)
	_, err = o.authenticate(token, localNow)
	requireKind(t, kindReviewFailed, err)
}

// TestOIDCMayNotImpersonate: whoever is in no pod is no node's proxy, whatever its claims make of it.
func TestOIDCMayNotImpersonate(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	proxies := OIDCConfig{Issuer: pipelines, Audiences: []string{"nodes"}, Match: map[string]string{"repository": "acme/web"}, Namespace: "istio-system", ServiceAccount: "ztunnel"}
	o := newTestOIDC(t, map[string]signingKey{"e": {jose.ES256, key.Public()}}, proxies)
	claims := pipelineClaims()
	claims["aud"] = "nodes"
	caller, err := o.authenticate(sealed(t, key, `{"alg":"ES256","kid":"e"}`, encoded(t, claims)), localNow)
	require.NoError(t, err)
	require.Equal(t, "spiffe://cluster.local/ns/istio-system/sa/ztunnel", caller.ID.String())
	everything := func(string) Presence { return &mesh{} }
	nodes := NewNodeProxies(NodesConfig{Accounts: []string{"istio-system/ztunnel"}}, everything)
	requireKind(t, kindNoNodeProxy, nodes.MayImpersonate(t.Context(), caller, "shop", "web"))
}

// TestOIDCSeveralMappings: the first that fits decides, and each counts for its own audiences.
func TestOIDCSeveralMappings(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	o := newTestOIDC(t, map[string]signingKey{"e": {jose.ES256, key.Public()}},
		OIDCConfig{Issuer: pipelines, Audiences: []string{"signet"}, Match: map[string]string{"repository": "acme/{repo}"}, Namespace: "tests", ServiceAccount: "{repo}"},
		OIDCConfig{Issuer: pipelines, Audiences: []string{"other"}, Match: map[string]string{"repository": "{owner}/{repo}"}, Namespace: "any", ServiceAccount: "{repo}"})
	for _, row := range []struct{ audience, repository, ref, want string }{
		{"signet", "acme/web", "refs/heads/main", "ci/web"},
		{"signet", "acme/web", "refs/heads/x", "tests/web"},
		{"other", "acme/web", "refs/heads/main", "any/web"},
		{"signet", "evil/web", "refs/heads/main", ""},
	} {
		claims := pipelineClaims()
		claims["aud"], claims["repository"], claims["ref"] = row.audience, row.repository, row.ref
		caller, err := o.authenticate(sealed(t, key, `{"alg":"ES256","kid":"e"}`, encoded(t, claims)), localNow)
		if row.want == "" {
			requireKind(t, kindTokenClaims, err)
			continue
		}
		require.NoError(t, err)
		assert.Equal(t, row.want, caller.Namespace+"/"+caller.ServiceAccount)
	}
}

func TestOIDCValidate(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*OIDCConfig)
		want   string
	}{
		{"good", func(*OIDCConfig) {}, ""},
		{"http", func(c *OIDCConfig) { c.Issuer = "http://issuer" }, `issuer: "http://issuer" is not the URL of an issuer`},
		{"a query", func(c *OIDCConfig) { c.Issuer += "?x=y" }, "is not the URL of an issuer"},
		{"a fragment", func(c *OIDCConfig) { c.Issuer += "#" }, "is not the URL of an issuer"},
		{"a user", func(c *OIDCConfig) { c.Issuer = "https://a@issuer" }, "is not the URL of an issuer"},
		{"none", func(c *OIDCConfig) { c.Issuer = "" }, "is not the URL of an issuer"},
		{"no audience", func(c *OIDCConfig) { c.Audiences = nil }, "audiences: it is empty"},
		{"an empty audience", func(c *OIDCConfig) { c.Audiences = []string{""} }, "audiences: it is empty"},
		{"no match", func(c *OIDCConfig) { c.Match = nil }, "match: it is empty"},
		{"other CAs than before", func(c *OIDCConfig) { c.CAFile = "ca.pem" }, `caFile: "ca.pem" is not ""`},
	} {
		c := OIDCConfig{Issuer: pipelines, Audiences: []string{"signet"}, Match: clusterMatch, Namespace: "{ns}", ServiceAccount: "{sa}"}
		before := []OIDCConfig{c}
		row.change(&c)
		p := setting.NewProblems()
		c.validate(p, before)
		if row.want == "" {
			assert.NoError(t, p.Err(), row.name)
		} else {
			assert.ErrorContains(t, p.Err(), row.want, row.name)
		}
	}
}

// provider is an issuer that does as it is told.
type provider struct {
	*httptest.Server
	caFile  string
	asked   atomic.Int64
	release chan struct{} // closed when the test is over
	stuck   func()        // called by an answer that doesn't end

	discovery, jwks atomic.Pointer[http.HandlerFunc]
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.asked.Add(1)
		switch r.URL.Path {
		case discoveryPath:
			(*p.discovery.Load())(w, r)
		case "/keys":
			(*p.jwks.Load())(w, r)
		default:
			http.NotFound(w, r)
		}
	}))
	p.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that fail
	p.StartTLS()
	p.release = make(chan struct{})
	t.Cleanup(func() { close(p.release); p.Close() })
	p.caFile = filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(p.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600))
	p.says(map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys"})
	return p
}

func answering(body string) *http.HandlerFunc {
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
	return &handler
}

func (p *provider) says(discovery map[string]any) {
	text, _ := json.Marshal(discovery) // a map of texts
	p.discovery.Store(answering(string(text)))
}

func (p *provider) has(keys ...jose.JSONWebKey) {
	text, _ := json.Marshal(jose.JSONWebKeySet{Keys: keys}) // public keys
	p.jwks.Store(answering(string(text)))
}

// TestOIDCFetch: what an issuer says is used only where it is said as it must be.
func TestOIDCFetch(t *testing.T) {
	key := jose.JSONWebKey{KeyID: "a", Key: ecKey(t, elliptic.P256()).Public(), Algorithm: "ES256", Use: "sig"}
	redirect := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/keys", http.StatusFound) })
	huge := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			fmt.Fprint(w, strings.Repeat(" ", oidcDocument/10))
		}
	})
	failing := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) })
	for _, row := range []struct {
		name   string
		change func(p *provider, s *oidcSource)
		want   string // a part of the error
	}{
		{"good", func(*provider, *oidcSource) {}, ""},
		{"another issuer", func(p *provider, _ *oidcSource) {
			p.says(map[string]any{"issuer": "https://other", "jwks_uri": p.URL + "/keys"})
		}, `is of "https://other"`},
		{"nearly the issuer", func(p *provider, _ *oidcSource) {
			p.says(map[string]any{"issuer": p.URL + "/", "jwks_uri": p.URL + "/keys"})
		}, "is of "},
		{"keys over http", func(p *provider, _ *oidcSource) {
			p.says(map[string]any{"issuer": p.URL, "jwks_uri": "http" + strings.TrimPrefix(p.URL, "https") + "/keys"})
		}, "it must be an https URL"},
		{"keys in a file", func(p *provider, _ *oidcSource) {
			p.says(map[string]any{"issuer": p.URL, "jwks_uri": "file:///etc/passwd"})
		}, "it must be an https URL"},
		{"no place of keys", func(p *provider, _ *oidcSource) { p.says(map[string]any{"issuer": p.URL}) }, "it must be an https URL"},
		{"sent elsewhere for discovery", func(p *provider, _ *oidcSource) { p.discovery.Store(&redirect) }, "redirects are not followed"},
		{"sent elsewhere for keys", func(p *provider, _ *oidcSource) { p.jwks.Store(&redirect) }, "redirects are not followed"},
		{"huge discovery", func(p *provider, _ *oidcSource) { p.discovery.Store(&huge) }, "has more than"},
		{"huge keys", func(p *provider, _ *oidcSource) { p.jwks.Store(&huge) }, "has more than"},
		{"stuck", func(p *provider, _ *oidcSource) {
			stuck := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusOK)
				w.(http.Flusher).Flush()
				p.stuck()
				<-p.release // not before: an answer that ends could still arrive
			})
			p.jwks.Store(&stuck)
		}, "context canceled"},
		{"failing", func(p *provider, _ *oidcSource) { p.discovery.Store(&failing) }, "it answers 500"},
		{"no JSON", func(p *provider, _ *oidcSource) { p.discovery.Store(answering("<html>")) }, "parse the discovery document"},
		{"keys that are no JSON", func(p *provider, _ *oidcSource) { p.jwks.Store(answering("<html>")) }, "parse the JWKS"},
		{"no keys", func(p *provider, _ *oidcSource) { p.has() }, "none of the 0 keys can be used"},
		{"not the certificate that is expected", func(_ *provider, s *oidcSource) { s.caFile = "" }, "certificate"},
		{"no file", func(_ *provider, s *oidcSource) { s.caFile += "x" }, "read the CAs"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newProvider(t)
			p.has(key)
			s := &oidcSource{issuer: p.URL, caFile: p.caFile}
			row.change(p, s)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p.stuck = cancel
			found, err := s.fetch(ctx)
			if row.want != "" {
				require.ErrorContains(t, err, row.want)
				assert.Nil(t, found)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, p.URL, found.issuer)
			assert.Len(t, found.keys, 1)
		})
	}
}

func TestParseOIDCKeys(t *testing.T) {
	modulus, ec := rsaKey(t, 2048).Public(), ecKey(t, elliptic.P256()).Public()
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	for _, row := range []struct {
		key  jose.JSONWebKey
		want jose.SignatureAlgorithm // "" where it isn't used
	}{
		{jose.JSONWebKey{KeyID: "a", Key: modulus}, jose.RS256},
		{jose.JSONWebKey{KeyID: "a", Key: modulus, Algorithm: "PS256"}, jose.PS256},
		{jose.JSONWebKey{KeyID: "a", Key: modulus, Algorithm: "RS512", Use: "sig"}, jose.RS512},
		{jose.JSONWebKey{KeyID: "a", Key: ec}, jose.ES256},
		{jose.JSONWebKey{KeyID: "a", Key: edwards}, jose.EdDSA},
		{jose.JSONWebKey{KeyID: "a", Key: edwards, Algorithm: "EdDSA"}, jose.EdDSA},
		{jose.JSONWebKey{KeyID: "a", Key: modulus, Algorithm: "ES256"}, ""},
		{jose.JSONWebKey{KeyID: "a", Key: modulus, Algorithm: "HS256"}, ""},
		{jose.JSONWebKey{KeyID: "a", Key: modulus, Algorithm: "none"}, ""},
		{jose.JSONWebKey{KeyID: "a", Key: ec, Algorithm: "ES384"}, ""},
		{jose.JSONWebKey{KeyID: "a", Key: ec, Algorithm: "RS256"}, ""},
		{jose.JSONWebKey{KeyID: "a", Key: rsaKey(t, 1024).Public(), Algorithm: "PS256"}, ""},
		{jose.JSONWebKey{KeyID: "a", Key: ec, Use: "enc"}, ""},
		{jose.JSONWebKey{Key: ec}, ""},
		{jose.JSONWebKey{KeyID: "a", Key: []byte("secret"), Algorithm: "HS256"}, ""},
	} {
		found, err := parseOIDCKeys([]byte(`{"keys":[{"kty":"XX","kid":"new kind"},` + encoded(t, row.key) + `]}`))
		if row.want == "" {
			assert.Error(t, err, "%s", row.key.Algorithm)
			continue
		}
		require.NoError(t, err)
		assert.Equal(t, row.want, found["a"].algorithm)
	}
	twice := jose.JSONWebKey{KeyID: "a", Key: ec}
	_, err = parseOIDCKeys([]byte(encoded(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{twice, {KeyID: "a", Key: modulus}, twice}})))
	assert.Error(t, err, "one ID for two keys")
}

// TestOIDCKeysThatRotate: a key that is new is known soon after a token names it, and a flood of tokens with keys that there
// are not asks the issuer no more often than is due.
func TestOIDCKeysThatRotate(t *testing.T) {
	p := newProvider(t)
	first, second := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	published := func(id string, key crypto.Signer) jose.JSONWebKey {
		return jose.JSONWebKey{KeyID: id, Key: key.Public()}
	}
	p.has(published("1", first))
	cfg := Config{TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), OIDC: []OIDCConfig{{
		Issuer: p.URL, Audiences: []string{"signet"}, CAFile: p.caFile, Match: map[string]string{"repository": "acme/{repo}"}, Namespace: "ci", ServiceAccount: "{repo}",
	}}}
	o, err := NewOIDC(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	const gap = 200 * time.Millisecond
	o.issuers[p.URL].keys.every, o.issuers[p.URL].keys.gap = time.Hour, gap
	token := func(id string, key crypto.Signer) string {
		claims := maps.Clone(pipelineClaims())
		claims["iss"], claims["exp"], claims["nbf"], claims["iat"] = p.URL, time.Now().Unix()+600, 0, 0
		return sealed(t, key, `{"alg":"ES256","kid":"`+id+`"}`, encoded(t, claims))
	}
	accepted := func(token string) bool {
		_, err := o.Authenticate(t.Context(), Credentials{Token: token})
		return err == nil
	}
	assert.False(t, accepted(token("1", first)))
	assert.Contains(t, o.Describe(time.Now())[0], "its keys are not known")

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- o.Start(ctx) }()
	require.Eventually(t, func() bool { return accepted(token("1", first)) }, 3*time.Minute, 5*time.Millisecond)
	assert.Contains(t, o.Describe(time.Now())[0], "1 keys, as it said ")

	p.has(published("2", second))
	require.Eventually(t, func() bool { return accepted(token("2", second)) }, 3*time.Minute, 5*time.Millisecond)
	assert.False(t, accepted(token("1", first)), "the old one is gone")

	before, began := p.asked.Load(), time.Now()
	junk := token("unknown", first)
	for range 2000 {
		assert.False(t, accepted(junk))
	}
	looks := float64(p.asked.Load()-before) / 2
	assert.LessOrEqual(t, looks, 2+time.Since(began).Seconds()/gap.Seconds())
	stop()
	require.NoError(t, <-ended)
}

// TestOIDCNewKey: whether a key is the issuer's is known only from an answer of just now. Until there is one, the caller is to
// try again.
func TestOIDCNewKey(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	o := newTestOIDC(t, map[string]signingKey{"old": {jose.ES256, key.Public()}})
	token := sealed(t, key, `{"alg":"ES256","kid":"new"}`, encoded(t, pipelineClaims()))
	for asked, want := range map[time.Duration]kind{oidcGap: kindTokenRejected, oidcGap + time.Second: kindReviewFailed} {
		o.issuers[pipelines].keys.current.Store(&keySet{issuer: pipelines, keys: o.issuers[pipelines].keys.current.Load().keys, asked: localNow.Add(-asked)})
		_, err := o.authenticate(token, localNow)
		refusal, ok := errors.AsType[*refusal](err)
		require.True(t, ok, err)
		assert.Equal(t, want.reason, refusal.kind.reason, asked)
		assert.Len(t, o.issuers[pipelines].keys.wanted, 1, "it is asked again")
		<-o.issuers[pipelines].keys.wanted
	}
}

// FuzzOIDCToken: of tokens that aren't signed by the issuer's key none makes a caller.
func FuzzOIDCToken(f *testing.F) {
	key, foreign := ecKey(f, elliptic.P256()), ecKey(f, elliptic.P256())
	o := newTestOIDC(f, map[string]signingKey{"e": {jose.ES256, key.Public()}})
	f.Add(`{"alg":"ES256","kid":"e"}`, encoded(f, pipelineClaims()))
	f.Add(`{"alg":"none","kid":"e"}`, encoded(f, pipelineClaims()))
	f.Add(`{"alg":"ES256","kid":"e","jwk":{}}`, `{"iss":"`+pipelines+`","exp":1e400}`)
	f.Fuzz(func(t *testing.T, header, payload string) {
		_, err := o.authenticate(sealed(t, foreign, header, payload), localNow)
		require.Error(t, err)
		// What the issuer does sign makes the identity of its claims, or none.
		caller, err := o.authenticate(sealed(t, key, header, payload), localNow)
		if err == nil {
			require.Equal(t, "ci", caller.Namespace)
			require.True(t, isServiceAccount("ci", caller.ServiceAccount))
			require.Empty(t, caller.PodUID+caller.ServiceAccountUID+caller.Cluster)
			require.NotContains(t, caller.CredentialID, "acme")
		}
	})
}

// TestOIDCAlone: a token of a configured issuer is shown to nobody else, and others' tokens are.
func TestOIDCAlone(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	o := newTestOIDC(t, map[string]signingKey{"e": {jose.ES256, key.Public()}})
	claims := pipelineClaims()
	authn := newAuthentication(Authenticators{Tokens: []TokenAuthenticator{
		{Name: "oidc", Alone: true, Authenticator: o}, {Name: "review", Authenticator: saying{caller: &Caller{ID: alice}}},
	}}, prometheus.NewRegistry())
	caller, tried, err := authn.authenticate(t.Context(), Credentials{Token: sealed(t, key, `{"alg":"ES256","kid":"x"}`, encoded(t, claims))}, nil)
	require.Error(t, err)
	assert.Nil(t, caller)
	assert.Equal(t, "oidc="+refuse(err).reason, tried)
	claims["iss"] = tokenIssuer
	caller, tried, err = authn.authenticate(t.Context(), Credentials{Token: sealed(t, key, `{"alg":"ES256","kid":"x"}`, encoded(t, claims))}, nil)
	require.NoError(t, err)
	assert.Equal(t, alice, caller.ID)
	assert.Equal(t, "review=accepted", tried)
}
