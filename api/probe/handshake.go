package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/signet-ca/signet/api"
)

// seen is what a handshake showed.
type seen struct {
	chain      []*x509.Certificate // leaf first; the other side has proved that it holds the leaf's key
	version    uint16
	suite      uint16
	alpn       string
	clientCert api.ClientCertificate
}

// errNoTLS says that the other side answered, but not in TLS.
var errNoTLS = errors.New("it answers, but not in TLS")

// alpn are the protocols that a probe offers. Envoy's sidecar tells by the first two that it is the mesh that asks.
var alpn = map[api.ProbeProtocol][]string{
	api.ProbeSidecar: {"istio-peer-exchange", "istio"},
	api.ProbeAmbient: {"h2"},
	api.ProbeTLS:     {"h2", "http/1.1"},
}

// Alerts by which a server refuses who shows no certificate, or not one that it takes (RFC 8446 §6.2, RFC 5246 §7.2.2).
var refusals = []tls.AlertError{
	116, // certificate_required
	40,  // handshake_failure: TLS 1.2
	42,  // bad_certificate
	43,  // unsupported_certificate
	46,  // certificate_unknown
	48,  // unknown_ca
	49,  // access_denied
}

// handshake shows no certificate. Where one was asked for, it waits for the refusal, which in TLS 1.3 comes only after the
// handshake (RFC 8446 §4.4.2.4, §7.5).
//
// The certificate is seen only where the other side has proved that it holds its key, whether it lets us in or not.
// Nothing about the certificate is verified here.
func handshake(ctx context.Context, conn *boundedConn, protocol api.ProbeProtocol, serverName string, wait time.Duration) (*seen, error) {
	s := &seen{clientCert: api.ClientCertNone}
	var shown [][]byte
	proved, asked := false, false
	client := tls.Client(conn, &tls.Config{
		InsecureSkipVerify:     true, //nolint:gosec // it is looked at, not believed
		ServerName:             serverName,
		NextProtos:             alpn[protocol],
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true,
		VerifyPeerCertificate: func(certificates [][]byte, _ [][]*x509.Certificate) error {
			shown = certificates
			return nil
		},
		// It is called when the signature of the server's part of the handshake has been verified.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			proved, asked = true, true
			return &tls.Certificate{}, nil
		},
	})
	err := client.HandshakeContext(ctx)
	if err == nil {
		state := client.ConnectionState()
		s.version, s.suite, s.alpn, proved = state.Version, state.CipherSuite, state.NegotiatedProtocol, true
		if asked {
			conn.waitFor(wait)
			_, err = client.Read(make([]byte, 1))
			s.clientCert = demanded(err)
		}
	} else if asked {
		if s.clientCert = demanded(err); s.clientCert == api.ClientCertRequired {
			s.version = tls.VersionTLS12 // in 1.3 the client's handshake has ended before it can be refused
		}
	}
	if !proved {
		return nil, unreached(conn, err)
	}
	for _, der := range shown {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("its certificate can't be read: %w", err)
		}
		s.chain = append(s.chain, certificate)
	}
	if len(s.chain) == 0 { // TLS refuses that
		return nil, errors.New("it shows no certificate")
	}
	return s, nil
}

// demanded says what became of us without the certificate that was asked for.
func demanded(err error) api.ClientCertificate {
	var timeout net.Error
	switch {
	case err == nil, errors.As(err, &timeout) && timeout.Timeout():
		return api.ClientCertRequested
	case isAlert(err, refusals...):
		return api.ClientCertRequired
	}
	return api.ClientCertUnclear
}

// isAlert says whether the other side sent one of these alerts. crypto/tls keeps the type of those on connections to
// itself; their texts are the same.
func isAlert(err error, alerts ...tls.AlertError) bool {
	remote, ok := errors.AsType[*net.OpError](err)
	return ok && remote.Op == "remote error" && slices.ContainsFunc(alerts, func(a tls.AlertError) bool { return remote.Err.Error() == a.Error() })
}

// unreached says for people why there was no handshake. Nothing that the other side said is in it but its alert.
func unreached(conn *boundedConn, err error) error {
	if remote, ok := errors.AsType[*net.OpError](err); ok && remote.Op == "remote error" {
		return fmt.Errorf("it refuses the handshake: %w", remote.Err)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return errNoTLS
	}
	switch {
	case errors.Is(err, errTooMuch):
		return errTooMuch
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), isReset(err):
		if conn.got {
			return errors.New("it ended the connection during the handshake")
		}
		return errors.New("it ended the connection without an answer to the handshake")
	case errors.Is(err, net.ErrClosed), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return errors.New("the handshake took too long")
	}
	return fmt.Errorf("no handshake: %w", err)
}
