package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/signet-ca/signet/api/audit"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/ca/presence"
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
	log.Info("starting", "version", version.Current().String(), "username", username, "namespace", cfg.Namespace, "issuer", cfg.Issuer.String(), "trust_domain", cfg.CA.TrustDomain.Name())

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
	replica := processName(cfg.Replica)
	trusting, err := newTrust(cfg, replica, config, mgr.GetCache(), serving, issuers, health, mgr.GetEventRecorder("signet"), log, ours)
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
	var namespaces ca.Namespaces
	if cfg.CA.RuledByLabels() {
		if namespaces, err = newNamespaceLabels(ctx, mgr.GetCache()); err != nil {
			return err
		}
	}
	exists, err := newPresence(cfg, config, log.With("room", "ca"), ours)
	if err != nil {
		return err
	}
	if exists != nil {
		shown = append(shown, describedBy(exists))
	}
	others, err := newElsewhere(cfg, config, mgr.GetEventRecorder("signet"), log.With("room", "ca"), ours)
	if err != nil {
		return err
	}
	shown = append(shown, others.shown()...)
	keys, err := newKeys(cfg, config, log.With("room", "ca"), ours)
	if err != nil {
		return err
	}
	if keys != nil {
		parts = append(parts, keys)
	}
	server := ca.New(cfg.CA, ca.Parts{
		Nodes:          newNodeProxies(cfg, exists, others.remotes),
		Authenticators: newAuthenticators(cfg, mgr.GetClient(), exists, keys, others, store, trusting, ours),
		Namespaces:     namespaces, Signer: sign, Recorder: recorded,
	}, log.With("room", "ca"), ours)
	endpoint := ca.NewEndpoint(server, serving.GetCertificate)
	var registering *ca.Registration
	if cfg.CA.Registration.Enabled {
		if registering, err = ca.NewRegistration(server, config, log.With("room", "ca")); err != nil {
			return err
		}
	}

	// What the holder of the lease does.
	sweeper := signer.NewSweeper(sign, recorded.observed, log.With("room", "signer"))
	leading, err := newLeased(config, cfg.Namespace, replica, func(ctx context.Context) error {
		var group errgroup.Group
		group.Go(func() error { return sweeper.Start(ctx) })
		group.Go(func() error { return trusting.lead(ctx, log) })
		if registering != nil {
			group.Go(func() error { return registering.Start(ctx) })
		}
		return group.Wait()
	}, log)
	if err != nil {
		return err
	}

	probes, metrics := http.NewServeMux(), http.NewServeMux()
	ready := &readiness{
		checks: []check{
			{"serving certificate", serving.Ready},
			{"roots", trusting.anchors.Ready},
			{"issuer chosen", trusting.issuing.Ready},
			{"replicas", func(now time.Time) (string, error) { return "known to the others", issuers.Fence(now) }},
			{"informer", synced(requests)},
			{"ledger", store.Ready},
			{"listener", func(time.Time) (string, error) { return server.Ready() }},
		},
		shown: shown,
	}
	ours.MustRegister(ready)
	probes.HandleFunc("/livez", livez)
	probes.Handle("/readyz", ready)
	// The library's registry has what is known of the Go runtime and the process.
	metrics.Handle("/metrics", promhttp.HandlerFor(prometheus.Gatherers{registry, ctrlmetrics.Registry}, promhttp.HandlerOpts{}))
	healthServer, err := listenHTTP(ctx, "health", cfg.Health.Listen, ":6060", probes, log)
	if err != nil {
		return err
	}
	metricsServer, err := listenHTTP(ctx, "metrics", cfg.Metrics.Listen, ":9402", metrics, log)
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
	parts = append(parts,
		healthServer, metricsServer, newLogSwitch(level, log),
		trusting.anchors, trusting.issuing, trusting.crls, trusting.endpoint, trusting.expiry,
		serving, &answering{endpoint, sign, trusting.replicas, leading, keepRecords, exists, others})
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

// start runs the manager until ctx ends and everything has stopped. Where ctx ends while the informers
// are not synced yet, nothing has been served; the manager would wait for them, so it isn't waited for.
func start(ctx context.Context, mgr manager.Manager) error {
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case <-mgr.Elected(): // everything was started
		return <-ended
	default:
		return nil
	}
}

// answering is the endpoint with what its requests need until the last one is answered, which is later
// than the manager's word to stop: the guard of the informer's stream, the word to the other replicas that this one
// answers, what runs under the lease, the keeping of records, the index of what exists in the cluster, and what is known of callers
// elsewhere.
type answering struct {
	endpoint  *ca.Endpoint
	signer    *signer.Signer
	replicas  *rotation.Replicas
	leading   *leased
	recording func(context.Context) error
	exists    *presence.Index // nil where nothing needs it
	others    elsewhere
}

// NeedLeaderElection says that every replica answers.
func (a *answering) NeedLeaderElection() bool { return false }

