package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// side is one way to get certificates.
type side interface {
	name() string
	// open prepares what callers need before the clock runs.
	open(ctx context.Context, callers int) error
	// certificate gets one; n counts up, and caller says whose turn it is.
	certificate(ctx context.Context, caller, n int) (time.Duration, error)
	// settle waits until no CertificateRequest is left.
	settle(ctx context.Context) error
	close()
}

// result is one measurement.
type result struct {
	rate        float64 // certificates per second, until everything is gone
	loadRate    float64 // certificates per second, until the last one was answered
	p50, p99    time.Duration
	requests    float64            // at the API server per certificate, without those of cert-manager and token reviews
	reviews     float64            // token reviews per certificate
	cpuOf       map[string]float64 // milliseconds of CPU per certificate, by process
	loadCPU     map[string]float64 // the part of it until the last one was answered
	certificate int
}

func (r result) String() string {
	return fmt.Sprintf("%6.1f/s (%6.1f/s while loaded)  p50 %6.1f ms  p99 %6.1f ms  %.2f requests + %.2f reviews, CPU ms (while loaded): apiserver %.1f (%.1f) etcd %.1f (%.1f) cert-manager %.1f (%.1f) signet %.1f (%.1f) bench %.1f (%.1f)",
		r.rate, r.loadRate, ms(r.p50), ms(r.p99), r.requests, r.reviews, r.cpuOf["apiserver"], r.loadCPU["apiserver"], r.cpuOf["etcd"], r.loadCPU["etcd"], r.cpuOf["cert-manager"], r.loadCPU["cert-manager"], r.cpuOf["signet"], r.loadCPU["signet"], r.cpuOf["bench"], r.loadCPU["bench"])
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// once measures one side under one load, from nothing to nothing.
func (b *bench) once(ctx context.Context, s side, l load) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	if err := s.open(ctx, l.callers); err != nil {
		return result{}, err
	}
	defer s.close()
	if err := b.prepareCSRs(l.certificates); err != nil {
		return result{}, err
	}
	if left, err := b.objects(ctx); err != nil || left != 0 {
		return result{}, fmt.Errorf("%d CertificateRequests are there before the start: %w", left, err)
	}
	before, err := b.counters(ctx)
	if err != nil {
		return result{}, err
	}

	began := time.Now()
	latencies := make([]time.Duration, l.certificates)
	next := make(chan int)
	group, groupCtx := errgroup.WithContext(ctx)
	for caller := range l.callers {
		group.Go(func() error {
			for n := range next {
				took, err := s.certificate(groupCtx, caller, n)
				if err != nil {
					return err
				}
				latencies[n] = took
			}
			return nil
		})
	}
feeding:
	for n := range l.certificates {
		select {
		case next <- n:
		case <-groupCtx.Done():
			break feeding
		}
	}
	close(next)
	if err := group.Wait(); err != nil {
		return result{}, err
	}
	loaded := time.Since(began)
	middle, err := b.counters(ctx)
	if err != nil {
		return result{}, err
	}
	if err := s.settle(ctx); err != nil {
		return result{}, err
	}
	whole := time.Since(began)

	after, err := b.counters(ctx)
	if err != nil {
		return result{}, err
	}
	if left, err := b.objects(ctx); err != nil || left != 0 {
		return result{}, fmt.Errorf("%d CertificateRequests are left at the end: %w", left, err)
	}
	n := float64(l.certificates)
	slices.Sort(latencies)
	r := result{
		rate:        n / whole.Seconds(),
		loadRate:    n / loaded.Seconds(),
		p50:         latencies[len(latencies)/2],
		p99:         latencies[len(latencies)*99/100],
		requests:    (after.requests - before.requests) / n,
		reviews:     (after.reviews - before.reviews) / n,
		cpuOf:       make(map[string]float64),
		loadCPU:     make(map[string]float64),
		certificate: l.certificates,
	}
	for name, cpu := range after.cpu {
		r.cpuOf[name] = ms(cpu-before.cpu[name]) / n
		r.loadCPU[name] = ms(middle.cpu[name]-before.cpu[name]) / n
	}
	return r, nil
}

// counters are what is counted at the API server and by the kernel.
type counters struct {
	requests, reviews float64
	cpu               map[string]time.Duration
}

func (b *bench) counters(ctx context.Context) (counters, error) {
	m, err := b.plane.Metrics(ctx)
	if err != nil {
		return counters{}, err
	}
	c := counters{reviews: m.Requests("POST", "tokenreviews"), cpu: make(map[string]time.Duration)}
	// cert-manager's controllers only watch, and write with PUT, PATCH and APPLY.
	for _, verb := range []string{"POST", "DELETE", "DELETECOLLECTION", "GET", "LIST"} {
		c.requests += m.Requests(verb, "certificaterequests")
	}
	for _, verb := range []string{"POST", "PUT", "GET"} {
		c.requests += m.Requests(verb, "leases")
	}
	for name, pid := range map[string]int{
		"bench": os.Getpid(), "apiserver": b.plane.APIServer().PID(), "etcd": b.plane.Etcd().PID(), "cert-manager": b.plane.CertManager().PID(), "signet": b.replica.Process().PID(),
	} {
		if c.cpu[name], err = cpuTime(pid); err != nil {
			return counters{}, err
		}
	}
	return c, nil
}

// cpuTime is the CPU time that a process has used, user and system (proc(5), fields 14 and 15, in
// hundredths of a second).
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	var sum time.Duration
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(ticks) * 10 * time.Millisecond
	}
	return sum, nil
}
