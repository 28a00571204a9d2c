package clusters

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/setting"
)

func TestValidate(t *testing.T) {
	own := []string{"east", "east-1"}
	good := Config{Namespace: "signet-clusters", Allowed: []Allowed{{ID: "west", Servers: []string{"https://west.example.com:6443"}, Aliases: []string{"west-1"}}}}
	for _, row := range []struct {
		name   string
		change func(*Config)
		want   string // a part of the problem; "" where there is none
	}{
		{"good", func(*Config) {}, ""},
		{"off", func(c *Config) { *c = Config{} }, ""},
		{"no namespace", func(c *Config) { c.Namespace = "" }, "namespace: it is not set"},
		{"no such namespace", func(c *Config) { c.Namespace = "A" }, `namespace: "A" is not the name of a namespace`},
		{"nobody", func(c *Config) { c.Allowed = nil }, "allowed: it is empty"},
		{"too many", func(c *Config) { c.Allowed = make([]Allowed, 257) }, "allowed: it has 257 clusters"},
		{"no ID", func(c *Config) { c.Allowed[0].ID = "" }, `allowed[0].id: "" is not the ID of a cluster`},
		{"no key of a Secret", func(c *Config) { c.Allowed[0].ID = "a/b" }, `allowed[0].id: "a/b" is not the ID of a cluster`},
		{"our own", func(c *Config) { c.Allowed[0].ID = "east" }, `allowed[0].id: "east" is a name of our own cluster already`},
		{"our own alias", func(c *Config) { c.Allowed[0].ID = "east-1" }, `allowed[0].id: "east-1" is a name of our own cluster already`},
		{"an alias that is ours", func(c *Config) { c.Allowed[0].Aliases = []string{"east"} }, `allowed[0].aliases[0]: "east" is a name of our own cluster already`},
		{"twice", func(c *Config) { c.Allowed = append(c.Allowed, Allowed{ID: "west"}) }, `allowed[1].id: "west" is a name of allowed[0] already`},
		{"an alias that is another's", func(c *Config) { c.Allowed = append(c.Allowed, Allowed{ID: "north", Aliases: []string{"west-1"}}) }, `allowed[1].aliases[0]: "west-1" is a name of allowed[0] already`},
		{"http", func(c *Config) { c.Allowed[0].Servers[0] = "http://west" }, `allowed[0].servers[0]: "http://west" is not the address of an API server`},
	} {
		cfg := good
		cfg.Allowed = []Allowed{{ID: "west", Servers: []string{"https://west.example.com:6443"}, Aliases: []string{"west-1"}}}
		row.change(&cfg)
		p := setting.NewProblems()
		cfg.Validate(p, own)
		if row.want == "" {
			assert.NoError(t, p.Err(), row.name)
		} else {
			assert.ErrorContains(t, p.Err(), row.want, row.name)
		}
	}
}

func TestServerOf(t *testing.T) {
	for text, want := range map[string]string{
		"https://west.example.com":            "https://west.example.com:443",
		"https://West.Example.com:443/":       "https://west.example.com:443",
		"https://[::1]:6443":                  "https://[::1]:6443",
		"https://rancher/k8s/clusters/c-1/":   "https://rancher:443/k8s/clusters/c-1",
		"http://west":                         "",
		"west":                                "",
		"https://":                            "",
		"https://:6443":                       "",
		"https://a@west":                      "",
		"https://west?x":                      "",
		"https://west?":                       "",
		"https://west#x":                      "",
		"unix:///var/run/x":                   "",
		"":                                    "",
		"https://west.example.com:6443\nx: y": "",
	} {
		got, err := serverOf(text)
		assert.Equal(t, want, got, text)
		assert.Equal(t, want == "", err != nil, text)
	}
}

// certPEM is a certificate and its key, as kubeconfigs have them.
func certPEM(t testing.TB) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	require.NoError(t, err)
	keyDER, err := x509.MarshalECPrivateKey(private)
	require.NoError(t, err)
	encode := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return encode("CERTIFICATE", der), encode("EC PRIVATE KEY", keyDER)
}

const secretToken = "dont-tell-this-token"

