package ztunnel

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

// TestR24_R27_PodsOfTheNode: a node's proxy gets the identities of the pods on its node, as soon as they are there, and of no
// others.
func TestR24_R27_PodsOfTheNode(t *testing.T) {
	z, elsewhere := ztunnel(t), ztunnel(t)
	shop := plane.NewNamespace(t, "shop")
	refused := func(name string, namespace, account, reason string) {
		t.Run(name, func(t *testing.T) {
			ask, _ := z.ask(t, identity(namespace, account))
			z.refused(t, ask, codes.PermissionDenied, reason)
		})
	}
	gets := func(name string, pod ...func(*corev1.Pod)) {
		t.Run(name, func(t *testing.T) {
			id, _ := runs(t, shop, "account-"+strings.ReplaceAll(name, " ", "-"), z.node, pod...)
			z.gets(t, id) // at once: the watch may not have told of it yet
		})
	}
	gets("running")
	gets("starting", phase(corev1.PodPending))
	gets("unknown", phase(corev1.PodUnknown))

	t.Run("being deleted", func(t *testing.T) {
		id, pod := runs(t, shop, "leaves", z.node)
		require.NoError(t, plane.Client().Delete(t.Context(), pod, client.GracePeriodSeconds(3600)))
		require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
		require.NotNil(t, pod.DeletionTimestamp)
		z.gets(t, id)
		require.NoError(t, plane.Client().Delete(t.Context(), pod, client.GracePeriodSeconds(0)))
		patiently.Holds(t, func() bool {
			ask, _ := z.ask(t, id)
			_, err := z.Create(t.Context(), ask)
			return status.Code(err) == codes.PermissionDenied
		}, "a pod that is gone counts no more")
	})
	t.Run("several pods", func(t *testing.T) {
		id, first := runs(t, shop, "several", z.node)
		_, _ = runs(t, shop, "several", elsewhere.node)
		_, last := runs(t, shop, "several", z.node)
		for _, p := range []*proxy{z, elsewhere} {
			p.gets(t, id)
		}
		require.NoError(t, plane.Client().Delete(t.Context(), first))
		z.gets(t, id)
		last.Status.Phase = corev1.PodFailed
		require.NoError(t, plane.Client().Status().Update(t.Context(), last))
		patiently.Holds(t, func() bool {
			ask, _ := z.ask(t, id)
			_, err := z.Create(t.Context(), ask)
			return status.Code(err) == codes.PermissionDenied
		}, "the last pod on the node has ended")
		elsewhere.gets(t, id)
	})

	_, _ = runs(t, shop, "far", elsewhere.node)
	refused("on another node", shop, "far", "not_on_node")
	elsewhere.gets(t, identity(shop, "far"))
	// Signet learns a moment later that a pod has ended.
	ended := func(id spiffeid.ID) {
		t.Helper()
		patiently.Holds(t, func() bool {
			ask, _ := z.ask(t, id)
			_, err := z.Create(t.Context(), ask)
			return status.Code(err) == codes.PermissionDenied
		}, "the pod of %s has ended", id)
	}
	failed, _ := runs(t, shop, "failed", z.node, phase(corev1.PodFailed))
	ended(failed)
	refused("failed", shop, "failed", "not_on_node")
	succeeded, _ := runs(t, shop, "succeeded", z.node, phase(corev1.PodSucceeded))
	ended(succeeded)
	refused("succeeded", shop, "succeeded", "not_on_node")
	unscheduled(t, shop, "waits")
	refused("not scheduled", shop, "waits", "not_on_node")
	require.NoError(t, plane.ServiceAccount(t.Context(), shop, "idle"))
	refused("an account without pods", shop, "idle", "not_on_node")
	refused("no such account", shop, "nobody", "not_on_node")
	refused("no such namespace", "nowhere", "web", "not_on_node")
	_, _ = runs(t, shop, "web", z.node)
	other := plane.NewNamespace(t, "bank")
	require.NoError(t, plane.ServiceAccount(t.Context(), other, "web"))
	refused("an account of that name in another namespace", other, "web", "not_on_node")
	refused("another proxy's namespace", "kube-system", "ztunnel", "not_on_node")
}

