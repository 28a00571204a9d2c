package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/signet-ca/signet/signer"
)

// allKinds is the closed set, with the code of each.
var allKinds = map[*kind]codes.Code{
	&kindNoToken: codes.Unauthenticated, &kindTokenShape: codes.Unauthenticated, &kindTokenRejected: codes.Unauthenticated,
	&kindTokenAudience: codes.Unauthenticated, &kindNotServiceAcct: codes.Unauthenticated, &kindUnknownCluster: codes.Unauthenticated,
	&kindTwoIdentities:    codes.Unauthenticated,
	&kindTokenClaims:      codes.Unauthenticated,
	&kindCertificateNames: codes.Unauthenticated, &kindCertificateUntrusted: codes.Unauthenticated, &kindCertificateExpired: codes.Unauthenticated,
	&kindCertificateRevoked: codes.Unauthenticated, &kindCertificateUnknown: codes.Unauthenticated, &kindCertificateHolder: codes.Unauthenticated,
	&kindCertificateAge: codes.Unauthenticated,
	&kindReviewFailed:   codes.Unavailable,

	&kindNotArrived: codes.DeadlineExceeded, &kindTooLarge: codes.InvalidArgument, &kindMalformed: codes.InvalidArgument, &kindCSRMalformed: codes.InvalidArgument,
	&kindCSRSignature: codes.InvalidArgument, &kindCSRKey: codes.InvalidArgument, &kindCSRSubject: codes.InvalidArgument,
	&kindCSRNames: codes.InvalidArgument, &kindCSRExtensions: codes.InvalidArgument, &kindLifetime: codes.InvalidArgument,
	&kindIdentity: codes.PermissionDenied, &kindRegistrar: codes.PermissionDenied, &kindCertSigner: codes.PermissionDenied,

	&kindNoNodeProxy: codes.PermissionDenied, &kindProxyPod: codes.PermissionDenied, &kindNotOnNode: codes.PermissionDenied,
	&kindPodsUnknown: codes.Unavailable,

	&kindOverloaded: codes.ResourceExhausted, &kindBudget: codes.ResourceExhausted,
	&kindDenied: codes.FailedPrecondition, &kindFailed: codes.FailedPrecondition, &kindUntrusted: codes.FailedPrecondition,
	&kindNotReady: codes.Unavailable, &kindTimeout: codes.DeadlineExceeded, &kindCanceled: codes.Canceled, &kindInternal: codes.Internal,
}

func TestR46_R47_Codes(t *testing.T) {
	reasons := make(map[string]bool)
	for k, code := range allKinds {
		assert.Equal(t, code, k.code, k.reason)
		assert.NotEmpty(t, k.text)
		assert.Regexp(t, `^[a-z]+(_[a-z]+)*$`, k.reason)
		assert.False(t, reasons[k.reason], "two kinds have reason %s", k.reason)
		reasons[k.reason] = true
	}
}

// TestKindsAreClosed reads the package: every kind that it declares is in allKinds, and no refusal is
// made of a kind put together elsewhere.
func TestKindsAreClosed(t *testing.T) {
	packages, err := parser.ParseDir(token.NewFileSet(), ".", nil, 0) //nolint:staticcheck // one directory, no build tags
	require.NoError(t, err)
	declared := 0
	for name, file := range packages["ca"].Files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if literal, ok := n.(*ast.CompositeLit); ok {
				if id, ok := literal.Type.(*ast.Ident); ok && id.Name == "kind" {
					declared++
					assert.Equal(t, "refusal.go", name, "kinds are declared in one place")
				}
			}
			return true
		})
	}
	assert.Equal(t, len(allKinds), declared)
}

// R22: who calls is opaque on the wire; the reason is in the log only.
func TestR22_AuthenticationIsOpaque(t *testing.T) {
	texts := make(map[string]bool)
	for k, code := range allKinds {
		if code == codes.Unauthenticated {
			s := k.because("token of %s", "alice").GRPCStatus()
			assert.NotContains(t, s.Message(), "alice")
			texts[s.Message()] = true
		}
	}
	assert.Len(t, texts, 1, "all authentication failures read alike")
	// R26
	assert.Equal(t, "the identity asked for is not the caller's", kindIdentity.because("x asks for y").GRPCStatus().Message())
}

