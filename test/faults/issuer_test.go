package faults

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
	"github.com/signet-ca/signet/test/testca"
)

// TestR36_R37_R47_IssuersThatMisbehave: whatever an issuer answers, the caller gets either a chain
// that holds up or the right code, for the right number of CertificateRequests, which all go away.
func TestR36_R37_R47_IssuersThatMisbehave(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, nil)
	c := dial(t, r, m.root.PEM())

	stranger, err := testca.NewRoot("root") // of the same name
	require.NoError(t, err)
	strangersIssuer, err := stranger.NewIntermediate("intermediate", 24*time.Hour)
	require.NoError(t, err)
	intermediate, err := m.root.NewIntermediate("intermediate", 24*time.Hour)
	require.NoError(t, err)
	another, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(another)
	require.NoError(t, err)
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})

	changed := func(change func(*testca.Template)) testca.Behaviour {
		return testca.Changed(m.root, func(t *testca.Template) error {
			change(t)
			return nil
		})
	}
	const transient = `Post "https://vault.example/v1/pki/sign/mesh": dial tcp 192.0.2.1:8200: connect: connection refused`
	uri := func(w *workload) []byte { return meshclient.URIName(w.id.String()) }
	// names issues a leaf with these names.
	names := func(list func(w *workload) [][]byte) func(w *workload) testca.Behaviour {
		return func(w *workload) testca.Behaviour {
			return testca.Changed(m.root, func(t *testca.Template) error { return t.SetSAN(list(w)...) })
		}
	}
	plain := func(b testca.Behaviour) func(*workload) testca.Behaviour {
		return func(*workload) testca.Behaviour { return b }
	}

	for _, test := range []struct {
		name     string
		behave   func(w *workload) testca.Behaviour
		code     codes.Code
		requests int
		log      string // in the line about the refusal
	}{
		{"good", plain(testca.Good(m.root)), codes.OK, 1, ""},
		{"good below an intermediate", plain(testca.Good(intermediate)), codes.OK, 1, ""},
		{"R43 the root appended", plain(testca.Rewritten(intermediate, func(chain []byte) []byte { return append(chain, m.root.PEM()...) })), codes.OK, 1, ""},
		{"R43 the root appended to a leaf of its own", plain(testca.Rewritten(m.root, func(chain []byte) []byte { return append(chain, m.root.PEM()...) })), codes.OK, 1, ""},
		{"an unneeded certificate appended", plain(testca.Rewritten(m.root, func(chain []byte) []byte { return append(chain, stranger.PEM()...) })), codes.OK, 1, ""},
		{"intermediates in another order", plain(testca.Rewritten(intermediate, func(chain []byte) []byte { return append(append(chain, stranger.PEM()...), m.root.PEM()...) })), codes.OK, 1, ""},
		{"a shorter life than asked for", plain(changed(func(t *testca.Template) { t.NotAfter = t.NotBefore.Add(10 * time.Minute) })), codes.OK, 1, ""},

		{"denied", plain(testca.Always(testca.Denied, "not today")), codes.FailedPrecondition, 1, "not today"},
		{"failed", plain(testca.Always(testca.Failed, "no such role")), codes.FailedPrecondition, 1, "no such role"},
		{"invalid", plain(testca.Always(testca.Invalid, "no such usage")), codes.FailedPrecondition, 1, "no such usage"},
		{"R49 failed twice in passing", plain(testca.First(2, testca.Always(testca.Failed, transient), testca.Good(m.root))), codes.OK, 3, ""},
		{"R49 failed in passing, then for good", plain(testca.First(1, testca.Always(testca.Failed, transient), testca.Always(testca.Failed, "no such role"))), codes.FailedPrecondition, 2, "no such role"},
		{"failed in passing all the time", plain(testca.Always(testca.Failed, transient)), codes.Unavailable, 6, "connection refused"},
		{"R49 deleted by somebody", plain(testca.First(1, testca.Always(testca.Deleted, ""), testca.Good(m.root))), codes.OK, 2, ""},

		{"garbage", plain(testca.Rewritten(m.root, func([]byte) []byte { return []byte("garbage") })), codes.FailedPrecondition, 1, "PEM"},
		{"PEM of garbage", plain(testca.Rewritten(m.root, func([]byte) []byte {
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("garbage")})
		})), codes.FailedPrecondition, 1, "parse certificate"},
		{"R42 a private key behind", plain(testca.Rewritten(m.root, func(chain []byte) []byte { return append(chain, keyPEM...) })), codes.FailedPrecondition, 1, "PRIVATE KEY"},
		{"R42 text before", plain(testca.Rewritten(m.root, func(chain []byte) []byte { return append([]byte("subject=CN=leaf\n"), chain...) })), codes.FailedPrecondition, 1, "text outside"},
		{"R42 text between", plain(testca.Rewritten(intermediate, func(chain []byte) []byte {
			block, rest := pem.Decode(chain)
			return fmt.Appendf(pem.EncodeToMemory(block), "issuer=CN=root\n%s", rest)
		})), codes.FailedPrecondition, 1, "text outside"},
		{"the intermediate first", plain(testca.Rewritten(intermediate, func(chain []byte) []byte {
			block, rest := pem.Decode(chain)
			return append(rest, pem.EncodeToMemory(block)...)
		})), codes.FailedPrecondition, 1, "key"},
		{"the intermediate missing", plain(testca.Rewritten(intermediate, func(chain []byte) []byte {
			block, _ := pem.Decode(chain)
			return pem.EncodeToMemory(block)
		})), codes.FailedPrecondition, 1, "trust anchor"},

		{"another key", plain(changed(func(t *testca.Template) { t.Key = another.Public() })), codes.FailedPrecondition, 1, "another key"},
		{"a CA certificate", plain(changed(func(t *testca.Template) { t.IsCA = true })), codes.FailedPrecondition, 1, "CA certificate"},
		{"may sign certificates", plain(changed(func(t *testca.Template) { t.KeyUsage |= x509.KeyUsageCertSign })), codes.FailedPrecondition, 1, "CA certificate"},
		{"R34 no name", plain(changed(func(t *testca.Template) { t.ExtraExtensions = nil })), codes.FailedPrecondition, 1, "names"},
		{"R34 another name", names(func(w *workload) [][]byte { return [][]byte{meshclient.URIName(w.id.String() + "-admin")} }), codes.FailedPrecondition, 1, "names"},
		{"R34 the name in upper case", names(func(w *workload) [][]byte { return [][]byte{meshclient.URIName("SPIFFE" + w.id.String()[6:])} }), codes.FailedPrecondition, 1, "names"},
		{"a hidden otherName", names(func(w *workload) [][]byte {
			return [][]byte{uri(w), meshclient.OtherName(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}, "administrator@example.com")}
		}), codes.FailedPrecondition, 1, "names"},
		{"a hidden directoryName", names(func(w *workload) [][]byte {
			return [][]byte{uri(w), meshclient.DirectoryName(meshclient.Subject(meshclient.CommonName("administrator")))}
		}), codes.FailedPrecondition, 1, "names"},
		{"a hidden registeredID", names(func(w *workload) [][]byte { return [][]byte{uri(w), meshclient.RegisteredID([]byte{0x2a, 0x03, 0x04})} }), codes.FailedPrecondition, 1, "names"},
		{"a DNS name", names(func(w *workload) [][]byte { return [][]byte{uri(w), meshclient.DNSName("istiod.istio-system.svc")} }), codes.FailedPrecondition, 1, "names"},
		{"the name twice", names(func(w *workload) [][]byte { return [][]byte{uri(w), uri(w)} }), codes.FailedPrecondition, 1, "names"},
		{"a common name", plain(changed(func(t *testca.Template) {
			t.RawSubject, t.Subject = nil, pkix.Name{CommonName: "system:admin", Organization: []string{"system:masters"}}
		})), codes.FailedPrecondition, 1, "subject"},

		{"R33 a longer life than the cap", plain(changed(func(t *testca.Template) { t.NotAfter = t.NotBefore.Add(2 * time.Hour) })), codes.FailedPrecondition, 1, "longer than"},
		{"R33 a longer life than the cap, begun before", plain(changed(func(t *testca.Template) {
			t.NotBefore, t.NotAfter = t.NotBefore.Add(-30*time.Minute), t.NotBefore.Add(61*time.Minute+30*time.Second)
		})), codes.FailedPrecondition, 1, "longer than"},
		{"R37 past half of its life", plain(changed(func(t *testca.Template) {
			t.NotBefore, t.NotAfter = t.NotBefore.Add(-6*time.Minute), t.NotBefore.Add(5*time.Minute)
		})), codes.FailedPrecondition, 1, "half of its life"},
		{"R37 expired", plain(changed(func(t *testca.Template) {
			t.NotBefore, t.NotAfter = t.NotBefore.Add(-2*time.Hour), t.NotBefore.Add(-time.Hour)
		})), codes.FailedPrecondition, 1, "expired"},
		{"R37 not valid yet", plain(changed(func(t *testca.Template) { t.NotBefore = t.NotBefore.Add(5 * time.Minute) })), codes.FailedPrecondition, 1, "not valid before"},

		{"R35 an extension nobody asked for", plain(changed(func(t *testca.Template) {
			t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: []byte{5, 0}})
		})), codes.FailedPrecondition, 1, "extension"},
		{"R35 name constraints", plain(changed(func(t *testca.Template) { t.PermittedURIDomains = []string{"cluster.local"} })), codes.FailedPrecondition, 1, "extension"},
		{"R35 no extended key usage", plain(changed(func(t *testca.Template) { t.ExtKeyUsage = nil })), codes.FailedPrecondition, 1, "extended key usage"},
		{"R35 no client auth", plain(changed(func(t *testca.Template) { t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), codes.FailedPrecondition, 1, "extended key usage"},
		{"R35 code signing too", plain(changed(func(t *testca.Template) { t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) })), codes.FailedPrecondition, 1, "extended key usage"},
		{"R35 no key usage", plain(changed(func(t *testca.Template) { t.KeyUsage = 0 })), codes.FailedPrecondition, 1, "key usage"},

		{"R36 an unknown root", plain(testca.Good(stranger)), codes.FailedPrecondition, 1, "trust anchor"},
		{"R36 an unknown root, sent along", plain(testca.Rewritten(strangersIssuer, func(chain []byte) []byte { return append(chain, stranger.PEM()...) })), codes.FailedPrecondition, 1, "trust anchor"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := m.workload(t, accountFor(t))
			m.issuer.Behave(w.id.String(), test.behave(w))
			chain, err := w.ask(t.Context(), c)
			if test.code == codes.OK {
				leaf := w.issued(t, m.root.PEM(), chain, err)
				for _, element := range chain[1 : len(chain)-1] {
					assert.NotEqual(t, string(m.root.PEM()), element, "R43: the root is no intermediate")
					assert.NotEqual(t, string(stranger.PEM()), element)
				}
				assert.False(t, leaf.NotAfter.After(m.root.Cert.NotAfter))
			} else {
				refused(t, test.code, chain, err)
				assert.Contains(t, refusalLine(t, r, w), test.log)
			}
			assert.Len(t, m.issuer.Seen(w.id.String()), test.requests, "CertificateRequests made")
			w.gone(t)
			assert.Len(t, m.issuer.Seen(w.id.String()), test.requests, "CertificateRequests made, with those after the answer")
		})
	}
}

