package inventory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/setting"
)

func TestAPodThroughItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		p := r.pod("shop", "cart-1", "cart", sidecar)
		r.service("shop", "cart", p)

		young := r.get("shop", "cart")
		assert.Equal(t, []string{identityOf("shop", "cart")}, young.Identities)
		assert.Equal(t, api.Summary{Total: 1}, young.Summary, "too young to miss a certificate")
		assert.Empty(t, young.Problems)

		time.Sleep(2*time.Minute - time.Nanosecond)
		assert.Empty(t, r.get("shop", "cart").Problems)
		time.Sleep(time.Nanosecond)
		missing := r.get("shop", "cart")
		assert.Equal(t, api.Summary{Total: 1, Missing: 1}, missing.Summary)
		assert.Equal(t, []api.Problem{{Code: api.ProblemMissing, Detail: "1 of 1 pods hold no certificate: cart-1"}}, missing.Problems)
		assert.Equal(t, "missing-certificate", codes(missing.Pods[0].Problems))

		c := r.issue(p)
		issued := time.Now()
		fresh := r.get("shop", "cart")
		assert.Equal(t, api.Summary{Total: 1, Fresh: 1, NotAfter: c.NotAfter, RemainingRatio: 1}, fresh.Summary)
		assert.Empty(t, fresh.Problems)
		require.Len(t, fresh.Pods, 1)
		c.State, c.Standing, c.RemainingSeconds, c.RemainingRatio = api.Fresh, api.Live, 3600, 1
		assert.Equal(t, []api.Certificate{c}, fresh.Pods[0].Certificates, "all of it comes back")
		assert.Equal(t, api.Sidecar, fresh.Pods[0].DataPlane)

		at := func(after time.Duration) *api.Service {
			time.Sleep(time.Until(issued.Add(after)))
			return r.get("shop", "cart")
		}
		assert.Equal(t, 1, at(30*time.Minute-1).Summary.Fresh)
		assert.Equal(t, 1, at(30*time.Minute).Summary.Due)
		assert.InDelta(t, 0.5, at(30*time.Minute).Summary.RemainingRatio, 1e-9)
		assert.Equal(t, 1, at(33*time.Minute-1).Summary.Due)
		overdue := at(33 * time.Minute)
		assert.Equal(t, 1, overdue.Summary.Overdue)
		assert.Equal(t, "overdue", codes(overdue.Problems))
		assert.Equal(t, "overdue", codes(overdue.Pods[0].Problems))
		assert.Equal(t, 1, at(time.Hour).Summary.Overdue, "the last second belongs to it")
		expired := at(time.Hour + 1)
		assert.Equal(t, 1, expired.Summary.Expired)
		assert.Equal(t, "expired", codes(expired.Problems))
		assert.Equal(t, "expired", codes(expired.Pods[0].Problems))
		assert.Zero(t, expired.Summary.RemainingRatio)
		assert.Equal(t, api.Ended, expired.Pods[0].Certificates[0].Standing)

		r.issue(p)
		renewed := r.get("shop", "cart")
		assert.Equal(t, 1, renewed.Summary.Fresh)
		assert.Len(t, renewed.Pods[0].Certificates, 1)
	})
}

// TestOldViewsAreMadeAnew: a clock that is set back doesn't leave a view in force that was made later.
func TestOldViewsAreMadeAnew(t *testing.T) {
	v := &view{from: time.Unix(100, 0), until: time.Unix(200, 0)}
	assert.False(t, v.at(time.Unix(99, 0)))
	assert.True(t, v.at(time.Unix(100, 0)))
	assert.True(t, v.at(time.Unix(199, 0)))
	assert.False(t, v.at(time.Unix(200, 0)))
	assert.True(t, (&view{from: time.Unix(100, 0)}).at(time.Unix(1e9, 0)))
	assert.False(t, (*view)(nil).at(time.Unix(1, 0)))
}

