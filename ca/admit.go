package ca

import (
	"context"
	"errors"
	"time"

	"golang.org/x/time/rate"
	lru "k8s.io/apimachinery/pkg/util/cache"
)

// admission lets authenticated callers through to the signer: within their budgets of certificates
// per minute, and then fairly, one slot each. What a node's proxy asks for has the budget and the bound of its node too. Safe
// for concurrent use.
type admission struct {
	cfg     AdmissionConfig
	queue   *queue
	nodes   *queue              // of what node proxies ask for, before it may enter queue
	budgets *lru.LRUExpireCache // of *rate.Limiter, by caller, by namespace and by node
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
		nodes:   newQueue(cfg.InFlight+cfg.QueueLength, cfg.InFlightPerNode, cfg.QueueLength),
		budgets: lru.NewLRUExpireCache(budgetEntries),
	}
}

// share is what is left of one of the budgets that a request is charged to.
type share struct {
	*rate.Limiter
	over func() error
}

// shares are those of a caller with its grant.
func (a *admission) shares(caller *Caller, grant Grant) []share {
	over := func(what string, most int, setting string) func() error {
		return func() error {
			return kindBudget.because("%s asks for more than %d certificates a minute (admission.%s)", what, most, setting)
		}
	}
	all := []share{
		{a.budget("caller:"+grant.key(caller), a.cfg.PerCallerPerMinute),
			over("caller "+caller.ID.String(), a.cfg.PerCallerPerMinute, "perCallerPerMinute")},
		{a.budget("namespace:"+grant.Namespace, a.cfg.PerNamespacePerMinute),
			over("namespace "+grant.Namespace, a.cfg.PerNamespacePerMinute, "perNamespacePerMinute")},
	}
	if grant.Impersonated {
		all = append(all, share{a.budget("node:"+caller.key(), a.cfg.PerNodePerMinute),
			over("the proxy in pod "+caller.PodName, a.cfg.PerNodePerMinute, "perNodePerMinute")})
	}
	return all
}

// admit waits for the turn of a caller with its grant. The slot is given back by release, when the request has ended at
// the issuer too.
func (a *admission) admit(ctx context.Context, caller *Caller, grant Grant) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		kind := kindCanceled
		if errors.Is(err, context.DeadlineExceeded) { // its own time is up: the caller is still there
			kind = kindTimeout
		}
		return nil, kind.because("wait for a turn: %w", err)
	}
	shares := a.shares(caller, grant)
	// Who has nothing left need not wait.
	for _, s := range shares {
		if s.Tokens() < 1 {
			return nil, s.over()
		}
	}
	waiting, cancel := context.WithTimeout(ctx, a.cfg.QueueTime.Or(0))
	defer cancel()
	release, err = a.acquire(waiting, caller, grant)
	switch {
	case err == nil:
		// Only what goes on to the issuer is charged, and only as long as there is something left: many
		// may have waited for the same rest.
		for _, s := range shares {
			if !s.Allow() {
				release()
				return nil, s.over()
			}
		}
		return release, nil
	case errors.Is(err, context.Canceled):
		return nil, kindCanceled.because("wait for a turn: %w", err)
	}
	return nil, kindOverloaded.because("wait for a turn: %w", err)
}

// acquire waits for a slot; what a node's proxy asks for, until it is the node's turn before.
func (a *admission) acquire(ctx context.Context, caller *Caller, grant Grant) (release func(), err error) {
	if !grant.Impersonated {
		return a.queue.acquire(ctx, grant.Namespace, grant.key(caller))
	}
	leave, err := a.nodes.acquire(ctx, caller.key(), caller.key())
	if err != nil {
		return nil, err
	}
	slot, err := a.queue.acquire(ctx, grant.Namespace, grant.key(caller))
	if err != nil {
		leave()
		return nil, err
	}
	return func() { slot(); leave() }, nil
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
