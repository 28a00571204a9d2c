package inventory

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"slices"
	"time"

	"github.com/signet-ca/signet/api"
)

// TrustSources are what Trust is put together from: what this replica knows, each asked whenever Trust is, so that they
// answer from memory. Those that are nil have nothing to say. What they return isn't changed.
type TrustSources struct {
	// Anchors are the trust anchors with their places in the rollover.
	Anchors func() []Anchor
	// Issuers, Distribution and Replicas are lines for people.
	Issuers, Distribution, Replicas func() []string
	// Expiring is all that ends but leaves, with its State; what remains is worked out here.
	Expiring func() []api.Subject
}

// Anchor is a trust anchor with its place in the rollover.
type Anchor struct {
	Certificate  *x509.Certificate
	Phase        string
	Since, Until time.Time
	Waits        string
	Federated    bool
	Sources      []string
}

// Trust implements [api.Views].
func (i *Inventory) Trust(ctx context.Context) (*api.Trust, error) {
	now := time.Now()
	lines := func(of func() []string) []string {
		if of == nil {
			return []string{}
		}
		return append([]string{}, of()...)
	}
	t := &api.Trust{
		Anchors: []api.Anchor{}, Expiring: []api.Subject{},
		Issuers: lines(i.trust.Issuers), Distribution: lines(i.trust.Distribution), Replicas: lines(i.trust.Replicas),
	}
	if i.trust.Anchors != nil {
		for _, a := range i.trust.Anchors() {
			t.Anchors = append(t.Anchors, a.told())
		}
	}
	if i.trust.Expiring != nil {
		for _, s := range i.trust.Expiring() {
			v := validityOf(s.NotBefore, s.NotAfter)
			s.NotBefore, s.NotAfter = s.NotBefore.UTC(), s.NotAfter.UTC()
			s.RemainingSeconds, s.RemainingRatio = v.seconds(now), v.ratio(now)
			t.Expiring = append(t.Expiring, s)
		}
		slices.SortStableFunc(t.Expiring, func(a, b api.Subject) int { return a.NotAfter.Compare(b.NotAfter) })
	}
	return t, ctx.Err()
}

func (a Anchor) told() api.Anchor {
	sum := sha256.Sum256(a.Certificate.Raw)
	return api.Anchor{
		SHA256: hex.EncodeToString(sum[:]), Subject: a.Certificate.Subject.String(), NotAfter: a.Certificate.NotAfter.UTC(),
		Phase: a.Phase, Since: a.Since.UTC(), Until: a.Until.UTC(), Waits: a.Waits, Federated: a.Federated,
		Sources: append([]string{}, a.Sources...),
		PEM:     string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw})),
	}
}