// accountFor is a name for a service account, from the test's.
func accountFor(t *testing.T) string {
	t.Helper()
	sum := uint32(2166136261)
	for _, b := range []byte(t.Name()) {
		sum = (sum ^ uint32(b)) * 16777619
	}
	return fmt.Sprintf("w-%08x", sum)
}

// refusalLine is the log's line about the refusal of the workload's request.
func refusalLine(t *testing.T, r *replica.Replica, w *workload) string {
	t.Helper()
	var line string
	patiently.Holds(t, func() bool {
		line = logLine(t, r, "certificate refused", w.id.String())
		return line != ""
	}, "the refusal of %s is logged", w.id)
	return line
}

// TestR12_IssuersThatDoNotAnswer: a request ends within its bound, and what it leaves behind goes
// away when nobody can be waiting for it any more.
func TestR12_IssuersThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, map[string]any{"signer.timeout": "5s", "ca.requestTimeout": "30s", "signer.sweep.keep": "20s"})
	c := dial(t, r, m.root.PEM())

	w := m.workload(t, "unanswered")
	m.issuer.Behave(w.id.String(), testca.Never())
	timesOut := func(w *workload) {
		t.Helper()
		patiently.Holds(t, func() bool { // on a busy machine the time may be up before there is a CertificateRequest
			chain, err := w.ask(t.Context(), c)
			refused(t, codes.DeadlineExceeded, chain, err)
			return len(w.requests(t)) > 0
		}, "something is made of the request")
		patiently.Holds(t, func() bool { return len(m.issuer.Seen(w.id.String())) == 1 }, "the request is with the issuer")
	}
	timesOut(w)

	// The retry meets the first attempt's object, and gets its answer once there is one.
	retried := m.workload(t, "retried")
	answer := make(chan struct{})
	m.issuer.Behave(retried.id.String(), testca.After(answer, testca.Good(m.root)))
	timesOut(retried)
	close(answer)
	var chain []string
	var err error
	patiently.Holds(t, func() bool {
		chain, err = retried.ask(t.Context(), c)
		return err == nil
	}, "a retry gets the answer")
	retried.issued(t, m.root.PEM(), chain, err)
	assert.Len(t, m.issuer.Seen(retried.id.String()), 1, "R48: a retry makes no second CertificateRequest")

	// A caller that hangs up leaves nothing behind either.
	left := m.workload(t, "left")
	m.issuer.Behave(left.id.String(), testca.Never())
	patiently.Holds(t, func() bool {
		hangingUp := dial(t, r, m.root.PEM())
		result := left.askBeside(t, hangingUp)
		patiently.Holds(t, func() bool { return len(result) > 0 || len(m.issuer.Seen(left.id.String())) == 1 }, "the request is with the issuer, or its time is up")
		require.NoError(t, hangingUp.Close())
		require.Error(t, awaitAnswer(t, result).err)
		return len(m.issuer.Seen(left.id.String())) == 1
	}, "the request is with the issuer")

	w.gone(t)
	retried.gone(t)
	left.gone(t)
	patiently.Holds(t, func() bool { // they are counted a moment after they are gone
		return metric(t, r, "signet_certificaterequests_swept_total", map[string]string{"kind": "orphan"}) >= 2
	}, "both orphans are counted")
}

