package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// fieldManager owns what we write.
	fieldManager = "signet"
	// writers is how many writes may be under way at once.
	writers      = 16
	writeTimeout = 15 * time.Second

	// fightAt is how many writes in a row others undo before they are called a second writer.
	fightAt = 3
	// graveAt is how many times in a row the API server must answer that something else is wrong, before
	// it is made known.
	graveAt = 3
	// maxRepairPause is the longest pause between two repairs of one place.
	maxRepairPause = 5 * time.Minute
	// tellAgain is how long others aren't told again of a second writer.
	tellAgain = 10 * time.Minute
	// maxNote is what the note of an Event may have, in bytes.
	maxNote = 1024
)

// Results of a write, as metrics call them.
const (
	resultOK          = "ok"
	resultForbidden   = "forbidden"   // by rights, quota or an admission policy
	resultInvalid     = "invalid"     // can't be written as it is
	resultNotFound    = "not_found"   // there is no such namespace any more
	resultTerminating = "terminating" // the namespace is being deleted
	resultUnavailable = "unavailable" // the API server can't be reached
	resultError       = "error"       // it answers that something else is wrong
	resultImmutable   = "immutable"   // isn't tried: the object must be deleted first
)

// repairAfter is the pause after a write before the next one to the same place, by how many writes in a
// row others have undone. What happens once in a while is repaired at once.
func repairAfter(strikes int) time.Duration {
	if strikes < fightAt {
		return 0
	}
	return min(time.Second<<min(strikes-fightAt, 16), maxRepairPause)
}

// calmAfter is how long after a write a place that was undone again is not in a fight any more.
func calmAfter(strikes int) time.Duration { return 10*time.Minute + 2*repairAfter(strikes) }

// retryAfter is the pause after a write that failed for the tries-th time in a row.
func retryAfter(result string, tries int) time.Duration {
	least, most := time.Second, 30*time.Second
	switch result {
	case resultForbidden, resultInvalid:
		least, most = 5*time.Second, 5*time.Minute
	}
	return min(least<<min(max(tries-1, 0), 16), most)
}

// outagePause is the pause after the API server could not be reached for the n-th time in a row.
func outagePause(n int) time.Duration {
	return min(250*time.Millisecond<<min(max(n-1, 0), 16), 5*time.Second)
}

// write applies the sheet to one place, if it still has to be.
func (t *distribution) write(ctx context.Context, p *place) {
	t.mu.Lock()
	s := p.sheet
	if p.state != placePending && p.state != placeFailing || p.stuck() || s.body == nil || time.Until(p.due()) > time.Millisecond {
		t.check(p, urgentMass)
		t.unlock()
		return
	}
	body, hash, healing := s.body, s.hash, p.seen.exists && p.seen.binary
	t.unlock()

	trying, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	written, err := t.apply(trying, p, body, healing)
	if ctx.Err() != nil {
		return // stopped: whoever comes next looks for itself
	}

	t.mu.Lock()
	defer t.unlock()
	t.answered(p, hash, written, err, time.Now())
}

// answered takes in the answer to a write of what has hash. The caller holds mu.
func (t *distribution) answered(p *place, hash [sha256.Size]byte, written *metav1.PartialObjectMetadata, err error, now time.Time) {
	result := classify(err)
	t.metrics.writes.WithLabelValues(result).Inc()
	if result == resultUnavailable {
		t.unreachable(p, err, now)
		return
	}
	if t.outage > 0 {
		t.outage = 0
		t.say(func() { t.log.Info("the API server answers again") })
	}
	switch {
	case result == resultOK:
		t.succeeded(p, hash, written, now)
	case result == resultTerminating:
		p.home.stop()
	case result == resultInvalid && p.stuck():
		// It has been seen meanwhile why.
	case result == resultNotFound:
		// The watch will tell that the namespace is gone; or else it is there again.
		p.tried(result)
		p.next = now.Add(retryAfter(result, p.tries))
	default:
		t.failed(p, result, fmt.Sprintf("%s: %v", result, err))
	}
	t.check(p, urgentMass)
}

// stop marks a namespace that is being deleted before the watch tells.
func (h *home) stop() {
	if h != nil {
		h.terminating = true
	}
}

// apply writes by server-side apply. Healing takes away first what keeps the key from being written.
func (t *distribution) apply(ctx context.Context, p *place, body []byte, healing bool) (*metav1.PartialObjectMetadata, error) {
	var objects interface {
		Patch(ctx context.Context, name string, pt types.PatchType, data []byte, options metav1.PatchOptions, subresources ...string) (*metav1.PartialObjectMetadata, error)
	} = t.metadata.Resource(p.sheet.resource)
	if !p.sheet.cluster() {
		objects = t.metadata.Resource(p.sheet.resource).Namespace(p.name)
	}
	if healing {
		patch, err := json.Marshal(map[string]any{"binaryData": map[string]any{p.sheet.key: nil}})
		if err != nil {
			return nil, err
		}
		if _, err := objects.Patch(ctx, p.sheet.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}); err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	return objects.Patch(ctx, p.sheet.name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: fieldManager, Force: new(true)})
}

