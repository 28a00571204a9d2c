package meshclient

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
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

// memoryCA is a root and an intermediate in memory, behind the service that Istio's clients call. It
// signs whatever it is asked for: it proves the clients of this package, not a server.
type memoryCA struct {
	securityv1alpha1.UnimplementedIstioCertificateServiceServer

	root, intermediate       *x509.Certificate
	rootKey, intermediateKey *ecdsa.PrivateKey

	mu     sync.Mutex // guards the following
	asks   []recordedAsk
	refuse int // the number of the one request that is refused, the first being 1; 0 for none
}

type recordedAsk struct {
	header  metadata.MD
	request *securityv1alpha1.IstioCertificateRequest
	certs   []*x509.Certificate // of the client
	issued  []byte              // the leaf, DER; nil where it was refused
}

func newMemoryCA(t *testing.T) *memoryCA {
	t.Helper()
	ca := &memoryCA{}
	now := time.Now()
	authority := func(name string, lifetime time.Duration) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber:          big.NewInt(now.UnixNano()),
			Subject:               pkix.Name{CommonName: name},
			NotBefore:             now.Add(-time.Minute),
			NotAfter:              now.Add(lifetime),
			KeyUsage:              x509.KeyUsageCertSign,
			BasicConstraintsValid: true,
			IsCA:                  true,
		}
	}
	var err error
	ca.rootKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca.intermediateKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	root := authority("root", 48*time.Hour)
	ca.root = sign(t, root, root, &ca.rootKey.PublicKey, ca.rootKey)
	ca.intermediate = sign(t, authority("intermediate", 36*time.Hour), ca.root, &ca.intermediateKey.PublicKey, ca.rootKey)
	return ca
}

func sign(t *testing.T, template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert
}

func pemOf(certs ...*x509.Certificate) string {
	var text []byte
	for _, cert := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return string(text)
}

// leafTemplate is what a good leaf looks like, for the given names (the value of a SAN extension).
func leafTemplate(san []byte, lifetime time.Duration) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:    big.NewInt(now.UnixNano()),
		NotBefore:       now.Add(-time.Second),
		NotAfter:        now.Add(lifetime),
		KeyUsage:        x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: san}},
	}
}

// CreateCertificate implements the service.
func (ca *memoryCA) CreateCertificate(ctx context.Context, request *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	header, _ := metadata.FromIncomingContext(ctx)
	var certs []*x509.Certificate
	if from, ok := peer.FromContext(ctx); ok {
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok {
			certs = info.State.PeerCertificates
		}
	}
	ca.mu.Lock()
	ca.asks = append(ca.asks, recordedAsk{header: header, request: request, certs: certs})
	number := len(ca.asks)
	refuse := ca.refuse == number
	ca.mu.Unlock()
	if refuse {
		return nil, status.Error(codes.PermissionDenied, "refused once")
	}
	block, _ := pem.Decode([]byte(request.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "no request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad request")
	}
	var san []byte
	for _, extension := range csr.Extensions {
		if extension.Id.Equal(oidSubjectAltName) {
			san = extension.Value
		}
	}
	template := leafTemplate(san, time.Duration(request.GetValidityDuration())*time.Second)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.intermediate, csr.PublicKey, ca.intermediateKey)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	ca.mu.Lock()
	ca.asks[number-1].issued = der
	ca.mu.Unlock()
	leaf := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return &securityv1alpha1.IstioCertificateResponse{
		CertChain: []string{leaf, pemOf(ca.intermediate), pemOf(ca.root)},
	}, nil
}

func (ca *memoryCA) recorded() []recordedAsk {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return append([]recordedAsk(nil), ca.asks...)
}

// serve runs the service until the test ends and returns its address.
func (ca *memoryCA) serve(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{"signet.test"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert := sign(t, template, ca.root, &key.PublicKey, ca.rootKey)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		ClientAuth:   tls.RequestClientCert,
	})))
	securityv1alpha1.RegisterIstioCertificateServiceServer(server, ca)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-served)
	})
	return listener.Addr().String()
}
