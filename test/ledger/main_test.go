// Package ledger holds the tests of the ledger that need more than the package itself: a real
// PostgreSQL beside the replicas' own stores, several replicas, a full disk, and processes that are
// killed.
package ledger

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/test/ledger/postgres"
)

// server is shared by all tests; each has a database of its own.
var server *postgres.Server

func TestMain(m *testing.M) {
	var err error
	if server, err = postgres.Start(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		code = 1
	}
	os.Exit(code)
}

// database is the file that holds the DSN of an empty database.
func database(t *testing.T) (dsnFile, dsn string) {
	t.Helper()
	dsn, err := server.Database(t.Context(), "t"+strings.ToLower(rand.Text()[:16]))
	require.NoError(t, err)
	dsnFile = t.TempDir() + "/dsn"
	require.NoError(t, os.WriteFile(dsnFile, []byte(dsn+"\n"), 0o600))
	return dsnFile, dsn
}

// replica is a store that runs.
type replica struct {
	*ledger.Store
	registry *prometheus.Registry
	end      func() error // ends Start and closes the store
}

// start opens and starts a store, which ends with the test at the latest.
func start(t *testing.T, cfg ledger.Config) *replica {
	t.Helper()
	r := &replica{registry: prometheus.NewRegistry()}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Replica == "" {
		cfg.Replica = "signet-0"
	}
	var err error
	r.Store, err = ledger.Open(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), r.registry)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Start(ctx) }()
	var over bool
	r.end = func() error {
		if over {
			return nil
		}
		over = true
		cancel()
		if err := <-ended; err != nil {
			return err
		}
		return r.Close()
	}
	t.Cleanup(func() { _ = r.end() })
	return r
}

// shipped waits until the shared view has all that r recorded.
func (r *replica) shipped(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		text, err := r.Ready(time.Now())
		require.NoError(t, err)
		coverage, err := r.Local().Coverage(t.Context())
		require.NoError(t, err)
		return coverage.Shipping.Reached && coverage.Shipping.Records == 0 && !strings.Contains(text, "not reached")
	}, patience, 20*time.Millisecond)
}

// metric is the sum of a metric over its labels.
func (r *replica) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := r.registry.Gather()
	require.NoError(t, err)
	sum := 0.0
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// issuance is a record whose key follows from name: one pod's leaf.
func issuance(name string, at time.Time) ledger.Issuance {
	sum := sha256.Sum256([]byte(name))
	const identity = "spiffe://cluster.local/ns/shop/sa/web"
	return ledger.Issuance{
		IssuerKeyID: "00112233445566778899aabbccddeeff00112233", SerialNumber: "01" + hex.EncodeToString(sum[:15]),
		SHA256: hex.EncodeToString(sum[:]), SPKISHA256: hex.EncodeToString(sum[:]), DER: append([]byte("certificate "), name...),
		RecordedAt: at, NotBefore: at, NotAfter: at.Add(time.Hour), RequestedLifetime: time.Hour,
		Identity: identity, TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web", SANs: []string{identity},
		KeyAlgorithm: "ECDSA", KeyBits: 256, SignatureAlgorithm: "ECDSA-SHA256",
		Issuer: "Issuer.cert-manager.io/istio-ca", RootSHA256: hex.EncodeToString(sum[:]), RootSubject: "CN=root",
		Pod: "web-" + name, PodUID: "uid-" + name, Node: "node-1", Cluster: "Kubernetes", Peer: "10.0.0.1",
		RequestName: "signet-" + name, RequestUID: "request-" + name,
	}
}
