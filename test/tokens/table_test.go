package tokens

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/ca"
)

// row is one token, and how it is decided about: accepted or rejected without the API server, or reviewed; "" where that
// may be either.
type row struct{ name, token, how string }

const (
	accepted = "accepted"
	rejected = "rejected"
	reviewed = "reviewed"
)

// decision is what one of the judges says: a caller, or a refusal with a code.
type decision struct {
	caller *ca.Caller
	code   codes.Code
}

func decide(t testing.TB, judge ca.Authenticator, token string) decision {
	t.Helper()
	caller, err := judge.Authenticate(t.Context(), ca.Credentials{Token: token, Address: "192.0.2.1"})
	return decision{caller, status.Code(err)}
}

// requireSame has both judge a token, the API server before and after the other, so that neither a second that passes
// between them nor an answer that the API server keeps for a while makes a difference. It returns what they say.
func requireSame(t testing.TB, token string) decision {
	t.Helper()
	for range 10 {
		before, got, after := decide(t, reference, token), decide(t, local, token), decide(t, reference, token)
		if !assert.ObjectsAreEqual(before, after) {
			continue
		}
		if before.code != got.code && (before.code == codes.Unavailable || got.code == codes.Unavailable) {
			continue // a busy machine took longer than a review may take
		}
		if got.caller != nil && before.caller == nil {
			t.Fatalf("accepted as %+v, the API server refuses it (%s): %s", got.caller, before.code, token)
		}
		require.Equal(t, before, got, "%s", token)
		require.Equal(t, got.caller != nil, got.code == codes.OK)
		return got
	}
	t.Fatalf("the API server doesn't come to one decision: %s", token)
	return decision{}
}

// Whatever is in a token, it is decided as the API server decides.
func TestDecisionsAreTheAPIServers(t *testing.T) {
	w := newWorld(t)
	var rows []row
	for _, group := range []struct {
		name string
		rows []row
	}{
		{"issued", issued(t, w)}, {"keys", byKeys(t, w)}, {"claims", claimsChanged(t, w)}, {"header", headersChanged(t, w)}, {"form", forms(t, w)},
		{"time", times(t, w)}, {"objects", objectsChanged(t, w)}, {"others", others(t, w)},
	} {
		for _, r := range group.rows {
			rows = append(rows, row{group.name + ": " + r.name, r.token, r.how})
		}
	}
	first := requireSame(t, rows[0].token)
	require.NotNil(t, first.caller, "the rows change a token that is good")
	awaitLocal(t, rows[0].token)

	seen := map[string]string{}
	start := results(t)
	sum, good := 0, 0
	for _, r := range rows {
		require.Empty(t, seen[r.token], "%s is the token of %s", r.name, seen[r.token])
		seen[r.token] = r.name
		before := results(t)
		ok := t.Run(r.name, func(t *testing.T) {
			got := requireSame(t, r.token)
			if got.caller != nil {
				good++
			}
			after := results(t)
			if r.how != "" {
				assert.Greater(t, after[r.how], before[r.how], "it has to be %s, got %+v", r.how, got)
				delete(before, r.how)
				delete(after, r.how)
				assert.Equal(t, before, after, "it has to be %s", r.how)
			}
		})
		if ok {
			sum++
		}
	}
	end := results(t)
	t.Logf("%d tokens of %d decided as the API server does, %d of them accepted; by itself accepted %d and rejected %d, reviewed %d: %v", sum, len(rows), good,
		end[accepted]-start[accepted], end[rejected]-start[rejected], end[reviewed]-start[reviewed], causes(t))
	assert.GreaterOrEqual(t, len(rows), 200)
}

