package ledger

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of the ledger. Durations are in seconds; no label holds an identity.
type metrics struct {
	records    *prometheus.CounterVec
	failures   *prometheus.CounterVec
	dropped    prometheus.Counter
	took       prometheus.Histogram
	commits    prometheus.Histogram
	batches    prometheus.Histogram
	refusals   prometheus.Counter
	folded     prometheus.Counter
	deleted    *prometheus.CounterVec
	shipped    prometheus.Counter
	shipFailed prometheus.Counter
	unshipped  prometheus.Counter
	expelled   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, s *Store) *metrics {
	latency := prometheus.ExponentialBuckets(0.0001, 2, 16) // 0.1ms to 3.3s
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ledger_records_total", Help: "Issuances that are durable, by source: own, observed. Those known before count again.",
		}, []string{"source"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ledger_record_failures_total", Help: "Issuances that could not be recorded, by reason: full, write, serial, closed, canceled, other.",
		}, []string{"reason"}),
		dropped: counter("ledger_unrecorded_total", "Certificates that went out without a record, because failOpen is set."),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ledger_record_duration_seconds", Help: "Time that a caller waits for its record to be durable.", Buckets: latency,
		}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ledger_commit_duration_seconds", Help: "Time of one transaction that records share.", Buckets: latency,
		}),
		batches: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ledger_commit_records", Help: "Records in one transaction.", Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		refusals: counter("ledger_refusals_total", "Refusals that were counted."),
		folded:   counter("ledger_refusals_folded_total", "Those of them that are counted without the caller, because there were too many or the disk is low."),
		deleted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ledger_deleted_total", Help: "Rows that retention deleted, by kind: issuance, refusal.",
		}, []string{"kind"}),
		shipped:    counter("ledger_shipped_total", "Records that were sent to the shared view."),
		shipFailed: counter("ledger_ship_failures_total", "Tries to send records to the shared view that failed."),
		unshipped:  counter("ledger_unshipped_total", "Records that will never be in the shared view: it refused them, or they had to be deleted before."),
		expelled:   counter("ledger_deleted_valid_total", "Records that retention deleted although their certificates were still valid."),
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	reg.MustRegister(m.records, m.failures, m.dropped, m.took, m.commits, m.batches, m.refusals, m.folded, m.deleted, m.shipped, m.shipFailed, m.unshipped, m.expelled,
		gauge("ledger_queue_waiting", "Records that wait for the writer.", func() float64 {
			if s.writer == nil {
				return 0
			}
			return float64(len(s.writer.queue))
		}),
		gauge("ledger_failing", "1 while nothing can be recorded.", func() float64 {
			if s.writer != nil && s.writer.failing() {
				return 1
			}
			return 0
		}),
		gauge("ledger_disk_free_bytes", "Free space of the store's filesystem, as last seen.", func() float64 { free, _ := s.disk.free(); return float64(free) }),
		gauge("ledger_disk_reserve_bytes", "Free space that is kept for issuances: below it the counts of refusals wait in memory.", func() float64 { return float64(s.disk.reserve) }),
		gauge("ledger_file_bytes", "Size of the store's files.", func() float64 {
			var size int64
			for _, suffix := range []string{"", "-wal"} {
				if info, err := os.Stat(s.path + suffix); err == nil {
					size += info.Size()
				}
			}
			return float64(size)
		}),
		gauge("ledger_ship_lag_records", "Records that are not in the shared view yet.", func() float64 {
			if s.shipper == nil {
				return 0
			}
			return float64(s.shipper.lagRows.Load())
		}),
		gauge("ledger_ship_lag_seconds", "Age of the oldest record that is not in the shared view yet; 0 when there is none.", func() float64 {
			if s.shipper == nil {
				return 0
			}
			return s.shipper.lag(time.Now()).Seconds()
		}),
	)
	return m
}

// failureLabel is the reason of a record that failed.
func failureLabel(err error) string {
	for _, known := range []struct {
		err   error
		label string
	}{
		{ErrFull, "full"}, {ErrWrite, "write"}, {ErrSerialReused, "serial"}, {ErrClosed, "closed"},
		{context.Canceled, "canceled"}, {context.DeadlineExceeded, "canceled"},
	} {
		if errors.Is(err, known.err) {
			return known.label
		}
	}
	return "other"
}
