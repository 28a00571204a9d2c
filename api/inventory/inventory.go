// Package inventory joins the records of what was issued with the cluster: which certificate each service holds, until
// when, with which SANs, and which pods hold none though they should. It answers the questions of [api.Views].
//
// It promises: an answer is made from memory, of indexes that are kept up to date event by event, so that a page takes
// milliseconds however many pods there are; only what was superseded or has expired, the audit and a certificate's PEM
// are read from the [Records]. No Secret is read, but for those that gateways name in namespaces that are given for it. What an EndpointSlice says is believed only as far as the pod that it
// names exists in its namespace, with the UID and an address that it gives.
//
// Its words: a leaf is a certificate that was issued; its holder is the pod, the node's proxy or the address that asked
// for it; the latest leaf of a holder is live while the holder exists (a node's proxy as long as it captures a pod of the
// identity), and in use where the cluster tells that it does; an account is a service account, which has one identity; a
// member of a service is a pod behind it; a view is what is said of a service until its state changes.
package inventory

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/setting"
)

// Config is how the inventory judges and what it counts.
type Config struct {
	// Grace is how long a pod of the mesh may run before it is a problem that it holds no certificate. Default 2m.
	Grace setting.Duration `json:"grace,omitempty"`
	// IdentityMetric is the gauge that has a series for each service account.
	IdentityMetric IdentityMetricConfig `json:"identityMetric,omitempty"`
	// Gateways is how gateways and the certificates that they show are looked at.
	Gateways GatewaysConfig `json:"gateways,omitempty"`

	// TrustDomain is that of the identities that pods should have.
	TrustDomain spiffeid.TrustDomain `json:"-"`
	// Cluster is the ID of the cluster whose pods are seen. Holders in other clusters are taken to exist, and left out of
	// the metrics of leaves.
	Cluster string `json:"-"`
}

// IdentityMetricConfig bounds identity_certificate_not_after_timestamp_seconds.
type IdentityMetricConfig struct {
	// Disabled turns it off. Default false.
	Disabled bool `json:"disabled,omitempty"`
	// Max is how many service accounts it tells of at most, those whose certificates end first. Default 10000.
	Max int `json:"max,omitempty"`
}

// Validate reports what is wrong with c.
func (c Config) Validate(p setting.Problems) {
	p.Duration("grace", c.Grace, time.Second, 24*time.Hour)
	p.At("identityMetric").Count("max", c.IdentityMetric.Max, 1, 1_000_000)
	c.Gateways.Validate(p.At("gateways"))
}

const (
	defaultGrace      = 2 * time.Minute
	defaultIdentities = 10_000
	// maxLeaves bounds the leaves that are remembered; see the benchmark for their size.
	maxLeaves = 1_000_000
	// lookEvery is how far apart the looks are at what changes by time alone.
	lookEvery = 10 * time.Second
	// tellApart is how far apart two notices of change are.
	tellApart = 200 * time.Millisecond
	// coverageEvery is how old the records' coverage may be.
	coverageEvery = 2 * time.Second
	// recordsTimeout bounds a question to the records that no caller waits for.
	recordsTimeout = 10 * time.Second
	// loadPage is how many records are loaded at once.
	loadPage = 500
	// loadBack is how long ago a leaf may have expired that is still loaded, for the pods that didn't renew it.
	loadBack = 24 * time.Hour
)

// Inventory implements [api.Views]. Safe for concurrent use.
type Inventory struct {
	cfg     Config
	records Records
	trust   TrustSources
	log     *slog.Logger
	metrics *metrics

	index    *index
	notice   notice
	dirty    chan struct{} // holds one when the index has changed since the last notice
	watched  atomic.Pointer[[]watchedKind]
	coverage atomic.Pointer[api.Coverage] // the records'; nil until they have answered

	gateways     *gatewayIndex
	followers    []*follower   // set before Start
	secretReader *secretReader // set before Start; nil where no Secret is read

	loaded    atomic.Bool
	loadError atomic.Pointer[string]
}

var _ api.Views = (*Inventory)(nil)

// New makes an empty inventory; see [Inventory.Observe] and [Inventory.Start]. reg should add the prefix.
func New(cfg Config, records Records, trust TrustSources, log *slog.Logger, reg prometheus.Registerer) (*Inventory, error) {
	if cfg.TrustDomain.IsZero() {
		return nil, errors.New("the inventory needs a trust domain")
	}
	if cfg.IdentityMetric.Max == 0 {
		cfg.IdentityMetric.Max = defaultIdentities
	}
	i := &Inventory{
		cfg: cfg, records: records, trust: trust, log: log,
		index: newIndex(cfg.TrustDomain, cfg.Cluster, cfg.Grace.Or(defaultGrace), maxLeaves),
		dirty: make(chan struct{}, 1), gateways: newGatewayIndex(),
	}
	i.index.podsKnown.ask = func() bool { return i.synced("pods") }
	i.index.accountsKnown.ask = func() bool { return i.synced("serviceaccounts") }
	i.metrics = newMetrics(reg, i)
	return i, nil
}

