package inventory

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/api"
)

// lag is how long the informers may be behind: for so long after its issuance a leaf is live whose holder isn't known.
const lag = 30 * time.Second

// name is that of an object in a namespace.
type name struct{ namespace, name string }

func (n name) compare(other name) int {
	return cmp.Or(strings.Compare(n.namespace, other.namespace), strings.Compare(n.name, other.name))
}

// index is all that is known, linked so that each event touches only what it is about. No I/O happens under its mutex.
type index struct {
	trustDomain spiffeid.TrustDomain
	cluster     string
	grace       time.Duration
	most        int // leaves

	podsKnown, accountsKnown known
	droppedAt                atomic.Int64 // when leaves were forgotten last because there are too many, Unix s; 0 for never

	mu         sync.RWMutex // guards the following, and all that is reached from it unless it says otherwise
	namespaces map[string]*namespace
	accounts   map[name]*account
	pods       map[name]*pod
	podsByUID  map[string]*pod
	placed     map[place][]*pod
	services   map[name]*service
	inOrder    ordered[*service]          // those that exist, by name
	routers    map[*pod]map[string]string // the labels of the pods of gateways
	slices     map[name]*slice
	naming     map[name][]*slice // those that name a pod, whether it is there or not
	leaves     map[leafKey]*leaf // the latest of each holder
	latest     ordered[*leaf]    // all of them, the latest first
	byEnd      ordered[*leaf]    // all of them, by their end
}

// known says whether the first list of a kind has been worked through. Once it has, it stays so.
type known struct {
	was atomic.Bool
	ask func() bool // set at the start
}

func (k *known) is() bool {
	if k.was.Load() {
		return true
	}
	if k.ask == nil || !k.ask() {
		return false
	}
	k.was.Store(true)
	return true
}

// namespace is one that exists, or whose leaves do.
type namespace struct {
	exists, ambient bool
	latest          ordered[*leaf] // the latest first
}

// account is a service account: one that exists, whose pods do, or whose leaves do.
type account struct {
	name            // never changes
	identity string // never changes; "" where there can't be any
	created  int64  // of its object, Unix s; 0 where it doesn't exist
	pods     []*pod
	leaves   []*leaf
	unheld   map[*leaf]struct{} // those of the leaves whose holder isn't known
	machines *ordered[*leaf]    // those of the leaves that are a machine's, the latest first; nil where there were none
}

// place is where pods of an account run, which have one leaf of their node's proxy.
type place struct {
	account *account
	node    string
}

// pod is one that exists and hasn't ended. Only at changes, under the index's mutex.
type pod struct {
	name
	uid, node string
	account   *account
	class     class
	addresses []string
	running   bool
	since     int64 // since when it runs, Unix s
	at        int   // place in account.pods
}

// slice is an EndpointSlice of a service.
type slice struct {
	service *service
	targets []target
}

// target is a pod of the slice's namespace that it names, with the addresses that it says it has.
type target struct {
	pod, uid  string
	addresses []string
}

func (t target) equal(other target) bool {
	return t.pod == other.pod && t.uid == other.uid && slices.Equal(t.addresses, other.addresses)
}

// service is one that exists, or whose slices do.
type service struct {
	name   // never changes
	exists bool
	slices []*slice
	view   atomic.Pointer[view] // nil where it has to be made anew; made under the read lock
}

func newIndex(trustDomain spiffeid.TrustDomain, cluster string, grace time.Duration, most int) *index {
	return &index{
		trustDomain: trustDomain, cluster: cluster, grace: grace, most: most,
		namespaces: make(map[string]*namespace),
		accounts:   make(map[name]*account),
		pods:       make(map[name]*pod),
		podsByUID:  make(map[string]*pod),
		placed:     make(map[place][]*pod),
		services:   make(map[name]*service),
		routers:    make(map[*pod]map[string]string),
		inOrder:    ordered[*service]{compare: func(a, b *service) int { return a.name.compare(b.name) }},
		slices:     make(map[name]*slice),
		naming:     make(map[name][]*slice),
		leaves:     make(map[leafKey]*leaf),
		latest:     ordered[*leaf]{compare: compareLatest},
		byEnd:      ordered[*leaf]{compare: compareEnd},
	}
}

// compareLatest puts what was issued last first.
func compareLatest(a, b *leaf) int {
	return cmp.Or(cmp.Compare(b.issuedAt, a.issuedAt), bytes.Compare(a.sha256[:], b.sha256[:]))
}

// compareEnd puts what ends first first.
func compareEnd(a, b *leaf) int {
	return cmp.Or(cmp.Compare(a.notAfter, b.notAfter), bytes.Compare(a.sha256[:], b.sha256[:]))
}

