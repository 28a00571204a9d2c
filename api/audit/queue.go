package audit

import (
	"bytes"
	"sync"
	"time"
)

// queue keeps lines until they are written, bounded in number and in bytes, and counts those that it had no room for.
// Safe for concurrent use.
type queue struct {
	maxEvents, maxBytes int
	more                chan struct{} // holds one when there is something to take

	mu    sync.Mutex // guards the following
	next  batch
	lost  lost // since the last take
	all   int64
	ended bool
}

func newQueue(maxEvents, maxBytes int) *queue {
	return &queue{maxEvents: maxEvents, maxBytes: maxBytes, more: make(chan struct{}, 1)}
}

// room says whether one more event may be put. Where there is no room for it, it counts as lost.
func (q *queue) room(k kind) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.fits(0) {
		return true
	}
	q.count(k)
	return false
}

// put adds a line, or counts it as lost.
func (q *queue) put(k kind, line []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.fits(len(line)) {
		q.count(k)
		return false
	}
	q.next.add(k, line)
	q.wake()
	return true
}

// fits says that size bytes more can be kept. The caller holds mu.
func (q *queue) fits(size int) bool {
	return !q.ended && len(q.next.kinds) < q.maxEvents && len(q.next.lines)+size <= q.maxBytes
}

// lose counts an event that was never put.
func (q *queue) lose(k kind) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.count(k)
}

// count notes a loss. The caller holds mu.
func (q *queue) count(k kind) {
	if q.lost.sum() == 0 {
		q.lost.since = time.Now()
	}
	q.lost.of[k]++
	q.all++
	q.wake()
}

func (q *queue) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// take moves all that waits into b, all of which must be written, and is what was lost behind it.
func (q *queue) take(b *batch) lost {
	b.reset()
	q.mu.Lock()
	defer q.mu.Unlock()
	*b, q.next = q.next, *b
	l := q.lost
	q.lost = lost{}
	return l
}

// end lets in nothing more.
func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
}

// waiting is how many events wait, and how many were ever lost here.
func (q *queue) waiting() (events int, lost int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.next.kinds), q.all
}

func (q *queue) bytes() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.next.lines)
}

// lost is how many events of each kind were lost, since a time.
type lost struct {
	of    [kinds]int64
	since time.Time
}

func (l *lost) sum() int64 {
	var sum int64
	for _, n := range l.of {
		sum += n
	}
	return sum
}

func (l *lost) byType() map[string]int64 {
	by := make(map[string]int64)
	for k, n := range l.of {
		if n > 0 {
			by[kind(k).eventType()] = n
		}
	}
	return by
}

// batch is lines in their order, each with its newline, and their kinds.
type batch struct {
	lines []byte
	kinds []kind
	// done is how much of both is written.
	done struct{ bytes, lines int }
}

func (b *batch) add(k kind, line []byte) {
	b.lines = append(b.lines, line...)
	b.kinds = append(b.kinds, k)
}

// rest is what isn't written.
func (b *batch) rest() []byte { return b.lines[b.done.bytes:] }

// left is the kinds of what isn't written.
func (b *batch) left() []kind { return b.kinds[b.done.lines:] }

// advance notes that size bytes more, which are whole lines, are written, and is their kinds.
func (b *batch) advance(size int) []kind {
	written := b.left()[:bytes.Count(b.rest()[:size], []byte{'\n'})]
	b.done.bytes += size
	b.done.lines += len(written)
	return written
}

// keptBytes is how large a buffer is kept for the next lines.
const keptBytes = 256 << 10

// reset makes a batch of which all is written an empty one.
func (b *batch) reset() {
	if cap(b.lines) > keptBytes {
		*b = batch{}
		return
	}
	*b = batch{lines: b.lines[:0], kinds: b.kinds[:0]}
}
