package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "go test -update writes it")
	assert.Equal(t, string(want), got)
}

// patience is how long a test waits for what must come.
const patience = 3 * time.Minute

// now is when everything in these tests happens.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// result is how a run of the command ended.
type result struct {
	code     int
	out, err string
}

// run runs the command, which sees no environment but what the test sets.
func run(t *testing.T, args ...string) result {
	t.Helper()
	return runAs(t, t.Context(), "signetctl", args...)
}

func runAs(t *testing.T, ctx context.Context, name string, args ...string) result {
	t.Helper()
	var out, err buffer
	code := command(ctx, append([]string{name}, args...), &out, &err)
	return result{code, out.String(), err.String()}
}

// alone takes the environment of the machine away.
func alone(t *testing.T) {
	t.Helper()
	for _, name := range []string{"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", serverVariable, caVariable, "HTTPS_PROXY", "https_proxy"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
}

// buffer may be read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(text []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(text)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// server answers as Signet does, with a certificate for its Service's name.
type server struct {
	*httptest.Server
	caFile string
}

func serve(t *testing.T, handler http.Handler) *server {
	t.Helper()
	return serveAs(t, "signet.istio-system.svc", handler)
}

func serveAs(t *testing.T, name string, handler http.Handler) *server {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	s := &server{Server: httptest.NewUnstartedServer(handler), caFile: filepath.Join(t.TempDir(), "ca.pem")}
	require.NoError(t, os.WriteFile(s.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// flags lead to the server.
func (s *server) flags(more ...string) []string {
	return append([]string{"--server", s.URL, "--ca-file", s.caFile}, more...)
}

// answer writes a value, or a problem.
func answer(w http.ResponseWriter, status int, value any) {
	kind := "application/json"
	if status != http.StatusOK {
		kind = "application/problem+json"
		value = api.ProblemDetails{Status: status, Detail: value.(string)}
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}

// kubeconfig writes one whose user is the given YAML, in flow style, and has the command use it. Nobody answers at its
// server: no process is given that port by chance.
func kubeconfig(t *testing.T, user string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := strings.NewReplacer("SERVER", "https://127.0.0.1:1", "USER", user).Replace(`
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u, namespace: shop}}]
clusters: [{name: c, cluster: {server: "SERVER"}}]
users: [{name: u, user: USER}]
`)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	t.Setenv("KUBECONFIG", path)
	return path
}
