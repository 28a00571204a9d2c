package meshclient

import "syscall"

// endWithParent has the kernel kill a process when the thread that starts it ends.
func endWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
