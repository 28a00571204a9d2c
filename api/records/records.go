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

// sharedTimeout bounds a question to the shared view; then the replica's own store is asked.
const sharedTimeout = 5 * time.Second

// ask puts a question to the view of all replicas while that answers, else to the replica's own store.
func ask[T any](ctx context.Context, r Records, question func(context.Context, *ledger.View) (T, error)) (T, error) {
	view := r.store.View()
	if !view.IsShared() {
		return question(ctx, view)
	}
	asking, cancel := context.WithTimeout(ctx, sharedTimeout)
	defer cancel()
	answer, err := question(asking, view)
	if err == nil || ctx.Err() != nil || isAnswer(err) {
		return answer, err
	}
	return question(ctx, r.store.Local())
}

// isAnswer says whether err is what a database that works answers.
func isAnswer(err error) bool {
	return errors.Is(err, ledger.ErrFilter) || errors.Is(err, ledger.ErrContinue) || errors.Is(err, ledger.ErrNotFound)
}

// Latest implements [inventory.Records], of the replica's own store; [Records.Follow] tells the rest.
func (r Records) Latest(ctx context.Context, q inventory.LatestQuery) (inventory.RecordPage, error) {
	return pageOf(r.store.Local().List(ctx, ledger.Filter{Latest: true, NotAfterFrom: q.EndsAfter}, ledger.Page{Limit: q.Limit, Continue: q.Continue}))
}

// Certificates implements [inventory.Records].
func (r Records) Certificates(ctx context.Context, q inventory.RecordQuery) (inventory.RecordPage, error) {
	filter := ledger.Filter{
		Namespace: q.Namespace, Identity: q.Identity, Node: q.Node, Issuer: q.Issuer, Serial: q.Serial, SAN: q.SAN,
		Namespaces: q.Namespaces, Since: q.Since, NotAfterFrom: q.EndsFrom, NotAfterTo: q.EndsTo,
	}
	page := ledger.Page{Limit: q.Limit, Continue: q.Continue}
	return pageOf(ask(ctx, r, func(ctx context.Context, view *ledger.View) (ledger.Issuances, error) {
		return view.List(ctx, filter, page)
	}))
}

// pageOf is a page of certificates of workloads; those without an identity, such as Signet's own, belong to nobody's
// service.
func pageOf(found ledger.Issuances, err error) (inventory.RecordPage, error) {
	switch {
	case errors.Is(err, ledger.ErrFilter):
		return inventory.RecordPage{}, nil // nothing that is kept can match it
	case err != nil:
		return inventory.RecordPage{}, failed(err)
	}
	return inventory.RecordPage{Items: certificates(found.Records), Continue: found.Continue}, nil
}

// certificates are those of workloads among records, in the words of the API.
func certificates(records []ledger.Issuance) []api.Certificate {
	all := make([]api.Certificate, 0, len(records))
	for at := range records {
		if records[at].Identity != "" {
			all = append(all, Certificate(&records[at]))
		}
	}
	return all
}

// Certificate implements [inventory.Records].
func (r Records) Certificate(ctx context.Context, sha256 string) (*api.Certificate, error) {
	// The replica's own store is near, and has what isn't shipped yet; of what others issued they know more.
	found, err := r.store.Local().Certificate(ctx, sha256)
	if errors.Is(err, ledger.ErrNotFound) || err == nil && found.Source == ledger.Observed {
		shared, sharedErr := ask(ctx, r, func(ctx context.Context, view *ledger.View) (ledger.Issuance, error) {
			return view.Certificate(ctx, sha256)
		})
		if err != nil || sharedErr == nil {
			found, err = shared, sharedErr
		}
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
	c, err := ask(ctx, r, func(ctx context.Context, view *ledger.View) (ledger.Coverage, error) { return view.Coverage(ctx) })
	if err != nil {
		return api.Coverage{}, failed(err)
	}
	answer := api.Coverage{Since: c.Since, Replicas: []string{r.store.Replica()}}
	for _, o := range c.Origins {
		answer.Replicas = append(answer.Replicas, o.Replica)
	}
	for _, p := range c.Peers {
		answer.Replicas = append(answer.Replicas, p.Replica)
	}
	slices.Sort(answer.Replicas)
	answer.Replicas = slices.Compact(answer.Replicas)
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
