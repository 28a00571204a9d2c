package probe

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
)

// patience is how long what must come is waited for; it only ever runs out when it doesn't come.
const patience = 3 * time.Minute

// authority is a CA.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{certificate, key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

const webID = "spiffe://cluster.local/ns/shop/sa/web"

// leaf is a certificate of an hour, half of which is over, with an identity as its name, but for what change makes of it.
func (a *authority) leaf(t testing.TB, id string, change ...func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-30 * time.Minute), NotAfter: time.Now().Add(30 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if id != "" {
		uri, err := url.Parse(id)
		require.NoError(t, err)
		template.URIs = []*url.URL{uri}
	}
	for _, f := range change {
		f(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// data is an Inventory that holds what it answers.
type data struct {
	services []api.Service
	records  []api.Certificate
	coverage api.Coverage
	err      error
}

func (d *data) Services(_ context.Context, q api.ServiceQuery) (*api.ServiceList, error) {
	return &api.ServiceList{Items: d.services}, d.err
}

func (d *data) Service(_ context.Context, namespace, name string) (*api.Service, error) {
	for i := range d.services {
		if d.services[i].Namespace == namespace && d.services[i].Name == name {
			return &d.services[i], nil
		}
	}
	return nil, api.ErrNotFound
}

func (d *data) Certificates(_ context.Context, q api.CertificateQuery) (*api.CertificateList, error) {
	list := &api.CertificateList{}
	for _, c := range d.records {
		if c.Serial == q.Serial && q.Standing == "any" {
			list.Items = append(list.Items, c)
		}
	}
	return list, d.err
}

func (d *data) Certificate(_ context.Context, sha256 string) (*api.Certificate, error) {
	for _, c := range d.records {
		if c.SHA256 == sha256 {
			return &c, nil
		}
	}
	return nil, errors.Join(d.err, map[bool]error{true: api.ErrNotFound}[d.err == nil])
}

func (d *data) Coverage(context.Context) (api.Coverage, error) { return d.coverage, nil }

// only may be seen.
type only string

func (only) All() bool                     { return false }
func (o only) Namespace(other string) bool { return string(o) == other }

// rig is a prober that reaches servers of this process at addresses of pods.
type rig struct {
	*Prober
	data     *data
	root     *authority
	registry *prometheus.Registry

	mu      sync.Mutex
	servers map[netip.AddrPort]net.Addr
}

var podIP = netip.MustParseAddr("10.1.2.3")

func newRig(t testing.TB, cfg Config) *rig {
	t.Helper()
	r := &rig{data: &data{coverage: whole()}, root: newAuthority(t, "mesh"), servers: make(map[netip.AddrPort]net.Addr), registry: prometheus.NewRegistry()}
	cfg.TrustDomain = spiffeid.RequireTrustDomainFromString("cluster.local")
	var err error
	r.Prober, err = New(cfg, Sources{
		Inventory: r.data, Records: r.data, Anchors: r.root.pool,
		Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			r.mu.Lock()
			server := r.servers[to]
			r.mu.Unlock()
			if server == nil {
				return nil, errors.New("nobody listens")
			}
			return dialer(ctx, netip.MustParseAddrPort(server.String()))
		},
	}, slog.New(slog.DiscardHandler), r.registry)
	require.NoError(t, err)
	r.timeout, r.wait, r.first = patience, patience, 50*time.Millisecond
	return r
}

// whole is a coverage without gaps.
func whole() api.Coverage {
	return api.Coverage{Since: time.Now().AddDate(0, -1, 0), Sources: []api.Source{{Name: "ledger", Up: true}}}
}

// serve answers each connection to a port of the pod, and closes it.
func (r *rig) serve(t testing.TB, port uint16, answer func(net.Conn)) {
	t.Helper()
	address := listen(t, answer)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.servers[netip.AddrPortFrom(podIP, port)] = address
}

// listen answers each connection, and closes it. All are closed when the test ends.
func listen(t testing.TB, answer func(net.Conn)) net.Addr {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var group sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			group.Go(func() {
				defer conn.Close()
				answer(conn)
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for _, conn := range open {
			conn.Close()
		}
		mu.Unlock()
		group.Wait()
	})
	return listener.Addr()
}

// overTLS is a server of TLS that answers nothing, and waits for the other side to leave.
func overTLS(config *tls.Config) func(net.Conn) {
	return func(conn net.Conn) {
		server := tls.Server(conn, config)
		if server.Handshake() == nil {
			_, _ = io.Copy(io.Discard, server)
		}
	}
}

// plainly says something and waits for the other side to leave.
func plainly(greeting string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.WriteString(conn, greeting)
		_, _ = io.Copy(io.Discard, conn)
	}
}

// peeked is a connection of which something has been read ahead.
type peeked struct {
	net.Conn
	ahead *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.ahead.Read(b) }

// single is a listener of one connection.
type single struct {
	conn net.Conn
	done chan struct{}
	gone bool
}

func (s *single) Accept() (net.Conn, error) {
	if s.gone {
		return nil, net.ErrClosed
	}
	s.gone = true
	return s.conn, nil
}

func (s *single) Close() error   { return nil }
func (s *single) Addr() net.Addr { return s.conn.LocalAddr() }

func (s *single) state(_ net.Conn, state http.ConnState) {
	if state == http.StateClosed {
		close(s.done)
	}
}

var quiet = log.New(io.Discard, "", 0)

func addrPort(port uint16) netip.AddrPort { return netip.AddrPortFrom(podIP, port) }

// recordOf is what is known of a leaf that was issued to the pod web-1.
func recordOf(leaf *tls.Certificate, change ...func(*api.Certificate)) api.Certificate {
	c := api.Certificate{
		SHA256: digestOf(leaf.Leaf), Serial: serialOf(leaf.Leaf), Identity: webID, Namespace: "shop", ServiceAccount: "web",
		Holder: api.Holder{Pod: "web-1", PodUID: "u1", Node: "n1"}, Standing: api.Live, State: api.Fresh, PEM: "-----BEGIN",
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// samples are the values of a metric with one label, by its value.
func samples(t testing.TB, registry *prometheus.Registry, metric string) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	values := make(map[string]float64)
	for _, family := range families {
		for _, sample := range family.GetMetric() {
			if family.GetName() == metric {
				values[sample.GetLabel()[0].GetValue()] = sample.GetGauge().GetValue() + sample.GetCounter().GetValue()
			}
		}
	}
	return values
}
