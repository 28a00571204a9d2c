package main

import (
	"bytes"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
)

func digest(n string) string { return strings.Repeat(n, 64)[:64] }

func exampleCertificate() api.Certificate {
	return api.Certificate{
		SHA256: digest("3f0c"), Serial: "5f3a99", Identity: "spiffe://cluster.local/ns/shop/sa/cart",
		SANs: []string{"URI:spiffe://cluster.local/ns/shop/sa/cart"}, Namespace: "shop", ServiceAccount: "cart",
		Holder:   api.Holder{Pod: "cart-7d9f", PodUID: "u-1", Node: "node-a", Cluster: "Kubernetes", Address: "10.0.0.7"},
		IssuedAt: now.Add(-13 * time.Hour), NotBefore: now.Add(-13 * time.Hour), NotAfter: now.Add(11 * time.Hour),
		RequestedSeconds: 86400, RemainingSeconds: 39600, RemainingRatio: 11.0 / 24, State: api.Due, Standing: api.Live,
		KeyAlgorithm: "ECDSA", KeyBits: 256, SignatureAlgorithm: "ECDSA-SHA256", SPKISHA256: digest("ab"),
		Issuer: "Issuer.cert-manager.io/istio-ca", Root: api.Root{SHA256: digest("11"), Subject: "CN=mesh root"},
		Request: api.ObjectRef{Namespace: "istio-system", Name: "signet-abc"}, Replica: "signet-0",
	}
}

func exampleServices() []api.Service {
	soon, late := now.Add(11*time.Hour), now.Add(20*time.Hour)
	return []api.Service{
		{Namespace: "shop", Name: "cart", Identities: []string{"spiffe://cluster.local/ns/shop/sa/cart"}, Summary: api.Summary{Total: 3, Fresh: 2, Due: 1, NotAfter: soon, RemainingRatio: 0.46}},
		{Namespace: "shop", Name: "checkout", Identities: []string{"spiffe://cluster.local/ns/shop/sa/checkout", "spiffe://cluster.local/ns/pay/sa/worker", "spiffe://other/x"},
			Summary:  api.Summary{Total: 5, Fresh: 1, Overdue: 1, Expired: 1, Missing: 1, NoMesh: 1, NotAfter: now.Add(-5 * time.Minute)},
			Problems: []api.Problem{{Code: api.ProblemMissing, Detail: "1 of 5 pods hold no certificate: checkout-1"}, {Code: api.ProblemExpired, Detail: "1 of 5 pods hold one that has expired: checkout-2"}, {Code: api.ProblemSANs, Detail: "1 of 5 pods hold one with unexpected names: checkout-3"}}},
		{Namespace: "shop", Name: "starting", Identities: []string{"spiffe://cluster.local/ns/shop/sa/starting"}, Summary: api.Summary{Total: 2, Fresh: 1, NotAfter: late, RemainingRatio: 0.99}},
		{Namespace: "shop", Name: "legacy", Summary: api.Summary{Total: 2, NoMesh: 2}},
		{Namespace: "shop", Name: "empty"},
		{Namespace: "\x1b[2J", Name: "a\u202eb", Identities: []string{"\x1b]0;title\a"}, Problems: []api.Problem{{Code: "\x1b[31m", Detail: "two\nlines"}}},
	}
}

// write is what a table of items looks like, in both forms.
func write[T any](t *testing.T, k kind[T], items []T) string {
	t.Helper()
	var out bytes.Buffer
	for _, format := range []string{formatTable, formatWide} {
		require.NoError(t, newTable(&out, format, k.columns(now)).write(items))
		out.WriteString("\n")
	}
	require.NoError(t, names(&out, k, items))
	return out.String()
}

