package migration

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/process"
)

// istioCSRRights are what its chart grants it.
const istioCSRRights = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cert-manager-istio-csr}
rules:
  - apiGroups: [""]
    resources: [configmaps]
    verbs: [get, list, create, update, watch]
  - apiGroups: [""]
    resources: [namespaces, pods]
    verbs: [get, list, watch]
  - apiGroups: [authentication.k8s.io]
    resources: [tokenreviews]
    verbs: [create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: cert-manager-istio-csr}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cert-manager-istio-csr}
subjects: [{kind: ServiceAccount, name: cert-manager-istio-csr, namespace: cert-manager}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: cert-manager-istio-csr, namespace: NAMESPACE}
rules:
  - apiGroups: [cert-manager.io]
    resources: [certificaterequests]
    verbs: [get, list, create, update, delete, watch]
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    verbs: [get, list, create, update, watch]
  - apiGroups: ["", events.k8s.io]
    resources: [events]
    verbs: [create, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: cert-manager-istio-csr, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: cert-manager-istio-csr}
subjects: [{kind: ServiceAccount, name: cert-manager-istio-csr, namespace: cert-manager}]
`

// TestFromIstioCSR is TestSideBySide and TestIntoLiveMesh with istio-csr itself as the old authority. It isn't to be had as a
// Go module, so this says nothing where ISTIO_CSR_BIN doesn't name its program (v0.17.0).
func TestFromIstioCSR(t *testing.T) {
	binary := os.Getenv("ISTIO_CSR_BIN")
	if binary == "" {
		t.Log("not rehearsed: ISTIO_CSR_BIN names no istio-csr")
		return
	}
	address := startIstioCSR(t, binary)
	t.Run("side by side", func(t *testing.T) { sideBySide(t, begin(t), shared, istioCSRAddress, address, shared.oldCA) })
	t.Run("into a live mesh", func(t *testing.T) { intoLiveMesh(t, begin(t), shared, address, shared.oldCA) })
}

// startIstioCSR starts istio-csr with the Issuer cacerts, which is the old authority's of the shared mesh, and returns its
// address when it is ready. It ends with the test.
func startIstioCSR(t *testing.T, binary string) string {
	t.Helper()
	require.NoError(t, plane.ServiceAccount(t.Context(), "cert-manager", "cert-manager-istio-csr"))
	require.NoError(t, plane.Apply(t.Context(), []byte(strings.ReplaceAll(istioCSRRights, "NAMESPACE", shared.ns))))
	kubeconfig, err := plane.KubeconfigAs(t.Context(), "cert-manager", "cert-manager-istio-csr")
	require.NoError(t, err)
	dir := t.TempDir()
	roots := filepath.Join(dir, "ca.pem")
	require.NoError(t, os.WriteFile(roots, shared.root, 0o600))
	ports := freePorts(t, 3)
	cmd := exec.Command(binary,
		"--kubeconfig", kubeconfig,
		"--certificate-namespace", shared.ns, "--issuer-name", "cacerts", "--issuer-kind", "Issuer", "--issuer-group", "cert-manager.io",
		"--root-ca-file", roots,
		"--serving-address", fmt.Sprintf("127.0.0.1:%d", ports[0]),
		"--serving-certificate-dns-names", host(istioCSRAddress), "--serving-signature-algorithm", "ECDSA", "--serving-certificate-key-size", "256",
		"--readiness-probe-port", fmt.Sprint(ports[1]), "--metrics-port", fmt.Sprint(ports[2]),
		"--leader-election-namespace", shared.ns,
		"--configmap-namespace-selector", "istio-csr=none", // the roots are none of its business here
		"--disable-kubernetes-client-rate-limiter",
	)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir}
	proc, err := process.Start(cmd, filepath.Join(dir, "istio-csr.log"))
	require.NoError(t, err)
	t.Cleanup(func() {
		proc.Stop(20 * time.Second)
		if t.Failed() {
			t.Logf("the end of istio-csr's log:\n%s", process.Tail(proc.Log(), 60))
		}
	})
	patiently.Until(t, "istio-csr is not ready", func(ctx context.Context) error {
		if proc.Ended() {
			require.NoError(t, proc.Exit())
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/readyz", ports[1]), nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("it answers %s", response.Status)
		}
		return nil
	})
	return fmt.Sprintf("127.0.0.1:%d", ports[0])
}

// freePorts are ports that nobody listens on; istio-csr doesn't tell which ones it was given.
func freePorts(t *testing.T, n int) (ports []int) {
	t.Helper()
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer listener.Close() // only at the end, so that they differ
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports
}
