package issuer

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"
)

// Source gives some of the mesh's trust anchors.
type Source interface {
	// String names the source for people and is the same for all replicas: "file /etc/roots/ca.crt".
	String() string
	// Run keeps the anchors current until ctx ends, and tells update each new answer: at least once,
	// from one goroutine, never the same answer twice in a row. After an error the last good answer
	// stays in force; when it holds again, it is told again.
	Run(ctx context.Context, update func(Answer))
}

// Answer is what a source has to say. Its slices must not be changed.
type Answer struct {
	// Bundle is the anchors of the source that have not expired; empty with an error.
	Bundle Bundle
	// LeftOut says of each expired anchor its subject, its serial number and when it expired.
	LeftOut []string
	// Err says why there is no bundle. Where the source holds nothing yet, it matches ErrNoAnchors.
	Err error
}

func (a Answer) equal(other Answer) bool {
	return a.Bundle.PEM() == other.Bundle.PEM() && slices.Equal(a.LeftOut, other.LeftOut) && sameError(a.Err, other.Err)
}

// sameError compares what people read.
func sameError(a, b error) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return a.Error() == b.Error()
}

// lookEvery is how often sources are looked at, and how often time is looked at: anchors expire
// without anybody changing a source.
const lookEvery = 2 * time.Second

// text is a text that somebody may change: a file, or one key of an object.
type text interface {
	String() string
	// watch tells found, from one goroutine, what the text is, until ctx ends: when it changes, and
	// about every lookEvery whether it does or not. The bytes must not be changed.
	watch(ctx context.Context, found func(text []byte, err error))
}

// textSource is the source of the anchors in a text.
type textSource struct {
	text
	parse func([]byte) (Bundle, error)
	log   *slog.Logger
}

// Run reads the anchors each time the text changes, and leaves them out as they expire.
func (s *textSource) Run(ctx context.Context, update func(Answer)) {
	var parsed Bundle // what parse made of the bytes in read
	var parseErr error
	var read []byte
	told := teller{source: s.String(), log: s.log, update: update}
	s.watch(ctx, func(text []byte, err error) {
		if errors.Is(err, errAbsent) || errors.Is(err, fs.ErrNotExist) {
			told.tell(Answer{Err: fmt.Errorf("read trust anchors: %w: %w", err, ErrNoAnchors)})
			return
		}
		if err != nil {
			told.tell(Answer{Err: fmt.Errorf("read trust anchors: %w", err)})
			return
		}
		if read == nil || !bytes.Equal(read, text) {
			read = append([]byte{}, text...)
			parsed, parseErr = s.parse(read)
		}
		if parseErr != nil {
			told.tell(Answer{Err: fmt.Errorf("read trust anchors: %s: %w", s, parseErr)})
			return
		}
		told.tell(unexpired(s.String(), parsed, time.Now()))
	})
}

// unexpired is the answer of a source that holds bundle, at now.
func unexpired(source string, bundle Bundle, now time.Time) Answer {
	var kept []*x509.Certificate
	var leftOut []string
	for _, anchor := range bundle.Anchors() {
		// RFC 5280 §4.1.2.5: the validity includes its last second. One that isn't valid yet is kept,
		// because a new root is published before it is used.
		if now.After(anchor.NotAfter) {
			leftOut = append(leftOut, fmt.Sprintf("%s, serial %s, expired at %s", anchor.Subject, Serial(anchor.SerialNumber), anchor.NotAfter.UTC().Format(time.RFC3339)))
			continue
		}
		kept = append(kept, anchor)
	}
	switch {
	case len(leftOut) == 0:
		return Answer{Bundle: bundle}
	case len(kept) == 0:
		return Answer{LeftOut: leftOut, Err: fmt.Errorf("read trust anchors: %s: all %d have expired", source, len(leftOut))}
	}
	valid, err := NewBundle(kept...)
	if err != nil {
		return Answer{LeftOut: leftOut, Err: fmt.Errorf("read trust anchors: %s: %w", source, err)}
	}
	return Answer{Bundle: valid, LeftOut: leftOut}
}

// teller tells answers that differ from the one before.
type teller struct {
	source string
	log    *slog.Logger
	update func(Answer)
	last   *Answer
}

func (t *teller) tell(answer Answer) {
	before := t.last
	if before != nil && before.equal(answer) {
		return
	}
	t.last = &answer
	for _, anchor := range answer.LeftOut {
		if before == nil || !slices.Contains(before.LeftOut, anchor) {
			t.log.Warn("expired trust anchor left out", "source", t.source, "anchor", anchor)
		}
	}
	t.update(answer)
}

// errAbsent says that an object, or its key, isn't there.
var errAbsent = errors.New("nothing there")
