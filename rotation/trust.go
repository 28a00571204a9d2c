package rotation

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/signet-ca/signet/issuer"
)

// TrustConfigMap is where the state of the mesh's trust is kept, in Signet's namespace: all replicas answer
// with the anchors in it, and only what is in it decides when one leaves.
const TrustConfigMap = "signet-trust-anchors"

// Keys of TrustConfigMap.
const (
	keyAnchors  = "root-cert.pem"
	keyRollover = "rollover.json"
)

// Trust brings the mesh's trust anchors into force on this replica, as the shared state says. Where there is no
// state yet it makes the first one, from what the sources name or what is trusted on first use. Safe for
// concurrent use.
type Trust struct {
	sources   []issuer.Source
	federated map[string]bool // sources of other trust domains, by name
	firstUse  func() (roots map[string]*x509.Certificate, known bool)
	client    typedcorev1.ConfigMapInterface
	state     *issuer.Watched
	issuers   *issuer.Store
	log       *slog.Logger

	applying sync.Mutex // held while a state is put in force, so that none overtakes a later one

	mu      sync.Mutex
	answers map[string]answer // by source
	trouble error             // with the state
	applied struct {          // the version of the state that was applied last
		uid     types.UID
		version uint64
	}
	notice issuer.Notice // that an answer has changed
}

// answer is what a source said last.
type answer struct {
	issuer.Answer
	good bool // it has answered since start; Bundle is its last good answer
}

// NewTrust makes the keeper of the anchors. firstUse are the roots that issuers name, by issuer, where they are to be
// trusted on first use; nil where anchors are pinned.
func NewTrust(sources []issuer.Source, federated []issuer.Source, firstUse func() (roots map[string]*x509.Certificate, known bool), client typedcorev1.ConfigMapInterface, issuers *issuer.Store, log *slog.Logger, reg prometheus.Registerer) *Trust {
	t := &Trust{
		sources:   slices.Concat(sources, federated),
		federated: make(map[string]bool),
		firstUse:  firstUse,
		client:    client,
		state:     issuer.NewWatched(client, TrustConfigMap),
		issuers:   issuers,
		log:       log,
		answers:   make(map[string]answer),
	}
	for _, source := range federated {
		t.federated[source.String()] = true
	}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "trust_anchors",
			Help: "Trust anchors in force; 0 until they are known.",
		}, func() float64 { return float64(len(t.issuers.Current().Anchors.Anchors())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "trust_anchors_on_first_use",
			Help: "Trust anchors in force that were trusted on first use of an issuer.",
		}, func() float64 {
			if r := t.issuers.Current().Rollover; r != nil {
				return float64(len(r.FirstUse))
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "trust_sources_failing",
			Help: "Sources of trust anchors whose last answer was an error; their last good answer stays in force.",
		}, func() float64 {
			t.mu.Lock()
			defer t.mu.Unlock()
			n := 0
			for _, a := range t.answers {
				if a.Err != nil {
					n++
				}
			}
			return float64(n)
		}),
	)
	return t
}

// NeedLeaderElection says that every replica needs the anchors.
func (t *Trust) NeedLeaderElection() bool { return false }

// Start follows the sources and the state until ctx ends.
func (t *Trust) Start(ctx context.Context) error {
	var running sync.WaitGroup
	for _, source := range t.sources {
		running.Go(func() { source.Run(ctx, func(a issuer.Answer) { t.answer(source.String(), a) }) })
	}
	running.Go(func() { t.state.Start(ctx) })
	t.follow(ctx)
	running.Wait()
	return nil
}

