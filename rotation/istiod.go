package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
)

// Istiod keeps the Certificate of istiod's serving certificate as it should be: there before istiod
// starts, with the names of all revisions, signed by the issuer in force. Cert-manager renews it, and
// istiod reads it anew by itself. Nothing is ever deleted. Safe for concurrent use.
type Istiod struct {
	cfg     IstiodConfig // with its defaults
	config  *rest.Config
	http    *http.Client
	scheme  *runtime.Scheme
	mapper  meta.RESTMapper
	client  client.Client
	ref     func() issuer.Ref
	changed func() <-chan struct{}
	log     *slog.Logger
	events  events.EventRecorder

	status atomic.Pointer[IstiodStatus] // nil while Start doesn't run; written by Start only
}

// The kinds that are watched. Of the last two only the metadata is.
var (
	certificateKind = cmapi.SchemeGroupVersion.WithKind(cmapi.CertificateKind)
	deploymentKind  = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
	webhookKind     = schema.GroupVersionKind{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration"}
)

// NewIstiod makes the keeper of istiod's Certificate, for a cfg that is valid and enabled. Ref is the
// issuer in force, and changed a channel that is closed when it may be another one; while ref has no
// name, nothing is written. The recorder may be nil.
func NewIstiod(cfg IstiodConfig, config *rest.Config, ref func() issuer.Ref, changed func() <-chan struct{}, log *slog.Logger, reg prometheus.Registerer, recorder events.EventRecorder) (*Istiod, error) {
	s := &Istiod{cfg: cfg.withDefaults(), config: config, ref: ref, changed: changed, log: log, events: recorder, scheme: runtime.NewScheme()}
	if err := cmapi.AddToScheme(s.scheme); err != nil {
		return nil, fmt.Errorf("register API types: %w", err)
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(certificateKind, meta.RESTScopeNamespace)
	mapper.Add(deploymentKind, meta.RESTScopeNamespace)
	mapper.Add(webhookKind, meta.RESTScopeRoot)
	s.mapper = mapper
	var err error
	if s.http, err = rest.HTTPClientFor(config); err != nil {
		return nil, fmt.Errorf("make client for istiod's Certificate: %w", err)
	}
	if s.client, err = client.New(config, client.Options{HTTPClient: s.http, Scheme: s.scheme, Mapper: s.mapper}); err != nil {
		return nil, fmt.Errorf("make client for istiod's Certificate: %w", err)
	}
	reg.MustRegister(newIstiodMetrics(s))
	return s, nil
}

// Status is what is known now.
func (s *Istiod) Status() IstiodStatus {
	if status := s.status.Load(); status != nil {
		return *status
	}
	return IstiodStatus{}
}

// Times of the keeper.
const (
	istiodTryTimeout = 10 * time.Second
	istiodSettle     = 5 * time.Second  // how long revisions are waited for before the first write
	istiodRecheck    = 10 * time.Minute // without any notice
	istiodUnseen     = 3 * time.Second  // how long a write may take to come back by the watch
	deniedEvery      = 10 * time.Minute // how often a watch that is denied is logged
)

// Start keeps the Certificate until ctx ends and everything has stopped. Only one replica of the
// cluster should run it; it can be started again after it has ended.
func (s *Istiod) Start(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w, err := s.watch(ctx)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer stop() // before the wait
	defer s.status.Store(nil)
	ended := make(chan error, 1)
	running.Go(func() { ended <- w.cache.Start(ctx) })
	for _, handler := range w.handlers() {
		running.Go(func() {
			if toolscache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
				w.wake()
			}
		})
	}
	k := &keeping{Istiod: s, watch: w, began: time.Now(), writes: rate.NewLimiter(rate.Every(5*time.Second), 10)}
	for {
		changed := s.changed() // before the issuer is read, so that no change is missed
		timer := time.NewTimer(k.look(ctx))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case err := <-ended:
			timer.Stop()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch istiod's Certificate: %w", err)
		case <-changed:
		case <-w.woken:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// keeping is one run of Start. Used by its goroutine only.
type keeping struct {
	*Istiod
	watch    *istiodWatch
	began    time.Time
	writes   *rate.Limiter // somebody else may want the Certificate to be different, all the time
	failures int           // in a row
	trouble  error
	wrote    *unstructured.Unstructured // what the last write made of the Certificate, nil before it
	wroteAt  time.Time
}

// unseen says that the informer doesn't know of our last write yet. A Certificate that was deleted
// right after it is missed for a moment.
func (k *keeping) unseen(is *cmapi.Certificate) bool {
	if k.wrote == nil || time.Since(k.wroteAt) > istiodUnseen {
		return false
	}
	return is == nil || is.UID == k.wrote.GetUID() && is.Generation < k.wrote.GetGeneration()
}

// look compares what is there with what should be, writes where they differ, and returns how long to
// wait for the next look where nothing happens before.
func (k *keeping) look(ctx context.Context) time.Duration {
	wrote, err := k.try(ctx)
	if ctx.Err() != nil {
		return 0
	}
	if err == nil {
		k.failures, k.trouble = 0, nil
	} else {
		k.failures++
		k.trouble = err
	}
	status := k.observe(ctx)
	switch {
	case errors.Is(err, errNotYet):
		k.failures, k.trouble = 0, nil
		return max(time.Until(k.began.Add(istiodSettle)), time.Second) // its arrival wakes us as well
	case err == nil && wrote != "":
		k.log.Info("istiod's Certificate written", "certificate", k.cfg.Namespace+"/"+k.cfg.Name, "changed", wrote, "issuer", k.ref().String())
		k.event(corev1.EventTypeNormal, "Applied", "Signet set "+wrote)
		fallthrough
	case err == nil:
		return istiodRecheck
	}
	level, now := slog.LevelWarn, time.Now()
	left := status.NotAfter.Sub(now)
	policy := policyFor(KindIstiod, status.NotBefore, status.NotAfter, status.Renewal)
	if state := Decide(policy, status.NotBefore, status.NotAfter, now); state == Overdue || state == Expired {
		level = slog.LevelError
	}
	pause := retryIn(k.failures, left)
	k.log.Log(ctx, level, "istiod's Certificate not written", "err", err, "next_try_seconds", pause.Seconds())
	if k.failures == 1 {
		k.event(corev1.EventTypeWarning, "ApplyFailed", err.Error())
	}
	return pause
}

// observe puts what is there into the status.
func (k *keeping) observe(ctx context.Context) IstiodStatus {
	status := IstiodStatus{Watching: true, Namespace: k.cfg.Namespace, Name: k.cfg.Name, Condition: "the Certificate has not been read yet"}
	if k.watch.certificates.HasSynced() {
		switch is, err := k.watch.certificate(ctx); {
		case err != nil:
			status.Condition = err.Error()
		case is == nil:
			status.Condition = "there is no Certificate yet"
		default:
			status = statusOf(is)
		}
	}
	status.Trouble = k.trouble
	k.status.Store(&status)
	return status
}

// errNotYet says that too little is known for a write.
var errNotYet = errors.New("not known yet")

// try writes the Certificate where it isn't as it should be, and says in what it wasn't.
func (k *keeping) try(ctx context.Context) (wrote string, err error) {
	ctx, cancel := context.WithTimeout(ctx, istiodTryTimeout)
	defer cancel()
	ref := k.ref()
	// What is there is read before anything is written: a replica that took over must not take names
	// away, and have a certificate made anew, because it can't see the revisions yet.
	if ref.Name == "" || !k.watch.certificates.HasSynced() {
		return "", errNotYet
	}
	is, err := k.watch.certificate(ctx)
	if err != nil {
		return "", err
	}
	if k.unseen(is) {
		return "", errNotYet
	}
	revisions, complete, err := k.watch.revisions(ctx)
	if err != nil {
		return "", err
	}
	if !complete && time.Since(k.began) < istiodSettle {
		return "", errNotYet
	}
	names := k.cfg.names(revisions)
	if !complete && is != nil {
		names = k.cfg.kept(names, is.Spec.DNSNames)
	}
	want := k.cfg.certificate(ref, names)
	differs := "everything"
	if is != nil {
		if differs = drift(is, want); differs == "" {
			return "", nil
		}
	}
	object, err := applied(want)
	if err != nil {
		return "", err
	}
	if err := k.writes.Wait(ctx); err != nil {
		return "", fmt.Errorf("apply Certificate %s/%s: somebody else keeps changing %s", k.cfg.Namespace, k.cfg.Name, differs)
	}
	if err := k.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("signet"), client.ForceOwnership); err != nil {
		return "", fmt.Errorf("apply Certificate %s/%s: %w", k.cfg.Namespace, k.cfg.Name, err)
	}
	k.wrote, k.wroteAt = object, time.Now()
	return differs, nil
}

func (k *keeping) event(kind, reason, text string) {
	if k.events == nil {
		return
	}
	regarding := &corev1.ObjectReference{
		APIVersion: certificateKind.GroupVersion().String(), Kind: certificateKind.Kind, Namespace: k.cfg.Namespace, Name: k.cfg.Name,
	}
	k.events.Eventf(regarding, nil, kind, reason, "Apply", "%s", text)
}
