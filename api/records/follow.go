package records

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/ledger"
)

const (
	// followEvery is how often the shared view is asked for what is new, and followPage how much of it at a time.
	followEvery = time.Second
	followPage  = 500
	// followTimeout bounds one question.
	followTimeout = 30 * time.Second
	// followBack is how long ago a certificate may have expired that is still told.
	followBack = 24 * time.Hour
	// followSource is the shared view as a source of the coverage.
	followSource = "others"
)

// Follow tells issued what the shared view knows, until ctx ends: the latest certificate of each holder first, which is
// all that a replica with an empty store of its own can learn of its past, then what comes. A certificate may be told
// more than once. Where no shared view is configured it returns at once.
func (r Records) Follow(ctx context.Context, issued func(api.Certificate), log *slog.Logger) {
	view := r.store.Shared()
	if view == nil {
		return
	}
	f := follower{view: view, issued: issued}
	r.store.SetSource(followSource, false, "what the other replicas issued hasn't been read yet")
	up, tick := true, time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := f.step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			r.store.SetSource(followSource, true, "")
			up = true
			continue
		case up:
			log.Warn("what the other replicas issued can't be read from the shared ledger", "err", err)
		}
		r.store.SetSource(followSource, false, "what the other replicas issued can't be read from the shared ledger")
		up = false
	}
}

// follower is how far the shared view has been read.
type follower struct {
	view   *ledger.View
	issued func(api.Certificate)
	cursor string // "" before the latest of each holder have been read
}

// step reads what there is to read now.
func (f *follower) step(ctx context.Context) error {
	if f.cursor == "" {
		// What comes while the latest are read is read again.
		tail, err := f.tail(ctx)
		if err != nil {
			return err
		}
		if err := f.latest(ctx); err != nil {
			return err
		}
		f.cursor = tail.Cursor
	}
	for {
		tail, err := f.tail(ctx)
		if errors.Is(err, ledger.ErrContinue) || tail.Missed {
			f.cursor = "" // another database, or one that is too far on
			return err
		}
		if err != nil {
			return err
		}
		f.tell(tail.Records)
		f.cursor = tail.Cursor
		if !tail.More {
			return nil
		}
	}
}

func (f *follower) tail(ctx context.Context) (ledger.Tail, error) {
	ctx, cancel := context.WithTimeout(ctx, followTimeout)
	defer cancel()
	return f.view.Tail(ctx, ledger.Filter{}, f.cursor, followPage)
}

// latest reads the latest record of each holder.
func (f *follower) latest(ctx context.Context) error {
	filter := ledger.Filter{Latest: true, NotAfterFrom: time.Now().Add(-followBack)}
	for next := ""; ; {
		asking, cancel := context.WithTimeout(ctx, followTimeout)
		page, err := f.view.List(asking, filter, ledger.Page{Limit: followPage, Continue: next})
		cancel()
		if err != nil {
			return err
		}
		f.tell(page.Records)
		if next = page.Continue; next == "" {
			return nil
		}
	}
}

func (f *follower) tell(records []ledger.Issuance) {
	for _, c := range certificates(records) {
		f.issued(c)
	}
}
