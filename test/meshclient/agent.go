package meshclient

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/test/process"
)

// AgentConfig says as which workload an [Agent] runs. Address, Roots and ID are required.
type AgentConfig struct {
	// Address is CA_ADDR, host:port. The agent verifies the host part, except that for "localhost"
	// it verifies istiod.istio-system.svc (R4).
	Address string

	// Roots (PEM) are trusted for the connection to Address: the ConfigMap that pods mount.
	Roots []byte

	// Token is the service account token. It is read again for every request; see [Agent.SetToken].
	Token string

	// ID is the identity to ask for: spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
	ID spiffeid.ID

	// TTL is SECRET_TTL, the lifetime asked for, in whole seconds. Renewal comes at half of what was
	// granted, give or take one hundredth. Default: 60 s. Certificates count in whole seconds: below
	// 4 s renewals come unevenly, at 1 s the agent renews without a pause and is sometimes too late.
	TTL time.Duration

	// Key is the kind of key: P256, P384 or RSA2048, RSA3072, RSA4096. Default: P256, because it is
	// quick; a real agent uses RSA2048 unless told otherwise.
	Key KeyType

	// ClusterID is sent as the clusterid header. Default: "Kubernetes".
	ClusterID string

	// CertSigner is sent as metadata. Optional.
	CertSigner string

	// Headers are sent with every request. Optional.
	Headers map[string]string

	// Reuse makes the agent renew as a VM does: it also sends the certificate it holds (R8, R19).
	Reuse bool

	// StatusPort serves the agent's own metrics at /stats/prometheus on all addresses. 0: not served.
	StatusPort int

	// Env are further variables, name=value, which win over those above. Optional.
	Env []string

	// Dir is the directory to work in; the test owns it. Optional: a new one, removed by Stop.
	Dir string
}

// Agent is Istio's pilot-agent, running as a process without Envoy. It keeps its certificate in files
// and renews it by itself. One takes a quarter of a second to its first certificate, 35 MB of memory of
// which 9 MB are its own, and no port. Safe for concurrent use.
type Agent struct {
	dir       string
	removeDir bool
	pid       int
	stop      context.CancelFunc
	done      chan struct{} // closed when the process and the watch of its files have ended

	mu      sync.Mutex    // guards the following
	issued  int           // different leaves seen
	changed chan struct{} // closed and replaced when issued grows
	exitErr error         // how the process ended by itself; set before done is closed
}

// StartAgent starts an agent, which runs until Stop is called, ctx is done, or this process ends in
// any way. It returns once the process runs; [Agent.WaitRotations] with 0 waits for its certificate.
//
// The program is bin/pilot-agent of the repository, or what the environment variable
// SIGNET_PILOT_AGENT names.
func StartAgent(ctx context.Context, config AgentConfig) (*Agent, error) {
	binary, err := process.Find("pilot-agent", "SIGNET_PILOT_AGENT")
	if err != nil {
		return nil, err
	}
	env, err := config.environment()
	if err != nil {
		return nil, fmt.Errorf("start agent for %s: %w", config.ID, err)
	}
	a := &Agent{dir: config.Dir, changed: make(chan struct{}), done: make(chan struct{})}
	if a.dir == "" {
		if a.dir, err = os.MkdirTemp("", "agent"); err != nil {
			return nil, fmt.Errorf("start agent for %s: %w", config.ID, err)
		}
		a.removeDir = true
	}
	if err := a.start(ctx, binary, env, config); err != nil {
		if a.removeDir {
			err = errors.Join(err, os.RemoveAll(a.dir))
		}
		return nil, fmt.Errorf("start agent for %s: %w", config.ID, err)
	}
	return a, nil
}

func (a *Agent) start(ctx context.Context, binary string, env []string, config AgentConfig) error {
	if err := a.prepare(config); err != nil {
		return err
	}
	cmd := exec.Command(binary, "proxy", "sidecar")
	cmd.Dir = a.dir
	cmd.Env = env
	proc, err := process.Start(cmd, a.LogFile())
	if err != nil {
		return err
	}
	a.pid = proc.PID()
	ctx, a.stop = context.WithCancel(ctx)
	go func() {
		defer close(a.done)
		err := a.watch(ctx, proc)
		a.stop()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.exitErr = err
	}()
	return nil
}