// issued are the API server's own.
func issued(t *testing.T, w *world) []row {
	account := w.newAccount(t)
	dotted := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "with.dots-and-dashes"}}
	w.create(t, dotted)
	w.awaitAccount(t, dotted.Name, string(dotted.UID))
	nowhere, err := plane.Pod(t.Context(), w.namespace, "nowhere", "web", "no-such-node")
	require.NoError(t, err)
	w.awaitKnown(t, nowhere)
	return []row{
		{"of a pod", w.token(t, "web", w.pod), accepted},
		{"of a pod, again", w.token(t, "web", w.pod), accepted},
		{"of a pod whose node isn't there", w.token(t, "web", nowhere), accepted},
		{"bound to nothing", w.token(t, account.Name, nil), accepted},
		{"of an account with dots", w.token(t, dotted.Name, nil), accepted},
		{"of the account default", w.token(t, "default", nil), accepted},
		{"bound to a node", w.token(t, "web", w.node), accepted},
		{"bound to a Secret", w.token(t, "web", w.secret), reviewed},
		{"two audiences, the second ours", w.token(t, "web", w.pod, "other", "istio-ca"), accepted},
		{"many audiences", w.token(t, "web", w.pod, "a", "b", "c", "istio-ca", "d"), accepted},
		{"other audience", w.token(t, "web", w.pod, "other"), rejected},
		{"two other audiences", w.token(t, "web", nil, "other", "istio-ca2"), rejected},
		{"the API server's audience", w.token(t, "web", w.pod, "https://kubernetes.default.svc.cluster.local"), rejected},
		{"other audience, bound to a Secret", w.token(t, "web", w.secret, "other"), reviewed},
	}
}

// byKeys are signed by all kinds of keys and algorithms.
func byKeys(t *testing.T, w *world) []row {
	good := opened(t, w.token(t, "web", w.pod))
	var rows []row
	signed := func(name, how string, change func(*token)) {
		k := *good
		k.header, k.claims = maps.Clone(good.header), maps.Clone(good.claims)
		change(&k)
		rows = append(rows, row{name, k.sealed(t), how})
	}
	for _, by := range []struct {
		name string
		key  crypto.Signer
	}{{"P-256", keys.p256}, {"P-384", keys.p384}, {"P-521", keys.p521}, {"RSA", keys.rsa}} {
		own := algorithmOf(by.key)
		for _, algorithm := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "HS256", "HS384", "HS512", "none"} {
			how := reviewed
			if algorithm == own {
				how = accepted
			}
			signed(by.name+" with "+algorithm, how, func(k *token) {
				k.key, k.header = by.key, map[string]any{"alg": algorithm, "kid": keyID(by.key)}
			})
		}
		signed(by.name+" by the ID of another key", "", func(k *token) {
			k.key, k.header = by.key, map[string]any{"alg": own, "kid": keyID(keys.foreign)}
		})
		signed("foreign key by the ID of "+by.name, "", func(k *token) {
			k.key, k.header = keys.foreign, map[string]any{"alg": own, "kid": keyID(by.key)}
		})
		signed(by.name+" without an ID", reviewed, func(k *token) { k.key, k.header = by.key, map[string]any{"alg": own} })
	}
	signed("foreign key", reviewed, func(k *token) {
		k.key, k.header = keys.foreign, map[string]any{"alg": "ES256", "kid": keyID(keys.foreign)}
	})
	signed("foreign key, our ID", rejected, func(k *token) {
		k.key, k.header = keys.foreign, map[string]any{"alg": "ES256", "kid": keyID(keys.p256)}
	})
	signed("P-256 by the ID of P-384", reviewed, func(k *token) { k.header = map[string]any{"alg": "ES256", "kid": keyID(keys.p384)} })
	return rows
}

