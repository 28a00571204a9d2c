//go:build !linux && !darwin

package audit

import (
	"os"
	"time"
)

func duplicate(file *os.File) (*os.File, error) { return file, nil }

// writeSlowly waits for the reader as long as it takes: how long that is isn't known here before.
func writeSlowly(file *os.File, text []byte, _ time.Duration) (int, error) { return file.Write(text) }
