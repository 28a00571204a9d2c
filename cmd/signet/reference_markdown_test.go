package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

const introduction = `# Configuration

<!-- Generated from the comments of type Config: go test ./cmd/signet -run TestReference -update -->

Signet reads one YAML file, named by ` + "`--config`" + `, when it starts; a change needs a restart. The Helm chart writes the
file from its value ` + "`config`" + `, verbatim, and checks it with a JSON schema of the same settings. Every field must be known,
and none may stand twice. What is wrong ends the start with exit code 2, and each problem names the setting by its path
and says what would be right.

A setting that is left out, null or empty has its default. Of the values:

- a **duration** is a number and a unit, or several of them: ` + "`500ms`, `90s`, `1h30m`, `24h`" + `. The units are ` + "`ns`, `us`,\n  `ms`, `s`, `m` and `h`" + `; there are no days, and a number alone is refused.
- an address to **listen** on is ` + "`HOST:PORT`, or `:PORT`" + ` for all addresses of the pod.
- a **list** or a **map** that is set takes the place of the default; nothing is added to it.
- ` + "`[]`" + ` in a path stands for each entry of a list.

The least that a file holds:

%s
A larger one, for a mesh with ztunnel and two clusters, whose records go to PostgreSQL:

%s
## Contents

%s`

// markdown is the whole of docs/configuration.md.
func (d *described) markdown(t *testing.T) string {
	paths := map[string]bool{}
	d.each(func(f *described) {
		paths[strings.ReplaceAll(f.path, "[]", "")] = true
		paths[f.name] = true
	})
	m := &markdown{paths: paths}
	var contents strings.Builder
	plain := &described{}
	for _, field := range d.fields {
		if !field.group() {
			plain.fields = append(plain.fields, field)
		}
	}
	fmt.Fprintf(&contents, "- [Names](#names)\n")
	fmt.Fprintf(&m.text, "\n## Names\n\n")
	m.list(plain.fields)
	for _, field := range d.fields {
		if field.group() {
			fmt.Fprintf(&contents, "- [%s](#%s): %s\n", field.name, strings.ToLower(field.name), m.format(lowerFirst(inShort(field.about(withoutStanding(field.comment))))))
			m.section(field, 2)
		}
	}
	return fmt.Sprintf(introduction, example(t, "minimal.yaml"), example(t, "production.yaml"), contents.String()) + m.text.String()
}

func example(t *testing.T, name string) string {
	text, err := os.ReadFile(filepath.Join("testdata", "example", name))
	require.NoError(t, err)
	return "```yaml\n" + string(text) + "```\n"
}

// markdown writes the sections.
type markdown struct {
	text  strings.Builder
	paths map[string]bool // of all settings, and the last part of each
}

// section writes a group under a heading of its own: first its plain settings and small groups, then the larger ones.
func (m *markdown) section(d *described, level int) {
	fmt.Fprintf(&m.text, "\n%s %s\n\n", strings.Repeat("#", level), d.path)
	for _, paragraph := range strings.Split(d.aboutGroup(), "\n\n") {
		fmt.Fprintf(&m.text, "%s\n\n", wrap(m.format(paragraph), ""))
	}
	var inline, apart []*described
	for _, field := range d.fields {
		if field.group() && (level == 2 && len(field.fields) > 2 || hasGroups(field)) {
			apart = append(apart, field)
		} else {
			inline = append(inline, field)
		}
	}
	m.list(inline)
	for _, field := range apart {
		m.section(field, level+1)
	}
}

func hasGroups(d *described) bool {
	for _, field := range d.fields {
		if field.group() {
			return true
		}
	}
	return false
}

// list writes settings, and the small groups among them followed by what is in them.
func (m *markdown) list(fields []*described) {
	for _, d := range fields {
		about := d.about(withoutStanding(d.comment))
		if d.group() {
			about = d.aboutGroup()
		}
		fmt.Fprintf(&m.text, "%s\n", wrap("- **`"+d.path+"`** ("+d.facts(m)+"): "+m.format(strings.ReplaceAll(about, "\n\n", " ")), "  "))
		m.list(d.fields)
	}
}

