package main

import (
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/version"
)

const someToken = "eyJhbGciOiJub25lIn0.e30.c2ln"

// TestCommand runs the command line; what it prints is in testdata/command.
func TestCommand(t *testing.T) {
	alone(t)
	for _, row := range []struct {
		args string
		code int
	}{
		{"", exitUsage},
		{"--help", exitOK},
		{"services --help", exitOK},
		{"certificates --help", exitOK},
		{"describe --help", exitOK},
		{"probe --help", exitOK},
		{"dashboard --help", exitOK},
		{"frobnicate", exitUsage},
		{"services extra", exitUsage},
		{"services --frobnicate", exitUsage},
		{"services -o xml", exitUsage},
		{"services -A -n shop", exitUsage},
		{"services --limit -1", exitUsage},
		{"services --watch --check", exitUsage},
		{"services", exitUsage}, // without a kubeconfig
		{"services --kubeconfig /nowhere", exitUsage},
		{"services --server http://signet:8443", exitUsage},
		{"services --server https://user@signet:8443", exitUsage},
		{"services --server signet:8443", exitNotAllowed}, // nobody says who asks
		{"services --server signet:8443 --ca-file /nowhere", exitUsage},
		{"expiring --within never", exitUsage},
		{"certificates --remaining-below 2", exitUsage},
		{"issuances --since yesterday", exitUsage},
		{"describe", exitUsage},
		{"describe pod x", exitUsage},
		{"describe service", exitUsage},
		{"describe service -A x", exitUsage},
		{"describe certificate 012345678901", exitUsage},
		{"probe", exitUsage},
	} {
		t.Run(row.args, func(t *testing.T) {
			got := run(t, strings.Fields(row.args)...)
			assert.Equal(t, row.code, got.code)
			if row.code != exitOK {
				assert.Empty(t, got.out, "data alone goes to standard output")
				assert.Contains(t, got.err, "hint: ")
			}
			name := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(row.args, "-"), "-")
			golden(t, "command/"+strings.TrimSuffix("signetctl-"+name, "-"), "--- stdout\n"+got.out+"--- stderr\n"+got.err)
		})
	}
}

// TestPlugin: as kubectl-signet it calls itself kubectl signet.
func TestPlugin(t *testing.T) {
	alone(t)
	for _, name := range []string{"kubectl-signet", "/usr/local/bin/kubectl-signet", "kubectl-signet.exe"} {
		got := runAs(t, t.Context(), name, "services", "--help")
		assert.Contains(t, got.out, "\n  kubectl signet services -A --problems\n")
		assert.Contains(t, got.out, "\n  kubectl signet services [flags]\n")
		assert.NotContains(t, got.out, "signetctl")
		got = runAs(t, t.Context(), name, "services", "extra")
		assert.Contains(t, got.err, "hint: kubectl signet services --help\n")
	}
	got := runAs(t, t.Context(), "kubectl-signet", "__complete", "describe", "")
	assert.Contains(t, got.out, "service\ncertificate\nidentity\n")
}

func TestVersion(t *testing.T) {
	for _, argument := range []string{"version", "--version"} {
		got := run(t, argument)
		assert.Equal(t, "signetctl "+version.Current().String()+"\n", got.out, argument)
		assert.Equal(t, exitOK, got.code, argument)
	}
}

func TestCompletion(t *testing.T) {
	alone(t)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		got := run(t, "completion", shell)
		assert.Equal(t, exitOK, got.code)
		assert.Contains(t, got.out, "signetctl")
	}
	for args, want := range map[string]string{
		"services -o ":             "table\nwide\njson\nyaml\nname\n",
		"certificates --state ":    "fresh\ndue\noverdue\nexpired\n",
		"certificates --standing ": "live\nsuperseded\norphaned\nended\nany\n",
		"probe --protocol ":        "auto\nsidecar\nambient\ntls\nsmtp\nimap\npop3\n",
	} {
		got := run(t, append([]string{"__complete"}, append(strings.Fields(args), "")...)...)
		assert.Contains(t, got.out, want)
	}
	// The names of services come from Signet; where it can't be asked, there are none.
	kubeconfig(t, "{token: "+someToken+"}")
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "shop", r.URL.Query().Get("namespace"))
		answer(w, 200, api.ServiceList{Items: []api.Service{{Name: "cart"}, {Name: "checkout"}, {Name: "web"}}})
	}))
	got := run(t, append([]string{"__complete"}, append(s.flags(), "describe", "service", "c")...)...)
	assert.Equal(t, "cart\ncheckout\n:4\n", got.out)
	s.Close()
	got = run(t, append([]string{"__complete"}, append(s.flags(), "describe", "service", "c")...)...)
	assert.Equal(t, ":4\n", got.out)
}

