package signetctl

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/web"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/test/process"
	"github.com/signet-ca/signet/test/testca"
)

// shown is what the server shows: a service in each of two namespaces, and the lines of the audit so far.
type shown struct {
	api.Views // no other is asked

	mu      sync.Mutex
	pods    int // behind each service
	lines   []api.Issuance
	changed chan struct{}
}

var places = []string{"alpha", "beta"}

func (s *shown) change(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *shown) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *shown) service(namespace string) api.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return api.Service{Namespace: namespace, Name: "web", Summary: api.Summary{Total: s.pods, Fresh: s.pods, RemainingRatio: 0.5}}
}

func (s *shown) Services(_ context.Context, q api.ServiceQuery) (*api.ServiceList, error) {
	list := &api.ServiceList{}
	for _, place := range places {
		if (q.Namespace == "" || q.Namespace == place) && q.Visible.Namespace(place) {
			list.Items = append(list.Items, s.service(place))
		}
	}
	return list, nil
}

func (s *shown) Service(_ context.Context, namespace, name string) (*api.Service, error) {
	if name != "web" {
		return nil, api.ErrNotFound
	}
	service := s.service(namespace)
	return &service, nil
}

func (s *shown) Issuances(_ context.Context, q api.IssuanceQuery) (*api.IssuanceList, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := &api.IssuanceList{}
	for _, line := range s.lines {
		if !line.Time.Before(q.Since) && q.Visible.Namespace(line.Certificate.Namespace) {
			list.Items = append([]api.Issuance{line}, list.Items...)
		}
	}
	return list, nil
}

func (s *shown) Trust(context.Context) (*api.Trust, error) {
	return &api.Trust{Replicas: []string{"signet-0"}}, nil
}

// rig is an inspection API behind a pod of Service istio-system/signet, and the roots of its mesh.
type rig struct {
	kubelet *kubelet
	shown   *shown
	server  *api.Server
	pod     string
}

const (
	// patience is how long a test waits for what must come; it only ever runs out when it doesn't.
	patience = 3 * time.Minute

	system = "istio-system"
	// podPort is the port of the pod that the Service's port leads to.
	podPort   = 18443
	cacheTime = 100 * time.Millisecond
)

// start makes a rig, of which there is one at a time.
func start(t *testing.T) *rig {
	t.Helper()
	r := &rig{kubelet: newKubelet(t), shown: &shown{changed: make(chan struct{}), pods: 1}}
	root, err := testca.NewRoot("mesh")
	require.NoError(t, err)
	r.server = r.serve(t, serving(t, root, "signet.istio-system.svc"))
	create(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "istio-ca-root-cert"}, Data: map[string]string{"root-cert.pem": rootPEM(root)}})
	create(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "signet"}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "signet"},
		Ports:    []corev1.ServicePort{{Name: "grpc", Port: 443, TargetPort: intstr.FromInt32(6443)}, {Name: "inspection", Port: 8443, TargetPort: intstr.FromInt32(podPort)}},
	}})
	r.pod = r.addPod(t, "signet-0")
	r.kubelet.lead(system, r.pod, podPort, r.server.Address().String())
	return r
}

// addPod adds a ready pod of Signet's on the kubelet's node.
func (r *rig) addPod(t *testing.T, name string) string {
	t.Helper()
	pod, err := plane.Pod(t.Context(), system, name, "signet", r.kubelet.node, map[string]string{"app": "signet"})
	require.NoError(t, err)
	t.Cleanup(func() { remove(t, pod) })
	return pod.Name
}

func create(t *testing.T, object client.Object) {
	t.Helper()
	require.NoError(t, plane.Client().Create(t.Context(), object))
	t.Cleanup(func() { remove(t, object) })
}

func remove(t *testing.T, object client.Object) {
	assert.NoError(t, client.IgnoreNotFound(plane.Client().Delete(context.WithoutCancel(t.Context()), object)))
}

// serve starts the inspection API under Signet's own account.
func (r *rig) serve(t *testing.T, certificate *tls.Certificate) *api.Server {
	t.Helper()
	config, err := plane.As(t.Context(), system, "signet")
	require.NoError(t, err)
	server, err := api.NewServer(api.Config{Listen: "127.0.0.1:0", CacheTime: setting.DurationOf(cacheTime)}, r.shown,
		func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil },
		api.Cluster{Config: config, Namespaces: func() []string { return places }}, api.Mesh{},
		slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	server.Mount("GET /ui/", web.Handler())
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- server.Start(ctx) }()
	t.Cleanup(func() { stop(); assert.NoError(t, <-ended) })
	require.Eventually(t, func() bool { return server.Address() != nil }, patience, time.Millisecond)
	return server
}

