// Package distribution runs the distributor of trust documents on a real control plane, under a
// ServiceAccount that has exactly the rights that it needs. A test that proves a rule of the protocol
// carries its number in its name.
//
// Each test has a distributor of its own, which selects the namespaces that carry the test's label, so
// that tests leave each other alone. There is no namespace controller: a namespace that is deleted stays
// Terminating until a test finalizes it.
package distribution

import (
	"os"
	"testing"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is the control plane that all tests of the package share.
var plane *controlplane.Plane

func TestMain(m *testing.M) {
	os.Exit(controlplane.Run(m, controlplane.Config{WithoutCertManager: true}, &plane, prepareAccounts))
}
