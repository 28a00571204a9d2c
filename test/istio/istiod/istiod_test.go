package istiod

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/metadata"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/rotation"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// certificateOf is istiod's Certificate in a namespace.
func certificateOf(ctx context.Context, ns string) (*certmanager.Certificate, error) {
	object := &certmanager.Certificate{}
	return object, plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: "istiod-dynamic"}, object)
}

// awaitReady waits until the keeper says that istiod's Secret is as the Certificate asks for it.
func awaitReady(t *testing.T, k *keeper) rotation.IstiodStatus {
	t.Helper()
	patiently.Until(t, "istiod's Certificate is not ready", func(context.Context) error {
		if status := k.Status(); !status.Ready {
			return errors.New(status.String())
		}
		return nil
	})
	return k.Status()
}

// secretLeaf is the certificate in istiod's Secret.
func secretLeaf(t *testing.T, ns string) *x509.Certificate {
	t.Helper()
	secret := &corev1.Secret{}
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "istiod-tls"}, secret))
	return parse(t, secret.Data["tls.crt"])
}

// mesh is a namespace with all of Signet's part in it, before istiod starts. The namespace is
// istio-system, so that tests with a mesh run one after the other.
func mesh(t *testing.T, cfg rotation.IstiodConfig) *keeper {
	t.Helper()
	allow(t, namespace, rights, rightsToRevisions)
	publish(t, namespace, oldRoot)
	k := keep(t, namespace, cfg)
	// What another test has left is ready at once, with other names.
	want := append([]string{"istio-pilot.istio-system.svc", "istiod-remote.istio-system.svc"}, cfg.DNSNames...)
	if len(cfg.Revisions) == 0 || slices.Contains(cfg.Revisions, "default") {
		want = append(want, "istiod.istio-system.svc")
	}
	for _, revision := range cfg.Revisions {
		if revision != "default" {
			want = append(want, "istiod-"+revision+".istio-system.svc")
		}
	}
	slices.Sort(want)
	key := x509.RSA
	if strings.HasPrefix(cfg.Key, "ECDSA") {
		key = x509.ECDSA
	}
	patiently.Until(t, "istiod's Secret is as it should be", func(ctx context.Context) error {
		if status := k.Status(); !status.Ready || !slices.Equal(want, status.DNSNames) {
			return errors.New(status.String())
		}
		object, err := certificateOf(ctx, namespace)
		if err != nil {
			return err
		}
		leaf := secretLeaf(t, namespace)
		if got := slices.Sorted(slices.Values(leaf.DNSNames)); !slices.Equal(want, got) || leaf.PublicKeyAlgorithm != key {
			return fmt.Errorf("it has %q and a key of %s", got, leaf.PublicKeyAlgorithm)
		}
		if !ready(object) || object.Spec.IssuerRef.Name != "istio-ca" || !object.Status.NotAfter.Time.Equal(leaf.NotAfter) {
			return fmt.Errorf("its Certificate is %+v", object.Status)
		}
		return nil
	})
	return k
}

// TestR58_IstiodServesOurCertificate: the Secret is there before istiod, which therefore opens its
// secure port, and serves what is in it.
func TestR58_IstiodServesOurCertificate(t *testing.T) {
	k := mesh(t, rotation.IstiodConfig{})
	istiod := startIstiod(t, namespace)
	leaf, err := handshake(t.Context(), istiod.xds(t), "istiod.istio-system.svc", oldRoot)
	require.NoError(t, err)
	assert.Equal(t, secretLeaf(t, namespace).SerialNumber, leaf.SerialNumber)
	assert.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, leaf.ExtKeyUsage)
	assert.Equal(t, x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment, leaf.KeyUsage)
	assert.False(t, leaf.IsCA)
	assert.Empty(t, leaf.URIs)
	assert.Equal(t, "RSA", leaf.PublicKeyAlgorithm.String())

	status := k.Status()
	assert.Equal(t, leaf.NotBefore.Unix(), status.NotBefore.Unix())
	assert.Equal(t, leaf.NotAfter.Unix(), status.NotAfter.Unix())
	assert.Equal(t, "istio-ca", status.Issuer.Name)
	families, err := k.registry.Gather()
	require.NoError(t, err)
	values := make(map[string]float64)
	for _, family := range families {
		values[family.GetName()] = family.GetMetric()[0].GetGauge().GetValue()
	}
	assert.Equal(t, map[string]float64{
		"signet_istiod_certificate_not_after_timestamp_seconds": float64(leaf.NotAfter.Unix()),
		"signet_istiod_certificate_ready":                       1,
	}, values)
}

