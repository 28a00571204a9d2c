package e2e

import (
	"context"
	"html"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/test/patiently"
)

// documented is one metric of docs/metrics.md.
type documented struct {
	kind, help string
	labels     []string
	library    bool
}

var documentedRow = regexp.MustCompile("^\\| `([a-z_]+)` \\| ([a-z]+) \\| ([a-z_, ]*) \\| (.+) \\|$")

func documentedMetrics(t *testing.T) map[string]documented {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	require.NoError(t, err)
	all := make(map[string]documented)
	for line := range strings.Lines(string(text)) {
		if row := documentedRow.FindStringSubmatch(strings.TrimSpace(line)); row != nil {
			all[row[1]] = documented{row[2], html.UnescapeString(row[4]), strings.FieldsFunc(row[3], func(r rune) bool { return r == ',' || r == ' ' }), !strings.HasPrefix(row[1], "signet_")}
		}
	}
	require.Greater(t, len(all), 80)
	return all
}

// exported are the metrics that a replica tells of now.
func exported(t *testing.T, s *stack) map[string]*dto.MetricFamily {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.MetricsURL(), nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	require.NoError(t, err)
	return families
}

// TestMetrics: what a running Signet exports is what docs/metrics.md says, by name, type, labels and text.
func TestMetrics(t *testing.T) {
	want := documentedMetrics(t)
	seen := make(map[string]bool)
	for _, s := range []*stack{common(t), must(t, vmStack)} {
		issued(t, s.dial(t), s.caller(t).ask(t))
		var families map[string]*dto.MetricFamily
		require.Eventually(t, func() bool { // it competes for the lease once it answers
			families = exported(t, s)
			return families["leader_election_master_status"] != nil
		}, patiently.Timeout, 50*time.Millisecond)
		assert.Equal(t, "signet", labelOf(families["leader_election_master_status"].GetMetric()[0], "name"), "alerts ask for it by this name")
		assert.True(t, slices.ContainsFunc(families["signet_requests_total"].GetMetric(), func(m *dto.Metric) bool {
			return labelOf(m, "reason") == "internal" && m.GetCounter().GetValue() == 0
		}), "the first one must be an increase")
		for name, family := range families {
			d, known := want[name]
			if !assert.True(t, known || !strings.HasPrefix(name, "signet_"), "%s is not in docs/metrics.md", name) || !known {
				continue
			}
			seen[name] = true
			assert.Equal(t, d.kind, strings.ToLower(family.GetType().String()), name)
			if !d.library {
				assert.Equal(t, d.help, family.GetHelp(), name)
			}
			for _, sample := range family.GetMetric() {
				labels := []string{}
				for _, label := range sample.GetLabel() {
					labels = append(labels, label.GetName())
				}
				slices.Sort(labels)
				assert.Equal(t, d.labels, labels, name)
			}
		}
	}
	for name, d := range want {
		if d.library {
			assert.True(t, seen[name], "%s is in docs/metrics.md and nowhere else", name)
		}
	}
	assert.Greater(t, len(seen), len(want)*2/3, "most are there whatever happens")
}

// labelOf is the value of a label, "" where there is none.
func labelOf(m *dto.Metric, name string) string {
	for _, label := range m.GetLabel() {
		if label.GetName() == name {
			return label.GetValue()
		}
	}
	return ""
}
