package api

import (
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	lru "k8s.io/apimachinery/pkg/util/cache"

	"github.com/signet-ca/signet/setting"
)

var update = flag.Bool("update", false, "write golden files anew")

func TestConfigValidate(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"nothing set", Config{}, ""},
		{"all set", Config{Listen: ":1", Audiences: []string{"a"}, CacheTime: setting.DurationOf(time.Minute), ReviewTimeout: setting.DurationOf(time.Second), InFlight: 1, Watches: 1000}, ""},
		{"address", Config{Listen: "8443"}, `api.listen: "8443" is not an address to listen on; it must be HOST:PORT or :PORT`},
		{"empty audience", Config{Audiences: []string{""}}, "api.audiences: an audience is empty; leave the list out for signet.dev"},
		{"cache", Config{CacheTime: setting.DurationOf(time.Hour)}, "api.cacheTime: 1h0m0s is out of range; it must be between 1ms and 1m0s"},
		{"timeout", Config{ReviewTimeout: setting.DurationOf(time.Hour)}, "api.reviewTimeout: 1h0m0s is out of range; it must be between 100ms and 30s"},
		{"in flight", Config{InFlight: -1}, "api.inFlight: -1 is out of range; it must be between 1 and 1000"},
		{"watches", Config{Watches: 1001}, "api.watches: 1001 is out of range; it must be between 1 and 1000"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.cfg.Validate(p.At("api"))
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.EqualError(t, p.Err(), row.want)
			}
		})
	}
}

// TestEveryErrorIsAProblem: RFC 9457, with what to do.
func TestEveryErrorIsAProblem(t *testing.T) {
	r := newRig(t, Config{})
	r.data.services = services("one", "two")
	sha := strings.Repeat("a", 64)
	for _, row := range []struct {
		name, method, path, user string
		status                   int
		detail                   string
	}{
		{"no token", "GET", "/v1/services", "", 401, "say who you are: with a bearer token for audience signet.dev, or with a client certificate of the mesh"},
		{"unknown token", "GET", "/v1/services", "nobody", 401, "the token is not accepted: it must be valid now, and for audience signet.dev"},
		{"foreign audience", "GET", "/v1/services", "all_istio-ca", 401, "the token is not accepted"},
		{"no right", "GET", "/v1/services", "none", 403, "none may not list services.signet.dev in any namespace; a Role or ClusterRole must grant it"},
		{"no right to the namespace", "GET", "/v1/services?namespace=two", "one", 403, "one may not list services.signet.dev in namespace two; a Role or ClusterRole must grant it"},
		{"no right to trust", "GET", "/v1/trust", "one", 403, "one may not get trust.signet.dev in the cluster"},
		{"no path", "GET", "/", "", 404, "there is nothing at this path; /openapi.json says what there is"},
		{"unknown path", "GET", "/v1/pods", "all", 404, "there is nothing at this path; /openapi.json says what there is"},
		{"unescaped identity", "GET", "/v1/identities/spiffe://cluster.local/ns/a/sa/b", "all", 404, "a slash within a name must be percent-encoded"},
		{"roundabout path", "GET", "/v1/../v1/services", "all", 404, "there is nothing at this path"},
		{"unknown service", "GET", "/v1/namespaces/one/services/none", "all", 404, "service one/none is not known"},
		{"unknown certificate", "GET", "/v1/certificates/" + sha, "all", 404, "certificate " + sha + " is not known"},
		{"post", "POST", "/v1/services", "all", 405, "only GET, HEAD are allowed here"},
		{"delete", "DELETE", "/v1/trust", "", 405, "only GET, HEAD are allowed here"},
		{"options", "OPTIONS", "/v1/trust", "", 405, "only GET, HEAD are allowed here"},
		{"unknown parameter", "GET", "/v1/services?limt=3", "all", 422, `query parameter "limt": unknown query parameter; known here are continue, limit, namespace, problems, resume, watch`},
		{"unknown parameter where there is none", "GET", "/v1/trust?x=1", "all", 422, `query parameter "x": unknown query parameter; none is known here`},
		{"parameter twice", "GET", "/v1/services?namespace=one&namespace=two", "all", 422, `query parameter "namespace": it must occur once`},
		{"broken query", "GET", "/v1/services?a;b", "all", 400, "the query can't be read"},
		{"limit 0", "GET", "/v1/services?limit=0", "all", 422, "validation failed"},
		{"limit 501", "GET", "/v1/services?limit=501", "all", 422, "validation failed"},
		{"huge limit", "GET", "/v1/services?limit=99999999999999999999", "all", 422, "validation failed"},
		{"limit text", "GET", "/v1/services?limit=x", "all", 422, "validation failed"},
		{"namespace", "GET", "/v1/services?namespace=A'--", "all", 422, "validation failed"},
		{"namespace in path", "GET", "/v1/namespaces/%2E%2E/services/x", "all", 422, "validation failed"},
		{"state", "GET", "/v1/certificates?state=old", "all", 422, "validation failed"},
		{"standing", "GET", "/v1/certificates?standing=old", "all", 422, "validation failed"},
		{"ratio", "GET", "/v1/certificates?remainingRatioBelow=2", "all", 422, "validation failed"},
		{"within", "GET", "/v1/expiring?within=soon", "all", 422, `query parameter "within": it must be a length of time`},
		{"expires within", "GET", "/v1/certificates?expiresWithin=-1h", "all", 422, `query parameter "expiresWithin": it must be a length of time`},
		{"since", "GET", "/v1/issuances?since=yesterday", "all", 422, "validation failed"},
		{"outcome", "GET", "/v1/issuances?outcome=1", "all", 422, "validation failed"},
		{"no SPIFFE ID", "GET", "/v1/certificates?identity=shop/cart", "all", 422, "validation failed"},
		{"no SPIFFE ID of an issuance", "GET", "/v1/issuances?identity=cart", "all", 422, "validation failed"},
		{"watch with no SPIFFE ID", "GET", "/v1/issuances?watch=true&identity=cart", "all", 422, "validation failed"},
		{"no serial number", "GET", "/v1/certificates?serial=zz", "all", 422, "validation failed"},
		{"serial number as Go writes it", "GET", "/v1/expiring?serial=0x5f", "all", 422, "validation failed"},
		{"colons alone", "GET", "/v1/certificates?serial=:", "all", 422, "validation failed"},
		{"an issuer's name", "GET", "/v1/expiring?issuer=istio-ca", "all", 422, "validation failed"},
		{"watch with an issuer's kind and name", "GET", "/v1/certificates?watch=true&issuer=Issuer/istio-ca", "all", 422, "validation failed"},
		{"sha256", "GET", "/v1/certificates/AB:CD", "all", 422, "validation failed"},
		{"identity", "GET", "/v1/identities/web", "all", 422, "this is no SPIFFE ID"},
		{"broken continue", "GET", "/v1/services?continue=%27%3BDROP", "all", 400, "start again without it"},
		{"continue of other filters", "GET", "/v1/services?continue=1:&namespace=one", "all", 400, "start again without it"},
		{"resume without watch", "GET", "/v1/services?resume=x", "all", 422, "resume needs watch=true"},
		{"broken resume", "GET", "/v1/services?watch=true&resume=x", "all", 400, "resume is not valid"},
		{"watch with a limit", "GET", "/v1/services?watch=true&limit=5", "all", 422, "a watch has no pages"},
		{"watch with HEAD", "HEAD", "/v1/services?watch=true", "all", 422, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := r.do(t, row.method, row.path, row.user)
			require.Equal(t, row.status, got.status, got.body)
			if row.method == "HEAD" {
				assert.Empty(t, got.body)
				return
			}
			assert.Contains(t, got.problem(t).Detail, row.detail)
			assert.NotContains(t, got.body, "secret words", "what the API server says of a token is for the log")
			assert.Equal(t, "nosniff", got.header.Get("X-Content-Type-Options"))
			if row.status == 401 {
				assert.Contains(t, got.header.Get("WWW-Authenticate"), `Bearer realm="signet"`)
			}
			if row.status == 405 {
				assert.Equal(t, "GET, HEAD", got.header.Get("Allow"))
			}
		})
	}
}

