package inventory

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
)

func TestServicesInPages(t *testing.T) {
	r := newRig(t)
	var want []string
	for _, namespace := range []string{"a", "a-b", "b", "c"} {
		for n := range 7 {
			r.service(namespace, fmt.Sprint("s", n))
			want = append(want, fmt.Sprint(namespace, "/s", n))
		}
	}
	for _, limit := range []int{1, 2, 7, 27, 28, 29, 500, 0, 10_000} {
		assert.Equal(t, want, r.all(api.ServiceQuery{Page: api.Page{Limit: limit}}), limit)
		assert.Equal(t, want[7:14], r.all(api.ServiceQuery{Page: api.Page{Limit: limit}, Namespace: "a-b"}), limit)
	}
	assert.Empty(t, r.all(api.ServiceQuery{Namespace: "aa"}))

	list, err := r.Services(t.Context(), api.ServiceQuery{Page: api.Page{Limit: 28}, Visible: everything{}})
	require.NoError(t, err)
	assert.Len(t, list.Items, 28)
	assert.Empty(t, list.Continue, "there is no other page")
	assert.False(t, list.Restricted)
}

// TestPagesAreStable: what comes and goes between two pages neither repeats nor hides any other.
func TestPagesAreStable(t *testing.T) {
	r := newRig(t)
	for n := range 10 {
		r.service("ns", fmt.Sprint("s", n))
	}
	q := api.ServiceQuery{Page: api.Page{Limit: 3}, Visible: everything{}}
	first, err := r.Services(t.Context(), q)
	require.NoError(t, err)
	r.gone("services", metadata("ns", "s2", nil)) // the last of the page
	r.gone("services", metadata("ns", "s3", nil))
	r.service("ns", "s0a")
	r.service("ns", "s4a")
	q.Continue, q.Limit = first.Continue, 4
	second, err := r.Services(t.Context(), q)
	require.NoError(t, err)
	var names []string
	for _, s := range second.Items {
		names = append(names, s.Name)
	}
	assert.Equal(t, []string{"s4", "s4a", "s5", "s6"}, names)
}

func TestOnlyProblems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var want []string
		for n := range 1200 {
			name := fmt.Sprintf("s%04d", n)
			p := r.pod("ns", name, name, sidecar)
			r.service("ns", name, p)
			if n%400 == 399 {
				want = append(want, "ns/"+name)
			} else {
				r.issue(p)
			}
		}
		time.Sleep(3 * time.Minute)
		for _, limit := range []int{1, 2, 3, 500} {
			assert.Equal(t, want, r.all(api.ServiceQuery{Page: api.Page{Limit: limit}, Problems: true}), limit)
		}
		list, err := r.Services(t.Context(), api.ServiceQuery{Page: api.Page{Limit: 3}, Visible: everything{}, Problems: true})
		require.NoError(t, err)
		assert.Empty(t, list.Continue)
	})
}

