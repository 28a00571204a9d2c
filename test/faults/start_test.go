package faults

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/replica"
	"github.com/signet-ca/signet/test/testca"
)

// doesNotStart requires that a Signet ends at once with an exit status, saying all of texts.
func doesNotStart(t *testing.T, cfg replica.Config, exit string, texts ...string) {
	t.Helper()
	_, err := replica.Start(t.Context(), plane, cfg)
	require.ErrorContains(t, err, "it ended: exit status "+exit+";")
	for _, text := range texts {
		assert.ErrorContains(t, err, text)
	}
}

// TestMissingRights: the start ends with the verb and the resource of each right that is missing.
func TestMissingRights(t *testing.T) {
	t.Parallel()
	t.Run("all of them", func(t *testing.T) {
		t.Parallel()
		m := newMesh(t, plane)
		cfg := m.config(nil)
		cfg.WithoutRights = true
		doesNotStart(t, cfg, "1", "missing rights", "system:serviceaccount:"+m.ns+":signet may not",
			"create tokenreviews.authentication.k8s.io in the cluster",
			"create, get, list, watch, delete certificaterequests.cert-manager.io in namespace "+m.ns,
			"get, update leases.coordination.k8s.io signet in namespace "+m.ns,
			"list, watch pods in the cluster")
	})
	t.Run("one of them", func(t *testing.T) {
		t.Parallel()
		m := newMesh(t, plane)
		cfg := m.config(nil)
		objects, err := replica.Rights(cfg)
		require.NoError(t, err)
		require.True(t, withoutDelete(objects), "no right to delete was granted")
		require.NoError(t, replica.Grant(t.Context(), plane, objects))
		cfg.WithoutRights = true
		_, err = replica.Start(t.Context(), plane, cfg)
		require.ErrorContains(t, err, "exit status 1")
		assert.ErrorContains(t, err, "may not delete certificaterequests.cert-manager.io")
		assert.NotContains(t, err.Error(), "may not create")
		assert.NotContains(t, err.Error(), "watch")
	})
	t.Run("a Secret of another name", func(t *testing.T) {
		t.Parallel()
		m := newMesh(t, plane)
		cfg := m.config(map[string]any{"roots.secret.name": "signet-roots"})
		cfg.RootPEM = nil
		objects, err := replica.Rights(cfg)
		require.NoError(t, err)
		require.NoError(t, replica.Grant(t.Context(), plane, objects))
		cfg = m.config(map[string]any{"roots.secret.name": "others"})
		cfg.RootPEM, cfg.WithoutRights = nil, true
		doesNotStart(t, cfg, "1", "may not list, watch secrets others in namespace "+m.ns)
	})
}

// withoutDelete takes the right to delete CertificateRequests out of a Role, and says whether there was one.
func withoutDelete(objects []*unstructured.Unstructured) (found bool) {
	for _, object := range objects {
		rules, _, _ := unstructured.NestedSlice(object.Object, "rules") // none where it isn't a role
		for _, rule := range rules {
			rule := rule.(map[string]any)
			verbs, _ := rule["verbs"].([]any)
			if resources, _ := rule["resources"].([]any); object.GetKind() == "Role" && slices.Contains(resources, "certificaterequests") {
				rule["verbs"] = slices.DeleteFunc(verbs, func(verb any) bool { found = found || verb == "delete"; return verb == "delete" })
				object.Object["rules"] = rules
			}
		}
	}
	return found
}

// TestBadConfiguration: the start ends with the path of the field and what would be right.
func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	for _, test := range []struct {
		name, path string
		value      any
		texts      []string
	}{
		{"out of bounds", "signer.timeout", "5m", []string{"signer.timeout", "2m"}},
		{"not a duration", "signer.timeout", "soon", []string{"signer.timeout"}},
		{"unknown field", "signer.timeuot", "5s", []string{"signer.timeuot: unknown field", "timeout"}},
		{"of another type", "ca.listen", 6443, []string{"ca.listen", "a text"}},
		{"federated with itself", "roots.federated", []any{map[string]any{"trustDomain": "cluster.local", "file": "x"}}, []string{"roots.federated[0].trustDomain", "own trust domain"}},
		{"not a trust domain", "trustDomain", "Cluster/Local", []string{"trustDomain", "Cluster/Local"}},
		{"no issuer", "issuer.name", "", []string{"issuer.name"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := m.config(map[string]any{test.path: test.value})
			cfg.WithoutRights = true // the chart refuses some of these too
			doesNotStart(t, cfg, "2", test.texts...)
		})
	}
}

