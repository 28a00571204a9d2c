package issuer

import "sync"

// Notice tells those who wait that something has changed. The zero value is ready. Safe for concurrent use.
type Notice struct {
	mu      sync.Mutex
	changed chan struct{} // closed by the next Tell; nil while nobody waits
}

// Changed is closed by the next Tell. Take it before looking at what it tells of, so that no change is missed.
func (n *Notice) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changed == nil {
		n.changed = make(chan struct{})
	}
	return n.changed
}

// Tell wakes all who wait.
func (n *Notice) Tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changed != nil {
		close(n.changed)
		n.changed = nil
	}
}
