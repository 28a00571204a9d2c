package ca

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/signet-ca/signet/signer"
)

// kind is one of the ways in which a request is refused. The set is closed: the kinds below are all.
// The code is chosen for the caller's next move: Istio's clients try again on Canceled,
// DeadlineExceeded, ResourceExhausted, Aborted, Internal and Unavailable, and on nothing else (R46).
type kind struct {
	reason string     // metric label and log field
	code   codes.Code // on the wire
	text   string     // on the wire; says nothing that the caller may not know
}

const (
	textAuthentication = "authentication failed"
	textNotReady       = "signing is not possible at the moment; try again"
	textIdentity       = "the identity asked for is not the caller's"
)

// Who calls: opaque on the wire (R22), the reason is in the log.
var (
	kindNoToken        = kind{"no_token", codes.Unauthenticated, textAuthentication}
	kindTokenShape     = kind{"token_shape", codes.Unauthenticated, textAuthentication}
	kindTokenRejected  = kind{"token_rejected", codes.Unauthenticated, textAuthentication}
	kindTokenAudience  = kind{"token_audience", codes.Unauthenticated, textAuthentication}
	kindNotServiceAcct = kind{"not_a_service_account", codes.Unauthenticated, textAuthentication}
	kindTokenClaims    = kind{"token_claims", codes.Unauthenticated, textAuthentication}
	kindTwoIdentities  = kind{"two_identities", codes.Unauthenticated, textAuthentication}

	kindCertificateNames     = kind{"certificate_names", codes.Unauthenticated, textAuthentication}
	kindCertificateUntrusted = kind{"certificate_untrusted", codes.Unauthenticated, textAuthentication}
	kindCertificateExpired   = kind{"certificate_expired", codes.Unauthenticated, textAuthentication}
	kindCertificateRevoked   = kind{"certificate_revoked", codes.Unauthenticated, textAuthentication}
	kindCertificateUnknown   = kind{"certificate_unknown", codes.Unauthenticated, textAuthentication}
	kindCertificateHolder    = kind{"certificate_holder", codes.Unauthenticated, textAuthentication}
	kindCertificateAge       = kind{"certificate_age", codes.Unauthenticated, textAuthentication}

	kindUnknownCluster = kind{"unknown_cluster", codes.Unauthenticated, textAuthentication}
	kindReviewFailed   = kind{"review_failed", codes.Unavailable, "tokens can't be checked at the moment; try again"}
)

// What is asked for.
var (
	kindTooLarge      = kind{"too_large", codes.InvalidArgument, "the request is too large"}
	kindNotArrived    = kind{"not_arrived", codes.DeadlineExceeded, "the request did not arrive in time"}
	kindMalformed     = kind{"malformed", codes.InvalidArgument, "the request is malformed"}
	kindCSRMalformed  = kind{"csr_malformed", codes.InvalidArgument, "the CSR is malformed"}
	kindCSRSignature  = kind{"csr_signature", codes.InvalidArgument, "the CSR's signature is not valid"}
	kindCSRKey        = kind{"csr_key", codes.InvalidArgument, "the CSR's key is not acceptable"}
	kindCSRSubject    = kind{"csr_subject", codes.InvalidArgument, "the CSR's subject must be empty"}
	kindCSRNames      = kind{"csr_names", codes.InvalidArgument, "the CSR must name the caller's SPIFFE ID and nothing else"}
	kindCSRExtensions = kind{"csr_extensions", codes.InvalidArgument, "the CSR asks for what is not granted"}
	kindLifetime      = kind{"lifetime", codes.InvalidArgument, "the lifetime asked for is too short"}
	kindIdentity      = kind{"identity", codes.PermissionDenied, textIdentity}
	kindRegistrar     = kind{"registrar", codes.PermissionDenied, "the requester is not trusted to ask for others"}
	kindCertSigner    = kind{"cert_signer", codes.PermissionDenied, "no such signer is offered"}
)

// What node proxies ask for: the same text for all, since what runs where is nobody else's business.
var (
	kindNoNodeProxy = kind{"no_node_proxy", codes.PermissionDenied, textIdentity}
	kindProxyPod    = kind{"proxy_pod", codes.PermissionDenied, textIdentity}
	kindNotOnNode   = kind{"not_on_node", codes.PermissionDenied, textIdentity}
	kindPodsUnknown = kind{"pods_unknown", codes.Unavailable, "pods can't be looked up at the moment; try again"}
)

// What becomes of it.
var (
	kindOverloaded = kind{"overloaded", codes.ResourceExhausted, "too many requests at the moment; try again"}
	kindBudget     = kind{"budget", codes.ResourceExhausted, "too many certificates were asked for in the last minute; try again"}
	kindDenied     = kind{"denied", codes.FailedPrecondition, "the request was denied"}
	kindFailed     = kind{"failed", codes.FailedPrecondition, "the issuer refused the request"}
	kindUntrusted  = kind{"untrusted", codes.FailedPrecondition, "the issuer's answer was not accepted"}
	kindNotReady   = kind{"not_ready", codes.Unavailable, textNotReady}
	kindTimeout    = kind{"timeout", codes.DeadlineExceeded, "no certificate was issued in time; try again"}
	kindCanceled   = kind{"canceled", codes.Canceled, "the caller went away"}
	kindInternal   = kind{"internal", codes.Internal, "internal error"}
)

// refusal is why one request was refused: the kind, and the cause for the log.
type refusal struct {
	kind
	detail string // added to the public text
	cause  error
}

// because is a refusal of this kind whose cause goes to the log only.
func (k kind) because(format string, args ...any) *refusal {
	return &refusal{kind: k, cause: fmt.Errorf(format, args...)}
}

// saying is a refusal of this kind that tells the caller what is wrong with its own request.
func (k kind) saying(format string, args ...any) *refusal {
	detail := fmt.Sprintf(format, args...)
	return &refusal{kind: k, detail: detail, cause: errors.New(detail)}
}

// ofTheCaller says that the refusal is for what the caller sent or how often it did; such come in floods.
func (r *refusal) ofTheCaller() bool {
	switch r.code {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument, codes.ResourceExhausted, codes.Canceled:
		return true
	}
	return r.kind == kindNotArrived
}

func (r *refusal) Error() string { return r.reason + ": " + r.cause.Error() }
func (r *refusal) Unwrap() error { return r.cause }

// GRPCStatus is what the caller gets.
func (r *refusal) GRPCStatus() *status.Status {
	text := r.text
	if r.detail != "" {
		text += ": " + r.detail
	}
	return status.New(r.code, text)
}

// refuse turns any error of a request into the refusal that the caller gets.
func refuse(err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	for _, known := range []struct {
		err  error
		kind kind
	}{
		{signer.ErrDenied, kindDenied},
		{signer.ErrFailed, kindFailed},
		{signer.ErrUntrusted, kindUntrusted},
		{signer.ErrTimeout, kindTimeout},
		{signer.ErrNotReady, kindNotReady},
		{context.DeadlineExceeded, kindTimeout},
		{context.Canceled, kindCanceled},
	} {
		if errors.Is(err, known.err) {
			return &refusal{kind: known.kind, cause: err}
		}
	}
	return &refusal{kind: kindInternal, cause: err}
}
