package rotation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
)

// IstiodConfig is istiod's serving certificate: a cert-manager Certificate that Signet writes, and
// whose Secret istiod mounts.
type IstiodConfig struct {
	// Enabled makes Signet write the Certificate. Default false.
	Enabled bool `json:"enabled,omitempty"`
	// Namespace that istiod runs in. An issuer of kind Issuer must be there. Default istio-system.
	Namespace string `json:"namespace,omitempty"`
	// Name of the Certificate. Default istiod-dynamic.
	Name string `json:"name,omitempty"`
	// SecretName is the Secret that cert-manager writes. Default istiod-tls, which istiod's chart
	// mounts.
	SecretName string `json:"secretName,omitempty"`
	// Revisions of istiod that are always served, by istiod-<revision>.<namespace>.svc; default stands
	// for istiod.<namespace>.svc. More are found in the cluster, by the label istio.io/rev of istiod's
	// Deployments and the labels istio.io/rev and istio.io/tag of MutatingWebhookConfigurations.
	// Default [default].
	Revisions []string `json:"revisions,omitempty"`
	// Lifetime that is asked for; cert-manager wants 1h at least. Default 24h.
	Lifetime setting.Duration `json:"lifetime,omitempty"`
	// RenewBefore is how long before its end the certificate is renewed; cert-manager wants 5m at least.
	// It must be below lifetime. Default a third of lifetime.
	RenewBefore setting.Duration `json:"renewBefore,omitempty"`
	// Key is the kind of key: ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072 or RSA-4096. Default RSA-2048,
	// as that of a certificate that istiod's own CA makes. Each certificate gets a key of its own.
	Key string `json:"key,omitempty"`
	// DNSNames are further names, such as those in ISTIOD_CUSTOM_HOST. Optional.
	DNSNames []string `json:"dnsNames,omitempty"`
	// Annotations of the Certificate, for approvers and other tools. Optional.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// istiodKeys are the kinds of key by the name that the configuration has for them.
var istiodKeys = map[string]cmapi.CertificatePrivateKey{
	"ECDSA-P256": {Algorithm: cmapi.ECDSAKeyAlgorithm, Size: 256},
	"ECDSA-P384": {Algorithm: cmapi.ECDSAKeyAlgorithm, Size: 384},
	"RSA-2048":   {Algorithm: cmapi.RSAKeyAlgorithm, Size: 2048},
	"RSA-3072":   {Algorithm: cmapi.RSAKeyAlgorithm, Size: 3072},
	"RSA-4096":   {Algorithm: cmapi.RSAKeyAlgorithm, Size: 4096},
}

// defaultRevision is the revision without a name of its own in the name of istiod's Service.
const defaultRevision = "default"

func (c IstiodConfig) withDefaults() IstiodConfig {
	c.Namespace = cmp.Or(c.Namespace, "istio-system")
	c.Name = cmp.Or(c.Name, "istiod-dynamic")
	c.SecretName = cmp.Or(c.SecretName, "istiod-tls")
	c.Key = cmp.Or(c.Key, "RSA-2048")
	c.Lifetime = setting.DurationOf(c.Lifetime.Or(24 * time.Hour))
	c.RenewBefore = setting.DurationOf(c.RenewBefore.Or((c.Lifetime.Or(0) / 3).Truncate(time.Second)))
	if len(c.Revisions) == 0 {
		c.Revisions = []string{defaultRevision}
	}
	return c
}

// Certificate names the Certificate.
func (c IstiodConfig) Certificate() (namespace, name string) {
	c = c.withDefaults()
	return c.Namespace, c.Name
}

// Validate reports what is wrong with c.
func (c IstiodConfig) Validate(p setting.Problems) {
	if c.Namespace != "" && len(validation.IsDNS1123Label(c.Namespace)) != 0 {
		p.Addf("namespace", "%q is not the name of a namespace", c.Namespace)
	}
	if c.Name != "" && len(validation.IsDNS1123Subdomain(c.Name)) != 0 {
		p.Addf("name", "%q is not the name of a Certificate", c.Name)
	}
	if c.SecretName != "" && len(validation.IsDNS1123Subdomain(c.SecretName)) != 0 {
		p.Addf("secretName", "%q is not the name of a Secret", c.SecretName)
	}
	for _, revision := range c.Revisions {
		if !isRevision(revision) {
			p.Addf("revisions", "%q is not a revision; it must be what follows istiod- in the name of a Service, or default", revision)
		}
	}
	p.Duration("lifetime", c.Lifetime, cmapi.MinimumCertificateDuration, 10*365*24*time.Hour)
	p.Duration("renewBefore", c.RenewBefore, cmapi.MinimumRenewBefore, 10*365*24*time.Hour)
	if lifetime := c.Lifetime.Or(24 * time.Hour); c.RenewBefore.Or(0) >= lifetime {
		p.Addf("renewBefore", "%s is not below the lifetime of %s", c.RenewBefore.Or(0), lifetime)
	}
	if _, ok := istiodKeys[cmp.Or(c.Key, "RSA-2048")]; !ok {
		p.Addf("key", "%q is no kind of key; they are ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072, RSA-4096", c.Key)
	}
	for _, name := range c.DNSNames {
		if len(validation.IsDNS1123Subdomain(name)) != 0 {
			p.Addf("dnsNames", "%q is not a DNS name", name)
		}
	}
	for _, problem := range apivalidation.ValidateAnnotations(c.Annotations, field.NewPath("annotations")) {
		p.Addf("annotations", "%s", problem.ErrorBody())
	}
}

// isRevision says whether a Service of istiod can be named after revision.
func isRevision(revision string) bool {
	return len(validation.IsDNS1123Label(revision)) == 0 && len(validation.IsDNS1123Label("istiod-"+revision)) == 0
}

// found is what the cluster says of istiod's revisions, in any order and with repetitions.
type found struct {
	revisions []string // values of istio.io/rev
	tags      []string // values of istio.io/tag
}

// names are the DNS names of istiod's certificate (R59), sorted and without repetitions. A tag is
// served by a Service of its own, besides being usable as a revision. What can't be in the name of a
// Service is left out.
func (c IstiodConfig) names(f found) []string {
	services := []string{"istiod", "istiod-remote", "istio-pilot"}
	for _, revision := range slices.Concat(c.Revisions, f.revisions, f.tags) {
		if revision != defaultRevision && isRevision(revision) {
			services = append(services, "istiod-"+revision)
		}
	}
	for _, tag := range f.tags {
		if service := "istiod-revision-tag-" + tag; len(validation.IsDNS1123Label(service)) == 0 {
			services = append(services, service)
		}
	}
	names := slices.Clone(c.DNSNames)
	for _, service := range services {
		names = append(names, service+"."+c.Namespace+".svc")
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// kept adds to names those of earlier that name a revision: for as long as the cluster has not said
// which revisions there are, none is taken away.
func (c IstiodConfig) kept(names, earlier []string) []string {
	for _, name := range earlier {
		if strings.HasPrefix(name, "istiod-") && strings.HasSuffix(name, "."+c.Namespace+".svc") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// certificate is the Certificate as it should be. Istiod only serves with it, and the mesh's own
// issuer signs it, so that it must not pass for a client's.
func (c IstiodConfig) certificate(ref issuer.Ref, names []string) *cmapi.Certificate {
	key := istiodKeys[c.Key]
	key.RotationPolicy = cmapi.RotationPolicyAlways
	return &cmapi.Certificate{
		TypeMeta:   metav1.TypeMeta{APIVersion: cmapi.SchemeGroupVersion.String(), Kind: cmapi.CertificateKind},
		ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Name, Annotations: c.Annotations},
		Spec: cmapi.CertificateSpec{
			SecretName:           c.SecretName,
			IssuerRef:            ref.WithDefaults().Reference(),
			DNSNames:             names,
			Duration:             &metav1.Duration{Duration: c.Lifetime.Or(0)},
			RenewBefore:          &metav1.Duration{Duration: c.RenewBefore.Or(0)},
			PrivateKey:           &key,
			Usages:               []cmapi.KeyUsage{cmapi.UsageServerAuth, cmapi.UsageDigitalSignature, cmapi.UsageKeyEncipherment},
			RevisionHistoryLimit: new(int32(1)),
		},
	}
}

// drift says in which fields the Certificate that is there isn't as it should be; "" where it is.
// What others may add without harm, such as a template for the Secret, isn't compared.
func drift(is, want *cmapi.Certificate) string {
	var differ []string
	compare := func(name string, is, want any) {
		if !equality.Semantic.DeepEqual(is, want) {
			differ = append(differ, name)
		}
	}
	for name, value := range want.Annotations {
		compare("annotation "+name, is.Annotations[name], value)
	}
	slices.Sort(differ)
	a, b := is.Spec, want.Spec
	compare("secretName", a.SecretName, b.SecretName)
	compare("issuerRef", issuer.Ref(a.IssuerRef).WithDefaults(), issuer.Ref(b.IssuerRef))
	compare("dnsNames", a.DNSNames, b.DNSNames)
	compare("uris", a.URIs, b.URIs)
	compare("ipAddresses", a.IPAddresses, b.IPAddresses)
	compare("emailAddresses", a.EmailAddresses, b.EmailAddresses)
	compare("commonName", a.CommonName, b.CommonName)
	compare("isCA", a.IsCA, b.IsCA)
	compare("duration", a.Duration, b.Duration)
	compare("renewBefore", a.RenewBefore, b.RenewBefore)
	compare("usages", a.Usages, b.Usages)
	compare("revisionHistoryLimit", a.RevisionHistoryLimit, b.RevisionHistoryLimit)
	var key cmapi.CertificatePrivateKey
	if a.PrivateKey != nil {
		key = *a.PrivateKey
		key.Encoding = b.PrivateKey.Encoding // istiod reads them all
	}
	compare("privateKey", key, *b.PrivateKey)
	return strings.Join(differ, ", ")
}

// applied is want as it is applied. Fields that would put more into the certificate are in it, empty,
// so that they are ours too; a Certificate of istio-csr, for one, has an identity of the mesh among
// its URIs, by which istiod's key would pass for a workload's.
func applied(want *cmapi.Certificate) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(want)
	if err != nil {
		return nil, fmt.Errorf("convert Certificate %s/%s: %w", want.Namespace, want.Name, err)
	}
	delete(content, "status")
	object := &unstructured.Unstructured{Object: content}
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	for name, value := range map[string]any{
		"uris": []any{}, "ipAddresses": []any{}, "emailAddresses": []any{}, "commonName": "", "isCA": false,
	} {
		if err := unstructured.SetNestedField(content, value, "spec", name); err != nil {
			return nil, fmt.Errorf("convert Certificate %s/%s: %w", want.Namespace, want.Name, err)
		}
	}
	return object, nil
}

// IstiodStatus is what a replica knows of istiod's certificate, from its Certificate.
type IstiodStatus struct {
	// Watching says that this replica holds the lease, and so the rest is known. The rest is zero
	// otherwise.
	Watching bool
	// Namespace and Name are those of the Certificate.
	Namespace, Name string
	// DNSNames are those that the Certificate asks for, sorted. Don't change them.
	DNSNames []string
	// Issuer is whom the Certificate asks; its name is "" while there is no Certificate.
	Issuer issuer.Ref
	// NotBefore and NotAfter are the validity of what is in the Secret; zero while there is nothing.
	NotBefore, NotAfter time.Time
	// Renewal is when cert-manager is going to renew it; zero where it doesn't say so.
	Renewal time.Time
	// Ready says that the Secret holds a valid certificate as the Certificate now asks for it, signed
	// by Issuer.
	Ready bool
	// Condition is cert-manager's own text for that.
	Condition string
	// Trouble is why the Certificate can't be written; nil after it could.
	Trouble error
}

// String is a line for people.
func (s IstiodStatus) String() string {
	if !s.Watching {
		return "watched by the replica that holds the lease"
	}
	text := cmp.Or(s.Condition, "no condition yet")
	if !s.NotAfter.IsZero() {
		text += ", valid until " + s.NotAfter.UTC().Format(time.RFC3339)
	}
	if s.Trouble != nil {
		text += fmt.Sprintf("; can't be written: %v", s.Trouble)
	}
	return text
}

func statusOf(c *cmapi.Certificate) IstiodStatus {
	s := IstiodStatus{
		Watching: true, Namespace: c.Namespace, Name: c.Name, DNSNames: c.Spec.DNSNames, Issuer: issuer.Ref(c.Spec.IssuerRef).WithDefaults(),
	}
	if c.Status.NotBefore != nil && c.Status.NotAfter != nil {
		s.NotBefore, s.NotAfter = c.Status.NotBefore.Time, c.Status.NotAfter.Time
	}
	if c.Status.RenewalTime != nil {
		s.Renewal = c.Status.RenewalTime.Time
	}
	for _, condition := range c.Status.Conditions {
		if condition.Type == cmapi.CertificateConditionReady {
			// A condition of an earlier generation says nothing of what is asked for now.
			s.Ready = condition.Status == cmmeta.ConditionTrue && condition.ObservedGeneration >= c.Generation
			s.Condition = condition.Message
		}
	}
	return s
}

// Istiod keeps the Certificate of istiod's serving certificate as it should be: there before istiod
// starts, with the names of all revisions, signed by the issuer in force. Cert-manager renews it, and
// istiod reads it anew by itself. Nothing is ever deleted. Safe for concurrent use.
type Istiod struct {
	cfg     IstiodConfig // with its defaults
	config  *rest.Config
	http    *http.Client
	scheme  *runtime.Scheme
	mapper  meta.RESTMapper
	client  client.Client
	ref     func() issuer.Ref
	changed func() <-chan struct{}
	log     *slog.Logger
	events  events.EventRecorder

	status atomic.Pointer[IstiodStatus] // nil while Start doesn't run; written by Start only
}

// The kinds that are watched. Of the last two only the metadata is.
var (
	certificateKind = cmapi.SchemeGroupVersion.WithKind(cmapi.CertificateKind)
	deploymentKind  = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
	webhookKind     = schema.GroupVersionKind{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "MutatingWebhookConfiguration"}
)

// NewIstiod makes the keeper of istiod's Certificate, for a cfg that is valid and enabled. Ref is the
// issuer in force, and changed a channel that is closed when it may be another one; while ref has no
// name, nothing is written. The recorder may be nil.
func NewIstiod(cfg IstiodConfig, config *rest.Config, ref func() issuer.Ref, changed func() <-chan struct{}, log *slog.Logger, reg prometheus.Registerer, recorder events.EventRecorder) (*Istiod, error) {
	s := &Istiod{cfg: cfg.withDefaults(), config: config, ref: ref, changed: changed, log: log, events: recorder, scheme: runtime.NewScheme()}
	if err := cmapi.AddToScheme(s.scheme); err != nil {
		return nil, fmt.Errorf("register API types: %w", err)
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(certificateKind, meta.RESTScopeNamespace)
	mapper.Add(deploymentKind, meta.RESTScopeNamespace)
	mapper.Add(webhookKind, meta.RESTScopeRoot)
	s.mapper = mapper
	var err error
	if s.http, err = rest.HTTPClientFor(config); err != nil {
		return nil, fmt.Errorf("make client for istiod's Certificate: %w", err)
	}
	if s.client, err = client.New(config, client.Options{HTTPClient: s.http, Scheme: s.scheme, Mapper: s.mapper}); err != nil {
		return nil, fmt.Errorf("make client for istiod's Certificate: %w", err)
	}
	reg.MustRegister(newIstiodMetrics(s))
	return s, nil
}

// Status is what is known now.
func (s *Istiod) Status() IstiodStatus {
	if status := s.status.Load(); status != nil {
		return *status
	}
	return IstiodStatus{}
}

// Times of the keeper.
const (
	istiodTryTimeout = 10 * time.Second
	istiodSettle     = 5 * time.Second  // how long revisions are waited for before the first write
	istiodRecheck    = 10 * time.Minute // without any notice
	istiodUnseen     = 3 * time.Second  // how long a write may take to come back by the watch
	deniedEvery      = 10 * time.Minute // how often a watch that is denied is logged
)

// Start keeps the Certificate until ctx ends and everything has stopped. Only one replica of the
// cluster should run it; it can be started again after it has ended.
func (s *Istiod) Start(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w, err := s.watch(ctx)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer stop() // before the wait
	defer s.status.Store(nil)
	ended := make(chan error, 1)
	running.Go(func() { ended <- w.cache.Start(ctx) })
	for _, handler := range w.handlers() {
		running.Go(func() {
			if toolscache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
				w.wake()
			}
		})
	}
	k := &keeping{Istiod: s, watch: w, began: time.Now(), writes: rate.NewLimiter(rate.Every(5*time.Second), 10)}
	for {
		changed := s.changed() // before the issuer is read, so that no change is missed
		timer := time.NewTimer(k.look(ctx))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case err := <-ended:
			timer.Stop()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch istiod's Certificate: %w", err)
		case <-changed:
		case <-w.woken:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// istiodWatch is what one run of Start sees of the cluster.
type istiodWatch struct {
	cfg   IstiodConfig
	cache cache.Cache
	woken chan struct{} // has one element where something has changed

	certificates, deployments, webhooks toolscache.ResourceEventHandlerRegistration
}

// watch prepares the informers; they start with the cache.
func (s *Istiod) watch(ctx context.Context) (*istiodWatch, error) {
	w := &istiodWatch{cfg: s.cfg, woken: make(chan struct{}, 1)}
	revised, err := labels.NewRequirement(revisionLabel, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("select MutatingWebhookConfigurations: %w", err)
	}
	ours := fields.OneTermEqualSelector("metadata.name", s.cfg.Name) // so that the right to it can be one by name
	deployment, webhook := metadataOf(deploymentKind), metadataOf(webhookKind)
	denied := &deniedLog{log: s.log, last: make(map[string]time.Time)}
	w.cache, err = cache.New(s.config, cache.Options{
		HTTPClient: s.http, Scheme: s.scheme, Mapper: s.mapper,
		ByObject: map[client.Object]cache.ByObject{
			&cmapi.Certificate{}: {Namespaces: map[string]cache.Config{s.cfg.Namespace: {FieldSelector: ours}}, Transform: cache.TransformStripManagedFields()},
			deployment:           {Namespaces: map[string]cache.Config{s.cfg.Namespace: {LabelSelector: labels.SelectorFromSet(labels.Set{"app": "istiod"})}}, Transform: onlyLabels},
			webhook:              {Label: labels.NewSelector().Add(*revised), Transform: onlyLabels}, // a tag has the label of its revision too
		},
		DefaultWatchErrorHandler: denied.handle,
	})
	if err != nil {
		return nil, fmt.Errorf("make cache for istiod's Certificate: %w", err)
	}
	for _, one := range []struct {
		object  client.Object
		handler *toolscache.ResourceEventHandlerRegistration
	}{
		{&cmapi.Certificate{}, &w.certificates}, {deployment, &w.deployments}, {webhook, &w.webhooks},
	} {
		informer, err := w.cache.GetInformer(ctx, one.object, cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", one.object, err)
		}
		*one.handler, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { w.wake() },
			UpdateFunc: func(any, any) { w.wake() },
			DeleteFunc: func(any) { w.wake() },
		})
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", one.object, err)
		}
	}
	return w, nil
}

// Labels of Istio that say which revision, and which tag, an object belongs to.
const (
	revisionLabel = "istio.io/rev"
	tagLabel      = "istio.io/tag"
)

func metadataOf(kind schema.GroupVersionKind) *metav1.PartialObjectMetadata {
	object := &metav1.PartialObjectMetadata{}
	object.SetGroupVersionKind(kind)
	return object
}

// onlyLabels keeps of an object what its revision is read from.
func onlyLabels(object any) (any, error) {
	if m, ok := object.(*metav1.PartialObjectMetadata); ok {
		m.ManagedFields, m.Annotations, m.OwnerReferences = nil, nil, nil
	}
	return object, nil
}

func (w *istiodWatch) handlers() []toolscache.ResourceEventHandlerRegistration {
	return []toolscache.ResourceEventHandlerRegistration{w.certificates, w.deployments, w.webhooks}
}

func (w *istiodWatch) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// certificate is the Certificate that is there, or nil. Only after certificates have synced.
func (w *istiodWatch) certificate(ctx context.Context) (*cmapi.Certificate, error) {
	is := &cmapi.Certificate{}
	err := w.cache.Get(ctx, types.NamespacedName{Namespace: w.cfg.Namespace, Name: w.cfg.Name}, is)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Certificate %s/%s: %w", w.cfg.Namespace, w.cfg.Name, err)
	}
	return is, nil
}

// revisions is what the cluster says, and whether it has said everything.
func (w *istiodWatch) revisions(ctx context.Context) (f found, complete bool, err error) {
	complete = true
	for _, one := range []struct {
		kind    schema.GroupVersionKind
		handler toolscache.ResourceEventHandlerRegistration
		tagged  bool
	}{
		{deploymentKind, w.deployments, false}, {webhookKind, w.webhooks, true},
	} {
		if !one.handler.HasSynced() {
			complete = false
			continue
		}
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(one.kind)
		if err := w.cache.List(ctx, list); err != nil {
			return found{}, false, fmt.Errorf("list %ss: %w", one.kind.Kind, err)
		}
		for _, item := range list.Items {
			f.revisions = append(f.revisions, cmp.Or(item.Labels[revisionLabel], defaultRevision))
			if tag := item.Labels[tagLabel]; one.tagged && tag != "" {
				f.tags = append(f.tags, tag)
			}
		}
	}
	return f, complete, nil
}

// keeping is one run of Start. Used by its goroutine only.
type keeping struct {
	*Istiod
	watch    *istiodWatch
	began    time.Time
	writes   *rate.Limiter // somebody else may want the Certificate to be different, all the time
	failures int           // in a row
	trouble  error
	wrote    *unstructured.Unstructured // what the last write made of the Certificate, nil before it
	wroteAt  time.Time
}

// unseen says that the informer doesn't know of our last write yet. A Certificate that was deleted
// right after it is missed for a moment.
func (k *keeping) unseen(is *cmapi.Certificate) bool {
	if k.wrote == nil || time.Since(k.wroteAt) > istiodUnseen {
		return false
	}
	return is == nil || is.UID == k.wrote.GetUID() && is.Generation < k.wrote.GetGeneration()
}

// look compares what is there with what should be, writes where they differ, and returns how long to
// wait for the next look where nothing happens before.
func (k *keeping) look(ctx context.Context) time.Duration {
	wrote, err := k.try(ctx)
	if ctx.Err() != nil {
		return 0
	}
	if err == nil {
		k.failures, k.trouble = 0, nil
	} else {
		k.failures++
		k.trouble = err
	}
	status := k.observe(ctx)
	switch {
	case errors.Is(err, errNotYet):
		k.failures, k.trouble = 0, nil
		return max(time.Until(k.began.Add(istiodSettle)), time.Second) // its arrival wakes us as well
	case err == nil && wrote != "":
		k.log.Info("istiod's Certificate written", "certificate", k.cfg.Namespace+"/"+k.cfg.Name, "changed", wrote, "issuer", k.ref().String())
		k.event(corev1.EventTypeNormal, "Applied", "Signet set "+wrote)
		fallthrough
	case err == nil:
		return istiodRecheck
	}
	level, now := slog.LevelWarn, time.Now()
	left := status.NotAfter.Sub(now)
	policy := policyFor(KindIstiod, status.NotBefore, status.NotAfter, status.Renewal)
	if state := Decide(policy, status.NotBefore, status.NotAfter, now); state == Overdue || state == Expired {
		level = slog.LevelError
	}
	pause := retryIn(k.failures, left)
	k.log.Log(ctx, level, "istiod's Certificate not written", "err", err, "next_try", pause)
	if k.failures == 1 {
		k.event(corev1.EventTypeWarning, "ApplyFailed", err.Error())
	}
	return pause
}

// observe puts what is there into the status.
func (k *keeping) observe(ctx context.Context) IstiodStatus {
	status := IstiodStatus{Watching: true, Namespace: k.cfg.Namespace, Name: k.cfg.Name, Condition: "the Certificate has not been read yet"}
	if k.watch.certificates.HasSynced() {
		switch is, err := k.watch.certificate(ctx); {
		case err != nil:
			status.Condition = err.Error()
		case is == nil:
			status.Condition = "there is no Certificate yet"
		default:
			status = statusOf(is)
		}
	}
	status.Trouble = k.trouble
	k.status.Store(&status)
	return status
}

// errNotYet says that too little is known for a write.
var errNotYet = errors.New("not known yet")

// try writes the Certificate where it isn't as it should be, and says in what it wasn't.
func (k *keeping) try(ctx context.Context) (wrote string, err error) {
	ctx, cancel := context.WithTimeout(ctx, istiodTryTimeout)
	defer cancel()
	ref := k.ref()
	// What is there is read before anything is written: a replica that took over must not take names
	// away, and have a certificate made anew, because it can't see the revisions yet.
	if ref.Name == "" || !k.watch.certificates.HasSynced() {
		return "", errNotYet
	}
	is, err := k.watch.certificate(ctx)
	if err != nil {
		return "", err
	}
	if k.unseen(is) {
		return "", errNotYet
	}
	revisions, complete, err := k.watch.revisions(ctx)
	if err != nil {
		return "", err
	}
	if !complete && time.Since(k.began) < istiodSettle {
		return "", errNotYet
	}
	names := k.cfg.names(revisions)
	if !complete && is != nil {
		names = k.cfg.kept(names, is.Spec.DNSNames)
	}
	want := k.cfg.certificate(ref, names)
	differs := "everything"
	if is != nil {
		if differs = drift(is, want); differs == "" {
			return "", nil
		}
	}
	object, err := applied(want)
	if err != nil {
		return "", err
	}
	if err := k.writes.Wait(ctx); err != nil {
		return "", fmt.Errorf("apply Certificate %s/%s: somebody else keeps changing %s", k.cfg.Namespace, k.cfg.Name, differs)
	}
	if err := k.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner("signet"), client.ForceOwnership); err != nil {
		return "", fmt.Errorf("apply Certificate %s/%s: %w", k.cfg.Namespace, k.cfg.Name, err)
	}
	k.wrote, k.wroteAt = object, time.Now()
	return differs, nil
}

