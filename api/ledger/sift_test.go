package ledger

import (
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestSift: the records that the shared view refuses are found in few tries, since each is several round trips to it.
func TestSift(t *testing.T) {
	rows := make([]*row, shipBatch)
	for n := range rows {
		rows[n] = &row{seq: int64(n)}
	}
	refused := &pgconn.PgError{Code: "22021", Message: "invalid byte sequence"}
	for _, c := range []struct {
		name string
		bad  []int64
		most int // tries
	}{
		{"none", nil, 1},
		{"one", []int64{123}, 20},
		{"the first and the last", []int64{0, shipBatch - 1}, 40},
		{"neighbours", []int64{7, 8}, 40},
	} {
		t.Run(c.name, func(t *testing.T) {
			tries := 0
			good, bad, err := sift(rows, func(some []*row) error {
				tries++
				if slices.ContainsFunc(some, func(r *row) bool { return slices.Contains(c.bad, r.seq) }) {
					return refused
				}
				return nil
			})
			require.NoError(t, err)
			assert.LessOrEqual(t, tries, c.most)
			var found []int64
			for _, b := range bad {
				found = append(found, b.row.seq)
				require.ErrorIs(t, b.why, refused)
			}
			assert.Equal(t, c.bad, found)
			var left []*row
			for _, r := range rows {
				if !slices.Contains(c.bad, r.seq) {
					left = append(left, r)
				}
			}
			assert.Equal(t, left, good, "in their order")
		})
	}

	away := errors.New("the connection is lost")
	_, _, err := sift(rows, func(some []*row) error {
		if len(some) == len(rows) {
			return refused
		}
		return away
	})
	require.ErrorIs(t, err, away, "which is no record's fault")
	good, bad, err := sift(nil, nil)
	require.NoError(t, err)
	assert.Empty(t, good)
	assert.Empty(t, bad)
}
