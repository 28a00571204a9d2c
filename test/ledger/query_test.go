package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api/ledger"
)

// odd are texts that must come back as they are, and mean nothing to a database.
var odd = []string{
	`'; DROP TABLE issuance; --`, `" OR "1"="1`, `%`, `_`, `\`, `$1`, `?`, `:name`, "line\nbreak\ttab", `ünïcödé 東京 🜁`, `spiffe://cluster.local/ns/a%2fb/sa/..`,
	`{"json": [1]}`, `NULL`, ` leading and trailing `, "\u202eright to left", strings.Repeat("long", 300),
}

// corpus is what the suite asks about: pods that renew, nodes' proxies, serving certificates, odd texts.
// Several records are made in the same second.
func corpus(now time.Time) []ledger.Issuance {
	var all []ledger.Issuance
	began := now.Add(-6 * time.Hour)
	for n := range 480 {
		i := issuance(fmt.Sprint(n), began.Add(time.Duration(n/3)*2*time.Minute))
		pod := n % 24
		i.Namespace, i.ServiceAccount = fmt.Sprintf("team-%d", pod%3), fmt.Sprintf("app-%d", pod%8)
		i.Identity = "spiffe://cluster.local/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
		i.SANs = []string{i.Identity}
		i.PodUID, i.Node = fmt.Sprintf("pod-%d", pod), fmt.Sprintf("node-%d", pod%5)
		if pod%7 == 0 {
			i.Impersonated, i.PodUID = true, "ztunnel-"+i.Node
		}
		if pod%5 == 1 {
			i.Issuer = "ClusterIssuer.cert-manager.io/other"
		}
		if n%11 == 0 {
			i.Source = ledger.Observed
			i.Peer, i.Credential = "", ""
		}
		all = append(all, i)
	}
	for n, host := range []string{"istiod.istio-system.svc", "istiod.istio-system.svc", "signet.istio-system.svc"} {
		i := issuance(host+fmt.Sprint(n), began.Add(time.Duration(n)*90*time.Minute))
		i.Identity, i.TrustDomain, i.Namespace, i.ServiceAccount, i.PodUID = "", "", "istio-system", "", ""
		i.SANs = []string{host, "10.96.0.7"}
		i.NotAfter = i.NotBefore.Add(24 * time.Hour)
		all = append(all, i)
	}
	for n := range 4 { // one pod, one second
		i := issuance(fmt.Sprint("at once ", n), now.Add(-10*time.Minute))
		i.PodUID = "hasty"
		all = append(all, i)
	}
	for n, text := range odd {
		i := issuance(fmt.Sprint("odd ", n), now.Add(-20*time.Minute))
		for _, field := range []*string{
			&i.Identity, &i.TrustDomain, &i.Namespace, &i.ServiceAccount, &i.ServiceAccountUID, &i.KeyAlgorithm, &i.SignatureAlgorithm, &i.Issuer, &i.RootSubject,
			&i.Pod, &i.PodUID, &i.Node, &i.Credential, &i.Cluster, &i.Peer, &i.RequestName, &i.RequestUID,
		} {
			*field = text
		}
		i.SANs = []string{text, "second " + text}
		all = append(all, i)
	}
	for n := range all {
		all[n].RecordedAt, all[n].NotBefore, all[n].NotAfter = all[n].RecordedAt.UTC(), all[n].NotBefore.UTC(), all[n].NotAfter.UTC()
		all[n].Replica = "signet-0"
		if all[n].Source == "" {
			all[n].Source = ledger.Own
		}
	}
	return all
}

// after says whether a comes after b in the order of recording; sequence is their place in the corpus.
func after(a, b ledger.Issuance) bool {
	if !a.RecordedAt.Equal(b.RecordedAt) {
		return a.RecordedAt.After(b.RecordedAt)
	}
	return a.Sequence > b.Sequence
}

