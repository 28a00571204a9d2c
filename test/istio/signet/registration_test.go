package signet

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"istio.io/istio/security/pkg/pki/ca"
	"istio.io/istio/security/pkg/pki/ra"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/replica"
)

const signerName = "signet.dev/mesh"

// istiodRights are those that istiod needs as a registration authority.
const istiodRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: istiod-registration}
rules:
  - apiGroups: [certificates.k8s.io]
    resources: [certificatesigningrequests]
    verbs: [create, get, list, watch, delete]
  - apiGroups: [certificates.k8s.io]
    resources: [certificatesigningrequests/approval]
    verbs: [update]
  - apiGroups: [certificates.k8s.io]
    resources: [signers]
    resourceNames: ["signet.dev/*"]
    verbs: [approve]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: istiod-registration}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: istiod-registration}
subjects: [{kind: ServiceAccount, name: istiod, namespace: istio-system}]
`

// registration is a Signet that signs for an istiod, with a second issuer that a rule gives a name.
type registration struct {
	*replica.Replica
	roots  *x509.CertPool
	istiod *kubernetes.Clientset // acts as istiod's service account
}

func startRegistration(t *testing.T) *registration {
	t.Helper()
	ctx := t.Context()
	ns := plane.NewNamespace(t, "registration")
	first, err := plane.BootstrapCA(ctx, ns, "istio-ca", controlplane.CAOptions{Intermediate: true})
	require.NoError(t, err)
	second, err := plane.BootstrapCA(ctx, ns, "second", controlplane.CAOptions{})
	require.NoError(t, err)
	require.NoError(t, plane.ServiceAccount(ctx, namespace, "istiod"))
	require.NoError(t, plane.Apply(ctx, []byte(istiodRights)))
	mayRegister(t, "istiod")
	r := &registration{roots: x509.NewCertPool()}
	require.True(t, r.roots.AppendCertsFromPEM(append(first, second...)))
	r.Replica, err = replica.Start(ctx, plane, replica.Config{
		Namespace: ns, RootPEM: append(append([]byte{}, first...), second...),
		Settings: map[string]any{
			"ca.registration.enabled": true,
			"ca.rules":                []any{map[string]any{"certSigner": "second", "issuer": map[string]any{"name": "second"}}},
		},
	})
	require.NoError(t, err)
	t.Cleanup(r.Stop)
	config, err := plane.As(ctx, namespace, "istiod")
	require.NoError(t, err)
	r.istiod, err = kubernetes.NewForConfig(config)
	require.NoError(t, err)
	return r
}

// mayRegister waits until the API server knows that an account has istiodRights.
func mayRegister(t *testing.T, account string) {
	t.Helper()
	user := "system:serviceaccount:" + namespace + ":" + account
	require.NoError(t, plane.AwaitAllowed(t.Context(),
		controlplane.Access{User: user, Verb: "create", Group: "certificates.k8s.io", Resource: "certificatesigningrequests"},
		controlplane.Access{User: user, Verb: "approve", Group: "certificates.k8s.io", Resource: "signers", Name: "signet.dev/*"},
	))
}

// TestRegistration: Istio's own registration authority gets from Signet what it takes for good; a request that is not
// istiod's, or asks for what is not granted, fails with the reason; one that nobody has approved is left alone.
func TestRegistration(t *testing.T) {
	r := startRegistration(t)
	t.Run("istiod", r.signsForIstiod)
	t.Run("refuses", r.refuses)
}

func (r *registration) signsForIstiod(t *testing.T) {
	authority, err := ra.NewIstioRA(&ra.IstioRAOptions{
		ExternalCAType: ra.ExtCAK8s, DefaultCertTTL: time.Hour, MaxCertTTL: 24 * time.Hour, CaSigner: signerName, CertSignerDomain: "signet.dev",
		K8sClient: r.istiod, TrustDomain: "cluster.local",
	})
	require.NoError(t, err)
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/shop/sa/cart")

	for name, row := range map[string]struct {
		csr        func() (string, error)
		certSigner string
		issuer     string
	}{
		"a sidecar with RSA": {sidecarCSR(id, meshclient.RSA2048), "", " istio-ca"},
		"a sidecar":          {sidecarCSR(id, meshclient.P256), "", " istio-ca"},
		"ztunnel":            {func() (string, error) { _, csr, err := meshclient.ZtunnelCSR(id); return csr, err }, "", " istio-ca"},
		"by a named signer":  {sidecarCSR(id, meshclient.P256), "second", " second"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			csr, err := row.csr()
			require.NoError(t, err)
			answer, err := authority.SignWithCertChain([]byte(csr), ca.CertOpts{SubjectIDs: []string{id.String()}, TTL: 2 * time.Hour, CertSigner: row.certSigner})
			require.NoError(t, err)
			certs := certificates(t, strings.Join(answer, ""))
			leaf, intermediates := certs[0], x509.NewCertPool()
			for _, c := range certs[1:] {
				intermediates.AddCert(c)
			}
			_, err = leaf.Verify(x509.VerifyOptions{Roots: r.roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			require.NoError(t, err)
			require.Len(t, leaf.URIs, 1)
			assert.Equal(t, id.String(), leaf.URIs[0].String())
			assert.Contains(t, leaf.Issuer.CommonName, row.issuer)
			assert.InDelta(t, 2*time.Hour, leaf.NotAfter.Sub(leaf.NotBefore), float64(time.Minute))
			last := certs[len(certs)-1]
			assert.Equal(t, last.RawIssuer, last.RawSubject, "istiod looks for the root at the end")
			line, err := r.Issued(leaf.Raw)
			require.NoError(t, err)
			assert.Equal(t, "spiffe://cluster.local/ns/"+namespace+"/sa/istiod", line["caller"])
			assert.Equal(t, id.String(), line["for"])
		})
	}
}

func sidecarCSR(id spiffeid.ID, kind meshclient.KeyType) func() (string, error) {
	return func() (string, error) { _, csr, err := meshclient.SidecarCSR(id, kind); return csr, err }
}

func certificates(t *testing.T, text string) []*x509.Certificate {
	t.Helper()
	var all []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			require.NotEmpty(t, all)
			return all
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		all = append(all, cert)
	}
}

func (r *registration) refuses(t *testing.T) {
	config, err := plane.As(t.Context(), namespace, "default")
	require.NoError(t, err)
	require.NoError(t, plane.Apply(t.Context(), []byte(strings.NewReplacer("istiod-registration", "others-registration", "name: istiod,", "name: default,").Replace(istiodRights))))
	mayRegister(t, "default")
	other, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/shop/sa/cart")
	good := func() string { _, csr, err := meshclient.ZtunnelCSR(id); require.NoError(t, err); return csr }()
	_, foreign, err := meshclient.ZtunnelCSR(spiffeid.RequireFromString("spiffe://other.mesh/ns/shop/sa/cart"))
	require.NoError(t, err)
	_, noAccount, err := meshclient.ZtunnelCSR(spiffeid.RequireFromString("spiffe://cluster.local/cart"))
	require.NoError(t, err)

	for name, row := range map[string]struct {
		client  *kubernetes.Clientset
		signer  string
		csr     string
		seconds int32
		usages  []certificatesv1.KeyUsage
		want    string
	}{
		"by somebody else":        {other, signerName, good, 3600, nil, "the requester is not trusted to ask for others"},
		"of another trust domain": {r.istiod, signerName, foreign, 3600, nil, "the identity asked for is not the caller's"},
		"for no service account":  {r.istiod, signerName, noAccount, 3600, nil, "the identity asked for is not the caller's"},
		"by a signer of no rule":  {r.istiod, "signet.dev/third", good, 3600, nil, "no such signer is offered"},
		"for a CA":                {r.istiod, signerName, good, 3600, []certificatesv1.KeyUsage{certificatesv1.UsageCertSign}, `usage "cert sign" is not granted`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			request := submit(t, row.client, row.signer, row.csr, row.seconds, row.usages, true)
			failed := await(t, row.client, request, func(r *certificatesv1.CertificateSigningRequest) bool { return failure(r) != "" })
			assert.Contains(t, failure(failed), row.want)
			assert.Empty(t, failed.Status.Certificate)
			if row.usages != nil {
				log, err := r.Log()
				require.NoError(t, err)
				assert.Contains(t, log, `"for":"`+id.String()+`","reason":"csr_extensions"`)
			}
		})
	}
	t.Run("not approved", func(t *testing.T) {
		t.Parallel()
		waiting := submit(t, r.istiod, signerName, good, 3600, nil, false)
		answered := submit(t, r.istiod, signerName, good, 3600, nil, true)
		await(t, r.istiod, answered, func(r *certificatesv1.CertificateSigningRequest) bool { return len(r.Status.Certificate) > 0 })
		left, err := r.istiod.CertificatesV1().CertificateSigningRequests().Get(t.Context(), waiting.Name, metav1.GetOptions{})
		require.NoError(t, err)
		assert.Empty(t, left.Status.Certificate)
		assert.Empty(t, left.Status.Conditions)
	})
}

// submit makes a request, and approves it.
func submit(t *testing.T, c *kubernetes.Clientset, signer, csr string, seconds int32, usages []certificatesv1.KeyUsage, approve bool) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	if usages == nil {
		usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth}
	}
	requests := c.CertificatesV1().CertificateSigningRequests()
	request, err := requests.Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-workload-"},
		Spec:       certificatesv1.CertificateSigningRequestSpec{Request: []byte(csr), SignerName: signer, Usages: usages, ExpirationSeconds: &seconds},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	if !approve {
		return request
	}
	request.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}}
	request, err = requests.UpdateApproval(t.Context(), request.Name, request, metav1.UpdateOptions{})
	require.NoError(t, err)
	return request
}

// await waits until a request is as done says.
func await(t *testing.T, c *kubernetes.Clientset, request *certificatesv1.CertificateSigningRequest, done func(*certificatesv1.CertificateSigningRequest) bool) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		is, err := c.CertificatesV1().CertificateSigningRequests().Get(ctx, request.Name, metav1.GetOptions{})
		require.NoError(t, err)
		if done(is) {
			return is
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// failure is why a request has failed, "" where it hasn't.
func failure(request *certificatesv1.CertificateSigningRequest) string {
	for _, c := range request.Status.Conditions {
		if c.Type == certificatesv1.CertificateFailed {
			return c.Message
		}
	}
	return ""
}
