package ca

import (
	"context"
	"errors"
	"time"

	"golang.org/x/time/rate"
	lru "k8s.io/apimachinery/pkg/util/cache"
)

// admission lets authenticated callers through to the signer: within their budgets of certificates
// per minute, and then fairly, one slot each. Safe for concurrent use.
type admission struct {
	cfg     AdmissionConfig
	queue   *queue
	budgets *lru.LRUExpireCache // of *rate.Limiter, by caller and by namespace
}

// budgetEntries bounds the budgets that are remembered; one that was not used for budgetIdle is full
// again and need not be.
const (
	budgetEntries = 50_000
	budgetIdle    = 2 * time.Minute
)

func newAdmission(cfg AdmissionConfig) *admission {
	cfg = cfg.withDefaults()
	return &admission{
		cfg:     cfg,
		queue:   newQueue(cfg.InFlight, cfg.InFlightPerCaller, cfg.QueueLength),
		budgets: lru.NewLRUExpireCache(budgetEntries),
	}
}

// admit waits for the turn of a caller with its grant. The slot is given back by release, when the request has ended at
// the issuer too.
func (a *admission) admit(ctx context.Context, caller *Caller, grant Grant) (release func(), err error) {
	key := grant.key(caller)
	own := a.budget("caller:"+key, a.cfg.PerCallerPerMinute)
	shared := a.budget("namespace:"+grant.Namespace, a.cfg.PerNamespacePerMinute)
	overOwn := func() error {
		return kindBudget.because("caller %s asks for more than %d certificates a minute (admission.perCallerPerMinute)", caller.ID, a.cfg.PerCallerPerMinute)
	}
	overShared := func() error {
		return kindBudget.because("namespace %s asks for more than %d certificates a minute (admission.perNamespacePerMinute)", grant.Namespace, a.cfg.PerNamespacePerMinute)
	}
	// Who has nothing left need not wait.
	if own.Tokens() < 1 {
		return nil, overOwn()
	}
	if shared.Tokens() < 1 {
		return nil, overShared()
	}
	waiting, cancel := context.WithTimeout(ctx, a.cfg.QueueTime.Or(0))
	defer cancel()
	release, err = a.queue.acquire(waiting, grant.Namespace, key)
	switch {
	case err == nil:
		// Only what goes on to the issuer is charged, and only as long as there is something left: many
		// may have waited for the same rest.
		if !own.Allow() {
			release()
			return nil, overOwn()
		}
		if !shared.Allow() {
			release()
			return nil, overShared()
		}
		return release, nil
	case errors.Is(err, context.Canceled):
		return nil, kindCanceled.because("wait for a turn: %w", err)
	}
	return nil, kindOverloaded.because("wait for a turn: %w", err)
}

// budget is the rest of what a caller or a namespace may ask for.
func (a *admission) budget(key string, perMinute int) *rate.Limiter {
	budget, ok := a.budgets.Get(key)
	if !ok {
		budget = rate.NewLimiter(rate.Limit(float64(perMinute)/60), perMinute)
	}
	// Kept for another while. Two first requests at once may each bring a budget: one of them stays.
	a.budgets.Add(key, budget, budgetIdle)
	return budget.(*rate.Limiter)
}
