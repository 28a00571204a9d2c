package main

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// migrations are what testdata/migrate has: what the command is given, in the folder of that name. Its values are loaded by
// Signet in cmd/signet and rendered by its chart in test/chart.
var migrations = map[string][]string{
	"defaults":   {"-f", "values.yaml"},
	"pinned":     {"-f", "values.yaml"},
	"everything": {"-f", "base.yaml", "-f", "prod.yaml", "-n", "security"},
	"runtime":    {"-f", "values.yaml"},
	"dynamic":    {"-f", "values.yaml"},
	"computed":   {"-f", "values.yaml"}, // as helm get values -a has them
	"part":       {"-f", "platform.yaml", "--below", "cert-manager-istio-csr"},
	"deployment": {"-f", "deployment.yaml"},
	"flags": {
		"--", "-c", "mesh", "--issuer-enabled=false", "--runtime-issuance-config-map-name", "issuer", "--istiod-cert-enabled", "-t2h",
		"--serving-certificate-dns-names=a.b.svc,c.example.com", "--serving-certificate-dns-names", "cert-manager-istio-csr.cert-manager.svc",
		"--certificate-request-additional-annotations=a/b=c", "--istiod-cert-additional-annotations=d/e=f,g=h", "--kubeconfig=/x", "-d",
		"--trust-domain=td@example", "--log-level=0", "--istiod-cert-istio-revisions=a,b",
	},
}

// TestMigrateIstioCSR holds the values and what is said of them.
func TestMigrateIstioCSR(t *testing.T) {
	alone(t)
	testdata, err := filepath.Abs("testdata")
	require.NoError(t, err)
	for name, args := range migrations {
		t.Run(name, func(t *testing.T) {
			got := migrateIn(t, filepath.Join(testdata, "migrate", name), args...)
			require.Equal(t, exitOK, got.code, got.err)
			t.Chdir(filepath.Dir(testdata)) // where the golden files are found
			golden(t, "migrate/"+name+"/signet.yaml", got.out)
			golden(t, "migrate/"+name+"/stderr", got.err)
			report := migrateIn(t, filepath.Join(testdata, "migrate", name), slices.Insert(slices.Clone(args), 0, "-o", "report")...)
			require.Equal(t, exitOK, report.code, report.err)
			assert.Empty(t, report.err)
			t.Chdir(filepath.Dir(testdata))
			golden(t, "migrate/"+name+"/report", report.out)
		})
	}
	entries, err := os.ReadDir(filepath.Join(testdata, "migrate"))
	require.NoError(t, err)
	assert.Len(t, entries, len(migrations), "each folder is a case")
}

// TestMigrateCommand: what it says of itself, and of a command line that it doesn't understand.
func TestMigrateCommand(t *testing.T) {
	alone(t)
	for args, code := range map[string]int{
		"migrate": exitUsage, "migrate linkerd": exitUsage, "migrate istio-csr": exitUsage, "migrate istio-csr --help": exitOK,
		"migrate istio-csr values.yaml": exitUsage, "migrate istio-csr values.yaml -- -d": exitUsage,
		"migrate istio-csr -f nowhere.yaml": exitUsage, "migrate istio-csr -o json -- -d": exitUsage,
	} {
		t.Run(args, func(t *testing.T) {
			got := run(t, strings.Fields(args)...)
			assert.Equal(t, code, got.code)
			if code != exitOK {
				assert.Empty(t, got.out)
				assert.Contains(t, got.err, "hint: ")
			}
			name := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(args, "-"), "-")
			golden(t, "command/signetctl-"+name, "--- stdout\n"+got.out+"--- stderr\n"+got.err)
		})
	}
	got := run(t, "__complete", "migrate", "istio-csr", "-o", "")
	assert.Contains(t, got.out, "values\nreport\n")
}

// migrateIn runs migrate istio-csr in a folder.
func migrateIn(t *testing.T, folder string, args ...string) result {
	t.Helper()
	t.Chdir(folder)
	return run(t, append([]string{"migrate", "istio-csr"}, args...)...)
}

