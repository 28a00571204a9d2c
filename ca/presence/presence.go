// Package presence knows what exists in one cluster: which pods there are, under which service account and on which node
// each runs, and which service accounts and nodes there are.
//
// It follows the API server by a list and a watch of each [Kind], and keeps of an object only what is needed here, so that
// 100,000 pods take about 25 MB. What it says is as old as its streams are: usually milliseconds. It isn't relied on any more
// ([Index.Synced]) when a stream has failed, or waited for the API server's answer, for 30 seconds, or has told nothing for
// three minutes; a connection without a sign of life is given up after 45 seconds. What the index doesn't have yet can be
// looked up at the API server itself ([Index.LookUpPod], [Index.LookUpRunsOn]), within a budget.
package presence

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// Kind is a kind of object that can be followed. Its text is the resource, which Signet must be allowed to list and watch in
// the whole cluster.
type Kind string

// The kinds.
const (
	Pods            Kind = "pods"
	ServiceAccounts Kind = "serviceaccounts"
	Nodes           Kind = "nodes"
)

// Config says what is followed.
type Config struct {
	// Cluster is the ID of the cluster, a label of the metrics. Indices that share a registry have different ones.
	Cluster string
	// Kinds are followed; of others nothing is known.
	Kinds []Kind
	// StaleAfter is how long the stream of a kind may fail, or wait for an answer, until the kind isn't synced any more.
	// Default 30s.
	StaleAfter time.Duration
}

const defaultStaleAfter = 30 * time.Second

// Pod is a pod as it was seen last.
type Pod struct {
	Namespace, Name string
	UID             string
	ServiceAccount  string
	// Node is "" while the pod isn't scheduled.
	Node string
	// Ended says that it has succeeded or failed; its object may stay for long.
	Ended bool
	// DeletedAt is when its deletion is due, as its deletionTimestamp says; zero where nobody has deleted it.
	DeletedAt time.Time
}

// Object is a service account or a node as it was seen last.
type Object struct {
	UID string
	// DeletedAt is as that of a [Pod].
	DeletedAt time.Time
}

// Index is what exists in one cluster. Nothing is known before [Index.Start]. Safe for concurrent use; no call but the
// look-ups at the API server waits for anything.
type Index struct {
	cfg      Config
	log      *slog.Logger
	pods     *podTable
	accounts *objectTable
	nodes    *objectTable
	streams  map[Kind]*stream // never changed
	live     *live
	metrics  *metrics
}

// New makes the index of the cluster that config leads to. It neither dials nor starts anything.
func New(config *rest.Config, cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Index, error) {
	if cfg.StaleAfter == 0 {
		cfg.StaleAfter = defaultStaleAfter
	}
	// Protobuf costs both ends a fifth of what JSON does.
	config = metadata.ConfigFor(config)
	config.QPS = -1 // what is sent at once is bounded here
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make client for what exists in cluster %s: %w", cfg.Cluster, err)
	}
	core, err := typedcorev1.NewForConfigAndClient(config, http)
	if err != nil {
		return nil, fmt.Errorf("make client for pods of cluster %s: %w", cfg.Cluster, err)
	}
	meta, err := metadata.NewForConfigAndClient(config, http)
	if err != nil {
		return nil, fmt.Errorf("make client for metadata of cluster %s: %w", cfg.Cluster, err)
	}
	x := &Index{
		cfg:      cfg,
		log:      log.With("cluster", cfg.Cluster),
		pods:     newPodTable(),
		accounts: newObjectTable(),
		nodes:    newObjectTable(),
		streams:  make(map[Kind]*stream),
	}
	for _, kind := range cfg.Kinds {
		switch kind {
		case Pods:
			x.streams[kind] = newPodStream(core.Pods(""), x.pods)
		case ServiceAccounts:
			x.streams[kind] = newObjectStream(kind, meta, x.accounts)
		case Nodes:
			x.streams[kind] = newObjectStream(kind, meta, x.nodes)
		default:
			return nil, fmt.Errorf("kind %q can't be followed", kind)
		}
	}
	x.metrics = newMetrics(reg, x)
	x.live = newLive(core, x.metrics)
	return x, nil
}

// NeedLeaderElection says that every replica follows.
func (x *Index) NeedLeaderElection() bool { return false }

