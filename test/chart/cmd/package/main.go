// Package lints the chart with Helm's own rules and packs it, as `helm lint --strict` and `helm package` do.
//
// Usage:
//
//	package --values FILE --out DIR
//
// FILE are values to lint with, because the chart has to be told an issuer and the roots. It prints the path of the archive.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"

	"github.com/signet-ca/signet/test/chart"
)

func main() {
	values := flag.String("values", "", "values to lint with")
	out := flag.String("out", "", "the directory of the archive")
	flag.Parse()
	if err := run(*values, *out); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(valuesPath, out string) error {
	if valuesPath == "" || out == "" {
		return errors.New("--values and --out must be set")
	}
	values, err := chart.ReadValues(valuesPath)
	if err != nil {
		return err
	}
	dir, err := chart.Dir()
	if err != nil {
		return err
	}
	kubernetes, err := common.ParseKubeVersion(chart.KubeVersion)
	if err != nil {
		return fmt.Errorf("parse version of Kubernetes: %w", err)
	}
	linter := lint.RunAll(dir, values, "istio-system", lint.WithKubeVersion(kubernetes))
	var problems []error
	for _, message := range linter.Messages {
		if message.Severity >= support.WarningSev {
			problems = append(problems, message)
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("lint chart: %w", errors.Join(problems...))
	}
	loaded, err := chart.Load()
	if err != nil {
		return err
	}
	path, err := chartutil.Save(loaded, out)
	if err != nil {
		return fmt.Errorf("pack chart: %w", err)
	}
	fmt.Println(path)
	return nil
}
