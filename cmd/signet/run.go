package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/signet-ca/signet/api/audit"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
	"github.com/signet-ca/signet/signer"
	"github.com/signet-ca/signet/version"
)

// run builds the parts in their order and runs them under one manager until ctx ends. The manager
// stops them the other way round: first what answers and renews, then the informers, then the
// endpoints for probes and metrics.
func run(ctx context.Context, cfg Config, config *rest.Config, log *slog.Logger, level *slog.LevelVar) (err error) {
	// API Priority and Fairness is the server's job; what we send at once is bounded by admission.
	config.QPS = -1
	config.DisableCompression = true // it costs both ends more CPU than the network is worth
	mgr, err := newManager(cfg, config, log)
	if err != nil {
		return err
	}
	username, err := askAccess(ctx, mgr.GetClient(), cfg, log)
	if ctx.Err() != nil {
		return nil // told to stop before there was anything to stop
	}
	if err != nil {
		return err
	}
	log.Info("starting", "version", version.Current().String(), "username", username, "namespace", cfg.Namespace, "issuer", cfg.Issuer, "trust_domain", cfg.CA.TrustDomain.Name())

	registry := prometheus.NewRegistry()
	ours := prometheus.WrapRegistererWithPrefix("signet_", registry)
	ours.MustRegister(buildInfo())

	// ledger: what was issued. It outlasts everything that records.
	store, err := ledger.Open(ctx, cfg.Ledger, log.With("room", "ledger"), ours)
	if err != nil {
		return fmt.Errorf("ledger.dir: %w", err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	// issuer: what is in force.
	issuers, health := issuer.NewStore(issuer.Ref{}), issuer.NewHealth()

	// signer: one informer for all CertificateRequests of ours.
	cluster := signer.Cluster{Client: mgr.GetClient(), Reader: mgr.GetAPIReader(), Namespace: cfg.Namespace, Username: username, Replica: cfg.Replica}
	sign := signer.New(cfg.Signer, cluster, issuers, health, log.With("room", "signer"), ours)
	requests, err := mgr.GetCache().GetInformer(ctx, &cmapi.CertificateRequest{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch CertificateRequests: %w", err)
	}
	if err := sign.Observe(requests); err != nil {
		return err
	}
	// rotation: our own certificate, and what the mesh trusts.
	serving := rotation.NewServing(cfg.Serving, cfg.Namespace, sign, issuers, log.With("room", "rotation"), ours)
	leading, err := newLeased(config, cfg.Namespace, processName(cfg.Replica), log)
	if err != nil {
		return err
	}
	trusting, err := newTrust(cfg, leading, config, mgr.GetCache(), serving, issuers, health, mgr.GetEventRecorder("signet"), log, ours)
	if err != nil {
		return err
	}
	if err := observeIssuers(ctx, mgr, cfg, trusting.issuing); err != nil {
		return err
	}
	// api: what operators ask, and what others are told.
	stream, err := audit.New(cfg.Audit, audit.Origin{Cluster: cfg.ClusterID, Namespace: cfg.Namespace, Replica: cfg.Replica}, log.With("room", "audit"), ours)
	if err != nil {
		return err
	}
	parts := []manager.Runnable{}
	recorded := &recording{replica: cfg.Replica, ledger: store, seen: trusting.seen, stream: stream}
	shown := append(trusting.shown(), shownBy("audit stream", stream.Ready))
	if !cfg.API.Disabled {
		inspecting, err := newInspection(ctx, cfg, config, store, trusting, sign.Busy, stream, log, ours)
		if err != nil {
			return err
		}
		recorded.issued = inspecting.inventory.Issued
		shown = append(shown, inspecting.shown())
		parts = append(parts, inspecting)
	}
	recorded.observed = newObserved(cfg, store, sign, issuers, recorded.issued, log.With("room", "ledger"))
	if err := recorded.observed.Observe(requests); err != nil {
		return err
	}

	// ca: the endpoint.
	answers, err := newEndpoint(ctx, cfg, config, mgr, sign, recorded, store, trusting, log.With("room", "ca"), ours)
	if err != nil {
		return err
	}
	shown = append(shown, answers.shown()...)
	if answers.keys != nil {
		parts = append(parts, answers.keys)
	}

	// What the holder of the lease does.
	sweeper := signer.NewSweeper(sign, recorded.observed, log.With("room", "signer"))
	leading.run = func(ctx context.Context) error {
		var group errgroup.Group
		group.Go(func() error { return sweeper.Start(ctx) })
		group.Go(func() error { return trusting.lead(ctx, log) })
		if answers.registers != nil {
			group.Go(func() error { return answers.registers.Start(ctx) })
		}
		return group.Wait()
	}

	ready := &readiness{
		checks: []check{
			{"serving certificate", serving.Ready},
			{"roots", trusting.anchors.Ready},
			{"issuer chosen", trusting.issuing.Ready},
			{"replicas", func(now time.Time) (string, error) { return "known to the others", issuers.Fence(now) }},
			{"informer", synced(requests)},
			{"ledger", store.Ready},
			{"listener", func(time.Time) (string, error) { return answers.server.Ready() }},
		},
		shown: shown,
	}
	ours.MustRegister(ready)
	listening, err := listenHTTP(ctx, cfg, ready, registry, log)
	if err != nil {
		return err
	}

	keepRecords := func(ctx context.Context) error {
		var group errgroup.Group
		group.Go(func() error { return store.Start(ctx) })
		group.Go(func() error { return stream.Start(ctx) })
		group.Go(func() error { recorded.observed.Start(ctx, requests.HasSynced); return nil })
		return group.Wait()
	}
	parts = append(append(parts, listening...),
		newLogSwitch(level, log), trusting.anchors, trusting.issuing, trusting.crls, trusting.endpoint, trusting.expiry,
		serving, &answering{answers, sign, trusting.replicas, leading, keepRecords})
	for _, part := range parts {
		if err := mgr.Add(part); err != nil {
			return err
		}
	}
	if err := start(ctx, mgr); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// startTimeout bounds how long the API server may be away when Signet starts.
const startTimeout = time.Minute

// askAccess asks for our name and rights, again while the API server doesn't answer.
func askAccess(ctx context.Context, c client.Client, cfg Config, log *slog.Logger) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		asking, cancel := context.WithTimeout(ctx, 10*time.Second)
		username, err := checkAccess(asking, c, cfg)
		cancel()
		if err == nil || errors.Is(err, errMissingRights) {
			return username, err
		}
		log.Warn("the API server does not answer yet", "err", err)
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(time.Second):
		}
	}
}
