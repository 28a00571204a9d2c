package main

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// namespaceKind is as the cache is asked for namespaces, of which the metadata is enough.
var namespaceKind = schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}

// namespaceLabels are those of the cluster's namespaces. It implements [ca.Namespaces].
type namespaceLabels struct {
	objects client.Reader
	synced  func() bool
}

// newNamespaceLabels has objects watch the namespaces.
func newNamespaceLabels(ctx context.Context, objects cache.Cache) (*namespaceLabels, error) {
	informer, err := objects.GetInformer(ctx, newNamespace(), cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch namespaces: %w", err)
	}
	return &namespaceLabels{objects, informer.HasSynced}, nil
}

func newNamespace() *metav1.PartialObjectMetadata {
	partial := &metav1.PartialObjectMetadata{}
	partial.SetGroupVersionKind(namespaceKind)
	return partial
}

// Labels implements [ca.Namespaces].
func (n *namespaceLabels) Labels(name string) (map[string]string, bool) {
	if !n.synced() {
		return nil, false
	}
	namespace := newNamespace()
	if err := n.objects.Get(context.Background(), client.ObjectKey{Name: name}, namespace); err != nil { // from memory
		return nil, false
	}
	return namespace.Labels, true
}
