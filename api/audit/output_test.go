package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/signet-ca/signet/api/ledger"
)

// blockingPipe is one whose ends block, as those are that a shell, or a container's runtime, gives.
func blockingPipe(t *testing.T) (reader, writer *os.File) {
	t.Helper()
	var ends [2]int
	require.NoError(t, unix.Pipe(ends[:]))
	reader, writer = os.NewFile(uintptr(ends[0]), "reader"), os.NewFile(uintptr(ends[1]), "writer")
	t.Cleanup(func() { reader.Close(); writer.Close() })
	return reader, writer
}

// TestReaderThatDoesNotRead: it holds up nobody; when it goes on, it gets whole lines, and is told what it missed.
func TestReaderThatDoesNotRead(t *testing.T) {
	reader, writer := blockingPipe(t)
	r := newRig(t, Config{Output: "stdout"}, writer)
	r.queue.maxEvents = 500
	r.start(t)
	// More than the pipe holds, what is under way, and the queue together.
	const many = 5000
	for n := range many {
		r.Issued(issuance(n))
	}
	eventually(t, func() bool { return strings.Contains(r.ready(), "its reader does not read") }, "it is said")
	assert.Contains(t, r.log.String(), "the audit stream can't be written")

	read := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(reader)
		read <- string(text)
	}()
	eventually(t, func() bool {
		return !strings.Contains(r.ready(), "does not read") && strings.Contains(r.ready(), " 0 events wait")
	}, "all is written")
	r.Issued(issuance(many))
	r.stop()
	require.NoError(t, writer.Close())
	var issued, lost int
	last := ""
	for _, e := range parse(t, <-read) {
		if e.Type == TypeLost {
			lost += int(data[Lost](t, e).Count)
			continue
		}
		issued++
		assert.Greater(t, e.ID, last, "they are in their order")
		last = e.ID
	}
	assert.Positive(t, lost)
	assert.Equal(t, many+1, issued+lost)
	assert.Equal(t, issuance(many).SHA256, last)
	assert.Equal(t, lost, r.counted(t, kindIssued, "lost"))
	assert.Contains(t, r.log.String(), "the audit stream is written again")
}

// TestStopsBesideAReaderThatDoesNotRead: what is left is lost, and the log says so.
func TestStopsBesideAReaderThatDoesNotRead(t *testing.T) {
	_, writer := blockingPipe(t)
	r := newRig(t, Config{Output: "stdout"}, writer)
	r.drain = 10 * time.Millisecond
	for n := range 1000 {
		r.Issued(issuance(n))
	}
	r.start(t)
	eventually(t, func() bool { return strings.Contains(r.ready(), "its reader does not read") }, "the pipe is full")
	r.Issued(issuance(1000))
	r.stop()
	written, lost := r.counted(t, kindIssued, "written"), r.counted(t, kindIssued, "lost")
	assert.Equal(t, 1001, written+lost)
	assert.Positive(t, written)
	assert.Contains(t, r.log.String(), fmt.Sprintf(`"audit events lost at the end" count=%d`, lost))
}

// TestMain is also the program of TestBrokenStdout.
func TestMain(m *testing.M) {
	if os.Getenv("AUDIT_TO_BROKEN_STDOUT") != "" {
		toBrokenStdout()
		return
	}
	os.Exit(m.Run())
}

// toBrokenStdout tells a stream to standard output of events until that is broken, and ends as usual.
func toBrokenStdout() {
	s, err := New(Config{Output: "stdout"}, Origin{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		panic(err)
	}
	s.drain, s.retry = 10*time.Millisecond, time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error)
	go func() { ended <- s.Start(ctx) }()
	s.Issued(issuance(0))
	for n, text := 1, ""; !strings.Contains(text, "broken pipe"); n++ {
		s.Issued(issuance(n))
		time.Sleep(time.Millisecond)
		text, _ = s.Ready(time.Now())
	}
	cancel()
	fmt.Fprintln(os.Stderr, "ended:", <-ended)
}

