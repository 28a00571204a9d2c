package presence

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"github.com/signet-ca/signet/watches"
)

const (
	// listPage is how many whole objects are held at once while all are listed.
	listPage = 500
	// pageTimeout bounds one such request.
	pageTimeout = 60 * time.Second
	// silenceBound is how long a stream may tell nothing. Bookmarks come about every minute.
	silenceBound = 3 * time.Minute
)

// stream follows one kind: it is what client-go's reflector fills. Everything is listed in pages, each of which goes into
// a table before the next one comes; the reflector would hold all objects whole.
type stream struct {
	object runtime.Object // of the type that the watch tells of
	source source
	table  table
	listed filling // what the last list gave; only the reflector uses it

	mu     sync.Mutex // guards the following
	known  State      // but for Synced
	asking time.Time  // when the request began that is under way to list, or to open the watch; else zero
}

// source is where objects come from.
type source interface {
	// page is some of the objects, and what the API server says of the list.
	page(ctx context.Context, options metav1.ListOptions) ([]any, metav1.ListMeta, error)
	Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error)
}

// table is where they go: single ones, or all at once.
type table interface {
	see(object any)
	unsee(object any)
	fill() filling
}

// filling is a table that is filled from a list, and then put in the place of the one in use.
type filling struct {
	table
	use func()
}

// run follows until ctx ends.
func (s *stream) run(ctx context.Context, name string, log *slog.Logger) {
	cache.NewReflectorWithOptions(&listWatch{cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
			return s.list(ctx, log)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (events watch.Interface, err error) {
			asked := s.ask()
			events, err = s.source.Watch(ctx, options)
			s.note(ctx, asked, watches.Opened(events, err), log)
			return events, err
		},
	}}, s.object, s, cache.ReflectorOptions{
		Name:    name,
		Backoff: watches.Backoff(),
	}).RunWithContext(ctx)
}

// listWatch is listed, not streamed, at first.
type listWatch struct{ cache.ListWatch }

// IsWatchListSemanticsUnSupported keeps client-go's reflector from collecting all objects by a watch.
func (*listWatch) IsWatchListSemanticsUnSupported() bool { return true }

// list puts all objects into a table of their own. The list that it returns has none, but says how new they are.
func (s *stream) list(ctx context.Context, log *slog.Logger) (runtime.Object, error) {
	filling, options := s.table.fill(), metav1.ListOptions{Limit: listPage}
	for {
		asked := s.ask()
		page, cancel := context.WithTimeout(ctx, pageTimeout)
		objects, about, err := s.source.page(page, options)
		cancel()
		s.note(ctx, asked, err, log)
		if err != nil {
			return nil, err
		}
		for _, object := range objects {
			filling.see(object)
		}
		if options.Continue = about.Continue; options.Continue == "" {
			s.listed = filling
			return &metav1.List{ListMeta: metav1.ListMeta{ResourceVersion: about.ResourceVersion}}, nil
		}
	}
}

// ask takes note that a request of the stream begins, now.
func (s *stream) ask() time.Time {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking = now
	return now
}

// note takes note of how the request ended that began at asked. The stream has failed since then.
func (s *stream) note(ctx context.Context, asked time.Time, err error, log *slog.Logger) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		err = nil // a version that is too old is listed anew, as the protocol has it
	}
	s.mu.Lock()
	began, recovered := err != nil && s.known.Err == nil, err == nil && s.known.Err != nil
	s.asking = time.Time{}
	s.known.Err = err
	switch {
	case err == nil:
		s.known.Heard, s.known.FailingSince = time.Now(), time.Time{}
	case began:
		s.known.FailingSince = asked
	}
	s.mu.Unlock()
	switch {
	case began:
		log.Warn("what exists in the cluster can't be followed; it is tried again", "err", err)
	case recovered:
		log.Info("what exists in the cluster is followed again")
	}
}