// model chooses from all as filter should, by looking at each.
func model(all []ledger.Issuance, f ledger.Filter, now time.Time) []string {
	at := now
	if !f.At.IsZero() {
		at = f.At
	}
	at = at.Truncate(time.Second)
	judged := f.State != "" || f.Latest || f.ExpiresWithin != 0
	made := func(i ledger.Issuance) bool { return f.At.IsZero() || !judged || !i.RecordedAt.After(at) }
	superseded := func(i ledger.Issuance) bool {
		for _, n := range all {
			whose := func(i ledger.Issuance) string {
				if i.Identity != "" {
					return i.Identity + "|" + i.Holder()
				}
				return strings.Join(i.SANs, " ") + "|" + i.Holder()
			}
			if made(n) && whose(n) == whose(i) && after(n, i) {
				return true
			}
		}
		return false
	}
	var chosen []ledger.Issuance
	for _, i := range all {
		expired := at.After(i.NotAfter)
		state := ledger.Live
		if expired {
			state = ledger.Expired
		} else if superseded(i) {
			state = ledger.Superseded
		}
		ok := made(i) &&
			(f.Namespace == "" || i.Namespace == f.Namespace) && (f.Identity == "" || i.Identity == f.Identity) && (f.Node == "" || i.Node == f.Node) &&
			(f.Issuer == "" || i.Issuer == f.Issuer) && (f.Replica == "" || i.Replica == f.Replica) && (f.PodUID == "" || i.PodUID == f.PodUID) &&
			(f.Namespaces == nil || slices.Contains(f.Namespaces, i.Namespace)) &&
			(f.SAN == "" || slices.Contains(i.SANs, f.SAN)) && (f.Serial == "" || i.SerialNumber == f.Serial) &&
			(f.Since.IsZero() || !i.RecordedAt.Before(f.Since)) && (f.Until.IsZero() || !i.RecordedAt.After(f.Until)) &&
			(f.NotAfterFrom.IsZero() || !i.NotAfter.Before(f.NotAfterFrom)) && (f.NotAfterTo.IsZero() || !i.NotAfter.After(f.NotAfterTo)) &&
			(f.ExpiresWithin == 0 || !expired && !i.NotAfter.After(at.Add(f.ExpiresWithin))) &&
			(f.State == "" || f.State == state) && (!f.Latest || !superseded(i))
		if ok {
			chosen = append(chosen, i)
		}
	}
	slices.SortFunc(chosen, func(a, b ledger.Issuance) int {
		if after(a, b) {
			return -1
		}
		return 1
	})
	return keys(chosen)
}

func keys(all []ledger.Issuance) []string {
	var keys []string
	for _, i := range all {
		keys = append(keys, i.SHA256)
	}
	return keys
}

// walk reads all pages.
func walk(t *testing.T, view *ledger.View, f ledger.Filter, limit int, between func()) []ledger.Issuance {
	t.Helper()
	var all []ledger.Issuance
	page := ledger.Page{Limit: limit}
	for {
		answer, err := view.List(t.Context(), f, page)
		require.NoError(t, err)
		require.LessOrEqual(t, len(answer.Records), limit)
		all = append(all, answer.Records...)
		if page.Continue = answer.Continue; page.Continue == "" {
			return all
		}
		require.Len(t, answer.Records, limit, "only the last page is shorter")
		between()
	}
}

