package issuer

import (
	"context"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

func TestCRLConfigValidate(t *testing.T) {
	key := &ObjectKey{Name: "crl"}
	for _, row := range []struct {
		name string
		cfg  CRLConfig
		want string // "" is right
	}{
		{"none", CRLConfig{}, ""},
		{"file", CRLConfig{File: "crl.pem"}, ""},
		{"secret", CRLConfig{Secret: key}, ""},
		{"config map", CRLConfig{ConfigMap: key}, ""},
		{"two", CRLConfig{File: "crl.pem", Secret: key}, "crl: at most one of file, secret and configMap may be set; 2 are"},
		{"nameless secret", CRLConfig{Secret: &ObjectKey{}}, "crl.secret.name: must be set to the name of a Secret in Signet's namespace"},
		{"nameless config map", CRLConfig{ConfigMap: &ObjectKey{}}, "crl.configMap.name: must be set to the name of a ConfigMap in Signet's namespace"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.cfg.Validate(p.At("crl"))
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.EqualError(t, p.Err(), row.want)
			}
		})
	}
	assert.False(t, CRLConfig{}.Enabled())
	assert.True(t, CRLConfig{ConfigMap: key}.Enabled())
}

// gauges are the values of reg, by name.
func gauges(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	values := make(map[string]float64)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			values[family.GetName()] = metric.GetGauge().GetValue()
		}
	}
	return values
}

// told says whether a channel is closed.
func told(replaced <-chan struct{}) bool {
	select {
	case <-replaced:
		return true
	default:
		return false
	}
}

func readiness(t *testing.T, crls *CRLs) string {
	t.Helper()
	text, err := crls.Ready(time.Now())
	require.NoError(t, err, "a replica can sign without CRLs")
	return text
}

// Proxies are given CRLs of every CA, all of them current, or none; what was revoked stays revoked.
func TestR57_CRLsAreCompleteOrWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		root := newAuthority(t, "root", now, nil)
		below := root.intermediate(t, "below")
		var cas atomic.Pointer[[]*x509.Certificate]
		set := func(all ...*authority) { list := certs(all...); cas.Store(&list) }
		set()
		path := filepath.Join(t.TempDir(), "crl.pem")
		log := &strings.Builder{}
		reg := prometheus.NewRegistry()
		crls, err := NewCRLs(CRLConfig{File: path}, nil, "", func() []*x509.Certificate {
			list := slices.Clone(*cas.Load())
			slices.Reverse(list)
			cas.Store(&list) // in another order each time
			return list
		}, slog.New(slog.NewTextHandler(log, nil)), reg)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- crls.Start(ctx) }()
		defer func() { cancel(); require.NoError(t, <-done) }()
		settle := func() { time.Sleep(2*lookEvery + time.Millisecond); synctest.Wait() }
		revoked := below.sign(t, 7, nil).cert

		settle()
		assert.Contains(t, readiness(t, crls), "none yet, so proxies check nothing; read CRLs: ")
		publishes := func(want bool) {
			t.Helper()
			text, decided := crls.Publish()
			assert.True(t, decided)
			assert.Equal(t, want, text != "")
		}
		_, decided := crls.Publish()
		assert.False(t, decided, "what has been published before stays for now")
		assert.Empty(t, crls.Current().PEM())

		// The CAs are not known yet; then they are, and nobody touches the file.
		write(t, path, crlPEM(root.crl(t, now, nil), below.crl(t, now, nil, 7)))
		settle()
		assert.Contains(t, readiness(t, crls), "the CAs of the mesh are not known yet")
		assert.Equal(t, 1.0, gauges(t, reg)["crl_source_refused"])
		before, replaced := crls.Watch()
		assert.Empty(t, before.PEM())
		set(root, below)
		settle()
		assert.True(t, told(replaced))
		publishes(true)
		good := crls.Current()
		assert.Len(t, good.Lists(), 2)
		assert.NotEmpty(t, good.PEM())
		assert.True(t, crls.Revoked(revoked))
		assert.Equal(t, "2, of every CA in force, the next due at 2000-01-01T01:00:00Z", readiness(t, crls))
		assert.Equal(t, map[string]float64{
			"crl_covered": 1, "crl_lists": 2, "crl_revoked_certificates": 1, "crl_source_refused": 0,
			"crl_next_update_timestamp_seconds": float64(now.Add(time.Hour).Unix()),
		}, gauges(t, reg))

		// Trouble with the source takes nothing away.
		_, replaced = crls.Watch()
		write(t, path, "junk")
		settle()
		assert.Same(t, good, crls.Current())
		assert.Contains(t, readiness(t, crls), "2, of every CA in force, the next due at 2000-01-01T01:00:00Z; read CRLs: file "+path+": PEM: text outside of blocks")
		require.NoError(t, os.Remove(path))
		settle()
		assert.Same(t, good, crls.Current())
		assert.Equal(t, 1.0, gauges(t, reg)["crl_covered"])
		assert.False(t, told(replaced), "of a change where there is none")

		// A CA without a CRL takes everything away at once, and gives it back when it goes.
		write(t, path, crlPEM(root.crl(t, now, nil), below.crl(t, now, nil, 7)))
		settle()
		second := newAuthority(t, "second", now, nil)
		_, replaced = crls.Watch()
		set(root, below, second)
		settle()
		assert.True(t, told(replaced))
		assert.Empty(t, crls.Current().PEM())
		publishes(false)
		assert.True(t, crls.Revoked(revoked))
		assert.Contains(t, readiness(t, crls), `withdrawn, so proxies check nothing; read CRLs: file `+path+`: there is no CRL of "CN=second" (serial 01)`)
		assert.Contains(t, log.String(), "level=ERROR msg=\"CRLs withdrawn: proxies check no revocation until there are new ones\"")
		assert.Zero(t, gauges(t, reg)["crl_covered"])
		assert.Equal(t, 1.0, gauges(t, reg)["crl_revoked_certificates"])
		set(root, below)
		settle()
		assert.NotEmpty(t, crls.Current().PEM())

		// The CRL of a CA comes before the CA, and leaves after it.
		write(t, path, crlPEM(root.crl(t, now, nil), below.crl(t, now, nil, 7), second.crl(t, now, nil)))
		settle()
		assert.Len(t, crls.Current().Lists(), 2)
		set(root, below, second)
		settle()
		assert.Len(t, crls.Current().Lists(), 3)
		set(second)
		settle()
		assert.Len(t, crls.Current().Lists(), 1)
		assert.Len(t, crls.Current().Remarks(), 2)
		set(root, below, second)
		settle()

		// Nobody brings new ones: they are withdrawn while kubelets can still bring the news.
		end := now.Add(time.Hour - 5*time.Minute)
		time.Sleep(time.Until(end.Add(-time.Second)))
		synctest.Wait()
		assert.NotEmpty(t, crls.Current().PEM())
		time.Sleep(time.Until(end.Add(lookEvery)))
		synctest.Wait()
		assert.Empty(t, crls.Current().PEM())
		assert.True(t, crls.Revoked(revoked))
		assert.Contains(t, readiness(t, crls), "it expires in less than 5m0s")
		assert.Equal(t, float64(now.Add(time.Hour).Unix()), gauges(t, reg)["crl_next_update_timestamp_seconds"], "what to alert on stays")
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.True(t, crls.Revoked(revoked), "for ever")
		assert.Contains(t, readiness(t, crls), "it has expired: the next one was due at 2000-01-01T01:00:00Z")

		now = time.Now()
		write(t, path, crlPEM(root.crl(t, now, nil), below.crl(t, now, nil, 8), second.crl(t, now, nil)))
		settle()
		assert.NotEmpty(t, crls.Current().PEM())
		assert.False(t, crls.Revoked(revoked), "the new ones count")
	})
}

