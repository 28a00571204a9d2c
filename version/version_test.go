package version

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestString(t *testing.T) {
	whole := Info{Version: "v1.2.3", Commit: "0123456789abcdef-dirty", Date: "2026-01-02T03:04:05Z", Go: "go1.26.8", Platform: "linux/amd64"}
	assert.Equal(t, "v1.2.3 (commit 0123456789abcdef-dirty, 2026-01-02T03:04:05Z, go1.26.8, linux/amd64)", whole.String())
	assert.Equal(t, "devel (go1.26.8, linux/amd64)", Info{Version: "devel", Go: "go1.26.8", Platform: "linux/amd64"}.String())
}

func TestFromBuild(t *testing.T) {
	settings := []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "0123"}, {Key: "vcs.time", Value: "2026-01-02T03:04:05Z"}}
	for _, row := range []struct {
		name    string
		version string
		more    []debug.BuildSetting
		want    Info
	}{
		{"a tag", "v1.2.3", append(settings, debug.BuildSetting{Key: "vcs.modified", Value: "false"}), Info{Version: "v1.2.3", Commit: "0123", Date: "2026-01-02T03:04:05Z"}},
		{"a changed tree", "v1.2.3+dirty", append(settings, debug.BuildSetting{Key: "vcs.modified", Value: "true"}), Info{Version: "v1.2.3", Commit: "0123-dirty", Date: "2026-01-02T03:04:05Z"}},
		{"no repository", "(devel)", nil, Info{}},
		{"installed", "v1.2.3", nil, Info{Version: "v1.2.3"}},
	} {
		assert.Equal(t, row.want, fromBuild(&debug.BuildInfo{Main: debug.Module{Version: row.version}, Settings: row.more}), row.name)
	}
}

func TestCurrent(t *testing.T) {
	got := Current()
	assert.NotEmpty(t, got.Version)
	assert.Equal(t, runtime.Version(), got.Go)
	assert.Equal(t, runtime.GOOS+"/"+runtime.GOARCH, got.Platform)

	before := [3]string{release, commit, date}
	defer func() { release, commit, date = before[0], before[1], before[2] }()
	release, commit, date = "v9.9.9", "fedc", "2026-02-03T04:05:06Z"
	got = Current()
	assert.Equal(t, Info{Version: "v9.9.9", Commit: "fedc", Date: "2026-02-03T04:05:06Z", Go: got.Go, Platform: got.Platform}, got, "what the release set counts")
}
