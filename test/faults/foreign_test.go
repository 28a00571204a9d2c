package faults

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/testca"
)

// requestLabel marks the CertificateRequests that are Signet's.
const requestLabel = "signet.dev/request"

// TestForeignObjects: whoever guesses the name of a CertificateRequest can't put an answer under it:
// only an object that asks for exactly the same, and was made by us, is trusted.
func TestForeignObjects(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, map[string]any{"signer.sweep.keep": "10m"}) // a planted one that is answered must not be swept before it is met
	c := dial(t, r, m.root.PEM())
	ours := "system:serviceaccount:" + m.ns + ":signet"
	other := m.workload(t, "other")

	for _, test := range []struct {
		name   string
		change func(cr *cmapi.CertificateRequest)
		code   codes.Code
		why    string
	}{
		{"the same", func(*cmapi.CertificateRequest) {}, codes.OK, ""},
		{"the same by us", func(cr *cmapi.CertificateRequest) { cr.Spec.Username = ours }, codes.OK, ""},
		{"a shorter duration", func(cr *cmapi.CertificateRequest) { cr.Spec.Duration.Duration = 30 * time.Minute }, codes.OK, ""},
		{"by somebody else", func(cr *cmapi.CertificateRequest) { cr.Spec.Username = "system:serviceaccount:default:mallory" }, codes.FailedPrecondition, "mallory"},
		{"another CSR", func(cr *cmapi.CertificateRequest) { cr.Spec.Request = []byte(other.csr) }, codes.FailedPrecondition, "CSR"},
		{"another issuer", func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef.Name = "mallorys" }, codes.FailedPrecondition, "issuer"},
		{"another kind of issuer", func(cr *cmapi.CertificateRequest) { cr.Spec.IssuerRef.Kind = "ClusterIssuer" }, codes.FailedPrecondition, "issuer"},
		{"a CA certificate", func(cr *cmapi.CertificateRequest) { cr.Spec.IsCA = true }, codes.FailedPrecondition, "CA"},
		{"other usages", func(cr *cmapi.CertificateRequest) { cr.Spec.Usages = append(cr.Spec.Usages, cmapi.UsageCertSign) }, codes.FailedPrecondition, "usages"},
		{"no usages", func(cr *cmapi.CertificateRequest) { cr.Spec.Usages = nil }, codes.FailedPrecondition, "usages"},
		{"a longer duration", func(cr *cmapi.CertificateRequest) { cr.Spec.Duration.Duration = 2 * time.Hour }, codes.FailedPrecondition, "duration"},
		{"no duration", func(cr *cmapi.CertificateRequest) { cr.Spec.Duration = nil }, codes.FailedPrecondition, "duration"},
		{"without our label", func(cr *cmapi.CertificateRequest) { cr.Labels = nil }, codes.FailedPrecondition, "label"},
		{"labelled as our own certificate", func(cr *cmapi.CertificateRequest) { cr.Labels[requestLabel] = "serving" }, codes.FailedPrecondition, "label"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			// The first answer tells the name; then it is deleted, and somebody takes the name.
			w := m.workload(t, accountFor(t))
			chain, err := w.ask(t.Context(), c)
			first := w.issued(t, m.root.PEM(), chain, err)
			seen := m.issuer.Seen(w.id.String())
			require.Len(t, seen, 1)
			require.NoError(t, plane.Client().Delete(t.Context(), seen[0]))

			planted := &cmapi.CertificateRequest{ObjectMeta: metav1.ObjectMeta{
				Namespace: m.ns, Name: seen[0].Name, Labels: seen[0].Labels, Annotations: seen[0].Annotations,
			}, Spec: *seen[0].Spec.DeepCopy()}
			// What is not to be trusted is not answered either, so that nothing but Signet can touch it.
			m.issuer.Behave(w.id.String(), func(ctx context.Context, ask testca.Ask) (testca.Answer, error) {
				if test.code == codes.OK {
					return testca.Good(m.root)(ctx, ask)
				}
				return testca.Answer{}, nil
			})
			test.change(planted)
			require.NoError(t, plane.Client().Create(t.Context(), planted))
			if test.code != codes.OK && planted.Spec.IssuerRef.Group == testca.Group {
				patiently.Holds(t, func() bool {
					var found cmapi.CertificateRequest
					require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKeyFromObject(planted), &found))
					planted.ResourceVersion = found.ResourceVersion
					return len(found.Status.Conditions) == 2
				}, "the issuer has seen it")
			}

			chain, err = w.ask(t.Context(), c)
			if test.code == codes.OK {
				assert.NotEqual(t, first.SerialNumber, w.issued(t, m.root.PEM(), chain, err).SerialNumber)
				assert.Len(t, m.issuer.Seen(w.id.String()), 2, "the planted one is used")
				return
			}
			refused(t, test.code, chain, err)
			assert.Contains(t, refusalLine(t, r, w), test.why)
			var after cmapi.CertificateRequest
			require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKeyFromObject(planted), &after))
			assert.Equal(t, planted.UID, after.UID)
			assert.Equal(t, planted.ResourceVersion, after.ResourceVersion, "it is untouched")
			require.NoError(t, plane.Client().Delete(t.Context(), planted))
		})
	}
}

