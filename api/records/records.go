// Package records gives the inventory what the ledger holds, in the words of the API.
package records

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/api/ledger"
)

// Records reads a ledger: the view of all replicas while that answers, else the replica's own store. Safe for
// concurrent use.
type Records struct{ store *ledger.Store }

var _ inventory.Records = Records{}

// Of are the records of store.
func Of(store *ledger.Store) Records { return Records{store} }

// Latest implements [inventory.Records].
func (r Records) Latest(ctx context.Context, q inventory.LatestQuery) (inventory.RecordPage, error) {
	return r.list(ctx, ledger.Filter{Latest: true, NotAfterFrom: q.EndsAfter}, ledger.Page{Limit: q.Limit, Continue: q.Continue})
}

// Certificates implements [inventory.Records].
func (r Records) Certificates(ctx context.Context, q inventory.RecordQuery) (inventory.RecordPage, error) {
	return r.list(ctx, ledger.Filter{
		Namespace: q.Namespace, Identity: q.Identity, Node: q.Node, Issuer: q.Issuer, Serial: q.Serial, SAN: q.SAN,
		Namespaces: q.Namespaces, Since: q.Since, NotAfterFrom: q.EndsFrom, NotAfterTo: q.EndsTo,
	}, ledger.Page{Limit: q.Limit, Continue: q.Continue})
}

// list is a page of certificates of workloads; those without an identity, such as Signet's own, belong to nobody's
// service.
func (r Records) list(ctx context.Context, filter ledger.Filter, page ledger.Page) (inventory.RecordPage, error) {
	found, err := r.store.View().List(ctx, filter, page)
	switch {
	case errors.Is(err, ledger.ErrFilter):
		return inventory.RecordPage{}, nil // nothing that is kept can match it
	case err != nil:
		return inventory.RecordPage{}, failed(err)
	}
	answer := inventory.RecordPage{Items: make([]api.Certificate, 0, len(found.Records)), Continue: found.Continue}
	for at := range found.Records {
		if found.Records[at].Identity != "" {
			answer.Items = append(answer.Items, Certificate(&found.Records[at]))
		}
	}
	return answer, nil
}

// Certificate implements [inventory.Records].
func (r Records) Certificate(ctx context.Context, sha256 string) (*api.Certificate, error) {
	view := r.store.View()
	found, err := view.Certificate(ctx, sha256)
	if errors.Is(err, ledger.ErrNotFound) && view.IsShared() {
		found, err = r.store.Local().Certificate(ctx, sha256) // not shipped yet
	}
	switch {
	case errors.Is(err, ledger.ErrFilter):
		return nil, fmt.Errorf("%w: %w", api.ErrNotFound, err)
	case err != nil:
		return nil, failed(err)
	}
	c := Certificate(&found)
	c.PEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: found.DER}))
	return &c, nil
}

// Refusals implements [inventory.Records].
func (r Records) Refusals(ctx context.Context, q inventory.RecordQuery) (inventory.IssuancePage, error) {
	found, err := r.store.View().Refusals(ctx, ledger.RefusalFilter{
		Since: q.Since, Namespace: q.Namespace, Identity: q.Identity, Namespaces: q.Namespaces,
	}, ledger.Page{Limit: q.Limit, Continue: q.Continue})
	switch {
	case errors.Is(err, ledger.ErrFilter):
		return inventory.IssuancePage{}, nil
	case err != nil:
		return inventory.IssuancePage{}, failed(err)
	}
	answer := inventory.IssuancePage{Items: make([]api.Issuance, 0, len(found.Counts)), Continue: found.Continue}
	for _, c := range found.Counts {
		answer.Items = append(answer.Items, api.Issuance{Time: c.Window, Outcome: api.Refused, Refusal: &api.Refusal{
			Reason: c.Reason, Code: c.Code, Identity: c.Identity, Namespace: c.Namespace, ServiceAccount: c.ServiceAccount, Address: c.Peer,
			Count: c.Count, First: c.First, Last: c.Last, Replica: c.Replica,
		}})
	}
	return answer, nil
}

