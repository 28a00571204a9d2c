package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// guarded is a guard in front of a handler that says what it was asked.
type guarded struct {
	*guard
	mu     sync.Mutex
	passed []string
	twice  int
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{}
	g.guard = newGuard(8080, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.passed = append(g.passed, r.Method+" "+r.URL.EscapedPath()+"?"+r.URL.RawQuery)
	}), func() { g.twice++ })
	return g
}

// ask asks; change breaks one thing of a request that would be passed on.
func (g *guarded) ask(change func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, g.path+"/v1/identities/spiffe:%2F%2Fa?x=y", nil)
	r.Host = "127.0.0.1:8080"
	r.AddCookie(&http.Cookie{Name: g.cookieName(), Value: g.cookie})
	change(r)
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	return w
}

func path(to string) func(*http.Request) {
	return func(r *http.Request) { r.URL, r.RequestURI = must(url.Parse(to)), to }
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// TestGuard: what is passed on, and what breaks it.
func TestGuard(t *testing.T) {
	g := newGuarded(t)
	assert.Equal(t, 200, g.ask(func(*http.Request) {}).Code)
	assert.Equal(t, []string{"GET /v1/identities/spiffe:%2F%2Fa?x=y"}, g.passed)
	post := func(r *http.Request) { r.Method = http.MethodPost; r.Header.Set("Origin", "http://127.0.0.1:8080") }
	for name, change := range map[string]func(*http.Request){
		"localhost": func(r *http.Request) { r.Host = "localhost:8080" },
		"from the page": func(r *http.Request) {
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			r.Header.Set("Origin", "http://127.0.0.1:8080")
		},
		"typed":              func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "none") },
		"HEAD":               func(r *http.Request) { r.Method = http.MethodHead },
		"POST from the page": post,
		"POST at localhost": func(r *http.Request) {
			post(r)
			r.Host = "localhost:8080"
			r.Header.Set("Origin", "http://localhost:8080")
		},
		"with other cookies": func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "other", Value: "x"}) },
	} {
		g := newGuarded(t)
		assert.Equal(t, 200, g.ask(change).Code, name)
		assert.Len(t, g.passed, 1, name)
	}
	for name, row := range map[string]struct {
		status int
		change func(*http.Request)
	}{
		"another name (DNS rebinding)":  {421, func(r *http.Request) { r.Host = "evil.example:8080" }},
		"another port":                  {421, func(r *http.Request) { r.Host = "127.0.0.1:8081" }},
		"no port":                       {421, func(r *http.Request) { r.Host = "127.0.0.1" }},
		"another address":               {421, func(r *http.Request) { r.Host = "127.0.0.2:8080" }},
		"upper case":                    {421, func(r *http.Request) { r.Host = "LOCALHOST:8080" }},
		"a dot behind":                  {421, func(r *http.Request) { r.Host = "localhost.:8080" }},
		"IPv6":                          {421, func(r *http.Request) { r.Host = "[::1]:8080" }},
		"no host":                       {421, func(r *http.Request) { r.Host = "" }},
		"no cookie":                     {403, func(r *http.Request) { r.Header.Del("Cookie") }},
		"another cookie":                {403, func(r *http.Request) { r.Header.Set("Cookie", g.cookieName()+"=x") }},
		"an empty cookie":               {403, func(r *http.Request) { r.Header.Set("Cookie", g.cookieName()+"=") }},
		"the secret as cookie":          {403, func(r *http.Request) { r.Header.Set("Cookie", g.cookieName()+"="+g.opening) }},
		"two cookies":                   {403, func(r *http.Request) { r.AddCookie(&http.Cookie{Name: g.cookieName(), Value: "x"}) }},
		"the secret in the address":     {403, func(r *http.Request) { r.Header.Del("Cookie"); r.URL.RawQuery = "secret=" + g.opening }},
		"a POST without origin":         {403, func(r *http.Request) { r.Method = http.MethodPost }},
		"a POST of another origin":      {403, func(r *http.Request) { post(r); r.Header.Set("Origin", "http://evil.example") }},
		"a POST of another port":        {403, func(r *http.Request) { post(r); r.Header.Set("Origin", "http://127.0.0.1:8081") }},
		"a POST of no origin":           {403, func(r *http.Request) { post(r); r.Header.Set("Origin", "null") }},
		"a POST of the other name":      {403, func(r *http.Request) { post(r); r.Header.Set("Origin", "http://localhost:8080") }},
		"a POST of two origins":         {403, func(r *http.Request) { post(r); r.Header.Add("Origin", "http://127.0.0.1:8080") }},
		"a GET of another origin":       {403, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }},
		"a GET of another site":         {403, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }},
		"a GET of another port's page":  {403, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") }},
		"PUT":                           {405, func(r *http.Request) { r.Method = http.MethodPut }},
		"DELETE":                        {405, func(r *http.Request) { r.Method = http.MethodDelete }},
		"OPTIONS":                       {405, func(r *http.Request) { r.Method = http.MethodOptions }},
		"TRACE":                         {405, func(r *http.Request) { r.Method = http.MethodTrace }},
		"CONNECT":                       {405, func(r *http.Request) { r.Method = http.MethodConnect }},
		"another path":                  {404, path("/v1/services")},
		"another path, of another user": {403, func(r *http.Request) { path("/v1/services")(r); r.Header.Del("Cookie") }},
	} {
		g2 := newGuarded(t)
		g2.path, g2.opening, g2.cookie = g.path, g.opening, g.cookie
		w := g2.ask(row.change)
		assert.Equal(t, row.status, w.Code, name)
		assert.Empty(t, g2.passed, name)
		for _, secret := range []string{g.path, g.opening, g.cookie} {
			assert.NotContains(t, w.Body.String()+fmt.Sprint(w.Header()), secret, name)
		}
	}
	for _, to := range []string{"", "/"} {
		w := g.ask(path(g.path + to))
		assert.Equal(t, 302, w.Code)
		assert.Equal(t, g.path+"/ui/", w.Header().Get("Location"))
	}
	other := newGuarded(t)
	assert.NotEqual(t, []string{g.path, g.opening, g.cookie}, []string{other.path, other.opening, other.cookie})
	for _, secret := range []string{g.path, g.opening, g.cookie} {
		assert.GreaterOrEqual(t, len(secret), 26, "128 bits in base32")
	}
}

