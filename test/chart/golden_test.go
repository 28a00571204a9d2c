package chart

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files, the table in the chart's README, the schema's descriptions and the Kustomize base")

// TestGolden holds what the chart is rendered to, as text: the least that it must be told, and everything on.
func TestGolden(t *testing.T) {
	for name, namespace := range map[string]string{"minimal": "istio-system", "everything": "mesh"} {
		t.Run(name, func(t *testing.T) {
			values, err := ReadValues(filepath.Join("testdata", name+".yaml"))
			require.NoError(t, err)
			files, err := Files(namespace, values)
			require.NoError(t, err)
			// They are other tests' matter, and large.
			if text, ok := files["templates/monitoring.yaml"]; ok {
				files["templates/monitoring.yaml"] = withoutContents(text)
			}
			var text strings.Builder
			for _, file := range slices.Sorted(maps.Keys(files)) {
				text.WriteString("# " + file + "\n" + strings.TrimSpace(files[file]) + "\n\n")
			}
			golden(t, filepath.Join("testdata", name+".golden"), strings.TrimSpace(text.String())+"\n")
		})
	}
}

var (
	alertGroups    = regexp.MustCompile(`(?s)\n  groups:.*?(\n---\n|$)`)
	dashboardModel = regexp.MustCompile(`(?s)\n  signet.json: \|-\n.*`)
)

// withoutContents leaves the groups of alerts and the dashboard's panels out.
func withoutContents(text string) string {
	text = alertGroups.ReplaceAllString(text, "\n  groups: (files/alerts.yaml)$1")
	return dashboardModel.ReplaceAllString(text, "\n  signet.json: (files/dashboard.json)\n")
}

// golden compares text with a file, or writes that with -update.
func golden(t *testing.T, path, text string) {
	t.Helper()
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "go test ./chart -update writes it")
	had, has := strings.Split(string(want), "\n"), strings.Split(text, "\n")
	for n := range max(len(had), len(has)) {
		require.Equal(t, slices.Concat(had, []string{""})[min(n, len(had))], slices.Concat(has, []string{""})[min(n, len(has))],
			"%s, line %d: go test ./chart -update writes it anew", path, n+1)
	}
}
