package ca

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/ca/clusters"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/signer"
)

// Config is how callers are let in and what they may ask for.
type Config struct {
	// Listen is the address of the gRPC endpoint. Default :6443.
	Listen string `json:"listen,omitempty"`
	// ClusterAliases are further names of the local cluster in the callers' clusterid header. Optional.
	ClusterAliases []string `json:"clusterAliases,omitempty"`
	// Token is how service account tokens are reviewed.
	Token TokenConfig `json:"token,omitempty"`
	// RemoteClusters are those beside our own whose workloads are served, and where the Secrets are that lead to them.
	RemoteClusters clusters.Config `json:"remoteClusters,omitempty"`
	// OIDC are issuers of tokens, by OpenID Connect Discovery, that name workloads outside of these clusters, such as
	// virtual machines and pipelines; each says which service account its tokens are for. Optional.
	OIDC []OIDCConfig `json:"oidc,omitempty"`
	// Certificates are those that callers may show in place of a token, as virtual machines do that renew with PROV_CERT.
	Certificates CertificateConfig `json:"certificates,omitempty"`
	// Registration has Signet sign for an istiod that is the mesh's registration authority
	// (EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API): istiod authenticates the workloads, and makes and approves a Kubernetes
	// CertificateSigningRequest for each certificate, of which Signet is the signer (K8S_SIGNER).
	Registration RegistrationConfig `json:"registration,omitempty"`
	// Lifetime bounds the lifetimes that callers may ask for.
	Lifetime LifetimeConfig `json:"lifetime,omitempty"`
	// Rules have another issuer than the one in force sign for some callers, and bound their lifetimes. Optional.
	Rules []Rule `json:"rules,omitempty"`
	// TrustDomainAliases are former names of the trust domain. Pods that were injected under one go on asking for it
	// until they are restarted, and get it for their own namespace and service account (R32). Proxies accept it while
	// meshConfig.trustDomainAliases has it too. Optional.
	TrustDomainAliases []string `json:"trustDomainAliases,omitempty"`
	// Keys are the kinds of keys that are certified: RSA (2048 to 8192 bits), ECDSA-P256, ECDSA-P384
	// and Ed25519. Default all but Ed25519.
	Keys []string `json:"keys,omitempty"`
	// Nodes are the proxies, such as ztunnel, that ask for the pods on their node.
	Nodes NodesConfig `json:"nodes,omitempty"`
	// Admission bounds what is taken on at once, so that one caller can't keep others waiting.
	Admission AdmissionConfig `json:"admission,omitempty"`
	// RequestTimeout bounds one request from its arrival to its answer, because Istio's clients set no
	// deadline (R12). It must not be shorter than signer.timeout. Default signer.timeout and 5s more.
	RequestTimeout setting.Duration `json:"requestTimeout,omitempty"`

	// ConnectionAge is how long a connection is used, give or take a tenth; requests on it are finished.
	// Clients keep one connection for life, so that replicas would never share the load (R11). Default
	// 30m.
	ConnectionAge setting.Duration `json:"connectionAge,omitempty"`

	// TrustDomain, ClusterID and Usages are those of the whole configuration.
	TrustDomain spiffeid.TrustDomain `json:"-"`
	ClusterID   string               `json:"-"`
	Usages      signer.Usages        `json:"-"`
	// ShutdownDelay is how long new connections are still accepted after Signet has said that it
	// isn't ready any more (R13); DrainTimeout how long requests under way may then take.
	ShutdownDelay time.Duration `json:"-"`
	DrainTimeout  time.Duration `json:"-"`
	// MinTLS is the lowest version of TLS, 1.2 at least.
	MinTLS uint16 `json:"-"`
}

// LifetimeConfig bounds lifetimes (R33).
type LifetimeConfig struct {
	// Default is what a caller gets that asks for none, or for 0 or less. Default 24h.
	Default setting.Duration `json:"default,omitempty"`
	// Max is what a caller gets that asks for more. No certificate that lives longer leaves Signet,
	// but for up to 5m by which issuers set its beginning back.
	// Default 24h.
	Max setting.Duration `json:"max,omitempty"`
	// Min is the floor: asking for less is refused. Default 1m.
	Min setting.Duration `json:"min,omitempty"`
}

