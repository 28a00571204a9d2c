package testca

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Group and Kind are those of the issuerRef that an Issuer answers; any name will do.
const (
	Group = "test.signet.dev"
	Kind  = "TestIssuer"
)

// identityAnnotation holds the SPIFFE ID that a CertificateRequest is for.
const identityAnnotation = "istio.cert-manager.io/identities"

// Issuer answers the CertificateRequests of one namespace whose issuerRef has [Group]. It tells them
// apart by the identity in their annotation; requests for Signet's own certificate have none. Safe
// for concurrent use.
type Issuer struct {
	client client.Client
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu         sync.Mutex // guards the following
	otherwise  Behaviour
	behaviours map[string]Behaviour
	known      map[types.UID]bool
	seen       map[string][]*cmapi.CertificateRequest
	troubles   []error
}

// StartIssuer starts an Issuer that behaves in one way until it is told otherwise. Config is an
// administrator's. Ctx bounds the start only; Stop ends it.
func StartIssuer(ctx context.Context, config *rest.Config, namespace string, otherwise Behaviour) (*Issuer, error) {
	scheme := runtime.NewScheme()
	if err := cmapi.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register API types: %w", err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("start issuer: %w", err)
	}
	objects, err := cache.New(config, cache.Options{Scheme: scheme, DefaultNamespaces: map[string]cache.Config{namespace: {}}})
	if err != nil {
		return nil, fmt.Errorf("start issuer: %w", err)
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	i := &Issuer{
		client:     c,
		cancel:     cancel,
		otherwise:  otherwise,
		behaviours: make(map[string]Behaviour),
		known:      make(map[types.UID]bool),
		seen:       make(map[string][]*cmapi.CertificateRequest),
	}
	i.group.Go(func() {
		if err := objects.Start(running); err != nil {
			i.trouble(fmt.Errorf("watch CertificateRequests: %w", err))
		}
	})
	informer, err := objects.GetInformer(ctx, &cmapi.CertificateRequest{})
	if err == nil {
		_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: func(obj any) { i.take(running, obj) }})
	}
	if err != nil {
		i.Stop()
		return nil, fmt.Errorf("watch CertificateRequests: %w", err)
	}
	return i, nil
}

// Stop ends the issuer, and waits until it has ended. Requests that it waits with stay unanswered.
func (i *Issuer) Stop() {
	i.cancel()
	i.group.Wait()
}

// Behave sets what becomes of the requests of one identity (a SPIFFE ID) that are made from now on.
func (i *Issuer) Behave(identity string, b Behaviour) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.behaviours[identity] = b
}

// Otherwise sets what becomes of all other requests that are made from now on, those for Signet's own
// certificate among them.
func (i *Issuer) Otherwise(b Behaviour) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.otherwise = b
}

// Seen are all CertificateRequests of an identity ("" for Signet's own certificate) in their order,
// as they were made, those included that are gone.
func (i *Issuer) Seen(identity string) []*cmapi.CertificateRequest {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]*cmapi.CertificateRequest(nil), i.seen[identity]...)
}

// Err is what went wrong in the issuer itself, nil if nothing did.
func (i *Issuer) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return errors.Join(i.troubles...)
}

func (i *Issuer) trouble(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.troubles = append(i.troubles, err)
}

// take answers a CertificateRequest that is seen for the first time and is ours.
func (i *Issuer) take(ctx context.Context, obj any) {
	cr, ok := obj.(*cmapi.CertificateRequest)
	if !ok || cr.Spec.IssuerRef.Group != Group {
		return
	}
	identity := cr.Annotations[identityAnnotation]
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.known[cr.UID] {
		return
	}
	i.known[cr.UID] = true
	i.seen[identity] = append(i.seen[identity], cr.DeepCopy())
	ask := Ask{Object: cr, Number: len(i.seen[identity])}
	behave := i.behaviours[identity]
	if behave == nil {
		behave = i.otherwise
	}
	i.group.Go(func() {
		if err := i.answer(ctx, ask, behave); err != nil && ctx.Err() == nil {
			i.trouble(fmt.Errorf("answer CertificateRequest %s: %w", cr.Name, err))
		}
	})
}

func (i *Issuer) answer(ctx context.Context, ask Ask, behave Behaviour) error {
	block, _ := pem.Decode(ask.Object.Spec.Request)
	if block == nil {
		return errors.New("spec.request is not PEM")
	}
	var err error
	if ask.CSR, err = x509.ParseCertificateRequest(block.Bytes); err != nil {
		return err
	}
	answer, err := behave(ctx, ask)
	if err != nil {
		return err
	}
	// An API server that is away may come back.
	for {
		err := i.write(ctx, ask.Object, answer)
		if err == nil || apierrors.IsNotFound(err) {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func (i *Issuer) write(ctx context.Context, object *cmapi.CertificateRequest, answer Answer) error {
	if answer.Outcome == Deleted {
		return i.client.Delete(ctx, object.DeepCopy(), client.Preconditions{UID: &object.UID})
	}
	var cr cmapi.CertificateRequest
	if err := i.client.Get(ctx, client.ObjectKeyFromObject(object), &cr); err != nil {
		return err
	}
	if cr.UID != object.UID {
		return nil // another one in its place, which is answered by itself
	}
	set := func(kind cmapi.CertificateRequestConditionType, status cmmeta.ConditionStatus, reason string) {
		apiutil.SetCertificateRequestCondition(&cr, kind, status, reason, answer.Message)
	}
	if answer.Outcome == Denied {
		set(cmapi.CertificateRequestConditionDenied, cmmeta.ConditionTrue, "test.signet.dev")
		set(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, cmapi.CertificateRequestReasonDenied)
		return i.client.Status().Update(ctx, &cr)
	}
	set(cmapi.CertificateRequestConditionApproved, cmmeta.ConditionTrue, "test.signet.dev")
	switch answer.Outcome {
	case Issued:
		cr.Status.Certificate, cr.Status.CA = answer.CertificatePEM, answer.CAPEM
		set(cmapi.CertificateRequestConditionReady, cmmeta.ConditionTrue, cmapi.CertificateRequestReasonIssued)
	case Invalid:
		set(cmapi.CertificateRequestConditionInvalidRequest, cmmeta.ConditionTrue, "Invalid")
		set(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, cmapi.CertificateRequestReasonFailed)
	case Failed:
		set(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, cmapi.CertificateRequestReasonFailed)
	case Unanswered:
		set(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, cmapi.CertificateRequestReasonPending)
	}
	return i.client.Status().Update(ctx, &cr)
}
