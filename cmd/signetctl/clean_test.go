package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/api"
)

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "",
		"cart-é-日本":             "cart-é-日本",
		"\x1b[31mred\x1b]0;x\a": `\x1b[31mred\x1b]0;x\x07`,
		"a\r\nb\tc":             `a\x0d\nb\x09c`,
		"\u009b31m":             `\u009b31m`,
		"\x9b31m":               `\x9b31m`, // no UTF-8
		"\x7f":                  `\x7f`,
		"a\u202egnp.exe":        `a\u202egnp.exe`,
		"\u2028\u200b\ufeff":    `\u2028\u200b\ufeff`,
		"\U000e0041":            `\U000e0041`,
	} {
		assert.Equal(t, want, clean(text))
	}
}

// FuzzClean: whatever a text is, nothing that could control a terminal comes out, and a program reads what was there.
func FuzzClean(f *testing.F) {
	for _, text := range []string{"", "web", "\x1b[2J", "\u009b31m", "a\u202eb", "\x7f\x00", "\U000e0041\U0001f600", "a\nb", "~", "- x: y", "0x1", "null", "\"'", "\ufffe", "\u0085\u2028", " x ", "a\r\n b", "Y", "off", "1:20", "5e3"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		printable := func(out []byte) {
			t.Helper()
			require.True(t, utf8.Valid(out))
			require.False(t, bytes.ContainsFunc(out, func(r rune) bool { return odd(r) && r != '\n' }), "%q", out)
		}
		printable([]byte(clean(text)))
		require.NotContains(t, clean(text), "\n")
		value := api.ServiceList{Items: []api.Service{{Name: text, Identities: []string{text, "x"}}}}
		for format, read := range map[string]func([]byte, any) error{
			formatJSON: json.Unmarshal,
			formatYAML: func(text []byte, into any) error { return yaml.Unmarshal(text, into) },
		} {
			var out bytes.Buffer
			require.NoError(t, writeValue(&out, format, value))
			printable(out.Bytes())
			var back api.ServiceList
			require.NoError(t, read(out.Bytes(), &back), "%s", out.Bytes())
			want := strings.ToValidUTF8(text, "\ufffd")
			if !utf8.ValidString(text) { // several bytes become one or more
				continue
			}
			require.Equal(t, want, back.Items[0].Name, format)
			require.Equal(t, want, back.Items[0].Identities[0], format)
		}
	})
}
