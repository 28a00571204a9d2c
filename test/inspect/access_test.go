package inspect

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

// bind gives readers' rights to one namespace, to a ServiceAccount first.
func bind(t *testing.T, ns string, to ...rbacv1.Subject) {
	t.Helper()
	require.NoError(t, plane.Client().Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "signet-reader"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "signet-reader"}, Subjects: to,
	}))
	require.NoError(t, plane.AwaitAllowed(t.Context(), controlplane.Access{
		User: "system:serviceaccount:" + to[0].Namespace + ":" + to[0].Name, Verb: "list", Group: "signet.dev", Resource: "services", Namespace: ns,
	}))
}

// authority is the CA of a mesh in which cert-manager signs.
func authority(t *testing.T, m *mesh) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	var secret corev1.Secret
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: m.ns, Name: "istio-ca"}, &secret))
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	require.NoError(t, err)
	return pair.Leaf, pair.PrivateKey.(crypto.Signer)
}

// beside is a leaf of the mesh's CA that this Signet never saw, as that of another cluster's.
func beside(t *testing.T, m *mesh, id string) *tls.Certificate {
	t.Helper()
	issuer, signer := authority(t, m)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	name, err := url.Parse(id)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, issuer, key.Public(), signer)
	require.NoError(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestAccess: who sees what, through the whole process. A client certificate that has expired is tried in TestAnswers.
func TestAccess(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	i := m.start(t, "signet-0", "", nil)
	mine, others := plane.NewNamespace(t, "mine"), plane.NewNamespace(t, "others")
	// A group that only the namespace's own service accounts are in.
	bind(t, mine, rbacv1.Subject{Kind: "ServiceAccount", Namespace: "people", Name: "one"}, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "system:serviceaccounts:" + mine})
	web, db := newWorkload(t, mine, "web", "node-1"), newWorkload(t, others, "db", "node-1")
	agent := web.agent(t, i, time.Hour, meshclient.P256)
	webHolds, dbHolds := held(t, agent), held(t, db.agent(t, i, time.Hour, meshclient.P256))
	own := webHolds.KeyPair()
	fresh(t, i.reader(t), mine, "web")
	fresh(t, i.reader(t), others, "db")

	for name, row := range map[string]struct {
		client     *api.Client
		list       int      // status of a list over all namespaces
		seen       []string // namespaces in it
		mine, them int      // status of what is about one namespace
	}{
		"all":                       {i.reader(t), 200, []string{mine, others}, 200, 200},
		"one namespace":             {i.client(t, tokenOf(t, "one", "signet.dev"), nil), 200, []string{mine}, 200, 403},
		"none":                      {i.client(t, tokenOf(t, "none", "signet.dev"), nil), 403, nil, 403, 403},
		"for another audience":      {i.client(t, tokenOf(t, "all", "istio-ca"), nil), 401, nil, 401, 401},
		"no token":                  {i.client(t, "", nil), 401, nil, 401, 401},
		"a workload's certificate":  {i.client(t, "", &own), 200, []string{mine}, 200, 403},
		"of another cluster":        {i.client(t, "", beside(t, m, web.id.String())), 401, nil, 401, 401},
		"of another trust domain":   {i.client(t, "", beside(t, m, strings.Replace(web.id.String(), "cluster.local", "elsewhere", 1))), 401, nil, 401, 401},
		"of a workload, and no one": {i.client(t, tokenOf(t, "none", "signet.dev"), &own), 403, nil, 403, 403}, // a token says who it is
	} {
		t.Run(name, func(t *testing.T) {
			list, err := row.client.Services(t.Context(), api.ServiceQuery{})
			require.Equal(t, row.list, status(t, err), "%v", err)
			if err == nil {
				seen := make(map[string]bool)
				for _, s := range list.Items {
					seen[s.Namespace] = true
				}
				for _, ns := range []string{mine, others} {
					want := false
					for _, s := range row.seen {
						want = want || s == ns
					}
					assert.Equal(t, want, seen[ns], ns)
				}
				assert.Equal(t, len(row.seen) == 1, list.Restricted)
				certificates, err := row.client.Certificates(t.Context(), api.CertificateQuery{Node: "node-1"})
				require.NoError(t, err)
				assert.Len(t, certificates.Items, len(row.seen))
				issuances, err := row.client.Issuances(t.Context(), api.IssuanceQuery{Outcome: api.Issued})
				require.NoError(t, err)
				assert.Len(t, issuances.Items, len(row.seen))
			}
			for _, place := range []struct {
				w    *workload
				leaf *x509.Certificate
				want int
			}{{web, webHolds.Leaf, row.mine}, {db, dbHolds.Leaf, row.them}} {
				ns := place.w.pod.Namespace
				_, err = row.client.Service(t.Context(), ns, place.w.pod.Name)
				assert.Equal(t, place.want, status(t, err), "%v", err)
				_, err = row.client.Certificates(t.Context(), api.CertificateQuery{Namespace: ns})
				assert.Equal(t, place.want, status(t, err), "%v", err)
				_, err = row.client.Certificate(t.Context(), shaOf(place.leaf))
				assert.Equal(t, place.want, status(t, err), "%v", err)
				_, err = row.client.Identity(t.Context(), place.w.id.String())
				assert.Equal(t, place.want, status(t, err), "%v", err)
				_, err = row.client.Expiring(t.Context(), api.CertificateQuery{Namespace: ns})
				assert.Equal(t, place.want, status(t, err), "%v", err)
			}
			_, err = row.client.Trust(t.Context())
			if len(row.seen) == 2 {
				assert.NoError(t, err)
			} else {
				assert.Equal(t, max(row.them, 401), status(t, err))
			}
		})
	}
	for name, text := range map[string]string{web.id.String(): "it isn't in the ledger", "spiffe://elsewhere/ns/" + mine + "/sa/web": `of trust domain "elsewhere"`} {
		_, err := i.client(t, "", beside(t, m, name)).Trust(t.Context())
		assert.ErrorContains(t, err, text)
	}
	// The pods' own tokens are for the mesh's CA.
	_, err := i.client(t, web.token, nil).Services(t.Context(), api.ServiceQuery{})
	assert.Equal(t, 401, status(t, err))
	// The account is made anew under its name: the certificate was another one's.
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: mine, Name: "web"}}
	require.NoError(t, plane.Client().Delete(t.Context(), account))
	require.NoError(t, plane.ServiceAccount(t.Context(), mine, "web"))
	patiently.Holds(t, func() bool {
		_, err := i.client(t, "", &own).Services(t.Context(), api.ServiceQuery{})
		return err != nil && status(t, err) == 401
	}, "the certificate of an account that is gone says nothing")
}
