package privilege

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/require"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/replica"
)

// registrationSigner is the signer of the CertificateSigningRequests that the tests make.
const registrationSigner = "signet.dev/mesh"

// TestPrivilege runs Signet in each configuration, has it do what it is configured for, and holds its rights against what it
// asked for.
func TestPrivilege(t *testing.T) {
	var group sync.WaitGroup // they mostly wait, so that they need not wait for one another
	defer group.Wait()
	for name, test := range map[string]func(*mesh){
		"minimal": minimal, "defaults": defaults, "callers": callers, "local": local, "trust": trust, "operators": operators, "gateways": gateways,
	} {
		group.Go(func() {
			t.Run(name, func(t *testing.T) { test(newMesh(t, name)) })
		})
	}
}

// minimal only signs.
func minimal(m *mesh) {
	m.start(map[string]any{"api.disabled": true})
	m.signs()
	m.proven()
}

// defaults has a configuration of an issuer and a file with the anchors. It is the one that writes the ClusterTrustBundle, of
// which a cluster has only one. A second replica uses streaming lists, as client-go does by default.
func defaults(m *mesh) {
	// One that an earlier run has left would not be created.
	left := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "istio.io:istiod-ca:root-cert"}}
	require.NoError(m, client.IgnoreNotFound(plane.Client().Delete(m.Context(), left)))
	m.start(map[string]any{"distribution.disabled": false, "distribution.namespaceSelector": "mesh=" + m.label})
	second := m.config
	second.Env = nil
	m.run(second)
	m.signs()
	m.probes(m.workload("shown", "node-1"), m.workload("seen", "node-1"))
	m.proven()

	attest := m.right("attest signers.certificates.k8s.io")
	bundle := m.right("patch clustertrustbundles.certificates.k8s.io")
	m.takenAway(attest, need(bundle), func() {
		require.NoError(m, plane.Client().Delete(m.Context(), &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: bundle.name}}))
	})
}

// callers has all ways to prove who one is but local ones.
func callers(m *mesh) {
	clusters := m.namespace("clusters")
	m.start(map[string]any{
		"api.disabled":                true,
		"ca.nodes.accounts":           []any{m.ns + "/ztunnel"},
		"ca.token.cacheAccepted":      "60s",
		"ca.certificates.enabled":     true,
		"ca.remoteClusters.namespace": clusters,
		"ca.remoteClusters.allowed":   []any{map[string]any{"id": "west"}},
		"ca.rules":                    []any{map[string]any{"namespaceLabels": map[string]any{"mesh": m.label}, "lifetime": map[string]any{"max": "1h"}}},
	})
	m.signs()
	m.renewsByCertificate()
	m.servesNodeProxy()
	m.servesRemoteCluster(clusters)
	m.proven()
}

// local verifies tokens itself, and signs for an istiod.
func local(m *mesh) {
	m.start(map[string]any{"api.disabled": true, "ca.token.authentication": "local", "ca.registration.enabled": true})
	m.signs()
	gone := m.workload("gone", "node-1")
	require.NoError(m, plane.Client().Delete(m.Context(), gone.pod))
	m.used("create tokenreviews", func() { // of a token whose pod isn't known any more
		_, _ = m.endpoint.Create(m.Context(), meshclient.Ask{Token: gone.token, CSR: m.csr(gone)})
	})
	request := m.requestAsIstiod()
	m.eventually(func() bool { return m.answered(request) }, "CertificateSigningRequest %s is answered", request)
	m.proven()

	sign, answer := m.right("sign signers.certificates.k8s.io"), m.right("update certificatesigningrequests/status")
	m.takenAway(sign, need(answer), func() { request = m.requestAsIstiod() })
	m.eventually(func() bool { return m.answered(request) }, "the request that was refused before is answered in the end")
}

