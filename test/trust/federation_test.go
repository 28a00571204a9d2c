package trust

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// TestR56_TwoMeshesFederate: each of two meshes fetches the other's anchors from its bundle endpoint, and their workloads
// accept one another. That the other one isn't there yet stops nobody.
func TestR56_TwoMeshesFederate(t *testing.T) {
	t.Parallel()
	type side struct {
		*mesh
		domain  string
		wire    *wire // to the bundle endpoint, whose own address isn't known before it is there
		replica *replica.Replica
	}
	sides := []*side{{mesh: newMesh(t), domain: "one.example"}, {mesh: newMesh(t), domain: "two.example"}}
	for _, s := range sides {
		s.wire = newWire(t, "")
		s.pin(t, issuerA)
	}
	start := func(s, other *side) {
		ca := filepath.Join(t.TempDir(), "other.pem")
		require.NoError(t, os.WriteFile(ca, other.roots[issuerA], 0o600))
		s.replica = s.startAs(t, replica.Config{Namespace: s.ns, Issuer: issuerA, Settings: s.short(map[string]any{
			"trustDomain":           s.domain,
			"ca.lifetime.default":   "1h",
			"ca.lifetime.max":       "1h",
			"bundleEndpoint.listen": "127.0.0.1:0",
			"roots.federated": []any{map[string]any{
				"trustDomain": other.domain, "endpointURL": "https://" + other.wire.listener.Addr().String() + "/", "caFile": ca,
			}},
		})})
		patiently.Holds(t, func() bool {
			address := bundleAddress(t, s.replica)
			s.wire.to(address)
			return address != ""
		}, "the bundle endpoint of %s listens", s.domain)
	}
	ask := func(s *side) *holding {
		w := s.workload(t, "web")
		var err error
		w.id, err = spiffeid.FromString("spiffe://" + s.domain + "/ns/" + w.ns + "/sa/" + w.sa)
		require.NoError(t, err)
		h, err := w.ask(t.Context(), dial(t, s.replica, s.roots[issuerA]))
		require.NoError(t, err)
		return h
	}
	start(sides[0], sides[1])
	alone := ask(sides[0])
	assert.Equal(t, string(sides[0].roots[issuerA]), string(alone.anchors))
	says(t, sides[0].replica, "two.example")
	start(sides[1], sides[0])
	for _, s := range sides {
		patiently.Holds(t, func() bool { return len(s.state(t).Anchors) == 2 }, "%s knows the other's anchor", s.domain)
		says(t, s.replica, "2 trust anchors")
	}
	one, two := ask(sides[0]), ask(sides[1])
	require.NoError(t, handshake(one, two))
	require.NoError(t, handshake(two, one))
	require.Error(t, alone.verify(two, alone.pool))
	for _, s := range sides {
		for _, a := range s.state(t).Anchors {
			assert.Equal(t, a.ID() == s.id(t, issuerA), !a.Federated)
		}
	}
}

// bundleAddress is where a replica serves its bundle, "" while it doesn't.
func bundleAddress(t *testing.T, r *replica.Replica) string {
	t.Helper()
	log, err := r.Log()
	require.NoError(t, err)
	for line := range strings.Lines(log) {
		var entry struct{ Msg, Endpoint, Address string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "listening" && entry.Endpoint == "bundle" {
			return entry.Address
		}
	}
	return ""
}
