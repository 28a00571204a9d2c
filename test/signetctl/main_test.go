// Package signetctl runs the command against a real API server, through which it finds the inspection API and reaches it
// by port-forward. What the API shows is data; who may see it is asked of the API server.
package signetctl

import (
	"context"
	"os"
	"testing"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/process"
)

var (
	// plane is the control plane that all tests of the package share.
	plane *controlplane.Plane
	// binary is the command.
	binary string
)

func TestMain(m *testing.M) {
	os.Exit(controlplane.Run(m, controlplane.Config{WithoutCertManager: true}, &plane, prepare))
}

// prepare finds the command, and makes the accounts and what they may do. The Services, pods and roots are made by each test.
func prepare(ctx context.Context) (err error) {
	if binary, err = process.Find("signetctl", "SIGNET_CTL"); err != nil {
		return err
	}
	for _, namespace := range []string{"istio-system", "people", "alpha", "beta"} {
		if err := plane.Namespace(ctx, namespace); err != nil {
			return err
		}
	}
	for namespace, names := range map[string][]string{
		"istio-system": {"signet", "signet-reader", "other-reader"},
		"people":       {"everything", "alpha", "blind", "nobody"},
	} {
		for _, name := range names {
			if err := plane.ServiceAccount(ctx, namespace, name); err != nil {
				return err
			}
		}
	}
	if err := plane.Apply(ctx, []byte(manifest)); err != nil {
		return err
	}
	// The last of each kind.
	return plane.AwaitAllowed(ctx,
		controlplane.Access{User: "carla", Verb: "create", Resource: "serviceaccounts", Subresource: "token", Name: "signet-reader", Namespace: "istio-system"},
		controlplane.Access{User: "system:serviceaccount:istio-system:signet-reader", Verb: "list", Group: "signet.dev", Resource: "services", Namespace: "beta"},
		controlplane.Access{User: "system:serviceaccount:people:everything", Verb: "impersonate", Resource: "users", Name: "carla"},
	)
}

const manifest = `
# What the server needs.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-api}
rules:
  - {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
  - {apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}
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
  - {apiGroups: [signet.dev], resources: [services, certificates, identities, issuances, gateways, trust], verbs: [get, list, watch]}
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
  - {kind: ServiceAccount, name: other-reader, namespace: istio-system}
---
# What users need to find Signet and to reach it, as docs/signetctl.md has it.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: signetctl, namespace: istio-system}
rules:
  - {apiGroups: [""], resources: [services], resourceNames: [signet], verbs: [get]}
  - {apiGroups: [""], resources: [pods], verbs: [list]}
  - {apiGroups: [""], resources: [pods/portforward], verbs: [get, create]}
  - {apiGroups: [""], resources: [configmaps], resourceNames: [istio-ca-root-cert], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signetctl, namespace: istio-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: signetctl}
subjects:
  - {kind: ServiceAccount, name: everything, namespace: people}
  - {kind: ServiceAccount, name: alpha, namespace: people}
  - {kind: ServiceAccount, name: blind, namespace: people}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: carla}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: paul}
---
# Who may ask as a reader.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: signet-reader-user, namespace: istio-system}
rules:
  - {apiGroups: [""], resources: [serviceaccounts/token], resourceNames: [signet-reader, other-reader, missing], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signet-reader-user, namespace: istio-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: signet-reader-user}
subjects:
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: carla}
  - {kind: ServiceAccount, name: alpha, namespace: people}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: signet-reader, namespace: beta}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-reader}
subjects: [{kind: ServiceAccount, name: signet-reader, namespace: istio-system}]
---
# Who may act as carla.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: acts-as-carla}
rules:
  - {apiGroups: [""], resources: [users], resourceNames: [carla], verbs: [impersonate]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: acts-as-carla}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: acts-as-carla}
subjects: [{kind: ServiceAccount, name: everything, namespace: people}]
`
