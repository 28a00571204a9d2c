package install

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/chart"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

// everything is a group that RBAC lets do all.
const everything = "test:everything"

// A guarded mesh is a namespace whose issuers the chart's admission policy guards. Nothing of Signet runs in it.
type guarded struct {
	ns, other string // the mesh's namespace, and one that has nothing to do with it
	pki       string // that of the issuer which signed the mesh's CA
	policy    string // its name; that for Kubernetes' own requests has a suffix
}

// guard installs only the policy, with one of each kind of issuer that it can name:
//
//   - Issuer istio-ca (config.issuer), which the mesh's namespace has, and so does the other
//   - Issuer spare (issuers.fallback)
//   - ClusterIssuer gold (a rule)
//   - ClusterIssuer ca, and HSMIssuer hsm of another group (admissionPolicy.issuers)
//   - Issuer root, and VaultIssuer vault of another group, in the namespace pki (the same)
//
// Those that are not in a namespace, and those of other groups, have the mesh's in their name.
func guard(t *testing.T) guarded {
	t.Helper()
	g := guarded{ns: plane.NewNamespace(t, "mesh"), other: plane.NewNamespace(t, "other"), pki: plane.NewNamespace(t, "pki")}
	objects, err := chart.Render(g.ns, map[string]any{
		"config": map[string]any{
			"namespace": g.ns,
			"issuer":    map[string]any{"name": "istio-ca"},
			"issuers":   map[string]any{"fallback": []any{map[string]any{"name": "spare", "kind": "Issuer"}}},
			"ca": map[string]any{"rules": []any{map[string]any{
				"namespaces": []any{"gold"}, "issuer": map[string]any{"name": g.ns + "-gold", "kind": "ClusterIssuer"},
			}}},
			"roots": map[string]any{"fromIssuer": true},
		},
		"admissionPolicy": map[string]any{
			"allowed": map[string]any{"users": []any{"alice"}, "groups": []any{"platform"}},
			"issuers": []any{
				map[string]any{"name": g.ns + "-ca", "kind": "ClusterIssuer"},
				map[string]any{"name": "hsm-" + g.ns, "kind": "HSMIssuer", "group": "issuers.example.com"},
				map[string]any{"name": "root", "namespace": g.pki},
				map[string]any{"name": "vault-" + g.ns, "kind": "VaultIssuer", "group": "issuers.example.com", "namespace": g.pki},
			},
		},
	})
	require.NoError(t, err)
	g.policy = "signet-" + g.ns
	for _, object := range objects {
		if strings.HasPrefix(object.GetKind(), "ValidatingAdmissionPolicy") {
			require.NoError(t, plane.Client().Create(t.Context(), object))
			t.Cleanup(func() { assert.NoError(t, plane.Client().Delete(context.WithoutCancel(t.Context()), object)) })
		}
	}
	return g
}

// allowEverything gives the group its rights.
func allowEverything(ctx context.Context) error {
	return plane.Client().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "test-everything"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: everything}},
	})
}

// as is a client of somebody whom RBAC lets do everything.
func as(t *testing.T, user string, groups ...string) client.Client {
	t.Helper()
	config := plane.Admin()
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: append([]string{everything, "system:authenticated"}, groups...)}
	config.WarningHandler = rest.NoWarnings{}
	c, err := client.New(config, client.Options{Scheme: plane.Client().Scheme(), Mapper: plane.Client().RESTMapper()})
	require.NoError(t, err)
	return c
}

func account(namespace, name string) string { return "system:serviceaccount:" + namespace + ":" + name }

// refusal says whether a request was refused by a policy, which says so in words that help.
func refusal(err error, policy string) (bool, error) {
	if err == nil {
		return false, nil
	}
	text := err.Error()
	if !strings.Contains(text, "ValidatingAdmissionPolicy '"+policy) {
		return false, err // something else
	}
	if !apierrors.IsForbidden(err) || !strings.Contains(text, "only Signet asks the mesh's issuer") || !strings.Contains(text, "admissionPolicy.allowed") {
		return true, fmt.Errorf("the refusal doesn't say why or what to do: %w", err)
	}
	return true, nil
}

// request is a good CertificateRequest for an issuer.
func request(t *testing.T, namespace string, ref cmmeta.IssuerReference) *cmapi.CertificateRequest {
	t.Helper()
	return &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "by-hand-"},
		Spec: cmapi.CertificateRequestSpec{
			Request: csr(t), IssuerRef: ref, Duration: &metav1.Duration{Duration: time.Hour}, Usages: []cmapi.KeyUsage{cmapi.UsageClientAuth},
		},
	}
}

