package records

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/api/inventory"
	"github.com/signet-ca/signet/api/ledger"
)

const webID = "spiffe://cluster.local/ns/shop/sa/web"

func open(t *testing.T, dir string) *ledger.Store {
	t.Helper()
	store, err := ledger.Open(t.Context(), ledger.Config{Dir: dir, Replica: "signet-0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, store.Close()) })
	return store
}

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// issuance is the n-th certificate of a pod, made n minutes after epoch and good for an hour.
func issuance(n int, pod string) ledger.Issuance {
	sum := sha256.Sum256(fmt.Append(nil, n))
	at := epoch.Add(time.Duration(n) * time.Minute)
	return ledger.Issuance{
		IssuerKeyID: "aa", SerialNumber: fmt.Sprintf("0a%02x", n), SHA256: hex.EncodeToString(sum[:]), SPKISHA256: strings.Repeat("0b", 32), DER: fmt.Append(nil, "certificate ", n),
		RecordedAt: at, NotBefore: at, NotAfter: at.Add(time.Hour), RequestedLifetime: 90 * time.Minute,
		Identity: webID, TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web", SANs: []string{webID},
		KeyAlgorithm: "ECDSA", KeyBits: 256, SignatureAlgorithm: "ECDSA-SHA256", Issuer: "Issuer.cert-manager.io/istio-ca",
		RootSHA256: strings.Repeat("0c", 32), RootSubject: "CN=root", Pod: pod, PodUID: "uid of " + pod, Node: "node-1", Cluster: "Kubernetes", Peer: "10.0.0.1",
		RequestName: fmt.Sprint("signet-", n), RequestUID: fmt.Sprint("uid-", n), Replica: "signet-1",
	}
}

func record(t *testing.T, store *ledger.Store, all ...ledger.Issuance) {
	t.Helper()
	for _, i := range all {
		require.NoError(t, store.Record(t.Context(), i))
	}
}

func TestCertificate(t *testing.T) {
	store := open(t, t.TempDir())
	i := issuance(1, "web-1")
	i.Impersonated = true
	record(t, store, i)
	got, err := Of(store).Certificate(t.Context(), i.SHA256)
	require.NoError(t, err)
	assert.Equal(t, &api.Certificate{
		SHA256: i.SHA256, Serial: "0a01", Identity: webID, SANs: []string{"URI:" + webID}, Namespace: "shop", ServiceAccount: "web",
		Holder:   api.Holder{Pod: "web-1", PodUID: "uid of web-1", Node: "node-1", Cluster: "Kubernetes", Address: "10.0.0.1", Impersonated: true},
		IssuedAt: i.RecordedAt, NotBefore: i.NotBefore, NotAfter: i.NotAfter, RequestedSeconds: 5400,
		KeyAlgorithm: "ECDSA", KeyBits: 256, SignatureAlgorithm: "ECDSA-SHA256", SPKISHA256: i.SPKISHA256,
		Issuer: "Issuer.cert-manager.io/istio-ca", Root: api.Root{SHA256: i.RootSHA256, Subject: "CN=root"},
		Request: api.ObjectRef{Name: "signet-1", UID: "uid-1"}, Replica: "signet-1",
		PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.DER})),
	}, got)
	for _, missing := range []string{strings.Repeat("0", 64), "short", ""} {
		_, err = Of(store).Certificate(t.Context(), missing)
		assert.ErrorIs(t, err, api.ErrNotFound, missing)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		webID: "URI", "https://x/y": "URI", "10.0.0.1": "IP", "fd00::1": "IP", "ops@example.org": "email", "signet.istio-system.svc": "DNS",
	} {
		assert.Equal(t, want, kindOf(name), name)
	}
	i := ledger.Issuance{SANs: []string{webID, "signet", "10.0.0.1"}}
	assert.Equal(t, []string{"URI:" + webID, "DNS:signet", "IP:10.0.0.1"}, Certificate(&i).SANs)
	assert.NotNil(t, Certificate(&ledger.Issuance{}).SANs)
}