// TestMigrateTellsOfEverything: each value and each flag that istio-csr has is told of when it is set, by its name.
func TestMigrateTellsOfEverything(t *testing.T) {
	alone(t)
	var values map[string]any
	for _, file := range []string{"base.yaml", "prod.yaml"} {
		documents, err := readDocuments(filepath.Join("testdata", "migrate", "everything", file), nil)
		require.NoError(t, err)
		require.Len(t, documents, 1)
		if values == nil {
			values = documents[0].object
		} else {
			mergeValues(values, documents[0].object)
		}
	}
	told := readGolden(t, "migrate/everything/report")
	// Said under the name of another: parts of one setting.
	under := map[string]string{
		"app.server.serving.address": "app.server.serving", "app.server.serving.port": "app.server.serving",
		"app.runtimeConfiguration.issuer.name": "app.runtimeConfiguration.issuer", "app.runtimeConfiguration.issuer.kind": "app.runtimeConfiguration.issuer",
		"app.runtimeConfiguration.issuer.group": "app.runtimeConfiguration.issuer",
		"app.runtimeIssuanceConfigMap":          "app.runtimeConfiguration.name", // counts only where that isn't set
	}
	for _, path := range knownValues() {
		if path == "global" {
			continue // other charts'
		}
		value, ok := lookUp(values, path)
		assert.True(t, ok && value != nil, "%s isn't set in the case that has everything", path)
		name := path
		if other, ok := under[path]; ok {
			name = other
		}
		row := regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(name) + `(:.*| ->.*)?$`).FindString(told)
		assert.NotEmpty(t, row, "%s is lost", path)
		assert.NotContains(t, row, "(default)", path)
	}
	args := []string{"migrate", "istio-csr", "-o", "report", "--"}
	for _, f := range slices.Concat(csrFlags, kubernetesFlags) {
		value, ok := map[string]string{
			"serving-address": ":7443", "serving-certificate-dns-names": "a.b", "istiod-cert-duration": "2h", "istiod-cert-renew-before": "1h", "ca-trusted-node-accounts": "a/b",
			"log-format": "json", "serving-signature-algorithm": "ECDSA", "istiod-cert-key-algorithm": "ECDSA", "issuer-kind": "ClusterIssuer",
			"metrics-port": "7444", "readiness-probe-port": "7445",
		}[f.name]
		if !ok {
			value = map[flagKind]string{flagBool: "true", flagNumber: "256", flagDuration: "2h", flagList: "a", flagPairs: "a/b=c", flagText: "a"}[f.kind]
		}
		args = append(args, "--"+f.name+"="+value)
	}
	got := run(t, args...)
	require.Equal(t, exitOK, got.code, got.err)
	for _, f := range slices.Concat(csrFlags, kubernetesFlags) {
		assert.Regexp(t, `(?m)^  --`+f.name+`(:.*| ->.*)?$`, got.out)
	}
}

func readGolden(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
	require.NoError(t, err)
	return string(text)
}