func certificate(namespace string, ref cmmeta.IssuerReference) *cmapi.Certificate {
	return &cmapi.Certificate{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "by-hand-"},
		Spec:       cmapi.CertificateSpec{SecretName: "by-hand", DNSNames: []string{"istiod.istio-system.svc"}, IssuerRef: ref},
	}
}

// kubernetesRequest is a CertificateSigningRequest for one of cert-manager's signers, or another.
func kubernetesRequest(t *testing.T, signer string) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "by-hand-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: csr(t), SignerName: signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}
}

func csr(t *testing.T) []byte {
	t.Helper()
	key, err := meshclient.NewKey(meshclient.P256)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"istiod.istio-system.svc"}}, key)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

var errNone = errors.New("it was let through")

// inForce waits until the API server has learnt of the policy.
func (g guarded) inForce(t *testing.T) {
	t.Helper()
	mallory := as(t, "mallory")
	for _, object := range []client.Object{
		request(t, g.ns, cmmeta.IssuerReference{Name: "istio-ca"}),
		kubernetesRequest(t, "issuers.cert-manager.io/"+g.ns+".istio-ca"),
	} {
		patiently.Until(t, "policy in force", func(ctx context.Context) error {
			refused, err := refusal(mallory.Create(ctx, object.DeepCopyObject().(client.Object), client.DryRunAll), g.policy)
			if err == nil && !refused {
				err = errNone
			}
			return err
		})
	}
}