// MaxOrDefault is the longest lifetime of a leaf.
func (c LifetimeConfig) MaxOrDefault() time.Duration { return c.withDefaults().Max.Or(0) }

func (c LifetimeConfig) withDefaults() LifetimeConfig {
	c.Max = setting.DurationOf(c.Max.Or(24 * time.Hour))
	c.Default = setting.DurationOf(c.Default.Or(min(24*time.Hour, c.Max.Or(0))))
	c.Min = setting.DurationOf(c.Min.Or(min(time.Minute, c.Max.Or(0))))
	return c
}

// asked is what a caller asked for, 0 where it left that to us; what is beyond all bounds is said as the longest there is.
func asked(seconds int64) time.Duration {
	return time.Duration(min(max(0, seconds), int64(math.MaxInt64/time.Second))) * time.Second
}

// grant is the lifetime for a caller that asked for seconds.
func (c LifetimeConfig) grant(seconds int64) (time.Duration, error) {
	c = c.withDefaults()
	least, most := c.Min.Or(0), c.Max.Or(0)
	switch {
	case seconds <= 0:
		return c.Default.Or(0), nil
	case seconds >= int64(most/time.Second): // compared as seconds, which can't overflow
		return most, nil
	case time.Duration(seconds)*time.Second < least:
		return 0, kindLifetime.saying("%ds; the least is %s", seconds, least)
	}
	return time.Duration(seconds) * time.Second, nil
}

// validate reports what is wrong with c; complete has what c leaves open.
func (c LifetimeConfig) validate(p setting.Problems, complete LifetimeConfig) {
	const longest = 10 * 365 * 24 * time.Hour
	p.Duration("default", c.Default, time.Second, longest)
	p.Duration("max", c.Max, time.Second, longest)
	p.Duration("min", c.Min, time.Second, longest)
	if complete.Default.Or(0) > complete.Max.Or(0) {
		p.Addf("default", "%s is above max, %s; it must not be", complete.Default.Or(0), complete.Max.Or(0))
	}
	if complete.Min.Or(0) > complete.Default.Or(0) {
		p.Addf("min", "%s is above default, %s; it must not be", complete.Min.Or(0), complete.Default.Or(0))
	}
}

// AdmissionConfig bounds what is taken on at once, so that one caller can't keep others waiting.
type AdmissionConfig struct {
	// InFlight is how many requests may be with the issuer at once. Default 64.
	InFlight int `json:"inFlight,omitempty"`
	// InFlightPerCaller is how many of them may be one caller's: a pod's, or a token's that is bound to
	// no pod (the namespace's share bounds those who can make such tokens). One whose caller has left counts until it ends. Default 16.
	InFlightPerCaller int `json:"inFlightPerCaller,omitempty"`
	// QueueTime is how long a request may wait for its turn; one whose turn would come later is turned
	// away at once. Default 10s.
	QueueTime setting.Duration `json:"queueTime,omitempty"`
	// QueueLength is how many requests may wait, a quarter of them from one namespace. One that arrives when as many are open already, wherever
	// on their way, is turned away. Default 10000.
	QueueLength int `json:"queueLength,omitempty"`
	// PerCallerPerMinute is how many certificates one caller may ask for in a minute. Default 600.
	PerCallerPerMinute int `json:"perCallerPerMinute,omitempty"`
	// InFlightPerNode is how many requests of one node's proxy, for whichever pods, may be on their way to the issuer at once;
	// further ones wait. Each identity that it asks for is a caller of its own beside that. Default 32; ztunnel sends 8.
	InFlightPerNode int `json:"inFlightPerNode,omitempty"`
	// PerNodePerMinute is how many certificates one node's proxy may ask for in a minute. Default 3000.
	PerNodePerMinute int `json:"perNodePerMinute,omitempty"`
	// PerNamespacePerMinute is how many the callers of one namespace may ask for together. Default
	// 30000.
	PerNamespacePerMinute int `json:"perNamespacePerMinute,omitempty"`
	// Connections is how many connections may be open at once. Clients keep theirs. Default 20000.
	Connections int `json:"connections,omitempty"`
	// ConnectionsPerAddress is how many of them may come from one IP address. Default 500.
	ConnectionsPerAddress int `json:"connectionsPerAddress,omitempty"`
}

