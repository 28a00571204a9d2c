package trust

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/signet-ca/signet/issuer"
	"github.com/signet-ca/signet/test/patiently"
)

// TestR5_R54_RolloverUnderLoad: the issuer moves from root A to root B and back, twice, while eight callers ask two
// replicas all the time, and everybody who holds a living leaf connects to everybody else. Nothing fails, and at the
// end of each move nothing of the old root is left.
func TestR5_R54_RolloverUnderLoad(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.pin(t, issuerA)
	first, second := m.start(t, m.short(nil)), m.start(t, m.short(nil))
	var workloads []*workload
	for n := range 8 {
		workloads = append(workloads, m.workload(t, fmt.Sprintf("peer%d", n)))
	}
	ctx, stop := context.WithCancel(t.Context())
	p := newPeers(t, m.roots[issuerA], first, second)
	running := p.run(ctx, workloads)
	defer func() {
		stop()
		running.Wait()
		p.whole()
	}()

	patiently.Holds(t, func() bool { return m.phase(t, issuerA) == issuer.Signing }, "the first root signs")
	from := issuerA
	for _, to := range []string{issuerB, issuerA, issuerB, issuerA} {
		// An operator who can't wait names the new root and the new issuer at once. Signet waits.
		m.pin(t, from, to)
		m.want(t, to)
		patiently.Holds(t, func() bool { return m.phase(t, to) != "" }, "the root of %s is published", to)
		patiently.Holds(t, func() bool { return p.allUnder(m.roots[to]) }, "all leaves are of %s", to)
		patiently.Holds(t, func() bool { return m.phase(t, to) == issuer.Signing }, "the root of %s signs", to)
		assert.NotEmpty(t, m.phase(t, from), "the old root is there as long as leaves may live under it")

		// The old root is named no more. It goes when nobody needs it.
		m.pin(t, to)
		patiently.Holds(t, func() bool { return m.phase(t, from) == "" }, "the root of %s is gone", from)
		for _, w := range workloads {
			patiently.Holds(t, func() bool { return get(t, w.ns, mountedMap).Data["root-cert.pem"] == string(m.roots[to]) }, "namespace %s carries the new root alone", w.ns)
		}
		from = to
	}
}
