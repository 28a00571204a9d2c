// Package clusters knows how the API servers of the clusters beside our own are reached: from Secrets with kubeconfigs, as
// Istio has them, of which only those are used that the configuration allows.
//
// A Secret has the label istio/multiCluster=true; each key of its data is the ID of a cluster, and the value its kubeconfig.
// What is refused of a Secret has no effect, and is told with the reason ([Refused]). Where several lead to one cluster, the
// oldest that isn't refused does.
package clusters

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/signet-ca/signet/watches"
)

// Label is what the Secrets have, with value true.
const Label = "istio/multiCluster"

const (
	// maxSecrets bounds the Secrets that are looked at, and maxKept what is kept of them, in bytes. Further ones are refused,
	// of which maxPassed are told of.
	maxSecrets = 512
	maxPassed  = 100
	maxKept    = 16 << 20
	// maxStrange bounds the keys of a Secret that are told of though no cluster of that name is allowed.
	maxStrange = 10
)

// Connection is how a cluster is reached.
type Connection struct {
	// ID of the cluster, and Secret the name of the Secret that leads to it.
	ID, Secret string
	// Config is for its API server. It must not be changed.
	Config *rest.Config

	sum [sha256.Size]byte // of the kubeconfig
}

// Same says whether two connections are made of the same kubeconfig.
func (c Connection) Same(other Connection) bool { return c.ID == other.ID && c.sum == other.sum }

// Refused is what isn't used of a Secret.
type Refused struct {
	// Secret is where it is.
	Secret corev1.ObjectReference
	// ID is the key, "" for all of the Secret.
	ID string
	// Reason says why; it has nothing secret in it.
	Reason string
}

func (r Refused) String() string {
	if r.ID == "" {
		return fmt.Sprintf("Secret %s/%s: %s", r.Secret.Namespace, r.Secret.Name, r.Reason)
	}
	return fmt.Sprintf("cluster %q in Secret %s/%s: %s", r.ID, r.Secret.Namespace, r.Secret.Name, r.Reason)
}

// State is what the Secrets say at one moment.
type State struct {
	// Listed says that all Secrets were seen once. While it is false there is nothing else.
	Listed bool
	// Connections are those to use, by the ID of the cluster.
	Connections map[string]Connection
	// Refused is what isn't used, in a fixed order.
	Refused []Refused
}

// Secrets follows the Secrets. Safe for concurrent use.
type Secrets struct {
	cfg     Config
	own     []string
	secrets typedcorev1.SecretInterface
	log     *slog.Logger
	changed chan struct{} // holds one when State has something new

	mu     sync.Mutex // guards the following
	kept   map[string]secret
	passed map[string]secret // those that there was no room for, maxPassed of them at most; nothing of their data
	bytes  int               // of what is kept
	listed bool
	err    error
}

// secret is what is kept of a Secret.
type secret struct {
	about   corev1.ObjectReference
	created time.Time
	data    map[string][]byte // of clusters that are allowed
	strange []string          // other keys, some of them
	bytes   int
	refused string // why nothing is kept; "" where it is
}

// NewSecrets makes one that asks the API server that config leads to. Own are the names of our own cluster.
func NewSecrets(config *rest.Config, cfg Config, own []string, log *slog.Logger) (*Secrets, error) {
	core, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for the Secrets of remote clusters: %w", err)
	}
	return newSecrets(core.Secrets(cfg.Namespace), cfg, own, log), nil
}

func newSecrets(secrets typedcorev1.SecretInterface, cfg Config, own []string, log *slog.Logger) *Secrets {
	return &Secrets{cfg: cfg, own: own, secrets: secrets, log: log, changed: make(chan struct{}, 1), kept: make(map[string]secret), passed: make(map[string]secret)}
}

// Start follows the Secrets until ctx ends.
func (s *Secrets) Start(ctx context.Context) error {
	only := func(options *metav1.ListOptions) { options.LabelSelector = Label + "=true" }
	cache.NewReflectorWithOptions(watches.ListWatch(
		func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			only(&options)
			return s.secrets.List(ctx, options)
		},
		func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			only(&options)
			return s.secrets.Watch(ctx, options)
		},
		s.note,
	), &corev1.Secret{}, s.store(), cache.ReflectorOptions{
		Name:    "Secrets of remote clusters",
		Backoff: watches.Backoff(),
	}).RunWithContext(ctx)
	return nil
}

// Changed has something whenever [Secrets.State] may say something new.
func (s *Secrets) Changed() <-chan struct{} { return s.changed }

func (s *Secrets) tell() {
	select {
	case s.changed <- struct{}{}:
	default: // told already
	}
}

// note takes note of how a request ended.
func (s *Secrets) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	began := err != nil && s.err == nil
	s.err = err
	s.mu.Unlock()
	if began {
		s.log.Warn("the Secrets of remote clusters can't be followed; it is tried again", "namespace", s.cfg.Namespace, "err", err)
	}
}

// State is what the Secrets say now.
func (s *Secrets) State() State {
	s.mu.Lock()
	state, secrets := State{Listed: s.listed}, slices.AppendSeq(slices.Collect(maps.Values(s.kept)), maps.Values(s.passed))
	s.mu.Unlock()
	if !state.Listed {
		return state
	}
	state.Connections, state.Refused = s.choose(secrets)
	return state
}

