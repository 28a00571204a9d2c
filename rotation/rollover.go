package rotation

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"github.com/signet-ca/signet/issuer"
)

// Annotations of [TrustConfigMap] with which an operator overrides the rollover: lists of anchors, each the SHA-256 of
// its DER in hexadecimal, separated by commas.
const (
	// DistributedNow says that everybody knows the anchors. Whoever doesn't can't verify the leaves under them.
	DistributedNow = "signet.dev/distributed-now"
	// RetireNow says that nobody needs retiring anchors any more. Whoever does is cut off from those who trust no other.
	RetireNow = "signet.dev/retire-now"
)

// Carriers say what doesn't carry the anchors in force yet: "" where everything does.
type Carriers interface {
	// Waits says for people what doesn't carry bundle yet; Changed is closed when that may have changed.
	Waits(bundle issuer.Bundle) string
	Changed() <-chan struct{}
}

// Rollover takes the mesh's trust anchors from one phase to the next. One replica does, the one that holds the lease; the
// state is kept where all see it, so that the next one goes on from there.
type Rollover struct {
	trust    *Trust
	issuers  *Issuers
	replicas *Replicas
	carriers Carriers // nil where nothing is distributed
	served   func() []string
	longest  time.Duration // a leaf whose request is on its way may live for so long
	log      *slog.Logger
	events   events.EventRecorder
	moves    *prometheus.CounterVec

	wroteWaits time.Time // when only what is waited for was written last
	leftOut    string    // what the last step left out
}

// NewRollover makes the one that steps. longestLeaf is the longest lifetime of leaves with the time that a request may
// take. served are the IDs of further anchors that must stay, because istiod's certificate leads there.
func NewRollover(trust *Trust, issuers *Issuers, replicas *Replicas, carriers Carriers, served func() []string, longestLeaf time.Duration, log *slog.Logger, reg prometheus.Registerer, recorder events.EventRecorder) *Rollover {
	r := &Rollover{
		trust: trust, issuers: issuers, replicas: replicas, carriers: carriers, served: served, longest: longestLeaf, log: log, events: recorder,
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rollover_transitions_total", Help: "Changes of a trust anchor's phase made by this replica, by the phase that began: published, distributed, signing, retiring, retired.",
		}, []string{"phase"}),
	}
	reg.MustRegister(r.moves, newAnchorPhases(trust.issuers), newAnchorsHeldUp(trust.issuers))
	return r
}

// stepAgain is how often the state is looked at where nothing but time has changed.
const stepAgain = time.Second

// Start steps the rollover until ctx ends, which is when the lease does.
func (r *Rollover) Start(ctx context.Context) error {
	tick := time.NewTicker(stepAgain)
	defer tick.Stop()
	failures := 0
	for {
		_, _, stateChanged := r.trust.state.Current()
		_, _, _, answersChanged := r.trust.named()
		var carriersChanged <-chan struct{}
		if r.carriers != nil {
			carriersChanged = r.carriers.Changed()
		}
		healthChanged := r.issuers.health.Changed()
		_, _, reportsChanged := r.replicas.living(time.Now())

		var pause <-chan time.Time
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			failures++
			r.log.Warn("rollover not stepped", "err", err)
			pause = time.After(retryIn(failures, 100*time.Second))
		} else {
			failures = 0
		}
		if pause != nil {
			select {
			case <-ctx.Done():
				return nil
			case <-pause:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-stateChanged:
		case <-answersChanged:
		case <-carriersChanged:
		case <-healthChanged:
		case <-reportsChanged:
		case <-tick.C:
		}
	}
}

