package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/ledger"
)

var manual = filepath.Join("..", "..", "docs", "audit.md")

// examples are lines of every type, by type.
func examples(t *testing.T) map[string]string {
	t.Helper()
	r := newRig(t, Config{}, nil)
	r.run = "QWJ5K3ZX7M2T4N6P"
	at := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	r.Issued(issuance(0))
	r.Refused(ledger.Refusal{
		Reason: "identity", Code: "PermissionDenied", Identity: "spiffe://cluster.local/ns/shop/sa/cart", Namespace: "shop", ServiceAccount: "cart",
		Peer: "10.1.4.17", Count: 12, First: at.Add(3 * time.Second), Last: at.Add(41 * time.Second),
	})
	r.count()
	found := &api.Probe{
		Time: at, Namespace: "shop", Service: "cart", Verdict: api.ProbeWarning,
		Results: []api.ProbeResult{
			{Pod: "cart-6d5f9c7b9-x2x8p", Address: "10.1.4.17:8080", Verdict: api.ProbeGood, Chain: []api.ServedCertificate{{SHA256: issuance(0).SHA256}}},
			{Pod: "cart-6d5f9c7b9-q7r5t", Address: "10.1.4.18:8080", Verdict: api.ProbeWarning},
		},
	}
	probed := ProbeOf(found)
	probed.User, probed.DurationSeconds = "jane@example.com", 0.214
	r.Probed(probed)
	r.Read(api.Read{
		Time: at, Duration: 8 * time.Millisecond, User: "jane@example.com", Address: "10.1.9.3", Method: "GET", Route: "/v1/certificates", Namespace: "shop",
		Filters: map[string]string{"namespace": "shop", "state": "overdue", "limit": "100"}, Status: 200, Items: 3, Bytes: 2911,
	})
	loss := lost{since: at.Add(time.Second)}
	loss.of[kindIssued], loss.of[kindRead] = 41, 2
	b := &batch{}
	r.queue.take(b)
	r.confess(b, loss)
	lines := make(map[string]string)
	for line := range strings.SplitSeq(strings.TrimSuffix(string(b.rest()), "\n"), "\n") {
		var e Event[json.RawMessage]
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		if e.Type == TypeLost { // it has the time of the test
			until := data[Lost](t, e).Until.Format(time.RFC3339Nano)
			line = strings.ReplaceAll(line, until, "2026-08-01T12:00:09Z")
		}
		lines[e.Type] = line
	}
	require.Len(t, lines, int(kinds))
	return lines
}

// TestManual: docs/audit.md shows each event as it is, and says of every field what becomes of it.
func TestManual(t *testing.T) {
	text, err := os.ReadFile(manual)
	require.NoError(t, err)
	now := string(text)
	lines := examples(t)
	for k := range kinds {
		var pretty bytes.Buffer
		require.NoError(t, json.Indent(&pretty, []byte(lines[k.eventType()]), "", "  "))
		block := regexp.MustCompile("(?s)(### `" + regexp.QuoteMeta(k.eventType()) + "`\n.*?```json\n).*?```")
		require.Regexp(t, block, now)
		now = block.ReplaceAllString(now, "${1}"+strings.ReplaceAll(pretty.String(), "$", "$$")+"\n```")
	}
	if *update {
		require.NoError(t, os.WriteFile(manual, []byte(now), 0o644))
	}
	if !*update && now != string(text) {
		t.Errorf("docs/audit.md shows other events than there are; run go test ./api/audit -update")
	}

	for eventType, of := range map[string]any{TypeIssued: Issued{}, TypeRefused: Refused{}, TypeProbe: Probe{}, TypeRead: Read{}, TypeLost: Lost{}} {
		section := now[strings.Index(now, "### `"+eventType+"`"):]
		section = section[strings.Index(section, "\n| data |"):]
		if end := strings.Index(section, "\n#"); end > 0 {
			section = section[:end]
		}
		mapped := make(map[string]bool)
		for row := range strings.SplitSeq(section, "\n") {
			if cells := strings.Split(row, "|"); len(cells) > 2 {
				for _, field := range regexp.MustCompile("`[^`]+`").FindAllString(cells[1], -1) {
					mapped[strings.Trim(field, "`")] = true
				}
			}
		}
		wanted := make(map[string]bool)
		for _, field := range fieldsOf(reflect.TypeOf(of), "") {
			wanted[field] = true
		}
		assert.Equal(t, wanted, mapped, "fields of %s in the mapping to OCSF", eventType)
	}
}

