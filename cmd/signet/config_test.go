package main

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/signer"
)

// minimal is the least that a configuration holds.
const minimal = `
issuer:
  name: mesh
roots:
  file: roots.pem
`

func TestParseConfigMinimal(t *testing.T) {
	cfg, err := ParseConfig([]byte(minimal))
	require.NoError(t, err)
	assert.Equal(t, "cluster.local", cfg.TrustDomain)
	assert.Equal(t, "cluster.local", cfg.CA.TrustDomain.Name())
	assert.Equal(t, "Kubernetes", cfg.ClusterID)
	assert.Equal(t, "Kubernetes", cfg.CA.ClusterID)
	assert.Equal(t, "istio-system", cfg.Namespace)
	assert.Equal(t, issuer.Ref{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"}, cfg.Issuer)
	assert.Equal(t, issuer.RootsConfig{File: "roots.pem"}, cfg.Roots)
	assert.Equal(t, signer.LeafUsages(), cfg.CA.Usages)
	assert.Equal(t, 5*time.Second, cfg.CA.ShutdownDelay)
	assert.Equal(t, 30*time.Second, cfg.CA.DrainTimeout)
}

func TestParseConfigWhole(t *testing.T) {
	text, err := os.ReadFile("testdata/whole.yaml")
	require.NoError(t, err)
	cfg, err := ParseConfig(text)
	require.NoError(t, err)
	assert.Equal(t, "user.example.org", cfg.CA.TrustDomain.Name(), "R17: '@' is read as '.'")
	assert.Equal(t, "east", cfg.CA.ClusterID)
	assert.Equal(t, []string{"east-1"}, cfg.CA.ClusterAliases)
	assert.Equal(t, "mesh", cfg.Namespace)
	assert.Equal(t, issuer.Ref{Name: "vault", Kind: "ClusterIssuer", Group: "cert-manager.io"}, cfg.Issuer)
	assert.Equal(t, &issuer.ObjectKey{Name: "roots", Key: "ca.pem"}, cfg.Roots.Secret)
	assert.Equal(t, ":16443", cfg.CA.Listen)
	assert.Equal(t, []string{"ECDSA-P256", "Ed25519"}, cfg.CA.Keys)
	assert.Equal(t, 90*time.Second, cfg.CA.RequestTimeout.Or(0))
	assert.Equal(t, []string{"istio-ca", "mesh"}, cfg.CA.Token.Audiences)
	assert.Equal(t, 30*time.Second, cfg.CA.Token.CacheAccepted.Or(0))
	assert.Equal(t, 12*time.Hour, cfg.CA.Lifetime.Max.Or(0))
	assert.Equal(t, 5, cfg.CA.Admission.InFlight)
	assert.Equal(t, 40, cfg.CA.Admission.PerNodePerMinute)
	assert.Equal(t, []string{"istio-system/ztunnel"}, cfg.CA.Nodes.Accounts)
	assert.Equal(t, signer.Usages{"client auth", "server auth"}, cfg.CA.Usages)
	assert.Equal(t, time.Minute, cfg.Signer.Timeout.Or(0))
	assert.Equal(t, 7, cfg.Signer.Sweep.Workers)
	assert.Equal(t, []string{"istiod.istio-system.svc"}, cfg.Serving.DNSNames)
	assert.Equal(t, ":19402", cfg.Metrics.Listen)
	assert.Equal(t, ":16060", cfg.Health.Listen)
	assert.Equal(t, LogConfig{Format: "text", Level: "debug"}, cfg.Log)
	assert.Equal(t, time.Second, cfg.CA.ShutdownDelay)
	assert.Equal(t, 2*time.Minute, cfg.CA.DrainTimeout)
}

// refused are configurations that are wrong, and parts of the error that says so.
var refused = []struct {
	name, text string
	want       []string
}{
	// fields that there are not
	{"unknown at the top", minimal + "trustdomain: x\n", []string{"trustdomain: unknown field; known here are api, audit, bundleEndpoint, ca, clusterID, crl, distribution, health, inventory, issuer, issuers, istiod, ledger, log, metrics, namespace, probes, replica, roots, serving, shutdown, signer, trustDomain"}},
	{"unknown a level down", "issuer: {name: mesh, nmae: x}\nroots: {fromIssuer: true}\n", []string{"issuer.nmae: unknown field; known here are group, kind, name"}},
	{"unknown two levels down", minimal + "ca: {lifetime: {maximum: 1h}}\n", []string{"ca.lifetime.maximum: unknown field; known here are default, max, min"}},
	{"unknown below a pointer", "issuer: {name: mesh}\nroots: {secret: {name: a, kay: b}}\n", []string{"roots.secret.kay: unknown field; known here are key, name"}},
	{"unknown in what has no name in Go", minimal + "metrics: {port: 1}\n", []string{"metrics.port: unknown field; known here are listen"}},
	{"case counts", minimal + "ca: {Listen: x}\n", []string{"ca.Listen: unknown field; known here are admission, certificates, clusterAliases, connectionAge, keys, lifetime, listen, nodes, oidc, registration, remoteClusters, requestTimeout, rules, token, trustDomainAliases"}},
	{"not for the file", minimal + "ca: {ShutdownDelay: 1s}\n", []string{"ca.ShutdownDelay: unknown field"}},
	{"with a dot in its name", minimal + "\"log.level\": debug\n", []string{"log.level"}},
	{"several at once", minimal + "a: 1\nlog: {b: 1}\n", []string{"a: unknown field", "log.b: unknown field"}},
	// values of another type
	{"number for a map", "issuer: 5\n", []string{"issuer: a number stands where a map of settings is expected"}},
	{"text for a map", minimal + "ca: x\n", []string{"ca: a text stands where a map of settings is expected"}},
	{"text for a number", minimal + "ca: {admission: {inFlight: many}}\n", []string{"ca.admission.inFlight: a text stands where a whole number is expected"}},
	{"fraction", minimal + "ca: {admission: {inFlight: 1.5}}\n", []string{"ca.admission.inFlight: a number 1.5 stands where a whole number is expected"}},
	{"text for a list", minimal + "ca: {token: {audiences: istio-ca}}\n", []string{"ca.token.audiences: a text stands where a list is expected"}},
	{"number in a list of texts", minimal + "ca: {clusterAliases: [1]}\n", []string{"ca.clusterAliases: a number stands where a text is expected"}},
	{"number for a text", minimal + "namespace: 1\n", []string{"namespace: a number stands where a text is expected"}},
	{"text for true or false", "issuer: {name: m}\nroots: {fromIssuer: maybe}\n", []string{"roots.fromIssuer: a text stands where true or false is expected"}},
	// durations
	{"number for a duration", minimal + "ca: {requestTimeout: 25}\n", []string{`ca.requestTimeout: 25 is not a duration; write a number and a unit above zero, such as "30s" or "24h"`}},
	{"days", minimal + "ca: {lifetime: {max: 90d}}\n", []string{`ca.lifetime.max: "90d" is not a duration`}},
	{"zero", minimal + "shutdown: {delay: 0s}\n", []string{`shutdown.delay: "0s" is not a duration`}},
	{"map for a duration", minimal + "signer: {timeout: {s: 1}}\n", []string{`signer.timeout: {"s":1} is not a duration`}},
	{"negative", minimal + "signer: {sweep: {keep: -3s}}\n", []string{"signer.sweep.keep: -3s is out of range; it must be between 1s and 10m0s"}},
	// out of range
	{"count", minimal + "ca: {admission: {inFlight: 10001}}\n", []string{"ca.admission.inFlight: 10001 is out of range; it must be between 1 and 10000"}},
	{"drain shorter than a request", minimal + "shutdown: {drain: 10s}\n", []string{"shutdown.drain: 10s is shorter than ca.requestTimeout, 25s; it must not be"}},
	{"usage twice", minimal + "signer: {usages: [client auth, client auth, server auth]}\n", []string{`signer.usages: "client auth" stands twice; each usage must stand once`}},
	{"drain", minimal + "shutdown: {drain: 1h}\n", []string{"shutdown.drain: 1h0m0s is out of range; it must be between 1ms and 10m0s"}},
	{"lifetimes", minimal + "ca: {lifetime: {max: 1h, default: 2h}}\n", []string{"ca.lifetime.default: 2h0m0s is above max, 1h0m0s; it must not be"}},
	// values
	{"trust domain in upper case", minimal + "trustDomain: Mesh\n", []string{`trustDomain: "Mesh" is not a trust domain; it must be a lower-case name such as cluster.local`}},
	{"trust domain as an identity", minimal + "trustDomain: spiffe://mesh\n", []string{`trustDomain: "spiffe://mesh" is not a trust domain`}},
	{"trust domain with a path", minimal + "trustDomain: mesh/ns\n", []string{`trustDomain: "mesh/ns" is not a trust domain`}},
	{"namespace", minimal + "namespace: a.b\n", []string{`namespace: "a.b" is not the name of a namespace`}},
	{"issuer without a name", "roots: {file: f}\n", []string{"issuer.name: must be set to the name of a cert-manager issuer"}},
	{"issuer kind", "issuer: {name: mesh, kind: Vault}\nroots: {file: f}\n", []string{`issuer.kind: "Vault" is not an issuer kind of cert-manager.io`}},
	{"no roots", "issuer: {name: mesh}\n", []string{"roots: at least one of file, secret, configMap and fromIssuer must be set"}},
	{"federated with itself", minimal + "  federated: [{trustDomain: cluster.local, file: x}]\n", []string{`roots.federated[0].trustDomain: "cluster.local" is the mesh's own trust domain`}},
	{"istiod where the issuer isn't", minimal + "istiod: {enabled: true, namespace: other}\n", []string{`istiod.namespace: "other" is not namespace, "istio-system"`}},
	{"nameless fallback", minimal + "issuers: {fallback: [{kind: Issuer}]}\n", []string{"issuers.fallback[0].name: must be set"}},
	{"runtime", minimal + "issuers: {runtime: {name: A_B}}\n", []string{`issuers.runtime.name: "A_B" is not the name of a ConfigMap`}},
	{"kind without a name, beside a runtime", "issuer: {kind: Issuer}\nissuers: {runtime: {name: r}}\nroots: {file: x}\n", []string{"issuer.name: must be set"}},
	{"secret without a name", "issuer: {name: mesh}\nroots: {secret: {key: x}}\n", []string{"roots.secret.name: must be set"}},
	{"keys", minimal + "ca: {keys: [DSA]}\n", []string{`ca.keys: "DSA" is no kind of key; they are RSA, ECDSA-P256, ECDSA-P384, Ed25519`}},
	{"usages", minimal + "signer: {usages: [client auth]}\n", []string{`signer.usages: "server auth" is missing`}},
	{"annotation of ours", minimal + "signer: {annotations: {signet.dev/pod: x}}\n", []string{`signer.annotations: "signet.dev/pod" is one of those that Signet sets itself; it must go`}},
	{"identities", minimal + "signer: {annotations: {istio.cert-manager.io/identities: x}}\n", []string{`signer.annotations: "istio.cert-manager.io/identities" is one`}},
	{"annotation without a name", minimal + "signer: {annotations: {'a b': x}}\n", []string{`signer.annotations: Invalid value: "a b"`}},
	{"TLS version", minimal + "serving: {minTLSVersion: '1.1'}\n", []string{`serving.minTLSVersion: "1.1" is no version of TLS to begin with; it must be 1.2 or 1.3, in quotes`}},
	{"TLS version as a number", minimal + "serving: {minTLSVersion: 1.3}\n", []string{"serving.minTLSVersion: a number stands where a text is expected"}},
	{"serving key", minimal + "serving: {key: DSA}\n", []string{`serving.key: "DSA" is no kind of key`}},
	{"log format", minimal + "log: {format: xml}\n", []string{`log.format: "xml" is not a format; it must be json or text`}},
	{"log level", minimal + "log: {level: loud}\n", []string{`log.level: "loud" is not a level; it must be debug, info, warn or error`}},
	{"several at once", "namespace: A\nlog: {format: x}\n", []string{"namespace: ", "issuer.name: ", "roots: ", "log.format: "}},
	// the file
	{"empty", "", []string{"issuer.name: must be set", "roots: at least one"}},
	{"white space", "\n \n", []string{"issuer.name: must be set"}},
	{"null", "null\n", []string{"issuer.name: must be set"}},
	{"duplicate key", minimal + "issuer: {name: other}\n", []string{`key "issuer" already set in map`}},
	{"duplicate key below", "issuer:\n  name: a\n  name: b\n", []string{`key "name" already set in map`}},
	{"two documents", minimal + "---\nnamespace: x\n", []string{"it holds several YAML documents; there must be one"}},
	{"three documents", "---\n" + minimal + "---\na: 1\n---\nb: 1\n", []string{"it holds several YAML documents; there must be one"}},
	{"list", "- issuer\n", []string{"stands where a map of settings is expected"}},
	{"text", "hello\n", []string{"a text stands where a map of settings is expected"}},
	{"broken", "issuer: {\n", []string{"not YAML: "}},
	{"tab", "issuer:\n\tname: mesh\n", []string{"not YAML: "}},
	{"alias of itself", "a: &a [*a]\n", []string{"not YAML: "}},
	{"large", minimal + strings.Repeat("#\n", maxConfigBytes/2), []string{"at most 1048576 are allowed"}},
}

// TestParseConfigRefuses: each problem is named with its field's path and what would be right.
func TestParseConfigRefuses(t *testing.T) {
	for _, row := range refused {
		t.Run(row.name, func(t *testing.T) {
			cfg, err := ParseConfig([]byte(row.text))
			require.Error(t, err)
			for _, want := range row.want {
				assert.ErrorContains(t, err, want)
			}
			assert.Equal(t, Config{}, cfg)
		})
	}
}

// accepted are configurations that are right.
var accepted = map[string]string{
	"a document with its marker": "---\n" + minimal,
	"a marker at the end":        minimal + "---\n",
	"comments":                   "# Signet\n" + minimal + "# end\n",
	"JSON":                       `{"issuer": {"name": "mesh"}, "roots": {"file": "roots.pem"}}`,
	"CRLF":                       strings.ReplaceAll(minimal, "\n", "\r\n"),
	"parts without settings":     minimal + "ca: {}\nsigner:\nserving: {}\nmetrics:\n",
	"level in upper case":        minimal + "log: {level: DEBUG}\n",
	"external issuer":            "issuer: {name: mesh, kind: AWSPCAIssuer, group: awspca.cert-manager.io}\nroots: {file: f}\n",
	"aliases of YAML":            "issuer: &i {name: mesh}\nroots: {secret: *i}\n",
	"annotations":                minimal + "signer: {annotations: {example.com/team: mesh}}\n",
	"TLS 1.3":                    minimal + "serving: {minTLSVersion: '1.3'}\n",
	"addresses":                  minimal + "serving: {ipAddresses: ['::1']}\n",
}

func TestParseConfigAccepts(t *testing.T) {
	for name, text := range accepted {
		_, err := ParseConfig([]byte(text))
		assert.NoError(t, err, name)
	}
}

// TestMinTLSIsEverywhere: no endpoint is left out.
func TestMinTLSIsEverywhere(t *testing.T) {
	for text, want := range map[string]uint16{"": tls.VersionTLS12, "serving: {minTLSVersion: '1.3'}\n": tls.VersionTLS13} {
		cfg, err := ParseConfig([]byte(minimal + text))
		require.NoError(t, err)
		assert.Equal(t, []uint16{want, want, want}, []uint16{cfg.CA.MinTLS, cfg.API.MinTLS, cfg.BundleEndpoint.MinTLS})
	}
}

func TestLoadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "signet.yaml")
	_, err := LoadConfig(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.ErrorContains(t, err, "read configuration: ")
	require.NoError(t, os.WriteFile(path, []byte(minimal), 0o600))
	cfg, err := LoadConfig(path)
	require.NoError(t, err)
	assert.Equal(t, "mesh", cfg.Issuer.Name)
	require.NoError(t, os.WriteFile(path, []byte("log: {level: x}"), 0o600))
	_, err = LoadConfig(path)
	assert.ErrorContains(t, err, "configuration "+path+": issuer.name: must be set")
}

// FuzzLoadConfig: nothing panics, and what is accepted can be run with.
func FuzzLoadConfig(f *testing.F) {
	whole, err := os.ReadFile("testdata/whole.yaml")
	require.NoError(f, err)
	for _, seed := range []string{"", minimal, string(whole), "---\n" + minimal + "---\n", minimal + "a: 1\n", "issuer: 5", "a: &a [*a]", "{", minimal + "ca: {lifetime: {max: -1h}}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, err := ParseConfig(text)
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		require.NotEmpty(t, cfg.Issuer.Name)
		require.NotEmpty(t, cfg.Namespace)
		require.False(t, cfg.CA.TrustDomain.IsZero())
		require.Contains(t, cfg.CA.Usages, signer.LeafUsages()[2])
		require.Positive(t, cfg.CA.DrainTimeout)
		require.Positive(t, cfg.CA.ShutdownDelay)
		require.GreaterOrEqual(t, cfg.Signer.TimeoutOrDefault(), time.Second)
	})
}
