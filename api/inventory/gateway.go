package inventory

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/signet-ca/signet/api"
)

// gateway is what is kept of a Gateway of either API. Immutable.
type gateway struct {
	name
	api       api.GatewayAPI
	class     string
	selector  map[string]string // of the pods that serve it, in any namespace; only Istio's, and empty for all gateways
	listeners []listener
	cut       bool // more was left out
}

// listener is a listener of a gateway, or a server of Istio's.
type listener struct {
	name, protocol, mode string
	port                 int
	hosts                []string // lower-case; anyHost for all
	shows                bool     // a certificate of the following
	secrets              []name   // without a namespace: that of the pods that serve it
	files                []string
	others               []string // what else is named as a certificate, in a few words
}

const (
	// anyHost stands for every host.
	anyHost = "*"
	// terminateMode is the option of Istio in the TLS settings of a listener of the Gateway API.
	terminateMode = "gateway.istio.io/tls-terminate-mode"
	istioMutual   = "ISTIO_MUTUAL"
	// mostOfGateway bounds what is kept of a gateway: its listeners, their hosts and certificates. The API server takes
	// objects of megabytes.
	mostOfGateway = 2000
)

// compareGateways puts gateways into the order in which they are listed.
func compareGateways(a, b *gateway) int {
	return cmp.Or(a.name.compare(b.name), cmp.Compare(a.api, b.api))
}

// budget is how much more of a gateway is kept.
type budget int

// take is as much of a list as may be kept.
func take[T any](b *budget, list []T) []T {
	n := min(len(list), max(0, int(*b)))
	*b -= budget(len(list))
	return list[:n]
}

// kubernetesGatewaySpec has what is read of a Gateway of the API of Kubernetes.
type kubernetesGatewaySpec struct {
	GatewayClassName string `json:"gatewayClassName"`
	Listeners        []struct {
		Name     string `json:"name"`
		Hostname string `json:"hostname"`
		Port     int64  `json:"port"`
		Protocol string `json:"protocol"`
		TLS      *struct {
			Mode            string            `json:"mode"`
			CertificateRefs []certificateRef  `json:"certificateRefs"`
			Options         map[string]string `json:"options"`
		} `json:"tls"`
	} `json:"listeners"`
}

type certificateRef struct {
	Group     string `json:"group"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// decodeSpec reads the spec of an object. Fields that it doesn't know are left out.
func decodeSpec[T any](o *unstructured.Unstructured) (spec T, err error) {
	from, _, err := unstructured.NestedMap(o.Object, "spec")
	if err == nil {
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(from, &spec)
	}
	if err != nil {
		err = fmt.Errorf("read %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
	}
	return spec, err
}

// readKubernetesGateway is a Gateway of gateway.networking.k8s.io.
func readKubernetesGateway(o *unstructured.Unstructured) (*gateway, error) {
	spec, err := decodeSpec[kubernetesGatewaySpec](o)
	if err != nil {
		return nil, err
	}
	g := &gateway{name: name{o.GetNamespace(), o.GetName()}, api: api.KubernetesGateway, class: spec.GatewayClassName}
	left := budget(mostOfGateway)
	for _, from := range take(&left, spec.Listeners) {
		l := listener{name: from.Name, protocol: from.Protocol, port: int(from.Port), hosts: []string{normalHost(cmp.Or(from.Hostname, anyHost))}}
		if tls := from.TLS; tls != nil && (from.Protocol == "HTTPS" || from.Protocol == "TLS") {
			l.mode = cmp.Or(tls.Mode, "Terminate")
			if l.mode == "Terminate" {
				l.shows = tls.Options[terminateMode] != istioMutual
				l.mode = cmp.Or(tls.Options[terminateMode], l.mode)
			}
			if l.shows {
				for _, ref := range take(&left, tls.CertificateRefs) {
					if ref.Group == "" && cmp.Or(ref.Kind, "Secret") == "Secret" {
						l.secrets = append(l.secrets, name{cmp.Or(ref.Namespace, o.GetNamespace()), ref.Name})
					} else {
						l.others = append(l.others, fmt.Sprintf("%s.%s %s", ref.Kind, ref.Group, ref.Name))
					}
				}
			}
		}
		g.listeners = append(g.listeners, l)
	}
	g.cut = left < 0
	return g, nil
}

// istioGatewaySpec has what is read of a Gateway of Istio.
type istioGatewaySpec struct {
	Selector map[string]string `json:"selector"`
	Servers  []struct {
		Name string `json:"name"`
		Port struct {
			Number   int64  `json:"number"`
			Protocol string `json:"protocol"`
			Name     string `json:"name"`
		} `json:"port"`
		Hosts []string `json:"hosts"`
		TLS   *struct {
			Mode              string   `json:"mode"`
			ServerCertificate string   `json:"serverCertificate"`
			CredentialName    string   `json:"credentialName"`
			CredentialNames   []string `json:"credentialNames"`
			TLSCertificates   []struct {
				ServerCertificate string `json:"serverCertificate"`
			} `json:"tlsCertificates"`
		} `json:"tls"`
	} `json:"servers"`
}

// readIstioGateway is a Gateway of networking.istio.io.
func readIstioGateway(o *unstructured.Unstructured) (*gateway, error) {
	spec, err := decodeSpec[istioGatewaySpec](o)
	if err != nil {
		return nil, err
	}
	g := &gateway{name: name{o.GetNamespace(), o.GetName()}, api: api.IstioGateway, selector: spec.Selector}
	left := budget(mostOfGateway)
	for _, from := range take(&left, spec.Servers) {
		l := listener{name: cmp.Or(from.Name, from.Port.Name), protocol: from.Port.Protocol, port: int(from.Port.Number)}
		for _, host := range take(&left, from.Hosts) {
			if _, bare, ok := strings.Cut(host, "/"); ok { // before it is whose routes it takes
				host = bare
			}
			l.hosts = append(l.hosts, normalHost(host))
		}
		// In plain HTTP it only says that HTTPS should be asked.
		if tls := from.TLS; tls != nil && (tls.Mode != "" || !strings.HasPrefix(strings.ToUpper(from.Port.Protocol), "HTTP") || strings.EqualFold(from.Port.Protocol, "HTTPS")) {
			l.mode = cmp.Or(tls.Mode, "PASSTHROUGH")
			if l.shows = slices.Contains([]string{"SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL"}, l.mode); l.shows {
				names := tls.CredentialNames
				if tls.CredentialName != "" {
					names = []string{tls.CredentialName}
				}
				for _, of := range take(&left, names) {
					l.credential(of)
				}
				for _, certificate := range take(&left, tls.TLSCertificates) {
					l.files = append(l.files, certificate.ServerCertificate)
				}
				if tls.ServerCertificate != "" && len(names) == 0 {
					l.files = append(l.files, tls.ServerCertificate)
				}
			}
		}
		g.listeners = append(g.listeners, l)
	}
	g.cut = left < 0
	return g, nil
}

// credential takes note of a credentialName: the name of a Secret, with the namespace where its form has one.
func (l *listener) credential(of string) {
	scheme, rest, hasScheme := strings.Cut(of, "://")
	if !hasScheme {
		scheme, rest = "kubernetes", of
	}
	namespace, bare, hasNamespace := strings.Cut(rest, "/")
	if !hasNamespace {
		namespace, bare = "", rest
	}
	switch {
	case scheme == "builtin": // the identity of its own pods
		l.shows = false
	case scheme == "kubernetes", scheme == "kubernetes-gateway" && hasNamespace:
		l.secrets = append(l.secrets, name{namespace, bare})
	default:
		l.others = append(l.others, of)
	}
}
