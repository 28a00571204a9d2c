package probe

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-ca/signet/api"
)

// metrics are those of probes. No label holds a name.
type metrics struct {
	asked   *prometheus.CounterVec
	results *prometheus.CounterVec
}

// newMetrics registers the metrics; the latest results and what is under way are read from p when they are scraped.
func newMetrics(reg prometheus.Registerer, p *Prober) *metrics {
	m := &metrics{
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "probes_total", Help: "Probes that were asked for, or came by schedule, by outcome: answered, bad, too-many, failed.",
		}, []string{"outcome"}),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "probe_ports_total", Help: "Ports of pods that were probed, by verdict.",
		}, []string{"verdict"}),
	}
	for _, verdict := range verdicts {
		m.results.WithLabelValues(string(verdict))
	}
	reg.MustRegister(m.asked, m.results, &latestCollector{p.latest},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "probes_in_flight", Help: "Probes that are under way."},
			func() float64 { return float64(p.limits.underWay()) }))
	return m
}

var latestDesc = prometheus.NewDesc("probe_results", "Services by the verdict of their latest scheduled probe; those that are remembered.", []string{"verdict"}, nil)

// latestCollector counts the latest results when it is scraped.
type latestCollector struct{ latest *latest }

func (c *latestCollector) Describe(to chan<- *prometheus.Desc) { to <- latestDesc }

func (c *latestCollector) Collect(to chan<- prometheus.Metric) {
	counts := c.latest.counts()
	for _, verdict := range verdicts {
		to <- prometheus.MustNewConstMetric(latestDesc, prometheus.GaugeValue, float64(counts[verdict]), string(verdict))
	}
}

func (m *metrics) counted(probe *api.Probe) {
	for i := range probe.Results {
		m.results.WithLabelValues(string(probe.Results[i].Verdict)).Inc()
	}
}