func TestAuthorizationHeader(t *testing.T) {
	r := newRig(t, Config{})
	for value, status := range map[string]int{
		"Bearer all":            200,
		"bearer  all":           200,
		"Bearer all_signet.dev": 200,
		"Bearer":                401,
		"Bearer ":               401,
		"Basic all":             401,
		"Bearer all all":        401,
		"Bearer a\u00e4":        401,
		"all":                   401,
		"Bearer " + strings.Repeat("a", maxTokenBytes+1): 401,
	} {
		assert.Equal(t, status, r.do(t, "GET", "/v1/trust", "", "Authorization", value).status, "%.40s", value)
	}
	request, err := http.NewRequestWithContext(t.Context(), "GET", r.url+"/v1/trust", nil)
	require.NoError(t, err)
	request.Header["Authorization"] = []string{"Bearer all", "Bearer one"}
	response, err := r.http.Do(request)
	require.NoError(t, err)
	response.Body.Close()
	assert.Equal(t, 401, response.StatusCode, "two headers")
}

// TestAPIServerTokens: by default they are good beside those with an audience of ours.
func TestAPIServerTokens(t *testing.T) {
	for _, row := range []struct {
		name, token string
		cfg         Config
		status      int
	}{
		{"for the API server", "all", Config{}, 200},
		{"for the API server, refused", "all", Config{RefuseAPIServerTokens: true}, 401},
		{"for us, only", "all_signet.dev", Config{RefuseAPIServerTokens: true}, 200},
		{"another audience", "all_other", Config{Audiences: []string{"other"}, RefuseAPIServerTokens: true}, 200},
		{"no more for us", "all_signet.dev", Config{Audiences: []string{"other"}, RefuseAPIServerTokens: true}, 401},
	} {
		t.Run(row.name, func(t *testing.T) {
			assert.Equal(t, row.status, newRig(t, row.cfg).do(t, "GET", "/v1/trust", row.token).status)
		})
	}
}

// TestUnawareOfAudiences: who authenticates a token without a word about its audience has not looked at it.
func TestUnawareOfAudiences(t *testing.T) {
	for refuse, status := range map[bool]int{true: 401, false: 200} {
		r := newRig(t, Config{RefuseAPIServerTokens: refuse})
		r.api.set(func() { r.api.unaware = true })
		assert.Equal(t, status, r.do(t, "GET", "/v1/trust", "all_istio-ca").status, "where its own tokens are good, what it accepts is good")
	}
}

