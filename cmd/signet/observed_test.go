package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/audit"
	"github.com/signet-ca/signet/api/ledger"
	"github.com/signet-ca/signet/ca"
	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/rotation"
	"github.com/signet-ca/signet/signer"
)

const (
	webID    = "spiffe://cluster.local/ns/shop/sa/web"
	username = "system:serviceaccount:istio-system:signet"
)

// recorder is what records, with a ledger of its own.
type recorder struct {
	dir      string
	store    *ledger.Store
	observed *observed
	root     *x509.Certificate
	rootKey  crypto.Signer

	mu   sync.Mutex // guards the following
	told []api.Certificate
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	r := &recorder{dir: t.TempDir()}
	registry, log := prometheus.NewRegistry(), slog.New(slog.NewTextHandler(t.Output(), nil))
	var err error
	r.store, err = ledger.Open(t.Context(), ledger.Config{Dir: r.dir, Replica: "signet-0", ReserveMiB: 1}, log, registry)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.store.Close()) })
	r.root, r.rootKey = newCertificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte("key")}, nil, nil, nil)
	issuers := issuer.NewStore(issuer.Ref{Name: "istio-ca"}.WithDefaults())
	anchors, err := issuer.NewBundle(r.root)
	require.NoError(t, err)
	issuers.SetAnchors(anchors)
	sign := signer.New(signer.Config{}, signer.Cluster{Namespace: "istio-system", Username: username}, issuers, issuer.NewHealth(), log, registry)
	r.observed = newObserved(Config{ClusterID: "Kubernetes", Replica: "signet-0"}, r.store, sign, issuers, func(c api.Certificate) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.told = append(r.told, c)
	}, log)
	return r
}

var serials int64

// newCertificate signs template for key, a new one where that is nil; by itself where there is no parent.
func newCertificate(t *testing.T, template *x509.Certificate, key crypto.Signer, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	if key == nil {
		made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		key = made
	}
	serials++
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(serials)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return certificate, key
}

// leaf is one for an identity.
func (r *recorder) leaf(t *testing.T, id string, key crypto.Signer) *x509.Certificate {
	t.Helper()
	name, err := url.Parse(id)
	require.NoError(t, err)
	leaf, _ := newCertificate(t, &x509.Certificate{URIs: []*url.URL{name}}, key, r.root, r.rootKey)
	return leaf
}

// request is one of another replica's that is answered, after change.
func (r *recorder) request(t *testing.T, change func(*cmapi.CertificateRequest)) (*cmapi.CertificateRequest, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(t, err)
	leaf := r.leaf(t, webID, key)
	at := metav1.NewTime(time.Now().Add(-3 * time.Second).Truncate(time.Second))
	request := &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "istio-system", Name: fmt.Sprint("signet-", leaf.SerialNumber), UID: types.UID(fmt.Sprint("uid-", leaf.SerialNumber)),
			Labels: map[string]string{signer.RequestLabel: signer.ForWorkload},
			Annotations: map[string]string{
				signer.IdentitiesAnnotation: webID, signer.ReplicaAnnotation: "signet-1",
				ca.PodAnnotation: "web-1", ca.PodUIDAnnotation: "pod-uid", ca.NodeAnnotation: "node-1",
			},
		},
		Spec: cmapi.CertificateRequestSpec{
			Username: username, Duration: &metav1.Duration{Duration: time.Hour}, IssuerRef: cmmeta.IssuerReference{Name: "istio-ca", Kind: "Issuer", Group: "cert-manager.io"},
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}),
		},
		Status: cmapi.CertificateRequestStatus{
			Certificate: pemOf(leaf),
			Conditions:  []cmapi.CertificateRequestCondition{{Type: cmapi.CertificateRequestConditionReady, Status: cmmeta.ConditionTrue, LastTransitionTime: &at}},
		},
	}
	if change != nil {
		change(request)
	}
	return request, leaf
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// record is that of a certificate, nil where there is none.
func (r *recorder) record(t *testing.T, c *x509.Certificate) *ledger.Issuance {
	t.Helper()
	found, err := r.store.Local().Certificate(t.Context(), fmt.Sprintf("%x", sha256.Sum256(c.Raw)))
	if errors.Is(err, ledger.ErrNotFound) {
		return nil
	}
	require.NoError(t, err)
	return &found
}

