package api

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// audited keeps what it is told.
type audited struct {
	mu  sync.Mutex
	all []Read
}

func (a *audited) Read(r Read) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, r)
}

// next waits for the one that comes after so many others: it is told of after the answer has been sent.
func (a *audited) next(t *testing.T, after int) Read {
	t.Helper()
	var r Read
	require.Eventually(t, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.all) <= after {
			return false
		}
		r = a.all[after]
		return true
	}, patience, time.Millisecond, "the auditor isn't told")
	return r
}

func (a *audited) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.all)
}

func newAudited(t *testing.T, cfg Config, adjust ...func(*Server)) (*rig, *audited) {
	told := &audited{}
	return newRig(t, cfg, append(adjust, func(s *Server) { s.SetAuditor(told) })...), told
}

// TestAuditor: each request to a route of the API is told of once, with what was answered, and with nothing that the
// caller chose but what the route takes.
func TestAuditor(t *testing.T) {
	r, told := newAudited(t, Config{})
	r.data.services = services("one", "one", "two")
	r.data.certificates = certificates(3, "one")
	token := "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJqYW5lIn0.c2lnbmF0dXJl"
	for n, row := range []struct {
		method, path, user string
		want               Read
	}{
		{"GET", "/v1/services", "all", Read{User: "all", Route: "/v1/services", Status: 200, Items: 3}},
		{"GET", "/v1/services?namespace=one&limit=1", "one", Read{User: "one", Route: "/v1/services", Namespace: "one", Filters: map[string]string{"namespace": "one", "limit": "1"}, Status: 200, Items: 1}},
		{"GET", "/v1/services?limit=1&continue=1:", "two", Read{User: "two", Route: "/v1/services", Filters: map[string]string{"limit": "1"}, Status: 200, Items: 1}},
		{"HEAD", "/v1/services", "all", Read{User: "all", Route: "/v1/services", Status: 200, Items: 3}},
		{"GET", "/v1/namespaces/one/services/s0", "one", Read{User: "one", Route: "/v1/namespaces/{ns}/services/{name}", Namespace: "one", Filters: map[string]string{"ns": "one", "name": "s0"}, Status: 200, Items: 1}},
		{"GET", "/v1/identities/spiffe:%2F%2Ftd%2Fns%2Fone%2Fsa%2Fa", "one", Read{User: "one", Route: "/v1/identities/{spiffe}", Filters: map[string]string{"spiffe": "spiffe://td/ns/one/sa/a"}, Status: 200, Items: 1}},
		// Without success, only who asked for what route.
		{"GET", "/v1/services?namespace=two", "one", Read{User: "one", Route: "/v1/services", Namespace: "two", Status: 403}},
		{"GET", "/v1/namespaces/one/services/s9", "one", Read{User: "one", Route: "/v1/namespaces/{ns}/services/{name}", Namespace: "one", Status: 404}},
		{"GET", "/v1/services", "", Read{Route: "/v1/services", Status: 401}},
		{"GET", "/v1/services?access_token=" + token, "", Read{Route: "/v1/services", Status: 401}},
		{"GET", "/v1/services?access_token=" + token, "all", Read{User: "all", Route: "/v1/services", Status: 422}},
		{"GET", "/v1/services?namespace=Not+A+Name", token, Read{Route: "/v1/services", Status: 401}},
		{"GET", "/v1/trust", "none", Read{User: "none", Route: "/v1/trust", Status: 403}},
		{"GET", "/v1/certificates?limit=x", "all", Read{User: "all", Route: "/v1/certificates", Status: 422}},
		// A token in the wrong place.
		{"GET", "/v1/certificates?node=" + token, "all", Read{User: "all", Route: "/v1/certificates", Filters: map[string]string{"node": "(withheld)"}, Status: 200, Items: 3}},
		{"GET", "/v1/certificates?node=-----BEGIN+PRIVATE+KEY-----", "all", Read{User: "all", Route: "/v1/certificates", Filters: map[string]string{"node": "(withheld)"}, Status: 200, Items: 3}},
	} {
		got := r.do(t, row.method, row.path, row.user)
		require.Equal(t, row.want.Status, got.status, "%s %s", row.path, got.body)
		read := told.next(t, n)
		assert.Equal(t, "127.0.0.1", read.Address)
		assert.Positive(t, read.Duration)
		assert.WithinDuration(t, time.Now(), read.Time, time.Minute)
		assert.EqualValues(t, len(got.body), read.Bytes)
		assert.NotContains(t, fmt.Sprintf("%+v", read), token)
		row.want.Method = row.method
		read.Address, read.Duration, read.Time, read.Bytes = "", 0, time.Time{}, 0
		if row.want.Filters == nil && row.want.Status == 200 {
			row.want.Filters = map[string]string{}
		}
		assert.Equal(t, row.want, read, row.path)
	}
	before := told.count()
	for _, path := range []string{"/openapi.json", "/docs", "/junk", "/v1/junk", "/v1/../v1/services"} {
		r.do(t, "GET", path, "all")
	}
	r.do(t, "GET", "/v1/services", "all")
	assert.Equal(t, "/v1/services", told.next(t, before).Route, "what holds nothing of the cluster isn't told of")

	tag := r.do(t, "GET", "/v1/services", "all").header.Get("ETag")
	require.Equal(t, 304, r.do(t, "GET", "/v1/services", "all", "If-None-Match", tag).status)
	read := told.next(t, before+2)
	assert.Equal(t, 304, read.Status)
	assert.Zero(t, read.Bytes)
	packed := r.do(t, "GET", "/v1/certificates", "all", "Accept-Encoding", "gzip")
	require.Equal(t, "gzip", packed.header.Get("Content-Encoding"))
	assert.EqualValues(t, len(packed.body), told.next(t, before+3).Bytes)
	assert.Equal(t, before+4, told.count())
}

