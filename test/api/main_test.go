// Package api runs the inspection API on a real control plane, under a ServiceAccount that has exactly the rights that
// it needs. What it shows is data; who may see it is asked of the API server.
package api

import (
	"context"
	"os"
	"testing"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is the control plane that all tests of the package share.
var plane *controlplane.Plane

func TestMain(m *testing.M) {
	os.Exit(controlplane.Run(m, controlplane.Config{WithoutCertManager: true}, &plane, prepare))
}

// prepare makes the server's account with its rights, a role that readers get, and the readers.
func prepare(ctx context.Context) error {
	for _, namespace := range []string{"istio-system", "people", "alpha", "beta", "gamma"} {
		if err := plane.Namespace(ctx, namespace); err != nil {
			return err
		}
	}
	for namespace, names := range map[string][]string{"istio-system": {"signet"}, "people": {"everything", "alpha", "nothing", "changing", "services"}, "alpha": {"web"}} {
		for _, name := range names {
			if err := plane.ServiceAccount(ctx, namespace, name); err != nil {
				return err
			}
		}
	}
	if err := plane.Apply(ctx, []byte(manifest)); err != nil {
		return err
	}
	const people = "system:serviceaccount:people:"
	return plane.AwaitAllowed(ctx,
		controlplane.Access{User: "system:serviceaccount:istio-system:signet", Verb: "create", Group: "authorization.k8s.io", Resource: "subjectaccessreviews"},
		controlplane.Access{User: people + "everything", Verb: "list", Group: "signet.dev", Resource: "services"},
		controlplane.Access{User: people + "alpha", Verb: "list", Group: "signet.dev", Resource: "services", Namespace: "alpha"},
		controlplane.Access{User: "anybody", Groups: []string{"system:serviceaccounts:alpha"}, Verb: "list", Group: "signet.dev", Resource: "services", Namespace: "alpha"},
		controlplane.Access{User: people + "services", Verb: "list", Group: "signet.dev", Resource: "services"},
	)
}

const manifest = `
# What the server needs.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-api}
rules:
  # Callers are known by their tokens.
  - {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
  # What they may see is asked.
  - {apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}
  # Of each namespace, where somebody may not see all of them.
  - {apiGroups: [""], resources: [namespaces], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-api}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-api}
subjects: [{kind: ServiceAccount, name: signet, namespace: istio-system}]
---
# What readers get.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-reader}
rules:
  - {apiGroups: [signet.dev], resources: [services, certificates, identities, issuances, trust], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-reader}
subjects: [{kind: ServiceAccount, name: everything, namespace: people}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signet-reader, namespace: alpha}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-reader}
subjects:
  - {kind: ServiceAccount, name: alpha, namespace: people}
  # A group that only its own service accounts are in.
  - {apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:serviceaccounts:alpha"}
---
# Only one resource, and only lists.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-services}
rules:
  - {apiGroups: [signet.dev], resources: [services], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-services}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-services}
subjects: [{kind: ServiceAccount, name: services, namespace: people}]
`
