package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/signet-ca/signet/test/meshclient"
)

// asDemo in the environment makes the test binary be the demo.
const asDemo = "SIGNET_TEST_IS_DEMO"

func TestMain(m *testing.M) {
	if os.Getenv(asDemo) != "" {
		main()
	}
	os.Exit(m.Run())
}

// A running demo is a process of its own, so that it can be sent signals.
type running struct {
	cmd  *exec.Cmd
	dir  string
	done chan struct{} // closed when it has ended and all its output was read

	mu             sync.Mutex // guards the following
	stdout, stderr bytes.Buffer
	grown          chan struct{} // closed and replaced when stdout grows
}

func start(t *testing.T, dir string, args ...string) *running {
	t.Helper()
	r := &running{dir: dir, done: make(chan struct{}), grown: make(chan struct{})}
	self, err := os.Executable()
	require.NoError(t, err)
	r.cmd = exec.Command(self, append([]string{"--dir", dir}, args...)...)
	r.cmd.Env = append(os.Environ(), asDemo+"=1")
	r.cmd.Stderr = &r.stderr
	out, err := r.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, r.cmd.Start())
	go func() {
		defer close(r.done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			r.mu.Lock()
			fmt.Fprintln(&r.stdout, lines.Text())
			close(r.grown)
			r.grown = make(chan struct{})
			r.mu.Unlock()
		}
		_ = r.cmd.Wait() // the exit code tells
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-r.done:
		case <-time.After(time.Minute):
			_ = r.cmd.Process.Kill()
			<-r.done
		}
		if t.Failed() {
			t.Logf("standard output:\n%s\nstandard error:\n%s", r.output(), &r.stderr)
		}
	})
	return r
}

func (r *running) output() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stdout.String()
}

// await waits until the output has text in it.
func (r *running) await(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(5 * time.Minute)
	for {
		r.mu.Lock()
		found, grown := strings.Contains(r.stdout.String(), text), r.grown
		r.mu.Unlock()
		if found {
			return
		}
		select {
		case <-grown:
		case <-r.done:
			require.Contains(t, r.output(), text, "the demo has ended")
			return
		case <-timeout:
			require.Fail(t, "no "+text+" in the output after five minutes")
		}
	}
}

// end waits for the end and returns the exit code. Nothing may be left then.
func (r *running) end(t *testing.T, timeout time.Duration) int {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(timeout):
		require.Fail(t, "the demo has not ended", "after %s", timeout)
	}
	assert.NoDirExists(t, r.dir)
	assert.Empty(t, processesOf(t, r.dir), "processes are left")
	return r.cmd.ProcessState.ExitCode()
}

// processesOf are the programs that run with dir in their command line or as their working directory.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	self := fmt.Sprintf("/proc/%d/", os.Getpid())
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	require.NotEmpty(t, lines)
	var found []string
	for _, path := range lines {
		command, _ := os.ReadFile(path) // whoever has ended meanwhile is not there
		cwd, _ := os.Readlink(filepath.Join(filepath.Dir(path), "cwd"))
		words := strings.ReplaceAll(string(command), "\x00", " ")
		if !strings.HasPrefix(path, self) && (strings.Contains(words, dir+"/") || strings.HasPrefix(cwd, dir+"/")) {
			found = append(found, words)
		}
	}
	return found
}

// waitEnv waits for the file env and returns what a shell reads from it.
func (r *running) waitEnv(t *testing.T) map[string]string {
	t.Helper()
	r.await(t, "Signet: ready")
	out, err := exec.Command("sh", "-euc", fmt.Sprintf(". %s/env; env", r.dir)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	env := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		env[name] = value
	}
	return env
}

func get(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, res.StatusCode, "%s", body)
	return string(body)
}

// sandboxToken asks for a token of sandbox/default as a user of the kubeconfig would.
func sandboxToken(t *testing.T, kubeconfig string) string {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	require.NoError(t, err)
	client, err := kubernetes.NewForConfig(cfg)
	require.NoError(t, err)
	res, err := client.CoreV1().ServiceAccounts(sandbox).CreateToken(t.Context(), "default",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"istio-ca"}}}, metav1.CreateOptions{})
	require.NoError(t, err)
	return res.Status.Token
}

