package signer

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net/url"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// answer is an issuer's answer in the making: root, intermediate, leaf, all good until changed.
type answer struct {
	t      testing.TB
	root   *authority
	middle *authority
	leaf   *x509.Certificate // the template
	key    crypto.PublicKey  // that the leaf certifies
	req    *Request
	now    time.Time

	certs func(leaf *x509.Certificate) []*x509.Certificate // what is answered
	text  func(good string) string                         // how it is written
	roots []*x509.Certificate                              // in force
}

func newAnswer(t testing.TB) *answer {
	t.Helper()
	key := newKey(t)
	a := &answer{t: t, key: key.Public(), req: newRequest(t, key), now: epoch.Add(time.Second)}
	a.root = newAuthority(t, "root", nil, nil)
	a.middle = newAuthority(t, "middle", a.root, nil)
	a.leaf = leafTemplate(t, a.req.Names)
	return a
}

func (a *answer) issued() *x509.Certificate { return a.middle.issue(a.t, a.leaf, a.key) }

func (a *answer) verify() (*Chain, error) {
	a.t.Helper()
	leaf := a.issued()
	certs := []*x509.Certificate{leaf, a.middle.cert}
	if a.certs != nil {
		certs = a.certs(leaf)
	}
	text := toPEM(certs...)
	if a.text != nil {
		text = a.text(text)
	}
	roots := a.roots
	if roots == nil {
		roots = []*x509.Certificate{a.root.cert}
	}
	return verifyChain([]byte(text), a.req, bundleOf(a.t, roots...), a.now)
}

func extension(oid asn1.ObjectIdentifier, critical bool, value string) pkix.Extension {
	return pkix.Extension{Id: oid, Critical: critical, Value: []byte(value)}
}