// TestLateAnswer: an answer that takes its time is delivered, to all who wait for it, and a client
// that leaves doesn't take it away from the others.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, nil)
	w := m.workload(t, "late")
	answer := make(chan struct{})
	m.issuer.Behave(w.id.String(), testca.After(answer, testca.Good(m.root)))

	leaving := dial(t, r, m.root.PEM())
	first := w.askBeside(t, leaving)
	patiently.Holds(t, func() bool { return len(m.issuer.Seen(w.id.String())) == 1 }, "the request is with the issuer")
	second := w.askBeside(t, dial(t, r, m.root.PEM()))
	third := w.askBeside(t, dial(t, r, m.root.PEM()))
	patiently.Holds(t, func() bool { return metric(t, r, "signet_sign_in_flight", nil) == 3 }, "all three wait")
	require.NoError(t, leaving.Close())
	require.Error(t, awaitAnswer(t, first).err)
	close(answer)
	a, b := awaitAnswer(t, second), awaitAnswer(t, third)
	assert.Equal(t, w.issued(t, m.root.PEM(), a.chain, a.err).SerialNumber, w.issued(t, m.root.PEM(), b.chain, b.err).SerialNumber)
	assert.Len(t, m.issuer.Seen(w.id.String()), 1)
	w.gone(t)
}

