package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/signet-ca/signet/version"
)

// buildInfo tells what this replica was built from.
func buildInfo() prometheus.Collector {
	is := version.Current()
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "build_info",
		Help:        "Always 1; the labels say what the replica was built from.",
		ConstLabels: prometheus.Labels{"version": is.Version, "commit": is.Commit, "goversion": is.Go},
	}, func() float64 { return 1 })
}
