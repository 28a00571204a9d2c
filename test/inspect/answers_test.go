package inspect

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

// same compares what is said of a certificate with the certificate itself, as its holder has it on disk, and with what
// is known of the holder.
func same(t *testing.T, said *api.Certificate, leaf, root *x509.Certificate, w *workload, i *instance) {
	t.Helper()
	id := w.id.String()
	assert.Equal(t, serialOf(leaf), said.Serial)
	assert.Equal(t, shaOf(leaf), said.SHA256)
	assert.Equal(t, fmt.Sprintf("%x", sha256.Sum256(leaf.RawSubjectPublicKeyInfo)), said.SPKISHA256)
	assert.Equal(t, id, said.Identity)
	require.Len(t, leaf.URIs, 1)
	assert.Equal(t, []string{"URI:" + leaf.URIs[0].String()}, said.SANs)
	assert.Equal(t, []string{w.pod.Namespace, w.pod.Spec.ServiceAccountName}, []string{said.Namespace, said.ServiceAccount})
	assert.True(t, leaf.NotBefore.Equal(said.NotBefore) && leaf.NotAfter.Equal(said.NotAfter), "%s to %s, said %s to %s", leaf.NotBefore, leaf.NotAfter, said.NotBefore, said.NotAfter)
	assert.WithinRange(t, said.IssuedAt, leaf.NotBefore.Add(-time.Second), leaf.NotAfter)
	assert.LessOrEqual(t, said.RemainingSeconds, int64(leaf.NotAfter.Sub(leaf.NotBefore)/time.Second))
	switch key := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		assert.Equal(t, []any{"ECDSA", key.Params().BitSize}, []any{said.KeyAlgorithm, said.KeyBits})
	case *rsa.PublicKey:
		assert.Equal(t, []any{"RSA", key.N.BitLen()}, []any{said.KeyAlgorithm, said.KeyBits})
	}
	assert.Equal(t, leaf.SignatureAlgorithm.String(), said.SignatureAlgorithm)
	assert.Equal(t, "Issuer.cert-manager.io/istio-ca", said.Issuer)
	assert.Equal(t, api.Root{SHA256: shaOf(root), Subject: root.Subject.String()}, said.Root)
	assert.Equal(t, w.pod.Name, said.Holder.Pod)
	assert.Equal(t, string(w.pod.UID), said.Holder.PodUID)
	assert.Equal(t, w.pod.Spec.NodeName, said.Holder.Node)
	assert.Equal(t, "Kubernetes", said.Holder.Cluster)
	assert.False(t, said.Holder.Impersonated)
	assert.Equal(t, i.name, said.Replica)
	assert.NotEmpty(t, said.Request.Name)
	assert.NotEmpty(t, said.Request.UID)
}