func TestTables(t *testing.T) {
	golden(t, "tables/services", write(t, serviceKind, exampleServices()))

	held, node, gone := exampleCertificate(), exampleCertificate(), exampleCertificate()
	node.Holder = api.Holder{Node: "node-b", Impersonated: true, Address: "10.0.0.9"}
	node.State, node.RemainingRatio, node.NotAfter = api.Expired, 0, now.Add(-2*24*time.Hour)
	gone.Holder, gone.Identity, gone.Standing = api.Holder{Address: "192.0.2.7"}, "spiffe://elsewhere/vm", api.Orphaned
	golden(t, "tables/certificates", write(t, certificateKind, []api.Certificate{held, node, gone}))

	golden(t, "tables/issuances", write(t, issuanceKind, []api.Issuance{
		{Time: now, Outcome: api.Issued, Certificate: &held},
		{Time: now.Add(-time.Minute), Outcome: api.Refused, Refusal: &api.Refusal{Reason: "identity", Code: "PermissionDenied", Identity: "spiffe://cluster.local/ns/shop/sa/admin", Namespace: "shop", ServiceAccount: "cart", Address: "10.0.0.7", Count: 1, First: now, Last: now, Replica: "signet-1"}},
		{Time: now.Add(-time.Hour), Outcome: api.Refused, Refusal: &api.Refusal{Reason: "no_token", Code: "Unauthenticated", Count: 4711, First: now.Add(-2 * time.Hour), Last: now.Add(-time.Hour), Replica: "signet-1"}},
		{Time: now.Add(-3 * time.Hour), Outcome: "new"},
	}))

	golden(t, "tables/gateways", write(t, gatewayKind, []api.GatewayObject{
		{API: api.KubernetesGateway, Namespace: "edge", Name: "public", Class: "istio", State: api.Fresh, NotAfter: now.Add(60 * 24 * time.Hour), Listeners: []api.GatewayListener{
			{Name: "https", Port: 443, Hosts: []api.GatewayHost{{Name: "*.example.com", Covered: api.CoveredYes}, {Name: "shop.example.com"}}, Certificates: []api.GatewayCertificate{{Secret: &api.ObjectRef{Namespace: "edge", Name: "public-tls"}, Issuer: "ClusterIssuer.cert-manager.io/letsencrypt"}}},
			{Name: "more", Port: 8443, Hosts: []api.GatewayHost{{Name: "*.example.com"}, {Name: "third.example.com"}}, Certificates: []api.GatewayCertificate{{Secret: &api.ObjectRef{Namespace: "edge", Name: "public-tls"}}}},
		}},
		{API: api.IstioGateway, Namespace: "edge", Name: "public", Listeners: []api.GatewayListener{
			{Name: "https", Port: 443, Hosts: []api.GatewayHost{{Name: "x.example.com", Covered: api.CoveredNo}}, Certificates: []api.GatewayCertificate{{Secret: &api.ObjectRef{Namespace: "certs", Name: "x"}}, {File: "/etc/certs/tls.crt"}}},
		}, Problems: []api.Problem{{Code: api.ProblemNotCovered, Detail: "x.example.com is in no certificate"}}},
		{API: "other", Namespace: "edge", Name: "none", State: api.Due},
		{API: api.IstioGateway, Namespace: "edge", Name: "unknown"},
	}))
}

func TestDescribe(t *testing.T) {
	var notices bytes.Buffer
	p := &program{output: formatTable, err: &notices}
	text := func(write func(io.Writer) error) string {
		var out bytes.Buffer
		require.NoError(t, write(&out))
		return out.String()
	}
	held := exampleCertificate()
	bad := exampleServices()[1]
	bad.Pods = []api.Pod{
		{Namespace: "shop", Name: "checkout-1", Node: "node-a\x1b[2J", ServiceAccount: "checkout", DataPlane: api.Sidecar, Problems: []api.Problem{{Code: api.ProblemMissing, Detail: "no certificate for 5m"}}},
		{Namespace: "shop", Name: "checkout-2", Node: "node-b", ServiceAccount: "checkout", DataPlane: api.Sidecar, Certificates: []api.Certificate{held}},
		{Namespace: "shop", Name: "job\x1b[2J", ServiceAccount: "checkout", DataPlane: api.NoMesh},
	}
	golden(t, "describe/service", text(func(out io.Writer) error { return writeService(out, &bad, now) }))
	held.PEM = "-----BEGIN CERTIFICATE-----\nAAAA\x1b\n-----END CERTIFICATE-----\n"
	held.Holder.Impersonated = true
	golden(t, "describe/certificate", text(func(out io.Writer) error { return writeCertificate(out, &held, now) }))
	golden(t, "describe/identity", text(func(out io.Writer) error {
		return p.writeIdentity(out, &api.Identity{SPIFFEID: held.Identity, Namespace: "shop", ServiceAccount: "cart", Live: []api.Certificate{held}, Services: []api.ObjectRef{{Namespace: "shop", Name: "cart"}}}, now)
	}))
	golden(t, "describe/trust", text(func(out io.Writer) error {
		return p.writeTrust(out, &api.Trust{
			Anchors: []api.Anchor{
				{SHA256: digest("11"), Subject: "CN=mesh root", NotAfter: now.Add(3650 * 24 * time.Hour), Phase: "signing", Since: now.Add(-30 * 24 * time.Hour), Sources: []string{"file"}},
				{SHA256: digest("22"), Subject: "CN=next root", NotAfter: now.Add(3650 * 24 * time.Hour), Phase: "published", Since: now.Add(-time.Hour), Waits: "3 namespaces", Sources: []string{"file", "secret"}},
				{SHA256: digest("44"), Subject: "CN=old root", NotAfter: now.Add(24 * time.Hour), Phase: "retiring", Since: now.Add(-time.Hour), Until: now.Add(23 * time.Hour)},
				{SHA256: digest("33"), Subject: "CN=partner", Federated: true, NotAfter: now.Add(time.Hour)},
			},
			Issuers: []string{"Issuer.cert-manager.io/istio-ca is in force"}, Distribution: []string{"istio-ca-root-cert: 14 of 14 namespaces carry it"}, Replicas: []string{"signet-0", "signet-1"},
			Expiring: []api.Subject{{Kind: "serving", Text: "signet.istio-system.svc", NotAfter: now.Add(40 * time.Minute), RemainingRatio: 0.3, State: api.Due}},
		}, now)
	}))
	golden(t, "describe/probe", text(func(out io.Writer) error {
		return p.writeProbe(out, &api.Probe{
			Namespace: "shop", Service: "cart", Verdict: api.ProbeAlarm, Pods: 5,
			Results: []api.ProbeResult{
				{Pod: "cart-1", PodUID: "1", Port: 80, Protocol: api.ProbeSidecar, Verdict: api.ProbeGood, ClientCertificate: api.ClientCertRequired, Plaintext: api.PlaintextRefused, Chain: []api.ServedCertificate{{SANs: held.SANs, NotAfter: held.NotAfter}}},
				{Pod: "cart-2", PodUID: "2", Port: 80, Protocol: api.ProbeSidecar, Verdict: api.ProbeAlarm, Plaintext: api.PlaintextAnswered, Chain: []api.ServedCertificate{{Subject: "CN=x", NotAfter: now.Add(-time.Hour)}}, Findings: []api.ProbeFinding{{Code: api.FoundUnrecorded, Verdict: api.ProbeAlarm, Detail: "of our issuer, but in no record"}}},
				{Pod: "cart-3", PodUID: "3", Verdict: api.ProbeNotDialed},
			},
			Coverage: api.Coverage{Sources: []api.Source{{Name: "ledger"}}},
		}, now)
	}))
	assert.Equal(t, "notice: this may be incomplete: ledger is not up\n", notices.String())
}

