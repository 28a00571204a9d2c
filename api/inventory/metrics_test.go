package inventory

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
)

// scrape is all metrics as text.
func (r *rig) scrape() string {
	r.t.Helper()
	families, err := r.registry.Gather()
	require.NoError(r.t, err)
	var text strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			text.WriteString(f.GetName())
			if len(labels) > 0 {
				text.WriteString("{" + strings.Join(labels, ",") + "}")
			}
			fmt.Fprintf(&text, " %v\n", m.GetGauge().GetValue()+m.GetCounter().GetValue())
		}
	}
	return text.String()
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		assert.Contains(t, r.scrape(), `signet_services_with_problems{problem="any"} 0`)
		a, b, c := r.pod("shop", "a", "cart", sidecar), r.pod("shop", "b", "cart", sidecar), r.pod("shop", "c", "other", sidecar)
		r.service("shop", "cart", a, b)
		r.service("shop", "other", c)
		first := r.issue(a)
		r.issue(b, func(c *api.Certificate) { c.NotAfter = c.NotAfter.Add(time.Hour) })
		gone := r.pod("shop", "gone", "gone", sidecar)
		r.issue(gone)
		r.gone("pods", gone)
		time.Sleep(5 * time.Minute)
		r.look(time.Now())
		text := r.scrape()
		assert.Contains(t, text, fmt.Sprintf(`signet_identity_certificate_not_after_timestamp_seconds{namespace="shop",service_account="cart"} %v`, float64(first.NotAfter.Unix())))
		assert.Equal(t, 1, strings.Count(text, "signet_identity_certificate_not_after_timestamp_seconds{"), "holders that are gone don't count")
		for _, line := range []string{
			`signet_services_with_problems{problem="missing-certificate"} 1`, `signet_services_with_problems{problem="any"} 1`, `signet_services_with_problems{problem="overdue"} 0`,
			"signet_inventory_pods 3", "signet_inventory_services 2", "signet_inventory_certificates 3", "signet_identity_certificate_metric_incomplete 0",
		} {
			assert.Contains(t, text, line)
		}
		time.Sleep(time.Hour)
		r.look(time.Now())
		assert.Contains(t, r.scrape(), `service_account="cart"} `+fmt.Sprint(float64(first.NotAfter.Unix())), "one that wasn't renewed stays")
		assert.Contains(t, r.scrape(), `signet_services_with_problems{problem="any"} 2`)
	})
}

func TestTheIdentityMetricIsBounded(t *testing.T) {
	r := newRig(t, func(c *Config) { c.IdentityMetric.Max = 3 })
	for n := range 3000 {
		p := r.pod("shop", fmt.Sprint("p", n), fmt.Sprintf("sa-%04d", n/2), sidecar)
		r.issue(p, func(c *api.Certificate) { c.NotAfter = c.NotAfter.Add(time.Duration(n) * time.Second) })
	}
	text := r.scrape()
	assert.Equal(t, 3, strings.Count(text, "signet_identity_certificate_not_after_timestamp_seconds{"))
	for n := range 3 {
		assert.Contains(t, text, fmt.Sprintf(`service_account="sa-%04d"`, n), "those that end first")
	}
	assert.Contains(t, text, "signet_identity_certificate_metric_incomplete 1")

	r.identitiesOf(t, 1500)

	off := newRig(t, func(c *Config) { c.IdentityMetric.Disabled = true })
	off.issue(off.pod("shop", "a", "a", sidecar))
	assert.NotContains(t, off.scrape(), "identity_certificate_")
	assert.Contains(t, off.scrape(), `signet_identity_certificates{state="fresh"} 1`)
}

// identitiesOf checks that all accounts are told where they may be, over many locks.
func (r *rig) identitiesOf(t *testing.T, want int) {
	all := newRig(t)
	all.Inventory.index = r.index
	c := &leafMetrics{index: r.index, most: 10_000}
	all.registry.MustRegister(c)
	assert.Equal(t, want, strings.Count("\n"+all.scrape(), "\nidentity_certificate_not_after_timestamp_seconds{"))
}

