package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
)

// heldLock is a lock whose record or error a test sets.
type heldLock struct {
	resourcelock.Interface
	record resourcelock.LeaderElectionRecord
	err    error
}

func (l *heldLock) Identity() string { return "signet-0_a" }

func (l *heldLock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	if l.err != nil {
		return nil, nil, l.err
	}
	return &l.record, nil, nil
}

func (l *heldLock) Create(context.Context, resourcelock.LeaderElectionRecord) error { return l.err }
func (l *heldLock) Update(context.Context, resourcelock.LeaderElectionRecord) error { return l.err }

// TestHolderOfTheLeaseIsNamed: a replica that doesn't lead says who does, as long as it has seen that not long ago.
func TestHolderOfTheLeaseIsNamed(t *testing.T) {
	config := &rest.Config{Host: "https://192.0.2.1"}
	log := slog.New(slog.DiscardHandler)
	istiod, err := rotation.NewIstiod(rotation.IstiodConfig{}, config, nil, nil, log, prometheus.NewRegistry(), nil)
	require.NoError(t, err)
	distributor, err := issuer.NewDistributor(issuer.DistributionConfig{}, config, nil, log, prometheus.NewRegistry(), nil)
	require.NoError(t, err)

	synctest.Test(t, func(t *testing.T) {
		held := &heldLock{}
		lock := &watchedLock{Interface: held}
		trusting := &trust{istiod: istiod, distributor: distributor, leading: &leased{lock: lock}}
		say := func(distribution, certificate string) {
			t.Helper()
			assert.Equal(t, []string{distribution}, trusting.distributed(time.Now()))
			assert.Equal(t, []string{certificate}, trusting.watched(time.Now()))
		}
		unknown := func() {
			t.Helper()
			say("known to the replica that holds the lease", "watched by the replica that holds the lease")
		}
		look := func(holder string, err error) {
			t.Helper()
			held.record.HolderIdentity, held.err = holder, err
			_, _, is := lock.Get(t.Context())
			assert.Equal(t, err, is)
		}
		away := errors.New("the API server is away")
		unknown()
		look("", away)
		unknown()
		look("", nil) // given back
		unknown()
		look("signet-1_b", nil)
		say("known to signet-1_b, which holds the lease", "watched by signet-1_b, which holds the lease")
		time.Sleep(leaseDuration - time.Second)
		look("", away)
		say("known to signet-1_b, which holds the lease", "watched by signet-1_b, which holds the lease")
		time.Sleep(time.Second)
		unknown()

		mine := resourcelock.LeaderElectionRecord{HolderIdentity: lock.Identity()}
		look("signet-1_b", nil)
		held.err = away
		assert.Equal(t, away, lock.Create(t.Context(), mine))
		assert.Equal(t, away, lock.Update(t.Context(), mine))
		say("known to signet-1_b, which holds the lease", "watched by signet-1_b, which holds the lease")
		held.err = nil
		for _, take := range []func(context.Context, resourcelock.LeaderElectionRecord) error{lock.Create, lock.Update} {
			look("signet-1_b", nil)
			require.NoError(t, take(t.Context(), mine))
			say("nothing is known yet", "nothing is known yet")
		}
	})
}
