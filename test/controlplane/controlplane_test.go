package controlplane_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
)

// plane is shared by the tests that do not end it.
var plane *controlplane.Plane

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(child())
	}
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	var err error
	plane, err = controlplane.Start(context.Background(), controlplane.Config{
		Audit:    true,
		Progress: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := plane.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	return m.Run()
}

func TestBootstrapCA(t *testing.T) {
	for _, test := range []struct {
		name  string
		opts  controlplane.CAOptions
		chain int // certificates in the chain that cert-manager answers with, the root left out
	}{
		{"ecdsa", controlplane.CAOptions{}, 1},
		{"rsa", controlplane.CAOptions{RSA: true, Lifetime: 48 * time.Hour}, 1},
		{"intermediate", controlplane.CAOptions{Intermediate: true}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			ns := plane.NewNamespace(t, "ca")
			rootPEM, err := plane.BootstrapCA(t.Context(), ns, "mesh", test.opts)
			require.NoError(t, err)
			root := parseChain(t, rootPEM)[0]
			assert.True(t, root.IsCA)
			assert.Equal(t, root.RawSubject, root.RawIssuer)
			if test.opts.Lifetime != 0 {
				assert.Equal(t, test.opts.Lifetime, root.NotAfter.Sub(root.NotBefore))
			}

			again, err := plane.BootstrapCA(t.Context(), ns, "mesh", test.opts)
			require.NoError(t, err, "what is there is used")
			assert.Equal(t, rootPEM, again)

			leaf := sign(t, plane, ns, "mesh")
			assert.Len(t, leaf, test.chain)
			roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
			roots.AddCert(root)
			for _, c := range leaf[1:] {
				intermediates.AddCert(c)
			}
			_, err = leaf[0].Verify(x509.VerifyOptions{
				Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			})
			assert.NoError(t, err)
		})
	}
}

func TestBoundToken(t *testing.T) {
	ctx := t.Context()
	ns := plane.NewNamespace(t, "token")
	require.NoError(t, plane.ServiceAccount(ctx, ns, "web"))
	pod, err := plane.Pod(ctx, ns, "web-0", "web", "node-a")
	require.NoError(t, err)
	assert.Equal(t, corev1.PodRunning, pod.Status.Phase)
	assert.NotEmpty(t, pod.Status.PodIP)

	token, err := plane.Token(ctx, ns, "web", controlplane.TokenOptions{Pod: pod})
	require.NoError(t, err)
	status := review(t, token, controlplane.DefaultAudience)
	require.True(t, status.Authenticated, status.Error)
	assert.Equal(t, "system:serviceaccount:"+ns+":web", status.User.Username)
	assert.Equal(t, []string{controlplane.DefaultAudience}, status.Audiences)
	for key, want := range map[string]string{"pod-name": "web-0", "pod-uid": string(pod.UID), "node-name": "node-a"} {
		assert.Equal(t, authenticationv1.ExtraValue{want}, status.User.Extra["authentication.kubernetes.io/"+key], key)
	}
	assert.False(t, review(t, token, "somebody-else").Authenticated)
	unseen, err := plane.Token(ctx, ns, "web", controlplane.TokenOptions{Pod: pod})
	require.NoError(t, err)

	_, err = plane.Token(ctx, ns, "web", controlplane.TokenOptions{Lifetime: 9 * time.Minute})
	assert.True(t, apierrors.IsInvalid(err), "%v", err)

	// A token ends with its Pod, which goes at once. (One that the API server has seen it believes
	// for ten seconds more.)
	require.NoError(t, plane.Client().Delete(ctx, pod))
	err = plane.Client().Get(ctx, client.ObjectKeyFromObject(pod), pod)
	assert.True(t, apierrors.IsNotFound(err), "%v", err)
	assert.Eventually(t, func() bool { return !review(t, unseen, controlplane.DefaultAudience).Authenticated },
		3*time.Minute, 50*time.Millisecond)
}

func TestActAs(t *testing.T) {
	ctx := t.Context()
	ns := plane.NewNamespace(t, "act")
	require.NoError(t, plane.ServiceAccount(ctx, ns, "reader"))
	path, err := plane.KubeconfigAs(ctx, ns, "reader")
	require.NoError(t, err)
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	require.NoError(t, err)
	clientset, err := kubernetes.NewForConfig(cfg)
	require.NoError(t, err)

	self, err := clientset.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	require.NoError(t, err)
	assert.Equal(t, "system:serviceaccount:"+ns+":reader", self.Status.UserInfo.Username)
	_, err = clientset.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)

	require.NoError(t, plane.Apply(ctx, fmt.Appendf(nil, `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: %[1]s}
rules:
- {apiGroups: [""], resources: [secrets], verbs: [list]}
---
# empty
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: %[1]s}]
`, ns)))
	assert.Eventually(t, func() bool {
		_, err := clientset.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{})
		return err == nil
	}, 3*time.Minute, 50*time.Millisecond)

	text, err := os.ReadFile(plane.AuditLog())
	require.NoError(t, err)
	assert.Contains(t, string(text), "system:serviceaccount:"+ns+":reader")
}

