package rotation

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
)

func TestIstiodConfigValidate(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(*IstiodConfig)
		want   string // "" is right
	}{
		{"nothing set", func(*IstiodConfig) {}, ""},
		{"everything set", func(c *IstiodConfig) {
			*c = IstiodConfig{
				Enabled: true, Namespace: "mesh", Name: "istiod", SecretName: "istiod-tls", Revisions: []string{"default", "1-31"},
				Lifetime: setting.DurationOf(time.Hour), RenewBefore: setting.DurationOf(5 * time.Minute), Key: "ECDSA-P384",
				DNSNames: []string{"istiod.example.com"}, Annotations: map[string]string{"example.com/team": "mesh"},
			}
		}, ""},
		{"namespace", func(c *IstiodConfig) { c.Namespace = "a.b" }, `istiod.namespace: "a.b" is not the name of a namespace`},
		{"name", func(c *IstiodConfig) { c.Name = "A" }, `istiod.name: "A" is not the name of a Certificate`},
		{"Secret", func(c *IstiodConfig) { c.SecretName = "a/b" }, `istiod.secretName: "a/b" is not the name of a Secret`},
		{"revision with a dot", func(c *IstiodConfig) { c.Revisions = []string{"1.31"} },
			`istiod.revisions: "1.31" is not a revision; it must be what follows istiod- in the name of a Service, or default`},
		{"revision without a name", func(c *IstiodConfig) { c.Revisions = []string{""} },
			`istiod.revisions: "" is not a revision; it must be what follows istiod- in the name of a Service, or default`},
		{"lifetime that cert-manager refuses", func(c *IstiodConfig) { c.Lifetime = setting.DurationOf(59 * time.Minute) },
			"istiod.lifetime: 59m0s is out of range; it must be between 1h0m0s and 87600h0m0s"},
		{"renewal that cert-manager refuses", func(c *IstiodConfig) { c.RenewBefore = setting.DurationOf(time.Minute) },
			"istiod.renewBefore: 1m0s is out of range; it must be between 5m0s and 87600h0m0s"},
		{"renewal before the lifetime", func(c *IstiodConfig) { c.RenewBefore = setting.DurationOf(24 * time.Hour) },
			"istiod.renewBefore: 24h0m0s is not below the lifetime of 24h0m0s"},
		{"key", func(c *IstiodConfig) { c.Key = "RSA-1024" },
			`istiod.key: "RSA-1024" is no kind of key; they are ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072, RSA-4096`},
		{"DNS name", func(c *IstiodConfig) { c.DNSNames = []string{"*"} }, `istiod.dnsNames: "*" is not a DNS name`},
		{"annotation", func(c *IstiodConfig) { c.Annotations = map[string]string{"a/b/c": ""} }, "istiod.annotations: Invalid value: "},
	} {
		t.Run(row.name, func(t *testing.T) {
			var cfg IstiodConfig
			row.change(&cfg)
			problems := setting.NewProblems()
			cfg.Validate(problems.At("istiod"))
			if row.want == "" {
				assert.NoError(t, problems.Err())
			} else {
				assert.ErrorContains(t, problems.Err(), row.want)
			}
		})
	}
}

// TestIstiodKeys: the kinds of key are those that Signet's own certificate can have.
func TestIstiodKeys(t *testing.T) {
	for name := range servingKeys {
		assert.Contains(t, istiodKeys, name)
	}
	assert.Len(t, istiodKeys, len(servingKeys))
}

