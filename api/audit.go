package api

import (
	"net"
	"net/http"
	"reflect"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Auditor is told who read what.
type Auditor interface {
	// Read tells of a request to a route below /v1/ whose answer has been sent, whatever it was. A watch is told of
	// twice: when its stream starts, and when that has ended. It must not wait for anything, and be safe for
	// concurrent use.
	Read(r Read)
}

// WatchPhase says which of the two events of a watch it is.
type WatchPhase string

// Phases of watches.
const (
	WatchStarted WatchPhase = "started"
	WatchEnded   WatchPhase = "ended"
)

// Read is one request for inspection, with its answer. Of what callers choose it has names and filters only, and no
// more than the route takes: no other part of the path, the query, the headers or the body.
type Read struct {
	// Time is when it arrived, and Duration how long it took until the answer was sent; of a watch that starts, until
	// it did.
	Time     time.Time
	Duration time.Duration
	// User is the Kubernetes user; empty where it wasn't known, because the request was refused before.
	User string
	// Address is the IP address that it came from.
	Address string
	// Method is that of HTTP, and Route the pattern of the path, such as /v1/certificates/{sha256}.
	Method, Route string
	// Namespace is the one that was asked for; empty for all, and where it isn't a name.
	Namespace string
	// Filters are the values in the path by their names, and the parameters of the query, without continue and resume;
	// nil where there was no success.
	Filters map[string]string
	// Status is that of HTTP; 499 for an answer that its caller didn't take.
	Status int
	Watch  WatchPhase // empty for what is no watch
	// Items is how many objects were answered, of a watch how many lines about them; Bytes is the size of the body as
	// it was sent.
	Items, Bytes int64
}

// SetAuditor makes the server tell a who reads what. To be called before Start.
func (s *Server) SetAuditor(a Auditor) { s.auditor = a }

// tell tells the auditor of the request as far as it has come.
func (c *call) tell(phase WatchPhase) {
	if c.server.auditor == nil || !strings.HasPrefix(c.route, "/v1/") {
		return
	}
	r := Read{
		Time: c.begin, Duration: time.Since(c.begin), Method: c.r.Method, Route: c.route, Status: c.answer.code(), Watch: phase,
		Items: c.items, Bytes: c.answer.sent,
	}
	if c.caller != nil {
		r.User = c.caller.name
	}
	if host, _, err := net.SplitHostPort(c.r.RemoteAddr); err == nil {
		r.Address = host
	}
	filters := c.filters()
	for _, name := range []string{"namespace", "ns"} {
		if len(validation.IsDNS1123Label(filters[name])) == 0 {
			r.Namespace = filters[name]
		}
	}
	if r.Status < http.StatusBadRequest { // so its parameters are those that the route has
		r.Filters = filters
	}
	c.server.auditor.Read(r)
}

// filters are what the path and the query say.
func (c *call) filters() map[string]string {
	filters := make(map[string]string)
	for name, values := range c.r.URL.Query() {
		if name != "continue" && name != "resume" {
			filters[name] = withoutSecret(values[0])
		}
	}
	if c.routed != nil {
		for part := range strings.SplitSeq(c.route, "/") {
			if name, ok := strings.CutPrefix(part, "{"); ok {
				name = strings.TrimSuffix(name, "}")
				filters[name] = withoutSecret(c.routed.PathValue(name))
			}
		}
	}
	return filters
}

// withoutSecret is the value of a filter, unless somebody put a token or PEM there.
func withoutSecret(value string) string {
	if strings.Contains(value, "-----BEGIN") || strings.Contains(value, "eyJ") && strings.Count(value, ".") >= 2 {
		return "(withheld)"
	}
	return value
}

// itemsIn is how many objects an answer holds: one, or as many as a list has.
func itemsIn(body any) int64 {
	value := reflect.Indirect(reflect.ValueOf(body))
	if value.Kind() != reflect.Struct {
		return 0
	}
	if items := value.FieldByName("Items"); items.IsValid() && items.Kind() == reflect.Slice {
		return int64(items.Len())
	}
	return 1
}