// TestAuditorOfTooMany: who may not ask more is told of.
func TestAuditorOfTooMany(t *testing.T) {
	r, told := newAudited(t, Config{InFlight: 4})
	r.data.hold = make(chan struct{})
	first := make(chan int, 1)
	request := r.request(t, "/v1/services", "all")
	go func() {
		response, err := r.http.Do(request)
		if err != nil {
			first <- 0
			return
		}
		response.Body.Close()
		first <- response.StatusCode
	}()
	require.Eventually(t, func() bool {
		r.inFlight.mu.Lock()
		defer r.inFlight.mu.Unlock()
		return r.inFlight.each["all"] == 1
	}, patience, time.Millisecond)
	require.Equal(t, http.StatusTooManyRequests, r.do(t, "GET", "/v1/trust", "all").status)
	read := told.next(t, 0)
	assert.Equal(t, http.StatusTooManyRequests, read.Status)
	assert.Equal(t, "all", read.User)
	assert.Equal(t, "/v1/trust", read.Route)
	close(r.data.hold)
	require.Equal(t, 200, <-first)
	assert.Equal(t, 200, told.next(t, 1).Status)
}

func (r *rig) request(t *testing.T, path, user string) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+path, nil)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+user)
	return request
}

// TestAuditorOfWatches: a watch is told of when its stream starts, so that one which never ends is seen, and at its
// end with how much it was.
func TestAuditorOfWatches(t *testing.T) {
	r, told := newAudited(t, Config{}, quick)
	r.data.services = services("one", "one", "two")
	response, err := r.http.Do(r.request(t, "/v1/services?watch=true&namespace=one", "one"))
	require.NoError(t, err)
	defer response.Body.Close()
	read := told.next(t, 0)
	assert.Equal(t, Read{
		User: "one", Address: "127.0.0.1", Method: "GET", Route: "/v1/services", Namespace: "one", Filters: map[string]string{"watch": "true", "namespace": "one"},
		Status: 200, Watch: WatchStarted, Time: read.Time, Duration: read.Duration,
	}, read)
	close(r.stopping)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	end := told.next(t, 1)
	assert.Equal(t, WatchEnded, end.Watch)
	assert.Equal(t, "one", end.User)
	assert.Equal(t, read.Time, end.Time)
	assert.GreaterOrEqual(t, end.Duration, read.Duration)
	assert.EqualValues(t, len(body), end.Bytes)
	assert.EqualValues(t, strings.Count(string(body), `"type":"added"`), end.Items)
	assert.EqualValues(t, 2, end.Items)

	refused := r.do(t, "GET", "/v1/services?watch=true&namespace=two", "one")
	assert.Equal(t, 403, refused.status)
	assert.Empty(t, told.next(t, 2).Watch)
}