// TestBrokenStdout: where the reader of standard output goes away, a Go program ends, if it doesn't see to it.
func TestBrokenStdout(t *testing.T) {
	command := exec.CommandContext(t.Context(), os.Args[0])
	command.Env = append(os.Environ(), "AUDIT_TO_BROKEN_STDOUT=1")
	var said strings.Builder
	command.Stderr = &said
	stdout, err := command.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, issuance(0).SHA256, parse(t, line)[0].ID)
	require.NoError(t, stdout.Close())
	require.NoError(t, command.Wait(), said.String())
	assert.Equal(t, "ended: <nil>\n", said.String())
}

// TestFullDisk: signing isn't told; people are; and when there is room again, what waited is written.
func TestFullDisk(t *testing.T) {
	const full = "/dev/full"
	if _, err := os.Stat(full); err != nil {
		t.Fatalf("this test needs %s: %v", full, err)
	}
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	require.NoError(t, os.Symlink(full, path))
	r := newRig(t, Config{Output: path}, nil)
	r.queue.maxEvents = 10
	r.start(t)
	r.Issued(issuance(0))
	eventually(t, func() bool { return strings.Contains(r.ready(), "no space left on device") }, "it is said")
	for n := range 30 {
		r.Issued(issuance(1 + n))
	}
	assert.Contains(t, r.ready(), "20 lost")
	assert.Contains(t, r.log.String(), "no space left on device")
	failures := func() (failing, failures float64) {
		families, err := r.registry.Gather()
		require.NoError(t, err)
		for _, family := range families {
			switch family.GetName() {
			case "audit_failing":
				failing = family.GetMetric()[0].GetGauge().GetValue()
			case "audit_write_failures_total":
				failures = family.GetMetric()[0].GetCounter().GetValue()
			}
		}
		return failing, failures
	}
	failing, count := failures()
	assert.EqualValues(t, 1, failing)
	assert.Positive(t, count)

	require.NoError(t, os.Remove(path)) // as if somebody had made room
	eventually(t, func() bool { return r.counted(t, kindLost, "written") == 1 }, "what waited is written")
	r.stop()
	events := eventsIn(t, path)
	require.Len(t, events, 12)
	for n, e := range events[:11] {
		assert.Equal(t, issuance(n).SHA256, e.ID)
	}
	assert.EqualValues(t, 20, data[Lost](t, events[11]).Count)
	failing, _ = failures()
	assert.Zero(t, failing)
}

// TestRotation: the file is renamed, deleted, or truncated by somebody else while lines are written. None is lost or
// broken but those that went with the file.
func TestRotation(t *testing.T) {
	r := newRig(t, Config{}, nil).start(t)
	told := 0
	tell := func() {
		for range 10 {
			r.Issued(issuance(told))
			told++
		}
		eventually(t, func() bool { return r.counted(t, kindIssued, "written") == told }, "they are written")
	}
	tell()
	require.NoError(t, os.Rename(r.path, r.path+".old"))
	tell()
	assert.Len(t, eventsIn(t, r.path+".old"), 10)
	assert.Len(t, r.events(t), 10)
	require.NoError(t, os.Remove(r.path))
	tell()
	events := r.events(t)
	require.Len(t, events, 10)
	assert.Equal(t, issuance(20).SHA256, events[0].ID)
	require.NoError(t, os.Truncate(r.path, 0))
	tell()
	assert.Len(t, r.events(t), 10)

	// As logrotate does: renamed, and made anew by another.
	require.NoError(t, os.Rename(r.path, r.path+".older"))
	require.NoError(t, os.WriteFile(r.path, nil, 0o640))
	tell()
	assert.Len(t, eventsIn(t, r.path+".older"), 10)
	assert.Len(t, r.events(t), 10)

	// The new file can't be made for a while.
	dir := filepath.Dir(r.path)
	require.NoError(t, os.Rename(dir, dir+".away"))
	r.Issued(issuance(told))
	eventually(t, func() bool { return strings.Contains(r.ready(), "no such file or directory") }, "it is said")
	require.NoError(t, os.Rename(dir+".away", dir))
	told++
	tell()
	assert.Len(t, r.events(t), 21)
}

