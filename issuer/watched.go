package issuer

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
)

// Watched is one ConfigMap, kept current by a watch of its name alone, so that RBAC can name it. Safe for
// concurrent use.
type Watched struct {
	client typedcorev1.ConfigMapInterface
	name   string

	mu     sync.Mutex
	synced bool
	object *corev1.ConfigMap // shared and never changed; nil where there is none
	notice Notice            // that synced or object has changed
}

// NewWatched watches the ConfigMap called name once Start runs.
func NewWatched(client typedcorev1.ConfigMapInterface, name string) *Watched {
	return &Watched{client: client, name: name}
}

// Start keeps it current until ctx ends.
func (w *Watched) Start(ctx context.Context) {
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, w.name).String()
	store, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				options.FieldSelector = only
				return w.client.List(ctx, options)
			},
			WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
				options.FieldSelector = only
				return w.client.Watch(ctx, options)
			},
		},
		ObjectType: &corev1.ConfigMap{},
		Transform:  cache.TransformFunc(stripManagedFields),
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { w.set(obj.(*corev1.ConfigMap)) },
			UpdateFunc: func(_, obj any) { w.set(obj.(*corev1.ConfigMap)) },
			DeleteFunc: func(any) { w.set(nil) },
		},
	})
	var running sync.WaitGroup
	running.Go(func() { controller.RunWithContext(ctx) })
	if cache.WaitForCacheSync(ctx.Done(), controller.HasSynced) && len(store.List()) == 0 {
		w.none()
	}
	running.Wait()
}

// none says that there is no object, unless one was seen before.
func (w *Watched) none() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.synced {
		w.replace(nil)
	}
}

func stripManagedFields(obj any) (any, error) {
	if cm, ok := obj.(*corev1.ConfigMap); ok {
		cm.ManagedFields = nil
	}
	return obj, nil
}

func (w *Watched) set(object *corev1.ConfigMap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.replace(object)
}

// replace puts object in force. The caller holds mu.
func (w *Watched) replace(object *corev1.ConfigMap) {
	w.synced, w.object = true, object
	w.notice.Tell()
}

// Current is the ConfigMap as it is now, nil where there is none; synced says that this is known. The channel is
// closed when either changes.
func (w *Watched) Current() (object *corev1.ConfigMap, synced bool, changed <-chan struct{}) {
	changed = w.notice.Changed()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.object, w.synced, changed
}
