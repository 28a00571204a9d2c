package rotation

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/signer"
)

func refOf(name string) issuer.Ref { return issuer.Ref{Name: name}.WithDefaults() }

var (
	someAnchor = &x509.Certificate{Raw: []byte("anchor")}
	// conditions are the states that an issuer can be in, by a short name.
	conditions = map[string]candidate{
		"able":             {Condition: issuer.Condition{State: issuer.StateReady, Reason: "verified"}, Anchor: someAnchor},
		"external":         {Condition: issuer.Condition{State: issuer.StateUnknown, Reason: "external"}, Anchor: someAnchor},
		"unasked":          {Condition: issuer.Condition{State: issuer.StateReady, Reason: "verified"}},
		"unasked external": {Condition: issuer.Condition{State: issuer.StateUnknown, Reason: "external"}},
		"silent":           {Condition: issuer.Condition{State: issuer.StateReady, Reason: "verified"}, Asked: "no answer"},
		"not ready":        {Condition: issuer.Condition{State: issuer.StateNotReady, Reason: "no secret"}, Anchor: someAnchor},
		"missing":          {Condition: issuer.Condition{State: issuer.StateMissing, Reason: "not there"}, Anchor: someAnchor},
		"open":             {Condition: issuer.Condition{State: issuer.StateReady, Reason: "verified"}, Anchor: someAnchor, Open: true, Failures: "5 failed"},
		"cooled down":      {Condition: issuer.Condition{State: issuer.StateReady, Reason: "verified"}, Anchor: someAnchor, Open: true, Retry: true, Failures: "5 failed"},
		"held":             {Condition: issuer.Condition{State: issuer.StateReady, Reason: "verified"}, Anchor: someAnchor, Held: "its root is published"},
		"held and open":    {Condition: issuer.Condition{State: issuer.StateReady, Reason: "verified"}, Anchor: someAnchor, Held: "its root is published", Open: true, Failures: "5 failed"},
		"open, unasked":    {Condition: issuer.Condition{State: issuer.StateReady, Reason: "verified"}, Open: true, Failures: "5 failed"},
		"missing, unasked": {Condition: issuer.Condition{State: issuer.StateMissing, Reason: "not there"}},
	}
)

func candidateIn(name, condition string) candidate {
	c, ok := conditions[condition]
	if !ok {
		panic(condition)
	}
	c.Ref = refOf(name)
	return c
}

