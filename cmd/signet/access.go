package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
)

// right is one thing that Signet must be allowed to do.
type right struct {
	group, resource, subresource, name, namespace string
	path                                          string // of what isn't a resource, in place of the others
	verbs                                         []string
}

// rights are all that cfg needs, and why.
func rights(cfg Config) []right {
	list := []right{
		// Callers are authenticated by review of their tokens.
		{group: "authentication.k8s.io", resource: "tokenreviews", verbs: []string{"create"}},
		// Certificates are signed by way of CertificateRequests, which are watched, met again and swept.
		{group: "cert-manager.io", resource: "certificaterequests", namespace: cfg.Namespace, verbs: []string{"create", "get", "list", "watch", "delete"}},
		// One replica sweeps, distributes and rotates.
		{group: "coordination.k8s.io", resource: "leases", namespace: cfg.Namespace, verbs: []string{"create"}},
		{group: "coordination.k8s.io", resource: "leases", name: leaseName, namespace: cfg.Namespace, verbs: []string{"get", "update"}},
	}
	// The issuers' own conditions.
	for _, kind := range watchedKinds(cfg) {
		look := right{group: issuer.CertManagerGroup, resource: "issuers", namespace: cfg.Namespace, verbs: []string{"list", "watch"}}
		if kind == cmapi.ClusterIssuerKind {
			look.resource, look.namespace = "clusterissuers", ""
		}
		list = append(list, look)
	}
	// The state of trust, and what the replicas say of themselves.
	list = append(list,
		right{resource: "configmaps", namespace: cfg.Namespace, verbs: []string{"create"}},
		right{resource: "configmaps", name: rotation.TrustConfigMap, namespace: cfg.Namespace, verbs: []string{"list", "watch", "update"}},
		right{resource: "configmaps", name: rotation.ReplicasConfigMap, namespace: cfg.Namespace, verbs: []string{"list", "watch", "patch"}})
	// Which issuer signs, while Signet runs.
	if at := cfg.Issuers.Runtime; at.Name != "" {
		list = append(list, right{resource: "configmaps", name: at.Name, namespace: cmp.Or(at.Namespace, cfg.Namespace), verbs: []string{"list", "watch"}})
	}
	// Trust anchors and revocation lists.
	for _, at := range []struct {
		resource string
		key      *issuer.ObjectKey
	}{{"secrets", cfg.Roots.Secret}, {"configmaps", cfg.Roots.ConfigMap}, {"secrets", cfg.CRL.Secret}, {"configmaps", cfg.CRL.ConfigMap}} {
		if at.key != nil {
			list = append(list, right{resource: at.resource, name: at.key.Name, namespace: cfg.Namespace, verbs: []string{"list", "watch"}})
		}
	}
	// The anchors are distributed.
	if !cfg.Distribution.Disabled {
		list = append(list,
			right{resource: "namespaces", verbs: []string{"list", "watch"}},
			right{resource: "configmaps", name: cfg.Distribution.ConfigMapOrDefault(), verbs: []string{"list", "watch", "patch", "create"}})
		if cfg.CRL.Enabled() {
			list = append(list, right{resource: "configmaps", name: crlConfigMap, verbs: []string{"list", "watch", "patch", "create"}})
		}
		if cfg.Distribution.ClusterTrustBundle != "off" {
			list = append(list,
				right{group: "certificates.k8s.io", resource: "clustertrustbundles", name: issuer.TrustBundleName, verbs: []string{"list", "watch", "patch", "create"}},
				right{group: "certificates.k8s.io", resource: "signers", name: issuer.TrustBundleSigner, verbs: []string{"attest"}})
		}
	}
	// Which rules are for a namespace.
	if cfg.CA.RuledByLabels() {
		list = append(list, right{resource: "namespaces", verbs: []string{"list", "watch"}})
	}
	// What exists in the cluster, and the pods that node proxies ask for.
	for _, kind := range followed(cfg) {
		list = append(list, right{resource: string(kind), verbs: []string{"list", "watch"}})
	}
	if cfg.CA.Nodes.Enabled() {
		list = append(list, right{resource: string(presence.Pods), verbs: []string{"get"}})
	}
	// The Secrets that lead to remote clusters.
	if at := cfg.CA.RemoteClusters; at.Enabled() {
		list = append(list, right{resource: "secrets", namespace: at.Namespace, verbs: []string{"list", "watch"}})
	}
	// The keys of service account tokens.
	if cfg.CA.Token.Local() {
		for _, path := range ca.KeysPaths() {
			list = append(list, right{path: path, verbs: []string{"get"}})
		}
	}
	// What an istiod asks for that is the mesh's registration authority.
	if cfg.CA.Registration.Enabled {
		list = append(list,
			right{group: "certificates.k8s.io", resource: "certificatesigningrequests", verbs: []string{"list", "watch"}},
			right{group: "certificates.k8s.io", resource: "certificatesigningrequests", subresource: "status", verbs: []string{"update"}},
			right{group: "certificates.k8s.io", resource: "signers", name: cfg.CA.Registration.SignerNames(), verbs: []string{"sign"}})
	}
	// Who asks, whether they may, and what there is to tell of.
	if !cfg.API.Disabled {
		list = append(list, right{group: "authorization.k8s.io", resource: "subjectaccessreviews", verbs: []string{"create"}})
		for _, kind := range inventory.Kinds() {
			list = append(list, right{group: kind.Group, resource: resourceOf(kind), verbs: []string{"list", "watch"}})
		}
	}
	// What probes ask of the API server, each time: where the pods are, and where nothing may be dialed.
	if !cfg.API.Disabled && !cfg.Probes.Disabled {
		list = append(list,
			right{resource: "pods", verbs: []string{"get"}},
			right{resource: "services", verbs: []string{"get"}},
			right{resource: "nodes", verbs: []string{"list"}},
			right{group: "discovery.k8s.io", resource: "endpointslices", namespace: "default", verbs: []string{"list"}},
			right{group: issuer.CertManagerGroup, resource: "certificates", verbs: []string{"list"}})
	}
	// istiod's Certificate.
	if cfg.Istiod.Enabled {
		namespace, name := cfg.Istiod.Certificate()
		list = append(list, right{group: issuer.CertManagerGroup, resource: "certificates", name: name, namespace: namespace, verbs: []string{"list", "watch", "patch", "create"}})
	}
	return list
}

