package web

import (
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ask answers a request, without decompressing.
func ask(t *testing.T, method, path string, headers ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for n := 0; n+1 < len(headers); n += 2 {
		r.Header.Set(headers[n], headers[n+1])
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	text, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return string(text)
}

var reference = regexp.MustCompile(`(?:href|src)="(assets/[^"]+)"`)

// assets are the addresses that the document names.
func assets(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, found := range reference.FindAllStringSubmatch(body(t, ask(t, "GET", "/ui/")), -1) {
		all = append(all, "/ui/"+found[1])
	}
	require.NotEmpty(t, all)
	return all
}

func TestEachFileIsServed(t *testing.T) {
	named := assets(t)
	below := path.Dir(named[0]) + "/"
	imports := regexp.MustCompile(`(?m)^(?:import|export) .*from '\./([^']+)';$`)
	needed := make(map[string]bool)
	for _, address := range named {
		assert.Equal(t, below, path.Dir(address)+"/", "one version")
		needed[path.Base(address)] = true
	}
	entries, err := fs.ReadDir(files, "page")
	require.NoError(t, err)
	for _, entry := range entries {
		if entry.Name() == index {
			continue
		}
		r := ask(t, "GET", below+entry.Name())
		require.Equal(t, 200, r.StatusCode, entry.Name())
		assert.Equal(t, kinds[path.Ext(entry.Name())], r.Header.Get("Content-Type"))
		assert.Equal(t, "public, max-age=31536000, immutable", r.Header.Get("Cache-Control"))
		for _, found := range imports.FindAllStringSubmatch(body(t, r), -1) {
			needed[found[1]] = true
		}
	}
	for _, entry := range entries {
		assert.Equal(t, entry.Name() != index, needed[entry.Name()], "%s is served and used", entry.Name())
	}
	assert.Len(t, needed, len(entries)-1, "%v are there", needed)
}

// TestNoMarkup: nothing in the page makes markup or code of a text, and nothing is asked for elsewhere. The browser would
// refuse it too.
func TestNoMarkup(t *testing.T) {
	bad := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|\beval\(|new Function|\sstyle="|\son[a-z]+="|javascript:`)
	elsewhere := regexp.MustCompile(`(?:https?:)?//[a-z0-9]`)
	require.NoError(t, fs.WalkDir(files, "page", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, name)
		assert.NotRegexp(t, bad, string(text), name)
		plain := strings.ReplaceAll(string(text), "http://www.w3.org/2000/svg", "") // a name, not an address
		assert.NotRegexp(t, elsewhere, plain, name)
		return err
	}))
}

func TestPolicy(t *testing.T) {
	for _, address := range append(assets(t), "/ui/", "/ui/nothing") {
		r := ask(t, "GET", address)
		for _, part := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'"} {
			assert.Contains(t, r.Header.Get("Content-Security-Policy"), part, address)
		}
		assert.NotContains(t, r.Header.Get("Content-Security-Policy"), "unsafe")
		assert.Equal(t, "nosniff", r.Header.Get("X-Content-Type-Options"))
		assert.Equal(t, "no-referrer", r.Header.Get("Referrer-Policy"))
	}
}

func TestCaching(t *testing.T) {
	script := assets(t)[len(assets(t))-1]
	for _, address := range []string{"/ui/", script} {
		for _, coding := range []string{"", "gzip, br"} {
			first := ask(t, "GET", address, "Accept-Encoding", coding)
			assert.Equal(t, coding != "", first.Header.Get("Content-Encoding") == "gzip")
			assert.Equal(t, "Accept-Encoding", first.Header.Get("Vary"))
			tag := first.Header.Get("ETag")
			again := ask(t, "GET", address, "Accept-Encoding", coding, "If-None-Match", `"other", W/`+tag)
			assert.Equal(t, http.StatusNotModified, again.StatusCode)
			assert.Empty(t, body(t, again))
			assert.Equal(t, first.Header.Get("Cache-Control"), again.Header.Get("Cache-Control"))
			assert.Equal(t, 200, ask(t, "GET", address, "Accept-Encoding", coding, "If-None-Match", `"other"`).StatusCode)
		}
		assert.Empty(t, ask(t, "GET", address, "Accept-Encoding", "gzip;q=0").Header.Get("Content-Encoding"))
		assert.NotEqual(t, ask(t, "GET", address).Header.Get("ETag"), ask(t, "GET", address, "Accept-Encoding", "gzip").Header.Get("ETag"))
	}
	assert.Equal(t, "no-cache", ask(t, "GET", "/ui/").Header.Get("Cache-Control"))

	// Another replica's version is answered with ours, and not kept.
	other := ask(t, "GET", "/ui/assets/0000000000000000/"+path.Base(script))
	assert.Equal(t, 200, other.StatusCode)
	assert.Equal(t, "no-cache", other.Header.Get("Cache-Control"))
}

func TestOtherPaths(t *testing.T) {
	for _, address := range []string{"/ui/x", "/ui/index.html", "/ui/assets/", "/ui/assets/x", "/ui/assets/x/", "/ui/assets/x/index.html", "/ui/assets/x/../../web.go", "/", "/ui/assets/x/y/app.js"} {
		assert.Equal(t, http.StatusNotFound, ask(t, "GET", address).StatusCode, address)
	}
	assert.Equal(t, http.StatusMethodNotAllowed, ask(t, "POST", "/ui/").StatusCode)
	r := ask(t, "GET", "/ui")
	assert.Equal(t, http.StatusPermanentRedirect, r.StatusCode)
	assert.Equal(t, "ui/", r.Header.Get("Location"))
	assert.Equal(t, 200, ask(t, "HEAD", "/ui/").StatusCode)
}
