// Package api is the inspection side of Signet: which certificate each service holds, until when, with which SANs, and
// what was issued, refused and is about to expire.
//
// This file has the types of the wire: JSON over HTTPS on port 8443, read-only but for probes. Times are RFC 3339 in
// UTC, lengths of time are seconds, digests and serial numbers are lower-case hexadecimal. A list carries a coverage,
// which says how complete it is.
package api

import "time"

// State is how far a certificate has come in its life.
type State string

// States of certificates. A leaf is due at half of its life and overdue at 55 %.
const (
	Fresh   State = "fresh"
	Due     State = "due"
	Overdue State = "overdue"
	Expired State = "expired"
)

// Standing says whether a certificate is the one that its holder uses.
type Standing string

// Standings of certificates.
const (
	// Live is the latest of a holder that exists.
	Live Standing = "live"
	// Superseded is one that its holder has renewed; or an overdue one that was issued to an address and no pod, where
	// the service account has a later one from another address.
	Superseded Standing = "superseded"
	// Orphaned is one whose holder is gone: the pod, or all pods of it that the node's proxy captured; without a pod the
	// service account.
	Orphaned Standing = "orphaned"
	// Ended is one that has expired.
	Ended Standing = "ended"
)

// DataPlane is how a pod takes part in the mesh.
type DataPlane string

// Data planes.
const (
	Sidecar        DataPlane = "sidecar"         // has a certificate of its own
	Ambient        DataPlane = "ambient"         // its node's ztunnel holds one for its identity
	AmbientPending DataPlane = "ambient-pending" // not enrolled by its node yet
	Gateway        DataPlane = "gateway"         // a proxy of its own, by its labels
	Waypoint       DataPlane = "waypoint"        // a proxy of its own, by its labels
	NoMesh         DataPlane = "none"            // takes no part, so it needs no certificate
)

// List is what every list has beside its items.
type List struct {
	// Continue asks for the next page, with the same filters; empty on the last one.
	Continue string `json:"continue,omitempty"`
	// Coverage says how complete the list is.
	Coverage Coverage `json:"coverage"`
	// Restricted is true where the list leaves out namespaces that the caller may not see.
	Restricted bool `json:"restricted,omitempty"`
}

// Coverage says how complete an answer is.
type Coverage struct {
	// Since is since when issuances are recorded.
	Since time.Time `json:"since"`
	// Replicas are those whose issuances are known.
	Replicas []string `json:"replicas"`
	// Sources say of each source of knowledge whether it is up.
	Sources []Source `json:"sources"`
	// Gaps are times in which issuances may be missing.
	Gaps []Gap `json:"gaps,omitempty"`
}

// Source is a source of knowledge: the ledger, the informer of a kind.
type Source struct {
	Name string `json:"name"`
	Up   bool   `json:"up"`
	// Reason says why it isn't up, or why nothing comes from it: an API that isn't installed.
	Reason string `json:"reason,omitempty"`
}

// Gap is a time in which issuances may be missing, and why.
type Gap struct {
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Replica string    `json:"replica,omitempty"`
	Reason  string    `json:"reason"`
}

// Certificate is a leaf that Signet issued.
type Certificate struct {
	SHA256         string   `json:"sha256"`
	Serial         string   `json:"serial"`
	Identity       string   `json:"identity"` // SPIFFE ID
	SANs           []string `json:"sans"`     // with their kind, such as URI:spiffe://…
	Namespace      string   `json:"namespace"`
	ServiceAccount string   `json:"serviceAccount"`
	Holder         Holder   `json:"holder"`

	IssuedAt         time.Time `json:"issuedAt"`
	NotBefore        time.Time `json:"notBefore"`
	NotAfter         time.Time `json:"notAfter"`
	RequestedSeconds int64     `json:"requestedSeconds"`
	RemainingSeconds int64     `json:"remainingSeconds"` // 0 once it has expired
	RemainingRatio   float64   `json:"remainingRatio"`   // part of its life that is left, 0 to 1
	State            State     `json:"state"`
	Standing         Standing  `json:"standing"`

	KeyAlgorithm       string    `json:"keyAlgorithm"` // RSA or ECDSA
	KeyBits            int       `json:"keyBits"`
	SignatureAlgorithm string    `json:"signatureAlgorithm"`
	SPKISHA256         string    `json:"spkiSHA256"`
	Issuer             string    `json:"issuer"` // kind.group/name
	Root               Root      `json:"root"`
	Request            ObjectRef `json:"request"` // the CertificateRequest
	Replica            string    `json:"replica"`
	PEM                string    `json:"pem,omitempty"` // where one certificate is asked for
}

// Holder is who a certificate was issued to.
type Holder struct {
	Pod     string `json:"pod,omitempty"`
	PodUID  string `json:"podUID,omitempty"`
	Node    string `json:"node,omitempty"`
	Cluster string `json:"cluster,omitempty"`
	Address string `json:"address,omitempty"` // IP address that asked
	// Impersonated is true where a node's proxy asked for the pods beside it.
	Impersonated bool `json:"impersonated,omitempty"`
}

// Root is the trust anchor that a certificate leads to.
type Root struct {
	SHA256  string `json:"sha256"`
	Subject string `json:"subject"`
}

// ObjectRef names a Kubernetes object.
type ObjectRef struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

// CertificateList is a page of certificates, the latest first.
type CertificateList struct {
	List
	Items []Certificate `json:"items"`
}

