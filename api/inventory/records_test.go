package inventory

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/signet-ca/signet/api"
)

// memory are records in memory. Lists come in the order of the ledger's; a continue is a sequence number, and pages go
// on below it.
type memory struct {
	mu       sync.Mutex
	issued   []api.Certificate
	refused  []api.Issuance
	fail     error
	asked    int
	coverage api.Coverage
	last     RecordQuery
}

func (m *memory) add(certificates ...api.Certificate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.issued = append(m.issued, certificates...)
}

func (m *memory) refuse(line api.Issuance) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refused = append(m.refused, line)
}

func (m *memory) begin(what string) error {
	m.asked++
	if m.fail != nil {
		return errors.New(what + ": " + m.fail.Error())
	}
	return nil
}

// page takes items below a place, the latest first, whose order is that of their time and then of their being added.
func page[T any](all []T, when func(T) time.Time, fits func(T) bool, limit int, next string) ([]T, string, error) {
	type numbered struct {
		n    int
		item T
	}
	var list []numbered
	for n, item := range all {
		list = append(list, numbered{n, item})
	}
	slices.SortFunc(list, func(a, b numbered) int {
		return cmp.Or(when(b.item).Compare(when(a.item)), cmp.Compare(b.n, a.n))
	})
	if next != "" {
		after, snapshot, ok := strings.Cut(next, "/")
		n, err := strconv.Atoi(after)
		known, err2 := strconv.Atoi(snapshot)
		if !ok || err != nil || err2 != nil {
			return nil, "", api.ErrBadContinue
		}
		all = all[:known]
		at := slices.IndexFunc(list, func(x numbered) bool { return x.n == n })
		list = slices.DeleteFunc(list[at+1:], func(x numbered) bool { return x.n >= known })
	}
	list = slices.DeleteFunc(list, func(x numbered) bool { return !fits(x.item) })
	var out []T
	for n, x := range list {
		if n == limit {
			return out, strconv.Itoa(list[n-1].n) + "/" + strconv.Itoa(len(all)), nil
		}
		out = append(out, x.item)
	}
	return out, "", nil
}

func (m *memory) Latest(_ context.Context, q LatestQuery) (RecordPage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin("latest"); err != nil {
		return RecordPage{}, err
	}
	items, next, err := page(m.issued, issuedAt, func(c api.Certificate) bool { return c.NotAfter.After(q.EndsAfter) }, q.Limit, q.Continue)
	return RecordPage{items, next}, err
}

func (m *memory) Certificates(_ context.Context, q RecordQuery) (RecordPage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = q
	if err := m.begin("certificates"); err != nil {
		return RecordPage{}, err
	}
	is := func(want, have string) bool { return want == "" || want == have }
	items, next, err := page(m.issued, issuedAt, func(c api.Certificate) bool {
		return is(q.Namespace, c.Namespace) && is(q.Identity, c.Identity) && (q.Serial == "" || strings.TrimLeft(q.Serial, "0") == strings.TrimLeft(c.Serial, "0")) && is(q.Node, c.Holder.Node) && is(q.Issuer, c.Issuer) &&
			(q.SAN == "" || slices.ContainsFunc(c.SANs, func(san string) bool { return withoutKind(san) == q.SAN })) &&
			(q.Namespaces == nil || slices.Contains(q.Namespaces, c.Namespace)) &&
			!c.IssuedAt.Before(q.Since) && (q.EndsFrom.IsZero() || !c.NotAfter.Before(q.EndsFrom)) && (q.EndsTo.IsZero() || !c.NotAfter.After(q.EndsTo))
	}, q.Limit, q.Continue)
	for n := range items {
		items[n].PEM = "one that wasn't asked for"
	}
	return RecordPage{items, next}, err
}

func issuedAt(c api.Certificate) time.Time { return c.IssuedAt }

func (m *memory) Certificate(_ context.Context, sha256 string) (*api.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin("certificate"); err != nil {
		return nil, err
	}
	for _, c := range m.issued {
		if c.SHA256 == sha256 {
			c.PEM = "the PEM of " + sha256
			return &c, nil
		}
	}
	return nil, api.ErrNotFound
}

func (m *memory) Refusals(_ context.Context, q RecordQuery) (IssuancePage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin("refusals"); err != nil {
		return IssuancePage{}, err
	}
	items, next, err := page(m.refused, func(i api.Issuance) time.Time { return i.Time }, func(i api.Issuance) bool {
		return (q.Namespace == "" || i.Refusal.Namespace == q.Namespace) && (q.Identity == "" || i.Refusal.Identity == q.Identity) &&
			(q.Namespaces == nil || slices.Contains(q.Namespaces, i.Refusal.Namespace)) && !i.Time.Before(q.Since)
	}, q.Limit, q.Continue)
	return IssuancePage{items, next}, err
}

func (m *memory) Coverage(context.Context) (api.Coverage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin("coverage"); err != nil {
		return api.Coverage{}, err
	}
	return m.coverage, nil
}
