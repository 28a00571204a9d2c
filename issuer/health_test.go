package issuer

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	healthA = Ref{Name: "a"}.WithDefaults()
	healthB = Ref{Name: "b"}.WithDefaults()
	errDown = errors.New("the CA is down")
)

// fail reports failures of these identities, one after the other, a second apart, and returns the moment after them.
func fail(h *Health, from time.Time, who ...string) time.Time {
	for _, one := range who {
		h.Failed(healthA, one, errDown, from)
		from = from.Add(time.Second)
	}
	return from
}

func times(n int, who string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = who
	}
	return all
}

func isOpen(h *Health, ref Ref, now time.Time) bool {
	open, _, _ := h.Open(ref, now)
	return open
}

func TestCircuitOpens(t *testing.T) {
	for _, row := range []struct {
		name string
		who  []string
		open bool
	}{
		{"nothing has failed", nil, false},
		{"one identity, however often", times(500, "x"), false},
		{"two identities, however often", append(times(200, "x"), times(200, "y")...), false},
		{"three identities, too few failures", []string{"x", "y", "z"}, false},
		{"four failures of four", []string{"w", "x", "y", "z"}, false},
		{"five failures of three", []string{"x", "y", "z", "x", "x"}, true},
		{"five failures of five", []string{"v", "w", "x", "y", "z"}, true},
		{"many of one, then two others", append(times(500, "x"), "y", "z"), true},
	} {
		h := NewHealth()
		now := fail(h, epoch, row.who...)
		if len(row.who) > 100 {
			// All at one moment, so that the memory of failures is no matter.
			h = NewHealth()
			for _, who := range row.who {
				h.Failed(healthA, who, errDown, now)
			}
		}
		open, retry, reason := h.Open(healthA, now)
		assert.Equal(t, row.open, open, row.name)
		assert.False(t, retry, row.name)
		assert.Equal(t, row.open, reason != "", row.name)
		assert.False(t, isOpen(h, healthB, now), "another issuer is none of it")
	}
}

func TestCircuitSaysWhy(t *testing.T) {
	h := NewHealth()
	now := fail(h, epoch, "x", "y", "z", "x", "y")
	_, _, reason := h.Open(healthA, now)
	assert.Equal(t, "its last 5 requests, of 3 identities, failed: the CA is down", reason)
}

// A failure counts for two minutes.
func TestCircuitForgets(t *testing.T) {
	h := NewHealth()
	fail(h, epoch, "x", "y")
	h.Failed(healthA, "z", errDown, epoch.Add(time.Minute))
	h.Failed(healthA, "z", errDown, epoch.Add(time.Minute))
	later := epoch.Add(failureMemory + time.Minute - 1)
	h.Failed(healthA, "z", errDown, later)
	assert.False(t, isOpen(h, healthA, later), "the failures of two identities are forgotten")

	h = NewHealth()
	fail(h, epoch, "x", "x", "y", "y")
	h.Failed(healthA, "z", errDown, epoch.Add(failureMemory-1))
	assert.True(t, isOpen(h, healthA, epoch.Add(failureMemory-1)), "to the last moment they aren't")

	h = NewHealth()
	fail(h, epoch, "x", "x", "y", "y")
	h.Failed(healthA, "z", errDown, epoch.Add(failureMemory))
	assert.False(t, isOpen(h, healthA, epoch.Add(failureMemory)))
}

// An open circuit can be tried again after a while, which each failure prolongs.
func TestCircuitCoolsDown(t *testing.T) {
	h := NewHealth()
	opened := fail(h, epoch, "x", "y", "z", "x", "y").Add(-time.Second)
	_, retry, _ := h.Open(healthA, opened.Add(coolDown-1))
	assert.False(t, retry)
	_, retry, _ = h.Open(healthA, opened.Add(coolDown))
	assert.True(t, retry)

	again := opened.Add(coolDown)
	h.Failed(healthA, "x", errDown, again)
	open, retry, _ := h.Open(healthA, again.Add(coolDown-1))
	assert.True(t, open)
	assert.False(t, retry)
	_, retry, _ = h.Open(healthA, again.Add(coolDown))
	assert.True(t, retry)

	// It stays open however long nothing is heard, and however long ago the failures were.
	for n := range 20 {
		now := again.Add(time.Duration(n+1) * time.Hour)
		h.Failed(healthA, "x", errDown, now)
		open, _, _ := h.Open(healthA, now.Add(coolDown))
		require.True(t, open)
	}
}

