// Signet is the certificate authority between cert-manager and an Istio mesh: sidecars, ztunnel,
// gateways and VMs ask it for certificates over Istio's own protocol, it proves who they are by their
// tokens or by the certificates that it gave them, and has cert-manager sign.
//
// Usage:
//
//	signet --config FILE [--kubeconfig FILE]
//	signet --version
//
// The configuration is one YAML file; docs/configuration.md has every setting. Without
// --kubeconfig Signet uses the service account of the pod that it runs in.
//
// Ports, unless configured otherwise:
//
//	6443  gRPC over TLS: istio.v1.auth.IstioCertificateService, health, reflection
//	8443  HTTPS: the inspection API, and its page at /ui
//	9402  HTTP: /metrics
//	6060  HTTP: /livez, /readyz
//
// With bundleEndpoint.listen, HTTPS with the SPIFFE bundle for federated trust domains besides.
//
// Signals: SIGTERM and SIGINT stop it gracefully, a second one at once; SIGUSR1 switches the log
// between the configured level and debug.
//
// Exit codes: 0 after a graceful stop; 1 when it could not start or go on; 2 when the command line or
// the configuration is wrong.
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

	"k8s.io/client-go/tools/clientcmd"

	"github.com/signet-ca/signet/version"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const usage = `Usage:
  signet --config FILE [--kubeconfig FILE]
  signet --version

Signet answers an Istio mesh's requests for certificates, and has cert-manager sign them.

  --config FILE       the configuration, YAML; only issuer.name and one source of roots are required
  --kubeconfig FILE   how to reach the Kubernetes API; default is the pod's service account
  --version           print the version and exit

Examples:
  signet --config /etc/signet/signet.yaml
  signet --config signet.yaml --kubeconfig ~/.kube/config
`

func main() {
	os.Exit(command(untilSignal(), os.Args[1:], cgroupMemory, os.Stdout, os.Stderr))
}

// untilSignal is done at the first SIGTERM or SIGINT. Before anybody can see that it is done, the next
// one ends the process at once: signal.NotifyContext would swallow a second one that comes right behind.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		signal.Stop(signals)
		cancel()
	}()
	return ctx
}

// command runs the program with its arguments, and returns its exit code. memory is the file with the container's limit.
func command(ctx context.Context, args []string, memory string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("signet", flag.ContinueOnError)
	flags.SetOutput(stderr)
	configPath := flags.String("config", "", "the configuration `file` (required)")
	kubeconfig := flags.String("kubeconfig", "", "a kubeconfig `file`; default is the pod's service account")
	showVersion := flags.Bool("version", false, "print the version and exit")
	flags.Usage = func() {}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return exitOK
	} else if err != nil {
		fmt.Fprintln(stderr, "hint: signet --help")
		return exitUsage
	}
	switch {
	case *showVersion:
		fmt.Fprintln(stdout, "signet", version.Current())
		return exitOK
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "error: unexpected argument %q\nhint: signet --config FILE\n", flags.Arg(0))
		return exitUsage
	case *configPath == "":
		fmt.Fprintf(stderr, "error: --config is missing\nhint: signet --config FILE\n")
		return exitUsage
	}
	cfg, err := LoadConfig(*configPath)
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
		return exitUsage
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		fmt.Fprintf(stderr, "error: find the Kubernetes API: %v\nhint: outside of a pod, name a kubeconfig with --kubeconfig\n", err)
		return exitFailed
	}
	config.UserAgent = "signet/" + version.Current().Version
	log, level := newLog(cfg.Log, stderr)
	limitMemory(memory, log)
	if err := run(ctx, cfg, config, log, level); err != nil {
		log.Error("signet ended", "err", err)
		fmt.Fprintf(stderr, "error: %v\n", err)
		return exitFailed
	}
	return exitOK
}
