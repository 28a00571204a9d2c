package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/signer"
)

// CertificateConfig is how callers prove who they are by a certificate that they hold, as virtual machines do that renew
// with PROV_CERT (R7 to R9, R19, R20). Such a certificate is asked for in the handshake and never required there;
// what it is worth is decided anew for each request.
type CertificateConfig struct {
	// Enabled accepts certificates that Signet has issued, as the ledger says: where that doesn't outlast a replica, a
	// caller whose token has expired is cut off with it. Default false.
	Enabled bool `json:"enabled,omitempty"`
	// MaxAge is how long a caller may go on renewing so after it has last shown a token. Default without end.
	MaxAge setting.Duration `json:"maxAge,omitempty"`
}

func (c CertificateConfig) validate(p setting.Problems) {
	p.Duration("maxAge", c.MaxAge, time.Minute, 10*365*24*time.Hour)
}

// IssuedTo is what is known of a certificate that was issued.
type IssuedTo struct {
	// Identity is the SPIFFE ID, of Namespace and ServiceAccount; ServiceAccountUID is that of the account which asked.
	Identity, Namespace, ServiceAccount, ServiceAccountUID string
	// PodName, PodUID and NodeName are those that its token was bound to; empty where it wasn't.
	PodName, PodUID, NodeName string
	// Cluster is the ID of its cluster.
	Cluster string
	// Impersonated says that a node's proxy holds it for the pods beside it.
	Impersonated bool
	// ProvenAt is when the caller last proved who it is by a token.
	ProvenAt time.Time
}

// Issuances knows what was issued. Safe for concurrent use.
type Issuances interface {
	// IssuedTo is what is known of the certificate with this SHA-256; false where nothing is. The error says that it
	// can't be found out.
	IssuedTo(ctx context.Context, sha256 [sha256.Size]byte) (IssuedTo, bool, error)
}

// existing is what exists in the cluster now: [presence.Index].
type existing interface {
	Synced(kinds ...presence.Kind) bool
	ServiceAccount(namespace, name string) (presence.Object, bool)
	Pod(namespace, name string) (presence.Pod, bool)
}

// Certificates authenticates client certificates. Safe for concurrent use.
type Certificates struct {
	cfg       Config
	anchors   func() issuer.Bundle
	revoked   func(*x509.Certificate) bool
	issuances Issuances
	exists    existing
}

// NewCertificates makes one that verifies against the anchors and the revocation lists in force when it is asked, looks up
// in issuances, and in exists whether those whom the certificate was issued to are still there.
func NewCertificates(cfg Config, anchors func() issuer.Bundle, revoked func(*x509.Certificate) bool, issuances Issuances, exists *presence.Index) *Certificates {
	return &Certificates{cfg, anchors, revoked, issuances, exists}
}

// maxClientChain bounds what is verified of a chain that anybody may send.
const maxClientChain = 6

// Authenticate implements [Authenticator].
func (c *Certificates) Authenticate(ctx context.Context, credentials Credentials) (*Caller, error) {
	return c.authenticate(ctx, credentials.Certificates, time.Now())
}

func (c *Certificates) authenticate(ctx context.Context, chain []*x509.Certificate, now time.Time) (*Caller, error) {
	leaf := chain[0]
	id, namespace, account, err := c.identityOf(leaf)
	if err != nil {
		return nil, err
	}
	if err := c.verify(chain, now); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(leaf.Raw)
	to, known, err := c.issuances.IssuedTo(ctx, sum)
	switch {
	case err != nil:
		return nil, kindReviewFailed.because("look up the client certificate of %s: %w", id, err)
	case !known || to.Identity != id.String() || to.ServiceAccountUID == "":
		return nil, kindCertificateUnknown.because("the ledger has no record of the client certificate of %s, serial %s", id, issuer.Serial(leaf.SerialNumber))
	case to.Impersonated:
		return nil, kindCertificateHolder.because("the client certificate of %s is one that a node's proxy holds, which proves itself by its token", id)
	case to.Cluster != c.cfg.clusterID():
		return nil, kindCertificateHolder.because("the client certificate of %s was issued to cluster %q", id, to.Cluster)
	}
	if err := c.holderExists(to, namespace, account, now); err != nil {
		return nil, err
	}
	if most := c.cfg.Certificates.MaxAge.Or(0); most > 0 && now.Sub(to.ProvenAt) > most {
		return nil, kindCertificateAge.because("%s has renewed by certificate since %s, for longer than ca.certificates.maxAge, %s; it has to show a token",
			id, to.ProvenAt.UTC().Format(time.RFC3339), most)
	}
	own, err := spiffeid.FromSegments(c.cfg.TrustDomain, "ns", namespace, "sa", account)
	if err != nil {
		return nil, kindCertificateNames.because("%s makes no SPIFFE ID of ours: %w", id, err)
	}
	return &Caller{
		ID: own, Namespace: namespace, ServiceAccount: account, ServiceAccountUID: to.ServiceAccountUID,
		PodName: to.PodName, PodUID: to.PodUID, NodeName: to.NodeName, CredentialID: fmt.Sprintf("%s=%x", certificateName, sum[:16]), Cluster: to.Cluster, ProvenAt: to.ProvenAt,
	}, nil
}