// TestLists: pages of what workloads hold, without what is Signet's own.
func TestLists(t *testing.T) {
	store := open(t, t.TempDir())
	own := issuance(3, "")
	own.Identity, own.TrustDomain, own.Namespace, own.ServiceAccount, own.SANs = "", "", "", "", []string{"signet.istio-system.svc"}
	record(t, store, issuance(1, "web-1"), issuance(2, "web-2"), own, issuance(4, "web-1"))
	r := Of(store)
	read := func(page inventory.RecordPage, err error) (all []string, next string) {
		require.NoError(t, err)
		for _, c := range page.Items {
			all = append(all, c.Request.Name)
			assert.Empty(t, c.PEM)
		}
		return all, page.Continue
	}
	all, next := read(r.Certificates(t.Context(), inventory.RecordQuery{Limit: 10}))
	assert.Equal(t, []string{"signet-4", "signet-2", "signet-1"}, all)
	assert.Empty(t, next)
	all, next = read(r.Latest(t.Context(), inventory.LatestQuery{EndsAfter: epoch, Limit: 10}))
	assert.Equal(t, []string{"signet-4", "signet-2"}, all)
	assert.Empty(t, next)
	all, _ = read(r.Latest(t.Context(), inventory.LatestQuery{EndsAfter: epoch.Add(63 * time.Minute), Limit: 10}))
	assert.Equal(t, []string{"signet-4"}, all)

	all, next = read(r.Certificates(t.Context(), inventory.RecordQuery{Limit: 2}))
	assert.Equal(t, []string{"signet-4"}, all, "the other one of the page is Signet's own")
	all, next = read(r.Certificates(t.Context(), inventory.RecordQuery{Limit: 2, Continue: next}))
	assert.Equal(t, []string{"signet-2", "signet-1"}, all)
	assert.Empty(t, next)

	for name, row := range map[string]struct {
		query inventory.RecordQuery
		want  int
	}{
		"namespace":        {inventory.RecordQuery{Namespace: "shop"}, 3},
		"another":          {inventory.RecordQuery{Namespace: "bank"}, 0},
		"namespaces":       {inventory.RecordQuery{Namespaces: []string{"shop", "bank"}}, 3},
		"none":             {inventory.RecordQuery{Namespaces: []string{}}, 0},
		"identity":         {inventory.RecordQuery{Identity: webID}, 3},
		"node":             {inventory.RecordQuery{Node: "node-2"}, 0},
		"issuer":           {inventory.RecordQuery{Issuer: "Issuer.cert-manager.io/istio-ca"}, 3},
		"serial":           {inventory.RecordQuery{Serial: "0a02"}, 1},
		"SAN":              {inventory.RecordQuery{SAN: webID}, 3},
		"since":            {inventory.RecordQuery{Since: epoch.Add(2 * time.Minute)}, 2},
		"ends from":        {inventory.RecordQuery{EndsFrom: epoch.Add(62 * time.Minute)}, 2},
		"ends to":          {inventory.RecordQuery{EndsTo: epoch.Add(61 * time.Minute)}, 1},
		"no serial":        {inventory.RecordQuery{Serial: "zz"}, 0},
		"NUL":              {inventory.RecordQuery{Identity: "a\x00"}, 0},
		"SQL":              {inventory.RecordQuery{Namespace: "shop' OR '1'='1"}, 0},
		"more SQL":         {inventory.RecordQuery{SAN: `"); DROP TABLE issuance; --`}, 0},
		"too many to tell": {inventory.RecordQuery{Identity: strings.Repeat("a", 5000)}, 0},
	} {
		row.query.Limit = 10
		all, _ := read(r.Certificates(t.Context(), row.query))
		assert.Len(t, all, row.want, name)
	}
	_, err := r.Certificates(t.Context(), inventory.RecordQuery{Limit: 10, Continue: "junk"})
	assert.ErrorIs(t, err, api.ErrBadContinue)
	_, err = r.Latest(t.Context(), inventory.LatestQuery{Limit: 10, Continue: next + "junk"})
	assert.ErrorIs(t, err, api.ErrBadContinue)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Certificates(ended, inventory.RecordQuery{Limit: 10})
	assert.ErrorIs(t, err, context.Canceled)
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	store := open(t, dir)
	now := time.Now()
	for n := range 5 {
		store.Refused(ledger.Refusal{Reason: fmt.Sprint("reason-", n), Code: "Internal", Identity: webID, Namespace: "shop", ServiceAccount: "web", Peer: "10.0.0.1", Count: 7, First: now, Last: now})
	}
	require.NoError(t, store.Close()) // which writes the counts
	r := Of(open(t, dir))
	seen := make(map[string]bool)
	next := ""
	for pages := 1; ; pages++ {
		page, err := r.Refusals(t.Context(), inventory.RecordQuery{Limit: 2, Continue: next})
		require.NoError(t, err)
		require.LessOrEqual(t, len(page.Items), 2)
		for _, line := range page.Items {
			require.False(t, seen[line.Refusal.Reason])
			seen[line.Refusal.Reason] = true
			assert.Equal(t, api.Refused, line.Outcome)
			assert.Equal(t, []any{"Internal", webID, "shop", "web", "10.0.0.1", int64(7), "signet-0", now.Unix()},
				[]any{line.Refusal.Code, line.Refusal.Identity, line.Refusal.Namespace, line.Refusal.ServiceAccount, line.Refusal.Address, line.Refusal.Count, line.Refusal.Replica, line.Refusal.Last.Unix()})
		}
		if next = page.Continue; next == "" {
			assert.Equal(t, 3, pages)
			break
		}
	}
	assert.Len(t, seen, 5)
	for name, row := range map[string]struct {
		query inventory.RecordQuery
		want  int
	}{
		"namespace": {inventory.RecordQuery{Namespace: "shop"}, 5}, "another": {inventory.RecordQuery{Namespace: "bank"}, 0},
		"identity": {inventory.RecordQuery{Identity: webID}, 5}, "none seen": {inventory.RecordQuery{Namespaces: []string{}}, 0},
		"later": {inventory.RecordQuery{Since: now.Add(time.Hour)}, 0}, "no text": {inventory.RecordQuery{Identity: "\xff"}, 0},
	} {
		row.query.Limit = 10
		page, err := r.Refusals(t.Context(), row.query)
		require.NoError(t, err)
		assert.Len(t, page.Items, row.want, name)
	}
	for _, bad := range []string{"junk", "own.x.", "all.0.junk", "more.0.", "."} {
		_, err := r.Refusals(t.Context(), inventory.RecordQuery{Limit: 2, Continue: bad})
		assert.ErrorIs(t, err, api.ErrBadContinue, bad)
	}
}

