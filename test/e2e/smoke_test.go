package e2e

import (
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/replica"
)

func TestSmoke(t *testing.T) {
	ctx := t.Context()
	ns := plane.NewNamespace(t, "signet")
	root, err := plane.BootstrapCA(ctx, ns, "istio-ca", controlplane.CAOptions{})
	require.NoError(t, err)
	r, err := replica.Start(ctx, plane, replica.Config{Namespace: ns, RootPEM: root})
	require.NoError(t, err)
	t.Cleanup(r.Stop)
	token, err := plane.Token(ctx, ns, "default", controlplane.TokenOptions{})
	require.NoError(t, err)
	opt := meshclient.SidecarTLS()
	opt.ServerName = replica.ServerName
	c, err := meshclient.Dial(r.CSR(), root, opt)
	require.NoError(t, err)
	defer c.Close()
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/" + ns + "/sa/default")
	key, csr, err := meshclient.ZtunnelCSR(id)
	require.NoError(t, err)
	for range 5 {
		began := time.Now()
		chain, err := c.Create(ctx, meshclient.Ask{Token: token, CSR: csr})
		require.NoError(t, err)
		t.Log(time.Since(began))
		require.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), id, time.Now()))
	}
	_, body, err := r.Readyz(ctx)
	require.NoError(t, err)
	t.Log(body)
	log, _ := r.Log()
	t.Log(log)
}