// The end of the last good CRLs counts also while the source holds something worse.
func TestR57_LastGoodCRLsAreWithdrawnInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		root := newAuthority(t, "root", now, nil)
		path := filepath.Join(t.TempDir(), "crl.pem")
		write(t, path, crlPEM(root.crl(t, now, func(l *x509.RevocationList) { l.NextUpdate = now.Add(10 * time.Minute) })))
		crls, err := NewCRLs(CRLConfig{File: path}, nil, "", func() []*x509.Certificate { return certs(root) }, quiet, prometheus.NewRegistry())
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- crls.Start(ctx) }()
		defer func() { cancel(); require.NoError(t, <-done) }()
		time.Sleep(lookEvery)
		synctest.Wait()
		require.NotEmpty(t, crls.Current().PEM())
		require.NoError(t, os.Remove(path))
		time.Sleep(time.Until(now.Add(9*time.Minute - time.Second))) // a tenth before the end
		synctest.Wait()
		assert.NotEmpty(t, crls.Current().PEM())
		time.Sleep(time.Second + lookEvery)
		synctest.Wait()
		assert.Empty(t, crls.Current().PEM())
	})
}

// A process that starts without good CRLs doesn't know whether one before it had some: those would expire
// in the hands of the proxies, so they are taken away, but not for a source that is a little late.
func TestR57_CRLsThatAreNeverGoodAreWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := newAuthority(t, "root", time.Now(), nil)
		crls, err := NewCRLs(CRLConfig{File: filepath.Join(t.TempDir(), "crl.pem")}, nil, "", func() []*x509.Certificate { return certs(root) }, quiet, prometheus.NewRegistry())
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- crls.Start(ctx) }()
		defer func() { cancel(); require.NoError(t, <-done) }()
		time.Sleep(undecided - time.Second)
		synctest.Wait()
		_, decided := crls.Publish()
		assert.False(t, decided)
		_, replaced := crls.Watch()
		assert.False(t, told(replaced))
		time.Sleep(time.Second + lookEvery)
		synctest.Wait()
		text, decided := crls.Publish()
		assert.True(t, decided)
		assert.Empty(t, text)
		assert.True(t, told(replaced))
	})
}

func TestCRLsWithoutASource(t *testing.T) {
	reg := prometheus.NewRegistry()
	crls, err := NewCRLs(CRLConfig{}, nil, "", nil, quiet, reg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, crls.Start(ctx))
	assert.Equal(t, "none configured", readiness(t, crls))
	_, decided := crls.Publish()
	assert.False(t, decided)
	assert.Empty(t, crls.Current().PEM())
	assert.False(t, crls.Revoked(newRoot(t, "root", nil)))
	assert.Empty(t, gauges(t, reg), "there is nothing to alert on")
}
