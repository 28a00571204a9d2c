package rotation

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
	"github.com/signet-ca/signet/signer"
)

// memoryCA is a CA in memory: a [Signer] that signs with an intermediate of its root.
type memoryCA struct {
	t            testing.TB
	root, middle *x509.Certificate
	key          *ecdsa.PrivateKey

	mu       sync.Mutex // guards the following
	gives    time.Duration
	fails    error
	hangs    bool // until the request's time is up
	requests []signer.Request
	asked    []time.Time
}

func newMemoryCA(t testing.TB) *memoryCA {
	t.Helper()
	ca := &memoryCA{t: t}
	rootKey := newKey(t)
	ca.root = ca.certify("root", rootKey, nil, rootKey)
	ca.key = newKey(t)
	ca.middle = ca.certify("middle", ca.key, ca.root, rootKey)
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

func (ca *memoryCA) certify(name string, key *ecdsa.PrivateKey, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	ca.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(10, 0, 0),
	}
	if parent == nil {
		parent = template
	}
	return ca.sign(template, parent, key.Public(), parentKey)
}

func (ca *memoryCA) sign(template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) *x509.Certificate {
	ca.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	require.NoError(ca.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(ca.t, err)
	return cert
}

func (ca *memoryCA) Sign(ctx context.Context, req signer.Request) (*signer.Chain, error) {
	ca.mu.Lock()
	gives, fails, hangs := ca.gives, ca.fails, ca.hangs
	ca.requests, ca.asked = append(ca.requests, req), append(ca.asked, time.Now())
	serial := int64(len(ca.requests))
	ca.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if fails != nil {
		return nil, fails
	}
	if gives == 0 {
		gives = req.Lifetime
	}
	now := time.Now().Truncate(time.Second)
	leaf := ca.sign(&x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: now, NotAfter: now.Add(gives), DNSNames: req.CSR.DNSNames, IPAddresses: req.CSR.IPAddresses,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca.middle, req.CSR.PublicKey, ca.key)
	return &signer.Chain{Leaf: leaf, Intermediates: []*x509.Certificate{ca.middle}, Anchor: ca.root, Anchors: ca.bundle()}, nil
}

func (ca *memoryCA) Trace(ctx context.Context, _ issuer.Ref, req signer.Request) (*signer.Chain, error) {
	return ca.Sign(ctx, req)
}

func (ca *memoryCA) bundle() issuer.Bundle {
	bundle, err := issuer.NewBundle(ca.root)
	require.NoError(ca.t, err)
	return bundle
}

// set changes how the CA answers from now on.
func (ca *memoryCA) set(fails error, hangs bool) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.fails, ca.hangs = fails, hangs
}

// tries is how often the CA was asked, and how far apart.
func (ca *memoryCA) tries() (n int, pauses []time.Duration) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	for i := 1; i < len(ca.asked); i++ {
		pauses = append(pauses, ca.asked[i].Sub(ca.asked[i-1]))
	}
	return len(ca.asked), pauses
}

// running is a Serving that runs in a bubble of synctest.
type running struct {
	*Serving
	t        testing.TB
	ca       *memoryCA
	registry *prometheus.Registry
	log      *lockedText
	stop     func()
}

// lockedText collects what is written by one goroutine and read by another.
type lockedText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func start(t testing.TB, cfg ServingConfig, known bool) *running {
	t.Helper()
	r := &running{t: t, ca: newMemoryCA(t), registry: prometheus.NewPedanticRegistry(), log: new(lockedText)}
	issuers := issuer.NewStore(issuer.Ref{Name: "mesh"})
	r.Serving = NewServing(cfg, "istio-system", r.ca, issuers, slog.New(slog.NewTextHandler(r.log, nil)), r.registry)
	if known {
		issuers.SetAnchors(r.ca.bundle())
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { assert.NoError(t, r.Start(ctx)) })
	r.stop = func() {
		cancel()
		group.Wait()
	}
	return r
}

