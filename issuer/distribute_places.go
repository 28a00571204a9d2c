package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// maxDocumentBytes is what a ConfigMap holds.
	maxDocumentBytes = 1 << 20
	// configLabel marks what Istio reads (R51); its value is configLabelValue.
	configLabel      = "istio.io/config"
	configLabelValue = "true"
	// TrustBundleName and TrustBundleSigner are what Istio looks for (R53).
	TrustBundleName   = "istio.io:istiod-ca:root-cert"
	TrustBundleSigner = "istio.io/istiod-ca"
)

var configMapResource = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}

// distribution is one term of a distributor: what it knows of the cluster, from the moment when it
// begins to run until it ends. Its words: a sheet is a document in force; a place is where a sheet must
// be, the ConfigMap in one namespace or the ClusterTrustBundle; a sight is how a place was seen last.
type distribution struct {
	*Distributor
	queue *placeQueue

	// mu guards the following. Nothing is written, logged or asked while it is held.
	mu         sync.Mutex
	said       []func()          // to be said by unlock
	homes      map[string]*home  // by name
	homesSeen  bool              // whether all namespaces are known
	sheets     map[string]*sheet // by name of the ConfigMap
	bundle     *sheet            // the ClusterTrustBundle's, nil while it isn't written
	bundleSays BundleProgress    // while bundle is nil
	trouble    map[string]error  // by what can't be listed or watched
	outage     int               // failures in a row to reach the API server
	heldUntil  time.Time         // because of an outage
	stops      map[*sheet]func() // end the watching of sheets
}

// home is a namespace, or for the ClusterTrustBundle the cluster.
type home struct {
	name        string
	uid         types.UID
	selected    bool
	terminating bool
}

// wanted says whether documents must be carried.
func (h *home) wanted() bool { return h != nil && h.selected && !h.terminating }

// sheet is a document in force.
type sheet struct {
	resource  schema.GroupVersionResource
	name, key string
	text      string
	hash      [sha256.Size]byte // of text
	body      []byte            // applied as it is, everywhere; nil while there is no document that can be
	refused   string
	seen      bool // whether all places are known
	places    map[string]*place
	count     [placeStates]int
	since     time.Time // when the document came into force
	whole     bool      // whether it was carried everywhere since then
}

// cluster says that the sheet is the ClusterTrustBundle's.
func (s *sheet) cluster() bool { return s.resource != configMapResource }

// listing is what the sheet needs to be allowed, for people.
func (s *sheet) listing() string {
	if s.cluster() {
		return "list ClusterTrustBundle " + s.name
	}
	return "list ConfigMaps " + s.name
}

// sight is how a place was seen.
type sight struct {
	exists    bool
	immutable bool
	labelled  bool
	binary    bool // binaryData holds the key, which keeps data from holding it
	hash      [sha256.Size]byte
	version   uint64 // resource version; 0 when it isn't a number
	uid       types.UID
	writer    string // another field manager that owns what we write; empty when none does
}

// place is where a sheet must be.
type place struct {
	slot  slot
	sheet *sheet
	home  *home // nil while there is no such namespace
	name  string

	seen   sight
	state  placeState
	result string    // of the last try, see classify; empty after a good one
	reason string    // for people, of result
	tries  int       // with that result, in a row
	made   bool      // known, by report
	next   time.Time // for the next try after a failed one
	lacks  time.Time // since when it doesn't carry the sheet

	wrote   [sha256.Size]byte // what was written last
	wroteAt time.Time
	strikes int       // writes in a row that others undid soon
	told    time.Time // when others were told of the strikes
	writer  string    // who undid it last
}

// placeState is how a place stands.
type placeState uint8

const (
	placeUnknown placeState = iota
	placeSkipped            // nothing must be there
	placePending            // is going to be written
	placeFailing            // can't be written
	placeCarrying
	placeStates
)

func newDistribution(d *Distributor) *distribution {
	t := &distribution{
		Distributor: d,
		queue:       newPlaceQueue(),
		homes:       make(map[string]*home),
		sheets:      make(map[string]*sheet),
		trouble:     make(map[string]error),
		stops:       make(map[*sheet]func()),
		bundleSays:  BundleProgress{State: BundleUnknown},
	}
	if d.cfg.ClusterTrustBundle == bundleOff {
		t.bundleSays.State = BundleOff
	}
	return t
}