// NeedLeaderElection says that every replica has an inventory.
func (i *Inventory) NeedLeaderElection() bool { return false }

// Start loads what was issued before, tells of changes and looks at what time changes, until ctx ends and it has
// stopped. Answers are given before and meanwhile; their coverage says what is missing.
func (i *Inventory) Start(ctx context.Context) error {
	var group sync.WaitGroup
	group.Go(func() { i.load(ctx) })
	group.Go(func() { i.follow(ctx) })
	group.Go(func() { i.followGateways(ctx) })
	group.Go(func() {
		for {
			i.askCoverage(ctx)
			if !pause(ctx, coverageEvery) {
				return
			}
		}
	})
	for {
		i.look(time.Now())
		if !pause(ctx, lookEvery) {
			break
		}
	}
	group.Wait()
	return nil
}

// Issued takes note of a certificate that was issued here, or by another replica, in whatever order. It is made for the
// signing path: no I/O, and no lock that is held for long. Of what it is given it needs the digests, the serial number,
// the identity, the holder and the times; what is relative to now is not read, nor is the PEM.
func (i *Inventory) Issued(c api.Certificate) {
	i.issued(&c, time.Now())
}

func (i *Inventory) issued(c *api.Certificate, now time.Time) {
	l, err := newLeaf(c)
	if err != nil {
		i.metrics.ignored.Inc()
		i.log.Warn("a certificate is left out of the inventory", "identity", c.Identity, "serial", c.Serial, "err", err)
		return
	}
	changed, dropped := i.index.setLeaf(l, name{c.Namespace, c.ServiceAccount}, now)
	if dropped > 0 {
		i.metrics.dropped.Add(float64(dropped))
	}
	if changed {
		i.touch()
	}
}

// touch says that an answer may have changed.
func (i *Inventory) touch() {
	select {
	case i.dirty <- struct{}{}:
	default:
	}
}

// Changed is closed when an answer may have changed, some hundred milliseconds after it has at the latest; at times it
// is closed for nothing. Take it before asking.
func (i *Inventory) Changed() <-chan struct{} { return i.notice.changed() }

// follow tells of changes, not too often, until ctx ends.
func (i *Inventory) follow(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-i.dirty:
		}
		i.notice.tell()
		if !pause(ctx, tellApart) {
			return
		}
	}
}

// look forgets what has ended with its holder, counts the problems of services and gateways, and tells that time has passed.
func (i *Inventory) look(now time.Time) {
	i.index.forget(now)
	i.metrics.setProblems(i.index.countProblems(now))
	i.metrics.setGateways(i.countGateways(now))
	i.touch()
}

// load reads the latest record of each holder, again until it has succeeded or ctx ends.
func (i *Inventory) load(ctx context.Context) {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		began := time.Now()
		n, err := i.loadOnce(ctx)
		if err == nil {
			i.loaded.Store(true)
			i.touch()
			i.log.Info("inventory loaded", "leaves", n, "seconds", time.Since(began).Seconds())
			return
		}
		if ctx.Err() != nil {
			return
		}
		text := err.Error()
		i.loadError.Store(&text)
		i.log.Warn("load the inventory", "err", err)
		if !pause(ctx, wait) {
			return
		}
	}
}

func (i *Inventory) loadOnce(ctx context.Context) (n int, err error) {
	now := time.Now()
	for next := ""; ; {
		page, err := i.latest(ctx, now.Add(-loadBack), next)
		if err != nil {
			return n, err
		}
		for at := range page.Items {
			i.issued(&page.Items[at], now)
		}
		n += len(page.Items)
		if next = page.Continue; next == "" {
			return n, nil
		}
	}
}

func (i *Inventory) latest(ctx context.Context, endsAfter time.Time, next string) (RecordPage, error) {
	ctx, cancel := context.WithTimeout(ctx, 6*recordsTimeout)
	defer cancel()
	return i.records.Latest(ctx, LatestQuery{EndsAfter: endsAfter, Limit: loadPage, Continue: next})
}

// pause waits, and says whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// notice tells those who wait that something has changed. The zero value is ready.
type notice struct {
	mu   sync.Mutex
	wait chan struct{} // closed by the next tell; nil while nobody waits
}

func (n *notice) changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.wait == nil {
		n.wait = make(chan struct{})
	}
	return n.wait
}

func (n *notice) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.wait != nil {
		close(n.wait)
		n.wait = nil
	}
}