func TestBrokenContinues(t *testing.T) {
	r := newRig(t)
	for n := range 4 {
		p := r.pod("ns", fmt.Sprint("p", n), "sa", sidecar)
		r.service("ns", fmt.Sprint("s", n), p)
		r.issue(p)
		r.issue(p, func(c *api.Certificate) { c.IssuedAt = c.IssuedAt.Add(time.Second) })
	}
	page := func(next string) api.Page { return api.Page{Limit: 2, Continue: next} }
	services := func(next string, change func(*api.ServiceQuery)) (string, error) {
		q := api.ServiceQuery{Page: page(next), Visible: everything{}}
		change(&q)
		list, err := r.Services(t.Context(), q)
		if err != nil {
			return "", err
		}
		return list.Continue, nil
	}
	certificates := func(next string, change func(*api.CertificateQuery)) (string, error) {
		q := api.CertificateQuery{Page: page(next), Visible: everything{}}
		change(&q)
		list, err := r.Certificates(t.Context(), q)
		if err != nil {
			return "", err
		}
		return list.Continue, nil
	}
	expiring := func(next string) error {
		_, err := r.Expiring(t.Context(), api.CertificateQuery{Page: page(next), Visible: everything{}})
		return err
	}
	issuances := func(next string, since time.Time) (string, error) {
		list, err := r.Issuances(t.Context(), api.IssuanceQuery{Page: page(next), Visible: everything{}, Since: since})
		if err != nil {
			return "", err
		}
		return list.Continue, nil
	}
	same := func(*api.ServiceQuery) {}
	plain := func(*api.CertificateQuery) {}
	records := func(q *api.CertificateQuery) { q.Standing = AnyStanding }

	s, err := services("", same)
	require.NoError(t, err)
	c, err := certificates("", plain)
	require.NoError(t, err)
	a, err := certificates("", records)
	require.NoError(t, err)
	i, err := issuances("", time.Time{})
	require.NoError(t, err)
	for _, next := range []string{s, c, a, i} {
		require.NotEmpty(t, next)
	}
	_, err = services(s, same)
	require.NoError(t, err)

	raw, err := base64.RawURLEncoding.DecodeString(s)
	require.NoError(t, err)
	raw[len(raw)-3] ^= 1
	for _, broken := range []string{"x", "!", s[:len(s)-2], s + "AA", " " + s, base64.RawURLEncoding.EncodeToString(raw), c, a, i, strings.Repeat("A", 1000)} {
		_, err := services(broken, same)
		assert.ErrorIs(t, err, api.ErrBadContinue, broken)
	}
	for name, change := range map[string]func(*api.ServiceQuery){
		"namespace": func(q *api.ServiceQuery) { q.Namespace = "ns" },
		"problems":  func(q *api.ServiceQuery) { q.Problems = true },
	} {
		_, err := services(s, change)
		assert.ErrorIs(t, err, api.ErrBadContinue, name)
	}
	for name, change := range map[string]func(*api.CertificateQuery){
		"namespace": func(q *api.CertificateQuery) { q.Namespace = "ns" },
		"identity":  func(q *api.CertificateQuery) { q.Identity = identityOf("ns", "sa") },
		"SAN":       func(q *api.CertificateQuery) { q.SAN = identityOf("ns", "sa") },
		"serial":    func(q *api.CertificateQuery) { q.Serial = "01" },
		"node":      func(q *api.CertificateQuery) { q.Node = "node-a" },
		"issuer":    func(q *api.CertificateQuery) { q.Issuer = "x" },
		"state":     func(q *api.CertificateQuery) { q.State = api.Fresh },
		"standing":  func(q *api.CertificateQuery) { q.Standing = api.Orphaned },
		"within":    func(q *api.CertificateQuery) { q.ExpiresWithin = time.Hour },
		"ratio":     func(q *api.CertificateQuery) { q.RemainingRatioBelow = 0.5 },
	} {
		_, err := certificates(c, change)
		assert.ErrorIs(t, err, api.ErrBadContinue, name)
	}
	assert.ErrorIs(t, expiring(c), api.ErrBadContinue)
	_, err = certificates(a, plain)
	assert.ErrorIs(t, err, api.ErrBadContinue)
	_, err = issuances(i, time.Unix(1, 0))
	assert.ErrorIs(t, err, api.ErrBadContinue)
	_, err = issuances(a, time.Time{})
	assert.ErrorIs(t, err, api.ErrBadContinue)
	// Live is what is meant where nothing is said.
	_, err = certificates(c, func(q *api.CertificateQuery) { q.Standing = api.Live })
	assert.NoError(t, err)
}

func TestWhatMayBeSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var mine []string
		for n := range 30 {
			namespace := fmt.Sprintf("ns-%02d", n)
			for m := range 5 {
				p := r.pod(namespace, fmt.Sprint("p", m), "sa", sidecar)
				r.service(namespace, fmt.Sprint("s", m), p)
				c := r.issue(p)
				r.records.refuse(api.Issuance{Time: time.Now(), Outcome: api.Refused, Refusal: &api.Refusal{Namespace: namespace, Reason: "csr"}})
				if n%10 == 3 {
					mine = append(mine, c.SHA256)
				}
			}
		}
		r.records.refuse(api.Issuance{Time: time.Now(), Outcome: api.Refused, Refusal: &api.Refusal{Reason: "token"}})
		few := these{"ns-03", "ns-13", "ns-23", "gone"}
		for _, limit := range []int{1, 4, 5, 500} {
			names := r.all(api.ServiceQuery{Page: api.Page{Limit: limit}, Visible: few})
			require.Len(t, names, 15)
			for n, name := range names {
				assert.Equal(t, fmt.Sprintf("ns-%d3/s%d", n/5, n%5), name)
			}
			for name, q := range map[string]api.CertificateQuery{"live": {}, "any": {Standing: AnyStanding}} {
				q.Visible, q.Limit = few, limit
				assert.ElementsMatch(t, mine, r.digests(q, r.Certificates), "%s %d", name, limit)
			}
			assert.ElementsMatch(t, mine, r.digests(api.CertificateQuery{Page: api.Page{Limit: limit}, Visible: few}, r.Expiring))
			lines := r.audit(api.IssuanceQuery{Page: api.Page{Limit: limit}, Visible: few})
			assert.Len(t, lines, 30)
		}
		assert.Equal(t, []string{"ns-03", "ns-13", "ns-23"}, r.records.last.Namespaces, "the records aren't asked for more")

		var many these
		for n := range 20 {
			many = append(many, fmt.Sprintf("ns-%02d", n))
		}
		assert.Len(t, r.digests(api.CertificateQuery{Page: api.Page{Limit: 7}, Visible: many, Standing: AnyStanding}, r.Certificates), 100)
		assert.Nil(t, r.records.last.Namespaces)
		assert.Len(t, r.audit(api.IssuanceQuery{Page: api.Page{Limit: 7}, Visible: many}), 200)
		assert.Len(t, r.audit(api.IssuanceQuery{Visible: everything{}}), 301, "what belongs to no namespace is seen by who may see all")

		assert.Len(t, r.audit(api.IssuanceQuery{Visible: each{}}), 300, "who may see each namespace may not see what belongs to none")

		for name, v := range map[string]api.Visible{"nothing": these{}, "nobody": nil, "another": these{"gone"}} {
			services, err := r.Services(t.Context(), api.ServiceQuery{Visible: v})
			require.NoError(t, err)
			assert.Empty(t, services.Items, name)
			assert.NotNil(t, services.Items)
			assert.True(t, services.Restricted)
			for _, standing := range []api.Standing{api.Live, AnyStanding} {
				list, err := r.Certificates(t.Context(), api.CertificateQuery{Visible: v, Standing: standing})
				require.NoError(t, err)
				assert.Empty(t, list.Items, name)
				assert.True(t, list.Restricted)
			}
			list, err := r.Issuances(t.Context(), api.IssuanceQuery{Visible: v})
			require.NoError(t, err)
			assert.Empty(t, list.Items, name)
		}
		one, err := r.Services(t.Context(), api.ServiceQuery{Visible: few, Namespace: "ns-03"})
		require.NoError(t, err)
		assert.Len(t, one.Items, 5)
		assert.False(t, one.Restricted, "nothing is left out of what was asked for")
		one, err = r.Services(t.Context(), api.ServiceQuery{Visible: few, Namespace: "ns-04"})
		require.NoError(t, err)
		assert.Empty(t, one.Items)
	})
}

// each namespace may be seen, but not what belongs to none.
type each struct{}

func (each) All() bool             { return false }
func (each) Namespace(string) bool { return true }

// audit walks through the audit in pages.
func (r *rig) audit(q api.IssuanceQuery) []api.Issuance {
	r.t.Helper()
	var all []api.Issuance
	for {
		page, err := r.Issuances(r.t.Context(), q)
		require.NoError(r.t, err)
		limit := limitOf(q.Page)
		assert.LessOrEqual(r.t, len(page.Items), limit)
		for _, line := range page.Items {
			if line.Certificate != nil {
				require.Empty(r.t, line.Certificate.PEM)
			}
		}
		all = append(all, page.Items...)
		if q.Continue = page.Continue; q.Continue == "" {
			return all
		}
	}
}