func (x *index) namespace(name string) *namespace {
	n := x.namespaces[name]
	if n == nil {
		n = &namespace{latest: ordered[*leaf]{compare: compareLatest}}
		x.namespaces[strings.Clone(name)] = n
	}
	return n
}

func (x *index) account(of name) *account {
	a := x.accounts[of]
	if a == nil {
		of = name{strings.Clone(of.namespace), strings.Clone(of.name)}
		a = &account{name: of}
		if id, err := spiffeid.FromSegments(x.trustDomain, "ns", of.namespace, "sa", of.name); err == nil {
			a.identity = id.String()
		}
		x.accounts[of] = a
	}
	return a
}

// release forgets an account of which nothing is left.
func (x *index) release(a *account) {
	if a.created == 0 && len(a.pods) == 0 && len(a.leaves) == 0 {
		delete(x.accounts, a.name)
	}
}

// The following take note of what the cluster has, and say whether that may change an answer.

// setNamespace takes note of a namespace, and whether it asks for ambient.
func (x *index) setNamespace(name string, ambient bool) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.namespace(name)
	n.exists = true
	if n.ambient == ambient {
		return false
	}
	n.ambient = ambient
	x.staleNamespace(name)
	return true
}

// dropNamespace forgets a namespace.
func (x *index) dropNamespace(name string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.namespaces[name]
	if n == nil {
		return false
	}
	changed := n.ambient
	n.exists, n.ambient = false, false
	if changed {
		x.staleNamespace(name)
	}
	x.releaseNamespace(name, n)
	return changed
}

func (x *index) releaseNamespace(name string, n *namespace) {
	if !n.exists && n.latest.size == 0 {
		delete(x.namespaces, name)
	}
}

func (x *index) staleNamespace(of string) {
	for s := range x.inOrder.from(func(s *service) bool { return s.namespace < of }) {
		if s.namespace != of {
			return
		}
		s.view.Store(nil)
	}
}

// setAccount takes note of a service account that was created at a time.
func (x *index) setAccount(of name, created time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	a, at := x.account(of), max(1, created.Unix())
	changed := a.created != at
	a.created = at
	return changed
}

// dropAccount forgets that a service account exists.
func (x *index) dropAccount(of name) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	a := x.accounts[of]
	if a == nil {
		return false
	}
	a.created = 0
	x.release(a)
	return true
}

// setPod takes note of a pod. It is the caller's no more. Of is its service account, labels are those of a gateway's pod.
func (x *index) setPod(p *pod, of string, labels map[string]string, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if former := x.pods[p.name]; former != nil && former.uid == p.uid {
		switch {
		case former.running == p.running:
			p.since = former.since
		case p.running:
			p.since = max(p.since, now.Unix()) // it may have pulled its images for long
		}
		if former.node == p.node && former.class == p.class && former.running == p.running && slices.Equal(former.addresses, p.addresses) &&
			maps.Equal(x.routers[former], labels) {
			return false
		}
		x.removePod(former, false)
	} else if former != nil {
		x.removePod(former, true)
		defer x.release(former.account)
	}
	p.account = x.account(name{p.namespace, of})
	p.at = len(p.account.pods)
	p.account.pods = append(p.account.pods, p)
	x.pods[p.name] = p
	x.podsByUID[p.uid] = p
	if len(labels) > 0 {
		x.routers[p] = labels
	}
	if p.node != "" {
		at := place{p.account, p.node}
		x.placed[at] = append(x.placed[at], p)
	}
	x.stalePod(p.name)
	return true
}

// dropPod forgets the pod that has this name and UID.
func (x *index) dropPod(of name, uid string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.pods[of]
	if p == nil || p.uid != uid {
		return false
	}
	x.removePod(p, true)
	x.stalePod(of)
	x.release(p.account)
	return true
}

// removePod takes a pod out. Gone says that it doesn't exist any more.
func (x *index) removePod(p *pod, gone bool) {
	last := len(p.account.pods) - 1
	p.account.pods[p.at] = p.account.pods[last]
	p.account.pods[p.at].at = p.at
	p.account.pods[last] = nil
	p.account.pods = p.account.pods[:last]
	delete(x.pods, p.name)
	delete(x.podsByUID, p.uid)
	delete(x.routers, p)
	if p.node != "" {
		at := place{p.account, p.node}
		if rest := without(x.placed[at], p); len(rest) > 0 {
			x.placed[at] = rest
		} else {
			delete(x.placed, at)
		}
	}
	if gone {
		if l := x.leaves[leafKey{p.account, byPod, p.uid}]; l != nil {
			l.gone = true
		}
	}
}

// stalePod says that what is said of the services that a pod is behind has changed.
func (x *index) stalePod(of name) {
	for _, s := range x.naming[of] {
		s.service.view.Store(nil)
	}
}

func (x *index) service(of name) *service {
	s := x.services[of]
	if s == nil {
		s = &service{name: of}
		x.services[of] = s
	}
	return s
}

