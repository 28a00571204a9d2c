//go:build linux || darwin

package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// freeBytes is what an unprivileged process can still write to the filesystem of path.
func freeBytes(path string) (uint64, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(path, &stat); err != nil {
		return 0, fmt.Errorf("ask for the free space of %s: %w", path, err)
	}
	return uint64(stat.Bavail) * uint64(stat.Bsize), nil //nolint:unconvert // other systems have other types
}

// lockFile takes the lock that says which process holds the store. The kernel gives it back when the
// process ends in whatever way.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the ledger: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock the ledger %s: %w", path, err), file.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock the ledger: another process holds %s; each replica needs a directory of its own", path), file.Close())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
