package api

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// PageParams are the query parameters of paging.
type PageParams struct {
	Limit    int    `query:"limit" default:"100" minimum:"1" maximum:"500" doc:"How many items at most."`
	Continue string `query:"continue" maxLength:"4096" doc:"That of the page before, with the same filters."`
}

func (p PageParams) page() Page { return Page(p) }

// WatchParams are the query parameters of watching.
type WatchParams struct {
	Watch  bool   `query:"watch" doc:"Answer with a stream of changes, one JSON object in each line, in place of a page: what there is, then what changes."`
	Resume string `query:"resume" maxLength:"256" doc:"That of the last line of an earlier watch with the same filters, which is gone on with."`
}

// CertificateParams are the filters of certificates. What could be no certificate's is refused, rather than answered with
// none; what any answer holds can be asked for: a record's identity is whatever URI of that scheme the leaf has, and its
// issuer's kind and group are those of the request.
type CertificateParams struct {
	Namespace           string  `query:"namespace" pattern:"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" maxLength:"63"`
	Identity            string  `query:"identity" maxLength:"2048" pattern:"^spiffe:" patternDescription:"a SPIFFE ID such as spiffe://cluster.local/ns/shop/sa/cart" doc:"SPIFFE ID."`
	SAN                 string  `query:"san" maxLength:"2048" doc:"One of its names, such as URI:spiffe://…"`
	Serial              string  `query:"serial" maxLength:"191" pattern:"^[0-9A-Fa-f]+(:[0-9A-Fa-f]+)*$" patternDescription:"a serial number in hexadecimal, such as 5f3a99 or 5F:3A:99" doc:"Serial number, hexadecimal."`
	Node                string  `query:"node" maxLength:"253"`
	Issuer              string  `query:"issuer" maxLength:"512" pattern:"^[^/]+\\.[^/]+/.+$" patternDescription:"kind.group/name, such as Issuer.cert-manager.io/istio-ca" doc:"kind.group/name, as in answers."`
	State               string  `query:"state" enum:"fresh,due,overdue,expired"`
	Standing            string  `query:"standing" enum:"live,superseded,orphaned,ended,any" default:"live"`
	RemainingRatioBelow float64 `query:"remainingRatioBelow" minimum:"0" maximum:"1" doc:"Less of its life than this is left."`
}

func (p CertificateParams) query() CertificateQuery {
	return CertificateQuery{
		Namespace: p.Namespace, Identity: p.Identity, SAN: p.SAN, Serial: p.Serial, Node: p.Node, Issuer: p.Issuer,
		State: State(p.State), Standing: Standing(p.Standing), RemainingRatioBelow: p.RemainingRatioBelow,
	}
}

type servicesInput struct {
	PageParams
	WatchParams
	Namespace string `query:"namespace" pattern:"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" maxLength:"63"`
	Problems  bool   `query:"problems" doc:"Only those with problems."`
}

type serviceInput struct {
	Namespace string `path:"ns" pattern:"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" maxLength:"63"`
	Name      string `path:"name" pattern:"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" maxLength:"63"`
}

type certificatesInput struct {
	PageParams
	WatchParams
	CertificateParams
	ExpiresWithin string `query:"expiresWithin" maxLength:"32" doc:"It ends within this time: a number of seconds, or a length such as 90m, 36h or 7d."`
}

type certificateInput struct {
	SHA256 string `path:"sha256" pattern:"^[0-9a-f]{64}$" doc:"Of the certificate in DER, lower-case hexadecimal."`
}

type identityInput struct {
	SPIFFEID string `path:"spiffe" maxLength:"2048" doc:"SPIFFE ID, percent-encoded."`
}

type issuancesInput struct {
	PageParams
	WatchParams
	Since     time.Time `query:"since" doc:"Not before this time, RFC 3339. A watch begins there, and now without it."`
	Outcome   string    `query:"outcome" enum:"issued,refused"`
	Namespace string    `query:"namespace" pattern:"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" maxLength:"63"`
	Identity  string    `query:"identity" maxLength:"2048" pattern:"^spiffe:" patternDescription:"a SPIFFE ID such as spiffe://cluster.local/ns/shop/sa/cart" doc:"SPIFFE ID."`
}

type expiringInput struct {
	PageParams
	CertificateParams
	Within string `query:"within" default:"1h" maxLength:"32" doc:"They end within this time: a number of seconds, or a length such as 90m, 36h or 7d."`
}

