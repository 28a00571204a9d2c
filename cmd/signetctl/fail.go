package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/signet-ca/signet/api"
)

// failure is an error with the exit code that it means and what to do next.
type failure struct {
	code int
	hint string // may have several lines
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// usage is an error of the command line.
func usage(format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// errAttention says that something that was printed needs somebody's attention; that is not an error to be told.
var errAttention = errors.New("something needs attention")

// fail tells err, and returns the exit code.
func (p *program) fail(command *cobra.Command, err error) int {
	if errors.Is(err, errAttention) {
		return exitAttention
	}
	f := p.explain(err)
	if f.code == exitUsage && f.hint == "" {
		f.hint = command.CommandPath() + " --help"
	}
	_, _ = fmt.Fprintln(p.err, "error: "+clean(f.Error()))
	if f.hint != "" {
		_, _ = fmt.Fprintln(p.err, "hint: "+cleanLines(f.hint))
	}
	return f.code
}

// explain says what an error means and what helps.
func (p *program) explain(err error) *failure {
	if already, ok := errors.AsType[*failure](err); ok {
		return already
	}
	if response, ok := errors.AsType[*api.ResponseError](err); ok {
		return p.explainResponse(response)
	}
	inner := err
	if at, ok := errors.AsType[*url.Error](err); ok {
		inner = at.Err // the address is one that nobody typed
	}
	f := &failure{code: exitFailed, err: fmt.Errorf("ask Signet: %w", inner)}
	_, isProof := errors.AsType[*tls.CertificateVerificationError](err)
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		f.hint = "what answered has no certificate under the roots that were expected, so nothing was asked of it;\n" +
			"with --server, --ca-file names the mesh's roots: kubectl get configmap " + rootsConfigMap + " -n " + p.where.namespace + " -o jsonpath='{.data.root-cert\\.pem}'"
	} else if _, ok := errors.AsType[x509.HostnameError](err); ok {
		f.hint = "what answered has no certificate for that name, so nothing was asked of it; --server-name is the name that it must have"
	} else if isProof {
		f.hint = "what answered couldn't prove that it is Signet, so nothing was asked of it"
	} else if errors.Is(err, context.DeadlineExceeded) {
		f.hint = "ask again, for less (-n, filters), or with a longer --timeout"
	} else if errors.Is(err, context.Canceled) {
		f.err = errors.New("interrupted")
	} else {
		f.hint = "is Signet running, and does it listen for inspection on this port? kubectl get pods -n " + p.where.namespace
	}
	return f
}

// podLabel is what the chart puts on each pod of Signet, whatever the release and the Service are called.
const podLabel = "app.kubernetes.io/name=signet"

// explainResponse says what an answer of Signet means.
func (p *program) explainResponse(response *api.ResponseError) *failure {
	f := &failure{code: exitFailed, err: response}
	switch response.Problem.Status {
	case http.StatusNotFound:
		f.code = exitNotFound
		f.hint = "the lists show what there is: services -A, certificates -A --standing any"
	case http.StatusUnauthorized:
		f.code = exitNotAllowed
		f.hint = "log in anew with whatever your kubeconfig uses, or ask as a service account: --as-service-account NAMESPACE/NAME"
	case http.StatusForbidden:
		f.code = exitNotAllowed
		role := "signet-reader"
		if strings.Contains(response.Problem.Detail, "probes.") {
			role = "signet-prober"
		}
		f.hint = "a RoleBinding to ClusterRole " + role + " grants it in a namespace, a ClusterRoleBinding in all; see docs/signetctl.md"
	case http.StatusUnprocessableEntity:
		f.code = exitUsage
	case http.StatusBadRequest:
		if errors.Is(response, api.ErrBadContinue) {
			f.hint = "the list changed too much while it was read; ask again"
		} else {
			f.code = exitUsage
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		f.hint = "ask again in a moment"
	case http.StatusInternalServerError:
		f.hint = "the log of Signet says why: kubectl logs -n " + p.where.namespace + " -l " + podLabel + " --prefix --tail 200"
	}
	return f
}

// explainKubernetes says what an error of the API server means. Doing is what was tried, right what it needs.
func explainKubernetes(err error, doing, right string) *failure {
	f := &failure{code: exitFailed, err: fmt.Errorf("%s: %w", doing, err)}
	switch {
	case apierrors.IsForbidden(err):
		f.code = exitNotAllowed
		f.hint = "it needs the right to " + right + " (docs/signetctl.md has a Role for it); with --server it isn't needed"
	case apierrors.IsUnauthorized(err):
		f.code = exitNotAllowed
		f.hint = "the API server doesn't know you: log in anew with whatever your kubeconfig uses"
	case apierrors.IsNotFound(err):
		f.code = exitNotFound
	case errors.Is(err, context.Canceled):
		f.err = errors.New("interrupted")
	default:
		f.hint = "is this the right cluster? kubectl config current-context; another one: --context NAME"
	}
	return f
}
