// Package e2e drives a running Signet on a real control plane as the mesh does: over TLS and gRPC,
// with tokens of real service accounts and, but where a test answers by hand, certificates that
// cert-manager signs. A test that proves a rule of the protocol carries its number in its name.
//
// Tests share one control plane and, where they can, one Signet ([common]). Those that must wait for
// a clock are parallel, so that they run together after all others: the others may count what the
// shared Signet does, and may stop the API server for a moment.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is the control plane that all tests of the package share; each has namespaces of its own.
var plane *controlplane.Plane

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	// Parallel tests wait for clocks, and take next to nothing of the processors meanwhile.
	flag.Parse()
	err := flag.Set("test.parallel", "16")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	plane, err = controlplane.Start(context.Background(), controlplane.Config{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := errors.Join(stopShared(), plane.Stop()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
