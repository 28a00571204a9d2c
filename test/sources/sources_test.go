package sources

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
)

const patience = 3 * time.Minute // connections to an API server that was away are tried again after up to a minute

var quiet = slog.New(slog.DiscardHandler)

// root is a CA that may sign certificates and CRLs.
type root struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  string
}

func newRoot(t *testing.T, name string, lifetime time.Duration) *root {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &root{cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

func (r *root) crl(t *testing.T, serial int64) string {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number:                    big.NewInt(1),
		ThisUpdate:                time.Now().Add(-time.Minute),
		NextUpdate:                time.Now().Add(24 * time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()}},
	}, r.cert, r.key)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// place is a namespace with a ServiceAccount.
type place struct {
	namespace string
	config    *rest.Config // as the ServiceAccount
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{namespace: plane.NewNamespace(t, "sources")}
	require.NoError(t, plane.ServiceAccount(t.Context(), p.namespace, "signet"))
	config, err := plane.As(t.Context(), p.namespace, "signet")
	require.NoError(t, err)
	p.config = config
	return p
}

// grant gives the ServiceAccount the rights to one object that a source of it takes.
func (p *place) grant(t *testing.T, resource, name string) {
	t.Helper()
	meta := metav1.ObjectMeta{Namespace: p.namespace, Name: resource + "." + name}
	require.NoError(t, plane.Client().Create(t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{""}, Resources: []string{resource}, ResourceNames: []string{name}, Verbs: []string{"list", "watch"},
	}}}))
	require.NoError(t, plane.Client().Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: meta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: p.namespace, Name: "signet"}},
	}))
}

// put creates or replaces an object of a kind; data is nil to delete it.
func (p *place) put(t *testing.T, kind, name string, data map[string]string) {
	t.Helper()
	meta := metav1.ObjectMeta{Namespace: p.namespace, Name: name}
	var object client.Object = &corev1.ConfigMap{ObjectMeta: meta, Data: maps.Clone(data)}
	if kind == "Secret" {
		secret := &corev1.Secret{ObjectMeta: meta, Data: map[string][]byte{}}
		for key, value := range data {
			secret.Data[key] = []byte(value)
		}
		object = secret
	}
	if data == nil {
		require.NoError(t, plane.Client().Delete(t.Context(), object))
		return
	}
	err := plane.Client().Update(t.Context(), object)
	if client.IgnoreNotFound(err) == nil && err != nil {
		err = plane.Client().Create(t.Context(), object)
	}
	require.NoError(t, err)
}

// listener hears the answers of a source.
type listener struct {
	answers chan issuer.Answer
	last    *issuer.Answer
}

// listen runs source until the test ends.
func listen(t *testing.T, source issuer.Source) *listener {
	t.Helper()
	l := &listener{answers: make(chan issuer.Answer, 1000)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		source.Run(ctx, func(answer issuer.Answer) { l.answers <- answer })
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("the source doesn't stop")
		}
	})
	return l
}

// until waits for an answer that is as wanted.
func (l *listener) until(t *testing.T, what string, as func(issuer.Answer) bool) issuer.Answer {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case answer := <-l.answers:
			l.last = &answer
			if as(answer) {
				return answer
			}
		case <-deadline:
			t.Fatalf("no answer with %s; the last was %+v", what, l.last)
		}
	}
}

func (l *listener) anchors(t *testing.T, roots ...*root) {
	t.Helper()
	l.until(t, "the anchors", func(a issuer.Answer) bool {
		if a.Err != nil || len(a.Bundle.Anchors()) != len(roots) {
			return false
		}
		for _, r := range roots {
			if !a.Bundle.Contains(r.cert) {
				return false
			}
		}
		return true
	})
}

func (l *listener) fails(t *testing.T, want string) error {
	t.Helper()
	answer := l.until(t, "the error "+want, func(a issuer.Answer) bool { return a.Err != nil && strings.Contains(a.Err.Error(), want) })
	assert.True(t, answer.Bundle.Empty())
	assert.Contains(t, answer.Err.Error(), "read trust anchors: ")
	return answer.Err
}

// kinds are those of objects that hold anchors. A trust-manager Bundle is, for us, its target ConfigMap.
var kinds = []struct {
	kind, resource, key string
	source              func(config *rest.Config, namespace, name, key string, log *slog.Logger) (issuer.Source, error)
}{
	{"Secret", "secrets", "ca.crt", issuer.NewSecretSource},
	{"ConfigMap", "configmaps", "trust-bundle.pem", issuer.NewConfigMapSource},
}

