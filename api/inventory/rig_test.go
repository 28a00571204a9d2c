package inventory

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/signet-ca/signet/api"
)

// rig is an inventory whose informers the test plays.
type rig struct {
	*Inventory
	t        testing.TB
	records  *memory
	registry *prometheus.Registry
	nextIP   int
	serial   int
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	cfg := Config{TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Cluster: "Kubernetes"}
	for _, f := range change {
		f(&cfg)
	}
	r := &rig{t: t, records: &memory{}, registry: prometheus.NewRegistry()}
	var err error
	r.Inventory, err = New(cfg, r.records, TrustSources{}, slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.WrapRegistererWithPrefix("signet_", r.registry))
	require.NoError(t, err)
	r.sync()
	return r
}

// sync says that all first lists have been worked through.
func (r *rig) sync() {
	var all []watchedKind
	for _, kind := range kinds {
		all = append(all, watchedKind{kind.source, func() bool { return true }})
	}
	r.watched.Store(&all)
}

func metadata(namespace, name string, labels map[string]string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, CreationTimestamp: metav1.Now()}}
}

// tell is an event that an object is there, as it comes out of the cache.
func (r *rig) tell(source string, object any) {
	r.t.Helper()
	transform := toolscache.TransformFunc(shrinkMetadata)
	switch source {
	case "pods":
		transform = shrinkPod
	case "endpointslices":
		transform = shrinkSlice
	}
	shrunk, err := transform(object)
	require.NoError(r.t, err)
	r.seen(source, shrunk)
}

func (r *rig) service(namespace, name string, behind ...*corev1.Pod) {
	r.t.Helper()
	r.tell("services", metadata(namespace, name, nil))
	r.slice(namespace, name, behind...)
}

// slice is the only EndpointSlice of a service.
func (r *rig) slice(namespace, name string, behind ...*corev1.Pod) {
	r.t.Helper()
	r.tell("endpointslices", sliceOf(namespace, name+"-abc", name, behind...))
}

func sliceOf(namespace, name, service string, behind ...*corev1.Pod) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
	for _, p := range behind {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{p.Status.PodIP}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		})
	}
	return s
}

// What makes a pod of one data plane.
func sidecar(p *corev1.Pod) {
	p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "istio-proxy"})
}
func enrolled(p *corev1.Pod) { p.Annotations["ambient.istio.io/redirection"] = "enabled" }

func on(node string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = node } }

// pod runs since now.
func (r *rig) pod(namespace, name, account string, change ...func(*corev1.Pod)) *corev1.Pod {
	r.t.Helper()
	r.nextIP++
	p := podLike(namespace, name, account, r.nextIP, change...)
	r.tell("pods", p.DeepCopy())
	return p
}

func podLike(namespace, name, account string, n int, change ...func(*corev1.Pod)) *corev1.Pod {
	ip := fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255)
	now := metav1.Now()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)), CreationTimestamp: now,
			Labels: map[string]string{"app": name}, Annotations: map[string]string{"any": "thing"},
		},
		Spec:   corev1.PodSpec{NodeName: "node-a", ServiceAccountName: account, Containers: []corev1.Container{{Name: "app"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, StartTime: &now},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func (r *rig) gone(source string, object any) {
	r.t.Helper()
	r.unseen(source, object)
}

// issue records a leaf of an hour for a pod, from now on, and tells the inventory.
func (r *rig) issue(p *corev1.Pod, change ...func(*api.Certificate)) api.Certificate {
	r.t.Helper()
	c := r.certificate(p, change...)
	r.records.add(c)
	r.Issued(c)
	return c
}

func (r *rig) certificate(p *corev1.Pod, change ...func(*api.Certificate)) api.Certificate {
	r.serial++
	return certificateFor(p, r.serial, change...)
}

func certificateFor(p *corev1.Pod, serial int, change ...func(*api.Certificate)) api.Certificate {
	now := time.Now().UTC().Truncate(time.Second)
	id := identityOf(p.Namespace, p.Spec.ServiceAccountName)
	c := api.Certificate{
		SHA256: digest("certificate", serial), SPKISHA256: digest("key", serial), Serial: fmt.Sprintf("%032x", serial),
		Identity: id, SANs: []string{"URI:" + id}, Namespace: p.Namespace, ServiceAccount: p.Spec.ServiceAccountName,
		Holder:   api.Holder{Pod: p.Name, PodUID: string(p.UID), Node: p.Spec.NodeName, Cluster: "Kubernetes", Address: p.Status.PodIP},
		IssuedAt: now, NotBefore: now, NotAfter: now.Add(time.Hour), RequestedSeconds: 3600,
		KeyAlgorithm: "ECDSA", KeyBits: 256, SignatureAlgorithm: "ECDSA-SHA256", Issuer: "Issuer.cert-manager.io/mesh",
		Root:    api.Root{SHA256: digest("root", 0), Subject: "CN=root"},
		Request: api.ObjectRef{Namespace: "istio-system", Name: fmt.Sprintf("signet-%040x", serial), UID: fmt.Sprintf("00000000-0000-4000-9000-%012d", serial)},
		Replica: "signet-0",
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// byProxy is a leaf that the node's proxy asked for.
func byProxy(c *api.Certificate) {
	c.Holder = api.Holder{Node: c.Holder.Node, Cluster: c.Holder.Cluster, Address: "192.0.2.1", Impersonated: true}
}

// bound to no pod.
func unbound(c *api.Certificate) { from("192.0.2.7")(c) }

// from is of a machine that asks from an address.
func from(address string) func(*api.Certificate) {
	return func(c *api.Certificate) { c.Holder = api.Holder{Cluster: c.Holder.Cluster, Address: address} }
}

func digest(what string, n int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", what, n))
	return hex.EncodeToString(sum[:])
}

func identityOf(namespace, account string) string {
	return "spiffe://cluster.local/ns/" + namespace + "/sa/" + account
}

// everything may be seen.
type everything struct{}

func (everything) All() bool             { return true }
func (everything) Namespace(string) bool { return true }

// these namespaces may be seen.
type these []string

func (these) All() bool                    { return false }
func (t these) Namespace(name string) bool { return slices.Contains(t, name) }

func (r *rig) get(namespace, name string) *api.Service {
	r.t.Helper()
	s, err := r.Service(r.t.Context(), namespace, name)
	require.NoError(r.t, err)
	return s
}

// all walks through a list of services in pages.
func (r *rig) all(q api.ServiceQuery) []string {
	r.t.Helper()
	if q.Visible == nil {
		q.Visible = everything{}
	}
	var names []string
	for {
		list, err := r.Services(r.t.Context(), q)
		require.NoError(r.t, err)
		for _, s := range list.Items {
			names = append(names, s.Namespace+"/"+s.Name)
		}
		if q.Continue = list.Continue; q.Continue == "" {
			return names
		}
	}
}

// digests walks through a list of certificates in pages.
func (r *rig) digests(q api.CertificateQuery, list func(context.Context, api.CertificateQuery) (*api.CertificateList, error)) []string {
	r.t.Helper()
	if q.Visible == nil {
		q.Visible = everything{}
	}
	all := []string{}
	for {
		page, err := list(r.t.Context(), q)
		require.NoError(r.t, err)
		for _, c := range page.Items {
			require.Empty(r.t, c.PEM)
			all = append(all, c.SHA256)
		}
		if q.Continue = page.Continue; q.Continue == "" {
			return all
		}
	}
}

// codes are those of problems.
func codes(problems []api.Problem) string {
	var all []string
	for _, p := range problems {
		all = append(all, string(p.Code))
	}
	return strings.Join(all, " ")
}