// TestQueries asks both stores the same and compares with a model that looks at each record.
func TestQueries(t *testing.T) {
	dsnFile, _ := database(t)
	r := start(t, ledger.Config{Postgres: ledger.PostgresConfig{DSNFile: dsnFile}})
	now := time.Now().Truncate(time.Second)
	all := corpus(now)
	for n := range all {
		require.NoError(t, r.Record(t.Context(), all[n]))
		all[n].Sequence = int64(n + 1)
	}
	r.shipped(t)

	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	one := all[100]
	filters := map[string]ledger.Filter{
		"everything": {}, "namespace": {Namespace: "team-1"}, "identity": {Identity: one.Identity}, "node": {Node: "node-2"},
		"issuer": {Issuer: "ClusterIssuer.cert-manager.io/other"}, "replica": {Replica: "signet-0"}, "another replica": {Replica: "signet-1"}, "pod": {PodUID: "pod-5"},
		"namespaces": {Namespaces: []string{"team-0", "team-2", "nowhere"}}, "no namespace": {Namespaces: []string{}},
		"many namespaces": {Namespaces: append(strings.Split(strings.Repeat("no,", 80), ","), "team-1", "team-2")}, "namespaces twice": {Namespaces: []string{"team-1", "team-1"}},
		"live in namespaces": {Namespaces: []string{"team-0", "istio-system"}, State: ledger.Live}, "node and namespaces": {Node: "node-1", Namespaces: []string{"team-0", "team-1"}},
		"DNS name": {SAN: "istiod.istio-system.svc"}, "address": {SAN: "10.96.0.7"}, "URI": {SAN: one.Identity}, "unknown name": {SAN: "nobody"},
		"serial": {Serial: one.SerialNumber}, "since": {Since: ago(2 * time.Hour)}, "until": {Until: ago(2 * time.Hour)}, "between": {Since: ago(3 * time.Hour), Until: ago(2 * time.Hour)},
		"since within a second": {Since: one.RecordedAt.Add(time.Millisecond)}, "until within a second": {Until: one.RecordedAt.Add(time.Millisecond)},
		"not after from": {NotAfterFrom: now}, "not after to": {NotAfterTo: now}, "not after between": {NotAfterFrom: ago(time.Hour), NotAfterTo: now},
		"the last second": {NotAfterFrom: one.NotAfter, NotAfterTo: one.NotAfter},
		"latest":          {Latest: true}, "latest of an identity": {Latest: true, Identity: one.Identity}, "latest then": {Latest: true, At: ago(3 * time.Hour)},
		"live and of a node and namespace": {State: ledger.Live, Node: "node-0", Namespace: "team-0"},
		"three at once":                    {Identity: one.Identity, Node: one.Node, Namespace: one.Namespace},
		"contradiction":                    {Identity: one.Identity, Namespace: "team-9"},
	}
	longest := all[480] // no record is as far from the end of its certificate
	filters["the last second of the longest"] = ledger.Filter{NotAfterFrom: longest.NotAfter}
	filters["live in the last second of the longest"] = ledger.Filter{State: ledger.Superseded, At: longest.NotAfter}
	for _, state := range []ledger.State{ledger.Live, ledger.Superseded, ledger.Expired} {
		for name, at := range map[string]time.Time{"now": {}, "then": ago(3*time.Hour + 17*time.Minute), "at the last second": one.NotAfter, "after it": one.NotAfter.Add(time.Second), "before everything": ago(48 * time.Hour)} {
			filters[string(state)+" "+name] = ledger.Filter{State: state, At: at}
			filters[string(state)+" in a namespace "+name] = ledger.Filter{State: state, At: at, Namespace: "team-1"}
			filters[string(state)+" of an identity "+name] = ledger.Filter{State: state, At: at, Identity: one.Identity}
		}
	}
	for _, within := range []time.Duration{time.Second, 30 * time.Minute, 100 * time.Hour} {
		filters["expires within "+within.String()] = ledger.Filter{ExpiresWithin: within, State: ledger.Live}
		filters["expires then within "+within.String()] = ledger.Filter{ExpiresWithin: within, At: ago(2 * time.Hour)}
	}
	for n, text := range odd {
		filters[fmt.Sprint("odd identity ", n)] = ledger.Filter{Identity: text}
		filters[fmt.Sprint("odd texts ", n)] = ledger.Filter{Namespace: text, Node: text, Issuer: text, PodUID: text, SAN: "second " + text, Namespaces: []string{text}}
	}

	for name, view := range map[string]*ledger.View{"SQLite": r.Local(), "PostgreSQL": r.Shared()} {
		t.Run(name, func(t *testing.T) {
			for name, f := range filters {
				t.Run(name, func(t *testing.T) {
					for _, limit := range []int{500, 7} {
						asked := time.Now()
						got := walk(t, view, f, limit, func() {})
						if want := model(all, f, asked); !slices.Equal(want, keys(got)) {
							// A certificate may have expired meanwhile.
							assert.Equal(t, model(all, f, time.Now()), keys(got), "limit %d", limit)
						}
					}
				})
			}
			t.Run("whole records", func(t *testing.T) {
				for n, want := range all {
					if n > 30 && n < 470 {
						continue
					}
					got, err := view.Certificate(t.Context(), want.SHA256)
					require.NoError(t, err)
					assert.NotZero(t, got.Sequence)
					want.Sequence, got.Sequence = 0, 0
					assert.Equal(t, want, got)
				}
				listed, err := view.List(t.Context(), ledger.Filter{}, ledger.Page{Limit: 1})
				require.NoError(t, err)
				assert.Empty(t, listed.Records[0].DER)
			})
			t.Run("refused", func(t *testing.T) { refused(t, view) })
			t.Run("tail", func(t *testing.T) {
				var told []ledger.Issuance
				cursor, more := ledger.OldestCursor, true
				for more {
					tail, err := view.Tail(t.Context(), ledger.Filter{Namespaces: []string{"team-0", "team-1"}}, cursor, 50)
					require.NoError(t, err)
					told, cursor, more = append(told, tail.Records...), tail.Cursor, tail.More
				}
				var want []string
				for _, i := range all {
					if i.Namespace == "team-0" || i.Namespace == "team-1" {
						want = append(want, i.SHA256)
					}
				}
				assert.Equal(t, want, keys(told))
			})
		})
	}
}