func TestCandidate(t *testing.T) {
	type pause struct {
		after time.Duration
		ask   bool
	}
	never := pause{}
	for condition, want := range map[string]struct {
		can, canInForce bool
		why             string
		state, inForce  string // in the metric
		// When it is asked where it leads to: beside the one in force, as the one in force, and while there are no anchors
		// and roots are trusted on first use.
		beside, self, first pause
	}{
		"able":             {true, true, "Ready: verified", "able", "in_force", never, never, pause{firstAgain, false}},
		"external":         {true, true, "Unknown: external", "able", "in_force", never, never, pause{firstAgain, false}},
		"unasked":          {false, true, "its root is not known yet", "unknown", "in_force", pause{probeAgain, true}, never, pause{firstAgain, true}},
		"unasked external": {false, true, "its root is not known yet", "unknown", "in_force", pause{probeAgain, true}, never, pause{firstAgain, true}},
		"silent":           {false, true, "its root is not known: no answer", "unknown", "in_force", pause{probeAgain, true}, never, pause{firstAgain, true}},
		"not ready":        {false, false, "NotReady: no secret", "not_ready", "not_ready", never, never, never},
		"missing":          {false, false, "Missing: not there", "not_ready", "not_ready", never, never, never},
		"missing, unasked": {false, false, "Missing: not there", "not_ready", "not_ready", never, never, never},
		"open":             {false, false, "its circuit is open: 5 failed", "circuit_open", "circuit_open", never, never, never},
		"open, unasked":    {false, false, "its circuit is open: 5 failed", "circuit_open", "circuit_open", never, never, pause{firstAgain, true}},
		"cooled down":      {false, false, "its circuit is open: 5 failed", "circuit_open", "circuit_open", pause{probeAgain, true}, pause{probeAgain, true}, never},
		"held":             {false, false, "held back: its root is published", "held", "held", pause{heldAgain, true}, never, never},
		"held and open":    {false, false, "its circuit is open: 5 failed", "circuit_open", "circuit_open", never, never, never},
	} {
		t.Run(condition, func(t *testing.T) {
			c, i := candidateIn("x", condition), new(Issuers)
			assert.Equal(t, want.can, c.can(false))
			assert.Equal(t, want.canInForce, c.can(true))
			assert.Equal(t, want.why, c.why())
			assert.Equal(t, want.state, i.stateOf(c, refOf("y")))
			assert.Equal(t, want.inForce, i.stateOf(c, refOf("x")))
			assert.Contains(t, issuerStates, want.state)
			for _, row := range []struct {
				name                         string
				inForce, noAnchors, firstUse bool
				want                         pause
			}{
				{"beside the one in force", false, false, false, want.beside},
				{"beside it, with first use", false, false, true, want.beside},
				{"in force", true, false, true, want.self},
				{"without anchors, pinned", true, true, false, never},
				{"without anchors, pinned, beside", false, true, false, never},
				{"without anchors", true, true, true, want.first},
				{"without anchors, beside", false, true, true, want.first},
			} {
				after, ask := c.probePause(row.inForce, row.noAnchors, row.firstUse)
				assert.Equal(t, row.want.ask, ask, row.name)
				if ask {
					assert.Equal(t, row.want.after, after, row.name)
				}
			}
		})
	}
	assert.Len(t, conditions, 13, "all are in the table")
}

func TestChoose(t *testing.T) {
	for _, row := range []struct{ current, candidates, want string }{
		{"", "", ""},
		{"a", "", ""}, // none is wanted any more
		{"", "a=able", "a"},
		{"", "a=unasked", "a"}, // at the start
		{"", "a=missing", "a"},
		{"", "a=held b=able", "b"},
		{"a", "a=able b=able", "a"},
		{"b", "a=able b=able", "a"}, // the wanted one is returned to
		{"b", "a=external b=able", "a"},
		{"b", "a=unasked b=able", "b"}, // not before it has shown where it leads to
		{"a", "a=unasked b=able", "a"}, // in force, it needn't
		{"a", "a=silent b=able", "a"},
		{"a", "a=not_ready b=able", "b"},
		{"a", "a=missing b=able", "b"},
		{"a", "a=open b=able", "b"},
		{"b", "a=open b=able", "b"},
		{"b", "a=cooled_down b=able", "b"}, // a probe goes first
		{"a", "a=held b=able", "b"},
		{"a", "a=open,_unasked b=able", "b"},
		{"a", "a=open b=held c=able", "c"},
		{"a", "a=open b=unasked c=able", "c"},
		{"a", "a=open b=missing c=external", "c"},
		{"c", "a=open b=able c=able", "b"},
		{"a", "a=not_ready b=held", "a"}, // a change for the worse is none
		{"b", "a=not_ready b=held", "b"},
		{"b", "a=unasked b=open", "b"},
		{"c", "a=held b=held c=held", "c"},
		{"x", "a=held b=missing", "a"}, // what is in force isn't among them
	} {
		t.Run(row.current+" of "+row.candidates, func(t *testing.T) {
			var list []candidate
			for field := range strings.FieldsSeq(row.candidates) {
				name, condition, _ := strings.Cut(field, "=")
				list = append(list, candidateIn(name, strings.ReplaceAll(condition, "_", " ")))
			}
			var current, want issuer.Ref
			if row.current != "" {
				current = refOf(row.current)
			}
			if row.want != "" {
				want = refOf(row.want)
			}
			assert.Equal(t, want, choose(current, list))
			assert.Equal(t, want, choose(choose(current, list), list), "it is stable")
		})
	}
}

