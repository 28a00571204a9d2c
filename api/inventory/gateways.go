package inventory

import (
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/setting"
)

// GatewaysConfig is how gateways are looked at.
type GatewaysConfig struct {
	// Disabled turns them off: no gateway is watched, and nothing of the following. Default false.
	Disabled bool `json:"disabled,omitempty"`
	// WithoutCertificates says that cert-manager's Certificates aren't watched, which needs the right to list and watch
	// them in the whole cluster. Of what gateways show, only what is in readSecrets is known then. Default false.
	WithoutCertificates bool `json:"withoutCertificates,omitempty"`
	// ReadSecrets are namespaces in which the Secrets are read that gateways name, which needs the right to get Secrets
	// there: the certificate in tls.crt, never the key. Default none.
	ReadSecrets []string `json:"readSecrets,omitempty"`
	// CheckEvery is how often it is looked whether an API of gateways was installed or removed, or a right was granted,
	// and how often Secrets are read. Default 1m.
	CheckEvery setting.Duration `json:"checkEvery,omitempty"`
}

const defaultCheckEvery = time.Minute

// Validate reports what is wrong with c.
func (c GatewaysConfig) Validate(p setting.Problems) {
	p.Duration("checkEvery", c.CheckEvery, time.Second, time.Hour)
	for n, namespace := range c.ReadSecrets {
		if messages := validation.IsDNS1123Label(namespace); len(messages) > 0 {
			p.Addf(fmt.Sprintf("readSecrets[%d]", n), "%q is no namespace: %s", namespace, messages[0])
		}
	}
}

// Gateways implements [api.Views]. What is in namespaces that the caller may not see is left out of what is said of a
// gateway's certificates, and of its problems.
func (i *Inventory) Gateways(ctx context.Context, q api.GatewayQuery) (*api.GatewayList, error) {
	filters := filtersOf("gateways", q.Namespace, q.Problems)
	var after *gateway
	if q.Continue != "" {
		after = &gateway{}
		if err := filters.open(q.Continue, &after.namespace, &after.name.name, &after.api); err != nil {
			return nil, err
		}
	} else if q.Namespace != "" {
		after = &gateway{name: name{q.Namespace, ""}}
	}
	list := &api.GatewayList{List: i.list(q.Visible, q.Namespace), Items: []api.GatewayObject{}}
	list.Coverage.Sources = append(list.Coverage.Sources, i.gatewaySources()...)
	look := i.lookAtGateways(visible(q.Visible), time.Now())
	limit := limitOf(q.Page)
	for {
		some := i.gateways.gatewaysAfter(after, batch)
		for _, g := range some {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			after = g
			if q.Namespace != "" && g.namespace != q.Namespace {
				return list, nil
			}
			if !look.may.see(g.namespace) {
				after = &gateway{name: name{g.namespace + "\x00", ""}} // no name has a NUL
				break
			}
			o := look.gateway(g)
			if q.Problems && len(o.Problems) == 0 {
				continue
			}
			if len(list.Items) == limit {
				last := list.Items[limit-1]
				list.Continue = filters.seal(last.Namespace, last.Name, last.API)
				return list, nil
			}
			list.Items = append(list.Items, o)
		}
		if len(some) == 0 {
			return list, nil
		}
	}
}

// gatewayLook is one look at gateways, as far as they may be seen. Not safe for concurrent use.
type gatewayLook struct {
	i      *Inventory
	x      *gatewayIndex
	may    *sight
	now    time.Time
	places map[string][]string // namespaces of the pods with some labels, by the text of the selector
	// What isn't known, and why; "" where it is.
	noCertificates, noGrants, noPods string
}

func (i *Inventory) lookAtGateways(may *sight, now time.Time) *gatewayLook {
	l := &gatewayLook{
		i: i, x: i.gateways, may: may, now: now, places: make(map[string][]string),
		noCertificates: i.gatewaySourceDown(certificatesSource), noGrants: i.gatewaySourceDown(grantsSource),
	}
	if !i.index.podsKnown.is() {
		l.noPods = "pods aren't listed yet"
	}
	return l
}

// served are the namespaces of the pods that serve an Istio gateway, sorted.
func (look *gatewayLook) served(g *gateway) []string {
	text := labels.Set(g.selector).String()
	at, known := look.places[text]
	if !known {
		at = look.i.index.routersWith(g.selector)
		look.places[text] = at
	}
	return at
}

