package controlplane

import "github.com/signet-ca/signet/test/process"

// Process is what runs for the part now, nil when it is stopped.
func (part *Part) Process() *process.Process {
	part.mu.Lock()
	defer part.mu.Unlock()
	return part.proc
}
