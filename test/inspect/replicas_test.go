package inspect

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // registers pgx
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/signet-ca/signet/api"
	"github.com/signet-ca/signet/test/meshclient"
	"github.com/signet-ca/signet/test/patiently"
)

// told compares what a replica says of a certificate that another one issued: all but the address of the caller, which
// is known only to the one that was asked.
func told(t *testing.T, said *api.Certificate, leaf *x509.Certificate, w *workload, issuedBy string) {
	t.Helper()
	assert.Equal(t, serialOf(leaf), said.Serial)
	assert.Equal(t, w.id.String(), said.Identity)
	assert.Equal(t, []string{w.pod.Name, string(w.pod.UID), w.pod.Spec.NodeName, "Kubernetes"}, []string{said.Holder.Pod, said.Holder.PodUID, said.Holder.Node, said.Holder.Cluster})
	assert.True(t, leaf.NotAfter.Equal(said.NotAfter))
	assert.Equal(t, api.Live, said.Standing)
	assert.Equal(t, issuedBy, said.Replica)
	assert.NotEmpty(t, said.Root.SHA256)
}

// live waits until the view of a replica has exactly this certificate for an identity.
func live(t *testing.T, client *api.Client, leaf *x509.Certificate, w *workload) {
	t.Helper()
	patiently.Holds(t, func() bool {
		return slices.Equal([]string{serialOf(leaf)}, serials(t, client, api.CertificateQuery{Identity: w.id.String()}))
	}, "certificate %s isn't live", serialOf(leaf))
}

// coverage is that of a list.
func coverage(t *testing.T, client *api.Client) api.Coverage {
	t.Helper()
	list, err := client.Services(t.Context(), api.ServiceQuery{})
	require.NoError(t, err)
	return list.Coverage
}

// source is one of a coverage.
func source(c api.Coverage, name string) api.Source {
	for _, s := range c.Sources {
		if s.Name == name {
			return s
		}
	}
	return api.Source{Name: "no " + name}
}

// TestReplicas: what one replica issues the other one tells too, from the requests that both see.
func TestReplicas(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	one := m.start(t, "signet-one", "", nil)
	two := m.start(t, "signet-two", "", nil)
	ns := plane.NewNamespace(t, "replicas")
	w := newWorkload(t, ns, "web", "node-1")
	agent := w.agent(t, one, time.Hour, meshclient.P256)
	leaf := held(t, agent).Leaf
	tells(t, one.reader(t), leaf)

	client := two.reader(t)
	said := willTell(t, client, leaf)
	told(t, said, leaf, w, "signet-one")
	live(t, client, leaf, w)
	fresh(t, client, ns, "web")
	list, err := client.Issuances(t.Context(), api.IssuanceQuery{Identity: w.id.String()})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	told(t, list.Items[0].Certificate, leaf, w, "signet-one")
	patiently.Holds(t, func() bool { return slices.Equal([]string{"signet-one", "signet-two"}, coverage(t, client).Replicas) }, "both replicas are named")
	assert.True(t, source(coverage(t, client), "ledger: observed").Up)
}

// TestSharedView: with PostgreSQL every replica tells what any has recorded, also one that comes later with an empty
// store. An outage of PostgreSQL stops nothing, and what was recorded meanwhile gets there afterwards.
func TestSharedView(t *testing.T) {
	t.Parallel() // no other test uses PostgreSQL, which is stopped here
	m := newTestMesh(t)
	file, dsn := dsnFile(t)
	m.settings["ledger.postgres.dsnFile"] = file
	one := m.start(t, "signet-one", "", nil)
	two := m.start(t, "signet-two", "", nil)
	ns := plane.NewNamespace(t, "shared")
	early, late := newWorkload(t, ns, "early", "node-1"), newWorkload(t, ns, "late", "node-2")
	before, _ := early.issue(t, one.dial(t), time.Hour)
	shipped(t, dsn, before)

	refused := *early
	refused.id = late.id
	_, _, err := refused.ask(t.Context(), two.dial(t), time.Hour)
	require.Equal(t, codes.PermissionDenied, grpcstatus.Code(err), "%v", err)
	client := two.reader(t)
	patiently.Holds(t, func() bool {
		list, err := client.Issuances(t.Context(), api.IssuanceQuery{Namespace: ns, Outcome: api.Refused})
		require.NoError(t, err)
		return len(list.Items) == 1 && list.Items[0].Refusal.Replica == "signet-two" && list.Items[0].Refusal.Count == 1
	}, "the replica tells of its own refusals before they are in the shared view")

	require.NoError(t, database.Down())
	down := true
	t.Cleanup(func() {
		if down {
			require.NoError(t, database.Up(context.WithoutCancel(t.Context())))
		}
	})
	during, _ := late.issue(t, two.dial(t), time.Hour)
	tells(t, client, during)
	live(t, client, during, late)
	patiently.Holds(t, func() bool {
		code, body, err := two.Readyz(t.Context())
		require.NoError(t, err)
		return code == http.StatusOK && strings.Contains(body, "shared view: not reached")
	}, "readiness tells that PostgreSQL is away, and is good")
	// Questions are answered from the replica's own store, with what it saw of the other.
	told(t, willTell(t, client, before), before, early, "signet-one")
	patiently.Holds(t, func() bool { return !source(coverage(t, client), "ledger: shared").Up }, "the coverage tells that PostgreSQL is away")

	require.NoError(t, database.Up(t.Context()))
	down = false
	shipped(t, dsn, during)
	// The requests are gone from the cluster: a new replica knows of them by the shared view alone.
	patiently.Holds(t, func() bool { return len(requests(t, m.ns)) == 0 }, "the requests are swept")
	third := m.start(t, "signet-three", "", nil).reader(t)
	for leaf, w := range map[*x509.Certificate]*workload{before: early, during: late} {
		live(t, third, leaf, w)
	}
	told(t, tells(t, third, before), before, early, "signet-one")
	told(t, tells(t, third, during), during, late, "signet-two")
	fresh(t, third, ns, "late")
	patiently.Holds(t, func() bool {
		c := coverage(t, third)
		return slices.Equal([]string{"signet-one", "signet-three", "signet-two"}, c.Replicas) && source(c, "ledger: shared").Up && source(c, "ledger: others").Up
	}, "all replicas are named")
}

// shipped waits until PostgreSQL has the record of a certificate.
func shipped(t *testing.T, dsn string, leaf *x509.Certificate) {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	defer db.Close()
	sum, err := hex.DecodeString(shaOf(leaf))
	require.NoError(t, err)
	patiently.Holds(t, func() bool {
		var n int
		err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM issuance WHERE certificate_sha256 = $1 AND source = 'own'`, sum).Scan(&n)
		return err == nil && n == 1 // there is no table before the first replica has made it
	}, "certificate %s isn't in PostgreSQL", serialOf(leaf))
}
