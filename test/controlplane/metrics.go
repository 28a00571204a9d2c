package controlplane

import (
	"bytes"
	"context"
	"fmt"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics are the metrics of the API server at one moment, by name. Requests are counted in
// apiserver_request_total, by verb, group, version, resource, subresource, scope and code, whoever
// asked; who it was is in the audit log ([Config.Audit]).
type Metrics map[string]*dto.MetricFamily

// Metrics asks the API server for its metrics.
func (p *Plane) Metrics(ctx context.Context) (Metrics, error) {
	text, err := get(ctx, p.http, p.admin.Host+"/metrics")
	if err != nil {
		return nil, fmt.Errorf("get metrics of the API server: %w", err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("parse metrics of the API server: %w", err)
	}
	return families, nil
}

// Sum adds up the samples of one metric whose labels have all the values in labels; histograms and
// summaries by the number of what they observed. A metric that is not there sums up to zero.
func (m Metrics) Sum(name string, labels map[string]string) float64 {
	var sum float64
	for _, metric := range m[name].GetMetric() {
		matched := 0
		for _, l := range metric.GetLabel() {
			if want, ok := labels[l.GetName()]; ok && want == l.GetValue() {
				matched++
			}
		}
		if matched < len(labels) {
			continue
		}
		sum += metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + metric.GetUntyped().GetValue() +
			float64(metric.GetHistogram().GetSampleCount()) + float64(metric.GetSummary().GetSampleCount())
	}
	return sum
}

// Requests is the number of requests that the API server has answered for a verb in upper case
// ("POST", "LIST", "WATCH", "DELETE") on a resource in the plural ("certificaterequests"). A watch
// counts when it ends.
func (m Metrics) Requests(verb, resource string) float64 {
	return m.Sum("apiserver_request_total", map[string]string{"verb": verb, "resource": resource})
}