// heard takes note that the stream told something.
func (s *stream) heard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known.Heard = time.Now()
}

func (s *stream) state(now time.Time, staleAfter time.Duration) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.known
	late := func(since time.Time) bool { return !since.IsZero() && now.Sub(since) > staleAfter }
	state.Synced = state.Listed && now.Sub(state.Heard) <= silenceBound && !late(state.FailingSince) && !late(s.asking)
	return state
}

// The following make it a [cache.ReflectorStore].

// Add takes note of a new object.
func (s *stream) Add(object any) error { return s.Update(object) }

// Update takes note of an object as it is now.
func (s *stream) Update(object any) error {
	s.table.see(object)
	s.heard()
	return nil
}

// Delete takes note that an object is gone.
func (s *stream) Delete(object any) error {
	s.table.unsee(object)
	s.heard()
	return nil
}

// Replace puts what was listed in force.
func (s *stream) Replace([]any, string) error {
	s.listed.use()
	s.listed = filling{}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known.Listed, s.known.Heard = true, time.Now()
	return nil
}

// Bookmark takes note that the stream is alive.
func (s *stream) Bookmark(string) error { s.heard(); return nil }

// Resync has nothing to do.
func (s *stream) Resync() error { return nil }

// podSource is all pods.
type podSource struct{ typedcorev1.PodInterface }

func (s podSource) page(ctx context.Context, options metav1.ListOptions) ([]any, metav1.ListMeta, error) {
	list, err := s.List(ctx, options)
	if err != nil {
		return nil, metav1.ListMeta{}, fmt.Errorf("list pods: %w", err)
	}
	objects := make([]any, len(list.Items))
	for n := range list.Items {
		objects[n] = &list.Items[n]
	}
	return objects, list.ListMeta, nil
}

func newPodStream(pods typedcorev1.PodInterface, t *podTable) *stream {
	return &stream{object: &corev1.Pod{}, source: podSource{pods}, table: t}
}

func (t *podTable) see(object any) {
	if o, ok := object.(*corev1.Pod); ok {
		t.set(keyOf(o.Namespace, o.Name), podOf(o))
	}
}

func (t *podTable) unsee(object any) {
	if o, ok := object.(*corev1.Pod); ok {
		t.drop(keyOf(o.Namespace, o.Name))
	}
}

func (t *podTable) fill() filling {
	fresh := newPodTable()
	return filling{fresh, func() { t.replace(fresh) }}
}

// objectSource is the metadata of all objects of a kind.
type objectSource struct {
	metadata.Getter
	kind Kind
}

func (s objectSource) page(ctx context.Context, options metav1.ListOptions) ([]any, metav1.ListMeta, error) {
	list, err := s.List(ctx, options)
	if err != nil {
		return nil, metav1.ListMeta{}, fmt.Errorf("list %s: %w", s.kind, err)
	}
	objects := make([]any, len(list.Items))
	for n := range list.Items {
		objects[n] = &list.Items[n]
	}
	return objects, list.ListMeta, nil
}

func newObjectStream(kind Kind, client metadata.Interface, t *objectTable) *stream {
	objects := client.Resource(corev1.SchemeGroupVersion.WithResource(string(kind)))
	return &stream{object: &metav1.PartialObjectMetadata{}, source: objectSource{objects, kind}, table: t}
}

func (t *objectTable) see(o any) {
	if o, ok := o.(*metav1.PartialObjectMetadata); ok {
		t.set(keyOf(o.Namespace, o.Name), object{uid: parseUID(string(o.UID)), deleted: momentOf(o.DeletionTimestamp)})
	}
}

func (t *objectTable) unsee(o any) {
	if o, ok := o.(*metav1.PartialObjectMetadata); ok {
		t.drop(keyOf(o.Namespace, o.Name))
	}
}

func (t *objectTable) fill() filling {
	fresh := newObjectTable()
	return filling{fresh, func() { t.replace(fresh) }}
}
