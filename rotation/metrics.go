package rotation

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// servingMetrics are those of the serving certificate.
type servingMetrics struct {
	renewals *prometheus.CounterVec
}

func newServingMetrics(reg prometheus.Registerer, s *Serving) *servingMetrics {
	m := &servingMetrics{
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "serving_certificate_renewals_total",
			Help: "Tries to obtain the serving certificate, by result: ok, failed.",
		}, []string{"result"}),
	}
	reg.MustRegister(m.renewals,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "serving_certificate_not_after_timestamp_seconds",
			Help: "When the serving certificate expires, in seconds since 1970; 0 while there is none.",
		}, func() float64 {
			if current := s.current.Load(); current != nil {
				return float64(current.Leaf.NotAfter.Unix())
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "serving_certificate_overdue",
			Help: "1 while there is no serving certificate, or it should have been renewed before.",
		}, func() float64 {
			current := s.current.Load()
			if current == nil {
				return 1
			}
			switch Decide(KindServing.Policy(), current.Leaf.NotBefore, current.Leaf.NotAfter, time.Now()) {
			case Overdue, Expired:
				return 1
			}
			return 0
		}),
	)
	return m
}
