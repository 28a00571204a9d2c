package issuer

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/signet-ca/signet/watches"
)

// NewSecretSource is the source of the anchors in one key of a Secret in namespace. Signet needs to
// list and watch it, which may be limited to its name.
func NewSecretSource(config *rest.Config, namespace, name, key string, log *slog.Logger) (Source, error) {
	return newObjectSource(config, "Secret", namespace, name, key, log)
}

// NewConfigMapSource is the source of the anchors in one key of a ConfigMap in namespace, with the
// same rights as for a Secret. The target of a trust-manager Bundle is the ConfigMap of the Bundle's
// name; its key is the one that the Bundle's target names.
func NewConfigMapSource(config *rest.Config, namespace, name, key string, log *slog.Logger) (Source, error) {
	return newObjectSource(config, "ConfigMap", namespace, name, key, log)
}

func newObjectSource(config *rest.Config, kind, namespace, name, key string, log *slog.Logger) (Source, error) {
	text, err := newObjectText(config, kind, namespace, name, key)
	if err != nil {
		return nil, err
	}
	return &textSource{text: text, parse: ParseBundle, log: log}, nil
}

// objectText is the text in one key of a Secret or a ConfigMap.
type objectText struct {
	kind, namespace, name, key string

	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	open  func(context.Context, metav1.ListOptions) (watch.Interface, error)
	empty runtime.Object
}

func newObjectText(config *rest.Config, kind, namespace, name, key string) (*objectText, error) {
	config = rest.CopyConfig(config)
	config.Timeout = 0 // it would end the watch
	client, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for %s %s/%s: %w", kind, namespace, name, err)
	}
	o := &objectText{kind: kind, namespace: namespace, name: name, key: key}
	if kind == "Secret" {
		secrets := client.Secrets(namespace)
		o.empty, o.open = &corev1.Secret{}, secrets.Watch
		o.list = func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			return secrets.List(ctx, opts)
		}
	} else {
		configMaps := client.ConfigMaps(namespace)
		o.empty, o.open = &corev1.ConfigMap{}, configMaps.Watch
		o.list = func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			return configMaps.List(ctx, opts)
		}
	}
	return o, nil
}

func (o *objectText) String() string {
	return fmt.Sprintf("%s %s/%s, key %s", o.kind, o.namespace, o.name, o.key)
}

// silence is how long the API server may take to tell the first time what there is.
const silence = 10 * time.Second

// watch keeps an informer of this one object, and asks it.
func (o *objectText) watch(ctx context.Context, found func([]byte, error)) {
	var mu sync.Mutex
	var trouble error // of the last request; guarded by mu
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	outcome := func(ctx context.Context, err error) {
		if ctx.Err() != nil {
			return
		}
		mu.Lock()
		trouble = err
		mu.Unlock()
		notify()
	}

	byName := fields.OneTermEqualSelector(metav1.ObjectNameField, o.name).String()
	informer := cache.NewSharedIndexInformerWithOptions(watches.ListWatch(
		func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			opts.FieldSelector = byName
			return o.list(ctx, opts)
		},
		func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.FieldSelector = byName
			return o.open(ctx, opts)
		},
		outcome,
	), o.empty, cache.SharedIndexInformerOptions{ObjectDescription: o.String()})
	// These fail only once the informer runs, or when it is given several handlers.
	_ = informer.SetTransform(o.strip)
	_ = informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {}) // outcome has it
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(any, any) { notify() },
		DeleteFunc: func(any) { notify() },
	})
	if err != nil {
		found(nil, fmt.Errorf("watch %s %s/%s: %w", o.kind, o.namespace, o.name, err))
		return
	}
	var running sync.WaitGroup
	running.Go(func() { informer.RunWithContext(ctx) })
	defer running.Wait()

	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	began := time.Now()
	known := handler.HasSyncedChecker().Done() // nil once it is closed
	synced := false
	for {
		mu.Lock()
		err := trouble
		mu.Unlock()
		switch {
		case err != nil:
			found(nil, fmt.Errorf("watch %s %s/%s: %w", o.kind, o.namespace, o.name, err))
		case synced:
			found(o.look(informer.GetStore()))
		case time.Since(began) >= silence:
			found(nil, fmt.Errorf("watch %s %s/%s: the API server has not answered yet", o.kind, o.namespace, o.name))
		}
		select {
		case <-ctx.Done():
			return
		case <-known:
			synced, known = true, nil
		case <-changed:
		case <-ticker.C:
		}
	}
}

// look is what the informer has.
func (o *objectText) look(store cache.Store) ([]byte, error) {
	object, exists, err := store.GetByKey(o.namespace + "/" + o.name)
	if err != nil {
		return nil, err
	}
	if !exists {
		return nil, fmt.Errorf("%s %s/%s doesn't exist: %w", o.kind, o.namespace, o.name, errAbsent)
	}
	var text []byte
	switch object := object.(type) {
	case *corev1.Secret:
		text = object.Data[o.key]
	case *corev1.ConfigMap:
		text = []byte(object.Data[o.key])
	}
	if len(text) == 0 {
		return nil, fmt.Errorf("%s %s/%s has no key %s, or an empty one: %w", o.kind, o.namespace, o.name, o.key, errAbsent)
	}
	return text, nil
}

// strip keeps of the object what is asked for, so that a private key beside it isn't held in memory.
func (o *objectText) strip(object any) (any, error) {
	switch object := object.(type) {
	case *corev1.Secret:
		object.ManagedFields, object.Annotations = nil, nil
		maps.DeleteFunc(object.Data, func(key string, _ []byte) bool { return key != o.key })
	case *corev1.ConfigMap:
		object.ManagedFields, object.Annotations, object.BinaryData = nil, nil, nil
		maps.DeleteFunc(object.Data, func(key, _ string) bool { return key != o.key })
	}
	return object, nil
}
