package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/signet-ca/signet/watches"
)

// follow puts the documents in force as they change, until ctx ends, and finds out whether there is a
// ClusterTrustBundle to write. It ends when all that it started has stopped.
func (t *distribution) follow(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	start := func(s *sheet) (stop func()) {
		ctx, cancel := context.WithCancel(ctx)
		group.Go(func() { t.watchSheet(ctx, s) })
		return cancel
	}
	served := make(chan schema.GroupVersionResource, 1)
	if t.cfg.ClusterTrustBundle != bundleOff {
		group.Go(func() { t.findBundle(ctx, served) })
	}
	documents, changed := t.documents()
	t.setDocuments(documents, start)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			documents, changed = t.documents()
			t.setDocuments(documents, start)
		case resource := <-served:
			t.serveBundle(resource, start)
		}
	}
}

// How often a server that hasn't got ClusterTrustBundles, or doesn't answer, is asked again.
const (
	bundleAskAgain = time.Minute
	bundleRetry    = 5 * time.Second
)

// findBundle asks until ClusterTrustBundles are served, or ctx ends.
func (t *distribution) findBundle(ctx context.Context, served chan<- schema.GroupVersionResource) {
	for {
		resource, err := t.bundleResource(ctx)
		if err == nil {
			served <- resource // has room for one
			return
		}
		says, pause := BundleProgress{State: BundleNotServed, Reason: err.Error()}, bundleAskAgain
		if !errors.Is(err, errNotServed) {
			says.State, pause = BundleUnknown, bundleRetry
		} else if t.cfg.ClusterTrustBundle == bundleOn {
			says.State = BundleFailing
		}
		t.mu.Lock()
		if t.bundleSays != says {
			t.bundleSays = says
			t.say(func() { t.log.Info("no ClusterTrustBundle is written", "state", says.State, "reason", says.Reason) })
			t.notify()
		}
		t.unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause + rand.N(pause/5)):
		}
	}
}

var errNotServed = errors.New("the API server has no ClusterTrustBundles")

// bundleResource is the newest version of the API that is served; where none is, errNotServed.
func (t *distribution) bundleResource(ctx context.Context) (schema.GroupVersionResource, error) {
	for _, version := range []string{"v1", "v1beta1"} {
		gv := schema.GroupVersion{Group: "certificates.k8s.io", Version: version}
		list, err := t.discovery.ServerResourcesForGroupVersionWithContext(ctx, gv.String())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return schema.GroupVersionResource{}, fmt.Errorf("discover %s: %w", gv, err)
		}
		for _, resource := range list.APIResources {
			if resource.Name == "clustertrustbundles" {
				return gv.WithResource(resource.Name), nil
			}
		}
	}
	return schema.GroupVersionResource{}, errNotServed
}