func TestRefusal(t *testing.T) {
	cause := errors.New("cause")
	r := kindFailed.because("ask: %w", cause)
	assert.EqualError(t, r, "failed: ask: cause")
	assert.ErrorIs(t, r, cause)
	assert.Equal(t, codes.FailedPrecondition, status.Code(r))
	assert.Equal(t, "the issuer refused the request", status.Convert(r).Message())

	said := kindCSRKey.saying("it is %s", "DSA")
	assert.Equal(t, "the CSR's key is not acceptable: it is DSA", status.Convert(said).Message())
	assert.EqualError(t, said, "csr_key: it is DSA")
}

func TestRefuse(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
		want kind
	}{
		{"denied", signer.ErrDenied, kindDenied},
		{"failed", signer.ErrFailed, kindFailed},
		{"untrusted", signer.ErrUntrusted, kindUntrusted},
		{"timeout", signer.ErrTimeout, kindTimeout},
		{"not ready", signer.ErrNotReady, kindNotReady},
		{"deadline", context.DeadlineExceeded, kindTimeout},
		{"canceled", context.Canceled, kindCanceled},
		{"anything else", errors.New("bug"), kindInternal},
		{"wrapped", fmt.Errorf("create: %w: %w", signer.ErrNotReady, errors.New("x")), kindNotReady},
		{"timeout while the API server was away", fmt.Errorf("%w: %w", signer.ErrTimeout, context.DeadlineExceeded), kindTimeout},
		{"the issuer's word before a deadline", fmt.Errorf("%w: %w", signer.ErrFailed, context.DeadlineExceeded), kindFailed},
	} {
		got := refuse(fmt.Errorf("sign: %w", row.err))
		assert.Equal(t, row.want, got.kind, row.name)
		assert.ErrorIs(t, got, row.err, row.name)
		assert.Equal(t, row.want.text, got.GRPCStatus().Message(), "%s: the cause is for the log", row.name)
	}
	r := kindBudget.because("x")
	assert.Same(t, r, refuse(r))
	assert.Same(t, r, refuse(fmt.Errorf("wrapped: %w", r)))
}

func TestReceiveRefusal(t *testing.T) {
	for code, want := range map[codes.Code]kind{
		codes.ResourceExhausted: kindTooLarge, // R46: clients must not send it again
		codes.Canceled:          kindCanceled,
		codes.DeadlineExceeded:  kindNotArrived,
		codes.Unavailable:       kindCanceled,
		codes.Internal:          kindMalformed,
		codes.Unknown:           kindMalformed,
	} {
		requireKind(t, want, receiveRefusal(status.Error(code, "x")))
	}
}

// told is a recorder that remembers refusals.
type told struct {
	Recorder
	refusals []Refusal
}

func (r *told) Refused(refusal Refusal) { r.refusals = append(r.refusals, refusal) }

// TestRefusalsAreTold: what was refused is told to the recorder, and what it refused itself; a certificate that was
// recorded and only not delivered is no refusal.
func TestRefusalsAreTold(t *testing.T) {
	leaf := &signer.Chain{Leaf: &x509.Certificate{}}
	for name, row := range map[string]struct {
		x    exchange
		want int
	}{
		"refused":       {exchange{address: "192.0.2.1"}, 1},
		"not recorded":  {exchange{address: "192.0.2.1", chain: leaf, unrecorded: true}, 1},
		"not delivered": {exchange{address: "192.0.2.1", chain: leaf}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := &told{}
			s := New(Config{}, Parts{Recorder: recorder}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			err := s.finish(&row.x, kindNotReady.because("the disk is full"))
			requireKind(t, kindNotReady, err)
			require.Len(t, recorder.refusals, row.want)
			if row.want > 0 {
				assert.Equal(t, Refusal{Reason: "not_ready", Code: codes.Unavailable, Address: "192.0.2.1"}, recorder.refusals[0])
			}
		})
	}
}
