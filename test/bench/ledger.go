package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/test/ledger/postgres"
)

const (
	// ledgerCallers ask at once, of a signer that takes ledgerSigning for each certificate: 1,000 a second.
	ledgerCallers = 64
	ledgerSigning = 64 * time.Millisecond
	ledgerRounds  = 5

	// The big ledger: every identity has renewed so many times, twice a day.
	ledgerIdentities = 100_000
	ledgerRenewals   = 10
)

// measureLedger measures what a durable record costs an issuance, and how long questions take that are
// asked of a ledger with 1,000,000 records of 100,000 identities: in the replica's own store (SQLite) and in
// the shared view (PostgreSQL, as it is after ANALYZE). Figures: ledger_cost_ratio, the part of the throughput
// that is lost when 64 callers of a signer with 1,000 certificates a second record each; what the store can
// take at most, with CPU time; then, of the big ledger, bytes, time to open, time until an inventory knows the latest of each holder, p99 in milliseconds of a page of
// 500 records, of such a page of live ones, of the records of one identity, and the cost again (_big).
func measureLedger(ctx context.Context, scale float64, progress func(string, ...any), out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "signet-bench-ledger-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	line := func(name string, value float64) { fmt.Fprintf(out, "bench: %s %.3f\n", name, value) }
	if err := measureEmptyLedger(ctx, filepath.Join(dir, "empty"), scale, progress, line); err != nil {
		return fmt.Errorf("empty ledger: %w", err)
	}
	if err := measureBigLedger(ctx, filepath.Join(dir, "big"), scale, progress, line); err != nil {
		return fmt.Errorf("big ledger: %w", err)
	}
	return nil
}

// openLedger opens a store.
func openLedger(ctx context.Context, dir, dsnFile string) (*ledger.Store, error) {
	cfg := ledger.Config{Dir: dir, Replica: "bench"}
	cfg.Postgres.DSNFile = dsnFile
	return ledger.Open(ctx, cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

// mint is a signer that signs at once.
type mint struct {
	issuer *x509.Certificate
	key    *ecdsa.PrivateKey
	leaf   *ecdsa.PrivateKey
	serial atomic.Int64
}

func newMint() (*mint, error) {
	m := &mint{}
	var err error
	if m.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if m.leaf, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte("the issuer's key id."),
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, m.key.Public(), m.key)
	if err != nil {
		return nil, err
	}
	m.issuer, err = x509.ParseCertificate(der)
	return m, err
}

// issue signs a certificate and fills in what a record of it holds.
func (m *mint) issue() (ledger.Issuance, error) {
	n := m.serial.Add(1)
	sum := sha256.Sum256(fmt.Append(nil, "serial ", n))
	identity := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: fmt.Sprintf("/ns/team-%d/sa/account-%d", n%500, n*7919%20_000)}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(sum[:16]), URIs: []*url.URL{identity}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, m.issuer, m.leaf.Public(), m.key)
	if err != nil {
		return ledger.Issuance{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return ledger.Issuance{}, err
	}
	i, err := ledger.NewIssuance(leaf, m.issuer)
	if err != nil {
		return ledger.Issuance{}, err
	}
	describe(&i, n)
	return i, nil
}

// describe fills in the caller, as long as in a real mesh.
func describe(i *ledger.Issuance, n int64) {
	i.RequestedLifetime = 24 * time.Hour
	i.ServiceAccountUID = "5b7dd2b0-5d0a-4b0c-8d0e-9b6a5b7c8d9e"
	i.Issuer, i.RootSHA256, i.RootSubject = "Issuer.cert-manager.io/istio-ca", strings.Repeat("ab", 32), "CN=root,O=cluster.local"
	i.Pod, i.PodUID = fmt.Sprintf("app-%d-5d8f7c9b6d-x2b4q", n%100_000), fmt.Sprintf("7c9e6679-7425-40de-944b-%012d", n%100_000)
	i.Node, i.Credential = fmt.Sprintf("node-%d.example.internal", n%1000), fmt.Sprintf("JTI=0e1f2a3b-4c5d-6e7f-8091-%012d", n)
	i.Cluster, i.Peer = "Kubernetes", fmt.Sprintf("10.%d.%d.%d", n/65536%256, n/256%256, n%256)
	i.RequestName, i.RequestUID = fmt.Sprintf("signet-%024d", n), fmt.Sprintf("9b6a5b7c-8d9e-4b0c-8d0e-%012d", n)
}

