package signer

import (
	"crypto/x509"
	"strings"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"

	"github.com/signet-ca/signet/issuer"
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

// Issued is what a CertificateRequest of ours was answered with.
type Issued struct {
	// Chain is as the issuer answered, leaf first; it has been parsed, nothing of it has been verified.
	Chain []*x509.Certificate
	// Issuer is whom the request was for.
	Issuer issuer.Ref
	// For is the value of [RequestLabel].
	For string
	// Replica made the request, "" where that isn't known.
	Replica string
	// At is when it was answered.
	At time.Time
}

// Issued reads what a CertificateRequest carries. It is false for one that isn't ours or that carries no certificate
// yet, or none that can be read.
func (s *Signer) Issued(cr *cmapi.CertificateRequest) (Issued, bool) {
	p, since, _ := outcome(cr)
	if p != issued || cr.Namespace != s.cluster.Namespace {
		return Issued{}, false
	}
	purpose := cr.Labels[RequestLabel]
	if purpose == "" || cr.Spec.Username != "" && cr.Spec.Username != s.cluster.Username {
		return Issued{}, false
	}
	chain, err := ParseChain(cr.Status.Certificate)
	if err != nil {
		return Issued{}, false
	}
	return Issued{Chain: chain, Issuer: issuerOf(cr), For: purpose, Replica: cr.Annotations[ReplicaAnnotation], At: since}, true
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