func TestReviewsAreKept(t *testing.T) {
	var clock clock
	r := newRig(t, Config{}, func(s *Server) {
		s.authn.kept = lru.NewLRUExpireCacheWithClock(keptTokens, &clock)
		s.authz.kept = lru.NewLRUExpireCacheWithClock(keptAnswers, &clock)
		s.authz.sets = lru.NewLRUExpireCacheWithClock(keptSets, &clock)
	})
	r.data.services = services("one")
	for range 20 {
		require.Equal(t, 200, r.do(t, "GET", "/v1/services", "one").status)
	}
	r.api.set(func() {
		assert.Equal(t, 2, r.api.tokens, "for our audience, and for that of the API server")
		assert.Len(t, r.api.reviews, 1+3, "of the cluster, and of each namespace")
		assert.Equal(t, []string{"people", "system:authenticated"}, r.api.reviews[0].Groups)
		r.api.rights["one"] = nil
	})
	ask := func() int { return r.do(t, "GET", "/v1/services", "one").status }
	clock.pass(10*time.Second - 1)
	assert.Equal(t, 200, ask(), "kept for api.cacheTime")
	clock.pass(maxKeepSet) // as long as a set of namespaces may be kept that took long to ask for
	assert.Equal(t, 403, ask())
	r.api.set(func() { delete(r.api.rights, "one") })
	clock.pass(10*time.Second - 1)
	assert.Equal(t, 403, ask(), "the token is kept as long")
	clock.pass(time.Second)
	assert.Equal(t, 401, ask())
}

// clock is that of a cache: it goes when it is told to.
type clock struct{ since atomic.Int64 }

func (c *clock) Now() time.Time { return time.Unix(2e9, c.since.Load()) }

func (c *clock) pass(d time.Duration) { c.since.Add(int64(d)) }

// TestTokenClaims: what a token says of itself bounds how long it is kept, and what is asked about it.
func TestTokenClaims(t *testing.T) {
	r := newRig(t, Config{})
	jwt := func(payload string) string {
		return "e." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".s"
	}
	now := time.Now().Truncate(time.Second)
	late, soon, past := now.Add(time.Hour), now.Add(5*time.Second), now.Add(-time.Second)
	at := func(end time.Time) string { return strconv.FormatInt(end.Unix(), 10) }
	for _, row := range []struct {
		name, payload string
		ends          time.Time // zero for never
		asked         int
	}{
		{"ends late", `{"aud":["kubernetes"],"exp":` + at(late) + `}`, late, 1},
		{"ends soon", `{"aud":["kubernetes"],"exp":` + at(soon) + `}`, soon, 1},
		{"has ended", `{"aud":["kubernetes"],"exp":` + at(past) + `}`, past, 1},
		{"never ends", `{"aud":"kubernetes"}`, time.Time{}, 1},
		{"for us", `{"aud":"signet.dev"}`, time.Time{}, 2},
		{"for us and others", `{"aud":["a","signet.dev"]}`, time.Time{}, 2},
		{"no audience", `{}`, time.Time{}, 2},
		{"odd", `{"aud":7,"exp":1e300}`, time.Time{}, 2},
		{"no JSON", `x`, time.Time{}, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			token := jwt(row.payload)
			r.api.set(func() { r.api.rights[token], r.api.tokens = []string{"*"}, 0 })
			// left is how long an answer is good that is given now.
			left := func() time.Duration {
				if row.ends.IsZero() {
					return 10 * time.Second
				}
				return min(10*time.Second, time.Until(row.ends))
			}
			most := left()
			answer, keep := r.authn.review(t.Context(), token)
			require.NotNil(t, answer.caller)
			assert.GreaterOrEqual(t, keep, left())
			assert.LessOrEqual(t, keep, most)
			assert.Equal(t, row.asked, r.api.tokens)
		})
	}
}

// TestAPIServerAway: nobody is let in, and the answer says that asking again helps.
func TestAPIServerAway(t *testing.T) {
	r := newRig(t, Config{CacheTime: setting.DurationOf(time.Millisecond)})
	require.Equal(t, 200, r.do(t, "GET", "/v1/services", "all").status)
	r.api.set(func() { r.api.down = true })
	time.Sleep(5 * time.Millisecond)
	got := r.do(t, "GET", "/v1/services", "all")
	require.Equal(t, 503, got.status)
	assert.Equal(t, "1", got.header.Get("Retry-After"))
	assert.Equal(t, "the API server does not say now who you are; ask again", got.problem(t).Detail)
	r.api.set(func() { r.api.down = false })
	assert.Equal(t, 200, r.do(t, "GET", "/v1/services", "all").status, "an outage is not kept")
}

func TestRestrictedLists(t *testing.T) {
	r := newRig(t, Config{})
	r.data.services = services("one", "three", "two")
	for _, row := range []struct {
		user, path string
		want       []string
		restricted bool
	}{
		{"all", "/v1/services", []string{"one", "three", "two"}, false},
		{"one", "/v1/services", []string{"one"}, true},
		{"two", "/v1/services", []string{"one", "two"}, true},
		{"one", "/v1/services?namespace=one", []string{"one"}, false},
		{"all", "/v1/services?namespace=three", []string{"three"}, false},
		{"all", "/v1/services?namespace=gone", nil, false},
	} {
		t.Run(row.user+row.path, func(t *testing.T) {
			got := r.do(t, "GET", row.path, row.user)
			require.Equal(t, 200, got.status)
			var list ServiceList
			require.NoError(t, json.Unmarshal([]byte(got.body), &list))
			var namespaces []string
			for _, service := range list.Items {
				namespaces = append(namespaces, service.Namespace)
			}
			assert.Equal(t, row.want, namespaces)
			assert.Equal(t, row.restricted, list.Restricted)
			assert.Contains(t, got.body, `"items":[`, "an empty list is one")
		})
	}
}

