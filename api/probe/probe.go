// Package probe asks the pods behind a service which certificates they really serve, and compares that with what is
// known: whether it was issued, to whom, and whether it is the latest one. It also says whether a client certificate is
// demanded, and whether plaintext is answered.
//
// It promises: a connection is opened only to an address that the API server says, at that moment, is that of a pod with
// the UID that the inventory has, on a port of that pod, in a namespace that the caller may probe; never to a node, the
// API server, or an address that only Signet reaches ([allowed]). No name is resolved, no redirect followed, and nothing
// of what a server says is passed on but its certificates and the parameters of TLS. What is read, how long it takes, how
// much is under way and how fast it comes is bounded.
//
// Its words: a target is a port of a pod with the question to ask it; what a handshake showed is seen, and judged into
// findings, of which the worst is the verdict.
package probe

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
)

// Inventory is what is known of the services, and of what was issued. Safe for concurrent use.
type Inventory interface {
	Services(ctx context.Context, q api.ServiceQuery) (*api.ServiceList, error)
	Service(ctx context.Context, namespace, name string) (*api.Service, error)
	Certificates(ctx context.Context, q api.CertificateQuery) (*api.CertificateList, error)
	Certificate(ctx context.Context, sha256 string) (*api.Certificate, error)
}

// Records say how complete what is known of issuances is. Safe for concurrent use.
type Records interface {
	Coverage(ctx context.Context) (api.Coverage, error)
}

// Sources are what a Prober works with.
type Sources struct {
	Inventory Inventory
	Records   Records
	// Reader asks the API server itself, not a cache. It needs the rights to get Pods and Services, to list Nodes, and
	// to list EndpointSlices in the namespace default. Its scheme must have the groups core and discovery.k8s.io.
	Reader client.Reader
	// Config says where the API server is, which is never dialed.
	Config *rest.Config
	// Anchors are the trust anchors that are in force; nil while they aren't known. What leads to them is ours.
	Anchors func() *x509.CertPool
	// Known names certificates that are in no record; nil where there are none.
	Known Known
	// Tell is told of each probe that was answered, with the user who asked for it, empty for one by schedule, and how
	// long it took; nil where nobody is. It must not wait for anything.
	Tell func(probe *api.Probe, user string, took time.Duration)
	// Dial opens connections over TCP, for whoever reaches pods in a way of their own; nil is the ordinary one. It is
	// given only what may be dialed.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
}

const (
	// probeTimeout bounds a probe. The inspection API gives an answer 30 seconds.
	probeTimeout = 25 * time.Second
	// defaultPods is how many pods are probed where nothing is said, and maxPods at most.
	defaultPods = 3
	maxPods     = 20
	// maxWait is how long an answer is waited for that may not come: a refusal, or one in plaintext.
	maxWait = 2 * time.Second
	// firstWait is how long a server may take to speak first, before anything is sent in plaintext.
	firstWait = 300 * time.Millisecond
)

// Prober implements [api.Prober]. Safe for concurrent use.
type Prober struct {
	cfg         Config
	trustDomain spiffeid.TrustDomain
	networks    []netip.Prefix
	timeout     time.Duration
	first, wait time.Duration // see [tryPlaintext] and [handshake]

	inventory Inventory
	records   Records
	cluster   *cluster
	anchors   func() *x509.CertPool
	known     Known
	dial      func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	tell      func(probe *api.Probe, user string, took time.Duration)

	log     *slog.Logger
	metrics *metrics
	limits  *limits
	pace    *rate.Limiter // of dials
	dialing chan struct{} // holds one for each connection
	latest  *latest
}

var _ api.Prober = (*Prober)(nil)

