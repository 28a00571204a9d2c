package presence

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of an index; no label holds a name from the cluster.
type metrics struct{ lookUps *prometheus.CounterVec }

// newMetrics registers the metrics; those of the streams are read when they are scraped.
func newMetrics(reg prometheus.Registerer, x *Index) *metrics {
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"cluster": x.cfg.Cluster}, reg)
	m := &metrics{lookUps: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "presence_lookups_total",
		Help: "Look-ups at the API server of what the index doesn't have, by result: found, missing, remembered (from one just before), too_often, error.",
	}, []string{"result"})}
	reg.MustRegister(m.lookUps)
	for kind := range x.streams {
		labels := prometheus.Labels{"kind": string(kind)}
		reg.MustRegister(
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "presence_objects", Help: "Objects that are known to exist.", ConstLabels: labels,
			}, func() float64 { return float64(x.count(kind)) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "presence_synced", Help: "1 while what is known of a kind can be relied on, else 0.", ConstLabels: labels,
			}, func() float64 {
				if x.Synced(kind) {
					return 1
				}
				return 0
			}),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "presence_silence_seconds", Help: "How long the API server has told nothing of a kind; bookmarks come about every minute.", ConstLabels: labels,
			}, func() float64 {
				now := time.Now()
				heard := x.StateOf(kind, now).Heard
				if heard.IsZero() {
					return 0
				}
				return now.Sub(heard).Seconds()
			}),
		)
	}
	return m
}

func (m *metrics) lookUp(result string) { m.lookUps.WithLabelValues(result).Inc() }
