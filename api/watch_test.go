package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

// quick is a pace for tests.
func quick(s *Server) {
	s.pace.pause, s.pace.times, s.pace.poll, s.pace.heartbeat = 5*time.Millisecond, 0, 20*time.Millisecond, 200*time.Millisecond
}

// following is a watch that a test reads line by line.
type following[T any] struct {
	t      *testing.T
	events chan Event[T]
	errs   chan error
	stop   context.CancelFunc
	done   chan struct{}
}

func follow[T any](t *testing.T, start func(context.Context) func(func(Event[T], error) bool)) *following[T] {
	ctx, stop := context.WithCancel(t.Context())
	f := &following[T]{t, make(chan Event[T], 10000), make(chan error, 1), stop, make(chan struct{})}
	go func() {
		defer close(f.done)
		for event, err := range start(ctx) {
			if event.Type != "" {
				f.events <- event
			}
			if err != nil {
				f.errs <- err
			}
		}
	}()
	t.Cleanup(func() { stop(); <-f.done })
	return f
}

// next is the next event but heartbeats.
func (f *following[T]) next() Event[T] {
	f.t.Helper()
	enough := time.After(patience)
	for {
		select {
		case event := <-f.events:
			if event.Type != Heartbeat {
				return event
			}
		case <-enough:
			require.FailNow(f.t, "no event came")
		}
	}
}

func (f *following[T]) leave() {
	f.stop()
	<-f.done
}

func (r *rig) followServices(t *testing.T, user, resume string, q ServiceQuery) *following[Service] {
	client := r.client(t, user)
	return follow(t, func(ctx context.Context) func(func(Event[Service], error) bool) {
		return client.WatchServices(ctx, q, resume)
	})
}

// nameOf is an event in a word.
func nameOf(e Event[Service]) string {
	if e.Item != nil {
		return fmt.Sprintf("%s %s/%s %d", e.Type, e.Item.Namespace, e.Item.Name, e.Item.Summary.Due)
	}
	return strings.TrimSpace(string(e.Type) + " " + e.Key)
}

func TestWatch(t *testing.T) {
	r := newRig(t, Config{}, quick)
	r.data.services = services("one", "two")
	w := r.followServices(t, "all", "", ServiceQuery{})
	assert.Equal(t, "added one/s0 0", nameOf(w.next()))
	assert.Equal(t, "added two/s1 0", nameOf(w.next()))
	synced := w.next()
	assert.Equal(t, Synced, synced.Type)
	assert.Equal(t, []string{"a"}, synced.Coverage.Replicas)
	assert.False(t, synced.Restricted)

	r.data.change(func() { r.data.services[0].Summary.RemainingRatio = 0.1 }) // no change
	r.data.change(func() { r.data.services[1].Summary.Due = 1 })
	assert.Equal(t, "changed two/s1 1", nameOf(w.next()))
	r.data.change(func() { r.data.services = append(r.data.services, Service{Namespace: "zz", Name: "new"}) })
	assert.Equal(t, "added zz/new 0", nameOf(w.next()))
	r.data.change(func() { r.data.services = r.data.services[1:] })
	assert.Equal(t, "removed one/s0", nameOf(w.next()))

	// What changes with the clock alone is found too.
	r.data.mu.Lock()
	r.data.services[0].Summary.Due = 2
	r.data.mu.Unlock()
	assert.Equal(t, "changed two/s1 2", nameOf(w.next()))
	select {
	case event := <-w.events:
		assert.Equal(t, Heartbeat, event.Type)
		assert.NotEmpty(t, event.Resume)
	case <-time.After(patience):
		assert.Fail(t, "no heartbeat")
	}
}

func TestWatchPagesAndFilters(t *testing.T) {
	r := newRig(t, Config{}, quick)
	r.data.certificates = append(certificates(1201, "one"), Certificate{SHA256: "x", Namespace: "two"})
	client := r.client(t, "one")
	n := 0
	for event, err := range client.WatchCertificates(t.Context(), CertificateQuery{Standing: Live}, "") {
		require.NoError(t, err)
		if event.Type == Synced {
			assert.True(t, event.Restricted)
			break
		}
		require.Equal(t, Added, event.Type)
		require.Equal(t, "one", event.Item.Namespace)
		n++
	}
	assert.Equal(t, 1201, n)
	for event, err := range client.WatchCertificates(t.Context(), CertificateQuery{Namespace: "two"}, "") {
		assert.ErrorContains(t, err, "(403)")
		assert.Empty(t, event.Type)
	}
}