// TestStartWithoutAPIServer: a start without the API server is given up after a minute, and one that
// finds it within the minute goes on.
func TestStartWithoutAPIServer(t *testing.T) {
	t.Parallel()
	t.Run("never there", func(t *testing.T) {
		t.Parallel()
		m := newMesh(t, plane)
		require.NoError(t, plane.ServiceAccount(t.Context(), m.ns, "signet"))
		direct, err := plane.KubeconfigAs(t.Context(), m.ns, "signet")
		require.NoError(t, err)
		config, err := clientcmd.LoadFromFile(direct)
		require.NoError(t, err)
		for _, cluster := range config.Clusters {
			cluster.Server = "https://127.0.0.1:1"
		}
		cfg := m.config(nil)
		cfg.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
		require.NoError(t, clientcmd.WriteToFile(*config, cfg.Kubeconfig))
		doesNotStart(t, cfg, "1", "the API server does not answer yet", "ask the API server who we are")
	})
	t.Run("there after a while", func(t *testing.T) {
		t.Parallel()
		m := newMesh(t, plane)
		p := newProxy(t, plane)
		var turnedAway atomic.Int64
		p.onCall(func(call) int {
			if turnedAway.Add(1) > 3 {
				return 0
			}
			return dropped
		})
		cfg := m.config(nil)
		cfg.Kubeconfig = p.kubeconfig(t, plane, m.ns)
		r := start(t, plane, cfg)
		logged(t, r, "the API server does not answer yet")
		w := m.workload(t, "first")
		chain, err := w.ask(t.Context(), dial(t, r, m.root.PEM()))
		w.issued(t, m.root.PEM(), chain, err)
	})
}

// TestRootsThatComeLater: a replica whose anchors can't be read isn't ready, says why, and goes on
// when they can.
func TestRootsThatComeLater(t *testing.T) {
	t.Parallel()
	t.Run("a Secret", func(t *testing.T) {
		t.Parallel()
		m := newMesh(t, plane)
		cfg := m.config(map[string]any{"roots.secret.name": "signet-roots"})
		cfg.RootPEM, cfg.DontWait = nil, true
		r := start(t, plane, cfg)
		unreadyWith(t, r, "[-] roots: read trust anchors: Secret "+m.ns+"/signet-roots doesn't exist")
		assert.Zero(t, metric(t, r, "signet_trust_anchors", nil))
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: m.ns, Name: "signet-roots"}, Data: map[string][]byte{"ca.crt": []byte("garbage")}}
		require.NoError(t, plane.Client().Create(t.Context(), secret))
		unreadyWith(t, r, "[-] roots: read trust anchors: Secret "+m.ns+"/signet-roots, key ca.crt")
		assert.Empty(t, m.issuer.Seen(""), "nothing is asked for before the anchors are known")
		secret.Data["ca.crt"] = m.root.PEM()
		require.NoError(t, plane.Client().Update(t.Context(), secret))
		require.NoError(t, r.WaitReady(t.Context()))
		assert.Equal(t, 1.0, metric(t, r, "signet_trust_anchors", nil))
		w := m.workload(t, "first")
		chain, err := w.ask(t.Context(), dial(t, r, m.root.PEM()))
		w.issued(t, m.root.PEM(), chain, err)
	})
	t.Run("a file", func(t *testing.T) {
		t.Parallel()
		m := newMesh(t, plane)
		file := filepath.Join(t.TempDir(), "roots.pem")
		require.NoError(t, os.WriteFile(file, append(m.root.PEM(), "garbage"...), 0o600))
		cfg := m.config(map[string]any{"roots.file": file})
		cfg.RootPEM, cfg.DontWait = nil, true
		r := start(t, plane, cfg)
		unreadyWith(t, r, "[-] roots: read trust anchors: file "+file)
		assert.False(t, r.Process().Ended())
		code, _ := page(t, r.HealthURL()+"/livez")
		assert.Equal(t, http.StatusOK, code)
		require.NoError(t, os.WriteFile(file, m.root.PEM(), 0o600))
		require.NoError(t, r.WaitReady(t.Context()))
	})
}

