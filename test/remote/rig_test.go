package remote

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// caller is a connection to a Signet.
type caller struct {
	of *replica.Replica
	*meshclient.Client
}

func dial(t *testing.T, to *replica.Replica, root []byte) *caller {
	t.Helper()
	options := meshclient.SidecarTLS()
	options.ServerName = replica.ServerName
	c, err := meshclient.Dial(to.CSR(), root, options)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return &caller{to, c}
}

func identity(namespace, account string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://cluster.local/ns/" + namespace + "/sa/" + account)
}

// ask is a request for an identity with a token, in the cluster that the caller says it is in; "" for none.
func ask(t *testing.T, token, cluster string, id spiffeid.ID) (meshclient.Ask, crypto.Signer) {
	t.Helper()
	key, csr, err := meshclient.ZtunnelCSR(id)
	require.NoError(t, err)
	a := meshclient.Ask{Token: token, CSR: csr, ValiditySeconds: 600}
	if cluster != "" {
		a.ClusterIDs = []string{cluster}
	}
	return a, key
}

// gets asks for an identity and has it. It returns the leaf, PEM.
func (c *caller) gets(t *testing.T, token, cluster string, id spiffeid.ID) string {
	t.Helper()
	a, key := ask(t, token, cluster, id)
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	chain, err := c.Create(ctx, a)
	require.NoError(t, err)
	require.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), id, time.Now()))
	return chain[0]
}

// refused asks and is refused, with a code and, in the metrics, for a reason.
func (c *caller) refused(t *testing.T, a meshclient.Ask, code codes.Code, reason string) {
	t.Helper()
	before := c.refusals(t, reason)
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	_, err := c.Create(ctx, a)
	require.Equal(t, code.String(), status.Code(err).String(), "%v", err)
	patiently.Holds(t, func() bool { return c.refusals(t, reason) > before }, "it is refused for %s", reason)
}

func (c *caller) refusals(t *testing.T, reason string) float64 {
	t.Helper()
	return metric(t, c.of, "signet_requests_total", map[string]string{"outcome": "refused", "reason": reason})
}

func metric(t *testing.T, of *replica.Replica, name string, labels map[string]string) float64 {
	t.Helper()
	n, err := of.Metric(t.Context(), name, labels)
	require.NoError(t, err)
	return n
}

// token is a new one of a service account, which is made where it isn't there.
func token(t *testing.T, plane *controlplane.Plane, namespace, account string, audiences ...string) string {
	t.Helper()
	require.NoError(t, plane.Namespace(t.Context(), namespace))
	require.NoError(t, plane.ServiceAccount(t.Context(), namespace, account))
	text, err := plane.Token(t.Context(), namespace, account, controlplane.TokenOptions{Audiences: audiences})
	require.NoError(t, err)
	return text
}

// annotationsFor are those of the one request that a Signet has made for an identity.
func annotationsFor(t *testing.T, namespace string, id spiffeid.ID) map[string]string {
	t.Helper()
	var requests cmapi.CertificateRequestList
	require.NoError(t, east.Client().List(t.Context(), &requests, client.InNamespace(namespace)))
	for _, r := range requests.Items {
		if r.Annotations["istio.cert-manager.io/identities"] == id.String() {
			return r.Annotations
		}
	}
	return nil
}

// logged is what the log says of a certificate.
func logged(t *testing.T, leafPEM string) map[string]any {
	t.Helper()
	block, _ := pem.Decode([]byte(leafPEM))
	require.NotNil(t, block)
	facts, err := signet.Issued(block.Bytes)
	require.NoError(t, err)
	return facts
}

// holderOf is what the inspection API says of who holds a certificate.
func holderOf(t *testing.T, leafPEM string) (holder struct{ Cluster, Pod, Node string }) {
	t.Helper()
	block, _ := pem.Decode([]byte(leafPEM))
	require.NotNil(t, block)
	auditor := token(t, east, home, "auditor", "signet.dev")
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(root))
	asking := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}}}
	defer asking.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("%s/v1/certificates/%x", signet.APIURL(), sha256.Sum256(block.Bytes)), nil)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+auditor)
	answer, err := asking.Do(request)
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Equal(t, http.StatusOK, answer.StatusCode)
	var record struct {
		Holder struct{ Cluster, Pod, Node string }
	}
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&record))
	return record.Holder
}
