package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Labels by which a selector names pods of istio-csr.
const (
	nameLabel     = "app.kubernetes.io/name"
	instanceLabel = "app.kubernetes.io/instance"
)

// isChartLabel says that a label of pods comes from istio-csr's chart, or from its Deployment.
func isChartLabel(name string) bool {
	return name == "app" || strings.HasPrefix(name, "app.kubernetes.io/") || name == "helm.sh/chart" || name == "pod-template-hash"
}

// placement carries over where pods may be. Signet's pods have other labels than istio-csr's.
func (m *migration) placement() {
	m.pass("nodeSelector", "nodeSelector", "")
	m.pass("tolerations", "tolerations", "")
	m.pass("priorityClassName", "priorityClassName", "")
	for _, path := range []string{"affinity", "topologySpreadConstraints"} {
		value, ok := lookUp(m.csr.values, path)
		if !ok || isEmpty(value) {
			continue
		}
		s := &selectors{migration: m, to: path, after: m.signetLabels()}
		rewritten := s.walk(m.workloadName(path), value)
		m.values.set(path, rewritten, "")
		if reflect.DeepEqual(value, rewritten) {
			m.tell(path, carried, path, "")
		} else {
			m.tell(path, changes, path, "label selectors for istio-csr's pods select Signet's, "+nameLabel+": signet")
		}
		const apart = "podAntiAffinity"
		if fields, _ := value.(map[string]any); path == "affinity" && fields[apart] != nil && !s.apart {
			m.add(todo, m.workloadName(path)+"."+apart, "", path, "it takes the place of the one by which Signet's chart keeps replicas on different nodes (spread), "+
				"and none of its terms is for Signet's pods, so that two replicas may share a node; add such a term, or leave it out")
		}
	}
}

// signetLabels are those of Signet's pods that are known.
func (m *migration) signetLabels() labels.Set {
	all := make(labels.Set)
	for _, path := range []string{"podLabels", "commonLabels"} {
		maps.Copy(all, textsAt(m.csr.values, path))
	}
	// The chart's own count before those.
	maps.Copy(all, labels.Set{
		nameLabel: "signet", instanceLabel: "signet", "app.kubernetes.io/component": "certificate-authority", "app.kubernetes.io/managed-by": "Helm",
		"sidecar.istio.io/inject": "false", "istio.io/dataplane-mode": "none",
	})
	return all
}

// selectors rewrites the label selectors of pods within an affinity or a list of constraints.
type selectors struct {
	*migration
	to    string     // where it goes in Signet's values
	after labels.Set // of Signet's pods
	apart bool       // a term of a podAntiAffinity is for Signet's pods
}

// lost tells of what can't be rewritten.
func (s *selectors) lost(path, note string) { s.add(todo, path, "", s.to, note) }

// walk is a copy of what is at a path, rewritten.
func (s *selectors) walk(path string, value any) any {
	switch value := value.(type) {
	case []any:
		items := make([]any, 0, len(value))
		for n, item := range value {
			items = append(items, s.walk(fmt.Sprintf("%s[%d]", path, n), item))
		}
		return items
	case map[string]any:
		fields, own := make(map[string]any, len(value)), false
		for _, key := range slices.Sorted(maps.Keys(value)) {
			switch key {
			case "namespaceSelector": // it selects no pods
				fields[key] = value[key]
			case "labelSelector":
				fields[key], own = s.selector(path+"."+key, value[key])
			default:
				fields[key] = s.walk(path+"."+key, value[key])
			}
		}
		if own {
			s.apart = s.apart || strings.Contains(path, ".podAntiAffinity.")
			s.namespaces(path, fields)
		}
		return fields
	}
	return value
}

// namespaces has a term for Signet's pods look for them where they are.
func (s *selectors) namespaces(path string, term map[string]any) {
	if !s.moves() {
		return
	}
	namespace := s.csr.string("certificate-namespace")
	if selector := term["namespaceSelector"]; !isEmpty(selector) {
		s.lost(path+".namespaceSelector", "carried over as it is; see that it selects "+namespace+", where Signet's pods are")
	}
	names, _ := term["namespaces"].([]any)
	if n := slices.Index(names, any(s.csr.namespace)); n >= 0 {
		rest := slices.DeleteFunc(slices.Clone(names), func(name any) bool { return name == s.csr.namespace || name == namespace })
		term["namespaces"] = slices.Insert(rest, min(n, len(rest)), any(namespace))
	}
}

