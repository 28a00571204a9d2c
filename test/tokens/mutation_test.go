package tokens

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// Good tokens that are changed at random, some of them signed again, are decided as the API server decides. The seed is
// in the output.
func TestMutations(t *testing.T) {
	w := newWorld(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	// Pieces that mean something in JSON, in JWTs or to API servers.
	piece := func() string {
		return pick(`"`, `{`, `}`, `[`, `]`, `,`, `:`, `null`, `0`, `-`, `1e9`, `\u0000`, `\`, ` `, "\n", "\xff", "é", `"sub":"x",`, `"aud":[],`, `"exp":null,`,
			`"kubernetes.io":{},`, `"pod":{},`, `"node":null,`, `"secret":{"name":"bound"},`, `"kid":"x",`, `"alg":"none",`, `"crit":[],`, `istio-ca`, `web`, `.`)
	}
	mutate := func(text string) string {
		for range 1 + random.IntN(3) {
			at, to := random.IntN(len(text)+1), random.IntN(len(text)+1)
			switch at, to = min(at, to), max(at, to); random.IntN(5) {
			case 0:
				text = text[:at] + text[min(len(text), at+1+random.IntN(3)):]
			case 1:
				text = text[:at] + piece() + text[at:]
			case 2:
				text = text[:at] + text[at:to] + text[at:]
			case 3:
				if at < len(text) {
					text = text[:at] + string([]byte{text[at] ^ 1<<random.IntN(8)}) + text[at+1:]
				}
			case 4:
				text = strings.Replace(text, pick(`"iss"`, `"sub"`, `"exp"`, `"nbf"`, `"uid"`, `"name"`, `"alg"`, `"kid"`, `ES256`, `true`, `web`), piece(), 1)
			}
			if text == "" {
				text = "x"
			}
		}
		return text
	}

	start := results(t)
	const rounds = 300
	for range rounds {
		bound := []string{w.token(t, "web", w.pod), w.token(t, "web", w.node), w.token(t, "web", nil)}[random.IntN(3)]
		k := opened(t, bound)
		switch random.IntN(5) {
		case 0, 1:
			k.payload = mutate(text(t, k.claims))
		case 2:
			k.headers = mutate(text(t, k.header))
		case 3:
			k.payload, k.headers = mutate(text(t, k.claims)), mutate(text(t, k.header))
		case 4:
			requireSame(t, mutate(bound))
			continue
		}
		requireSame(t, k.sealed(t))
	}
	end := results(t)
	t.Logf("%d tokens; by itself accepted %d and rejected %d, reviewed %d", rounds, end[accepted]-start[accepted], end[rejected]-start[rejected], end[reviewed]-start[reviewed])
}
