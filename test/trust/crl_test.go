package trust

import (
	"crypto"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/patiently"
)

// crl is a list of an issuer's CA that revokes nothing, as PEM.
func (m *mesh) crl(t *testing.T, name string, ends time.Time) string {
	t.Helper()
	var secret corev1.Secret
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: m.ns, Name: name}, &secret))
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	require.NoError(t, err)
	der, err := x509.CreateRevocationList(cryptorand.Reader, &x509.RevocationList{
		Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: ends,
	}, pair.Leaf, pair.PrivateKey.(crypto.Signer))
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// TestR57_CRLsReachTheNamespaces: the lists are there while there is one for every CA in force, and emptied when there
// isn't, because proxies want one of each or none.
func TestR57_CRLsReachTheNamespaces(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.pin(t, issuerA)
	a, b := m.crl(t, issuerA, time.Now().Add(time.Hour)), m.crl(t, issuerB, time.Now().Add(time.Hour))
	m.set(t, "signet-crls", map[string]string{"ca-crl.pem": a})
	w := m.workload(t, "web")
	r := m.start(t, m.short(map[string]any{"crl.configMap.name": "signet-crls"}))
	mounted := func(want ...string) bool {
		text, there := get(t, w.ns, "istio-ca-crl").Data["ca-crl.pem"]
		for _, list := range want {
			there = there && strings.Contains(text, list)
		}
		return there && len(text) == len(strings.Join(want, ""))
	}
	patiently.Holds(t, func() bool { return mounted(a) }, "the list")
	assert.Equal(t, "true", get(t, w.ns, "istio-ca-crl").Labels["istio.io/config"])

	m.pin(t, issuerA, issuerB)
	patiently.Holds(t, func() bool { return mounted() }, "no list, because that of the new CA is missing")
	says(t, r, "[i] CRLs: withdrawn")
	m.set(t, "signet-crls", map[string]string{"ca-crl.pem": a + b})
	patiently.Holds(t, func() bool { return mounted(a, b) }, "both lists")

	// What can't be used changes nothing as long as the last good lists are current.
	m.set(t, "signet-crls", map[string]string{"ca-crl.pem": a + "rubbish"})
	says(t, r, "PEM: text outside of blocks")
	assert.True(t, mounted(a, b))
}
