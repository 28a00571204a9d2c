// Package watches has what those share that follow objects of the API server by a reflector of their own: they are told how
// each request ended, also where client-go doesn't say, and most of them wait for about as long before they ask again.
package watches

import (
	"context"
	"errors"
	"reflect"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// ErrNeverOpened is the error of a watch that the API server never answered.
var ErrNeverOpened = errors.New("watch: the API server hung up, or wasn't reached in time")

// neverOpened is the stream that client-go returns, with no error, where the API server hangs up or isn't reached in time.
var neverOpened = reflect.TypeOf(watch.NewEmptyWatch())

// Opened is why a watch failed that returned stream and err, nil where it didn't.
func Opened(stream watch.Interface, err error) error {
	if reflect.TypeOf(stream) == neverOpened {
		return ErrNeverOpened
	}
	return err
}

// ListWatch lists and watches by list and open, and tells ended, with the context of the request, how each request ended:
// nil where it was answered. A reflector calls them one after the other.
func ListWatch(
	list func(context.Context, metav1.ListOptions) (runtime.Object, error),
	open func(context.Context, metav1.ListOptions) (watch.Interface, error),
	ended func(context.Context, error),
) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			objects, err := list(ctx, options)
			ended(ctx, err)
			return objects, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			stream, err := open(ctx, options)
			ended(ctx, Opened(stream, err))
			return stream, err
		},
	}
}

// Backoff is how long a reflector waits after a failure: 250 ms to 5 s, and up to as long again by chance, so that replicas
// don't ask together.
func Backoff() *wait.Backoff {
	return &wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 6, Cap: 5 * time.Second}
}
