package signer

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/setting"
)

var (
	first  = issuer.Ref{Name: "first"}.WithDefaults()
	second = issuer.Ref{Name: "second"}.WithDefaults()
)

// asked is the object that asks ref for req, as the informer shows it.
func asked(req *Request, ref issuer.Ref, attempt int, uid types.UID) *cmapi.CertificateRequest {
	cr := req.certificateRequest("istio-system", ref, attempt, req.Lifetime)
	cr.UID, cr.CreationTimestamp = uid, metav1.Now()
	return cr
}

// ended is a later version of cr.
func ended(cr *cmapi.CertificateRequest, reason string) *cmapi.CertificateRequest {
	cr = cr.DeepCopy()
	cr.Status.Conditions = []cmapi.CertificateRequestCondition{condition(cmapi.CertificateRequestConditionReady, cmmeta.ConditionFalse, reason, time.Now())}
	return cr
}

func TestPendingElsewhere(t *testing.T) {
	key := newKey(t)
	req, others := newRequest(t, key), newRequest(t, newKey(t))
	third := issuer.Ref{Name: "third", Kind: "ClusterIssuer", Group: "cert-manager.io"}
	change := func(change func(*Request)) *Request {
		changed := *req
		change(&changed)
		return &changed
	}
	for _, row := range []struct {
		name  string
		shown []*cmapi.CertificateRequest
		want  issuer.Ref // none where it is empty
	}{
		{"nothing", nil, issuer.Ref{}},
		{"with the same issuer", []*cmapi.CertificateRequest{asked(req, first, 1, "1")}, issuer.Ref{}},
		{"with another", []*cmapi.CertificateRequest{asked(req, second, 1, "1")}, second},
		{"with another kind of issuer", []*cmapi.CertificateRequest{asked(req, third, 1, "1")}, third},
		{"with both", []*cmapi.CertificateRequest{asked(req, first, 1, "1"), asked(req, second, 1, "2")}, second},
		{"with the same issuer, and somebody else's with another", []*cmapi.CertificateRequest{asked(req, first, 1, "1"), asked(others, second, 1, "2")}, issuer.Ref{}},
		{"the last attempt", []*cmapi.CertificateRequest{asked(req, second, maxAttempts, "1")}, second},
		{"an attempt that nobody makes", []*cmapi.CertificateRequest{asked(req, second, maxAttempts+1, "1")}, issuer.Ref{}},
		{"ended", []*cmapi.CertificateRequest{asked(req, second, 1, "1"), ended(asked(req, second, 1, "1"), "Failed")}, issuer.Ref{}},
		{"ended before it was seen", []*cmapi.CertificateRequest{ended(asked(req, second, 1, "1"), "Denied")}, issuer.Ref{}},
		{"one attempt ended, the next one not", []*cmapi.CertificateRequest{ended(asked(req, second, 1, "1"), "Failed"), asked(req, second, 2, "2")}, second},
		{"somebody else's", []*cmapi.CertificateRequest{asked(others, second, 1, "1"), asked(others, first, 1, "2")}, issuer.Ref{}},
		{"for another lifetime", []*cmapi.CertificateRequest{asked(change(func(r *Request) { r.Lifetime++ }), second, 1, "1")}, issuer.Ref{}},
		{"for another purpose", []*cmapi.CertificateRequest{asked(change(func(r *Request) { r.For = ForServing }), second, 1, "1")}, issuer.Ref{}},
		{"for other usages", []*cmapi.CertificateRequest{asked(change(func(r *Request) { r.Usages = ServingUsages() }), second, 1, "1")}, issuer.Ref{}},
		{"a name that asks another issuer than it is for", []*cmapi.CertificateRequest{func() *cmapi.CertificateRequest {
			cr := asked(req, second, 1, "1")
			cr.Spec.IssuerRef = third.Reference()
			return cr
		}()}, issuer.Ref{}},
		{"kind and group left out", []*cmapi.CertificateRequest{func() *cmapi.CertificateRequest {
			cr := asked(req, second, 1, "1")
			cr.Spec.IssuerRef = cmmeta.IssuerReference{Name: second.Name}
			return cr
		}()}, second},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newTestLive()
			for _, cr := range row.shown {
				l.observe(cr)
			}
			got, ok := l.pendingElsewhere(req, first)
			assert.Equal(t, row.want, got)
			assert.Equal(t, row.want.Name != "", ok)
			for _, cr := range row.shown {
				l.forget(cr)
			}
			_, ok = l.pendingElsewhere(req, first)
			assert.False(t, ok, "what was deleted isn't pending")
			assert.Empty(t, l.pending, "nothing is kept of it")
		})
	}
}