type nothing struct{}

// output is an answer with a body.
type output[T any] struct{ Body *T }

// route registers every route, and describes it.
func (s *Server) route() error {
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title:       "Signet inspection",
				Version:     "v1",
				Description: "Which certificate each service of the mesh holds, until when and with which names; what was issued and refused, and what is about to end. Times are RFC 3339 in UTC, lengths of time are seconds, digests and serial numbers are lower-case hexadecimal.",
			},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"token":       {Type: "http", Scheme: "bearer", Description: "A token for audience " + strings.Join(s.cfg.Audiences, " or ") + ", or for the API server, of a user who may see what is asked for: a right in API group " + rbacGroup + "."},
					"certificate": {Type: "mutualTLS", Description: "A client certificate of the mesh."},
				},
			},
			Security: []map[string][]string{{"token": {}}, {"certificate": {}}},
		},
		Formats:       map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat: "application/json",
	}
	config.AllowAdditionalPropertiesByDefault = true // of answers, so that a later Signet can say more
	api := humago.New(s.handlers, config)
	api.UseMiddleware(onlyKnown)

	add(api, "list-services", "/v1/services", "Services with the certificates that the pods behind them hold, by namespace and name.",
		s.rights(verbList, resourceServices), s.listServices)
	add(api, "get-service", "/v1/namespaces/{ns}/services/{name}", "One service with its pods and their certificates.",
		s.rights(verbGet, resourceServices), s.getService)
	add(api, "list-certificates", "/v1/certificates", "Certificates that were issued, the latest first.",
		s.rights(verbList, resourceCertificates), s.listCertificates)
	add(api, "get-certificate", "/v1/certificates/{sha256}", "One certificate, with its PEM.",
		s.rights(verbGet, resourceCertificates), s.getCertificate)
	add(api, "get-identity", "/v1/identities/{spiffe}", "One SPIFFE ID with its live certificates and its services.",
		s.rights(verbGet, resourceIdentities), s.getIdentity)
	add(api, "list-issuances", "/v1/issuances", "The audit: what was issued and what was refused, the latest first.",
		s.rights(verbList, resourceIssuances), s.listIssuances)
	add(api, "list-expiring", "/v1/expiring", "Live certificates that end soon, the earliest first.",
		s.rights(verbList, resourceCertificates), s.listExpiring)
	add(api, "list-gateways", "/v1/gateways", "Gateways with the certificates that their listeners show, by namespace and name.",
		s.rights(verbList, resourceGateways)+" What belongs to namespaces that the caller may not see is left out of their certificates.", s.listGateways)
	add(api, "get-trust", "/v1/trust", "Whom the mesh trusts and who signs.",
		s.rights(verbGet, resourceTrust)+" It is of the whole cluster.", s.getTrust)
	s.routeProbes(api)
	describeWatch[Service](api, "/v1/services")
	describeWatch[Certificate](api, "/v1/certificates")
	describeWatch[Issuance](api, "/v1/issuances")
	describeWatch[GatewayObject](api, "/v1/gateways")
	api.OpenAPI().Components.Schemas.Map()["ErrorModel"].Description = "Why there is no success: problem details of RFC 9457."
	if err := describeTypes(api.OpenAPI().Components.Schemas); err != nil {
		return err
	}

	text, err := json.Marshal(api.OpenAPI())
	if err != nil {
		return fmt.Errorf("encode OpenAPI document: %w", err)
	}
	s.openapi = text
	page, policy, err := renderDocs(api.OpenAPI())
	if err != nil {
		return fmt.Errorf("make page of the API: %w", err)
	}
	s.handlers.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(s.openapi)
	})
	s.handlers.HandleFunc("GET /docs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("Referrer-Policy", "no-referrer")
		_, _ = w.Write(page)
	})
	return nil
}

func (s *Server) rights(verb, resource string) string {
	return fmt.Sprintf("Needs the right to %s %s.%s.", verb, resource, rbacGroup)
}

func add[I, O any](api huma.API, id, path, summary, description string, handler func(context.Context, *I) (*output[O], error)) {
	register(api, readOperation(id, path, summary, description), handler)
}

// readOperation is one that only reads.
func readOperation(id, path, summary, description string) huma.Operation {
	return huma.Operation{
		OperationID: id, Method: http.MethodGet, Path: path, Summary: summary, Description: description,
		Errors: []int{
			http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound,
			http.StatusUnprocessableEntity, http.StatusTooManyRequests, http.StatusServiceUnavailable,
		},
	}
}

