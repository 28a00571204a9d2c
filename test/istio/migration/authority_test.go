package migration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	meshconfig "istio.io/api/mesh/v1alpha1"
	istiomesh "istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/pki/ca"
	caserver "istio.io/istio/security/pkg/server/ca"
	"istio.io/istio/security/pkg/server/ca/authenticate/kubeauth"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/patiently"
)

// years is how long certificates of authorities last here.
const years = 5 * 365 * 24 * time.Hour

// signer is a certificate that signs leaves, by the name that it has in the timeline.
type signer struct {
	name string
	cert *x509.Certificate
}

// signed says whether a leaf is the signer's.
func (s signer) signed(leaf *x509.Certificate) bool { return leaf.CheckSignatureFrom(s.cert) == nil }

// newSigner takes the first certificate of a PEM.
func newSigner(name string, certificatePEM []byte) (signer, error) {
	block, _ := pem.Decode(certificatePEM)
	if block == nil {
		return signer{}, fmt.Errorf("certificate of %s: no PEM", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return signer{}, fmt.Errorf("certificate of %s: %w", name, err)
	}
	return signer{name, cert}, nil
}

// istiodRights are those that istiod needs as an authority, of either kind, in a namespace to be filled in.
const istiodRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: istiod-NAMESPACE}
rules:
  - apiGroups: [authentication.k8s.io]
    resources: [tokenreviews]
    verbs: [create]
  - apiGroups: [certificates.k8s.io]
    resources: [certificatesigningrequests]
    verbs: [create, get, list, watch, delete]
  - apiGroups: [certificates.k8s.io]
    resources: [certificatesigningrequests/approval]
    verbs: [update]
  - apiGroups: [certificates.k8s.io]
    resources: [signers]
    resourceNames: ["signet.dev/*"]
    verbs: [approve]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: istiod-NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: istiod-NAMESPACE}
subjects: [{kind: ServiceAccount, name: istiod, namespace: NAMESPACE}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: istiod, namespace: NAMESPACE}
rules:
  - apiGroups: [""]
    resources: [secrets]
    verbs: [create, get, update]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: istiod, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: istiod}
