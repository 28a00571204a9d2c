package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"

	"github.com/signet-ca/signet/setting"
)

// DistributionConfig is how the mesh's trust documents come to the namespaces, where Istio's proxies
// and istiod mount them (R51).
type DistributionConfig struct {
	// Disabled leaves the documents to somebody else. Pods of the mesh don't start in a namespace
	// without the root certificates. Default false.
	Disabled bool `json:"disabled,omitempty"`
	// ConfigMap is the name of the ConfigMap with the root certificates, the same as Istio's
	// global.TrustBundleName. Default istio-ca-root-cert.
	ConfigMap string `json:"configMap,omitempty"`
	// NamespaceSelector is a label selector, such as "mesh=on,env in (prod,stage)", of the namespaces
	// that carry the documents. What a namespace carries stays when it isn't selected any more. Default
	// all namespaces.
	NamespaceSelector string `json:"namespaceSelector,omitempty"`
	// ExcludeNamespaces are namespaces that carry no documents, whatever their labels; an empty list
	// excludes none. Default kube-public, kube-node-lease and local-path-storage.
	ExcludeNamespaces []string `json:"excludeNamespaces,omitempty"`
	// ClusterTrustBundle says whether the root certificates are also written to the ClusterTrustBundle
	// istio.io:istiod-ca:root-cert (R53): auto writes it where the API server has the API, on reports
	// it as failing where it doesn't, off never writes it. Default auto.
	ClusterTrustBundle string `json:"clusterTrustBundle,omitempty"`
}

// What ClusterTrustBundle can be set to.
const (
	bundleAuto = "auto"
	bundleOn   = "on"
	bundleOff  = "off"
)

// Validate reports what is wrong with c.
func (c DistributionConfig) Validate(p setting.Problems) {
	if c.ConfigMap != "" && len(validation.IsDNS1123Subdomain(c.ConfigMap)) != 0 {
		p.Addf("configMap", "%q is not the name of a ConfigMap", c.ConfigMap)
	}
	if _, err := labels.Parse(c.NamespaceSelector); err != nil {
		p.Addf("namespaceSelector", `%q is not a label selector; write it as in "mesh=on,env in (prod,stage)"`, c.NamespaceSelector)
	}
	for _, name := range c.ExcludeNamespaces {
		if len(validation.IsDNS1123Label(name)) != 0 {
			p.Addf("excludeNamespaces", "%q is not the name of a namespace", name)
		}
	}
	switch c.ClusterTrustBundle {
	case "", bundleAuto, bundleOn, bundleOff:
	default:
		p.Addf("clusterTrustBundle", "%q is not known; it must be auto, on or off", c.ClusterTrustBundle)
	}
}

// ConfigMapOrDefault is the name of the ConfigMap with the root certificates.
func (c DistributionConfig) ConfigMapOrDefault() string {
	if c.ConfigMap == "" {
		return "istio-ca-root-cert"
	}
	return c.ConfigMap
}

// Roots is the document that carries anchors.
func (c DistributionConfig) Roots(anchors Bundle) Document {
	return Document{ConfigMap: c.ConfigMapOrDefault(), Key: rootCertKey, Data: anchors.PEM()}
}

// Document is a text that every selected namespace must carry: the value of one key of a ConfigMap.
type Document struct {
	// ConfigMap is its name, a different one for each document.
	ConfigMap string
	// Key under which the text stands.
	Key string
	// Data is the text, at most 1 MiB.
	Data string
	// MayBeEmpty says that an empty text means something: that there is nothing any more. Otherwise it is refused.
	MayBeEmpty bool
}

// Hash identifies the text: its SHA-256 in hexadecimal digits.
func (d Document) Hash() string {
	sum := sha256.Sum256([]byte(d.Data))
	return hex.EncodeToString(sum[:])
}

// Progress is how far the documents have come. It is known only to the replica that distributes.
type Progress struct {
	// Known is true once the documents are known and the whole cluster has been looked at. Before that
	// the numbers below mean nothing.
	Known bool
	// Disabled is true where somebody else distributes, of whom nothing is known.
	Disabled bool
	// Trouble is why the cluster can't be looked at just now, so that the numbers may be old; else empty.
	Trouble string
	// Documents are those in force, in the order of their ConfigMaps' names.
	Documents []DocumentProgress
	// ClusterTrustBundle is how it stands with the ClusterTrustBundle of the root certificates.
	ClusterTrustBundle BundleProgress
}