// TestR38_LeafThatOutlivesItsIssuer: the next attempt asks for what the issuer has left.
func TestR38_LeafThatOutlivesItsIssuer(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, nil)
	c := dial(t, r, m.root.PEM())
	ending, err := m.root.NewIntermediate("ending", 30*time.Minute)
	require.NoError(t, err)
	m.issuer.Otherwise(testca.Good(ending))

	w := m.workload(t, "first")
	chain, err := w.ask(t.Context(), c)
	leaf := w.issued(t, m.root.PEM(), chain, err)
	assert.False(t, leaf.NotAfter.After(ending.Cert.NotAfter), "%s after %s", leaf.NotAfter, ending.Cert.NotAfter)
	seen := m.issuer.Seen(w.id.String())
	require.Len(t, seen, 2)
	assert.Equal(t, time.Hour, seen[0].Spec.Duration.Duration)
	assert.Less(t, seen[1].Spec.Duration.Duration, 30*time.Minute)
	assert.Greater(t, seen[1].Spec.Duration.Duration, 20*time.Minute)

	// What was learned spares the next one its first attempt.
	next := m.workload(t, "next")
	chain, err = next.ask(t.Context(), c)
	next.issued(t, m.root.PEM(), chain, err)
	require.Len(t, m.issuer.Seen(next.id.String()), 1)

	// An issuer that gives the same whatever it is asked for is refused, not asked for ever.
	stubborn := m.workload(t, "stubborn")
	m.issuer.Behave(stubborn.id.String(), testca.Changed(ending, func(t *testca.Template) error {
		t.NotAfter = t.NotBefore.Add(time.Hour)
		return nil
	}))
	chain, err = stubborn.ask(t.Context(), c)
	refused(t, codes.FailedPrecondition, chain, err)
	assert.LessOrEqual(t, len(m.issuer.Seen(stubborn.id.String())), 6)
	noneLeft(t, plane, m.ns)
}

