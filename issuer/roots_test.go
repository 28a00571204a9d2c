package issuer

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/stretchr/testify/assert"

	"github.com/signet-ca/signet/setting"
)

func TestRootsConfigValidate(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  RootsConfig
		want string // "" is right
	}{
		{"file", RootsConfig{File: "roots.pem"}, ""},
		{"secret", RootsConfig{Secret: &ObjectKey{Name: "roots"}}, ""},
		{"secret and key", RootsConfig{Secret: &ObjectKey{Name: "roots", Key: "tls.crt"}}, ""},
		{"first use", RootsConfig{FromIssuer: true}, ""},
		{"several", RootsConfig{File: "f", Secret: &ObjectKey{Name: "s"}, ConfigMap: &ObjectKey{Name: "c"}, FromIssuer: true}, ""},
		{"none", RootsConfig{}, "roots: at least one of file, secret, configMap and fromIssuer must be set"},
		{"only federated", RootsConfig{Federated: []FederatedConfig{{TrustDomain: "other.example", File: "f"}}}, "roots: at least one of file, secret, configMap and fromIssuer must be set"},
		{"federated with itself", RootsConfig{File: "f", Federated: []FederatedConfig{{TrustDomain: "cluster.local", File: "f"}}}, `roots.federated[0].trustDomain: "cluster.local" is the mesh's own trust domain`},
		{"nameless ConfigMap", RootsConfig{ConfigMap: &ObjectKey{}}, "roots.configMap.name: must be set to the name of a ConfigMap in Signet's namespace"},
		{"nameless secret", RootsConfig{Secret: &ObjectKey{Key: "ca.crt"}}, "roots.secret.name: must be set to the name of a Secret in Signet's namespace"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := setting.NewProblems()
			row.cfg.Validate(p.At("roots"), spiffeid.RequireTrustDomainFromString("cluster.local"))
			if row.want == "" {
				assert.NoError(t, p.Err())
			} else {
				assert.EqualError(t, p.Err(), row.want)
			}
		})
	}
}