// failed is an error of the ledger in the words of the API.
func failed(err error) error {
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return fmt.Errorf("%w: %w", api.ErrNotFound, err)
	case errors.Is(err, ledger.ErrContinue):
		return fmt.Errorf("%w: %w", api.ErrBadContinue, err)
	}
	return err
}

// Coverage implements [inventory.Records].
func (r Records) Coverage(ctx context.Context) (api.Coverage, error) {
	c, err := r.store.View().Coverage(ctx)
	if err != nil {
		return api.Coverage{}, failed(err)
	}
	answer := api.Coverage{Since: c.Since, Replicas: []string{}}
	for _, o := range c.Origins {
		if !slices.Contains(answer.Replicas, o.Replica) {
			answer.Replicas = append(answer.Replicas, o.Replica)
		}
	}
	for _, s := range c.Sources {
		answer.Sources = append(answer.Sources, api.Source{Name: "ledger: " + s.Name, Up: s.Up, Reason: s.Detail})
	}
	if s := c.Shipping; s != nil {
		shared := api.Source{Name: "ledger: shared", Up: s.Reached}
		switch {
		case !s.Reached:
			shared.Reason = "the shared ledger can't be reached; answers are of this replica's own"
		case s.Records > 0:
			shared.Reason = fmt.Sprintf("%d records of this replica are on their way there, since %s", s.Records, s.Oldest.UTC().Format(time.RFC3339))
		}
		answer.Sources = append(answer.Sources, shared)
	}
	for _, g := range c.Gaps {
		answer.Gaps = append(answer.Gaps, api.Gap{From: g.From, To: g.To, Replica: g.Replica, Reason: reasons[g.Kind]})
	}
	return answer, nil
}

// reasons say for people why records may be missing.
var reasons = map[ledger.GapKind]string{
	ledger.GapCrash:      "the replica ended without a word; what it had signed and not recorded was never delivered",
	ledger.GapUnrecorded: "certificates went out without a record, because the ledger could not be written and ledger.failOpen is set",
	ledger.GapRetention:  "records of certificates that were still valid were deleted, because of ledger.retention",
	ledger.GapUnshipped:  "records never reached the shared ledger",
	ledger.GapAway:       "the replica wasn't running; what others issued meanwhile may not be known here",
}

// Certificate is a record in the words of the API, but for what is relative to now and for its PEM.
func Certificate(i *ledger.Issuance) api.Certificate {
	c := api.Certificate{
		SHA256: i.SHA256, Serial: i.SerialNumber, Identity: i.Identity, SANs: make([]string, 0, len(i.SANs)),
		Namespace: i.Namespace, ServiceAccount: i.ServiceAccount,
		Holder:   api.Holder{Pod: i.Pod, PodUID: i.PodUID, Node: i.Node, Cluster: i.Cluster, Address: i.Peer, Impersonated: i.Impersonated},
		IssuedAt: i.RecordedAt, NotBefore: i.NotBefore, NotAfter: i.NotAfter, RequestedSeconds: int64(i.RequestedLifetime / time.Second),
		KeyAlgorithm: i.KeyAlgorithm, KeyBits: i.KeyBits, SignatureAlgorithm: i.SignatureAlgorithm, SPKISHA256: i.SPKISHA256,
		Issuer: i.Issuer, Root: api.Root{SHA256: i.RootSHA256, Subject: i.RootSubject},
		Request: api.ObjectRef{Name: i.RequestName, UID: i.RequestUID}, Replica: i.Replica,
	}
	for _, san := range i.SANs {
		c.SANs = append(c.SANs, kindOf(san)+":"+san)
	}
	return c
}

// kindOf is the kind of a subject alternative name that is kept as text (RFC 5280 §4.2.1.6).
func kindOf(san string) string {
	_, err := netip.ParseAddr(san)
	switch {
	case strings.Contains(san, "://"):
		return "URI"
	case err == nil:
		return "IP"
	case strings.Contains(san, "@"):
		return "email"
	}
	return "DNS"
}