// TestRightsAreAskedPrecisely: each route has its own resource and verb.
func TestRightsAreAskedPrecisely(t *testing.T) {
	sha := strings.Repeat("0", 64)
	for path, right := range map[string]string{
		"/v1/services":                   "list/services",
		"/v1/namespaces/one/services/s0": "get/services",
		"/v1/certificates":               "list/certificates",
		"/v1/certificates/" + sha:        "get/certificates",
		"/v1/expiring":                   "list/certificates",
		"/v1/identities/spiffe:%2F%2Ftd%2Fns%2Fone%2Fsa%2Fa": "get/identities",
		"/v1/issuances":               "list/issuances",
		"/v1/gateways":                "list/gateways",
		"/v1/gateways?watch=true":     "watch/gateways",
		"/v1/trust":                   "get/trust",
		"/v1/services?watch=true":     "watch/services",
		"/v1/certificates?watch=true": "watch/certificates",
		"/v1/issuances?watch=true":    "watch/issuances",
	} {
		t.Run(path, func(t *testing.T) {
			r := newRig(t, Config{})
			r.data.services, r.data.certificates = services("one"), certificates(1, "one")
			r.api.set(func() { r.api.denied = map[string]string{"all": right} })
			assert.Equal(t, 403, r.do(t, "GET", path, "all").status)
			r.api.set(func() {
				for _, review := range r.api.reviews {
					at := review.ResourceAttributes
					assert.Equal(t, right, at.Verb+"/"+at.Resource)
					assert.Equal(t, "signet.dev", at.Group)
				}
			})
			if !strings.Contains(path, "watch") {
				r2 := newRig(t, Config{})
				r2.data.services, r2.data.certificates = services("one"), certificates(1, "one")
				assert.Equal(t, 200, r2.do(t, "GET", path, "all").status)
			}
		})
	}
}

// TestHiddenObjects: who may not see a namespace can't tell whether something is there.
func TestHiddenObjects(t *testing.T) {
	r := newRig(t, Config{})
	r.data.services, r.data.certificates = services("two"), certificates(1, "two")
	there, missing := r.data.certificates[0].SHA256, strings.Repeat("f", 64)
	for name, paths := range map[string][2]string{
		"service":     {"/v1/namespaces/two/services/s0", "/v1/namespaces/two/services/nothing"},
		"certificate": {"/v1/certificates/" + there, "/v1/certificates/" + missing},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := r.do(t, "GET", paths[0], "one"), r.do(t, "GET", paths[1], "one")
			assert.Equal(t, 403, a.status)
			assert.Equal(t, a.body, b.body)
			a.header.Del("Date")
			b.header.Del("Date")
			assert.Equal(t, a.header, b.header)
			assert.Equal(t, 200, r.do(t, "GET", paths[0], "two").status, "who may see it")
		})
	}
	r.data.certificates[0].Namespace = "" // of no namespace: only for who may see all
	assert.Equal(t, 403, r.do(t, "GET", "/v1/certificates/"+there, "two").status)
	assert.Equal(t, 200, r.do(t, "GET", "/v1/certificates/"+there, "all").status)
	r.data.err = errors.New("disk")
	assert.Equal(t, 500, r.do(t, "GET", "/v1/certificates/"+there, "two").status)
}

func TestIdentities(t *testing.T) {
	r := newRig(t, Config{})
	for _, id := range []string{
		"spiffe://cluster.local/ns/one/sa/web",
		"spiffe://cluster.local/ns/one/sa/we.b-2_X",
		"spiffe://td.example/ns/one/sa/web/extra",
		"spiffe://td",
	} {
		got, err := r.client(t, "all").Identity(t.Context(), id)
		require.NoError(t, err, id)
		assert.Equal(t, id, got.SPIFFEID)
	}
	_, err := r.client(t, "one").Identity(t.Context(), "spiffe://cluster.local/ns/one/sa/web")
	assert.NoError(t, err)
	for _, id := range []string{"spiffe://cluster.local/ns/two/sa/web", "spiffe://cluster.local/ns/one/sa/web/extra", "spiffe://cluster.local/one", "spiffe://cluster.local"} {
		_, err := r.client(t, "one").Identity(t.Context(), id)
		assert.ErrorContains(t, err, "(403)", id)
	}
	for _, id := range []string{"spiffe://cluster.local/ns/one/sa/a b", "spiffe://cluster.local/ns/one/sa/ü", "spiffe://cluster.local//x", "spiffe://cluster.local/../x", "spiffe://cluster.local/%2e", "x';--", "\x00", "?", "#", "%"} {
		_, err := r.client(t, "all").Identity(t.Context(), id)
		assert.ErrorContains(t, err, "(422)", "%q", id)
	}
	_, err = r.client(t, "all").Identity(t.Context(), "..")
	assert.Error(t, err)
}

func TestQueriesReachTheViews(t *testing.T) {
	r := newRig(t, Config{})
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	ask := r.client(t, "all")
	want := CertificateQuery{
		Page: Page{Limit: 7, Continue: ""}, Namespace: "one", Identity: "spiffe://x/' OR 1=1;--", SAN: "URI:a&b=c", Serial: "0f", Node: "n/1", Issuer: "Issuer.cert-manager.io/x",
		State: Due, Standing: "any", ExpiresWithin: 36 * time.Hour, RemainingRatioBelow: 0.25,
	}
	_, err := ask.Certificates(t.Context(), want)
	require.NoError(t, err)
	got := r.data.last().(CertificateQuery)
	assert.NotNil(t, got.Visible)
	got.Visible = nil
	assert.Equal(t, want, got)
	_, err = ask.Expiring(t.Context(), want)
	require.NoError(t, err)
	got = r.data.last().(CertificateQuery)
	got.Visible = nil
	assert.Equal(t, want, got)
	_, err = ask.Expiring(t.Context(), CertificateQuery{})
	require.NoError(t, err)
	assert.Equal(t, time.Hour, r.data.last().(CertificateQuery).ExpiresWithin)
	assert.Equal(t, 100, r.data.last().(CertificateQuery).Limit)

	_, err = ask.Issuances(t.Context(), IssuanceQuery{Since: at, Outcome: Refused, Namespace: "one", Identity: "spiffe://i"})
	require.NoError(t, err)
	issuances := r.data.last().(IssuanceQuery)
	issuances.Visible = nil
	assert.Equal(t, IssuanceQuery{Page: Page{Limit: 100}, Since: at, Outcome: Refused, Namespace: "one", Identity: "spiffe://i"}, issuances)

	_, err = ask.Services(t.Context(), ServiceQuery{Namespace: "one", Problems: true})
	require.NoError(t, err)
	assert.True(t, r.data.last().(ServiceQuery).Problems)
}

