package inventory

import (
	"iter"
	"slices"
	"sort"
)

// chunkMost is how many items a chunk has at most.
const chunkMost = 512

// ordered is a set of items in the order of compare, which tells all of them apart. It is a list of sorted chunks, so
// that a change moves a few hundred items at most, and an item costs little more than itself. Not safe for concurrent
// use with changes.
type ordered[T any] struct {
	compare func(a, b T) int
	chunks  [][]T // none is empty
	size    int
}

// chunk is the place of the chunk that x belongs into, where there is any.
func (o *ordered[T]) chunk(x T) int {
	at := sort.Search(len(o.chunks), func(n int) bool { return o.compare(o.chunks[n][0], x) > 0 })
	return max(0, at-1)
}

// insert adds x, unless it is there.
func (o *ordered[T]) insert(x T) {
	if len(o.chunks) == 0 {
		o.chunks = append(o.chunks, []T{x})
		o.size++
		return
	}
	at := o.chunk(x)
	in, found := slices.BinarySearchFunc(o.chunks[at], x, o.compare)
	if found {
		return
	}
	o.size++
	o.chunks[at] = slices.Insert(o.chunks[at], in, x)
	if whole := o.chunks[at]; len(whole) > chunkMost {
		half := len(whole) / 2
		o.chunks = slices.Insert(o.chunks, at+1, slices.Clone(whole[half:]))
		o.chunks[at] = slices.Clone(whole[:half])
	}
}

// remove takes x away, where it is there.
func (o *ordered[T]) remove(x T) {
	if len(o.chunks) == 0 {
		return
	}
	at := o.chunk(x)
	in, found := slices.BinarySearchFunc(o.chunks[at], x, o.compare)
	if !found {
		return
	}
	o.size--
	o.chunks[at] = slices.Delete(o.chunks[at], in, in+1)
	switch n := len(o.chunks[at]); {
	case n == 0:
		o.chunks = slices.Delete(o.chunks, at, at+1)
	case n < chunkMost/4 && at+1 < len(o.chunks) && n+len(o.chunks[at+1]) < chunkMost/2:
		o.chunks[at] = append(o.chunks[at], o.chunks[at+1]...)
		o.chunks = slices.Delete(o.chunks, at+1, at+2)
	}
}

// from are the items from the first on of which before is false. Before must be true for those up to some place.
func (o *ordered[T]) from(before func(T) bool) iter.Seq[T] {
	return func(yield func(T) bool) {
		at := max(0, sort.Search(len(o.chunks), func(n int) bool { return !before(o.chunks[n][0]) })-1)
		for first := true; at < len(o.chunks); at++ {
			chunk := o.chunks[at]
			if first {
				chunk = chunk[sort.Search(len(chunk), func(n int) bool { return !before(chunk[n]) }):]
				first = false
			}
			for _, x := range chunk {
				if !yield(x) {
					return
				}
			}
		}
	}
}
