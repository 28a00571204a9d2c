// Signetctl tells which certificate each service of the mesh holds, until when and with which names: it asks the
// inspection API of Signet. As kubectl-signet on the PATH it is also kubectl signet.
//
// Usage:
//
//	signetctl services|certificates|expiring|issuances|gateways|trust [-A | -n NAMESPACE] [-o FORMAT] [--watch]
//	signetctl describe service|certificate|identity NAME
//	signetctl probe SERVICE
//	signetctl dashboard [--no-browser]
//	signetctl migrate istio-csr -f values.yaml
//
// It finds Signet through the kubeconfig: a ready pod of the Service, reached by port-forward, which must prove itself
// with a certificate under the mesh's roots. Credentials are those of the kubeconfig; where these have no token that could
// be sent, it asks the API server for one of a service account for readers. See docs/signetctl.md.
//
// Data goes to standard output; errors, hints and notices go to standard error.
//
// Exit codes: 0 done; 1 failed; 2 the command line is wrong; 3 not found; 4 not allowed; 5 with --check, something that
// was listed needs somebody's attention.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/signet-ca/signet/version"
)

// Exit codes.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2
	exitNotFound   = 3
	exitNotAllowed = 4
	exitAttention  = 5
)

func main() {
	// What libraries have to say that isn't an error is for their own developers.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	rest.SetDefaultWarningHandler(rest.NoWarnings{})

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(command(ctx, os.Args, os.Stdout, os.Stderr))
}

// program is one run of the command.
type program struct {
	file string // the name of its file, without directories
	name string // what the user types for it
	out  io.Writer
	err  io.Writer
	now  func() time.Time
	pace pace

	where     address
	who       credentials
	output    string
	namespace string // as given
	all       bool
	timeout   time.Duration
}

// command runs the program; args are those of the process, its name first. It returns the exit code.
func command(ctx context.Context, args []string, out, err io.Writer) int {
	p := &program{out: output{out}, err: err, now: time.Now, pace: defaultPace}
	p.file, p.name = called(args)
	return p.run(ctx, args[1:])
}

// called is the file that was run, and how the user calls it: kubectl finds its plugins by their names.
func called(args []string) (file, name string) {
	file = "signetctl"
	if len(args) > 0 && args[0] != "" {
		file = strings.TrimSuffix(filepath.Base(args[0]), ".exe")
	}
	if plugin, ok := strings.CutPrefix(file, "kubectl-"); ok {
		return file, "kubectl " + strings.ReplaceAll(plugin, "_", "-")
	}
	return file, file
}

func (p *program) run(ctx context.Context, args []string) int {
	root := p.root()
	root.SetArgs(args)
	root.SetOut(p.out)
	root.SetErr(p.err)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	return p.fail(command, err)
}

// root is the command with all its verbs.
func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   p.file,
		Short: "Tells which certificate each service of the mesh holds",
		Long: `Tells which certificate each service of the mesh holds, until when and with which names, what was issued and
refused, and what is about to end.

Signet is found through the kubeconfig. What is shown is what the user of the kubeconfig may see.`,
		Example: p.examples(
			"services -A --problems         what somebody should look at",
			"describe service cart -n shop   its pods with their certificates"),
		Annotations:       map[string]string{cobra.CommandDisplayNameAnnotation: p.name},
		Args:              cobra.NoArgs,
		Version:           version.Current().String(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return p.check() },
		RunE: func(*cobra.Command, []string) error {
			return usage("a verb is missing, such as services")
		},
	}
	root.SetVersionTemplate("signetctl {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%w", err) })
	root.Flags().Bool("version", false, "print the version and exit")
	flags := root.PersistentFlags()
	flags.StringVarP(&p.namespace, "namespace", "n", "", "the `namespace` to ask about; default that of the kubeconfig's context")
	flags.BoolVarP(&p.all, "all-namespaces", "A", false, "ask about all namespaces that you may see")
	flags.StringVarP(&p.output, "output", "o", formatTable, "`format`: table, wide, json, yaml or name")
	flags.DurationVar(&p.timeout, "timeout", time.Minute, "how long an answer may take; 0 for any time")
	p.where.flags(flags)
	p.who.flags(flags)
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))

	root.AddCommand(p.services(), p.certificates(), p.expiring(), p.issuances(), p.gateways(), p.trust(), p.describe(), p.probe(), p.dashboard(), p.migrate(), p.version())
	wrapUsage(root)
	return root
}

// check refuses flags that mean nothing.
func (p *program) check() error {
	switch {
	case !slices.Contains(formats, p.output):
		return usage("--output %q: it must be one of %s", p.output, strings.Join(formats, ", "))
	case p.all && p.namespace != "":
		return usage("--namespace and --all-namespaces: it must be one of them")
	case p.timeout < 0:
		return usage("--timeout %s: it must not be negative", p.timeout)
	}
	return nil
}

// examples are lines that begin with the name of the program.
func (p *program) examples(lines ...string) string {
	for i := range lines {
		lines[i] = "  " + p.name + " " + lines[i]
	}
	return strings.Join(lines, "\n")
}

// wrapUsage makes the errors of a command's arguments those of usage.
func wrapUsage(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage("%w", err)
			}
			return nil
		}
	}
	for _, below := range c.Commands() {
		wrapUsage(below)
	}
}

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(p.out, "signetctl", version.Current())
			return err
		},
	}
}

// output tells errors of writing from those of asking.
type output struct{ io.Writer }

func (o output) Write(text []byte) (int, error) {
	n, err := o.Writer.Write(text)
	if err != nil {
		err = &failure{code: exitFailed, err: fmt.Errorf("write: %w", err)}
	}
	return n, err
}

// notice tells something beside the data.
func (p *program) notice(format string, args ...any) {
	_, _ = fmt.Fprintln(p.err, "notice: "+clean(fmt.Sprintf(format, args...)))
}
