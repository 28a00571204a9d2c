package main

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/issuer"
)

// newAuthenticators are those that cfg asks for, in their order. Exists is what they need to know of the cluster, keys are
// those of its tokens, and elsewhere are those who judge tokens of others.
func newAuthenticators(cfg Config, reviews client.Client, exists *presence.Index, keys *ca.Keys, elsewhere elsewhere, store *ledger.Store, trusting *trust, reg prometheus.Registerer) ca.Authenticators {
	reviewer := ca.NewReviewer(cfg.CA, reviews, reg)
	tokens := ca.TokenAuthenticator{Name: "review", Authenticator: reviewer}
	if keys != nil {
		tokens = ca.TokenAuthenticator{Name: "local", Authenticator: ca.NewLocal(cfg.CA, reviewer, keys, exists, reg)}
	}
	all := ca.Authenticators{Tokens: elsewhere.around(tokens)}
	if cfg.CA.Certificates.Enabled {
		own := func() issuer.Bundle { bundle, _ := trusting.own(); return bundle }
		all.Certificate = ca.NewCertificates(cfg.CA, own, trusting.crls.Revoked, issuances{store}, exists)
	}
	return all
}

// newKeys are the keys of our own cluster's tokens; nil where they are all reviewed.
func newKeys(cfg Config, config *rest.Config, log *slog.Logger, reg prometheus.Registerer) (*ca.Keys, error) {
	if !cfg.CA.Token.Local() {
		return nil, nil
	}
	return ca.NewKeys(config, log, reg)
}