func register[I, O any](api huma.API, operation huma.Operation, handler func(context.Context, *I) (*output[O], error)) {
	huma.Register(api, operation, func(ctx context.Context, in *I) (*output[O], error) {
		out, err := handler(ctx, in)
		if err == nil {
			if out != nil { // a watch has answered already
				callOf(ctx).items = itemsIn(out.Body)
			}
			return out, nil
		}
		// The answer is made here, because huma would put the text of a cause into it.
		callOf(ctx).fail(asFault(err))
		return nil, nil
	})
}

// onlyKnown refuses query parameters that the operation doesn't have, and those that occur twice.
func onlyKnown(ctx huma.Context, next func(huma.Context)) {
	var known []string
	for _, parameter := range ctx.Operation().Parameters {
		if parameter.In == "query" {
			known = append(known, parameter.Name)
		}
	}
	slices.Sort(known)
	list := "known here are " + strings.Join(known, ", ")
	if len(known) == 0 {
		list = "none is known here"
	}
	at := ctx.URL()
	query, err := url.ParseQuery(at.RawQuery)
	if err != nil {
		callOf(ctx.Context()).fail(newFault(http.StatusBadRequest, "the query can't be read: "+err.Error()))
		return
	}
	var f *fault
	for _, name := range slices.Sorted(maps.Keys(query)) {
		var message string
		switch {
		case !slices.Contains(known, name):
			message = "unknown query parameter; " + list
		case len(query[name]) > 1:
			message = "it must occur once"
		default:
			continue
		}
		if f == nil {
			f = newFault(http.StatusUnprocessableEntity, fmt.Sprintf("query parameter %q: %s", name, message))
		}
		f = f.at("query."+name, message, nil)
	}
	if f != nil {
		callOf(ctx.Context()).fail(f)
		return
	}
	next(ctx)
}

func (s *Server) listServices(ctx context.Context, in *servicesInput) (*output[ServiceList], error) {
	q := ServiceQuery{Namespace: in.Namespace, Problems: in.Problems}
	if in.Watch {
		return nil, watch(ctx, in.PageParams, in.WatchParams, watched[Service]{
			resource: resourceServices, namespace: in.Namespace,
			key: func(service *Service) string { return service.Namespace + "/" + service.Name },
			list: func(ctx context.Context, visible Visible, page Page, _ time.Time) ([]Service, List, error) {
				q := q
				q.Visible, q.Page = visible, page
				list, err := s.views.Services(ctx, q)
				if err != nil {
					return nil, List{}, err
				}
				return list.Items, list.List, nil
			},
		})
	}
	return listed(ctx, in.WatchParams, verbList, resourceServices, in.Namespace, func(visible Visible) (*ServiceList, error) {
		q.Visible, q.Page = visible, in.page()
		list, err := s.views.Services(ctx, q)
		if err != nil {
			return nil, err
		}
		return &ServiceList{List: restricted(list.List, visible, in.Namespace), Items: notNil(list.Items)}, nil
	})
}

func (s *Server) listCertificates(ctx context.Context, in *certificatesInput) (*output[CertificateList], error) {
	within, err := span("expiresWithin", in.ExpiresWithin)
	if err != nil {
		return nil, err
	}
	q := in.query()
	q.ExpiresWithin = within
	if in.Watch {
		return nil, watch(ctx, in.PageParams, in.WatchParams, watched[Certificate]{
			resource: resourceCertificates, namespace: in.Namespace,
			key: func(certificate *Certificate) string { return certificate.SHA256 },
			list: func(ctx context.Context, visible Visible, page Page, _ time.Time) ([]Certificate, List, error) {
				q := q
				q.Visible, q.Page = visible, page
				list, err := s.views.Certificates(ctx, q)
				if err != nil {
					return nil, List{}, err
				}
				return list.Items, list.List, nil
			},
		})
	}
	return listed(ctx, in.WatchParams, verbList, resourceCertificates, in.Namespace, s.pageOfCertificates(ctx, s.views.Certificates, q, in.PageParams))
}

func (s *Server) listExpiring(ctx context.Context, in *expiringInput) (*output[CertificateList], error) {
	within, err := span("within", in.Within)
	if err != nil {
		return nil, err
	}
	q := in.query()
	q.ExpiresWithin = within
	return listed(ctx, WatchParams{}, verbList, resourceCertificates, in.Namespace, s.pageOfCertificates(ctx, s.views.Expiring, q, in.PageParams))
}