// New makes a prober; see [Prober.Start] for what it does unasked. reg should add the prefix.
func New(cfg Config, from Sources, log *slog.Logger, reg prometheus.Registerer) (*Prober, error) {
	cfg = cfg.withDefaults()
	if cfg.TrustDomain.IsZero() {
		return nil, errors.New("the prober needs a trust domain")
	}
	p := &Prober{
		cfg: cfg, trustDomain: cfg.TrustDomain, timeout: cfg.Timeout.Or(0),
		inventory: from.Inventory, records: from.Records, cluster: newCluster(from.Reader, from.Config), anchors: from.Anchors, known: from.Known, dial: from.Dial, tell: from.Tell,
		log: log, limits: newLimits(cfg.PerMinute), pace: rate.NewLimiter(rate.Limit(cfg.DialsPerSecond), cfg.DialsPerSecond),
		dialing: make(chan struct{}, maxDials), latest: newLatest(cfg.Schedule.Max),
	}
	p.wait = min(maxWait, p.timeout/2)
	p.first = min(firstWait, p.wait/2)
	for _, text := range cfg.Networks {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("network of pods: %w", err)
		}
		p.networks = append(p.networks, network)
	}
	if p.dial == nil {
		p.dial = dialer
	}
	p.metrics = newMetrics(reg, p)
	return p, nil
}

// Probe implements [api.Prober].
func (p *Prober) Probe(ctx context.Context, caller string, q api.ProbeRequest, visible api.Visible) (*api.Probe, error) {
	if err := p.limits.enter(caller); err != nil {
		p.metrics.asked.WithLabelValues("too-many").Inc()
		return nil, err
	}
	defer p.limits.leave(caller)
	return p.probe(ctx, caller, q, visible)
}

// probe is a probe that has been let in.
func (p *Prober) probe(ctx context.Context, caller string, q api.ProbeRequest, visible api.Visible) (*api.Probe, error) {
	began := time.Now()
	probe, err := p.answer(ctx, q, visible)
	outcome := "answered"
	switch {
	case errors.Is(err, api.ErrBadProbe), errors.Is(err, api.ErrNotFound):
		outcome = "bad"
	case err != nil:
		outcome = "failed"
	default:
		p.metrics.counted(probe)
		level := slog.LevelInfo
		if caller == "" { // on schedule
			level = slog.LevelDebug
		}
		p.log.Log(ctx, level, "probed", "user", caller, "service", q.Namespace+"/"+q.Service, "verdict", probe.Verdict, "ports", len(probe.Results))
		if p.tell != nil {
			p.tell(probe, caller, time.Since(began))
		}
	}
	p.metrics.asked.WithLabelValues(outcome).Inc()
	return probe, err
}

