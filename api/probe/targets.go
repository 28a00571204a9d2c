package probe

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/signet-ca/signet/api"
)

// hbonePort is where the node's proxy, and a waypoint, take connections of the mesh for a pod.
const hbonePort = 15008

// maxPorts is how many of a service's ports are probed where none is asked for.
const maxPorts = 3

// target is a port of a pod, and what to ask it.
type target struct {
	service  corev1.ServicePort // through which it is reached
	protocol api.ProbeProtocol  // never auto
	port     uint16             // of the certificate
	plain    uint16             // where plaintext is tried
	why      error              // why it isn't dialed
}

// portsOf are the ports of a service over TCP that are asked for.
func portsOf(service *corev1.Service, port int32) ([]corev1.ServicePort, error) {
	var ports []corev1.ServicePort
	for _, p := range service.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP || port != 0 && p.Port != port {
			continue
		}
		if ports = append(ports, p); len(ports) == maxPorts {
			break
		}
	}
	switch {
	case len(ports) > 0:
		return ports, nil
	case port != 0:
		return nil, fmt.Errorf("%w: the service has no port %d over TCP", api.ErrBadProbe, port)
	}
	return nil, fmt.Errorf("%w: the service has no port over TCP", api.ErrBadProbe)
}

// targetsOf are the ports of a pod behind service ports, and what to ask each of them. Two that lead to the same question
// are one.
func targetsOf(pod *corev1.Pod, plane api.DataPlane, ports []corev1.ServicePort, protocol api.ProbeProtocol) []target {
	var targets []target
	for _, port := range ports {
		t := target{service: port, protocol: protocol}
		if protocol == api.ProbeAuto || protocol == "" {
			t.protocol = protocolOf(plane, port)
		}
		t.port, t.why = resolve(pod, port)
		t.plain = t.port
		if t.protocol == api.ProbeAmbient {
			t.port, t.why = hbonePort, nil
			if plane != api.Ambient && plane != api.Waypoint && !declares(pod, hbonePort) {
				t.why = fmt.Errorf("it is not in an ambient mesh, so it has no port %d", hbonePort)
			}
		}
		if !slices.ContainsFunc(targets, func(other target) bool {
			return t.why == nil && other.why == nil && other.port == t.port && other.protocol == t.protocol
		}) {
			targets = append(targets, t)
		}
	}
	return targets
}

// protocolOf is how a pod of a data plane shows its certificate on a port.
func protocolOf(plane api.DataPlane, port corev1.ServicePort) api.ProbeProtocol {
	switch plane {
	case api.Sidecar:
		return api.ProbeSidecar
	case api.Ambient, api.Waypoint:
		return api.ProbeAmbient
	}
	switch port.Port { // IANA; 465, 993 and 995 begin with TLS
	case 25, 587:
		return api.ProbeSMTP
	case 143:
		return api.ProbeIMAP
	case 110:
		return api.ProbePOP3
	}
	return api.ProbeTLS
}

// resolve is the port of a pod that a service's port leads to.
func resolve(pod *corev1.Pod, port corev1.ServicePort) (uint16, error) {
	number := port.TargetPort.IntVal
	if name := port.TargetPort.StrVal; name != "" {
		number = 0
		for c := range containers(pod) {
			for _, p := range c.Ports {
				if p.Name == name && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
					number = p.ContainerPort
				}
			}
		}
		if number == 0 {
			return 0, fmt.Errorf("it has no port %.63q, to which the service's port %d leads", name, port.Port)
		}
	} else if number == 0 {
		number = port.Port
	}
	if number < 1 || number > 65535 {
		return 0, errors.New("its port is no number of a port")
	}
	return uint16(number), nil
}

func declares(pod *corev1.Pod, number int32) bool {
	for c := range containers(pod) {
		if slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.ContainerPort == number }) {
			return true
		}
	}
	return false
}

// containers are those that run beside each other: init containers that go on running are among them.
func containers(pod *corev1.Pod) func(yield func(corev1.Container) bool) {
	return func(yield func(corev1.Container) bool) {
		for _, c := range pod.Spec.InitContainers {
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways && !yield(c) {
				return
			}
		}
		for _, c := range pod.Spec.Containers {
			if !yield(c) {
				return
			}
		}
	}
}

// speaksHTTP says whether a port is declared to speak HTTP, alone or in TLS: by its appProtocol, else by its name, as
// Istio reads it.
func speaksHTTP(port corev1.ServicePort) bool {
	says := port.Name
	if port.AppProtocol != nil {
		says = strings.TrimPrefix(*port.AppProtocol, "kubernetes.io/")
	}
	kind, _, _ := strings.Cut(strings.ToLower(says), "-")
	switch kind {
	case "http", "https", "http2", "h2c", "grpc", "ws", "wss":
		return true
	}
	return false
}

// meshProtocol says whether a protocol shows the certificate of a workload.
func meshProtocol(p api.ProbeProtocol) bool { return p == api.ProbeSidecar || p == api.ProbeAmbient }
