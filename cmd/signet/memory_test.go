package main

import (
	"bytes"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	for name, row := range map[string]struct {
		file, env string
		want      int64
	}{
		"a limit":               {file: "2147483648\n", want: 1932735276},
		"none":                  {file: "max\n", want: math.MaxInt64},
		"nonsense":              {file: "-1\n", want: math.MaxInt64},
		"empty":                 {file: "", want: math.MaxInt64},
		"the variable is ahead": {file: "2147483648\n", env: "1GiB", want: math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GOMEMLIMIT", row.env)
			debug.SetMemoryLimit(math.MaxInt64)
			path := filepath.Join(t.TempDir(), "memory.max")
			require.NoError(t, os.WriteFile(path, []byte(row.file), 0o600))
			var log bytes.Buffer
			limitMemory(path, slog.New(slog.NewJSONHandler(&log, nil)))
			assert.Equal(t, row.want, debug.SetMemoryLimit(-1))
			assert.Equal(t, row.want != math.MaxInt64, log.Len() > 0)
		})
	}
	debug.SetMemoryLimit(math.MaxInt64)
	limitMemory(filepath.Join(t.TempDir(), "absent"), slog.New(slog.DiscardHandler))
	assert.EqualValues(t, math.MaxInt64, debug.SetMemoryLimit(-1))
}
