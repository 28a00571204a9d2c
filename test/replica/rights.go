package replica

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/test/chart"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/process"
)

// Rights are the ServiceAccount and the RBAC objects that the chart has for exactly the configuration that cfg runs with.
func Rights(cfg Config) ([]*unstructured.Unstructured, error) {
	objects, err := chart.Rights(cfg.Namespace, map[string]any{"config": cfg.settings(""), "readers": map[string]any{"create": cfg.Readers}})
	if err != nil {
		return nil, fmt.Errorf("render the rights of %s: %w", cfg.Namespace, err)
	}
	return objects, nil
}

// Grant applies the objects of [Rights], and returns when the API server goes by them.
func Grant(ctx context.Context, plane *controlplane.Plane, objects []*unstructured.Unstructured) error {
	var text []byte
	for _, object := range objects {
		document, err := yaml.Marshal(object.Object)
		if err != nil {
			return fmt.Errorf("write %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		text = append(append(text, "---\n"...), document...)
	}
	if err := plane.Apply(ctx, text); err != nil {
		return err
	}
	return awaitRights(ctx, plane, objects)
}

// account is a namespace of a control plane, whose replicas share the ServiceAccount. It has what those need together that
// run, and no more: the rights of one that has ended go when the next one is started, so that none is hidden which a
// changed configuration lacks.
type account struct {
	turn    chan struct{} // has room for the one who changes what follows
	holders []*holder
	applied []*unstructured.Unstructured
}

// holder is a replica that needs its rights.
type holder struct {
	objects []*unstructured.Unstructured

	mu   sync.Mutex       // guards the following
	over bool             // it didn't start
	proc *process.Process // nil until it runs
}

// runs has the rights held until the process ends.
func (h *holder) runs(proc *process.Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.proc = proc
}

// drop says that there is nobody who needs them.
func (h *holder) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
}

func (h *holder) ended() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.over || h.proc != nil && h.proc.Ended()
}

// place is where an account is.
type place struct {
	plane     *controlplane.Plane
	namespace string
}

var (
	accountsMu sync.Mutex
	accounts   = make(map[place]*account)
)

func accountAt(at place) *account {
	accountsMu.Lock()
	defer accountsMu.Unlock()
	if accounts[at] == nil {
		accounts[at] = &account{turn: make(chan struct{}, 1)}
	}
	return accounts[at]
}

// hold gives the account what cfg needs, beside what the replicas need that run.
func hold(ctx context.Context, plane *controlplane.Plane, cfg Config) (*holder, error) {
	objects, err := Rights(cfg)
	if err != nil {
		return nil, err
	}
	h, a := &holder{objects: objects}, accountAt(place{plane, cfg.Namespace})
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to change the rights of %s: %w", cfg.Namespace, ctx.Err())
	}
	defer func() { <-a.turn }()
	a.holders = append(slices.DeleteFunc(a.holders, (*holder).ended), h)
	if err := a.apply(ctx, plane); err != nil {
		h.drop()
		return nil, err
	}
	return h, nil
}

// apply makes the account's rights those of its holders. The caller has the turn.
func (a *account) apply(ctx context.Context, plane *controlplane.Plane) error {
	var all []*unstructured.Unstructured
	for _, h := range a.holders {
		for _, object := range h.objects {
			at := slices.IndexFunc(all, func(o *unstructured.Unstructured) bool { return same(o, object) })
			if at < 0 {
				all = append(all, object.DeepCopy())
				continue
			}
			if err := merge(all[at], object); err != nil {
				return err
			}
		}
	}
	for _, old := range a.applied {
		if !slices.ContainsFunc(all, func(o *unstructured.Unstructured) bool { return same(o, old) }) {
			if err := client.IgnoreNotFound(plane.Client().Delete(ctx, old.DeepCopy())); err != nil {
				return fmt.Errorf("delete %s %s: %w", old.GetKind(), client.ObjectKeyFromObject(old), err)
			}
		}
	}
	a.applied = all
	return Grant(ctx, plane, all)
}

func same(a, b *unstructured.Unstructured) bool {
	return a.GetKind() == b.GetKind() && a.GetNamespace() == b.GetNamespace() && a.GetName() == b.GetName()
}