// gateway is what is said of a gateway.
func (look *gatewayLook) gateway(g *gateway) api.GatewayObject {
	o := api.GatewayObject{API: g.api, Namespace: g.namespace, Name: g.name.name, Class: g.class, Listeners: make([]api.GatewayListener, 0, len(g.listeners))}
	if g.cut {
		o.Problems = append(o.Problems, api.Problem{Code: api.ProblemTooLarge, Detail: fmt.Sprintf("it is so large that only its first %d listeners, hosts and certificates are looked at", mostOfGateway)})
	}
	for n := range g.listeners {
		l := look.listener(g, &g.listeners[n])
		for _, c := range l.Certificates {
			if c.State == "" {
				continue
			}
			if o.State == "" || slices.Index(worst, c.State) < slices.Index(worst, o.State) {
				o.State = c.State
			}
			o.NotAfter = earlier(o.NotAfter, c.NotAfter)
		}
		o.Listeners = append(o.Listeners, l)
	}
	o.Problems = append(o.Problems, summed(o.Listeners)...)
	return o
}

// worst are the states, the worst first.
var worst = []api.State{api.Expired, api.Overdue, api.Due, api.Fresh}

// summed has one problem of each kind that listeners have.
func summed(listeners []api.GatewayListener) []api.Problem {
	var all []api.Problem
	in := make(map[api.ProblemCode][]string)
	for _, l := range listeners {
		for _, p := range l.Problems {
			if in[p.Code] == nil {
				all = append(all, api.Problem{Code: p.Code, Detail: fmt.Sprintf("listener %s: %s", l.Name, p.Detail)})
			}
			if names := in[p.Code]; len(names) == 0 || names[len(names)-1] != l.Name {
				in[p.Code] = append(names, l.Name)
			}
		}
	}
	for n := range all {
		if names := in[all[n].Code]; len(names) > 1 {
			all[n].Detail = fmt.Sprintf("%d listeners: %s", len(names), some(names, namesInDetail))
		}
	}
	return all
}

// listener is what is said of a listener.
func (look *gatewayLook) listener(g *gateway, from *listener) api.GatewayListener {
	l := api.GatewayListener{
		Name: from.name, Port: from.port, Protocol: from.protocol, TLSMode: from.mode,
		Hosts: make([]api.GatewayHost, 0, len(from.hosts)), Certificates: []api.GatewayCertificate{},
	}
	problem := func(code api.ProblemCode, format string, args ...any) {
		l.Problems = append(l.Problems, api.Problem{Code: code, Detail: fmt.Sprintf(format, args...)})
	}
	if from.shows {
		for _, ref := range from.secrets {
			look.secret(g, ref, &l, problem)
		}
		for _, file := range from.files {
			l.Certificates = append(l.Certificates, api.GatewayCertificate{File: file, Unknown: "it is a file of the pods that serve the gateway"})
		}
		for _, other := range from.others {
			l.Certificates = append(l.Certificates, api.GatewayCertificate{Unknown: "it is named as " + other + ", which is no Secret"})
		}
		if len(l.Certificates) == 0 {
			problem(api.ProblemNoCertificate, "no certificate is named")
		}
	}
	var bare []string
	for _, host := range from.hosts {
		h := api.GatewayHost{Name: host, Covered: covered(l.Certificates, host)}
		if h.Covered == api.CoveredNo {
			bare = append(bare, host)
		}
		l.Hosts = append(l.Hosts, h)
	}
	if len(bare) > 0 {
		problem(api.ProblemNotCovered, "no certificate has a name for %s", some(bare, namesInDetail))
	}
	return l
}

// secret adds what is known of a Secret that a listener names.
func (look *gatewayLook) secret(g *gateway, ref name, l *api.GatewayListener, problem func(api.ProblemCode, string, ...any)) {
	add := func(c api.GatewayCertificate) { l.Certificates = append(l.Certificates, c) }
	if ref.namespace != "" {
		if g.api == api.KubernetesGateway && ref.namespace != g.namespace && look.noGrants == "" && !look.x.granted(g.namespace, ref) {
			problem(api.ProblemNotGranted, "no ReferenceGrant in namespace %s lets Gateways of namespace %s use Secret %s", ref.namespace, g.namespace, ref.name)
		}
		if !look.may.see(ref.namespace) {
			add(api.GatewayCertificate{Secret: &api.ObjectRef{Namespace: ref.namespace, Name: ref.name}, Unknown: outOfSight})
			return
		}
		add(look.known(ref, problem))
		return
	}
	bare := &api.ObjectRef{Name: ref.name}
	if look.noPods != "" {
		add(api.GatewayCertificate{Secret: bare, Unknown: "its namespace is that of the pods that serve the gateway, and " + look.noPods})
		return
	}
	at := look.served(g)
	if len(at) == 0 {
		problem(api.ProblemNoWorkload, "no pod of a gateway has the labels %s", labels.Set(g.selector))
		add(api.GatewayCertificate{Secret: bare, Unknown: "its namespace is that of the pods that serve the gateway, and there are none"})
		return
	}
	hidden := false
	for _, namespace := range at {
		if look.may.see(namespace) {
			add(look.known(name{namespace, ref.name}, problem))
		} else {
			hidden = true
		}
	}
	if hidden {
		add(api.GatewayCertificate{Secret: bare, Unknown: outOfSight})
	}
}

