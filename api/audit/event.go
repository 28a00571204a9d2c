package audit

import (
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/ledger"
)

// Types of events.
const (
	// TypeIssued is a certificate that was issued; its data is [Issued].
	TypeIssued = "dev.signet.certificate.issued.v1"
	// TypeRefused is requests for certificates that were refused; its data is [Refused].
	TypeRefused = "dev.signet.certificate.refused.v1"
	// TypeProbe is a probe; its data is [Probe].
	TypeProbe = "dev.signet.probe.v1"
	// TypeRead is a read of the inspection API, or several that were refused; its data is [Read].
	TypeRead = "dev.signet.inspection.read.v1"
	// TypeLost is events that are missing in the stream; its data is [Lost].
	TypeLost = "dev.signet.audit.lost.v1"
)

// kind is the type of an event, as a small number.
type kind uint8

const (
	kindIssued kind = iota
	kindRefused
	kindProbe
	kindRead
	kindLost
	kinds
)

func (k kind) eventType() string {
	return [kinds]string{TypeIssued, TypeRefused, TypeProbe, TypeRead, TypeLost}[k]
}

// name is the kind as a label of metrics.
func (k kind) name() string { return [kinds]string{"issued", "refused", "probe", "read", "lost"}[k] }

// specVersion is the version of CloudEvents that events follow.
const specVersion = "1.0"

// Event is one line: an event of CloudEvents 1.0, in its JSON format and structured mode. T is the data that belongs
// to its type.
type Event[T any] struct {
	SpecVersion string `json:"specversion"`
	// ID is unique for its source: the SHA-256 of the certificate that was issued, else one that is made up. An event
	// of the same ID and source is the same event.
	ID string `json:"id"`
	// Source is //signet/CLUSTER/NAMESPACE/REPLICA.
	Source string `json:"source"`
	Type   string `json:"type"`
	// Subject is the SPIFFE ID, or the path, that it is about.
	Subject string `json:"subject,omitempty"`
	// Time is when it happened, or when the last of what is counted did.
	Time            time.Time `json:"time"`
	DataContentType string    `json:"datacontenttype"`
	Data            T         `json:"data"`
}

// Issued is a certificate that was issued. Digests, serial numbers and key IDs are lower-case hexadecimal.
type Issued struct {
	SHA256      string `json:"sha256"`
	Serial      string `json:"serial"`
	IssuerKeyID string `json:"issuerKeyID"`
	SPKISHA256  string `json:"spkiSHA256"`

	// Identity is the SPIFFE ID, and TrustDomain, Namespace and ServiceAccount what it is made of.
	Identity          string `json:"identity,omitempty"`
	TrustDomain       string `json:"trustDomain,omitempty"`
	Namespace         string `json:"namespace,omitempty"`
	ServiceAccount    string `json:"serviceAccount,omitempty"`
	ServiceAccountUID string `json:"serviceAccountUID,omitempty"`
	// SANs are the names of the certificate; SANsOmitted is how many more there are.
	SANs        []string `json:"sans"`
	SANsOmitted int      `json:"sansOmitted,omitempty"`

	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// RequestedSeconds is the lifetime that was asked for, where that is known, and LifetimeSeconds what was given.
	RequestedSeconds int64 `json:"requestedSeconds,omitempty"`
	LifetimeSeconds  int64 `json:"lifetimeSeconds"`

	KeyAlgorithm       string `json:"keyAlgorithm"`
	KeyBits            int    `json:"keyBits"`
	SignatureAlgorithm string `json:"signatureAlgorithm"`
	// Issuer is kind.group/name of the cert-manager issuer.
	Issuer      string `json:"issuer"`
	RootSHA256  string `json:"rootSHA256,omitempty"`
	RootSubject string `json:"rootSubject,omitempty"`

	Caller  Caller  `json:"caller"`
	Request Request `json:"request"`
	// Replica made the record, and Origin says how it learnt of the certificate: own or observed.
	Replica string `json:"replica,omitempty"`
	Origin  string `json:"origin"`
}

// Caller is who asked for a certificate, as proven by its credential.
type Caller struct {
	Pod    string `json:"pod,omitempty"`
	PodUID string `json:"podUID,omitempty"`
	Node   string `json:"node,omitempty"`
	// Credential tells one token from another; it is no secret.
	Credential string `json:"credential,omitempty"`
	Cluster    string `json:"cluster,omitempty"`
	// Address is the IP address that it asked from.
	Address string `json:"address,omitempty"`
	// Impersonated says that a node's proxy asked for a pod beside it.
	Impersonated bool `json:"impersonated,omitempty"`
}

// Request is the CertificateRequest of cert-manager.
type Request struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