// trust takes issuers, anchors and revocation lists from where they can be changed, and keeps istiod's certificate.
func trust(m *mesh) {
	more, err := plane.BootstrapCA(m.Context(), m.ns, "second", controlplane.CAOptions{})
	require.NoError(m, err)
	m.set(m.ns, "signet-roots", map[string]string{"ca.crt": string(m.root)})
	m.setSecret(m.ns, "signet-more-roots", nil, map[string][]byte{"ca.crt": m.root})
	m.set(m.ns, "signet-crls", map[string]string{"ca-crl.pem": m.crl("istio-ca")})
	m.start(map[string]any{
		"api.disabled":                    true,
		"issuers.runtime.name":            "signet-issuer",
		"issuers.fallback":                []any{map[string]any{"name": m.ns, "kind": "ClusterIssuer"}},
		"roots.configMap":                 map[string]any{"name": "signet-roots"},
		"roots.secret":                    map[string]any{"name": "signet-more-roots"},
		"crl.configMap":                   map[string]any{"name": "signet-crls"},
		"distribution.disabled":           false,
		"distribution.clusterTrustBundle": "off",
		"distribution.namespaceSelector":  "mesh=" + m.label,
		"istiod.enabled":                  true,
		"istiod.namespace":                m.ns,
	})
	m.signs()
	m.set(m.ns, "signet-roots", map[string]string{"ca.crt": string(m.root) + string(more)})
	m.set(m.ns, "signet-issuer", map[string]string{"issuer-name": "second"})
	m.proven()

	create := m.right("create configmaps istio-ca-root-cert")
	m.takenAway(create, need(m.right("patch configmaps istio-ca-root-cert")), func() { m.namespace("late") })
}

// operators has a ClusterIssuer sign, and everything that can be elsewhere is; probes find a certificate that isn't in the
// records.
func operators(m *mesh) {
	elsewhere := m.namespace("elsewhere")
	var err error
	m.root, err = plane.BootstrapCA(m.Context(), "cert-manager", m.ns, controlplane.CAOptions{})
	require.NoError(m, err)
	m.apply(`{apiVersion: cert-manager.io/v1, kind: ClusterIssuer, metadata: {name: %s}, spec: {ca: {secretName: %s}}}`, m.ns, m.ns)
	m.issuer = &cmapi.ClusterIssuer{ObjectMeta: metav1.ObjectMeta{Name: m.ns}}
	m.setSecret(m.ns, "signet-roots", nil, map[string][]byte{"ca.crt": m.root})
	m.setSecret(m.ns, "signet-crls", nil, map[string][]byte{"ca-crl.pem": []byte(m.crlOf("cert-manager", m.ns))})
	address := reachable()
	m.start(map[string]any{
		"issuer":                      map[string]any{"name": m.ns, "kind": "ClusterIssuer"},
		"issuers.runtime":             map[string]any{"name": "signet-issuer", "namespace": elsewhere},
		"roots.secret":                map[string]any{"name": "signet-roots"},
		"crl.secret":                  map[string]any{"name": "signet-crls"},
		"istiod.enabled":              true,
		"istiod.namespace":            elsewhere,
		"inventory.gateways.disabled": address != "", // or they would list the Certificates that a probe asks for
		"probes.schedule.interval":    "1s",
	})
	m.signs()
	if address != "" {
		m.showsForeignCertificate(address)
	} else {
		m.Log("no address of this machine but the loopback's, where no probe goes: Certificates are listed by the inventory of gateways instead")
		m.probes(m.workload("shown", "node-1"), m.workload("seen", "node-1"))
	}
	m.proven()
}

