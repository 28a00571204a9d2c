package prometheus

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const dashboardFile = root + "/deploy/chart/signet/files/dashboard.json"

// section is a row of the dashboard. A closed one is loaded when somebody opens it.
type section struct {
	title  string
	closed bool
	panels []panel
}

// panel shows queries over time, or as of now.
type panel struct {
	title, text string
	kind        string // timeseries where it is empty
	unit        string // short where it is empty
	width       int    // of 24; 8 where it is 0
	max         float64
	bad         string // "0" where 0 is bad, ">0" where all else is
	queries     []query
}

// query is one, in which NS stands for the selection of Signet's namespace.
type query struct{ expr, legend string }

func q(expr string, legend ...string) query {
	expr = strings.ReplaceAll(strings.ReplaceAll(expr, "{NS", `{namespace="$namespace"`), "[I]", "[$__rate_interval]")
	return query{expr, strings.Join(legend, "")}
}

// quantiles are three of a histogram.
func quantiles(histogram, matchers string) []query {
	var all []query
	for _, at := range []string{"0.5", "0.95", "0.99"} {
		all = append(all, q("histogram_quantile("+at+", sum by (le) (rate("+histogram+"_bucket{NS"+matchers+"}[I])))", at))
	}
	return all
}

var dashboard = []section{
	{"Overview", false, []panel{
		{title: "Ready replicas", text: "of those that are scraped", kind: "stat", width: 4, bad: "0", queries: []query{q(`sum(min by (pod) (signet_readiness_check{NS}))`, "ready"), q(`count(count by (pod) (signet_readiness_check{NS}))`, "scraped")}},
		{title: "Issued a minute", kind: "stat", width: 4, queries: []query{q(`60 * sum(rate(signet_requests_total{NS, outcome="issued"}[I]))`)}},
		{title: "Refused, of all requests", kind: "stat", unit: "percentunit", width: 4, queries: []query{q(`sum(rate(signet_requests_total{NS, outcome="refused"}[I])) / sum(rate(signet_requests_total{NS}[I]))`)}},
		{title: "Certificates overdue or expired", text: "Of workloads that exist.", kind: "stat", width: 4, bad: ">0", queries: []query{q(`sum(max by (state) (signet_identity_certificates{NS, state=~"overdue|expired"}))`)}},
		{title: "Wanted issuer", kind: "stat", width: 4, queries: []query{q(`max by (state) (signet_issuer_wanted{NS}) == 1`, "{{state}}")}},
		{title: "Holds the lease", kind: "stat", width: 4, queries: []query{q(`max by (pod) (leader_election_master_status{NS, name="signet"}) == 1`, "{{pod}}")}},
		{title: "Alerts", text: "What fires now.", kind: "table", width: 12, queries: []query{q(`sum by (alertname, severity) (ALERTS{NS, alertname=~"Signet.*", alertstate="firing"})`)}},
		{title: "Part of life that is left, least of each kind", unit: "percentunit", width: 12, max: 1, queries: []query{q(`min by (kind) (signet_certificate_remaining_ratio_min{NS, kind!="leaf"})`, "{{kind}}"), q(`histogram_quantile(0.01, max by (le) (signet_identity_certificates_remaining_ratio_bucket{NS}))`, "leaf, the lowest hundredth")}},
		{title: "Conditions of readiness", text: "1 while it holds.", width: 12, max: 1, queries: []query{q(`min by (pod, check) (signet_readiness_check{NS})`, "{{pod}} {{check}}")}},
		{title: "Requests, by outcome", unit: "reqps", width: 12, queries: []query{q(`sum by (outcome) (rate(signet_requests_total{NS}[I]))`, "{{outcome}}")}},
	}},
	{"Issuance", false, []panel{
		{title: "Refusals, by reason", unit: "reqps", width: 12, queries: []query{q(`sum by (reason) (rate(signet_requests_total{NS, outcome="refused"}[I]))`, "{{reason}}")}},
		{title: "Issued, by replica", unit: "reqps", width: 12, queries: []query{q(`sum by (pod) (rate(signet_requests_total{NS, outcome="issued"}[I]))`, "{{pod}}")}},
		{title: "Time to a certificate", unit: "s", queries: quantiles("signet_request_duration_seconds", `, outcome="issued"`)},
		{title: "Time of each step, 95 %", unit: "s", queries: []query{q(`histogram_quantile(0.95, sum by (le, step) (rate(signet_request_step_duration_seconds_bucket{NS}[I])))`, "{{step}}")}},
		{title: "Time of each step of signing, 95 %", unit: "s", queries: []query{q(`histogram_quantile(0.95, sum by (le, step) (rate(signet_sign_step_duration_seconds_bucket{NS}[I])))`, "{{step}}")}},
		{title: "Lifetime that issuers give", unit: "s", queries: quantiles("signet_issued_lifetime_seconds", "")},
		{title: "In flight", queries: []query{q(`sum by (pod) (signet_requests_in_flight{NS})`, "{{pod}} asked"), q(`sum by (pod) (signet_sign_in_flight{NS})`, "{{pod}} signing")}},
		{title: "Made again for one call, by cause", unit: "reqps", queries: []query{q(`sum by (cause) (rate(signet_sign_attempts_repeated_total{NS}[I]))`, "{{cause}}")}},
	}},
	{"Callers and admission", false, []panel{
		{title: "Waiting, by queue", queries: []query{q(`sum by (queue) (signet_queue_waiting{NS})`, "{{queue}}"), q(`sum by (queue, cluster) (signet_remote_queue_waiting{NS})`, "{{cluster}} {{queue}}")}},
		{title: "Slots that are taken, by queue", queries: []query{q(`sum by (queue) (signet_queue_slots_held{NS})`, "{{queue}}"), q(`sum by (queue, cluster) (signet_remote_queue_slots_held{NS})`, "{{cluster}} {{queue}}")}},
		{title: "Turned away, held back", queries: []query{q(`sum by (reason) (rate(signet_requests_total{NS, reason=~"overloaded|budget"}[I]))`, "{{reason}}, a second"), q(`sum(signet_refusals_held_back{NS})`, "refusals held back")}},
		{title: "Credentials, by authenticator and result", unit: "reqps", queries: []query{q(`sum by (authenticator, result) (rate(signet_authentications_total{NS}[I]))`, "{{authenticator}} {{result}}")}},
		{title: "Token reviews and what spares them", unit: "reqps", queries: []query{q(`sum by (result) (rate(signet_token_reviews_total{NS}[I]))`, "reviewed: {{result}}"), q(`sum by (entry) (rate(signet_token_cache_hits_total{NS}[I]))`, "remembered: {{entry}}"), q(`sum by (result) (rate(signet_token_local_total{NS}[I]))`, "local: {{result}}")}},
		{title: "Age of the keys of tokens", unit: "s", queries: []query{q(`time() - min(signet_token_keys_timestamp_seconds{NS} > 0)`, "own"), q(`time() - min by (issuer) (signet_oidc_token_keys_timestamp_seconds{NS} > 0)`, "{{issuer}}")}},
	}},
	{"Certificates", true, []panel{
		{title: "In use by workloads, by state", queries: []query{q(`max by (state) (signet_identity_certificates{NS})`, "{{state}}")}},
		{title: "Overdue, by the workloads' namespace", queries: []query{q(`max by (exported_namespace) (signet_identity_certificates_overdue{NS})`, "{{exported_namespace}}")}},
		{title: "Part of life that is left to workloads", unit: "percentunit", max: 1, queries: []query{q(`histogram_quantile(0.5, max by (le) (signet_identity_certificates_remaining_ratio_bucket{NS}))`, "half of them"), q(`histogram_quantile(0.05, max by (le) (signet_identity_certificates_remaining_ratio_bucket{NS}))`, "the lowest twentieth")}},
		{title: "Others, by kind and state", text: "Of leaves a replica counts those that it issued itself.", queries: []query{q(`max by (kind, state) (signet_certificates{NS, kind!="leaf"}) > 0`, "{{kind}} {{state}}")}},
		{title: "Time until the first of a kind ends", unit: "s", queries: []query{q(`min by (kind) (signet_certificate_not_after_timestamp_seconds{NS}) - time()`, "{{kind}}")}},
		{title: "Renewals, by the state of the one before", unit: "reqps", queries: []query{q(`sum by (state) (rate(signet_leaf_renewals_total{NS}[I]))`, "{{state}}")}},
		{title: "Services with problems", queries: []query{q(`max by (problem) (signet_services_with_problems{NS, problem!="any"})`, "{{problem}}")}},
		{title: "Gateways with problems", queries: []query{q(`max by (problem) (signet_gateways_with_problems{NS, problem!="any"})`, "{{problem}}")}},
		{title: "Serving certificate", unit: "reqps", queries: []query{q(`sum by (result) (rate(signet_serving_certificate_renewals_total{NS}[I]))`, "renewals: {{result}}"), q(`max by (pod) (signet_serving_certificate_overdue{NS})`, "{{pod}} overdue")}},
	}},
	{"Roots and their distribution", true, []panel{
		{title: "Anchors, by phase", queries: []query{q(`max by (phase) (signet_rollover_anchors{NS})`, "{{phase}}"), q(`max by (phase) (signet_rollover_anchors_held_up{NS}) > 0`, "{{phase}}, held up")}},
		{title: "Namespaces, by whether they carry the roots", queries: []query{q(`max by (state) (signet_distribution_namespaces{NS})`, "{{state}}")}},
		{title: "Incomplete for", unit: "s", queries: []query{q(`max(time() - (signet_distribution_incomplete_since_timestamp_seconds{NS} > 0))`)}},
		{title: "Time until a namespace carries them", unit: "s", queries: quantiles("signet_distribution_delay_seconds", "")},
		{title: "Writes, by result", unit: "reqps", queries: []query{q(`sum by (result) (rate(signet_distribution_writes_total{NS}[I]))`, "{{result}}")}},
		{title: "Trouble", queries: []query{q(`max by (manager) (signet_distribution_second_writers{NS})`, "{{manager}} writes too"), q(`max(signet_distribution_documents_refused{NS})`, "documents too large"), q(`max(signet_trust_sources_failing{NS})`, "sources failing"), q(`max(signet_trust_anchors_on_first_use{NS})`, "anchors on first use"), q(`max(signet_crl_source_refused{NS})`, "CRLs refused")}},
	}},
	{"Issuers and CertificateRequests", true, []panel{
		{title: "Issuers, by state", queries: []query{q(`max by (state) (signet_issuers{NS})`, "{{state}}")}},
		{title: "Wanted issuer", max: 1, queries: []query{q(`max by (state) (signet_issuer_wanted{NS})`, "{{state}}")}},
		{title: "Changes and questions", queries: []query{q(`sum(increase(signet_issuer_switches_total{NS}[I]))`, "another in force"), q(`sum by (result) (increase(signet_issuer_probes_total{NS}[I]))`, "asked for its root: {{result}}")}},
		{title: "CertificateRequests", queries: []query{q(`max(signet_certificaterequests_live{NS})`, "exist"), q(`max(signet_certificaterequests_due{NS})`, "wait to be deleted")}},
		{title: "Deleted, by kind", unit: "reqps", queries: []query{q(`sum by (kind) (rate(signet_certificaterequests_swept_total{NS}[I]))`, "{{kind}}")}},
		{title: "Watch", text: "How long it was silent while requests waited, and how often they were listed for that.", queries: []query{q(`max(signet_certificaterequest_watch_silence_seconds{NS})`, "silence, s"), q(`sum(rate(signet_certificaterequest_gap_lists_total{NS}[I]))`, "lists a second")}},
	}},
	{"API servers", true, []panel{
		{title: "Requests, by status", unit: "reqps", queries: []query{q(`sum by (code) (rate(rest_client_requests_total{NS}[I]) and on (namespace, pod) signet_readiness_check)`, "{{code}}")}},
		{title: "Requests, by method", unit: "reqps", queries: []query{q(`sum by (method) (rate(rest_client_requests_total{NS}[I]) and on (namespace, pod) signet_readiness_check)`, "{{method}}")}},
		{title: "What exists: silence", unit: "s", queries: []query{q(`max by (cluster, kind) (signet_presence_silence_seconds{NS})`, "{{cluster}} {{kind}}")}},
		{title: "What exists: known", max: 1, queries: []query{q(`min by (cluster, kind) (signet_presence_synced{NS})`, "{{cluster}} {{kind}}")}},
		{title: "What exists: looked up", unit: "reqps", queries: []query{q(`sum by (cluster, result) (rate(signet_presence_lookups_total{NS}[I]))`, "{{cluster}} {{result}}")}},
		{title: "Remote clusters", max: 1, queries: []query{q(`min by (cluster) (signet_remote_cluster_up{NS})`, "{{cluster}}"), q(`max(signet_remote_secrets_refused{NS})`, "Secrets refused")}},
		{title: "Token reviews in remote clusters", unit: "reqps", queries: []query{q(`sum by (cluster, result) (rate(signet_remote_token_reviews_total{NS}[I]))`, "{{cluster}} {{result}}")}},
	}},
	{"Ledger and audit stream", true, []panel{
		{title: "Records", unit: "reqps", queries: []query{q(`sum by (source) (rate(signet_ledger_records_total{NS}[I]))`, "{{source}}"), q(`sum by (reason) (rate(signet_ledger_record_failures_total{NS}[I]))`, "failed: {{reason}}"), q(`max(signet_ledger_failing{NS})`, "can't record")}},
		{title: "Time until a record is durable", unit: "s", queries: quantiles("signet_ledger_record_duration_seconds", "")},
		{title: "Room on the volume", unit: "bytes", queries: []query{q(`min by (pod) (signet_ledger_disk_free_bytes{NS})`, "{{pod}} free"), q(`max by (pod) (signet_ledger_file_bytes{NS})`, "{{pod}} used by records"), q(`max(signet_ledger_disk_reserve_bytes{NS})`, "reserve")}},
		{title: "Shared view is behind by", unit: "s", queries: []query{q(`max by (pod) (signet_ledger_ship_lag_seconds{NS})`, "{{pod}}")}},
		{title: "Lost", queries: []query{q(`sum(increase(signet_ledger_unrecorded_total{NS}[I]))`, "issued without a record"), q(`sum(increase(signet_ledger_deleted_valid_total{NS}[I]))`, "deleted while valid"), q(`sum(increase(signet_ledger_unshipped_total{NS}[I]))`, "never shipped"), q(`sum(increase(signet_audit_events_total{NS, outcome="lost"}[I]))`, "audit events")}},
		{title: "Audit events, by type", unit: "reqps", queries: []query{q(`sum by (type) (rate(signet_audit_events_total{NS, outcome="written"}[I]))`, "{{type}}"), q(`max(signet_audit_failing{NS})`, "failing")}},
	}},
	{"Inspection and probes", true, []panel{
		{title: "Requests, by status", unit: "reqps", queries: []query{q(`sum by (code) (rate(signet_api_requests_total{NS}[I]))`, "{{code}}")}},
		{title: "Time to an answer, 95 %, by route", unit: "s", queries: []query{q(`histogram_quantile(0.95, sum by (le, route) (rate(signet_api_request_duration_seconds_bucket{NS}[I])))`, "{{route}}")}},
		{title: "Questions to the API server", unit: "reqps", queries: []query{q(`sum by (kind, result) (rate(signet_api_reviews_total{NS}[I]))`, "{{kind}} {{result}}")}},
		{title: "Watches", queries: []query{q(`sum(signet_api_watches{NS})`, "open"), q(`sum by (why) (rate(signet_api_watches_ended_total{NS}[I]))`, "ended a second: {{why}}")}},
		{title: "Services, by their latest scheduled probe", queries: []query{q(`max by (verdict) (signet_probe_results{NS})`, "{{verdict}}")}},
		{title: "Probes, by outcome", unit: "reqps", queries: []query{q(`sum by (outcome) (rate(signet_probes_total{NS}[I]))`, "{{outcome}}")}},
	}},
	{"Processes", true, []panel{
		{title: "CPU", queries: []query{q(`sum by (pod) (rate(process_cpu_seconds_total{NS}[I]) and on (namespace, pod) signet_readiness_check)`, "{{pod}}")}},
		{title: "Memory", unit: "bytes", queries: []query{q(`sum by (pod) (process_resident_memory_bytes{NS} and on (namespace, pod) signet_readiness_check)`, "{{pod}}")}},
		{title: "Goroutines", queries: []query{q(`sum by (pod) (go_goroutines{NS} and on (namespace, pod) signet_readiness_check)`, "{{pod}}")}},
	}},
}

