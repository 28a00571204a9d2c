package issuer

import (
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// leavesEndSlack: the end of the leaves under an anchor is set by this part of the longest life too late.
const leavesEndSlack = 16

// Named is an anchor that a source names at the moment.
type Named struct {
	Certificate *x509.Certificate
	Source      string
	Federated   bool
}

// Observation is what the replica that steps the rollover sees.
type Observation struct {
	Now time.Time
	// LongestLeaf is how long after Now a leaf may live whose request is on its way now.
	LongestLeaf time.Duration
	// Named are the anchors that the sources name.
	Named []Named
	// Answered are the configured sources, and whether each has answered since this process started. Until
	// it has, what it named before is taken to be named still.
	Answered map[string]bool
	// Waits says what still doesn't carry all anchors of the state; empty where every replica answers with
	// them and every selected namespace has them.
	Waits string
	// Issuer signs leaves now, and leads to IssuerAnchor where that is known.
	Issuer       Ref
	IssuerAnchor string
	// InUse are the anchors under which replicas sign leaves.
	InUse map[string]bool
	// Served are the anchors that serving certificates and istiod's lead to.
	Served map[string]bool
	// FirstUse is an anchor to trust on first use, by issuer.
	FirstUse map[string]*x509.Certificate
	// DistributedNow and RetireNow are anchors that an operator vouches for: everybody knows the ones,
	// nobody needs the others any more.
	DistributedNow, RetireNow map[string]bool
}

// Transition is one change of an anchor's phase. From is "" for a new anchor, To for one that has left.
type Transition struct {
	Anchor   Anchor
	From, To Phase
	Reason   string
}

// Step is the state that follows. It is a pure function: the same state where nothing changes.
//
// A new anchor is published; it is distributed when everybody has carried it for as long as the longest
// leaf may live, so that no leaf lives which was answered without it; it is signing while leaves are issued
// under it; once no source names it, and nothing is signed under it, it retires until the last leaf under it
// has ended. The first anchors of all are distributed at once: nobody has learnt any others from us.
//
// An anchor that is new and doesn't fit, because the bundle would be too large, is left out; federated ones come last.
func (r *Rollover) Step(o Observation) (*Rollover, []Transition) {
	longest := o.Now.Add(o.LongestLeaf)
	s := &step{Observation: o, first: len(r.own()) == 0, longest: longest, horizon: longest, next: &Rollover{
		Anchors: slices.Clone(r.Anchors), Issuer: r.Issuer, Serving: r.Serving, ServingAnchor: r.ServingAnchor, ServingSince: r.ServingSince,
		FirstUse: maps.Clone(r.FirstUse), Generation: r.Generation,
	}}
	for _, a := range r.Anchors {
		s.horizon = later(s.horizon, a.LeavesEnd)
	}
	s.publish()
	s.trustOnFirstUse()
	for i := range s.next.Anchors {
		a := &s.next.Anchors[i]
		a.Sources = s.sourcesOf(*a)
		if i < len(r.Anchors) { // nobody carries a new one yet, whatever was carried before
			s.advance(a)
		}
	}
	s.leave(len(r.Anchors))
	s.follow()
	return s.next, s.changes
}

// step is a step of the rollover under way: what is observed, and the state that comes of it.
type step struct {
	Observation
	first bool // nothing of ours is trusted yet
	// No leaf that is on its way now outlives longest. None that lives at all outlives horizon: leaves may have been allowed
	// to live longer before.
	longest, horizon time.Time

	next    *Rollover
	changes []Transition
}

// move has an anchor begin a phase. One without a phase leaves.
func (s *step) move(a *Anchor, to Phase, format string, args ...any) {
	s.changes = append(s.changes, Transition{Anchor: *a, From: a.Phase, To: to, Reason: fmt.Sprintf(format, args...)})
	a.Phase, a.Since, a.Until, a.Waits = to, s.Now, time.Time{}, ""
}

// publish takes in the anchors that sources name, as far as there is room for them.
func (s *step) publish() {
	// Ours come first: what is ours as well isn't federated.
	ours := slices.SortedStableFunc(slices.Values(s.Named), func(a, b Named) int {
		if a.Federated == b.Federated {
			return 0
		} else if b.Federated {
			return -1
		}
		return 1
	})
	size := 0
	for _, a := range s.next.Anchors {
		size += pemSize(a.Certificate)
	}
	for _, named := range ours {
		if at := s.next.find(AnchorID(named.Certificate)); at >= 0 {
			known := &s.next.Anchors[at]
			known.Federated = known.Federated && named.Federated
			continue
		}
		if size+pemSize(named.Certificate) > maxBundleBytes {
			s.next.LeftOut = append(s.next.LeftOut, fmt.Sprintf("%.100q of %s: the anchors would have more than %d bytes together", named.Certificate.Subject.String(), named.Source, maxBundleBytes))
			continue
		}
		size += pemSize(named.Certificate)
		a := Anchor{Certificate: named.Certificate, Federated: named.Federated}
		switch {
		case s.first && !named.Federated:
			s.move(&a, Distributed, "the first anchors are in force at once")
		case named.Federated:
			s.move(&a, Published, "the trust domain of %s is federated", named.Source)
		default:
			s.move(&a, Published, "named by %s", named.Source)
		}
		s.next.Anchors = append(s.next.Anchors, a)
	}
}

// trustOnFirstUse publishes the roots of issuers that had none. An issuer whose root was trusted once is
// never trusted anew.
func (s *step) trustOnFirstUse() {
	r := s.next
	for _, ref := range slices.Sorted(maps.Keys(s.FirstUse)) {
		root := s.FirstUse[ref]
		if _, known := r.FirstUse[ref]; known || root == nil {
			continue
		}
		if r.FirstUse == nil {
			r.FirstUse = make(map[string]string)
		}
		r.FirstUse[ref] = AnchorID(root)
		if r.find(AnchorID(root)) >= 0 {
			continue
		}
		a := Anchor{Certificate: root}
		if s.first {
			s.move(&a, Distributed, "trusted on first use of %s, the first of all", ref)
		} else {
			s.move(&a, Published, "trusted on first use of %s", ref)
		}
		r.Anchors = append(r.Anchors, a)
	}
}

// advance moves an anchor on, if it is time.
func (s *step) advance(a *Anchor) {
	id := a.ID()
	if s.InUse[id] && s.longest.After(a.LeavesEnd) {
		a.LeavesEnd = s.longest.Add(s.LongestLeaf / leavesEndSlack) // so that it needn't be kept anew with every step
	}
	if s.foreign(a.Sources) && !s.InUse[id] && !s.Served[id] && s.next.another(id) {
		a.Federated = true // it was ours, and only another trust domain names it now
	}
	switch a.Phase {
	case Published:
		s.advancePublished(a, id)
	case Distributed, Signing:
		s.advanceTrusted(a, id)
	case Retiring:
		s.advanceRetiring(a, id)
	}
}

func (s *step) advancePublished(a *Anchor, id string) {
	switch {
	case len(a.Sources) == 0:
		s.move(a, "", "no source names it any more; nothing was signed under it")
	case s.DistributedNow[id]:
		s.move(a, Distributed, "an operator vouches that everybody knows it; who doesn't can't verify its leaves")
	case a.Until.IsZero() && s.Waits == "":
		a.Until, a.Waits = s.horizon, "" // the last leaf that was answered without it ends by then
	case a.Until.IsZero():
		a.Waits = s.Waits
	case !s.Now.Before(a.Until):
		s.move(a, Distributed, "everybody carries it, and no leaf lives that was answered without it")
	}
}

func (s *step) advanceTrusted(a *Anchor, id string) {
	switch {
	case a.Phase == Distributed && s.InUse[id]:
		s.move(a, Signing, "leaves are issued under it")
	case a.Phase == Signing && !s.InUse[id] && len(s.InUse) > 0:
		s.move(a, Distributed, "no replica issues leaves under it any more")
	case len(a.Sources) == 0 && !s.needed(id) && s.next.another(id):
		s.move(a, Retiring, "no source names it any more")
		a.Until = later(a.LeavesEnd, s.longest)
	}
}

func (s *step) advanceRetiring(a *Anchor, id string) {
	switch {
	case len(a.Sources) > 0:
		s.move(a, Distributed, "named again by %s; it never left", strings.Join(a.Sources, ", "))
	case s.needed(id) || !s.next.another(id):
		// Whoever needs it keeps it.
	case s.RetireNow[id]:
		s.move(a, "", "an operator vouches that nobody needs it; who does is cut off")
	case !s.Now.Before(later(a.Until, a.LeavesEnd)):
		s.move(a, "", "the last leaf that could need it has ended")
	}
}

// needed says whether a certificate that signs or serves leads to an anchor.
func (s *step) needed(id string) bool {
	return s.InUse[id] || s.Served[id] || id == s.next.ServingAnchor || id == s.IssuerAnchor
}

// leave takes out the anchors that leave, and counts the generations; before is how many there were.
func (s *step) leave(before int) {
	with := len(s.next.Anchors)
	s.next.Anchors = slices.DeleteFunc(s.next.Anchors, func(a Anchor) bool { return a.Phase == "" })
	if with > before || len(s.next.Anchors) < with {
		s.next.Generation++
	}
	slices.SortFunc(s.next.Anchors, func(a, b Anchor) int { return strings.Compare(a.ID(), b.ID()) })
	// What was trusted on first use and has left is forgotten where the issuer isn't configured any more.
	maps.DeleteFunc(s.next.FirstUse, func(ref, id string) bool {
		_, configured := s.Answered[FirstUseSource(ref)]
		return !configured && s.next.find(id) < 0
	})
}

// sourcesOf are the sources that name a now.
func (s *step) sourcesOf(a Anchor) []string {
	var sources []string
	for _, named := range s.Named {
		if named.Certificate.Equal(a.Certificate) {
			sources = append(sources, named.Source)
		}
	}
	// A source that hasn't answered yet still names what it named; so does one that isn't configured any more, until all
	// that are have answered: it may be the same under another name.
	heard := !slices.Contains(slices.Collect(maps.Values(s.Answered)), false)
	for _, source := range a.Sources {
		if answered, configured := s.Answered[source]; configured && !answered || !configured && !heard {
			sources = append(sources, source)
		}
	}
	for ref, id := range s.next.FirstUse {
		if _, configured := s.Answered[FirstUseSource(ref)]; configured && id == a.ID() {
			sources = append(sources, FirstUseSource(ref))
		}
	}
	slices.Sort(sources)
	return slices.Compact(sources)
}

// foreign says whether there are sources, and all are other trust domains.
func (s *step) foreign(sources []string) bool {
	for _, source := range sources {
		if !slices.ContainsFunc(s.Named, func(n Named) bool { return n.Federated && n.Source == source }) {
			return false
		}
	}
	return len(sources) > 0
}

// pemSize is how many bytes a certificate has as PEM, or a few more.
func pemSize(cert *x509.Certificate) int { return len(cert.Raw)*3/2 + 64 }

// FirstUseSource is what the source is called that trusts the root of an issuer on first use.
func FirstUseSource(ref string) string { return "first use of " + ref }

// follow moves the issuers: leaves are signed by the one that is observed; the serving certificate and
// istiod's follow when nobody can be without its anchor, which is when every client that was told of it in
// an answer has renewed, at half of the longest life.
func (s *step) follow() {
	r, o := s.next, s.Observation
	if o.Issuer.Name == "" {
		return
	}
	r.Issuer = o.Issuer
	serving, anchor, at := r.Serving, r.ServingAnchor, r.find(o.IssuerAnchor)
	switch {
	case serving.Name == "", serving == o.Issuer && at >= 0:
		serving, anchor = o.Issuer, o.IssuerAnchor
	case at < 0:
	case o.IssuerAnchor == anchor, r.find(anchor) < 0,
		r.Anchors[at].Phase == Signing && (o.RetireNow[anchor] || o.Now.Sub(r.Anchors[at].Since) >= o.LongestLeaf/2):
		serving, anchor = o.Issuer, o.IssuerAnchor
	}
	if serving != r.Serving || anchor != r.ServingAnchor {
		r.Serving, r.ServingAnchor, r.ServingSince = serving, anchor, o.Now
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
