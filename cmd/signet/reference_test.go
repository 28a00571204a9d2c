package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

// described is one setting, or a group of them, as the reference tells of it. What it is comes from the type, what
// it is for from the comment, and which values are right from the loader, which is asked.
type described struct {
	path    string // in the file: ca.rules[].issuer.name; "" for the whole
	name    string // the last part of it
	goName  string
	typ     reflect.Type      // of one value: without pointer and, for a list of groups, without the slice
	list    bool              // of groups
	comment string            // of the field
	more    string            // the comment of a group's type
	fields  []*described      // of a group
	beside  map[string]string // the names in the file of the other fields of its group, by those in Go

	required    bool
	least, most string   // of a whole number or a duration, as the loader says
	values      []string // that a text may have, as the loader says; none where there is no closed set
}

func (d *described) group() bool { return len(d.fields) > 0 }

// each calls do for what is below d, in the order of the declarations.
func (d *described) each(do func(*described)) {
	for _, field := range d.fields {
		do(field)
		field.each(do)
	}
}

// The source and what was learnt of the configuration, once for all tests, none of which runs beside another.
var (
	source     = sources{packages: map[string][]*ast.File{}}
	wholeKnown *described
)

// describeConfig reads the declarations and asks the loader.
func describeConfig(t *testing.T) *described {
	t.Helper()
	if wholeKnown != nil {
		return wholeKnown
	}
	root := &described{typ: reflect.TypeFor[Config]()}
	source.describe(t, root, nil)
	root.each(func(d *described) {
		switch {
		case d.group():
		case d.typ == reflect.TypeFor[setting.Duration]():
			d.askRange(t, "-1ns")
		case d.typ.Kind() == reflect.Int:
			d.askRange(t, -1)
		default:
			d.askValues(t)
		}
	})
	wholeKnown = root
	return root
}

// sources are the parsed files of this module's packages.
type sources struct {
	packages map[string][]*ast.File
}

func (s sources) files(t *testing.T, importPath string) []*ast.File {
	if files, ok := s.packages[importPath]; ok {
		return files
	}
	if importPath == "main" {
		importPath = module + "/cmd/signet"
	}
	dir := filepath.Join("..", "..", strings.TrimPrefix(importPath, module))
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		require.NoError(t, err)
		s.packages[importPath] = append(s.packages[importPath], file)
	}
	return s.packages[importPath]
}

// declaration is that of a struct type, with its comment.
func (s sources) declaration(t *testing.T, of reflect.Type) (*ast.StructType, string) {
	for _, file := range s.files(t, of.PkgPath()) {
		for _, d := range file.Decls {
			general, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range general.Specs {
				if declared, ok := spec.(*ast.TypeSpec); ok && declared.Name.Name == of.Name() {
					structure, ok := declared.Type.(*ast.StructType)
					require.True(t, ok, "%s is no struct", of)
					return structure, general.Doc.Text()
				}
			}
		}
	}
	require.Fail(t, "no declaration", "of %s", of)
	return nil, ""
}

// describe fills in what is below d. A type without a name has its declaration in that of the field.
func (s sources) describe(t *testing.T, d *described, declared *ast.StructType) {
	if d.typ.Name() != "" {
		declared, d.more = s.declaration(t, d.typ)
	}
	comments, types, names := map[string]string{}, map[string]*ast.StructType{}, map[string]string{}
	for _, field := range declared.Fields.List {
		for _, name := range field.Names {
			comments[name.Name] = field.Doc.Text()
			types[name.Name], _ = field.Type.(*ast.StructType)
		}
	}
	for field := range fieldsOf(d.typ) {
		name := jsonName(field)
		if name == "-" {
			continue
		}
		require.NotEmpty(t, name, "%s.%s has no name in the file", d.typ, field.Name)
		f := &described{
			path: strings.TrimPrefix(d.path+"."+name, "."), name: name, goName: field.Name, typ: field.Type,
			comment: comments[field.Name], required: !strings.Contains(field.Tag.Get("json"), ",omitempty"),
			beside: names,
		}
		if names[field.Name] = name; f.typ.Kind() == reflect.Pointer {
			f.typ = f.typ.Elem()
		}
		if f.typ.Kind() == reflect.Slice && f.typ.Elem().Kind() == reflect.Struct {
			f.path, f.typ, f.list = f.path+"[]", f.typ.Elem(), true
		}
		if f.typ.Kind() == reflect.Struct && f.typ != reflect.TypeFor[setting.Duration]() {
			s.describe(t, f, types[field.Name])
		}
		d.fields = append(d.fields, f)
	}
}

