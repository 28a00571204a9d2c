// Command kube is the control plane of the tests in one binary: etcd, kube-apiserver and the
// controllers of cert-manager, each the real one, built from its Go module.
//
// # Synopsis
//
//	kube [--exit-on-eof] etcd --data-dir DIR --listen-client HOST:PORT [--unsafe-no-fsync]
//	kube [--exit-on-eof] apiserver FLAGS...
//	kube [--exit-on-eof] cert-manager --kubeconfig FILE [--workers N] [--without NAME,...] [--listen HOST:PORT]
//	kube crds
//	kube version
//
// Each of the first three runs one part in the foreground until SIGTERM or SIGINT, so that a test
// can stop, pause or kill every part by its process ID. They log to standard error.
//
// The apiserver takes the flags of kube-apiserver and behaves as that command does. Crds prints
// the CustomResourceDefinitions of the cert-manager version that is linked in, as one stream of
// YAML documents.
//
// With --exit-on-eof a part ends at once when its standard input reaches its end. A parent that
// holds the other side of a pipe there takes its parts with it however it dies.
//
// # Building
//
// build.sh builds the binary with the versions and the CustomResourceDefinitions in it. A plain
// go build works too; what it makes reports placeholder versions and has no definitions to print.
//
// # Exit status
//
// 0 after an orderly stop, 1 when a part could not start, failed, or lost its parent, 2 when the
// command line was wrong; the apiserver says 1 then too, as kube-apiserver does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/cert-manager/cert-manager/pkg/util"
	"k8s.io/component-base/version"
)

const usage = `usage: kube [--exit-on-eof] etcd|apiserver|cert-manager FLAGS...
       kube crds|version
`

// errUsage marks a wrong command line.
var errUsage = errors.New("usage")

func main() {
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "--exit-on-eof" {
		args = args[1:]
		go exitOnEOF(os.Stdin)
	}
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := run(args[0], args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		if errors.Is(err, errUsage) {
			fmt.Fprintf(os.Stderr, "error: %v\n%s", err, usage)
			os.Exit(2)
		}
		fmt.Fprintf(os.Stderr, "error: %s: %v\n", args[0], err)
		os.Exit(1)
	}
}

// run runs one subcommand until it ends.
func run(name string, args []string) error {
	if name == "apiserver" { // has its own signal context, of which a process can have one
		return runAPIServer(args)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch name {
	case "etcd":
		return runEtcd(ctx, args)
	case "cert-manager":
		return runCertManager(ctx, args)
	case "crds":
		return printCRDs(os.Stdout)
	case "version":
		_, err := fmt.Printf("kubernetes %s\ncert-manager %s\n", version.Get().GitVersion, util.AppVersion)
		return err
	default:
		return fmt.Errorf("%w: no subcommand %q", errUsage, name)
	}
}

// exitOnEOF ends the process when r does. Nothing is said about it: whoever would read the log is
// gone, and a part that is killed must be able to start again anyway.
func exitOnEOF(r io.Reader) {
	_, _ = io.Copy(io.Discard, r)
	os.Exit(1) //nolint:revive // as it says
}