// source lists and watches objects, and remembers why it can't.
type source struct {
	what  string
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// reflect feeds a sink from a source until ctx ends. No objects are kept but what the sink keeps.
func (t *distribution) reflect(ctx context.Context, from source, kind runtime.Object, to *sink) {
	note := func(ctx context.Context, err error) {
		t.mu.Lock()
		defer t.unlock()
		if err == nil {
			delete(t.trouble, from.what)
		} else if ctx.Err() == nil && !apierrors.IsResourceExpired(err) {
			t.trouble[from.what] = err
		}
		t.notify()
	}
	cache.NewReflectorWithOptions(watches.ListWatch(from.list, from.watch, note), kind, to, cache.ReflectorOptions{
		Name:    "distribution of trust documents: " + from.what,
		Backoff: watches.Backoff(),
	}).RunWithContext(ctx)
	t.mu.Lock()
	defer t.unlock()
	delete(t.trouble, from.what)
}

// sink is what a reflector fills. Shrink makes of an object the little that is kept of it, while the
// first ones arrive; objects that come later are shrunk by the other functions.
type sink struct {
	shrink  func(any) (any, error)
	one     func(object any, gone bool)
	replace func(objects []any, version string)
}

// Add is told of a new object.
func (s *sink) Add(object any) error { s.one(object, false); return nil }

// Update is told of a changed object.
func (s *sink) Update(object any) error { s.one(object, false); return nil }

// Delete is told of a deleted object.
func (s *sink) Delete(object any) error { s.one(object, true); return nil }

// Replace is told all objects that exist.
func (s *sink) Replace(objects []any, version string) error { s.replace(objects, version); return nil }

// Resync has nothing to do.
func (s *sink) Resync() error { return nil }

// Transformer is used on objects before they are held in memory.
func (s *sink) Transformer() cache.TransformFunc { return s.shrink }

// watchNamespaces keeps the namespaces known until ctx ends. Only their metadata is read.
func (t *distribution) watchNamespaces(ctx context.Context) {
	namespaces := t.metadata.Resource(corev1.SchemeGroupVersion.WithResource("namespaces"))
	take := func(object any) {
		if m, ok := object.(*metav1.PartialObjectMetadata); ok {
			t.seeNamespace(m.Name, m.UID, m.Labels, m.DeletionTimestamp != nil)
		}
	}
	t.reflect(ctx, source{
		what: "list namespaces",
		list: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return namespaces.List(ctx, options)
		},
		watch: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return namespaces.Watch(ctx, options)
		},
	}, &metav1.PartialObjectMetadata{}, &sink{
		shrink: func(object any) (any, error) {
			if m, ok := object.(*metav1.PartialObjectMetadata); ok {
				m.ManagedFields, m.Annotations, m.OwnerReferences = nil, nil, nil
			}
			return object, nil
		},
		one: func(object any, gone bool) {
			t.mu.Lock()
			defer t.unlock()
			if m, ok := object.(*metav1.PartialObjectMetadata); ok && gone {
				t.missNamespace(m.Name)
			} else {
				take(object)
			}
		},
		replace: func(objects []any, _ string) {
			t.mu.Lock()
			defer t.unlock()
			listed := make(map[string]bool, len(objects))
			for _, object := range objects {
				take(object)
				if m, ok := object.(*metav1.PartialObjectMetadata); ok {
					listed[m.Name] = true
				}
			}
			for name := range t.homes {
				if !listed[name] {
					t.missNamespace(name)
				}
			}
			if !t.homesSeen {
				t.homesSeen = true
				t.recheckAll()
			}
		},
	})
}

// recheckAll looks at everything anew. The caller holds mu.
func (t *distribution) recheckAll() {
	for _, s := range t.sheets {
		t.recheck(s, urgentMass)
	}
	if t.bundle != nil {
		t.recheck(t.bundle, urgentMass)
	}
	t.notify()
}

// sighting is what is kept of an object until the list that it comes with is complete.
type sighting struct {
	metav1.ObjectMeta // name, namespace and version only
	seen              sight
}

// watchSheet keeps the places of a sheet known until ctx ends. Only objects of its name are read.
func (t *distribution) watchSheet(ctx context.Context, s *sheet) {
	from, kind := t.configMapSource(s), runtime.Object(&corev1.ConfigMap{})
	if s.cluster() {
		from, kind = t.bundleSource(s), &unstructured.Unstructured{}
	}
	// After the sheet was dropped, the last events don't count.
	locked := func(what func()) {
		t.mu.Lock()
		defer t.unlock()
		if t.sheets[s.name] == s || t.bundle == s {
			what()
		}
	}
	t.reflect(ctx, from, kind, &sink{
		shrink: func(object any) (any, error) { return s.sighting(object) },
		one: func(object any, gone bool) {
			found, err := s.sighting(object)
			if err != nil {
				t.log.Error("read trust document", "err", err)
				return
			}
			if gone {
				found.seen = sight{version: found.seen.version}
			}
			locked(func() { t.see(s, found.Namespace, found.seen) })
		},
		replace: func(objects []any, version string) {
			var all []*sighting
			listed := make(map[string]bool, len(objects))
			for _, object := range objects {
				found, err := s.sighting(object)
				if err != nil {
					t.log.Error("read trust document", "err", err)
					continue
				}
				all = append(all, found)
				listed[found.Namespace] = true
			}
			locked(func() {
				for _, found := range all {
					t.see(s, found.Namespace, found.seen)
				}
				t.keepOnly(s, listed, versionNumber(version))
				if !s.seen {
					s.seen = true
					t.recheck(s, urgentMass)
					t.notify()
				}
			})
		},
	})
}

