package signetctl

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/test/testca"
)

const (
	both      = "service/alpha/web\nservice/beta/web\n"
	onlyAlpha = "service/alpha/web\n"
	onlyBeta  = "service/beta/web\n"
)

// TestKubeconfigs: every kind of kubeconfig finds Signet by itself, and shows what its user may see. Those without a
// token ask as the reader, who may see beta here.
func TestKubeconfigs(t *testing.T) {
	start(t)
	dir := t.TempDir()
	tokenFile := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(tokenFile, []byte(token(t, "everything")), 0o600))
	carla, err := clientcmd.LoadFromFile(ofUser(t, "carla"))
	require.NoError(t, err)
	certificate, key := filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	for _, user := range carla.AuthInfos {
		require.NoError(t, os.WriteFile(certificate, user.ClientCertificateData, 0o600))
		require.NoError(t, os.WriteFile(key, user.ClientKeyData, 0o600))
	}
	plugin := func(name string, status map[string]string) string {
		text, err := json.Marshal(map[string]any{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status})
		require.NoError(t, err)
		answer, script := filepath.Join(dir, name+".json"), filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(answer, text, 0o600))
		require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\ncat '"+answer+"'\n"), 0o700))
		return fmt.Sprintf("{exec: {apiVersion: client.authentication.k8s.io/v1, command: %q, interactiveMode: Never}}", script)
	}
	read := func(path string) string {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	}
	for name, row := range map[string]struct {
		user  string
		flags []string
		sees  string
	}{
		"token":                       {fmt.Sprintf("{token: %q}", token(t, "everything")), nil, both},
		"token of few rights":         {fmt.Sprintf("{token: %q}", token(t, "alpha")), nil, onlyAlpha},
		"token file":                  {fmt.Sprintf("{tokenFile: %q}", tokenFile), nil, both},
		"plugin with a token":         {plugin("token-plugin", map[string]string{"token": token(t, "everything")}), nil, both},
		"plugin with a certificate":   {plugin("certificate-plugin", map[string]string{"clientCertificateData": read(certificate), "clientKeyData": read(key)}), nil, onlyBeta},
		"client certificate":          {fmt.Sprintf("{client-certificate: %q, client-key: %q}", certificate, key), nil, onlyBeta},
		"another reader":              {fmt.Sprintf("{client-certificate: %q, client-key: %q}", certificate, key), []string{"--as-service-account", "istio-system/other-reader"}, onlyAlpha},
		"token, but a reader":         {fmt.Sprintf("{token: %q}", token(t, "alpha")), []string{"--as-service-account", "istio-system/signet-reader"}, onlyBeta},
		"impersonation by flag":       {fmt.Sprintf("{token: %q}", token(t, "everything")), []string{"--as", "carla"}, onlyBeta},
		"impersonation in kubeconfig": {fmt.Sprintf("{token: %q, as: carla}", token(t, "everything")), nil, onlyBeta},
	} {
		t.Run(name, func(t *testing.T) {
			got := ask(t, kubeconfigWith(t, row.user), append([]string{"services", "-A", "-o", "name"}, row.flags...)...)
			assert.Equal(t, 0, got.code, got.err)
			assert.Equal(t, row.sees, got.out)
			if row.sees == both {
				assert.Empty(t, got.err)
			} else {
				assert.Equal(t, "notice: namespaces that you may not see are left out\n", got.err)
			}
		})
	}
}

// TestReader: what the hints say lets a user with a client certificate in.
func TestReader(t *testing.T) {
	start(t)
	paul := ofUser(t, "paul")
	got := ask(t, paul, "services", "-A")
	assert.Equal(t, 4, got.code)
	assert.Contains(t, got.err, "ask for a token of service account istio-system/signet-reader, because your kubeconfig has none that could be sent: ")
	assert.Contains(t, got.err, "kubectl create role signet-reader-user -n istio-system --verb=create --resource=serviceaccounts/token --resource-name=signet-reader\n")
	got = ask(t, ofUser(t, "carla"), "services", "-A", "--as-service-account", "istio-system/missing")
	assert.Equal(t, 3, got.code)
	assert.Contains(t, got.err, "kubectl create serviceaccount missing -n istio-system\n")
	assert.Contains(t, got.err, "--clusterrole=signet-reader --serviceaccount=istio-system:missing\n")

	create(t, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "signet-reader-user-paul"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "signet-reader-user"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "paul"}},
	})
	assert.Equal(t, onlyBeta, askUntil(t, 0, paul, "services", "-A", "-o", "name").out)
}