// A late word of an object that was replaced says nothing of the one in its place.
func TestPendingElsewhereOfAReplacedObject(t *testing.T) {
	req, l := newRequest(t, newKey(t)), newTestLive()
	l.observe(asked(req, second, 1, "old"))
	l.observe(asked(req, second, 1, "new"))
	l.forget(ended(asked(req, second, 1, "old"), "Failed"))
	_, ok := l.pendingElsewhere(req, first)
	assert.True(t, ok)
	l.forget(asked(req, second, 1, "new"))
	_, ok = l.pendingElsewhere(req, first)
	assert.False(t, ok)
}

// cluster is the API as far as a signer needs it, with issuers that do what they are told. What happens to an object
// is seen by the informer at once.
type cluster struct {
	client.Client // nothing else is called
	t             testing.TB
	live          *live

	mu      sync.Mutex // guards the following
	objects map[string]*cmapi.CertificateRequest
	created []string // issuer and attempt, in their order
	issuers map[string]func(*cmapi.CertificateRequest)
}

const ourselves = "system:serviceaccount:istio-system:signet"

func (c *cluster) Create(_ context.Context, object client.Object, _ ...client.CreateOption) error {
	cr := object.(*cmapi.CertificateRequest)
	c.mu.Lock()
	if c.objects[cr.Name] != nil {
		c.mu.Unlock()
		return apierrors.NewAlreadyExists(schema.GroupResource{Group: "cert-manager.io", Resource: "certificaterequests"}, cr.Name)
	}
	cr.UID, cr.Spec.Username, cr.CreationTimestamp = types.UID(strconv.Itoa(len(c.created)+1)), ourselves, metav1.Now()
	c.created = append(c.created, cr.Spec.IssuerRef.Name+cr.Name[strings.LastIndex(cr.Name, "-"):])
	answer := c.issuers[cr.Spec.IssuerRef.Name]
	c.mu.Unlock()
	c.put(cr)
	if answer != nil {
		answer(cr.DeepCopy())
	}
	return nil
}

func (c *cluster) Get(_ context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.objects[key.Name]
	if found == nil {
		return apierrors.NewNotFound(schema.GroupResource{Group: "cert-manager.io", Resource: "certificaterequests"}, key.Name)
	}
	found.DeepCopyInto(object.(*cmapi.CertificateRequest))
	return nil
}

// put keeps a version of an object, and shows it.
func (c *cluster) put(cr *cmapi.CertificateRequest) {
	cr = cr.DeepCopy()
	c.mu.Lock()
	c.objects[cr.Name] = cr
	c.mu.Unlock()
	c.live.observe(cr)
}

// remove deletes an object.
func (c *cluster) remove(cr *cmapi.CertificateRequest) {
	c.mu.Lock()
	delete(c.objects, cr.Name)
	c.mu.Unlock()
	c.live.forget(cr)
}

// behave says what an issuer does with a new request; nil for nothing.
func (c *cluster) behave(ref issuer.Ref, answer func(*cmapi.CertificateRequest)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.issuers[ref.Name] = answer
}

// pendingOf are the unfinished objects that ask ref.
func (c *cluster) pendingOf(ref issuer.Ref) (list []*cmapi.CertificateRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cr := range c.objects {
		if p, _, _ := outcome(cr); p == pending && cr.Spec.IssuerRef.Name == ref.Name {
			list = append(list, cr)
		}
	}
	return list
}

// fails has all requests end with a reason and a message.
func (c *cluster) fails(reason, message string) func(*cmapi.CertificateRequest) {
	return func(cr *cmapi.CertificateRequest) {
		cr = ended(cr, reason)
		cr.Status.Conditions[0].Message = message
		c.put(cr)
	}
}