// kubeconfig is a good one; each pair of changes replaces one text by another.
func kubeconfig(t testing.TB, changes ...string) []byte {
	t.Helper()
	ca, _ := certPEM(t)
	text := `apiVersion: v1
kind: Config
current-context: here
contexts:
- name: here
  context: {cluster: west, user: signet}
clusters:
- name: west
  cluster:
    server: https://west.example.com:6443
    certificate-authority-data: ` + ca + `
users:
- name: signet
  user:
    token: ` + secretToken + `
`
	require.Zero(t, len(changes)%2)
	for n := 0; n < len(changes); n += 2 {
		require.Contains(t, text, changes[n])
		text = strings.Replace(text, changes[n], changes[n+1], 1)
	}
	return []byte(text)
}

func TestReadKubeconfig(t *testing.T) {
	const token, server = "token: " + secretToken, "server: https://west.example.com:6443"
	cert, key := certPEM(t)
	west := Allowed{ID: "west", Servers: []string{"https://West.example.com:6443/"}}
	more := func(field string) []string { return []string{server, server + "\n    " + field} }
	user := func(field string) []string { return []string{token, token + "\n    " + field} }
	for _, row := range []struct {
		name    string
		changes []string
		want    string // a part of the error; "" where it is accepted
		exec    bool   // allowExec makes it acceptable
	}{
		{"good", nil, "", false},
		{"a client certificate", []string{token, "client-certificate-data: " + cert + "\n    client-key-data: " + key}, "", false},
		{"acts as another", user("as: system:serviceaccount:istio-system:reader"), "", false},
		{"verified by another name", more("tls-server-name: kubernetes"), "", false},

		{"another server", []string{"west.example.com", "evil.example.com"}, `server "https://evil.example.com:6443" is none of those that are allowed for cluster west`, false},
		{"another port", []string{":6443", ":6444"}, "is none of those that are allowed", false},
		{"http", []string{"https://", "http://"}, "is not the address of an API server", false},
		{"exec", []string{token, "exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/sh, interactiveMode: Never}"}, `user "signet" of the kubeconfig: exec is refused: it would run a program`, true},
		{"auth provider", []string{token, "auth-provider: {name: oidc}"}, "auth-provider is refused", false},
		{"token file", []string{token, "tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token"}, "tokenFile is refused: it would read a file of Signet's own", true},
		{"token file beside a token", user("tokenFile: /etc/passwd"), "tokenFile is refused", true},
		{"certificate file", user("client-certificate: /etc/tls.crt"), "client-certificate is refused", false},
		{"key file", user("client-key: /etc/tls.key"), "client-key is refused", false},
		{"CA file", more("certificate-authority: /etc/ca.crt"), `cluster "west" of the kubeconfig: certificate-authority is refused`, true},
		{"a relative path", []string{token, "tokenFile: ../token"}, "tokenFile is refused", false},
		{"not verified", more("insecure-skip-tls-verify: true"), "insecure-skip-tls-verify is refused", false},
		{"a proxy", more("proxy-url: http://proxy"), "proxy-url is refused", false},
		{"a password", []string{token, "username: admin\n    password: admin"}, "username and password are refused", false},
		{"no credentials", []string{token, "as: somebody"}, "it has no credentials", false},
		{"hidden in a user that isn't used", []string{"users:", "users:\n- name: other\n  user: {tokenFile: /etc/passwd}"}, `user "other" of the kubeconfig: tokenFile is refused`, true},
		{"hidden in a cluster that isn't used", []string{"clusters:", "clusters:\n- name: other\n  cluster: {server: https://x, proxy-url: http://proxy}"}, "proxy-url is refused", false},
		{"no such context", []string{"current-context: here", "current-context: there"}, `no context "there"`, false},
		{"no context", []string{"current-context: here\n", ""}, `no context ""`, false},
		{"no such user", []string{"user: signet}", "user: nobody}"}, `no user "nobody"`, false},
		{"no certificate", []string{"certificate-authority-data: ", "certificate-authority-data: " + base64.StdEncoding.EncodeToString([]byte("x")) + " #"}, "can't be used", false},
		{"not YAML", []string{"apiVersion: v1", "apiVersion: [" + secretToken}, "it is not a kubeconfig", false},
		{"a token in the wrong place", []string{"apiVersion: v1", "apiVersion: " + secretToken}, "it is not a kubeconfig", false},
		{"another kind", []string{"kind: Config", "kind: Secret"}, "it is not a kubeconfig", false},
		{"a list in place of a text", []string{"token: " + secretToken, "token: [" + secretToken + "]"}, "it is not a kubeconfig", false},
		{"too large", []string{"apiVersion: v1", "apiVersion: v1\n#" + strings.Repeat("x", maxKubeconfig)}, "at most 65536 are read", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			text := kubeconfig(t, row.changes...)
			for _, allowExec := range []bool{false, true} {
				config, err := readKubeconfig(text, west, allowExec)
				if row.want != "" && !(allowExec && row.exec) {
					if !allowExec {
						require.ErrorContains(t, err, row.want)
					}
					require.Error(t, err)
					assert.Nil(t, config)
					assert.NotContains(t, err.Error(), secretToken)
					continue
				}
				require.NoError(t, err)
				assert.Equal(t, "https://west.example.com:6443", config.Host)
				assert.NotEmpty(t, config.CAData)
				assert.False(t, config.Insecure)
			}
		})
	}
	config, err := readKubeconfig(kubeconfig(t, server, "server: https://anywhere"), Allowed{ID: "west"}, false)
	require.NoError(t, err, "no servers are named")
	assert.Equal(t, secretToken, config.BearerToken)
	for _, empty := range []string{"", "{}", "null", "[]", "clusters:\n- name: west"} {
		_, err := readKubeconfig([]byte(empty), west, false)
		assert.Error(t, err, empty)
	}
}

