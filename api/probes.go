package api

import "time"

// ProbeProtocol is how a probe comes to see a certificate.
type ProbeProtocol string

// Protocols of probes.
const (
	ProbeAuto    ProbeProtocol = "auto"    // by the data plane of each pod, and by the port where it takes no part
	ProbeSidecar ProbeProtocol = "sidecar" // TLS as between sidecars (ALPN istio), on the pod's own port
	ProbeAmbient ProbeProtocol = "ambient" // HBONE: port 15008, ALPN h2
	ProbeTLS     ProbeProtocol = "tls"     // TLS from the first byte, for serverName
	ProbeSMTP    ProbeProtocol = "smtp"    // STARTTLS of RFC 3207
	ProbeIMAP    ProbeProtocol = "imap"    // STARTTLS of RFC 9051
	ProbePOP3    ProbeProtocol = "pop3"    // STLS of RFC 2595
)

// ProbeVerdict sums up what a probe found.
type ProbeVerdict string

// Verdicts of probes, from the best to the worst.
const (
	ProbeGood        ProbeVerdict = "good"        // nothing to look at
	ProbeNotDialed   ProbeVerdict = "not-dialed"  // it has no address that may be dialed
	ProbeUnreachable ProbeVerdict = "unreachable" // no certificate could be read
	ProbeUnsure      ProbeVerdict = "unsure"      // what is served can't be judged, because not all issuances are known
	ProbeWarning     ProbeVerdict = "warning"     // somebody should look at it
	ProbeAlarm       ProbeVerdict = "alarm"       // somebody should look at it now
)

// ProbeCode names the kind of a finding.
type ProbeCode string

// Findings of probes.
const (
	FoundUnrecorded     ProbeCode = "unrecorded"         // of our issuer, but in no record, though all issuances are known
	FoundUnknown        ProbeCode = "unknown"            // of our issuer, but in no record, and not all issuances are known
	FoundReusedSerial   ProbeCode = "reused-serial"      // its serial number is recorded for another certificate
	FoundExpired        ProbeCode = "expired"            // it has ended
	FoundNotYetValid    ProbeCode = "not-yet-valid"      // it hasn't begun
	FoundWrongNames     ProbeCode = "wrong-names"        // other names than the pod's identity, or than serverName
	FoundOtherChain     ProbeCode = "other-chain"        // it doesn't lead to the mesh's anchors
	FoundOtherHolder    ProbeCode = "other-holder"       // it was issued to another pod or node
	FoundSuperseded     ProbeCode = "superseded"         // its holder has renewed it
	FoundPlaintext      ProbeCode = "plaintext"          // it answers without TLS where it has a certificate of the mesh
	FoundNoClientCert   ProbeCode = "no-client-cert"     // it lets in who shows no certificate where it has one of the mesh
	FoundNoTLS          ProbeCode = "no-tls"             // it answers, but not in TLS
	FoundInjected       ProbeCode = "injected-plaintext" // it, or somebody between, sent plaintext behind the answer to STARTTLS
	FoundUnreachable    ProbeCode = "unreachable"        // no connection, or no handshake
	FoundNotDialed      ProbeCode = "not-dialed"         // it has no address, or no port, that may be dialed
	FoundRecordsFailing ProbeCode = "records-failing"    // the records couldn't be asked
)

// ClientCertificate says whether a client certificate is demanded.
type ClientCertificate string

// Whether a client certificate is demanded. A probe never shows one.
const (
	ClientCertRequired  ClientCertificate = "required"  // asked for, and refused without
	ClientCertRequested ClientCertificate = "requested" // asked for, and let in without
	ClientCertNone      ClientCertificate = "none"      // not asked for
	ClientCertUnclear   ClientCertificate = "unclear"   // asked for; the connection ended without saying why
)

// PlaintextAnswer says whether a port answers who speaks no TLS.
type PlaintextAnswer string

// Whether plaintext is answered.
const (
	PlaintextAnswered PlaintextAnswer = "answered" // with plaintext
	PlaintextSilent   PlaintextAnswer = "silent"   // the connection stayed open, without an answer in time
	PlaintextRefused  PlaintextAnswer = "refused"  // the connection was ended, or answered in TLS, or with a demand for it
	PlaintextUnclear  PlaintextAnswer = "unclear"  // no connection
)

