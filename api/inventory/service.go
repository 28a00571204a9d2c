package inventory

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/signet-ca/signet/api"
)

const (
	// batch is how many items are looked at, at most, under one lock.
	batch = 256
	// batchPods is how many pods are, at most, but for the last service's.
	batchPods = 1024
	// namesInDetail is how many pods the detail of a problem names.
	namesInDetail = 3
	// chainsInDetail is how many chains it names.
	chainsInDetail = 3
)

// view is what is said of a service from one moment until another. Immutable.
type view struct {
	from, until time.Time // until is zero where time changes nothing
	identities  []string
	summary     api.Summary // but for its ratio
	least       validity    // of the leaf with the smallest part of its life left; zero where there is none
	problems    []api.Problem
	members     int
}

// at says whether the view is good at now.
func (v *view) at(now time.Time) bool {
	return v != nil && !now.Before(v.from) && (v.until.IsZero() || now.Before(v.until))
}

// service is what is said of the service at now, without its pods.
func (v *view) service(of name, now time.Time) api.Service {
	s := api.Service{
		Namespace: of.namespace, Name: of.name,
		Identities: slices.Clone(v.identities), Summary: v.summary, Problems: slices.Clone(v.problems),
	}
	if v.least != (validity{}) {
		s.Summary.RemainingRatio = v.least.ratio(now)
	}
	return s
}

// viewOf is the view of a service at now. The index must be locked, for reading at least.
func (x *index) viewOf(s *service, now time.Time) *view {
	if v := s.view.Load(); v.at(now) {
		return v
	}
	v := x.look(s, now)
	s.view.Store(v)
	return v
}

// members are the pods behind a service, each once, in no order. A target counts where a pod of that name exists in the
// slice's namespace, with its UID and one of its addresses: whoever may write EndpointSlices can name any.
func (x *index) members(s *service) []*pod {
	var found []*pod
	for _, slice := range s.slices {
		for _, t := range slice.targets {
			p := x.pods[name{s.namespace, t.pod}]
			if p != nil && p.uid == t.uid && slices.ContainsFunc(t.addresses, func(a string) bool { return slices.Contains(p.addresses, a) }) {
				found = append(found, p)
			}
		}
	}
	if len(found) < 2 {
		return found
	}
	slices.SortFunc(found, func(a, b *pod) int { return strings.Compare(a.name.name, b.name.name) })
	return slices.Compact(found)
}

// condition is how it stands with a pod at a moment.
type condition struct {
	plane  api.DataPlane
	state  api.State // of the leaf that it should use; "" where there is none
	leaves []*leaf   // its own, and that of its node's proxy
	// missing says that it should hold one; it may still be too young for that to be a problem.
	missing, young bool
	// unattributed says that it holds one of those whose holder isn't known, or none.
	unattributed bool
	next         time.Time // when something changes; zero for never
}

// conditionOf is how it stands with a pod at now. A pod that takes no part in the mesh as far as it can be seen, but has
// a certificate all the same, is taken for what it holds.
func (x *index) conditionOf(p *pod, now time.Time) condition {
	n := x.namespaces[p.namespace]
	c := condition{plane: p.class.in(n != nil && n.ambient)}
	if own := x.leaves[leafKey{p.account, byPod, p.uid}]; own != nil {
		c.leaves = append(c.leaves, own)
	}
	if p.node != "" {
		// One that ended before the pod began was for others.
		if nodes := x.leaves[leafKey{p.account, byNode, p.node}]; nodes != nil && nodes.serves(p) && nodes.notAfter >= p.since {
			c.leaves = append(c.leaves, nodes)
		}
	}
	for _, l := range c.leaves {
		c.state = l.validity().state(now) // of its node's, where there is one
		c.next = earlier(c.next, l.validity().next(now))
	}
	if len(c.leaves) == 0 && needs(c.plane) {
		if end := p.account.unheldUntil(now); !end.IsZero() {
			c.unattributed, c.next = true, end
			return c
		}
		c.missing = true
		if end := time.Unix(p.since, 0).Add(x.grace); !p.running {
			c.young = true
		} else if now.Before(end) {
			c.young, c.next = true, end
		}
	}
	return c
}

// unheldUntil is when it has to be looked at again whether the account has a leaf that is good at now and whose holder isn't
// known; zero where it has none.
func (a *account) unheldUntil(now time.Time) time.Time {
	for l := range a.unheld {
		if l.validity().state(now) != api.Expired {
			return l.validity().next(now)
		}
	}
	return time.Time{}
}