func TestVerifyChainAccepts(t *testing.T) {
	for name, change := range map[string]func(a *answer){
		"as it is": func(a *answer) {},
		"root alone issues": func(a *answer) {
			a.middle = a.root
			a.certs = func(leaf *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{leaf} }
		},
		"two intermediates, in any order": func(a *answer) {
			first := a.middle
			a.middle = newAuthority(a.t, "second", first, nil)
			a.certs = func(leaf *x509.Certificate) []*x509.Certificate {
				return []*x509.Certificate{leaf, first.cert, a.middle.cert}
			}
		},
		"an unrelated intermediate besides": func(a *answer) {
			other := newAuthority(a.t, "other", newAuthority(a.t, "elsewhere", nil, nil), nil)
			a.certs = func(leaf *x509.Certificate) []*x509.Certificate {
				return []*x509.Certificate{leaf, other.cert, a.middle.cert}
			}
		},
		"other roots in force": func(a *answer) {
			a.roots = []*x509.Certificate{newAuthority(a.t, "next", nil, nil).cert, a.root.cert}
		},
		"the intermediate is an anchor": func(a *answer) { a.roots = []*x509.Certificate{a.middle.cert} },
		"shorter than asked for":        func(a *answer) { a.leaf.NotAfter = epoch.Add(time.Minute) },
		"backdated":                     func(a *answer) { a.leaf.NotBefore = epoch.Add(-2 * time.Minute) },
		"clock ahead of ours":           func(a *answer) { a.leaf.NotBefore = a.now.Add(9 * time.Second) },
		"a little over the cap":         func(a *answer) { a.leaf.NotAfter = a.now.Add(time.Hour + clockSkew) },
		"just before half of its life":  func(a *answer) { a.now = epoch.Add(30*time.Minute - 1) },
		"ends with its issuer": func(a *answer) {
			a.middle = newAuthority(a.t, "middle", a.root, func(c *x509.Certificate) { c.NotAfter = a.leaf.NotAfter })
		},
		"issuer's extended key usages allow it": func(a *answer) {
			a.middle = newAuthority(a.t, "middle", a.root, func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageOCSPSigning}
			})
		},
		"issuer allows any extended key usage": func(a *answer) {
			a.middle = newAuthority(a.t, "middle", a.root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })
		},
		"extended key usages in another order": func(a *answer) {
			a.leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
		},
		"CRL and OCSP addresses, policies": func(a *answer) {
			a.leaf.CRLDistributionPoints = []string{"http://example.org/crl"}
			a.leaf.OCSPServer = []string{"http://example.org/ocsp"}
			a.leaf.Policies = []x509.OID{mustOID(a.t, "2.23.140.1.2.1")}
		},
		"no basicConstraints":     func(a *answer) { a.leaf.BasicConstraintsValid = false },
		"SAN that isn't critical": func(a *answer) { a.leaf.ExtraExtensions[0].Critical = false },
		"one empty O, as asked": func(a *answer) {
			key := newKey(a.t)
			a.req.CSR = newCSR(a.t, key, a.req.Names, pkix.Name{Organization: []string{""}})
			a.key, a.leaf.RawSubject = key.Public(), a.req.CSR.RawSubject
		},
		"subject asked for left out": func(a *answer) {
			key := newKey(a.t)
			a.req.CSR = newCSR(a.t, key, a.req.Names, pkix.Name{Organization: []string{""}})
			a.key = key.Public()
		},
		"blank lines between blocks": func(a *answer) {
			a.text = func(good string) string {
				return "\n" + strings.ReplaceAll(good, "-----\n-----", "-----\n\r\n\n-----") + "\n"
			}
		},
		"serving certificate": func(a *answer) {
			names := ServerNames([]string{"signet.istio-system.svc", "b.example"}, [][]byte{{192, 0, 2, 1}})
			key := newKey(a.t)
			a.req.CSR, a.req.Names, a.req.Usages = newCSR(a.t, key, names, pkix.Name{}), names, ServingUsages()
			a.key = key.Public()
			a.leaf = leafTemplate(a.t, ServerNames([]string{"b.example", "signet.istio-system.svc"}, [][]byte{{192, 0, 2, 1}}))
			a.leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		},
		"only extended key usages asked for": func(a *answer) {
			a.req.Usages = Usages{cmapi.UsageClientAuth, cmapi.UsageServerAuth}
			a.leaf.KeyUsage = 0
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAnswer(t)
			change(a)
			chain, err := a.verify()
			require.NoError(t, err)
			assert.True(t, equalKeys(chain.Leaf.PublicKey, a.req.CSR.PublicKey))
			for i, cert := range chain.Intermediates {
				parent := chain.Anchor
				if i+1 < len(chain.Intermediates) {
					parent = chain.Intermediates[i+1]
				}
				assert.NoError(t, cert.CheckSignatureFrom(parent), "intermediate %d", i)
			}
			first := chain.Anchor
			if len(chain.Intermediates) > 0 {
				first = chain.Intermediates[0]
			}
			assert.NoError(t, chain.Leaf.CheckSignatureFrom(first))
		})
	}
}

func mustOID(t testing.TB, text string) x509.OID {
	t.Helper()
	oid, err := x509.ParseOID(text)
	require.NoError(t, err)
	return oid
}