// with is a file in which the setting at path has a value; each list on the way has one entry. What has to be there
// for others to be looked at is there.
func with(path string, value any) map[string]any {
	file := map[string]any{"issuer": map[string]any{"name": "mesh"}, "roots": map[string]any{"file": "roots.pem"}}
	at := file
	parts := strings.Split(path, ".")
	for _, part := range parts[:len(parts)-1] {
		name, list := strings.CutSuffix(part, "[]")
		below, ok := at[name].(map[string]any)
		if !ok {
			below = map[string]any{}
		}
		if at[name] = below; list {
			at[name] = []any{below}
		}
		at = below
	}
	at[parts[len(parts)-1]] = value
	return file
}

// complaints are what the loader has against a value at path, without the path; none when it has nothing.
func complaints(t *testing.T, path string, value any) []string {
	t.Helper()
	text, err := json.Marshal(with(path, value))
	require.NoError(t, err)
	_, err = ParseConfig(text)
	if err == nil {
		return nil
	}
	var found []string
	at := regexp.MustCompile(`^` + strings.ReplaceAll(regexp.QuoteMeta(path), `\[\]`, `\[0\]`) + `(?:\[0\])?: (.*)$`)
	for line := range strings.Lines(err.Error()) {
		if match := at.FindStringSubmatch(strings.TrimSuffix(line, "\n")); match != nil {
			found = append(found, match[1])
		}
	}
	return found
}

var outOfRange = regexp.MustCompile(`is out of range; it must be between (\S+) and (\S+)$`)

// askRange learns the bounds of a setting from how the loader refuses what is below any.
func (d *described) askRange(t *testing.T, below any) {
	for _, complaint := range complaints(t, d.path, below) {
		if match := outOfRange.FindStringSubmatch(complaint); match != nil {
			d.least, d.most = short(match[1]), short(match[2])
		}
	}
}

