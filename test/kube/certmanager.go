package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	cmcontroller "github.com/cert-manager/cert-manager/pkg/controller"
	"golang.org/x/sync/errgroup"
	"k8s.io/component-base/logs"
	"k8s.io/klog/v2"

	// Each of these adds its controller to controller.Known.
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"

	// Each of these adds a kind of issuer to the issuer and clusterissuer controllers.
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
)

// runCertManager runs cert-manager's controllers until ctx ends. There is no leader election: the
// one who starts it sees to it that it runs once.
func runCertManager(ctx context.Context, args []string) error {
	var opts cmcontroller.ContextOptions
	fs := flag.NewFlagSet("cert-manager", flag.ContinueOnError)
	fs.StringVar(&opts.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server")
	fs.StringVar(&opts.ClusterResourceNamespace, "cluster-resource-namespace", "cert-manager", "`namespace` of what ClusterIssuers refer to")
	fs.DurationVar(&opts.CertificateRequestMinimumBackoffDuration, "certificate-request-minimum-backoff-duration", time.Hour, "first `wait` after a failed Certificate")
	workers := fs.Int("workers", 5, "concurrent workers of each controller; the default is cert-manager's")
	without := fs.String("without", "", "`names` of controllers that are not run, separated by commas")
	listen := fs.String("listen", "", "`host:port` for /readyz and /metrics, plain HTTP; none when empty")
	verbosity := fs.String("v", "2", "log `level`: 2 is information, 4 is debug")
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if opts.Kubeconfig == "" || *workers < 1 || fs.NArg() > 0 {
		return fmt.Errorf("%w: cert-manager needs --kubeconfig and at least one worker, and no arguments", errUsage)
	}
	controllers, err := controllersWithout(*without)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}

	// cert-manager's defaults for what its own command line would have said.
	opts.KubernetesAPIQPS, opts.KubernetesAPIBurst = 20, 50
	opts.ClusterIssuerAmbientCredentials = true
	opts.CopiedAnnotationPrefixes = []string{"*", "-kubectl.kubernetes.io/", "-fluxcd.io/", "-argocd.argoproj.io/"}
	opts.CertificateRequestMaximumBackoffDuration = max(32*time.Hour, opts.CertificateRequestMinimumBackoffDuration)

	logs.InitLogs()
	defer logs.FlushLogs()
	if _, err := logs.GlogSetter(*verbosity); err != nil {
		return fmt.Errorf("%w: -v %s: %w", errUsage, *verbosity, err)
	}
	klog.EnableContextualLogging(true)
	ctx = klog.NewContext(ctx, klog.Background().WithName("cert-manager"))

	factory, err := cmcontroller.NewContextFactory(ctx, opts)
	if err != nil {
		return fmt.Errorf("make clients: %w", err)
	}
	return runControllers(ctx, factory, controllers, *workers, *listen)
}

// controllersWithout are all known controllers but those of a list of names.
func controllersWithout(list string) (map[string]cmcontroller.Constructor, error) {
	controllers := maps.Clone(cmcontroller.Known())
	for name := range strings.SplitSeq(list, ",") {
		if name == "" {
			continue
		}
		if controllers[name] == nil {
			return nil, fmt.Errorf("no controller %q", name)
		}
		delete(controllers, name)
	}
	return controllers, nil
}

// runControllers builds the controllers and runs them until ctx ends or one of them fails.
func runControllers(ctx context.Context, factory *cmcontroller.ContextFactory, controllers map[string]cmcontroller.Constructor, workers int, listen string) error {
	base, err := factory.Build()
	if err != nil {
		return fmt.Errorf("make clients: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)

	var synced atomic.Bool
	if listen != "" {
		ln, err := net.Listen("tcp", listen)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", listen, err)
		}
		// The server that cert-manager makes has a write timeout and its metrics under /metrics.
		srv := base.Metrics.NewServer(ln)
		srv.Handler = withReadiness(srv.Handler, &synced)
		group.Go(func() error {
			if err := srv.Serve(ln); err != http.ErrServerClosed {
				return fmt.Errorf("serve %s: %w", listen, err)
			}
			return nil
		})
		context.AfterFunc(ctx, func() { srv.Close() })
	}

	for name, construct := range controllers {
		c, err := construct(factory)
		if err != nil {
			return fmt.Errorf("make controller %s: %w", name, err)
		}
		group.Go(func() error {
			if err := c.Run(workers, ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("run controller %s: %w", name, err)
			}
			return nil
		})
	}

	// The informers exist now that the controllers do.
	base.SharedInformerFactory.Start(ctx.Done())
	base.KubeSharedInformerFactory.Start(ctx.Done())
	base.HTTP01ResourceMetadataInformersFactory.Start(ctx.Done())
	group.Go(func() error {
		base.SharedInformerFactory.WaitForCacheSync(ctx.Done())
		base.KubeSharedInformerFactory.WaitForCacheSync(ctx.Done())
		base.HTTP01ResourceMetadataInformersFactory.WaitForCacheSync(ctx.Done())
		synced.Store(ctx.Err() == nil)
		klog.FromContext(ctx).Info("informers synced", "controllers", len(controllers), "workers", workers)
		return nil
	})
	return group.Wait()
}

// withReadiness answers /readyz, with 200 once synced is true and 503 before, and leaves the rest
// to next.
func withReadiness(next http.Handler, synced *atomic.Bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !synced.Load() {
			http.Error(w, "informers are not synced", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