type object = map[string]any

// grafana is the dashboard as Grafana 10 and later read it.
func grafana(sections []section) object {
	source := object{"type": "prometheus", "uid": "${datasource}"}
	var panels []object
	id, y := 0, 0
	for _, s := range sections {
		id++
		row := object{"id": id, "type": "row", "title": s.title, "collapsed": s.closed, "gridPos": object{"x": 0, "y": y, "w": 24, "h": 1}, "panels": []object{}}
		y++
		x, height := 0, 0
		var within []object
		for _, p := range s.panels {
			id++
			if p.width == 0 {
				p.width = 8
			}
			if x+p.width > 24 {
				x, y, height = 0, y+height, 0
			}
			h := 8
			if p.kind == "stat" {
				h = 4
			}
			height = max(height, h)
			within = append(within, p.grafana(id, object{"x": x, "y": y, "w": p.width, "h": h}, source))
			x += p.width
		}
		y += height
		if s.closed {
			row["panels"] = within
			panels = append(panels, row)
		} else {
			panels = append(append(panels, row), within...)
		}
	}
	variable := func(name, kind, label string, more object) object {
		v := object{"name": name, "type": kind, "label": label, "hide": 0, "includeAll": false, "multi": false, "refresh": 2}
		maps.Copy(v, more)
		return v
	}
	return object{
		"uid": "signet", "title": "Signet", "tags": []string{"signet", "istio", "cert-manager"}, "schemaVersion": 39, "version": 1, "editable": true,
		"refresh": "30s", "time": object{"from": "now-6h", "to": "now"}, "timezone": "browser", "graphTooltip": 1, "links": []object{}, "annotations": object{"list": []object{}},
		"templating": object{"list": []object{
			variable("datasource", "datasource", "Data source", object{"query": "prometheus", "refresh": 1}),
			variable("namespace", "query", "Signet in", object{"datasource": source, "query": object{"query": "label_values(signet_readiness_check, namespace)", "refId": "namespace"}, "sort": 1}),
		}},
		"panels": panels,
	}
}

