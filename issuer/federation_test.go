package issuer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

var (
	ourDomain   = spiffeid.RequireTrustDomainFromString("cluster.local")
	otherDomain = spiffeid.RequireTrustDomainFromString("other.example")
)

func TestFederatedConfigValidate(t *testing.T) {
	good := FederatedConfig{TrustDomain: "other.example", EndpointURL: "https://spiffe.other.example/bundle", CAFile: "ca.pem", Profile: "https_web"}
	for _, row := range []struct {
		name   string
		change func(*FederatedConfig)
		want   string // "" is right
	}{
		{"endpoint", func(*FederatedConfig) {}, ""},
		{"file", func(c *FederatedConfig) { *c = FederatedConfig{TrustDomain: "other.example", File: "other.pem"} }, ""},
		{"own trust domain", func(c *FederatedConfig) { c.TrustDomain = "cluster.local" }, "f.trustDomain: \"cluster.local\" is the mesh's own trust domain"},
		{"no trust domain", func(c *FederatedConfig) { c.TrustDomain = "" }, "f.trustDomain: \"\" is not a trust domain"},
		{"SPIFFE ID", func(c *FederatedConfig) { c.TrustDomain = "spiffe://other.example" }, "is not a trust domain"},
		{"upper case", func(c *FederatedConfig) { c.TrustDomain = "Other.example" }, "is not a trust domain"},
		{"neither", func(c *FederatedConfig) { *c = FederatedConfig{TrustDomain: "other.example"} }, "f: exactly one of endpointURL and file must be set"},
		{"both", func(c *FederatedConfig) { c.File = "other.pem" }, "f: exactly one of endpointURL and file must be set"},
		{"plain HTTP", func(c *FederatedConfig) { c.EndpointURL = "http://spiffe.other.example/" }, "f.endpointURL: it must be a URL that begins with https://"},
		{"no host", func(c *FederatedConfig) { c.EndpointURL = "https:///bundle" }, "f.endpointURL: "},
		{"user", func(c *FederatedConfig) { c.EndpointURL = "https://me:secret@other.example/" }, "f.endpointURL: "},
		{"other profile", func(c *FederatedConfig) { c.Profile = "https_spiffe" }, `f.profile: "https_spiffe" is not a profile; it must be https_web`},
		{"CAs for a file", func(c *FederatedConfig) { c.EndpointURL, c.File = "", "other.pem" }, "f: profile and caFile are for endpointURL, which is not set"},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg := good
			row.change(&cfg)
			p := setting.NewProblems()
			cfg.Validate(p.At("f"), ourDomain)
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.ErrorContains(t, p.Err(), row.want)
				assert.NotContains(t, p.Err().Error(), "secret")
			}
		})
	}
}

// rootOf is a root that says of which trust domain it is.
func rootOf(t testing.TB, name, uri string) *x509.Certificate {
	return newRoot(t, name, func(c *x509.Certificate) {
		at, err := url.Parse(uri)
		require.NoError(t, err)
		c.URIs = []*url.URL{at}
	})
}

// jwks is a SPIFFE bundle by hand.
func jwks(more string, keys ...string) string {
	return fmt.Sprintf(`{"keys":[%s]%s}`, strings.Join(keys, ","), more)
}

func jwk(anchors ...*x509.Certificate) string {
	var x5c []string
	for _, anchor := range anchors {
		x5c = append(x5c, base64.StdEncoding.EncodeToString(anchor.Raw))
	}
	text, _ := json.Marshal(map[string]any{"use": "x509-svid", "kty": "EC", "x5c": x5c})
	return string(text)
}

