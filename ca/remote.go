package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/ca/clusters"
	"github.com/signet-ca/signet/ca/presence"
)

// Remotes are the clusters beside our own whose callers are served (R18). Each has its own reviews, with their queue,
// caches and bounds, and its own index of pods, so that an API server that is away keeps nobody waiting but its own
// callers. It is an [Authenticator] of tokens for callers that say they are in one of these clusters. Safe for concurrent
// use.
type Remotes struct {
	cfg     Config
	secrets *clusters.Secrets
	names   map[string]string // the ID of a cluster that is allowed, by that and its aliases; never changed
	reg     prometheus.Registerer
	log     *slog.Logger
	refused func(clusters.Refused)

	current atomic.Pointer[remoteState] // nil until all Secrets were seen
}

// remoteState is what is served at one moment. It is never changed.
type remoteState struct {
	remotes map[string]*remote
	refused []clusters.Refused
}

// remote is one connection to a cluster.
type remote struct {
	connection clusters.Connection
	reviewer   *Reviewer
	exists     *presence.Index // nil where nobody may ask for others
	client     client.Client
	http       *http.Client
	metrics    *prometheus.Registry
	stop       context.CancelFunc
	doubted    chan struct{} // holds one when a review has failed
	health     atomic.Pointer[remoteHealth]
}

// remoteHealth is what the last look at an API server gave.
type remoteHealth struct {
	since time.Time // the result is the same
	err   error
}

// Times of the looks whether an API server answers and lets us review tokens.
const (
	remoteLookEvery   = 30 * time.Second
	remoteLookAgain   = 3 * time.Second // after one that failed, and at the least
	remoteLookTimeout = 5 * time.Second
)

// maxRemoteReviewsWaiting bounds those who wait for reviews of all remote clusters together.
const maxRemoteReviewsWaiting = maxReviewsWaiting / 2

// NewRemotes makes those that cfg allows; config is for our own API server, where the Secrets are. Refused is told once
// what of a Secret isn't used; it must not wait.
func NewRemotes(cfg Config, config *rest.Config, refused func(clusters.Refused), log *slog.Logger, reg prometheus.Registerer) (*Remotes, error) {
	secrets, err := clusters.NewSecrets(config, cfg.RemoteClusters, cfg.ownNames(), log)
	if err != nil {
		return nil, err
	}
	r := &Remotes{cfg: cfg, secrets: secrets, names: make(map[string]string), reg: reg, log: log, refused: refused}
	for _, allowed := range cfg.RemoteClusters.Allowed {
		for _, name := range append([]string{allowed.ID}, allowed.Aliases...) {
			r.names[name] = allowed.ID
		}
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "remote_cluster_up", Help: "1 while the API server of a remote cluster answers and lets Signet review tokens, else 0.",
			ConstLabels: prometheus.Labels{"cluster": allowed.ID},
		}, func() float64 {
			if found := r.find(allowed.ID); found != nil && found.up() {
				return 1
			}
			return 0
		}))
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "remote_secrets_refused", Help: "Kubeconfigs in Secrets of remote clusters that are not used, for the reasons in the log.",
	}, func() float64 {
		if current := r.current.Load(); current != nil {
			return float64(len(current.refused))
		}
		return 0
	}))
	return r, nil
}

// NeedLeaderElection says that every replica serves them.
func (r *Remotes) NeedLeaderElection() bool { return false }

// Start serves the clusters that Secrets lead to until ctx ends and everything has stopped. One whose Secret changes is
// replaced, which requests under way don't notice; one whose Secret is gone is not served any more.
func (r *Remotes) Start(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = r.secrets.Start(ctx) }) // never an error
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.secrets.Changed():
			r.apply(ctx, &running)
		}
	}
}