func (s *Server) pageOfCertificates(ctx context.Context, ask func(context.Context, CertificateQuery) (*CertificateList, error), q CertificateQuery, page PageParams) func(Visible) (*CertificateList, error) {
	return func(visible Visible) (*CertificateList, error) {
		q.Visible, q.Page = visible, page.page()
		list, err := ask(ctx, q)
		if err != nil {
			return nil, err
		}
		return &CertificateList{List: restricted(list.List, visible, q.Namespace), Items: notNil(list.Items)}, nil
	}
}

func (s *Server) listIssuances(ctx context.Context, in *issuancesInput) (*output[IssuanceList], error) {
	q := IssuanceQuery{Since: in.Since, Outcome: Outcome(in.Outcome), Namespace: in.Namespace, Identity: in.Identity}
	if in.Watch {
		return nil, watch(ctx, in.PageParams, in.WatchParams, watched[Issuance]{
			resource: resourceIssuances, namespace: in.Namespace,
			key: issuanceKey, time: func(issuance *Issuance) time.Time { return issuance.Time }, since: in.Since,
			list: func(ctx context.Context, visible Visible, page Page, since time.Time) ([]Issuance, List, error) {
				q := q
				q.Visible, q.Page, q.Since = visible, page, since
				list, err := s.views.Issuances(ctx, q)
				if err != nil {
					return nil, List{}, err
				}
				return list.Items, list.List, nil
			},
		})
	}
	return listed(ctx, in.WatchParams, verbList, resourceIssuances, in.Namespace, func(visible Visible) (*IssuanceList, error) {
		q.Visible, q.Page = visible, in.page()
		list, err := s.views.Issuances(ctx, q)
		if err != nil {
			return nil, err
		}
		return &IssuanceList{List: restricted(list.List, visible, in.Namespace), Items: notNil(list.Items)}, nil
	})
}

// issuanceKey tells lines of the audit apart. Refusals of one kind are counted in the same line.
func issuanceKey(issuance *Issuance) string {
	if issuance.Certificate != nil {
		return issuance.Certificate.SHA256
	}
	if r := issuance.Refusal; r != nil {
		return strings.Join([]string{r.Replica, r.Reason, r.Code, r.Identity, r.Namespace, r.ServiceAccount, r.Address, r.First.UTC().Format(time.RFC3339Nano)}, "\x00")
	}
	return issuance.Time.UTC().Format(time.RFC3339Nano)
}

func (s *Server) getService(ctx context.Context, in *serviceInput) (*output[Service], error) {
	c := callOf(ctx)
	if err := s.authz.must(ctx, c.caller, verbGet, resourceServices, in.Namespace); err != nil {
		return nil, err
	}
	return one(ctx, fmt.Sprintf("service %s/%s", in.Namespace, in.Name), func() (*Service, error) {
		found, err := s.views.Service(ctx, in.Namespace, in.Name)
		if err != nil || s.prober == nil {
			return found, err
		}
		problems := s.prober.Problems(in.Namespace, in.Name)
		if len(problems) == 0 {
			return found, nil
		}
		whole := *found
		whole.Problems = append(slices.Clone(found.Problems), problems...)
		return &whole, nil
	})
}

// getCertificate answers who may not see every namespace in the same way whether the certificate is that of another
// one or of none.
func (s *Server) getCertificate(ctx context.Context, in *certificateInput) (*output[Certificate], error) {
	c := callOf(ctx)
	all, err := s.authz.may(ctx, c.caller, verbGet, resourceCertificates, "")
	if err != nil {
		return nil, err
	}
	out, err := one(ctx, "certificate "+in.SHA256, func() (*Certificate, error) { return s.views.Certificate(ctx, in.SHA256) })
	if all {
		return out, err
	}
	hidden := forbidden(c.caller, verbGet, resourceCertificates, "of every namespace, and this one, if it exists, is not of one that it may see")
	if err != nil {
		if asFault(err).Status == http.StatusNotFound {
			return nil, hidden
		}
		return nil, err
	}
	c.rest() // while the API server is asked
	allowed, err := s.authz.may(ctx, c.caller, verbGet, resourceCertificates, out.Body.Namespace)
	if err != nil {
		return nil, err
	}
	if !allowed {
		return nil, hidden
	}
	return out, nil
}