// signs has all requests signed by root.
func (c *cluster) signs(root *authority) func(*cmapi.CertificateRequest) {
	return func(cr *cmapi.CertificateRequest) {
		block, _ := pem.Decode(cr.Spec.Request)
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		require.NoError(c.t, err)
		names, err := NamesIn(csr.Extensions)
		require.NoError(c.t, err)
		extension, err := names.Extension(true)
		require.NoError(c.t, err)
		now := time.Now().Truncate(time.Second)
		leaf := root.issue(c.t, &x509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: now, NotAfter: now.Add(cr.Spec.Duration.Duration), BasicConstraintsValid: true,
			KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, ExtraExtensions: []pkix.Extension{extension},
		}, csr.PublicKey)
		cr = cr.DeepCopy()
		cr.Status.Certificate = []byte(toPEM(leaf))
		cr.Status.Conditions = []cmapi.CertificateRequestCondition{condition(cmapi.CertificateRequestConditionReady, cmmeta.ConditionTrue, cmapi.CertificateRequestReasonIssued, time.Now())}
		c.put(cr)
	}
}

// mesher is a signer with two issuers, each with a root of its own. The first one is in force.
type mesher struct {
	*Signer
	t       testing.TB
	cluster *cluster
	store   *issuer.Store
	roots   map[issuer.Ref]*authority
}

func newMesher(t testing.TB) *mesher {
	t.Helper()
	m := &mesher{t: t, store: issuer.NewStore(first), roots: make(map[issuer.Ref]*authority)}
	lives := func(cert *x509.Certificate) {
		cert.NotBefore, cert.NotAfter = time.Now().AddDate(-1, 0, 0), time.Now().AddDate(1, 0, 0)
	}
	for _, ref := range []issuer.Ref{first, second} {
		m.roots[ref] = newAuthority(t, ref.Name, nil, lives)
	}
	m.store.SetAnchors(bundleOf(t, m.roots[first].cert, m.roots[second].cert))
	m.cluster = &cluster{t: t, objects: make(map[string]*cmapi.CertificateRequest), issuers: make(map[string]func(*cmapi.CertificateRequest))}
	m.Signer = New(Config{Timeout: setting.DurationOf(20 * time.Second)}, Cluster{Client: m.cluster, Reader: m.cluster, Namespace: "istio-system", Username: ourselves},
		m.store, issuer.NewHealth(), slog.New(slog.DiscardHandler), prometheus.NewPedanticRegistry())
	m.cluster.live = m.live
	m.cluster.behave(first, m.cluster.signs(m.roots[first]))
	m.cluster.behave(second, m.cluster.signs(m.roots[second]))
	return m
}

// switchTo puts another issuer in force.
func (m *mesher) switchTo(ref issuer.Ref) {
	m.store.Update(func(s *issuer.Snapshot) { s.Ref = ref })
}

// created is what was made so far, as text.
func (m *mesher) created() string {
	m.cluster.mu.Lock()
	defer m.cluster.mu.Unlock()
	return strings.Join(m.cluster.created, " ")
}

// issuers are those that were asked, in their order.
func (m *mesher) asked() (names []string) {
	for field := range strings.FieldsSeq(m.created()) {
		name, _, _ := strings.Cut(field, "-")
		names = append(names, name)
	}
	return names
}

func (m *mesher) wantSignedBy(ref issuer.Ref, chain *Chain, err error) {
	m.t.Helper()
	require.NoError(m.t, err)
	assert.Equal(m.t, ref, chain.Issuer)
	assert.True(m.t, m.roots[ref].cert.Equal(chain.Anchor), "the root of %s", chain.Anchor.Subject)
}

func TestSignAsksTheIssuerInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesher(t)
		chain, err := m.Sign(t.Context(), *newRequest(t, newKey(t)))
		m.wantSignedBy(first, chain, err)
		m.switchTo(second)
		chain, err = m.Sign(t.Context(), *newRequest(t, newKey(t)))
		m.wantSignedBy(second, chain, err)
		assert.Equal(t, "first-1 second-1", m.created())
	})
}

