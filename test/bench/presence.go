package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/ca/presence"
)

// The cluster whose pods are indexed: five pods to a service account.
const (
	presencePods       = 100_000
	presenceNodes      = 2000
	presenceNamespaces = 200
	presenceRounds     = 5
)

// measurePresence measures what the index of a cluster's pods needs: bytes of the heap for each of 100,000 pods once they are
// listed (presence_bytes_per_pod), megabytes in use at the most while they are, the server's included (presence_listing_mb), and nanoseconds to ask whether a
// service account runs on a node (presence_lookup_ns). The pods are as large as they usually are, and made up page by page
// by a server that speaks as the API server does: a real one would take minutes to be told of them.
func measurePresence(ctx context.Context, scale float64, progress func(string, ...any), out io.Writer) error {
	pods := max(listedAtOnce, int(presencePods*scale))
	server := httptest.NewUnstartedServer(podServer(pods))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	config := &rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	x, err := presence.New(config, presence.Config{Cluster: "bench", Kinds: []presence.Kind{presence.Pods}}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	empty := heapInUse()
	began := time.Now()
	go func() { ended <- x.Start(ctx) }()
	defer func() { stop(); <-ended }()
	live, most := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}, empty
	for !x.Synced() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		metrics.Read(live)
		most = max(most, live[0].Value.Uint64())
	}
	progress("%d pods listed in %.1f s", pods, time.Since(began).Seconds())
	full := heapInUse()

	asked := make([][3]string, 1<<16)
	for n := range asked {
		p := n * 7919 % pods
		asked[n] = [3]string{presenceNode(p), presenceNamespace(p), presenceAccount(p)}
	}
	var times []float64
	for range presenceRounds {
		began := time.Now()
		for _, of := range asked {
			if !x.RunsOn(of[0], of[1], of[2]) {
				return fmt.Errorf("%q isn't in the index", of)
			}
		}
		times = append(times, float64(time.Since(began).Nanoseconds())/float64(len(asked)))
	}
	slices.Sort(times)
	fmt.Fprintf(out, "bench: presence_bytes_per_pod %.3f\n", float64(full-empty)/float64(pods))
	fmt.Fprintf(out, "bench: presence_listing_mb %.3f\n", float64(most-empty)/(1<<20))
	fmt.Fprintf(out, "bench: presence_lookup_ns %.3f\n", times[len(times)/2])
	return nil
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func presenceNode(n int) string      { return "node-" + strconv.Itoa(n%presenceNodes) }
func presenceNamespace(n int) string { return "namespace-" + strconv.Itoa(n/5%presenceNamespaces) }
func presenceAccount(n int) string   { return "service-" + strconv.Itoa(n/5) }

// listedAtOnce is how many pods the server has in one page.
const listedAtOnce = 500

// podServer lists pods in pages, each of which it makes up anew, and watches without a word.
func podServer(pods int) http.Handler {
	proto := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", k8sruntime.ContentTypeProtobuf)
		if r.URL.Query().Get("watch") != "" {
			w.Header().Set("Content-Type", k8sruntime.ContentTypeProtobuf+";stream=watch")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
		list := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}
		for n := from; n < min(from+listedAtOnce, pods); n++ {
			list.Items = append(list.Items, largePod(n))
		}
		if from+listedAtOnce < pods {
			list.Continue = strconv.Itoa(from + listedAtOnce)
		}
		_ = proto.Encode(list, w) // one that has left needs no answer
	})
}

// largePod is a pod with what pods usually carry: labels, annotations, managed fields, containers with their environment.
func largePod(n int) corev1.Pod {
	text := func(size int) string { return fmt.Sprintf("%0*d", size, n) }
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: presenceNamespace(n), Name: presenceAccount(n) + "-7d4b9c5f6d-" + strconv.Itoa(n), UID: uuid.NewUUID(), ResourceVersion: strconv.Itoa(n),
			Labels:        map[string]string{"app": presenceAccount(n), "pod-template-hash": "7d4b9c5f6d", "version": "v1"},
			Annotations:   map[string]string{"sidecar.istio.io/status": text(500), "kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsV1: metav1.NewFieldsV1(`{"f:` + text(2000) + `":{}}`)}},
		},
		Spec:   corev1.PodSpec{ServiceAccountName: presenceAccount(n), NodeName: presenceNode(n)},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
	for _, name := range []string{"app", "istio-proxy"} {
		container := corev1.Container{Name: name, Image: "registry.example/" + name + ":" + text(20)}
		for e := range 20 {
			container.Env = append(container.Env, corev1.EnvVar{Name: "VARIABLE_" + strconv.Itoa(e), Value: text(40)})
		}
		p.Spec.Containers = append(p.Spec.Containers, container)
	}
	return p
}
