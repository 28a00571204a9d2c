package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
)

// script answers the first watch with the first part, and so on; the last part is for all that follow. A part is written
// and then ends, unless it says that it stays open.
type script struct {
	mu     sync.Mutex
	parts  []part
	resume []string // of each watch
}

type part struct {
	status int // a problem, where it isn't 0
	events []any
	stays  bool
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.resume = append(s.resume, r.URL.Query().Get("resume"))
	p := s.parts[min(len(s.resume), len(s.parts))-1]
	s.mu.Unlock()
	if p.status != 0 {
		answer(w, p.status, "refused")
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	for _, event := range p.events {
		_ = json.NewEncoder(w).Encode(event)
	}
	_ = http.NewResponseController(w).Flush()
	if p.stays {
		<-r.Context().Done()
	}
}

func (s *script) resumes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resume
}

func event(kind api.EventType, name, resume string) api.Event[api.Service] {
	e := api.Event[api.Service]{Type: kind, Resume: resume}
	switch kind {
	case api.Added, api.Changed:
		e.Item = &api.Service{Namespace: "shop", Name: name}
	case api.Removed:
		e.Key = "shop/" + name
	}
	return e
}

func ended(status int) api.Event[api.Service] {
	return api.Event[api.Service]{Type: api.End, Problem: &api.ProblemDetails{Status: status, Detail: "it ends"}, Resume: "end"}
}

// watching runs a watch until its output has all that is wanted, in this order, or until it ends by itself where nothing
// is.
func watching(t *testing.T, s *script, wanted []string, args ...string) result {
	t.Helper()
	served := serve(t, s)
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	var out, err buffer
	done := make(chan int, 1)
	p := &program{file: "signetctl", name: "signetctl", out: output{&out}, err: &err, now: func() time.Time { return now }, pace: pace{pause: time.Millisecond, most: time.Millisecond, silence: patience}}
	go func() { done <- p.run(ctx, served.flags(append([]string{"services", "--watch"}, args...)...)) }()
	look := func() bool {
		if wanted == nil {
			return false
		}
		text := out.String()
		for _, want := range wanted {
			_, after, ok := strings.Cut(text, want)
			if !ok {
				return false
			}
			text = after
		}
		return true
	}
	for !look() {
		select {
		case code := <-done:
			require.True(t, wanted == nil || look(), "it ended with %d: %s%s", code, out.String(), err.String())
			return result{code, out.String(), err.String()}
		case <-ctx.Done():
			require.Fail(t, "it never came", out.String()+err.String())
		case <-time.After(time.Millisecond):
		}
	}
	stop()
	return result{<-done, out.String(), err.String()}
}

// TestWatch: first what there is, as one table, then each change in a line, until interrupted, which is no error.
func TestWatch(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	s := &script{parts: []part{{stays: true, events: []any{
		event(api.Added, "cart", "1"), event(api.Added, "a-longer-name", "2"), event(api.Synced, "", "2"),
		event(api.Heartbeat, "", "2"), event(api.Changed, "cart", "3"), event(api.Removed, "cart", "4"), event(api.Added, "last", "5"),
	}}}}
	got := watching(t, s, []string{"last"})
	assert.Equal(t, exitOK, got.code)
	assert.Empty(t, got.err)
	// Columns grow with what comes later.
	local := now.Local().Format(time.TimeOnly)
	assert.Equal(t, strings.ReplaceAll(`SEEN       EVENT   NAMESPACE   SERVICE         IDENTITIES   PODS   NOT AFTER   REMAINING   STATE
12:00:00   added   shop        cart            -            0/0    -           -           no pods
12:00:00   added   shop        a-longer-name   -            0/0    -           -           no pods
12:00:00   changed   shop        cart            -            0/0    -           -           no pods
12:00:00   removed   shop        cart            -            0/0    -           -           no pods
12:00:00   added     shop        last            -            0/0    -           -           no pods
`, "12:00:00", local), got.out)

	// The same for programs.
	got = watching(t, &script{parts: s.parts}, []string{"last"}, "-o", "json")
	var kinds []string
	for line := range strings.Lines(got.out) {
		var e api.Event[api.Service]
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		kinds = append(kinds, string(e.Type))
	}
	assert.Equal(t, []string{"added", "added", "synced", "changed", "removed", "added"}, kinds)
	got = watching(t, &script{parts: s.parts}, []string{"last"}, "-o", "yaml")
	assert.Equal(t, 6, strings.Count(got.out, "---\ntype: "))
	got = watching(t, &script{parts: s.parts}, []string{"last"}, "-o", "name")
	assert.Equal(t, "service/shop/cart\nservice/shop/a-longer-name\nservice/shop/cart\nservice/shop/last\n", got.out)
}

