package meshclient

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func pkixExtensions(extensions ...Extension) []pkix.Extension {
	var list []pkix.Extension
	for _, e := range extensions {
		list = append(list, pkix.Extension{Id: e.OID, Critical: e.Critical, Value: e.Value})
	}
	return list
}

// answer is a good answer before it is encoded, so that a row of a table can break one thing in it.
type answer struct {
	template *x509.Certificate
	chain    func(leaf *x509.Certificate) []string
	key      crypto.PublicKey
	id       spiffeid.ID
	now      time.Time
}

func TestJudges(t *testing.T) {
	ca, other := newMemoryCA(t), newMemoryCA(t)
	otherKey, err := NewKey(P256)
	require.NoError(t, err)
	intermediate, root := pemOf(ca.intermediate), pemOf(ca.root)
	last := func(text string) func(a *answer) {
		return func(a *answer) {
			a.chain = func(leaf *x509.Certificate) []string { return []string{pemOf(leaf), intermediate, text} }
		}
	}
	chain := func(build func(leaf string) []string) func(a *answer) {
		return func(a *answer) {
			a.chain = func(leaf *x509.Certificate) []string { return build(pemOf(leaf)) }
		}
	}
	names := func(names ...[]byte) func(a *answer) {
		return func(a *answer) { a.template.ExtraExtensions = pkixExtensions(SAN(true, names...)) }
	}
	uri := URIName(testID.String())
	for _, c := range []struct {
		name             string
		sidecar, ztunnel string // the rule each finds broken
		change           func(a *answer)
	}{
		{"good", "", "", func(*answer) {}},
		{"two anchors", "", "", last(root + pemOf(other.root))},
		{"leaf and root in one string", "R41", "R41", chain(func(leaf string) []string { return []string{leaf + root} })},
		{"nothing", "R41", "R41", func(a *answer) { a.chain = func(*x509.Certificate) []string { return nil } }},
		{"no anchors", "R42", "R41", last("\n")},
		{"leaf and intermediate in one element", "", "R39", chain(func(leaf string) []string { return []string{leaf + intermediate, root} })},
		{"leaf is a key", "R39", "R39", chain(func(leaf string) []string {
			return []string{strings.ReplaceAll(leaf, "CERTIFICATE", "EC PRIVATE KEY"), intermediate, root}
		})},
		{"text before the leaf", "", "R39", chain(func(leaf string) []string { return []string{"subject=\n" + leaf, intermediate, root} })},
		{"two intermediates in one element", "", "R40", chain(func(leaf string) []string {
			return []string{leaf, intermediate + pemOf(other.intermediate), root}
		})},
		{"intermediate of another", "R36", "R40", chain(func(leaf string) []string { return []string{leaf, pemOf(other.intermediate), root} })},
		{"missing intermediate", "R36", "R36", chain(func(leaf string) []string { return []string{leaf, root} })},
		{"root among the intermediates", "", "R43", chain(func(leaf string) []string { return []string{leaf, intermediate, root, root} })},
		{"root only among the intermediates", "R36", "R43", chain(func(leaf string) []string { return []string{leaf, intermediate, root, pemOf(other.root)} })},
		{"anchors of another", "R36", "R36", last(pemOf(other.root))},
		{"key among the anchors", "R42", "R42", last(root + "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n")},
		{"broken certificate among the anchors", "R42", "R42", last(root + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")},
		{"broken PEM among the anchors", "", "R42", last(root + "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")},
		{"same anchor twice", "", "R44", last(root + root)},
		{"no new line at the end", "", "R45", last(strings.TrimSpace(root))},
		{"no new line after the leaf", "", "R45", chain(func(leaf string) []string { return []string{strings.TrimSpace(leaf), intermediate, root} })},
		{"other key", "R36", "R36", func(a *answer) { a.key = otherKey.Public() }},
		{"other identity", "R34", "R34", names(URIName(testID.String() + "x"))},
		{"hidden name", "R34", "R34", names(uri, OtherName(CodeSigning, "x"))},
		{"DNS name too", "R34", "R34", names(uri, DNSName("a.b"))},
		{"no name", "R34", "R34", func(a *answer) { a.template.ExtraExtensions = nil }},
		{"authority", "R35", "R35", func(a *answer) { a.template.IsCA, a.template.BasicConstraintsValid = true, true }},
		{"no key encipherment", "R35", "R35", func(a *answer) { a.template.KeyUsage = x509.KeyUsageDigitalSignature }},
		{"server only", "R35", "R35", func(a *answer) { a.template.ExtKeyUsage = a.template.ExtKeyUsage[:1] }},
		{"one usage more", "R35", "R35", func(a *answer) {
			a.template.ExtKeyUsage = append(a.template.ExtKeyUsage, x509.ExtKeyUsageCodeSigning)
		}},
		{"past half life", "", "R37", func(a *answer) { a.now = a.now.Add(31 * time.Minute) }},
		{"expired", "R37", "R37", func(a *answer) { a.now = a.now.Add(61 * time.Minute) }},
		{"not yet valid", "R37", "R37", func(a *answer) { a.now = a.now.Add(-time.Minute) }},
		{"outlives its issuer", "R38", "R38", func(a *answer) { a.template.NotAfter = ca.intermediate.NotAfter.Add(time.Second) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			key, err := NewKey(P256)
			require.NoError(t, err)
			a := answer{
				template: leafTemplate(sequence(uri), time.Hour),
				chain:    func(leaf *x509.Certificate) []string { return []string{pemOf(leaf), intermediate, root} },
				key:      key.Public(),
				id:       testID,
				now:      time.Now(),
			}
			c.change(&a)
			elements := a.chain(sign(t, a.template, ca.intermediate, key.Public(), ca.intermediateKey))
			assertRule(t, c.sidecar, JudgeSidecar(elements, a.key, a.id, a.now))
			assertRule(t, c.ztunnel, JudgeZtunnel(elements, a.key, a.id, a.now))
			assertRule(t, c.ztunnel, JudgeAgentgateway(elements, a.key, a.id, a.now))
		})
	}
}

func assertRule(t *testing.T, rule string, err error) {
	t.Helper()
	if rule == "" {
		assert.NoError(t, err)
		return
	}
	var violation *Violation
	if assert.ErrorAs(t, err, &violation) {
		assert.Equal(t, rule, violation.Rule, violation.Reason)
	}
}

func TestJudgeZtunnelTLS(t *testing.T) {
	good := tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_256_GCM_SHA384, NegotiatedProtocol: "h2"}
	for _, c := range []struct {
		name, rule string
		change     func(s *tls.ConnectionState)
	}{
		{"good", "", func(*tls.ConnectionState) {}},
		{"TLS 1.2", "R2", func(s *tls.ConnectionState) { s.Version = tls.VersionTLS12 }},
		{"ChaCha20", "R2", func(s *tls.ConnectionState) { s.CipherSuite = tls.TLS_CHACHA20_POLY1305_SHA256 }},
		{"no ALPN", "R1", func(s *tls.ConnectionState) { s.NegotiatedProtocol = "" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			state := good
			c.change(&state)
			assertRule(t, c.rule, JudgeZtunnelTLS(state))
		})
	}
}
