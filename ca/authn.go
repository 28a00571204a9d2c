package ca

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/metadata"
)

// Caller is who asks, as proven by its credentials.
type Caller struct {
	// ID is the caller's own identity.
	ID spiffeid.ID
	// Namespace and ServiceAccount are what ID was made of.
	Namespace, ServiceAccount string
	// ServiceAccountUID is the UID of the service account.
	ServiceAccountUID string
	// PodName, PodUID and NodeName are those that the token is bound to; empty where it isn't (R21).
	PodName, PodUID, NodeName string
	// CredentialID tells one token of a service account from another; it is no secret.
	CredentialID string
	// Cluster is the ID of the caller's cluster; "" for one that is in none, whom an OIDC issuer vouches for.
	Cluster string
	// ProvenAt is when it last proved who it is by something else than the certificate that it renews; zero for now.
	ProvenAt time.Time
}

// key is the caller as admission counts it: its pod, or its token where that is bound to none.
func (c *Caller) key() string {
	if c.PodUID != "" {
		return "pod:" + c.Cluster + ":" + c.PodUID // UIDs are what a cluster says that they are
	}
	return "sa:" + c.Cluster + ":" + c.ServiceAccountUID + ":" + c.CredentialID
}

// Credentials are what came with a request.
type Credentials struct {
	// Token is a bearer token of the shape of a JWT; "" where none came. It must never be logged.
	Token string
	// Certificates are those of the client in its TLS handshake, leaf first. Nothing of them has been verified but that
	// the client has the leaf's key.
	Certificates []*x509.Certificate
	// Cluster is the ID of the cluster that the caller claims to be in, "" for the local one.
	Cluster string
	// Address is the caller's IP address.
	Address string
}

// Authenticator proves who a caller is. The error is a refusal: one that says the credentials are
// no good, or that they could not be checked.
type Authenticator interface {
	Authenticate(ctx context.Context, credentials Credentials) (*Caller, error)
}

// maxTokenBytes bounds a token; those of service accounts have about 1 KiB.
const maxTokenBytes = 16 << 10

// bearerToken is the first authorization value of scheme Bearer; others are passed over (R15).
func bearerToken(md metadata.MD) (string, error) {
	for _, value := range md.Get("authorization") {
		token, ok := strings.CutPrefix(value, "Bearer ")
		if !ok {
			continue
		}
		token = strings.TrimSpace(token)
		if !shapedLikeJWT(token) {
			return "", kindTokenShape.because("the bearer token is not shaped like a JWT")
		}
		return token, nil
	}
	return "", kindNoToken.because("no bearer token")
}

// shapedLikeJWT says whether token has three non-empty parts of base64url (RFC 7519 §3). It costs
// next to nothing, and keeps other things from being sent to the API server.
func shapedLikeJWT(token string) bool {
	if len(token) > maxTokenBytes || strings.Count(token, ".") != 2 {
		return false
	}
	for part := range strings.SplitSeq(token, ".") {
		if part == "" {
			return false
		}
		for _, c := range []byte(part) {
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return true
}

// claims decodes the payload of a token of that shape. Nothing about it is proven.
func claims(token string) ([]byte, error) {
	parts := strings.Split(token, ".")
	return base64.RawURLEncoding.DecodeString(parts[1])
}

// clusterID is what the caller says of its cluster: "" for the local one when it says nothing, or
// nothing definite (R18).
func clusterID(md metadata.MD) string {
	if values := md.Get("clusterid"); len(values) == 1 {
		return values[0]
	}
	return ""
}
