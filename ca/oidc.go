package ca

import (
	"context"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/setting"
)

// OIDCConfig is an issuer of tokens, by OpenID Connect Discovery, and which service account each of its tokens is for. One
// issuer may be there several times, with other claims or audiences: the first that fits decides.
//
// Whoever can have the issuer make a token whose claims match gets the identity: match all that tells one caller from
// another, such as the owner of a repository.
type OIDCConfig struct {
	// Issuer is its URL, exactly as its tokens have it in iss. Its keys are found at
	// <issuer>/.well-known/openid-configuration. Required.
	Issuer string `json:"issuer"`
	// Audiences of which a token must have at least one, since one that was made for somebody else must not be good here.
	// Required.
	Audiences []string `json:"audiences"`
	// CAFile is a PEM file with the CAs of the issuer's own certificate, read whenever the keys are. Default those of the
	// system.
	CAFile string `json:"caFile,omitempty"`
	// Match says how claims must look, all of them: by their name, or by a JSON pointer such as /kubernetes.io/namespace,
	// the whole text. In it {name} stands for one DNS label, everything else for itself. A claim that is no text never
	// matches. Required.
	Match map[string]string `json:"match"`
	// Namespace of the identity; {name} in it is what stood there in the claim. Required.
	Namespace string `json:"namespace"`
	// ServiceAccount of the identity; {name} in it is what stood there in the claim. Required.
	ServiceAccount string `json:"serviceAccount"`
}

// validate reports what is wrong with c; before are those that come before it.
func (c OIDCConfig) validate(p setting.Problems, before []OIDCConfig) {
	if err := checkIssuerURL(c.Issuer); err != nil {
		p.Addf("issuer", "%v", err)
	}
	for _, other := range before {
		if other.Issuer == c.Issuer && other.CAFile != c.CAFile {
			p.Addf("caFile", "%q is not %q, as it is for the same issuer before; it must be", c.CAFile, other.CAFile)
			break
		}
	}
	if len(c.Audiences) == 0 || slices.Contains(c.Audiences, "") {
		p.Addf("audiences", "it is empty or has an empty one; name what the tokens for Signet are made for, such as istio-ca")
	}
	if _, err := newMapping(c.Match, c.Namespace, c.ServiceAccount); err != nil {
		p.Addf("", "%v", err)
	}
}

func checkIssuerURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#") {
		return fmt.Errorf("%q is not the URL of an issuer; it must be as https://issuer.example.com", text)
	}
	return nil
}

// The times and bounds of issuers' keys.
const (
	oidcEvery    = 5 * time.Minute  // between two looks; a key that was taken back is used for as long
	oidcGap      = 10 * time.Second // least time between two looks, whatever asks for one
	oidcMaxStale = 6 * time.Hour    // how long keys are used whose issuer can't be asked
	oidcDocument = 512 << 10        // bytes of each document
	oidcLeeway   = 30 * time.Second // for clocks that differ
)

// OIDC authenticates tokens of the issuers that are configured. Their callers are in no cluster and in no pod, so that they
// may ask for nobody else. Safe for concurrent use.
type OIDC struct {
	trustDomain spiffeid.TrustDomain
	issuers     map[string]*oidcIssuer // by URL; never changed
	order       []string
}

// oidcIssuer is one issuer.
type oidcIssuer struct {
	keys     *Keys
	mappings []oidcMapping
}

type oidcMapping struct {
	audiences []string
	mapping
}

