package api

import (
	"context"
	"iter"
	"net/url"
	"time"
)

// GatewayAPI is the API group of a gateway.
type GatewayAPI string

// Both gateway APIs.
const (
	KubernetesGateway GatewayAPI = "gateway.networking.k8s.io"
	IstioGateway      GatewayAPI = "networking.istio.io"
)

// GatewayObject is a Gateway of either API with the certificates that its listeners show.
type GatewayObject struct {
	API       GatewayAPI `json:"api"`
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	// Class is the name of its GatewayClass; only in the API of Kubernetes.
	Class string `json:"class,omitempty"`
	// State is that of the certificate that needs attention most; left out where nothing is known of any.
	State State `json:"state,omitempty"`
	// NotAfter is the earliest end of a certificate; zero where none is known.
	NotAfter time.Time `json:"notAfter,omitzero"`
	// Listeners are its listeners or servers, in their order.
	Listeners []GatewayListener `json:"listeners"`
	// Problems are those of all listeners: what somebody should look at.
	Problems []Problem `json:"problems,omitempty"`
}

// GatewayListener is a listener of the API of Kubernetes, or a server of that of Istio.
type GatewayListener struct {
	// Name is that of the listener, or of the server or its port.
	Name     string `json:"name"`
	Port     int    `json:"port"`
	Protocol string `json:"protocol"` // as the gateway says it, such as HTTPS
	// TLSMode is as the gateway says it, such as Terminate, Passthrough, SIMPLE, MUTUAL or ISTIO_MUTUAL; left out
	// where it takes no part in TLS.
	TLSMode string `json:"tlsMode,omitempty"`
	// Hosts are those that it serves; a single * stands for all.
	Hosts []GatewayHost `json:"hosts"`
	// Certificates are those that it shows to its clients; none where it passes TLS on, or shows the identity of its
	// own pods.
	Certificates []GatewayCertificate `json:"certificates"`
	Problems     []Problem            `json:"problems,omitempty"`
}

// GatewayHost is a host that a listener serves.
type GatewayHost struct {
	Name string `json:"name"` // *.example.com stands for all below it
	// Covered says whether one of the listener's certificates has a name for it.
	Covered Covered `json:"covered"`
}

// Covered says whether a host is covered by a certificate.
type Covered string

// Covered or not.
const (
	CoveredYes Covered = "yes"
	CoveredNo  Covered = "no"
	// CoveredUnknown is where a certificate of the listener isn't known, any host is served, or there is no
	// certificate to look at.
	CoveredUnknown Covered = "unknown"
)