func (p panel) grafana(id int, at, source object) object {
	unit, kind := p.unit, p.kind
	if unit == "" {
		unit = "short"
	}
	if kind == "" {
		kind = "timeseries"
	}
	var targets []object
	for n, query := range p.queries {
		target := object{"refId": string(rune('A' + n)), "datasource": source, "expr": query.expr, "legendFormat": query.legend}
		if kind != "timeseries" {
			target["instant"] = true
		}
		if kind == "table" {
			target["format"] = "table"
		}
		targets = append(targets, target)
	}
	defaults := object{"unit": unit, "min": 0}
	if p.max != 0 {
		defaults["max"] = p.max
	}
	options := object{}
	switch kind {
	case "timeseries":
		defaults["custom"] = object{"fillOpacity": 10, "lineWidth": 1, "showPoints": "never"}
		options = object{"legend": object{"displayMode": "list", "placement": "bottom", "showLegend": true}, "tooltip": object{"mode": "multi", "sort": "desc"}}
	case "stat":
		text := "auto"
		if len(p.queries) == 1 && strings.HasPrefix(p.queries[0].legend, "{{") {
			text = "name" // which is what matters
		}
		options = object{"reduceOptions": object{"calcs": []string{"lastNotNull"}}, "textMode": text, "colorMode": "value", "graphMode": "none"}
		good, bad := object{"color": "green", "value": nil}, object{"color": "red", "value": 1}
		switch p.bad {
		case "0":
			good, bad = object{"color": "red", "value": nil}, object{"color": "green", "value": 1}
		case "":
			bad = nil
		}
		steps := []object{good}
		if bad != nil {
			steps = append(steps, bad)
		}
		defaults["thresholds"] = object{"mode": "absolute", "steps": steps}
	case "table":
		options = object{"showHeader": true}
	}
	made := object{"id": id, "type": kind, "title": p.title, "gridPos": at, "datasource": source, "targets": targets, "fieldConfig": object{"defaults": defaults, "overrides": []object{}}, "options": options}
	if p.text != "" {
		made["description"] = p.text
	}
	return made
}

