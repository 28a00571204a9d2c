package issuer

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// The rest of the tests of objects is in test/sources, with a real API server.

// A Secret of type kubernetes.io/tls holds a private key beside the CA.
func TestObjectKeepsOnlyItsKey(t *testing.T) {
	meta := metav1.ObjectMeta{
		Namespace: "istio-system", Name: "roots", ResourceVersion: "7",
		Annotations:   map[string]string{corev1.LastAppliedConfigAnnotation: `{"data":{"tls.key":"secret"}}`},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
	}
	for kind, object := range map[string]any{
		"Secret":    &corev1.Secret{ObjectMeta: meta, Data: map[string][]byte{"ca.crt": []byte("roots"), "tls.key": []byte("secret")}},
		"ConfigMap": &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"ca.crt": "roots", "tls.key": "secret"}, BinaryData: map[string][]byte{"p12": []byte("secret")}},
	} {
		t.Run(kind, func(t *testing.T) {
			o, err := newObjectText(&rest.Config{Host: "https://127.0.0.1:1"}, kind, "istio-system", "roots", "ca.crt")
			require.NoError(t, err)
			kept, err := o.strip(object)
			require.NoError(t, err)
			store := cache.NewStore(cache.MetaNamespaceKeyFunc)
			require.NoError(t, store.Add(kept))
			text, err := o.look(store)
			require.NoError(t, err)
			assert.Equal(t, "roots", string(text))
			left := kept.(interface{ String() string }).String()
			assert.Equal(t, "7", kept.(metav1.Object).GetResourceVersion())
			assert.NotContains(t, left, "secret")
			assert.NotContains(t, left, "tls.key")
			assert.NotContains(t, left, "kubectl")
		})
	}
	o, err := newObjectText(&rest.Config{Host: "https://127.0.0.1:1"}, "Secret", "istio-system", "roots", "ca.crt")
	require.NoError(t, err)
	gone := cache.DeletedFinalStateUnknown{Key: "istio-system/roots"}
	kept, err := o.strip(gone)
	require.NoError(t, err)
	assert.Equal(t, gone, kept)
}
