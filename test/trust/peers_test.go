package trust

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// holding is a certificate that a workload holds, with the anchors that came with it.
type holding struct {
	tls     tls.Certificate
	chain   []byte // PEM, leaf first
	key     []byte // PEM
	anchors []byte // PEM
	pool    *x509.CertPool
}

func newHolding(answer []string, key crypto.Signer) (*holding, error) {
	h := &holding{anchors: []byte(answer[len(answer)-1]), pool: x509.NewCertPool()}
	for _, element := range answer[:len(answer)-1] {
		h.chain = append(h.chain, element...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	h.key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if h.tls, err = tls.X509KeyPair(h.chain, h.key); err != nil {
		return nil, err
	}
	if !h.pool.AppendCertsFromPEM(h.anchors) {
		return nil, errNoPEM
	}
	return h, nil
}

func (h *holding) leaf() *x509.Certificate { return h.tls.Leaf }

// under says whether the leaf leads to root.
func (h *holding) under(root []byte) bool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	return verifyAt(h, pool, h.leaf().NotBefore) == nil
}

// verify says whether somebody with these anchors accepts the certificate of other.
func (h *holding) verify(other *holding, anchors *x509.CertPool) error {
	return verifyAt(other, anchors, time.Now())
}

func verifyAt(other *holding, anchors *x509.CertPool, at time.Time) error {
	intermediates := x509.NewCertPool()
	for _, der := range other.tls.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		intermediates.AddCert(cert)
	}
	_, err := other.leaf().Verify(x509.VerifyOptions{Roots: anchors, Intermediates: intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// peers are workloads that ask Signet all the time, hold what they got until shortly before it ends, and connect to one
// another with any of it: whoever holds a living leaf must be able to talk to everybody else who does.
type peers struct {
	t        *testing.T
	replicas []*replica.Replica
	first    []byte // the anchors with which the first connection is made

	mu         sync.Mutex
	held       []*holding
	asked      int
	handshakes int
	openssl    int
	failures   []error
	latest     map[string]*holding // by workload
}

// endsSoon is how long before its end a leaf isn't used any more, so that few handshakes outlive it.
const endsSoon = 3 * time.Second

// ended says whether a leaf has ended: that it isn't accepted shows nothing then.
func (h *holding) ended() bool { return !time.Now().Before(h.leaf().NotAfter) }

func newPeers(t *testing.T, first []byte, replicas ...*replica.Replica) *peers {
	return &peers{t: t, replicas: replicas, first: first, latest: make(map[string]*holding)}
}

// anchors are those to connect to Signet with: the oldest that came with a living leaf, and until when that lives. Where
// nobody holds one, they are what the workload finds mounted, as at its start.
func (p *peers) anchors(ctx context.Context, w *workload) (anchors []byte, until time.Time) {
	if oldest, _ := p.extremes(); oldest != nil {
		return oldest.anchors, oldest.leaf().NotAfter
	}
	var mounted corev1.ConfigMap
	err := plane.Client().Get(ctx, client.ObjectKey{Namespace: w.ns, Name: mountedMap}, &mounted)
	if text := mounted.Data["root-cert.pem"]; err == nil && text != "" {
		return []byte(text), time.Now().Add(endsSoon)
	}
	return p.first, time.Now().Add(endsSoon)
}

// run has them ask and connect until ctx ends.
func (p *peers) run(ctx context.Context, workloads []*workload) *sync.WaitGroup {
	var running sync.WaitGroup
	for n, w := range workloads {
		running.Go(func() { p.askOn(ctx, w, p.replicas[n%len(p.replicas)]) })
	}
	for range 2 {
		running.Go(func() { p.connectOn(ctx) })
	}
	running.Go(func() { p.opensslOn(ctx) })
	return &running
}

func (p *peers) fail(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures = append(p.failures, fmt.Errorf(format, args...))
}

// askOn asks without end. Every second it connects anew, with the oldest anchors that anybody still uses.
func (p *peers) askOn(ctx context.Context, w *workload, r *replica.Replica) {
	for ctx.Err() == nil {
		anchors, until := p.anchors(ctx, w)
		options := meshclient.SidecarTLS()
		options.ServerName = replica.ServerName
		c, err := meshclient.Dial(r.CSR(), anchors, options)
		if err != nil {
			p.fail("dial: %w", err)
			return
		}
		var kept *holding
		for end := time.Now().Add(time.Second); time.Now().Before(end) && ctx.Err() == nil; {
			h, err := w.ask(context.WithoutCancel(ctx), c)
			if err != nil && kept == nil && time.Now().After(until) {
				break // whoever had these anchors has newer ones by now
			}
			if err != nil {
				p.fail("%s: ask: %w", w.id, err)
				time.Sleep(time.Second)
				break
			}
			kept = h
			p.mu.Lock()
			p.asked++
			p.latest[w.id.String()] = h
			p.mu.Unlock()
			time.Sleep(20 * time.Millisecond)
		}
		if kept != nil {
			p.mu.Lock()
			p.held = append(p.held, kept)
			p.mu.Unlock()
		}
		if err := c.Close(); err != nil {
			p.fail("close: %w", err)
		}
	}
}

// living are what is held and doesn't end soon, the oldest first.
func (p *peers) living() []*holding {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = slices.DeleteFunc(p.held, func(h *holding) bool { return time.Until(h.leaf().NotAfter) < endsSoon })
	living := slices.Clone(p.held)
	slices.SortFunc(living, func(a, b *holding) int { return a.leaf().NotAfter.Compare(b.leaf().NotAfter) })
	return living
}

func (p *peers) extremes() (oldest, newest *holding) {
	if living := p.living(); len(living) > 0 {
		return living[0], living[len(living)-1]
	}
	return nil, nil
}

// pair are two of the living: by turns the oldest and the newest, the other way round, and any two.
func (p *peers) pair(turn int) (server, client *holding) {
	living := p.living()
	if len(living) < 2 {
		return nil, nil
	}
	switch turn % 3 {
	case 0:
		return living[0], living[len(living)-1]
	case 1:
		return living[len(living)-1], living[0]
	}
	return living[rand.IntN(len(living))], living[rand.IntN(len(living))]
}

func (p *peers) connectOn(ctx context.Context) {
	for turn := 0; ctx.Err() == nil; turn++ {
		server, client := p.pair(turn)
		if server == nil {
			time.Sleep(glance)
			continue
		}
		if err := handshake(server, client); err != nil && !server.ended() && !client.ended() {
			p.fail("handshake of a client whose leaf is of %v with a server whose leaf is of %v: %w", client.leaf().NotBefore, server.leaf().NotBefore, err)
		}
		p.mu.Lock()
		p.handshakes++
		p.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
}

// handshake connects the two over TCP, each verifying the other with its own anchors.
func handshake(server, client *holding) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	answered := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			answered <- err
			return
		}
		defer conn.Close()
		answered <- tls.Server(conn, serverConfig(server)).Handshake()
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return errors.Join(err, listener.Close(), <-answered)
	}
	defer conn.Close()
	// The identity is a SPIFFE ID, no host name, so that the chain is verified by hand.
	err = tls.Client(conn, &tls.Config{
		Certificates:       []tls.Certificate{client.tls},
		InsecureSkipVerify: true,
		VerifyConnection:   func(tls.ConnectionState) error { return client.verify(server, client.pool) },
	}).Handshake()
	return errors.Join(err, <-answered)
}

func serverConfig(h *holding) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{h.tls}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: h.pool}
}

