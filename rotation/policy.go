// Package rotation looks after what expires: it renews Signet's own serving certificate in time and
// brings the mesh's trust anchors into force.
//
// What is due and when is decided by pure functions of a validity and a moment; the loops around them
// only wait and try.
package rotation

import "time"

// State is how far a certificate has come in its life.
type State string

// The states, in their order.
const (
	Fresh   State = "fresh"
	Due     State = "due"     // it should be renewed now
	Overdue State = "overdue" // it should have been renewed: somebody should look
	Expired State = "expired"
)

// Parts of a serving certificate's life after which it is due, and overdue.
const (
	dueAt     = 2.0 / 3
	overdueAt = 5.0 / 6
)

// Decide says in which state a certificate with this validity is at now. The last second of the
// validity belongs to it (RFC 5280 §4.1.2.5).
func Decide(notBefore, notAfter, now time.Time) State {
	life := notAfter.Sub(notBefore)
	switch age := now.Sub(notBefore); {
	case now.After(notAfter):
		return Expired
	case age >= part(life, overdueAt):
		return Overdue
	case age >= part(life, dueAt):
		return Due
	}
	return Fresh
}

// renewIn is how long a certificate with this validity can still wait for its renewal at now: 0 where
// it is due.
func renewIn(notBefore, notAfter, now time.Time) time.Duration {
	return max(0, notBefore.Add(part(notAfter.Sub(notBefore), dueAt)).Sub(now))
}

// retryIn is the pause after the given number of failures in a row: a second, doubled each time, up
// to a minute, and never more than a twentieth of the life that is left. Where none is left, a replica
// waits to be of use again, so that the pause is ten seconds at most.
func retryIn(failures int, left time.Duration) time.Duration {
	pause := time.Minute
	if failures < 7 {
		pause = min(pause, time.Second<<(failures-1))
	}
	if left <= 0 {
		return min(pause, 10*time.Second)
	}
	return min(pause, max(left/20, time.Second))
}

func part(d time.Duration, fraction float64) time.Duration {
	return time.Duration(float64(d) * fraction)
}
