package issuer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/signet-ca/signet/setting"
)

// BundleEndpointConfig is the SPIFFE bundle endpoint: it serves our trust domain's anchors over HTTPS
// (profile https_web) to trust domains that federate with ours, at the path /. Anybody who reaches it may
// read them. Those of federated trust domains are not served.
type BundleEndpointConfig struct {
	// Listen is its address, such as :8444. Optional: without it nothing is served.
	Listen string `json:"listen,omitempty"`
	// CertFile is a PEM file with the endpoint's certificate, with its intermediates behind it, and KeyFile one
	// with its key. They are read again when they change. Optional: without them Signet's own serving
	// certificate is used, which only those trust who trust the mesh already.
	CertFile string `json:"certFile,omitempty"`
	// KeyFile goes with CertFile. Optional.
	KeyFile string `json:"keyFile,omitempty"`
	// RefreshHint is how often others should ask again. A new root should be published three to five times
	// as long before it is used. Default 5m.
	RefreshHint setting.Duration `json:"refreshHint,omitempty"`

	// MinTLS is the lowest version of TLS, 1.2 at least.
	MinTLS uint16 `json:"-"`
}

// Validate reports what is wrong with c.
func (c BundleEndpointConfig) Validate(p setting.Problems) {
	p.Address("listen", c.Listen)
	if (c.CertFile == "") != (c.KeyFile == "") {
		p.Addf("", "certFile and keyFile must be set both or not at all")
	}
	p.Duration("refreshHint", c.RefreshHint, 10*time.Second, 24*time.Hour)
	if c.Listen == "" && c != (BundleEndpointConfig{}) {
		p.Addf("listen", "must be set where other settings of the endpoint are")
	}
}

// OwnAnchors are our own trust domain's anchors and a number that grows with each change of them and is
// the same for all replicas, 0 where there is no such number. It must be safe for concurrent use.
type OwnAnchors func() (Bundle, uint64)

// BundleEndpoint serves our trust domain's bundle. Safe for concurrent use.
type BundleEndpoint struct {
	cfg         BundleEndpointConfig
	own         OwnAnchors
	certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	log         *slog.Logger

	address atomic.Pointer[net.Addr]        // once it listens
	loaded  atomic.Pointer[tls.Certificate] // from CertFile
	trouble atomic.Pointer[error]           // why the files, as they are now, aren't what is loaded
}

// NewBundleEndpoint serves what own returns. Certificate is used where cfg names no files.
func NewBundleEndpoint(cfg BundleEndpointConfig, own OwnAnchors, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), log *slog.Logger) *BundleEndpoint {
	e := &BundleEndpoint{cfg: cfg, own: own, certificate: certificate, log: log}
	if cfg.CertFile != "" {
		e.certificate = e.fromFiles
	}
	return e
}

// NeedLeaderElection says that every replica serves.
func (e *BundleEndpoint) NeedLeaderElection() bool { return false }

// maxEndpointConns bounds the connections: bundles are fetched every few minutes, by few.
const maxEndpointConns = 256

// Start listens and serves until ctx ends, then lets requests under way finish for a moment.
func (e *BundleEndpoint) Start(ctx context.Context) error {
	if e.cfg.Listen == "" {
		<-ctx.Done()
		return nil
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", e.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for bundle requests: %w", err)
	}
	address := listener.Addr()
	e.log.Info("listening", "endpoint", "bundle", "address", address.String())
	e.load()
	e.address.Store(&address)

	server := &http.Server{
		Handler:           e,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(e.log.Handler(), slog.LevelDebug), // handshakes of strangers
		TLSConfig:         &tls.Config{MinVersion: max(tls.VersionTLS12, e.cfg.MinTLS), GetCertificate: e.certificate},
	}
	var group errgroup.Group
	serving, stop := context.WithCancel(ctx)
	group.Go(func() error {
		defer stop()
		if err := server.ServeTLS(netutil.LimitListener(listener, maxEndpointConns), "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve bundle on %s: %w", address, err)
		}
		return nil
	})
	group.Go(func() error {
		e.reload(serving)
		finishing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := server.Shutdown(finishing); err != nil {
			return server.Close()
		}
		return nil
	})
	return group.Wait()
}

// Address is where the endpoint listens, nil until it does.
func (e *BundleEndpoint) Address() net.Addr {
	if address := e.address.Load(); address != nil {
		return *address
	}
	return nil
}

// Ready says for people how things are. It is never an error, because a replica can sign without it.
func (e *BundleEndpoint) Ready(time.Time) (string, error) {
	address := e.Address()
	switch trouble := e.trouble.Load(); {
	case e.cfg.Listen == "":
		return "off", nil
	case address == nil:
		return "not listening yet", nil
	case trouble != nil && *trouble != nil:
		return fmt.Sprintf("%s; %v", address, *trouble), nil
	}
	return address.String(), nil
}