// setService takes note of a service.
func (x *index) setService(of name) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.service(of)
	if s.exists {
		return false
	}
	s.exists = true
	x.inOrder.insert(s)
	return true
}

// dropService forgets a service.
func (x *index) dropService(of name) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.services[of]
	if s == nil || !s.exists {
		return false
	}
	s.exists = false
	s.view.Store(nil)
	x.inOrder.remove(s)
	x.releaseService(s)
	return true
}

func (x *index) releaseService(s *service) {
	if !s.exists && len(s.slices) == 0 {
		delete(x.services, s.name)
	}
}

// setSlice takes note of an EndpointSlice of a service in its namespace.
func (x *index) setSlice(of name, service string, targets []target) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if former := x.slices[of]; former != nil {
		if former.service.name.name == service && slices.EqualFunc(former.targets, targets, target.equal) {
			return false
		}
		x.removeSlice(of)
	}
	s := &slice{service: x.service(name{of.namespace, service}), targets: targets}
	s.service.slices = append(s.service.slices, s)
	x.slices[of] = s
	for _, t := range targets {
		pod := name{of.namespace, t.pod}
		if named := x.naming[pod]; !slices.Contains(named, s) {
			x.naming[pod] = append(named, s)
		}
	}
	s.service.view.Store(nil)
	return true
}

// dropSlice forgets an EndpointSlice.
func (x *index) dropSlice(of name) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.slices[of] == nil {
		return false
	}
	x.removeSlice(of)
	return true
}

func (x *index) removeSlice(of name) {
	s := x.slices[of]
	delete(x.slices, of)
	for _, t := range s.targets {
		pod := name{of.namespace, t.pod}
		if rest := without(x.naming[pod], s); len(rest) > 0 {
			x.naming[pod] = rest
		} else {
			delete(x.naming, pod)
		}
	}
	s.service.slices = without(s.service.slices, s)
	s.service.view.Store(nil)
	x.releaseService(s.service)
}

// setLeaf takes note of a leaf, unless a later one of its holder is known. It says whether that changed anything, and
// how many leaves were forgotten because there are too many.
func (x *index) setLeaf(l *leaf, of name, now time.Time) (changed bool, dropped int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	a := x.account(of)
	key := leafKey{a, l.kind, l.holder}
	former := x.leaves[key]
	if former != nil && (former.sha256 == l.sha256 || former.later(l)) { // of two of one second the one that is told later counts
		return false, 0
	}
	l.account = a
	x.share(l)
	key.id = l.holder
	if former != nil {
		x.removeLeaf(key, former, false)
		l.gone = former.gone
	}
	l.at = int32(len(a.leaves))
	a.leaves = append(a.leaves, l)
	x.leaves[key] = l
	alone := l.kind != byNobody || a.unheldUntil(now).IsZero() // with another one that is as good nothing changes
	if l.kind == byNobody {
		if a.unheld == nil {
			a.unheld = make(map[*leaf]struct{})
		}
		a.unheld[l] = struct{}{}
	}
	if x.isMachines(l) {
		if a.machines == nil {
			a.machines = &ordered[*leaf]{compare: compareLatest}
		}
		a.machines.insert(l)
	}
	x.latest.insert(l)
	x.byEnd.insert(l)
	x.namespace(a.namespace).latest.insert(l)
	if alone {
		x.staleLeaf(l)
	}
	for len(x.leaves) > x.most {
		x.dropFirst()
		x.droppedAt.Store(now.Unix())
		dropped++
	}
	return true, dropped
}

// dropFirst forgets the leaf that ends first.
func (x *index) dropFirst() {
	for first := range x.byEnd.from(func(*leaf) bool { return false }) {
		x.removeLeaf(first.key(), first, true)
		return
	}
}

func (l *leaf) key() leafKey { return leafKey{l.account, l.kind, l.holder} }

// share makes l use the strings that its account and its pod have already.
func (x *index) share(l *leaf) {
	if l.identity == l.account.identity {
		l.identity = l.account.identity
	} else {
		l.identity = strings.Clone(l.identity)
	}
	p := x.podsByUID[l.holder]
	if l.kind != byPod || p == nil {
		p = &pod{}
	}
	for _, s := range []struct {
		text  *string
		known string
	}{{&l.holder, p.uid}, {&l.podName, p.name.name}, {&l.node, p.node}} {
		if *s.text == s.known {
			*s.text = s.known
		} else {
			*s.text = strings.Clone(*s.text)
		}
	}
	if l.kind == byNode {
		l.holder = l.node
	}
}