// gateways tells of gateways, and reads the Secrets of one namespace.
func gateways(m *mesh) {
	shop := m.namespace("shop")
	m.start(map[string]any{
		"probes.disabled":                true,
		"inventory.gateways.readSecrets": []any{shop},
		"inventory.gateways.checkEvery":  "1s",
	})
	m.signs()
	m.apply(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: %s, name: web}
spec: {gatewayClassName: x, listeners: [{name: web, hostname: web.example, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web-tls}]}}]}
`, shop)
	_, err := m.inspection().Gateways(m.Context(), api.GatewayQuery{})
	require.NoError(m, err)
	m.proven()
}

// signs has callers get certificates, one of them with the same request twice, as a retry does. The certificates of others are
// overdue in the end, of which Events tell, and so they do when the issuer isn't ready, for the second time by a patch.
func (m *mesh) signs() {
	m.Helper()
	w := m.workload("again", "node-1")
	m.used("get certificaterequests", func() { // unless the first has been swept when the second comes
		csr := m.csr(w)
		for range 2 {
			m.answer(m.endpoint, meshclient.Ask{Token: w.token, CSR: csr, ValiditySeconds: 60})
		}
	})
	m.overdue()
	m.used("patch events", m.flip)
}

// overdue issues certificates that nobody renews. Each is overdue in the last 45 % of its life; Signet looks every 10s, when
// one of these always is. Where the issuer just changes, and refuses, it is done again.
func (m *mesh) overdue() {
	m.Helper()
	for _, seconds := range []int64{3, 5, 8, 14} {
		w := m.workload("overdue", "node-1")
		_, _ = m.endpoint.Create(m.Context(), meshclient.Ask{Token: w.token, CSR: m.csr(w), ValiditySeconds: seconds})
	}
}

// csr is a request of a workload with a new key.
func (m *mesh) csr(w *workload) string {
	m.Helper()
	_, csr, err := meshclient.ZtunnelCSR(w.id)
	require.NoError(m, err)
	return csr
}

// renewsByCertificate has a caller show the certificate that it has instead of a token.
func (m *mesh) renewsByCertificate() {
	m.Helper()
	w := m.workload("renews", "node-1")
	options := meshclient.SidecarTLS()
	options.ServerName = replica.ServerName
	options.Certificate = m.issue(m.endpoint, meshclient.Ask{Token: w.token, ValiditySeconds: 600}, w.id)
	with, err := meshclient.Dial(m.replica.CSR(), m.root, options)
	require.NoError(m, err)
	defer with.Close()
	m.issue(with, meshclient.Ask{ValiditySeconds: 600}, w.id)
}

// servesNodeProxy has a ztunnel ask for a pod beside it; then its own pod is gone, for which the API server is asked, because
// its token is still known to be good.
func (m *mesh) servesNodeProxy() {
	m.Helper()
	beside := m.workload("beside", "node-z")
	require.NoError(m, plane.ServiceAccount(m.Context(), m.ns, "ztunnel"))
	pod, err := plane.Pod(m.Context(), m.ns, "ztunnel", "ztunnel", "node-z")
	require.NoError(m, err)
	token, err := plane.Token(m.Context(), m.ns, "ztunnel", controlplane.TokenOptions{Pod: pod})
	require.NoError(m, err)
	ask := meshclient.Ask{Token: token, ValiditySeconds: 600, Metadata: meshclient.ZtunnelMetadata(beside.id.String())}
	m.issue(m.endpoint, ask, beside.id)
	require.NoError(m, plane.Client().Delete(m.Context(), pod))
	m.used("get pods", func() {
		ask.CSR = m.csr(beside)
		_, _ = m.endpoint.Create(m.Context(), ask)
	})
}

// servesRemoteCluster has a caller of another cluster, which is this one by another name, and a Secret that leads nowhere, of
// which an Event tells.
func (m *mesh) servesRemoteCluster(clusters string) {
	m.Helper()
	require.NoError(m, plane.ServiceAccount(m.Context(), clusters, "reader"))
	m.apply(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: %s},
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator"}, subjects: [{kind: ServiceAccount, name: reader, namespace: %s}]}`, clusters, clusters)
	path, err := plane.KubeconfigAs(m.Context(), clusters, "reader")
	require.NoError(m, err)
	kubeconfig, err := os.ReadFile(path)
	require.NoError(m, err)
	label := map[string]string{"istio/multiCluster": "true"}
	m.setSecret(clusters, "north", label, map[string][]byte{"north": []byte("not a kubeconfig")})
	m.setSecret(clusters, "west", label, map[string][]byte{"west": kubeconfig})
	w := m.workload("west", "node-w")
	m.eventually(func() bool {
		_, err := m.endpoint.Create(m.Context(), meshclient.Ask{Token: w.token, CSR: m.csr(w), ValiditySeconds: 600, ClusterIDs: []string{"west"}})
		return err == nil
	}, "a caller of the remote cluster is served")
}

// probes has the inspection API tell of services and their pods, and probe them.
func (m *mesh) probes(all ...*workload) {
	m.Helper()
	asking := m.inspection()
	for _, w := range all {
		m.eventually(func() bool {
			service, err := asking.Service(m.Context(), w.pod.Namespace, w.pod.Name)
			return err == nil && len(service.Pods) == 1
		}, "the service and its pod are known")
		m.eventually(func() bool { // what a probe asks the API server for has a deadline of seconds
			_, err := asking.Probe(m.Context(), api.ProbeRequest{Namespace: w.pod.Namespace, Service: w.pod.Name})
			return err == nil
		}, "the service is probed")
	}
}