func TestOnce(t *testing.T) {
	t.Parallel()
	r := start(t, filepath.Join(t.TempDir(), "demo"), "--once")
	r.await(t, "waiting for renewals")
	assert.Equal(t, exitOK, r.end(t, 2*time.Minute))
	lines := strings.Split(strings.TrimSuffix(r.output(), "\n"), "\n")
	assert.Equal(t, "demo: 7 of 7 workloads hold certificates, 7 renewed", lines[len(lines)-1])
	assert.Empty(t, r.stderr.String())
	assert.Equal(t, 2, strings.Count(r.output(), "SERVICE ACCOUNT "), "a table before the renewals and one after")
	assert.Contains(t, r.output(), "$ signetctl services -A\nNAMESPACE ")
	assert.Regexp(t, `(?m)^shop +cart +cart +1/1 .* ok$`, r.output())
	assert.Contains(t, r.output(), "The page: https://127.0.0.1:")
	assert.True(t, slices.ContainsFunc(lines, func(line string) bool {
		return strings.HasPrefix(line, "shop ") && strings.Contains(line, "spiffe://cluster.local/ns/shop/sa/cart ") && !strings.HasSuffix(line, " 0")
	}), "a row with a renewal")
}

// whileShown looks at a demo that runs until it is told to stop.
func whileShown(t *testing.T, r *running) {
	env := r.waitEnv(t)

	assert.Contains(t, get(t, env["SIGNET_HEALTH"]+"/readyz"), "[+] serving certificate")
	assert.Contains(t, get(t, env["SIGNET_METRICS"]), "\nsignet_")

	root, err := os.ReadFile(env["SIGNET_CA_ROOT"])
	require.NoError(t, err)
	token := sandboxToken(t, env["KUBECONFIG"])
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/sandbox/sa/default")
	for _, name := range []string{"", "localhost", "istiod.istio-system.svc"} {
		opts := meshclient.ZtunnelTLS()
		opts.ServerName = name
		client, err := meshclient.Dial(env["SIGNET_CA"], root, opts)
		require.NoError(t, err)
		defer client.Close()
		key, csr, err := meshclient.ZtunnelCSR(id)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		chain, err := client.Create(ctx, meshclient.Ask{Token: token, CSR: csr, ValiditySeconds: 3600})
		require.NoError(t, err)
		require.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), id, time.Now()))
	}

	assert.Contains(t, r.output(), "The page: "+env["SIGNET_API"]+"/ui/")
	// The demo itself, etcd, the API server, cert-manager, Signet and seven agents.
	assert.GreaterOrEqual(t, len(processesOf(t, r.dir)), 11)

	second := exec.Command(r.cmd.Path, "--dir", r.dir, "--once")
	second.Env = r.cmd.Env
	out, err := second.CombinedOutput()
	require.Error(t, err)
	assert.Equal(t, exitFailed, second.ProcessState.ExitCode())
	assert.Contains(t, string(out), "make demo DEMO_DIR=")
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		args   []string
		at     string                     // in the output, when the signal is sent
		look   func(*testing.T, *running) // before that; nil for nothing
		signal os.Signal
		code   int
	}{
		{"while the control plane starts", []string{"--once"}, "etcd: ready", nil, syscall.SIGINT, exitInterrupted},
		{"while it is shown", nil, "Ctrl-C stops", whileShown, syscall.SIGINT, exitOK},
		{"while agents start", []string{"--once"}, "workloads: started", nil, syscall.SIGTERM, exitInterrupted},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, filepath.Join(t.TempDir(), "demo"), test.args...)
			r.await(t, test.at)
			if test.look != nil {
				test.look(t, r)
			}
			// Make passes on what the terminal has sent to us already.
			require.NoError(t, r.cmd.Process.Signal(test.signal))
			require.NoError(t, r.cmd.Process.Signal(test.signal))
			assert.Equal(t, test.code, r.end(t, 2*time.Minute))
			assert.NotContains(t, r.output(), "demo: ")
		})
	}
}

// TestNobodyReads ends the reader of the output, as head does.
func TestNobodyReads(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "demo")
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command("sh", "-c", fmt.Sprintf("'%s' --dir '%s' | head -n 2", self, dir))
	cmd.Env = append(os.Environ(), asDemo+"=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err)
	assert.Contains(t, string(out), "error: write output: ")
	assert.NoDirExists(t, dir)
	assert.Empty(t, processesOf(t, dir))
}

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, exitOK, "-once"},
		{[]string{"--bogus"}, exitUsage, "bogus"},
		{[]string{"now"}, exitUsage, `error: unexpected argument "now"`},
	} {
		var out, errs bytes.Buffer
		assert.Equal(t, test.code, command(t.Context(), nil, test.args, &out, &errs))
		assert.Contains(t, errs.String(), test.want)
		assert.Empty(t, out.String())
	}
}
