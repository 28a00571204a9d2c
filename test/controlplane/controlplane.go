// Package controlplane starts a real Kubernetes control plane for a test: etcd, kube-apiserver and
// cert-manager's controllers, with cert-manager's CustomResourceDefinitions in place.
//
//	plane, err := controlplane.Start(ctx, controlplane.Config{})
//	if err != nil { ... }
//	defer plane.Stop()
//
// It takes a few seconds, so a test package starts one, in TestMain, and gives each test a
// namespace of its own ([Plane.NewNamespace]). Planes are independent of each other: ports are
// free ones on 127.0.0.1, state is in a directory of the plane's own.
//
// Each [Part] is a process of the binary in test/kube, which is built once, without the race
// detector (make bin). A test can stop, pause and kill every part and start it again where it was.
// When the process that started a plane dies, in whatever way, its parts die with it.
//
// What is not there: a kubelet, so Pods are only objects ([Plane.Pod]); a controller manager, so a
// deleted Namespace keeps its contents, nothing is garbage collected, and ServiceAccounts are made
// by hand ([Plane.ServiceAccount]); and cert-manager's webhook, so CertificateRequests are not
// validated and do not say who made them.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/go-logr/logr"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/process"
)

// Config says how a control plane is built. The zero value is right for tests.
type Config struct {
	// Dir is where state, keys and logs live; it is created if absent. A plane started on the
	// directory of an earlier one continues it: objects, the CA and the keys that sign tokens are
	// kept, ports are not. Optional: the default is a temporary directory that Stop removes.
	Dir string

	// Fsync makes etcd sync to disk, as it does in production. Benchmarks want it.
	Fsync bool

	// Audit makes the API server write one line per request (level Metadata) to
	// [Plane.AuditLog].
	Audit bool

	// WithoutCertManager leaves cert-manager's controllers out. Its definitions are there anyway.
	WithoutCertManager bool

	// ApproverPolicy has cert-manager's approver-policy decide which CertificateRequests are approved, and not the approver
	// that cert-manager has itself, which approves all: without a CertificateRequestPolicy nothing is signed, what
	// [Plane.BootstrapCA] asks for included. CertificateRequests then say who made them. It is a process of the binary in
	// test/approver/policy, which sees to its policies by its webhook too.
	ApproverPolicy bool

	// OwnIssuer makes the API server's own address the issuer of its tokens. Whoever may can then find its keys there, as
	// those of any OIDC issuer (ClusterRole system:service-account-issuer-discovery).
	OwnIssuer bool

	// CertManagerWorkers is the number of concurrent workers of each of cert-manager's
	// controllers. Optional: the default is cert-manager's own, 5.
	CertManagerWorkers int

	// Progress, where set, is told in one line each what has been started, and how long it took.
	Progress func(format string, args ...any)
}

// A Plane is a running control plane. Its methods are safe for concurrent use, except Stop, after
// which only Stop may be called again.
type Plane struct {
	cfg   Config
	dir   *directory
	pki   *pki
	ports *ports

	admin  *rest.Config
	http   *http.Client // as administrator, for paths that are not resources
	client client.Client

	etcd, apiServer, certManager *Part // certManager is nil WithoutCertManager
	approverPolicy               *Part // nil unless ApproverPolicy
	approverWebhook              int   // the port of its webhook

	podIP atomic.Uint32 // the last that was given, without its first byte
}

// Start starts a control plane and returns when it can be used: the API server is ready, the
// definitions are served and cert-manager's informers have synced. When something does not start,
// the error has the end of its log, and nothing is left behind. Ctx bounds the start only.
//
// On a new directory the first object of cert-manager.io takes two seconds to create: the API
// server holds back what is created right after its definition, once.
func Start(ctx context.Context, cfg Config) (*Plane, error) {
	p := &Plane{cfg: cfg}
	p.podIP.Store(rand.Uint32N(1 << 24))
	if p.cfg.Progress == nil {
		p.cfg.Progress = func(string, ...any) {}
	}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start control plane: %w", err), p.Stop())
	}
	return p, nil
}

func (p *Plane) start(ctx context.Context) error {
	binary, err := process.Find("kube", "SIGNET_KUBE")
	if err != nil {
		return err
	}
	if p.dir, err = openDirectory(p.cfg.Dir); err != nil {
		return err
	}
	if p.pki, err = preparePKI(p.dir.join("pki")); err != nil {
		return err
	}
	if p.ports, err = reservePorts(5); err != nil {
		return err
	}
	etcdPort, apiServerPort, certManagerPort := p.ports.numbers[0], p.ports.numbers[1], p.ports.numbers[2]
	if err := p.prepareAdmin(apiServerPort); err != nil {
		return err
	}

	p.etcd = p.newEtcd(binary, etcdPort)
	if p.apiServer, err = p.newAPIServer(binary, apiServerPort, etcdPort); err != nil {
		return err
	}
	if !p.cfg.WithoutCertManager {
		p.certManager = p.newCertManager(binary, certManagerPort)
	}
	if p.cfg.ApproverPolicy {
		if p.approverPolicy, err = p.newApproverPolicy(p.ports.numbers[3], p.ports.numbers[4]); err != nil {
			return err
		}
	}

	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"etcd", p.etcd.Start},
		{"API server at " + p.admin.Host, p.apiServer.Start},
		{"cert-manager's definitions", func(ctx context.Context) error { return p.applyCRDs(ctx, binary) }},
		{"cert-manager", p.startCertManager},
		{"approver-policy", p.startApproverPolicy},
	}
	if p.approverPolicy == nil {
		steps = steps[:len(steps)-1]
	}
	for _, step := range steps {
		begin := time.Now()
		if err := step.run(ctx); err != nil {
			return err
		}
		p.cfg.Progress("%s: ready after %.1f s", step.name, time.Since(begin).Seconds())
	}
	return nil
}

