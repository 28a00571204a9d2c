package rotation

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/issuer"
)

// An issuer that signs under two roots in turn doesn't have a replica report all the time.
func TestReplicasReportAnAlternatingIssuerSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		defer f.end()
		m := f.join("one")
		key := newKey(t)
		other := f.ca.certify("other", key, nil, key)
		both, err := issuer.NewBundle(f.ca.root, other)
		require.NoError(t, err)
		m.store.SetAnchors(both)
		ref := m.store.Current().Ref
		m.health.LedTo(ref, f.ca.root)
		pass(2 * reportsApart)
		m.health.LedTo(ref, other)
		pass(2 * reportsApart)
		assert.Equal(t, issuer.AnchorID(other), f.reported("one").Anchor, "another one is said at once")

		before := f.maps.tried()
		for n := range 600 {
			m.health.LedTo(ref, f.ca.root)
			if n%2 == 0 {
				m.health.LedTo(ref, other)
			}
			pass(100 * time.Millisecond)
		}
		assert.InDelta(t, before+6, f.maps.tried(), 1, "in a minute")

		// The one that it stays with is known with the next sign of life, and whatever else changes at once.
		m.health.LedTo(ref, f.ca.root)
		pass(reportEvery + reportsApart)
		assert.Equal(t, issuer.AnchorID(f.ca.root), f.reported("one").Anchor)
		m.health.LedTo(ref, other)
		m.store.SetAnchors(f.ca.bundle())
		pass(2 * reportsApart)
		assert.Equal(t, bundleID(f.ca.bundle()), f.reported("one").Bundle)
		assert.Empty(t, f.reported("one").Anchor, "it isn't trusted any more")
	})
}