// TestFilters: what answers hold can be asked for, whatever it is like, and what they can't hold is refused with the form
// that it must have.
func TestFilters(t *testing.T) {
	r := newRig(t, Config{})
	ask := r.client(t, "all")
	for name, q := range map[string]CertificateQuery{
		"none":                        {},
		"an identity of no account":   {Identity: "spiffe://old.domain"},
		"an identity that is no ID":   {Identity: "spiffe://Old_Domain/a%20b//c?d"},
		"a URI without a host":        {Identity: "spiffe:x"},
		"the serial number zero":      {Serial: "00"},
		"a serial number with colons": {Serial: "5F:3a:99"},
		"the longest serial number":   {Serial: strings.Repeat("ff:", 63) + "ff"},
		"a cluster's issuer":          {Issuer: "ClusterIssuer.cert-manager.io/a.b-c"},
		"another group's issuer":      {Issuer: "AWSPCAClusterIssuer.awspca.cert-manager.io/mesh"},
		"a group of one word":         {Issuer: "Kind.group/odd/name with spaces"},
	} {
		_, err := ask.Certificates(t.Context(), q)
		assert.NoError(t, err, name)
		_, err = ask.Expiring(t.Context(), q)
		assert.NoError(t, err, name)
		_, err = ask.Issuances(t.Context(), IssuanceQuery{Identity: q.Identity})
		assert.NoError(t, err, name)
	}
	for want, q := range map[string]CertificateQuery{
		"query.identity: expected string to be a SPIFFE ID such as spiffe://cluster.local/ns/shop/sa/cart": {Identity: "cart"},
		"query.serial: expected string to be a serial number in hexadecimal, such as 5f3a99 or 5F:3A:99":   {Serial: "0x5f"},
		"query.issuer: expected string to be kind.group/name, such as Issuer.cert-manager.io/istio-ca":     {Issuer: "istio-ca"},
		`query.state: expected value to be one of "fresh, due, overdue, expired"`:                          {State: "bogus"},
		`query.standing: expected value to be one of "live, superseded, orphaned, ended, any"`:             {Standing: "bogus"},
	} {
		_, err := ask.Certificates(t.Context(), q)
		assert.EqualError(t, err, "validation failed (422); "+want)
	}
}

// TestResponseError: what is wrong is said once, and in bounds.
func TestResponseError(t *testing.T) {
	said := func(f *fault) string { return (&ResponseError{Problem: f.ProblemDetails}).Error() }
	assert.Equal(t, "Conflict (409)", said(newFault(409, "")))
	_, err := span("within", "soon")
	assert.Equal(t, asFault(err).Detail+" (422)", said(asFault(err)))
	f := fromViews(t.Context(), ErrBadContinue, "")
	assert.Equal(t, f.Detail+" (400)", said(f))
	assert.Equal(t, "a (422); body: b; c", said(newFault(422, "a").at("body", "b", nil).at("", "c", nil).at("empty", "", nil)))

	f = newFault(422, "a")
	for range 1000 {
		f = f.at("query.x", strings.Repeat("ü", 10_000), nil)
	}
	assert.Less(t, len(said(f)), 6000)
	assert.Contains(t, said(f), "…; and more")
}

func TestPaging(t *testing.T) {
	r := newRig(t, Config{})
	r.data.certificates = certificates(1234, "one")
	for _, limit := range []int{0, 1, 500} {
		q := CertificateQuery{Page: Page{Limit: limit}}
		if limit == 1 {
			q.Continue = "1200:"
		}
		var serials []string
		for certificate, err := range r.client(t, "all").AllCertificates(t.Context(), q) {
			require.NoError(t, err)
			serials = append(serials, certificate.Serial)
		}
		want := 1234
		if limit == 1 {
			want = 34
		}
		require.Len(t, serials, want, "limit %d", limit)
		assert.Equal(t, strconv.FormatInt(1233, 16), serials[want-1])
	}
	var last error
	for _, last = range r.client(t, "all").AllCertificates(t.Context(), CertificateQuery{Page: Page{Continue: "junk"}}) {
	}
	assert.ErrorIs(t, last, ErrBadContinue)
}

