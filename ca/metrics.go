package ca

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of the endpoint. Durations are in seconds; no label holds an identity.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	steps    *prometheus.HistogramVec
	lifetime prometheus.Histogram
}

// outcomeIssued is the outcome of a request that was answered with a certificate; its reason is "".
const (
	outcomeIssued  = "issued"
	outcomeRefused = "refused"
)

// newMetrics registers the metrics; open, the requests that are not answered yet, is read when it is
// scraped.
func newMetrics(reg prometheus.Registerer, open *atomic.Int64) *metrics {
	latency := prometheus.ExponentialBuckets(0.0005, 2, 17) // 0.5ms to 33s
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "requests_total",
			Help: "Requests for certificates, by outcome (issued, refused), reason of a refusal and gRPC code. An issued one with a reason was not delivered.",
		}, []string{"outcome", "reason", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "request_duration_seconds", Help: "Time from arrival to answer, by outcome.", Buckets: latency,
		}, []string{"outcome"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "request_step_duration_seconds", Help: "Time of each step: authenticate, authorise, check, queue, sign, record.", Buckets: latency,
		}, []string{"step"}),
		lifetime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "issued_lifetime_seconds",
			Help:    "Lifetime of issued certificates, as the issuer gave it.",
			Buckets: []float64{60, 600, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600, 24*3600 + 60, 48 * 3600, 7 * 86400, 30 * 86400, 90 * 86400},
		}),
	}
	// Those on which one is too many are there from the start, so that the first one is an increase.
	m.requests.WithLabelValues(outcomeRefused, kindInternal.reason, kindInternal.code.String())
	reg.MustRegister(m.requests, m.duration, m.steps, m.lifetime,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "requests_in_flight", Help: "Requests that have arrived and are not answered yet.",
		}, func() float64 { return float64(open.Load()) }))
	return m
}

// reviewMetrics are those of token reviews.
type reviewMetrics struct{ reviews, cache *prometheus.CounterVec }

func newReviewMetrics(reg prometheus.Registerer) *reviewMetrics {
	m := &reviewMetrics{
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "token_reviews_total", Help: "TokenReviews made, by result: accepted, rejected, error.",
		}, []string{"result"}),
		cache: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "token_cache_hits_total", Help: "Tokens that needed no review of their own, by what answered: accepted, rejected, joined.",
		}, []string{"entry"}),
	}
	reg.MustRegister(m.reviews, m.cache)
	return m
}

// newLocalMetrics registers what becomes of tokens that are verified here.
func newLocalMetrics(reg prometheus.Registerer) *prometheus.CounterVec {
	results := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "token_local_total",
		Help: "Tokens that were looked at without asking the API server, by result: accepted, rejected, reviewed; and by the cause of a rejection, or of a review that was needed after all.",
	}, []string{"result", "cause"})
	reg.MustRegister(results)
	return results
}

// keysMetrics are those of the keys of tokens.
type keysMetrics struct{ refreshes *prometheus.CounterVec }

func newKeysMetrics(reg prometheus.Registerer, k *Keys) *keysMetrics {
	m := &keysMetrics{refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "token_keys_refreshes_total", Help: "How often the keys of tokens were asked for, by result: ok, error.",
	}, []string{"result"})}
	reg.MustRegister(m.refreshes,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "token_keys", Help: "Keys of tokens that are known.",
		}, func() float64 {
			if current := k.current.Load(); current != nil {
				return float64(len(current.keys))
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "token_keys_timestamp_seconds", Help: "When the keys of tokens were last told, in Unix time; 0 where they never were.",
		}, func() float64 {
			if current := k.current.Load(); current != nil {
				return float64(current.asked.UnixMilli()) / 1000
			}
			return 0
		}))
	return m
}

// watchQueue adds the gauges of a queue, which are read when they are scraped.
func watchQueue(reg prometheus.Registerer, name string, q *queue) {
	labels := prometheus.Labels{"queue": name}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "queue_waiting", Help: "Requests that wait for their turn.", ConstLabels: labels,
		}, func() float64 { _, waiting := q.lengths(); return float64(waiting) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "queue_slots_held", Help: "Slots that are taken.", ConstLabels: labels,
		}, func() float64 { held, _ := q.lengths(); return float64(held) }),
	)
}

func (m *metrics) observe(step string, began time.Time) {
	m.steps.WithLabelValues(step).Observe(time.Since(began).Seconds())
}
