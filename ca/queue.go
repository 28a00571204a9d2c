package ca

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// errShed says that a request was not let in: its turn would have come too late.
var errShed = errors.New("too many requests")

// queue hands out a bounded number of slots, fairly: groups take turns, and within a group its
// members do. A group is a namespace or an address, a member is one caller. Whoever can't hope for a
// slot before its deadline is turned away at once; all others wait for their turn. Safe for
// concurrent use.
type queue struct {
	slots      int // in all
	perMember  int // slots that one member may hold
	maxWaiting int

	mu      sync.Mutex // guards the following
	held    int
	waiting int
	turns   int // members that wait
	groups  map[string]*group
	ring    *list.List    // of *group with waiting members, whose turn is next at the front
	hold    time.Duration // how long a slot is held, as an average that follows the last ones
}

type group struct {
	name    string
	waiting int
	members map[string]*member // those that wait or hold
	ring    *list.List         // of *member that wait, whose turn is next at the front
	turn    *list.Element      // in queue.ring, nil when nobody in the group waits
}

type member struct {
	name    string
	held    int
	tickets *list.List    // of chan struct{}, first come first served
	turn    *list.Element // in group.ring, nil when the member doesn't wait
}

func newQueue(slots, perMember, maxWaiting int) *queue {
	return &queue{
		slots:      slots,
		perMember:  perMember,
		maxWaiting: maxWaiting,
		groups:     make(map[string]*group),
		ring:       list.New(),
	}
}

// acquire waits for a slot, for as long as ctx lets it. The error matches errShed where the queue is
// too long to reach a slot by then. The slot is given back by calling release, once.
func (q *queue) acquire(ctx context.Context, groupName, memberName string) (release func(), err error) {
	q.mu.Lock()
	if q.held == 0 {
		q.hold = 0 // what was slow has ended; a queue that starts anew has no memory of it
	}
	g, m := q.find(groupName, memberName)
	if q.held < q.slots && m.held < q.perMember && m.tickets.Len() == 0 {
		q.take(m)
		q.mu.Unlock()
		return q.releaser(g, m), nil
	}
	if wait, ok := q.tooLong(ctx, g, m); ok {
		q.drop(g, m)
		waiting := q.waiting
		q.mu.Unlock()
		return nil, fmt.Errorf("%w: %d wait, the turn would come in about %s", errShed, waiting, wait)
	}
	ticket := make(chan struct{})
	place := m.tickets.PushBack(ticket)
	q.waiting++
	g.waiting++
	q.enlist(g, m)
	q.mu.Unlock()

	select {
	case <-ticket:
		return q.releaser(g, m), nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-ticket: // the turn came at the same moment
		q.give(g, m)
	default:
		m.tickets.Remove(place)
		q.waiting--
		g.waiting--
		q.delist(g, m)
		q.drop(g, m)
	}
	return nil, fmt.Errorf("%w: %w", errShed, context.Cause(ctx))
}

// releaser gives the slot back, once however often it is called.
func (q *queue) releaser(g *group, m *member) func() {
	began := time.Now()
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.hold += (time.Since(began) - q.hold) / 8
		q.give(g, m)
	})
}

// give takes the slot from m and hands free slots on. The caller holds mu.
func (q *queue) give(g *group, m *member) {
	q.held--
	m.held--
	q.drop(g, m)
	q.dispatch()
}

// take gives a slot to m. The caller holds mu.
func (q *queue) take(m *member) {
	q.held++
	m.held++
}

// dispatch hands out free slots: to the first group whose turn it is and that has a member which may
// hold another. The caller holds mu.
func (q *queue) dispatch() {
	for q.held < q.slots {
		g, m := q.next()
		if m == nil {
			return
		}
		first := m.tickets.Front()
		m.tickets.Remove(first)
		q.waiting--
		g.waiting--
		q.take(m)
		close(first.Value.(chan struct{}))
		// Both go to the end of their rings, or out of them.
		if m.tickets.Len() == 0 {
			q.delist(g, m)
		} else {
			g.ring.MoveToBack(m.turn)
		}
		if g.turn != nil {
			q.ring.MoveToBack(g.turn)
		}
	}
}

func (q *queue) next() (*group, *member) {
	for e := q.ring.Front(); e != nil; e = e.Next() {
		g := e.Value.(*group)
		for f := g.ring.Front(); f != nil; f = f.Next() {
			if m := f.Value.(*member); m.held < q.perMember {
				return g, m
			}
		}
	}
	return nil, nil
}

// tooLong predicts the wait of a newcomer for m in g, and says whether there is no use in it. A group may
// have a quarter of the places to wait, so that none keeps the others out.
func (q *queue) tooLong(ctx context.Context, g *group, m *member) (time.Duration, bool) {
	if q.waiting >= q.maxWaiting || g.waiting >= (q.maxWaiting+3)/4 {
		return q.hold, true
	}
	// Each of m's own requests before this one, and this one, waits for a turn of the whole ring at
	// most; and m can't hold more slots than it may.
	own := m.tickets.Len() + 1
	ahead := min(q.waiting, own*(q.turns+1))
	rounds := float64(ahead+1) / float64(q.slots)
	if mine := float64(own) / float64(q.perMember); m.held >= q.perMember && mine > rounds {
		rounds = mine
	}
	wait := time.Duration(rounds * float64(q.hold))
	deadline, ok := ctx.Deadline()
	return wait, ok && wait > time.Until(deadline)
}

func (q *queue) find(groupName, memberName string) (*group, *member) {
	g := q.groups[groupName]
	if g == nil {
		g = &group{name: groupName, members: make(map[string]*member), ring: list.New()}
		q.groups[groupName] = g
	}
	m := g.members[memberName]
	if m == nil {
		m = &member{name: memberName, tickets: list.New()}
		g.members[memberName] = m
	}
	return g, m
}

// enlist puts a member that waits, and its group, into the rings.
func (q *queue) enlist(g *group, m *member) {
	if m.turn == nil {
		m.turn = g.ring.PushBack(m)
		q.turns++
	}
	if g.turn == nil {
		g.turn = q.ring.PushBack(g)
	}
}

// delist takes a member that doesn't wait any more, and a group without such members, out of them.
func (q *queue) delist(g *group, m *member) {
	if m.tickets.Len() == 0 && m.turn != nil {
		g.ring.Remove(m.turn)
		m.turn = nil
		q.turns--
	}
	if g.ring.Len() == 0 && g.turn != nil {
		q.ring.Remove(g.turn)
		g.turn = nil
	}
}

// drop forgets a member, and a group, that neither waits nor holds.
func (q *queue) drop(g *group, m *member) {
	if m.held == 0 && m.tickets.Len() == 0 {
		delete(g.members, m.name)
	}
	if len(g.members) == 0 {
		delete(q.groups, g.name)
	}
}

// lengths are the slots held and the requests that wait, for metrics.
func (q *queue) lengths() (held, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.held, q.waiting
}