// TestKeep: what a request of another replica tells becomes a record, and the inventory learns of it.
func TestKeep(t *testing.T) {
	r := newRecorder(t)
	request, leaf := r.request(t, nil)
	require.NoError(t, r.observed.Keep(t.Context(), request))
	found := r.record(t, leaf)
	require.NotNil(t, found)
	want := ledger.Issuance{
		Source: ledger.Observed, Replica: "signet-1", Identity: webID, Namespace: "shop", ServiceAccount: "web",
		Pod: "web-1", PodUID: "pod-uid", Node: "node-1", Cluster: "Kubernetes", RequestedLifetime: time.Hour,
		RecordedAt: request.Status.Conditions[0].LastTransitionTime.UTC(), RequestName: request.Name, RequestUID: string(request.UID),
		Issuer: "Issuer.cert-manager.io/istio-ca", RootSHA256: issuer.AnchorID(r.root), RootSubject: "CN=root",
	}
	got := ledger.Issuance{
		Source: found.Source, Replica: found.Replica, Identity: found.Identity, Namespace: found.Namespace, ServiceAccount: found.ServiceAccount,
		Pod: found.Pod, PodUID: found.PodUID, Node: found.Node, Cluster: found.Cluster, RequestedLifetime: found.RequestedLifetime,
		RecordedAt: found.RecordedAt, RequestName: found.RequestName, RequestUID: found.RequestUID,
		Issuer: found.Issuer, RootSHA256: found.RootSHA256, RootSubject: found.RootSubject,
	}
	assert.Equal(t, want, got)
	require.Len(t, r.told, 1)
	assert.Equal(t, "pod-uid", r.told[0].Holder.PodUID)
	require.NoError(t, r.observed.Keep(t.Context(), request))
	assert.Len(t, r.told, 1, "once is enough")
}

// TestKeepOthers: what isn't a certificate that a caller was given is no news of one, and nothing keeps the sweeper from
// deleting it.
func TestKeepOthers(t *testing.T) {
	for name, row := range map[string]struct {
		change   func(*recorder, *testing.T, *cmapi.CertificateRequest)
		recorded bool // without a holder
	}{
		"not answered":    {func(_ *recorder, _ *testing.T, cr *cmapi.CertificateRequest) { cr.Status.Certificate = nil }, false},
		"somebody else's": {func(_ *recorder, _ *testing.T, cr *cmapi.CertificateRequest) { cr.Spec.Username = "mallory" }, false},
		"another label":   {func(_ *recorder, _ *testing.T, cr *cmapi.CertificateRequest) { cr.Labels = nil }, false},
		"another place":   {func(_ *recorder, _ *testing.T, cr *cmapi.CertificateRequest) { cr.Namespace = "shop" }, false},
		"no certificate":  {func(_ *recorder, _ *testing.T, cr *cmapi.CertificateRequest) { cr.Status.Certificate = []byte("junk") }, false},
		"Signet's own": {func(_ *recorder, _ *testing.T, cr *cmapi.CertificateRequest) {
			cr.Labels[signer.RequestLabel] = signer.ForServing
		}, true},
		"another identity": {func(_ *recorder, _ *testing.T, cr *cmapi.CertificateRequest) {
			cr.Annotations[signer.IdentitiesAnnotation] = webID + "2"
		}, true},
		"another key": {func(r *recorder, t *testing.T, cr *cmapi.CertificateRequest) {
			cr.Status.Certificate = pemOf(r.leaf(t, webID, nil))
		}, true},
		"another root": {func(_ *recorder, t *testing.T, cr *cmapi.CertificateRequest) {
			cr.Status.Certificate = pemOf(newRecorder(t).leaf(t, webID, nil))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorder(t)
			request, _ := r.request(t, func(cr *cmapi.CertificateRequest) { row.change(r, t, cr) })
			require.NoError(t, r.observed.Keep(t.Context(), request))
			all, err := r.store.Local().List(t.Context(), ledger.Filter{}, ledger.Page{})
			require.NoError(t, err)
			assert.Empty(t, r.told)
			if !row.recorded {
				assert.Empty(t, all.Records)
				return
			}
			require.Len(t, all.Records, 1)
			assert.Empty(t, all.Records[0].Holder())
		})
	}
}

// TestKeepFinal: a certificate that can never be recorded doesn't keep its request for ever; one that can't be now does.
func TestKeepFinal(t *testing.T) {
	r := newRecorder(t)
	first, leaf := r.request(t, nil)
	require.NoError(t, r.observed.Keep(t.Context(), first))
	again, _ := r.request(t, func(cr *cmapi.CertificateRequest) {
		twin, _ := newCertificate(t, &x509.Certificate{SerialNumber: leaf.SerialNumber, URIs: leaf.URIs}, nil, r.root, r.rootKey)
		cr.Status.Certificate = pemOf(twin)
	})
	assert.NoError(t, r.observed.Keep(t.Context(), again), "a serial number that was used before")

	other, _ := r.request(t, nil)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, r.observed.Keep(ended, other), context.Canceled)
	assert.NoError(t, r.observed.Keep(t.Context(), other))
}

