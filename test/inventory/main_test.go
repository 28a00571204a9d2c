// Package inventory runs the inventory of certificates on a real control plane, under a ServiceAccount that has exactly
// the rights that it needs. Certificates are made by the tests, and told as the signing path tells them.
//
// There is no kubelet and no controller manager: a test says how a pod runs, and writes EndpointSlices itself.
package inventory

import (
	"log/slog"
	"os"
	"testing"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is the control plane that all tests of the package share.
var plane *controlplane.Plane

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.FromSlogHandler(slog.DiscardHandler)) // or it asks for one
	os.Exit(controlplane.Run(m, controlplane.Config{}, &plane, prepareAccounts))
}