// Whatever the states are: who isn't in force already never signs without having shown an anchor that is distributed, unless
// there is nobody else.
func TestChooseAll(t *testing.T) {
	names := []string{"a", "b", "c"}
	for first := range conditions {
		for second := range conditions {
			for third := range conditions {
				list := []candidate{candidateIn("a", first), candidateIn("b", second), candidateIn("c", third)}
				for _, current := range append(names, "gone") {
					got := choose(refOf(current), list)
					for _, c := range list {
						if c.can(c.Ref == refOf(current)) {
							require.Equal(t, c.Ref, got, "the first that can, of %s, %s, %s", first, second, third)
							break
						}
						if c.Ref == got {
							require.True(t, got == refOf(current) || current == "gone", "%s is chosen of %s, %s, %s while %s is in force", got, first, second, third, current)
						}
					}
				}
			}
		}
	}
}

// cachedIssuers are the objects of issuers as the cache has them.
type cachedIssuers struct {
	cache.Cache // nothing else is called

	mu    sync.Mutex        // guards the following
	ready map[string]string // by name: "" for ready, or why not
}

func (c *cachedIssuers) Get(_ context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	why, ok := c.ready[key.Name]
	if !ok {
		return apierrors.NewNotFound(schema.GroupResource{Group: "cert-manager.io", Resource: "issuers"}, key.Name)
	}
	ready := cmapi.IssuerCondition{Type: cmapi.IssuerConditionReady, Status: cmmeta.ConditionTrue, Message: "verified"}
	if why != "" {
		ready = cmapi.IssuerCondition{Type: cmapi.IssuerConditionReady, Status: cmmeta.ConditionFalse, Reason: "Broken", Message: why}
	}
	object.(cmapi.GenericIssuer).GetStatus().Conditions = []cmapi.IssuerCondition{ready}
	return nil
}

// noted are Events, as text.
type noted struct {
	mu    sync.Mutex
	notes []string
}

func (r *noted) Eventf(about, _ runtime.Object, kind, reason, _, note string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, fmt.Sprintf("%s %s %s: %s", kind, reason, about.(*corev1.ObjectReference).Name, fmt.Sprintf(note, args...)))
}

func (r *noted) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.notes, "\n")
}

// offices are the issuers that are asked, each with a CA of its own.
type offices struct {
	*memoryCA // signs the serving certificate
	health    *issuer.Health

	mu    sync.Mutex // guards the following
	cas   map[issuer.Ref]*memoryCA
	asked []string // name and second since the beginning
	began time.Time
	slow  time.Duration // between an answer and the end of Trace
}

// Trace is what the signer does with a probe.
func (o *offices) Trace(ctx context.Context, ref issuer.Ref, req signer.Request) (*signer.Chain, error) {
	o.mu.Lock()
	ca := o.cas[ref]
	o.asked = append(o.asked, fmt.Sprintf("%s@%.0f", ref.Name, time.Since(o.began).Seconds()))
	o.mu.Unlock()
	if ca == nil {
		return nil, errors.New("no such CA")
	}
	chain, err := ca.Sign(ctx, req)
	assert.Equal(o.t, signer.ForProbe, req.For)
	if err == nil {
		o.health.LedTo(ref, ca.root)
	}
	time.Sleep(o.slow)
	return chain, err
}

// deciding is an Issuers that runs in a bubble of synctest.
type deciding struct {
	*Issuers
	t       *testing.T
	offices *offices
	objects *cachedIssuers
	maps    *configMaps
	store   *issuer.Store
	events  *noted
	metrics *prometheus.Registry
	log     *lockedText
	stop    func()
}

const runtimeMap = "signet-issuer"

