package signer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of the signer. Durations are in seconds; no label holds an identity.
type metrics struct {
	steps     *prometheus.HistogramVec
	attempts  *prometheus.CounterVec
	gapLists  prometheus.Counter
	sweepPile prometheus.Gauge
	swept     *prometheus.CounterVec
}

// newMetrics registers the metrics; those that are read from s are read when they are scraped.
func newMetrics(reg prometheus.Registerer, s *Signer) *metrics {
	m := &metrics{
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sign_step_duration_seconds",
			Help:    "Time of each step of signing: create, wait, verify.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 17),
		}, []string{"step"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sign_attempts_repeated_total",
			Help: "Further CertificateRequests made for one call, by the cause that made them necessary.",
		}, []string{"cause"}),
		gapLists: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "certificaterequest_gap_lists_total",
			Help: "LISTs made because the watch told nothing while requests waited.",
		}),
		sweepPile: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "certificaterequests_due",
			Help: "Finished or orphaned CertificateRequests that wait to be deleted, as the sweeping replica saw last.",
		}),
		swept: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certificaterequests_swept_total",
			Help: "CertificateRequests deleted, by kind: finished, or orphan of a replica that ended.",
		}, []string{"kind"}),
	}
	reg.MustRegister(m.steps, m.attempts, m.gapLists, m.sweepPile, m.swept,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "certificaterequests_live",
			Help: "CertificateRequests of Signet that exist, of all replicas.",
		}, func() float64 { return float64(s.live.count()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sign_in_flight",
			Help: "Requests that are being signed by this replica.",
		}, func() float64 { return float64(s.signing.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "certificaterequest_watch_silence_seconds",
			Help: "How long the watch has told nothing while requests waited; 0 when none waits.",
		}, func() float64 { return s.live.silence(time.Now()).Seconds() }),
	)
	return m
}

func (m *metrics) observe(step string, began time.Time) {
	m.steps.WithLabelValues(step).Observe(time.Since(began).Seconds())
}