// ServeHTTP answers GET and HEAD of / with the bundle.
func (e *BundleEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Path != "/" {
		http.Error(w, "the bundle is at /", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are allowed", http.StatusMethodNotAllowed)
		return
	}
	bundle, number := e.own()
	if bundle.Empty() {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "the trust anchors are not known yet", http.StatusServiceUnavailable)
		return
	}
	body, err := encodeSPIFFE(bundle, number, e.cfg.RefreshHint.Or(5*time.Minute))
	if err != nil {
		http.Error(w, fmt.Sprintf("the trust anchors can't be written as a SPIFFE bundle: %v", err), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(body)))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// encodeSPIFFE writes the SPIFFE bundle.
func encodeSPIFFE(bundle Bundle, number uint64, refresh time.Duration) ([]byte, error) {
	hint := int64((refresh + time.Second - 1) / time.Second)
	wire := bundleJSON{RefreshHint: &hint}
	if number != 0 {
		wire.Sequence = &number
	}
	for _, anchor := range bundle.Anchors() {
		key, err := keyOf(anchor)
		if err != nil {
			return nil, fmt.Errorf("anchor %q (serial %s): %w", anchor.Subject, Serial(anchor.SerialNumber), err)
		}
		wire.Keys = append(wire.Keys, key)
	}
	return json.Marshal(wire)
}

// keyOf is the JSON Web Key of an anchor: RFC 7518 §6.2.1 and §6.3.1, RFC 8037 §2.
func keyOf(anchor *x509.Certificate) (keyJSON, error) {
	text := base64.RawURLEncoding.EncodeToString
	key := keyJSON{Use: x509Use, X5C: [][]byte{anchor.Raw}}
	switch public := anchor.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if public.Curve == elliptic.P224() {
			return keyJSON{}, errors.New("keys of curve P-224 have no place in a SPIFFE bundle")
		}
		point, err := public.Bytes() // 4, then x and y in full length
		if err != nil {
			return keyJSON{}, err
		}
		half := len(point) / 2
		key.Kty, key.Crv, key.X, key.Y = "EC", public.Params().Name, text(point[1:1+half]), text(point[1+half:])
	case *rsa.PublicKey:
		key.Kty, key.N, key.E = "RSA", text(public.N.Bytes()), text(big.NewInt(int64(public.E)).Bytes())
	case ed25519.PublicKey:
		key.Kty, key.Crv, key.X = "OKP", "Ed25519", text(public)
	default:
		return keyJSON{}, fmt.Errorf("keys of type %T have no place in a SPIFFE bundle", public)
	}
	return key, nil
}

// reload reads the files again and again until ctx ends.
func (e *BundleEndpoint) reload(ctx context.Context) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			e.load()
		}
	}
}

// load reads the certificate and its key. Where they can't be used, or don't belong together because they
// are being changed, the last good ones stay.
func (e *BundleEndpoint) load() {
	if e.cfg.CertFile == "" {
		return
	}
	certificate, err := readPair(e.cfg.CertFile, e.cfg.KeyFile)
	var before error
	if trouble := e.trouble.Load(); trouble != nil {
		before = *trouble
	}
	e.trouble.Store(&err)
	if err != nil {
		if !sameError(err, before) {
			e.log.Warn("certificate of the bundle endpoint not loaded", "err", err)
		}
		return
	}
	if current := e.loaded.Load(); current != nil && slices.EqualFunc(current.Certificate, certificate.Certificate, bytes.Equal) {
		return
	}
	e.loaded.Store(certificate)
	e.log.Info("certificate of the bundle endpoint loaded", "subject", certificate.Leaf.Subject.String(), "names", certificate.Leaf.DNSNames, "not_after", certificate.Leaf.NotAfter)
}

// readPair reads a certificate and its key.
func readPair(certFile, keyFile string) (*tls.Certificate, error) {
	certPEM, err := (&fileText{path: certFile, most: maxBundleBytes}).read()
	if err != nil {
		return nil, fmt.Errorf("read certificate of the bundle endpoint: %w", err)
	}
	keyPEM, err := (&fileText{path: keyFile, most: maxBundleBytes}).read()
	if err != nil {
		return nil, fmt.Errorf("read key of the bundle endpoint: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate %s and key %s of the bundle endpoint: %w", certFile, keyFile, err)
	}
	if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
		return nil, fmt.Errorf("certificate %s of the bundle endpoint: %w", certFile, err)
	}
	return &pair, nil
}

// fromFiles is the certificate for a handshake.
func (e *BundleEndpoint) fromFiles(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if loaded := e.loaded.Load(); loaded != nil {
		return loaded, nil
	}
	return nil, errors.New("there is no certificate of the bundle endpoint yet")
}
