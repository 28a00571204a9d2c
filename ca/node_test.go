package ca

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/status"

	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/setting"
)

// mesh is a cluster: what is known of it, and what the API server would say.
type mesh struct {
	stale         bool
	pods, newPods []presence.Pod
	err           error // of look-ups
	lookUps       []string
}

func (m *mesh) Synced(kinds ...presence.Kind) bool {
	return !m.stale && len(kinds) == 1 && kinds[0] == presence.Pods
}

func (m *mesh) Pod(namespace, name string) (presence.Pod, bool) {
	return find(m.pods, func(p presence.Pod) bool { return p.Namespace == namespace && p.Name == name })
}

func (m *mesh) RunsOn(node, namespace, account string) bool {
	_, ok := find(m.pods, runs(node, namespace, account))
	return ok
}

func (m *mesh) LookUpPod(_ context.Context, asker, namespace, name string) (presence.Pod, bool, error) {
	m.lookUps = append(m.lookUps, asker)
	if m.err != nil {
		return presence.Pod{}, false, m.err
	}
	pod, ok := find(m.newPods, func(p presence.Pod) bool { return p.Namespace == namespace && p.Name == name })
	return pod, ok, nil
}

func (m *mesh) LookUpRunsOn(_ context.Context, asker, node, namespace, account string) (bool, error) {
	m.lookUps = append(m.lookUps, asker)
	if m.err != nil {
		return false, m.err
	}
	_, ok := find(m.newPods, runs(node, namespace, account))
	return ok, nil
}

func runs(node, namespace, account string) func(presence.Pod) bool {
	return func(p presence.Pod) bool {
		return p.Node == node && p.Namespace == namespace && p.ServiceAccount == account && !p.Ended
	}
}

func find(pods []presence.Pod, is func(presence.Pod) bool) (presence.Pod, bool) {
	for _, p := range pods {
		if is(p) {
			return p, true
		}
	}
	return presence.Pod{}, false
}

