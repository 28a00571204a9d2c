// Package inspect shows that the inspection API of a running Signet tells the truth: what it says of certificates is
// compared with the files of real pilot-agents that hold them, on a real control plane; and that no certificate is
// without a record, whatever is killed, full or away meanwhile.
package inspect

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/ledger/postgres"
)

// Shared by all tests; each has namespaces and a database of its own.
var (
	plane    *controlplane.Plane
	database *postgres.Server
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	// Nearly all of these tests wait for clocks; the processors are no measure for how many may do so at once.
	if err := flag.Set("test.parallel", "16"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctrl.SetLogger(logr.Discard()) // what clients try again is no news here
	code := 1
	err := start(context.Background())
	if err == nil {
		code = m.Run()
	}
	if err = errors.Join(err, stop()); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return code
}

func start(ctx context.Context) (err error) {
	if database, err = postgres.Start(ctx); err != nil {
		return err
	}
	plane, err = controlplane.Start(ctx, controlplane.Config{})
	if err != nil {
		return err
	}
	if err := plane.Namespace(ctx, "people"); err != nil {
		return err
	}
	for _, name := range []string{"all", "one", "none"} {
		if err := plane.ServiceAccount(ctx, "people", name); err != nil {
			return err
		}
	}
	if err := plane.Apply(ctx, []byte(readers)); err != nil {
		return err
	}
	return plane.AwaitAllowed(ctx, controlplane.Access{User: "system:serviceaccount:people:all", Verb: "list", Group: "signet.dev", Resource: "services"})
}

func stop() error {
	var errs []error
	if plane != nil {
		errs = append(errs, plane.Stop())
	}
	if database != nil {
		errs = append(errs, database.Stop())
	}
	return errors.Join(errs...)
}

// readers are what an operator grants: everything to one, and to others what a test binds them to.
const readers = `
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
subjects: [{kind: ServiceAccount, name: all, namespace: people}]
`
