package main

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/signet-ca/signet/api"
)

var gatewayKind = kind[api.GatewayObject]{
	word: "gateway", words: "gateways",
	name:      gatewayName,
	key:       gatewayName,
	attention: func(g *api.GatewayObject) bool { return len(g.Problems) > 0 },
	columns: func(now time.Time) []column[api.GatewayObject] {
		return []column[api.GatewayObject]{
			{title: "NAMESPACE", value: func(g *api.GatewayObject) string { return g.Namespace }},
			{title: "GATEWAY", value: func(g *api.GatewayObject) string { return g.Name }},
			{title: "API", value: func(g *api.GatewayObject) string {
				switch g.API {
				case api.KubernetesGateway:
					return "kubernetes"
				case api.IstioGateway:
					return "istio"
				}
				return string(g.API)
			}},
			{title: "HOSTS", value: func(g *api.GatewayObject) string { return few(gatewayHosts(g), 2) }},
			{title: "CERTIFICATES", value: func(g *api.GatewayObject) string { return few(gatewaySecrets(g), 2) }},
			{title: "NOT AFTER", value: func(g *api.GatewayObject) string { return relative(g.NotAfter, now) }},
			{title: "STATE", value: gatewayState},
			{title: "CLASS", wide: true, value: func(g *api.GatewayObject) string { return g.Class }},
			{title: "ISSUERS", wide: true, value: func(g *api.GatewayObject) string {
				return strings.Join(ofCertificates(g, func(c *api.GatewayCertificate) string { return c.Issuer }), ",")
			}},
			{title: "PROBLEMS", wide: true, value: func(g *api.GatewayObject) string { return details(g.Problems) }},
		}
	},
}

// gatewayName is the key of a gateway in the API: a name may be taken in both gateway APIs.
func gatewayName(g *api.GatewayObject) string {
	return g.Namespace + "/" + g.Name + "." + string(g.API)
}

// gatewayHosts are the hosts of all listeners, each once; those that no certificate covers are marked.
func gatewayHosts(g *api.GatewayObject) []string {
	var hosts []string
	for i := range g.Listeners {
		for _, host := range g.Listeners[i].Hosts {
			text := host.Name
			if host.Covered == api.CoveredNo {
				text += " (not covered)"
			}
			hosts = once(hosts, text)
		}
	}
	return hosts
}

func gatewaySecrets(g *api.GatewayObject) []string {
	return ofCertificates(g, func(c *api.GatewayCertificate) string {
		switch {
		case c.Secret != nil && c.Secret.Namespace == g.Namespace:
			return c.Secret.Name
		case c.Secret != nil:
			return objectName(*c.Secret)
		}
		return c.File
	})
}

// ofCertificates are texts of the certificates of all listeners, each once.
func ofCertificates(g *api.GatewayObject, text func(*api.GatewayCertificate) string) []string {
	var texts []string
	for i := range g.Listeners {
		for n := range g.Listeners[i].Certificates {
			texts = once(texts, text(&g.Listeners[i].Certificates[n]))
		}
	}
	return texts
}

// once adds a text that isn't there yet.
func once(texts []string, text string) []string {
	if text == "" || slices.Contains(texts, text) {
		return texts
	}
	return append(texts, text)
}

func gatewayState(g *api.GatewayObject) string {
	var words []string
	for _, problem := range g.Problems {
		words = once(words, string(problem.Code))
	}
	switch {
	case len(words) > 0:
		return strings.Join(words, ", ")
	case g.State == "":
		return "unknown"
	case g.State == api.Fresh:
		return "ok"
	}
	return string(g.State)
}

func (p *program) gateways() *cobra.Command {
	var flags listFlags
	var problems bool
	c := &cobra.Command{
		Use:   "gateways",
		Short: "List gateways with the certificates that they show",
		Long: fmt.Sprintf(`Lists the gateways of both APIs (%s and %s) with their hosts, the certificates that
their listeners are told to show, when the first of these ends, and what somebody should look at.`, api.KubernetesGateway, api.IstioGateway),
		Example: p.examples("gateways -A --problems", "gateways -n edge -o wide"),
		Aliases: []string{"gateway", "gw"},
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			q := api.GatewayQuery{Problems: problems}
			return lists(c.Context(), p, gatewayKind, flags, &q.Namespace,
				func(ctx context.Context, client *api.Client, at api.Page) (*page[api.GatewayObject], error) {
					q.Page = at
					l, err := client.Gateways(ctx, q)
					return (*page[api.GatewayObject])(l), err
				},
				func(ctx context.Context, client *api.Client, resume string) iter.Seq2[api.Event[api.GatewayObject], error] {
					return client.WatchGateways(ctx, q, resume)
				})
		},
	}
	c.Flags().BoolVar(&problems, "problems", false, "only those with problems")
	flags.flags(c, 0, "one that was listed has a problem")
	flags.watchFlag(c)
	return c
}
