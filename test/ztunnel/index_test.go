package ztunnel

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/test/patiently"
)

// newIndex is an index of everything that hasn't been started.
func newIndex(t *testing.T, config *rest.Config) *presence.Index {
	t.Helper()
	x, err := presence.New(config, presence.Config{
		Cluster: "Kubernetes", Kinds: []presence.Kind{presence.Pods, presence.ServiceAccounts, presence.Nodes}, StaleAfter: time.Second,
	}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	return x
}

// TestR27_LookedUp: what the index doesn't have is looked up before it is refused. This index has nothing at all.
func TestR27_LookedUp(t *testing.T) {
	x := newIndex(t, plane.Admin())
	z := ztunnel(t)
	shop := plane.NewNamespace(t, "shop")
	_, _ = runs(t, shop, "web", z.node)
	_, _ = runs(t, shop, "ended", z.node, phase(corev1.PodSucceeded))
	_, _ = runs(t, shop, "far", "another-node")
	unscheduled(t, shop, "waits")

	for account, want := range map[string]bool{"web": true, "ended": false, "far": false, "waits": false, "absent": false} {
		assert.False(t, x.RunsOn(z.node, shop, account))
		for range 2 {
			got, err := x.LookUpRunsOn(t.Context(), z.node, z.node, shop, account)
			require.NoError(t, err)
			assert.Equal(t, want, got, account)
		}
	}
	_, known := x.Pod(home, z.pod.Name)
	assert.False(t, known)
	pod, found, err := x.LookUpPod(t.Context(), z.node, home, z.pod.Name)
	require.NoError(t, err)
	assert.True(t, found)
	assert.Equal(t, presence.Pod{Namespace: home, Name: z.pod.Name, UID: string(z.pod.UID), ServiceAccount: "ztunnel", Node: z.node}, pod)
	_, found, err = x.LookUpPod(t.Context(), z.node, home, "absent")
	require.NoError(t, err)
	assert.False(t, found)

	proxies := ca.NewNodeProxies(ca.NodesConfig{Accounts: []string{home + "/ztunnel"}}, func(string) ca.Presence { return x })
	caller := &ca.Caller{Namespace: home, ServiceAccount: "ztunnel", PodName: z.pod.Name, PodUID: string(z.pod.UID), NodeName: z.node}
	assert.NoError(t, proxies.MayImpersonate(t.Context(), caller, shop, "web"))
	assert.ErrorContains(t, proxies.MayImpersonate(t.Context(), caller, shop, "far"), "not_on_node: ")

	// Whoever asks without end is charged, and nobody else.
	for n := 0; err == nil; n++ {
		require.Less(t, n, 1000)
		_, _, err = x.LookUpPod(t.Context(), "greedy", home, "absent-"+string(rune('a'+n%26))+string(rune('a'+n/26)))
	}
	require.ErrorIs(t, err, presence.ErrTooOften)
	_, _, err = x.LookUpPod(t.Context(), "modest", home, "absent-again")
	assert.NoError(t, err)
}

// TestIndexFollows: what happens in the cluster is known soon after, also what happened while it couldn't be followed.
func TestIndexFollows(t *testing.T) {
	way, config := newDoor(t), plane.Admin()
	config.Host = way.url()
	x := newIndex(t, config)
	shop := plane.NewNamespace(t, "shop")
	_, early := runs(t, shop, "early", "node-1")
	started := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { started <- x.Start(ctx) }()
	defer func() { stop(); require.NoError(t, <-started) }()

	patiently.Holds(t, func() bool { return x.Synced() }, "everything is listed")
	pod, ok := x.Pod(shop, early.Name)
	require.True(t, ok)
	assert.Equal(t, presence.Pod{Namespace: shop, Name: early.Name, UID: string(early.UID), ServiceAccount: "early", Node: "node-1"}, pod)
	assert.True(t, x.RunsOn("node-1", shop, "early"))
	assert.False(t, x.Synced("secrets"), "nothing is said of what isn't followed")

	_, later := runs(t, shop, "later", "node-1")
	patiently.Holds(t, func() bool { return x.RunsOn("node-1", shop, "later") }, "the pod is known")
	account := &corev1.ServiceAccount{}
	require.NoError(t, plane.Client().Get(t.Context(), types.NamespacedName{Namespace: shop, Name: "later"}, account))
	patiently.Holds(t, func() bool {
		object, ok := x.ServiceAccount(shop, "later")
		return ok && object.UID == string(account.UID)
	}, "the account is known")
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-" + shop}}
	require.NoError(t, plane.Client().Create(t.Context(), node))
	patiently.Holds(t, func() bool { object, ok := x.Node(node.Name); return ok && object.UID == string(node.UID) }, "the node is known")

	early.Status.Phase = corev1.PodFailed
	require.NoError(t, plane.Client().Status().Update(t.Context(), early))
	patiently.Holds(t, func() bool { return !x.RunsOn("node-1", shop, "early") }, "it has ended")
	pod, ok = x.Pod(shop, early.Name)
	assert.True(t, ok && pod.Ended)
	require.NoError(t, plane.Client().Delete(t.Context(), later))
	patiently.Holds(t, func() bool { _, ok := x.Pod(shop, later.Name); return !ok }, "it is gone")
	require.NoError(t, plane.Client().Delete(t.Context(), account))
	patiently.Holds(t, func() bool { _, ok := x.ServiceAccount(shop, "later"); return !ok }, "the account is gone")
	require.NoError(t, plane.Client().Delete(t.Context(), node))
	patiently.Holds(t, func() bool { _, ok := x.Node(node.Name); return !ok }, "the node is gone")

	// The API server can't be reached for a while, and much happens meanwhile.
	_, stays := runs(t, shop, "stays", "node-1")
	_, leaves := runs(t, shop, "leaves", "node-1")
	patiently.Holds(t, func() bool { return x.RunsOn("node-1", shop, "leaves") }, "the pods are known")
	way.shut()
	for _, kind := range []presence.Kind{presence.Pods, presence.ServiceAccounts, presence.Nodes} {
		patiently.Holds(t, func() bool { return !x.Synced(kind) }, "what is known of %s is not relied on any more", kind)
	}
	patiently.Holds(t, func() bool { return x.StateOf(presence.Pods, time.Now()).Err != nil }, "why is told")
	assert.True(t, x.StateOf(presence.Pods, time.Now()).Listed)
	require.NoError(t, plane.Client().Delete(t.Context(), leaves))
	stays.Status.Phase = corev1.PodSucceeded
	require.NoError(t, plane.Client().Status().Update(t.Context(), stays))
	_, _ = runs(t, shop, "comes", "node-1")
	assert.True(t, x.RunsOn("node-1", shop, "leaves"), "it is still known")
	_, _, err := x.LookUpPod(t.Context(), "somebody", shop, leaves.Name)
	assert.Error(t, err)
	assert.NotErrorIs(t, err, presence.ErrTooOften)
	way.open()
	patiently.Holds(t, func() bool {
		return x.Synced() && x.RunsOn("node-1", shop, "comes") && !x.RunsOn("node-1", shop, "leaves") && !x.RunsOn("node-1", shop, "stays")
	}, "all of it is known")
	assert.NoError(t, x.StateOf(presence.Pods, time.Now()).Err)
}
