// Package replica runs Signet as it runs in a cluster: the real program (bin/signet) as a process,
// under its own ServiceAccount, with the rights that the Helm chart has for its configuration and no others.
//
//	r, err := replica.Start(ctx, plane, replica.Config{Namespace: ns, RootPEM: root})
//	defer r.Stop()
//	client, err := meshclient.Dial(r.CSR(), root, meshclient.SidecarTLS(...))
package replica

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"sigs.k8s.io/yaml"

	"github.com/signet-ca/signet/test/controlplane"
	"github.com/signet-ca/signet/test/process"
)

// ServerName is a name that every replica's serving certificate has besides those of its Service; it
// is the one that Istio's agent verifies when it connects to localhost (R4).
const ServerName = "istiod.istio-system.svc"

// Config says which Signet is run.
type Config struct {
	// Namespace is Signet's own; it exists, with the issuer in it.
	Namespace string
	// Issuer is the issuer's name. Default istio-ca.
	Issuer string
	// RootPEM is written to a file that pins the trust anchors. Where it is empty, Settings says where
	// they come from.
	RootPEM []byte
	// Settings are further settings by their path in the file, such as "ca.lifetime.min": "5s". The log
	// must stay JSON with level info or below, because it tells the addresses. Trust anchors are not distributed
	// unless distribution.disabled is set to false.
	Settings map[string]any
	// Kubeconfig overrides that of the ServiceAccount.
	Kubeconfig string
	// WithoutRights leaves the chart's rights out: only the ServiceAccount is made. It is also for settings that the chart
	// refuses, as the program does.
	WithoutRights bool
	// Readers installs the chart's roles of those who ask the inspection API too. All namespaces share them.
	Readers bool
	// DontWait returns as soon as the endpoints listen, ready or not.
	DontWait bool
	// Dir is where the configuration and the log are written. Default a directory of its own below the
	// control plane's.
	Dir string
	// Env is added to the environment of the process.
	Env []string
}

// endpoints are the settings whose listen is an address.
var endpoints = []string{"ca", "api", "metrics", "health"}

// Replica is a running Signet. Safe for concurrent use.
type Replica struct {
	proc    *process.Process
	dir     string
	config  string            // path of the configuration file
	address map[string]string // endpoint to host:port
}

// Start installs the rights, starts the program, and returns when it is ready. The error holds the
// end of the log where it doesn't become ready before ctx ends, or within four minutes.
func Start(ctx context.Context, plane *controlplane.Plane, cfg Config) (*Replica, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	binary, err := process.Find("signet", "SIGNET_BIN")
	if err != nil {
		return nil, err
	}
	rights := &holder{} // none
	if cfg.WithoutRights {
		err = plane.ServiceAccount(ctx, cfg.Namespace, "signet")
	} else {
		rights, err = hold(ctx, plane, cfg)
	}
	if err != nil {
		return nil, err
	}
	r, err := run(ctx, plane, binary, cfg)
	if err != nil {
		rights.drop()
		return nil, err
	}
	rights.runs(r.proc)
	return r, nil
}

// run runs the program, with the rights that it has.
func run(ctx context.Context, plane *controlplane.Plane, binary string, cfg Config) (r *Replica, err error) {
	kubeconfig := cfg.Kubeconfig
	if kubeconfig == "" {
		if kubeconfig, err = plane.KubeconfigAs(ctx, cfg.Namespace, "signet"); err != nil {
			return nil, err
		}
	}
	dir := cfg.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp(plane.Dir(), "signet-"); err != nil {
			return nil, err
		}
	}
	path, err := writeConfig(dir, cfg)
	if err != nil {
		return nil, err
	}

	r = &Replica{dir: dir, config: path, address: make(map[string]string)}
	want := len(endpoints)
	if api, _ := cfg.settings(dir)["api"].(map[string]any); api["disabled"] == true {
		want--
	}
	cmd := exec.Command(binary, "--config", path, "--kubeconfig", kubeconfig)
	cmd.Env = append(os.Environ(), cfg.Env...)
	// It writes to the file itself, so that what it has logged before it answers is there when the answer is.
	log := filepath.Join(dir, "signet.log")
	before, err := size(log) // of an earlier run's
	if err != nil {
		return nil, err
	}
	if r.proc, err = process.Start(cmd, log); err != nil {
		return nil, fmt.Errorf("start signet: %w", err)
	}
	if err := r.await(ctx, before, want, !cfg.DontWait); err != nil {
		r.proc.Kill()
		return nil, fmt.Errorf("start signet: %w; the end of its log:\n%s", err, process.Tail(log, 20))
	}
	return r, nil
}

// settings are what the configuration file has, for a replica that keeps its files in dir.
func (c Config) settings(dir string) map[string]any {
	settings := map[string]any{}
	set(settings, "namespace", c.Namespace)
	set(settings, "issuer.name", "istio-ca")
	if c.Issuer != "" {
		set(settings, "issuer.name", c.Issuer)
	}
	for _, endpoint := range endpoints {
		set(settings, endpoint+".listen", "127.0.0.1:0")
	}
	set(settings, "serving.dnsNames", []any{"localhost", ServerName})
	set(settings, "serving.ipAddresses", []any{"127.0.0.1"})
	set(settings, "shutdown.delay", "100ms")
	set(settings, "ledger.dir", filepath.Join(dir, "ledger"))
	set(settings, "distribution.disabled", true) // several meshes share a control plane
	if len(c.RootPEM) > 0 {
		set(settings, "roots.file", filepath.Join(dir, rootsFile))
	}
	for path, value := range c.Settings {
		set(settings, path, value)
	}
	return settings
}

