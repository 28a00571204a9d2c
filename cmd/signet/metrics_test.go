package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMetricsDocument: docs/metrics.md lists every metric that the source registers. What a replica really exports is
// compared with it in test/e2e, and what alerts and dashboard ask for in test/prometheus.
func TestMetricsDocument(t *testing.T) {
	var metrics []metric
	prefixes, labels := make(map[string]bool), make(map[string]bool)
	for _, p := range goList(t, "./...") {
		for _, name := range p.GoFiles {
			f := &metricsFile{t: t, folder: strings.TrimPrefix(p.ImportPath, module+"/"), name: name}
			f.read(filepath.Join(p.Dir, name))
			metrics = append(metrics, f.metrics...)
			for _, prefix := range f.prefixes {
				prefixes[p.ImportPath+" "+prefix] = true
			}
			for _, label := range f.wrapped {
				labels[p.ImportPath+" "+label] = true
			}
		}
	}
	require.Greater(t, len(metrics), 80)
	// What is put before names and added to labels where they are registered; another one belongs into registered too.
	assert.Equal(t, map[string]bool{
		module + "/cmd/signet signet_": true, module + "/api api_": true, module + "/ca remote_": true, module + "/ca oidc_": true,
	}, prefixes)
	assert.Equal(t, map[string]bool{module + "/ca/presence cluster": true, module + "/ca cluster": true, module + "/ca issuer": true}, labels)

	var text strings.Builder
	text.WriteString(metricsHead)
	folder := ""
	for _, m := range registered(metrics) {
		if m.folder != folder {
			folder = m.folder
			fmt.Fprintf(&text, "\n## %s\n| metric | type | labels | what it says |\n|---|---|---|---|\n", folder)
		}
		fmt.Fprintf(&text, "| `%s` | %s | %s | %s |\n", m.name, m.kind, strings.Join(m.labels, ", "), m.help)
	}
	text.WriteString(metricsOfLibraries)
	golden := filepath.Join("..", "..", "docs", "metrics.md")
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(text.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), text.String(), "go test ./cmd/signet -run TestMetricsDocument -update writes it anew")
}

const metricsHead = `# Metrics
<!-- Made from the source by cmd/signet/metrics_test.go; go test ./cmd/signet -run TestMetricsDocument -update writes it anew. -->

What each replica tells at ` + "`/metrics`" + ` on port 9402, by the package that it is from. What is measured where something isn't
configured is absent. Gauges of what only the holder of the lease knows are 0 or absent elsewhere, so that their
maximum over the replicas is right. Each replica counts what it did itself, except where the text says otherwise.

Prometheus adds ` + "`namespace`" + `, ` + "`pod`" + ` and others, which are Signet's own. A label ` + "`namespace`" + ` of a metric itself becomes
` + "`exported_namespace`" + ` by that, unless ` + "`honorLabels`" + ` is set, which the chart leaves alone. The alerts and what to do about each
are in [alerts.md](alerts.md).
`

const metricsOfLibraries = `
## libraries
Those of the Go runtime, the process and the Kubernetes client are there as well. Alerts and dashboard use these:

| metric | type | labels | what it says |
|---|---|---|---|
| ` + "`go_goroutines`" + ` | gauge |  | Goroutines. |
| ` + "`leader_election_master_status`" + ` | gauge | name | 1 on the replica that holds the lease of this name, else 0; Signet's is signet. |
| ` + "`process_cpu_seconds_total`" + ` | counter |  | CPU time that was used. |
| ` + "`process_resident_memory_bytes`" + ` | gauge |  | Memory that is used. |
| ` + "`rest_client_requests_total`" + ` | counter | code, host, method | Requests to the API server, by HTTP status or &lt;error&gt;. |
`

// metric is one that the source registers.
type metric struct {
	folder, function, name, kind, help string
	labels                             []string
}

