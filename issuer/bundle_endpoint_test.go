package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

func TestBundleEndpointConfigValidate(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  BundleEndpointConfig
		want string // "" is right
	}{
		{"off", BundleEndpointConfig{}, ""},
		{"own certificate", BundleEndpointConfig{Listen: ":8444"}, ""},
		{"files", BundleEndpointConfig{Listen: ":8444", CertFile: "tls.crt", KeyFile: "tls.key", RefreshHint: setting.DurationOf(time.Minute)}, ""},
		{"bad address", BundleEndpointConfig{Listen: "8444"}, `b.listen: "8444" is not an address to listen on; it must be HOST:PORT or :PORT`},
		{"no key", BundleEndpointConfig{Listen: ":8444", CertFile: "tls.crt"}, "b: certFile and keyFile must be set both or not at all"},
		{"no certificate", BundleEndpointConfig{Listen: ":8444", KeyFile: "tls.key"}, "b: certFile and keyFile must be set both or not at all"},
		{"short hint", BundleEndpointConfig{Listen: ":8444", RefreshHint: setting.DurationOf(time.Second)}, "b.refreshHint: 1s is out of range; it must be between 10s and 24h0m0s"},
		{"off, but set", BundleEndpointConfig{RefreshHint: setting.DurationOf(time.Minute)}, "b.listen: must be set where other settings of the endpoint are"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.cfg.Validate(p.At("b"))
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.EqualError(t, p.Err(), row.want)
			}
		})
	}
}

// anchorsOfAllKeys are roots with the kinds of keys that a SPIFFE bundle knows.
func anchorsOfAllKeys(t *testing.T) Bundle {
	t.Helper()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	anchors := []*x509.Certificate{selfSign(t, rsaKey, "rsa", nil), selfSign(t, edKey, "ed25519", nil)}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		require.NoError(t, err)
		anchors = append(anchors, selfSign(t, key, curve.Params().Name, nil))
	}
	bundle, err := NewBundle(anchors...)
	require.NoError(t, err)
	return bundle
}

// What consumers read: the certificate, and beside it the same key once more (RFC 7518 §6, RFC 8037 §2).
func TestR56_BundleIsJWKS(t *testing.T) {
	bundle := anchorsOfAllKeys(t)
	text, err := encodeSPIFFE(bundle, 9, 90*time.Second)
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, json.Unmarshal(text, &got))
	assert.Equal(t, 9.0, got["spiffe_sequence"])
	assert.Equal(t, 90.0, got["spiffe_refresh_hint"])
	require.Len(t, got["keys"], 5)
	for i, entry := range got["keys"].([]any) {
		key, anchor := entry.(map[string]any), bundle.Anchors()[i]
		number := func(name string) []byte {
			value, err := base64.RawURLEncoding.DecodeString(key[name].(string))
			require.NoError(t, err)
			return value
		}
		assert.Equal(t, "x509-svid", key["use"])
		assert.NotContains(t, key, "kid") // SPIFFE X509-SVID §6.1
		assert.Equal(t, []any{base64.StdEncoding.EncodeToString(anchor.Raw)}, key["x5c"])
		switch public := anchor.PublicKey.(type) {
		case *rsa.PublicKey:
			assert.Equal(t, "RSA", key["kty"])
			assert.Equal(t, public.N.Bytes(), number("n"))
			assert.Equal(t, big.NewInt(int64(public.E)).Bytes(), number("e"))
		case *ecdsa.PublicKey:
			assert.Equal(t, "EC", key["kty"])
			assert.Equal(t, public.Params().Name, key["crv"])
			x, y := number("x"), number("y")
			assert.Len(t, x, (public.Params().BitSize+7)/8)
			point, err := ecdsa.ParseUncompressedPublicKey(public.Curve, append(append([]byte{4}, x...), y...))
			require.NoError(t, err)
			assert.True(t, point.Equal(public))
		case ed25519.PublicKey:
			assert.Equal(t, "OKP", key["kty"])
			assert.Equal(t, "Ed25519", key["crv"])
			assert.Equal(t, []byte(public), number("x"))
		}
	}
	back, err := parseSPIFFE(ourDomain, text)
	require.NoError(t, err)
	assert.Equal(t, bundle.PEM(), back.bundle.PEM())
	assert.Equal(t, 90*time.Second, back.refresh)

	text, err = encodeSPIFFE(bundle, 0, 1500*time.Millisecond)
	require.NoError(t, err)
	assert.NotContains(t, string(text), "spiffe_sequence")
	assert.Contains(t, string(text), `"spiffe_refresh_hint":2`)

	key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	require.NoError(t, err)
	odd, err := NewBundle(selfSign(t, key, "odd", nil))
	require.NoError(t, err)
	_, err = encodeSPIFFE(odd, 0, time.Minute)
	assert.ErrorContains(t, err, `anchor "CN=odd" (serial 01): keys of curve P-224 have no place in a SPIFFE bundle`)
}

