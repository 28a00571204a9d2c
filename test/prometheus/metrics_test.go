package prometheus

import (
	"go/ast"
	goparser "go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// metric is one that may be asked for.
type metric struct {
	folder string // of the package that tells it, below the repository's root
	kind   string
	labels []string
}

// fromOthers are those of others.
var fromOthers = map[string]metric{
	"kube_statefulset_replicas": {kind: "gauge", labels: []string{"namespace", "statefulset"}},                    // kube-state-metrics
	"ALERTS":                    {kind: "gauge", labels: []string{"alertname", "alertstate", "severity", "kind"}}, // Prometheus
}

// ofTarget are the labels that Prometheus adds.
var ofTarget = []string{"namespace", "pod", "instance", "job", "service", "container", "endpoint"}

var metricRow = regexp.MustCompile("^\\| `([a-z_]+)` \\| ([a-z]+) \\| ([a-z_, ]*) \\|")

// known are the metrics in docs/metrics.md, which tests hold to the source and to what a running Signet exports; and those
// of others.
func known(t *testing.T) map[string]metric {
	t.Helper()
	text, err := os.ReadFile(root + "/docs/metrics.md")
	require.NoError(t, err)
	all, folder := make(map[string]metric), ""
	for line := range strings.Lines(string(text)) {
		if head, ok := strings.CutPrefix(line, "## "); ok {
			if folder = strings.TrimSpace(head); folder == "libraries" {
				folder = "cmd/signet"
			}
		}
		if row := metricRow.FindStringSubmatch(line); row != nil {
			all[row[1]] = metric{folder, row[2], strings.FieldsFunc(row[3], func(r rune) bool { return r == ',' || r == ' ' })}
		}
	}
	require.Greater(t, len(all), 80)
	maps.Copy(all, fromOthers)
	return all
}

// quiet takes note of failures only.
type quiet struct{ failed bool }

func (q *quiet) Errorf(string, ...any) { q.failed = true }
func (q *quiet) FailNow()              { q.failed = true }

// checker looks at expressions.
type checker struct {
	t       require.TestingT
	metrics map[string]metric
	parsed  map[string][]*ast.File     // by folder
	texts   map[string]map[string]bool // by folder
	asked   map[string]bool            // metrics
}

func newChecker(t *testing.T) *checker {
	return &checker{t: t, metrics: known(t), parsed: make(map[string][]*ast.File), texts: make(map[string]map[string]bool), asked: make(map[string]bool)}
}

// check parses an expression: it asks for metrics that exist, by labels and values that they can have. It returns the
// labels that the result may have.
func (c *checker) check(where, expression string) map[string]bool {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if !assert.NoError(c.t, err, where) {
		return nil
	}
	return c.labelsOf(where, expr)
}

// labelsOf checks an expression, and returns the labels that its result may have.
func (c *checker) labelsOf(where string, node parser.Node) map[string]bool {
	have := make(map[string]bool)
	for child := range parser.ChildrenIter(node) {
		for name := range c.labelsOf(where, child) {
			have[name] = true
		}
	}
	want := func(names []string) {
		for _, name := range names {
			assert.True(c.t, have[name], "%s: %s: nothing has the label %s", where, node, name)
		}
	}
	switch n := node.(type) {
	case *parser.VectorSelector:
		return c.selector(where, n)
	case *parser.AggregateExpr:
		want(n.Grouping)
		if !n.Without {
			clear(have)
			for _, name := range n.Grouping {
				have[name] = true
			}
		}
	case *parser.BinaryExpr:
		if n.VectorMatching != nil {
			for _, side := range []parser.Expr{n.LHS, n.RHS} {
				of := c.quietly(side)
				for _, name := range n.VectorMatching.MatchingLabels {
					assert.True(c.t, of[name], "%s: %s doesn't have the label %s", where, side, name)
				}
			}
			want(n.VectorMatching.Include)
		}
	case *parser.Call:
		switch n.Func.Name {
		case "label_replace":
			have[n.Args[1].(*parser.StringLiteral).Val] = true
		case "absent":
			clear(have)
		}
		if n.Func.Name == "histogram_quantile" {
			assert.True(c.t, have["le"], "%s: %s: quantile without le", where, node)
		}
	}
	return have
}

// quietly are the labels of an expression that is checked elsewhere.
func (c *checker) quietly(node parser.Node) map[string]bool {
	return (&checker{new(quiet), c.metrics, c.parsed, c.texts, make(map[string]bool)}).labelsOf("", node)
}

// selector checks one metric, and returns its labels.
func (c *checker) selector(where string, n *parser.VectorSelector) map[string]bool {
	have := make(map[string]bool)
	name, m, ok := c.find(n.Name)
	if !assert.True(c.t, ok, "%s: there is no metric %q", where, n.Name) {
		return have
	}
	c.asked[name] = true
	for _, label := range slices.Concat(ofTarget, m.labels) {
		have[label] = true
	}
	if m.folder != "" && slices.Contains(m.labels, "namespace") {
		have["exported_namespace"] = true // its own; namespace is the target's
	}
	if strings.HasSuffix(n.Name, "_bucket") {
		have["le"] = true
	}
	for _, matcher := range n.LabelMatchers {
		if matcher.Name == "__name__" {
			continue
		}
		assert.True(c.t, have[matcher.Name], "%s: %s has no label %s", where, n.Name, matcher.Name)
		if m.folder == "" || slices.Contains(ofTarget, matcher.Name) {
			continue
		}
		values := []string{matcher.Value}
		if matcher.Type == labels.MatchRegexp || matcher.Type == labels.MatchNotRegexp {
			values = strings.Split(matcher.Value, "|")
		}
		for _, value := range values {
			assert.True(c.t, c.possible(m.folder, matcher.Name, value), "%s: label %s of %s is never %q", where, matcher.Name, n.Name, value)
		}
	}
	return have
}

// find is the metric that has a series of this name.
func (c *checker) find(series string) (string, metric, bool) {
	if m, ok := c.metrics[series]; ok {
		return series, m, m.kind != "histogram"
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if name, ok := strings.CutSuffix(series, suffix); ok && c.metrics[name].kind == "histogram" {
			return name, c.metrics[name], true
		}
	}
	return "", metric{}, false
}

// statuses are HTTP statuses, as expressions match them.
var statuses = regexp.MustCompile(`^([1-5](\.\.|[0-9]{2})|<error>)$`)

// codes are those of gRPC that refusals have.
var codes = []string{"OK", "Canceled", "DeadlineExceeded", "FailedPrecondition", "Internal", "InvalidArgument", "PermissionDenied", "ResourceExhausted", "Unauthenticated", "Unavailable"}

// possible says whether a label can have a value: whether the package that tells the metric, or one of ours that it
// imports, has it as a text.
func (c *checker) possible(folder, label, value string) bool {
	switch {
	case value == "":
		return true
	case label == "code":
		return statuses.MatchString(value) || folder == "ca" && slices.Contains(codes, value)
	}
	for _, in := range append([]string{folder}, c.imports(folder)...) {
		if c.textsIn(in)[value] {
			return true
		}
	}
	return false
}

// files are those of a package, without its tests.
func (c *checker) files(folder string) []*ast.File {
	if all, ok := c.parsed[folder]; ok {
		return all
	}
	paths, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
	require.NoError(c.t, err)
	var all []*ast.File
	for _, path := range paths {
		if !strings.HasSuffix(path, "_test.go") {
			file, err := goparser.ParseFile(token.NewFileSet(), path, nil, goparser.SkipObjectResolution)
			require.NoError(c.t, err)
			all = append(all, file)
		}
	}
	require.NotEmpty(c.t, all, folder)
	c.parsed[folder] = all
	return all
}

func (c *checker) imports(folder string) []string {
	var all []string
	for _, file := range c.files(folder) {
		for _, imported := range file.Imports {
			if inside, ok := strings.CutPrefix(strings.Trim(imported.Path.Value, `"`), "github.com/signet-ca/signet/"); ok {
				all = append(all, inside)
			}
		}
	}
	return all
}

// textsIn are the texts in the code of a package; those of its imports, and names and helps of metrics, are no values.
func (c *checker) textsIn(folder string) map[string]bool {
	if found, ok := c.texts[folder]; ok {
		return found
	}
	found := make(map[string]bool)
	for _, file := range c.files(folder) {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ImportSpec, *ast.Field: // tags
				return false
			case *ast.BasicLit:
				if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
					found[text] = true
				}
			}
			return true
		})
	}
	c.texts[folder] = found
	return found
}

