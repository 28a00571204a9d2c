package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/audit"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/api/probe"
	"github.com/signet-ca/signet/api/records"
	"github.com/signet-ca/signet/api/web"
	"github.com/signet-ca/signet/ca"
)

// inspection answers what operators ask. Signing never waits for it: it has a cache of its own, which may take its time
// with the pods of a large cluster.
type inspection struct {
	objects   cache.Cache
	inventory *inventory.Inventory
	server    *api.Server
	prober    *probe.Prober               // nil where probes are turned off
	follow    func(context.Context) error // of the other replicas' records
}

// newInspection builds it from the records and from what is known of trust. Busy says that
// certificates are being signed; stream is told of reads and probes.
func newInspection(ctx context.Context, cfg Config, config *rest.Config, store *ledger.Store, trusting *trust, busy func() bool, stream *audit.Stream, log *slog.Logger, reg prometheus.Registerer) (*inspection, error) {
	log = log.With("room", "api")
	objects, err := newInspectionCache(config)
	if err != nil {
		return nil, err
	}
	kept := records.Of(store)
	i := &inspection{objects: objects}
	if i.inventory, err = inventory.New(cfg.Inventory, kept, trusting.told(), log, reg); err != nil {
		return nil, err
	}
	if err := i.inventory.Observe(ctx, objects); err != nil {
		return nil, err
	}
	if err := i.inventory.ObserveGateways(config); err != nil {
		return nil, err
	}
	i.follow = func(ctx context.Context) error {
		kept.Follow(ctx, i.inventory.Issued, log)
		return nil
	}
	anchors := func() *x509.CertPool {
		own, _ := trusting.own()
		return own.Pool()
	}
	mesh := api.Mesh{
		TrustDomain: cfg.CA.TrustDomain,
		Anchors:     anchors,
		Local: func(ctx context.Context, leaf *x509.Certificate) (string, error) {
			if trusting.crls.Revoked(leaf) {
				return "it is revoked", nil
			}
			to, known, err := issuances{store}.IssuedTo(ctx, sha256.Sum256(leaf.Raw))
			if err != nil {
				return "", fmt.Errorf("look up the client certificate in the ledger: %w", err)
			}
			return localLeaf(ctx, to, known, cfg.ClusterID, objects)
		},
	}
	i.server, err = api.NewServer(cfg.API, i.inventory, trusting.serving.GetCertificate, api.Cluster{Config: config, Namespaces: i.inventory.Namespaces}, mesh, log, reg)
	if err != nil {
		return nil, err
	}
	i.server.SetAuditor(stream)
	i.server.SetBusy(busy)
	page := web.Handler()
	i.server.Mount("/ui", page)
	i.server.Mount("/ui/", page)
	if !cfg.Probes.Disabled {
		if i.prober, err = newProber(cfg, config, i.inventory, kept, anchors, stream, log, reg); err != nil {
			return nil, err
		}
		i.server.SetProber(i.prober)
	}
	return i, nil
}

// newProber makes what reads the certificates that services really serve.
func newProber(cfg Config, config *rest.Config, services probe.Inventory, kept records.Records, anchors func() *x509.CertPool, stream *audit.Stream, log *slog.Logger, reg prometheus.Registerer) (*probe.Prober, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme), cmapi.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("register API types: %w", err)
	}
	reader, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make client for probes: %w", err)
	}
	return probe.New(cfg.Probes, probe.Sources{
		Inventory: services, Records: kept, Reader: reader, Config: config, Anchors: anchors, Known: probe.Certificates{Reader: reader},
		Tell: func(p *api.Probe, user string, took time.Duration) {
			told := audit.ProbeOf(p)
			told.User, told.Scheduled, told.DurationSeconds = user, user == "", took.Seconds()
			stream.Probed(told)
		},
	}, log, reg)
}

