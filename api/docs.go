package api

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"html/template"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// The wire types are described where they are declared; the OpenAPI document says the same, because it is read from
// there.
//
//go:embed api.go gateways.go probes.go watch.go
var typesSources embed.FS

// describeTypes adds to the schemas what the comments of their Go types say, and the values that there are.
func describeTypes(schemas huma.Registry) error {
	sources, err := typesSources.ReadDir(".")
	if err != nil {
		return fmt.Errorf("list the sources of the wire types: %w", err)
	}
	var files []*ast.File
	values := make(map[string][]any) // of constants, by their type
	for _, source := range sources {
		code, err := typesSources.ReadFile(source.Name())
		if err != nil {
			return fmt.Errorf("read %s: %w", source.Name(), err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), source.Name(), code, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("read comments of %s: %w", source.Name(), err)
		}
		files = append(files, file)
		addValues(values, file)
	}
	for _, file := range files {
		describeFile(schemas, file, values)
	}
	return nil
}

func describeFile(schemas huma.Registry, file *ast.File, values map[string][]any) {
	for _, declaration := range file.Decls {
		general, ok := declaration.(*ast.GenDecl)
		if !ok || general.Tok != token.TYPE {
			continue
		}
		for _, each := range general.Specs {
			spec := each.(*ast.TypeSpec)
			shape, ok := spec.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for name, schema := range schemas.Map() {
				// A generic type has a schema for each of its forms, such as EventService. One that is embedded has
				// none, but its fields are in others.
				describe := name == spec.Name.Name || spec.TypeParams != nil && strings.HasPrefix(name, spec.Name.Name)
				if describe {
					schema.Description = text(general.Doc, spec.Doc)
				}
				if describe || spec.Name.Name == "List" && strings.HasSuffix(name, "List") {
					describeFields(schema, shape, values)
				}
			}
		}
	}
}

func describeFields(schema *huma.Schema, shape *ast.StructType, values map[string][]any) {
	for _, field := range shape.Fields.List {
		if field.Tag == nil {
			continue
		}
		tag, err := strconv.Unquote(field.Tag.Value)
		if err != nil {
			continue
		}
		name, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
		property := schema.Properties[name]
		if property == nil {
			continue
		}
		if property.Ref == "" { // nothing may stand beside a reference
			property.Description = text(field.Doc, field.Comment)
		}
		if kind, ok := field.Type.(*ast.Ident); ok && values[kind.Name] != nil {
			property.Enum = values[kind.Name]
		}
	}
}

// addValues adds the constants of each type.
func addValues(values map[string][]any, file *ast.File) {
	for _, declaration := range file.Decls {
		general, ok := declaration.(*ast.GenDecl)
		if !ok || general.Tok != token.CONST {
			continue
		}
		for _, each := range general.Specs {
			spec := each.(*ast.ValueSpec)
			kind, ok := spec.Type.(*ast.Ident)
			if !ok || len(spec.Values) != 1 {
				continue
			}
			literal, ok := spec.Values[0].(*ast.BasicLit)
			if !ok {
				continue
			}
			if value, err := strconv.Unquote(literal.Value); err == nil {
				values[kind.Name] = append(values[kind.Name], value)
			}
		}
	}
}

func text(comments ...*ast.CommentGroup) string {
	for _, comment := range comments {
		if comment != nil {
			return strings.Join(strings.Fields(comment.Text()), " ")
		}
	}
	return ""
}

//go:embed docs.html
var docsTemplate string

// docsStyle is the style of the page, which nothing else may add to.
const docsStyle = `:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}` +
	`code,pre{font-family:ui-monospace,monospace;font-size:.9em;overflow-wrap:anywhere}h2{border-top:1px solid;padding-top:1rem;margin-top:2rem}` +
	`table{border-collapse:collapse;display:block;overflow-x:auto}th,td{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent)}`

// renderDocs makes the page for people, which needs nothing but itself, and its Content-Security-Policy.
func renderDocs(api *huma.OpenAPI) (page []byte, policy string, err error) {
	type property struct{ Name, Kind, Ref, Text string }
	type schema struct {
		Name, Text string
		Properties []property
	}
	type operation struct {
		*huma.Operation
		Asks    string // the body
		Answer  string
		Streams string
	}
	var operations []operation
	for _, path := range slices.Sorted(maps.Keys(api.Paths)) {
		for _, each := range []*huma.Operation{api.Paths[path].Get, api.Paths[path].Post} {
			if each == nil {
				continue
			}
			op := operation{Operation: each}
			for kind, media := range each.Responses["200"].Content {
				_, name := kindOf(media.Schema)
				if kind == "application/json" {
					op.Answer = name
				} else {
					op.Streams = name
				}
			}
			if each.RequestBody != nil {
				_, op.Asks = kindOf(each.RequestBody.Content["application/json"].Schema)
			}
			operations = append(operations, op)
		}
	}
	var schemas []schema
	all := api.Components.Schemas.Map()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s := schema{Name: name, Text: all[name].Description}
		for _, field := range slices.Sorted(maps.Keys(all[name].Properties)) {
			p := all[name].Properties[field]
			kind, ref := kindOf(p)
			s.Properties = append(s.Properties, property{field, kind, ref, p.Description})
		}
		schemas = append(schemas, s)
	}
	parsed, err := template.New("docs").Funcs(template.FuncMap{"kind": func(s *huma.Schema) string { kind, _ := kindOf(s); return kind }}).Parse(docsTemplate)
	if err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	err = parsed.Execute(&out, map[string]any{
		"Info": api.Info, "Operations": operations, "Schemas": schemas, "Security": api.Components.SecuritySchemes, "Style": template.CSS(docsStyle), //nolint:gosec // a constant
	})
	digest := sha256.Sum256([]byte(docsStyle))
	return out.Bytes(), "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(digest[:]) + "'", err
}

// kindOf says for people of what type a schema is, and the name of the one that it refers to.
func kindOf(s *huma.Schema) (kind, ref string) {
	if s == nil {
		return "", ""
	}
	switch {
	case s.Ref != "":
		name := s.Ref[strings.LastIndex(s.Ref, "/")+1:]
		return name, name
	case s.Type == huma.TypeArray:
		kind, ref = kindOf(s.Items)
		return "list of " + kind, ref
	case len(s.Enum) > 0:
		var words []string
		for _, value := range s.Enum {
			words = append(words, fmt.Sprint(value))
		}
		return strings.Join(words, " | "), ""
	case s.Format != "":
		return s.Type + " (" + s.Format + ")", ""
	}
	return s.Type, ""
}
