package ca

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
)

// While more callers fail to prove who they are than any mesh has by accident, the refusals of further ones are held
// back: who waits for the answer before it tries again is slow then, and leaves the processors to others. Callers that
// prove who they are notice nothing.
const (
	junkPerSecond  = 50
	junkBurst      = 500
	junkDelay      = 10 * time.Second
	junkTurnedAway = time.Second // for those who are turned away before anybody has looked at their proof, honest ones among them
	junkHeld       = 2000        // requests that are held back at once; further ones are refused without delay
)

// junk holds back refusals. Safe for concurrent use.
type junk struct {
	soon *rate.Limiter // of those that aren't held back
	held atomic.Int64
}

func newJunk(reg prometheus.Registerer) *junk {
	j := &junk{soon: rate.NewLimiter(junkPerSecond, junkBurst)}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "refusals_held_back", Help: "Callers that didn't prove who they are, whose refusal is held back because there are so many of them.",
	}, func() float64 { return float64(j.held.Load()) }))
	return j
}

// hold waits before a caller is told that it isn't authenticated, if that is for want of proof, or because too many wait to
// give theirs. It ends with ctx.
func (j *junk) hold(ctx context.Context, refused error) {
	delay := junkDelay
	switch refuse(refused).code {
	case codes.Unauthenticated:
	case codes.ResourceExhausted:
		delay = junkTurnedAway
	default:
		return
	}
	if j.soon.Allow() {
		return
	}
	defer j.held.Add(-1)
	if j.held.Add(1) <= junkHeld {
		sleep(ctx, delay, nil)
	}
}
