package remote

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

// TestR18_ClusterOfACaller: clusterid picks the API server that reviews the token, and no other.
func TestR18_ClusterOfACaller(t *testing.T) {
	c := dial(t, signet, root)
	shop := "shop-" + rand.String(5)
	there, here := token(t, west, shop, "there"), token(t, east, shop, "here")
	thereID, hereID := identity(shop, "there"), identity(shop, "here")

	leaf := c.gets(t, there, "west", thereID)
	assert.Equal(t, "west", holderOf(t, leaf).Cluster)
	about := annotationsFor(t, home, thereID)
	assert.Equal(t, "west", about["signet.dev/cluster"])
	assert.Equal(t, shop+"/there", about["signet.dev/caller"])
	c.gets(t, there, "west-1", thereID)

	leaf = c.gets(t, here, "", hereID)
	assert.Equal(t, "east", holderOf(t, leaf).Cluster)
	assert.NotContains(t, annotationsFor(t, home, hereID), "signet.dev/cluster")
	c.gets(t, here, "east", hereID)
	c.gets(t, here, "east-1", hereID)
	several, _ := ask(t, here, "west", hereID)
	several.ClusterIDs = append(several.ClusterIDs, "north")
	_, err := c.Create(t.Context(), several)
	require.NoError(t, err, "several say nothing, so that it is ours")

	for _, row := range []struct{ name, token, cluster, reason string }{
		{"a remote token here", there, "", "token_rejected"},
		{"a remote token by our ID", there, "east", "token_rejected"},
		{"a remote token by our alias", there, "east-1", "token_rejected"},
		{"our token there", here, "west", "token_rejected"},
		{"a cluster that is allowed, to which no Secret leads", there, "north", "unknown_cluster"},
		{"a cluster that isn't allowed", there, "south", "unknown_cluster"},
		{"another case", there, "West", "unknown_cluster"},
		{"our token in no cluster of ours", here, "south", "unknown_cluster"},
		{"long", there, strings.Repeat("x", 5000), "unknown_cluster"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, _ := ask(t, row.token, row.cluster, thereID)
			c.refused(t, a, codes.Unauthenticated, row.reason)
		})
	}
	several, _ = ask(t, there, "west", thereID)
	several.ClusterIDs = append(several.ClusterIDs, "west")
	c.refused(t, several, codes.Unauthenticated, "token_rejected")
	log, err := signet.Log()
	require.NoError(t, err)
	assert.Contains(t, log, `cluster \"south\" is not known; known are [\"east\" \"east-1\" \"west\" \"west-1\"]`)

	// Its own identity is all that a remote caller gets.
	a, _ := ask(t, there, "west", hereID)
	c.refused(t, a, codes.PermissionDenied, "identity")
}

// TestR18_SameAccountInBoth: the same service account in two clusters is one identity, which two callers have.
func TestR18_SameAccountInBoth(t *testing.T) {
	c := dial(t, signet, root)
	shop := "shop-" + rand.String(5)
	there, here := token(t, west, shop, "web"), token(t, east, shop, "web")
	id := identity(shop, "web")
	leaf := c.gets(t, there, "west", id)
	assert.Equal(t, "west", holderOf(t, leaf).Cluster)
	assert.Equal(t, "west", logged(t, leaf)["cluster"])
	leaf = c.gets(t, here, "", id)
	assert.Equal(t, "east", holderOf(t, leaf).Cluster)
	assert.NotContains(t, logged(t, leaf), "cluster")
	_, body, err := signet.Readyz(t.Context())
	require.NoError(t, err)
	assert.Contains(t, body, "[i] remote cluster: west: its callers are served")
	assert.Contains(t, body, "[i] remote cluster: north: no Secret leads to it")
}

