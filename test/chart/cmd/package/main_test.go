package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// TestRun: the chart passes Helm's lint, and what is packed is the chart.
func TestRun(t *testing.T) {
	minimal := filepath.Join("..", "..", "testdata", "minimal.yaml")
	dir := t.TempDir()
	require.NoError(t, run(minimal, dir, ""))
	archives, err := filepath.Glob(filepath.Join(dir, "signet-*.tgz"))
	require.NoError(t, err)
	require.Len(t, archives, 1)
	loaded, err := loader.LoadFile(archives[0])
	require.NoError(t, err)
	assert.Equal(t, "signet", loaded.Name())
	assert.Equal(t, "signet-"+loaded.Metadata.Version+".tgz", filepath.Base(archives[0]))
	var names []string
	for _, file := range loaded.Raw {
		names = append(names, file.Name)
	}
	for _, name := range []string{"values.yaml", "values.schema.json", "README.md", "templates/statefulset.yaml", "files/alerts.yaml", "files/dashboard.json", "examples/certificaterequestpolicy.yaml"} {
		assert.Contains(t, names, name)
	}
}

// TestRunIsReproducible: with a date the same chart gives the same archive, whenever its files were written.
func TestRunIsReproducible(t *testing.T) {
	minimal := filepath.Join("..", "..", "testdata", "minimal.yaml")
	pack := func(date string) string {
		dir := t.TempDir()
		require.NoError(t, run(minimal, dir, date))
		archives, err := filepath.Glob(filepath.Join(dir, "signet-*.tgz"))
		require.NoError(t, err)
		require.Len(t, archives, 1)
		content, err := os.ReadFile(archives[0])
		require.NoError(t, err)
		return string(content)
	}
	first := pack("2026-01-02T03:04:05Z")
	assert.True(t, first == pack("2026-01-02T04:04:05+01:00"), "the archives differ")
	assert.False(t, first == pack("2026-01-02T03:04:06Z"), "the date isn't in it")

	loaded, err := loader.LoadArchive(strings.NewReader(first))
	require.NoError(t, err)
	date := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, file := range loaded.Raw {
		assert.True(t, file.ModTime.Equal(date), "%s is of %s", file.Name, file.ModTime)
	}
}

// TestRunRefuses: nothing is packed that lint doesn't like.
func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	wrong := filepath.Join(dir, "values.yaml")
	require.NoError(t, os.WriteFile(wrong, []byte("replicas: two\n"), 0o600))
	assert.ErrorContains(t, run(wrong, dir, ""), "lint chart: ")
	assert.ErrorContains(t, run(filepath.Join(dir, "none.yaml"), dir, ""), "read values: ")
	assert.ErrorContains(t, run("", dir, ""), "--values and --out must be set")
	assert.ErrorContains(t, run(wrong, dir, "today"), "read --date: ")
	archives, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	require.NoError(t, err)
	assert.Empty(t, archives)
}
