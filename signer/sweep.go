package signer

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/setting"
)

// SweepConfig is how finished CertificateRequests are deleted.
type SweepConfig struct {
	// Keep is how long a finished request stays, so that a caller that lost the answer finds it again
	// with its retry. Default 3s, at most 10m.
	Keep setting.Duration `json:"keep,omitempty"`
	// Pile is how many finished requests may pile up while signing is busy, when deletes wait because
	// each costs the API server as much as a fifth of an issuance. Default 4000.
	Pile int `json:"pile,omitempty"`
	// Workers is how many deletes may be under way at once. Default 16.
	Workers int `json:"workers,omitempty"`
}

// Validate reports what is wrong with c.
func (c SweepConfig) Validate(p setting.Problems) {
	p.Duration("keep", c.Keep, time.Second, 10*time.Minute)
	p.Count("pile", c.Pile, 1, 100_000)
	p.Count("workers", c.Workers, 1, 64)
}

const (
	sweepEvery = 250 * time.Millisecond
	// busyAt is how many requests that are being signed, in all replicas, make signing busy.
	busyAt = 4
	// orphanGrace is added to the longest deadline before an unfinished request that nobody can be
	// waiting for any more is deleted.
	orphanGrace   = 30 * time.Second
	deleteTimeout = 10 * time.Second
	// lastSweep is how much longer than Keep the sweeper goes on when it has to stop; for a longer Keep
	// it doesn't.
	lastSweep = 5 * time.Second
)

// Sweeper deletes the CertificateRequests of all replicas that are finished, and those that a crashed
// replica left behind. It should run once per cluster; that two run at a time for a moment does no
// harm.
type Sweeper struct {
	signer *Signer
	keeper Keeper
	log    *slog.Logger

	complaints *rate.Limiter // of lines about what could not be deleted

	keep, orphanAge time.Duration
	pile, workers   int
}

// Keeper takes note of requests before they are deleted.
type Keeper interface {
	// Keep returns nil once what cr was answered with is recorded, or was before; cr stays while it doesn't.
	Keep(ctx context.Context, cr *cmapi.CertificateRequest) error
}

// NewSweeper makes the sweeper of what s and its peers on other replicas leave.
func NewSweeper(s *Signer, keeper Keeper, log *slog.Logger) *Sweeper {
	w := &Sweeper{
		signer:     s,
		keeper:     keeper,
		log:        log,
		complaints: rate.NewLimiter(1, 10),
		keep:       s.cfg.Sweep.Keep.Or(3 * time.Second),
		orphanAge:  s.cfg.TimeoutOrDefault() + orphanGrace,
		pile:       s.cfg.Sweep.Pile,
		workers:    s.cfg.Sweep.Workers,
	}
	if w.pile == 0 {
		w.pile = 4000
	}
	if w.workers == 0 {
		w.workers = 16
	}
	return w
}

// Start sweeps until ctx ends, and then for a few seconds more, until what is finished is gone.
func (w *Sweeper) Start(ctx context.Context) error {
	swept := make(map[types.UID]bool) // deleted by us, still to be seen leaving
	w.sweep(ctx, swept, func() bool { return false })
	if w.keep > lastSweep {
		return nil // what is left is to be kept for longer than a stop may take
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.keep+lastSweep)
	defer cancel()
	w.sweep(last, swept, func() bool { return w.signer.live.finished() == 0 })
	return nil
}

// sweep makes passes until ctx ends or enough says so.
func (w *Sweeper) sweep(ctx context.Context, swept map[types.UID]bool, enough func() bool) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for !enough() {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			w.pass(ctx, now, swept)
		}
	}
}

// pass deletes what is due at now. It ends early when signing becomes busy.
func (w *Sweeper) pass(ctx context.Context, now time.Time, swept map[types.UID]bool) {
	all := w.signer.live.snapshot()
	forgetLeft(swept, all)
	due, unfinished := w.due(all, swept, now)
	w.signer.metrics.sweepPile.Set(float64(len(due)))
	if len(due) == 0 {
		return
	}
	busy := func() bool { return unfinished >= busyAt || w.signer.Busy() }
	over := len(due) - w.pile // those that go even while signing is busy

	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	type result struct {
		uid  types.UID
		gone bool
	}
	var group sync.WaitGroup
	work, results := make(chan *cmapi.CertificateRequest), make(chan result, len(due))
	for range min(w.workers, len(due)) {
		group.Go(func() {
			for cr := range work {
				err := w.delete(ctx, cr)
				if err != nil && ctx.Err() == nil && w.complaints.Allow() {
					w.log.Warn("delete certificate request", "request", cr.Name, "err", err)
				}
				results <- result{cr.UID, err == nil}
			}
		})
	}
	began := time.Now()
	for i, cr := range due {
		// A pass is short, so that the next one sees whether signing has become busy elsewhere.
		if ctx.Err() != nil || time.Since(began) > time.Second || i >= over && busy() {
			break
		}
		work <- cr
	}
	close(work)
	group.Wait()
	close(results)
	for r := range results {
		if r.gone {
			swept[r.uid] = true
		}
	}
}

// due are the requests to delete, the oldest first, and how many others are still being signed.
func (w *Sweeper) due(all []*cmapi.CertificateRequest, swept map[types.UID]bool, now time.Time) (due []*cmapi.CertificateRequest, unfinished int) {
	type aged struct {
		cr    *cmapi.CertificateRequest
		since time.Time
	}
	var found []aged
	for _, cr := range all {
		if swept[cr.UID] || cr.DeletionTimestamp != nil {
			continue
		}
		p, since, _ := outcome(cr)
		switch created := cr.CreationTimestamp.Time; {
		case p == pending && now.Sub(created) > w.orphanAge:
			found = append(found, aged{cr, created})
		case p == pending:
			unfinished++
		case now.Sub(since) > w.keep:
			found = append(found, aged{cr, since})
		}
	}
	slices.SortFunc(found, func(a, b aged) int { return a.since.Compare(b.since) })
	for _, f := range found {
		due = append(due, f.cr)
	}
	return due, unfinished
}

// delete deletes exactly the object that was seen; one that is gone or was replaced is no error.
func (w *Sweeper) delete(ctx context.Context, cr *cmapi.CertificateRequest) error {
	p, _, _ := outcome(cr)
	if err := w.keeper.Keep(ctx, cr); err != nil {
		return fmt.Errorf("CertificateRequest %s/%s stays until its certificate is recorded: %w", cr.Namespace, cr.Name, err)
	}
	err := w.signer.cluster.Client.Delete(ctx, &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: cr.Namespace, Name: cr.Name},
	}, client.Preconditions{UID: &cr.UID})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete CertificateRequest %s/%s: %w", cr.Namespace, cr.Name, err)
	}
	kind := "finished"
	if p == pending {
		kind = "orphan"
		w.log.Info("deleted an orphaned certificate request", "request", cr.Name, "created", cr.CreationTimestamp.Time)
	}
	w.signer.metrics.swept.WithLabelValues(kind).Inc()
	return nil
}

// forgetLeft takes those out of swept that are no longer among all.
func forgetLeft(swept map[types.UID]bool, all []*cmapi.CertificateRequest) {
	if len(swept) == 0 {
		return
	}
	still := make(map[types.UID]bool, len(swept))
	for _, cr := range all {
		if swept[cr.UID] {
			still[cr.UID] = true
		}
	}
	for uid := range swept {
		if !still[uid] {
			delete(swept, uid)
		}
	}
}
