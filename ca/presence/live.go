package presence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	lru "k8s.io/apimachinery/pkg/util/cache"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

const (
	// lookUpBurst is how many look-ups one asker has at first, and lookUpEvery how long it takes until it has another.
	lookUpBurst = 30
	lookUpEvery = 500 * time.Millisecond
	// lookUpIdle is how long a budget that isn't used is remembered; by then it is full again.
	lookUpIdle = time.Minute
	// lookUpsAtOnce are under way at most, and each may take lookUpTimeout, with the wait for its turn.
	lookUpsAtOnce = 16
	lookUpTimeout = 5 * time.Second
	// lookUpKeep is how long an answer is good for others who ask the same.
	lookUpKeep = time.Second
	// lookUpEntries bounds the answers, and the askers, that are remembered.
	lookUpEntries = 20_000
)

// ErrTooOften says that an asker has used up what it may have looked up.
var ErrTooOften = errors.New("too many look-ups at the API server")

// live asks the API server itself. Safe for concurrent use.
type live struct {
	core    typedcorev1.PodsGetter
	turns   chan struct{} // has room for those under way
	budgets *lru.LRUExpireCache
	answers *lru.LRUExpireCache // of bool by place, and of podAnswer by key
	metrics *metrics
}

// podAnswer is what a look-up of a pod gave.
type podAnswer struct {
	pod   Pod
	found bool
}

func newLive(core typedcorev1.PodsGetter, m *metrics) *live {
	return &live{
		core:    core,
		turns:   make(chan struct{}, lookUpsAtOnce),
		budgets: lru.NewLRUExpireCache(lookUpEntries),
		answers: lru.NewLRUExpireCache(lookUpEntries),
		metrics: m,
	}
}

func (l *live) pod(ctx context.Context, asker, namespace, name string) (Pod, bool, error) {
	of := keyOf(namespace, name)
	if known, ok := l.answers.Get(of); ok {
		l.metrics.lookUp("remembered")
		answer := known.(podAnswer)
		return answer.pod, answer.found, nil
	}
	var answer podAnswer
	err := l.ask(ctx, asker, func(ctx context.Context) error {
		o, err := l.core.Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("get pod %s/%s: %w", namespace, name, err)
		}
		answer = podAnswer{podOf(o).shown(of), true}
		return nil
	})
	if err != nil {
		return Pod{}, false, err
	}
	l.answers.Add(of, answer, lookUpKeep)
	l.metrics.lookUp(foundOrNot(answer.found))
	return answer.pod, answer.found, nil
}

func (l *live) runsOn(ctx context.Context, asker, node, namespace, account string) (bool, error) {
	if node == "" {
		return false, nil
	}
	at := placeOf(node, namespace, account)
	if known, ok := l.answers.Get(at); ok {
		l.metrics.lookUp("remembered")
		return known.(bool), nil
	}
	there := map[place]bool{at: false}
	err := l.ask(ctx, asker, func(ctx context.Context) error {
		options := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(), Limit: listPage}
		for {
			list, err := l.core.Pods(namespace).List(ctx, options)
			if err != nil {
				return fmt.Errorf("list pods of namespace %s on node %s: %w", namespace, node, err)
			}
			for n := range list.Items {
				if o := &list.Items[n]; !ended(o) {
					there[placeOf(node, namespace, o.Spec.ServiceAccountName)] = true
				}
			}
			if options.Continue = list.Continue; options.Continue == "" {
				return nil
			}
		}
	})
	if err != nil {
		return false, err
	}
	// The list answers for the pods beside as well, such as those of a node that has just started.
	for p, is := range there {
		l.answers.Add(p, is, lookUpKeep)
	}
	l.metrics.lookUp(foundOrNot(there[at]))
	return there[at], nil
}

// ask makes a request that is charged to the asker, when it is its turn.
func (l *live) ask(ctx context.Context, asker string, do func(context.Context) error) (err error) {
	defer func() {
		if errors.Is(err, ErrTooOften) {
			l.metrics.lookUp("too_often")
		} else if err != nil {
			l.metrics.lookUp("error")
		}
	}()
	if !l.budget(asker).Allow() {
		return fmt.Errorf("%w: %s may have %d, and another one every %s", ErrTooOften, asker, lookUpBurst, lookUpEvery)
	}
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	select {
	case l.turns <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait to ask the API server: %w", context.Cause(ctx))
	}
	defer func() { <-l.turns }()
	return do(ctx)
}

// budget is the rest of what an asker may have looked up.
func (l *live) budget(asker string) *rate.Limiter {
	known, ok := l.budgets.Get(asker)
	if !ok {
		known = rate.NewLimiter(rate.Every(lookUpEvery), lookUpBurst)
	}
	// Kept for another while. Two first questions at once may each bring a budget: one of them stays.
	l.budgets.Add(asker, known, lookUpIdle)
	return known.(*rate.Limiter)
}

func foundOrNot(found bool) string {
	if found {
		return "found"
	}
	return "missing"
}

// ended says that a pod runs no more.
func ended(o *corev1.Pod) bool {
	return o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed
}