// registered adds what is put before the names, and those that are registered once more for something else.
func registered(metrics []metric) []metric {
	var all []metric
	add := func(m metric, prefix string, label ...string) {
		m.name, m.labels = "signet_"+prefix+m.name, slices.Sorted(slices.Values(slices.Concat(m.labels, label)))
		all = append(all, m)
	}
	for _, m := range metrics {
		switch m.folder {
		case "api":
			add(m, "api_")
		case "ca/presence":
			add(m, "", "cluster")
		default:
			add(m, "")
		}
		switch m.function {
		case "newReviewMetrics", "watchQueue": // for each remote cluster
			add(m, "remote_", "cluster")
		case "newKeysMetrics": // for each OIDC issuer
			add(m, "oidc_", "issuer")
		}
	}
	slices.SortFunc(all, func(a, b metric) int {
		return strings.Compare(a.folder+" "+a.name, b.folder+" "+b.name)
	})
	return all
}

// metricsFile is one file of the source, searched for metrics. It fails on what it doesn't understand.
type metricsFile struct {
	t            *testing.T
	folder, name string
	file         *ast.File
	metrics      []metric
	prefixes     []string // put before names in this file
	wrapped      []string // labels added in it
}

func (f *metricsFile) read(path string) {
	var err error
	f.file, err = parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	require.NoError(f.t, err)
	for _, declared := range f.file.Decls {
		function, _ := declared.(*ast.FuncDecl)
		name := ""
		if function != nil {
			name = function.Name.Name
		}
		ast.Inspect(declared, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				f.call(call, declared, name)
			}
			return true
		})
	}
}

// call adds the metrics that a call of the library makes.
func (f *metricsFile) call(call *ast.CallExpr, within ast.Node, function string) {
	made, ok := ofPrometheus(call.Fun)
	if !ok {
		return
	}
	switch made {
	case "WrapRegistererWithPrefix":
		f.prefixes = append(f.prefixes, f.text(call.Args[0]))
		return
	case "WrapRegistererWith":
		f.wrapped = append(f.wrapped, f.keys(call.Args[0], within)...)
		return
	case "NewDesc":
		kind := "gauge"
		if f.histogram(call) {
			kind = "histogram"
		}
		f.metrics = append(f.metrics, metric{f.folder, function, f.text(call.Args[0]), kind, f.text(call.Args[1]), f.list(call.Args[2])})
		require.Equal(f.t, "nil", call.Args[3].(*ast.Ident).Name, "%s/%s: constant labels of a description", f.folder, f.name)
		return
	}
	kind, ok := map[string]string{"Counter": "counter", "Gauge": "gauge", "Histogram": "histogram"}[strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(made, "New"), "Vec"), "Func")]
	if !ok {
		require.NotRegexp(f.t, `^New(Summary|Untyped|Counter|Gauge|Histogram)`, made, "%s/%s: metrics of this kind aren't known here", f.folder, f.name)
		return
	}
	m := metric{folder: f.folder, function: function, kind: kind}
	options, ok := call.Args[0].(*ast.CompositeLit)
	require.True(f.t, ok, "%s/%s: the options of %s aren't written out", f.folder, f.name, made)
	var name, help ast.Expr
	for _, element := range options.Elts {
		pair := element.(*ast.KeyValueExpr)
		switch pair.Key.(*ast.Ident).Name {
		case "Name":
			name = pair.Value
		case "Help":
			help = pair.Value
		case "ConstLabels":
			m.labels = f.keys(pair.Value, within)
		case "Namespace", "Subsystem":
			f.t.Errorf("%s/%s: the name of a metric has parts", f.folder, f.name)
		}
	}
	if strings.HasSuffix(made, "Vec") {
		m.labels = append(m.labels, f.list(call.Args[1])...)
	}
	if named, ok := name.(*ast.Ident); ok { // made by a little function that is given name and help
		f.metrics = append(f.metrics, f.calls(named.Name, m, within)...)
		return
	}
	m.name, m.help = f.text(name), f.text(help)
	f.metrics = append(f.metrics, m)
}

