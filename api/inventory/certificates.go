package inventory

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/api"
)

const (
	// AnyStanding selects certificates of every standing.
	AnyStanding api.Standing = "any"

	// recordRounds is how many times the records are asked for one page, where they have much that isn't shown.
	recordRounds = 20
	// leavesLooked is how many leaves are looked at under one lock.
	leavesLooked = 2048
)

// wanted is a certificate query made ready.
type wanted struct {
	api.CertificateQuery
	serial string // its bytes, without leading zeros
	san    string // without its kind
	none   bool   // no certificate can fit; the API has refused such a query
}

func newWanted(q api.CertificateQuery) wanted {
	w := wanted{CertificateQuery: q, san: withoutKind(q.SAN)}
	w.Standing = cmp.Or(q.Standing, api.Live)
	serial, err := parseSerial(strings.ToLower(strings.ReplaceAll(q.Serial, ":", "")))
	w.serial, w.none = strings.TrimLeft(serial, "\x00"), err != nil
	return w
}

// sanKinds go before names, as in [api.Certificate].
var sanKinds = []string{uriSAN, dnsSAN, ipSAN, emailSAN}

// withoutKind is a name without its kind, where it has one.
func withoutKind(san string) string {
	for _, kind := range sanKinds {
		if bare, ok := strings.CutPrefix(san, kind); ok {
			return bare
		}
	}
	return san
}

// filters are what a continue of the query belongs to.
func (w *wanted) filters(list string) filters {
	q := w.CertificateQuery
	return filtersOf(list, q.Namespace, q.Identity, q.SAN, q.Serial, q.Node, q.Issuer, q.State, w.Standing, q.ExpiresWithin, q.RemainingRatioBelow)
}

// heldOn says whether expired leaves are wanted that their holders should have renewed. They have ended, so that no live one
// has expired.
func (w *wanted) heldOn() bool { return w.State == api.Expired && w.Standing == api.Live }

// fits says whether l is wanted, but for its standing.
func (w *wanted) fits(l *leaf, now time.Time) bool {
	v := l.validity()
	switch {
	case w.none,
		w.Namespace != "" && l.account.namespace != w.Namespace,
		w.Identity != "" && l.identity != w.Identity,
		w.Serial != "" && strings.TrimLeft(l.serial, "\x00") != w.serial,
		w.Node != "" && l.node != w.Node,
		w.Issuer != "" && l.common.Value().issuer != w.Issuer,
		w.SAN != "" && !w.hasSAN(l),
		!w.alive(v, now):
		return false
	}
	return true
}

// alive says whether a life is as far as is wanted.
func (w *wanted) alive(v validity, now time.Time) bool {
	return (w.State == "" || v.state(now) == w.State) &&
		(w.ExpiresWithin <= 0 || !time.Unix(v.notAfter, 0).After(now.Add(w.ExpiresWithin))) &&
		(w.RemainingRatioBelow <= 0 || v.ratio(now) < w.RemainingRatioBelow)
}

// hasSAN says whether the certificate has a name, with its kind or without it.
func (w *wanted) hasSAN(l *leaf) bool {
	if l.sans == nil {
		return w.SAN == w.san && w.san == l.identity || w.SAN == uriSAN+l.identity
	}
	return slices.ContainsFunc(l.sans, func(has string) bool { return has == w.SAN || withoutKind(has) == w.SAN })
}

// found is a leaf that is wanted.
type found struct {
	leaf     *leaf
	account  name
	standing api.Standing
}

// collect are some of the leaves of one order that are wanted, from the first on of which before is false. Last is the
// last that was looked at; nil where there are no others.
func (x *index) collect(order func() *ordered[*leaf], w *wanted, before func(*leaf) bool, until func(*leaf) bool, now time.Time) (out []found, last *leaf) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	in := order()
	if in == nil {
		return nil, nil
	}
	looked := 0
	for l := range in.from(before) {
		if until != nil && until(l) {
			return out, nil
		}
		looked++
		if w.fits(l, now) {
			if standing := x.standing(l, now); w.Standing == standing || w.heldOn() && x.inUse(l, now) {
				out = append(out, found{l, l.account.name, standing})
			}
		}
		if len(out) == batch || looked == leavesLooked {
			return out, l
		}
	}
	return out, nil
}