// claimsChanged are signed by the API server's key, each with one claim changed.
func claimsChanged(t *testing.T, w *world) []row {
	var rows []row
	good := opened(t, w.token(t, "web", w.pod))
	good.kubernetes()["warnafter"] = time.Now().Unix() + 1800
	onNode := opened(t, w.token(t, "web", w.node))
	rows = append(rows, row{"with warnafter", good.sealed(t), accepted})

	for _, from := range []struct {
		name  string
		good  *token
		paths []string
	}{
		{"pod's ", good, []string{
			"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "kubernetes.io", "kubernetes.io/namespace", "kubernetes.io/serviceaccount",
			"kubernetes.io/serviceaccount/name", "kubernetes.io/serviceaccount/uid", "kubernetes.io/pod", "kubernetes.io/pod/name", "kubernetes.io/pod/uid",
			"kubernetes.io/node", "kubernetes.io/node/name", "kubernetes.io/node/uid", "kubernetes.io/warnafter",
		}},
		{"node's ", onNode, []string{"kubernetes.io/node", "kubernetes.io/node/name", "kubernetes.io/node/uid"}},
	} {
		whole := text(t, from.good.claims)
		for _, path := range from.paths {
			keysOf := strings.Split(path, "/")
			last := keysOf[len(keysOf)-1]
			change := func(name string, alter func(in map[string]any, value any)) {
				k := *from.good
				k.claims = decoded(t, encode([]byte(whole)))
				in := k.claims
				for _, key := range keysOf[:len(keysOf)-1] {
					in = in[key].(map[string]any)
				}
				alter(in, in[last])
				rows = append(rows, row{from.name + path + " " + name, k.sealed(t), ""})
			}
			set := func(name string, value any) { change(name, func(in map[string]any, _ any) { in[last] = value }) }
			change("left out", func(in map[string]any, _ any) { delete(in, last) })
			set("null", nil)
			set("empty", "")
			set("a number", 7)
			set("an object", map[string]any{"name": "x", "uid": "y"})
			change("in capitals", func(in map[string]any, value any) { delete(in, last); in[strings.ToUpper(last)] = value })
			change("in a list", func(in map[string]any, value any) { in[last] = []any{value} })
			change("changed", func(in map[string]any, value any) {
				switch is := value.(type) {
				case string:
					in[last] = is + "x"
				case json.Number:
					n, _ := is.Int64()
					in[last] = n + 1_000_000
				case []any:
					in[last] = []any{"istio-cb"}
				case map[string]any:
					in[last] = with(is, "name", "other")
				}
			})
		}
	}

	// What JSON allows besides.
	whole := text(t, good.claims)
	for _, text := range []struct{ name, payload, how string }{
		{"sub twice, the first good", strings.Replace(whole, `"sub":`, `"sub":"system:serviceaccount:kube-system:default","sub":`, 1), reviewed},
		{"iss twice", strings.Replace(whole, `"iss":`, `"iss":"x","iss":`, 1), reviewed},
		{"pod twice", strings.Replace(whole, `"pod":`, `"pod":{"name":"x","uid":"y"},"pod":`, 1), reviewed},
		{"serviceaccount merged from two", strings.Replace(whole, `"serviceaccount":`, `"serviceaccount":{"name":"web"},"serviceaccount":`, 1), reviewed},
		{"kubernetes.io twice", strings.Replace(whole, `"kubernetes.io":`, `"kubernetes.io":{},"kubernetes.io":`, 1), reviewed},
		{"an escape in a value", strings.Replace(whole, `"web"`, `"\u0077eb"`, 1), accepted},
		{"an escape in a name", strings.Replace(whole, `"sub"`, `"s\u0075b"`, 1), accepted},
		{"half a surrogate", strings.Replace(whole, `"web"`, `"web\ud800"`, 1), reviewed},
		{"no UTF-8", strings.Replace(whole, `"web"`, "\"web\xff\"", 1), reviewed},
		{"a byte order mark", "\ufeff" + whole, reviewed},
		{"space", " " + strings.ReplaceAll(whole, ",", " ,\n") + "\t", accepted},
		{"another value after it", whole + "{}", reviewed},
		{"a comment", whole + "//", reviewed},
		{"a comma too many", strings.Replace(whole, `{`, `{,`, 1), reviewed},
		{"a list", "[" + whole + "]", reviewed},
		{"a string", `"x"`, reviewed},
		{"nothing", "{}", reviewed},
		{"null", "null", reviewed},
		{"a claim of others", strings.Replace(whole, `{`, `{"act":{"sub":"x"},`, 1), reviewed},
		{"claims of a Secret", strings.Replace(whole, `"pod":`, fmt.Sprintf(`"secret":{"name":"bound","uid":"%s"},"pod":`, w.secret.UID), 1), reviewed},
		{"claims of a webhook", strings.Replace(whole, `"pod":`, `"validatingwebhookconfiguration":{"name":"x","uid":"y"},"pod":`, 1), reviewed},
		{"deep", strings.Replace(whole, `{`, `{"deep":`+strings.Repeat("[", 5000)+strings.Repeat("]", 5000)+`,`, 1), reviewed},
		{"an audience of text", strings.Replace(whole, `["istio-ca"]`, `"istio-ca"`, 1), reviewed},
		{"audiences of several kinds", strings.Replace(whole, `["istio-ca"]`, `["istio-ca",1]`, 1), reviewed},
		{"audience null", strings.Replace(whole, `["istio-ca"]`, `["istio-ca",null]`, 1), reviewed},
		{"no audience", strings.Replace(whole, `["istio-ca"]`, `[]`, 1), reviewed},
		{"audience with space", strings.Replace(whole, `["istio-ca"]`, `["istio-ca "]`, 1), rejected},
		{"the same audience twice", strings.Replace(whole, `["istio-ca"]`, `["istio-ca","istio-ca"]`, 1), accepted},
	} {
		k := *good
		k.payload = text.payload
		rows = append(rows, row{"JSON: " + text.name, k.sealed(t), text.how})
	}
	// As good ones, but with the signature of another payload.
	for _, claim := range []string{"iss", "sub", "aud", "exp", "jti"} {
		parts := strings.Split(w.token(t, "web", w.pod), ".")
		claims := decoded(t, parts[1])
		delete(claims, claim)
		rows = append(rows, row{"without " + claim + ", and not signed so", parts[0] + "." + encode([]byte(text(t, claims))) + "." + parts[2], rejected})
	}
	return rows
}

