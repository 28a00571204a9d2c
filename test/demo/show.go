package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/signet-ca/signet/test/process"
)

const (
	lookInterval = 200 * time.Millisecond // between two looks at all workloads
	drawInterval = time.Second            // between two drawings on a terminal

	// Renewals come close together: the table is printed when there was none for a while, or the first
	// of them was long ago.
	quietTime  = 2 * time.Second
	quietLimit = 10 * time.Second
)

// look looks at all workloads once, and tells the caller which have changed. The error says what has
// ended.
func (m *mesh) look(ctx context.Context, changed func(*workload)) error {
	if err := m.failure(); err != nil {
		return err
	}
	for _, w := range m.workloads {
		now := time.Now()
		if err := w.refresh(ctx, m.plane, now); err != nil && ctx.Err() == nil {
			m.out.progress("%v", err)
		}
		if w.look(m.rootPEM, now) {
			changed(w)
		}
	}
	return nil
}

// await looks until every workload is as done says. The error names the first that isn't, with the ends
// of the logs.
func (m *mesh) await(ctx context.Context, what string, done func(row) bool, changed func(*workload)) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		if err := m.look(ctx, changed); err != nil {
			return fmt.Errorf("wait until every workload %s: %w", what, err)
		}
		missing := slices.IndexFunc(m.workloads, func(w *workload) bool { return !done(w.row) })
		if missing < 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w := m.workloads[missing]
			err := context.Cause(ctx)
			if w.problem != "" {
				err = errors.Join(err, errors.New(w.problem))
			}
			return fmt.Errorf("wait until every workload %s: %s/%s has not: %w\nthe end of its log:\n%s\nthe end of Signet's log:\n%s",
				what, w.namespace, w.account, err, w.tail(), process.Tail(m.signet.Process().Log(), 15))
		}
	}
}

func (m *mesh) awaitCertificates(ctx context.Context) error {
	return m.await(ctx, "holds a verified certificate", row.holds, func(w *workload) {
		if w.holds() {
			m.out.progress("%s/%s: holds a certificate", w.namespace, w.account)
		}
	})
}

// once shows the certificates, waits until all have been renewed, and shows them again.
func (m *mesh) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience-time.Since(m.out.begin), fmt.Errorf("the demo took longer than %s", patience))
	defer cancel()
	m.out.print("\n" + table(m.rows(), 0) + "\n")
	m.out.progress("waiting for renewals: certificates live %s, agents renew at half of that", m.lifetime)
	err := m.await(ctx, "renewed its certificate", row.renewed, func(w *workload) {
		if w.renewed() && w.renewals == 1 {
			m.out.progress("%s/%s: renewed its certificate", w.namespace, w.account)
		}
	})
	m.out.print("\n" + table(m.rows(), 0) + "\n")
	if err != nil {
		return err
	}
	return m.showServices(ctx)
}

// showServices prints what signetctl says of the mesh, and where the page is.
func (m *mesh) showServices(ctx context.Context) error {
	services, err := m.signetctl(ctx, "services", "-A")
	if err != nil {
		return err
	}
	m.out.print("$ signetctl services -A\n" + services + "\nThe page: " + m.signet.APIURL() + "/ui/ (signetctl dashboard opens it)\n")
	return nil
}

// renewed says whether the workload holds a verified certificate that is not its first.
func (r row) renewed() bool { return r.holds() && r.renewals > 0 }

// summary is the last line of a demo with --once.
func (m *mesh) summary() string {
	total, hold, renewed := 0, 0, 0
	for _, s := range services {
		total += len(s.accounts)
	}
	for _, r := range m.rows() {
		if r.holds() {
			hold++
		}
		if r.renewed() {
			renewed++
		}
	}
	return fmt.Sprintf("demo: %d of %d workloads hold certificates, %d renewed", hold, total, renewed)
}

// live shows the certificates until ctx ends or something fails.
func (m *mesh) live(ctx context.Context) error {
	m.out.print(m.directions())
	if err := m.showServices(ctx); err != nil {
		return err
	}
	var drawn, firstChange, lastChange time.Time
	m.show(time.Now())
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		err := m.look(ctx, func(*workload) {
			lastChange = time.Now()
			if firstChange.IsZero() {
				firstChange = lastChange
			}
		})
		if err != nil {
			return err
		}
		now := time.Now()
		if _, _, ok := m.out.size(); ok && now.Sub(drawn) >= drawInterval {
			drawn = now
			if m.out.draw(m.block(now)) {
				firstChange = time.Time{}
				continue
			}
		}
		if !firstChange.IsZero() && (now.Sub(lastChange) >= quietTime || now.Sub(firstChange) >= quietLimit) {
			firstChange = time.Time{}
			m.show(now)
		}
	}
}

// show draws the table where that can be done, and prints it where not.
func (m *mesh) show(now time.Time) {
	if block := m.block(now); !m.out.draw(block) {
		m.out.print(block + "\n")
	}
}

// block is the table with one line that says what is going on.
func (m *mesh) block(now time.Time) string {
	width, _, _ := m.out.size()
	rows := m.rows()
	renewals := 0
	next := time.Duration(1<<63 - 1)
	for _, r := range rows {
		renewals += r.renewals
		half := r.leaf.NotBefore.Add(r.leaf.NotAfter.Sub(r.leaf.NotBefore) / 2)
		next = min(next, half.Sub(now))
	}
	var text strings.Builder
	text.WriteString(table(rows, width))
	fmt.Fprintf(&text, "\n\n%s: %d renewals so far, the next in about %d s; Ctrl-C stops",
		now.Format(time.TimeOnly), renewals, int(max(0, next).Seconds()))
	return text.String()
}
