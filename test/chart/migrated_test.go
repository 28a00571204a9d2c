package chart

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/test/process"
)

// beside are the values that docs/migrate.md adds while the old authority still runs, distributes the roots and has its names.
const beside = `
config:
  distribution: {disabled: true}
  istiod: {enabled: false}
service:
  aliases: []
`

// TestMigrated renders the values that signetctl migrate istio-csr makes, as its golden files have them: those in the end, and
// those beside istio-csr.
func TestMigrated(t *testing.T) {
	root, err := process.Root()
	require.NoError(t, err)
	examples, err := filepath.Glob(filepath.Join(root, "cmd", "signetctl", "testdata", "migrate", "*", "signet.yaml.txt"))
	require.NoError(t, err)
	require.NotEmpty(t, examples)
	for _, file := range examples {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			values, err := ReadValues(file)
			require.NoError(t, err)
			config, ok := values["config"].(map[string]any)
			require.True(t, ok)
			namespace, ok := config["namespace"].(string)
			require.True(t, ok)
			_, err = Render(namespace+"-other", values)
			require.ErrorContains(t, err, "config.namespace", "they are for one namespace")

			objects, err := Render(namespace, values)
			require.NoError(t, err)
			file := objectNamed(t, objects, "ConfigMap", "signet-config")
			text, _, err := unstructured.NestedString(file.Object, "data", "signet.yaml")
			require.NoError(t, err)
			var written map[string]any
			require.NoError(t, yaml.UnmarshalStrict([]byte(text), &written))
			assert.Equal(t, config, written)
			aliases, _, err := unstructured.NestedSlice(values, "service", "aliases")
			require.NoError(t, err)
			require.Len(t, aliases, 1)
			alias, ok := aliases[0].(map[string]any)
			require.True(t, ok)
			service := objectNamed(t, objects, "Service", alias["name"])
			assert.Equal(t, alias["namespace"], service.GetNamespace())
			name, _, err := unstructured.NestedString(service.Object, "spec", "externalName")
			require.NoError(t, err)
			assert.Equal(t, "signet."+namespace+".svc.cluster.local", name)

			// The old authority may still ask its issuer.
			users, _, err := unstructured.NestedStringSlice(values, "admissionPolicy", "allowed", "users")
			require.NoError(t, err)
			require.Len(t, users, 1)
			policies := 0
			for _, object := range objects {
				if object.GetKind() == "ValidatingAdmissionPolicy" {
					policies++
					policy, err := yaml.Marshal(object)
					require.NoError(t, err)
					assert.Contains(t, string(policy), users[0], object.GetName())
				}
			}
			assert.NotZero(t, policies)

			var also map[string]any
			require.NoError(t, yaml.Unmarshal([]byte(beside), &also))
			first := mergedWith(values, also)
			objects, err = Render(namespace, first)
			require.NoError(t, err)
			for _, object := range objects {
				assert.False(t, object.GetKind() == "Service" && object.GetName() == alias["name"], "Helm doesn't make a Service that another release has")
			}
			rights, err := Rights(namespace, first)
			require.NoError(t, err)
			granted, err := yaml.Marshal(rights)
			require.NoError(t, err)
			assert.NotContains(t, string(granted), "istio-ca-root-cert", "somebody else distributes")
		})
	}
}

// TestBesideIsDocumented: the values above are those that the procedures tell of.
func TestBesideIsDocumented(t *testing.T) {
	root, err := process.Root()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "docs", "migrate.md"))
	require.NoError(t, err)
	assert.Contains(t, string(text), beside)
}

// mergedWith is base with more over it, as Helm merges files.
func mergedWith(base, more map[string]any) map[string]any {
	all := maps.Clone(base)
	for name, value := range more {
		above, isMap := value.(map[string]any)
		below, wasMap := all[name].(map[string]any)
		if isMap && wasMap {
			value = mergedWith(below, above)
		}
		all[name] = value
	}
	return all
}

// objectNamed is the one object of a kind and name.
func objectNamed(t *testing.T, objects []*unstructured.Unstructured, kind string, name any) *unstructured.Unstructured {
	t.Helper()
	var found []*unstructured.Unstructured
	for _, object := range objects {
		if object.GetKind() == kind && object.GetName() == name {
			found = append(found, object)
		}
	}
	require.Len(t, found, 1, "%s %v", kind, name)
	return found[0]
}