// TestR58_WithoutFilesTheSecurePortIsShut: why the Certificate must come first.
func TestR58_WithoutFilesTheSecurePortIsShut(t *testing.T) {
	ns := plane.NewNamespace(t, "bare")
	istiod := startIstiod(t, ns) // it serves its webhooks' port, so its listeners are all open
	log, err := os.ReadFile(istiod.proc.Log())
	require.NoError(t, err)
	assert.Contains(t, string(log), "secure discovery service is disabled")
	address, err := istiod.logged("starting secure gRPC discovery service at")
	require.NoError(t, err)
	assert.Empty(t, address)
}

// TestR59_NamesOfAllRevisions: a revision, or a tag, that appears while istiod runs is served shortly
// after; one that is gone is forgotten.
func TestR59_NamesOfAllRevisions(t *testing.T) {
	k := mesh(t, rotation.IstiodConfig{Revisions: []string{"default", "1-30"}, DNSNames: []string{"istiod.example.com"}})
	istiod := startIstiod(t, namespace)
	serves := func(names ...string) {
		t.Helper()
		want := append([]string{
			"istiod.istio-system.svc", "istiod-1-30.istio-system.svc", "istiod-remote.istio-system.svc",
			"istio-pilot.istio-system.svc", "istiod.example.com",
		}, names...)
		patiently.Until(t, "istiod's names", func(ctx context.Context) error {
			leaf, err := handshake(ctx, istiod.xds(t), "istiod.istio-system.svc", oldRoot)
			if err != nil {
				return err
			}
			if !assert.ElementsMatch(silent{}, want, leaf.DNSNames) {
				return fmt.Errorf("istiod serves %q, want %q", leaf.DNSNames, want)
			}
			return nil
		})
		for _, name := range want {
			_, err := handshake(t.Context(), istiod.xds(t), name, oldRoot)
			assert.NoError(t, err)
		}
	}
	serves()

	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "istiod"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "discovery", Image: "example.invalid/pilot"}}},
	}
	canary := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "istiod-canary", Labels: map[string]string{"app": "istiod", "istio.io/rev": "canary"}},
		Spec:       appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: template.Labels}, Template: template},
	}
	other := canary.DeepCopy() // not istiod
	other.Name, other.Labels = "other", map[string]string{"app": "other", "istio.io/rev": "other"}
	require.NoError(t, plane.Client().Create(t.Context(), other))
	require.NoError(t, plane.Client().Create(t.Context(), canary))
	serves("istiod-canary.istio-system.svc")

	tag := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{
		Name: "istio-revision-tag-prod", Labels: map[string]string{"istio.io/rev": "1-31", "istio.io/tag": "prod"},
	}}
	odd := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "odd", Labels: map[string]string{"istio.io/rev": "No_Service.1"}}}
	require.NoError(t, plane.Client().Create(t.Context(), odd))
	require.NoError(t, plane.Client().Create(t.Context(), tag))
	t.Cleanup(func() {
		for _, object := range []client.Object{odd, tag, other, canary} {
			assert.NoError(t, client.IgnoreNotFound(plane.Client().Delete(context.Background(), object)))
		}
	})
	serves("istiod-canary.istio-system.svc", "istiod-1-31.istio-system.svc", "istiod-prod.istio-system.svc", "istiod-revision-tag-prod.istio-system.svc")

	require.NoError(t, plane.Client().Delete(t.Context(), canary))
	require.NoError(t, plane.Client().Delete(t.Context(), tag))
	serves()
	awaitReady(t, k)
}

// silent is a test that may fail.
type silent struct{}

func (silent) Errorf(string, ...any) {}

