package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
)

// asked notes who asked.
type asked struct {
	mu      sync.Mutex
	headers []http.Header
}

func (a *asked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.headers = append(a.headers, r.Header.Clone())
	answer(w, 200, api.ServiceList{})
}

// take is the Authorization of each request so far.
func (a *asked) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []string
	for _, header := range a.headers {
		all = append(all, header.Values("Authorization")...)
	}
	a.headers = nil
	return all
}

// TestCredentials: what each kind of kubeconfig sends, where no API server is needed for that. The others are tested
// with one.
func TestCredentials(t *testing.T) {
	alone(t)
	var seen asked
	s := serve(t, &seen)
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(file, []byte("from-a-file\n"), 0o600))
	plugin := filepath.Join(dir, "plugin")
	require.NoError(t, os.WriteFile(plugin, []byte(`#!/bin/sh
echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"from-a-plugin"}}'
`), 0o700))
	broken := filepath.Join(dir, "broken")
	require.NoError(t, os.WriteFile(broken, []byte("#!/bin/sh\nexit 7\n"), 0o700))
	exec := func(path string) string {
		return fmt.Sprintf("{exec: {apiVersion: client.authentication.k8s.io/v1, command: %q, interactiveMode: Never}}", path)
	}

	for user, want := range map[string]string{
		"{token: in-the-file}":                         "in-the-file",
		fmt.Sprintf("{tokenFile: %q}", file):           "from-a-file",
		exec(plugin):                                   "from-a-plugin",
		fmt.Sprintf("{token: x, tokenFile: %q}", file): "from-a-file", // as in kubectl
	} {
		kubeconfig(t, user)
		got := run(t, s.flags("services")...)
		assert.Equal(t, exitOK, got.code, got.err)
		assert.Equal(t, []string{"Bearer " + want}, seen.take(), user)
		assert.NotContains(t, got.out+got.err, want)
	}
	// A password and an impersonation are nothing that could be sent: a token is asked for, of nobody here.
	for _, user := range []string{"{username: a, password: b}", "{}", "{token: in-the-file, as: somebody}"} {
		kubeconfig(t, user)
		got := run(t, s.flags("services")...)
		assert.Equal(t, exitFailed, got.code)
		assert.Contains(t, got.err, "ask for a token of service account istio-system/signet-reader, because your kubeconfig has none that could be sent", user)
		assert.Empty(t, seen.take(), user)
	}
	kubeconfig(t, "{token: in-the-file}")
	for _, flags := range [][]string{{"--as", "somebody"}, {"--as-service-account", "a/b"}} {
		got := run(t, append(s.flags("services"), flags...)...)
		assert.Equal(t, exitFailed, got.code)
		assert.Contains(t, got.err, "ask for a token of service account ")
		assert.Empty(t, seen.take())
	}
	for _, name := range []string{"b", "a/", "/b", "a/b/c"} {
		got := run(t, append(s.flags("services"), "--as-service-account", name)...)
		assert.Equal(t, exitUsage, got.code, name)
	}
	kubeconfig(t, exec(broken))
	got := run(t, s.flags("services")...)
	assert.Equal(t, exitNotAllowed, got.code)
	assert.Contains(t, got.err, "error: get a token as the kubeconfig says: ")
	assert.Contains(t, got.err, "hint: log in anew")
	assert.Empty(t, seen.take())
	kubeconfig(t, exec(filepath.Join(dir, "none")))
	assert.Equal(t, exitNotAllowed, run(t, s.flags("services")...).code)

	got = run(t, s.flags("services", "--context", "none")...)
	assert.Equal(t, exitUsage, got.code)
	assert.Contains(t, got.err, "context was not found for specified context: none")
}

// TestRedirect: who asks is told to nobody but the server that proved itself.
func TestRedirect(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	var elsewhere asked
	other := httptest.NewServer(&elsewhere)
	t.Cleanup(other.Close)
	s := serve(t, http.RedirectHandler(other.URL+"/v1/services", http.StatusTemporaryRedirect))
	got := run(t, s.flags("services")...)
	assert.Equal(t, exitFailed, got.code)
	assert.Contains(t, got.err, "error: Temporary Redirect (307)\n")
	assert.Empty(t, elsewhere.headers)
}