// removeLeaf takes a leaf out. Last says that none takes its place.
func (x *index) removeLeaf(key leafKey, l *leaf, last bool) {
	a := l.account
	end := len(a.leaves) - 1
	a.leaves[l.at] = a.leaves[end]
	a.leaves[l.at].at = l.at
	a.leaves[end] = nil
	a.leaves = a.leaves[:end]
	delete(a.unheld, l)
	if x.isMachines(l) {
		a.machines.remove(l)
	}
	delete(x.leaves, key)
	x.latest.remove(l)
	x.byEnd.remove(l)
	n := x.namespaces[a.namespace]
	n.latest.remove(l)
	if last {
		if len(a.unheld) == 0 || l.kind != byNobody {
			x.staleLeaf(l)
		}
		x.releaseNamespace(a.namespace, n)
		x.release(a)
	}
}

// staleLeaf says that what is said of the services has changed that the pods are behind which use l.
func (x *index) staleLeaf(l *leaf) {
	switch l.kind {
	case byPod:
		if p := x.podsByUID[l.holder]; p != nil {
			x.stalePod(p.name)
		}
	case byNode:
		for _, p := range x.placed[place{l.account, l.holder}] {
			x.stalePod(p.name)
		}
	case byNobody:
		for _, p := range l.account.pods {
			x.stalePod(p.name)
		}
	}
}

// forget drops the leaves that have expired and aren't in use. The others stay while they are, because it is a problem that
// they weren't renewed.
func (x *index) forget(now time.Time) {
	var expired []*leaf
	x.mu.RLock()
	for l := range x.byEnd.from(func(*leaf) bool { return false }) {
		if l.validity().state(now) != api.Expired {
			break
		}
		if !x.inUse(l, now) {
			expired = append(expired, l)
		}
	}
	x.mu.RUnlock()
	for len(expired) > 0 {
		n := min(len(expired), batch)
		x.mu.Lock()
		for _, l := range expired[:n] {
			if x.leaves[l.key()] == l {
				x.removeLeaf(l.key(), l, true)
			}
		}
		x.mu.Unlock()
		expired = expired[n:]
	}
}

// elsewhere says whether l is held in another cluster, of which nothing is known.
func (x *index) elsewhere(l *leaf) bool {
	cluster := l.common.Value().cluster
	return cluster != "" && x.cluster != "" && cluster != x.cluster
}

// inUse says whether the holder of a leaf exists, as far as the cluster tells, and so should have renewed it when its time
// has come. Nobody knows that of a holder in another cluster, or of one that isn't known; nor of an address that didn't
// renew until the end, which may be a machine's that is gone or has another one.
func (x *index) inUse(l *leaf, now time.Time) bool {
	if l.kind == byNobody || x.elsewhere(l) || l.kind == byAddress && l.validity().state(now) == api.Expired {
		return false
	}
	return x.holderExists(l, now) && !x.moved(l, now)
}

// isMachines says whether l is a machine's: whoever asked from an address, in our own cluster.
func (x *index) isMachines(l *leaf) bool { return l.kind == byAddress && !x.elsewhere(l) }

// moved says whether a leaf should have been renewed from its address, and its account has a later one from another: a
// machine's address changes, and several may share one.
func (x *index) moved(l *leaf, now time.Time) bool {
	if !x.isMachines(l) || l.validity().state(now) != api.Overdue {
		return false
	}
	for other := range l.account.machines.from(func(*leaf) bool { return false }) {
		if other.issuedAt <= l.issuedAt {
			return false
		}
		if other.validity().state(now) != api.Expired {
			return true
		}
	}
	return false
}

// holderExists says whether the holder of a leaf exists. It does while that isn't known.
func (x *index) holderExists(l *leaf, now time.Time) bool {
	if x.elsewhere(l) {
		return true
	}
	recent := now.Unix()-l.issuedAt < int64(lag/time.Second)
	switch l.kind {
	case byPod:
		return x.podsByUID[l.holder] != nil || !x.podsKnown.is() || recent && !l.gone
	case byNode:
		return slices.ContainsFunc(x.placed[place{l.account, l.holder}], l.serves) || !x.podsKnown.is() || recent
	}
	// An account that was made anew isn't the one that asked. Clocks differ by little.
	created := l.account.created
	return created != 0 && created <= l.issuedAt+5 || !x.accountsKnown.is()
}

// standing is that of a leaf that is the latest of its holder.
func (x *index) standing(l *leaf, now time.Time) api.Standing {
	switch {
	case l.validity().state(now) == api.Expired:
		return api.Ended
	case !x.holderExists(l, now):
		return api.Orphaned
	case x.moved(l, now):
		return api.Superseded
	}
	return api.Live
}

// without takes one item out of a list whose order doesn't matter.
func without[T comparable](list []T, item T) []T {
	if at := slices.Index(list, item); at >= 0 {
		list[at] = list[len(list)-1]
		clear(list[len(list)-1:])
		return list[:len(list)-1]
	}
	return list
}