func TestR59_IstiodNames(t *testing.T) {
	always := []string{"istio-pilot.mesh.svc", "istiod-remote.mesh.svc", "istiod.mesh.svc"}
	with := func(names ...string) []string {
		return IstiodConfig{Namespace: "mesh"}.kept(append([]string(nil), always...), names)
	}
	for _, row := range []struct {
		name  string
		cfg   IstiodConfig
		found found
		want  []string
	}{
		{"nothing", IstiodConfig{}, found{}, always},
		{"the default revision", IstiodConfig{}, found{revisions: []string{"default", "default"}}, always},
		{"without the default revision", IstiodConfig{Revisions: []string{"canary"}}, found{}, with("istiod-canary.mesh.svc")},
		{"found and set", IstiodConfig{Revisions: []string{"default", "1-30"}}, found{revisions: []string{"1-31", "1-30", "default"}},
			with("istiod-1-30.mesh.svc", "istiod-1-31.mesh.svc")},
		{"a tag", IstiodConfig{}, found{revisions: []string{"1-31"}, tags: []string{"prod"}},
			with("istiod-1-31.mesh.svc", "istiod-prod.mesh.svc", "istiod-revision-tag-prod.mesh.svc")},
		{"the default tag", IstiodConfig{}, found{tags: []string{"default"}}, with("istiod-revision-tag-default.mesh.svc")},
		{"labels that no Service is named after", IstiodConfig{}, found{revisions: []string{"1.31", "A", "a_b", ""}, tags: []string{"x.y"}}, always},
		{"a label that is too long for a Service", IstiodConfig{},
			found{tags: []string{"a123456789b123456789c123456789d123456789e123456789"}},
			with("istiod-a123456789b123456789c123456789d123456789e123456789.mesh.svc")},
		{"further names, one of them twice", IstiodConfig{DNSNames: []string{"istiod.example.com", "istiod.mesh.svc"}}, found{},
			[]string{"istio-pilot.mesh.svc", "istiod-remote.mesh.svc", "istiod.example.com", "istiod.mesh.svc"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.cfg.Namespace = "mesh"
			assert.Equal(t, row.want, row.cfg.withDefaults().names(row.found))
		})
	}
}

// TestIstiodNamesKept: while not everything is known, revisions that were there stay, and nothing else.
func TestIstiodNamesKept(t *testing.T) {
	cfg := IstiodConfig{Namespace: "mesh"}
	assert.Equal(t, []string{"istiod-1-31.mesh.svc", "istiod.mesh.svc"},
		cfg.kept([]string{"istiod.mesh.svc"}, []string{"istiod-1-31.mesh.svc", "istiod.mesh.svc", "other.mesh.svc", "istiod-1-31.elsewhere.svc"}))
}

func istiodCertificate(change func(*cmapi.Certificate)) *cmapi.Certificate {
	cfg := IstiodConfig{Annotations: map[string]string{"example.com/team": "mesh"}}.withDefaults()
	c := cfg.certificate(issuer.Ref{Name: "mesh-ca"}, cfg.names(found{}))
	change(c)
	return c
}

func TestIstiodCertificate(t *testing.T) {
	c := istiodCertificate(func(*cmapi.Certificate) {})
	assert.Equal(t, "istio-system/istiod-dynamic", c.Namespace+"/"+c.Name)
	assert.Equal(t, map[string]string{"example.com/team": "mesh"}, c.Annotations)
	assert.Equal(t, cmapi.CertificateSpec{
		SecretName:           "istiod-tls",
		IssuerRef:            cmmeta.IssuerReference{Name: "mesh-ca", Kind: "Issuer", Group: "cert-manager.io"},
		DNSNames:             []string{"istio-pilot.istio-system.svc", "istiod-remote.istio-system.svc", "istiod.istio-system.svc"},
		Duration:             &metav1.Duration{Duration: 24 * time.Hour},
		RenewBefore:          &metav1.Duration{Duration: 8 * time.Hour},
		PrivateKey:           &cmapi.CertificatePrivateKey{Algorithm: "RSA", Size: 2048, RotationPolicy: "Always"},
		Usages:               []cmapi.KeyUsage{"server auth", "digital signature", "key encipherment"},
		RevisionHistoryLimit: new(int32(1)),
	}, c.Spec)

	cfg := IstiodConfig{Key: "ECDSA-P384", Lifetime: setting.DurationOf(time.Hour), SecretName: "own"}.withDefaults()
	c = cfg.certificate(issuer.Ref{Name: "mesh-ca", Kind: "ClusterIssuer"}, nil)
	assert.Equal(t, 20*time.Minute, c.Spec.RenewBefore.Duration)
	assert.Equal(t, "own", c.Spec.SecretName)
	assert.Equal(t, "ClusterIssuer", c.Spec.IssuerRef.Kind)
	assert.Equal(t, cmapi.ECDSAKeyAlgorithm, c.Spec.PrivateKey.Algorithm)
	assert.Equal(t, 384, c.Spec.PrivateKey.Size)
}

