package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	reflectiongrpc "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// roots are those that a client of s is given.
func (s *stack) roots(t *testing.T) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(s.root))
	return pool
}

func TestR1_NegotiatesH2(t *testing.T) {
	s := common(t)
	c := s.dial(t)
	issued(t, c, s.caller(t).ask(t))
	state, err := c.TLS()
	require.NoError(t, err)
	assert.Equal(t, "h2", state.NegotiatedProtocol)
}

func TestR1_RefusesClientsWithoutH2(t *testing.T) {
	s := common(t)
	for name, protocols := range map[string][]string{"no protocols": nil, "HTTP/1.1": {"http/1.1"}, "unknown": {"spdy/3"}} {
		t.Run(name, func(t *testing.T) {
			dialer := &tls.Dialer{Config: &tls.Config{RootCAs: s.roots(t), ServerName: replica.ServerName, NextProtos: protocols}}
			conn, err := dialer.DialContext(t.Context(), "tcp", s.CSR())
			if err != nil {
				failure, ok := errors.AsType[*net.OpError](err)
				require.True(t, ok && failure.Op == "remote error", "the server sent no alert: %v", err)
				return
			}
			defer conn.Close()
			// With TLS 1.3 the client is done before the server has decided. No frame of HTTP/2 may come.
			_, _ = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(patiently.Timeout)))
			n, err := conn.Read(make([]byte, 1))
			require.Error(t, err)
			require.Zero(t, n)
			timeout, ok := errors.AsType[net.Error](err)
			require.False(t, ok && timeout.Timeout(), "the connection stays open")
		})
	}
}

func TestR2_MeshClientsConnect(t *testing.T) {
	for _, test := range []struct {
		name    string
		options meshclient.Options
		check   func(t *testing.T, s *stack, state tls.ConnectionState)
	}{
		{"sidecar", meshclient.SidecarTLS(), func(t *testing.T, _ *stack, state tls.ConnectionState) {
			assert.Equal(t, uint16(tls.VersionTLS13), state.Version)
		}},
		{"ztunnel", meshclient.ZtunnelTLS(), func(t *testing.T, _ *stack, state tls.ConnectionState) {
			assert.NoError(t, meshclient.JudgeZtunnelTLS(state))
		}},
		{"FIPS 140-2 agent", meshclient.FIPSTLS(), func(t *testing.T, s *stack, state tls.ConnectionState) {
			assert.Equal(t, uint16(tls.VersionTLS12), state.Version)
			assert.Equal(t, tls.CurveP256, state.CurveID)
			suites := []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
			if s.config.Settings["serving.key"] != nil {
				suites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384}
			}
			assert.Contains(t, suites, state.CipherSuite)
		}},
		{"post-quantum agent", meshclient.PQCTLS(), func(t *testing.T, _ *stack, state tls.ConnectionState) {
			assert.Equal(t, uint16(tls.VersionTLS13), state.Version)
			assert.Equal(t, tls.X25519MLKEM768, state.CurveID)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, s := range map[string]*stack{"ECDSA": common(t), "RSA": variant(t)} {
				t.Run(name, func(t *testing.T) {
					c := s.dial(t, test.options)
					issued(t, c, s.caller(t).ask(t))
					state, err := c.TLS()
					require.NoError(t, err)
					test.check(t, s, state)
				})
			}
		})
	}
}

// TestOnlyTLS13: where TLS 1.2 must not be spoken, no endpoint does. Annotations that are configured come with each request.
func TestOnlyTLS13(t *testing.T) {
	s := common(t).peer(t, map[string]any{"serving.minTLSVersion": "1.3", "signer.annotations": map[string]string{"example.com/policy": "mesh"}}, nil)
	caller := s.caller(t)
	ask := caller.ask(t)
	issued(t, s.dial(t), ask)
	requests := s.requestsFor(t, ask.CSR)
	require.Len(t, requests, 1)
	assert.Equal(t, "mesh", requests[0].Annotations["example.com/policy"])
	assert.NotEmpty(t, requests[0].Annotations["istio.cert-manager.io/identities"])
	refused(t, s.dial(t, meshclient.FIPSTLS()), caller.ask(t), codes.Unavailable)
	for _, address := range []string{s.CSR(), strings.TrimPrefix(s.APIURL(), "https://")} {
		for version, spoken := range map[uint16]bool{tls.VersionTLS12: false, tls.VersionTLS13: true} {
			dialer := &tls.Dialer{Config: &tls.Config{RootCAs: s.roots(t), ServerName: replica.ServerName, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12, MaxVersion: version}}
			conn, err := dialer.DialContext(t.Context(), "tcp", address)
			if spoken {
				require.NoError(t, err, address)
				require.NoError(t, conn.Close())
			} else {
				require.ErrorContains(t, err, "protocol version", address)
			}
		}
	}
}