func TestAPodIsRecreatedWithItsName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		first := r.pod("shop", "db-0", "db", sidecar)
		r.service("shop", "db", first)
		old := r.issue(first)
		require.Equal(t, 1, r.get("shop", "db").Summary.Fresh)

		r.gone("pods", toolscache.DeletedFinalStateUnknown{Key: "shop/db-0", Obj: first})
		assert.Zero(t, r.get("shop", "db").Summary.Total)
		page, err := r.Certificates(t.Context(), api.CertificateQuery{Visible: everything{}, Standing: api.Orphaned})
		require.NoError(t, err)
		require.Len(t, page.Items, 1)
		assert.Equal(t, old.SHA256, page.Items[0].SHA256)
		assert.Equal(t, api.Orphaned, page.Items[0].Standing)
		assert.Empty(t, r.digests(api.CertificateQuery{}, r.Certificates), "none is live")

		old = r.issue(first, func(c *api.Certificate) { c.IssuedAt = c.IssuedAt.Add(time.Second) }) // it was on its way
		assert.Empty(t, r.digests(api.CertificateQuery{}, r.Certificates), "the pod is still gone")

		second := r.pod("shop", "db-0", "db", sidecar)
		assert.Zero(t, r.get("shop", "db").Summary.Total, "the slice still names the first")
		r.gone("pods", first) // an event that comes late changes nothing
		r.slice("shop", "db", second)
		assert.Equal(t, 1, r.get("shop", "db").Summary.Total)
		assert.Empty(t, r.get("shop", "db").Pods[0].Certificates, "the first one's leaf isn't its own")
		fresh := r.issue(second)
		assert.Equal(t, fresh.SHA256, r.get("shop", "db").Pods[0].Certificates[0].SHA256)
		assert.Equal(t, []string{fresh.SHA256}, r.digests(api.CertificateQuery{}, r.Certificates))
		assert.Equal(t, []string{old.SHA256}, r.digests(api.CertificateQuery{Standing: api.Orphaned}, r.Certificates))

		// The informer may tell only of the new one.
		third := r.pod("shop", "db-0", "db", sidecar)
		assert.Len(t, r.digests(api.CertificateQuery{Standing: api.Orphaned}, r.Certificates), 2)
		r.slice("shop", "db", third)
		assert.Empty(t, r.get("shop", "db").Pods[0].Certificates)
	})
}

func TestAPodThatHasEndedIsGone(t *testing.T) {
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		r := newRig(t)
		p := r.pod("shop", "job-1", "job", sidecar)
		r.service("shop", "job", p)
		c := r.issue(p)
		p.Status.Phase = phase
		r.tell("pods", p)
		assert.Zero(t, r.get("shop", "job").Summary.Total)
		assert.Equal(t, []string{c.SHA256}, r.digests(api.CertificateQuery{Standing: api.Orphaned}, r.Certificates))
	}
}

// TestSlicesAreNotTrusted: a pod counts where it exists in the slice's namespace with the UID and an address that the
// slice gives, and once.
func TestSlicesAreNotTrusted(t *testing.T) {
	r := newRig(t)
	mine, foreign := r.pod("mine", "web", "web", sidecar), r.pod("other", "bank", "bank", sidecar)
	r.issue(mine)
	r.issue(foreign)
	good := sliceOf("mine", "web-abc", "web", mine).Endpoints[0]
	for name, c := range map[string]struct {
		change func(target *corev1.ObjectReference, addresses []string) []string
		counts int
	}{
		"as it is":           {func(_ *corev1.ObjectReference, a []string) []string { return a }, 1},
		"no namespace":       {func(o *corev1.ObjectReference, a []string) []string { o.Namespace = ""; return a }, 1},
		"one address of two": {func(_ *corev1.ObjectReference, a []string) []string { return append([]string{"192.0.2.9"}, a...) }, 1},
		"another address":    {func(*corev1.ObjectReference, []string) []string { return []string{"192.0.2.9"} }, 0},
		"no address":         {func(*corev1.ObjectReference, []string) []string { return nil }, 0},
		"another UID":        {func(o *corev1.ObjectReference, a []string) []string { o.UID = foreign.UID; return a }, 0},
		"no UID":             {func(o *corev1.ObjectReference, a []string) []string { o.UID = ""; return a }, 0},
		"another name":       {func(o *corev1.ObjectReference, a []string) []string { o.Name = "bank"; return a }, 0},
		"another kind":       {func(o *corev1.ObjectReference, a []string) []string { o.Kind = "Node"; return a }, 0},
		"another namespace":  {func(o *corev1.ObjectReference, a []string) []string { o.Namespace = "other"; return a }, 0},
		"a pod of another namespace": {func(o *corev1.ObjectReference, _ []string) []string {
			o.Namespace, o.Name, o.UID = "other", foreign.Name, foreign.UID
			return []string{foreign.Status.PodIP}
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := sliceOf("mine", "web-abc", "web", mine)
			endpoint := *good.DeepCopy()
			endpoint.Addresses = c.change(endpoint.TargetRef, endpoint.Addresses)
			s.Endpoints[0] = endpoint
			s.Endpoints = append(s.Endpoints, endpoint) // named twice
			for _, through := range []func(){
				func() { r.tell("endpointslices", s.DeepCopy()) },
				func() { r.seen("endpointslices", s.DeepCopy()) }, // by a cache without our transformation
			} {
				r.unseen("endpointslices", s)
				r.tell("services", metadata("mine", "web", nil))
				through()
				got := r.get("mine", "web")
				assert.Equal(t, c.counts, got.Summary.Total)
				assert.Len(t, got.Identities, c.counts)
				assert.Len(t, got.Pods, c.counts)
			}
		})
	}
	t.Run("no target", func(t *testing.T) {
		s := sliceOf("mine", "web-abc", "web", mine)
		s.Endpoints[0].TargetRef = nil
		r.tell("endpointslices", s)
		assert.Zero(t, r.get("mine", "web").Summary.Total)
	})
	t.Run("two slices", func(t *testing.T) {
		r.slice("mine", "web", mine)
		r.tell("endpointslices", sliceOf("mine", "web-v6", "web", mine))
		assert.Equal(t, 1, r.get("mine", "web").Summary.Total)
	})
}

