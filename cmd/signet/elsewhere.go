package main

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"

	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/ca/clusters"
)

// elsewhere is what is known of callers that aren't in our own cluster. Each part is nil where cfg doesn't ask for it.
type elsewhere struct {
	remotes *ca.Remotes
	oidc    *ca.OIDC
}

func newElsewhere(cfg Config, config *rest.Config, recorder events.EventRecorder, log *slog.Logger, reg prometheus.Registerer) (e elsewhere, err error) {
	if cfg.CA.RemoteClusters.Enabled() {
		refused := func(r clusters.Refused) {
			text := r.String()
			if len(text) > maxNote {
				text = text[:maxNote] + "…"
			}
			recorder.Eventf(&r.Secret, nil, corev1.EventTypeWarning, "RemoteClusterRefused", "Read", "%s", text)
		}
		if e.remotes, err = ca.NewRemotes(cfg.CA, config, refused, log, reg); err != nil {
			return elsewhere{}, err
		}
	}
	if len(cfg.CA.OIDC) > 0 {
		if e.oidc, err = ca.NewOIDC(cfg.CA, log, reg); err != nil {
			return elsewhere{}, err
		}
	}
	return e, nil
}

// maxNote bounds the text of an Event; the API server refuses more than 1024 characters.
const maxNote = 1000

// around are all who judge tokens, in their order, with the one for our own cluster's.
func (e elsewhere) around(own ca.TokenAuthenticator) []ca.TokenAuthenticator {
	var all []ca.TokenAuthenticator
	if e.oidc != nil {
		all = append(all, ca.TokenAuthenticator{Name: "oidc", Alone: true, Authenticator: e.oidc})
	}
	all = append(all, own)
	if e.remotes != nil {
		all = append(all, ca.TokenAuthenticator{Name: "remote", Authenticator: e.remotes})
	}
	return all
}

// shown is what readiness shows of them. It doesn't count: one of them that is away is no reason to serve nobody.
func (e elsewhere) shown() []shown {
	var all []shown
	if e.remotes != nil {
		all = append(all, shown{"remote cluster", e.remotes.Describe})
	}
	if e.oidc != nil {
		all = append(all, shown{"OIDC issuer", e.oidc.Describe})
	}
	return all
}
