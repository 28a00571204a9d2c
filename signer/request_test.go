package signer

import (
	"crypto/x509/pkix"
	"encoding/pem"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-ca/signet/issuer"
)

func TestRequestName(t *testing.T) {
	key := newKey(t)
	req := newRequest(t, key)
	name := req.name(mesh, 1)
	assert.Regexp(t, `^signet-[0-9a-f]{40}-1$`, name)
	bob := IdentityNames(spiffeid.RequireFromString("spiffe://cluster.local/ns/foo/sa/bob"))

	for what, change := range map[string]func(r *Request, ref *issuer.Ref, attempt *int){
		"annotations":  func(r *Request, _ *issuer.Ref, _ *int) { r.Annotations = map[string]string{"a": "b"} },
		"max lifetime": func(r *Request, _ *issuer.Ref, _ *int) { r.MaxLifetime = 2 * time.Hour },
	} {
		again, ref, attempt := *req, mesh, 1
		change(&again, &ref, &attempt)
		assert.Equal(t, name, again.name(ref, attempt), "%s must not change the name", what)
	}

	seen := map[string]string{name: "the first"}
	for what, change := range map[string]func(r *Request, ref *issuer.Ref, attempt *int){
		"issuer":      func(_ *Request, ref *issuer.Ref, _ *int) { ref.Name = "other" },
		"kind":        func(_ *Request, ref *issuer.Ref, _ *int) { ref.Kind = "ClusterIssuer" },
		"group":       func(_ *Request, ref *issuer.Ref, _ *int) { ref.Group = "example.org" },
		"group moved": func(_ *Request, ref *issuer.Ref, _ *int) { ref.Group, ref.Kind = "cert-manager.ioI", "ssuer" },
		"identity":    func(r *Request, _ *issuer.Ref, _ *int) { r.Names = bob },
		"no identity": func(r *Request, _ *issuer.Ref, _ *int) { r.Names = Names{} },
		"lifetime":    func(r *Request, _ *issuer.Ref, _ *int) { r.Lifetime++ },
		"attempt":     func(_ *Request, _ *issuer.Ref, attempt *int) { *attempt = 2 },
		"usages":      func(r *Request, _ *issuer.Ref, _ *int) { r.Usages = ServingUsages() },
		"usages order": func(r *Request, _ *issuer.Ref, _ *int) {
			r.Usages = Usages{r.Usages[0], r.Usages[1], r.Usages[3], r.Usages[2]}
		},
		"purpose": func(r *Request, _ *issuer.Ref, _ *int) { r.For = ForServing },
		"key":     func(r *Request, _ *issuer.Ref, _ *int) { r.CSR = newCSR(t, newKey(t), r.Names, pkix.Name{}) },
		"CSR":     func(r *Request, _ *issuer.Ref, _ *int) { r.CSR = newCSR(t, key, r.Names, pkix.Name{}) },
	} {
		other, ref, attempt := *req, mesh, 1
		change(&other, &ref, &attempt)
		got := other.name(ref, attempt)
		assert.Empty(t, seen[got], "%s must change the name", what)
		seen[got] = what
	}
}

// The name must not change from one release to the next: during an upgrade both replicas sign.
func TestRequestNameIsStable(t *testing.T) {
	req := newRequest(t, newKey(t))
	req.CSR.Raw = []byte("the bytes of a CSR") // of which only the bytes count
	assert.Equal(t, "signet-a2ecad619b656a79d6f191396a7b4adc47bbeb80-1", req.name(mesh, 1))
}

