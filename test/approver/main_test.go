// Package approver shows Signet where cert-manager's approver-policy decides what is signed, and not the approver that
// cert-manager has itself: with the policies that lie beside the chart (examples), applied as they are, and the rights and
// admission policies that the chart makes.
//
// Approver-policy is the real one, its webhook included. The tests share one Signet ([signet]); what it asked for stays for
// them to look at.
package approver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/test/chart"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// system is the namespace that the examples are for.
const system = "istio-system"

var (
	// plane is the control plane that all tests of the package share.
	plane *controlplane.Plane
	// root is the anchor of the CA that signs, PEM.
	root []byte
	// signet is the Signet that they ask.
	signet *replica.Replica
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.FromSlogHandler(slog.DiscardHandler)) // or it asks for one
	os.Exit(controlplane.Run(tests{m}, controlplane.Config{ApproverPolicy: true}, &plane, prepare))
}

// tests are those of the package, and the end of what they share.
type tests struct{ *testing.M }

// Run runs the tests and ends Signet.
func (t tests) Run() int {
	code := t.M.Run()
	if err := end(signet); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// end ends a replica at once: stopping gracefully, it would sweep what is kept for tests to look at. The error says what the
// race detector has seen, in a program that was built with it.
func end(r *replica.Replica) error {
	r.Kill()
	log, err := r.Log()
	if at := strings.Index(log, "WARNING: DATA RACE"); err == nil && at >= 0 {
		err = fmt.Errorf("signet: %.5000s", log[at:])
	}
	return err
}

// meshRoot lets cert-manager make the CA, which has to be approved as everything has, and accounts make requests.
const meshRoot = `
apiVersion: policy.cert-manager.io/v1alpha1
kind: CertificateRequestPolicy
metadata: {name: mesh-root}
spec:
  selector:
    issuerRef: {kind: Issuer, name: istio-ca-selfsigned}
  allowed:
    isCA: true
    commonName: {value: "*"}
    usages: [cert sign, crl sign, digital signature]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: mesh-root}
rules:
  - {apiGroups: [policy.cert-manager.io], resources: [certificaterequestpolicies], resourceNames: [mesh-root], verbs: [use]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: mesh-root}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: mesh-root}
subjects: [{kind: ServiceAccount, name: cert-manager, namespace: cert-manager}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: requesters}
rules:
  - {apiGroups: [cert-manager.io], resources: [certificaterequests], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: requesters}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: requesters}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:serviceaccounts"}]
`

// Who uses which policy in the mesh's namespace.
const (
	signetAccount      = "system:serviceaccount:" + system + ":signet"
	malloryAccount     = "system:serviceaccount:" + system + ":mallory"
	certManagerAccount = "system:serviceaccount:cert-manager:cert-manager"
)

// prepare makes what is there before Signet, and starts it.
func prepare(ctx context.Context) error {
	for _, namespace := range []string{system, "shop"} {
		if err := plane.Namespace(ctx, namespace); err != nil {
			return err
		}
	}
	for _, account := range []string{"signet", "mallory", "ztunnel"} {
		if err := plane.ServiceAccount(ctx, system, account); err != nil {
			return err
		}
	}
	if err := plane.Apply(ctx, []byte(meshRoot)); err != nil {
		return err
	}
	if err := usable(ctx, "mesh-root", certManagerAccount); err != nil {
		return err
	}
	var err error
	if root, err = plane.BootstrapCA(ctx, system, "istio-ca", controlplane.CAOptions{}); err != nil {
		return err
	}
	if err := applyExamples(ctx); err != nil {
		return err
	}
	if err := usable(ctx, "signet", signetAccount); err != nil {
		return err
	}
	if err := usable(ctx, "istiod", certManagerAccount); err != nil {
		return err
	}
	if err := applyAdmission(ctx); err != nil {
		return err
	}
	signet, err = replica.Start(ctx, plane, configuration(nil))
	return err
}

// applyExamples applies the files as they are.
func applyExamples(ctx context.Context) error {
	dir, err := chart.Dir()
	if err != nil {
		return err
	}
	for _, name := range []string{"certificaterequestpolicy.yaml", "certificaterequestpolicy-istiod.yaml"} {
		text, err := os.ReadFile(filepath.Join(dir, "examples", name))
		if err != nil {
			return err
		}
		if err := plane.Apply(ctx, text); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// applyAdmission applies the chart's admission policies, on which approver-policy comes on top: mallory is let through, so
// that it is seen what approver-policy says.
func applyAdmission(ctx context.Context) error {
	objects, err := chart.Render(system, map[string]any{
		"config": map[string]any{
			"issuer": map[string]any{"name": "istio-ca"},
			"roots":  map[string]any{"fromIssuer": true},
			"istiod": map[string]any{"enabled": true},
		},
		"admissionPolicy": map[string]any{"allowed": map[string]any{"users": []any{malloryAccount}}},
	})
	if err != nil {
		return err
	}
	for _, object := range objects {
		if strings.HasPrefix(object.GetKind(), "ValidatingAdmissionPolicy") {
			if err := plane.Client().Create(ctx, object); err != nil {
				return fmt.Errorf("create %s %s: %w", object.GetKind(), object.GetName(), err)
			}
		}
	}
	return nil
}

// configuration is that of a Signet whose serving certificate has the names that the example allows. Lives may be longer than
// the example lets them be.
func configuration(settings map[string]any) replica.Config {
	config := replica.Config{Namespace: system, RootPEM: root, Settings: map[string]any{
		"serving.dnsNames":    []any{},
		"serving.ipAddresses": []any{},
		"istiod.enabled":      true,
		"istiod.revisions":    []any{"default", "canary"},
		"ca.nodes.accounts":   []any{system + "/ztunnel"},
		"ca.lifetime.max":     "48h",
		"signer.timeout":      "60s", // whatever else the machine does
		"signer.sweep.keep":   "10m",
	}}
	maps.Copy(config.Settings, settings)
	return config
}

// usable waits until approver-policy goes by a policy, and the API server says that somebody in the mesh's namespace may use it.
func usable(ctx context.Context, name, user string) error {
	policy := &unstructured.Unstructured{}
	policy.SetAPIVersion("policy.cert-manager.io/v1alpha1")
	policy.SetKind("CertificateRequestPolicy")
	last := errors.New("never looked")
	err := wait.PollUntilContextTimeout(ctx, patiently.Glance, patiently.Timeout, true, func(ctx context.Context) (bool, error) {
		err := plane.Client().Get(ctx, client.ObjectKey{Name: name}, policy)
		if err == nil && !ready(policy) {
			err = errors.New("it isn't Ready")
		}
		if ctx.Err() == nil {
			last = err
		}
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait for CertificateRequestPolicy %s: %w: %w; the end of approver-policy's log:\n%s", name, err, last, plane.ApproverPolicy().LogTail(20))
	}
	return plane.AwaitAllowed(ctx, controlplane.Access{
		User: user, Verb: "use", Group: "policy.cert-manager.io", Resource: "certificaterequestpolicies", Name: name, Namespace: system,
	})
}

// ready says whether an object has condition Ready.
func ready(object *unstructured.Unstructured) bool {
	var status struct {
		Status struct {
			Conditions []metav1.Condition `json:"conditions"`
		} `json:"status"`
	}
	err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &status)
	return err == nil && meta.IsStatusConditionTrue(status.Status.Conditions, "Ready")
}