// odd says whether l has other names than a pod of its account should show.
func (l *leaf) odd() bool { return l.sans != nil || l.identity != l.account.identity }

// look makes the view of a service.
func (x *index) look(s *service, now time.Time) *view {
	v := &view{from: now}
	var missing, overdue, expired, odd []string
	var chains []chain
	var held []validity
	members := x.members(s)
	v.members = len(members)
	for _, p := range members {
		v.summary.Total++
		if !slices.Contains(v.identities[max(0, len(v.identities)-1):], p.account.identity) && p.account.identity != "" {
			v.identities = append(v.identities, p.account.identity)
		}
		c := x.conditionOf(p, now)
		v.until = earlier(v.until, c.next)
		switch {
		case c.state == api.Fresh:
			v.summary.Fresh++
		case c.state == api.Due:
			v.summary.Due++
		case c.state == api.Overdue:
			v.summary.Overdue++
			overdue = append(overdue, p.name.name)
		case c.state == api.Expired:
			v.summary.Expired++
			expired = append(expired, p.name.name)
		case c.missing && !c.young:
			v.summary.Missing++
			missing = append(missing, p.name.name)
		case c.unattributed:
			v.summary.Unattributed++
		case c.plane == api.NoMesh:
			v.summary.NoMesh++
		}
		strange := false
		for _, l := range c.leaves {
			held = append(held, l.validity())
			if l.validity().state(now) != api.Expired && !slices.Contains(chains, l.chain()) {
				chains = append(chains, l.chain())
			}
			strange = strange || l.odd()
		}
		if strange {
			odd = append(odd, p.name.name)
		}
	}
	slices.Sort(v.identities)
	v.identities = slices.Compact(v.identities)

	problem := func(code api.ProblemCode, pods []string, what string) {
		if len(pods) > 0 {
			v.problems = append(v.problems, api.Problem{Code: code, Detail: fmt.Sprintf("%d of %d pods %s: %s", len(pods), len(members), what, some(pods, namesInDetail))})
		}
	}
	problem(api.ProblemMissing, missing, "hold no certificate")
	problem(api.ProblemExpired, expired, "hold one that has expired")
	problem(api.ProblemOverdue, overdue, "should have renewed theirs")
	problem(api.ProblemSANs, odd, "hold one with unexpected names")
	if len(chains) > 1 {
		v.problems = append(v.problems, severalChains(chains))
	}
	v.measure(held, now)
	return v
}

// measure finds what ends first, and of which the smallest part of its life is left, until another one's is.
func (v *view) measure(held []validity, now time.Time) {
	if len(held) == 0 {
		return
	}
	first := held[0]
	v.least = held[0]
	for _, one := range held {
		if one.notAfter < first.notAfter {
			first = one
		}
		if one.less(v.least, now) {
			v.least = one
		}
	}
	v.summary.NotAfter = unix(first.notAfter)
	for _, one := range held {
		v.until = earlier(v.until, v.least.overtakes(one, now))
	}
}

func severalChains(chains []chain) api.Problem {
	var texts []string
	for _, c := range chains {
		texts = append(texts, fmt.Sprintf("%s under root %.16s", c.issuer, c.rootSHA256))
	}
	slices.Sort(texts)
	return api.Problem{Code: api.ProblemSeveralChains, Detail: "certificates of several chains are in use: " + some(texts, chainsInDetail)}
}