func TestCertificatesFiltered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		type made struct {
			api.Certificate
			odd bool
		}
		var all []made
		for n := range 200 {
			namespace, account := fmt.Sprint("ns-", n%4), fmt.Sprint("sa-", n%7)
			p := r.pod(namespace, fmt.Sprint("p", n), account, sidecar, on(fmt.Sprint("node-", n%5)))
			c := r.issue(p, func(c *api.Certificate) {
				c.IssuedAt = c.IssuedAt.Add(time.Duration(n%50) * time.Second)
				c.NotAfter = c.NotBefore.Add(time.Duration(1+n%9) * time.Hour)
				if n%11 == 0 {
					c.SANs = append(c.SANs, "DNS:web.example")
				}
				if n%13 == 0 {
					c.Issuer = "Issuer.cert-manager.io/other"
				}
			})
			all = append(all, made{c, n%11 == 0})
		}
		time.Sleep(100 * time.Minute)
		now := time.Now()
		for name, c := range map[string]struct {
			q    api.CertificateQuery
			want func(made) bool
		}{
			"all":               {api.CertificateQuery{}, func(made) bool { return true }},
			"namespace":         {api.CertificateQuery{Namespace: "ns-2"}, func(m made) bool { return m.Namespace == "ns-2" }},
			"no such namespace": {api.CertificateQuery{Namespace: "ns-9"}, func(made) bool { return false }},
			"identity":          {api.CertificateQuery{Identity: identityOf("ns-1", "sa-3")}, func(m made) bool { return m.Identity == identityOf("ns-1", "sa-3") }},
			"another domain":    {api.CertificateQuery{Identity: "spiffe://old/ns/ns-1/sa/sa-3"}, func(made) bool { return false }},
			"odd identity":      {api.CertificateQuery{Identity: "'; DROP TABLE issuance; --"}, func(made) bool { return false }},
			"SAN":               {api.CertificateQuery{SAN: identityOf("ns-1", "sa-3")}, func(m made) bool { return m.Identity == identityOf("ns-1", "sa-3") }},
			"SAN with its kind": {api.CertificateQuery{SAN: "URI:" + identityOf("ns-1", "sa-3")}, func(m made) bool { return m.Identity == identityOf("ns-1", "sa-3") }},
			"DNS name":          {api.CertificateQuery{SAN: "web.example"}, func(m made) bool { return m.odd }},
			"DNS name, kind":    {api.CertificateQuery{SAN: "DNS:web.example"}, func(m made) bool { return m.odd }},
			"serial":            {api.CertificateQuery{Serial: all[17].Serial}, func(m made) bool { return m.Serial == all[17].Serial }},
			"serial, short":     {api.CertificateQuery{Serial: strings.ToUpper(strings.TrimLeft(all[170].Serial, "0"))}, func(m made) bool { return m.Serial == all[170].Serial }},
			"serial, colons":    {api.CertificateQuery{Serial: all[17].Serial[:2] + ":" + all[17].Serial[2:]}, func(m made) bool { return m.Serial == all[17].Serial }},
			"serial zero":       {api.CertificateQuery{Serial: "00"}, func(made) bool { return false }},
			"no serial":         {api.CertificateQuery{Serial: "zz"}, func(made) bool { return false }},
			"node":              {api.CertificateQuery{Node: "node-3"}, func(m made) bool { return m.Holder.Node == "node-3" }},
			"issuer":            {api.CertificateQuery{Issuer: "Issuer.cert-manager.io/other"}, func(m made) bool { return m.Issuer == "Issuer.cert-manager.io/other" }},
			"overdue": {api.CertificateQuery{State: api.Overdue}, func(m made) bool {
				return m.NotAfter.After(now) && now.Sub(m.NotBefore) >= m.NotAfter.Sub(m.NotBefore)*55/100
			}},
			"within": {api.CertificateQuery{ExpiresWithin: 2 * time.Hour}, func(m made) bool { return !m.NotAfter.After(now.Add(2 * time.Hour)) }},
			"ratio": {api.CertificateQuery{RemainingRatioBelow: 0.6}, func(m made) bool {
				return float64(m.NotAfter.Sub(now))/float64(m.NotAfter.Sub(m.NotBefore)) < 0.6
			}},
			"two": {api.CertificateQuery{Node: "node-1", Namespace: "ns-1"}, func(m made) bool { return m.Holder.Node == "node-1" && m.Namespace == "ns-1" }},
		} {
			var live []made
			for _, m := range all {
				if m.NotAfter.After(now) && c.want(m) {
					live = append(live, m)
				}
			}
			slices.SortFunc(live, func(a, b made) int {
				if d := b.IssuedAt.Compare(a.IssuedAt); d != 0 {
					return d
				}
				return strings.Compare(a.SHA256, b.SHA256)
			})
			want := []string{}
			for _, m := range live {
				want = append(want, m.SHA256)
			}
			for _, limit := range []int{3, 500} {
				q := c.q
				q.Limit = limit
				assert.Equal(t, want, r.digests(q, r.Certificates), "%s, in pages of %d", name, limit)
				assert.ElementsMatch(t, want, r.digests(q, r.Expiring), "%s, expiring, in pages of %d", name, limit)
				q.Standing = AnyStanding
				assert.Subset(t, r.digests(q, r.Certificates), want, "%s, of the records, in pages of %d", name, limit)
			}
		}
		assert.Empty(t, r.digests(api.CertificateQuery{Serial: "00", Standing: AnyStanding}, r.Certificates), "zero is a serial number, of none of them")
		// The order of the ends.
		page, err := r.Expiring(t.Context(), api.CertificateQuery{Visible: everything{}, Page: api.Page{Limit: 300}})
		require.NoError(t, err)
		assert.True(t, slices.IsSortedFunc(page.Items, func(a, b api.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }))
		ended, err := r.Certificates(t.Context(), api.CertificateQuery{Visible: everything{}, Standing: api.Ended, Page: api.Page{Limit: 300}})
		require.NoError(t, err)
		assert.Len(t, ended.Items, 23, "those of an hour")
		for _, c := range ended.Items {
			assert.Equal(t, api.Expired, c.State)
			assert.Zero(t, c.RemainingSeconds)
		}
	})
}