// calls are the metrics that a function literal makes, which is assigned to a variable within a declaration and whose
// first parameters are name and help.
func (f *metricsFile) calls(parameter string, like metric, within ast.Node) []metric {
	var found []metric
	ast.Inspect(within, func(n ast.Node) bool {
		assigned, ok := n.(*ast.AssignStmt)
		if !ok || len(assigned.Rhs) != 1 {
			return true
		}
		literal, ok := assigned.Rhs[0].(*ast.FuncLit)
		if !ok || len(literal.Type.Params.List) == 0 || literal.Type.Params.List[0].Names[0].Name != parameter || !makes(literal, like.kind) {
			return true
		}
		variable := assigned.Lhs[0].(*ast.Ident).Name
		ast.Inspect(within, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if called, ok := call.Fun.(*ast.Ident); ok && called.Name == variable {
				m := like
				m.name, m.help = f.text(call.Args[0]), f.text(call.Args[1])
				found = append(found, m)
			}
			return true
		})
		return true
	})
	require.NotEmpty(f.t, found, "%s/%s: where the name of a metric is from isn't understood", f.folder, f.name)
	return found
}

// makes says whether a function makes metrics of a kind.
func makes(function *ast.FuncLit, kind string) (makes bool) {
	ast.Inspect(function, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			made, _ := ofPrometheus(call.Fun)
			makes = makes || strings.HasPrefix(strings.ToLower(made), "new"+kind)
		}
		return true
	})
	return makes
}

// histogram says whether the description is that of a histogram: its variable is passed to MustNewConstHistogram.
func (f *metricsFile) histogram(description *ast.CallExpr) (is bool) {
	variable := ""
	ast.Inspect(f.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			for i, value := range n.Values {
				if value == description {
					variable = n.Names[i].Name
				}
			}
		case *ast.CallExpr:
			switch made, _ := ofPrometheus(n.Fun); made {
			case "MustNewConstMetric":
				kind, _ := ofPrometheus(n.Args[1])
				require.Equal(f.t, "GaugeValue", kind, "%s/%s: constant metrics are gauges", f.folder, f.name)
			case "MustNewConstHistogram":
				is = is || variable != "" && n.Args[0].(*ast.Ident).Name == variable
			}
		}
		return true
	})
	return is
}

// ofPrometheus is what an expression names in the library.
func ofPrometheus(e ast.Expr) (name string, ok bool) {
	selected, ok := e.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	from, ok := selected.X.(*ast.Ident)
	return selected.Sel.Name, ok && from.Name == "prometheus"
}

func (f *metricsFile) text(e ast.Expr) string {
	literal, ok := e.(*ast.BasicLit)
	require.True(f.t, ok && literal.Kind == token.STRING, "%s/%s: a name, help or label of a metric isn't written out", f.folder, f.name)
	text, err := strconv.Unquote(literal.Value)
	require.NoError(f.t, err)
	return text
}

// list are the texts in a slice; nil has none.
func (f *metricsFile) list(e ast.Expr) []string {
	literal, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil
	}
	var all []string
	for _, element := range literal.Elts {
		all = append(all, f.text(element))
	}
	return all
}

// keys are those of labels that are written out, or in a variable within a declaration.
func (f *metricsFile) keys(e ast.Expr, within ast.Node) []string {
	if variable, ok := e.(*ast.Ident); ok {
		ast.Inspect(within, func(n ast.Node) bool {
			if assigned, ok := n.(*ast.AssignStmt); ok && len(assigned.Lhs) == 1 {
				if to, ok := assigned.Lhs[0].(*ast.Ident); ok && to.Name == variable.Name {
					e = assigned.Rhs[0]
				}
			}
			return true
		})
	}
	literal, ok := e.(*ast.CompositeLit)
	require.True(f.t, ok, "%s/%s: labels aren't written out", f.folder, f.name)
	var all []string
	for _, element := range literal.Elts {
		all = append(all, f.text(element.(*ast.KeyValueExpr).Key))
	}
	return all
}
