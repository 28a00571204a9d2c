package ca

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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
	assert.Equal(t, []int{64, 16, 10_000, 600, 30_000, 20_000},
		[]int{c.InFlight, c.InFlightPerCaller, c.QueueLength, c.PerCallerPerMinute, c.PerNamespacePerMinute, c.Connections})
	assert.Equal(t, 10*time.Second, c.QueueTime.Or(0))
}