// TestRights: who lacks a right is told which.
func TestRights(t *testing.T) {
	start(t)
	// At Signet.
	blind := withToken(t, "blind")
	got := ask(t, blind, "services", "-A")
	assert.Equal(t, 4, got.code)
	assert.Contains(t, got.err, "error: system:serviceaccount:people:blind may not list services.signet.dev in any namespace")
	assert.Contains(t, got.err, "hint: a RoleBinding to ClusterRole signet-reader grants it")
	alpha := withToken(t, "alpha")
	assert.Equal(t, 0, ask(t, alpha, "services").code)
	assert.Equal(t, 4, ask(t, alpha, "services", "-n", "beta").code)
	assert.Equal(t, 4, ask(t, alpha, "trust").code)
	assert.Equal(t, 3, ask(t, alpha, "describe", "service", "none").code)
	assert.Equal(t, 0, ask(t, alpha, "describe", "service", "web").code)
	assert.Equal(t, 0, ask(t, withToken(t, "everything"), "trust").code)
	// At the API server, where somebody else may be the one to ask.
	nobody := withToken(t, "nobody")
	got = ask(t, nobody, "services")
	assert.Equal(t, 4, got.code)
	assert.Contains(t, got.err, "get configmap istio-ca-root-cert in namespace istio-system")
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "nobody"}}
	create(t, role)
	create(t, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "nobody"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "nobody"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "people", Name: "nobody"}},
	})
	for _, step := range []struct {
		resource, verb string
		then           string
	}{
		{"configmaps", "get", "get service signet in namespace istio-system"},
		{"services", "get", "list pods in namespace istio-system"},
		{"pods", "list", "create pods/portforward in namespace istio-system"},
		{"pods/portforward", "create", "may not list services.signet.dev"},
	} {
		role.Rules = append(role.Rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{step.resource}, Verbs: []string{step.verb}})
		require.NoError(t, plane.Client().Update(t.Context(), role))
		require.Eventually(t, func() bool {
			got = ask(t, nobody, "services")
			return got.code == 4 && strings.Contains(got.err, step.then)
		}, patience, 50*time.Millisecond, "%s: %v", step.then, &got)
	}
	// Unknown to the API server.
	got = ask(t, kubeconfigWith(t, "{token: nonsense}"), "services")
	assert.Equal(t, 4, got.code)
	assert.Contains(t, got.err, "log in anew")
}

// TestFinding: which pod and port are taken, and what is said where there is none.
func TestFinding(t *testing.T) {
	r := start(t)
	everything := withToken(t, "everything")
	services := func(code int, flags ...string) result {
		t.Helper()
		got := ask(t, everything, append([]string{"services", "-A", "-o", "name"}, flags...)...)
		assert.Equal(t, code, got.code, got.err)
		return got
	}
	last := func() string {
		all := r.kubelet.forwarded()
		require.NotEmpty(t, all)
		return all[len(all)-1]
	}
	services(0)
	assert.Equal(t, "istio-system/signet-0:18443", last())
	services(0, "--signet-port", "inspection")
	assert.Equal(t, "istio-system/signet-0:18443", last())
	services(0, "--signet-port", "18443")
	assert.Equal(t, "istio-system/signet-0:18443", last(), "a number that the Service doesn't have is one of the pod")
	got := services(1, "--signet-port", "443")
	assert.Equal(t, "istio-system/signet-0:6443", last())
	assert.Contains(t, got.err, "forward to port 6443 of pod istio-system/signet-0: ")
	assert.Contains(t, got.err, "nobody listens at istio-system/signet-0:6443")
	assert.Contains(t, services(1, "--signet-port", "none").err, `it has no TCP port "none"`)
	for _, flags := range [][]string{{"--signet-service", "none"}, {"--signet-namespace", "people"}} {
		got := ask(t, plane.Kubeconfig(), append([]string{"services"}, flags...)...)
		assert.Equal(t, 3, got.code)
		assert.Contains(t, got.err, "hint: is Signet installed there")
	}

	// A named port of the pod.
	key := client.ObjectKey{Namespace: system, Name: "signet"}
	service := &corev1.Service{}
	require.NoError(t, plane.Client().Get(t.Context(), key, service))
	service.Spec.Ports[1].TargetPort = intstr.FromString("api")
	require.NoError(t, plane.Client().Update(t.Context(), service))
	assert.Contains(t, services(1).err, `leads to port "api", which pod signet-0 doesn't name`)
	named := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "signet-named", Labels: map[string]string{"app": "signet"}},
		Spec: corev1.PodSpec{ServiceAccountName: "signet", NodeName: r.kubelet.node, TerminationGracePeriodSeconds: new(int64), Containers: []corev1.Container{
			{Name: "signet", Image: "example.invalid/signet", Ports: []corev1.ContainerPort{{Name: "api", ContainerPort: 28443}}},
		}},
	}
	create(t, named)
	named.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}}
	require.NoError(t, plane.Client().Status().Update(t.Context(), named))
	first := &corev1.Pod{}
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: system, Name: "signet-0"}, first))
	ready := func(pod *corev1.Pod, ready corev1.ConditionStatus) {
		t.Helper()
		for i := range pod.Status.Conditions {
			if pod.Status.Conditions[i].Type == corev1.PodReady {
				pod.Status.Conditions[i].Status = ready
			}
		}
		require.NoError(t, plane.Client().Status().Update(t.Context(), pod))
	}
	ready(first, corev1.ConditionFalse)
	assert.Contains(t, services(1).err, "none of its 2 pods is ready\nhint: kubectl get pods -n istio-system -l 'app=signet'")
	r.kubelet.lead(system, "signet-named", 28443, r.server.Address().String())
	ready(named, corev1.ConditionTrue)
	services(0)
	assert.Equal(t, "istio-system/signet-named:28443", last())

	service.Spec.Selector = nil
	require.NoError(t, plane.Client().Update(t.Context(), service))
	assert.Contains(t, services(1).err, "it selects no pods")
}

