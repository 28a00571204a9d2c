// Package migration rehearses how a mesh comes to Signet from the certificate authority that it has: istiod's own, self-signed
// or with plugged-in certificates, or one like istio-csr. Pilot-agents renew all the time while they, or the names that
// they know, are moved; none of their renewals may fail, and at no moment may two workloads be unable to talk.
//
// Each test is one procedure, and logs what happened when. The old authorities are Istio's own packages in this process; the
// control plane, Signet and the agents are processes. There is no DNS and no kube-proxy, so [network] stands for both.
package migration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	istiolog "istio.io/istio/pkg/log"

	"github.com/signet-ca/signet/test/controlplane"
)

// The addresses that agents are told, as caAddress.
const (
	istiodAddress   = "istiod.istio-system.svc:15012"
	istioCSRAddress = "cert-manager-istio-csr.cert-manager.svc:443"
	signetAddress   = "signet.istio-system.svc:443"
)

var (
	plane  *controlplane.Plane
	shared *mesh // the mesh of those tests that change nothing of it
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	flag.Parse()
	ctx := context.Background()
	ctrllog.SetLogger(logr.Discard()) // or it asks for one
	for _, scope := range istiolog.Scopes() {
		scope.SetOutputLevel(istiolog.ErrorLevel)
	}
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := flag.Set("test.parallel", "16"); err != nil { // the tests mostly wait
		return fail(err)
	}
	var err error
	if plane, err = controlplane.Start(ctx, controlplane.Config{}); err != nil {
		return fail(err)
	}
	defer func() {
		if err := plane.Stop(); err != nil {
			code = fail(err)
		}
	}()
	if shared, err = startMesh(ctx); err != nil {
		return fail(err)
	}
	defer shared.stop()
	return m.Run()
}

// timeline logs what happened when.
type timeline struct {
	t     *testing.T
	began time.Time
}

func begin(t *testing.T) timeline {
	t.Parallel()
	return timeline{t, time.Now()}
}

func (l timeline) say(format string, args ...any) {
	l.t.Helper()
	l.t.Logf("%5.1f s  %s", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}
