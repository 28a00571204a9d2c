package prometheus

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the dashboard anew")

// Where things are, from here.
const (
	root      = "../.."
	rulesFile = root + "/deploy/chart/signet/files/alerts.yaml"
	testsFile = "testdata/alerts_test.yaml"
	runbooks  = root + "/docs/alerts.md"
)

// rules are the alerts, by name.
func rules(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	text, err := os.ReadFile(rulesFile)
	require.NoError(t, err)
	var groups rulefmt.RuleGroups
	require.NoError(t, yaml.Unmarshal(text, &groups))
	all := make(map[string]rulefmt.Rule)
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			require.NotEmpty(t, rule.Alert, "rules are alerts")
			require.NotContains(t, all, rule.Alert)
			all[rule.Alert] = rule
		}
	}
	require.NotEmpty(t, all)
	return all
}

// promtool runs Prometheus' own tool.
func promtool(t *testing.T, args ...string) string {
	t.Helper()
	path := os.Getenv("SIGNET_PROMTOOL")
	if path == "" {
		var err error
		path, err = filepath.Abs(root + "/bin/promtool")
		require.NoError(t, err)
	}
	require.FileExists(t, path, "make promtool builds it; SIGNET_PROMTOOL names another one")
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	assert.NoError(t, err, "promtool %s:\n%s", strings.Join(args, " "), out)
	return string(out)
}

// TestRules: promtool accepts the alerts, and each fires where it should and nowhere else.
func TestRules(t *testing.T) {
	t.Log(promtool(t, "check", "rules", "--lint=all", "--lint-fatal", rulesFile))
	t.Log(promtool(t, "test", "rules", testsFile))
}

// TestAlertsAreTested: there is a test of each alert, with something that fires and something beside it that doesn't.
func TestAlertsAreTested(t *testing.T) {
	text, err := os.ReadFile(testsFile)
	require.NoError(t, err)
	var file struct {
		Tests []struct {
			Name        string `yaml:"name"`
			InputSeries []struct {
				Series string `yaml:"series"`
			} `yaml:"input_series"`
			AlertRuleTest []struct {
				Alertname string `yaml:"alertname"`
				ExpAlerts []struct {
					ExpLabels map[string]string `yaml:"exp_labels"`
				} `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	require.NoError(t, yaml.Unmarshal(text, &file))
	tested := make(map[string]bool)
	for _, test := range file.Tests {
		require.Len(t, test.AlertRuleTest, 1, test.Name)
		is := test.AlertRuleTest[0]
		assert.Equal(t, test.Name, is.Alertname)
		assert.NotEmpty(t, is.ExpAlerts, test.Name)
		for _, alert := range is.ExpAlerts {
			for name, value := range alert.ExpLabels {
				assert.NotEqual(t, "good", value, "%s: %s", test.Name, name)
			}
		}
		good := false
		for _, s := range test.InputSeries {
			good = good || strings.Contains(s.Series, `namespace="good"`)
		}
		assert.True(t, good, "%s: nothing is beside it", test.Name)
		assert.False(t, tested[is.Alertname], "%s is tested twice", is.Alertname)
		tested[is.Alertname] = true
	}
	all := rules(t)
	for name := range all {
		assert.True(t, tested[name], "%s has no test in %s", name, testsFile)
	}
	for name := range tested {
		assert.Contains(t, all, name, "there is no such alert")
	}
}

var (
	alertName   = regexp.MustCompile(`^Signet[A-Z][A-Za-z]+$`)
	runbookHead = regexp.MustCompile(`(?m)^### (Signet\w+)$`)
)

// parts are what each runbook says, in this order.
var parts = []string{"**Means:**", "**Hurts:**", "**Look:**", "**Do:**", "**Over:**"}

// TestAlertsHaveRunbooks: each alert leads to its section of docs/alerts.md, which says all that it should.
func TestAlertsHaveRunbooks(t *testing.T) {
	text, err := os.ReadFile(runbooks)
	require.NoError(t, err)
	sections := make(map[string]string)
	heads := runbookHead.FindAllStringSubmatchIndex(string(text), -1)
	for _, head := range heads {
		name, rest := string(text[head[2]:head[3]]), string(text[head[1]:])
		if end := regexp.MustCompile(`(?m)^##`).FindStringIndex(rest); end != nil {
			rest = rest[:end[0]]
		}
		require.NotContains(t, sections, name)
		sections[name] = rest
	}
	all := rules(t)
	for name, rule := range all {
		assert.Regexp(t, alertName, name)
		assert.Contains(t, []string{"critical", "warning", "info"}, rule.Labels["severity"], name)
		assert.Equal(t, "https://github.com/signet-ca/signet/blob/main/docs/alerts.md#"+strings.ToLower(name), rule.Annotations["runbook_url"])
		for _, annotation := range []string{"summary", "description"} {
			assert.NotEmpty(t, rule.Annotations[annotation], "%s: %s", name, annotation)
		}
		section, ok := sections[name]
		if !assert.True(t, ok, "%s has no section in docs/alerts.md", name) {
			continue
		}
		assert.Contains(t, section, "`"+rule.Labels["severity"]+"`", name)
		at := 0
		for _, part := range parts {
			found := strings.Index(section[at:], part)
			if assert.GreaterOrEqual(t, found, 0, "%s: %s is missing, or not in its place", name, part) {
				at += found
			}
		}
	}
	for name := range sections {
		assert.Contains(t, all, name, "docs/alerts.md has a section of an alert that there isn't")
	}
}
