package issuer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/setting"
)

// FederatedConfig is another trust domain whose workloads the mesh trusts. The anchors go into every
// answer and every bundle beside our own (R56), because Istio's proxies know no others.
//
// They hold names and anchors apart: whoever can sign under a federated anchor can make a certificate
// for any identity, our own trust domain's included, and the proxies believe it. (SPIFFE Federation
// §4.2 forbids one bundle of several trust domains for this reason; Istio has nothing else.) Federate only
// with whom you trust that far. Exactly one of endpointURL and file must be set.
type FederatedConfig struct {
	// TrustDomain is the other one's name. Required.
	TrustDomain string `json:"trustDomain"`
	// EndpointURL is where it publishes its SPIFFE bundle, beginning with https://. The bundle is fetched
	// as often as its refresh hint says, but not more often than once a minute and at least once an hour;
	// every five minutes where it has no hint. At most three redirects are followed, to https:// only. Optional.
	EndpointURL string `json:"endpointURL,omitempty"`
	// Profile is how the endpoint is authenticated. Default https_web, by its host name, and the only one.
	Profile string `json:"profile,omitempty"`
	// CAFile is a PEM file with the CAs that the endpoint's certificate is verified with. It is read for
	// each fetch. Default: those of the system.
	CAFile string `json:"caFile,omitempty"`
	// File has the bundle instead, as PEM or as SPIFFE bundle JSON. A change takes effect within seconds. Optional.
	File string `json:"file,omitempty"`
}

// Validate reports what is wrong with c. Own is the mesh's trust domain.
func (c FederatedConfig) Validate(p setting.Problems, own spiffeid.TrustDomain) {
	switch td, err := spiffeid.TrustDomainFromString(c.TrustDomain); {
	case err != nil || td.Name() != c.TrustDomain:
		p.Addf("trustDomain", "%q is not a trust domain; it must be a lower-case name such as example.org", c.TrustDomain)
	case td == own:
		p.Addf("trustDomain", "%q is the mesh's own trust domain", c.TrustDomain)
	}
	if (c.EndpointURL == "") == (c.File == "") {
		p.Addf("", "exactly one of endpointURL and file must be set")
	}
	if c.EndpointURL != "" {
		if at, err := url.Parse(c.EndpointURL); err != nil || !validEndpoint(at) {
			p.Addf("endpointURL", "it must be a URL that begins with https:// and names a host but no user")
		}
	}
	if c.Profile != "" && c.Profile != "https_web" {
		p.Addf("profile", "%q is not a profile; it must be https_web", c.Profile)
	}
	if c.EndpointURL == "" && (c.Profile != "" || c.CAFile != "") {
		p.Addf("", "profile and caFile are for endpointURL, which is not set")
	}
}

// validEndpoint says whether at may be a bundle endpoint: SPIFFE Federation §5.2.1.1.
func validEndpoint(at *url.URL) bool {
	return at.Scheme == "https" && at.Hostname() != "" && at.User == nil
}

// NewFederatedSource is the source of a federated trust domain's anchors. Cfg must be valid.
func NewFederatedSource(cfg FederatedConfig, log *slog.Logger) (Source, error) {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("federate with %q: %w", cfg.TrustDomain, err)
	}
	if cfg.File != "" {
		parse := func(text []byte) (Bundle, error) { return parseFederated(td, text) }
		return &textSource{text: federatedFile{&fileText{path: cfg.File, most: maxSPIFFEBytes}, td}, parse: parse, log: log}, nil
	}
	s := &endpointSource{td: td, url: cfg.EndpointURL, caFile: cfg.CAFile, log: log}
	s.fetch = s.fetchOnce
	return s, nil
}

// federatedFile is a file that says whose it is.
type federatedFile struct {
	*fileText
	td spiffeid.TrustDomain
}

func (f federatedFile) String() string {
	return "trust domain " + f.td.Name() + ", " + f.fileText.String()
}

// maxSPIFFEBytes bounds a SPIFFE bundle: twice the certificates in it, and the keys beside them.
const maxSPIFFEBytes = 4 * maxBundleBytes

