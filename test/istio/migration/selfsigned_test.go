package migration

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"istio.io/istio/security/pkg/pki/ca"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// set writes one key of a ConfigMap.
func set(t *testing.T, ns, name, key string, value []byte) {
	t.Helper()
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Data: map[string]string{key: string(value)}}
	err := plane.Client().Create(t.Context(), object)
	if client.IgnoreAlreadyExists(err) == nil && err != nil {
		err = plane.Client().Update(t.Context(), object)
	}
	require.NoError(t, err)
}

// published are the roots that a namespace carries, PEM.
func published(ctx context.Context, ns string) ([]byte, error) {
	object := &corev1.ConfigMap{}
	err := plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: "istio-ca-root-cert"}, object)
	return []byte(object.Data["root-cert.pem"]), err
}

// TestFromSelfSigned: istiod's authority has made its own root, Signet's issuer has another. Both are known to everybody
// before the first workload is moved, and the old one leaves when the last one is.
func TestFromSelfSigned(t *testing.T) {
	line := begin(t)
	ctx := t.Context()
	ns := plane.NewNamespace(t, "selfsigned")
	newRoot, err := plane.BootstrapCA(ctx, ns, "istio-ca", controlplane.CAOptions{Intermediate: true})
	require.NoError(t, err)
	signet, err := signetSigner(ctx, ns)
	require.NoError(t, err)
	as, err := actAsIstiod(ctx, ns)
	require.NoError(t, err)
	selfSigned, err := selfSignedCA(ctx, as, ns)
	require.NoError(t, err)
	oldRoot := selfSigned.GetCAKeyCertBundle().GetRootCertPem()
	old, err := newSigner("old CA", oldRoot)
	require.NoError(t, err)
	net := newNetwork(t)
	first, err := startCA(selfSigned, as, host(istiodAddress))
	require.NoError(t, err)
	t.Cleanup(first.stop)
	net.point(istiodAddress, first.address)

	// The mesh as it is: one root, which istiod publishes.
	labels := map[string]string{"mesh": ns}
	shop := startWorkload(t, pods{name: "shop", net: net, ca: istiodAddress, roots: oldRoot, labels: labels})
	cart := startWorkload(t, pods{name: "cart", net: net, ca: istiodAddress, roots: oldRoot, labels: labels})
	both := slices.Concat(bytes.TrimSpace(oldRoot), []byte("\n"), newRoot)
	publish := func(roots []byte) {
		set(t, shop.ns, "istio-ca-root-cert", "root-cert.pem", roots)
		set(t, cart.ns, "istio-ca-root-cert", "root-cert.pem", roots)
	}
	publish(oldRoot)
	shop.mount(t)
	cart.mount(t)
	line.say("shop has one of %s", holds(shop.awaitSigner(t, old), old))
	talk := talk(t, shop, cart, old, signet)
	talk.awaitPairs(t, old, old)
	shop.awaitRoots(t, oldRoot)

	// istiod's own authority becomes plugged-in cacerts, with both roots.
	secret := &corev1.Secret{}
	require.NoError(t, plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: ca.CASecret}, secret))
	mounted := cacerts{cert: secret.Data[ca.CACertFile], key: secret.Data[ca.CAPrivateKeyFile], chain: secret.Data[ca.CACertFile], roots: both}
	pluggedIn, err := pluggedInCA(t.TempDir(), mounted)
	require.NoError(t, err)
	second, err := startCA(pluggedIn, as, host(istiodAddress))
	require.NoError(t, err)
	t.Cleanup(second.stop)
	net.point(istiodAddress, second.address)
	first.stop()
	publish(both)
	for _, w := range []*workload{shop, cart} {
		w.awaitRoots(t, both)
		patiently.Until(t, "both roots are mounted", func(context.Context) error {
			if !bytes.Equal(both, w.mounted()) {
				return errors.New("not yet")
			}
			return nil
		})
	}
	line.say("istiod was restarted with cacerts; shop and cart know both roots")

	// Signet, which leaves publishing to istiod while istiod does it.
	set(t, ns, "signet-roots", "roots.pem", both)
	config := func(name string, distribution map[string]any) replica.Config {
		return replica.Config{Namespace: ns, Settings: map[string]any{
			"replica": name, "roots.configMap": map[string]any{"name": "signet-roots", "key": "roots.pem"}, "distribution": distribution,
		}}
	}
	quiet := signetFor(t, config("signet-0", map[string]any{"disabled": true}))
	net.point(signetAddress, quiet.CSR())
	shop.move(t, signetAddress)
	line.say("shop moved, and has one of %s", holds(shop.awaitSigner(t, signet), signet))
	shop.awaitRoots(t, both)
	talk.awaitPairs(t, old, signet)
	awaitRenewals(t, shop, cart)
	cart.move(t, signetAddress)
	line.say("cart moved, and has one of %s", holds(cart.awaitSigner(t, signet), signet))
	talk.awaitPairs(t, signet, signet)

	// istiod's authority is turned off, and Signet publishes.
	second.stop()
	net.point(istiodAddress, "")
	r := signetFor(t, config("signet-1", map[string]any{"disabled": false, "clusterTrustBundle": "off", "namespaceSelector": "mesh=" + ns}))
	net.point(signetAddress, r.CSR())
	quiet.Stop()
	patiently.Until(t, "Signet publishes", func(ctx context.Context) error {
		object := &corev1.ConfigMap{}
		if err := plane.Client().Get(ctx, client.ObjectKey{Namespace: cart.ns, Name: "istio-ca-root-cert"}, object); err != nil {
			return err
		}
		if object.Labels["istio.io/config"] != "true" {
			return errors.New("the ConfigMap is as istiod wrote it")
		}
		return nil
	})
	line.say("istiod's CA is off, Signet publishes the roots")

	// The old root leaves: in its own time, or at once where the operator knows that nobody holds a certificate below it.
	set(t, ns, "signet-roots", "roots.pem", newRoot)
	patiently.Until(t, "the old root retires", func(ctx context.Context) error {
		retiring, err := r.Metric(ctx, "signet_rollover_anchors", map[string]string{"phase": string(issuer.Retiring)})
		if err == nil && retiring != 1 {
			err = errors.New("not yet")
		}
		return err
	})
	roots, err := published(ctx, cart.ns)
	require.NoError(t, err)
	assert.ElementsMatch(t, anchors(both), anchors(roots), "a root that retires is still published")
	line.say("the old root retires")
	for _, w := range []*workload{shop, cart} {
		w.awaitSigner(t, signet)
	}
	patiently.Until(t, "vouch that nobody needs the old root", func(ctx context.Context) error {
		state := &corev1.ConfigMap{}
		if err := plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: rotation.TrustConfigMap}, state); err != nil {
			return err
		}
		metav1.SetMetaDataAnnotation(&state.ObjectMeta, rotation.RetireNow, issuer.AnchorID(old.cert))
		return plane.Client().Update(ctx, state)
	})
	for _, w := range []*workload{shop, cart} {
		w.awaitRoots(t, newRoot)
		patiently.Until(t, "only the new root is mounted", func(context.Context) error {
			if got := anchors(w.mounted()); !assert.ElementsMatch(silent{}, anchors(newRoot), got) {
				return errors.New("not yet")
			}
			return nil
		})
	}
	line.say("the old root has left")
	awaitRenewals(t, shop)
	talk.end(t, line)
	noneFailed(t, line, shop, cart)

	// From now on nobody is let in who comes with a certificate of the old authority.
	late := lateComer(t, pluggedIn, shop)
	held, err := cart.certificate()
	require.NoError(t, err)
	var unknown x509.UnknownAuthorityError
	assert.ErrorAs(t, handshake(ctx, shop, late, cart, held), &unknown)
}

// lateComer is what a workload would hold that got its certificate from the old authority.
func lateComer(t *testing.T, authority *ca.IstioCA, w *workload) *meshclient.Certificate {
	t.Helper()
	certPEM, keyPEM, err := authority.GenKeyCert([]string{w.id.String()}, hour, false)
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	require.NoError(t, err)
	held, err := w.certificate()
	require.NoError(t, err)
	key, ok := pair.PrivateKey.(crypto.Signer)
	require.True(t, ok)
	return &meshclient.Certificate{Leaf: pair.Leaf, Chain: []*x509.Certificate{pair.Leaf}, Key: key, RootsPEM: held.RootsPEM}
}