// TestProof: who answers in Signet's place is asked nothing.
func TestProof(t *testing.T) {
	r := start(t)
	everything := withToken(t, "everything")
	assert.Equal(t, 0, ask(t, everything, "services").code)
	roots := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: system, Name: "istio-ca-root-cert"}
	require.NoError(t, plane.Client().Get(t.Context(), key, roots))
	good := roots.Data["root-cert.pem"]
	other, err := testca.NewRoot("other")
	require.NoError(t, err)
	for text, wanted := range map[string]string{
		rootPEM(other): "hint: what answered has no certificate under the roots that were expected",
		"nonsense":     "its key root-cert.pem has no certificate in PEM",
		"":             "its key root-cert.pem has no certificate in PEM",
	} {
		roots.Data["root-cert.pem"] = text
		require.NoError(t, plane.Client().Update(t.Context(), roots))
		got := ask(t, everything, "services")
		assert.Equal(t, 1, got.code)
		assert.Contains(t, got.err, wanted)
	}
	pinned := filepath.Join(t.TempDir(), "root.pem")
	require.NoError(t, os.WriteFile(pinned, []byte(good), 0o600))
	assert.Equal(t, 0, ask(t, everything, "services", "--ca-file", pinned).code, "pinned roots count")

	// Another service of the mesh, in Signet's place.
	roots.Data["root-cert.pem"] = rootPEM(other)
	require.NoError(t, plane.Client().Update(t.Context(), roots))
	imposter := r.serve(t, serving(t, other, "web.alpha.svc"))
	r.kubelet.lead(system, r.pod, podPort, imposter.Address().String())
	got := ask(t, everything, "services")
	assert.Equal(t, 1, got.code)
	assert.Contains(t, got.err, "is valid for web.alpha.svc, not signet.istio-system.svc")
}

// TestOlderAPIServer: where nobody knows of port-forwards over websockets, it's SPDY.
func TestOlderAPIServer(t *testing.T) {
	start(t)
	config := rest.AnonymousClientConfig(plane.Admin())
	config.NextProtos = []string{"http/1.1"} // the other one can't be upgraded
	transport, err := rest.TransportFor(config)
	require.NoError(t, err)
	at, err := url.Parse(plane.Admin().Host)
	require.NoError(t, err)
	var websockets, spdy atomic.Int32
	proxy := httputil.NewSingleHostReverseProxy(at)
	proxy.Transport = transport
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch strings.ToLower(r.Header.Get("Upgrade")) {
		case "websocket":
			websockets.Add(1)
			http.Error(w, "websockets are not known here", http.StatusBadRequest)
			return
		case "spdy/3.1":
			spdy.Add(1)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { front.CloseClientConnections(); front.Close() })
	got := ask(t, kubeconfigAt(t, front.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), fmt.Sprintf("{token: %q}", token(t, "everything"))), "services", "-A", "-o", "name")
	assert.Equal(t, 0, got.code, got.err)
	assert.Equal(t, both, got.out)
	assert.EqualValues(t, 1, websockets.Load())
	assert.EqualValues(t, 1, spdy.Load())
}

