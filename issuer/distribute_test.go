package issuer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/setting"
)

func TestDistributionConfigValidate(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  DistributionConfig
		want string // "" is right
	}{
		{"defaults", DistributionConfig{}, ""},
		{"all", DistributionConfig{ConfigMap: "roots", NamespaceSelector: "mesh=on,env in (a,b)", ExcludeNamespaces: []string{"x"}, ClusterTrustBundle: "off"}, ""},
		{"name", DistributionConfig{ConfigMap: "Roots"}, `distribution.configMap: "Roots" is not the name of a ConfigMap`},
		{"selector", DistributionConfig{NamespaceSelector: "a in b"}, `distribution.namespaceSelector: "a in b" is not a label selector; write it as in "mesh=on,env in (prod,stage)"`},
		{"excluded", DistributionConfig{ExcludeNamespaces: []string{"ok", "kube-*"}}, `distribution.excludeNamespaces: "kube-*" is not the name of a namespace`},
		{"bundle", DistributionConfig{ClusterTrustBundle: "yes"}, `distribution.clusterTrustBundle: "yes" is not known; it must be auto, on or off`},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.cfg.Validate(p.At("distribution"))
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.EqualError(t, p.Err(), row.want)
			}
		})
	}
}

func TestRepairPauses(t *testing.T) {
	var got []time.Duration
	for strikes := range 14 {
		got = append(got, repairAfter(strikes))
	}
	s := time.Second
	assert.Equal(t, []time.Duration{0, 0, 0, s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 64 * s, 128 * s, 256 * s, 300 * s, 300 * s}, got)
	assert.Equal(t, maxRepairPause, repairAfter(1<<40))
	assert.Equal(t, time.Second, retryAfter(resultError, 1))
	assert.Equal(t, 30*time.Second, retryAfter(resultError, 1<<40))
	assert.Equal(t, 5*time.Second, retryAfter(resultForbidden, 1))
	assert.Equal(t, 5*time.Minute, retryAfter(resultForbidden, 20))
	assert.Equal(t, 250*time.Millisecond, outagePause(1))
	assert.Equal(t, 5*time.Second, outagePause(100))
	for strikes := range 20 {
		assert.Greater(t, calmAfter(strikes), repairAfter(strikes), "who undoes it at once stays in the fight")
	}
}

func TestClassify(t *testing.T) {
	cm := schema.GroupResource{Resource: "configmaps"}
	terminating := apierrors.NewForbidden(cm, "x", errors.New("being terminated"))
	terminating.ErrStatus.Details.Causes = append(terminating.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
	for want, errs := range map[string][]error{
		resultOK:          {nil},
		resultTerminating: {terminating},
		resultForbidden:   {apierrors.NewForbidden(cm, "x", errors.New("quota"))},
		resultInvalid:     {apierrors.NewInvalid(schema.GroupKind{Kind: "ConfigMap"}, "x", nil), apierrors.NewBadRequest("x"), apierrors.NewRequestEntityTooLargeError("x")},
		resultNotFound:    {apierrors.NewNotFound(cm, "x")},
		resultUnavailable: {apierrors.NewUnauthorized("x"), apierrors.NewServiceUnavailable("x"), apierrors.NewTooManyRequestsError("x"), context.DeadlineExceeded, errors.New("connection refused")},
		resultError:       {apierrors.NewInternalError(errors.New("webhook")), apierrors.NewConflict(cm, "x", errors.New("again")), apierrors.NewTimeoutError("x", 1)},
	} {
		for _, err := range errs {
			assert.Equal(t, want, classify(err), "%v", err)
			if err != nil {
				assert.Equal(t, want, classify(fmt.Errorf("wrapped: %w", err)), "%v", err)
			}
		}
	}
}

func TestForeignManager(t *testing.T) {
	entry := func(manager string, operation metav1.ManagedFieldsOperationType, at int64, fields string) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{Manager: manager, Operation: operation, Time: &metav1.Time{Time: time.Unix(at, 0)}, FieldsV1: metav1.NewFieldsV1(fields)}
	}
	const data = `{"f:data":{".":{},"f:root-cert.pem":{}}}`
	paths := [][]string{{"f:data", "f:root-cert.pem"}, {"f:metadata", "f:labels", "f:istio.io/config"}}
	for name, row := range map[string]struct {
		entries []metav1.ManagedFieldsEntry
		want    string
	}{
		"none":           {nil, ""},
		"ours":           {[]metav1.ManagedFieldsEntry{entry("signet", "Apply", 1, data)}, ""},
		"our name":       {[]metav1.ManagedFieldsEntry{entry("signet", "Update", 1, data)}, "signet"},
		"other's data":   {[]metav1.ManagedFieldsEntry{entry("signet", "Apply", 1, data), entry("other", "Update", 2, data)}, "other"},
		"other's label":  {[]metav1.ManagedFieldsEntry{entry("other", "Update", 2, `{"f:metadata":{"f:labels":{"f:istio.io/config":{}}}}`)}, "other"},
		"beside":         {[]metav1.ManagedFieldsEntry{entry("other", "Update", 2, `{"f:data":{"f:notes":{}},"f:metadata":{"f:labels":{}}}`)}, ""},
		"the last one":   {[]metav1.ManagedFieldsEntry{entry("b", "Update", 3, data), entry("a", "Update", 2, data)}, "b"},
		"without a name": {[]metav1.ManagedFieldsEntry{entry("", "Update", 3, data)}, "somebody without a name"},
		"not fields":     {[]metav1.ManagedFieldsEntry{entry("x", "Update", 3, "[]"), {Manager: "y"}}, ""},
	} {
		assert.Equal(t, row.want, foreignManager(row.entries, paths), name)
	}
}

