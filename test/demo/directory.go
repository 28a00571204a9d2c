package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// The names below a demo's directory.
const (
	lockName      = "lock"      // locked by the demo that runs there
	envName       = "env"       // variables to source
	rootName      = "root.pem"  // the mesh's trust anchor
	planeName     = "plane"     // state, keys and logs of the control plane
	signetName    = "signet"    // Signet's configuration and log
	workloadsName = "workloads" // one directory for each, with the agent's files and its log
)

// ours are all names but the lock's.
var ours = []string{envName, rootName, planeName, signetName, workloadsName}

// A directory is where one demo keeps its files. Others' files in it are left alone.
type directory struct {
	path string // absolute
	lock *os.File
}

// openDirectory makes the directory and takes it. What a killed demo has left there is removed; names
// of ours that no demo made are an error, and so is a demo that runs there.
func openDirectory(path string) (*directory, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	d := &directory{path: path}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the demo's directory: %w", err)
	}
	if _, err := os.Lstat(d.join(lockName)); errors.Is(err, fs.ErrNotExist) {
		for _, name := range ours {
			if _, err := os.Lstat(d.join(name)); err == nil {
				return nil, fmt.Errorf("%s is there already, and no demo made it; name another directory with DEMO_DIR", d.join(name))
			}
		}
	}
	for range 10 {
		if err := d.acquire(); err != nil {
			return nil, err
		}
		if d.lock != nil {
			return d, d.empty()
		}
	}
	return nil, fmt.Errorf("take the directory %s: it is taken and left all the time", path)
}

// acquire locks the directory. The lock stays nil when the file that was locked is the one of a demo
// that was just leaving, which has removed it.
func (d *directory) acquire() error {
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	f, err := os.OpenFile(d.join(lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take the demo's directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("another demo runs in %s\nhint: name a directory for this one, such as make demo DEMO_DIR=/tmp/demo2", d.path)
		}
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	locked, err1 := f.Stat()
	named, err2 := os.Stat(f.Name())
	if err1 != nil || err2 != nil || !os.SameFile(locked, named) {
		return f.Close()
	}
	d.lock = f
	return nil
}

// join is the path of a name in the directory.
func (d *directory) join(names ...string) string {
	return filepath.Join(append([]string{d.path}, names...)...)
}

// make makes a directory below.
func (d *directory) make(names ...string) (string, error) {
	path := d.join(names...)
	return path, os.MkdirAll(path, 0o700)
}

func (d *directory) empty() error {
	var errs []error
	for _, name := range ours {
		errs = append(errs, os.RemoveAll(d.join(name)))
	}
	return errors.Join(errs...)
}

// close removes what is ours, and the directory itself unless it holds something else.
func (d *directory) close() error {
	err := errors.Join(d.empty(), os.Remove(d.join(lockName)))
	// Not the error: others' files stay, and so does a directory that we may not remove.
	_ = os.Remove(d.path)
	return errors.Join(err, d.lock.Close())
}
