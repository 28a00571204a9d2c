package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/ca/presence"
	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/replica"
)

const (
	authnTokens    = 400 // of so many pods
	authnRounds    = 5   // how often each is authenticated where answers are kept, or not needed
	floodAddresses = 1000
	floodSlice     = 4 * time.Second // the flood and its absence take turns
	honestCallers  = 16
)

// measureAuthentication writes its figures to out.
func measureAuthentication(ctx context.Context, scale float64, flood int, progress func(string, ...any), out io.Writer) (err error) {
	plane, err := controlplane.Start(ctx, controlplane.Config{Fsync: true, Progress: progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	line := func(name string, value float64) { fmt.Fprintf(out, "bench: %s %.3f\n", name, value) }
	if err := measureAuthenticators(ctx, plane, max(10, int(authnTokens*scale)), progress, line); err != nil {
		return err
	}
	worst := 0.0
	for _, mode := range []string{"review", "local"} {
		ratio, err := measureFlood(ctx, plane, mode, max(floodAddresses, int(float64(flood)*scale)), progress, line)
		if err != nil {
			return fmt.Errorf("flood, authentication %s: %w", mode, err)
		}
		if worst == 0 || ratio < worst {
			worst = ratio
		}
	}
	line("authn_flood_honest_ratio", worst)
	return nil
}

// podTokens makes n pods, and a token for each.
func podTokens(ctx context.Context, plane *controlplane.Plane, namespace string, n int) ([]string, error) {
	if err := plane.Namespace(ctx, namespace); err != nil {
		return nil, err
	}
	tokens := make([]string, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range n {
		group.Go(func() error {
			name := fmt.Sprintf("workload-%d", i)
			if err := plane.ServiceAccount(ctx, namespace, name); err != nil {
				return err
			}
			pod, err := plane.Pod(ctx, namespace, name, name, fmt.Sprintf("node-%d", i%10))
			if err != nil {
				return err
			}
			tokens[i], err = plane.Token(ctx, namespace, name, controlplane.TokenOptions{Pod: pod})
			return err
		})
	}
	return tokens, group.Wait()
}

// measureAuthenticators measures one authentication after the other, as the service account that Signet would be.
func measureAuthenticators(ctx context.Context, plane *controlplane.Plane, n int, progress func(string, ...any), line func(string, float64)) (err error) {
	tokens, err := podTokens(ctx, plane, "authn", n)
	if err != nil {
		return err
	}
	cfg := ca.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Token: ca.TokenConfig{Authentication: "local"}}
	discard := slog.New(slog.DiscardHandler)
	reviews, err := client.New(plane.Admin(), client.Options{Scheme: plane.Client().Scheme()})
	if err != nil {
		return err
	}
	known, err := ca.NewKeys(plane.Admin(), discard, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	objects, err := presence.New(plane.Admin(), presence.Config{
		Cluster: "Kubernetes", Kinds: []presence.Kind{presence.Pods, presence.ServiceAccounts, presence.Nodes},
	}, discard, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var group errgroup.Group
	defer func() { stop(); err = errors.Join(err, group.Wait()) }()
	group.Go(func() error { return known.Start(running) })
	group.Go(func() error { return objects.Start(running) })

	reviewer := ca.NewReviewer(cfg, reviews, prometheus.NewRegistry())
	registry := prometheus.NewRegistry()
	local := ca.NewLocal(cfg, ca.NewReviewer(cfg, reviews, prometheus.NewRegistry()), known, objects, registry)
	// Until everything is known that is needed.
	extra, err := plane.Token(ctx, "authn", "workload-0", controlplane.TokenOptions{})
	if err != nil {
		return err
	}
	if err := untilLocal(ctx, local, objects, registry, extra); err != nil {
		return err
	}

	took := make(map[string]float64)
	for _, way := range []struct {
		name   string
		judge  ca.Authenticator
		rounds int
	}{{"review", reviewer, 1}, {"cached", reviewer, authnRounds}, {"local", local, authnRounds}} {
		before, err := plane.Metrics(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		for range way.rounds {
			for _, token := range tokens {
				if _, err := way.judge.Authenticate(ctx, ca.Credentials{Token: token, Address: "192.0.2.1"}); err != nil {
					return fmt.Errorf("authenticate by %s: %w", way.name, err)
				}
			}
		}
		each := float64(time.Since(began).Microseconds()) / float64(way.rounds*len(tokens))
		after, err := plane.Metrics(ctx)
		if err != nil {
			return err
		}
		took[way.name] = each
		line("authn_"+way.name+"_us", each)
		line("authn_"+way.name+"_apiserver_requests", (after.Requests("POST", "tokenreviews")-before.Requests("POST", "tokenreviews"))/float64(way.rounds*len(tokens)))
		progress("authentication by %s: %.1f µs", way.name, each)
	}
	line("authn_local_ratio", took["review"]/took["local"])
	return nil
}

// untilLocal waits until a token is accepted without a review.
func untilLocal(ctx context.Context, local *ca.Local, objects *presence.Index, registry *prometheus.Registry, token string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err := local.Authenticate(ctx, ca.Credentials{Token: token}); err != nil {
			return err
		}
		families, err := registry.Gather()
		if err != nil {
			return err
		}
		for _, family := range families {
			for _, sample := range family.GetMetric() {
				for _, label := range sample.GetLabel() {
					if family.GetName() == "token_local_total" && label.GetValue() == "accepted" && objects.Synced() {
						return nil
					}
				}
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("tokens aren't verified locally: %w", ctx.Err())
		}
	}
}

// floodBench is a Signet, honest callers, and those that flood it.
type floodBench struct {
	mode    string
	replica *replica.Replica
	root    []byte
	honest  []*meshclient.Client
	tokens  []string
	hostile []*meshclient.Client
	ids     []spiffeid.ID
}

// measureFlood has honest callers sign, first alone and then beside a flood of n tokens, and returns the ratio of their
// rates.
func measureFlood(ctx context.Context, plane *controlplane.Plane, mode string, n int, progress func(string, ...any), line func(string, float64)) (float64, error) {
	b := &floodBench{mode: mode}
	defer b.close()
	if err := b.open(ctx, plane); err != nil {
		return 0, err
	}
	if err := b.sign(ctx, floodSlice, new(tally)); err != nil { // warm
		return 0, err
	}
	memory, err := residentBytes(b.replica.Process().PID())
	if err != nil {
		return 0, err
	}

	watching, stop := context.WithCancel(ctx)
	defer stop()
	var watch errgroup.Group
	mostMemory, mostReviews := memory, 0.0
	watch.Go(func() error {
		for watching.Err() == nil {
			now, err := residentBytes(b.replica.Process().PID())
			if err != nil {
				return err
			}
			mostMemory = max(mostMemory, now)
			if held, err := b.replica.Metric(watching, "signet_queue_slots_held", map[string]string{"queue": "review"}); err == nil {
				mostReviews = max(mostReviews, held)
			}
			select {
			case <-time.After(250 * time.Millisecond):
			case <-watching.Done():
			}
		}
		return nil
	})
	// In turns, so that whatever else the machine does counts for both.
	flooding := b.flood(ctx, n)
	var alone, beside tally
	for !flooding.over() {
		if err := b.sign(ctx, floodSlice, &alone); err != nil {
			return 0, err
		}
		flooding.run(true)
		err := b.sign(ctx, floodSlice, &beside)
		flooding.run(false)
		if err != nil {
			return 0, err
		}
	}
	flooding.run(true) // those that wait to go on can end
	stop()
	if err := errors.Join(flooding.group.Wait(), watch.Wait()); err != nil {
		return 0, err
	}
	answers := flooding.answers()
	progress("flood, authentication %s: honest %.1f/s alone, %.1f/s (%d tries more) beside %d bad tokens in %.1f s (%v); at most %.0f reviews, %.0f of %.0f MB",
		mode, alone.rate(), beside.rate(), beside.refused, n, beside.time.Seconds(), answers, mostReviews, mostMemory/1e6, memory/1e6)
	name := "authn_flood_" + mode
	line(name+"_honest_ratio", beside.rate()/alone.rate())
	line(name+"_honest_refused", float64(beside.refused)/float64(beside.certificates))
	line(name+"_tokens_per_s", float64(n)/beside.time.Seconds())
	line(name+"_reviews_in_flight", mostReviews)
	line(name+"_memory_ratio", mostMemory/memory)
	return beside.rate() / alone.rate(), nil
}

func (b *floodBench) open(ctx context.Context, plane *controlplane.Plane) error {
	namespace := "signet-" + b.mode
	if err := plane.Namespace(ctx, namespace); err != nil {
		return err
	}
	var err error
	if b.root, err = plane.BootstrapCA(ctx, namespace, "istio-ca", controlplane.CAOptions{}); err != nil {
		return err
	}
	if b.tokens, err = podTokens(ctx, plane, "flooded-"+b.mode, honestCallers); err != nil {
		return err
	}
	b.replica, err = replica.Start(ctx, plane, replica.Config{Namespace: namespace, RootPEM: b.root, Settings: map[string]any{
		"ca.token.authentication": b.mode, "ca.admission.perCallerPerMinute": 1_000_000,
	}})
	if err != nil {
		return err
	}
	dial := func(source string) (*meshclient.Client, error) {
		options := meshclient.ZtunnelTLS()
		options.ServerName, options.Source = replica.ServerName, source
		c, err := meshclient.Dial(b.replica.CSR(), b.root, options)
		if err != nil {
			return nil, err
		}
		if _, err := c.Create(ctx, meshclient.Ask{}); status.Code(err) != codes.Unauthenticated { // shakes hands
			return nil, fmt.Errorf("a request without a token: %w", err)
		}
		return c, nil
	}
	for i := range honestCallers {
		c, err := dial(fmt.Sprintf("127.0.0.%d", 2+i))
		if err != nil {
			return err
		}
		b.honest = append(b.honest, c)
		b.ids = append(b.ids, spiffeid.RequireFromString(fmt.Sprintf("spiffe://cluster.local/ns/flooded-%s/sa/workload-%d", b.mode, i)))
	}
	for i := range floodAddresses {
		c, err := dial(fmt.Sprintf("127.1.%d.%d", i/250, 1+i%250))
		if err != nil {
			return err
		}
		b.hostile = append(b.hostile, c)
	}
	return nil
}

func (b *floodBench) close() {
	for _, c := range append(b.honest, b.hostile...) {
		c.Close()
	}
	if b.replica != nil {
		b.replica.Stop()
	}
}

// tally is how many certificates honest callers got in how much time, and how often they had to try again.
type tally struct {
	certificates, refused int64
	time                  time.Duration
}

func (t *tally) rate() float64 { return float64(t.certificates) / t.time.Seconds() }

// sign has every honest caller ask again and again for a window, and adds to the tally.
func (b *floodBench) sign(ctx context.Context, window time.Duration, sum *tally) error {
	began := time.Now()
	var signed, refused atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for i, c := range b.honest {
		group.Go(func() error {
			for time.Since(began) < window {
				_, csr, err := meshclient.ZtunnelCSR(b.ids[i])
				if err != nil {
					return err
				}
				_, err = c.Create(ctx, meshclient.Ask{Token: b.tokens[i], CSR: csr, ValiditySeconds: 86400, Metadata: meshclient.SidecarMetadata("")})
				if code := status.Code(err); code == codes.ResourceExhausted || code == codes.Unavailable { // the mesh tries again, too
					refused.Add(1)
					time.Sleep(100 * time.Millisecond)
					continue
				}
				if err != nil {
					return fmt.Errorf("an honest caller: %w", err)
				}
				signed.Add(1)
			}
			return nil
		})
	}
	err := group.Wait()
	sum.certificates += signed.Load()
	sum.refused += refused.Load()
	sum.time += time.Since(began)
	return err
}

// flooding is a flood under way.
type flooding struct {
	group *errgroup.Group
	left  atomic.Int64 // tokens that haven't been sent

	mu   sync.Mutex    // guards the following
	on   chan struct{} // closed while tokens are sent
	seen map[codes.Code]int
}

// over says whether all tokens have been sent.
func (f *flooding) over() bool { return f.left.Load() <= 0 }

// run lets the flood go on, or halts it, in turns.
func (f *flooding) run(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if on {
		close(f.on)
	} else {
		f.on = make(chan struct{})
	}
}

// flood is one of n tokens, each of its own and with a bad signature, from all addresses in turns. It is halted at first.
// Each address sends its next one when the last one is answered.
func (b *floodBench) flood(ctx context.Context, n int) *flooding {
	f := &flooding{on: make(chan struct{}), seen: make(map[codes.Code]int)}
	f.left.Store(int64(n))
	f.group, ctx = errgroup.WithContext(ctx)
	for _, c := range b.hostile {
		f.group.Go(func() error {
			_, csr, err := meshclient.ZtunnelCSR(b.ids[0])
			if err != nil {
				return err
			}
			for !f.over() {
				if !f.await(ctx) {
					return ctx.Err()
				}
				i := f.left.Add(-1)
				if i < 0 {
					return nil
				}
				token, err := forged(b.tokens[int(i)%len(b.tokens)], i)
				if err != nil {
					return err
				}
				_, err = c.Create(ctx, meshclient.Ask{Token: token, CSR: csr, ValiditySeconds: 86400, Metadata: meshclient.SidecarMetadata("")})
				if err == nil {
					return errors.New("a forged token was accepted")
				}
				f.mu.Lock()
				f.seen[status.Code(err)]++
				f.mu.Unlock()
			}
			return nil
		})
	}
	return f
}

// await waits until the flood may go on; false when ctx has ended.
func (f *flooding) await(ctx context.Context) bool {
	f.mu.Lock()
	on := f.on
	f.mu.Unlock()
	select {
	case <-on:
		return true
	case <-ctx.Done():
		return false
	}
}

func (f *flooding) answers() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	answers := make(map[string]int)
	for code, n := range f.seen {
		answers[code.String()] = n
	}
	return answers
}

// forged is a token as good as another one, but for its own ID and the signature.
func forged(good string, n int64) (string, error) {
	parts := strings.Split(good, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", err
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		return "", err
	}
	for name, value := range claims {
		if number, ok := value.(float64); ok {
			claims[name] = int64(number)
		}
	}
	claims["jti"] = strconv.FormatInt(n, 10)
	if payload, err = json.Marshal(claims); err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	if _, err := rand.Read(signature); err != nil {
		return "", err
	}
	return parts[0] + "." + base64.RawURLEncoding.EncodeToString(payload) + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// residentBytes is the memory of a process (proc(5), statm, in pages).
func residentBytes(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(text))[1], 64)
	if err != nil {
		return 0, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	return pages * float64(os.Getpagesize()), nil
}
