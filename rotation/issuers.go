package rotation

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/signer"
)

// IssuersConfig says which issuers may sign beside the static one.
type IssuersConfig struct {
	// Runtime is a ConfigMap that names the issuer while Signet runs. While it exists it takes the place of
	// the static issuer.
	Runtime issuer.RuntimeConfig `json:"runtime,omitempty"`
	// Fallback are issuers that sign while the one above them isn't ready, or fails several identities; the
	// first that can. An issuer whose root isn't distributed is passed over. Optional.
	Fallback []issuer.Ref `json:"fallback,omitempty"`
}

// Validate reports what is wrong with c.
func (c IssuersConfig) Validate(p setting.Problems) {
	if runtime := c.Runtime; runtime.Name != "" && len(validation.IsDNS1123Subdomain(runtime.Name)) != 0 {
		p.Addf("runtime.name", "%q is not the name of a ConfigMap", runtime.Name)
	}
	if ns := c.Runtime.Namespace; ns != "" && len(validation.IsDNS1123Label(ns)) != 0 {
		p.Addf("runtime.namespace", "%q is not the name of a namespace", ns)
	}
	for n, ref := range c.Fallback {
		ref.Validate(p.At(fmt.Sprintf("fallback[%d]", n)))
	}
}

// Issuers decides which issuer signs, on this replica: the one that is wanted, or a fallback while that can't, and
// never one that leads to an anchor which isn't distributed. Safe for concurrent use.
type Issuers struct {
	static    issuer.Ref
	cfg       IssuersConfig
	firstUse  bool // roots of issuers are trusted on first use
	namespace string
	objects   cache.Cache
	runtime   *issuer.Watched // nil for none
	serving   *Serving        // whose request asks an issuer where it leads to
	issuers   *issuer.Store
	health    *issuer.Health
	log       *slog.Logger
	events    events.EventRecorder
	switches  prometheus.Counter
	probes    *prometheus.CounterVec

	kick   chan struct{}   // an issuer object has changed
	kinds  map[string]bool // of cert-manager's, that are watched; not changed after start
	chosen atomic.Bool     // an issuer was chosen, or there is none to choose

	mu         sync.Mutex // guards the following
	candidates []candidate
	trouble    error // with the runtime ConfigMap
	asking     map[issuer.Ref]bool
	asked      map[issuer.Ref]time.Time // when a probe ended last
	failed     map[issuer.Ref]error     // why the last probe failed
	failures   map[issuer.Ref]int       // probes in a row that have
}

// NewIssuers makes the chooser. runtime is the watched ConfigMap that names the issuer, nil for none.
func NewIssuers(static issuer.Ref, cfg IssuersConfig, firstUse bool, namespace string, objects cache.Cache, runtime *issuer.Watched, serving *Serving, health *issuer.Health, log *slog.Logger, reg prometheus.Registerer, recorder events.EventRecorder) *Issuers {
	i := &Issuers{
		static: static, cfg: cfg, firstUse: firstUse, namespace: namespace, objects: objects, runtime: runtime,
		serving: serving, issuers: serving.issuers, health: health, log: log, events: recorder,
		switches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "issuer_switches_total", Help: "How often another issuer was put in force on this replica.",
		}),
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "issuer_probes_total", Help: "Requests that were made only to learn which root an issuer leads to, by result: ok, failed.",
		}, []string{"result"}),
		kick:   make(chan struct{}, 1),
		kinds:  make(map[string]bool),
		asking: make(map[issuer.Ref]bool),
		asked:  make(map[issuer.Ref]time.Time),
		failed: make(map[issuer.Ref]error),

		failures: make(map[issuer.Ref]int),
	}
	for n, ref := range i.cfg.Fallback {
		i.cfg.Fallback[n] = ref.WithDefaults()
	}
	reg.MustRegister(i.switches, i.probes, newIssuerStates(i), newWantedState(i))
	return i
}

// Observe connects the informer of Issuers or of ClusterIssuers. Those of a kind that isn't observed can't be looked up.
func (i *Issuers) Observe(kind string, informer cache.Informer) error {
	i.kinds[kind] = true
	tell := func(any) {
		select {
		case i.kick <- struct{}{}:
		default:
		}
	}
	_, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: tell, UpdateFunc: func(_, obj any) { tell(obj) }, DeleteFunc: tell,
	})
	if err != nil {
		return fmt.Errorf("watch issuers: %w", err)
	}
	return nil
}

