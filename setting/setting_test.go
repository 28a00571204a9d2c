package setting

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDurationUnmarshal(t *testing.T) {
	for _, row := range []struct {
		text    string
		want    time.Duration
		invalid string
	}{
		{`"90s"`, 90 * time.Second, ""},
		{`"1h30m"`, 90 * time.Minute, ""},
		{`"24h"`, 24 * time.Hour, ""},
		{`"1.5s"`, 1500 * time.Millisecond, ""},
		{`"-5s"`, -5 * time.Second, ""}, // out of every range
		{`"0s"`, 0, `"0s"`},
		{`"90"`, 0, `"90"`},
		{`"1d"`, 0, `"1d"`},
		{`"soon"`, 0, `"soon"`},
		{`" 90s"`, 0, `" 90s"`},
		{`"9999999h"`, 0, `"9999999h"`}, // more than a Duration holds
		{`90`, 0, `90`},
		{`true`, 0, `true`},
		{`{"seconds":90}`, 0, `{"seconds":90}`},
		{`["90s"]`, 0, `["90s"]`},
	} {
		t.Run(row.text, func(t *testing.T) {
			d := DurationOf(time.Minute) // what was there before is gone
			require.NoError(t, json.Unmarshal([]byte(row.text), &d))
			assert.Equal(t, Duration{value: row.want, invalid: row.invalid}, d)
		})
	}
}

func TestDurationOr(t *testing.T) {
	assert.Equal(t, time.Minute, Duration{}.Or(time.Minute))
	assert.Equal(t, time.Second, DurationOf(time.Second).Or(time.Minute))
}

func TestDurationMarshal(t *testing.T) {
	for _, want := range []time.Duration{time.Millisecond, 90 * time.Second, 24 * time.Hour} {
		text, err := json.Marshal(DurationOf(want))
		require.NoError(t, err)
		var got Duration
		require.NoError(t, json.Unmarshal(text, &got))
		assert.Equal(t, DurationOf(want), got, "written as %s", text)
	}
	text, err := json.Marshal(Duration{})
	require.NoError(t, err)
	assert.Equal(t, `""`, string(text))
}

func TestProblemsDuration(t *testing.T) {
	unreadable := func(text string) Duration {
		var d Duration
		require.NoError(t, json.Unmarshal([]byte(text), &d))
		return d
	}
	for _, row := range []struct {
		name string
		d    Duration
		want string // "" is right
	}{
		{"not set", Duration{}, ""},
		{"the least", DurationOf(time.Second), ""},
		{"the most", DurationOf(time.Hour), ""},
		{"below", DurationOf(time.Second - 1), "f: 999.999999ms is out of range; it must be between 1s and 1h0m0s"},
		{"above", DurationOf(time.Hour + 1), "f: 1h0m0.000000001s is out of range; it must be between 1s and 1h0m0s"},
		{"negative", DurationOf(-time.Second), "f: -1s is out of range; it must be between 1s and 1h0m0s"},
		{"no unit", unreadable(`"30"`), `f: "30" is not a duration; write a number and a unit above zero, such as "30s" or "24h"`},
		{"a number", unreadable(`30`), `f: 30 is not a duration; write a number and a unit above zero, such as "30s" or "24h"`},
		{"zero", unreadable(`"0s"`), `f: "0s" is not a duration; write a number and a unit above zero, such as "30s" or "24h"`},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := NewProblems()
			p.Duration("f", row.d, time.Second, time.Hour)
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.EqualError(t, p.Err(), row.want)
			}
		})
	}
}

func TestProblemsCount(t *testing.T) {
	for n, good := range map[int]bool{0: true, 1: true, 9: true, -1: false, 10: false} {
		p := NewProblems()
		p.Count("n", n, 1, 9)
		if good {
			assert.NoError(t, p.Err(), "%d", n)
		} else {
			assert.ErrorContains(t, p.Err(), "is out of range; it must be between 1 and 9", "%d", n)
		}
	}
}

func TestProblemsPaths(t *testing.T) {
	p := NewProblems()
	p.Addf("top", "first")
	below := p.At("ca").At("lifetime")
	below.Addf("max", "is %d", 2)
	below.Addf("", "the whole of it")
	p.At("ca").Addf("", "third")
	p.Addf("", "no field")
	assert.EqualError(t, p.Err(), "top: first\nca.lifetime.max: is 2\nca.lifetime: the whole of it\nca: third\n: no field")
	assert.NoError(t, NewProblems().Err(), "lists are independent of each other")
}
