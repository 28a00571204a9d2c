package signer

import (
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func condition(kind cmapi.CertificateRequestConditionType, status cmmeta.ConditionStatus, reason string, at time.Time) cmapi.CertificateRequestCondition {
	since := metav1.NewTime(at)
	return cmapi.CertificateRequestCondition{Type: kind, Status: status, Reason: reason, Message: "because", LastTransitionTime: &since}
}

func TestOutcome(t *testing.T) {
	const (
		ready, approved, refused, invalid = cmapi.CertificateRequestConditionReady, cmapi.CertificateRequestConditionApproved,
			cmapi.CertificateRequestConditionDenied, cmapi.CertificateRequestConditionInvalidRequest
		yes, no, unknown = cmmeta.ConditionTrue, cmmeta.ConditionFalse, cmmeta.ConditionUnknown
	)
	at := epoch.Add(time.Minute)
	earlier := condition(approved, yes, "cert-manager.io", epoch)
	for _, row := range []struct {
		name       string
		conditions []cmapi.CertificateRequestCondition
		signed     bool
		want       phase
		why        string
	}{
		{"nothing yet", nil, false, pending, ""},
		{"a certificate without a condition", nil, true, pending, ""},
		{"approved", []cmapi.CertificateRequestCondition{earlier}, false, pending, ""},
		{"pending", []cmapi.CertificateRequestCondition{earlier, condition(ready, no, "Pending", at)}, false, pending, ""},
		{"issued", []cmapi.CertificateRequestCondition{earlier, condition(ready, yes, "Issued", at)}, true, issued, ""},
		{"ready without a certificate", []cmapi.CertificateRequestCondition{condition(ready, yes, "Issued", at)}, false, pending, ""},
		{"failed", []cmapi.CertificateRequestCondition{earlier, condition(ready, no, "Failed", at)}, false, failed, "Failed: because"},
		{"denied", []cmapi.CertificateRequestCondition{condition(refused, yes, "policy", at)}, false, denied, "policy: because"},
		{"denied as cert-manager says it", []cmapi.CertificateRequestCondition{condition(ready, no, "Denied", at)}, false, denied, "Denied: because"},
		{"denied wins over issued", []cmapi.CertificateRequestCondition{condition(refused, yes, "policy", at), condition(ready, yes, "Issued", at)}, true, denied, "policy: because"},
		{"not denied", []cmapi.CertificateRequestCondition{condition(refused, no, "policy", at)}, false, pending, ""},
		{"invalid", []cmapi.CertificateRequestCondition{condition(invalid, yes, "bad", at)}, false, failed, "bad: because"},
		{"not invalid", []cmapi.CertificateRequestCondition{condition(invalid, unknown, "bad", at)}, false, pending, ""},
		{"of no known kind", []cmapi.CertificateRequestCondition{condition("Other", yes, "Failed", at)}, false, pending, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			cr := &cmapi.CertificateRequest{Status: cmapi.CertificateRequestStatus{Conditions: row.conditions}}
			if row.signed {
				cr.Status.Certificate = []byte("PEM")
			}
			p, since, why := outcome(cr)
			assert.Equal(t, row.want, p)
			assert.Equal(t, row.why, why)
			if row.want == pending {
				assert.Zero(t, since)
			} else {
				assert.True(t, since.Equal(at), "since %s", since)
			}
		})
	}
}

func TestTransientCause(t *testing.T) {
	for why, want := range map[string]string{
		`Post "https://vault:8200/v1/pki/sign/mesh": dial tcp 10.0.0.1:8200: connect: connection refused`: "connection",
		`read tcp 10.0.0.2:1->10.0.0.1:8200: read: connection reset by peer`:                              "connection",
		`write: broken pipe`:                                                           "connection",
		`dial tcp: connect: no route to host`:                                          "connection",
		`Put "https://vault": unexpected EOF`:                                          "connection",
		`http2: client connection lost`:                                                "connection",
		`dial tcp: lookup vault on 10.96.0.10:53: server misbehaving`:                  "dns",
		`dial tcp: lookup vault on 10.96.0.10:53: read udp: i/o timeout`:               "timeout",
		`net/http: TLS handshake timeout`:                                              "timeout",
		`context deadline exceeded (Client.Timeout exceeded while awaiting headers)`:   "timeout",
		"Failed to sign certificate: Error making API request.\n\nCode: 503. Errors:":  "unavailable",
		"Code: 429. Errors:\n\n* request path \"pki/sign\": rate limit quota exceeded": "busy",
		`unexpected status: 429 Too Many Requests`:                                     "busy",
		`502 Bad Gateway`:     "unavailable",
		`504 Gateway Timeout`: "unavailable",

		``: "",
		`dial tcp: lookup vault on 10.96.0.10:53: no such host`:        "",
		`Code: 400. Errors: * unknown role: mesh`:                      "",
		`Code: 403. Errors: * permission denied`:                       "",
		`500 Internal Server Error`:                                    "",
		`x509: certificate signed by unknown authority`:                "",
		`error getting keypair for CA issuer: certificate is not a CA`: "",
	} {
		assert.Equal(t, want, transientCause(why), why)
	}
}
