package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/signer"
)

// Anchors brings the mesh's trust anchors into force at start: those that the operator pinned, or one
// that is trusted on first use.
type Anchors struct {
	cfg       issuer.RootsConfig
	namespace string
	client    client.Client
	reader    client.Reader // straight to the API server
	serving   *Serving      // whose request asks the issuer on first use
	issuers   *issuer.Store
	log       *slog.Logger

	trouble atomic.Pointer[error]
}

// NewAnchors makes the loader of the anchors. It writes them to the store that serving signs with.
func NewAnchors(cfg issuer.RootsConfig, cluster signer.Cluster, serving *Serving, log *slog.Logger, reg prometheus.Registerer) *Anchors {
	a := &Anchors{
		cfg:       cfg,
		namespace: cluster.Namespace,
		client:    cluster.Client,
		reader:    cluster.Reader,
		serving:   serving,
		issuers:   serving.issuers,
		log:       log,
	}
	onFirstUse := 0.0
	if cfg.FromIssuer {
		onFirstUse = 1
	}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "trust_anchors",
			Help: "Trust anchors in force; 0 until they are known.",
		}, func() float64 { return float64(len(a.issuers.Current().Anchors.Anchors())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "trust_anchors_on_first_use",
			Help: "1 where the anchor is the one that the issuer named at first use, 0 where anchors are pinned.",
		}, func() float64 { return onFirstUse }),
	)
	return a
}

// NeedLeaderElection says that every replica needs the anchors.
func (a *Anchors) NeedLeaderElection() bool { return false }

// Start loads the anchors, trying until it succeeds or ctx ends.
func (a *Anchors) Start(ctx context.Context) error {
	for failures := 1; ; failures++ {
		bundle, err := a.load(ctx)
		if err == nil {
			a.trouble.Store(nil)
			a.issuers.SetAnchors(bundle)
			for _, anchor := range bundle.Anchors() {
				a.log.Info("trust anchor in force", "subject", anchor.Subject.String(), "serial", fmt.Sprintf("%x", anchor.SerialNumber), "not_after", anchor.NotAfter)
			}
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		a.trouble.Store(&err)
		pause := retryIn(failures, 100*time.Second) // 1s to 5s
		a.log.Warn("trust anchors not loaded", "err", err, "next_try", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func (a *Anchors) load(ctx context.Context) (issuer.Bundle, error) {
	trying, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	if !a.cfg.FromIssuer {
		return issuer.LoadPinned(trying, a.reader, a.namespace, a.cfg)
	}
	bundle, err := issuer.LoadFirstUse(trying, a.reader, a.namespace)
	if !errors.Is(err, issuer.ErrNoAnchors) {
		return bundle, err
	}
	return a.firstUse(trying)
}

// firstUse asks the issuer, and keeps what it names unless another replica was first.
func (a *Anchors) firstUse(ctx context.Context) (issuer.Bundle, error) {
	_, request, err := a.serving.request()
	if err != nil {
		return issuer.Bundle{}, err
	}
	chain, err := a.serving.signer.FirstUse(ctx, request)
	if err != nil {
		return issuer.Bundle{}, fmt.Errorf("ask the issuer for its root: %w", err)
	}
	ref := a.issuers.Current().Ref
	bundle, created, err := issuer.StoreFirstUse(ctx, a.client, a.reader, a.namespace, ref, chain.Anchor)
	if err != nil {
		return issuer.Bundle{}, err
	}
	if created {
		a.log.Warn("trusting the issuer's root on first use; pin it with roots.file or roots.secret",
			"issuer", ref.String(), "subject", chain.Anchor.Subject.String(), "serial", fmt.Sprintf("%x", chain.Anchor.SerialNumber),
			"kept_in", "ConfigMap "+a.namespace+"/"+issuer.FirstUseConfigMap)
	}
	return bundle, nil
}

// Ready says whether anchors are in force and one of them is valid at now. The text is for people.
func (a *Anchors) Ready(now time.Time) (string, error) {
	bundle := a.issuers.Current().Anchors
	if bundle.Empty() {
		if trouble := a.trouble.Load(); trouble != nil {
			return "", *trouble
		}
		return "", errors.New("no trust anchors are known yet")
	}
	total, valid := len(bundle.Anchors()), bundle.Valid(now)
	if valid == 0 {
		return "", fmt.Errorf("none of the %d trust anchors is valid any more", total)
	}
	text := fmt.Sprintf("%d trust anchors, %d of them valid", total, valid)
	if a.cfg.FromIssuer {
		text += ", trusted on first use"
	}
	return text, nil
}
