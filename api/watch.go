package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	lru "k8s.io/apimachinery/pkg/util/cache"
)

// EventType is what a line of a watch says.
type EventType string

// Types of events.
const (
	// Added is an item that wasn't there, or was there at the beginning.
	Added EventType = "added"
	// Changed is an item in its new form, or one that may have got lost before a resume. That less of a life is left is
	// no change.
	Changed EventType = "changed"
	// Removed is an item, by its key, that isn't there any more, or is out of sight.
	Removed EventType = "removed"
	// Synced says that all there was at the beginning has been sent.
	Synced EventType = "synced"
	// Heartbeat says that nothing has changed for a while.
	Heartbeat EventType = "heartbeat"
	// Reset says that a resume was not possible: what was known before is to be forgotten, and all of it follows.
	Reset EventType = "reset"
	// End is the last line. Its problem says why, and whether asking again helps.
	End EventType = "end"
)

// Event is one line of a watch.
type Event[T any] struct {
	Type EventType `json:"type"`
	// Item is what was added, or is changed.
	Item *T `json:"item,omitempty"`
	// Key is that of what was removed: namespace/name of a service, sha256 of a certificate, namespace/name.api of a
	// gateway.
	Key string `json:"key,omitempty"`
	// Resume goes on behind this line, for two minutes and at the same replica. Elsewhere and later a watch of
	// services, certificates or gateways begins anew, with a reset, and one of issuances goes on from about the same time, where
	// some lines may come again.
	Resume string `json:"resume,omitempty"`
	// Coverage says how complete it is; in lines of type synced.
	Coverage *Coverage `json:"coverage,omitempty"`
	// Restricted is true where namespaces are left out; in lines of type synced.
	Restricted bool `json:"restricted,omitempty"`
	// Problem is why the watch ends.
	Problem *ProblemDetails `json:"problem,omitempty"`
}

// pace is how fast a watch goes.
type pace struct {
	pause     time.Duration // between two looks at least
	times     int           // as long as a look takes, between two looks at least
	poll      time.Duration // between two looks at most, for what grows
	heartbeat time.Duration // between two lines at most, and between two looks
	slow      time.Duration // that a reader may take for what was found at once
	cut       time.Duration // after which it is cut even where it can't be told why
	age       time.Duration // after which a watch ends
	overlap   time.Duration // that is looked at again for records that came late
	most      int           // items that one watch may be about
}

var defaultPace = pace{
	pause: time.Second, times: 16, poll: 2 * time.Second, heartbeat: 15 * time.Second, slow: 20 * time.Second,
	cut: 40 * time.Second, age: time.Hour, overlap: 30 * time.Second, most: 50_000,
}

// watched is a list that is watched.
type watched[T any] struct {
	resource, namespace string
	key                 func(*T) string
	// list is a page. Since is for lists that grow.
	list func(ctx context.Context, visible Visible, page Page, since time.Time) ([]T, List, error)
	// time is when an item was made, of lists that only grow, which are the latest first; nil for others.
	time  func(*T) time.Time
	since time.Time // where the watch of a list that grows begins; zero for now
}

// watchState is what a caller knows by a watch. It belongs to one watch at a time.
type watchState struct {
	id     string
	owner  [sha256.Size]byte // of the caller and what is watched
	line   uint64            // number of the last line about an item
	look   uint32
	known  map[string]mark
	recent []string // keys of the last lines, the last one at the end
	newest time.Time
}

// mark is what is known of an item.
type mark struct {
	hash uint64 // 0 for what must be sent again
	look uint32 // the last that found it
}

// keptLines is how many lines a caller may not have got when a watch ended, for it to be resumed.
const keptLines = 4096

// watchStates keeps what callers knew when their watches ended. Safe for concurrent use.
type watchStates struct{ kept *lru.LRUExpireCache }

func newWatchStates(most int) *watchStates { return &watchStates{lru.NewLRUExpireCache(most)} }

const keepState = 2 * time.Minute

func (w *watchStates) keep(state *watchState) { w.kept.Add(state.id, state, keepState) }

// take is the state that a watch left, as it was behind a line; nil where it isn't known, or is somebody else's.
func (w *watchStates) take(id string, line uint64, owner [sha256.Size]byte) *watchState {
	kept, ok := w.kept.Get(id)
	if !ok {
		return nil
	}
	state := kept.(*watchState)
	if state.owner != owner || line > state.line || state.line-line > uint64(len(state.recent)) {
		return nil
	}
	w.kept.Remove(id)
	// Lines that may not have arrived are sent again.
	for _, key := range state.recent[len(state.recent)-int(state.line-line):] {
		again := state.known[key]
		again.hash = 0
		state.known[key] = again
	}
	return state
}

