package rotation

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/signer"
)

// ServingConfig is Signet's own certificate, which its clients verify.
type ServingConfig struct {
	// Service is the name of the Service in front of Signet. Default signet. The certificate names
	// <service>.<namespace>.svc, <service>.<namespace>.svc.<clusterDomain> and <service>.<namespace>.
	Service string `json:"service,omitempty"`
	// ClusterDomain is the DNS domain of the cluster. Default cluster.local.
	ClusterDomain string `json:"clusterDomain,omitempty"`
	// DNSNames are further names, such as istiod.istio-system.svc, which Istio's agent verifies when it
	// is told to connect to localhost (R4). Optional.
	DNSNames []string `json:"dnsNames,omitempty"`
	// IPAddresses are further addresses, for clients that connect to one. Optional.
	IPAddresses []string `json:"ipAddresses,omitempty"`
	// Lifetime that is asked for. Default 24h. The certificate is renewed at two thirds of what the
	// issuer gives.
	Lifetime setting.Duration `json:"lifetime,omitempty"`
	// Key is the kind of key: ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072 or RSA-4096. Default
	// ECDSA-P256. Each certificate gets a key of its own, which never leaves the process.
	Key string `json:"key,omitempty"`
	// MinTLSVersion is the lowest version of TLS that all endpoints speak, 1.2 or 1.3. Agents with
	// COMPLIANCE_POLICY=fips-140-2 speak 1.2 only. Default 1.2.
	MinTLSVersion string `json:"minTLSVersion,omitempty"`
}

// MinTLS is the number of the lowest version, as crypto/tls has it.
func (c ServingConfig) MinTLS() uint16 { return tlsVersions[cmp.Or(c.MinTLSVersion, "1.2")] }

var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

var servingKeys = map[string]func() (crypto.Signer, error){
	"ECDSA-P256": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
	"ECDSA-P384": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
	"RSA-2048":   func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
	"RSA-3072":   func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) },
	"RSA-4096":   func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 4096) },
}

// Validate reports what is wrong with c.
func (c ServingConfig) Validate(p setting.Problems) {
	if c.Service != "" && len(validation.IsDNS1035Label(c.Service)) != 0 {
		p.Addf("service", "%q is not the name of a Service", c.Service)
	}
	if c.ClusterDomain != "" && len(validation.IsDNS1123Subdomain(c.ClusterDomain)) != 0 {
		p.Addf("clusterDomain", "%q is not a DNS domain", c.ClusterDomain)
	}
	for _, name := range c.DNSNames {
		if len(validation.IsDNS1123Subdomain(name)) != 0 {
			p.Addf("dnsNames", "%q is not a DNS name", name)
		}
	}
	for _, address := range c.IPAddresses {
		if net.ParseIP(address) == nil {
			p.Addf("ipAddresses", "%q is not an IP address", address)
		}
	}
	p.Duration("lifetime", c.Lifetime, 10*time.Second, 10*365*24*time.Hour)
	if c.MinTLS() == 0 {
		p.Addf("minTLSVersion", "%q is no version of TLS to begin with; it must be 1.2 or 1.3, in quotes", c.MinTLSVersion)
	}
	if _, ok := servingKeys[c.key()]; !ok {
		p.Addf("key", "%q is no kind of key; they are ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072, RSA-4096", c.Key)
	}
}

func (c ServingConfig) key() string {
	if c.Key == "" {
		return "ECDSA-P256"
	}
	return c.Key
}

// names are the DNS names and addresses of the certificate, without repetitions.
func (c ServingConfig) names(namespace string) signer.Names {
	service, domain := c.Service, c.ClusterDomain
	if service == "" {
		service = "signet"
	}
	if domain == "" {
		domain = "cluster.local"
	}
	host := service + "." + namespace
	dnsNames := append([]string{host + ".svc", host + ".svc." + domain, host}, c.DNSNames...)
	slices.Sort(dnsNames)
	var addresses [][]byte
	for _, text := range c.IPAddresses {
		ip := net.ParseIP(text)
		if v4 := ip.To4(); v4 != nil {
			ip = v4
		}
		addresses = append(addresses, ip)
	}
	return signer.ServerNames(slices.Compact(dnsNames), addresses)
}

