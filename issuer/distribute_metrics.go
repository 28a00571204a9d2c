package issuer

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxManagers is how many field managers have a series of their own; the names are others' to choose.
const maxManagers = 8

// distributionMetrics are those of the distribution. Gauges are computed when they are read, and are
// those of the replica that distributes; they are 0 elsewhere.
type distributionMetrics struct {
	distributor *Distributor
	writes      *prometheus.CounterVec
	delay       prometheus.Histogram

	namespaces, secondWriters, since, refused *prometheus.Desc
}

func newDistributionMetrics(reg prometheus.Registerer, d *Distributor) *distributionMetrics {
	m := &distributionMetrics{
		distributor: d,
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "distribution_writes_total",
			Help: "Writes of trust documents, by result: ok, forbidden, invalid, not_found, terminating, unavailable, error.",
		}, []string{"result"}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "distribution_delay_seconds",
			Help:    "How long a namespace was without a trust document that it had to carry: a new one, one changed by others, or one with another document.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 18),
		}),
		namespaces: prometheus.NewDesc("distribution_namespaces",
			"Namespaces, by whether they carry the trust documents: carrying, pending, failing, or skipped because they needn't.", []string{"state"}, nil),
		secondWriters: prometheus.NewDesc("distribution_second_writers",
			"Trust documents that somebody else changes or deletes again and again, by field manager; those beyond the first ones are counted as other.", []string{"manager"}, nil),
		since: prometheus.NewDesc("distribution_incomplete_since_timestamp_seconds",
			"Since when a namespace has been without a trust document, in seconds since 1970; 0 while all carry all.", nil, nil),
		refused: prometheus.NewDesc("distribution_documents_refused",
			"Trust documents that can't be distributed, because they are too large for a ConfigMap; the last good ones still are.", nil, nil),
	}
	reg.MustRegister(m.writes, m.delay, m)
	return m
}

// Describe is for the registry.
func (m *distributionMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{m.namespaces, m.secondWriters, m.since, m.refused} {
		to <- desc
	}
}

// Collect is for the registry.
func (m *distributionMetrics) Collect(to chan<- prometheus.Metric) {
	var c census
	if term := m.distributor.current(); term != nil {
		c = term.census(time.Now())
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	gauge(m.namespaces, float64(c.carrying), "carrying")
	gauge(m.namespaces, float64(c.pending), "pending")
	gauge(m.namespaces, float64(c.failing), "failing")
	gauge(m.namespaces, float64(c.skipped), "skipped")
	for manager, n := range topManagers(c.fights, maxManagers) {
		gauge(m.secondWriters, float64(n), manager)
	}
	since := 0.0
	if !c.since.IsZero() {
		since = float64(c.since.UnixMilli()) / 1000
	}
	gauge(m.since, since)
	gauge(m.refused, float64(c.refused))
}

// census is what is counted at one moment.
type census struct {
	carrying, pending, failing, skipped int
	refused                             int
	fights                              map[string]int // by who undoes
	since                               time.Time
}

func (t *distribution) census(now time.Time) census {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := census{fights: make(map[string]int)}
	sheets := slices.Collect(maps.Values(t.sheets))
	for name, h := range t.homes {
		if !h.wanted() {
			c.skipped++
			continue
		}
		pending, failing := len(sheets) == 0, false
		for _, s := range sheets {
			switch p := s.places[name]; {
			case p == nil || p.state == placePending || p.state == placeUnknown:
				pending = true
			case p.state == placeFailing:
				failing = true
			}
		}
		switch {
		case failing:
			c.failing++
		case pending:
			c.pending++
		default:
			c.carrying++
		}
	}
	if t.bundle != nil {
		sheets = append(sheets, t.bundle)
	}
	for _, s := range sheets {
		if s.refused != "" {
			c.refused++
		}
		for _, p := range s.places {
			if !p.lacks.IsZero() && (c.since.IsZero() || p.lacks.Before(c.since)) {
				c.since = p.lacks
			}
			if p.home.wanted() && p.fought(now) {
				c.fights[p.writer]++
			}
		}
	}
	return c
}

// topManagers keeps the n field managers with the most fights, and counts the others together.
func topManagers(fights map[string]int, n int) map[string]int {
	if len(fights) <= n {
		return fights
	}
	names := slices.SortedFunc(maps.Keys(fights), func(a, b string) int {
		return cmp.Or(cmp.Compare(fights[b], fights[a]), cmp.Compare(a, b))
	})
	top := make(map[string]int)
	for i, name := range names {
		if i >= n {
			name = "other"
		}
		top[name] += fights[names[i]]
	}
	return top
}
