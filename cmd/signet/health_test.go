package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/issuer"
)

func TestReadiness(t *testing.T) {
	why := errors.New("no roots")
	good := func(time.Time) (string, error) { return "fresh", nil }
	bad := func(time.Time) (string, error) { return "", why }
	for _, row := range []struct {
		name   string
		roots  func(time.Time) (string, error)
		issuer string
		code   int
		body   string
	}{
		{"ready", good, issuer.StateReady, 200, "[+] serving: fresh\n[+] roots: fresh\n[i] issuer: Ready: because\n[i] issuer: another\n"},
		{"one is not", bad, issuer.StateReady, 503, "[+] serving: fresh\n[-] roots: no roots\n[i] issuer: Ready: because\n[i] issuer: another\n"},
		{"the issuer doesn't count", good, issuer.StateMissing, 200, "[+] serving: fresh\n[+] roots: fresh\n[i] issuer: Missing: because\n[i] issuer: another\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := &readiness{
				checks: []check{{"serving", good}, {"roots", row.roots}},
				shown:  []shown{{"issuer", func(time.Time) []string { return []string{row.issuer + ": because", "another"} }}},
			}
			answer := httptest.NewRecorder()
			r.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/readyz", nil))
			assert.Equal(t, row.code, answer.Code)
			assert.Equal(t, row.body, answer.Body.String())

			registry := prometheus.NewPedanticRegistry()
			registry.MustRegister(r)
			families, err := registry.Gather()
			require.NoError(t, err)
			require.Len(t, families, 1)
			passed := make(map[string]float64)
			for _, m := range families[0].GetMetric() {
				passed[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
			roots := 1.0
			if row.code != 200 {
				roots = 0
			}
			assert.Equal(t, map[string]float64{"serving": 1, "roots": roots}, passed)
		})
	}
	answer := httptest.NewRecorder()
	livez(answer, httptest.NewRequest(http.MethodGet, "/livez", nil))
	assert.Equal(t, "ok\n", answer.Body.String())
}

func TestLog(t *testing.T) {
	var out bytes.Buffer
	log, level := newLog(LogConfig{Format: "text", Level: "warn"}, &out)
	log.Info("quiet")
	assert.Empty(t, out.String())
	level.Set(slog.LevelInfo)
	log.Info("said", "key", "value")
	assert.Contains(t, out.String(), "level=INFO msg=said key=value")

	out.Reset()
	log, _ = newLog(LogConfig{}, &out)
	log.Debug("quiet")
	log.Info("said", "key", "value")
	assert.Regexp(t, `^\{"time":"[^"]+","level":"INFO","msg":"said","key":"value"\}\n$`, out.String())
}

func TestParseLevel(t *testing.T) {
	for text, want := range map[string]slog.Level{"": slog.LevelInfo, "debug": slog.LevelDebug, "info": slog.LevelInfo, "WARN": slog.LevelWarn, "error": slog.LevelError} {
		level, err := parseLevel(text)
		require.NoError(t, err)
		assert.Equal(t, want, level)
	}
	_, err := parseLevel("loud")
	assert.Error(t, err)
}

// SIGUSR1 switches to debug and back.
func TestLogSwitch(t *testing.T) {
	level := new(slog.LevelVar)
	level.Set(slog.LevelWarn)
	s := newLogSwitch(level, slog.New(slog.DiscardHandler))
	usr1 := func() { require.NoError(t, syscall.Kill(syscall.Getpid(), syscall.SIGUSR1)) }
	is := func(want slog.Level) {
		t.Helper()
		require.Eventually(t, func() bool { return level.Level() == want }, 3*time.Minute, time.Millisecond)
	}
	usr1() // before it is started
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Start(ctx) }()
	is(slog.LevelDebug)
	usr1()
	is(slog.LevelWarn)
	cancel()
	require.NoError(t, <-ended)
	usr1() // while requests are drained: it must not end the process
}