// headersChanged are signed by the API server's key, each with another header.
func headersChanged(t *testing.T, w *world) []row {
	good := opened(t, w.token(t, "web", w.pod))
	id := keyID(keys.p256)
	der, err := x509.MarshalPKIXPublicKey(keys.foreign.Public())
	require.NoError(t, err)
	var rows []row
	for _, h := range []struct{ name, header, how string }{
		{"the other way round", `{"kid":"` + id + `","alg":"ES256"}`, accepted},
		{"with space", `{ "alg" : "ES256",` + "\n\t" + `"kid":"` + id + `" }`, accepted},
		{"typ", `{"alg":"ES256","kid":"` + id + `","typ":"JWT"}`, accepted},
		{"typ in small letters", `{"alg":"ES256","kid":"` + id + `","typ":"jwt"}`, reviewed},
		{"typ at+jwt", `{"alg":"ES256","kid":"` + id + `","typ":"at+jwt"}`, reviewed},
		{"typ null", `{"alg":"ES256","kid":"` + id + `","typ":null}`, ""},
		{"typ a number", `{"alg":"ES256","kid":"` + id + `","typ":1}`, reviewed},
		{"cty", `{"alg":"ES256","kid":"` + id + `","cty":"JWT"}`, reviewed},
		{"zip", `{"alg":"ES256","kid":"` + id + `","zip":"DEF"}`, reviewed},
		{"crit b64", `{"alg":"ES256","kid":"` + id + `","crit":["b64"],"b64":true}`, reviewed},
		{"crit b64 false", `{"alg":"ES256","kid":"` + id + `","crit":["b64"],"b64":false}`, reviewed},
		{"b64 false", `{"alg":"ES256","kid":"` + id + `","b64":false}`, reviewed},
		{"crit exp", `{"alg":"ES256","kid":"` + id + `","crit":["exp"],"exp":1}`, reviewed},
		{"crit empty", `{"alg":"ES256","kid":"` + id + `","crit":[]}`, reviewed},
		{"crit a string", `{"alg":"ES256","kid":"` + id + `","crit":"b64"}`, reviewed},
		{"nonce", `{"alg":"ES256","kid":"` + id + `","nonce":"x"}`, reviewed},
		{"jku", `{"alg":"ES256","kid":"` + id + `","jku":"https://example.invalid/jwks"}`, reviewed},
		{"x5u", `{"alg":"ES256","kid":"` + id + `","x5u":"https://example.invalid/x"}`, reviewed},
		{"x5c", `{"alg":"ES256","kid":"` + id + `","x5c":["` + base64.StdEncoding.EncodeToString(der) + `"]}`, reviewed},
		{"x5t", `{"alg":"ES256","kid":"` + id + `","x5t":"x"}`, reviewed},
		{"jwk that is none", `{"alg":"ES256","kid":"` + id + `","jwk":{}}`, reviewed},
		{"epk", `{"alg":"ES256","kid":"` + id + `","epk":{}}`, reviewed},
		{"enc", `{"alg":"ES256","kid":"` + id + `","enc":"A128GCM"}`, reviewed},
		{"something else", `{"alg":"ES256","kid":"` + id + `","x":1}`, reviewed},
		{"alg in small letters", `{"alg":"es256","kid":"` + id + `"}`, reviewed},
		{"alg with an escape", `{"alg":"ES\u0032\u00356","kid":"` + id + `"}`, accepted},
		{"alg by an escaped name", `{"\u0061lg":"ES256","kid":"` + id + `"}`, accepted},
		{"no alg", `{"kid":"` + id + `"}`, reviewed},
		{"alg null", `{"alg":null,"kid":"` + id + `"}`, reviewed},
		{"alg empty", `{"alg":"","kid":"` + id + `"}`, reviewed},
		{"alg None", `{"alg":"None","kid":"` + id + `"}`, reviewed},
		{"alg a number", `{"alg":256,"kid":"` + id + `"}`, reviewed},
		{"alg a list", `{"alg":["ES256"],"kid":"` + id + `"}`, reviewed},
		{"alg twice", `{"alg":"none","alg":"ES256","kid":"` + id + `"}`, reviewed},
		{"alg EdDSA", `{"alg":"EdDSA","kid":"` + id + `"}`, reviewed},
		{"ALG", `{"ALG":"ES256","kid":"` + id + `"}`, reviewed},
		{"kid twice", `{"alg":"ES256","kid":"x","kid":"` + id + `"}`, reviewed},
		{"kid empty", `{"alg":"ES256","kid":""}`, reviewed},
		{"kid null", `{"alg":"ES256","kid":null}`, reviewed},
		{"kid a number", `{"alg":"ES256","kid":1}`, reviewed},
		{"kid with more", `{"alg":"ES256","kid":"` + id + `="}`, reviewed},
		{"kid a path", `{"alg":"ES256","kid":"../../etc/passwd"}`, reviewed},
		{"KID", `{"alg":"ES256","KID":"` + id + `"}`, reviewed},
		{"nothing", `{}`, reviewed},
		{"null", `null`, reviewed},
		{"a list", `[]`, reviewed},
		{"no JSON", `x`, reviewed},
		{"more than one value", `{"alg":"ES256","kid":"` + id + `"}{}`, reviewed},
	} {
		k := *good
		k.headers = h.header
		rows = append(rows, row{h.name, k.sealed(t), h.how})
	}
	// The attacker's own key, in the header of what it has signed.
	coordinates := keys.foreign.Public().(interface{ Bytes() ([]byte, error) })
	point, err := coordinates.Bytes()
	require.NoError(t, err)
	k := *good
	k.key = keys.foreign
	jwk := `{"kty":"EC","crv":"P-256","x":"` + encode(point[1:33]) + `","y":"` + encode(point[33:]) + `"}`
	k.headers = `{"alg":"ES256","kid":"` + id + `","jwk":` + jwk + `}`
	rows = append(rows, row{"jwk of who signed", k.sealed(t), reviewed})
	k.headers = `{"alg":"ES256","jwk":` + jwk + `}`
	rows = append(rows, row{"jwk of who signed, without kid", k.sealed(t), reviewed})
	k.key = keys.p256
	k.headers = `{"alg":"ES256","kid":"` + id + `","jwk":` + jwk + `}`
	rows = append(rows, row{"jwk of another, signed well", k.sealed(t), reviewed})
	return rows
}

