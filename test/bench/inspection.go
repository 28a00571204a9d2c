package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/signet-ca/signet/test/controlplane"
)

const (
	stormers       = 32 // each with a service account of its own
	stormServices  = 200
	signingCallers = 16
)

// measureInspection measures what operators cost who ask as fast as they can: the rate of signing while 32 of them, each
// over a connection of its own, ask for pages of certificates and of services without a pause, over the rate without
// (inspection_storm_ratio), and how many questions were answered and refused meanwhile. All processes share the machine,
// those who ask among them, so that the CPU time of each side is told as well.
func measureInspection(ctx context.Context, rounds int, scale float64, progress func(string, ...any), out io.Writer) (err error) {
	plane, err := controlplane.Start(ctx, controlplane.Config{Fsync: true, Progress: progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	b, err := prepare(ctx, plane, false, progress)
	if err != nil {
		return err
	}
	defer b.stop()
	storm, err := prepareStorm(ctx, b)
	if err != nil {
		return err
	}
	l := load{signingCallers, max(signingCallers, int(2000*scale))}
	if _, err := b.once(ctx, b.signet, load{8, 200}); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	var rates [2][]float64 // without and with
	var answered, refused []float64
	for round := range rounds {
		for turn := range 2 {
			raging := (round+turn)%2 == 1
			var s *stormed
			if raging {
				if s, err = storm.begin(ctx); err != nil {
					return err
				}
			}
			r, err := b.once(ctx, b.signet, l)
			if raging {
				a, d, stormErr := s.end()
				err = errors.Join(err, stormErr)
				answered, refused = append(answered, a), append(refused, d)
				progress("round %d  %.0f questions/s answered, %.0f/s refused", round+1, a, d)
			}
			if err != nil {
				return err
			}
			progress("round %d  storm %-5t  %s", round+1, raging, r)
			rates[turnOf(raging)] = append(rates[turnOf(raging)], r.loadRate)
		}
	}
	without, with := median(rates[0]), median(rates[1])
	for _, line := range []struct {
		name  string
		value float64
	}{
		{"inspection_storm_rate_without", without}, {"inspection_storm_rate_with", with}, {"inspection_storm_ratio", with / without},
		{"inspection_storm_answers_per_s", median(answered)}, {"inspection_storm_refusals_per_s", median(refused)},
	} {
		fmt.Fprintf(out, "bench: %s %.3f\n", line.name, line.value)
	}
	return nil
}

func turnOf(raging bool) int {
	if raging {
		return 1
	}
	return 0
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// inspectionStorm are those who ask.
type inspectionStorm struct {
	base    string
	root    []byte
	tokens  []string
	clients []*http.Client
}

// prepareStorm makes services that there is something to tell of, and those who ask, who may see everything.
func prepareStorm(ctx context.Context, b *bench) (*inspectionStorm, error) {
	const namespace = "inspected"
	if err := b.plane.Namespace(ctx, namespace); err != nil {
		return nil, err
	}
	s := &inspectionStorm{base: b.replica.APIURL(), root: b.root, tokens: make([]string, stormers)}
	err := b.plane.Apply(ctx, []byte(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: inspection-storm}
rules:
  - {apiGroups: [signet.dev], resources: [services, certificates], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: inspection-storm}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: inspection-storm}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:serviceaccounts:inspected"}]
`))
	if err != nil {
		return nil, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for n := range stormServices {
		group.Go(func() error {
			_, err := b.plane.Workload(groupCtx, namespace, fmt.Sprintf("service-%d", n), fmt.Sprintf("node-%d", n%10))
			return err
		})
	}
	for n := range stormers {
		group.Go(func() error {
			account := fmt.Sprintf("stormer-%d", n)
			if err := b.plane.ServiceAccount(groupCtx, namespace, account); err != nil {
				return err
			}
			var err error
			s.tokens[n], err = b.plane.Token(groupCtx, namespace, account, controlplane.TokenOptions{Audiences: []string{"signet.dev"}})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b.root) {
		return nil, errors.New("no certificate in the roots")
	}
	for range stormers {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, DisableCompression: true}
		s.clients = append(s.clients, &http.Client{Transport: transport, Timeout: time.Minute})
	}
	return s, s.calm(ctx)
}

// calm asks once for each, so that nobody is a stranger when the clock runs.
func (s *inspectionStorm) calm(ctx context.Context) error {
	for n := range stormers {
		status, err := s.ask(ctx, n, "/v1/services")
		if err != nil {
			return err
		}
		if status != http.StatusOK {
			return fmt.Errorf("services: status %d", status)
		}
	}
	return nil
}

// ask asks one question and reads the answer.
func (s *inspectionStorm) ask(ctx context.Context, n int, path string) (status int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+path, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Authorization", "Bearer "+s.tokens[n])
	response, err := s.clients[n].Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// stormed is a storm that rages.
type stormed struct {
	began             time.Time
	stop              context.CancelFunc
	group             *errgroup.Group
	answered, refused atomic.Int64
}

// begin lets everybody ask until end is called, and returns when each has been answered once.
func (s *inspectionStorm) begin(ctx context.Context) (*stormed, error) {
	if err := s.calm(ctx); err != nil {
		return nil, err
	}
	r := &stormed{began: time.Now(), group: &errgroup.Group{}}
	raging, stop := context.WithCancel(ctx)
	r.stop = stop
	for n := range stormers {
		r.group.Go(func() error {
			for turn := n; raging.Err() == nil; turn++ {
				path := "/v1/certificates"
				if turn%2 == 1 {
					path = "/v1/services"
				}
				status, err := s.ask(raging, n, path)
				switch {
				case raging.Err() != nil:
					return nil
				case err != nil:
					return err
				case status == http.StatusOK:
					r.answered.Add(1)
				case status == http.StatusTooManyRequests:
					r.refused.Add(1)
				default:
					return fmt.Errorf("%s: status %d", path, status)
				}
			}
			return nil
		})
	}
	return r, nil
}

// end ends it, and says how many questions a second were answered and refused.
func (r *stormed) end() (answered, refused float64, err error) {
	r.stop()
	err = r.group.Wait()
	took := time.Since(r.began).Seconds()
	return float64(r.answered.Load()) / took, float64(r.refused.Load()) / took, err
}
