package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-ca/signet/api"
)

var webPod = api.Pod{Namespace: "shop", Name: "web-1", UID: "u1", Node: "n1", ServiceAccount: "web"}

// asked is the result of one port of the pod.
func (r *rig) asked(ctx context.Context, protocol api.ProbeProtocol, plaintext bool, service corev1.ServicePort) *api.ProbeResult {
	result := &api.ProbeResult{Verdict: api.ProbeGood, Protocol: protocol}
	port := uint16(8080)
	if protocol == api.ProbeAmbient {
		port = hbonePort
	}
	r.look(ctx, result, &webPod, podIP, target{service: service, protocol: protocol, port: port, plain: 8080}, plaintext, only("shop"))
	return result
}

func codes(r *api.ProbeResult) []api.ProbeCode {
	var all []api.ProbeCode
	for _, f := range r.Findings {
		all = append(all, f.Code)
	}
	return all
}

// TestHandshakes: of each protocol and version, with each demand for a client certificate.
func TestHandshakes(t *testing.T) {
	r := newRig(t, Config{})
	leaf := r.root.leaf(t, webID)
	for _, protocol := range []api.ProbeProtocol{api.ProbeSidecar, api.ProbeAmbient, api.ProbeTLS} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for demand, want := range map[tls.ClientAuthType]api.ClientCertificate{
				tls.NoClientCert: api.ClientCertNone, tls.RequestClientCert: api.ClientCertRequested,
				tls.RequireAnyClientCert: api.ClientCertRequired, tls.RequireAndVerifyClientCert: api.ClientCertRequired,
			} {
				t.Run(fmt.Sprintf("%s %s %s", protocol, tls.VersionName(version), demand), func(t *testing.T) {
					r := newRig(t, Config{})
					r.root.certificate = nil // what is known isn't the question here
					r.anchors = func() *x509.CertPool { return nil }
					if want == api.ClientCertRequested {
						r.wait = 50 * time.Millisecond // it never comes
					}
					port := uint16(8080)
					if protocol == api.ProbeAmbient {
						port = hbonePort
					}
					var offered atomic.Pointer[tls.ClientHelloInfo]
					r.serve(t, port, overTLS(&tls.Config{
						MinVersion: version, MaxVersion: version, ClientAuth: demand, NextProtos: []string{"istio", "h2"},
						GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
							offered.Store(hello)
							return leaf, nil
						},
					}))
					got := r.asked(t.Context(), protocol, false, corev1.ServicePort{})
					require.NotEmpty(t, got.Chain, "%+v", got)
					assert.Equal(t, serialOf(leaf.Leaf), got.Chain[0].Serial)
					assert.Equal(t, []string{"URI:" + webID}, got.Chain[0].SANs)
					assert.Equal(t, want, got.ClientCertificate)
					if !(version == tls.VersionTLS12 && want == api.ClientCertRequired) { // then the handshake doesn't end
						assert.Equal(t, map[api.ProbeProtocol]string{api.ProbeSidecar: "istio", api.ProbeAmbient: "h2", api.ProbeTLS: "h2"}[protocol], got.ALPN)
						assert.NotEmpty(t, got.CipherSuite)
					}
					assert.Equal(t, tls.VersionName(version), got.TLSVersion)
					assert.Equal(t, meshProtocol(protocol) && want != api.ClientCertRequired, slices.Contains(codes(got), api.FoundNoClientCert))
					assert.Equal(t, map[api.ProbeProtocol][]string{
						api.ProbeSidecar: {"istio-peer-exchange", "istio"}, api.ProbeAmbient: {"h2"}, api.ProbeTLS: {"h2", "http/1.1"},
					}[protocol], offered.Load().SupportedProtos)
					assert.Empty(t, offered.Load().ServerName)
				})
			}
		}
	}
}