func TestRefusalsPlace(t *testing.T) {
	for _, p := range []refusalsPlace{{}, {next: "a.b"}, {own: true, since: time.Unix(60, 0)}, {since: time.Unix(60, 0), next: "x"}} {
		got, err := parseRefusalsPlace(p.String())
		require.NoError(t, err)
		assert.Equal(t, p, got)
	}
}

// TestCoverage: the replica that answers is always named, and a crash is told in words.
func TestCoverage(t *testing.T) {
	dir := t.TempDir()
	store := open(t, dir)
	c, err := Of(store).Coverage(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"signet-0"}, c.Replicas)
	assert.Equal(t, []api.Source{{Name: "ledger: own", Up: true}}, c.Sources)
	assert.Empty(t, c.Gaps)
	record(t, store, issuance(1, "web-1"), issuance(2, "web-1"))
	store.SetSource("observed", false, "not yet")
	c, err = Of(store).Coverage(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"signet-0", "signet-1"}, c.Replicas)
	assert.Equal(t, epoch.Add(time.Minute), c.Since)
	assert.Contains(t, c.Sources, api.Source{Name: "ledger: observed", Reason: "not yet"})
	for _, kind := range []ledger.GapKind{ledger.GapCrash, ledger.GapUnrecorded, ledger.GapRetention, ledger.GapUnshipped, ledger.GapAway} {
		assert.NotEmpty(t, reasons[kind], kind)
	}
}

// TestFollowNobody: without a shared view there is nobody to follow.
func TestFollowNobody(t *testing.T) {
	var log bytes.Buffer
	Of(open(t, t.TempDir())).Follow(t.Context(), func(api.Certificate) { t.Error("nothing is told") }, slog.New(slog.NewTextHandler(&log, nil)))
	assert.Empty(t, log.String())
}