// NeedLeaderElection says that every replica chooses.
func (i *Issuers) NeedLeaderElection() bool { return false }

const (
	// lookAgain is how often the choice is looked at where nothing has changed: for circuits that have cooled
	// down, and anchors that are distributed by now.
	lookAgain = time.Second
	// probeAgain is how long after a probe the next one is made; firstAgain while nothing can be signed without it,
	// heldAgain for an issuer that is held back. Each failure in a row doubles the first, up to 8 minutes.
	probeAgain = 15 * time.Second
	firstAgain = 2 * time.Second
	heldAgain  = 5 * time.Minute
)

// Start chooses again whenever something has changed, until ctx ends.
func (i *Issuers) Start(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	if i.runtime != nil {
		running.Go(func() { i.runtime.Start(ctx) })
	}
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		// The channels are taken before what they tell of is looked at, so that no change is missed.
		var runtimeChanged <-chan struct{}
		if i.runtime != nil {
			_, _, runtimeChanged = i.runtime.Current()
		}
		healthChanged := i.health.Changed()
		snapshot, replaced := i.issuers.Watch()
		i.decide(ctx, snapshot, &running)
		select {
		case <-ctx.Done():
			return nil
		case <-runtimeChanged:
		case <-healthChanged:
		case <-replaced:
		case <-i.kick:
		case <-tick.C:
		}
	}
}

// decide looks at all candidates, puts the best in force, and asks those whose root isn't known.
func (i *Issuers) decide(ctx context.Context, snapshot *issuer.Snapshot, running *sync.WaitGroup) {
	now := time.Now()
	wanted, known := i.wanted()
	if !known { // the runtime ConfigMap isn't read yet
		if r := snapshot.Rollover; r != nil && snapshot.Ref.Name == "" && r.Issuer.Name != "" {
			i.issuers.Update(func(s *issuer.Snapshot) { s.Ref = r.Issuer }) // what was in force before
			i.chosen.Store(true)
		}
		return
	}
	candidates := i.look(ctx, snapshot, wanted, now)
	ref := snapshot.Ref
	if r := snapshot.Rollover; r != nil {
		if ref.Name == "" {
			ref = r.Issuer // what was in force before a restart, until the wanted one has shown where it leads to
		}
		ref = choose(ref, candidates)
	}
	i.tell(candidates)
	defer func() { i.chosen.Store(i.chosen.Load() || snapshot.Rollover != nil) }()
	for _, c := range candidates {
		if pause, ask := c.probePause(c.Ref == ref, snapshot.Anchors.Empty(), i.firstUse); ask {
			i.probe(ctx, c.Ref, pause, running)
		}
	}
	if ref == snapshot.Ref {
		return
	}
	i.issuers.Update(func(s *issuer.Snapshot) { s.Ref = ref })
	i.switches.Inc()
	if ref.Name == "" {
		i.log.Warn("no issuer is configured: nothing can be signed", "before", snapshot.Ref)
		return
	}
	why := "it is wanted"
	if len(candidates) > 0 && candidates[0].Ref != ref {
		why = "wanted is " + candidates[0].Ref.String() + ": " + candidates[0].why()
	}
	i.log.Info("another issuer signs from now on", "issuer", ref, "before", snapshot.Ref, "why", why)
	i.event(ref, corev1.EventTypeNormal, "InForce", "signs for the mesh from now on: %s", why)
}

// wanted is the issuer that should sign: that of the runtime ConfigMap, else the static one. Known is false until
// the ConfigMap was looked for.
func (i *Issuers) wanted() (ref issuer.Ref, known bool) {
	if i.runtime == nil {
		return i.static, true
	}
	object, synced, _ := i.runtime.Current()
	if !synced {
		return issuer.Ref{}, false
	}
	ref, found, err := issuer.ParseRuntime(object)
	i.mu.Lock()
	news := err != nil && (i.trouble == nil || i.trouble.Error() != err.Error())
	i.trouble = err
	i.mu.Unlock()
	switch {
	case err != nil:
		if news {
			i.log.Error("runtime issuer not taken over; the one in force stays", "err", err)
		}
		return i.issuers.Current().Ref, true
	case !found:
		return i.static, true
	}
	return ref, true
}