// newDeciding has issuers of these names, all of them ready. The roots of those before the bar are trusted.
func newDeciding(t *testing.T, static string, cfg IssuersConfig, firstUse bool, names string) *deciding {
	t.Helper()
	d := &deciding{t: t, objects: &cachedIssuers{ready: make(map[string]string)}, maps: newConfigMaps(), events: new(noted), store: issuer.NewStore(issuer.Ref{}), metrics: prometheus.NewPedanticRegistry(), log: new(lockedText)}
	health := issuer.NewHealth()
	d.offices = &offices{memoryCA: newMemoryCA(t), health: health, cas: make(map[issuer.Ref]*memoryCA), began: time.Now()}
	trusted, others, _ := strings.Cut(names, "|")
	for name := range strings.FieldsSeq(trusted + " " + others) {
		d.offices.cas[refOf(name)], d.objects.ready[name] = newMemoryCA(t), ""
	}
	d.trust(strings.Fields(trusted)...)
	log := slog.New(slog.NewTextHandler(d.log, nil))
	serving := NewServing(ServingConfig{}, "istio-system", d.offices, d.store, log, prometheus.NewPedanticRegistry())
	var watched *issuer.Watched
	if cfg.Runtime.Name != "" {
		watched = issuer.NewWatched(d.maps, cfg.Runtime.Name)
	}
	var ref issuer.Ref
	if static != "" {
		ref = refOf(static)
	}
	d.Issuers = NewIssuers(ref, cfg, firstUse, "istio-system", d.objects, watched, serving, health, log, d.metrics, d.events)
	d.kinds = map[string]bool{"Issuer": true, "ClusterIssuer": true}
	return d
}

func (d *deciding) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { assert.NoError(d.t, d.Start(ctx)) })
	d.stop = func() {
		cancel()
		group.Wait() // every probe has ended
	}
	pass(time.Second)
}

// trust has the roots of these issuers be the anchors that issuers may sign under.
func (d *deciding) trust(names ...string) {
	d.t.Helper()
	if len(names) == 0 {
		return
	}
	o := issuer.Observation{Now: time.Now(), Answered: map[string]bool{"roots": true}}
	for _, name := range names {
		o.Named = append(o.Named, issuer.Named{Certificate: d.offices.cas[refOf(name)].root, Source: "roots"})
	}
	state, _ := new(issuer.Rollover).Step(o)
	anchors, err := state.Bundle()
	require.NoError(d.t, err)
	d.store.Update(func(s *issuer.Snapshot) { s.Anchors, s.Trusted, s.Rollover = anchors, anchors, state })
}

// is wants an issuer in force, once everything has settled.
func (d *deciding) is(name, why string) {
	d.t.Helper()
	synctest.Wait()
	assert.Equal(d.t, name, d.store.Current().Ref.Name, why)
}

// becomes changes what the cache has of an issuer.
func (d *deciding) becomes(name, why string) {
	d.objects.mu.Lock()
	d.objects.ready[name] = why
	d.objects.mu.Unlock()
	d.kick <- struct{}{}
	synctest.Wait()
}

func (d *deciding) askedSoFar() string {
	d.offices.mu.Lock()
	defer d.offices.mu.Unlock()
	return strings.Join(d.offices.asked, " ")
}

func (d *deciding) fails(name string) {
	for n := range 6 {
		d.health.Failed(refOf(name), fmt.Sprint(n), errors.New("down"), time.Now())
	}
	synctest.Wait()
}

// switched is how often another issuer was put in force.
func (d *deciding) switched() float64 {
	d.t.Helper()
	families, err := d.metrics.Gather()
	require.NoError(d.t, err)
	for _, family := range families {
		if family.GetName() == "issuer_switches_total" {
			return family.GetMetric()[0].GetCounter().GetValue()
		}
	}
	return -1
}

func fallbackTo(names ...string) IssuersConfig {
	var cfg IssuersConfig
	for _, name := range names {
		cfg.Fallback = append(cfg.Fallback, issuer.Ref{Name: name})
	}
	return cfg
}

func TestIssuersFallBackAndReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "a", fallbackTo("b", "c"), false, "a b c")
		d.start()
		defer d.stop()
		d.is("a", "the static one, without being asked")
		pass(time.Hour)
		assert.ElementsMatch(t, []string{"b@0", "c@0"}, strings.Fields(d.askedSoFar()), "the others are asked once")
		assert.NotContains(t, d.events.text(), "NotInForce", "nothing is wrong with who is being asked")
		assert.Equal(t, 1.0, d.switched())

		d.becomes("a", "its secret is gone")
		d.is("b", "at once")
		assert.Contains(t, d.events.text(), "Warning NotInForce a: can't sign for the mesh: NotReady: Broken: its secret is gone")
		assert.Contains(t, d.events.text(), "Normal InForce b: signs for the mesh from now on: wanted is Issuer.cert-manager.io/a: NotReady")
		d.becomes("b", "its secret is gone too")
		d.is("c", "the next one")
		d.becomes("c", "all are gone")
		d.is("c", "a change for the worse is none")
		d.becomes("b", "")
		d.is("b", "")
		d.health.LedTo(refOf("a"), d.offices.cas[refOf("a")].root)
		d.becomes("a", "")
		d.is("a", "it is returned to")
		assert.Contains(t, d.events.text(), "Normal InForce a: signs for the mesh from now on: it is wanted")
		assert.Equal(t, 5.0, d.switched())
	})
}

func TestIssuersCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "a", fallbackTo("b"), false, "a b")
		d.start()
		defer d.stop()
		d.offices.cas[refOf("a")].set(errors.New("down"), false)
		pass(time.Minute)
		began := time.Now()
		d.fails("a")
		d.is("b", "at once")
		before := d.askedSoFar()
		pass(coolDownTime - time.Second)
		assert.Equal(t, before, d.askedSoFar(), "it is left alone")
		pass(3 * time.Minute)
		asked := strings.Count(d.askedSoFar(), "a@")
		assert.GreaterOrEqual(t, asked, 6, "then it is asked again and again")
		assert.LessOrEqual(t, asked, 13)
		d.is("b", "while it fails")
		d.offices.cas[refOf("a")].set(nil, false)
		pass(30 * time.Second)
		d.is("a", "an answer closes the circuit")
		assert.Less(t, time.Since(began), 5*time.Minute)
	})
}

// coolDownTime is how long an issuer is left alone whose circuit is open.
const coolDownTime = 30 * time.Second

// An issuer whose root isn't an anchor never signs; it is asked again rarely.
func TestIssuersHoldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "a", fallbackTo("b"), false, "a|b")
		d.start()
		defer d.stop()
		pass(time.Second)
		assert.Equal(t, "b@0", d.askedSoFar())
		assert.Contains(t, d.events.text(), "Warning NotInForce b: can't sign for the mesh: held back: its root")
		d.becomes("a", "gone")
		d.is("a", "rather nobody than one that isn't known")
		assert.Contains(t, strings.Join(d.Describe(), "\n"), "Issuer.cert-manager.io/b: held back: its root")
		pass(heldAgain - 10*time.Second)
		assert.Equal(t, "b@0", d.askedSoFar())
		pass(20 * time.Second)
		assert.Equal(t, 2, strings.Count(d.askedSoFar(), "b@"))
		d.trust("a", "b")
		d.is("b", "as soon as its root is distributed")
	})
}

// The issuer in force that leads elsewhere all of a sudden, because its CA was made anew, is said to.
func TestIssuersInForceHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "a", IssuersConfig{}, false, "a|b")
		d.start()
		defer d.stop()
		d.health.LedTo(refOf("a"), d.offices.cas[refOf("a")].root)
		pass(time.Minute)
		assert.NotContains(t, d.events.text(), "NotInForce")
		d.health.LedTo(refOf("a"), d.offices.cas[refOf("b")].root)
		pass(time.Minute)
		d.is("a", "there is no other")
		assert.Equal(t, 1, strings.Count(d.events.text(), "Warning NotInForce a: can't sign for the mesh: held back: its root"), d.events.text())
		assert.Contains(t, strings.Join(d.Describe(), "\n"), "; but requests are refused, and what it signs is held back: its root")
	})
}