// rootsFile is the name of the file with RootPEM.
const rootsFile = "roots.pem"

func writeConfig(dir string, cfg Config) (string, error) {
	if len(cfg.RootPEM) > 0 {
		if err := os.WriteFile(filepath.Join(dir, rootsFile), cfg.RootPEM, 0o600); err != nil {
			return "", err
		}
	}
	text, err := yaml.Marshal(cfg.settings(dir))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "signet.yaml")
	return path, os.WriteFile(path, text, 0o600)
}

// set puts value at a dotted path.
func set(settings map[string]any, path string, value any) {
	first, rest, nested := strings.Cut(path, ".")
	if !nested {
		settings[first] = value
		return
	}
	below, ok := settings[first].(map[string]any)
	if !ok {
		below = make(map[string]any)
		settings[first] = below
	}
	set(below, rest, value)
}

// size is that of a file, 0 where there is none.
func size(path string) (int64, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// listening reads the addresses of the endpoints from what is logged behind offset, and says how many there are.
func (r *Replica) listening(offset int64) (int, error) {
	log, err := os.ReadFile(r.proc.Log())
	if err != nil {
		return 0, err
	}
	lines := bytes.SplitAfter(log[min(offset, int64(len(log))):], []byte("\n"))
	for _, line := range lines[:len(lines)-1] { // the last one isn't whole
		var entry struct{ Msg, Endpoint, Address string }
		if json.Unmarshal(line, &entry) == nil && entry.Msg == "listening" && entry.Endpoint != "bundle" {
			r.address[entry.Endpoint] = entry.Address
		}
	}
	return len(r.address), nil
}

// await waits until the log, behind offset, has told of so many endpoints and, where that is wanted, until it is ready.
func (r *Replica) await(ctx context.Context, offset int64, endpoints int, ready bool) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		found, err := r.listening(offset)
		if err != nil {
			return err
		}
		if found == endpoints {
			break
		}
		select {
		case <-tick.C:
		case <-r.proc.Done():
			return fmt.Errorf("it ended: %w", r.proc.Exit())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if !ready {
		return nil
	}
	return r.WaitReady(ctx)
}

// CSR is the address of the gRPC endpoint.
func (r *Replica) CSR() string { return r.address["ca"] }

// MetricsURL is where the metrics are.
func (r *Replica) MetricsURL() string { return "http://" + r.address["metrics"] + "/metrics" }

// HealthURL is the base of /livez and /readyz.
func (r *Replica) HealthURL() string { return "http://" + r.address["health"] }

// APIURL is the base of the inspection API, where it isn't disabled.
func (r *Replica) APIURL() string { return "https://" + r.address["api"] }

// ConfigFile is the path of the configuration file.
func (r *Replica) ConfigFile() string { return r.config }

// Process is the running program.
func (r *Replica) Process() *process.Process { return r.proc }

// Log is everything that was logged so far.
func (r *Replica) Log() (string, error) {
	text, err := os.ReadFile(r.proc.Log())
	return string(text), err
}

// Issued are the facts that the log tells of a certificate, by its DER. They are there before the certificate is answered.
func (r *Replica) Issued(leafDER []byte) (facts map[string]any, err error) {
	log, err := r.Log()
	if err != nil {
		return nil, err
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(leafDER))
	for line := range strings.Lines(log) {
		if strings.Contains(line, sum) && json.Unmarshal([]byte(line), &facts) == nil && facts["msg"] == "certificate issued" && facts["sha256"] == sum {
			return facts, nil
		}
		facts = nil
	}
	return nil, fmt.Errorf("the log has no line of certificate %s", sum)
}

// Readyz asks /readyz.
func (r *Replica) Readyz(ctx context.Context) (code int, body string, err error) {
	return get(ctx, r.HealthURL()+"/readyz")
}

// WaitReady waits until the replica is ready. The error holds the last answer where ctx ends first.
func (r *Replica) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		code, body, err := r.Readyz(ctx)
		if err == nil && code == http.StatusOK {
			return nil
		}
		select {
		case <-tick.C:
		case <-r.proc.Done():
			return fmt.Errorf("it ended: %w", r.proc.Exit())
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w: %v\n%s", ctx.Err(), err, body)
		}
	}
}

// Metric sums up the samples of one metric whose labels have all the values in labels: histograms by
// the number of what they observed. One that isn't there is 0.
func (r *Replica) Metric(ctx context.Context, name string, labels map[string]string) (float64, error) {
	code, body, err := get(ctx, r.MetricsURL())
	if err != nil {
		return 0, err
	}
	if code != http.StatusOK {
		return 0, fmt.Errorf("get metrics of signet: status %d: %.300s", code, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("parse metrics of signet: %w", err)
	}
	sum := 0.0
	for _, sample := range families[name].GetMetric() {
		if matches(sample, labels) {
			sum += sample.GetCounter().GetValue() + sample.GetGauge().GetValue() + float64(sample.GetHistogram().GetSampleCount())
		}
	}
	return sum, nil
}

func matches(sample *dto.Metric, labels map[string]string) bool {
	found := 0
	for _, label := range sample.GetLabel() {
		if value, ok := labels[label.GetName()]; ok && value == label.GetValue() {
			found++
		}
	}
	return found == len(labels)
}

func get(ctx context.Context, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// Stop stops the program gracefully, and kills it after a minute.
func (r *Replica) Stop() { r.proc.Stop(time.Minute) }

// Kill ends the program at once.
func (r *Replica) Kill() { r.proc.Kill() }
