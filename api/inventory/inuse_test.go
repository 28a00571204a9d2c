package inventory

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-ca/signet/api"
)

// states checks how many leaves the metrics tell of, by state, and that the namespace's number of overdue ones agrees.
func (r *rig) states(fresh, due, overdue, expired int) {
	r.t.Helper()
	text := r.scrape()
	for state, want := range map[api.State]int{api.Fresh: fresh, api.Due: due, api.Overdue: overdue, api.Expired: expired} {
		assert.Contains(r.t, text, fmt.Sprintf("signet_identity_certificates{state=%q} %d\n", state, want))
	}
	if late := overdue + expired; late > 0 {
		assert.Contains(r.t, text, fmt.Sprintf("signet_identity_certificates_overdue{namespace=\"shop\"} %d\n", late))
	} else {
		assert.NotContains(r.t, text, "signet_identity_certificates_overdue{")
	}
}

// stands checks that a certificate is found under one standing alone, and says it.
func (r *rig) stands(c api.Certificate, want api.Standing) {
	r.t.Helper()
	for _, standing := range []api.Standing{api.Live, api.Superseded, api.Orphaned, api.Ended} {
		found := r.digests(api.CertificateQuery{Standing: standing}, r.Certificates)
		if standing == want {
			assert.Contains(r.t, found, c.SHA256, standing)
		} else {
			assert.NotContains(r.t, found, c.SHA256, standing)
		}
	}
	one, err := r.Certificate(r.t.Context(), c.SHA256)
	require.NoError(r.t, err)
	assert.Equal(r.t, want, one.Standing)
}

// TestAMachinesAddressChanges: what was issued to the former address isn't waited for.
func TestAMachinesAddressChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.tell("serviceaccounts", metadata("shop", "vm", nil))
		vm := podLike("shop", "vm", "vm", 1) // there is none; it has the account
		first := r.issue(vm, from("192.0.2.7"))
		time.Sleep(31 * time.Minute)
		second := r.issue(vm, from("192.0.2.8"))
		r.states(1, 1, 0, 0)
		r.stands(first, api.Live)
		time.Sleep(3 * time.Minute)
		r.states(1, 0, 0, 0)
		r.stands(first, api.Superseded)
		r.stands(second, api.Live)
		assert.Equal(t, []string{second.SHA256}, r.digests(api.CertificateQuery{}, r.Expiring))
		assert.Contains(t, r.scrape(), fmt.Sprintf(`service_account="vm"} %v`, float64(second.NotAfter.Unix())))
		id, err := r.Identity(t.Context(), first.Identity)
		require.NoError(t, err)
		require.Len(t, id.Live, 1)
		assert.Equal(t, second.SHA256, id.Live[0].SHA256)

		time.Sleep(26*time.Minute + time.Second)
		r.states(1, 0, 0, 0)
		r.look(time.Now())
		leaves, _, _ := r.index.sizes()
		assert.Equal(t, 1, leaves, "the former address has none any more")
		r.stands(first, api.Ended)

		// The last one counts where it isn't renewed; after its end nobody knows whether the machine is there.
		time.Sleep(10 * time.Minute)
		r.states(0, 0, 1, 0)
		r.stands(second, api.Live)
		time.Sleep(21 * time.Minute)
		r.states(0, 0, 0, 0)
		r.stands(second, api.Ended)
		assert.Empty(t, r.digests(api.CertificateQuery{State: api.Expired}, r.Certificates))
		r.look(time.Now())
		leaves, _, _ = r.index.sizes()
		assert.Zero(t, leaves)
	})
}

