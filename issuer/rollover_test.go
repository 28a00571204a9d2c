package issuer

import (
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const longest = time.Hour

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// story is a rollover that goes on step by step, with what is observed.
type story struct {
	t     *testing.T
	state *Rollover
	o     Observation
	roots map[string]*x509.Certificate
}

// newStory begins with root a, named by the file roots and signing.
func newStory(t *testing.T) *story {
	s := &story{t: t, state: new(Rollover), roots: make(map[string]*x509.Certificate)}
	for _, name := range []string{"a", "b", "c"} {
		s.roots[name] = newRoot(t, name, nil)
	}
	s.o = Observation{Now: began, LongestLeaf: longest, Answered: map[string]bool{"roots": true}, InUse: map[string]bool{}, Served: map[string]bool{}}
	s.name("a")
	s.signs("a")
	s.is("a=distributed")
	s.is("a=signing")
	return s
}

// name makes these the roots that the source names.
func (s *story) name(names ...string) {
	s.o.Named = nil
	for _, name := range names {
		s.o.Named = append(s.o.Named, Named{Certificate: s.roots[name], Source: "roots"})
	}
}

// signs has leaves issued under a root, by an issuer of that name.
func (s *story) signs(name string) {
	s.o.Issuer, s.o.IssuerAnchor = Ref{Name: name}.WithDefaults(), s.id(name)
	s.o.InUse = map[string]bool{s.id(name): true}
}

func (s *story) id(name string) string { return AnchorID(s.roots[name]) }

func (s *story) pass(d time.Duration) { s.o.Now = s.o.Now.Add(d) }

// step steps once, by way of what is kept.
func (s *story) step() []Transition {
	s.t.Helper()
	next, changes := s.state.Step(s.o)
	if len(next.Anchors) > 0 {
		state, pem, err := next.Encode()
		require.NoError(s.t, err)
		kept, err := ParseRollover(state, pem)
		require.NoError(s.t, err)
		require.True(s.t, kept.Equal(next), "what is kept is the state")
		next = kept
	}
	s.state = next
	return changes
}

// is steps once and wants these phases, in the order of the roots' names.
func (s *story) is(want string) {
	s.t.Helper()
	s.step()
	require.Equal(s.t, want, s.phases(), "at %s", s.o.Now.Sub(began))
}

func (s *story) phases() string {
	var got []string
	for _, name := range []string{"a", "b", "c"} {
		if a, ok := s.state.Anchor(s.id(name)); ok {
			got = append(got, name+"="+string(a.Phase))
		}
	}
	return strings.Join(got, " ")
}

// Leaves that were allowed to live longer, before the configuration was changed, are waited for too.
func TestRolloverAfterALongerLife(t *testing.T) {
	s := newStory(t)
	s.o.LongestLeaf = longest / 10
	s.name("a", "b")
	s.step()
	s.step()
	b, _ := s.state.Anchor(s.id("b"))
	assert.False(t, b.Until.Before(began.Add(longest)), "%s", b.Until.Sub(began))
}

func TestRolloverFromOneRootToAnother(t *testing.T) {
	s := newStory(t)
	assert.Equal(t, s.o.Issuer, s.state.Serving)

	// Published, and not distributed before everybody carries it and the longest leaf has ended since.
	s.name("a", "b")
	s.o.Waits = "1 of 3 namespaces to carry it"
	s.is("a=signing b=published")
	s.pass(10 * longest)
	s.is("a=signing b=published")
	assert.Contains(t, s.state.Held(s.roots["b"], s.o.Now), "waits for 1 of 3 namespaces to carry it, and then for the end of leaves")
	s.o.Waits = ""
	s.is("a=signing b=published")
	b, _ := s.state.Anchor(s.id("b"))
	assert.Contains(t, s.state.Held(s.roots["b"], s.o.Now), "may live for another 1h")
	assert.Contains(t, s.state.Held(s.roots["b"], s.o.Now), ", and from "+b.Until.UTC().Format(time.RFC3339)+" on it may sign")
	s.o.Waits = "a new replica to answer with it" // which has the state from its first moment
	carried := s.o.Now
	for !strings.Contains(s.phases(), "b=distributed") {
		s.is("a=signing b=published")
		s.pass(time.Second)
		s.step()
	}
	assert.GreaterOrEqual(t, s.o.Now.Sub(carried), longest)
	assert.LessOrEqual(t, s.o.Now.Sub(carried), longest+longest/leavesEndSlack)
	assert.Empty(t, s.state.Held(s.roots["b"], s.o.Now))

	// The issuer changes. Serving certificates follow at half of the longest life.
	s.signs("b")
	s.is("a=distributed b=signing")
	assert.Equal(t, "a", s.state.Serving.Name)
}

func TestRolloverServingFollowsLast(t *testing.T) {
	s := atB(t)
	began := s.o.Now
	for s.state.Serving.Name == "a" {
		s.step()
		s.pass(time.Minute)
		require.Less(t, s.o.Now.Sub(began), longest)
	}
	assert.GreaterOrEqual(t, s.o.Now.Sub(began), longest/2)
	assert.Equal(t, s.id("b"), s.state.ServingAnchor)
}

// atB is the story at which leaves are issued under b, and a is still named.
func atB(t *testing.T) *story {
	s := newStory(t)
	s.name("a", "b")
	s.step()
	s.pass(time.Second)
	s.step()
	s.pass(2 * longest)
	s.step()
	s.signs("b")
	s.step()
	s.step()
	require.Empty(t, s.state.Held(s.roots["b"], s.o.Now))
	return s
}

func TestRolloverRetires(t *testing.T) {
	s := atB(t)
	old, _ := s.state.Anchor(s.id("a"))
	last := s.o.Now
	assert.False(t, old.LeavesEnd.Before(last.Add(longest-time.Second)), "%s", old.LeavesEnd)
	s.name("b")
	s.o.Served[s.id("a")] = true
	for range 100 {
		s.pass(time.Minute)
		s.is("a=distributed b=signing") // serving certificates are under it
	}
	assert.Equal(t, "b", s.state.Serving.Name)
	delete(s.o.Served, s.id("a"))
	s.is("a=retiring b=signing")
	assert.Contains(t, s.state.Held(s.roots["a"], s.o.Now), "is retiring")
	assert.NotContains(t, bundleText(t, s.state.Trusted), pemOf(s.roots["a"]))
	assert.Contains(t, bundleText(t, s.state.Bundle), pemOf(s.roots["a"]), "it stays in every answer")
	s.pass(longest - time.Second)
	s.is("a=retiring b=signing")
	s.o.Served[s.id("a")] = true // by a replica that comes back
	s.pass(time.Second)
	s.is("a=retiring b=signing")
	delete(s.o.Served, s.id("a"))
	assert.Equal(t, uint64(2), s.state.Generation)
	s.is("b=signing")
	assert.Equal(t, uint64(3), s.state.Generation)
}

func bundleText(t *testing.T, of func() (Bundle, error)) string {
	t.Helper()
	b, err := of()
	require.NoError(t, err)
	return b.PEM()
}

func pemOf(cert *x509.Certificate) string {
	b, err := NewBundle(cert)
	if err != nil {
		panic(err)
	}
	return b.PEM()
}

// A retiring anchor that is named again never left; one that was only published and is named no more goes at once.
func TestRolloverTurnsBack(t *testing.T) {
	s := newStory(t)
	s.name("a", "b")
	s.is("a=signing b=published")
	s.name("a")
	s.is("a=signing")

	s = atB(t)
	s.pass(longest)
	s.step()
	s.name("b")
	s.is("a=retiring b=signing")
	s.name("a", "b")
	s.is("a=distributed b=signing")
	s.signs("a")
	s.step()
	s.is("a=signing b=distributed")
}

// Nothing is concluded from a source that hasn't answered yet, and everything from one that is configured no more.
func TestRolloverSourcesThatAreSilent(t *testing.T) {
	s := newStory(t)
	s.o.InUse, s.o.IssuerAnchor, s.o.Issuer = map[string]bool{}, "", Ref{}
	s.name()
	s.o.Answered = map[string]bool{"roots": false, "others": true}
	s.o.Named = []Named{{Certificate: s.roots["b"], Source: "others"}}
	s.is("a=signing b=published")
	s.pass(time.Second)
	s.step()
	s.pass(10 * longest)
	s.is("a=signing b=distributed")
	s.is("a=signing b=distributed")
	a, _ := s.state.Anchor(s.id("a"))
	assert.Equal(t, []string{"roots"}, a.Sources)
	assert.Equal(t, s.id("a"), s.state.ServingAnchor)
	s.o.Issuer, s.o.IssuerAnchor = Ref{Name: "b"}.WithDefaults(), s.id("b")
	s.o.InUse[s.id("b")] = true
	s.step()
	s.pass(longest)
	s.is("a=distributed b=signing")
	delete(s.o.Answered, "roots")
	s.o.Answered["renamed"] = false // it may be the same source
	s.is("a=distributed b=signing")
	s.o.Answered["renamed"] = true
	s.is("a=retiring b=signing")
}

func TestRolloverNeverTheLastAnchor(t *testing.T) {
	s := newStory(t)
	s.name()
	s.o.InUse, s.o.Issuer, s.o.IssuerAnchor = map[string]bool{}, Ref{}, ""
	s.state.ServingAnchor, s.state.Serving = "", Ref{}
	for range 5 {
		s.pass(10 * longest)
		s.is("a=signing")
	}
	// Nor does a federated one, or one that nothing may be signed under, take its place.
	s.o.Named = []Named{{Certificate: s.roots["c"], Source: "other.example", Federated: true}, {Certificate: s.roots["b"], Source: "roots"}}
	s.o.Answered["other.example"] = true
	s.o.Waits = "a namespace"
	s.pass(10 * longest)
	s.is("a=signing b=published c=published")
}

// A federated anchor is in every answer, and nothing of ours is ever under it.
func TestR56_FederatedAnchors(t *testing.T) {
	s := newStory(t)
	s.o.Named = append(s.o.Named, Named{Certificate: s.roots["c"], Source: "other.example", Federated: true})
	s.o.Answered["other.example"] = true
	s.step()
	s.pass(time.Second)
	s.step()
	s.pass(10 * longest)
	s.is("a=signing c=distributed")
	assert.Contains(t, bundleText(t, s.state.Bundle), pemOf(s.roots["c"]))
	assert.NotContains(t, bundleText(t, s.state.Trusted), pemOf(s.roots["c"]))
	assert.NotContains(t, bundleText(t, s.state.Own), pemOf(s.roots["c"]))
	assert.Contains(t, s.state.Held(s.roots["c"], s.o.Now), "federated")
	s.o.DistributedNow = map[string]bool{s.id("c"): true}
	s.step()
	assert.Contains(t, s.state.Held(s.roots["c"], s.o.Now), "federated")
}

// The root of a federated domain that is also ours is ours.
func TestFederatedAnchorThatIsOurs(t *testing.T) {
	s := newStory(t)
	s.o.Named = append(s.o.Named, Named{Certificate: s.roots["a"], Source: "other.example", Federated: true})
	s.is("a=signing")
	assert.Empty(t, s.state.Held(s.roots["a"], s.o.Now))

	s = &story{t: t, state: new(Rollover), roots: s.roots, o: s.o}
	slices.Reverse(s.o.Named)
	s.step()
	assert.Empty(t, s.state.Held(s.roots["a"], s.o.Now), "whoever names it first")
}

func TestRolloverOverrides(t *testing.T) {
	s := newStory(t)
	s.name("a", "b")
	s.o.Waits = "a namespace"
	s.step()
	s.o.DistributedNow = map[string]bool{s.id("b"): true}
	changes := s.step()
	require.Len(t, changes, 1)
	assert.Contains(t, changes[0].Reason, "who doesn't can't verify its leaves")
	s.signs("b")
	s.step()
	s.is("a=distributed b=signing")

	// Serving certificates follow at once. What is needed isn't retired, whoever says so.
	s.o.Served[s.id("a")] = true
	s.step()
	require.Equal(t, "a", s.state.Serving.Name)
	s.o.RetireNow = map[string]bool{s.id("a"): true, s.id("b"): true}
	s.is("a=distributed b=signing")
	assert.Equal(t, "b", s.state.Serving.Name)
	assert.Equal(t, s.id("b"), s.state.ServingAnchor)
	s.name("b")
	s.is("a=distributed b=signing") // a replica's certificate is under it still
	delete(s.o.Served, s.id("a"))
	s.is("a=retiring b=signing")
	changes = s.step()
	require.Len(t, changes, 1)
	assert.Contains(t, changes[0].Reason, "who does is cut off")
	s.is("b=signing")
}

// What would make the bundle too large is left out, and everything else goes on.
func TestRolloverLeavesOutWhatDoesNotFit(t *testing.T) {
	s := newStory(t)
	for n := range 60 {
		large := newRoot(t, fmt.Sprint("large", n), func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{strings.Repeat("x", 4000)} })
		s.o.Named = append(s.o.Named, Named{Certificate: large, Source: "roots"})
	}
	s.step()
	assert.LessOrEqual(t, len(bundleText(t, s.state.Bundle)), maxBundleBytes)
	next, _ := s.state.Step(s.o)
	require.NotEmpty(t, next.LeftOut)
	assert.Contains(t, next.LeftOut[0], "of roots: the anchors would have more than")
	s.pass(3 * longest)
	s.step()
	s.pass(3 * longest)
	s.step()
	require.Greater(t, len(s.state.Anchors), 2)
	for _, a := range s.state.Anchors {
		if a.ID() == s.id("a") {
			assert.Equal(t, Signing, a.Phase)
		} else {
			assert.Equal(t, Distributed, a.Phase, "the rest goes on")
		}
	}
}

