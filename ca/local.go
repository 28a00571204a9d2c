package ca

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	kjson "sigs.k8s.io/json"

	"github.com/signet-ca/signet/ca/presence"
)

// Objects are those of the cluster that tokens depend on, as a watch tells of them; [presence.Index] is one. Safe for
// concurrent use; nothing of it waits.
type Objects interface {
	ServiceAccount(namespace, name string) (presence.Object, bool)
	Pod(namespace, name string) (presence.Pod, bool)
	Node(name string) (presence.Object, bool)
	// StateOf is how far the answers about a kind can be relied on.
	StateOf(kind presence.Kind, now time.Time) presence.State
}

// Local authenticates service account tokens without asking the API server, where nothing about them is unusual: signed
// by a key that the API server publishes, of its issuer, for our audience, in time, of a service account, and for a pod
// or a node, that are there with the UIDs that the token says. Whatever is otherwise is for TokenReview, of which an
// error never becomes acceptance; only what the API server can't but reject too is refused at once. Safe for concurrent
// use.
type Local struct {
	reviewer *Reviewer
	keys     *Keys
	objects  Objects
	maxStale time.Duration
	results  *prometheus.CounterVec
}

// NewLocal makes one that has unusual tokens reviewed by reviewer.
func NewLocal(cfg Config, reviewer *Reviewer, keys *Keys, objects Objects, reg prometheus.Registerer) *Local {
	return &Local{
		reviewer: reviewer,
		keys:     keys,
		objects:  objects,
		maxStale: cfg.Token.withDefaults().MaxStale.Or(0),
		results:  newLocalMetrics(reg),
	}
}

// doubt is why a token is reviewed. Its text is one of a closed set of words, a label of metrics.
type doubt string

func (d doubt) Error() string { return "the token has to be reviewed: " + string(d) }

const (
	doubtNoKeys     doubt = "no_keys"     // those of the API server aren't known, or too old
	doubtForm       doubt = "form"        // of the JWT or its header
	doubtUnknownKey doubt = "unknown_key" // none of the API server's
	doubtAlgorithm  doubt = "algorithm"   // not that of the key
	doubtClaims     doubt = "claims"      // others, or of another form, than bound tokens have; those of a Secret among them
	doubtIssuer     doubt = "issuer"      // signed by the API server, in another name
	doubtTime       doubt = "time"        // within the tolerance for clocks
	doubtIndex      doubt = "index"       // the cluster isn't known, or for too long not
	doubtAbsent     doubt = "absent"      // an object that isn't known
	doubtUID        doubt = "uid"         // an object that is known by another UID
	doubtDeleted    doubt = "deleted"     // an object that is being deleted
)

// Authenticate implements [Authenticator].
func (l *Local) Authenticate(ctx context.Context, c Credentials) (*Caller, error) {
	if err := l.reviewer.concerned(c); err != nil {
		return nil, err
	}
	caller, err := l.judge(c.Token, time.Now())
	if why, ok := errors.AsType[doubt](err); ok {
		l.results.WithLabelValues("reviewed", string(why)).Inc()
		return l.reviewer.Authenticate(ctx, c)
	}
	if err != nil {
		l.results.WithLabelValues("rejected", refuse(err).reason).Inc()
		return nil, err
	}
	l.results.WithLabelValues("accepted", "").Inc()
	return caller, nil
}

// judge decides about a token at now. The error is a refusal, which TokenReview would come to as well, or a doubt.
func (l *Local) judge(token string, now time.Time) (*Caller, error) {
	keys := l.keys.current.Load()
	if keys == nil || now.Sub(keys.asked) > l.maxStale {
		return nil, doubtNoKeys
	}
	payload, err := keys.verify(token)
	if err != nil {
		if errors.Is(err, doubtUnknownKey) {
			l.keys.want()
		}
		return nil, err
	}
	claims, err := parseBoundClaims(payload)
	if err != nil {
		return nil, err
	}
	switch {
	case claims.Issuer != keys.issuer:
		return nil, doubtIssuer // an API server may accept several
	case !slices.ContainsFunc(claims.Audience, func(a string) bool { return slices.Contains(l.reviewer.cfg.Audiences, a) }):
		return nil, kindTokenAudience.because("the token is for audiences %q, it must be for one of %q", claims.Audience, l.reviewer.cfg.Audiences)
	}
	if err := claims.checkTime(now); err != nil {
		return nil, err
	}
	if err := l.checkPresence(&claims.Kubernetes, now); err != nil {
		return nil, err
	}
	caller, err := l.reviewer.caller(claims.Kubernetes.Namespace, claims.Kubernetes.ServiceAccount.Name)
	if err != nil {
		return nil, err
	}
	caller.ServiceAccountUID = claims.Kubernetes.ServiceAccount.UID
	if pod := claims.Kubernetes.Pod; pod != nil {
		caller.PodName, caller.PodUID = pod.Name, pod.UID
	}
	if node := claims.Kubernetes.Node; node != nil {
		caller.NodeName = node.Name
	}
	if claims.ID != "" {
		caller.CredentialID = "JTI=" + claims.ID
	}
	return caller, nil
}

