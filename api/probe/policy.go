package probe

import (
	"fmt"
	"net/netip"
	"slices"
)

// never are networks that no pod has, or that lead elsewhere than they say. What netip tells by itself (loopback,
// link-local, multicast, unspecified) isn't repeated.
var never = []struct {
	network netip.Prefix
	what    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network (RFC 1122)"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved (RFC 1112), or a broadcast"},
	{netip.MustParsePrefix("::/96"), "an IPv4 address in an old form (RFC 4291)"},
	{netip.MustParsePrefix("64:ff9b::/96"), "an IPv4 address behind a translator (RFC 6052)"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "an IPv4 address behind a translator (RFC 8215)"},
	{netip.MustParsePrefix("2001::/32"), "an IPv4 address behind a tunnel (RFC 4380)"},
	{netip.MustParsePrefix("2002::/16"), "an IPv4 address behind a tunnel (RFC 3056)"},
	{netip.MustParsePrefix("fec0::/10"), "site-local (RFC 3879)"},
	// Where clouds answer questions of machines for credentials, besides 169.254.169.254, which is link-local.
	{netip.MustParsePrefix("fd00:ec2::/32"), "the metadata service of a cloud"},
	{netip.MustParsePrefix("fd20:ce::/32"), "the metadata service of a cloud"},
	{netip.MustParsePrefix("100.100.100.200/32"), "the metadata service of a cloud"},
	{netip.MustParsePrefix("168.63.129.16/32"), "the metadata service of a cloud"},
	{netip.MustParsePrefix("192.0.0.192/32"), "the metadata service of a cloud"},
}

// forbidden are addresses of the cluster that aren't pods', and why. Immutable.
type forbidden map[netip.Addr]string

// allowed is a pod's address in the form in which it is dialed, or why it isn't: the text is one of the API server's own
// or of whoever could write a pod's status, and must be an address of a pod, not of a node, the API server or of anything
// that only Signet reaches. Networks, where there are any, are the only ones that are dialed.
func allowed(text string, networks []netip.Prefix, not forbidden) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%.64q is not an IP address", text)
	}
	if address.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%s has a zone", address)
	}
	if address = address.Unmap(); !address.IsGlobalUnicast() { // neither loopback, link-local, multicast nor unspecified
		return netip.Addr{}, fmt.Errorf("%s is not a unicast address that others can reach", address)
	}
	for _, n := range never {
		if n.network.Contains(address) {
			return netip.Addr{}, fmt.Errorf("%s is %s", address, n.what)
		}
	}
	if what, found := not[address]; found {
		return netip.Addr{}, fmt.Errorf("%s is %s", address, what)
	}
	if len(networks) > 0 && !slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(address) }) {
		return netip.Addr{}, fmt.Errorf("%s is in none of probes.networks", address)
	}
	return address, nil
}
