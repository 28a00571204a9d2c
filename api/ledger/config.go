package ledger

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/signet-ca/signet/setting"
)

// Config is where records are kept, and for how long.
type Config struct {
	// Dir is the directory of the replica's own store; made where it isn't there. What it lies on must
	// honour fsync, and be a volume of its own where records are to outlive the pod. Two replicas can't
	// share it. Default /var/lib/signet.
	Dir string `json:"dir,omitempty"`
	// Postgres is the shared view of several replicas: a PostgreSQL database (13 or later) to which all of them ship
	// their records. Optional.
	Postgres PostgresConfig `json:"postgres,omitempty"`
	// Retention is how long records are kept.
	Retention RetentionConfig `json:"retention,omitempty"`
	// ReserveMiB is how much of the disk, in MiB, is kept free for issuances: below it the counts of
	// refusals wait in memory. Default 64.
	ReserveMiB int `json:"reserveMiB,omitempty"`
	// FailOpen lets certificates go out without a record when none can be written, because the disk is
	// full or broken. Readiness, a metric and the coverage say so. Default false: nothing is signed then.
	FailOpen bool `json:"failOpen,omitempty"`

	// Replica is this replica's name, which its records carry.
	Replica string `json:"-"`
}

// PostgresConfig is a PostgreSQL database (13 or later) to which all replicas ship their records. Its
// outage never stops signing. Exactly one of the two fields says what its DSN is, because that may hold
// a password.
type PostgresConfig struct {
	// DSNFile is a file that holds the DSN. It is read at start; a change needs a restart. Optional.
	DSNFile string `json:"dsnFile,omitempty"`
	// DSNEnv is the name of an environment variable that holds the DSN. Optional.
	DSNEnv string `json:"dsnEnv,omitempty"`
}

// RetentionConfig is when records are deleted. The same holds for the shared view.
type RetentionConfig struct {
	// Age is how old a record becomes. Default 2160h (90 days), at least 1h.
	Age setting.Duration `json:"age,omitempty"`
	// Rows is how many issuances are kept at most, the youngest. Default 5000000 (about 8 GiB), at least
	// 1000.
	Rows int `json:"rows,omitempty"`
}

// Validate reports what is wrong with c.
func (c Config) Validate(p setting.Problems) {
	if c.Dir != "" && !filepath.IsAbs(c.Dir) {
		p.Addf("dir", "%q is not an absolute path; it must be one such as /var/lib/signet", c.Dir)
	}
	if c.Postgres.DSNFile != "" && c.Postgres.DSNEnv != "" {
		p.Addf("postgres", "dsnFile and dsnEnv are both set; one of them must go")
	}
	if c.Postgres.DSNFile != "" && !filepath.IsAbs(c.Postgres.DSNFile) {
		p.Addf("postgres.dsnFile", "%q is not an absolute path", c.Postgres.DSNFile)
	}
	if strings.ContainsAny(c.Postgres.DSNEnv, "=: /@") {
		// Whoever writes the DSN itself here must not find it in an error.
		p.Addf("postgres.dsnEnv", "it is not the name of an environment variable; it must be a name such as SIGNET_LEDGER_DSN, not the DSN itself")
	}
	p.At("retention").Duration("age", c.Retention.Age, time.Hour, 20*365*24*time.Hour)
	p.At("retention").Count("rows", c.Retention.Rows, 1000, 1_000_000_000)
	p.Count("reserveMiB", c.ReserveMiB, 1, 1<<20)
}

func (c Config) withDefaults() Config {
	if c.Dir == "" {
		c.Dir = "/var/lib/signet"
	}
	c.Retention.Age = setting.DurationOf(c.Retention.Age.Or(90 * 24 * time.Hour))
	if c.Retention.Rows == 0 {
		c.Retention.Rows = 5_000_000
	}
	if c.ReserveMiB == 0 {
		c.ReserveMiB = 64
	}
	return c
}

func (c Config) reserve() uint64 { return uint64(c.ReserveMiB) << 20 }

func (c PostgresConfig) configured() bool { return c.DSNFile != "" || c.DSNEnv != "" }

// dsn reads the DSN. No error holds any of it.
func (c PostgresConfig) dsn() (string, error) {
	if c.DSNEnv != "" {
		dsn := strings.TrimSpace(os.Getenv(c.DSNEnv))
		if dsn == "" {
			return "", fmt.Errorf("the environment variable %s, which should hold the ledger's DSN, is empty", c.DSNEnv)
		}
		return dsn, nil
	}
	text, err := os.ReadFile(c.DSNFile)
	if err != nil {
		return "", fmt.Errorf("read the ledger's DSN: %w", err)
	}
	dsn := strings.TrimSpace(string(text))
	if dsn == "" {
		return "", fmt.Errorf("the file %s, which should hold the ledger's DSN, is empty", c.DSNFile)
	}
	return dsn, nil
}
