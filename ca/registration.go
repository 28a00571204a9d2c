package ca

import (
	"context"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	typedcertificatesv1 "k8s.io/client-go/kubernetes/typed/certificates/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/signer"
)

// RegistrationConfig has Signet sign for an istiod that is the mesh's registration authority
// (EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API): istiod authenticates the workloads, and makes and approves a Kubernetes
// CertificateSigningRequest for each certificate, of which Signet is the signer (K8S_SIGNER).
//
// Whoever can make requests as one of the accounts gets any identity of the mesh. One that has come by the name of a
// signer of ours in another way is refused.
type RegistrationConfig struct {
	// Enabled turns it on. Default false.
	Enabled bool `json:"enabled,omitempty"`
	// SignerName of the requests. Default signet.dev/mesh. Requests for another name of the same domain
	// (CERT_SIGNER_DOMAIN) ask for a signer of ca.rules.
	SignerName string `json:"signerName,omitempty"`
	// Accounts are the service accounts, as namespace/name, whose requests are trusted. Default istio-system/istiod.
	Accounts []string `json:"accounts,omitempty"`
}

func (c RegistrationConfig) withDefaults() RegistrationConfig {
	if c.SignerName == "" {
		c.SignerName = "signet.dev/mesh"
	}
	if len(c.Accounts) == 0 {
		c.Accounts = []string{"istio-system/istiod"}
	}
	return c
}

// SignerNames are those that are served, as rights to sign name them: the domain's.
func (c RegistrationConfig) SignerNames() string {
	domain, _, _ := strings.Cut(c.withDefaults().SignerName, "/")
	return domain + "/*"
}

func (c RegistrationConfig) validate(p setting.Problems) {
	domain, path, ok := strings.Cut(c.withDefaults().SignerName, "/")
	if !ok || path == "" || len(validation.IsDNS1123Subdomain(domain)) != 0 || domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") {
		p.Addf("signerName", "%q is not the name of a signer such as signet.dev/mesh", c.SignerName)
	}
	for n, account := range c.Accounts {
		if _, err := registrar(account); err != nil {
			p.Addf(fmt.Sprintf("accounts[%d]", n), "%v", err)
		}
	}
}

// registrar is a trusted account as a caller, without its UID. Whose cluster the workload is in that it asks for isn't known.
func registrar(account string) (*Caller, error) {
	namespace, name, ok := strings.Cut(account, "/")
	if !ok || len(validation.IsDNS1123Label(namespace)) != 0 || len(validation.IsDNS1123Subdomain(name)) != 0 {
		return nil, fmt.Errorf("%q is not a service account such as istio-system/istiod", account)
	}
	return &Caller{Namespace: namespace, ServiceAccount: name, CredentialID: "registration"}, nil
}

const (
	// registrationsAtOnce is how many requests are worked on at a time; admission bounds how many of them sign.
	registrationsAtOnce = 64
	// registrationWrites bounds one write of an answer.
	registrationWrites = 10 * time.Second
	// registrationsAge is how long a request is tried again that could not be signed; istiod waits a minute.
	registrationsAge = 2 * time.Minute
)

// Registration answers CertificateSigningRequests through the policy, the signer and the records of a [Server]. It should
// run on one replica at a time; that two do for a moment does no harm.
type Registration struct {
	server   *Server
	cfg      RegistrationConfig
	trusted  map[string]*Caller // by the API server's name for them
	requests typedcertificatesv1.CertificateSigningRequestInterface
	source   cache.ListerWatcher
	log      *slog.Logger
}

// NewRegistration makes one that signs as server does.
func NewRegistration(server *Server, config *rest.Config, log *slog.Logger) (*Registration, error) {
	client, err := typedcertificatesv1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for CertificateSigningRequests: %w", err)
	}
	r := &Registration{
		server: server, cfg: server.cfg.Registration.withDefaults(), trusted: make(map[string]*Caller), requests: client.CertificateSigningRequests(), log: log,
		source: cache.NewListWatchFromClient(client.RESTClient(), "certificatesigningrequests", metav1.NamespaceAll, fields.Everything()),
	}
	for _, account := range r.cfg.Accounts {
		caller, err := registrar(account)
		if err != nil {
			return nil, err
		}
		if caller.ID, err = spiffeid.FromSegments(server.cfg.TrustDomain, "ns", caller.Namespace, "sa", caller.ServiceAccount); err != nil {
			return nil, fmt.Errorf("account %s: %w", account, err)
		}
		r.trusted["system:serviceaccount:"+caller.Namespace+":"+caller.ServiceAccount] = caller
	}
	return r, nil
}

// Start answers requests until ctx ends and those under way have ended.
func (r *Registration) Start(ctx context.Context) error {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 10*time.Second))
	add := func(object any) {
		if request, ok := object.(*certificatesv1.CertificateSigningRequest); ok && r.waits(request) {
			queue.Add(request.Name)
		}
	}
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: r.source, ObjectType: &certificatesv1.CertificateSigningRequest{},
		Handler: cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, object any) { add(object) }},
	})
	var group sync.WaitGroup
	group.Go(func() { informer.RunWithContext(ctx) })
	for range registrationsAtOnce {
		group.Go(func() {
			for {
				name, ended := queue.Get()
				if ended {
					return
				}
				object, _, _ := store.GetByKey(name) // which never fails
				request, there := object.(*certificatesv1.CertificateSigningRequest)
				if there && ctx.Err() == nil && r.waits(request) && r.answer(ctx, request) {
					queue.AddRateLimited(name)
				} else {
					queue.Forget(name)
				}
				queue.Done(name)
			}
		})
	}
	<-ctx.Done()
	queue.ShutDown()
	group.Wait()
	return nil
}

