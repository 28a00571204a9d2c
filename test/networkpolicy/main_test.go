// Package networkpolicy shows what the chart's NetworkPolicy lets in and out. The policies, pods and namespaces are those of a
// real API server, which labels namespaces and fills in what a policy leaves out; what they come to is said by Cyclonus, an
// implementation of the specification that network plugins are tested against. It knows no nodes: that a pod is always reached
// from its own node, as by the kubelet, is for the plugin to see to.
package networkpolicy

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/signet-ca/signet/test/controlplane"
)

var plane *controlplane.Plane

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	flag.Parse()
	ctrl.SetLogger(logr.Discard())
	code, err := startAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func startAndRun(m *testing.M) (code int, err error) {
	if plane, err = controlplane.Start(context.Background(), controlplane.Config{WithoutCertManager: true}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	return m.Run(), nil
}
