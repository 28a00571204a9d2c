package inventory

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestOrderedIsASortedSet compares it with a sorted slice, through growth, shrinking and every seek.
func TestOrderedIsASortedSet(t *testing.T) {
	for seed := range uint64(4) {
		random := rand.New(rand.NewPCG(seed, 1))
		o := ordered[int]{compare: cmp.Compare[int]}
		var want []int
		for step := range 12_000 {
			n := random.IntN(6000)
			if seed%2 == 1 && step < 4000 {
				n = step // in order, as leaves come
			}
			at, found := slices.BinarySearch(want, n)
			grow := step < 6000
			if random.IntN(4) == 0 {
				grow = !grow
			}
			switch {
			case grow && !found:
				want = slices.Insert(want, at, n)
			case !grow && found:
				want = slices.Delete(want, at, at+1)
			}
			if grow {
				o.insert(n)
			} else {
				o.remove(n)
			}
			if len(want) != o.size {
				t.Fatalf("%d items, it says %d", len(want), o.size)
			}
			if step%500 == 0 || step > 11_998 {
				require.Equal(t, append([]int{}, want...), slices.AppendSeq([]int{}, o.from(func(int) bool { return false })))
				for range 20 {
					from := random.IntN(6100)
					at, _ := slices.BinarySearch(want, from)
					require.Equal(t, append([]int{}, want[at:]...), slices.AppendSeq([]int{}, o.from(func(x int) bool { return x < from })))
				}
			}
			if step%100 != 0 {
				continue
			}
			for n, chunk := range o.chunks {
				require.NotEmpty(t, chunk)
				require.LessOrEqual(t, len(chunk), chunkMost, "chunk %d", n)
			}
		}
		require.Less(t, len(o.chunks), 4+len(want)/(chunkMost/8), "chunks that have become small are joined")
	}
}
