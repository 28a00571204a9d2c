//go:build !linux && !darwin

package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// freeBytes isn't known here.
func freeBytes(string) (uint64, error) { return 0, errors.ErrUnsupported }

// lockFile keeps no other process away here.
func lockFile(_ context.Context, path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the ledger: %w", err)
	}
	return file, nil
}
