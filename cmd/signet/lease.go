package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseName is the Lease that the replica holds which sweeps, distributes and rotates.
const leaseName = "signet"

// Times of the lease: another replica takes over leaseDuration after the last renewal.
const (
	leaseDuration = 30 * time.Second
	renewDeadline = 10 * time.Second // also bounds how long a stop waits for an API server that is away
	retryPeriod   = 5 * time.Second
)

// leased runs something that one replica of the cluster should do, while this one holds the lease. A
// lost lease ends what runs, not the process: signing goes on, and the lease can be regained.
type leased struct {
	lock *watchedLock
	run  func(ctx context.Context) error // set before Start
	log  *slog.Logger
}

// processName tells this process from the other replicas, and from earlier ones of the same name.
func processName(replica string) string { return replica + "_" + string(uuid.NewUUID()) }

func newLeased(config *rest.Config, namespace, replica string, log *slog.Logger) (*leased, error) {
	leases, err := coordinationv1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for leases: %w", err)
	}
	return &leased{
		lock: &watchedLock{Interface: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: leaseName},
			Client:     leases,
			LockConfig: resourcelock.ResourceLockConfig{Identity: replica},
		}},
		log: log,
	}, nil
}

// instead says for people where to look for what only the holder of the lease knows: does, such as known to, and who
// holds it, as far as that is known. Safe for concurrent use.
func (l *leased) instead(does string) string {
	switch holder := l.lock.holder(time.Now()); holder {
	case "":
		return does + " the replica that holds the lease"
	case l.lock.Identity():
		return "nothing is known yet"
	default:
		return does + " " + holder + ", which holds the lease"
	}
}

// Start competes for the lease until ctx ends and what ran has stopped.
func (l *leased) Start(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := l.term(ctx); err != nil {
			return err
		}
	}
	return nil
}

// term is one time of holding the lease: it ends when the lease is lost, or ctx ends.
func (l *leased) term(ctx context.Context) error {
	// The elector calls OnStartedLeading in a goroutine that it doesn't wait for, so that one only hands
	// over the context that lasts as long as the lease; what runs is waited for here.
	leading, over := make(chan context.Context, 1), make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            l.lock,
		LeaseDuration:   leaseDuration,
		RenewDeadline:   renewDeadline,
		RetryPeriod:     retryPeriod,
		ReleaseOnCancel: true,
		Name:            leaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { leading <- ctx },
			OnStoppedLeading: func() { l.log.Info("lease not held", "lease", leaseName) },
		},
	})
	if err != nil {
		return fmt.Errorf("compete for lease %s: %w", leaseName, err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		select {
		case <-over:
		case ctx := <-leading:
			l.log.Info("lease acquired", "lease", leaseName)
			if err := l.run(ctx); err != nil {
				l.log.Error("what runs under the lease ended", "lease", leaseName, "err", err)
			}
		}
	})
	elector.Run(ctx)
	close(over)
	running.Wait()
	return nil
}

// watchedLock is a lock that remembers who was last seen to hold it.
type watchedLock struct {
	resourcelock.Interface
	seen atomic.Pointer[holding] // nil before the first time
}

// holding is who held the lease at a time, "" for nobody.
type holding struct {
	holder string
	at     time.Time
}

// holder is who holds the lease, "" for nobody. It isn't known where nothing was seen for as long as a lease lasts.
func (l *watchedLock) holder(now time.Time) string {
	seen := l.seen.Load()
	if seen == nil || now.Sub(seen.at) >= leaseDuration {
		return ""
	}
	return seen.holder
}

// see takes in what was read or written, where that went well.
func (l *watchedLock) see(record *resourcelock.LeaderElectionRecord, err error) {
	if err == nil {
		l.seen.Store(&holding{record.HolderIdentity, time.Now()})
	}
}

// Get implements [resourcelock.Interface].
func (l *watchedLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	l.see(record, err)
	return record, raw, err
}

// Create implements [resourcelock.Interface].
func (l *watchedLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Create(ctx, record)
	l.see(&record, err)
	return err
}

// Update implements [resourcelock.Interface].
func (l *watchedLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Update(ctx, record)
	l.see(&record, err)
	return err
}
