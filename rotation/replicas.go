package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/signet-ca/signet/issuer"
)

// ReplicasConfigMap is where every replica says what it answers with, under its name, in Signet's namespace.
const ReplicasConfigMap = "signet-replicas"

const (
	// reportEvery is how often a replica says that it lives; what has changed it says at once.
	reportEvery = 10 * time.Second
	// silentFor is how long a replica may say nothing before it counts as gone. One that says nothing stops signing
	// before that; see [issuer.Store.Fence].
	silentFor = 45 * time.Second
	// reportsApart is how far any two reports are apart, failed ones included.
	reportsApart = time.Second
)

// Report is what a replica says of itself.
type Report struct {
	// Bundle is the SHA-256 of the anchors' PEM that it answers with; empty while it has none.
	Bundle string `json:"bundle,omitempty"`
	// Issuer signs leaves there.
	Issuer string `json:"issuer,omitempty"`
	// Anchor is the ID of the anchor that Issuer leads to; empty while it signs under none.
	Anchor string `json:"anchor,omitempty"`
	// ServingAnchor is the ID of the anchor that its serving certificate leads to.
	ServingAnchor string `json:"servingAnchor,omitempty"`
	// LongestLeafSeconds is how long a leaf may live whose request is on its way there.
	LongestLeafSeconds int64 `json:"longestLeafSeconds,omitempty"`
	// At is when it was said, by the replica's clock.
	At time.Time `json:"at"`
}

// Replicas tells the others about this replica, and knows of them. Safe for concurrent use.
type Replicas struct {
	name    string
	client  typedcorev1.ConfigMapInterface
	watched *issuer.Watched
	serving *Serving
	issuers *issuer.Store
	health  *issuer.Health
	refresh func(context.Context) error // reads the shared state anew and puts it in force
	longest time.Duration               // a leaf whose request is on its way
	log     *slog.Logger

	// The following are those of the last good report; used by Start only.
	said   Report
	saidAt time.Time
	former string // the anchor before that of said

	mu   sync.Mutex
	seen map[string]sighting // by replica
}

// sighting is when a replica's report was seen to change last, by our clock.
type sighting struct {
	text string
	at   time.Time
}

// NewReplicas makes the reporter of the replica called name, in which a leaf whose request is on its way may live for
// longestLeaf. From now on leaves are signed only while the others know of this replica.
func NewReplicas(name string, client typedcorev1.ConfigMapInterface, trust *Trust, serving *Serving, health *issuer.Health, longestLeaf time.Duration, log *slog.Logger) *Replicas {
	serving.issuers.EnableFence()
	return &Replicas{
		name: name, client: client, watched: issuer.NewWatched(client, ReplicasConfigMap), serving: serving, issuers: serving.issuers, health: health,
		refresh: trust.refresh, longest: longestLeaf, log: log, seen: make(map[string]sighting),
	}
}

// NeedLeaderElection says that every replica reports.
func (r *Replicas) NeedLeaderElection() bool { return false }

// Start reports until ctx ends, and takes the report back then.
func (r *Replicas) Start(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { r.watched.Start(ctx) })
	behind := true // the state may have changed since it was seen last
	failures := 0
	for ctx.Err() == nil {
		healthChanged, servingChanged := r.health.Changed(), r.serving.Changed()
		_, replaced := r.issuers.Watch()
		began := time.Now()
		report := r.report(r.issuers.Current())
		if behind || r.news(report) || began.Sub(r.saidAt) >= reportEvery {
			var err error
			switch report, err = r.tell(ctx, behind); {
			case err == nil:
				behind, failures = false, 0
				r.note(report, began)
				r.issuers.Confirm(began)
			case ctx.Err() == nil:
				behind = true
				if failures++; failures == 1 {
					r.log.Warn("replica not reported; it signs nothing while the others don't know of it, and a rollover waits for it", "err", err)
				}
			}
			if !sleep(ctx, reportsApart) || behind {
				continue
			}
		}
		select {
		case <-ctx.Done():
		case <-healthChanged:
		case <-servingChanged:
		case <-replaced:
		case <-time.After(reportEvery - time.Since(r.saidAt)):
		}
	}
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := r.patch(leaving, map[string]any{r.name: nil}); err != nil {
		r.log.Info("report of this replica not taken back; it will be forgotten", "err", err)
	}
	running.Wait()
	return nil
}

// news says whether a report has what the others should know at once. That leaves lead to the anchor again that was
// reported before the last one can wait: an issuer that signs under two in turn would be reported all the time.
func (r *Replicas) news(report Report) bool {
	if r.former != "" && report.Anchor == r.former {
		report.Anchor = r.said.Anchor
	}
	return report != r.said
}

// note takes note of what was reported at a time.
func (r *Replicas) note(report Report, at time.Time) {
	if report.Anchor != r.said.Anchor {
		r.former = r.said.Anchor
	}
	r.said, r.saidAt = report, at
}

