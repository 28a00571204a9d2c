package ca

import (
	"context"
	"errors"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// Authenticators prove who calls, by what came with a request: the certificate of its client, and its token. One that
// fails never stops the next (R19): a virtual machine that was down sends a good certificate and an expired token, and a
// certificate of roots that are no more is no reason to refuse a good token.
type Authenticators struct {
	// Certificate judges client certificates; nil where they prove nothing.
	Certificate Authenticator
	// Tokens are tried in this order, until one knows the token and accepts it, or is the only one that may judge it.
	Tokens []TokenAuthenticator
}

// TokenAuthenticator is an [Authenticator] of tokens.
type TokenAuthenticator struct {
	// Name is one word, a label of metrics.
	Name string
	// Alone says that tokens which concern this one are shown to no other, also where it refuses them.
	Alone bool
	Authenticator
}

// errNotConcerned is said of credentials that an authenticator has nothing to do with, such as tokens of another issuer.
var errNotConcerned = errors.New("the credentials are for somebody else")

// certificateName names the authenticator of client certificates.
const certificateName = "certificate"

// authentication is Authenticators at work.
type authentication struct {
	Authenticators
	results *prometheus.CounterVec
}

func newAuthentication(a Authenticators, reg prometheus.Registerer) *authentication {
	results := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "authentications_total",
		Help: "Credentials that were judged, by authenticator and result: accepted, or the reason why not.",
	}, []string{"authenticator", "result"})
	reg.MustRegister(results)
	return &authentication{a, results}
}

// authenticate is who came with the credentials, of which there is at least one. TokenShape says what is wrong with the
// token before anybody has looked at it. Tried says for the log what became of each.
func (a *authentication) authenticate(ctx context.Context, c Credentials, tokenShape error) (caller *Caller, tried string, err error) {
	var said []string
	note := func(name string, err error) {
		result := "accepted"
		if err != nil {
			result = refuse(err).reason
		}
		a.results.WithLabelValues(name, result).Inc()
		said = append(said, name+"="+result)
	}

	var byCertificate, byToken *Caller
	certificateErr, tokenErr := error(nil), tokenShape
	if a.Certificate != nil && len(c.Certificates) > 0 {
		byCertificate, certificateErr = a.Certificate.Authenticate(ctx, c)
		note(certificateName, certificateErr)
	}
	if tokenErr == nil {
		tokenErr = kindTokenRejected.because("no authenticator knows such tokens")
		for _, t := range a.Tokens {
			found, err := t.Authenticate(ctx, c)
			if errors.Is(err, errNotConcerned) {
				continue
			}
			note(t.Name, err)
			if byToken, tokenErr = found, err; err == nil || t.Alone {
				break
			}
		}
	}
	tried = strings.Join(said, " ")
	switch {
	case byCertificate != nil && byToken != nil && byCertificate.ID != byToken.ID:
		return nil, tried, kindTwoIdentities.because("the client certificate is of %s, the token of %s", byCertificate.ID, byToken.ID)
	case byToken != nil:
		return byToken, tried, nil
	case byCertificate != nil:
		return byCertificate, tried, nil
	case certificateErr != nil && (c.Token == "" || refuse(certificateErr).code == codes.Unavailable):
		return nil, tried, certificateErr // it may be good when it is asked again
	}
	return nil, tried, tokenErr
}