// TestServerName: a gateway shows the certificate of the host that is asked for.
func TestServerName(t *testing.T) {
	r := newRig(t, Config{})
	other := newAuthority(t, "public")
	dns := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames = []string{name} }
	}
	shop, fallback := other.leaf(t, "", dns("shop.example.com")), other.leaf(t, "", dns("*.fallback.example.com"))
	r.serve(t, 8080, overTLS(&tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "shop.example.com" {
			return shop, nil
		}
		return fallback, nil
	}}))
	ask := func(name string) *api.ProbeResult {
		result := &api.ProbeResult{Verdict: api.ProbeGood, Protocol: api.ProbeTLS, ServerName: name}
		r.look(t.Context(), result, &webPod, podIP, target{protocol: api.ProbeTLS, port: 8080}, true, only("shop"))
		return result
	}
	got := ask("shop.example.com")
	assert.Equal(t, []string{"DNS:shop.example.com"}, got.Chain[0].SANs)
	assert.Equal(t, api.ProbeGood, got.Verdict, "%+v", got.Findings)
	assert.Equal(t, api.ClientCertNone, got.ClientCertificate)
	assert.Empty(t, got.Plaintext, "there is no port for it")
	got = ask("pay.example.com")
	assert.Equal(t, []string{"DNS:*.fallback.example.com"}, got.Chain[0].SANs)
	assert.Equal(t, []api.ProbeCode{api.FoundWrongNames}, codes(got))
	assert.Equal(t, api.ProbeWarning, got.Verdict)
	assert.Equal(t, "the certificate isn't for pay.example.com; it has DNS:*.fallback.example.com", got.Findings[0].Detail)
	assert.Equal(t, api.ProbeGood, ask("a.fallback.example.com").Verdict)
}

// TestJunk: whatever a server does, the answer says what it was, of nothing that it sent, and the probe ends.
func TestJunk(t *testing.T) {
	r := newRig(t, Config{})
	leaf := r.root.leaf(t, webID)
	secret := "SECRET-OF-A-SERVER"
	endless := func(conn io.Writer) {
		for {
			if _, err := conn.Write(bytes.Repeat([]byte(secret), 1000)); err != nil {
				return
			}
		}
	}
	for _, row := range []struct {
		name   string
		answer func(net.Conn)
		code   api.ProbeCode
		detail string
	}{
		{"HTTP", plainly("HTTP/1.1 200 " + secret + "\r\n\r\n"), api.FoundNoTLS, "it answers, but not in TLS"},
		{"a banner", plainly("SSH-2.0-" + secret + "\r\n"), api.FoundNoTLS, "it answers, but not in TLS"},
		{"endless plaintext", func(conn net.Conn) { endless(conn) }, api.FoundNoTLS, "it answers, but not in TLS"},
		{"gone at once", func(net.Conn) {}, api.FoundUnreachable, "it ended the connection without an answer to the handshake"},
		{"gone when asked", func(conn net.Conn) { _, _ = conn.Read(make([]byte, 10_000)) }, api.FoundUnreachable, "it ended the connection without an answer to the handshake"},
		{"reset", func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.(*net.TCPConn).SetLinger(0)
		}, api.FoundUnreachable, "it ended the connection without an answer to the handshake"},
		{"gone in between", func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 10_000))
			_, _ = conn.Write([]byte{22, 3, 3, 1, 0, 2, 0, 0})
		}, api.FoundUnreachable, "it ended the connection during the handshake"},
		{"no host of that name", overTLS(&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, io.EOF }}), api.FoundUnreachable, "it refuses the handshake: tls: internal error"},
		{"no protocol in common", overTLS(&tls.Config{Certificates: []tls.Certificate{*leaf}, NextProtos: []string{"other"}}), api.FoundUnreachable, "it refuses the handshake: tls: no application protocol"},
		{"old", overTLS(&tls.Config{Certificates: []tls.Certificate{*leaf}, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}), api.FoundUnreachable, "it refuses the handshake: tls: protocol version not supported"},
		{"a record without end", func(conn net.Conn) {
			_, _ = conn.Write([]byte{22, 3, 3, 0x40, 0})
			endless(conn)
		}, api.FoundUnreachable, ""},
		{"endless empty records", func(conn net.Conn) {
			for {
				if _, err := conn.Write(bytes.Repeat([]byte{22, 3, 3, 0, 1, 0}, 100)); err != nil {
					return
				}
			}
		}, api.FoundUnreachable, ""},
		{"a certificate that is none", overTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{[]byte(secret)}, PrivateKey: leaf.PrivateKey}}}), api.FoundUnreachable, ""},
		{"another's certificate", overTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: leaf.Certificate, PrivateKey: r.root.key}}}), api.FoundUnreachable, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.serve(t, 8080, row.answer)
			got := r.asked(t.Context(), api.ProbeTLS, false, corev1.ServicePort{})
			require.Equal(t, []api.ProbeCode{row.code}, codes(got), "%+v", got.Findings)
			assert.Contains(t, got.Findings[0].Detail, row.detail)
			assert.NotContains(t, fmt.Sprintf("%+v", got), secret)
			assert.Empty(t, got.Chain, "nothing was proved")
			assert.Empty(t, got.ClientCertificate)
		})
	}
}

