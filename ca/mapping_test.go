package ca

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/validation"
)

// cluster maps the tokens of another cluster's issuer.
var clusterMatch = map[string]string{"sub": "system:serviceaccount:{ns}:{sa}"}

func TestNewMapping(t *testing.T) {
	for _, row := range []struct {
		name               string
		match              map[string]string
		namespace, account string
		problem            string
	}{
		{"another cluster's", clusterMatch, "{ns}", "{sa}", ""},
		{"a pipeline's", map[string]string{"repository": "acme/{repo}", "ref": "refs/heads/main"}, "ci", "{repo}", ""},
		{"literals alone", map[string]string{"sub": "vm-1"}, "vms", "vm.one", ""},
		{"put together", map[string]string{"a": "{x}", "/b/c~1d~0e": "{y}/z"}, "team-{x}", "{y}.{x}", ""},
		{"as a whole", map[string]string{"sub": "{x}"}, "vms", "{x}", ""},

		{"nothing to match", nil, "a", "b", "match: it is empty"},
		{"an empty pattern", map[string]string{"sub": ""}, "a", "b", "match[sub]: it is empty"},
		{"no claim", map[string]string{"": "x"}, "a", "b", "it names no claim"},
		{"no pointer", map[string]string{"/a~2": "x"}, "a", "b", "it is no JSON pointer"},
		{"not closed", map[string]string{"sub": "{x"}, "a", "b", "has a { without }"},
		{"not opened", map[string]string{"sub": "x}"}, "a", "b", "has a } without {"},
		{"closed twice", map[string]string{"sub": "{x}}"}, "a", "b", "has a } without {"},
		{"nested", map[string]string{"sub": "{{x}}"}, "a", "b", "must be of letters and digits"},
		{"no name", map[string]string{"sub": "{}"}, "a", "b", "must be of letters and digits"},
		{"a pattern in a name", map[string]string{"sub": "{x:.*}"}, "a", "{x}", "must be of letters and digits"},
		{"two captures beside each other", map[string]string{"sub": "{x}{y}"}, "{x}", "{y}", "it can't be told where it ends"},
		{"a dash between captures", map[string]string{"sub": "{x}-{y}"}, "{x}", "{y}", "it can't be told where it ends"},
		{"a letter after a capture", map[string]string{"sub": "{x}prod"}, "{x}", "a", "it can't be told where it ends"},
		{"captured twice", map[string]string{"a": "{x}", "b": "{x}"}, "{x}", "a", "{x} is captured twice"},
		{"captured twice in one", map[string]string{"a": "{x}:{x}"}, "{x}", "a", "{x} is captured twice"},
		{"not captured", clusterMatch, "{ns}", "{name}", "serviceAccount: {name} is captured by no claim"},
		{"no namespace", clusterMatch, "", "{sa}", "can't be those of a service account"},
		{"no service account", clusterMatch, "{ns}", "", "can't be those of a service account"},
		{"a namespace with a dot", clusterMatch, "{ns}.x", "{sa}", "can't be those of a service account"},
		{"a namespace in capitals", clusterMatch, "A", "{sa}", "can't be those of a service account"},
		{"a path", clusterMatch, "{ns}", "a/{sa}", "can't be those of a service account"},
	} {
		_, err := newMapping(row.match, row.namespace, row.account)
		if row.problem == "" {
			assert.NoError(t, err, row.name)
		} else {
			assert.ErrorContains(t, err, row.problem, row.name)
		}
	}
}

