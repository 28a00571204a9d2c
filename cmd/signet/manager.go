package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/go-logr/logr"
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
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
	"github.com/signet-ca/signet/signer"
)

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
