package api

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/sync/singleflight"
	authenticationv1 "k8s.io/api/authentication/v1"
	lru "k8s.io/apimachinery/pkg/util/cache"
)

// Mesh says which client certificates of the mesh are good.
type Mesh struct {
	TrustDomain spiffeid.TrustDomain
	// Anchors are the trust anchors of our own trust domain that are in force now; nil where there are none.
	Anchors func() *x509.CertPool
	// Local says why a leaf that the anchors verify isn't one of our own cluster, or is empty where it is one. Clusters of
	// one mesh have a trust domain in common, and so the names of their service accounts. An error says that it can't be
	// told now. Without Local, no client certificate is good.
	Local func(ctx context.Context, leaf *x509.Certificate) (whyNot string, err error)
}

// caller is a Kubernetes user. It is never changed.
type caller struct {
	name   string
	uid    string
	groups []string
	extra  map[string][]string
}

// authenticator says who a request comes from: by bearer token, else by client certificate. Safe for concurrent use.
type authenticator struct {
	audiences   []string
	ownToo      bool // tokens for the API server are good
	cacheTime   time.Duration
	reviews     *reviews
	mesh        Mesh
	kept        *lru.LRUExpireCache // of tokenAnswer by digest; no token is kept
	underReview singleflight.Group
}

// tokenAnswer is what became of a token: exactly one is set.
type tokenAnswer struct {
	caller *caller
	fault  *fault
}

const (
	// keptTokens bounds the answers about tokens that are kept.
	keptTokens = 4096
	// keepRefusal is how long a token that was refused isn't reviewed again: a fresh one can fail once.
	keepRefusal = time.Second
	// maxTokenBytes bounds a token.
	maxTokenBytes = 12 << 10
)

func newAuthenticator(cfg Config, reviews *reviews, mesh Mesh) *authenticator {
	return &authenticator{
		audiences: cfg.Audiences,
		ownToo:    !cfg.RefuseAPIServerTokens,
		cacheTime: cfg.CacheTime.Or(0),
		reviews:   reviews,
		mesh:      mesh,
		kept:      lru.NewLRUExpireCache(keptTokens),
	}
}

// authenticate says who r comes from. The error is a *fault: 401, or 503 where that can't be known now.
func (a *authenticator) authenticate(ctx context.Context, r *http.Request) (*caller, error) {
	switch headers := r.Header.Values("Authorization"); len(headers) {
	case 0:
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			return a.fromCertificate(ctx, r.TLS)
		}
		return nil, newFault(http.StatusUnauthorized, fmt.Sprintf("say who you are: with a bearer token for audience %s, or with a client certificate of the mesh", strings.Join(a.audiences, " or ")))
	case 1:
		scheme, token, _ := strings.Cut(headers[0], " ")
		token = strings.TrimLeft(token, " ") // RFC 7235 §2.1: one or more spaces
		if !strings.EqualFold(scheme, "Bearer") || !wellFormed(token) {
			return nil, refusedToken("the Authorization header must be Bearer and a token")
		}
		return a.fromToken(ctx, token)
	}
	return nil, refusedToken("there must be one Authorization header")
}

// wellFormed says that a token is one of RFC 6750 §2.1.
func wellFormed(token string) bool {
	return token != "" && len(token) <= maxTokenBytes && !strings.ContainsFunc(token, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._~+/=", r))
	})
}

func refusedToken(detail string) *fault {
	f := newFault(http.StatusUnauthorized, detail)
	f.header.Set("WWW-Authenticate", `Bearer realm="signet", error="invalid_token"`) // RFC 6750 §3.1
	return f
}

