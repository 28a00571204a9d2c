package faults

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
	"github.com/signet-ca/signet/test/testca"
)

// TestSweepAfterLoad: when the load is over nothing is left in the API server.
func TestSweepAfterLoad(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, nil)
	c := dial(t, r, m.root.PEM())
	const callers, each = 8, 15
	var group sync.WaitGroup
	results := make(chan error, callers*each)
	for i := range callers {
		w := m.workload(t, fmt.Sprintf("caller-%d", i))
		group.Go(func() {
			for range each {
				w.newKey(t)
				_, err := w.ask(t.Context(), c)
				results <- err
			}
		})
	}
	group.Wait()
	close(results)
	for err := range results {
		assert.NoError(t, err)
	}
	noneLeft(t, plane, m.ns)
	patiently.Holds(t, func() bool { return metric(t, r, "signet_certificaterequests_live", nil) == 0 }, "the replica knows of none")
	patiently.Holds(t, func() bool { // they are counted a moment after they are gone
		return metric(t, r, "signet_certificaterequests_swept_total", map[string]string{"kind": "finished"}) >= callers*each
	}, "all are counted")
	assert.Zero(t, metric(t, r, "signet_certificaterequests_swept_total", map[string]string{"kind": "orphan"}))
}

// TestSweepSparesAnotherObject: an object that took the name of a finished one is not deleted in its
// place.
func TestSweepSparesAnotherObject(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r, p := behind(t, m, nil)
	c := dial(t, r, m.root.PEM())
	w := m.workload(t, "replaced")

	deletes, answers := make(chan types.UID, 1), make(chan int, 1)
	name := func() string {
		if seen := m.issuer.Seen(w.id.String()); len(seen) > 0 {
			return seen[0].Name
		}
		return "none yet"
	}
	var once sync.Once
	p.onCall(func(c call) int {
		if c.method == http.MethodDelete && strings.HasSuffix(c.path, "/"+name()) {
			once.Do(func() { deletes <- replace(t, m, name()) })
		}
		return 0
	})
	p.onAnswer(func(c call) int {
		if c.method == http.MethodDelete && strings.HasSuffix(c.path, "/"+name()) {
			select {
			case answers <- c.status:
			default:
			}
		}
		return 0
	})
	m.issuer.Behave(w.id.String(), testca.First(1, testca.Good(m.root), testca.Never()))
	chain, err := w.ask(t.Context(), c)
	w.issued(t, m.root.PEM(), chain, err)

	var planted types.UID
	select {
	case planted = <-deletes:
	case <-time.After(patiently.Timeout):
		t.Fatal("nothing was swept")
	}
	assert.Equal(t, http.StatusConflict, <-answers, "the delete names the UID")
	found := w.requests(t)
	require.Len(t, found, 1)
	assert.Equal(t, planted, found[0].UID)
	assert.Nil(t, found[0].DeletionTimestamp)
}

// replace puts another object in the place of the one with this name.
func replace(t *testing.T, m *mesh, name string) types.UID {
	var old cmapi.CertificateRequest
	key := client.ObjectKey{Namespace: m.ns, Name: name}
	fresh := &cmapi.CertificateRequest{}
	if assert.NoError(t, plane.Client().Get(t.Context(), key, &old)) && assert.NoError(t, plane.Client().Delete(t.Context(), &old)) {
		fresh.ObjectMeta = metav1.ObjectMeta{Namespace: m.ns, Name: name, Labels: old.Labels, Annotations: old.Annotations}
		fresh.Spec = old.Spec
		assert.NoError(t, plane.Client().Create(t.Context(), fresh))
	}
	return fresh.UID
}

