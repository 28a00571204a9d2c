package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// open opens a store in dir and closes it at the end.
func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Replica == "" {
		cfg.Replica = "signet-0"
	}
	s, err := Open(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	_, known := s.disk.free()
	require.True(t, known)
	s.disk.ask = func(string) (uint64, error) { return 1 << 40, nil } // however full this machine's is
	s.disk.look()
	return s
}

// issuance is the n-th of the tests, by holder n of identity n%10 of namespace n%3.
func issuance(n int, at time.Time) Issuance {
	sum := sha256.Sum256([]byte(fmt.Sprint("certificate ", n)))
	namespace, account := fmt.Sprintf("team-%d", n%3), fmt.Sprintf("app-%d", n%10)
	identity := "spiffe://cluster.local/ns/" + namespace + "/sa/" + account
	return Issuance{
		IssuerKeyID: "00112233445566778899aabbccddeeff00112233", SerialNumber: hex.EncodeToString(sum[:16]),
		SHA256: hex.EncodeToString(sum[:]), SPKISHA256: hex.EncodeToString(sum[:]), DER: make([]byte, 700),
		RecordedAt: at, NotBefore: at, NotAfter: at.Add(24 * time.Hour), RequestedLifetime: 24 * time.Hour,
		Identity: identity, TrustDomain: "cluster.local", Namespace: namespace, ServiceAccount: account,
		ServiceAccountUID: "5b7dd2b0-5d0a-4b0c-8d0e-9b6a5b7c8d9e", SANs: []string{identity},
		KeyAlgorithm: "ECDSA", KeyBits: 256, SignatureAlgorithm: "ECDSA-SHA256",
		Issuer: "Issuer.cert-manager.io/istio-ca", RootSHA256: hex.EncodeToString(sum[:]), RootSubject: "CN=root",
		Pod: fmt.Sprintf("app-%d-5d8f7c9b6d-x%d", n%10, n), PodUID: fmt.Sprintf("7c9e6679-7425-40de-944b-%012d", n), Node: fmt.Sprintf("node-%d", n%5),
		Credential: "JTI=0e1f2a3b-4c5d-6e7f-8091-a2b3c4d5e6f7", Cluster: "Kubernetes", Peer: fmt.Sprintf("10.0.%d.%d", n/250%250, n%250),
		RequestName: "signet-" + hex.EncodeToString(sum[:10]), RequestUID: "9b6a5b7c-8d9e-4b0c-8d0e-5b7dd2b05d0a",
	}
}

// BenchmarkRecord is the cost of a record where 64 callers share commits: time, CPU time of the whole
// process, and bytes that reach the disk. The certificates are of 20,000 identities.
func BenchmarkRecord(b *testing.B) {
	s := open(b, Config{})
	now := time.Now()
	n := make(chan int, 1024)
	go func() {
		for i := range b.N {
			n <- i
		}
		close(n)
	}()
	cpu, written := used(b)
	b.ReportAllocs()
	b.ResetTimer()
	done := make(chan error, 64)
	for range 64 {
		go func() {
			var err error
			for i := range n {
				record := issuance(i, now.Add(time.Duration(i)*time.Millisecond))
				record.ServiceAccount = fmt.Sprintf("account-%d", i*7919%20_000)
				record.Identity = "spiffe://cluster.local/ns/" + record.Namespace + "/sa/" + record.ServiceAccount
				record.SANs[0] = record.Identity
				if e := s.Record(context.Background(), record); e != nil {
					err = e
				}
			}
			done <- err
		}()
	}
	for range 64 {
		require.NoError(b, <-done)
	}
	b.StopTimer()
	cpuAfter, writtenAfter := used(b)
	b.ReportMetric(float64((cpuAfter-cpu).Microseconds())/float64(b.N), "cpu-us/record")
	b.ReportMetric(float64(writtenAfter-written)/float64(b.N), "disk-bytes/record")
	var pages float64
	require.NoError(b, s.local.QueryRow(`SELECT page_count * 4096.0 FROM pragma_page_count()`).Scan(&pages))
	b.ReportMetric(pages/float64(b.N), "file-bytes/record")
}

// used is the CPU time that this process has taken, and the bytes it has sent to disks.
func used(b *testing.B) (time.Duration, int64) {
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return cpu, 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			require.NoError(b, err)
			return cpu, n
		}
	}
	return cpu, 0
}