// verify is the payload of a token whose signature is good. The token is of the compact serialisation (RFC 7515 §7.1),
// its base64url canonical, its header what API servers write: kid, alg, and perhaps typ. A bad signature under a key of
// that ID is refused for good: API servers look up keys by the same ID.
func (k *keySet) verify(token string) ([]byte, error) {
	if !shapedLikeJWT(token) {
		return nil, doubtForm
	}
	parts := strings.Split(token, ".")
	var decoded [3][]byte
	for n, part := range parts {
		var err error
		if decoded[n], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			return nil, doubtForm
		}
	}
	var header struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
		Type      string `json:"typ"`
	}
	if !decodeExactly(decoded[0], &header) || header.Type != "" && header.Type != "JWT" {
		return nil, doubtForm
	}
	key, ok := k.keys[header.KeyID]
	switch {
	case !ok:
		return nil, doubtUnknownKey
	case header.Algorithm != string(key.algorithm):
		return nil, doubtAlgorithm
	}
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{key.algorithm})
	if err != nil {
		return nil, doubtForm
	}
	payload, err := signed.Verify(key.public)
	if errors.Is(err, jose.ErrCryptoFailure) {
		return nil, kindTokenRejected.because("the signature is not of the API server's key %q", header.KeyID)
	}
	if err != nil {
		return nil, doubtForm
	}
	return payload, nil
}

// boundClaims are those that API servers put into the tokens that they give out on request, for whatever they are bound
// to but Secrets and webhook configurations.
type boundClaims struct {
	Issuer     string           `json:"iss"`
	Subject    string           `json:"sub"`
	Audience   []string         `json:"aud"`
	Expiry     *int64           `json:"exp"` // Unix time, as the others
	NotBefore  *int64           `json:"nbf"`
	IssuedAt   *int64           `json:"iat"`
	ID         string           `json:"jti"`
	Kubernetes kubernetesClaims `json:"kubernetes.io"`
}

type kubernetesClaims struct {
	Namespace      string     `json:"namespace"`
	ServiceAccount objectRef  `json:"serviceaccount"`
	Pod            *objectRef `json:"pod"`
	Node           *objectRef `json:"node"`
	WarnAfter      *int64     `json:"warnafter"` // when the kubelet should have fetched another; says nothing here
}

type objectRef struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

func (r *objectRef) whole() bool { return r == nil || r.Name != "" && r.UID != "" }

// parseBoundClaims reads a payload that has these claims, each once, and no others. A null in the list of audiences would
// be an empty one here, and is an error for API servers. The node of a pod has no UID where it wasn't there.
func parseBoundClaims(payload []byte) (*boundClaims, error) {
	var c boundClaims
	if !decodeExactly(payload, &c) {
		return nil, doubtClaims
	}
	k := &c.Kubernetes
	switch {
	case len(c.Audience) == 0 || slices.Contains(c.Audience, "") || c.Expiry == nil || c.NotBefore == nil || c.IssuedAt == nil,
		k.Namespace == "" || !k.ServiceAccount.whole() || !k.Pod.whole() || k.Pod == nil && !k.Node.whole(),
		c.Subject != "system:serviceaccount:"+k.Namespace+":"+k.ServiceAccount.Name:
		return nil, doubtClaims
	}
	return &c, nil
}

// decodeExactly decodes one JSON value whose fields are into's, by their exact names and none twice.
func decodeExactly(data []byte, into any) bool {
	problems, err := kjson.UnmarshalStrict(data, into)
	return err == nil && len(problems) == 0
}

// clockTolerance is what API servers allow for clocks that differ, and what ours may differ from theirs.
const clockTolerance = time.Minute

// checkTime accepts a token without any tolerance, and refuses it for good when no tolerance helps.
func (c *boundClaims) checkTime(now time.Time) error {
	expiry := time.Unix(*c.Expiry, 0)
	switch {
	case now.Add(-2 * clockTolerance).After(expiry):
		return kindTokenRejected.because("the token expired at %s", expiry.UTC().Format(time.RFC3339))
	case now.After(expiry), now.Before(time.Unix(*c.NotBefore, 0)), now.Before(time.Unix(*c.IssuedAt, 0)):
		return doubtTime
	}
	return nil
}

// checkPresence says whether all is there that a token depends on. As for API servers, the node of a token that is bound
// to a pod is only told of.
func (l *Local) checkPresence(k *kubernetesClaims, now time.Time) error {
	account, ok := l.objects.ServiceAccount(k.Namespace, k.ServiceAccount.Name)
	if err := l.checkObject(presence.ServiceAccounts, ok, account, k.ServiceAccount.UID, now); err != nil {
		return err
	}
	switch {
	case k.Pod != nil:
		pod, ok := l.objects.Pod(k.Namespace, k.Pod.Name)
		return l.checkObject(presence.Pods, ok, presence.Object{UID: pod.UID, DeletedAt: pod.DeletedAt}, k.Pod.UID, now)
	case k.Node != nil:
		node, ok := l.objects.Node(k.Node.Name)
		return l.checkObject(presence.Nodes, ok, node, k.Node.UID, now)
	}
	return nil
}

// checkObject compares an object with what a token says of it. API servers accept one for another minute after its
// deletion timestamp; that minute is theirs.
func (l *Local) checkObject(kind presence.Kind, found bool, is presence.Object, uid string, now time.Time) error {
	switch state := l.objects.StateOf(kind, now); {
	case !state.Listed || now.Sub(state.Heard) > l.maxStale:
		return doubtIndex
	case !found:
		return doubtAbsent
	case is.UID != uid:
		return doubtUID
	case !is.DeletedAt.IsZero() && now.After(is.DeletedAt):
		return doubtDeleted
	}
	return nil
}
