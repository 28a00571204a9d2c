package main

import (
	"bytes"
	"context"
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

// TestCommandLimitsMemory: the program keeps to the limit before it does anything else.
func TestCommandLimitsMemory(t *testing.T) {
	before := debug.SetMemoryLimit(math.MaxInt64)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	t.Setenv("GOMEMLIMIT", "")
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	kubeconfig := write("kubeconfig", `
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
`)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stderr bytes.Buffer
	args := []string{"--config", write("signet.yaml", minimal), "--kubeconfig", kubeconfig}
	assert.Equal(t, exitOK, command(ctx, args, write("memory.max", "2147483648\n"), &bytes.Buffer{}, &stderr), "it is stopped already")
	assert.EqualValues(t, 1932735276, debug.SetMemoryLimit(-1), stderr.String())
	assert.Contains(t, stderr.String(), `"msg":"memory is limited by the container","limit_bytes":2147483648,"kept_to_bytes":1932735276`)
}
