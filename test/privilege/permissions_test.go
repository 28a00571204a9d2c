package privilege

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/test/process"
	"github.com/signet-ca/signet/test/replica"
)

var update = flag.Bool("update", false, "write the tables of docs/permissions.md")

// everything is a configuration that needs every right there is, in namespaces as they are called in the documentation.
var everything = map[string]any{
	"issuers.runtime":                map[string]any{"name": "signet-issuer", "namespace": "mesh-config"},
	"roots.secret":                   map[string]any{"name": "signet-roots"},
	"roots.configMap":                map[string]any{"name": "signet-roots"},
	"crl.secret":                     map[string]any{"name": "signet-crls"},
	"distribution.disabled":          false,
	"istiod.enabled":                 true,
	"ca.nodes.accounts":              []any{"istio-system/ztunnel"},
	"ca.certificates.enabled":        true,
	"ca.token.authentication":        "local",
	"ca.registration.enabled":        true,
	"ca.remoteClusters":              map[string]any{"namespace": "signet-clusters", "allowed": []any{map[string]any{"id": "west"}}},
	"ca.rules":                       []any{map[string]any{"namespaceLabels": map[string]any{"tier": "gold"}, "lifetime": map[string]any{"max": "1h"}}},
	"inventory.gateways.readSecrets": []any{"ingress"},
}

const home = "istio-system"

// row is a line of the documentation: some rights, why they are needed, and without which settings they aren't.
type row struct {
	in       string // the namespace; "" for the whole cluster
	resource string // with its group, or a path
	name     string // "" for all
	verbs    string // with commas
	why      string
	without  map[string]any // settings with which the chart doesn't grant it; none where it always does
	or       string         // says it in other words
}

var (
	review       = map[string]any{"ca.token.authentication": "review"}
	noAPI        = map[string]any{"api.disabled": true}
	noProbes     = map[string]any{"probes.disabled": true}
	noGateways   = map[string]any{"inventory.gateways.disabled": true}
	noDelivery   = map[string]any{"distribution.disabled": true}
	noBundle     = map[string]any{"distribution.clusterTrustBundle": "off"}
	noIstiod     = map[string]any{"istiod.enabled": false}
	noRegistrar  = map[string]any{"ca.registration.enabled": false}
	noNodes      = map[string]any{"ca.nodes.accounts": nil}
	noCerts      = map[string]any{"ca.certificates.enabled": false}
	noRules      = map[string]any{"ca.rules": nil}
	noRuntime    = map[string]any{"issuers.runtime": nil}
	onlyCluster  = map[string]any{"issuers.runtime": nil, "issuer.kind": "ClusterIssuer"}
	noCRLs       = map[string]any{"crl.secret": nil}
	noRootSecret = map[string]any{"roots.secret": nil}
	noRootMap    = map[string]any{"roots.configMap": nil}
	noRemotes    = map[string]any{"ca.remoteClusters": nil}
	noSecrets    = map[string]any{"inventory.gateways.readSecrets": nil}
)

func both(all ...map[string]any) map[string]any {
	merged := make(map[string]any)
	for _, one := range all {
		maps.Copy(merged, one)
	}
	return merged
}

