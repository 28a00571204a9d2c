package istiod

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/process"
)

// discovery is istiod as a process, in a directory of its own with what its pod has mounted.
type discovery struct {
	proc *process.Process
	dir  string
}

// startIstiod starts the istiod of ns with what is mounted now, and waits until it serves. It ends with
// the test.
func startIstiod(t *testing.T, ns string) *discovery {
	t.Helper()
	binary, err := process.Find("pilot-discovery", "SIGNET_PILOT_DISCOVERY")
	require.NoError(t, err)
	d := &discovery{dir: t.TempDir()}
	mountSecret(t, d.path("var/run/secrets/istiod/tls"), ns, "istiod-tls")
	mountConfigMap(t, d.path("var/run/secrets/istiod/ca"), ns, "istio-ca-root-cert")
	require.NoError(t, os.MkdirAll(d.path("etc/istio/config"), 0o755))
	require.NoError(t, os.WriteFile(d.path("etc/istio/config/mesh"),
		[]byte("rootNamespace: "+ns+"\ndefaultConfig:\n  discoveryAddress: istiod."+ns+".svc:15012\n"), 0o644))
	cmd := exec.Command(binary, "discovery", "--kubeconfig", plane.Kubeconfig(), "--ctrlz_port", "0", "--shutdownDuration", "1s",
		"--httpAddr", "127.0.0.1:0", "--monitoringAddr", "127.0.0.1:0", "--grpcAddr", "",
		"--secureGRPCAddr", "127.0.0.1:0", "--httpsAddr", "127.0.0.1:0")
	cmd.Dir = d.dir
	cmd.Env = []string{ // as its chart does, and global.caAddress with ENABLE_CA_SERVER=false asks for
		"ENABLE_CA_SERVER=false", "PILOT_CERT_PROVIDER=istiod", "REVISION=default", "CLUSTER_ID=Kubernetes",
		"POD_NAMESPACE=" + ns, "POD_NAME=istiod-0", "SERVICE_ACCOUNT=istiod", "HOME=" + d.dir,
	}
	d.proc, err = process.Start(cmd, d.path("istiod.log"))
	require.NoError(t, err)
	t.Cleanup(func() {
		d.proc.Stop(20 * time.Second)
		if t.Failed() {
			t.Logf("the end of istiod's log:\n%s", process.Tail(d.proc.Log(), 60))
		}
	})
	d.await(t, "starting webhook service at")
	return d
}

func (d *discovery) path(name string) string { return filepath.Join(d.dir, filepath.FromSlash(name)) }

// logged is the address that the log has after text; "" where there is none.
func (d *discovery) logged(text string) (string, error) {
	log, err := os.ReadFile(d.proc.Log())
	if err != nil {
		return "", err
	}
	match := regexp.MustCompile(regexp.QuoteMeta(text) + ` ([0-9.]+:[0-9]+)`).FindSubmatch(log)
	if match == nil {
		return "", nil
	}
	return string(match[1]), nil
}

// await waits for an address in the log.
func (d *discovery) await(t *testing.T, text string) (address string) {
	t.Helper()
	patiently.Until(t, "istiod does not say "+text, func(context.Context) (err error) {
		if d.proc.Ended() {
			return d.proc.Exit()
		}
		if address, err = d.logged(text); err == nil && address == "" {
			err = errors.New("not yet")
		}
		return err
	})
	return address
}

// xds is the address of the secure discovery service, which is 15012 in a cluster.
func (d *discovery) xds(t *testing.T) string {
	t.Helper()
	return d.await(t, "starting secure gRPC discovery service at")
}

// webhook is the address of the webhooks, which is 15017 in a cluster.
func (d *discovery) webhook(t *testing.T) string {
	t.Helper()
	return d.await(t, "starting webhook service at")
}

// handshake makes a TLS connection to istiod as a client that trusts roots (PEM) and knows it by name,
// and returns its leaf.
func handshake(ctx context.Context, address, name string, roots []byte) (*x509.Certificate, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, errors.New("no roots")
	}
	dialer := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: pool, NextProtos: []string{"h2"}}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to istiod as %s: %w", name, err)
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// port is that of an address.
func port(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	return port
}

func parse(t *testing.T, certificatePEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certificatePEM)
	require.NotNil(t, block, "no PEM")
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return cert
}

// leadsTo says whether chain, leaf first, leads to one of roots (PEM).
func leadsTo(chain []*x509.Certificate, roots []byte) error {
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	opts.Roots.AppendCertsFromPEM(roots)
	for _, cert := range chain[1:] {
		opts.Intermediates.AddCert(cert)
	}
	_, err := chain[0].Verify(opts)
	return err
}