// GatewayCertificate is a certificate that a gateway is told to show, with what is known of it. What is not known is
// left out.
type GatewayCertificate struct {
	// Secret is the one that holds it. Its namespace is left out where it isn't known.
	Secret *ObjectRef `json:"secret,omitempty"`
	// File is where the gateway's own pods have it, in place of a Secret.
	File string `json:"file,omitempty"`
	// From says how what follows is known; left out where nothing is.
	From KnownFrom `json:"from,omitempty"`
	// Unknown says why nothing, or not all, is known.
	Unknown string `json:"unknown,omitempty"`
	// Certificate is cert-manager's Certificate that writes the Secret.
	Certificate *ObjectRef `json:"certificate,omitempty"`
	Issuer      string     `json:"issuer,omitempty"` // kind.group/name
	// SANs are its names with their kind, such as DNS:*.example.com.
	SANs []string `json:"sans,omitempty"`

	NotBefore        time.Time `json:"notBefore,omitzero"`
	NotAfter         time.Time `json:"notAfter,omitzero"`
	RenewalTime      time.Time `json:"renewalTime,omitzero"` // when cert-manager renews it
	RemainingSeconds int64     `json:"remainingSeconds"`     // 0 once it has expired, and where its end isn't known
	RemainingRatio   float64   `json:"remainingRatio"`       // part of its life that is left, 0 to 1
	// State is that at which its own renewal time puts it: due from then on, and overdue once a twentieth of its life
	// has passed since, or half of the time that was left.
	State State `json:"state,omitempty"`
	// Ready is the Certificate's condition Ready; left out where there is no Certificate, or no condition yet.
	Ready  *bool  `json:"ready,omitempty"`
	Reason string `json:"reason,omitempty"` // of the condition, where it isn't ready

	// Serial and SHA256 are of the certificate in the Secret, where that may be read.
	Serial string `json:"serial,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// KnownFrom says how something is known.
type KnownFrom string

// Where knowledge of a gateway's certificate comes from.
const (
	FromCertificate KnownFrom = "certificate" // spec and status of cert-manager's Certificate
	FromSecret      KnownFrom = "secret"      // the certificate itself, in a Secret that may be read
)

// Problems of gateways, besides overdue and expired.
const (
	// ProblemNoCertificate is a Secret, or a listener, without a certificate that is known of.
	ProblemNoCertificate ProblemCode = "no-certificate"
	// ProblemNotReady is a Certificate that cert-manager says isn't ready.
	ProblemNotReady ProblemCode = "not-ready"
	// ProblemNotCovered is a host that no certificate of its listener has a name for.
	ProblemNotCovered ProblemCode = "host-not-covered"
	// ProblemNotGranted is a Secret of another namespace that no ReferenceGrant lets the gateway use.
	ProblemNotGranted ProblemCode = "reference-not-granted"
	// ProblemNoWorkload is an Istio gateway whose selector fits no pod, so that nobody serves it.
	ProblemNoWorkload ProblemCode = "no-workload"
	// ProblemTooLarge is a gateway of which only the beginning is looked at.
	ProblemTooLarge ProblemCode = "too-large"
)

// GatewayList is a page of gateways, by namespace, name and API.
type GatewayList struct {
	List
	Items []GatewayObject `json:"items"`
}

// GatewayQuery selects gateways. What belongs to a namespace that the caller may not see is left out of their
// certificates too.
type GatewayQuery struct {
	Page
	Visible
	Namespace string // empty for all
	Problems  bool   // only those with problems
}

type gatewaysInput struct {
	PageParams
	WatchParams
	Namespace string `query:"namespace" pattern:"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" maxLength:"63"`
	Problems  bool   `query:"problems" doc:"Only those with problems."`
}

func (s *Server) listGateways(ctx context.Context, in *gatewaysInput) (*output[GatewayList], error) {
	q := GatewayQuery{Namespace: in.Namespace, Problems: in.Problems}
	if in.Watch {
		return nil, watch(ctx, in.PageParams, in.WatchParams, watched[GatewayObject]{
			resource: resourceGateways, namespace: in.Namespace, key: gatewayKey,
			list: func(ctx context.Context, visible Visible, page Page, _ time.Time) ([]GatewayObject, List, error) {
				q := q
				q.Visible, q.Page = visible, page
				list, err := s.views.Gateways(ctx, q)
				if err != nil {
					return nil, List{}, err
				}
				return list.Items, list.List, nil
			},
		})
	}
	return listed(ctx, in.WatchParams, verbList, resourceGateways, in.Namespace, func(visible Visible) (*GatewayList, error) {
		q.Visible, q.Page = visible, in.page()
		list, err := s.views.Gateways(ctx, q)
		if err != nil {
			return nil, err
		}
		return &GatewayList{List: restricted(list.List, visible, in.Namespace), Items: notNil(list.Items)}, nil
	})
}

// gatewayKey tells gateways apart: the same name may be taken in both APIs.
func gatewayKey(g *GatewayObject) string {
	return g.Namespace + "/" + g.Name + "." + string(g.API)
}

// Gateways is one page.
func (c *Client) Gateways(ctx context.Context, q GatewayQuery) (*GatewayList, error) {
	return get[GatewayList](ctx, c, withPage(gatewayParams(q), q.Page), "v1", "gateways")
}

// AllGateways is as AllServices.
func (c *Client) AllGateways(ctx context.Context, q GatewayQuery) iter.Seq2[*GatewayObject, error] {
	return pages(q.Page, func(page Page) ([]GatewayObject, string, error) {
		q.Page = page
		list, err := c.Gateways(ctx, q)
		if err != nil {
			return nil, "", err
		}
		return list.Items, list.Continue, nil
	})
}

// WatchGateways is as WatchServices.
func (c *Client) WatchGateways(ctx context.Context, q GatewayQuery, resume string) iter.Seq2[Event[GatewayObject], error] {
	return events[GatewayObject](ctx, c, gatewayParams(q), resume, "v1", "gateways")
}

func gatewayParams(q GatewayQuery) url.Values {
	return serviceParams(ServiceQuery{Namespace: q.Namespace, Problems: q.Problems})
}