// DocumentProgress is how far one document has come.
type DocumentProgress struct {
	ConfigMap, Key string
	// Hash is that of the document that is being distributed, see [Document.Hash]; empty when there is
	// none yet.
	Hash string
	// Refused is why a newer document is not distributed, and that of Hash still is; else empty.
	Refused string
	// Selected is the number of namespaces that must carry it, Carrying that of those that do.
	Selected, Carrying int
	// SecondWriters is the number of namespaces where somebody else keeps changing or deleting it, or did
	// until some minutes ago, even if it is there just now.
	SecondWriters int
	// Without are namespaces among those that don't, by name, at most [MaxWithout].
	Without []Without
}

// MaxWithout is how many namespaces a [DocumentProgress] names.
const MaxWithout = 100

// Without is a namespace that doesn't carry a document.
type Without struct {
	Namespace string
	// Reason is for people; Failing says that the last try to write failed, or that there is no use in
	// trying.
	Reason  string
	Failing bool
	// Since when it doesn't carry it, as far as this replica knows.
	Since time.Time
}

// BundleProgress is the state of the ClusterTrustBundle.
type BundleProgress struct {
	// State is off, unknown, not served, pending, failing or carrying.
	State string
	// Hash is that of the document that it must carry; empty when it needn't.
	Hash string
	// Reason is for people.
	Reason string
}

// Carried says that all selected namespaces carry exactly doc, that nobody else changes it again and
// again, and that the ClusterTrustBundle carries it too where doc is the root certificates and it is
// written.
func (p Progress) Carried(doc Document) bool { return p.Waits(doc) == "" }

// Waits says for people what has to come until doc is carried, see [Progress.Carried]; nothing when it is.
func (p Progress) Waits(doc Document) string {
	if p.Disabled {
		return "whoever distributes instead of Signet"
	}
	if !p.Known && p.Trouble != "" {
		return "the namespaces to be looked at: " + p.Trouble
	}
	if !p.Known {
		return "the namespaces to be looked at"
	}
	hash := doc.Hash()
	i := slices.IndexFunc(p.Documents, func(d DocumentProgress) bool { return d.ConfigMap == doc.ConfigMap && d.Key == doc.Key })
	if i < 0 {
		return "the document to be put in force"
	}
	switch d := p.Documents[i]; {
	case d.Refused != "":
		return "a document that can be distributed: " + d.Refused
	case d.Hash != hash:
		return "the document to be put in force"
	case d.Carrying != d.Selected:
		text := fmt.Sprintf("%d of %d namespaces to carry it", d.Selected-d.Carrying, d.Selected)
		if len(d.Without) > 0 {
			text += fmt.Sprintf(", such as %s: %s", d.Without[0].Namespace, d.Without[0].Reason)
		}
		return text
	case d.SecondWriters != 0:
		return fmt.Sprintf("somebody else to leave it alone in %d namespaces", d.SecondWriters)
	}
	if doc.Key != rootCertKey {
		return ""
	}
	switch b := p.ClusterTrustBundle; {
	case b.State == BundleOff || b.State == BundleNotServed || b.State == BundleCarrying && b.Hash == hash:
		return ""
	case b.Reason != "":
		return "the ClusterTrustBundle to carry it: " + b.Reason
	}
	return "the ClusterTrustBundle to carry it"
}

// States of the ClusterTrustBundle.
const (
	BundleOff       = "off"
	BundleUnknown   = "unknown"
	BundleNotServed = "not served"
	BundlePending   = "pending"
	BundleFailing   = "failing"
	BundleCarrying  = "carrying"
)

