package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
)

// valuesTree is YAML that keeps the order in which its values were set. The zero value is empty.
type valuesTree struct{ top yamlv3.Node }

// set puts a value at a path such as config.roots.file, with a comment behind it where that isn't empty.
func (v *valuesTree) set(path string, value any, comment string) {
	if v.top.Kind == 0 {
		v.top.Kind = yamlv3.MappingNode
	}
	at := &v.top
	for name := range strings.SplitSeq(path, ".") {
		at = child(at, name)
	}
	*at = yamlv3.Node{}
	if err := at.Encode(value); err != nil {
		panic(fmt.Sprintf("%s: %v", path, err)) // a value that came from YAML goes back into it
	}
	if comment != "" {
		if at.Kind == yamlv3.ScalarNode || len(at.Content) == 0 {
			at.LineComment = comment
		} else {
			keyAt(&v.top, path).HeadComment = comment
		}
	}
	if at.Kind == yamlv3.SequenceNode && !slices.ContainsFunc(at.Content, func(n *yamlv3.Node) bool { return n.Kind != yamlv3.ScalarNode }) {
		at.Style = yamlv3.FlowStyle
	}
}

// drop takes the value at a path away.
func (v *valuesTree) drop(path string) {
	at := &v.top
	names := strings.Split(path, ".")
	for _, name := range names[:len(names)-1] {
		at = child(at, name)
	}
	for n := 0; n < len(at.Content); n += 2 {
		if at.Content[n].Value == names[len(names)-1] {
			at.Content = slices.Delete(at.Content, n, n+2)
			return
		}
	}
}

// child is the value under a name, which is made where there is none.
func child(at *yamlv3.Node, name string) *yamlv3.Node {
	if at.Kind != yamlv3.MappingNode {
		*at = yamlv3.Node{Kind: yamlv3.MappingNode}
	}
	for n := 0; n < len(at.Content); n += 2 {
		if at.Content[n].Value == name {
			return at.Content[n+1]
		}
	}
	key := new(yamlv3.Node)
	key.SetString(name)
	value := &yamlv3.Node{Kind: yamlv3.MappingNode}
	at.Content = append(at.Content, key, value)
	return value
}

// keyAt is the node of the key at a path that was set.
func keyAt(at *yamlv3.Node, path string) *yamlv3.Node {
	head, rest, deeper := strings.Cut(path, ".")
	for n := 0; n < len(at.Content); n += 2 {
		if at.Content[n].Value != head {
			continue
		}
		if !deeper {
			return at.Content[n]
		}
		return keyAt(at.Content[n+1], rest)
	}
	return new(yamlv3.Node)
}

// writeValues writes the values of Signet's chart. Command is what made them.
func (m *migration) writeValues(out io.Writer, command string) error {
	var text bytes.Buffer
	namespace := m.csr.string("certificate-namespace")
	fmt.Fprintf(&text, "# Values of Signet's chart, made of istio-csr's by: %s\n", clean(command))
	text.WriteString("# Read what changes, by the same command with -o report, and then docs/migrate.md. They are for this namespace:\n")
	fmt.Fprintf(&text, "#   helm install signet deploy/chart/signet -n %s -f signet.yaml\n", clean(namespace))
	encoder := yamlv3.NewEncoder(&text)
	encoder.SetIndent(2)
	if err := encoder.Encode(&m.values.top); err != nil {
		return fmt.Errorf("write values: %w", err)
	}
	_, err := out.Write(text.Bytes())
	return err
}

// writeReport writes what becomes of each setting; with brief only what somebody should know.
func (m *migration) writeReport(out io.Writer, brief bool, more string) error {
	var text bytes.Buffer
	for _, part := range []fate{todo, changes, strange, dropped, carried, same, unset} {
		var rows []migrated
		for _, row := range m.settings {
			if row.fate == part && (!brief || row.given || part != dropped) {
				rows = append(rows, row)
			}
		}
		if len(rows) == 0 || brief && (part == carried || part == same || part == unset) {
			continue
		}
		if text.Len() > 0 {
			text.WriteString("\n")
		}
		fmt.Fprintf(&text, "%s:\n", strings.ToUpper(string(part)))
		for _, row := range rows {
			row.write(&text)
		}
	}
	if brief {
		n := 0
		for _, row := range m.settings {
			if row.fate == carried {
				n++
			}
		}
		fmt.Fprintf(&text, "\n%d settings are carried over; %s lists them\n", n, more)
	}
	_, err := out.Write(text.Bytes())
	return err
}

// reportWidth is where the lines of notes end.
const reportWidth = 110

func (s migrated) write(out *bytes.Buffer) {
	line := "  " + clean(s.name)
	switch {
	case s.value == "":
	case s.given:
		line += ": " + clean(s.value)
	default:
		line += ": " + clean(s.value) + " (default)"
	}
	if s.to != "" {
		line += " -> " + s.to
	}
	out.WriteString(line + "\n")
	at := 0
	for word := range strings.FieldsSeq(clean(s.note)) {
		switch {
		case at == 0:
			out.WriteString("      ")
			at = 6
		case at+1+len(word) > reportWidth:
			out.WriteString("\n      ")
			at = 6
		default:
			out.WriteString(" ")
			at++
		}
		out.WriteString(word)
		at += len(word)
	}
	if at > 0 {
		out.WriteString("\n")
	}
}
