package probe

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
	lru "k8s.io/apimachinery/pkg/util/cache"

	"github.com/signet-ca/signet/api"
)

const (
	// maxProbes is how many probes are under way at most, and maxProbesEach how many of one caller's.
	maxProbes     = 8
	maxProbesEach = 2
	// maxDials is how many connections are open at most, in all; dialsEach how many for one probe.
	maxDials  = 16
	dialsEach = 4
	// keptCallers bounds the callers whose pace is remembered; keepCaller is how long.
	keptCallers = 4096
	keepCaller  = 10 * time.Minute
)

// limits bound the probes under way and their pace. Safe for concurrent use.
type limits struct {
	perMinute int

	mu    sync.Mutex // guards the following
	all   int
	each  map[string]int
	paces *lru.LRUExpireCache // *rate.Limiter by caller
}

func newLimits(perMinute int) *limits {
	return &limits{perMinute: perMinute, each: make(map[string]int), paces: lru.NewLRUExpireCache(keptCallers)}
}

// enterOwn lets a probe in that nobody asked for, which must leave, if there is a place.
func (l *limits) enterOwn() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxProbes {
		return api.ErrTooManyProbes
	}
	l.all++
	return nil
}

func (l *limits) leaveOwn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
}

// enter lets a caller's probe in, which must leave, or says why not: the error matches [api.ErrTooManyProbes].
func (l *limits) enter(caller string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.each[caller] >= maxProbesEach:
		return fmt.Errorf("%w: you have %d under way; ask again when one is answered", api.ErrTooManyProbes, maxProbesEach)
	case l.all >= maxProbes:
		return fmt.Errorf("%w: %d are under way; ask again when one is answered", api.ErrTooManyProbes, maxProbes)
	}
	var pace *rate.Limiter
	if kept, ok := l.paces.Get(caller); ok {
		pace = kept.(*rate.Limiter)
	} else {
		pace = rate.NewLimiter(rate.Limit(l.perMinute)/60, max(1, l.perMinute/4))
	}
	l.paces.Add(caller, pace, keepCaller)
	if !pace.Allow() {
		return fmt.Errorf("%w: you may ask for %d in a minute (probes.perMinute); ask again later", api.ErrTooManyProbes, l.perMinute)
	}
	l.all++
	l.each[caller]++
	return nil
}

func (l *limits) leave(caller string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.each[caller]--; l.each[caller] <= 0 {
		delete(l.each, caller)
	}
}

func (l *limits) underWay() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all
}
