package ca

import (
	"context"
	"crypto/x509"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// saying is an authenticator that always gives the same answer.
type saying struct {
	caller *Caller
	err    error
}

func (s saying) Authenticate(context.Context, Credentials) (*Caller, error) { return s.caller, s.err }

func TestR19_Authenticators(t *testing.T) {
	isAlice, isBob := saying{caller: &Caller{ID: alice}}, saying{caller: &Caller{ID: bob}}
	rejected := saying{err: kindTokenRejected.because("expired")}
	unchecked := saying{err: kindReviewFailed.because("the API server is away")}
	foreign := saying{err: errNotConcerned}
	const token, none = "a.b.c", ""
	for _, row := range []struct {
		name        string
		certificate Authenticator
		shown       bool // a certificate
		token       string
		tokens      []Authenticator
		want        *Caller
		refused     *kind
		tried       string
	}{
		{"a token", nil, false, token, []Authenticator{isAlice}, isAlice.caller, nil, "t0=accepted"},
		{"a token, and a certificate that proves nothing here", nil, true, token, []Authenticator{isAlice}, isAlice.caller, nil, "t0=accepted"},
		{"a certificate", isAlice, true, none, []Authenticator{isBob}, isAlice.caller, nil, "certificate=accepted"},
		{"a rebooted machine: a certificate and an expired token", isAlice, true, token, []Authenticator{rejected}, isAlice.caller, nil, "certificate=accepted t0=token_rejected"},
		{"a certificate, and a token that can't be checked", isAlice, true, token, []Authenticator{unchecked}, isAlice.caller, nil, "certificate=accepted t0=review_failed"},
		{"R8: a bad certificate and a good token", rejected, true, token, []Authenticator{isAlice}, isAlice.caller, nil, "certificate=token_rejected t0=accepted"},
		{"both, of one identity", isAlice, true, token, []Authenticator{isAlice}, isAlice.caller, nil, "certificate=accepted t0=accepted"},
		{"both, of two identities", isAlice, true, token, []Authenticator{isBob}, nil, &kindTwoIdentities, "certificate=accepted t0=accepted"},
		{"both bad", rejected, true, token, []Authenticator{unchecked}, nil, &kindReviewFailed, "certificate=token_rejected t0=review_failed"},
		{"a certificate that can't be checked now, and a dead token", unchecked, true, token, []Authenticator{rejected}, nil, &kindReviewFailed, "certificate=review_failed t0=token_rejected"},
		{"a bad certificate alone", rejected, true, none, nil, nil, &kindTokenRejected, "certificate=token_rejected"},
		{"the first token authenticator isn't concerned", nil, false, token, []Authenticator{foreign, isAlice}, isAlice.caller, nil, "t1=accepted"},
		{"the first one refuses", nil, false, token, []Authenticator{rejected, isAlice}, isAlice.caller, nil, "t0=token_rejected t1=accepted"},
		{"the first one accepts", nil, false, token, []Authenticator{isAlice, isBob}, isAlice.caller, nil, "t0=accepted"},
		{"the last one's reason counts", nil, false, token, []Authenticator{rejected, unchecked}, nil, &kindReviewFailed, "t0=token_rejected t1=review_failed"},
		{"nobody knows such tokens", nil, false, token, []Authenticator{foreign}, nil, &kindTokenRejected, ""},
		{"nothing", nil, false, none, []Authenticator{isAlice}, nil, &kindNoToken, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			all := Authenticators{Certificate: row.certificate}
			for n, a := range row.tokens {
				all.Tokens = append(all.Tokens, TokenAuthenticator{Name: "t" + string(rune('0'+n)), Authenticator: a})
			}
			authn := newAuthentication(all, prometheus.NewRegistry())
			credentials := Credentials{Token: row.token}
			if row.shown {
				credentials.Certificates = []*x509.Certificate{{}}
			}
			var shape error
			if row.token == none {
				shape = kindNoToken.because("no token")
			}
			caller, tried, err := authn.authenticate(t.Context(), credentials, shape)
			assert.Equal(t, row.tried, tried)
			if row.refused != nil {
				requireKind(t, *row.refused, err)
				assert.Nil(t, caller)
				return
			}
			require.NoError(t, err)
			assert.Same(t, row.want, caller)
			if row.name == "the first one refuses" {
				for _, labels := range [][]string{{"t0", "token_rejected"}, {"t1", "accepted"}} {
					var counted dto.Metric
					require.NoError(t, authn.results.WithLabelValues(labels...).Write(&counted))
					assert.InDelta(t, 1, counted.GetCounter().GetValue(), 0)
				}
			}
		})
	}
}