// TestSightings: what is seen waits for the better record of the replica itself, and no longer.
func TestSightings(t *testing.T) {
	r := newRecorder(t)
	o, now := r.observed, time.Now()
	request, leaf := r.request(t, nil)
	own, _ := r.request(t, nil)
	o.see(request, now, false)
	o.see(own, now, false)
	o.see("something else", now, false)
	o.known(own.UID)
	o.pass(t.Context(), now.Add(observeAfter-time.Millisecond))
	assert.Nil(t, r.record(t, leaf))
	assert.Len(t, o.waiting, 2)
	o.pass(t.Context(), now.Add(observeAfter))
	assert.NotNil(t, r.record(t, leaf))
	assert.Len(t, r.told, 1)
	o.see(request, now, true)
	assert.Empty(t, o.waiting, "what is known isn't seen again")

	o.leave(request.UID)
	o.due(now.Add(observeAfter))
	assert.True(t, o.has(request.UID), "a sighting of it may still wait")
	o.due(time.Now().Add(2*observeAfter + forgetEvery + time.Second)) // since it was recorded
	assert.False(t, o.has(request.UID))
	assert.True(t, o.has(own.UID))
	o.due(time.Now().Add(rememberFor + time.Second))
	assert.False(t, o.has(own.UID), "its deletion was never seen")
}

