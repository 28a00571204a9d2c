package audit

import "github.com/prometheus/client_golang/prometheus"

// metrics are those of the stream.
type metrics struct {
	events   *prometheus.CounterVec
	failures prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, s *Stream) *metrics {
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "audit_events_total", Help: "Audit events, by type (issued, refused, probe, read, lost) and outcome (written, lost).",
		}, []string{"type", "outcome"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "audit_write_failures_total", Help: "Writes of the audit stream that failed, or that a reader held up.",
		}),
	}
	for k := range kinds {
		m.events.WithLabelValues(k.name(), "written")
		m.events.WithLabelValues(k.name(), "lost")
	}
	reg.MustRegister(m.events, m.failures,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "audit_failing", Help: "1 while the audit stream can't be written."}, func() float64 {
			if s.failing.Load() != nil {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "audit_queue_bytes", Help: "Bytes of audit events that wait to be written."},
			func() float64 { return float64(s.queue.bytes()) }))
	return m
}

func (m *metrics) written(k kind) { m.events.WithLabelValues(k.name(), "written").Inc() }
func (m *metrics) lost(k kind)    { m.events.WithLabelValues(k.name(), "lost").Inc() }