// TestEndlessInTLS: what comes behind the handshake, where a refusal is waited for, isn't waited for either.
func TestEndlessInTLS(t *testing.T) {
	r := newRig(t, Config{})
	r.serve(t, 8080, func(conn net.Conn) {
		server := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*r.root.leaf(t, webID)}, ClientAuth: tls.RequestClientCert})
		for {
			if _, err := server.Write(make([]byte, 10_000)); err != nil {
				return
			}
		}
	})
	got := r.asked(t.Context(), api.ProbeSidecar, false, corev1.ServicePort{})
	assert.Equal(t, api.ClientCertRequested, got.ClientCertificate)
}

// TestUnclear: a connection that ends without a word says nothing about the certificate that was asked for.
func TestUnclear(t *testing.T) {
	r := newRig(t, Config{})
	r.serve(t, 8080, func(conn net.Conn) {
		server := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*r.root.leaf(t, webID)}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13})
		_ = server.Handshake()
	})
	got := r.asked(t.Context(), api.ProbeSidecar, false, corev1.ServicePort{})
	assert.Equal(t, api.ClientCertUnclear, got.ClientCertificate)
	assert.NotContains(t, codes(got), api.FoundNoClientCert)
}

// TestSlow: a server that says nothing is left when the time is over, or when the caller leaves.
func TestSlow(t *testing.T) {
	for _, protocol := range []api.ProbeProtocol{api.ProbeTLS, api.ProbeSMTP, api.ProbeIMAP, api.ProbePOP3} {
		r := newRig(t, Config{})
		r.timeout = 100 * time.Millisecond
		left := make(chan struct{}, 100)
		r.serve(t, 8080, func(conn net.Conn) {
			_, _ = io.Copy(io.Discard, conn)
			left <- struct{}{}
		})
		for detail := "no connection"; strings.HasPrefix(detail, "no connection"); { // a busy machine may need all the time for that
			got := r.asked(t.Context(), protocol, false, corev1.ServicePort{})
			require.Equal(t, []api.ProbeCode{api.FoundUnreachable}, codes(got))
			detail = got.Findings[0].Detail
			assert.Regexp(t, "^(no connection: .*|the handshake took too long|it didn't answer in time)$", detail)
		}
		<-left

		r.timeout = patience
		ctx, cancel := context.WithCancel(t.Context())
		r.serve(t, 8080, func(conn net.Conn) {
			if protocol == api.ProbeTLS {
				_, _ = conn.Read(make([]byte, 1))
			}
			cancel()
			_, _ = io.Copy(io.Discard, conn)
			left <- struct{}{}
		})
		assert.Equal(t, []api.ProbeCode{api.FoundUnreachable}, codes(r.asked(ctx, protocol, false, corev1.ServicePort{})))
		<-left
	}
}

