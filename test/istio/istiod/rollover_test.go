package istiod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/rotation"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/process"
	"github.com/signet-ca/signet/test/replica"
)

// validator is the webhook that istiod looks after, by which the API server asks it whether Istio's
// objects are right.
const validator = "istio-validator-istio-system"

// createValidator makes the webhook as istiod's chart does, but for its address.
func createValidator(t *testing.T, istiod *discovery) {
	t.Helper()
	url := "https://localhost:" + port(t, istiod.webhook(t)) + "/validate"
	object := &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: validator, Labels: map[string]string{"app": "istiod", "istio.io/rev": "default"}},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name:         "rev.validation.istio.io",
			ClientConfig: admissionv1.WebhookClientConfig{URL: &url},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
				Rule:       admissionv1.Rule{APIGroups: []string{"networking.istio.io"}, APIVersions: []string{"*"}, Resources: []string{"*"}},
			}},
			FailurePolicy:           new(admissionv1.Ignore), // until istiod says otherwise
			TimeoutSeconds:          new(int32(30)),
			SideEffects:             new(admissionv1.SideEffectClassNone),
			AdmissionReviewVersions: []string{"v1"},
		}},
	}
	require.NoError(t, plane.Client().Create(t.Context(), object))
	t.Cleanup(func() {
		assert.NoError(t, client.IgnoreNotFound(plane.Client().Delete(context.Background(), object)))
	})
}

// awaitBundle waits until istiod has put roots into its webhook.
func awaitBundle(t *testing.T, roots []byte) {
	t.Helper()
	patiently.Until(t, "istiod's webhook does not have the roots", func(ctx context.Context) error {
		object := &admissionv1.ValidatingWebhookConfiguration{}
		if err := plane.Client().Get(ctx, client.ObjectKey{Name: validator}, object); err != nil {
			return err
		}
		if bundle := object.Webhooks[0].ClientConfig.CABundle; !bytes.Equal(bundle, roots) {
			return fmt.Errorf("caBundle has %d bytes, the roots have %d", len(bundle), len(roots))
		}
		if policy := *object.Webhooks[0].FailurePolicy; policy != admissionv1.Fail {
			return fmt.Errorf("failurePolicy is %s", policy) // istiod hasn't reached itself through the API server yet
		}
		return nil
	})
}

// validated asks the API server to create an object that istiod always refuses. Anything but its
// refusal is an error: above all that the API server doesn't trust it.
func validated(ctx context.Context) error {
	gateway := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
		"metadata": map[string]any{
			"namespace": namespace, "name": "refused", "labels": map[string]any{"istio.io/rev": "default"},
			"annotations": map[string]any{"internal.istio.io/webhook-always-reject": "true"},
		},
		"spec": map[string]any{"servers": []any{map[string]any{
			"port": map[string]any{"number": int64(80), "name": "http", "protocol": "HTTP"}, "hosts": []any{"a.example.com"},
		}}},
	}}
	err := plane.Client().Create(ctx, gateway, client.DryRunAll)
	if err == nil {
		return errors.New("istiod was not asked")
	}
	if !strings.Contains(err.Error(), "denied the request") {
		return fmt.Errorf("the API server could not ask istiod: %w", err)
	}
	return nil
}

// set writes a ConfigMap of Signet's.
func set(t *testing.T, name, key string, value []byte) {
	t.Helper()
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string]string{key: string(value)}}
	err := plane.Client().Update(t.Context(), object)
	if apierrors.IsNotFound(err) {
		err = plane.Client().Create(t.Context(), object)
	}
	require.NoError(t, err)
}

