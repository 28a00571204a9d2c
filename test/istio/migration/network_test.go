package migration

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/test/patiently"
)

// network is what DNS and Services are in a cluster: names that lead to what stands behind them now. It is a proxy that
// agents are told of by HTTPS_PROXY; gRPC asks it to CONNECT to the name as it is.
type network struct {
	url     string
	running sync.WaitGroup // who accepts, and who serves a link

	mu       sync.Mutex         // guards the following
	backends map[string]string  // by name and port
	links    map[*link]struct{} // that are open
	closed   bool
}

// link is one connection through the network.
type link struct {
	name, backend string
	ends          []net.Conn
}

func (l *link) cut() {
	for _, end := range l.ends {
		end.Close()
	}
}

// newNetwork starts a network without names. It ends with the test.
func newNetwork(t *testing.T) *network {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n := &network{url: "http://" + listener.Addr().String(), backends: make(map[string]string), links: make(map[*link]struct{})}
	n.running.Go(func() { n.accept(listener) })
	t.Cleanup(func() {
		listener.Close()
		n.mu.Lock()
		n.closed = true
		for l := range n.links {
			l.cut()
		}
		n.mu.Unlock()
		n.running.Wait()
	})
	return n
}

func (n *network) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return // it was closed
		}
		l := &link{ends: []net.Conn{conn}}
		if !n.open(l) {
			conn.Close()
			return
		}
		n.running.Go(func() {
			defer n.close(l)
			if err := n.serve(conn, l); err != nil {
				fmt.Fprintf(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: %d\r\n\r\n%s", len(err.Error()), err)
			}
		})
	}
}

// open notes a link, unless the network ends.
func (n *network) open(l *link) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.links[l] = struct{}{}
	}
	return !n.closed
}

func (n *network) close(l *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.links, l)
	l.cut()
}

// serve connects one client with what stands behind the name that it asks for, until either leaves or the name leads
// elsewhere. An error is one that the client can still be told.
func (n *network) serve(conn net.Conn, l *link) error {
	if err := conn.SetReadDeadline(time.Now().Add(patiently.Timeout)); err != nil {
		return nil // it has left
	}
	reader := bufio.NewReader(conn)
	request, err := http.ReadRequest(reader)
	if err != nil {
		return nil
	}
	if request.Method != http.MethodConnect {
		return fmt.Errorf("%s instead of CONNECT", request.Method)
	}
	backend, err := n.dial(l, request.Host)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil || conn.SetReadDeadline(time.Time{}) != nil {
		return nil
	}
	var copying sync.WaitGroup
	// The end of the one is the end of the other.
	copying.Go(func() { _, _ = io.Copy(backend, reader); conn.Close(); backend.Close() })
	copying.Go(func() { _, _ = io.Copy(conn, backend); conn.Close(); backend.Close() })
	copying.Wait()
	return nil
}

// dial connects a link with what stands behind a name, also where that changes meanwhile.
func (n *network) dial(l *link, name string) (net.Conn, error) {
	for {
		n.mu.Lock()
		address := n.backends[name]
		n.mu.Unlock()
		if address == "" {
			return nil, fmt.Errorf("no such host: %s", name)
		}
		conn, err := net.DialTimeout("tcp", address, patiently.Timeout)
		if err != nil {
			return nil, err
		}
		n.mu.Lock()
		still := n.backends[name] == address
		if still {
			l.name, l.backend, l.ends = name, address, append(l.ends, conn)
		}
		closed := n.closed
		n.mu.Unlock()
		if closed {
			conn.Close()
			return nil, errors.New("the network has ended")
		}
		if still {
			return conn, nil
		}
		conn.Close()
	}
}

// point has a name lead to another backend. Connections to what stood behind it are cut, as when endpoints go away.
func (n *network) point(name, backend string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.backends[name] = backend
	for l := range n.links {
		if l.name == name && l.backend != backend {
			l.cut()
		}
	}
}

// presented is the certificate that whoever stands behind a name now serves, to a client that knows roots (PEM).
func (n *network) presented(ctx context.Context, name string, roots []byte) (*x509.Certificate, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, errors.New("no roots")
	}
	proxy, err := url.Parse(n.url)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{
		Proxy:             http.ProxyURL(proxy),
		TLSClientConfig:   &tls.Config{RootCAs: pool, NextProtos: []string{"h2"}},
		ForceAttemptHTTP2: true,
		DisableKeepAlives: true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+name, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request) // a gRPC server answers that it is none for this
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return response.TLS.PeerCertificates[0], nil
}