func TestVerifyChainRefuses(t *testing.T) {
	other := mustURL(t, "spiffe://cluster.local/ns/foo/sa/bob")
	names := func(t testing.TB, elements ...string) func(a *answer) {
		return func(a *answer) {
			a.leaf.ExtraExtensions = []pkix.Extension{extension(oidSAN, true, sequence(elements...))}
		}
	}
	uri := encodeName(tagURI, []byte(alice.String()))
	for _, row := range []struct {
		name   string
		change func(a *answer)
		want   string
	}{
		// R36
		{"another key", func(a *answer) { a.key = newKey(a.t).Public() }, "the leaf certifies another key than the request's"},
		{"an RSA request's key", func(a *answer) { a.req.CSR.PublicKey = "no key" }, "the leaf certifies another key"},
		// R35
		{"CA leaf", func(a *answer) { a.leaf.IsCA = true }, "the leaf is a CA certificate"},
		{"leaf that signs certificates", func(a *answer) { a.leaf.KeyUsage |= x509.KeyUsageCertSign }, "the leaf is a CA certificate"},
		{"leaf that signs CRLs", func(a *answer) { a.leaf.KeyUsage |= x509.KeyUsageCRLSign }, "the leaf is a CA certificate"},
		{"key usage missing", func(a *answer) { a.leaf.KeyUsage = 0 }, "the leaf has key usage bits 0, asked for were 101"},
		{"key usage short", func(a *answer) { a.leaf.KeyUsage = x509.KeyUsageDigitalSignature }, "key usage bits 1, asked for were 101"},
		{"key usage added", func(a *answer) { a.leaf.KeyUsage |= x509.KeyUsageKeyAgreement }, "key usage bits 10101, asked for were 101"},
		{"extended key usage missing", func(a *answer) { a.leaf.ExtKeyUsage = nil }, "the leaf has 0 extended key usages, asked for were 2"},
		{"extended key usage short", func(a *answer) { a.leaf.ExtKeyUsage = a.leaf.ExtKeyUsage[:1] }, "the leaf has 1 extended key usages, asked for were 2"},
		{"extended key usage added", func(a *answer) { a.leaf.ExtKeyUsage = append(a.leaf.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }, "the leaf has 3 extended key usages"},
		{"any extended key usage", func(a *answer) { a.leaf.ExtKeyUsage = append(a.leaf.ExtKeyUsage, x509.ExtKeyUsageAny) }, "the leaf has 3 extended key usages"},
		{"extended key usage exchanged", func(a *answer) { a.leaf.ExtKeyUsage[0] = x509.ExtKeyUsageCodeSigning }, "the leaf lacks extended key usage 1"},
		{"extended key usage twice", func(a *answer) { a.leaf.ExtKeyUsage[0] = a.leaf.ExtKeyUsage[1] }, "the leaf lacks extended key usage 1"},
		{"unknown extended key usage", func(a *answer) { a.leaf.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} }, "the leaf has 3 extended key usages"},
		// R34, and names as bytes
		{"another identity", func(a *answer) { a.leaf.ExtraExtensions, a.leaf.URIs = nil, []*url.URL{other} }, `the leaf names [URI:"spiffe://cluster.local/ns/foo/sa/bob"], asked for were [URI:"spiffe://cluster.local/ns/foo/sa/alice"]`},
		{"no names", func(a *answer) { a.leaf.ExtraExtensions = nil }, "the leaf names [], asked for were"},
		{"second URI", names(t, uri, encodeName(tagURI, []byte(other.String()))), "the leaf names ["},
		{"the URI twice", names(t, uri, uri), "the leaf names ["},
		{"DNS name added", names(t, uri, encodeName(tagDNS, []byte("example.org"))), `DNS:"example.org"`},
		{"otherName hidden", names(t, uri, otherName), "the leaf names [URI:"},
		{"directoryName hidden", names(t, uri, directoryName), "the leaf names [URI:"},
		{"registeredID hidden", names(t, "\x88\x03\x2a\x03\x04", uri), "[8]"},
		{"other case", names(t, encodeName(tagURI, []byte("spiffe://cluster.local/ns/foo/sa/Alice"))), "the leaf names ["},
		{"percent-encoded", names(t, encodeName(tagURI, []byte("spiffe://cluster.local/ns/foo/sa/%61lice"))), "the leaf names ["},
		{"slash at the end", names(t, encodeName(tagURI, []byte(alice.String()+"/"))), "the leaf names ["},
		{"CN in the subject", func(a *answer) { a.leaf.Subject = pkix.Name{CommonName: "admin"} }, `the leaf has subject "CN=admin", asked for was ""`},
		{"empty O nobody asked for", func(a *answer) { a.leaf.Subject = pkix.Name{Organization: []string{""}} }, "the leaf has subject"},
		{"extension added", func(a *answer) {
			a.leaf.ExtraExtensions = append(a.leaf.ExtraExtensions, extension(asn1.ObjectIdentifier{1, 2, 3, 4}, false, "x"))
		}, "the leaf has extension 1.2.3.4, which was not asked for"},
		{"name constraints", func(a *answer) { a.leaf.PermittedURIDomains = []string{"example.org"} }, "the leaf has extension 2.5.29.30, which was not asked for"},
		{"TLS feature", func(a *answer) {
			a.leaf.ExtraExtensions = append(a.leaf.ExtraExtensions, extension(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, false, "\x30\x03\x02\x01\x05"))
		}, "the leaf has extension 1.3.6.1.5.5.7.1.24"},
		// R37 and the bounds of time
		{"at half of its life", func(a *answer) { a.now = epoch.Add(30 * time.Minute) }, "the leaf is past half of its life"},
		{"long backdated", func(a *answer) { a.leaf.NotBefore = epoch.Add(-backdating - time.Second) }, "longer than the 1h0m0s allowed"},
		{"expired", func(a *answer) { a.now = a.leaf.NotAfter }, "the leaf expired at 2030-01-01T01:00:00Z"},
		{"not yet valid", func(a *answer) { a.leaf.NotBefore = a.now.Add(11 * time.Second) }, "the leaf is not valid before 2030-01-01T00:00:12Z"},
		{"ends before it begins", func(a *answer) { a.leaf.NotAfter = a.leaf.NotBefore.Add(-time.Second) }, "the leaf expired"},
		{"above the cap", func(a *answer) { a.leaf.NotAfter = a.now.Add(time.Hour + clockSkew + time.Second) }, "longer than the 1h0m0s allowed"},
		{"without an end", func(a *answer) { a.leaf.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }, "longer than the 1h0m0s allowed"},
		// the chain
		{"unknown root", func(a *answer) { a.roots = []*x509.Certificate{newAuthority(a.t, "root", nil, nil).cert} }, "the chain doesn't lead to a trust anchor in force"},
		{"intermediate missing", func(a *answer) {
			a.certs = func(leaf *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{leaf} }
		}, "the chain doesn't lead to a trust anchor in force"},
		{"root sent, but not in force", func(a *answer) {
			a.roots = []*x509.Certificate{newAuthority(a.t, "next", nil, nil).cert}
			a.certs = func(leaf *x509.Certificate) []*x509.Certificate {
				return []*x509.Certificate{leaf, a.middle.cert, a.root.cert}
			}
		}, "the chain doesn't lead to a trust anchor in force"},
		{"intermediate first", func(a *answer) {
			a.certs = func(leaf *x509.Certificate) []*x509.Certificate {
				return []*x509.Certificate{a.middle.cert, leaf}
			}
		}, "the leaf certifies another key"},
		{"intermediate for clients only", func(a *answer) {
			a.middle = newAuthority(a.t, "middle", a.root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
		}, `CA certificate "CN=middle" may not issue for extended key usage 1`},
		{"intermediate for something unknown", func(a *answer) {
			a.middle = newAuthority(a.t, "middle", a.root, func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} })
		}, `CA certificate "CN=middle" may not issue`},
		{"root for code signing", func(a *answer) {
			a.root = newAuthority(a.t, "root", nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} })
			a.middle = newAuthority(a.t, "middle", a.root, nil)
		}, `CA certificate "CN=root" may not issue`},
		{"intermediate is no CA", func(a *answer) {
			a.middle = newAuthority(a.t, "middle", a.root, func(c *x509.Certificate) { c.IsCA = false; c.KeyUsage = 0 })
		}, "the chain doesn't lead to a trust anchor in force"},
		{"intermediate may not sign", func(a *answer) {
			a.middle = newAuthority(a.t, "middle", a.root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
		}, "the chain doesn't lead to a trust anchor in force"},
		{"intermediate that allows no further one", func(a *answer) {
			first := newAuthority(a.t, "first", a.root, func(c *x509.Certificate) { c.MaxPathLenZero = true })
			a.middle = newAuthority(a.t, "second", first, nil)
			a.certs = func(leaf *x509.Certificate) []*x509.Certificate {
				return []*x509.Certificate{leaf, a.middle.cert, first.cert}
			}
		}, "the chain doesn't lead to a trust anchor in force"},
		{"intermediate for another domain", func(a *answer) {
			a.middle = newAuthority(a.t, "middle", a.root, func(c *x509.Certificate) {
				c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"example.org"}, true
			})
		}, "the chain doesn't lead to a trust anchor in force"},
		{"intermediate expired", func(a *answer) {
			a.middle = newAuthority(a.t, "middle", a.root, func(c *x509.Certificate) { c.NotAfter = epoch })
		}, "the chain doesn't lead to a trust anchor in force"},
		{"outlives its issuer", func(a *answer) {
			a.middle = newAuthority(a.t, "middle", a.root, func(c *x509.Certificate) { c.NotAfter = epoch.Add(10 * time.Minute) })
		}, "the leaf is valid until 2030-01-01T01:00:00Z, its issuer only until 2030-01-01T00:10:00Z"},
		{"outlives the root", func(a *answer) {
			a.root = newAuthority(a.t, "root", nil, func(c *x509.Certificate) { c.NotAfter = epoch.Add(10 * time.Minute) })
			a.middle = newAuthority(a.t, "middle", a.root, nil)
		}, "its issuer only until 2030-01-01T00:10:00Z"},
		{"signed by somebody of the same name", func(a *answer) {
			other := a.middle
			a.middle = newAuthority(a.t, "middle", newAuthority(a.t, "root", nil, nil), nil)
			a.certs = func(leaf *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{leaf, other.cert} }
		}, "the chain doesn't lead to a trust anchor in force"},
		// R42, the text
		{"garbage", func(a *answer) { a.text = func(string) string { return "garbage" } }, "PEM: text outside of blocks"},
		{"nothing", func(a *answer) { a.text = func(string) string { return "" } }, "PEM: no certificate"},
		{"text between blocks", func(a *answer) {
			a.text = func(good string) string { return strings.ReplaceAll(good, "-----\n-----", "-----\nsubject=\n-----") }
		}, "PEM: text outside of blocks, after certificate 1"},
		{"private key behind", func(a *answer) {
			a.text = func(good string) string {
				return good + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("key")}))
			}
		}, `PEM: block of type "PRIVATE KEY", after certificate 2`},
		{"broken leaf in front", func(a *answer) {
			a.text = func(good string) string { return "-----BEGIN CERTIFICATE-----\n!\n" + good }
		}, "PEM: broken block"},
		{"leaf cut short", func(a *answer) {
			a.text = func(good string) string {
				return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.issued().Raw[:300]}))
			}
		}, "parse certificate 1: "},
		{"too many", func(a *answer) {
			a.text = func(good string) string { return good + strings.Repeat(toPEM(a.middle.cert), maxChainLength-1) }
		}, "chain has 11 certificates; at most 10 are allowed"},
		{"too large", func(a *answer) {
			a.text = func(good string) string { return good + strings.Repeat("\n", maxChainBytes) }
		}, "at most 131072 are allowed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := newAnswer(t)
			row.change(a)
			chain, err := a.verify()
			require.ErrorContains(t, err, row.want)
			assert.Nil(t, chain)
		})
	}
}