func (k *keeping) event(kind, reason, text string) {
	if k.events == nil {
		return
	}
	regarding := &corev1.ObjectReference{
		APIVersion: certificateKind.GroupVersion().String(), Kind: certificateKind.Kind, Namespace: k.cfg.Namespace, Name: k.cfg.Name,
	}
	k.events.Eventf(regarding, nil, kind, reason, "Apply", "%s", text)
}

// deniedLog logs errors of watches, those of each resource once in a while. The reflector tries again by
// itself, less and less often.
type deniedLog struct {
	log *slog.Logger

	mu   sync.Mutex // guards the following
	last map[string]time.Time
}

func (d *deniedLog) handle(ctx context.Context, r *toolscache.Reflector, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return // a watch that has to begin anew is no news
	}
	what := r.TypeDescription()
	// Of objects that only the metadata is read of, the description doesn't say what they are.
	if status, ok := errors.AsType[*apierrors.StatusError](err); ok && status.Status().Details != nil {
		what = schema.GroupResource{Group: status.Status().Details.Group, Resource: status.Status().Details.Kind}.String()
	}
	d.mu.Lock()
	last, known := d.last[what]
	due := !known || time.Since(last) >= deniedEvery
	if due {
		d.last[what] = time.Now()
	}
	d.mu.Unlock()
	if !due {
		return
	}
	if apierrors.IsForbidden(err) {
		d.log.Error("not allowed to watch; grant list and watch with a Role or ClusterRole", "resource", what, "err", err)
		return
	}
	d.log.Warn("can't watch", "resource", what, "err", err)
}

