package e2e

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/replica"
)

func TestR33_Lifetime(t *testing.T) {
	for _, test := range []struct {
		name    string
		stack   func(*testing.T) *stack
		seconds int64
		want    time.Duration // 0: refused
		floor   string        // named in the refusal
	}{
		{"none is the default", common, 0, 24 * time.Hour, ""},
		{"negative is the default", common, -1, 24 * time.Hour, ""},
		{"least number is the default", common, math.MinInt64, 24 * time.Hour, ""},
		{"as much as is granted", common, 86400, 24 * time.Hour, ""},
		{"a second above the cap", common, 86401, 24 * time.Hour, ""},
		{"a week, as Istio's tests ask", common, 7 * 86400, 24 * time.Hour, ""},
		{"largest number of nanoseconds, in seconds", common, math.MaxInt64 / int64(time.Second), 24 * time.Hour, ""},
		{"a number that overflows to little", common, math.MaxInt64/int64(time.Second) + 60, 24 * time.Hour, ""},
		{"largest number", common, math.MaxInt64, 24 * time.Hour, ""},
		{"an hour", common, 3600, time.Hour, ""},
		{"the floor", common, 60, time.Minute, ""},
		{"under the floor", common, 59, 0, "1m0s"},
		{"a second", common, 1, 0, "1m0s"},
		{"none, with a default of its own", variant, 0, time.Hour, ""},
		{"above a cap of its own", variant, 86400, 2 * time.Hour, ""},
		{"between default and cap", variant, 5400, 90 * time.Minute, ""},
		{"a floor of its own", variant, 30, 30 * time.Second, ""},
		{"under a floor of its own", variant, 29, 0, "30s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := test.stack(t)
			c := s.dial(t)
			ask := s.caller(t).ask(t)
			ask.ValiditySeconds = test.seconds
			if test.want == 0 {
				s.makesNone(t, func() {
					assert.Contains(t, refused(t, c, ask, codes.InvalidArgument), test.floor)
				})
				return
			}
			leaf := issued(t, c, ask)
			assert.Equal(t, test.want, leaf.NotAfter.Sub(leaf.NotBefore))
			requests := s.requestsFor(t, ask.CSR)
			require.Len(t, requests, 1)
			assert.Equal(t, test.want, requests[0].Spec.Duration.Duration)
		})
	}
}

// An issuer that has two hours left doesn't get to sign for a day: cert-manager would.
func TestR38_LeafEndsBeforeItsIssuer(t *testing.T) {
	for name, opts := range map[string]controlplane.CAOptions{
		"root":         {Lifetime: 2 * time.Hour},
		"intermediate": {Intermediate: true, IntermediateLifetime: 2 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := plane.NewNamespace(t, "short")
			root, err := bootstrap(t.Context(), ns, opts)
			require.NoError(t, err)
			s := &stack{ns: ns, root: root, trustDomain: "cluster.local"}
			s.config = replica.Config{Namespace: ns, RootPEM: root, Settings: base(nil)}
			s = s.peer(t, nil, nil)
			caller := s.caller(t)
			c := s.dial(t)
			for range 3 {
				key, csr, err := meshclient.ZtunnelCSR(caller.id)
				require.NoError(t, err)
				ask := caller.ask(t)
				ask.CSR = csr
				chain, err := create(t, c, ask)
				require.NoError(t, err)
				require.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), caller.id, time.Now()))
				issuer := certificateIn(t, chain[1]) // the intermediate, or the only anchor
				leaf := leafOf(t, chain)
				assert.False(t, leaf.NotAfter.After(issuer.NotAfter))
				assert.Greater(t, leaf.NotAfter.Sub(leaf.NotBefore), time.Hour, "as long as the issuer lets it")
			}
			state, err := c.TLS()
			require.NoError(t, err)
			for _, issuer := range state.PeerCertificates[1:] {
				assert.False(t, state.PeerCertificates[0].NotAfter.After(issuer.NotAfter))
			}
		})
	}
}
