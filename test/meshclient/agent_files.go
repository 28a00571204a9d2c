package meshclient

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/signet-ca/signet/test/process"
)

// outputDir is where the agent writes key.pem, cert-chain.pem and root-cert.pem.
const outputDir = "certs"

// lookInterval is how often the files of an agent are looked at. Certificates count in seconds, so
// none is missed.
const lookInterval = 50 * time.Millisecond

// Certificate is what an agent holds, as it was in its files at one moment.
type Certificate struct {
	// Leaf is Chain[0]. Chain is the whole file: leaf, intermediates and the anchors, since the
	// agent writes all elements of the answer.
	Leaf  *x509.Certificate
	Chain []*x509.Certificate

	// Key belongs to Leaf.
	Key crypto.Signer

	// KeyPEM, ChainPEM and RootsPEM are the files, byte by byte. ChainPEM is the answer joined; in
	// RootsPEM the agent has sorted the anchors as text, dropped repeated ones and the last new line.
	KeyPEM, ChainPEM, RootsPEM []byte
}

// KeyPair is the certificate as crypto/tls takes it, to serve or to dial a peer with.
func (c *Certificate) KeyPair() tls.Certificate {
	pair := tls.Certificate{PrivateKey: c.Key, Leaf: c.Leaf}
	for _, cert := range c.Chain {
		pair.Certificate = append(pair.Certificate, cert.Raw)
	}
	return pair
}

// Certificate reads what the agent holds now. The agent writes its three files one after the other;
// for up to two seconds they are read again until they belong together: the key to the leaf, and the
// leaf to the roots. It fails while there is no certificate yet.
func (a *Agent) Certificate() (*Certificate, error) {
	deadline := time.Now().Add(2 * time.Second)
	for {
		cert, err := a.readCertificate()
		if err == nil {
			return cert, nil
		}
		if errors.Is(err, os.ErrNotExist) || time.Now().After(deadline) {
			return nil, fmt.Errorf("read certificate of agent: %w", err)
		}
		time.Sleep(lookInterval)
	}
}

func (a *Agent) readCertificate() (*Certificate, error) {
	c := &Certificate{}
	var err error
	if c.KeyPEM, err = os.ReadFile(a.output("key.pem")); err != nil {
		return nil, err
	}
	if c.ChainPEM, err = os.ReadFile(a.output("cert-chain.pem")); err != nil {
		return nil, err
	}
	if c.RootsPEM, err = os.ReadFile(a.output("root-cert.pem")); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(c.ChainPEM, c.KeyPEM) // also compares the key with the leaf's
	if err != nil {
		return nil, err
	}
	if c.Chain, err = parseCertificates(string(c.ChainPEM)); err != nil {
		return nil, err
	}
	c.Leaf = c.Chain[0]
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key is a %T", pair.PrivateKey)
	}
	c.Key = key
	anchors, err := parseCertificates(string(c.RootsPEM))
	if err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   c.Leaf.NotAfter, // whether it has expired is not asked here; some CAs date leaves back to before themselves
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, anchor := range anchors {
		opts.Roots.AddCert(anchor)
	}
	for _, cert := range c.Chain[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if _, err := c.Leaf.Verify(opts); err != nil {
		return nil, fmt.Errorf("leaf does not belong to the roots: %w", err)
	}
	return c, nil
}

func (a *Agent) output(file string) string { return filepath.Join(a.dir, outputDir, file) }

// watch counts the certificates the agent gets, until it has exited. Once ctx is done, that is no error.
func (a *Agent) watch(ctx context.Context, proc *process.Process) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	var chain []byte
	var seen os.FileInfo
	for {
		select {
		case <-ctx.Done():
			proc.Stop(5 * time.Second)
			return nil
		case <-proc.Done():
			return fmt.Errorf("the agent ended by itself: %w", proc.Exit())
		case <-tick.C:
		}
		// The agent renames a new file over the old one, and only when the content differs.
		info, err := os.Stat(a.output("cert-chain.pem"))
		if err != nil || (seen != nil && os.SameFile(info, seen) && info.ModTime().Equal(seen.ModTime())) {
			continue
		}
		data, err := os.ReadFile(a.output("cert-chain.pem"))
		if err != nil || len(data) == 0 {
			continue
		}
		seen = info
		if bytes.Equal(data, chain) {
			continue
		}
		chain = data
		a.mu.Lock()
		a.issued++
		close(a.changed)
		a.changed = make(chan struct{})
		a.mu.Unlock()
	}
}

// Rotations is how often the agent has replaced its certificate so far; its first does not count.
func (a *Agent) Rotations() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return max(a.issued-1, 0)
}

// WaitRotations waits until the agent has replaced its certificate n times since it was started, or,
// if n is 0, until it has its first one. It fails when ctx is done or the agent ends before that.
func (a *Agent) WaitRotations(ctx context.Context, n int) error {
	for {
		a.mu.Lock()
		issued, changed := a.issued, a.changed
		a.mu.Unlock()
		if issued > n {
			return nil
		}
		select {
		case <-changed:
		case <-a.done:
			a.mu.Lock()
			defer a.mu.Unlock()
			return fmt.Errorf("wait for rotation %d of agent: it ended after %d certificates: %w",
				n, a.issued, errors.Join(a.exitErr, errStopped))
		case <-ctx.Done():
			return fmt.Errorf("wait for rotation %d of agent: %d certificates so far: %w", n, issued, ctx.Err())
		}
	}
}

// errStopped is part of the error of a wait that can never end.
var errStopped = errors.New("agent is not running")