func TestCut(t *testing.T) {
	assert.Equal(t, "abc", cut("abc", 3))
	assert.Equal(t, "ab", cut("abc", 2))
	assert.Equal(t, "a", cut("aé", 2), "not within a character")
	assert.Empty(t, cut("é", 1))
}

func TestTopManagers(t *testing.T) {
	assert.Equal(t, map[string]int{"a": 1}, topManagers(map[string]int{"a": 1}, 2))
	assert.Equal(t, map[string]int{"c": 5, "a": 2, "other": 3}, topManagers(map[string]int{"a": 2, "b": 2, "c": 5, "d": 1}, 2))
}

// placeNamed is a place for tests of the queue.
func placeNamed(name string) *place { return &place{name: name} }

func TestPlaceQueueOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newPlaceQueue()
		now := time.Now()
		a, b, c, d, e := placeNamed("a"), placeNamed("b"), placeNamed("c"), placeNamed("d"), placeNamed("e")
		q.add(a, urgentMass, now)
		q.add(b, urgentMass, now)
		q.add(c, urgentRepair, now)
		q.add(d, urgentNew, now)
		q.add(e, urgentMass, now.Add(time.Minute))
		q.add(a, urgentMass, now) // once is enough
		q.add(b, urgentNew, now)  // goes ahead, behind d
		q.add(c, urgentMass, now) // stays where it is
		for _, want := range []*place{d, b, c, a} {
			assert.Same(t, want, q.take())
			q.done(want)
		}
		began := time.Now()
		assert.Same(t, e, q.take())
		assert.Equal(t, time.Minute, time.Since(began), "not before it is due")
		q.done(e)

		// The earlier time counts.
		q.add(a, urgentMass, time.Now().Add(time.Hour))
		q.add(a, urgentMass, time.Now().Add(time.Minute))
		q.add(a, urgentMass, time.Now().Add(2*time.Hour))
		began = time.Now()
		assert.Same(t, a, q.take())
		assert.Equal(t, time.Minute, time.Since(began))
		q.done(a)

		q.close()
		assert.Nil(t, q.take())
	})
}

func TestPlaceQueueOneWorkerPerPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newPlaceQueue()
		a := placeNamed("a")
		q.add(a, urgentMass, time.Now())
		require.Same(t, a, q.take())
		q.add(a, urgentMass, time.Now().Add(time.Hour))
		q.add(a, urgentMass, time.Now().Add(time.Second)) // while it is worked on
		taken := make(chan *place)
		go func() { taken <- q.take() }()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		select {
		case <-taken:
			t.Fatal("it is being worked on")
		default:
		}
		q.done(a)
		assert.Same(t, a, <-taken)
		q.done(a)

		go func() { taken <- q.take() }()
		synctest.Wait()
		select {
		case <-taken:
			t.Fatal("there is nothing to do")
		default:
		}
		q.close()
		assert.Nil(t, <-taken)
	})
}

func TestPlaceQueueHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newPlaceQueue()
		q.hold(time.Now().Add(time.Second))
		q.add(placeNamed("a"), urgentNew, time.Now())
		began := time.Now()
		var group sync.WaitGroup
		for range 3 {
			group.Go(func() {
				if p := q.take(); p != nil {
					assert.Equal(t, time.Second, time.Since(began))
					q.done(p)
					q.close()
				}
			})
		}
		group.Wait()
	})
}

// ruled is a distribution whose writes a test makes itself, with everything seen.
func ruled(t *testing.T, namespaces ...string) *distribution {
	t.Helper()
	d, err := NewDistributor(DistributionConfig{}, &rest.Config{Host: "https://192.0.2.1"}, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), nil)
	require.NoError(t, err)
	term := newDistribution(d)
	d.term = term
	term.setDocuments([]Document{rootsOf("one")}, func(*sheet) func() { return func() {} })
	term.mu.Lock()
	defer term.unlock()
	for _, name := range namespaces {
		term.seeNamespace(name, types.UID(name), nil, false)
	}
	term.homesSeen = true
	term.sheets["istio-ca-root-cert"].seen = true
	term.bundleSays.State = BundleOff
	term.recheckAll()
	return term
}

func rootsOf(text string) Document {
	return Document{ConfigMap: "istio-ca-root-cert", Key: rootCertKey, Data: text}
}

// seen is a ConfigMap with text, at a version.
func seen(text string, version uint64) sight {
	return sight{exists: true, labelled: true, hash: sha256.Sum256([]byte(text)), version: version, uid: "u"}
}

// written is a good answer to the write of what is in force.
func (t *distribution) written(p *place, version int) {
	t.mu.Lock()
	defer t.unlock()
	t.answered(p, p.sheet.hash, &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{ResourceVersion: fmt.Sprint(version)}}, nil, time.Now())
}

// refusedWith is a bad answer.
func (t *distribution) refusedWith(p *place, err error) {
	t.mu.Lock()
	defer t.unlock()
	t.answered(p, p.sheet.hash, nil, err, time.Now())
}

func (t *distribution) shown(namespace string, s sight) {
	t.mu.Lock()
	defer t.unlock()
	t.see(t.sheets["istio-ca-root-cert"], namespace, s)
}

func (t *distribution) at(namespace string) *place {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sheets["istio-ca-root-cert"].places[namespace]
}

// Nothing may look as if it were carried everywhere before everything has been looked at.
func TestProgressIsNotKnownTooEarly(t *testing.T) {
	one := rootsOf("one")
	d := ruled(t).Distributor
	term := newDistribution(d)
	d.term = term
	term.bundleSays.State = BundleOff
	known := func() bool { p := d.Progress(); assert.Equal(t, p.Known, p.Carried(one)); return p.Known }
	assert.False(t, known())
	term.setDocuments([]Document{one}, func(*sheet) func() { return func() {} })
	assert.False(t, known(), "no namespaces seen")
	s := term.sheets[one.ConfigMap]
	term.mu.Lock()
	term.seeNamespace("kube-system", "1", nil, false)
	assert.Equal(t, placeUnknown, s.places["kube-system"].state, "it may carry the document already")
	assert.False(t, s.places["kube-system"].slot.waiting, "so nothing is written")
	term.missNamespace("kube-system")
	term.unlock()
	term.mu.Lock()
	term.homesSeen = true
	term.mu.Unlock()
	assert.False(t, known(), "no ConfigMaps seen")
	term.mu.Lock()
	s.seen, term.homesSeen = true, false
	term.mu.Unlock()
	assert.False(t, known(), "no namespaces seen")
	term.mu.Lock()
	term.homesSeen = true
	term.unlock()
	assert.True(t, known(), "there are none")

	// A second document, whose ConfigMaps are still to be seen.
	term.setDocuments([]Document{one, {ConfigMap: "istio-ca-crl", Key: "ca-crl.pem", Data: "crl"}}, func(*sheet) func() { return func() {} })
	assert.False(t, d.Progress().Known)
	d.term = nil
	assert.False(t, known())
}

