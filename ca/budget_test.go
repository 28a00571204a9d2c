package ca

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// Many that waited for the rest of one budget don't all get it, and those that don't give their slots
// back.
func TestBudgetHoldsForThoseThatWaitedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(AdmissionConfig{InFlight: 1, PerCallerPerMinute: 2})
		caller := &Caller{ID: alice, Namespace: "foo", PodUID: "pod"}
		first, err := a.admit(t.Context(), caller, own(caller))
		require.NoError(t, err)
		var group sync.WaitGroup
		var admitted, refused atomic.Int64
		for range 8 {
			group.Go(func() {
				release, err := a.admit(t.Context(), caller, own(caller))
				if err != nil {
					assert.Equal(t, kindBudget, refuse(err).kind)
					assert.Equal(t, codes.ResourceExhausted, refuse(err).code)
					refused.Add(1)
					return
				}
				admitted.Add(1)
				release()
			})
		}
		synctest.Wait()
		first()
		group.Wait()
		assert.Equal(t, []int64{1, 7}, []int64{admitted.Load(), refused.Load()})
		a.queue.empty(t)
	})
}
