package issuer

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Phase is how far a trust anchor has come between its first publication and its last.
type Phase string

// The phases, in their order. An anchor that has left isn't kept.
const (
	// Published anchors are in every answer, and in every namespace or on the way there. Nothing is signed
	// under them yet: there are peers that don't know them.
	Published Phase = "published"
	// Distributed anchors are known to everybody who holds a living leaf: an issuer under them may sign.
	Distributed Phase = "distributed"
	// Signing anchors are those that leaves are issued under.
	Signing Phase = "signing"
	// Retiring anchors are named by no source any more. Nothing is signed under them; they stay until the
	// last leaf under them has ended.
	Retiring Phase = "retiring"
)

// Anchor is a trust anchor with its place in the rollover. Immutable.
type Anchor struct {
	Certificate *x509.Certificate
	Phase       Phase
	Since       time.Time // of the phase
	// Sources name the anchor; none while it retires.
	Sources []string
	// Federated anchors belong to another trust domain: answers carry them, but nothing of ours is under them.
	Federated bool
	// Until is when the phase ends by itself: a published anchor is distributed then, a retiring one leaves.
	// Zero while that isn't known.
	Until time.Time
	// LeavesEnd is a moment at which no leaf lives that was issued under the anchor; zero where there never was one.
	LeavesEnd time.Time
	// Waits says for people what a published anchor waits for before Until is known.
	Waits string
}

// ID is the SHA-256 of the certificate's DER in hexadecimal, as in `openssl x509 -fingerprint -sha256`
// without the colons.
func (a Anchor) ID() string { return AnchorID(a.Certificate) }