// fromToken asks the API server, unless it has answered lately. Callers with one token share a review, which goes on
// when one of them leaves.
func (a *authenticator) fromToken(ctx context.Context, token string) (*caller, error) {
	digest := sha256.Sum256([]byte(token))
	if kept, ok := a.kept.Get(digest); ok {
		return kept.(tokenAnswer).result()
	}
	done := a.underReview.DoChan(string(digest[:]), func() (any, error) {
		answer, keep := a.review(context.WithoutCancel(ctx), token)
		if keep > 0 {
			a.kept.Add(digest, answer, keep)
		}
		return answer, nil
	})
	select {
	case result := <-done:
		return result.Val.(tokenAnswer).result()
	case <-ctx.Done():
		return nil, unavailable("who you are", ctx.Err())
	}
}

func (t tokenAnswer) result() (*caller, error) {
	if t.fault != nil {
		return nil, t.fault
	}
	return t.caller, nil
}

// unavailable says that the API server doesn't answer a question. Nobody is let in for that.
func unavailable(what string, err error) *fault {
	return newFault(http.StatusServiceUnavailable, "the API server does not say now "+what+"; ask again").because(err)
}

// review asks about a token, for each kind of audience that it may have, and says how long the answer is good.
func (a *authenticator) review(ctx context.Context, token string) (tokenAnswer, time.Duration) {
	claims := claimsOf(token)
	var last authenticationv1.TokenReviewStatus
	ask := func(audiences []string) (*tokenAnswer, time.Duration) {
		status, err := a.reviews.token(ctx, token, audiences)
		if err != nil {
			return &tokenAnswer{fault: unavailable("who you are", err)}, 0
		}
		last = *status
		// An API server, or a webhook behind it, that doesn't know of audiences says nothing about them.
		fits := audiences == nil || slices.ContainsFunc(status.Audiences, func(got string) bool { return slices.Contains(audiences, got) })
		if !status.Authenticated || !fits || status.User.Username == "" {
			return nil, 0
		}
		keep := a.cacheTime
		if claims.expiry != nil {
			keep = min(keep, time.Until(*claims.expiry))
		}
		return &tokenAnswer{caller: callerOf(status.User)}, keep
	}
	// What a token says of itself only spares a question that has no chance.
	if !a.ownToo || claims.audiences == nil || claims.forOneOf(a.audiences) {
		if answer, keep := ask(a.audiences); answer != nil {
			return *answer, keep
		}
	}
	if a.ownToo {
		if answer, keep := ask(nil); answer != nil {
			return *answer, keep
		}
	}
	f := refusedToken(fmt.Sprintf("the token is not accepted: it must be valid now, and for audience %s", strings.Join(a.audiences, " or ")))
	if last.Error != "" {
		f.cause = errors.New(last.Error)
	}
	return tokenAnswer{fault: f}, keepRefusal
}

func callerOf(user authenticationv1.UserInfo) *caller {
	c := &caller{name: user.Username, uid: user.UID, groups: user.Groups}
	if len(user.Extra) > 0 {
		c.extra = make(map[string][]string, len(user.Extra))
		for key, values := range user.Extra {
			c.extra[key] = values
		}
	}
	// Every user that is known is in it; not every authenticator says so.
	if !slices.Contains(c.groups, authenticatedGroup) {
		c.groups = append(slices.Clone(c.groups), authenticatedGroup)
	}
	return c
}

const authenticatedGroup = "system:authenticated"

// tokenClaims are what a token says of itself, not verified. Both are empty for one that is no JWT.
type tokenClaims struct {
	audiences []string
	expiry    *time.Time
}

func (c tokenClaims) forOneOf(audiences []string) bool {
	return slices.ContainsFunc(c.audiences, func(audience string) bool { return slices.Contains(audiences, audience) })
}

func claimsOf(token string) tokenClaims {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return tokenClaims{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return tokenClaims{}
	}
	var body struct {
		Audience json.RawMessage `json:"aud"`
		Expiry   *float64        `json:"exp"` // NumericDate, seconds (RFC 7519 §2)
	}
	if json.Unmarshal(payload, &body) != nil {
		return tokenClaims{}
	}
	var claims tokenClaims
	var one string
	if json.Unmarshal(body.Audience, &claims.audiences) != nil && json.Unmarshal(body.Audience, &one) == nil {
		claims.audiences = []string{one} // RFC 7519 §4.1.3: a single one needs no array
	}
	if body.Expiry != nil && *body.Expiry >= 0 && *body.Expiry < 1<<40 {
		at := time.Unix(int64(*body.Expiry), 0)
		claims.expiry = &at
	}
	return claims
}

