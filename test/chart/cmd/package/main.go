// Package lints the chart with Helm's own rules and packs it, as `helm lint --strict` and `helm package` do.
//
// Usage:
//
//	package --values FILE --out DIR [--date TIME]
//
// FILE are values to lint with, because the chart has to be told an issuer and the roots. With TIME, in RFC 3339, as that of
// all files, the same chart gives the same archive. It prints the archive's path.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"

	"github.com/signet-ca/signet/test/chart"
)

func main() {
	values := flag.String("values", "", "values to lint with")
	out := flag.String("out", "", "the directory of the archive")
	date := flag.String("date", "", "the time of all files in it, RFC 3339; theirs by default")
	flag.Parse()
	if err := run(*values, *out, *date); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(valuesPath, out, date string) error {
	if valuesPath == "" || out == "" {
		return errors.New("--values and --out must be set")
	}
	var stamp time.Time
	if date != "" {
		var err error
		if stamp, err = time.Parse(time.RFC3339, date); err != nil {
			return fmt.Errorf("read --date: %w", err)
		}
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
	if !stamp.IsZero() {
		loaded.StampModTimes(stamp)
	}
	path, err := chartutil.Save(loaded, out)
	if err != nil {
		return fmt.Errorf("pack chart: %w", err)
	}
	fmt.Println(path)
	return nil
}