// TestMigrateRefuses: what can't be carried over as it stands ends the run, names the setting and prints no values.
func TestMigrateRefuses(t *testing.T) {
	alone(t)
	for name, row := range map[string]struct {
		text string
		args []string
		want string
	}{
		"unknown value":            {text: "app: {tls: {trustdomain: x}}", want: "istio-csr v0.17.0 doesn't know app.tls.trustdomain"},
		"all unknown values":       {text: "agent: {x: 1}\napp: {tls: {a: 1}}\nreplicas: 2", want: "doesn't know agent, app.tls.a, replicas"},
		"a path for a key":         {text: "app.tls.trustDomain: x\napp: {tls.rootCAFile: x}", want: "doesn't know app.tls.rootCAFile, app.tls.trustDomain"},
		"a path for a map's key":   {text: "app.tls: {trustDomain: x}", want: "doesn't know app.tls\n"},
		"unknown flags":            {args: []string{"--", "--trustdomain=x", "-zx", "--issuer", "y"}, want: "doesn't know --trustdomain, -zx, --issuer"},
		"a value for a map":        {text: "app: 1", want: "app: a map of values is expected"},
		"a null for all":           {text: "app: {tls: null}", want: "error: app.tls: a map of values is expected\n"},
		"a null for all there is":  {text: "app: null", want: "error: app: a map of values is expected\n"},
		"a bool for an annotation": {text: "podAnnotations: {a: b, prometheus.io/scrape: true}", want: "error: podAnnotations: prometheus.io/scrape: true is no text; put it in quotes\n"},
		"a number for a label":     {text: "commonLabels: {a: 1}\npodLabels: {b: 1.5}\ndeploymentLabels: {c: [d]}", want: "commonLabels: a: 1 is no text; put it in quotes; deploymentLabels: c: 1 of them is no text; put it in quotes; podLabels: b: 1.5 is no text"},
		"a bool for a node":        {text: "nodeSelector: {mesh: yes}", want: "nodeSelector: mesh: true is no text"},
		"a number for a monitor":   {text: "app: {metrics: {service: {servicemonitor: {labels: {a: 1}}}}}", want: "app.metrics.service.servicemonitor.labels: a: 1 is no text"},
		"a Deployment's bool":      {text: "deploymentAnnotations: {a: false}", want: "deploymentAnnotations: a: false is no text"},
		"no selector":              {text: "topologySpreadConstraints: [{labelSelector: {matchLabels: {a: 1}}}]", want: "topologySpreadConstraints[0].labelSelector: it is no label selector"},
		"no operator":              {text: "affinity: {podAffinity: {x: [{labelSelector: {matchExpressions: [{key: a, operator: Is}]}}]}}", want: "affinity.podAffinity.x[0].labelSelector: it is no label selector"},
		"nothing below":            {text: "a: {}\nb: 1", args: []string{"--below", "b"}, want: "--below b: there is no map of values"},
		"nowhere below":            {text: "a: {}", args: []string{"--below", "b.c"}, want: "--below b.c: there is no map of values"},
		"flags below":              {args: []string{"--below", "b", "--", "-d"}, want: "--below b: it is for values, and none were given"},
		"a Deployment below":       {text: csrDeployment("image: x"), args: []string{"--below", "spec"}, want: "--below spec: it is for values, and none were given"},
		"a null for a default":     {text: "app: {tls: {trustDomain: null}}", want: "app.tls.trustDomain: it is null"},
		"a list for a text":        {text: "app: {tls: {trustDomain: [a]}}", want: "app.tls.trustDomain: a list stands where"},
		"a map for a text":         {text: "app: {tls: {trustDomain: {a: b}}}", want: "app.tls.trustDomain: a text or a number is expected"},
		"no duration":              {text: "app: {tls: {certificateDuration: 1d}}", want: `app.tls.certificateDuration: "1d" is no duration`},
		"no bool":                  {text: "app: {certmanager: {issuer: {enabled: maybe}}}", want: `app.certmanager.issuer.enabled: "maybe" is no bool`},
		"no number":                {args: []string{"--", "--metrics-port=x"}, want: `--metrics-port`},
		"a bad annotation":         {text: "app: {certmanager: {additionalAnnotations: [{name: a}]}}", want: "app.certmanager.additionalAnnotations: each must have a name and a value"},
		"an annotation of ours":    {text: "app: {certmanager: {additionalAnnotations: [{name: istio.cert-manager.io/identities, value: c}]}}", want: "istio.cert-manager.io/identities is one that Signet sets itself"},
		"a bad annotation's name":  {text: "app: {certmanager: {additionalAnnotations: [{name: 'a b', value: c}]}}", want: "app.certmanager.additionalAnnotations"},
		"trust domain":             {text: "app: {tls: {trustDomain: Mesh}}", want: `app.tls.trustDomain "Mesh": it is no trust domain`},
		"namespace":                {text: "app: {certmanager: {namespace: A}}", want: `app.certmanager.namespace "A"`},
		"no issuer's name":         {text: "app: {certmanager: {issuer: {name: ''}}}", want: `app.certmanager.issuer.name ""`},
		"issuer's kind":            {text: "app: {certmanager: {issuer: {kind: clusterissuer}}}", want: "there are Issuer and ClusterIssuer"},
		"no issuer at all":         {text: "app: {certmanager: {issuer: {enabled: false}}}", want: "nothing can sign"},
		"runtime ConfigMap":        {text: "app: {runtimeConfiguration: {name: A}}", want: `app.runtimeConfiguration.name "A"`},
		"runtime namespace":        {args: []string{"--", "--runtime-issuance-config-map-name=a", "--runtime-issuance-config-map-namespace=B"}, want: `--runtime-issuance-config-map-namespace "B"`},
		"selector":                 {text: "app: {controller: {configmapNamespaceSelector: 'a=b=c'}}", want: "it is no label selector"},
		"accounts":                 {text: "app: {server: {caTrustedNodeAccounts: ztunnel}}", want: `"ztunnel" is not NAMESPACE/NAME`},
		"lifetime":                 {text: "app: {server: {maxCertificateDuration: 0s}}", want: `app.server.maxCertificateDuration "0s": Signet takes 1s to 87600h`},
		"istiod's lifetime":        {text: "app: {tls: {istiodCertificateDuration: 30m}}", want: `app.tls.istiodCertificateDuration "30m"`},
		"istiod's renewal":         {text: "app: {tls: {istiodCertificateRenewBefore: 1h}}", want: "it must be below the certificate's 1h"},
		"istiod's key":             {text: "app: {tls: {istiodPrivateKeyAlgorithm: Ed25519}}", want: "it must be RSA or ECDSA"},
		"istiod's certificate":     {text: "app: {tls: {istiodCertificateEnable: static}}", want: `it must be true, false or "dynamic"`},
		"istiod's name":            {args: []string{"--", "--istiod-cert-enabled", "--istiod-cert-name=A"}, want: "it is no name of a Certificate"},
		"istiod's namespace":       {args: []string{"--", "--istiod-cert-enabled", "--istiod-cert-namespace=A", "--issuer-kind=ClusterIssuer"}, want: "it is no name of a namespace"},
		"revision":                 {text: "app: {istio: {revisions: [A]}}", want: `"A" is no revision`},
		"no DNS name":              {text: "app: {tls: {certificateDNSNames: []}}", want: "there must be one"},
		"no DNS name by flag":      {args: []string{"--", "--serving-certificate-dns-names="}, want: "there must be one"},
		"aliases":                  {text: "x: &x '" + strings.Repeat("x", 1<<20) + "'\ny: [" + strings.Repeat("*x,", 20) + "]", want: "where its aliases stand for what they mean"},
		"an alias within itself":   {text: "x: &x [*x]", want: "where its aliases stand for what they mean"},
		"a variable":               {text: csrDeployment("args: [--issuer-name, $(ISSUER)]"), want: `argument "$(ISSUER)": it takes a variable`},
		"own namespace":            {args: []string{"-n", "a:b", "--", "-d"}, want: `"system:serviceaccount:a:b:cert-manager-istio-csr": it is no ServiceAccount`},
		"serving lifetime":         {text: "app: {tls: {certificateDuration: 5s}}", want: "Signet takes 10s to 87600h"},
		"address":                  {args: []string{"--", "--serving-address=6443"}, want: "it is no address to listen on"},
		"loopback":                 {text: "app: {server: {serving: {address: 127.0.0.1}}}", want: "nobody outside of the pod reaches it"},
		"port":                     {text: "app: {metrics: {port: 70000}}", want: `app.metrics.port "70000": it is no port`},
		"ports":                    {text: "app: {metrics: {port: 6060}}", want: "must differ"},
		"log format":               {text: "app: {logFormat: xml}", want: "it must be text or json"},
		"replicas":                 {text: "replicaCount: many", want: "replicaCount: a whole number is expected"},
		"replicas below zero":      {text: "replicaCount: -1", want: "a number of replicas is expected"},
		"Service's port":           {text: "service: {port: 0}", want: `service.port "0": it is no port`},
		"a text for a list":        {text: "volumes: x", want: "volumes: a list is expected"},
		"a list for labels":        {text: "podLabels: [x]", want: "podLabels: a map is expected"},
		"a text for a bool":        {text: "podDisruptionBudget: {enabled: 'yes'}", want: "podDisruptionBudget.enabled: true or false is expected"},
		"own name":                 {text: "nameOverride: A_B", args: []string{"-n", "a", "--", "--serving-certificate-dns-names=A_B.a.svc"}, want: "it is no name of a Service"},
		"no values":                {text: "[1, 2]", want: "it holds no map of values"},
		"no YAML":                  {text: "a: [", want: "not YAML"},
		"a value twice":            {text: "app: {}\napp: {}", want: "not YAML"},
		"too much":                 {text: strings.Repeat("# much\n", maxInputBytes/7+1), want: "has more than"},
		"another manifest":         {text: "apiVersion: v1\nkind: Service", want: "no Deployment with a container of istio-csr"},
		"another Deployment":       {text: "apiVersion: apps/v1\nkind: Deployment\nspec: {template: {spec: {containers: [{name: other, image: other}]}}}", want: "no Deployment with a container of istio-csr"},
		"a broken Deployment":      {text: "apiVersion: apps/v1\nkind: Deployment\nspec: [1]", want: "Deployment: json"},
		"two Deployments":          {text: strings.Repeat("apiVersion: apps/v1\nkind: Deployment\nspec: {template: {spec: {containers: [{name: istio-csr}]}}}\n---\n", 2), want: "several containers of istio-csr"},
		"audiences from afar":      {text: csrDeployment("env: [{name: TOKEN_AUDIENCES, valueFrom: {fieldRef: {fieldPath: a}}}]"), want: "env TOKEN_AUDIENCES"},
		"values and a manifest":    {text: "app: {}\n---\napiVersion: v1\nkind: Service", want: "values and a manifest were given"},
		"an argument to a flag":    {args: []string{"--", "server"}, want: `"server": istio-csr takes flags only`},
	} {
		t.Run(name, func(t *testing.T) {
			args := row.args
			if row.text != "" {
				file := filepath.Join(t.TempDir(), "in.yaml")
				require.NoError(t, os.WriteFile(file, []byte(row.text), 0o600))
				args = append([]string{"-f", file}, args...)
			}
			got := run(t, append([]string{"migrate", "istio-csr"}, args...)...)
			assert.Equal(t, exitUsage, got.code)
			assert.Empty(t, got.out)
			assert.Contains(t, got.err, "error: ")
			assert.Contains(t, got.err, row.want)
			assert.Contains(t, got.err, "\nhint: ")
		})
	}
}

