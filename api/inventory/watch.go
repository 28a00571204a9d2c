package inventory

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
)

// kinds are what is watched, and under which name their source is in the coverage.
var kinds = []struct {
	source string
	gvk    schema.GroupVersionKind
	typed  client.Object // nil where the metadata is enough
}{
	{"namespaces", corev1.SchemeGroupVersion.WithKind("Namespace"), nil},
	{"serviceaccounts", corev1.SchemeGroupVersion.WithKind("ServiceAccount"), nil},
	{"services", corev1.SchemeGroupVersion.WithKind("Service"), nil},
	{"endpointslices", discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), &discoveryv1.EndpointSlice{}},
	{"pods", corev1.SchemeGroupVersion.WithKind("Pod"), &corev1.Pod{}},
}

// Kinds are those that [Inventory.Observe] watches in all namespaces: list and watch are the rights it needs. The
// cache's RESTMapper must know them, and its scheme Pods and EndpointSlices.
func Kinds() []schema.GroupVersionKind {
	all := make([]schema.GroupVersionKind, len(kinds))
	for n, kind := range kinds {
		all[n] = kind.gvk
	}
	return all
}

// CacheOptions are those of the cache that is given to [Inventory.Observe]: objects are kept without what isn't needed
// here. Whoever reads these kinds from the same cache gets what is left: of a Pod its metadata without other annotations
// and, but for gateways, labels, its node, service account, start, phase, addresses, whether it has its host's network, and the names of
// istio-proxy's containers.
func CacheOptions() map[client.Object]cache.ByObject {
	options := make(map[client.Object]cache.ByObject, len(kinds))
	shared := true // objects from the cache are never changed
	for _, kind := range kinds {
		transform := toolscache.TransformFunc(shrinkMetadata)
		switch kind.typed.(type) {
		case *corev1.Pod:
			transform = shrinkPod
		case *discoveryv1.EndpointSlice:
			transform = shrinkSlice
		}
		options[objectOf(kind.gvk, kind.typed)] = cache.ByObject{Transform: transform, UnsafeDisableDeepCopy: &shared}
	}
	return options
}

// objectOf is an object of a kind as informers are asked for it.
func objectOf(gvk schema.GroupVersionKind, typed client.Object) client.Object {
	if typed != nil {
		return typed.DeepCopyObject().(client.Object)
	}
	partial := &metav1.PartialObjectMetadata{}
	partial.SetGroupVersionKind(gvk)
	return partial
}

// shrinkMetadata leaves of an object what tells it from others, and the labels that are needed.
func shrinkMetadata(object any) (any, error) {
	accessor, err := meta.Accessor(object)
	if err != nil {
		return object, nil // a tombstone, of which the object has been shrunk
	}
	accessor.SetManagedFields(nil)
	accessor.SetOwnerReferences(nil)
	accessor.SetFinalizers(nil)
	accessor.SetAnnotations(only(accessor.GetAnnotations(), keptAnnotations))
	accessor.SetLabels(only(accessor.GetLabels(), keptLabels))
	return object, nil
}

// only are the values of some keys; nil where there are none.
func only(from map[string]string, keys []string) map[string]string {
	var kept map[string]string
	for _, key := range keys {
		if value, ok := from[key]; ok {
			if kept == nil {
				kept = make(map[string]string, 1)
			}
			if key == sidecarStatus {
				value = "" // long, and only its being there counts
			}
			kept[key] = value
		}
	}
	return kept
}

// shrinkPod leaves of a Pod what is needed.
func shrinkPod(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	proxies := func(containers []corev1.Container) []corev1.Container {
		at := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == proxyContainer })
		if at < 0 {
			return nil
		}
		kept := corev1.Container{Name: proxyContainer}
		if slices.Contains(containers[at].Args, routerRole) {
			kept.Args = []string{routerRole}
		}
		return []corev1.Container{kept}
	}
	shrunk := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
			CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp,
			Labels: only(pod.Labels, keptLabels), Annotations: only(pod.Annotations, keptAnnotations),
		},
		Spec: corev1.PodSpec{
			NodeName: pod.Spec.NodeName, ServiceAccountName: pod.Spec.ServiceAccountName, HostNetwork: pod.Spec.HostNetwork,
			Containers: proxies(pod.Spec.Containers), InitContainers: proxies(pod.Spec.InitContainers),
		},
		Status: corev1.PodStatus{
			Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs, StartTime: pod.Status.StartTime,
		},
	}
	if classify(pod).plane == api.Gateway { // which Gateways it serves is said by any of them
		shrunk.Labels = pod.Labels
	}
	return shrunk, nil
}

// shrinkSlice leaves of an EndpointSlice its service, its pods and their addresses.
func shrinkSlice(object any) (any, error) {
	from, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return object, nil
	}
	shrunk := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: from.Namespace, Name: from.Name, UID: from.UID, ResourceVersion: from.ResourceVersion,
			Labels: only(from.Labels, []string{discoveryv1.LabelServiceName}),
		},
		AddressType: from.AddressType,
	}
	for _, endpoint := range from.Endpoints {
		if to := endpoint.TargetRef; to != nil && to.Kind == "Pod" && to.UID != "" && (to.Namespace == "" || to.Namespace == from.Namespace) {
			shrunk.Endpoints = append(shrunk.Endpoints, discoveryv1.Endpoint{
				Addresses: endpoint.Addresses, TargetRef: &corev1.ObjectReference{Kind: to.Kind, Name: to.Name, UID: to.UID},
			})
		}
	}
	return shrunk, nil
}

