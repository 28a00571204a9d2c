package meshclient

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// JudgeSidecar reads an answer as Istio's Go agent and the Envoy behind it do: at least two elements
// (R41), a leaf that parses (R39), carries the key (R36), the identity (R34) and the usages (R35), is
// in force, does not outlive its issuers (R38), and verifies against the last element alone (R36).
//
// key is the public key of the request, now the time of the answer. The error is a [*Violation].
func JudgeSidecar(chain []string, key crypto.PublicKey, id spiffeid.ID, now time.Time) error {
	if err := needLeafAndAnchors(chain); err != nil {
		return err
	}
	// The agent hands Envoy all elements in one file and counts on nothing but their order.
	var certs []*x509.Certificate
	for _, element := range chain[:len(chain)-1] {
		found, err := parseCertificates(element)
		if err != nil {
			return violated("R39", "chain: %v", err)
		}
		certs = append(certs, found...)
	}
	if len(certs) == 0 {
		return violated("R39", "no certificate before the last element")
	}
	anchors, err := parseCertificates(chain[len(chain)-1])
	if err != nil {
		return violated("R42", "anchors: %v", err)
	}
	if err := judgeLeaf(certs[0], key, id, now); err != nil {
		return err
	}
	return judgePath(certs[0], certs[1:], anchors, now)
}

// JudgeZtunnel reads an answer as ztunnel does, which is stricter about the shape of the answer: the
// rules R34 to R45 but those about several answers.
//
// key is the public key of the request, now the time of the answer. The error is a [*Violation].
func JudgeZtunnel(chain []string, key crypto.PublicKey, id spiffeid.ID, now time.Time) error {
	if err := needLeafAndAnchors(chain); err != nil {
		return err
	}
	if err := judgeShape(chain); err != nil {
		return err
	}
	leaf, intermediates, err := parsePath(chain)
	if err != nil {
		return err
	}
	anchors, err := parseAnchors(chain[len(chain)-1])
	if err != nil {
		return err
	}
	if err := judgeOrder(leaf, intermediates, anchors); err != nil {
		return err
	}
	if err := judgeLeaf(leaf, key, id, now); err != nil {
		return err
	}
	if err := judgePath(leaf, intermediates, anchors, now); err != nil {
		return err
	}
	// ztunnel fetches again at half life, at once and in a loop if that has passed.
	half := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
	if !now.Before(half) {
		return violated("R37", "half of the lifetime passed at %s", half.UTC().Format(time.RFC3339))
	}
	return nil
}

// JudgeAgentgateway reads an answer as agentgateway does. It shares ztunnel's demands on an answer;
// what differs is its call, which carries no metadata (R14).
func JudgeAgentgateway(chain []string, key crypto.PublicKey, id spiffeid.ID, now time.Time) error {
	return JudgeZtunnel(chain, key, id, now)
}

// JudgeZtunnelTLS reports whether ztunnel would have agreed to the connection: TLS 1.3 with AES-GCM
// (R2) and ALPN h2 (R1). The error is a [*Violation].
func JudgeZtunnelTLS(state tls.ConnectionState) error {
	if state.Version != tls.VersionTLS13 {
		return violated("R2", "connection uses %s", tls.VersionName(state.Version))
	}
	switch state.CipherSuite {
	case tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384:
	default:
		return violated("R2", "connection uses %s", tls.CipherSuiteName(state.CipherSuite))
	}
	if state.NegotiatedProtocol != "h2" {
		return violated("R1", "negotiated protocol is %q", state.NegotiatedProtocol)
	}
	return nil
}

func needLeafAndAnchors(chain []string) error {
	if len(chain) < 2 {
		return violated("R41", "answer has %d elements, the anchors are missing", len(chain))
	}
	return nil
}

// judgeLeaf holds for every client.
func judgeLeaf(leaf *x509.Certificate, key crypto.PublicKey, id spiffeid.ID, now time.Time) error {
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key) {
		return violated("R36", "key of the leaf is not that of the request")
	}
	if err := judgeNames(leaf, id); err != nil {
		return err
	}
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return violated("R35", "leaf is an authority")
	}
	if want := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment; leaf.KeyUsage != want {
		return violated("R35", "key usage of the leaf is %#x, not %#x", int(leaf.KeyUsage), int(want))
	}
	var server, client bool
	for _, usage := range leaf.ExtKeyUsage {
		server = server || usage == x509.ExtKeyUsageServerAuth
		client = client || usage == x509.ExtKeyUsageClientAuth
	}
	if !server || !client || len(leaf.ExtKeyUsage) != 2 || len(leaf.UnknownExtKeyUsage) > 0 {
		return violated("R35", "extended key usage of the leaf is %v and %v", leaf.ExtKeyUsage, leaf.UnknownExtKeyUsage)
	}
	// RFC 5280 §4.1.2.5: the validity includes its first and its last second.
	if now.Before(leaf.NotBefore) {
		return violated("R37", "leaf is valid from %s", leaf.NotBefore.Format(time.RFC3339))
	}
	if now.After(leaf.NotAfter) {
		return violated("R37", "leaf was valid until %s", leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// judgePath holds for every client: one path from the leaf to an anchor, for both ends of a
// connection, on which no certificate ends before the leaf does.
func judgePath(leaf *x509.Certificate, intermediates, anchors []*x509.Certificate, now time.Time) error {
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now}
	for _, anchor := range anchors {
		opts.Roots.AddCert(anchor)
	}
	for _, intermediate := range intermediates {
		opts.Intermediates.AddCert(intermediate)
	}
	var path []*x509.Certificate
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		opts.KeyUsages = []x509.ExtKeyUsage{usage}
		paths, err := leaf.Verify(opts)
		if err != nil {
			return violated("R36", "leaf does not verify against the anchors of the answer: %v", err)
		}
		path = paths[0]
	}
	for _, issuer := range path[1:] {
		if leaf.NotAfter.After(issuer.NotAfter) {
			return violated("R38", "leaf ends %s, after its issuer %q", leaf.NotAfter.Format(time.RFC3339), issuer.Subject)
		}
	}
	return nil
}
