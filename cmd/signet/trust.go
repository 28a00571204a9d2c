package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
)

// trust is everything that decides what the mesh trusts and who signs: what every replica runs, and what only the one
// does that holds the lease.
type trust struct {
	anchors  *rotation.Trust
	issuing  *rotation.Issuers
	replicas *rotation.Replicas
	crls     *issuer.CRLs
	endpoint *issuer.BundleEndpoint
	expiry   *rotation.Expiry
	seen     *seen

	distributor *issuer.Distributor
	istiod      *rotation.Istiod // nil where it isn't enabled
	rollover    *rotation.Rollover

	issuers *issuer.Store
	serving *rotation.Serving
	leading *leased
	roots   issuer.DistributionConfig
	changed issuer.Notice // what documents returns
}

// newTrust builds it, for a replica that competes for the lease as leading does.
func newTrust(cfg Config, leading *leased, config *rest.Config, objects cache.Cache, serving *rotation.Serving, issuers *issuer.Store, health *issuer.Health, recorder events.EventRecorder, log *slog.Logger, reg prometheus.Registerer) (*trust, error) {
	core, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for ConfigMaps: %w", err)
	}
	inRotation, inIssuer := log.With("room", "rotation"), log.With("room", "issuer")
	configMaps := core.ConfigMaps(cfg.Namespace)
	t := &trust{issuers: issuers, serving: serving, leading: leading, roots: cfg.Distribution}

	var runtime *issuer.Watched
	if at := cfg.Issuers.Runtime; at.Name != "" {
		namespace := at.Namespace
		if namespace == "" {
			namespace = cfg.Namespace
		}
		runtime = issuer.NewWatched(core.ConfigMaps(namespace), at.Name)
	}
	t.issuing = rotation.NewIssuers(cfg.Issuer, cfg.Issuers, cfg.Roots.FromIssuer, cfg.Namespace, objects, runtime, serving, health, inRotation, reg, recorder)

	own, federated, err := cfg.Roots.Sources(config, cfg.Namespace, inIssuer)
	if err != nil {
		return nil, err
	}
	var firstUse func() (map[string]*x509.Certificate, bool)
	if cfg.Roots.FromIssuer {
		firstUse = t.issuing.FirstUse
	}
	t.anchors = rotation.NewTrust(own, federated, firstUse, configMaps, issuers, inRotation, reg)
	longest := cfg.CA.LongestLifetime() + cfg.CA.RequestTimeout.Or(0)
	t.replicas = rotation.NewReplicas(leading.lock.Identity(), configMaps, t.anchors, serving, health, longest, inRotation)

	about := corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: cfg.Namespace, Name: rotation.TrustConfigMap}
	t.seen = &seen{leaves: rotation.NewLeaves(reg), intermediates: rotation.NewIntermediates(about)}
	if t.crls, err = issuer.NewCRLs(cfg.CRL, config, cfg.Namespace, t.cas, inIssuer, reg); err != nil {
		return nil, err
	}
	t.endpoint = issuer.NewBundleEndpoint(cfg.BundleEndpoint, t.own, serving.GetCertificate, inIssuer)
	if t.distributor, err = issuer.NewDistributor(cfg.Distribution, config, t.documents, inIssuer, reg, recorder); err != nil {
		return nil, err
	}
	if cfg.Istiod.Enabled {
		ref := func() issuer.Ref { return issuers.Current().ServingRef() }
		changed := func() <-chan struct{} { _, replaced := issuers.Watch(); return replaced }
		if t.istiod, err = rotation.NewIstiod(cfg.Istiod, config, ref, changed, inRotation, reg, recorder); err != nil {
			return nil, err
		}
	}
	var carriers rotation.Carriers
	if !cfg.Distribution.Disabled {
		carriers = carried{t.distributor, cfg.Distribution}
	}
	t.rollover = rotation.NewRollover(t.anchors, t.issuing, t.replicas, carriers, t.servedByIstiod, longest, inRotation, reg, recorder)
	t.expiry = rotation.NewExpiry(t.subjects(serving, about), t.seen.leaves, recorder, inRotation, reg)
	return t, nil
}

