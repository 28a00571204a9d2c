package approver

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

const day = 24 * time.Hour

// as is a client with no other rights than those of a service account.
func as(t *testing.T, namespace, account string) client.Client {
	t.Helper()
	config, err := plane.As(t.Context(), namespace, account)
	require.NoError(t, err)
	c, err := client.New(config, client.Options{Scheme: plane.Client().Scheme(), Mapper: plane.Client().RESTMapper()})
	require.NoError(t, err)
	return c
}

// dial connects to a replica with a client's TLS.
func dial(t *testing.T, r *replica.Replica, options meshclient.Options) *meshclient.Client {
	t.Helper()
	options.ServerName = "signet." + system + ".svc"
	c, err := meshclient.Dial(r.CSR(), root, options)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return c
}

// sidecar makes a service account in namespace shop, and what the agent of a pod of it sends.
func sidecar(t *testing.T, lifetime time.Duration) (spiffeid.ID, crypto.Signer, meshclient.Ask) {
	t.Helper()
	account := "cart-" + rand.String(5)
	require.NoError(t, plane.ServiceAccount(t.Context(), "shop", account))
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/shop/sa/" + account)
	token, err := plane.Token(t.Context(), "shop", account, controlplane.TokenOptions{})
	require.NoError(t, err)
	key, csr, err := meshclient.SidecarCSR(id, meshclient.RSA2048)
	require.NoError(t, err)
	return id, key, meshclient.Ask{
		Token: token, CSR: csr, ValiditySeconds: int64(lifetime / time.Second), Metadata: meshclient.SidecarMetadata(""), ClusterIDs: []string{"Kubernetes"},
	}
}

func create(t *testing.T, c *meshclient.Client, ask meshclient.Ask) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	return c.Create(ctx, ask)
}

// refused asks, wants exactly this code and text, and this reason in the metrics, and returns the line of the log.
func refused(t *testing.T, r *replica.Replica, ask meshclient.Ask, id spiffeid.ID, code codes.Code, text, reason string) string {
	t.Helper()
	counted := func() float64 {
		n, err := r.Metric(t.Context(), "signet_requests_total", map[string]string{"outcome": "refused", "reason": reason, "code": code.String()})
		require.NoError(t, err)
		return n
	}
	before := counted()
	chain, err := create(t, dial(t, r, meshclient.SidecarTLS()), ask)
	require.Error(t, err, "%d elements were answered", len(chain))
	require.Equal(t, code.String(), status.Code(err).String(), "%v", err)
	assert.Equal(t, text, status.Convert(err).Message())
	assert.Equal(t, before+1, counted(), "reason %s", reason)
	var found string
	patiently.Until(t, "the refusal is logged", func(context.Context) error {
		log, err := r.Log()
		for line := range strings.Lines(log) {
			if strings.Contains(line, id.String()) && strings.Contains(line, `"reason":"`+reason+`"`) {
				found = line // the last one
			}
		}
		if found == "" {
			err = errors.Join(err, errors.New("no line of it"))
		}
		return err
	})
	return found
}

// condition is one of a CertificateRequest; nil where it hasn't it.
func condition(cr *cmapi.CertificateRequest, name cmapi.CertificateRequestConditionType) *cmapi.CertificateRequestCondition {
	for i := range cr.Status.Conditions {
		if cr.Status.Conditions[i].Type == name {
			return &cr.Status.Conditions[i]
		}
	}
	return nil
}

// approved wants that a CertificateRequest is signed because of a policy.
func approved(cr *cmapi.CertificateRequest, policy string) error {
	switch c := condition(cr, cmapi.CertificateRequestConditionApproved); {
	case condition(cr, cmapi.CertificateRequestConditionDenied) != nil:
		return fmt.Errorf("%w: CertificateRequest %s is denied: %+v", patiently.ErrFinal, cr.Name, cr.Status.Conditions)
	case c == nil:
		return fmt.Errorf("CertificateRequest %s isn't approved: %+v", cr.Name, cr.Status.Conditions)
	case c.Status != cmmeta.ConditionTrue || c.Reason != "policy.cert-manager.io" || c.Message != fmt.Sprintf("Approved by CertificateRequestPolicy: %q", policy):
		return fmt.Errorf("CertificateRequest %s is approved otherwise: %+v", cr.Name, c)
	case len(cr.Status.Certificate) == 0:
		return fmt.Errorf("CertificateRequest %s has no certificate: %+v", cr.Name, cr.Status.Conditions)
	}
	return nil
}

