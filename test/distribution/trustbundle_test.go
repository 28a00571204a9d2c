package distribution

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/test/patiently"
)

const bundleName = "istio.io:istiod-ca:root-cert"

func bindingKind() client.Object { return &admissionv1.ValidatingAdmissionPolicyBinding{} }

// newRoot is a CA certificate: the API server looks at what a ClusterTrustBundle holds.
func newRoot(t *testing.T, name string) issuer.Document {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	bundle, err := issuer.ParseBundle(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	require.NoError(t, err)
	return issuer.DistributionConfig{}.Roots(bundle)
}

// bundle is the ClusterTrustBundle as Istio reads it, or nil.
func bundle(t *testing.T) *certificatesv1beta1.ClusterTrustBundle {
	t.Helper()
	b := &certificatesv1beta1.ClusterTrustBundle{}
	err := plane.Client().Get(t.Context(), client.ObjectKey{Name: bundleName}, b)
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(t, err)
	return b
}

func removeBundle(t *testing.T) {
	t.Helper()
	err := plane.Client().Delete(t.Context(), &certificatesv1beta1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: bundleName}})
	require.NoError(t, client.IgnoreNotFound(err))
}

func awaitBundle(t *testing.T, d issuer.Document) {
	t.Helper()
	patiently.Holds(t, func() bool { b := bundle(t); return b != nil && b.Spec.TrustBundle == d.Data }, "the ClusterTrustBundle")
}

func TestR53_ClusterTrustBundle(t *testing.T) {
	removeBundle(t)
	first, second := newRoot(t, "first"), newRoot(t, "second")
	r := start(t, options{cfg: issuer.DistributionConfig{ClusterTrustBundle: "auto"}}, first)
	ns := r.namespace(t)
	r.awaitWhole(t, first)
	awaitCarried(t, first, ns)
	awaitBundle(t, first)
	assert.Equal(t, "istio.io/istiod-ca", bundle(t).Spec.SignerName)
	assert.Equal(t, issuer.BundleProgress{State: issuer.BundleCarrying, Hash: first.Hash()}, r.Progress().ClusterTrustBundle)

	r.documents.set(second)
	r.awaitWhole(t, second)
	awaitBundle(t, second)
	changed := bundle(t)
	changed.Spec.TrustBundle = first.Data
	require.NoError(t, plane.Client().Update(t.Context(), changed))
	awaitBundle(t, second)
	removeBundle(t)
	awaitBundle(t, second)
	r.stop()

	// Another replica finds it as it must be.
	r = start(t, options{like: r, cfg: issuer.DistributionConfig{ClusterTrustBundle: "on"}})
	r.awaitWhole(t, second)
	assert.Zero(t, r.writes(t, ""))

	// What the API server doesn't take is shown, and doesn't keep the namespaces from theirs.
	bad := issuer.Document{ConfigMap: roots, Key: rootKey, Data: "no PEM\n"}
	r.documents.set(bad)
	awaitCarried(t, bad, ns)
	p := r.await(t, func(p issuer.Progress) bool { return p.ClusterTrustBundle.State == issuer.BundleFailing })
	assert.NotEmpty(t, p.ClusterTrustBundle.Reason)
	assert.False(t, p.Carried(bad))
	assert.Equal(t, second.Data, bundle(t).Spec.TrustBundle)

	// Nothing is known any more: nothing is written.
	r.documents.set(second)
	r.awaitWhole(t, second)
	r.documents.set()
	r.await(t, func(p issuer.Progress) bool { return p.ClusterTrustBundle.State == issuer.BundleUnknown })
	removeBundle(t)
	crl := revocations("crl\n")
	r.documents.set(crl)
	r.awaitWhole(t, crl)
	assert.Nil(t, bundle(t))
}

func TestR53_Off(t *testing.T) {
	removeBundle(t)
	doc := newRoot(t, "off")
	r := start(t, options{cfg: issuer.DistributionConfig{ClusterTrustBundle: "off"}}, doc)
	r.settle(t, doc)
	r.awaitWhole(t, doc)
	assert.Nil(t, bundle(t))
}

// hide makes versions of certificates.k8s.io look as if they had no ClusterTrustBundles.
func hide(versions ...string) func(*rest.Config) {
	return func(config *rest.Config) {
		config.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(request *http.Request) (*http.Response, error) {
				response, err := next.RoundTrip(request)
				for _, version := range versions {
					if err == nil && request.URL.Path == "/apis/certificates.k8s.io/"+version {
						response.Body.Close()
						response.Header.Set("Content-Type", "application/json")
						response.Body = io.NopCloser(strings.NewReader(`{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"certificates.k8s.io/` + version + `","resources":[]}`))
						response.ContentLength = -1
					}
				}
				return response, err
			})
		})
	}
}

func TestR53_NotServed(t *testing.T) {
	removeBundle(t)
	doc := newRoot(t, "not served")
	for _, mode := range []string{"auto", "on"} {
		r := start(t, options{cfg: issuer.DistributionConfig{ClusterTrustBundle: mode}, wrap: hide("v1", "v1beta1")}, doc)
		r.settle(t, doc)
		want := issuer.BundleNotServed
		if mode == "on" {
			want = issuer.BundleFailing
		}
		p := r.await(t, func(p issuer.Progress) bool {
			return p.ClusterTrustBundle.State == want && p.Documents[0].Carrying == 1
		})
		assert.Contains(t, p.ClusterTrustBundle.Reason, "has no ClusterTrustBundles")
		assert.Equal(t, mode == "auto", p.Carried(doc))
		assert.Nil(t, bundle(t))
		r.stop()
	}
}

func TestR53_BetaOnly(t *testing.T) {
	removeBundle(t)
	doc := newRoot(t, "beta")
	r := start(t, options{cfg: issuer.DistributionConfig{ClusterTrustBundle: "on"}, wrap: hide("v1")}, doc)
	r.settle(t, doc)
	r.awaitWhole(t, doc)
	awaitBundle(t, doc)
	owners := bundle(t).ManagedFields
	require.NotEmpty(t, owners)
	assert.Equal(t, "certificates.k8s.io/v1beta1", owners[0].APIVersion)
}

// Without the rights that it takes, the namespaces get theirs, and it is said what is missing.
func TestR53_Forbidden(t *testing.T) {
	removeBundle(t)
	require.NoError(t, plane.ServiceAccount(t.Context(), home, "unbundled"))
	require.NoError(t, plane.Apply(t.Context(), []byte(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: unbundled}
rules:
  - {apiGroups: [""], resources: [namespaces], verbs: [list, watch]}
  - {apiGroups: [""], resources: [configmaps], resourceNames: [istio-ca-root-cert], verbs: [list, watch, create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: unbundled}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: unbundled}
subjects: [{kind: ServiceAccount, name: unbundled, namespace: istio-system}]
`)))
	doc := newRoot(t, "forbidden")
	r := start(t, options{account: "unbundled", cfg: issuer.DistributionConfig{ClusterTrustBundle: "auto"}}, doc)
	r.settle(t, doc)
	p := r.await(t, func(p issuer.Progress) bool {
		return p.Known && p.Documents[0].Carrying == p.Documents[0].Selected && strings.Contains(p.ClusterTrustBundle.Reason, "forbidden")
	})
	assert.Contains(t, p.Waits(doc), "the ClusterTrustBundle to carry it: ")
	assert.Nil(t, bundle(t))
}
