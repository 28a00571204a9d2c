package migration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/stretchr/testify/assert"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

// conversation is two workloads that connect to each other all the time, both ways, each with the certificate that it has
// at that moment and with the roots that came along with it, as Envoy would.
type conversation struct {
	a, b    *workload
	signers []signer
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex     // guards the following
	done   map[string]int // handshakes, by whose certificates client and server had
	broken []error
}

// talk starts a conversation of workloads whose certificates are of one of signers. It ends with end, or with the test.
func talk(t *testing.T, a, b *workload, signers ...signer) *conversation {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &conversation{a: a, b: b, signers: signers, stop: cancel, done: make(map[string]int)}
	t.Cleanup(func() { cancel(); c.running.Wait() })
	c.running.Go(func() {
		for ctx.Err() == nil {
			c.connect(ctx, a, b)
			c.connect(ctx, b, a)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return c
}

// connect has one connect to the other. An agent that replaces its files just now is asked again in the next turn.
func (c *conversation) connect(ctx context.Context, from, to *workload) {
	client, err := from.certificate()
	if err != nil {
		return
	}
	server, err := to.certificate()
	if err != nil {
		return
	}
	pair := c.signerOf(client) + "→" + c.signerOf(server)
	err = handshake(ctx, from, client, to, server)
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[pair]++
	if err != nil {
		c.broken = append(c.broken, fmt.Errorf("%s→%s (%s): %w", from.name, to.name, pair, err))
	}
}

func (c *conversation) signerOf(held *meshclient.Certificate) string {
	for _, s := range c.signers {
		if s.signed(held.Leaf) {
			return s.name
		}
	}
	return "unknown"
}

// awaitPairs waits until there are more handshakes, one way and the other, with a certificate of x at one end and one of y
// at the other.
func (c *conversation) awaitPairs(t *testing.T, x, y signer) {
	t.Helper()
	const more = 5
	before := c.count(x, y)
	patiently.Until(t, fmt.Sprintf("no handshakes between certificates of %s and %s", x.name, y.name), func(context.Context) error {
		for pair, n := range c.count(x, y) {
			if n < before[pair]+more {
				return fmt.Errorf("%s: %d", pair, n-before[pair])
			}
		}
		return nil
	})
}

func (c *conversation) count(x, y signer) map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	there, back := x.name+"→"+y.name, y.name+"→"+x.name
	return map[string]int{there: c.done[there], back: c.done[back]}
}

// end stops the conversation, and fails where they couldn't talk at any moment.
func (c *conversation) end(t *testing.T, line timeline) {
	t.Helper()
	c.stop()
	c.running.Wait()
	assert.Empty(t, c.broken)
	assert.Zero(t, strings.Count(strings.Join(slices.Collect(maps.Keys(c.done)), " "), "unknown"), "certificates of others")
	total := 0
	var parts []string
	for _, pair := range slices.Sorted(maps.Keys(c.done)) {
		total += c.done[pair]
		parts = append(parts, fmt.Sprintf("%s %d", pair, c.done[pair]))
	}
	line.say("%s and %s: %d handshakes (%s), %d broken", c.a.name, c.b.name, total, strings.Join(parts, ", "), len(c.broken))
}

// handshake is one mutual TLS connection over which the server says one byte, so that both ends know that they are accepted.
func handshake(ctx context.Context, from *workload, client *meshclient.Certificate, to *workload, server *meshclient.Certificate) error {
	clientSVID, clientTrusts, err := spiffe(from, client)
	if err != nil {
		return err
	}
	serverSVID, serverTrusts, err := spiffe(to, server)
	if err != nil {
		return err
	}
	near, far := net.Pipe()
	clientEnd := tls.Client(near, tlsconfig.MTLSClientConfig(clientSVID, clientTrusts, tlsconfig.AuthorizeID(to.id)))
	serverEnd := tls.Server(far, tlsconfig.MTLSServerConfig(serverSVID, serverTrusts, tlsconfig.AuthorizeID(from.id)))
	limit := time.Now().Add(patiently.Timeout)
	if err := errors.Join(near.SetDeadline(limit), far.SetDeadline(limit)); err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() {
		defer far.Close()
		err := serverEnd.HandshakeContext(ctx)
		if err == nil {
			_, err = serverEnd.Write([]byte{1})
		}
		served <- err
	}()
	err = clientEnd.HandshakeContext(ctx)
	if err == nil {
		_, err = clientEnd.Read(make([]byte, 1))
	}
	near.Close()
	return errors.Join(err, <-served)
}

func spiffe(w *workload, held *meshclient.Certificate) (*x509svid.SVID, *x509bundle.Bundle, error) {
	bundle, err := x509bundle.Parse(w.id.TrustDomain(), held.RootsPEM)
	if err != nil {
		return nil, nil, err
	}
	return &x509svid.SVID{ID: w.id, Certificates: held.Chain, PrivateKey: held.Key}, bundle, nil
}