subjects: [{kind: ServiceAccount, name: istiod, namespace: NAMESPACE}]
`

// actAsIstiod is a client with the service account of istiod in a namespace.
func actAsIstiod(ctx context.Context, ns string) (*kubernetes.Clientset, error) {
	err := errors.Join(
		plane.ServiceAccount(ctx, ns, "istiod"),
		plane.Apply(ctx, []byte(strings.ReplaceAll(istiodRights, "NAMESPACE", ns))))
	if err == nil {
		user := "system:serviceaccount:" + ns + ":istiod"
		err = plane.AwaitAllowed(ctx,
			controlplane.Access{User: user, Verb: "create", Group: "authentication.k8s.io", Resource: "tokenreviews"},
			controlplane.Access{User: user, Verb: "update", Resource: "secrets", Namespace: ns},
		)
	}
	if err != nil {
		return nil, err
	}
	config, err := plane.As(ctx, ns, "istiod")
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// istiod is Istio's certificate service with one of its authorities behind it.
type istiod struct {
	address string // host:port
	server  *grpc.Server
	ended   chan struct{}
}

// defaultMesh is Istio's mesh configuration.
type defaultMesh struct{}

func (defaultMesh) Mesh() *meshconfig.MeshConfig { return istiomesh.DefaultMeshConfig() }

// startIstiod serves an authority as istiod does, to whoever has a good token.
func startIstiod(authority caserver.CertificateAuthority, serving tls.Certificate, as kubernetes.Interface) (*istiod, error) {
	reviews := kubeauth.NewKubeJWTAuthenticator(defaultMesh{}, as, "Kubernetes", nil, nil)
	service, err := caserver.New(authority, 24*time.Hour, []security.Authenticator{reviews}, nil)
	if err != nil {
		return nil, fmt.Errorf("start istiod's authority: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	tlsConfig := &tls.Config{Certificates: []tls.Certificate{serving}, MinVersion: tls.VersionTLS12}
	i := &istiod{
		address: listener.Addr().String(),
		server:  grpc.NewServer(grpc.Creds(credentials.NewTLS(tlsConfig))),
		ended:   make(chan struct{}),
	}
	service.Register(i.server)
	go func() {
		defer close(i.ended)
		_ = i.server.Serve(listener) // until stop; an agent would say that it can't reach it
	}()
	return i, nil
}

// stop ends it, and returns when it has ended. It can be called again.
func (i *istiod) stop() {
	i.server.Stop()
	<-i.ended
}

// startCA serves an authority that signs by itself, and so also its own serving certificate, for the given names.
func startCA(authority *ca.IstioCA, as kubernetes.Interface, names ...string) (*istiod, error) {
	certPEM, keyPEM, err := authority.GenKeyCert(names, 24*time.Hour, false)
	if err != nil {
		return nil, fmt.Errorf("sign istiod's serving certificate: %w", err)
	}
	serving, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read istiod's serving certificate: %w", err)
	}
	return startIstiod(authority, serving, as)
}

// selfSignedCA is the authority that istiod makes for itself, and keeps in the Secret istio-ca-secret.
func selfSignedCA(ctx context.Context, as kubernetes.Interface, ns string) (*ca.IstioCA, error) {
	const dontCheck = 0 // the root doesn't expire meanwhile
	options, err := ca.NewSelfSignedIstioCAOptions(ctx, 20, years, dontCheck, 24*time.Hour, 24*time.Hour, "cluster.local",
		false, true, ns, as.CoreV1(), "", false, 2048)
	if err != nil {
		return nil, fmt.Errorf("make istiod's self-signed authority: %w", err)
	}
	return ca.NewIstioCA(options)
}

// cacerts is what istiod finds mounted from the Secret cacerts; all PEM.
type cacerts struct{ cert, key, chain, roots []byte }

// pluggedInCA is the authority that istiod makes of cacerts, whose files are written to dir.
func pluggedInCA(dir string, from cacerts) (*ca.IstioCA, error) {
	files := map[string][]byte{
		ca.CACertFile: from.cert, ca.CAPrivateKeyFile: from.key, ca.CertChainFile: from.chain, ca.RootCertFile: from.roots,
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return nil, err
		}
	}
	options, err := ca.NewPluggedCertIstioCAOptions(ca.SigningCAFileBundle{
		RootCertFile: filepath.Join(dir, ca.RootCertFile), CertChainFiles: []string{filepath.Join(dir, ca.CertChainFile)},
		SigningCertFile: filepath.Join(dir, ca.CACertFile), SigningKeyFile: filepath.Join(dir, ca.CAPrivateKeyFile),
	}, 24*time.Hour, 24*time.Hour, 2048)
	if err != nil {
		return nil, fmt.Errorf("make istiod's plugged-in authority: %w", err)
	}
	return ca.NewIstioCA(options)
}

// intermediate has cert-manager make an authority below an Issuer, and an Issuer that signs with it. Certificate, Secret
// and Issuer have the same name. What is returned is the Secret's data.
func intermediate(ctx context.Context, ns, name, below string) (map[string][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patiently.Timeout)
	defer cancel()
	certificate := &certmanager.Certificate{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: certmanager.CertificateSpec{
			IsCA: true, CommonName: ns + " " + name, SecretName: name, Duration: &metav1.Duration{Duration: years},
			PrivateKey: &certmanager.CertificatePrivateKey{Algorithm: certmanager.ECDSAKeyAlgorithm, Size: 256},
			Usages:     []certmanager.KeyUsage{certmanager.UsageCertSign, certmanager.UsageDigitalSignature},
			IssuerRef:  cmmeta.IssuerReference{Name: below},
		},
	}
	if err := plane.Client().Create(ctx, certificate); err != nil {
		return nil, fmt.Errorf("create Certificate %s/%s: %w", ns, name, err)
	}
	secret := &corev1.Secret{}
	for {
		err := plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: name}, secret)
		if err == nil && len(secret.Data[corev1.TLSCertKey]) > 0 {
			return secret.Data, createIssuer(ctx, ns, name)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for Secret %s/%s: %w: %w", ns, name, ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// createIssuer makes an Issuer that signs with the Secret of the same name.
func createIssuer(ctx context.Context, ns, name string) error {
	issuer := &certmanager.Issuer{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	issuer.Spec.CA = &certmanager.CAIssuer{SecretName: name}
	if err := plane.Client().Create(ctx, issuer); err != nil {
		return fmt.Errorf("create Issuer %s/%s: %w", ns, name, err)
	}
	return nil
}
