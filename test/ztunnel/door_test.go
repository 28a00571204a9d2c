package ztunnel

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// door is a way to the API server that can be shut, for those who go through it.
type door struct {
	listener net.Listener
	to       string
	running  sync.WaitGroup

	mu     sync.Mutex // guards the following
	isShut bool
	conns  map[net.Conn]bool
}

// newDoor opens one.
func newDoor(t *testing.T) *door {
	t.Helper()
	server, err := url.Parse(plane.Admin().Host)
	require.NoError(t, err)
	d := &door{to: server.Host, conns: make(map[net.Conn]bool)}
	d.listener, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	d.running.Go(func() {
		for {
			conn, err := d.listener.Accept()
			if err != nil {
				return
			}
			d.running.Go(func() { d.carry(conn) })
		}
	})
	t.Cleanup(func() {
		d.listener.Close()
		d.shut()
		d.running.Wait()
	})
	return d
}

// url is where the API server is behind the door.
func (d *door) url() string { return "https://" + d.listener.Addr().String() }

// carry copies both ways until either end, or the door, is closed.
func (d *door) carry(from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", d.to)
	if err != nil {
		return
	}
	defer to.Close()
	if !d.enter(from, to) {
		return
	}
	defer d.leave(from, to)
	back := make(chan struct{})
	go func() {
		defer close(back)
		io.Copy(from, to)
		from.Close()
	}()
	io.Copy(to, from)
	to.Close()
	<-back
}

func (d *door) enter(conns ...net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, conn := range conns {
		d.conns[conn] = true
	}
	return !d.isShut
}

func (d *door) leave(conns ...net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, conn := range conns {
		delete(d.conns, conn)
	}
}

// shut ends all connections, and every one that comes, until open is called.
func (d *door) shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.isShut = true
	for conn := range d.conns {
		conn.Close()
	}
}

func (d *door) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.isShut = false
}