// parseResume reads id.line and, for lists that grow, the time of the newest item.
func parseResume(text string) (id string, line uint64, newest time.Time, err error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 || len(parts[0]) != len(rand.Text()) {
		return "", 0, time.Time{}, errors.New("not three parts")
	}
	if line, err = strconv.ParseUint(parts[1], 36, 64); err != nil {
		return "", 0, time.Time{}, err
	}
	nanos, err := strconv.ParseInt(parts[2], 36, 64)
	if err != nil {
		return "", 0, time.Time{}, err
	}
	if nanos > 0 {
		newest = time.Unix(0, nanos)
	}
	return parts[0], line, newest, nil
}

func (s *watchState) resume() string {
	var nanos int64
	if !s.newest.IsZero() {
		nanos = s.newest.UnixNano()
	}
	return s.id + "." + strconv.FormatUint(s.line, 36) + "." + strconv.FormatInt(nanos, 36)
}

// sent notes a line about an item.
func (s *watchState) sent(key string) {
	s.line++
	if len(s.recent) == 2*keptLines {
		s.recent = append(s.recent[:0], s.recent[keptLines:]...)
	}
	s.recent = append(s.recent, key)
}

var seed = maphash.MakeSeed()

// hashOf tells forms of an item apart; never 0.
func hashOf(item []byte) uint64 {
	var hash maphash.Hash
	hash.SetSeed(seed)
	stable(item, func(part []byte) { _, _ = hash.Write(part) })
	return max(1, hash.Sum64())
}

// watcher is one watch under way.
type watcher[T any] struct {
	watched[T]
	call   *call
	server *Server
	state  *watchState
	out    http.ResponseWriter
	lines  bytes.Buffer // not written yet
	seen   List         // what the last look says of itself
	cpu    time.Duration
	last   time.Time // when a line was written
}

// ended is why a watch ends.
type ended struct {
	why     string // for the metric
	problem *fault // for the caller
}

func (e *ended) Error() string { return e.problem.Detail }

func end(why string, status int, detail string) error { return &ended{why, newFault(status, detail)} }

// watch streams changes until the caller leaves or the watch must end. What is wrong before the first line is an
// ordinary error.
func watch[T any](ctx context.Context, paging PageParams, params WatchParams, list watched[T]) error {
	c := callOf(ctx)
	s := c.server
	if paging.Continue != "" || c.r.URL.Query().Has("limit") {
		return newFault(http.StatusUnprocessableEntity, "a watch has no pages: leave out limit and continue")
	}
	if c.r.Method != http.MethodGet {
		return newFault(http.StatusUnprocessableEntity, "a watch is a GET")
	}
	var resumeID string
	var resumeLine uint64
	var resumeTime time.Time
	if params.Resume != "" {
		var err error
		if resumeID, resumeLine, resumeTime, err = parseResume(params.Resume); err != nil {
			return newFault(http.StatusBadRequest, "resume is not valid: it must be that of a line of an earlier watch; start again without it").at("query.resume", "not valid", nil)
		}
	}
	if _, err := s.authz.visible(ctx, c.caller, verbWatch, list.resource, list.namespace); err != nil {
		return err
	}
	if !s.watches.enter() {
		return newFault(http.StatusServiceUnavailable, fmt.Sprintf("there are %d watches already; ask again when one has ended", s.watches.most))
	}
	defer s.watches.leave()
	if !s.watches.enterAs(c.caller.name) {
		return newFault(http.StatusTooManyRequests, fmt.Sprintf("you have %d watches already; end one", s.watches.mostEach))
	}
	defer s.watches.leaveAs(c.caller.name)

	w := &watcher[T]{watched: list, call: c, server: s}
	owner := ownerOf(c)
	resumed := false
	if params.Resume != "" {
		w.state = s.states.take(resumeID, resumeLine, owner)
		resumed = w.state != nil
	}
	if !resumed {
		w.state = &watchState{id: rand.Text(), owner: owner, known: make(map[string]mark), newest: list.since}
		if list.time != nil && resumeTime.After(list.since) {
			w.state.newest = resumeTime
		}
		if list.time != nil && w.state.newest.IsZero() {
			w.state.newest = time.Now().Truncate(time.Second) // records may have whole seconds
		}
	}
	defer s.states.keep(w.state)

	// From here on it isn't one of the requests that are bounded by time and number.
	c.leave()
	c.leave = func() {}
	w.out = c.answer.stream()
	control := http.NewResponseController(w.out)
	_ = control.SetReadDeadline(time.Time{}) // those of the request would end it
	_ = control.SetWriteDeadline(time.Time{})
	header := w.out.Header()
	header.Set("Content-Type", "application/x-ndjson")
	header.Set("X-Accel-Buffering", "no")
	w.out.WriteHeader(http.StatusOK)
	if params.Resume != "" && !resumed && list.time == nil {
		w.add(Event[json.RawMessage]{Type: Reset})
	}

	c.tell(WatchStarted)
	before := w.state.line
	err := w.run(c.r.Context())
	c.items = int64(w.state.line - before)
	reason, ok := errors.AsType[*ended](err)
	if !ok {
		reason = &ended{"left", newFault(statusClientLeft, "the caller left")}
	}
	s.metrics.ended.WithLabelValues(reason.why).Inc()
	if ok {
		w.add(Event[json.RawMessage]{Type: End, Resume: w.state.resume(), Problem: &reason.problem.ProblemDetails})
		_ = w.write() // it ends in any case
	}
	return nil
}