// Err says why the Secrets can't be followed at the moment, if so; what they said last stays in force.
func (s *Secrets) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// choose says which kubeconfigs are used, and what is refused.
func (s *Secrets) choose(secrets []secret) (map[string]Connection, []Refused) {
	// The oldest first. Nobody takes over a cluster by a newer Secret.
	slices.SortFunc(secrets, func(a, b secret) int {
		return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.about.Name, b.about.Name))
	})
	connections := make(map[string]Connection)
	var refused []Refused
	for _, secret := range secrets {
		refuse := func(id, format string, args ...any) {
			refused = append(refused, Refused{secret.about, id, fmt.Sprintf(format, args...)})
		}
		if secret.refused != "" {
			refuse("", "%s", secret.refused)
		}
		for _, id := range secret.strange {
			if slices.Contains(s.own, id) {
				refuse(id, "this is our own cluster, which no Secret may take over")
			} else {
				refuse(id, "no such cluster is allowed; ca.remoteClusters.allowed has %q", s.cfg.ids())
			}
		}
		for _, id := range slices.Sorted(maps.Keys(secret.data)) {
			if first, taken := connections[id]; taken {
				refuse(id, "Secret %s leads to it already", first.Secret)
				continue
			}
			at := slices.IndexFunc(s.cfg.Allowed, func(a Allowed) bool { return a.ID == id })
			config, err := readKubeconfig(secret.data[id], s.cfg.Allowed[at], s.cfg.AllowExec)
			if err != nil {
				refuse(id, "%v", err)
				continue
			}
			connections[id] = Connection{ID: id, Secret: secret.about.Name, Config: config, sum: sha256.Sum256(secret.data[id])}
		}
	}
	return connections, refused
}

// nothingOf is a Secret without anything of its data.
func nothingOf(o *corev1.Secret) secret {
	return secret{
		about:   corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: o.Namespace, Name: o.Name, UID: o.UID},
		created: o.CreationTimestamp.Time,
	}
}

// take is what is kept of a Secret.
func (s *Secrets) take(o *corev1.Secret) secret {
	taken := nothingOf(o)
	taken.data = make(map[string][]byte)
	for id, kubeconfig := range o.Data {
		allowed := slices.ContainsFunc(s.cfg.Allowed, func(a Allowed) bool { return a.ID == id })
		switch {
		case !allowed || slices.Contains(s.own, id):
			taken.strange = append(taken.strange, id)
		default:
			// One byte too many is enough to refuse it.
			taken.data[id] = slices.Clone(kubeconfig[:min(len(kubeconfig), maxKubeconfig+1)])
			taken.bytes += len(taken.data[id])
		}
	}
	slices.Sort(taken.strange)
	taken.strange = slices.Clone(taken.strange[:min(len(taken.strange), maxStrange)])
	return taken
}

// keep puts a Secret among those that are kept, as far as there is room. It is false where nothing but the log can tell
// that there was none. The caller holds mu.
func (s *Secrets) keep(o *corev1.Secret) (told bool) {
	s.drop(o.Name)
	if len(s.kept) >= maxSecrets {
		if len(s.passed) >= maxPassed {
			return false
		}
		passed := nothingOf(o)
		passed.refused = fmt.Sprintf("there are %d Secrets of remote clusters already; delete some, and write this one again", maxSecrets)
		s.passed[o.Name] = passed
		return true
	}
	taken := s.take(o)
	if s.bytes+taken.bytes > maxKept {
		taken.refused = fmt.Sprintf("all Secrets of remote clusters together have more than %d bytes", maxKept)
		taken.data, taken.bytes = nil, 0
	}
	s.kept[o.Name] = taken
	s.bytes += taken.bytes
	return true
}

// logPassed says what State doesn't.
func (s *Secrets) logPassed(o *corev1.Secret) {
	s.log.Warn("too many Secrets of remote clusters; one is passed over", "namespace", o.Namespace, "secret", o.Name, "at_most", maxSecrets)
}

// drop forgets a Secret. The caller holds mu.
func (s *Secrets) drop(name string) {
	s.bytes -= s.kept[name].bytes
	delete(s.kept, name)
	delete(s.passed, name)
}

// store is what a reflector fills.
type store struct{ *Secrets }

func (s *Secrets) store() store { return store{s} }

// Add takes note of a new Secret.
func (s store) Add(object any) error { return s.Update(object) }

// Update takes note of a Secret as it is now.
func (s store) Update(object any) error {
	if o, ok := object.(*corev1.Secret); ok {
		s.mu.Lock()
		told := s.keep(o)
		s.mu.Unlock()
		s.tell()
		if !told {
			s.logPassed(o)
		}
	}
	return nil
}

// Delete takes note that a Secret is gone, or has lost its label.
func (s store) Delete(object any) error {
	if o, ok := object.(*corev1.Secret); ok {
		s.mu.Lock()
		s.drop(o.Name)
		s.mu.Unlock()
		s.tell()
	}
	return nil
}

// Replace takes note of all Secrets that there are.
func (s store) Replace(objects []any, _ string) error {
	var untold []*corev1.Secret
	s.mu.Lock()
	clear(s.kept)
	clear(s.passed)
	s.bytes, s.listed = 0, true
	for _, object := range objects {
		if o, ok := object.(*corev1.Secret); ok && !s.keep(o) {
			untold = append(untold, o)
		}
	}
	s.mu.Unlock()
	s.tell()
	for _, o := range untold {
		s.logPassed(o)
	}
	return nil
}

// Resync has nothing to do.
func (s store) Resync() error { return nil }