// unlock gives up mu, and says what was to be said.
func (t *distribution) unlock() {
	said := t.said
	t.said = nil
	t.mu.Unlock()
	for _, say := range said {
		say()
	}
}

// say has what said after mu is given up. The caller holds mu.
func (t *distribution) say(what func()) { t.said = append(t.said, what) }

// carries says whether the place carries the sheet.
func (p *place) carries() bool {
	return p.seen.exists && p.seen.labelled && !p.seen.binary && p.seen.hash == p.sheet.hash
}

// stuck says that nobody can write the place unless its object is deleted.
func (p *place) stuck() bool {
	return p.seen.exists && p.seen.immutable && (p.seen.binary || p.seen.hash != p.sheet.hash)
}

// due is when the place may be written: not before a failed try may be repeated, and ever later when
// others undo what is written.
func (p *place) due() time.Time {
	due := p.wroteAt.Add(repairAfter(p.strikes))
	if p.next.After(due) {
		due = p.next
	}
	return due
}

// check decides how a place stands now, and queues it when it has to be written. The caller holds mu.
func (t *distribution) check(p *place, u urgency) {
	t.decide(p, u)
	t.wholeness(p.sheet)
}

// recheck looks at all places of a sheet anew. The caller holds mu.
func (t *distribution) recheck(s *sheet, u urgency) {
	for _, p := range s.places {
		t.decide(p, u)
	}
	t.wholeness(s)
}

// decide is check for one place of several: until all are decided, their sheet's counts mean nothing.
func (t *distribution) decide(p *place, u urgency) {
	s := p.sheet
	switch {
	case !p.home.wanted():
		t.set(p, placeSkipped)
	case s.body == nil || !t.homesSeen || !s.seen:
		t.set(p, placeUnknown)
	case p.carries():
		p.tried("")
		t.set(p, placeCarrying)
	case p.stuck():
		t.failed(p, resultImmutable, "the ConfigMap is immutable and holds something else; it has to be deleted")
		t.set(p, placeFailing)
	default:
		state := placePending
		if p.grave() {
			state = placeFailing
		}
		t.set(p, state)
		t.queue.add(p, u, p.due())
	}
}

// tried notes the result of a try. One that differs from the last one begins anew to count.
func (p *place) tried(result string) {
	if p.result == result && result != "" {
		p.tries++
		return
	}
	p.result, p.reason, p.tries, p.made, p.next = result, "", 1, false, time.Time{}
}

// grave says that the last tries failed in a way that doesn't pass by itself.
func (p *place) grave() bool {
	switch p.result {
	case "", resultNotFound, resultUnavailable:
		return false
	case resultError:
		return p.tries >= graveAt
	}
	return true
}

// fought says whether others keep undoing what is written.
func (p *place) fought(now time.Time) bool {
	return p.strikes >= fightAt && now.Sub(p.wroteAt) < calmAfter(p.strikes)
}

// set changes the state of a place. The caller holds mu.
func (t *distribution) set(p *place, state placeState) {
	now := time.Now()
	switch state {
	case placePending, placeFailing:
		if p.lacks.IsZero() {
			p.lacks = now
		}
	default:
		if state == placeCarrying && !p.lacks.IsZero() {
			t.metrics.delay.Observe(now.Sub(p.lacks).Seconds())
		}
		p.lacks = time.Time{}
	}
	s := p.sheet
	if p.state != state {
		s.count[p.state]--
		s.count[state]++
		p.state = state
		t.notify()
	}
}

// wholeness says once, for each document, that it is carried everywhere. The caller holds mu.
func (t *distribution) wholeness(s *sheet) {
	if s.whole || s.body == nil || !s.seen || !t.homesSeen || s.count[placePending]+s.count[placeFailing]+s.count[placeUnknown] > 0 {
		return
	}
	s.whole = true
	name, hash, carrying, took := s.name, hex.EncodeToString(s.hash[:]), s.count[placeCarrying], time.Since(s.since)
	t.say(func() {
		t.log.Info("trust document is carried everywhere", "object", name, "sha256", hash, "carrying", carrying, "took_seconds", took.Seconds())
	})
}

