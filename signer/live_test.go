package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

func newTestLive() *live { return newLive("istio-system", "", nil, slog.New(slog.DiscardHandler), nil) }

func pendingRequest(uid types.UID) *cmapi.CertificateRequest {
	return &cmapi.CertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "signet-" + string(uid), UID: uid, CreationTimestamp: metav1.Now()}}
}

// finalRequest is a later version of pendingRequest.
func finalRequest(uid types.UID, reason string) *cmapi.CertificateRequest {
	cr := pendingRequest(uid)
	status := cmmeta.ConditionFalse
	if reason == cmapi.CertificateRequestReasonIssued {
		status, cr.Status.Certificate = cmmeta.ConditionTrue, []byte("PEM")
	}
	cr.Status.Conditions = []cmapi.CertificateRequestCondition{condition(cmapi.CertificateRequestConditionReady, status, reason, time.Now())}
	return cr
}

// idle says that nobody waits and nothing is kept for who did.
func (l *live) idle(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	assert.Empty(t, l.waiting)
}

type waited struct {
	final *cmapi.CertificateRequest
	err   error
}

// waitFor waits in the background.
func (l *live) waitFor(ctx context.Context, cr *cmapi.CertificateRequest) <-chan waited {
	result := make(chan waited, 1)
	go func() {
		final, err := l.wait(ctx, cr)
		result <- waited{final, err}
	}()
	return result
}

func TestWaitLooksFirst(t *testing.T) {
	t.Run("at the object itself", func(t *testing.T) {
		l, cr := newTestLive(), finalRequest("a", "Issued")
		final, err := l.wait(t.Context(), cr)
		require.NoError(t, err)
		assert.Same(t, cr, final)
	})
	t.Run("at what the informer knows", func(t *testing.T) {
		for _, reason := range []string{"Issued", "Failed", "Denied"} {
			l, cr := newTestLive(), finalRequest("a", reason)
			l.observe(cr)
			final, err := l.wait(t.Context(), pendingRequest("a"))
			require.NoError(t, err)
			assert.Same(t, cr, final)
			l.idle(t)
		}
	})
	t.Run("even when its time is up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		l, cr := newTestLive(), finalRequest("a", "Issued")
		l.observe(cr)
		final, err := l.wait(ctx, pendingRequest("a"))
		require.NoError(t, err)
		assert.Same(t, cr, final)
	})
}

func TestWaitForEachFinalPhase(t *testing.T) {
	for _, reason := range []string{"Issued", "Failed", "Denied"} {
		synctest.Test(t, func(t *testing.T) {
			l := newTestLive()
			result := l.waitFor(t.Context(), pendingRequest("a"))
			synctest.Wait()
			l.observe(pendingRequest("a"))
			l.observe(finalRequest("b", reason)) // another one's
			synctest.Wait()
			require.Empty(t, result, "nothing final was told yet")

			cr := finalRequest("a", reason)
			l.observe(cr)
			got := <-result
			require.NoError(t, got.err)
			assert.Same(t, cr, got.final)
			l.idle(t)
			l.observe(cr) // told again, to nobody
		})
	}
}

func TestWaitOfTwoForOneOfWhichOneLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLive()
		why := errors.New("left")
		ctx, leave := context.WithCancelCause(t.Context())
		leaving := l.waitFor(ctx, pendingRequest("a"))
		staying := l.waitFor(t.Context(), pendingRequest("a"))
		synctest.Wait()

		leave(why)
		synctest.Wait()
		assert.ErrorIs(t, (<-leaving).err, why)
		require.Empty(t, staying)

		cr := finalRequest("a", "Issued")
		l.observe(cr)
		got := <-staying
		require.NoError(t, got.err)
		assert.Same(t, cr, got.final)
		l.idle(t)
	})
}

func TestWaitOfAllWhoLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLive()
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, ErrTimeout)
		defer cancel()
		var results []<-chan waited
		for range 3 {
			results = append(results, l.waitFor(ctx, pendingRequest("a")))
		}
		for _, result := range results {
			assert.ErrorIs(t, (<-result).err, ErrTimeout)
		}
		l.idle(t)
		assert.Zero(t, l.silence(time.Now()))
		l.observe(finalRequest("a", "Issued"))
	})
}

func TestUnapproved(t *testing.T) {
	l := newTestLive()
	assert.False(t, l.unapproved("a"), "nothing is known of it")
	cr := pendingRequest("a")
	l.observe(cr)
	assert.True(t, l.unapproved(cr.UID))
	for status, want := range map[cmmeta.ConditionStatus]bool{cmmeta.ConditionFalse: true, cmmeta.ConditionTrue: false} {
		seen := cr.DeepCopy()
		seen.Status.Conditions = append(seen.Status.Conditions, condition(cmapi.CertificateRequestConditionApproved, status, "Policy", time.Now()))
		l.observe(seen)
		assert.Equal(t, want, l.unapproved(cr.UID), "%s", status)
	}
}

