package ca

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

func pod(namespace, uid string) *Caller {
	return &Caller{ID: alice, Namespace: namespace, PodUID: uid}
}

func TestAdmitBudgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(AdmissionConfig{PerCallerPerMinute: 3, PerNamespacePerMinute: 5})
		admit := func(c *Caller) error {
			release, err := a.admit(t.Context(), c, own(c))
			if err == nil {
				release()
			}
			return err
		}
		for range 3 {
			require.NoError(t, admit(pod("foo", "one")))
		}
		err := admit(pod("foo", "one"))
		requireKind(t, kindBudget, err)
		assert.ErrorContains(t, err, "asks for more than 3 certificates a minute (admission.perCallerPerMinute)")

		require.NoError(t, admit(pod("foo", "two")), "another caller has a budget of its own")
		require.NoError(t, admit(pod("foo", "two")))
		err = admit(pod("foo", "three"))
		requireKind(t, kindBudget, err)
		assert.ErrorContains(t, err, "namespace foo asks for more than 5 certificates a minute (admission.perNamespacePerMinute)")
		require.NoError(t, admit(pod("bar", "four")), "another namespace has a budget of its own")

		<-time.After(20 * time.Second) // a third of a caller's
		require.NoError(t, admit(pod("foo", "one")))
		requireKind(t, kindBudget, admit(pod("foo", "one")))

		<-time.After(budgetIdle + time.Minute)
		for range 3 {
			require.NoError(t, admit(pod("foo", "one")), "what was not used for long is full again")
		}
		a.queue.empty(t)
	})
}

// Who comes when the request's own time is up is still there; who has left is not.
func TestAdmitTooLate(t *testing.T) {
	a := newAdmission(AdmissionConfig{})
	for want, reason := range map[*kind]error{&kindTimeout: context.DeadlineExceeded, &kindCanceled: context.Canceled} {
		ctx, cancel := context.WithDeadline(t.Context(), time.Now())
		if errors.Is(reason, context.Canceled) {
			ctx, cancel = context.WithCancel(t.Context())
			cancel()
		}
		<-ctx.Done()
		_, err := a.admit(ctx, pod("foo", "one"), own(pod("foo", "one")))
		cancel()
		requireKind(t, *want, err)
		require.ErrorIs(t, err, reason)
	}
	a.queue.empty(t)
}

func TestAdmitWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(AdmissionConfig{InFlight: 1, InFlightPerCaller: 1, QueueTime: setting.DurationOf(2 * time.Second)})
		release, err := a.admit(t.Context(), pod("foo", "one"), own(pod("foo", "one")))
		require.NoError(t, err)

		began := time.Now()
		_, err = a.admit(t.Context(), pod("foo", "two"), own(pod("foo", "two")))
		requireKind(t, kindOverloaded, err)
		assert.Equal(t, 2*time.Second, time.Since(began), "it waits for its turn as long as it may")

		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = a.admit(short, pod("foo", "two"), own(pod("foo", "two")))
		requireKind(t, kindOverloaded, err)

		gone, leave := context.WithCancel(t.Context())
		leave()
		_, err = a.admit(gone, pod("foo", "two"), own(pod("foo", "two")))
		requireKind(t, kindCanceled, err)

		var group sync.WaitGroup
		group.Go(func() {
			release, err := a.admit(t.Context(), pod("foo", "two"), own(pod("foo", "two")))
			if assert.NoError(t, err) {
				release()
			}
		})
		synctest.Wait()
		release()
		group.Wait()
		a.queue.empty(t)
	})
}

// However many callers come, no more budgets are kept than allowed.
func TestAdmitBudgetsAreBounded(t *testing.T) {
	a := newAdmission(AdmissionConfig{})
	for i := range budgetEntries + 100 {
		assert.True(t, a.budget(fmt.Sprint(i), 1).Allow())
	}
	assert.LessOrEqual(t, len(a.budgets.Keys()), budgetEntries)
}

func TestAdmissionDefaults(t *testing.T) {
	c := AdmissionConfig{}.withDefaults()
	assert.Equal(t, []int{64, 16, 32, 10_000, 600, 3000, 30_000, 20_000},
		[]int{c.InFlight, c.InFlightPerCaller, c.InFlightPerNode, c.QueueLength, c.PerCallerPerMinute, c.PerNodePerMinute, c.PerNamespacePerMinute, c.Connections})
	assert.Equal(t, 10*time.Second, c.QueueTime.Or(0))
}

