// Package version says what a binary was built from: by the values that the release builds set, else by what the Go
// toolchain recorded of the repository. Safe for concurrent use.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Set by release/compile.sh with -ldflags -X, because there is no repository where images are built.
var (
	release string // such as v1.2.3
	commit  string // the whole hash, and -dirty when the tree was changed
	date    string // of the commit, RFC 3339, UTC
)

// Info is what a binary was built from.
type Info struct {
	Version  string // such as v1.2.3, or devel
	Commit   string // the whole hash, and -dirty when the tree was changed; "" where it isn't known
	Date     string // of the commit, RFC 3339, UTC; "" where it isn't known
	Go       string // such as go1.26.8
	Platform string // such as linux/amd64
}

// Current is the running program's.
func Current() Info {
	info := Info{Version: release, Commit: commit, Date: date}
	if built, ok := debug.ReadBuildInfo(); ok && release == "" {
		info = fromBuild(built)
	}
	if info.Version == "" {
		info.Version = "devel"
	}
	info.Go, info.Platform = runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH
	return info
}

// fromBuild reads what the Go toolchain recorded.
func fromBuild(built *debug.BuildInfo) Info {
	var info Info
	if built.Main.Version != "(devel)" {
		info.Version = strings.TrimSuffix(built.Main.Version, "+dirty") // the commit says so
	}
	modified := false
	for _, s := range built.Settings {
		switch s.Key {
		case "vcs.revision":
			info.Commit = s.Value
		case "vcs.time":
			info.Date = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified && info.Commit != "" {
		info.Commit += "-dirty"
	}
	return info
}

// String is one line: "v1.2.3 (commit 0123…, 2026-01-02T03:04:05Z, go1.26.8, linux/amd64)", without what isn't known.
func (i Info) String() string {
	var facts []string
	if i.Commit != "" {
		facts = append(facts, "commit "+i.Commit)
	}
	for _, fact := range []string{i.Date, i.Go, i.Platform} {
		if fact != "" {
			facts = append(facts, fact)
		}
	}
	return fmt.Sprintf("%s (%s)", i.Version, strings.Join(facts, ", "))
}