var rows = []row{
	{"", "tokenreviews.authentication.k8s.io", "", "create", "Callers prove who they are by tokens, which the API server reviews; so do those who ask the inspection API. A review isn't in a namespace.", nil, ""},
	{"", "events.events.k8s.io", "", "create,patch", "What happens is told by Events on the object that it happens to: a pod that doesn't renew, an issuer, a namespace's ConfigMap. The API server keeps an Event in the namespace of its object.", nil, ""},
	{"", "clusterissuers.cert-manager.io", "", "list,watch", "A ClusterIssuer's own condition decides whether it may sign. It is in no namespace.", noRuntime, "No issuer and no fallback is a ClusterIssuer, and `issuers.runtime` isn't set"},
	{"", "namespaces", "", "list,watch", "Which namespaces the anchors are for, their labels for `ca.rules`, and for the inspection API that they are there.", both(noDelivery, noAPI, noRules), "`distribution.disabled`, `api.disabled`, and no `namespaceLabels` in `ca.rules`"},
	{"", "configmaps", "istio-ca-root-cert", "list,watch,create,patch", "The anchors, in every selected namespace; new namespaces come at any time. Creation is by a patch, which has the name.", noDelivery, ""},
	{"", "configmaps", "istio-ca-crl", "list,watch,create,patch", "The revocation lists, likewise.", noCRLs, "No `crl.…` is set, or `distribution.disabled`"},
	{"", "clustertrustbundles.certificates.k8s.io", "istio.io:istiod-ca:root-cert", "list,watch,create,patch", "The anchors as a ClusterTrustBundle, which is in no namespace.", noBundle, ""},
	{"", "signers.certificates.k8s.io", "istio.io/istiod-ca", "attest", "The API server wants it of who writes that ClusterTrustBundle.", noBundle, ""},
	{"", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "", "list,watch", "Revision tags of istiod have names of their own in its certificate. They are in no namespace.", noIstiod, ""},
	{"", "certificatesigningrequests.certificates.k8s.io", "", "list,watch", "An istiod that is the registration authority makes them. They are in no namespace.", noRegistrar, ""},
	{"", "certificatesigningrequests/status.certificates.k8s.io", "", "update", "The answer to them.", noRegistrar, ""},
	{"", "signers.certificates.k8s.io", "signet.dev/*", "sign", "The API server wants it of who answers; the domain is that of `ca.registration.signerName`.", noRegistrar, ""},
	{"", "subjectaccessreviews.authorization.k8s.io", "", "create", "Whether somebody may see what they ask the inspection API for.", noAPI, ""},
	{"", "services", "", "list,watch", "The inspection API tells of every service of the cluster.", noAPI, ""},
	{"", "endpointslices.discovery.k8s.io", "", "list,watch", "Which pods are behind a service.", noAPI, ""},
	{"", "serviceaccounts", "", "list,watch", "Callers are of all namespaces: tokens and certificates are good while their service account is there. Only metadata is read.", both(noAPI, noCerts, review), "`api.disabled`, and neither `ca.certificates.enabled` nor `ca.token.authentication: local`"},
	{"", "pods", "", "list,watch", "The same for pods; ztunnel may ask for those on its node; the inspection API tells who holds what.", both(noAPI, noCerts, review, noNodes), "`api.disabled`, and none of `ca.certificates.enabled`, `ca.token.authentication: local`, `ca.nodes.accounts`"},
	{"", "pods", "", "get", "A probe asks where a pod is now; a node proxy's own pod may be too new to have been heard of. It tells nothing that a list doesn't.", both(noProbes, noNodes), "`probes.disabled` (or `api.disabled`), and no `ca.nodes.accounts`"},
	{"", "services", "", "get", "A probe asks for the service's ports as they are now.", noProbes, "`probes.disabled` or `api.disabled`"},
	{"", "nodes", "", "list", "A probe never dials a node. Tokens can be bound to nodes.", both(noProbes, review), "`probes.disabled` (or `api.disabled`), and `ca.token.authentication` is `review`"},
	{"", "nodes", "", "watch", "Tokens can be bound to nodes.", review, ""},
	{"", "/.well-known/openid-configuration", "", "get", "Where the keys of tokens are. Kubernetes grants it to all service accounts, unless that was taken away.", review, ""},
	{"", "/openid/v1/jwks", "", "get", "The keys.", review, ""},
	{"", "gateways.gateway.networking.k8s.io", "", "list,watch", "Which certificates gateways show, in all namespaces.", noGateways, "`inventory.gateways.disabled` or `api.disabled`"},
	{"", "referencegrants.gateway.networking.k8s.io", "", "list,watch", "Whether they may name Secrets of other namespaces.", noGateways, "`inventory.gateways.disabled` or `api.disabled`"},
	{"", "gateways.networking.istio.io", "", "list,watch", "The same of Istio's gateways.", noGateways, "`inventory.gateways.disabled` or `api.disabled`"},
	{"", "certificates.cert-manager.io", "", "list", "What a gateway's Secret holds is told by the Certificate that names it; a probe looks there for a certificate that it doesn't know. No Secret is read.", both(noGateways, noProbes), "`probes.disabled`, and `inventory.gateways.disabled` or `…withoutCertificates`"},
	{"", "certificates.cert-manager.io", "", "watch", "The same for gateways.", noGateways, "`inventory.gateways.disabled` or `…withoutCertificates`"},

	{home, "certificaterequests.cert-manager.io", "", "create,get,list,watch,delete", "Certificates are signed by way of them: they are followed, met again by retries, and swept.", nil, ""},
	{home, "issuers.cert-manager.io", "", "list,watch", "An issuer's own condition decides whether it may sign.", onlyCluster, "No issuer and no fallback is an Issuer, and `issuers.runtime` isn't set"},
	{home, "leases.coordination.k8s.io", "", "create", "The lease of the replica that sweeps, distributes and rotates. Creation can't be limited to a name.", nil, ""},
	{home, "leases.coordination.k8s.io", "signet", "get,update", "The same.", nil, ""},
	{home, "configmaps", "", "create", "Those that follow. Creation by POST can't be limited to a name: RBAC doesn't see it.", nil, ""},
	{home, "configmaps", "signet-trust-anchors", "list,watch,update", "The state of the mesh's trust.", nil, ""},
	{home, "configmaps", "signet-replicas", "list,watch,patch", "What the replicas say of themselves.", nil, ""},
	{home, "secrets", "signet-roots", "list,watch", "The pinned anchors, by the name that is configured.", noRootSecret, "`roots.secret` isn't set"},
	{home, "configmaps", "signet-roots", "list,watch", "The same.", noRootMap, "`roots.configMap` isn't set"},
	{home, "secrets", "signet-crls", "list,watch", "The revocation lists, by the name that is configured; a ConfigMap's with `crl.configMap`.", noCRLs, "`crl.secret` isn't set"},
	{home, "certificates.cert-manager.io", "istiod-dynamic", "list,watch,create,patch", "istiod's certificate, in `istiod.namespace`.", noIstiod, ""},
	{home, "deployments.apps", "", "list,watch", "The revisions of istiod that are installed there, whose names are in it. Only metadata is read.", noIstiod, ""},
	{"mesh-config", "configmaps", "signet-issuer", "list,watch", "The issuer that is wanted, in `issuers.runtime.namespace`.", noRuntime, "`issuers.runtime` isn't set"},
	{"signet-clusters", "secrets", "", "list,watch", "The kubeconfigs of remote clusters, in `ca.remoteClusters.namespace`. They are found by a label, which RBAC doesn't see, so it is all Secrets there: give them a namespace of their own.", noRemotes, "`ca.remoteClusters` isn't set"},
	{"ingress", "secrets", "", "get", "The certificates in the Secrets that gateways name, in the namespaces of `inventory.gateways.readSecrets`. Which Secrets those are, gateways say.", noSecrets, "`inventory.gateways.readSecrets` is empty"},
}

