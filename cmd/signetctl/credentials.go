package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/oauth2"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"

	"github.com/signet-ca/signet/version"
)

const (
	// audience is that of the tokens that Signet's inspection API is sent.
	audience = "signet.dev"
	// readerLifetime is that of a reader's token, in seconds: the shortest that the API server allows.
	readerLifetime = 600
	// kubernetesTimeout bounds a question to the API server.
	kubernetesTimeout = 20 * time.Second
)

// defaultReader is the service account that is asked as where the kubeconfig has no token to send.
const defaultReader = "istio-system/signet-reader"

// credentials say who is asking.
type credentials struct {
	kubeconfig string
	context    string
	as         string
	asGroups   []string
	reader     string // namespace/name; "" where it wasn't given
}

func (c *credentials) flags(flags *pflag.FlagSet) {
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "the kubeconfig `file`; default $KUBECONFIG, else ~/.kube/config, else the pod's service account")
	flags.StringVar(&c.context, "context", "", "the `name` of the kubeconfig's context")
	flags.StringVar(&c.as, "as", "", "the `user` to impersonate at the API server; Signet is then asked as the service account")
	flags.StringArrayVar(&c.asGroups, "as-group", nil, "a `group` to impersonate; may be repeated")
	flags.StringVar(&c.reader, "as-service-account", "", "ask as this service account, `namespace/name`; default "+defaultReader+" where the kubeconfig has no token to send, else yourself")
}

func (c *credentials) clientConfig() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: c.context}
	overrides.AuthInfo.Impersonate, overrides.AuthInfo.ImpersonateGroups = c.as, c.asGroups
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
}

// config leads to the API server; nil where there is no kubeconfig.
func (c *credentials) config() (*rest.Config, error) {
	config, err := c.clientConfig().ClientConfig()
	if clientcmd.IsEmptyConfig(err) && c.kubeconfig == "" && c.context == "" {
		return nil, nil
	}
	if err != nil {
		return nil, &failure{code: exitUsage, err: fmt.Errorf("read the kubeconfig: %w", err), hint: "kubectl config view shows what is read; --kubeconfig and --context choose"}
	}
	config.UserAgent = "signetctl/" + version.Current().Version
	config.WarningHandler = rest.NoWarnings{}
	return config, nil
}

// authorise adds who is asking to what base sends. The kubeconfig's token, token file or plugin is used as at the API
// server, so that tokens are renewed in the same way.
func (c *credentials) authorise(ctx context.Context, config *rest.Config, base http.RoundTripper) (http.RoundTripper, error) {
	if config == nil {
		return nil, &failure{code: exitNotAllowed, err: errors.New("there is no kubeconfig that says who you are"), hint: "set KUBECONFIG or --kubeconfig"}
	}
	ctx, cancel := context.WithTimeout(ctx, kubernetesTimeout)
	defer cancel()
	if c.reader == "" && config.Impersonate.UserName == "" {
		has, err := hasToken(ctx, config)
		if err != nil {
			return nil, &failure{code: exitNotAllowed, err: fmt.Errorf("get a token as the kubeconfig says: %w", err), hint: "log in anew with whatever your kubeconfig uses; kubectl auth whoami fails in the same way"}
		}
		if has {
			return rest.HTTPWrappersForConfig(config, base)
		}
	}
	reader := c.reader
	if reader == "" {
		reader = defaultReader
	}
	namespace, name, ok := strings.Cut(reader, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return nil, usage("--as-service-account %q must be namespace/name", reader)
	}
	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client for the API server: %w", err)
	}
	tokens := transport.NewCachedTokenSource(&readerTokens{core: core, namespace: namespace, name: name, chosen: c.reader != ""})
	if _, err := tokens.Token(); err != nil { // now, where it can be told in plain words
		return nil, err
	}
	return transport.ResettableTokenSourceWrapTransport(tokens)(base), nil
}

// hasToken says whether the kubeconfig has a bearer token for every request, whatever makes it. Client certificates and
// passwords are none.
func hasToken(ctx context.Context, config *rest.Config) (bool, error) {
	found := false
	probe, err := rest.HTTPWrappersForConfig(config, roundTripper(func(r *http.Request) (*http.Response, error) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		found = strings.EqualFold(scheme, "Bearer") && strings.TrimSpace(token) != ""
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
	}))
	if err != nil {
		return false, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://nowhere.invalid/", nil)
	if err != nil {
		return false, err
	}
	response, err := probe.RoundTrip(request)
	if err != nil {
		return false, err
	}
	return found, response.Body.Close()
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// readerTokens asks the API server for tokens of a service account that the user may use.
type readerTokens struct {
	core            corev1client.CoreV1Interface
	namespace, name string
	chosen          bool // by the user
}

// Token is a new one. Without a context of the caller it has a deadline of its own.
func (t *readerTokens) Token() (*oauth2.Token, error) {
	ctx, cancel := context.WithTimeout(context.Background(), kubernetesTimeout)
	defer cancel()
	seconds := int64(readerLifetime)
	answer, err := t.core.ServiceAccounts(t.namespace).CreateToken(ctx, t.name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &seconds},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, t.explain(err)
	}
	return &oauth2.Token{AccessToken: answer.Status.Token, TokenType: "Bearer", Expiry: answer.Status.ExpirationTimestamp.Time}, nil
}

func (t *readerTokens) explain(err error) error {
	doing := fmt.Sprintf("ask for a token of service account %s/%s, because your kubeconfig has none that could be sent", t.namespace, t.name)
	if t.chosen {
		doing = fmt.Sprintf("ask for a token of service account %s/%s", t.namespace, t.name)
	}
	f := explainKubernetes(err, doing, fmt.Sprintf("create serviceaccounts/token %s in namespace %s", t.name, t.namespace))
	switch {
	case apierrors.IsNotFound(err):
		f.hint = fmt.Sprintf(`an administrator makes it, with the right to see what its users may see:
  kubectl create serviceaccount %[2]s -n %[1]s
  kubectl create clusterrolebinding %[2]s --clusterrole=signet-reader --serviceaccount=%[1]s:%[2]s
or name another one with --as-service-account NAMESPACE/NAME`, t.namespace, t.name)
	case apierrors.IsForbidden(err):
		f.hint = fmt.Sprintf(`an administrator lets you use it:
  kubectl create role %[2]s-user -n %[1]s --verb=create --resource=serviceaccounts/token --resource-name=%[2]s
  kubectl create rolebinding %[2]s-user-NAME -n %[1]s --role=%[2]s-user --user=NAME
or name another one with --as-service-account NAMESPACE/NAME`, t.namespace, t.name)
	}
	return f
}

// namespaceOf is the namespace to ask about, "" for all.
func (p *program) namespaceOf() (string, error) {
	if p.all {
		return "", nil
	}
	if p.namespace != "" {
		return p.namespace, nil
	}
	namespace, _, err := p.who.clientConfig().Namespace()
	if clientcmd.IsEmptyConfig(err) {
		return "default", nil
	}
	if err != nil {
		return "", &failure{code: exitUsage, err: fmt.Errorf("read the kubeconfig: %w", err), hint: "kubectl config view shows what is read; --kubeconfig and --context choose"}
	}
	return namespace, nil
}