// ofMemory answers with leaves in one order. Place is the position of a leaf in it.
func (i *Inventory) ofMemory(ctx context.Context, w *wanted, f filters, order func() *ordered[*leaf], place func(*leaf) (int64, string), compare func(a, b *leaf) int, until func(*leaf) bool, now time.Time) (*api.CertificateList, error) {
	list := &api.CertificateList{List: i.list(w.Visible, w.Namespace), Items: []api.Certificate{}}
	before := func(*leaf) bool { return false }
	if w.Continue != "" {
		var when int64
		var digest string
		if err := f.open(w.Continue, &when, &digest); err != nil {
			return nil, err
		}
		mark := &leaf{issuedAt: when, notAfter: when}
		if err := unhex(mark.sha256[:], digest); err != nil {
			return nil, api.ErrBadContinue
		}
		before = func(l *leaf) bool { return compare(l, mark) <= 0 }
	}
	may, limit := visible(w.Visible), limitOf(w.Page)
	var final *leaf // of the page
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		some, last := i.index.collect(order, w, before, until, now)
		for _, one := range some {
			if !may.see(one.account.namespace) {
				continue
			}
			if len(list.Items) == limit {
				when, digest := place(final)
				list.Continue = f.seal(when, digest)
				return list, nil
			}
			final = one.leaf
			list.Items = append(list.Items, one.leaf.certificate(one.account, one.standing, now))
		}
		if last == nil {
			return list, nil
		}
		before = func(l *leaf) bool { return compare(l, last) <= 0 }
	}
}

// Certificates implements [api.Views]. What is live or orphaned comes from memory, the rest from the records.
func (i *Inventory) Certificates(ctx context.Context, q api.CertificateQuery) (*api.CertificateList, error) {
	now, w := time.Now(), newWanted(q)
	if w.Standing != api.Live && w.Standing != api.Orphaned {
		return i.ofRecords(ctx, &w, now)
	}
	order := func() *ordered[*leaf] { return &i.index.latest }
	switch {
	case w.Identity != "":
		order = func() *ordered[*leaf] { return i.index.ofIdentity(w.Identity) }
	case w.Namespace != "":
		order = func() *ordered[*leaf] {
			if n := i.index.namespaces[w.Namespace]; n != nil {
				return &n.latest
			}
			return nil
		}
	}
	place := func(l *leaf) (int64, string) { return l.issuedAt, hex.EncodeToString(l.sha256[:]) }
	return i.ofMemory(ctx, &w, w.filters("certificates"), order, place, compareLatest, nil, now)
}

// ofIdentity are the leaves of the account of an identity, the latest first; all leaves where it is no service
// account's. The index must be locked.
func (x *index) ofIdentity(id string) *ordered[*leaf] {
	of, ok := accountOf(id)
	if !ok {
		return &x.latest
	}
	a := x.accounts[of]
	if a == nil {
		return nil
	}
	leaves := slices.SortedFunc(slices.Values(a.leaves), compareLatest)
	o := &ordered[*leaf]{compare: compareLatest, size: len(leaves)}
	if len(leaves) > 0 {
		o.chunks = [][]*leaf{leaves}
	}
	return o
}

// accountOf is the account that an identity names, whatever its trust domain.
func accountOf(id string) (name, bool) {
	parsed, err := spiffeid.FromString(id)
	if err != nil {
		return name{}, false
	}
	parts := strings.Split(parsed.Path(), "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return name{}, false
	}
	return name{parts[2], parts[4]}, true
}

