// Package ztunnel drives a running Signet on a real control plane as ztunnel does: from a pod on a node, with a token that is
// bound to that pod, for the identities of the pods beside it. And it shows that the index of what exists in the cluster
// follows that control plane.
//
// There is no kubelet: a test says how a pod runs.
package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/util/rand"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/replica"
)

var (
	// plane is the control plane that all tests of the package share.
	plane *controlplane.Plane
	// signet is the Signet that they ask; its requests stay for them to look at, and its tokens aren't reviewed again for a
	// while.
	signet *replica.Replica
	// home is Signet's namespace, and that of the node proxies.
	home = "signet-" + rand.String(5)
	// root is the anchor of the CA that signs, PEM.
	root []byte
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctrl.SetLogger(logr.FromSlogHandler(slog.DiscardHandler)) // or it asks for one
	ctx := context.Background()
	var err error
	if plane, err = controlplane.Start(ctx, controlplane.Config{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := 1
	if err = prepare(ctx); err == nil {
		code = m.Run()
		err = end()
	}
	if err := errors.Join(err, plane.Stop()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// end ends Signet at once: stopping gracefully, it would sweep what is kept for tests to look at. The error says what the race
// detector has seen, in a program that was built with it.
func end() error {
	signet.Kill()
	log, err := signet.Log()
	if at := strings.Index(log, "WARNING: DATA RACE"); err == nil && at >= 0 {
		err = fmt.Errorf("signet: %.5000s", log[at:])
	}
	return err
}

// prepare makes the namespace with the CA in it, the accounts, and starts Signet.
func prepare(ctx context.Context) (err error) {
	if err := plane.Namespace(ctx, home); err != nil {
		return err
	}
	if root, err = plane.BootstrapCA(ctx, home, "istio-ca", controlplane.CAOptions{}); err != nil {
		return err
	}
	for _, account := range []string{"ztunnel", "istiod", "auditor"} {
		if err := plane.ServiceAccount(ctx, home, account); err != nil {
			return err
		}
	}
	auditor := `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: auditor}, ` +
		`roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}, ` +
		`subjects: [{kind: ServiceAccount, name: auditor, namespace: ` + home + `}]}`
	if err := plane.Apply(ctx, []byte(auditor)); err != nil {
		return err
	}
	signet, err = replica.Start(ctx, plane, replica.Config{Namespace: home, RootPEM: root, Settings: map[string]any{
		"ca.nodes.accounts":      []string{home + "/ztunnel", "kube-system/ztunnel"},
		"ca.token.cacheAccepted": "60s",
		"signer.sweep.keep":      "10m",
	}})
	return err
}
