package api

import (
	"context"
	"errors"
	"time"
)

// Visible says which namespaces the caller may see in one resource.
type Visible interface {
	// All says that the caller may see every namespace, and what belongs to none.
	All() bool
	// Namespace says whether the caller may see one.
	Namespace(name string) bool
}

// Page is which part of a list is asked for.
type Page struct {
	// Limit is how many items at most, 1 to 500.
	Limit int
	// Continue is that of the page before; empty for the first.
	Continue string
}

// ServiceQuery selects services.
type ServiceQuery struct {
	Page
	Visible
	Namespace string // empty for all
	Problems  bool   // only those with problems
}

// CertificateQuery selects certificates. Zero values select all. None that is live has expired: State Expired without a
// Standing, or with Live, selects those that have ended and whose holders should have renewed them.
type CertificateQuery struct {
	Page
	Visible
	Namespace, Identity, SAN, Serial, Node, Issuer string
	State                                          State
	Standing                                       Standing // Live where it isn't set; "any" for all
	ExpiresWithin                                  time.Duration
	RemainingRatioBelow                            float64
}

// IssuanceQuery selects lines of the audit.
type IssuanceQuery struct {
	Page
	Visible
	Since     time.Time
	Outcome   Outcome
	Namespace string
	Identity  string
}

// Views answers the questions of the API from what is known now. Safe for concurrent use.
type Views interface {
	Services(ctx context.Context, q ServiceQuery) (*ServiceList, error)
	// Service is one with its pods. The error matches ErrNotFound where there is none.
	Service(ctx context.Context, namespace, name string) (*Service, error)
	Certificates(ctx context.Context, q CertificateQuery) (*CertificateList, error)
	// Certificate is one with its PEM. The error matches ErrNotFound where there is none.
	Certificate(ctx context.Context, sha256 string) (*Certificate, error)
	Identity(ctx context.Context, spiffeID string) (*Identity, error)
	Issuances(ctx context.Context, q IssuanceQuery) (*IssuanceList, error)
	// Expiring are the live leaves that end within a time, the earliest first.
	Expiring(ctx context.Context, q CertificateQuery) (*CertificateList, error)
	Gateways(ctx context.Context, q GatewayQuery) (*GatewayList, error)
	Trust(ctx context.Context) (*Trust, error)
	// Changed is closed when an answer of Services, Certificates or Gateways may have changed. Take it before asking.
	Changed() <-chan struct{}
}

// Errors of Views. Any other is a fault of ours.
var (
	ErrNotFound = errors.New("not found")
	// ErrBadContinue says that a continue is not one of ours, or belongs to other filters.
	ErrBadContinue = errors.New("continue is not valid here; start again without it")
)