// selector rewrites one, and says whether it is for Signet's pods then.
func (s *selectors) selector(path string, value any) (rewritten any, own bool) {
	if value == nil {
		return nil, false // it selects none
	}
	var from metav1.LabelSelector
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, &from)
	}
	if err == nil {
		_, err = metav1.LabelSelectorAsSelector(&from)
	}
	if err != nil {
		s.problems = append(s.problems, fmt.Sprintf("%s: it is no label selector: %v", path, err))
		return value, false
	}
	certain, guessed := s.certain(&from)
	before := matches(certain, s.csr.podLabels)
	to, renamed := s.rename(&from)
	own = matches(to, s.after)
	switch {
	case !renamed && before && guessed:
		s.lost(path, "whether it is for istio-csr's pods can't be told; if it is, write "+nameLabel+": signet, the label of Signet's pods")
	case before && !own:
		s.lost(path, "it is for istio-csr's pods, and not for Signet's, whose label is "+nameLabel+": signet; write it anew")
	case !before && own:
		s.lost(path, "it isn't for istio-csr's pods, and would be for Signet's, whose label is "+nameLabel+": signet; write it anew")
	}
	if !renamed {
		return value, own
	}
	fields := make(map[string]any)
	if text, err = json.Marshal(to); err == nil {
		err = json.Unmarshal(text, &fields)
	}
	if err != nil {
		s.problems = append(s.problems, fmt.Sprintf("%s: %v", path, err))
	}
	return fields, own
}

// matches says whether a selector, which was parsed once, selects what has these labels.
func matches(selector *metav1.LabelSelector, set labels.Set) bool {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && parsed.Matches(set)
}

// certain is a selector without what asks for labels of istio-csr's pods that aren't known, such as the name of its release.
func (s *selectors) certain(from *metav1.LabelSelector) (certain *metav1.LabelSelector, guessed bool) {
	unknown := func(label string) bool {
		_, ok := s.csr.podLabels[label]
		return !ok && (label == "pod-template-hash" || s.csr.fromValues && slices.Contains([]string{instanceLabel, "app.kubernetes.io/version", "helm.sh/chart"}, label))
	}
	certain = from.DeepCopy()
	maps.DeleteFunc(certain.MatchLabels, func(label, _ string) bool { return unknown(label) })
	certain.MatchExpressions = slices.DeleteFunc(certain.MatchExpressions, func(e metav1.LabelSelectorRequirement) bool { return unknown(e.Key) })
	return certain, len(certain.MatchLabels)+len(certain.MatchExpressions) < len(from.MatchLabels)+len(from.MatchExpressions)
}

// rename is a selector that has Signet's name where it had istio-csr's.
func (s *selectors) rename(from *metav1.LabelSelector) (to *metav1.LabelSelector, renamed bool) {
	names := func(label, value string) bool {
		return slices.Contains([]string{"app", nameLabel, instanceLabel}, label) && s.csr.podLabels[label] == value && value != ""
	}
	to = from.DeepCopy()
	selected := false
	for label, value := range from.MatchLabels {
		if names(label, value) {
			delete(to.MatchLabels, label)
			selected = true
		}
	}
	for n := range to.MatchExpressions {
		e := &to.MatchExpressions[n]
		named := slices.IndexFunc(e.Values, func(value string) bool { return names(e.Key, value) })
		// Signet's pods have one name, so another label can't stay beside it.
		if named < 0 || e.Key != nameLabel && len(e.Values) > 1 {
			continue
		}
		e.Key, e.Values[named] = nameLabel, "signet"
		renamed = true
		selected = selected || e.Operator == metav1.LabelSelectorOpIn
	}
	if selected {
		// What else istio-csr's chart labels its pods with is of no use.
		maps.DeleteFunc(to.MatchLabels, func(label, _ string) bool { return isChartLabel(label) })
		to.MatchExpressions = slices.DeleteFunc(to.MatchExpressions, func(e metav1.LabelSelectorRequirement) bool {
			return isChartLabel(e.Key) && e.Key != nameLabel
		})
		if !slices.ContainsFunc(to.MatchExpressions, func(e metav1.LabelSelectorRequirement) bool {
			return e.Key == nameLabel && e.Operator == metav1.LabelSelectorOpIn && slices.Contains(e.Values, "signet")
		}) {
			to.MatchLabels = labels.Merge(to.MatchLabels, labels.Set{nameLabel: "signet"})
		}
	}
	return to, renamed || selected
}
