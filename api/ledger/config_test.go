package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

func TestConfigValidate(t *testing.T) {
	hours := func(n int) setting.Duration { return setting.DurationOf(time.Duration(n) * time.Hour) }
	for _, row := range []struct {
		name string
		cfg  Config
		want string // "" is right
	}{
		{"defaults", Config{}, ""},
		{"all set", Config{Dir: "/data", Postgres: PostgresConfig{DSNFile: "/etc/dsn"}, Retention: RetentionConfig{hours(1), 1000}, ReserveMiB: 1, FailOpen: true}, ""},
		{"environment", Config{Postgres: PostgresConfig{DSNEnv: "SIGNET_LEDGER_DSN"}}, ""},
		{"relative", Config{Dir: "data"}, "ledger.dir: \"data\" is not an absolute path; it must be one such as /var/lib/signet"},
		{"two DSNs", Config{Postgres: PostgresConfig{DSNFile: "/a", DSNEnv: "B"}}, "ledger.postgres: dsnFile and dsnEnv are both set; one of them must go"},
		{"relative DSN", Config{Postgres: PostgresConfig{DSNFile: "dsn"}}, "ledger.postgres.dsnFile: \"dsn\" is not an absolute path"},
		{"too short", Config{Retention: RetentionConfig{Age: setting.DurationOf(time.Minute)}}, "ledger.retention.age: 1m0s is out of range; it must be between 1h0m0s and 175200h0m0s"},
		{"too few", Config{Retention: RetentionConfig{Rows: 10}}, "ledger.retention.rows: 10 is out of range; it must be between 1000 and 1000000000"},
		{"negative reserve", Config{ReserveMiB: -1}, "ledger.reserveMiB: -1 is out of range; it must be between 1 and 1048576"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.cfg.Validate(p.At("ledger"))
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.EqualError(t, p.Err(), row.want)
			}
		})
	}
}

// TestDSNIsSecret: no error, log line or word of readiness holds a password, wherever it was written.
func TestDSNIsSecret(t *testing.T) {
	const secret = "c0rrect-horse"
	p := setting.NewProblems()
	Config{Postgres: PostgresConfig{DSNEnv: "postgres://u:" + secret + "@h/db"}}.Validate(p)
	require.Error(t, p.Err())
	assert.NotContains(t, p.Err().Error(), secret)

	// Somebody who hangs up: PostgreSQL that can't be reached.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	for name, dsn := range map[string]string{
		"no DSN": "postgres://u:" + secret + "@h:bad port/db", "no DSN either": secret + " is no DSN", "key and value": "host=127.0.0.1 password='" + secret + " port=x",
		"hangs up": fmt.Sprintf("postgres://u:%s@%s/db?sslmode=disable", secret, listener.Addr()),
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "dsn")
			require.NoError(t, os.WriteFile(file, []byte(dsn), 0o600))
			var lines strings.Builder
			s, err := Open(t.Context(), Config{Dir: t.TempDir(), Postgres: PostgresConfig{DSNFile: file}}, slog.New(slog.NewTextHandler(&lines, nil)), prometheus.NewRegistry())
			if err != nil {
				assert.NotContains(t, err.Error(), secret)
				assert.Contains(t, err.Error(), "DSN")
				return
			}
			s.shipper.contact.Store(&contact{since: time.Now()})
			_, err = s.shipper.round(t.Context())
			require.Error(t, err)
			s.shipper.note(err)
			text, ready := s.Ready(time.Now())
			require.NoError(t, ready)
			require.NoError(t, s.Close())
			for _, said := range []string{err.Error(), text, lines.String()} {
				assert.NotContains(t, said, secret)
				assert.NotEmpty(t, said)
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	for _, row := range []struct {
		failures    int
		least, most time.Duration
	}{{1, 250 * time.Millisecond, 500 * time.Millisecond}, {2, 500 * time.Millisecond, time.Second}, {5, 4 * time.Second, 8 * time.Second}, {7, 15 * time.Second, 30 * time.Second}, {1000, 15 * time.Second, 30 * time.Second}} {
		assert.Equal(t, row.least, backoff(row.failures, 0))
		assert.Equal(t, row.most, backoff(row.failures, 1))
	}
}

// TestStart ends with its context, whatever it is doing.
func TestStart(t *testing.T) {
	s := open(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Start(ctx) }()
	require.NoError(t, s.Record(t.Context(), issuance(1, time.Now())))
	cancel()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(3 * time.Minute):
		require.Fail(t, "it goes on")
	}
	require.NoError(t, s.Record(t.Context(), issuance(2, time.Now())), "recording doesn't need it")
}