// waits says whether a request is for us and approved, and nobody has answered it.
func (r *Registration) waits(request *certificatesv1.CertificateSigningRequest) bool {
	if _, ours := r.certSigner(request.Spec.SignerName); !ours || len(request.Status.Certificate) > 0 {
		return false
	}
	approved := false
	for _, c := range request.Status.Conditions {
		switch c.Type {
		case certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			return false
		case certificatesv1.CertificateApproved:
			approved = c.Status == corev1.ConditionTrue
		}
	}
	return approved
}

// certSigner is the signer of ca.rules that a name asks for, "" for ours, and whether the name is of our domain.
func (r *Registration) certSigner(signerName string) (name string, ours bool) {
	if signerName == r.cfg.SignerName {
		return "", true
	}
	domain, _, _ := strings.Cut(r.cfg.SignerName, "/")
	return strings.CutPrefix(signerName, domain+"/")
}

// answer answers one request, and says whether to try again.
func (r *Registration) answer(ctx context.Context, request *certificatesv1.CertificateSigningRequest) (again bool) {
	x := exchange{began: time.Now(), agent: "CertificateSigningRequest " + request.Name}
	signing, cancel := context.WithDeadline(ctx, x.began.Add(r.server.cfg.requestTimeout()))
	defer cancel()
	err := r.signSafely(signing, request, &x)
	if err != nil && ctx.Err() != nil {
		return false // the next leader meets what was begun
	}
	refused := r.server.finish(&x, err)

	answered := request.DeepCopy()
	if err == nil {
		// The anchor is the last one: istiod looks for it there.
		anchor := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: x.chain.Anchor.Raw})
		answered.Status.Certificate = []byte(strings.Join(x.chain.PEM(), "") + string(anchor))
	} else {
		reason := refuse(refused)
		if passing(reason.code) && time.Since(request.CreationTimestamp.Time) < registrationsAge {
			return true
		}
		answered.Status.Conditions = append(answered.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignetRefused", Message: reason.GRPCStatus().Message(),
		})
	}
	writing, cancel := context.WithTimeout(ctx, registrationWrites)
	defer cancel()
	_, err = r.requests.UpdateStatus(writing, answered, metav1.UpdateOptions{})
	switch {
	case err == nil, apierrors.IsNotFound(err):
		return false
	case apierrors.IsConflict(err):
		return true // it has changed; what is known of it by then decides
	}
	r.log.Warn("answer a CertificateSigningRequest", "request", request.Name, "err", err)
	return ctx.Err() == nil && time.Since(request.CreationTimestamp.Time) < registrationsAge
}

// passing says whether trying again may help.
func passing(code codes.Code) bool {
	return slices.Contains([]codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Canceled}, code)
}

// signSafely makes a refusal of a panic.
func (r *Registration) signSafely(ctx context.Context, request *certificatesv1.CertificateSigningRequest, x *exchange) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			r.log.Error("panic while a request was answered", "request", request.Name, "cause", cause, "stack", string(debug.Stack()))
			err = kindInternal.because("panic: %v", cause)
		}
	}()
	return r.sign(ctx, request, x)
}

// sign is the way of one request.
func (r *Registration) sign(ctx context.Context, request *certificatesv1.CertificateSigningRequest, x *exchange) error {
	trusted, ok := r.trusted[request.Spec.Username]
	if !ok {
		return kindRegistrar.because("CertificateSigningRequest %s was made by %q; ca.registration.accounts has no such account", request.Name, request.Spec.Username)
	}
	caller := *trusted
	caller.ServiceAccountUID = request.Spec.UID
	x.caller = &caller
	csr, err := parseCSR(string(request.Spec.Request))
	if err != nil {
		return err
	}
	if x.grant, err = r.identity(csr.URIs); err != nil {
		return err
	}
	for _, usage := range request.Spec.Usages {
		if !slices.Contains(signer.LeafUsages(), cmapi.KeyUsage(usage)) {
			return kindCSRExtensions.saying("usage %q is not granted", usage)
		}
	}
	certSigner, _ := r.certSigner(request.Spec.SignerName)
	if x.grant, err = r.server.rule(x.grant, certSigner, false); err != nil {
		return err
	}
	var seconds int64
	if request.Spec.ExpirationSeconds != nil {
		seconds = int64(*request.Spec.ExpirationSeconds)
	}
	return r.server.issue(ctx, x, csr, seconds)
}

// identity is the one that a CSR names: istiod has seen to it that the workload may have it. Whether the CSR names nothing
// else is for its own check.
func (r *Registration) identity(uris []*url.URL) (Grant, error) {
	if len(uris) != 1 {
		return Grant{}, kindCSRNames.saying("it has %d URIs", len(uris))
	}
	id, err := spiffeid.FromURI(uris[0])
	if err != nil {
		return Grant{}, kindCSRNames.saying("its URI is no SPIFFE ID")
	}
	namespace, account, ok := workloadOf(id)
	if !ok || !r.server.cfg.ours(id.TrustDomain()) {
		return Grant{}, kindIdentity.because("%s is no service account of ours", id)
	}
	return Grant{ID: id, Namespace: namespace, ServiceAccount: account}, nil
}