func TestParseSPIFFE(t *testing.T) {
	a, b, leaf := newRoot(t, "a", nil), rootOf(t, "b", "spiffe://other.example"), newRoot(t, "leaf", func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 })
	jwtKey := `{"use":"jwt-svid","kty":"EC","kid":"1","crv":"P-256","x":"AA","y":"AA"}`

	got, err := parseSPIFFE(otherDomain, []byte(jwks(`,"spiffe_sequence":7,"spiffe_refresh_hint":120,"more":{}`, jwk(a), jwtKey, jwk(b), jwk(a))))
	require.NoError(t, err)
	want, err := NewBundle(a, b)
	require.NoError(t, err)
	assert.Equal(t, want.PEM(), got.bundle.PEM())
	assert.Equal(t, 2*time.Minute, got.refresh)
	assert.Equal(t, uint64(7), *got.sequence)

	// What the specification tells consumers to pass over.
	odd := strings.Replace(jwk(leaf), `"EC"`, `"new"`, 1)
	got, err = parseSPIFFE(otherDomain, []byte(jwks(`,"spiffe_refresh_hint":9000000000000000000`, odd, `{"use":"x509-svid","kty":"EC"}`, strings.Replace(jwk(leaf), "x509", "x510", 1), jwk(a, leaf))))
	require.NoError(t, err)
	assert.Equal(t, toPEM(a), got.bundle.PEM())
	assert.Equal(t, time.Hour, got.refresh, "without overflow")
	assert.Nil(t, got.sequence)

	many := newRoot(t, "many", func(c *x509.Certificate) { c.Subject.Organization = []string{strings.Repeat("x", 70<<10)} })
	more := newRoot(t, "more", func(c *x509.Certificate) { c.Subject.Organization = []string{strings.Repeat("y", 70<<10)} })
	for name, row := range map[string]struct{ text, want string }{
		"nothing":                {"", "not a SPIFFE bundle"},
		"HTML":                   {"<html>", "not a SPIFFE bundle"},
		"more behind":            {jwks("", jwk(a)) + "{}", "not a SPIFFE bundle"},
		"no keys":                {"{}", "has no X.509 authority"},
		"empty":                  {jwks(""), "has no X.509 authority"},
		"only JWT keys":          {jwks("", jwtKey), "has no X.509 authority"},
		"no base64":              {`{"keys":[{"use":"x509-svid","kty":"EC","x5c":["%"]}]}`, "not a SPIFFE bundle"},
		"no certificate":         {`{"keys":[{"use":"x509-svid","kty":"EC","x5c":["AAAA"]}]}`, "parse certificate of key 1"},
		"leaf":                   {jwks("", jwk(a), jwk(leaf)), "is not a CA certificate"},
		"other trust domain":     {jwks("", jwk(a), jwk(rootOf(t, "evil", "spiffe://cluster.local"))), `certificate "CN=evil" (serial 01) is of "spiffe://cluster.local", not of trust domain other.example`},
		"not even a SPIFFE ID":   {jwks("", jwk(rootOf(t, "evil", "spiffe://Other.example:1"))), "not of trust domain other.example"},
		"too large certificates": {jwks("", jwk(many), jwk(more)), "at most 131072 are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseSPIFFE(otherDomain, []byte(row.text))
			require.ErrorContains(t, err, row.want)
			assert.True(t, got.bundle.Empty())
		})
	}
}

// site is a TLS server with a certificate of its own, whose CA is in a file.
type site struct {
	*httptest.Server
	caFile string
}

func newSite(t *testing.T, handler http.HandlerFunc) *site {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	write(t, caFile, toPEM(server.Certificate()))
	return &site{server, caFile}
}

func (s *site) source(t *testing.T) *endpointSource {
	t.Helper()
	source, err := NewFederatedSource(FederatedConfig{TrustDomain: "other.example", EndpointURL: s.URL + "/bundle", CAFile: s.caFile}, quiet)
	require.NoError(t, err)
	return source.(*endpointSource)
}

func TestR56_FederatedEndpoint(t *testing.T) {
	a := newRoot(t, "a", nil)
	good := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, jwks(`,"spiffe_refresh_hint":300`, jwk(a)))
	}
	s := newSite(t, good)
	source := s.source(t)
	assert.Equal(t, "trust domain other.example at "+s.URL+"/bundle", source.String())
	got, err := source.fetch(t.Context())
	require.NoError(t, err)
	assert.Equal(t, toPEM(a), got.bundle.PEM())

	// The file of CAs is read each time.
	write(t, s.caFile, toPEM(a))
	_, err = source.fetch(t.Context())
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	assert.True(t, unknown, "%v", err)
	write(t, s.caFile, "")
	_, err = source.fetch(t.Context())
	assert.ErrorContains(t, err, "read CAs of the endpoint: file "+s.caFile+": PEM: no certificate")
	write(t, s.caFile, "# later\n"+toPEM(s.Certificate()))
	_, err = source.fetch(t.Context())
	assert.NoError(t, err)
}