// TestWatchResume: what happened meanwhile comes, and nothing else; lines that may not have arrived come again.
func TestWatchResume(t *testing.T) {
	r := newRig(t, Config{}, quick)
	r.data.services = services("one", "two", "three", "four")
	w := r.followServices(t, "all", "", ServiceQuery{})
	for range 4 {
		w.next()
	}
	synced := w.next()
	require.Equal(t, Synced, synced.Type)
	r.data.change(func() { r.data.services[0].Summary.Due = 1 })
	require.Equal(t, "changed one/s0 1", nameOf(w.next()))
	r.data.change(func() { r.data.services = r.data.services[:3] })
	last := w.next()
	require.Equal(t, "removed four/s3", nameOf(last))
	w.leave()
	require.Eventually(t, func() bool { return r.watches.used() == 0 }, patience, time.Millisecond)

	r.data.change(func() { r.data.services[1].Summary.Due = 5 })
	w = r.followServices(t, "all", last.Resume, ServiceQuery{})
	assert.Equal(t, "changed two/s1 5", nameOf(w.next()))
	assert.Equal(t, Synced, w.next().Type)
	w.leave()
	require.Eventually(t, func() bool { return r.watches.used() == 0 }, patience, time.Millisecond)

	// As if the last three lines had got lost.
	w = r.followServices(t, "all", synced.Resume, ServiceQuery{})
	got := []string{nameOf(w.next()), nameOf(w.next()), nameOf(w.next())}
	assert.ElementsMatch(t, []string{"changed one/s0 1", "changed two/s1 5", "removed four/s3"}, got)
	assert.Equal(t, Synced, w.next().Type)
	w.leave()
	require.Eventually(t, func() bool { return r.watches.used() == 0 }, patience, time.Millisecond)

	// Another user, other filters and another replica begin anew.
	r.api.set(func() { r.api.rights["other"] = []string{"*"} })
	for _, row := range []struct {
		user   string
		q      ServiceQuery
		resume string
	}{
		{"other", ServiceQuery{}, synced.Resume},
		{"all", ServiceQuery{Problems: true}, synced.Resume},
		{"all", ServiceQuery{}, strings.Repeat("A", 26) + ".0.0"},
		{"all", ServiceQuery{}, strings.Replace(synced.Resume, ".", ".zzz", 1)},
	} {
		w = r.followServices(t, row.user, row.resume, row.q)
		assert.Equal(t, Reset, w.next().Type)
		assert.Equal(t, Added, w.next().Type)
		w.leave()
	}
}

// TestWatchRights: a right that is taken away ends the watch, and one namespace that is taken away goes out of sight.
func TestWatchRights(t *testing.T) {
	r := newRig(t, Config{CacheTime: setting.DurationOf(20 * time.Millisecond)}, quick)
	r.data.services = services("one", "two")
	w := r.followServices(t, "two", "", ServiceQuery{})
	require.Equal(t, "added one/s0 0", nameOf(w.next()))
	require.Equal(t, "added two/s1 0", nameOf(w.next()))
	require.True(t, w.next().Restricted)
	r.api.set(func() { r.api.rights["two"] = []string{"one"} })
	assert.Equal(t, "removed two/s1", nameOf(w.next()))
	r.api.set(func() { r.api.rights["two"] = nil })
	end := w.next()
	assert.Equal(t, End, end.Type)
	assert.Equal(t, 403, end.Problem.Status)
	failure, ok := errors.AsType[*ResponseError](<-w.errs)
	require.True(t, ok)
	assert.Equal(t, 403, failure.Problem.Status)

	w = r.followServices(t, "one", "", ServiceQuery{})
	require.Equal(t, Added, w.next().Type)
	r.api.set(func() { r.api.revoked = "one" })
	for end = w.next(); end.Type != End; end = w.next() {
	}
	assert.Equal(t, 401, end.Problem.Status)

	w = r.followServices(t, "all", "", ServiceQuery{})
	require.Equal(t, Added, w.next().Type)
	r.api.set(func() { r.api.down = true })
	for end = w.next(); end.Type != End; end = w.next() {
	}
	assert.Equal(t, 503, end.Problem.Status)
	assert.NotEmpty(t, end.Resume)
	assert.Equal(t, time.Second, func() time.Duration { f, _ := errors.AsType[*ResponseError](<-w.errs); return f.RetryAfter }())
}