// forms are good tokens in another form.
func forms(t *testing.T, w *world) []row {
	var rows []row
	alter := func(name, how string, change func(parts []string) string) {
		parts := strings.Split(w.token(t, "web", w.pod), ".")
		rows = append(rows, row{name, change(parts), how})
	}
	join := func(parts ...string) string { return strings.Join(parts, ".") }
	alter("header not canonical", "", func(p []string) string { return join(lastBit(p[0]), p[1], p[2]) })
	alter("payload not canonical", "", func(p []string) string { return join(p[0], lastBit(p[1]), p[2]) })
	alter("signature not canonical", reviewed, func(p []string) string { return join(p[0], p[1], lastBit(p[2])) })
	alter("padding", reviewed, func(p []string) string { return join(p[0], p[1], p[2]+"==") })
	alter("padding of the header", reviewed, func(p []string) string { return join(p[0]+"=", p[1], p[2]) })
	alter("standard base64", "", func(p []string) string {
		return strings.NewReplacer("-", "+", "_", "/").Replace(join(p...))
	})
	alter("space in front", reviewed, func(p []string) string { return " " + join(p...) })
	alter("space at the end", reviewed, func(p []string) string { return join(p...) + " " })
	alter("two words", reviewed, func(p []string) string { return join(p...) + " x" })
	alter("new line at the end", reviewed, func(p []string) string { return join(p...) + "\n" })
	alter("new line in the payload", reviewed, func(p []string) string { return join(p[0], p[1][:20]+"\n"+p[1][20:], p[2]) })
	alter("tab in the signature", reviewed, func(p []string) string { return join(p[0], p[1], p[2][:20]+"\t"+p[2][20:]) })
	alter("space in the header", reviewed, func(p []string) string { return join(p[0][:9]+" "+p[0][9:], p[1], p[2]) })
	alter("zero byte", reviewed, func(p []string) string { return join(p...) + "\x00" })
	alter("not ASCII", reviewed, func(p []string) string { return join(p...) + "\u00e4" })
	alter("four parts", reviewed, func(p []string) string { return join(p[0], p[1], p[2], p[2]) })
	alter("two parts", reviewed, func(p []string) string { return join(p[0], p[1]) })
	alter("no signature", reviewed, func(p []string) string { return join(p[0], p[1], "") })
	alter("no payload", reviewed, func(p []string) string { return join(p[0], "", p[2]) })
	alter("no header", reviewed, func(p []string) string { return join("", p[1], p[2]) })
	alter("only dots", reviewed, func([]string) string { return ".." })
	alter("signature too short", rejected, func(p []string) string { return join(p[0], p[1], p[2][:84]) })
	alter("signature too long", rejected, func(p []string) string { return join(p[0], p[1], encode([]byte(strings.Repeat("x", 66)))) })
	alter("signature of zeros", rejected, func(p []string) string { return join(p[0], p[1], strings.Repeat("A", 86)) })
	alter("signature in DER", rejected, func(p []string) string {
		return join(p[0], p[1], encode(append([]byte{0x30, 0x44, 2, 0x20}, make([]byte, 66)...)))
	})
	alter("signature of another", rejected, func(p []string) string {
		return join(p[0], p[1], strings.Split(w.token(t, "web", nil), ".")[2])
	})
	alter("payload of another", rejected, func(p []string) string {
		return join(p[0], strings.Split(w.token(t, "web", nil), ".")[1], p[2])
	})
	alter("JSON serialisation", reviewed, func(p []string) string {
		return fmt.Sprintf(`{"payload":"%s","protected":"%s","signature":"%s"}`, p[1], p[0], p[2])
	})
	alter("JSON serialisation with signatures", reviewed, func(p []string) string {
		return fmt.Sprintf(`{"payload":"%s","signatures":[{"protected":"%s","signature":"%s"}]}`, p[1], p[0], p[2])
	})
	alter("Bearer", reviewed, func(p []string) string { return "Bearer " + join(p...) })
	nested := opened(t, w.token(t, "web", w.pod))
	nested.payload = w.token(t, "web", w.pod)
	rows = append(rows, row{"a token in a token", nested.sealed(t), reviewed})
	nested.payload = text(t, w.token(t, "web", w.pod))
	rows = append(rows, row{"a token as text in a token", nested.sealed(t), reviewed})
	for _, size := range []int{10 << 10, 20 << 10, 200 << 10} {
		large := opened(t, w.token(t, "web", w.pod))
		large.claims["padding"] = strings.Repeat("x", size)
		rows = append(rows, row{fmt.Sprintf("%d KiB", size>>10), large.sealed(t), reviewed})
		large = opened(t, w.token(t, "web", w.pod))
		large.claims["jti"] = strings.Repeat("x", size)
		rows = append(rows, row{fmt.Sprintf("an ID of %d KiB", size>>10), large.sealed(t), ""})
	}
	many := opened(t, w.token(t, "web", w.pod))
	audiences := []any{"istio-ca"}
	for n := range 400 {
		audiences = append(audiences, fmt.Sprint("audience-", n))
	}
	many.claims["aud"] = audiences
	rows = append(rows, row{"400 audiences", many.sealed(t), accepted})
	return rows
}