// opensslOn does the same with OpenSSL's verifier.
func (p *peers) opensslOn(ctx context.Context) {
	dir := p.t.TempDir()
	for turn := 0; ctx.Err() == nil; turn++ {
		server, client := p.pair(turn)
		if server == nil {
			time.Sleep(glance)
			continue
		}
		if err := opensslVerify(dir, server, client); err != nil && !server.ended() {
			p.fail("openssl verify: %w", err)
		}
		if err := opensslConnect(dir, server, client); err != nil && !server.ended() && !client.ended() {
			p.fail("openssl s_client: %w", err)
		}
		p.mu.Lock()
		p.openssl++
		p.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
	}
}

// write puts what the client has into files.
func write(dir string, files map[string][]byte) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func opensslVerify(dir string, server, client *holding) error {
	leaf, rest := pem.Decode(server.chain)
	files := map[string][]byte{"anchors.pem": client.anchors, "leaf.pem": pem.EncodeToMemory(leaf), "rest.pem": append([]byte("\n"), rest...)}
	if err := write(dir, files); err != nil {
		return err
	}
	args := []string{"verify", "-CAfile", "anchors.pem", "leaf.pem"}
	if len(bytes.TrimSpace(rest)) > 0 {
		args = []string{"verify", "-CAfile", "anchors.pem", "-untrusted", "rest.pem", "leaf.pem"}
	}
	return openssl(dir, nil, args...)
}

// opensslConnect has s_client connect to a server in Go, both with certificates.
func opensslConnect(dir string, server, client *holding) error {
	if err := write(dir, map[string][]byte{"client.pem": client.chain, "client.key": client.key, "anchors.pem": client.anchors}); err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", serverConfig(server))
	if err != nil {
		return err
	}
	answered := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			answered <- err
			return
		}
		defer conn.Close()
		_, err = io.ReadAll(conn) // the handshake, and what s_client has to say
		answered <- err
	}()
	err = openssl(dir, []byte("hello\n"), "s_client", "-connect", listener.Addr().String(), "-CAfile", "anchors.pem", "-verify_return_error",
		"-cert", "client.pem", "-key", "client.key", "-quiet", "-no_ign_eof")
	listener.Close()
	return errors.Join(err, <-answered)
}

func openssl(dir string, input []byte, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patiently.Timeout)
	defer cancel()
	command := exec.CommandContext(ctx, "openssl", args...)
	command.Dir, command.Stdin = dir, bytes.NewReader(input)
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("openssl %s: %w: %s", args[0], err, out)
	}
	return nil
}

// whole wants that nothing has failed, and says how much there was.
func (p *peers) whole() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.t.Logf("%d certificates, %d handshakes, %d times OpenSSL", p.asked, p.handshakes, p.openssl)
	for n, err := range p.failures {
		if n < 10 {
			p.t.Errorf("%v", err)
		}
	}
	require.Empty(p.t, p.failures)
}

// allUnder says whether the last answer of every workload leads to root.
func (p *peers) allUnder(root []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.latest {
		if !h.under(root) {
			return false
		}
	}
	return len(p.latest) > 0
}
