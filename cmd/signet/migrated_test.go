package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/signer"
)

// migrated is the configuration that signetctl migrate istio-csr makes of an example, as its golden files have it.
func migrated(t *testing.T, example string) Config {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "signetctl", "testdata", "migrate", example, "signet.yaml.txt"))
	require.NoError(t, err)
	var values struct {
		Config map[string]any `json:"config"`
	}
	require.NoError(t, yaml.Unmarshal(text, &values))
	text, err = yaml.Marshal(values.Config)
	require.NoError(t, err)
	cfg, err := ParseConfig(text)
	require.NoError(t, err)
	return cfg
}

// TestMigratedLoads: whatever signetctl migrate prints, Signet starts with it.
func TestMigratedLoads(t *testing.T) {
	examples, err := os.ReadDir(filepath.Join("..", "signetctl", "testdata", "migrate"))
	require.NoError(t, err)
	require.NotEmpty(t, examples)
	for _, example := range examples {
		t.Run(example.Name(), func(t *testing.T) { migrated(t, example.Name()) })
	}
}

// TestMigratedDefaults: what istio-csr does when nothing is set is what Signet does then, where it would do something else
// by itself.
func TestMigratedDefaults(t *testing.T) {
	cfg := migrated(t, "defaults")
	assert.Equal(t, "cluster.local", cfg.CA.TrustDomain.Name())
	assert.Equal(t, "Kubernetes", cfg.ClusterID)
	assert.Equal(t, "istio-system", cfg.Namespace)
	assert.Equal(t, issuer.Ref{Name: "istio-ca", Kind: "Issuer", Group: "cert-manager.io"}, cfg.Issuer)
	assert.Empty(t, cfg.Issuers.Runtime)
	assert.Equal(t, issuer.RootsConfig{FromIssuer: true}, cfg.Roots)
	assert.Equal(t, time.Hour, cfg.CA.Lifetime.MaxOrDefault())
	assert.Equal(t, signer.Usages{"client auth", "server auth"}, cfg.CA.Usages)
	assert.False(t, cfg.CA.Certificates.Enabled)
	assert.False(t, cfg.CA.Nodes.Enabled())
	assert.Empty(t, cfg.CA.Token.Audiences)
	assert.Equal(t, []string{"cert-manager-istio-csr.cert-manager.svc"}, cfg.Serving.DNSNames)
	assert.Equal(t, time.Hour, cfg.Serving.Lifetime.Or(0))
	assert.Equal(t, "RSA-2048", cfg.Serving.Key)
	assert.True(t, cfg.Istiod.Enabled)
	namespace, name := cfg.Istiod.Certificate()
	assert.Equal(t, "istio-system/istiod", namespace+"/"+name)
	assert.Equal(t, time.Hour, cfg.Istiod.Lifetime.Or(0))
	assert.Equal(t, 30*time.Minute, cfg.Istiod.RenewBefore.Or(0))
	assert.Equal(t, "RSA-2048", cfg.Istiod.Key)
	assert.NotNil(t, cfg.Distribution.ExcludeNamespaces, "istio-csr excludes none")
	assert.Empty(t, cfg.Distribution.ExcludeNamespaces)
	assert.Equal(t, "off", cfg.Distribution.ClusterTrustBundle)
	assert.Equal(t, "text", cfg.Log.Format)
}

// TestMigratedSettings: what was set to something else arrives.
func TestMigratedSettings(t *testing.T) {
	cfg := migrated(t, "everything")
	assert.Equal(t, "mesh.example", cfg.CA.TrustDomain.Name())
	assert.Equal(t, "west", cfg.ClusterID)
	assert.Equal(t, "mesh", cfg.Namespace)
	assert.Equal(t, issuer.Ref{Name: "mesh-1", Kind: "AWSPCAClusterIssuer", Group: "awspca.cert-manager.io"}, cfg.Issuer)
	assert.Equal(t, issuer.RuntimeConfig{Name: "istio-issuer"}, cfg.Issuers.Runtime, "that of the release goes with it")
	assert.Equal(t, issuer.RootsConfig{File: "/etc/tls/root/ca.pem"}, cfg.Roots)
	assert.Equal(t, "mesh=on", cfg.Distribution.NamespaceSelector)
	assert.Equal(t, 30*time.Minute, cfg.CA.Lifetime.MaxOrDefault())
	assert.Equal(t, ":8443", cfg.CA.Listen)
	assert.True(t, cfg.CA.Certificates.Enabled)
	assert.Equal(t, []string{"kube-system/ztunnel"}, cfg.CA.Nodes.Accounts)
	assert.Equal(t, []string{"csr.security.svc"}, cfg.Serving.DNSNames)
	assert.Equal(t, 4*time.Hour, cfg.Serving.Lifetime.Or(0))
	assert.Equal(t, "RSA-3072", cfg.Serving.Key)
	namespace, name := cfg.Istiod.Certificate()
	assert.Equal(t, "istio-control/istiod-dynamic", namespace+"/"+name)
	assert.Equal(t, 3*time.Hour, cfg.Istiod.Lifetime.Or(0))
	assert.Equal(t, 45*time.Minute, cfg.Istiod.RenewBefore.Or(0))
	assert.Equal(t, "ECDSA-P384", cfg.Istiod.Key)
	assert.Equal(t, []string{"istiod.example.com"}, cfg.Istiod.DNSNames)
	assert.Equal(t, []string{"default", "canary"}, cfg.Istiod.Revisions)
	assert.Equal(t, map[string]string{"custom.cert-manager.io/policy-name": "istio-csr", "example.com/note": "a, b"}, cfg.Istiod.Annotations)
	assert.Equal(t, ":9500", cfg.Metrics.Listen)
	assert.Equal(t, ":6100", cfg.Health.Listen)
	assert.Equal(t, LogConfig{Format: "json", Level: "debug"}, cfg.Log)

	cfg = migrated(t, "runtime")
	assert.Empty(t, cfg.Issuer)
	assert.Equal(t, issuer.RuntimeConfig{Name: "istio-issuer", Namespace: "cert-manager"}, cfg.Issuers.Runtime)
	assert.False(t, cfg.Istiod.Enabled)

	cfg = migrated(t, "deployment")
	assert.Equal(t, []string{"istio-ca", "vault"}, cfg.CA.Token.Audiences)
}
