// Package privilege proves that Signet has the rights that it needs, and no others: it runs on a real control plane under the
// ServiceAccount and with the RBAC objects that the chart renders, in several configurations that together have every
// feature, each of which is used. Then the API server's audit log is held against the rights: no request was answered 403,
// and each right, taken apart into verb, resource, name and scope, was needed by a request.
//
// What admission asks of the authorizer is in no log: that a signer may be attested or signed for, and that a patch may
// create what isn't there. It is read from the request that can't succeed without; takenAway takes the right away and
// sees that request refused.
package privilege

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"github.com/go-logr/logr"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/test/controlplane"
)

var (
	// plane is the control plane that all tests of the package share.
	plane *controlplane.Plane
	audit *auditLog
	// everybody is what Kubernetes lets every account do.
	everybody []grant
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.FromSlogHandler(slog.DiscardHandler)) // or it asks for one
	os.Exit(controlplane.Run(m, controlplane.Config{Audit: true}, &plane, prepare))
}

// prepare installs the APIs of gateways, and what the tests share.
func prepare(ctx context.Context) error {
	audit = newAuditLog(plane.AuditLog())
	definitions, err := controlplane.GatewayDefinitions(ctx)
	if err != nil {
		return err
	}
	if err := plane.Apply(ctx, definitions); err != nil {
		return err
	}
	for _, namespace := range []string{"people", "istio-system"} {
		if err := plane.Namespace(ctx, namespace); err != nil {
			return err
		}
	}
	if err := plane.ServiceAccount(ctx, "people", "auditor"); err != nil {
		return err
	}
	if err := plane.Apply(ctx, []byte(auditor)); err != nil {
		return err
	}
	return readEverybody(ctx)
}

// auditor may ask the inspection API for everything.
const auditor = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: auditor}
rules:
  - {apiGroups: [signet.dev], resources: ["*"], verbs: ["*"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: auditor}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: auditor}
subjects: [{kind: ServiceAccount, name: auditor, namespace: people}]
`

// readEverybody reads the roles that Kubernetes binds to all who are authenticated.
func readEverybody(ctx context.Context) error {
	for _, name := range []string{"system:basic-user", "system:discovery"} {
		var role rbacv1.ClusterRole
		if err := plane.Client().Get(ctx, client.ObjectKey{Name: name}, &role); err != nil {
			return fmt.Errorf("get ClusterRole %s: %w", name, err)
		}
		for _, rule := range role.Rules {
			expanded, err := expand(rule, "")
			if err != nil {
				return fmt.Errorf("ClusterRole %s: %w", name, err)
			}
			everybody = append(everybody, expanded...)
		}
	}
	return nil
}
