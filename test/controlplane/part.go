package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/signet-ca/signet/test/process"
)

const (
	startTimeout = 4 * time.Minute  // until a part is ready
	probeTimeout = 5 * time.Second  // for one look whether it is
	stopTimeout  = 15 * time.Second // until a part that should stop is killed
)

// A Part is one process of a [Plane]. It keeps its port, its state and its log over all its lives.
// Its methods are safe for concurrent use.
type Part struct {
	name   string
	binary string
	args   []string
	log    string                      // path
	ready  func(context.Context) error // looks once

	// mu guards the following, and is held while the part starts and stops.
	mu     sync.Mutex
	proc   *process.Process // nil when stopped
	stdin  *os.File         // our end of its standard input
	paused bool
}

func newPart(name, binary string, args []string, log string, ready func(context.Context) error) *Part {
	return &Part{name: name, binary: binary, args: append([]string{"--exit-on-eof"}, args...), log: log, ready: ready}
}

// Name returns "etcd", "apiserver", "cert-manager" or "approver-policy".
func (part *Part) Name() string { return part.name }

// Log returns the path of the file that has everything the part has said since the plane started.
func (part *Part) Log() string { return part.log }

// PID returns the process ID, or 0 when the part does not run.
func (part *Part) PID() int {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.proc == nil || part.proc.Ended() {
		return 0
	}
	return part.proc.PID()
}

// Start starts the part, on the port it always had, and returns when it is ready. It does nothing
// when the part runs already. Ctx bounds the start only; without a deadline of its own it is given
// four minutes. A part that does not become ready is killed, and the error has the end of its log.
func (part *Part) Start(ctx context.Context) error {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.proc != nil {
		if !part.proc.Ended() {
			return nil
		}
		part.end()
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()

	var err error
	if part.proc, part.stdin, err = launch(part.binary, part.args, part.log); err != nil {
		return fmt.Errorf("start %s: %w", part.name, err)
	}
	if err := part.awaitReady(ctx); err != nil {
		part.end()
		return fmt.Errorf("start %s: %w; the end of its log:\n%s", part.name, err, part.LogTail(20))
	}
	return nil
}

// awaitReady looks until the part is ready, has ended, or ctx ends.
func (part *Part) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		probeCtx, cancel := context.WithTimeout(ctx, probeTimeout)
		err := part.ready(probeCtx)
		cancel()
		// Whoever answers on the port may be another process, if ours could not have it.
		if part.proc.Ended() {
			return fmt.Errorf("ended before it was ready: %w", part.proc.Exit())
		}
		if err == nil {
			return nil
		}
		select {
		case <-part.proc.Done():
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w: %w", ctx.Err(), err)
		}
	}
}

// Stop asks the part to stop, resuming it first if it is paused, waits for its process to end, and
// kills it after 15 seconds. It does nothing when the part is stopped already. A part that had
// ended by itself is stopped afterwards too, and the error has its exit status and the end of its
// log.
func (part *Part) Stop() error {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.proc == nil {
		return nil
	}
	defer part.end()
	if part.proc.Ended() {
		return fmt.Errorf("stop %s: had ended by itself: %w; the end of its log:\n%s", part.name, part.proc.Exit(), part.LogTail(20))
	}
	if part.paused {
		_ = part.proc.Signal(syscall.SIGCONT) // if it cannot be resumed it will be killed
	}
	part.proc.Stop(stopTimeout)
	return nil
}

// Kill ends the part without giving it time to do anything (SIGKILL), and waits for its process to
// end. It does nothing when the part is stopped already.
func (part *Part) Kill() {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.proc != nil {
		part.end()
	}
}

// Pause makes the part stand still (SIGSTOP): its connections stay open and nobody answers on
// them. When it returns no thread of the part runs any more. The error says that it does not run.
func (part *Part) Pause() error {
	if err := part.setPaused(true, syscall.SIGSTOP); err != nil {
		return err
	}
	// The signal is only on its way: on a busy machine the part would still answer.
	for end := time.Now().Add(stopTimeout); !standsStill(part.PID()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("pause %s: its threads still run after %v", part.name, stopTimeout)
		}
	}
	return nil
}

// standsStill says whether all threads of a process are stopped, as far as the system tells.
func standsStill(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return true
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		// The state is the letter after the name in parentheses; T is stopped. A thread may be gone.
		if at := bytes.LastIndexByte(stat, ')'); err == nil && at >= 0 && len(stat) > at+2 && stat[at+2] != 'T' {
			return false
		}
	}
	return true
}

// Resume lets a paused part go on. The error says that it does not run.
func (part *Part) Resume() error { return part.setPaused(false, syscall.SIGCONT) }

func (part *Part) setPaused(paused bool, sig syscall.Signal) error {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.proc == nil {
		return fmt.Errorf("send %v to %s: %w", sig, part.name, os.ErrProcessDone)
	}
	if err := part.proc.Signal(sig); err != nil {
		return fmt.Errorf("send %v to %s: %w", sig, part.name, err)
	}
	part.paused = paused
	return nil
}

// LogTail returns the last lines of the part's log, at most n of them.
func (part *Part) LogTail(n int) string { return process.Tail(part.log, n) }

// launch starts a process whose output goes to the end of the file log. The pipe on its standard
// input tells it when we end, should the kernel not do so: it ends when stdin is closed.
func launch(binary string, args []string, log string) (proc *process.Process, stdin *os.File, err error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(binary, args...)
	cmd.Stdin = theirs
	proc, err = process.Start(cmd, log)
	if err != nil {
		return nil, nil, errors.Join(err, ours.Close())
	}
	return proc, ours, nil
}

// end kills the process of the part if it has not ended yet, and forgets it. The caller holds mu.
func (part *Part) end() {
	part.proc.Kill()
	part.stdin.Close()
	part.proc, part.stdin, part.paused = nil, nil, false
}