func TestObjectSources(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.kind, func(t *testing.T) {
			a, b, gone := newRoot(t, "a", 24*time.Hour), newRoot(t, "b", 24*time.Hour), newRoot(t, "gone", -time.Minute)
			p := newPlace(t)
			p.grant(t, k.resource, "roots")
			source, err := k.source(p.config, p.namespace, "roots", k.key, quiet)
			require.NoError(t, err)
			assert.Equal(t, k.kind+" "+p.namespace+"/roots, key "+k.key, source.String())
			told := listen(t, source)
			put := func(text string) {
				p.put(t, k.kind, "roots", map[string]string{k.key: text, "tls.key": "beside it"})
			}

			require.ErrorIs(t, told.fails(t, k.kind+" "+p.namespace+"/roots doesn't exist"), issuer.ErrNoAnchors)
			p.put(t, k.kind, "another", map[string]string{k.key: b.pem})
			put(a.pem)
			told.anchors(t, a)
			put("# two now\n" + b.pem + a.pem)
			told.anchors(t, a, b)

			put(a.pem + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
			told.fails(t, `block of type "PRIVATE KEY"`)
			put(a.pem + "junk\n" + b.pem)
			told.fails(t, "PEM: text outside of blocks")
			put(a.pem + b.pem[:len(b.pem)/2])
			told.fails(t, "PEM: broken block")
			put(strings.Repeat(a.pem, 300<<10/len(a.pem)))
			told.fails(t, "at most 262144 are allowed")
			put(gone.pem + b.pem)
			told.anchors(t, b)
			require.Len(t, told.last.LeftOut, 1)
			assert.Contains(t, told.last.LeftOut[0], "CN=gone, serial 01, expired at ")
			put(gone.pem)
			told.fails(t, "all 1 have expired")

			put("")
			require.ErrorIs(t, told.fails(t, "has no key "+k.key), issuer.ErrNoAnchors)
			put(a.pem)
			told.anchors(t, a)
			p.put(t, k.kind, "roots", map[string]string{"other": b.pem})
			require.ErrorIs(t, told.fails(t, "has no key "+k.key), issuer.ErrNoAnchors)
			put(a.pem)
			told.anchors(t, a)
			p.put(t, k.kind, "roots", nil)
			require.ErrorIs(t, told.fails(t, "doesn't exist"), issuer.ErrNoAnchors)
			put(a.pem)
			told.anchors(t, a)
		})
	}
}

// Without the rights there is an error that says so; with them the source recovers by itself.
func TestObjectSourcesWithoutRights(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.kind, func(t *testing.T) {
			a := newRoot(t, "a", 24*time.Hour)
			p := newPlace(t)
			p.put(t, k.kind, "roots", map[string]string{k.key: a.pem})
			p.grant(t, k.resource, "another")
			source, err := k.source(p.config, p.namespace, "roots", k.key, quiet)
			require.NoError(t, err)
			told := listen(t, source)
			assert.NotErrorIs(t, told.fails(t, "forbidden"), issuer.ErrNoAnchors)
			p.grant(t, k.resource, "roots")
			told.anchors(t, a)
		})
	}
}

func TestCRLsOfObjects(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.kind, func(t *testing.T) {
			a := newRoot(t, "a", 24*time.Hour)
			p := newPlace(t)
			p.grant(t, k.resource, "crl")
			cfg := issuer.CRLConfig{Secret: &issuer.ObjectKey{Name: "crl"}}
			if k.kind == "ConfigMap" {
				cfg = issuer.CRLConfig{ConfigMap: &issuer.ObjectKey{Name: "crl", Key: "lists"}}
			}
			key := map[string]string{"Secret": "ca-crl.pem", "ConfigMap": "lists"}[k.kind]
			crls, err := issuer.NewCRLs(cfg, p.config, p.namespace, func() []*x509.Certificate { return []*x509.Certificate{a.cert} }, quiet, prometheus.NewRegistry())
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- crls.Start(ctx) }()
			t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
			ready := func(want string) {
				t.Helper()
				require.Eventually(t, func() bool {
					text, err := crls.Ready(time.Now())
					return err == nil && strings.Contains(text, want)
				}, patience, 20*time.Millisecond, want)
			}
			ready("doesn't exist")
			p.put(t, k.kind, "crl", map[string]string{key: a.crl(t, 7)})
			ready("1, of every CA in force")
			first := crls.Current().PEM()
			p.put(t, k.kind, "crl", map[string]string{key: newRoot(t, "foreign", time.Hour).crl(t, 7)})
			ready(`there is no CRL of "CN=a" (serial 01)`)
			assert.Equal(t, first, crls.Current().PEM())
			_, replaced := crls.Watch()
			p.put(t, k.kind, "crl", map[string]string{key: a.crl(t, 8)})
			select {
			case <-replaced:
			case <-time.After(patience):
				t.Fatal("the new CRL doesn't come into force")
			}
			assert.NotEqual(t, first, crls.Current().PEM())
			p.put(t, k.kind, "crl", nil)
			ready("doesn't exist")
			assert.NotEmpty(t, crls.Current().PEM())
		})
	}
}

// TestObjectSourcesOutliveTheAPIServer is the last one, because it takes the API server away. What changes
// while it is away is told when it is back.
func TestObjectSourcesOutliveTheAPIServer(t *testing.T) {
	a, b := newRoot(t, "a", 24*time.Hour), newRoot(t, "b", 24*time.Hour)
	p := newPlace(t)
	listeners := make(map[string]*listener)
	for _, k := range kinds {
		p.grant(t, k.resource, "roots")
		p.put(t, k.kind, "roots", map[string]string{k.key: a.pem})
		source, err := k.source(p.config, p.namespace, "roots", k.key, quiet)
		require.NoError(t, err)
		listeners[k.kind] = listen(t, source)
		listeners[k.kind].anchors(t, a)
	}
	require.NoError(t, plane.APIServer().Stop())
	for _, k := range kinds {
		listeners[k.kind].fails(t, "connect: connection refused")
	}
	// A source that starts now is told too.
	late, err := issuer.NewSecretSource(p.config, p.namespace, "roots", "ca.crt", quiet)
	require.NoError(t, err)
	listeners["late"] = listen(t, late)
	listeners["late"].fails(t, "connect: connection refused")

	require.NoError(t, plane.APIServer().Start(t.Context()))
	for _, l := range listeners {
		l.anchors(t, a)
	}
	for _, k := range kinds {
		p.put(t, k.kind, "roots", map[string]string{k.key: b.pem})
	}
	for _, l := range listeners {
		l.anchors(t, b)
	}
}