func TestR2_WeakClientsDoNot(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	for name, options := range map[string]meshclient.Options{
		"TLS 1.1": {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"CBC":     {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, s.dial(t, options), caller.ask(t), codes.Unavailable)
		})
	}
}

func TestR3_ServingCertificate(t *testing.T) {
	for name, s := range map[string]*stack{"signed by the root": common(t), "signed by an intermediate": variant(t)} {
		t.Run(name, func(t *testing.T) {
			// The client knows the root alone, so that it depends on the intermediates that are sent.
			c := s.dial(t)
			issued(t, c, s.caller(t).ask(t))
			state, err := c.TLS()
			require.NoError(t, err)
			service, domain, sent := "signet", "cluster.local", 1
			if s == variant(t) {
				service, domain, sent = "ca", "corp.example", 2
			}
			require.Len(t, state.PeerCertificates, sent)
			leaf := state.PeerCertificates[0]
			host := service + "." + s.ns
			assert.ElementsMatch(t, []string{
				host, host + ".svc", host + ".svc." + domain, "localhost", replica.ServerName,
			}, leaf.DNSNames)
			require.Len(t, leaf.IPAddresses, 1)
			assert.Equal(t, "127.0.0.1", leaf.IPAddresses[0].String())
			assert.Empty(t, leaf.URIs)
			assert.Empty(t, leaf.Subject.CommonName)
			assert.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, leaf.ExtKeyUsage)
			assert.Empty(t, leaf.UnknownExtKeyUsage)
			assert.False(t, leaf.IsCA)
			assert.Zero(t, leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign))
		})
	}
}

func TestR3_NamesOfTheService(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	for _, name := range []string{"signet." + s.ns, "signet." + s.ns + ".svc", "signet." + s.ns + ".svc.cluster.local", "127.0.0.1"} {
		options := meshclient.SidecarTLS()
		options.ServerName = name
		issued(t, s.dial(t, options), caller.ask(t))
	}
	options := meshclient.SidecarTLS()
	options.ServerName = "signet.other.svc"
	assert.Contains(t, refused(t, s.dial(t, options), caller.ask(t), codes.Unavailable), "signet.other.svc")
}

func TestR4_NamesForPortForwarding(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	for _, name := range []string{"istiod.istio-system.svc", "localhost"} {
		options := meshclient.SidecarTLS()
		options.ServerName = name
		issued(t, s.dial(t, options), caller.ask(t))
	}
}

func TestR6_ServingCertificateRenewed(t *testing.T) {
	t.Parallel()
	s := common(t).peer(t, map[string]any{"serving.lifetime": "36s"}, nil)
	caller := s.caller(t)
	serial := func(c *meshclient.Client) string {
		state, err := c.TLS()
		require.NoError(t, err)
		return state.PeerCertificates[0].SerialNumber.String()
	}
	open := s.dial(t)
	issued(t, open, caller.ask(t))
	first := serial(open)

	seen := map[string]bool{first: true}
	patiently.Holds(t, func() bool {
		fresh, err := meshclient.Dial(s.CSR(), s.root, meshclient.Options{ServerName: replica.ServerName})
		require.NoError(t, err)
		defer fresh.Close()
		issued(t, fresh, caller.ask(t))
		seen[serial(fresh)] = true
		issued(t, open, caller.ask(t))
		require.Equal(t, first, serial(open), "the connection was dropped")
		time.Sleep(500 * time.Millisecond) // enough to see every certificate
		return len(seen) >= 3
	}, "the serving certificate is not renewed twice")
	patiently.Holds(t, func() bool { // it is in force a moment before it is counted
		return s.metric(t, "serving_certificate_renewals_total", map[string]string{"result": "ok"}) >= 3
	}, "three certificates are counted")
	assert.Zero(t, s.metric(t, "serving_certificate_renewals_total", map[string]string{"result": "failed"}))
}

