package privilege

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// grant is one right, as narrow as RBAC can say it: one verb on one resource, in one namespace where it is of a Role, and for
// one name where it is limited to names.
type grant struct {
	verb, group, resource, name string // resource with its subresource, such as "certificatesigningrequests/status"
	namespace                   string // "" for the whole cluster
	path                        string // of what isn't a resource, in place of the others but verb
}

func (g grant) String() string {
	text := g.verb + " " + g.path + g.resource
	if g.group != "" {
		text += "." + g.group
	}
	if g.name != "" {
		text += " " + g.name
	}
	if g.namespace != "" {
		text += " in " + g.namespace
	}
	return text
}

// grantsOf are the rights that the roles among objects have. Each role is bound to Signet's account in its own namespace, or
// in the whole cluster, and to nobody else; what isn't so is an error.
func grantsOf(objects []*unstructured.Unstructured, account string) ([]grant, error) {
	var all []grant
	roles := make(map[string]bool)
	for _, object := range objects {
		at := object.GetKind() + " " + object.GetNamespace() + "/" + object.GetName()
		switch object.GetKind() {
		case "ServiceAccount":
		case "Role", "ClusterRole":
			roles[at] = false
			var role rbacv1.Role // as a ClusterRole
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &role); err != nil {
				return nil, fmt.Errorf("read %s: %w", at, err)
			}
			for _, rule := range role.Rules {
				expanded, err := expand(rule, role.Namespace)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", at, err)
				}
				all = append(all, expanded...)
			}
		case "RoleBinding", "ClusterRoleBinding":
			var binding rbacv1.RoleBinding // as a ClusterRoleBinding
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &binding); err != nil {
				return nil, fmt.Errorf("read %s: %w", at, err)
			}
			bound := binding.RoleRef.Kind + " " + object.GetNamespace() + "/" + binding.RoleRef.Name
			if _, known := roles[bound]; !known || binding.RoleRef.Kind+"Binding" != object.GetKind() {
				return nil, fmt.Errorf("%s binds %s, which isn't its own role", at, bound)
			}
			if len(binding.Subjects) != 1 || "system:serviceaccount:"+binding.Subjects[0].Namespace+":"+binding.Subjects[0].Name != account {
				return nil, fmt.Errorf("%s is not for %s alone", at, account)
			}
			roles[bound] = true
		default:
			return nil, fmt.Errorf("%s isn't about rights", at)
		}
	}
	for role, bound := range roles {
		if !bound {
			return nil, fmt.Errorf("%s isn't bound", role)
		}
	}
	slices.SortFunc(all, func(a, b grant) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.String(), b.String()))
	})
	return slices.Compact(all), nil
}

// expand is what one rule grants.
func expand(rule rbacv1.PolicyRule, namespace string) ([]grant, error) {
	var all []grant
	if slices.ContainsFunc(slices.Concat(rule.Verbs, rule.APIGroups, rule.Resources), func(s string) bool { return strings.Contains(s, "*") }) {
		return nil, fmt.Errorf("%v grants more than can be named", rule)
	}
	for _, verb := range rule.Verbs {
		for _, path := range rule.NonResourceURLs {
			all = append(all, grant{verb: verb, path: path})
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, name := range orAny(rule.ResourceNames) {
					all = append(all, grant{verb: verb, group: group, resource: resource, name: name, namespace: namespace})
				}
			}
		}
	}
	return all, nil
}

func orAny(names []string) []string {
	if len(names) == 0 {
		return []string{""}
	}
	return names
}

// allows says whether the right is one to do what a need says.
func (g grant) allows(n need) bool {
	if g.path != "" || n.path != "" {
		prefix, wild := strings.CutSuffix(g.path, "*")
		return g.verb == n.verb && (g.path == n.path || wild && strings.HasPrefix(n.path, prefix))
	}
	named := g.name == "" || g.name == n.name
	if domain, all := strings.CutSuffix(g.name, "/*"); all && g.resource == "signers" {
		named = strings.HasPrefix(n.name, domain+"/") // which admission asks for where the name itself isn't granted
	}
	return g.verb == n.verb && g.group == n.group && g.resource == n.resource && (g.namespace == "" || g.namespace == n.namespace) && named
}

// object is what the right is about, in the same scope, whatever may be done with it.
func (g grant) object() grant {
	g.verb = ""
	return g
}

// within says whether another right allows everything that this one does, and is not the same.
func (g grant) within(wider grant) bool {
	return g != wider && g.path == "" && g.verb == wider.verb && g.group == wider.group && g.resource == wider.resource &&
		(wider.namespace == "" || wider.namespace == g.namespace) && (wider.name == "" || wider.name == g.name)
}