// TestR58_RepairsTheCertificate: what others change or delete is put right, but for what does no harm.
func TestR58_RepairsTheCertificate(t *testing.T) {
	ns := plane.NewNamespace(t, "repair")
	_, err := plane.BootstrapCA(t.Context(), ns, "istio-ca", controlplane.CAOptions{})
	require.NoError(t, err)
	// What istio-csr leaves behind: the same Certificate, with an identity of the mesh in it.
	require.NoError(t, plane.Client().Create(t.Context(), &certmanager.Certificate{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "istiod-dynamic", Labels: map[string]string{"from": "istio-csr"}},
		Spec: certmanager.CertificateSpec{
			SecretName: "istiod-tls", IssuerRef: cmmeta.IssuerReference{Name: "istio-ca"}, CommonName: "istiod." + ns + ".svc",
			DNSNames: []string{"istiod." + ns + ".svc"}, URIs: []string{"spiffe://cluster.local/ns/" + ns + "/sa/istiod-service-account"},
			Duration: &metav1.Duration{Duration: time.Hour}, RenewBefore: &metav1.Duration{Duration: 30 * time.Minute},
			PrivateKey: &certmanager.CertificatePrivateKey{Algorithm: certmanager.RSAKeyAlgorithm, Size: 2048},
		},
	}))
	allow(t, ns, rights, rightsToRevisions)
	keep(t, ns, rotation.IstiodConfig{Annotations: map[string]string{"example.com/team": "mesh"}})
	var good *certmanager.Certificate
	asWanted := func(ctx context.Context) error {
		object, err := certificateOf(ctx, ns)
		if err != nil {
			return err
		}
		s := object.Spec
		right := len(s.DNSNames) == 3 && len(s.URIs) == 0 && len(s.IPAddresses) == 0 && s.CommonName == "" && !s.IsCA &&
			s.IssuerRef.Name == "istio-ca" && s.Duration.Duration == 24*time.Hour && s.RenewBefore.Duration == 8*time.Hour &&
			s.SecretName == "istiod-tls" && s.PrivateKey.RotationPolicy == certmanager.RotationPolicyAlways && len(s.Usages) == 3 &&
			object.Annotations["example.com/team"] == "mesh"
		if !right {
			return fmt.Errorf("the Certificate is %+v", s)
		}
		good = object
		return nil
	}
	patiently.Until(t, "the Certificate that was there is taken over", asWanted)
	assert.Equal(t, "istio-csr", good.Labels["from"])
	patiently.Until(t, "the identity is still in the Secret", func(ctx context.Context) error {
		secret := &corev1.Secret{}
		if err := plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: "istiod-tls"}, secret); err != nil {
			return err
		}
		if leaf := parse(t, secret.Data["tls.crt"]); len(leaf.URIs) > 0 || len(leaf.DNSNames) != 3 {
			return fmt.Errorf("names %q, URIs %q", leaf.DNSNames, leaf.URIs)
		}
		return nil
	})

	for name, change := range map[string]func(*certmanager.Certificate){
		"names":    func(c *certmanager.Certificate) { c.Spec.DNSNames = append(c.Spec.DNSNames, "evil.example.com") },
		"identity": func(c *certmanager.Certificate) { c.Spec.URIs = []string{"spiffe://cluster.local/ns/a/sa/b"} },
		"issuer":   func(c *certmanager.Certificate) { c.Spec.IssuerRef.Name = "other" },
		"CA":       func(c *certmanager.Certificate) { c.Spec.IsCA = true },
		"lifetime": func(c *certmanager.Certificate) {
			c.Spec.Duration, c.Spec.RenewBefore = &metav1.Duration{Duration: 90 * 24 * time.Hour}, nil
		},
		"key":    func(c *certmanager.Certificate) { c.Spec.PrivateKey.RotationPolicy = certmanager.RotationPolicyNever },
		"usages": func(c *certmanager.Certificate) { c.Spec.Usages = []certmanager.KeyUsage{certmanager.UsageClientAuth} },
		"annotation": func(c *certmanager.Certificate) {
			delete(c.Annotations, "example.com/team")
		},
	} {
		patiently.Until(t, "change "+name, func(ctx context.Context) error {
			object, err := certificateOf(ctx, ns)
			if err != nil {
				return err
			}
			change(object)
			return plane.Client().Update(ctx, object)
		})
		patiently.Until(t, name, asWanted)
	}
	uid := good.UID
	require.NoError(t, plane.Client().Delete(t.Context(), good))
	patiently.Until(t, "a deleted Certificate comes back", asWanted)
	assert.NotEqual(t, uid, good.UID)

	patiently.Until(t, "set a template", func(ctx context.Context) error {
		object, err := certificateOf(ctx, ns)
		if err != nil {
			return err
		}
		object.Spec.SecretTemplate = &certmanager.CertificateSecretTemplate{Labels: map[string]string{"copy": "me"}}
		object.Spec.DNSNames = nil // so that there is something to repair too
		return plane.Client().Update(ctx, object)
	})
	patiently.Until(t, "repair beside the template", asWanted)
	require.NotNil(t, good.Spec.SecretTemplate)
	assert.Equal(t, "me", good.Spec.SecretTemplate.Labels["copy"])
}