// An answer closes the circuit and clears what failed before, wherever it leads to.
func TestCircuitCloses(t *testing.T) {
	root := newRoot(t, "a", nil)
	h := NewHealth()
	now := fail(h, epoch, "x", "y", "z", "x", "y")
	h.LedTo(healthA, root)
	open, retry, reason := h.Open(healthA, now.Add(time.Hour))
	assert.False(t, open)
	assert.False(t, retry)
	assert.Empty(t, reason)
	now = fail(h, now, "x", "y", "z", "x")
	assert.False(t, isOpen(h, healthA, now), "it is counted from the beginning")
	h.LedTo(healthA, root)
	now = fail(h, now, "x", "y", "z", "x")
	assert.False(t, isOpen(h, healthA, now), "an answer between failures counts too")
	fail(h, now, "y")
	assert.True(t, isOpen(h, healthA, now))
}

func TestHealthLeadsTo(t *testing.T) {
	h := NewHealth()
	a, b := newRoot(t, "a", nil), newRoot(t, "b", nil)
	assert.Nil(t, h.LeadsTo(healthA))
	h.Failed(healthA, "x", errDown, epoch)
	assert.Nil(t, h.LeadsTo(healthA))
	h.LedTo(healthA, a)
	assert.Same(t, a, h.LeadsTo(healthA))
	assert.Nil(t, h.LeadsTo(healthB))
	h.LedTo(healthA, b)
	assert.Same(t, b, h.LeadsTo(healthA))
	fail(h, epoch, "x", "y", "z", "x", "y")
	assert.Same(t, b, h.LeadsTo(healthA), "failures don't change where it leads to")
}

// Others are told of what changes, and of nothing else: each success would wake everybody otherwise.
func TestHealthTells(t *testing.T) {
	h := NewHealth()
	a, same, b := newRoot(t, "a", nil), newRoot(t, "same", nil), newRoot(t, "b", nil)
	copied := *same
	told := func(what func()) bool {
		changed := h.Changed()
		what()
		return closed(changed)
	}
	assert.True(t, told(func() { h.LedTo(healthA, a) }), "the first anchor")
	assert.False(t, told(func() { h.LedTo(healthA, a) }), "the same anchor")
	assert.True(t, told(func() { h.LedTo(healthA, same) }), "another anchor")
	assert.False(t, told(func() { h.LedTo(healthA, &copied) }), "the same certificate, read again")
	for n := range openAfter - 1 {
		assert.False(t, told(func() { h.Failed(healthA, fmt.Sprint(n), errDown, epoch) }), "failure %d", n)
	}
	assert.True(t, told(func() { h.Failed(healthA, "last", errDown, epoch) }), "the circuit opens")
	assert.False(t, told(func() { h.Failed(healthA, "more", errDown, epoch) }), "it is open already")
	assert.True(t, told(func() { h.LedTo(healthA, same) }), "it closes")
	assert.True(t, told(func() { h.LedTo(healthB, b) }), "another issuer")
	assert.False(t, told(func() { h.Open(healthA, epoch); h.LeadsTo(healthA) }), "asking changes nothing")
}

// What is kept of failures is bounded, however many there are in two minutes.
func TestCircuitKeepsFewFailures(t *testing.T) {
	h := NewHealth()
	for n := range 10_000 {
		h.Failed(healthA, fmt.Sprint(n), errDown, epoch)
	}
	assert.LessOrEqual(t, len(h.issuers[healthA].failures), 200)
}
