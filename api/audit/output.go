package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// output is where lines go. It is used by one goroutine at a time.
type output struct {
	name    string // for people
	path    string // "" for standard output
	maxSize int64  // of the file, 0 for no bound
	// patience is how long a reader may take for a little before it holds up the stream.
	patience time.Duration

	file *os.File // nil while it could not be opened
	slow bool     // it is no file, so a reader can hold up who writes
	cut  int      // bytes of a line that are written already, because a write ended within it
}

const patience = time.Second

// openOutput opens what cfg says. What may pass is no error.
func openOutput(cfg Config, stdout *os.File) (*output, error) {
	if cfg.Output == toStdout {
		file, err := duplicate(stdout)
		if err != nil {
			return nil, fmt.Errorf("open standard output: %w", err)
		}
		info, err := file.Stat()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open standard output: %w", err), file.Close())
		}
		return &output{name: toStdout, file: file, patience: patience, slow: !info.Mode().IsRegular()}, nil
	}
	o := &output{name: cfg.Output, path: cfg.Output, patience: patience, maxSize: int64(cfg.MaxFileMiB) << 20}
	if err := o.open(); err != nil && !mayPass(err) {
		return nil, err
	}
	return o, nil
}

// mayPass says that the path of a file that could not be opened may be right.
func mayPass(err error) bool {
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, full) {
			return true
		}
	}
	return false
}

// write appends lines, which are whole, and is how many bytes of whole lines it wrote, which is all of them where the
// error is nil. It doesn't wait longer than a moment for a reader. The next call must have the rest.
func (o *output) write(lines []byte) (int, error) {
	if err := o.current(int64(len(lines) - o.cut)); err != nil {
		return 0, err
	}
	var n int
	var err error
	if o.slow {
		n, err = writeSlowly(o.file, lines[o.cut:], o.patience)
	} else {
		n, err = o.file.Write(lines[o.cut:])
	}
	n += o.cut
	whole := bytes.LastIndexByte(lines[:n], '\n') + 1
	o.cut = n - whole
	if err != nil {
		return whole, fmt.Errorf("write to %s: %w", o.name, err)
	}
	return whole, nil
}

// current sees to it that the file is the one at the path, and that it has room for size bytes more.
func (o *output) current(size int64) error {
	if o.path == "" {
		return nil
	}
	if o.file != nil {
		known, err := o.file.Stat()
		if err == nil {
			var there os.FileInfo
			if there, err = os.Stat(o.path); err == nil && os.SameFile(known, there) {
				if o.maxSize == 0 || !there.Mode().IsRegular() || there.Size() == 0 || there.Size()+size <= o.maxSize {
					return nil
				}
				if err := os.Rename(o.path, o.path+".1"); err != nil {
					return fmt.Errorf("rotate the audit file: %w", err)
				}
			}
		}
		o.close()
	}
	return o.open()
}

// open opens the file at the path, and ends a line that was left without an end.
func (o *output) open() error {
	o.cut = 0 // the line begins anew in another file
	// O_RDWR, to look at its end; and it doesn't block, where the path is that of a pipe.
	file, err := os.OpenFile(o.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("open the audit file: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() && info.Mode()&os.ModeCharDevice == 0 {
		err = fmt.Errorf("%s is no file; name a file, or stdout", o.path)
	}
	if err == nil && info.Mode().IsRegular() && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err = file.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			_, err = file.WriteString("\n")
		} else if errors.Is(err, io.EOF) {
			err = nil // it was truncated just now
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open the audit file: %w", err), file.Close())
	}
	o.file, o.slow = file, !info.Mode().IsRegular()
	return nil
}

func (o *output) close() {
	if o.file != nil {
		_ = o.file.Close() // all was written that could be
		o.file = nil
	}
}
