// Package postgres runs a real PostgreSQL as a process, with its data in a temporary directory that is
// gone when it is stopped. It listens on a socket in that directory alone, as nobody else can have that
// while it is down.
//
//	server, err := postgres.Start(ctx)
//	defer server.Stop()
//	dsn, err := server.Database(ctx, "ledger")
//
// PostgreSQL refuses to run as root, so that root runs it as the user postgres, or nobody where there is
// none. Its programs are found in PATH, in /usr/lib/postgresql, or where SIGNET_POSTGRES says;
// test/ledger/postgres/install.sh installs them where they are missing.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // registers pgx

	"github.com/signet-ca/signet/test/process"
)

// Server is a running PostgreSQL. Safe for concurrent use but for Stop and Restart.
type Server struct {
	dir, bin string
	owner    *user.User // who runs it; nil for ourselves
	proc     *process.Process
}

// Start makes a cluster and starts it. The error holds the end of the log where it doesn't answer within
// three minutes.
func Start(ctx context.Context) (*Server, error) {
	bin, err := find()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "signet-postgres-")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, bin: bin}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// find is the directory of PostgreSQL's programs, the newest that is installed.
func find() (string, error) {
	if bin := os.Getenv("SIGNET_POSTGRES"); bin != "" {
		return bin, nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", errors.New("no PostgreSQL is installed: run test/ledger/postgres/install.sh, or point SIGNET_POSTGRES to the directory of initdb and postgres")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path)))) // 0 for a name that is none
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
}

// prepare makes the cluster: trusting whoever reaches its socket, which is the test alone.
func (s *Server) prepare(ctx context.Context) error {
	if os.Geteuid() == 0 {
		for _, name := range []string{"postgres", "nobody"} {
			owner, err := user.Lookup(name)
			if err != nil {
				continue
			}
			s.owner = owner
			break
		}
		if s.owner == nil {
			return errors.New("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")
		}
		uid, err := strconv.Atoi(s.owner.Uid)
		if err != nil {
			return err
		}
		if err := os.Chown(s.dir, uid, -1); err != nil {
			return err
		}
	}
	command := s.command(ctx, "initdb", "-D", filepath.Join(s.dir, "data"), "-U", "signet", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

// command is one of PostgreSQL's programs, run by the owner.
func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	args = append([]string{filepath.Join(s.bin, name)}, args...)
	if s.owner != nil {
		// The kernel forgets who a process dies with when its user changes; setpriv says it anew.
		args = append([]string{"setpriv", "--reuid=" + s.owner.Uid, "--regid=" + s.owner.Gid, "--clear-groups", "--pdeathsig=KILL"}, args...)
	}
	command := exec.CommandContext(ctx, args[0], args[1:]...)
	command.Dir = s.dir
	return command
}

// port is only a part of the socket's name.
const port = "5432"

// start runs the server and waits until it answers.
func (s *Server) start(ctx context.Context) error {
	command := s.command(context.WithoutCancel(ctx), "postgres", "-D", filepath.Join(s.dir, "data"), "-p", port,
		"-c", "listen_addresses=", "-c", "unix_socket_directories="+s.dir, "-c", "max_connections=60", "-c", "log_min_messages=warning")
	log := filepath.Join(s.dir, "log")
	var err error
	if s.proc, err = process.Start(command, log); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		err := s.exec(ctx, "SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-s.proc.Done():
			return fmt.Errorf("postgres ended: %w: %s", s.proc.Exit(), process.Tail(log, 20))
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("postgres doesn't answer: %w: %s", err, process.Tail(log, 20)), s.halt())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// exec runs one statement in the database postgres.
func (s *Server) exec(ctx context.Context, statement string) error {
	return s.execIn(ctx, "postgres", statement)
}

// execIn runs one statement.
func (s *Server) execIn(ctx context.Context, database, statement string) (err error) {
	db, err := sql.Open("pgx", s.DSN(database))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	_, err = db.ExecContext(ctx, statement)
	return err
}

// DSN is that of a database.
func (s *Server) DSN(database string) string {
	return fmt.Sprintf("postgres://signet@/%s?host=%s&port=%s&sslmode=disable", database, url.QueryEscape(s.dir), port)
}

// Database makes an empty database and returns its DSN. name is lower-case letters and digits.
func (s *Server) Database(ctx context.Context, name string) (string, error) {
	if err := s.exec(ctx, "CREATE DATABASE "+name); err != nil {
		return "", fmt.Errorf("make database %s: %w", name, err)
	}
	return s.DSN(name), nil
}

// Analyze brings a database's statistics up to date, as PostgreSQL does by itself after a while.
func (s *Server) Analyze(ctx context.Context, database string) error {
	return s.execIn(ctx, database, "VACUUM ANALYZE")
}

// Down stops the server at once, as an outage does; what was committed stays.
func (s *Server) Down() error { return s.halt() }

// Up starts it again, at the same place.
func (s *Server) Up(ctx context.Context) error { return s.start(ctx) }

// halt ends the server without waiting for its clients (SIGINT: fast shutdown).
func (s *Server) halt() error {
	if s.proc.Ended() {
		return nil
	}
	_ = s.proc.Signal(syscall.SIGINT) // the only error is that it has ended
	select {
	case <-s.proc.Done():
		return nil
	case <-time.After(3 * time.Minute):
		s.proc.Kill()
		return errors.New("postgres had to be killed")
	}
}

// Stop ends the server and removes its data.
func (s *Server) Stop() error { return errors.Join(s.halt(), os.RemoveAll(s.dir)) }
