package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// runEtcd runs a cluster of one etcd until ctx ends.
func runEtcd(ctx context.Context, args []string) error {
	cfg := embed.NewConfig()
	cfg.LogLevel = "warn"

	fs := flag.NewFlagSet("etcd", flag.ContinueOnError)
	fs.StringVar(&cfg.Dir, "data-dir", "", "`directory` of the database, created if absent")
	fs.BoolVar(&cfg.UnsafeNoFsync, "unsafe-no-fsync", false, "never sync to disk: what a crash of the machine would lose does not matter")
	fs.StringVar(&cfg.LogLevel, "log-level", cfg.LogLevel, "debug, info, warn or error")
	listen := fs.String("listen-client", "", "`host:port` to serve clients on, plain HTTP and gRPC")
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if cfg.Dir == "" || *listen == "" || fs.NArg() > 0 {
		return fmt.Errorf("%w: etcd needs --data-dir and --listen-client, and nothing else", errUsage)
	}

	client := url.URL{Scheme: "http", Host: *listen}
	cfg.ListenClientUrls = []url.URL{client}
	cfg.AdvertiseClientUrls = []url.URL{client}
	// There are no peers: the kernel may choose that port, and what is advertised does not matter.
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenPeerUrls = []url.URL{peer}
	cfg.AdvertisePeerUrls = []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)

	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start on %s: %w", *listen, err)
	}
	defer closeSoon(e)

	select {
	case <-e.Server.ReadyNotify():
	case <-ctx.Done():
		return nil
	case <-time.After(time.Minute):
		return errors.New("not ready after a minute")
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return err
	case <-e.Server.StopNotify():
		return errors.New("the server stopped by itself")
	}
}

// closeSoon closes e, but does not wait the seven seconds that e gives watches to end: those of an
// API server do not. What is committed is in the log, and the process ends next.
func closeSoon(e *embed.Etcd) {
	closed := make(chan struct{})
	go func() {
		e.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(time.Second):
	}
}