// TestWatch: changes come as they are, also when the connection broke meanwhile and Signet's pod is another one; it ends
// when the right to it is taken away.
func TestWatch(t *testing.T) {
	r := start(t)
	watch := begin(t, withToken(t, "everything"), "services", "-A", "--watch")
	watch.await(t, "beta")
	r.shown.change(func() { r.shown.pods = 2 })
	watch.await(t, "2/2")

	second := r.addPod(t, "signet-1")
	r.kubelet.lead(system, second, podPort, r.server.Address().String())
	first := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: r.pod}}
	require.NoError(t, plane.Client().Delete(t.Context(), first))
	r.shown.change(func() { r.shown.pods = 3 })
	r.kubelet.cut()
	watch.await(t, "3/3")
	require.Eventually(t, func() bool {
		all := r.kubelet.forwarded()
		return all[len(all)-1] == "istio-system/signet-1:18443"
	}, patience, 5*time.Millisecond)
	r.shown.change(func() { r.shown.pods = 4 })
	watch.await(t, "4/4")
	assert.Equal(t, 1, strings.Count(watch.output(t), "NAMESPACE"))
	watch.stop(t)

	limited := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: "beta", Name: "blind"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "signet-reader"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "people", Name: "blind"}},
	}
	create(t, limited)
	blind := withToken(t, "blind")
	askUntil(t, 0, blind, "services", "-n", "beta")
	watch = begin(t, blind, "services", "-n", "beta", "--watch")
	watch.await(t, "4/4")
	remove(t, limited)
	require.Eventually(t, func() bool {
		r.shown.change(func() {}) // at each of which Signet asks anew who may see it
		return watch.Ended()
	}, patience, 50*time.Millisecond)
	assert.Equal(t, 4, watch.ExitCode())
}

// TestFollow: lines of the audit come as they happen, each once.
func TestFollow(t *testing.T) {
	r := start(t)
	line := func(name string) {
		r.shown.change(func() {
			r.shown.lines = append(r.shown.lines, api.Issuance{Time: time.Now().UTC(), Outcome: api.Issued, Certificate: &api.Certificate{SHA256: name, Namespace: "alpha"}})
		})
	}
	line("before")
	everything := withToken(t, "everything")
	follow := begin(t, everything, "issuances", "-A", "--follow", "--since", "1h", "-o", "name")
	follow.await(t, "issuance/before\n")
	for _, name := range []string{"one", "two"} {
		line(name)
		follow.await(t, "issuance/"+name+"\n")
	}
	follow.stop(t)
	assert.Equal(t, "issuance/before\nissuance/one\nissuance/two\n", follow.output(t))
	got := ask(t, everything, "issuances", "-A", "-o", "name")
	assert.Equal(t, "issuance/two\nissuance/one\nissuance/before\n", got.out)
}

// TestDashboard: the page and its data come through the port-forward, with the rights of the kubeconfig's user.
func TestDashboard(t *testing.T) {
	start(t)
	alpha := token(t, "alpha")
	dashboard := begin(t, kubeconfigWith(t, fmt.Sprintf("{token: %q}", alpha)), "dashboard", "--no-browser")
	dashboard.await(t, "\n")
	address, err := url.Parse(strings.TrimSpace(dashboard.output(t)))
	require.NoError(t, err)
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	browser := &http.Client{Jar: jar, Timeout: patience}
	t.Cleanup(browser.CloseIdleConnections)
	get := func(at *url.URL) (int, string) {
		t.Helper()
		response, err := browser.Get(at.String())
		require.NoError(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(text)
	}
	base := address.JoinPath("..")
	base.RawQuery = ""
	status, _ := get(base.JoinPath("v1/services"))
	assert.Equal(t, 403, status)
	status, _ = get(address)
	require.Equal(t, 200, status)
	status, text := get(base.JoinPath("ui/"))
	assert.Equal(t, 200, status)
	assert.Contains(t, text, "<html")
	status, text = get(base.JoinPath("v1/services"))
	assert.Equal(t, 200, status)
	var list api.ServiceList
	require.NoError(t, json.Unmarshal([]byte(text), &list))
	require.Len(t, list.Items, 1)
	assert.Equal(t, "alpha", list.Items[0].Namespace)
	assert.True(t, list.Restricted)
	dashboard.stop(t)
	log, err := os.ReadFile(dashboard.err)
	require.NoError(t, err)
	assert.NotContains(t, dashboard.output(t)+string(log), alpha)
}