// newInspectionCache makes the cache of what the inventory watches, with a mapper that knows its kinds, so that nothing
// has to be discovered.
func newInspectionCache(config *rest.Config) (cache.Cache, error) {
	scheme, mapper := runtime.NewScheme(), meta.NewDefaultRESTMapper(nil)
	if err := errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("register API types: %w", err)
	}
	for _, kind := range inventory.Kinds() {
		scope := meta.RESTScope(meta.RESTScopeNamespace)
		if kind.Kind == "Namespace" {
			scope = meta.RESTScopeRoot
		}
		mapper.Add(kind, scope)
	}
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make client for the inventory: %w", err)
	}
	objects, err := cache.New(config, cache.Options{HTTPClient: http, Scheme: scheme, Mapper: mapper, ByObject: inventory.CacheOptions()})
	if err != nil {
		return nil, fmt.Errorf("make the inventory's cache: %w", err)
	}
	return objects, nil
}

// localLeaf says why a leaf isn't that of a workload of our own cluster that is still there, or is empty where it is: to
// is what is known of its issuance, objects what exists. An error says that objects can't be asked now.
func localLeaf(ctx context.Context, to ca.IssuedTo, known bool, cluster string, objects client.Reader) (string, error) {
	switch {
	case !known:
		return "it isn't in the ledger", nil
	case to.Impersonated:
		return "a node's proxy holds it, not the workload", nil
	case to.Cluster != cluster:
		return fmt.Sprintf("it was issued to a workload of cluster %q", to.Cluster), nil
	}
	account := &metav1.PartialObjectMetadata{}
	account.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
	switch err := objects.Get(ctx, client.ObjectKey{Namespace: to.Namespace, Name: to.ServiceAccount}, account); {
	case client.IgnoreNotFound(err) != nil:
		return "", fmt.Errorf("look up service account %s/%s: %w", to.Namespace, to.ServiceAccount, err)
	case err != nil || string(account.UID) != to.ServiceAccountUID:
		return "the service account that it was issued to is gone", nil
	}
	if to.PodUID == "" {
		return "", nil
	}
	var pod corev1.Pod
	switch err := objects.Get(ctx, client.ObjectKey{Namespace: to.Namespace, Name: to.PodName}, &pod); {
	case client.IgnoreNotFound(err) != nil:
		return "", fmt.Errorf("look up pod %s/%s: %w", to.Namespace, to.PodName, err)
	case err != nil || string(pod.UID) != to.PodUID:
		return "the pod that it was issued to is gone", nil
	}
	return "", nil
}

// NeedLeaderElection says that every replica answers.
func (i *inspection) NeedLeaderElection() bool { return false }

// Start runs all of it until ctx ends and it has stopped. What ends with an error, such as that of an address that is
// taken, ends all of it.
func (i *inspection) Start(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	parts := []func(context.Context) error{i.objects.Start, i.inventory.Start, i.server.Start, i.follow}
	if i.prober != nil {
		parts = append(parts, i.prober.Start)
	}
	for _, start := range parts {
		group.Go(func() error { return start(ctx) })
	}
	return group.Wait()
}

// shown is what readiness says of it.
func (i *inspection) shown() shown { return shownBy("inspection", i.server.Ready) }

// told is what the inventory is told of trust.
func (t *trust) told() inventory.TrustSources {
	return inventory.TrustSources{
		Anchors: func() []inventory.Anchor {
			r := t.issuers.Current().Rollover
			if r == nil {
				return nil
			}
			all := make([]inventory.Anchor, 0, len(r.Anchors))
			for _, a := range r.Anchors {
				all = append(all, inventory.Anchor{
					Certificate: a.Certificate, Phase: string(a.Phase), Since: a.Since, Until: a.Until, Waits: a.Waits, Federated: a.Federated, Sources: a.Sources,
				})
			}
			return all
		},
		Issuers:      t.issuing.Describe,
		Distribution: func() []string { return t.distributed(time.Now()) },
		Replicas:     func() []string { return t.replicas.Describe(time.Now()) },
		Expiring: func() []api.Subject {
			var all []api.Subject
			for _, s := range t.expiry.Subjects() {
				all = append(all, api.Subject{Kind: string(s.Kind), Text: s.Text, NotBefore: s.NotBefore, NotAfter: s.NotAfter, State: api.State(s.State)})
			}
			return all
		},
	}
}