// Signer turns a request into a verified chain; see [signer.Signer].
type Signer interface {
	Sign(ctx context.Context, req signer.Request) (*signer.Chain, error)
	Trace(ctx context.Context, ref issuer.Ref, req signer.Request) (*signer.Chain, error)
}

// Serving keeps Signet's own certificate renewed. Safe for concurrent use.
type Serving struct {
	cfg     ServingConfig
	names   signer.Names
	signer  Signer
	issuers *issuer.Store
	log     *slog.Logger
	metrics *servingMetrics

	current  atomic.Pointer[tls.Certificate] // its Leaf is set
	chain    atomic.Pointer[signer.Chain]    // that current was made of
	notice   issuer.Notice                   // that current has changed
	trouble  atomic.Pointer[error]           // why the last try failed, nil after a good one
	failures int                             // in a row; used by Start only
}

// NewServing makes the keeper of the certificate of a Signet in namespace.
func NewServing(cfg ServingConfig, namespace string, sign Signer, issuers *issuer.Store, log *slog.Logger, reg prometheus.Registerer) *Serving {
	s := &Serving{cfg: cfg, names: cfg.names(namespace), signer: sign, issuers: issuers, log: log}
	s.metrics = newServingMetrics(reg, s)
	return s
}

// NeedLeaderElection says that every replica has a certificate of its own.
func (s *Serving) NeedLeaderElection() bool { return false }

// tryTimeout bounds one try of a renewal.
const tryTimeout = 30 * time.Second

