package istiod

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// clusters is the type of the configuration that Envoy asks for first.
const clusters = "type.googleapis.com/envoy.config.cluster.v3.Cluster"

// configured plays the part of Envoy once: it opens a stream at its agent, which opens one at istiod,
// and asks for the clusters. Each time is a new TLS connection to istiod.
func (w *workload) configured(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+filepath.Join(w.dir, "etc/istio/proxy/XDS"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("open stream at the agent: %w", err)
	}
	node := &corev3.Node{Id: "sidecar~10.0.0.1~app." + w.ns + "~" + w.ns + ".svc.cluster.local"}
	if err := stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: clusters}); err != nil {
		return fmt.Errorf("ask the agent for clusters: %w", err)
	}
	answer, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("get clusters from the agent: %w", err)
	}
	if answer.GetTypeUrl() != clusters || len(answer.GetResources()) == 0 {
		return errors.New("istiod sent no clusters")
	}
	return nil
}