// step takes one step, from the state as it is kept, and keeps what follows.
func (r *Rollover) step(ctx context.Context) error {
	object, synced, _ := r.trust.state.Current()
	if !synced || object == nil {
		return nil // there is nothing to step yet
	}
	old, err := issuer.ParseRollover(object.Data[keyRollover], object.Data[keyAnchors])
	if err != nil {
		return fmt.Errorf("trust anchors in ConfigMap %s: %w", TrustConfigMap, err)
	}
	now := time.Now()
	living, gone, _ := r.replicas.living(now)
	if len(gone) > 0 {
		r.replicas.forget(ctx, gone)
	}
	next, transitions := old.Step(r.observe(old, living, object, now))
	if left := strings.Join(next.LeftOut, "; "); left != r.leftOut {
		r.leftOut = left
		if left != "" {
			r.log.Error("trust anchors left out", "anchors", left)
		}
	}
	onlyWaits := next.Equal(old)
	data, err := encode(next)
	if err != nil {
		return fmt.Errorf("the state that follows can't be kept, so that the present one stays: %w", err)
	}
	if maps.Equal(data, object.Data) || onlyWaits && now.Sub(r.wroteWaits) < waitsEvery {
		return nil
	}
	changed := object.DeepCopy()
	changed.Data = data
	takeBack(changed.Annotations, DistributedNow, func(id string) bool {
		a, known := next.Anchor(id)
		return known && a.Phase != issuer.Published
	})
	takeBack(changed.Annotations, RetireNow, func(id string) bool {
		_, before := old.Anchor(id)
		_, after := next.Anchor(id)
		return before && !after
	})
	writing, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	_, err = r.trust.client.Update(writing, changed, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return nil // the watch is behind; what it brings is stepped
	}
	if err != nil {
		return fmt.Errorf("update ConfigMap %s: %w", TrustConfigMap, err)
	}
	if onlyWaits {
		r.wroteWaits = now
	}
	r.tell(old, next, transitions, object)
	return nil
}

// waitsEvery is how often the state is written where nothing changed but what it waits for.
const waitsEvery = 5 * time.Second

// observe gathers what the step needs to know.
func (r *Rollover) observe(old *issuer.Rollover, living map[string]Report, object *corev1.ConfigMap, now time.Time) issuer.Observation {
	named, answered, _, _ := r.trust.named()
	o := issuer.Observation{
		Now: now, LongestLeaf: r.longestOf(living), Named: named, Answered: answered,
		InUse: make(map[string]bool), Served: make(map[string]bool),
		DistributedNow: listed(object.Annotations[DistributedNow]), RetireNow: listed(object.Annotations[RetireNow]),
	}
	r.trust.addFirstUse(&o, old.FirstUse)
	for _, report := range living {
		if report.Anchor != "" {
			o.InUse[report.Anchor] = true
		}
		if report.ServingAnchor != "" {
			o.Served[report.ServingAnchor] = true
		}
	}
	for _, id := range r.served() {
		o.Served[id] = true
	}
	snapshot := r.trust.issuers.Current()
	o.Issuer = snapshot.Ref
	if anchor := r.issuers.health.LeadsTo(snapshot.Ref); anchor != nil && snapshot.Trusted.Contains(anchor) {
		o.IssuerAnchor = issuer.AnchorID(anchor)
	}
	o.Waits = r.waits(old, living)
	return o
}

// longestOf is how long a leaf may live whose request is on its way to any replica, with a reserve for clocks that differ.
func (r *Rollover) longestOf(living map[string]Report) time.Duration {
	longest := r.longest
	for _, report := range living {
		longest = max(longest, time.Duration(report.LongestLeafSeconds)*time.Second)
	}
	return longest + min(time.Minute, longest/5)
}

// waits says what doesn't carry the anchors of the state yet.
func (r *Rollover) waits(old *issuer.Rollover, living map[string]Report) string {
	bundle, err := old.Bundle()
	if err != nil {
		return err.Error()
	}
	want := bundleID(bundle)
	var behind []string
	for _, name := range slices.Sorted(maps.Keys(living)) {
		if living[name].Bundle != want {
			behind = append(behind, name)
		}
	}
	switch {
	case len(living) == 0:
		return "the replicas to report"
	case len(behind) > 0:
		return fmt.Sprintf("%d of %d replicas to answer with it, such as %s", len(behind), len(living), behind[0])
	case r.carriers != nil:
		return r.carriers.Waits(bundle)
	}
	return ""
}

