// Package networkpolicy shows what the chart's NetworkPolicy lets in and out. The policies, pods and namespaces are those of a
// real API server, which labels namespaces and fills in what a policy leaves out; what they come to is said by Cyclonus, an
// implementation of the specification that network plugins are tested against. It knows no nodes: that a pod is always reached
// from its own node, as by the kubelet, is for the plugin to see to.
package networkpolicy

import (
	"os"
	"testing"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/signet-ca/signet/test/controlplane"
)

var plane *controlplane.Plane

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard()) // or it asks for one
	os.Exit(controlplane.Run(m, controlplane.Config{WithoutCertManager: true}, &plane, nil))
}
