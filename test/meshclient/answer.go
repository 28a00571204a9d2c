package meshclient

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Violation is a rule of the protocol that an answer or a connection breaks.
type Violation struct {
	// Rule is its number, such as "R41".
	Rule string

	// Reason says how it is broken.
	Reason string
}

// Error is the rule and the reason.
func (v *Violation) Error() string { return v.Rule + ": " + v.Reason }

func violated(rule, format string, args ...any) error {
	return &Violation{Rule: rule, Reason: fmt.Sprintf(format, args...)}
}

// judgeShape looks at the elements before anything in them is parsed as a certificate.
func judgeShape(chain []string) error {
	last := len(chain) - 1
	for i, element := range chain {
		// Clients join the elements; without an end of line two PEM markers meet on one.
		if !strings.HasSuffix(element, "\n") {
			return violated("R45", "element %d does not end with a new line", i)
		}
		blocks, rest := splitPEM(element)
		if i == last {
			break
		}
		rule := "R40"
		if i == 0 {
			rule = "R39"
		}
		if len(blocks) != 1 {
			return violated(rule, "element %d has %d PEM blocks, not 1", i, len(blocks))
		}
		if blocks[0].Type != "CERTIFICATE" {
			return violated(rule, "element %d is a %s", i, blocks[0].Type)
		}
		if rest != "" {
			return violated(rule, "element %d has text beside its PEM block", i)
		}
	}
	return nil
}

// parsePath parses all elements but the last, which have the right shape already.
func parsePath(chain []string) (leaf *x509.Certificate, intermediates []*x509.Certificate, err error) {
	for i, element := range chain[:len(chain)-1] {
		certs, err := parseCertificates(element)
		if i == 0 {
			if err != nil {
				return nil, nil, violated("R39", "leaf: %v", err)
			}
			leaf = certs[0]
			continue
		}
		if err != nil {
			return nil, nil, violated("R40", "element %d: %v", i, err)
		}
		intermediates = append(intermediates, certs...)
	}
	return leaf, intermediates, nil
}

// parseAnchors parses the last element with the strictness of ztunnel, for which one stray block
// spoils the whole answer.
func parseAnchors(element string) ([]*x509.Certificate, error) {
	blocks, rest := splitPEM(element)
	if len(blocks) == 0 {
		return nil, violated("R41", "last element has no certificate")
	}
	for _, block := range blocks {
		if block.Type != "CERTIFICATE" {
			return nil, violated("R42", "last element holds a %s", block.Type)
		}
	}
	if rest != "" {
		return nil, violated("R42", "last element has text beside its PEM blocks")
	}
	anchors, err := parseCertificates(element)
	if err != nil {
		return nil, violated("R42", "anchors: %v", err)
	}
	for i, anchor := range anchors {
		if slices.ContainsFunc(anchors[:i], anchor.Equal) {
			return nil, violated("R44", "anchor %q is in the last element twice", anchor.Subject)
		}
	}
	return anchors, nil
}

// judgeOrder wants each certificate signed by the next, and no root before the last element.
func judgeOrder(leaf *x509.Certificate, intermediates, anchors []*x509.Certificate) error {
	below := leaf
	for i, cert := range intermediates {
		if slices.ContainsFunc(anchors, cert.Equal) {
			return violated("R43", "element %d is the root %q", i+1, cert.Subject)
		}
		if bytes.Equal(cert.RawIssuer, cert.RawSubject) && cert.CheckSignatureFrom(cert) == nil {
			return violated("R43", "element %d is a root, %q, that is not among the anchors", i+1, cert.Subject)
		}
		if err := below.CheckSignatureFrom(cert); err != nil {
			return violated("R40", "element %d did not sign the one before it: %v", i+1, err)
		}
		below = cert
	}
	return nil
}

// judgeNames compares the SAN extension as bytes with the one name it may hold, because parsed names
// leave out kinds that Go does not know (SPIFFE X509-SVID §2: exactly one URI).
func judgeNames(leaf *x509.Certificate, id spiffeid.ID) error {
	want := sequence(URIName(id.String()))
	found := 0
	for _, extension := range leaf.Extensions {
		if !extension.Id.Equal(oidSubjectAltName) {
			continue
		}
		found++
		if bytes.Equal(extension.Value, want) {
			continue
		}
		return violated("R34", "names of the leaf are %s, not the URI %s alone", describeNames(extension.Value), id)
	}
	if found != 1 {
		return violated("R34", "leaf has %d SAN extensions, not 1", found)
	}
	return nil
}

// describeNames lists the GeneralNames in a SAN extension by tag and content, for people.
func describeNames(der []byte) string {
	input := cryptobyte.String(der)
	var names cryptobyte.String
	if !input.ReadASN1(&names, asn1.SEQUENCE) {
		return "unreadable"
	}
	var list []string
	for !names.Empty() {
		var content cryptobyte.String
		var tag asn1.Tag
		if !names.ReadAnyASN1(&content, &tag) {
			return "unreadable"
		}
		list = append(list, fmt.Sprintf("[%d] %q", tag&0x1f, []byte(content)))
	}
	return strings.Join(list, ", ")
}

// splitPEM returns the PEM blocks of text and what lies between and around them but for white space.
func splitPEM(text string) (blocks []*pem.Block, rest string) {
	data := []byte(text)
	var stray []byte
	for {
		block, after := pem.Decode(data)
		if block == nil {
			return blocks, strings.TrimSpace(string(append(stray, data...)))
		}
		consumed := data[:len(data)-len(after)]
		if start := bytes.LastIndex(consumed, []byte("-----BEGIN ")); start > 0 {
			stray = append(stray, consumed[:start]...)
		}
		blocks = append(blocks, block)
		data = after
	}
}

// parseCertificates parses the PEM certificates in text and fails on any other block.
func parseCertificates(text string) ([]*x509.Certificate, error) {
	blocks, _ := splitPEM(text)
	if len(blocks) == 0 {
		return nil, errors.New("no PEM block")
	}
	var certs []*x509.Certificate
	for i, block := range blocks {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %d is a %s", i, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", i, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}
