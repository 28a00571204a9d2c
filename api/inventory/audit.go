package inventory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/signet-ca/signet/api"
)

// feedPage is how many records a feed asks for at once, at most.
const feedPage = 500

// feedPlace is a position in one of the lists that the audit is made of: so many items after where a page begins.
type feedPlace struct {
	Started  bool   `json:"s"`
	Done     bool   `json:"d"`
	Continue string `json:"c"`
	Skip     int    `json:"k"`
}

// feed reads one of the lists that the audit is made of, some way ahead of what is taken from it.
type feed struct {
	ask   func(ctx context.Context, limit int, next string) (IssuancePage, error)
	place feedPlace // of the first item that hasn't been taken
	ahead []fed
	end   feedPlace // behind the last item that has been read

	passing bool // by skipAfter
}

// fed is an item with the position behind it.
type fed struct {
	line  api.Issuance
	after feedPlace
}

// peek is the next item, false where there is none; about so many are wanted.
func (f *feed) peek(ctx context.Context, wanted int) (*api.Issuance, bool, error) {
	if len(f.ahead) == 0 {
		f.end = f.place
	}
	for len(f.ahead) == 0 && !f.end.Done {
		limit := min(feedPage, f.end.Skip+max(1, wanted))
		if !f.end.Started {
			limit = 1 // what begins without a continue may have changed when it is asked for again
		}
		page, err := f.ask(ctx, limit, f.end.Continue)
		if err != nil {
			return nil, false, err
		}
		next := feedPlace{Started: true, Done: page.Continue == "", Continue: page.Continue}
		for n, line := range page.Items {
			after := feedPlace{Started: true, Continue: f.end.Continue, Skip: n + 1}
			if n == len(page.Items)-1 {
				after = next
			}
			if n >= f.end.Skip {
				f.ahead = append(f.ahead, fed{line, after})
			}
		}
		f.end = next
	}
	if len(f.ahead) == 0 {
		f.place = f.end
		return nil, false, nil
	}
	return &f.ahead[0].line, true, nil
}

// take moves on behind the item that peek told.
func (f *feed) take() {
	f.place = f.ahead[0].after
	f.ahead = f.ahead[1:]
}

// skipAfter passes over what is later than a moment (Unix s), where nothing has been taken yet: it came after the page
// that ended there.
func (f *feed) skipAfter(ctx context.Context, last int64) error {
	for !f.place.Started && !f.place.Done || f.passing {
		line, ok, err := f.peek(ctx, 1)
		if f.passing = err == nil && ok && line.Time.Unix() > last; !f.passing {
			return err
		}
		f.take()
	}
	return nil
}

// auditPlace is a position in the audit.
type auditPlace struct {
	// Last is the time of the last line, Unix s; 0 at the start.
	Last       int64     `json:"t"`
	Issued     feedPlace `json:"i"`
	Refused    feedPlace `json:"r"`
	Namespaces []string  `json:"n"`
}

// Issuances implements [api.Views]. A page may have fewer items than it could, where many of those that were looked at
// may not be seen.
func (i *Inventory) Issuances(ctx context.Context, q api.IssuanceQuery) (*api.IssuanceList, error) {
	now := time.Now()
	f := filtersOf("issuances", q.Since.UTC(), q.Outcome, q.Namespace, q.Identity)
	may, limit := visible(q.Visible), limitOf(q.Page)
	at := auditPlace{
		Namespaces: i.index.seenBy(may, q.Namespace),
		Issued:     feedPlace{Done: q.Outcome == api.Refused}, Refused: feedPlace{Done: q.Outcome == api.Issued},
	}
	if err := f.open(q.Continue, &at); err != nil {
		return nil, err
	}
	list := &api.IssuanceList{List: i.list(q.Visible, q.Namespace), Items: []api.Issuance{}}
	if at.Namespaces != nil && len(at.Namespaces) == 0 {
		return list, nil
	}
	issued := feed{place: at.Issued, ask: func(ctx context.Context, limit int, next string) (IssuancePage, error) {
		return i.issuances(ctx, RecordQuery{Namespace: q.Namespace, Identity: q.Identity, Namespaces: at.Namespaces, Since: q.Since, Limit: limit, Continue: next})
	}}
	refused := feed{place: at.Refused, ask: func(ctx context.Context, limit int, next string) (IssuancePage, error) {
		return i.records.Refusals(ctx, RecordQuery{Namespace: q.Namespace, Identity: q.Identity, Namespaces: at.Namespaces, Since: q.Since, Limit: limit, Continue: next})
	}}
	if q.Continue != "" {
		if err := errors.Join(issued.skipAfter(ctx, at.Last), refused.skipAfter(ctx, at.Last)); err != nil {
			return nil, fmt.Errorf("read the audit: %w", err)
		}
	}
	for looked := 0; len(list.Items) < limit && looked < recordRounds*limit; looked++ {
		left := limit - len(list.Items)
		a, isIssued, err := issued.peek(ctx, left)
		if err != nil {
			return nil, fmt.Errorf("read records of certificates: %w", err)
		}
		b, isRefused, err := refused.peek(ctx, left)
		if err != nil {
			return nil, fmt.Errorf("read counts of refusals: %w", err)
		}
		var line api.Issuance
		var namespace string
		switch {
		case !isIssued && !isRefused:
			return list, nil
		case isIssued && (!isRefused || !a.Time.Before(b.Time)):
			line, namespace = *a, a.Certificate.Namespace
			issued.take()
		default:
			line = *b
			if line.Refusal != nil {
				namespace = line.Refusal.Namespace
			}
			refused.take()
		}
		at.Last = line.Time.Unix()
		if !may.see(namespace) {
			continue
		}
		if line.Certificate != nil {
			i.judge(line.Certificate, now)
			line.Certificate.PEM = ""
		}
		list.Items = append(list.Items, line)
	}
	if at.Issued, at.Refused = issued.place, refused.place; !at.Issued.Done || !at.Refused.Done {
		list.Continue = f.seal(at)
	}
	return list, nil
}

// issuances are certificates as lines of the audit.
func (i *Inventory) issuances(ctx context.Context, q RecordQuery) (IssuancePage, error) {
	page, err := i.records.Certificates(ctx, q)
	if err != nil {
		return IssuancePage{}, err
	}
	lines := make([]api.Issuance, len(page.Items))
	for n := range page.Items {
		lines[n] = api.Issuance{Time: page.Items[n].IssuedAt, Outcome: api.Issued, Certificate: &page.Items[n]}
	}
	return IssuancePage{Items: lines, Continue: page.Continue}, nil
}