// ProbeRequest asks for a probe: which certificates the pods behind a service really serve.
type ProbeRequest struct {
	_         struct{} `additionalProperties:"false"`
	Namespace string   `json:"namespace" pattern:"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" maxLength:"63"`
	Service   string   `json:"service" pattern:"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" maxLength:"63"`
	// Pod is the only one that is probed; empty for as many of those behind the service as Pods says.
	Pod string `json:"pod,omitempty" pattern:"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$" maxLength:"253"`
	// Pods is how many pods are probed at most; 0 for 3.
	Pods int `json:"pods,omitempty" minimum:"0" maximum:"20"`
	// Port is one of the service's ports; 0 for its first ones over TCP.
	Port int32 `json:"port,omitempty" minimum:"0" maximum:"65535"`
	// Protocol is auto where it is empty.
	Protocol ProbeProtocol `json:"protocol,omitempty" enum:"auto,sidecar,ambient,tls,smtp,imap,pop3"`
	// ServerName is the host that a gateway, or another server, is asked for (SNI). No name is resolved.
	ServerName string `json:"serverName,omitempty" maxLength:"253"`
	// SkipPlaintext leaves out the question whether plaintext is answered.
	SkipPlaintext bool `json:"skipPlaintext,omitempty"`
}

// Probe is what a probe found.
type Probe struct {
	Namespace string    `json:"namespace"`
	Service   string    `json:"service"`
	Time      time.Time `json:"time"` // when it began
	// Verdict is the worst one of the results; not-dialed where there are none.
	Verdict ProbeVerdict `json:"verdict"`
	// Pods is how many pods are behind the service; those that were probed are in the results.
	Pods int `json:"pods"`
	// Results are by pod and port.
	Results []ProbeResult `json:"results"`
	// Coverage says how complete the records are that the certificates were compared with.
	Coverage Coverage `json:"coverage"`
}

// ProbeResult is what a port of a pod serves.
type ProbeResult struct {
	Pod       string        `json:"pod"`
	PodUID    string        `json:"podUID"`
	Node      string        `json:"node,omitempty"`
	DataPlane DataPlane     `json:"dataPlane"`
	Port      int32         `json:"port,omitempty"`    // of the service
	Address   string        `json:"address,omitempty"` // that was dialed: IP address and port
	Protocol  ProbeProtocol `json:"protocol,omitempty"`
	// ServerName is the host that was asked for.
	ServerName string       `json:"serverName,omitempty"`
	Verdict    ProbeVerdict `json:"verdict"`
	// Findings are why.
	Findings []ProbeFinding `json:"findings"`
	// TLSVersion is such as TLS 1.3, ALPN the protocol that was agreed on.
	TLSVersion  string `json:"tlsVersion,omitempty"`
	CipherSuite string `json:"cipherSuite,omitempty"`
	ALPN        string `json:"alpn,omitempty"`
	// ClientCertificate says whether one is demanded; empty where no handshake came so far.
	ClientCertificate ClientCertificate `json:"clientCertificate,omitempty"`
	// Plaintext says whether it is answered on the same port (ambient: on the service's own); empty where that wasn't
	// asked.
	Plaintext PlaintextAnswer `json:"plaintext,omitempty"`
	// Chain is what is served, leaf first.
	Chain []ServedCertificate `json:"chain,omitempty"`
	// Record is that of the leaf, where there is one that the caller may see.
	Record *Certificate `json:"record,omitempty"`
	// KnownAs names the leaf where it is known otherwise: as a cert-manager Certificate, or as one of Signet's own.
	KnownAs string `json:"knownAs,omitempty"`
}

// ProbeFinding is one thing that a probe found.
type ProbeFinding struct {
	Code    ProbeCode    `json:"code"`
	Verdict ProbeVerdict `json:"verdict"`
	Detail  string       `json:"detail"`
}

// ServedCertificate is a certificate as it is served.
type ServedCertificate struct {
	SHA256             string    `json:"sha256"`
	Serial             string    `json:"serial"`
	Subject            string    `json:"subject"`
	Issuer             string    `json:"issuer"`
	SANs               []string  `json:"sans"` // with their kind, such as URI:spiffe://…
	NotBefore          time.Time `json:"notBefore"`
	NotAfter           time.Time `json:"notAfter"`
	RemainingSeconds   int64     `json:"remainingSeconds"` // 0 once it has expired
	KeyAlgorithm       string    `json:"keyAlgorithm"`
	KeyBits            int       `json:"keyBits"`
	SignatureAlgorithm string    `json:"signatureAlgorithm"`
}
