package chart

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/test/process"
)

// configSchema is the part of the chart's schema that is Signet's own file, as it is compiled and as it is written.
func configSchema(t *testing.T) (whole, config *jsonschema.Schema, written map[string]any) {
	t.Helper()
	dir, err := Dir()
	require.NoError(t, err)
	file, err := os.Open(filepath.Join(dir, "values.schema.json"))
	require.NoError(t, err)
	defer file.Close()
	parsed, err := jsonschema.UnmarshalJSON(file)
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource("values.schema.json", parsed))
	whole, err = compiler.Compile("values.schema.json")
	require.NoError(t, err)
	config, err = compiler.Compile("values.schema.json#/definitions/config")
	require.NoError(t, err)
	written = parsed.(map[string]any)["definitions"].(map[string]any)["config"].(map[string]any)
	return whole, config, written
}

// what the schema must refuse when the loader does: names, types, closed sets and numbers.
var forSchema = regexp.MustCompile(`unknown field|stands where|is not a duration|is not a format|is no kind of key|is no way to|is not known|inFlight: \d+ is out of range`)

// but for what JSON Schema can't tell from what is right.
var forLoader = regexp.MustCompile(`"-?0s" is not a duration`)

// TestSchemaAgreesWithLoader: the schema lets pass whatever Signet starts with, and refuses what is wrong whatever else is
// set.
func TestSchemaAgreesWithLoader(t *testing.T) {
	_, config, _ := configSchema(t)
	root, err := process.Root()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "cmd", "signet", "testdata", "judged.json"))
	require.NoError(t, err)
	var all []struct{ Name, Config, Error string }
	require.NoError(t, json.Unmarshal(text, &all))
	loaded, both := 0, 0
	for _, one := range all {
		asJSON, err := yaml.YAMLToJSON([]byte(one.Config))
		if err != nil {
			continue // Helm can't read it either
		}
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(asJSON)))
		require.NoError(t, err)
		err = config.Validate(value)
		switch {
		case one.Error == "":
			loaded++
			assert.NoError(t, err, one.Name)
		case forSchema.MatchString(one.Error) && !forLoader.MatchString(one.Error):
			both++
			assert.Error(t, err, "%s: the loader says %s", one.Name, one.Error)
		}
	}
	assert.Greater(t, loaded, 20)
	assert.Greater(t, both, 30)
}

// TestSchemaUnknownFields: each group of settings refuses a field that it doesn't have.
func TestSchemaUnknownFields(t *testing.T) {
	whole, config, written := configSchema(t)
	groups := 0
	var visit func(path string, schema map[string]any, around func(any) any)
	visit = func(path string, schema map[string]any, around func(any) any) {
		if items, ok := schema["items"].(map[string]any); ok {
			visit(path+"[]", items, func(value any) any { return around([]any{value}) })
			return
		}
		properties, ok := schema["properties"].(map[string]any)
		if !ok {
			return
		}
		groups++
		err := config.Validate(around(map[string]any{"nosuchfield": true}))
		assert.ErrorContains(t, err, "additional properties 'nosuchfield' not allowed", path)
		for name, property := range properties {
			visit(path+"."+name, property.(map[string]any), func(value any) any { return around(map[string]any{name: value}) })
		}
	}
	visit("config", written, func(value any) any { return value })
	assert.Greater(t, groups, 30)

	err := whole.Validate(map[string]any{"config": map[string]any{"nosuchfield": true}})
	assert.ErrorContains(t, err, "additional properties 'nosuchfield' not allowed", "the chart's value is held against the definition")
}