func TestWatchEnds(t *testing.T) {
	t.Run("server stops", func(t *testing.T) {
		r := newRig(t, Config{}, quick)
		w := r.followServices(t, "all", "", ServiceQuery{})
		require.Equal(t, Synced, w.next().Type)
		close(r.stopping)
		end := w.next()
		assert.Equal(t, End, end.Type)
		assert.Contains(t, end.Problem.Detail, "this replica stops")
	})
	t.Run("age", func(t *testing.T) {
		r := newRig(t, Config{}, quick, func(s *Server) { s.pace.age = 50 * time.Millisecond })
		w := r.followServices(t, "all", "", ServiceQuery{})
		require.Equal(t, Synced, w.next().Type)
		assert.Contains(t, w.next().Problem.Detail, "go on with resume")
	})
	t.Run("too large", func(t *testing.T) {
		r := newRig(t, Config{}, quick, func(s *Server) { s.pace.most = 3 })
		r.data.services = services("one", "one", "one", "one")
		w := r.followServices(t, "all", "", ServiceQuery{})
		end := w.next()
		for end.Type == Added {
			end = w.next()
		}
		assert.Contains(t, end.Problem.Detail, "more than 3 items; narrow it down")
	})
	t.Run("fault", func(t *testing.T) {
		r := newRig(t, Config{}, quick)
		r.data.err = errors.New("disk")
		w := r.followServices(t, "all", "", ServiceQuery{})
		assert.Equal(t, 500, w.next().Problem.Status)
	})
	t.Run("too many", func(t *testing.T) {
		r := newRig(t, Config{Watches: 4}, quick)
		r.api.set(func() {
			for _, user := range []string{"b", "c", "d"} {
				r.api.rights[user] = []string{"*"}
			}
		})
		require.Equal(t, Synced, r.followServices(t, "all", "", ServiceQuery{}).next().Type)
		got := r.do(t, "GET", "/v1/services?watch=true", "all")
		assert.Equal(t, 429, got.status)
		assert.Contains(t, got.problem(t).Detail, "you have 1 watches already")
		for _, user := range []string{"b", "c", "d"} {
			require.Equal(t, Synced, r.followServices(t, user, "", ServiceQuery{}).next().Type)
		}
		assert.Equal(t, 503, r.do(t, "GET", "/v1/services?watch=true", "two").status)
		assert.Zero(t, r.inFlight.used(), "a watch is no request in flight")
	})
}