// short is a duration without the units that are zero at its end; other text is left as it is.
func short(text string) string {
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

var (
	closedSet = regexp.MustCompile(`; (?:it must be|they are) ([\w-]+(?:, [\w-]+)*(?: or [\w-]+)?|\[(?:"[^"]*" ?)+\])$`)
	separator = regexp.MustCompile(`, | or |" "`)
)

// askValues learns the closed set of a text's values from how the loader refuses another one, and believes it only
// when it takes each of them.
func (d *described) askValues(t *testing.T) {
	value := func(text string) any {
		if d.typ.Kind() == reflect.Slice {
			return []string{text}
		}
		return text
	}
	if d.typ.Kind() != reflect.String && d.typ.Kind() != reflect.Slice {
		return
	}
	refuses := func(text string) bool {
		return slices.ContainsFunc(complaints(t, d.path, value(text)), func(complaint string) bool {
			return strings.HasPrefix(complaint, fmt.Sprintf("%q is ", text)) && closedSet.MatchString(complaint)
		})
	}
	for _, complaint := range complaints(t, d.path, value("no such value")) {
		match := closedSet.FindStringSubmatch(complaint)
		if match == nil {
			continue
		}
		for _, one := range separator.Split(strings.Trim(match[1], `[]"`), -1) {
			if !assert.False(t, refuses(one), "%s: the loader names %q and refuses it", d.path, one) {
				return
			}
			if upper := strings.ToUpper(one); upper != one && !refuses(upper) {
				d.values = nil // it is more than these
				return
			}
			d.values = append(d.values, one)
		}
	}
}

// TestReference holds docs/configuration.md and the chart's schema of config to the declarations.
func TestReference(t *testing.T) {
	root := describeConfig(t)
	t.Run("docs/configuration.md", func(t *testing.T) {
		path := filepath.Join("..", "..", "docs", "configuration.md")
		text := root.markdown(t)
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err, "go test -update writes it")
		assert.True(t, string(want) == text, "docs/configuration.md is stale: go test ./cmd/signet -run TestReference -update")
	})
	t.Run("values.schema.json", func(t *testing.T) {
		path := filepath.Join("..", "..", "deploy", "chart", "signet", "values.schema.json")
		schema := root.schema(t)
		if *update {
			updateSchema(t, path, schema)
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		var file struct {
			Definitions struct{ Config any }
		}
		require.NoError(t, json.Unmarshal(want, &file))
		written, err := json.Marshal(schema)
		require.NoError(t, err)
		var got any
		require.NoError(t, json.Unmarshal(written, &got))
		assert.True(t, reflect.DeepEqual(file.Definitions.Config, got), "definitions.config is stale: go test ./cmd/signet -run TestReference -update")
	})
}

// TestReferenceIsComplete: each setting has a comment that says whether it must be set, or what holds when it isn't.
func TestReferenceIsComplete(t *testing.T) {
	root := describeConfig(t)
	count := 0
	root.each(func(d *described) {
		count++
		if !assert.NotEmpty(t, d.comment, "%s has no comment", d.path) {
			return
		}
		assert.True(t, strings.HasPrefix(d.comment, d.goName+" ") || strings.Contains(strings.SplitN(d.comment, ".", 2)[0], d.goName), "%s: its comment does not begin with %s", d.path, d.goName)
		if d.group() && !d.list {
			return // what is in it says so
		}
		_, found := defaultOf(d.comment)
		said := 0
		for _, one := range []bool{found, required.MatchString(d.comment), optional.MatchString(d.comment)} {
			if one {
				said++
			}
		}
		assert.Equal(t, 1, said, "%s: its comment must have one sentence that is Required or Optional, or begins with Default: %q", d.path, d.comment)
		assert.Equal(t, d.required, required.MatchString(d.comment), "%s: its comment and its tag differ on whether it is required", d.path)
		if d.typ.Kind() == reflect.Int || d.typ == reflect.TypeFor[setting.Duration]() {
			assert.NotEmpty(t, d.most, "%s: the loader names no bounds", d.path)
		}
	})
	assert.Greater(t, count, 150)
}

// TestReferenceDefaults: what a comment calls the default is a value that the loader takes there, within the bounds.
func TestReferenceDefaults(t *testing.T) {
	checked := 0
	describeConfig(t).each(func(d *described) {
		text, ok := defaultOf(d.comment)
		if !ok || d.group() {
			return
		}
		first, _, _ := strings.Cut(strings.TrimRight(text, ".:;, "), " ")
		first = strings.TrimRight(first, ",:;")
		var value any = first
		switch {
		case d.typ == reflect.TypeFor[setting.Duration]():
			if _, err := time.ParseDuration(first); err != nil {
				return // none, or it depends on another
			}
		case d.typ.Kind() == reflect.Int:
			var number int
			_, err := fmt.Sscan(first, &number)
			require.NoError(t, err, "%s: its default is no number: %q", d.path, text)
			value = number
		case d.typ.Kind() == reflect.Bool:
			assert.Equal(t, "false", first, "%s: the zero value is the default", d.path)
			value = false
		case len(d.values) > 0 && d.typ.Kind() == reflect.String:
			assert.Contains(t, d.values, first, d.path)
		default:
			return
		}
		checked++
		assert.Empty(t, complaints(t, d.path, value), "%s: the loader refuses its default", d.path)
	})
	assert.Greater(t, checked, 60)
}

// TestReferenceUnknownFields: there is no group in which the loader takes a field that the reference doesn't name.
func TestReferenceUnknownFields(t *testing.T) {
	root := describeConfig(t)
	refused := func(path string) {
		text, err := json.Marshal(with(strings.TrimPrefix(path+".nosuchfield", "."), true))
		require.NoError(t, err)
		_, err = ParseConfig(text)
		assert.ErrorContains(t, err, "nosuchfield: unknown field", path)
	}
	refused("")
	root.each(func(d *described) {
		if d.group() {
			refused(d.path)
		}
	})
}

// TestExamples: the examples of the reference load.
func TestExamples(t *testing.T) {
	for _, name := range []string{"minimal.yaml", "production.yaml"} {
		text, err := os.ReadFile(filepath.Join("testdata", "example", name))
		require.NoError(t, err)
		_, err = ParseConfig(text)
		assert.NoError(t, err, name)
	}
}
