package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

// structOf is the metadata of a request.
func structOf(t *testing.T, fields map[string]any) *structpb.Struct {
	t.Helper()
	md, err := structpb.NewStruct(fields)
	require.NoError(t, err)
	return md
}

func TestR14_ToleratesWhatClientsAdd(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	for name, change := range map[string]func(*meshclient.Ask){
		"no metadata":           func(a *meshclient.Ask) { a.Metadata = nil },
		"empty metadata":        func(a *meshclient.Ask) { a.Metadata = &structpb.Struct{} },
		"empty CertSigner":      func(a *meshclient.Ask) { a.Metadata = meshclient.SidecarMetadata("") },
		"CertSigner that isn't": func(a *meshclient.Ask) { a.Metadata = structOf(t, map[string]any{"CertSigner": nil}) },
		"unknown keys": func(a *meshclient.Ask) {
			a.Metadata = structOf(t, map[string]any{
				"CertSigner": "", "Unknown": "x", "Number": 7.0, "Truth": true, "Nothing": nil,
				"List": []any{"a", 1.0}, "Map": map[string]any{"ImpersonatedIdentity": "spiffe://elsewhere/ns/a/sa/b"},
			})
		},
		"value without a kind": func(a *meshclient.Ask) {
			a.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"CertSigner": {}, "ImpersonatedIdentity": {}}}
		},
		"headers of CA_HEADER_*": func(a *meshclient.Ask) {
			a.Headers = metadata.Pairs("x-tenant", "green", "x-tenant", "blue", "custom-bin", "\x00\x01", "x-empty", "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			ask := caller.ask(t)
			change(&ask)
			issued(t, c, ask)
		})
	}
	for _, agent := range []string{"", "istio-pilot-agent/1.31", "ztunnel/1.31 (hyper)", "kubectl/v1 (linux/amd64) \"quoted\" <x>", strings.Repeat("long ", 200)} {
		options := meshclient.SidecarTLS()
		options.UserAgent = agent
		issued(t, s.dial(t, options), caller.ask(t))
	}
}

func TestR14_RefusesWhatIsNotOffered(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	s.makesNone(t, func() {
		ask := caller.ask(t)
		ask.Metadata = meshclient.SidecarMetadata("blue")
		refused(t, c, ask, codes.PermissionDenied)
		for _, key := range []string{"CertSigner", "ImpersonatedIdentity"} {
			ask.Metadata = structOf(t, map[string]any{key: 7.0})
			assert.Contains(t, refused(t, c, ask, codes.InvalidArgument), key)
		}
	})
}

func TestR15_FirstBearerToken(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	good := "Bearer " + caller.token
	for _, test := range []struct {
		name   string
		values []string
		code   codes.Code
	}{
		{"one", []string{good}, codes.OK},
		{"behind other schemes", []string{"Basic dXNlcjpwYXNz", "bearer x.y.z", "Negotiate", "", good}, codes.OK},
		{"white space around it", []string{"Bearer    " + caller.token + "   "}, codes.OK},
		{"before a bad one", []string{good, "Bearer x.y.z"}, codes.OK},
		{"behind a bad one", []string{"Bearer x.y.z", good}, codes.Unauthenticated},
		{"behind an empty one", []string{"Bearer ", good}, codes.Unauthenticated},
		{"lower-case scheme", []string{"bearer " + caller.token}, codes.Unauthenticated},
		{"no scheme", []string{caller.token}, codes.Unauthenticated},
		{"no space", []string{"Bearer" + caller.token}, codes.Unauthenticated},
		{"space before the scheme", []string{" Bearer " + caller.token}, codes.Unauthenticated},
		{"two tokens in one value", []string{good + "," + caller.token}, codes.Unauthenticated},
	} {
		t.Run(test.name, func(t *testing.T) {
			ask := caller.ask(t)
			ask.Token, ask.Authorization = "", test.values
			if test.code == codes.OK {
				issued(t, c, ask)
				return
			}
			refused(t, c, ask, test.code)
			assert.Empty(t, s.requestsFor(t, ask.CSR))
		})
	}
}

// tokenKey is the key with which the API server signs the tokens of service accounts.
func tokenKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(plane.Dir(), "pki", "tokens.key"))
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	require.NotNil(t, block)
	key, err := x509.ParseECPrivateKey(block.Bytes)
	require.NoError(t, err)
	return key
}