func TestProgressCounts(t *testing.T) {
	term := ruled(t, "a", "b", "kube-public")
	_, changed := term.Watch()
	p := term.Distributor.Progress()
	require.Len(t, p.Documents, 1)
	doc := p.Documents[0]
	assert.Equal(t, 2, doc.Selected)
	assert.Zero(t, doc.Carrying)
	require.Len(t, doc.Without, 2)
	assert.Equal(t, "a", doc.Without[0].Namespace)
	assert.Equal(t, "waits for its turn", doc.Without[0].Reason)
	term.written(term.at("a"), 10)
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	term.shown("b", seen("one", 11))
	assert.True(t, term.Distributor.Progress().Carried(rootsOf("one")))
	assert.False(t, term.Distributor.Progress().Carried(rootsOf("two")))
	assert.False(t, term.Distributor.Progress().Carried(Document{ConfigMap: "other", Key: rootCertKey, Data: "one"}))

	// Another document: none carries it, at once.
	term.setDocuments([]Document{rootsOf("two")}, nil)
	p = term.Distributor.Progress()
	assert.Zero(t, p.Documents[0].Carrying)
	assert.False(t, p.Carried(rootsOf("one")))

	// The names are bounded.
	var many []string
	for i := range 2 * MaxWithout {
		many = append(many, fmt.Sprintf("n%03d", i))
	}
	doc = ruled(t, many...).Distributor.Progress().Documents[0]
	assert.Len(t, doc.Without, MaxWithout)
	assert.Equal(t, 2*MaxWithout, doc.Selected)
}

func TestProgressWaits(t *testing.T) {
	doc := rootsOf("one")
	good := func() Progress {
		return Progress{
			Known:              true,
			Documents:          []DocumentProgress{{ConfigMap: doc.ConfigMap, Key: doc.Key, Hash: doc.Hash(), Selected: 3, Carrying: 3}},
			ClusterTrustBundle: BundleProgress{State: BundleCarrying, Hash: doc.Hash()},
		}
	}
	for _, row := range []struct {
		spoil func(*Progress)
		want  string
	}{
		{func(*Progress) {}, ""},
		{func(p *Progress) { p.ClusterTrustBundle = BundleProgress{State: BundleOff} }, ""},
		{func(p *Progress) { p.ClusterTrustBundle = BundleProgress{State: BundleNotServed} }, ""},
		{func(p *Progress) { p.Known = false }, "the namespaces to be looked at"},
		{func(p *Progress) { p.Known, p.Trouble = false, "forbidden" }, "the namespaces to be looked at: forbidden"},
		{func(p *Progress) { p.Disabled = true }, "whoever distributes instead of Signet"},
		{func(p *Progress) { p.Documents = nil }, "the document to be put in force"},
		{func(p *Progress) { p.Documents[0].Key = "other" }, "the document to be put in force"},
		{func(p *Progress) { p.Documents[0].Hash = "other" }, "the document to be put in force"},
		{func(p *Progress) { p.Documents[0].Refused = "too large" }, "a document that can be distributed: too large"},
		{func(p *Progress) { p.Documents[0].Carrying = 2 }, "1 of 3 namespaces to carry it"},
		{func(p *Progress) {
			p.Documents[0].Carrying, p.Documents[0].Without = 1, []Without{{Namespace: "a", Reason: "quota"}}
		}, "2 of 3 namespaces to carry it, such as a: quota"},
		{func(p *Progress) { p.Documents[0].SecondWriters = 1 }, "somebody else to leave it alone in 1 namespaces"},
		{func(p *Progress) { p.ClusterTrustBundle = BundleProgress{State: BundleUnknown} }, "the ClusterTrustBundle to carry it"},
		{func(p *Progress) { p.ClusterTrustBundle.Hash = "other" }, "the ClusterTrustBundle to carry it"},
		{func(p *Progress) { p.ClusterTrustBundle = BundleProgress{State: BundleFailing, Reason: "no"} }, "the ClusterTrustBundle to carry it: no"},
	} {
		p := good()
		row.spoil(&p)
		assert.Equal(t, row.want, p.Waits(doc))
		assert.Equal(t, row.want == "", p.Carried(doc))
	}
	p := good()
	p.ClusterTrustBundle.State = BundleFailing
	p.Documents[0].ConfigMap, p.Documents[0].Key = "istio-ca-crl", "ca-crl.pem"
	assert.True(t, p.Carried(Document{ConfigMap: "istio-ca-crl", Key: "ca-crl.pem", Data: "one"}), "it has nothing to do with CRLs")
}