// TestR21_R24_WhoMayNot: only the configured accounts may, and only with a token that is bound to a pod on that node.
func TestR21_R24_WhoMayNot(t *testing.T) {
	z := ztunnel(t)
	shop := plane.NewNamespace(t, "shop")
	id, _ := runs(t, shop, "web", z.node)
	z.gets(t, id)
	ask, _ := z.ask(t, id)

	t.Run("token without a pod", func(t *testing.T) {
		token, err := plane.Token(t.Context(), home, "ztunnel", controlplane.TokenOptions{})
		require.NoError(t, err)
		ask := ask
		ask.Token = token
		z.refused(t, ask, codes.PermissionDenied, "no_node_proxy")
	})
	t.Run("pod of another account on the node", func(t *testing.T) {
		for _, account := range []string{"istiod", "default"} {
			pod, err := plane.Pod(t.Context(), home, account+"-"+rand.String(5), account, z.node)
			require.NoError(t, err)
			ask := ask
			ask.Token, err = plane.Token(t.Context(), home, account, controlplane.TokenOptions{Pod: pod})
			require.NoError(t, err)
			z.refused(t, ask, codes.PermissionDenied, "no_node_proxy")
		}
	})
	t.Run("the account's name in another namespace", func(t *testing.T) {
		require.NoError(t, plane.ServiceAccount(t.Context(), shop, "ztunnel"))
		pod, err := plane.Pod(t.Context(), shop, "ztunnel-1", "ztunnel", z.node)
		require.NoError(t, err)
		ask := ask
		ask.Token, err = plane.Token(t.Context(), shop, "ztunnel", controlplane.TokenOptions{Pod: pod})
		require.NoError(t, err)
		z.refused(t, ask, codes.PermissionDenied, "no_node_proxy")
	})
	t.Run("the second account", func(t *testing.T) {
		require.NoError(t, plane.Namespace(t.Context(), "kube-system"))
		require.NoError(t, plane.ServiceAccount(t.Context(), "kube-system", "ztunnel"))
		p := newProxy(t, "kube-system", "ztunnel")
		id, _ := runs(t, shop, "db", p.node)
		p.gets(t, id)
	})
	t.Run("a proxy that has ended", func(t *testing.T) {
		p := ztunnel(t)
		id, _ := runs(t, shop, "cache", p.node)
		p.gets(t, id)
		p.pod.Status.Phase = corev1.PodFailed
		require.NoError(t, plane.Client().Status().Update(t.Context(), p.pod))
		patiently.Holds(t, func() bool {
			ask, _ := p.ask(t, id)
			_, err := p.Create(t.Context(), ask)
			return status.Code(err) == codes.PermissionDenied
		}, "the pod of the proxy has ended")
		ask, _ := p.ask(t, id)
		p.refused(t, ask, codes.PermissionDenied, "proxy_pod")
	})
	t.Run("a proxy that is gone", func(t *testing.T) {
		// Its token is still taken for good for a while.
		p := ztunnel(t)
		id, _ := runs(t, shop, "queue", p.node)
		p.gets(t, id)
		require.NoError(t, plane.Client().Delete(t.Context(), p.pod))
		patiently.Holds(t, func() bool {
			ask, _ := p.ask(t, id)
			_, err := p.Create(t.Context(), ask)
			return status.Code(err) == codes.PermissionDenied
		}, "the pod of the proxy is gone")
		ask, _ := p.ask(t, id)
		p.refused(t, ask, codes.PermissionDenied, "proxy_pod")
	})
	t.Run("for oneself, the CSR for another", func(t *testing.T) {
		ask := ask
		ask.Metadata = meshclient.ZtunnelMetadata(identity(home, "ztunnel").String())
		z.refused(t, ask, codes.PermissionDenied, "identity")
		ask, _ = z.ask(t, identity(home, "ztunnel"))
		ask.Metadata = meshclient.ZtunnelMetadata(id.String())
		z.refused(t, ask, codes.PermissionDenied, "identity")
	})
}

// TestR25_ItsOwnIdentity, with the name of it, and without.
func TestR25_ItsOwnIdentity(t *testing.T) {
	z := ztunnel(t)
	own := identity(home, "ztunnel")
	z.gets(t, own)
	ask, key := z.ask(t, own)
	ask.Metadata = nil
	chain, err := z.Create(t.Context(), ask)
	require.NoError(t, err)
	require.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), own, time.Now()))
}

