//go:build !linux

package controlplane

import (
	"io"
	"net"
)

// reserve says whether anybody listens on a port; nothing is held where the kernel lets nobody listen beside it.
func reserve(port int) (io.Closer, error) {
	listener, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return nil, err
	}
	return io.NopCloser(nil), listener.Close()
}
