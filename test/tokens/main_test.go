// Package tokens holds what is decided about service account tokens against what a real API server decides about the
// same ones at the same moment: tokens of its own, and such as are signed with its own keys, whatever is in them.
package tokens

import (
	"context"
	"crypto"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/test/controlplane"
)

// The control plane that the tests share, the keys by which it signs or verifies tokens, and what is asked to judge them.
var (
	plane   *controlplane.Plane
	keys    *keyring
	local   *ca.Local
	counted *prometheus.Registry // of local
	objects *presence.Index
	// reference asks the API server about each token. It keeps its answers for a millisecond, the least there is.
	reference *ca.Reviewer
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	flag.Parse()
	ctrl.SetLogger(logr.Discard())
	code, err := prepareAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func prepareAndRun(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "signet-tokens-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if keys, err = writeKeyring(dir); err != nil {
		return 0, err
	}
	if plane, err = controlplane.Start(context.Background(), controlplane.Config{Dir: dir, WithoutCertManager: true}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	ctx, stop := context.WithCancel(context.Background())
	var running errgroup.Group
	defer func() {
		stop()
		err = errors.Join(err, running.Wait())
	}()
	if err := startJudges(ctx, &running); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// startJudges makes the two who are compared.
func startJudges(ctx context.Context, running *errgroup.Group) error {
	log := slog.New(slog.DiscardHandler)
	cfg := ca.Config{
		TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"),
		Token: ca.TokenConfig{
			Authentication: "local",
			CacheAccepted:  setting.DurationOf(time.Millisecond),
			CacheRejected:  setting.DurationOf(time.Millisecond),
			ReviewTimeout:  setting.DurationOf(5 * time.Second),
		},
	}
	counted = prometheus.NewRegistry()
	known, err := ca.NewKeys(plane.Admin(), log, counted)
	if err != nil {
		return err
	}
	if objects, err = presence.New(plane.Admin(), presence.Config{
		Cluster: "Kubernetes", Kinds: []presence.Kind{presence.Pods, presence.ServiceAccounts, presence.Nodes},
	}, log, counted); err != nil {
		return err
	}
	running.Go(func() error { return known.Start(ctx) })
	running.Go(func() error { return objects.Start(ctx) })
	local = ca.NewLocal(cfg, ca.NewReviewer(cfg, plane.Client(), counted), known, objects, counted)
	reference = ca.NewReviewer(cfg, plane.Client(), prometheus.NewRegistry())
	return nil
}

// results are how many tokens were accepted, rejected and reviewed, by result.
func results(t testing.TB) map[string]int {
	t.Helper()
	sums := make(map[string]int)
	for labels, n := range causes(t) {
		sums[labels[0]] += n
	}
	return sums
}

// causes are the same by result and cause.
func causes(t testing.TB) map[[2]string]int {
	t.Helper()
	families, err := counted.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sums := make(map[[2]string]int)
	for _, family := range families {
		if family.GetName() != "token_local_total" {
			continue
		}
		for _, sample := range family.GetMetric() {
			labels := make(map[string]string)
			for _, l := range sample.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			sums[[2]string{labels["result"], labels["cause"]}] += int(sample.GetCounter().GetValue())
		}
	}
	return sums
}

// keyring are the keys of tokens. The API server signs with the first.
type keyring struct {
	p256, p384, p521, rsa crypto.Signer
	foreign               crypto.Signer // one that the API server doesn't know
	file                  string
}
