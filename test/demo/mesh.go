package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/process"
	"github.com/signet-ca/signet/test/replica"
)

const (
	signetNamespace = "istio-system"
	issuerName      = "istio-ca"
	sandbox         = "sandbox" // for experiments
)

// trustDomain is Signet's default.
var trustDomain = spiffeid.RequireTrustDomainFromString("cluster.local")

// services are the namespaces of the mesh, and the ServiceAccounts that a workload runs as in each.
var services = []struct {
	namespace string
	accounts  []string
}{
	{"bookinfo", []string{"details", "productpage", "ratings", "reviews"}},
	{"istio-ingress", []string{"gateway"}},
	{"shop", []string{"cart", "checkout"}},
}

// A mesh is all that the demo runs. Its fields are written by up only; what is nil has not been started.
type mesh struct {
	out      *screen
	lifetime time.Duration // that the workloads ask for
	dir      *directory

	plane     *controlplane.Plane
	rootPEM   []byte
	signet    *replica.Replica
	workloads []*workload
}

func newMesh(out *screen, lifetime time.Duration) *mesh { return &mesh{out: out, lifetime: lifetime} }

// up starts everything, and then shows it. Stop has to be called in any case.
func (m *mesh) up(ctx context.Context, show func(context.Context) error) error {
	bounded, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the demo took longer than %s", patience))
	defer cancel()
	for _, step := range []func(context.Context) error{m.startPlane, m.startSignet, m.startWorkloads, m.awaitCertificates} {
		err := step(bounded)
		if cause := context.Cause(bounded); cause != nil && !errors.Is(err, cause) {
			err = errors.Join(cause, err)
		}
		if err != nil {
			return err
		}
	}
	cancel()
	return show(ctx)
}

func (m *mesh) startPlane(ctx context.Context) error {
	m.out.progress("starting a control plane in %s", m.dir.path)
	var err error
	if m.plane, err = controlplane.Start(ctx, controlplane.Config{Dir: m.dir.join(planeName), Progress: m.out.progress}); err != nil {
		return err
	}
	for _, namespace := range []string{signetNamespace, sandbox} {
		if err := m.plane.Namespace(ctx, namespace); err != nil {
			return err
		}
	}
	for _, s := range services {
		if err := m.plane.Namespace(ctx, s.namespace); err != nil {
			return err
		}
	}
	if m.rootPEM, err = m.plane.BootstrapCA(ctx, signetNamespace, issuerName, controlplane.CAOptions{}); err != nil {
		return err
	}
	m.out.progress("root and issuer %s/%s: made by cert-manager", signetNamespace, issuerName)
	return nil
}

func (m *mesh) startSignet(ctx context.Context) error {
	dir, err := m.dir.make(signetName)
	if err != nil {
		return err
	}
	m.signet, err = replica.Start(ctx, m.plane, replica.Config{
		Namespace: signetNamespace,
		Issuer:    issuerName,
		RootPEM:   m.rootPEM,
		Dir:       dir,
		// Shorter lives than production should see, so that renewals can be watched.
		Settings: map[string]any{"ca.lifetime.min": "10s", "distribution.disabled": false}, Readers: true,
	})
	if err != nil {
		return err
	}
	if err := m.writeEnv(); err != nil {
		return err
	}
	m.out.progress("Signet: ready at %s, as ServiceAccount %s/signet", m.signet.CSR(), signetNamespace)
	return nil
}

// signetctl runs the operator's command as the administrator, and returns what it prints.
func (m *mesh) signetctl(ctx context.Context, args ...string) (string, error) {
	binary, err := process.Find("signetctl", "SIGNET_CTL")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = os.Environ()
	for _, v := range m.variables() {
		cmd.Env = append(cmd.Env, v.name+"="+v.value)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("signetctl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

func (m *mesh) startWorkloads(ctx context.Context) error {
	// The agent is looked for from the working directory, which may be anywhere.
	binary, err := process.Find("pilot-agent", "SIGNET_PILOT_AGENT")
	if err != nil {
		return err
	}
	if err := os.Setenv("SIGNET_PILOT_AGENT", binary); err != nil {
		return err
	}
	for _, s := range services {
		for _, account := range s.accounts {
			w, err := startWorkload(ctx, m, s.namespace, account)
			if err != nil {
				return fmt.Errorf("start workload %s/%s: %w", s.namespace, account, err)
			}
			m.workloads = append(m.workloads, w)
		}
	}
	m.out.progress("%d workloads: started, each a pilot-agent with a token of its own Pod", len(m.workloads))
	return nil
}

// failure says what has ended that should run; nil when all is well.
func (m *mesh) failure() error {
	for _, part := range m.plane.Parts() {
		if part.PID() == 0 {
			return fmt.Errorf("%s has ended by itself", part.Name()) // Stop tells the rest
		}
	}
	if p := m.signet.Process(); p.Ended() {
		return fmt.Errorf("signet has ended by itself: %w; the end of its log:\n%s", p.Exit(), process.Tail(p.Log(), 20))
	}
	for _, w := range m.workloads {
		if w.hasEnded() {
			return fmt.Errorf("the agent of %s/%s has ended by itself; the end of its log:\n%s", w.namespace, w.account, w.tail())
		}
	}
	return nil
}

// rows are those of all workloads that were started, as of the last look.
func (m *mesh) rows() []row {
	var rows []row
	for _, w := range m.workloads {
		rows = append(rows, w.row)
	}
	return rows
}

// stop ends everything in the reverse order, waiting for each.
func (m *mesh) stop() error {
	errs := make([]error, len(m.workloads))
	var all sync.WaitGroup
	for i, w := range m.workloads {
		all.Go(func() {
			if err := w.stop(); err != nil {
				errs[i] = fmt.Errorf("stop workload %s/%s: %w", w.namespace, w.account, err)
			}
		})
	}
	all.Wait()
	if len(m.workloads) > 0 {
		m.out.progress("workloads: stopped")
	}
	if m.signet != nil {
		m.signet.Stop()
		m.out.progress("Signet: stopped")
	}
	if m.plane != nil {
		errs = append(errs, m.plane.Stop()) //nolint:makezero // behind those of the workloads
		m.out.progress("control plane: stopped")
	}
	return errors.Join(errs...)
}
