// Package probe runs live probes on a real control plane, under a ServiceAccount that has exactly the rights that they
// need: the inspection API with its rights, the inventory, the ledger, and certificates that cert-manager issued, held by
// servers of TLS in this process. The addresses of pods lead nowhere here, so connections to them are led to those
// servers; what may be dialed is decided before, as everywhere.
package probe

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is the control plane that all tests of the package share, and rootPEM the root of its issuer.
var (
	plane   *controlplane.Plane
	rootPEM []byte
)

const (
	home = "istio-system"
	// nodeIP is the address of a node.
	nodeIP = "192.0.2.50"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.FromSlogHandler(slog.DiscardHandler)) // or it asks for one
	os.Exit(controlplane.Run(m, controlplane.Config{}, &plane, prepare))
}

// prepare makes the issuer, a node, the accounts, and their rights.
func prepare(ctx context.Context) error {
	for namespace, names := range map[string][]string{home: {"signet", "nodeless"}, "people": {"shop", "other", "nothing", "all"}, "shop": nil, "other": nil} {
		if err := plane.Namespace(ctx, namespace); err != nil {
			return err
		}
		for _, name := range names {
			if err := plane.ServiceAccount(ctx, namespace, name); err != nil {
				return err
			}
		}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-a"}}
	if err := plane.Client().Create(ctx, node); err != nil {
		return err
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "node-a"}, {Type: corev1.NodeInternalIP, Address: nodeIP}}
	if err := plane.Client().Status().Update(ctx, node); err != nil {
		return err
	}
	var err error
	rootPEM, err = plane.BootstrapCA(ctx, home, "istio-ca", controlplane.CAOptions{})
	if err := errors.Join(err, plane.Apply(ctx, []byte(manifest))); err != nil {
		return err
	}
	// The last of each kind.
	return plane.AwaitAllowed(ctx,
		controlplane.Access{User: "system:serviceaccount:istio-system:nodeless", Verb: "list", Group: "discovery.k8s.io", Resource: "endpointslices", Namespace: "default"},
		controlplane.Access{User: "system:serviceaccount:people:other", Verb: "create", Group: "signet.dev", Resource: "probes", Namespace: "other"},
		controlplane.Access{User: "system:serviceaccount:people:all", Verb: "get", Group: "signet.dev", Resource: "services"},
	)
}

const manifest = `
# What the inspection API and the inventory need.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-inspection}
rules:
  - {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
  - {apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}
  - {apiGroups: [""], resources: [namespaces, serviceaccounts, services, pods], verbs: [list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-inspection}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-inspection}
subjects:
  - {kind: ServiceAccount, name: signet, namespace: istio-system}
  - {kind: ServiceAccount, name: nodeless, namespace: istio-system}
---
# What probes need beside it.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-probes}
rules:
  # What is dialed, as it is now.
  - {apiGroups: [""], resources: [pods, services], verbs: [get]}
  # Which certificates are known that Signet didn't issue.
  - {apiGroups: [cert-manager.io], resources: [certificates], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-probes}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-probes}
subjects:
  - {kind: ServiceAccount, name: signet, namespace: istio-system}
  - {kind: ServiceAccount, name: nodeless, namespace: istio-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-probes-nodes}
rules:
  # What is never dialed.
  - {apiGroups: [""], resources: [nodes], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-probes-nodes}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-probes-nodes}
subjects: [{kind: ServiceAccount, name: signet, namespace: istio-system}]
---
# The API server's own addresses are never dialed either.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: signet-probes, namespace: default}
rules:
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signet-probes, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: signet-probes}
subjects:
  - {kind: ServiceAccount, name: signet, namespace: istio-system}
  - {kind: ServiceAccount, name: nodeless, namespace: istio-system}
---
# What people get.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-prober}
rules:
  - {apiGroups: [signet.dev], resources: [probes], verbs: [create]}
  - {apiGroups: [signet.dev], resources: [services], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signet-prober, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-prober}
subjects: [{kind: ServiceAccount, name: shop, namespace: people}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signet-prober, namespace: other}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-prober}
subjects: [{kind: ServiceAccount, name: other, namespace: people}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-prober}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-prober}
subjects: [{kind: ServiceAccount, name: all, namespace: people}]
`
