package chart

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/test/process"
)

// TestConfigIsVerbatim: what stands in config is what Signet reads, and Signet itself reads it.
func TestConfigIsVerbatim(t *testing.T) {
	for name, namespace := range map[string]string{"minimal": "istio-system", "everything": "mesh"} {
		values, err := ReadValues(filepath.Join("testdata", name+".yaml"))
		require.NoError(t, err)
		objects, err := Render(namespace, values)
		require.NoError(t, err)
		text := configFile(t, objects)
		var read any
		require.NoError(t, yaml.Unmarshal([]byte(text), &read))
		assert.Equal(t, values["config"], read, name)
		assertLoads(t, text)
	}
}

// TestConfigKeepsValues: numbers, empty texts and texts that look like something else come through as they are.
func TestConfigKeepsValues(t *testing.T) {
	config := configOf(t, good, `config: {
		ledger: {retention: {rows: 1000000000}, reserveMiB: 1048576}, trustDomain: "123", log: {level: "", format: "text"},
		distribution: {clusterTrustBundle: "off", excludeNamespaces: []}, ca: {lifetime: {max: "90s"}}, istiod: {annotations: {a: "true", b: "{{ .Values }}", c: "1e3"}}}`)
	objects, err := Render("istio-system", config)
	require.NoError(t, err)
	text := configFile(t, objects)
	var read any
	require.NoError(t, yaml.Unmarshal([]byte(text), &read))
	assert.EqualExportedValues(t, config["config"], read)
	assert.Contains(t, text, "rows: 1000000000\n")
	assertLoads(t, text)

	// What the schema can't know is the program's to refuse.
	objects, err = Render("istio-system", configOf(t, good, "config: {shutdown: {drain: 10s}}"))
	require.NoError(t, err)
	code, said := load(t, configFile(t, objects))
	assert.Equal(t, 2, code)
	assert.Contains(t, said, "shutdown.drain: 10s is shorter than ca.requestTimeout")
}

// TestConfigRestarts: a change of config changes the pods, anything else beside them doesn't.
func TestConfigRestarts(t *testing.T) {
	pods := func(values string) any {
		objects, err := Render("istio-system", configOf(t, good, values))
		require.NoError(t, err)
		return find(t, objects, "StatefulSet", "istio-system", "signet").Object["spec"].(map[string]any)["template"]
	}
	assert.NotEqual(t, pods(""), pods("config: {log: {level: debug}}"))
	assert.Equal(t, pods(""), pods("replicas: 3\nservice: {type: LoadBalancer}\npodDisruptionBudget: {enabled: false}\nserviceAccount: {annotations: {a: b}}"))
}

// configFile is the file that the pods mount.
func configFile(t *testing.T, objects []*unstructured.Unstructured) string {
	t.Helper()
	for _, object := range objects {
		if object.GetKind() != "ConfigMap" {
			continue
		}
		var found corev1.ConfigMap
		require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &found))
		if text, ok := found.Data["signet.yaml"]; ok {
			return text
		}
	}
	require.Fail(t, "no ConfigMap has signet.yaml")
	return ""
}

// assertLoads has the program read a configuration.
func assertLoads(t *testing.T, text string) {
	t.Helper()
	code, said := load(t, text)
	assert.Equal(t, 1, code, "%s", said)
	assert.Contains(t, said, "find the Kubernetes API", "the configuration was read, and what comes after it was tried")
}

// load runs the program with a configuration and no way to reach the API server, and returns its exit code and what it said.
func load(t *testing.T, text string) (int, string) {
	t.Helper()
	signet, err := process.Find("signet", "SIGNET_BIN")
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "signet.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	cmd := exec.CommandContext(t.Context(), signet, "--config", path, "--kubeconfig", filepath.Join(t.TempDir(), "none"))
	said, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.NotNil(t, cmd.ProcessState, "%v", err)
	return cmd.ProcessState.ExitCode(), string(said)
}

// find is the object of that name.
func find(t *testing.T, objects []*unstructured.Unstructured, kind, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	object := lookUp(objects, kind, namespace, name)
	require.NotNil(t, object, "%s %s/%s", kind, namespace, name)
	return object
}

// lookUp is the object of that name, nil where there is none.
func lookUp(objects []*unstructured.Unstructured, kind, namespace, name string) *unstructured.Unstructured {
	for _, object := range objects {
		if object.GetKind() == kind && object.GetNamespace() == namespace && object.GetName() == name {
			return object
		}
	}
	return nil
}
