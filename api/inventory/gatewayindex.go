package inventory

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/signet-ca/signet/api"
)

// gatewayIndex is what is known of gateways and of what they show. What is kept in it is replaced, never changed.
type gatewayIndex struct {
	mu           sync.RWMutex // guards the following
	gateways     map[gatewayKey]*gateway
	inOrder      ordered[*gateway]
	grants       map[name]*grant
	granting     map[string][]*grant // by their namespace
	certificates map[name]*certificate
	bySecret     map[name][]*certificate // by the Secret that they write
	secrets      map[name]*secret        // those that were read
}

type gatewayKey struct {
	api api.GatewayAPI
	name
}

func newGatewayIndex() *gatewayIndex {
	return &gatewayIndex{
		gateways: make(map[gatewayKey]*gateway), inOrder: ordered[*gateway]{compare: compareGateways},
		grants: make(map[name]*grant), granting: make(map[string][]*grant),
		certificates: make(map[name]*certificate), bySecret: make(map[name][]*certificate),
		secrets: make(map[name]*secret),
	}
}

// certificate is what is kept of cert-manager's Certificate.
type certificate struct {
	name
	uid, secret string
	issuer      string   // kind.group/name
	sans        []string // with their kind
	cut         bool     // more names were left out
	life        life     // zero where there is no certificate yet
	ready       *bool    // nil where nothing is said
	reason      string   // why it isn't ready
}

// grant is a ReferenceGrant, as far as it lets Gateways use Secrets.
type grant struct {
	name
	from    []string // namespaces of Gateways
	secrets []string // their names; "" for all
}

// life is the validity of a certificate that isn't a leaf of ours, with when it is renewed. In Unix s.
type life struct {
	validity
	renewal int64 // 0 where nobody says
}

// moments are those at which the state changes. Without a renewal time it is at two thirds of the life, as
// cert-manager's is by default. It is overdue a twentieth of its life later, or halfway to its end.
func (l life) moments() (due, overdue, over time.Time) {
	begin, end := time.Unix(l.notBefore, 0), time.Unix(l.notAfter, 0)
	whole := max(0, end.Sub(begin))
	due = time.Unix(l.renewal, 0)
	if l.renewal == 0 {
		due = begin.Add(whole * 2 / 3)
	}
	return due, due.Add(min(whole/20, max(0, end.Sub(due))/2)), end.Add(1)
}

func (l life) state(now time.Time) api.State {
	due, overdue, over := l.moments()
	switch {
	case !now.Before(over), l.notAfter < l.notBefore:
		return api.Expired
	case !now.Before(overdue):
		return api.Overdue
	case !now.Before(due):
		return api.Due
	}
	return api.Fresh
}

// setGateway takes note of a gateway.
func (x *gatewayIndex) setGateway(g *gateway) {
	x.mu.Lock()
	defer x.mu.Unlock()
	key := gatewayKey{g.api, g.name}
	if former := x.gateways[key]; former != nil {
		x.inOrder.remove(former)
	}
	x.gateways[key] = g
	x.inOrder.insert(g)
}

func (x *gatewayIndex) dropGateway(of api.GatewayAPI, at name) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if former := x.gateways[gatewayKey{of, at}]; former != nil {
		x.inOrder.remove(former)
		delete(x.gateways, gatewayKey{of, at})
	}
}

// gatewayNames are those of an API.
func (x *gatewayIndex) gatewayNames(of api.GatewayAPI) (names []name) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for key := range x.gateways {
		if key.api == of {
			names = append(names, key.name)
		}
	}
	return names
}

// gatewaysAfter are some gateways after one, in their order.
func (x *gatewayIndex) gatewaysAfter(after *gateway, most int) []*gateway {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var some []*gateway
	for g := range x.inOrder.from(func(g *gateway) bool { return after != nil && compareGateways(g, after) <= 0 }) {
		if some = append(some, g); len(some) == most {
			break
		}
	}
	return some
}

// setCertificate takes note of a Certificate.
func (x *gatewayIndex) setCertificate(c *certificate) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.removeCertificate(c.name)
	x.certificates[c.name] = c
	at := name{c.namespace, c.secret}
	all := append(slices.Clone(x.bySecret[at]), c)
	slices.SortFunc(all, func(a, b *certificate) int { return a.name.compare(b.name) })
	x.bySecret[at] = all
}

func (x *gatewayIndex) dropCertificate(at name) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.removeCertificate(at)
}

func (x *gatewayIndex) removeCertificate(of name) {
	former := x.certificates[of]
	if former == nil {
		return
	}
	delete(x.certificates, of)
	at := name{of.namespace, former.secret}
	if rest := without(slices.Clone(x.bySecret[at]), former); len(rest) > 0 {
		slices.SortFunc(rest, func(a, b *certificate) int { return a.name.compare(b.name) })
		x.bySecret[at] = rest
	} else {
		delete(x.bySecret, at)
	}
}

func (x *gatewayIndex) certificateNames() []name {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Collect(maps.Keys(x.certificates))
}

