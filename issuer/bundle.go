package issuer

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"time"
)

// maxBundleBytes bounds a bundle: a ConfigMap holds 1 MiB, and every answer carries the bundle.
const maxBundleBytes = 256 << 10

// Bundle is a set of trust anchors. It is immutable; the zero value is empty.
type Bundle struct {
	anchors []*x509.Certificate
	pool    *x509.CertPool
	pem     string
}

// NewBundle is the bundle of anchors, without repetitions, ordered by the SHA-256 of their DER so
// that every replica writes the same bytes whatever order its sources had (R44). Each anchor must
// be a CA certificate.
func NewBundle(anchors ...*x509.Certificate) (Bundle, error) {
	b := Bundle{pool: x509.NewCertPool()}
	sums := make(map[*x509.Certificate][sha256.Size]byte)
	for _, anchor := range anchors {
		if !anchor.BasicConstraintsValid || !anchor.IsCA {
			return Bundle{}, fmt.Errorf("certificate %q (serial %s) is not a CA certificate, so it can't be a trust anchor", anchor.Subject, Serial(anchor.SerialNumber))
		}
		if anchor.KeyUsage != 0 && anchor.KeyUsage&x509.KeyUsageCertSign == 0 {
			return Bundle{}, fmt.Errorf("certificate %q (serial %s) may not sign certificates, so it can't be a trust anchor", anchor.Subject, Serial(anchor.SerialNumber))
		}
		if b.Contains(anchor) {
			continue
		}
		sums[anchor] = sha256.Sum256(anchor.Raw)
		b.anchors = append(b.anchors, anchor)
	}
	slices.SortFunc(b.anchors, func(x, y *x509.Certificate) int {
		sx, sy := sums[x], sums[y]
		return bytes.Compare(sx[:], sy[:])
	})
	var text bytes.Buffer
	for _, anchor := range b.anchors {
		b.pool.AddCert(anchor)
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: anchor.Raw}); err != nil {
			return Bundle{}, err
		}
	}
	b.pem = text.String()
	return b, nil
}

// ParseBundle reads a bundle from PEM. The text may hold only CERTIFICATE blocks, at least one,
// each a CA certificate, and white space or comment lines (beginning with '#') between them.
func ParseBundle(text []byte) (Bundle, error) {
	if len(text) > maxBundleBytes {
		return Bundle{}, fmt.Errorf("bundle has %d bytes; at most %d are allowed", len(text), maxBundleBytes)
	}
	anchors, err := ParseCertificates(withoutComments(text))
	if err != nil {
		return Bundle{}, err
	}
	return NewBundle(anchors...)
}

// ParseCertificates reads a sequence of certificates from PEM, at least one, in their order. It is
// strict: a block of another type, with headers, or anything but white space between blocks is an
// error, because clients of the mesh refuse a whole answer for one such block (R42).
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	blocks, err := pemBlocks(text, "CERTIFICATE", "certificate")
	if err != nil {
		return nil, err
	}
	certs := make([]*x509.Certificate, len(blocks))
	for i, der := range blocks {
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", i+1, err)
		}
	}
	return certs, nil
}

// pemBlocks are the contents of the blocks in text, which must all be of one type, without headers, and
// have nothing but white space between them. What says for people what each of them is.
func pemBlocks(text []byte, blockType, what string) ([][]byte, error) {
	var blocks [][]byte
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		block, after := pem.Decode(rest)
		// Decode skips what it can't read; whatever it skipped must not pass unseen.
		switch {
		case !bytes.HasPrefix(rest, []byte("-----BEGIN ")):
			return nil, fmt.Errorf("PEM: text outside of blocks, after %s %d", what, len(blocks))
		case block == nil, bytes.Count(rest[:len(rest)-len(after)], []byte("-----BEGIN ")) != 1:
			return nil, fmt.Errorf("PEM: broken block, after %s %d", what, len(blocks))
		case block.Type != blockType, len(block.Headers) != 0:
			return nil, fmt.Errorf("PEM: block of type %q, after %s %d; only plain %s blocks are allowed", block.Type, what, len(blocks), blockType)
		}
		blocks = append(blocks, block.Bytes)
		rest = after
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("PEM: no %s", what)
	}
	return blocks, nil
}

func withoutComments(text []byte) []byte {
	if !bytes.Contains(text, []byte("#")) {
		return text
	}
	var kept [][]byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			kept = append(kept, line)
		}
	}
	return bytes.Join(kept, nil)
}

// Empty says that no anchor is known.
func (b Bundle) Empty() bool { return len(b.anchors) == 0 }

// Anchors are the anchors in the order of the PEM. The slice must not be changed.
func (b Bundle) Anchors() []*x509.Certificate { return b.anchors }

// PEM is the bundle as clients get it: CERTIFICATE blocks, each ending with a newline.
func (b Bundle) PEM() string { return b.pem }

// Pool is the bundle for verification. It must not be changed; it is nil for the zero Bundle.
func (b Bundle) Pool() *x509.CertPool { return b.pool }

// Contains says whether cert is one of the anchors, byte for byte.
func (b Bundle) Contains(cert *x509.Certificate) bool {
	return slices.ContainsFunc(b.anchors, cert.Equal)
}

// Valid counts the anchors that are within their validity at now.
func (b Bundle) Valid(now time.Time) int {
	n := 0
	for _, anchor := range b.anchors {
		// RFC 5280 §4.1.2.5: the validity includes its last second.
		if !now.Before(anchor.NotBefore) && !now.After(anchor.NotAfter) {
			n++
		}
	}
	return n
}