// candidate is an issuer that may be chosen, with what is known of it.
type candidate struct {
	issuer.Ref
	Condition issuer.Condition
	Open      bool   // the circuit is
	Retry     bool   // it was open for long enough to ask again
	Failures  string // why it is open
	Anchor    *x509.Certificate
	Held      string // why it may not sign under Anchor
	Asked     string // why a probe failed
	Tries     int    // probes in a row that have failed
}

// can says whether c can sign. An issuer that is in force already need not have shown its anchor yet.
func (c candidate) can(inForce bool) bool {
	ready := c.Condition.State == issuer.StateReady || c.Condition.State == issuer.StateUnknown
	return ready && !c.Open && c.Held == "" && (c.Anchor != nil || inForce)
}

// why says why c can't sign, for people.
func (c candidate) why() string {
	switch {
	case c.Condition.State == issuer.StateNotReady || c.Condition.State == issuer.StateMissing:
		return c.Condition.State + ": " + c.Condition.Reason
	case c.Open:
		return "its circuit is open: " + c.Failures
	case c.Held != "":
		return "held back: " + c.Held
	case c.Anchor == nil && c.Asked != "":
		return "its root is not known: " + c.Asked
	case c.Anchor == nil:
		return "its root is not known yet"
	}
	return c.Condition.State + ": " + c.Condition.Reason
}

// probePause says whether c is to be asked where it leads to, and how long after the last time. What is in force
// shows that by itself, but where its root is to be trusted on first use.
func (c candidate) probePause(inForce, noAnchors, firstUse bool) (pause time.Duration, ask bool) {
	switch {
	case c.Condition.State == issuer.StateMissing, c.Condition.State == issuer.StateNotReady:
		return 0, false
	case noAnchors:
		return firstAgain, firstUse && c.Anchor == nil
	case c.Open:
		return probeAgain, c.Retry
	case inForce:
		return 0, false
	case c.Anchor == nil:
		return probeAgain << min(c.Tries, 5), true
	}
	return heldAgain, c.Held != "" // it may lead elsewhere by now
}

// choose is the issuer to sign with: the first that can; else the one that is in force, so that a change for the worse
// is no change; else the first. It is a pure function. The last candidate may be one that is in force only until the
// wanted one can sign.
func choose(current issuer.Ref, candidates []candidate) issuer.Ref {
	if len(candidates) == 0 {
		return issuer.Ref{}
	}
	for _, c := range candidates {
		if c.can(c.Ref == current) {
			return c.Ref
		}
	}
	for _, c := range candidates {
		if c.Ref == current {
			return c.Ref
		}
	}
	return candidates[0].Ref
}

// look gathers the candidates in their order, and what is known of each. Without a wanted issuer there is none.
func (i *Issuers) look(ctx context.Context, snapshot *issuer.Snapshot, wanted issuer.Ref, now time.Time) []candidate {
	if wanted.Name == "" {
		return nil
	}
	refs := append([]issuer.Ref{wanted}, i.cfg.Fallback...)
	if snapshot.Ref.Name != "" {
		refs = append(refs, snapshot.Ref)
	}
	if r := snapshot.Rollover; r != nil && r.Issuer.Name != "" {
		refs = append(refs, r.Issuer) // after a restart: what was in force before
	}
	var list []candidate
	for _, ref := range refs {
		if slices.ContainsFunc(list, func(c candidate) bool { return c.Ref == ref }) {
			continue
		}
		c := candidate{Ref: ref, Condition: i.condition(ctx, ref), Anchor: i.health.LeadsTo(ref)}
		c.Open, c.Retry, c.Failures = i.health.Open(ref, now)
		if c.Anchor != nil && snapshot.Rollover != nil {
			c.Held = snapshot.Rollover.Held(c.Anchor, now)
		}
		i.mu.Lock()
		if err := i.failed[ref]; err != nil {
			c.Asked, c.Tries = err.Error(), i.failures[ref]
		}
		i.mu.Unlock()
		list = append(list, c)
	}
	return list
}

// condition looks an issuer up.
func (i *Issuers) condition(ctx context.Context, ref issuer.Ref) issuer.Condition {
	if ref.Group == issuer.CertManagerGroup && !i.kinds[ref.Kind] {
		return issuer.Condition{State: issuer.StateUnknown, Reason: "kind " + ref.Kind + " isn't watched, because no configured issuer is one"}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second) // the cache waits until it is synced
	defer cancel()
	return issuer.Lookup(ctx, i.objects, i.namespace, ref)
}