// denied wants that a CertificateRequest is denied for a reason, as cert-manager knows too.
func denied(cr *cmapi.CertificateRequest, why string) error {
	switch c := condition(cr, cmapi.CertificateRequestConditionDenied); {
	case condition(cr, cmapi.CertificateRequestConditionApproved) != nil:
		return fmt.Errorf("%w: CertificateRequest %s is approved: %+v", patiently.ErrFinal, cr.Name, cr.Status.Conditions)
	case c == nil:
		return fmt.Errorf("CertificateRequest %s isn't denied: %+v", cr.Name, cr.Status.Conditions)
	case c.Status != cmmeta.ConditionTrue || c.Reason != "policy.cert-manager.io" || !strings.Contains(c.Message, why):
		return fmt.Errorf("%w: CertificateRequest %s is denied otherwise: %+v", patiently.ErrFinal, cr.Name, c)
	}
	if c := condition(cr, cmapi.CertificateRequestConditionReady); c == nil || c.Reason != cmapi.CertificateRequestReasonDenied || len(cr.Status.Certificate) > 0 {
		return fmt.Errorf("cert-manager doesn't know that CertificateRequest %s is denied: %+v", cr.Name, cr.Status.Conditions)
	}
	return nil
}

// ignored wants that approver-policy has looked at a CertificateRequest, and found no policy that its requester may use for
// it: it is neither approved nor denied.
func ignored(ctx context.Context, cr *cmapi.CertificateRequest) error {
	if len(cr.Status.Conditions) > 0 || len(cr.Status.Certificate) > 0 {
		return fmt.Errorf("%w: CertificateRequest %s has conditions: %+v", patiently.ErrFinal, cr.Name, cr.Status.Conditions)
	}
	var events eventsv1.EventList
	if err := plane.Client().List(ctx, &events, client.InNamespace(cr.Namespace)); err != nil {
		return err
	}
	for _, event := range events.Items {
		if event.Regarding.UID == cr.UID && event.Reason == "Unprocessed" {
			return nil
		}
	}
	return fmt.Errorf("approver-policy hasn't looked at CertificateRequest %s", cr.Name)
}

// follow looks at an object until it is as wanted.
func follow(t *testing.T, cr *cmapi.CertificateRequest, want func(context.Context, *cmapi.CertificateRequest) error) {
	t.Helper()
	patiently.Until(t, "CertificateRequest", func(ctx context.Context) error {
		if err := plane.Client().Get(ctx, client.ObjectKeyFromObject(cr), cr); err != nil {
			return err
		}
		return want(ctx, cr)
	})
}

// byHand is a CertificateRequest such as Signet makes, before a test changes it.
type byHand struct {
	csr       meshclient.Template
	usages    []cmapi.KeyUsage
	lifetime  time.Duration // none where it is 0
	ca        bool
	issuer    string
	namespace string
	account   string // in the mesh's namespace
}

// make makes it.
func (b byHand) make(t *testing.T) *cmapi.CertificateRequest {
	t.Helper()
	key, err := meshclient.NewKey(meshclient.P256)
	require.NoError(t, err)
	b.csr.Key = key
	der, err := meshclient.BuildCSR(b.csr)
	require.NoError(t, err)
	cr := &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, GenerateName: "by-hand-"},
		Spec: cmapi.CertificateRequestSpec{
			Request: []byte(meshclient.EncodeCSR(der)), Usages: b.usages, IsCA: b.ca,
			IssuerRef: cmmeta.IssuerReference{Group: "cert-manager.io", Kind: "Issuer", Name: b.issuer},
		},
	}
	if b.lifetime != 0 {
		cr.Spec.Duration = &metav1.Duration{Duration: b.lifetime}
	}
	maker := as(t, system, b.account)
	patiently.Until(t, "its maker may", func(ctx context.Context) error { return maker.Create(ctx, cr) })
	return cr
}

// readyz is what a replica says of itself.
func readyz(ctx context.Context, r *replica.Replica, want int) (string, error) {
	code, body, err := r.Readyz(ctx)
	if err == nil && code != want {
		err = fmt.Errorf("/readyz answers %d %s:\n%s", code, http.StatusText(code), body)
	}
	return body, err
}
