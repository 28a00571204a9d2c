package main

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
)

// guard lets to the page only the browser that was opened for it. Whoever else is on this machine may reach the port, and
// any web page may have a browser ask it, so that each request must show a secret of this run: once in the address that is
// opened, and then in a cookie. Everything is below a path that is a secret too, because browsers send cookies to every
// port of a host, and the page of another port can't ask for a path that it doesn't know.
//
// Safe for concurrent use.
type guard struct {
	port    int
	path    string // /RANDOM, below which everything is
	opening string // the secret of the address that is opened
	cookie  string // what the cookie must be
	opened  atomic.Bool
	next    http.Handler // sees paths without guard.path
	// twice is called when the address was opened again.
	twice func()
}

// newGuard makes the secrets, of 128 bits or more each.
func newGuard(port int, next http.Handler, twice func()) *guard {
	return &guard{port: port, path: "/" + rand.Text(), opening: rand.Text(), cookie: rand.Text(), next: next, twice: twice}
}

// address is what a browser is to open. It is good once.
func (g *guard) address() string {
	return fmt.Sprintf("http://127.0.0.1:%d%s/open?secret=%s", g.port, g.path, g.opening)
}

func (g *guard) cookieName() string { return "signetctl-" + strconv.Itoa(g.port) }

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cache-Control", "no-store")
	// A name that somebody else's DNS has lead here is no name of ours.
	if r.Host != fmt.Sprintf("127.0.0.1:%d", g.port) && r.Host != fmt.Sprintf("localhost:%d", g.port) {
		refuse(w, http.StatusMisdirectedRequest, "this is another host's name")
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
	default:
		refuse(w, http.StatusMethodNotAllowed, "only GET, HEAD and POST are passed on")
		return
	}
	// Browsers say which page asks; that of another port is one of somebody else.
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		if r.URL.Path != g.path+"/open" {
			refuse(w, http.StatusForbidden, "another page asks")
			return
		}
	}
	origin := r.Header.Values("Origin")
	own := len(origin) == 1 && origin[0] == "http://"+r.Host
	if r.Method == http.MethodPost && !own || len(origin) > 0 && !own {
		refuse(w, http.StatusForbidden, "another page asks")
		return
	}
	if r.URL.Path == g.path+"/open" {
		g.open(w, r)
		return
	}
	if !g.known(r) {
		refuse(w, http.StatusForbidden, "open the address that signetctl dashboard opened or printed; it is good once, in one browser")
		return
	}
	inner := strings.TrimPrefix(r.URL.Path, g.path)
	switch inner {
	case r.URL.Path: // the cookie is of this path alone, so nobody comes here with it by chance
		refuse(w, http.StatusNotFound, "there is nothing at this path")
		return
	case "", "/":
		http.Redirect(w, r, g.path+"/ui/", http.StatusFound)
		return
	}
	header.Del("Cache-Control") // the server's own, from here on
	header.Del("Referrer-Policy")
	header.Del("X-Content-Type-Options")
	passed := r.Clone(r.Context())
	passed.URL.Path = inner
	passed.URL.RawPath = strings.TrimPrefix(r.URL.RawPath, g.path)
	g.next.ServeHTTP(w, passed)
}

// known says whether a request has the cookie, and only once.
func (g *guard) known(r *http.Request) bool {
	cookies := r.CookiesNamed(g.cookieName())
	return len(cookies) == 1 && equal(cookies[0].Value, g.cookie)
}

func equal(given, wanted string) bool {
	return subtle.ConstantTimeCompare([]byte(given), []byte(wanted)) == 1
}

// open turns the secret of the address into a cookie. It answers with a page and no redirect, because the way here may
// have begun at another page, from where a browser wouldn't send the cookie on.
func (g *guard) open(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !equal(r.URL.Query().Get("secret"), g.opening) {
		refuse(w, http.StatusForbidden, "the secret is not that of this run")
		return
	}
	if g.opened.Swap(true) {
		if g.known(r) { // the same browser, that went back
			http.Redirect(w, r, g.path+"/ui/", http.StatusFound)
			return
		}
		refuse(w, http.StatusForbidden, "this address has been opened before; it is good once. If that wasn't you, somebody else has seen it: the dashboard ends now. Run signetctl dashboard again")
		_ = http.NewResponseController(w).Flush() // it is told before the end may cut the connection
		g.twice()
		return
	}
	http.SetCookie(w, &http.Cookie{Name: g.cookieName(), Value: g.cookie, Path: g.path + "/", HttpOnly: true, SameSite: http.SameSiteStrictMode}) //nolint:gosec // not Secure: it is plain HTTP on the loopback interface
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	_, _ = fmt.Fprintf(w, "<!doctype html><meta charset=utf-8><title>Signet</title><meta http-equiv=refresh content=\"0;url=%[1]s/ui/\"><a href=\"%[1]s/ui/\">Signet</a>\n", g.path)
}

func refuse(w http.ResponseWriter, status int, why string) {
	http.Error(w, "signetctl: "+why, status)
}
