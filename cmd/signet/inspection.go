package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/api/records"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
)

// inspection answers what operators ask. Signing never waits for it: it has a cache of its own, which may take its time
// with the pods of a large cluster.
type inspection struct {
	objects   cache.Cache
	inventory *inventory.Inventory
	server    *api.Server
}

// newInspection builds it from the records and from what is known of trust.
func newInspection(ctx context.Context, cfg Config, config *rest.Config, store *ledger.Store, trusting *trust, log *slog.Logger, reg prometheus.Registerer) (*inspection, error) {
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
	mesh := api.Mesh{
		TrustDomain: cfg.CA.TrustDomain,
		Anchors: func() *x509.CertPool {
			own, _ := trusting.own()
			return own.Pool()
		},
		Local: func(ctx context.Context, leaf *x509.Certificate) error {
			return localLeaf(ctx, kept, cfg.CA.ClusterID, leaf)
		},
	}
	i.server, err = api.NewServer(cfg.API, i.inventory, trusting.serving.GetCertificate, api.Cluster{Config: config, Namespaces: i.inventory.Namespaces}, mesh, log, reg)
	return i, err
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
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make client for the inventory: %w", err)
	}
	objects, err := cache.New(config, cache.Options{HTTPClient: client, Scheme: scheme, Mapper: mapper, ByObject: inventory.CacheOptions()})
	if err != nil {
		return nil, fmt.Errorf("make the inventory's cache: %w", err)
	}
	return objects, nil
}

// localLeaf says why a leaf of the mesh isn't one that was issued to a workload of our own cluster.
func localLeaf(ctx context.Context, kept records.Records, cluster string, leaf *x509.Certificate) error {
	record, err := kept.Certificate(ctx, issuer.AnchorID(leaf))
	switch {
	case errors.Is(err, api.ErrNotFound):
		return errors.New("it isn't in the ledger")
	case err != nil:
		return err
	case record.Holder.Cluster != cluster:
		return fmt.Errorf("it was issued to a workload of cluster %q", record.Holder.Cluster)
	}
	return nil
}

// NeedLeaderElection says that every replica answers.
func (i *inspection) NeedLeaderElection() bool { return false }

// Start runs all of it until ctx ends and it has stopped.
func (i *inspection) Start(ctx context.Context) error {
	var group errgroup.Group
	for _, start := range []func(context.Context) error{i.objects.Start, i.inventory.Start, i.server.Start} {
		group.Go(func() error { return start(ctx) })
	}
	return group.Wait()
}

// shown is what readiness says of it.
func (i *inspection) shown() shown {
	return shown{"inspection", func(now time.Time) []string {
		text, err := i.server.Ready(now)
		if err != nil {
			text = err.Error()
		}
		return []string{text}
	}}
}

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
				if s.Kind != rotation.KindLeaf {
					all = append(all, api.Subject{Kind: string(s.Kind), Text: s.Text, NotBefore: s.NotBefore, NotAfter: s.NotAfter, State: api.State(s.State)})
				}
			}
			return all
		},
	}
}
