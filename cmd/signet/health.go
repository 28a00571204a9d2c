package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// check is one condition of readiness: something this replica can do by itself.
type check struct {
	name string
	ask  func(now time.Time) (string, error)
}

// readiness answers /readyz. The state of the issuers and of what is distributed is shown beside the checks but
// doesn't count: it would take every replica out of the Service at once.
type readiness struct {
	checks []check
	shown  []shown
}

var readinessDesc = prometheus.NewDesc("readiness_check", "1 while a condition of readiness holds, else 0; a replica is ready when all do.", []string{"check"}, nil)

// Describe implements [prometheus.Collector].
func (r *readiness) Describe(to chan<- *prometheus.Desc) { to <- readinessDesc }

// Collect implements [prometheus.Collector].
func (r *readiness) Collect(to chan<- prometheus.Metric) {
	now := time.Now()
	for _, c := range r.checks {
		value := 1.0
		if _, err := c.ask(now); err != nil {
			value = 0
		}
		to <- prometheus.MustNewConstMetric(readinessDesc, prometheus.GaugeValue, value, c.name)
	}
}

// shown is what is said beside the checks, in one or several lines.
type shown struct {
	name string
	ask  func(now time.Time) []string
}

// shownBy shows what a check says, which doesn't count.
func shownBy(name string, ask func(now time.Time) (string, error)) shown {
	return shown{name, func(now time.Time) []string {
		text, err := ask(now)
		if err != nil {
			text = err.Error()
		}
		return []string{text}
	}}
}

// ServeHTTP answers 200 when all checks pass and 503 otherwise; the body has a line for each.
func (r *readiness) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	var body strings.Builder
	ready := true
	now := time.Now()
	for _, c := range r.checks {
		text, err := c.ask(now)
		if err != nil {
			ready = false
			fmt.Fprintf(&body, "[-] %s: %v\n", c.name, err)
			continue
		}
		fmt.Fprintf(&body, "[+] %s: %s\n", c.name, text)
	}
	for _, s := range r.shown {
		for _, line := range s.ask(now) {
			fmt.Fprintf(&body, "[i] %s: %s\n", s.name, line)
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprint(w, body.String())
}

// synced says whether an informer holds what the API server has.
func synced(informer cache.Informer) func(time.Time) (string, error) {
	return func(time.Time) (string, error) {
		if !informer.HasSynced() {
			return "", errors.New("the CertificateRequests are not synced yet")
		}
		return "synced", nil
	}
}

func livez(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}
