// Bench measures Signet against bare CertificateRequests on one control plane in one run.
//
// Usage:
//
//	bench [-only certificates|distribution|ledger|inventory|inspection|presence|authentication] [-rounds N] [-scale F] [-key ecdsa|rsa|all] [-flood N]
//
// Bare means: create a CertificateRequest, wait for it on one shared watch, delete it. Signet means: one
// CreateCertificate call over TLS with one of 400 distinct tokens, Signet running as its own process
// under its own ServiceAccount. Each caller makes its next call when the last one is answered. Both
// sides start and end with no CertificateRequest left, inside the measured window: a rate is
// certificates over the time until the last object is gone. Latency is that of the certificate alone,
// without its delete, on both sides. The sides take turns, and each figure is the median of the rounds.
//
// Distribution is measured by itself, on a control plane of its own: how long 5,000 namespaces take to
// carry their first root certificates (distribution_fill_s), and a changed bundle (distribution_change_s),
// how long a namespace that comes alone waits, and what the distributor keeps in memory for each.
//
// Authentication is measured by itself too: how long a token takes by TokenReview (authn_review_us), with the answer kept
// (authn_cached_us) and without the API server (authn_local_us), one after the other, and what each asks of the API
// server; and, both with tokens reviewed and verified locally, how much of their rate 16 honest callers keep while 1,000
// addresses send tokens with bad signatures as fast as they can (authn_flood_*).
//
// Inspection is how much of their rate 16 callers keep while 32 operators ask for certificates and services without a
// pause (inspection_storm_ratio).
//
// Each figure is printed as a line "bench: NAME NUMBER", rates in certificates per second, times in
// milliseconds. Names end in the number of callers, and in _rsa where CA and CSRs have RSA-2048 keys
// instead of P-256.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/signet-ca/signet/test/controlplane"
)

func main() {
	rounds := flag.Int("rounds", 3, "how often each figure is measured; the median counts")
	scale := flag.Float64("scale", 1, "factor on the number of certificates of each measurement")
	key := flag.String("key", "all", "ecdsa, rsa or all")
	only := flag.String("only", "", "certificates, distribution, ledger, inventory, inspection, presence or authentication; all where it isn't set")
	flood := flag.Int("flood", 10_000, "how many bad tokens are sent while honest callers sign")
	flag.Parse()
	ctrl.SetLogger(logr.Discard()) // what the client libraries say of themselves
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	progress := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	for _, part := range []struct {
		name    string
		measure func() error
	}{
		{"certificates", func() error { return run(ctx, *rounds, *scale, *key, progress) }},
		{"distribution", func() error { return measureDistribution(ctx, *scale, progress, os.Stdout) }},
		{"ledger", func() error { return measureLedger(ctx, *scale, progress, os.Stdout) }},
		{"inventory", func() error { return measureInventory(ctx, progress, os.Stdout) }},
		{"inspection", func() error { return measureInspection(ctx, *rounds, *scale, progress, os.Stdout) }},
		{"presence", func() error { return measurePresence(ctx, *scale, progress, os.Stdout) }},
		{"authentication", func() error { return measureAuthentication(ctx, *scale, *flood, progress, os.Stdout) }},
	} {
		if *only != "" && *only != part.name {
			continue
		}
		if err := part.measure(); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			stop()
			os.Exit(1) //nolint:gocritic // what was deferred has been done
		}
	}
}

// load is one way of calling: how many callers, and how many certificates in one measurement.
type load struct{ callers, certificates int }

var loads = []load{{1, 500}, {16, 2000}, {64, 2000}}

func run(ctx context.Context, rounds int, scale float64, key string, progress func(string, ...any)) (err error) {
	plane, err := controlplane.Start(ctx, controlplane.Config{Fsync: true, Progress: progress})
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := plane.Stop(); err == nil {
			err = stopErr
		}
	}()

	report := newReport()
	for _, rsa := range []bool{false, true} {
		if rsa && key == "ecdsa" || !rsa && key == "rsa" {
			continue
		}
		b, err := prepare(ctx, plane, rsa, progress)
		if err != nil {
			return err
		}
		if err := b.measure(ctx, rounds, scale, report); err != nil {
			b.stop()
			return err
		}
		b.stop()
	}
	report.print(os.Stdout)
	return nil
}

// measure runs all loads, the two sides in turns.
func (b *bench) measure(ctx context.Context, rounds int, scale float64, report *report) error {
	// The first certificates on a fresh plane are slow on either side.
	for _, warm := range []side{b.bare, b.signet} {
		if _, err := b.once(ctx, warm, load{8, 200}); err != nil {
			return fmt.Errorf("warm up: %w", err)
		}
	}
	for round := range rounds {
		for _, l := range loads {
			l.certificates = max(l.callers, int(float64(l.certificates)*scale))
			sides := []side{b.bare, b.signet}
			if round%2 == 1 {
				sides = []side{b.signet, b.bare}
			}
			for _, s := range sides {
				result, err := b.once(ctx, s, l)
				if err != nil {
					return fmt.Errorf("%s with %d callers: %w", s.name(), l.callers, err)
				}
				b.progress("round %d  %-6s  %s  %2d callers  %s", round+1, s.name(), keyName(b.rsa), l.callers, result)
				report.add(s.name(), l.callers, b.rsa, result)
			}
		}
	}
	return nil
}