func TestBundleEndpointAnswers(t *testing.T) {
	var own atomic.Pointer[Bundle]
	own.Store(&Bundle{})
	endpoint := NewBundleEndpoint(BundleEndpointConfig{Listen: ":0"}, func() (Bundle, uint64) { return *own.Load(), 3 }, nil, quiet)
	ask := func(method, path string, header ...string) *http.Response {
		request := httptest.NewRequest(method, path, nil)
		for i := 0; i < len(header); i += 2 {
			request.Header.Set(header[i], header[i+1])
		}
		recorder := httptest.NewRecorder()
		endpoint.ServeHTTP(recorder, request)
		return recorder.Result()
	}
	body := func(response *http.Response) string {
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return string(text)
	}

	response := ask("GET", "/")
	assert.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	assert.Equal(t, "the trust anchors are not known yet\n", body(response))

	a, b := newRoot(t, "a", nil), newRoot(t, "b", nil)
	bundle, err := NewBundle(a)
	require.NoError(t, err)
	own.Store(&bundle)
	response = ask("GET", "/")
	assert.Equal(t, http.StatusOK, response.StatusCode)
	assert.Equal(t, "application/json", response.Header.Get("Content-Type"))
	text := body(response)
	assert.Contains(t, text, `"spiffe_refresh_hint":300`)
	assert.Contains(t, text, `"spiffe_sequence":3`)
	got, err := parseSPIFFE(ourDomain, []byte(text))
	require.NoError(t, err)
	assert.Equal(t, bundle.PEM(), got.bundle.PEM())

	head := ask("HEAD", "/")
	assert.Equal(t, http.StatusOK, head.StatusCode)
	assert.Empty(t, body(head))
	assert.Equal(t, response.Header, head.Header)
	tag := response.Header.Get("ETag")
	require.NotEmpty(t, tag)
	assert.Equal(t, http.StatusNotModified, ask("GET", "/", "If-None-Match", tag).StatusCode)
	bundle, err = NewBundle(a, b)
	require.NoError(t, err)
	own.Store(&bundle)
	assert.Equal(t, http.StatusOK, ask("GET", "/", "If-None-Match", tag).StatusCode)

	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "TRACE"} {
		response := ask(method, "/")
		assert.Equal(t, http.StatusMethodNotAllowed, response.StatusCode, method)
		assert.Equal(t, "GET, HEAD", response.Header.Get("Allow"))
	}
	assert.Equal(t, http.StatusNotFound, ask("GET", "/metrics").StatusCode)
}