// times are good tokens at other times. None is so near to a limit that a slow machine could make a difference, but for
// those that are said to be decided in either way.
func times(t *testing.T, w *world) []row {
	good := opened(t, w.token(t, "web", w.pod))
	now := time.Now().Unix()
	var rows []row
	add := func(name, how string, change func(claims map[string]any)) {
		k := *good
		k.claims = with(good.claims, "jti", rand.String(16))
		change(k.claims)
		rows = append(rows, row{name, k.sealed(t), how})
	}
	for _, after := range []int64{-1_000_000, -3600, -600, -180, -122, -61, -60, -59, -58, -30, -2, -1, 0, 1, 2, 3, 59, 61} {
		how := ""
		if after <= -180 {
			how = rejected
		}
		add(fmt.Sprintf("expires at %+ds", after), how, func(c map[string]any) { c["exp"] = now + after })
	}
	for _, after := range []int64{-1_000_000, -1, 0, 1, 5, 30, 59, 60, 61, 62, 65, 600, 1_000_000} {
		for _, claim := range []string{"nbf", "iat"} {
			how := ""
			if after >= 600 {
				how = reviewed
			}
			add(fmt.Sprintf("%s at %+ds", claim, after), how, func(c map[string]any) { c[claim] = now + after })
		}
	}
	for _, claim := range []string{"exp", "nbf", "iat"} {
		for _, number := range []string{
			"0", "-1", "1e3", fmt.Sprint(now, ".5"), fmt.Sprint(now+100, ".9"), fmt.Sprintf("%de2", now), "4e9", "1e300", "-1e300", "9223372036854775807", "-9223372036854775808",
			"9223372036854775808", "18446744073709551616", "1" + strings.Repeat("0", 400), "1e999", "0x7fffffff", "1_000_000", "+1", "01", "Infinity", "true",
			fmt.Sprintf(`"%d"`, now), `"1e9"`, "[1]",
		} {
			k := *good
			whole := text(t, with(with(good.claims, "jti", rand.String(16)), claim, "HERE"))
			k.payload = strings.Replace(whole, `"HERE"`, number, 1)
			rows = append(rows, row{fmt.Sprintf("%s %.40s", claim, number), k.sealed(t), ""})
		}
	}
	return rows
}

