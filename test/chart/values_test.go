package chart

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	yamlv3 "go.yaml.in/yaml/v3"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
)

// value is one of values.yaml, with what stands about it there.
type value struct {
	path    []string
	comment string
	own     bool // the comment is its own
	node    *yamlv3.Node
	schema  map[string]any
	leaf    bool
}

func (v value) String() string { return strings.Join(v.path, ".") }

// described are all values, in the order of values.yaml.
func described(t *testing.T) []value {
	t.Helper()
	var document yamlv3.Node
	require.NoError(t, yamlv3.Unmarshal([]byte(chartFile(t, "values.yaml")), &document))
	var all []value
	var walk func(node *yamlv3.Node, schema map[string]any, path []string, inherited string)
	walk = func(node *yamlv3.Node, schema map[string]any, path []string, inherited string) {
		properties, _ := schema["properties"].(map[string]any)
		for n := 0; n < len(node.Content); n += 2 {
			key, below := node.Content[n], node.Content[n+1]
			v := value{path: append(slices.Clone(path), key.Value), comment: prose(key.HeadComment), node: below}
			v.own = v.comment != ""
			if !v.own {
				v.comment = inherited
			} else if len(path) == 0 || below.Kind != yamlv3.MappingNode {
				inherited = v.comment
			}
			v.schema, _ = properties[key.Value].(map[string]any)
			_, grouped := v.schema["properties"]
			v.leaf = !grouped
			all = append(all, v)
			if grouped {
				walk(below, v.schema, v.path, v.comment)
			}
		}
	}
	walk(document.Content[0], readSchema(t), nil, "")
	return all
}

// prose is what a comment says, without examples, which are set off by two spaces.
func prose(comment string) string {
	var lines []string
	for line := range strings.Lines(comment) {
		if text := strings.TrimPrefix(strings.TrimSpace(line), "#"); !strings.HasPrefix(text, "  ") && strings.TrimSpace(text) != "" {
			lines = append(lines, strings.TrimSpace(text))
		}
	}
	return strings.Join(lines, " ")
}

func chartFile(t *testing.T, name string) string {
	t.Helper()
	dir, err := Dir()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(dir, name))
	require.NoError(t, err)
	return string(text)
}

func readSchema(t *testing.T) map[string]any {
	t.Helper()
	var schema map[string]any
	require.NoError(t, json.Unmarshal([]byte(chartFile(t, "values.schema.json")), &schema))
	return schema
}

// TestSchema: the schema has exactly the values of values.yaml, says the same of them, is closed, and lies in the form in
// which its generators write it.
func TestSchema(t *testing.T) {
	dir, err := Dir()
	require.NoError(t, err)
	path := filepath.Join(dir, "values.schema.json")
	schema := readSchema(t)
	for _, v := range described(t) {
		require.NotNil(t, v.schema, "%s isn't in values.schema.json", v)
		if reference, ok := v.schema["$ref"]; ok {
			assert.Equal(t, "#/definitions/config", reference, v)
			continue
		}
		assert.NotEmpty(t, v.comment, "%s has no comment in values.yaml", v)
		if *update {
			at := schema
			for _, name := range v.path {
				at = at["properties"].(map[string]any)[name].(map[string]any)
			}
			delete(at, "description")
			if v.own {
				at["description"] = v.comment
			}
		} else if v.own {
			assert.Equal(t, v.comment, v.schema["description"], "%s: go test ./chart -update writes it", v)
		}
	}
	if *update {
		setRequired(t, schema)
		text, err := json.MarshalIndent(schema, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, append(text, '\n'), 0o644))
	}
	text, err := json.MarshalIndent(readSchema(t), "", "  ")
	require.NoError(t, err)
	assert.True(t, string(text)+"\n" == chartFile(t, "values.schema.json"), "values.schema.json isn't in the form that json.MarshalIndent writes")

	known := []string{"global"} // Helm's own
	for _, v := range described(t) {
		known = append(known, v.String())
	}
	required := requiredValues(t)
	var found []string
	var walk func(schema map[string]any, path string)
	walk = func(schema map[string]any, path string) {
		properties, ok := schema["properties"].(map[string]any)
		if !ok {
			return
		}
		assert.Equal(t, false, schema["additionalProperties"], "%s is open", path)
		assert.Equal(t, required[path], schema["required"], "%s: go test ./chart -update writes it", path)
		for name, below := range properties {
			at := strings.TrimPrefix(path+"."+name, ".")
			found = append(found, at)
			walk(below.(map[string]any), at)
		}
	}
	walk(readSchema(t), "")
	assert.ElementsMatch(t, known, found)
	loaded, err := Load()
	require.NoError(t, err)
	assert.NoError(t, util.ValidateAgainstSingleSchema(loaded.Values, without(t, loaded.Schema, "definitions")), "values.yaml itself, but for config")
}

