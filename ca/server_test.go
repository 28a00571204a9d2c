package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/signet-ca/signet/signer"
)

// TestLoggedRequests: the lines of a certificate and of a refusal say who called, for whom where that is somebody else,
// and from which cluster where it isn't ours; that of a certificate has the key by which the inspection API knows it.
func TestLoggedRequests(t *testing.T) {
	former := spiffeid.RequireFromString("spiffe://old.mesh/ns/foo/sa/alice")
	istiod := spiffeid.RequireFromString("spiffe://cluster.local/ns/istio-system/sa/istiod")
	ours := &Caller{ID: alice, Cluster: "east"}
	for name, row := range map[string]struct {
		caller *Caller
		grant  Grant
		want   map[string]any
	}{
		"nobody yet":            {nil, Grant{}, map[string]any{}},
		"nothing granted":       {ours, Grant{}, map[string]any{"caller": alice.String()}},
		"its own":               {ours, own(ours), map[string]any{"caller": alice.String()}},
		"a former trust domain": {ours, Grant{ID: former}, map[string]any{"caller": alice.String(), "for": former.String()}},
		"a node's proxy":        {ours, Grant{ID: bob, Impersonated: true}, map[string]any{"caller": alice.String(), "for": bob.String()}},
		"istiod's registration": {&Caller{ID: istiod}, Grant{ID: alice}, map[string]any{"caller": istiod.String(), "for": alice.String(), "cluster": ""}},
		"another cluster":       {&Caller{ID: alice, Cluster: "west"}, Grant{ID: alice}, map[string]any{"caller": alice.String(), "cluster": "west"}},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			s := New(Config{ClusterID: "east"}, Parts{Recorder: &told{}}, slog.New(slog.NewJSONHandler(&log, nil)), prometheus.NewRegistry())
			leaf := &x509.Certificate{Raw: []byte("DER"), NotAfter: certNow}
			s.issued(&exchange{caller: row.caller, grant: row.grant, chain: &signer.Chain{Leaf: leaf}})
			requireKind(t, kindFailed, s.finish(&exchange{caller: row.caller, grant: row.grant}, kindFailed.because("no")))
			lines := jsonLines(t, &log)
			require.Len(t, lines, 2)
			assert.Equal(t, "certificate issued", lines[0]["msg"])
			assert.Equal(t, "certificate refused", lines[1]["msg"])
			sum := sha256.Sum256([]byte("DER"))
			assert.Equal(t, hex.EncodeToString(sum[:]), lines[0]["sha256"])
			for _, line := range lines {
				is := make(map[string]any)
				for _, key := range []string{"caller", "for", "cluster"} {
					if value, there := line[key]; there {
						is[key] = value
					}
				}
				assert.Equal(t, row.want, is, line["msg"])
			}
		})
	}
}

// TestLoggedStop: what is logged from the start to a stop that requests under way hold up.
func TestLoggedStop(t *testing.T) {
	ca := sign(t, 1, nil, asCA("root"))
	var log bytes.Buffer // written by Start's goroutine and the one that it waits for
	s := New(Config{Listen: "127.0.0.1:0", ShutdownDelay: time.Millisecond, DrainTimeout: 20 * time.Millisecond},
		Parts{}, slog.New(slog.NewJSONHandler(&log, nil)), prometheus.NewRegistry())
	endpoint := NewEndpoint(s, func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key}, nil
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- endpoint.Start(ctx) }()
	require.Eventually(t, func() bool { _, err := s.Ready(); return err == nil }, 30*time.Second, time.Millisecond)
	address, err := s.Ready()
	require.NoError(t, err)

	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	require.NoError(t, err)
	defer func() { assert.NoError(t, conn.Close()) }()
	under, err := healthgrpc.NewHealthClient(conn).Watch(t.Context(), &healthgrpc.HealthCheckRequest{})
	require.NoError(t, err)
	_, err = under.Recv()
	require.NoError(t, err)
	stop()
	require.NoError(t, <-ended)

	lines := jsonLines(t, &log)
	for _, line := range lines {
		delete(line, "time")
	}
	assert.Equal(t, []map[string]any{
		{"level": "INFO", "msg": "listening", "endpoint": "ca", "address": address},
		{"level": "INFO", "msg": "stopping: not ready any more, still accepting", "for_seconds": 0.001},
		{"level": "WARN", "msg": "requests are still under way, closing their connections", "after_seconds": 0.02},
	}, lines)
}

func jsonLines(t *testing.T, from io.Reader) (lines []map[string]any) {
	t.Helper()
	for decoder := json.NewDecoder(from); ; {
		var line map[string]any
		err := decoder.Decode(&line)
		if err == io.EOF {
			return lines
		}
		require.NoError(t, err)
		lines = append(lines, line)
	}
}
