package records

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/api/ledger"
)

// unshipped is how old the counts of refusals are, at most, that the shared view may lack: they are shipped when they
// don't change any more.
const unshipped = 5 * time.Minute

// Refusals implements [inventory.Records]. The replica's own latest counts come from its own store, all others from the
// shared view, where there is one.
func (r Records) Refusals(ctx context.Context, q inventory.RecordQuery) (inventory.IssuancePage, error) {
	filter := ledger.RefusalFilter{Since: q.Since, Namespace: q.Namespace, Identity: q.Identity, Namespaces: q.Namespaces}
	at, err := parseRefusalsPlace(q.Continue)
	switch {
	case err != nil:
		return inventory.IssuancePage{}, err
	case q.Continue == "" && r.store.View().IsShared():
		at = refusalsPlace{own: true, since: time.Now().Add(-unshipped).Truncate(time.Minute)}
	}
	page := ledger.Page{Limit: q.Limit, Continue: at.next}
	var found ledger.Refusals
	if at.own {
		if filter.Since.Before(at.since) {
			filter.Since = at.since
		}
		found, err = r.store.Local().Refusals(ctx, filter, page)
	} else {
		found, err = ask(ctx, r, func(ctx context.Context, view *ledger.View) (ledger.Refusals, error) {
			return view.Refusals(ctx, filter, page)
		})
	}
	switch {
	case errors.Is(err, ledger.ErrFilter):
		return inventory.IssuancePage{}, nil
	case err != nil:
		return inventory.IssuancePage{}, failed(err)
	}
	answer := inventory.IssuancePage{Items: make([]api.Issuance, 0, len(found.Counts))}
	for _, c := range found.Counts {
		if !at.own && !at.since.IsZero() && c.Replica == r.store.Replica() && !c.Window.Before(at.since) {
			continue // told before
		}
		answer.Items = append(answer.Items, api.Issuance{Time: c.Window, Outcome: api.Refused, Refusal: &api.Refusal{
			Reason: c.Reason, Code: c.Code, Identity: c.Identity, Namespace: c.Namespace, ServiceAccount: c.ServiceAccount, Address: c.Peer,
			Count: c.Count, First: c.First, Last: c.Last, Replica: c.Replica,
		}})
	}
	switch at.next = found.Continue; {
	case at.next != "":
		answer.Continue = at.String()
	case at.own:
		at.own = false
		answer.Continue = at.String()
	}
	return answer, nil
}

// refusalsPlace is a position among the counts of refusals. The zero value is the beginning of one database alone.
type refusalsPlace struct {
	own   bool      // among the replica's own counts since the time since, which are told first
	since time.Time // zero where all of them come from one database
	next  string    // the ledger's
}

func (p refusalsPlace) String() string {
	first := "all"
	if p.own {
		first = "own"
	}
	since := int64(0)
	if !p.since.IsZero() {
		since = p.since.Unix()
	}
	return fmt.Sprintf("%s.%d.%s", first, since, p.next)
}

func parseRefusalsPlace(text string) (refusalsPlace, error) {
	if text == "" {
		return refusalsPlace{}, nil
	}
	parts := strings.SplitN(text, ".", 3)
	if len(parts) != 3 || parts[0] != "own" && parts[0] != "all" {
		return refusalsPlace{}, fmt.Errorf("%w: it isn't one of the refusals'", api.ErrBadContinue)
	}
	since, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return refusalsPlace{}, fmt.Errorf("%w: it isn't one of the refusals'", api.ErrBadContinue)
	}
	p := refusalsPlace{own: parts[0] == "own", next: parts[2]}
	if since != 0 {
		p.since = time.Unix(since, 0)
	}
	return p, nil
}
