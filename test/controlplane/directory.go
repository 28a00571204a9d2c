package controlplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// temporaryPattern matches the temporary directories of all planes of this machine.
const temporaryPattern = "signet-controlplane-*"

// lockName is a file in each directory that the owner keeps locked. The lock ends with the owner,
// who may have had no time to remove the directory.
const lockName = "lock"

// A directory is where one plane keeps its files.
type directory struct {
	path      string
	temporary bool
	lock      *os.File
}

// openDirectory makes and locks the directory at path, or a temporary one when path is empty. It
// fails when another plane uses it.
func openDirectory(path string) (*directory, error) {
	d := &directory{path: path, temporary: path == ""}
	if d.temporary {
		removeAbandoned()
		var err error
		if d.path, err = os.MkdirTemp("", temporaryPattern); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
	}
	var err error
	if d.path, err = filepath.Abs(d.path); err != nil {
		return nil, fmt.Errorf("find directory %s: %w", path, err)
	}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if d.lock, err = d.acquire(); err != nil {
		return nil, fmt.Errorf("lock directory %s: %w", d.path, err)
	}
	return d, nil
}

// acquire locks the directory. In a temporary one the lock file appears only when it is locked, so
// that nobody who finds it unlocked is mistaken.
func (d *directory) acquire() (*os.File, error) {
	name := d.join(lockName)
	if d.temporary {
		name += ".new"
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = tryLock(f)
	if err == nil && d.temporary {
		err = os.Rename(name, d.join(lockName))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// tryLock locks f for as long as this open file lives. Children do not inherit it.
func tryLock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.New("another control plane uses it")
	}
	return err
}

func (d *directory) join(name string) string { return filepath.Join(d.path, name) }

// close removes the directory if it is temporary, and gives up the lock. Calling it again does
// nothing.
func (d *directory) close() error {
	if d.lock == nil {
		return nil
	}
	var err error
	if d.temporary {
		err = os.RemoveAll(d.path)
	}
	err = errors.Join(err, d.lock.Close())
	d.lock = nil
	return err
}

// removeAbandoned removes the temporary directories whose owner was killed. Each holds some
// hundred megabytes of etcd's log. What cannot be removed is left to the next one who tries.
func removeAbandoned() {
	locks, _ := filepath.Glob(filepath.Join(os.TempDir(), temporaryPattern, lockName))
	for _, name := range locks {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if tryLock(f) == nil {
			_ = os.RemoveAll(filepath.Dir(name))
		}
		f.Close()
	}
}