// TestAnswers: what each answer says of certificates is what real pilot-agents have in their files.
func TestAnswers(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	i := m.start(t, "signet-0", "", nil)
	shop, bank := plane.NewNamespace(t, "shop"), plane.NewNamespace(t, "bank")
	client := i.reader(t)

	// The certificates that last: an ECDSA and an RSA key in one namespace, another in a second one.
	holders := map[string]*workload{"web": newWorkload(t, shop, "web", "node-1"), "old": newWorkload(t, shop, "old", "node-2"), "vault": newWorkload(t, bank, "vault", "node-1")}
	lifetimes := map[string]time.Duration{"web": time.Hour, "old": 10 * time.Hour, "vault": 20 * time.Hour}
	keys := map[string]meshclient.KeyType{"web": meshclient.P256, "old": meshclient.RSA2048, "vault": meshclient.P384}
	has := make(map[string]*meshclient.Certificate)
	for name, w := range holders {
		agent := w.agent(t, i, lifetimes[name], keys[name])
		has[name] = held(t, agent)
		// As soon as the agent has it there is a record of it, and it is live.
		require.Equal(t, []string{serialOf(has[name].Leaf)}, serials(t, client, api.CertificateQuery{Serial: serialOf(has[name].Leaf)}))
		tells(t, client, has[name].Leaf)
	}
	root := has["web"].Chain[len(has["web"].Chain)-1]
	for name, w := range holders {
		fresh(t, client, w.pod.Namespace, name)
	}

	t.Run("certificate", func(t *testing.T) {
		for name, w := range holders {
			said := tells(t, client, has[name].Leaf)
			same(t, said, has[name].Leaf, root, w, i)
			assert.Equal(t, int64(lifetimes[name]/time.Second), said.RequestedSeconds)
			assert.Equal(t, api.Live, said.Standing)
			assert.Equal(t, api.Fresh, said.State)
			block, rest := pem.Decode([]byte(said.PEM))
			require.NotNil(t, block)
			assert.Empty(t, rest)
			assert.Equal(t, has[name].Leaf.Raw, block.Bytes)
			assert.True(t, strings.HasPrefix(string(has[name].ChainPEM), said.PEM), "as it is on disk")
		}
		_, err := client.Certificate(t.Context(), strings.Repeat("0", 64))
		assert.ErrorIs(t, err, api.ErrNotFound)
	})

	t.Run("certificates", func(t *testing.T) {
		identity := func(name string) string { return holders[name].id.String() }
		for what, row := range map[string]struct {
			query api.CertificateQuery
			want  []string
		}{
			"all of a namespace":      {api.CertificateQuery{Namespace: shop}, []string{"web", "old"}},
			"another":                 {api.CertificateQuery{Namespace: bank}, []string{"vault"}},
			"identity":                {api.CertificateQuery{Identity: identity("old")}, []string{"old"}},
			"no such identity":        {api.CertificateQuery{Identity: identity("old") + "er"}, nil},
			"name with its kind":      {api.CertificateQuery{SAN: "URI:" + identity("web")}, []string{"web"}},
			"name":                    {api.CertificateQuery{SAN: identity("vault")}, []string{"vault"}},
			"serial":                  {api.CertificateQuery{Serial: serialOf(has["old"].Leaf)}, []string{"old"}},
			"serial, of any standing": {api.CertificateQuery{Serial: serialOf(has["old"].Leaf), Standing: "any"}, []string{"old"}},
			"node":                    {api.CertificateQuery{Namespace: shop, Node: "node-2"}, []string{"old"}},
			"node of both":            {api.CertificateQuery{Node: "node-1"}, []string{"web", "vault"}},
			"issuer":                  {api.CertificateQuery{Namespace: shop, Issuer: "Issuer.cert-manager.io/istio-ca"}, []string{"web", "old"}},
			"another issuer":          {api.CertificateQuery{Issuer: "ClusterIssuer.cert-manager.io/istio-ca"}, nil},
			"ends within 2h":          {api.CertificateQuery{Namespace: shop, ExpiresWithin: 2 * time.Hour}, []string{"web"}},
			"ends within 15h":         {api.CertificateQuery{Namespace: shop, ExpiresWithin: 15 * time.Hour}, []string{"web", "old"}},
			"little is left":          {api.CertificateQuery{Namespace: shop, RemainingRatioBelow: 0.5}, nil},
			"fresh":                   {api.CertificateQuery{Namespace: bank, State: api.Fresh}, []string{"vault"}},
			"due":                     {api.CertificateQuery{Namespace: bank, State: api.Due}, nil},
			"superseded":              {api.CertificateQuery{Namespace: shop, Standing: api.Superseded}, nil},
			"orphaned":                {api.CertificateQuery{Namespace: shop, Standing: api.Orphaned}, nil},
		} {
			want := []string{}
			for _, name := range row.want {
				want = append(want, serialOf(has[name].Leaf))
			}
			assert.ElementsMatch(t, want, serials(t, client, row.query), what)
		}
		list, err := client.Certificates(t.Context(), api.CertificateQuery{Identity: identity("web")})
		require.NoError(t, err)
		require.Len(t, list.Items, 1)
		same(t, &list.Items[0], has["web"].Leaf, root, holders["web"], i)
		assert.Empty(t, list.Items[0].PEM)
		patiently.Holds(t, func() bool {
			c := coverage(t, client)
			down := slices.ContainsFunc(c.Sources, func(s api.Source) bool { return !s.Up })
			return slices.Equal([]string{"signet-0"}, c.Replicas) && !down && len(c.Gaps) == 0
		}, "everything is known")
	})

	t.Run("expiring", func(t *testing.T) {
		list, err := client.Expiring(t.Context(), api.CertificateQuery{Namespace: shop, ExpiresWithin: 24 * time.Hour})
		require.NoError(t, err)
		require.Len(t, list.Items, 2)
		same(t, &list.Items[0], has["web"].Leaf, root, holders["web"], i) // the earliest first
		same(t, &list.Items[1], has["old"].Leaf, root, holders["old"], i)
	})

	t.Run("identity", func(t *testing.T) {
		said, err := client.Identity(t.Context(), holders["vault"].id.String())
		require.NoError(t, err)
		assert.Equal(t, []string{holders["vault"].id.String(), bank, "vault"}, []string{said.SPIFFEID, said.Namespace, said.ServiceAccount})
		require.Len(t, said.Live, 1)
		same(t, &said.Live[0], has["vault"].Leaf, root, holders["vault"], i)
		assert.Equal(t, []api.ObjectRef{{Namespace: bank, Name: "vault"}}, said.Services)
		_, err = client.Identity(t.Context(), "spiffe://cluster.local/ns/"+bank+"/sa/nobody")
		assert.ErrorIs(t, err, api.ErrNotFound)
	})

	t.Run("service", func(t *testing.T) {
		said, err := client.Service(t.Context(), shop, "web")
		require.NoError(t, err)
		assert.Equal(t, []string{holders["web"].id.String()}, said.Identities)
		assert.Empty(t, said.Problems)
		assert.Equal(t, api.Summary{Total: 1, Fresh: 1, NotAfter: has["web"].Leaf.NotAfter, RemainingRatio: said.Summary.RemainingRatio}, said.Summary)
		require.Len(t, said.Pods, 1)
		pod := said.Pods[0]
		assert.Equal(t, []string{"web", string(holders["web"].pod.UID), "node-1"}, []string{pod.Name, pod.UID, pod.Node})
		assert.Equal(t, api.Sidecar, pod.DataPlane)
		require.Len(t, pod.Certificates, 1)
		same(t, &pod.Certificates[0], has["web"].Leaf, root, holders["web"], i)
	})

	t.Run("a pod without a certificate", func(t *testing.T) {
		t.Parallel()
		ns := plane.NewNamespace(t, "bare")
		newWorkload(t, ns, "bare", "node-9")
		patiently.Holds(t, func() bool {
			list, err := client.Services(t.Context(), api.ServiceQuery{Namespace: ns, Problems: true})
			require.NoError(t, err)
			return len(list.Items) == 1 && list.Items[0].Name == "bare" && list.Items[0].Summary.Missing == 1 &&
				len(list.Items[0].Problems) == 1 && list.Items[0].Problems[0].Code == api.ProblemMissing
		}, "a pod without a certificate is a problem of its service")
		said, err := client.Service(t.Context(), ns, "bare")
		require.NoError(t, err)
		require.Len(t, said.Pods, 1)
		require.Len(t, said.Pods[0].Problems, 1)
		assert.Equal(t, api.ProblemMissing, said.Pods[0].Problems[0].Code)
	})

	t.Run("services", func(t *testing.T) {
		list, err := client.Services(t.Context(), api.ServiceQuery{Namespace: shop})
		require.NoError(t, err)
		require.Len(t, list.Items, 2)
		for n, name := range []string{"old", "web"} {
			assert.Equal(t, name, list.Items[n].Name)
			assert.Equal(t, 1, list.Items[n].Summary.Fresh)
			assert.True(t, has[name].Leaf.NotAfter.Equal(list.Items[n].Summary.NotAfter))
		}
		list, err = client.Services(t.Context(), api.ServiceQuery{Namespace: shop, Problems: true})
		require.NoError(t, err)
		assert.Empty(t, list.Items)
	})

	t.Run("issuances", func(t *testing.T) {
		for name, w := range holders {
			list, err := client.Issuances(t.Context(), api.IssuanceQuery{Outcome: api.Issued, Identity: w.id.String()})
			require.NoError(t, err)
			require.Len(t, list.Items, 1)
			require.NotNil(t, list.Items[0].Certificate)
			same(t, list.Items[0].Certificate, has[name].Leaf, root, w, i)
			assert.Equal(t, api.Issued, list.Items[0].Outcome)
		}
	})

	t.Run("trust", func(t *testing.T) {
		said, err := client.Trust(t.Context())
		require.NoError(t, err)
		require.Len(t, said.Anchors, 1)
		assert.Equal(t, shaOf(root), said.Anchors[0].SHA256)
		assert.True(t, root.NotAfter.Equal(said.Anchors[0].NotAfter))
		require.NotEmpty(t, said.Issuers)
		assert.Contains(t, said.Issuers[0], "istio-ca")
		assert.Contains(t, strings.Join(said.Replicas, "\n"), "signet-0")
	})

	t.Run("refusals", func(t *testing.T) {
		t.Parallel()
		ns := plane.NewNamespace(t, "refused")
		w := newWorkload(t, ns, "web", "node-9")
		c := i.dial(t)
		other := *w
		other.id = holders["vault"].id
		_, _, err := other.ask(t.Context(), c, time.Hour)
		require.Equal(t, codes.PermissionDenied, grpcstatus.Code(err), "%v", err)
		bad := *w
		bad.token = w.token[:len(w.token)-6] + "AAAAAA"
		_, _, err = bad.ask(t.Context(), c, time.Hour)
		require.Equal(t, codes.Unauthenticated, grpcstatus.Code(err), "%v", err)

		find := func(q api.IssuanceQuery, reason string) (found *api.Refusal) {
			q.Outcome = api.Refused
			for line, err := range client.AllIssuances(t.Context(), q) {
				require.NoError(t, err)
				require.NotNil(t, line.Refusal)
				if line.Refusal.Reason == reason {
					found = line.Refusal
				}
			}
			return found
		}
		var refusal *api.Refusal
		patiently.Holds(t, func() bool {
			refusal = find(api.IssuanceQuery{Namespace: ns}, "identity")
			return refusal != nil && find(api.IssuanceQuery{}, "token_rejected") != nil
		}, "both refusals are told")
		assert.Equal(t, []any{"PermissionDenied", w.id.String(), ns, "web", "127.0.0.1", int64(1), "signet-0"},
			[]any{refusal.Code, refusal.Identity, refusal.Namespace, refusal.ServiceAccount, refusal.Address, refusal.Count, refusal.Replica})
		refusal = find(api.IssuanceQuery{}, "token_rejected")
		assert.Equal(t, []any{"Unauthenticated", "", "", "127.0.0.1"}, []any{refusal.Code, refusal.Identity, refusal.Namespace, refusal.Address})
		assert.Empty(t, serials(t, client, api.CertificateQuery{Namespace: ns, Standing: "any"}))
	})

	t.Run("renewed", func(t *testing.T) {
		t.Parallel()
		w := newWorkload(t, plane.NewNamespace(t, "renewed"), "web", "node-9")
		agent := w.agent(t, i, 40*time.Second, meshclient.P256) // renewed after 20 s
		first := held(t, agent).Leaf
		same(t, tells(t, client, first), first, root, w, i)
		rotated(t, agent, 1)
		second := held(t, agent).Leaf
		require.NoError(t, agent.Stop())
		require.NotEqual(t, serialOf(first), serialOf(second))
		said := tells(t, client, second)
		same(t, said, second, root, w, i)
		assert.Equal(t, api.Live, said.Standing)
		said = tells(t, client, first)
		same(t, said, first, root, w, i)
		want := api.Superseded
		if said.State == api.Expired { // on a very slow machine
			want = api.Ended
		}
		assert.Equal(t, want, said.Standing)
		assert.Equal(t, []string{serialOf(second)}, serials(t, client, api.CertificateQuery{Identity: w.id.String()}))
		among := serials(t, client, api.CertificateQuery{Identity: w.id.String(), Standing: api.Superseded})
		if time.Now().Before(first.NotAfter) { // or it may have ended before it was asked for
			assert.Equal(t, []string{serialOf(first)}, among)
		}
		assert.ElementsMatch(t, []string{serialOf(second), serialOf(first)}, serials(t, client, api.CertificateQuery{Identity: w.id.String(), Standing: "any"}))
		list, err := client.Issuances(t.Context(), api.IssuanceQuery{Identity: w.id.String(), Outcome: api.Issued})
		require.NoError(t, err)
		require.Len(t, list.Items, 2)
		assert.Equal(t, serialOf(second), list.Items[0].Certificate.Serial, "the latest first")
	})

	t.Run("orphaned", func(t *testing.T) {
		t.Parallel()
		w := newWorkload(t, plane.NewNamespace(t, "gone"), "web", "node-9")
		agent := w.agent(t, i, time.Hour, meshclient.P256)
		leaf := held(t, agent).Leaf
		assert.Equal(t, api.Live, tells(t, client, leaf).Standing)
		require.NoError(t, agent.Stop())
		require.NoError(t, plane.Client().Delete(t.Context(), w.pod))
		patiently.Holds(t, func() bool { return tells(t, client, leaf).Standing == api.Orphaned }, "the leaf of a pod that is gone is orphaned")
		assert.Empty(t, serials(t, client, api.CertificateQuery{Identity: w.id.String()}))
		assert.Equal(t, []string{serialOf(leaf)}, serials(t, client, api.CertificateQuery{Identity: w.id.String(), Standing: api.Orphaned}))
		same(t, tells(t, client, leaf), leaf, root, w, i)
	})

	t.Run("ended", func(t *testing.T) {
		t.Parallel()
		w := newWorkload(t, plane.NewNamespace(t, "ended"), "web", "node-9")
		leaf, pair := w.issue(t, i.dial(t), 20*time.Second) // and not renewed
		patiently.Holds(t, func() bool {
			overdue := serials(t, client, api.CertificateQuery{Identity: w.id.String(), State: api.Overdue})
			return len(overdue) == 1 || time.Now().After(leaf.NotAfter)
		}, "what isn't renewed is overdue")
		below := serials(t, client, api.CertificateQuery{Identity: w.id.String(), RemainingRatioBelow: 0.5})
		problems := func() (codes []api.ProblemCode) {
			service, err := client.Service(t.Context(), w.pod.Namespace, "web")
			require.NoError(t, err)
			for _, p := range service.Problems {
				codes = append(codes, p.Code)
			}
			return codes
		}
		overdue := problems()
		if time.Now().Before(leaf.NotAfter) { // or it may have ended before it was asked for
			assert.Equal(t, []string{serialOf(leaf)}, below)
			assert.Equal(t, []api.ProblemCode{api.ProblemOverdue}, overdue)
		}
		patiently.Holds(t, func() bool { return tells(t, client, leaf).Standing == api.Ended }, "what has expired is ended")
		said := tells(t, client, leaf)
		assert.Equal(t, api.Expired, said.State)
		assert.Zero(t, said.RemainingSeconds)
		assert.Empty(t, serials(t, client, api.CertificateQuery{Identity: w.id.String()}))
		assert.Equal(t, []string{serialOf(leaf)}, serials(t, client, api.CertificateQuery{Identity: w.id.String(), Standing: api.Ended}))
		patiently.Holds(t, func() bool { return slices.Equal([]api.ProblemCode{api.ProblemExpired}, problems()) }, "an expired one is its service's problem")

		// It doesn't open the API any more.
		_, err := i.client(t, "", pair).Services(t.Context(), api.ServiceQuery{})
		assert.Equal(t, 401, status(t, err))
		assert.ErrorContains(t, err, "expired")
	})
}

// TestRecordFirst: whoever holds a certificate finds its record, however quickly it looks.
func TestRecordFirst(t *testing.T) {
	t.Parallel()
	m := newTestMesh(t)
	i := m.start(t, "signet-0", "", nil)
	client, c := i.reader(t), i.dial(t)
	ns := plane.NewNamespace(t, "first")
	require.NoError(t, plane.ServiceAccount(t.Context(), ns, "web"))
	_, err := client.Services(t.Context(), api.ServiceQuery{}) // who asks is known from now on
	require.NoError(t, err)
	for n := range 30 {
		w := newPod(t, ns, fmt.Sprint("web-", n), "web", "node-1")
		leaf, _ := w.issue(t, c, time.Hour)
		tells(t, client, leaf) // from the store
		require.Equal(t, []string{serialOf(leaf)}, serials(t, client, api.CertificateQuery{Serial: serialOf(leaf)}), "from memory")
	}
}