// AnchorID is the SHA-256 of a certificate's DER in hexadecimal.
func AnchorID(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// maySign says whether an issuer under the anchor may sign.
func (a Anchor) maySign() bool {
	return !a.Federated && (a.Phase == Distributed || a.Phase == Signing)
}

// Rollover is the state of the mesh's trust, which all replicas share: it decides what is in force, and
// only it decides when an anchor leaves. Immutable.
type Rollover struct {
	// Anchors are in the order of their ID.
	Anchors []Anchor
	// Issuer signs leaves, as the replica saw it that wrote the state; empty at first.
	Issuer Ref
	// Serving signs the serving certificate and istiod's, which follow Issuer later.
	Serving Ref
	// ServingAnchor is the ID of the anchor that Serving leads to; empty where that isn't known.
	ServingAnchor string
	// ServingSince is since when Serving and ServingAnchor are what they are.
	ServingSince time.Time
	// FirstUse are the IDs of the anchors that were trusted on first use, by issuer.
	FirstUse map[string]string
	// Generation grows by one whenever an anchor comes or goes.
	Generation uint64
	// LeftOut says of each anchor that a step left out, which and why. It is not kept.
	LeftOut []string
}

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
	next := &Rollover{
		Anchors: slices.Clone(r.Anchors), Issuer: r.Issuer, Serving: r.Serving, ServingAnchor: r.ServingAnchor, ServingSince: r.ServingSince,
		FirstUse: maps.Clone(r.FirstUse), Generation: r.Generation,
	}
	var changes []Transition
	move := func(a *Anchor, to Phase, format string, args ...any) {
		changes = append(changes, Transition{Anchor: *a, From: a.Phase, To: to, Reason: fmt.Sprintf(format, args...)})
		a.Phase, a.Since, a.Until, a.Waits = to, o.Now, time.Time{}, ""
	}
	first := len(r.own()) == 0
	// Ours come first: what is ours as well isn't federated.
	ours := slices.SortedStableFunc(slices.Values(o.Named), func(a, b Named) int {
		if a.Federated == b.Federated {
			return 0
		} else if b.Federated {
			return -1
		}
		return 1
	})
	size := 0
	for _, a := range r.Anchors {
		size += pemSize(a.Certificate)
	}
	for _, named := range ours {
		if at := next.find(AnchorID(named.Certificate)); at >= 0 {
			next.Anchors[at].Federated = next.Anchors[at].Federated && named.Federated
			continue
		}
		if size += pemSize(named.Certificate); size > maxBundleBytes {
			size -= pemSize(named.Certificate)
			next.LeftOut = append(next.LeftOut, fmt.Sprintf("%.100q of %s: the anchors would have more than %d bytes together", named.Certificate.Subject.String(), named.Source, maxBundleBytes))
			continue
		}
		a := Anchor{Certificate: named.Certificate, Federated: named.Federated}
		switch {
		case first && !named.Federated:
			move(&a, Distributed, "the first anchors are in force at once")
		case named.Federated:
			move(&a, Published, "the trust domain of %s is federated", named.Source)
		default:
			move(&a, Published, "named by %s", named.Source)
		}
		next.Anchors = append(next.Anchors, a)
	}
	next.trustOnFirstUse(o, first, move)

	// No leaf that is issued by now lives longer than horizon, even if leaves were allowed to live longer before.
	longest := o.Now.Add(o.LongestLeaf)
	horizon := longest
	for _, a := range r.Anchors {
		horizon = later(horizon, a.LeavesEnd)
	}
	var gone []string
	for i := range next.Anchors {
		a := &next.Anchors[i]
		id := a.ID()
		a.Sources = next.sourcesOf(*a, o)
		if i >= len(r.Anchors) {
			continue // nobody carries it yet, whatever was carried before
		}
		if o.InUse[id] && longest.After(a.LeavesEnd) {
			a.LeavesEnd = longest.Add(o.LongestLeaf / leavesEndSlack) // so that it needn't be kept anew with every step
		}
		if federated := foreign(a.Sources, o); federated && !o.InUse[id] && !o.Served[id] && next.another(id) {
			a.Federated = true // it was ours, and only another trust domain names it now
		}
		needed := o.InUse[id] || o.Served[id] || id == r.ServingAnchor || id == o.IssuerAnchor
		switch a.Phase {
		case Published:
			switch {
			case len(a.Sources) == 0:
				move(a, "", "no source names it any more; nothing was signed under it")
				gone = append(gone, id)
			case o.DistributedNow[id]:
				move(a, Distributed, "an operator vouches that everybody knows it; who doesn't can't verify its leaves")
			case a.Until.IsZero() && o.Waits == "":
				a.Until, a.Waits = horizon, "" // the last leaf that was answered without it ends by then
			case a.Until.IsZero():
				a.Waits = o.Waits
			case !o.Now.Before(a.Until):
				move(a, Distributed, "everybody carries it, and no leaf lives that was answered without it")
			}
		case Distributed, Signing:
			switch {
			case a.Phase == Distributed && o.InUse[id]:
				move(a, Signing, "leaves are issued under it")
			case a.Phase == Signing && !o.InUse[id] && len(o.InUse) > 0:
				move(a, Distributed, "no replica issues leaves under it any more")
			case len(a.Sources) == 0 && !needed && next.another(id):
				move(a, Retiring, "no source names it any more")
				a.Until = later(a.LeavesEnd, longest)
			}
		case Retiring:
			switch {
			case len(a.Sources) > 0:
				move(a, Distributed, "named again by %s; it never left", strings.Join(a.Sources, ", "))
			case needed || !next.another(id):
				// Whoever needs it keeps it.
			case o.RetireNow[id]:
				move(a, "", "an operator vouches that nobody needs it; who does is cut off")
				gone = append(gone, id)
			case !o.Now.Before(later(a.Until, a.LeavesEnd)):
				move(a, "", "the last leaf that could need it has ended")
				gone = append(gone, id)
			}
		}
	}
	for _, id := range gone {
		next.Anchors = slices.DeleteFunc(next.Anchors, func(a Anchor) bool { return a.ID() == id })
	}
	if len(gone) > 0 || len(next.Anchors) > len(r.Anchors) {
		next.Generation++
	}
	next.forgetFirstUse(o)
	slices.SortFunc(next.Anchors, func(a, b Anchor) int { return strings.Compare(a.ID(), b.ID()) })
	next.follow(o)
	return next, changes
}

// trustOnFirstUse publishes the roots of issuers that had none. An issuer whose root was trusted once is
// never trusted anew.
func (r *Rollover) trustOnFirstUse(o Observation, first bool, move func(*Anchor, Phase, string, ...any)) {
	for _, ref := range slices.Sorted(maps.Keys(o.FirstUse)) {
		root := o.FirstUse[ref]
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
		if first {
			move(&a, Distributed, "trusted on first use of %s, the first of all", ref)
		} else {
			move(&a, Published, "trusted on first use of %s", ref)
		}
		r.Anchors = append(r.Anchors, a)
	}
}

// forgetFirstUse drops what was trusted on first use and has left since, where the issuer isn't configured any more.
func (r *Rollover) forgetFirstUse(o Observation) {
	maps.DeleteFunc(r.FirstUse, func(ref, id string) bool {
		_, configured := o.Answered[FirstUseSource(ref)]
		return !configured && r.find(id) < 0
	})
}

