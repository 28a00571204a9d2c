// Package istioclient runs Istio's own client code in the calling process, where a test can see every
// step of it: the call alone ([Citadel]), the cache that renews in time ([Secrets]), and the server
// from which Envoy takes its certificate ([StartSDS]).
//
// What a pod runs is the agent as a process; package meshclient of the test module starts that one.
package istioclient

import (
	"errors"
	"fmt"
	"time"

	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/nodeagent/cache"
	"istio.io/istio/security/pkg/nodeagent/caclient/providers/citadel"
	pkiutil "istio.io/istio/security/pkg/pki/util"
)

// Config says whose certificate to ask for, and where. Address, RootsFile and, but for [Citadel],
// Namespace and ServiceAccount are required.
type Config struct {
	// Address is host:port. The client verifies the host part, except that for "localhost" it
	// verifies istiod.istio-system.svc (R4).
	Address string

	// RootsFile is the path of the PEM certificates the connection is verified against. It is read
	// when the client is made and after each call that failed (R5).
	RootsFile string

	// Token is sent as a bearer token. Optional.
	Token string

	// ClusterID is sent as the clusterid header, even if empty.
	ClusterID string

	// CertSigner is sent as metadata, even if empty.
	CertSigner string

	// Headers are sent with every call. Optional.
	Headers map[string]string

	// CertFile and KeyFile are a client certificate to send while it has not expired (R8). Optional.
	CertFile, KeyFile string

	// TrustDomain, Namespace and ServiceAccount are the identity to ask for.
	// Default of TrustDomain: cluster.local.
	TrustDomain, Namespace, ServiceAccount string

	// TTL is the lifetime asked for, in whole seconds. Renewal comes at half of what was granted,
	// give or take one hundredth. Default: 24 h.
	TTL time.Duration

	// RSA asks with an RSA-2048 key, Istio's default, instead of P-256, which is quicker.
	RSA bool
}

// fixedToken is Istio's view of where a token comes from.
type fixedToken string

// GetPlatformCredential is the token.
func (t fixedToken) GetPlatformCredential() (string, error) { return string(t), nil }

// GetIdentityProvider is empty, as for Kubernetes tokens.
func (t fixedToken) GetIdentityProvider() string { return "" }

// Stop has nothing to stop.
func (t fixedToken) Stop() {}

func (c Config) options() *security.Options {
	opts := &security.Options{
		CAEndpoint:                           c.Address,
		CAProviderName:                       "Citadel",
		TrustDomain:                          c.TrustDomain,
		WorkloadNamespace:                    c.Namespace,
		ServiceAccount:                       c.ServiceAccount,
		ClusterID:                            c.ClusterID,
		CertSigner:                           c.CertSigner,
		CAHeaders:                            c.Headers,
		SecretTTL:                            c.TTL,
		SecretRotationGracePeriodRatio:       0.5,
		SecretRotationGracePeriodRatioJitter: 0.01,
		WorkloadRSAKeySize:                   2048,
		CredFetcher:                          fixedToken(c.Token),
	}
	if opts.TrustDomain == "" {
		opts.TrustDomain = "cluster.local"
	}
	if opts.SecretTTL == 0 {
		opts.SecretTTL = 24 * time.Hour
	}
	if !c.RSA {
		opts.ECCSigAlg = string(pkiutil.EcdsaSigAlg)
		opts.ECCCurve = string(pkiutil.P256Curve)
	}
	return opts
}

// Citadel makes the client of Istio's agent. Its CSRSign blocks for as long as the server lets it,
// tries five times in all on Unavailable, ResourceExhausted, Aborted and Internal (R46; not on
// DeadlineExceeded and Canceled, although it lists them), and returns the elements of the answer.
// Close it when done. Calls on one client must not overlap: after a failure it replaces its
// connection without a lock.
func Citadel(config Config) (*citadel.CitadelClient, error) {
	client, err := citadel.NewCitadelClient(config.options(), &citadel.TLSOptions{
		RootCert: config.RootsFile,
		Cert:     config.CertFile,
		Key:      config.KeyFile,
	})
	if err != nil {
		return nil, fmt.Errorf("make client for %s: %w", config.Address, err)
	}
	return client, nil
}

// Secrets makes the cache of Istio's agent on top of [Citadel]. GenerateSecret with "default" asks
// for a certificate unless one is held, with "ROOTCA" it returns the anchors that came along; the
// handler that RegisterSecretHandler sets is told the name of what is due again. Close ends the
// client too. Safe for concurrent use.
func Secrets(config Config) (*cache.SecretManagerClient, error) {
	if config.Namespace == "" || config.ServiceAccount == "" {
		return nil, errors.New("make secret cache: namespace and service account are required")
	}
	client, err := Citadel(config)
	if err != nil {
		return nil, err
	}
	secrets, err := cache.NewSecretManagerClient(client, config.options())
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("make secret cache: %w", err)
	}
	return secrets, nil
}

// NewCSR makes a key and the request that Istio's agent sends for it, both PEM.
func NewCSR(config Config) (csrPEM, keyPEM []byte, err error) {
	opts := config.options()
	csrPEM, keyPEM, err = pkiutil.GenCSR(pkiutil.CertOptions{
		Host:       fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", opts.TrustDomain, opts.WorkloadNamespace, opts.ServiceAccount),
		RSAKeySize: opts.WorkloadRSAKeySize,
		ECSigAlg:   pkiutil.SupportedECSignatureAlgorithms(opts.ECCSigAlg),
		ECCCurve:   pkiutil.SupportedEllipticCurves(opts.ECCCurve),
	})
	if err != nil {
		return nil, nil, fmt.Errorf("make request: %w", err)
	}
	return csrPEM, keyPEM, nil
}
