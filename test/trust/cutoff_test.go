package trust

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// wire passes connections on to a target, "" for none yet, until it is cut.
type wire struct {
	listener net.Listener
	running  sync.WaitGroup

	mu     sync.Mutex // guards the following
	target string
	isCut  bool
	open   map[net.Conn]bool
}

func newWire(t *testing.T, target string) *wire {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w := &wire{listener: listener, target: target, open: make(map[net.Conn]bool)}
	w.running.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			w.running.Go(func() { w.pass(in) })
		}
	})
	t.Cleanup(func() {
		assert.NoError(t, listener.Close())
		w.cut(true)
		w.running.Wait()
	})
	return w
}

// pass carries one connection until either end, or a cut, ends it.
func (w *wire) pass(in net.Conn) {
	defer in.Close()
	w.mu.Lock()
	target := w.target
	w.mu.Unlock()
	if target == "" {
		return
	}
	out, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	w.mu.Lock()
	if w.isCut {
		w.mu.Unlock()
		return
	}
	w.open[in], w.open[out] = true, true
	w.mu.Unlock()
	var both sync.WaitGroup
	for from, to := range map[net.Conn]net.Conn{in: out, out: in} {
		both.Go(func() {
			_, err := io.Copy(to, from)
			err = errors.Join(err, to.Close(), from.Close()) // ends the other direction too; that it was closed before is no news
			_ = err
		})
	}
	both.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, in)
	delete(w.open, out)
}

// to says where connections go from now on.
func (w *wire) to(target string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target = target
}

func (w *wire) cut(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = cut
	for conn := range w.open {
		if cut {
			conn.Close()
		}
	}
}

// TestReplicaThatWasCutOff: a replica that can't reach the API server for a while is not waited for. When it is back it
// signs nothing before it knows the anchors that were published meanwhile.
func TestReplicaThatWasCutOff(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.pin(t, issuerA)
	longer := m.short(map[string]any{"ca.lifetime.max": "100s", "ca.lifetime.default": "100s"})
	first := m.start(t, longer)
	logged(t, first, "lease acquired")

	path, err := plane.KubeconfigAs(t.Context(), m.ns, "signet")
	require.NoError(t, err)
	config, err := clientcmd.LoadFromFile(path)
	require.NoError(t, err)
	var w *wire
	for _, cluster := range config.Clusters {
		server, err := url.Parse(cluster.Server)
		require.NoError(t, err)
		w = newWire(t, server.Host)
		cluster.Server = "https://" + w.listener.Addr().String()
	}
	through := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*config, through))
	second := m.startAs(t, replica.Config{Namespace: m.ns, Issuer: issuerA, Settings: longer, Kubeconfig: through})
	caller := m.workload(t, "web")
	c := dial(t, second, m.roots[issuerA])
	require.Equal(t, issuerA, m.issuedBy(t, caller, c))
	patiently.Holds(t, func() bool { return len(get(t, m.ns, replicasMap).Data) == 2 }, "both report")

	w.cut(true)
	m.pin(t, issuerA, issuerB)
	patiently.Holds(t, func() bool {
		for _, a := range m.state(t).Anchors {
			if !a.Until.IsZero() {
				return true
			}
		}
		return false
	}, "the one that is gone is not waited for")
	says(t, second, "[-] replicas: this replica hasn't reached the API server")
	w.cut(false)
	var h *holding
	patiently.Holds(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
		defer cancel()
		var err error
		if h, err = caller.request(t).send(ctx, c); err != nil {
			assert.Contains(t, []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Canceled}, status.Code(err), "%v", err)
		}
		return err == nil
	}, "it signs again")
	assert.Contains(t, string(h.anchors), strings.TrimSpace(string(m.roots[issuerB])), "its first answer has the new anchor")
}
