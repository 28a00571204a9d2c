package main

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/ca/presence"
)

// followed are the kinds of which it must be known what exists in our own cluster.
func followed(cfg Config) []presence.Kind {
	var kinds []presence.Kind
	if cfg.CA.Nodes.Enabled() || cfg.CA.Certificates.Enabled || cfg.CA.Token.Local() {
		kinds = append(kinds, presence.Pods)
	}
	if cfg.CA.Certificates.Enabled || cfg.CA.Token.Local() {
		kinds = append(kinds, presence.ServiceAccounts)
	}
	if cfg.CA.Token.Local() {
		kinds = append(kinds, presence.Nodes)
	}
	return kinds
}

// newPresence makes the index of what exists in our own cluster; nil where nothing needs to be known.
func newPresence(cfg Config, config *rest.Config, log *slog.Logger, reg prometheus.Registerer) (*presence.Index, error) {
	kinds := followed(cfg)
	if len(kinds) == 0 {
		return nil, nil
	}
	return presence.New(config, presence.Config{Cluster: cfg.ClusterID, Kinds: kinds}, log, reg)
}

// newNodeProxies lets the proxies of nodes ask for the pods beside them, in our own cluster and in remote ones; nil where
// none may.
func newNodeProxies(cfg Config, exists *presence.Index, remotes *ca.Remotes) ca.NodeAuthoriser {
	if !cfg.CA.Nodes.Enabled() {
		return nil
	}
	return ca.NewNodeProxies(cfg.CA.Nodes, func(cluster string) ca.Presence {
		switch {
		case cluster == cfg.ClusterID:
			return exists
		case remotes != nil:
			return remotes.Presence(cluster)
		}
		return nil
	})
}
