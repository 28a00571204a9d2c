package ca

import (
	"net"
	"sync"
)

// addressListener closes connections from an address that has too many open already, so that one
// caller can't take all that the endpoint may have.
type addressListener struct {
	net.Listener
	limit int

	mu   sync.Mutex
	open map[string]int // by address; guarded by mu
}

func limitPerAddress(listener net.Listener, limit int) *addressListener {
	return &addressListener{Listener: listener, limit: limit, open: make(map[string]int)}
}

// Accept returns the next connection from an address that may have another.
func (l *addressListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := hostOf(conn.RemoteAddr())
		if l.take(address) {
			return &countedConn{Conn: conn, give: sync.OnceFunc(func() { l.give(address) })}, nil
		}
		conn.Close()
	}
}

func (l *addressListener) take(address string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[address] >= l.limit {
		return false
	}
	l.open[address]++
	return true
}

func (l *addressListener) give(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[address]--; l.open[address] == 0 {
		delete(l.open, address)
	}
}

// countedConn gives its place back when it is closed.
type countedConn struct {
	net.Conn
	give func()
}

func (c *countedConn) Close() error {
	defer c.give()
	return c.Conn.Close()
}

// hostOf is the IP address of a TCP address.
func hostOf(address net.Addr) string {
	host, _, err := net.SplitHostPort(address.String())
	if err != nil {
		return address.String()
	}
	return host
}
