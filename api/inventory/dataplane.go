package inventory

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/signet-ca/signet/api"
)

// What Istio marks pods and namespaces with.
const (
	proxyContainer = "istio-proxy"

	sidecarStatus    = "sidecar.istio.io/status"      // annotation, by the injector
	injectTemplates  = "inject.istio.io/templates"    // annotation, which template was injected
	redirection      = "ambient.istio.io/redirection" // annotation, by the node: enabled, or pending
	dataPlaneMode    = "istio.io/dataplane-mode"      // label of pods and namespaces: ambient, none
	managedBy        = "gateway.istio.io/managed"     // label of the proxies that istiod deploys for Gateways
	gatewayName      = "gateway.networking.k8s.io/gateway-name"
	gatewayNameIstio = "istio.io/gateway-name" // the same in older releases
	istioLabel       = "istio"                 // label of gateways that were installed by hand

	routerRole  = "router" // argument of the proxies of gateways
	ambientMode = "ambient"
	noMode      = "none"
)

// keptLabels and keptAnnotations decide the data plane; no others are kept in memory.
var (
	keptLabels      = []string{dataPlaneMode, managedBy, gatewayName, gatewayNameIstio, istioLabel}
	keptAnnotations = []string{sidecarStatus, injectTemplates, redirection}
)

// gatewayRoles are the values of the label istio that Istio's own charts and profiles give to gateways.
var gatewayRoles = []string{"ingressgateway", "egressgateway", "eastwestgateway", "ingress", "egress", "eastwest"}

// class is how a pod takes part in the mesh as far as its own object tells.
type class struct {
	plane api.DataPlane
	mode  string // its own label, which goes before that of its namespace
}

// classify says how a pod takes part in the mesh. The first that fits counts:
//
//   - Waypoint: istiod deploys it for a Gateway that is one (gateway.istio.io/managed: istio.io-mesh-controller, or
//     another controller for waypoints).
//   - Gateway: istiod deploys it for another Gateway (gateway.istio.io/managed: istio.io-…); or it runs istio-proxy and
//     has a label with a Gateway's name, one of the roles of gateways in the label istio, was injected with the
//     gateway template, or runs as a router. Labels alone don't count, because other implementations of the Gateway API use them too.
//   - Sidecar: a container or init container istio-proxy, or the annotation sidecar.istio.io/status.
//   - Ambient: the annotation ambient.istio.io/redirection: enabled; AmbientPending while it says pending, or where a
//     label of the pod or of its namespace asks for it and there is none.
//   - NoMesh: all others.
//
// A pod in the network of its host is a gateway or takes no part: it is neither injected nor redirected.
func classify(pod *corev1.Pod) class {
	c := class{plane: api.NoMesh, mode: pod.Labels[dataPlaneMode]}
	proxy := hasProxy(pod)
	managed := pod.Labels[managedBy]
	switch {
	case managed == "istio.io-mesh-controller", strings.HasPrefix(managed, "istio.io-") && strings.Contains(managed, "waypoint"):
		c.plane = api.Waypoint
	case strings.HasPrefix(managed, "istio.io-"), proxy && marksGateway(pod):
		c.plane = api.Gateway
	case pod.Spec.HostNetwork:
		c.mode = noMode
	case proxy:
		c.plane = api.Sidecar
	case pod.Annotations[redirection] == "enabled":
		c.plane = api.Ambient
	case pod.Annotations[redirection] == "pending":
		c.plane = api.AmbientPending
	}
	return c
}

// in is the data plane of a pod in a namespace that asks for ambient, or doesn't.
func (c class) in(ambientNamespace bool) api.DataPlane {
	if c.plane == api.NoMesh && (c.mode == ambientMode || c.mode == "" && ambientNamespace) {
		return api.AmbientPending
	}
	return c.plane
}

// hasProxy says whether pod runs Istio's proxy, or its agent alone.
func hasProxy(pod *corev1.Pod) bool {
	is := func(c corev1.Container) bool { return c.Name == proxyContainer }
	_, injected := pod.Annotations[sidecarStatus]
	return injected || slices.ContainsFunc(pod.Spec.Containers, is) || slices.ContainsFunc(pod.Spec.InitContainers, is)
}

func marksGateway(pod *corev1.Pod) bool {
	return pod.Labels[gatewayName] != "" || pod.Labels[gatewayNameIstio] != "" ||
		slices.Contains(gatewayRoles, pod.Labels[istioLabel]) ||
		slices.Contains(strings.Split(pod.Annotations[injectTemplates], ","), "gateway") ||
		slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool {
			return c.Name == proxyContainer && slices.Contains(c.Args, routerRole)
		})
}

// needs says whether a pod of a data plane needs a certificate.
func needs(plane api.DataPlane) bool {
	switch plane {
	case api.Sidecar, api.Ambient, api.Gateway, api.Waypoint:
		return true
	}
	return false
}