// A request that the first issuer may still sign stays there, whoever is in force: for the call that waits, for its
// retries, and to its end.
func TestSignNeverSwitchesAfterATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesher(t)
		m.cluster.behave(first, nil)
		req := newRequest(t, newKey(t))
		time.AfterFunc(10*time.Second, func() { m.switchTo(second) })
		began := time.Now()
		_, err := m.Sign(t.Context(), *req)
		require.ErrorIs(t, err, ErrTimeout)
		assert.Equal(t, 20*time.Second, time.Since(began))
		for range 2 {
			_, err = m.Sign(t.Context(), *req)
			require.ErrorIs(t, err, ErrTimeout, "a retry")
		}
		assert.Equal(t, "first-1", m.created(), "it was asked once")

		// Others aren't kept back by it.
		chain, err := m.Sign(t.Context(), *newRequest(t, newKey(t)))
		m.wantSignedBy(second, chain, err)

		// It is signed in the end, while a retry waits.
		time.AfterFunc(5*time.Second, func() {
			for _, cr := range m.cluster.pendingOf(first) {
				m.cluster.signs(m.roots[first])(cr)
			}
		})
		chain, err = m.Sign(t.Context(), *req)
		m.wantSignedBy(first, chain, err)
		assert.Equal(t, "first-1 second-1", m.created())
	})
}

// A caller that gives up leaves its request with the issuer; so does one whose own time is up.
func TestSignNeverSwitchesAfterACallerLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesher(t)
		m.cluster.behave(first, nil)
		req := newRequest(t, newKey(t))
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		_, err := m.Sign(ctx, *req)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		m.switchTo(second)
		_, err = m.Sign(t.Context(), *req)
		require.ErrorIs(t, err, ErrTimeout)
		assert.Equal(t, "first-1", m.created())
	})
}

// When an attempt has ended for certain and another one may help, the issuer in force by now is asked.
func TestSignSwitchesAfterADefinitiveFailure(t *testing.T) {
	for _, row := range []struct {
		name string
		ends func(*mesher, *cmapi.CertificateRequest)
	}{
		{"a passing failure", func(m *mesher, cr *cmapi.CertificateRequest) {
			m.cluster.fails("Failed", "Vault: connection refused")(cr)
		}},
		{"deleted", func(m *mesher, cr *cmapi.CertificateRequest) { m.cluster.remove(cr) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesher(t)
				m.cluster.behave(first, func(cr *cmapi.CertificateRequest) {
					time.AfterFunc(time.Second, func() {
						m.switchTo(second)
						row.ends(m, cr)
					})
				})
				chain, err := m.Sign(t.Context(), *newRequest(t, newKey(t)))
				m.wantSignedBy(second, chain, err)
				assert.Equal(t, []string{"first", "second"}, m.asked())
			})
		})
		t.Run(row.name+", and nobody else is in force", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesher(t)
				attempts := 0
				m.cluster.behave(first, func(cr *cmapi.CertificateRequest) {
					if attempts++; attempts < 3 {
						row.ends(m, cr)
						return
					}
					m.cluster.signs(m.roots[first])(cr)
				})
				chain, err := m.Sign(t.Context(), *newRequest(t, newKey(t)))
				m.wantSignedBy(first, chain, err)
				assert.Equal(t, []string{"first", "first", "first"}, m.asked())
			})
		})
	}
}

// Attempts are bounded, whoever is in force.
func TestSignEndsWhenEverybodyFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesher(t)
		turn := func(other issuer.Ref) func(*cmapi.CertificateRequest) {
			return func(cr *cmapi.CertificateRequest) {
				m.switchTo(other)
				m.cluster.fails("Failed", "503 Service Unavailable")(cr)
			}
		}
		m.cluster.behave(first, turn(second))
		m.cluster.behave(second, turn(first))
		_, err := m.Sign(t.Context(), *newRequest(t, newKey(t)))
		require.ErrorIs(t, err, ErrNotReady)
		assert.LessOrEqual(t, len(m.asked()), maxAttempts)
		assert.Subset(t, []string{"first", "second"}, m.asked())
		assert.Contains(t, m.asked(), "second")
	})
}