func mustURL(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	require.NoError(t, err)
	return u
}

// A leaf that is an anchor itself must not be answered as a chain.
func TestVerifyChainRefusesAnchorAsLeaf(t *testing.T) {
	a := newAnswer(t)
	leaf := a.issued()
	// ParseBundle would refuse it; a bundle that holds it can only be made behind its back.
	forged := *leaf
	forged.IsCA, forged.BasicConstraintsValid, forged.KeyUsage = true, true, x509.KeyUsageCertSign
	_, err := verifyChain([]byte(toPEM(leaf)), a.req, bundleOf(t, &forged), a.now)
	assert.ErrorContains(t, err, "the leaf itself is a trust anchor")
}

// R38: the error tells apart that the next attempt may ask for less.
func TestR38_OutlivesError(t *testing.T) {
	a := newAnswer(t)
	ends := epoch.Add(10 * time.Minute)
	a.middle = newAuthority(t, "middle", a.root, func(c *x509.Certificate) { c.NotAfter = ends })
	_, err := a.verify()
	outlives := new(outlivesError)
	require.ErrorAs(t, err, &outlives)
	assert.Equal(t, ends, outlives.issuer)
	assert.Equal(t, epoch.Add(time.Hour), outlives.leaf)
}

func TestR43_RootsAreNoIntermediates(t *testing.T) {
	a := newAnswer(t)
	second := newAuthority(t, "second", a.middle, nil)
	middle := a.middle
	a.middle = second
	a.certs = func(leaf *x509.Certificate) []*x509.Certificate {
		return []*x509.Certificate{leaf, second.cert, middle.cert, a.root.cert}
	}
	chain, err := a.verify()
	require.NoError(t, err)
	assert.Equal(t, []*x509.Certificate{second.cert, middle.cert}, chain.Intermediates)
	assert.True(t, chain.Anchor.Equal(a.root.cert))

	// Also when an intermediate that was sent is itself an anchor in force.
	a.roots = []*x509.Certificate{a.root.cert, middle.cert}
	chain, err = a.verify()
	require.NoError(t, err)
	assert.Equal(t, []*x509.Certificate{second.cert}, chain.Intermediates)
	assert.True(t, chain.Anchor.Equal(middle.cert))
}