func (c AdmissionConfig) withDefaults() AdmissionConfig {
	c.InFlight = orDefault(c.InFlight, 64)
	c.InFlightPerCaller = orDefault(c.InFlightPerCaller, 16)
	c.QueueTime = setting.DurationOf(c.QueueTime.Or(10 * time.Second))
	c.QueueLength = orDefault(c.QueueLength, 10_000)
	c.PerCallerPerMinute = orDefault(c.PerCallerPerMinute, 600)
	c.InFlightPerNode = orDefault(c.InFlightPerNode, 32)
	c.PerNodePerMinute = orDefault(c.PerNodePerMinute, 3000)
	c.PerNamespacePerMinute = orDefault(c.PerNamespacePerMinute, 30_000)
	c.Connections = orDefault(c.Connections, 20_000)
	c.ConnectionsPerAddress = orDefault(c.ConnectionsPerAddress, 500)
	return c
}

// Validate reports what is wrong with c.
func (c Config) Validate(p setting.Problems) {
	for _, key := range c.Keys {
		if !slices.Contains(allKeys, key) {
			p.Addf("keys", "%q is no kind of key; they are %s", key, strings.Join(allKeys, ", "))
		}
	}
	p.Address("listen", c.Listen)
	c.Token.Validate(p.At("token"))
	c.RemoteClusters.Validate(p.At("remoteClusters"), c.ownNames())
	for n, issuer := range c.OIDC {
		issuer.validate(p.At(fmt.Sprintf("oidc[%d]", n)), c.OIDC[:n])
	}
	c.Nodes.Validate(p.At("nodes"))
	c.Certificates.validate(p.At("certificates"))
	c.Registration.validate(p.At("registration"))
	p.Duration("requestTimeout", c.RequestTimeout, time.Second, 5*time.Minute)
	p.Duration("connectionAge", c.ConnectionAge, time.Second, 30*24*time.Hour)

	c.Lifetime.validate(p.At("lifetime"), c.Lifetime.withDefaults())
	for n, rule := range c.Rules {
		rule.validate(p.At(fmt.Sprintf("rules[%d]", n)), c.Lifetime)
	}
	for n, alias := range c.TrustDomainAliases {
		if _, err := spiffeid.TrustDomainFromString(alias); err != nil || strings.Contains(alias, "/") {
			p.Addf(fmt.Sprintf("trustDomainAliases[%d]", n), "%q is not a trust domain; it must be a lower-case name such as cluster.local", alias)
		}
	}

	at := p.At("admission")
	at.Count("inFlight", c.Admission.InFlight, 1, 10_000)
	at.Count("inFlightPerCaller", c.Admission.InFlightPerCaller, 1, 10_000)
	at.Duration("queueTime", c.Admission.QueueTime, time.Millisecond, time.Minute)
	at.Count("queueLength", c.Admission.QueueLength, 1, 1_000_000)
	at.Count("perCallerPerMinute", c.Admission.PerCallerPerMinute, 1, 1_000_000)
	at.Count("inFlightPerNode", c.Admission.InFlightPerNode, 1, 10_000)
	at.Count("perNodePerMinute", c.Admission.PerNodePerMinute, 1, 1_000_000)
	at.Count("perNamespacePerMinute", c.Admission.PerNamespacePerMinute, 1, 10_000_000)
	at.Count("connections", c.Admission.Connections, 1, 1_000_000)
	at.Count("connectionsPerAddress", c.Admission.ConnectionsPerAddress, 1, 1_000_000)
}

func (c Config) requestTimeout() time.Duration { return c.RequestTimeout.Or(25 * time.Second) }

func (c Config) clusterID() string {
	if c.ClusterID == "" {
		return "Kubernetes"
	}
	return c.ClusterID
}

// ownNames are the names of our own cluster: its ID and aliases.
func (c Config) ownNames() []string { return append([]string{c.clusterID()}, c.ClusterAliases...) }

func (c Config) keys() []string {
	if len(c.Keys) == 0 {
		return []string{keyRSA, keyP256, keyP384}
	}
	return c.Keys
}
