package clusters

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/signet-ca/signet/setting"
)

// Config says which clusters beside our own are served, and where the Secrets are that lead to them.
//
// Whoever can write a Secret in that namespace can have an API server of its own decide who calls from a cluster, and so
// gets any identity of the mesh: give that right to nobody who may not have them all, and name the servers.
type Config struct {
	// Namespace is where the Secrets with label istio/multiCluster=true are, as `istioctl create-remote-secret` makes them.
	// All Secrets of that namespace can be read by Signet, so one of its own is better than istio-system. Default none:
	// only our own cluster is served.
	Namespace string `json:"namespace,omitempty"`
	// Allowed are the clusters that may be served; others are refused, whatever a Secret says. Optional: where
	// namespace is set there must be one.
	Allowed []Allowed `json:"allowed,omitempty"`
	// AllowExec accepts kubeconfigs that run programs beside Signet, or read files of its own. Default false.
	AllowExec bool `json:"allowExec,omitempty"`
}

// Allowed is a cluster that may be served.
type Allowed struct {
	// ID of the cluster: what its callers send as clusterid, and the key in the Secret. Required.
	ID string `json:"id"`
	// Servers are the addresses of its API server, such as https://west.example.com:6443; a kubeconfig must have one of
	// them. Default any.
	Servers []string `json:"servers,omitempty"`
	// Aliases are further names of it in the callers' clusterid header. Optional.
	Aliases []string `json:"aliases,omitempty"`
}

// maxAllowed bounds the clusters that are served.
const maxAllowed = 256

// Enabled says whether any cluster beside our own is served.
func (c Config) Enabled() bool { return c.Namespace != "" }

// Validate reports what is wrong with c. Own are the names of our own cluster.
func (c Config) Validate(p setting.Problems, own []string) {
	if !c.Enabled() && (len(c.Allowed) > 0 || c.AllowExec) {
		p.Addf("namespace", "it is not set; it must be the namespace of the Secrets, or nothing else here has any use")
	}
	if c.Enabled() && len(validation.IsDNS1123Label(c.Namespace)) != 0 {
		p.Addf("namespace", "%q is not the name of a namespace", c.Namespace)
	}
	if c.Enabled() && len(c.Allowed) == 0 {
		p.Addf("allowed", "it is empty; no cluster would be served")
	}
	if len(c.Allowed) > maxAllowed {
		p.Addf("allowed", "it has %d clusters; at most %d are served", len(c.Allowed), maxAllowed)
	}
	taken := make(map[string]string)
	for _, name := range own {
		taken[name] = "our own cluster"
	}
	for n, cluster := range c.Allowed {
		at := p.At(fmt.Sprintf("allowed[%d]", n))
		for m, name := range append([]string{cluster.ID}, cluster.Aliases...) {
			field := "id"
			if m > 0 {
				field = fmt.Sprintf("aliases[%d]", m-1)
			}
			if len(validation.IsConfigMapKey(name)) != 0 {
				at.Addf(field, "%q is not the ID of a cluster; it must be of letters, digits, '-', '_' and '.'", name)
			} else if of := taken[name]; of != "" {
				at.Addf(field, "%q is a name of %s already", name, of)
			}
			taken[name] = fmt.Sprintf("allowed[%d]", n)
		}
		for m, server := range cluster.Servers {
			if _, err := serverOf(server); err != nil {
				at.Addf(fmt.Sprintf("servers[%d]", m), "%v", err)
			}
		}
	}
}

// ids are those of the clusters that may be served.
func (c Config) ids() []string {
	var ids []string
	for _, cluster := range c.Allowed {
		ids = append(ids, cluster.ID)
	}
	return ids
}

// serves says whether an address of an API server is one of this cluster's.
func (a Allowed) serves(server string) bool {
	return len(a.Servers) == 0 || slices.ContainsFunc(a.Servers, func(allowed string) bool {
		normal, err := serverOf(allowed)
		return err == nil && normal == server
	})
}

// serverOf is the one way in which we write the address of an API server.
func serverOf(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", fmt.Errorf("%q is not the address of an API server; it must be as https://west.example.com:6443", text)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return "https://" + strings.ToLower(net.JoinHostPort(u.Hostname(), port)) + strings.TrimRight(u.EscapedPath(), "/"), nil
}
