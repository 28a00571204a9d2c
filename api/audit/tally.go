package audit

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// maxKinds is how many different counts are kept between two events; beyond, there is one for all others of a
	// reason. Those are few, but never more than maxOthers.
	maxKinds  = 1000
	maxOthers = 100
	// detailedEvery and detailedBurst bound how many counts with details become events: 86,400 a day and 1,000 more,
	// about 60 MB.
	detailedEvery = time.Second
	detailedBurst = 1000
)

// seen is how often something happened, and two of the times.
type seen struct {
	count       int64
	first, last time.Time
}

// tally counts in memory what strangers can cause. Safe for concurrent use.
type tally[K comparable] struct {
	mu     sync.Mutex // guards the following
	counts map[K]seen
	budget *rate.Limiter
}

func newTally[K comparable]() *tally[K] {
	return &tally[K]{counts: make(map[K]seen), budget: rate.NewLimiter(rate.Every(detailedEvery), detailedBurst)}
}

// add counts under key, or, where there are too many, under other. It says false where it couldn't.
func (t *tally[K]) add(key, other K, s seen) bool { return t.addAt(time.Now(), key, other, s) }

func (t *tally[K]) addAt(now time.Time, key, other K, s seen) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, ok := t.counts[key]
	if !ok && key != other && (len(t.counts) >= maxKinds || !t.budget.AllowN(now, 1)) {
		key = other
		known, ok = t.counts[key]
	}
	if ok {
		if known.first.Before(s.first) {
			s.first = known.first
		}
		if known.last.After(s.last) {
			s.last = known.last
		}
		s.count += known.count
	} else if len(t.counts) >= maxKinds+maxOthers {
		return false
	}
	t.counts[key] = s
	return true
}

// take empties the counts.
func (t *tally[K]) take() map[K]seen {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := t.counts
	t.counts = make(map[K]seen)
	return counts
}