// refused are questions that can't be asked.
func refused(t *testing.T, view *ledger.View) {
	for name, f := range map[string]ledger.Filter{
		"NUL": {Namespace: "a\x00b"}, "not UTF-8": {SAN: "\xff"}, "too long": {Identity: strings.Repeat("x", 3000)}, "NUL in a list": {Namespaces: []string{"\x00"}},
		"state": {State: "dead"}, "serial": {Serial: "0x12"}, "SQL as a serial": {Serial: "1' OR '1'='1"}, "negative": {ExpiresWithin: -time.Second},
	} {
		_, err := view.List(t.Context(), f, ledger.Page{})
		assert.ErrorIs(t, err, ledger.ErrFilter, name)
	}
	for _, limit := range []int{-1, 501, 1 << 30} {
		_, err := view.List(t.Context(), ledger.Filter{}, ledger.Page{Limit: limit})
		assert.ErrorIs(t, err, ledger.ErrFilter)
		_, err = view.Tail(t.Context(), ledger.Filter{}, "", limit)
		assert.ErrorIs(t, err, ledger.ErrFilter)
		_, err = view.Refusals(t.Context(), ledger.RefusalFilter{}, ledger.Page{Limit: limit})
		assert.ErrorIs(t, err, ledger.ErrFilter)
	}
	for _, f := range []ledger.Filter{{State: ledger.Live}, {Latest: true}, {At: time.Now()}, {ExpiresWithin: time.Hour}} {
		_, err := view.Tail(t.Context(), f, "", 0)
		assert.ErrorIs(t, err, ledger.ErrFilter)
	}
	_, err := view.Certificate(t.Context(), strings.Repeat("ab", 32))
	assert.ErrorIs(t, err, ledger.ErrNotFound)
	_, err = view.Certificate(t.Context(), "ab")
	assert.ErrorIs(t, err, ledger.ErrFilter)

	first, err := view.List(t.Context(), ledger.Filter{Namespace: "team-0"}, ledger.Page{Limit: 5})
	require.NoError(t, err)
	good := first.Continue
	for name, bad := range map[string]string{
		"cut": good[:len(good)-2], "longer": good + "AA", "no base64": "!!!", "another alphabet": strings.Repeat("+", len(good)), "flipped": flip(good, 20), "of another time": flip(good, 3), "nothing of ours": "YWJj",
	} {
		_, err := view.List(t.Context(), ledger.Filter{Namespace: "team-0"}, ledger.Page{Continue: bad})
		assert.ErrorIs(t, err, ledger.ErrContinue, name)
	}
	for name, f := range map[string]ledger.Filter{"all": {}, "another": {Namespace: "team-1"}, "more": {Namespace: "team-0", Node: "node-1"}, "may see less": {Namespace: "team-0", Namespaces: []string{"team-1"}}} {
		_, err := view.List(t.Context(), f, ledger.Page{Continue: good})
		assert.ErrorIs(t, err, ledger.ErrContinue, name)
	}
	_, err = view.Tail(t.Context(), ledger.Filter{Namespace: "team-0"}, good, 0)
	assert.ErrorIs(t, err, ledger.ErrContinue, "a page is no cursor")
	_, err = view.List(t.Context(), ledger.Filter{Namespace: "team-0"}, ledger.Page{Continue: good, Limit: 3})
	assert.NoError(t, err, "the limit may change")
}

