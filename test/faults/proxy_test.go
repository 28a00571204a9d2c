package faults

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/signet-ca/signet/test/controlplane"
)

// proxy stands between a Signet and the API server, as a load balancer may, and does to single
// requests what the test says.
type proxy struct {
	server *httptest.Server

	mu     sync.Mutex // guards the following
	before func(call) int
	after  func(call) int
	held   chan struct{} // while set, watches of CertificateRequests tell nothing until it is closed
}

// call is one request on its way. An answer of 0 lets it pass, an HTTP status stands in for the
// answer, and dropped ends the connection's stream without any.
type call struct {
	method, path string
	watch        bool
	body         string
	status       int // that the API server answered with; 0 before
}

const dropped = -1

// creates says whether the call creates a CertificateRequest for the workload.
func (c call) creates(w *workload) bool {
	return c.method == http.MethodPost && strings.HasSuffix(c.path, "/certificaterequests") && strings.Contains(c.body, w.id.String())
}

type bodyKey struct{}

func newProxy(t *testing.T, plane *controlplane.Plane) *proxy {
	t.Helper()
	admin := plane.Admin()
	target, err := url.Parse(admin.Host)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(admin.CAData))

	p := &proxy{}
	forward := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true},
		FlushInterval: -1,
		ModifyResponse: func(res *http.Response) error {
			c := newCall(res.Request)
			c.status = res.StatusCode
			if c.watch {
				res.Body = &holdable{ReadCloser: res.Body, ctx: res.Request.Context(), proxy: p}
			}
			return p.interfere(res, p.hooks(false), c)
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if errors.Is(err, errDropped) {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		r = r.WithContext(context.WithValue(r.Context(), bodyKey{}, string(body)))
		if hook := p.hooks(true); hook != nil {
			switch code := hook(newCall(r)); code {
			case 0:
			case dropped:
				panic(http.ErrAbortHandler)
			default:
				w.WriteHeader(code)
				return
			}
		}
		forward.ServeHTTP(w, r)
	}))
	p.server.EnableHTTP2 = true
	p.server.Config.ErrorLog = nil
	p.server.StartTLS()
	t.Cleanup(func() {
		p.release()
		p.server.CloseClientConnections()
		p.server.Close()
	})
	return p
}

var errDropped = errors.New("dropped")

func newCall(r *http.Request) call {
	body, _ := r.Context().Value(bodyKey{}).(string)
	return call{
		method: r.Method,
		path:   r.URL.Path,
		watch:  strings.HasSuffix(r.URL.Path, "/certificaterequests") && r.URL.Query().Get("watch") != "",
		body:   body,
	}
}

// interfere puts the answer that the hook decides for in the place of the real one.
func (p *proxy) interfere(res *http.Response, hook func(call) int, c call) error {
	if hook == nil {
		return nil
	}
	switch code := hook(c); code {
	case 0:
		return nil
	case dropped:
		return errDropped
	default:
		_ = res.Body.Close() // its answer is thrown away
		res.StatusCode, res.Status = code, http.StatusText(code)
		res.Header = http.Header{"Content-Length": {"0"}}
		res.Body, res.ContentLength = http.NoBody, 0
		return nil
	}
}

func (p *proxy) hooks(before bool) func(call) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if before {
		return p.before
	}
	return p.after
}

// onCall sets what happens to calls before they reach the API server, and onAnswer to its answers.
func (p *proxy) onCall(hook func(call) int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before = hook
}

func (p *proxy) onAnswer(hook func(call) int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.after = hook
}

// hold lets the watches of CertificateRequests stay open but tell nothing, until release.
func (p *proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(chan struct{})
	}
}

func (p *proxy) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil {
		close(p.held)
		p.held = nil
	}
}

// holdable is the body of a watch.
type holdable struct {
	io.ReadCloser
	ctx   context.Context
	proxy *proxy
}

func (h *holdable) Read(buf []byte) (int, error) {
	n, err := h.ReadCloser.Read(buf)
	h.proxy.mu.Lock()
	held := h.proxy.held
	h.proxy.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-h.ctx.Done():
			return 0, h.ctx.Err()
		}
	}
	return n, err
}

// kubeconfig is that of the service account signet in ns, by way of the proxy.
func (p *proxy) kubeconfig(t *testing.T, plane *controlplane.Plane, ns string) string {
	t.Helper()
	require.NoError(t, plane.ServiceAccount(t.Context(), ns, "signet"))
	direct, err := plane.KubeconfigAs(t.Context(), ns, "signet")
	require.NoError(t, err)
	config, err := clientcmd.LoadFromFile(direct)
	require.NoError(t, err)
	for _, cluster := range config.Clusters {
		cluster.Server = p.server.URL
		cluster.CertificateAuthority = ""
		cluster.CertificateAuthorityData = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw})
	}
	dir, err := os.MkdirTemp(plane.Dir(), "proxy-")
	require.NoError(t, err)
	path := filepath.Join(dir, "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*config, path))
	return path
}
