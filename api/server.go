package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/setting"
)

// Config is the inspection API: JSON over HTTPS, described at /openapi.json and, for people, at /docs. Who may see a
// namespace is asked of the API server, in API group signet.dev.
type Config struct {
	// Disabled leaves it out, and the rights to look at namespaces, services and pods with it; issuances are recorded all
	// the same. Default false.
	Disabled bool `json:"disabled,omitempty"`
	// Listen is its address. Default :8443.
	Listen string `json:"listen,omitempty"`
	// Audiences of which a token must have at least one. Default signet.dev.
	Audiences []string `json:"audiences,omitempty"`
	// RefuseAPIServerTokens refuses tokens that are meant for the API server, such as those of kubeconfig files.
	// Default false: they are accepted beside those with one of the audiences.
	RefuseAPIServerTokens bool `json:"refuseAPIServerTokens,omitempty"`
	// CacheTime is how long the API server isn't asked again about a token that it accepted, or about a right of a
	// caller: a token or a right that is taken away is good that much longer. Default 10s, at most 60s. In which of
	// many namespaces a caller has a right is kept for ten times as long as the answer took, if that is more, but
	// not over a minute.
	CacheTime setting.Duration `json:"cacheTime,omitempty"`
	// ReviewTimeout bounds one question to the API server. Default 5s.
	ReviewTimeout setting.Duration `json:"reviewTimeout,omitempty"`
	// InFlight is how many requests are answered at once, watches aside; one caller gets a quarter of them. More are
	// refused. Default 32.
	InFlight int `json:"inFlight,omitempty"`
	// Watches is how many watches there may be at once; one caller gets a quarter of them. Default 16.
	Watches int `json:"watches,omitempty"`

	// MinTLS is the lowest version of TLS, 1.2 at least.
	MinTLS uint16 `json:"-"`
}

// Validate reports what is wrong with c.
func (c Config) Validate(p setting.Problems) {
	p.Address("listen", c.Listen)
	for _, audience := range c.Audiences {
		if audience == "" {
			p.Addf("audiences", "an audience is empty; leave the list out for %s", defaultAudience)
		}
	}
	p.Duration("cacheTime", c.CacheTime, time.Millisecond, time.Minute)
	p.Duration("reviewTimeout", c.ReviewTimeout, 100*time.Millisecond, 30*time.Second)
	p.Count("inFlight", c.InFlight, 1, 1000)
	p.Count("watches", c.Watches, 1, 1000)
}

const defaultAudience = "signet.dev"

func (c Config) withDefaults() Config {
	if c.Listen == "" {
		c.Listen = ":8443"
	}
	if len(c.Audiences) == 0 {
		c.Audiences = []string{defaultAudience}
	}
	c.CacheTime = setting.DurationOf(c.CacheTime.Or(10 * time.Second))
	c.ReviewTimeout = setting.DurationOf(c.ReviewTimeout.Or(5 * time.Second))
	if c.InFlight == 0 {
		c.InFlight = 32
	}
	if c.Watches == 0 {
		c.Watches = 16
	}
	return c
}

// Cluster is the Kubernetes cluster whose users are the callers.
type Cluster struct {
	// Config leads to the API server, for TokenReviews and SubjectAccessReviews.
	Config *rest.Config
	// Namespaces are those that exist now. It must be safe for concurrent use, and fast.
	Namespaces func() []string
}

// Server is the HTTPS endpoint. Safe for concurrent use.
type Server struct {
	cfg         Config
	views       Views
	certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	log         *slog.Logger
	metrics     *metrics
	authn       *authenticator
	authz       *authoriser
	handlers    *http.ServeMux
	openapi     []byte
	prober      Prober      // nil where there are no probes
	auditor     Auditor     // nil where nobody is told who reads what
	busy        func() bool // nil where nothing else needs the processors

	inFlight, watches *slots
	working           chan struct{} // holds one for each request that uses the CPU
	states            *watchStates
	pace              pace
	complaints        *rate.Limiter // of lines in the log, which an outage would fill
	stopping          chan struct{} // closed when Start is told to stop

	address atomic.Pointer[net.Addr] // once it listens
}

// NewServer answers from views. Certificate is the server's own, for each handshake. Mesh says which client
// certificates of the mesh are good; the zero value lets in none.
func NewServer(cfg Config, views Views, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), cluster Cluster, mesh Mesh, log *slog.Logger, reg prometheus.Registerer) (*Server, error) {
	cfg = cfg.withDefaults()
	reviews, err := newReviews(cluster.Config, cfg.ReviewTimeout.Or(0))
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:         cfg,
		views:       views,
		certificate: certificate,
		log:         log,
		inFlight:    newSlots(cfg.InFlight),
		watches:     newSlots(cfg.Watches),
		working:     make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		states:      newWatchStates(cfg.Watches),
		pace:        defaultPace,
		complaints:  rate.NewLimiter(1, 10),
		stopping:    make(chan struct{}),
	}
	s.metrics = newMetrics(prometheus.WrapRegistererWithPrefix("api_", reg), s)
	reviews.count = s.metrics.reviews
	s.authn = newAuthenticator(cfg, reviews, mesh)
	s.authz = newAuthoriser(cfg, reviews, cluster.Namespaces)
	s.handlers = http.NewServeMux()
	if err := s.route(); err != nil {
		return nil, err
	}
	return s, nil
}

// SetBusy makes the server leave most of the processors to something else while busy says so. To be called before Start.
func (s *Server) SetBusy(busy func() bool) { s.busy = busy }

// Mount adds a handler for anybody, who need not say who they are, such as that of the page. The pattern is one of
// [http.ServeMux], such as "GET /ui/". To be called before Start.
func (s *Server) Mount(pattern string, handler http.Handler) { s.handlers.Handle(pattern, handler) }

// NeedLeaderElection says that every replica answers.
func (s *Server) NeedLeaderElection() bool { return false }

// maxConns bounds the connections; each may have as many requests under way as maxStreams.
const (
	maxConns   = 512
	maxStreams = 32
)

// Start listens and answers until ctx ends, then tells the watches why they end and lets requests under way finish for
// a moment. It can be called once.
func (s *Server) Start(ctx context.Context) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for inspection: %w", err)
	}
	address := listener.Addr()
	s.log.Info("listening", "endpoint", "api", "address", address.String())
	s.address.Store(&address)

	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // handshakes of strangers
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		TLSConfig: &tls.Config{
			MinVersion:     max(tls.VersionTLS12, s.cfg.MinTLS),
			GetCertificate: s.certificate,
			ClientAuth:     tls.RequestClientCert, // judged with each request, against what is in force then
			NextProtos:     []string{"h2", "http/1.1"},
		},
	}
	var group errgroup.Group
	serving, stop := context.WithCancel(ctx)
	group.Go(func() error {
		defer stop()
		if err := server.ServeTLS(netutil.LimitListener(listener, maxConns), "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve inspection on %s: %w", address, err)
		}
		return nil
	})
	group.Go(func() error {
		<-serving.Done()
		close(s.stopping)
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
func (s *Server) Address() net.Addr {
	if address := s.address.Load(); address != nil {
		return *address
	}
	return nil
}

// Ready says for people how things are. It is never an error, because a replica can sign without it.
func (s *Server) Ready(time.Time) (string, error) {
	address := s.Address()
	if address == nil {
		return "not listening yet", nil
	}
	return fmt.Sprintf("%s, %d requests under way, %d watches open", address, s.inFlight.used(), s.watches.used()), nil
}
