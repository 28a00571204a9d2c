package chart

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
	"github.com/signet-ca/signet/signer"
)

// TestDefaults: what the chart takes for a setting that isn't there is what Signet takes. The schema says the latter, because
// its descriptions are generated from the Go types; and a setting with that value changes nothing that is rendered.
func TestDefaults(t *testing.T) {
	loaded, err := Load()
	require.NoError(t, err)
	loaded.Schema = nil
	const base = `
config:
  istiod: {enabled: true}
  ca: {registration: {enabled: true}, certificates: {enabled: true}}
  issuers: {runtime: {name: wanted}}
`
	text := func(values map[string]any) string {
		files, err := render(loaded, "istio-system", values)
		require.NoError(t, err)
		var lines strings.Builder
		for line := range strings.Lines(files["templates/rbac.yaml"] + files["templates/services.yaml"] + files["templates/statefulset.yaml"] +
			files["templates/networkpolicy.yaml"] + files["templates/admission.yaml"] + files["templates/NOTES.txt"]) {
			if !strings.Contains(line, "checksum/config") {
				lines.WriteString(line)
			}
		}
		return lines.String()
	}
	before := text(configOf(t, good, base))
	for _, row := range []struct{ path, value, says string }{
		{"namespace", "istio-system", "Default istio-system."},
		{"issuer.kind", "Issuer", "Default Issuer."},
		{"issuer.group", "cert-manager.io", "Default cert-manager.io."},
		{"issuers.runtime.namespace", "istio-system", "Default Signet's own."},
		{"distribution.configMap", "istio-ca-root-cert", "Default istio-ca-root-cert."},
		{"distribution.clusterTrustBundle", "auto", "Default auto."},
		{"istiod.namespace", "istio-system", "Default istio-system."},
		{"istiod.name", "istiod-dynamic", "Default istiod-dynamic."},
		{"ca.listen", ":6443", "Default :6443."},
		{"api.listen", ":8443", "Default :8443."},
		{"metrics.listen", ":9402", "Default :9402."},
		{"health.listen", ":6060", "Default :6060."},
		{"ca.token.authentication", "review", "Default review."},
		{"ca.registration.signerName", "signet.dev/mesh", "Default signet.dev/mesh."},
		{"serving.service", "signet", "Default signet."},
		{"serving.clusterDomain", "cluster.local", "Default cluster.local."},
		{"ledger.dir", "/var/lib/signet", "Default /var/lib/signet."},
		{"signer.timeout", "20s", "Default 20s"},
		{"ca.requestTimeout", "25s", "Default signer.timeout and 5s more."},
		{"shutdown.delay", "5s", "Default 5s."},
		{"shutdown.drain", "30s", "Default ca.requestTimeout and 5s more."},
	} {
		at := readSchema(t)["definitions"].(map[string]any)["config"].(map[string]any)
		change := any(row.value)
		names := strings.Split(row.path, ".")
		for n := range names {
			at = at["properties"].(map[string]any)[names[n]].(map[string]any)
			change = map[string]any{names[len(names)-1-n]: change}
		}
		assert.Contains(t, at["description"], row.says, row.path)
		values := configOf(t, good, base)
		merge(values, map[string]any{"config": change})
		assert.Equal(t, before, text(values), row.path)
	}

	// Names that stand in the templates.
	certificates, certificate := rotation.IstiodConfig{}.Certificate()
	assert.Equal(t, "istio-system", certificates)
	for _, name := range append(ca.KeysPaths(), certificate, issuer.DistributionConfig{}.ConfigMapOrDefault(), issuer.TrustBundleName, issuer.TrustBundleSigner,
		rotation.TrustConfigMap, rotation.ReplicasConfigMap, ca.RegistrationConfig{}.SignerNames()) {
		assert.Contains(t, text(configOf(t, good, base, "config: {ca: {token: {authentication: local}}}")), name)
	}
	assert.Equal(t, "20s", signer.Config{}.TimeoutOrDefault().String())
}
