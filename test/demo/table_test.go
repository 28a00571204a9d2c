package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testRows are a workload with a certificate, one with names of all kinds that has expired, and one
// that has none yet.
func testRows() []row {
	leaf := func(serial int64, uri string) *x509.Certificate {
		u, _ := url.Parse(uri)
		begin := time.Date(2026, 2, 3, 4, 5, 6, 0, time.FixedZone("", 3600))
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial),
			URIs:         []*url.URL{u},
			NotBefore:    begin,
			NotAfter:     begin.Add(time.Minute),
			Issuer:       pkix.Name{CommonName: "istio-ca"},
		}
	}
	many := leaf(255, "spiffe://td/b")
	many.DNSNames, many.IPAddresses, many.EmailAddresses = []string{"b.svc"}, []net.IP{net.IPv4(10, 0, 0, 1)}, []string{"b@c"}
	return []row{
		{namespace: "shop", account: "cart", leaf: leaf(0x23456789abcdef0, "spiffe://td/a"), renewals: 12},
		{namespace: "b", account: "checkout", leaf: many, problem: "the certificate has expired"},
		{namespace: "istio-ingress", account: "gateway"},
	}
}

func TestTable(t *testing.T) {
	for _, test := range []struct {
		name  string
		width int
		want  string
	}{
		{"unbounded", 0, `
NAMESPACE       SERVICE ACCOUNT   SANS                               SERIAL             NOT BEFORE             NOT AFTER              ISSUER        RENEWALS
shop            cart              spiffe://td/a                      023456789abcdef0   2026-02-03T03:05:06Z   2026-02-03T03:06:06Z   CN=istio-ca   12
b               checkout          spiffe://td/b,b.svc,10.0.0.1,b@c   ff                 2026-02-03T03:05:06Z   2026-02-03T03:06:06Z   CN=istio-ca   0
istio-ingress   gateway           -                                  -                  -                      -                      -             0
b/checkout: the certificate has expired`},
		{"fits exactly", 128, `
NAMESPACE       SERVICE ACCOUNT   SANS                               SERIAL      NOT BEFORE   NOT AFTER   ISSUER        RENEWALS
shop            cart              spiffe://td/a                      02345678…   03:05:06Z    03:06:06Z   CN=istio-ca   12
b               checkout          spiffe://td/b,b.svc,10.0.0.1,b@c   ff          03:05:06Z    03:06:06Z   CN=istio-ca   0
istio-ingress   gateway           -                                  -           -            -           -             0
b/checkout: the certificate has expired`},
		{"without the issuer", 127, `
NAMESPACE       SERVICE ACCOUNT   SANS                               SERIAL      NOT BEFORE   NOT AFTER   RENEWALS
shop            cart              spiffe://td/a                      02345678…   03:05:06Z    03:06:06Z   12
b               checkout          spiffe://td/b,b.svc,10.0.0.1,b@c   ff          03:05:06Z    03:06:06Z   0
istio-ingress   gateway           -                                  -           -            -           0
b/checkout: the certificate has expired
(a terminal of 128 columns shows the rest)`},
		{"the least, however narrow", 10, `
NAMESPACE       SERVICE ACCOUNT   SERIAL      NOT BEFORE   NOT AFTER   RENEWALS
shop            cart              02345678…   03:05:06Z    03:06:06Z   12
b               checkout          ff          03:05:06Z    03:06:06Z   0
istio-ingress   gateway           -           -            -           0
b/checkout: the certificate has expired
(a terminal of 128 columns shows the rest)`},
	} {
		t.Run(test.name, func(t *testing.T) {
			assert.Equal(t, strings.TrimPrefix(test.want, "\n"), table(testRows(), test.width))
		})
	}
}

func TestSummaryCountsWhatIsVerified(t *testing.T) {
	m := &mesh{}
	assert.Equal(t, "demo: 0 of 7 workloads hold certificates, 0 renewed", m.summary())
	for _, r := range testRows() {
		m.workloads = append(m.workloads, &workload{row: r})
	}
	assert.Equal(t, "demo: 1 of 7 workloads hold certificates, 1 renewed", m.summary())
}

func TestClip(t *testing.T) {
	assert.Equal(t, "äöü", clip("äöü", 3))
	assert.Equal(t, "äö…", clip("äöüß", 3))
}

func TestScreenEndsWhenNobodyReads(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s := newScreen(brokenPipe{}, cancel)
	s.progress("hello")
	require.ErrorIs(t, context.Cause(ctx), net.ErrClosed)
}

func TestScreenWithoutTerminalIsNotDrawnOn(t *testing.T) {
	var out bytes.Buffer
	s := newScreen(&out, nil)
	assert.False(t, s.draw("block"))
	s.print("line")
	assert.Equal(t, "line\n", out.String())
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, net.ErrClosed }
