package signer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"

	"github.com/signet-ca/signet/issuer"
)

// traceChain verifies an answer up to the one of anchors that it leads to or, where it leads to none, up to the root that
// it names.
func traceChain(final *cmapi.CertificateRequest, req *Request, anchors issuer.Bundle, now time.Time) (*Chain, error) {
	if !anchors.Empty() {
		chain, err := verifyChain(final.Status.Certificate, req, anchors, now)
		if !errors.As(err, new(x509.UnknownAuthorityError)) {
			return chain, err
		}
	}
	root, err := firstUseRoot(final)
	if err != nil {
		return nil, err
	}
	named, err := issuer.NewBundle(root)
	if err != nil {
		return nil, err
	}
	return verifyChain(final.Status.Certificate, req, named, now)
}

// firstUseRoot is the root that an issuer's answer names: what it calls its CA or, where it names
// none or only an intermediate, the end of the chain. Only a self-signed CA certificate will do,
// since anything else would make an anchor of a certificate that somebody else answers for.
func firstUseRoot(final *cmapi.CertificateRequest) (*x509.Certificate, error) {
	var candidates []*x509.Certificate
	if len(final.Status.CA) > 0 {
		named, err := issuer.ParseCertificates(final.Status.CA)
		if err != nil {
			return nil, fmt.Errorf("the issuer's CA: %w", err)
		}
		candidates = append(candidates, named...)
	}
	chain, err := ParseChain(final.Status.Certificate)
	if err != nil {
		return nil, err
	}
	candidates = append(candidates, chain[1:]...)
	for _, cert := range candidates {
		if cert.IsCA && string(cert.RawIssuer) == string(cert.RawSubject) && cert.CheckSignatureFrom(cert) == nil {
			return cert, nil
		}
	}
	return nil, errors.New("the issuer names no self-signed CA certificate that could be trusted on first use; pin the trust anchors with roots.file, roots.secret or roots.configMap")
}