// TestGuardOpens: the secret is good once, for a cookie that no script and no other site gets.
func TestGuardOpens(t *testing.T) {
	g := newGuarded(t)
	open := func(change func(*http.Request)) *httptest.ResponseRecorder {
		return g.ask(func(r *http.Request) {
			path(g.path + "/open?secret=" + g.opening)(r)
			r.Header.Del("Cookie")
			change(r)
		})
	}
	for name, change := range map[string]func(*http.Request){
		"no secret":         path(g.path + "/open"),
		"another secret":    path(g.path + "/open?secret=x"),
		"the cookie":        path(g.path + "/open?secret=" + g.cookie),
		"not at its path":   path("/open?secret=" + g.opening),
		"another host":      func(r *http.Request) { r.Host = "evil.example:8080" },
		"HEAD":              func(r *http.Request) { r.Method = http.MethodHead },
		"POST":              func(r *http.Request) { r.Method = http.MethodPost; r.Header.Set("Origin", "http://127.0.0.1:8080") },
		"of another origin": func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") },
	} {
		w := open(change)
		assert.GreaterOrEqual(t, w.Code, 400, name)
		assert.Empty(t, w.Result().Cookies(), name)
		assert.Zero(t, g.twice, name)
	}

	w := open(func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }) // from the file that was opened
	require.Equal(t, 200, w.Code)
	require.Len(t, w.Result().Cookies(), 1)
	cookie := w.Result().Cookies()[0]
	assert.Equal(t, g.path+"/", cookie.Path)
	assert.True(t, cookie.HttpOnly)
	assert.Equal(t, http.SameSiteStrictMode, cookie.SameSite)
	assert.Empty(t, cookie.Domain)
	assert.Contains(t, w.Body.String(), `content="0;url=`+g.path+`/ui/"`)
	assert.Equal(t, "no-referrer", w.Header().Get("Referrer-Policy"))
	assert.NotContains(t, w.Body.String(), g.opening)

	w = open(func(r *http.Request) { r.AddCookie(cookie) })
	assert.Equal(t, 302, w.Code, "the same browser went back")
	assert.Zero(t, g.twice)
	w = open(func(*http.Request) {})
	assert.Equal(t, 403, w.Code)
	assert.Empty(t, w.Result().Cookies())
	assert.Equal(t, 1, g.twice)
}

