package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/api"
)

// The mesh's roots, as Signet itself distributes them.
const (
	rootsConfigMap = "istio-ca-root-cert"
	rootsKey       = "root-cert.pem"
)

// Variables that stand for flags, as the demo's env file has them.
const (
	serverVariable = "SIGNET_API"
	caVariable     = "SIGNET_CA_ROOT"
)

// address says where Signet is.
type address struct {
	server     string // direct; found through the kubeconfig where it is empty
	caFile     string
	serverName string
	namespace  string
	service    string
	port       string // name or number
}

func (a *address) flags(flags *pflag.FlagSet) {
	flags.StringVar(&a.server, "server", os.Getenv(serverVariable), "the `URL` of Signet's inspection API, where it can be reached directly; default $"+serverVariable+", else found through the kubeconfig")
	flags.Lookup("server").DefValue = ""
	flags.StringVar(&a.caFile, "ca-file", "", "a `file` with the roots that Signet must prove itself by; default with --server $"+caVariable+" and else the system's, without it ConfigMap "+rootsConfigMap)
	flags.StringVar(&a.serverName, "server-name", "", "the DNS `name` that Signet's certificate must have; default that of the Service, with --server the URL's host unless it is an IP address")
	flags.StringVar(&a.namespace, "signet-namespace", "istio-system", "the `namespace` that Signet runs in")
	flags.StringVar(&a.service, "signet-service", "signet", "the `name` of Signet's Service")
	flags.StringVar(&a.port, "signet-port", "8443", "the Service's `port` for inspection, by name or number")
}

// serviceName is the Service's DNS name.
func (a *address) serviceName() string { return a.service + "." + a.namespace + ".svc" }

// session is a way to ask Signet. It must be closed.
type session struct {
	client *api.Client
	// base and http are the same, for the page: http adds who is asking, and has no timeout.
	base *url.URL
	http *http.Client
	// through says how it is reached, for people.
	through string
	close   func()
}

// connect finds Signet and who is asking.
func (p *program) connect(ctx context.Context) (*session, error) {
	config, err := p.who.config()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		TLSHandshakeTimeout: 15 * time.Second,
		// The server takes up to 30 seconds to answer.
		ResponseHeaderTimeout: 45 * time.Second,
		IdleConnTimeout:       90 * time.Second,
		ForceAttemptHTTP2:     true,
		// A connection that has gone is noticed.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 20 * time.Second, PingTimeout: 15 * time.Second},
	}
	s := &session{close: transport.CloseIdleConnections}
	if p.where.server != "" {
		err = p.where.direct(s, transport)
	} else {
		err = p.where.forwarded(ctx, s, transport, config)
	}
	if err != nil {
		return nil, err
	}
	authorised, err := p.who.authorise(ctx, config, transport)
	if err != nil {
		return nil, err
	}
	s.http = &http.Client{Transport: authorised, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // who is asking is told to nobody else
	}}
	if s.client, err = api.NewClient(s.base.String(), s.http); err != nil {
		return nil, err
	}
	return s, nil
}

// direct is a way to an address.
func (a *address) direct(s *session, transport *http.Transport) error {
	text := a.server
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	base, err := url.Parse(text)
	if err != nil || base.Host == "" || base.RawQuery != "" || base.Fragment != "" || base.User != nil {
		return usage("--server %q is no address such as https://signet.example.com:8443", a.server)
	}
	if base.Scheme != "https" {
		return usage("--server %q must be https, because your token is sent there", a.server)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: a.serverName}
	if config.ServerName == "" && net.ParseIP(base.Hostname()) != nil {
		config.ServerName = a.serviceName()
	}
	file := a.caFile
	if file == "" {
		file = os.Getenv(caVariable)
	}
	if file != "" {
		if config.RootCAs, err = rootsOfFile(file); err != nil {
			return err
		}
	}
	transport.TLSClientConfig = config
	transport.Proxy = http.ProxyFromEnvironment
	s.base, s.through = base, base.String()
	return nil
}

// forwarded is a way through the API server.
func (a *address) forwarded(ctx context.Context, s *session, transport *http.Transport, config *rest.Config) error {
	if config == nil {
		return &failure{code: exitUsage, err: errors.New("there is no kubeconfig to find Signet through"),
			hint: "set KUBECONFIG or --kubeconfig, or say where Signet is: --server URL --ca-file FILE"}
	}
	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make client for the API server: %w", err)
	}
	var roots *x509.CertPool
	if a.caFile != "" {
		roots, err = rootsOfFile(a.caFile)
	} else {
		roots, err = rootsOfCluster(ctx, core, a.namespace)
	}
	if err != nil {
		return err
	}
	name := a.serverName
	if name == "" {
		name = a.serviceName()
	}
	f := &forwarder{config: config, core: core, where: *a}
	// It is looked for now, so that what is missing is told in plain words.
	if _, err := f.find(ctx); err != nil {
		return err
	}
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: name, RootCAs: roots}
	transport.DialContext = f.dial
	s.base = &url.URL{Scheme: "https", Host: name}
	s.through = fmt.Sprintf("Service %s/%s through %s", a.namespace, a.service, config.Host)
	return nil
}

// rootsOfFile are the certificates in a file.
func rootsOfFile(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, &failure{code: exitUsage, err: fmt.Errorf("read the roots of --ca-file: %w", err)}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, usage("read the roots of --ca-file: %s has no certificate in PEM", file)
	}
	return pool, nil
}

// rootsOfCluster are those that the mesh has in Signet's namespace, read with the user's own rights.
func rootsOfCluster(ctx context.Context, core corev1client.CoreV1Interface, namespace string) (*x509.CertPool, error) {
	ctx, cancel := context.WithTimeout(ctx, kubernetesTimeout)
	defer cancel()
	doing := fmt.Sprintf("read the mesh's roots from ConfigMap %s/%s", namespace, rootsConfigMap)
	found, err := core.ConfigMaps(namespace).Get(ctx, rootsConfigMap, metav1.GetOptions{})
	if err != nil {
		f := explainKubernetes(err, doing, "get configmap "+rootsConfigMap+" in namespace "+namespace)
		if f.code == exitNotFound {
			f.hint = "is Signet installed there, and in this cluster? --signet-namespace, --context; or name the roots with --ca-file"
		}
		return nil, f
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(found.Data[rootsKey])) {
		return nil, &failure{code: exitFailed, err: fmt.Errorf("%s: its key %s has no certificate in PEM", doing, rootsKey),
			hint: "without roots Signet can't be told from somebody else; --ca-file names them"}
	}
	return pool, nil
}