// TestAPodGetsItsAddress: it counts from then on, whatever came first.
func TestAPodGetsItsAddress(t *testing.T) {
	r := newRig(t)
	p := podLike("shop", "a", "a", 1, sidecar)
	r.service("shop", "a", p)
	assert.Zero(t, r.get("shop", "a").Summary.Total)
	early := p.DeepCopy()
	early.Status.PodIP, early.Status.PodIPs = "", nil
	r.tell("pods", early)
	assert.Zero(t, r.get("shop", "a").Summary.Total)
	early.Status.PodIP = p.Status.PodIP // as an older API server says it
	r.tell("pods", early.DeepCopy())
	assert.Equal(t, 1, r.get("shop", "a").Summary.Total)
	early.Status.PodIP = "192.0.2.200"
	r.tell("pods", early.DeepCopy())
	assert.Zero(t, r.get("shop", "a").Summary.Total)
}

// TestUnknownHolders: certificates of which nobody says who holds them don't replace each other.
func TestUnknownHolders(t *testing.T) {
	r := newRig(t)
	r.tell("serviceaccounts", metadata("shop", "a", nil))
	nobody := func(c *api.Certificate) { c.Holder = api.Holder{} }
	p := podLike("shop", "a", "a", 1)
	r.issue(p, nobody)
	r.issue(p, nobody)
	assert.Len(t, r.digests(api.CertificateQuery{}, r.Certificates), 2)
	page, err := r.Certificates(t.Context(), api.CertificateQuery{Visible: everything{}})
	require.NoError(t, err)
	assert.Equal(t, api.Holder{}, page.Items[0].Holder)
}

// TestUnattributed: pods whose account has certificates that istiod asked for are neither said to hold one nor to miss one.
func TestUnattributed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.tell("serviceaccounts", metadata("shop", "a", nil))
		nobody := func(c *api.Certificate) { c.Holder = api.Holder{} }
		p, q := r.pod("shop", "p", "a", sidecar), r.pod("shop", "q", "a", sidecar)
		r.service("shop", "a", p, q, r.pod("shop", "z", "other", sidecar))
		time.Sleep(2 * time.Minute)
		require.Equal(t, api.Summary{Total: 3, Missing: 3}, r.get("shop", "a").Summary)

		r.issue(p, nobody)
		found := r.get("shop", "a")
		assert.Equal(t, api.Summary{Total: 3, Unattributed: 2, Missing: 1}, found.Summary, "it may be either's, but not another account's")
		assert.Equal(t, []api.Problem{{Code: api.ProblemMissing, Detail: "1 of 3 pods hold no certificate: z"}}, found.Problems)
		assert.True(t, found.Pods[0].Unattributed)
		assert.Empty(t, found.Pods[0].Problems)
		assert.Empty(t, found.Pods[0].Certificates)

		c := r.issue(q)
		found = r.get("shop", "a")
		assert.Equal(t, api.Summary{Total: 3, Fresh: 1, Unattributed: 1, Missing: 1, NotAfter: c.NotAfter, RemainingRatio: 1}, found.Summary, "a certificate of its own counts")
		assert.False(t, found.Pods[1].Unattributed)

		time.Sleep(40 * time.Minute)
		r.issue(p, nobody)
		r.look(time.Now())
		text := r.scrape()
		assert.Contains(t, text, `signet_identity_certificates{state="overdue"} 1`)
		assert.Contains(t, text, `signet_identity_certificates{state="fresh"} 0`, "those of nobody aren't counted")
		time.Sleep(20*time.Minute + time.Second)
		r.look(time.Now())
		leaves, _, _ := r.index.sizes()
		assert.Equal(t, 2, leaves, "the first of nobody's has ended, and is forgotten")
		assert.Equal(t, 1, r.get("shop", "a").Summary.Unattributed)
		time.Sleep(40*time.Minute + time.Second)
		assert.Equal(t, api.Summary{Total: 3, Expired: 1, Missing: 2, NotAfter: c.NotAfter}, r.get("shop", "a").Summary, "the last has ended")
		r.look(time.Now())
		assert.Equal(t, 2, r.get("shop", "a").Summary.Missing)
	})
}