// objectsChanged are tokens of objects that aren't what they were. The API server hasn't seen the tokens before, since it
// remembers for ten seconds those that it has accepted.
func objectsChanged(t *testing.T, w *world) []row {
	var rows []row
	ghost := opened(t, w.token(t, "web", w.pod))
	rows = append(rows, row{"before", ghost.sealed(t), accepted})

	account := w.newAccount(t)
	rows = append(rows, row{"deleted service account", w.token(t, account.Name, nil), reviewed})
	w.remove(t, account)
	w.awaitAccount(t, account.Name, "")

	account = w.newAccount(t)
	rows = append(rows, row{"service account that was made again", w.token(t, account.Name, nil), reviewed})
	w.remove(t, account)
	again := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: account.Name}}
	w.create(t, again)
	w.awaitAccount(t, account.Name, string(again.UID))
	rows = append(rows, row{"the new one", w.token(t, account.Name, nil), accepted})

	leaving := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "leaving", Finalizers: []string{"signet.dev/test"}}}
	w.create(t, leaving)
	rows = append(rows, row{"service account that is being deleted", w.token(t, leaving.Name, nil), reviewed})
	w.remove(t, leaving)
	awaitTrue(t, "service account is known to be deleted", func() bool { is, _ := objects.ServiceAccount(w.namespace, "leaving"); return !is.DeletedAt.IsZero() })

	pod := w.newPod(t, "deleted", "web")
	rows = append(rows, row{"deleted pod", w.token(t, "web", pod), reviewed})
	w.remove(t, pod)
	w.awaitPod(t, pod.Name, "")

	pod = w.newPod(t, "again", "web")
	rows = append(rows, row{"pod of the same name", w.token(t, "web", pod), reviewed})
	w.remove(t, pod)
	next := w.newPod(t, "again", "web")
	w.awaitPod(t, next.Name, string(next.UID))
	rows = append(rows, row{"the new pod", w.token(t, "web", next), accepted})

	pod = w.newPod(t, "leaving", "web")
	pod.Finalizers = []string{"signet.dev/test"}
	require.NoError(t, plane.Client().Update(t.Context(), pod))
	rows = append(rows, row{"pod that is being deleted", w.token(t, "web", pod), reviewed})
	w.remove(t, pod)
	awaitTrue(t, "pod is known to be deleted", func() bool { is, _ := objects.Pod(w.namespace, "leaving"); return !is.DeletedAt.IsZero() })

	pod = w.newPod(t, "ended", "web")
	pod.Status.Phase = corev1.PodSucceeded
	require.NoError(t, plane.Client().Status().Update(t.Context(), pod))
	w.awaitPod(t, pod.Name, string(pod.UID))
	rows = append(rows, row{"pod that has ended", w.token(t, "web", pod), accepted})

	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.namespace + "-deleted"}}
	w.create(t, node)
	onNode, err := plane.Pod(t.Context(), w.namespace, "on-deleted", "web", node.Name)
	require.NoError(t, err)
	w.awaitPod(t, onNode.Name, string(onNode.UID))
	rows = append(rows, row{"deleted node", w.token(t, "web", node), reviewed}, row{"pod of a deleted node", w.token(t, "web", onNode), accepted})
	w.remove(t, node)
	awaitTrue(t, "node is known to be gone", func() bool { _, ok := objects.Node(node.Name); return !ok })

	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "deleted"}}
	w.create(t, secret)
	rows = append(rows, row{"deleted Secret", w.token(t, "web", secret), reviewed})
	w.remove(t, secret)

	// What the API server would never have signed.
	account = w.newAccount(t)
	stranger := opened(t, w.token(t, account.Name, nil))
	stranger.kubernetes()["pod"] = map[string]any{"name": w.pod.Name, "uid": string(w.pod.UID)}
	rows = append(rows, row{"pod of another account", stranger.sealed(t), accepted})
	elsewhere := opened(t, w.token(t, "web", w.pod))
	elsewhere.claims["sub"] = "system:serviceaccount:kube-system:web"
	elsewhere.kubernetes()["namespace"] = "kube-system"
	rows = append(rows, row{"namespace where nothing is", elsewhere.sealed(t), reviewed})
	for _, name := range []string{"a/b", "..", "a:b", "", "web\x00", "Web"} {
		odd := opened(t, w.token(t, "web", w.pod))
		odd.claims["sub"] = "system:serviceaccount:" + w.namespace + ":" + name
		odd.kubernetes()["serviceaccount"] = with(odd.kubernetes()["serviceaccount"].(map[string]any), "name", name)
		rows = append(rows, row{fmt.Sprintf("service account %q", name), odd.sealed(t), reviewed})
	}
	return rows
}