// Start follows the cluster until ctx ends. It returns nil, once everything has stopped.
func (x *Index) Start(ctx context.Context) error {
	var running sync.WaitGroup
	for kind, s := range x.streams {
		running.Go(func() {
			s.run(ctx, fmt.Sprintf("%s of cluster %s", kind, x.cfg.Cluster), x.log.With("kind", string(kind)))
		})
	}
	running.Wait()
	return nil
}

// Synced says whether the answers about these kinds can be relied on, or those about all that are followed where none is
// named: everything has been listed, and the stream hasn't failed, waited or been silent for too long. A kind that isn't followed is
// never synced.
func (x *Index) Synced(kinds ...Kind) bool {
	if len(kinds) == 0 {
		kinds = x.cfg.Kinds
	}
	now := time.Now()
	return !slices.ContainsFunc(kinds, func(kind Kind) bool { return !x.StateOf(kind, now).Synced })
}

// State is how a kind is followed.
type State struct {
	// Synced is as [Index.Synced] says.
	Synced bool
	// Listed says that everything has been listed once.
	Listed bool
	// Heard is when the stream last told something. The API server sends a bookmark about every minute when there is
	// nothing else to tell.
	Heard time.Time
	// FailingSince is when the stream began to fail, and Err why; zero and nil while it doesn't.
	FailingSince time.Time
	Err          error
}

// StateOf is how a kind is followed, at now.
func (x *Index) StateOf(kind Kind, now time.Time) State {
	s := x.streams[kind]
	if s == nil {
		return State{}
	}
	return s.state(now, x.cfg.StaleAfter)
}

// Describe says for people how each kind is followed.
func (x *Index) Describe(now time.Time) []string {
	var lines []string
	for _, kind := range x.cfg.Kinds {
		lines = append(lines, x.StateOf(kind, now).describe(kind, x.count(kind), now))
	}
	return lines
}

func (s State) describe(kind Kind, count int, now time.Time) string {
	switch {
	case s.Err != nil:
		says := "still relied on"
		if !s.Synced {
			says = "not relied on"
		}
		return fmt.Sprintf("%d %s, %s; they can't be followed for %s: %v", count, kind, says, now.Sub(s.FailingSince).Round(time.Second), s.Err)
	case !s.Listed:
		return fmt.Sprintf("the %s are being listed", kind)
	case !s.Synced:
		return fmt.Sprintf("%d %s, not relied on; the API server has told nothing for %s", count, kind, now.Sub(s.Heard).Round(time.Second))
	}
	return fmt.Sprintf("%d %s are known", count, kind)
}

func (x *Index) count(kind Kind) int {
	switch kind {
	case Pods:
		return x.pods.count()
	case ServiceAccounts:
		return x.accounts.count()
	}
	return x.nodes.count()
}

// Pod is the pod of that name. False means that the index has none, which says something only while [Pods] are synced.
func (x *Index) Pod(namespace, name string) (Pod, bool) { return x.pods.get(namespace, name) }

// ServiceAccount is the service account of that name, as [Index.Pod] is the pod.
func (x *Index) ServiceAccount(namespace, name string) (Object, bool) {
	return x.accounts.get(namespace, name)
}

// Node is the node of that name, as [Index.Pod] is the pod.
func (x *Index) Node(name string) (Object, bool) { return x.nodes.get("", name) }

// RunsOn says whether a pod of the service account is on the node that hasn't ended. One that is being deleted counts until it
// is gone, one that isn't scheduled is on no node. False says something only while [Pods] are synced.
func (x *Index) RunsOn(node, namespace, serviceAccount string) bool {
	return x.pods.runsOn(node, namespace, serviceAccount)
}

// LookUpPod asks the API server for the pod of that name; an answer may be a second old. Asker is whom the question is
// charged to, such as a node: one that has used up its budget gets [ErrTooOften]. Any other error is that of the API
// server, and asking again may help. It needs the right to get pods.
func (x *Index) LookUpPod(ctx context.Context, asker, namespace, name string) (Pod, bool, error) {
	return x.live.pod(ctx, asker, namespace, name)
}

// LookUpRunsOn asks the API server what [Index.RunsOn] says, as [Index.LookUpPod] asks for a pod. It needs the right to list
// pods.
func (x *Index) LookUpRunsOn(ctx context.Context, asker, node, namespace, serviceAccount string) (bool, error) {
	return x.live.runsOn(ctx, asker, node, namespace, serviceAccount)
}