// TestMigrateSkipUnknown: what isn't known is told of, and the rest is carried over.
func TestMigrateSkipUnknown(t *testing.T) {
	alone(t)
	file := filepath.Join(t.TempDir(), "in.yaml")
	require.NoError(t, os.WriteFile(file, []byte("app: {tls: {trustdomain: x, trustDomain: mesh.example}, futures: {a: 1}}"), 0o600))
	got := run(t, "migrate", "istio-csr", "-f", file, "--skip-unknown", "--", "--newer", "x", "--cluster-id=west")
	require.Equal(t, exitOK, got.code, got.err)
	assert.Contains(t, got.err, "NOT KNOWN, LEFT OUT:\n  app.futures\n")
	assert.Contains(t, got.err, "\n  app.tls.trustdomain\n")
	assert.Contains(t, got.err, "\n  --newer\n")
	assert.Contains(t, got.out, "trustDomain: mesh.example\n")
	assert.Contains(t, got.out, "clusterID: west\n", "what follows an unknown flag counts")
}

// TestMigrateNested: values of istio-csr that are below a key, as in those of a chart that it is a part of, are never left out.
func TestMigrateNested(t *testing.T) {
	alone(t)
	for text, want := range map[string]string{
		"cert-manager-istio-csr: {app: {tls: {trustDomain: mesh.example}}}":  "cert-manager-istio-csr",
		"redis: {replicaCount: 1}\nca: {app: {server: {clusterID: west}}}":   "ca",
		"a: {b: {c: {app: {certmanager: {}}}}, app: {other: 1}}":             "a.b.c",
		"app: {app: {tls: {trustDomain: mesh.example}}}":                     "app",
		"one: {app: {tls: {}}}\napp: {logLevel: 2}":                          "one",
		"old-istio-csr: {podLabels: {a: b}}\nglobal: {app: {tls: {}}}":       "old-istio-csr",
		"platform: {istio-csr: {replicaCount: 2}}":                           "platform.istio-csr",
		"one: {app: {tls: {}}}\ntwo: {app: {istio: {}}}":                     "one, two",
		"mesh: {replicaCount: 2, unknown: 1}\nother: {more: 1}\nredis: text": "mesh",
	} {
		t.Run(want, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "in.yaml")
			require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
			first, _, _ := strings.Cut(want, ",")
			for _, args := range [][]string{nil, {"--skip-unknown"}} {
				got := run(t, append([]string{"migrate", "istio-csr", "-f", file}, args...)...)
				assert.Equal(t, exitUsage, got.code)
				assert.Empty(t, got.out)
				assert.Contains(t, got.err, "error: "+want+": istio-csr's values are below there")
				assert.Contains(t, got.err, "take them by --below "+first+", or take that key out\n")
			}
		})
	}
	file := filepath.Join(t.TempDir(), "in.yaml")
	require.NoError(t, os.WriteFile(file, []byte("a: {mesh-ca: {app: {tls: {trustDomain: mesh.example}}}, csr: {mesh: {app: {tls: {}}}}, named: {nameOverride: x}}"), 0o600))
	got := values(t, "-f", file, "--below", "a.mesh-ca")
	assert.Equal(t, "mesh.example", got["config"].(map[string]any)["trustDomain"])
	allowed := got["admissionPolicy"].(map[string]any)["allowed"].(map[string]any)
	assert.Equal(t, []any{"system:serviceaccount:cert-manager:mesh-ca"}, allowed["users"], "Helm calls it by that key")
	allowed = values(t, "-f", file, "--below", "a.named")["admissionPolicy"].(map[string]any)["allowed"].(map[string]any)
	assert.Equal(t, []any{"system:serviceaccount:cert-manager:x"}, allowed["users"])
	refused := run(t, "migrate", "istio-csr", "-f", file, "--below", "a.csr", "--skip-unknown")
	assert.Equal(t, exitUsage, refused.code)
	assert.Contains(t, refused.err, "error: a.csr.mesh: istio-csr's values are below there")
	assert.Contains(t, refused.err, "--below a.csr.mesh, ")
}

