// Package sources reads trust anchors and CRLs from the objects of a real API server, under a
// ServiceAccount with exactly the rights that this takes.
package sources

import (
	"os"
	"testing"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is the control plane that the tests share; each has a namespace of its own.
var plane *controlplane.Plane

func TestMain(m *testing.M) {
	os.Exit(controlplane.Run(m, controlplane.Config{WithoutCertManager: true}, &plane, nil))
}
