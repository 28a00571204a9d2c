// Sbom writes the software bill of materials of a Go binary, as CycloneDX 1.6 JSON, to standard output.
//
// Usage:
//
//	sbom -name NAME -version VERSION -commit COMMIT -date DATE BINARY
//
// It tells what the Go toolchain put into the binary: every module that was linked, with its version and the checksum of
// go.sum, and the version of Go itself. Licenses are left out, because a binary doesn't know them. The same binary and
// arguments give the same bytes.
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("sbom", flag.ContinueOnError)
	var of subject
	flags.StringVar(&of.name, "name", "", "the `name` of the command")
	flags.StringVar(&of.version, "version", "devel", "its `version`")
	flags.StringVar(&of.commit, "commit", "", "the `commit` that it was built from")
	flags.StringVar(&of.date, "date", "", "the `time` of the commit, RFC 3339")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || of.name == "" {
		return errors.New("a name and one binary must be given")
	}
	binary, err := os.ReadFile(flags.Arg(0))
	if err != nil {
		return fmt.Errorf("read the binary: %w", err)
	}
	sum := sha256.Sum256(binary)
	of.sha256 = hex.EncodeToString(sum[:])
	info, err := buildinfo.Read(bytes.NewReader(binary))
	if err != nil {
		return fmt.Errorf("read the build information of %s: %w", flags.Arg(0), err)
	}
	text, err := json.MarshalIndent(describe(of, info), "", "  ")
	if err != nil {
		return err
	}
	_, err = out.Write(append(text, '\n'))
	return err
}

// subject is the binary that is described.
type subject struct {
	name, version, commit, date string
	sha256                      string // hexadecimal
}

// The parts of CycloneDX 1.6 that are used: https://cyclonedx.org/docs/1.6/json/.
type (
	bom struct {
		Format       string       `json:"bomFormat"`
		SpecVersion  string       `json:"specVersion"`
		SerialNumber string       `json:"serialNumber"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Timestamp string    `json:"timestamp,omitempty"`
		Component component `json:"component"`
	}
	component struct {
		Ref        string     `json:"bom-ref"`
		Type       string     `json:"type"`
		Name       string     `json:"name"`
		Version    string     `json:"version,omitempty"`
		Scope      string     `json:"scope,omitempty"`
		Hashes     []hash     `json:"hashes,omitempty"`
		PURL       string     `json:"purl"`
		Properties []property `json:"properties,omitempty"`
	}
	hash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn,omitempty"`
	}
)

// describe is the bill of materials of a binary.
func describe(of subject, info *debug.BuildInfo) bom {
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	main := component{
		Type: "application", Name: of.name, Version: of.version,
		Hashes: []hash{{"SHA-256", of.sha256}},
		PURL:   purl(info.Main.Path, of.version) + "#" + strings.TrimPrefix(strings.TrimPrefix(info.Path, info.Main.Path), "/"),
	}
	main.Ref = main.PURL
	for _, p := range []property{
		{"signet:commit", of.commit}, {"signet:goos", settings["GOOS"]}, {"signet:goarch", settings["GOARCH"]},
	} {
		if p.Value != "" {
			main.Properties = append(main.Properties, p)
		}
	}
	goVersion, _, _ := strings.Cut(strings.TrimPrefix(info.GoVersion, "go"), " ")
	all := []component{library("std", goVersion, "")}
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		all = append(all, library(module.Path, module.Version, module.Sum))
	}
	slices.SortFunc(all, func(a, b component) int { return strings.Compare(a.PURL, b.PURL) })
	uses := dependency{Ref: main.Ref}
	for _, c := range all {
		uses.DependsOn = append(uses.DependsOn, c.Ref)
	}
	return bom{
		Format: "CycloneDX", SpecVersion: "1.6", Version: 1,
		SerialNumber: serialNumber(of),
		Metadata:     metadata{Timestamp: of.date, Component: main},
		Components:   all,
		Dependencies: []dependency{uses},
	}
}

// library is a module that was linked; sum is go.sum's.
func library(path, version, sum string) component {
	c := component{Type: "library", Name: path, Version: version, Scope: "required", PURL: purl(path, version)}
	c.Ref = c.PURL
	if sum != "" {
		c.Properties = []property{{"signet:go.sum", sum}}
	}
	return c
}

// purl is a package URL of type golang: https://github.com/package-url/purl-spec. Its paths are in lower case.
func purl(path, version string) string {
	if version == "" {
		return "pkg:golang/" + strings.ToLower(path)
	}
	return "pkg:golang/" + strings.ToLower(path) + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// serialNumber is a UUID (RFC 9562 §5.8) that is the same for the same binary.
func serialNumber(of subject) string {
	id := sha256.Sum256([]byte(strings.Join([]string{of.name, of.version, of.commit, of.sha256}, "\n")))
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[0:4], id[4:6], id[6:8], id[8:10], id[10:16])
}