// facts are the type of a setting, its bounds, and what holds where it isn't set.
func (d *described) facts(m *markdown) string {
	facts := d.kind()
	switch {
	case len(d.values) > 0 && d.typ.Kind() == reflect.Slice:
		facts += " of `" + strings.Join(d.values, "`, `") + "`"
	case len(d.values) > 0:
		facts = "`" + strings.Join(d.values, "`, `") + "`"
	case d.typ.Kind() == reflect.Slice:
		facts += " of texts"
	case d.most != "":
		facts += ", " + d.least + " to " + d.most
	}
	standing, isDefault := defaultOf(d.comment)
	standing = regexp.MustCompile(`[,;]? (at most|at least|between) .*`).ReplaceAllString(standing, "")
	switch {
	case required.MatchString(d.comment):
		return facts + "; required"
	case isDefault:
		first, rest, more := strings.Cut(standing, " ")
		value := strings.TrimRight(first, ",:;")
		if !slices.Contains([]string{"none", "any", "all"}, value) && (!more || literal.MatchString(value) || slices.Contains(d.values, value)) {
			return facts + "; default `" + value + "`" + m.format(strings.TrimSuffix(strings.TrimPrefix(first, value)+" "+rest, " "))
		}
		return facts + "; default " + m.format(standing)
	case d.group() && !d.list:
		return facts
	}
	return facts + "; optional"
}

func (d *described) kind() string {
	switch {
	case d.list:
		return "list"
	case d.group():
		return "group"
	case d.typ == reflect.TypeFor[setting.Duration]():
		return "duration"
	}
	switch d.typ.Kind() {
	case reflect.Int:
		return "whole number"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "map of texts"
	}
	return "text"
}

var (
	required = regexp.MustCompile(`(?:^|\. |\n)Required(?:\.|$)`)
	optional = regexp.MustCompile(`(?:^|\. |\n)Optional(?:\.|:|$)`)
	// A default is a sentence of its own.
	standard = regexp.MustCompile(`(?:\.\s)Default:? (.+?)\.(?:\s|$)`)
	// Rules of the protocol are known to programmers.
	clause = regexp.MustCompile(` \(R\d+[R\d, to]*\)`)
)

// literal is a number, a duration, or what is true or false.
var literal = regexp.MustCompile(`^([0-9]+(ms|s|m|h)?|true|false)$`)

// defaultOf is what a comment says of the default, without its full stop.
func defaultOf(comment string) (string, bool) {
	match := standard.FindStringSubmatch(strings.ReplaceAll(comment, "\n", " "))
	if match == nil {
		return "", false
	}
	return match[1], true
}

// withoutStanding is the comment without the sentence on its default, which the facts have.
func withoutStanding(comment string) string {
	comment = strings.TrimSpace(strings.ReplaceAll(comment, "\n", " "))
	for _, sentence := range []*regexp.Regexp{standard, required, regexp.MustCompile(`(?:^|\. )Optional\.`)} {
		comment = sentence.ReplaceAllStringFunc(comment, func(found string) string {
			if strings.HasPrefix(found, ".") {
				return ". "
			}
			return ""
		})
	}
	return strings.TrimSpace(strings.ReplaceAll(comment, "  ", " "))
}

// about is a comment for those who read no Go: paragraphs, in which the setting has its name in the file.
func (d *described) about(comment string) string {
	comment = clause.ReplaceAllString(strings.TrimSpace(comment), "")
	var paragraphs []string
	for _, paragraph := range strings.Split(comment, "\n\n") {
		paragraphs = append(paragraphs, strings.Join(strings.Fields(paragraph), " "))
	}
	comment = strings.Join(paragraphs, "\n\n")
	verb, object := "", ""
	if rest, ok := strings.CutPrefix(comment, d.goName+" "); ok {
		verb, object, _ = strings.Cut(rest, " ")
		word, _, _ := strings.Cut(object, " ")
		switch {
		case verb == "are", verb == "is" && (strings.HasSuffix(word, "'s") || slices.Contains(articles, strings.Trim(word, ","))):
			comment = strings.ToUpper(object[:1]) + object[1:]
		case (verb == "of" || verb == "that") && d.goName[:1]+strings.ToLower(d.goName[1:]) == d.goName:
			// it is a word of the sentence
		default:
			comment = "`" + d.name + "` " + rest
		}
	}
	return humps.ReplaceAllStringFunc(comment, func(word string) string {
		if name, ok := d.beside[word]; ok && !slices.Contains(kinds, word) {
			return "`" + name + "`"
		}
		return word
	})
}