// ownerOf is the digest of who watches what.
func ownerOf(c *call) [sha256.Size]byte {
	query := c.r.URL.Query()
	query.Del("resume")
	return sha256.Sum256([]byte(c.caller.name + "\x00" + c.r.URL.Path + "\x00" + query.Encode()))
}

// run looks again and again.
func (w *watcher[T]) run(ctx context.Context) error {
	s := w.server
	old := time.NewTimer(s.pace.age)
	defer old.Stop()
	for first := true; ; first = false {
		changed := s.views.Changed()
		if err := w.look(ctx); err != nil {
			return err
		}
		switch {
		case first:
			w.add(Event[json.RawMessage]{Type: Synced, Resume: w.state.resume(), Coverage: &w.seen.Coverage, Restricted: w.seen.Restricted})
		case time.Since(w.last) >= s.pace.heartbeat:
			w.add(Event[json.RawMessage]{Type: Heartbeat, Resume: w.state.resume()})
		}
		if err := w.write(); err != nil {
			return err
		}
		pause := time.NewTimer(max(s.pace.pause, min(time.Duration(s.pace.times)*w.cpu, time.Minute)))
		longest := s.pace.heartbeat
		if w.time != nil {
			longest = s.pace.poll
		}
		again := time.NewTimer(longest)
		err := w.wait(ctx, old.C, nil, pause.C)
		if err == nil {
			err = w.wait(ctx, old.C, changed, again.C)
		}
		pause.Stop()
		again.Stop()
		if err != nil {
			return err
		}
	}
}

func (w *watcher[T]) wait(ctx context.Context, old <-chan time.Time, changed <-chan struct{}, enough <-chan time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.server.stopping:
		return end("stopping", http.StatusServiceUnavailable, "this replica stops; watch again, at another one")
	case <-old:
		return end("age", http.StatusServiceUnavailable, fmt.Sprintf("a watch ends after %s; go on with resume", w.server.pace.age))
	case <-changed:
	case <-enough:
	}
	return nil
}

