package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// What migrate istio-csr prints.
const (
	outputValues = "values"
	outputReport = "report"
)

func (p *program) migrate() *cobra.Command {
	c := &cobra.Command{
		Use:   "migrate",
		Short: "Turn another certificate authority's settings into Signet's",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("what to migrate from is missing: migrate istio-csr")
		},
	}
	c.AddCommand(p.migrateIstioCSR())
	return c
}

// migrateFlags are those of migrate istio-csr.
type migrateFlags struct {
	files       []string
	namespace   string
	output      string
	below       string
	skipUnknown bool
}

func (p *program) migrateIstioCSR() *cobra.Command {
	var f migrateFlags
	c := &cobra.Command{
		Use:   "istio-csr -f FILE [-f FILE]... [-- FLAG...]",
		Short: "Turn istio-csr's Helm values, Deployment or flags into values of Signet's chart",
		Long: `Prints values of Signet's chart that do what istio-csr ` + istioCSRVersion + ` does, and on standard error what changes and what
is left to do. FILE is one of istio-csr's Helm values, several are merged as Helm does; or its Deployment, or its whole
manifest; - is standard input. Flags behind -- are istio-csr's own and count before what the files say.

What istio-csr does by default is written down where Signet would do something else. Settings that istio-csr doesn't know
are refused, because a mistyped one would be lost. No cluster is asked. docs/migrate.md says what to do with the result.`,
		Example: p.examples(
			"migrate istio-csr -f values.yaml > signet.yaml",
			"migrate istio-csr -f values.yaml -o report         what becomes of each setting",
			"migrate istio-csr -f base.yaml -f prod.yaml -n istio-csr > signet.yaml",
			"migrate istio-csr -f platform.yaml --below cert-manager-istio-csr > signet.yaml",
		) + "\n  helm get values istio-csr -n cert-manager | " + p.name + " migrate istio-csr -f - > signet.yaml" +
			"\n  kubectl get deployment cert-manager-istio-csr -n cert-manager -o yaml | " + p.name + " migrate istio-csr -f -",
		Args: func(c *cobra.Command, args []string) error {
			if before := c.ArgsLenAtDash(); len(args) > 0 && before != 0 {
				return fmt.Errorf("%q: files are given by -f, istio-csr's own flags behind --", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if f.output != outputValues && f.output != outputReport {
				return usage("--output %q: it must be %s or %s", f.output, outputValues, outputReport)
			}
			if len(f.files) == 0 && len(args) == 0 {
				return usage("nothing to migrate was given: -f values.yaml, or istio-csr's flags behind --")
			}
			return p.migrateFrom(c.InOrStdin(), f, args)
		},
	}
	flags := c.Flags()
	flags.StringArrayVarP(&f.files, "filename", "f", nil, "a `file` of istio-csr's values, or its Deployment; - for standard input")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "istio-csr's own `namespace`; default that of its Deployment, or else "+istioCSRNamespace)
	flags.StringVar(&f.below, "below", "", "take the values below this `key`, where istio-csr is a part of another chart")
	flags.StringVarP(&f.output, "output", "o", outputValues, "`what` to print: values or report")
	flags.BoolVar(&f.skipUnknown, "skip-unknown", false, "leave out settings that istio-csr doesn't know, and tell of them")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputValues, outputReport}, cobra.ShellCompDirectiveNoFileComp))
	// Those that say how to reach Signet mean nothing here.
	c.SetUsageTemplate(strings.Replace(c.UsageTemplate(), "{{if .HasAvailableInheritedFlags}}", "{{if false}}", 1))
	return c
}

func (p *program) migrateFrom(in io.Reader, f migrateFlags, args []string) error {
	var documents []document
	stdin := false
	for _, file := range f.files {
		if file == "-" {
			if stdin {
				return usage("--filename -: standard input can be read once")
			}
			stdin = true
		}
		read, err := readDocuments(file, in)
		if err != nil {
			return usage("%w", err)
		}
		if len(read) == 0 {
			// No values at all are all of istio-csr's defaults.
			read = []document{{file: file, object: map[string]any{}}}
		}
		documents = append(documents, read...)
	}
	csr, err := readIstioCSR(documents, args, f.namespace, f.below)
	if err != nil {
		return usage("%w", err)
	}
	if len(csr.unknown) > 0 && !f.skipUnknown {
		return &failure{
			code: exitUsage,
			err:  fmt.Errorf("istio-csr %s doesn't know %s", istioCSRVersion, strings.Join(csr.unknown, ", ")),
			hint: "correct what is mistyped; what is of another version or chart is left out, and told of, by --skip-unknown",
		}
	}
	m, problems := migrate(csr)
	if len(problems) > 0 {
		return usage("%s", strings.Join(problems, "; "))
	}
	command := p.name + " migrate istio-csr"
	for _, file := range f.files {
		command += " -f " + file
	}
	if f.namespace != "" {
		command += " -n " + f.namespace
	}
	if f.below != "" {
		command += " --below " + f.below
	}
	if f.skipUnknown {
		command += " --skip-unknown"
	}
	if len(args) > 0 {
		command += " -- …" // a token may be among them
	}
	if f.output == outputReport {
		return m.writeReport(p.out, false, "")
	}
	if err := m.writeValues(p.out, command); err != nil {
		return err
	}
	return m.writeReport(p.err, true, "-o report")
}