// merge adds to a role the rules of another that it doesn't have. Other objects are the same for every configuration.
func merge(role, other *unstructured.Unstructured) error {
	rules, err := rulesOf(role)
	if err != nil {
		return err
	}
	further, err := rulesOf(other)
	if err != nil {
		return err
	}
	for _, rule := range further {
		if !contains(rules, rule) {
			rules = append(rules, rule)
		}
	}
	if len(rules) == 0 {
		return nil
	}
	return unstructured.SetNestedSlice(role.Object, rules, "rules")
}

// rulesOf are the rules of a role; none of another object.
func rulesOf(object *unstructured.Unstructured) ([]any, error) {
	rules, _, err := unstructured.NestedSlice(object.Object, "rules")
	if err != nil {
		return nil, fmt.Errorf("read rules of %s %s: %w", object.GetKind(), object.GetName(), err)
	}
	return rules, nil
}

func contains(rules []any, rule any) bool {
	return slices.ContainsFunc(rules, func(r any) bool { return reflect.DeepEqual(r, rule) })
}

// awaitRights waits until the API server goes by the rules of objects: its authorizer learns of roles and bindings a moment
// after they are written.
func awaitRights(ctx context.Context, plane *controlplane.Plane, objects []*unstructured.Unstructured) error {
	for _, object := range objects {
		if kind := object.GetKind(); kind != "ClusterRoleBinding" && kind != "RoleBinding" {
			continue
		}
		var binding rbacv1.RoleBinding // as a ClusterRoleBinding, but for the kind
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &binding); err != nil {
			return fmt.Errorf("read %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		at := slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool {
			return o.GetKind() == binding.RoleRef.Kind && o.GetName() == binding.RoleRef.Name && (o.GetKind() == "ClusterRole" || o.GetNamespace() == binding.Namespace)
		})
		if at < 0 || len(binding.Subjects) == 0 {
			continue // a role of Kubernetes' own
		}
		var role rbacv1.Role // as a ClusterRole
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(objects[at].Object, &role); err != nil {
			return fmt.Errorf("read %s %s: %w", objects[at].GetKind(), objects[at].GetName(), err)
		}
		if err := awaitRules(ctx, plane, binding.Subjects[0], cmp.Or(binding.Namespace, "default"), role.Rules); err != nil {
			return fmt.Errorf("wait for the rights of %s %s: %w", binding.RoleRef.Kind, binding.RoleRef.Name, err)
		}
	}
	return nil
}

// awaitRules waits until a ServiceAccount has all rules in a namespace.
func awaitRules(ctx context.Context, plane *controlplane.Plane, of rbacv1.Subject, namespace string, rules []rbacv1.PolicyRule) error {
	config := plane.Admin()
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + of.Namespace + ":" + of.Name, Groups: []string{"system:serviceaccounts", "system:authenticated"},
	}
	as, err := authorizationclient.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make client for ServiceAccount %s/%s: %w", of.Namespace, of.Name, err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}
		if review, err = as.SelfSubjectRulesReviews().Create(ctx, review, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create SelfSubjectRulesReview: %w", err)
		}
		missing := slices.IndexFunc(rules, func(rule rbacv1.PolicyRule) bool { return !inForce(review.Status, rule) })
		if missing < 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%v isn't in force: %w", rules[missing], ctx.Err())
		}
	}
}

func inForce(is authorizationv1.SubjectRulesReviewStatus, rule rbacv1.PolicyRule) bool {
	if len(rule.NonResourceURLs) > 0 {
		return slices.ContainsFunc(is.NonResourceRules, func(r authorizationv1.NonResourceRule) bool {
			return slices.Equal(r.Verbs, rule.Verbs) && slices.Equal(r.NonResourceURLs, rule.NonResourceURLs)
		})
	}
	return slices.ContainsFunc(is.ResourceRules, func(r authorizationv1.ResourceRule) bool {
		return slices.Equal(r.Verbs, rule.Verbs) && slices.Equal(r.APIGroups, rule.APIGroups) && slices.Equal(r.Resources, rule.Resources) &&
			slices.Equal(r.ResourceNames, rule.ResourceNames)
	})
}
