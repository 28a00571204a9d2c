package privilege

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// verdict is what the rights of an account come to, held against what it asked for.
type verdict struct {
	requests, kinds int     // made, and different ones of them
	granted         []grant // by the chart
	used            map[grant]int
	refused         []string // requests that were answered 403
	unused          []grant  // that no request needed
	tooWide         []string // granted in the whole cluster and used in one namespace only
	unexplained     []string // requests that were answered though nothing granted them
}

// judge holds rights against requests. Everybody is what Kubernetes lets every account do.
func judge(granted, everybody []grant, requests map[request]int) *verdict {
	v := &verdict{granted: granted, used: make(map[grant]int), kinds: len(requests)}
	where := make(map[grant]map[string]bool) // in which namespaces objects were dealt with, "" for all at once
	for r, n := range requests {
		v.requests += n
		if r.code == 403 {
			v.refused = append(v.refused, r.String())
			continue
		}
		for _, need := range r.needs() {
			allowing := slices.DeleteFunc(slices.Clone(granted), func(g grant) bool { return !g.allows(need) })
			if len(allowing) == 0 {
				if !slices.ContainsFunc(everybody, func(g grant) bool { return g.allows(need) }) {
					v.unexplained = append(v.unexplained, grant(need).String())
				}
				continue
			}
			for _, g := range allowing {
				// A wide right isn't needed for what a narrow one allows too.
				if slices.ContainsFunc(allowing, func(other grant) bool { return other.within(g) }) {
					continue
				}
				v.used[g] += n
				if where[g.object()] == nil {
					where[g.object()] = make(map[string]bool)
				}
				where[g.object()][need.namespace] = true
			}
		}
	}
	for _, g := range granted {
		if v.used[g] == 0 {
			v.unused = append(v.unused, g)
		} else if in := slices.Collect(maps.Keys(where[g.object()])); g.namespace == "" && len(in) == 1 && in[0] != "" {
			v.tooWide = append(v.tooWide, fmt.Sprintf("%s: only in %s", g, in[0]))
		}
	}
	slices.Sort(v.refused)
	slices.Sort(v.tooWide)
	slices.Sort(v.unexplained)
	return v
}

// good says whether there is nothing to find fault with.
func (v *verdict) good() bool {
	return len(v.refused)+len(v.unused)+len(v.tooWide)+len(v.unexplained) == 0
}

func (v *verdict) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%d requests of %d kinds, %d refused; %d rights granted, %d used", v.requests, v.kinds, len(v.refused), len(v.granted), len(v.granted)-len(v.unused))
	for _, list := range []struct {
		what  string
		items []string
	}{
		{"answered 403", v.refused}, {"granted and never used", texts(v.unused)}, {"granted in the whole cluster, where a Role would do", v.tooWide},
		{"allowed by nothing that the chart grants", v.unexplained},
	} {
		for _, item := range list.items {
			fmt.Fprintf(&text, "\n  %s: %s", list.what, item)
		}
	}
	return text.String()
}

func texts(all []grant) []string {
	list := make([]string, len(all))
	for n, g := range all {
		list[n] = g.String()
	}
	return list
}
