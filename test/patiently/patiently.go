// Package patiently has tests wait for what must come. A wait ends as soon as it is there. How long that takes is no matter:
// the machine may be busy with other things, and the time only ever runs out when it never comes.
package patiently

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	// Timeout is how long a wait may take at most.
	Timeout = 4 * time.Minute
	// Glance is the pause between two looks.
	Glance = 25 * time.Millisecond
)

// ErrFinal is in the error of a look after which there is no use in further ones.
var ErrFinal = errors.New("that won't change any more")

// Until looks again and again, and returns when there is no error. With an error that is ErrFinal, or when the time is up, the
// test ends with what the last look has seen. Ctx ends with the time.
func Until(t testing.TB, what string, look func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
	defer cancel()
	var last error
	for {
		err := look(ctx)
		if err == nil {
			return
		}
		require.NotErrorIs(t, err, ErrFinal, what)
		if ctx.Err() == nil || last == nil {
			last = err // and not that the time was up
		}
		select {
		case <-ctx.Done():
			require.NoError(t, last, what)
		case <-time.After(Glance):
		}
	}
}

// Holds looks again and again, and returns when what is asked for holds. When the time is up the test ends, saying what it
// waited for.
func Holds(t testing.TB, ask func() bool, format string, args ...any) {
	t.Helper()
	for end := time.Now().Add(Timeout); !ask(); time.Sleep(Glance) {
		if time.Now().After(end) {
			require.FailNow(t, "it never came", fmt.Sprintf(format, args...))
		}
	}
}