// Start runs all of it until ctx ends and it has stopped, the endpoint first.
func (a *answering) Start(ctx context.Context) error {
	beside, stop := context.WithCancel(context.WithoutCancel(ctx))
	var group errgroup.Group
	group.Go(func() error { a.signer.Guard(beside); return nil })
	group.Go(func() error { return a.replicas.Start(beside) })
	group.Go(func() error { return a.leading.Start(beside) })
	group.Go(func() error { return a.recording(beside) })
	if a.exists != nil {
		group.Go(func() error { return a.exists.Start(beside) })
	}
	if a.others.remotes != nil {
		group.Go(func() error { return a.others.remotes.Start(beside) })
	}
	if a.others.oidc != nil {
		group.Go(func() error { return a.others.oidc.Start(beside) })
	}
	err := a.endpoint.Start(ctx)
	stop()
	return errors.Join(err, group.Wait())
}

// newManager makes the manager with a cache that holds only our own CertificateRequests and the
// issuers, and a mapper that knows our kinds, so that nothing has to be discovered at start.
func newManager(cfg Config, config *rest.Config, log *slog.Logger) (manager.Manager, error) {
	scheme, mapper := runtime.NewScheme(), meta.NewDefaultRESTMapper(nil)
	for _, add := range []func(*runtime.Scheme) error{cmapi.AddToScheme, corev1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register API types: %w", err)
		}
	}
	kinds := map[meta.RESTScope][]schema.GroupVersionKind{
		meta.RESTScopeNamespace: {
			cmapi.SchemeGroupVersion.WithKind("CertificateRequest"), cmapi.SchemeGroupVersion.WithKind("Issuer"),
			corev1.SchemeGroupVersion.WithKind("ConfigMap"), corev1.SchemeGroupVersion.WithKind("Secret"),
		},
		meta.RESTScopeRoot: {
			cmapi.SchemeGroupVersion.WithKind("ClusterIssuer"), namespaceKind, authenticationv1.SchemeGroupVersion.WithKind("TokenReview"),
			authenticationv1.SchemeGroupVersion.WithKind("SelfSubjectReview"), authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"),
		},
	}
	for scope, list := range kinds {
		for _, kind := range list {
			mapper.Add(kind, scope)
		}
	}

	ours, err := labels.NewRequirement(signer.RequestLabel, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("select CertificateRequests: %w", err)
	}
	shared := true // objects from the cache are never changed
	mgr, err := manager.New(config, manager.Options{
		Scheme:         scheme,
		MapperProvider: func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return mapper, nil },
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&cmapi.CertificateRequest{}: {
				Namespaces:            map[string]cache.Config{cfg.Namespace: {LabelSelector: labels.NewSelector().Add(*ours)}},
				Transform:             cache.TransformStripManagedFields(),
				UnsafeDisableDeepCopy: &shared,
			},
			&cmapi.Issuer{}: {Namespaces: map[string]cache.Config{cfg.Namespace: {}}},
		}},
		Metrics:                 metricsserver.Options{BindAddress: "0"}, // served with our own
		HealthProbeBindAddress:  "0",
		GracefulShutdownTimeout: new(cfg.CA.ShutdownDelay + cfg.CA.DrainTimeout + 20*time.Second),
		Logger:                  logr.FromSlogHandler(log.Handler()),
	})
	if err != nil {
		return nil, fmt.Errorf("make manager: %w", err)
	}
	return mgr, nil
}

// observeIssuers watches the kinds of issuers that may sign, of those that cert-manager has.
func observeIssuers(ctx context.Context, mgr manager.Manager, cfg Config, issuing *rotation.Issuers) error {
	for _, kind := range watchedKinds(cfg) {
		var object client.Object = &cmapi.Issuer{}
		if kind == cmapi.ClusterIssuerKind {
			object = &cmapi.ClusterIssuer{}
		}
		informer, err := mgr.GetCache().GetInformer(ctx, object, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch kind %s: %w", kind, err)
		}
		if err := issuing.Observe(kind, informer); err != nil {
			return err
		}
	}
	return nil
}

// watchedKinds are the kinds of cert-manager's issuers that cfg can lead to. A runtime ConfigMap can lead to both.
func watchedKinds(cfg Config) []string {
	refs := append([]issuer.Ref{cfg.Issuer}, cfg.Issuers.Fallback...)
	if cfg.Issuers.Runtime.Name != "" {
		refs = append(refs, issuer.Ref{Name: "any"}, issuer.Ref{Name: "any", Kind: cmapi.ClusterIssuerKind})
	}
	var kinds []string
	for _, ref := range refs {
		if ref = ref.WithDefaults(); ref.Name != "" && ref.Group == issuer.CertManagerGroup && !slices.Contains(kinds, ref.Kind) {
			kinds = append(kinds, ref.Kind)
		}
	}
	return kinds
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

// listenHTTP opens a listener now, so that an address that is taken ends the start, and returns the
// server that the manager runs on it.
func listenHTTP(ctx context.Context, name, address, fallback string, handler http.Handler, log *slog.Logger) (*manager.Server, error) {
	if address == "" {
		address = fallback
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", name, err)
	}
	log.Info("listening", "endpoint", name, "address", listener.Addr().String())
	return &manager.Server{
		Name:     name,
		Listener: listener,
		Server: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      30 * time.Second,
			IdleTimeout:       90 * time.Second,
			MaxHeaderBytes:    16 << 10,
		},
	}, nil
}
