package issuer

import (
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
)

// closed says whether a channel is.
func closed(changed <-chan struct{}) bool {
	select {
	case <-changed:
		return true
	default:
		return false
	}
}

func TestNotice(t *testing.T) {
	var n Notice
	n.Tell() // nobody waits
	first := n.Changed()
	assert.False(t, closed(first), "what was told before isn't told again")
	assert.Equal(t, first, n.Changed(), "all who wait share a channel")
	n.Tell()
	assert.True(t, closed(first))
	second := n.Changed()
	assert.False(t, closed(second))
	n.Tell()
	n.Tell()
	assert.True(t, closed(second))
	assert.True(t, closed(first))
}

// Whoever takes the channel before looking misses nothing, however often it is told.
func TestNoticeIsNeverMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Notice
		var mu sync.Mutex
		value := 0
		const last = 1000
		var waiting sync.WaitGroup
		for range 8 {
			waiting.Go(func() {
				for {
					changed := n.Changed()
					mu.Lock()
					seen := value
					mu.Unlock()
					if seen == last {
						return
					}
					<-changed // in a bubble, waiting for ever is a failure
				}
			})
		}
		for range last {
			mu.Lock()
			value++
			mu.Unlock()
			n.Tell()
		}
		waiting.Wait()
	})
}
