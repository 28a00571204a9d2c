package api

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client asks a [Server]. Its HTTP client says who the caller is and which certificates it trusts; its Timeout must be
// zero for watches. Safe for concurrent use.
//
// An error that the server answered is a *[ResponseError]. In queries, Visible is ignored: the server knows what the
// caller may see.
type Client struct {
	base *url.URL
	http *http.Client
}

// NewClient asks the server at base, such as https://localhost:8443.
func NewClient(base string, client *http.Client) (*Client, error) {
	at, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("address of the inspection API: %w", err)
	}
	if at.Host == "" || at.Scheme != "https" && at.Scheme != "http" || at.RawQuery != "" {
		return nil, fmt.Errorf("address of the inspection API: %q is not one such as https://localhost:8443", base)
	}
	if client == nil {
		client = http.DefaultClient //nolint:forbidigo // each call has a context
	}
	return &Client{at, client}, nil
}

// ResponseError is an answer that isn't a success.
type ResponseError struct {
	// Problem says what is wrong. Where the server said nothing, only its status is set.
	Problem ProblemDetails
	// RetryAfter is when asking again may help; zero where it doesn't by itself.
	RetryAfter time.Duration
}

// Bounds of what a [ResponseError] says of single values.
const (
	mostDetails     = 5
	mostDetailRunes = 500
)

// Error is the detail with the status, and then what is wrong with which value, as far as the detail doesn't say so.
func (e *ResponseError) Error() string {
	p := &e.Problem
	var text strings.Builder
	fmt.Fprintf(&text, "%s (%d)", cmp.Or(p.Detail, http.StatusText(p.Status)), p.Status)
	told := 0
	for _, one := range p.Errors {
		if one == nil || one.Message == "" {
			continue
		}
		name := one.Location[strings.LastIndex(one.Location, ".")+1:]
		if strings.Contains(p.Detail, one.Message) && strings.Contains(p.Detail, name) {
			continue
		}
		if told++; told > mostDetails {
			text.WriteString("; and more")
			break
		}
		line := one.Message
		if one.Location != "" {
			line = one.Location + ": " + line
		}
		if runes := []rune(line); len(runes) > mostDetailRunes {
			line = string(runes[:mostDetailRunes]) + "…"
		}
		text.WriteString("; " + line)
	}
	return text.String()
}

// Is makes a 404 match ErrNotFound, and a refused continue ErrBadContinue.
func (e *ResponseError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Problem.Status == http.StatusNotFound
	case ErrBadContinue:
		for _, detail := range e.Problem.Errors {
			if e.Problem.Status == http.StatusBadRequest && detail != nil && detail.Location == "query.continue" {
				return true
			}
		}
	}
	return false
}

// Services is one page.
func (c *Client) Services(ctx context.Context, q ServiceQuery) (*ServiceList, error) {
	return get[ServiceList](ctx, c, withPage(serviceParams(q), q.Page), "v1", "services")
}

// Service is one with its pods.
func (c *Client) Service(ctx context.Context, namespace, name string) (*Service, error) {
	return get[Service](ctx, c, nil, "v1", "namespaces", namespace, "services", name)
}

// Certificates is one page.
func (c *Client) Certificates(ctx context.Context, q CertificateQuery) (*CertificateList, error) {
	return get[CertificateList](ctx, c, withPage(certificateParams(q, "expiresWithin"), q.Page), "v1", "certificates")
}

// Certificate is one with its PEM.
func (c *Client) Certificate(ctx context.Context, sha256 string) (*Certificate, error) {
	return get[Certificate](ctx, c, nil, "v1", "certificates", sha256)
}

// Identity is what is known of a SPIFFE ID.
func (c *Client) Identity(ctx context.Context, spiffeID string) (*Identity, error) {
	return get[Identity](ctx, c, nil, "v1", "identities", spiffeID)
}

// Issuances is one page of the audit.
func (c *Client) Issuances(ctx context.Context, q IssuanceQuery) (*IssuanceList, error) {
	return get[IssuanceList](ctx, c, withPage(issuanceParams(q), q.Page), "v1", "issuances")
}

// Expiring is one page of the live leaves that end within q.ExpiresWithin, an hour where it isn't set.
func (c *Client) Expiring(ctx context.Context, q CertificateQuery) (*CertificateList, error) {
	return get[CertificateList](ctx, c, withPage(certificateParams(q, "within"), q.Page), "v1", "expiring")
}

