package chart

import (
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// baseDir is the Kustomize base.
func baseDir(t *testing.T) string {
	t.Helper()
	dir, err := Dir()
	require.NoError(t, err)
	return filepath.Join(dir, "..", "..", "kustomize", "base")
}

// TestKustomizeBase: the base is what the chart renders for the configuration in base/signet.yaml, without what is Helm's.
func TestKustomizeBase(t *testing.T) {
	config, err := os.ReadFile(filepath.Join(baseDir(t), "signet.yaml"))
	require.NoError(t, err)
	files, err := Files("istio-system", map[string]any{"config": configOf(t, string(config))})
	require.NoError(t, err)
	delete(files, "templates/NOTES.txt")
	delete(files, "templates/configmap.yaml") // kustomization.yaml makes it
	want := map[string]string{}
	for name, text := range files {
		want[path.Base(name)] = "# Rendered from deploy/chart/signet: go test ./chart -update\n" + withoutHelm(text)
	}
	kustomization := "# Rendered from deploy/chart/signet: go test ./chart -update\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n" +
		"configMapGenerator:\n  - name: signet-config\n    namespace: istio-system\n    files: [signet.yaml]\nresources:\n"
	for _, name := range slices.Sorted(maps.Keys(want)) {
		kustomization += "  - " + name + "\n"
	}
	want["kustomization.yaml"] = kustomization
	for name, text := range want {
		golden(t, filepath.Join(baseDir(t), name), text)
	}
	entries, err := os.ReadDir(baseDir(t))
	require.NoError(t, err)
	for _, entry := range entries {
		if entry.Name() != "signet.yaml" {
			assert.Contains(t, want, entry.Name(), "the chart doesn't render it any more")
		}
	}
	assertLoads(t, string(config))
}

// withoutHelm leaves out the labels that only Helm's objects have, and the checksum, in whose place is the ConfigMap's name.
func withoutHelm(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(strings.TrimSpace(text) + "\n") {
		switch name, _, _ := strings.Cut(strings.TrimSpace(line), ":"); name {
		case "helm.sh/chart", "app.kubernetes.io/managed-by", "checksum/config":
		default:
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// TestKustomizeBuilds: Kustomize builds the base, and an overlay with another configuration; the pods mount what is generated.
func TestKustomizeBuilds(t *testing.T) {
	base := baseDir(t)
	objects := build(t, base)
	values, err := os.ReadFile(filepath.Join(base, "signet.yaml"))
	require.NoError(t, err)
	chart, err := Render("istio-system", map[string]any{"config": configOf(t, string(values))})
	require.NoError(t, err)
	var want, got []string
	for _, object := range chart {
		want = append(want, object.GetKind()+" "+object.GetNamespace()+"/"+strings.TrimSuffix(object.GetName(), "-config"))
	}
	for _, object := range objects {
		name, _, _ := strings.Cut(object.GetName(), "-config-")
		got = append(got, object.GetKind()+" "+object.GetNamespace()+"/"+name)
	}
	assert.ElementsMatch(t, want, got)
	assert.Equal(t, string(values), configFile(t, objects))
	mounted := configMount(t, objects)

	overlay := t.TempDir()
	from, err := filepath.EvalSymlinks(overlay)
	require.NoError(t, err)
	to, err := filepath.EvalSymlinks(base)
	require.NoError(t, err)
	relative, err := filepath.Rel(from, to)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(`
resources: [`+relative+`]
configMapGenerator: [{name: signet-config, namespace: istio-system, behavior: replace, files: [signet.yaml]}]
images: [{name: ghcr.io/signet-ca/signet, newName: registry.example.org/signet, newTag: "2"}]
`), 0o600))
	other := "issuer: {name: other}\nroots: {fromIssuer: true}\n"
	require.NoError(t, os.WriteFile(filepath.Join(overlay, "signet.yaml"), []byte(other), 0o600))
	objects = build(t, from)
	assert.Equal(t, other, configFile(t, objects))
	assert.NotEqual(t, mounted, configMount(t, objects), "another configuration is another volume, so the pods are replaced")
	containers, _, err := unstructured.NestedSlice(find(t, objects, "StatefulSet", "istio-system", "signet").Object, "spec", "template", "spec", "containers")
	require.NoError(t, err)
	assert.Equal(t, "registry.example.org/signet:2", containers[0].(map[string]any)["image"])
}

// build has Kustomize build a directory.
func build(t *testing.T, dir string) []*unstructured.Unstructured {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	require.NoError(t, err)
	var objects []*unstructured.Unstructured
	for _, resource := range built.Resources() {
		text, err := resource.AsYAML()
		require.NoError(t, err)
		object := &unstructured.Unstructured{}
		require.NoError(t, yaml.Unmarshal(text, object))
		objects = append(objects, object)
	}
	return objects
}

// configMount is the name of the ConfigMap that the pods mount; it is there.
func configMount(t *testing.T, objects []*unstructured.Unstructured) string {
	t.Helper()
	var volumes struct {
		Spec struct {
			Template struct{ Spec corev1.PodSpec }
		}
	}
	text, err := yaml.Marshal(find(t, objects, "StatefulSet", "istio-system", "signet").Object)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &volumes))
	name := volumes.Spec.Template.Spec.Volumes[0].Projected.Sources[0].ConfigMap.Name
	find(t, objects, "ConfigMap", "istio-system", name)
	return name
}
