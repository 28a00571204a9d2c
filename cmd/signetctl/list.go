package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/signet-ca/signet/api"
)

// kind is how items of a list are shown.
type kind[T any] struct {
	word, words string // service, services
	// name is the item's, as -o name has it behind the word, and as describe takes it, where it knows the word; empty for
	// what has none, which -o name leaves out.
	name func(*T) string
	// key is what a watch says of an item that was removed.
	key func(*T) string
	// attention says that somebody should look at the item; nil for never.
	attention func(*T) bool
	columns   func(now time.Time) []column[T]
}

// listFlags are those of every list.
type listFlags struct {
	limit int
	check bool
	watch bool
}

func (l *listFlags) flags(c *cobra.Command, limit int, attention string) {
	c.Flags().IntVar(&l.limit, "limit", limit, "how many `items` at most; 0 for all")
	if attention != "" {
		c.Flags().BoolVar(&l.check, "check", false, "exit with code 5 where "+attention)
	}
}

func (l *listFlags) watchFlag(c *cobra.Command) {
	c.Flags().BoolVarP(&l.watch, "watch", "w", false, "go on with what changes, until interrupted")
}

func (l *listFlags) validate() error {
	if l.limit < 0 {
		return usage("--limit %d: it must not be negative", l.limit)
	}
	if l.watch && l.check {
		return usage("--watch and --check: a watch has no end that could be checked")
	}
	return nil
}

// page is a page of a list; as JSON it is the API's own list, which can be converted into it.
type page[T any] struct {
	api.List
	Items []T `json:"items"`
}

// pageSize is how many items are asked for at once.
const pageSize = 500

// list shows a list, page by page.
func list[T any](ctx context.Context, p *program, k kind[T], flags listFlags, ask func(context.Context, *api.Client, api.Page) (*page[T], error)) error {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	s, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()

	all := page[T]{Items: []T{}}
	rows := newTable(p.out, p.output, k.columns(p.now()))
	count, attention := 0, false
	at := api.Page{Limit: pageSize}
	for {
		if flags.limit > 0 {
			at.Limit = min(pageSize, flags.limit-count)
		}
		next, err := ask(ctx, s.client, at)
		if err != nil {
			return err
		}
		count += len(next.Items)
		for i := range next.Items {
			attention = attention || k.attention != nil && k.attention(&next.Items[i])
		}
		all.List = api.List{Continue: next.Continue, Coverage: next.Coverage, Restricted: all.Restricted || next.Restricted}
		switch {
		case p.asTable() && len(next.Items) > 0:
			err = rows.write(next.Items)
		case p.output == formatName:
			err = names(p.out, k, next.Items)
		case !p.asTable():
			all.Items = append(all.Items, next.Items...)
		}
		if err != nil {
			return err
		}
		if next.Continue == "" || flags.limit > 0 && count >= flags.limit {
			break
		}
		at.Continue = next.Continue
	}
	if p.output == formatJSON || p.output == formatYAML {
		if err := writeValue(p.out, p.output, all); err != nil {
			return err
		}
	}
	if count == 0 && p.asTable() {
		p.nothing(k.words)
	}
	if all.Continue != "" {
		p.notice("there are more than these %d; --limit 0 shows all", count)
	}
	p.tellCompleteness(all.Coverage, all.Restricted)
	if flags.check && attention {
		return errAttention
	}
	return nil
}

// bound is ctx with --timeout.
func (p *program) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, p.timeout)
}