// TestBounded: no more is read than was said.
func TestBounded(t *testing.T) {
	conn, err := net.Dial("tcp", listen(t, func(conn net.Conn) {
		for {
			if _, err := conn.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	}).String())
	require.NoError(t, err)
	defer conn.Close()
	got, err := io.ReadAll(&boundedConn{Conn: conn, left: maxTLSBytes})
	assert.ErrorIs(t, err, errTooMuch)
	assert.Len(t, got, maxTLSBytes)
}

func TestNobodyListens(t *testing.T) {
	r := newRig(t, Config{})
	got := r.asked(t.Context(), api.ProbeSidecar, true, corev1.ServicePort{})
	assert.Equal(t, []api.ProbeCode{api.FoundUnreachable}, codes(got))
	assert.Equal(t, "no connection: nobody listens", got.Findings[0].Detail)
	assert.Equal(t, api.ProbeUnreachable, got.Verdict)
	assert.Equal(t, api.PlaintextUnclear, got.Plaintext)
}

// TestPlaintext: as servers of all sorts answer, and what they are sent.
func TestPlaintext(t *testing.T) {
	r := newRig(t, Config{})
	leaf := r.root.leaf(t, webID)
	https := func(conn net.Conn) { // what Go's server does
		listener := &single{conn: conn, done: make(chan struct{})}
		server := &http.Server{Handler: http.NotFoundHandler(), TLSConfig: &tls.Config{Certificates: []tls.Certificate{*leaf}}, ErrorLog: quiet, ConnState: listener.state}
		_ = server.ServeTLS(listener, "", "")
		<-listener.done
	}
	const options, empty = "OPTIONS * HTTP/1.1\r\n", "\r\n\r\n\r\n"
	for _, row := range []struct {
		name    string
		port    corev1.ServicePort
		answer  func(first string) (string, bool) // what to say, and whether to stay
		whole   func(net.Conn)
		want    api.PlaintextAnswer
		sent    string
		waiting time.Duration
	}{
		{"HTTP", corev1.ServicePort{Name: "http"}, func(string) (string, bool) { return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false }, nil, api.PlaintextAnswered, options, 0},
		{"HTTP that doesn't close", corev1.ServicePort{Name: "http"}, func(string) (string, bool) {
			return "HTTP/1.1 405 Not Allowed\r\n\r\n" + strings.Repeat(" ", maxPlainBytes), true
		}, nil, api.PlaintextAnswered, options, 0},
		{"HTTP 400", corev1.ServicePort{Name: "http"}, func(string) (string, bool) { return "HTTP/1.1 400 Bad Request\r\n\r\nno", false }, nil, api.PlaintextAnswered, options, 0},
		{"a redirect isn't followed", corev1.ServicePort{Name: "http"}, func(string) (string, bool) {
			return "HTTP/1.1 301 Moved\r\nLocation: http://169.254.169.254/\r\n\r\n", false
		}, nil, api.PlaintextAnswered, options, 0},
		{"a demand for TLS", corev1.ServicePort{Name: "http"}, func(string) (string, bool) { return "HTTP/1.1 426 Upgrade Required\r\n\r\n", false }, nil, api.PlaintextRefused, options, 0},
		{"nginx on a port of HTTPS", corev1.ServicePort{Name: "https"}, func(string) (string, bool) {
			return "HTTP/1.1 400 Bad Request\r\n\r\n<title>400 The plain HTTP request was sent to HTTPS port</title>", false
		}, nil, api.PlaintextRefused, options, 0},
		{"Go on a port of HTTPS", corev1.ServicePort{Name: "https"}, nil, https, api.PlaintextRefused, "", 0},
		{"an alert", corev1.ServicePort{}, func(string) (string, bool) { return "\x15\x03\x01\x00\x02\x02\x0a", true }, nil, api.PlaintextRefused, empty, 0},
		{"gone", corev1.ServicePort{}, func(string) (string, bool) { return "", false }, nil, api.PlaintextRefused, empty, 0},
		{"no word", corev1.ServicePort{}, func(string) (string, bool) { return "", true }, nil, api.PlaintextSilent, empty, 50 * time.Millisecond},
		{"lines", corev1.ServicePort{Name: "redis"}, func(string) (string, bool) { return "-ERR unknown command\r\n", true }, nil, api.PlaintextAnswered, empty, 0},
		{"endless", corev1.ServicePort{}, nil, func(conn net.Conn) {
			for {
				if _, err := conn.Write(make([]byte, 10_000)); err != nil {
					return
				}
			}
		}, api.PlaintextAnswered, "", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.wait = patience
			if row.waiting > 0 {
				r.wait = row.waiting
			}
			sent := make(chan string, 1)
			answer := row.whole
			if answer == nil {
				answer = func(conn net.Conn) {
					first := make([]byte, 6)
					_, _ = io.ReadFull(conn, first)
					rest := ""
					if string(first) != empty {
						rest, _ = bufio.NewReader(conn).ReadString('\n')
					}
					text, stay := row.answer("")
					_, _ = io.WriteString(conn, text)
					sent <- string(first) + rest
					if stay {
						_, _ = io.Copy(io.Discard, conn)
					} else {
						_ = conn.(*net.TCPConn).CloseWrite()
						_, _ = io.Copy(io.Discard, conn)
					}
				}
			}
			r.serve(t, 8080, answer)
			address := r.servers[addrPort(8080)]
			conn, err := net.Dial("tcp", address.String())
			require.NoError(t, err)
			defer conn.Close()
			assert.Equal(t, row.want, tryPlaintext(&boundedConn{Conn: conn, left: maxPlainBytes}, speaksHTTP(row.port), r.first, r.wait))
			if row.sent != "" {
				assert.Equal(t, row.sent, <-sent)
			}
		})
	}
}

