package e2e

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// vmStack lets callers renew with their certificates, for a day.
var vmStack = sync.OnceValues(func() (*stack, error) {
	ctx := context.Background()
	ns := "vm-" + utilrand.String(5)
	root, err := bootstrap(ctx, ns, controlplane.CAOptions{})
	if err != nil {
		return nil, err
	}
	return startShared(ctx, &stack{ns: ns, root: root, trustDomain: "cluster.local", config: replica.Config{
		RootPEM: root,
		Settings: base(map[string]any{
			"ca.certificates.enabled": true,
			"ca.lifetime.min":         "1s",
			"ca.token.cacheAccepted":  "1ms",
		}),
	}})
})

// held is a certificate that a caller has, and what it asked for it with.
type held struct {
	*caller
	leaf  *x509.Certificate
	shown *tls.Certificate
}

// holds has the caller get a certificate by its token.
func (c *caller) holds(t *testing.T, lifetime time.Duration) held {
	t.Helper()
	key, csr, err := meshclient.ZtunnelCSR(c.id)
	require.NoError(t, err)
	ask := c.ask(t)
	ask.CSR, ask.ValiditySeconds = csr, int64(lifetime/time.Second)
	leaf := issued(t, c.s.dial(t), ask)
	return held{c, leaf, &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}
}

// dial connects with the certificate.
func (h held) dial(t *testing.T) *meshclient.Client {
	t.Helper()
	return h.s.dial(t, showing(h.shown))
}

// isKnown waits until the certificate counts: Signet learns of a service account that was just made a moment later.
func (h held) isKnown(t *testing.T, c *meshclient.Client) {
	t.Helper()
	patiently.Holds(t, func() bool { return code(t, c, h.withoutToken(t)) == codes.OK }, "the holder is known")
}

func showing(cert *tls.Certificate) meshclient.Options {
	options := meshclient.SidecarTLS()
	options.Certificate = cert
	return options
}

// withoutToken asks for the caller's identity with nothing but what the connection shows.
func (h held) withoutToken(t *testing.T) meshclient.Ask {
	t.Helper()
	ask := h.ask(t)
	ask.Token = ""
	return ask
}

// TestR7_R19_R20_RenewWithACertificate: a certificate that Signet issued is as good as a token, beside a dead one too, for
// the identity that it names and no other.
func TestR7_R19_R20_RenewWithACertificate(t *testing.T) {
	s := must(t, vmStack)
	vm := s.caller(t).holds(t, time.Hour)
	c := vm.dial(t)

	vm.isKnown(t, c)
	renewed := issued(t, c, vm.withoutToken(t))
	assert.Equal(t, vm.id.String(), renewed.URIs[0].String())
	ask := vm.ask(t)
	ask.Token = vm.expiring(t, time.Now().Add(-time.Hour))
	issued(t, c, ask)

	other := s.caller(t)
	ask = other.ask(t)
	ask.Token = ""
	assert.Equal(t, "the identity asked for is not the caller's", refused(t, c, ask, codes.PermissionDenied))
	refused(t, c, other.ask(t), codes.Unauthenticated) // whose token is good: two identities

	refused(t, s.dial(t), vm.withoutToken(t), codes.Unauthenticated)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		options := showing(vm.shown)
		options.MinVersion, options.MaxVersion = version, version
		issued(t, s.dial(t, options), vm.withoutToken(t))
	}
}

// TestR8_BadCertificatesBreakNoToken: whatever certificate a client shows, its handshake succeeds and its good token
// counts; without the token it is refused.
func TestR8_BadCertificatesBreakNoToken(t *testing.T) {
	t.Parallel()
	s := must(t, vmStack)
	c := s.caller(t)
	good := c.holds(t, time.Hour)
	short := c.holds(t, 30*time.Second) // less, and a busy machine's answer would come past half of its life

	stranger, sameName := newAuthority("stranger", nil), newAuthority(good.leaf.Issuer.CommonName, nil)
	forged := func(a *authority) *tls.Certificate {
		template := &x509.Certificate{
			SerialNumber: serialNumber(), NotBefore: good.leaf.NotBefore, NotAfter: good.leaf.NotAfter, URIs: good.leaf.URIs,
			KeyUsage: good.leaf.KeyUsage, ExtKeyUsage: good.leaf.ExtKeyUsage,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, a.cert, good.shown.PrivateKey.(crypto.Signer).Public(), a.key)
		require.NoError(t, err)
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: good.shown.PrivateKey}
	}
	time.Sleep(time.Until(short.leaf.NotAfter.Add(time.Second))) // its own end
	for name, cert := range map[string]*tls.Certificate{
		"of an unknown root":                forged(stranger),
		"of a root of the same name":        forged(sameName),
		"expired":                           short.shown,
		"a root that is shown as one's own": {Certificate: [][]byte{stranger.cert.Raw}, PrivateKey: stranger.key},
	} {
		t.Run(name, func(t *testing.T) {
			client := s.dial(t, showing(cert))
			refused(t, client, good.withoutToken(t), codes.Unauthenticated)
			issued(t, client, good.ask(t))
		})
	}
}

