package istioclient

import (
	"context"
	"errors"
	"fmt"
	"os"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/nodeagent/cache"
	"istio.io/istio/security/pkg/nodeagent/sds"
)

// The names under which Envoy knows its secrets.
const (
	Workload = security.WorkloadKeyCertResourceName
	Anchors  = security.RootCertReqResourceName
)

const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// SDS is Istio's secret discovery server and a connection to it over its Unix socket.
type SDS struct {
	secrets *cache.SecretManagerClient
	server  *sds.Server
	conn    *grpc.ClientConn
}

// StartSDS starts the server, which asks for a certificate at once and again with growing pauses until
// it has one, and connects to it as Envoy does.
//
// Istio fixes the socket's path relative to the working directory, so a process can have one SDS at a
// time and belongs into a directory of its own ([testing.T.Chdir]) for as long as it runs; RootsFile
// should be absolute. Close it when done.
func StartSDS(config Config) (*SDS, error) {
	secrets, err := Secrets(config)
	if err != nil {
		return nil, err
	}
	server := sds.NewServer(config.options(), secrets, nil)
	secrets.RegisterSecretHandler(server.OnSecretUpdate)
	s := &SDS{secrets: secrets, server: server}
	path := security.GetIstioSDSServerSocketPath()
	if _, err := os.Stat(path); err != nil {
		s.Close()
		return nil, fmt.Errorf("start SDS: socket: %w", err)
	}
	s.conn, err = grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("connect to SDS: %w", err)
	}
	return s, nil
}

// Close ends the connection, the server and its renewals.
func (s *SDS) Close() {
	if s.conn != nil {
		s.conn.Close()
	}
	s.server.Stop()
	s.secrets.Close()
}

// Secret is one secret as Envoy gets it: Chain and Key for [Workload], Roots for [Anchors]; all PEM.
type Secret struct {
	Name       string
	Chain, Key []byte
	Roots      []byte
	Version    string
}

// Subscription is a stream of one secret. Not safe for concurrent use.
type Subscription struct {
	name   string
	stream grpc.BidiStreamingClient[discovery.DiscoveryRequest, discovery.DiscoveryResponse]
}

// Subscribe asks for [Workload] or [Anchors] and for each that replaces it. It lasts until ctx is done.
func (s *SDS) Subscribe(ctx context.Context, name string) (*Subscription, error) {
	stream, err := secretv3.NewSecretDiscoveryServiceClient(s.conn).StreamSecrets(ctx)
	if err != nil {
		return nil, fmt.Errorf("subscribe to secret %s: %w", name, err)
	}
	err = stream.Send(&discovery.DiscoveryRequest{
		Node:          &core.Node{Id: "sidecar~127.0.0.1~test~test.local"},
		TypeUrl:       secretType,
		ResourceNames: []string{name},
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to secret %s: %w", name, err)
	}
	return &Subscription{name: name, stream: stream}, nil
}

// Next waits for the secret, at first the present one, and accepts it. It fails when the context of
// the subscription is done, and when Istio could not get a certificate; then, as Envoy does, subscribe
// again.
func (s *Subscription) Next() (Secret, error) {
	response, err := s.stream.Recv()
	if err != nil {
		return Secret{}, fmt.Errorf("receive secret %s: %w", s.name, err)
	}
	secret, err := readSecret(response)
	ack := &discovery.DiscoveryRequest{
		TypeUrl:       secretType,
		ResourceNames: []string{s.name},
		ResponseNonce: response.GetNonce(),
		VersionInfo:   response.GetVersionInfo(),
	}
	if err != nil {
		ack.ErrorDetail = &rpcstatus.Status{Message: err.Error()}
	}
	if sendErr := s.stream.Send(ack); sendErr != nil {
		err = errors.Join(err, sendErr)
	}
	if err != nil {
		return Secret{}, fmt.Errorf("receive secret %s: %w", s.name, err)
	}
	return secret, nil
}

func readSecret(response *discovery.DiscoveryResponse) (Secret, error) {
	if n := len(response.GetResources()); n != 1 {
		return Secret{}, fmt.Errorf("answer holds %d secrets, not 1", n)
	}
	var resource tlsv3.Secret
	if err := response.GetResources()[0].UnmarshalTo(&resource); err != nil {
		return Secret{}, fmt.Errorf("decode secret: %w", err)
	}
	return Secret{
		Name:    resource.GetName(),
		Chain:   resource.GetTlsCertificate().GetCertificateChain().GetInlineBytes(),
		Key:     resource.GetTlsCertificate().GetPrivateKey().GetInlineBytes(),
		Roots:   resource.GetValidationContext().GetTrustedCa().GetInlineBytes(),
		Version: response.GetVersionInfo(),
	}, nil
}