// TestOneMachineOfSeveral: only a later leaf that is good and was issued to an address too stands for one that is overdue.
func TestOneMachineOfSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.tell("serviceaccounts", metadata("shop", "vm", nil))
		r.tell("serviceaccounts", metadata("shop", "other", nil))
		vm, other := podLike("shop", "vm", "vm", 1), podLike("shop", "other", "other", 2)
		hours := func(n int) func(*api.Certificate) {
			return func(c *api.Certificate) { c.NotAfter = c.NotBefore.Add(time.Duration(n) * time.Hour) }
		}
		long := r.issue(vm, from("192.0.2.7"), hours(10))
		twin := r.issue(vm, from("192.0.2.9"), hours(10)) // in the same second
		time.Sleep(5 * time.Hour)
		r.issue(vm, from("192.0.2.8"))
		r.issue(other, from("192.0.2.7"), hours(10))
		r.issue(r.pod("shop", "pod", "vm", sidecar), hours(10))
		time.Sleep(40 * time.Minute) // that of an hour is overdue itself
		r.states(2, 0, 1, 0)
		r.stands(long, api.Superseded)
		r.stands(twin, api.Superseded)
		time.Sleep(21 * time.Minute)
		for range 2 { // that of an hour is still remembered, and then forgotten
			r.states(2, 0, 2, 0)
			r.stands(long, api.Live)
			r.stands(twin, api.Live)
			r.look(time.Now())
		}
		r.gone("serviceaccounts", metadata("shop", "vm", nil))
		r.states(2, 0, 0, 0)
		r.stands(long, api.Orphaned)
	})
}

// TestPodsLeaveAmbient: a node's proxy doesn't renew for pods that it captures no more, though they run on.
func TestPodsLeaveAmbient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		p, q := r.pod("shop", "p", "cart"), r.pod("shop", "q", "cart")
		r.service("shop", "cart", p, q)
		says := func(p *corev1.Pod, what string) {
			p.Annotations = map[string]string{"any": "thing"}
			if what != "" {
				p.Annotations[redirection] = what
			}
			r.tell("pods", p.DeepCopy())
		}
		// The proxy may have asked before the pod is seen to be captured.
		c := r.issue(p, byProxy)
		r.stands(c, api.Live)
		r.states(1, 0, 0, 0)
		time.Sleep(lag)
		r.stands(c, api.Orphaned)
		r.states(0, 0, 0, 0)
		says(p, "enabled")
		says(q, "enabled")
		r.stands(c, api.Live)
		r.states(1, 0, 0, 0)
		assert.Equal(t, 2, r.get("shop", "cart").Summary.Fresh)

		says(p, "")
		r.stands(c, api.Live) // for the other one
		says(q, "pending")
		r.stands(c, api.Orphaned)
		assert.Zero(t, r.get("shop", "cart").Summary.Fresh)
		says(q, "enabled")
		r.stands(c, api.Live)

		time.Sleep(35 * time.Minute)
		r.states(0, 0, 1, 0)
		says(q, "")
		r.states(0, 0, 0, 0)
		r.stands(c, api.Orphaned)
		says(q, "enabled")
		r.states(0, 0, 1, 0)
		time.Sleep(25 * time.Minute)
		r.look(time.Now())
		r.states(0, 0, 0, 1)
		says(q, "")
		r.states(0, 0, 0, 0)
		assert.Empty(t, r.get("shop", "cart").Problems)
		r.look(time.Now())
		leaves, _, _ := r.index.sizes()
		assert.Zero(t, leaves)

		says(q, "enabled") // it is a pod of the mesh again, and has nothing yet
		assert.Equal(t, api.Summary{Total: 2, NoMesh: 1, Missing: 1}, r.get("shop", "cart").Summary)
		r.issue(q, byProxy)
		r.states(1, 0, 0, 0)
		assert.Equal(t, 1, r.get("shop", "cart").Summary.Fresh)
	})
}