// parseFederated reads the bundle of td from PEM or from SPIFFE bundle JSON.
func parseFederated(td spiffeid.TrustDomain, text []byte) (Bundle, error) {
	for _, b := range text {
		switch b {
		case ' ', '\t', '\r', '\n':
			continue
		case '{':
			parsed, err := parseSPIFFE(td, text)
			return parsed.bundle, err
		}
		break
	}
	bundle, err := ParseBundle(text)
	if err != nil {
		return Bundle{}, err
	}
	return bundle, belongs(td, bundle)
}

// spiffeBundle is what is used of a SPIFFE bundle.
type spiffeBundle struct {
	bundle   Bundle
	refresh  time.Duration // the hint, zero for none
	sequence *uint64       // nil for none
}

// bundleJSON is a SPIFFE bundle, as far as it is about X.509: SPIFFE Trust Domain and Bundle §4.1.
type bundleJSON struct {
	Keys        []keyJSON `json:"keys"`
	Sequence    *uint64   `json:"spiffe_sequence,omitempty"`
	RefreshHint *int64    `json:"spiffe_refresh_hint,omitempty"` // in seconds
}

// keyJSON is a JSON Web Key, RFC 7517. Binary values are URL-safe base64 without padding, but X5C is
// not: RFC 7517 §4.7.
type keyJSON struct {
	Use string   `json:"use"`
	Kty string   `json:"kty"`
	Crv string   `json:"crv,omitempty"`
	X   string   `json:"x,omitempty"`
	Y   string   `json:"y,omitempty"`
	N   string   `json:"n,omitempty"`
	E   string   `json:"e,omitempty"`
	X5C [][]byte `json:"x5c,omitempty"`
}

// x509Use marks the keys of X.509 authorities; others, for JWTs, don't concern the mesh.
const x509Use = "x509-svid"

// parseSPIFFE reads the SPIFFE bundle of td. Only the certificates of X.509 authorities count, of which
// there must be one at least; what is unknown is passed over, as the specification demands.
func parseSPIFFE(td spiffeid.TrustDomain, text []byte) (spiffeBundle, error) {
	var wire bundleJSON
	if err := json.Unmarshal(text, &wire); err != nil {
		return spiffeBundle{}, fmt.Errorf("not a SPIFFE bundle: %w", err)
	}
	var anchors []*x509.Certificate
	size := 0
	for i, key := range wire.Keys {
		// SPIFFE Trust Domain and Bundle §4.2; X509-SVID §6.2: the first certificate counts.
		if known := key.Kty == "EC" || key.Kty == "RSA" || key.Kty == "OKP"; !known || key.Use != x509Use || len(key.X5C) == 0 {
			continue
		}
		anchor, err := x509.ParseCertificate(key.X5C[0])
		if err != nil {
			return spiffeBundle{}, fmt.Errorf("parse certificate of key %d of the SPIFFE bundle: %w", i+1, err)
		}
		anchors = append(anchors, anchor)
		size += len(anchor.Raw)
	}
	if len(anchors) == 0 {
		return spiffeBundle{}, errors.New("the SPIFFE bundle has no X.509 authority")
	}
	if size > maxBundleBytes/2 { // more, as PEM, would be too large for our own bundle
		return spiffeBundle{}, fmt.Errorf("the certificates of the SPIFFE bundle have %d bytes; at most %d are allowed", size, maxBundleBytes/2)
	}
	bundle, err := NewBundle(anchors...)
	if err != nil {
		return spiffeBundle{}, err
	}
	if err := belongs(td, bundle); err != nil {
		return spiffeBundle{}, err
	}
	d := spiffeBundle{bundle: bundle, sequence: wire.Sequence}
	if hint := wire.RefreshHint; hint != nil && *hint > 0 {
		d.refresh = time.Duration(min(*hint, int64(leastOften/time.Second))) * time.Second
	}
	return d, nil
}

// belongs refuses anchors that say they are of another trust domain than td, as those do that are SVIDs
// themselves (SPIFFE X509-SVID §3.2). Many say nothing.
func belongs(td spiffeid.TrustDomain, bundle Bundle) error {
	for _, anchor := range bundle.Anchors() {
		for _, name := range anchor.URIs {
			if name.Scheme != "spiffe" {
				continue
			}
			if id, err := spiffeid.FromURI(name); err != nil || !id.MemberOf(td) {
				return fmt.Errorf("certificate %q (serial %s) is of %q, not of trust domain %s", anchor.Subject, Serial(anchor.SerialNumber), name, td)
			}
		}
	}
	return nil
}

