package probe

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/signet-ca/signet/setting"
)

func TestAllowed(t *testing.T) {
	not := forbidden{}
	not.add("192.168.7.1", "a node's")
	not.add("2001:db8::7", "a node's")
	not.add("10.96.0.1", "the API server's")
	not.add("::ffff:10.96.0.9", "the API server's")
	not.add("node-1.example", "a node's") // a name
	require.Len(t, not, 4)
	pods := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10::/64")}
	for _, row := range []struct {
		text     string
		networks []netip.Prefix
		want     string // "" where it is refused
		why      string
	}{
		{"10.1.2.3", nil, "10.1.2.3", ""},
		{"::ffff:10.1.2.3", nil, "10.1.2.3", ""},
		{"100.64.0.9", nil, "100.64.0.9", ""},
		{"203.0.113.9", nil, "203.0.113.9", ""},
		{"fd00:10::9", nil, "fd00:10::9", ""},
		{"2a00:1450::9", nil, "2a00:1450::9", ""},
		{"10.244.3.4", pods, "10.244.3.4", ""},
		{"::ffff:10.244.3.4", pods, "10.244.3.4", ""},
		{"fd00:10::9", pods, "fd00:10::9", ""},
		{"10.245.0.1", pods, "", "10.245.0.1 is in none of probes.networks"},
		{"fd00:11::9", pods, "", "fd00:11::9 is in none of probes.networks"},

		{"", nil, "", "is not an IP address"},
		{"localhost", nil, "", "is not an IP address"},
		{"10.1.2", nil, "", "is not an IP address"},
		{"10.1.2.3:80", nil, "", "is not an IP address"},
		{"010.1.2.3", nil, "", "is not an IP address"},
		{"0x0a.1.2.3", nil, "", "is not an IP address"},
		{"167838211", nil, "", "is not an IP address"},
		{"127.0.0.1", nil, "", "is not a unicast address that others can reach"},
		{"127.255.255.254", nil, "", "is not a unicast address that others can reach"},
		{"::1", nil, "", "is not a unicast address that others can reach"},
		{"::ffff:127.0.0.1", nil, "", "127.0.0.1 is not a unicast address"},
		{"::127.0.0.1", nil, "", "an IPv4 address in an old form"},
		{"0.0.0.0", nil, "", "is not a unicast address"},
		{"0.1.2.3", nil, "", "this network"},
		{"::", nil, "", "is not a unicast address"},
		{"169.254.169.254", nil, "", "is not a unicast address"},
		{"::ffff:169.254.169.254", nil, "", "is not a unicast address"},
		{"64:ff9b::169.254.169.254", nil, "", "behind a translator"},
		{"64:ff9b:1::a9fe:a9fe", nil, "", "behind a translator"},
		{"2002:a9fe:a9fe::1", nil, "", "behind a tunnel"},
		{"2001:0:1::1", nil, "", "behind a tunnel"},
		{"fd00:ec2::254", nil, "", "the metadata service"},
		{"100.100.100.200", nil, "", "the metadata service"},
		{"168.63.129.16", nil, "", "the metadata service"},
		{"fe80::1", nil, "", "is not a unicast address"},
		{"fe80::1%eth0", nil, "", "has a zone"},
		{"fd00:10::9%eth0", nil, "", "has a zone"},
		{"fec0::1", nil, "", "site-local"},
		{"224.0.0.1", nil, "", "is not a unicast address"},
		{"ff02::1", nil, "", "is not a unicast address"},
		{"255.255.255.255", nil, "", "is not a unicast address"},
		{"250.0.0.1", nil, "", "reserved"},
		{"192.168.7.1", nil, "", "192.168.7.1 is a node's"},
		{"::ffff:192.168.7.1", nil, "", "192.168.7.1 is a node's"},
		{"2001:db8::7", nil, "", "is a node's"},
		{"2001:0db8:0::0007", nil, "", "is a node's"},
		{"10.96.0.1", nil, "", "is the API server's"},
		{"10.96.0.9", nil, "", "is the API server's"},
	} {
		t.Run(row.text, func(t *testing.T) {
			address, err := allowed(row.text, row.networks, not)
			if row.want == "" {
				assert.ErrorContains(t, err, row.why)
				assert.False(t, address.IsValid())
				return
			}
			require.NoError(t, err)
			assert.Equal(t, row.want, address.String())
		})
	}
}

// FuzzAllowed: whatever a pod's status says, what is dialed is one plain address that isn't one of those that are never.
func FuzzAllowed(f *testing.F) {
	for _, seed := range []string{"10.1.2.3", "::ffff:127.0.0.1", "fe80::1%lo", "64:ff9b::7f00:1", "0.0.0.0", "[::1]", "1.2.3.4 ", "١.٢.٣.٤"} {
		f.Add(seed)
	}
	not := forbidden{}
	not.add("10.0.0.1", "a node's")
	f.Fuzz(func(t *testing.T, text string) {
		address, err := allowed(text, nil, not)
		if err != nil {
			assert.False(t, address.IsValid())
			return
		}
		again, err := netip.ParseAddr(address.String())
		require.NoError(t, err)
		assert.Equal(t, address, again)
		assert.False(t, address.Is4In6() || address.Zone() != "" || address.IsLoopback() || address.IsLinkLocalUnicast() || address.IsMulticast() ||
			address.IsUnspecified() || address == netip.MustParseAddr("10.0.0.1") || address.Is6() && address.As16()[0] == 0, text)
	})
}

func TestConfigValidate(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"nothing set", Config{}, ""},
		{"all set", Config{Disabled: true, Networks: []string{"10.244.0.0/16", "fd00::/8"}, Timeout: setting.DurationOf(1e9), PerMinute: 1, DialsPerSecond: 1, Schedule: ScheduleConfig{Interval: setting.DurationOf(1e10), Max: 5}}, ""},
		{"an address", Config{Networks: []string{"10.244.0.0"}}, `probes.networks: "10.244.0.0" is not a network; it must be an address and a length, such as 10.244.0.0/16 or fd00:10::/64`},
		{"a host's bits", Config{Networks: []string{"10.244.0.1/16"}}, `probes.networks: "10.244.0.1/16" is not a network; it must be an address and a length, such as 10.244.0.0/16 or fd00:10::/64`},
		{"timeout", Config{Timeout: setting.DurationOf(1e11)}, "probes.timeout: 1m40s is out of range; it must be between 100ms and 10s"},
		{"pace", Config{PerMinute: -1}, "probes.perMinute: -1 is out of range; it must be between 1 and 10000"},
		{"dials", Config{DialsPerSecond: 5000}, "probes.dialsPerSecond: 5000 is out of range; it must be between 1 and 1000"},
		{"interval", Config{Schedule: ScheduleConfig{Interval: setting.DurationOf(1)}}, "probes.schedule.interval: 1ns is out of range; it must be between 1s and 24h0m0s"},
		{"remembered", Config{Schedule: ScheduleConfig{Max: 1_000_000}}, "probes.schedule.max: 1000000 is out of range; it must be between 1 and 100000"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.cfg.Validate(p.At("probes"))
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.EqualError(t, p.Err(), row.want)
			}
		})
	}
}
