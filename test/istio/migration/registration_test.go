package migration

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"istio.io/istio/security/pkg/pki/ca"
	"istio.io/istio/security/pkg/pki/ra"

	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// TestIstiodBecomesRegistrationAuthority: istiod was the authority, and its address can't lead to Signet, because it is where
// configuration comes from too. Its self-signed root is handed to cert-manager, so that nobody's roots change; then istiod is
// restarted as registration authority, and has Signet sign. The agents stay as they are: they are never told of Signet.
func TestIstiodBecomesRegistrationAuthority(t *testing.T) {
	line := begin(t)
	ctx := t.Context()
	ns := plane.NewNamespace(t, "registration")
	as, err := actAsIstiod(ctx, ns)
	require.NoError(t, err)
	selfSigned, err := selfSignedCA(ctx, as, ns)
	require.NoError(t, err)
	root := selfSigned.GetCAKeyCertBundle().GetRootCertPem()
	old, err := newSigner("old CA", root)
	require.NoError(t, err)
	net := newNetwork(t)
	before, err := startCA(selfSigned, as, host(istiodAddress))
	require.NoError(t, err)
	t.Cleanup(before.stop)
	net.point(istiodAddress, before.address)

	// A CertificateSigningRequest can't ask for less than ten minutes, so it is renewed after a small part of that.
	long := pods{net: net, ca: istiodAddress, roots: root, ttl: 10 * time.Minute}
	long.name = "shop"
	shop := startWorkload(t, long)
	long.name = "cart"
	cart := startWorkload(t, long)
	started := []int{shop.pid(), cart.pid()}
	line.say("shop (process %d) has one of %s", shop.pid(), holds(shop.awaitSigner(t, old), old))

	// The root as an issuer of cert-manager, and an intermediate below it that signs.
	secret := &corev1.Secret{}
	require.NoError(t, plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: ca.CASecret}, secret))
	require.NoError(t, plane.Client().Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "istio-root"}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: secret.Data[ca.CACertFile], corev1.TLSPrivateKeyKey: secret.Data[ca.CAPrivateKeyFile]},
	}))
	require.NoError(t, createIssuer(ctx, ns, "istio-root"))
	_, err = intermediate(ctx, ns, "istio-ca", "istio-root")
	require.NoError(t, err)
	signet, err := signetSigner(ctx, ns)
	require.NoError(t, err)
	talk := talk(t, shop, cart, old, signet)
	talk.awaitPairs(t, old, old)
	r := signetFor(t, replica.Config{Namespace: ns, RootPEM: root, Settings: map[string]any{
		"ca.registration": map[string]any{"enabled": true, "accounts": []any{ns + "/istiod"}},
		"istiod":          map[string]any{"enabled": true, "namespace": ns, "dnsNames": []any{host(istiodAddress)}},
	}})

	// istiod's own certificate comes from Signet before istiod is restarted.
	var serving tls.Certificate
	patiently.Until(t, "istiod's certificate", func(ctx context.Context) error {
		mounted := &corev1.Secret{}
		err := plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: "istiod-tls"}, mounted)
		if err == nil {
			serving, err = tls.X509KeyPair(mounted.Data[corev1.TLSCertKey], mounted.Data[corev1.TLSPrivateKeyKey])
		}
		return err
	})
	options := ra.IstioRAOptions{ // EXTERNAL_CA, K8S_SIGNER, CERT_SIGNER_DOMAIN
		ExternalCAType: ra.ExtCAK8s, CaSigner: "signet.dev/mesh", CertSignerDomain: "signet.dev",
		DefaultCertTTL: 24 * time.Hour, MaxCertTTL: 24 * time.Hour, VerifyAppendCA: true, K8sClient: as, TrustDomain: "cluster.local",
	}
	authority, err := ra.NewIstioRA(&options)
	require.NoError(t, err)
	after, err := startIstiod(authority, serving, as)
	require.NoError(t, err)
	t.Cleanup(after.stop)
	net.point(istiodAddress, after.address)
	before.stop()
	line.say("istiod was restarted as registration authority")
	for _, w := range []*workload{shop, cart} {
		held := w.awaitSigner(t, signet)
		line.say("%s has one of %s", w.name, holds(held, signet))
		assert.Equal(t, anchors(root), anchors(held.RootsPEM), "the root has changed")
	}
	awaitRenewals(t, shop, cart)
	talk.awaitPairs(t, signet, signet)
	talk.end(t, line)
	ended := []int{shop.pid(), cart.pid()}
	assert.Equal(t, started, ended, "other processes")
	noneFailed(t, line, shop, cart)
	patiently.Until(t, "two for each workload are counted", func(ctx context.Context) error {
		issued, err := r.Metric(ctx, "signet_requests_total", map[string]string{"outcome": "issued"})
		if err == nil && issued < 4 {
			err = fmt.Errorf("%v are", issued)
		}
		return err
	})

	// An istiod that isn't told CERT_SIGNER_DOMAIN answers with the root of Kubernetes itself as the mesh's.
	options.CertSignerDomain, options.CaCertFile = "", filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(options.CaCertFile, plane.Admin().CAData, 0o600))
	authority, err = ra.NewIstioRA(&options)
	require.NoError(t, err)
	unfit, err := startIstiod(authority, serving, as)
	require.NoError(t, err)
	t.Cleanup(unfit.stop)
	elsewhere := newNetwork(t)
	elsewhere.point(istiodAddress, unfit.address)
	long.name, long.net = "lost", elsewhere
	lost := startWorkload(t, long)
	patiently.Until(t, "the workload trusts the mesh's root all the same", func(context.Context) error {
		if _, err := lost.certificate(); err == nil || !strings.Contains(err.Error(), "leaf does not belong to the roots") {
			return fmt.Errorf("reading its certificate says %v", err)
		}
		return nil
	})
}
