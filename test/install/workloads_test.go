package install

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"sync"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// revisionLabel is where a StatefulSet's pod says which template it was made from.
const revisionLabel = appsv1.ControllerRevisionHashLabelKey

// Workloads keeps the pods of one StatefulSet, as its controller does with a node's kubelet, whenever it is told to. Its
// methods are for one goroutine, but for those of endpoints.
type workloads struct {
	key  client.ObjectKey
	node *node

	mu      sync.Mutex            // guards the following
	running map[string]*container // by pod's name
	ready   map[string]bool       // that connections are led to
}

func newWorkloads(key client.ObjectKey, node *node) *workloads {
	return &workloads{key: key, node: node, running: make(map[string]*container), ready: make(map[string]bool)}
}

// rollOut makes the pods what the StatefulSet at the API server says now: those that are missing all at once where it says
// Parallel, and else one after the other; those of another template from the last to the first, each when the one before is
// ready. It returns how many pods it started.
func (w *workloads) rollOut(ctx context.Context) (started int, err error) {
	var set appsv1.StatefulSet
	if err := plane.Client().Get(ctx, w.key, &set); err != nil {
		return 0, fmt.Errorf("get StatefulSet: %w", err)
	}
	revision, err := revisionOf(&set.Spec.Template)
	if err != nil {
		return 0, err
	}
	var fresh []*container
	for ordinal := range int(*set.Spec.Replicas) {
		name := fmt.Sprintf("%s-%d", set.Name, ordinal)
		if w.container(name) != nil {
			continue
		}
		c, err := w.start(ctx, &set, name, revision)
		if err != nil {
			return started, err
		}
		started++
		fresh = append(fresh, c)
		if set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement {
			if err := w.await(ctx, c); err != nil {
				return started, err
			}
		}
	}
	for _, c := range fresh {
		if err := w.await(ctx, c); err != nil {
			return started, err
		}
	}
	for ordinal := int(*set.Spec.Replicas) - 1; ordinal >= 0; ordinal-- {
		name := fmt.Sprintf("%s-%d", set.Name, ordinal)
		if w.container(name).pod.Labels[revisionLabel] == revision {
			continue
		}
		if err := w.end(ctx, name); err != nil {
			return started, err
		}
		c, err := w.start(ctx, &set, name, revision)
		if err != nil {
			return started, err
		}
		started++
		if err := w.await(ctx, c); err != nil {
			return started, err
		}
	}
	return started, nil
}

// start makes the pod, with its claims, and has the node run it.
func (w *workloads) start(ctx context.Context, set *appsv1.StatefulSet, name, revision string) (*container, error) {
	template := set.Spec.Template.DeepCopy()
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Namespace, pod.Name = set.Namespace, name
	pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))}
	pod.Labels = maps.Clone(pod.Labels)
	pod.Labels[appsv1.StatefulSetPodNameLabel] = name
	pod.Labels[revisionLabel] = revision
	pod.Spec.Hostname, pod.Spec.Subdomain = name, set.Spec.ServiceName
	pod.Spec.NodeName = "node-1"
	for _, claim := range set.Spec.VolumeClaimTemplates {
		claim = *claim.DeepCopy()
		volume := corev1.Volume{Name: claim.Name}
		claim.Namespace, claim.Name = set.Namespace, claim.Name+"-"+name
		if err := plane.Client().Create(ctx, &claim); err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("create claim of Pod %s: %w", name, err)
		}
		volume.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name}
		pod.Spec.Volumes = append(pod.Spec.Volumes, volume)
	}
	if err := plane.Client().Create(ctx, pod); err != nil {
		return nil, fmt.Errorf("create Pod %s: %w", name, err)
	}
	c, err := w.node.start(ctx, pod)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running[name] = c
	return c, nil
}

// await waits until the container is ready, and has connections led to it.
func (w *workloads) await(ctx context.Context, c *container) error {
	if err := c.awaitReady(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ready[c.pod.Name] = true
	return nil
}

// end deletes a pod, from which on no connection is led to it, and waits until it has ended.
func (w *workloads) end(ctx context.Context, name string) error {
	c := w.container(name)
	w.mu.Lock()
	delete(w.ready, name)
	w.mu.Unlock()
	if err := client.IgnoreNotFound(plane.Client().Delete(ctx, c.pod)); err != nil {
		return fmt.Errorf("delete Pod %s: %w", name, err)
	}
	err := c.stop(ctx)
	w.mu.Lock()
	delete(w.running, name)
	w.mu.Unlock()
	return err
}

// endAll ends all pods at once, as the garbage collector does when the StatefulSet has gone.
func (w *workloads) endAll(ctx context.Context) error {
	var group errgroup.Group
	for _, c := range w.containers() {
		group.Go(func() error { return w.end(ctx, c.pod.Name) })
	}
	return group.Wait()
}

// kill ends all processes at once.
func (w *workloads) kill() {
	for _, c := range w.containers() {
		c.proc.Kill()
	}
}

func (w *workloads) container(name string) *container {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[name]
}

func (w *workloads) containers() []*container {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*container
	for _, c := range w.running {
		all = append(all, c)
	}
	return all
}

// endpoints are the ready containers that a selector finds.
func (w *workloads) endpoints(selector map[string]string) []*container {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []*container
	for name := range w.ready {
		if c := w.running[name]; labels.SelectorFromSet(selector).Matches(labels.Set(c.pod.Labels)) {
			found = append(found, c)
		}
	}
	return found
}

// revisionOf is a name for a template.
func revisionOf(template *corev1.PodTemplateSpec) (string, error) {
	text, err := json.Marshal(template)
	if err != nil {
		return "", fmt.Errorf("write template: %w", err)
	}
	hash := fnv.New64a()
	hash.Write(text)
	return fmt.Sprintf("%x", hash.Sum64()), nil
}
