package controlplane

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/process"
)

// approverTimeout is how long what belongs to approver-policy may take to be in force.
const approverTimeout = 3 * time.Minute

// newApproverPolicy is the part that decides on CertificateRequests; its webhook, which judges policies, has a port of its own.
func (p *Plane) newApproverPolicy(webhookPort, readyPort int) (*Part, error) {
	binary, err := process.Find("approver-policy", "SIGNET_APPROVER_POLICY")
	if err != nil {
		return nil, err
	}
	p.approverWebhook = webhookPort
	args := []string{
		"--kubeconfig", p.kubeconfigOfPart("approver-policy"),
		"--leader-election-namespace", certManagerNamespace,
		"--metrics-bind-address", "0",
		"--readiness-probe-bind-address", loopback(readyPort),
		"--webhook-host", "127.0.0.1",
		"--webhook-port", strconv.Itoa(webhookPort),
		"--webhook-service-name", "approver-policy",
		"--webhook-ca-secret-namespace", certManagerNamespace,
		"--webhook-ca-secret-name", "approver-policy-tls",
	}
	return newPart("approver-policy", binary, args, p.dir.join("approver-policy.log"), func(ctx context.Context) error {
		return probe(ctx, p.http, "http://"+loopback(readyPort)+"/readyz")
	}), nil
}

// startApproverPolicy starts it, and returns when CertificateRequests say who made them, on which it relies, and its webhook
// judges policies.
func (p *Plane) startApproverPolicy(ctx context.Context) error {
	definition, err := approverPolicyDefinition(ctx)
	if err != nil {
		return err
	}
	if err := p.Apply(ctx, append(definition, requesters...)); err != nil {
		return err
	}
	if err := p.identify(ctx, "approver-policy", everything); err != nil {
		return err
	}
	if err := p.approverPolicy.Start(ctx); err != nil {
		return err
	}
	ca := &corev1.Secret{}
	err = poll(ctx, approverTimeout, func(ctx context.Context) error {
		return p.client.Get(ctx, client.ObjectKey{Namespace: certManagerNamespace, Name: "approver-policy-tls"}, ca)
	})
	if err != nil {
		return fmt.Errorf("wait for the CA of approver-policy's webhook: %w", err)
	}
	manifest := strings.NewReplacer("PORT", strconv.Itoa(p.approverWebhook),
		"BUNDLE", base64.StdEncoding.EncodeToString(ca.Data[corev1.TLSCertKey])).Replace(policyWebhook)
	if err := p.Apply(ctx, []byte(manifest)); err != nil {
		return err
	}
	err = poll(ctx, approverTimeout, func(ctx context.Context) error { return errors.Join(p.requesterSaid(ctx), p.policiesJudged(ctx)) })
	if err != nil {
		return fmt.Errorf("wait for approver-policy: %w", err)
	}
	return nil
}

// approverPolicyDefinition is the CustomResourceDefinition in the module that the binary is built from.
func approverPolicyDefinition(ctx context.Context) ([]byte, error) {
	root, err := process.Root()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/cert-manager/approver-policy")
	cmd.Dir = filepath.Join(root, "test", "approver", "policy")
	dir, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("find module of approver-policy: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "deploy", "crds", "policy.cert-manager.io_certificaterequestpolicies.yaml"))
	if err != nil {
		return nil, fmt.Errorf("read definition of CertificateRequestPolicies: %w", err)
	}
	return text, nil
}

// certManagerRole is all that cert-manager does, and doesn't let it use every CertificateRequestPolicy.
const certManagerRole = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cert-manager}
rules:
  - apiGroups: ["", acme.cert-manager.io, cert-manager.io, coordination.k8s.io, events.k8s.io, networking.k8s.io]
    resources: ["*"]
    verbs: ["*"]
  - nonResourceURLs: ["*"]
    verbs: ["*"]
`

// requesters has CertificateRequests say who made them, as cert-manager's webhook does.
const requesters = `
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: requesters}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules:
      - {apiGroups: [cert-manager.io], apiVersions: [v1], operations: [CREATE], resources: [certificaterequests]}
  mutations:
    - patchType: JSONPatch
      jsonPatch:
        expression: '[JSONPatch{op: "add", path: "/spec/username", value: request.userInfo.username}]'
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: requesters}
spec: {policyName: requesters}
`

// policyWebhook leads to the webhook as approver-policy's chart does, but for the way there: there are no Pods behind Services.
const policyWebhook = `
apiVersion: v1
kind: Service
metadata: {name: approver-policy, namespace: cert-manager}
spec:
  type: ExternalName
  externalName: localhost
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: approver-policy}
webhooks:
  - name: policy.cert-manager.io
    rules:
      - {apiGroups: [policy.cert-manager.io], apiVersions: ["*"], operations: [CREATE, UPDATE], resources: [certificaterequestpolicies]}
    admissionReviewVersions: [v1]
    timeoutSeconds: 30
    failurePolicy: Fail
    sideEffects: None
    clientConfig:
      caBundle: BUNDLE
      service: {name: approver-policy, namespace: cert-manager, path: /validate-policy-cert-manager-io-v1alpha1-certificaterequestpolicy, port: PORT}
`

// requesterSaid wants that a CertificateRequest that is made now says by whom. None is kept.
func (p *Plane) requesterSaid(ctx context.Context) error {
	request := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
		"metadata": map[string]any{"namespace": certManagerNamespace, "name": "by-whom"},
		"spec":     map[string]any{"request": "eA==", "issuerRef": map[string]any{"name": "none"}},
	}}
	if err := p.client.Create(ctx, request, client.DryRunAll); err != nil {
		return fmt.Errorf("create CertificateRequest: %w", err)
	}
	if name, _, _ := unstructured.NestedString(request.Object, "spec", "username"); name == "" {
		return errors.New("CertificateRequests don't say who made them")
	}
	return nil
}

// policiesJudged wants that a policy that selects nothing is refused.
func (p *Plane) policiesJudged(ctx context.Context) error {
	policy := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "policy.cert-manager.io/v1alpha1", "kind": "CertificateRequestPolicy",
		"metadata": map[string]any{"name": "selects-nothing"},
		"spec":     map[string]any{"selector": map[string]any{}},
	}}
	switch err := p.client.Create(ctx, policy, client.DryRunAll); {
	case err == nil:
		return errors.New("policies aren't judged")
	case !strings.Contains(err.Error(), "one of issuerRef or namespace must be defined"):
		return fmt.Errorf("create CertificateRequestPolicy: %w", err)
	}
	return nil
}