func TestR10_PingsWhileARequestIsPending(t *testing.T) {
	t.Parallel()
	s := slow(t)
	caller := s.caller(t)
	options := meshclient.SidecarTLS()
	options.Keepalive = 10 * time.Second
	ask := caller.ask(t)
	done := later(t.Context(), s.dial(t, options), ask)
	s.request(t, ask.CSR)
	// The first ping is free and two more are tolerated in any case, so it takes a fourth to tell.
	select {
	case o := <-done:
		require.FailNow(t, "answered before its time", "%v", o.err)
	case <-time.After(46 * time.Second):
	}
	s.answer(t, ask.CSR, nil)
	o := await(t, done)
	require.NoError(t, o.err)
	assert.Len(t, s.requestsFor(t, ask.CSR), 1)
}

// conn is a plain gRPC connection, for the services beside Istio's.
func (s *stack) conn(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+s.CSR(), grpc.WithTransportCredentials(
		credentials.NewTLS(&tls.Config{RootCAs: s.roots(t), ServerName: replica.ServerName})))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	return conn
}

func TestHealth(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	answer, err := healthgrpc.NewHealthClient(common(t).conn(t)).Check(ctx, &healthgrpc.HealthCheckRequest{})
	require.NoError(t, err)
	assert.Equal(t, healthgrpc.HealthCheckResponse_SERVING, answer.GetStatus())
}

func TestReflection(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	stream, err := reflectiongrpc.NewServerReflectionClient(common(t).conn(t)).ServerReflectionInfo(ctx)
	require.NoError(t, err)
	ask := func(request *reflectiongrpc.ServerReflectionRequest) *reflectiongrpc.ServerReflectionResponse {
		require.NoError(t, stream.Send(request))
		answer, err := stream.Recv()
		require.NoError(t, err)
		require.Nil(t, answer.GetErrorResponse())
		return answer
	}
	const service = "istio.v1.auth.IstioCertificateService"

	var names []string
	for _, found := range ask(&reflectiongrpc.ServerReflectionRequest{
		MessageRequest: &reflectiongrpc.ServerReflectionRequest_ListServices{},
	}).GetListServicesResponse().GetService() {
		names = append(names, found.GetName())
	}
	assert.Contains(t, names, service)
	assert.Contains(t, names, "grpc.health.v1.Health")

	files := ask(&reflectiongrpc.ServerReflectionRequest{
		MessageRequest: &reflectiongrpc.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service + ".CreateCertificate"},
	}).GetFileDescriptorResponse().GetFileDescriptorProto()
	require.NotEmpty(t, files)
	var file descriptorpb.FileDescriptorProto
	require.NoError(t, proto.Unmarshal(files[0], &file))
	require.Equal(t, "istio.v1.auth", file.GetPackage())
	require.Len(t, file.GetService(), 1)
	require.Len(t, file.GetService()[0].GetMethod(), 1)
	method := file.GetService()[0].GetMethod()[0]
	assert.Equal(t, "CreateCertificate", method.GetName())
	assert.Equal(t, ".istio.v1.auth.IstioCertificateRequest", method.GetInputType())
	assert.Equal(t, ".istio.v1.auth.IstioCertificateResponse", method.GetOutputType())
	assert.False(t, method.GetClientStreaming() || method.GetServerStreaming())
	require.NoError(t, stream.CloseSend())
}

// The metrics can be read, and none of them tells who called.
func TestMetrics_HoldNoIdentity(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	ask := caller.ask(t)
	issued(t, c, ask)
	ask.ValiditySeconds = 1
	refused(t, c, ask, codes.InvalidArgument)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.MetricsURL(), nil)
	require.NoError(t, err)
	answer, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode, "%s", body)
	for _, name := range []string{"signet_requests_total", "signet_request_step_duration_seconds", "signet_certificaterequests_live",
		"signet_serving_certificate_not_after_timestamp_seconds", "process_open_fds", "go_goroutines"} {
		assert.Contains(t, string(body), "\n"+name)
	}
	var rest []string // all but the one gauge that has a series for each service account
	for line := range strings.Lines(string(body)) {
		if !strings.HasPrefix(line, "signet_identity_certificate_not_after_timestamp_seconds{") {
			rest = append(rest, line)
		}
	}
	for _, secret := range []string{caller.ns, caller.id.String(), "spiffe://"} {
		assert.NotContains(t, strings.Join(rest, ""), secret)
	}
}
