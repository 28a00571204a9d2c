package ca

import (
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// One address can't have more connections than its share, and gets its place back.
func TestConnectionsPerAddress(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener := limitPerAddress(inner, 2)
	accepted := make(chan net.Conn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", inner.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	dial()
	first := <-accepted
	dial()
	second := <-accepted
	surplus := dial()
	_, err = surplus.Read(make([]byte, 1))
	require.Error(t, err, "closed by the listener")

	require.NoError(t, first.Close())
	first.Close() // again, which must not count twice
	dial()
	third := <-accepted
	_, err = dial().Read(make([]byte, 1))
	require.Error(t, err)

	require.NoError(t, second.Close())
	require.NoError(t, third.Close())
	require.NoError(t, inner.Close())
	<-done
	assert.Empty(t, listener.open)
}
