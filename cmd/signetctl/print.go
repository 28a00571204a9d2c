package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/duration"
)

// Formats of -o.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatName  = "name"
)

var formats = []string{formatTable, formatWide, formatJSON, formatYAML, formatName}

// asTable says whether -o is for people.
func (p *program) asTable() bool { return p.output == formatTable || p.output == formatWide }

// writeValue writes value as JSON or YAML.
func writeValue(out io.Writer, format string, value any) error {
	text, err := encodeJSON(value, "  ")
	if err != nil {
		return err
	}
	if format == formatYAML {
		if text, err = asYAML(text); err != nil {
			return err
		}
	} else {
		text = cleanJSON(text, true)
	}
	_, err = out.Write(text)
	return err
}

// encodeJSON ends with a new line.
func encodeJSON(value any, indent string) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", indent)
	if err := encoder.Encode(value); err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return text.Bytes(), nil
}

// asYAML turns JSON into YAML of the same order.
func asYAML(text []byte) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(cleanJSON(text, false), &document); err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	restyle(&document)
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(&document); err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return cleanWith(out.Bytes(), func(r rune) string {
		if r > 0xffff {
			return fmt.Sprintf(`\U%08x`, r)
		}
		return fmt.Sprintf(`\u%04x`, r)
	}), nil
}

// restyle writes a document of JSON as YAML is written by hand. What some reader may take for something else than a text
// stays in quotes, as do odd characters, which can be written as escapes there.
func restyle(node *yaml.Node) {
	switch {
	case node.Kind == yaml.ScalarNode && node.Tag == "!!str":
		switch {
		case strings.ContainsFunc(node.Value, func(r rune) bool { return odd(r) && r != '\n' }) || !plain.MatchString(node.Value) || oldBool.MatchString(node.Value):
			node.Style = yaml.DoubleQuotedStyle
		case strings.Contains(node.Value, "\n"):
			node.Style = yaml.LiteralStyle
		default:
			node.Style = 0
		}
	case len(node.Content) > 0:
		node.Style = 0
	}
	for _, below := range node.Content {
		restyle(below)
	}
}

var (
	plain   = regexp.MustCompile(`^(?:[A-Za-z]|-----BEGIN )`)
	oldBool = regexp.MustCompile(`^(?i:y|yes|on|n|no|off)$`) // of YAML 1.1
)

// column is a column of a table.
type column[T any] struct {
	title string
	wide  bool // only with -o wide
	value func(*T) string
}

// table writes rows below titles. Columns are as wide as what was written so far, so that rows may come later.
type table[T any] struct {
	out     io.Writer
	columns []column[T]
	widths  []int
}

func newTable[T any](out io.Writer, format string, columns []column[T]) *table[T] {
	columns = slices.DeleteFunc(columns, func(c column[T]) bool { return c.wide && format != formatWide })
	return &table[T]{out: out, columns: columns}
}

// write adds rows.
func (t *table[T]) write(rows []T) error {
	var lines [][]string
	if t.widths == nil {
		titles := make([]string, len(t.columns))
		for i, c := range t.columns {
			titles[i] = c.title
		}
		lines = append(lines, titles)
		t.widths = make([]int, len(t.columns))
	}
	for n := range rows {
		cells := make([]string, len(t.columns))
		for i, c := range t.columns {
			if cells[i] = clean(c.value(&rows[n])); cells[i] == "" {
				cells[i] = "-"
			}
		}
		lines = append(lines, cells)
	}
	for _, cells := range lines {
		for i, cell := range cells {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	var text strings.Builder
	for _, cells := range lines {
		var line strings.Builder
		for i, cell := range cells {
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cell)+3))
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(t.out, text.String())
	return err
}

// facts writes names with what they are, one in each line. Those without a value are left out.
func facts(out io.Writer, indent string, pairs ...string) error {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			width = max(width, len(pairs[i]))
		}
	}
	var text strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(&text, "%s%-*s  %s\n", indent, width+1, pairs[i]+":", clean(pairs[i+1]))
		}
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// relative says how far a time is from now, as in 11h, 5h3m or 40s; empty for no time.
func relative(at, now time.Time) string {
	switch d := at.Sub(now); {
	case at.IsZero():
		return ""
	case d >= 0:
		return "in " + duration.HumanDuration(d)
	default:
		return duration.HumanDuration(-d) + " ago"
	}
}

// stamp is a time for people who compare.
func stamp(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}

// both is stamp with relative.
func both(at, now time.Time) string {
	if at.IsZero() {
		return ""
	}
	return stamp(at) + " (" + relative(at, now) + ")"
}

// barCells is the length of a bar.
const barCells = 10

// bar shows a part of 1, as in #####----- 52%.
func bar(part float64) string {
	if !(part > 0) { // not a number is nothing too
		part = 0
	}
	part = min(part, 1)
	full := int(part*barCells + 0.5)
	return strings.Repeat("#", full) + strings.Repeat("-", barCells-full) + fmt.Sprintf(" %d%%", int(part*100))
}
