package inspect

import (
	"context"
	"crypto/x509"
	"database/sql"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	_ "modernc.org/sqlite" // registers sqlite
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
	"github.com/signet-ca/signet/test/testca"
)

// requests are the CertificateRequests for workloads that exist in a namespace.
func requests(t *testing.T, ns string) []cmapi.CertificateRequest {
	t.Helper()
	var list cmapi.CertificateRequestList
	require.NoError(t, plane.Client().List(t.Context(), &list, client.InNamespace(ns), client.MatchingLabels{"signet.dev/request": "workload"}))
	return list.Items
}

// leavesOf are the certificates that requests carry.
func leavesOf(t *testing.T, all []cmapi.CertificateRequest) []*x509.Certificate {
	t.Helper()
	var leaves []*x509.Certificate
	for _, r := range all {
		if len(r.Status.Certificate) > 0 {
			leaf, err := parse(string(r.Status.Certificate))
			require.NoError(t, err)
			leaves = append(leaves, leaf)
		}
	}
	return leaves
}

// dropLease lets the next replica have the lease that a killed one still holds.
func dropLease(t *testing.T, ns string) {
	t.Helper()
	err := plane.Client().Delete(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "signet"}})
	require.NoError(t, client.IgnoreNotFound(err))
}

// stored are the SHA-256 of the certificates in a ledger that no process holds.
func stored(t *testing.T, dir string) map[string]bool {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "ledger.db"))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	rows, err := db.QueryContext(t.Context(), `SELECT lower(hex(certificate_sha256)) FROM issuance`)
	require.NoError(t, err)
	defer rows.Close()
	all := make(map[string]bool)
	for rows.Next() {
		var sha string
		require.NoError(t, rows.Scan(&sha))
		all[sha] = true
	}
	require.NoError(t, rows.Err())
	return all
}

// kills is how often the replica is killed while callers sign.
const kills = 12

// TestKilled: a replica is killed at random while callers sign. Whatever a caller holds is in the ledger, and so is
// whatever was signed and not delivered, as soon as the replica has looked at what is left in the cluster.
func TestKilled(t *testing.T) {
	t.Parallel()
	m := newTestMesh(t)
	m.settings["signer.sweep.keep"] = "1s"
	dir := filepath.Join(t.TempDir(), "ledger")
	ns := plane.NewNamespace(t, "killed")
	require.NoError(t, plane.ServiceAccount(t.Context(), ns, "web"))
	const callers = 6
	var workloads [callers]*workload
	for n := range callers {
		workloads[n] = newPod(t, ns, fmt.Sprint("web-", n), "web", "node-1")
	}
	var mu sync.Mutex
	holds := make(map[string]*x509.Certificate)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	undelivered := make(map[string]bool) // or delivered to nobody who could tell
	for round := range kills {
		i := m.start(t, "signet-0", dir, nil)
		c := i.dial(t)
		ctx, cancel := context.WithCancel(t.Context())
		first, tell := make(chan struct{}), sync.Once{}
		var group sync.WaitGroup
		for _, w := range workloads {
			group.Go(func() {
				for ctx.Err() == nil {
					leaf, _, err := w.ask(ctx, c, time.Hour)
					if err != nil {
						continue // it is killed, or its connection isn't there yet
					}
					mu.Lock()
					holds[shaOf(leaf)] = leaf
					mu.Unlock()
					tell.Do(func() { close(first) })
				}
			})
		}
		longest := 250 * time.Millisecond
		if round%2 == 0 { // else most would be killed before the first connection
			longest = time.Second
			select {
			case <-first:
			case <-time.After(patiently.Timeout):
			}
		}
		time.Sleep(time.Duration(random.Int64N(int64(longest))))
		i.Kill()
		cancel()
		group.Wait()
		recorded := stored(t, dir)
		for sha, leaf := range holds {
			require.True(t, recorded[sha] || undelivered[sha], "a caller holds certificate %s, which isn't in the ledger", serialOf(leaf))
		}
		for _, leaf := range leavesOf(t, requests(t, m.ns)) {
			if holds[shaOf(leaf)] == nil {
				undelivered[shaOf(leaf)] = true
				holds[shaOf(leaf)] = leaf
			}
		}
	}
	t.Logf("%d certificates, %d of them never delivered", len(holds), len(undelivered))
	require.Greater(t, len(holds), kills)

	dropLease(t, m.ns)
	client := m.start(t, "signet-0", dir, nil).reader(t)
	for _, leaf := range holds {
		willTell(t, client, leaf)
	}
	patiently.Holds(t, func() bool { return len(requests(t, m.ns)) == 0 }, "the requests are swept")
	gaps := coverage(t, client).Gaps
	require.NotEmpty(t, gaps)
	assert.Contains(t, gaps[0].Reason, "ended without a word")
	assert.Equal(t, "signet-0", gaps[0].Replica)
}

