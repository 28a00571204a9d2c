package privilege

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"strings"
	"sync"
)

// need is what somebody had to be allowed to do.
type need struct {
	verb, group, resource, name string
	namespace                   string
	path                        string
}

// request is what was asked of the API server, and the code that it answered with.
type request struct {
	need
	code int
}

func (r request) String() string {
	return fmt.Sprintf("%s: %d", grant(r.need), r.code)
}

// needs are what the requester of an answered request was allowed to do, beside the request itself. The API server asks its
// authorizer for these too, and answers 403 where they aren't allowed; takenAway shows that.
func (r request) needs() []need {
	all := []need{r.need}
	if r.code >= 300 {
		return all
	}
	if r.verb == "patch" && r.code == 201 { // an object that wasn't there is created by a patch
		create := r.need
		create.verb = "create"
		all = append(all, create)
	}
	if signer := signerOf(r.name); r.verb == "patch" && r.resource == "clustertrustbundles" && signer != "" {
		all = append(all, need{verb: "attest", group: r.group, resource: "signers", name: signer})
	}
	if r.verb == "update" && r.resource == "certificatesigningrequests/status" {
		all = append(all, need{verb: "sign", group: r.group, resource: "signers", name: registrationSigner})
	}
	return all
}

// signerOf is the signer that the name of a ClusterTrustBundle begins with: istio.io:istiod-ca:root-cert is of
// istio.io/istiod-ca.
func signerOf(bundle string) string {
	if at := strings.LastIndex(bundle, ":"); at > 0 {
		return strings.ReplaceAll(bundle[:at], ":", "/")
	}
	return ""
}

// auditLog is what the API server has written down.
type auditLog struct {
	path string

	mu       sync.Mutex // guards the following
	read     int64      // bytes, in whole lines
	counted  map[string]bool
	requests map[string]map[request]int // by user
}

func newAuditLog(path string) *auditLog {
	return &auditLog{path: path, counted: make(map[string]bool), requests: make(map[string]map[request]int)}
}

// of are the requests of a user so far, and how often each was made.
func (l *auditLog) of(user string) (map[request]int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.readOn(); err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	return maps.Clone(l.requests[user]), nil
}

// readOn takes in the lines that were written since it was last called. The caller holds mu.
func (l *auditLog) readOn() error {
	file, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(l.read, io.SeekStart); err != nil {
		return err
	}
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	l.read += int64(len(text))
	for line := range bytes.Lines(text) {
		if err := l.take(line); err != nil {
			return fmt.Errorf("%w in %.300q", err, line)
		}
	}
	return nil
}

// event is what is read of a line: https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/.
type event struct {
	AuditID, Stage, RequestURI, Verb string
	User                             struct{ Username string }
	ObjectRef                        *struct{ Resource, Namespace, Name, APIGroup, Subresource string }
	ResponseStatus                   struct{ Code int }
}

func (l *auditLog) take(line []byte) error {
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	if !strings.HasPrefix(e.User.Username, "system:serviceaccount:signet-") || l.counted[e.AuditID] {
		return nil
	}
	l.counted[e.AuditID] = true // a watch is told of twice: as it begins, and as it ends
	r := request{need{verb: e.Verb}, e.ResponseStatus.Code}
	if o := e.ObjectRef; o != nil {
		r.group, r.resource, r.name, r.namespace = o.APIGroup, o.Resource, o.Name, o.Namespace
		if o.Subresource != "" {
			r.resource += "/" + o.Subresource
		}
		if r.resource == "namespaces" {
			r.namespace = ""
		}
	} else {
		at, err := url.Parse(e.RequestURI)
		if err != nil {
			return err
		}
		r.path = at.Path
	}
	if l.requests[e.User.Username] == nil {
		l.requests[e.User.Username] = make(map[request]int)
	}
	l.requests[e.User.Username][r]++
	return nil
}
