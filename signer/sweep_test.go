package signer

import (
	"crypto/x509"
	"log/slog"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
)

func newTestSigner(t testing.TB, cfg Config) (*Signer, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	return New(cfg, Cluster{Namespace: "istio-system"}, issuer.NewStore(mesh), issuer.NewHealth(), slog.New(slog.DiscardHandler), registry), registry
}

// made is a request that was created, and finished where finished isn't zero.
func made(uid types.UID, created, finished time.Time) *cmapi.CertificateRequest {
	cr := &cmapi.CertificateRequest{ObjectMeta: metav1.ObjectMeta{UID: uid, Name: string(uid), CreationTimestamp: metav1.NewTime(created)}}
	if !finished.IsZero() {
		cr.Status.Conditions = []cmapi.CertificateRequestCondition{condition(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, "Failed", finished)}
	}
	return cr
}

func TestSweepDue(t *testing.T) {
	signer, _ := newTestSigner(t, Config{Timeout: setting.DurationOf(20 * time.Second), Sweep: SweepConfig{Keep: setting.DurationOf(5 * time.Second)}})
	w := NewSweeper(signer, nil, slog.New(slog.DiscardHandler))
	now := epoch
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	deleting := made("being deleted", ago(time.Hour), ago(time.Hour))
	deleting.DeletionTimestamp = new(metav1.NewTime(now))
	timeless := made("finished at no time", ago(time.Second), ago(time.Second))
	timeless.Status.Conditions[0].LastTransitionTime = nil
	all := []*cmapi.CertificateRequest{
		made("young", ago(time.Second), time.Time{}),
		made("at the longest deadline and its grace", ago(50*time.Second), time.Time{}),
		made("orphan", ago(50*time.Second+1), time.Time{}),
		made("just finished", ago(time.Minute), ago(time.Second)),
		made("finished, to be kept to the end", ago(time.Minute), ago(5*time.Second)),
		made("finished", ago(time.Minute), ago(5*time.Second+1)),
		made("finished long ago", ago(time.Hour), ago(time.Hour)),
		made("swept", ago(time.Hour), ago(time.Hour)),
		deleting,
		timeless,
	}
	due, unfinished := w.due(all, map[types.UID]bool{"swept": true}, now)
	var names []string
	for _, cr := range due {
		names = append(names, cr.Name)
	}
	assert.Equal(t, []string{"finished at no time", "finished long ago", "orphan", "finished"}, names, "the oldest first")
	assert.Equal(t, 2, unfinished)

	due, unfinished = w.due(nil, nil, now)
	assert.Empty(t, due)
	assert.Zero(t, unfinished)
}

func TestSweeperDefaults(t *testing.T) {
	signer, _ := newTestSigner(t, Config{})
	w := NewSweeper(signer, nil, slog.New(slog.DiscardHandler))
	assert.Equal(t, []any{3 * time.Second, 50 * time.Second, 4000, 16}, []any{w.keep, w.orphanAge, w.pile, w.workers})
	signer, _ = newTestSigner(t, Config{Timeout: setting.DurationOf(time.Minute), Sweep: SweepConfig{Keep: setting.DurationOf(time.Hour), Pile: 1, Workers: 2}})
	w = NewSweeper(signer, nil, slog.New(slog.DiscardHandler))
	assert.Equal(t, []any{time.Hour, 90 * time.Second, 1, 2}, []any{w.keep, w.orphanAge, w.pile, w.workers})
}

func TestForgetLeft(t *testing.T) {
	swept := map[types.UID]bool{"a": true, "b": true, "c": true}
	forgetLeft(swept, []*cmapi.CertificateRequest{made("b", epoch, epoch), made("d", epoch, epoch)})
	assert.Equal(t, map[types.UID]bool{"b": true}, swept)
	forgetLeft(swept, nil)
	assert.Empty(t, swept)
}