// sourcesOf are the sources that name a now.
func (r *Rollover) sourcesOf(a Anchor, o Observation) []string {
	var sources []string
	for _, named := range o.Named {
		if named.Certificate.Equal(a.Certificate) {
			sources = append(sources, named.Source)
		}
	}
	// A source that hasn't answered yet still names what it named; so does one that isn't configured any more, until all
	// that are have answered: it may be the same under another name.
	heard := !slices.Contains(slices.Collect(maps.Values(o.Answered)), false)
	for _, source := range a.Sources {
		if answered, configured := o.Answered[source]; configured && !answered || !configured && !heard {
			sources = append(sources, source)
		}
	}
	for ref, id := range r.FirstUse {
		if _, configured := o.Answered[FirstUseSource(ref)]; configured && id == a.ID() {
			sources = append(sources, FirstUseSource(ref))
		}
	}
	slices.Sort(sources)
	return slices.Compact(sources)
}

// foreign says whether there are sources, and all are other trust domains.
func foreign(sources []string, o Observation) bool {
	for _, source := range sources {
		if !slices.ContainsFunc(o.Named, func(n Named) bool { return n.Federated && n.Source == source }) {
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
func (r *Rollover) follow(o Observation) {
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

func (r *Rollover) find(id string) int {
	return slices.IndexFunc(r.Anchors, func(a Anchor) bool { return a.ID() == id })
}

// another says whether there is an anchor of ours beside id that an issuer may sign under: the last one
// never leaves.
func (r *Rollover) another(id string) bool {
	return slices.ContainsFunc(r.Anchors, func(a Anchor) bool { return a.maySign() && a.ID() != id })
}

// own are the anchors of our trust domain.
func (r *Rollover) own() []Anchor {
	return slices.DeleteFunc(slices.Clone(r.Anchors), func(a Anchor) bool { return a.Federated })
}

// Anchor finds an anchor by its ID.
func (r *Rollover) Anchor(id string) (Anchor, bool) {
	if at := r.find(id); at >= 0 {
		return r.Anchors[at], true
	}
	return Anchor{}, false
}

// Bundle are all anchors, which every answer carries.
func (r *Rollover) Bundle() (Bundle, error) {
	return r.bundle(func(Anchor) bool { return true })
}

// Trusted are the anchors that issuers may sign under.
func (r *Rollover) Trusted() (Bundle, error) { return r.bundle(Anchor.maySign) }

// Own are the anchors of our own trust domain.
func (r *Rollover) Own() (Bundle, error) {
	return r.bundle(func(a Anchor) bool { return !a.Federated })
}

func (r *Rollover) bundle(keep func(Anchor) bool) (Bundle, error) {
	var certs []*x509.Certificate
	for _, a := range r.Anchors {
		if keep(a) {
			certs = append(certs, a.Certificate)
		}
	}
	if len(certs) == 0 {
		return Bundle{}, nil
	}
	b, err := NewBundle(certs...)
	if err == nil && len(b.PEM()) > maxBundleBytes {
		err = fmt.Errorf("the anchors have %d bytes together; at most %d are allowed", len(b.PEM()), maxBundleBytes)
	}
	return b, err
}

// Held says why an issuer that leads to an anchor may not sign, or "" where it may. The text is for people.
func (r *Rollover) Held(anchor *x509.Certificate, now time.Time) string {
	a, known := r.Anchor(AnchorID(anchor))
	switch {
	case !known:
		return fmt.Sprintf("its root %q (SHA-256 %.16s…) is none of the trust anchors; add it to the sources of roots", anchor.Subject, AnchorID(anchor))
	case a.maySign():
		return ""
	case a.Federated:
		return fmt.Sprintf("its root %q belongs to a federated trust domain", anchor.Subject)
	case a.Phase == Retiring:
		return fmt.Sprintf("its root %q is retiring; add it to the sources of roots again", anchor.Subject)
	case a.Until.IsZero():
		return fmt.Sprintf("its root %q is published and waits for %s, and then for the end of leaves that were answered without it", anchor.Subject, a.Waits)
	}
	return fmt.Sprintf("its root %q is published; leaves that were answered without it may live for another %s, and from %s on it may sign",
		anchor.Subject, max(0, a.Until.Sub(now)).Round(time.Second), a.Until.UTC().Format(time.RFC3339))
}

// Equal says whether two states are the same, but for what they wait for.
func (r *Rollover) Equal(other *Rollover) bool {
	a, errA := r.encode(false)
	b, errB := other.encode(false)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// Same says whether two states are the same, what they wait for included.
func (r *Rollover) Same(other *Rollover) bool {
	a, errA := r.encode(true)
	b, errB := other.encode(true)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// storedAnchor and storedRollover are the JSON in which the state is kept; the certificates are beside it.
type storedAnchor struct {
	SHA256    string    `json:"sha256"`
	Subject   string    `json:"subject"`
	NotAfter  time.Time `json:"notAfter"`
	Phase     Phase     `json:"phase"`
	Since     time.Time `json:"since"`
	Sources   []string  `json:"sources,omitempty"`
	Federated bool      `json:"federated,omitempty"`
	Until     time.Time `json:"until,omitzero"`
	LeavesEnd time.Time `json:"leavesEnd,omitzero"`
	Waits     string    `json:"waits,omitempty"`
}

type storedRollover struct {
	Anchors       []storedAnchor    `json:"anchors"`
	Issuer        Ref               `json:"issuer,omitzero"`
	Serving       Ref               `json:"serving,omitzero"`
	ServingAnchor string            `json:"servingAnchor,omitempty"`
	ServingSince  time.Time         `json:"servingSince,omitzero"`
	FirstUse      map[string]string `json:"firstUse,omitempty"`
	Generation    uint64            `json:"generation"`
}

func (r *Rollover) encode(waits bool) ([]byte, error) {
	stored := storedRollover{Issuer: r.Issuer, Serving: r.Serving, ServingAnchor: r.ServingAnchor,
		ServingSince: r.ServingSince.UTC().Truncate(time.Second), FirstUse: r.FirstUse, Generation: r.Generation}
	for _, a := range r.Anchors {
		s := storedAnchor{
			SHA256: a.ID(), Subject: a.Certificate.Subject.String(), NotAfter: a.Certificate.NotAfter.UTC(), Phase: a.Phase, Since: a.Since.UTC().Truncate(time.Second),
			Sources: a.Sources, Federated: a.Federated, Until: a.Until.UTC().Truncate(time.Second), LeavesEnd: a.LeavesEnd.UTC().Truncate(time.Second),
		}
		if waits {
			s.Waits = a.Waits
		}
		stored.Anchors = append(stored.Anchors, s)
	}
	return json.MarshalIndent(stored, "", "  ")
}

// leavesEndSlack: the end of the leaves under an anchor is set by this part of the longest life too late.
const leavesEndSlack = 16

// Encode is the state as it is kept: JSON, and the certificates as PEM.
func (r *Rollover) Encode() (state, pem string, err error) {
	text, err := r.encode(true)
	if err != nil {
		return "", "", fmt.Errorf("encode the state of the rollover: %w", err)
	}
	bundle, err := r.Bundle()
	if err != nil {
		return "", "", err
	}
	return string(text), bundle.PEM(), nil
}

// ParseRollover reads what Encode wrote. Where there is no JSON, all certificates are anchors that issuers may
// sign under, as they were before there was a rollover.
func ParseRollover(state, pem string) (*Rollover, error) {
	bundle, err := ParseBundle([]byte(pem))
	if err != nil {
		return nil, err
	}
	r := &Rollover{}
	if strings.TrimSpace(state) == "" {
		for _, cert := range bundle.Anchors() {
			r.Anchors = append(r.Anchors, Anchor{Certificate: cert, Phase: Distributed})
		}
		return r, nil
	}
	var stored storedRollover
	if err := json.Unmarshal([]byte(state), &stored); err != nil {
		return nil, fmt.Errorf("state of the rollover: %w", err)
	}
	r.Issuer, r.Serving, r.ServingAnchor, r.ServingSince = stored.Issuer, stored.Serving, stored.ServingAnchor, stored.ServingSince
	r.FirstUse, r.Generation = stored.FirstUse, stored.Generation
	certs := make(map[string]*x509.Certificate)
	for _, cert := range bundle.Anchors() {
		certs[AnchorID(cert)] = cert
	}
	for _, s := range stored.Anchors {
		cert := certs[s.SHA256]
		switch {
		case cert == nil:
			return nil, fmt.Errorf("state of the rollover: the certificate of anchor %s is missing", s.SHA256)
		case s.Phase != Published && s.Phase != Distributed && s.Phase != Signing && s.Phase != Retiring:
			return nil, fmt.Errorf("state of the rollover: anchor %s has the unknown phase %q", s.SHA256, s.Phase)
		}
		delete(certs, s.SHA256)
		r.Anchors = append(r.Anchors, Anchor{
			Certificate: cert, Phase: s.Phase, Since: s.Since, Sources: s.Sources, Federated: s.Federated,
			Until: s.Until, LeavesEnd: s.LeavesEnd, Waits: s.Waits,
		})
	}
	if len(certs) > 0 {
		return nil, errors.New("state of the rollover: it has certificates that it says nothing of")
	}
	return r, nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