// TestAdmissionPolicy has people and programs who may do everything by RBAC ask for certificates of the mesh's issuers.
func TestAdmissionPolicy(t *testing.T) {
	t.Parallel()
	g := guard(t)
	g.inForce(t)

	for _, name := range []string{g.policy, g.policy + "-signers"} {
		var policy admissionv1.ValidatingAdmissionPolicy
		require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Name: name}, &policy))
		assert.Equal(t, admissionv1.Fail, *policy.Spec.FailurePolicy, "what can't be judged is refused")
		var binding admissionv1.ValidatingAdmissionPolicyBinding
		require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Name: name}, &binding))
		assert.Equal(t, name, binding.Spec.PolicyName)
		assert.Equal(t, []admissionv1.ValidationAction{admissionv1.Deny}, binding.Spec.ValidationActions)
	}

	const group = "cert-manager.io"
	type ref = cmmeta.IssuerReference
	// What is asked for, and for which issuers it is the mesh's.
	type asked struct {
		what   string
		ns     string
		ref    ref
		signer string // the same for Kubernetes; empty where there is no such
		ours   bool
	}
	gold, extra, hsm, vault := g.ns+"-gold", g.ns+"-ca", "hsm-"+g.ns, "vault-"+g.ns
	asks := []asked{
		{"name alone", g.ns, ref{Name: "istio-ca"}, "issuers.cert-manager.io/" + g.ns + ".istio-ca", true},
		{"name and kind", g.ns, ref{Name: "istio-ca", Kind: "Issuer"}, "", true},
		{"name and group", g.ns, ref{Name: "istio-ca", Group: group}, "", true},
		{"all", g.ns, ref{Name: "istio-ca", Kind: "Issuer", Group: group}, "", true},
		{"fallback", g.ns, ref{Name: "spare"}, "issuers.cert-manager.io/" + g.ns + ".spare", true},
		{"rule's, from the mesh's namespace", g.ns, ref{Name: gold, Kind: "ClusterIssuer"}, "clusterissuers.cert-manager.io/" + gold, true},
		{"rule's, from elsewhere", g.other, ref{Name: gold, Kind: "ClusterIssuer", Group: group}, "", true},
		{"named to the policy", g.other, ref{Name: extra, Kind: "ClusterIssuer"}, "clusterissuers.cert-manager.io/" + extra, true},
		{"of another group", g.ns, ref{Name: hsm, Kind: "HSMIssuer", Group: "issuers.example.com"}, "hsmissuers.issuers.example.com/" + g.ns + "." + hsm, true},
		{"of another group, from elsewhere", g.other, ref{Name: hsm, Kind: "HSMIssuer", Group: "issuers.example.com"}, "hsmissuers.issuers.example.com/" + hsm, true},
		// Controllers there are that take a kind which they don't know, or none, for the one of their issuers.
		{"of another group, without a kind", g.ns, ref{Name: hsm, Group: "issuers.example.com"}, "", true},
		{"another kind of another group", g.ns, ref{Name: hsm, Kind: "Other", Group: "issuers.example.com"}, "", true},
		{"named with its namespace", g.pki, ref{Name: "root"}, "issuers.cert-manager.io/" + g.pki + ".root", true},
		{"named with its namespace, all", g.pki, ref{Name: "root", Kind: "Issuer", Group: group}, "", true},
		{"of another group, with its namespace", g.pki, ref{Name: vault, Kind: "VaultIssuer", Group: "issuers.example.com"}, "vaultissuers.issuers.example.com/" + g.pki + "." + vault, true},
		{"of another group, with its namespace, from elsewhere", g.other, ref{Name: vault, Kind: "VaultIssuer", Group: "issuers.example.com"}, "vaultissuers.issuers.example.com/" + vault, true},

		{"named with its namespace, the name in the mesh's", g.ns, ref{Name: "root"}, "issuers.cert-manager.io/" + g.ns + ".root", false},
		{"named with its namespace, the name in another", g.other, ref{Name: "root"}, "issuers.cert-manager.io/" + g.other + ".root", false},
		{"the mesh's name in that namespace", g.pki, ref{Name: "istio-ca"}, "issuers.cert-manager.io/" + g.pki + ".istio-ca", false},
		{"ClusterIssuer of the name", g.pki, ref{Name: "root", Kind: "ClusterIssuer"}, "clusterissuers.cert-manager.io/root", false},
		{"another group, of the name", g.pki, ref{Name: "root", Group: "issuers.example.com"}, "issuers.issuers.example.com/" + g.pki + ".root", false},
		{"of another group, the name in the mesh's", g.ns, ref{Name: "web"}, "vaultissuers.issuers.example.com/" + g.ns + "." + vault, false},
		{"Issuer of the same name elsewhere", g.other, ref{Name: "istio-ca"}, "issuers.cert-manager.io/" + g.other + ".istio-ca", false},
		{"another name", g.ns, ref{Name: "web"}, "issuers.cert-manager.io/" + g.ns + ".web", false},
		{"a name that begins alike", g.ns, ref{Name: "istio-ca-2"}, "issuers.cert-manager.io/" + g.ns + ".istio-ca-2", false},
		{"ClusterIssuer of the Issuer's name", g.ns, ref{Name: "istio-ca", Kind: "ClusterIssuer"}, "clusterissuers.cert-manager.io/istio-ca", false},
		{"Issuer of the ClusterIssuer's name", g.ns, ref{Name: gold, Kind: "Issuer"}, "issuers.cert-manager.io/" + g.ns + "." + gold, false},
		{"another group", g.ns, ref{Name: "istio-ca", Kind: "Issuer", Group: "issuers.example.com"}, "issuers.issuers.example.com/" + g.ns + ".istio-ca", false},
		{"another name of another group", g.ns, ref{Name: hsm + "-2", Kind: "HSMIssuer", Group: "issuers.example.com"}, "", false},
		{"a name of Kubernetes' own", g.ns, ref{Name: "kubelet"}, "kubernetes.io/kube-apiserver-client", false},
	}
	type actor struct {
		name    string
		client  client.Client
		allowed []string // kinds that it may make for the mesh's issuers
	}
	all := []string{"CertificateRequest", "Certificate", "CertificateSigningRequest"}
	actors := []actor{
		{"Signet", as(t, account(g.ns, "signet"), "system:serviceaccounts"), all},
		{"cert-manager", as(t, account("cert-manager", "cert-manager"), "system:serviceaccounts"), all[:1]},
		{"a user who is allowed", as(t, "alice"), all},
		{"one of a group that is allowed", as(t, "bob", "platform"), all},
		{"a user", as(t, "mallory"), nil},
		{"the cluster's administrator", as(t, "root", "system:masters"), nil},
		{"one whose group is called like a user", as(t, "mallory", "alice"), nil},
		{"one who is called like a group", as(t, "platform"), nil},
		{"another account of the namespace", as(t, account(g.ns, "default")), nil},
		{"Signet's reader", as(t, account(g.ns, "signet-reader")), nil},
		{"an account of Signet's name elsewhere", as(t, account(g.other, "signet")), nil},
		{"another account of cert-manager's namespace", as(t, account("cert-manager", "cert-manager-cainjector")), nil},
		{"an account of cert-manager's name elsewhere", as(t, account(g.other, "cert-manager")), nil},
	}
	for _, who := range actors {
		for _, ask := range asks {
			objects := map[string]client.Object{
				"CertificateRequest": request(t, ask.ns, ask.ref),
				"Certificate":        certificate(ask.ns, ask.ref),
			}
			if ask.signer != "" {
				objects["CertificateSigningRequest"] = kubernetesRequest(t, ask.signer)
			}
			for kind, object := range objects {
				refused, err := refusal(who.client.Create(t.Context(), object, client.DryRunAll), g.policy)
				assert.NoError(t, err, "%s asks by %s: %s", who.name, kind, ask.what)
				assert.Equal(t, ask.ours && !slices.Contains(who.allowed, kind), refused, "%s is refused to ask by %s: %s", who.name, kind, ask.what)
			}
		}
	}
	t.Run("updates", g.updates)
}