// TestR59_WithoutRightsToSeeRevisions: what is missing is logged, by verb and resource, the names that
// are set are served, and none that was there is taken away.
func TestR59_WithoutRightsToSeeRevisions(t *testing.T) {
	ns := plane.NewNamespace(t, "blind")
	_, err := plane.BootstrapCA(t.Context(), ns, "istio-ca", controlplane.CAOptions{})
	require.NoError(t, err)
	allow(t, ns, rights)
	k := keep(t, ns, rotation.IstiodConfig{Revisions: []string{"default", "1-30"}})
	assert.Equal(t, []string{"istio-pilot." + ns + ".svc", "istiod-1-30." + ns + ".svc", "istiod-remote." + ns + ".svc", "istiod." + ns + ".svc"},
		awaitReady(t, k).DNSNames)
	patiently.Until(t, "missing rights are logged", func(context.Context) error {
		for _, what := range []string{`list resource \"deployments\"`, `list resource \"mutatingwebhookconfigurations\"`} {
			if !strings.Contains(strings.ReplaceAll(k.log.String(), `\\`, `\`), what) {
				return fmt.Errorf("no word of %s", what)
			}
		}
		return nil
	})
	k.stop()
	assert.False(t, k.Status().Watching)

	// The next holder of the lease sees a Certificate with a revision that it does not know of.
	patiently.Until(t, "add a revision", func(ctx context.Context) error {
		object, err := certificateOf(ctx, ns)
		if err != nil {
			return err
		}
		object.Spec.DNSNames = append(object.Spec.DNSNames, "istiod-1-31."+ns+".svc", "evil.example.com")
		return plane.Client().Update(ctx, object)
	})
	k = keep(t, ns, rotation.IstiodConfig{})
	want := []string{"istio-pilot." + ns + ".svc", "istiod-1-30." + ns + ".svc", "istiod-1-31." + ns + ".svc", "istiod-remote." + ns + ".svc", "istiod." + ns + ".svc"}
	patiently.Until(t, "names", func(context.Context) error {
		if status := k.Status(); !assert.ElementsMatch(silent{}, want, status.DNSNames) {
			return fmt.Errorf("names are %q", status.DNSNames)
		}
		return nil
	})

	// Once it may look, it knows that there is no such revision.
	allow(t, ns, rightsToRevisions)
	want = []string{"istio-pilot." + ns + ".svc", "istiod-remote." + ns + ".svc", "istiod." + ns + ".svc"}
	patiently.Until(t, "names", func(context.Context) error {
		if status := k.Status(); !assert.ElementsMatch(silent{}, want, status.DNSNames) {
			return fmt.Errorf("names are %q", status.DNSNames)
		}
		return nil
	})
}

// told is the next Event.
func (k *keeper) told(t *testing.T) string {
	t.Helper()
	select {
	case event := <-k.events.Events:
		return event
	case <-time.After(patiently.Timeout):
		require.Fail(t, "no Event was made")
		return ""
	}
}

// TestIstiodKeeperOutlivesOutages: it says what it couldn't do, and does it when it can; and it ends and
// starts again, as the lease is lost and won.
func TestIstiodKeeperOutlivesOutages(t *testing.T) {
	ns := plane.NewNamespace(t, "outage")
	_, err := plane.BootstrapCA(t.Context(), ns, "istio-ca", controlplane.CAOptions{})
	require.NoError(t, err)
	readOnly := strings.Replace(rights, "[list, watch, create, patch]", "[list, watch]", 1)
	allow(t, ns, readOnly, rightsToRevisions)
	k := keep(t, ns, rotation.IstiodConfig{})
	patiently.Until(t, "a refused write shows in the status", func(context.Context) error {
		if trouble := k.Status().Trouble; trouble == nil || !strings.Contains(trouble.Error(), "apply Certificate "+ns+"/istiod-dynamic: ") {
			return fmt.Errorf("trouble is %v", trouble)
		}
		return nil
	})
	assert.Contains(t, k.told(t), "Warning ApplyFailed apply Certificate "+ns+"/istiod-dynamic: ")
	assert.Regexp(t, `level=\S+ msg="istiod's Certificate not written" .* next_try_seconds=1\n`, k.log.String())
	allow(t, ns, rights)
	status := awaitReady(t, k)
	assert.NoError(t, status.Trouble)
	assert.Contains(t, k.told(t), "Normal Applied ")

	k.stop()
	assert.Equal(t, rotation.IstiodStatus{}, k.Status())
	var goroutines strings.Builder
	require.NoError(t, pprof.Lookup("goroutine").WriteTo(&goroutines, 2))
	assert.NotContains(t, goroutines.String(), "client-go/tools/cache", "an informer still runs")
	assert.NotContains(t, goroutines.String(), "signet/rotation")
	k.start(t)
	awaitReady(t, k)

	require.NoError(t, plane.APIServer().Stop())
	require.NoError(t, plane.APIServer().Start(t.Context()))
	k.follow("istio-ca-selfsigned")
	patiently.Until(t, "the other issuer", func(ctx context.Context) error {
		object, err := certificateOf(ctx, ns)
		if err == nil && object.Spec.IssuerRef.Name != "istio-ca-selfsigned" {
			err = fmt.Errorf("issuer is %s", object.Spec.IssuerRef.Name)
		}
		return err
	})
}

// TestIstiodWatchByName: the right to a Certificate by name is enough, and it is a right to no other.
func TestIstiodWatchByName(t *testing.T) {
	ns := plane.NewNamespace(t, "named")
	allow(t, ns, rights)
	config, err := plane.As(t.Context(), ns, "keeper")
	require.NoError(t, err)
	c, err := metadata.NewForConfig(config)
	require.NoError(t, err)
	certificates := c.Resource(certmanager.SchemeGroupVersion.WithResource("certificates")).Namespace(ns)
	patiently.Until(t, "its own Certificate can be listed", func(ctx context.Context) error {
		_, err := certificates.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=istiod-dynamic"})
		return err
	})
	_, err = certificates.List(t.Context(), metav1.ListOptions{})
	assert.ErrorContains(t, err, "forbidden")
	foreign := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "metadata": map[string]any{"namespace": ns, "name": "other"},
		"spec": map[string]any{"secretName": "x", "issuerRef": map[string]any{"name": "x"}, "dnsNames": []any{"x.example.com"}},
	}}
	as, err := client.New(config, client.Options{Scheme: plane.Client().Scheme(), Mapper: plane.Client().RESTMapper()})
	require.NoError(t, err)
	err = as.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(foreign), client.FieldOwner("signet"), client.ForceOwnership)
	assert.ErrorContains(t, err, "forbidden")
}

// TestR59_RenewalIsReloaded: cert-manager renews, with another key, and the istiod that runs serves it.
func TestR59_RenewalIsReloaded(t *testing.T) {
	k := mesh(t, rotation.IstiodConfig{Key: "ECDSA-P256"})
	istiod := startIstiod(t, namespace)
	before, err := handshake(t.Context(), istiod.xds(t), "istiod.istio-system.svc", oldRoot)
	require.NoError(t, err)
	renew(t, namespace)
	var after *x509.Certificate
	patiently.Until(t, "istiod serves the renewed certificate", func(ctx context.Context) error {
		if after, err = handshake(ctx, istiod.xds(t), "istiod.istio-system.svc", oldRoot); err != nil {
			return err
		}
		if after.SerialNumber.Cmp(before.SerialNumber) == 0 {
			return errors.New("it still serves the one before")
		}
		return nil
	})
	assert.NotEqual(t, before.PublicKey, after.PublicKey)
	assert.Equal(t, before.DNSNames, after.DNSNames)
	patiently.Until(t, "the status follows", func(context.Context) error {
		if status := k.Status(); !status.Ready || status.NotAfter.Unix() != after.NotAfter.Unix() {
			return errors.New(status.String())
		}
		return nil
	})
}

// renew has cert-manager renew istiod's certificate now, as cmctl renew does.
func renew(t *testing.T, ns string) {
	t.Helper()
	patiently.Until(t, "renew", func(ctx context.Context) error {
		object, err := certificateOf(ctx, ns)
		if err != nil {
			return err
		}
		now := metav1.Now()
		object.Status.Conditions = append(object.Status.Conditions, certmanager.CertificateCondition{
			Type: certmanager.CertificateConditionIssuing, Status: cmmeta.ConditionTrue, Reason: "ManuallyTriggered",
			Message: "by a test", LastTransitionTime: &now, ObservedGeneration: object.Generation,
		})
		return plane.Client().Status().Update(ctx, object)
	})
}

// workload is a pod with pilot-agent in it, which takes its configuration from istiod and its
// certificate from Signet.
type workload struct {
	agent *meshclient.Agent
	dir   string
	ns    string
	roots string // file that it trusts for both connections
}

// startWorkload starts a workload that mounts the roots of its own namespace.
func startWorkload(t *testing.T, ca, xds string, roots []byte) *workload {
	t.Helper()
	ns := plane.NewNamespace(t, "app")
	require.NoError(t, plane.ServiceAccount(t.Context(), ns, "app"))
	pod, err := plane.Pod(t.Context(), ns, "app", "app", "node-1")
	require.NoError(t, err)
	token, err := plane.Token(t.Context(), ns, "app", controlplane.TokenOptions{Pod: pod})
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "app") // the paths of sockets are short
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	w := &workload{dir: dir, ns: ns, roots: filepath.Join(dir, "var/run/secrets/istio/root-cert.pem")}
	w.agent, err = meshclient.StartAgent(t.Context(), meshclient.AgentConfig{
		Address: "localhost:" + port(t, ca), Roots: roots, Token: token, ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/" + ns + "/sa/app"),
		TTL: 10 * time.Second, Dir: dir,
		Env: []string{`PROXY_CONFIG={"discoveryAddress":"localhost:` + port(t, xds) + `"}`, "INSTANCE_IP=" + pod.Status.PodIP},
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, w.agent.Stop()) })
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	require.NoError(t, w.agent.WaitRotations(ctx, 0))
	return w
}

// TestR59_AgentWithIstiodAndSignet: the agent gets its configuration from istiod, which it knows by the
// certificate we made, and its own certificate from Signet.
func TestR59_AgentWithIstiodAndSignet(t *testing.T) {
	mesh(t, rotation.IstiodConfig{})
	forgetTrust(t)
	istiod := startIstiod(t, namespace)
	signet, err := replica.Start(t.Context(), plane, replica.Config{
		Namespace: namespace, RootPEM: oldRoot, Settings: map[string]any{"ca.lifetime.min": "2s"},
	})
	require.NoError(t, err)
	t.Cleanup(signet.Stop)
	w := startWorkload(t, signet.CSR(), istiod.xds(t), oldRoot)
	var own *meshclient.Certificate
	patiently.Until(t, "the agent doesn't write all of its files", func(context.Context) (err error) { // the last of them a moment later
		own, err = w.agent.Certificate()
		return err
	})
	assert.Equal(t, "spiffe://cluster.local/ns/"+w.ns+"/sa/app", own.Leaf.URIs[0].String())
	patiently.Until(t, "the certificate is counted", func(ctx context.Context) error {
		issued, err := signet.Metric(ctx, "signet_requests_total", map[string]string{"outcome": "issued"})
		if err == nil && issued == 0 {
			err = errors.New("none is")
		}
		return err
	})
	patiently.Until(t, "no configuration from istiod", w.configured)
}
