//go:build unix && !linux

package controlplane

import "syscall"

// dieWithParent does nothing: the pipe on its standard input tells the process. A paused one is
// hung up and continued by the kernel when the parent of its process group is gone.
func dieWithParent(*syscall.SysProcAttr) {}