// istiodMetrics are those of istiod's certificate; only the replica that watches it has them.
type istiodMetrics struct {
	istiod          *Istiod
	notAfter, ready *prometheus.Desc
}

func newIstiodMetrics(s *Istiod) *istiodMetrics {
	return &istiodMetrics{
		istiod: s,
		notAfter: prometheus.NewDesc("istiod_certificate_not_after_timestamp_seconds",
			"When istiod's serving certificate expires, in seconds since 1970; 0 while there is none. Only from the replica that holds the lease.", nil, nil),
		ready: prometheus.NewDesc("istiod_certificate_ready",
			"1 while istiod's Secret holds a valid certificate as it should be, else 0. Only from the replica that holds the lease.", nil, nil),
	}
}

// Describe names the metrics.
func (m *istiodMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.notAfter
	descs <- m.ready
}

// Collect reads them from the status.
func (m *istiodMetrics) Collect(metrics chan<- prometheus.Metric) {
	status := m.istiod.Status()
	if !status.Watching {
		return
	}
	notAfter, ready := 0.0, 0.0
	if !status.NotAfter.IsZero() {
		notAfter = float64(status.NotAfter.Unix())
	}
	if status.Ready {
		ready = 1
	}
	metrics <- prometheus.MustNewConstMetric(m.notAfter, prometheus.GaugeValue, notAfter)
	metrics <- prometheus.MustNewConstMetric(m.ready, prometheus.GaugeValue, ready)
}