// TestMigrateReads: the ways in which the same is given.
func TestMigrateReads(t *testing.T) {
	alone(t)
	folder := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	one := write("one.yaml", "app: {server: {clusterID: west}, tls: {trustDomain: a.example, certificateDNSNames: [a, b]}}\n")
	two := write("two.yaml", "app: {tls: {trustDomain: b.example, certificateDNSNames: [c]}}\n")
	helm := write("helm.yaml", "COMPUTED VALUES:\napp:\n  server:\n    clusterID: west\n  tls:\n    trustDomain: b.example\n    certificateDNSNames: [c]\n")
	nothing := write("nothing.yaml", "USER-SUPPLIED VALUES:\nnull\n")
	flags := []string{"--", "--cluster-id", "west", "--trust-domain=b.example", "--serving-certificate-dns-names", "c"}
	want := values(t, "-f", one, "-f", two)
	assert.Equal(t, want, values(t, "-f", helm))
	assert.Equal(t, want, values(t, append([]string{"-f", nothing}, flags...)...), "flags count before values")
	assert.Equal(t, want, values(t, append([]string{"-f", one}, flags...)...))
	assert.NotEqual(t, want, values(t, "-f", two, "-f", one), "the later file counts")
	config := want["config"].(map[string]any)
	assert.Equal(t, "west", config["clusterID"])
	assert.Equal(t, []any{"c"}, config["serving"].(map[string]any)["dnsNames"])

	manifest, err := os.ReadFile(filepath.Join("testdata", "migrate", "deployment", "deployment.yaml"))
	require.NoError(t, err)
	list := values(t, "-f", filepath.Join("testdata", "migrate", "deployment", "deployment.yaml"))
	alone := regexp.MustCompile(`(?m)^..`).ReplaceAllString(strings.SplitN(string(manifest), "items:\n", 2)[1], "")
	assert.Equal(t, list, values(t, "-f", write("alone.yaml", "apiVersion: v1\nkind: Service\n---\n"+alone)))

	in, err := os.ReadFile(helm)
	require.NoError(t, err)
	var out buffer
	p := &program{out: &out, err: &buffer{}, name: "signetctl"}
	require.NoError(t, p.migrateFrom(bytes.NewReader(in), migrateFlags{files: []string{"-"}, output: outputValues}, nil))
	var read map[string]any
	require.NoError(t, yaml.UnmarshalStrict([]byte(out.String()), &read))
	assert.Equal(t, want, read, "standard input")
	err = p.migrateFrom(bytes.NewReader(in), migrateFlags{files: []string{"-", "-"}, output: outputValues}, nil)
	assert.ErrorContains(t, err, "standard input can be read once")
}

