// Approver-policy is cert-manager's approver-policy, unchanged: it approves or denies CertificateRequests by what
// CertificateRequestPolicies say.
//
// It is built from the module instead of taken from an image, so that package controlplane of the test module can run it as
// an ordinary process, in the place of the approver that cert-manager itself has. Build it without the race detector: the
// tests don't look for its races.
//
// With --exit-on-eof as its first argument it ends at once when its standard input reaches its end, as the parts of the
// control plane do.
package main

import (
	"io"
	"os"

	"github.com/cert-manager/approver-policy/pkg/cmd"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "--exit-on-eof" {
		os.Args = append(os.Args[:1], os.Args[2:]...)
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(1) // nobody is left who would read why
		}()
	}
	cmd.ExecutePolicyApprover()
}