// others are what isn't a token that service accounts are given on request.
func others(t *testing.T, w *world) []row {
	legacy := func(name string, change func(claims map[string]any)) string {
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: "web"}},
			Type:       corev1.SecretTypeServiceAccountToken,
		}
		var account corev1.ServiceAccount
		require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "web"}, &account))
		k := &token{key: keys.p256, header: map[string]any{"alg": "ES256", "kid": keyID(keys.p256)}, claims: map[string]any{
			"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:" + w.namespace + ":web",
			"kubernetes.io/serviceaccount/namespace": w.namespace, "kubernetes.io/serviceaccount/secret.name": name,
			"kubernetes.io/serviceaccount/service-account.name": "web", "kubernetes.io/serviceaccount/service-account.uid": string(account.UID),
		}}
		change(k.claims)
		sealed := k.sealed(t)
		secret.Data = map[string][]byte{"token": []byte(sealed)}
		w.create(t, secret)
		return sealed
	}
	return []row{
		{"of a Secret", legacy("legacy", func(map[string]any) {}), reviewed},
		{"of a Secret, for our audience", legacy("legacy-audience", func(c map[string]any) { c["aud"] = []any{"istio-ca"} }), reviewed},
		{"of a Secret, for an audience in text", legacy("legacy-text", func(c map[string]any) { c["aud"] = "istio-ca" }), reviewed},
		{"of a Secret, expired", legacy("legacy-expired", func(c map[string]any) { c["aud"], c["exp"] = []any{"istio-ca"}, 1 }), reviewed},
		{"of another Secret", legacy("legacy-other", func(c map[string]any) {
			c["aud"], c["kubernetes.io/serviceaccount/secret.name"] = []any{"istio-ca"}, "bound"
		}), reviewed},
		{"bootstrap token", "abcdef.0123456789abcdef", reviewed},
		{"password", "secret", reviewed},
		{"nothing", "", reviewed},
		{"five parts, encrypted", "eyJhbGciOiJkaXIifQ..a.b.c", reviewed},
		{"of another issuer", func() string {
			k := opened(t, w.token(t, "web", w.pod))
			k.claims["iss"] = "https://issuer.example"
			return k.sealed(t)
		}(), reviewed},
		{"of another issuer, by its key", func() string {
			k := opened(t, w.token(t, "web", w.pod))
			k.claims["iss"], k.key, k.header = "https://issuer.example", keys.foreign, map[string]any{"alg": "ES256", "kid": "theirs"}
			return k.sealed(t)
		}(), reviewed},
		{"of another issuer, by its key and our ID", func() string {
			k := opened(t, w.token(t, "web", w.pod))
			k.claims["iss"], k.key = "https://issuer.example", keys.foreign
			return k.sealed(t)
		}(), rejected},
	}
}