// prepare writes what a pod finds mounted.
func (a *Agent) prepare(config AgentConfig) error {
	for _, dir := range []string{"var/run/secrets/tokens", "var/run/secrets/istio", "etc/istio/pod", outputDir} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := a.SetToken(config.Token); err != nil {
		return err
	}
	if err := a.SetRoots(config.Roots); err != nil {
		return err
	}
	if config.Reuse {
		// A VM is given its roots where its certificates will be.
		if err := replaceFile(filepath.Join(a.dir, outputDir, "root-cert.pem"), config.Roots); err != nil {
			return err
		}
	}
	// An annotation can turn the status port off; PROXY_CONFIG cannot, and two agents on one machine
	// would both want port 15020.
	annotation := fmt.Sprintf("status.sidecar.istio.io/port=%q\n", fmt.Sprint(config.StatusPort))
	return replaceFile(filepath.Join(a.dir, "etc/istio/pod/annotations"), []byte(annotation))
}

// environment is all that the agent sees: nothing of ours, so that a test runs alike everywhere.
func (c AgentConfig) environment() ([]string, error) {
	segments := strings.Split(c.ID.Path(), "/")
	if len(segments) != 5 || segments[1] != "ns" || segments[3] != "sa" {
		return nil, fmt.Errorf("identity %s is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<name>", c.ID)
	}
	ttl, clusterID := c.TTL, c.ClusterID
	if ttl == 0 {
		ttl = time.Minute
	}
	if clusterID == "" {
		clusterID = "Kubernetes"
	}
	env := []string{
		"DISABLE_ENVOY=true",
		"OUTPUT_CERTS=./" + outputDir,
		"CA_ADDR=" + c.Address,
		"TRUST_DOMAIN=" + c.ID.TrustDomain().Name(),
		"POD_NAMESPACE=" + segments[2],
		"POD_NAME=" + segments[4],
		"SERVICE_ACCOUNT=" + segments[4],
		"SECRET_TTL=" + ttl.String(),
		"ISTIO_META_CLUSTER_ID=" + clusterID,
		"ISTIO_META_CERT_SIGNER=" + c.CertSigner,
	}
	switch c.Key {
	case "", P256, P384:
		env = append(env, "ECC_SIGNATURE_ALGORITHM=ECDSA")
		if c.Key == P384 {
			env = append(env, "ECC_CURVE=P384")
		}
	case RSA2048, RSA3072, RSA4096:
		env = append(env, "WORKLOAD_RSA_KEY_SIZE="+strings.TrimPrefix(string(c.Key), "RSA-"))
	default:
		return nil, fmt.Errorf("an agent cannot use a %s key", c.Key)
	}
	for name, value := range c.Headers {
		env = append(env, "CA_HEADER_"+name+"="+value)
	}
	if c.Reuse {
		env = append(env, "PROV_CERT=./"+outputDir)
	}
	return append(env, c.Env...), nil
}

// SetToken replaces the token, as the kubelet does. The next request sends it.
func (a *Agent) SetToken(token string) error {
	return replaceFile(filepath.Join(a.dir, "var/run/secrets/tokens/istio-token"), []byte(token))
}

// SetRoots replaces the roots (PEM) that the connection is verified against. An open connection keeps
// the old ones until a request on it fails (R5); with Reuse only the roots at the start count, and
// later those the agent was given along with its certificate.
func (a *Agent) SetRoots(rootsPEM []byte) error {
	return replaceFile(filepath.Join(a.dir, "var/run/secrets/istio/root-cert.pem"), rootsPEM)
}

// replaceFile puts a whole file in the place of another, so that no reader sees half of it.
func replaceFile(path string, data []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// LogFile is the path of what the agent prints. It is gone after Stop unless AgentConfig.Dir was set.
func (a *Agent) LogFile() string { return filepath.Join(a.dir, "agent.log") }

// PID is the process ID of the agent.
func (a *Agent) PID() int { return a.pid }

// Stop ends the agent and waits until it is gone: SIGTERM first, SIGKILL after 5 s. It returns how
// the agent ended if it did so before it was asked to. Further calls return the same.
func (a *Agent) Stop() error {
	a.stop()
	<-a.done
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.exitErr
	if a.removeDir {
		err = errors.Join(err, os.RemoveAll(a.dir))
	}
	return err
}