// TestAnswers: each kind of answer has its exit code and a hint, and what a server says can't control the terminal.
func TestAnswers(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	for status, row := range map[int]struct {
		code int
		hint string
	}{
		400: {exitUsage, "services --help"},
		401: {exitNotAllowed, "log in anew"},
		403: {exitNotAllowed, "ClusterRole signet-reader"},
		404: {exitNotFound, "services -A"},
		422: {exitUsage, "services --help"},
		429: {exitFailed, "ask again in a moment"},
		500: {exitFailed, "the log of Signet"},
		503: {exitFailed, "ask again in a moment"},
	} {
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, status, "because\x1b[2J of\nthis") }))
		got := run(t, s.flags("services")...)
		assert.Equal(t, row.code, got.code, status)
		assert.Empty(t, got.out)
		assert.Regexp(t, `^error: because\\x1b\[2J of\\nthis \(\d+\)\nhint: .*`+row.hint, got.err)
	}
	elsewhere := serveAs(t, "signet.certs.svc", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, 500, "") }))
	assert.Contains(t, run(t, elsewhere.flags("services", "--signet-namespace", "certs")...).err, ": kubectl logs -n certs -l app.kubernetes.io/name=signet --prefix")
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusForbidden, "jane may not create probes.signet.dev in namespace shop; a Role or ClusterRole must grant it")
	}))
	assert.Contains(t, run(t, s.flags("probe", "web", "-n", "shop")...).err, "hint: a RoleBinding to ClusterRole signet-prober")
	// Something else answers, without problem details.
	s = serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "\x1b[2J", http.StatusBadGateway) }))
	got := run(t, s.flags("services")...)
	assert.Equal(t, exitFailed, got.code)
	assert.Contains(t, got.err, "error: Bad Gateway (502)\n")
	s = serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }))
	got = run(t, s.flags("services")...)
	assert.Equal(t, exitFailed, got.code)
	assert.Contains(t, got.err, "error: ask Signet: read answer of the inspection API")
}

// TestPodLabel: hints lead to the pods that the chart makes.
func TestPodLabel(t *testing.T) {
	text, err := os.ReadFile("../../deploy/kustomize/base/statefulset.yaml")
	require.NoError(t, err)
	var set appsv1.StatefulSet
	require.NoError(t, yaml.Unmarshal(text, &set))
	selector, err := labels.Parse(podLabel)
	require.NoError(t, err)
	assert.True(t, selector.Matches(labels.Set(set.Spec.Template.Labels)))
}

// TestProof: nothing is asked of a server that doesn't prove that it is Signet.
func TestProof(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	var asked atomic.Int32
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); answer(w, 200, api.ServiceList{}) })
	good, other, named := serve(t, handler), serve(t, handler), serveAs(t, "signet.example.com", handler)

	got := run(t, good.flags("services", "-A")...)
	require.Equal(t, exitOK, got.code, got.err)
	require.EqualValues(t, 1, asked.Swap(0))
	for name, row := range map[string]struct {
		args []string
		hint string
	}{
		"another root":   {[]string{"--server", good.URL, "--ca-file", other.caFile}, "no certificate under the roots"},
		"no root":        {[]string{"--server", good.URL, "--server-name", "signet.istio-system.svc", "--signet-namespace", "elsewhere"}, "kubectl get configmap istio-ca-root-cert -n elsewhere "},
		"another name":   {named.flags(), "--server-name"},
		"another Signet": {good.flags("--signet-namespace", "elsewhere"), "--server-name"},
		"an own name":    {good.flags("--server-name", "signet.example.com"), "--server-name"},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t, append(row.args, "services")...)
			assert.Equal(t, exitFailed, got.code)
			assert.Contains(t, got.err, "hint: "+"what answered has no certificate")
			assert.Contains(t, got.err, row.hint)
			assert.Zero(t, asked.Load())
		})
	}
	got = run(t, named.flags("--server-name", "signet.example.com", "services")...)
	assert.Equal(t, exitOK, got.code, got.err)

	t.Setenv(serverVariable, good.URL)
	t.Setenv(caVariable, good.caFile)
	got = run(t, "services")
	assert.Equal(t, exitOK, got.code, "as the demo's env file has it: %s", got.err)
	assert.NotContains(t, run(t, "services", "--help").out, good.URL)
	got = run(t, "services", "--ca-file", other.caFile)
	assert.Equal(t, exitFailed, got.code, "the flag counts")
}