// Service is a Kubernetes Service with the certificates that the pods behind it hold.
type Service struct {
	Namespace  string   `json:"namespace"`
	Name       string   `json:"name"`
	Identities []string `json:"identities"` // SPIFFE IDs of the pods behind it
	// Summary sums up the pods.
	Summary Summary `json:"summary"`
	// Problems are what somebody should look at.
	Problems []Problem `json:"problems,omitempty"`
	// Pods are those behind it; only where one service is asked for.
	Pods []Pod `json:"pods,omitempty"`
}

// Summary counts pods by what they hold. Pods that take no part in the mesh count only as Total and NoMesh.
type Summary struct {
	Total   int `json:"total"`
	NoMesh  int `json:"noMesh"`
	Fresh   int `json:"fresh"`
	Due     int `json:"due"`
	Overdue int `json:"overdue"`
	Expired int `json:"expired"`
	Missing int `json:"missing"` // a certificate that they should hold
	// Unattributed are pods of an account that has certificates which istiod asked for as registration authority. It doesn't
	// say for which pod, so that each holds one of them, or none.
	Unattributed int `json:"unattributed"`
	// NotAfter is the earliest end of a live certificate; zero where there is none.
	NotAfter time.Time `json:"notAfter,omitzero"`
	// RemainingRatio is the smallest part of a life that is left.
	RemainingRatio float64 `json:"remainingRatio"`
}

// Problem is something that somebody should look at.
type Problem struct {
	Code   ProblemCode `json:"code"`
	Detail string      `json:"detail"`
}

// ProblemCode names the kind of a problem.
type ProblemCode string

// Problems of services.
const (
	ProblemMissing       ProblemCode = "missing-certificate"
	ProblemOverdue       ProblemCode = "overdue"
	ProblemExpired       ProblemCode = "expired"
	ProblemSANs          ProblemCode = "unexpected-sans"
	ProblemSeveralChains ProblemCode = "several-chains"
	ProblemProbe         ProblemCode = "probe" // what the latest scheduled probe found
)

// Pod is a pod behind a service.
type Pod struct {
	Namespace      string    `json:"namespace"`
	Name           string    `json:"name"`
	UID            string    `json:"uid"`
	Node           string    `json:"node,omitempty"`
	ServiceAccount string    `json:"serviceAccount"`
	DataPlane      DataPlane `json:"dataPlane"`
	// Certificates are the live ones: its own, or those of its identity that its node's proxy holds.
	Certificates []Certificate `json:"certificates"`
	// Unattributed says that it may hold one of its account's certificates that istiod asked for as registration authority.
	Unattributed bool      `json:"unattributed,omitempty"`
	Problems     []Problem `json:"problems,omitempty"`
}

// ServiceList is a page of services, by namespace and name.
type ServiceList struct {
	List
	Items []Service `json:"items"`
}

// Identity is a SPIFFE ID with what is known of it.
type Identity struct {
	SPIFFEID       string        `json:"spiffeID"`
	Namespace      string        `json:"namespace"`
	ServiceAccount string        `json:"serviceAccount"`
	Live           []Certificate `json:"live"`
	Services       []ObjectRef   `json:"services"`
	Coverage       Coverage      `json:"coverage"`
}

// Outcome is how a request for a certificate ended.
type Outcome string

// Outcomes.
const (
	Issued  Outcome = "issued"
	Refused Outcome = "refused"
)

// Issuance is one line of the audit: a certificate that was issued, or refusals of the same kind.
type Issuance struct {
	Time    time.Time `json:"time"`
	Outcome Outcome   `json:"outcome"`
	// Certificate is what was issued.
	Certificate *Certificate `json:"certificate,omitempty"`
	// Refusal is what was refused.
	Refusal *Refusal `json:"refusal,omitempty"`
}

// Refusal is how often requests were refused in the same way.
type Refusal struct {
	Reason         string    `json:"reason"`
	Code           string    `json:"code"` // gRPC code
	Identity       string    `json:"identity,omitempty"`
	Namespace      string    `json:"namespace,omitempty"`
	ServiceAccount string    `json:"serviceAccount,omitempty"`
	Address        string    `json:"address,omitempty"`
	Count          int64     `json:"count"`
	First          time.Time `json:"first"`
	Last           time.Time `json:"last"`
	Replica        string    `json:"replica"`
}

// IssuanceList is a page of the audit, the latest first.
type IssuanceList struct {
	List
	Items []Issuance `json:"items"`
}

// Subject is something that ends: a serving certificate, an anchor, a CRL; see docs/trust.md.
type Subject struct {
	Kind             string    `json:"kind"`
	Text             string    `json:"text"`
	NotBefore        time.Time `json:"notBefore"`
	NotAfter         time.Time `json:"notAfter"`
	RemainingSeconds int64     `json:"remainingSeconds"`
	RemainingRatio   float64   `json:"remainingRatio"`
	State            State     `json:"state"`
}

// Trust is whom the mesh trusts and who signs, as this replica sees it.
type Trust struct {
	Anchors      []Anchor  `json:"anchors"`
	Issuers      []string  `json:"issuers"`      // each in a line for people, the one in force first
	Distribution []string  `json:"distribution"` // how far the anchors have come, in lines for people
	Replicas     []string  `json:"replicas"`
	Expiring     []Subject `json:"expiring"` // all that ends but leaves, the earliest first
}

// Anchor is a trust anchor with its place in the rollover.
type Anchor struct {
	SHA256    string    `json:"sha256"`
	Subject   string    `json:"subject"`
	NotAfter  time.Time `json:"notAfter"`
	Phase     string    `json:"phase"`
	Since     time.Time `json:"since"`
	Until     time.Time `json:"until,omitzero"`
	Waits     string    `json:"waits,omitempty"`
	Federated bool      `json:"federated,omitempty"`
	Sources   []string  `json:"sources"`
	PEM       string    `json:"pem"`
}
