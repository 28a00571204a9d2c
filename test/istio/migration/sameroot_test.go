package migration

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/test/patiently"
)

// reach has the names of a mesh's authorities lead to them: the old one's are its own yet.
func (m *mesh) reach(t *testing.T, old string) *network {
	t.Helper()
	net := newNetwork(t)
	for _, name := range []string{istiodAddress, istioCSRAddress, forgottenAddress} {
		net.point(name, old)
	}
	net.point(signetAddress, m.replica.CSR())
	return net
}

// TestFromPluggedIn: istiod signs with plugged-in cacerts, an intermediate below the root that Signet's issuer is below
// too. Workloads are moved by caAddress, one after the other. Nobody's roots change.
func TestFromPluggedIn(t *testing.T) {
	line := begin(t)
	net := shared.reach(t, shared.old.address)
	shop := startWorkload(t, pods{name: "shop", net: net, ca: istiodAddress, roots: shared.root})
	cart := startWorkload(t, pods{name: "cart", net: net, ca: istiodAddress, roots: shared.root})
	line.say("shop has one of %s", holds(shop.awaitSigner(t, shared.oldCA), shared.oldCA))
	talk := talk(t, shop, cart, shared.oldCA, shared.signet)
	talk.awaitPairs(t, shared.oldCA, shared.oldCA)
	awaitRenewals(t, cart)

	shop.move(t, signetAddress)
	line.say("shop moved, and has one of %s", holds(shop.awaitSigner(t, shared.signet), shared.signet))
	awaitRenewals(t, shop, cart)
	talk.awaitPairs(t, shared.oldCA, shared.signet)

	cart.move(t, signetAddress)
	line.say("cart moved, and has one of %s", holds(cart.awaitSigner(t, shared.signet), shared.signet))
	awaitRenewals(t, cart)
	talk.awaitPairs(t, shared.signet, shared.signet)
	talk.end(t, line)
	for _, w := range []*workload{shop, cart} {
		held := w.awaitSigner(t, shared.signet)
		assert.Equal(t, anchors(shared.root), anchors(held.RootsPEM), "the root has changed")
	}
	noneFailed(t, line, shop, cart)
}

// TestSideBySide: both authorities serve the mesh for as long as one likes, and a workload that was moved can be moved back.
func TestSideBySide(t *testing.T) {
	line := begin(t)
	sideBySide(t, line, shared, istiodAddress, shared.old.address, shared.oldCA)
}

func sideBySide(t *testing.T, line timeline, m *mesh, name, backend string, old signer) {
	t.Helper()
	net := m.reach(t, backend)
	left := startWorkload(t, pods{name: "left", net: net, ca: name, roots: m.root})
	right := startWorkload(t, pods{name: "right", net: net, ca: signetAddress, roots: m.root})
	roamer := startWorkload(t, pods{name: "roamer", net: net, ca: name, roots: m.root})
	apart := talk(t, left, right, old, m.signet)
	toOld := talk(t, left, roamer, old, m.signet)
	toNew := talk(t, roamer, right, old, m.signet)
	toOld.awaitPairs(t, old, old)
	toNew.awaitPairs(t, old, m.signet)

	for _, stage := range []struct {
		ca string
		of signer
	}{{signetAddress, m.signet}, {name, old}, {signetAddress, m.signet}} {
		roamer.move(t, stage.ca)
		line.say("roamer moved, and has one of %s", holds(roamer.awaitSigner(t, stage.of), stage.of))
		toOld.awaitPairs(t, old, stage.of)
		toNew.awaitPairs(t, stage.of, m.signet)
	}
	apart.awaitPairs(t, old, m.signet)
	awaitRenewals(t, roamer, left, right)
	for _, c := range []*conversation{apart, toOld, toNew} {
		c.end(t, line)
	}
	left.awaitSigner(t, old)
	right.awaitSigner(t, m.signet)
	noneFailed(t, line, left, right, roamer)
}

// TestIntoLiveMesh: the Service of the old authority's name comes to lead to Signet, goes back, and comes again. The agents
// that renew meanwhile are the same processes with the same caAddress throughout.
func TestIntoLiveMesh(t *testing.T) {
	line := begin(t)
	intoLiveMesh(t, line, shared, shared.old.address, shared.oldCA)
}

func intoLiveMesh(t *testing.T, line timeline, m *mesh, backend string, old signer) {
	t.Helper()
	net := m.reach(t, backend)
	shop := startWorkload(t, pods{name: "shop", net: net, ca: istioCSRAddress, roots: m.root})
	// The one is later than the other, so that for a while one has a certificate of either.
	cart := startWorkload(t, pods{name: "cart", net: net, ca: istioCSRAddress, roots: m.root, pause: 6 * time.Second})
	started := []int{shop.pid(), cart.pid()}
	line.say("shop (process %d) has one of %s", shop.pid(), holds(shop.awaitSigner(t, old), old))
	talk := talk(t, shop, cart, old, m.signet)
	talk.awaitPairs(t, old, old)
	awaitRenewals(t, shop, cart)

	for _, stage := range []struct {
		backend string
		of      signer
	}{{m.replica.CSR(), m.signet}, {backend, old}, {m.replica.CSR(), m.signet}} {
		net.point(istioCSRAddress, stage.backend)
		line.say("%s leads to %s", istioCSRAddress, stage.of.name)
		for _, w := range []*workload{shop, cart} {
			line.say("%s has one of %s", w.name, holds(w.awaitSigner(t, stage.of), stage.of))
		}
		talk.awaitPairs(t, stage.of, stage.of)
		serving, err := net.presented(t.Context(), istioCSRAddress, shop.mounted())
		require.NoError(t, err)
		assert.Contains(t, serving.DNSNames, host(istioCSRAddress))
		assert.True(t, stage.of.signed(serving), "the name leads to %s", serving.Issuer)
	}
	awaitRenewals(t, shop, cart)
	talk.end(t, line)
	ended := []int{shop.pid(), cart.pid()}
	assert.Equal(t, started, ended, "other processes")
	noneFailed(t, line, shop, cart)
}

// TestForgottenName: where Signet's serving.dnsNames lacks the name that agents know, they don't take it for their
// authority. Their renewals fail, which the agents say; they keep what they hold; and it is over when the name leads back.
func TestForgottenName(t *testing.T) {
	line := begin(t)
	net := shared.reach(t, shared.old.address)
	// What it holds lasts until the test has ended.
	w := startWorkload(t, pods{name: "shop", net: net, ca: forgottenAddress, roots: shared.root, ttl: hour})
	before := w.tally()
	assert.Zero(t, before.failed)
	net.point(forgottenAddress, shared.replica.CSR())
	line.say("%s leads to Signet, which has no such name", forgottenAddress)
	patiently.Until(t, "no renewal has failed", func(context.Context) error {
		if now := w.tally(); now.failed == 0 || now.repeated == 0 {
			return errors.New(now.String())
		}
		return nil
	})
	line.say("shop: %s", w.tally())
	assert.Contains(t, w.said(t), "not "+host(forgottenAddress), "the agent doesn't say which name it misses")
	held := w.awaitSigner(t, shared.oldCA)
	_, err := net.presented(t.Context(), forgottenAddress, w.mounted())
	assert.ErrorContains(t, err, "not "+host(forgottenAddress))

	net.point(forgottenAddress, shared.old.address)
	line.say("it leads back")
	awaitRenewals(t, w)
	again := w.awaitSigner(t, shared.oldCA)
	assert.NotEqual(t, held.Leaf.SerialNumber, again.Leaf.SerialNumber)
}