// TestUnreachable: nobody listens.
func TestUnreachable(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	s := serve(t, http.NotFoundHandler()) // for its CA; nobody is given port 1 by chance
	got := run(t, "--server", "https://127.0.0.1:1", "--ca-file", s.caFile, "--signet-namespace", "certs", "services")
	assert.Equal(t, exitFailed, got.code)
	assert.Contains(t, got.err, "connection refused")
	assert.Contains(t, got.err, "hint: is Signet running")
	assert.Contains(t, got.err, " kubectl get pods -n certs\n")
	assert.NotContains(t, got.err, "/v1/services", "an address that nobody typed")
}

func TestTimeout(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	s := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		panic(http.ErrAbortHandler) // an empty answer, however late, might still be taken
	}))
	got := run(t, s.flags("services", "--timeout", "100ms")...)
	assert.Equal(t, exitFailed, got.code)
	assert.Contains(t, got.err, "--timeout")
}

// TestList: pages are put together, as tables, as the API's own types and as names; the namespace is that of the
// kubeconfig unless another or all are asked for.
func TestList(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	var wanted atomic.Value
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		wanted.Store(q.Get("namespace") + " " + q.Get("limit"))
		list := api.ServiceList{List: api.List{Coverage: api.Coverage{Since: now, Replicas: []string{"signet-0"}}, Restricted: true}}
		switch q.Get("continue") {
		case "":
			list.Items, list.Continue = []api.Service{{Namespace: "shop", Name: "cart"}}, "second"
		case "second":
			list.Items = []api.Service{{Namespace: "shop", Name: "a-longer-name", Problems: []api.Problem{{Code: api.ProblemExpired}}}}
		}
		answer(w, 200, list)
	}))
	const restricted = "notice: namespaces that you may not see are left out\n"
	got := run(t, s.flags("services")...)
	assert.Equal(t, exitOK, got.code)
	assert.Equal(t, "shop 500", wanted.Load())
	assert.Equal(t, restricted, got.err)
	assert.Len(t, strings.Split(strings.TrimSpace(got.out), "\n"), 3)

	got = run(t, s.flags("services", "-n", "pay", "-o", "name")...)
	assert.Equal(t, "pay 500", wanted.Load())
	assert.Equal(t, "service/shop/cart\nservice/shop/a-longer-name\n", got.out)

	for format, read := range map[string]func([]byte, any) error{"json": json.Unmarshal, "yaml": func(text []byte, into any) error { return yaml.UnmarshalStrict(text, into) }} {
		got = run(t, s.flags("services", "-A", "-o", format)...)
		assert.Equal(t, " 500", wanted.Load())
		var list api.ServiceList
		require.NoError(t, read([]byte(got.out), &list), got.out)
		require.Len(t, list.Items, 2)
		assert.Equal(t, "a-longer-name", list.Items[1].Name)
		assert.True(t, list.Restricted)
		assert.Equal(t, now, list.Coverage.Since)
		assert.Empty(t, list.Continue)
	}
	got = run(t, s.flags("services", "--limit", "1", "-o", "json")...)
	assert.Equal(t, "shop 1", wanted.Load())
	assert.Contains(t, got.out, `"continue": "second"`)
	assert.Contains(t, got.err, "there are more than these 1; --limit 0 shows all\n")

	got = run(t, s.flags("services", "--check")...)
	assert.Equal(t, exitAttention, got.code)
	assert.Equal(t, restricted, got.err, "that isn't an error to be told")
	assert.Equal(t, exitOK, run(t, s.flags("services", "--check", "--limit", "1")...).code)
}

