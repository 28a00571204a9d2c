package istioclient

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

// rootCA signs with its root whatever it is asked for: it proves the helpers, not a server.
type rootCA struct {
	securityv1alpha1.UnimplementedIstioCertificateServiceServer

	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu      sync.Mutex // guards the following
	headers []metadata.MD
	fail    []codes.Code // of the next calls, in order
}

func newRootCA(t *testing.T) *rootCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "root"},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &rootCA{cert: cert, key: key}
}

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// CreateCertificate implements the service.
func (ca *rootCA) CreateCertificate(ctx context.Context, request *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	header, _ := metadata.FromIncomingContext(ctx)
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.headers = append(ca.headers, header)
	if len(ca.fail) > 0 {
		code := ca.fail[0]
		ca.fail = ca.fail[1:]
		return nil, status.Error(code, "as told")
	}
	block, _ := pem.Decode([]byte(request.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "no request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "bad request")
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Second),
		NotAfter:     time.Now().Add(time.Duration(request.GetValidityDuration()) * time.Second),
		URIs:         csr.URIs,
	}, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &securityv1alpha1.IstioCertificateResponse{CertChain: []string{pemOf(der), pemOf(ca.cert.Raw)}}, nil
}

func (ca *rootCA) calls() int {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return len(ca.headers)
}

// serve runs the service until the test ends and returns how to reach it.
func (ca *rootCA) serve(t *testing.T) Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2),
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}, ca.cert, &key.PublicKey, ca.key)
	require.NoError(t, err)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})))
	securityv1alpha1.RegisterIstioCertificateServiceServer(server, ca)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		assert.NoError(t, <-served)
	})
	roots := filepath.Join(t.TempDir(), "root-cert.pem")
	require.NoError(t, os.WriteFile(roots, []byte(pemOf(ca.cert.Raw)), 0o600))
	return Config{
		Address:        listener.Addr().String(),
		RootsFile:      roots,
		Token:          "a.b.c",
		ClusterID:      "Kubernetes",
		Namespace:      "shop",
		ServiceAccount: "cart",
		TTL:            time.Hour,
	}
}

func leafOf(t *testing.T, chainPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(chainPEM)
	require.NotNil(t, block)
	leaf, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return leaf
}

func TestCitadel_Signs(t *testing.T) {
	ca := newRootCA(t)
	config := ca.serve(t)
	config.Headers = map[string]string{"x-tenant": "blue"}
	client, err := Citadel(config)
	require.NoError(t, err)
	defer client.Close()
	for _, rsa := range []bool{false, true} {
		config.RSA = rsa
		csr, key, err := NewCSR(config)
		require.NoError(t, err)
		chain, err := client.CSRSign(csr, 3600)
		require.NoError(t, err)
		require.Len(t, chain, 2)
		_, err = tls.X509KeyPair([]byte(chain[0]), key)
		require.NoError(t, err)
		assert.Equal(t, "spiffe://cluster.local/ns/shop/sa/cart", leafOf(t, []byte(chain[0])).URIs[0].String())
	}
	assert.Equal(t, []string{"Bearer a.b.c"}, ca.headers[0].Get("authorization"))
	assert.Equal(t, []string{"Kubernetes"}, ca.headers[0].Get("clusterid"))
	assert.Equal(t, []string{"blue"}, ca.headers[0].Get("x-tenant"))
}

// The agent lists DeadlineExceeded and Canceled among the codes to try again (pkg/security/retry.go), but
// go-grpc-middleware/v2 takes both for the end of the caller's own context and never does.
func TestR46_CitadelRetriesByCode(t *testing.T) {
	for _, c := range []struct {
		code  codes.Code
		again bool
	}{
		{codes.Unavailable, true},
		{codes.ResourceExhausted, true},
		{codes.Internal, true},
		{codes.Aborted, true},
		{codes.DeadlineExceeded, false},
		{codes.Canceled, false},
		{codes.Unauthenticated, false},
		{codes.PermissionDenied, false},
		{codes.InvalidArgument, false},
		{codes.NotFound, false},
		{codes.FailedPrecondition, false},
		{codes.Unknown, false},
	} {
		t.Run(c.code.String(), func(t *testing.T) {
			ca := newRootCA(t)
			ca.fail = []codes.Code{c.code}
			config := ca.serve(t)
			client, err := Citadel(config)
			require.NoError(t, err)
			defer client.Close()
			csr, _, err := NewCSR(config)
			require.NoError(t, err)
			_, err = client.CSRSign(csr, 3600)
			if c.again {
				require.NoError(t, err)
				assert.Equal(t, 2, ca.calls())
				return
			}
			require.ErrorContains(t, err, c.code.String())
			assert.Equal(t, 1, ca.calls())
		})
	}
}

func TestSecrets_KeepsOneCertificate(t *testing.T) {
	ca := newRootCA(t)
	config := ca.serve(t)
	secrets, err := Secrets(config)
	require.NoError(t, err)
	defer secrets.Close()
	workload, err := secrets.GenerateSecret(Workload)
	require.NoError(t, err)
	_, err = tls.X509KeyPair(workload.CertificateChain, workload.PrivateKey)
	require.NoError(t, err)
	anchors, err := secrets.GenerateSecret(Anchors)
	require.NoError(t, err)
	assert.Equal(t, strings.TrimSpace(pemOf(ca.cert.Raw)), string(anchors.RootCert))
	assert.Equal(t, 1, ca.calls())

	config.ServiceAccount = ""
	_, err = Secrets(config)
	require.ErrorContains(t, err, "service account")
}

func TestSDS_StreamsAndRenews(t *testing.T) {
	ca := newRootCA(t)
	config := ca.serve(t)
	config.TTL = 4 * time.Second
	t.Chdir(t.TempDir())
	server, err := StartSDS(config)
	require.NoError(t, err)
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	anchors, err := server.Subscribe(ctx, Anchors)
	require.NoError(t, err)
	roots, err := anchors.Next()
	require.NoError(t, err)
	assert.Equal(t, Anchors, roots.Name)
	assert.Equal(t, strings.TrimSpace(pemOf(ca.cert.Raw)), string(roots.Roots))

	workload, err := server.Subscribe(ctx, Workload)
	require.NoError(t, err)
	seen := map[string]bool{}
	for len(seen) < 3 { // one that is renewed just as it is asked for may come twice
		secret, err := workload.Next()
		require.NoError(t, err)
		assert.Equal(t, Workload, secret.Name)
		_, err = tls.X509KeyPair(secret.Chain, secret.Key)
		require.NoError(t, err)
		seen[leafOf(t, secret.Chain).SerialNumber.String()] = true
	}
}
