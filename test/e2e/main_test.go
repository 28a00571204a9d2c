// Package e2e drives a running Signet on a real control plane as the mesh does.
package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is the control plane that all tests of the package share; each has namespaces of its own.
var plane *controlplane.Plane

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	plane, err = controlplane.Start(context.Background(), controlplane.Config{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := plane.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
