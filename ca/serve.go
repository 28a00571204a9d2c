package ca

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/tap"
)

const (
	// maxHeaderBytes bounds a request's headers: a token and a little more.
	maxHeaderBytes = 32 << 10
	// streamSlack is how much longer than a request a stream may last.
	streamSlack = time.Second
	// handshakeTimeout bounds a connection until it can carry requests.
	handshakeTimeout = 10 * time.Second
	// maxIdle bounds a connection without requests, so that idle ones don't take up all there may be. Clients that
	// renew at half of a day's lifetime connect anew anyway.
	maxIdle = 5 * time.Minute
)

// Endpoint serves a [Server] over TLS, with gRPC health and reflection.
type Endpoint struct {
	server      *Server
	certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// NewEndpoint serves server with the certificate that certificate returns for each handshake, so that
// it can be renewed without dropping a connection (R6).
func NewEndpoint(server *Server, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *Endpoint {
	return &Endpoint{server: server, certificate: certificate}
}

// NeedLeaderElection says that every replica serves.
func (e *Endpoint) NeedLeaderElection() bool { return false }

// Start listens and serves until ctx ends. Then it says that it isn't ready, goes on accepting for the
// shutdown delay, lets the requests under way finish within the drain time (R13), and returns.
func (e *Endpoint) Start(ctx context.Context) error {
	s := e.server
	address := s.cfg.Listen
	if address == "" {
		address = ":6443"
	}
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for certificate requests: %w", err)
	}
	listening := listener.Addr()

	checks := health.NewServer()
	server := e.grpcServer()
	server.RegisterService(s.serviceDesc(), nil)
	healthgrpc.RegisterHealthServer(server, checks)
	reflection.Register(server)

	served := make(chan error, 1)
	limits := s.admission.cfg
	limited := netutil.LimitListener(limitPerAddress(listener, limits.ConnectionsPerAddress), limits.Connections)
	go func() { served <- server.Serve(limited) }()
	s.listener.Store(&listening)
	s.log.Info("listening", "endpoint", "ca", "address", listening.String())

	select {
	case err := <-served:
		return fmt.Errorf("serve certificate requests on %s: %w", listening, err)
	case <-ctx.Done():
	}
	s.stopping.Store(true)
	checks.Shutdown()
	s.log.Info("stopping: not ready any more, still accepting", "for_seconds", s.cfg.ShutdownDelay.Seconds())
	select {
	case <-time.After(s.cfg.ShutdownDelay):
	case err := <-served:
		return fmt.Errorf("serve certificate requests on %s: %w", listening, err)
	}

	drain := time.AfterFunc(s.cfg.DrainTimeout, func() {
		s.log.Warn("requests are still under way, closing their connections", "after_seconds", s.cfg.DrainTimeout.Seconds())
		server.Stop()
	})
	server.GracefulStop()
	drain.Stop()
	s.receivers.Wait()
	if err := <-served; err != nil {
		return fmt.Errorf("serve certificate requests on %s: %w", listening, err)
	}
	return nil
}

// bound ends every stream a little after a request must have been answered: one whose message never
// arrives, and those of health and reflection, which would last for ever and hold up a stop.
func (e *Endpoint) bound(ctx context.Context, _ *tap.Info) (context.Context, error) {
	bounded, cancel := context.WithTimeout(ctx, e.server.cfg.requestTimeout()+streamSlack)
	context.AfterFunc(ctx, cancel) // the end of the stream frees the timer
	return bounded, nil
}

// grpcServer sets the bounds of connections and messages, and the keepalive that Istio's clients need.
func (e *Endpoint) grpcServer() *grpc.Server {
	cfg := e.server.cfg
	clients := tls.NoClientCert
	if e.server.authn.Certificate != nil {
		clients = tls.RequestClientCert // judged for each request, so that a bad one breaks no good token (R7, R8)
	}
	return grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion:     max(tls.VersionTLS12, e.server.cfg.MinTLS),
			NextProtos:     []string{"h2"}, // R1
			GetCertificate: e.certificate,
			ClientAuth:     clients,
			CipherSuites: []uint16{ // of TLS 1.2 (R2); those of 1.3 are fixed
				tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
				tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
				tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
			},
		})),
		grpc.MaxRecvMsgSize(maxFrameBytes),
		grpc.ForceServerCodecV2(newFrameCodec()),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(64),
		grpc.StaticStreamWindowSize(64<<10), // windows that grow would let one caller send megabytes ahead
		grpc.StaticConnWindowSize(256<<10),
		grpc.InTapHandle(e.bound),
		grpc.ConnectionTimeout(handshakeTimeout),
		// R10: both kinds of clients ping every 30s while a request is pending.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		// R11. gRPC spreads the age by a tenth; the grace is longer than any request.
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time:                  30 * time.Second,
			Timeout:               10 * time.Second,
			MaxConnectionIdle:     maxIdle,
			MaxConnectionAge:      cfg.ConnectionAge.Or(30 * time.Minute),
			MaxConnectionAgeGrace: cfg.requestTimeout() + 10*time.Second,
		}),
	)
}
