package ca

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	authenticationv1 "k8s.io/api/authentication/v1"
	lru "k8s.io/apimachinery/pkg/util/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/setting"
)

// TokenConfig is how service account tokens are reviewed.
//
// A token that is revoked, by deleting its pod or service account, is refused once that is gone, or a minute after its
// deletion timestamp, after at most the positive cache time here plus that of the API server itself (10s by default):
// within 20s with the defaults.
type TokenConfig struct {
	// Audiences of which a token must have at least one. Default istio-ca.
	Audiences []string `json:"audiences,omitempty"`
	// CacheAccepted is how long an accepted token isn't reviewed again; never past its own expiry.
	// Default 10s, at most 60s.
	CacheAccepted setting.Duration `json:"cacheAccepted,omitempty"`
	// CacheRejected is how long a rejected token isn't reviewed again. A fresh pod's token can fail
	// once, so it is short. Default 1s, at most 1s.
	CacheRejected setting.Duration `json:"cacheRejected,omitempty"`
	// CacheEntries bounds each of the two caches. Default 20000.
	CacheEntries int `json:"cacheEntries,omitempty"`
	// ReviewTimeout bounds one review. Default 5s.
	ReviewTimeout setting.Duration `json:"reviewTimeout,omitempty"`
	// Reviews is how many reviews may be under way at once. Default 32.
	Reviews int `json:"reviews,omitempty"`
	// ReviewsPerAddress is how many of them may come from one IP address. Default 16.
	ReviewsPerAddress int `json:"reviewsPerAddress,omitempty"`
	// Authentication is review, by which the API server is asked about each token, or local, by which tokens are
	// verified with the API server's public keys and against what a watch tells of service accounts, pods and nodes,
	// and only unusual ones are reviewed. Default review.
	Authentication string `json:"authentication,omitempty"`
	// MaxStale is for how long local authentication goes on with what it knew last of keys and objects while the API
	// server can't be heard; as long can a token outlive its revocation then. After that tokens are reviewed. Default
	// 5m.
	MaxStale setting.Duration `json:"maxStale,omitempty"`
}

// Local says whether tokens are verified without asking the API server.
func (c TokenConfig) Local() bool { return c.Authentication == "local" }

// Validate reports what is wrong with c.
func (c TokenConfig) Validate(p setting.Problems) {
	for _, audience := range c.Audiences {
		if audience == "" {
			p.Addf("audiences", "an audience is empty; leave the list out for istio-ca")
		}
	}
	p.Duration("cacheAccepted", c.CacheAccepted, time.Millisecond, time.Minute)
	p.Duration("cacheRejected", c.CacheRejected, time.Millisecond, time.Second)
	p.Count("cacheEntries", c.CacheEntries, 1, 1_000_000)
	p.Duration("reviewTimeout", c.ReviewTimeout, 100*time.Millisecond, 30*time.Second)
	p.Count("reviews", c.Reviews, 1, 1000)
	p.Count("reviewsPerAddress", c.ReviewsPerAddress, 1, 1000)
	if c.Authentication != "" && c.Authentication != "review" && !c.Local() {
		p.Addf("authentication", "%q is no way to authenticate; it must be review or local", c.Authentication)
	}
	p.Duration("maxStale", c.MaxStale, 2*time.Minute, time.Hour)
}

func (c TokenConfig) withDefaults() TokenConfig {
	if len(c.Audiences) == 0 {
		c.Audiences = []string{"istio-ca"}
	}
	c.CacheAccepted = setting.DurationOf(c.CacheAccepted.Or(10 * time.Second))
	c.CacheRejected = setting.DurationOf(c.CacheRejected.Or(time.Second))
	c.CacheEntries = orDefault(c.CacheEntries, 20_000)
	c.ReviewTimeout = setting.DurationOf(c.ReviewTimeout.Or(5 * time.Second))
	c.Reviews = orDefault(c.Reviews, 32)
	c.ReviewsPerAddress = orDefault(c.ReviewsPerAddress, 16)
	c.MaxStale = setting.DurationOf(c.MaxStale.Or(5 * time.Minute))
	return c
}

func orDefault(n, fallback int) int {
	if n == 0 {
		return fallback
	}
	return n
}

// Reviewer authenticates service account tokens of one cluster through TokenReview (R16). Safe
// for concurrent use.
type Reviewer struct {
	cfg         TokenConfig
	trustDomain spiffeid.TrustDomain
	clusterID   string
	aliases     []string
	remotes     bool // callers of other clusters are somebody else's concern
	reviews     client.Client
	queue       *queue
	metrics     *reviewMetrics

	accepted, rejected *lru.LRUExpireCache // of *Caller and of error, by tokenKey

	mu      sync.Mutex
	flights map[tokenKey]*reviewFlight // guarded by mu
}

