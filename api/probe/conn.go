package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// errTooMuch says that the other side sent more than is read.
var errTooMuch = errors.New("it sent more than a handshake needs")

// Bounds of what is read on one connection.
const (
	maxTLSBytes   = 256 << 10
	maxPlainBytes = 1 << 10
)

// boundedConn reads so many bytes at most, so that nobody can keep us reading.
type boundedConn struct {
	net.Conn
	left int
	got  bool // anything
}

func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, errTooMuch
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	c.got = c.got || n > 0
	return n, err
}

// endsWith closes the connection when ctx ends. What it returns must be called.
func (c *boundedConn) endsWith(ctx context.Context) (release func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.Close() })
}

// waitFor makes reads end after some time with an error that is a timeout.
func (c *boundedConn) waitFor(wait time.Duration) { _ = c.SetReadDeadline(time.Now().Add(wait)) }

// dialer is the real one: of the address as it stands, without any name being resolved or proxy being asked.
func dialer(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	return d.DialContext(ctx, "tcp", to.String())
}