// Refused is requests for certificates that were refused for one reason to one caller within a minute.
type Refused struct {
	// Reason is one of a closed set of words, and Code the name of the gRPC code.
	Reason string `json:"reason"`
	Code   string `json:"code"`
	// Identity, Namespace and ServiceAccount are the caller's, where it was known.
	Identity       string `json:"identity,omitempty"`
	Namespace      string `json:"namespace,omitempty"`
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Address is the IP address that they came from.
	Address string `json:"address,omitempty"`
	// Others says that callers of all kinds are counted here, because there were too many to tell apart.
	Others bool `json:"others,omitempty"`

	Count int64     `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// Probe is a probe: somebody looked which certificates a service really serves.
type Probe struct {
	// Time is when it began; the present where it is zero. It becomes the event's.
	Time time.Time `json:"-"`
	// User is the Kubernetes user who asked for it; empty where it was Scheduled. Where from, says the event of the
	// read that asked for it.
	User      string `json:"user,omitempty"`
	Scheduled bool   `json:"scheduled,omitempty"`

	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	// Verdict is the worst one of the results.
	Verdict string `json:"verdict"`
	// Results are of the ports of pods that were probed, at most 100; ResultsOmitted is how many more there are.
	Results         []ProbeResult `json:"results"`
	ResultsOmitted  int           `json:"resultsOmitted,omitempty"`
	DurationSeconds float64       `json:"durationSeconds,omitempty"`
}

// ProbeResult is what a port of a pod serves.
type ProbeResult struct {
	Pod string `json:"pod"`
	// Target is the IP address and port that was dialed; empty where none was.
	Target  string `json:"target,omitempty"`
	Verdict string `json:"verdict"`
	// SHA256 is that of the certificate that was served.
	SHA256 string `json:"sha256,omitempty"`
}

// Read is one request to the inspection API, or several of a kind that had no success within a minute.
type Read struct {
	// User is the Kubernetes user who asked, empty where it wasn't known, and Address where from.
	User    string `json:"user,omitempty"`
	Address string `json:"address,omitempty"`
	Method  string `json:"method"`
	// Route is the pattern of the path.
	Route     string `json:"route"`
	Namespace string `json:"namespace,omitempty"`
	// Filters are the names in the path and the filters in the query; of a request that had success only.
	Filters map[string]string `json:"filters,omitempty"`
	// Status is that of HTTP.
	Status int `json:"status"`
	// Watch is started or ended for a request that is answered with a stream, which has two events.
	Watch string `json:"watch,omitempty"`
	// Items is how many objects were answered, Bytes how many bytes of body were sent.
	Items           int64   `json:"items"`
	Bytes           int64   `json:"bytes"`
	DurationSeconds float64 `json:"durationSeconds"`
	// Others says that requests of all users are counted here, because there were too many to tell apart.
	Others bool `json:"others,omitempty"`

	Count int64     `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// Lost says that events are missing between the one before it and the one behind it.
type Lost struct {
	Count int64 `json:"count"`
	// ByType is how many there were of each type.
	ByType map[string]int64 `json:"byType"`
	Since  time.Time        `json:"since"`
	Until  time.Time        `json:"until"`
}

// Bounds of texts, in bytes.
const (
	maxName        = 2048 // as in the ledger; a SPIFFE ID has no more
	maxWord        = 512
	maxSANs        = 100
	maxSANBytes    = 16 << 10 // of all names of a certificate
	maxResults     = 100
	maxFilters     = 32
	maxFilterBytes = 256
)

func issuedData(i *ledger.Issuance) *Issued {
	d := &Issued{
		SHA256: text(i.SHA256, maxWord), Serial: text(i.SerialNumber, maxWord), IssuerKeyID: text(i.IssuerKeyID, maxWord), SPKISHA256: text(i.SPKISHA256, maxWord),
		Identity: text(i.Identity, maxName), TrustDomain: text(i.TrustDomain, maxWord), Namespace: text(i.Namespace, maxWord),
		ServiceAccount: text(i.ServiceAccount, maxWord), ServiceAccountUID: text(i.ServiceAccountUID, maxWord),
		SANs:      make([]string, 0, min(len(i.SANs), maxSANs)),
		NotBefore: i.NotBefore.UTC(), NotAfter: i.NotAfter.UTC(),
		RequestedSeconds: int64(i.RequestedLifetime / time.Second), LifetimeSeconds: int64(i.Lifetime() / time.Second),
		KeyAlgorithm: text(i.KeyAlgorithm, maxWord), KeyBits: i.KeyBits, SignatureAlgorithm: text(i.SignatureAlgorithm, maxWord),
		Issuer: text(i.Issuer, maxWord), RootSHA256: text(i.RootSHA256, maxWord), RootSubject: text(i.RootSubject, maxName),
		Caller: Caller{
			Pod: text(i.Pod, maxWord), PodUID: text(i.PodUID, maxWord), Node: text(i.Node, maxWord), Credential: text(i.Credential, maxWord),
			Cluster: text(i.Cluster, maxWord), Address: text(i.Peer, maxWord), Impersonated: i.Impersonated,
		},
		Request: Request{Name: text(i.RequestName, maxWord), UID: text(i.RequestUID, maxWord)},
		Replica: text(i.Replica, maxWord), Origin: string(ledger.Own),
	}
	if i.Source != "" {
		d.Origin = text(string(i.Source), maxWord)
	}
	room := maxSANBytes
	for n, san := range i.SANs {
		san = text(san, maxName)
		if room -= len(san); n == maxSANs || room < 0 {
			d.SANsOmitted = len(i.SANs) - n
			break
		}
		d.SANs = append(d.SANs, san)
	}
	return d
}

// refusalKey is what is counted together.
type refusalKey struct {
	reason, code, identity, namespace, serviceAccount, address string
	others                                                     bool
}

// other is the key of all of a reason together.
func (k refusalKey) other() refusalKey {
	return refusalKey{reason: k.reason, code: k.code, others: true}
}

func keyOfRefusal(r ledger.Refusal, now time.Time) (refusalKey, seen) {
	if r.Last.IsZero() {
		r.Last = now
	}
	if r.First.IsZero() {
		r.First = r.Last
	}
	key := refusalKey{
		reason: text(r.Reason, maxWord), code: text(r.Code, maxWord), identity: text(r.Identity, maxWord), namespace: text(r.Namespace, maxWord),
		serviceAccount: text(r.ServiceAccount, maxWord), address: text(r.Peer, maxWord), others: r.Others,
	}
	return key, seen{max(1, r.Count), r.First, r.Last}
}

func (k refusalKey) data(s seen) *Refused {
	return &Refused{
		Reason: k.reason, Code: k.code, Identity: k.identity, Namespace: k.namespace, ServiceAccount: k.serviceAccount, Address: k.address,
		Others: k.others, Count: s.count, First: s.first.UTC(), Last: s.last.UTC(),
	}
}

func probeData(p Probe) Probe {
	p.User, p.Namespace, p.Service, p.Verdict = text(p.User, maxWord), text(p.Namespace, maxWord), text(p.Service, maxWord), text(p.Verdict, maxWord)
	all := p.Results
	p.Results = make([]ProbeResult, 0, min(len(all), maxResults))
	for _, r := range all[:min(len(all), maxResults)] {
		p.Results = append(p.Results, ProbeResult{
			Pod: text(r.Pod, maxWord), Target: text(r.Target, maxWord), Verdict: text(r.Verdict, maxWord), SHA256: text(r.SHA256, maxWord),
		})
	}
	p.ResultsOmitted += len(all) - len(p.Results)
	return p
}

// readKey is what is counted together.
type readKey struct {
	user, address, method, route, namespace string
	status                                  int
	others                                  bool
}

// other is the key of all of a route and status together.
func (k readKey) other() readKey {
	return readKey{method: k.method, route: k.route, status: k.status, others: true}
}

func keyOfRead(r api.Read) (readKey, seen) {
	last := r.Time.Add(r.Duration)
	return readKey{
		user: text(r.User, maxWord), address: text(r.Address, maxWord), method: text(r.Method, maxWord), route: text(r.Route, maxWord),
		namespace: text(r.Namespace, maxWord), status: r.Status,
	}, seen{1, last, last}
}

func (k readKey) data(s seen) *Read {
	return &Read{
		User: k.user, Address: k.address, Method: k.method, Route: k.route, Namespace: k.namespace, Status: k.status,
		Others: k.others, Count: s.count, First: s.first.UTC(), Last: s.last.UTC(),
	}
}

func readData(r api.Read) *Read {
	key, s := keyOfRead(r)
	d := key.data(s)
	d.Watch, d.Items, d.Bytes, d.DurationSeconds = text(string(r.Watch), maxWord), r.Items, r.Bytes, r.Duration.Seconds()
	if len(r.Filters) > 0 {
		d.Filters = make(map[string]string, min(len(r.Filters), maxFilters))
		for name, value := range r.Filters {
			if len(d.Filters) == maxFilters {
				break
			}
			d.Filters[text(name, maxFilterBytes)] = text(value, maxFilterBytes)
		}
	}
	return d
}

// sourceOf is the CloudEvents source: a URI reference (RFC 3986 §4.2) without characters that must be encoded.
func sourceOf(o Origin) string {
	source := "//signet"
	for _, part := range []string{o.Cluster, o.Namespace, o.Replica} {
		source += "/" + url.PathEscape(text(part, maxWord))
	}
	return source
}

// text makes s one that CloudEvents takes as an attribute (§3.1, String), and every database as a text: valid UTF-8
// without control characters and noncharacters, of at most so many bytes.
func text(s string, most int) string {
	if len(s) <= most && ordinary(s) {
		return s
	}
	if len(s) > most {
		at := most - len("…")
		for at > 0 && !utf8.RuneStart(s[at]) {
			at--
		}
		s = s[:at] + "…"
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r&0xfffe == 0xfffe || 0xfdd0 <= r && r <= 0xfdef {
			return utf8.RuneError
		}
		return r
	}, s)
	if len(s) > most { // what was replaced was shorter
		return text(s, most)
	}
	return s
}

// ordinary says that s is printable ASCII.
func ordinary(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
