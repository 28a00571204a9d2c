package migration

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/process"
)

// pods says how the pods of a workload are.
type pods struct {
	name  string
	net   *network
	ca    string // caAddress
	roots []byte // of istio-ca-root-cert when they start, PEM
	// ttl is how long certificates are asked for, and pause after what time they are renewed. Default two minutes and four
	// seconds, so that an agent that is late, as it may be on a loaded machine, holds a good one all the same.
	ttl, pause time.Duration
	// labels of the namespace.
	labels map[string]string
}

// workload is a Deployment with one pod: an agent, which is another one after an update. Safe for concurrent use.
type workload struct {
	pods
	id spiffeid.ID
	ns string

	mu    sync.RWMutex // guards the following
	agent *meshclient.Agent
	count int // of pods so far
	past  tally
}

// tally is what agents have said of their renewals.
type tally struct {
	certificates int // that they got
	repeated     int // attempts after one that failed in a way that may pass
	failed       int // requests that failed with all their attempts
}

func (a tally) plus(b tally) tally {
	return tally{a.certificates + b.certificates, a.repeated + b.repeated, a.failed + b.failed}
}

func (a tally) String() string {
	return fmt.Sprintf("%d renewals, %d attempts repeated, %d failed", max(a.certificates-1, 0), a.repeated, a.failed)
}

// tallyOf reads the log of an agent.
func tallyOf(agent *meshclient.Agent) tally {
	log, err := os.ReadFile(agent.LogFile())
	if err != nil {
		panic(err) // it lies in a directory of ours
	}
	return tally{
		certificates: bytes.Count(log, []byte("generated new workload certificate")),
		repeated:     bytes.Count(log, []byte("ca request failed, starting attempt")),
		failed:       bytes.Count(log, []byte("failed to sign CSR")),
	}
}

// startWorkload starts a workload, and returns when it has its certificate. It ends with the test, which fails where its agent
// ended by itself.
func startWorkload(t *testing.T, p pods) *workload {
	t.Helper()
	w := &workload{pods: p}
	w.ns = plane.NewNamespace(t, p.name)
	if len(p.labels) > 0 {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.ns}}
		require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKeyFromObject(ns), ns))
		for key, value := range p.labels {
			metav1.SetMetaDataLabel(&ns.ObjectMeta, key, value)
		}
		require.NoError(t, plane.Client().Update(t.Context(), ns))
	}
	w.id = spiffeid.RequireFromString("spiffe://cluster.local/ns/" + w.ns + "/sa/" + p.name)
	require.NoError(t, plane.ServiceAccount(t.Context(), w.ns, p.name))
	w.agent = w.newPod(t)
	return w
}

// newPod starts a pod, and waits until it has its certificate.
func (w *workload) newPod(t *testing.T) *meshclient.Agent {
	t.Helper()
	w.mu.Lock()
	w.count++
	name := fmt.Sprintf("%s-%d", w.name, w.count)
	ca, roots := w.ca, w.roots
	w.mu.Unlock()
	pod, err := plane.Pod(t.Context(), w.ns, name, w.name, "node-1")
	require.NoError(t, err)
	token, err := plane.Token(t.Context(), w.ns, w.name, controlplane.TokenOptions{Pod: pod})
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "agent") // the paths of sockets are short
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	ttl, pause := cmp.Or(w.ttl, 2*time.Minute), cmp.Or(w.pause, 4*time.Second)
	ratio := fmt.Sprintf("%.6f", 1-pause.Seconds()/ttl.Seconds()) // the part that is left then
	agent, err := meshclient.StartAgent(t.Context(), meshclient.AgentConfig{
		Address: ca, Roots: roots, Token: token, ID: w.id, TTL: ttl, Dir: dir,
		Env: []string{"HTTPS_PROXY=" + w.net.url, "SECRET_GRACE_PERIOD_RATIO=" + ratio, "SECRET_GRACE_PERIOD_RATIO_JITTER=0"},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, agent.Stop())
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", name, process.Tail(agent.LogFile(), 40))
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	require.NoError(t, agent.WaitRotations(ctx, 0))
	return agent
}

// move is what a rolling update with another caAddress comes to: a new pod, and the end of the old one when the new one has
// its certificate.
func (w *workload) move(t *testing.T, ca string) {
	t.Helper()
	w.mu.Lock()
	w.ca = ca
	w.mu.Unlock()
	agent := w.newPod(t)
	w.mu.Lock()
	old := w.agent
	w.agent = agent
	err := agent.SetRoots(w.roots)     // as they are by now
	w.past = w.past.plus(tallyOf(old)) // before it is stopped: what ends with it has not failed
	w.mu.Unlock()
	require.NoError(t, err)
	require.NoError(t, old.Stop())
}