// An issuer that doesn't say where it leads to is asked again, not all the time, and never two times at once.
func TestIssuersProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "a", fallbackTo("b"), false, "a b")
		d.offices.cas[refOf("b")].set(nil, true) // it hangs until the request's time is up
		d.start()
		defer d.stop()
		pass(5 * time.Minute)
		asked := strings.Fields(d.askedSoFar())
		assert.LessOrEqual(t, len(asked), 7, "%v: each takes half a minute, and a pause", asked)
		assert.GreaterOrEqual(t, len(asked), 2)
		assert.Contains(t, strings.Join(d.Describe(), "\n"), "its root is not known: ")
		d.becomes("a", "gone")
		d.is("a", "")
		d.offices.cas[refOf("b")].set(nil, false)
		pass(5 * time.Minute)
		d.is("b", "once it has answered")
	})
}

// Stopping waits for a probe, which doesn't keep it.
func TestIssuersStopWhileAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "a", fallbackTo("b"), false, "a b")
		d.offices.cas[refOf("b")].set(nil, true)
		d.offices.slow = time.Second
		d.start()
		began := time.Now()
		d.stop()
		assert.Equal(t, time.Second, time.Since(began))
	})
}

// Without anchors an issuer is asked where roots are trusted on first use, and nothing is put in force.
func TestIssuersBeforeThereAreAnchors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "a", fallbackTo("b"), true, "|a b")
		d.offices.cas[refOf("a")].set(errors.New("not yet"), false)
		d.start()
		defer d.stop()
		d.is("", "")
		pass(20 * time.Second)
		assert.InDelta(t, 10, strings.Count(d.askedSoFar(), "a@"), 4, "every two seconds")
		assert.Equal(t, 1, strings.Count(d.askedSoFar(), "b@"))
		roots, known := d.FirstUse()
		assert.True(t, known)
		assert.Len(t, roots, 2)
		assert.Nil(t, roots[refOf("a").String()])
		assert.Same(t, d.offices.cas[refOf("b")].root, roots[refOf("b").String()])
		assert.Equal(t, []string{"none is in force yet"}, d.Describe()[:1])
	})
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "a", fallbackTo("b"), false, "|a b")
		d.start()
		defer d.stop()
		pass(time.Minute)
		assert.Empty(t, d.askedSoFar(), "pinned anchors are waited for")
	})
}

// After a restart the issuer that was in force signs until the wanted one has shown where it leads to.
func TestIssuersAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "b", IssuersConfig{}, false, "a|b")
		d.store.Update(func(s *issuer.Snapshot) {
			state := *s.Rollover
			state.Issuer = refOf("a")
			s.Rollover = &state
		})
		d.start()
		defer d.stop()
		d.is("a", "b leads to a root that isn't distributed")
		assert.Equal(t, "b@0", d.askedSoFar())
		d.trust("a", "b")
		d.is("b", "")
	})
}

func TestIssuersRuntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := IssuersConfig{Runtime: issuer.RuntimeConfig{Name: runtimeMap}}
		d := newDeciding(t, "a", cfg, false, "a b c")
		d.start()
		defer d.stop()
		d.is("a", "without the ConfigMap the static one")

		d.maps.set(runtimeMap, map[string]string{"issuer-name": "b"})
		pass(time.Millisecond)
		d.is("b", "as soon as it has shown where it leads to")
		d.maps.set(runtimeMap, map[string]string{"issuer-name": "b", "issuer-kind": "typo"})
		d.is("b", "what can't be read changes nothing")
		assert.Contains(t, d.Describe()[len(d.Describe())-1], "ConfigMap istio-system/signet-issuer")
		d.becomes("b", "gone")
		d.is("b", "and nobody else is wanted")
		d.becomes("b", "")
		d.maps.set(runtimeMap, map[string]string{"issuer-name": "nowhere"})
		d.is("b", "what isn't there changes nothing")
		assert.Contains(t, strings.Join(d.Describe(), "\n"), "Issuer.cert-manager.io/nowhere: Missing")
		d.maps.set(runtimeMap, map[string]string{"issuer-name": "c"})
		pass(time.Millisecond)
		d.is("c", "")
		assert.NotContains(t, strings.Join(d.Describe(), "\n"), "ConfigMap")

		d.health.LedTo(refOf("a"), d.offices.cas[refOf("a")].root)
		d.maps.set(runtimeMap, nil)
		d.is("a", "the static one again")
	})
}