// grants are the rights of the row.
func (r row) grants() []grant {
	var all []grant
	for verb := range strings.SplitSeq(r.verbs, ",") {
		if strings.HasPrefix(r.resource, "/") {
			all = append(all, grant{verb: verb, path: r.resource})
			continue
		}
		resource, group, _ := strings.Cut(r.resource, ".")
		all = append(all, grant{verb: verb, group: group, resource: resource, name: r.name, namespace: r.in})
	}
	return all
}

// notNeeded says when it isn't granted.
func (r row) notNeeded() string {
	if r.or != "" || r.without == nil {
		return r.or
	}
	var settings []string
	for _, path := range slices.Sorted(maps.Keys(r.without)) {
		settings = append(settings, fmt.Sprintf("`%s: %v`", path, r.without[path]))
	}
	return strings.NewReplacer(": off`", `: "off"`+"`").Replace(strings.Join(settings, ", "))
}

// granted is what the chart grants for settings.
func granted(t *testing.T, settings map[string]any) []grant {
	t.Helper()
	objects, err := replica.Rights(replica.Config{Namespace: home, Settings: settings})
	require.NoError(t, err)
	all, err := grantsOf(objects, "system:serviceaccount:"+home+":signet")
	require.NoError(t, err)
	return all
}

// TestPermissions: docs/permissions.md has every right that the chart can grant, and why; and with the settings that it names
// the chart doesn't grant it. With -update the tables are written.
func TestPermissions(t *testing.T) {
	all := granted(t, everything)
	assert.Empty(t, excesses(all, home))
	least := granted(t, map[string]any{"roots.fromIssuer": true, "api.disabled": true})
	left := make(map[string][]grant) // by the settings that take something away
	var told []grant
	for _, r := range rows {
		told = append(told, r.grants()...)
		if r.without == nil {
			assert.Subset(t, texts(least), texts(r.grants()))
			continue
		}
		key := fmt.Sprint(r.without)
		if left[key] == nil {
			left[key] = granted(t, both(everything, r.without))
		}
		for _, g := range r.grants() {
			assert.False(t, slices.Contains(left[key], g), "the right to %s is granted with %v", g, r.without)
		}
	}
	assert.ElementsMatch(t, texts(all), texts(told), "what the chart grants, and what the table has")

	root, err := process.Root()
	require.NoError(t, err)
	path := filepath.Join(root, "docs", "permissions.md")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	want := string(text)
	for name, in := range map[string]func(row) bool{
		"cluster":   func(r row) bool { return r.in == "" },
		"own":       func(r row) bool { return r.in == home },
		"elsewhere": func(r row) bool { return r.in != "" && r.in != home },
	} {
		begin, end := "<!-- "+name+" -->\n", "<!-- end -->"
		before, rest, found := strings.Cut(want, begin)
		require.True(t, found, "%s has no %q", path, begin)
		_, after, found := strings.Cut(rest, end)
		require.True(t, found, "%s has no %q after %q", path, end, begin)
		want = before + begin + table(in) + end + after
	}
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(want), 0o600))
		return
	}
	assert.Equal(t, want, string(text), "run go test ./privilege -run TestPermissions -update")
}