// TestWatchSlowReader: who reads too slowly is cut, and told why where it reads at all.
func TestWatchSlowReader(t *testing.T) {
	// begin asks for a watch of more than any buffer holds.
	begin := func(t *testing.T, adjust func(*Server)) (*rig, net.Conn) {
		r := newRig(t, Config{}, quick, adjust)
		r.data.certificates = certificates(2000, "one")
		for i := range r.data.certificates {
			r.data.certificates[i].PEM = strings.Repeat("x", 40<<10)
		}
		plain, err := net.Dial("tcp", strings.TrimPrefix(r.url, "https://"))
		require.NoError(t, err)
		pool := r.http.Transport.(*http.Transport).TLSClientConfig.RootCAs
		conn := tls.Client(plain, &tls.Config{RootCAs: pool, ServerName: "example.com", NextProtos: []string{"http/1.1"}})
		t.Cleanup(func() { conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
		_, err = io.WriteString(conn, "GET /v1/certificates?watch=true HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer all\r\n\r\n")
		require.NoError(t, err)
		return r, conn
	}
	// rest reads up to the end, and says how many lines there were and what was the last.
	rest := func(lines *bufio.Scanner) (n int, last Event[Certificate]) {
		var line []byte
		for lines.Scan() {
			line = append(line[:0], lines.Bytes()...)
			n++
		}
		_ = json.Unmarshal(line, &last) // it may be cut
		return n, last
	}
	scan := func(body io.Reader) *bufio.Scanner {
		lines := bufio.NewScanner(body)
		lines.Buffer(nil, 1<<20)
		return lines
	}
	// left says that a watch has ended which could not be told why.
	left := func(r *rig) bool {
		families, err := r.reg.Gather()
		require.NoError(t, err)
		for _, family := range families {
			if family.GetName() == "api_watches_ended_total" {
				return family.GetMetric()[0].GetLabel()[0].GetValue() == "left"
			}
		}
		return false
	}
	t.Run("slow", func(t *testing.T) {
		const slow = 100 * time.Millisecond
		r, conn := begin(t, func(s *Server) { s.pace.slow, s.pace.cut = slow, patience })
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		require.Equal(t, 200, response.StatusCode)
		lines := scan(response.Body)
		require.True(t, lines.Scan())
		time.Sleep(slow + time.Millisecond) // what was found at once is being written since before the first line came
		n, last := rest(lines)
		assert.Less(t, n, 2000)
		require.NotNil(t, last.Problem)
		assert.Equal(t, End, last.Type)
		assert.Contains(t, last.Problem.Detail, "you read too slowly")
		assert.Eventually(t, func() bool { return r.watches.used() == 0 }, patience, time.Millisecond)
	})
	t.Run("not at all", func(t *testing.T) {
		r, conn := begin(t, func(s *Server) { s.pace.slow, s.pace.cut = patience, 500*time.Millisecond })
		require.Eventually(t, func() bool { return left(r) }, patience, time.Millisecond)
		require.Eventually(t, func() bool { return r.watches.used() == 0 }, patience, time.Millisecond)
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return // on a slow machine it is cut before the first byte
		}
		n, last := rest(scan(response.Body))
		assert.Less(t, n, 2000)
		assert.NotEqual(t, End, last.Type)
	})
}

// TestWatchQuiet: a watch on which nothing is written for longer than a reader may take goes on, in HTTP/2 too. On a machine
// that is too slow for the times it is tried again with longer ones.
func TestWatchQuiet(t *testing.T) {
	quiet := func(scale time.Duration) error {
		r := newRig(t, Config{}, quick, func(s *Server) {
			s.pace.slow, s.pace.cut, s.pace.heartbeat = 40*scale, 80*scale, 200*scale
		})
		w := r.followServices(t, "all", "", ServiceQuery{})
		defer w.leave()
		for beats := 0; beats < 3; {
			select {
			case event := <-w.events:
				switch event.Type {
				case Heartbeat:
					beats++
				case End:
					return errors.New(event.Problem.Detail)
				}
			case err := <-w.errs:
				return err
			}
		}
		return nil
	}
	var err error
	for scale := time.Millisecond; scale <= 200*time.Millisecond; scale *= 5 {
		if err = quiet(scale); err == nil {
			return
		}
	}
	require.NoError(t, err)
}

func issued(n int, at time.Time) Issuance {
	c := certificates(n+1, "one")[n]
	return Issuance{Time: at, Outcome: Issued, Certificate: &c}
}

// TestWatchIssuances: the audit is followed in order, refusals that are counted come again, and another replica goes on
// from about the same time.
func TestWatchIssuances(t *testing.T) {
	r := newRig(t, Config{}, quick)
	early := time.Now().Truncate(time.Second).Add(-time.Hour)
	r.data.issuances = []Issuance{issued(0, early)}
	watch := func(r *rig, resume string, q IssuanceQuery) *following[Issuance] {
		client := r.client(t, "all")
		return follow(t, func(ctx context.Context) func(func(Event[Issuance], error) bool) {
			return client.WatchIssuances(ctx, q, resume)
		})
	}
	w := watch(r, "", IssuanceQuery{})
	require.Equal(t, Synced, w.next().Type, "it begins now")
	now := time.Now().Truncate(time.Second).Add(time.Second) // after it began, however long that took
	r.data.change(func() {
		for i := 1; i <= 1300; i++ {
			r.data.issuances = append(r.data.issuances, issued(i, now.Add(time.Duration(i)*time.Millisecond)))
		}
	})
	var last Event[Issuance]
	for i := 1; i <= 1300; i++ {
		last = w.next()
		require.Equal(t, Added, last.Type)
		require.Equal(t, now.Add(time.Duration(i)*time.Millisecond).UTC(), last.Item.Time.UTC(), "in order")
	}
	refusal := Issuance{Time: now.Add(2 * time.Second), Outcome: Refused, Refusal: &Refusal{Reason: "csr", Count: 1, First: now}}
	r.data.change(func() { r.data.issuances = append(r.data.issuances, refusal) })
	assert.Equal(t, int64(1), w.next().Item.Refusal.Count)
	r.data.change(func() {
		more := *refusal.Refusal
		more.Count = 7
		r.data.issuances[len(r.data.issuances)-1].Refusal = &more
	})
	again := w.next()
	assert.Equal(t, Changed, again.Type)
	assert.Equal(t, int64(7), again.Item.Refusal.Count)
	// A record of another replica that comes late, with an earlier time.
	r.data.change(func() { r.data.issuances = append(r.data.issuances, issued(1301, now.Add(500*time.Microsecond))) })
	assert.Equal(t, certificates(1302, "one")[1301].SHA256, w.next().Item.Certificate.SHA256)
	w.leave()

	other := newRig(t, Config{}, quick)
	other.data.issuances = append(slices.Clone(r.data.issuances), issued(2000, now.Add(3*time.Second)))
	w = watch(other, again.Resume, IssuanceQuery{})
	assert.Equal(t, int64(7), w.next().Item.Refusal.Count, "the line of the resume may come again")
	assert.Equal(t, certificates(2001, "one")[2000].SHA256, w.next().Item.Certificate.SHA256)
	assert.Equal(t, Synced, w.next().Type)

	w = watch(r, "", IssuanceQuery{Since: early.Add(-time.Hour)})
	assert.Equal(t, early.UTC(), w.next().Item.Time.UTC(), "it begins where it is told to")
}

func FuzzParseResume(f *testing.F) {
	f.Add("AAAAAAAAAAAAAAAAAAAAAAAAAA.0.0")
	f.Add("..")
	f.Fuzz(func(t *testing.T, text string) {
		id, line, newest, err := parseResume(text)
		if err != nil {
			return
		}
		state := watchState{id: id, line: line, newest: newest}
		id2, line2, newest2, err := parseResume(state.resume())
		if err != nil || id2 != id || line2 != line || !newest2.Equal(newest) {
			t.Fatal(text, state.resume())
		}
	})
}

// TestWatchMemory: what is kept of a caller is bounded however long it watches.
func TestWatchMemory(t *testing.T) {
	state := &watchState{known: make(map[string]mark)}
	for i := range 100_000 {
		state.sent(fmt.Sprint(i))
	}
	assert.LessOrEqual(t, len(state.recent), 2*keptLines)
	assert.Equal(t, "99999", state.recent[len(state.recent)-1])
	assert.GreaterOrEqual(t, len(state.recent), keptLines)
}

// BenchmarkLook is one look of a watch at 50,000 certificates of which none has changed.
func BenchmarkLook(b *testing.B) {
	for _, n := range []int{1000, 50_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, Config{})
			r.data.certificates = certificates(n, "one")
			request, err := http.NewRequest("GET", "/", nil)
			require.NoError(b, err)
			request.Header.Set("Authorization", "Bearer all")
			w := &watcher[Certificate]{
				watched: watched[Certificate]{resource: resourceCertificates, key: func(c *Certificate) string { return c.SHA256 },
					list: func(_ context.Context, _ Visible, page Page, _ time.Time) ([]Certificate, List, error) {
						from, _ := strconv.Atoi(page.Continue)
						to := min(n, from+page.Limit)
						list := List{Continue: strconv.Itoa(to)}
						if to == n {
							list.Continue = ""
						}
						return r.data.certificates[from:to], list, nil
					}},
				call: &call{server: r.Server, r: request, caller: &caller{name: "all"}}, server: r.Server,
				state: &watchState{known: make(map[string]mark)}, out: discard{},
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := w.look(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type discard struct{}

func (discard) Header() http.Header            { return http.Header{} }
func (discard) WriteHeader(int)                {}
func (discard) Flush()                         {}
func (discard) Write(text []byte) (int, error) { return len(text), nil }