// TestR33_LifetimeIsCountedAsIssued: the metric tells what was issued, not what was asked for.
func TestR33_LifetimeIsCountedAsIssued(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, map[string]any{"signer.sweep.keep": "5m"})
	c := dial(t, r, m.root.PEM())
	lifetimes := func() (sum, count float64) {
		_, body := page(t, r.MetricsURL())
		return sample(t, body, "signet_issued_lifetime_seconds_sum"), sample(t, body, "signet_issued_lifetime_seconds_count")
	}

	w := m.workload(t, "half")
	m.issuer.Behave(w.id.String(), testca.Changed(m.root, func(t *testca.Template) error {
		t.NotAfter = t.NotBefore.Add(30 * time.Minute)
		return nil
	}))
	chain, err := w.ask(t.Context(), c)
	leaf := w.issued(t, m.root.PEM(), chain, err)
	assert.Equal(t, 30*time.Minute, leaf.NotAfter.Sub(leaf.NotBefore))
	sum, count := lifetimes()
	assert.Equal(t, []float64{1800, 1}, []float64{sum, count})

	capped := m.workload(t, "capped")
	capped.seconds = 30 * 24 * 3600
	chain, err = capped.ask(t.Context(), c)
	capped.issued(t, m.root.PEM(), chain, err)
	require.Len(t, m.issuer.Seen(capped.id.String()), 1)
	assert.Equal(t, time.Hour, m.issuer.Seen(capped.id.String())[0].Spec.Duration.Duration)
	sum, count = lifetimes()
	assert.Equal(t, []float64{1800 + 3600, 2}, []float64{sum, count})

	// What is refused is not counted.
	long := m.workload(t, "long")
	m.issuer.Behave(long.id.String(), testca.Changed(m.root, func(t *testca.Template) error {
		t.NotAfter = t.NotBefore.Add(90 * time.Minute)
		return nil
	}))
	chain, err = long.ask(t.Context(), c)
	refused(t, codes.FailedPrecondition, chain, err)
	sum, count = lifetimes()
	assert.Equal(t, []float64{1800 + 3600, 2}, []float64{sum, count})
	assert.Equal(t, 1.0, metric(t, r, "signet_requests_total", map[string]string{"outcome": "refused", "reason": "untrusted", "code": "FailedPrecondition"}))
}

