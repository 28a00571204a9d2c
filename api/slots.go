package api

import "sync"

// slots bound what is under way at once, in all and for each caller.
type slots struct {
	most, mostEach int

	mu   sync.Mutex // guards the following
	all  int
	each map[string]int
}

// newSlots allows most at once, and a quarter of them to one caller.
func newSlots(most int) *slots {
	return &slots{most: most, mostEach: max(1, most/4), each: make(map[string]int)}
}

// enter takes a place, which must be left, or says that there is none.
func (s *slots) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= s.most {
		return false
	}
	s.all++
	return true
}

func (s *slots) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
}

// enterAs takes one of a caller's places, beside the one that enter took.
func (s *slots) enterAs(caller string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.each[caller] >= s.mostEach {
		return false
	}
	s.each[caller]++
	return true
}

func (s *slots) leaveAs(caller string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.each[caller]--; s.each[caller] <= 0 {
		delete(s.each, caller)
	}
}

func (s *slots) used() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}