// What was ours and only another trust domain names is that one's.
func TestAnchorThatIsNotOursAnyMore(t *testing.T) {
	s := atB(t)
	s.o.Named = []Named{{Certificate: s.roots["a"], Source: "other.example", Federated: true}, {Certificate: s.roots["b"], Source: "roots"}}
	s.o.Answered["other.example"] = true
	s.step()
	assert.Contains(t, s.state.Held(s.roots["a"], s.o.Now), "federated")
	assert.NotContains(t, bundleText(t, s.state.Own), pemOf(s.roots["a"]))
}

func TestRolloverFirstUse(t *testing.T) {
	r := new(Rollover)
	a, b := newRoot(t, "a", nil), newRoot(t, "b", nil)
	o := Observation{
		Now: began, LongestLeaf: longest, FirstUse: map[string]*x509.Certificate{"one": a},
		Answered: map[string]bool{FirstUseSource("one"): true}, Issuer: Ref{Name: "one"}, IssuerAnchor: AnchorID(a), InUse: map[string]bool{AnchorID(a): true},
	}
	r, _ = r.Step(o)
	require.Len(t, r.Anchors, 1)
	assert.Equal(t, Distributed, r.Anchors[0].Phase)

	// The same issuer is never trusted anew.
	o.FirstUse["one"] = b
	r, changes := r.Step(o)
	assert.Len(t, r.Anchors, 1)
	assert.Len(t, changes, 1, "signing")

	// Another one is, by way of the rollover.
	o.FirstUse = map[string]*x509.Certificate{"two": b}
	o.Answered = map[string]bool{FirstUseSource("two"): true}
	r, _ = r.Step(o)
	require.Len(t, r.Anchors, 2)
	anchor, _ := r.Anchor(AnchorID(b))
	assert.Equal(t, Published, anchor.Phase)
	assert.Equal(t, map[string]string{"one": AnchorID(a), "two": AnchorID(b)}, r.FirstUse)
}