// Start gets the first certificate once trust anchors are known, and renews it until ctx ends.
func (s *Serving) Start(ctx context.Context) error {
	if err := s.issuers.WaitKnown(ctx); err != nil {
		return nil // stopped before there was anything to do
	}
	for {
		snapshot, replaced := s.issuers.Watch()
		wanted := snapshot.ServingRef()
		timer := time.NewTimer(s.renew(ctx))
		for waiting := ctx.Err() == nil; waiting; {
			select {
			case <-ctx.Done():
				waiting = false
			case <-timer.C:
				waiting = false
			case <-replaced:
				snapshot, replaced = s.issuers.Watch()
				waiting = !s.mustFollow(wanted, snapshot)
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// mustFollow says whether the certificate has to be replaced because of a snapshot: another issuer than wanted signs it
// from now on, or its anchor has left.
func (s *Serving) mustFollow(wanted issuer.Ref, snapshot *issuer.Snapshot) bool {
	chain := s.chain.Load()
	return snapshot.ServingRef() != wanted || chain != nil && !snapshot.Anchors.Contains(chain.Anchor)
}

// Changed is closed when another certificate is in force; see [issuer.Notice.Changed].
func (s *Serving) Changed() <-chan struct{} { return s.notice.Changed() }

// Chain is the certificate's chain; nil while there is none.
func (s *Serving) Chain() *signer.Chain { return s.chain.Load() }

// anchorID is the ID of the anchor that the certificate leads to; empty while there is none.
func (s *Serving) anchorID() string {
	if chain := s.chain.Load(); chain != nil {
		return issuer.AnchorID(chain.Anchor)
	}
	return ""
}

// renew tries once, and returns how long to wait for the next try.
func (s *Serving) renew(ctx context.Context) time.Duration {
	trying, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	certificate, chain, err := s.obtain(trying)
	now := time.Now()
	if err == nil {
		leaf := certificate.Leaf
		s.failures = 0
		s.chain.Store(chain)
		s.current.Store(certificate)
		s.trouble.Store(nil)
		s.notice.Tell()
		s.metrics.renewals.WithLabelValues("ok").Inc()
		s.log.Info("serving certificate obtained", "serial", issuer.Serial(leaf.SerialNumber), "names", s.names.String(), "not_after", leaf.NotAfter)
		return renewIn(leaf.NotBefore, leaf.NotAfter, now)
	}
	if ctx.Err() != nil {
		return 0
	}
	s.failures++
	s.trouble.Store(&err)
	s.metrics.renewals.WithLabelValues("failed").Inc()
	var left time.Duration
	level := slog.LevelWarn
	if current := s.current.Load(); current != nil {
		left = current.Leaf.NotAfter.Sub(now)
		if Decide(KindServing.Policy(), current.Leaf.NotBefore, current.Leaf.NotAfter, now) != Due {
			level = slog.LevelError
		}
	}
	pause := retryIn(s.failures, left)
	s.log.Log(ctx, level, "serving certificate not obtained", "err", err, "left_seconds", left.Seconds(), "next_try_seconds", pause.Seconds())
	return pause
}

// obtain makes a key and has it certified.
func (s *Serving) obtain(ctx context.Context) (*tls.Certificate, *signer.Chain, error) {
	key, request, err := s.request()
	if err != nil {
		return nil, nil, err
	}
	chain, err := s.sign(ctx, request)
	if err != nil {
		return nil, nil, fmt.Errorf("sign serving certificate: %w", err)
	}
	certificate := &tls.Certificate{Certificate: [][]byte{chain.Leaf.Raw}, PrivateKey: key, Leaf: chain.Leaf}
	for _, intermediate := range chain.Intermediates {
		certificate.Certificate = append(certificate.Certificate, intermediate.Raw) // R3
	}
	return certificate, chain, nil
}

// sign asks the issuer of serving certificates. Where it is urgent and that one fails, the issuer of leaves will do.
func (s *Serving) sign(ctx context.Context, request signer.Request) (*signer.Chain, error) {
	snapshot := s.issuers.Current()
	if snapshot.Ref == snapshot.ServingRef() || !s.urgent() {
		return s.signer.Sign(ctx, request)
	}
	asking, cancel := context.WithTimeout(ctx, tryTimeout/2)
	defer cancel()
	chain, err := s.signer.Sign(asking, request)
	if err == nil {
		return chain, nil
	}
	s.log.Warn("serving certificate not signed by its issuer; that of leaves is asked", "issuer", snapshot.ServingRef().String(), "err", err)
	request.Issuer = snapshot.Ref
	return s.signer.Sign(ctx, request)
}

// urgent says that there is no certificate, or one that should have been renewed before.
func (s *Serving) urgent() bool {
	current := s.current.Load()
	return current == nil || slices.Contains([]State{Overdue, Expired}, Decide(KindServing.Policy(), current.Leaf.NotBefore, current.Leaf.NotAfter, time.Now()))
}

// request is a new key with the request for its certificate.
func (s *Serving) request() (crypto.Signer, signer.Request, error) {
	key, err := servingKeys[s.cfg.key()]()
	if err != nil {
		return nil, signer.Request{}, fmt.Errorf("make serving key: %w", err)
	}
	// RFC 5280 §4.2.1.6: critical, because the subject is empty.
	extension, err := s.names.Extension(true)
	if err != nil {
		return nil, signer.Request{}, fmt.Errorf("encode serving names: %w", err)
	}
	csrDER, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{extension}}, key)
	if err != nil {
		return nil, signer.Request{}, fmt.Errorf("make serving CSR: %w", err)
	}
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, signer.Request{}, fmt.Errorf("make serving CSR: %w", err)
	}
	lifetime := s.cfg.Lifetime.Or(24 * time.Hour)
	return key, signer.Request{
		CSR:      csr,
		Names:    s.names,
		Usages:   signer.ServingUsages(),
		Lifetime: lifetime,
		// Some issuers give everybody the same lifetime; for our own certificate any will do.
		MaxLifetime: max(lifetime, 10*365*24*time.Hour),
		For:         signer.ForServing,
	}, nil
}

// GetCertificate is the certificate for a TLS handshake that begins now.
func (s *Serving) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	current := s.current.Load()
	if current == nil {
		return nil, errors.New("there is no serving certificate yet")
	}
	return current, nil
}

// Ready says whether the certificate is valid at now. The text is for people, and says when it can't
// be renewed long before it expires.
func (s *Serving) Ready(now time.Time) (string, error) {
	current, trouble := s.current.Load(), s.trouble.Load()
	if current == nil {
		if trouble != nil {
			return "", *trouble
		}
		return "", errors.New("there is no serving certificate yet")
	}
	leaf := current.Leaf
	state := Decide(KindServing.Policy(), leaf.NotBefore, leaf.NotAfter, now)
	text := fmt.Sprintf("%s, valid until %s", state, leaf.NotAfter.UTC().Format(time.RFC3339))
	if trouble != nil {
		text += fmt.Sprintf("; can't be renewed: %v", *trouble)
	}
	if state == Expired {
		return "", errors.New(text)
	}
	return text, nil
}
