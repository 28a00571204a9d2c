package approver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/signer"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// TestSigned: the policies let all through that a mesh needs: the certificate of a sidecar, of a pod beside a ztunnel, of
// Signet itself and of istiod.
func TestSigned(t *testing.T) {
	id, key, ask := sidecar(t, day)
	chain, err := create(t, dial(t, signet, meshclient.SidecarTLS()), ask)
	require.NoError(t, err)
	require.NoError(t, meshclient.JudgeSidecar(chain, key.Public(), id, time.Now()))

	node := "node-" + rand.String(5)
	proxy, err := plane.Pod(t.Context(), system, "ztunnel-"+node, "ztunnel", node)
	require.NoError(t, err)
	token, err := plane.Token(t.Context(), system, "ztunnel", controlplane.TokenOptions{Pod: proxy})
	require.NoError(t, err)
	account := id.Path()[strings.LastIndex(id.Path(), "/")+1:]
	_, err = plane.Pod(t.Context(), "shop", account, account, node)
	require.NoError(t, err)
	beside, csr, err := meshclient.ZtunnelCSR(id)
	require.NoError(t, err)
	asked := meshclient.Ask{Token: token, CSR: csr, ValiditySeconds: int64(day / time.Second), Metadata: meshclient.ZtunnelMetadata(id.String()), ClusterIDs: []string{"Kubernetes"}}
	c := dial(t, signet, meshclient.ZtunnelTLS())
	patiently.Until(t, "Signet knows the pod", func(context.Context) error {
		chain, err = create(t, c, asked)
		if err != nil && status.Code(err) != codes.PermissionDenied {
			require.NoError(t, err)
		}
		return err
	})
	require.NoError(t, meshclient.JudgeZtunnel(chain, beside.Public(), id, time.Now()))

	istiod := &cmapi.Certificate{}
	patiently.Until(t, "istiod's certificate", func(ctx context.Context) error {
		if err := plane.Client().Get(ctx, client.ObjectKey{Namespace: system, Name: "istiod-dynamic"}, istiod); err != nil {
			return err
		}
		for _, c := range istiod.Status.Conditions {
			if c.Type == cmapi.CertificateConditionReady && c.Status == cmmeta.ConditionTrue {
				return plane.Client().Get(ctx, client.ObjectKey{Namespace: system, Name: "istiod-tls"}, &corev1.Secret{})
			}
		}
		return fmt.Errorf("it isn't Ready: %+v", istiod.Status.Conditions)
	})

	var requests cmapi.CertificateRequestList
	require.NoError(t, plane.Client().List(t.Context(), &requests, client.InNamespace(system)))
	by := make(map[string]int)
	for _, cr := range requests.Items {
		switch {
		case cr.Annotations[signer.IdentitiesAnnotation] == id.String():
			by["workload"]++
			assert.Equal(t, signetAccount, cr.Spec.Username)
			assert.NoError(t, approved(&cr, "signet"))
		case cr.Labels[signer.RequestLabel] == signer.ForServing && approved(&cr, "signet") == nil:
			by["serving"]++
			assert.Equal(t, signetAccount, cr.Spec.Username)
		case cr.Annotations[cmapi.CertificateNameKey] == istiod.Name:
			by["istiod"]++
			assert.Equal(t, certManagerAccount, cr.Spec.Username)
			assert.NoError(t, approved(&cr, "istiod"))
		}
	}
	assert.Equal(t, 2, by["workload"], "the sidecar's, and that of the pod beside the ztunnel")
	assert.Positive(t, by["serving"])
	assert.Positive(t, by["istiod"])
	assert.Contains(t, istiod.Spec.DNSNames, "istiod-canary.istio-system.svc")
}

