package inventory

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-ca/signet/api"
)

// leafMetrics are those of the leaves that are in use; see [index.inUse]. They are made at each scrape, in one walk through
// the leaves in the order of their ends: the first of an account is its minimum, and where there are too many accounts
// those are told that end first.
type leafMetrics struct {
	index *index
	most  int // accounts of which the end is told; 0 turns that off
}

var (
	identityNotAfter = prometheus.NewDesc("identity_certificate_not_after_timestamp_seconds",
		"When the first certificate of a service account expires that a holder which exists uses, in seconds since 1970.",
		[]string{"namespace", "service_account"}, nil)
	identitiesLeftOut = prometheus.NewDesc("identity_certificate_metric_incomplete",
		"1 where there are more service accounts than identity_certificate_not_after_timestamp_seconds may tell of.", nil, nil)
	leavesByState = prometheus.NewDesc("identity_certificates",
		"Certificates that holders which exist use, by state: fresh, due, overdue, expired. Left out are holders in other clusters, and those without a pod after the end: nobody knows whether they exist.", []string{"state"}, nil)
	leavesByRatio = prometheus.NewDesc("identity_certificates_remaining_ratio",
		"Which part of their life is left to the certificates that holders which exist use. It is as of now, so that it grows and shrinks.", nil, nil)
	leavesOverdue = prometheus.NewDesc("identity_certificates_overdue",
		"Certificates that holders which exist use and should have renewed, expired ones among them. Namespaces without any are left out, and where there are too many those with the fewest.", []string{"namespace"}, nil)
	overdueLeftOut = prometheus.NewDesc("identity_certificates_overdue_namespaces_left_out",
		"Namespaces with overdue certificates that identity_certificates_overdue doesn't tell of.", nil, nil)
)

// leafStates are the states of leaves.
var leafStates = []api.State{api.Fresh, api.Due, api.Overdue, api.Expired}

// ratioBounds are the upper bounds of the histogram's buckets. A leaf is due at a half, and overdue below 0.45.
var ratioBounds = []float64{0, 0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1}

// namespacesOverdue bounds the namespaces that identity_certificates_overdue tells of.
const namespacesOverdue = 500

// Describe implements [prometheus.Collector]. It describes nothing, so that the names may get a prefix and the series
// may change.
func (c *leafMetrics) Describe(chan<- *prometheus.Desc) {}

// leafCounts are what one walk finds.
type leafCounts struct {
	states     map[api.State]int
	ratios     []uint64 // by the first bucket that they belong to
	sum        float64
	count      uint64
	overdue    map[string]int     // by namespace
	ends       map[*account]int64 // the first, in Unix s
	incomplete bool               // there are more
}

// count walks through the leaves, and holds the lock for some of them at a time.
func (c *leafMetrics) count(now time.Time) leafCounts {
	n := leafCounts{states: make(map[api.State]int), ratios: make([]uint64, len(ratioBounds)), overdue: make(map[string]int), ends: make(map[*account]int64)}
	var last *leaf
	for more := true; more; {
		more = c.some(&n, &last, now)
	}
	return n
}

// some counts some leaves after the last, and says whether there may be more.
func (c *leafMetrics) some(n *leafCounts, last **leaf, now time.Time) bool {
	c.index.mu.RLock()
	defer c.index.mu.RUnlock()
	looked, after := 0, *last
	for l := range c.index.byEnd.from(func(l *leaf) bool { return after != nil && compareEnd(l, after) <= 0 }) {
		if looked == leavesLooked {
			return true
		}
		looked++
		*last = l
		if !c.index.inUse(l, now) {
			continue
		}
		v := l.validity()
		state, ratio := v.state(now), v.ratio(now)
		n.states[state]++
		n.ratios[min(len(ratioBounds)-1, lowerBound(ratio))]++
		n.sum += ratio
		n.count++
		if l.account.namespace == "" {
			continue
		}
		if state == api.Overdue || state == api.Expired {
			n.overdue[l.account.namespace]++
		}
		if _, told := n.ends[l.account]; !told && len(n.ends) < c.most {
			n.ends[l.account] = l.notAfter
		} else if !told {
			n.incomplete = true
		}
	}
	return false
}

// lowerBound is the first bucket that a ratio belongs to.
func lowerBound(ratio float64) int {
	at, _ := slices.BinarySearch(ratioBounds, ratio)
	return at
}

// Collect implements [prometheus.Collector].
func (c *leafMetrics) Collect(out chan<- prometheus.Metric) {
	n := c.count(time.Now())
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, state := range leafStates {
		gauge(leavesByState, float64(n.states[state]), string(state))
	}
	buckets, below := make(map[float64]uint64, len(ratioBounds)), uint64(0)
	for at, bound := range ratioBounds {
		below += n.ratios[at]
		buckets[bound] = below
	}
	out <- prometheus.MustNewConstHistogram(leavesByRatio, n.count, n.sum, buckets)
	namespaces := slices.SortedFunc(maps.Keys(n.overdue), func(a, b string) int {
		return cmp.Or(cmp.Compare(n.overdue[b], n.overdue[a]), cmp.Compare(a, b))
	})
	told := min(len(namespaces), namespacesOverdue)
	for _, namespace := range namespaces[:told] {
		gauge(leavesOverdue, float64(n.overdue[namespace]), namespace)
	}
	gauge(overdueLeftOut, float64(len(namespaces)-told))
	if c.most == 0 {
		return
	}
	for account, end := range n.ends { // its name never changes
		gauge(identityNotAfter, float64(end), account.namespace, account.name.name)
	}
	incomplete := 0.0
	if n.incomplete {
		incomplete = 1
	}
	gauge(identitiesLeftOut, incomplete)
}