// identityOf is the one identity that a leaf names: its SAN extension is, byte for byte, one SPIFFE ID of a trust domain of
// ours (R20).
func (c *Certificates) identityOf(leaf *x509.Certificate) (id spiffeid.ID, namespace, account string, err error) {
	if len(leaf.URIs) != 1 || leaf.IsCA {
		return spiffeid.ID{}, "", "", kindCertificateNames.because("the client certificate is no leaf with one URI")
	}
	id, err = spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return spiffeid.ID{}, "", "", kindCertificateNames.because("the client certificate's URI is no SPIFFE ID: %w", err)
	}
	names, err := signer.NamesIn(leaf.Extensions)
	if err != nil || !names.Equal(signer.IdentityNames(id)) {
		return spiffeid.ID{}, "", "", kindCertificateNames.because("the client certificate names more than %s", id)
	}
	namespace, account, ok := workloadOf(id)
	if !ok || !c.cfg.ours(id.TrustDomain()) {
		return spiffeid.ID{}, "", "", kindCertificateNames.because("%s is no service account of ours", id)
	}
	return id, namespace, account, nil
}

// verify builds a path to an anchor in force, of which nothing has expired or is revoked.
func (c *Certificates) verify(chain []*x509.Certificate, now time.Time) error {
	leaf := chain[0]
	if len(chain) > maxClientChain {
		return kindCertificateUntrusted.because("the client sent %d certificates; at most %d are looked at", len(chain), maxClientChain)
	}
	anchors := c.anchors()
	if anchors.Empty() {
		return kindReviewFailed.because("no trust anchors are known yet")
	}
	// From the top, each CA only where it leads to an anchor itself: nothing is verified by a key that anybody made up.
	intermediates := x509.NewCertPool()
	for _, cert := range slices.Backward(chain[1:]) {
		_, err := cert.Verify(x509.VerifyOptions{
			Roots: anchors.Pool(), Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if err == nil {
			intermediates.AddCert(cert)
		}
	}
	paths, err := leaf.Verify(x509.VerifyOptions{
		Roots: anchors.Pool(), Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return kindCertificateExpired.because("the client certificate, valid until %s: %w", leaf.NotAfter.UTC().Format(time.RFC3339), err)
	}
	if err != nil {
		return kindCertificateUntrusted.because("verify the client certificate: %w", err)
	}
	if !slices.ContainsFunc(paths, func(path []*x509.Certificate) bool { return !slices.ContainsFunc(path, c.revoked) }) {
		return kindCertificateRevoked.because("the client certificate, serial %s, or a CA above it is revoked", issuer.Serial(leaf.SerialNumber))
	}
	return nil
}

// holderExists says whether the service account and the pod are those that the certificate was issued to.
func (c *Certificates) holderExists(to IssuedTo, namespace, account string, now time.Time) error {
	if !c.exists.Synced(presence.ServiceAccounts) || to.PodUID != "" && !c.exists.Synced(presence.Pods) {
		return kindReviewFailed.because("it can't be told whether %s/%s still exists", namespace, account)
	}
	if object, ok := c.exists.ServiceAccount(namespace, account); !ok || object.UID != to.ServiceAccountUID || gone(object.DeletedAt, now) {
		return kindCertificateHolder.because("service account %s/%s, which the client certificate was issued to, is gone", namespace, account)
	}
	if to.PodUID == "" {
		return nil
	}
	if pod, ok := c.exists.Pod(namespace, to.PodName); !ok || pod.UID != to.PodUID || gone(pod.DeletedAt, now) {
		return kindCertificateHolder.because("pod %s/%s, which the client certificate was issued to, is gone", namespace, to.PodName)
	}
	return nil
}

// gone says whether an object whose deletion is due at a time counts as gone at now: a minute later, as for the tokens that
// are bound to it (k8s.io/kubernetes, pkg/serviceaccount).
func gone(deletedAt, now time.Time) bool {
	return !deletedAt.IsZero() && now.After(deletedAt.Add(time.Minute))
}