// place is the one of s in a namespace, made if there is none. The caller holds mu.
func (t *distribution) place(s *sheet, namespace string) *place {
	p := s.places[namespace]
	if p == nil {
		p = &place{sheet: s, home: t.homes[namespace], name: namespace}
		s.places[namespace] = p
		s.count[p.state]++
	}
	return p
}

// leave forgets a place where nothing is and nothing must be. The caller holds mu.
func (t *distribution) leave(p *place) {
	if p.home == nil && !p.seen.exists && p.sheet.places[p.name] == p {
		p.sheet.count[p.state]--
		delete(p.sheet.places, p.name)
	}
}

// seeNamespace takes in how a namespace is. The caller holds mu.
func (t *distribution) seeNamespace(name string, uid types.UID, set labels.Set, terminating bool) {
	h := t.homes[name]
	u := urgentMass
	if h == nil {
		h = &home{name: name}
		t.homes[name] = h
	}
	before := *h
	if h.uid != uid {
		*h = home{name: name, uid: uid}
	}
	h.selected = !t.excluded[name] && t.selector.Matches(set)
	h.terminating = terminating || h.terminating // which ends with its UID only
	if *h == before {
		return
	}
	if t.homesSeen && !before.wanted() {
		u = urgentNew
	}
	for _, s := range t.sheets {
		p := t.place(s, name)
		p.home = h
		if before.uid != uid { // another namespace of the same name
			p.forget()
		}
		t.check(p, u)
	}
	t.notify()
}

// forget what was tried in a namespace that is gone. What was seen stays until the watch tells more.
func (p *place) forget() {
	p.tried("")
	p.strikes = 0
	p.wrote, p.wroteAt, p.told = [sha256.Size]byte{}, time.Time{}, time.Time{}
}

// missNamespace takes in that a namespace is gone. The caller holds mu.
func (t *distribution) missNamespace(name string) {
	if t.homes[name] == nil {
		return
	}
	delete(t.homes, name)
	for _, s := range t.sheets {
		if p := s.places[name]; p != nil {
			p.home = nil
			t.check(p, urgentMass)
			t.leave(p)
		}
	}
	t.notify()
}

// believeWrites is how long an answer to a write counts for more than an older version that the watch
// shows: it may lag. Not for ever, because versions begin anew when etcd is restored from a backup.
const believeWrites = 30 * time.Second

// older says that version is one from before our last write.
func (p *place) older(version uint64, now time.Time) bool {
	return version != 0 && version < p.seen.version && now.Sub(p.wroteAt) < believeWrites
}

// see takes in how the watch shows the object of a place. The caller holds mu.
func (t *distribution) see(s *sheet, namespace string, seen sight) {
	p := t.place(s, namespace)
	now := time.Now()
	if p.older(seen.version, now) {
		return
	}
	before := p.seen
	p.seen = seen
	if p.state == placeCarrying && !p.carries() || before != seen && p.wrote == s.hash && !p.carries() {
		p.undone(now)
	}
	if before.version != seen.version {
		if soon := now.Add(time.Second); p.next.After(soon) { // what failed may work now
			p.next = soon
		}
		if p.result == resultImmutable {
			p.tried("")
		}
	}
	t.check(p, urgentRepair)
	t.leave(p)
}

// undone takes in who undid what we wrote, or found.
func (p *place) undone(now time.Time) {
	switch {
	case !p.seen.exists:
		p.writer = "somebody who deletes it"
	case p.seen.writer != "":
		p.writer = p.seen.writer
	default:
		p.writer = "another Signet or an admission webhook"
	}
	if now.Sub(p.wroteAt) > calmAfter(p.strikes) {
		p.strikes = 0
	}
}

// keepOnly takes in that, as of version, no other objects than those in namespaces exist. The caller
// holds mu.
func (t *distribution) keepOnly(s *sheet, namespaces map[string]bool, version uint64) {
	for name, p := range s.places {
		if p.seen.exists && !namespaces[name] {
			t.see(s, name, sight{version: version})
		}
	}
}