// However roots are named, issuers change and time passes: no leaf that lives is ever unknown to somebody who holds one.
func TestRolloverKeepsEverybodyTogether(t *testing.T) {
	for seed := range 8 {
		random := newRandom(seed)
		s := newStory(t)
		type leaf struct {
			ends   time.Time
			under  string
			anchor []string // that came with it
		}
		var leaves []leaf
		names := []string{"a", "b", "c"}
		signing, wanted := "a", "a"
		for range 400 {
			switch random.IntN(12) {
			case 0:
				var named []string
				for _, name := range names {
					if random.IntN(2) == 0 {
						named = append(named, name)
					}
				}
				s.name(named...)
			case 1:
				wanted = names[random.IntN(3)]
			case 2:
				s.o.Waits = "somebody"
			case 3, 4:
				s.o.Waits = ""
			}
			if s.state.Held(s.roots[wanted], s.o.Now) == "" {
				signing = wanted
			}
			if s.state.Held(s.roots[signing], s.o.Now) == "" {
				s.signs(signing)
				var known []string
				for _, a := range s.state.Anchors {
					known = append(known, a.ID())
				}
				leaves = append(leaves, leaf{s.o.Now.Add(longest), s.id(signing), known})
			} else {
				s.o.InUse = map[string]bool{}
			}
			s.step()
			if _, ok := s.state.Anchor(s.state.ServingAnchor); !ok {
				require.Fail(t, "serving certificates are under an anchor that has left", "seed %d", seed)
			}
			trusted, err := s.state.Trusted()
			require.NoError(t, err)
			require.False(t, trusted.Empty(), "seed %d", seed)
			s.pass(time.Duration(random.IntN(int(longest / 4))))
			leaves = slices.DeleteFunc(leaves, func(l leaf) bool { return !l.ends.After(s.o.Now) })
			for _, mine := range leaves {
				for _, other := range leaves {
					require.Contains(t, mine.anchor, other.under, "seed %d, at %s: somebody doesn't know the anchor of somebody else's leaf", seed, s.o.Now.Sub(began))
				}
			}
		}
	}
}

func TestParseRolloverRefuses(t *testing.T) {
	s := newStory(t)
	state, pem, err := s.state.Encode()
	require.NoError(t, err)
	for _, row := range []struct{ name, state, pem, want string }{
		{"no JSON", "{", pem, "state of the rollover: "},
		{"no PEM", state, "x", "PEM"},
		{"certificate missing", state, pemOf(s.roots["b"]), "the certificate of anchor " + s.id("a") + " is missing"},
		{"certificate too many", state, pem + pemOf(s.roots["b"]), "certificates that it says nothing of"},
		{"unknown phase", strings.Replace(state, "signing", "sgning", 1), pem, `unknown phase "sgning"`},
	} {
		_, err := ParseRollover(row.state, row.pem)
		assert.ErrorContains(t, err, row.want, row.name)
	}
	before, err := ParseRollover("", pem)
	require.NoError(t, err)
	assert.Equal(t, Distributed, before.Anchors[0].Phase, "as it was before there was a rollover")
}

func newRandom(seed int) *rand.Rand { return rand.New(rand.NewPCG(uint64(seed), 1)) }