// outOfSight is why nothing is said of a Secret.
const outOfSight = "it is in a namespace that you may not see"

// known is what is known of the certificate in a Secret, and what is wrong with it.
func (look *gatewayLook) known(of name, problem func(api.ProblemCode, string, ...any)) api.GatewayCertificate {
	out := api.GatewayCertificate{Secret: &api.ObjectRef{Namespace: of.namespace, Name: of.name}}
	c, read := look.x.writer(of), look.x.secretAt(of)
	var l life
	if c != nil {
		out.From, l = api.FromCertificate, c.life
		out.Certificate = &api.ObjectRef{Namespace: c.namespace, Name: c.name.name, UID: c.uid}
		out.Issuer, out.SANs, out.Reason = c.issuer, slices.Clone(c.sans), c.reason
		if c.ready != nil {
			out.Ready = new(*c.ready)
		}
		if c.cut {
			out.Unknown = "it has more names than are looked at"
		}
	}
	if read != nil && read.fact != nil {
		fact := read.fact
		out.From, out.Unknown, out.SANs = api.FromSecret, "", slices.Clone(fact.sans)
		out.Serial, out.SHA256 = fact.serial, fact.sha256
		if l.validity != fact.validity {
			l = life{validity: fact.validity} // the Certificate is of another one
		}
	}
	if l.notAfter != 0 {
		out.NotBefore, out.NotAfter = unix(l.notBefore), unix(l.notAfter)
		out.State, out.RemainingSeconds, out.RemainingRatio = l.state(look.now), l.seconds(look.now), l.ratio(look.now)
		if l.renewal != 0 {
			out.RenewalTime = unix(l.renewal)
		}
	}

	text := of.namespace + "/" + of.name
	switch {
	case read != nil && read.fact == nil:
		out.Unknown = read.reason
		if read.bad {
			problem(api.ProblemNoCertificate, "Secret %s: %s", text, read.reason)
		}
	case out.From != "":
	case look.noCertificates != "":
		out.Unknown = "Certificates aren't known: " + look.noCertificates
	default:
		out.Unknown = "no Certificate writes it"
		problem(api.ProblemNoCertificate, "no Certificate writes Secret %s", text)
	}
	if c != nil {
		switch {
		case c.ready != nil && !*c.ready:
			problem(api.ProblemNotReady, "Certificate %s/%s isn't ready: %s", c.namespace, c.name.name, c.reason)
		case c.life.notAfter == 0 && c.ready == nil:
			problem(api.ProblemNotReady, "Certificate %s/%s hasn't been issued", c.namespace, c.name.name)
		}
	}
	switch out.State {
	case api.Expired:
		problem(api.ProblemExpired, "the certificate in Secret %s expired at %s", text, out.NotAfter.Format(time.RFC3339))
	case api.Overdue:
		problem(api.ProblemOverdue, "the certificate in Secret %s should have been renewed; it expires at %s", text, out.NotAfter.Format(time.RFC3339))
	}
	return out
}

// gatewayProblems are the values of the label of gateways_with_problems.
var gatewayProblems = []api.ProblemCode{
	api.ProblemNoCertificate, api.ProblemNotReady, api.ProblemOverdue, api.ProblemExpired, api.ProblemNotCovered,
	api.ProblemNotGranted, api.ProblemNoWorkload, api.ProblemTooLarge, anyProblem,
}

// countGateways counts gateways by state, "" for those of whose certificates nothing is known, and by problem.
func (i *Inventory) countGateways(now time.Time) (states map[api.State]int, problems map[api.ProblemCode]int) {
	states, problems = make(map[api.State]int), make(map[api.ProblemCode]int)
	look := i.lookAtGateways(visible(everywhere{}), now)
	var after *gateway
	for {
		some := i.gateways.gatewaysAfter(after, batch)
		if len(some) == 0 {
			return states, problems
		}
		for _, g := range some {
			o := look.gateway(g)
			states[o.State]++
			for _, p := range o.Problems {
				problems[p.Code]++
			}
			if len(o.Problems) > 0 {
				problems[anyProblem]++
			}
		}
		after = some[len(some)-1]
	}
}

// everywhere may be seen by the inventory itself.
type everywhere struct{}

func (everywhere) All() bool             { return true }
func (everywhere) Namespace(string) bool { return true }

// routersWith are the namespaces of the pods of gateways that have some labels, sorted.
func (x *index) routersWith(selector map[string]string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var namespaces []string
	for p, has := range x.routers {
		fits := true
		for key, value := range selector {
			if actual, ok := has[key]; !ok || actual != value {
				fits = false
				break
			}
		}
		if fits {
			namespaces = append(namespaces, p.namespace)
		}
	}
	slices.Sort(namespaces)
	return slices.Compact(namespaces)
}