// setDocuments puts documents in force. A sheet that is new is watched from now on.
func (t *distribution) setDocuments(documents []Document, watch func(*sheet) (stop func())) {
	t.mu.Lock()
	defer t.unlock()
	listed := make(map[string]bool)
	for _, document := range documents {
		if listed[document.ConfigMap] {
			t.say(func() {
				t.log.Error("two trust documents of one ConfigMap; the second is left out", "configmap", document.ConfigMap, "key", document.Key)
			})
			continue
		}
		listed[document.ConfigMap] = true
		s := t.sheets[document.ConfigMap]
		if s != nil && s.key != document.Key {
			t.drop(s)
			s = nil
		}
		if s == nil {
			s = &sheet{resource: configMapResource, name: document.ConfigMap, key: document.Key, places: make(map[string]*place)}
			t.sheets[s.name] = s
			for name := range t.homes {
				t.check(t.place(s, name), urgentMass)
			}
			t.stops[s] = watch(s)
		}
		t.bring(s, document)
	}
	for name, s := range t.sheets {
		if !listed[name] {
			t.drop(s)
		}
	}
	t.bringBundle()
	t.notify()
}

// serveBundle puts the ClusterTrustBundle of a version of the API in force.
func (t *distribution) serveBundle(resource schema.GroupVersionResource, watch func(*sheet) (stop func())) {
	t.mu.Lock()
	defer t.unlock()
	s := &sheet{resource: resource, name: TrustBundleName, places: make(map[string]*place)}
	t.bundle = s
	t.place(s, "").home = &home{selected: true}
	t.stops[s] = watch(s)
	t.bringBundle()
	t.notify()
}

// bringBundle has the ClusterTrustBundle carry what the ConfigMap with the roots does, or nothing while
// there are none. The caller holds mu.
func (t *distribution) bringBundle() {
	roots := t.sheets[t.cfg.ConfigMapOrDefault()]
	switch {
	case t.bundle == nil:
	case roots == nil || roots.body == nil || roots.key != rootCertKey:
		t.bundle.text, t.bundle.hash, t.bundle.body = "", [sha256.Size]byte{}, nil
		t.recheck(t.bundle, urgentMass)
	default:
		t.bring(t.bundle, Document{ConfigMap: TrustBundleName, Data: roots.text})
	}
}

// bring puts a document in force on its sheet, unless it can't be distributed: then the last one stays.
// The caller holds mu.
func (t *distribution) bring(s *sheet, document Document) {
	hash := sha256.Sum256([]byte(document.Data))
	if s.body != nil && s.hash == hash {
		s.refused = ""
		return
	}
	if refused := s.refuse(document); refused != "" {
		if s.refused != refused {
			s.refused = refused
			t.say(func() {
				t.log.Error("trust document can't be distributed; the last one stays", "object", document.ConfigMap, "key", document.Key, "reason", refused)
			})
		}
		return
	}
	body, err := s.encode(document)
	if err != nil {
		s.refused = err.Error()
		return
	}
	s.text, s.hash, s.body, s.refused, s.since, s.whole = document.Data, hash, body, "", time.Now(), false
	for _, p := range s.places {
		p.tried("")
	}
	t.recheck(s, urgentMass)
	t.say(func() {
		t.log.Info("trust document in force", "object", document.ConfigMap, "key", document.Key, "sha256", hex.EncodeToString(hash[:]), "bytes", len(document.Data))
	})
}

// refuse says why a document can't be distributed at all, or nothing.
func (s *sheet) refuse(document Document) string {
	switch {
	case document.Data == "" && !document.MayBeEmpty:
		return "it is empty"
	case len(document.Data) > maxDocumentBytes:
		return fmt.Sprintf("it has %d bytes; a ConfigMap holds %d", len(document.Data), maxDocumentBytes)
	case !utf8.ValidString(document.Data):
		return "it is not UTF-8"
	case !s.cluster() && len(validation.IsDNS1123Subdomain(document.ConfigMap)) != 0:
		return fmt.Sprintf("%q is not the name of a ConfigMap", document.ConfigMap)
	case !s.cluster() && len(validation.IsConfigMapKey(document.Key)) != 0:
		return fmt.Sprintf("%q is not a key of a ConfigMap", document.Key)
	}
	return ""
}

