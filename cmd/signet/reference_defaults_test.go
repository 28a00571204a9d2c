package main

import (
	"go/ast"
	"go/token"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/signet-ca/signet/setting"
)

// TestReferenceDefaultsOfCode: the number or duration that a comment calls the default is the constant that the code puts
// there. A field is known by its name and package only, so where two of a package are called the same, either's default passes.
func TestReferenceDefaultsOfCode(t *testing.T) {
	inPackage := map[string]map[string]map[string]bool{}
	known := func(importPath, field string) map[string]bool {
		if _, ok := inPackage[importPath]; !ok {
			inPackage[importPath] = defaultsInCode(source.files(t, importPath))
		}
		return inPackage[importPath][field]
	}
	checked := 0
	var visit func(d *described, declaredIn string)
	visit = func(d *described, declaredIn string) {
		if d.typ.PkgPath() != "" {
			declaredIn = d.typ.PkgPath()
		}
		for _, field := range d.fields {
			if field.group() {
				visit(field, declaredIn)
				continue
			}
			text, _ := defaultOf(field.comment)
			first, _, _ := strings.Cut(text, " ")
			first = strings.TrimRight(first, ",:;")
			if field.typ == reflect.TypeFor[setting.Duration]() {
				length, err := time.ParseDuration(first)
				if err != nil {
					continue // none, or it depends on another
				}
				first = length.String()
			} else if field.typ.Kind() != reflect.Int {
				continue
			}
			found := known(declaredIn, field.goName)
			if len(found) == 0 {
				found = known("main", field.goName)
			}
			if len(found) == 0 {
				continue // the code says it in another way
			}
			checked++
			assert.Contains(t, found, first, "%s: what its comment says isn't what the code of %s does", field.path, declaredIn)
		}
	}
	visit(describeConfig(t), "")
	assert.Greater(t, checked, 40)
}

// defaultsInCode are the constants that stand in for fields where they aren't set, by the fields' names:
//
//	c.Field.Or(constant)
//	or(c.Field, constant)
//	c.Field = constant
func defaultsInCode(files []*ast.File) map[string]map[string]bool {
	constants, found := map[string]ast.Expr{}, map[string]map[string]bool{}
	for _, file := range files {
		for _, d := range file.Decls {
			general, ok := d.(*ast.GenDecl)
			if !ok || general.Tok != token.CONST {
				continue
			}
			for _, spec := range general.Specs {
				if value, ok := spec.(*ast.ValueSpec); ok && len(value.Names) == len(value.Values) {
					for n, name := range value.Names {
						constants[name.Name] = value.Values[n]
					}
				}
			}
		}
	}
	add := func(of, value ast.Expr) {
		selector, ok := of.(*ast.SelectorExpr)
		if !ok {
			return
		}
		field := selector.Sel.Name
		if text, ok := constantText(value, constants); ok && text != "0" && text != "0s" && text != "" {
			if found[field] == nil {
				found[field] = map[string]bool{}
			}
			found[field][text] = true
		}
	}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if method, ok := n.Fun.(*ast.SelectorExpr); ok && method.Sel.Name == "Or" && len(n.Args) == 1 {
					add(method.X, n.Args[0])
				}
				if len(n.Args) == 2 {
					add(n.Args[0], n.Args[1])
				}
			case *ast.AssignStmt:
				if n.Tok == token.ASSIGN && len(n.Lhs) == 1 && len(n.Rhs) == 1 {
					add(n.Lhs[0], n.Rhs[0])
				}
			}
			return true
		})
	}
	return found
}

// constantText is a constant as configuration writes it: a number, a text, or a duration. Of min(a, b) it is a.
func constantText(e ast.Expr, constants map[string]ast.Expr) (string, bool) {
	if length, ok := constantDuration(e, constants); ok {
		return length.String(), true
	}
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil {
			return text, true
		}
		return strings.ReplaceAll(e.Value, "_", ""), true
	case *ast.Ident:
		if of, ok := constants[e.Name]; ok {
			return constantText(of, constants)
		}
	case *ast.CompositeLit: // a list of one
		if len(e.Elts) == 1 {
			return constantText(e.Elts[0], constants)
		}
	}
	return "", false
}

var units = map[string]time.Duration{"Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute, "Hour": time.Hour}

func constantDuration(e ast.Expr, constants map[string]ast.Expr) (time.Duration, bool) {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		if of, ok := e.X.(*ast.Ident); ok && of.Name == "time" {
			unit, ok := units[e.Sel.Name]
			return unit, ok
		}
	case *ast.BinaryExpr:
		unit, ok := constantDuration(e.Y, constants)
		number, err := strconv.ParseInt(productText(e.X), 10, 64)
		return time.Duration(number) * unit, ok && err == nil && e.Op == token.MUL
	case *ast.CallExpr:
		if of, ok := e.Fun.(*ast.Ident); ok && of.Name == "min" {
			return constantDuration(e.Args[0], constants)
		}
	case *ast.Ident:
		if of, ok := constants[e.Name]; ok {
			return constantDuration(of, constants)
		}
	}
	return 0, false
}

// productText is a number, or the product of some.
func productText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		return strings.ReplaceAll(e.Value, "_", "")
	case *ast.BinaryExpr:
		a, errA := strconv.ParseInt(productText(e.X), 10, 64)
		b, errB := strconv.ParseInt(productText(e.Y), 10, 64)
		if errA == nil && errB == nil && e.Op == token.MUL {
			return strconv.FormatInt(a*b, 10)
		}
	}
	return ""
}
