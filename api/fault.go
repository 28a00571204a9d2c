package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"
)

// ProblemDetails is the body of every answer that isn't a success (RFC 9457): application/problem+json.
type ProblemDetails = huma.ErrorModel

// problemType is the media type of ProblemDetails.
const problemType = "application/problem+json"

// fault is an answer that isn't a success. It is what handlers return.
type fault struct {
	ProblemDetails
	header http.Header
	cause  error // for the log only
}

func (f *fault) GetHeaders() http.Header { return f.header }
func (f *fault) Unwrap() error           { return f.cause }

// newFault is the problem with a status and a text for the caller.
func newFault(status int, detail string) *fault {
	f := &fault{ProblemDetails: ProblemDetails{Status: status, Title: http.StatusText(status), Detail: detail}, header: make(http.Header)}
	switch status {
	case http.StatusUnauthorized:
		f.header.Set("WWW-Authenticate", `Bearer realm="signet"`) // RFC 6750 §3
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		f.header.Set("Retry-After", "1")
	}
	return f
}

// at adds where the problem is, such as query.limit.
func (f *fault) at(location, message string, value any) *fault {
	f.Errors = append(f.Errors, &huma.ErrorDetail{Location: location, Message: message, Value: value})
	return f
}

// because keeps the cause for the log.
func (f *fault) because(err error) *fault {
	f.cause = err
	return f
}

// statusClientLeft stands in metrics for an answer that nobody waits for.
const statusClientLeft = 499

// fromViews is the fault that an error of Views makes.
func fromViews(ctx context.Context, err error, what string) *fault {
	if already, ok := errors.AsType[*fault](err); ok {
		return already
	}
	switch {
	case errors.Is(err, ErrNotFound):
		return newFault(http.StatusNotFound, what+" is not known")
	case errors.Is(err, ErrBadContinue):
		return newFault(http.StatusBadRequest, "continue is not valid here: it is damaged, too old, or belongs to other filters; start again without it").
			at("query.continue", "not valid", nil)
	case errors.Is(context.Cause(ctx), context.Canceled):
		return newFault(statusClientLeft, "the caller left").because(err)
	case errors.Is(err, context.DeadlineExceeded):
		return newFault(http.StatusServiceUnavailable, "the answer took too long; ask again, or for less").because(err)
	}
	return newFault(http.StatusInternalServerError, "the answer could not be made; the log says why").because(err)
}

// write answers with the fault.
func (f *fault) write(w http.ResponseWriter) {
	for name, values := range f.header {
		w.Header()[name] = slices.Clone(values) // a fault may be answered several times
	}
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(f.Status)
	_ = json.NewEncoder(w).Encode(f.ProblemDetails)
}
