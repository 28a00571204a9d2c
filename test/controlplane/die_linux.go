package controlplane

import "syscall"

// dieWithParent has the kernel kill the process when the thread that started it ends. The pipe on
// its standard input does so too, but not while the process is paused.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
