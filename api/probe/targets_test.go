package probe

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/signet-ca/signet/api"
)

func TestPortsOf(t *testing.T) {
	service := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{
		{Port: 53, Protocol: corev1.ProtocolUDP}, {Port: 80}, {Port: 443, Protocol: corev1.ProtocolTCP}, {Port: 8080}, {Port: 9090},
	}}}
	numbers := func(asked int32) []int32 {
		ports, err := portsOf(service, asked)
		require.NoError(t, err)
		var out []int32
		for _, p := range ports {
			out = append(out, p.Port)
		}
		return out
	}
	assert.Equal(t, []int32{80, 443, 8080}, numbers(0), "the first ones")
	assert.Equal(t, []int32{9090}, numbers(9090))
	for _, port := range []int32{53, 15008, 81} {
		_, err := portsOf(service, port)
		assert.ErrorIs(t, err, api.ErrBadProbe, "%d", port)
	}
	_, err := portsOf(&corev1.Service{}, 0)
	assert.ErrorIs(t, err, api.ErrBadProbe)
}

func TestTargetsOf(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{
			{Name: "once", Ports: []corev1.ContainerPort{{Name: "ended", ContainerPort: 1}}},
			{Name: "istio-proxy", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 15090}}},
		},
		Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}, {Name: "web", ContainerPort: 8080},
		}}},
	}}
	hbone := pod.DeepCopy()
	hbone.Spec.Containers[0].Ports = append(hbone.Spec.Containers[0].Ports, corev1.ContainerPort{ContainerPort: hbonePort})
	to := func(port int32, target any) corev1.ServicePort {
		p := corev1.ServicePort{Port: port}
		switch target := target.(type) {
		case int:
			p.TargetPort = intstr.FromInt32(int32(target))
		case string:
			p.TargetPort = intstr.FromString(target)
		}
		return p
	}
	type asked struct {
		protocol api.ProbeProtocol
		port     uint16
		plain    uint16
		why      string
	}
	for _, row := range []struct {
		name     string
		pod      *corev1.Pod
		plane    api.DataPlane
		protocol api.ProbeProtocol
		ports    []corev1.ServicePort
		want     []asked
	}{
		{"sidecar", pod, api.Sidecar, "", []corev1.ServicePort{to(80, 8080), to(81, nil)}, []asked{{api.ProbeSidecar, 8080, 8080, ""}, {api.ProbeSidecar, 81, 81, ""}}},
		{"by name", pod, api.Sidecar, api.ProbeAuto, []corev1.ServicePort{to(80, "web")}, []asked{{api.ProbeSidecar, 8080, 8080, ""}}},
		{"two ways to one", pod, api.Sidecar, "", []corev1.ServicePort{to(80, 8080), to(81, "web")}, []asked{{api.ProbeSidecar, 8080, 8080, ""}}},
		{"name of a container that goes on", pod, api.Sidecar, "", []corev1.ServicePort{to(80, "side")}, []asked{{api.ProbeSidecar, 15090, 15090, ""}}},
		{"name of a container that has ended", pod, api.Sidecar, "", []corev1.ServicePort{to(80, "ended")}, []asked{{api.ProbeSidecar, 0, 0, `it has no port "ended", to which the service's port 80 leads`}}},
		{"name of another protocol", pod, api.Sidecar, "", []corev1.ServicePort{to(80, "dns")}, []asked{{api.ProbeSidecar, 0, 0, `it has no port "dns", to which the service's port 80 leads`}}},
		{"out of range", pod, api.Sidecar, "", []corev1.ServicePort{to(80, 65536), to(81, -1)}, []asked{{api.ProbeSidecar, 0, 0, "its port is no number of a port"}, {api.ProbeSidecar, 0, 0, "its port is no number of a port"}}},
		{"ambient, once for all ports", pod, api.Ambient, "", []corev1.ServicePort{to(80, 8080), to(81, 81)}, []asked{{api.ProbeAmbient, 15008, 8080, ""}}},
		{"ambient, where its port isn't known", pod, api.Ambient, "", []corev1.ServicePort{to(80, "none")}, []asked{{api.ProbeAmbient, 15008, 0, ""}}},
		{"waypoint", pod, api.Waypoint, "", []corev1.ServicePort{to(15008, nil)}, []asked{{api.ProbeAmbient, 15008, 15008, ""}}},
		{"gateway", pod, api.Gateway, "", []corev1.ServicePort{to(443, 8443)}, []asked{{api.ProbeTLS, 8443, 8443, ""}}},
		{"none", pod, api.NoMesh, "", []corev1.ServicePort{to(443, 8443), to(25, 2525), to(587, 2587)}, []asked{{api.ProbeTLS, 8443, 8443, ""}, {api.ProbeSMTP, 2525, 2525, ""}, {api.ProbeSMTP, 2587, 2587, ""}}},
		{"mail", pod, api.AmbientPending, "", []corev1.ServicePort{to(143, nil), to(110, nil), to(993, nil)}, []asked{{api.ProbeIMAP, 143, 143, ""}, {api.ProbePOP3, 110, 110, ""}, {api.ProbeTLS, 993, 993, ""}}},
		{"told", pod, api.Sidecar, api.ProbeIMAP, []corev1.ServicePort{to(80, 8080)}, []asked{{api.ProbeIMAP, 8080, 8080, ""}}},
		{"ambient where there is none", pod, api.Sidecar, api.ProbeAmbient, []corev1.ServicePort{to(80, 8080)}, []asked{{api.ProbeAmbient, 15008, 8080, "it is not in an ambient mesh, so it has no port 15008"}}},
		{"ambient on a port of its own", hbone, api.NoMesh, api.ProbeAmbient, []corev1.ServicePort{to(80, 8080)}, []asked{{api.ProbeAmbient, 15008, 8080, ""}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var got []asked
			for _, target := range targetsOf(row.pod, row.plane, row.ports, row.protocol) {
				why := ""
				if target.why != nil {
					why = target.why.Error()
				}
				got = append(got, asked{target.protocol, target.port, target.plain, why})
			}
			assert.Equal(t, row.want, got)
		})
	}
}

func TestSpeaksHTTP(t *testing.T) {
	app := func(s string) *string { return &s }
	for _, row := range []struct {
		port corev1.ServicePort
		want bool
	}{
		{corev1.ServicePort{Name: "http"}, true},
		{corev1.ServicePort{Name: "http2-api"}, true},
		{corev1.ServicePort{Name: "grpc-web"}, true},
		{corev1.ServicePort{Name: "https"}, true},
		{corev1.ServicePort{Name: "httpd"}, false},
		{corev1.ServicePort{Name: "tcp-http"}, false},
		{corev1.ServicePort{}, false},
		{corev1.ServicePort{Name: "x", AppProtocol: app("kubernetes.io/h2c")}, true},
		{corev1.ServicePort{Name: "x", AppProtocol: app("HTTP")}, true},
		{corev1.ServicePort{Name: "http", AppProtocol: app("redis")}, false},
	} {
		assert.Equal(t, row.want, speaksHTTP(row.port), "%+v", row.port)
	}
}
