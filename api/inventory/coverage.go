package inventory

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/signet-ca/signet/api"
)

// askCoverage asks the records for theirs, so that no answer waits for it.
func (i *Inventory) askCoverage(ctx context.Context) {
	asking, cancel := context.WithTimeout(ctx, recordsTimeout)
	defer cancel()
	coverage, err := i.records.Coverage(asking)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		// What was known goes on being said, and that it is old.
		if former := i.coverage.Load(); former != nil {
			coverage = *former
		}
		failed := api.Source{Name: recordsSource, Reason: "its coverage can't be read: " + err.Error()}
		coverage.Sources = append(slices.DeleteFunc(slices.Clone(coverage.Sources), func(s api.Source) bool { return s.Name == recordsSource }), failed)
	}
	i.coverage.Store(&coverage)
}

// Sources in the coverage besides those of the records and the kinds that are watched.
const (
	recordsSource = "records"
	leavesSource  = "inventory"
)

// coverageNow is what every list says of its completeness: what the records say, whether what was issued before has been
// loaded, and whether each kind is known.
func (i *Inventory) coverageNow() api.Coverage {
	c := api.Coverage{Replicas: []string{}, Sources: []api.Source{}}
	if records := i.coverage.Load(); records != nil {
		c = *records
		c.Replicas, c.Gaps = append([]string{}, c.Replicas...), slices.Clone(c.Gaps)
		c.Sources = append([]api.Source{}, c.Sources...)
	} else {
		c.Sources = append(c.Sources, api.Source{Name: recordsSource, Reason: "they haven't been asked yet"})
	}
	leaves := api.Source{Name: leavesSource, Up: i.loaded.Load()}
	if dropped := i.index.droppedAt.Load(); dropped != 0 {
		leaves.Up, leaves.Reason = false, fmt.Sprintf("there are too many certificates; one that ended first was left out at %s", unix(dropped).Format(time.RFC3339))
	} else if !leaves.Up {
		leaves.Reason = "what was issued before the start isn't loaded yet"
		if text := i.loadError.Load(); text != nil {
			leaves.Reason += ": " + *text
		}
	}
	c.Sources = append(c.Sources, leaves)
	watched := i.watched.Load()
	for _, kind := range kinds {
		source := api.Source{Name: kind.source}
		if watched == nil {
			source.Reason = "not watched"
		} else if source.Up = i.synced(kind.source); !source.Up {
			source.Reason = "not listed yet"
		}
		c.Sources = append(c.Sources, source)
	}
	return c
}