// TestLeafMetrics: the live leaves by state, by what is left of their lives, and those that are overdue by namespace.
func TestLeafMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // what is left of them is the same however long issuing takes
		r := newRig(t)
		age := func(part float64) func(*api.Certificate) {
			return func(c *api.Certificate) {
				passed := time.Duration(part * float64(10*time.Hour))
				c.IssuedAt, c.NotBefore = c.IssuedAt.Add(-passed), c.NotBefore.Add(-passed)
				c.NotAfter = c.NotBefore.Add(10 * time.Hour)
			}
		}
		issue := func(namespace string, n int, part float64) {
			for range n {
				r.issue(r.pod(namespace, fmt.Sprint("p", r.nextIP), "sa", sidecar), age(part))
			}
		}
		issue("a", leavesLooked, 0.05) // so many that they are counted under several locks
		issue("a", 3, 0.52)
		issue("b", 2, 0.57)
		issue("b", 1, 1.5)
		issue("c", 1, 0.95)
		gone := r.pod("d", "gone", "sa", sidecar)
		r.issue(gone, age(0.9))
		r.gone("pods", gone)

		text := r.scrape()
		for _, line := range []string{
			`signet_identity_certificates{state="fresh"} 2048`, `signet_identity_certificates{state="due"} 3`, `signet_identity_certificates{state="overdue"} 3`, `signet_identity_certificates{state="expired"} 1`,
			`signet_identity_certificates_overdue{namespace="b"} 3`, `signet_identity_certificates_overdue{namespace="c"} 1`, `signet_identity_certificates_overdue_namespaces_left_out 0`,
		} {
			assert.Contains(t, text, line+"\n")
		}
		assert.NotContains(t, text, `overdue{namespace="a"}`)
		assert.NotContains(t, text, `overdue{namespace="d"}`)
		families, err := r.registry.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() != "signet_identity_certificates_remaining_ratio" {
				continue
			}
			h := f.GetMetric()[0].GetHistogram()
			assert.EqualValues(t, 2055, h.GetSampleCount())
			assert.InDelta(t, 2048*0.95+3*0.48+2*0.43+0.05, h.GetSampleSum(), 0.5)
			got := make(map[float64]uint64)
			for _, b := range h.GetBucket() {
				got[b.GetUpperBound()] = b.GetCumulativeCount()
			}
			assert.Equal(t, map[float64]uint64{0: 1, 0.1: 2, 0.2: 2, 0.3: 2, 0.4: 2, 0.45: 4, 0.5: 7, 0.6: 7, 0.7: 7, 0.8: 7, 0.9: 7, 1: 2055}, got)
			return
		}
		t.Fatal("there is no histogram")
	})
}

func TestNamespacesWithOverdueLeavesAreBounded(t *testing.T) {
	r := newRig(t)
	late := func(c *api.Certificate) {
		c.IssuedAt, c.NotBefore = c.IssuedAt.Add(-10*time.Hour), c.NotBefore.Add(-10*time.Hour)
	}
	for n := range namespacesOverdue + 7 {
		namespace := fmt.Sprintf("n%03d", n)
		r.issue(r.pod(namespace, "p", "sa", sidecar), late)
		if n%2 == 1 {
			r.issue(r.pod(namespace, "q", "sa", sidecar), late)
		}
	}
	text := r.scrape()
	assert.Equal(t, namespacesOverdue, strings.Count(text, "signet_identity_certificates_overdue{"))
	assert.Contains(t, text, "signet_identity_certificates_overdue_namespaces_left_out 7\n")
	assert.NotContains(t, text, `signet_identity_certificates_overdue{namespace="n506"}`, "those with the fewest")
	assert.Contains(t, text, `signet_identity_certificates_overdue{namespace="n505"} 2`)
}
