package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

// parseLevel reads a level's name; "" is info.
func parseLevel(name string) (slog.Level, error) {
	if name == "" {
		return slog.LevelInfo, nil
	}
	level, ok := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}[strings.ToLower(name)]
	if !ok {
		return 0, fmt.Errorf("%q is not a level", name)
	}
	return level, nil
}

// newLog makes the program's log, and sends what the libraries say the same way.
func newLog(cfg LogConfig, out io.Writer) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	if configured, err := parseLevel(cfg.Level); err == nil {
		level.Set(configured)
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewJSONHandler(out, options)
	if cfg.Format == "text" {
		handler = slog.NewTextHandler(out, options)
	}
	log := slog.New(handler)
	ctrl.SetLogger(logr.FromSlogHandler(handler))
	klog.SetSlogLogger(log.With("library", "client-go"))
	return log, level
}

// logSwitch switches between the configured level and debug with each SIGUSR1.
type logSwitch struct {
	level   *slog.LevelVar
	log     *slog.Logger
	signals chan os.Signal
}

// newLogSwitch takes the signal from now on: one that comes before Start counts too, and doesn't end the process.
func newLogSwitch(level *slog.LevelVar, log *slog.Logger) *logSwitch {
	s := &logSwitch{level: level, log: log, signals: make(chan os.Signal, 1)}
	signal.Notify(s.signals, syscall.SIGUSR1)
	return s
}

// NeedLeaderElection says that every replica can be switched.
func (s *logSwitch) NeedLeaderElection() bool { return false }

// Start goes by the signal until ctx ends.
func (s *logSwitch) Start(ctx context.Context) error {
	configured := s.level.Level()
	defer signal.Ignore(syscall.SIGUSR1) // one that comes while requests are drained must not end the process
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.signals:
			if s.level.Level() == slog.LevelDebug {
				s.level.Set(configured)
			} else {
				s.level.Set(slog.LevelDebug)
			}
			s.log.Warn("log level switched", "level", s.level.Level().String())
		}
	}
}
