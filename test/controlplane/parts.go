package controlplane

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
)

// certManagerNamespace is where cert-manager runs and looks for what ClusterIssuers refer to.
const certManagerNamespace = "cert-manager"

// serviceAccountIssuer is the issuer of tokens, and so their audience at the API server.
const serviceAccountIssuer = "https://kubernetes.default.svc.cluster.local"

// auditPolicy says who asked for what, once for each request, when it is answered.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

func (p *Plane) newEtcd(binary string, port int) *Part {
	args := []string{"etcd", "--data-dir", p.dir.join("etcd"), "--listen-client", loopback(port)}
	if !p.cfg.Fsync {
		args = append(args, "--unsafe-no-fsync")
	}
	return newPart("etcd", binary, args, p.dir.join("etcd.log"), func(ctx context.Context) error {
		return probe(ctx, http.DefaultClient, "http://"+loopback(port)+"/health")
	})
}

func (p *Plane) newAPIServer(binary string, port, etcdPort int) (*Part, error) {
	certFile, keyFile, err := p.pki.writeServing("apiserver")
	if err != nil {
		return nil, err
	}
	issuer := serviceAccountIssuer
	if p.cfg.OwnIssuer {
		issuer = p.admin.Host
	}
	args := []string{
		"apiserver",
		"--etcd-servers=http://" + loopback(etcdPort),
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		"--tls-cert-file=" + certFile,
		"--tls-private-key-file=" + keyFile,
		"--client-ca-file=" + p.pki.caFile,
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + p.pki.tokenKeyFile,
		"--service-account-signing-key-file=" + p.pki.tokenKeyFile,
		"--service-cluster-ip-range=10.96.0.0/16",
		"--authorization-mode=RBAC",
		// Endpoints of the Service "kubernetes" may not be loopback addresses, and nobody uses them.
		"--endpoint-reconciler-type=none",
		// Served as v1 already; clients of the mesh still ask for the beta.
		"--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
		"--allow-privileged=true",
		// Without it an API server that shall stop waits a minute for watches to end by themselves.
		"--shutdown-watch-termination-grace-period=1s",
	}
	if p.cfg.Audit {
		policyFile := p.dir.join("audit-policy.yaml")
		if err := os.WriteFile(policyFile, []byte(auditPolicy), 0o600); err != nil {
			return nil, fmt.Errorf("write audit policy: %w", err)
		}
		args = append(args, "--audit-policy-file="+policyFile, "--audit-log-path="+p.AuditLog())
	}
	return newPart("apiserver", binary, args, p.dir.join("apiserver.log"), func(ctx context.Context) error {
		return probe(ctx, p.http, p.admin.Host+"/readyz")
	}), nil
}

func (p *Plane) newCertManager(binary string, port int) *Part {
	args := []string{
		"cert-manager",
		"--kubeconfig", p.kubeconfigOfPart("cert-manager"),
		"--cluster-resource-namespace", certManagerNamespace,
		"--listen", loopback(port),
	}
	if p.cfg.CertManagerWorkers > 0 {
		args = append(args, "--workers", strconv.Itoa(p.cfg.CertManagerWorkers))
	}
	if p.cfg.ApproverPolicy {
		args = append(args, "--without", "certificaterequests-approver")
	}
	return newPart("cert-manager", binary, args, p.dir.join("cert-manager.log"), func(ctx context.Context) error {
		return probe(ctx, http.DefaultClient, "http://"+loopback(port)+"/readyz")
	})
}

// loopback is the address of port on this machine.
func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// probe asks for url once, and is nil when the answer is 200.
func probe(ctx context.Context, c *http.Client, url string) error {
	_, err := get(ctx, c, url)
	return err
}

// get returns the body of url, or an error that has its beginning when the answer is not 200.
func get(ctx context.Context, c *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", url, err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s: %.300s", url, res.Status, body)
	}
	return body, nil
}