func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// metrics are all values by name, and label where there is one.
func (r *running) values() map[string]float64 {
	r.t.Helper()
	families, err := r.registry.Gather()
	require.NoError(r.t, err)
	values := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetValue()
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

func (r *running) certificate() *tls.Certificate {
	r.t.Helper()
	certificate, err := r.GetCertificate(nil)
	require.NoError(r.t, err)
	return certificate
}

func TestR6_ServingRenewsForWeeks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		r := start(t, ServingConfig{}, true)
		synctest.Wait()
		first := r.certificate()
		assert.Equal(t, int64(1), first.Leaf.SerialNumber.Int64())

		pass(16*time.Hour - time.Second)
		assert.Same(t, first, r.certificate())
		pass(time.Second)
		second := r.certificate()
		assert.Equal(t, int64(2), second.Leaf.SerialNumber.Int64(), "renewed at two thirds of its life")
		assert.False(t, second.Leaf.PublicKey.(*ecdsa.PublicKey).Equal(first.Leaf.PublicKey), "with a key of its own")
		assert.Len(t, first.Certificate, 2, "what a handshake holds already doesn't change")

		for range 5 * 7 * 24 {
			pass(time.Hour)
			leaf := r.certificate().Leaf
			require.Contains(t, []State{Fresh, Due}, Decide(KindServing.Policy(), leaf.NotBefore, leaf.NotAfter, time.Now()))
			text, err := r.Ready(time.Now())
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(text, "fresh, valid until ") || strings.HasPrefix(text, "due, valid until "), text)
		}
		n, pauses := r.ca.tries()
		assert.Equal(t, 1+int(time.Since(began)/(16*time.Hour)), n, "one request each 16 hours, no more")
		for _, pause := range pauses {
			assert.InDelta(t, 16*time.Hour, pause, float64(time.Second))
		}
		assert.Equal(t, float64(n), r.values()["serving_certificate_renewals_total ok"])
		assert.Equal(t, float64(r.certificate().Leaf.NotAfter.Unix()), r.values()["serving_certificate_not_after_timestamp_seconds"])
		assert.Zero(t, r.values()["serving_certificate_overdue"])
		r.stop()
	})
}

// R3: the names, the usage and the intermediates of what is served; a client verifies it.
func TestR3_R4_ServingCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, ServingConfig{
			Service: "ca", ClusterDomain: "example.org", DNSNames: []string{"istiod.istio-system.svc", "ca.istio-system.svc"},
			IPAddresses: []string{"192.0.2.1", "2001:db8::1"}, Lifetime: setting.DurationOf(time.Hour), Key: "ECDSA-P384",
		}, true)
		synctest.Wait()
		certificate := r.certificate()
		require.Len(t, certificate.Certificate, 2, "the leaf and its intermediate, without the root")
		assert.Equal(t, r.ca.middle.Raw, certificate.Certificate[1])
		assert.ElementsMatch(t, []string{"ca.istio-system", "ca.istio-system.svc", "ca.istio-system.svc.example.org", "istiod.istio-system.svc"}, certificate.Leaf.DNSNames)
		pool := x509.NewCertPool()
		pool.AddCert(r.ca.middle)
		for _, host := range append(certificate.Leaf.DNSNames, "192.0.2.1", "2001:db8::1") {
			_, err := certificate.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: r.ca.bundle().Pool(), Intermediates: pool, CurrentTime: time.Now()})
			assert.NoError(t, err, host)
		}
		assert.True(t, certificate.PrivateKey.(*ecdsa.PrivateKey).PublicKey.Equal(certificate.Leaf.PublicKey))

		request := r.ca.requests[0]
		assert.NoError(t, request.CSR.CheckSignature())
		assert.Equal(t, elliptic.P384(), request.CSR.PublicKey.(*ecdsa.PublicKey).Curve)
		names, err := signer.NamesIn(request.CSR.Extensions)
		require.NoError(t, err)
		assert.True(t, names.Equal(request.Names))
		assert.True(t, request.CSR.Extensions[0].Critical, "RFC 5280 §4.2.1.6: the subject is empty")
		assert.Empty(t, request.CSR.Subject.Names)
		assert.Equal(t, signer.ServingUsages(), request.Usages)
		assert.Equal(t, time.Hour, request.Lifetime)
		assert.Equal(t, signer.ForServing, request.For)
		r.stop()
	})
}

func TestServingBacksOffAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, ServingConfig{}, true)
		synctest.Wait()
		first := r.certificate()
		why := errors.New("the issuer is away")
		r.ca.set(why, false)

		pass(16*time.Hour + 10*time.Minute)
		assert.Same(t, first, r.certificate(), "it is served as long as it is valid")
		_, pauses := r.ca.tries()
		require.Greater(t, len(pauses), 10)
		assert.Equal(t, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute}, pauses[1:9])
		text, err := r.Ready(time.Now())
		require.NoError(t, err, "what can't be renewed is ready while it is valid")
		assert.Equal(t, "due, valid until "+first.Leaf.NotAfter.UTC().Format(time.RFC3339)+"; can't be renewed: sign serving certificate: the issuer is away", text)
		assert.Zero(t, r.values()["serving_certificate_overdue"])
		assert.Equal(t, float64(len(pauses)), r.values()["serving_certificate_renewals_total failed"])
		assert.Contains(t, r.log.String(), "level=WARN")
		assert.Contains(t, r.log.String(), " left_seconds=28800 next_try_seconds=1\n")
		assert.NotContains(t, r.log.String(), "level=ERROR")

		pass(5 * time.Hour)
		text, err = r.Ready(time.Now())
		require.NoError(t, err)
		assert.Contains(t, text, "overdue, valid until ")
		assert.Equal(t, 1.0, r.values()["serving_certificate_overdue"])
		assert.Contains(t, r.log.String(), "level=ERROR", "somebody should look")

		pass(2*time.Hour + 51*time.Minute)
		_, err = r.Ready(time.Now())
		require.ErrorContains(t, err, "expired, valid until ")
		assert.ErrorContains(t, err, "can't be renewed: sign serving certificate: the issuer is away")
		assert.Equal(t, 1.0, r.values()["serving_certificate_overdue"])

		r.ca.set(nil, false)
		pass(time.Minute)
		second := r.certificate()
		assert.NotSame(t, first, second)
		text, err = r.Ready(time.Now())
		require.NoError(t, err)
		assert.Equal(t, "fresh, valid until "+second.Leaf.NotAfter.UTC().Format(time.RFC3339), text)
		assert.Zero(t, r.values()["serving_certificate_overdue"])

		// The next failure begins with a short pause again.
		r.ca.set(why, false)
		n, _ := r.ca.tries()
		pass(16*time.Hour + 5*time.Second)
		_, pauses = r.ca.tries()
		assert.Equal(t, []time.Duration{time.Second, 2 * time.Second}, pauses[n:n+2])
		r.stop()
	})
}

// An issuer that never answers holds up one try for so long, and no longer.
func TestServingBoundsEachTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, ServingConfig{}, true)
		synctest.Wait()
		r.ca.set(nil, true)
		pass(16*time.Hour + tryTimeout)
		text, err := r.Ready(time.Now())
		require.NoError(t, err)
		assert.Contains(t, text, "can't be renewed: sign serving certificate: context deadline exceeded")
		r.ca.set(nil, false)
		pass(time.Second)
		assert.Equal(t, int64(3), r.certificate().Leaf.SerialNumber.Int64())
		r.ca.set(nil, true)
		pass(17 * time.Hour)
		r.stop() // while a try is under way
	})
}

// Lifetimes that the issuer gives count, not those asked for.
func TestServingFollowsTheLifetimeGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, ServingConfig{Lifetime: setting.DurationOf(90 * 24 * time.Hour)}, false)
		r.ca.mu.Lock()
		r.ca.gives = time.Hour
		r.ca.mu.Unlock()
		r.issuers.SetAnchors(r.ca.bundle())
		pass(24 * time.Hour)
		n, _ := r.ca.tries()
		assert.InDelta(t, 36, n, 1)
		r.stop()
	})
}

