package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
)

// listenHTTP listens for probes, which ask ready, and for metrics, those of registry and those that libraries have.
func listenHTTP(ctx context.Context, cfg Config, ready *readiness, registry prometheus.Gatherer, log *slog.Logger) ([]manager.Runnable, error) {
	probes, metrics := http.NewServeMux(), http.NewServeMux()
	probes.HandleFunc("/livez", livez)
	probes.Handle("/readyz", ready)
	// The library's registry has what is known of the Go runtime and the process.
	metrics.Handle("/metrics", promhttp.HandlerFor(prometheus.Gatherers{registry, ctrlmetrics.Registry}, promhttp.HandlerOpts{}))
	healthServer, err := newHTTP(ctx, "health", cmp.Or(cfg.Health.Listen, ":6060"), probes, log)
	if err != nil {
		return nil, err
	}
	metricsServer, err := newHTTP(ctx, "metrics", cmp.Or(cfg.Metrics.Listen, ":9402"), metrics, log)
	if err != nil {
		return nil, err
	}
	return []manager.Runnable{healthServer, metricsServer}, nil
}

// newHTTP opens a listener now, so that an address that is taken ends the start, and returns the
// server that the manager runs on it.
func newHTTP(ctx context.Context, name, address string, handler http.Handler, log *slog.Logger) (*manager.Server, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", name, err)
	}
	log.Info("listening", "endpoint", name, "address", listener.Addr().String())
	return &manager.Server{
		Name:     name,
		Listener: listener,
		Server: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      30 * time.Second,
			IdleTimeout:       90 * time.Second,
			MaxHeaderBytes:    16 << 10,
		},
	}, nil
}