// TestSightingsAgain: what can't be recorded now is tried again, and only one of many is tried meanwhile.
func TestSightingsAgain(t *testing.T) {
	r := newRecorder(t)
	o, now := r.observed, time.Now()
	for range 5 {
		request, _ := r.request(t, nil)
		o.see(request, now, false)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	o.pass(ended, now.Add(observeAfter))
	assert.Len(t, o.waiting, 5)
	o.pass(t.Context(), now.Add(observeAfter))
	assert.Empty(t, o.waiting)
	assert.Len(t, r.told, 5)
}

// TestSightingsAreBounded: those that find no room come again when they are deleted; what is lost then is said.
func TestSightingsAreBounded(t *testing.T) {
	r := newRecorder(t)
	o, now := r.observed, time.Now()
	source := func() ledger.SourceState {
		c, err := r.store.Local().Coverage(t.Context())
		require.NoError(t, err)
		for _, s := range c.Sources {
			if s.Name == observedSource {
				return s
			}
		}
		return ledger.SourceState{}
	}
	o.tell(false)
	assert.Equal(t, []any{false, "the CertificateRequests are not known yet"}, []any{source().Up, source().Detail})
	o.tell(true)
	assert.True(t, source().Up)
	request, _ := r.request(t, nil)
	o.waiting = make([]sighting, maxObserved)
	o.tell(true)
	assert.Equal(t, "100000 certificates wait to be recorded", source().Detail)
	o.see(request, now, false)
	assert.Len(t, o.waiting, maxObserved)
	assert.Zero(t, o.left)
	o.see(request, now, true)
	assert.Equal(t, 1, o.left)
	o.tell(true)
	assert.Equal(t, []any{false, "1 certificates were deleted before they were recorded"}, []any{source().Up, source().Detail})
}

// TestRecord: what the caller is known by goes into the record, which is there when Record returns.
func TestRecord(t *testing.T) {
	r := newRecorder(t)
	watched := &seen{leaves: rotation.NewLeaves(prometheus.NewRegistry()), intermediates: rotation.NewIntermediates(corev1.ObjectReference{})}
	recorded := &recording{replica: "signet-0", ledger: r.store, observed: r.observed, seen: watched, issued: r.observed.issued, stream: noStream(t)}
	leaf := r.leaf(t, webID, nil)
	issuance := ca.Issuance{
		Caller: &ca.Caller{
			ID: spiffeid.RequireFromString(webID), Namespace: "shop", ServiceAccount: "web", ServiceAccountUID: "sa-uid",
			PodName: "web-1", PodUID: "pod-uid", NodeName: "node-1", CredentialID: "JTI=1", Cluster: "Kubernetes",
		},
		Grant:   ca.Grant{ID: spiffeid.RequireFromString(webID), Namespace: "shop", ServiceAccount: "web"},
		Address: "10.0.0.1", Requested: 2 * time.Hour,
		Chain: &signer.Chain{Leaf: leaf, Anchor: r.root, Issuer: issuer.Ref{Name: "istio-ca"}.WithDefaults(), Request: signer.RequestRef{Name: "signet-1", UID: "cr-uid"}},
	}
	require.NoError(t, recorded.Record(t.Context(), issuance))
	found := r.record(t, leaf)
	require.NotNil(t, found)
	assert.Equal(t, []any{ledger.Own, "signet-0", webID, "sa-uid", "web-1", "pod-uid", "node-1", "JTI=1", "Kubernetes", "10.0.0.1", 2 * time.Hour, "signet-1", "cr-uid", issuer.AnchorID(r.root), false},
		[]any{found.Source, found.Replica, found.Identity, found.ServiceAccountUID, found.Pod, found.PodUID, found.Node, found.Credential, found.Cluster, found.Peer, found.RequestedLifetime, found.RequestName, found.RequestUID, found.RootSHA256, found.Impersonated})
	assert.True(t, r.observed.has("cr-uid"))
	require.Len(t, r.told, 1)
	assert.Equal(t, found.SHA256, r.told[0].SHA256)

	// For a pod beside it.
	issuance.Caller = &ca.Caller{ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/istio-system/sa/ztunnel"), Namespace: "istio-system", ServiceAccount: "ztunnel", PodName: "ztunnel-1", PodUID: "zt-uid", NodeName: "node-1"}
	issuance.Grant.Impersonated = true
	issuance.Chain.Leaf = r.leaf(t, webID, nil)
	require.NoError(t, recorded.Record(t.Context(), issuance))
	found = r.record(t, issuance.Chain.Leaf)
	assert.Equal(t, []any{webID, "shop", "web", true, "node/node-1"}, []any{found.Identity, found.Namespace, found.ServiceAccount, found.Impersonated, found.Holder()})

	// A certificate that the ledger couldn't tell from another one doesn't leave, and asking again doesn't help.
	twin, _ := newCertificate(t, &x509.Certificate{SerialNumber: leaf.SerialNumber, URIs: leaf.URIs}, nil, r.root, r.rootKey)
	issuance.Chain.Leaf = twin
	err := recorded.Record(t.Context(), issuance)
	assert.ErrorIs(t, err, signer.ErrUntrusted)
	assert.ErrorIs(t, err, ledger.ErrSerialReused)
	// What may pass may be tried again.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	issuance.Chain.Leaf = r.leaf(t, webID, nil)
	err = recorded.Record(ended, issuance)
	assert.ErrorIs(t, err, context.Canceled)
	assert.NotErrorIs(t, err, signer.ErrUntrusted)
	assert.Len(t, r.told, 2, "nobody is told of what isn't recorded")
}

func TestPasses(t *testing.T) {
	for _, row := range []struct {
		err  error
		want bool
	}{
		{ledger.ErrFull, true}, {ledger.ErrWrite, true}, {ledger.ErrClosed, true}, {context.DeadlineExceeded, true}, {context.Canceled, true},
		{ledger.ErrSerialReused, false}, {errors.New("the validity is missing"), false},
	} {
		assert.Equal(t, row.want, passes(fmt.Errorf("record: %w", row.err)), row.err)
	}
}

// noStream is an audit stream that nobody reads.
func noStream(t *testing.T) *audit.Stream {
	t.Helper()
	stream, err := audit.New(audit.Config{}, audit.Origin{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	return stream
}

// TestRefused: a refusal is counted with what is known of the caller.
func TestRefused(t *testing.T) {
	r := newRecorder(t)
	recorded := &recording{replica: "signet-0", ledger: r.store, observed: r.observed, stream: noStream(t)}
	recorded.Refused(ca.Refusal{Reason: "token_rejected", Code: codes.Unauthenticated, Address: "10.0.0.1"})
	for range 2 {
		recorded.Refused(ca.Refusal{Reason: "identity", Code: codes.PermissionDenied, Address: "10.0.0.1", Caller: &ca.Caller{ID: spiffeid.RequireFromString(webID), Namespace: "shop", ServiceAccount: "web"}})
	}
	require.NoError(t, r.store.Close()) // which writes the counts
	store, err := ledger.Open(t.Context(), ledger.Config{Dir: r.dir, Replica: "signet-0", ReserveMiB: 1}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	defer store.Close()
	found, err := store.Local().Refusals(t.Context(), ledger.RefusalFilter{}, ledger.Page{})
	require.NoError(t, err)
	said := make(map[[7]string]int64)
	for _, c := range found.Counts { // of each minute; another one may have begun meanwhile
		said[[7]string{c.Reason, c.Code, c.Identity, c.Namespace, c.ServiceAccount, c.Peer, c.Replica}] += c.Count
	}
	assert.Equal(t, map[[7]string]int64{
		{"token_rejected", "Unauthenticated", "", "", "", "10.0.0.1", "signet-0"}:      1,
		{"identity", "PermissionDenied", webID, "shop", "web", "10.0.0.1", "signet-0"}: 2,
	}, said)
}
