package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
)

const (
	// forbiddenAge is how old what is known of nodes and the API server may be.
	forbiddenAge = time.Minute
	// readTimeout bounds a question to the API server.
	readTimeout = 5 * time.Second
	// nodesTimeout bounds that for all nodes.
	nodesTimeout = 15 * time.Second
	// nodesPage is how many nodes are read at once; each may have tens of kilobytes.
	nodesPage = 100
)

// cluster asks the API server, each time: probes are rare, and what is dialed must be so now. Safe for concurrent use.
type cluster struct {
	reader client.Reader
	host   string // of the API server, as it is reached

	asking singleflight.Group // for what must not be dialed
	not    atomic.Pointer[notDialed]
}

// notDialed is what must not be dialed, as of a time.
type notDialed struct {
	forbidden
	since time.Time
}

func newCluster(reader client.Reader, config *rest.Config) *cluster {
	c := &cluster{reader: reader}
	if config != nil {
		c.host = config.Host
	}
	return c
}

func (c *cluster) service(ctx context.Context, namespace, name string) (*corev1.Service, error) {
	service := &corev1.Service{}
	return service, c.get(ctx, namespace, name, service)
}

func (c *cluster) pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	return pod, c.get(ctx, namespace, name, pod)
}

// get reads an object. The error matches [api.ErrNotFound] where there is none.
func (c *cluster) get(ctx context.Context, namespace, name string, object client.Object) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	err := c.reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object)
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%T %s/%s: %w", object, namespace, name, api.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("get %T %s/%s: %w", object, namespace, name, err)
	}
	return nil
}

// forbidden are the addresses of nodes and of the API server. Many who ask at once share the question, which goes on when
// one of them leaves.
func (c *cluster) forbidden(ctx context.Context, now time.Time) (forbidden, error) {
	if known := c.not.Load(); known != nil && now.Sub(known.since) < forbiddenAge {
		return known.forbidden, nil
	}
	done := c.asking.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), nodesTimeout)
		defer cancel()
		not := make(forbidden)
		if err := errors.Join(c.addNodes(ctx, not), c.addAPIServer(ctx, not)); err != nil {
			return nil, fmt.Errorf("what must not be dialed isn't known: %w", err)
		}
		c.not.Store(&notDialed{not, now})
		return not, nil
	})
	select {
	case answer := <-done:
		not, _ := answer.Val.(forbidden)
		return not, answer.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f forbidden) add(text, what string) {
	if address, err := netip.ParseAddr(text); err == nil {
		f[address.Unmap()] = what
	}
}

func (c *cluster) addNodes(ctx context.Context, not forbidden) error {
	for next := ""; ; {
		var nodes corev1.NodeList
		if err := c.reader.List(ctx, &nodes, client.Limit(nodesPage), client.Continue(next)); err != nil {
			return fmt.Errorf("list Nodes: %w", err)
		}
		for _, node := range nodes.Items {
			for _, address := range node.Status.Addresses {
				not.add(address.Address, "a node's")
			}
		}
		if next = nodes.Continue; next == "" {
			return nil
		}
	}
}

// addAPIServer adds what the API server says of itself in the namespace default, and where it is reached.
func (c *cluster) addAPIServer(ctx context.Context, not forbidden) error {
	const what = "the API server's"
	if at, err := url.Parse(c.host); err == nil {
		not.add(at.Hostname(), what)
	}
	var slices discoveryv1.EndpointSliceList
	if err := c.reader.List(ctx, &slices, client.InNamespace(corev1.NamespaceDefault), client.MatchingLabels{discoveryv1.LabelServiceName: "kubernetes"}); err != nil {
		return fmt.Errorf("list EndpointSlices of the API server: %w", err)
	}
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			for _, address := range endpoint.Addresses {
				not.add(address, what)
			}
		}
	}
	service, err := c.service(ctx, corev1.NamespaceDefault, "kubernetes")
	if err != nil && !errors.Is(err, api.ErrNotFound) {
		return err
	}
	for _, address := range service.Spec.ClusterIPs {
		not.add(address, what)
	}
	return nil
}