func TestSlicesMoveAndGo(t *testing.T) {
	r := newRig(t)
	a, b := r.pod("shop", "a", "a", sidecar), r.pod("shop", "b", "b", sidecar)
	r.tell("endpointslices", sliceOf("shop", "s", "one", a)) // before its service
	r.service("shop", "two")
	_, err := r.Service(t.Context(), "shop", "one")
	assert.ErrorIs(t, err, api.ErrNotFound)
	r.tell("services", metadata("shop", "one", nil))
	assert.Equal(t, []string{identityOf("shop", "a")}, r.get("shop", "one").Identities)

	// The selector changes.
	r.tell("endpointslices", sliceOf("shop", "s", "one", b))
	assert.Equal(t, []string{identityOf("shop", "b")}, r.get("shop", "one").Identities)
	r.tell("endpointslices", sliceOf("shop", "s", "one", a, b))
	assert.Equal(t, []string{identityOf("shop", "a"), identityOf("shop", "b")}, r.get("shop", "one").Identities)
	// It is another service's.
	r.tell("endpointslices", sliceOf("shop", "s", "two", b))
	assert.Empty(t, r.get("shop", "one").Identities)
	assert.Equal(t, []string{identityOf("shop", "b")}, r.get("shop", "two").Identities)
	// It is none's.
	r.tell("endpointslices", sliceOf("shop", "s", "", b))
	assert.Empty(t, r.get("shop", "two").Identities)
	r.tell("endpointslices", sliceOf("shop", "s", "two", b))
	r.gone("endpointslices", sliceOf("shop", "s", "two"))
	assert.Empty(t, r.get("shop", "two").Identities)

	r.gone("services", metadata("shop", "two", nil))
	_, err = r.Service(t.Context(), "shop", "two")
	assert.ErrorIs(t, err, api.ErrNotFound)
	assert.Equal(t, []string{"shop/one"}, r.all(api.ServiceQuery{}))
}

func TestAmbient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		here, there := r.pod("shop", "cart-1", "cart", enrolled, on("node-a")), r.pod("shop", "cart-2", "cart", enrolled, on("node-b"))
		r.service("shop", "cart", here, there)
		time.Sleep(3 * time.Minute)
		assert.Equal(t, 2, r.get("shop", "cart").Summary.Missing)
		c := r.issue(here, byProxy)
		got := r.get("shop", "cart")
		assert.Equal(t, 1, got.Summary.Fresh)
		assert.Equal(t, 1, got.Summary.Missing, "the other node has none")
		assert.Equal(t, c.SHA256, got.Pods[0].Certificates[0].SHA256)
		assert.True(t, got.Pods[0].Certificates[0].Holder.Impersonated)
		assert.Empty(t, got.Pods[1].Certificates)

		// One beside them with a proxy of its own doesn't use it.
		own := r.pod("shop", "cart-own", "cart", sidecar, on("node-a"))
		r.service("shop", "own", own)
		assert.Empty(t, r.get("shop", "own").Pods[0].Certificates)
		r.gone("pods", own)

		// A second pod of the identity on the node has the same; the leaf is live until the last has gone.
		second := r.pod("shop", "cart-3", "cart", enrolled, on("node-a"))
		r.slice("shop", "cart", here, there, second)
		assert.Equal(t, 2, r.get("shop", "cart").Summary.Fresh)
		time.Sleep(time.Minute)
		r.gone("pods", here)
		assert.Equal(t, []string{c.SHA256}, r.digests(api.CertificateQuery{}, r.Certificates))
		r.gone("pods", second)
		assert.Empty(t, r.digests(api.CertificateQuery{}, r.Certificates))
		assert.Equal(t, []string{c.SHA256}, r.digests(api.CertificateQuery{Standing: api.Orphaned}, r.Certificates))

		// What ended before a pod began isn't its own.
		time.Sleep(2 * time.Hour)
		r.slice("shop", "cart", r.pod("shop", "cart-4", "cart", enrolled, on("node-a")))
		assert.Equal(t, api.Summary{Total: 1}, r.get("shop", "cart").Summary)
	})
}