// encode makes what is applied, in all namespaces the same.
func (s *sheet) encode(document Document) ([]byte, error) {
	if s.cluster() {
		return json.Marshal(map[string]any{
			"apiVersion": s.resource.GroupVersion().String(),
			"kind":       "ClusterTrustBundle",
			"metadata":   map[string]any{"name": s.name},
			"spec":       map[string]string{"signerName": TrustBundleSigner, "trustBundle": document.Data},
		})
	}
	return json.Marshal(map[string]any{
		"apiVersion": "v1",
		"kind":       "ConfigMap",
		"metadata":   map[string]any{"name": s.name, "labels": map[string]string{configLabel: configLabelValue}},
		"data":       map[string]string{document.Key: document.Data},
	})
}

// drop leaves a document to itself. The caller holds mu.
func (t *distribution) drop(s *sheet) {
	t.stops[s]()
	delete(t.stops, s)
	delete(t.sheets, s.name)
	for _, p := range s.places {
		p.home = nil
		t.check(p, urgentMass)
	}
}

// progress counts, and names those that lack something.
func (t *distribution) progress() Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	result := Progress{Known: t.homesSeen && len(t.sheets) > 0, ClusterTrustBundle: t.bundleSays}
	for _, what := range slices.Sorted(maps.Keys(t.trouble)) {
		result.Trouble = fmt.Sprintf("%s: %v", what, t.trouble[what])
		break
	}
	for _, name := range slices.Sorted(maps.Keys(t.sheets)) {
		s := t.sheets[name]
		result.Known = result.Known && s.seen
		d := DocumentProgress{
			ConfigMap: s.name,
			Key:       s.key,
			Refused:   s.refused,
			Carrying:  s.count[placeCarrying],
			Selected:  s.count[placeCarrying] + s.count[placePending] + s.count[placeFailing] + s.count[placeUnknown],
		}
		if s.body != nil {
			d.Hash = hex.EncodeToString(s.hash[:])
		}
		if d.Carrying < d.Selected {
			d.Without = s.without()
		}
		for _, p := range s.places {
			if p.home.wanted() && p.fought(now) {
				d.SecondWriters++
			}
		}
		result.Documents = append(result.Documents, d)
	}
	if t.bundle != nil {
		p := t.bundle.places[""]
		result.ClusterTrustBundle = BundleProgress{State: BundleUnknown, Reason: p.why()}
		if t.bundle.body != nil {
			result.ClusterTrustBundle.Hash = hex.EncodeToString(t.bundle.hash[:])
		}
		switch p.state {
		case placeUnknown:
			if err := t.trouble[t.bundle.listing()]; err != nil {
				result.ClusterTrustBundle.Reason = err.Error()
			}
		case placePending:
			result.ClusterTrustBundle.State = BundlePending
		case placeFailing:
			result.ClusterTrustBundle.State = BundleFailing
		case placeCarrying:
			result.ClusterTrustBundle.State = BundleCarrying
		}
	}
	return result
}

// without are those that lack the sheet, by name.
func (s *sheet) without() []Without {
	var all []Without
	for name, p := range s.places {
		if p.state != placeCarrying && p.state != placeSkipped {
			all = append(all, Without{Namespace: name, Reason: p.why(), Failing: p.state == placeFailing, Since: p.lacks})
		}
	}
	slices.SortFunc(all, func(a, b Without) int { return strings.Compare(a.Namespace, b.Namespace) })
	return slices.Clip(all[:min(len(all), MaxWithout)])
}

// why is the reason, for people, that the place doesn't carry its sheet.
func (p *place) why() string {
	switch {
	case p.state == placeCarrying || p.state == placeSkipped:
		return ""
	case p.reason != "":
		return p.reason
	case p.state == placeUnknown:
		return "not looked at yet"
	case p.strikes >= fightAt:
		return fmt.Sprintf("%s undid it %d times", p.writer, p.strikes)
	}
	return "waits for its turn"
}

// run works until ctx ends.
func (t *distribution) run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { t.watchNamespaces(ctx) })
	group.Go(func() { t.follow(ctx) })
	for range writers {
		group.Go(func() {
			for p := t.queue.take(); p != nil; p = t.queue.take() {
				t.write(ctx, p)
				t.queue.done(p)
			}
		})
	}
	<-ctx.Done()
	t.queue.close()
	group.Wait()
}
