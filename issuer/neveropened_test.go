package issuer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/signet-ca/signet/watches"
)

// hangsUpUntil opens watches once opens is set, and else returns what client-go does where the API server hangs up.
func hangsUpUntil(opens *atomic.Bool) func(context.Context, metav1.ListOptions) (watch.Interface, error) {
	return func(context.Context, metav1.ListOptions) (watch.Interface, error) {
		if opens.Load() {
			return watch.NewFake(), nil
		}
		return watch.NewEmptyWatch(), nil
	}
}

// An API server that hangs up on every watch is in the status, though client-go makes no error of it.
func TestAWatchThatNeverOpensIsTold(t *testing.T) {
	term := ruled(t, "shop")
	var opens atomic.Bool
	from := source{
		what: "list namespaces",
		list: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			return &metav1.PartialObjectMetadataList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, nil
		},
		watch: hangsUpUntil(&opens),
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		term.reflect(ctx, from, &metav1.PartialObjectMetadata{}, &sink{
			shrink: func(object any) (any, error) { return object, nil }, one: func(any, bool) {}, replace: func([]any, string) {},
		})
	})
	trouble := func(want string) func() bool { return func() bool { return term.progress().Trouble == want } }
	assert.Eventually(t, trouble("list namespaces: watch: the API server hung up, or wasn't reached in time"), time.Minute, time.Millisecond)
	opens.Store(true)
	assert.Eventually(t, trouble(""), time.Minute, time.Millisecond)
}

// The same is told of a source of trust anchors, whose last answer stays in force.
func TestASourceWhoseWatchNeverOpensIsTold(t *testing.T) {
	var opens atomic.Bool
	text := &objectText{
		kind: "ConfigMap", namespace: "istio-system", name: "roots", key: "ca.crt", empty: &corev1.ConfigMap{},
		list: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			return &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []corev1.ConfigMap{{
				ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "roots", ResourceVersion: "1"}, Data: map[string]string{"ca.crt": "anchors"},
			}}}, nil
		},
		open: hangsUpUntil(&opens),
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	told := make(chan error)
	running.Go(func() {
		text.watch(ctx, func(_ []byte, err error) {
			select {
			case told <- err:
			case <-ctx.Done():
			}
		})
	})
	until := func(want func(error) bool) func() bool {
		return func() bool {
			select {
			case err := <-told:
				return want(err)
			case <-ctx.Done():
				return false
			}
		}
	}
	assert.Eventually(t, until(func(err error) bool { return errors.Is(err, watches.ErrNeverOpened) }), time.Minute, time.Millisecond)
	opens.Store(true)
	assert.Eventually(t, until(func(err error) bool { return !errors.Is(err, watches.ErrNeverOpened) }), time.Minute, time.Millisecond)
}
