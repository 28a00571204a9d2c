package signer

import (
	"strings"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
)

// phase is how far a CertificateRequest has come. All but pending are final.
type phase int

const (
	pending phase = iota
	issued
	denied
	failed
)

// outcome reads the phase from the conditions, and since when and why it is so.
func outcome(cr *cmapi.CertificateRequest) (p phase, since time.Time, why string) {
	for _, c := range cr.Status.Conditions {
		if c.LastTransitionTime != nil {
			since = c.LastTransitionTime.Time
		}
		switch {
		case c.Type == cmapi.CertificateRequestConditionDenied && c.Status == cmmeta.ConditionTrue:
			return denied, since, c.Reason + ": " + c.Message
		case c.Type == cmapi.CertificateRequestConditionInvalidRequest && c.Status == cmmeta.ConditionTrue:
			return failed, since, c.Reason + ": " + c.Message
		case c.Type == cmapi.CertificateRequestConditionReady:
			switch {
			case c.Status == cmmeta.ConditionTrue && len(cr.Status.Certificate) > 0:
				return issued, since, ""
			case c.Reason == cmapi.CertificateRequestReasonFailed:
				return failed, since, c.Reason + ": " + c.Message
			case c.Reason == cmapi.CertificateRequestReasonDenied:
				return denied, since, c.Reason + ": " + c.Message
			}
		}
	}
	return pending, time.Time{}, ""
}

// transientCause names the passing failure that an issuer's message tells of, or "". Only what can be
// named is tried again; anything else is the issuer's answer. The texts are those of Go's net and
// net/http and of HTTP statuses, which cert-manager's remote issuers pass on.
func transientCause(why string) string {
	why = strings.ToLower(why)
	for _, t := range []struct{ cause, text string }{
		{"connection", "connection refused"},
		{"connection", "connection reset by peer"},
		{"connection", "broken pipe"},
		{"connection", "no route to host"},
		{"connection", "unexpected eof"},
		{"connection", "http2: client connection lost"},
		{"dns", "server misbehaving"},
		{"timeout", "i/o timeout"},
		{"timeout", "tls handshake timeout"},
		{"timeout", "context deadline exceeded"},
		{"timeout", "client.timeout exceeded"},
		{"busy", "429 too many requests"},
		{"busy", "code: 429"},
		{"unavailable", "502 bad gateway"},
		{"unavailable", "503 service unavailable"},
		{"unavailable", "504 gateway timeout"},
		{"unavailable", "code: 502"},
		{"unavailable", "code: 503"},
		{"unavailable", "code: 504"},
	} {
		if strings.Contains(why, t.text) {
			return t.cause
		}
	}
	return ""
}
