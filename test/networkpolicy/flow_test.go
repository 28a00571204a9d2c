package networkpolicy

import (
	"fmt"
	"slices"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// everyPort of the protocol.
var everyPort = []int{0}

// An opening is what is to be let through: the ports of each protocol, for those peers; for all where who is nil.
type opening struct {
	tcp, udp, sctp []int
	who            []string
}

func (o opening) lets(protocol corev1.Protocol, port int, name string) bool {
	ports := map[corev1.Protocol][]int{corev1.ProtocolTCP: o.tcp, corev1.ProtocolUDP: o.udp, corev1.ProtocolSCTP: o.sctp}[protocol]
	return (slices.Equal(ports, everyPort) || slices.Contains(ports, port)) && (o.who == nil || slices.Contains(o.who, name))
}

var protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}

// asked are the ports that are tried, for each peer, protocol and direction: those of the rows, and others.
var asked = []int{
	1, 2, 3, 22, 25, 53, 80, 443, 444, 2379, 5353, 5432, 6060, 6379, 6432, 6442, 6443, 6444, 7443, 8080, 8443, 8444, 9402, 9403,
	10250, 15008, 15010, 15012, 15017, 15020, 15090, 16443, 30443, 65535,
}

// peers are who talks with Signet, by name: pods as the API server has them, and addresses outside of the pods' network, where
// nodes, the API server and the pods in the network of their host are too.
type peers map[string]*matcher.TrafficPeer

// pods are the names of those that are pods.
func (p peers) pods() []string {
	var names []string
	for name, peer := range p {
		if peer.Internal != nil {
			names = append(names, name)
		}
	}
	return names
}

// outside are the addresses that are no pods'.
var outside = map[string]string{
	"node": "192.0.2.1", "API server": "192.0.2.10", "cache of DNS": "169.254.20.10", "west": "198.51.100.20",
	"machine": "203.0.113.7", "machine6": "2001:db8::7", "stranger": "203.0.114.7", "stranger6": "2001:db9::7",
	"neighbour": "10.99.0.1", // in the networks of pods, but of none
}

// inside are the pods, by namespace, beside those of Signet's own.
var inside = map[string][]string{
	"shop": {"cart"}, "istio-system": {"ztunnel", "istiod"}, "monitoring": {"prometheus", "grafana"}, "kube-system": {"coredns"},
	"data": {"postgres", "backup"},
}

// newPeers makes the pods, and one beside Signet in its namespace.
func newPeers(t *testing.T, namespace string) peers {
	t.Helper()
	all := peers{"bystander": newPod(t, namespace, "bystander", nil)}
	for name, address := range outside {
		all[name] = &matcher.TrafficPeer{IP: address}
	}
	for namespace, names := range inside {
		require.NoError(t, plane.Namespace(t.Context(), namespace))
		for _, name := range names {
			all[name] = existingPod(t, namespace, name)
		}
	}
	return all
}

// existingPod makes a pod unless it is there.
func existingPod(t *testing.T, namespace, name string) *matcher.TrafficPeer {
	t.Helper()
	var pod corev1.Pod
	err := plane.Client().Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &pod)
	if apierrors.IsNotFound(err) {
		return newPod(t, namespace, name, nil)
	}
	require.NoError(t, err)
	return ofPod(t, &pod)
}

func newPod(t *testing.T, namespace, name string, labels map[string]string) *matcher.TrafficPeer {
	t.Helper()
	pod, err := plane.Pod(t.Context(), namespace, name, "default", "node-1", labels)
	require.NoError(t, err)
	return ofPod(t, pod)
}

func ofPod(t *testing.T, pod *corev1.Pod) *matcher.TrafficPeer {
	t.Helper()
	var namespace corev1.Namespace
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Name: pod.Namespace}, &namespace))
	return &matcher.TrafficPeer{IP: pod.Status.PodIP, Internal: &matcher.InternalPeer{
		Namespace: pod.Namespace, NamespaceLabels: namespace.Labels, PodLabels: pod.Labels,
	}}
}

// policies are all that the API server has, those of other tests included.
func policies(t *testing.T) *matcher.Policy {
	t.Helper()
	var list networkingv1.NetworkPolicyList
	require.NoError(t, plane.Client().List(t.Context(), &list))
	var all []*networkingv1.NetworkPolicy
	for n := range list.Items {
		all = append(all, &list.Items[n])
	}
	return matcher.BuildNetworkPolicies(false, all)
}

// differences tries each port of each peer, and says what is let into the pod, or out of it, other than through openings.
func differences(policy *matcher.Policy, pod *matcher.TrafficPeer, with peers, in bool, openings []opening) []string {
	var found []string
	for name, peer := range with {
		for _, protocol := range protocols {
			for _, port := range asked {
				flow := &matcher.Traffic{Source: pod, Destination: peer, ResolvedPort: port, Protocol: protocol}
				direction := "out to"
				if in {
					flow.Source, flow.Destination, direction = peer, pod, "in from"
				}
				is := policy.IsIngressOrEgressAllowed(flow, in).IsAllowed()
				want := slices.ContainsFunc(openings, func(o opening) bool { return o.lets(protocol, port, name) })
				if is != want {
					found = append(found, fmt.Sprintf("%s %s, %d/%s: allowed is %t, want %t", direction, name, port, protocol, is, want))
				}
			}
		}
	}
	slices.Sort(found)
	return found
}
