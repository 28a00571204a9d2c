package probe

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/signet-ca/signet/api"
)

// NeedLeaderElection says that every replica probes on schedule, so that each can tell what it found.
func (p *Prober) NeedLeaderElection() bool { return false }

// Start probes on schedule until ctx ends: one service after the other, by namespace and name, those with pods in the
// mesh that don't have to be asked for by name. Without an interval it only waits.
func (p *Prober) Start(ctx context.Context) error {
	interval := p.cfg.Schedule.Interval.Or(0)
	if interval == 0 || p.cfg.Disabled {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	turn := &turn{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := p.next(ctx, turn); err != nil && ctx.Err() == nil {
			p.log.Warn("probe on schedule", "err", err)
		}
	}
}

// turn is whose turn it is.
type turn struct {
	services []api.Service // the rest of the page
	next     string        // the next page
	number   int           // of the time through all services
}

// schedulePage is how many services are read at once.
const schedulePage = 100

// next probes the service whose turn it is. A time through all of them that finds none with pods in the mesh ends.
func (p *Prober) next(ctx context.Context, t *turn) error {
	for began := t.number; t.number <= began+1; {
		if len(t.services) == 0 {
			list, err := p.inventory.Services(ctx, api.ServiceQuery{Page: api.Page{Limit: schedulePage, Continue: t.next}, Visible: everything{}})
			if err != nil {
				t.next = ""
				return fmt.Errorf("list services: %w", err)
			}
			t.services, t.next = list.Items, list.Continue
			if t.next == "" {
				t.number++
				p.latest.forget(t.number - 2)
			}
			continue
		}
		service := &t.services[0]
		t.services = t.services[1:]
		if service.Summary.Total > service.Summary.NoMesh {
			return p.scheduled(ctx, service.Namespace, service.Name, t.number)
		}
	}
	return nil
}

// scheduled probes one pod of a service and remembers what it found.
func (p *Prober) scheduled(ctx context.Context, namespace, name string, number int) error {
	if err := p.limits.enterOwn(); err != nil {
		return nil // callers go first; its turn comes again
	}
	defer p.limits.leaveOwn()
	probe, err := p.probe(ctx, "", api.ProbeRequest{Namespace: namespace, Service: name, Pods: 1}, everything{})
	if err != nil {
		return fmt.Errorf("service %s/%s: %w", namespace, name, err)
	}
	if p.latest.set(namespace, name, probe, number) && probe.Verdict == api.ProbeAlarm {
		p.log.Error("a probe found what somebody should look at", "service", namespace+"/"+name, "findings", findings(probe))
	}
	return nil
}

// Problems implements [api.Prober].
func (p *Prober) Problems(namespace, service string) []api.Problem {
	return p.latest.problems(namespace, service)
}

// latest are the latest results of scheduled probes. Safe for concurrent use.
type latest struct {
	most int

	mu      sync.Mutex // guards the following
	results map[[2]string]result
}

// result is what is remembered of a probe.
type result struct {
	number   int // of the time through all services
	time     time.Time
	verdict  api.ProbeVerdict
	findings []string
}

func newLatest(most int) *latest { return &latest{most: most, results: make(map[[2]string]result)} }

// maxFindings is how many findings of a probe are remembered.
const maxFindings = 5

// findings are those of a probe that somebody should look at, for people.
func findings(probe *api.Probe) []string {
	var texts []string
	for _, r := range probe.Results {
		for _, f := range r.Findings {
			if (f.Verdict == api.ProbeWarning || f.Verdict == api.ProbeAlarm) && len(texts) < maxFindings {
				texts = append(texts, fmt.Sprintf("pod %s, port %d: %s: %s", r.Pod, r.Port, f.Code, f.Detail))
			}
		}
	}
	return texts
}

// set remembers a probe, and says whether its verdict is another one than before. Where there are too many, a new service
// isn't remembered.
func (l *latest) set(namespace, name string, probe *api.Probe, number int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := [2]string{namespace, name}
	former, found := l.results[key]
	if !found && len(l.results) >= l.most {
		return true
	}
	l.results[key] = result{number: number, time: probe.Time, verdict: probe.Verdict, findings: findings(probe)}
	return former.verdict != probe.Verdict
}

// forget drops what is from a time through all services that long ago.
func (l *latest) forget(number int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, r := range l.results {
		if r.number <= number {
			delete(l.results, key)
		}
	}
}

func (l *latest) problems(namespace, name string) []api.Problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.results[[2]string{namespace, name}]
	var problems []api.Problem
	for _, text := range r.findings {
		problems = append(problems, api.Problem{Code: api.ProblemProbe, Detail: fmt.Sprintf("probed at %s: %s", r.time.UTC().Format(time.RFC3339), text)})
	}
	return problems
}

func (l *latest) counts() map[api.ProbeVerdict]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := make(map[api.ProbeVerdict]int)
	for _, r := range l.results {
		counts[r.verdict]++
	}
	return counts
}
