package api

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestBusy: while certificates are signed, a place at work stays taken for a while after it was used, nine times as long as
// that but never for long; else it is free at once.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signing := true
		s := &Server{working: make(chan struct{}, 1)}
		s.SetBusy(func() bool { return signing })
		for _, row := range []struct {
			signing     bool
			used, rests time.Duration
		}{
			{true, 10 * time.Millisecond, 90 * time.Millisecond},
			{true, time.Second, maxRest},
			{false, time.Second, 0},
		} {
			signing = row.signing
			c := &call{server: s}
			require.NoError(t, c.work(t.Context()))
			time.Sleep(row.used)
			c.rest()
			c.rest() // once is enough
			if row.rests > 0 {
				time.Sleep(row.rests - time.Nanosecond)
				synctest.Wait()
				assert.Len(t, s.working, 1)
				time.Sleep(time.Nanosecond)
				synctest.Wait()
			}
			assert.Empty(t, s.working)
		}
	})
}
