package controlplane

import (
	"strings"
)

// KubeconfigOf writes a kubeconfig file for a user with a client certificate, of one group, to the plane's directory,
// replacing the one of an earlier call, and returns its path. The user may do what RBAC grants it.
func (p *Plane) KubeconfigOf(user, group string) (string, error) {
	certPEM, keyPEM, err := p.pki.issueClient(user, group)
	if err != nil {
		return "", err
	}
	cfg := p.Admin()
	cfg.CertData, cfg.KeyData = certPEM, keyPEM
	path := p.dir.join(strings.Join([]string{"kubeconfig", "user", user}, "_"))
	return path, writeKubeconfig(path, cfg)
}
