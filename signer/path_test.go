package signer

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestR38_RenewedRootWithTheSameKey: of two anchors with one name and key, of which the old one ends
// before the leaf does, the new one carries the leaf, whatever the order of the bundle.
func TestR38_RenewedRootWithTheSameKey(t *testing.T) {
	for range 20 { // the order follows the hashes of certificates that differ each time
		a := newAnswer(t)
		ending := *a.root.cert
		ending.NotAfter = epoch.Add(10 * time.Minute)
		old := a.root.issue(t, &ending, a.root.key.Public())
		a.roots = []*x509.Certificate{old, a.root.cert}
		chain, err := a.verify()
		require.NoError(t, err)
		assert.True(t, chain.Anchor.Equal(a.root.cert))
		assert.Equal(t, a.root.cert.NotAfter, chain.issuerEnds())
	}
}

// TestLongerPathWhereTheShorterMayNotIssue: an anchor that may not issue for client auth doesn't spoil
// the path past it.
func TestLongerPathWhereTheShorterMayNotIssue(t *testing.T) {
	a := newAnswer(t)
	limited := *a.middle.cert
	limited.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	anchor := a.root.issue(t, &limited, a.middle.key.Public())
	a.roots = []*x509.Certificate{anchor, a.root.cert}
	chain, err := a.verify()
	require.NoError(t, err)
	assert.True(t, chain.Anchor.Equal(a.root.cert))
	assert.Len(t, chain.Intermediates, 1)
}