// reachable is an address of this machine that may be a pod's; "" where there is none.
func reachable() string {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range addresses {
		if network, ok := a.(*net.IPNet); ok && network.IP.To4() != nil && network.IP.IsGlobalUnicast() {
			return network.IP.String()
		}
	}
	return ""
}

// showsForeignCertificate has a pod show a certificate that leads to the mesh's anchors and isn't in the records. It is looked
// for among the Certificates.
func (m *mesh) showsForeignCertificate(address string) {
	m.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	require.NoError(m, err)
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	_ = server.Listener.Close()
	server.Listener = listener
	w := &workload{id: identity("foreign", "foreign")}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{m.signed("cert-manager", m.ns, w.id.URL())}, NextProtos: []string{"istio"}}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // a probe says nothing after the handshake
	server.StartTLS()
	m.Cleanup(server.Close)
	port, err := strconv.Atoi(listener.Addr().String()[len(address)+1:])
	require.NoError(m, err)

	namespace := m.namespace("foreign")
	require.NoError(m, plane.ServiceAccount(m.Context(), namespace, "foreign"))
	w.pod, err = plane.Sidecar(m.Context(), namespace, "foreign", "foreign", "node-f")
	require.NoError(m, err)
	w.pod.Status.PodIP, w.pod.Status.PodIPs = address, []corev1.PodIP{{IP: address}}
	require.NoError(m, plane.Client().Status().Update(m.Context(), w.pod))
	require.NoError(m, plane.Client().Create(m.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "foreign"},
		Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "foreign"}, Ports: []corev1.ServicePort{
			{Name: "https", Port: 443, TargetPort: intstr.FromInt(port)},
		}},
	}))
	require.NoError(m, plane.Endpoints(m.Context(), namespace, "foreign", w.pod))
	m.used("list certificates", func() { m.probes(w) })
}

// authority is the certificate and the key of a CA that cert-manager keeps.
func (m *mesh) authority(namespace, name string) tls.Certificate {
	m.Helper()
	var secret corev1.Secret
	require.NoError(m, plane.Client().Get(m.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &secret))
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	require.NoError(m, err)
	return pair
}

// signed is a certificate of an identity, by a CA.
func (m *mesh) signed(namespace, name string, id *url.URL) tls.Certificate {
	m.Helper()
	by := m.authority(namespace, name)
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	require.NoError(m, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "foreign"}, URIs: []*url.URL{id},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, template, by.Leaf, key.Public(), by.PrivateKey)
	require.NoError(m, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (m *mesh) crl(name string) string { m.Helper(); return m.crlOf(m.ns, name) }

// crlOf is a list of a CA that revokes nothing, PEM.
func (m *mesh) crlOf(namespace, name string) string {
	m.Helper()
	by := m.authority(namespace, name)
	der, err := x509.CreateRevocationList(cryptorand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
	}, by.Leaf, by.PrivateKey.(crypto.Signer))
	require.NoError(m, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// requestAsIstiod makes and approves a CertificateSigningRequest for a workload, as istiod does. It returns its name.
func (m *mesh) requestAsIstiod() string {
	m.Helper()
	config := plane.Admin()
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:istio-system:istiod", Groups: []string{"system:masters"}}
	istiod, err := kubernetes.NewForConfig(config)
	require.NoError(m, err)
	requests := istiod.CertificatesV1().CertificateSigningRequests()
	w := m.workload("registered", "node-1")
	request, err := requests.Create(m.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "csr-workload-" + rand.String(10)},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: []byte(m.csr(w)), SignerName: registrationSigner, ExpirationSeconds: new(int32(600)),
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	require.NoError(m, err)
	request.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}}
	_, err = requests.UpdateApproval(m.Context(), request.Name, request, metav1.UpdateOptions{})
	require.NoError(m, err)
	return request.Name
}

func (m *mesh) answered(name string) bool {
	m.Helper()
	var request certificatesv1.CertificateSigningRequest
	require.NoError(m, plane.Client().Get(m.Context(), client.ObjectKey{Name: name}, &request))
	return len(request.Status.Certificate) > 0
}