// look compares what there is with what the caller knows, and writes the differences. Who the caller is, and what it
// may see, is asked anew.
func (w *watcher[T]) look(ctx context.Context) error {
	s := w.server
	asking, cancel := context.WithTimeout(context.WithValue(ctx, callKey{}, w.call), requestTimeout)
	defer cancel()
	caller, err := s.authn.authenticate(asking, w.call.r)
	if err == nil && caller.name != w.call.caller.name {
		err = newFault(http.StatusUnauthorized, "the token is another user's by now")
	}
	var visible Visible
	if err == nil {
		visible, err = s.authz.visible(asking, caller, verbWatch, w.resource, w.namespace)
	}
	if err != nil {
		return refusedWatch(ctx, err)
	}
	w.cpu = 0
	w.state.look++
	since := w.state.newest
	if w.time != nil && len(w.state.known) > 0 {
		since = since.Add(-s.pace.overlap)
		if since.Before(w.since) {
			since = w.since
		}
	}
	var grown [][]byte // lines of a list that grows, the latest first
	page := Page{Limit: 500}
	for {
		items, list, err := w.page(asking, visible, page, since, &grown)
		if err != nil {
			return err
		}
		w.seen = restricted(list, visible, w.namespace)
		if len(w.state.known) > s.pace.most {
			return end("large", http.StatusUnprocessableEntity, fmt.Sprintf("this watch is about more than %d items; narrow it down, to a namespace for example", s.pace.most))
		}
		if len(grown) >= mostGrown || list.Continue == "" || items == 0 {
			slices.Reverse(grown)
			for _, line := range grown {
				w.lines.Write(line)
			}
			grown = grown[:0]
		}
		if err := w.write(); err != nil {
			return err
		}
		if list.Continue == "" || items == 0 {
			break
		}
		page.Continue = list.Continue
	}
	for key, mark := range w.state.known {
		if mark.look == w.state.look {
			continue
		}
		delete(w.state.known, key)
		if w.time == nil {
			w.state.sent(key)
			w.add(Event[json.RawMessage]{Type: Removed, Key: key, Resume: w.state.resume()})
		}
	}
	return w.write()
}

// mostGrown bounds the lines that are put into order at once.
const mostGrown = 5000

// page asks for a page and compares it, at work.
func (w *watcher[T]) page(ctx context.Context, visible Visible, page Page, since time.Time, grown *[][]byte) (int, List, error) {
	if err := w.call.work(ctx); err != nil {
		return 0, List{}, refusedWatch(ctx, fromViews(ctx, err, w.resource))
	}
	defer w.call.rest()
	begin := time.Now()
	defer func() { w.cpu += time.Since(begin) }()
	items, list, err := w.list(ctx, visible, page, since)
	if err != nil {
		return 0, List{}, refusedWatch(ctx, fromViews(ctx, err, w.resource))
	}
	for i := range items {
		key := w.key(&items[i])
		text, err := json.Marshal(&items[i])
		if err != nil {
			return 0, List{}, refusedWatch(ctx, fromViews(ctx, err, w.resource))
		}
		hash := hashOf(text)
		before, known := w.state.known[key]
		w.state.known[key] = mark{hash, w.state.look}
		if known && before.hash == hash {
			continue
		}
		kind := Changed
		if !known {
			kind = Added
		}
		if w.time != nil {
			if at := w.time(&items[i]); at.After(w.state.newest) {
				w.state.newest = at
			}
		}
		w.state.sent(key)
		event := Event[json.RawMessage]{Type: kind, Item: (*json.RawMessage)(&text), Resume: w.state.resume()}
		if w.time == nil {
			w.add(event)
		} else {
			*grown = append(*grown, encodeLine(event))
		}
	}
	return len(items), list, nil
}

// refusedWatch is why a watch ends by a fault.
func refusedWatch(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return ctx.Err()
	}
	f := asFault(err)
	if f.Status == http.StatusInternalServerError {
		return &ended{"fault", f}
	}
	return &ended{"refused", f}
}

func encodeLine(event Event[json.RawMessage]) []byte {
	line, err := json.Marshal(event)
	if err != nil { // what it holds was encoded before
		line = []byte(`{"type":"end"}`)
	}
	return append(line, '\n')
}

func (w *watcher[T]) add(event Event[json.RawMessage]) { w.lines.Write(encodeLine(event)) }

// write sends the lines. A reader that is too slow for them is cut: it can still read why, where it reads at all.
func (w *watcher[T]) write() error {
	if w.lines.Len() == 0 {
		return nil
	}
	slow := w.server.pace.slow
	control := http.NewResponseController(w.out)
	begin := time.Now()
	_ = control.SetWriteDeadline(begin.Add(w.server.pace.cut)) // a test's writer has none
	w.server.metrics.lines.Add(float64(bytes.Count(w.lines.Bytes(), []byte("\n"))))
	n, err := w.out.Write(w.lines.Bytes())
	w.call.answer.sent += int64(n)
	w.lines.Reset()
	if err == nil {
		err = control.Flush()
	}
	if err != nil {
		return err
	}
	_ = control.SetWriteDeadline(time.Time{}) // in HTTP/2 it would end a stream on which nothing is written too
	w.last = time.Now()
	if w.last.Sub(begin) > slow {
		return end("slow", http.StatusRequestTimeout, fmt.Sprintf("you read too slowly: more than %s for what was found at once; go on with resume", slow))
	}
	return nil
}