// slowConfigMaps are ConfigMaps that can't be read until answers is closed.
type slowConfigMaps struct {
	*configMaps
	answers chan struct{}
}

func (s *slowConfigMaps) List(ctx context.Context, options metav1.ListOptions) (*corev1.ConfigMapList, error) {
	<-s.answers
	return s.configMaps.List(ctx, options)
}

func (s *slowConfigMaps) Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	<-s.answers
	return s.configMaps.Watch(ctx, options)
}

// The static issuer isn't wanted before it is known that the ConfigMap names no other one.
func TestIssuersBeforeTheRuntimeOneIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "a", IssuersConfig{Runtime: issuer.RuntimeConfig{Name: runtimeMap}}, false, "a b")
		d.maps.set(runtimeMap, map[string]string{"issuer-name": "b"})
		maps := &slowConfigMaps{d.maps, make(chan struct{})}
		d.runtime = issuer.NewWatched(maps, runtimeMap)
		d.start()
		defer d.stop()
		pass(time.Minute)
		assert.NotEqual(t, "a", d.store.Current().Ref.Name)
		assert.Empty(t, d.askedSoFar())
		close(maps.answers)
		pass(time.Second)
		d.is("b", "")
		assert.Equal(t, 1.0, d.switched())
	})
}

func TestIssuersWithoutAny(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeciding(t, "", IssuersConfig{Runtime: issuer.RuntimeConfig{Name: runtimeMap}}, false, "a")
		d.start()
		defer d.stop()
		d.is("", "")
		assert.Equal(t, []string{"none is configured"}, d.Describe())
		roots, _ := d.FirstUse()
		assert.Empty(t, roots, "nobody's root is to be trusted")
		d.maps.set(runtimeMap, map[string]string{"issuer-name": "a"})
		pass(time.Millisecond)
		d.is("a", "")
		assert.Contains(t, d.log.String(), `msg="another issuer signs from now on" issuer=Issuer.cert-manager.io/a before=none`)
		d.maps.set(runtimeMap, nil)
		d.is("", "none is wanted any more")
		assert.Equal(t, []string{"none is configured"}, d.Describe())
		assert.Contains(t, d.log.String(), `msg="no issuer is configured: nothing can be signed" before=Issuer.cert-manager.io/a`)
	})
}