func TestANamespaceBecomesAmbient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		p := r.pod("shop", "cart-1", "cart")
		out := r.pod("shop", "out", "cart", func(p *corev1.Pod) { p.Labels["istio.io/dataplane-mode"] = "none" })
		r.service("shop", "cart", p, out)
		time.Sleep(time.Hour)
		assert.Equal(t, api.Summary{Total: 2, NoMesh: 2}, r.get("shop", "cart").Summary)
		r.tell("namespaces", metadata("", "shop", map[string]string{"istio.io/dataplane-mode": "ambient"}))
		got := r.get("shop", "cart")
		assert.Equal(t, api.Summary{Total: 2, NoMesh: 1}, got.Summary, "pending is neither missing nor without a mesh")
		assert.Equal(t, api.AmbientPending, got.Pods[0].DataPlane)
		assert.Equal(t, api.NoMesh, got.Pods[1].DataPlane)
		r.tell("namespaces", metadata("", "shop", nil))
		assert.Equal(t, 2, r.get("shop", "cart").Summary.NoMesh)
		r.tell("namespaces", metadata("", "shop", map[string]string{"istio.io/dataplane-mode": "ambient"}))
		r.gone("namespaces", metadata("", "shop", nil))
		assert.Equal(t, 2, r.get("shop", "cart").Summary.NoMesh)

		// While there is no service, nothing of it is kept.
		r.gone("services", metadata("shop", "cart", nil))
		r.tell("namespaces", metadata("", "shop", map[string]string{"istio.io/dataplane-mode": "ambient"}))
		r.tell("services", metadata("shop", "cart", nil))
		assert.Equal(t, 1, r.get("shop", "cart").Summary.NoMesh)
	})
}

// TestWhatIsHeldIsTold: a pod that shows no sign of the mesh, but has a certificate, is counted by that.
func TestWhatIsHeldIsTold(t *testing.T) {
	r := newRig(t)
	p := r.pod("shop", "agent", "agent")
	r.service("shop", "agent", p)
	r.issue(p)
	got := r.get("shop", "agent")
	assert.Equal(t, api.NoMesh, got.Pods[0].DataPlane)
	assert.Equal(t, 1, got.Summary.Fresh)
	assert.Zero(t, got.Summary.NoMesh)
}

// TestGraceBeginsWithRunning: a pod that waits for its images isn't expected to hold anything.
func TestGraceBeginsWithRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		p := r.pod("shop", "slow", "slow", sidecar, func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending })
		r.service("shop", "slow", p)
		time.Sleep(time.Hour)
		assert.Empty(t, r.get("shop", "slow").Problems)
		p.Status.Phase = corev1.PodRunning
		r.tell("pods", p.DeepCopy())
		time.Sleep(time.Minute)
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: "2001:db8::1"}) // another update moves it neither way
		r.tell("pods", p.DeepCopy())
		time.Sleep(time.Minute - 1)
		assert.Empty(t, r.get("shop", "slow").Problems)
		time.Sleep(time.Nanosecond)
		assert.Equal(t, "missing-certificate", codes(r.get("shop", "slow").Problems))
	})
}

func TestSeveralChainsAndOddNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.pod("shop", "a", "shop", sidecar), r.pod("shop", "b", "shop", sidecar)
		r.service("shop", "shop", a, b)
		r.issue(a)
		r.issue(b)
		assert.Empty(t, r.get("shop", "shop").Problems)

		r.issue(b, func(c *api.Certificate) {
			c.IssuedAt = c.IssuedAt.Add(time.Second)
			c.Issuer = "Issuer.cert-manager.io/new"
		})
		assert.Equal(t, "several-chains", codes(r.get("shop", "shop").Problems))
		r.issue(b, func(c *api.Certificate) {
			c.IssuedAt = c.IssuedAt.Add(2 * time.Second)
			c.Root.SHA256 = digest("root", 1)
		})
		assert.Equal(t, "several-chains", codes(r.get("shop", "shop").Problems))
		time.Sleep(time.Hour + time.Second)
		assert.Equal(t, "expired", codes(r.get("shop", "shop").Problems), "what has expired is no chain in use")

		r.issue(a, func(c *api.Certificate) { c.SANs = append(c.SANs, "DNS:evil.example") })
		got := r.get("shop", "shop")
		assert.Equal(t, "expired unexpected-sans", codes(got.Problems))
		assert.Equal(t, "unexpected-sans", codes(got.Pods[0].Problems))
		assert.Equal(t, []string{"URI:" + identityOf("shop", "shop"), "DNS:evil.example"}, got.Pods[0].Certificates[0].SANs)
		r.issue(a, func(c *api.Certificate) {
			c.IssuedAt = c.IssuedAt.Add(time.Second)
			c.Identity, c.SANs = "spiffe://old.example/ns/shop/sa/shop", []string{"URI:spiffe://old.example/ns/shop/sa/shop"}
		})
		assert.Equal(t, "expired unexpected-sans", codes(r.get("shop", "shop").Problems), "of another trust domain")
		r.issue(a, func(c *api.Certificate) { c.IssuedAt = c.IssuedAt.Add(2 * time.Second); c.SANs = nil })
		assert.Equal(t, "expired unexpected-sans", codes(r.get("shop", "shop").Problems), "none at all")
	})
}

