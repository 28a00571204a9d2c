package ca

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// template is text with captures: literals and, in braces, names. As a pattern it matches a whole text, in which each
// capture stands for exactly one DNS label; as an output the captures are filled in.
type template []piece

// piece is a capture, or a literal where name is "".
type piece struct{ literal, name string }

// parseTemplate reads a template, such as system:serviceaccount:{ns}:{sa}.
func parseTemplate(text string) (template, error) {
	var t template
	for rest := text; rest != ""; {
		literal, after, capture := strings.Cut(rest, "{")
		if strings.Contains(literal, "}") {
			return nil, fmt.Errorf("%q has a } without {", text)
		}
		if literal != "" {
			t = append(t, piece{literal: literal})
		}
		if !capture {
			break
		}
		name, remains, closed := strings.Cut(after, "}")
		if !closed {
			return nil, fmt.Errorf("%q has a { without }", text)
		}
		if !isCaptureName(name) {
			return nil, fmt.Errorf("%q has {%s}; a name in braces must be of letters and digits", text, name)
		}
		t = append(t, piece{name: name})
		rest = remains
	}
	return t, nil
}

func isCaptureName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9')
	})
}

// names are those of the captures.
func (t template) names() []string {
	var names []string
	for _, p := range t {
		if p.name != "" {
			names = append(names, p.name)
		}
	}
	return names
}

// checkPattern says why t can't be a pattern. Where a capture ends must never be a matter of choice: what follows it is
// the end, or something that no label has.
func (t template) checkPattern() error {
	if len(t) == 0 {
		return errors.New("it is empty")
	}
	for n, p := range t[1:] {
		if before := t[n]; before.name != "" && (p.name != "" || inLabel(p.literal[0])) {
			return fmt.Errorf("what follows {%s} must not be a letter, a digit, '-' or another capture, or it can't be told where it ends", before.name)
		}
	}
	return nil
}

// inLabel says whether a byte may be part of a DNS label.
func inLabel(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' }

// match adds what the captures stand for to found, and says whether the whole text is as t has it.
func (t template) match(text string, found map[string]string) bool {
	for _, p := range t {
		if p.name == "" {
			var ok bool
			if text, ok = strings.CutPrefix(text, p.literal); !ok {
				return false
			}
			continue
		}
		end := strings.IndexFunc(text, func(c rune) bool { return c > 0x7f || !inLabel(byte(c)) })
		if end < 0 {
			end = len(text)
		}
		if len(validation.IsDNS1123Label(text[:end])) != 0 {
			return false
		}
		found[p.name], text = text[:end], text[end:]
	}
	return text == ""
}

// fill is t with what the captures stand for.
func (t template) fill(found map[string]string) string {
	var b strings.Builder
	for _, p := range t {
		b.WriteString(p.literal)
		b.WriteString(found[p.name])
	}
	return b.String()
}

// mapping makes a service account of the claims of a token.
type mapping struct {
	match                     map[string]template // by claim
	namespace, serviceAccount template
}

// newMapping reads the templates. The error names the field.
func newMapping(match map[string]string, namespace, serviceAccount string) (mapping, error) {
	m := mapping{match: make(map[string]template)}
	if len(match) == 0 {
		return m, errors.New("match: it is empty; at least one claim must be as you say")
	}
	captured := make(map[string]string)
	for _, claim := range slices.Sorted(maps.Keys(match)) {
		pattern, err := parseTemplate(match[claim])
		if err == nil {
			err = pattern.checkPattern()
		}
		if err == nil {
			err = checkClaim(claim)
		}
		if err != nil {
			return m, fmt.Errorf("match[%s]: %w", claim, err)
		}
		for _, name := range pattern.names() {
			if captured[name] != "" {
				return m, fmt.Errorf("match[%s]: {%s} is captured twice", claim, name)
			}
			captured[name] = "a" // which is as good a label as any
		}
		m.match[claim] = pattern
	}
	for _, output := range []struct {
		field, text string
		into        *template
	}{{"namespace", namespace, &m.namespace}, {"serviceAccount", serviceAccount, &m.serviceAccount}} {
		t, err := parseTemplate(output.text)
		if err != nil {
			return m, fmt.Errorf("%s: %w", output.field, err)
		}
		if at := slices.IndexFunc(t.names(), func(name string) bool { return captured[name] == "" }); at >= 0 {
			return m, fmt.Errorf("%s: {%s} is captured by no claim", output.field, t.names()[at])
		}
		*output.into = t
	}
	if ns, name := m.namespace.fill(captured), m.serviceAccount.fill(captured); !isServiceAccount(ns, name) {
		return m, fmt.Errorf("namespace, serviceAccount: %q and %q can't be those of a service account", namespace, serviceAccount)
	}
	return m, nil
}

// checkClaim says why a claim can't be named so: by its name, or as a JSON pointer (RFC 6901).
func checkClaim(claim string) error {
	switch {
	case claim == "" || claim == "/":
		return errors.New("it names no claim")
	case strings.HasPrefix(claim, "/") && strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(claim), "~"):
		return errors.New("it is no JSON pointer: ~ must be written ~0, and / within a name ~1")
	}
	return nil
}

// claimText is the text of a claim; false where there is none, or it is no text.
func claimText(claims map[string]any, claim string) (string, bool) {
	path := []string{claim}
	if pointer, ok := strings.CutPrefix(claim, "/"); ok {
		path = strings.Split(pointer, "/")
		for n := range path {
			path[n] = strings.NewReplacer("~1", "/", "~0", "~").Replace(path[n])
		}
	}
	var at any = claims
	for _, name := range path {
		object, ok := at.(map[string]any) // never into lists
		if !ok {
			return "", false
		}
		at = object[name]
	}
	text, ok := at.(string)
	return text, ok
}

// apply is the service account that the claims are mapped to. The error says which claim does not match.
func (m mapping) apply(claims map[string]any) (namespace, serviceAccount string, err error) {
	found := make(map[string]string)
	for _, claim := range slices.Sorted(maps.Keys(m.match)) {
		text, ok := claimText(claims, claim)
		if !ok {
			return "", "", fmt.Errorf("claim %s is not there, or no text", claim)
		}
		if !m.match[claim].match(text, found) {
			return "", "", fmt.Errorf("claim %s is %q", claim, shorten(text))
		}
	}
	namespace, serviceAccount = m.namespace.fill(found), m.serviceAccount.fill(found)
	if !isServiceAccount(namespace, serviceAccount) {
		return "", "", fmt.Errorf("they make %q and %q, which can't be those of a service account", shorten(namespace), shorten(serviceAccount))
	}
	return namespace, serviceAccount, nil
}
