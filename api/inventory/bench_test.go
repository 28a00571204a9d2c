package inventory

import (
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-ca/signet/api"
)

// benchPods is how many pods the benchmarks have, five to a service; each service has an account of its own, so that
// with pods of their own there are as many identities.
const benchPods = 100_000

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// benchRig has pods, the services before them and a leaf for each. Every pod has an account of its own where perService
// is 1. BytesPerLeaf is the memory that the certificates take.
func benchRig(b *testing.B, perService int) (r *rig, pods []*corev1.Pod, bytesPerLeaf float64) {
	b.Helper()
	r = &rig{t: b, records: &memory{}, registry: prometheus.NewRegistry()}
	var err error
	r.Inventory, err = New(Config{TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Cluster: "Kubernetes"}, r.records, TrustSources{},
		slog.New(slog.DiscardHandler), r.registry)
	require.NoError(b, err)
	r.sync()
	pods = make([]*corev1.Pod, benchPods)
	for n := range pods {
		service := n / perService
		p := podLike(fmt.Sprintf("namespace-%03d", service%200), fmt.Sprintf("service-%06d-7d4b9c5f6d-%05d", service, n), fmt.Sprintf("service-%06d", service), n, sidecar, on(fmt.Sprintf("node-%04d", n%2000)))
		shrunk, err := shrinkPod(p)
		require.NoError(b, err)
		pods[n] = shrunk.(*corev1.Pod)
	}
	empty := heap()
	for _, p := range pods {
		r.seen("pods", p)
	}
	withPods := heap()
	for n, p := range pods {
		now := time.Now().Add(-time.Duration(n%(12*3600)) * time.Second).UTC().Truncate(time.Second)
		r.Issued(certificateFor(p, n+1, func(c *api.Certificate) { c.IssuedAt, c.NotBefore, c.NotAfter = now, now, now.Add(24*time.Hour) }))
	}
	withLeaves := heap()
	for n := 0; n < len(pods); n += perService {
		p := pods[n]
		r.service(p.Namespace, p.Spec.ServiceAccountName, pods[n:n+perService]...)
	}
	withServices := heap()
	b.Logf("bytes: %d per pod in the index, %d per pod in the informer (shallow), %d per live certificate, %d per service with its slice and %d pods",
		(withPods-empty)/benchPods, unsafe.Sizeof(corev1.Pod{}), (withLeaves-withPods)/benchPods, (withServices-withLeaves)/(benchPods/uint64(perService)), perService)
	bytesPerLeaf = float64(withLeaves-withPods) / benchPods
	return r, pods, bytesPerLeaf
}

// report tells the middle and the 99th part of a hundred of how long each took.
func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// busy issues certificates for the pods, about so many a second, until the benchmark has ended. It returns how long each
// took.
func busy(b *testing.B, r *rig, pods []*corev1.Pod, perSecond int) func() []time.Duration {
	var stop atomic.Bool
	var group sync.WaitGroup
	var took []time.Duration
	group.Go(func() {
		began := time.Now()
		for n := 0; !stop.Load(); n++ {
			c := certificateFor(pods[(n*7919)%len(pods)], 10_000_000+n)
			at := time.Now()
			r.Issued(c)
			took = append(took, time.Since(at))
			time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(perSecond))))
		}
	})
	return func() []time.Duration { stop.Store(true); group.Wait(); return took }
}

