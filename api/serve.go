package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// requestTimeout bounds the making of an answer, watches aside.
	requestTimeout = 30 * time.Second
	// sendTimeout bounds how long a caller may take to read it.
	sendTimeout = 20 * time.Second
	// gzipFrom is how many bytes an answer must have to be worth compressing.
	gzipFrom = 1400
)

// call is one request under way.
type call struct {
	server *Server
	r      *http.Request // its context ends when the caller leaves
	answer *answer
	caller *caller

	// For the audit.
	begin  time.Time
	route  string        // pattern of the path, empty until it is known
	routed *http.Request // as its handler got it, with the values of the path; nil where none did
	items  int64         // objects that were answered

	atWork    bool      // holds a place in Server.working
	workBegan time.Time // since when
	leave     func()    // gives back what was taken to let it in
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// work takes the place that whoever uses the CPU for long must have, so that inspection never takes all of it from
// signing. It is given back when the answer is made.
func (c *call) work(ctx context.Context) error {
	if c.atWork {
		return nil
	}
	select {
	case c.server.working <- struct{}{}:
		c.atWork, c.workBegan = true, time.Now()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rest gives the place at work back. While certificates are being signed it stays taken for a while, so that questions
// have the smaller part of the processors however many there are.
func (c *call) rest() {
	if !c.atWork {
		return
	}
	c.atWork = false
	free := func() { <-c.server.working }
	if c.server.busy == nil || !c.server.busy() {
		free()
		return
	}
	time.AfterFunc(min(restFactor*time.Since(c.workBegan), maxRest), free)
}

// While certificates are signed, a place at work rests restFactor times as long as it was used, but not over maxRest.
const (
	restFactor = 9
	maxRest    = 200 * time.Millisecond
)

// ServeHTTP answers one request. Every answer that is no success has [ProblemDetails].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	c := &call{server: s, r: r, answer: &answer{w: w}, leave: func() {}, begin: begin}
	route := "other"
	defer func() {
		c.rest()
		c.leave()
		s.metrics.answered(route, c.answer.code(), time.Since(begin), c.answer.streamed)
		if c.answer.streamed {
			c.tell(WatchEnded)
		} else {
			c.tell("")
		}
	}()
	defer func() {
		if trouble := recover(); trouble != nil {
			if trouble == http.ErrAbortHandler { //nolint:errorlint // net/http compares so too
				panic(trouble)
			}
			s.log.Error("inspection request ended in a panic", "route", route, "err", fmt.Sprint(trouble), "stack", string(debug.Stack()))
			c.fail(newFault(http.StatusInternalServerError, "the answer could not be made; the log says why"))
			_ = c.answer.send(r)
		}
	}()
	_, pattern := s.handlers.Handler(r)
	if _, place, ok := strings.Cut(pattern, " "); ok {
		pattern = place
	}
	if pattern != "" && clean(r.URL.EscapedPath()) {
		route = pattern
	}
	c.route = route
	s.admit(c, route)
	if c.answer.streamed {
		return
	}
	if c.answer.status >= http.StatusBadRequest {
		c.answer.explain()
	}
	c.answer.encode(r)
	c.rest() // whoever reads slowly holds up nobody
	if err := c.answer.send(r); err != nil {
		c.answer.status = statusClientLeft
	}
}

// clean says that a path is not another one written in a roundabout way.
func clean(escaped string) bool {
	cleaned := path.Clean(escaped)
	return escaped == cleaned || cleaned != "/" && escaped == cleaned+"/"
}

// fail makes f the answer, in place of what was written so far.
func (c *call) fail(f *fault) {
	if c.answer.streamed {
		return
	}
	if f.Status >= http.StatusInternalServerError && f.cause != nil && c.server.complaints.Allow() {
		c.server.log.Warn("inspection request not answered", "status", f.Status, "detail", f.Detail, "err", f.cause)
	}
	c.answer.body.Reset()
	c.answer.status = 0
	f.write(c.answer)
}

// admit checks what can be checked before the request is understood, and passes it on.
func (s *Server) admit(c *call, route string) {
	r := c.r
	header := c.answer.w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "private, no-cache")
	header.Set("Vary", "Authorization, Accept-Encoding")
	if r.ContentLength != 0 && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		header.Set("Connection", "close")
		c.fail(newFault(http.StatusRequestEntityTooLarge, r.Method+" takes no body"))
		return
	}
	r.Body = http.MaxBytesReader(c.answer.w, r.Body, maxBodyBytes)
	if !clean(r.URL.EscapedPath()) {
		c.fail(newFault(http.StatusNotFound, "there is nothing at this path; a slash within a name must be percent-encoded, as in /v1/identities/spiffe:%2F%2Fcluster.local%2Fns%2Fdefault%2Fsa%2Fweb"))
		return
	}
	if strings.HasPrefix(route, "/v1/") { // files of the page cost next to nothing, and come many at once
		if !s.inFlight.enter() {
			c.fail(newFault(http.StatusServiceUnavailable, "too many requests are under way; ask again"))
			return
		}
		c.leave = s.inFlight.leave
	}
	ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), callKey{}, c), requestTimeout)
	defer cancel()
	if strings.HasPrefix(route, "/v1/") {
		caller, err := s.authn.authenticate(ctx, r)
		if err != nil {
			c.fail(asFault(err))
			return
		}
		c.caller = caller
		if !s.inFlight.enterAs(caller.name) {
			c.fail(newFault(http.StatusTooManyRequests, fmt.Sprintf("you have %d requests under way; ask again when one is answered", s.inFlight.mostEach)))
			return
		}
		c.leave = func() { s.inFlight.leaveAs(caller.name); s.inFlight.leave() }
	}
	c.routed = r.WithContext(ctx)
	s.handlers.ServeHTTP(c.answer, c.routed)
}