func TestCertificateRequest(t *testing.T) {
	req := newRequest(t, newKey(t))
	req.Annotations = map[string]string{IdentitiesAnnotation: alice.String()}
	cr := req.certificateRequest("istio-system", mesh, 3, 30*time.Minute)
	assert.Equal(t, &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   "istio-system",
			Name:        req.name(mesh, 3),
			Labels:      map[string]string{"signet.dev/request": "workload"},
			Annotations: map[string]string{"istio.cert-manager.io/identities": alice.String()},
		},
		Spec: cmapi.CertificateRequestSpec{
			Duration:  &metav1.Duration{Duration: 30 * time.Minute}, // clamped; the name is not
			IssuerRef: cmmeta.IssuerReference{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"},
			Request:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: req.CSR.Raw}),
			Usages:    []cmapi.KeyUsage{"digital signature", "key encipherment", "client auth", "server auth"},
		},
	}, cr)
}

func TestDiffers(t *testing.T) {
	req := newRequest(t, newKey(t))
	want := req.certificateRequest("istio-system", mesh, 1, time.Hour)
	const us = "system:serviceaccount:istio-system:signet"
	for _, row := range []struct {
		name   string
		change func(found *cmapi.CertificateRequest)
		want   string // "" is ours
	}{
		{"the same", func(*cmapi.CertificateRequest) {}, ""},
		{"made by us", func(f *cmapi.CertificateRequest) { f.Spec.Username = us }, ""},
		{"issuer by its defaults", func(f *cmapi.CertificateRequest) { f.Spec.IssuerRef.Kind, f.Spec.IssuerRef.Group = "", "" }, ""},
		{"clamped shorter", func(f *cmapi.CertificateRequest) { f.Spec.Duration.Duration = time.Minute }, ""},
		{"other annotations and status", func(f *cmapi.CertificateRequest) {
			f.Annotations, f.Status.Certificate = map[string]string{"a": "b"}, []byte("x")
		}, ""},
		{"made by somebody else", func(f *cmapi.CertificateRequest) { f.Spec.Username = "mallory" }, `it was made by "mallory"`},
		{"without our label", func(f *cmapi.CertificateRequest) { f.Labels = nil }, "its label signet.dev/request is not ours"},
		{"for another purpose", func(f *cmapi.CertificateRequest) { f.Labels[RequestLabel] = ForServing }, "its label signet.dev/request is not ours"},
		{"another CSR", func(f *cmapi.CertificateRequest) { f.Spec.Request[40] ^= 1 }, "its CSR is another"},
		{"CSR and more", func(f *cmapi.CertificateRequest) { f.Spec.Request = append(f.Spec.Request, '\n') }, "its CSR is another"},
		{"another issuer", func(f *cmapi.CertificateRequest) { f.Spec.IssuerRef.Name = "other" }, "its issuer is another"},
		{"another kind", func(f *cmapi.CertificateRequest) { f.Spec.IssuerRef.Kind = "ClusterIssuer" }, "its issuer is another"},
		{"another group", func(f *cmapi.CertificateRequest) { f.Spec.IssuerRef.Group = "example.org" }, "its issuer is another"},
		{"CA", func(f *cmapi.CertificateRequest) { f.Spec.IsCA = true }, "it asks for a CA certificate"},
		{"usage more", func(f *cmapi.CertificateRequest) { f.Spec.Usages = append(f.Spec.Usages, cmapi.UsageCertSign) }, "its usages are others"},
		{"usage less", func(f *cmapi.CertificateRequest) { f.Spec.Usages = f.Spec.Usages[1:] }, "its usages are others"},
		{"no usages", func(f *cmapi.CertificateRequest) { f.Spec.Usages = nil }, "its usages are others"},
		{"longer", func(f *cmapi.CertificateRequest) { f.Spec.Duration.Duration++ }, "its duration is another"},
		{"no duration", func(f *cmapi.CertificateRequest) { f.Spec.Duration = nil }, "its duration is another"},
		{"negative duration", func(f *cmapi.CertificateRequest) { f.Spec.Duration.Duration = -1 }, "its duration is another"},
	} {
		t.Run(row.name, func(t *testing.T) {
			found := want.DeepCopy()
			row.change(found)
			assert.Equal(t, row.want, differs(found, want, us, time.Hour))
		})
	}
}
