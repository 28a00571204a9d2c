// Package faults runs Signet against everything that may go wrong around it: issuers that lie, fail
// or are silent, an API server that goes away, streams that tell nothing, replicas that die.
//
// The tests speak to running Signets over TLS and gRPC. Most share one control plane without
// cert-manager, where a [testca.Issuer] answers; those that need cert-manager itself, or that take a
// control plane down, have planes of their own.
package faults

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is the control plane that the tests share; each has namespaces of its own.
var plane *controlplane.Plane

func TestMain(m *testing.M) {
	flag.Parse()
	// Nearly all of these tests wait, for leases and orphans; the processors are no measure for how many
	// may do so at once.
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if !set {
		if err := flag.Set("test.parallel", "12"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ctrl.SetLogger(logr.Discard()) // what clients try again is no news here
	os.Exit(controlplane.Run(m, controlplane.Config{WithoutCertManager: true}, &plane, nil))
}
