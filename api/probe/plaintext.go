package probe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/signet-ca/signet/api"
)

// tryPlaintext says whether a port answers who speaks no TLS. What it says is as harmless as can be: first it listens, so
// that a protocol in which the server speaks first gets nothing; then it sends `OPTIONS *`, which asks a server of HTTP
// for nothing but a sign of life (RFC 9110 §9.3.7), where the port is declared to speak HTTP, and empty lines elsewhere,
// which protocols of lines take for no command. More than two bytes are needed: who inspects the first bytes for TLS
// decides with the fifth.
func tryPlaintext(conn *boundedConn, http bool, first, wait time.Duration) api.PlaintextAnswer {
	conn.waitFor(first)
	answer := make([]byte, maxPlainBytes)
	n, err := conn.Read(answer)
	if n == 0 && isTimeout(err) {
		question := "\r\n\r\n\r\n"
		if http {
			question = fmt.Sprintf("OPTIONS * HTTP/1.1\r\nHost: %s\r\nUser-Agent: signet-probe\r\nConnection: close\r\n\r\n", conn.RemoteAddr())
		}
		conn.waitFor(wait)
		if _, err = io.WriteString(conn, question); err == nil {
			n, err = conn.Read(answer)
		}
	}
	switch {
	case n == 0 && isTimeout(err):
		return api.PlaintextSilent
	case n == 0:
		return api.PlaintextRefused
	}
	if bytes.HasPrefix(answer, []byte("HTTP/")) { // a demand for TLS can be in what comes behind the first part
		more, _ := io.ReadFull(conn, answer[n:])
		n += more
	}
	if isTLS(answer[:n]) || demandsTLS(answer[:n]) {
		return api.PlaintextRefused
	}
	return api.PlaintextAnswered
}

// isTLS says whether an answer is a record of TLS, such as an alert.
func isTLS(answer []byte) bool {
	return len(answer) >= 2 && answer[0] >= 20 && answer[0] <= 23 && answer[1] == 3
}

// demandsTLS says whether an answer of HTTP is a demand for HTTPS: 426, or 400 with a word about it, as servers of HTTPS
// answer in plaintext.
func demandsTLS(answer []byte) bool {
	version, rest, found := bytes.Cut(answer, []byte(" "))
	if !found || !bytes.HasPrefix(version, []byte("HTTP/")) {
		return false
	}
	return bytes.HasPrefix(rest, []byte("426")) || bytes.HasPrefix(rest, []byte("400")) && bytes.Contains(rest, []byte("HTTPS"))
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
