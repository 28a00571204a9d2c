package api

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/rest"
)

// reviewer is an API server that allows readers what is granted, by namespace, and counts the questions.
type reviewer struct {
	granted map[string]bool
	asked   int
}

func (r *reviewer) RoundTrip(request *http.Request) (*http.Response, error) {
	var review authorizationv1.SubjectAccessReview
	if err := json.NewDecoder(request.Body).Decode(&review); err != nil {
		return nil, err
	}
	r.asked++
	review.Status.Allowed = r.granted[review.Spec.ResourceAttributes.Namespace]
	text, err := json.Marshal(&review)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: http.StatusCreated, Request: request, Body: io.NopCloser(strings.NewReader(string(text))),
		Header: http.Header{"Content-Type": {"application/json"}},
	}, nil
}

// TestRightsAreKept: for the cache time nobody asks again, and then somebody does, about a right in all namespaces, in one,
// and in some.
func TestRightsAreKept(t *testing.T) {
	for name, row := range map[string]struct {
		namespace string // asked for
		granted   string // "" in all of them
	}{
		"all":  {"", ""},
		"one":  {"alpha", "alpha"},
		"some": {"", "alpha"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &reviewer{granted: make(map[string]bool)}
				all, err := newReviews(&rest.Config{Host: "http://api", Transport: server, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, time.Second)
				require.NoError(t, err)
				all.count = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "reviews_total", Help: "Reviews."}, []string{"kind", "result"})
				a := newAuthoriser(Config{}.withDefaults(), all, func() []string { return []string{"alpha"} })
				for _, may := range []bool{false, true, false} {
					server.granted[row.granted] = may
					for range 2 { // the second time it is kept
						_, err := a.visible(t.Context(), &caller{name: "reader"}, "list", "services", row.namespace)
						assert.Equal(t, may, err == nil, "%v", err)
						server.granted[row.granted] = !may
					}
					time.Sleep(a.cacheTime)
					asked := server.asked
					_, err := a.visible(t.Context(), &caller{name: "reader"}, "list", "services", row.namespace)
					assert.Equal(t, may, err == nil, "%v", err)
					assert.Equal(t, asked, server.asked)
					time.Sleep(time.Nanosecond)
				}
			})
		})
	}
}
