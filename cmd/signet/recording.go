package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/audit"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/api/records"
	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/signer"
)

// recording is what becomes of an issuance before the certificate leaves: a record in the ledger, and word of it to
// everything that watches certificates. It implements [ca.Recorder].
type recording struct {
	replica  string
	ledger   *ledger.Store
	observed *observed
	seen     *seen
	issued   func(api.Certificate) // the inventory's; nil where there is none
	stream   *audit.Stream
}

// Record implements [ca.Recorder].
func (r *recording) Record(ctx context.Context, i ca.Issuance) error {
	record, err := r.recordOf(i)
	if err != nil {
		return fmt.Errorf("%w: %w", signer.ErrUntrusted, err)
	}
	if err := r.ledger.Record(ctx, record); err != nil {
		if !passes(err) {
			return fmt.Errorf("%w: %w", signer.ErrUntrusted, err)
		}
		return err
	}
	r.observed.known(i.Chain.Request.UID)
	r.seen.record(i)
	if r.issued != nil {
		r.issued(records.Certificate(&record))
	}
	r.stream.Issued(record)
	return nil
}

// passes says whether a record that could not be written may be at another try.
func passes(err error) bool {
	for _, passing := range []error{ledger.ErrFull, ledger.ErrWrite, ledger.ErrClosed, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// Refused implements [ca.Recorder].
func (r *recording) Refused(refusal ca.Refusal) {
	counted := ledger.Refusal{Reason: refusal.Reason, Code: refusal.Code.String(), Peer: refusal.Address}
	if c := refusal.Caller; c != nil {
		counted.Identity, counted.Namespace, counted.ServiceAccount = c.ID.String(), c.Namespace, c.ServiceAccount
	}
	r.ledger.Refused(counted)
	r.stream.Refused(counted)
}

// recordOf is an issuance as the ledger keeps it.
func (r *recording) recordOf(i ca.Issuance) (ledger.Issuance, error) {
	record, err := newRecord(append([]*x509.Certificate{i.Chain.Leaf}, i.Chain.Intermediates...), i.Chain.Anchor, i.Chain.Issuer)
	if err != nil {
		return ledger.Issuance{}, err
	}
	record.Replica, record.RecordedAt = r.replica, time.Now()
	c := i.Caller
	record.RequestedLifetime = i.Requested
	record.ServiceAccountUID, record.Credential, record.Cluster, record.Peer = c.ServiceAccountUID, c.CredentialID, c.Cluster, i.Address
	record.Pod, record.PodUID, record.Node, record.Impersonated = c.PodName, c.PodUID, c.NodeName, i.Grant.Impersonated
	record.ProvenAt = c.ProvenAt
	record.RequestName, record.RequestUID = i.Chain.Request.Name, string(i.Chain.Request.UID)
	return record, nil
}

// newRecord is what the certificates tell of an issuance: chain is leaf first and leads to anchor, nil where that isn't
// known.
func newRecord(chain []*x509.Certificate, anchor *x509.Certificate, ref issuer.Ref) (ledger.Issuance, error) {
	above := anchor
	if len(chain) > 1 {
		above = chain[1]
	}
	record, err := ledger.NewIssuance(chain[0], above)
	if err != nil {
		return ledger.Issuance{}, err
	}
	record.Issuer = ref.String()
	if anchor != nil {
		record.RootSHA256, record.RootSubject = issuer.AnchorID(anchor), anchor.Subject.String()
	}
	return record, nil
}