// The watch may show what was before our write only after the write was answered.
func TestOlderSightsDontCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := ruled(t, "a")
		p := term.at("a")
		term.written(p, 20)
		require.Equal(t, placeCarrying, p.state)
		term.shown("a", seen("evil", 19))
		assert.Equal(t, placeCarrying, p.state)
		term.shown("a", sight{version: 18}) // its deletion before
		assert.Equal(t, placeCarrying, p.state)
		term.mu.Lock()
		term.keepOnly(p.sheet, nil, 17) // a list from before
		term.unlock()
		assert.Equal(t, placeCarrying, p.state)
		term.shown("a", seen("one", 20))
		assert.Equal(t, placeCarrying, p.state)
		term.shown("a", seen("evil", 21))
		assert.Equal(t, placePending, p.state)

		// Not for ever: versions may begin anew.
		time.Sleep(2 * believeWrites)
		term.shown("a", seen("one", 5))
		assert.Equal(t, placeCarrying, p.state)
		term.mu.Lock()
		term.keepOnly(p.sheet, nil, 6)
		term.unlock()
		assert.Equal(t, placePending, p.state)
	})
}

// The watch may be ahead of the answer, and show already that others undid the write.
func TestAnswerBehindTheWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := ruled(t, "a")
		p := term.at("a")
		evil := seen("evil", 31)
		evil.writer = "other"
		term.shown("a", evil)
		term.written(p, 30)
		assert.Equal(t, placePending, p.state)
		assert.Equal(t, "other", p.writer)

		// Admission changed it: what is seen has the version of the answer, and will never change.
		term.shown("a", seen("by admission", 40))
		p.writer = ""
		term.written(p, 40)
		assert.Equal(t, placePending, p.state)
		assert.Equal(t, "another Signet or an admission webhook", p.writer)
	})
}

func TestStrikes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := ruled(t, "a")
		p := term.at("a")
		version := 100
		round := func() (pause time.Duration) {
			version += 2
			term.written(p, version)
			evil := seen("evil", uint64(version+1))
			evil.writer = "other"
			term.shown("a", evil)
			return time.Until(p.due())
		}
		for _, want := range []time.Duration{0, 0, 0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second} {
			assert.Equal(t, want, max(0, round()))
			time.Sleep(time.Until(p.due()))
		}
		assert.Equal(t, "other", p.writer)
		assert.Equal(t, map[string]int{"other": 1}, term.census(time.Now()).fights)

		// A new document doesn't end the fight, and is written at once where nobody fights.
		term.setDocuments([]Document{rootsOf("two")}, nil)
		assert.Equal(t, 6, p.strikes)

		// It is over when it was calm for long.
		version += 2
		term.written(p, version)
		time.Sleep(calmAfter(p.strikes) + time.Second)
		assert.Empty(t, term.census(time.Now()).fights)
		term.shown("a", seen("evil", uint64(version+1)))
		assert.LessOrEqual(t, time.Until(p.due()), time.Duration(0), "repaired at once")
	})
}