// mountRoots keeps the agent's root file as its namespace has the roots.
func (w *workload) mountRoots(t *testing.T, ns string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	running.Go(func() {
		for last := ""; ctx.Err() == nil; {
			var object corev1.ConfigMap
			err := plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: "istio-ca-root-cert"}, &object)
			if now := object.Data["root-cert.pem"]; err == nil && now != "" && now != last {
				last, err = now, w.agent.SetRoots([]byte(now))
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("mount the agent's roots: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}

// forgetTrust removes what the Signets of other tests have left: which anchors are trusted.
func forgetTrust(t *testing.T) {
	t.Helper()
	state := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: rotation.TrustConfigMap}}
	require.NoError(t, client.IgnoreNotFound(plane.Client().Delete(t.Context(), state)))
}

// TestR54_R59_RolloverOfTheRoot changes the mesh's root while Signet, istiod and an agent run. At no moment
// does the agent's view of istiod, or the API server's view of istiod's webhook, break.
func TestR54_R59_RolloverOfTheRoot(t *testing.T) {
	forgetTrust(t)
	set(t, "signet-roots", "roots.pem", oldRoot)
	// The API server reaches the webhook at localhost. Leaves are short, so that all takes a minute.
	signet, err := replica.Start(t.Context(), plane, replica.Config{Namespace: namespace, Issuer: "istio-ca", Settings: map[string]any{
		"roots.configMap":      map[string]any{"name": "signet-roots", "key": "roots.pem"},
		"issuers.runtime.name": "signet-issuer",
		"distribution":         map[string]any{"disabled": false, "clusterTrustBundle": "off"},
		"istiod":               map[string]any{"enabled": true, "namespace": namespace, "dnsNames": []any{"localhost"}},
		"ca.lifetime":          map[string]any{"min": "2s", "max": "20s", "default": "20s"},
		"signer.timeout":       "4s",
		"ca.requestTimeout":    "5s",
	}})
	require.NoError(t, err)
	t.Cleanup(func() {
		signet.Stop()
		if t.Failed() {
			t.Logf("the end of Signet's log:\n%s", process.Tail(signet.Process().Log(), 60))
		}
	})
	patiently.Until(t, "Signet's roots and certificate for istiod", func(ctx context.Context) error {
		var roots corev1.ConfigMap
		if err := plane.Client().Get(ctx, client.ObjectKey{Namespace: namespace, Name: "istio-ca-root-cert"}, &roots); err != nil {
			return err
		}
		cert, err := certificateOf(ctx, namespace)
		if err != nil {
			return err
		}
		if roots.Data["root-cert.pem"] != string(oldRoot) || cert.Spec.IssuerRef.Name != "istio-ca" || !slices.Contains(cert.Spec.DNSNames, "localhost") || !ready(cert) {
			return fmt.Errorf("issuer %s, conditions %v", cert.Spec.IssuerRef.Name, cert.Status.Conditions)
		}
		return nil
	})
	istiod := startIstiod(t, namespace)
	createValidator(t, istiod)
	awaitBundle(t, oldRoot)
	w := startWorkload(t, signet.CSR(), istiod.xds(t), oldRoot)
	w.mountRoots(t, namespace)
	patiently.Until(t, "no configuration from istiod", w.configured)
	w.awaitCertificate(t, oldRoot, oldRoot)
	before, err := handshake(t.Context(), istiod.xds(t), "istiod.istio-system.svc", oldRoot)
	require.NoError(t, err)

	// The operator names the new root and the new issuer. All follow in their order, by themselves.
	probe := watch(t, w, istiod)
	both := slices.Concat(oldRoot, newRoot)
	set(t, "signet-roots", "roots.pem", both)
	set(t, "signet-issuer", "issuer-name", []byte("istio-ca-2"))
	t.Cleanup(func() {
		assert.NoError(t, plane.Client().Delete(context.Background(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "signet-issuer"}}))
	})
	w.awaitCertificate(t, both, oldRoot) // published, and not signed under
	w.awaitCertificate(t, both, newRoot)
	patiently.Until(t, "istiod serves a certificate of the new issuer", func(ctx context.Context) error {
		_, err := handshake(ctx, istiod.xds(t), "istiod.istio-system.svc", newRoot)
		return err
	})
	after, err := handshake(t.Context(), istiod.xds(t), "istiod.istio-system.svc", newRoot)
	require.NoError(t, err)
	assert.NotEqual(t, before.AuthorityKeyId, after.AuthorityKeyId)

	// The old root leaves.
	set(t, "signet-roots", "roots.pem", newRoot)
	awaitBundle(t, newRoot)
	w.awaitCertificate(t, newRoot, newRoot)
	patiently.Until(t, "no configuration from istiod", w.configured)
	probe.end(t)
	_, err = handshake(t.Context(), istiod.xds(t), "istiod.istio-system.svc", oldRoot)
	assert.Error(t, err, "nobody who knows the old root only can tell istiod")
}

func ready(cert *certmanager.Certificate) bool {
	for _, c := range cert.Status.Conditions {
		if c.Type == certmanager.CertificateConditionReady {
			return c.Status == cmmeta.ConditionTrue && c.ObservedGeneration == cert.Generation
		}
	}
	return false
}

// awaitCertificate waits until the agent holds a certificate that came with roots and leads to one of
// signers.
func (w *workload) awaitCertificate(t *testing.T, roots, signers []byte) {
	t.Helper()
	patiently.Until(t, "the agent's certificate", func(context.Context) error {
		own, err := w.agent.Certificate()
		if err != nil {
			return err
		}
		if want := bytes.Count(roots, []byte("BEGIN CERTIFICATE")); bytes.Count(own.RootsPEM, []byte("BEGIN CERTIFICATE")) != want {
			return fmt.Errorf("it came with other roots than %d", want)
		}
		return leadsTo(own.Chain, signers)
	})
}

// probing looks at istiod all the time, with the eyes of the agent and of the API server.
type probing struct {
	stop context.CancelFunc
	done chan struct{}

	mu     sync.Mutex // guards the following
	looks  int
	broken []error
}

func watch(t *testing.T, w *workload, istiod *discovery) *probing {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &probing{stop: cancel, done: make(chan struct{})}
	address := istiod.xds(t)
	go func() {
		defer close(p.done)
		for ctx.Err() == nil {
			roots, err := os.ReadFile(w.roots)
			if err == nil {
				_, err = handshake(ctx, address, "istiod.istio-system.svc", roots)
			}
			p.note(ctx, err)
			p.note(ctx, validated(ctx))
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-p.done })
	return p
}

func (p *probing) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks++
	if err != nil {
		p.broken = append(p.broken, err)
	}
}

// end stops looking, and fails where something was broken.
func (p *probing) end(t *testing.T) {
	t.Helper()
	p.stop()
	<-p.done
	assert.Greater(t, p.looks, 10)
	assert.Empty(t, p.broken)
	t.Logf("looked %d times", p.looks)
}