// TestTags: an answer that differs only in how much of a life is left is the same one.
func TestTags(t *testing.T) {
	r := newRig(t, Config{})
	r.data.certificates = certificates(3, "one")
	first := r.do(t, "GET", "/v1/certificates", "all")
	tag := first.header.Get("ETag")
	require.Regexp(t, `^W/"[0-9a-f]{32}"$`, tag)
	assert.Contains(t, first.header.Get("Vary"), "Authorization")

	r.data.certificates[1].RemainingSeconds, r.data.certificates[1].RemainingRatio = 5, 1e-7
	same := r.do(t, "GET", "/v1/certificates", "all", "If-None-Match", `"x", `+tag)
	assert.Equal(t, 304, same.status)
	assert.Empty(t, same.body)
	assert.Equal(t, tag, same.header.Get("ETag"))
	assert.Equal(t, 304, r.do(t, "GET", "/v1/certificates", "all", "If-None-Match", strings.TrimPrefix(tag, "W/")).status)
	assert.Equal(t, 304, r.do(t, "GET", "/v1/certificates", "all", "If-None-Match", "*").status)
	assert.Equal(t, 401, r.do(t, "GET", "/v1/certificates", "", "If-None-Match", "*").status, "who has it must say who it is all the same")
	assert.Equal(t, 403, r.do(t, "GET", "/v1/certificates", "none", "If-None-Match", "*").status)

	head := r.do(t, "HEAD", "/v1/certificates", "all")
	assert.Equal(t, tag, head.header.Get("ETag"))
	assert.Empty(t, head.body)
	assert.NotEmpty(t, head.header.Get("Content-Length"))

	r.data.certificates[1].State = Due
	changed := r.do(t, "GET", "/v1/certificates", "all", "If-None-Match", tag)
	assert.Equal(t, 200, changed.status)
	assert.NotEqual(t, tag, changed.header.Get("ETag"))
	one := r.do(t, "GET", "/v1/certificates/"+r.data.certificates[0].SHA256, "all")
	assert.Equal(t, 304, r.do(t, "GET", "/v1/certificates/"+r.data.certificates[0].SHA256, "all", "If-None-Match", one.header.Get("ETag")).status)
}

func TestStable(t *testing.T) {
	for text, want := range map[string]string{
		``:                              ``,
		`{"a":1}`:                       `{"a":1}`,
		`{"remainingSeconds":12,"a":1}`: `{"remainingSeconds":,"a":1}`,
		`{"remainingRatio":0.5}`:        `{"remainingRatio":}`,
		`{"remainingRatio":1e-07,"remainingSeconds":3}x`: `{"remainingRatio":,"remainingSeconds":}x`,
		`{"a":"\"remainingSeconds\":12"}`:                `{"a":"\"remainingSeconds\":12"}`,
	} {
		var got strings.Builder
		stable([]byte(text), func(part []byte) { got.Write(part) })
		assert.Equal(t, want, got.String())
	}
}

func TestGzip(t *testing.T) {
	r := newRig(t, Config{})
	r.data.certificates = certificates(50, "one")
	plain := r.do(t, "GET", "/v1/certificates", "all")
	require.Empty(t, plain.header.Get("Content-Encoding"))
	for accepted, packed := range map[string]bool{
		"gzip": true, "br, gzip;q=0.5": true, "*": true, "GZIP": true, "gzip;q=0": false, "br": false, "*, gzip;q=0": false, "gzip;q=x": false,
	} {
		got := r.do(t, "GET", "/v1/certificates", "all", "Accept-Encoding", accepted)
		require.Equal(t, packed, got.header.Get("Content-Encoding") == "gzip", accepted)
		assert.Equal(t, strconv.Itoa(len(got.body)), got.header.Get("Content-Length"))
		assert.Equal(t, plain.header.Get("ETag"), got.header.Get("ETag"))
		assert.Contains(t, got.header.Get("Vary"), "Accept-Encoding")
		if packed {
			reader, err := gzip.NewReader(strings.NewReader(got.body))
			require.NoError(t, err)
			body, err := io.ReadAll(reader)
			require.NoError(t, err)
			assert.Equal(t, plain.body, string(body))
			assert.Less(t, len(got.body), len(plain.body)/4)
		}
	}
	assert.Empty(t, r.do(t, "GET", "/v1/trust", "all", "Accept-Encoding", "gzip").header.Get("Content-Encoding"), "too small to be worth it")
}

func TestBodiesAreRefused(t *testing.T) {
	for _, body := range []io.Reader{strings.NewReader("x"), io.MultiReader(strings.NewReader("x"))} {
		r := newRig(t, Config{}) // a refusal ends its connection, which the next request must not meet
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/v1/services", body)
		require.NoError(t, err)
		response, err := r.http.Do(request)
		require.NoError(t, err)
		response.Body.Close()
		assert.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode)
	}
}

// TestInFlight: what is under way is bounded in all and for each caller, and both are told apart.
func TestInFlight(t *testing.T) {
	r := newRig(t, Config{InFlight: 8}, func(s *Server) { s.working = make(chan struct{}, 100) })
	r.data.hold = make(chan struct{})
	results := make(chan int, 20)
	ask := func(user string, n int) {
		for range n {
			go func() {
				got, err := r.ask(t.Context(), "GET", "/v1/services", user)
				assert.NoError(t, err)
				results <- got.status
			}()
		}
	}
	ask("all", 2)
	require.Eventually(t, func() bool {
		r.inFlight.mu.Lock()
		defer r.inFlight.mu.Unlock()
		return r.inFlight.each["all"] == 2
	}, patience, time.Millisecond)
	over := r.do(t, "GET", "/v1/services", "all")
	assert.Equal(t, 429, over.status)
	assert.Equal(t, "1", over.header.Get("Retry-After"))
	assert.Contains(t, over.problem(t).Detail, "you have 2 requests under way")

	ask("one", 2)
	ask("two", 2)
	r.api.set(func() { r.api.rights["more"] = []string{"*"} })
	ask("more", 2)
	require.Eventually(t, func() bool { return r.inFlight.used() == 8 }, patience, time.Millisecond)
	full := r.do(t, "GET", "/v1/services", "all")
	assert.Equal(t, 503, full.status)
	assert.Equal(t, "1", full.header.Get("Retry-After"))
	assert.Equal(t, "too many requests are under way; ask again", full.problem(t).Detail)
	close(r.data.hold)
	for range 8 {
		assert.Equal(t, 200, <-results)
	}
	assert.Eventually(t, func() bool { return r.inFlight.used() == 0 }, patience, time.Millisecond)
	assert.Empty(t, r.inFlight.each)
}

