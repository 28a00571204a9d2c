package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

// durationPattern is what setting.Duration reads, and "", which stands for one that isn't set. Zero and what is out of
// range is left to the loader.
const durationPattern = `^([+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)?$`

// schema is the JSON Schema (draft-07) of d. It is as strict as the loader about names and types, and about closed
// sets and numbers; what depends on several settings is the loader's alone. Null is for a setting that isn't set.
func (d *described) schema(t *testing.T) map[string]any {
	s := map[string]any{}
	null := func(kind string) any {
		if d.required || d.path == "" {
			return kind
		}
		return []any{kind, "null"}
	}
	text := map[string]any{"type": "string"}
	if d.values != nil {
		var values []any
		for _, value := range d.values {
			values = append(values, value)
		}
		text = map[string]any{"enum": values}
	}
	switch {
	case d.group():
		properties, required := map[string]any{}, []any{}
		for _, field := range d.fields {
			properties[field.name] = field.schema(t)
			if field.required {
				required = append(required, field.name)
			}
		}
		s = map[string]any{"type": null("object"), "additionalProperties": false, "properties": properties}
		if len(required) > 0 && d.path != "" { // what the file as a whole needs, the chart says in its own words
			s["required"] = required
		}
		if d.list {
			s["type"] = "object"
			s = map[string]any{"type": null("array"), "items": s}
		}
	case d.typ == reflect.TypeFor[setting.Duration]():
		s["type"], s["pattern"] = null("string"), durationPattern
	case d.typ.Kind() == reflect.Int:
		most, err := strconv.Atoi(d.most)
		require.NoError(t, err, d.path)
		s["type"], s["minimum"], s["maximum"] = null("integer"), 0, most // 0 stands for one that isn't set
	case d.typ.Kind() == reflect.Bool:
		s["type"] = null("boolean")
	case d.typ.Kind() == reflect.String && d.values != nil:
		s["enum"] = append(text["enum"].([]any), "", nil)
	case d.typ.Kind() == reflect.String:
		s["type"] = null("string")
	case d.typ.Kind() == reflect.Slice && d.typ.Elem().Kind() == reflect.String:
		s["type"], s["items"] = null("array"), text
	case d.typ.Kind() == reflect.Map && d.typ.Elem().Kind() == reflect.String:
		s["type"], s["additionalProperties"] = null("object"), text
	default:
		require.Fail(t, "no schema for the type", "%s of %s", d.typ, d.path)
	}
	if d.path == "" {
		s["$comment"] = "Generated from the comments of type Config: go test ./cmd/signet -run TestReference -update"
		s["description"] = "Signet's configuration file, verbatim; docs/configuration.md describes it."
	} else {
		s["description"] = d.plain()
	}
	return s
}

// updateSchema replaces the definition of config in the chart's schema, and leaves the rest as it is.
func updateSchema(t *testing.T, path string, schema map[string]any) {
	file := map[string]any{"$schema": "http://json-schema.org/draft-07/schema#"}
	text, err := os.ReadFile(path)
	if !os.IsNotExist(err) {
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(text, &file))
	}
	definitions, ok := file["definitions"].(map[string]any)
	if !ok {
		definitions = map[string]any{}
		file["definitions"] = definitions
	}
	definitions["config"] = schema
	text, err = json.MarshalIndent(file, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(text, '\n'), 0o644))
}

// judged is a configuration and what the loader says of it, for the test that holds the schema to the same.
type judged struct {
	Name   string `json:"name"`
	Config string `json:"config"`          // YAML
	Error  string `json:"error,omitempty"` // the loader's; none when it loads
}

// TestJudged writes what the loader says of each configuration of these tests: test/chart asks the schema of the chart
// about the same.
func TestJudged(t *testing.T) {
	var all []judged
	add := func(name, text string) {
		if len(text) > 10_000 {
			return
		}
		one := judged{Name: name, Config: text}
		if _, err := ParseConfig([]byte(text)); err != nil {
			one.Error = err.Error()
		}
		all = append(all, one)
	}
	for _, name := range slices.Sorted(maps.Keys(accepted)) {
		add(name, accepted[name])
	}
	for _, name := range []string{"whole.yaml", "example/minimal.yaml", "example/production.yaml"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		add(name, string(text))
	}
	for _, row := range refused {
		add(row.name, row.text)
	}
	for _, duration := range []string{"", "1s", "90s", "1h30m", "1.5h", ".5m", "1.s", "+5s", "1m0s", "2000ms", "-1s", "5", "1d", "1 s", "s", "1s1", "one", "+", "1S"} {
		add("duration "+strconv.Quote(duration), minimal+"signer: {timeout: "+strconv.Quote(duration)+"}\n")
	}
	text, err := json.MarshalIndent(all, "", "  ")
	require.NoError(t, err)
	path := filepath.Join("testdata", "judged.json")
	if *update {
		require.NoError(t, os.WriteFile(path, append(text, '\n'), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "go test -update writes it")
	assert.JSONEq(t, string(want), string(text), "it is stale: go test ./cmd/signet -run TestJudged -update")
}