func TestConfigValidate(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  Config
		want string // "" is right
	}{
		{"defaults", Config{}, ""},
		{"timeout short", Config{Timeout: setting.DurationOf(time.Millisecond)}, "signer.timeout: 1ms is out of range; it must be between 1s and 2m0s"},
		{"timeout long", Config{Timeout: setting.DurationOf(time.Hour)}, "signer.timeout: 1h0m0s is out of range"},
		{"usage", Config{Usages: Usages{"x"}}, `signer.usages: "x" is not a usage`},
		{"keep", Config{Sweep: SweepConfig{Keep: setting.DurationOf(time.Hour)}}, "signer.sweep.keep: 1h0m0s is out of range"},
		{"pile", Config{Sweep: SweepConfig{Pile: -1}}, "signer.sweep.pile: -1 is out of range; it must be between 1 and 100000"},
		{"workers", Config{Sweep: SweepConfig{Workers: 65}}, "signer.sweep.workers: 65 is out of range; it must be between 1 and 64"},
	} {
		p := setting.NewProblems()
		row.cfg.Validate(p.At("signer"))
		if row.want == "" {
			assert.NoError(t, p.Err(), row.name)
		} else {
			assert.ErrorContains(t, p.Err(), row.want, row.name)
		}
	}
	assert.Equal(t, LeafUsages(), Config{}.UsagesOrDefault())
	assert.Equal(t, 20*time.Second, Config{}.TimeoutOrDefault())
}

func TestSignWithoutAnchors(t *testing.T) {
	signer, _ := newTestSigner(t, Config{})
	_, err := signer.Sign(t.Context(), *newRequest(t, newKey(t)))
	assert.ErrorIs(t, err, ErrNotReady)
}

func TestR38_Clamp(t *testing.T) {
	signer, _ := newTestSigner(t, Config{Timeout: setting.DurationOf(20 * time.Second)})
	other := issuer.Ref{Name: "other", Kind: "Issuer", Group: "cert-manager.io"}
	assert.Equal(t, time.Hour, signer.clamp(time.Hour, mesh, epoch), "nothing is known of the issuer")
	ends := func(in time.Duration) { signer.issuerEnds.Store(&issuerEnd{ref: mesh, ends: epoch.Add(in)}) }
	for _, row := range []struct {
		left, want time.Duration
	}{
		{2 * time.Hour, time.Hour},
		{time.Hour + 20*time.Second, time.Hour},
		{time.Hour, time.Hour - 20*time.Second}, // the issuer may sign only at the deadline
		{10 * time.Minute, 10*time.Minute - 20*time.Second},
		{80 * time.Second, 70 * time.Second}, // an eighth, for what is left is short
		{1500 * time.Millisecond, time.Second},
		{time.Second, time.Hour}, // nothing is left: the answer decides
		{-time.Minute, time.Hour},
	} {
		ends(row.left)
		assert.Equal(t, row.want, signer.clamp(time.Hour, mesh, epoch), "%s left", row.left)
		assert.Equal(t, time.Hour, signer.clamp(time.Hour, other, epoch))
	}
}