// errMissingRights says that the service account may not do what Signet needs.
var errMissingRights = errors.New("missing rights")

// checkAccess asks the API server who we are and whether we have all rights. The error names every
// right that is missing.
func checkAccess(ctx context.Context, c client.Client, cfg Config) (username string, err error) {
	var self authenticationv1.SelfSubjectReview
	if err := c.Create(ctx, &self); err != nil {
		return "", fmt.Errorf("ask the API server who we are: %w", err)
	}
	username = self.Status.UserInfo.Username
	var missing []error
	for _, r := range rights(cfg) {
		var verbs []string
		for _, verb := range r.verbs {
			review := authorizationv1.SelfSubjectAccessReview{Spec: r.asked(verb)}
			if err := c.Create(ctx, &review); err != nil {
				return "", fmt.Errorf("ask the API server for our rights: %w", err)
			}
			if !review.Status.Allowed {
				verbs = append(verbs, verb)
			}
		}
		if len(verbs) > 0 {
			missing = append(missing, fmt.Errorf("%s may not %s; grant it with a Role or ClusterRole", username, r.describe(verbs)))
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("%w:\n%w", errMissingRights, errors.Join(missing...))
	}
	return username, nil
}

// asked is the question whether we may do verb.
func (r right) asked(verb string) authorizationv1.SelfSubjectAccessReviewSpec {
	if r.path != "" {
		return authorizationv1.SelfSubjectAccessReviewSpec{NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: r.path, Verb: verb}}
	}
	return authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
		Group: r.group, Resource: r.resource, Subresource: r.subresource, Name: r.name, Namespace: r.namespace, Verb: verb,
	}}
}

func (r right) describe(verbs []string) string {
	if r.path != "" {
		return strings.Join(verbs, ", ") + " " + r.path
	}
	text := strings.Join(verbs, ", ") + " " + r.resource
	if r.subresource != "" {
		text += "/" + r.subresource
	}
	if r.group != "" {
		text += "." + r.group
	}
	if r.name != "" {
		text += " " + r.name
	}
	if r.namespace != "" {
		return text + " in namespace " + r.namespace
	}
	return text + " in the cluster"
}

// resourceOf is the name of a built-in kind's resource.
func resourceOf(kind schema.GroupVersionKind) string {
	plural, _ := meta.UnsafeGuessKindToResource(kind)
	return plural.Resource
}