func TestIstiodDrift(t *testing.T) {
	want := istiodCertificate(func(*cmapi.Certificate) {})
	for _, row := range []struct {
		differs string
		change  func(*cmapi.Certificate)
	}{
		{"", func(*cmapi.Certificate) {}},
		{"", func(c *cmapi.Certificate) { c.Annotations["other"] = "x" }},
		{"", func(c *cmapi.Certificate) { c.Labels = map[string]string{"other": "x"} }},
		{"", func(c *cmapi.Certificate) { c.Spec.SecretTemplate = &cmapi.CertificateSecretTemplate{} }},
		{"", func(c *cmapi.Certificate) { c.Spec.PrivateKey.Encoding = cmapi.PKCS8 }},
		{"", func(c *cmapi.Certificate) { c.Spec.URIs = []string{} }},
		{"", func(c *cmapi.Certificate) { c.Spec.IssuerRef = cmmeta.IssuerReference{Name: "mesh-ca"} }},
		{"annotation example.com/team", func(c *cmapi.Certificate) { c.Annotations = nil }},
		{"secretName", func(c *cmapi.Certificate) { c.Spec.SecretName = "x" }},
		{"issuerRef", func(c *cmapi.Certificate) { c.Spec.IssuerRef.Name = "x" }},
		{"dnsNames", func(c *cmapi.Certificate) { c.Spec.DNSNames = append(c.Spec.DNSNames, "x") }},
		{"uris", func(c *cmapi.Certificate) { c.Spec.URIs = []string{"spiffe://cluster.local/ns/a/sa/b"} }},
		{"ipAddresses", func(c *cmapi.Certificate) { c.Spec.IPAddresses = []string{"10.0.0.1"} }},
		{"emailAddresses", func(c *cmapi.Certificate) { c.Spec.EmailAddresses = []string{"a@example.com"} }},
		{"commonName", func(c *cmapi.Certificate) { c.Spec.CommonName = "x" }},
		{"isCA", func(c *cmapi.Certificate) { c.Spec.IsCA = true }},
		{"duration", func(c *cmapi.Certificate) { c.Spec.Duration = nil }},
		{"renewBefore", func(c *cmapi.Certificate) { c.Spec.RenewBefore = nil }},
		{"usages", func(c *cmapi.Certificate) { c.Spec.Usages = append(c.Spec.Usages, cmapi.UsageClientAuth) }},
		{"revisionHistoryLimit", func(c *cmapi.Certificate) { c.Spec.RevisionHistoryLimit = nil }},
		{"privateKey", func(c *cmapi.Certificate) { c.Spec.PrivateKey.RotationPolicy = cmapi.RotationPolicyNever }},
		{"privateKey", func(c *cmapi.Certificate) { c.Spec.PrivateKey = nil }},
		{"issuerRef, isCA", func(c *cmapi.Certificate) { c.Spec.IsCA, c.Spec.IssuerRef.Kind = true, "ClusterIssuer" }},
	} {
		t.Run(row.differs, func(t *testing.T) {
			assert.Equal(t, row.differs, drift(istiodCertificate(row.change), want))
		})
	}
}