func TestR39_R40_R45_ChainPEM(t *testing.T) {
	a := newAnswer(t)
	second := newAuthority(t, "second", a.middle, nil)
	middle := a.middle
	a.middle = second
	a.certs = func(leaf *x509.Certificate) []*x509.Certificate {
		return []*x509.Certificate{leaf, middle.cert, second.cert} // not in order
	}
	chain, err := a.verify()
	require.NoError(t, err)
	blocks := chain.PEM()
	require.Equal(t, []string{toPEM(chain.Leaf), toPEM(second.cert), toPEM(middle.cert)}, blocks)
	for _, text := range blocks {
		assert.Equal(t, 1, strings.Count(text, "-----BEGIN CERTIFICATE-----"))
		assert.True(t, strings.HasSuffix(text, "-----END CERTIFICATE-----\n"))
	}
	assert.Equal(t, time.Hour, chain.Lifetime())
}

func TestFirstUseRoot(t *testing.T) {
	a := newAnswer(t)
	chain := toPEM(a.issued(), a.middle.cert)
	for _, row := range []struct {
		name, ca, chain, want string // want "" is the root
	}{
		{"the issuer's CA", toPEM(a.root.cert), chain, ""},
		{"at the end of the chain", "", chain + toPEM(a.root.cert), ""},
		{"CA is an intermediate", toPEM(a.middle.cert), chain + toPEM(a.root.cert), ""},
		{"behind an intermediate", toPEM(a.middle.cert, a.root.cert), chain, ""},
		{"CA is no PEM", "x", chain, "the issuer's CA: PEM: "},
		{"nowhere", "", chain, "names no self-signed CA certificate"},
		{"only an intermediate", toPEM(a.middle.cert), chain, "names no self-signed CA certificate"},
		{"chain is no PEM", toPEM(a.root.cert), "x", "PEM: "},
	} {
		t.Run(row.name, func(t *testing.T) {
			root, err := firstUseRoot(&cmapi.CertificateRequest{Status: cmapi.CertificateRequestStatus{
				CA: []byte(row.ca), Certificate: []byte(row.chain),
			}})
			if row.want != "" {
				require.ErrorContains(t, err, row.want)
				return
			}
			require.NoError(t, err)
			assert.True(t, root.Equal(a.root.cert))
		})
	}
	t.Run("self-signed, but no CA", func(t *testing.T) {
		own := newAuthority(t, "own", nil, func(c *x509.Certificate) { c.IsCA = false; c.KeyUsage = 0 })
		_, err := firstUseRoot(&cmapi.CertificateRequest{Status: cmapi.CertificateRequestStatus{CA: []byte(toPEM(own.cert)), Certificate: []byte(chain)}})
		assert.ErrorContains(t, err, "names no self-signed CA certificate")
	})
	t.Run("named as if self-signed", func(t *testing.T) {
		imposter := newAuthority(t, "root", a.root, nil) // issuer and subject alike, signed by the real root
		_, err := firstUseRoot(&cmapi.CertificateRequest{Status: cmapi.CertificateRequestStatus{CA: []byte(toPEM(imposter.cert)), Certificate: []byte(chain)}})
		assert.ErrorContains(t, err, "names no self-signed CA certificate")
	})
}