// NewOIDC makes one that knows no keys until [OIDC.Start] has asked for them.
func NewOIDC(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*OIDC, error) {
	o := &OIDC{trustDomain: cfg.TrustDomain, issuers: make(map[string]*oidcIssuer)}
	for n, c := range cfg.OIDC {
		m, err := newMapping(c.Match, c.Namespace, c.ServiceAccount)
		if err != nil {
			return nil, fmt.Errorf("ca.oidc[%d].%w", n, err)
		}
		issuer := o.issuers[c.Issuer]
		if issuer == nil {
			source := &oidcSource{issuer: c.Issuer, caFile: c.CAFile}
			if _, err := source.roots(); err != nil {
				return nil, fmt.Errorf("ca.oidc[%d].caFile: %w", n, err)
			}
			own := prometheus.WrapRegistererWith(prometheus.Labels{"issuer": c.Issuer}, prometheus.WrapRegistererWithPrefix("oidc_", reg))
			issuer = &oidcIssuer{keys: newKeys(source.fetch, log.With("issuer", c.Issuer), own)}
			issuer.keys.every, issuer.keys.gap = oidcEvery, oidcGap
			o.issuers[c.Issuer] = issuer
			o.order = append(o.order, c.Issuer)
		}
		issuer.mappings = append(issuer.mappings, oidcMapping{c.Audiences, m})
	}
	return o, nil
}

// NeedLeaderElection says that every replica has the keys.
func (o *OIDC) NeedLeaderElection() bool { return false }

// Start keeps the keys of all issuers until ctx ends.
func (o *OIDC) Start(ctx context.Context) error {
	var running sync.WaitGroup
	for _, issuer := range o.issuers {
		running.Go(func() { _ = issuer.keys.Start(ctx) }) // never an error
	}
	running.Wait()
	return nil
}

// Describe says for people which issuers' keys are known.
func (o *OIDC) Describe(now time.Time) []string {
	var lines []string
	for _, url := range o.order {
		text := "its keys are not known"
		if keys := o.issuers[url].keys.current.Load(); keys != nil {
			text = fmt.Sprintf("%d keys, as it said %s ago", len(keys.keys), now.Sub(keys.asked).Round(time.Second))
		}
		lines = append(lines, url+": "+text)
	}
	return lines
}

// Authenticate implements [Authenticator].
func (o *OIDC) Authenticate(_ context.Context, c Credentials) (*Caller, error) {
	return o.authenticate(c.Token, time.Now())
}

func (o *OIDC) authenticate(token string, now time.Time) (*Caller, error) {
	issuer := o.issuers[claimedIssuer(token)]
	if issuer == nil {
		return nil, errNotConcerned
	}
	keys := issuer.keys.current.Load()
	if keys == nil || now.Sub(keys.asked) > oidcMaxStale {
		return nil, kindReviewFailed.because("the keys of the token's issuer are not known, or too old")
	}
	claims, err := issuer.verify(keys, token, now)
	if err != nil {
		return nil, err
	}
	if claims["iss"] != keys.issuer {
		return nil, kindTokenRejected.because("the token's issuer is not %s", keys.issuer)
	}
	if err := checkTimes(claims, now); err != nil {
		return nil, err
	}
	subject, _ := claims["sub"].(string)
	if subject == "" {
		return nil, kindTokenRejected.because("the token has no sub")
	}
	namespace, account, err := issuer.mapped(claims)
	if err != nil {
		return nil, err
	}
	id, err := spiffeid.FromSegments(o.trustDomain, "ns", namespace, "sa", account)
	if err != nil {
		return nil, kindTokenClaims.because("service account %q of namespace %q makes no SPIFFE ID: %w", account, namespace, err)
	}
	sum := sha256.Sum256([]byte(keys.issuer + "\x00" + subject))
	return &Caller{ID: id, Namespace: namespace, ServiceAccount: account, CredentialID: "OIDC=" + hex.EncodeToString(sum[:16])}, nil
}

// claimedIssuer is what a token says of its issuer, "" where it says nothing. Nothing of it is proven.
func claimedIssuer(token string) string {
	payload, err := claims(token)
	if err != nil {
		return ""
	}
	found, ok := decodeClaims(payload)
	if !ok {
		return ""
	}
	issuer, _ := found["iss"].(string)
	return issuer
}

// decodeClaims reads a payload in which no claim is there twice.
func decodeClaims(payload []byte) (map[string]any, bool) {
	var found map[string]any
	if !decodeExactly(payload, &found) {
		return nil, false
	}
	return found, true
}