// resigned is token with some of its claims replaced, signed with key (ES256, RFC 7518 §3.4). The API
// server issues nothing that lives less than ten minutes; this is how a test gets at an expired one.
func resigned(t *testing.T, token string, key *ecdsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	parts := strings.Split(token, ".")
	require.Len(t, parts, 3)
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	require.NoError(t, err)
	all := make(map[string]any)
	require.NoError(t, json.Unmarshal(payload, &all))
	maps.Copy(all, claims)
	payload, err = json.Marshal(all)
	require.NoError(t, err)
	text := parts[0] + "." + base64.RawURLEncoding.EncodeToString(payload)
	sum := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(cryptorand.Reader, key, sum[:])
	require.NoError(t, err)
	signature := append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// expiring is a token of the caller's that is valid until end and that the API server takes for its
// own.
func (c *caller) expiring(t *testing.T, end time.Time) string {
	t.Helper()
	issued := min(end.Add(-time.Hour).Unix(), time.Now().Add(-time.Minute).Unix())
	return resigned(t, c.newToken(t), tokenKey(t), map[string]any{"iat": issued, "nbf": issued, "exp": end.Unix()})
}

// reviewed says whether the API server accepts a token of audience istio-ca.
func reviewed(t *testing.T, token string) bool {
	t.Helper()
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{controlplane.DefaultAudience}}}
	require.NoError(t, plane.Client().Create(t.Context(), review))
	return review.Status.Authenticated
}

// TestR22_OpaqueRefusals also is the list of credentials that don't authenticate. What is missing in
// it is a token of a user: this control plane authenticates users by client certificates only, which
// have no token that could be reviewed.
func TestR22_OpaqueRefusals(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	foreign, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	require.NoError(t, err)
	hour := time.Now().Add(time.Hour).Unix()
	require.True(t, reviewed(t, caller.expiring(t, time.Now().Add(time.Hour))), "tokens of our own making are good as such")

	bearer := func(token string) func(*meshclient.Ask) {
		return func(a *meshclient.Ask) { a.Token = token }
	}
	authorization := func(values ...string) func(*meshclient.Ask) {
		return func(a *meshclient.Ask) { a.Token, a.Authorization = "", values }
	}
	admin, err := plane.As(t.Context(), caller.ns, caller.sa)
	require.NoError(t, err)
	otherAudience, err := plane.Token(t.Context(), caller.ns, caller.sa, controlplane.TokenOptions{Audiences: []string{"vault", "istio-ca.example"}})
	require.NoError(t, err)
	parts := strings.Split(caller.token, ".")

	text := ""
	for _, test := range []struct {
		name, reason string
		change       func(*meshclient.Ask)
	}{
		{"nothing", "no_token", authorization()},
		{"other scheme", "no_token", authorization("Basic dXNlcjpwYXNzd29yZA==")},
		{"garbage", "token_shape", bearer("garbage")},
		{"two parts", "token_shape", bearer(parts[0] + "." + parts[1])},
		{"empty signature", "token_shape", bearer(parts[0] + "." + parts[1] + ".")},
		{"not base64url", "token_shape", bearer("a+b.c/d.e=")},
		{"longer than any token", "token_shape", bearer("a." + strings.Repeat("b", 17<<10) + ".c")},
		{"garbage of the right shape", "token_rejected", bearer("eyJhbGciOiJub25lIn0.e30.AAAA")},
		{"right shape but no JSON", "token_rejected", bearer("a.b.c")},
		{"signature of another token", "token_rejected", bearer(parts[0] + "." + parts[1] + "." + strings.Split(caller.newToken(t), ".")[2])},
		{"signed by somebody else", "token_rejected", bearer(resigned(t, caller.token, foreign, map[string]any{"exp": hour}))},
		{"signed by somebody else and expired", "token_rejected", bearer(resigned(t, caller.token, foreign, map[string]any{"exp": 1}))},
		{"expired", "token_rejected", bearer(caller.expiring(t, time.Now().Add(-time.Hour)))},
		{"not valid yet", "token_rejected", bearer(resigned(t, caller.token, tokenKey(t), map[string]any{"nbf": hour}))},
		{"other audiences", "token_rejected", bearer(otherAudience)},
		{"for the API server", "token_rejected", bearer(admin.BearerToken)},
		{"service account deleted", "token_rejected", bearer(tokenOfDeleted(t, caller.ns))},
		{"service account made anew", "token_rejected", bearer(tokenOfReplaced(t, caller.ns))},
		{"pod deleted", "token_rejected", bearer(tokenOfDeletedPod(t, caller))},
		{"unknown cluster", "unknown_cluster", func(a *meshclient.Ask) { a.ClusterIDs = []string{"elsewhere"} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			ask := caller.ask(t)
			test.change(&ask)
			counted := map[string]string{"outcome": "refused", "reason": test.reason, "code": codes.Unauthenticated.String()}
			before := s.metric(t, "requests_total", counted)
			s.makesNone(t, func() {
				said := refused(t, c, ask, codes.Unauthenticated)
				if text == "" {
					text = said
				}
				assert.Equal(t, text, said, "the text tells one reason from another")
			})
			assert.Equal(t, before+1, s.metric(t, "requests_total", counted))
			log, err := s.Log()
			require.NoError(t, err)
			assert.Contains(t, log, `"reason":"`+test.reason+`"`)
			if token := ask.Token; len(token) > 32 {
				assert.NotContains(t, log, token)
				assert.NotContains(t, log, token[len(token)-32:])
			}
		})
	}
	issued(t, c, caller.ask(t)) // and the caller itself is still fine
	log, err := s.Log()
	require.NoError(t, err)
	assert.NotContains(t, log, caller.token)
	assert.NotContains(t, log, strings.Split(caller.token, ".")[2])
}