// requiredValues are the names of the values that may not be null, of each group. Helm takes null for "without the default":
// with replicas there would be none, without admissionPolicy.enabled no policy, and without a group the templates fail.
func requiredValues(t *testing.T) map[string]any {
	t.Helper()
	required := make(map[string]any)
	for _, v := range described(t) {
		var is any
		require.NoError(t, v.node.Decode(&is))
		list, isList := is.([]any)
		_, isObject := is.(map[string]any)
		kinds, _ := v.schema["type"].([]any)
		empty := slices.Contains(kinds, any("null")) || is == nil || is == "" || is == false || is == 0 || isObject || isList && len(list) == 0
		if v.leaf && empty {
			continue
		}
		group := strings.Join(v.path[:len(v.path)-1], ".")
		names, _ := required[group].([]any)
		names = append(names, v.path[len(v.path)-1])
		slices.SortFunc(names, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
		required[group] = names
	}
	return required
}

// setRequired writes them into the schema.
func setRequired(t *testing.T, schema map[string]any) {
	t.Helper()
	required := requiredValues(t)
	var walk func(schema map[string]any, path string)
	walk = func(schema map[string]any, path string) {
		properties, ok := schema["properties"].(map[string]any)
		if !ok {
			return
		}
		delete(schema, "required")
		if names, ok := required[path]; ok {
			schema["required"] = names
		}
		for name, below := range properties {
			walk(below.(map[string]any), strings.TrimPrefix(path+"."+name, "."))
		}
	}
	walk(schema, "")
}

// TestNull: a value that is null, as one of which nothing is written is in YAML, is refused where it has a default, and is
// otherwise like an empty one.
func TestNull(t *testing.T) {
	for name, want := range map[string]string{
		"replicas":                                   "at '': missing property 'replicas'",
		"admissionPolicy":                            "at '': missing property 'admissionPolicy'",
		"admissionPolicy.enabled":                    "at '/admissionPolicy': missing property 'enabled'",
		"networkPolicy.apiServer.ports":              "at '/networkPolicy/apiServer': missing property 'ports'",
		"ledger.volume.accessModes":                  "at '/ledger/volume': missing property 'accessModes'",
		"autoscaling.targetCPUUtilizationPercentage": "missing property 'targetCPUUtilizationPercentage'",
	} {
		_, err := Render("istio-system", mergedWith(configOf(t, good), under(strings.Split(name, "."), nil)))
		assert.ErrorContains(t, err, want, name)
	}

	loaded, err := Load()
	require.NoError(t, err)
	required := requiredValues(t)
	nulls := configOf(t, good, "config: {namespace: mesh}\nautoscaling: {enabled: true}\nmetrics: {dashboard: {enabled: true}, serviceMonitor: {enabled: true}, prometheusRule: {enabled: true}}")
	empties := copied(t, nulls)
	filled := 0
	for _, v := range described(t) {
		names, _ := required[strings.Join(v.path[:len(v.path)-1], ".")].([]any)
		kinds, _ := v.schema["type"].([]any)
		if !v.leaf || v.String() == "config" || slices.Contains(kinds, any("null")) || slices.Contains(names, any(v.path[len(v.path)-1])) || valueAt(nulls, v.path) != nil {
			continue
		}
		var empty any
		require.NoError(t, v.node.Decode(&empty))
		if was, ok := empty.(map[string]any); ok {
			emptied := make(map[string]any)
			for name := range was { // Helm adds to an empty one what the default has
				emptied[name] = nil
				filled++
			}
			empty = emptied
		}
		nulls, empties = mergedWith(nulls, under(v.path, nil)), mergedWith(empties, under(v.path, empty))
	}
	assert.Positive(t, filled)
	assert.Equal(t, all(t, loaded, empties), all(t, loaded, nulls))
}

// under puts a value where path leads.
func under(path []string, value any) map[string]any {
	for _, name := range slices.Backward(path) {
		value = map[string]any{name: value}
	}
	return value.(map[string]any)
}

// without is a schema in which config can be anything.
func without(t *testing.T, text []byte, name string) []byte {
	t.Helper()
	var schema map[string]any
	require.NoError(t, json.Unmarshal(text, &schema))
	schema[name] = map[string]any{"config": map[string]any{}}
	text, err := json.Marshal(schema)
	require.NoError(t, err)
	return text
}

// TestReadme: the chart's README has a table of all values.
func TestReadme(t *testing.T) {
	const begin, end = "<!-- values: go test ./chart -update -->\n", "<!-- end of values -->"
	var table strings.Builder
	table.WriteString("| value | default | what it is |\n|---|---|---|\n")
	for _, v := range described(t) {
		if !v.leaf {
			continue
		}
		var is any
		require.NoError(t, v.node.Decode(&is))
		text, err := json.Marshal(is)
		require.NoError(t, err)
		comment := v.comment
		if before := strings.LastIndex(v.String(), "."); !v.own && before > 0 {
			comment = strings.ToUpper(comment[:1]) + comment[1:]
		}
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", v, text, strings.ReplaceAll(strings.ReplaceAll(comment, "|", `\|`), "<", "&lt;"))
	}
	dir, err := Dir()
	require.NoError(t, err)
	text := chartFile(t, "README.md")
	before, rest, ok := strings.Cut(text, begin)
	require.True(t, ok, "README.md has no line %q", begin)
	_, after, ok := strings.Cut(rest, end)
	require.True(t, ok, "README.md has no line %q", end)
	want := before + begin + table.String() + end + after
	if *update {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "README.md"), []byte(want), 0o644))
		text = want
	}
	assert.True(t, want == text, "the table in the chart's README.md is stale: go test ./chart -update")
}