// probe asks an issuer where it leads to, in a goroutine of its own, one at a time and not too often.
func (i *Issuers) probe(ctx context.Context, ref issuer.Ref, pause time.Duration, running *sync.WaitGroup) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.asking[ref] || time.Since(i.asked[ref]) < pause {
		return
	}
	i.asking[ref] = true
	running.Go(func() {
		err := i.ask(ctx, ref)
		i.mu.Lock()
		delete(i.asking, ref)
		news := err != nil && i.failed[ref] == nil
		i.asked[ref], i.failed[ref] = time.Now(), err
		i.failures[ref]++
		if err == nil {
			delete(i.failures, ref)
		}
		i.mu.Unlock()
		switch {
		case ctx.Err() != nil:
		case err == nil:
			i.probes.WithLabelValues("ok").Inc()
		default:
			i.probes.WithLabelValues("failed").Inc()
			if news {
				i.log.Warn("issuer didn't show where it leads to", "issuer", ref.String(), "err", err)
			}
		}
	})
}

func (i *Issuers) ask(ctx context.Context, ref issuer.Ref) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	_, request, err := i.serving.request()
	if err != nil {
		return err
	}
	request.For = signer.ForProbe
	_, err = i.serving.signer.Trace(ctx, ref, request)
	return err
}

// tell keeps the candidates for readiness and metrics, and says what has changed.
func (i *Issuers) tell(candidates []candidate) {
	i.mu.Lock()
	before := i.candidates
	i.candidates = candidates
	i.mu.Unlock()
	for n, c := range candidates {
		can := c.can(false)
		at := slices.IndexFunc(before, func(b candidate) bool { return b.Ref == c.Ref })
		if at >= 0 && before[at].can(false) == can && before[at].Condition.State == c.Condition.State && before[at].Open == c.Open && (before[at].Held == "") == (c.Held == "") && (before[at].Anchor == nil) == (c.Anchor == nil) {
			continue
		}
		switch {
		case can:
			i.log.Info("issuer can sign", "issuer", c.Ref.String(), "rank", n, "state", c.Condition.State)
		case c.Anchor == nil && c.Asked == "" && !c.Open && c.Condition.State != issuer.StateMissing && c.Condition.State != issuer.StateNotReady:
			// It is being asked.
		default:
			i.log.Warn("issuer can't sign", "issuer", c.Ref.String(), "rank", n, "state", c.Condition.State, "why", c.why())
			i.event(c.Ref, corev1.EventTypeWarning, "NotInForce", "can't sign for the mesh: %s", c.why())
		}
	}
}

func (i *Issuers) event(ref issuer.Ref, kind, reason, note string, args ...any) {
	text := fmt.Sprintf(note, args...)
	if len(text) > maxNote {
		text = text[:maxNote] + "…"
	}
	i.events.Eventf(i.reference(ref), nil, kind, reason, "Sign", "%s", text)
}

// maxNote bounds the text of an Event; the API server refuses more than 1024 characters.
const maxNote = 1000

// reference is the object of an issuer, for Events on it.
func (i *Issuers) reference(ref issuer.Ref) *corev1.ObjectReference {
	about := &corev1.ObjectReference{APIVersion: ref.Group + "/v1", Kind: ref.Kind, Name: ref.Name, Namespace: i.namespace}
	if ref.Kind == cmapi.ClusterIssuerKind {
		about.Namespace = ""
	}
	return about
}

// FirstUse are the configured issuers and the roots that they name, nil where that isn't known yet. While the runtime
// ConfigMap can't be read, the configured ones aren't known.
func (i *Issuers) FirstUse() (roots map[string]*x509.Certificate, known bool) {
	wanted, known := i.wanted()
	i.mu.Lock()
	known = known && i.trouble == nil
	i.mu.Unlock()
	if !known {
		return nil, false
	}
	roots = make(map[string]*x509.Certificate)
	for _, ref := range append([]issuer.Ref{wanted}, i.cfg.Fallback...) {
		if ref.Name != "" {
			roots[ref.String()] = i.health.LeadsTo(ref)
		}
	}
	return roots, true
}