// TestR18_RemoteAway: while the remote API server answers nobody, its own callers are told to try again, and ours notice
// nothing.
func TestR18_RemoteAway(t *testing.T) {
	c, ours := dial(t, signet, root), dial(t, signet, root)
	shop := "shop-" + rand.String(5)
	here := token(t, east, shop, "here")
	var there []string
	for range 20 {
		there = append(there, token(t, west, shop, "there")) // none was ever seen by Signet, and more than may be reviewed at once
	}
	up := func() float64 {
		return metric(t, signet, "signet_remote_cluster_up", map[string]string{"cluster": "west"})
	}
	patiently.Holds(t, func() bool { return up() == 1 }, "the remote cluster is up")

	require.NoError(t, west.APIServer().Pause())
	resumed := false
	defer func() {
		if !resumed {
			require.NoError(t, west.APIServer().Resume())
		}
	}()
	// Each goes on asking, so that there are reviews all the time while ours ask.
	enough := make(chan struct{})
	results := make([][]error, len(there))
	var asking sync.WaitGroup
	for n, text := range there {
		a, _ := ask(t, text, "west", identity(shop, "there"))
		asking.Go(func() {
			for {
				_, err := c.Create(context.WithoutCancel(t.Context()), a)
				results[n] = append(results[n], err)
				select {
				case <-enough:
					return
				case <-time.After(patiently.Glance):
				}
			}
		})
	}
	stop := sync.OnceFunc(func() { close(enough); asking.Wait() })
	defer stop()
	patiently.Holds(t, func() bool {
		return metric(t, signet, "signet_remote_queue_slots_held", map[string]string{"cluster": "west", "queue": "review"}) > 0
	}, "tokens of the remote cluster are under review")
	for range 16 {
		ours.gets(t, token(t, east, shop, "here"), "", identity(shop, "here"))
	}
	stop()
	told, calls := make(map[codes.Code]int), 0
	for _, errs := range results {
		for _, err := range errs {
			told[status.Code(err)]++
			calls++
		}
	}
	assert.Positive(t, told[codes.Unavailable])
	assert.Equal(t, calls, told[codes.Unavailable]+told[codes.ResourceExhausted], "who came too late for a review is told so: %v", told)
	a, _ := ask(t, there[0], "west", identity(shop, "there"))
	c.refused(t, a, codes.Unavailable, "review_failed")
	patiently.Holds(t, func() bool { return up() == 0 }, "it is said that the remote cluster is away")
	code, body, err := signet.Readyz(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 200, code, "the replica is ready")
	assert.Contains(t, body, "[i] remote cluster: west: its callers can't be served for ")
	ours.gets(t, here, "", identity(shop, "here"))

	require.NoError(t, west.APIServer().Resume())
	resumed = true
	patiently.Holds(t, func() bool { return up() == 1 }, "the remote cluster is back")
	c.gets(t, there[0], "west", identity(shop, "there"))
}

