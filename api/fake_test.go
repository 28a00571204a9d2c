package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/setting"
)

// patience is how long a test waits for what must come.
const patience = 3 * time.Minute

// data is Views that holds what it answers. A continue is the number of items before, and the filter's namespace.
type data struct {
	mu           sync.Mutex // guards the following
	services     []Service
	certificates []Certificate
	issuances    []Issuance // the latest first
	gateways     []GatewayObject
	trust        Trust
	err          error
	changed      chan struct{}
	asked        []any

	hold chan struct{} // where it isn't nil, an answer waits until it is closed
}

func newData() *data { return &data{changed: make(chan struct{})} }

// change does something under the lock and says so.
func (d *data) change(do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *data) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

func (d *data) begin(ctx context.Context, q any) error {
	if d.hold != nil {
		select {
		case <-d.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	d.mu.Lock()
	d.asked = append(d.asked, q)
	return d.err
}

func (d *data) last() any {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[len(d.asked)-1]
}

func part[T any](all []T, page Page, visible Visible, namespace string, namespaceOf func(T) string) ([]T, List, error) {
	var good []T
	for _, item := range all {
		at := namespaceOf(item)
		if (namespace == "" || at == namespace) && (visible.All() || at != "" && visible.Namespace(at)) {
			good = append(good, item)
		}
	}
	from := 0
	if page.Continue != "" {
		number, filter, _ := strings.Cut(page.Continue, ":")
		var err error
		if from, err = strconv.Atoi(number); err != nil || filter != namespace || from > len(good) {
			return nil, List{}, ErrBadContinue
		}
	}
	list := List{Coverage: Coverage{Replicas: []string{"a"}, Sources: []Source{}}}
	to := min(len(good), from+page.Limit)
	if to < len(good) {
		list.Continue = strconv.Itoa(to) + ":" + namespace
	}
	return good[from:to], list, nil
}

func (d *data) Services(ctx context.Context, q ServiceQuery) (*ServiceList, error) {
	err := d.begin(ctx, q)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return nil, err
	}
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	items, list, err := part(d.services, q.Page, q.Visible, q.Namespace, func(s Service) string { return s.Namespace })
	return &ServiceList{list, items}, err
}

func (d *data) Service(ctx context.Context, namespace, name string) (*Service, error) {
	err := d.begin(ctx, namespace+"/"+name)
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for _, s := range d.services {
		if s.Namespace == namespace && s.Name == name {
			return &s, nil
		}
	}
	return nil, ErrNotFound
}

func (d *data) Certificates(ctx context.Context, q CertificateQuery) (*CertificateList, error) {
	err := d.begin(ctx, q)
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	items, list, err := part(d.certificates, q.Page, q.Visible, q.Namespace, func(c Certificate) string { return c.Namespace })
	return &CertificateList{list, items}, err
}

func (d *data) Expiring(ctx context.Context, q CertificateQuery) (*CertificateList, error) {
	return d.Certificates(ctx, q)
}

func (d *data) Certificate(ctx context.Context, sha256 string) (*Certificate, error) {
	err := d.begin(ctx, sha256)
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for _, c := range d.certificates {
		if c.SHA256 == sha256 {
			c.PEM = "-----BEGIN CERTIFICATE-----"
			return &c, nil
		}
	}
	return nil, ErrNotFound
}

func (d *data) Identity(ctx context.Context, id string) (*Identity, error) {
	err := d.begin(ctx, id)
	defer d.mu.Unlock()
	return &Identity{SPIFFEID: id}, err
}

func (d *data) Issuances(ctx context.Context, q IssuanceQuery) (*IssuanceList, error) {
	err := d.begin(ctx, q)
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var since []Issuance
	for _, issuance := range d.issuances {
		if !issuance.Time.Before(q.Since) {
			since = append(since, issuance)
		}
	}
	slices.SortStableFunc(since, func(a, b Issuance) int { return b.Time.Compare(a.Time) })
	items, list, err := part(since, q.Page, q.Visible, q.Namespace, func(i Issuance) string {
		if i.Certificate != nil {
			return i.Certificate.Namespace
		}
		return i.Refusal.Namespace
	})
	return &IssuanceList{list, items}, err
}

func (d *data) Gateways(ctx context.Context, q GatewayQuery) (*GatewayList, error) {
	err := d.begin(ctx, q)
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	items, list, err := part(d.gateways, q.Page, q.Visible, q.Namespace, func(g GatewayObject) string { return g.Namespace })
	return &GatewayList{list, items}, err
}

func (d *data) Trust(ctx context.Context) (*Trust, error) {
	err := d.begin(ctx, nil)
	defer d.mu.Unlock()
	return &d.trust, err
}

// apiServer answers reviews by rules. A token is "user" or "user@audience"; a user may see the namespaces in rights,
// "*" stands for all. What a real one does is tested on a real one.
type apiServer struct {
	mu      sync.Mutex // guards the following
	rights  map[string][]string
	denied  map[string]string // user to what is refused: verb/resource
	down    bool
	revoked string // the user whose tokens are refused, whatever its rights
	unaware bool   // of audiences
	tokens  int
	reviews []authorizationv1.SubjectAccessReviewSpec
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		http.Error(w, "down", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(r.URL.Path, "/tokenreviews") {
		a.tokens++
		var review authenticationv1.TokenReview
		_ = json.NewDecoder(r.Body).Decode(&review)
		user, audience, _ := strings.Cut(review.Spec.Token, "_")
		asked := review.Spec.Audiences
		_, known := a.rights[user]
		known = known && user != a.revoked
		if known && (len(asked) == 0 && audience == "" || slices.Contains(asked, audience)) {
			review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: user, Groups: []string{"people"}}, Audiences: asked}
		} else if known && a.unaware {
			review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: user}}
		} else {
			review.Status.Error = "secret words of the API server"
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(review)
		return
	}
	var review authorizationv1.SubjectAccessReview
	_ = json.NewDecoder(r.Body).Decode(&review)
	at := review.Spec.ResourceAttributes
	a.reviews = append(a.reviews, review.Spec)
	rights := a.rights[review.Spec.User]
	review.Status.Allowed = at.Group == "signet.dev" && a.denied[review.Spec.User] != at.Verb+"/"+at.Resource &&
		(slices.Contains(rights, "*") || at.Namespace != "" && slices.Contains(rights, at.Namespace))
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(review)
}

