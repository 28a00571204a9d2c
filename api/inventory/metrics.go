package inventory

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-ca/signet/api"
)

// problemCodes are the values of the label of services_with_problems.
var problemCodes = []api.ProblemCode{
	api.ProblemMissing, api.ProblemOverdue, api.ProblemExpired, api.ProblemSANs, api.ProblemSeveralChains, anyProblem,
}

type metrics struct {
	problems         *prometheus.GaugeVec
	ignored, dropped prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, i *Inventory) *metrics {
	m := &metrics{
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "services_with_problems",
			Help: "Services by what is wrong with the certificates of their pods: missing-certificate, overdue, expired, unexpected-sans, several-chains; any counts those with any.",
		}, []string{"problem"}),
		ignored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "inventory_certificates_ignored_total",
			Help: "Certificates that were left out because their record is no good.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "inventory_certificates_dropped_total",
			Help: "Certificates that were forgotten because there are too many.",
		}),
	}
	m.setProblems(nil)
	reg.MustRegister(m.problems, m.ignored, m.dropped,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "inventory_certificates",
			Help: "Certificates that are remembered, the latest of each holder.",
		}, func() float64 { leaves, _, _ := i.index.sizes(); return float64(leaves) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "inventory_pods",
			Help: "Pods that are known and haven't ended.",
		}, func() float64 { _, pods, _ := i.index.sizes(); return float64(pods) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "inventory_services",
			Help: "Services that are known.",
		}, func() float64 { _, _, services := i.index.sizes(); return float64(services) }),
	)
	if !i.cfg.IdentityMetric.Disabled {
		reg.MustRegister(&identities{index: i.index, most: i.cfg.IdentityMetric.Max})
	}
	return m
}

func (m *metrics) setProblems(counts map[api.ProblemCode]int) {
	for _, code := range problemCodes {
		m.problems.WithLabelValues(string(code)).Set(float64(counts[code]))
	}
}

func (x *index) sizes() (leaves, pods, services int) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.leaves), len(x.pods), x.inOrder.size
}

// identities is the gauge with a series for each service account. It is read from the leaves in the order of their ends:
// the first of an account is its minimum, and where there are too many accounts those are told that end first.
type identities struct {
	index *index
	most  int
}

var (
	identityNotAfter = prometheus.NewDesc("identity_certificate_not_after_timestamp_seconds",
		"When the first certificate of a service account expires that a holder which exists uses, in seconds since 1970.",
		[]string{"namespace", "service_account"}, nil)
	identitiesLeftOut = prometheus.NewDesc("identity_certificate_metric_incomplete",
		"1 where there are more service accounts than identity_certificate_not_after_timestamp_seconds may tell of.", nil, nil)
)

// Describe implements [prometheus.Collector]. It describes nothing, so that the names may get a prefix and the series
// may change.
func (c *identities) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (c *identities) Collect(out chan<- prometheus.Metric) {
	type end struct {
		account  name
		notAfter int64
	}
	now := time.Now()
	told := make(map[name]bool)
	incomplete := 0.0
	var last *leaf
	for more := true; more; {
		var ends []end
		c.index.mu.RLock()
		more = false
		for l := range c.index.byEnd.from(func(l *leaf) bool { return last != nil && compareEnd(l, last) <= 0 }) {
			if len(ends) == leavesLooked {
				more = true
				break
			}
			last = l
			end := end{notAfter: l.notAfter}
			if c.index.holderExists(l, now) && l.account.namespace != "" {
				end.account = l.account.name
			}
			ends = append(ends, end)
		}
		c.index.mu.RUnlock()
		for _, end := range ends {
			if end.account == (name{}) || told[end.account] {
				continue
			}
			if len(told) == c.most {
				incomplete, more = 1, false
				break
			}
			told[end.account] = true
			out <- prometheus.MustNewConstMetric(identityNotAfter, prometheus.GaugeValue, float64(end.notAfter), end.account.namespace, end.account.name)
		}
	}
	out <- prometheus.MustNewConstMetric(identitiesLeftOut, prometheus.GaugeValue, incomplete)
}