func TestNothing(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, api.ServiceList{}) }))
	got := run(t, s.flags("services")...)
	assert.Equal(t, result{exitOK, "", "notice: no services like that in namespace shop; -A asks for all\n"}, got)
	got = run(t, s.flags("services", "-A")...)
	assert.Equal(t, result{exitOK, "", "notice: no services like that\n"}, got)
	got = run(t, s.flags("services", "-A", "-o", "json")...)
	assert.Contains(t, got.out, `"items": []`)
}

// TestQueries: flags become the API's own filters.
func TestQueries(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	var path, query atomic.Value
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		q.Del("limit")
		path.Store(r.Method + " " + r.URL.EscapedPath())
		query.Store(q.Encode())
		answer(w, 200, struct{}{})
	}))
	digest := digest("3f0c")
	for args, want := range map[string]string{
		"services --problems":    "GET /v1/services namespace=shop&problems=true",
		"gateways --problems -A": "GET /v1/gateways problems=true",
		"certificates -A --identity i --san s --serial 5F:3a --node n --issuer x --state overdue --standing ended --expires-within 2d --remaining-below 0.3": "GET /v1/certificates expiresWithin=48h0m0s&identity=i&issuer=x&node=n&remainingRatioBelow=0.3&san=s&serial=5f3a&standing=ended&state=overdue",
		"certificates -A --serial 5f3a": "GET /v1/certificates serial=5f3a&standing=any",
		"expiring -A --serial 5f3a":     "GET /v1/expiring serial=5f3a&within=1h0m0s",
		"expiring":                      "GET /v1/expiring namespace=shop&within=1h0m0s",
		"expiring -A --within 90":       "GET /v1/expiring within=1m30s",
		"issuances -A --outcome refused --identity i --since 2026-01-31T12:00:00Z": "GET /v1/issuances identity=i&outcome=refused&since=2026-01-31T12%3A00%3A00Z",
		"trust":                        "GET /v1/trust ",
		"describe service cart":        "GET /v1/namespaces/shop/services/cart ",
		"describe service -n pay cart": "GET /v1/namespaces/pay/services/cart ",
		"describe service/pay/cart":    "GET /v1/namespaces/pay/services/cart ",
		"describe certificate " + strings.ToUpper(digest): "GET /v1/certificates/" + digest + " ",
		"describe issuance/" + digest:                     "GET /v1/certificates/" + digest + " ",
		"describe identity spiffe://a/ns/b/sa/c":          "GET /v1/identities/spiffe:%2F%2Fa%2Fns%2Fb%2Fsa%2Fc ",
		"describe identity/spiffe://a/ns/b/sa/c":          "GET /v1/identities/spiffe:%2F%2Fa%2Fns%2Fb%2Fsa%2Fc ",
		"probe cart --port 80 --protocol tls":             "POST /v1/probes ",
	} {
		got := run(t, s.flags(strings.Fields(args)...)...)
		assert.Equal(t, exitOK, got.code, got.err)
		assert.Equal(t, want, path.Load().(string)+" "+query.Load().(string), args)
	}
	assert.Equal(t, exitAttention, func() int {
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, api.Probe{Verdict: api.ProbeAlarm}) }))
		return run(t, s.flags("probe", "cart", "--check")...).code
	}())
	assert.Equal(t, exitAttention, func() int {
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			answer(w, 200, api.Trust{Expiring: []api.Subject{{State: api.Overdue}}})
		}))
		return run(t, s.flags("trust", "--check")...).code
	}())
	s = serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, api.CertificateList{Items: []api.Certificate{{State: api.Fresh, Standing: api.Live}}})
	}))
	assert.Equal(t, exitOK, run(t, s.flags("certificates", "--check")...).code)
	assert.Equal(t, exitAttention, run(t, s.flags("expiring", "--check")...).code, "whatever its state, it ends soon")
}