// Trust is whom the mesh trusts.
func (c *Client) Trust(ctx context.Context) (*Trust, error) {
	return get[Trust](ctx, c, nil, "v1", "trust")
}

// Probe asks which certificates the pods behind a service really serve.
func (c *Client) Probe(ctx context.Context, q ProbeRequest) (*Probe, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("write request of a probe: %w", err)
	}
	response, err := c.send(ctx, http.MethodPost, body, nil, "application/json", "v1", "probes") //nolint:bodyclose // read does
	if err != nil {
		return nil, err
	}
	return read[Probe](response)
}

// AllServices goes through all pages from q.Continue on. It ends with the first error.
func (c *Client) AllServices(ctx context.Context, q ServiceQuery) iter.Seq2[*Service, error] {
	return pages(q.Page, func(page Page) ([]Service, string, error) {
		q.Page = page
		list, err := c.Services(ctx, q)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
}

// AllCertificates is as AllServices.
func (c *Client) AllCertificates(ctx context.Context, q CertificateQuery) iter.Seq2[*Certificate, error] {
	return certificatePages(ctx, q, c.Certificates)
}

// AllExpiring is as AllServices.
func (c *Client) AllExpiring(ctx context.Context, q CertificateQuery) iter.Seq2[*Certificate, error] {
	return certificatePages(ctx, q, c.Expiring)
}

// AllIssuances is as AllServices.
func (c *Client) AllIssuances(ctx context.Context, q IssuanceQuery) iter.Seq2[*Issuance, error] {
	return pages(q.Page, func(page Page) ([]Issuance, string, error) {
		q.Page = page
		list, err := c.Issuances(ctx, q)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
}

func certificatePages(ctx context.Context, q CertificateQuery, ask func(context.Context, CertificateQuery) (*CertificateList, error)) iter.Seq2[*Certificate, error] {
	return pages(q.Page, func(page Page) ([]Certificate, string, error) {
		q.Page = page
		list, err := ask(ctx, q)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
}

func pages[T any](page Page, ask func(Page) ([]T, string, error)) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		page := page
		if page.Limit == 0 {
			page.Limit = 500
		}
		for {
			items, next, err := ask(page)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range items {
				if !yield(&items[i], nil) {
					return
				}
			}
			if next == "" {
				return
			}
			page.Continue = next
		}
	}
}

// WatchServices yields what there is and then what changes, until the caller stops or the watch ends. Resume is that of
// the last event of an earlier watch with the same query, or empty. The last event says why the watch ends and comes
// with its problem as an error; a connection that breaks is an error without an event.
func (c *Client) WatchServices(ctx context.Context, q ServiceQuery, resume string) iter.Seq2[Event[Service], error] {
	return events[Service](ctx, c, serviceParams(q), resume, "v1", "services")
}

// WatchCertificates is as WatchServices.
func (c *Client) WatchCertificates(ctx context.Context, q CertificateQuery, resume string) iter.Seq2[Event[Certificate], error] {
	return events[Certificate](ctx, c, certificateParams(q, "expiresWithin"), resume, "v1", "certificates")
}

// WatchIssuances is as WatchServices. Without q.Since it begins now.
func (c *Client) WatchIssuances(ctx context.Context, q IssuanceQuery, resume string) iter.Seq2[Event[Issuance], error] {
	return events[Issuance](ctx, c, issuanceParams(q), resume, "v1", "issuances")
}

func withPage(params url.Values, page Page) url.Values {
	if page.Limit != 0 {
		params.Set("limit", strconv.Itoa(page.Limit))
	}
	set(params, "continue", page.Continue)
	return params
}

func set(params url.Values, name, value string) {
	if value != "" {
		params.Set(name, value)
	}
}

func serviceParams(q ServiceQuery) url.Values {
	params := make(url.Values)
	set(params, "namespace", q.Namespace)
	if q.Problems {
		params.Set("problems", "true")
	}
	return params
}

func certificateParams(q CertificateQuery, within string) url.Values {
	params := make(url.Values)
	for name, value := range map[string]string{
		"namespace": q.Namespace, "identity": q.Identity, "san": q.SAN, "serial": q.Serial, "node": q.Node, "issuer": q.Issuer,
		"state": string(q.State), "standing": string(q.Standing),
	} {
		set(params, name, value)
	}
	if q.ExpiresWithin > 0 {
		params.Set(within, q.ExpiresWithin.String())
	}
	if q.RemainingRatioBelow > 0 {
		params.Set("remainingRatioBelow", strconv.FormatFloat(q.RemainingRatioBelow, 'g', -1, 64))
	}
	return params
}

func issuanceParams(q IssuanceQuery) url.Values {
	params := make(url.Values)
	if !q.Since.IsZero() {
		params.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	set(params, "outcome", string(q.Outcome))
	set(params, "namespace", q.Namespace)
	set(params, "identity", q.Identity)
	return params
}

// ask gets what is at the path of these parts, each of which may hold any character.
func (c *Client) ask(ctx context.Context, params url.Values, accept string, path ...string) (*http.Response, error) {
	return c.send(ctx, http.MethodGet, nil, params, accept, path...)
}

// send is ask with any method, and with a body of JSON where it isn't nil.
func (c *Client) send(ctx context.Context, method string, body []byte, params url.Values, accept string, path ...string) (*http.Response, error) {
	at := *c.base
	raw := strings.TrimSuffix(at.EscapedPath(), "/")
	for _, part := range path {
		raw += "/" + url.PathEscape(part)
	}
	plain, err := url.PathUnescape(raw)
	if err != nil {
		return nil, err
	}
	at.Path, at.RawPath, at.RawQuery = plain, raw, params.Encode()
	request, err := http.NewRequestWithContext(ctx, method, at.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accept)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	return nil, responseError(response)
}

// Bounds of what a client reads.
const (
	maxResponseBytes = 64 << 20
	maxProblemBytes  = 1 << 20
	maxLineBytes     = 16 << 20
)

func responseError(response *http.Response) error {
	failure := &ResponseError{}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxProblemBytes))
	if err != nil || !strings.HasPrefix(response.Header.Get("Content-Type"), problemType) || json.Unmarshal(body, &failure.Problem) != nil {
		failure.Problem = ProblemDetails{Title: http.StatusText(response.StatusCode)} // something between us and the server
	}
	failure.Problem.Status = response.StatusCode
	if seconds, err := strconv.ParseInt(response.Header.Get("Retry-After"), 10, 32); err == nil && seconds > 0 {
		failure.RetryAfter = time.Duration(seconds) * time.Second
	}
	return failure
}

func get[T any](ctx context.Context, c *Client, params url.Values, path ...string) (*T, error) {
	response, err := c.ask(ctx, params, "application/json", path...) //nolint:bodyclose // read does
	if err != nil {
		return nil, err
	}
	return read[T](response)
}

// read is the body of an answer, which it closes.
func read[T any](response *http.Response) (*T, error) {
	defer response.Body.Close()
	var value T
	if err := json.NewDecoder(io.LimitReader(response.Body, maxResponseBytes)).Decode(&value); err != nil {
		return nil, fmt.Errorf("read answer of the inspection API: %w", err)
	}
	return &value, nil
}

func events[T any](ctx context.Context, c *Client, params url.Values, resume string, path ...string) iter.Seq2[Event[T], error] {
	return func(yield func(Event[T], error) bool) {
		params := maps.Clone(params)
		params.Set("watch", "true")
		set(params, "resume", resume)
		response, err := c.ask(ctx, params, "application/x-ndjson", path...)
		if err != nil {
			yield(Event[T]{}, err)
			return
		}
		defer response.Body.Close()
		lines := bufio.NewScanner(response.Body)
		lines.Buffer(make([]byte, 64<<10), maxLineBytes)
		for lines.Scan() {
			var event Event[T]
			if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
				yield(Event[T]{}, fmt.Errorf("read line of a watch: %w", err))
				return
			}
			if event.Type == End {
				failure := &ResponseError{}
				if event.Problem != nil {
					failure.Problem = *event.Problem
				}
				if failure.Problem.Status == http.StatusServiceUnavailable {
					failure.RetryAfter = time.Second
				}
				yield(event, failure)
				return
			}
			if !yield(event, nil) {
				return
			}
		}
		if err = lines.Err(); err == nil {
			err = io.ErrUnexpectedEOF // a whole watch has a last line
		}
		yield(Event[T]{}, fmt.Errorf("read watch: %w", errors.Join(err, ctx.Err())))
	}
}