func TestWaitForDeleted(t *testing.T) {
	for name, deleted := range map[string]func(l *live, cr *cmapi.CertificateRequest){
		"told": func(l *live, cr *cmapi.CertificateRequest) { l.handler().OnDelete(cr) },
		"tombstone": func(l *live, cr *cmapi.CertificateRequest) {
			l.handler().OnDelete(cache.DeletedFinalStateUnknown{Key: "k", Obj: cr})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newTestLive()
				l.handler().OnAdd(pendingRequest("a"), true)
				result := l.waitFor(t.Context(), pendingRequest("a"))
				synctest.Wait()
				assert.Equal(t, 1, l.count())
				deleted(l, pendingRequest("a"))
				got := <-result
				assert.ErrorIs(t, got.err, errDeleted)
				assert.Nil(t, got.final)
				assert.Zero(t, l.count())
				l.idle(t)
			})
		})
	}
	t.Run("with its answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newTestLive()
			result := l.waitFor(t.Context(), pendingRequest("a"))
			synctest.Wait()
			cr := finalRequest("a", "Issued") // the update was missed, the deletion shows it
			l.handler().OnDelete(cr)
			got := <-result
			require.NoError(t, got.err)
			assert.Same(t, cr, got.final)
		})
	})
}

// A name that is deleted and made again is another object: its UID differs.
func TestWaitTellsObjectsOfOneNameApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLive()
		old, again := finalRequest("old", "Issued"), pendingRequest("new")
		old.Name = again.Name
		result := l.waitFor(t.Context(), again)
		synctest.Wait()
		l.observe(old)
		l.forget(old)
		synctest.Wait()
		require.Empty(t, result)
		l.observe(finalRequest("new", "Failed"))
		assert.Equal(t, types.UID("new"), (<-result).final.UID)
	})
}

func TestHandlerPassesOverOtherObjects(t *testing.T) {
	l := newTestLive()
	l.handler().OnAdd("text", false)
	l.handler().OnUpdate(nil, 7)
	l.handler().OnDelete(cache.DeletedFinalStateUnknown{Key: "k", Obj: nil})
	l.handler().OnDelete(nil)
	assert.Zero(t, l.count())
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLive()
		pass := func(d time.Duration) { <-time.After(d) }
		pass(time.Hour)
		assert.Zero(t, l.silence(time.Now()), "nobody waits")

		ctx, cancel := context.WithCancel(t.Context())
		result := l.waitFor(ctx, pendingRequest("a"))
		synctest.Wait()
		pass(3 * time.Second)
		assert.Equal(t, 3*time.Second, l.silence(time.Now()), "since the first began to wait")

		second := l.waitFor(ctx, pendingRequest("b"))
		synctest.Wait()
		pass(time.Second)
		assert.Equal(t, 4*time.Second, l.silence(time.Now()), "a second one doesn't make it shorter")

		l.observe(pendingRequest("c"))
		assert.Zero(t, l.silence(time.Now()), "anything told ends it")
		pass(2 * time.Second)
		assert.Equal(t, 2*time.Second, l.silence(time.Now()))
		l.forget(pendingRequest("c"))
		assert.Zero(t, l.silence(time.Now()))

		cancel()
		<-result
		<-second
		pass(time.Second)
		assert.Zero(t, l.silence(time.Now()), "nobody waits any more")
	})
}

// While the stream is not silent, or nobody waits, the guard makes no LIST: there is no client here.
func TestGuardLeavesALivelyStreamAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLive()
		ctx, cancel := context.WithCancel(t.Context())
		var guarding sync.WaitGroup
		guarding.Go(func() { l.guard(ctx) })
		<-time.After(time.Minute) // nobody waits
		result := l.waitFor(t.Context(), pendingRequest("a"))
		for range 100 {
			<-time.After(silenceBound - silenceBound/4)
			l.observe(pendingRequest("other"))
		}
		l.observe(finalRequest("a", "Issued"))
		require.NoError(t, (<-result).err)
		<-time.After(time.Minute)
		cancel()
		guarding.Wait()
	})
}

// Everybody gets an answer however waiting, telling, deleting and leaving fall together.
func TestWaitStress(t *testing.T) {
	l := newTestLive()
	var group sync.WaitGroup
	for i := range 200 {
		uid := types.UID(fmt.Sprint(i))
		for j := range 4 {
			group.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if j == 0 {
					go cancel()
				}
				final, err := l.wait(ctx, pendingRequest(uid))
				switch {
				case err == nil:
					assert.Equal(t, uid, final.UID)
				case j == 0:
					assert.True(t, errors.Is(err, context.Canceled) || errors.Is(err, errDeleted), "%v", err)
				default:
					assert.ErrorIs(t, err, errDeleted)
				}
			})
		}
		group.Go(func() {
			l.observe(pendingRequest(uid))
			l.observe(finalRequest(uid, "Issued"))
		})
	}
	group.Wait()
	l.idle(t)
	assert.Equal(t, 200, l.count())
	assert.Len(t, l.snapshot(), 200)
	for _, cr := range l.snapshot() {
		l.forget(cr)
	}
	assert.Zero(t, l.count())
}