// Ready says whether an issuer was chosen, or there is none to choose: the issuer's own state doesn't count.
func (i *Issuers) Ready(time.Time) (string, error) {
	if !i.chosen.Load() {
		return "", errors.New("not chosen yet")
	}
	if current := i.issuers.Current().Ref; current.Name != "" {
		return current.String(), nil
	}
	return "none is configured", nil
}

// FallbackSubjects are the roots of the fallback issuers, as far as they are known, for the watch of what expires.
func (i *Issuers) FallbackSubjects() []Subject {
	var all []Subject
	for _, ref := range i.cfg.Fallback {
		if root := i.health.LeadsTo(ref); root != nil {
			all = append(all, caSubject(KindFallbackAnchor, root, sha256.Sum256(root.Raw), i.reference(ref)))
		}
	}
	return all
}

// Describe says for people what each issuer is at, the one in force first.
func (i *Issuers) Describe() []string {
	i.mu.Lock()
	candidates, trouble := i.candidates, i.trouble
	i.mu.Unlock()
	current := i.issuers.Current().Ref
	lines := []string{"none is configured"}
	if current.Name != "" {
		lines[0] = current.String() + " is in force"
	} else if len(candidates) > 0 {
		lines[0] = "none is in force yet"
	}
	for _, c := range candidates {
		if c.Ref == current {
			lines[0] += ", " + c.Condition.State + ": " + c.Condition.Reason
			switch ready := c.Condition.State == issuer.StateReady || c.Condition.State == issuer.StateUnknown; {
			case ready && !c.Open && c.Held != "":
				lines[0] += "; but requests are refused, and what it signs is held back: " + c.Held
			case c.Open || c.Held != "" || c.Anchor == nil && c.Asked != "":
				lines[0] += "; " + c.why()
			}
		}
	}
	for _, c := range candidates {
		if c.Ref != current {
			lines = append(lines, c.Ref.String()+": "+c.why())
		}
	}
	if trouble != nil {
		lines = append(lines, strings.ReplaceAll(trouble.Error(), "\n", "; "))
	}
	return lines
}

// States of an issuer in the metric; exactly one is 1.
var issuerStates = []string{"in_force", "able", "not_ready", "circuit_open", "held", "unknown"}

func (i *Issuers) stateOf(c candidate, current issuer.Ref) string {
	switch {
	case c.Condition.State == issuer.StateNotReady || c.Condition.State == issuer.StateMissing:
		return "not_ready"
	case c.Open:
		return "circuit_open"
	case c.Held != "":
		return "held"
	case c.Ref == current:
		return "in_force"
	case c.Anchor == nil:
		return "unknown"
	}
	return "able"
}

// newIssuerStates is a metric that counts the issuers by state, when it is scraped.
func newIssuerStates(i *Issuers) prometheus.Collector {
	desc := prometheus.NewDesc("issuers", "Issuers that may sign, by state: in_force, able, not_ready, circuit_open, held, unknown.", []string{"state"}, nil)
	return collector{desc, func(out chan<- prometheus.Metric) {
		i.mu.Lock()
		candidates := i.candidates
		i.mu.Unlock()
		counts := make(map[string]int)
		current := i.issuers.Current().Ref
		for _, c := range candidates {
			counts[i.stateOf(c, current)]++
		}
		for _, state := range issuerStates {
			out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(counts[state]), state)
		}
	}}
}

// newWantedState is a metric that says how it is with the wanted issuer, when it is scraped.
func newWantedState(i *Issuers) prometheus.Collector {
	desc := prometheus.NewDesc("issuer_wanted", "1 for the state of the issuer that should sign, else 0: in_force, able, not_ready, circuit_open, held, unknown. Unless it is in force, another one signs, or none.", []string{"state"}, nil)
	return collector{desc, func(out chan<- prometheus.Metric) {
		i.mu.Lock()
		candidates := i.candidates
		i.mu.Unlock()
		var is string
		if len(candidates) > 0 {
			is = i.stateOf(candidates[0], i.issuers.Current().Ref)
		}
		for _, state := range issuerStates {
			value := 0.0
			if state == is {
				value = 1
			}
			out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, state)
		}
	}}
}

// collector is a metric that is made when it is scraped.
type collector struct {
	desc    *prometheus.Desc
	collect func(chan<- prometheus.Metric)
}

func (c collector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

func (c collector) Collect(out chan<- prometheus.Metric) { c.collect(out) }
