package ca

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/signet-ca/signet/issuer"
)

// Grant is what a caller may be given.
type Grant struct {
	// ID is the identity that the certificate names.
	ID spiffeid.ID
	// Namespace and ServiceAccount are those of ID.
	Namespace, ServiceAccount string
	// Impersonated says that ID isn't the caller's own, but that of a pod beside it.
	Impersonated bool
	// Issuer is asked in place of the one in force, where it is set.
	Issuer issuer.Ref
	// Lifetime bounds what may be asked for.
	Lifetime LifetimeConfig
}

// own is the grant of the caller's own identity.
func own(caller *Caller) Grant {
	return Grant{ID: caller.ID, Namespace: caller.Namespace, ServiceAccount: caller.ServiceAccount}
}

// key is whom the grant is counted for by admission: the caller or, where it asks for others, each of those.
func (g Grant) key(caller *Caller) string {
	if g.ID != caller.ID {
		return caller.key() + ":" + g.ID.String()
	}
	return caller.key()
}

// NodeAuthoriser decides whether a node's proxy may ask for the pods beside it (R24 to R28). Safe for concurrent use.
type NodeAuthoriser interface {
	// MayImpersonate returns nil when the caller may have the identity of a service account. The error is a refusal.
	MayImpersonate(ctx context.Context, caller *Caller, namespace, serviceAccount string) error
}

// Keys of a request's metadata that Istio's clients send (R14: others are passed over).
const (
	keyImpersonated = "ImpersonatedIdentity"
	keyCertSigner   = "CertSigner"
)

// authorise decides what the caller may be given. An identity that it asks for is its own, also as a node's proxy sends
// it (R25), or one that the nodes' authoriser allows.
func (s *Server) authorise(ctx context.Context, md *structpb.Struct, caller *Caller) (Grant, error) {
	asked, err := metadataText(md, keyImpersonated)
	if err != nil {
		return Grant{}, err
	}
	certSigner, err := metadataText(md, keyCertSigner)
	if err != nil {
		return Grant{}, err
	}
	grant, err := s.identity(ctx, asked, caller)
	if err != nil {
		return Grant{}, err
	}
	return s.rule(grant, certSigner, caller.Cluster == s.cfg.clusterID())
}

// identity is what the caller gets that asks for an identity by name, or for none.
func (s *Server) identity(ctx context.Context, asked string, caller *Caller) (Grant, error) {
	if asked == "" || asked == caller.ID.String() {
		return own(caller), nil
	}
	id, err := spiffeid.FromString(asked)
	if err != nil {
		return Grant{}, kindIdentity.because("%s may not ask for %q", caller.ID, shorten(asked))
	}
	namespace, account, ok := workloadOf(id)
	if !ok || !s.cfg.ours(id.TrustDomain()) || s.nodes == nil {
		return Grant{}, kindIdentity.because("%s may not ask for %s", caller.ID, id)
	}
	if err := s.nodes.MayImpersonate(ctx, caller, namespace, account); err != nil {
		return Grant{}, err
	}
	return Grant{ID: id, Namespace: namespace, ServiceAccount: account, Impersonated: true}, nil
}

// ours says whether a trust domain is ours, by its name or by a former one.
func (c Config) ours(td spiffeid.TrustDomain) bool {
	return td == c.TrustDomain || slices.Contains(c.TrustDomainAliases, td.Name())
}

// named is the grant of the identity that a CSR names, where that is the same service account in a former trust domain
// (R32). A CSR that names somebody else is refused; anything else about it is for the CSR's own check.
func (s *Server) named(grant Grant, csr *x509.CertificateRequest) (Grant, error) {
	other := otherIdentity(csr, grant.ID)
	if other.IsZero() {
		return grant, nil
	}
	namespace, account, ok := workloadOf(other)
	if !ok || !s.cfg.ours(other.TrustDomain()) || namespace != grant.Namespace || account != grant.ServiceAccount {
		return Grant{}, kindIdentity.because("the CSR asks for %s, the caller may have %s", other, grant.ID)
	}
	grant.ID = other
	return grant, nil
}

// workloadOf takes apart the identity of a service account: spiffe://<trust domain>/ns/<namespace>/sa/<name> (R17).
func workloadOf(id spiffeid.ID) (namespace, serviceAccount string, ok bool) {
	parts := strings.Split(id.Path(), "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return "", "", false
	}
	return parts[2], parts[4], true
}

// metadataText is a value of the request's metadata, "" where there is none.
func metadataText(md *structpb.Struct, key string) (string, error) {
	value, ok := md.GetFields()[key]
	if !ok {
		return "", nil
	}
	switch v := value.GetKind().(type) {
	case *structpb.Value_StringValue:
		return v.StringValue, nil
	case *structpb.Value_NullValue, nil:
		return "", nil
	}
	return "", kindMalformed.saying("metadata %s must be a string", key)
}