// flip changes one character.
func flip(s string, at int) string {
	c := byte('A')
	if s[at] == c {
		c = 'B'
	}
	return s[:at] + string(c) + s[at+1:]
}

// TestContinueOfAnotherLedger is refused: its sequence means something else there.
func TestContinueOfAnotherLedger(t *testing.T) {
	dsnFile, _ := database(t)
	r := start(t, ledger.Config{Postgres: ledger.PostgresConfig{DSNFile: dsnFile}})
	for n := range 4 {
		require.NoError(t, r.Record(t.Context(), issuance(fmt.Sprint(n), time.Now())))
	}
	r.shipped(t)
	page, err := r.Local().List(t.Context(), ledger.Filter{}, ledger.Page{Limit: 2})
	require.NoError(t, err)
	_, err = r.Shared().List(t.Context(), ledger.Filter{}, ledger.Page{Continue: page.Continue})
	assert.ErrorIs(t, err, ledger.ErrContinue)
}

// TestPagesAreOfOneMoment: what is recorded while pages are read changes nothing in them.
func TestPagesAreOfOneMoment(t *testing.T) {
	dsnFile, _ := database(t)
	r := start(t, ledger.Config{Postgres: ledger.PostgresConfig{DSNFile: dsnFile}})
	// Some of the corpus end at now, the next two minutes later: none may end between two walks that are compared.
	now := time.Now().Truncate(time.Second).Add(-2 * time.Second)
	all := corpus(now)
	for n := range all {
		require.NoError(t, r.Record(t.Context(), all[n]))
		all[n].Sequence = int64(n + 1)
	}
	r.shipped(t)
	renewals := 0
	for name, view := range map[string]*ledger.View{"SQLite": r.Local(), "PostgreSQL": r.Shared()} {
		for _, f := range []ledger.Filter{{}, {State: ledger.Live}, {Latest: true}, {Namespace: "team-1", State: ledger.Live}} {
			before := walk(t, view, f, 500, func() {})
			got := walk(t, view, f, 5, func() {
				// Every pod that is still to come renews, among others with a record of an older time.
				for _, n := range []int{renewals % 24, (renewals + 11) % 24} {
					i := all[456+n]
					name := fmt.Sprint("renewal ", renewals)
					i.RequestName, i.SHA256, i.SerialNumber = name, issuance(name, now).SHA256, issuance(name, now).SerialNumber
					i.RecordedAt = now.Add(-time.Duration(renewals%3) * time.Hour)
					i.NotAfter = now.Add(2 * time.Hour)
					require.NoError(t, r.Record(t.Context(), i))
					renewals++
				}
				if view.IsShared() {
					r.shipped(t)
				}
			})
			require.Equal(t, keys(before), keys(got), "%s %+v", name, f)
		}
		r.shipped(t)
	}
	assert.NotZero(t, renewals)
}