// watchedKind is a kind whose events are worked through.
type watchedKind struct {
	source string
	synced func() bool // the first list has been
}

// Observe follows the cluster by the informers of objects, which should have been made with [CacheOptions]. It neither
// waits nor starts the cache. Call it once.
func (i *Inventory) Observe(ctx context.Context, objects cache.Cache) error {
	var watched []watchedKind
	for _, kind := range kinds {
		informer, err := objects.GetInformer(ctx, objectOf(kind.gvk, kind.typed), cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %s: %w", kind.source, err)
		}
		registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { i.seen(kind.source, object) },
			UpdateFunc: func(_, object any) { i.seen(kind.source, object) },
			DeleteFunc: func(object any) { i.unseen(kind.source, object) },
		})
		if err != nil {
			return fmt.Errorf("watch %s: %w", kind.source, err)
		}
		watched = append(watched, watchedKind{kind.source, registration.HasSynced})
	}
	i.watched.Store(&watched)
	return nil
}

// seen takes note of an object that is there.
func (i *Inventory) seen(source string, object any) {
	changed := false
	switch o := object.(type) {
	case *corev1.Pod:
		changed = i.seenPod(o)
	case *discoveryv1.EndpointSlice:
		changed = i.seenSlice(o)
	case *metav1.PartialObjectMetadata:
		of := name{o.Namespace, o.Name}
		switch source {
		case "namespaces":
			changed = i.index.setNamespace(o.Name, o.Labels[dataPlaneMode] == ambientMode)
		case "serviceaccounts":
			changed = i.index.setAccount(of, o.CreationTimestamp.Time)
		case "services":
			changed = i.index.setService(of)
		}
	}
	if changed {
		i.touch()
	}
}

// unseen takes note that an object isn't there any more.
func (i *Inventory) unseen(source string, object any) {
	if tombstone, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
		object = tombstone.Obj
	}
	o, err := meta.Accessor(object)
	if err != nil {
		i.log.Error("an informer told of an object that is none", "source", source, "err", err)
		return
	}
	of, changed := name{o.GetNamespace(), o.GetName()}, false
	switch source {
	case "pods":
		changed = i.index.dropPod(of, string(o.GetUID()))
	case "endpointslices":
		changed = i.index.dropSlice(of)
	case "namespaces":
		changed = i.index.dropNamespace(of.name)
	case "serviceaccounts":
		changed = i.index.dropAccount(of)
	case "services":
		changed = i.index.dropService(of)
	}
	if changed {
		i.touch()
	}
}

// seenPod takes note of a pod. One that has ended holds nothing any more.
func (i *Inventory) seenPod(o *corev1.Pod) bool {
	of := name{o.Namespace, o.Name}
	if o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
		return i.index.dropPod(of, string(o.UID))
	}
	p := &pod{
		name: of, uid: string(o.UID), node: o.Spec.NodeName, class: classify(o),
		running: o.Status.Phase == corev1.PodRunning, since: o.CreationTimestamp.Unix(),
	}
	if o.Status.StartTime != nil {
		p.since = max(p.since, o.Status.StartTime.Unix())
	}
	for _, ip := range o.Status.PodIPs {
		p.addresses = append(p.addresses, ip.IP)
	}
	if len(p.addresses) == 0 && o.Status.PodIP != "" {
		p.addresses = []string{o.Status.PodIP}
	}
	var labels map[string]string
	if p.class.plane == api.Gateway {
		labels = o.Labels
	}
	changed := i.index.setPod(p, o.Spec.ServiceAccountName, labels, time.Now())
	if changed && labels != nil && i.secretReader != nil {
		i.secretReader.look() // the Secrets of its gateways are in its namespace
	}
	return changed
}

// seenSlice takes note of an EndpointSlice.
func (i *Inventory) seenSlice(o *discoveryv1.EndpointSlice) bool {
	of, service := name{o.Namespace, o.Name}, o.Labels[discoveryv1.LabelServiceName]
	if service == "" {
		return i.index.dropSlice(of)
	}
	targets := make([]target, 0, len(o.Endpoints))
	for _, endpoint := range o.Endpoints {
		to := endpoint.TargetRef
		if to != nil && to.Kind == "Pod" && to.UID != "" && (to.Namespace == "" || to.Namespace == o.Namespace) {
			targets = append(targets, target{pod: to.Name, uid: string(to.UID), addresses: endpoint.Addresses})
		}
	}
	return i.index.setSlice(of, service, targets)
}

// synced says whether the first list of a source has been worked through.
func (i *Inventory) synced(source string) bool {
	watched := i.watched.Load()
	if watched == nil {
		return false
	}
	at := slices.IndexFunc(*watched, func(kind watchedKind) bool { return kind.source == source })
	return at >= 0 && (*watched)[at].synced()
}