// verify is the claims of a token that one of the issuer's keys has signed. Which algorithm that is, the key decides.
func (i *oidcIssuer) verify(keys *keySet, token string, now time.Time) (map[string]any, error) {
	encoded, _, _ := strings.Cut(token, ".")
	decoded, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return nil, kindTokenRejected.because("the token's header is not base64url")
	}
	var header struct {
		KeyID string `json:"kid"`
	}
	if err := json.Unmarshal(decoded, &header); err != nil {
		return nil, kindTokenRejected.because("the token's header is not JSON")
	}
	key, ok := keys.keys[header.KeyID]
	if !ok {
		i.keys.want()
		if now.Sub(keys.asked) > i.keys.gap { // it may have one by now, and will have been asked at the next try
			return nil, kindReviewFailed.because("the issuer had no key %q when it was asked last; its keys are asked for again", shorten(header.KeyID))
		}
		return nil, kindTokenRejected.because("the issuer has no key %q, as far as is known; its keys are asked for again", shorten(header.KeyID))
	}
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{key.algorithm})
	if err != nil {
		return nil, kindTokenRejected.because("the token is not signed as its key %q does, by %s: %w", header.KeyID, key.algorithm, err)
	}
	payload, err := signed.Verify(key.public)
	if err != nil {
		return nil, kindTokenRejected.because("the signature is not of the issuer's key %q", header.KeyID)
	}
	claims, ok := decodeClaims(payload)
	if !ok {
		return nil, kindTokenRejected.because("the token's claims are not an object, or one is there twice")
	}
	return claims, nil
}

// checkTimes says whether a token is good at now: exp has to be there (RFC 7519 §4.1.4 to 4.1.6).
func checkTimes(claims map[string]any, now time.Time) error {
	for _, claim := range []string{"exp", "nbf", "iat"} {
		value, there := claims[claim]
		if !there && claim != "exp" {
			continue
		}
		seconds, ok := numericDate(value)
		switch {
		case !ok:
			return kindTokenRejected.because("the token has no %s, or it is no time", claim)
		case claim == "exp" && !now.Add(-oidcLeeway).Before(seconds):
			return kindTokenRejected.because("the token expired at %s", seconds.UTC().Format(time.RFC3339))
		case claim != "exp" && now.Add(oidcLeeway).Before(seconds):
			return kindTokenRejected.because("the token is not good before %s (%s)", seconds.UTC().Format(time.RFC3339), claim)
		}
	}
	return nil
}

// numericDate reads Unix seconds, whole ones; beyond what time can hold there is no token.
func numericDate(value any) (time.Time, bool) {
	var seconds float64
	switch v := value.(type) {
	case int64:
		seconds = float64(v)
	case float64:
		seconds = v
	default:
		return time.Time{}, false
	}
	if !(seconds >= 0 && seconds < 1<<40) {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0), true
}

// mapped is the service account of the first mapping that fits.
func (i *oidcIssuer) mapped(claims map[string]any) (namespace, account string, err error) {
	audiences := audiencesOf(claims["aud"])
	refused := kindTokenAudience.because("the token is for audiences %q; none of them is configured for its issuer", audiences)
	for _, m := range i.mappings {
		if !slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(m.audiences, a) }) {
			continue
		}
		namespace, account, err := m.apply(claims)
		if err == nil {
			return namespace, account, nil
		}
		refused = kindTokenClaims.because("the token's claims are mapped to no service account: %w", err)
	}
	return "", "", refused
}

// audiencesOf reads aud: one text, or several; nil where it is anything else.
func audiencesOf(value any) []string {
	switch v := value.(type) {
	case string:
		return []string{v}
	case []any:
		var all []string
		for _, one := range v {
			text, ok := one.(string)
			if !ok {
				return nil
			}
			all = append(all, text)
		}
		return all
	}
	return nil
}

// oidcSource asks an issuer for its keys.
type oidcSource struct{ issuer, caFile string }