// aboutGroup is the comment of the field, and what the comment of its type says after its first sentence.
func (d *described) aboutGroup() string {
	about := d.about(withoutStanding(d.comment))
	all := d.about(d.more)
	more := strings.TrimPrefix(all, firstSentence(all))
	if strings.HasPrefix(more, "\n") {
		return about + "\n\n" + strings.TrimSpace(more)
	}
	return strings.TrimSpace(about + " " + strings.TrimSpace(more))
}

// plain is the comment for a reader without Markdown.
func (d *described) plain() string {
	if d.group() {
		return strings.ReplaceAll(d.aboutGroup(), "`", "")
	}
	return strings.ReplaceAll(strings.ReplaceAll(d.about(d.comment), "\n\n", " "), "`", "")
}

// articles begin what says by itself what a setting is.
var articles = []string{"the", "a", "an", "how", "what", "where", "who", "whether", "for", "those", "which", "by", "its"}

// kinds are objects of Kubernetes that have the names of fields.
var kinds = []string{"ConfigMap", "ClusterTrustBundle"}

// humps is what may be the name of another field in a comment, and is no word of a sentence.
var humps = regexp.MustCompile(`\b[A-Z]+[a-z]+[A-Z]+\w*\b`)

var endOfSentence = regexp.MustCompile(`[^.][^.]\.(?: [A-Z]|\n|$)`)

func firstSentence(text string) string {
	at := endOfSentence.FindStringIndex(text)
	if at == nil {
		return text
	}
	return text[:at[0]+3]
}

// inShort is what a text says before it explains.
func inShort(text string) string {
	text, _, _ = strings.Cut(firstSentence(text), ": ")
	text, _, _ = strings.Cut(text, "; ")
	return text
}

func lowerFirst(text string) string {
	text = strings.TrimSuffix(text, ".")
	if strings.HasPrefix(text, "Signet") {
		return text
	}
	if len(text) > 1 && text[1] >= 'a' && text[1] <= 'z' || strings.HasPrefix(text, "A ") {
		return strings.ToLower(text[:1]) + text[1:]
	}
	return text
}

var (
	codeSpan = regexp.MustCompile("`[^`]*`")
	dotted   = regexp.MustCompile(`[A-Za-z]+(?:\.[A-Za-z]+)+|\b[a-z]+[A-Z][A-Za-z]*\b`)
)

// format makes Markdown of plain text: the paths of settings become code, and nothing becomes HTML.
func (m *markdown) format(text string) string {
	var out strings.Builder
	outside := func(part string) {
		part = dotted.ReplaceAllStringFunc(part, func(path string) string {
			if m.paths[path] {
				return "`" + path + "`"
			}
			return path
		})
		out.WriteString(strings.NewReplacer("<", "&lt;", ">", "&gt;", "*", `\*`).Replace(part))
	}
	for text != "" {
		at := codeSpan.FindStringIndex(text)
		if at == nil {
			outside(text)
			break
		}
		outside(text[:at[0]])
		out.WriteString(text[at[0]:at[1]])
		text = text[at[1]:]
	}
	return out.String()
}

// wrap breaks text into lines of at most 120 characters, those after the first begin with indent.
func wrap(text, indent string) string {
	var out strings.Builder
	width := 0
	for n, word := range strings.Fields(text) {
		switch {
		case n == 0:
		case width+1+len(word) > 120:
			out.WriteString("\n" + indent)
			width = len(indent)
		default:
			out.WriteString(" ")
			width++
		}
		out.WriteString(word)
		width += len(word)
	}
	return out.String()
}
