package e2e

import (
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// TestR5_ServingCertificateChainsToTheAnchors: a certificate of ours that the mesh's roots don't lead to
// is never served. The replica stays unready and says why.
func TestR5_ServingCertificateChainsToTheAnchors(t *testing.T) {
	s := common(t)
	ns := "r5-" + rand.String(5)
	root, err := bootstrap(t.Context(), ns, controlplane.CAOptions{})
	require.NoError(t, err)
	r, err := replica.Start(t.Context(), plane, replica.Config{Namespace: ns, RootPEM: otherRoot(), DontWait: true})
	require.NoError(t, err)
	t.Cleanup(r.Kill)
	var body string
	patiently.Holds(t, func() bool {
		var code int
		code, body, err = r.Readyz(t.Context())
		return err == nil && code == 503 && strings.Contains(body, "[-] serving certificate") && strings.Contains(body, "doesn't lead to a trust anchor in force")
	}, "the reason in readiness")
	c, err := meshclient.Dial(r.CSR(), append(append([]byte{}, root...), otherRoot()...), meshclient.SidecarTLS())
	require.NoError(t, err)
	defer c.Close()
	_, err = create(t, c, s.caller(t).ask(t))
	require.Error(t, err)
	_, err = c.TLS()
	require.Error(t, err, "no handshake can have succeeded")
}

// TestR11_ConnectionsAreRenewed: one client goes on asking while the server has it reconnect again and
// again, and no request fails.
func TestR11_ConnectionsAreRenewed(t *testing.T) {
	s := common(t).peer(t, base(map[string]any{"ca.connectionAge": "1s"}), common(t).config.RootPEM)
	proxy := newCountingProxy(t, s.CSR())
	options := meshclient.SidecarTLS()
	options.ServerName = replica.ServerName
	c, err := meshclient.Dial(proxy.address, s.root, options)
	require.NoError(t, err)
	defer c.Close()
	caller := s.caller(t)
	patiently.Holds(t, func() bool {
		issued(t, c, caller.ask(t))
		return proxy.connections.Load() >= 4
	}, "four connections of one client")
}

// countingProxy passes connections on to a server and counts them.
type countingProxy struct {
	address     string
	connections atomic.Int64
}

func newCountingProxy(t *testing.T, server string) *countingProxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &countingProxy{address: listener.Addr().String()}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			p.connections.Add(1)
			upstream, err := net.Dial("tcp", server)
			if err != nil {
				conn.Close()
				continue
			}
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				to.Close()
				from.Close()
			}
			group.Go(func() { pass(upstream, conn) })
			group.Go(func() { pass(conn, upstream) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		group.Wait()
	})
	return p
}
