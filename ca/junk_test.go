package ca

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
)

func TestJunk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJunk(prometheus.NewRegistry())
		began := time.Now()
		bad := kindTokenRejected.because("x")
		for range junkBurst {
			j.hold(t.Context(), bad)
		}
		for range 1000 {
			j.hold(t.Context(), kindReviewFailed.because("x"))
		}
		assert.Zero(t, time.Since(began), "a few, and what isn't the caller's fault, are refused at once")

		var held sync.WaitGroup
		for range junkHeld {
			held.Go(func() {
				j.hold(t.Context(), bad)
				assert.Equal(t, junkDelay, time.Since(began))
			})
		}
		synctest.Wait()
		assert.EqualValues(t, junkHeld, j.held.Load())
		j.hold(t.Context(), bad)
		assert.Zero(t, time.Since(began), "no more than that are held back")
		held.Wait()
		assert.Zero(t, j.held.Load())

		for range junkBurst {
			j.hold(t.Context(), bad)
		}
		assert.Equal(t, junkDelay, time.Since(began), "it is forgotten soon")
		j.hold(t.Context(), kindOverloaded.because("x"))
		assert.Equal(t, junkDelay+junkTurnedAway, time.Since(began))
		ctx, leave := context.WithCancel(t.Context())
		leave()
		j.hold(ctx, bad)
		assert.Equal(t, junkDelay+junkTurnedAway, time.Since(began), "who leaves isn't waited for")
	})
}
