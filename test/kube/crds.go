package main

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// definitions holds crds/*.yaml. The directory is empty in the source tree, for nothing of
// cert-manager's is copied there: build.sh lays the files of the module over it while it builds.
//
//go:embed crds
var definitions embed.FS

// printCRDs writes the CustomResourceDefinitions of cert-manager to w, as YAML documents that each
// begin with a separator.
func printCRDs(w io.Writer) error {
	names, err := fs.Glob(definitions, "crds/*.yaml")
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return errors.New("built without definitions: build with build.sh (make bin)")
	}
	for _, name := range names {
		text, err := definitions.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if !strings.HasPrefix(string(text), "---\n") {
			fmt.Fprintln(w, "---")
		}
		if _, err := w.Write(text); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}
