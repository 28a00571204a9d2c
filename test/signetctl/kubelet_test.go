package signetctl

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

// kubelet is a node whose only ability is to forward ports of its pods, with Kubernetes' own code for that; the API
// server connects to it.
type kubelet struct {
	node string

	mu    sync.Mutex
	ports map[string]string // namespace/pod:port to the address that it leads to
	conns map[net.Conn]bool // under way
	asked []string          // ports that were forwarded to
}

func newKubelet(t *testing.T) *kubelet {
	t.Helper()
	k := &kubelet{node: "node-" + rand.String(5), ports: make(map[string]string), conns: make(map[net.Conn]bool)}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/portForward/"), "/")
		if !strings.HasPrefix(r.URL.Path, "/portForward/") || len(parts) < 2 {
			http.NotFound(w, r)
			return
		}
		portforward.ServePortForward(w, r, k, parts[0]+"/"+parts[1], "", &portforward.V4Options{}, patience, patience, []string{portforward.ProtocolV1Name})
	}))
	t.Cleanup(func() {
		k.cut()
		server.CloseClientConnections()
		server.Close()
	})
	at, err := url.Parse(server.URL)
	require.NoError(t, err)
	port, err := strconv.Atoi(at.Port())
	require.NoError(t, err)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: k.node}}
	require.NoError(t, plane.Client().Create(t.Context(), node))
	t.Cleanup(func() { _ = plane.Client().Delete(context.WithoutCancel(t.Context()), node) })
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: at.Hostname()}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(port)
	require.NoError(t, plane.Client().Status().Update(t.Context(), node))
	return k
}

// lead has a port of a pod lead to an address.
func (k *kubelet) lead(namespace, pod string, port int, address string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ports[fmt.Sprintf("%s/%s:%d", namespace, pod, port)] = address
}

// PortForward implements [portforward.PortForwarder] for the name namespace/pod.
func (k *kubelet) PortForward(ctx context.Context, name, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	key := fmt.Sprintf("%s:%d", name, port)
	k.mu.Lock()
	k.asked = append(k.asked, key)
	address, ok := k.ports[key]
	k.mu.Unlock()
	if !ok {
		return fmt.Errorf("nobody listens at %s", key)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.conns[conn] = true
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.conns, conn)
		k.mu.Unlock()
	}()
	defer conn.Close()
	var group sync.WaitGroup
	group.Go(func() {
		_, _ = io.Copy(conn, stream)
		_ = conn.Close()
	})
	_, _ = io.Copy(stream, conn)
	_ = stream.Close()
	group.Wait()
	return nil
}

// cut ends the connections that are forwarded.
func (k *kubelet) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for conn := range k.conns {
		_ = conn.Close()
	}
}

// forwarded are the ports that were forwarded to, in order.
func (k *kubelet) forwarded() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked
}
