package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestDocumentLinks: what a document links to within the repository is there, down to the heading.
func TestDocumentLinks(t *testing.T) {
	root := filepath.Join("..", "..")
	documents, links := 0, 0
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || path == filepath.Join(root, "bin")):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		documents++
		for _, link := range linksOf(string(text)) {
			links++
			assert.NoError(t, follow(root, path, link), path)
		}
		return nil
	}))
	require.Greater(t, documents, 5)
	require.Greater(t, links, 50)
}

func TestFollow(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(root, "docs"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(root, "main.go"), nil, 0o600))
	document := filepath.Join(root, "docs", "a.md")
	require.NoError(t, os.WriteFile(document, []byte("# One `ca.token` & [more](b.md), *so*!\n## Twice\n<a id=\"by-hand\"></a>\n```\n## Code\n```\n## Twice\n"), 0o600))
	for link, wrong := range map[string]string{
		"#one-catoken--more-so":  "",
		"#twice":                 "",
		"#twice-1":               "",
		"#by-hand":               "",
		"a.md#twice":             "",
		"../main.go":             "",
		"../docs":                "",
		"https://example.org/#x": "",
		"#twice-2":               "no heading",
		"#code":                  "no heading",
		"b.md":                   "no such file",
		ours + "docs/a.md#twice": "",
		ours + "docs/a.md#code":  "no heading",
		ours + "a.md":            "no such file",
		"../main.go#L3":          "not a document",
		"../../main.go":          "leaves the repository",
		"/docs/a.md":             "leaves the repository",
	} {
		err := follow(root, document, link)
		if wrong == "" {
			assert.NoError(t, err)
		} else {
			assert.ErrorContains(t, err, wrong)
		}
	}
	assert.Equal(t, []string{"a", "b.md#c", "d", "e"},
		linksOf("[x](a) and `[no](code)` [`y`](b.md#c \"title\")\n```sh\n[no](fenced)\n```\n![z](d)\n\n[ref]: e\n"))
}

var (
	fenced     = regexp.MustCompile("(?ms)^ *```.*?\n *```[ \t]*$")
	spans      = regexp.MustCompile("`[^`\n]*`")
	inlineLink = regexp.MustCompile(`\]\(([^()\s]+)(?:\s+"[^"]*")?\)|(?m)^ *\[[^\]]+\]: +(\S+)`)
	linkText   = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	heading    = regexp.MustCompile(`(?m)^#{1,6} +(.*?) *#*$`)
	anchor     = regexp.MustCompile(`<a +(?:id|name)="([^"]+)"`)
)

// linksOf are the targets of the links of a Markdown document, outside of code.
func linksOf(text string) []string {
	var links []string
	text = spans.ReplaceAllString(fenced.ReplaceAllString(text, ""), "code")
	for _, found := range inlineLink.FindAllStringSubmatch(text, -1) {
		links = append(links, found[1]+found[2])
	}
	return links
}

// ours is where the repository's files are, for documents that are read elsewhere too, as the chart's is.
const ours = "https://github.com/signet-ca/signet/blob/main/"

// follow says what is wrong with a link of a document; links to other sites are not looked at.
func follow(root, document, link string) error {
	if path, ok := strings.CutPrefix(link, ours); ok {
		document, link = filepath.Join(root, "document"), path
	}
	if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
		return nil
	}
	path, fragment, _ := strings.Cut(link, "#")
	target := document
	if path != "" {
		target = filepath.Join(filepath.Dir(document), filepath.FromSlash(path))
		if inside, err := filepath.Rel(root, target); err != nil || strings.HasPrefix(path, "/") || !filepath.IsLocal(inside) {
			return fmt.Errorf("link %s leaves the repository", link)
		}
		if _, err := os.Stat(target); err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
	}
	if fragment == "" {
		return nil
	}
	if filepath.Ext(target) != ".md" {
		return fmt.Errorf("link %s has a fragment, but leads to what is not a document", link)
	}
	text, err := os.ReadFile(target)
	if err != nil {
		return err
	}
	if !anchors(string(text))[fragment] {
		return fmt.Errorf("link %s: there is no heading for #%s", link, fragment)
	}
	return nil
}

// anchors are the fragments that lead into a document: those made of headings, as GitHub makes them, and its own.
func anchors(text string) map[string]bool {
	text = fenced.ReplaceAllString(text, "")
	there := make(map[string]bool)
	for _, found := range heading.FindAllStringSubmatch(text, -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, linkText.ReplaceAllString(found[1], "$1"))
		unique := name
		for n := 1; there[unique]; n++ {
			unique = fmt.Sprintf("%s-%d", name, n)
		}
		there[unique] = true
	}
	for _, found := range anchor.FindAllStringSubmatch(text, -1) {
		there[found[1]] = true
	}
	return there
}
