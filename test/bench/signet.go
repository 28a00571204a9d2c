package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/replica"
)

// signetSide asks Signet, each caller over a connection of its own.
type signetSide struct {
	*bench
	clients []*meshclient.Client
}

func (s *signetSide) name() string { return "signet" }

// open connects the callers, and shakes hands with a request that is refused before it costs anything.
func (s *signetSide) open(ctx context.Context, callers int) error {
	options := meshclient.ZtunnelTLS()
	options.ServerName = replica.ServerName
	for range callers {
		c, err := meshclient.Dial(s.replica.CSR(), s.root, options)
		if err != nil {
			return err
		}
		s.clients = append(s.clients, c)
		if _, err := c.Create(ctx, meshclient.Ask{}); err == nil {
			return errors.New("a request without a token was answered")
		}
	}
	return nil
}

func (s *signetSide) close() {
	for _, c := range s.clients {
		c.Close()
	}
	s.clients = nil
}

func (s *signetSide) certificate(ctx context.Context, caller, n int) (time.Duration, error) {
	began := time.Now()
	chain, err := s.clients[caller].Create(ctx, meshclient.Ask{
		Token: s.tokens[n%workloads], CSR: s.csrs[n], ValiditySeconds: 86400, Metadata: meshclient.SidecarMetadata(""),
	})
	took := time.Since(began)
	if err == nil && len(chain) != 2 {
		err = fmt.Errorf("an answer has %d elements", len(chain))
	}
	return took, err
}

// settle waits until Signet has swept everything, asking it how many objects it sees.
func (s *signetSide) settle(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond) // each question costs Signet milliseconds
	defer tick.Stop()
	for {
		live, err := s.replica.Metric(ctx, "signet_certificaterequests_live", nil)
		if err == nil && live == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%g CertificateRequests are still there: %w: %v", live, ctx.Err(), err)
		}
	}
}