// TestR9_AConnectionOutlivesNoCertificate: what a certificate is worth is decided for each request, not for each
// connection.
func TestR9_AConnectionOutlivesNoCertificate(t *testing.T) {
	t.Parallel()
	s := must(t, vmStack)
	vm := s.caller(t).holds(t, 40*time.Second)
	c := vm.dial(t)
	vm.isKnown(t, c)
	time.Sleep(time.Until(vm.leaf.NotAfter.Add(time.Second))) // its own end
	refused(t, c, vm.withoutToken(t), codes.Unauthenticated)

	// Who it was issued to is gone, and was made anew.
	vm = s.caller(t).holds(t, time.Hour)
	c = vm.dial(t)
	vm.isKnown(t, c)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: vm.ns, Name: vm.sa}}
	require.NoError(t, plane.Client().Delete(t.Context(), account))
	patiently.Holds(t, func() bool { return code(t, c, vm.withoutToken(t)) == codes.Unauthenticated }, "the certificate of an account that is gone is refused")
	require.NoError(t, plane.ServiceAccount(t.Context(), vm.ns, vm.sa))
	refused(t, c, vm.withoutToken(t), codes.Unauthenticated)
}

// TestR20_CertificatesOfPodsEndWithThem: a certificate that was issued to a pod proves nothing once the pod is gone.
func TestR20_CertificatesOfPodsEndWithThem(t *testing.T) {
	s := must(t, vmStack)
	caller := s.caller(t)
	pod, err := plane.Pod(t.Context(), caller.ns, "web-0", caller.sa, "node-1")
	require.NoError(t, err)
	caller.token, err = plane.Token(t.Context(), caller.ns, caller.sa, controlplane.TokenOptions{Pod: pod})
	require.NoError(t, err)
	h := caller.holds(t, time.Hour)
	c := h.dial(t)
	h.isKnown(t, c)
	require.NoError(t, plane.Client().Delete(t.Context(), pod))
	patiently.Holds(t, func() bool { return code(t, c, h.withoutToken(t)) == codes.Unauthenticated }, "the certificate of a pod that is gone is refused")
}

// TestR57_RevokedClientCertificates: a certificate that the CRL in force revokes proves nothing.
func TestR57_RevokedClientCertificates(t *testing.T) {
	t.Parallel()
	ns := "revoking-" + utilrand.String(5)
	root, err := bootstrap(t.Context(), ns, controlplane.CAOptions{})
	require.NoError(t, err)
	var secret corev1.Secret
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "istio-ca"}, &secret))
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	require.NoError(t, err)
	lists := filepath.Join(t.TempDir(), "crls.pem")
	writeCRL(t, lists, pair)
	s := (&stack{ns: ns, root: root, trustDomain: "cluster.local", config: replica.Config{
		Namespace: ns, RootPEM: root, Settings: base(map[string]any{"ca.certificates.enabled": true, "crl.file": lists}),
	}}).peer(t, nil, nil)

	vm := s.caller(t).holds(t, time.Hour)
	spare := vm.holds(t, time.Hour)
	c := vm.dial(t)
	vm.isKnown(t, c)
	writeCRL(t, lists, pair, vm.leaf.SerialNumber)
	patiently.Holds(t, func() bool { return code(t, c, vm.withoutToken(t)) == codes.Unauthenticated }, "the revoked certificate is refused")
	issued(t, spare.dial(t), spare.withoutToken(t))
	issued(t, c, vm.ask(t)) // its token is good
}

// writeCRL writes a list of what a CA has revoked.
func writeCRL(t *testing.T, path string, ca tls.Certificate, serials ...*big.Int) {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(day)}
	for _, serial := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Leaf, ca.PrivateKey.(crypto.Signer))
	require.NoError(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	require.NoError(t, os.WriteFile(path+".new", text, 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

// TestVM_RenewsByCertificate is the way of a virtual machine: pilot-agent gets its first certificate by a token, and goes
// on with its certificate when the token is dead.
func TestVM_RenewsByCertificate(t *testing.T) {
	t.Parallel()
	s := must(t, vmStack)
	caller := s.caller(t)
	agent, err := meshclient.StartAgent(t.Context(), meshclient.AgentConfig{
		Address: s.CSR(), Roots: s.root, Token: caller.token, ID: caller.id, TTL: 30 * time.Second, Reuse: true,
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, agent.Stop()) })
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	require.NoError(t, agent.WaitRotations(ctx, 0))
	require.NoError(t, agent.SetToken(caller.expiring(t, time.Now().Add(-time.Hour))))
	require.NoError(t, agent.WaitRotations(ctx, agent.Rotations()+2))
	accepted, err := s.Metric(ctx, "signet_authentications_total", map[string]string{"authenticator": "certificate", "result": "accepted"})
	require.NoError(t, err)
	assert.Positive(t, accepted)
}

// code is what a request is answered with.
func code(t *testing.T, c *meshclient.Client, ask meshclient.Ask) codes.Code {
	t.Helper()
	_, err := create(t, c, ask)
	return status.Code(err)
}
