package issuer

import (
	"container/heap"
	"sync"
	"time"
)

// urgency is the order in which places get their turn.
type urgency uint8

const (
	urgentNew    urgency = iota // a namespace that has just come: pods wait for it
	urgentRepair                // something was changed or deleted
	urgentMass                  // all the others: a new document, or another try
	urgencies
)

// slot is what the queue knows of a place. It is guarded by the queue's mutex.
type slot struct {
	due     time.Time
	turn    uint32 // counts entries made for the place; older ones are void
	urgency urgency
	waiting bool // has an entry
	busy    bool // is being worked on, and gets an entry afterwards if again
	again   bool
}

// placeQueue hands out places that are due, the most urgent first, each to one worker at a time. Make it
// with newPlaceQueue. Safe for concurrent use.
type placeQueue struct {
	cond *sync.Cond // its mutex guards the following

	ready  [urgencies][]entry
	later  entryHeap
	held   time.Time // nothing is handed out before
	timer  *time.Timer
	closed bool
}

type entry struct {
	place *place
	turn  uint32
	due   time.Time
}

func newPlaceQueue() *placeQueue {
	q := &placeQueue{cond: sync.NewCond(&sync.Mutex{})}
	q.timer = time.AfterFunc(time.Hour, q.wake)
	q.timer.Stop()
	return q
}

// add has p handed out when it is due. One that waits already keeps the earlier time and the greater
// urgency; one that is being worked on is handed out again.
func (q *placeQueue) add(p *place, u urgency, due time.Time) {
	q.cond.L.Lock()
	defer q.cond.L.Unlock()
	s := &p.slot
	if s.busy {
		if !s.again || due.Before(s.due) {
			s.due = due
		}
		if !s.again || u < s.urgency {
			s.urgency = u
		}
		s.again = true
		return
	}
	if s.waiting && u >= s.urgency && !due.Before(s.due) {
		return
	}
	if s.waiting {
		u = min(u, s.urgency)
		if s.due.Before(due) {
			due = s.due
		}
	}
	s.urgency, s.due = u, due
	q.push(p)
}

// push makes an entry for p. The caller holds the mutex.
func (q *placeQueue) push(p *place) {
	s := &p.slot
	s.turn++
	s.waiting = true
	e := entry{p, s.turn, s.due}
	if e.due.After(time.Now()) {
		heap.Push(&q.later, e)
	} else {
		q.ready[s.urgency] = append(q.ready[s.urgency], e)
	}
	q.cond.Signal()
}

// take waits for the next place; it is nil when the queue was closed. Done must follow.
func (q *placeQueue) take() *place {
	q.cond.L.Lock()
	defer q.cond.L.Unlock()
	for !q.closed {
		now := time.Now()
		if q.held.After(now) {
			q.timer.Reset(q.held.Sub(now))
			q.cond.Wait()
			continue
		}
		for len(q.later) > 0 && !q.later[0].due.After(now) {
			e, _ := heap.Pop(&q.later).(entry)
			if e.valid() {
				u := e.place.slot.urgency
				q.ready[u] = append(q.ready[u], e)
			}
		}
		if p := q.first(); p != nil {
			p.slot.waiting, p.slot.busy = false, true
			return p
		}
		if len(q.later) > 0 {
			q.timer.Reset(q.later[0].due.Sub(now))
		}
		q.cond.Wait()
	}
	return nil
}

// first takes the first valid entry that is ready. The caller holds the mutex.
func (q *placeQueue) first() *place {
	for u, entries := range q.ready {
		for len(entries) > 0 {
			e := entries[0]
			entries[0] = entry{}
			entries = entries[1:]
			if e.valid() {
				q.ready[u] = entries
				return e.place
			}
		}
		q.ready[u] = nil // with what it grew to
	}
	return nil
}

func (e entry) valid() bool { return e.place.slot.waiting && e.place.slot.turn == e.turn }

// done ends the work on p.
func (q *placeQueue) done(p *place) {
	q.cond.L.Lock()
	defer q.cond.L.Unlock()
	p.slot.busy = false
	if p.slot.again {
		p.slot.again = false
		q.push(p)
	}
}

// hold hands nothing out before until.
func (q *placeQueue) hold(until time.Time) {
	q.cond.L.Lock()
	defer q.cond.L.Unlock()
	q.held = until
}

// close ends all takes.
func (q *placeQueue) close() {
	q.cond.L.Lock()
	defer q.cond.L.Unlock()
	q.closed = true
	q.timer.Stop()
	q.cond.Broadcast()
}

func (q *placeQueue) wake() {
	q.cond.L.Lock()
	defer q.cond.L.Unlock()
	q.cond.Broadcast()
}

// entryHeap has the entry that is due first at its top.
type entryHeap []entry

func (h entryHeap) Len() int           { return len(h) }
func (h entryHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h entryHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push and Pop are for package heap.
func (h *entryHeap) Push(x any) {
	if e, ok := x.(entry); ok {
		*h = append(*h, e)
	}
}

// Pop removes the last entry.
func (h *entryHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = entry{}
	*h = (*h)[:last]
	return e
}