// TestR18_SecretsChange: a Secret is in force soon after it is made, changed or deleted, without a restart; what it may not
// say has no effect, and is told.
func TestR18_SecretsChange(t *testing.T) {
	c := dial(t, signet, root)
	shop := "shop-" + rand.String(5)
	id := identity(shop, "web")
	fresh := func() string { return token(t, west, shop, "web") }
	served := func() bool {
		a, _ := ask(t, fresh(), "north", id)
		_, err := c.Create(t.Context(), a)
		return err == nil
	}
	good, err := readerKubeconfig(t.Context())
	require.NoError(t, err)
	require.False(t, served())

	// Without the label it is nobody's business.
	secret := clusterSecret("north", map[string][]byte{"north": good})
	secret.Labels = nil
	require.NoError(t, east.Client().Create(t.Context(), secret))
	marker := clusterSecret("marker-"+rand.String(5), map[string][]byte{"marker": good})
	require.NoError(t, east.Client().Create(t.Context(), marker))
	defer func() {
		require.NoError(t, client.IgnoreNotFound(east.Client().Delete(context.WithoutCancel(t.Context()), marker)))
	}()
	seen := func(name string) bool {
		_, body, err := signet.Readyz(t.Context())
		return err == nil && strings.Contains(body, "in Secret "+secrets+"/"+name)
	}
	patiently.Holds(t, func() bool { return seen(marker.Name) }, "the Secret after it was seen")
	require.False(t, served())

	secret.Labels = map[string]string{"istio/multiCluster": "true"}
	require.NoError(t, east.Client().Update(t.Context(), secret))
	defer func() {
		require.NoError(t, client.IgnoreNotFound(east.Client().Delete(context.WithoutCancel(t.Context()), secret)))
	}()
	patiently.Holds(t, served, "its callers are served")

	// Another kubeconfig takes its place, and no request is dropped meanwhile.
	another, err := readerKubeconfig(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, good, another)
	connections := func() int {
		log, err := signet.Log()
		require.NoError(t, err)
		return strings.Count(log, `"msg":"remote cluster","room":"ca","cluster":"north"`)
	}
	before := connections()
	require.Positive(t, before)
	var asked atomic.Int64
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for ctx.Err() == nil {
				text, err := west.Token(context.WithoutCancel(ctx), shop, "web", controlplane.TokenOptions{})
				if !assert.NoError(t, err) {
					return
				}
				a, _ := ask(t, text, "north", id)
				if _, err := c.Create(context.WithoutCancel(ctx), a); !assert.NoError(t, err) {
					return
				}
				asked.Add(1)
			}
		})
	}
	for n, kubeconfig := range [][]byte{another, good, another} {
		so := asked.Load()
		patiently.Holds(t, func() bool { return asked.Load() > so+8 || t.Failed() }, "requests are under way")
		secret.Data["north"] = kubeconfig
		require.NoError(t, east.Client().Update(t.Context(), secret))
		patiently.Holds(t, func() bool { return connections() == before+n+1 }, "the changed Secret is in force")
		so = asked.Load()
		patiently.Holds(t, func() bool { return asked.Load() > so+8 || t.Failed() }, "requests go on")
	}
	stop()
	asking.Wait()
	t.Logf("%d requests while the Secret changed three times", asked.Load())

	// One that would run a program is refused, and the cluster is served no more.
	secret.Data["north"] = []byte(strings.Replace(string(good), "token:", "exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/true, interactiveMode: Never}\n    token:", 1))
	require.Contains(t, string(secret.Data["north"]), "exec:")
	require.NoError(t, east.Client().Update(t.Context(), secret))
	patiently.Holds(t, func() bool { return seen("north") }, "the Secret is refused")
	a, _ := ask(t, fresh(), "north", id)
	c.refused(t, a, codes.Unauthenticated, "unknown_cluster")
	patiently.Holds(t, func() bool {
		log, err := signet.Log()
		require.NoError(t, err)
		return strings.Contains(log, "exec is refused: it would run a program beside Signet")
	}, "the log says why")
	patiently.Holds(t, func() bool {
		var told eventsv1.EventList
		require.NoError(t, east.Client().List(t.Context(), &told, client.InNamespace(secrets)))
		for _, e := range told.Items {
			if e.Reason == "RemoteClusterRefused" && e.Regarding.Name == "north" && strings.Contains(e.Note, "exec is refused") {
				return true
			}
		}
		return false
	}, "an Event says why")

	secret.Data["north"] = good
	require.NoError(t, east.Client().Update(t.Context(), secret))
	patiently.Holds(t, served, "its callers are served again")
	known := fresh()
	c.gets(t, known, "north", id)
	require.NoError(t, east.Client().Delete(t.Context(), secret))
	patiently.Holds(t, func() bool {
		a, _ := ask(t, known, "north", id)
		_, err := c.Create(t.Context(), a)
		return status.Code(err) == codes.Unauthenticated
	}, "they are served no more, not even by a token that is known")
	a, _ = ask(t, known, "north", id)
	c.refused(t, a, codes.Unauthenticated, "unknown_cluster")
	c.gets(t, known, "west", id)
	log, err := signet.Log()
	require.NoError(t, err)
	for _, kubeconfig := range [][]byte{good, another} {
		_, bearer, ok := strings.Cut(string(kubeconfig), "token: ")
		require.True(t, ok)
		assert.NotContains(t, log, strings.TrimSpace(bearer))
	}
}

