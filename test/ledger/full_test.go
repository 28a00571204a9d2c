package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api/ledger"
)

// smallDisk is a filesystem of 24 MiB with a file on it, whose removal makes room.
func smallDisk(t *testing.T) (dir, ballast string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		if errors.Is(err, syscall.EPERM) {
			t.Skip("mounting a small filesystem needs root; the package's own test shows a full store without it")
		}
		require.NoError(t, err)
	}
	t.Cleanup(func() { assert.NoError(t, syscall.Unmount(dir, 0)) })
	ballast = filepath.Join(dir, "ballast")
	require.NoError(t, os.WriteFile(ballast, make([]byte, 12<<20), 0o600))
	return dir, ballast
}

// fill records until f says that it is enough, and returns the names of those that are durable.
func fill(t *testing.T, r *replica, enough func(err error) bool) []string {
	t.Helper()
	var durable []string
	for n := 0; n < 200_000; n++ {
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

// TestDiskFull: signing stops with a clear reason, what was acknowledged stays, and it goes on when
// there is room, without a restart.
func TestDiskFull(t *testing.T) {
	dir, ballast := smallDisk(t)
	r := start(t, ledger.Config{Dir: filepath.Join(dir, "ledger"), ReserveMiB: 6})
	var full error
	durable := fill(t, r, func(err error) bool { full = err; return err != nil })
	require.ErrorIs(t, full, ledger.ErrFull)
	_, err := r.Ready(time.Now())
	assert.ErrorContains(t, err, "so nothing is signed")
	assert.ErrorIs(t, err, ledger.ErrFull)
	assert.EqualValues(t, 1, r.metric(t, "ledger_failing"))
	assert.NotZero(t, r.metric(t, "ledger_record_failures_total"))
	assert.False(t, mustCoverage(t, r.Local()).Sources[0].Up)
	for _, sha := range durable {
		_, err := r.Local().Certificate(t.Context(), sha)
		require.NoError(t, err)
	}

	require.NoError(t, os.Remove(ballast))
	// Nobody asks for a certificate while the replica isn't ready; it finds out by itself.
	require.Eventually(t, func() bool { _, err := r.Ready(time.Now()); return err == nil }, 20*time.Second, 50*time.Millisecond)
	require.NoError(t, r.Record(t.Context(), issuance("after", time.Now())))
	assert.Empty(t, mustCoverage(t, r.Local()).Gaps, "nothing went out without a record")
}

// TestDiskFullOpen: with failOpen certificates go out, and everything says so.
func TestDiskFullOpen(t *testing.T) {
	dir, ballast := smallDisk(t)
	r := start(t, ledger.Config{Dir: filepath.Join(dir, "ledger"), ReserveMiB: 6, FailOpen: true})
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

	require.NoError(t, os.Remove(ballast))
	require.Eventually(t, func() bool {
		text, err := r.Ready(time.Now())
		return err == nil && strings.HasPrefix(text, "recording")
	}, 20*time.Second, 50*time.Millisecond)
	require.NoError(t, r.end())
	r = start(t, ledger.Config{Dir: filepath.Join(dir, "ledger"), ReserveMiB: 6})
	gaps = mustCoverage(t, r.Local()).Gaps
	require.Len(t, gaps, 1, "the gap outlives the process")
	assert.EqualValues(t, 10, gaps[0].Records)
}

// TestReserve: below the reserve, refusals take no more room, however many and different they are;
// issuances do.
func TestReserve(t *testing.T) {
	dir, ballast := smallDisk(t)
	r := start(t, ledger.Config{Dir: filepath.Join(dir, "ledger"), ReserveMiB: 8})
	fill(t, r, func(err error) bool {
		require.NoError(t, err)
		var stat syscall.Statfs_t
		require.NoError(t, syscall.Statfs(dir, &stat))
		return stat.Bavail*uint64(stat.Bsize) < 7<<20
	})
	require.Eventually(t, func() bool {
		text, err := r.Ready(time.Now())
		return err == nil && strings.Contains(text, "below the reserve")
	}, 20*time.Second, 50*time.Millisecond)
	for n := range 300_000 {
		r.Refused(ledger.Refusal{Reason: "token_rejected", Code: "Unauthenticated", Peer: fmt.Sprint(n), Identity: fmt.Sprint("spiffe://x/", n)})
	}
	time.Sleep(6 * time.Second) // longer than from one writing to the next
	answer, err := r.Local().Refusals(t.Context(), ledger.RefusalFilter{}, ledger.Page{})
	require.NoError(t, err)
	assert.Empty(t, answer.Counts, "they wait")
	require.NoError(t, r.Record(t.Context(), issuance("still", time.Now())))

	require.NoError(t, os.Remove(ballast))
	require.Eventually(t, func() bool {
		answer, err = r.Local().Refusals(t.Context(), ledger.RefusalFilter{}, ledger.Page{})
		return err == nil && len(answer.Counts) != 0
	}, 20*time.Second, 50*time.Millisecond)
	require.Len(t, answer.Counts, 1, "they have become one")
	assert.True(t, answer.Counts[0].Others)
	assert.EqualValues(t, 300_000, answer.Counts[0].Count)
}