// policies emulate what cert-manager's webhook does to CertificateRequests in one namespace, and
// refuse one caller.
const policies = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata:
  name: NAME
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    namespaceSelector:
      matchLabels: {kubernetes.io/metadata.name: NAME}
    resourceRules:
      - {apiGroups: [cert-manager.io], apiVersions: [v1], operations: [CREATE], resources: [certificaterequests]}
  mutations:
    - patchType: JSONPatch
      jsonPatch:
        expression: '[JSONPatch{op: "add", path: "/spec/username", value: request.userInfo.username}]'
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata:
  name: NAME
spec:
  policyName: NAME
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: NAME
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector:
      matchLabels: {kubernetes.io/metadata.name: NAME}
    resourceRules:
      - {apiGroups: [cert-manager.io], apiVersions: [v1], operations: [CREATE], resources: [certificaterequests]}
  validations:
    - expression: >-
        object.metadata.labels['signet.dev/request'] == 'serving'
        ? object.spec.usages == ['digital signature', 'key encipherment', 'server auth']
        : object.spec.usages == ['digital signature', 'key encipherment', 'client auth', 'server auth']
      message: encoded usages don't match
    - expression: "!has(object.metadata.annotations) || !('signet.dev/caller' in object.metadata.annotations) || !object.metadata.annotations['signet.dev/caller'].endsWith('/mallory')"
      message: mallory gets no certificates
      reason: REASON
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: NAME
spec:
  policyName: NAME
  validationActions: [Deny]
`

// TestAdmissionPolicies: with the effects of cert-manager's webhook everything works, and a policy
// that refuses a CertificateRequest is an answer.
func TestAdmissionPolicies(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{"Invalid", "Forbidden"} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, plane)
			text := bytes.ReplaceAll([]byte(policies), []byte("NAME"), []byte(m.ns))
			require.NoError(t, plane.Apply(t.Context(), bytes.ReplaceAll(text, []byte("REASON"), []byte(reason))))
			mallory := m.workload(t, "mallory")
			probe := func(caller string) (*cmapi.CertificateRequest, error) {
				cr := &cmapi.CertificateRequest{
					ObjectMeta: metav1.ObjectMeta{
						Namespace: m.ns, Name: "probe", Labels: map[string]string{requestLabel: "workload"},
						Annotations: map[string]string{"signet.dev/caller": m.ns + "/" + caller},
					},
					Spec: cmapi.CertificateRequestSpec{Request: []byte(mallory.csr), Usages: []cmapi.KeyUsage{"digital signature", "key encipherment", "client auth", "server auth"}},
				}
				cr.Spec.IssuerRef.Name = "nobody"
				return cr, plane.Client().Create(t.Context(), cr, client.DryRunAll)
			}
			patiently.Holds(t, func() bool {
				cr, err := probe("alice")
				_, denied := probe("mallory")
				return err == nil && cr.Spec.Username != "" && denied != nil
			}, "the policies are in force")

			r := m.start(t, map[string]any{"signer.sweep.keep": "5m"})
			c := dial(t, r, m.root.PEM())
			alice := m.workload(t, "alice")
			chain, err := alice.ask(t.Context(), c)
			first := alice.issued(t, m.root.PEM(), chain, err)
			found := alice.requests(t)
			require.Len(t, found, 1)
			assert.Equal(t, "system:serviceaccount:"+m.ns+":signet", found[0].Spec.Username)
			chain, err = alice.ask(t.Context(), c) // meets the first
			assert.Equal(t, first.SerialNumber, alice.issued(t, m.root.PEM(), chain, err).SerialNumber)

			chain, err = mallory.ask(t.Context(), c)
			refused(t, codes.FailedPrecondition, chain, err)
			assert.Contains(t, refusalLine(t, r, mallory), "mallory gets no certificates")
			assert.Empty(t, mallory.requests(t))
			assert.Empty(t, m.issuer.Seen(mallory.id.String()))

			// An object of the right name that somebody else made, with an answer of the issuer: it is not
			// ours, and is neither used nor deleted.
			bob := m.workload(t, "bob")
			m.issuer.Behave(bob.id.String(), testca.First(1, testca.Always(testca.Deleted, ""), testca.Good(m.root))) // frees the name
			chain, err = bob.ask(t.Context(), c)
			bob.issued(t, m.root.PEM(), chain, err)
			seen := m.issuer.Seen(bob.id.String())
			require.Len(t, seen, 2)
			planted := &cmapi.CertificateRequest{ObjectMeta: metav1.ObjectMeta{
				Namespace: m.ns, Name: seen[0].Name, Labels: seen[0].Labels, Annotations: seen[0].Annotations,
			}, Spec: *seen[0].Spec.DeepCopy()}
			require.NoError(t, plane.Client().Create(t.Context(), planted))
			require.NotEqual(t, fmt.Sprintf("system:serviceaccount:%s:signet", m.ns), planted.Spec.Username)
			chain, err = bob.ask(t.Context(), c)
			refused(t, codes.FailedPrecondition, chain, err)
			assert.Contains(t, refusalLine(t, r, bob), "it was made by")
			var after cmapi.CertificateRequest
			require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKeyFromObject(planted), &after))
			assert.Equal(t, planted.UID, after.UID)
		})
	}
}
