package ledger

import (
	"bufio"
	"database/sql"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/test/process"
)

// kills is how often the victim is killed, each time within longest of its start, or of its first record.
const (
	kills   = 200
	longest = 150 * time.Millisecond
)

// TestKilled: a process that records is killed at random moments, at its start and in the middle of
// commits and checkpoints among them. Whatever it has acknowledged is in the store, which is never
// corrupt and starts again by itself.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	binary, store := filepath.Join(dir, "victim"), filepath.Join(dir, "store")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./victim")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	acknowledged := make(map[string]bool) // serial and SHA-256
	for n := range kills {
		for _, line := range killed(t, binary, store, fmt.Sprint("run ", n), n%2 == 0, time.Duration(random.Int64N(int64(longest)))) {
			acknowledged[line] = true
		}
		if n%50 == 49 {
			check(t, store, acknowledged)
		}
	}
	t.Logf("%d records were acknowledged", len(acknowledged))
	assert.GreaterOrEqual(t, len(acknowledged), kills/2, "it was killed too early each time")

	// The product itself starts with no hand, and says what it doesn't know.
	r := start(t, ledger.Config{Dir: store, Replica: "victim"})
	gaps := mustCoverage(t, r.Local()).Gaps
	require.NotEmpty(t, gaps)
	assert.Equal(t, ledger.GapCrash, gaps[0].Kind)
	require.NoError(t, r.Record(t.Context(), issuance("after", time.Now())))
}

// killed runs the victim, kills it after a while, where records is set one that begins with its first record, and returns
// what it has printed.
func killed(t *testing.T, binary, store, name string, records bool, after time.Duration) []string {
	t.Helper()
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	command := exec.CommandContext(t.Context(), binary, store, name)
	command.Stdout = write
	log := filepath.Join(filepath.Dir(store), "log")
	victim, err := process.Start(command, log)
	require.NoError(t, err)
	require.NoError(t, write.Close())
	lines, first := make(chan []string, 1), make(chan struct{})
	go func() {
		var all []string
		for scanner := bufio.NewScanner(read); scanner.Scan(); {
			if all = append(all, scanner.Text()); len(all) == 1 {
				close(first)
			}
		}
		lines <- all
	}()
	if records {
		select {
		case <-first:
		case <-victim.Done():
		case <-time.After(patience):
			victim.Kill()
			require.Fail(t, "nothing was recorded", "%s", process.Tail(log, 5))
		}
	}
	time.Sleep(after)
	require.False(t, victim.Ended(), "%s", process.Tail(log, 5))
	victim.Kill()
	return <-lines
}

// check looks with SQLite itself whether the store is whole and holds all that was acknowledged.
func check(t *testing.T, store string, acknowledged map[string]bool) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(store, "ledger.db"))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	var verdict string
	require.NoError(t, db.QueryRowContext(t.Context(), `PRAGMA integrity_check`).Scan(&verdict))
	require.Equal(t, "ok", verdict)
	rows, err := db.QueryContext(t.Context(), `SELECT serial, certificate_sha256 FROM issuance`)
	require.NoError(t, err)
	defer rows.Close()
	held := make(map[string]bool)
	for rows.Next() {
		var serial, sha []byte
		require.NoError(t, rows.Scan(&serial, &sha))
		held[hex.EncodeToString(serial)+" "+hex.EncodeToString(sha)] = true
	}
	require.NoError(t, rows.Err())
	for line := range acknowledged {
		if !held[line] {
			require.Fail(t, "an acknowledged record is missing", strings.Fields(line)[0])
		}
	}
	var names int
	require.NoError(t, db.QueryRowContext(t.Context(), `SELECT count(*) FROM issuance i WHERE NOT EXISTS (SELECT 1 FROM san s WHERE s.seq = i.seq)`).Scan(&names))
	require.Zero(t, names, "a record and its names are there together")
}