// TestTheLeastRatio: the smallest part of a life that is left may be another one's later, though no state changes.
func TestTheLeastRatio(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.pod("shop", "a", "a", sidecar), r.pod("shop", "b", "b", sidecar)
		r.service("shop", "shop", a, b)
		now := time.Now().UTC().Truncate(time.Second)
		lives := []validity{{now.Unix() - 3600, now.Unix() + 86400 - 3600}, {now.Unix(), now.Unix() + 7200}}
		for n, p := range []*corev1.Pod{a, b} {
			r.issue(p, func(c *api.Certificate) { c.NotBefore, c.NotAfter = unix(lives[n].notBefore), unix(lives[n].notAfter) })
		}
		for range 120 {
			want := min(lives[0].ratio(time.Now()), lives[1].ratio(time.Now()))
			require.InDelta(t, want, r.get("shop", "shop").Summary.RemainingRatio, 1e-6)
			time.Sleep(time.Minute)
		}
	})
}

func TestIssuedOutOfOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		p := r.pod("shop", "a", "a", sidecar)
		first := r.certificate(p)
		time.Sleep(time.Minute)
		second := r.certificate(p)
		r.Issued(second)
		r.Issued(second)
		r.Issued(first)
		assert.Equal(t, []string{second.SHA256}, r.digests(api.CertificateQuery{}, r.Certificates))
		leaves, _, _ := r.index.sizes()
		assert.Equal(t, 1, leaves)
		r.records.add(first, second)
		assert.Equal(t, []string{first.SHA256}, r.digests(api.CertificateQuery{Standing: api.Superseded}, r.Certificates))
		assert.Equal(t, []string{second.SHA256, first.SHA256}, r.digests(api.CertificateQuery{Standing: AnyStanding}, r.Certificates))
	})
}

// TestIssuedInOneSecond: of two certificates of a holder that were issued in the same second the one that is told later
// counts, whatever their digests are.
func TestIssuedInOneSecond(t *testing.T) {
	orders := make(map[int]bool) // of their digests
	for n := range 8 {
		r := newRig(t)
		r.serial = 2 * n
		p := r.pod("shop", "a", "a", sidecar)
		at := time.Now().UTC().Truncate(time.Second)
		first, second := r.certificate(p), r.certificate(p)
		orders[strings.Compare(first.SHA256, second.SHA256)] = true
		for _, c := range []*api.Certificate{&first, &second} {
			c.IssuedAt, c.NotBefore = at, at
			r.Issued(*c)
		}
		assert.Equal(t, []string{second.SHA256}, r.digests(api.CertificateQuery{}, r.Certificates))
		r.records.add(first, second)
		assert.Equal(t, []string{first.SHA256}, r.digests(api.CertificateQuery{Standing: api.Superseded}, r.Certificates))
	}
	assert.Len(t, orders, 2, "the digests come in both orders")
}

func TestBadRecordsAreLeftOut(t *testing.T) {
	for name, change := range map[string]func(*api.Certificate){
		"digest":   func(c *api.Certificate) { c.SHA256 = "xyz" },
		"key":      func(c *api.Certificate) { c.SPKISHA256 = "00" },
		"serial":   func(c *api.Certificate) { c.Serial = "12x4" },
		"validity": func(c *api.Certificate) { c.NotAfter = time.Time{} },
	} {
		r := newRig(t)
		r.issue(r.pod("shop", "a", "a", sidecar), change)
		assert.Empty(t, r.digests(api.CertificateQuery{}, r.Certificates), name)
		assert.Contains(t, r.scrape(), "signet_inventory_certificates_ignored_total 1", name)
	}
}

// TestStandingWhileNothingIsKnown: a leaf is live until it is known that its holder isn't there.
func TestStandingWhileNothingIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.watched.Store(nil)
		unseen := podLike("shop", "late", "late", 77, sidecar)
		c := r.certificate(unseen)
		elsewhere := r.certificate(podLike("far", "away", "away", 78), func(c *api.Certificate) { c.Holder.Cluster = "other" })
		node := r.certificate(podLike("shop", "z", "z", 79), byProxy)
		old := r.certificate(podLike("shop", "x", "x", 80), unbound)
		for _, one := range []api.Certificate{c, elsewhere, node, old} {
			r.Issued(one)
		}
		time.Sleep(10 * time.Minute)
		assert.Len(t, r.digests(api.CertificateQuery{}, r.Certificates), 4, "nothing is known yet")
		r.sync()
		assert.Equal(t, []string{elsewhere.SHA256}, r.digests(api.CertificateQuery{}, r.Certificates))
		assert.Len(t, r.digests(api.CertificateQuery{Standing: api.Orphaned}, r.Certificates), 3)

		// One that has just been issued is ahead of the informer.
		ahead := r.certificate(podLike("shop", "new", "new", 81, sidecar))
		r.Issued(ahead)
		assert.Contains(t, r.digests(api.CertificateQuery{}, r.Certificates), ahead.SHA256)
		time.Sleep(lag)
		assert.NotContains(t, r.digests(api.CertificateQuery{}, r.Certificates), ahead.SHA256)
	})
}

func TestAServiceAccountIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.tell("serviceaccounts", metadata("shop", "vm", nil))
		time.Sleep(time.Minute)
		p := r.pod("shop", "a", "vm", sidecar)
		ofPod, ofVM := r.issue(p), r.issue(p, unbound)
		assert.ElementsMatch(t, []string{ofPod.SHA256, ofVM.SHA256}, r.digests(api.CertificateQuery{}, r.Certificates))
		r.gone("serviceaccounts", metadata("shop", "vm", nil))
		assert.Equal(t, []string{ofPod.SHA256}, r.digests(api.CertificateQuery{}, r.Certificates), "the pod runs on")
		assert.Equal(t, []string{ofVM.SHA256}, r.digests(api.CertificateQuery{Standing: api.Orphaned}, r.Certificates))
		time.Sleep(time.Minute)
		r.tell("serviceaccounts", metadata("shop", "vm", nil))
		assert.Equal(t, []string{ofVM.SHA256}, r.digests(api.CertificateQuery{Standing: api.Orphaned}, r.Certificates), "made anew, it is another one")
	})
}

// TestNothingIsKeptForEver: when all that it was about has gone, and the leaves have expired, nothing is left.
func TestNothingIsKeptForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.tell("namespaces", metadata("", "shop", nil))
		r.tell("serviceaccounts", metadata("shop", "cart", nil))
		a, b := r.pod("shop", "a", "cart", sidecar), r.pod("shop", "b", "cart", enrolled)
		r.service("shop", "cart", a, b)
		r.issue(a)
		r.issue(b, byProxy)
		r.issue(a, unbound)
		r.issue(a, func(c *api.Certificate) { c.Holder = api.Holder{} })
		r.issue(podLike("far", "x", "x", 99), func(c *api.Certificate) { c.Holder.Cluster = "other" })
		time.Sleep(time.Hour + time.Second)
		r.look(time.Now())
		leaves, _, _ := r.index.sizes()
		assert.Equal(t, 2, leaves, "their pods exist, and didn't renew")
		assert.Empty(t, r.index.accounts[name{"shop", "cart"}].unheld)
		assert.Zero(t, r.index.accounts[name{"shop", "cart"}].machines.size)
		r.gone("pods", a)
		r.gone("pods", b)
		r.gone("endpointslices", sliceOf("shop", "cart-abc", "cart"))
		r.gone("services", metadata("shop", "cart", nil))
		r.gone("serviceaccounts", metadata("shop", "cart", nil))
		r.gone("namespaces", metadata("", "shop", nil))
		r.look(time.Now())
		x := r.index
		for name, n := range map[string]int{
			"namespaces": len(x.namespaces), "accounts": len(x.accounts), "pods": len(x.pods), "podsByUID": len(x.podsByUID), "placed": len(x.placed),
			"services": len(x.services), "in order": x.inOrder.size, "slices": len(x.slices), "naming": len(x.naming), "leaves": len(x.leaves),
			"latest": x.latest.size, "by end": x.byEnd.size,
		} {
			assert.Zero(t, n, name)
		}
	})
}

func TestTooManyLeaves(t *testing.T) {
	r := newRig(t)
	r.index.most = 3
	for n := range 5 {
		p := r.pod("shop", fmt.Sprint("p", n), "a", sidecar)
		r.service("shop", fmt.Sprint("p", n), p)
		require.Empty(t, r.get("shop", fmt.Sprint("p", n)).Pods[0].Certificates)
		defer func() {
			assert.Equal(t, min(1, n/2), r.get("shop", fmt.Sprint("p", n)).Summary.Fresh, "p%d", n)
		}()
		r.issue(p, func(c *api.Certificate) { c.NotAfter = c.NotAfter.Add(time.Duration(n) * time.Hour) })
		r.all(api.ServiceQuery{})
	}
	leaves, _, _ := r.index.sizes()
	assert.Equal(t, 3, leaves)
	assert.Contains(t, r.scrape(), "signet_inventory_certificates_dropped_total 2")
	list, err := r.Services(t.Context(), api.ServiceQuery{Visible: everything{}})
	require.NoError(t, err)
	assert.Contains(t, sourceOf(list.Coverage, "inventory").Reason, "too many")
	left := r.digests(api.CertificateQuery{}, r.Expiring)
	assert.NotContains(t, left, digest("certificate", 1))
	assert.Contains(t, left, digest("certificate", 5))
}

func TestStartLoadsAndTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		p := r.pod("shop", "a", "a", sidecar)
		r.service("shop", "a", p)
		old := r.certificate(p)
		var want []api.Certificate
		for n := range 1203 {
			want = append(want, r.certificate(podLike("many", fmt.Sprint(n), "m", 1000+n)))
		}
		r.records.add(old)
		r.records.add(want...)
		r.records.fail = errors.New("the disk is slow")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Start(ctx) }()
		synctest.Wait()
		source := sourceOf(r.coverageNow(), "inventory")
		assert.False(t, source.Up)
		assert.Contains(t, source.Reason, "the disk is slow")
		assert.False(t, sourceOf(r.coverageNow(), "records").Up)

		time.Sleep(time.Second) // what came before has been told
		r.records.mu.Lock()
		r.records.fail, r.records.coverage = nil, api.Coverage{Since: time.Unix(5, 0), Replicas: []string{"signet-0"}, Sources: []api.Source{{Name: "ledger", Up: true}}}
		r.records.mu.Unlock()
		time.Sleep(5 * time.Second)
		assert.True(t, sourceOf(r.coverageNow(), "inventory").Up)
		assert.True(t, sourceOf(r.coverageNow(), "ledger").Up)
		assert.Equal(t, []string{"signet-0"}, r.coverageNow().Replicas)
		leaves, _, _ := r.index.sizes()
		assert.Equal(t, 1204, leaves)
		assert.Equal(t, old.SHA256, r.get("shop", "a").Pods[0].Certificates[0].SHA256)

		time.Sleep(time.Second)
		for _, change := range []func(){
			func() { r.issue(p, func(c *api.Certificate) { c.IssuedAt = time.Now() }) },
			func() { r.pod("shop", "b", "b") },
			func() { r.service("shop", "b") },
			func() { r.gone("services", metadata("shop", "b", nil)) },
			func() { r.gone("pods", p) },
		} {
			changed := r.Changed()
			change()
			select {
			case <-changed:
			case <-time.After(tellApart + time.Millisecond):
				t.Error("a change wasn't told")
			}
		}
		time.Sleep(tellApart)
		changed, began := r.Changed(), time.Now()
		<-changed
		assert.LessOrEqual(t, time.Since(began), lookEvery, "time alone changes answers")
		cancel()
		require.NoError(t, <-ended)
	})
}

// TestNothingIsToldForNothing: events that change nothing of what is known don't wake anybody.
func TestNothingIsToldForNothing(t *testing.T) {
	r := newRig(t)
	p := r.pod("shop", "a", "a", sidecar)
	c := r.issue(p)
	r.service("shop", "a", p)
	<-r.dirty
	before := r.index.services[name{"shop", "a"}].view.Load()
	r.get("shop", "a")
	view := r.index.services[name{"shop", "a"}].view.Load()
	require.NotSame(t, before, view)
	p.Status.Message = "something else"
	r.tell("pods", p.DeepCopy())
	r.service("shop", "a", p)
	r.Issued(c)
	select {
	case <-r.dirty:
		t.Error("told")
	default:
	}
	r.get("shop", "a")
	assert.Same(t, view, r.index.services[name{"shop", "a"}].view.Load(), "the view stays")
}

func TestConfig(t *testing.T) {
	_, err := New(Config{}, &memory{}, TrustSources{}, nil, nil)
	assert.ErrorContains(t, err, "trust domain")
	for _, c := range []struct {
		cfg  Config
		says string
	}{
		{Config{}, ""},
		{Config{Grace: setting.DurationOf(time.Minute), IdentityMetric: IdentityMetricConfig{Max: 5}}, ""},
		{Config{Grace: setting.DurationOf(48 * time.Hour)}, "inventory.grace"},
		{Config{IdentityMetric: IdentityMetricConfig{Max: -1}}, "inventory.identityMetric.max"},
	} {
		p := setting.NewProblems()
		c.cfg.Validate(p.At("inventory"))
		if c.says == "" {
			assert.NoError(t, p.Err())
		} else {
			assert.ErrorContains(t, p.Err(), c.says)
		}
	}
}

func sourceOf(c api.Coverage, name string) api.Source {
	for _, s := range c.Sources {
		if s.Name == name {
			return s
		}
	}
	return api.Source{}
}