// different are values that make a difference where nothing simple does; with a + before them they are added.
var different = map[string]string{
	"service.type":                        "NodePort",
	"config":                              "{log: {level: debug}}",
	"files":                               "+[{path: zz, secret: {name: zz, key: zz}}]",
	"image.digest":                        "sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	"imagePullSecrets":                    "[{name: zz}]",
	"service.aliases":                     "[]",
	"admissionPolicy.actions":             "[Warn]",
	"admissionPolicy.issuers":             "[{name: zz}]",
	"metrics.prometheusRule.disabled":     "[SignetAbsent]",
	"extraObjects":                        "[]",
	"networkPolicy.apiServer.ports":       "[1]",
	"networkPolicy.dns.ports":             "[1]",
	"networkPolicy.postgres.ports":        "[1]",
	"terminationGracePeriodSeconds":       "151",
	"podDisruptionBudget.minAvailable":    "3",
	"autoscaling.minReplicas":             "1",
	"metrics.serviceMonitor.enabled":      "false",
	"service.loadBalancerSourceRanges":    "[198.51.100.0/24]",
	"ledger.volume.size":                  "1Gi",
	"extraVolumeMounts":                   "+[{name: audit, mountPath: /zz}]",
	"priorityAndFairness.lendablePercent": "1",
}

// stage are values beside everything.yaml in which some value matters.
var stage = map[string]string{
	"metrics.service":                    "metrics: {serviceMonitor: {enabled: false}}",
	"replicas":                           "autoscaling: {enabled: false}",
	"image.tag":                          "image: {digest: ''}",
	"podDisruptionBudget.maxUnavailable": "podDisruptionBudget: {minAvailable: null}",
	"metrics.podMonitor":                 "metrics: {serviceMonitor: {enabled: false}, podMonitor: {enabled: true}}",
	"readers":                            "config: {probes: {disabled: true}}",
	"service.apiPort":                    "service: {apiPort: 8443}",
}