// FuzzReadKubeconfig: whatever a Secret holds, what comes of it runs nothing, reads no file, verifies the server, and goes
// to a server that is allowed.
func FuzzReadKubeconfig(f *testing.F) {
	f.Add(kubeconfig(f))
	f.Add(kubeconfig(f, "token: "+secretToken, "exec: {apiVersion: client.authentication.k8s.io/v1, command: x, interactiveMode: Never}"))
	f.Add(kubeconfig(f, "token: "+secretToken, "tokenFile: /etc/passwd"))
	f.Add(kubeconfig(f, "users:", "users:\n- name: &a other\n  user: {token: *a}"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"Config","current-context":"a","contexts":[{"name":"a","context":{"cluster":"a","user":"a"}}],"clusters":[{"name":"a","cluster":{"server":"https://west.example.com:6443"}}],"users":[{"name":"a","user":{"token":"x"}}]}`))
	west := Allowed{ID: "west", Servers: []string{"https://west.example.com:6443"}}
	f.Fuzz(func(t *testing.T, text []byte) {
		config, err := readKubeconfig(text, west, false)
		if err != nil {
			require.Nil(t, config)
			return
		}
		require.Nil(t, config.ExecProvider)
		require.Nil(t, config.AuthProvider)
		require.Empty(t, config.BearerTokenFile+config.CAFile+config.CertFile+config.KeyFile+config.Username+config.Password)
		require.False(t, config.Insecure)
		server, err := serverOf(config.Host)
		require.NoError(t, err)
		require.Equal(t, "https://west.example.com:6443", server)
		_, err = rest.TLSConfigFor(config)
		require.NoError(t, err)
	})
}

// followed is Secrets that are told of by hand.
func followed(cfg Config, log *bytes.Buffer) *Secrets {
	return newSecrets(nil, cfg, []string{"east", "east-1"}, slog.New(slog.NewTextHandler(log, nil)))
}

func secretOf(name string, age time.Duration, data map[string][]byte) *corev1.Secret {
	created := metav1.NewTime(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC).Add(-age))
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "signet-clusters", Name: name, UID: "u", CreationTimestamp: created}, Data: data}
}

// says is a state as text: what leads where, and what is refused.
func says(state State) (used map[string]string, refused []string) {
	used = make(map[string]string)
	for id, c := range state.Connections {
		used[id] = c.Secret + " " + c.Config.Host
	}
	for _, r := range state.Refused {
		refused = append(refused, r.String())
	}
	return used, refused
}

func TestSecrets(t *testing.T) {
	var log bytes.Buffer
	cfg := Config{Namespace: "signet-clusters", Allowed: []Allowed{{ID: "west"}, {ID: "north", Servers: []string{"https://north"}}}}
	s := followed(cfg, &log)
	store := s.store()
	west, other := kubeconfig(t), kubeconfig(t, "west.example.com", "other.example.com")
	north := kubeconfig(t, "west.example.com:6443", "north")

	require.NoError(t, store.Add(secretOf("early", 0, map[string][]byte{"west": west})))
	assert.False(t, s.State().Listed, "all have to be seen")
	assert.Empty(t, s.State().Connections)
	require.NoError(t, store.Replace(nil, ""))
	state := s.State()
	assert.True(t, state.Listed)
	assert.Empty(t, state.Connections, "what was gone when all were listed is gone")

	// Several clusters in one Secret; our own and strange ones are refused.
	require.NoError(t, store.Replace([]any{secretOf("a", 0, map[string][]byte{"west": west, "north": north, "east": west, "east-1": west, "south": west})}, ""))
	used, refused := says(s.State())
	assert.Equal(t, map[string]string{"west": "a https://west.example.com:6443", "north": "a https://north"}, used)
	assert.Equal(t, []string{
		`cluster "east" in Secret signet-clusters/a: this is our own cluster, which no Secret may take over`,
		`cluster "east-1" in Secret signet-clusters/a: this is our own cluster, which no Secret may take over`,
		`cluster "south" in Secret signet-clusters/a: no such cluster is allowed; ca.remoteClusters.allowed has ["west" "north"]`,
	}, refused)

	// Nobody takes over by a newer Secret, whatever its name.
	require.NoError(t, store.Add(secretOf("0-newer", -time.Hour, map[string][]byte{"west": other})))
	used, refused = says(s.State())
	assert.Equal(t, "a https://west.example.com:6443", used["west"])
	assert.Contains(t, refused, `cluster "west" in Secret signet-clusters/0-newer: Secret a leads to it already`)

	// One that isn't good doesn't stand in the way of the next.
	require.NoError(t, store.Update(secretOf("a", 0, map[string][]byte{"west": kubeconfig(t, "token: ", "tokenFile: /"), "north": west})))
	used, refused = says(s.State())
	assert.Equal(t, map[string]string{"west": "0-newer https://other.example.com:6443"}, used)
	assert.Len(t, refused, 2)
	require.NoError(t, store.Delete(secretOf("0-newer", -time.Hour, nil)))
	used, _ = says(s.State())
	assert.Empty(t, used)

	// What is the same and what has changed.
	require.NoError(t, store.Update(secretOf("a", 0, map[string][]byte{"west": west})))
	first := s.State().Connections["west"]
	require.NoError(t, store.Update(secretOf("a", 0, map[string][]byte{"west": west, "x": nil})))
	assert.True(t, first.Same(s.State().Connections["west"]))
	require.NoError(t, store.Update(secretOf("a", 0, map[string][]byte{"west": other})))
	assert.False(t, first.Same(s.State().Connections["west"]))
	assert.NotEmpty(t, s.Changed())
	assert.NotContains(t, log.String(), secretToken)
}

// TestSecretsAreBounded: what is kept of Secrets has an end, however many and large they are.
func TestSecretsAreBounded(t *testing.T) {
	var log bytes.Buffer
	cfg := Config{Namespace: "signet-clusters"}
	for n := range maxAllowed {
		cfg.Allowed = append(cfg.Allowed, Allowed{ID: fmt.Sprintf("c%d", n)})
	}
	s := followed(cfg, &log)
	store := s.store()
	large := bytes.Repeat([]byte("#"), 2*maxKubeconfig)
	data := map[string][]byte{"strange": large}
	for n := range 15 {
		data[fmt.Sprintf("c%d", n)] = large
	}
	require.NoError(t, store.Replace(nil, ""))
	for n := range 2 * maxSecrets {
		if n == 30 {
			data = map[string][]byte{"c0": large}
		}
		require.NoError(t, store.Add(secretOf(fmt.Sprintf("s%04d", n), 0, data)))
	}
	assert.Len(t, s.kept, maxSecrets)
	assert.LessOrEqual(t, s.bytes, maxKept)
	assert.Greater(t, s.bytes, maxKept/2)
	assert.Contains(t, log.String(), "too many Secrets")
	_, refused := says(s.State())
	assert.Contains(t, refused, `Secret signet-clusters/s0511: all Secrets of remote clusters together have more than 16777216 bytes`)
	assert.Contains(t, refused, `cluster "c3" in Secret signet-clusters/s0000: the kubeconfig has 65537 bytes; at most 65536 are read`)
	for n := range 2 * maxSecrets {
		require.NoError(t, store.Delete(secretOf(fmt.Sprintf("s%04d", n), 0, nil)))
	}
	assert.Empty(t, s.kept)
	assert.Zero(t, s.bytes)
}
