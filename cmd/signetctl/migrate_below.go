package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// goBelow takes the values below a key, where istio-csr's chart is a part of another one, and refuses values of istio-csr
// that are still below another. An empty key is none.
func (c *istioCSR) goBelow(key string) error {
	prefix := ""
	if key != "" {
		value, _ := lookUp(c.values, key)
		below, ok := value.(map[string]any)
		if !ok {
			return fmt.Errorf("--below %s: there is no map of values", key)
		}
		// Helm calls a part of a chart by the key of its values, and istio-csr's chart names its objects so.
		c.values, c.name = below, key[strings.LastIndex(key, ".")+1:]
		prefix = key + "."
	}
	nested := nestedValues(c.values)
	if len(nested) == 0 {
		return nil
	}
	return fmt.Errorf("%s: istio-csr's values are below there, as those of a part of another chart are, and would be lost; take them by --below %s, or take that key out",
		prefix+strings.Join(nested, ", "+prefix), prefix+nested[0])
}

// nestedValues are the paths of maps that hold values of istio-csr where its chart has none.
func nestedValues(values map[string]any) []string {
	known := knownValues()
	if found := nestedBelow(values, "", known); len(found) > 0 {
		return found
	}
	// What many charts have, such as replicaCount, tells only where nothing else does.
	var found []string
	for _, key := range slices.Sorted(maps.Keys(values)) {
		below, _ := values[key].(map[string]any)
		if !isKnown(key, known) && slices.ContainsFunc(slices.Collect(maps.Keys(below)), func(k string) bool { return isKnown(k, known) }) {
			found = append(found, key)
		}
	}
	return found
}

// nestedBelow are those that only istio-csr has.
func nestedBelow(values map[string]any, prefix string, known []string) (found []string) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		path := prefix + key
		below, _ := values[key].(map[string]any)
		if len(below) == 0 || slices.Contains(known, path) {
			continue
		}
		app, _ := below["app"].(map[string]any)
		switch {
		case slices.ContainsFunc(slices.Collect(maps.Keys(app)), func(k string) bool { return isKnown("app."+k, known) }),
			strings.Contains(key, "istio-csr") && !isKnown(path, known):
			found = append(found, path)
		default:
			found = append(found, nestedBelow(below, path+".", known)...)
		}
	}
	return found
}

// isKnown says whether istio-csr's chart has a value at a path, or below it.
func isKnown(path string, known []string) bool {
	return slices.ContainsFunc(known, func(k string) bool { return k == path || strings.HasPrefix(k, path+".") })
}