// TestManyCertificates: each comes once, over pages and over locks.
func TestManyCertificates(t *testing.T) {
	r := newRig(t)
	want := make(map[string]bool)
	for n := range 3 * leavesLooked {
		p := r.pod("ns", fmt.Sprint("p", n), "sa", on(fmt.Sprint("node-", n%3000)))
		c := r.issue(p, func(c *api.Certificate) { c.IssuedAt = c.IssuedAt.Add(-time.Duration(n/10) * time.Millisecond) })
		want[c.SHA256] = true
	}
	for name, list := range map[string]func(context.Context, api.CertificateQuery) (*api.CertificateList, error){"certificates": r.Certificates, "expiring": r.Expiring} {
		for _, limit := range []int{255, 256, 257, 500} {
			all := r.digests(api.CertificateQuery{Page: api.Page{Limit: limit}}, list)
			require.Len(t, all, len(want), "%s in pages of %d", name, limit)
			require.Len(t, slices.Compact(slices.Sorted(slices.Values(all))), len(want))
		}
		assert.Len(t, r.digests(api.CertificateQuery{Node: "node-7"}, list), 3, name)
	}
}

// TestRecordsAreAskedTheSame: what is asked for doesn't change from page to page, though time goes on.
func TestRecordsAreAskedTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		p := r.pod("ns", "p", "sa", sidecar)
		for range 5 {
			r.issue(p)
			time.Sleep(2 * time.Hour)
		}
		for _, standing := range []api.Standing{api.Ended, AnyStanding} {
			q := api.CertificateQuery{Page: api.Page{Limit: 1}, Visible: these{"ns"}, Standing: standing, ExpiresWithin: 100 * time.Hour}
			var asked RecordQuery
			for n := range 5 {
				list, err := r.Certificates(t.Context(), q)
				require.NoError(t, err)
				got := r.records.last
				got.Limit, got.Continue = 0, ""
				if n > 0 {
					assert.Equal(t, asked, got)
				}
				asked, q.Continue = got, list.Continue
				time.Sleep(time.Minute)
				r.pod(fmt.Sprint("new-", n), "p", "sa")
			}
		}
	})
}

func TestOneCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		p := r.pod("ns", "p", "sa", sidecar)
		first := r.issue(p)
		time.Sleep(time.Minute)
		second := r.issue(p)
		c, err := r.Certificate(t.Context(), strings.ToUpper(first.SHA256))
		require.NoError(t, err)
		assert.Equal(t, api.Superseded, c.Standing)
		assert.Equal(t, int64(3540), c.RemainingSeconds)
		assert.NotEmpty(t, c.PEM)
		c, err = r.Certificate(t.Context(), second.SHA256)
		require.NoError(t, err)
		assert.Equal(t, api.Live, c.Standing)
		time.Sleep(59*time.Minute + time.Second)
		c, err = r.Certificate(t.Context(), first.SHA256)
		require.NoError(t, err)
		assert.Equal(t, api.Ended, c.Standing)
		r.gone("pods", p)
		c, err = r.Certificate(t.Context(), second.SHA256)
		require.NoError(t, err)
		assert.Equal(t, api.Orphaned, c.Standing)
		_, err = r.Certificate(t.Context(), digest("none", 1))
		assert.ErrorIs(t, err, api.ErrNotFound)
		r.records.fail = errors.New("away")
		_, err = r.Certificate(t.Context(), second.SHA256)
		assert.ErrorContains(t, err, "away")
		assert.NotErrorIs(t, err, api.ErrNotFound)
	})
}

