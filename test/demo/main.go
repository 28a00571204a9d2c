// Demo shows Signet at work: a mesh in miniature on this machine, in which nothing is a stand-in. A
// real etcd, kube-apiserver and cert-manager are started; cert-manager makes a root and an issuer;
// Signet runs under its own ServiceAccount with the rights that the chart has for it and no others; and for
// each service of a few namespaces runs Istio's pilot-agent, with the token of a Pod of its own, which
// gets its certificate from Signet and renews it.
//
// Usage:
//
//	demo [--once] [--dir DIR]
//
// Without --once it runs until it is interrupted, and shows a table of the certificates that the
// workloads hold, each verified as Istio's sidecar would: drawn anew in place on a terminal, else
// printed again after each change. Certificates live a minute, so that every half a minute all are
// renewed. With --once they live 30 seconds, and the demo ends as soon as each workload has renewed;
// the last line of its standard output is then
//
//	demo: 7 of 7 workloads hold certificates, 7 renewed
//
// DIR holds the state, the logs, and for another terminal the file env, whose variables are KUBECONFIG
// (the administrator's), SIGNET_CA (host:port), SIGNET_CA_ROOT (a PEM file), SIGNET_METRICS (URL),
// SIGNET_HEALTH (URL; /livez and /readyz are below it) and SIGNET_API (URL; the page is at /ui). It is .demo at the root of the repository
// unless given. A demo takes a directory for itself and removes what it made there; several run at
// once, each in its own. All ports are free ones on the loopback interface.
//
// Signals: SIGINT, SIGTERM and SIGHUP stop it in order: the workloads, Signet, the control plane, the
// directory. That takes a few seconds, in which further ones change nothing. When the demo is killed,
// the kernel ends what it started, and the next demo in the directory cleans up.
//
// Exit codes: 0 when the workloads held verified certificates, and, with --once, renewed them, or when
// the demo without --once was stopped; 1 when something failed, the reason being on standard error;
// 2 when the command line is wrong; 130 when a demo with --once was interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/signet-ca/signet/test/process"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // as shells count one that SIGINT ended
)

const (
	// patience is how long the demo may take to come up, and one with --once altogether.
	patience = 10 * time.Minute

	liveLifetime = time.Minute
	onceLifetime = 30 * time.Second
)

// errInterrupted is why a demo ends that was told to.
var errInterrupted = errors.New("interrupted")

func main() {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		cancel(errInterrupted)
	}()
	// Where whoever reads our output has gone, writing shall fail and not end us: there is cleaning up
	// to do. To ignore the signal would make our children ignore it too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(command(ctx, cancel, os.Args[1:], os.Stdout, os.Stderr))
}

// command runs the program with its arguments, and returns its exit code. Cancel is called when stdout
// can't be written any more.
func command(ctx context.Context, cancel context.CancelCauseFunc, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	once := flags.Bool("once", false, "end when every workload has renewed its certificate")
	dir := flags.String("dir", "", "the `directory` of the state; default is .demo in the repository")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "error: unexpected argument %q\nhint: demo [--once] [--dir DIR]\n", flags.Arg(0))
		return exitUsage
	}

	out := newScreen(stdout, cancel)
	m := newMesh(out, liveLifetime)
	if *once {
		m = newMesh(out, onceLifetime)
	}
	err := run(ctx, m, *once, *dir)
	interrupted := errors.Is(context.Cause(ctx), errInterrupted)
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
	}
	if *once && !interrupted {
		out.print(m.summary())
	}
	switch {
	case err != nil:
		return exitFailed
	case interrupted && *once:
		fmt.Fprintln(stderr, "error: interrupted before every workload had renewed")
		return exitInterrupted
	}
	return exitOK
}

// run takes the directory, runs the mesh in it, and cleans up whatever happened. An interruption is no
// error.
func run(ctx context.Context, m *mesh, once bool, path string) (err error) {
	if path == "" {
		root, err := process.Root()
		if err != nil {
			return err
		}
		path = filepath.Join(root, ".demo")
	}
	dir, err := openDirectory(path)
	if err != nil {
		return err
	}
	m.dir = dir
	show := m.live
	if once {
		show = m.once
	}
	err = m.up(ctx, show)
	if errors.Is(context.Cause(ctx), errInterrupted) {
		err = nil       // whatever was under way has failed of course
		m.out.print("") // the terminal has written ^C
	}
	m.out.progress("stopping")
	return errors.Join(err, m.stop(), dir.close())
}