func rootPEM(root *testca.Authority) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Cert.Raw}))
}

// serving is a certificate of a server for a DNS name.
func serving(t *testing.T, by *testca.Authority, name string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &testca.Template{Key: key.Public()}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	san, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(name)})
	require.NoError(t, err)
	require.NoError(t, template.SetSAN(san))
	chain, err := by.Sign(template)
	require.NoError(t, err)
	certificate := &tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		certificate.Certificate = append(certificate.Certificate, block.Bytes)
	}
	return certificate
}

// result is how a run of the command ended.
type result struct {
	code     int
	out, err string
}

// prepared is a run of the command that sees no environment but the kubeconfig.
func prepared(ctx context.Context, t *testing.T, kubeconfig string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = []string{"KUBECONFIG=" + kubeconfig, "HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"),
		"GORACE=atexit_sleep_ms=0"} // or the end of each run takes a second with the race detector
	return cmd
}

// ask runs the command to its end.
func ask(t *testing.T, kubeconfig string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := prepared(ctx, t, kubeconfig, args...)
	var out, errText bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errText
	if err := cmd.Run(); err != nil {
		_, ok := errors.AsType[*exec.ExitError](err)
		require.True(t, ok, "%v", err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errText.String()}
}

// askUntil asks until the code is the wanted one: the API server's own knowledge of rights takes a moment.
func askUntil(t *testing.T, code int, kubeconfig string, args ...string) result {
	t.Helper()
	var got result
	require.Eventually(t, func() bool { got = ask(t, kubeconfig, args...); return got.code == code }, patience, 50*time.Millisecond, "%v", &got)
	return got
}

// running is a run of the command that goes on.
type running struct {
	*process.Process
	out, err string // files
}

// begin starts the command; it is ended with the test.
func begin(t *testing.T, kubeconfig string, args ...string) *running {
	t.Helper()
	dir := t.TempDir()
	r := &running{out: filepath.Join(dir, "out"), err: filepath.Join(dir, "err")}
	cmd := prepared(context.WithoutCancel(t.Context()), t, kubeconfig, args...)
	out, err := os.Create(r.out)
	require.NoError(t, err)
	defer out.Close()
	cmd.Stdout = out
	r.Process, err = process.Start(cmd, r.err)
	require.NoError(t, err)
	t.Cleanup(r.Kill)
	return r
}

func (r *running) output(t *testing.T) string {
	text, err := os.ReadFile(r.out)
	assert.NoError(t, err)
	return string(text)
}

// await waits until its output has a text.
func (r *running) await(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(r.output(t), text) || r.Ended() }, patience, 5*time.Millisecond)
	require.Contains(t, r.output(t), text, process.Tail(r.err, 20))
}

// stop ends it as Ctrl-C does.
func (r *running) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, r.Signal(os.Interrupt))
	select {
	case <-r.Done():
	case <-time.After(patience):
		require.Fail(t, "it doesn't end")
	}
	assert.Equal(t, 0, r.ExitCode(), process.Tail(r.err, 20))
}

func token(t *testing.T, account string) string {
	t.Helper()
	config, err := plane.As(t.Context(), "people", account)
	require.NoError(t, err)
	return config.BearerToken
}

// kubeconfigWith is a kubeconfig for the plane with a user in YAML, flow style, and the name of the file it's in.
func kubeconfigWith(t *testing.T, user string) string {
	t.Helper()
	return kubeconfigAt(t, plane.Admin().Host, plane.Admin().CAData, user)
}

func kubeconfigAt(t *testing.T, server string, ca []byte, user string) string {
	t.Helper()
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(caFile, ca, 0o600))
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u, namespace: alpha}}]
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: u, user: %s}]
`, server, caFile, user), 0o600))
	return path
}

// withToken is a kubeconfig with an account's token in it.
func withToken(t *testing.T, account string) string {
	t.Helper()
	return kubeconfigWith(t, fmt.Sprintf("{token: %q}", token(t, account)))
}

// ofUser is a kubeconfig with a client certificate.
func ofUser(t *testing.T, name string) string {
	t.Helper()
	path, err := plane.KubeconfigOf(name, "people")
	require.NoError(t, err)
	return path
}