// TestWorking: only half of the CPUs work for inspection.
func TestWorking(t *testing.T) {
	r := newRig(t, Config{InFlight: 1000})
	require.Equal(t, max(1, runtime.GOMAXPROCS(0)/2), cap(r.working))
	r.data.hold = make(chan struct{})
	var group sync.WaitGroup
	asked := cap(r.working) + 9 // more than may work, however many CPUs there are
	for range asked {
		group.Go(func() {
			_, err := r.ask(t.Context(), "GET", "/v1/services", "all")
			assert.NoError(t, err)
		})
	}
	require.Eventually(t, func() bool { return r.inFlight.used() == asked && len(r.working) == cap(r.working) }, patience, time.Millisecond)
	close(r.data.hold)
	group.Wait()
	require.Eventually(t, func() bool { return r.inFlight.used() == 0 && len(r.working) == 0 }, patience, time.Millisecond)
}

// TestReadyText: what /readyz shows is what is under way now.
func TestReadyText(t *testing.T) {
	r := newRig(t, Config{})
	say := func(want string) {
		t.Helper()
		text, err := r.Ready(time.Now())
		require.NoError(t, err)
		assert.Equal(t, want, text)
	}
	say("not listening yet")
	var address net.Addr = &net.TCPAddr{IP: net.IPv4zero, Port: 8443}
	r.address.Store(&address)
	for range 2 {
		require.True(t, r.inFlight.enter())
	}
	say("0.0.0.0:8443, 2 requests under way, 0 watches open")
}

// stuck is a reader that reads nothing until it is told to.
type stuck struct {
	*httptest.ResponseRecorder
	reached, release chan struct{}
}

func (s stuck) Write(text []byte) (int, error) {
	close(s.reached)
	<-s.release
	return s.ResponseRecorder.Write(text)
}

// TestSlowReadersHoldNobodyUp: who reads slowly has its own place in flight, but not that of those who work.
func TestSlowReadersHoldNobodyUp(t *testing.T) {
	r := newRig(t, Config{})
	reader := stuck{httptest.NewRecorder(), make(chan struct{}), make(chan struct{})}
	request := httptest.NewRequest("GET", "/v1/trust", nil)
	request.Header.Set("Authorization", "Bearer all")
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.ServeHTTP(reader, request)
	}()
	<-reader.reached
	assert.Empty(t, r.working)
	assert.Equal(t, 1, r.inFlight.used())
	close(reader.release)
	<-done
	assert.Zero(t, r.inFlight.used())
}

type panicking struct{ Views }

func TestPanicsAndFaults(t *testing.T) {
	r := newRig(t, Config{})
	r.data.err = errors.New("secret cause")
	got := r.do(t, "GET", "/v1/services", "all")
	assert.Equal(t, 500, got.status)
	assert.NotContains(t, got.body, "secret cause")
	got.problem(t)

	r.views = panicking{}
	got = r.do(t, "GET", "/v1/services", "all")
	assert.Equal(t, 500, got.status)
	got.problem(t)
	assert.Zero(t, r.inFlight.used())
	assert.Empty(t, r.working)
}

func TestMount(t *testing.T) {
	r := newRig(t, Config{}, func(s *Server) {
		s.Mount("GET /ui/", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "page") }))
	})
	assert.Equal(t, "page", r.do(t, "GET", "/ui/x", "").body)
}

// TestOpenAPI: the document is made from the types, so a change of them shows here.
func TestOpenAPI(t *testing.T) {
	r := newRig(t, Config{})
	got := r.do(t, "GET", "/openapi.json", "")
	require.Equal(t, 200, got.status)
	assert.Equal(t, "application/openapi+json", got.header.Get("Content-Type"))
	var document map[string]any
	require.NoError(t, json.Unmarshal([]byte(got.body), &document))
	pretty, err := json.MarshalIndent(document, "", "  ")
	require.NoError(t, err)
	golden := filepath.Join("testdata", "openapi.json")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, append(pretty, '\n'), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(pretty)+"\n", "go test ./api -run TestOpenAPI -update")
	assert.Equal(t, "3.1.0", document["openapi"])
	assert.Len(t, document["paths"], 10)
	for name, schema := range document["components"].(map[string]any)["schemas"].(map[string]any) {
		if strings.HasPrefix(name, "Error") {
			continue
		}
		assert.NotEmpty(t, schema.(map[string]any)["description"], "schema %s", name)
	}
}

// TestDocs: the page needs nothing but itself.
func TestDocs(t *testing.T) {
	r := newRig(t, Config{})
	got := r.do(t, "GET", "/docs", "")
	require.Equal(t, 200, got.status)
	assert.Equal(t, "text/html; charset=utf-8", got.header.Get("Content-Type"))
	assert.Contains(t, got.header.Get("Content-Security-Policy"), "default-src 'none'")
	for _, forbidden := range []string{"<script", "src=", "http://", "https://", "@import", "url("} {
		assert.NotContains(t, got.body, forbidden)
	}
	for _, wanted := range []string{"/v1/identities/{spiffe}", "remainingRatioBelow", "CertificateList", "EventService", "fresh | due | overdue | expired"} {
		assert.Contains(t, got.body, wanted)
	}
}

