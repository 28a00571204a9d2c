package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// TestRun: the chart passes Helm's lint, and what is packed is the chart.
func TestRun(t *testing.T) {
	minimal := filepath.Join("..", "..", "testdata", "minimal.yaml")
	dir := t.TempDir()
	require.NoError(t, run(minimal, dir))
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

// TestRunRefuses: nothing is packed that lint doesn't like.
func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	wrong := filepath.Join(dir, "values.yaml")
	require.NoError(t, os.WriteFile(wrong, []byte("replicas: two\n"), 0o600))
	assert.ErrorContains(t, run(wrong, dir), "lint chart: ")
	assert.ErrorContains(t, run(filepath.Join(dir, "none.yaml"), dir), "read values: ")
	assert.ErrorContains(t, run("", dir), "--values and --out must be set")
	archives, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	require.NoError(t, err)
	assert.Empty(t, archives)
}
