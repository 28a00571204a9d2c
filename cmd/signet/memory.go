package main

import (
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// cgroupMemory is where a container finds its memory limit, in bytes or "max" (cgroup v2).
const cgroupMemory = "/sys/fs/cgroup/memory.max"

// limitMemory has the garbage collector keep to nine tenths of the container's memory, so that a burst makes it work more and
// doesn't end the process; the rest is for what isn't Go's, such as SQLite's memory. GOMEMLIMIT goes before.
func limitMemory(path string, log *slog.Logger) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return // no container, or an old kernel
	}
	limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || limit <= 0 {
		return // none is set
	}
	debug.SetMemoryLimit(limit / 10 * 9)
	log.Info("memory is limited by the container", "limit_bytes", limit, "kept_to_bytes", limit/10*9)
}
