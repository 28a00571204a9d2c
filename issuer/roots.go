package issuer

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/client-go/rest"

	"github.com/signet-ca/signet/setting"
)

// RootsConfig says where the mesh's trust anchors come from. At least one of file, secret, configMap and fromIssuer
// must be set; several are merged. All are read again when they change, and what is new or missing then goes through
// the rollover: an anchor that a source doesn't name any more leaves only when no leaf needs it.
type RootsConfig struct {
	// File is the path of a PEM file with the anchors, usually a mounted ConfigMap or Secret.
	// Recommended, because nobody who can influence the issuer can change it. Optional.
	File string `json:"file,omitempty"`
	// Secret is a Secret in Signet's namespace that holds the anchors as PEM; its key is ca.crt by default.
	Secret *ObjectKey `json:"secret,omitempty"`
	// ConfigMap is a ConfigMap in Signet's namespace that holds the anchors as PEM, such as the target of a
	// trust-manager Bundle; its key is ca.crt by default.
	ConfigMap *ObjectKey `json:"configMap,omitempty"`
	// FromIssuer trusts the self-signed CA certificate that the first answer of each configured issuer names, and
	// keeps it in the ConfigMap signet-trust-anchors in Signet's namespace, which every replica and
	// every later start reads instead of asking again. Whoever controls the issuer at that moment
	// controls the mesh's trust: pin the anchors where you can. Default false.
	FromIssuer bool `json:"fromIssuer,omitempty"`
	// Federated are other trust domains whose workloads the mesh trusts. Optional.
	Federated []FederatedConfig `json:"federated,omitempty"`
}

// ObjectKey names one value of a Secret or a ConfigMap in Signet's namespace.
type ObjectKey struct {
	// Name of the object. Required.
	Name string `json:"name"`
	// Key within the object. Default as said where the object is named.
	Key string `json:"key,omitempty"`
}

// KeyOr is the key within the object, or fallback where none was set.
func (k ObjectKey) KeyOr(fallback string) string { return cmp.Or(k.Key, fallback) }

// Validate reports what is wrong with c. Own is the mesh's trust domain.
func (c RootsConfig) Validate(p setting.Problems, own spiffeid.TrustDomain) {
	if c.File == "" && c.Secret == nil && c.ConfigMap == nil && !c.FromIssuer {
		p.Addf("", "at least one of file, secret, configMap and fromIssuer must be set")
	}
	if c.Secret != nil && c.Secret.Name == "" {
		p.Addf("secret.name", "must be set to the name of a Secret in Signet's namespace")
	}
	if c.ConfigMap != nil && c.ConfigMap.Name == "" {
		p.Addf("configMap.name", "must be set to the name of a ConfigMap in Signet's namespace")
	}
	for n, federated := range c.Federated {
		federated.Validate(p.At(fmt.Sprintf("federated[%d]", n)), own)
	}
}

// caKey is the key of anchors in objects that others make, as cert-manager names it.
const caKey = "ca.crt"

// rootCertKey is the key that holds the anchors, the same as in istio-ca-root-cert.
const rootCertKey = "root-cert.pem"

// ErrNoAnchors says that a source holds nothing yet. It is worth asking again.
var ErrNoAnchors = errors.New("no trust anchors yet")

// Sources are the configured sources of the mesh's own anchors, and those of the federated trust domains.
func (c RootsConfig) Sources(config *rest.Config, namespace string, log *slog.Logger) (own, federated []Source, err error) {
	if c.File != "" {
		own = append(own, NewFileSource(c.File, log))
	}
	if c.Secret != nil {
		source, err := NewSecretSource(config, namespace, c.Secret.Name, c.Secret.KeyOr(caKey), log)
		if err != nil {
			return nil, nil, err
		}
		own = append(own, source)
	}
	if c.ConfigMap != nil {
		source, err := NewConfigMapSource(config, namespace, c.ConfigMap.Name, c.ConfigMap.KeyOr(caKey), log)
		if err != nil {
			return nil, nil, err
		}
		own = append(own, source)
	}
	for _, other := range c.Federated {
		source, err := NewFederatedSource(other, log)
		if err != nil {
			return nil, nil, err
		}
		federated = append(federated, source)
	}
	return own, federated, nil
}
