package ca

import (
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
)

// Rule has another issuer than the one in force sign for some callers, and bounds their lifetimes. The first rule that
// fits a request counts; a request that asks for a signer by name (CertSigner, which pilot-agent takes from
// ISTIO_META_CERT_SIGNER) and that no rule fits is refused, any other one is signed as if there were no rules.
//
// What the issuer signs must lead to an anchor that everybody knows already: name it in roots first, and wait until it is
// distributed. Fallback issuers don't stand in for it.
type Rule struct {
	// CertSigner is the name that a request asks for. Default none: the rule is for requests that ask for none.
	CertSigner string `json:"certSigner,omitempty"`
	// Namespaces of the identities that it is for. Default all.
	Namespaces []string `json:"namespaces,omitempty"`
	// NamespaceLabels that their namespace must have, each with this value, in our own cluster: callers of other clusters
	// and of OIDC issuers fit no rule that has some. Labels of pods don't count: they belong to the tenant. Default none.
	NamespaceLabels map[string]string `json:"namespaceLabels,omitempty"`
	// Issuer that signs. Default the one in force; then the rule bounds lifetimes only.
	Issuer issuer.Ref `json:"issuer,omitempty"`
	// Lifetime bounds lifetimes in place of ca.lifetime, of which it takes what it doesn't set itself.
	Lifetime LifetimeConfig `json:"lifetime,omitempty"`
}

// validate reports what is wrong with r, whose lifetimes take from all what they don't set.
func (r Rule) validate(p setting.Problems, all LifetimeConfig) {
	for _, namespace := range r.Namespaces {
		if len(validation.IsDNS1123Label(namespace)) != 0 {
			p.Addf("namespaces", "%q is not the name of a namespace", namespace)
		}
	}
	for key, value := range r.NamespaceLabels {
		if len(validation.IsQualifiedName(key)) != 0 || len(validation.IsValidLabelValue(value)) != 0 {
			p.Addf("namespaceLabels", "%q: %q is not a label", key, value)
		}
	}
	if r.Issuer != (issuer.Ref{}) {
		r.Issuer.Validate(p.At("issuer"))
	}
	if r.CertSigner == "" && len(r.Namespaces) == 0 && len(r.NamespaceLabels) == 0 {
		p.Addf("certSigner", "the rule fits every request; set certSigner, namespaces or namespaceLabels, or use issuer and ca.lifetime")
	}
	r.Lifetime.validate(p.At("lifetime"), r.Lifetime.within(all))
}

// fits says whether the rule is for a request; labels are those of the namespace.
func (r Rule) fits(certSigner, namespace string, labels map[string]string) bool {
	if r.CertSigner != certSigner || len(r.Namespaces) > 0 && !slices.Contains(r.Namespaces, namespace) {
		return false
	}
	for key, value := range r.NamespaceLabels {
		if is, ok := labels[key]; !ok || is != value {
			return false
		}
	}
	return true
}

// Namespaces knows the labels of the cluster's namespaces. Safe for concurrent use.
type Namespaces interface {
	// Labels are those of a namespace, from memory. It is false while they aren't known, as for a moment those of a new
	// namespace. They aren't changed.
	Labels(namespace string) (labels map[string]string, known bool)
}

// RuledByLabels says whether a rule needs the labels of namespaces.
func (c Config) RuledByLabels() bool {
	return slices.ContainsFunc(c.Rules, func(r Rule) bool { return len(r.NamespaceLabels) > 0 })
}

// LongestLifetime is the longest one of any leaf.
func (c Config) LongestLifetime() time.Duration {
	longest := c.Lifetime.MaxOrDefault()
	for _, r := range c.Rules {
		longest = max(longest, r.Lifetime.within(c.Lifetime).MaxOrDefault())
	}
	return longest
}

// within fills what c leaves open from all.
func (c LifetimeConfig) within(all LifetimeConfig) LifetimeConfig {
	all = all.withDefaults()
	longest := c.Max.Or(all.Max.Or(0))
	usual := c.Default.Or(min(all.Default.Or(0), longest))
	return LifetimeConfig{
		Max:     setting.DurationOf(longest),
		Default: setting.DurationOf(usual),
		Min:     setting.DurationOf(c.Min.Or(min(all.Min.Or(0), usual))),
	}
}

// rule completes a grant by the rule that fits it. Local says that the caller is of our own cluster: the labels of
// another one's namespaces, which its administrators set, count for nothing.
func (s *Server) rule(grant Grant, certSigner string, local bool) (Grant, error) {
	grant.Lifetime = s.cfg.Lifetime
	var labels map[string]string
	if local && s.cfg.RuledByLabels() {
		var known bool
		if labels, known = s.namespaces.Labels(grant.Namespace); !known {
			return Grant{}, kindNotReady.because("the labels of namespace %s are not known yet, and ca.rules need them", grant.Namespace)
		}
	}
	for _, r := range s.cfg.Rules {
		if r.fits(certSigner, grant.Namespace, labels) {
			grant.Lifetime = r.Lifetime.within(s.cfg.Lifetime)
			if r.Issuer.Name != "" {
				grant.Issuer = r.Issuer.WithDefaults()
			}
			return grant, nil
		}
	}
	if certSigner != "" {
		offered := make(map[string]bool)
		for _, r := range s.cfg.Rules {
			offered[r.CertSigner] = true
		}
		delete(offered, "")
		return Grant{}, kindCertSigner.because("%s asks for signer %q; ca.rules have none of that name for it, of %q",
			grant.ID, shorten(certSigner), slices.Sorted(maps.Keys(offered)))
	}
	return grant, nil
}
