package meshclient

import (
	"crypto"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// SidecarCSR makes a new key and the request that Istio's Go agent sends for it: a subject with one
// empty organization and a critical SAN with one URI (R30). The agent uses RSA2048, P256 or P384; any
// kind is accepted. The request is PEM.
func SidecarCSR(id spiffeid.ID, kind KeyType) (crypto.Signer, string, error) {
	return profileCSR("sidecar", kind, Template{
		Subject:    EmptyOrganization(),
		Extensions: []Extension{SAN(true, URIName(id.String()))},
	})
}

// ZtunnelCSR makes a new P-256 key and the request that ztunnel sends for it: an empty subject and a
// critical SAN with one URI. The request is PEM.
func ZtunnelCSR(id spiffeid.ID) (crypto.Signer, string, error) {
	return profileCSR("ztunnel", P256, Template{
		Extensions: []Extension{SAN(true, URIName(id.String()))},
	})
}

// OldZtunnelCSR is [ZtunnelCSR] of older releases such as 1.23, whose SAN is not critical (R30).
func OldZtunnelCSR(id spiffeid.ID) (crypto.Signer, string, error) {
	return profileCSR("old ztunnel", P256, Template{
		Extensions: []Extension{SAN(false, URIName(id.String()))},
	})
}

// AgentgatewayCSR makes a new P-256 key and a request such as agentgateway sends for it: an empty
// subject and one URI. The SAN is not critical here, the form that is easier to get wrong; a server
// accepts both (R30). The request is PEM.
func AgentgatewayCSR(id spiffeid.ID) (crypto.Signer, string, error) {
	return profileCSR("agentgateway", P256, Template{
		Extensions: []Extension{SAN(false, URIName(id.String()))},
	})
}

func profileCSR(name string, kind KeyType, t Template) (crypto.Signer, string, error) {
	key, err := NewKey(kind)
	if err != nil {
		return nil, "", fmt.Errorf("make %s request: %w", name, err)
	}
	t.Key = key
	der, err := BuildCSR(t)
	if err != nil {
		return nil, "", fmt.Errorf("make %s request: %w", name, err)
	}
	return key, EncodeCSR(der), nil
}