// Expiring implements [api.Views]. Where q says no time it is all of them.
func (i *Inventory) Expiring(ctx context.Context, q api.CertificateQuery) (*api.CertificateList, error) {
	now, w := time.Now(), newWanted(q)
	if w.Standing != api.Live && w.Standing != api.Orphaned {
		w.Standing = api.Live
	}
	order := func() *ordered[*leaf] { return &i.index.byEnd }
	place := func(l *leaf) (int64, string) { return l.notAfter, hex.EncodeToString(l.sha256[:]) }
	var until func(*leaf) bool
	if w.ExpiresWithin > 0 {
		end := now.Add(w.ExpiresWithin)
		until = func(l *leaf) bool { return time.Unix(l.notAfter, 0).After(end) }
	}
	return i.ofMemory(ctx, &w, w.filters("expiring"), order, place, compareEnd, until, now)
}

// ofRecords answers from the records. A page may have fewer items than it could, where many of those that were looked at
// aren't wanted.
func (i *Inventory) ofRecords(ctx context.Context, w *wanted, now time.Time) (*api.CertificateList, error) {
	f := w.filters("records")
	may, limit := visible(w.Visible), limitOf(w.Page)
	at := recordsPlace{At: now.Unix(), Namespaces: i.index.seenBy(may, w.Namespace)}
	if err := f.open(w.Continue, &at); err != nil {
		return nil, err
	}
	list := &api.CertificateList{List: i.list(w.Visible, w.Namespace), Items: []api.Certificate{}}
	if w.none || at.Namespaces != nil && len(at.Namespaces) == 0 {
		return list, nil
	}
	rq := RecordQuery{
		Namespace: w.Namespace, Identity: w.Identity, SAN: w.san, Node: w.Node, Issuer: w.Issuer,
		Namespaces: at.Namespaces, Continue: at.Continue,
	}
	if w.Serial != "" {
		rq.Serial = cmp.Or(hex.EncodeToString([]byte(w.serial)), "00")
	}
	// What the records are asked for stays the same from page to page; the rest is sorted out below.
	switch {
	case w.Standing == api.Ended:
		rq.EndsTo = unix(at.At)
	case w.ExpiresWithin > 0:
		rq.EndsTo = unix(at.At).Add(w.ExpiresWithin + time.Hour)
	}
	if w.Standing == api.Superseded {
		rq.EndsFrom = unix(at.At)
	}
	for range recordRounds {
		rq.Limit = limit - len(list.Items)
		page, err := i.records.Certificates(ctx, rq)
		if err != nil {
			return nil, fmt.Errorf("read records of certificates: %w", err)
		}
		for n := range page.Items {
			c := &page.Items[n]
			i.judge(c, now)
			if may.see(c.Namespace) && (w.Standing == AnyStanding || c.Standing == w.Standing) && w.hasLived(c, now) {
				c.PEM = ""
				list.Items = append(list.Items, *c)
			}
		}
		if rq.Continue = page.Continue; rq.Continue == "" {
			return list, nil
		}
		if len(list.Items) >= limit {
			break
		}
	}
	at.Continue = rq.Continue
	list.Continue = f.seal(at)
	return list, nil
}

func (w *wanted) hasLived(c *api.Certificate, now time.Time) bool {
	return w.alive(validityOf(c.NotBefore, c.NotAfter), now)
}

// recordsPlace is a position in the records, with what was asked for first.
type recordsPlace struct {
	At         int64    `json:"t"` // Unix s
	Namespaces []string `json:"n"`
	Continue   string   `json:"c"`
}

// fewNamespaces is how many namespaces a caller may see, at most, so that the records are asked for these alone. Those
// who see more see most of what there is.
const fewNamespaces = 16

// seenBy are the namespaces that a caller may see, where they are few; nil where there may be others.
func (x *index) seenBy(may *sight, namespace string) []string {
	if may.all || namespace != "" {
		return nil
	}
	x.mu.RLock()
	names := make([]string, 0, len(x.namespaces))
	for name := range x.namespaces {
		names = append(names, name)
	}
	x.mu.RUnlock()
	slices.Sort(names)
	few := []string{}
	for _, name := range names {
		if !may.see(name) {
			continue
		}
		if few = append(few, name); len(few) > fewNamespaces {
			return nil
		}
	}
	return few
}

