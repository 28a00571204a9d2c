package meshclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

// Options says how a [Client] connects. The zero value is a Go client of today without a
// certificate of its own. [SidecarTLS], [FIPSTLS], [PQCTLS] and [ZtunnelTLS] are those of the mesh.
type Options struct {
	// ServerName is the name to verify and to send as SNI. Optional: the host part of the address.
	ServerName string

	// MinVersion and MaxVersion bound the TLS version. Optional: crypto/tls's own bounds.
	MinVersion, MaxVersion uint16

	// Curves are the key exchanges offered, CipherSuites the suites of TLS 1.2 (Go does not let
	// those of TLS 1.3 be chosen). Optional: crypto/tls's own.
	Curves       []tls.CurveID
	CipherSuites []uint16

	// Certificate is sent whenever the server asks for one, whatever authorities it names, as
	// Istio's agent does with PROV_CERT (R8). Optional.
	Certificate *tls.Certificate

	// Keepalive is the time between pings while a call is pending. Optional: 30 s, that of Istio's
	// agent and of ztunnel (R10). gRPC raises anything below 10 s.
	Keepalive time.Duration

	// UserAgent is put before gRPC's own. Optional.
	UserAgent string

	// Source is the IP address to connect from; any of 127.0.0.0/8 reaches a server on this machine.
	// Optional.
	Source string
}

// SidecarTLS connects as Istio's agent does: TLS 1.2 to 1.3 with Go's defaults.
func SidecarTLS() Options {
	return Options{MinVersion: tls.VersionTLS12}
}

// FIPSTLS connects as an agent with COMPLIANCE_POLICY=fips-140-2 does (R2).
func FIPSTLS() Options {
	return Options{
		MinVersion: tls.VersionTLS12,
		MaxVersion: tls.VersionTLS12,
		Curves:     []tls.CurveID{tls.CurveP256},
		CipherSuites: []uint16{
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		},
	}
}

// PQCTLS connects as an agent with COMPLIANCE_POLICY=pqc does: nothing but X25519MLKEM768 (R2).
func PQCTLS() Options {
	return Options{MinVersion: tls.VersionTLS13, Curves: []tls.CurveID{tls.X25519MLKEM768}}
}

// ZtunnelTLS connects as ztunnel does, as far as Go can: TLS 1.3 only. That AES-GCM was chosen, the
// only suites ztunnel offers, is for [JudgeZtunnelTLS] to see.
func ZtunnelTLS() Options {
	return Options{MinVersion: tls.VersionTLS13}
}

// Client is one connection to a certificate authority. Unlike Istio's clients it never tries again,
// so that a test sees each answer. Safe for concurrent use.
type Client struct {
	conn  *grpc.ClientConn
	calls securityv1alpha1.IstioCertificateServiceClient
	state atomic.Pointer[tls.ConnectionState] // of the last call that reached a server
}

// Dial makes a client for the server at addr (host:port) that trusts the certificates in rootsPEM
// and nothing else. It does not connect yet: the first call does. Close it when done.
func Dial(addr string, rootsPEM []byte, opts Options) (*Client, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(rootsPEM) {
		return nil, fmt.Errorf("dial %s: no certificate in the roots", addr)
	}
	config := &tls.Config{
		RootCAs:          roots,
		ServerName:       opts.ServerName,
		MinVersion:       opts.MinVersion,
		MaxVersion:       opts.MaxVersion,
		CurvePreferences: opts.Curves,
		CipherSuites:     opts.CipherSuites,
	}
	if opts.Certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return opts.Certificate, nil
		}
	}
	interval := opts.Keepalive
	if interval == 0 {
		interval = 30 * time.Second
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: interval, Timeout: 10 * time.Second}),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
	}
	if opts.UserAgent != "" {
		dial = append(dial, grpc.WithUserAgent(opts.UserAgent))
	}
	if opts.Source != "" {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(opts.Source)}}
		dial = append(dial, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return from.DialContext(ctx, "tcp", addr)
		}))
	}
	// passthrough: the address is used as it is, like grpc.Dial in Istio's agent.
	conn, err := grpc.NewClient("passthrough:///"+addr, dial...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return &Client{conn: conn, calls: securityv1alpha1.NewIstioCertificateServiceClient(conn)}, nil
}

// Close ends the connection; calls that wait on it fail.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil {
		return fmt.Errorf("close connection: %w", err)
	}
	return nil
}

// Ask is one call of CreateCertificate. The zero value sends nothing at all, which is a valid call
// with an invalid content; no field is checked.
type Ask struct {
	// Token is sent as "authorization: Bearer <token>". Optional.
	Token string

	// Authorization are further authorization values, sent verbatim and before the one of Token.
	Authorization []string

	// CSR is the request in PEM.
	CSR string

	// ValiditySeconds is the lifetime asked for; Istio's clients send 86400 unless told otherwise.
	ValiditySeconds int64

	// Metadata is nil for agentgateway, else see [SidecarMetadata] and [ZtunnelMetadata].
	Metadata *structpb.Struct

	// ClusterIDs are the values of the clusterid header, sent in this order. Real clients send one.
	ClusterIDs []string

	// Headers are further gRPC headers, such as those that CA_HEADER_* sets.
	Headers metadata.MD
}

// Create asks for a certificate and returns the chain as the server sent it: PEM, leaf first, the
// trust anchors together in the last element.
//
// The error is gRPC's own, so that the code and the text the server chose can be compared. ctx bounds
// the call; Istio's clients set no deadline.
func (c *Client) Create(ctx context.Context, ask Ask) ([]string, error) {
	header := ask.Headers.Copy()
	if header == nil {
		header = metadata.MD{}
	}
	header.Append("clusterid", ask.ClusterIDs...)
	header.Append("authorization", ask.Authorization...)
	if ask.Token != "" {
		header.Append("authorization", "Bearer "+ask.Token)
	}
	var from peer.Peer
	answer, err := c.calls.CreateCertificate(metadata.NewOutgoingContext(ctx, header),
		&securityv1alpha1.IstioCertificateRequest{
			Csr:              ask.CSR,
			ValidityDuration: ask.ValiditySeconds,
			Metadata:         ask.Metadata,
		}, grpc.Peer(&from))
	if info, ok := from.AuthInfo.(credentials.TLSInfo); ok {
		c.state.Store(&info.State)
	}
	if err != nil {
		return nil, err
	}
	return answer.GetCertChain(), nil
}

// TLS is the state of the connection that carried the last call. It fails if no call reached a
// server yet.
func (c *Client) TLS() (tls.ConnectionState, error) {
	state := c.state.Load()
	if state == nil {
		return tls.ConnectionState{}, errors.New("connection state: no call has reached a server")
	}
	return *state, nil
}