// How often an endpoint is asked.
const (
	mostOften    = time.Minute
	withoutHint  = 5 * time.Minute // SPIFFE Federation §4.1
	leastOften   = time.Hour
	fetchTimeout = 30 * time.Second
	maxRedirects = 3
)

// endpointSource is the source of the anchors at a bundle endpoint.
type endpointSource struct {
	td          spiffeid.TrustDomain
	url, caFile string
	log         *slog.Logger
	fetch       func(ctx context.Context) (spiffeBundle, error) // fetchOnce, but in tests of the times
}

func (s *endpointSource) String() string { return "trust domain " + s.td.Name() + " at " + s.url }

// Run asks the endpoint until ctx ends. In between, it leaves out what expires.
func (s *endpointSource) Run(ctx context.Context, update func(Answer)) {
	told := teller{source: s.String(), log: s.log, update: update}
	var last spiffeBundle
	failures := 0
	for {
		trying, cancel := context.WithTimeout(ctx, fetchTimeout)
		got, err := s.fetch(trying)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err == nil && got.sequence != nil && last.sequence != nil && *got.sequence < *last.sequence {
			// SPIFFE Federation §4.2: the number tells which of two is newer.
			err = fmt.Errorf("its bundle, number %d, is older than number %d, which is known", *got.sequence, *last.sequence)
		}
		if err != nil {
			failures++
			told.tell(Answer{Err: fmt.Errorf("read trust anchors: %s: %w", s, err)})
		} else {
			failures = 0
			last = got
		}
		pause := refreshIn(last.refresh)
		if last.bundle.Empty() {
			pause = min(pause, 10*time.Second<<min(failures-1, 16)) // 10s, 20s, 40s …
		}
		next := time.After(pause)
		for waiting := true; waiting; {
			if failures == 0 {
				told.tell(unexpired(s.String(), last.bundle, time.Now()))
			}
			select {
			case <-ctx.Done():
				return
			case <-next:
				waiting = false
			case <-time.After(lookEvery):
			}
		}
	}
}

// refreshIn is how long to wait for the next fetch, whether the last one succeeded or not: SPIFFE
// Federation §6.2. A tenth is left to chance, so that replicas don't ask all at once.
func refreshIn(hint time.Duration) time.Duration {
	if hint == 0 {
		hint = withoutHint
	}
	pause := min(max(hint, mostOften), leastOften)
	return pause - rand.N(pause/10)
}

// fetchOnce asks the endpoint, and bounds what is read.
func (s *endpointSource) fetchOnce(ctx context.Context) (spiffeBundle, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.caFile != "" {
		text, err := (&fileText{path: s.caFile, most: maxBundleBytes}).read()
		if err != nil {
			return spiffeBundle{}, fmt.Errorf("read CAs of the endpoint: %w", err)
		}
		cas, err := ParseCertificates(withoutComments(text))
		if err != nil {
			return spiffeBundle{}, fmt.Errorf("read CAs of the endpoint: file %s: %w", s.caFile, err)
		}
		config.RootCAs = x509.NewCertPool()
		for _, ca := range cas {
			config.RootCAs.AddCert(ca)
		}
	}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        config,
		DisableKeepAlives:      true, // it is minutes until the next
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport,
		// SPIFFE Federation §5.2.1.4: each must be a valid endpoint, and is authenticated like the first.
		CheckRedirect: func(to *http.Request, via []*http.Request) error {
			if !validEndpoint(to.URL) {
				return errors.New("it redirects to what is no https:// URL")
			}
			if len(via) > maxRedirects {
				return fmt.Errorf("it redirects more than %d times", maxRedirects)
			}
			return nil
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, http.NoBody)
	if err != nil {
		return spiffeBundle{}, err
	}
	if !validEndpoint(request.URL) {
		return spiffeBundle{}, errors.New("only https:// is allowed")
	}
	response, err := client.Do(request)
	if err != nil {
		return spiffeBundle{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return spiffeBundle{}, fmt.Errorf("the endpoint answered %s", response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxSPIFFEBytes+1))
	if err != nil {
		return spiffeBundle{}, fmt.Errorf("read answer of the endpoint: %w", err)
	}
	if len(text) > maxSPIFFEBytes {
		return spiffeBundle{}, fmt.Errorf("the answer of the endpoint has more than the %d bytes that are allowed", maxSPIFFEBytes)
	}
	return parseSPIFFE(s.td, text)
}
