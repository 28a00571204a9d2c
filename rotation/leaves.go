package rotation

import (
	"cmp"
	"crypto/sha256"
	"hash/maphash"
	"iter"
	"slices"
	"sync"
	"time"
	"unique"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// maxLeaves bounds the memory of issued leaves, at about 350 bytes each.
	maxLeaves = 1_000_000
	// leafShards is how many parts the memory has, so that nothing holds up the signing path for long.
	leafShards = 64
)

// Leaf is a certificate that was issued to a workload.
type Leaf struct {
	// Identity is the SPIFFE ID that it names.
	Identity string
	// Namespace and ServiceAccount are those of the identity.
	Namespace, ServiceAccount string
	// Holder tells those who hold the same identity apart, and stays the same from one renewal to the
	// next: the UID of the pod, or another key of a caller that is bound to none.
	Holder string
	// PodName is the name of the pod whose UID Holder is; "" where Holder is something else.
	PodName string
	// Serial is the serial number in hexadecimal.
	Serial string
	// SHA256 is that of the DER.
	SHA256 [sha256.Size]byte
	// NotBefore and NotAfter are its validity, in whole seconds.
	NotBefore, NotAfter time.Time
	// Anchor is the SHA-256 of the DER of the anchor that it leads to.
	Anchor [sha256.Size]byte
}

// Subject is l as it is watched. Events about it go to its pod, or else to its service account.
func (l Leaf) Subject() Subject {
	s := Subject{
		Kind: KindLeaf, Key: l.Identity + " " + l.Holder, Text: l.Identity + " serial " + l.Serial,
		NotBefore: l.NotBefore, NotAfter: l.NotAfter,
	}
	if l.PodName != "" {
		s.About = &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: l.Namespace, Name: l.PodName, UID: types.UID(l.Holder)}
	} else if l.ServiceAccount != "" {
		s.About = &corev1.ObjectReference{APIVersion: "v1", Kind: "ServiceAccount", Namespace: l.Namespace, Name: l.ServiceAccount}
	}
	return s
}

// Leaves remembers the leaf that each holder of an identity was issued last, until it expires. Its
// memory is bounded; where it is full, those that end first are forgotten. It knows what this process
// issued, and nothing of what another one did, or the same one before it was started again.
//
// Safe for concurrent use.
type Leaves struct {
	seed     maphash.Seed
	perShard int
	shards   [leafShards]leafShard

	renewals         *prometheus.CounterVec
	expired, dropped prometheus.Counter
}

type leafShard struct {
	mu     sync.Mutex // guards the following
	leaves map[leafKey]*leafRecord
}

type leafKey struct {
	identity unique.Handle[string]
	holder   string
}

// leafRecord is a leaf without its key. What many leaves have in common is kept once.
type leafRecord struct {
	namespace, serviceAccount unique.Handle[string]
	podName, serial           string
	sha256                    [sha256.Size]byte
	anchor                    unique.Handle[[sha256.Size]byte]
	notBefore, notAfter       int64 // seconds since 1970
	state                     State // when it was last looked at
	told                      bool  // that it is overdue
}

// NewLeaves starts without any.
func NewLeaves(reg prometheus.Registerer) *Leaves {
	return newLeaves(reg, maxLeaves)
}

func newLeaves(reg prometheus.Registerer, most int) *Leaves {
	l := &Leaves{
		seed:     maphash.MakeSeed(),
		perShard: max(1, most/leafShards),
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "leaf_renewals_total",
			Help: "Leaves that replaced an earlier one of the same holder, by the state that one was in: fresh, due, overdue, expired.",
		}, []string{"state"}),
		expired: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "leaves_expired_total",
			Help: "Leaves that expired without having been renewed here: the workload is gone, or its renewal stopped.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "leaves_dropped_total",
			Help: "Leaves that aren't watched any more because there are too many.",
		}),
	}
	for i := range l.shards {
		l.shards[i].leaves = make(map[leafKey]*leafRecord)
	}
	for _, state := range states {
		l.renewals.WithLabelValues(string(state))
	}
	reg.MustRegister(l.renewals, l.expired, l.dropped)
	return l
}

