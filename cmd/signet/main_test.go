package main

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/version"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestCommand runs the command line; what it prints is in testdata/command, with the paths of this
// run and the version replaced.
func TestCommand(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "") // not in a pod
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	good, bad := write("signet.yaml", minimal), write("bad.yaml", "issuer: {nmae: mesh}\nca: {lifetime: {max: 90d}}\n")
	wrong := write("wrong.yaml", minimal+"ca: {lifetime: {max: 90d}}\nlog: {level: loud}\n")
	for _, row := range []struct {
		name string
		args []string
		code int
	}{
		{"version", []string{"--version"}, exitOK},
		{"version with more", []string{"--version", "--config", good}, exitOK},
		{"help", []string{"--help"}, exitOK},
		{"no arguments", nil, exitUsage},
		{"unknown flag", []string{"--conf", good}, exitUsage},
		{"flag without its value", []string{"--config"}, exitUsage},
		{"argument", []string{"--config", good, "serve"}, exitUsage},
		{"config missing", []string{"--config", filepath.Join(dir, "none.yaml")}, exitUsage},
		{"config with an unknown field", []string{"--config", bad}, exitUsage},
		{"config with bad values", []string{"--config", wrong}, exitUsage},
		{"kubeconfig missing", []string{"--config", good, "--kubeconfig", filepath.Join(dir, "none")}, exitFailed},
	} {
		t.Run(row.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := command(t.Context(), row.args, "", &stdout, &stderr)
			assert.Equal(t, row.code, code)
			assert.NotEmpty(t, stdout.String()+stderr.String())
			if code != exitOK {
				assert.Empty(t, stdout.String(), "data alone goes to standard output")
			}
			got := "exit code " + string(rune('0'+code)) + "\n--- stdout\n" + stdout.String() + "--- stderr\n" + stderr.String()
			got = strings.ReplaceAll(strings.ReplaceAll(got, dir+string(filepath.Separator), "DIR/"), version.Current().String(), "VERSION")
			golden := filepath.Join("testdata", "command", strings.ReplaceAll(row.name, " ", "-")+".txt")
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(golden), 0o755))
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err, "go test -update writes it")
			assert.Equal(t, string(want), got)
		})
	}
}

// An error is one that a person can act on, however the start ends.
func TestCommandOutsideOfAPod(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBERNETES_SERVICE_PORT", "")
	path := filepath.Join(t.TempDir(), "signet.yaml")
	require.NoError(t, os.WriteFile(path, []byte(minimal), 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stderr bytes.Buffer
	code := command(ctx, []string{"--config", path}, "", &bytes.Buffer{}, &stderr)
	assert.Equal(t, exitFailed, code)
	assert.Contains(t, stderr.String(), "error: find the Kubernetes API: ")
	assert.Contains(t, stderr.String(), "hint: outside of a pod, name a kubeconfig with --kubeconfig\n")
}

func TestBuildInfo(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(buildInfo())
	is := version.Current()
	families, err := registry.Gather()
	require.NoError(t, err)
	require.Len(t, families, 1)
	got := map[string]string{}
	for _, label := range families[0].GetMetric()[0].GetLabel() {
		got[label.GetName()] = label.GetValue()
	}
	assert.Equal(t, "build_info", families[0].GetName())
	assert.Equal(t, map[string]string{"version": is.Version, "commit": is.Commit, "goversion": is.Go}, got)
	assert.InDelta(t, 1, families[0].GetMetric()[0].GetGauge().GetValue(), 0)
}
