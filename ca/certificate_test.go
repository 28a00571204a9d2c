package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
)

// signed is a certificate with its key.
type signed struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// sign makes a certificate for a year; without a parent it is self-signed.
func sign(t *testing.T, serial int64, parent *signed, change func(*x509.Certificate)) *signed {
	t.Helper()
	key := ecKey(t, elliptic.P256())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: certNow.Add(-time.Hour), NotAfter: certNow.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	change(template)
	if parent == nil {
		parent = &signed{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &signed{cert, key}
}

var certNow = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func asCA(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject, c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = pkix.Name{CommonName: name}, true, true, x509.KeyUsageCertSign, nil
	}
}

func withURI(t *testing.T, ids ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, id := range ids {
			uri, err := url.Parse(id)
			require.NoError(t, err)
			c.URIs = append(c.URIs, uri)
		}
	}
}

// issuedTo are the issuances that a test knows of.
type issuedTo map[[sha256.Size]byte]IssuedTo

func (i issuedTo) IssuedTo(_ context.Context, sum [sha256.Size]byte) (IssuedTo, bool, error) {
	to, known := i[sum]
	if to.Identity == "broken" {
		return IssuedTo{}, false, errors.New("disk on fire")
	}
	return to, known, nil
}

// there is what exists.
type there struct {
	accounts, pods map[string]string // UID by namespace/name
	deletedAt      time.Time         // of accounts
	unsynced       []presence.Kind
}

func (x there) Synced(kinds ...presence.Kind) bool {
	for _, kind := range kinds {
		if slices.Contains(x.unsynced, kind) {
			return false
		}
	}
	return true
}

func (x there) ServiceAccount(namespace, name string) (presence.Object, bool) {
	uid, ok := x.accounts[namespace+"/"+name]
	return presence.Object{UID: uid, DeletedAt: x.deletedAt}, ok
}

func (x there) Pod(namespace, name string) (presence.Pod, bool) {
	uid, ok := x.pods[namespace+"/"+name]
	return presence.Pod{Namespace: namespace, Name: name, UID: uid}, ok
}