func TestApplyDefinition(t *testing.T) {
	// What is defined can be used by the next document.
	manifest := []byte(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: seals.test.signet.dev}
spec:
  group: test.signet.dev
  scope: Cluster
  names: {plural: seals, singular: seal, kind: Seal, listKind: SealList}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
---
apiVersion: test.signet.dev/v1
kind: Seal
metadata: {name: great}
`)
	require.NoError(t, plane.Apply(t.Context(), manifest))
	require.NoError(t, plane.Apply(t.Context(), manifest), "again")

	err := plane.Apply(t.Context(), []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: absent}\n"))
	assert.True(t, apierrors.IsNotFound(err), "%v", err)
	assert.ErrorContains(t, err, "apply ConfigMap absent/x")
}

func TestMetrics(t *testing.T) {
	count := func() float64 {
		m, err := plane.Metrics(t.Context())
		require.NoError(t, err)
		return m.Requests("POST", "limitranges") // which nobody else makes
	}
	ns := plane.NewNamespace(t, "metrics")
	before := count()
	require.NoError(t, plane.Client().Create(t.Context(), &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "counted"}}))
	// It is counted when it has been answered.
	assert.Eventually(t, func() bool { return count() > before }, 3*time.Minute, 50*time.Millisecond)
	assert.Equal(t, before+1, count())
}

func TestPartsStopAndPause(t *testing.T) {
	ctx := t.Context()
	p := start(t, controlplane.Config{CertManagerWorkers: 2})
	ns := p.NewNamespace(t, "kept")
	_, err := p.BootstrapCA(ctx, ns, "mesh", controlplane.CAOptions{})
	require.NoError(t, err)
	token, err := p.Token(ctx, ns, "default", controlplane.TokenOptions{})
	require.NoError(t, err)

	for _, part := range []*controlplane.Part{p.APIServer(), p.Etcd(), p.CertManager()} {
		t.Run("stop "+part.Name(), func(t *testing.T) {
			pid := part.PID()
			begin := time.Now()
			require.NoError(t, part.Stop())
			t.Logf("stopped after %v", time.Since(begin))
			assert.Zero(t, part.PID())
			assert.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
			assert.ErrorIs(t, part.Pause(), os.ErrProcessDone)
			require.NoError(t, part.Stop(), "again")
			require.NoError(t, part.Start(t.Context()))
			require.NoError(t, part.Start(t.Context()), "again")
			assert.NotEqual(t, pid, part.PID())
		})
	}
	t.Run("kill apiserver", func(t *testing.T) {
		p.APIServer().Kill()
		require.NoError(t, p.APIServer().Start(t.Context()))
	})
	t.Run("what was there is there", func(t *testing.T) {
		sign(t, p, ns, "mesh")
		req := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{
			Token: token, Audiences: []string{controlplane.DefaultAudience},
		}}
		require.NoError(t, p.Client().Create(ctx, req))
		assert.True(t, req.Status.Authenticated, req.Status.Error)
	})
	t.Run("pause apiserver", func(t *testing.T) {
		require.NoError(t, p.APIServer().Pause())
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		err := p.Client().List(short, &corev1.NodeList{})
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, p.APIServer().Resume())
		assert.NoError(t, p.Client().List(t.Context(), &corev1.NodeList{}))
	})
	t.Run("stop while paused", func(t *testing.T) {
		running := p.CertManager().Process()
		require.NoError(t, p.CertManager().Pause())
		require.NoError(t, p.CertManager().Stop())
		assert.Zero(t, running.ExitCode(), "it could end by itself, and was not killed")
	})
}

func TestStopLeavesNothing(t *testing.T) {
	a := start(t, controlplane.Config{WithoutCertManager: true})
	b := start(t, controlplane.Config{WithoutCertManager: true})
	assert.NotEqual(t, a.Admin().Host, b.Admin().Host)
	assert.Nil(t, a.CertManager())
	a.NewNamespace(t, "only-a")
	var namespaces corev1.NamespaceList
	require.NoError(t, b.Client().List(t.Context(), &namespaces))
	for _, ns := range namespaces.Items {
		assert.NotContains(t, ns.Name, "only-a")
	}

	for _, p := range []*controlplane.Plane{a, b} {
		var pids []int
		for _, part := range p.Parts() {
			pids = append(pids, part.PID())
		}
		require.Len(t, pids, 2)
		begin := time.Now()
		require.NoError(t, p.Stop())
		t.Logf("stopped after %v", time.Since(begin))
		assertEnded(t, pids)
		assert.NoDirExists(t, p.Dir())
		assert.NoError(t, p.Stop(), "again")
	}
}

func TestContinueOnDirectory(t *testing.T) {
	cfg := controlplane.Config{Dir: filepath.Join(t.TempDir(), "state"), WithoutCertManager: true, Fsync: true}
	p := start(t, cfg)
	ns := p.NewNamespace(t, "kept")
	token, err := p.Token(t.Context(), ns, "default", controlplane.TokenOptions{})
	require.NoError(t, err)

	_, err = controlplane.Start(t.Context(), cfg)
	assert.ErrorContains(t, err, "another control plane uses it")

	require.NoError(t, p.Stop())
	p = start(t, cfg)
	req := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{
		Token: token, Audiences: []string{controlplane.DefaultAudience},
	}}
	require.NoError(t, p.Client().Create(t.Context(), req))
	assert.True(t, req.Status.Authenticated, req.Status.Error)
}

func TestStartErrors(t *testing.T) {
	t.Run("no binary", func(t *testing.T) {
		t.Setenv("SIGNET_KUBE", filepath.Join(t.TempDir(), "kube"))
		_, err := controlplane.Start(t.Context(), controlplane.Config{})
		assert.ErrorIs(t, err, fs.ErrNotExist)
		assert.ErrorContains(t, err, "make bin")
	})
	t.Run("part ends", func(t *testing.T) {
		binary := filepath.Join(t.TempDir(), "kube")
		require.NoError(t, os.WriteFile(binary, []byte("#!/bin/sh\necho out of wax >&2\nexit 3\n"), 0o700))
		t.Setenv("SIGNET_KUBE", binary)
		t.Setenv("TMPDIR", t.TempDir())
		_, err := controlplane.Start(t.Context(), controlplane.Config{})
		assert.ErrorContains(t, err, "start etcd: ended before it was ready: exit status 3")
		assert.ErrorContains(t, err, "out of wax")
		left, err := os.ReadDir(os.TempDir())
		require.NoError(t, err)
		assert.Empty(t, left)
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := controlplane.Start(ctx, controlplane.Config{})
		assert.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// childVariable makes this test binary start a plane, say where it is, and wait to be killed.
const childVariable = "CONTROLPLANE_TEST_CHILD"

func child() int {
	p, err := controlplane.Start(context.Background(), controlplane.Config{WithoutCertManager: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := p.Etcd().Pause(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(p.Dir(), p.Etcd().PID(), p.APIServer().PID())
	select {}
}

func TestPartsDieWithParent(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // for the child too; nobody else tidies up there
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	killed := cmd.Process.Kill()
	_ = cmd.Wait()
	require.NoError(t, errors.Join(err, killed))

	fields := strings.Fields(line)
	require.Len(t, fields, 3)
	var pids []int
	for _, f := range fields[1:] {
		pid, err := strconv.Atoi(f)
		require.NoError(t, err)
		pids = append(pids, pid)
	}
	assertEnded(t, pids)

	// The directory could not be removed; whoever starts the next plane does, but for those in use.
	require.DirExists(t, fields[0])
	next := start(t, controlplane.Config{WithoutCertManager: true})
	assert.NoDirExists(t, fields[0])
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = controlplane.Start(cancelled, controlplane.Config{})
	assert.ErrorIs(t, err, context.Canceled)
	assert.DirExists(t, next.Dir())
}

// start starts a plane that ends with the test.
func start(t *testing.T, cfg controlplane.Config) *controlplane.Plane {
	t.Helper()
	p, err := controlplane.Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Stop()) })
	return p
}

// assertEnded waits until none of the processes is there; a zombie that waits for init is not.
func assertEnded(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		assert.Eventually(t, func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return err != nil || strings.Contains(string(stat), ") Z ")
		}, 3*time.Minute, 20*time.Millisecond, "process %d", pid)
	}
}

// review asks the shared plane about a token.
func review(t *testing.T, token, audience string) authenticationv1.TokenReviewStatus {
	t.Helper()
	req := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{audience}}}
	require.NoError(t, plane.Client().Create(t.Context(), req))
	return req.Status
}

// sign has an Issuer sign a request made by hand, and returns the chain, leaf first.
func sign(t *testing.T, p *controlplane.Plane, namespace, issuer string) []*x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	csrDER, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/" + namespace + "/sa/default"}},
	}, key)
	require.NoError(t, err)
	cr := &certmanager.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "by-hand-"},
		Spec: certmanager.CertificateRequestSpec{
			Request:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csrDER}),
			Duration:  &metav1.Duration{Duration: time.Hour},
			IssuerRef: cmmeta.IssuerReference{Name: issuer},
			Usages:    []certmanager.KeyUsage{certmanager.UsageClientAuth, certmanager.UsageServerAuth},
		},
	}
	require.NoError(t, p.Client().Create(t.Context(), cr))
	require.Eventually(t, func() bool {
		require.NoError(t, p.Client().Get(t.Context(), client.ObjectKeyFromObject(cr), cr))
		return len(cr.Status.Certificate) > 0
	}, 3*time.Minute, 20*time.Millisecond, "%+v", cr.Status)

	chain := parseChain(t, cr.Status.Certificate)
	require.Len(t, chain[0].URIs, 1)
	assert.Equal(t, "spiffe://cluster.local/ns/"+namespace+"/sa/default", chain[0].URIs[0].String())
	return chain
}

func parseChain(t *testing.T, chainPEM []byte) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for rest := chainPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		chain = append(chain, cert)
	}
	require.NotEmpty(t, chain)
	return chain
}