// csrDeployment is one with such a container.
func csrDeployment(container string) string {
	return "apiVersion: apps/v1\nkind: Deployment\nspec: {template: {spec: {containers: [{name: istio-csr, " + container + "}]}}}"
}

// TestMigrateAccount: who is allowed while both run is the account that istio-csr has.
func TestMigrateAccount(t *testing.T) {
	alone(t)
	for field, account := range map[string]string{"": "default", "serviceAccountName: a, ": "a", "serviceAccount: b, ": "b"} {
		file := filepath.Join(t.TempDir(), "in.yaml")
		text := strings.Replace(csrDeployment("image: x"), "containers:", field+"containers:", 1)
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		got := values(t, "-f", file, "-n", "old")
		allowed := got["admissionPolicy"].(map[string]any)["allowed"].(map[string]any)
		assert.Equal(t, []any{"system:serviceaccount:old:" + account}, allowed["users"])
	}
}

// TestMigrateNumbers: what has no quotes is read as Helm writes it.
func TestMigrateNumbers(t *testing.T) {
	alone(t)
	file := filepath.Join(t.TempDir(), "in.yaml")
	require.NoError(t, os.WriteFile(file, []byte("image: {tag: 1.10}\napp: {server: {clusterID: 7}, tls: {servingTLSMinVersion: 1.3}}"), 0o600))
	config := values(t, "-f", file)["config"].(map[string]any)
	assert.Equal(t, "7", config["clusterID"])
	assert.Equal(t, "1.3", config["serving"].(map[string]any)["minTLSVersion"])
}

