package rotation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// istiodWatch is what one run of Start sees of the cluster.
type istiodWatch struct {
	cfg   IstiodConfig
	cache cache.Cache
	woken chan struct{} // has one element where something has changed

	certificates, deployments, webhooks toolscache.ResourceEventHandlerRegistration
}

// watch prepares the informers; they start with the cache.
func (s *Istiod) watch(ctx context.Context) (*istiodWatch, error) {
	w := &istiodWatch{cfg: s.cfg, woken: make(chan struct{}, 1)}
	revised, err := labels.NewRequirement(revisionLabel, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("select MutatingWebhookConfigurations: %w", err)
	}
	ours := fields.OneTermEqualSelector("metadata.name", s.cfg.Name) // so that the right to it can be one by name
	deployment, webhook := metadataOf(deploymentKind), metadataOf(webhookKind)
	denied := &deniedLog{log: s.log, last: make(map[string]time.Time)}
	w.cache, err = cache.New(s.config, cache.Options{
		HTTPClient: s.http, Scheme: s.scheme, Mapper: s.mapper,
		ByObject: map[client.Object]cache.ByObject{
			&cmapi.Certificate{}: {Namespaces: map[string]cache.Config{s.cfg.Namespace: {FieldSelector: ours}}, Transform: cache.TransformStripManagedFields()},
			deployment:           {Namespaces: map[string]cache.Config{s.cfg.Namespace: {LabelSelector: labels.SelectorFromSet(labels.Set{"app": "istiod"})}}, Transform: onlyLabels},
			webhook:              {Label: labels.NewSelector().Add(*revised), Transform: onlyLabels}, // a tag has the label of its revision too
		},
		DefaultWatchErrorHandler: denied.handle,
	})
	if err != nil {
		return nil, fmt.Errorf("make cache for istiod's Certificate: %w", err)
	}
	for _, one := range []struct {
		object  client.Object
		handler *toolscache.ResourceEventHandlerRegistration
	}{
		{&cmapi.Certificate{}, &w.certificates}, {deployment, &w.deployments}, {webhook, &w.webhooks},
	} {
		informer, err := w.cache.GetInformer(ctx, one.object, cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", one.object, err)
		}
		*one.handler, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { w.wake() },
			UpdateFunc: func(any, any) { w.wake() },
			DeleteFunc: func(any) { w.wake() },
		})
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", one.object, err)
		}
	}
	return w, nil
}

// Labels of Istio that say which revision, and which tag, an object belongs to.
const (
	revisionLabel = "istio.io/rev"
	tagLabel      = "istio.io/tag"
)

func metadataOf(kind schema.GroupVersionKind) *metav1.PartialObjectMetadata {
	object := &metav1.PartialObjectMetadata{}
	object.SetGroupVersionKind(kind)
	return object
}

// onlyLabels keeps of an object what its revision is read from.
func onlyLabels(object any) (any, error) {
	if m, ok := object.(*metav1.PartialObjectMetadata); ok {
		m.ManagedFields, m.Annotations, m.OwnerReferences = nil, nil, nil
	}
	return object, nil
}

func (w *istiodWatch) handlers() []toolscache.ResourceEventHandlerRegistration {
	return []toolscache.ResourceEventHandlerRegistration{w.certificates, w.deployments, w.webhooks}
}

func (w *istiodWatch) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// certificate is the Certificate that is there, or nil. Only after certificates have synced.
func (w *istiodWatch) certificate(ctx context.Context) (*cmapi.Certificate, error) {
	is := &cmapi.Certificate{}
	err := w.cache.Get(ctx, types.NamespacedName{Namespace: w.cfg.Namespace, Name: w.cfg.Name}, is)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Certificate %s/%s: %w", w.cfg.Namespace, w.cfg.Name, err)
	}
	return is, nil
}

// revisions is what the cluster says, and whether it has said everything.
func (w *istiodWatch) revisions(ctx context.Context) (f found, complete bool, err error) {
	complete = true
	for _, one := range []struct {
		kind    schema.GroupVersionKind
		handler toolscache.ResourceEventHandlerRegistration
		tagged  bool
	}{
		{deploymentKind, w.deployments, false}, {webhookKind, w.webhooks, true},
	} {
		if !one.handler.HasSynced() {
			complete = false
			continue
		}
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(one.kind)
		if err := w.cache.List(ctx, list); err != nil {
			return found{}, false, fmt.Errorf("list %ss: %w", one.kind.Kind, err)
		}
		for _, item := range list.Items {
			f.revisions = append(f.revisions, cmp.Or(item.Labels[revisionLabel], defaultRevision))
			if tag := item.Labels[tagLabel]; one.tagged && tag != "" {
				f.tags = append(f.tags, tag)
			}
		}
	}
	return f, complete, nil
}

// deniedLog logs errors of watches, those of each resource once in a while. The reflector tries again by
// itself, less and less often.
type deniedLog struct {
	log *slog.Logger

	mu   sync.Mutex // guards the following
	last map[string]time.Time
}

func (d *deniedLog) handle(ctx context.Context, r *toolscache.Reflector, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return // a watch that has to begin anew is no news
	}
	what := r.TypeDescription()
	// Of objects that only the metadata is read of, the description doesn't say what they are.
	if status, ok := errors.AsType[*apierrors.StatusError](err); ok && status.Status().Details != nil {
		what = schema.GroupResource{Group: status.Status().Details.Group, Resource: status.Status().Details.Kind}.String()
	}
	d.mu.Lock()
	last, known := d.last[what]
	due := !known || time.Since(last) >= deniedEvery
	if due {
		d.last[what] = time.Now()
	}
	d.mu.Unlock()
	if !due {
		return
	}
	if apierrors.IsForbidden(err) {
		d.log.Error("not allowed to watch; grant list and watch with a Role or ClusterRole", "resource", what, "err", err)
		return
	}
	d.log.Warn("can't watch", "resource", what, "err", err)
}
