// Package process runs the programs that tests and the demo need as processes of their own: in a
// process group of their own, with a log file, and so that none outlives the one that started it.
package process

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Process is a started program. Safe for concurrent use.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the program has ended
	err  error         // how it ended; written before done is closed
}

// Start starts cmd, whose standard output and error, where they aren't set, go to the end of the
// file log. An interrupt from the terminal reaches only us, who then stop it. When we end in whatever
// way, the kernel kills it.
func Start(cmd *exec.Cmd, log string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = out
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr)

	p := &Process{cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// To Linux the parent is the thread that started the process, so this one has to stay as long as
		// the process does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// PID is the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended says whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Exit says how the program ended, never nil. Only for one that has.
func (p *Process) Exit() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// ExitCode waits for the end and is the exit code, -1 for one ended by a signal.
func (p *Process) ExitCode() int {
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

// Signal sends sig. The error says that the program has ended.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop asks the program to end (SIGTERM), waits, and kills it after timeout.
func (p *Process) Stop(timeout time.Duration) {
	_ = p.Signal(syscall.SIGTERM) // the only error is that it has ended
	select {
	case <-p.done:
	case <-time.After(timeout):
	}
	p.Kill()
}

// Kill ends the program if it has not ended yet, and waits until it has.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // the only error is that it has ended
	<-p.done
}

// Log is the path of the log.
func (p *Process) Log() string { return p.log }

// Tail returns the last lines of the file at path, at most n of them.
func Tail(path string, n int) string {
	const most = 64 << 10
	f, err := os.Open(path)
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
