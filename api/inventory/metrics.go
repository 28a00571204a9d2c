package inventory

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-ca/signet/api"
)

// problemCodes are the values of the label of services_with_problems.
var problemCodes = []api.ProblemCode{
	api.ProblemMissing, api.ProblemOverdue, api.ProblemExpired, api.ProblemSANs, api.ProblemSeveralChains, anyProblem,
}

type metrics struct {
	problems                  *prometheus.GaugeVec
	gateways, gatewayProblems *prometheus.GaugeVec
	ignored, dropped          prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, i *Inventory) *metrics {
	m := &metrics{
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "services_with_problems",
			Help: "Services by what is wrong with the certificates of their pods: missing-certificate, overdue, expired, unexpected-sans, several-chains; any counts those with any.",
		}, []string{"problem"}),
		gateways: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gateways",
			Help: "Gateways by the state of the certificate that needs attention most: fresh, due, overdue, expired; unknown where nothing is known of any, or none is shown.",
		}, []string{"state"}),
		gatewayProblems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gateways_with_problems",
			Help: "Gateways by what is wrong with their certificates: no-certificate, not-ready, overdue, expired, host-not-covered, reference-not-granted, no-workload, too-large; any counts those with any.",
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
	m.setGateways(nil, nil)
	reg.MustRegister(m.problems, m.gateways, m.gatewayProblems, m.ignored, m.dropped,
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
	most := i.cfg.IdentityMetric.Max
	if i.cfg.IdentityMetric.Disabled {
		most = 0
	}
	reg.MustRegister(&leafMetrics{index: i.index, most: most})
	return m
}

func (m *metrics) setProblems(counts map[api.ProblemCode]int) {
	for _, code := range problemCodes {
		m.problems.WithLabelValues(string(code)).Set(float64(counts[code]))
	}
}

// setGateways tells of gateways by their state, "" for unknown, and by problem.
func (m *metrics) setGateways(states map[api.State]int, problems map[api.ProblemCode]int) {
	m.gateways.WithLabelValues("unknown").Set(float64(states[""]))
	for _, state := range leafStates {
		m.gateways.WithLabelValues(string(state)).Set(float64(states[state]))
	}
	for _, code := range gatewayProblems {
		m.gatewayProblems.WithLabelValues(string(code)).Set(float64(problems[code]))
	}
}

func (x *index) sizes() (leaves, pods, services int) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.leaves), len(x.pods), x.inOrder.size
}
