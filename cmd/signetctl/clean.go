package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// clean writes what can't be printed as escapes, so that no text from elsewhere can control the terminal, or look like
// another one: control characters, those that turn the direction of text, and bytes that aren't UTF-8.
func clean(text string) string {
	if strings.IndexFunc(text, odd) < 0 && utf8.ValidString(text) {
		return text
	}
	var out strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&out, `\x%02x`, text[0])
		case r == '\n':
			out.WriteString(`\n`)
		case odd(r) && r < 0x80:
			fmt.Fprintf(&out, `\x%02x`, r)
		case odd(r) && r > 0xffff:
			fmt.Fprintf(&out, `\U%08x`, r)
		case odd(r):
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			out.WriteRune(r)
		}
		text = text[size:]
	}
	return out.String()
}

// cleanLines is clean for a text of several lines, which is ours but for what is in it.
func cleanLines(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// odd says that a terminal may take a character for something else than a letter to show.
func odd(r rune) bool { return !strconv.IsPrint(r) }

// cleanJSON does the same for JSON in UTF-8, where such characters occur in strings only. What it returns says the same.
// With whole false, characters beyond U+FFFF, which JSON writes as two, stay as they are.
func cleanJSON(text []byte, whole bool) []byte {
	return cleanWith(text, func(r rune) string {
		if r <= 0xffff {
			return fmt.Sprintf(`\u%04x`, r)
		}
		if !whole {
			return string(r)
		}
		high, low := utf16.EncodeRune(r)
		return fmt.Sprintf(`\u%04x\u%04x`, high, low)
	})
}

// cleanWith replaces odd characters but new lines.
func cleanWith(text []byte, escape func(rune) string) []byte {
	if bytes.IndexFunc(text, func(r rune) bool { return odd(r) && r != '\n' }) < 0 {
		return text
	}
	var out bytes.Buffer
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if odd(r) && r != '\n' {
			out.WriteString(escape(r))
		} else {
			out.Write(text[:size])
		}
		text = text[size:]
	}
	return out.Bytes()
}