// Issued remembers a leaf, in the place of the one that its holder had before. It keeps the strings of
// leaf, so that they should be no parts of larger ones. It is made for the signing path: no I/O, and no
// lock that is held for long.
func (l *Leaves) Issued(leaf Leaf) {
	key := leafKey{unique.Make(leaf.Identity), leaf.Holder}
	shard := &l.shards[maphash.Comparable(l.seed, key)%leafShards]
	next := leafRecord{
		namespace: unique.Make(leaf.Namespace), serviceAccount: unique.Make(leaf.ServiceAccount),
		podName: leaf.PodName, serial: leaf.Serial, sha256: leaf.SHA256, anchor: unique.Make(leaf.Anchor),
		notBefore: leaf.NotBefore.Unix(), notAfter: leaf.NotAfter.Unix(), state: Fresh,
	}
	now := time.Now()

	shard.mu.Lock()
	defer shard.mu.Unlock()
	if former, ok := shard.leaves[key]; ok {
		if former.sha256 == leaf.SHA256 {
			return // a retry that was given the same certificate
		}
		l.renewals.WithLabelValues(string(former.at(now))).Inc()
		*former = next
		return
	}
	if len(shard.leaves) >= l.perShard {
		l.dropped.Add(float64(shard.makeRoom()))
	}
	record := next // only what is new is allocated
	shard.leaves[key] = &record
}

// makeRoom forgets the sixteenth part of the leaves that ends first, so that it isn't done for each new
// one. It returns how many that were.
func (s *leafShard) makeRoom() int {
	type end struct {
		key leafKey
		at  int64
	}
	ends := make([]end, 0, len(s.leaves))
	for key, record := range s.leaves {
		ends = append(ends, end{key, record.notAfter})
	}
	slices.SortFunc(ends, func(a, b end) int { return cmp.Compare(a.at, b.at) })
	ends = ends[:len(ends)/16+1]
	for _, end := range ends {
		delete(s.leaves, end.key)
	}
	return len(ends)
}

// All are the leaves with their states at now, in no order. What is issued meanwhile may be left out.
func (l *Leaves) All(now time.Time) iter.Seq2[Leaf, State] {
	return func(yield func(Leaf, State) bool) {
		var found []Leaf
		for i := range l.shards {
			shard := &l.shards[i]
			found = found[:0]
			shard.mu.Lock()
			for key, record := range shard.leaves {
				found = append(found, record.leaf(key))
			}
			shard.mu.Unlock()
			for _, leaf := range found {
				if !yield(leaf, Decide(KindLeaf.Policy(), leaf.NotBefore, leaf.NotAfter, now)) {
					return
				}
			}
		}
	}
}

// leafTally is what a look at all leaves found.
type leafTally struct {
	tally
	due     int    // newly
	overdue int    // newly
	expired int    // and forgotten
	late    []Leaf // some of those that are newly overdue
}

// look looks at all leaves, one shard after the other, and forgets those that have expired. Up to names
// of the leaves that are newly overdue are returned themselves; each is so once.
func (l *Leaves) look(now time.Time, names int) leafTally {
	var found leafTally
	for i := range l.shards {
		l.shards[i].look(now, names, &found)
	}
	l.expired.Add(float64(found.expired))
	return found
}

func (s *leafShard) look(now time.Time, names int, found *leafTally) {
	s.mu.Lock()
	defer s.mu.Unlock()
	policy := KindLeaf.Policy()
	for key, record := range s.leaves {
		notBefore, notAfter := time.Unix(record.notBefore, 0), time.Unix(record.notAfter, 0)
		state := Decide(policy, notBefore, notAfter, now)
		if state == Expired {
			found.expired++
			delete(s.leaves, key)
			continue
		}
		found.add(state, notBefore, notAfter, now)
		if state == Due && record.state == Fresh {
			found.due++
		}
		if state == Overdue && !record.told {
			record.told = true
			found.overdue++
			if len(found.late) < names {
				found.late = append(found.late, record.leaf(key))
			}
		}
		record.state = state
	}
}

func (r *leafRecord) at(now time.Time) State {
	return Decide(KindLeaf.Policy(), time.Unix(r.notBefore, 0), time.Unix(r.notAfter, 0), now)
}

func (r *leafRecord) leaf(key leafKey) Leaf {
	return Leaf{
		Identity: key.identity.Value(), Namespace: r.namespace.Value(), ServiceAccount: r.serviceAccount.Value(),
		Holder: key.holder, PodName: r.podName, Serial: r.serial, SHA256: r.sha256,
		NotBefore: time.Unix(r.notBefore, 0).UTC(), NotAfter: time.Unix(r.notAfter, 0).UTC(), Anchor: r.anchor.Value(),
	}
}