// TestMetrics: routes are of a closed set, and no label holds a name of a caller or an identity.
func TestMetrics(t *testing.T) {
	r := newRig(t, Config{})
	for _, path := range []string{"/v1/services", "/v1/identities/spiffe:%2F%2Ftd%2Fns%2Fone%2Fsa%2Fa", "/v1/namespaces/one/services/x", "/junk/1", "/junk/2", "/v1/trust/../x"} {
		r.do(t, "GET", path, "all")
	}
	families, err := r.reg.Gather()
	require.NoError(t, err)
	got := make(map[string]float64)
	for _, family := range families {
		for _, sample := range family.GetMetric() {
			var labels []string
			for _, label := range sample.GetLabel() {
				labels = append(labels, label.GetValue())
			}
			if family.GetName() == "api_requests_total" {
				got[strings.Join(labels, " ")] = sample.GetCounter().GetValue()
			}
			assert.NotContains(t, labels, "all", family.GetName())
		}
	}
	assert.Equal(t, map[string]float64{
		"200 /v1/identities/{spiffe}": 1, "200 /v1/services": 1, "404 /v1/namespaces/{ns}/services/{name}": 1, "404 other": 3,
	}, got)
}

func TestSpan(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "1": time.Second, "3600": time.Hour, "90m": 90 * time.Minute, "7d": 7 * 24 * time.Hour, "36h": 36 * time.Hour, "1h30m": 90 * time.Minute,
	} {
		got, err := span("x", text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"0", "-1", "d", "1.5d", "-1d", "99999999999999999999", "9223372036854775807", "2147483647d", "99999999d", "1y", "NaN", "1h-2h", " 1h", "1e3"} {
		_, err := span("x", text)
		assert.Error(t, err, text)
	}
}

func TestClientErrors(t *testing.T) {
	_, err := NewClient("localhost:8443", nil)
	assert.ErrorContains(t, err, "is not one such as https://localhost:8443")
	for _, base := range []string{"", "ftp://x", "https://", "https://x?y", "://"} {
		_, err := NewClient(base, nil)
		assert.Error(t, err, base)
	}
	status, kind, body := 0, "", ""
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(front.Close)
	client, err := NewClient(front.URL+"/prefix/", front.Client())
	require.NoError(t, err)
	status, kind, body = 503, problemType, `{"status":503,"title":"Service Unavailable","detail":"later"}`
	_, err = client.Trust(t.Context())
	failure, ok := errors.AsType[*ResponseError](err)
	require.True(t, ok)
	assert.Equal(t, "later", failure.Problem.Detail)
	assert.Equal(t, 7*time.Second, failure.RetryAfter)
	assert.EqualError(t, err, "later (503)")
	status, kind, body = 502, "text/html", `<html>`
	_, err = client.Trust(t.Context())
	assert.EqualError(t, err, "Bad Gateway (502)")
	status, kind, body = 404, problemType, `{`
	_, err = client.Trust(t.Context())
	assert.ErrorIs(t, err, ErrNotFound)
	status, kind, body = 200, "application/json", `{`
	_, err = client.Trust(t.Context())
	assert.ErrorContains(t, err, "read answer of the inspection API")
	status, kind, body = 200, "application/x-ndjson", `{"type":"synced"}`+"\n"
	var events []EventType
	for event, err := range client.WatchServices(t.Context(), ServiceQuery{}, "") {
		if err != nil {
			assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
		}
		events = append(events, event.Type)
	}
	assert.Equal(t, []EventType{Synced, ""}, events)
}

func FuzzServeHTTP(f *testing.F) {
	for _, path := range []string{"/v1/services?limit=5", "/v1/identities/spiffe:%2F%2Fa", "/v1/certificates?state=due&expiresWithin=7d", "/v1/issuances?since=2026-01-01T00:00:00Z", "/v1/%2e%2e/x", "//", "/v1/namespaces/a/services/b?x", "/v1/expiring?within=1&within=2"} {
		f.Add(path, "Bearer all", "gzip", `W/"x"`)
	}
	r := newRig(f, Config{})
	f.Fuzz(func(t *testing.T, target, authorization, encoding, tag string) {
		at, err := url.ParseRequestURI(target)
		if err != nil || at.Host != "" || strings.Contains(target, "watch") {
			return
		}
		request := httptest.NewRequest("GET", "/", nil)
		request.URL, request.RequestURI = at, target
		request.Header.Set("Authorization", authorization)
		request.Header.Set("Accept-Encoding", encoding)
		request.Header.Set("If-None-Match", tag)
		recorder := httptest.NewRecorder()
		r.ServeHTTP(recorder, request)
		if !slices.Contains([]int{200, 304, 400, 401, 403, 404, 422}, recorder.Code) {
			t.Fatalf("%s: %d %s", target, recorder.Code, recorder.Body)
		}
		if recorder.Code >= 400 && recorder.Header().Get("Content-Type") != problemType {
			t.Fatalf("%s: %d is no problem: %s", target, recorder.Code, recorder.Body)
		}
		if r.inFlight.used() != 0 || len(r.working) != 0 {
			t.Fatal("something is still under way")
		}
	})
}

// BenchmarkPage is a page of 500 certificates, as it is written.
func BenchmarkPage(b *testing.B) {
	for _, encoding := range []string{"identity", "gzip"} {
		b.Run(encoding, func(b *testing.B) {
			r := newRig(b, Config{})
			r.data.certificates = certificates(500, "one")
			b.ReportAllocs()
			size := 0
			for b.Loop() {
				request := httptest.NewRequest("GET", "/v1/certificates?limit=500", nil)
				request.Header.Set("Authorization", "Bearer all")
				request.Header.Set("Accept-Encoding", encoding)
				recorder := httptest.NewRecorder()
				r.ServeHTTP(recorder, request)
				if recorder.Code != 200 {
					b.Fatal(recorder.Body)
				}
				size = recorder.Body.Len()
			}
			b.ReportMetric(float64(size), "bytes")
		})
	}
}