func TestServingBeforeThereIsAny(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, ServingConfig{}, false)
		pass(time.Hour)
		n, _ := r.ca.tries()
		assert.Zero(t, n, "nothing is asked while no trust anchors are known")
		_, err := r.GetCertificate(nil)
		assert.EqualError(t, err, "there is no serving certificate yet")
		_, err = r.Ready(time.Now())
		assert.EqualError(t, err, "there is no serving certificate yet")
		assert.Equal(t, 1.0, r.values()["serving_certificate_overdue"])
		assert.Zero(t, r.values()["serving_certificate_not_after_timestamp_seconds"])

		r.ca.set(signer.ErrDenied, false)
		r.issuers.SetAnchors(r.ca.bundle())
		pass(10 * time.Second)
		_, err = r.Ready(time.Now())
		assert.ErrorIs(t, err, signer.ErrDenied, "the reason is shown")
		_, err = r.GetCertificate(nil)
		assert.Error(t, err)

		r.ca.set(nil, false)
		pass(10 * time.Second)
		r.certificate()
		r.stop()
	})
	synctest.Test(t, func(t *testing.T) {
		r := start(t, ServingConfig{}, false)
		synctest.Wait()
		r.stop() // before anchors are known
	})
}

// Handshakes while it is renewed get one certificate or the other, whole.
func TestR6_GetCertificateWhileRenewing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, ServingConfig{Lifetime: setting.DurationOf(10 * time.Second)}, true)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				for ctx.Err() == nil {
					certificate := r.certificate()
					key := certificate.PrivateKey.(*ecdsa.PrivateKey)
					assert.True(t, key.PublicKey.Equal(certificate.Leaf.PublicKey))
					assert.Equal(t, certificate.Leaf.Raw, certificate.Certificate[0])
					<-time.After(100 * time.Millisecond)
				}
			})
		}
		pass(time.Minute)
		cancel()
		group.Wait()
		n, _ := r.ca.tries()
		assert.Greater(t, n, 7)
		r.stop()
	})
}

func TestServingKeys(t *testing.T) {
	for _, kind := range []string{"", "ECDSA-P256", "ECDSA-P384", "RSA-2048"} {
		s := &Serving{cfg: ServingConfig{Key: kind}, names: ServingConfig{}.names("istio-system")}
		key, request, err := s.request()
		require.NoError(t, err)
		require.NoError(t, request.CSR.CheckSignature())
		switch k := key.(type) {
		case *rsa.PrivateKey:
			assert.Equal(t, "RSA-2048", kind)
			assert.Equal(t, 2048, k.N.BitLen())
		case *ecdsa.PrivateKey:
			assert.Equal(t, kind == "ECDSA-P384", k.Curve == elliptic.P384())
		}
		assert.ElementsMatch(t, []string{"signet.istio-system", "signet.istio-system.svc", "signet.istio-system.svc.cluster.local"}, request.CSR.DNSNames)
		assert.Equal(t, 24*time.Hour, request.Lifetime)
		assert.Equal(t, 10*365*24*time.Hour, request.MaxLifetime)
	}
}

func TestServingConfigValidate(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  ServingConfig
		want string // "" is right
	}{
		{"defaults", ServingConfig{}, ""},
		{"all", ServingConfig{Service: "ca", ClusterDomain: "example.org", DNSNames: []string{"a.b"}, IPAddresses: []string{"::1", "192.0.2.1"}, Lifetime: setting.DurationOf(time.Hour), Key: "RSA-4096"}, ""},
		{"service", ServingConfig{Service: "a.b"}, `serving.service: "a.b" is not the name of a Service`},
		{"domain", ServingConfig{ClusterDomain: "A"}, `serving.clusterDomain: "A" is not a DNS domain`},
		{"name", ServingConfig{DNSNames: []string{"ok", "*.x"}}, `serving.dnsNames: "*.x" is not a DNS name`},
		{"address", ServingConfig{IPAddresses: []string{"192.0.2"}}, `serving.ipAddresses: "192.0.2" is not an IP address`},
		{"lifetime", ServingConfig{Lifetime: setting.DurationOf(time.Second)}, "serving.lifetime: 1s is out of range; it must be between 10s and 87600h0m0s"},
		{"key", ServingConfig{Key: "RSA"}, `serving.key: "RSA" is no kind of key; they are ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072, RSA-4096`},
	} {
		p := setting.NewProblems()
		row.cfg.Validate(p.At("serving"))
		if row.want == "" {
			assert.NoError(t, p.Err(), row.name)
		} else {
			assert.EqualError(t, p.Err(), row.want, row.name)
		}
	}
}
