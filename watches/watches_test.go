package watches

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// Whoever follows objects is told how each request ended, and the reflector gets what it would have got.
func TestListWatchTells(t *testing.T) {
	errRefused := errors.New("refused")
	empty, stream := watch.NewEmptyWatch(), watch.NewFake()
	for name, test := range map[string]struct {
		stream watch.Interface
		err    error
		told   error
	}{
		"opened":       {stream: stream},
		"never opened": {stream: empty, told: ErrNeverOpened},
		"refused":      {err: errRefused, told: errRefused},
	} {
		t.Run(name, func(t *testing.T) {
			var told []error
			objects := &corev1.PodList{}
			lw := ListWatch(
				func(context.Context, metav1.ListOptions) (runtime.Object, error) { return objects, test.err },
				func(_ context.Context, options metav1.ListOptions) (watch.Interface, error) {
					assert.Equal(t, "7", options.ResourceVersion)
					return test.stream, test.err
				},
				func(ctx context.Context, err error) {
					assert.Equal(t, t.Context(), ctx)
					told = append(told, err)
				},
			)
			listed, err := lw.ListWithContext(t.Context(), metav1.ListOptions{})
			assert.Same(t, objects, listed)
			assert.Equal(t, test.err, err)
			got, err := lw.WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: "7"})
			assert.Equal(t, test.stream, got)
			assert.Equal(t, test.err, err)
			assert.Equal(t, []error{test.err, test.told}, told)
		})
	}
}
