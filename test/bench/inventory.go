package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/api/records"
	"github.com/signet-ca/signet/test/process"
)

// inventoryFigures are those of the inventory's own benchmark that are printed: 100,000 pods with an identity, a service
// and a live certificate each, while 1,000 certificates are issued in a second.
var inventoryFigures = []struct{ benchmark, unit, name string }{
	{"page_of_500_services", "p99-ms", "page_p99_ms_100k"},
	{"page_of_500_certificates", "p99-ms", "certificates_page_p99_ms_100k"},
	{"one_service", "p99-ms", "service_p99_ms_100k"},
	{"page_of_500_services", "bytes/leaf", "bytes_per_live_certificate"},
}

// measureInventory runs the inventory's own benchmark, which can make so many pods without a cluster of that size.
func measureInventory(ctx context.Context, progress func(string, ...any), out io.Writer) error {
	root, err := process.Root()
	if err != nil {
		return err
	}
	progress("inventory  100,000 pods, services and certificates")
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-benchtime", "300x",
		"-bench", "^BenchmarkInventory$/^per-service=1$/^(page_of_500_services|page_of_500_certificates|one_service)$", "./api/inventory")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("benchmark of the inventory: %w\n%s", err, text)
	}
	for _, figure := range inventoryFigures {
		value, ok := reported(string(text), figure.benchmark, figure.unit)
		if !ok {
			return fmt.Errorf("the benchmark of the inventory reports no %s of %q:\n%s", figure.unit, figure.benchmark, text)
		}
		fmt.Fprintf(out, "bench: %s %.3f\n", figure.name, value)
	}
	return nil
}

// reported is a figure in the output of a benchmark.
func reported(text, benchmark, unit string) (float64, bool) {
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || !strings.Contains(fields[0]+"-", "/"+benchmark+"-") {
			continue
		}
		for n := 1; n < len(fields); n++ {
			if fields[n] == unit {
				value, err := strconv.ParseFloat(fields[n-1], 64)
				return value, err == nil
			}
		}
	}
	return 0, false
}

// measureReplay measures how long an inventory takes at its start to know the latest certificate of each holder from a
// ledger.
func measureReplay(ctx context.Context, store *ledger.Store) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cfg := inventory.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Cluster: "Kubernetes"}
	inv, err := inventory.New(cfg, records.Of(store), inventory.TrustSources{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return 0, err
	}
	var running sync.WaitGroup
	began := time.Now()
	var failed error
	running.Go(func() { failed = inv.Start(ctx) })
	for !loaded(ctx, inv) && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(began)
	err = ctx.Err()
	cancel()
	running.Wait()
	return took, errors.Join(err, failed)
}

// loaded says whether an inventory knows what was issued before.
func loaded(ctx context.Context, inv *inventory.Inventory) bool {
	list, err := inv.Services(ctx, api.ServiceQuery{Page: api.Page{Limit: 1}, Visible: everybody{}})
	if err != nil {
		return false
	}
	for _, source := range list.Coverage.Sources {
		if source.Name == "inventory" {
			return source.Up
		}
	}
	return false
}

// everybody may see everything.
type everybody struct{}

func (everybody) All() bool             { return true }
func (everybody) Namespace(string) bool { return true }