// TestDashboard: the page comes with who is asking, and with nothing that the browser says of itself.
func TestDashboard(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	var mu sync.Mutex
	var last *http.Request
	var body string
	upstream := http.NewServeMux()
	note := func(r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		last, body = r, string(text)
	}
	upstream.HandleFunc("/ui/", func(w http.ResponseWriter, r *http.Request) {
		note(r)
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Strict-Transport-Security", "max-age=1")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		_, _ = io.WriteString(w, "the page")
	})
	upstream.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		note(r)
		w.Header().Set("WWW-Authenticate", "Basic")
		answer(w, 401, "no")
	})
	upstream.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.Query().Get("to"))
		w.WriteHeader(http.StatusFound)
	})
	upstream.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	s := serve(t, upstream)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var out, errors buffer
	done := make(chan int, 1)
	go func() {
		done <- command(ctx, append([]string{"signetctl"}, s.flags("dashboard", "--no-browser")...), &out, &errors)
	}()
	require.Eventually(t, func() bool { return strings.Contains(out.String(), "\n") }, patience, time.Millisecond, errors.String)
	address := strings.TrimSpace(out.String())
	require.Regexp(t, `^http://127\.0\.0\.1:\d+/[A-Z2-7]{26}/open\?secret=[A-Z2-7]{26}$`, address)
	base := must(url.Parse(address))
	prefix := strings.TrimSuffix(base.Path, "/open")

	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	browser := &http.Client{Jar: jar, Timeout: patience}
	t.Cleanup(browser.CloseIdleConnections)
	get := func(path string, headers ...string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequest(http.MethodGet, "http://"+base.Host+path, nil)
		require.NoError(t, err)
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		response, err := browser.Do(r)
		require.NoError(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response, string(text)
	}
	response, _ := get(prefix + "/ui/")
	assert.Equal(t, 403, response.StatusCode, "before the address was opened")
	response, text := get(prefix + "/open?" + base.RawQuery)
	require.Equal(t, 200, response.StatusCode, text)

	response, text = get(prefix+"/ui/?x=y", "Authorization", "Bearer of-the-browser", "Forwarded", "for=1", "X-Forwarded-For", "1", "Impersonate-User", "admin", "Accept", "text/html")
	assert.Equal(t, 200, response.StatusCode)
	assert.Equal(t, "the page", text)
	assert.Empty(t, response.Header.Values("Set-Cookie"))
	assert.Empty(t, response.Header.Values("Strict-Transport-Security"))
	assert.Equal(t, "default-src 'none'", response.Header.Get("Content-Security-Policy"))
	assert.Equal(t, []string{"no-referrer"}, response.Header.Values("Referrer-Policy"))
	assert.Equal(t, "/ui/?x=y", last.URL.RequestURI())
	assert.Equal(t, []string{"Bearer " + someToken}, last.Header.Values("Authorization"))
	assert.Equal(t, "text/html", last.Header.Get("Accept"))
	for _, name := range []string{"Cookie", "Forwarded", "X-Forwarded-For", "Impersonate-User", "Referer", "Origin"} {
		assert.Empty(t, last.Header.Values(name), name)
	}
	response, _ = get(prefix + "/v1/identities/spiffe:%2F%2Fa%2Fns%2Fb%2Fsa%2Fc")
	assert.Equal(t, 401, response.StatusCode)
	assert.Empty(t, response.Header.Values("WWW-Authenticate"), "or the browser asks for a password")
	assert.Equal(t, "/v1/identities/spiffe:%2F%2Fa%2Fns%2Fb%2Fsa%2Fc", last.URL.EscapedPath())
	for _, to := range []string{"https://evil.example/", "https://evil.example", "https:evil.example", "//evil.example", "/elsewhere", "%zz"} {
		response, _ = get(prefix + "/away?to=" + url.QueryEscape(to))
		assert.Equal(t, 502, response.StatusCode, to)
	}
	_, text = get(prefix + "/away?to=ui/")
	assert.Equal(t, "the page", text)

	post, err := http.NewRequest(http.MethodPost, "http://"+base.Host+prefix+"/v1/probes", strings.NewReader(`{"service":"x"}`))
	require.NoError(t, err)
	post.Header.Set("Origin", "http://"+base.Host)
	post.Header.Set("Content-Type", "application/json")
	response, err = browser.Do(post)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	assert.Equal(t, `{"service":"x"}`, body)
	assert.Equal(t, "application/json", last.Header.Get("Content-Type"))

	// Lines of a watch come at once, and don't hold up the end.
	response, err = browser.Get("http://" + base.Host + prefix + "/stream")
	require.NoError(t, err)
	defer response.Body.Close()
	line, err := bufio.NewReader(response.Body).ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "first\n", line)
	stop()
	assert.Equal(t, exitOK, <-done, errors.String())
	assert.NotContains(t, out.String()+errors.String(), someToken)
	assert.Equal(t, 1, strings.Count(out.String(), "\n"))
	_, err = net.DialTimeout("tcp", base.Host, time.Second)
	assert.Error(t, err, "it doesn't listen any more")
}