// TestIstiodApplied: fields that would add to the certificate are applied, empty, and not left out.
func TestIstiodApplied(t *testing.T) {
	object, err := applied(istiodCertificate(func(*cmapi.Certificate) {}))
	require.NoError(t, err)
	for _, name := range []string{"uris", "ipAddresses", "emailAddresses"} {
		list, ok, err := unstructured.NestedSlice(object.Object, "spec", name)
		require.NoError(t, err)
		assert.True(t, ok, name)
		assert.Empty(t, list)
	}
	isCA, ok, err := unstructured.NestedBool(object.Object, "spec", "isCA")
	require.NoError(t, err)
	assert.True(t, ok)
	assert.False(t, isCA)
	assert.Equal(t, "cert-manager.io/v1, Kind=Certificate", object.GroupVersionKind().String())
	assert.NotContains(t, object.Object, "status")
	assert.NotContains(t, object.Object["metadata"], "creationTimestamp")
}

func TestIstiodStatus(t *testing.T) {
	assert.Equal(t, "not watched by this replica", IstiodStatus{}.String())
	begins, ends := time.Unix(1700000000, 0), time.Unix(1700086400, 0)
	c := istiodCertificate(func(c *cmapi.Certificate) {
		c.Generation = 3
		c.Status.NotBefore, c.Status.NotAfter = &metav1.Time{Time: begins}, &metav1.Time{Time: ends}
		c.Status.Conditions = []cmapi.CertificateCondition{
			{Type: cmapi.CertificateConditionIssuing, Status: cmmeta.ConditionTrue, ObservedGeneration: 3, Message: "Renewing"},
			{Type: cmapi.CertificateConditionReady, Status: cmmeta.ConditionTrue, ObservedGeneration: 3, Message: "Up to date"},
		}
	})
	s := statusOf(c)
	assert.Equal(t, IstiodStatus{
		Watching: true, Namespace: "istio-system", Name: "istiod-dynamic", DNSNames: c.Spec.DNSNames,
		Issuer:    issuer.Ref{Name: "mesh-ca", Kind: "Issuer", Group: "cert-manager.io"},
		NotBefore: begins, NotAfter: ends, Ready: true, Condition: "Up to date",
	}, s)
	assert.Equal(t, "Up to date, valid until 2023-11-15T22:13:20Z", s.String())
	s.Trouble = errors.New("apply Certificate: no")
	assert.Equal(t, "Up to date, valid until 2023-11-15T22:13:20Z; can't be written: apply Certificate: no", s.String())

	c.Generation = 4 // changed since the condition was set
	assert.False(t, statusOf(c).Ready)
	c.Status = cmapi.CertificateStatus{}
	s = statusOf(c)
	assert.False(t, s.Ready)
	assert.Equal(t, "no condition yet", s.String())
}

// TestIstiodMetrics: only the replica that watches has samples.
func TestIstiodMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	istiod, err := NewIstiod(IstiodConfig{}, &rest.Config{Host: "https://127.0.0.1:1"}, func() issuer.Ref { return issuer.Ref{} },
		func() <-chan struct{} { return nil }, slog.New(slog.DiscardHandler), prometheus.WrapRegistererWithPrefix("signet_", registry), nil)
	require.NoError(t, err)
	gather := func() map[string]float64 {
		families, err := registry.Gather()
		require.NoError(t, err)
		values := make(map[string]float64)
		for _, family := range families {
			values[family.GetName()] = family.GetMetric()[0].GetGauge().GetValue()
		}
		return values
	}
	assert.Empty(t, gather())
	istiod.status.Store(&IstiodStatus{Watching: true})
	assert.Equal(t, map[string]float64{"signet_istiod_certificate_not_after_timestamp_seconds": 0, "signet_istiod_certificate_ready": 0}, gather())
	istiod.status.Store(&IstiodStatus{Watching: true, Ready: true, NotAfter: time.Unix(1700086400, 0)})
	assert.Equal(t, map[string]float64{"signet_istiod_certificate_not_after_timestamp_seconds": 1700086400, "signet_istiod_certificate_ready": 1}, gather())
}