// writer is the Certificate that writes a Secret; nil where none is known. Where there are several, which is a mistake,
// it is the first that is ready.
func (x *gatewayIndex) writer(of name) *certificate {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all := x.bySecret[of]
	for _, c := range all {
		if c.ready != nil && *c.ready {
			return c
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

// setGrant takes note of a ReferenceGrant.
func (x *gatewayIndex) setGrant(g *grant) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.removeGrant(g.name)
	x.grants[g.name] = g
	x.granting[g.namespace] = append(slices.Clone(x.granting[g.namespace]), g)
}

func (x *gatewayIndex) dropGrant(at name) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.removeGrant(at)
}

func (x *gatewayIndex) removeGrant(at name) {
	former := x.grants[at]
	if former == nil {
		return
	}
	delete(x.grants, at)
	if rest := without(slices.Clone(x.granting[at.namespace]), former); len(rest) > 0 {
		x.granting[at.namespace] = rest
	} else {
		delete(x.granting, at.namespace)
	}
}

func (x *gatewayIndex) grantNames() []name {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Collect(maps.Keys(x.grants))
}

// granted says whether Gateways of a namespace may use a Secret of another one.
func (x *gatewayIndex) granted(from string, to name) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.ContainsFunc(x.granting[to.namespace], func(g *grant) bool {
		return slices.Contains(g.from, from) && (slices.Contains(g.secrets, "") || slices.Contains(g.secrets, to.name))
	})
}

// secretAt is what was read of a Secret; nil where it wasn't read.
func (x *gatewayIndex) secretAt(at name) *secret {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.secrets[at]
}

// readGrant is a ReferenceGrant.
func readGrant(o *unstructured.Unstructured) (*grant, error) {
	type spec struct {
		From []struct {
			Group     string `json:"group"`
			Kind      string `json:"kind"`
			Namespace string `json:"namespace"`
		} `json:"from"`
		To []struct {
			Group string `json:"group"`
			Kind  string `json:"kind"`
			Name  string `json:"name"`
		} `json:"to"`
	}
	from, err := decodeSpec[spec](o)
	if err != nil {
		return nil, err
	}
	g := &grant{name: name{o.GetNamespace(), o.GetName()}}
	for _, each := range from.From {
		if each.Group == string(api.KubernetesGateway) && each.Kind == "Gateway" {
			g.from = append(g.from, each.Namespace)
		}
	}
	for _, each := range from.To {
		if each.Group == "" && each.Kind == "Secret" {
			g.secrets = append(g.secrets, each.Name)
		}
	}
	return g, nil
}

// certificateSpec and certificateStatus have what is read of cert-manager's Certificate.
type certificateSpec struct {
	SecretName string `json:"secretName"`
	IssuerRef  struct {
		Group string `json:"group"`
		Kind  string `json:"kind"`
		Name  string `json:"name"`
	} `json:"issuerRef"`
	DNSNames       []string `json:"dnsNames"`
	IPAddresses    []string `json:"ipAddresses"`
	URIs           []string `json:"uris"`
	EmailAddresses []string `json:"emailAddresses"`
}

// maxReason bounds why a Certificate isn't ready, in bytes.
const maxReason = 512

// readCertificate is a Certificate of cert-manager.
func readCertificate(o *unstructured.Unstructured) (*certificate, error) {
	spec, err := decodeSpec[certificateSpec](o)
	if err != nil {
		return nil, err
	}
	kind, group := spec.IssuerRef.Kind, spec.IssuerRef.Group
	if kind == "" {
		kind = "Issuer"
	}
	if group == "" {
		group = "cert-manager.io"
	}
	c := &certificate{
		name: name{o.GetNamespace(), o.GetName()}, uid: string(o.GetUID()), secret: spec.SecretName,
		issuer: fmt.Sprintf("%s.%s/%s", kind, group, spec.IssuerRef.Name),
	}
	left := budget(mostOfGateway)
	for _, names := range []struct {
		kind string
		of   []string
	}{{dnsSAN, spec.DNSNames}, {ipSAN, spec.IPAddresses}, {uriSAN, spec.URIs}, {emailSAN, spec.EmailAddresses}} {
		for _, each := range take(&left, names.of) {
			c.sans = append(c.sans, names.kind+each)
		}
	}
	c.cut = left < 0
	at := func(field string) int64 {
		text, _, _ := unstructured.NestedString(o.Object, "status", field)
		when, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return 0
		}
		return when.Unix()
	}
	c.life = life{validity{at("notBefore"), at("notAfter")}, at("renewalTime")}
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, each := range conditions {
		condition, _ := each.(map[string]any)
		if condition["type"] != "Ready" {
			continue
		}
		ready := condition["status"] == "True"
		c.ready = &ready
		if !ready {
			reason, _ := condition["reason"].(string)
			message, _ := condition["message"].(string)
			c.reason = strings.Clone(shorten(strings.TrimSuffix(reason+": "+message, ": "), maxReason))
		}
	}
	return c, nil
}

// shorten is the beginning of a text, with at most some bytes.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