// TestRepeats: a finished request answers a repeat, as long as its leaf is younger than a tenth of
// its life.
func TestRepeats(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, map[string]any{"signer.sweep.keep": "5m", "ca.lifetime.min": "10s"})
	c := dial(t, r, m.root.PEM())

	t.Run("a young leaf is given again", func(t *testing.T) {
		w := m.workload(t, "young")
		chain, err := w.ask(t.Context(), c)
		first := w.issued(t, m.root.PEM(), chain, err)
		chain, err = w.ask(t.Context(), c)
		assert.Equal(t, first.SerialNumber, w.issued(t, m.root.PEM(), chain, err).SerialNumber)
		assert.Len(t, m.issuer.Seen(w.id.String()), 1)
	})
	t.Run("an old leaf is not", func(t *testing.T) {
		w := m.workload(t, "old")
		w.seconds = 30
		chain, err := w.ask(t.Context(), c)
		first := w.issued(t, m.root.PEM(), chain, err)
		time.Sleep(time.Until(first.NotBefore.Add(5 * time.Second))) // a tenth of its life is over
		chain, err = w.ask(t.Context(), c)
		assert.NotEqual(t, first.SerialNumber, w.issued(t, m.root.PEM(), chain, err).SerialNumber)
		seen := m.issuer.Seen(w.id.String())
		require.Len(t, seen, 2)
		assert.Equal(t, numbered(seen[0], 2), seen[1].Name)
		assert.Equal(t, 1.0, metric(t, r, "signet_sign_attempts_repeated_total", map[string]string{"cause": "stale"}))
	})
	t.Run("how far the issuer sets the beginning back doesn't count", func(t *testing.T) {
		w := m.workload(t, "backdated")
		w.seconds = 600
		m.issuer.Behave(w.id.String(), testca.Changed(m.root, func(t *testca.Template) error {
			t.NotBefore = t.NotBefore.Add(-2 * time.Minute)
			return nil
		}))
		chain, err := w.ask(t.Context(), c)
		first := w.issued(t, m.root.PEM(), chain, err)
		chain, err = w.ask(t.Context(), c)
		assert.Equal(t, first.SerialNumber, w.issued(t, m.root.PEM(), chain, err).SerialNumber)
	})
	t.Run("a refusal stays one while it is there", func(t *testing.T) {
		w := m.workload(t, "denied")
		m.issuer.Behave(w.id.String(), testca.Always(testca.Denied, "no"))
		for range 2 {
			chain, err := w.ask(t.Context(), c)
			refused(t, codes.FailedPrecondition, chain, err)
		}
		assert.Len(t, m.issuer.Seen(w.id.String()), 1)
	})
	t.Run("another lifetime is another request", func(t *testing.T) {
		w := m.workload(t, "lifetimes")
		chain, err := w.ask(t.Context(), c)
		first := w.issued(t, m.root.PEM(), chain, err)
		w.seconds = 1800
		chain, err = w.ask(t.Context(), c)
		assert.NotEqual(t, first.SerialNumber, w.issued(t, m.root.PEM(), chain, err).SerialNumber)
	})
}

// numbered is the name of the same request's attempt n.
func numbered(first *cmapi.CertificateRequest, n int) string {
	return fmt.Sprintf("%s%d", first.Name[:len(first.Name)-1], n)
}