// TestWatchGoesOn: a watch that breaks, or is told to come again, goes on behind its last line.
func TestWatchGoesOn(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	s := &script{parts: []part{
		{events: []any{event(api.Added, "one", "1"), event(api.Synced, "", "1"), event(api.Changed, "two", "2"), ended(503)}},
		{events: []any{event(api.Changed, "three", "3")}}, // and the connection breaks
		{status: 429},
		{events: []any{event(api.Synced, "", "4"), ended(401)}}, // its token has ended
		{status: 400}, // the resume isn't known
		{events: []any{event(api.Reset, "", ""), event(api.Added, "four", "5"), event(api.Synced, "", "5")}, stays: true},
	}}
	got := watching(t, s, []string{"one", "two", "three", "four"})
	assert.Equal(t, exitOK, got.code)
	assert.Equal(t, []string{"", "end", "3", "3", "end", ""}, s.resumes())
	assert.Contains(t, got.err, "notice: the watch broke: it ends (503); it goes on in 1ms\n")
	assert.Contains(t, got.err, "notice: the watch begins anew\n")
	assert.Equal(t, 1, strings.Count(got.out, "SEEN"), "one table")
}

// TestWatchEnds where going on doesn't help.
func TestWatchEnds(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	first := part{events: []any{event(api.Synced, "", "1"), ended(503)}}
	for name, row := range map[string]struct {
		parts []part
		code  int
	}{
		"refused":                {[]part{{status: 403}}, exitNotAllowed},
		"no such filter":         {[]part{{status: 422}}, exitUsage},
		"too many at first":      {[]part{{status: 429}}, exitFailed},
		"not ready at first":     {[]part{{status: 503}}, exitFailed},
		"breaks at first":        {[]part{{}}, exitFailed},
		"right taken away":       {[]part{{events: []any{event(api.Synced, "", "1"), ended(403)}}}, exitNotAllowed},
		"too large":              {[]part{{events: []any{event(api.Added, "x", "1"), ended(422)}}}, exitUsage},
		"refused later":          {[]part{first, {status: 403}}, exitNotAllowed},
		"token refused at once":  {[]part{{status: 401}}, exitNotAllowed},
		"token refused when new": {[]part{{events: []any{event(api.Synced, "", "1"), ended(401)}}, {status: 401}}, exitNotAllowed},
	} {
		t.Run(name, func(t *testing.T) {
			got := watching(t, &script{parts: row.parts}, nil)
			assert.Equal(t, row.code, got.code, got.err)
		})
	}
}

// TestOutputFails: nobody takes what is written, which is no reason to ask again.
func TestOutputFails(t *testing.T) {
	alone(t)
	kubeconfig(t, "{token: "+someToken+"}")
	s := serve(t, &script{parts: []part{{events: []any{event(api.Added, "x", "1"), event(api.Synced, "", "1"), event(api.Changed, "x", "2")}, stays: true}}})
	for _, format := range formats {
		for _, args := range [][]string{s.flags("services", "--watch", "-o", format), s.flags("trust", "-o", format)} {
			var errText buffer
			code := command(t.Context(), append([]string{"signetctl"}, args...), closed{}, &errText)
			assert.Equal(t, exitFailed, code)
			assert.Equal(t, "error: write: file already closed\n", errText.String())
		}
	}
}

type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, os.ErrClosed }