func TestNamespaceOfTheSameName(t *testing.T) {
	term := ruled(t, "a")
	p := term.at("a")
	term.mu.Lock()
	term.failed(p, resultForbidden, "no")
	p.strikes, p.wroteAt = 10, time.Now()
	term.seeNamespace("a", "a", nil, true)
	assert.Equal(t, placeSkipped, p.state)
	term.seeNamespace("a", "a", labels.Set{"x": "y"}, false)
	assert.Equal(t, placeSkipped, p.state, "what is being deleted doesn't come back")
	term.seeNamespace("a", "another", nil, false)
	term.unlock()
	assert.Equal(t, placePending, p.state)
	assert.False(t, p.due().After(time.Now()), "nothing is held against it")

	term.mu.Lock()
	term.missNamespace("a")
	term.missNamespace("a")
	assert.Empty(t, term.homes)
	assert.Empty(t, term.sheets["istio-ca-root-cert"].places)
	term.unlock()
	p2 := term.Distributor.Progress()
	assert.Zero(t, p2.Documents[0].Selected)
}

// It is said once that a document is carried everywhere, and not before.
func TestWholeness(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	for range 20 { // maps have no order
		term := ruled(t, names...)
		var log bytes.Buffer
		term.log = slog.New(slog.NewTextHandler(&log, nil))
		for _, name := range names[1:] {
			term.shown(name, seen("one", 5))
		}
		term.shown("a", seen("two", 5))
		whole := func() bool { return term.sheets["istio-ca-root-cert"].whole }
		assert.False(t, whole())
		term.setDocuments([]Document{rootsOf("two")}, nil)
		assert.False(t, whole(), "one carries it already")
		for _, name := range names[1:] {
			assert.False(t, whole())
			term.shown(name, seen("two", 6))
		}
		assert.True(t, whole())
		assert.Regexp(t, `msg="trust document is carried everywhere" .* carrying=8 took_seconds=[0-9.e-]+\n$`, log.String())
	}
}

// What is immutable can't be written, so it isn't tried.
func TestStuck(t *testing.T) {
	term := ruled(t)
	for version, row := range []struct {
		seen sight
		want placeState
	}{
		{sight{exists: true, labelled: true, immutable: true}, placeFailing},
		{sight{exists: true, labelled: true, immutable: true, hash: sha256.Sum256([]byte("one"))}, placeCarrying},
		{sight{exists: true, immutable: true, hash: sha256.Sum256([]byte("one"))}, placePending}, // only its label
		{sight{exists: true, immutable: true, binary: true}, placeFailing},
		{sight{}, placePending},
	} {
		name := fmt.Sprintf("n%d", version)
		row.seen.version = uint64(version + 1)
		term.shown(name, row.seen)
		term.mu.Lock()
		term.seeNamespace(name, types.UID(name), nil, false)
		term.unlock()
		if p := term.at(name); assert.NotNil(t, p) {
			assert.Equal(t, row.want, p.state, name)
			assert.Equal(t, row.want == placePending, p.slot.waiting, name)
		}
	}
}

// Pods of a new namespace wait for it, when a mass of others has to be written too.
func TestUrgency(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f"}
	term := ruled(t, names...)
	for _, name := range names {
		term.shown(name, seen("one", 5))
	}
	for range names { // what ruled queued
		term.queue.done(term.queue.take())
	}
	term.setDocuments([]Document{rootsOf("two")}, nil)
	term.shown("c", sight{version: 6})
	term.mu.Lock()
	term.seeNamespace("later", "later", nil, false)
	term.seeNamespace("kube-public", "kube-public", nil, false)
	term.unlock()
	var order []string
	for range len(names) + 1 {
		p := term.queue.take()
		order = append(order, p.name)
		term.queue.done(p)
	}
	assert.Equal(t, []string{"later", "c"}, order[:2])
}

