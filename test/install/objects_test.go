package install

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/chart"
)

// TestObjects has the API server judge everything that the chart can render, field by field, without keeping it. It isn't
// for the time in which there is a release, whose StatefulSet can't be changed into every other.
func TestObjects(t *testing.T) {
	for _, name := range []string{"monitoring.yaml", "approver-policy.yaml"} {
		definitions, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		require.NoError(t, plane.Apply(t.Context(), definitions))
	}
	everythingOn, err := chart.ReadValues(filepath.Join("..", "chart", "testdata", "everything.yaml"))
	require.NoError(t, err)
	minimal, err := chart.ReadValues(filepath.Join("..", "chart", "testdata", "minimal.yaml"))
	require.NoError(t, err)

	kinds := make(map[string]bool)
	for name, test := range map[string]struct {
		namespace string
		values    map[string]any
	}{
		"minimal":    {"istio-system", minimal},
		"everything": {"mesh", everythingOn},
		"pods are scraped": {"istio-system", with(minimal, map[string]any{
			"metrics": map[string]any{"podMonitor": map[string]any{
				"enabled": true, "interval": "1m30s", "scrapeTimeout": "10s",
				"relabelings": []any{map[string]any{"action": "labeldrop", "regex": "pod_ip"}},
			}},
		})},
		"a Service on each node": {"istio-system", with(minimal, map[string]any{
			"service":             map[string]any{"type": "NodePort", "nodePort": 31443, "externalTrafficPolicy": "Cluster", "trafficDistribution": "PreferSameNode"},
			"podDisruptionBudget": map[string]any{"maxUnavailable": "50%"},
			"priorityAndFairness": map[string]any{"shares": 1, "lendablePercent": 0},
		})},
		"little is made": {"istio-system", with(minimal, map[string]any{
			"replicas": 1, "rbac": map[string]any{"create": false}, "readers": map[string]any{"create": false},
			"networkPolicy": map[string]any{"enabled": false}, "admissionPolicy": map[string]any{"enabled": false},
			"priorityAndFairness": map[string]any{"enabled": false}, "podDisruptionBudget": map[string]any{"enabled": false},
			"resources": nil,
		})},
	} {
		objects, err := chart.Render(test.namespace, test.values)
		require.NoError(t, err, name)
		for _, object := range objects {
			kinds[object.GetKind()] = true
			judge(t, name, test.namespace, object)
		}
	}
	// Whatever is missing here has not been judged.
	assert.Equal(t, []string{
		"ClusterRole", "ClusterRoleBinding", "ConfigMap", "FlowSchema", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget",
		"PodMonitor", "PriorityLevelConfiguration", "PrometheusRule", "Role", "RoleBinding", "Service", "ServiceAccount", "ServiceMonitor",
		"StatefulSet", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
	}, slices.Sorted(maps.Keys(kinds)))

	dir, err := chart.Dir()
	require.NoError(t, err)
	examples, err := filepath.Glob(filepath.Join(dir, "examples", "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, examples)
	for _, example := range examples {
		text, err := os.ReadFile(example)
		require.NoError(t, err)
		objects, err := chart.Objects(map[string]string{example: string(text)})
		require.NoError(t, err)
		for _, object := range objects {
			judge(t, filepath.Base(example), system, object)
		}
	}
}

// judge wants that the API server accepts an object, and has nothing to remark. Unknown fields, and those that occur twice,
// are errors.
func judge(t *testing.T, from, namespace string, object *unstructured.Unstructured) {
	t.Helper()
	if namespaced, err := plane.Client().IsObjectNamespaced(object); assert.NoError(t, err) && namespaced {
		object.SetNamespace(cmp.Or(object.GetNamespace(), namespace)) // as Helm does
		require.NoError(t, plane.Namespace(t.Context(), object.GetNamespace()))
	}
	what := fmt.Sprintf("%s: %s %s", from, object.GetKind(), client.ObjectKeyFromObject(object))
	said := &warnings{}
	assert.NoError(t, judging(t, said).Apply(t.Context(), client.ApplyConfigurationFromUnstructured(object),
		client.FieldOwner("test"), client.ForceOwnership, client.DryRunAll), what)
	assert.Empty(t, said.texts, what)
}

// with is values with some set besides.
func with(values, more map[string]any) map[string]any {
	all := maps.Clone(values)
	maps.Copy(all, more)
	return all
}

// judging is an administrator's client for judge.
func judging(t *testing.T, said *warnings) client.Client {
	t.Helper()
	config := plane.Admin()
	config.WarningHandler = said
	c, err := client.New(config, client.Options{Scheme: plane.Client().Scheme(), Mapper: plane.Client().RESTMapper()})
	require.NoError(t, err)
	return client.WithFieldValidation(c, "Strict")
}

// warnings collects those of the API server.
type warnings struct{ texts []string }

var _ rest.WarningHandler = &warnings{}

func (w *warnings) HandleWarningHeader(code int, _, text string) {
	if code == 299 {
		w.texts = append(w.texts, text)
	}
}