// some names the first of a list.
func some(list []string, most int) string {
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// earlier is the earlier of two moments, where zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// row is a service with its view.
type row struct {
	name name
	view *view
}

// servicesAfter are some services after a name, in their order, of one namespace where it is set, in the place of those
// in rows. More says whether there may be others.
func (x *index) servicesAfter(rows []row, after name, namespace string, most int, now time.Time) (_ []row, more bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	rows = rows[:0]
	pods := 0
	for s := range x.inOrder.from(func(s *service) bool { return s.name.compare(after) <= 0 }) {
		switch {
		case namespace != "" && s.namespace != namespace:
			return rows, false
		case len(rows) == most, pods >= batchPods:
			return rows, true
		}
		former := s.view.Load()
		v := x.viewOf(s, now)
		if v != former { // what is made already costs nothing
			pods += v.members
		}
		rows = append(rows, row{s.name, v})
	}
	return rows, false
}

// Services implements [api.Views]. Where q selects no namespace, and the caller may not see all, the list is restricted.
func (i *Inventory) Services(ctx context.Context, q api.ServiceQuery) (*api.ServiceList, error) {
	now := time.Now()
	filters := filtersOf("services", q.Namespace, q.Problems)
	var after name
	switch err := filters.open(q.Continue, &after.namespace, &after.name); {
	case err != nil:
		return nil, err
	case q.Continue == "" && q.Namespace != "":
		after = name{q.Namespace, ""}
	}
	list := &api.ServiceList{List: i.list(q.Visible, q.Namespace), Items: []api.Service{}}
	may, limit := visible(q.Visible), limitOf(q.Page)
	most := batch
	if !q.Problems && may.all {
		most = min(batch, limit+1)
	}
	var rows []row
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rows, more = i.index.servicesAfter(rows, after, q.Namespace, most, now)
		for _, r := range rows {
			if !may.see(r.name.namespace) {
				// The whole namespace is left out; no name has a NUL.
				after, more = name{r.name.namespace + "\x00", ""}, true
				break
			}
			after = r.name
			if q.Problems && len(r.view.problems) == 0 {
				continue
			}
			if len(list.Items) == limit {
				last := list.Items[limit-1]
				list.Continue = filters.seal(last.Namespace, last.Name)
				return list, nil
			}
			list.Items = append(list.Items, r.view.service(r.name, now))
		}
	}
	return list, nil
}

// Service implements [api.Views].
func (i *Inventory) Service(ctx context.Context, namespace, of string) (*api.Service, error) {
	now := time.Now()
	x := i.index
	x.mu.RLock()
	s := x.services[name{namespace, of}]
	if s == nil || !s.exists {
		x.mu.RUnlock()
		return nil, fmt.Errorf("service %s/%s: %w", namespace, of, api.ErrNotFound)
	}
	v := x.viewOf(s, now)
	members := x.members(s)
	conditions := make([]condition, len(members))
	for n, p := range members {
		conditions[n] = x.conditionOf(p, now)
	}
	x.mu.RUnlock()

	// Pods and leaves are only replaced, and what is read of them here never changes.
	out := v.service(s.name, now)
	out.Pods = make([]api.Pod, len(members))
	for n, p := range members {
		out.Pods[n] = podOf(p, conditions[n], now)
	}
	return &out, ctx.Err()
}

// podOf is what is said of a pod at now.
func podOf(p *pod, c condition, now time.Time) api.Pod {
	out := api.Pod{
		Namespace: p.namespace, Name: p.name.name, UID: p.uid, Node: p.node,
		ServiceAccount: p.account.name.name, DataPlane: c.plane, Certificates: []api.Certificate{}, Unattributed: c.unattributed,
	}
	problem := func(code api.ProblemCode, format string, args ...any) {
		out.Problems = append(out.Problems, api.Problem{Code: code, Detail: fmt.Sprintf(format, args...)})
	}
	if c.missing && !c.young {
		problem(api.ProblemMissing, "it has run since %s and holds no certificate", unix(p.since).Format(time.RFC3339))
	}
	var chains []chain
	for _, l := range c.leaves {
		standing := api.Live
		switch l.validity().state(now) {
		case api.Expired:
			standing = api.Ended
			problem(api.ProblemExpired, "its certificate expired at %s", unix(l.notAfter).Format(time.RFC3339))
		case api.Overdue:
			problem(api.ProblemOverdue, "its certificate should have been renewed; it expires at %s", unix(l.notAfter).Format(time.RFC3339))
		}
		if standing == api.Live && !slices.Contains(chains, l.chain()) {
			chains = append(chains, l.chain())
		}
		if l.odd() {
			problem(api.ProblemSANs, "its certificate has %s; it should have %s%s and nothing else", some(l.names(), namesInDetail), uriSAN, p.account.identity)
		}
		out.Certificates = append(out.Certificates, l.certificate(p.account.name, standing, now))
	}
	if len(chains) > 1 {
		out.Problems = append(out.Problems, severalChains(chains))
	}
	return out
}

// countProblems counts services by what is wrong with them, with "any" for those with any.
func (x *index) countProblems(now time.Time) map[api.ProblemCode]int {
	counts := make(map[api.ProblemCode]int)
	var after name
	var rows []row
	for more := true; more; {
		rows, more = x.servicesAfter(rows, after, "", batch, now)
		for _, r := range rows {
			after = r.name
			for _, p := range r.view.problems {
				counts[p.Code]++
			}
			if len(r.view.problems) > 0 {
				counts[anyProblem]++
			}
		}
	}
	return counts
}

// anyProblem counts services that have any problem.
const anyProblem api.ProblemCode = "any"