// apply puts into force what the Secrets say.
func (r *Remotes) apply(ctx context.Context, running *sync.WaitGroup) {
	says := r.secrets.State()
	if !says.Listed {
		return
	}
	before := r.current.Load()
	if before == nil {
		before = &remoteState{}
	}
	after := &remoteState{remotes: make(map[string]*remote), refused: says.Refused}
	for id, connection := range says.Connections {
		if old := before.remotes[id]; old != nil && old.connection.Same(connection) {
			after.remotes[id] = old
			continue
		}
		made, err := r.connect(connection)
		if err != nil {
			about := corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: r.cfg.RemoteClusters.Namespace, Name: connection.Secret}
			after.refused = append(after.refused, clusters.Refused{Secret: about, ID: id, Reason: err.Error()})
			continue
		}
		after.remotes[id] = made
	}
	for id, old := range before.remotes {
		if after.remotes[id] != old {
			r.reg.Unregister(old.metrics)
		}
	}
	r.current.Store(after)
	for _, id := range slices.Sorted(maps.Keys(after.remotes)) {
		made := after.remotes[id]
		if before.remotes[id] == made {
			continue
		}
		r.reg.MustRegister(made.metrics)
		serving, stop := context.WithCancel(ctx)
		made.stop = stop
		running.Go(func() { made.look(serving, r.log) })
		if made.exists != nil {
			running.Go(func() { _ = made.exists.Start(serving) }) // never an error
		}
		r.log.Info("remote cluster", "cluster", id, "secret", made.connection.Secret, "server", made.connection.Config.Host)
	}
	for id, old := range before.remotes {
		if after.remotes[id] != old {
			// Reviews under way end by themselves.
			old.stop()
			utilnet.CloseIdleConnectionsFor(old.http.Transport)
			if after.remotes[id] == nil {
				r.log.Info("remote cluster is served no more", "cluster", id, "secret", old.connection.Secret)
			}
		}
	}
	for _, refused := range after.refused {
		if !slices.Contains(before.refused, refused) {
			r.log.Warn("what a Secret says of a remote cluster is refused", "namespace", refused.Secret.Namespace, "secret", refused.Secret.Name,
				"cluster", shorten(refused.ID), "reason", refused.Reason)
			r.refused(refused)
		}
	}
}

// connect makes what is needed to serve a cluster. It neither dials nor starts anything.
func (r *Remotes) connect(to clusters.Connection) (*remote, error) {
	made := &remote{connection: to, metrics: prometheus.NewRegistry(), doubted: make(chan struct{}, 1)}
	var err error
	if made.http, err = rest.HTTPClientFor(to.Config); err != nil {
		return nil, fmt.Errorf("make client for cluster %s: %w", to.ID, err)
	}
	if made.client, err = newReviewClient(to.Config, made.http); err != nil {
		return nil, fmt.Errorf("make client for cluster %s: %w", to.ID, err)
	}
	cfg := r.cfg
	cfg.ClusterID, cfg.ClusterAliases, cfg.RemoteClusters = to.ID, nil, clusters.Config{}
	for name, id := range r.names {
		if id == to.ID && name != id {
			cfg.ClusterAliases = append(cfg.ClusterAliases, name)
		}
	}
	own := prometheus.WrapRegistererWith(prometheus.Labels{"cluster": to.ID}, prometheus.WrapRegistererWithPrefix("remote_", made.metrics))
	made.reviewer = newReviewer(cfg, made.client, max(1, maxRemoteReviewsWaiting/len(r.cfg.RemoteClusters.Allowed)), own)
	if r.cfg.Nodes.Enabled() {
		index := presence.Config{Cluster: to.ID, Kinds: []presence.Kind{presence.Pods}}
		if made.exists, err = presence.New(to.Config, index, r.log, made.metrics); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// newReviewClient makes a client that knows the kinds of reviews, so that nothing has to be discovered.
func newReviewClient(config *rest.Config, http *http.Client) (client.Client, error) {
	scheme, mapper := runtime.NewScheme(), meta.NewDefaultRESTMapper(nil)
	if err := errors.Join(authenticationv1.AddToScheme(scheme), authorizationv1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("register API types: %w", err)
	}
	mapper.Add(authenticationv1.SchemeGroupVersion.WithKind("TokenReview"), meta.RESTScopeRoot)
	mapper.Add(authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"), meta.RESTScopeRoot)
	return client.New(config, client.Options{HTTPClient: http, Scheme: scheme, Mapper: mapper})
}

// look asks the API server again and again whether tokens can be reviewed, until ctx ends.
func (m *remote) look(ctx context.Context, log *slog.Logger) {
	for {
		err := m.ask(ctx)
		if ctx.Err() != nil {
			return
		}
		was := m.health.Load()
		now := &remoteHealth{since: time.Now(), err: err}
		if was != nil && (was.err == nil) == (err == nil) {
			now.since = was.since
		} else if err != nil {
			log.Warn("a remote cluster's callers can't be served", "cluster", m.connection.ID, "err", err)
		} else {
			log.Info("a remote cluster's callers can be served", "cluster", m.connection.ID)
		}
		m.health.Store(now)
		if !sleep(ctx, remoteLookAgain, nil) {
			return
		}
		if err == nil && !sleep(ctx, remoteLookEvery-remoteLookAgain, m.doubted) {
			return
		}
	}
}

// ask asks once.
func (m *remote) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, remoteLookTimeout)
	defer cancel()
	review := authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Group: authenticationv1.GroupName, Resource: "tokenreviews", Verb: "create"},
	}}
	if err := m.client.Create(ctx, &review); err != nil {
		return fmt.Errorf("ask the API server of cluster %s for our rights: %w", m.connection.ID, err)
	}
	if !review.Status.Allowed {
		return fmt.Errorf("the user of cluster %s may not create tokenreviews.authentication.k8s.io; grant it with a ClusterRole there", m.connection.ID)
	}
	return nil
}