// A denial and a refusal are final: nobody else is asked, even if somebody else is in force by then.
func TestSignNeverSwitchesAfterAnAnswer(t *testing.T) {
	for _, row := range []struct {
		reason, message string
		want            error
	}{
		{cmapi.CertificateRequestReasonDenied, "policy", ErrDenied},
		{cmapi.CertificateRequestReasonFailed, "not allowed by the role", ErrFailed},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMesher(t)
			m.cluster.behave(first, func(cr *cmapi.CertificateRequest) {
				m.switchTo(second)
				m.cluster.fails(row.reason, row.message)(cr)
			})
			_, err := m.Sign(t.Context(), *newRequest(t, newKey(t)))
			require.ErrorIs(t, err, row.want)
			assert.Equal(t, "first-1", m.created())
		})
	}
}

// What an object is named after decides nothing where it isn't ours.
func TestSignRefusesWhatOthersMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesher(t)
		req := newRequest(t, newKey(t))
		foreign := asked(req, second, 1, "foreign")
		foreign.Spec.Username = "mallory"
		m.cluster.put(foreign)
		chain, err := m.Sign(t.Context(), *req)
		if err == nil {
			m.wantSignedBy(first, chain, err) // not led astray
			return
		}
		assert.ErrorIs(t, err, ErrFailed)
		assert.ErrorContains(t, err, `it was made by "mallory"`)
		assert.Empty(t, m.created())
	})
}

// Trace asks the issuer that it is told to ask, and nobody else.
func TestTraceNeverSwitches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesher(t)
		req := newRequest(t, newKey(t))
		req.For = ForProbe
		chain, err := m.Trace(t.Context(), second, *req)
		m.wantSignedBy(second, chain, err)
		assert.True(t, m.roots[second].cert.Equal(m.health.LeadsTo(second)))

		m.cluster.behave(second, func(cr *cmapi.CertificateRequest) {
			m.cluster.fails("Failed", "connection refused")(cr)
		})
		req = newRequest(t, newKey(t))
		_, err = m.Trace(t.Context(), second, *req)
		require.ErrorIs(t, err, ErrNotReady)
		assert.NotContains(t, m.asked(), "first")
	})
}

// What requests show of an issuer: only its own failures count, and an answer clears them.
func TestSignTellsHealth(t *testing.T) {
	for _, row := range []struct {
		name   string
		answer func(*mesher) func(*cmapi.CertificateRequest)
		open   bool
	}{
		{"it fails", func(m *mesher) func(*cmapi.CertificateRequest) { return m.cluster.fails("Failed", "no") }, true},
		{"it never answers", func(*mesher) func(*cmapi.CertificateRequest) { return nil }, true},
		{"it is away for a while", func(m *mesher) func(*cmapi.CertificateRequest) {
			return m.cluster.fails("Failed", "connection refused")
		}, true},
		{"approvers deny", func(m *mesher) func(*cmapi.CertificateRequest) { return m.cluster.fails("Denied", "no") }, false},
		{"they are deleted", func(m *mesher) func(*cmapi.CertificateRequest) {
			return func(cr *cmapi.CertificateRequest) { m.cluster.remove(cr) }
		}, false},
		{"it signs", func(m *mesher) func(*cmapi.CertificateRequest) { return m.cluster.signs(m.roots[first]) }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesher(t)
				m.cluster.behave(first, row.answer(m))
				var group sync.WaitGroup
				for n := range 6 {
					req := newRequest(t, newKey(t))
					req.Names = ServerNames([]string{strconv.Itoa(n)}, nil)
					req.CSR = newCSR(t, newKey(t), req.Names, pkix.Name{})
					group.Go(func() {
						_, err := m.Sign(context.WithoutCancel(t.Context()), *req)
						if row.name != "it signs" && err == nil {
							t.Error(errors.New("it was signed"))
						}
					})
				}
				group.Wait()
				open, _, reason := m.health.Open(first, time.Now())
				assert.Equal(t, row.open, open, reason)
				m.cluster.behave(first, m.cluster.signs(m.roots[first]))
				chain, err := m.Sign(t.Context(), *newRequest(t, newKey(t)))
				m.wantSignedBy(first, chain, err)
				open, _, _ = m.health.Open(first, time.Now())
				assert.False(t, open)
			})
		})
	}
}
