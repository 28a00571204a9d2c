package patiently

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// failing is a test that is let fail.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Errorf(format string, args ...any) { f.said += fmt.Sprintf(format, args...) }
func (f *failing) FailNow()                          { panic(f) }

// outcome is what a wait says with which a test ends, "" where it ends well, and how long it took.
func outcome(t *testing.T, wait func(t testing.TB)) (said string, took time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f, began := &failing{TB: t}, time.Now()
		defer func() {
			if cause := recover(); cause != nil && cause != any(f) {
				panic(cause)
			}
			said, took = f.said, time.Since(began)
		}()
		wait(f)
	})
	return said, took
}

func TestUntil(t *testing.T) {
	errNotYet := errors.New("not yet")
	for name, test := range map[string]struct {
		look  func(ctx context.Context, looks int) error
		says  string // "" where the test goes on
		looks int    // 0 for many
	}{
		"at once": {func(context.Context, int) error { return nil }, "", 1},
		"later": {func(_ context.Context, looks int) error {
			if looks < 3 {
				return errNotYet
			}
			return nil
		}, "", 3},
		"never": {func(context.Context, int) error { return errNotYet }, "not yet", 0},
		"final": {func(_ context.Context, looks int) error { return fmt.Errorf("%w: look %d", ErrFinal, looks) }, "look 1", 1},
		"hanging": {func(ctx context.Context, looks int) error {
			if looks == 1 {
				return errNotYet
			}
			<-ctx.Done()
			return ctx.Err()
		}, "not yet", 2},
	} {
		t.Run(name, func(t *testing.T) {
			looks := 0
			said, took := outcome(t, func(t testing.TB) {
				Until(t, "the parcel", func(ctx context.Context) error { looks++; return test.look(ctx, looks) })
			})
			if test.says == "" {
				assert.Empty(t, said)
			} else {
				assert.Contains(t, said, test.says)
				assert.Contains(t, said, "the parcel")
			}
			if test.looks > 0 {
				assert.Equal(t, test.looks, looks)
			}
			if name == "never" || name == "hanging" {
				assert.GreaterOrEqual(t, took, Timeout)
			} else {
				assert.Less(t, took, time.Second)
			}
		})
	}
}

func TestHolds(t *testing.T) {
	said, took := outcome(t, func(t testing.TB) {
		looks := 0
		Holds(t, func() bool { looks++; return looks == 3 }, "look %d", 3)
	})
	assert.Empty(t, said)
	assert.Equal(t, 2*Glance, took)

	said, took = outcome(t, func(t testing.TB) { Holds(t, func() bool { return false }, "parcel %d", 7) })
	assert.Contains(t, said, "parcel 7")
	assert.GreaterOrEqual(t, took, Timeout)
}
