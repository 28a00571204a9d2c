package rotation

import (
	"cmp"
	"fmt"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-ca/signet/issuer"
)

// IstiodStatus is what a replica knows of istiod's certificate, from its Certificate.
type IstiodStatus struct {
	// Watching says that this replica holds the lease, and so the rest is known. The rest is zero
	// otherwise.
	Watching bool
	// Namespace and Name are those of the Certificate.
	Namespace, Name string
	// DNSNames are those that the Certificate asks for, sorted. Don't change them.
	DNSNames []string
	// Issuer is whom the Certificate asks; its name is "" while there is no Certificate.
	Issuer issuer.Ref
	// NotBefore and NotAfter are the validity of what is in the Secret; zero while there is nothing.
	NotBefore, NotAfter time.Time
	// Renewal is when cert-manager is going to renew it; zero where it doesn't say so.
	Renewal time.Time
	// Ready says that the Secret holds a valid certificate as the Certificate now asks for it, signed
	// by Issuer.
	Ready bool
	// Condition is cert-manager's own text for that.
	Condition string
	// Trouble is why the Certificate can't be written; nil after it could.
	Trouble error
}

// String is a line for people.
func (s IstiodStatus) String() string {
	if !s.Watching {
		return "not watched by this replica"
	}
	text := cmp.Or(s.Condition, "no condition yet")
	if !s.NotAfter.IsZero() {
		text += ", valid until " + s.NotAfter.UTC().Format(time.RFC3339)
	}
	if s.Trouble != nil {
		text += fmt.Sprintf("; can't be written: %v", s.Trouble)
	}
	return text
}

func statusOf(c *cmapi.Certificate) IstiodStatus {
	s := IstiodStatus{
		Watching: true, Namespace: c.Namespace, Name: c.Name, DNSNames: c.Spec.DNSNames, Issuer: issuer.Ref(c.Spec.IssuerRef).WithDefaults(),
	}
	if c.Status.NotBefore != nil && c.Status.NotAfter != nil {
		s.NotBefore, s.NotAfter = c.Status.NotBefore.Time, c.Status.NotAfter.Time
	}
	if c.Status.RenewalTime != nil {
		s.Renewal = c.Status.RenewalTime.Time
	}
	for _, condition := range c.Status.Conditions {
		if condition.Type == cmapi.CertificateConditionReady {
			// A condition of an earlier generation says nothing of what is asked for now.
			s.Ready = condition.Status == cmmeta.ConditionTrue && condition.ObservedGeneration >= c.Generation
			s.Condition = condition.Message
		}
	}
	return s
}

// istiodMetrics are those of istiod's certificate; only the replica that watches it has them.
type istiodMetrics struct {
	istiod          *Istiod
	notAfter, ready *prometheus.Desc
}

func newIstiodMetrics(s *Istiod) *istiodMetrics {
	return &istiodMetrics{
		istiod: s,
		notAfter: prometheus.NewDesc("istiod_certificate_not_after_timestamp_seconds",
			"When istiod's serving certificate expires, in seconds since 1970; 0 while there is none. Only from the replica that holds the lease.", nil, nil),
		ready: prometheus.NewDesc("istiod_certificate_ready",
			"1 while istiod's Secret holds a valid certificate as it should be, else 0. Only from the replica that holds the lease.", nil, nil),
	}
}

// Describe names the metrics.
func (m *istiodMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.notAfter
	descs <- m.ready
}

// Collect reads them from the status.
func (m *istiodMetrics) Collect(metrics chan<- prometheus.Metric) {
	status := m.istiod.Status()
	if !status.Watching {
		return
	}
	notAfter, ready := 0.0, 0.0
	if !status.NotAfter.IsZero() {
		notAfter = float64(status.NotAfter.Unix())
	}
	if status.Ready {
		ready = 1
	}
	metrics <- prometheus.MustNewConstMetric(m.notAfter, prometheus.GaugeValue, notAfter)
	metrics <- prometheus.MustNewConstMetric(m.ready, prometheus.GaugeValue, ready)
}