// TestR28_ForgedIdentities: whatever is sent in place of an identity of ours is refused.
func TestR28_ForgedIdentities(t *testing.T) {
	z := ztunnel(t)
	shop := plane.NewNamespace(t, "shop")
	id, _ := runs(t, shop, "web", z.node)
	z.gets(t, id)
	own := id.String()
	counted := map[string]float64{"identity": refusals(t, "identity"), "not_on_node": refusals(t, "not_on_node")}
	for _, row := range []struct{ asked, reason string }{
		{"spiffe://other.local/ns/" + shop + "/sa/web", "identity"},
		{"spiffe://cluster.local.evil/ns/" + shop + "/sa/web", "identity"},
		{"spiffe://CLUSTER.LOCAL/ns/" + shop + "/sa/web", "identity"},
		{strings.ToUpper(own[:6]) + own[6:], "identity"},
		{own + "/", "identity"},
		{own + "/x", "identity"},
		{own + "?", "identity"},
		{own + "#", "identity"},
		{own + "%20", "identity"},
		{own + "\x00", "identity"},
		{own + "\n", "identity"},
		{own + " ", "identity"},
		{" " + own, "identity"},
		{"spiffe://cluster.local//ns/" + shop + "/sa/web", "identity"},
		{"spiffe://cluster.local/ns/x/../" + shop + "/sa/web", "identity"},
		{"spiffe://cluster.local/ns/../sa/web", "identity"},
		{"spiffe://cluster.local:443/ns/" + shop + "/sa/web", "identity"},
		{"spiffe://user@cluster.local/ns/" + shop + "/sa/web", "identity"},
		{"spiffe://cluster.local/ns/" + shop + "/sa/", "identity"},
		{"spiffe://cluster.local/ns/" + shop, "identity"},
		{"spiffe://cluster.local/sa/web/ns/" + shop, "identity"},
		{"spiffe://cluster.local", "identity"},
		{"system:serviceaccount:" + shop + ":web", "identity"},
		{"*", "identity"},
		{"not a SPIFFE ID", "identity"},
		{strings.Repeat("x", 5000), "identity"},
		{"spiffe://cluster.local/ns/" + shop + "/sa/WEB", "not_on_node"},
		{"spiffe://cluster.local/ns/" + shop + "/sa/web_", "not_on_node"},
		{"spiffe://cluster.local/ns/" + strings.ToUpper(shop) + "/sa/web", "not_on_node"},
		{"spiffe://cluster.local/ns/" + strings.Repeat("n", 300) + "/sa/web", "not_on_node"},
		{"spiffe://cluster.local/ns/a.b/sa/web", "not_on_node"},
	} {
		t.Run(fmt.Sprintf("%.60q", row.asked), func(t *testing.T) {
			ask, _ := z.ask(t, id)
			ask.Metadata = meshclient.ZtunnelMetadata(row.asked)
			z.denied(t, ask, codes.PermissionDenied)
		})
		counted[row.reason]++
	}
	for reason, count := range counted {
		assert.Equal(t, count, refusals(t, reason), reason)
	}
	z.gets(t, id)
}

// TestEightAtOnce: ztunnel fetches for eight pods of its node at once, over one connection. What it got is recorded as held by
// the node.
func TestEightAtOnce(t *testing.T) {
	z, far := ztunnel(t), ztunnel(t)
	shop := plane.NewNamespace(t, "shop")
	distant, _ := runs(t, shop, "far", far.node)
	var names []string
	for n := range 8 {
		name := fmt.Sprintf("service-%d", n)
		_, _ = runs(t, shop, name, z.node)
		names = append(names, name)
	}
	chains := make([][]string, len(names))
	var fetching sync.WaitGroup
	for n, name := range names {
		id := identity(shop, name)
		ask, key := z.ask(t, id)
		fetching.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
			defer cancel()
			chain, err := z.Create(ctx, ask)
			if assert.NoError(t, err) && assert.NoError(t, meshclient.JudgeZtunnel(chain, key.Public(), id, time.Now())) {
				chains[n] = chain
			}
		})
	}
	fetching.Wait()
	ask, _ := z.ask(t, distant)
	z.refused(t, ask, codes.PermissionDenied, "not_on_node")
	if t.Failed() {
		return
	}
	state, err := z.TLS()
	require.NoError(t, err)
	require.NoError(t, meshclient.JudgeZtunnelTLS(state))

	var requests cmapi.CertificateRequestList
	require.NoError(t, plane.Client().List(t.Context(), &requests, client.InNamespace(home)))
	made := make(map[string]map[string]string)
	for _, r := range requests.Items {
		made[r.Annotations["istio.cert-manager.io/identities"]] = r.Annotations
	}
	for n, name := range names {
		id := identity(shop, name).String()
		about := made[id]
		assert.Equal(t, "true", about["signet.dev/impersonated"])
		assert.Equal(t, home+"/ztunnel", about["signet.dev/caller"])
		assert.Equal(t, z.pod.Name, about["signet.dev/pod"])

		record := recordOf(t, chains[n][0])
		assert.Equal(t, id, record.Identity)
		assert.Equal(t, shop, record.Namespace)
		assert.Equal(t, name, record.ServiceAccount)
		assert.True(t, record.Holder.Impersonated)
		assert.Equal(t, z.node, about["signet.dev/node"])
		assert.Equal(t, z.node, record.Holder.Node)
		assert.Equal(t, string(z.pod.UID), record.Holder.PodUID)
	}
	assert.NotContains(t, made, distant.String())
}