// prepareAdmin makes the administrator's clients and kubeconfig for the API server on port.
func (p *Plane) prepareAdmin(port int) error {
	certPEM, keyPEM, err := p.pki.issueClient("admin", "system:masters")
	if err != nil {
		return err
	}
	p.admin = &rest.Config{
		Host: fmt.Sprintf("https://127.0.0.1:%d", port),
		TLSClientConfig: rest.TLSClientConfig{
			CAData:   p.pki.caPEM,
			CertData: certPEM,
			KeyData:  keyPEM,
		},
		QPS: -1, // Priority and Fairness is the server's job
	}
	if err := writeKubeconfig(p.Kubeconfig(), p.admin); err != nil {
		return err
	}
	if p.http, err = rest.HTTPClientFor(p.admin); err != nil {
		return fmt.Errorf("make administrator's client: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), certmanager.AddToScheme(scheme)); err != nil {
		return fmt.Errorf("make scheme: %w", err)
	}
	p.client, err = client.New(p.admin, client.Options{
		HTTPClient: p.http,
		Scheme:     scheme,
		Log:        logr.FromSlogHandler(slog.DiscardHandler), // or it asks for a global one
	})
	if err != nil {
		return fmt.Errorf("make administrator's client: %w", err)
	}
	return nil
}

// startCertManager gives cert-manager its namespace and identity, and starts it. It is a
// ServiceAccount, and not the administrator, because Priority and Fairness exempts the latter.
func (p *Plane) startCertManager(ctx context.Context) error {
	if err := p.Namespace(ctx, certManagerNamespace); err != nil {
		return err
	}
	if p.certManager == nil {
		return nil
	}
	role := everything
	if p.cfg.ApproverPolicy {
		role = "cert-manager"
		if err := p.Apply(ctx, []byte(certManagerRole)); err != nil {
			return err
		}
	}
	if err := p.identify(ctx, "cert-manager", role); err != nil {
		return err
	}
	return p.certManager.Start(ctx)
}

// everything is a ClusterRole of Kubernetes.
const everything = "cluster-admin"

// identify makes the ServiceAccount of a part in cert-manager's namespace, which has a ClusterRole, and its kubeconfig.
func (p *Plane) identify(ctx context.Context, name, role string) error {
	if err := p.ServiceAccount(ctx, certManagerNamespace, name); err != nil {
		return err
	}
	if err := p.createIfAbsent(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: certManagerNamespace, Name: name}},
	}); err != nil {
		return err
	}
	cfg, err := p.As(ctx, certManagerNamespace, name)
	if err != nil {
		return err
	}
	return writeKubeconfig(p.kubeconfigOfPart(name), cfg)
}

// Stop stops all parts, each in an orderly way if it can be, and waits until their processes have
// ended; then it removes the directory if it is temporary. A part that had ended by itself is an
// error with the end of its log. Calling it again does nothing.
func (p *Plane) Stop() error {
	var errs []error
	for _, part := range []*Part{p.approverPolicy, p.certManager, p.apiServer, p.etcd} {
		if part != nil {
			errs = append(errs, part.Stop())
		}
	}
	if p.http != nil {
		p.http.CloseIdleConnections()
	}
	if p.ports != nil {
		errs = append(errs, p.ports.close())
	}
	if p.dir != nil {
		errs = append(errs, p.dir.close())
	}
	return errors.Join(errs...)
}

// Admin returns what a client needs to be the administrator (group system:masters), without a
// client-side rate limit. The caller owns it.
func (p *Plane) Admin() *rest.Config { return rest.CopyConfig(p.admin) }

// Kubeconfig returns the path of the administrator's kubeconfig file.
func (p *Plane) Kubeconfig() string { return p.dir.join("kubeconfig") }

// Dir returns the directory where state, keys and logs live.
func (p *Plane) Dir() string { return p.dir.path }

// AuditLog returns the path of the API server's audit log, one JSON object per line; it is written
// with [Config.Audit] only.
func (p *Plane) AuditLog() string { return p.dir.join("audit.log") }

// Client returns the administrator's client. It reads from the API server itself, never from a
// cache, and knows the types of client-go and of cert-manager.io/v1.
func (p *Plane) Client() client.Client { return p.client }

// Etcd returns the part that keeps the state.
func (p *Plane) Etcd() *Part { return p.etcd }

// APIServer returns the part that serves the Kubernetes API.
func (p *Plane) APIServer() *Part { return p.apiServer }

// CertManager returns the part that runs cert-manager's controllers; nil with
// [Config.WithoutCertManager].
func (p *Plane) CertManager() *Part { return p.certManager }

// ApproverPolicy returns the part that runs approver-policy; nil without [Config.ApproverPolicy].
func (p *Plane) ApproverPolicy() *Part { return p.approverPolicy }

// Parts returns all parts in the order in which they start.
func (p *Plane) Parts() []*Part {
	return slices.DeleteFunc([]*Part{p.etcd, p.apiServer, p.certManager, p.approverPolicy}, func(part *Part) bool { return part == nil })
}

// kubeconfigOfPart is the path of the kubeconfig of a part.
func (p *Plane) kubeconfigOfPart(name string) string {
	return p.dir.join(filepath.Join("pki", name+".kubeconfig"))
}