func TestIdentity(t *testing.T) {
	r := newRig(t)
	a, b := r.pod("ns", "a", "sa", sidecar), r.pod("ns", "b", "sa", sidecar)
	r.service("ns", "one", a)
	r.service("ns", "two", a, b)
	r.service("ns", "three")
	strange := sliceOf("ns", "three-x", "three", b)
	strange.Endpoints[0].Addresses = []string{"192.0.2.1"}
	r.tell("endpointslices", strange)
	r.issue(a)
	second := r.issue(b, func(c *api.Certificate) { c.IssuedAt = c.IssuedAt.Add(time.Second) })
	got, err := r.Identity(t.Context(), identityOf("ns", "sa"))
	require.NoError(t, err)
	assert.Len(t, got.Live, 2)
	assert.Equal(t, second.SHA256, got.Live[0].SHA256, "the latest first")
	assert.Equal(t, []api.ObjectRef{{Namespace: "ns", Name: "one"}, {Namespace: "ns", Name: "two"}}, got.Services)
	assert.NotEmpty(t, got.Coverage.Sources)

	r.tell("serviceaccounts", metadata("ns", "idle", nil))
	got, err = r.Identity(t.Context(), identityOf("ns", "idle"))
	require.NoError(t, err)
	assert.NotNil(t, got.Live)
	for _, odd := range []string{
		"", "x", "spiffe://", "spiffe://other.example/ns/ns/sa/sa", "spiffe://cluster.local/ns/ns/sa/none", "spiffe://cluster.local/ns/ns",
		"spiffe://cluster.local/ns/ns/sa/sa/", "spiffe://cluster.local/ns/ns/sa/s%61", "spiffe://cluster.local/ns/../sa/sa", "spiffe://cluster.local/ns/ns/sa/sa\x00",
		"spiffe://cluster.local/NS/ns/sa/sa", strings.Repeat("spiffe://", 1000),
	} {
		_, err := r.Identity(t.Context(), odd)
		assert.ErrorIs(t, err, api.ErrNotFound, odd)
	}
}

// TestTheAuditInPages: issuances and refusals come as one list, in every size of page, though more is written meanwhile.
func TestTheAuditInPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		p := r.pod("ns", "p", "sa", sidecar)
		refuse := func() {
			r.records.refuse(api.Issuance{Time: time.Now().Truncate(time.Second).UTC(), Outcome: api.Refused, Refusal: &api.Refusal{Namespace: "ns", Reason: fmt.Sprint(len(r.records.refused))}})
		}
		for n := range 300 {
			if n%3 == 0 || n > 200 {
				refuse()
			} else {
				r.issue(p)
			}
			if n%4 == 0 {
				time.Sleep(time.Second)
			}
		}
		whole := r.audit(api.IssuanceQuery{Visible: everything{}})
		require.Len(t, whole, 300)
		assert.True(t, slices.IsSortedFunc(whole, func(a, b api.Issuance) int { return b.Time.Compare(a.Time) }))
		for _, limit := range []int{1, 3, 7, 50, 299, 300, 301} {
			var got []api.Issuance
			q := api.IssuanceQuery{Page: api.Page{Limit: limit}, Visible: everything{}}
			issued, refused := len(r.records.issued), len(r.records.refused)
			for {
				page, err := r.Issuances(t.Context(), q)
				require.NoError(t, err)
				got = append(got, page.Items...)
				if q.Continue = page.Continue; q.Continue == "" {
					break
				}
				time.Sleep(time.Second)
				for range 3 {
					r.records.add(r.certificate(p))
					refuse()
				}
			}
			r.records.issued, r.records.refused = r.records.issued[:issued], r.records.refused[:refused]
			require.Len(t, got, 300, limit)
			for n := range got {
				assert.Equal(t, whole[n].Refusal, got[n].Refusal)
				if whole[n].Certificate != nil {
					assert.Equal(t, whole[n].Certificate.SHA256, got[n].Certificate.SHA256)
				}
			}
		}
		assert.Len(t, r.audit(api.IssuanceQuery{Visible: everything{}, Outcome: api.Refused, Page: api.Page{Limit: 10}}), len(r.records.refused))
		assert.Len(t, r.audit(api.IssuanceQuery{Visible: everything{}, Outcome: api.Issued, Page: api.Page{Limit: 10}}), len(r.records.issued))
		assert.Empty(t, r.audit(api.IssuanceQuery{Visible: everything{}, Namespace: "other"}))
		assert.Empty(t, r.audit(api.IssuanceQuery{Visible: everything{}, Since: time.Now().Add(time.Second)}))
		r.records.fail = errors.New("away")
		_, err := r.Issuances(t.Context(), api.IssuanceQuery{Visible: everything{}})
		assert.ErrorContains(t, err, "away")
	})
}