// serverPair is a certificate for 127.0.0.1 by ca, and its key, both PEM.
func serverPair(t *testing.T, ca *authority, serial int64) (certPEM, keyPEM string) {
	t.Helper()
	server := ca.sign(t, serial, func(c *x509.Certificate) {
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	keyDER, err := x509.MarshalPKCS8PrivateKey(server.key)
	require.NoError(t, err)
	return toPEM(server.cert), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

// start runs an endpoint until the test ends.
func start(t *testing.T, endpoint *BundleEndpoint) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- endpoint.Start(ctx) }()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
	require.Eventually(t, func() bool { return endpoint.Address() != nil }, 3*time.Minute, 10*time.Millisecond)
	return endpoint.Address().String()
}

// Our endpoint and our federation understand each other, over TLS, while the certificate changes.
func TestR56_BundleEndpointWithFiles(t *testing.T) {
	now := time.Now()
	ca := newAuthority(t, "web", now, nil)
	dir := t.TempDir()
	certFile, keyFile, caFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")
	write(t, caFile, toPEM(ca.cert))
	bundle := anchorsOfAllKeys(t)
	endpoint := NewBundleEndpoint(BundleEndpointConfig{Listen: "127.0.0.1:0", CertFile: certFile, KeyFile: keyFile}, func() (Bundle, uint64) { return bundle, 1 }, nil, quiet)
	address := start(t, endpoint)
	source, err := NewFederatedSource(FederatedConfig{TrustDomain: "other.example", EndpointURL: "https://" + address + "/", CAFile: caFile}, quiet)
	require.NoError(t, err)
	fetch := source.(*endpointSource).fetch

	text, err := endpoint.Ready(now)
	require.NoError(t, err)
	assert.Contains(t, text, "read certificate of the bundle endpoint: ")
	_, err = fetch(t.Context())
	require.Error(t, err, "there is no certificate yet")

	served := func() *big.Int {
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return nil
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber
	}
	serves := func(serial int64) {
		t.Helper()
		require.Eventually(t, func() bool { n := served(); return n != nil && n.Int64() == serial }, 3*time.Minute, 50*time.Millisecond)
	}
	certPEM, keyPEM := serverPair(t, ca, 11)
	write(t, certFile, certPEM)
	write(t, keyFile, keyPEM)
	serves(11)
	got, err := fetch(t.Context())
	require.NoError(t, err)
	assert.Equal(t, bundle.PEM(), got.bundle.PEM())
	assert.Equal(t, 5*time.Minute, got.refresh)
	text, _ = endpoint.Ready(now)
	assert.Equal(t, address, text)

	// The certificate comes first, and its key a while later.
	certPEM, keyPEM = serverPair(t, ca, 12)
	write(t, certFile, certPEM)
	require.Eventually(t, func() bool {
		text, _ := endpoint.Ready(now)
		return strings.Contains(text, "certificate "+certFile+" and key "+keyFile)
	}, 3*time.Minute, 50*time.Millisecond)
	assert.Equal(t, int64(11), served().Int64())
	write(t, keyFile, keyPEM)
	serves(12)

	_, err = tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	assert.ErrorContains(t, err, "protocol version")
}

func TestBundleEndpointWithOurOwnCertificate(t *testing.T) {
	ca := newAuthority(t, "web", time.Now(), nil)
	certPEM, keyPEM := serverPair(t, ca, 11)
	pair, err := tls.X509KeyPair([]byte(certPEM), []byte(keyPEM))
	require.NoError(t, err)
	bundle := anchorsOfAllKeys(t)
	endpoint := NewBundleEndpoint(BundleEndpointConfig{Listen: "127.0.0.1:0"}, func() (Bundle, uint64) { return bundle, 0 },
		func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }, quiet)
	address := start(t, endpoint)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	response, err := client.Get("https://" + address)
	require.NoError(t, err)
	defer response.Body.Close()
	assert.Equal(t, 2, response.ProtoMajor)
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	got, err := parseSPIFFE(ourDomain, text)
	require.NoError(t, err)
	assert.Equal(t, bundle.PEM(), got.bundle.PEM())

	// An address that is taken ends the start.
	taken := NewBundleEndpoint(BundleEndpointConfig{Listen: address}, nil, nil, quiet)
	assert.ErrorContains(t, taken.Start(t.Context()), "listen for bundle requests")
}

// TestBundleEndpointMinTLS: where TLS 1.2 must not be spoken, this endpoint doesn't either.
func TestBundleEndpointMinTLS(t *testing.T) {
	ca := newAuthority(t, "web", time.Now(), nil)
	certPEM, keyPEM := serverPair(t, ca, 12)
	pair, err := tls.X509KeyPair([]byte(certPEM), []byte(keyPEM))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for least, spoken := range map[uint16]bool{0: true, tls.VersionTLS13: false} {
		address := start(t, NewBundleEndpoint(BundleEndpointConfig{Listen: "127.0.0.1:0", MinTLS: least}, nil,
			func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }, quiet))
		dialer := &tls.Dialer{Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}}
		conn, err := dialer.DialContext(t.Context(), "tcp", address)
		if !spoken {
			require.ErrorContains(t, err, "protocol version")
			continue
		}
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
}

func TestBundleEndpointThatIsOff(t *testing.T) {
	endpoint := NewBundleEndpoint(BundleEndpointConfig{}, nil, nil, quiet)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, endpoint.Start(ctx))
	text, err := endpoint.Ready(time.Now())
	require.NoError(t, err)
	assert.Equal(t, "off", text)
	assert.Nil(t, endpoint.Address())
}