func (p *Prober) answer(ctx context.Context, q api.ProbeRequest, visible api.Visible) (*api.Probe, error) {
	switch {
	case !visible.All() && !visible.Namespace(q.Namespace):
		return nil, fmt.Errorf("service %s/%s: %w", q.Namespace, q.Service, api.ErrNotFound) // the API has refused it before
	case q.ServerName != "" && (len(validation.IsDNS1123Subdomain(q.ServerName)) != 0 || net.ParseIP(q.ServerName) != nil):
		return nil, fmt.Errorf("%w: serverName must be a host such as shop.example.com, in lower case", api.ErrBadProbe) // RFC 6066 §3
	case q.Protocol != "" && q.Protocol != api.ProbeAuto && alpn[q.Protocol] == nil && !mail(q.Protocol):
		return nil, fmt.Errorf("%w: %q is no protocol", api.ErrBadProbe, q.Protocol)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()

	now := time.Now()
	behind, err := p.inventory.Service(ctx, q.Namespace, q.Service)
	if err != nil {
		return nil, err
	}
	service, err := p.cluster.service(ctx, q.Namespace, q.Service)
	if err != nil {
		return nil, err
	}
	ports, err := portsOf(service, q.Port)
	if err != nil {
		return nil, err
	}
	pods, err := chosen(behind.Pods, q)
	if err != nil {
		return nil, err
	}
	not, err := p.cluster.forbidden(ctx, now)
	if err != nil {
		return nil, err
	}

	coverage, err := p.coverage(ctx)
	if err != nil {
		return nil, err
	}

	results := make([][]api.ProbeResult, len(pods))
	var group errgroup.Group
	group.SetLimit(dialsEach)
	for i := range pods {
		group.Go(func() error {
			results[i] = p.ask(ctx, &pods[i], ports, not, q, visible)
			return nil
		})
	}
	_ = group.Wait()
	if err := context.Cause(ctx); errors.Is(err, context.Canceled) {
		return nil, err
	}
	probe := &api.Probe{
		Namespace: q.Namespace, Service: q.Service, Time: now.UTC(), Verdict: api.ProbeNotDialed,
		Pods: len(behind.Pods), Results: slices.Concat(results...), Coverage: coverage,
	}
	if len(probe.Results) == 0 {
		probe.Results = []api.ProbeResult{}
		return probe, nil
	}
	probe.Verdict = api.ProbeGood
	for i := range probe.Results {
		probe.Verdict = worse(probe.Verdict, probe.Results[i].Verdict)
	}
	return probe, nil
}

// coverage says how complete the records are.
func (p *Prober) coverage(ctx context.Context) (api.Coverage, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	coverage, err := p.records.Coverage(ctx)
	if err != nil {
		return api.Coverage{}, fmt.Errorf("ask how complete the records are: %w", err)
	}
	if coverage.Replicas == nil {
		coverage.Replicas = []string{}
	}
	if coverage.Sources == nil {
		coverage.Sources = []api.Source{}
	}
	return coverage, nil
}

func mail(protocol api.ProbeProtocol) bool {
	return protocol == api.ProbeSMTP || protocol == api.ProbeIMAP || protocol == api.ProbePOP3
}

// chosen are the pods to ask: the one that is named, or some, picked at random and in the order of their names.
func chosen(pods []api.Pod, q api.ProbeRequest) ([]api.Pod, error) {
	if q.Pod != "" {
		at := slices.IndexFunc(pods, func(pod api.Pod) bool { return pod.Name == q.Pod })
		if at < 0 {
			return nil, fmt.Errorf("%w: no pod %s is behind the service", api.ErrBadProbe, q.Pod)
		}
		return pods[at : at+1], nil
	}
	some := slices.Clone(pods)
	rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
	some = some[:min(len(some), cmp.Or(max(0, min(q.Pods, maxPods)), defaultPods))]
	slices.SortFunc(some, func(a, b api.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return some, nil
}

// ask asks the ports of one pod, as it is now.
func (p *Prober) ask(ctx context.Context, member *api.Pod, ports []corev1.ServicePort, not forbidden, q api.ProbeRequest, visible api.Visible) []api.ProbeResult {
	base := api.ProbeResult{
		Pod: member.Name, PodUID: member.UID, Node: member.Node, DataPlane: member.DataPlane,
		ServerName: q.ServerName, Verdict: api.ProbeGood, Findings: []api.ProbeFinding{},
	}
	pod, address, why := p.addressOf(ctx, member, q.Namespace, not)
	if why != nil {
		found(&base, api.FoundNotDialed, api.ProbeNotDialed, "%v", why)
		return []api.ProbeResult{base}
	}
	var results []api.ProbeResult
	for _, t := range targetsOf(pod, member.DataPlane, ports, q.Protocol) {
		r := base
		r.Findings = []api.ProbeFinding{}
		r.Port, r.Protocol = t.service.Port, t.protocol
		if t.why != nil {
			found(&r, api.FoundNotDialed, api.ProbeNotDialed, "%v", t.why)
		} else {
			r.Address = netip.AddrPortFrom(address, t.port).String()
			p.look(ctx, &r, member, address, t, !q.SkipPlaintext, visible)
		}
		results = append(results, r)
	}
	return results
}

// addressOf is a pod as the API server has it now, with the address of its own that is dialed, or why there is none.
func (p *Prober) addressOf(ctx context.Context, member *api.Pod, namespace string, not forbidden) (*corev1.Pod, netip.Addr, error) {
	if member.Namespace != namespace {
		return nil, netip.Addr{}, errors.New("it is in another namespace than the service")
	}
	pod, err := p.cluster.pod(ctx, namespace, member.Name)
	switch {
	case errors.Is(err, api.ErrNotFound):
		return nil, netip.Addr{}, errors.New("it is gone")
	case err != nil:
		p.log.Warn("get the pod to probe", "pod", namespace+"/"+member.Name, "err", err)
		return nil, netip.Addr{}, errors.New("the API server doesn't say where it is")
	case string(pod.UID) != member.UID:
		return nil, netip.Addr{}, errors.New("another pod has its name now")
	case pod.Spec.HostNetwork:
		return nil, netip.Addr{}, errors.New("it is in the network of its node, and nodes are not dialed")
	case pod.Status.Phase != corev1.PodRunning:
		return nil, netip.Addr{}, fmt.Errorf("it isn't running, but %.32s", pod.Status.Phase)
	}
	texts := []string{pod.Status.PodIP}
	for _, ip := range pod.Status.PodIPs {
		if !slices.Contains(texts, ip.IP) {
			texts = append(texts, ip.IP)
		}
	}
	hosts := []string{pod.Status.HostIP}
	for _, ip := range pod.Status.HostIPs {
		hosts = append(hosts, ip.IP)
	}
	var whys []error
	for _, text := range texts {
		if text == "" {
			continue
		}
		address, err := allowed(text, p.networks, not)
		if err == nil && slices.ContainsFunc(hosts, func(host string) bool { at, err := netip.ParseAddr(host); return err == nil && at.Unmap() == address }) {
			err = fmt.Errorf("%s is its node's", address)
		}
		if err == nil {
			return pod, address, nil
		}
		whys = append(whys, err)
	}
	if len(whys) == 0 {
		return nil, netip.Addr{}, errors.New("it has no address")
	}
	return nil, netip.Addr{}, fmt.Errorf("none of its addresses may be dialed: %w", whys[0])
}

// look asks one port: for its certificate, and then whether it answers in plaintext.
func (p *Prober) look(ctx context.Context, r *api.ProbeResult, pod *api.Pod, address netip.Addr, t target, plaintext bool, visible api.Visible) {
	var s *seen
	err := p.connect(ctx, netip.AddrPortFrom(address, t.port), maxTLSBytes, func(ctx context.Context, conn *boundedConn) (err error) {
		if err := startTLS(conn, t.protocol); err != nil {
			return err
		}
		s, err = handshake(ctx, conn, t.protocol, r.ServerName, p.wait)
		if errors.Is(err, errNoTLS) && mail(t.protocol) {
			err = errInjected // only sooner or later
		}
		return err
	})
	switch {
	case errors.Is(err, errNoTLS), errors.Is(err, errNoStartTLS):
		found(r, api.FoundNoTLS, api.ProbeWarning, "%v", err)
	case errors.Is(err, errInjected):
		found(r, api.FoundInjected, api.ProbeAlarm, "%v; what comes in plaintext can be taken for what comes in TLS", err)
	case err != nil:
		found(r, api.FoundUnreachable, api.ProbeUnreachable, "%v", err)
	default:
		r.ClientCertificate, r.ALPN = s.clientCert, s.alpn
		if s.version != 0 {
			r.TLSVersion = tls.VersionName(s.version)
		}
		if s.suite != 0 {
			r.CipherSuite = tls.CipherSuiteName(s.suite)
		}
		p.judged(ctx, r, pod, s, visible, time.Now())
	}
	if !plaintext || mail(t.protocol) || t.plain == 0 {
		return
	}
	r.Plaintext = api.PlaintextUnclear
	_ = p.connect(ctx, netip.AddrPortFrom(address, t.plain), maxPlainBytes, func(_ context.Context, conn *boundedConn) error {
		r.Plaintext = tryPlaintext(conn, speaksHTTP(t.service), p.first, p.wait)
		return nil
	})
	if meshProtocol(t.protocol) && r.Plaintext == api.PlaintextAnswered {
		found(r, api.FoundPlaintext, api.ProbeWarning, "it answers who speaks no TLS, on port %d", t.plain)
	}
}

// errNoTime says that the probe's time has run out before a connection could be opened.
var errNoTime = errors.New("there was no time left for it; ask for fewer pods or ports")

// connect opens a connection when it is due, does something with it, and closes it.
func (p *Prober) connect(ctx context.Context, to netip.AddrPort, most int, do func(context.Context, *boundedConn) error) error {
	select {
	case p.dialing <- struct{}{}:
		defer func() { <-p.dialing }()
	case <-ctx.Done():
		return errNoTime
	}
	if err := p.pace.Wait(ctx); err != nil {
		return errNoTime
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	raw, err := p.dial(ctx, to)
	if err != nil {
		return fmt.Errorf("no connection: %w", err)
	}
	defer raw.Close()
	conn := &boundedConn{Conn: raw, left: most}
	defer conn.endsWith(ctx)()
	if err := do(ctx, conn); err != nil {
		if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
			return errors.New("it didn't answer in time")
		}
		return err
	}
	return nil
}