// fieldsOf are the names of the fields in JSON; those within the results of a probe are mapped with them.
func fieldsOf(of reflect.Type, prefix string) []string {
	var names []string
	for field := range of.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		if inner := field.Type; inner.Kind() == reflect.Struct && inner != reflect.TypeFor[time.Time]() {
			names = append(names, fieldsOf(inner, name+".")...)
		} else {
			names = append(names, prefix+name)
		}
	}
	return names
}

// hostile are texts that a caller could choose.
var hostile = []string{
	"two\nlines\r\n", "\x00null", "\xff\xfe not UTF-8 \xc3\x28", `","type":"other`, "\u2028\u2029\u0085", "\x1b[31mred", "\ufffe\uffff\ufdd0", "\x7f",
	strings.Repeat("long ", 100_000), strings.Repeat("\xff", 5000), strings.Repeat("\x01", 5000), strings.Repeat("語", 5000), "</script><b>&", "\U0001f600",
}

// fill sets every text in value to text.
func fill(value reflect.Value, text string) {
	switch value.Kind() {
	case reflect.String:
		value.SetString(text)
	case reflect.Struct:
		for _, field := range value.Fields() {
			if field.CanSet() {
				fill(field, text)
			}
		}
	case reflect.Slice:
		if value.Type() == reflect.TypeFor[[]string]() {
			value.Set(reflect.ValueOf([]string{text, text}))
		}
	case reflect.Map:
		value.Set(reflect.ValueOf(map[string]string{text: text}))
	}
}

// hostileLines tells a stream of events that are made of nothing but text.
func hostileLines(t *testing.T, text string) string {
	r := newRig(t, Config{}, nil)
	var i ledger.Issuance
	fill(reflect.ValueOf(&i).Elem(), text)
	r.Issued(i)
	var refusal ledger.Refusal
	fill(reflect.ValueOf(&refusal).Elem(), text)
	r.Refused(refusal)
	var p Probe
	fill(reflect.ValueOf(&p).Elem(), text)
	for range 150 {
		p.Results = append(p.Results, ProbeResult{text, text, text, text})
	}
	r.Probed(p)
	var read api.Read
	fill(reflect.ValueOf(&read).Elem(), text)
	read.Status = 200
	r.Read(read)
	read.Status = 403
	r.Read(read)
	r.count()
	b := &batch{}
	require.Zero(t, r.queue.take(b))
	require.Len(t, b.kinds, 5)
	return string(b.rest())
}

// TestHostileTexts: whatever a text holds, each event is one line of JSON that CloudEvents, and every database, takes.
func TestHostileTexts(t *testing.T) {
	for _, text := range hostile {
		t.Run(fmt.Sprintf("%.20q", text), func(t *testing.T) {
			lines := hostileLines(t, text)
			assert.Less(t, len(lines), 1<<20)
			events := parse(t, lines)
			require.Len(t, events, 5)
			for _, e := range events {
				assert.Regexp(t, `^dev\.signet\.[a-z.]+\.v1$`, e.Type)
				assert.Equal(t, "1.0", e.SpecVersion)
				assert.Equal(t, "application/json", e.DataContentType)
				assert.NotEmpty(t, e.ID)
				assert.False(t, e.Time.IsZero())
				_, err := url.Parse(e.Source)
				assert.NoError(t, err)
				var all any
				require.NoError(t, json.Unmarshal(e.Data, &all))
				for _, s := range append(textsIn(all), e.ID, e.Subject, e.Source) {
					forbidden := strings.IndexFunc(s, func(r rune) bool {
						return unicode.IsControl(r) || r&0xfffe == 0xfffe || 0xfdd0 <= r && r <= 0xfdef
					})
					if len(s) > maxName || !utf8.ValidString(s) || forbidden >= 0 {
						t.Errorf("%s has a text of %d bytes, which begins with %.50q", e.Type, len(s), s)
					}
				}
			}
		})
	}
}