// TestMigrateUnmounted: a root file that no volume holds is told of, since Signet's chart refuses it.
func TestMigrateUnmounted(t *testing.T) {
	alone(t)
	for at, told := range map[string]bool{"/etc/tls": false, "/etc/tls/": false, "/etc/tls/ca.pem": false, "/etc/tl": true, "/etc/tls/other": true} {
		file := filepath.Join(t.TempDir(), "in.yaml")
		text := "app: {tls: {rootCAFile: /etc/tls/ca.pem}}\nvolumes: [{name: a, emptyDir: {}}]\nvolumeMounts: [{name: a, mountPath: " + at + "}]"
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		got := run(t, "migrate", "istio-csr", "-f", file)
		require.Equal(t, exitOK, got.code, got.err)
		assert.Equal(t, told, strings.Contains(got.err, "  app.tls.rootCAFile: /etc/tls/ca.pem -> config.roots.file\n      no volumeMount holds that file"), at)
	}
}

// TestMigrateRenewal: istiod's certificate isn't renewed so late that nobody can see it fail.
func TestMigrateRenewal(t *testing.T) {
	alone(t)
	for name, row := range map[string]struct {
		text string
		want any
		said string
	}{
		"istio-csr's default": {text: "{istiodCertificateDuration: 720h}", said: "app.tls.istiodCertificateRenewBefore: 30m (default) -> config.istiod.renewBefore\n      left out"},
		"none":                {text: "{istiodCertificateRenewBefore: 0s}", said: "here 20m\n"},
		"below a fifth":       {text: "{istiodCertificateDuration: 5h, istiodCertificateRenewBefore: 59m59s}", said: "here 1h40m\n"},
		"a fifth":             {text: "{istiodCertificateDuration: 5h, istiodCertificateRenewBefore: 1h}", want: "1h"},
		"the defaults":        {text: "{}", want: "30m"},
	} {
		t.Run(name, func(t *testing.T) {
			got, said := migrateText(t, "app: {tls: "+row.text+"}")
			istiod := got["config"].(map[string]any)["istiod"].(map[string]any)
			assert.Equal(t, row.want, istiod["renewBefore"])
			_, changed, _ := strings.Cut(said, "WHAT CHANGES:\n")
			assert.Equal(t, row.want == nil, strings.Contains(changed, "-> config.istiod.renewBefore\n"))
			assert.Contains(t, changed, row.said)
		})
	}
}

