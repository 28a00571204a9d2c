package rotation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
)

// IstiodConfig is istiod's serving certificate: a cert-manager Certificate that Signet writes, and
// whose Secret istiod mounts.
type IstiodConfig struct {
	// Enabled makes Signet write the Certificate. Default false.
	Enabled bool `json:"enabled,omitempty"`
	// Namespace that istiod runs in. An issuer of kind Issuer must be there. Default istio-system.
	Namespace string `json:"namespace,omitempty"`
	// Name of the Certificate. Default istiod-dynamic.
	Name string `json:"name,omitempty"`
	// SecretName is the Secret that cert-manager writes. Default istiod-tls, which istiod's chart
	// mounts.
	SecretName string `json:"secretName,omitempty"`
	// Revisions of istiod that are always served, by istiod-<revision>.<namespace>.svc; default stands
	// for istiod.<namespace>.svc. More are found in the cluster, by the label istio.io/rev of istiod's
	// Deployments and the labels istio.io/rev and istio.io/tag of MutatingWebhookConfigurations.
	// Default [default].
	Revisions []string `json:"revisions,omitempty"`
	// Lifetime that is asked for; cert-manager wants 1h at least. Default 24h.
	Lifetime setting.Duration `json:"lifetime,omitempty"`
	// RenewBefore is how long before its end the certificate is renewed; cert-manager wants 5m at least.
	// It must be below lifetime. Default a third of lifetime.
	RenewBefore setting.Duration `json:"renewBefore,omitempty"`
	// Key is the kind of key: ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072 or RSA-4096. Default RSA-2048,
	// as that of a certificate that istiod's own CA makes. Each certificate gets a key of its own.
	Key string `json:"key,omitempty"`
	// DNSNames are further names, such as those in ISTIOD_CUSTOM_HOST. Optional.
	DNSNames []string `json:"dnsNames,omitempty"`
	// Annotations of the Certificate, for approvers and other tools. Optional.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// istiodKeys are the kinds of key by the name that the configuration has for them.
var istiodKeys = map[string]cmapi.CertificatePrivateKey{
	"ECDSA-P256": {Algorithm: cmapi.ECDSAKeyAlgorithm, Size: 256},
	"ECDSA-P384": {Algorithm: cmapi.ECDSAKeyAlgorithm, Size: 384},
	"RSA-2048":   {Algorithm: cmapi.RSAKeyAlgorithm, Size: 2048},
	"RSA-3072":   {Algorithm: cmapi.RSAKeyAlgorithm, Size: 3072},
	"RSA-4096":   {Algorithm: cmapi.RSAKeyAlgorithm, Size: 4096},
}

// defaultRevision is the revision without a name of its own in the name of istiod's Service.
const defaultRevision = "default"

func (c IstiodConfig) withDefaults() IstiodConfig {
	c.Namespace = cmp.Or(c.Namespace, "istio-system")
	c.Name = cmp.Or(c.Name, "istiod-dynamic")
	c.SecretName = cmp.Or(c.SecretName, "istiod-tls")
	c.Key = cmp.Or(c.Key, "RSA-2048")
	c.Lifetime = setting.DurationOf(c.Lifetime.Or(24 * time.Hour))
	c.RenewBefore = setting.DurationOf(c.RenewBefore.Or((c.Lifetime.Or(0) / 3).Truncate(time.Second)))
	if len(c.Revisions) == 0 {
		c.Revisions = []string{defaultRevision}
	}
	return c
}

// Certificate names the Certificate.
func (c IstiodConfig) Certificate() (namespace, name string) {
	c = c.withDefaults()
	return c.Namespace, c.Name
}

// Validate reports what is wrong with c.
func (c IstiodConfig) Validate(p setting.Problems) {
	if c.Namespace != "" && len(validation.IsDNS1123Label(c.Namespace)) != 0 {
		p.Addf("namespace", "%q is not the name of a namespace", c.Namespace)
	}
	if c.Name != "" && len(validation.IsDNS1123Subdomain(c.Name)) != 0 {
		p.Addf("name", "%q is not the name of a Certificate", c.Name)
	}
	if c.SecretName != "" && len(validation.IsDNS1123Subdomain(c.SecretName)) != 0 {
		p.Addf("secretName", "%q is not the name of a Secret", c.SecretName)
	}
	for _, revision := range c.Revisions {
		if !isRevision(revision) {
			p.Addf("revisions", "%q is not a revision; it must be what follows istiod- in the name of a Service, or default", revision)
		}
	}
	p.Duration("lifetime", c.Lifetime, cmapi.MinimumCertificateDuration, 10*365*24*time.Hour)
	p.Duration("renewBefore", c.RenewBefore, cmapi.MinimumRenewBefore, 10*365*24*time.Hour)
	if lifetime := c.Lifetime.Or(24 * time.Hour); c.RenewBefore.Or(0) >= lifetime {
		p.Addf("renewBefore", "%s is not below the lifetime of %s", c.RenewBefore.Or(0), lifetime)
	}
	if _, ok := istiodKeys[cmp.Or(c.Key, "RSA-2048")]; !ok {
		p.Addf("key", "%q is no kind of key; they are ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072, RSA-4096", c.Key)
	}
	for _, name := range c.DNSNames {
		if len(validation.IsDNS1123Subdomain(name)) != 0 {
			p.Addf("dnsNames", "%q is not a DNS name", name)
		}
	}
	for _, problem := range apivalidation.ValidateAnnotations(c.Annotations, field.NewPath("annotations")) {
		p.Addf("annotations", "%s", problem.ErrorBody())
	}
}

// isRevision says whether a Service of istiod can be named after revision.
func isRevision(revision string) bool {
	return len(validation.IsDNS1123Label(revision)) == 0 && len(validation.IsDNS1123Label("istiod-"+revision)) == 0
}

// found is what the cluster says of istiod's revisions, in any order and with repetitions.
type found struct {
	revisions []string // values of istio.io/rev
	tags      []string // values of istio.io/tag
}

// names are the DNS names of istiod's certificate (R59), sorted and without repetitions. A tag is
// served by a Service of its own, besides being usable as a revision. What can't be in the name of a
// Service is left out.
func (c IstiodConfig) names(f found) []string {
	services := []string{"istiod", "istiod-remote", "istio-pilot"}
	for _, revision := range slices.Concat(c.Revisions, f.revisions, f.tags) {
		if revision != defaultRevision && isRevision(revision) {
			services = append(services, "istiod-"+revision)
		}
	}
	for _, tag := range f.tags {
		if service := "istiod-revision-tag-" + tag; len(validation.IsDNS1123Label(service)) == 0 {
			services = append(services, service)
		}
	}
	names := slices.Clone(c.DNSNames)
	for _, service := range services {
		names = append(names, service+"."+c.Namespace+".svc")
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// kept adds to names those of earlier that name a revision: for as long as the cluster has not said
// which revisions there are, none is taken away.
func (c IstiodConfig) kept(names, earlier []string) []string {
	for _, name := range earlier {
		if strings.HasPrefix(name, "istiod-") && strings.HasSuffix(name, "."+c.Namespace+".svc") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// certificate is the Certificate as it should be. Istiod only serves with it, and the mesh's own
// issuer signs it, so that it must not pass for a client's.
func (c IstiodConfig) certificate(ref issuer.Ref, names []string) *cmapi.Certificate {
	key := istiodKeys[c.Key]
	key.RotationPolicy = cmapi.RotationPolicyAlways
	return &cmapi.Certificate{
		TypeMeta:   metav1.TypeMeta{APIVersion: cmapi.SchemeGroupVersion.String(), Kind: cmapi.CertificateKind},
		ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Name, Annotations: c.Annotations},
		Spec: cmapi.CertificateSpec{
			SecretName:           c.SecretName,
			IssuerRef:            ref.WithDefaults().Reference(),
			DNSNames:             names,
			Duration:             &metav1.Duration{Duration: c.Lifetime.Or(0)},
			RenewBefore:          &metav1.Duration{Duration: c.RenewBefore.Or(0)},
			PrivateKey:           &key,
			Usages:               []cmapi.KeyUsage{cmapi.UsageServerAuth, cmapi.UsageDigitalSignature, cmapi.UsageKeyEncipherment},
			RevisionHistoryLimit: new(int32(1)),
		},
	}
}

// drift says in which fields the Certificate that is there isn't as it should be; "" where it is.
// What others may add without harm, such as a template for the Secret, isn't compared.
func drift(is, want *cmapi.Certificate) string {
	var differ []string
	compare := func(name string, is, want any) {
		if !equality.Semantic.DeepEqual(is, want) {
			differ = append(differ, name)
		}
	}
	for name, value := range want.Annotations {
		compare("annotation "+name, is.Annotations[name], value)
	}
	slices.Sort(differ)
	a, b := is.Spec, want.Spec
	compare("secretName", a.SecretName, b.SecretName)
	compare("issuerRef", issuer.Ref(a.IssuerRef).WithDefaults(), issuer.Ref(b.IssuerRef))
	compare("dnsNames", a.DNSNames, b.DNSNames)
	compare("uris", a.URIs, b.URIs)
	compare("ipAddresses", a.IPAddresses, b.IPAddresses)
	compare("emailAddresses", a.EmailAddresses, b.EmailAddresses)
	compare("commonName", a.CommonName, b.CommonName)
	compare("isCA", a.IsCA, b.IsCA)
	compare("duration", a.Duration, b.Duration)
	compare("renewBefore", a.RenewBefore, b.RenewBefore)
	compare("usages", a.Usages, b.Usages)
	compare("revisionHistoryLimit", a.RevisionHistoryLimit, b.RevisionHistoryLimit)
	var key cmapi.CertificatePrivateKey
	if a.PrivateKey != nil {
		key = *a.PrivateKey
		key.Encoding = b.PrivateKey.Encoding // istiod reads them all
	}
	compare("privateKey", key, *b.PrivateKey)
	return strings.Join(differ, ", ")
}

// applied is want as it is applied. Fields that would put more into the certificate are in it, empty,
// so that they are ours too; a Certificate of istio-csr, for one, has an identity of the mesh among
// its URIs, by which istiod's key would pass for a workload's.
func applied(want *cmapi.Certificate) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(want)
	if err != nil {
		return nil, fmt.Errorf("convert Certificate %s/%s: %w", want.Namespace, want.Name, err)
	}
	delete(content, "status")
	object := &unstructured.Unstructured{Object: content}
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	for name, value := range map[string]any{
		"uris": []any{}, "ipAddresses": []any{}, "emailAddresses": []any{}, "commonName": "", "isCA": false,
	} {
		if err := unstructured.SetNestedField(content, value, "spec", name); err != nil {
			return nil, fmt.Errorf("convert Certificate %s/%s: %w", want.Namespace, want.Name, err)
		}
	}
	return object, nil
}