// TestServerSpeaksFirst: then nothing is sent.
func TestServerSpeaksFirst(t *testing.T) {
	sent := make(chan []byte, 1)
	address := listen(t, func(conn net.Conn) {
		_, _ = io.WriteString(conn, "SSH-2.0-x\r\n")
		all, _ := io.ReadAll(conn)
		sent <- all
	})
	conn, err := net.Dial("tcp", address.String())
	require.NoError(t, err)
	assert.Equal(t, api.PlaintextAnswered, tryPlaintext(&boundedConn{Conn: conn, left: maxPlainBytes}, true, patience, patience))
	conn.Close()
	assert.Empty(t, <-sent)
}

// TestPlaintextInMesh: only where a workload's certificate is shown it is something to look at.
func TestPlaintextInMesh(t *testing.T) {
	for _, protocol := range []api.ProbeProtocol{api.ProbeSidecar, api.ProbeAmbient, api.ProbeTLS} {
		r := newRig(t, Config{})
		leaf := r.root.leaf(t, webID)
		r.data.records = []api.Certificate{recordOf(leaf)}
		secure := overTLS(&tls.Config{Certificates: []tls.Certificate{*leaf}, ClientAuth: tls.RequireAnyClientCert})
		r.serve(t, hbonePort, secure)
		r.serve(t, 8080, func(conn net.Conn) { // as Envoy does it: either
			first := bufio.NewReader(conn)
			if b, err := first.Peek(1); err == nil && b[0] == 22 {
				secure(&peeked{conn, first})
			} else if err == nil {
				plainly("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" + strings.Repeat(" ", maxPlainBytes))(conn)
			}
		})
		got := r.asked(t.Context(), protocol, true, corev1.ServicePort{Name: "http"})
		assert.Equal(t, api.PlaintextAnswered, got.Plaintext)
		assert.Equal(t, meshProtocol(protocol), slices.Contains(codes(got), api.FoundPlaintext), "%+v", got.Findings)
		assert.Empty(t, r.asked(t.Context(), protocol, false, corev1.ServicePort{Name: "http"}).Plaintext)
	}
}