func BenchmarkInventory(b *testing.B) {
	for _, perService := range []int{1, 5, 200} {
		r, pods, bytesPerLeaf := benchRig(b, perService)
		ctx := b.Context()
		run := func(name string, ask func(n int)) {
			b.Run(fmt.Sprintf("per-service=%d/%s", perService, name), func(b *testing.B) {
				b.ReportAllocs()
				end := busy(b, r, pods, 1000)
				var took []time.Duration
				for n := 0; b.Loop(); n++ {
					began := time.Now()
					ask(n)
					took = append(took, time.Since(began))
				}
				issuing := end()
				report(b, took)
				b.ReportMetric(bytesPerLeaf, "bytes/leaf")
				slices.Sort(issuing)
				b.ReportMetric(float64(issuing[len(issuing)*99/100].Nanoseconds())/1000, "p99-issued-us")
			})
		}
		run("nothing", func(int) { time.Sleep(time.Millisecond) })
		next := ""
		run("page of 500 services", func(int) {
			list, err := r.Services(ctx, api.ServiceQuery{Page: api.Page{Limit: 500, Continue: next}, Visible: everything{}})
			require.NoError(b, err)
			next = list.Continue
		})
		run("page of 500 services, none made before", func(int) {
			n := 0
			for s := range r.index.inOrder.from(func(*service) bool { return false }) {
				if s.view.Store(nil); n == 500 {
					break
				}
				n++
			}
			_, err := r.Services(ctx, api.ServiceQuery{Page: api.Page{Limit: 500}, Visible: everything{}})
			require.NoError(b, err)
		})
		run("page of services with problems", func(int) {
			_, err := r.Services(ctx, api.ServiceQuery{Page: api.Page{Limit: 500}, Visible: everything{}, Problems: true})
			require.NoError(b, err)
		})
		run("one service", func(n int) {
			p := pods[(n*7907)%len(pods)]
			s, err := r.Service(ctx, p.Namespace, p.Spec.ServiceAccountName)
			require.NoError(b, err)
			require.Len(b, s.Pods, perService)
		})
		nextCertificates := ""
		run("page of 500 certificates", func(int) {
			list, err := r.Certificates(ctx, api.CertificateQuery{Page: api.Page{Limit: 500, Continue: nextCertificates}, Visible: everything{}})
			require.NoError(b, err)
			nextCertificates = list.Continue
		})
		run("certificates of a namespace", func(n int) {
			_, err := r.Certificates(ctx, api.CertificateQuery{Page: api.Page{Limit: 500}, Visible: everything{}, Namespace: fmt.Sprintf("namespace-%03d", n%200)})
			require.NoError(b, err)
		})
		run("certificate by serial", func(n int) {
			_, err := r.Certificates(ctx, api.CertificateQuery{Page: api.Page{Limit: 500}, Visible: everything{}, Serial: "0123456789abcdef0123456789abcdef"})
			require.NoError(b, err)
		})
		run("expiring", func(n int) {
			_, err := r.Expiring(ctx, api.CertificateQuery{Page: api.Page{Limit: 500}, Visible: everything{}, ExpiresWithin: 13 * time.Hour})
			require.NoError(b, err)
		})
		run("identity", func(n int) {
			p := pods[(n*7907)%len(pods)]
			_, err := r.Identity(ctx, identityOf(p.Namespace, p.Spec.ServiceAccountName))
			require.NoError(b, err)
		})
		run("look", func(n int) { r.look(time.Now()) })
		run("scrape", func(n int) { r.scrape() })
	}
}

func BenchmarkIssued(b *testing.B) {
	r, pods, _ := benchRig(b, 5)
	certificates := make([]api.Certificate, 1<<17)
	for n := range certificates {
		certificates[n] = certificateFor(pods[(n*7919)%len(pods)], 20_000_000+n, func(c *api.Certificate) { c.IssuedAt = c.IssuedAt.Add(time.Second) })
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		r.Issued(certificates[n%len(certificates)])
	}
}

// BenchmarkLeafMetrics is what a scrape walks through: 100,000 live leaves, with and without the series of 10,000
// accounts.
func BenchmarkLeafMetrics(b *testing.B) {
	r, _, _ := benchRig(b, 5)
	for _, most := range []int{0, defaultIdentities} {
		b.Run(fmt.Sprintf("accounts=%d", most), func(b *testing.B) {
			c := &leafMetrics{index: r.index, most: most}
			b.ReportAllocs()
			var took []time.Duration
			for b.Loop() {
				out := make(chan prometheus.Metric, 1000)
				began := time.Now()
				go func() { c.Collect(out); close(out) }()
				n := 0
				for range out {
					n++
				}
				took = append(took, time.Since(began))
				require.Greater(b, n, most)
			}
			report(b, took)
		})
	}
}

// BenchmarkGateways is what ten thousand gateways cost, each with a listener, a Secret and a Certificate.
func BenchmarkGateways(b *testing.B) {
	r := newRig(b).follows()
	const count = 10_000
	empty := heap()
	for n := range count {
		namespace := fmt.Sprintf("namespace-%03d", n%200)
		r.gateways.setGateway(&gateway{
			name: name{namespace, fmt.Sprintf("gateway-%05d", n)}, api: api.KubernetesGateway,
			listeners: []listener{{name: "https", protocol: "HTTPS", mode: "Terminate", hosts: []string{fmt.Sprintf("h%d.example", n)}, shows: true, secrets: []name{{namespace, fmt.Sprintf("tls-%05d", n)}}}},
		})
		now := time.Now().Unix()
		r.gateways.setCertificate(&certificate{
			name: name{namespace, fmt.Sprintf("c-%05d", n)}, secret: fmt.Sprintf("tls-%05d", n), issuer: "Issuer.cert-manager.io/x",
			sans: []string{fmt.Sprintf("DNS:h%d.example", n)}, life: life{validity{now - 1000, now + 1000}, now + 500}, ready: new(true),
		})
	}
	b.Logf("%d bytes for each", (heap()-empty)/count)
	next := ""
	b.Run("page of 500", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			list, err := r.Gateways(b.Context(), api.GatewayQuery{Page: api.Page{Limit: 500, Continue: next}, Visible: everything{}})
			require.NoError(b, err)
			require.Len(b, list.Items, 500)
			next = list.Continue
		}
	})
	b.Run("count", func(b *testing.B) {
		for b.Loop() {
			r.countGateways(time.Now())
		}
	})
}
