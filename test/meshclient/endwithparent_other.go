//go:build !linux

package meshclient

import "syscall"

// endWithParent does nothing: only Linux ties a process to its parent. Elsewhere an agent outlives a
// test that is killed.
func endWithParent() *syscall.SysProcAttr { return nil }