func textsIn(value any) []string {
	var all []string
	switch v := value.(type) {
	case string:
		all = append(all, v)
	case []any:
		for _, inner := range v {
			all = append(all, textsIn(inner)...)
		}
	case map[string]any:
		for name, inner := range v {
			all = append(append(all, name), textsIn(inner)...)
		}
	}
	return all
}

func TestText(t *testing.T) {
	for _, row := range []struct {
		in   string
		most int
		want string
	}{
		{"", 10, ""},
		{"plain", 5, "plain"},
		{"plain text", 8, "plain…"},
		{"語語語", 9, "語語語"},
		{"語語語", 8, "語…"},
		{"a\nb\x00c\x7fd\u0085e", 100, "a\ufffdb\ufffdc\ufffdd\ufffde"},
		{"\xff", 100, "\ufffd"},
		{"\xff\xff\xff\xff", 9, "\ufffd\ufffd…"},
		{"\ufffe\ufdd0\U0001ffff\ufffd", 100, "\ufffd\ufffd\ufffd\ufffd"},
	} {
		assert.Equal(t, row.want, text(row.in, row.most), "%q", row.in)
	}
}

// TestNothingSecret: a certificate isn't in its event, and long lists are cut, which is said.
func TestNothingSecret(t *testing.T) {
	r := newRig(t, Config{}, nil)
	i := issuance(0)
	i.SANs = nil
	for n := range 150 {
		i.SANs = append(i.SANs, fmt.Sprintf("name-%d.example.com", n))
	}
	r.Issued(i)
	long := issuance(1)
	long.SANs = []string{strings.Repeat("a", maxSANBytes/9), "b", strings.Repeat("c", 5000)}
	for range 20 {
		long.SANs = append(long.SANs, strings.Repeat("d", 1900))
	}
	r.Issued(long)
	b := &batch{}
	r.queue.take(b)
	events := parse(t, string(b.rest()))
	assert.NotContains(t, string(b.rest()), "the certificate itself")
	assert.NotContains(t, string(b.rest()), "dGhlIGNlcnRpZmljYXRlIGl0c2VsZg")
	first, second := data[Issued](t, events[0]), data[Issued](t, events[1])
	assert.Equal(t, i.SANs[:100], first.SANs)
	assert.Equal(t, 50, first.SANsOmitted)
	assert.Equal(t, 23, len(second.SANs)+second.SANsOmitted)
	assert.Positive(t, second.SANsOmitted)
	assert.Less(t, len(strings.Join(second.SANs, "")), maxSANBytes+1)
}

// TestIDs: that of an issuance is its certificate's; others are of this process, and each its own.
func TestIDs(t *testing.T) {
	lines := ""
	for range 2 {
		r := newRig(t, Config{}, nil)
		r.Issued(issuance(7))
		for range 3 {
			r.Read(api.Read{Status: 200})
		}
		r.Issued(ledger.Issuance{})
		b := &batch{}
		r.queue.take(b)
		lines += string(b.rest())
	}
	ids := make(map[string]int)
	for _, e := range parse(t, lines) {
		ids[e.ID]++
		assert.Equal(t, "//signet/Kubernetes/istio-system/signet-0", e.Source)
	}
	assert.Len(t, ids, 9)
	assert.Equal(t, 2, ids[issuance(7).SHA256])
}

func TestSource(t *testing.T) {
	assert.Equal(t, "//signet/a%2Fb/c%20d/%C3%BC%3F%23%25", sourceOf(Origin{"a/b", "c d", "ü?#%"}))
	assert.Equal(t, "//signet///", sourceOf(Origin{}))
}