// configMapSource is the sheet's ConfigMap in all namespaces. The name in the field selector is also
// what rights limited to that name are granted for.
func (t *distribution) configMapSource(s *sheet) source {
	configMaps, named := t.configMaps.ConfigMaps(metav1.NamespaceAll), fields.OneTermEqualSelector("metadata.name", s.name).String()
	return source{
		what: s.listing(),
		list: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = named
			return configMaps.List(ctx, options)
		},
		watch: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = named
			return configMaps.Watch(ctx, options)
		},
	}
}

// bundleSource is the ClusterTrustBundle.
func (t *distribution) bundleSource(s *sheet) source {
	bundles, named := t.dynamic.Resource(s.resource), fields.OneTermEqualSelector("metadata.name", s.name).String()
	return source{
		what: s.listing(),
		list: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = named
			return bundles.List(ctx, options)
		},
		watch: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = named
			return bundles.Watch(ctx, options)
		},
	}
}

// sighting looks at an object of the sheet's name.
func (s *sheet) sighting(object any) (*sighting, error) {
	switch o := object.(type) {
	case *sighting:
		return o, nil
	case *corev1.ConfigMap:
		found := newSighting(o)
		found.seen.immutable = o.Immutable != nil && *o.Immutable
		found.seen.labelled = o.Labels[configLabel] == configLabelValue
		_, found.seen.binary = o.BinaryData[s.key]
		if text, ok := o.Data[s.key]; ok {
			found.seen.hash = sha256.Sum256([]byte(text))
		}
		found.seen.writer = foreignManager(o.ManagedFields, [][]string{{"f:data", "f:" + s.key}, {"f:binaryData", "f:" + s.key}, {"f:metadata", "f:labels", "f:" + configLabel}})
		return found, nil
	case *unstructured.Unstructured:
		found := newSighting(o)
		found.seen.labelled = true // it needs none
		text, _, err := unstructured.NestedString(o.Object, "spec", "trustBundle")
		if err != nil {
			return nil, fmt.Errorf("read ClusterTrustBundle %s: %w", o.GetName(), err)
		}
		found.seen.hash = sha256.Sum256([]byte(text))
		found.seen.writer = foreignManager(o.GetManagedFields(), [][]string{{"f:spec", "f:trustBundle"}})
		return found, nil
	}
	return nil, fmt.Errorf("read object of type %T", object)
}

func newSighting(o metav1.Object) *sighting {
	return &sighting{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName(), ResourceVersion: o.GetResourceVersion()},
		seen:       sight{exists: true, version: versionNumber(o.GetResourceVersion()), uid: o.GetUID()},
	}
}

// versionNumber is a resource version as a number, or 0 where it is none.
func versionNumber(version string) uint64 {
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// foreignManager is the field manager, other than we are, that owns one of the fields, and wrote last;
// empty when there is none.
func foreignManager(entries []metav1.ManagedFieldsEntry, paths [][]string) string {
	name, last := "", time.Time{}
	for _, e := range entries {
		if e.Manager == fieldManager && e.Operation == metav1.ManagedFieldsOperationApply || e.FieldsV1 == nil {
			continue
		}
		at := time.Time{}
		if e.Time != nil {
			at = e.Time.Time
		}
		if name != "" && at.Before(last) || !owns(e.FieldsV1, paths) {
			continue
		}
		name, last = strings.Clone(e.Manager), at
		if name == "" {
			name = "somebody without a name"
		}
	}
	return name
}

// owns says whether fields hold one of the paths.
func owns(owned *metav1.FieldsV1, paths [][]string) bool {
	var tree map[string]any
	if json.NewDecoder(owned.GetRawReader()).Decode(&tree) != nil {
		return false
	}
	for _, path := range paths {
		at, ok := tree, true
		for _, step := range path {
			if at, ok = at[step].(map[string]any); !ok {
				break
			}
		}
		if ok {
			return true
		}
	}
	return false
}