// TestPolicy: what Signet asks for is approved, and signed; the same with one thing changed isn't.
func TestPolicy(t *testing.T) {
	type of = *byHand
	names := func(names ...[]byte) func(of) {
		return func(b of) { b.csr.Extensions = []meshclient.Extension{meshclient.SAN(true, names...)} }
	}
	workload := meshclient.URIName("spiffe://cluster.local/ns/shop/sa/cart")
	subject := func(attributes ...meshclient.Attribute) func(of) {
		return func(b of) { b.csr.Subject = meshclient.Subject(attributes...) }
	}
	usage := func(usages ...cmapi.KeyUsage) func(of) { return func(b of) { b.usages = usages } }
	lives := func(lifetime time.Duration) func(of) { return func(b of) { b.lifetime = lifetime } }
	// Of the outcome: what a denial says, or one of these.
	const signed, left = "signed", "left alone"

	for _, test := range []struct {
		name   string
		change func(of)
		want   string
	}{
		{"ztunnel's", func(of) {}, signed},
		{"a sidecar's, with a subject of one empty organization", func(b of) { b.csr.Subject = meshclient.EmptyOrganization() }, signed},
		{"as istio-csr asks", usage(cmapi.UsageClientAuth, cmapi.UsageServerAuth), signed},
		{"shortest", lives(time.Minute), signed},
		{"Signet's own", names(meshclient.DNSName("signet.istio-system"), meshclient.DNSName("signet.istio-system.svc"), meshclient.DNSName("signet.istio-system.svc.cluster.local")), signed},

		{"another trust domain", names(meshclient.URIName("spiffe://example.com/ns/shop/sa/cart")), "spec.allowed.uris.values"},
		{"one that only begins so", names(meshclient.URIName("spiffe://cluster.local.example.com/ns/shop/sa/cart")), "spec.allowed.uris.values"},
		{"no service account", names(meshclient.URIName("spiffe://cluster.local/shop/cart")), "spec.allowed.uris.values"},
		{"another URI", names(meshclient.URIName("https://cluster.local/ns/shop/sa/cart")), "spec.allowed.uris.values"},
		{"another trust domain besides", names(workload, meshclient.URIName("spiffe://example.com/ns/shop/sa/cart")), "spec.allowed.uris.values"},
		{"istiod's name", names(meshclient.DNSName("istiod.istio-system.svc")), "spec.allowed.dnsNames.values"},
		{"a DNS name besides", names(workload, meshclient.DNSName("example.com")), "spec.allowed.dnsNames.values"},
		{"an IP address", names(workload, meshclient.IPName(net.IPv4(192, 0, 2, 1).To4())), "spec.allowed.ipAddresses"},
		{"an e-mail address", names(workload, meshclient.EmailName("cart@example.com")), "spec.allowed.emailAddresses"},
		{"a name that Go doesn't see", names(workload, meshclient.OtherName([]int{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}, "admin@example.com")), "spec.allowed.otherNames"},
		{"a directory name", names(workload, meshclient.DirectoryName(meshclient.Subject(meshclient.CommonName("admin")))), "subjectAltName (SAN) extension could not be decoded"},
		{"a common name", subject(meshclient.CommonName("istiod.istio-system.svc")), "spec.allowed.commonName"},
		{"an organization", subject(meshclient.Organization("system:masters")), "spec.allowed.subject.organizations"},
		{"a CA", func(b of) { b.ca = true }, "spec.allowed.isCA"},
		{"a usage besides", usage(cmapi.UsageDigitalSignature, cmapi.UsageKeyEncipherment, cmapi.UsageClientAuth, cmapi.UsageServerAuth, cmapi.UsageCodeSigning), "spec.allowed.usages"},
		{"a CA's usage", usage(cmapi.UsageCertSign), "spec.allowed.usages"},
		{"longer", lives(day + time.Second), "spec.constraints.maxDuration"},
		{"shorter", lives(time.Minute - time.Second), "spec.constraints.minDuration"},
		{"the issuer's own lifetime", lives(0), "[spec.constraints.maxDuration"},

		{"by somebody else", func(b of) { b.account = "mallory" }, left},
		{"of another issuer", func(b of) { b.issuer = "istio-ca-selfsigned" }, left},
		{"in another namespace", func(b of) { b.namespace = "shop" }, left},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := byHand{
				csr:    meshclient.Template{Extensions: []meshclient.Extension{meshclient.SAN(true, workload)}},
				usages: signer.LeafUsages(), lifetime: day, issuer: "istio-ca", namespace: system, account: "signet",
			}
			test.change(&b)
			follow(t, b.make(t), func(ctx context.Context, cr *cmapi.CertificateRequest) error {
				switch test.want {
				case signed:
					return approved(cr, "signet")
				case left:
					return ignored(ctx, cr)
				default:
					return denied(cr, "No policy approved this request: [signet: "+test.want)
				}
			})
		})
	}
}

