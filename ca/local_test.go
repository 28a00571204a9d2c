package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/setting"
)

const tokenIssuer = "https://kubernetes.default.svc.cluster.local"

// localNow is when the tokens of these tests are judged; they have been given out a minute before.
var localNow = time.Unix(1_893_456_000, 0)

// goodClaims are those of a pod's token.
func goodClaims() map[string]any {
	now := localNow.Unix()
	return map[string]any{
		"iss": tokenIssuer, "sub": "system:serviceaccount:foo:alice", "aud": []any{"istio-ca"}, "jti": "1",
		"exp": now + 3000, "nbf": now - 60, "iat": now - 60,
		"kubernetes.io": map[string]any{
			"namespace": "foo", "serviceaccount": map[string]any{"name": "alice", "uid": "sa-uid"},
			"pod": map[string]any{"name": "alice-1", "uid": "pod-uid"}, "node": map[string]any{"name": "node-1", "uid": "node-uid"},
			"warnafter": now + 600,
		},
	}
}

// sealed signs a token, whatever is in it.
func sealed(t testing.TB, key crypto.Signer, header, payload string) string {
	t.Helper()
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	var signature []byte
	var err error
	switch key := key.(type) {
	case *rsa.PrivateKey:
		digest := crypto.SHA256.New()
		digest.Write([]byte(input))
		signature, err = key.Sign(rand.Reader, digest.Sum(nil), crypto.SHA256)
		require.NoError(t, err)
	case *ecdsa.PrivateKey:
		hash := map[int]crypto.Hash{256: crypto.SHA256, 384: crypto.SHA384, 521: crypto.SHA512}[key.Curve.Params().BitSize]
		size := (key.Curve.Params().BitSize + 7) / 8
		digest := hash.New()
		digest.Write([]byte(input))
		r, s, err := ecdsa.Sign(rand.Reader, key, digest.Sum(nil))
		require.NoError(t, err)
		signature = append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func encoded(t testing.TB, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	require.NoError(t, err)
	return string(text)
}

// objects are those of a cluster that doesn't change.
type objects struct {
	account, node presence.Object
	pod           presence.Pod
	state         presence.State
}

func (o *objects) ServiceAccount(namespace, name string) (presence.Object, bool) {
	return o.account, namespace == "foo" && name == "alice"
}
func (o *objects) Pod(namespace, name string) (presence.Pod, bool) {
	return o.pod, namespace == "foo" && name == "alice-1"
}
func (o *objects) Node(name string) (presence.Object, bool)        { return o.node, name == "node-1" }
func (o *objects) StateOf(presence.Kind, time.Time) presence.State { return o.state }
func keysOf(known map[string]signingKey) *keySet {
	return &keySet{issuer: tokenIssuer, keys: known, asked: localNow}
}

// localCase is a token, and what is known when it is judged: at first everything is good.
type localCase struct {
	header  map[string]any
	claims  map[string]any
	key     crypto.Signer
	known   *keySet
	objects *objects
	now     time.Time
	config  Config

	payload string // in place of claims
	token   func(string) string
}

func newLocalCase(key crypto.Signer) *localCase {
	algorithm := algorithmOf(key.Public())
	return &localCase{
		header: map[string]any{"alg": string(algorithm), "kid": "key-1"},
		claims: goodClaims(),
		key:    key,
		known:  keysOf(map[string]signingKey{"key-1": {algorithm, key.Public()}}),
		objects: &objects{
			account: presence.Object{UID: "sa-uid"}, node: presence.Object{UID: "node-uid"}, pod: presence.Pod{UID: "pod-uid"},
			state: presence.State{Listed: true, Synced: true, Heard: localNow},
		},
		now: localNow,
	}
}

// kubernetes are the claims about objects.
func (c *localCase) kubernetes() map[string]any { return c.claims["kubernetes.io"].(map[string]any) }

func (c *localCase) local() *Local {
	keys := newKeys(nil, nil, prometheus.NewRegistry())
	keys.current.Store(c.known)
	return NewLocal(c.config, newTestReviewer(c.config), keys, c.objects, prometheus.NewRegistry())
}

func (c *localCase) judge(t testing.TB) (*Caller, error) {
	payload := c.payload
	if payload == "" {
		payload = encoded(t, c.claims)
	}
	token := sealed(t, c.key, encoded(t, c.header), payload)
	if c.token != nil {
		token = c.token(token)
	}
	return c.local().judge(token, c.now)
}

func TestLocalJudge(t *testing.T) {
	p256 := ecKey(t, elliptic.P256())
	other := ecKey(t, elliptic.P256())
	whole := Caller{
		ID: alice, Namespace: "foo", ServiceAccount: "alice", ServiceAccountUID: "sa-uid",
		PodName: "alice-1", PodUID: "pod-uid", NodeName: "node-1", CredentialID: "JTI=1", Cluster: "Kubernetes",
	}
	type change = func(c *localCase)
	claim := func(name string, value any) change { return func(c *localCase) { c.claims[name] = value } }
	without := func(names ...string) change {
		return func(c *localCase) {
			maps.DeleteFunc(c.claims, func(k string, _ any) bool { return strings.Contains(strings.Join(names, " "), k) })
		}
	}
	about := func(name string, value any) change { return func(c *localCase) { c.kubernetes()[name] = value } }
	header := func(name string, value any) change { return func(c *localCase) { c.header[name] = value } }
	at := func(d time.Duration) change { return func(c *localCase) { c.now = localNow.Add(d) } }
	text := func(from, to string) change {
		return func(c *localCase) { c.payload = strings.Replace(encoded(t, c.claims), from, to, 1) }
	}
	altered := func(part int, alter func(string) string) change {
		return func(c *localCase) {
			c.token = func(token string) string {
				parts := strings.Split(token, ".")
				parts[part] = alter(parts[part])
				return strings.Join(parts, ".")
			}
		}
	}
	now := localNow.Unix()
	for _, row := range []struct {
		name   string
		change change
		caller func(*Caller) // nil where it isn't accepted
		doubt  doubt         // "" where it is refused for good
		want   kind
	}{
		{"a pod's", func(*localCase) {}, func(*Caller) {}, "", kind{}},
		{"with typ", header("typ", "JWT"), func(*Caller) {}, "", kind{}},
		{"bound to no node", func(c *localCase) { delete(c.kubernetes(), "node") }, func(c *Caller) { c.NodeName = "" }, "", kind{}},
		{"bound to a node only", func(c *localCase) { delete(c.kubernetes(), "pod") }, func(c *Caller) { c.PodName, c.PodUID = "", "" }, "", kind{}},
		{"bound to nothing", func(c *localCase) { delete(c.kubernetes(), "pod"); delete(c.kubernetes(), "node") },
			func(c *Caller) { c.PodName, c.PodUID, c.NodeName = "", "", "" }, "", kind{}},
		{"pod null", about("pod", nil), func(c *Caller) { c.PodName, c.PodUID = "", "" }, "", kind{}},
		{"a pod on a node that isn't known", about("node", map[string]any{"name": "gone", "uid": "x"}), func(c *Caller) { c.NodeName = "gone" }, "", kind{}},
		{"a pod on a node that wasn't there", about("node", map[string]any{"name": "node-1"}), func(*Caller) {}, "", kind{}},
		{"without an ID of its own", without("jti"), func(c *Caller) { c.CredentialID = "" }, "", kind{}},
		{"without warnafter", func(c *localCase) { delete(c.kubernetes(), "warnafter") }, func(*Caller) {}, "", kind{}},
		{"one audience of several", claim("aud", []any{"x", "istio-ca"}), func(*Caller) {}, "", kind{}},
		{"in its last second", claim("exp", now), func(*Caller) {}, "", kind{}},
		{"in its first second", func(c *localCase) { c.claims["nbf"], c.claims["iat"] = now, now }, func(*Caller) {}, "", kind{}},
		{"of a pod that will be gone", func(c *localCase) { c.objects.pod.DeletedAt = localNow.Add(time.Second) }, func(*Caller) {}, "", kind{}},
		{"in five minutes without a word", at(5 * time.Minute), func(*Caller) {}, "", kind{}},

		{"signed by another key", func(c *localCase) { c.key = other }, nil, "", kindTokenRejected},
		{"payload of another", altered(1, func(string) string {
			return base64.RawURLEncoding.EncodeToString([]byte(encoded(t, goodClaims()) + " "))
		}), nil, "", kindTokenRejected},
		{"signature too short", altered(2, func(s string) string { return s[:len(s)-2] }), nil, "", kindTokenRejected},
		{"signature of zeros", altered(2, func(string) string { return strings.Repeat("A", 86) }), nil, "", kindTokenRejected},
		{"expired long ago", claim("exp", now-121), nil, "", kindTokenRejected},
		{"other audience", claim("aud", []any{"x"}), nil, "", kindTokenAudience},
		{"other case of audience", claim("aud", []any{"Istio-CA"}), nil, "", kindTokenAudience},

		{"no shape", func(c *localCase) { c.token = func(string) string { return "a.b" } }, nil, doubtForm, kind{}},
		{"space at the end", func(c *localCase) { c.token = func(s string) string { return s + " " } }, nil, doubtForm, kind{}},
		{"header not canonical", altered(0, lastBit), nil, doubtForm, kind{}},
		{"signature not canonical", altered(2, lastBit), nil, doubtForm, kind{}},
		{"header no JSON", altered(0, func(string) string { return "AAAA" }), nil, doubtForm, kind{}},
		{"header with jwk", header("jwk", map[string]any{}), nil, doubtForm, kind{}},
		{"header with crit", header("crit", []any{"b64"}), nil, doubtForm, kind{}},
		{"header with b64", header("b64", false), nil, doubtForm, kind{}},
		{"header with another typ", header("typ", "at+jwt"), nil, doubtForm, kind{}},
		{"header with cty", header("cty", "JWT"), nil, doubtForm, kind{}},
		{"header twice", altered(0, func(string) string {
			return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","kid":"x","kid":"key-1"}`))
		}), nil, doubtForm, kind{}},
		{"header in capitals", altered(0, func(string) string {
			return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","KID":"key-1"}`))
		}), nil, doubtForm, kind{}},
		{"alg none", header("alg", "none"), nil, doubtAlgorithm, kind{}},
		{"alg HS256", header("alg", "HS256"), nil, doubtAlgorithm, kind{}},
		{"alg ES384", header("alg", "ES384"), nil, doubtAlgorithm, kind{}},
		{"alg in small letters", header("alg", "es256"), nil, doubtAlgorithm, kind{}},
		{"other key ID", header("kid", "key-2"), nil, doubtUnknownKey, kind{}},
		{"no key ID", func(c *localCase) { delete(c.header, "kid") }, nil, doubtUnknownKey, kind{}},
		{"keys not known", func(c *localCase) { c.known = nil }, nil, doubtNoKeys, kind{}},
		{"keys too old", func(c *localCase) { c.known.asked = localNow.Add(-5*time.Minute - 1) }, nil, doubtNoKeys, kind{}},
		{"other issuer", claim("iss", "https://other"), nil, doubtIssuer, kind{}},
		{"no issuer", without("iss"), nil, doubtIssuer, kind{}},
		{"no audience", without("aud"), nil, doubtClaims, kind{}},
		{"audience without a list", claim("aud", "istio-ca"), nil, doubtClaims, kind{}},
		{"audience null", claim("aud", []any{"istio-ca", nil}), nil, doubtClaims, kind{}},
		{"audience of a number", claim("aud", []any{"istio-ca", 1}), nil, doubtClaims, kind{}},
		{"expired a second ago", claim("exp", now-1), nil, doubtTime, kind{}},
		{"at the end of the tolerance", claim("exp", now-120), nil, doubtTime, kind{}},
		{"not valid yet", claim("nbf", now+1), nil, doubtTime, kind{}},
		{"given out in the future", claim("iat", now+1), nil, doubtTime, kind{}},
		{"no expiry", without("exp"), nil, doubtClaims, kind{}},
		{"no beginning", without("nbf"), nil, doubtClaims, kind{}},
		{"not given out", without("iat"), nil, doubtClaims, kind{}},
		{"expiry in text", claim("exp", "1"), nil, doubtClaims, kind{}},
		{"expiry with a fraction", claim("exp", float64(now)+0.5), nil, doubtClaims, kind{}},
		{"expiry beyond numbers", text(`"exp":`, `"exp":9999999999`), nil, doubtClaims, kind{}},
		{"a claim that isn't known", claim("act", "x"), nil, doubtClaims, kind{}},
		{"a claim twice", text(`"iss"`, `"sub":"x","iss"`), nil, doubtClaims, kind{}},
		{"a claim in capitals", text(`"sub"`, `"SUB"`), nil, doubtClaims, kind{}},
		{"no JSON", func(c *localCase) { c.payload = "x" }, nil, doubtClaims, kind{}},
		{"more than JSON", func(c *localCase) { c.payload = encoded(t, c.claims) + "x" }, nil, doubtClaims, kind{}},
		{"other subject", claim("sub", "system:serviceaccount:foo:bob"), nil, doubtClaims, kind{}},
		{"subject of another namespace", about("namespace", "bar"), nil, doubtClaims, kind{}},
		{"no namespace", func(c *localCase) { delete(c.kubernetes(), "namespace") }, nil, doubtClaims, kind{}},
		{"no service account", func(c *localCase) { delete(c.kubernetes(), "serviceaccount") }, nil, doubtClaims, kind{}},
		{"no UID", about("serviceaccount", map[string]any{"name": "alice"}), nil, doubtClaims, kind{}},
		{"pod without UID", about("pod", map[string]any{"name": "alice-1"}), nil, doubtClaims, kind{}},
		{"node without UID", func(c *localCase) { delete(c.kubernetes(), "pod"); about("node", map[string]any{"name": "x"})(c) }, nil, doubtClaims, kind{}},
		{"node without name", func(c *localCase) { delete(c.kubernetes(), "pod"); about("node", map[string]any{"uid": "x"})(c) }, nil, doubtClaims, kind{}},
		{"bound to a Secret", about("secret", map[string]any{"name": "x", "uid": "y"}), nil, doubtClaims, kind{}},
		{"bound to a webhook", about("validatingwebhookconfiguration", map[string]any{"name": "x", "uid": "y"}), nil, doubtClaims, kind{}},
		{"no claims of Kubernetes", without("kubernetes.io"), nil, doubtClaims, kind{}},
		{"objects not listed", func(c *localCase) { c.objects.state.Listed = false }, nil, doubtIndex, kind{}},
		{"objects too old", func(c *localCase) { c.objects.state.Heard = localNow.Add(-5*time.Minute - 1) }, nil, doubtIndex, kind{}},
		{"service account not known", func(c *localCase) {
			c.claims["sub"] = "system:serviceaccount:foo:bob"
			c.kubernetes()["serviceaccount"] = map[string]any{"name": "bob", "uid": "sa-uid"}
		}, nil, doubtAbsent, kind{}},
		{"service account made again", func(c *localCase) { c.objects.account.UID = "x" }, nil, doubtUID, kind{}},
		{"service account deleted", func(c *localCase) { c.objects.account.DeletedAt = localNow.Add(-1) }, nil, doubtDeleted, kind{}},
		{"pod not known", about("pod", map[string]any{"name": "alice-2", "uid": "pod-uid"}), nil, doubtAbsent, kind{}},
		{"pod made again", func(c *localCase) { c.objects.pod.UID = "x" }, nil, doubtUID, kind{}},
		{"pod deleted", func(c *localCase) { c.objects.pod.DeletedAt = localNow.Add(-1) }, nil, doubtDeleted, kind{}},
		{"node made again", func(c *localCase) { delete(c.kubernetes(), "pod"); c.objects.node.UID = "x" }, nil, doubtUID, kind{}},
		{"node not known", func(c *localCase) {
			delete(c.kubernetes(), "pod")
			about("node", map[string]any{"name": "x", "uid": "node-uid"})(c)
		}, nil, doubtAbsent, kind{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newLocalCase(p256)
			row.change(c)
			caller, err := c.judge(t)
			switch {
			case row.caller != nil:
				require.NoError(t, err)
				want := whole
				row.caller(&want)
				assert.Equal(t, &want, caller)
			case row.doubt != "":
				assert.Equal(t, row.doubt, err)
				assert.Nil(t, caller)
			default:
				requireKind(t, row.want, err)
				assert.Nil(t, caller)
			}
		})
	}
}

// lastBit changes a bit of base64url's last character that stands for nothing.
func lastBit(part string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	at := strings.IndexByte(alphabet, part[len(part)-1])
	return part[:len(part)-1] + alphabet[at^1:][:1]
}

// Each kind of key has one algorithm.
func TestLocalJudge_Algorithms(t *testing.T) {
	for name, key := range map[string]crypto.Signer{
		"RS256": rsaKey(t, 2048), "ES256": ecKey(t, elliptic.P256()), "ES384": ecKey(t, elliptic.P384()), "ES512": ecKey(t, elliptic.P521()),
	} {
		assert.Equal(t, name, string(algorithmOf(key.Public())))
		caller, err := newLocalCase(key).judge(t)
		require.NoError(t, err, name)
		assert.Equal(t, alice, caller.ID)
		c := newLocalCase(key)
		c.header["alg"] = map[string]string{"RS256": "PS256", "ES256": "RS256", "ES384": "ES256", "ES512": "ES384"}[name]
		_, err = c.judge(t)
		assert.Equal(t, doubtAlgorithm, err, name)
	}
	assert.Empty(t, algorithmOf(ecKey(t, elliptic.P224()).Public()))
	assert.Empty(t, algorithmOf([]byte("secret")))
}

func TestTokenConfig_Local(t *testing.T) {
	for _, row := range []struct {
		c       TokenConfig
		local   bool
		problem string
	}{
		{TokenConfig{}, false, ""},
		{TokenConfig{Authentication: "review"}, false, ""},
		{TokenConfig{Authentication: "local", MaxStale: setting.DurationOf(time.Hour)}, true, ""},
		{TokenConfig{Authentication: "Local"}, false, `ca.token.authentication: "Local" is no way to authenticate`},
		{TokenConfig{MaxStale: setting.DurationOf(time.Minute)}, false, "ca.token.maxStale"}, // bookmarks come each minute
		{TokenConfig{MaxStale: setting.DurationOf(2 * time.Hour)}, false, "ca.token.maxStale"},
	} {
		problems := setting.NewProblems()
		row.c.Validate(problems.At("ca").At("token"))
		assert.Equal(t, row.local, row.c.Local())
		if row.problem == "" {
			assert.NoError(t, problems.Err())
		} else {
			assert.ErrorContains(t, problems.Err(), row.problem)
		}
	}
	assert.Equal(t, 5*time.Minute, TokenConfig{}.withDefaults().MaxStale.Or(0))
}

// What is decided here is counted; what isn't goes to the reviewer, whose word counts.
func TestLocalAuthenticate(t *testing.T) {
	c := newLocalCase(ecKey(t, elliptic.P256()))
	// The reviewer's caches answer for the API server.
	now := time.Now()
	c.claims["exp"], c.claims["nbf"], c.claims["iat"] = now.Unix()+600, now.Unix()-60, now.Unix()-60
	c.known.asked, c.objects.state.Heard = now, now
	good := sealed(t, c.key, encoded(t, c.header), encoded(t, c.claims))
	c.header["kid"] = "key-2"
	unusual := sealed(t, c.key, encoded(t, c.header), encoded(t, c.claims))
	l := c.local()
	counted := func(result, cause string) float64 {
		var m dto.Metric
		require.NoError(t, l.results.WithLabelValues(result, cause).Write(&m))
		return m.GetCounter().GetValue()
	}

	caller, err := l.Authenticate(t.Context(), Credentials{Token: good})
	require.NoError(t, err)
	assert.Equal(t, alice, caller.ID)
	assert.InDelta(t, 1, counted("accepted", ""), 0)

	bad := good[:len(good)-8] + "AAAAAAAA"
	_, err = l.Authenticate(t.Context(), Credentials{Token: bad})
	requireKind(t, kindTokenRejected, err)
	assert.InDelta(t, 1, counted("rejected", "token_rejected"), 0)

	_, err = l.Authenticate(t.Context(), Credentials{Token: good, Cluster: "elsewhere"})
	requireKind(t, kindUnknownCluster, err)

	reviewed := &Caller{ID: bob}
	l.reviewer.accepted.Add(l.reviewer.key(unusual), reviewed, time.Minute)
	caller, err = l.Authenticate(t.Context(), Credentials{Token: unusual})
	require.NoError(t, err)
	assert.Same(t, reviewed, caller)
	l.reviewer.accepted.Remove(l.reviewer.key(unusual))
	l.reviewer.rejected.Add(l.reviewer.key(unusual), error(kindReviewFailed.because("the API server is away")), time.Minute)
	caller, err = l.Authenticate(t.Context(), Credentials{Token: unusual})
	requireKind(t, kindReviewFailed, err)
	assert.Nil(t, caller)
	assert.InDelta(t, 2, counted("reviewed", "unknown_key"), 0)
	assert.Len(t, l.keys.wanted, 1, "the keys are asked for")
}

// FuzzLocalToken: whatever is done to a good token, it isn't accepted unless it says, signed, what the good one said.
func FuzzLocalToken(f *testing.F) {
	ec, rsa := newLocalCase(ecKey(f, elliptic.P256())), newLocalCase(rsaKey(f, 2048))
	var tokens []string
	var locals []*Local
	for _, c := range []*localCase{ec, rsa} {
		tokens = append(tokens, sealed(f, c.key, encoded(f, c.header), encoded(f, c.claims)))
		locals = append(locals, c.local())
	}
	public, err := json.Marshal(jose.JSONWebKey{Key: ec.key.Public(), KeyID: "key-1"})
	require.NoError(f, err)
	encode := base64.RawURLEncoding.EncodeToString
	for _, header := range []string{
		`{"alg":"ES256","kid":"key-1"}`, `{"alg":"none","kid":"key-1"}`, `{"alg":"HS256","kid":"key-1"}`, `{"alg":"ES256"}`,
		`{"alg":"ES256","kid":"key-1","jwk":` + string(public) + `}`, `{"alg":"ES256","kid":"key-1","crit":["b64"],"b64":false}`,
		`{"alg":"none","alg":"ES256","kid":"key-1"}`, `{"alg":"RS256","kid":"key-1","typ":"JWT"}`,
	} {
		f.Add([]byte(header), []byte(encoded(f, ec.claims)), []byte{}, 0, byte(1))
		f.Add([]byte(header), []byte(strings.ReplaceAll(encoded(f, ec.claims), "alice", "bob")), []byte("x"), 100, byte(0x80))
	}
	f.Fuzz(func(t *testing.T, header, payload, signature []byte, at int, flip byte) {
		for n, good := range tokens {
			parts := strings.Split(good, ".")
			flipped := []byte(good)
			if at >= 0 {
				flipped[at%len(good)] ^= flip
			}
			for _, token := range []string{
				string(flipped),
				encode(header) + "." + parts[1] + "." + parts[2],
				parts[0] + "." + encode(payload) + "." + parts[2],
				parts[0] + "." + parts[1] + "." + encode(signature),
				encode(header) + "." + encode(payload) + "." + encode(signature),
				string(header) + "." + string(payload) + "." + string(signature),
				good + string(payload),
			} {
				caller, err := locals[n].judge(token, localNow)
				if err == nil {
					// ECDSA signatures of others can't be made from one, and nothing else is in a token.
					require.Equal(t, good, token)
					require.Equal(t, alice, caller.ID)
				} else if token == good {
					require.NoError(t, err)
				}
			}
		}
	})
}

func BenchmarkLocalJudge(b *testing.B) {
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(b, elliptic.P256()), "RSA-2048": rsaKey(b, 2048)} {
		b.Run(name, func(b *testing.B) {
			c := newLocalCase(key)
			token, l := sealed(b, key, encoded(b, c.header), encoded(b, c.claims)), c.local()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.judge(token, localNow); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