func table(in func(row) bool) string {
	var text strings.Builder
	text.WriteString("| right | why | not granted with |\n|---|---|---|\n")
	for _, r := range rows {
		if !in(r) {
			continue
		}
		right := strings.ReplaceAll(r.verbs, ",", ", ") + " `" + r.resource + "`"
		if r.name != "" {
			right += " `" + r.name + "`"
		}
		if r.in != "" && r.in != home {
			right += " in `" + r.in + "`"
		}
		without := r.notNeeded()
		if without == "" {
			without = "always granted"
		}
		fmt.Fprintf(&text, "| %s | %s | %s |\n", right, r.why, without)
	}
	return text.String()
}

// excesses are the rights that no configuration may have. Own is Signet's namespace.
func excesses(all []grant, own string) []string {
	var found []string
	for _, g := range all {
		reads := g.verb == "get" || g.verb == "list" || g.verb == "watch"
		var why string
		switch {
		case g.resource == "secrets" && g.namespace == "":
			why = "Secrets of the whole cluster"
		case g.resource == "secrets" && !reads:
			why = "a Secret is written"
		case g.resource == "secrets" && g.namespace == own && g.name == "":
			why = "all Secrets of Signet's own namespace"
		case g.resource == "configmaps" && g.name == "" && (g.verb != "create" || g.namespace != own):
			why = "ConfigMaps by no name"
		case g.verb == "delete" && (g.resource != "certificaterequests" || g.namespace != own), g.verb == "deletecollection":
			why = "more is deleted than Signet makes"
		case g.verb == "impersonate" || g.verb == "bind" || g.verb == "escalate" || g.verb == "approve":
			why = "a right to get others"
		case g.group == "rbac.authorization.k8s.io" || strings.HasPrefix(g.resource, "pods/") || strings.HasPrefix(g.resource, "serviceaccounts/") || strings.HasPrefix(g.resource, "nodes/"):
			why = "a right to be somebody else"
		case !reads && g.namespace == "" && g.name == "" && !slices.Contains([]string{"tokenreviews", "subjectaccessreviews", "events", "certificatesigningrequests/status"}, g.resource):
			why = "writes in the whole cluster, by no name"
		}
		if why != "" {
			found = append(found, g.String()+": "+why)
		}
	}
	return found
}
