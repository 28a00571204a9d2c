package controlplane

import (
	"io"
	"os"
	"syscall"
)

// reserve takes a port without listening there, until the result is closed or this process ends. To bind it fails where
// anybody has the port, another plane's reservation included. Afterwards a server can listen beside it, as Linux lets
// sockets share an address of which all allow that (SO_REUSEADDR, which Go's servers do) and at most one listens.
func reserve(port int) (io.Closer, error) {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	held := os.NewFile(uintptr(socket), "reserved port")
	err = syscall.Bind(socket, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	if err == nil {
		err = syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	}
	if err != nil {
		held.Close()
		return nil, os.NewSyscallError("bind", err)
	}
	return held, nil
}
