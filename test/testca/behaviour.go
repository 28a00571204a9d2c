package testca

import (
	"context"
	"crypto/x509"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
)

// Ask is one CertificateRequest as a Behaviour sees it. It must not be changed.
type Ask struct {
	Object *cmapi.CertificateRequest
	// CSR is the one in Object, parsed; nothing about it is checked.
	CSR *x509.CertificateRequest
	// Number is 1 for the first CertificateRequest of its identity, 2 for the next.
	Number int
}

// Outcome is the kind of an Answer.
type Outcome int

// The outcomes.
const (
	Unanswered Outcome = iota // approved, and left at that
	Issued                    // condition Ready, with a certificate
	Denied                    // not approved but denied
	Failed                    // condition Ready=False, reason Failed
	Invalid                   // condition InvalidRequest, and Failed
	Deleted                   // the object is deleted, as somebody might who is tidying up
)

// Answer is what becomes of a CertificateRequest.
type Answer struct {
	Outcome Outcome
	// Message of the condition.
	Message string
	// CertificatePEM and CAPEM are the fields of the status, verbatim.
	CertificatePEM, CAPEM []byte
}

// Behaviour decides what becomes of one CertificateRequest. It may wait; ctx ends with the issuer.
type Behaviour func(ctx context.Context, ask Ask) (Answer, error)

// Good issues what was asked for.
func Good(a *Authority) Behaviour { return Changed(a, func(*Template) error { return nil }) }

// Changed issues a leaf in which change has made something different.
func Changed(a *Authority, change func(*Template) error) Behaviour {
	return func(_ context.Context, ask Ask) (Answer, error) {
		template := NewTemplate(ask)
		if err := change(template); err != nil {
			return Answer{}, err
		}
		chain, err := a.Sign(template)
		return Answer{Outcome: Issued, CertificatePEM: chain, CAPEM: a.Root().PEM()}, err
	}
}

// Rewritten issues what was asked for, after rewrite has changed the PEM.
func Rewritten(a *Authority, rewrite func(chainPEM []byte) []byte) Behaviour {
	return func(ctx context.Context, ask Ask) (Answer, error) {
		answer, err := Good(a)(ctx, ask)
		answer.CertificatePEM = rewrite(answer.CertificatePEM)
		return answer, err
	}
}

// Always gives the same answer.
func Always(outcome Outcome, message string) Behaviour {
	return func(context.Context, Ask) (Answer, error) {
		return Answer{Outcome: outcome, Message: message}, nil
	}
}

// Never approves, and gives no answer.
func Never() Behaviour { return Always(Unanswered, "") }

// First behaves in one way for the first n requests of an identity, and in another afterwards.
func First(n int, first, then Behaviour) Behaviour {
	return func(ctx context.Context, ask Ask) (Answer, error) {
		if ask.Number <= n {
			return first(ctx, ask)
		}
		return then(ctx, ask)
	}
}

// After waits until signal is closed before it goes on.
func After(signal <-chan struct{}, then Behaviour) Behaviour {
	return func(ctx context.Context, ask Ask) (Answer, error) {
		select {
		case <-signal:
			return then(ctx, ask)
		case <-ctx.Done():
			return Answer{}, ctx.Err()
		}
	}
}