// fromCertificate judges the client certificate as things are now: the handshake may be hours old.
func (a *authenticator) fromCertificate(ctx context.Context, state *tls.ConnectionState) (*caller, error) {
	refused := func(format string, args ...any) error {
		return newFault(http.StatusUnauthorized, "the client certificate is not accepted: "+fmt.Sprintf(format, args...))
	}
	leaf := state.PeerCertificates[0]
	if a.mesh.Local == nil || a.mesh.Anchors == nil {
		return nil, refused("callers are known by token only")
	}
	anchors := a.mesh.Anchors()
	if anchors == nil {
		return nil, newFault(http.StatusServiceUnavailable, "the trust anchors of the mesh are not known yet; ask again, or with a token")
	}
	intermediates := x509.NewCertPool()
	for _, certificate := range state.PeerCertificates[1:] {
		intermediates.AddCert(certificate)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: anchors, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, refused("%v", err)
	}
	if leaf.IsCA {
		return nil, refused("it is a CA's") // X509-SVID §4.1
	}
	text, err := onlyURI(leaf)
	if err != nil {
		return nil, refused("%v", err)
	}
	id, err := spiffeid.FromString(text)
	if err != nil {
		return nil, refused("its name %q is no SPIFFE ID", text)
	}
	if id.TrustDomain() != a.mesh.TrustDomain {
		return nil, refused("it is of trust domain %q, not of ours, %q", id.TrustDomain().Name(), a.mesh.TrustDomain.Name())
	}
	namespace, account, ok := serviceAccountOf(id)
	if !ok {
		return nil, refused("its name %q is not that of a service account", text)
	}
	switch whyNot, err := a.mesh.Local(ctx, leaf); {
	case err != nil:
		return nil, newFault(http.StatusServiceUnavailable, "it can't be told now whether the client certificate is of this cluster; ask again, or with a token").because(err)
	case whyNot != "":
		return nil, refused("it is not known to be of this cluster: %s", whyNot)
	}
	return &caller{
		name:   "system:serviceaccount:" + namespace + ":" + account,
		groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, authenticatedGroup},
	}, nil
}

// serviceAccountOf reads Istio's form of a SPIFFE ID: /ns/NAMESPACE/sa/NAME.
func serviceAccountOf(id spiffeid.ID) (namespace, name string, ok bool) {
	parts := strings.Split(id.Path(), "/")
	if len(parts) != 5 || parts[0] != "" || parts[1] != "ns" || parts[2] == "" || parts[3] != "sa" || parts[4] == "" {
		return "", "", false
	}
	return parts[2], parts[4], true
}

var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17} // RFC 5280 §4.2.1.6

// onlyURI is the one name that the leaf may have (X509-SVID §2). The extension is read itself: Go's parser leaves
// out names of kinds that it doesn't know.
func onlyURI(leaf *x509.Certificate) (string, error) {
	var found []byte
	for _, extension := range leaf.Extensions {
		if extension.Id.Equal(subjectAltName) {
			if found != nil {
				return "", errors.New("it has its names twice")
			}
			found = extension.Value
		}
	}
	input := cryptobyte.String(found)
	var names, uri cryptobyte.String
	if !input.ReadASN1(&names, cryptobyteasn1.SEQUENCE) || !input.Empty() ||
		!names.ReadASN1(&uri, cryptobyteasn1.Tag(6).ContextSpecific()) || !names.Empty() {
		return "", errors.New("it must have exactly one name, a URI")
	}
	return string(uri), nil
}