func TestR56_FederatedEndpointThatMisbehaves(t *testing.T) {
	a := newRoot(t, "a", nil)
	good := jwks("", jwk(a))
	var mu sync.Mutex
	asked := 0
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, good) }))
	defer plain.Close()
	for name, row := range map[string]struct {
		handler http.HandlerFunc
		want    string // "" is right
	}{
		"right after three redirects": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery != "xxx" {
				http.Redirect(w, r, "/bundle?x"+r.URL.RawQuery, http.StatusFound)
				return
			}
			fmt.Fprint(w, good)
		}, ""},
		"redirects for ever":      {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bundle", http.StatusFound) }, "it redirects more than 3 times"},
		"redirects to plain HTTP": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, plain.URL, http.StatusFound) }, "it redirects to what is no https:// URL"},
		"redirects to a user": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://a:b@"+r.Host, http.StatusFound)
		}, "it redirects to what is no https:// URL"},
		"other trust domain": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, jwks("", jwk(rootOf(t, "x", "spiffe://cluster.local"))))
		}, "not of trust domain other.example"},
		"empty": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, jwks("")) }, "has no X.509 authority"},
		"error with a bundle": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, good)
		}, "the endpoint answered 502"},
		"oversized": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, good+strings.Repeat(" ", maxSPIFFEBytes)) }, "more than the 1048576 bytes that are allowed"},
		"endless and fast": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, "more than the 1048576 bytes that are allowed"},
		"endless and slow": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				fmt.Fprint(w, " ")
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}, "context deadline exceeded"},
		"silent": {func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			panic(http.ErrAbortHandler) // an empty answer, however late, might still be taken
		}, "context deadline exceeded"},
		"large header": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) }, "header"},
		"hangs up":     {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				asked++
				mu.Unlock()
				row.handler(w, r)
			})
			limit := time.Minute
			if strings.Contains(row.want, "deadline") {
				limit = 200 * time.Millisecond // fetchTimeout in real life
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			got, err := s.source(t).fetch(ctx)
			if row.want == "" {
				require.NoError(t, err)
				assert.Equal(t, toPEM(a), got.bundle.PEM())
				return
			}
			require.ErrorContains(t, err, row.want)
			assert.True(t, got.bundle.Empty())
		})
	}
	assert.NotZero(t, asked)

	t.Run("plain HTTP", func(t *testing.T) {
		source, err := NewFederatedSource(FederatedConfig{TrustDomain: "other.example", EndpointURL: plain.URL}, quiet)
		require.NoError(t, err)
		_, err = source.(*endpointSource).fetch(t.Context())
		require.ErrorContains(t, err, "only https:// is allowed")
	})
	t.Run("TLS 1.1", func(t *testing.T) {
		s := newSite(t, nil)
		s.TLS.MaxVersion = tls.VersionTLS11
		s.TLS.MinVersion = tls.VersionTLS10
		_, err := s.source(t).fetch(t.Context())
		require.ErrorContains(t, err, "protocol version")
	})
}

func TestR56_FederatedEndpointIsAskedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := valid(t, "a", 3*time.Hour), valid(t, "b", 24*time.Hour), valid(t, "c", 24*time.Hour)
		bundle := func(anchors ...*x509.Certificate) Bundle {
			bundle, err := NewBundle(anchors...)
			require.NoError(t, err)
			return bundle
		}
		number := func(n uint64) *uint64 { return &n }
		var mu sync.Mutex
		var times []time.Time // of fetches
		down := errors.New("down")
		answer, answerErr := spiffeBundle{}, down
		say := func(s spiffeBundle, err error) {
			mu.Lock()
			defer mu.Unlock()
			answer, answerErr = s, err
		}
		source := &endpointSource{td: otherDomain, url: "https://other.example", log: quiet}
		source.fetch = func(ctx context.Context) (spiffeBundle, error) {
			mu.Lock()
			defer mu.Unlock()
			deadline, ok := ctx.Deadline()
			assert.True(t, ok)
			assert.LessOrEqual(t, time.Until(deadline), fetchTimeout)
			times = append(times, time.Now())
			return answer, answerErr
		}
		fetches := func() []time.Duration { // how long after each other, since the last time; the last one starts the next list
			mu.Lock()
			defer mu.Unlock()
			var pauses []time.Duration
			for i := 1; i < len(times); i++ {
				pauses = append(pauses, times[i].Sub(times[i-1]))
			}
			if len(times) > 1 {
				times = times[len(times)-1:]
			}
			return pauses
		}
		near := func(want time.Duration, got []time.Duration) {
			t.Helper()
			require.NotEmpty(t, got)
			for _, pause := range got {
				assert.LessOrEqual(t, pause, want)
				assert.GreaterOrEqual(t, pause, want*9/10)
			}
		}
		told := ask(t, source)

		// Nothing is known yet: ask again soon, but ever less often.
		time.Sleep(2 * time.Minute)
		assert.Equal(t, []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second}, fetches())
		first := told.one()
		require.ErrorIs(t, first.Err, down)
		assert.ErrorContains(t, first.Err, "read trust anchors: trust domain other.example at https://other.example: down")

		say(spiffeBundle{bundle: bundle(a, b), sequence: number(7)}, nil)
		time.Sleep(2 * time.Minute)
		good := told.one()
		require.NoError(t, good.Err)
		assert.Len(t, good.Bundle.Anchors(), 2)
		fetches()
		time.Sleep(21 * time.Minute)
		near(5*time.Minute, fetches()) // no hint
		assert.Empty(t, told.next())

		say(spiffeBundle{bundle: bundle(a, b), refresh: time.Second, sequence: number(7)}, nil)
		time.Sleep(6 * time.Minute)
		fetches()
		time.Sleep(5 * time.Minute)
		near(time.Minute, fetches()) // not more often than that

		// Trouble doesn't make it ask more often, and is over when it is over.
		say(spiffeBundle{}, down)
		time.Sleep(5 * time.Minute)
		near(time.Minute, fetches())
		require.ErrorIs(t, told.one().Err, down)
		say(spiffeBundle{bundle: bundle(a, b), refresh: time.Minute, sequence: number(7)}, nil)
		time.Sleep(2 * time.Minute)
		require.NoError(t, told.one().Err, "told again")

		// An older bundle is not taken.
		say(spiffeBundle{bundle: bundle(c), refresh: time.Minute, sequence: number(6)}, nil)
		time.Sleep(2 * time.Minute)
		require.ErrorContains(t, told.one().Err, "its bundle, number 6, is older than number 7, which is known")
		say(spiffeBundle{bundle: bundle(a, b, c), refresh: 24 * time.Hour, sequence: number(8)}, nil)
		time.Sleep(2 * time.Minute)
		assert.Len(t, told.one().Bundle.Anchors(), 3)
		fetches()
		time.Sleep(50 * time.Minute)
		assert.Empty(t, fetches())
		time.Sleep(70 * time.Minute)
		near(time.Hour, fetches()) // not less often than that

		// What expires is left out without a fetch.
		time.Sleep(time.Until(a.NotAfter.Add(2 * lookEvery)))
		answers := told.now()
		require.Len(t, answers, 1)
		assert.Len(t, answers[0].Bundle.Anchors(), 2)
		assert.Len(t, answers[0].LeftOut, 1)
	})
}

func TestR56_FederatedFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newRoot(t, "a", nil), newRoot(t, "b", nil)
		path := filepath.Join(t.TempDir(), "other")
		write(t, path, "# roots of the other one\n"+toPEM(a))
		source, err := NewFederatedSource(FederatedConfig{TrustDomain: "other.example", File: path}, quiet)
		require.NoError(t, err)
		assert.Equal(t, "trust domain other.example, file "+path, source.String())
		told := ask(t, source)
		assert.Equal(t, toPEM(a), told.one().Bundle.PEM())
		write(t, path, "\n "+jwks("", jwk(b)))
		assert.Equal(t, toPEM(b), told.one().Bundle.PEM())
		for text, want := range map[string]string{
			jwks(""): "has no X.509 authority",
			toPEM(rootOf(t, "x", "spiffe://cluster.local")):          "not of trust domain other.example",
			jwks("", jwk(rootOf(t, "x", "spiffe://third.example"))):  "not of trust domain other.example",
			toPEM(a) + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END": "PEM: ",
		} {
			write(t, path, text)
			assert.ErrorContains(t, told.one().Err, want)
		}
	})
}
