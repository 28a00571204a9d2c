package privilege

import (
	"maps"
	"slices"
	"strings"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/signet-ca/signet/test/replica"
)

// right is the one that was granted whose text begins so.
func (m *mesh) right(text string) grant {
	m.Helper()
	at := slices.IndexFunc(m.granted, func(g grant) bool { return strings.HasPrefix(g.String(), text) })
	require.GreaterOrEqual(m, at, 0, "%s isn't granted", text)
	return m.granted[at]
}

// takenAway shows that a right is needed which isn't in the log by itself: while Signet doesn't have it, the request that
// carries it, which trigger has it make, is answered 403; once it has it again, that succeeds. And so it is a test of the
// judge: what is refused is found.
func (m *mesh) takenAway(right grant, carrier need, trigger func()) {
	m.Helper()
	objects, err := replica.Rights(m.config)
	require.NoError(m, err)
	less := make([]*unstructured.Unstructured, len(objects))
	for n, object := range objects {
		less[n] = object.DeepCopy()
		m.without(less[n], right)
	}
	left, err := grantsOf(less, m.account)
	require.NoError(m, err)
	require.Equal(m, slices.DeleteFunc(slices.Clone(m.granted), func(g grant) bool { return g == right }), left)

	before := m.answers(carrier)
	require.NoError(m, replica.Grant(m.Context(), plane, less))
	m.eventually(func() bool { return !m.may(right) }, "the API server doesn't allow to %s any more", right)
	trigger()
	m.eventually(func() bool { return m.answers(carrier).refused > before.refused }, "without the right to %s, to %s is refused", right, grant(carrier))
	v := m.judge()
	assert.False(m, v.good())
	assert.NotEmpty(m, v.refused)

	during := m.answers(carrier)
	require.NoError(m, replica.Grant(m.Context(), plane, objects))
	m.eventually(func() bool { return m.answers(carrier).granted > during.granted }, "with the right to %s, to %s succeeds", right, grant(carrier))
}

// without takes a right out of a role.
func (m *mesh) without(role *unstructured.Unstructured, right grant) {
	m.Helper()
	rules, _, err := unstructured.NestedSlice(role.Object, "rules")
	require.NoError(m, err)
	if len(rules) == 0 || role.GetNamespace() != right.namespace {
		return
	}
	var left []any
	for _, rule := range rules {
		rule := rule.(map[string]any)
		list := func(field string) []any { all, _ := rule[field].([]any); return all }
		names := list("resourceNames")
		if !slices.Contains(list("resources"), any(right.resource)) || !slices.Contains(list("apiGroups"), any(right.group)) ||
			right.name == "" && names != nil || right.name != "" && !slices.Contains(names, any(right.name)) {
			left = append(left, rule)
			continue
		}
		if len(names) > 1 { // the others keep it
			others := maps.Clone(rule)
			others["resourceNames"] = slices.DeleteFunc(slices.Clone(names), func(name any) bool { return name == right.name })
			left = append(left, others)
			rule["resourceNames"] = []any{right.name}
		}
		rule["verbs"] = slices.DeleteFunc(slices.Clone(list("verbs")), func(verb any) bool { return verb == right.verb })
		if len(list("verbs")) > 0 { // or it isn't valid
			left = append(left, rule)
		}
	}
	require.NoError(m, unstructured.SetNestedSlice(role.Object, left, "rules"))
}

// may asks the API server whether Signet has a right.
func (m *mesh) may(right grant) bool {
	m.Helper()
	resource, subresource, _ := strings.Cut(right.resource, "/")
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: m.account,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: right.verb, Group: right.group, Resource: resource, Subresource: subresource, Name: right.name, Namespace: right.namespace,
		},
	}}
	require.NoError(m, plane.Client().Create(m.Context(), review))
	return review.Status.Allowed
}

// outcome is how often something was refused with 403, and how often it was done.
type outcome struct{ refused, granted int }

// answers are those to requests like one, in any namespace and for any name where it has none.
func (m *mesh) answers(like need) (o outcome) {
	m.Helper()
	all, err := audit.of(m.account)
	require.NoError(m, err)
	for r, n := range all {
		same := r.verb == like.verb && r.group == like.group && r.resource == like.resource &&
			(like.name == "" || r.name == like.name) && (like.namespace == "" || r.namespace == like.namespace)
		switch {
		case same && r.code == 403:
			o.refused += n
		case same && r.code < 300:
			o.granted += n
		}
	}
	return o
}
