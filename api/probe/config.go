package probe

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/signet-ca/signet/setting"
)

// Config is what probes may do. See docs/probes.md for what that means for a NetworkPolicy.
type Config struct {
	// Disabled turns probes off. Default false.
	Disabled bool `json:"disabled,omitempty"`
	// Networks are the only ones that are dialed, such as 10.244.0.0/16, where there are any: best those of the
	// cluster's pods. Default none, which allows every address that may be a pod's.
	Networks []string `json:"networks,omitempty"`
	// Timeout bounds one connection, from dialing it to the last byte. Default 5s.
	Timeout setting.Duration `json:"timeout,omitempty"`
	// PerMinute is how many probes one caller may ask for in a minute. Default 30.
	PerMinute int `json:"perMinute,omitempty"`
	// DialsPerSecond is how many connections are opened in a second, for all callers together and on schedule. Default 20.
	DialsPerSecond int `json:"dialsPerSecond,omitempty"`
	// Schedule makes probes without being asked.
	Schedule ScheduleConfig `json:"schedule,omitempty"`

	// TrustDomain is that of the identities that pods should have.
	TrustDomain spiffeid.TrustDomain `json:"-"`
}

// ScheduleConfig says which services are probed without being asked: those with pods in the mesh, in turn, each time one
// pod, picked at random.
type ScheduleConfig struct {
	// Interval is the time from one service to the next. Default none, which is never.
	Interval setting.Duration `json:"interval,omitempty"`
	// Max is how many services' latest results are remembered. Default 1000.
	Max int `json:"max,omitempty"`
}

// Validate reports what is wrong with c.
func (c Config) Validate(p setting.Problems) {
	for _, text := range c.Networks {
		if network, err := netip.ParsePrefix(text); err != nil || network != network.Masked() {
			p.Addf("networks", "%q is not a network; it must be an address and a length, such as 10.244.0.0/16 or fd00:10::/64", text)
		}
	}
	p.Duration("timeout", c.Timeout, 100*time.Millisecond, 10*time.Second)
	p.Count("perMinute", c.PerMinute, 1, 10_000)
	p.Count("dialsPerSecond", c.DialsPerSecond, 1, 1000)
	schedule := p.At("schedule")
	schedule.Duration("interval", c.Schedule.Interval, time.Second, 24*time.Hour)
	schedule.Count("max", c.Schedule.Max, 1, 100_000)
}

func (c Config) withDefaults() Config {
	c.Timeout = setting.DurationOf(c.Timeout.Or(5 * time.Second))
	if c.PerMinute == 0 {
		c.PerMinute = 30
	}
	if c.DialsPerSecond == 0 {
		c.DialsPerSecond = 20
	}
	if c.Schedule.Max == 0 {
		c.Schedule.Max = 1000
	}
	return c
}