// Distributor keeps the mesh's trust documents in all selected namespaces: it writes them where they
// are missing, repairs what others change or delete, and knows how far they have come. It never deletes
// anything. Safe for concurrent use.
type Distributor struct {
	cfg       DistributionConfig
	selector  labels.Selector
	excluded  map[string]bool
	documents func() ([]Document, <-chan struct{})
	log       *slog.Logger
	events    events.EventRecorder // may be nil
	metrics   *distributionMetrics
	reports   *rate.Limiter // of what is said of single namespaces

	metadata   metadata.Interface // namespaces, and all writes
	configMaps corev1client.ConfigMapsGetter
	dynamic    dynamic.Interface
	discovery  discovery.ServerResourcesInterfaceWithContext

	notice Notice // that the progress has changed

	mu   sync.Mutex
	term *distribution // guarded by mu; nil while it doesn't run
}

// NewDistributor makes a distributor of what documents returns: the documents that must be carried now,
// and a channel that is closed when that is no longer so. No documents mean that they are not known yet;
// a document that is no longer among them is left as it is. Recorder may be nil.
func NewDistributor(cfg DistributionConfig, config *rest.Config, documents func() ([]Document, <-chan struct{}), log *slog.Logger, reg prometheus.Registerer, recorder events.EventRecorder) (*Distributor, error) {
	selector, err := labels.Parse(cfg.NamespaceSelector)
	if err != nil {
		return nil, fmt.Errorf("parse namespace selector: %w", err)
	}
	d := &Distributor{
		cfg:       cfg,
		selector:  selector,
		excluded:  make(map[string]bool),
		documents: documents,
		log:       log,
		events:    recorder,
		reports:   rate.NewLimiter(2, 50),
	}
	names := cfg.ExcludeNamespaces
	if names == nil {
		names = []string{"kube-public", "kube-node-lease", "local-path-storage"}
	}
	for _, name := range names {
		d.excluded[name] = true
	}
	if err := d.connect(config); err != nil {
		return nil, fmt.Errorf("make clients for distribution: %w", err)
	}
	d.metrics = newDistributionMetrics(reg, d)
	return d, nil
}

// connect makes the clients, which share their connections. What is sent at once is bounded by the
// number of writers; a limit of the rate is the server's job.
func (d *Distributor) connect(config *rest.Config) error {
	config = rest.CopyConfig(config)
	config.QPS = -1
	http, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	var errs [4]error
	d.metadata, errs[0] = metadata.NewForConfigAndClient(config, http)
	d.dynamic, errs[1] = dynamic.NewForConfigAndClient(config, http)
	d.discovery, errs[2] = discovery.NewDiscoveryClientForConfigAndClient(config, http)
	binary := rest.CopyConfig(config)
	binary.ContentType = "application/vnd.kubernetes.protobuf"
	binary.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	d.configMaps, errs[3] = corev1client.NewForConfigAndClient(binary, http)
	return errors.Join(errs[:]...)
}

// Start distributes until ctx ends and everything has stopped. It must run in one replica at a time;
// that another one ran before, or still does for a moment, does no harm: what is known of the cluster is
// read anew each time.
func (d *Distributor) Start(ctx context.Context) error {
	if d.cfg.Disabled {
		<-ctx.Done()
		return nil
	}
	term := newDistribution(d)
	d.mu.Lock()
	if d.term != nil {
		d.mu.Unlock()
		return errors.New("distribute trust documents: it is running already")
	}
	d.term = term
	d.mu.Unlock()
	d.notify()
	defer func() {
		d.mu.Lock()
		d.term = nil
		d.mu.Unlock()
		d.notify()
	}()
	term.run(ctx)
	return nil
}

// Progress is how far the documents have come.
func (d *Distributor) Progress() Progress {
	if d.cfg.Disabled {
		return Progress{Disabled: true, ClusterTrustBundle: BundleProgress{State: BundleOff}}
	}
	if term := d.current(); term != nil {
		return term.progress()
	}
	return Progress{ClusterTrustBundle: BundleProgress{State: BundleUnknown}}
}

// Watch is Progress, and a channel that is closed when it has changed.
func (d *Distributor) Watch() (Progress, <-chan struct{}) {
	changed := d.notice.Changed()
	return d.Progress(), changed
}

// notify tells those that watch.
func (d *Distributor) notify() { d.notice.Tell() }

func (d *Distributor) current() *distribution {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.term
}