func names[T any](out io.Writer, k kind[T], items []T) error {
	var text strings.Builder
	for i := range items {
		if name := k.name(&items[i]); name != "" {
			fmt.Fprintf(&text, "%s/%s\n", k.word, clean(name))
		}
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// nothing says that a list is empty, and where more may be.
func (p *program) nothing(words string) {
	if namespace, err := p.namespaceOf(); err == nil && namespace != "" {
		p.notice("no %s like that in namespace %s; -A asks for all", words, namespace)
		return
	}
	p.notice("no %s like that", words)
}

// tellCompleteness says what an answer leaves out.
func (p *program) tellCompleteness(coverage api.Coverage, restricted bool) {
	if restricted {
		p.notice("namespaces that you may not see are left out")
	}
	for _, source := range coverage.Sources {
		if !source.Up {
			text := "this may be incomplete: " + source.Name + " is not up"
			if source.Reason != "" {
				text += ": " + source.Reason
			}
			p.notice("%s", text)
		}
	}
	const shown = 3
	for i, gap := range coverage.Gaps {
		if i == shown {
			p.notice("and %d more times in which issuances may be missing; -o json has them", len(coverage.Gaps)-shown)
			break
		}
		text := fmt.Sprintf("issuances may be missing from %s to %s", stamp(gap.From), stamp(gap.To))
		if gap.Replica != "" {
			text += " of replica " + gap.Replica
		}
		p.notice("%s: %s", text, gap.Reason)
	}
}

// change is a line of a watch.
type change[T any] struct {
	at   time.Time
	what api.EventType
	item T
}

// pace is how a watch goes on.
type pace struct {
	pause, most time.Duration // before a watch that broke goes on, at first and at most
	silence     time.Duration // how long a watch may say nothing: the server's heartbeats are 15 seconds apart
}

var defaultPace = pace{pause: time.Second, most: 30 * time.Second, silence: time.Minute}

var errSilent = errors.New("nothing was heard for a while")

// watch shows what there is and then what changes, until ctx ends. A connection that breaks is opened again.
func watch[T any](ctx context.Context, p *program, k kind[T], ask func(context.Context, *api.Client, string) iter.Seq2[api.Event[T], error]) error {
	connecting, cancel := p.bound(ctx)
	defer cancel()
	s, err := p.connect(connecting)
	if err != nil {
		return err
	}
	defer s.close()
	w := &watcher[T]{program: p, kind: k, known: make(map[string]T)}
	columns := []column[change[T]]{
		{title: "SEEN", value: func(c *change[T]) string { return c.at.Local().Format(time.TimeOnly) }},
		{title: "EVENT", value: func(c *change[T]) string { return string(c.what) }},
	}
	for _, inner := range k.columns(time.Time{}) {
		columns = append(columns, column[change[T]]{title: inner.title, wide: inner.wide})
	}
	for i := range columns[2:] {
		columns[i+2].value = func(c *change[T]) string { return k.columns(c.at)[i].value(&c.item) }
	}
	w.rows = newTable(p.out, p.output, columns)

	pause := p.pace.pause
	for {
		synced, err := w.once(ctx, s.client, ask)
		if ctx.Err() != nil {
			return nil
		}
		if synced {
			pause, w.started = p.pace.pause, true
		}
		if fatal := w.judge(err, synced); fatal != nil {
			return fatal
		}
		p.notice("the watch broke: %s; it goes on in %s", p.explain(err).Error(), pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, p.pace.most)
	}
}

// watcher is a watch with what is known by it.
type watcher[T any] struct {
	*program
	kind    kind[T]
	rows    *table[change[T]]
	known   map[string]T
	waiting []change[T] // what there is at the beginning, until it is whole
	resume  string
	started bool // at least once it was told what there is
}

// once watches until it ends; it always ends with an error. Synced says that it was told all there was.
func (w *watcher[T]) once(ctx context.Context, client *api.Client, ask func(context.Context, *api.Client, string) iter.Seq2[api.Event[T], error]) (synced bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(w.pace.silence, func() { cancel(errSilent) })
	defer quiet.Stop()
	defer func() { // resume is behind what is waiting
		rows := w.waiting
		if w.waiting = nil; len(rows) > 0 {
			if failed := w.rows.write(rows); failed != nil {
				err = failed
			}
		}
	}()
	for event, err := range ask(ctx, client, w.resume) {
		if event.Resume != "" {
			w.resume = event.Resume
		}
		if err != nil {
			if errors.Is(context.Cause(ctx), errSilent) {
				err = errSilent
			}
			return synced, err
		}
		quiet.Reset(w.pace.silence)
		synced = synced || event.Type == api.Synced
		if err := w.tell(&event, synced); err != nil {
			return synced, err
		}
	}
	return synced, io.ErrUnexpectedEOF
}

// judge says whether a watch that ended with err can't go on; nil where it can.
func (w *watcher[T]) judge(err error, synced bool) error {
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	response, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		if !w.started {
			return err
		}
		return nil
	}
	switch status := response.Problem.Status; {
	case status == http.StatusBadRequest && w.resume != "":
		w.resume = "" // it isn't known any more
		return nil
	case status == http.StatusUnauthorized && synced:
		return nil // the token has ended meanwhile; the next one is another
	case !w.started:
		return err
	case status == http.StatusServiceUnavailable, status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status == http.StatusInternalServerError:
		return nil
	}
	return err
}

// tell shows an event.
func (w *watcher[T]) tell(event *api.Event[T], synced bool) error {
	if event.Type == api.Heartbeat {
		return nil
	}
	if !w.asTable() {
		return w.tellValue(event)
	}
	c := change[T]{at: w.now(), what: event.Type}
	switch event.Type {
	case api.Reset:
		w.notice("the watch begins anew")
		clear(w.known)
		return nil
	case api.Synced:
		w.tellCompleteness(coverageOf(event), event.Restricted)
		rows := w.waiting
		w.waiting = nil
		if len(rows) == 0 && w.started {
			return nil
		}
		return w.rows.write(rows)
	case api.Added, api.Changed:
		if event.Item == nil {
			return nil
		}
		c.item = *event.Item
		w.known[w.kind.key(&c.item)] = c.item
	case api.Removed:
		c.item = w.known[event.Key]
		delete(w.known, event.Key)
	default:
		return nil
	}
	if !synced {
		w.waiting = append(w.waiting, c)
		return nil
	}
	return w.rows.write([]change[T]{c})
}

func coverageOf[T any](event *api.Event[T]) api.Coverage {
	if event.Coverage == nil {
		return api.Coverage{}
	}
	return *event.Coverage
}

// tellValue shows an event to a program.
func (w *watcher[T]) tellValue(event *api.Event[T]) error {
	switch w.output {
	case formatName:
		if event.Item == nil {
			return nil
		}
		return names(w.out, w.kind, []T{*event.Item})
	case formatYAML:
		if _, err := io.WriteString(w.out, "---\n"); err != nil {
			return err
		}
		return writeValue(w.out, formatYAML, event)
	}
	text, err := encodeJSON(event, "")
	if err != nil {
		return err
	}
	_, err = w.out.Write(cleanJSON(text, true))
	return err
}
