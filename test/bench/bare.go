package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/signer"
)

const bareLabel = "bench"

// bareSide makes CertificateRequests as anybody could: create, wait on one shared watch, delete. It acts
// as a ServiceAccount, as Signet does, so that Priority and Fairness is the same for both.
type bareSide struct {
	*bench
	config *rest.Config
	client client.Client
	stop   context.CancelFunc

	mu      sync.Mutex // guards the following
	waiting map[types.UID]chan struct{}
	ready   map[types.UID]bool
}

func newBareSide(ctx context.Context, b *bench) (*bareSide, error) {
	if err := b.plane.Apply(ctx, fmt.Appendf(nil, bareRights, b.namespace)); err != nil {
		return nil, err
	}
	config, err := b.plane.As(ctx, b.namespace, "bare")
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := cmapi.AddToScheme(scheme); err != nil {
		return nil, err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	return &bareSide{bench: b, config: config, client: c}, err
}

const bareRights = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: bare, namespace: %[1]s}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: bare, namespace: %[1]s}
rules:
- {apiGroups: [cert-manager.io], resources: [certificaterequests], verbs: [create, get, list, watch, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: bare, namespace: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: bare}
subjects:
- {kind: ServiceAccount, name: bare, namespace: %[1]s}
`

func (s *bareSide) name() string { return "bare" }

func (s *bareSide) open(ctx context.Context, _ int) error {
	s.waiting, s.ready = make(map[types.UID]chan struct{}), make(map[types.UID]bool)
	watch, err := cache.New(s.config, cache.Options{
		Scheme: s.client.Scheme(), Mapper: s.client.RESTMapper(),
		DefaultNamespaces: map[string]cache.Config{s.namespace: {}},
	})
	if err != nil {
		return err
	}
	informer, err := watch.GetInformer(ctx, &cmapi.CertificateRequest{}, cache.BlockUntilSynced(false))
	if err != nil {
		return err
	}
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    s.observe,
		UpdateFunc: func(_, obj any) { s.observe(obj) },
	}); err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- watch.Start(running) }()
	s.stop = func() { stop(); <-done }
	if !watch.WaitForCacheSync(ctx) {
		return fmt.Errorf("the watch did not sync: %w", ctx.Err())
	}
	return nil
}

func (s *bareSide) close() { s.stop() }

func (s *bareSide) observe(obj any) {
	cr, ok := obj.(*cmapi.CertificateRequest)
	if !ok || apiutil.CertificateRequestReadyReason(cr) != cmapi.CertificateRequestReasonIssued {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready[cr.UID] = true
	if done := s.waiting[cr.UID]; done != nil {
		delete(s.waiting, cr.UID)
		close(done)
	}
}

func (s *bareSide) certificate(ctx context.Context, _, n int) (time.Duration, error) {
	began := time.Now()
	cr := &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, GenerateName: bareLabel + "-"},
		Spec: cmapi.CertificateRequestSpec{
			Duration:  &metav1.Duration{Duration: 24 * time.Hour},
			IssuerRef: cmmeta.IssuerReference{Name: "istio-ca", Kind: "Issuer", Group: "cert-manager.io"},
			Request:   []byte(s.csrs[n]),
			Usages:    signer.LeafUsages(),
		},
	}
	if err := s.client.Create(ctx, cr); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	s.mu.Lock()
	if s.ready[cr.UID] {
		close(done)
	} else {
		s.waiting[cr.UID] = done
	}
	s.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	took := time.Since(began)
	return took, s.client.Delete(ctx, cr)
}

// settle has nothing to wait for: each caller deleted what it made.
func (s *bareSide) settle(context.Context) error { return nil }
