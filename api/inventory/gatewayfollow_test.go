package inventory

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// hangingUp has no objects, and returns what client-go does where the API server hangs up on watches.
type hangingUp struct {
	dynamic.NamespaceableResourceInterface
	opens atomic.Bool
}

func (h *hangingUp) Resource(schema.GroupVersionResource) dynamic.NamespaceableResourceInterface {
	return h
}

func (h *hangingUp) List(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	return &unstructured.UnstructuredList{Object: map[string]any{"metadata": map[string]any{"resourceVersion": "1"}}}, nil
}

func (h *hangingUp) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	if h.opens.Load() {
		return watch.NewFake(), nil
	}
	return watch.NewEmptyWatch(), nil
}

// observing is a rig that follows gateways of an API server.
func observing(t *testing.T, server http.HandlerFunc, change ...func(*Config)) *rig {
	api := httptest.NewServer(server)
	t.Cleanup(api.Close)
	r := newRig(t, change...)
	require.NoError(t, r.ObserveGateways(&rest.Config{Host: api.URL, QPS: -1}))
	return r
}

// An API server that hangs up on every watch is in the coverage, though client-go makes no error of it.
func TestAWatchThatNeverOpensIsTold(t *testing.T) {
	r := observing(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind": "APIResourceList", "apiVersion": "v1", "resources": [{"name": "gateways"}]}`)
	})
	f, objects := r.followers[0], &hangingUp{}
	f.objects = objects
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { f.follow(ctx, "v1") })
	assert.Eventually(t, func() bool {
		reason := f.reason.Load()
		return reason != nil && *reason == "watch: the API server hung up, or wasn't reached in time"
	}, time.Minute, time.Millisecond)
	objects.opens.Store(true)
	assert.Eventually(t, func() bool { return f.reason.Load() == nil }, time.Minute, time.Millisecond)
}

// However often gateways change, all of their Secrets are read from time to time.
func TestSecretsAreReadAgainWhileGatewaysChange(t *testing.T) {
	var reads atomic.Int64
	r := observing(t, func(w http.ResponseWriter, request *http.Request) {
		if strings.HasSuffix(request.URL.Path, "/namespaces/shop/secrets/tls") {
			reads.Add(1)
		}
		http.NotFound(w, request)
	}, func(c *Config) { c.Gateways.ReadSecrets = []string{"shop"} })
	reader := r.secretReader
	reader.every = 100 * time.Millisecond
	r.follows()
	r.has("%s", kubernetesGateway("shop", "{name: https, hostname: shop.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: tls}]}}"))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { reader.run(ctx) })
	running.Go(func() {
		for pause(ctx, time.Millisecond) {
			reader.look()
		}
	})
	assert.Eventually(t, func() bool { return reads.Load() >= 4 }, time.Minute, time.Millisecond)
}
