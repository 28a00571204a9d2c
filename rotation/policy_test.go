package rotation

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func TestDecide(t *testing.T) {
	const life = 24 * time.Hour
	for _, row := range []struct {
		age  time.Duration
		want State
	}{
		{-time.Hour, Fresh}, // of a clock ahead of ours
		{0, Fresh},
		{16*time.Hour - time.Second, Fresh},
		{16 * time.Hour, Due},
		{20*time.Hour - time.Second, Due},
		{20*time.Hour + time.Nanosecond, Overdue},
		{24*time.Hour - time.Second, Overdue},
		{24 * time.Hour, Overdue}, // RFC 5280 §4.1.2.5: the last second belongs to it
		{24*time.Hour + time.Nanosecond, Expired},
		{1000 * time.Hour, Expired},
	} {
		assert.Equal(t, row.want, Decide(KindServing.Policy(), epoch, epoch.Add(life), epoch.Add(row.age)), "at %s", row.age)
	}
	assert.Equal(t, Expired, Decide(KindServing.Policy(), epoch, epoch.Add(-time.Second), epoch), "a validity that ends before it begins")
	assert.Equal(t, Overdue, Decide(KindServing.Policy(), epoch, epoch, epoch), "one of no length")
	century := epoch.AddDate(100, 0, 0)
	assert.Equal(t, Fresh, Decide(KindServing.Policy(), epoch, century, epoch.AddDate(66, 0, 0)))
	assert.Equal(t, Due, Decide(KindServing.Policy(), epoch, century, epoch.AddDate(67, 0, 0)))
}

func TestRenewIn(t *testing.T) {
	for age, want := range map[time.Duration]time.Duration{
		0:               17 * time.Hour, // until two thirds of 24h, from an hour before
		time.Hour:       16 * time.Hour,
		17 * time.Hour:  0,
		18 * time.Hour:  0,
		100 * time.Hour: 0,
		16 * time.Hour:  time.Hour,
		-30 * time.Hour: 47 * time.Hour,
	} {
		got := renewIn(epoch.Add(time.Hour), epoch.Add(25*time.Hour), epoch.Add(age))
		assert.InDelta(t, want, got, 1, "at %s", age)
	}
	// Whenever it is waited for, the state is Fresh before and Due after.
	for _, life := range []time.Duration{time.Second, 7 * time.Second, time.Hour, 24 * time.Hour, 90 * 24 * time.Hour} {
		in := renewIn(epoch, epoch.Add(life), epoch)
		assert.Equal(t, Fresh, Decide(KindServing.Policy(), epoch, epoch.Add(life), epoch.Add(in-1)))
		assert.Equal(t, Due, Decide(KindServing.Policy(), epoch, epoch.Add(life), epoch.Add(in)))
	}
}

func TestRetryIn(t *testing.T) {
	const ages = 1000 * time.Hour
	for failures, want := range map[int]time.Duration{
		1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 4: 8 * time.Second, 5: 16 * time.Second, 6: 32 * time.Second,
		7: time.Minute, 8: time.Minute, 64: time.Minute, 1 << 30: time.Minute,
	} {
		assert.Equal(t, want, retryIn(failures, ages), "after %d failures", failures)
	}
	for left, want := range map[time.Duration]time.Duration{
		20 * time.Minute: time.Minute, 10 * time.Minute: 30 * time.Second, time.Minute: 3 * time.Second,
		10 * time.Second: time.Second, 0: 10 * time.Second, -time.Hour: 10 * time.Second,
	} {
		assert.Equal(t, want, retryIn(100, left), "with %s left", left)
	}
	assert.Equal(t, 2*time.Second, retryIn(2, 0), "it backs off with nothing left too")
}