// TestMapping: what isn't exactly as the pattern has it makes nobody.
func TestMapping(t *testing.T) {
	long := strings.Repeat("a", 63)
	match := func(pairs ...string) map[string]string {
		m := make(map[string]string)
		for n := 0; n < len(pairs); n += 2 {
			m[pairs[n]] = pairs[n+1]
		}
		return m
	}
	pod := "system:serviceaccount:{ns}:{sa}"
	for _, row := range []struct {
		name               string
		match              map[string]string
		namespace, account string
		claims             string
		want               string // "" where it makes nobody
	}{
		{"another cluster's", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop:web"}`, "shop/web"},
		{"the longest labels", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:` + long + `:` + long + `"}`, long + "/" + long},
		{"labels with dashes", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:a--b:0-9"}`, "a--b/0-9"},
		{"two claims", match("repository", "acme/{repo}", "ref", "refs/heads/main"), "ci", "{repo}", `{"repository":"acme/web","ref":"refs/heads/main"}`, "ci/web"},
		{"a pointer", match("/kubernetes.io/namespace", "{ns}"), "{ns}", "all", `{"kubernetes.io":{"namespace":"shop"}}`, "shop/all"},
		{"a pointer with escapes", match("/a~1b/c~0d", "{x}"), "n", "{x}", `{"a/b":{"c~d":"web"}}`, "n/web"},
		{"a name with dots is no path", match("kubernetes.io", "{x}"), "n", "{x}", `{"kubernetes.io":"web"}`, "n/web"},
		{"put together", match("a", "{x}"), "team-{x}", "{x}.{x}", `{"a":"b"}`, "team-b/b.b"},

		{"one colon more", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop:web:x"}`, ""},
		{"a colon as part of a name", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount::shop:web"}`, ""},
		{"no namespace", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount::web"}`, ""},
		{"no account", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop:"}`, ""},
		{"something before", match("sub", pod), "{ns}", "{sa}", `{"sub":"xsystem:serviceaccount:shop:web"}`, ""},
		{"a line after", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop:web\n"}`, ""},
		{"a NUL after", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop:web\u0000"}`, ""},
		{"a space after", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop:web "}`, ""},
		{"capitals", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop:Web"}`, ""},
		{"a dot", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop:web.x"}`, ""},
		{"a slash", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop/sa/admin:web"}`, ""},
		{"up", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:..:web"}`, ""},
		{"percent", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop%2f:web"}`, ""},
		{"a letter that looks alike", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shоp:web"}`, ""},
		{"a dash first", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:-shop:web"}`, ""},
		{"a dash last", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:shop:web-"}`, ""},
		{"too long", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:` + long + `a:web"}`, ""},
		{"braces", match("sub", pod), "{ns}", "{sa}", `{"sub":"system:serviceaccount:{ns}:{sa}"}`, ""},
		{"no claim", match("sub", pod), "{ns}", "{sa}", `{}`, ""},
		{"a claim in other case", match("sub", pod), "{ns}", "{sa}", `{"Sub":"system:serviceaccount:shop:web"}`, ""},
		{"a list", match("sub", pod), "{ns}", "{sa}", `{"sub":["system:serviceaccount:shop:web"]}`, ""},
		{"an object", match("sub", pod), "{ns}", "{sa}", `{"sub":{"system:serviceaccount:shop:web":true}}`, ""},
		{"a number", match("id", "{x}"), "n", "{x}", `{"id":42}`, ""},
		{"true", match("id", "{x}"), "n", "{x}", `{"id":true}`, ""},
		{"null", match("id", "{x}"), "n", "{x}", `{"id":null}`, ""},
		{"one of two claims", match("repository", "acme/{repo}", "ref", "refs/heads/main"), "ci", "{repo}", `{"repository":"acme/web","ref":"refs/heads/main2"}`, ""},
		{"another owner", match("repository", "acme/{repo}"), "ci", "{repo}", `{"repository":"acme-evil/web"}`, ""},
		{"an owner with a slash", match("repository", "acme/{repo}"), "ci", "{repo}", `{"repository":"acme/x/web"}`, ""},
		{"into a list", match("/a/0", "{x}"), "n", "{x}", `{"a":["web"]}`, ""},
		{"a list by its name", match("/a/0", "{x}"), "n", "{x}", `{"a":{"0":"web"}}`, "n/web"},
		{"into a text", match("/a/b", "{x}"), "n", "{x}", `{"a":"b"}`, ""},
		{"a pointer as a name", match("/a/b", "{x}"), "n", "{x}", `{"/a/b":"web"}`, ""},
		{"no label, though what is made of it would be one", match("a", "{x}"), "n", "{x}x", `{"a":"b-"}`, ""},
		{"too long together", match("a", "{x}"), "n-{x}", "web", `{"a":"` + long + `"}`, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			m, err := newMapping(row.match, row.namespace, row.account)
			require.NoError(t, err)
			claims, ok := decodeClaims([]byte(row.claims))
			require.True(t, ok)
			namespace, account, err := m.apply(claims)
			if row.want == "" {
				assert.Error(t, err)
				assert.Empty(t, namespace+account)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, row.want, namespace+"/"+account)
		})
	}
}

// FuzzMapping: a claim that matches is put together again, byte for byte, from the pattern and what was captured, and each
// capture is one label.
func FuzzMapping(f *testing.F) {
	f.Add("system:serviceaccount:{ns}:{sa}", "system:serviceaccount:shop:web")
	f.Add("acme/{repo}", "acme/x/web")
	f.Add("{a}/{b}.{c}", "x/y.z")
	f.Add("{a}", "shоp")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		p, err := parseTemplate(pattern)
		if err != nil || p.checkPattern() != nil {
			return
		}
		seen := make(map[string]bool)
		for _, name := range p.names() {
			if seen[name] {
				return // refused when the configuration is read
			}
			seen[name] = true
		}
		found := make(map[string]string)
		if !p.match(text, found) {
			return
		}
		require.Equal(t, text, p.fill(found))
		require.Len(t, found, len(seen))
		for _, label := range found {
			require.Empty(t, validation.IsDNS1123Label(label))
		}
		payload, err := json.Marshal(map[string]string{"sub": text})
		require.NoError(t, err)
		claims, ok := decodeClaims(payload)
		require.True(t, ok)
		if m, err := newMapping(map[string]string{"sub": pattern}, "n", "web"); err == nil {
			namespace, account, err := m.apply(claims)
			if err == nil {
				require.True(t, isServiceAccount(namespace, account))
			}
		}
	})
}