func TestIssuersDescribe(t *testing.T) {
	d := &Issuers{issuers: issuer.NewStore(refOf("a"))}
	for _, row := range []struct{ candidates, want string }{
		{"a=able", "Issuer.cert-manager.io/a is in force, Ready: verified"},
		{"a=unasked", "Issuer.cert-manager.io/a is in force, Ready: verified"},
		{"a=silent", "Issuer.cert-manager.io/a is in force, Ready: verified; its root is not known: no answer"},
		{"a=open", "Issuer.cert-manager.io/a is in force, Ready: verified; its circuit is open: 5 failed"},
		{"a=held", "Issuer.cert-manager.io/a is in force, Ready: verified; but requests are refused, and what it signs is held back: its root is published"},
		{"a=missing", "Issuer.cert-manager.io/a is in force, Missing: not there"},
		{"b=held a=able c=able", "Issuer.cert-manager.io/a is in force, Ready: verified\nIssuer.cert-manager.io/b: held back: its root is published\nIssuer.cert-manager.io/c: Ready: verified"},
		{"b=unasked a=external", "Issuer.cert-manager.io/a is in force, Unknown: external\nIssuer.cert-manager.io/b: its root is not known yet"},
	} {
		d.candidates = nil
		for field := range strings.FieldsSeq(row.candidates) {
			name, condition, _ := strings.Cut(field, "=")
			d.candidates = append(d.candidates, candidateIn(name, condition))
		}
		assert.Equal(t, row.want, strings.Join(d.Describe(), "\n"), row.candidates)
	}
	d.candidates = []candidate{candidateIn("a", "held and open")}
	assert.Equal(t, []string{"Issuer.cert-manager.io/a is in force, Ready: verified; its circuit is open: 5 failed"}, d.Describe())
	d.trouble = errors.New("one\ntwo")
	assert.Equal(t, "one; two", d.Describe()[len(d.Describe())-1], "each line is one")
}

func TestIssuersMetric(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	i := &Issuers{issuers: issuer.NewStore(refOf("a"))}
	registry.MustRegister(newIssuerStates(i))
	for n, condition := range []string{"able", "able", "external", "missing", "open", "held", "unasked"} {
		i.candidates = append(i.candidates, candidateIn(string(rune('a'+n)), condition))
	}
	got := make(map[string]float64)
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, m := range families[0].GetMetric() {
		got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
	}
	assert.Equal(t, map[string]float64{"in_force": 1, "able": 2, "not_ready": 1, "circuit_open": 1, "held": 1, "unknown": 1}, got)
}

// TestIssuerWantedMetric: it is about the first candidate, whichever is in force.
func TestIssuerWantedMetric(t *testing.T) {
	for _, row := range []struct{ wanted, want string }{{"able", "able"}, {"missing", "not_ready"}, {"open", "circuit_open"}, {"held", "held"}, {"unasked", "unknown"}, {"", ""}} {
		registry := prometheus.NewPedanticRegistry()
		i := &Issuers{issuers: issuer.NewStore(refOf("b"))}
		registry.MustRegister(newWantedState(i))
		if row.wanted != "" {
			i.candidates = []candidate{candidateIn("a", row.wanted), candidateIn("b", "able")}
		}
		families, err := registry.Gather()
		require.NoError(t, err)
		require.Len(t, families[0].GetMetric(), len(issuerStates))
		got := ""
		for _, m := range families[0].GetMetric() {
			if m.GetGauge().GetValue() != 0 {
				got += m.GetLabel()[0].GetValue()
			}
		}
		assert.Equal(t, row.want, got, row.wanted)
	}
}

func TestIssuersConfigValidate(t *testing.T) {
	for _, row := range []struct {
		cfg  IssuersConfig
		want string
	}{
		{IssuersConfig{}, ""},
		{IssuersConfig{Runtime: issuer.RuntimeConfig{Name: "signet-issuer", Namespace: "other"}, Fallback: []issuer.Ref{{Name: "x"}}}, ""},
		{IssuersConfig{Runtime: issuer.RuntimeConfig{Name: "A_B"}}, `issuers.runtime.name: "A_B" is not the name of a ConfigMap`},
		{IssuersConfig{Runtime: issuer.RuntimeConfig{Name: "x", Namespace: "a.b"}}, `issuers.runtime.namespace: "a.b" is not the name of a namespace`},
		{IssuersConfig{Fallback: []issuer.Ref{{Name: "x"}, {}}}, "issuers.fallback[1].name: must be set"},
		{IssuersConfig{Fallback: []issuer.Ref{{Name: "x", Kind: "Vault"}}}, "issuers.fallback[0].kind: "},
	} {
		p := setting.NewProblems()
		row.cfg.Validate(p.At("issuers"))
		if row.want == "" {
			assert.NoError(t, p.Err())
		} else {
			assert.ErrorContains(t, p.Err(), row.want)
		}
	}
}