// forPod is what a node's proxy is granted for a pod beside it.
func forPod(namespace, account string) Grant {
	id := spiffeid.RequireFromSegments(alice.TrustDomain(), "ns", namespace, "sa", account)
	return Grant{ID: id, Namespace: namespace, ServiceAccount: account, Impersonated: true}
}

// TestAdmitNodeProxies: what a proxy asks for is charged to each identity and its namespace, and to the node.
func TestAdmitNodeProxies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(AdmissionConfig{PerCallerPerMinute: 2, PerNamespacePerMinute: 4, PerNodePerMinute: 7})
		first, second := pod("istio-system", "first"), pod("istio-system", "second")
		admit := func(proxy *Caller, grant Grant) error {
			release, err := a.admit(t.Context(), proxy, grant)
			if err == nil {
				release()
			}
			return err
		}
		for _, account := range []string{"web", "db"} {
			for range 2 {
				require.NoError(t, admit(first, forPod("shop", account)))
			}
		}
		err := admit(first, forPod("shop", "web"))
		requireKind(t, kindBudget, err)
		assert.ErrorContains(t, err, "perCallerPerMinute")
		err = admit(second, forPod("shop", "web"))
		requireKind(t, kindBudget, err)
		assert.ErrorContains(t, err, "namespace shop asks for more than 4 certificates a minute", "the namespace is that of the identity")

		for _, namespace := range []string{"a", "b", "c"} {
			require.NoError(t, admit(first, forPod(namespace, "web")))
		}
		err = admit(first, forPod("d", "web"))
		requireKind(t, kindBudget, err)
		assert.ErrorContains(t, err, "perNodePerMinute")
		require.NoError(t, admit(first, own(first)), "its own certificate isn't charged to the node")
		require.NoError(t, admit(second, forPod("d", "web")), "another node has a budget of its own")
		a.queue.empty(t)
		a.nodes.empty(t)
	})
}

// TestAdmitNodeInFlight: a node takes no more slots than its share, however many identities it asks for; what is over that
// waits, and others don't.
func TestAdmitNodeInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(AdmissionConfig{InFlight: 4, InFlightPerNode: 2})
		node := pod("istio-system", "node")
		var held []func()
		for n := range 2 {
			release, err := a.admit(t.Context(), node, forPod(fmt.Sprint("ns-", n), "web"))
			require.NoError(t, err)
			held = append(held, release)
		}
		var waiting sync.WaitGroup
		var passed atomic.Int32
		for n := range 5 {
			waiting.Go(func() {
				release, err := a.admit(t.Context(), node, forPod(fmt.Sprint("ns-", n), "db"))
				if assert.NoError(t, err) {
					passed.Add(1)
					release()
				}
			})
		}
		synctest.Wait()
		assert.Zero(t, passed.Load())
		other, err := a.admit(t.Context(), pod("istio-system", "other node"), forPod("ns-0", "web"))
		require.NoError(t, err)
		sidecar, err := a.admit(t.Context(), pod("foo", "one"), own(pod("foo", "one")))
		require.NoError(t, err)
		for _, release := range append(held, other, sidecar) {
			release()
		}
		waiting.Wait()
		assert.EqualValues(t, 5, passed.Load())

		// One that doesn't get a slot leaves its place in the node's share.
		a = newAdmission(AdmissionConfig{InFlight: 1, InFlightPerNode: 1, QueueTime: setting.DurationOf(time.Second)})
		full, err := a.admit(t.Context(), pod("foo", "one"), own(pod("foo", "one")))
		require.NoError(t, err)
		_, err = a.admit(t.Context(), node, forPod("shop", "web"))
		requireKind(t, kindOverloaded, err)
		full()
		a.queue.empty(t)
		a.nodes.empty(t)
	})
}

// TestAdmitNodeRestarts: with the defaults, all identities of a node with 250 pods pass at once.
func TestAdmitNodeRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(AdmissionConfig{})
		node := pod("istio-system", "node")
		var all sync.WaitGroup
		for n := range 250 {
			all.Go(func() {
				release, err := a.admit(t.Context(), node, forPod("shop", fmt.Sprint("service-", n)))
				if assert.NoError(t, err) {
					time.Sleep(300 * time.Millisecond) // at the issuer
					release()
				}
			})
		}
		all.Wait()
		a.queue.empty(t)
		a.nodes.empty(t)
	})
}
