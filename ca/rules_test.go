package ca

import (
	"crypto/x509/pkix"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
)

type labelled map[string]map[string]string

func (l labelled) Labels(namespace string) (map[string]string, bool) {
	labels, known := l[namespace]
	return labels, known
}

func TestRules(t *testing.T) {
	vault, special := issuer.Ref{Name: "vault", Kind: "ClusterIssuer"}, issuer.Ref{Name: "special"}
	hour := LifetimeConfig{Max: setting.DurationOf(time.Hour)}
	server := &Server{
		cfg: Config{Rules: []Rule{
			{CertSigner: "vault", Namespaces: []string{"bank", "shop"}, Issuer: vault},
			{CertSigner: "vault", NamespaceLabels: map[string]string{"tier": "gold"}, Issuer: special},
			{Namespaces: []string{"bank"}, NamespaceLabels: map[string]string{"env": "prod"}, Issuer: special, Lifetime: hour},
			{Namespaces: []string{"bank"}, Lifetime: hour},
		}},
		namespaces: labelled{"bank": {"env": "prod"}, "bank-test": {}, "shop": {}, "gold": {"tier": "gold"}, "silver": {"tier": "silver"}},
	}
	for _, row := range []struct {
		name, certSigner, namespace string
		issuer                      issuer.Ref
		longest                     time.Duration
		want                        *kind
	}{
		{"no rule", "", "shop", issuer.Ref{}, 24 * time.Hour, nil},
		{"by name and namespace", "vault", "shop", vault.WithDefaults(), 24 * time.Hour, nil},
		{"by name and label", "vault", "gold", special.WithDefaults(), 24 * time.Hour, nil},
		{"another value of the label", "vault", "silver", issuer.Ref{}, 0, &kindCertSigner},
		{"a name that isn't offered", "other", "shop", issuer.Ref{}, 0, &kindCertSigner},
		{"a name that is the start of one", "vaul", "shop", issuer.Ref{}, 0, &kindCertSigner},
		{"a namespace that is the start of one", "vault", "bank-test", issuer.Ref{}, 0, &kindCertSigner},
		{"a rule without a name, by namespace and label", "", "bank", special.WithDefaults(), time.Hour, nil},
		{"a rule with a name isn't for requests without", "", "gold", issuer.Ref{}, 24 * time.Hour, nil},
		{"labels that aren't known", "", "new", issuer.Ref{}, 0, &kindNotReady},
	} {
		t.Run(row.name, func(t *testing.T) {
			grant, err := server.rule(Grant{ID: alice, Namespace: row.namespace}, row.certSigner, true)
			if row.want != nil {
				requireKind(t, *row.want, err)
				assert.Zero(t, grant)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, row.issuer, grant.Issuer)
			assert.Equal(t, row.longest, grant.Lifetime.MaxOrDefault())
			assert.Equal(t, alice, grant.ID)
		})
	}
	grant, err := server.rule(Grant{ID: alice, Namespace: "bank"}, "", false)
	require.NoError(t, err)
	assert.Equal(t, time.Hour, grant.Lifetime.MaxOrDefault())
	assert.Zero(t, grant.Issuer, "what another cluster writes on its namespaces counts for nothing")
	_, err = server.rule(Grant{ID: alice, Namespace: "new"}, "", false)
	require.NoError(t, err, "nor are they waited for")

	assert.Equal(t, 24*time.Hour, server.cfg.LongestLifetime())
	server.cfg.Rules[0].Lifetime.Max = setting.DurationOf(48 * time.Hour)
	assert.Equal(t, 48*time.Hour, server.cfg.LongestLifetime(), "anchors stay for as long as the longest leaf")
}

func TestRuleValidate(t *testing.T) {
	for name, row := range map[string]struct {
		rule Rule
		want string
	}{
		"good":            {Rule{CertSigner: "x", Issuer: issuer.Ref{Name: "y"}}, ""},
		"for all":         {Rule{Issuer: issuer.Ref{Name: "y"}}, "ca.rules[0].certSigner: the rule fits every request"},
		"namespace":       {Rule{Namespaces: []string{"A"}}, `ca.rules[0].namespaces: "A" is not the name of a namespace`},
		"label":           {Rule{NamespaceLabels: map[string]string{"a b": "c"}}, `ca.rules[0].namespaceLabels: "a b": "c" is not a label`},
		"issuer":          {Rule{CertSigner: "x", Issuer: issuer.Ref{Kind: "Issuer"}}, "ca.rules[0].issuer.name"},
		"floor above cap": {Rule{CertSigner: "x", Lifetime: LifetimeConfig{Max: setting.DurationOf(time.Hour), Min: setting.DurationOf(2 * time.Hour)}}, "ca.rules[0].lifetime.min: 2h0m0s is above default, 1h0m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			p := setting.NewProblems()
			Config{Rules: []Rule{row.rule}}.Validate(p.At("ca"))
			if row.want == "" {
				assert.NoError(t, p.Err())
				return
			}
			assert.ErrorContains(t, p.Err(), row.want)
		})
	}
}

// R32: a former trust domain is good for the same namespace and service account, and for nothing else.
func TestR32_Named(t *testing.T) {
	server := &Server{cfg: Config{TrustDomain: alice.TrustDomain(), TrustDomainAliases: []string{"old.mesh"}}}
	grant := Grant{ID: alice, Namespace: "foo", ServiceAccount: "alice"}
	for id, want := range map[string]bool{
		"spiffe://old.mesh/ns/foo/sa/alice":      true,
		alice.String():                           true,
		"spiffe://old.mesh/ns/foo/sa/bob":        false,
		"spiffe://old.mesh/ns/bar/sa/alice":      false,
		"spiffe://other.mesh/ns/foo/sa/alice":    false,
		"spiffe://old.mesh/ns/foo/sa/alice/more": false,
		"spiffe://old.mesh/foo/alice":            false,
	} {
		d := newDraft(t)
		d.template.ExtraExtensions = []pkix.Extension{san(true, uriName(id))}
		got, err := server.named(grant, d.csr())
		if want {
			require.NoError(t, err, id)
			assert.Equal(t, id, got.ID.String())
			assert.Equal(t, "foo", got.Namespace)
			continue
		}
		requireKind(t, kindIdentity, err)
	}
}