// mount gives the pods the roots of their namespace's istio-ca-root-cert, and those that replace them, as the kubelet does.
func (w *workload) mount(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	running.Go(func() {
		for {
			var object corev1.ConfigMap
			err := plane.Client().Get(ctx, client.ObjectKey{Namespace: w.ns, Name: "istio-ca-root-cert"}, &object)
			if now := []byte(object.Data["root-cert.pem"]); err == nil && len(now) > 0 {
				w.mu.Lock()
				if !bytes.Equal(now, w.roots) {
					w.roots, err = now, w.agent.SetRoots(now)
				}
				w.mu.Unlock()
			}
			if client.IgnoreNotFound(err) != nil && ctx.Err() == nil {
				t.Errorf("mount the roots of %s: %v", w.name, err)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}

// mounted are the roots that the pod has mounted, PEM.
func (w *workload) mounted() []byte {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.roots
}

// certificate is what the pod holds.
func (w *workload) certificate() (*meshclient.Certificate, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.agent.Certificate()
}

// pid is the process that the agent is.
func (w *workload) pid() int {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.agent.PID()
}

// said is what the agent has logged.
func (w *workload) said(t *testing.T) string {
	t.Helper()
	w.mu.RLock()
	defer w.mu.RUnlock()
	log, err := os.ReadFile(w.agent.LogFile())
	require.NoError(t, err)
	return string(log)
}

// tally is that of all its pods.
func (w *workload) tally() tally {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.past.plus(tallyOf(w.agent))
}

// awaitRenewals waits until each of the workloads has renewed once more.
func awaitRenewals(t *testing.T, workloads ...*workload) {
	t.Helper()
	before := make([]tally, len(workloads))
	for n, w := range workloads {
		before[n] = w.tally()
	}
	for n, w := range workloads {
		patiently.Until(t, w.name+" does not renew", func(context.Context) error {
			if now := w.tally(); now.certificates <= before[n].certificates {
				return errors.New(now.String())
			}
			return nil
		})
	}
}

// awaitSigner waits until the workload holds a certificate of a signer, and returns it.
func (w *workload) awaitSigner(t *testing.T, s signer) (held *meshclient.Certificate) {
	t.Helper()
	patiently.Until(t, fmt.Sprintf("%s has no certificate of %s", w.name, s.name), func(context.Context) (err error) {
		if held, err = w.certificate(); err == nil && !s.signed(held.Leaf) {
			err = fmt.Errorf("it is one of %q", held.Leaf.Issuer)
		}
		return err
	})
	return held
}

// awaitRoots waits until the certificate that the workload holds came with exactly these roots, PEM.
func (w *workload) awaitRoots(t *testing.T, roots []byte) {
	t.Helper()
	want := anchors(roots)
	patiently.Until(t, w.name+" has other roots", func(context.Context) error {
		held, err := w.certificate()
		if err == nil && !assert.ElementsMatch(silent{}, want, anchors(held.RootsPEM)) {
			err = fmt.Errorf("it has %d roots, not the wanted %d", len(anchors(held.RootsPEM)), len(want))
		}
		return err
	})
}

// anchors are the certificates of a PEM, one text each.
func anchors(text []byte) []string {
	const end = "-----END CERTIFICATE-----"
	var all []string
	for _, part := range strings.SplitAfter(string(text), end) {
		if part = strings.TrimSpace(part); part != "" {
			all = append(all, part)
		}
	}
	return all
}

// silent is a test that may fail.
type silent struct{}

func (silent) Errorf(string, ...any) {}

// holds is a line for the timeline.
func holds(held *meshclient.Certificate, of signer) string {
	return fmt.Sprintf("%s: serial %.12s… until %s", of.name, held.Leaf.SerialNumber.Text(16), held.Leaf.NotAfter.UTC().Format(time.TimeOnly))
}

// noneFailed asserts that no renewal of the workloads has failed, and says how many there were.
func noneFailed(t *testing.T, line timeline, workloads ...*workload) {
	t.Helper()
	for _, w := range workloads {
		total := w.tally()
		assert.Zero(t, total.failed, "renewals of %s failed", w.name)
		line.say("%s: %s", w.name, total)
	}
}

// hour is a lifetime that lasts longer than any test.
const hour = time.Hour
