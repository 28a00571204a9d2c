package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api/ledger"
)

// patience is how long a test waits for what must come.
const patience = 3 * time.Minute

// shortage is a directory in which there is no room from some time on, and then there is again.
type shortage struct {
	dir    string
	reason error  // of records, meanwhile
	begin  func() // none where the room is used up by records
	end    func()
}

// shortages are the ways to come by one: a limit of the size of files, which anybody can set, and a small filesystem,
// where the test may mount one.
func shortages(t *testing.T) map[string]func(t *testing.T) shortage {
	t.Helper()
	ways := map[string]func(t *testing.T) shortage{"limit": limited}
	dir := t.TempDir()
	switch err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); {
	case err == nil:
		require.NoError(t, syscall.Unmount(dir, 0))
		ways["disk"] = smallDisk
	case !errors.Is(err, fs.ErrPermission):
		require.NoError(t, err)
	}
	return ways
}

// limited is a directory like any other, but this process may write nothing to files meanwhile: that fails with EFBIG,
// since Go passes over the signal SIGXFSZ.
func limited(t *testing.T) shortage {
	t.Helper()
	limit := func(change func(*syscall.Rlimit)) {
		var is syscall.Rlimit
		require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &is))
		change(&is)
		require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &is))
	}
	end := func() { limit(func(is *syscall.Rlimit) { is.Cur = is.Max }) }
	t.Cleanup(end)
	return shortage{dir: t.TempDir(), reason: ledger.ErrWrite, begin: func() { limit(func(is *syscall.Rlimit) { is.Cur = 0 }) }, end: end}
}

// smallDisk is a filesystem of 24 MiB with a file on it, whose removal makes room.
func smallDisk(t *testing.T) shortage {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"))
	t.Cleanup(func() { assert.NoError(t, syscall.Unmount(dir, 0)) })
	ballast := filepath.Join(dir, "ballast")
	require.NoError(t, os.WriteFile(ballast, make([]byte, 18<<20), 0o600))
	return shortage{dir: dir, reason: ledger.ErrFull, begin: func() {}, end: func() { require.NoError(t, os.Remove(ballast)) }}
}

// fill records until f says that it is enough, and returns the names of those that are durable.
func fill(t *testing.T, r *replica, enough func(err error) bool) []string {
	t.Helper()
	var durable []string
	for n := range 200_000 {
		name := fmt.Sprint("filler ", n)
		i := issuance(name, time.Now())
		i.DER = make([]byte, 4000)
		err := r.Record(t.Context(), i)
		if err == nil {
			durable = append(durable, i.SHA256)
		}
		if enough(err) {
			return durable
		}
	}
	require.Fail(t, "the disk never filled")
	return nil
}

// TestFull: signing stops with a clear reason, what was acknowledged stays, and it goes on when there is room, without a
// restart.
func TestFull(t *testing.T) {
	for name, way := range shortages(t) {
		t.Run(name, func(t *testing.T) {
			short := way(t)
			r := start(t, ledger.Config{Dir: filepath.Join(short.dir, "ledger"), ReserveMiB: 6})
			before := issuance("before", time.Now())
			require.NoError(t, r.Record(t.Context(), before))
			short.begin()
			var full error
			durable := append(fill(t, r, func(err error) bool { full = err; return err != nil }), before.SHA256)
			require.ErrorIs(t, full, short.reason)
			_, err := r.Ready(time.Now())
			assert.ErrorContains(t, err, "so nothing is signed")
			assert.ErrorIs(t, err, short.reason)
			assert.EqualValues(t, 1, r.metric(t, "ledger_failing"))
			assert.NotZero(t, r.metric(t, "ledger_record_failures_total"))
			assert.False(t, mustCoverage(t, r.Local()).Sources[0].Up)
			for _, sha := range durable {
				_, err := r.Local().Certificate(t.Context(), sha)
				require.NoError(t, err)
			}

			short.end()
			// Nobody asks for a certificate while the replica isn't ready; it finds out by itself.
			require.Eventually(t, func() bool { _, err := r.Ready(time.Now()); return err == nil }, patience, 50*time.Millisecond)
			require.NoError(t, r.Record(t.Context(), issuance("after", time.Now())))
			assert.Empty(t, mustCoverage(t, r.Local()).Gaps, "nothing went out without a record")
		})
	}
}

// TestFullOpen: with failOpen certificates go out, and everything says so.
func TestFullOpen(t *testing.T) {
	for name, way := range shortages(t) {
		t.Run(name, func(t *testing.T) {
			short := way(t)
			r := start(t, ledger.Config{Dir: filepath.Join(short.dir, "ledger"), ReserveMiB: 6, FailOpen: true})
			short.begin()
			fill(t, r, func(err error) bool {
				require.NoError(t, err)
				return r.metric(t, "ledger_unrecorded_total") >= 10
			})
			text, err := r.Ready(time.Now())
			require.NoError(t, err)
			assert.Contains(t, text, "NOT RECORDING since")
			assert.Contains(t, text, "10 certificates were issued without a record")
			gaps := mustCoverage(t, r.Local()).Gaps
			require.Len(t, gaps, 1)
			assert.Equal(t, ledger.GapUnrecorded, gaps[0].Kind)
			assert.EqualValues(t, 10, gaps[0].Records)

			short.end()
			require.Eventually(t, func() bool {
				text, err := r.Ready(time.Now())
				return err == nil && strings.HasPrefix(text, "recording")
			}, patience, 50*time.Millisecond)
			require.NoError(t, r.end())
			r = start(t, ledger.Config{Dir: filepath.Join(short.dir, "ledger"), ReserveMiB: 6})
			gaps = slices.DeleteFunc(mustCoverage(t, r.Local()).Gaps, func(g ledger.Gap) bool { return g.Kind == ledger.GapAway }) // between the two
			require.Len(t, gaps, 1, "the gap outlives the process")
			assert.EqualValues(t, 10, gaps[0].Records)
		})
	}
}

// TestReserve: below the reserve, here one that no disk has, refusals take no room, however many and different they are;
// issuances do. That they are written once there is room is shown by the package's own test.
func TestReserve(t *testing.T) {
	r := start(t, ledger.Config{ReserveMiB: 1 << 40})
	text, err := r.Ready(time.Now())
	require.NoError(t, err)
	require.Contains(t, text, "below the reserve")
	for n := range 300_000 {
		r.Refused(ledger.Refusal{Reason: "token_rejected", Code: "Unauthenticated", Peer: fmt.Sprint(n), Identity: fmt.Sprint("spiffe://x/", n)})
	}
	require.Eventually(t, func() bool { return r.metric(t, "ledger_refusals_folded_total") == 300_000 }, patience, 50*time.Millisecond, "they have become one when they would have been written")
	answer, err := r.Local().Refusals(t.Context(), ledger.RefusalFilter{}, ledger.Page{})
	require.NoError(t, err)
	assert.Empty(t, answer.Counts, "they wait")
	require.NoError(t, r.Record(t.Context(), issuance("still", time.Now())))
}