// getIdentity asks for the right in the namespace that the identity names; one that names none is of the whole cluster.
func (s *Server) getIdentity(ctx context.Context, in *identityInput) (*output[Identity], error) {
	id, err := spiffeid.FromString(in.SPIFFEID)
	if err != nil {
		return nil, newFault(http.StatusUnprocessableEntity, "this is no SPIFFE ID: "+err.Error()).at("path.spiffe", "it must be a SPIFFE ID, percent-encoded as in spiffe:%2F%2Fcluster.local%2Fns%2Fdefault%2Fsa%2Fweb", in.SPIFFEID)
	}
	namespace, _, _ := serviceAccountOf(id)
	c := callOf(ctx)
	if err := s.authz.must(ctx, c.caller, verbGet, resourceIdentities, namespace); err != nil {
		return nil, err
	}
	return one(ctx, "identity "+id.String(), func() (*Identity, error) {
		found, err := s.views.Identity(ctx, id.String())
		if err != nil {
			return nil, err
		}
		whole := *found
		whole.Live, whole.Services = notNil(whole.Live), notNil(whole.Services)
		return &whole, nil
	})
}

func (s *Server) getTrust(ctx context.Context, _ *nothing) (*output[Trust], error) {
	c := callOf(ctx)
	if err := s.authz.must(ctx, c.caller, verbGet, resourceTrust, ""); err != nil {
		return nil, err
	}
	return one(ctx, "trust", func() (*Trust, error) { return s.views.Trust(ctx) })
}

// one asks for one object, at work.
func one[T any](ctx context.Context, what string, ask func() (*T, error)) (*output[T], error) {
	if err := callOf(ctx).work(ctx); err != nil {
		return nil, fromViews(ctx, err, what)
	}
	found, err := ask()
	if err != nil {
		return nil, fromViews(ctx, err, what)
	}
	return &output[T]{found}, nil
}

// listed asks for a page of what the caller may see.
func listed[L any](ctx context.Context, w WatchParams, verb, resource, namespace string, ask func(Visible) (*L, error)) (*output[L], error) {
	if w.Resume != "" {
		return nil, newFault(http.StatusUnprocessableEntity, "resume needs watch=true").at("query.resume", "it needs watch=true", nil)
	}
	c := callOf(ctx)
	visible, err := c.server.authz.visible(ctx, c.caller, verb, resource, namespace)
	if err != nil {
		return nil, err
	}
	return one(ctx, resource, func() (*L, error) { return ask(visible) })
}

// restricted says whether namespaces are left out. Who asks for one namespace gets all of what was asked for.
func restricted(list List, visible Visible, namespace string) List {
	list.Restricted = namespace == "" && !visible.All()
	return list
}

// notNil makes an empty list appear as one.
func notNil[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

// span reads a length of time: seconds, or Go's form, with days.
func span(name, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	var length time.Duration
	var err error
	if seconds, notNumber := strconv.ParseInt(text, 10, 64); notNumber == nil {
		length = time.Duration(seconds) * time.Second
		if seconds > int64(maxSpan/time.Second) {
			length = maxSpan + 1
		}
	} else if days, ok := strings.CutSuffix(text, "d"); ok {
		var count int64
		if count, err = strconv.ParseInt(days, 10, 32); err == nil {
			length = time.Duration(min(count, int64(maxSpan/(24*time.Hour))+1)) * 24 * time.Hour
		}
	} else {
		length, err = time.ParseDuration(text)
	}
	if err != nil || length <= 0 || length > maxSpan {
		message := "it must be a length of time above zero and at most 100 years: a number of seconds, or such as 90m, 36h or 7d"
		return 0, newFault(http.StatusUnprocessableEntity, fmt.Sprintf("query parameter %q: %s", name, message)).at("query."+name, message, text)
	}
	return length, nil
}

const maxSpan = 100 * 365 * 24 * time.Hour

// describeWatch adds to the operation at path what it answers with watch=true.
func describeWatch[T any](api huma.API, path string) {
	answer := api.OpenAPI().Paths[path].Get.Responses["200"]
	answer.Content["application/x-ndjson"] = &huma.MediaType{
		Schema: api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Event[T]](), true, ""),
	}
	answer.Description = strings.TrimSpace(answer.Description + "; with watch=true a stream of events, one in each line")
}