func (a *apiServer) set(do func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	do()
}

// rig is a server with all around it.
type rig struct {
	*Server
	data *data
	api  *apiServer
	url  string
	http *http.Client
	reg  *prometheus.Registry
}

func newRig(t testing.TB, cfg Config, adjust ...func(*Server)) *rig {
	t.Helper()
	r := &rig{data: newData(), reg: prometheus.NewRegistry(), api: &apiServer{rights: map[string][]string{
		"all": {"*"}, "one": {"one"}, "two": {"one", "two"}, "none": {},
	}}}
	if cfg.ReviewTimeout.Or(0) == 0 {
		cfg.ReviewTimeout = setting.DurationOf(patience) // a slow machine is no API server that is away
	}
	kube := httptest.NewServer(r.api)
	t.Cleanup(kube.Close)
	server, err := NewServer(cfg, r.data, nil, Cluster{Config: &rest.Config{Host: kube.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, Namespaces: func() []string { return []string{"one", "two", "three"} }}, Mesh{}, slog.New(slog.DiscardHandler), r.reg)
	require.NoError(t, err)
	r.Server = server
	for _, do := range adjust {
		do(server)
	}
	front := httptest.NewUnstartedServer(server)
	front.EnableHTTP2 = true
	front.StartTLS()
	t.Cleanup(front.Close)
	t.Cleanup(sync.OnceFunc(func() {
		select {
		case <-server.stopping:
		default:
			close(server.stopping)
		}
	}))
	r.url, r.http = front.URL, front.Client()
	return r
}

// as is a transport that shows a token.
type as struct {
	token string
	base  http.RoundTripper
}

func (a as) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+a.token)
	return a.base.RoundTrip(r)
}

func (r *rig) client(t testing.TB, token string) *Client {
	t.Helper()
	client, err := NewClient(r.url, &http.Client{Transport: as{token, r.http.Transport}})
	require.NoError(t, err)
	return client
}

type reply struct {
	status int
	header http.Header
	body   string
}

// do asks with headers in pairs. Without a user there is no token.
func (r *rig) do(t testing.TB, method, path, user string, headers ...string) reply {
	t.Helper()
	got, err := r.ask(t.Context(), method, path, user, headers...)
	require.NoError(t, err)
	return got
}

// ask is do for goroutines, which can't end the test.
func (r *rig) ask(ctx context.Context, method, path, user string, headers ...string) (reply, error) {
	request, err := http.NewRequestWithContext(ctx, method, r.url+path, nil)
	if err != nil {
		return reply{}, err
	}
	if user != "" {
		request.Header.Set("Authorization", "Bearer "+user)
	}
	request.Header.Set("Accept-Encoding", "identity")
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := r.http.Transport.RoundTrip(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, string(body)}, err
}

func (r reply) problem(t testing.TB) ProblemDetails {
	t.Helper()
	require.Equal(t, problemType, r.header.Get("Content-Type"), r.body)
	var problem ProblemDetails
	require.NoError(t, json.Unmarshal([]byte(r.body), &problem))
	require.Equal(t, r.status, problem.Status)
	require.Equal(t, http.StatusText(r.status), problem.Title)
	require.NotEmpty(t, problem.Detail)
	return problem
}

func services(namespaces ...string) []Service {
	var all []Service
	for i, namespace := range namespaces {
		all = append(all, Service{Namespace: namespace, Name: "s" + strconv.Itoa(i), Identities: []string{}, Summary: Summary{Total: 1, Fresh: 1, RemainingRatio: 0.5}})
	}
	return all
}

func certificates(n int, namespace string) []Certificate {
	var all []Certificate
	for i := range n {
		all = append(all, Certificate{
			SHA256: strings.Repeat("0", 64-len(strconv.Itoa(i))) + strconv.Itoa(i), Serial: strconv.FormatInt(int64(i), 16), Namespace: namespace, ServiceAccount: "web",
			Identity: "spiffe://cluster.local/ns/" + namespace + "/sa/web", SANs: []string{"URI:spiffe://cluster.local/ns/" + namespace + "/sa/web"},
			NotAfter: time.Unix(2e9, 0).UTC(), RemainingSeconds: 3600, RemainingRatio: 0.75, State: Fresh, Standing: Live,
		})
	}
	return all
}