// maxBodyBytes bounds the body of a request.
const maxBodyBytes = 64 << 10

func asFault(err error) *fault {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	return newFault(http.StatusInternalServerError, "the answer could not be made; the log says why").because(err)
}

// answer keeps what is answered until it is whole, so that it can be tagged, compressed, and replaced. A watch takes the
// way around it.
type answer struct {
	w        http.ResponseWriter
	status   int
	body     bytes.Buffer
	streamed bool
	sent     int64 // bytes of the body
}

func (a *answer) Header() http.Header { return a.w.Header() }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && !a.streamed {
		a.status = status
	}
}

func (a *answer) Write(text []byte) (int, error) {
	if a.streamed {
		return 0, errors.New("the answer is a stream")
	}
	a.WriteHeader(http.StatusOK)
	return a.body.Write(text)
}

func (a *answer) code() int {
	if a.status == 0 {
		return http.StatusOK
	}
	return a.status
}

// explain turns the plain text of net/http's own errors into a problem.
func (a *answer) explain() {
	if kind := a.Header().Get("Content-Type"); kind == problemType {
		return
	}
	detail := "there is nothing at this path; /openapi.json says what there is"
	if a.status == http.StatusMethodNotAllowed {
		detail = "only " + a.Header().Get("Allow") + " are allowed here"
	} else if a.status != http.StatusNotFound {
		detail = strings.TrimSpace(a.body.String())
	}
	status := a.status
	a.body.Reset()
	a.status = 0
	newFault(status, detail).write(a)
}

// encode tags the answer, leaves out what the caller has, and compresses.
func (a *answer) encode(r *http.Request) {
	header := a.Header()
	if a.code() == http.StatusOK && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		tag := etag(a.body.Bytes())
		header.Set("ETag", tag)
		if matches(r.Header.Values("If-None-Match"), tag) {
			a.status = http.StatusNotModified
			a.body.Reset()
			header.Del("Content-Type")
			return
		}
	}
	if a.body.Len() >= gzipFrom && header.Get("Content-Encoding") == "" && acceptsGzip(r.Header.Values("Accept-Encoding")) {
		var packed bytes.Buffer
		packer := packers.Get().(*gzip.Writer)
		packer.Reset(&packed)
		_, _ = packer.Write(a.body.Bytes()) // memory takes it
		_ = packer.Close()
		packers.Put(packer)
		a.body = packed
		header.Set("Content-Encoding", "gzip")
	}
}

var packers = sync.Pool{New: func() any {
	packer, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is known
	return packer
}}

func (a *answer) send(r *http.Request) error {
	if a.streamed {
		return nil
	}
	_ = http.NewResponseController(a.w).SetWriteDeadline(time.Now().Add(sendTimeout)) // a test's writer has none
	if a.code() != http.StatusNotModified {
		a.Header().Set("Content-Length", strconv.Itoa(a.body.Len()))
	}
	a.w.WriteHeader(a.code())
	if r.Method == http.MethodHead || a.code() == http.StatusNotModified { // neither takes a body, not even an empty one
		return nil
	}
	n, err := a.w.Write(a.body.Bytes())
	a.sent += int64(n)
	return err
}

// stream is where a watch writes.
func (a *answer) stream() http.ResponseWriter {
	a.streamed = true
	a.status = http.StatusOK
	return a.w
}

// etag is a weak tag (RFC 9110 §8.8.1): two answers that differ only in how much of a life is left, and in their
// encoding, have the same.
func etag(body []byte) string {
	digest := sha256.New()
	stable(body, func(part []byte) { digest.Write(part) })
	return `W/"` + hex.EncodeToString(digest.Sum(nil)[:16]) + `"`
}

// passing are the fields that change with every second. Within a text, JSON escapes the quotes.
var passing = [][]byte{[]byte(`"remainingSeconds":`), []byte(`"remainingRatio":`)}

// stable passes on the parts of a JSON text without the numbers of passing fields.
func stable(body []byte, part func([]byte)) {
	for len(body) > 0 {
		next, length := len(body), 0
		for _, field := range passing {
			if at := bytes.Index(body[:next], field); at >= 0 {
				next, length = at, len(field)
			}
		}
		part(body[:next+length])
		body = body[next+length:]
		if length > 0 {
			body = bytes.TrimLeft(body, "0123456789.eE+-")
		}
	}
}

// matches says that If-None-Match has the tag (RFC 9110 §13.1.2): compared weakly, * matches any.
func matches(headers []string, tag string) bool {
	for _, header := range headers {
		for each := range strings.SplitSeq(header, ",") {
			each = strings.TrimSpace(each)
			if each == "*" || strings.TrimPrefix(each, "W/") == strings.TrimPrefix(tag, "W/") {
				return true
			}
		}
	}
	return false
}

// acceptsGzip reads Accept-Encoding (RFC 9110 §12.5.3).
func acceptsGzip(headers []string) bool {
	accepted := false
	for _, header := range headers {
		for each := range strings.SplitSeq(header, ",") {
			coding, parameters, _ := strings.Cut(each, ";")
			coding = strings.ToLower(strings.TrimSpace(coding))
			if coding != "gzip" && coding != "*" {
				continue
			}
			name, value, _ := strings.Cut(strings.TrimSpace(parameters), "=")
			good := true
			if strings.EqualFold(strings.TrimSpace(name), "q") {
				weight, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				good = err == nil && weight > 0
			}
			if coding == "gzip" {
				return good
			}
			accepted = good
		}
	}
	return accepted
}