// classify names the result of a write.
func classify(err error) string {
	switch {
	case err == nil:
		return resultOK
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return resultTerminating
	case apierrors.IsNotFound(err):
		return resultNotFound
	case apierrors.IsForbidden(err):
		return resultForbidden
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err):
		return resultInvalid
	case apierrors.IsUnauthorized(err), apierrors.IsServiceUnavailable(err), apierrors.IsTooManyRequests(err):
		return resultUnavailable
	}
	if status, ok := errors.AsType[*apierrors.StatusError](err); ok && status.Status().Code != 0 {
		return resultError
	}
	return resultUnavailable
}

// unreachable holds all writes for a moment: they would fail alike. The caller holds mu.
func (t *distribution) unreachable(p *place, err error, now time.Time) {
	p.tried(resultUnavailable)
	p.reason = fmt.Sprintf("the API server can't be reached: %v", err)
	if now.After(t.heldUntil) {
		t.outage++
		t.heldUntil = now.Add(outagePause(t.outage))
		t.queue.hold(t.heldUntil)
		if t.outage == 1 {
			t.say(func() { t.log.Warn("distribution waits: the API server can't be reached", "err", err) })
		}
	}
	t.check(p, urgentMass)
}

// succeeded takes in the answer to a write. The caller holds mu.
func (t *distribution) succeeded(p *place, hash [sha256.Size]byte, written *metav1.PartialObjectMetadata, now time.Time) {
	again := p.wrote == hash
	if now.Sub(p.wroteAt) > calmAfter(p.strikes) {
		p.strikes = 0
	}
	if again {
		p.strikes++
	}
	p.wrote, p.wroteAt = hash, now
	p.tried("")
	if again {
		t.tellOfSecondWriter(p, now)
	}
	// The watch may be ahead, and may have shown already that this was undone.
	if version := versionNumber(written.ResourceVersion); version == 0 || version > p.seen.version {
		p.seen = sight{exists: true, labelled: true, hash: hash, version: version, uid: written.UID}
	} else if !p.carries() {
		p.undone(now)
	}
}

// tellOfSecondWriter logs a repair, and makes an Event when it is one of many. The caller holds mu.
func (t *distribution) tellOfSecondWriter(p *place, now time.Time) {
	writer, strikes, pause := p.writer, p.strikes, repairAfter(p.strikes)
	if strikes < fightAt {
		t.say(func() {
			if t.reports.Allow() {
				t.log.Info("trust document repaired", "namespace", p.name, "object", p.sheet.name, "writer", writer)
			}
		})
		return
	}
	if now.Sub(p.told) < tellAgain {
		return
	}
	p.told = now
	t.report(p, "SecondWriter", "Repair", fmt.Sprintf("%s undid what Signet keeps in %s %d times in a row; Signet writes it again after %s now, and ever more rarely", writer, p.sheet.what(), strikes, pause))
}

// failed takes in why a place can't be written, and makes it known once if it is grave. The caller holds mu.
func (t *distribution) failed(p *place, result, reason string) {
	p.tried(result)
	p.reason = reason
	pause := retryAfter(result, p.tries)
	p.next = time.Now().Add(pause + rand.N(pause/10+1))
	if p.grave() && !p.made {
		p.made = true
		t.report(p, "NotDistributed", "Distribute", fmt.Sprintf("%s can't be written: %s", p.sheet.what(), reason))
	}
}

func (s *sheet) what() string {
	if s.cluster() {
		return "ClusterTrustBundle " + s.name
	}
	return "ConfigMap " + s.name + ", key " + s.key
}

// report logs, and makes an Event about the object of a place. There are at most some in a second: a
// cluster where nothing can be written has thousands of places. The caller holds mu.
func (t *distribution) report(p *place, reason, action, note string) {
	about := &corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: p.name, Name: p.sheet.name, UID: p.seen.uid}
	if p.sheet.cluster() {
		about.APIVersion, about.Kind = p.sheet.resource.GroupVersion().String(), "ClusterTrustBundle"
	}
	t.say(func() {
		if !t.reports.Allow() {
			return
		}
		t.log.Warn("trust document not kept", "namespace", about.Namespace, "object", about.Name, "reason", reason, "note", note)
		if t.events != nil {
			t.events.Eventf(about, nil, corev1.EventTypeWarning, reason, action, "%s", cut(note, maxNote))
		}
	})
}

// cut shortens text to at most n bytes, at the end of a character.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && text[n]&0xC0 == 0x80 {
		n--
	}
	return text[:n]
}