// roots are the CAs of the issuer's certificate; nil for those of the system.
func (s *oidcSource) roots() (*x509.CertPool, error) {
	if s.caFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(s.caFile)
	if err != nil {
		return nil, fmt.Errorf("read the CAs of issuer %s: %w", s.issuer, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read the CAs of issuer %s: %s has no certificate", s.issuer, s.caFile)
	}
	return pool, nil
}

// fetch asks once, over connections that aren't kept.
func (s *oidcSource) fetch(ctx context.Context) (*keySet, error) {
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		MaxResponseHeaderBytes: 64 << 10,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport,
		// Only the issuer itself says where its keys are.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	asked := time.Now()
	discovery, err := getDocument(ctx, client, strings.TrimSuffix(s.issuer, "/")+discoveryPath)
	if err != nil {
		return nil, err
	}
	var says struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(discovery, &says); err != nil {
		return nil, fmt.Errorf("parse the discovery document of issuer %s: %w", s.issuer, err)
	}
	if says.Issuer != s.issuer {
		return nil, fmt.Errorf("the discovery document of issuer %s is of %q", s.issuer, shorten(says.Issuer))
	}
	if u, err := url.Parse(says.Keys); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return nil, fmt.Errorf("the discovery document of issuer %s has jwks_uri %q; it must be an https URL", s.issuer, shorten(says.Keys))
	}
	jwks, err := getDocument(ctx, client, says.Keys)
	if err != nil {
		return nil, err
	}
	keys, err := parseOIDCKeys(jwks)
	if err != nil {
		return nil, fmt.Errorf("keys of issuer %s: %w", s.issuer, err)
	}
	return &keySet{issuer: s.issuer, keys: keys, asked: asked}, nil
}

// getDocument gets a document of bounded size.
func getDocument(ctx context.Context, client *http.Client, from string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", shorten(from), err)
	}
	request.Header.Set("Accept", "application/json, application/jwk-set+json")
	answer, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", shorten(from), err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: it answers %s; redirects are not followed", shorten(from), answer.Status)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, oidcDocument+1))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", shorten(from), err)
	}
	if len(body) > oidcDocument {
		return nil, fmt.Errorf("get %s: it has more than %d bytes", shorten(from), oidcDocument)
	}
	return body, nil
}

// parseOIDCKeys reads a JWKS. Keys that can't be used are left out, and those whose ID isn't theirs alone; where none is
// left, that is an error.
func parseOIDCKeys(jwks []byte) (map[string]signingKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		return nil, fmt.Errorf("parse the JWKS: %w", err)
	}
	found, seen := make(map[string]signingKey), make(map[string]bool)
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if err := json.Unmarshal(raw, &key); err != nil {
			continue // of a kind that isn't known
		}
		if seen[key.KeyID] {
			delete(found, key.KeyID)
			continue
		}
		seen[key.KeyID] = true
		if algorithm := oidcAlgorithm(key); key.KeyID != "" && algorithm != "" && (key.Use == "" || key.Use == "sig") {
			found[key.KeyID] = signingKey{algorithm, key.Key}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("none of the %d keys can be used", len(set.Keys))
	}
	return found, nil
}

// oidcAlgorithm is the one algorithm that a key is used with: the one that it is published for, where that is for its kind,
// or the usual one; "" for others.
func oidcAlgorithm(key jose.JSONWebKey) jose.SignatureAlgorithm {
	published := jose.SignatureAlgorithm(key.Algorithm)
	usual := algorithmOf(key.Key)
	if public, ok := key.Key.(ed25519.PublicKey); ok && len(public) == ed25519.PublicKeySize {
		usual = jose.EdDSA
	}
	_, isRSA := key.Key.(*rsa.PublicKey)
	switch {
	case published == "" || published == usual:
		return usual
	case isRSA && usual != "" && slices.Contains([]jose.SignatureAlgorithm{jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}, published):
		return published
	}
	return ""
}