// tokenKey stands for (cluster, audiences, token); no token is kept.
type tokenKey [sha256.Size]byte

// reviewFlight is one review under way, for all who came with the same token.
type reviewFlight struct {
	done   chan struct{} // closed when the following are set
	caller *Caller
	err    error
}

// NewReviewer makes one that reviews through reviews.
func NewReviewer(cfg Config, reviews client.Client, reg prometheus.Registerer) *Reviewer {
	return newReviewer(cfg, reviews, maxReviewsWaiting, reg)
}

func newReviewer(cfg Config, reviews client.Client, waiting int, reg prometheus.Registerer) *Reviewer {
	token := cfg.Token.withDefaults()
	r := &Reviewer{
		cfg:         token,
		trustDomain: cfg.TrustDomain,
		clusterID:   cfg.clusterID(),
		aliases:     cfg.ClusterAliases,
		remotes:     cfg.RemoteClusters.Enabled(),
		reviews:     reviews,
		queue:       newQueue(token.Reviews, token.ReviewsPerAddress, waiting),
		metrics:     newReviewMetrics(reg),
		accepted:    lru.NewLRUExpireCache(token.CacheEntries),
		rejected:    lru.NewLRUExpireCache(token.CacheEntries),
		flights:     make(map[tokenKey]*reviewFlight),
	}
	watchQueue(reg, "review", r.queue)
	return r
}

// maxReviewsWaiting bounds those who wait for a review; each holds one request's memory.
const maxReviewsWaiting = 5000

// Authenticate implements [Authenticator]. A caller that leaves while its token is under review
// doesn't cancel the review for others who came with the same token.
func (r *Reviewer) Authenticate(ctx context.Context, c Credentials) (*Caller, error) {
	if err := r.concerned(c); err != nil {
		return nil, err
	}
	key := r.key(c.Token)
	r.mu.Lock()
	// The caches are read under the lock: a flight fills them before it leaves, so that a token never has
	// two reviews of its own.
	if caller, known, err := r.known(key); known {
		r.mu.Unlock()
		return caller, err
	}
	flight, joined := r.flights[key]
	if !joined {
		flight = &reviewFlight{done: make(chan struct{})}
		r.flights[key] = flight
	}
	r.mu.Unlock()
	if !joined {
		defer func() {
			r.mu.Lock()
			delete(r.flights, key)
			r.mu.Unlock()
			close(flight.done)
		}()
		flight.err = kindInternal.because("the review ended without a result") // should it panic
		// The first one stays until the review ends, even if its own caller has left.
		flight.caller, flight.err = r.review(context.WithoutCancel(ctx), key, c)
		return flight.caller, flight.err
	}
	r.metrics.cache.WithLabelValues("joined").Inc()
	select {
	case <-flight.done:
		return flight.caller, flight.err
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), context.Canceled) {
			return nil, kindCanceled.because("wait for a token review: %w", context.Cause(ctx))
		}
		return nil, kindReviewFailed.because("wait for a token review: %w", context.Cause(ctx))
	}
}

// concerned is nil when the caller claims to be in our cluster.
func (r *Reviewer) concerned(c Credentials) error {
	if c.Cluster != "" && c.Cluster != r.clusterID && !slices.Contains(r.aliases, c.Cluster) {
		if r.remotes {
			return errNotConcerned
		}
		return kindUnknownCluster.because("cluster %q is not known; known are %q and aliases %q", c.Cluster, r.clusterID, r.aliases)
	}
	return nil
}

// known is what the caches say of a token.
func (r *Reviewer) known(key tokenKey) (caller *Caller, known bool, err error) {
	if caller, ok := r.accepted.Get(key); ok {
		r.metrics.cache.WithLabelValues("accepted").Inc()
		return caller.(*Caller), true, nil
	}
	if err, ok := r.rejected.Get(key); ok {
		r.metrics.cache.WithLabelValues("rejected").Inc()
		return nil, true, err.(error)
	}
	return nil, false, nil
}

func (r *Reviewer) key(token string) tokenKey {
	return sha256.Sum256([]byte(r.clusterID + "\x00" + strings.Join(r.cfg.Audiences, "\x00") + "\x00\x00" + token))
}

