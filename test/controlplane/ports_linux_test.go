package controlplane

import (
	"net"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A plane's ports are its own, whether a part listens on them at the moment or not.
func TestPortsAreReserved(t *testing.T) {
	p, err := reservePorts(1)
	require.NoError(t, err)
	port := p.numbers[0]
	for range 2 { // a part that is started again
		_, err = reserve(port)
		require.Error(t, err, "nobody listens yet")
		listener, err := net.Listen("tcp", loopback(port))
		require.NoError(t, err)
		_, err = reserve(port)
		require.Error(t, err, "somebody listens")
		require.NoError(t, listener.Close())
	}
	_, err = net.Dial("tcp", loopback(port))
	require.Error(t, err, "who holds it doesn't answer")
	require.NoError(t, p.close())
	require.NoError(t, p.close(), "again")
	again, err := reserve(port)
	require.NoError(t, err, strconv.Itoa(port))
	assert.NoError(t, again.Close())
}
