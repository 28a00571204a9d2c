package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api/ledger"
)

var update = flag.Bool("update", false, "write the examples of docs/audit.md anew")

// soon is how long a test waits for what happens at once on a machine that isn't busy.
const soon = time.Minute

// rig is a stream that may run.
type rig struct {
	*Stream
	path     string // of its file, "" where it has none
	log      *logged
	registry *prometheus.Registry
	stop     func() // ends Start and waits for it
}

// logged is what was logged.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newRig makes a stream. Where cfg has no output it is a file of the test's own.
func newRig(t testing.TB, cfg Config, stdout *os.File) *rig {
	t.Helper()
	r := &rig{log: &logged{}, registry: prometheus.NewRegistry(), stop: func() {}}
	if cfg.Output == "" {
		r.path = filepath.Join(t.TempDir(), "audit.jsonl")
		cfg.Output = r.path
	}
	var err error
	r.Stream, err = newStream(cfg, Origin{"Kubernetes", "istio-system", "signet-0"}, stdout, slog.New(slog.NewTextHandler(r.log, nil)), r.registry)
	require.NoError(t, err)
	r.retry, r.drain, r.out.patience, r.window = 10*time.Millisecond, soon, 50*time.Millisecond, time.Hour
	return r
}

// start runs the stream until the test ends, or stop is called.
func (r *rig) start(t testing.TB) *rig {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Start(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			assert.NoError(t, err)
		case <-time.After(2 * soon):
			t.Error("the stream doesn't stop")
		}
	})
	t.Cleanup(r.stop)
	return r
}

// events are the lines of the file, each of which must be one.
func (r *rig) events(t testing.TB) []Event[json.RawMessage] {
	t.Helper()
	return eventsIn(t, r.path)
}

func eventsIn(t testing.TB, path string) []Event[json.RawMessage] {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return parse(t, string(text))
}

func parse(t testing.TB, text string) []Event[json.RawMessage] {
	t.Helper()
	if text == "" {
		return nil
	}
	require.True(t, strings.HasSuffix(text, "\n"), "the last line has no end")
	var events []Event[json.RawMessage]
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		var e Event[json.RawMessage]
		decoder := json.NewDecoder(strings.NewReader(line))
		decoder.DisallowUnknownFields()
		require.NoError(t, decoder.Decode(&e), line)
		require.False(t, decoder.More(), line)
		events = append(events, e)
	}
	return events
}

func data[T any](t testing.TB, e Event[json.RawMessage]) T {
	t.Helper()
	var d T
	decoder := json.NewDecoder(bytes.NewReader(e.Data))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&d), string(e.Data))
	return d
}

// counted is a value of audit_events_total.
func (r *rig) counted(t testing.TB, k kind, outcome string) int {
	t.Helper()
	families, err := r.registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if family.GetName() != "audit_events_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			if labels := m.GetLabel(); labels[0].GetValue() == outcome && labels[1].GetValue() == k.name() {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	t.Fatalf("no metric for %s %s", k.name(), outcome)
	return 0
}

func (r *rig) ready() string {
	text, _ := r.Ready(time.Now())
	return text
}

// eventually waits for something that needn't happen at once.
func eventually(t testing.TB, done func() bool, what string) {
	t.Helper()
	require.Eventually(t, done, soon, 5*time.Millisecond, what)
}

// issuance is a record of which number is part.
func issuance(number int) ledger.Issuance {
	begin := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	id := "spiffe://cluster.local/ns/shop/sa/cart"
	return ledger.Issuance{
		IssuerKeyID: "5d1f6a0c9be24773a8f0c1d2e3b4a59687706152", SerialNumber: "4f2a9c0be1d7735586aa01",
		SHA256: fmt.Sprintf("%s%08x", strings.Repeat("ab", 28), number), SPKISHA256: strings.Repeat("c4", 32), DER: []byte("the certificate itself"),
		RecordedAt: begin.Add(1234 * time.Millisecond), NotBefore: begin.Add(-time.Minute), NotAfter: begin.Add(24*time.Hour - time.Minute), RequestedLifetime: 24 * time.Hour,
		Identity: id, TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "cart", ServiceAccountUID: "5f3c1e0a-7f4e-4c55-9e43-0a2f6f1f8a10",
		SANs: []string{id}, KeyAlgorithm: "ECDSA", KeyBits: 256, SignatureAlgorithm: "ECDSA-SHA256",
		Issuer: "ClusterIssuer.cert-manager.io/mesh", RootSHA256: strings.Repeat("7e", 32), RootSubject: "CN=mesh root",
		Pod: "cart-6d5f9c7b9-x2x8p", PodUID: "0b7e7a57-3f0a-4a0f-9d9c-1f2b7f0d6c31", Node: "node-3", Credential: "JTI=3b1f2c9a-1d3e-4b57-8a2c-6f0e9d8c7b6a",
		Cluster: "Kubernetes", Peer: "10.1.4.17", RequestName: "signet-2v7l4m0q", RequestUID: "9c8d7e6f-5a4b-4c3d-8e2f-1a0b9c8d7e6f", Replica: "signet-0", Source: ledger.Own,
	}
}