// TestAlertsAskForWhatThereIs: metrics, labels and values of all alerts exist.
func TestAlertsAskForWhatThereIs(t *testing.T) {
	c := newChecker(t)
	for name, rule := range rules(t) {
		have := c.check(name, rule.Expr)
		for _, text := range rule.Annotations {
			for _, used := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
				assert.True(t, have[used[1]], "%s: an annotation uses the label %s", name, used[1])
			}
		}
		assert.False(t, have["instance"] || have["job"], "%s: it isn't aggregated, and would fire anew when a replica moves", name)
	}
	assert.Greater(t, len(c.asked), 40)
}

// TestChecker: what isn't there is found.
func TestChecker(t *testing.T) {
	for _, bad := range []string{
		`signet_nothing_total`, `rate(signet_request_duration_seconds[5m])`, `signet_requests_total_bucket`,
		`signet_requests_total{kind="x"}`, `signet_requests_total{reason="no_such"}`, `signet_requests_total{reason=~"timeout|no_such"}`, `signet_requests_total{code="Teapot"}`,
		`sum by (kind) (signet_requests_total)`, `sum by (namespace) (signet_requests_total) / on (pod) signet_requests_in_flight`,
		`histogram_quantile(0.9, sum by (namespace) (rate(signet_request_duration_seconds_bucket[5m])))`,
		`signet_requests_in_flight{exported_namespace="x"}`, `sum by (`,
	} {
		judged := new(quiet)
		c := newChecker(t)
		c.t = judged
		c.check("", bad)
		assert.True(t, judged.failed, bad)
	}
}