// TestR18_Hijack: who can write Secrets takes over neither our own cluster nor one that is served.
func TestR18_Hijack(t *testing.T) {
	c := dial(t, signet, root)
	shop := "shop-" + rand.String(5)
	there, here := token(t, west, shop, "web"), token(t, east, shop, "web")
	id := identity(shop, "web")
	kubeconfig, err := readerKubeconfig(t.Context())
	require.NoError(t, err)
	elsewhere := []byte(strings.ReplaceAll(string(kubeconfig), west.Admin().Host, east.Admin().Host))
	require.NotEqual(t, kubeconfig, elsewhere)

	hijack := clusterSecret("z-hijack", map[string][]byte{"east": kubeconfig, "east-1": kubeconfig, "west-1": kubeconfig, "west": elsewhere, "Kubernetes": kubeconfig})
	require.NoError(t, east.Client().Create(t.Context(), hijack))
	defer func() { require.NoError(t, east.Client().Delete(context.WithoutCancel(t.Context()), hijack)) }()
	refused := func() float64 { return metric(t, signet, "signet_remote_secrets_refused", nil) }
	patiently.Holds(t, func() bool { return refused() == 5 }, "all five are refused")
	for _, cluster := range []string{"", "east", "east-1"} {
		a, _ := ask(t, there, cluster, id)
		c.refused(t, a, codes.Unauthenticated, "token_rejected")
		c.gets(t, here, cluster, id)
	}
	c.gets(t, there, "west", id)
	a, _ := ask(t, here, "west", id)
	c.refused(t, a, codes.Unauthenticated, "token_rejected")
	_, body, err := signet.Readyz(t.Context())
	require.NoError(t, err)
	assert.Contains(t, body, fmt.Sprintf(`refused: cluster "east" in Secret %s/z-hijack: this is our own cluster, which no Secret may take over`, secrets))
	assert.Contains(t, body, fmt.Sprintf(`refused: cluster "west" in Secret %s/z-hijack: Secret west leads to it already`, secrets))
	assert.Contains(t, body, `refused: cluster "west-1"`)

	// Not even once the Secret that leads there is gone: the server isn't one of that cluster's.
	var first corev1.Secret
	require.NoError(t, east.Client().Get(t.Context(), client.ObjectKey{Namespace: secrets, Name: "west"}, &first))
	data := first.Data
	require.NoError(t, east.Client().Delete(t.Context(), &first))
	patiently.Holds(t, func() bool {
		_, body, err := signet.Readyz(t.Context())
		return err == nil && strings.Contains(body, "is none of those that are allowed for cluster west")
	}, "the other server is refused")
	a, _ = ask(t, here, "west", id)
	c.refused(t, a, codes.Unauthenticated, "unknown_cluster")
	require.NoError(t, east.Client().Create(t.Context(), clusterSecret("west", data)))
	patiently.Holds(t, func() bool {
		a, _ := ask(t, there, "west", id)
		_, err := c.Create(t.Context(), a)
		return err == nil
	}, "the remote cluster is served again")
}

// TestR24_RemoteNodeProxy: the ztunnel of a node asks for the pods of its node in its own cluster, whatever there is on a
// node of the same name in another.
func TestR24_RemoteNodeProxy(t *testing.T) {
	c := dial(t, signet, root)
	shop, node := "shop-"+rand.String(5), "node-"+rand.String(5)
	proxy := make(map[string]string)
	for name, plane := range map[string]*controlplane.Plane{"east": east, "west": west} {
		require.NoError(t, plane.Namespace(t.Context(), shop))
		require.NoError(t, plane.ServiceAccount(t.Context(), shop, "in-"+name))
		_, err := plane.Pod(t.Context(), shop, "in-"+name, "in-"+name, node)
		require.NoError(t, err)
		pod, err := plane.Pod(t.Context(), home, "ztunnel-"+rand.String(5), "ztunnel", node)
		require.NoError(t, err)
		proxy[name], err = plane.Token(t.Context(), home, "ztunnel", controlplane.TokenOptions{Pod: pod})
		require.NoError(t, err)
	}
	for from, other := range map[string]string{"east": "west", "west": "east"} {
		id := identity(shop, "in-"+from)
		a, key := ask(t, proxy[from], from, id)
		a.Metadata = meshclient.ZtunnelMetadata(id.String())
		ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
		chain, err := c.Create(ctx, a)
		cancel()
		require.NoError(t, err, "a proxy of %s", from)
		require.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), id, time.Now()))
		holder := holderOf(t, chain[0])
		assert.Equal(t, from, holder.Cluster)
		assert.Equal(t, node, holder.Node)

		id = identity(shop, "in-"+other)
		a, _ = ask(t, proxy[from], from, id)
		a.Metadata = meshclient.ZtunnelMetadata(id.String())
		c.refused(t, a, codes.PermissionDenied, "not_on_node")
		a.ClusterIDs = []string{other}
		c.refused(t, a, codes.Unauthenticated, "token_rejected")
	}
	patiently.Holds(t, func() bool {
		return metric(t, signet, "signet_presence_synced", map[string]string{"cluster": "west", "kind": "pods"}) == 1
	}, "the pods of the remote cluster are followed")
	assert.Positive(t, metric(t, signet, "signet_presence_objects", map[string]string{"cluster": "west"}))
}