// answer notes what a source says. After an error its last good answer stays.
func (t *Trust) answer(source string, a issuer.Answer) {
	if a.Err != nil {
		t.log.Warn("source of trust anchors", "source", source, "err", a.Err)
	} else {
		t.log.Info("trust anchors read", "source", source, "anchors", len(a.Bundle.Anchors()))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := answer{Answer: a, good: true}
	if a.Err != nil {
		now = t.answers[source]
		now.Err = a.Err
	}
	t.answers[source] = now
	t.notice.Tell()
}

// named are the anchors that the sources name, and whether each source has answered; all says that none of our own is
// still to be heard of for the first time. The channel is closed when an answer has changed.
func (t *Trust) named() (named []issuer.Named, answered map[string]bool, all bool, changed <-chan struct{}) {
	changed = t.notice.Changed()
	t.mu.Lock()
	defer t.mu.Unlock()
	answered, all = make(map[string]bool), true
	for _, source := range t.sources {
		name := source.String()
		a, heard := t.answers[name]
		answered[name] = a.good
		all = all && (heard || t.federated[name]) // our trust doesn't wait for that of others
		for _, cert := range a.Bundle.Anchors() {
			named = append(named, issuer.Named{Certificate: cert, Source: name, Federated: t.federated[name]})
		}
	}
	return named, answered, all, changed
}

// follow puts each state in force, and makes the first one.
func (t *Trust) follow(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		object, synced, stateChanged := t.state.Current()
		_, _, _, answersChanged := t.named()
		_, snapshotChanged := t.issuers.Watch()
		var retry <-chan time.Time
		switch {
		case !synced:
		case object != nil:
			t.apply(object)
			failures = 0
		default:
			if err := t.begin(ctx); err != nil && ctx.Err() == nil {
				failures++
				if t.troubled(err) {
					t.log.Warn("trust anchors not in force", "err", err)
				}
			}
			retry = time.After(retryIn(max(failures, 1), 100*time.Second)) // 1s to 5s
		}
		if object != nil {
			snapshotChanged = nil // what it says of anchors is from here
		}
		select {
		case <-ctx.Done():
		case <-stateChanged:
		case <-answersChanged:
		case <-snapshotChanged:
		case <-retry:
		}
	}
}

// errNoAnchorsYet says that there is nothing to begin with yet.
var errNoAnchorsYet = errors.New("no trust anchors are known yet")

// begin makes the first state. When another replica is first, its state is in force.
func (t *Trust) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	named, answered, all, _ := t.named()
	if !all {
		return fmt.Errorf("%w: not all sources have answered", errNoAnchorsYet)
	}
	o := issuer.Observation{Now: time.Now(), Named: named, Answered: answered}
	t.addFirstUse(&o, nil)
	first, _ := new(issuer.Rollover).Step(o)
	if last := t.issuers.Current().Rollover; last != nil {
		first = last // somebody has deleted the state; it isn't lost
		t.log.Warn("state of trust is gone, and made again", "object", "ConfigMap "+TrustConfigMap)
	}
	if trusted, err := first.Trusted(); err != nil {
		return err
	} else if trusted.Empty() {
		return t.why()
	}
	data, err := encode(first)
	if err != nil {
		return err
	}
	_, err = t.client.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: TrustConfigMap, Labels: map[string]string{"app.kubernetes.io/managed-by": "signet"}},
		Data:       data,
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create ConfigMap %s: %w", TrustConfigMap, err)
	}
	for ref := range first.FirstUse {
		if err == nil && t.issuers.Current().Rollover == nil {
			t.log.Warn("trusting the issuer's root on first use; pin it with roots.file, roots.secret or roots.configMap",
				"issuer", ref, "kept_in", "ConfigMap "+TrustConfigMap)
		}
	}
	return nil
}

// addFirstUse adds the roots that are trusted on first use. While the issuers aren't known, those that were trusted stay
// named.
func (t *Trust) addFirstUse(o *issuer.Observation, trusted map[string]string) {
	if t.firstUse == nil {
		return
	}
	roots, known := t.firstUse()
	if !known {
		for ref := range trusted {
			o.Answered[issuer.FirstUseSource(ref)] = true
		}
	}
	o.FirstUse = make(map[string]*x509.Certificate)
	for ref, root := range roots {
		o.Answered[issuer.FirstUseSource(ref)] = true
		if root != nil {
			o.FirstUse[ref] = root
		}
	}
}

func encode(r *issuer.Rollover) (map[string]string, error) {
	state, pem, err := r.Encode()
	if err != nil {
		return nil, err
	}
	return map[string]string{keyRollover: state, keyAnchors: pem}, nil
}

// refresh reads the state from the API server itself, not from the watch, and puts it in force.
func (t *Trust) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reportEvery)
	defer cancel()
	// Without a resource version, a list is as new as can be; the right to list is there for the watch.
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, TrustConfigMap).String()
	list, err := t.client.List(ctx, metav1.ListOptions{FieldSelector: only})
	if err != nil {
		return fmt.Errorf("list ConfigMap %s: %w", TrustConfigMap, err)
	}
	for i := range list.Items {
		t.apply(&list.Items[i])
	}
	return nil
}