// TestTrustOnFirstUse: the anchor that the issuer names first is kept, for every replica and every
// start, and an issuer that changes its root is refused.
func TestTrustOnFirstUse(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	stored := func() string {
		var config corev1.ConfigMap
		require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: m.ns, Name: "signet-trust-anchors"}, &config))
		return config.Data["root-cert.pem"]
	}
	cfg := m.config(map[string]any{"roots.fromIssuer": true})
	cfg.RootPEM = nil
	r := start(t, plane, cfg)
	assert.Equal(t, string(m.root.PEM()), stored())
	logged(t, r, "trusting the issuer's root on first use")
	assert.Equal(t, 1.0, metric(t, r, "signet_trust_anchors_on_first_use", nil))
	_, body := readyz(t, r)
	assert.Contains(t, body, "trusted on first use")
	w := m.workload(t, "first")
	c := dial(t, r, m.root.PEM())
	chain, err := w.ask(t.Context(), c)
	w.issued(t, m.root.PEM(), chain, err)

	// The issuer changes its root: a replica that runs refuses, one that starts trusts nothing new.
	changed, err := testca.NewRoot("root")
	require.NoError(t, err)
	m.issuer.Otherwise(testca.Good(changed))
	w = m.workload(t, "second")
	chain, err = w.ask(t.Context(), c)
	refused(t, codes.FailedPrecondition, chain, err)
	cfg.DontWait = true
	second := start(t, plane, cfg)
	unreadyWith(t, second, "doesn't lead to a trust anchor in force")
	assert.Equal(t, string(m.root.PEM()), stored())
	assert.Zero(t, logCount(t, second, "trusting the issuer's root on first use"))

	// With the issuer's old root back both work, the second replica by what is stored.
	m.issuer.Otherwise(testca.Good(m.root))
	require.NoError(t, second.WaitReady(t.Context()))
	for i, r := range []*replica.Replica{r, second} {
		w := m.workload(t, []string{"third", "fourth"}[i])
		chain, err = w.ask(t.Context(), dial(t, r, m.root.PEM()))
		w.issued(t, m.root.PEM(), chain, err)
	}
	assert.Equal(t, string(m.root.PEM()), stored())
}

// TestTrustOnFirstUseOfLess: an issuer that names no self-signed CA is not trusted on first use.
func TestTrustOnFirstUseOfLess(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	intermediate, err := m.root.NewIntermediate("intermediate", 24*time.Hour)
	require.NoError(t, err)
	named := func(ca []byte) testca.Behaviour {
		return func(ctx context.Context, ask testca.Ask) (testca.Answer, error) {
			answer, err := testca.Good(intermediate)(ctx, ask)
			answer.CAPEM = ca
			return answer, err
		}
	}
	m.issuer.Otherwise(named(intermediate.PEM()))
	cfg := m.config(map[string]any{"roots.fromIssuer": true})
	cfg.RootPEM, cfg.DontWait = nil, true
	r := start(t, plane, cfg)
	unreadyWith(t, r, "names no self-signed CA certificate")

	// Nor is one whose chain doesn't lead to the root that it names.
	stranger, err := testca.NewRoot("root")
	require.NoError(t, err)
	m.issuer.Otherwise(named(stranger.PEM()))
	unreadyWith(t, r, "doesn't lead to a trust anchor")
	assert.True(t, apierrors.IsNotFound(plane.Client().Get(t.Context(), client.ObjectKey{Namespace: m.ns, Name: "signet-trust-anchors"}, &corev1.ConfigMap{})))
	assert.False(t, r.Process().Ended())

	m.issuer.Otherwise(named(m.root.PEM()))
	require.NoError(t, r.WaitReady(t.Context()))
	_, body := readyz(t, r)
	assert.True(t, strings.Contains(body, "trusted on first use"), body)
}