// measureLedgerCost compares the throughput with and without a record, in turns. suffix goes to the
// names of the figures.
func measureLedgerCost(ctx context.Context, store *ledger.Store, scale float64, suffix string, progress func(string, ...any), line func(string, float64)) error {
	signer, err := newMint()
	if err != nil {
		return err
	}
	certificates := max(ledgerCallers, int(4000*scale))
	var rates [2][]float64 // without and with
	var latencies []time.Duration
	for round := range ledgerRounds {
		for turn := range 2 {
			recording := (round+turn)%2 == 1
			took, waits, err := issueAll(ctx, signer, store, recording, ledgerSigning, certificates)
			if err != nil {
				return err
			}
			rate := float64(certificates) / took.Seconds()
			if recording {
				rates[1] = append(rates[1], rate)
				latencies = append(latencies, waits...)
			} else {
				rates[0] = append(rates[0], rate)
			}
			progress("ledger  round %d  recording %-5t  %7.1f certificates/s", round+1, recording, rate)
		}
	}
	slices.Sort(rates[0])
	slices.Sort(rates[1])
	slices.Sort(latencies)
	without, with := rates[0][ledgerRounds/2], rates[1][ledgerRounds/2]
	line("ledger_rate_without_record"+suffix, without)
	line("ledger_rate_with_record"+suffix, with)
	line("ledger_cost_ratio"+suffix, 1-with/without)
	line("ledger_record_p50_ms"+suffix, ms(latencies[len(latencies)/2]))
	line("ledger_record_p99_ms"+suffix, ms(latencies[len(latencies)*99/100]))
	return nil
}