func TestAccept(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	a := newAnswer(t)
	shift := func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.AddDate(0, -1, 0), now.AddDate(0, 1, 0) }
	a.root = newAuthority(t, "root", nil, shift)
	a.middle = newAuthority(t, "middle", a.root, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(24*time.Hour) })
	a.leaf.NotBefore, a.leaf.NotAfter = now, now.Add(time.Hour)
	final := func(ca string) *cmapi.CertificateRequest {
		return &cmapi.CertificateRequest{
			ObjectMeta: metav1.ObjectMeta{Name: "signet-1", UID: "uid"},
			Status:     cmapi.CertificateRequestStatus{Certificate: []byte(toPEM(a.issued(), a.middle.cert)), CA: []byte(ca)},
		}
	}
	pinned := &issuer.Snapshot{Ref: mesh, Anchors: bundleOf(t, a.root.cert), Trusted: bundleOf(t, a.root.cert)}

	signer, _ := newTestSigner(t, Config{})
	chain, err := signer.accept(a.req, mesh, pinned, final(""), false)
	require.NoError(t, err)
	assert.Equal(t, RequestRef{"signet-1", "uid"}, chain.Request)
	assert.Equal(t, pinned.Anchors.PEM(), chain.Anchors.PEM())
	assert.Equal(t, &issuerEnd{ref: mesh, ends: a.middle.cert.NotAfter}, signer.issuerEnds.Load(), "the earliest end in the chain")

	// Where an issuer leads to is asked without knowing it.
	chain, err = signer.trace(a.req, mesh, final(toPEM(a.root.cert)))
	require.NoError(t, err)
	assert.True(t, a.root.cert.Equal(chain.Anchor))
	assert.True(t, a.root.cert.Equal(signer.health.LeadsTo(mesh)))
	_, err = signer.trace(a.req, mesh, final(""))
	assert.ErrorIs(t, err, ErrUntrusted, "no root named")

	// The CA that the issuer names says nothing for a certificate that leaves.
	imposter := newAuthority(t, "root", nil, shift)
	others := &issuer.Snapshot{Ref: mesh, Anchors: bundleOf(t, imposter.cert), Trusted: bundleOf(t, imposter.cert)}
	_, err = signer.accept(a.req, mesh, others, final(toPEM(a.root.cert)), false)
	require.ErrorIs(t, err, ErrUntrusted)
	assert.ErrorContains(t, err, "CertificateRequest signet-1: the chain doesn't lead to a trust anchor in force")

	// Nor does an anchor that not everybody knows yet: the issuer is held back.
	published, err := issuer.ParseRollover(`{"anchors":[{"sha256":"`+issuer.AnchorID(a.root.cert)+`","phase":"published"},{"sha256":"`+
		issuer.AnchorID(imposter.cert)+`","phase":"signing"}]}`, toPEM(a.root.cert, imposter.cert))
	require.NoError(t, err)
	held := &issuer.Snapshot{Ref: mesh, Anchors: bundleOf(t, a.root.cert, imposter.cert), Trusted: bundleOf(t, imposter.cert), Rollover: published}
	_, err = signer.accept(a.req, mesh, held, final(""), false)
	require.ErrorIs(t, err, ErrNotReady)
	assert.ErrorContains(t, err, "is held back: its root")
	_, err = signer.accept(a.req, mesh, &issuer.Snapshot{Ref: mesh, Anchors: held.Anchors}, final(""), false)
	assert.ErrorIs(t, err, ErrUntrusted, "no anchor may be signed under, and the system's least of all")

	// A repeat that meets an old answer asks anew; the first asker takes it.
	a.leaf.NotBefore, a.leaf.NotAfter = now.Add(-8*time.Minute), now.Add(52*time.Minute)
	_, err = signer.accept(a.req, mesh, pinned, final(""), false)
	require.NoError(t, err)
	_, err = signer.accept(a.req, mesh, pinned, final(""), true)
	again := new(anotherAttempt)
	require.ErrorAs(t, err, &again)
	assert.Equal(t, causeStale, again.cause)
	assert.ErrorIs(t, err, ErrNotReady)

	// R38: an issuer that ends before the leaf is asked for less.
	a.leaf.NotBefore, a.leaf.NotAfter = now, now.Add(time.Hour)
	a.middle = newAuthority(t, "middle", a.root, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(10*time.Minute) })
	_, err = signer.accept(a.req, mesh, pinned, final(""), false)
	require.ErrorAs(t, err, &again)
	assert.Equal(t, causeOutlives, again.cause)
	assert.ErrorIs(t, err, ErrUntrusted)
	less := signer.clamp(a.req.Lifetime, mesh, now)
	assert.Less(t, less, 10*time.Minute)
	assert.Greater(t, less, 9*time.Minute)

	// One that has nothing left is not asked again.
	a.middle = newAuthority(t, "middle", a.root, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now })
	_, err = signer.accept(a.req, mesh, pinned, final(""), false)
	require.ErrorIs(t, err, ErrUntrusted)
	assert.NotErrorAs(t, err, &again)
}

func TestMetrics(t *testing.T) {
	signer, registry := newTestSigner(t, Config{})
	signer.live.observe(pendingRequest("a"))
	signer.metrics.observe("wait", time.Now())
	signer.metrics.attempts.WithLabelValues(causeStale).Inc()
	signer.metrics.swept.WithLabelValues("orphan").Inc()
	names := []string{
		"certificaterequest_gap_lists_total", "certificaterequest_watch_silence_seconds", "certificaterequests_due",
		"certificaterequests_live", "certificaterequests_swept_total", "sign_attempts_repeated_total", "sign_in_flight",
		"sign_step_duration_seconds",
	}
	families, err := registry.Gather()
	require.NoError(t, err)
	var got []string
	for _, family := range families {
		got = append(got, family.GetName())
	}
	assert.Equal(t, names, got)
}