// judge fills in what is relative to now.
func (i *Inventory) judge(c *api.Certificate, now time.Time) {
	setLife(c, now)
	c.Standing = i.standing(c, now)
}

// standing is that of a record.
func (i *Inventory) standing(c *api.Certificate, now time.Time) api.Standing {
	if c.State == api.Expired {
		return api.Ended
	}
	l, err := newLeaf(c)
	if err != nil {
		return api.Superseded // none that is held
	}
	x := i.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	l.account = x.accounts[name{c.Namespace, c.ServiceAccount}]
	if l.account == nil {
		// Nothing of it is left, or nothing is known of it yet.
		l.account = &account{name: name{c.Namespace, c.ServiceAccount}}
	}
	if held := x.leaves[l.key()]; held != nil && held.sha256 != l.sha256 && !l.later(held) {
		return api.Superseded
	} else if held != nil && held.sha256 == l.sha256 {
		return x.standing(held, now)
	}
	return x.standing(l, now)
}

// Certificate implements [api.Views].
func (i *Inventory) Certificate(ctx context.Context, sha256 string) (*api.Certificate, error) {
	c, err := i.records.Certificate(ctx, strings.ToLower(sha256))
	if err != nil {
		return nil, fmt.Errorf("certificate %q: %w", sha256, err)
	}
	i.judge(c, time.Now())
	return c, nil
}

// Identity implements [api.Views].
func (i *Inventory) Identity(ctx context.Context, spiffeID string) (*api.Identity, error) {
	now := time.Now()
	of, ok := accountOf(spiffeID)
	if !ok {
		return nil, fmt.Errorf("identity %q: %w", spiffeID, api.ErrNotFound)
	}
	id := &api.Identity{
		SPIFFEID: spiffeID, Namespace: of.namespace, ServiceAccount: of.name,
		Live: []api.Certificate{}, Services: []api.ObjectRef{}, Coverage: i.coverageNow(),
	}
	x := i.index
	x.mu.RLock()
	a := x.accounts[of]
	if a == nil {
		x.mu.RUnlock()
		return nil, fmt.Errorf("identity %q: %w", spiffeID, api.ErrNotFound)
	}
	var live []*leaf
	for _, l := range a.leaves {
		if l.identity == spiffeID && x.standing(l, now) == api.Live {
			live = append(live, l)
		}
	}
	behind := make(map[name]bool)
	if a.identity == spiffeID {
		for _, s := range x.servicesOf(a) {
			behind[s.name] = true
		}
	}
	ours := a.identity == spiffeID || len(live) > 0
	x.mu.RUnlock()
	if !ours {
		return nil, fmt.Errorf("identity %q: %w", spiffeID, api.ErrNotFound)
	}
	slices.SortFunc(live, compareLatest)
	for _, l := range live {
		id.Live = append(id.Live, l.certificate(of, api.Live, now))
	}
	for s := range behind {
		id.Services = append(id.Services, api.ObjectRef{Namespace: s.namespace, Name: s.name})
	}
	slices.SortFunc(id.Services, func(a, b api.ObjectRef) int {
		return name{a.Namespace, a.Name}.compare(name{b.Namespace, b.Name})
	})
	return id, ctx.Err()
}

// servicesOf are the services that pods of an account are behind. The index must be locked.
func (x *index) servicesOf(a *account) []*service {
	candidates := make(map[*service]bool)
	var out []*service
	for _, p := range a.pods {
		for _, s := range x.naming[p.name] {
			if s.service.exists && !candidates[s.service] {
				candidates[s.service] = true
				if slices.Contains(x.viewOf(s.service, time.Now()).identities, a.identity) {
					out = append(out, s.service)
				}
			}
		}
	}
	return out
}

// list is what every list begins with.
func (i *Inventory) list(v api.Visible, namespace string) api.List {
	return api.List{Coverage: i.coverageNow(), Restricted: v == nil || namespace == "" && !v.All()}
}