// lead runs what only the holder of the lease does, until ctx ends.
func (t *trust) lead(ctx context.Context, log *slog.Logger) error {
	parts := map[string]func(context.Context) error{
		"rollover": t.rollover.Start, "distribution": t.distributor.Start, "documents": t.tellDocuments,
	}
	if t.istiod != nil {
		parts["istiod's certificate"] = t.istiod.Start
	}
	var running sync.WaitGroup
	for name, start := range parts {
		running.Go(func() { again(ctx, name, start, log) })
	}
	running.Wait()
	return nil
}

// again runs a part until ctx ends, and starts it again should it end by itself: the lease would be held for nothing.
func again(ctx context.Context, name string, start func(context.Context) error, log *slog.Logger) {
	for ctx.Err() == nil {
		err := start(ctx)
		if ctx.Err() != nil {
			return
		}
		log.Error("a part that runs under the lease ended; it is started again", "part", name, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
	}
}

// documents are what every namespace carries. While the anchors aren't known there are none.
func (t *trust) documents() ([]issuer.Document, <-chan struct{}) {
	changed := t.changed.Changed()
	snapshot := t.issuers.Current()
	if snapshot.Anchors.Empty() {
		return nil, changed
	}
	documents := []issuer.Document{t.roots.Roots(snapshot.Anchors)}
	// CRLs that have been withdrawn are written as an empty text, so that proxies drop what they have.
	if crls, decided := t.crls.Publish(); decided {
		documents = append(documents, issuer.Document{ConfigMap: crlConfigMap, Key: crlKey, Data: crls, MayBeEmpty: true})
	}
	return documents, changed
}

// Where proxies look for CRLs (R57).
const (
	crlConfigMap = "istio-ca-crl"
	crlKey       = "ca-crl.pem"
)

// tellDocuments tells of changes of what documents returns, until ctx ends.
func (t *trust) tellDocuments(ctx context.Context) error {
	for {
		_, replaced := t.issuers.Watch()
		_, withdrawn := t.crls.Watch()
		t.changed.Tell()
		select {
		case <-ctx.Done():
			return nil
		case <-replaced:
		case <-withdrawn:
		}
	}
}

// own are the anchors of our own trust domain.
func (t *trust) own() (issuer.Bundle, uint64) {
	snapshot := t.issuers.Current()
	if snapshot.Rollover == nil {
		return issuer.Bundle{}, 0
	}
	own, err := snapshot.Rollover.Own()
	if err != nil {
		return issuer.Bundle{}, 0
	}
	return own, snapshot.Rollover.Generation
}

// cas are the CAs of all chains in force. They aren't known before the serving certificate shows the issuer's chain.
func (t *trust) cas() []*x509.Certificate {
	chain := t.serving.Chain()
	if chain == nil {
		return nil
	}
	return slices.Concat(t.issuers.Current().Anchors.Anchors(), chain.Intermediates, t.seen.intermediates.Certificates())
}

// servedByIstiod are the anchors that have to stay for istiod's certificate: all, while it isn't the one that it should
// be.
func (t *trust) servedByIstiod() []string {
	r := t.issuers.Current().Rollover
	if t.istiod == nil || r == nil {
		return nil
	}
	// One that the serving issuer has signed since it leads to its anchor is under that, which stays anyway. Issuers set
	// NotBefore back for a little.
	if status := t.istiod.Status(); status.Ready && status.Issuer == r.Serving && status.NotBefore.After(r.ServingSince.Add(-time.Minute)) {
		return nil
	}
	var all []string
	for _, a := range r.Anchors {
		all = append(all, a.ID())
	}
	return all
}

// subjects are what expires, but for leaves.
func (t *trust) subjects(serving *rotation.Serving, about corev1.ObjectReference) []func() []rotation.Subject {
	sources := []func() []rotation.Subject{
		rotation.ServingSubjects(serving, about),
		rotation.AnchorSubjects(t.issuers, about),
		t.seen.intermediates.Subjects,
		t.issuing.FallbackSubjects,
		func() []rotation.Subject { return crlSubjects(t.crls.Current(), about) },
	}
	if t.istiod != nil {
		sources = append(sources, rotation.IstiodSubjects(t.istiod))
	}
	return sources
}

// shown is what readiness says of it beside the checks.
func (t *trust) shown() []shown {
	all := []shown{
		{"issuer", func(time.Time) []string { return t.issuing.Describe() }},
		{"distribution", t.distributed},
		shownBy("CRLs", t.crls.Ready),
	}
	if t.istiod != nil {
		all = append(all, shown{"istiod", t.watched})
	}
	return all
}

// watched says for people how istiod's certificate is; only the holder of the lease knows.
func (t *trust) watched(time.Time) []string {
	status := t.istiod.Status()
	if !status.Watching {
		return []string{t.leading.instead("watched by")}
	}
	return []string{status.String()}
}

// distributed says for people how far the anchors have come; only the holder of the lease knows.
func (t *trust) distributed(time.Time) []string {
	progress := t.distributor.Progress()
	switch {
	case progress.Disabled:
		return []string{"left to somebody else"}
	case !progress.Known && progress.Trouble != "":
		return []string{"nothing is known yet: " + progress.Trouble}
	case !progress.Known:
		return []string{t.leading.instead("known to")}
	}
	var lines []string
	for _, d := range progress.Documents {
		line := fmt.Sprintf("%s: %d of %d namespaces carry it", d.ConfigMap, d.Carrying, d.Selected)
		if len(d.Without) > 0 {
			line += fmt.Sprintf("; %s doesn't: %s", d.Without[0].Namespace, d.Without[0].Reason)
		}
		if d.SecondWriters > 0 {
			line += fmt.Sprintf("; in %d somebody else writes it too", d.SecondWriters)
		}
		if d.Refused != "" {
			line += "; a newer one is refused: " + d.Refused
		}
		lines = append(lines, line)
	}
	if bundle := progress.ClusterTrustBundle; bundle.State != issuer.BundleOff {
		line := "ClusterTrustBundle: " + bundle.State
		if bundle.Reason != "" {
			line += ": " + bundle.Reason
		}
		lines = append(lines, line)
	}
	if progress.Trouble != "" {
		lines = append(lines, progress.Trouble)
	}
	return lines
}

// carried tells the rollover what the distributor has done.
type carried struct {
	*issuer.Distributor
	cfg issuer.DistributionConfig
}

func (c carried) Changed() <-chan struct{} { _, changed := c.Watch(); return changed }

func (c carried) Waits(bundle issuer.Bundle) string { return c.Progress().Waits(c.cfg.Roots(bundle)) }

// seen is what has been issued, for the watch of what expires.
type seen struct {
	leaves        *rotation.Leaves
	intermediates *rotation.Intermediates
}

func (s *seen) record(i ca.Issuance) {
	s.intermediates.Seen(i.Chain.Intermediates)
	s.leaves.Issued(leafOf(i))
}

// leafOf is a certificate as it is watched.
func leafOf(i ca.Issuance) rotation.Leaf {
	leaf := i.Chain.Leaf
	holder, pod := i.Caller.PodUID, i.Caller.PodName
	switch {
	case i.Grant.Impersonated:
		// Tokens of old clusters don't name the node; the proxy's pod stands for it, as long as it lives.
		holder, pod = "node:"+i.Caller.Cluster+"/"+cmp.Or(i.Caller.NodeName, i.Caller.PodUID), ""
	case holder == "":
		holder = "sa:" + i.Caller.ServiceAccountUID
	}
	return rotation.Leaf{
		Identity:       i.Grant.ID.String(),
		Namespace:      i.Grant.Namespace,
		ServiceAccount: i.Grant.ServiceAccount,
		Holder:         holder,
		PodName:        pod,
		Serial:         issuer.Serial(leaf.SerialNumber),
		SHA256:         sha256.Sum256(leaf.Raw),
		NotBefore:      leaf.NotBefore,
		NotAfter:       leaf.NotAfter,
		Anchor:         sha256.Sum256(i.Chain.Anchor.Raw),
	}
}

func crlSubjects(crls *issuer.CRLSet, about corev1.ObjectReference) []rotation.Subject {
	var all []rotation.Subject
	for _, list := range crls.Lists() {
		all = append(all, rotation.Subject{
			Kind: rotation.KindCRL, Key: list.Issuer, Text: "CRL of " + list.Issuer, NotBefore: list.ThisUpdate, NotAfter: list.NextUpdate, About: &about,
		})
	}
	return all
}