// TestAdmissionBesides: the chart's own admission policy is in force too. Whom it doesn't name can't even ask.
func TestAdmissionBesides(t *testing.T) {
	stranger := as(t, system, "default")
	patiently.Until(t, "the admission policy", func(ctx context.Context) error {
		cr := &cmapi.CertificateRequest{Spec: cmapi.CertificateRequestSpec{Request: []byte("x"), IssuerRef: cmmeta.IssuerReference{Name: "istio-ca"}}}
		cr.Namespace, cr.Name = system, "stranger"
		switch err := stranger.Create(ctx, cr, client.DryRunAll); {
		case err == nil:
			return errors.New("it isn't in force")
		case !strings.Contains(err.Error(), "only Signet asks the mesh's issuer"):
			return err
		}
		return nil
	})
}

// TestSignetIsDenied: where a policy denies what Signet itself asks for, the caller is told that it was denied, and whoever
// reads the log why. Others go on being served.
func TestSignetIsDenied(t *testing.T) {
	// Signet would give two days, the policy lets it have one.
	id, _, ask := sidecar(t, day+time.Hour)
	line := refused(t, signet, ask, id, codes.FailedPrecondition, "the request was denied", "denied")
	assert.Contains(t, line, "spec.constraints.maxDuration")
	assert.Contains(t, line, "[signet: ", "the policy")
	_, err := readyz(t.Context(), signet, http.StatusOK)
	require.NoError(t, err, "that is no reason not to be ready")

	id, key, ask := sidecar(t, day)
	chain, err := create(t, dial(t, signet, meshclient.SidecarTLS()), ask)
	require.NoError(t, err)
	require.NoError(t, meshclient.JudgeSidecar(chain, key.Public(), id, time.Now()))

	// A name of Signet's own that the policy doesn't have.
	config := configuration(map[string]any{"serving.dnsNames": []any{"ca.example.com"}})
	config.DontWait = true
	other, err := replica.Start(t.Context(), plane, config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, end(other)) })
	patiently.Until(t, "it says why it isn't ready", func(ctx context.Context) error {
		body, err := readyz(ctx, other, http.StatusServiceUnavailable)
		for _, part := range []string{"sign serving certificate: the request was denied", "[signet: spec.allowed.dnsNames.values", "ca.example.com"} {
			if err == nil && !strings.Contains(body, part) {
				err = fmt.Errorf("/readyz doesn't say %q:\n%s", part, body)
			}
		}
		return err
	})
	failed, err := other.Metric(t.Context(), "signet_serving_certificate_renewals_total", map[string]string{"result": "failed"})
	require.NoError(t, err)
	assert.Positive(t, failed)
}

// TestNobodyDecides: while no approver is there the caller is told to try again, and whoever reads the log what is missing;
// when it is back callers are served.
func TestNobodyDecides(t *testing.T) {
	hasty, err := replica.Start(t.Context(), plane, configuration(map[string]any{"signer.timeout": "5s"}))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, end(hasty)) })
	id, key, ask := sidecar(t, day)

	require.NoError(t, plane.ApproverPolicy().Stop())
	patiently.Until(t, "it is said that nobody decides", func(context.Context) error {
		line := refused(t, hasty, ask, id, codes.DeadlineExceeded, "no certificate was issued in time; try again", "timeout")
		if !strings.Contains(line, "no approver has decided on it") {
			return errors.New(line) // on a busy machine the time may be up before there is a CertificateRequest
		}
		return nil
	})
	_, err = readyz(t.Context(), hasty, http.StatusOK)
	require.NoError(t, err, "it has its own certificate")

	require.NoError(t, plane.ApproverPolicy().Start(t.Context()))
	c := dial(t, hasty, meshclient.SidecarTLS())
	patiently.Until(t, "it is answered", func(context.Context) error {
		chain, err := create(t, c, ask)
		if err != nil {
			require.NotEqual(t, codes.FailedPrecondition, status.Code(err), "it isn't told to give up: %v", err)
			return err
		}
		return meshclient.JudgeSidecar(chain, key.Public(), id, time.Now())
	})
}