func TestTrust(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotAfter: time.Unix(2e9, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	root, err := x509.ParseCertificate(der)
	require.NoError(t, err)

	r := newRig(t)
	empty, err := r.Trust(t.Context())
	require.NoError(t, err)
	assert.Equal(t, &api.Trust{Anchors: []api.Anchor{}, Issuers: []string{}, Distribution: []string{}, Replicas: []string{}, Expiring: []api.Subject{}}, empty)

	now := time.Now()
	r.trust = TrustSources{
		Anchors: func() []Anchor {
			return []Anchor{{Certificate: root, Phase: "signing", Since: now, Waits: "x", Federated: true, Sources: []string{"file"}}}
		},
		Issuers: func() []string { return []string{"i"} }, Distribution: func() []string { return []string{"d"} }, Replicas: func() []string { return []string{"r"} },
		Expiring: func() []api.Subject {
			return []api.Subject{
				{Kind: "anchor", NotBefore: now, NotAfter: now.Add(10 * time.Hour), State: api.Fresh},
				{Kind: "serving", NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), State: api.Due},
			}
		},
	}
	got, err := r.Trust(t.Context())
	require.NoError(t, err)
	require.Len(t, got.Anchors, 1)
	a := got.Anchors[0]
	assert.Equal(t, "CN=root", a.Subject)
	assert.Len(t, a.SHA256, 64)
	assert.Contains(t, a.PEM, "BEGIN CERTIFICATE")
	assert.True(t, a.Until.IsZero())
	assert.Equal(t, []string{"i", "d", "r"}, slices.Concat(got.Issuers, got.Distribution, got.Replicas))
	require.Len(t, got.Expiring, 2)
	assert.Equal(t, "serving", got.Expiring[0].Kind, "the earliest first")
	assert.Equal(t, api.Due, got.Expiring[0].State)
	assert.InDelta(t, 0.5, got.Expiring[0].RemainingRatio, 0.01)
}

func TestCoverageSaysWhatIsntKnown(t *testing.T) {
	r := newRig(t)
	r.watched.Store(nil)
	assert.Equal(t, api.Source{Name: "pods", Reason: "not watched"}, sourceOf(r.coverageNow(), "pods"))
	r.watched.Store(&[]watchedKind{{"pods", func() bool { return false }}, {"services", func() bool { return true }}})
	assert.Equal(t, api.Source{Name: "pods", Reason: "not listed yet"}, sourceOf(r.coverageNow(), "pods"))
	assert.Equal(t, api.Source{Name: "services", Up: true}, sourceOf(r.coverageNow(), "services"))
	assert.False(t, sourceOf(r.coverageNow(), "records").Up)
	assert.False(t, sourceOf(r.coverageNow(), "inventory").Up)

	r.records.coverage = api.Coverage{Gaps: []api.Gap{{Reason: "away"}}}
	r.askCoverage(t.Context())
	first := r.coverageNow()
	first.Gaps[0].Reason = "changed by the caller"
	assert.Equal(t, "away", r.coverageNow().Gaps[0].Reason)
	r.records.fail = errors.New("the disk is full")
	r.askCoverage(t.Context())
	r.askCoverage(t.Context())
	assert.Equal(t, "away", r.coverageNow().Gaps[0].Reason, "what was known is still said")
	n := 0
	for _, s := range r.coverageNow().Sources {
		if s.Name == "records" {
			assert.Contains(t, s.Reason, "the disk is full")
			n++
		}
	}
	assert.Equal(t, 1, n)
	r.records.fail = nil
	r.askCoverage(t.Context())
	assert.Empty(t, sourceOf(r.coverageNow(), "records"))
}