// tell reports, where the state may have been missed after it was read anew, so that what is confirmed is what is in force.
func (r *Replicas) tell(ctx context.Context, behind bool) (Report, error) {
	if behind {
		if err := r.refresh(ctx); err != nil {
			return Report{}, err
		}
	}
	report := r.report(r.issuers.Current())
	said := report
	said.At = time.Now().UTC().Truncate(time.Second)
	return report, r.say(ctx, &said)
}

// sleep waits, and says whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// report is what there is to say now, but for the time.
func (r *Replicas) report(snapshot *issuer.Snapshot) Report {
	report := Report{Bundle: bundleID(snapshot.Anchors), ServingAnchor: r.serving.anchorID(), LongestLeafSeconds: int64(r.longest / time.Second)}
	if snapshot.Ref.Name == "" {
		return report
	}
	report.Issuer = snapshot.Ref.String()
	if anchor := r.health.LeadsTo(snapshot.Ref); anchor != nil && snapshot.Trusted.Contains(anchor) {
		report.Anchor = issuer.AnchorID(anchor)
	}
	return report
}

// bundleID is the SHA-256 of a bundle's PEM; empty for an empty one.
func bundleID(b issuer.Bundle) string {
	if b.Empty() {
		return ""
	}
	sum := sha256.Sum256([]byte(b.PEM()))
	return hex.EncodeToString(sum[:])
}

func (r *Replicas) say(ctx context.Context, report *Report) error {
	ctx, cancel := context.WithTimeout(ctx, reportEvery)
	defer cancel()
	text, err := json.Marshal(report)
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	err = r.patch(ctx, map[string]any{r.name: string(text)})
	if !apierrors.IsNotFound(err) {
		return err
	}
	_, err = r.client.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: ReplicasConfigMap, Labels: map[string]string{"app.kubernetes.io/managed-by": "signet"}},
		Data:       map[string]string{r.name: string(text)},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) { // another replica was first
		return r.patch(ctx, map[string]any{r.name: string(text)})
	}
	if err != nil {
		return fmt.Errorf("create ConfigMap %s: %w", ReplicasConfigMap, err)
	}
	return nil
}

// patch changes only the keys given, so that replicas don't get into each other's way.
func (r *Replicas) patch(ctx context.Context, data map[string]any) error {
	body, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	if _, err := r.client.Patch(ctx, ReplicasConfigMap, types.MergePatchType, body, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("patch ConfigMap %s: %w", ReplicasConfigMap, err)
	}
	return nil
}

// living are the reports of the replicas that live, and the names of those that don't: what hasn't changed for
// silentFor by our own clock. The channel is closed when a report has changed.
func (r *Replicas) living(now time.Time) (living map[string]Report, gone []string, changed <-chan struct{}) {
	object, _, changed := r.watched.Current()
	living = make(map[string]Report)
	if object == nil {
		return living, nil, changed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.seen, func(name string, _ sighting) bool { _, there := object.Data[name]; return !there })
	for _, name := range slices.Sorted(maps.Keys(object.Data)) {
		text := object.Data[name]
		if last, known := r.seen[name]; !known || last.text != text {
			r.seen[name] = sighting{text, now}
		}
		if now.Sub(r.seen[name].at) > silentFor {
			gone = append(gone, name)
			continue
		}
		var report Report
		if err := json.Unmarshal([]byte(text), &report); err != nil {
			report = Report{} // of another version; it counts as behind
		}
		living[name] = report
	}
	return living, gone, changed
}

// Describe says for people which replicas there are and what each answers with, a line for each.
func (r *Replicas) Describe(now time.Time) []string {
	living, gone, _ := r.living(now)
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(living)) {
		report := living[name]
		line := fmt.Sprintf("%s: signs with %s", name, report.Issuer)
		if report.Issuer == "" {
			line = name + ": has no issuer to sign with"
		}
		if report.Bundle == "" {
			line += "; has no anchors yet"
		}
		lines = append(lines, fmt.Sprintf("%s; said so at %s", line, report.At.UTC().Format(time.RFC3339)))
	}
	for _, name := range gone {
		lines = append(lines, fmt.Sprintf("%s: has said nothing for over %s", name, silentFor))
	}
	return lines
}

// forget drops the reports of replicas that are gone, unless they have said something meanwhile.
func (r *Replicas) forget(ctx context.Context, gone []string) {
	ctx, cancel := context.WithTimeout(ctx, reportEvery)
	defer cancel()
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value string `json:"value,omitempty"`
	}
	for _, name := range gone {
		r.mu.Lock()
		last := r.seen[name].text
		r.mu.Unlock()
		path := "/data/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
		body, err := json.Marshal([]operation{{"test", path, last}, {"remove", path, ""}})
		if err == nil {
			_, err = r.client.Patch(ctx, ReplicasConfigMap, types.JSONPatchType, body, metav1.PatchOptions{})
		}
		if err != nil && ctx.Err() == nil {
			r.log.Info("report of a replica that seems to be gone not dropped", "replica", name, "err", err)
			continue
		}
		r.log.Info("replica is gone", "replica", name)
	}
}