// TestMigrateReplicas: what few replicas cost isn't carried over unsaid.
func TestMigrateReplicas(t *testing.T) {
	alone(t)
	for text, want := range map[string]string{
		"replicaCount: 0":                       "  replicaCount: 0 -> replicas\n      with none, nothing signs",
		"replicaCount: 1":                       "  replicaCount: 1 -> replicas\n      with one, nobody gets a certificate while it restarts",
		"replicaCount: 2":                       "",
		"podDisruptionBudget: {enabled: false}": "  podDisruptionBudget.enabled: false -> podDisruptionBudget.enabled\n      without it, drains of nodes may take all replicas at once",
		"podDisruptionBudget: {enabled: true}":  "",
	} {
		_, said := migrateText(t, text)
		todos, _, _ := strings.Cut(said, "\nWHAT CHANGES:\n")
		if want == "" {
			assert.NotRegexp(t, `(?m)^  (replicaCount|podDisruptionBudget)`, todos, text)
		} else {
			assert.Contains(t, todos, want, text)
		}
	}
}

// TestMigrateNulls: null is no label, and takes the default of the nodes' away.
func TestMigrateNulls(t *testing.T) {
	alone(t)
	got, _ := migrateText(t, "podLabels: {a: null, b: c}\nnodeSelector: {kubernetes.io/os: null, d: e}")
	assert.Equal(t, map[string]any{"b": "c"}, got["podLabels"])
	assert.Equal(t, map[string]any{"kubernetes.io/os": nil, "d": "e"}, got["nodeSelector"])
}

// TestMigrateStorage: no more storage is requested, by Signet's default, than was allowed.
func TestMigrateStorage(t *testing.T) {
	alone(t)
	for text, want := range map[string]any{
		"limits: {ephemeral-storage: 512Mi}":                                       nil,
		"limits: {ephemeral-storage: 512Mi}, requests: {ephemeral-storage: 256Mi}": "256Mi",
	} {
		got, said := migrateText(t, "resources: {"+text+"}")
		requested, there := got["resources"].(map[string]any)["requests"].(map[string]any)["ephemeral-storage"]
		assert.True(t, there, text)
		assert.Equal(t, want, requested, text)
		assert.Contains(t, said, "  resources -> resources.limits.ephemeral-storage\n")
	}
}

// values are what migrate istio-csr prints.
func values(t *testing.T, args ...string) map[string]any {
	t.Helper()
	got := run(t, append([]string{"migrate", "istio-csr"}, args...)...)
	require.Equal(t, exitOK, got.code, got.err)
	var read map[string]any
	require.NoError(t, yaml.UnmarshalStrict([]byte(got.out), &read))
	return read
}

// migrateText is what becomes of values, or of a manifest, and what is said of it.
func migrateText(t *testing.T, text string, args ...string) (map[string]any, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "in.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	got := run(t, append([]string{"migrate", "istio-csr", "-f", file}, args...)...)
	require.Equal(t, exitOK, got.code, got.err)
	var read map[string]any
	require.NoError(t, yaml.UnmarshalStrict([]byte(got.out), &read))
	return read, got.err
}

// FuzzMigrate: whatever values there are, they are refused, or become values whose every setting was told of.
func FuzzMigrate(f *testing.F) {
	inputs, err := filepath.Glob(filepath.Join("testdata", "migrate", "*", "*.yaml"))
	require.NoError(f, err)
	require.NotEmpty(f, inputs)
	for _, input := range inputs {
		text, err := os.ReadFile(input)
		require.NoError(f, err)
		f.Add(text, "--trust-domain=x -d")
	}
	f.Fuzz(func(t *testing.T, text []byte, args string) {
		file := filepath.Join(t.TempDir(), "in.yaml")
		require.NoError(t, os.WriteFile(file, text, 0o600))
		documents, err := readDocuments(file, nil)
		if err != nil {
			return
		}
		csr, err := readIstioCSR(documents, strings.Fields(args), "", "")
		if err != nil {
			return
		}
		m, problems := migrate(csr)
		if len(problems) > 0 {
			return
		}
		var out, report buffer
		require.NoError(t, m.writeValues(&out, "x"))
		var read map[string]any
		require.NoError(t, yaml.UnmarshalStrict([]byte(out.String()), &read), out.String())
		require.NotNil(t, read["config"])
		require.NoError(t, m.writeReport(&report, false, ""))
		for _, name := range slices.Sorted(maps.Keys(csr.given)) {
			require.Contains(t, report.String(), clean(csr.where(name)))
		}
	})
}
