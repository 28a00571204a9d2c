package main

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "github.com/signet-ca/signet"

// listed is what `go list -json` says of a package.
type listed struct {
	Dir, ImportPath, Name string
	Standard              bool
	GoFiles               []string
	Imports               []string
	TestImports           []string
	XTestImports          []string
	Deps                  []string
}

func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=Dir,ImportPath,Name,Standard,GoFiles,Imports,TestImports,XTestImports,Deps"}, args...)...)
	command.Dir = filepath.Join("..", "..")
	out, err := command.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		require.NoError(t, err, string(exit.Stderr))
	}
	require.NoError(t, err)
	var all []listed
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := decoder.Decode(&p)
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		all = append(all, p)
	}
	require.NotEmpty(t, all)
	return all
}

// room is the first folder of one of our packages, "" for others'.
func room(importPath string) string {
	inside, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	room, rest, _ := strings.Cut(inside, "/")
	if room == "cmd" {
		command, _, _ := strings.Cut(rest, "/")
		return "cmd/" + command
	}
	return room
}

// TestImportsPointOneWay: cmd → {ca, rotation, api} → signer → issuer.
func TestImportsPointOneWay(t *testing.T) {
	may := map[string][]string{
		"setting":       nil,
		"version":       nil,
		"release":       nil,
		"watches":       nil,
		"issuer":        {"setting", "watches"},
		"signer":        {"setting", "issuer"},
		"ca":            {"setting", "watches", "issuer", "signer", "ca"},
		"rotation":      {"setting", "issuer", "signer"},
		"api":           {"setting", "watches", "api"},
		"cmd/signet":    {"setting", "issuer", "signer", "ca", "rotation", "api", "version"},
		"cmd/signetctl": {"setting", "api", "version"},
	}
	for _, p := range goList(t, "./...") {
		allowed, ok := may[room(p.ImportPath)]
		if !assert.True(t, ok, "package %s is in a room that this test doesn't know", p.ImportPath) {
			continue
		}
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if to := room(imported); to != "" && imported != p.ImportPath {
				assert.Contains(t, allowed, to, "%s imports %s", p.ImportPath, imported)
			}
		}
	}
}

// TestForeignImports: what stays out of the product, and what stays in one room.
func TestForeignImports(t *testing.T) {
	// Where a package, or what is below it, may be imported by the product itself.
	only := map[string][]string{
		"google.golang.org/grpc":                {"ca"},
		"istio.io/api":                          {"ca"},
		"flag":                                  {"cmd/signet", "release"},
		"os/signal":                             {"cmd/signet", "cmd/signetctl"},
		"github.com/stretchr/testify":           {},
		"k8s.io/client-go/tools/leaderelection": {"cmd/signet"},
	}
	for _, p := range goList(t, "./...") {
		for _, dep := range p.Deps {
			assert.False(t, dep == "istio.io/istio" || strings.HasPrefix(dep, "istio.io/istio/"), "%s depends on %s", p.ImportPath, dep)
			assert.NotEqual(t, "testing", dep, "%s depends on it outside of its tests", p.ImportPath)
		}
		for _, imported := range p.Imports {
			for prefix, rooms := range only {
				if imported == prefix || strings.HasPrefix(imported, prefix+"/") {
					assert.Contains(t, rooms, room(p.ImportPath), "%s imports %s", p.ImportPath, imported)
				}
			}
		}
	}
}

// TestPackageComments: every package has one, in one file, and it begins as godoc wants.
func TestPackageComments(t *testing.T) {
	for _, p := range goList(t, "./...") {
		var comments []string
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			require.NoError(t, err)
			if file.Doc != nil {
				comments = append(comments, file.Doc.Text())
			}
		}
		if !assert.Len(t, comments, 1, "package %s must have one package comment", p.ImportPath) {
			continue
		}
		begins := "Package " + p.Name + " "
		if p.Name == "main" {
			name := filepath.Base(p.ImportPath)
			begins = strings.ToUpper(name[:1]) + name[1:] + " "
		}
		assert.True(t, strings.HasPrefix(comments[0], begins), "the comment of %s must begin with %q", p.ImportPath, begins)
	}
}

// TestExportedAreCommented: what another package can use says what it is.
func TestExportedAreCommented(t *testing.T) {
	for _, p := range goList(t, "./...") {
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments)
			require.NoError(t, err)
			for _, declaration := range file.Decls {
				switch d := declaration.(type) {
				case *ast.FuncDecl:
					if d.Name.IsExported() && (d.Recv == nil || receiverExported(d)) && !slices.Contains(wellKnown, d.Name.Name) {
						assert.NotNil(t, d.Doc, "%s: func %s has no comment", p.ImportPath, d.Name)
					}
				case *ast.GenDecl:
					for _, spec := range d.Specs {
						if s, ok := spec.(*ast.TypeSpec); ok && s.Name.IsExported() {
							assert.True(t, d.Doc != nil || s.Doc != nil, "%s: type %s has no comment", p.ImportPath, s.Name)
						}
					}
				}
			}
		}
	}
}

// wellKnown methods say what they do by their name.
var wellKnown = []string{"Error", "Unwrap", "String"}

func receiverExported(d *ast.FuncDecl) bool {
	of := d.Recv.List[0].Type
	if pointer, ok := of.(*ast.StarExpr); ok {
		of = pointer.X
	}
	id, ok := of.(*ast.Ident)
	return ok && id.IsExported()
}