// TestTwoReplicas: one replica sweeps for both; when it dies the other takes over, and cleans up what
// it left.
func TestTwoReplicas(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	// Finished requests stay for a while, so that the dead replica leaves some.
	settings := map[string]any{"signer.sweep.keep": "40s", "signer.timeout": "20s"}
	replicas := []*replica.Replica{m.start(t, settings), m.start(t, settings)}
	holds := func(r *replica.Replica) bool { return logCount(t, r, `"lease acquired"`) > 0 }
	patiently.Holds(t, func() bool { return holds(replicas[0]) || holds(replicas[1]) }, "one replica holds the lease")
	holder, other := replicas[0], replicas[1]
	if holds(other) {
		holder, other = other, holder
	}
	require.False(t, holds(other), "one at a time")

	// Both replicas give the same answer to the same request, byte by byte (R44).
	both := m.workload(t, "both")
	onHolder, onOther := dial(t, holder, m.root.PEM()), dial(t, other, m.root.PEM())
	a, err := both.ask(t.Context(), onHolder)
	both.issued(t, m.root.PEM(), a, err)
	b, err := both.ask(t.Context(), onOther)
	both.issued(t, m.root.PEM(), b, err)
	assert.Equal(t, a, b)
	assert.Len(t, m.issuer.Seen(both.id.String()), 1)

	orphan := m.workload(t, "orphan")
	m.issuer.Behave(orphan.id.String(), testca.Never())
	result := orphan.askBeside(t, onHolder)
	patiently.Holds(t, func() bool { return len(orphan.requests(t)) == 1 }, "the request is with the issuer")
	holder.Kill()
	a2 := awaitAnswer(t, result)
	refused(t, codes.Unavailable, a2.chain, a2.err)

	// The other signs all the time.
	for i := range 3 {
		w := m.workload(t, fmt.Sprintf("meanwhile-%d", i))
		chain, err := w.ask(t.Context(), onOther)
		w.issued(t, m.root.PEM(), chain, err)
	}
	assert.NotEmpty(t, both.requests(t), "the dead replica has left something")
	patiently.Holds(t, func() bool { return holds(other) }, "the other replica takes over")
	noneLeft(t, plane, m.ns)
	orphans := func() float64 {
		return metric(t, other, "signet_certificaterequests_swept_total", map[string]string{"kind": "orphan"})
	}
	patiently.Holds(t, func() bool { return orphans() > 0 }, "the orphan is counted") // a moment after it is gone
	assert.Equal(t, 1.0, orphans())
}

// TestLostLease: a replica that loses the lease goes on signing, and sweeps again when it gets it back.
func TestLostLease(t *testing.T) {
	t.Parallel()
	m := newMesh(t, plane)
	r := m.start(t, nil)
	c := dial(t, r, m.root.PEM())
	logged(t, r, `"lease acquired"`)
	require.NoError(t, plane.Client().Get(t.Context(), client.ObjectKey{Namespace: m.ns, Name: "signet"}, &coordinationv1.Lease{}))
	pid := r.Process().PID()

	// Somebody else takes it for long, and never renews it.
	patiently.Holds(t, func() bool { return take(t.Context(), m.ns, 600) == nil }, "the lease is taken")
	logged(t, r, `"lease not held"`)
	w := m.workload(t, "meanwhile")
	chain, err := w.ask(t.Context(), c)
	w.issued(t, m.root.PEM(), chain, err)
	code, body := readyz(t, r)
	assert.Equal(t, http.StatusOK, code, body)
	assert.Len(t, w.requests(t), 1, "nobody sweeps")

	patiently.Holds(t, func() bool { return take(t.Context(), m.ns, 1) == nil }, "the lease ends soon")
	patiently.Holds(t, func() bool { return logCount(t, r, `"lease acquired"`) >= 2 }, "the lease is held again")
	noneLeft(t, plane, m.ns)
	assert.Equal(t, pid, r.Process().PID())
	assert.False(t, r.Process().Ended())
}

// take makes somebody else the holder of the lease, for so many seconds.
func take(ctx context.Context, ns string, seconds int32) error {
	var lease coordinationv1.Lease
	if err := plane.Client().Get(ctx, client.ObjectKey{Namespace: ns, Name: "signet"}, &lease); err != nil {
		return err
	}
	lease.Spec.HolderIdentity = new("somebody else")
	lease.Spec.RenewTime, lease.Spec.LeaseDurationSeconds = new(metav1.NowMicro()), &seconds
	return plane.Client().Update(ctx, &lease)
}