func TestAnswers(t *testing.T) {
	cm := schema.GroupResource{Resource: "configmaps"}
	terminating := apierrors.NewForbidden(cm, "x", errors.New("being terminated"))
	terminating.ErrStatus.Details.Causes = append(terminating.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
	for name, row := range map[string]struct {
		err   error
		state placeState
		pause bool // for this place
		held  bool // all
	}{
		"terminating": {terminating, placeSkipped, false, false},
		"not found":   {apierrors.NewNotFound(cm, "x"), placePending, true, false},
		"forbidden":   {apierrors.NewForbidden(cm, "x", errors.New("quota")), placeFailing, true, false},
		"invalid":     {apierrors.NewInvalid(schema.GroupKind{Kind: "ConfigMap"}, "x", nil), placeFailing, true, false},
		"webhook":     {apierrors.NewInternalError(errors.New("webhook")), placePending, true, false},
		"no answer":   {errors.New("connection refused"), placePending, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // some pauses are short
				term := ruled(t, "a")
				p := term.at("a")
				term.refusedWith(p, row.err)
				assert.Equal(t, row.state, p.state)
				assert.Equal(t, row.pause, p.due().After(time.Now()))
				assert.Equal(t, row.held, term.queue.held.After(time.Now()))
				term.shown("a", seen("one", 9))
				if row.state != placeSkipped {
					assert.Equal(t, placeCarrying, p.state)
					assert.Empty(t, p.why())
				}
			})
		})
	}
}

// What passes by itself isn't made known, what doesn't is, once.
func TestGrave(t *testing.T) {
	term := ruled(t, "a")
	p := term.at("a")
	term.mu.Lock()
	defer term.mu.Unlock()
	for n, want := range map[int]placeState{0: placePending, 1: placePending, 2: placeFailing, 3: placeFailing} {
		term.said, p.made = nil, false
		p.tried("")
		for range n + 1 {
			term.failed(p, resultError, "webhook")
			term.check(p, urgentMass)
		}
		assert.Equal(t, want, p.state, "after %d", n+1)
		assert.Len(t, term.said, min(1, max(0, n-1)))
	}
	term.said = nil
	term.failed(p, resultForbidden, "no")
	term.failed(p, resultForbidden, "no")
	assert.Len(t, term.said, 1)
	assert.True(t, p.grave())
	term.said = nil
}

// A ConfigMap may be seen before its namespace, and after.
func TestConfigMapWithoutNamespace(t *testing.T) {
	term := ruled(t)
	term.shown("a", seen("one", 5))
	assert.Zero(t, term.Distributor.Progress().Documents[0].Selected)
	term.mu.Lock()
	term.seeNamespace("a", "a", nil, false)
	term.unlock()
	assert.Equal(t, placeCarrying, term.at("a").state)
	term.mu.Lock()
	term.missNamespace("a")
	term.unlock()
	require.NotNil(t, term.at("a"))
	term.shown("a", sight{version: 9})
	assert.Nil(t, term.at("a"))
}

func TestTwoDocumentsOfOneConfigMap(t *testing.T) {
	term := ruled(t, "a")
	term.setDocuments([]Document{rootsOf("one"), {ConfigMap: "istio-ca-root-cert", Key: "other", Data: "x"}}, nil)
	p := term.Distributor.Progress()
	require.Len(t, p.Documents, 1)
	assert.Equal(t, rootCertKey, p.Documents[0].Key)
}

func TestRefusedDocuments(t *testing.T) {
	s := &sheet{resource: configMapResource}
	assert.Empty(t, s.refuse(Document{ConfigMap: "a", Key: "a", MayBeEmpty: true}))
	for want, d := range map[string]Document{
		"":                              rootsOf("x"),
		"it is empty":                   rootsOf(""),
		"it has 1048577 bytes":          rootsOf(strings.Repeat("x", maxDocumentBytes+1)),
		"it is not UTF-8":               rootsOf("\xff"),
		"is not the name of":            {ConfigMap: "A", Key: "a", Data: "x"},
		`"a/b" is not a key of a Confi`: {ConfigMap: "a", Key: "a/b", Data: "x"},
	} {
		if got := s.refuse(d); want == "" {
			assert.Empty(t, got)
		} else {
			assert.Contains(t, got, want)
		}
	}
}

func TestStartTwice(t *testing.T) {
	d := ruled(t).Distributor
	d.term = newDistribution(d)
	assert.ErrorContains(t, d.Start(t.Context()), "running already")
}

// Hash is what a rollover compares.
func TestDocumentHash(t *testing.T) {
	assert.Equal(t, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", Document{Data: "abc"}.Hash())
}
