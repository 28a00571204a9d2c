package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// report collects the results and prints medians.
type report struct {
	results map[key][]result
}

// key names one figure's measurements.
type key struct {
	side    string
	callers int
	rsa     bool
}

func newReport() *report { return &report{results: make(map[key][]result)} }

func (r *report) add(side string, callers int, rsa bool, result result) {
	k := key{side, callers, rsa}
	r.results[k] = append(r.results[k], result)
}

// median is the middle of one figure over the rounds.
func (r *report) median(k key, figure func(result) float64) float64 {
	var values []float64
	for _, result := range r.results[k] {
		values = append(values, figure(result))
	}
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

func rate(r result) float64     { return r.rate }
func loadRate(r result) float64 { return r.loadRate }
func p50(r result) float64      { return ms(r.p50) }
func p99(r result) float64      { return ms(r.p99) }
func requests(r result) float64 { return r.requests }
func reviews(r result) float64  { return r.reviews }

func cpu(name string) func(result) float64 {
	return func(r result) float64 { return r.cpuOf[name] }
}

// print writes a table for people, and the lines.
func (r *report) print(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "key\tcallers\tside\trate/s\tloaded/s\tp50 ms\tp99 ms\trequests\treviews\tapiserver CPU ms\tetcd\tcert-manager\tsignet\t")
	for _, rsa := range []bool{false, true} {
		for _, l := range loads {
			for _, side := range []string{"bare", "signet"} {
				k := key{side, l.callers, rsa}
				if len(r.results[k]) == 0 {
					continue
				}
				fmt.Fprintf(table, "%s\t%d\t%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.2f\t%.2f\t%.1f\t%.1f\t%.1f\t%.1f\t\n", keyName(rsa), l.callers, side,
					r.median(k, rate), r.median(k, loadRate), r.median(k, p50), r.median(k, p99), r.median(k, requests), r.median(k, reviews),
					r.median(k, cpu("apiserver")), r.median(k, cpu("etcd")), r.median(k, cpu("cert-manager")), r.median(k, cpu("signet")))
			}
		}
	}
	table.Flush()
	fmt.Fprintln(out)

	for _, rsa := range []bool{false, true} {
		suffix := ""
		if rsa {
			suffix = "_rsa"
		}
		for _, l := range loads {
			bare, signet := key{"bare", l.callers, rsa}, key{"signet", l.callers, rsa}
			if len(r.results[bare]) == 0 {
				continue
			}
			c := fmt.Sprintf("_c%d%s", l.callers, suffix)
			line := func(name string, value float64) { fmt.Fprintf(out, "bench: %s %.3f\n", name+c, value) }
			line("rate_bare", r.median(bare, rate))
			line("rate_signet", r.median(signet, rate))
			line("ratio", r.median(signet, rate)/r.median(bare, rate))
			line("ratio_loaded", r.median(signet, loadRate)/r.median(bare, loadRate))
			line("p50_delta_ms", r.median(signet, p50)-r.median(bare, p50))
			line("p99_delta_ms", r.median(signet, p99)-r.median(bare, p99))
			line("token_reviews_per_certificate", r.median(signet, reviews))
		}
	}
	// Over all loads: the worst of the medians.
	most := 0.0
	for k := range r.results {
		if k.side == "signet" {
			most = max(most, r.median(k, requests))
		}
	}
	fmt.Fprintf(out, "bench: api_requests_per_certificate %.3f\n", most)
}

func keyName(rsa bool) string {
	if rsa {
		return "RSA-2048"
	}
	return "P-256"
}
