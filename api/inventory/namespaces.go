package inventory

// Namespaces are the names of those that exist, in no order.
func (i *Inventory) Namespaces() []string {
	i.index.mu.RLock()
	defer i.index.mu.RUnlock()
	names := make([]string, 0, len(i.index.namespaces))
	for name, n := range i.index.namespaces {
		if n.exists {
			names = append(names, name)
		}
	}
	return names
}