// review asks the API server, and keeps its answer.
func (r *Reviewer) review(ctx context.Context, key tokenKey, c Credentials) (*Caller, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.ReviewTimeout.Or(0))
	defer cancel()
	release, err := r.queue.acquire(ctx, c.Address, c.Address)
	if err != nil {
		return nil, kindOverloaded.because("wait for a token review: %w", err)
	}
	defer release()

	review := authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: c.Token, Audiences: r.cfg.Audiences}}
	if err := r.reviews.Create(ctx, &review); err != nil {
		r.metrics.reviews.WithLabelValues("error").Inc()
		return nil, kindReviewFailed.because("create TokenReview: %w", err)
	}
	caller, err := r.judge(&review.Status)
	if err != nil {
		r.metrics.reviews.WithLabelValues("rejected").Inc()
		r.rejected.Add(key, err, r.cfg.CacheRejected.Or(0))
		return nil, err
	}
	r.metrics.reviews.WithLabelValues("accepted").Inc()
	if keep := cacheTime(c.Token, r.cfg.CacheAccepted.Or(0), time.Now()); keep > 0 {
		r.accepted.Add(key, caller, keep)
	}
	return caller, nil
}

// Extra keys that the API server puts into the review of a service account token.
const (
	extraPodName      = "authentication.kubernetes.io/pod-name"
	extraPodUID       = "authentication.kubernetes.io/pod-uid"
	extraNodeName     = "authentication.kubernetes.io/node-name"
	extraCredentialID = "authentication.kubernetes.io/credential-id"
)

// judge reads the caller from a review, or says why the token doesn't make one.
func (r *Reviewer) judge(status *authenticationv1.TokenReviewStatus) (*Caller, error) {
	switch {
	case !status.Authenticated:
		return nil, kindTokenRejected.because("the API server rejects the token: %s", status.Error)
	case !slices.ContainsFunc(status.Audiences, func(a string) bool { return slices.Contains(r.cfg.Audiences, a) }):
		return nil, kindTokenAudience.because("the token is for audiences %q, it must be for one of %q", status.Audiences, r.cfg.Audiences)
	case !slices.Contains(status.User.Groups, "system:serviceaccounts"):
		return nil, kindNotServiceAcct.because("user %q is not a service account", status.User.Username)
	}
	parts := strings.Split(status.User.Username, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" || parts[2] == "" || parts[3] == "" {
		return nil, kindNotServiceAcct.because("user %q is not a service account", status.User.Username)
	}
	caller, err := r.caller(parts[2], parts[3])
	if err != nil {
		return nil, err
	}
	extra := func(key string) string {
		if values := status.User.Extra[key]; len(values) == 1 {
			return values[0]
		}
		return ""
	}
	caller.ServiceAccountUID = status.User.UID
	caller.PodName, caller.PodUID, caller.NodeName = extra(extraPodName), extra(extraPodUID), extra(extraNodeName)
	caller.CredentialID = extra(extraCredentialID)
	return caller, nil
}

// caller is a service account of our cluster.
func (r *Reviewer) caller(namespace, account string) (*Caller, error) {
	id, err := spiffeid.FromSegments(r.trustDomain, "ns", namespace, "sa", account) // R17
	if err != nil {
		return nil, kindNotServiceAcct.because("service account %q of namespace %q makes no SPIFFE ID: %w", account, namespace, err)
	}
	return &Caller{ID: id, Namespace: namespace, ServiceAccount: account, Cluster: r.clusterID}, nil
}

// cacheTime is how long an accepted token may be kept at now: most, but never past its own expiry.
// A token whose expiry can't be read isn't kept.
func cacheTime(token string, most time.Duration, now time.Time) time.Duration {
	expiry, err := tokenExpiry(token)
	if errors.Is(err, errNoExpiry) {
		return most
	}
	if err != nil {
		return 0
	}
	return min(most, expiry.Sub(now))
}

// errNoExpiry is said of the legacy tokens that live in Secrets.
var errNoExpiry = errors.New("the token has no expiry")

func tokenExpiry(token string) (time.Time, error) {
	payload, err := claims(token)
	if err != nil {
		return time.Time{}, fmt.Errorf("decode token payload: %w", err)
	}
	var body struct {
		Expiry *float64 `json:"exp"` // NumericDate, seconds (RFC 7519 §2)
	}
	if err := json.Unmarshal(payload, &body); err != nil {
		return time.Time{}, fmt.Errorf("decode token payload: %w", err)
	}
	if body.Expiry == nil {
		return time.Time{}, errNoExpiry
	}
	// The whole second, which is the earlier moment; beyond what time can hold there is no token.
	if *body.Expiry < 0 || *body.Expiry > 1<<40 {
		return time.Time{}, fmt.Errorf("token expires at %g", *body.Expiry)
	}
	return time.Unix(int64(*body.Expiry), 0), nil
}