func (m *remote) up() bool {
	health := m.health.Load()
	return health != nil && health.err == nil
}

// describe says for people how the cluster is.
func (m *remote) describe(now time.Time) string {
	health := m.health.Load()
	var text string
	switch {
	case health == nil:
		text = "it is being asked"
	case health.err != nil:
		text = fmt.Sprintf("its callers can't be served for %s: %v", now.Sub(health.since).Round(time.Second), health.err)
	default:
		text = "its callers are served"
	}
	if m.exists != nil {
		text += "; " + strings.Join(m.exists.Describe(now), "; ")
	}
	return text
}

// find is the connection to a cluster; nil where there is none.
func (r *Remotes) find(id string) *remote {
	if current := r.current.Load(); current != nil {
		return current.remotes[id]
	}
	return nil
}

// Authenticate implements [Authenticator].
func (r *Remotes) Authenticate(ctx context.Context, c Credentials) (*Caller, error) {
	if c.Cluster == "" || slices.Contains(r.cfg.ownNames(), c.Cluster) {
		return nil, errNotConcerned
	}
	id, allowed := r.names[c.Cluster]
	if allowed && r.current.Load() == nil {
		return nil, kindReviewFailed.because("the Secrets of remote clusters are not known yet")
	}
	found := r.find(id)
	if found == nil {
		return nil, kindUnknownCluster.because("cluster %q is not known; known are %q", shorten(c.Cluster), r.known())
	}
	for {
		caller, err := found.authenticate(ctx, c)
		now := r.find(id)
		switch {
		case now == nil:
			return nil, kindUnknownCluster.because("cluster %q was removed while a token of it was reviewed", id)
		case now == found || ctx.Err() != nil:
			return caller, err
		}
		found = now // what was asked meanwhile may be no API server of the cluster any more
	}
}

// authenticate has the cluster's API server review a token, and notes where it didn't.
func (m *remote) authenticate(ctx context.Context, c Credentials) (*Caller, error) {
	caller, err := m.reviewer.Authenticate(ctx, c)
	if err != nil && refuse(err).kind == kindReviewFailed {
		select {
		case m.doubted <- struct{}{}:
		default: // it is looked at soon
		}
	}
	return caller, err
}

// known are the names of all clusters that are served.
func (r *Remotes) known() []string {
	names := r.cfg.ownNames()
	for _, name := range slices.Sorted(maps.Keys(r.names)) {
		if r.find(r.names[name]) != nil {
			names = append(names, name)
		}
	}
	return names
}

// Presence is what exists in a remote cluster, nil where nothing is known of it.
func (r *Remotes) Presence(id string) Presence {
	if found := r.find(id); found != nil && found.exists != nil {
		return found.exists
	}
	return nil
}

// Describe says for people how each cluster is that is allowed, and what is refused.
func (r *Remotes) Describe(now time.Time) []string {
	var lines []string
	if err := r.secrets.Err(); err != nil {
		lines = append(lines, fmt.Sprintf("the Secrets in namespace %s can't be followed: %v", r.cfg.RemoteClusters.Namespace, err))
	}
	current := r.current.Load()
	if current == nil {
		return append(lines, fmt.Sprintf("the Secrets in namespace %s are being listed", r.cfg.RemoteClusters.Namespace))
	}
	for _, allowed := range r.cfg.RemoteClusters.Allowed {
		text := "no Secret leads to it"
		if found := current.remotes[allowed.ID]; found != nil {
			text = found.describe(now)
		}
		lines = append(lines, allowed.ID+": "+text)
	}
	for _, refused := range current.refused[:min(len(current.refused), 20)] {
		lines = append(lines, "refused: "+refused.String())
	}
	return lines
}
