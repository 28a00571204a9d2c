package inventory

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/signet-ca/signet/api"
)

func TestClassify(t *testing.T) {
	label := func(key, value string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Labels[key] = value } }
	note := func(key, value string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Annotations[key] = value } }
	initProxy := func(p *corev1.Pod) {
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: "istio-proxy"})
	}
	host := func(p *corev1.Pod) { p.Spec.HostNetwork = true }
	type changes = []func(*corev1.Pod)
	for name, c := range map[string]struct {
		changes changes
		want    api.DataPlane
		ambient bool // the namespace is
	}{
		"nothing":                        {nil, api.NoMesh, false},
		"container":                      {changes{sidecar}, api.Sidecar, false},
		"native sidecar":                 {changes{initProxy}, api.Sidecar, false},
		"status":                         {changes{note("sidecar.istio.io/status", "{}")}, api.Sidecar, false},
		"sidecar in ambient namespace":   {changes{sidecar}, api.Sidecar, true},
		"enrolled":                       {changes{enrolled}, api.Ambient, true},
		"enrolled elsewhere":             {changes{enrolled}, api.Ambient, false},
		"enrolling":                      {changes{note("ambient.istio.io/redirection", "pending")}, api.AmbientPending, false},
		"disabled":                       {changes{note("ambient.istio.io/redirection", "disabled")}, api.NoMesh, false},
		"asks for ambient":               {changes{label("istio.io/dataplane-mode", "ambient")}, api.AmbientPending, false},
		"its namespace asks":             {nil, api.AmbientPending, true},
		"its namespace asks, it doesn't": {changes{label("istio.io/dataplane-mode", "none")}, api.NoMesh, true},
		"host network":                   {changes{host}, api.NoMesh, true},
		"host network with a proxy":      {changes{host, sidecar}, api.NoMesh, false},
		"host network, asks":             {changes{host, label("istio.io/dataplane-mode", "ambient")}, api.NoMesh, false},
		"waypoint":                       {changes{sidecar, label("gateway.istio.io/managed", "istio.io-mesh-controller"), label("gateway.networking.k8s.io/gateway-name", "w")}, api.Waypoint, true},
		"agentgateway waypoint":          {changes{label("gateway.istio.io/managed", "istio.io-agentgateway-waypoint-controller")}, api.Waypoint, false},
		"managed gateway":                {changes{sidecar, label("gateway.istio.io/managed", "istio.io-gateway-controller")}, api.Gateway, false},
		"agentgateway":                   {changes{label("gateway.istio.io/managed", "istio.io-agentgateway-controller")}, api.Gateway, false},
		"east-west":                      {changes{sidecar, label("gateway.istio.io/managed", "istio.io-eastwest-controller")}, api.Gateway, false},
		"named gateway":                  {changes{sidecar, label("gateway.networking.k8s.io/gateway-name", "g")}, api.Gateway, false},
		"named gateway, older":           {changes{sidecar, label("istio.io/gateway-name", "g")}, api.Gateway, false},
		"somebody else's gateway":        {changes{label("gateway.networking.k8s.io/gateway-name", "g")}, api.NoMesh, false},
		"somebody else manages it":       {changes{label("gateway.istio.io/managed", "example.com-controller")}, api.NoMesh, false},
		"ingress gateway":                {changes{sidecar, label("istio", "ingressgateway")}, api.Gateway, false},
		"egress gateway":                 {changes{sidecar, label("istio", "egressgateway")}, api.Gateway, false},
		"ingress by name alone":          {changes{label("istio", "ingressgateway")}, api.NoMesh, false},
		"another role":                   {changes{sidecar, label("istio", "pilot")}, api.Sidecar, false},
		"injected gateway":               {changes{sidecar, note("inject.istio.io/templates", "custom,gateway")}, api.Gateway, false},
		"gRPC agent":                     {changes{sidecar, note("inject.istio.io/templates", "grpc-agent")}, api.Sidecar, false},
		"gateway in the host's network":  {changes{host, sidecar, label("istio", "ingressgateway")}, api.Gateway, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := podLike("ns", "p", "sa", 1, c.changes...)
			assert.Equal(t, c.want, classify(p).in(c.ambient))
			shrunk, err := shrinkPod(p)
			require.NoError(t, err)
			assert.Equal(t, c.want, classify(shrunk.(*corev1.Pod)).in(c.ambient), "after the transformation")
		})
	}
}

// TestShrinkKeepsNothingElse: what could hold a secret or much memory isn't kept.
func TestShrinkKeepsNothingElse(t *testing.T) {
	p := podLike("ns", "p", "sa", 1, sidecar)
	p.Annotations["sidecar.istio.io/status"] = "a long text"
	p.Spec.Containers[1].Env = []corev1.EnvVar{{Name: "PASSWORD", Value: "secret"}}
	p.Spec.Volumes = []corev1.Volume{{Name: "v"}}
	p.Labels["app"] = "p"
	got, err := shrinkPod(p)
	require.NoError(t, err)
	shrunk := got.(*corev1.Pod)
	assert.Equal(t, []corev1.Container{{Name: "istio-proxy"}}, shrunk.Spec.Containers)
	assert.Empty(t, shrunk.Spec.Volumes)
	assert.Nil(t, shrunk.Labels)
	assert.Equal(t, map[string]string{"sidecar.istio.io/status": ""}, shrunk.Annotations)
	again, err := shrinkPod(shrunk)
	require.NoError(t, err)
	assert.Equal(t, shrunk, again)

	o := metadata("ns", "sa", map[string]string{"istio.io/dataplane-mode": "ambient", "x": "y"})
	o.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "long"}
	got, err = shrinkMetadata(o)
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"istio.io/dataplane-mode": "ambient"}, o.Labels)
	assert.Nil(t, o.Annotations)
	assert.Same(t, o, got)
}