// updates are tried on what is there: to lead it to the mesh's issuer, to change it, to take it from there.
func (g guarded) updates(t *testing.T) {
	signet, mallory := as(t, account(g.ns, "signet")), as(t, "mallory")
	manager := as(t, account("cert-manager", "cert-manager"))
	ours, theirs := cmmeta.IssuerReference{Name: "istio-ca"}, cmmeta.IssuerReference{Name: "web"}
	create := func(by client.Client, object client.Object) {
		require.NoError(t, by.Create(t.Context(), object))
		t.Cleanup(func() { assert.NoError(t, plane.Client().Delete(context.WithoutCancel(t.Context()), object)) })
	}
	request1, request2 := request(t, g.ns, ours), request(t, g.ns, theirs)
	certificate1, certificate2 := certificate(g.ns, ours), certificate(g.ns, theirs)
	create(signet, request1)
	create(mallory, request2)
	create(signet, certificate1)
	create(mallory, certificate2)
	// One that another group's controller signs, with what Signet says of the caller.
	hsm := cmmeta.IssuerReference{Name: "hsm-" + g.ns, Kind: "HSMIssuer", Group: "issuers.example.com"}
	request3, certificate3 := request(t, g.ns, hsm), certificate(g.ns, hsm)
	request3.Annotations = map[string]string{"signet.dev/pod": "shop/cart-0", "istio.cert-manager.io/identities": "spiffe://cluster.local/ns/shop/sa/cart"}
	create(signet, request3)
	create(signet, certificate3)
	const (
		annotate = `{"metadata":{"annotations":{"signet.dev/pod":"forged"}}}`
		identify = `{"metadata":{"annotations":{"istio.cert-manager.io/identities":"forged"}}}`
		add      = `{"metadata":{"annotations":{"signet.dev/node":""}}}`
		remove   = `{"metadata":{"annotations":{"signet.dev/pod":null}}}`
		note     = `{"metadata":{"annotations":{"hsm.example.com/serial":"1"}}}`
		both     = `{"metadata":{"annotations":{"hsm.example.com/serial":"1"}},"spec":{"isCA":true}}`
		lead     = `{"spec":{"issuerRef":{"name":"istio-ca"}}}`
		away     = `{"spec":{"issuerRef":{"name":"web"}}}`
	)
	for _, test := range []struct {
		what    string
		by      client.Client
		object  client.Object
		patch   string
		refused bool
	}{
		{"annotate Signet's request", mallory, request1, annotate, true},
		{"annotate Signet's request, by Signet", signet, request1, annotate, false},
		{"annotate Signet's request, by cert-manager", manager, request1, annotate, false},
		{"annotate another's request", mallory, request2, annotate, false},
		{"lead a request to the mesh's issuer", mallory, request2, lead, true},
		{"lead a request away from the mesh's issuer", mallory, request1, away, false}, // no more than to delete it
		{"note on Signet's request what a signer of cert-manager doesn't", mallory, request1, note, true},
		{"note on Signet's request as another signer does", mallory, request3, note, false},
		{"the same and another request", mallory, request3, both, true},
		{"the same on a certificate", mallory, certificate3, note, true},
		{"annotate a request that another signs", mallory, request3, annotate, true},
		{"change the identities of a request that another signs", mallory, request3, identify, true},
		{"add an annotation of Signet's to a request that another signs", mallory, request3, add, true},
		{"remove an annotation of a request that another signs", mallory, request3, remove, true},
		{"annotate Signet's certificate", mallory, certificate1, annotate, true},
		{"annotate Signet's certificate, by Signet", signet, certificate1, annotate, false},
		{"annotate Signet's certificate, by cert-manager", manager, certificate1, annotate, true},
		{"annotate another's certificate", mallory, certificate2, annotate, false},
		{"lead a certificate to the mesh's issuer", mallory, certificate2, lead, true},
		{"lead a certificate there, by cert-manager", manager, certificate2, lead, true},
		{"lead a certificate away from the mesh's issuer", mallory, certificate1, away, false},
	} {
		object := test.object.DeepCopyObject().(client.Object)
		refused, err := refusal(test.by.Patch(t.Context(), object, client.RawPatch("application/merge-patch+json", []byte(test.patch)), client.DryRunAll), g.policy)
		assert.NoError(t, err, test.what)
		assert.Equal(t, test.refused, refused, test.what)
	}
}