// TestValuesMatter: each value changes what is rendered, so none is there for nothing.
func TestValuesMatter(t *testing.T) {
	everything, err := ReadValues(filepath.Join("testdata", "everything.yaml"))
	require.NoError(t, err)
	loaded, err := Load()
	require.NoError(t, err)
	loaded.Schema = nil // not asked each time
	for _, file := range loaded.Files {
		if file.Name == "files/alerts.yaml" { // one of them is enough
			file.Data = []byte("groups: [{name: signet, rules: [{alert: SignetAbsent, expr: absent(up)}]}]")
		}
	}
	type staged struct {
		values map[string]any
		text   string
	}
	stages := make(map[string]staged)
	together, markers := copied(t, everything), make(map[string]value)
	for n, v := range described(t) {
		if !v.leaf || v.String() == "fullnameOverride" { // which config has to say too; the golden files show it
			continue
		}
		set := "{}"
		for path, text := range stage {
			if v.String() == path || strings.HasPrefix(v.String(), path+".") {
				set = text
			}
		}
		before, ok := stages[set]
		if !ok {
			before.values = copied(t, everything)
			merge(before.values, configOf(t, set))
			before.text = all(t, loaded, before.values)
			stages[set] = before
		}
		had := valueAt(before.values, v.path)
		if had == nil {
			require.NoError(t, v.node.Decode(&had))
		}
		other, marked, marker := any(nil), false, fmt.Sprintf("marker-%d-", n)
		if text, ok := different[v.String()]; ok {
			text, more := strings.CutPrefix(text, "+")
			require.NoError(t, yamlv3.Unmarshal([]byte(text), &other))
			if more {
				other = slices.Concat(had.([]any), other.([]any))
			}
		} else {
			other, marked = unlike(t, v, had, marker)
		}
		change := under(v.path, other)
		if marked && set == "{}" { // these are all tried at once
			merge(together, change)
			markers[marker] = v
			continue
		}
		after := copied(t, before.values)
		merge(after, change)
		assert.False(t, before.text == all(t, loaded, after), "%s: %v or %v is the same", v, had, other)
	}
	require.Greater(t, len(markers), 40)
	text := all(t, loaded, together)
	for marker, v := range markers {
		assert.True(t, strings.Contains(text, marker), "%s changes nothing", v)
	}
}

// unlike is another value than had that the schema allows: one that has marker in it where it can, which marked says.
func unlike(t *testing.T, v value, had any, marker string) (other any, marked bool) {
	t.Helper()
	kinds, ok := v.schema["type"].([]any)
	if !ok {
		kinds = []any{v.schema["type"]}
	}
	if options, ok := v.schema["enum"].([]any); ok {
		return options[slices.IndexFunc(options, func(o any) bool { return o != had })], false
	}
	switch kinds[0] {
	case "boolean":
		return had != true, false
	case "integer":
		switch had := had.(type) {
		case float64:
			return had + 1, false
		case int:
			return had + 1, false
		}
		return 7, false
	case "string":
		return marker, true
	case "object":
		return map[string]any{marker: marker}, true
	case "array":
		if items, _ := v.schema["items"].(map[string]any); items["type"] == "string" {
			return []any{marker}, true
		}
		return []any{map[string]any{marker: marker}}, true
	}
	require.Fail(t, "no other value", "%s: %v", v, v.schema)
	return nil, false
}

func valueAt(values map[string]any, path []string) any {
	for _, name := range path[:len(path)-1] {
		values, _ = values[name].(map[string]any)
	}
	return values[path[len(path)-1]]
}

// copied are values that can be changed.
func copied(t *testing.T, values map[string]any) map[string]any {
	t.Helper()
	text, err := json.Marshal(values)
	require.NoError(t, err)
	var other map[string]any
	require.NoError(t, json.Unmarshal(text, &other))
	return other
}

// all is everything that is rendered, as one text.
func all(t *testing.T, loaded *chartv2.Chart, values map[string]any) string {
	t.Helper()
	files, err := render(loaded, "mesh", values)
	require.NoError(t, err)
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text.WriteString(files[name])
	}
	return text.String()
}
