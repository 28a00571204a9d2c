//go:build linux || darwin

package audit

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pipeBytes is what a pipe that is ready takes without blocking: PIPE_BUF, which is 512 at least (POSIX, limits.h).
const pipeBytes = 512

// duplicate is file under another descriptor: a write to a broken pipe on descriptor 1 ends a Go program.
func duplicate(file *os.File) (*os.File, error) {
	var copied int
	err := control(file, func(fd uintptr) (err error) {
		copied, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate it: %w", err)
	}
	return os.NewFile(uintptr(copied), file.Name()), nil
}

// errSlow says that nobody reads.
var errSlow = errors.New("its reader does not read")

// writeSlowly writes to what may have a slow reader, such as a pipe, in pieces that it is ready for. The descriptor is
// shared with other processes, so it can't be made one that never blocks. Patience is how long a reader may take for a
// piece.
func writeSlowly(file *os.File, text []byte, patience time.Duration) (int, error) {
	done := 0
	for done < len(text) {
		ready := false
		err := control(file, func(fd uintptr) (err error) {
			ready, err = writable(int(fd), patience)
			return err
		})
		if err != nil {
			return done, fmt.Errorf("wait for its reader: %w", err)
		}
		if !ready {
			return done, errSlow
		}
		_ = file.SetWriteDeadline(time.Now().Add(patience)) // one that blocks takes none
		n, err := file.Write(text[done:min(len(text), done+pipeBytes)])
		done += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = errSlow
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// writable waits until a write to fd doesn't block, for as long as patience says at most.
func writable(fd int, patience time.Duration) (bool, error) {
	for end := time.Now().Add(patience); ; {
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(polled, int(max(0, time.Until(end).Milliseconds())))
		if err != unix.EINTR {
			return n > 0, err // where the pipe is broken, the write says so
		}
	}
}

// control runs do with the descriptor of file.
func control(file *os.File, do func(fd uintptr) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = do(fd) }); err != nil {
		return err
	}
	return failed
}