// older says whether object is an earlier version than the one in force: a watch that begins anew can go back in time.
func (t *Trust) older(object *corev1.ConfigMap) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Resource versions of one object are numbers that grow (KEP-5504).
	version, err := strconv.ParseUint(object.ResourceVersion, 10, 64)
	if err != nil {
		return false
	}
	if t.applied.uid == object.UID && version < t.applied.version {
		return true
	}
	t.applied.uid, t.applied.version = object.UID, version
	return false
}

// apply puts a state in force. One that can't be read, or is older, changes nothing.
func (t *Trust) apply(object *corev1.ConfigMap) {
	t.applying.Lock()
	defer t.applying.Unlock()
	if t.older(object) {
		return
	}
	rollover, err := issuer.ParseRollover(object.Data[keyRollover], object.Data[keyAnchors])
	var anchors, trusted issuer.Bundle
	if err == nil {
		anchors, err = rollover.Bundle()
	}
	if err == nil {
		trusted, err = rollover.Trusted()
	}
	if err == nil && trusted.Empty() {
		err = errors.New("it has no anchor that an issuer may sign under")
	}
	if err != nil {
		err = fmt.Errorf("trust anchors in ConfigMap %s: %w; the last good state stays in force", TrustConfigMap, err)
		if t.troubled(err) {
			t.log.Error("trust anchors not taken over", "err", err)
		}
		return
	}
	t.troubled(nil)
	current := t.issuers.Current()
	if current.Rollover != nil && current.Rollover.Same(rollover) && current.Anchors.PEM() == anchors.PEM() {
		return
	}
	if current.Anchors.PEM() != anchors.PEM() {
		for _, a := range rollover.Anchors {
			t.log.Info("trust anchor in force", "subject", a.Certificate.Subject.String(), "serial", issuer.Serial(a.Certificate.SerialNumber),
				"sha256", a.ID(), "phase", a.Phase, "not_after", a.Certificate.NotAfter)
		}
	}
	t.issuers.Update(func(s *issuer.Snapshot) {
		s.Anchors, s.Trusted, s.Rollover, s.Serving = anchors, trusted, rollover, rollover.Serving
	})
}

// troubled notes what is wrong with the state, and says whether that is new.
func (t *Trust) troubled(err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.trouble
	t.trouble = err
	return err != nil && (old == nil || old.Error() != err.Error())
}

// why says why there are no anchors.
func (t *Trust) why() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []error
	for _, source := range slices.Sorted(maps.Keys(t.answers)) {
		if err := t.answers[source].Err; err != nil {
			all = append(all, err)
		}
	}
	if len(all) > 0 {
		return errors.Join(all...)
	}
	if t.firstUse != nil {
		return fmt.Errorf("%w: the issuer has not named its root", errNoAnchorsYet)
	}
	return errNoAnchorsYet
}

// Ready says whether anchors are in force and one of them is valid at now. The text is for people.
func (t *Trust) Ready(now time.Time) (string, error) {
	t.mu.Lock()
	trouble := t.trouble
	var failing []string
	for source, a := range t.answers {
		if a.Err != nil {
			failing = append(failing, fmt.Sprintf("%s: %v", source, a.Err))
		}
	}
	t.mu.Unlock()
	snapshot := t.issuers.Current()
	bundle := snapshot.Anchors
	if bundle.Empty() {
		if trouble != nil {
			return "", trouble
		}
		return "", errNoAnchorsYet
	}
	total, valid := len(bundle.Anchors()), bundle.Valid(now)
	if valid == 0 {
		return "", fmt.Errorf("none of the %d trust anchors is valid any more", total)
	}
	text := fmt.Sprintf("%d trust anchors, %d of them valid", total, valid)
	if r := snapshot.Rollover; r != nil {
		if len(r.FirstUse) > 0 {
			text += ", trusted on first use"
		}
		for _, a := range r.Anchors {
			if a.Phase == issuer.Published || a.Phase == issuer.Retiring {
				text += fmt.Sprintf("; %q is %s%s", a.Certificate.Subject, a.Phase, until(a, now))
			}
		}
	}
	if trouble != nil {
		text += "; " + trouble.Error()
	}
	slices.Sort(failing)
	if len(failing) > 0 {
		text += "; " + strings.Join(failing, "; ")
	}
	return text, nil
}

// until says how long a phase lasts yet, or what it waits for.
func until(a issuer.Anchor, now time.Time) string {
	switch {
	case !a.Until.IsZero():
		return fmt.Sprintf(" for another %s", max(0, a.Until.Sub(now)).Round(time.Second))
	case a.Waits != "":
		return " and waits for " + a.Waits
	}
	return ""
}