// TestR24_R27_R28_NodeProxies: from a proxy that may ask, one thing is changed in each row.
func TestR24_R27_R28_NodeProxies(t *testing.T) {
	proxy := presence.Pod{Namespace: "istio-system", Name: "ztunnel-x", UID: "u1", ServiceAccount: "ztunnel", Node: "n1"}
	beside := presence.Pod{Namespace: "shop", Name: "web-1", UID: "u2", ServiceAccount: "web", Node: "n1"}
	both := []presence.Pod{proxy, beside}
	changed := func(p presence.Pod, change func(*presence.Pod)) presence.Pod { change(&p); return p }
	tooOften := presence.ErrTooOften
	node, pod := []string{"node n1"}, []string{"pod u1"}

	type world struct {
		*mesh
		caller  Caller
		account [2]string // that is asked for
	}
	for _, row := range []struct {
		name    string
		change  func(*world)
		want    *kind
		lookUps []string // who is charged with each
	}{
		{"as it should be", func(*world) {}, nil, nil},
		{"the token doesn't say its node", func(w *world) { w.caller.NodeName = "" }, nil, nil},

		// Who asks.
		{"another account", func(w *world) { w.caller.ServiceAccount = "istiod" }, &kindNoNodeProxy, nil},
		{"the account of another namespace", func(w *world) { w.caller.Namespace = "shop" }, &kindNoNodeProxy, nil},
		{"a second account", func(w *world) {
			w.caller.Namespace, w.pods[0].Namespace = "kube-system", "kube-system"
		}, nil, nil},
		{"R21: no pod", func(w *world) { w.caller.PodName, w.caller.PodUID = "", "" }, &kindNoNodeProxy, nil},
		{"R21: a pod without UID", func(w *world) { w.caller.PodUID = "" }, &kindNoNodeProxy, nil},
		{"by a certificate", func(w *world) { w.caller.ProvenAt = time.Unix(1, 0) }, &kindNoNodeProxy, nil},
		{"in a cluster that isn't let in", func(w *world) { w.caller.Cluster = "west" }, &kindNoNodeProxy, nil},

		// Its pod.
		{"pod is gone", func(w *world) { w.pods = w.pods[1:] }, &kindProxyPod, pod},
		{"pod is new", func(w *world) { w.pods, w.newPods = w.pods[1:], both }, nil, pod},
		{"pod of another UID", func(w *world) { w.pods[0].UID = "u9" }, &kindProxyPod, pod},
		{"pod of another UID, also on a second look", func(w *world) {
			w.pods[0].UID = "u9"
			w.newPods = w.pods
		}, &kindProxyPod, pod},
		{"pod was made anew", func(w *world) { w.pods[0].UID, w.newPods = "u9", both }, nil, pod},
		{"pod of another account", func(w *world) { w.pods[0].ServiceAccount = "other" }, &kindProxyPod, nil},
		{"pod has ended", func(w *world) { w.pods[0].Ended = true }, &kindProxyPod, nil},
		{"R28: pod on another node", func(w *world) { w.pods[0].Node = "n2" }, &kindProxyPod, nil},
		{"pod is just scheduled", func(w *world) { w.pods[0].Node, w.newPods = "", both }, nil, pod},
		{"pod is on no node", func(w *world) {
			w.pods[0].Node = ""
			w.newPods = w.pods
		}, &kindProxyPod, pod},
		{"pod is unknown, API server is away", func(w *world) { w.pods, w.err = w.pods[1:], errors.New("away") }, &kindPodsUnknown, pod},
		{"pod is unknown, asked too often", func(w *world) { w.pods, w.err = w.pods[1:], tooOften }, &kindProxyPod, pod},
		{"pod is unknown, asked too often, index stale", func(w *world) { w.pods, w.err, w.stale = w.pods[1:], tooOften, true }, &kindPodsUnknown, pod},

		// What it asks for.
		{"nothing of it there", func(w *world) { w.pods = w.pods[:1] }, &kindNotOnNode, node},
		{"R27: it is new", func(w *world) { w.pods, w.newPods = w.pods[:1], both }, nil, node},
		{"on another node", func(w *world) {
			w.pods[1].Node = "n2"
			w.newPods = w.pods
		}, &kindNotOnNode, node},
		{"has ended", func(w *world) {
			w.pods[1].Ended = true
			w.newPods = w.pods
		}, &kindNotOnNode, node},
		{"is not scheduled", func(w *world) {
			w.pods[1].Node = ""
			w.newPods = w.pods
		}, &kindNotOnNode, node},
		{"is being deleted", func(w *world) { w.pods[1].DeletedAt = time.Unix(1, 0) }, nil, nil},
		{"another account", func(w *world) { w.account = [2]string{"shop", "db"} }, &kindNotOnNode, node},
		{"another namespace", func(w *world) { w.account = [2]string{"bank", "web"} }, &kindNotOnNode, node},
		{"no name of a namespace", func(w *world) { w.account = [2]string{"Shop", "web"} }, &kindNotOnNode, nil},
		{"no name of an account", func(w *world) { w.account = [2]string{"shop", "web_1"} }, &kindNotOnNode, nil},
		{"API server is away", func(w *world) { w.pods, w.err = w.pods[:1], errors.New("away") }, &kindPodsUnknown, node},
		{"asked too often", func(w *world) { w.pods, w.err = w.pods[:1], tooOften }, &kindNotOnNode, node},
		{"asked too often, index stale", func(w *world) { w.err, w.stale = tooOften, true }, &kindPodsUnknown, node},
		{"index stale, API server is away", func(w *world) { w.err, w.stale = errors.New("away"), true }, &kindPodsUnknown, node},
		{"index stale, but it is there", func(w *world) { w.newPods, w.stale = both, true }, nil, node},
		{"index stale, and it is there no more", func(w *world) { w.stale = true }, &kindNotOnNode, node},
		{"the caller leaves", func(w *world) { w.pods, w.err = w.pods[:1], context.Canceled }, &kindCanceled, node},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := &world{
				mesh:    &mesh{pods: []presence.Pod{changed(proxy, func(*presence.Pod) {}), beside}},
				caller:  Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", PodName: "ztunnel-x", PodUID: "u1", NodeName: "n1", Cluster: "Kubernetes"},
				account: [2]string{"shop", "web"},
			}
			row.change(w)
			proxies := NewNodeProxies(NodesConfig{Accounts: []string{"istio-system/ztunnel", "kube-system/ztunnel"}}, func(id string) Presence {
				if id != "Kubernetes" {
					return nil
				}
				return w.mesh
			})
			err := proxies.MayImpersonate(t.Context(), &w.caller, w.account[0], w.account[1])
			if row.want == nil {
				assert.NoError(t, err)
			} else {
				requireKind(t, *row.want, err)
			}
			assert.Equal(t, row.lookUps, w.lookUps)
		})
	}
}

// R26: who may not have an identity isn't told why.
func TestR26_NodeProxiesAreOpaque(t *testing.T) {
	for _, k := range []kind{kindNoNodeProxy, kindProxyPod, kindNotOnNode} {
		err := k.because("no pod of shop/web runs on node n1")
		assert.Equal(t, status.Convert(kindIdentity.because("x")).Proto(), status.Convert(err).Proto())
	}
}

func TestNodesConfig(t *testing.T) {
	for _, row := range []struct{ account, want string }{
		{"istio-system/ztunnel", ""},
		{"a/b.c-1", ""},
		{"", "is not a service account; it must be NAMESPACE/NAME, such as istio-system/ztunnel"},
		{"ztunnel", "is not a service account"},
		{"istio-system/", "is not a service account"},
		{"/ztunnel", "is not a service account"},
		{"istio-system/ztunnel/x", "is not a service account"},
		{"istio.system/ztunnel", "is not a service account"},
		{"Istio/ztunnel", "is not a service account"},
		{"*/ztunnel", "is not a service account"},
		{"istio-system:ztunnel", "is not a service account"},
	} {
		p := setting.NewProblems()
		cfg := NodesConfig{Accounts: []string{"kube-system/ztunnel", row.account}}
		cfg.Validate(p.At("ca.nodes"))
		if row.want == "" {
			assert.NoError(t, p.Err(), row.account)
			continue
		}
		require.ErrorContains(t, p.Err(), "ca.nodes.accounts[1]: ")
		assert.ErrorContains(t, p.Err(), row.want)
	}
	assert.False(t, NodesConfig{}.Enabled())
	assert.True(t, NodesConfig{Accounts: []string{"a/b"}}.Enabled())
}
