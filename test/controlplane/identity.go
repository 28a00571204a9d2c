package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// DefaultAudience is the audience of tokens that a mesh workload shows to its CA.
const DefaultAudience = "istio-ca"

// actingLifetime is how long what As returns can be used.
const actingLifetime = 365 * 24 * time.Hour

// Namespace creates a namespace, and in it the ServiceAccount "default", unless they are there.
func (p *Plane) Namespace(ctx context.Context, name string) error {
	if err := p.createIfAbsent(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		return err
	}
	return p.ServiceAccount(ctx, name, "default")
}

// NewNamespace creates a namespace for one test, with the ServiceAccount "default", and returns
// its name: prefix, a dash, and five random letters and digits. It stays when the test ends,
// because without a controller manager its contents would stay anyway.
func (p *Plane) NewNamespace(t testing.TB, prefix string) string {
	t.Helper()
	name := prefix + "-" + rand.String(5)
	if err := p.Namespace(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return name
}

// ServiceAccount creates a ServiceAccount in a namespace, unless it is there.
func (p *Plane) ServiceAccount(ctx context.Context, namespace, name string) error {
	return p.createIfAbsent(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
}

// TokenOptions says what a token is for.
type TokenOptions struct {
	// Audiences are whom the token is meant for. Optional: the default is [DefaultAudience].
	Audiences []string

	// Lifetime is how long the token is valid; the API server allows 10 minutes and more.
	// Optional: the default is one hour.
	Lifetime time.Duration

	// Pod binds the token to a Pod, which has to be of the same namespace and ServiceAccount.
	// The token is good as long as the Pod is there. Optional.
	Pod *corev1.Pod
}

// Token returns a new token of a ServiceAccount, by TokenRequest. It costs the API server about
// two milliseconds of CPU: whoever measures asks before the clock runs.
func (p *Plane) Token(ctx context.Context, namespace, serviceAccount string, opts TokenOptions) (string, error) {
	if len(opts.Audiences) == 0 {
		opts.Audiences = []string{DefaultAudience}
	}
	return p.token(ctx, namespace, serviceAccount, opts)
}

// token is Token, but that no audiences mean the API server's own.
func (p *Plane) token(ctx context.Context, namespace, serviceAccount string, opts TokenOptions) (string, error) {
	if opts.Lifetime == 0 {
		opts.Lifetime = time.Hour
	}
	seconds := int64(opts.Lifetime / time.Second)
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences:         opts.Audiences,
		ExpirationSeconds: &seconds,
	}}
	if opts.Pod != nil {
		req.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Pod", Name: opts.Pod.Name, UID: opts.Pod.UID,
		}
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: serviceAccount}}
	if err := p.client.SubResource("token").Create(ctx, sa, req); err != nil {
		return "", fmt.Errorf("create token of ServiceAccount %s/%s: %w", namespace, serviceAccount, err)
	}
	return req.Status.Token, nil
}

// Pod creates a Pod that runs on node as far as the API server knows: its status is Running and
// Ready, and its IP its own. Its labels are "app" with its name, and those given. It can be deleted
// at once, without a kubelet saying that it ended. The ServiceAccount has to exist; node need not.
func (p *Plane) Pod(ctx context.Context, namespace, name, serviceAccount, node string, labels ...map[string]string) (*corev1.Pod, error) {
	return p.pod(ctx, namespace, name, serviceAccount, node, []string{"app"}, labels...)
}

func (p *Plane) pod(ctx context.Context, namespace, name, serviceAccount, node string, containers []string, labels ...map[string]string) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			ServiceAccountName:            serviceAccount,
			NodeName:                      node,
			TerminationGracePeriodSeconds: new(int64), // zero
		},
	}
	for _, c := range containers {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: c, Image: "example.invalid/" + c})
	}
	for _, l := range labels {
		maps.Copy(pod.Labels, l)
	}
	if err := p.client.Create(ctx, pod); err != nil {
		return nil, fmt.Errorf("create Pod %s/%s: %w", namespace, name, err)
	}
	now := metav1.Now()
	ip := p.nextPodIP()
	pod.Status = corev1.PodStatus{
		Phase:     corev1.PodRunning,
		PodIP:     ip,
		PodIPs:    []corev1.PodIP{{IP: ip}},
		HostIP:    "192.0.2.1", // RFC 5737: documentation
		StartTime: &now,
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: now},
			{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now},
		},
	}
	if err := p.client.Status().Update(ctx, pod); err != nil {
		return nil, fmt.Errorf("update status of Pod %s/%s: %w", namespace, name, err)
	}
	return pod, nil
}

// nextPodIP counts through 10.0.0.0/8, from a random place, so that a plane continued on an old
// directory is not likely to give the same addresses again.
func (p *Plane) nextPodIP() string {
	n := p.podIP.Add(1)
	return fmt.Sprintf("10.%d.%d.%d", n>>16&0xff, n>>8&0xff, n&0xff)
}

// As returns what a client needs to act as a ServiceAccount, which has to exist: a token that is
// valid for a year, and no client-side rate limit. The caller owns it.
func (p *Plane) As(ctx context.Context, namespace, serviceAccount string) (*rest.Config, error) {
	token, err := p.token(ctx, namespace, serviceAccount, TokenOptions{Lifetime: actingLifetime})
	if err != nil {
		return nil, err
	}
	cfg := rest.AnonymousClientConfig(p.admin)
	cfg.BearerToken = token
	cfg.QPS = -1
	return cfg, nil
}

// KubeconfigAs writes what As returns to a kubeconfig file in the plane's directory, replacing the
// one of an earlier call, and returns its path.
func (p *Plane) KubeconfigAs(ctx context.Context, namespace, serviceAccount string) (string, error) {
	cfg, err := p.As(ctx, namespace, serviceAccount)
	if err != nil {
		return "", err
	}
	path := p.dir.join(strings.Join([]string{"kubeconfig", namespace, serviceAccount}, "_"))
	return path, writeKubeconfig(path, cfg)
}

// writeKubeconfig writes cfg to a file that depends on no other. Whoever reads it meanwhile finds the old one or the new
// one, and no half of either.
func writeKubeconfig(path string, cfg *rest.Config) error {
	const name = "controlplane"
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters[name] = &clientcmdapi.Cluster{
		Server:                   cfg.Host,
		CertificateAuthorityData: cfg.CAData,
	}
	kubeconfig.AuthInfos[name] = &clientcmdapi.AuthInfo{
		ClientCertificateData: cfg.CertData,
		ClientKeyData:         cfg.KeyData,
		Token:                 cfg.BearerToken,
	}
	kubeconfig.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	kubeconfig.CurrentContext = name
	text, err := clientcmd.Write(*kubeconfig)
	if err != nil {
		return fmt.Errorf("encode kubeconfig: %w", err)
	}
	fresh, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // two may be written at once
	if err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	_, err = fresh.Write(text)
	if err = errors.Join(err, fresh.Close()); err == nil {
		err = os.Rename(fresh.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write kubeconfig: %w", errors.Join(err, os.Remove(fresh.Name())))
	}
	return nil
}
