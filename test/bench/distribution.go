package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/test/controlplane"
)

// distributionNamespaces is how many namespaces carry the root certificates, and oneByOne how many more
// come one after the other.
const (
	distributionNamespaces = 5000
	oneByOne               = 200
)

// distributionRights are those that the distributor needs.
const distributionRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: signet-distribution}
rules:
  - {apiGroups: [""], resources: [namespaces], verbs: [list, watch]}
  - {apiGroups: [""], resources: [configmaps], resourceNames: [istio-ca-root-cert], verbs: [list, watch, create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: signet-distribution}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: signet-distribution}
subjects: [{kind: ServiceAccount, name: signet, namespace: istio-system}]
`

// distributionBench distributes to the namespaces of a plane of its own, in this process.
type distributionBench struct {
	plane      *controlplane.Plane
	namespaces int
	progress   func(format string, args ...any)

	mu       sync.Mutex // guards the following
	document issuer.Document
	changed  chan struct{}
}

// measureDistribution measures how long root certificates take to come to all namespaces, and what it
// costs to know that they are there. The namespaces have other ConfigMaps too, which cost nothing.
func measureDistribution(ctx context.Context, scale float64, progress func(string, ...any), out io.Writer) (err error) {
	plane, err := controlplane.Start(ctx, controlplane.Config{Fsync: true, WithoutCertManager: true, Progress: progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	b := &distributionBench{plane: plane, namespaces: max(1, int(distributionNamespaces*scale)), progress: progress, changed: make(chan struct{})}
	if b.document, err = newRoots(2); err != nil {
		return err
	}
	if err := errors.Join(plane.Namespace(ctx, "istio-system"), plane.ServiceAccount(ctx, "istio-system", "signet"), plane.Apply(ctx, []byte(distributionRights))); err != nil {
		return err
	}
	config, err := plane.As(ctx, "istio-system", "signet")
	if err != nil {
		return err
	}
	distributor, err := issuer.NewDistributor(issuer.DistributionConfig{ClusterTrustBundle: "off"}, config, b.documents, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), nil)
	if err != nil {
		return err
	}

	// The first term, with only the namespaces of a fresh plane, is what the heap is compared with.
	term := b.start(ctx, distributor)
	if _, err := b.await(ctx, distributor); err != nil {
		return err
	}
	empty := heap()
	if err := term(); err != nil {
		return err
	}
	began := time.Now()
	if err := b.create(ctx); err != nil {
		return err
	}
	progress("%d namespaces, each with another ConfigMap, in %.1f s", b.namespaces, time.Since(began).Seconds())

	began = time.Now()
	before, err := cpuTime(plane.APIServer().PID())
	if err != nil {
		return err
	}
	term = b.start(ctx, distributor)
	carrying, err := b.await(ctx, distributor)
	if err != nil {
		return err
	}
	fill := time.Since(began)
	after, err := cpuTime(plane.APIServer().PID())
	if err != nil {
		return err
	}
	progress("%d namespaces carry the first bundle after %.1f s; the API server used %.1f ms of CPU for each", carrying, fill.Seconds(), ms(after-before)/float64(carrying))

	next, err := newRoots(3)
	if err != nil {
		return err
	}
	began = time.Now()
	b.set(next)
	if carrying, err = b.await(ctx, distributor); err != nil {
		return err
	}
	change := time.Since(began)
	progress("%d namespaces carry a changed bundle after %.1f s", carrying, change.Seconds())
	if err := b.verify(ctx, carrying); err != nil {
		return err
	}
	grown := heap() - empty

	latencies, err := b.oneByOne(ctx)
	if err != nil {
		return err
	}
	progress("a new namespace carries it after %.1f ms (p50), %.1f ms (p99)", ms(latencies[len(latencies)/2]), ms(latencies[len(latencies)*99/100]))
	if err := term(); err != nil {
		return err
	}

	line := func(name string, value float64) { fmt.Fprintf(out, "bench: %s %.3f\n", name, value) }
	line("distribution_namespaces", float64(b.namespaces))
	line("distribution_fill_s", fill.Seconds())
	line("distribution_change_s", change.Seconds())
	line("distribution_heap_bytes_per_namespace", float64(grown)/float64(b.namespaces))
	line("distribution_new_namespace_p50_ms", ms(latencies[len(latencies)/2]))
	line("distribution_new_namespace_p99_ms", ms(latencies[len(latencies)*99/100]))
	return nil
}

// documents and set are the distributor's source.
func (b *distributionBench) documents() ([]issuer.Document, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return []issuer.Document{b.document}, b.changed
}

func (b *distributionBench) set(document issuer.Document) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.changed)
	b.document, b.changed = document, make(chan struct{})
}

// start begins a term; what it returns ends it.
func (b *distributionBench) start(ctx context.Context, d *issuer.Distributor) (end func() error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.Start(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}
}

// await waits until all namespaces carry the document, and returns their number.
func (b *distributionBench) await(ctx context.Context, d *issuer.Distributor) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond) // as a rollover would look, but more often
	defer tick.Stop()
	for {
		if p := d.Progress(); p.Carried(b.document) {
			return p.Documents[0].Carrying, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for all namespaces: %w: %+v", ctx.Err(), d.Progress())
		}
	}
}

// create makes the namespaces, each with a ConfigMap that is none of ours.
func (b *distributionBench) create(ctx context.Context) error {
	clients, err := kubernetes.NewForConfig(b.plane.Admin())
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range b.namespaces {
		group.Go(func() error {
			name := fmt.Sprintf("team-%d", i)
			if _, err := clients.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
				return err
			}
			_, err := clients.CoreV1().ConfigMaps(name).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"a": "b"}}, metav1.CreateOptions{})
			return err
		})
	}
	return group.Wait()
}

// verify looks whether really so many namespaces carry the document.
func (b *distributionBench) verify(ctx context.Context, want int) error {
	clients, err := kubernetes.NewForConfig(b.plane.Admin())
	if err != nil {
		return err
	}
	list, err := clients.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + b.document.ConfigMap})
	if err != nil {
		return err
	}
	carry := 0
	for _, cm := range list.Items {
		if cm.Data[b.document.Key] == b.document.Data {
			carry++
		}
	}
	if carry != want {
		return fmt.Errorf("%d namespaces carry the document, not %d", carry, want)
	}
	return nil
}

// oneByOne makes further namespaces and returns, in order, how long each waited for its document.
func (b *distributionBench) oneByOne(ctx context.Context) ([]time.Duration, error) {
	clients, err := kubernetes.NewForConfig(b.plane.Admin())
	if err != nil {
		return nil, err
	}
	version, err := clients.CoreV1().ConfigMaps("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + b.document.ConfigMap, Limit: 1})
	if err != nil {
		return nil, err
	}
	seen, err := clients.CoreV1().ConfigMaps("").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + b.document.ConfigMap, ResourceVersion: version.ResourceVersion})
	if err != nil {
		return nil, err
	}
	defer seen.Stop()
	var latencies []time.Duration
	for i := range oneByOne {
		name := fmt.Sprintf("late-%d", i)
		if _, err := clients.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
		created := time.Now()
		for e := range seen.ResultChan() {
			if cm, ok := e.Object.(*corev1.ConfigMap); ok && e.Type == watch.Added && cm.Namespace == name {
				latencies = append(latencies, time.Since(created))
				break
			}
		}
	}
	if len(latencies) != oneByOne {
		return nil, errors.New("the watch for new ConfigMaps ended")
	}
	slices.Sort(latencies)
	return latencies, nil
}

// heap is what is in use, in bytes, once nothing is left to collect.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// newRoots is a document with n roots.
func newRoots(n int) (issuer.Document, error) {
	var anchors []*x509.Certificate
	for i := range n {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return issuer.Document{}, err
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: fmt.Sprintf("root %d", i)},
			IsCA: true, BasicConstraintsValid: true, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return issuer.Document{}, err
		}
		anchor, err := x509.ParseCertificate(der)
		if err != nil {
			return issuer.Document{}, err
		}
		anchors = append(anchors, anchor)
	}
	bundle, err := issuer.NewBundle(anchors...)
	return issuer.DistributionConfig{}.Roots(bundle), err
}