func TestStale(t *testing.T) {
	a := newAnswer(t)
	final := &cmapi.CertificateRequest{Status: cmapi.CertificateRequestStatus{Certificate: []byte(toPEM(a.issued()))}}
	assert.False(t, stale(final, epoch))
	assert.False(t, stale(final, epoch.Add(6*time.Minute)), "a tenth of its life is young enough")
	assert.True(t, stale(final, epoch.Add(6*time.Minute+1)))
	assert.False(t, stale(&cmapi.CertificateRequest{}, epoch), "what can't be read is for verifyChain to refuse")
}

// FuzzParseChain: no text makes verifyChain panic, and whatever it accepts names exactly who asked,
// certifies exactly the key of the request, and is valid to an independent verifier.
func FuzzParseChain(f *testing.F) {
	a := newAnswer(f)
	anchors := bundleOf(f, a.root.cert)
	good := toPEM(a.issued(), a.middle.cert)
	otherKey := toPEM(a.middle.issue(f, a.leaf, newKey(f).Public()), a.middle.cert)
	hidden := *a.leaf
	hidden.ExtraExtensions = []pkix.Extension{extension(oidSAN, true, sequence(encodeName(tagURI, []byte(alice.String())), otherName))}
	for _, seed := range []string{
		"", good, good + toPEM(a.root.cert), toPEM(a.issued()), otherKey,
		toPEM(a.middle.issue(f, &hidden, a.key), a.middle.cert),
		toPEM(a.middle.cert, a.issued()), "x" + good, good + "x",
		"-----BEGIN CERTIFICATE-----\n" + good, strings.ReplaceAll(good, "\n", "\r\n"),
	} {
		f.Add([]byte(seed))
	}
	want := []byte(sequence(encodeName(tagURI, []byte(alice.String()))))
	f.Fuzz(func(t *testing.T, text []byte) {
		chain, err := verifyChain(text, a.req, anchors, a.now)
		if err != nil {
			require.Nil(t, chain)
			return
		}
		seen := 0
		for _, e := range chain.Leaf.Extensions {
			if e.Id.Equal(oidSAN) {
				seen++
				require.Equal(t, want, e.Value)
			}
		}
		require.Equal(t, 1, seen)
		require.True(t, equalKeys(chain.Leaf.PublicKey, a.req.CSR.PublicKey))
		require.False(t, chain.Leaf.IsCA)
		intermediates := x509.NewCertPool()
		for _, cert := range chain.Intermediates {
			require.True(t, cert.IsCA)
			require.False(t, anchors.Contains(cert))
			intermediates.AddCert(cert)
		}
		_, err = chain.Leaf.Verify(x509.VerifyOptions{Roots: anchors.Pool(), Intermediates: intermediates, CurrentTime: a.now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		require.NoError(t, err)
	})
}

func BenchmarkVerifyChain(b *testing.B) {
	a := newAnswer(b)
	text, anchors := []byte(toPEM(a.issued(), a.middle.cert)), bundleOf(b, a.root.cert)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := verifyChain(text, a.req, anchors, a.now); err != nil {
			b.Fatal(err)
		}
	}
}
