package clusters

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// maxKubeconfig bounds a kubeconfig, in bytes; usual ones have a few thousand.
const maxKubeconfig = 64 << 10

// readKubeconfig is what a client needs for the API server of the current context of a kubeconfig. Everything in it is
// judged, not only the current context, and only what is known to do no harm is taken over. The error says nothing of its
// secrets.
func readKubeconfig(text []byte, cluster Allowed, allowExec bool) (*rest.Config, error) {
	if len(text) > maxKubeconfig {
		return nil, fmt.Errorf("the kubeconfig has %d bytes; at most %d are read", len(text), maxKubeconfig)
	}
	config, err := clientcmd.Load(text)
	if err != nil {
		return nil, errors.New("it is not a kubeconfig: it can't be parsed") // the cause may quote from it
	}
	for _, name := range slices.Sorted(maps.Keys(config.Clusters)) {
		if err := checkCluster(config.Clusters[name], allowExec); err != nil {
			return nil, fmt.Errorf("cluster %q of the kubeconfig: %w", shorten(name), err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(config.AuthInfos)) {
		if err := checkUser(config.AuthInfos[name], allowExec); err != nil {
			return nil, fmt.Errorf("user %q of the kubeconfig: %w", shorten(name), err)
		}
	}
	current := config.Contexts[config.CurrentContext]
	if current == nil {
		return nil, fmt.Errorf("the kubeconfig has no context %q, which current-context names", shorten(config.CurrentContext))
	}
	server, user := config.Clusters[current.Cluster], config.AuthInfos[current.AuthInfo]
	if server == nil || user == nil {
		return nil, fmt.Errorf("the kubeconfig has no cluster %q or no user %q, which context %q names",
			shorten(current.Cluster), shorten(current.AuthInfo), shorten(config.CurrentContext))
	}
	address, err := serverOf(server.Server)
	if err != nil {
		return nil, err
	}
	if !cluster.serves(address) {
		return nil, fmt.Errorf("server %q is none of those that are allowed for cluster %s: %q", shorten(server.Server), cluster.ID, cluster.Servers)
	}
	client := clientFor(server, user)
	if _, err := rest.TLSConfigFor(client); err != nil {
		return nil, fmt.Errorf("the certificates or the key of the kubeconfig can't be used: %w", err)
	}
	return client, nil
}

// checkCluster says what in a cluster of a kubeconfig is not accepted.
func checkCluster(c *clientcmdapi.Cluster, allowFiles bool) error {
	switch {
	case c == nil:
		return errors.New("it is empty")
	case c.InsecureSkipTLSVerify:
		return errors.New("insecure-skip-tls-verify is refused: anybody in between could say who calls")
	case c.ProxyURL != "":
		return errors.New("proxy-url is refused: a proxy is set in Signet's own environment (HTTPS_PROXY)")
	}
	return checkFile("certificate-authority", c.CertificateAuthority, allowFiles)
}

// checkUser says what in a user of a kubeconfig is not accepted.
func checkUser(u *clientcmdapi.AuthInfo, allowExec bool) error {
	switch {
	case u == nil:
		return errors.New("it is empty")
	case u.AuthProvider != nil:
		return errors.New("auth-provider is refused: Signet has none; use a token")
	case u.Exec != nil && !allowExec:
		return errors.New("exec is refused: it would run a program beside Signet; use a token, or set ca.remoteClusters.allowExec")
	case u.Username != "" || u.Password != "":
		return errors.New("username and password are refused: API servers know none; use a token")
	case u.Exec == nil && u.Token == "" && u.TokenFile == "" && len(u.ClientCertificateData) == 0 && u.ClientCertificate == "":
		return errors.New("it has no credentials; use a token")
	}
	return errors.Join(
		checkFile("client-certificate", u.ClientCertificate, allowExec),
		checkFile("client-key", u.ClientKey, allowExec),
		checkFile("tokenFile", u.TokenFile, allowExec))
}

func checkFile(field, path string, allowed bool) error {
	switch {
	case path == "":
		return nil
	case !allowed:
		return fmt.Errorf("%s is refused: it would read a file of Signet's own; write the content into the kubeconfig, or set ca.remoteClusters.allowExec", field)
	case !filepath.IsAbs(path):
		return fmt.Errorf("%s is refused: its path is not absolute", field)
	}
	return nil
}

// clientFor takes over what has been checked, field by field.
func clientFor(server *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo) *rest.Config {
	config := &rest.Config{
		Host: server.Server,
		TLSClientConfig: rest.TLSClientConfig{
			ServerName: server.TLSServerName,
			CAData:     server.CertificateAuthorityData, CAFile: server.CertificateAuthority,
			CertData: user.ClientCertificateData, CertFile: user.ClientCertificate,
			KeyData: user.ClientKeyData, KeyFile: user.ClientKey,
		},
		BearerToken: user.Token, BearerTokenFile: user.TokenFile,
		Impersonate: rest.ImpersonationConfig{
			UserName: user.Impersonate, UID: user.ImpersonateUID, Groups: user.ImpersonateGroups, Extra: user.ImpersonateUserExtra,
		},
		// Each connection has a transport of its own: client-go shares none that has a proxy.
		Proxy:              http.ProxyFromEnvironment,
		UserAgent:          "signet",
		QPS:                -1, // what is sent at once is bounded by those who send
		DisableCompression: true,
	}
	if user.Exec != nil {
		program := *user.Exec
		program.StdinUnavailable = true
		if program.InteractiveMode == "" {
			program.InteractiveMode = clientcmdapi.NeverExecInteractiveMode
		}
		config.ExecProvider = &program
	}
	return config
}

// shorten bounds what of a kubeconfig comes into a message.
func shorten(text string) string {
	const most = 100
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
