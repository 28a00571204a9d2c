package signer

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/signet-ca/signet/issuer"
)

const (
	// maxChainBytes and maxChainLength bound what an issuer may answer.
	maxChainBytes  = 128 << 10
	maxChainLength = 10
	// clockSkew is how far the issuer's clock may be ahead of ours, and a lifetime over what was
	// allowed, before a leaf is refused.
	clockSkew = 10 * time.Second
	// backdating is how far issuers may set NotBefore back for clients whose clocks are behind (istiod: 2
	// minutes), which is no part of the lifetime that was asked for.
	backdating = 5 * time.Minute
)

// Chain is a verified certificate with what clients need to verify it. Immutable.
type Chain struct {
	// Leaf is the certificate that was asked for.
	Leaf *x509.Certificate
	// Intermediates lead from the leaf's issuer towards the anchor, without the anchor.
	Intermediates []*x509.Certificate
	// Anchor is the trust anchor at which the chain ends.
	Anchor *x509.Certificate
	// Anchors are those that were in force, Anchor among them; an answer carries them all (R36, R41).
	Anchors issuer.Bundle
	// Issuer is the issuer that signed it.
	Issuer issuer.Ref
	// Request is the CertificateRequest it came from.
	Request RequestRef
}

// PEM is the leaf and each intermediate as PEM blocks of their own, in this order, each ending with
// a newline (R39, R40, R45).
func (c *Chain) PEM() []string {
	blocks := make([]string, 0, 1+len(c.Intermediates))
	for _, cert := range append([]*x509.Certificate{c.Leaf}, c.Intermediates...) {
		blocks = append(blocks, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	}
	return blocks
}

// Lifetime is how long the leaf was issued for.
func (c *Chain) Lifetime() time.Duration { return c.Leaf.NotAfter.Sub(c.Leaf.NotBefore) }

// issuerEnds is when the first of the CA certificates above the leaf expires.
func (c *Chain) issuerEnds() time.Time {
	return pathEnds(slices.Concat([]*x509.Certificate{c.Leaf}, c.Intermediates, []*x509.Certificate{c.Anchor}))
}

// outlivesError says that the issuer's own chain ends before the leaf would. The next attempt can
// ask for less (R38).
type outlivesError struct {
	leaf, issuer time.Time
}

func (e *outlivesError) Error() string {
	return fmt.Sprintf("the leaf is valid until %s, its issuer only until %s", e.leaf.Format(time.RFC3339), e.issuer.Format(time.RFC3339))
}

// ParseChain reads what an issuer answered: PEM, leaf first. The certificates are parsed, nothing
// of them is verified.
func ParseChain(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxChainBytes {
		return nil, fmt.Errorf("chain has %d bytes; at most %d are allowed", len(text), maxChainBytes)
	}
	certs, err := issuer.ParseCertificates(text)
	if err != nil {
		return nil, err
	}
	if len(certs) > maxChainLength {
		return nil, fmt.Errorf("chain has %d certificates; at most %d are allowed", len(certs), maxChainLength)
	}
	return certs, nil
}

// verifyChain decides whether what an issuer answered may leave Signet: text is PEM, leaf first.
// It is a pure function of its arguments.
func verifyChain(text []byte, req *Request, anchors issuer.Bundle, now time.Time) (*Chain, error) {
	certs, err := ParseChain(text)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	if err := checkLeaf(leaf, req); err != nil {
		return nil, err
	}
	if err := checkValidity(leaf, req.MaxLifetime, now); err != nil {
		return nil, err
	}

	if anchors.Empty() { // without a pool, Verify would take the system's roots
		return nil, x509.UnknownAuthorityError{Cert: leaf}
	}
	intermediates := x509.NewCertPool()
	for _, cert := range certs[1:] {
		intermediates.AddCert(cert)
	}
	at := now
	if leaf.NotBefore.After(at) { // by less than clockSkew, or checkValidity had refused it
		at = leaf.NotBefore
	}
	paths, err := leaf.Verify(x509.VerifyOptions{
		Roots:         anchors.Pool(),
		Intermediates: intermediates,
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("the chain doesn't lead to a trust anchor in force: %w", err)
	}
	path, err := choosePath(paths, req.Usages)
	if err != nil {
		return nil, err
	}
	return &Chain{Leaf: leaf, Intermediates: path[1 : len(path)-1], Anchor: path[len(path)-1]}, nil
}

// choosePath is the path that the chain is sent as: of those that clients can verify for the leaf's
// whole life, the shortest, so that no anchor is sent as an intermediate (R43), and of several of that
// length the one that lasts longest, because a renewed root may have its predecessor's key and name.
// The error is that of the path which comes closest.
func choosePath(paths [][]*x509.Certificate, usages Usages) ([]*x509.Certificate, error) {
	slices.SortStableFunc(paths, func(a, b []*x509.Certificate) int {
		return cmp.Or(len(a)-len(b), pathEnds(b).Compare(pathEnds(a)))
	})
	var first error
	for _, path := range paths {
		err := checkPath(path, usages)
		if err == nil {
			return path, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

func checkPath(path []*x509.Certificate, usages Usages) error {
	if len(path) < 2 {
		return errors.New("the leaf itself is a trust anchor")
	}
	_, extended := usages.bits()
	for _, ca := range path[1:] {
		if err := mayIssue(ca, extended); err != nil {
			return err
		}
	}
	if leaf, ends := path[0], pathEnds(path); leaf.NotAfter.After(ends) {
		return &outlivesError{leaf: leaf.NotAfter, issuer: ends}
	}
	return nil
}

// pathEnds is when the first of the CA certificates above the leaf expires.
func pathEnds(path []*x509.Certificate) time.Time {
	ends := path[len(path)-1].NotAfter
	for _, ca := range path[1:] {
		if ca.NotAfter.Before(ends) {
			ends = ca.NotAfter
		}
	}
	return ends
}

// checkLeaf compares the leaf with what was asked for, everything but its times.
func checkLeaf(leaf *x509.Certificate, req *Request) error {
	if leaf.Version != 3 {
		return fmt.Errorf("the leaf is an X.509 v%d certificate", leaf.Version)
	}
	if !equalKeys(leaf.PublicKey, req.CSR.PublicKey) {
		return errors.New("the leaf certifies another key than the request's")
	}
	// X509-SVID §4.1, RFC 5280 §4.2.1.9.
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return errors.New("the leaf is a CA certificate")
	}
	names, err := NamesIn(leaf.Extensions)
	if err != nil {
		return fmt.Errorf("the leaf's names: %w", err)
	}
	if !names.Equal(req.Names) {
		return fmt.Errorf("the leaf names %s, asked for were %s", names, req.Names)
	}
	if len(leaf.Subject.Names) != 0 && string(leaf.RawSubject) != string(req.CSR.RawSubject) {
		return fmt.Errorf("the leaf has subject %q, asked for was %q", leaf.Subject, req.CSR.Subject)
	}
	keyUsage, extended := req.Usages.bits()
	if leaf.KeyUsage != keyUsage {
		return fmt.Errorf("the leaf has key usage bits %b, asked for were %b", leaf.KeyUsage, keyUsage)
	}
	if len(leaf.UnknownExtKeyUsage) != 0 || len(leaf.ExtKeyUsage) != len(extended) {
		return fmt.Errorf("the leaf has %d extended key usages, asked for were %d", len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage), len(extended))
	}
	for _, usage := range extended {
		if !slices.Contains(leaf.ExtKeyUsage, usage) {
			return fmt.Errorf("the leaf lacks extended key usage %d", usage)
		}
	}
	for _, extension := range leaf.Extensions {
		if !slices.ContainsFunc(leafExtensions, extension.Id.Equal) {
			return fmt.Errorf("the leaf has extension %s, which was not asked for", extension.Id)
		}
	}
	return nil
}

// leafExtensions are those that a leaf may carry: what it was asked to have, and what helps clients
// to find its issuer and its revocation status (RFC 5280 §4.2, §5.2).
var leafExtensions = []asn1.ObjectIdentifier{
	oidSAN,
	{2, 5, 29, 14},              // subjectKeyIdentifier
	{2, 5, 29, 15},              // keyUsage
	{2, 5, 29, 19},              // basicConstraints, checked not to be a CA's
	{2, 5, 29, 31},              // cRLDistributionPoints
	{2, 5, 29, 32},              // certificatePolicies
	{2, 5, 29, 35},              // authorityKeyIdentifier
	{2, 5, 29, 37},              // extendedKeyUsage
	{1, 3, 6, 1, 5, 5, 7, 1, 1}, // authorityInfoAccess
}

func checkValidity(leaf *x509.Certificate, maxLifetime time.Duration, now time.Time) error {
	switch lifetime := leaf.NotAfter.Sub(leaf.NotBefore); {
	case leaf.NotBefore.After(now.Add(clockSkew)):
		return fmt.Errorf("the leaf is not valid before %s", leaf.NotBefore.Format(time.RFC3339))
	case !leaf.NotAfter.After(now):
		return fmt.Errorf("the leaf expired at %s", leaf.NotAfter.Format(time.RFC3339))
	case lifetime > maxLifetime+backdating || leaf.NotAfter.Sub(now) > maxLifetime+clockSkew:
		return fmt.Errorf("the leaf lives %s, longer than the %s allowed", lifetime, maxLifetime)
	case !now.Before(leaf.NotBefore.Add(lifetime / 2)):
		// R37: clients renew at half of the lifetime; they would ask again at once, and for ever.
		return fmt.Errorf("the leaf is past half of its life, %s to %s", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// mayIssue checks what Verify with ExtKeyUsageAny leaves out: a CA certificate that names extended
// key usages passes on only those (as Go, NSS and webpki read RFC 5280 §4.2.1.12).
func mayIssue(ca *x509.Certificate, usages []x509.ExtKeyUsage) error {
	if len(ca.ExtKeyUsage)+len(ca.UnknownExtKeyUsage) == 0 || slices.Contains(ca.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return nil
	}
	for _, usage := range usages {
		if !slices.Contains(ca.ExtKeyUsage, usage) {
			return fmt.Errorf("CA certificate %q may not issue for extended key usage %d", ca.Subject, usage)
		}
	}
	return nil
}

// equalKeys compares public keys; every key type of the standard library has Equal.
func equalKeys(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}
