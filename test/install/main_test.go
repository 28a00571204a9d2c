// Package install shows the Helm chart on a real control plane: Helm's own library installs, upgrades, rolls back and
// removes it, and what the API server then holds is run.
//
// There is no kubelet, no StatefulSet controller and no kube-proxy here, so small ones of our own stand in ([node],
// [workloads], [front]). A container is the real program in a root directory of its own (chroot), as the user of its
// security context, with the arguments, the environment and the files that the Pod at the API server gives it; it can write
// where its volumes are and nowhere else. Two things of a pod need rights that a test may not have, a network and a host
// name of its own. In their place a pod's address is one of 127.0.0.0/8, and in the configuration file, as it is mounted,
// the listen addresses are on that host, and replica is the pod's name. All ports are those of the chart.
//
// It needs Linux, and root with CAP_SYS_CHROOT, CAP_SETUID, CAP_SETGID and CAP_CHOWN, which containers have by default.
package install

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is the control plane that all tests of the package share; each has namespaces of its own.
var plane *controlplane.Plane

func TestMain(m *testing.M) {
	// The tests wait for processes and clocks most of the time.
	flag.Parse()
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	ctrllog.SetLogger(logr.Discard()) // or it asks for one
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests give containers a root directory and a user of their own: run them as root")
		os.Exit(1)
	}
	os.Exit(controlplane.Run(m, controlplane.Config{}, &plane, allowEverything))
}
