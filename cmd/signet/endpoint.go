package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/rotation"
	"github.com/signet-ca/signet/signer"
)

// endpoint is what workloads ask, with what is known of those who ask.
type endpoint struct {
	server    *ca.Server
	listening *ca.Endpoint
	exists    *presence.Index // of our own cluster; nil where nothing needs it
	others    elsewhere
	keys      *ca.Keys         // of our own cluster's tokens; nil where they are all reviewed
	registers *ca.Registration // signs CertificateSigningRequests, where the lease is held; nil where it isn't enabled
}

func newEndpoint(ctx context.Context, cfg Config, config *rest.Config, mgr manager.Manager, sign *signer.Signer, recorder ca.Recorder, store *ledger.Store, trusting *trust, log *slog.Logger, reg prometheus.Registerer) (e endpoint, err error) {
	if e.exists, err = newPresence(cfg, config, log, reg); err != nil {
		return endpoint{}, err
	}
	if e.others, err = newElsewhere(cfg, config, mgr.GetEventRecorder("signet"), log, reg); err != nil {
		return endpoint{}, err
	}
	if e.keys, err = newKeys(cfg, config, log, reg); err != nil {
		return endpoint{}, err
	}
	parts := ca.Parts{
		Nodes:          newNodeProxies(cfg, e.exists, e.others.remotes),
		Authenticators: newAuthenticators(cfg, mgr.GetClient(), e.exists, e.keys, e.others, store, trusting, reg),
		Signer:         sign, Recorder: recorder,
	}
	if cfg.CA.RuledByLabels() {
		if parts.Namespaces, err = newNamespaceLabels(ctx, mgr.GetCache()); err != nil {
			return endpoint{}, err
		}
	}
	e.server = ca.New(cfg.CA, parts, log, reg)
	e.listening = ca.NewEndpoint(e.server, trusting.serving.GetCertificate)
	if cfg.CA.Registration.Enabled {
		if e.registers, err = ca.NewRegistration(e.server, config, log); err != nil {
			return endpoint{}, err
		}
	}
	return e, nil
}

// shown is what readiness shows of what is known of callers. It doesn't count: sidecars are served without it.
func (e endpoint) shown() []shown {
	var all []shown
	if e.exists != nil {
		all = append(all, shown{"cluster", e.exists.Describe})
	}
	return append(all, e.others.shown()...)
}

// answering is the endpoint with what its requests need until the last one is answered, which is later
// than the manager's word to stop: the guard of the informer's stream, the word to the other replicas that this one
// answers, what runs under the lease, the keeping of records, and what is known of those who ask.
type answering struct {
	endpoint
	signer    *signer.Signer
	replicas  *rotation.Replicas
	leading   *leased
	recording func(context.Context) error
}

// NeedLeaderElection says that every replica answers.
func (a *answering) NeedLeaderElection() bool { return false }

// Start runs all of it until ctx ends and it has stopped, the endpoint first.
func (a *answering) Start(ctx context.Context) error {
	beside, stop := context.WithCancel(context.WithoutCancel(ctx))
	var group errgroup.Group
	group.Go(func() error { a.signer.Guard(beside); return nil })
	group.Go(func() error { return a.replicas.Start(beside) })
	group.Go(func() error { return a.leading.Start(beside) })
	group.Go(func() error { return a.recording(beside) })
	if a.exists != nil {
		group.Go(func() error { return a.exists.Start(beside) })
	}
	if a.others.remotes != nil {
		group.Go(func() error { return a.others.remotes.Start(beside) })
	}
	if a.others.oidc != nil {
		group.Go(func() error { return a.others.oidc.Start(beside) })
	}
	err := a.listening.Start(ctx)
	stop()
	return errors.Join(err, group.Wait())
}