// TestMaxFile: the file and the one before it are never larger than the bound; the newest lines are there.
func TestMaxFile(t *testing.T) {
	r := newRig(t, Config{}, nil)
	r.out.maxSize = 20_000
	r.start(t)
	const many = 100
	for n := range many {
		r.Issued(issuance(n))
		eventually(t, func() bool { return r.counted(t, kindIssued, "written") == n+1 }, "it is written")
	}
	r.stop()
	events := append(eventsIn(t, r.path+".1"), r.events(t)...)
	require.Greater(t, len(events), 10)
	for n, e := range events {
		assert.Equal(t, issuance(many-len(events)+n).SHA256, e.ID)
	}
	for _, path := range []string{r.path, r.path + ".1"} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		assert.LessOrEqual(t, info.Size(), int64(20_000))
	}
	left, err := os.ReadDir(filepath.Dir(r.path))
	require.NoError(t, err)
	assert.Len(t, left, 2)
}

// TestLineWithoutEnd: what a crash, or a full disk, left is ended before anything else is written.
func TestLineWithoutEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(`{"specversion":"1.`), 0o640))
	r := newRig(t, Config{Output: path}, nil).start(t)
	r.Issued(issuance(0))
	r.stop()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	broken, whole, _ := strings.Cut(string(text), "\n")
	assert.Equal(t, `{"specversion":"1.`, broken)
	assert.Len(t, parse(t, whole), 1)
}

// TestWriteEndsWithinALine: the rest follows where it ended, and in a new file the line begins anew.
func TestWriteEndsWithinALine(t *testing.T) {
	lines := []byte("one\ntwo\nthree\n")
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	o, err := openOutput(Config{Output: path}, nil)
	require.NoError(t, err)
	// As if it had written this much of it.
	_, err = o.file.Write(lines[:6])
	require.NoError(t, err)
	o.cut = 2
	n, err := o.write(lines[4:])
	require.NoError(t, err)
	assert.Equal(t, len(lines)-4, n)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(lines), string(text))

	o.cut = 2
	require.NoError(t, os.Rename(path, path+".old"))
	n, err = o.write(lines[4:])
	require.NoError(t, err)
	assert.Equal(t, len(lines)-4, n)
	text, err = os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "two\nthree\n", string(text))
	o.close()
}

// TestLargeLineThroughAPipe: one that is larger than the pipe arrives in pieces, and whole.
func TestLargeLineThroughAPipe(t *testing.T) {
	reader, writer := blockingPipe(t)
	r := newRig(t, Config{Output: "stdout"}, writer).start(t)
	large := issuance(0)
	for n := range maxSANs {
		large.SANs = append(large.SANs, fmt.Sprint(n, strings.Repeat("x", 100)))
	}
	for range 8 {
		r.Issued(large)
	}
	eventually(t, func() bool { return strings.Contains(r.ready(), "its reader does not read") }, "the pipe is full")
	decoder := json.NewDecoder(reader)
	for range 8 {
		var e Event[Issued]
		require.NoError(t, decoder.Decode(&e))
		assert.Equal(t, large.SANs[:maxSANs], e.Data.SANs)
	}
	r.stop()
	assert.Equal(t, 8, r.counted(t, kindIssued, "written"))
}

// TestPlainFileAsStdout: it has no reader that could be slow.
func TestPlainFileAsStdout(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	r := newRig(t, Config{Output: "stdout"}, file).start(t)
	assert.False(t, r.out.slow)
	r.Refused(ledger.Refusal{Reason: "token"})
	r.stop()
	assert.Len(t, eventsIn(t, file.Name()), 1)
	_, err = file.WriteString("still open")
	assert.NoError(t, err)
}

// TestStopAfterAnOutage: what was held up, what waited behind it and the counts of the last minute are all written by
// a stop that finds the disk well again.
func TestStopAfterAnOutage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	require.NoError(t, os.Symlink("/dev/full", path))
	r := newRig(t, Config{Output: path}, nil)
	r.queue.maxEvents, r.retry = 2, time.Hour // so that only the stop tries again
	r.start(t)
	r.Issued(issuance(0))
	eventually(t, func() bool { return strings.Contains(r.ready(), "no space left on device") }, "the first one is held up")
	for n := range 3 {
		r.Issued(issuance(1 + n))
	}
	r.Refused(ledger.Refusal{Reason: "token", Code: "Unauthenticated"})
	require.NoError(t, os.Remove(path))
	r.stop()
	var types []string
	for _, e := range eventsIn(t, path) {
		types = append(types, e.Type)
	}
	assert.Equal(t, []string{TypeIssued, TypeIssued, TypeIssued, TypeLost, TypeRefused}, types)
}
