package api

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of the endpoint. Durations are in seconds; no label holds an identity or a caller.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	reviews  *prometheus.CounterVec
	lines    prometheus.Counter
	ended    *prometheus.CounterVec
}

// newMetrics registers the metrics; what is under way is read from s when it is scraped.
func newMetrics(reg prometheus.Registerer, s *Server) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "requests_total", Help: "Requests for inspection that were answered, by route (other where there is none) and HTTP status. 499 is one whose caller left.",
		}, []string{"route", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "request_duration_seconds", Help: "Time from arrival to answer, by route; without watches.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16), // 0.5ms to 16s
		}, []string{"route"}),
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "reviews_total", Help: "Questions to the API server, by kind (token, access) and result (yes, no, error).",
		}, []string{"kind", "result"}),
		lines: prometheus.NewCounter(prometheus.CounterOpts{Name: "watch_lines_total", Help: "Lines written to watches."}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "watches_ended_total", Help: "Watches that ended, by why: left, slow, stopping, age, refused, large, fault.",
		}, []string{"why"}),
	}
	reg.MustRegister(m.requests, m.duration, m.reviews, m.lines, m.ended,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "requests_in_flight", Help: "Requests that have arrived and are not answered yet, without watches."},
			func() float64 { return float64(s.inFlight.used()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "watches", Help: "Watches that are open."},
			func() float64 { return float64(s.watches.used()) }))
	return m
}

func (m *metrics) answered(route string, code int, took time.Duration, watch bool) {
	m.requests.WithLabelValues(route, strconv.Itoa(code)).Inc()
	if !watch {
		m.duration.WithLabelValues(route).Observe(took.Seconds())
	}
}