func TestCompleteness(t *testing.T) {
	var notices bytes.Buffer
	p := &program{err: &notices}
	p.tellCompleteness(api.Coverage{}, false)
	assert.Empty(t, notices.String())
	gap := api.Gap{From: now, To: now.Add(time.Minute), Replica: "signet-0", Reason: "killed\x1b[2J"}
	p.tellCompleteness(api.Coverage{
		Sources: []api.Source{{Name: "ledger", Up: true}, {Name: "pods", Reason: "forbidden"}},
		Gaps:    []api.Gap{gap, gap, gap, gap, gap},
	}, true)
	golden(t, "notices", notices.String())
}

// TestYAML: texts that some reader may take for something else are in quotes, of several lines as they are.
func TestYAML(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, writeValue(&out, formatYAML, api.Identity{
		SPIFFEID: "spiffe://cluster.local/ns/shop/sa/cart", Namespace: "1:20", ServiceAccount: "no",
		Live: []api.Certificate{{Serial: "1e5", SANs: []string{"a\u202eb", "~"}, PEM: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}},
	}))
	golden(t, "yaml", out.String())
}

func TestBar(t *testing.T) {
	for part, want := range map[float64]string{0: "---------- 0%", 0.04: "---------- 4%", 0.5: "#####----- 50%", 1: "########## 100%", 7: "########## 100%", -1: "---------- 0%", math.NaN(): "---------- 0%", math.Inf(1): "########## 100%"} {
		assert.Equal(t, want, bar(part))
	}
}

func TestRelative(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "in 0s", 40 * time.Second: "in 40s", 11 * time.Hour: "in 11h", 5*time.Hour + 3*time.Minute: "in 5h3m", -90 * time.Minute: "90m ago", 60 * 24 * time.Hour: "in 60d"} {
		assert.Equal(t, want, relative(now.Add(d), now))
	}
	assert.Empty(t, relative(time.Time{}, now))
}

// TestRowsLater: columns are at least as wide as before, and the titles come once.
func TestRowsLater(t *testing.T) {
	var out bytes.Buffer
	rows := newTable(&out, formatTable, []column[string]{{title: "A", value: func(s *string) string { return *s }}, {title: "B", value: func(*string) string { return "x" }}})
	require.NoError(t, rows.write([]string{"1234"}))
	require.NoError(t, rows.write([]string{"1"}))
	require.NoError(t, rows.write([]string{"123456"}))
	require.NoError(t, rows.write([]string{""}))
	assert.Equal(t, "A      B\n1234   x\n1      x\n123456   x\n-        x\n", out.String())
}

func TestSince(t *testing.T) {
	for text, want := range map[string]time.Time{
		"": {}, "90m": now.Add(-90 * time.Minute), "90": now.Add(-90 * time.Second), "7d": now.Add(-7 * 24 * time.Hour), "2026-01-31T12:00:00Z": time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC),
	} {
		got, err := parseSince(text, now)
		assert.NoError(t, err, text)
		assert.True(t, want.Equal(got), "%s: %s", text, got)
	}
	for _, text := range []string{"-1h", "0", "d", "99999999999999999999", "101000d", "1h d"} {
		_, err := parseSince(text, now)
		assert.Error(t, err, text)
	}
}