// tokenOfDeleted is a token, never reviewed before, of a service account that is gone.
func tokenOfDeleted(t *testing.T, ns string) string {
	t.Helper()
	return twoTokens(t, ns, "deleted", func(account *corev1.ServiceAccount) {
		require.NoError(t, plane.Client().Delete(t.Context(), account))
	})
}

// tokenOfReplaced is one of a service account whose name somebody else has by now.
func tokenOfReplaced(t *testing.T, ns string) string {
	t.Helper()
	return twoTokens(t, ns, "replaced", func(account *corev1.ServiceAccount) {
		require.NoError(t, plane.Client().Delete(t.Context(), account))
		require.NoError(t, plane.ServiceAccount(t.Context(), ns, account.Name))
	})
}

// twoTokens takes two tokens of a new service account, has it revoked, waits until the API server
// refuses the first one, and returns the other.
func twoTokens(t *testing.T, ns, sa string, revoke func(*corev1.ServiceAccount)) string {
	t.Helper()
	require.NoError(t, plane.ServiceAccount(t.Context(), ns, sa))
	first, err := plane.Token(t.Context(), ns, sa, controlplane.TokenOptions{})
	require.NoError(t, err)
	second, err := plane.Token(t.Context(), ns, sa, controlplane.TokenOptions{})
	require.NoError(t, err)
	revoke(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: sa}})
	patiently.Holds(t, func() bool { return !reviewed(t, first) }, "the API server goes on accepting a revoked token")
	return second
}

func tokenOfDeletedPod(t *testing.T, caller *caller) string {
	t.Helper()
	pod, err := plane.Pod(t.Context(), caller.ns, "deleted", caller.sa, "node-a")
	require.NoError(t, err)
	opts := controlplane.TokenOptions{Pod: pod}
	first, err := plane.Token(t.Context(), caller.ns, caller.sa, opts)
	require.NoError(t, err)
	second, err := plane.Token(t.Context(), caller.ns, caller.sa, opts)
	require.NoError(t, err)
	require.NoError(t, plane.Client().Delete(t.Context(), pod))
	patiently.Holds(t, func() bool { return !reviewed(t, first) }, "the API server goes on accepting the token of a deleted pod")
	return second
}

func TestR16_AnyConfiguredAudience(t *testing.T) {
	s := variant(t) // mesh-ca and vault
	caller := s.caller(t)
	c := s.dial(t)
	for _, test := range []struct {
		name      string
		audiences []string
		code      codes.Code
	}{
		{"the first", []string{"mesh-ca"}, codes.OK},
		{"the second", []string{"vault"}, codes.OK},
		{"both", []string{"vault", "mesh-ca"}, codes.OK},
		{"one among others", []string{"elsewhere", "vault"}, codes.OK},
		{"the default, which is not configured here", []string{"istio-ca"}, codes.Unauthenticated},
		{"others", []string{"elsewhere", "mesh-ca.example"}, codes.Unauthenticated},
	} {
		t.Run(test.name, func(t *testing.T) {
			token, err := plane.Token(t.Context(), caller.ns, caller.sa, controlplane.TokenOptions{Audiences: test.audiences})
			require.NoError(t, err)
			ask := caller.ask(t)
			ask.Token = token
			if test.code == codes.OK {
				issued(t, c, ask)
				return
			}
			refused(t, c, ask, test.code)
			assert.Empty(t, s.requestsFor(t, ask.CSR))
		})
	}
}

func TestR16_PodOfTheToken(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	pod, err := plane.Pod(t.Context(), caller.ns, "web-0", caller.sa, "node-a")
	require.NoError(t, err)
	token, err := plane.Token(t.Context(), caller.ns, caller.sa, controlplane.TokenOptions{Pod: pod})
	require.NoError(t, err)
	ask := caller.ask(t)
	ask.Token = token
	issued(t, s.dial(t), ask)
	requests := s.requestsFor(t, ask.CSR)
	require.Len(t, requests, 1)
	for name, want := range map[string]string{
		"istio.cert-manager.io/identities": caller.id.String(),
		"signet.dev/caller":                caller.ns + "/" + caller.sa,
		"signet.dev/pod":                   "web-0",
		"signet.dev/pod-uid":               string(pod.UID),
		"signet.dev/node":                  "node-a",
	} {
		assert.Equal(t, want, requests[0].Annotations[name], name)
	}
}