// TestDashboard: the file is what is written here, and everything that it asks for exists.
func TestDashboard(t *testing.T) {
	var made bytes.Buffer
	encoder := json.NewEncoder(&made)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	require.NoError(t, encoder.Encode(grafana(dashboard)))
	if *update {
		require.NoError(t, os.WriteFile(dashboardFile, made.Bytes(), 0o644))
	}
	text, err := os.ReadFile(dashboardFile)
	require.NoError(t, err)
	assert.Equal(t, made.String(), string(text), "go test -run TestDashboard -update writes it anew")
	assert.NotContains(t, string(text), "://", "it knows no hosts")
	assert.Less(t, len(text), 900<<10, "it must fit into a ConfigMap")

	// The file itself, as Grafana reads it.
	var read struct{ Panels []shownPanel }
	require.NoError(t, json.Unmarshal(text, &read))
	c := newChecker(t)
	ids, titles := make(map[int]bool), make(map[string]bool)
	section := ""
	var look func(panels []shownPanel)
	look = func(panels []shownPanel) {
		for _, p := range panels {
			assert.False(t, ids[p.ID], "two panels have the ID %d", p.ID)
			ids[p.ID] = true
			if p.Type == "row" {
				section = p.Title
				look(p.Panels)
				continue
			}
			where := section + ": " + p.Title
			assert.False(t, titles[where], "there are two of %s", where)
			titles[where] = true
			assert.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, where)
			assert.NotEmpty(t, p.Targets, where)
			for _, target := range p.Targets {
				assert.Contains(t, target.Expr, `namespace="$namespace"`, where)
				have := c.check(where, strings.NewReplacer("$namespace", "istio-system", "$__rate_interval", "5m").Replace(target.Expr))
				for _, used := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
					assert.True(t, have[used[1]], "%s: the legend uses the label %s", where, used[1])
				}
			}
		}
	}
	look(read.Panels)
	assert.Greater(t, len(titles), 50)

	// What alerts ask for can be seen, but for what they alone need.
	alerts := newChecker(t)
	for name, rule := range rules(t) {
		alerts.check(name, rule.Expr)
	}
	for name := range alerts.asked {
		if name != "kube_statefulset_replicas" && !strings.HasPrefix(name, "signet_istiod_certificate_") && name != "signet_crl_covered" {
			assert.True(t, c.asked[name], "no panel shows %s", name)
		}
	}
}

var legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)

// shownPanel is what matters here of one.
type shownPanel struct {
	ID          int
	Type, Title string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr, LegendFormat string }
	Panels      []shownPanel
}