// TestSignedWhileDown: a request that is answered while the replica that made it is dead is recorded by the next one, or
// by another one, before it is swept.
func TestSignedWhileDown(t *testing.T) {
	for _, other := range []bool{false, true} {
		t.Run(fmt.Sprintf("another replica %t", other), func(t *testing.T) {
			t.Parallel()
			m := newTestMesh(t)
			m.settings["signer.sweep.keep"] = "1s"
			dir := filepath.Join(t.TempDir(), "ledger")
			var client *api.Client
			if other {
				client = m.start(t, "signet-1", "", nil).reader(t)
			}
			i := m.start(t, "signet-0", dir, nil)
			w := newWorkload(t, plane.NewNamespace(t, "down"), "web", "node-1")
			answer, signed := make(chan struct{}), make(chan string, 1)
			m.issuer.Behave(w.id.String(), testca.After(answer, func(ctx context.Context, ask testca.Ask) (testca.Answer, error) {
				a, err := testca.Good(m.ca)(ctx, ask)
				signed <- string(a.CertificatePEM)
				return a, err
			}))
			c, ended := i.dial(t), make(chan error, 1)
			go func() {
				_, _, err := w.ask(t.Context(), c, 2*time.Hour)
				ended <- err
			}()
			patiently.Holds(t, func() bool { return len(requests(t, m.ns)) == 1 }, "there is a request")
			i.Kill()
			require.Error(t, <-ended)
			close(answer)
			leaf, err := parse(<-signed)
			require.NoError(t, err)
			if !other {
				patiently.Holds(t, func() bool { return len(leavesOf(t, requests(t, m.ns))) == 1 }, "the request is answered")
				dropLease(t, m.ns)
				client = m.start(t, "signet-0", dir, nil).reader(t)
			}
			patiently.Holds(t, func() bool { return len(requests(t, m.ns)) == 0 }, "the request is swept")
			said := tells(t, client, leaf)
			told(t, said, leaf, w, "signet-0")
			assert.Equal(t, int64(7200), said.RequestedSeconds)
			live(t, client, leaf, w)
		})
	}
}

// TestNoRecordNoCertificate: while nothing can be written no certificate leaves, everything says so, and no request is
// deleted whose certificate isn't recorded; it goes on by itself. A limit of the size of files stands for a disk that is
// full: it works for whoever runs the test.
func TestNoRecordNoCertificate(t *testing.T) {
	t.Parallel()
	m := newTestMesh(t)
	m.settings["signer.sweep.keep"] = "1s"
	i := m.start(t, "signet-0", "", nil)
	w := newWorkload(t, plane.NewNamespace(t, "full"), "web", "node-1")
	reader, c := i.reader(t), i.dial(t)
	before, _ := w.issue(t, c, time.Hour)
	limit := func(bytes uint64) {
		require.NoError(t, unix.Prlimit(i.Process().PID(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: math.MaxUint64}, nil))
	}
	limit(0)
	ctx, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	_, _, err := w.ask(ctx, c, time.Hour)
	require.Equal(t, codes.Unavailable, grpcstatus.Code(err), "%v", err)
	code, body, err := i.Readyz(t.Context())
	require.NoError(t, err)
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.Contains(t, body, "so nothing is signed")
	failing, err := i.Metric(t.Context(), "signet_ledger_failing", nil)
	require.NoError(t, err)
	assert.EqualValues(t, 1, failing)
	tells(t, reader, before)
	patiently.Holds(t, func() bool { return !source(coverage(t, reader), "ledger: own").Up }, "the coverage says so")
	// The log can't be asked: it is a file too.
	awaitMetric := func(name string, least float64) float64 {
		var is float64
		patiently.Holds(t, func() bool {
			is, err = i.Metric(t.Context(), name, nil)
			require.NoError(t, err)
			return is >= least
		}, "%s is %v at least", name, least)
		return is
	}
	awaitMetric("signet_certificaterequests_due", 1)
	failures := awaitMetric("signet_ledger_record_failures_total", 1)
	awaitMetric("signet_ledger_record_failures_total", failures+2) // the sweeper wants to delete it, and has it recorded first
	var vain []*x509.Certificate
	for _, leaf := range leavesOf(t, requests(t, m.ns)) {
		if !leaf.Equal(before) {
			vain = append(vain, leaf)
		}
	}
	require.Len(t, vain, 1, "the request is there still")
	leaf := vain[0]
	_, err = reader.Certificate(t.Context(), shaOf(leaf))
	require.ErrorIs(t, err, api.ErrNotFound)

	limit(math.MaxUint64)
	again, cancel := context.WithTimeout(t.Context(), patiently.Timeout)
	defer cancel()
	require.NoError(t, i.WaitReady(again), "nobody has to ask for a certificate")
	after, _ := w.issue(t, c, time.Hour)
	tells(t, reader, after)
	// What was signed in vain is in the ledger as well.
	patiently.Holds(t, func() bool { return len(requests(t, m.ns)) == 0 }, "the requests are swept")
	tells(t, reader, leaf)
	list, err := reader.Issuances(t.Context(), api.IssuanceQuery{Identity: w.id.String(), Outcome: api.Issued})
	require.NoError(t, err)
	assert.Len(t, list.Items, 3)
	assert.Empty(t, list.Coverage.Gaps)
	assert.False(t, i.Process().Ended())
}

// TestNoDirectory: a ledger that can't be opened ends the start, and says which setting is wrong.
func TestNoDirectory(t *testing.T) {
	t.Parallel()
	m := newTestMesh(t)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	settings := maps.Clone(m.settings)
	settings["ledger.dir"] = filepath.Join(file, "ledger")
	_, err := replica.Start(t.Context(), plane, replica.Config{Namespace: m.ns, RootPEM: m.root, Settings: settings})
	require.Error(t, err)
	assert.Regexp(t, `ledger\.dir: .*`+regexp.QuoteMeta(file), err.Error())
}