// TestDashboardOpenedTwice: it ends where somebody else opens its address too.
func TestDashboardOpenedTwice(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	s := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	var out, errors buffer
	done := make(chan int, 1)
	go func() {
		done <- command(t.Context(), append([]string{"signetctl"}, s.flags("dashboard", "--no-browser")...), &out, &errors)
	}()
	require.Eventually(t, func() bool { return strings.Contains(out.String(), "\n") }, patience, time.Millisecond)
	for _, want := range []int{200, 403} {
		response, err := http.Get(strings.TrimSpace(out.String()))
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		assert.Equal(t, want, response.StatusCode)
	}
	assert.Equal(t, exitFailed, <-done)
	assert.Contains(t, errors.String(), "opened a second time")
}

// TestDashboardFails where there is no page, the port is taken, or no browser.
func TestDashboardFails(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	none := serve(t, http.NotFoundHandler())
	got := run(t, none.flags("dashboard", "--no-browser")...)
	assert.Equal(t, exitFailed, got.code)
	assert.Contains(t, got.err, "error: open Signet's page: it answered 404 Not Found\nhint: ")
	s := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	got = run(t, s.flags("dashboard", "--no-browser", "--port", fmt.Sprint(taken.Addr().(*net.TCPAddr).Port))...)
	assert.Equal(t, exitFailed, got.code)
	assert.Contains(t, got.err, "hint: another --port")
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for _, program := range []string{"", "#!/bin/sh\nexit 3\n"} {
		if program != "" {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "xdg-open"), []byte(program), 0o700))
		}
		got = run(t, s.flags("dashboard")...)
		assert.Equal(t, exitFailed, got.code)
		assert.Contains(t, got.err, "error: open a browser: ")
		assert.Contains(t, got.err, "--no-browser")
	}
}

// TestBrowser: the address is in a file that nobody else can read, not on a command line.
func TestBrowser(t *testing.T) {
	dir := t.TempDir()
	seen := filepath.Join(dir, "seen")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "xdg-open"), []byte("#!/bin/sh\n/bin/echo \"$@\" > "+seen+"\n"), 0o700))
	t.Setenv("PATH", dir)
	const address = "http://127.0.0.1:1/A/open?secret=B"
	b, err := openBrowser(address)
	require.NoError(t, err)
	require.NoError(t, <-b.ended)
	text, err := os.ReadFile(seen)
	require.NoError(t, err)
	assert.NotContains(t, string(text), "secret")
	file := strings.TrimSpace(string(text))
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Regexp(t, regexp.QuoteMeta(`content="0;url=`+address+`"`), string(page))
	for name, want := range map[string]os.FileMode{file: 0o600, filepath.Dir(file): 0o700} {
		info, err := os.Stat(name)
		require.NoError(t, err)
		assert.Equal(t, want, info.Mode().Perm(), name)
	}
	b.remove()
	assert.NoDirExists(t, filepath.Dir(file))
}
