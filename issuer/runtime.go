package issuer

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/signet-ca/signet/setting"
)

// RuntimeConfig names the ConfigMap that says, while Signet runs, which issuer signs. It has the keys that
// istio-csr reads: issuer-name, issuer-kind (default Issuer) and issuer-group (default cert-manager.io).
type RuntimeConfig struct {
	// Name of the ConfigMap. Default none.
	Name string `json:"name,omitempty"`
	// Namespace of the ConfigMap. Default Signet's own.
	Namespace string `json:"namespace,omitempty"`
}

// Keys of the runtime ConfigMap.
const (
	keyIssuerName  = "issuer-name"
	keyIssuerKind  = "issuer-kind"
	keyIssuerGroup = "issuer-group"
)

// ParseRuntime reads the issuer from a runtime ConfigMap. Where it is nil there is none, and the static one holds.
func ParseRuntime(cm *corev1.ConfigMap) (ref Ref, found bool, err error) {
	if cm == nil {
		return Ref{}, false, nil
	}
	ref = Ref{
		Name:  strings.TrimSpace(cm.Data[keyIssuerName]),
		Kind:  strings.TrimSpace(cm.Data[keyIssuerKind]),
		Group: strings.TrimSpace(cm.Data[keyIssuerGroup]),
	}.WithDefaults()
	p := setting.NewProblems().At(fmt.Sprintf("ConfigMap %s/%s", cm.Namespace, cm.Name))
	if ref.Name == "" {
		p.Addf(keyIssuerName, "must be set to the name of a cert-manager issuer")
		return Ref{}, false, p.Err()
	}
	ref.Validate(p)
	if err := p.Err(); err != nil {
		return Ref{}, false, err
	}
	return ref, true, nil
}