// TestANodesProxyItself: it asks for its own identity as it does for the pods beside it, and captures itself by no means.
func TestANodesProxyItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		p := r.pod("shop", "ztunnel-x", "ztunnel", sidecar)
		r.service("shop", "ztunnel", p)
		self := func(c *api.Certificate) { byProxy(c); c.Holder.Pod, c.Holder.PodUID = p.Name, string(p.UID) }
		c := r.issue(p, self)
		time.Sleep(3 * time.Minute)
		r.stands(c, api.Live)
		r.states(1, 0, 0, 0)
		assert.Equal(t, 1, r.get("shop", "ztunnel").Summary.Fresh)
		time.Sleep(time.Hour)
		r.states(0, 0, 0, 1)
		r.gone("pods", p)
		r.pod("shop", "ztunnel-y", "ztunnel", sidecar)
		r.states(0, 0, 0, 0)
	})
}

// TestOtherClustersArentCounted: nobody knows which of their pods are still there.
func TestOtherClustersArentCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.tell("serviceaccounts", metadata("shop", "cart", nil))
		west := func(c *api.Certificate) { c.Holder.Cluster = "west" }
		p := podLike("shop", "p", "cart", 1)
		all := []api.Certificate{r.issue(p, west), r.issue(p, byProxy, west), r.issue(p, unbound, west)}
		for range 2 {
			for _, c := range all {
				r.stands(c, api.Live)
			}
			r.states(0, 0, 0, 0)
			assert.NotContains(t, r.scrape(), "signet_identity_certificate_not_after_timestamp_seconds{")
			time.Sleep(40 * time.Minute)
		}
		r.states(0, 0, 0, 0)
		for _, c := range all {
			r.stands(c, api.Ended)
		}
		r.look(time.Now())
		leaves, _, _ := r.index.sizes()
		assert.Zero(t, leaves)
	})
}

// TestMachinesOfOtherClusters: one there tells nothing of one here that has the same account by name, nor the other way round.
func TestMachinesOfOtherClusters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.tell("serviceaccounts", metadata("shop", "vm", nil))
		vm := podLike("shop", "vm", "vm", 1)
		west := func(c *api.Certificate) { c.Holder.Cluster = "west" }
		early := r.issue(vm, from("192.0.2.6"), west)
		time.Sleep(time.Minute)
		here := r.issue(vm, from("192.0.2.7"))
		time.Sleep(time.Minute)
		late := r.issue(vm, from("192.0.2.8"), west)
		time.Sleep(35 * time.Minute)
		r.states(0, 0, 1, 0)
		for _, c := range []api.Certificate{early, here, late} {
			r.stands(c, api.Live)
		}
		time.Sleep(time.Hour)
		r.look(time.Now())
		leaves, _, _ := r.index.sizes()
		assert.Zero(t, leaves)
	})
}

// TestWhatHasExpiredInUse: the list has what the metric counts.
func TestWhatHasExpiredInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		here, gone := r.pod("shop", "here", "cart", sidecar), r.pod("shop", "gone", "cart", sidecar)
		r.issue(here) // superseded
		time.Sleep(time.Minute)
		c := r.issue(here)
		r.issue(gone)
		r.issue(here, func(c *api.Certificate) { c.Holder = api.Holder{} })
		time.Sleep(time.Hour + time.Second)
		fresh := r.issue(r.pod("shop", "new", "cart", sidecar))
		r.gone("pods", gone)
		r.states(1, 0, 0, 1)
		for name, q := range map[string]api.CertificateQuery{"all": {}, "namespace": {Namespace: "shop"}, "identity": {Identity: c.Identity}} {
			assert.Equal(t, []string{fresh.SHA256}, r.digests(q, r.Certificates), name)
			q.State = api.Expired
			assert.Equal(t, []string{c.SHA256}, r.digests(q, r.Certificates), name)
			assert.Equal(t, []string{c.SHA256}, r.digests(q, r.Expiring), name)
		}
		page, err := r.Certificates(t.Context(), api.CertificateQuery{Visible: everything{}, State: api.Expired})
		require.NoError(t, err)
		require.Len(t, page.Items, 1)
		assert.Equal(t, api.Ended, page.Items[0].Standing)
		assert.Empty(t, r.digests(api.CertificateQuery{State: api.Expired, Standing: api.Orphaned}, r.Certificates))
		r.stands(c, api.Ended)
	})
}
