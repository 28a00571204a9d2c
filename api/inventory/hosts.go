package inventory

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/signet-ca/signet/api"
)

// Kinds of names, as in [api.Certificate].
const (
	dnsSAN   = "DNS:"
	ipSAN    = "IP:"
	emailSAN = "email:"
)

// normalHost is a host or a DNS name as it is compared (RFC 6125 §6.4.1).
func normalHost(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

// covers says whether one of a certificate's names, with their kind, is for a host. A host that begins with "*." stands
// for all below it; it is covered by the same wildcard.
//
// RFC 6125 §6.4.3: a wildcard is the whole left-most label of a name and stands for exactly one label. §6.4.4: the
// common name doesn't count.
func covers(sans []string, host string) bool {
	address, err := netip.ParseAddr(host)
	if err == nil {
		return slices.ContainsFunc(sans, func(san string) bool {
			ip, ok := strings.CutPrefix(san, ipSAN)
			if !ok {
				return false
			}
			has, err := netip.ParseAddr(ip)
			return err == nil && has.Unmap() == address.Unmap()
		})
	}
	_, parent, below := strings.Cut(host, ".")
	return slices.ContainsFunc(sans, func(san string) bool {
		name, ok := strings.CutPrefix(san, dnsSAN)
		if !ok {
			return false
		}
		name = normalHost(name)
		return name == host && name != anyHost || below && parent != "" && name == "*."+parent && !strings.HasPrefix(host, ".")
	})
}

// covered says whether one of a listener's certificates covers a host.
func covered(certificates []api.GatewayCertificate, host string) api.Covered {
	if host == anyHost || host == "" {
		return api.CoveredUnknown
	}
	known, partly := false, false
	for _, c := range certificates {
		partly = partly || c.From == "" || c.Unknown != ""
		if c.From == "" {
			continue
		}
		known = true
		if covers(c.SANs, host) {
			return api.CoveredYes
		}
	}
	if partly || !known {
		return api.CoveredUnknown
	}
	return api.CoveredNo
}
