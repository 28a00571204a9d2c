package presence

import (
	"encoding/hex"
	"sync"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// word is a name that many objects share: all that are equal are one in memory.
type word = unique.Handle[string]

// key is the name of an object in its namespace.
type key struct {
	namespace word
	name      string
}

func keyOf(namespace, name string) key { return key{unique.Make(namespace), name} }

// uid is the UID of an object. The API server makes all that it gives out as UUIDs, of which 16 bytes are kept.
type uid struct {
	uuid [16]byte
	text *string // of one that isn't a UUID in its usual form; else nil
}

func parseUID(text string) uid {
	var u uid
	if len(text) == 36 {
		digits := text[:8] + text[9:13] + text[14:18] + text[19:23] + text[24:]
		// Other forms of the same UUID wouldn't come out as they went in.
		if _, err := hex.Decode(u.uuid[:], []byte(digits)); err == nil && u.String() == text {
			return u
		}
	}
	return uid{text: &text}
}

func (u uid) String() string {
	if u.text != nil {
		return *u.text
	}
	var text [36]byte
	hex.Encode(text[:8], u.uuid[:4])
	at := 8
	for n := 4; n < 10; n += 2 {
		text[at] = '-'
		hex.Encode(text[at+1:at+5], u.uuid[n:n+2])
		at += 5
	}
	text[at] = '-'
	hex.Encode(text[at+1:], u.uuid[10:])
	return string(text[:])
}

// moment is a point in time in Unix seconds, 0 for none.
type moment int64

func momentOf(t *metav1.Time) moment {
	if t.IsZero() {
		return 0
	}
	return moment(t.Unix())
}

func (m moment) time() time.Time {
	if m == 0 {
		return time.Time{}
	}
	return time.Unix(int64(m), 0)
}

// pod is what is kept of a pod.
type pod struct {
	uid           uid
	deleted       moment
	node, account word
	ended         bool
}

func podOf(o *corev1.Pod) pod {
	return pod{
		uid:     parseUID(string(o.UID)),
		deleted: momentOf(o.DeletionTimestamp),
		node:    unique.Make(o.Spec.NodeName),
		account: unique.Make(o.Spec.ServiceAccountName),
		ended:   ended(o),
	}
}

// place is a service account on a node.
type place struct{ node, namespace, account word }

func placeOf(node, namespace, account string) place {
	return place{unique.Make(node), unique.Make(namespace), unique.Make(account)}
}

// at is where a pod counts; false where it doesn't, because it runs nowhere.
func (p pod) at(of key) (place, bool) {
	return place{p.node, of.namespace, p.account}, !p.ended && p.node != nowhere
}

// nowhere is the node of a pod that isn't scheduled.
var nowhere = unique.Make("")

// shown is the pod for others.
func (p pod) shown(of key) Pod {
	return Pod{
		Namespace: of.namespace.Value(), Name: of.name, UID: p.uid.String(), ServiceAccount: p.account.Value(), Node: p.node.Value(),
		Ended: p.ended, DeletedAt: p.deleted.time(),
	}
}

// podTable is all pods. Safe for concurrent use.
type podTable struct {
	mu     sync.RWMutex // guards the following
	pods   map[key]*pod // what is pointed to is never changed
	places map[place]int32
}

func newPodTable() *podTable {
	return &podTable{pods: make(map[key]*pod), places: make(map[place]int32)}
}

func (t *podTable) set(of key, p pod) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leave(of)
	t.pods[of] = &p
	if at, ok := p.at(of); ok {
		t.places[at]++
	}
}

func (t *podTable) drop(of key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leave(of)
	delete(t.pods, of)
}

// leave takes a pod out of its place. The caller holds mu.
func (t *podTable) leave(of key) {
	old := t.pods[of]
	if old == nil {
		return
	}
	if at, ok := old.at(of); ok {
		if t.places[at]--; t.places[at] == 0 {
			delete(t.places, at)
		}
	}
}

// replace takes over all of other, which nobody uses any more.
func (t *podTable) replace(other *podTable) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pods, t.places = other.pods, other.places
}

func (t *podTable) get(namespace, name string) (Pod, bool) {
	of := keyOf(namespace, name)
	t.mu.RLock()
	p := t.pods[of]
	t.mu.RUnlock()
	if p == nil {
		return Pod{}, false
	}
	return p.shown(of), true
}

func (t *podTable) runsOn(node, namespace, account string) bool {
	at := placeOf(node, namespace, account)
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.places[at] > 0
}

func (t *podTable) count() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.pods)
}

// object is what is kept of a service account or a node.
type object struct {
	uid     uid
	deleted moment
}

// objectTable is all objects of a kind. Safe for concurrent use.
type objectTable struct {
	mu      sync.RWMutex
	objects map[key]object // guarded by mu
}

func newObjectTable() *objectTable { return &objectTable{objects: make(map[key]object)} }

func (t *objectTable) set(of key, o object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.objects[of] = o
}

func (t *objectTable) drop(of key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.objects, of)
}

func (t *objectTable) replace(other *objectTable) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.objects = other.objects
}

func (t *objectTable) get(namespace, name string) (Object, bool) {
	t.mu.RLock()
	o, ok := t.objects[keyOf(namespace, name)]
	t.mu.RUnlock()
	if !ok {
		return Object{}, false
	}
	return Object{UID: o.uid.String(), DeletedAt: o.deleted.time()}, true
}

func (t *objectTable) count() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.objects)
}