// record is what the inspection API says of a certificate, as far as it is of interest here.
type record struct {
	Identity, Namespace, ServiceAccount string
	Holder                              struct {
		PodUID, Node string
		Impersonated bool
	}
}

func recordOf(t *testing.T, leafPEM string) (r record) {
	t.Helper()
	block, _ := pem.Decode([]byte(leafPEM))
	require.NotNil(t, block)
	token, err := plane.Token(t.Context(), home, "auditor", controlplane.TokenOptions{Audiences: []string{"signet.dev"}})
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(root))
	asking := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}}}
	defer asking.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("%s/v1/certificates/%x", signet.APIURL(), sha256.Sum256(block.Bytes)), nil)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+token)
	answer, err := asking.Do(request)
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&r))
	return r
}

// TestR27_LookUpsAreBounded: a node's proxy that asks for a thousand identities that aren't there costs the API server no more
// lists than its budget.
func TestR27_LookUpsAreBounded(t *testing.T) {
	const (
		identities       = 1000
		burst, perSecond = 30, 2
	)
	z, honest := ztunnel(t), ztunnel(t)
	shop := plane.NewNamespace(t, "shop")
	id, _ := runs(t, shop, "web", z.node)
	z.gets(t, id) // its own pod is known now
	lists := func() float64 {
		m, err := plane.Metrics(t.Context())
		require.NoError(t, err)
		return m.Requests("LIST", "pods")
	}
	before, began := lists(), time.Now()
	next := make(chan int)
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			for n := range next {
				ask, _ := z.ask(t, identity(shop, fmt.Sprintf("absent-%d", n)))
				_, err := z.Create(t.Context(), ask)
				assert.Equal(t, codes.PermissionDenied.String(), status.Code(err).String())
			}
		})
	}
	for n := range identities {
		next <- n
	}
	close(next)
	asking.Wait()
	// Others aren't kept out meanwhile, nor is what the proxy may have.
	fresh, _ := runs(t, shop, "fresh", honest.node)
	honest.gets(t, fresh)
	z.gets(t, id)
	cost, took := lists()-before, time.Since(began)
	t.Logf("%d identities in %s cost %.0f lists", identities, took, cost)
	assert.GreaterOrEqual(t, cost, 1.0, "it is looked up before it is refused")
	assert.LessOrEqual(t, cost, burst+perSecond*took.Seconds()+5, "the rest is for whoever else lists")
}

// TestR27_WhileTheAPIServerIsAway: an identity of which nothing is known can't be told from one that is new.
func TestR27_WhileTheAPIServerIsAway(t *testing.T) {
	z := ztunnel(t)
	shop := plane.NewNamespace(t, "shop")
	id, _ := runs(t, shop, "web", z.node)
	z.gets(t, id) // the token is known as a good one now
	ask, _ := z.ask(t, identity(shop, "absent"))
	require.NoError(t, plane.APIServer().Pause())
	func() {
		defer func() { require.NoError(t, plane.APIServer().Resume()) }()
		z.refused(t, ask, codes.Unavailable, "pods_unknown")
	}()
	patiently.Holds(t, func() bool {
		ask, _ := z.ask(t, id)
		_, err := z.Create(t.Context(), ask)
		return err == nil
	}, "the API server is back")
	patiently.Holds(t, func() bool {
		_, err := z.Create(t.Context(), ask)
		return status.Code(err) == codes.PermissionDenied
	}, "it says so again")
	z.refused(t, ask, codes.PermissionDenied, "not_on_node")
}
