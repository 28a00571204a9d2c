package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 2 * time.Minute  // until a part is ready
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
	proc   *process // nil when stopped
	paused bool
}

func newPart(name, binary string, args []string, log string, ready func(context.Context) error) *Part {
	return &Part{name: name, binary: binary, args: append([]string{"--exit-on-eof"}, args...), log: log, ready: ready}
}

// Name returns "etcd", "apiserver" or "cert-manager".
func (part *Part) Name() string { return part.name }

// Log returns the path of the file that has everything the part has said since the plane started.
func (part *Part) Log() string { return part.log }

// PID returns the process ID, or 0 when the part does not run.
func (part *Part) PID() int {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.proc == nil || part.proc.ended() {
		return 0
	}
	return part.proc.cmd.Process.Pid
}

// Start starts the part, on the port it always had, and returns when it is ready. It does nothing
// when the part runs already. Ctx bounds the start only; without a deadline of its own it is given
// two minutes. A part that does not become ready is killed, and the error has the end of its log.
func (part *Part) Start(ctx context.Context) error {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.proc != nil && !part.proc.ended() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()

	proc, err := launch(part.binary, part.args, part.log)
	if err != nil {
		return fmt.Errorf("start %s: %w", part.name, err)
	}
	part.proc, part.paused = proc, false
	if err := part.awaitReady(ctx); err != nil {
		proc.kill()
		part.proc = nil
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
		if part.proc.ended() {
			return fmt.Errorf("ended before it was ready: %w", part.proc.exit())
		}
		if err == nil {
			return nil
		}
		select {
		case <-part.proc.done:
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
	proc := part.proc
	if proc == nil {
		return nil
	}
	part.proc = nil
	if proc.ended() {
		return fmt.Errorf("stop %s: had ended by itself: %w; the end of its log:\n%s", part.name, proc.exit(), part.LogTail(20))
	}
	if part.paused {
		part.paused = false
		_ = proc.signal(syscall.SIGCONT) // if it cannot be resumed it will be killed
	}
	_ = proc.signal(syscall.SIGTERM)
	select {
	case <-proc.done:
	case <-time.After(stopTimeout):
	}
	proc.kill()
	return nil
}

// Kill ends the part without giving it time to do anything (SIGKILL), and waits for its process to
// end. It does nothing when the part is stopped already.
func (part *Part) Kill() {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.proc != nil {
		part.proc.kill()
		part.proc, part.paused = nil, false
	}
}

// Pause makes the part stand still (SIGSTOP): its connections stay open and nobody answers on
// them. The error says that it does not run.
func (part *Part) Pause() error { return part.setPaused(true, syscall.SIGSTOP) }

// Resume lets a paused part go on. The error says that it does not run.
func (part *Part) Resume() error { return part.setPaused(false, syscall.SIGCONT) }

func (part *Part) setPaused(paused bool, sig syscall.Signal) error {
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.proc == nil {
		return fmt.Errorf("send %v to %s: %w", sig, part.name, os.ErrProcessDone)
	}
	if err := part.proc.signal(sig); err != nil {
		return fmt.Errorf("send %v to %s: %w", sig, part.name, err)
	}
	part.paused = paused
	return nil
}

// LogTail returns the last lines of the part's log, at most n of them.
func (part *Part) LogTail(n int) string {
	const most = 64 << 10
	f, err := os.Open(part.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > most {
		_, _ = f.Seek(-most, 2)
	}
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(f); err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(buf.String(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// A process is one life of a part.
type process struct {
	cmd   *exec.Cmd
	stdin *os.File      // our end of the pipe: the part ends when it is closed
	done  chan struct{} // closed when the process has ended
	err   error         // how it ended; written before done is closed
}

// launch starts a process whose standard error goes to the end of the file log. It is in a process
// group of its own, so that an interrupt from the terminal reaches only us, who then stop it.
func launch(binary string, args []string, log string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()

	p := &process{cmd: exec.Command(binary, args...), stdin: ours, done: make(chan struct{})}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = theirs, out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(p.cmd.SysProcAttr)

	started := make(chan error, 1)
	go func() {
		// To Linux the parent is the thread that started the process, so this one has to stay as
		// long as the process does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			ours.Close()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		ours.Close()
		return nil, err
	}
	return p, nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// exit says how the process ended, never nil. Only for one that has.
func (p *process) exit() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

func (p *process) signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// kill ends the process if it has not ended yet, and waits until it has.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // the only error is that it has ended
	<-p.done
}