func TestR17_IdentityOfTheServiceAccount(t *testing.T) {
	for name, test := range map[string]struct {
		s           *stack
		trustDomain string
	}{
		"default trust domain":                {common(t), "cluster.local"},
		"'@' in the trust domain is read '.'": {variant(t), "my.mesh.example"},
	} {
		t.Run(name, func(t *testing.T) {
			caller := test.s.callerIn(t, plane.NewNamespace(t, "team"), "a.b-c.d")
			leaf := issued(t, test.s.dial(t), caller.ask(t))
			require.Len(t, leaf.URIs, 1)
			assert.Equal(t, "spiffe://"+test.trustDomain+"/ns/"+caller.ns+"/sa/a.b-c.d", leaf.URIs[0].String())
		})
	}
}

func TestR18_ClusterID(t *testing.T) {
	for _, test := range []struct {
		name  string
		stack func(*testing.T) *stack
		ids   []string
		code  codes.Code
	}{
		{"absent", common, nil, codes.OK},
		{"empty", common, []string{""}, codes.OK},
		{"several", common, []string{"elsewhere", "nowhere"}, codes.OK},
		{"the default", common, []string{"Kubernetes"}, codes.OK},
		{"in lower case", common, []string{"kubernetes"}, codes.Unauthenticated},
		{"unknown", common, []string{"elsewhere"}, codes.Unauthenticated},
		{"configured", variant, []string{"east"}, codes.OK},
		{"alias", variant, []string{"old-east"}, codes.OK},
		{"other alias", variant, []string{"kubernetes-east"}, codes.OK},
		{"the default, which is not configured here", variant, []string{"Kubernetes"}, codes.Unauthenticated},
		{"absent where one is configured", variant, nil, codes.OK},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := test.stack(t)
			ask := s.caller(t).ask(t)
			ask.ClusterIDs = test.ids
			c := s.dial(t)
			if test.code == codes.OK {
				issued(t, c, ask)
				return
			}
			refused(t, c, ask, test.code)
			assert.Empty(t, s.requestsFor(t, ask.CSR))
		})
	}
}

func TestR21_TokensWithoutAPod(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	c := s.dial(t)
	ask := caller.ask(t)
	issued(t, c, ask)
	requests := s.requestsFor(t, ask.CSR)
	require.Len(t, requests, 1)
	assert.Equal(t, caller.ns+"/"+caller.sa, requests[0].Annotations["signet.dev/caller"])
	for _, name := range []string{"signet.dev/pod", "signet.dev/pod-uid", "signet.dev/node"} {
		assert.NotContains(t, requests[0].Annotations, name)
	}
	// They are good for their own identity only.
	other := s.identity(t, caller.ns, "default")
	_, csr, err := meshclient.ZtunnelCSR(other)
	require.NoError(t, err)
	ask.CSR, ask.Metadata = csr, meshclient.ZtunnelMetadata(other.String())
	refused(t, c, ask, codes.PermissionDenied)
	assert.Empty(t, s.requestsFor(t, csr))
}

func TestR25_OwnIdentityByName(t *testing.T) {
	s := common(t)
	caller := s.caller(t)
	pod, err := plane.Pod(t.Context(), caller.ns, "ztunnel-x", caller.sa, "node-a")
	require.NoError(t, err)
	bound, err := plane.Token(t.Context(), caller.ns, caller.sa, controlplane.TokenOptions{Pod: pod})
	require.NoError(t, err)
	c := s.dial(t, meshclient.ZtunnelTLS())
	for _, token := range []string{caller.token, bound} {
		ask := caller.ask(t)
		ask.Token, ask.Metadata = token, meshclient.ZtunnelMetadata(caller.id.String())
		issued(t, c, ask)
		ask.Metadata = meshclient.ZtunnelMetadata("") // says nothing
		issued(t, c, ask)
	}
	own := caller.id.String()
	for _, other := range []string{
		"spiffe://cluster.local/ns/" + caller.ns + "/sa/default",
		"spiffe://cluster.local/ns/kube-system/sa/" + caller.sa,
		"spiffe://other.local/ns/" + caller.ns + "/sa/" + caller.sa,
		own + "/", own + "#", own + "?", " " + own, strings.ToUpper(own[:6]) + own[6:], "not a SPIFFE ID", "*",
	} {
		t.Run(other, func(t *testing.T) {
			ask := caller.ask(t)
			ask.Token, ask.Metadata = bound, meshclient.ZtunnelMetadata(other)
			refused(t, c, ask, codes.PermissionDenied)
			assert.Empty(t, s.requestsFor(t, ask.CSR))
		})
	}
}
