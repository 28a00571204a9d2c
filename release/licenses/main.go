// Licenses writes the licenses of all that is linked into Go binaries to standard output: those of each module, of Go's
// standard library, and of this project.
//
// Usage:
//
//	licenses BINARY...
//
// The modules are those that the Go toolchain recorded in the binaries; their texts come from the module cache, where the
// build had them from. Files with the same text are written once. A module without any is an error. The same binaries give
// the same bytes.
package main

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("licenses", flag.ContinueOnError)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("a binary must be given")
	}
	places, err := goEnv(ctx, "GOMODCACHE", "GOROOT", "GOMOD")
	if err != nil {
		return err
	}
	linked := map[module]bool{}
	for _, binary := range flags.Args() {
		modules, err := modulesOf(binary, places)
		if err != nil {
			return err
		}
		for _, m := range modules {
			linked[m] = true
		}
	}
	texts, err := collect(linked)
	if err != nil {
		return err
	}
	for _, t := range texts {
		if _, err := fmt.Fprintf(out, "%s\n%s\n\n%s\n\n", ruler, strings.Join(t.of, "\n"), t.text); err != nil {
			return err
		}
	}
	return nil
}

const ruler = "================================================================================"

// goEnv asks the Go command where things are.
func goEnv(ctx context.Context, names ...string) (map[string]string, error) {
	out, err := exec.CommandContext(ctx, "go", append([]string{"env"}, names...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("ask go env %s: %w", strings.Join(names, " "), err)
	}
	values := map[string]string{}
	for n, line := range strings.SplitN(strings.TrimSuffix(string(out), "\n"), "\n", len(names)) {
		values[names[n]] = strings.TrimSpace(line)
	}
	return values, nil
}

// module is where the files of something linked are.
type module struct {
	name  string // with its version
	dir   string
	whole bool // the directories below are searched too, because code of others may lie there
}

// modulesOf are what is linked into a binary. This project's own files are where go.mod is, those of replaced modules where
// the replacement is.
func modulesOf(binary string, places map[string]string) ([]module, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, fmt.Errorf("read the build information of %s: %w", binary, err)
	}
	goVersion, _, _ := strings.Cut(info.GoVersion, " ")
	modules := []module{
		{name: info.Main.Path, dir: filepath.Dir(places["GOMOD"])},
		{name: "Go's standard library, " + goVersion, dir: places["GOROOT"]},
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		dir := escape(m.Path) + "@" + escape(m.Version)
		modules = append(modules, module{m.Path + " " + m.Version, filepath.Join(places["GOMODCACHE"], filepath.FromSlash(dir)), true})
	}
	return modules, nil
}

// escape is how the module cache writes capitals: https://go.dev/ref/mod#goproxy-protocol.
func escape(text string) string {
	var escaped strings.Builder
	for _, r := range text {
		if unicode.IsUpper(r) {
			escaped.WriteByte('!')
		}
		escaped.WriteRune(unicode.ToLower(r))
	}
	return escaped.String()
}

// text is that of one or several files.
type text struct {
	of   []string // module and file, sorted
	text string
}

var licenseFile = regexp.MustCompile(`(?i)^(licen[cs]e(-[^.]*)?|copying|copyright|notice|patents)(\.[^.]+)?$`)

// collect reads the texts, ordered by the first that has each.
func collect(linked map[module]bool) ([]text, error) {
	files := map[string][]string{} // by text
	for m := range linked {
		own, err := m.licenses()
		if err != nil {
			return nil, fmt.Errorf("look for licenses of %s: %w", m.name, err)
		}
		if len(own) == 0 {
			return nil, fmt.Errorf("%s has no license in %s", m.name, m.dir)
		}
		for file, content := range own {
			files[content] = append(files[content], m.name+": "+file)
		}
	}
	var texts []text
	for content, of := range files {
		slices.Sort(of)
		texts = append(texts, text{of, content})
	}
	slices.SortFunc(texts, func(a, b text) int { return cmp.Compare(a.of[0], b.of[0]) })
	return texts, nil
}

// licenses are the texts of a module's files, by their names. Directories have some of their own where code came from
// elsewhere.
func (m module) licenses() (map[string]string, error) {
	texts := map[string]string{}
	files := os.DirFS(m.dir)
	err := fs.WalkDir(files, ".", func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && file != "." && (!m.whole || entry.Name() == "testdata" || entry.Name() == "vendor"):
			return fs.SkipDir
		case !entry.Type().IsRegular() || !licenseFile.MatchString(entry.Name()) || path.Ext(file) == ".go":
			return nil
		}
		content, err := fs.ReadFile(files, file)
		if err != nil {
			return err
		}
		texts[file] = strings.TrimSpace(strings.ReplaceAll(string(content), "\r\n", "\n"))
		return nil
	})
	return texts, err
}
