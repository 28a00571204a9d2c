// Package sources reads trust anchors and CRLs from the objects of a real API server, under a
// ServiceAccount with exactly the rights that this takes.
package sources

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is the control plane that the tests share; each has a namespace of its own.
var plane *controlplane.Plane

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	var err error
	plane, err = controlplane.Start(context.Background(), controlplane.Config{WithoutCertManager: true})
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