// tell logs, counts and records what has changed.
func (r *Rollover) tell(old, next *issuer.Rollover, transitions []issuer.Transition, object *corev1.ConfigMap) {
	about := &corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: object.Namespace, Name: object.Name, UID: object.UID}
	for _, t := range transitions {
		phase := string(t.To)
		if phase == "" {
			phase = "retired"
		}
		r.moves.WithLabelValues(phase).Inc()
		subject := t.Anchor.Certificate.Subject.String()
		r.log.Info("trust anchor has moved on", "phase", phase, "subject", subject, "sha256", t.Anchor.ID(), "before", t.From, "why", t.Reason)
		r.events.Eventf(about, nil, corev1.EventTypeNormal, "Anchor"+strings.ToUpper(phase[:1])+phase[1:], "Rollover", "anchor %q (SHA-256 %.16s…) is %s: %s", subject, t.Anchor.ID(), phase, t.Reason)
		if t.To == issuer.Distributed && t.From == issuer.Published {
			r.events.Eventf(about, nil, corev1.EventTypeNormal, "RestartsDue", "Rollover", "%s", restartsDue(subject))
			r.log.Info("restarts are due", "note", restartsDue(subject))
		}
	}
	if old.Serving != next.Serving && old.Serving.Name != "" {
		r.log.Info("the serving certificate and istiod's follow the issuer", "issuer", next.Serving.String(), "before", old.Serving.String())
		r.events.Eventf(about, nil, corev1.EventTypeNormal, "ServingIssuer", "Rollover", "the serving certificate and istiod's are signed by %s from now on", next.Serving)
	}
}

// restartsDue says who must be restarted before serving certificates are under a new anchor (R9, R59).
func restartsDue(subject string) string {
	return fmt.Sprintf("before serving certificates are under anchor %q, restart what reads its root file only at start and runs since before: ztunnel before 1.30, istiod before 1.31; and istiod of any version where VMs connect to it with certificates", subject)
}

// takeBack takes those that have had their effect out of an override, which must not meet the same anchor again later.
func takeBack(annotations map[string]string, key string, had func(id string) bool) {
	ids := listed(annotations[key])
	maps.DeleteFunc(ids, func(id string, _ bool) bool { return had(id) })
	if len(ids) == 0 {
		delete(annotations, key)
		return
	}
	annotations[key] = strings.Join(slices.Sorted(maps.Keys(ids)), ",")
}

// listed are the anchors that an annotation lists.
func listed(text string) map[string]bool {
	ids := make(map[string]bool)
	for id := range strings.SplitSeq(text, ",") {
		if id = strings.ToLower(strings.ReplaceAll(strings.TrimSpace(id), ":", "")); id != "" {
			ids[id] = true
		}
	}
	return ids
}

// newAnchorPhases counts the anchors by phase, and says when the next of them changes by itself.
func newAnchorPhases(issuers *issuer.Store) prometheus.Collector {
	desc := prometheus.NewDesc("rollover_anchors", "Trust anchors by phase of the rollover: published, distributed, signing, retiring.", []string{"phase"}, nil)
	return collector{desc, func(out chan<- prometheus.Metric) {
		counts := make(map[issuer.Phase]int)
		if r := issuers.Current().Rollover; r != nil {
			for _, a := range r.Anchors {
				counts[a.Phase]++
			}
		}
		for _, phase := range []issuer.Phase{issuer.Published, issuer.Distributed, issuer.Signing, issuer.Retiring} {
			out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(counts[phase]), string(phase))
		}
	}}
}

// newAnchorsHeldUp counts the anchors that don't get on although their time has come.
func newAnchorsHeldUp(issuers *issuer.Store) prometheus.Collector {
	desc := prometheus.NewDesc("rollover_anchors_held_up", "Trust anchors that don't get on, by phase: published ones that replicas or namespaces don't carry yet, and retiring ones whose time is over and that something still needs.", []string{"phase"}, nil)
	return collector{desc, func(out chan<- prometheus.Metric) {
		now, published, retiring := time.Now(), 0, 0
		if r := issuers.Current().Rollover; r != nil {
			for _, a := range r.Anchors {
				switch {
				case a.Phase == issuer.Published && a.Until.IsZero() && a.Waits != "":
					published++
				case a.Phase == issuer.Retiring && now.After(a.Until):
					retiring++
				}
			}
		}
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(published), string(issuer.Published))
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(retiring), string(issuer.Retiring))
	}}
}