// measureEmptyLedger measures what records cost in a store that has few, and how many it can take at most.
func measureEmptyLedger(ctx context.Context, dir string, scale float64, progress func(string, ...any), line func(string, float64)) (err error) {
	store, err := openLedger(ctx, dir, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := measureLedgerCost(ctx, store, scale, "", progress, line); err != nil {
		return err
	}
	signer, err := newMint()
	if err != nil {
		return err
	}
	// The callers do nothing but record.
	before, err := cpuTime(os.Getpid())
	if err != nil {
		return err
	}
	certificates := max(ledgerCallers, int(20_000*scale))
	records := make([]ledger.Issuance, certificates)
	base, err := signer.issue()
	if err != nil {
		return err
	}
	for n := range records {
		records[n] = distinct(base, int64(n))
	}
	took, err := recordAll(ctx, store, records)
	if err != nil {
		return err
	}
	after, err := cpuTime(os.Getpid())
	if err != nil {
		return err
	}
	line("ledger_records_per_s", float64(certificates)/took.Seconds())
	line("ledger_record_cpu_us", float64((after-before).Microseconds())/float64(certificates))
	return nil
}

// issueAll has the callers ask a signer that takes signing for each certificate, and says how long the
// records were waited for.
func issueAll(ctx context.Context, signer *mint, store *ledger.Store, recording bool, signing time.Duration, certificates int) (time.Duration, []time.Duration, error) {
	waits := make([]time.Duration, certificates)
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for range ledgerCallers {
		group.Go(func() error {
			for {
				n := int(next.Add(1)) - 1
				if n >= certificates || ctx.Err() != nil {
					return ctx.Err()
				}
				done := time.NewTimer(signing)
				i, err := signer.issue()
				if err != nil {
					return err
				}
				<-done.C
				if !recording {
					continue
				}
				asked := time.Now()
				if err := store.Record(ctx, i); err != nil {
					return err
				}
				waits[n] = time.Since(asked)
			}
		})
	}
	err := group.Wait()
	return time.Since(began), waits, err
}

// distinct is a record like base with keys of its own.
func distinct(base ledger.Issuance, n int64) ledger.Issuance {
	sum := sha256.Sum256(fmt.Append(nil, "record ", n))
	base.SerialNumber, base.SHA256, base.SPKISHA256 = "01"+hex.EncodeToString(sum[:15]), hex.EncodeToString(sum[:]), hex.EncodeToString(sum[:])
	describe(&base, n)
	return base
}

// recordAll records with many callers at once.
func recordAll(ctx context.Context, store *ledger.Store, records []ledger.Issuance) (time.Duration, error) {
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for range ledgerCallers {
		group.Go(func() error {
			for {
				n := next.Add(1) - 1
				if n >= int64(len(records)) {
					return nil
				}
				if err := store.Record(ctx, records[n]); err != nil {
					return err
				}
			}
		})
	}
	err := group.Wait()
	return time.Since(began), err
}

// measureBigLedger fills a store, ships it to PostgreSQL, and asks both.
func measureBigLedger(ctx context.Context, dir string, scale float64, progress func(string, ...any), line func(string, float64)) (err error) {
	server, err := postgres.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	dsn, err := server.Database(ctx, "ledger")
	if err != nil {
		return err
	}
	dsnFile := dir + ".dsn"
	if err := os.WriteFile(dsnFile, []byte(dsn), 0o600); err != nil {
		return err
	}
	identities := max(100, int64(ledgerIdentities*scale))
	records := identities * ledgerRenewals
	if err := fillLedger(ctx, dir, identities, progress); err != nil {
		return err
	}
	info, err := os.Stat(filepath.Join(dir, "ledger.db"))
	if err != nil {
		return err
	}
	line("ledger_records", float64(records))
	line("ledger_file_bytes_per_record", float64(info.Size())/float64(records))

	began := time.Now()
	store, err := openLedger(ctx, dir, dsnFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if _, err := store.Local().List(ctx, ledger.Filter{}, ledger.Page{}); err != nil {
		return err
	}
	line("ledger_start_ms", ms(time.Since(began)))
	replay, err := measureReplay(ctx, store)
	if err != nil {
		return err
	}
	line("inventory_replay_s", replay.Seconds())

	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- store.Start(running) }()
	began = time.Now()
	for {
		c, err := store.Local().Coverage(ctx)
		if err != nil {
			stop()
			return errors.Join(err, <-ended)
		}
		if c.Shipping.Reached && c.Shipping.Records == 0 {
			break
		}
		if time.Since(began) > 20*time.Minute || ctx.Err() != nil {
			stop()
			return errors.Join(fmt.Errorf("PostgreSQL still lacks %d records", c.Shipping.Records), ctx.Err(), <-ended)
		}
		time.Sleep(50 * time.Millisecond)
	}
	line("ledger_shipped_per_s", float64(records)/time.Since(began).Seconds())
	progress("ledger  shipped %d records in %.1f s", records, time.Since(began).Seconds())
	stop()
	if err := <-ended; err != nil {
		return err
	}
	if err := server.Analyze(ctx, "ledger"); err != nil {
		return err
	}
	for name, view := range map[string]*ledger.View{"sqlite": store.Local(), "postgres": store.Shared()} {
		if err := measureQuestions(ctx, name, view, identities, progress, line); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return measureLedgerCost(ctx, store, scale, "_big", progress, line)
}

// fillLedger records every identity's renewals, in the order of time.
func fillLedger(ctx context.Context, dir string, identities int64, progress func(string, ...any)) (err error) {
	store, err := openLedger(ctx, dir, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	signer, err := newMint()
	if err != nil {
		return err
	}
	base, err := signer.issue()
	if err != nil {
		return err
	}
	base.DER = slices.Clone(base.DER)
	began := time.Now()
	first := began.Add(-ledgerRenewals * 12 * time.Hour)
	step := 12 * time.Hour / time.Duration(identities)
	for renewal := range int64(ledgerRenewals) {
		var next atomic.Int64
		group, groupCtx := errgroup.WithContext(ctx)
		for range 4 * ledgerCallers {
			group.Go(func() error {
				for {
					n := next.Add(1) - 1
					if n >= identities {
						return nil
					}
					i := distinct(base, renewal*identities+n)
					describe(&i, n)
					i.RecordedAt = first.Add(time.Duration(renewal)*12*time.Hour + time.Duration(n)*step)
					i.NotBefore, i.NotAfter = i.RecordedAt, i.RecordedAt.Add(24*time.Hour)
					i.Identity = identityOf(n)
					i.Namespace, i.ServiceAccount, i.SANs = fmt.Sprintf("team-%d", n%500), fmt.Sprintf("account-%d", n), []string{i.Identity}
					if err := store.Record(groupCtx, i); err != nil {
						return err
					}
				}
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		done := (renewal + 1) * identities
		progress("ledger  %d records, %.0f/s", done, float64(done)/time.Since(began).Seconds())
	}
	return nil
}

func identityOf(n int64) string {
	return fmt.Sprintf("spiffe://cluster.local/ns/team-%d/sa/account-%d", n%500, n)
}

// measureQuestions asks one of the stores.
func measureQuestions(ctx context.Context, name string, view *ledger.View, identities int64, progress func(string, ...any), line func(string, float64)) error {
	p99 := func(figure string, latencies []time.Duration) {
		slices.Sort(latencies)
		p50, p99 := latencies[len(latencies)/2], latencies[len(latencies)*99/100]
		line(fmt.Sprintf("ledger_%s_p99_ms_%s", figure, name), ms(p99))
		progress("ledger  %-8s %-14s p50 %7.2f ms  p99 %7.2f ms  (%d)", name, figure, ms(p50), ms(p99), len(latencies))
	}
	for figure, f := range map[string]ledger.Filter{
		"page":           {},
		"live_page":      {State: ledger.Live},
		"namespace_page": {Namespace: "team-7"},
	} {
		var latencies []time.Duration
		found := 0
		page := ledger.Page{Limit: 500}
		for range 2000 {
			began := time.Now()
			answer, err := view.List(ctx, f, page)
			if err != nil {
				return err
			}
			latencies = append(latencies, time.Since(began))
			found += len(answer.Records)
			if page.Continue = answer.Continue; page.Continue == "" {
				break
			}
		}
		p99(figure, latencies)
		if figure == "live_page" && int64(found) != identities {
			return fmt.Errorf("%d certificates are live, not %d", found, identities)
		}
	}
	var one, latest, certificate []time.Duration
	random := mathrand.New(mathrand.NewPCG(1, 2))
	for range 1000 {
		identity := identityOf(random.Int64N(identities))
		began := time.Now()
		answer, err := view.List(ctx, ledger.Filter{Identity: identity}, ledger.Page{Limit: 500})
		if err != nil {
			return err
		}
		one = append(one, time.Since(began))
		if len(answer.Records) != ledgerRenewals {
			return fmt.Errorf("%s has %d records, not %d", identity, len(answer.Records), ledgerRenewals)
		}
		began = time.Now()
		if _, err := view.List(ctx, ledger.Filter{Identity: identity, State: ledger.Live}, ledger.Page{}); err != nil {
			return err
		}
		latest = append(latest, time.Since(began))
		began = time.Now()
		if _, err := view.Certificate(ctx, answer.Records[0].SHA256); err != nil {
			return err
		}
		certificate = append(certificate, time.Since(began))
	}
	p99("identity", one)
	p99("identity_live", latest)
	p99("certificate", certificate)
	return nil
}
