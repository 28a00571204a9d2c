// Package rotation looks after what changes and what expires: it chooses the issuer that signs, takes the mesh's
// trust anchors through their rollover, renews Signet's own serving certificate and istiod's, and watches everything
// that ends.
//
// [Issuers] and [Trust] run on every replica and put issuers and anchors in force there; [Rollover] and [Istiod] run
// where the lease is held; [Replicas] tells that one what the others do.
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

// Kind is what sort of thing ends. It is a label of metrics.
type Kind string

// The kinds; there are no others.
const (
	KindLeaf           Kind = "leaf"            // issued to a workload
	KindServing        Kind = "serving"         // Signet's own
	KindIstiod         Kind = "istiod"          // istiod's, in the Secret istiod-tls
	KindIntermediate   Kind = "intermediate"    // between a leaf and its anchor
	KindAnchor         Kind = "anchor"          // a trust anchor in force
	KindFallbackAnchor Kind = "fallback_anchor" // one that isn't in force, and can be
	KindCRL            Kind = "crl"             // a revocation list, from thisUpdate to nextUpdate
)

// Policy says when something is due and overdue, in parts of its life.
type Policy struct {
	Due, Overdue float64
}

var policies = map[Kind]Policy{
	// Clients renew at half of the lifetime (R37).
	KindLeaf: {0.5, 0.55},
	// We renew these ourselves.
	KindServing: {2.0 / 3, 5.0 / 6},
	KindIstiod:  {2.0 / 3, 5.0 / 6},
	// A new CA certificate has to reach everybody before it can sign, which takes people and days.
	KindIntermediate:   {0.8, 0.9},
	KindAnchor:         {0.8, 0.9},
	KindFallbackAnchor: {0.8, 0.9},
	// Successive lists may overlap by as little as a tenth of their life.
	KindCRL: {0.8, 0.95},
}

// Policy is the policy of a kind.
func (k Kind) Policy() Policy { return policies[k] }

// policyFor is that of a kind, for something that somebody else renews at due: then it is overdue when half of what is left
// by then has gone by. Due is zero where that isn't known, and means nothing outside of the validity.
func policyFor(kind Kind, notBefore, notAfter, due time.Time) Policy {
	if !due.After(notBefore) || !due.Before(notAfter) {
		return kind.Policy()
	}
	fraction := float64(due.Sub(notBefore)) / float64(notAfter.Sub(notBefore))
	return Policy{Due: fraction, Overdue: (1 + fraction) / 2}
}

// moments are those at which the state changes: when it is due, overdue, and over.
func (p Policy) moments(notBefore, notAfter time.Time) (due, overdue, over time.Time) {
	life := notAfter.Sub(notBefore)
	// RFC 5280 §4.1.2.5: the last second of the validity belongs to it.
	return notBefore.Add(part(life, p.Due)), notBefore.Add(part(life, p.Overdue)), notAfter.Add(1)
}

// Decide says in which state something with this policy and validity is at now. The last second of the
// validity belongs to it (RFC 5280 §4.1.2.5). What ends before it begins is expired from the start; what
// hasn't begun is fresh, because clocks differ.
func Decide(policy Policy, notBefore, notAfter, now time.Time) State {
	due, overdue, over := policy.moments(notBefore, notAfter)
	switch {
	case !now.Before(over), notAfter.Before(notBefore):
		return Expired
	case !now.Before(overdue):
		return Overdue
	case !now.Before(due):
		return Due
	}
	return Fresh
}

// nextChange is the first moment after now at which Decide says something else; zero where there is none.
func nextChange(policy Policy, notBefore, notAfter, now time.Time) time.Time {
	if notAfter.Before(notBefore) {
		return time.Time{}
	}
	due, overdue, over := policy.moments(notBefore, notAfter)
	for _, moment := range []time.Time{due, overdue, over} {
		if moment.After(now) {
			return moment
		}
	}
	return time.Time{}
}

// remaining is the part of the life that is left at now, between 0 and 1.
func remaining(notBefore, notAfter, now time.Time) float64 {
	life := notAfter.Sub(notBefore)
	if life <= 0 {
		return 0
	}
	return min(1, max(0, float64(notAfter.Sub(now))/float64(life)))
}

// renewIn is how long a serving certificate with this validity can still wait for its renewal at now: 0
// where it is due.
func renewIn(notBefore, notAfter, now time.Time) time.Duration {
	due, _, _ := KindServing.Policy().moments(notBefore, notAfter)
	return max(0, due.Sub(now))
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