func TestR20_ClientCertificates(t *testing.T) {
	root := sign(t, 1, nil, asCA("root"))
	between := sign(t, 2, root, asCA("between"))
	stranger := sign(t, 1, nil, asCA("root"))
	const old = "spiffe://old.mesh/ns/foo/sa/alice"

	vm := IssuedTo{Identity: alice.String(), ServiceAccountUID: "sa-1", Cluster: "Kubernetes", ProvenAt: certNow.Add(-3 * time.Hour)}
	inPod := vm
	inPod.PodName, inPod.PodUID, inPod.NodeName = "web-0", "pod-1", "node"
	changed := func(change func(*IssuedTo)) IssuedTo {
		to := vm
		change(&to)
		return to
	}
	exists := there{accounts: map[string]string{"foo/alice": "sa-1"}, pods: map[string]string{"foo/web-0": "pod-1"}}
	nothing := func(*x509.Certificate) {}

	for _, row := range []struct {
		name    string
		parent  *signed
		change  func(*x509.Certificate)
		to      IssuedTo // not recorded where it has no identity
		exists  there
		maxAge  time.Duration
		revoked int64 // a serial number
		want    *kind
	}{
		{"of a virtual machine", root, nothing, vm, exists, 0, 0, nil},
		{"of a pod", root, nothing, inPod, exists, 0, 0, nil},
		{"by an intermediate", between, nothing, vm, exists, 0, 0, nil},
		{"R32: of a former trust domain", root, withURI(t, old), changed(func(i *IssuedTo) { i.Identity = old }), exists, 0, 0, nil},
		{"young enough", root, nothing, vm, exists, 3 * time.Hour, 0, nil},

		{"two URIs", root, withURI(t, alice.String(), bob.String()), vm, exists, 0, 0, &kindCertificateNames},
		{"no URI", root, func(c *x509.Certificate) { c.DNSNames = []string{"alice.foo"} }, vm, exists, 0, 0, &kindCertificateNames},
		{"a DNS name beside it", root, func(c *x509.Certificate) {
			withURI(t, alice.String())(c)
			c.DNSNames = []string{"istiod.istio-system.svc"}
		}, vm, exists, 0, 0, &kindCertificateNames},
		{"no SPIFFE ID", root, withURI(t, "https://foo/alice"), vm, exists, 0, 0, &kindCertificateNames},
		{"another trust domain", root, withURI(t, "spiffe://other.mesh/ns/foo/sa/alice"), vm, exists, 0, 0, &kindCertificateNames},
		{"no service account", root, withURI(t, "spiffe://cluster.local/foo"), vm, exists, 0, 0, &kindCertificateNames},
		{"a CA", root, func(c *x509.Certificate) { asCA("x")(c); withURI(t, alice.String())(c) }, vm, exists, 0, 0, &kindCertificateNames},

		{"of another root with the same name", stranger, nothing, vm, exists, 0, 0, &kindCertificateUntrusted},
		{"for servers only", root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, vm, exists, 0, 0, &kindCertificateUntrusted},
		{"expired", root, func(c *x509.Certificate) { c.NotAfter = certNow.Add(-time.Second) }, vm, exists, 0, 0, &kindCertificateExpired},
		{"not valid yet", root, func(c *x509.Certificate) { c.NotBefore = certNow.Add(time.Minute) }, vm, exists, 0, 0, &kindCertificateExpired},
		{"revoked", root, nothing, vm, exists, 0, 7, &kindCertificateRevoked},
		{"of a revoked CA", between, nothing, vm, exists, 0, 2, &kindCertificateRevoked},

		{"not in the ledger", root, nothing, IssuedTo{}, exists, 0, 0, &kindCertificateUnknown},
		{"the ledger says another identity", root, nothing, changed(func(i *IssuedTo) { i.Identity = bob.String() }), exists, 0, 0, &kindCertificateUnknown},
		{"the ledger doesn't know the account", root, nothing, changed(func(i *IssuedTo) { i.ServiceAccountUID = "" }), exists, 0, 0, &kindCertificateUnknown},
		{"the ledger can't be read", root, nothing, changed(func(i *IssuedTo) { i.Identity = "broken" }), exists, 0, 0, &kindReviewFailed},
		{"held by a node's proxy", root, nothing, changed(func(i *IssuedTo) { i.Impersonated = true }), exists, 0, 0, &kindCertificateHolder},
		{"of another cluster", root, nothing, changed(func(i *IssuedTo) { i.Cluster = "west" }), exists, 0, 0, &kindCertificateHolder},

		{"the account is gone", root, nothing, vm, there{}, 0, 0, &kindCertificateHolder},
		{"the account was made anew", root, nothing, vm, there{accounts: map[string]string{"foo/alice": "sa-2"}}, 0, 0, &kindCertificateHolder},
		{"the pod is gone", root, nothing, inPod, there{accounts: exists.accounts}, 0, 0, &kindCertificateHolder},
		{"the pod was made anew", root, nothing, inPod, there{accounts: exists.accounts, pods: map[string]string{"foo/web-0": "pod-2"}}, 0, 0, &kindCertificateHolder},
		{"accounts aren't known", root, nothing, vm, there{unsynced: []presence.Kind{presence.ServiceAccounts}}, 0, 0, &kindReviewFailed},
		{"pods aren't known", root, nothing, inPod, there{accounts: exists.accounts, unsynced: []presence.Kind{presence.Pods}}, 0, 0, &kindReviewFailed},
		{"the account is being deleted", root, nothing, vm, there{accounts: exists.accounts, deletedAt: certNow.Add(-30 * time.Second)}, 0, 0, nil},
		{"the account should be deleted", root, nothing, vm, there{accounts: exists.accounts, deletedAt: certNow.Add(-2 * time.Minute)}, 0, 0, &kindCertificateHolder},
		{"too long without a token", root, nothing, vm, exists, 3*time.Hour - time.Second, 0, &kindCertificateAge},
	} {
		t.Run(row.name, func(t *testing.T) {
			leaf := sign(t, 7, row.parent, func(c *x509.Certificate) {
				row.change(c)
				if c.URIs == nil && c.DNSNames == nil {
					withURI(t, alice.String())(c)
				}
			})
			known := issuedTo{}
			if row.to.Identity != "" {
				known[sha256.Sum256(leaf.cert.Raw)] = row.to
			}
			anchors, err := issuer.NewBundle(root.cert)
			require.NoError(t, err)
			cfg := Config{TrustDomain: alice.TrustDomain(), TrustDomainAliases: []string{"old.mesh"}}
			cfg.Certificates.MaxAge = setting.DurationOf(row.maxAge)
			certificates := &Certificates{
				cfg: cfg, anchors: func() issuer.Bundle { return anchors }, issuances: known, exists: row.exists,
				revoked: func(c *x509.Certificate) bool { return row.revoked != 0 && c.SerialNumber.Int64() == row.revoked },
			}
			caller, err := certificates.authenticate(t.Context(), []*x509.Certificate{leaf.cert, between.cert}, certNow)
			if row.want != nil {
				requireKind(t, *row.want, err)
				assert.Nil(t, caller)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, &Caller{
				ID: alice, Namespace: "foo", ServiceAccount: "alice", ServiceAccountUID: "sa-1", PodName: row.to.PodName, PodUID: row.to.PodUID,
				NodeName: row.to.NodeName, CredentialID: caller.CredentialID, Cluster: "Kubernetes", ProvenAt: row.to.ProvenAt,
			}, caller)
			assert.Equal(t, fmt.Sprintf("certificate=%x", sha256.Sum256(leaf.cert.Raw))[:44], caller.CredentialID)
		})
	}

	t.Run("too many certificates", func(t *testing.T) {
		leaf := sign(t, 7, root, withURI(t, alice.String()))
		certificates := &Certificates{cfg: Config{TrustDomain: alice.TrustDomain()}}
		chain := []*x509.Certificate{leaf.cert}
		for range maxClientChain {
			chain = append(chain, between.cert)
		}
		_, err := certificates.authenticate(t.Context(), chain, certNow)
		requireKind(t, kindCertificateUntrusted, err)
	})
	t.Run("no anchors yet", func(t *testing.T) {
		leaf := sign(t, 7, root, withURI(t, alice.String()))
		certificates := &Certificates{cfg: Config{TrustDomain: alice.TrustDomain()}, anchors: func() issuer.Bundle { return issuer.Bundle{} }}
		_, err := certificates.authenticate(t.Context(), []*x509.Certificate{leaf.cert}, certNow)
		requireKind(t, kindReviewFailed, err)
	})
}
