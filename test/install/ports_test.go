package install

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/patiently"
)

// ports wants that what the pods listen on, what their container says, what the Services lead to and what the NetworkPolicy
// lets in are the same. Nothing enforces a NetworkPolicy here; test/networkpolicy shows whom it lets in and out.
func (i *installation) ports(t *testing.T) {
	t.Helper()
	for _, c := range i.pods.containers() {
		var ofContainer []int32
		for _, port := range c.pod.Spec.Containers[0].Ports {
			ofContainer = append(ofContainer, port.ContainerPort)
		}
		slices.Sort(ofContainer)
		patiently.Until(t, "what the program listens on", func(context.Context) error {
			if is, err := listening(c); err != nil || !slices.Equal(is, ofContainer) {
				return fmt.Errorf("%s listens on %v, its container says %v: %w", c.pod.Name, is, ofContainer, err)
			}
			return nil
		})

		var services corev1.ServiceList
		require.NoError(t, plane.Client().List(t.Context(), &services, client.InNamespace(system)))
		var led []int32
		for _, service := range services.Items {
			if !labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(c.pod.Labels)) {
				continue
			}
			for _, port := range service.Spec.Ports {
				to, err := c.port(port.TargetPort)
				require.NoError(t, err, "Service %s", service.Name)
				led = append(led, to)
			}
		}
		slices.Sort(led)
		assert.Equal(t, []int32{6443, 8443, 9402}, slices.Compact(led), "what Services lead to")

		var policies networkingv1.NetworkPolicyList
		require.NoError(t, plane.Client().List(t.Context(), &policies, client.InNamespace(system)))
		require.Len(t, policies.Items, 1)
		policy := policies.Items[0].Spec
		assert.True(t, labels.SelectorFromSet(policy.PodSelector.MatchLabels).Matches(labels.Set(c.pod.Labels)))
		var let []int32
		for _, rule := range policy.Ingress {
			for _, port := range rule.Ports {
				assert.Equal(t, corev1.ProtocolTCP, *port.Protocol)
				let = append(let, port.Port.IntVal)
			}
		}
		slices.Sort(let)
		assert.Equal(t, ofContainer, let, "what the NetworkPolicy lets in")
	}
}

// listening are the ports that the program says it listens on.
func listening(c *container) ([]int32, error) {
	log, err := os.ReadFile(c.proc.Log())
	if err != nil {
		return nil, err
	}
	var ports []int32
	for line := range bytes.Lines(log) {
		var entry struct{ Msg, Address string }
		if json.Unmarshal(line, &entry) != nil || entry.Msg != "listening" {
			continue
		}
		_, port, err := net.SplitHostPort(entry.Address)
		if err != nil {
			return nil, err
		}
		number, err := strconv.ParseInt(port, 10, 32)
		if err != nil {
			return nil, err
		}
		ports = append(ports, int32(number))
	}
	slices.Sort(ports)
	return ports, nil
}
