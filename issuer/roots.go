package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/setting"
)

// RootsConfig says where the mesh's trust anchors come from. Exactly one source must be set. All
// are read at start; a changed file or Secret takes effect with the next start.
type RootsConfig struct {
	// File is the path of a PEM file with the anchors, usually a mounted ConfigMap or Secret.
	// Recommended, because nobody who can influence the issuer can change it.
	File string `json:"file,omitempty"`
	// Secret is a Secret in Signet's namespace that holds the anchors as PEM.
	Secret *SecretKey `json:"secret,omitempty"`
	// FromIssuer trusts the self-signed CA certificate that the issuer's first answer names, and
	// keeps it in the ConfigMap signet-trust-anchors in Signet's namespace, which every replica and
	// every later start reads instead of asking again. Whoever controls the issuer at that moment
	// controls the mesh's trust: pin the anchors where you can.
	FromIssuer bool `json:"fromIssuer,omitempty"`
}

// SecretKey names one value of a Secret.
type SecretKey struct {
	// Name of the Secret.
	Name string `json:"name"`
	// Key within the Secret. Default ca.crt.
	Key string `json:"key,omitempty"`
}

// Validate reports what is wrong with c.
func (c RootsConfig) Validate(p setting.Problems) {
	n := 0
	for _, set := range []bool{c.File != "", c.Secret != nil, c.FromIssuer} {
		if set {
			n++
		}
	}
	if n != 1 {
		p.Addf("", "exactly one of file, secret and fromIssuer must be set; %d are", n)
	}
	if c.Secret != nil && c.Secret.Name == "" {
		p.Addf("secret.name", "must be set to the name of a Secret in Signet's namespace")
	}
}

// FirstUseConfigMap is where an anchor that was trusted on first use is kept.
const FirstUseConfigMap = "signet-trust-anchors"

// rootCertKey is the key that holds the anchors, the same as in istio-ca-root-cert.
const rootCertKey = "root-cert.pem"

// ErrNoAnchors says that the source holds nothing yet. It is worth asking again.
var ErrNoAnchors = errors.New("no trust anchors yet")

// LoadPinned reads the anchors that the operator pinned: a file, or a Secret in namespace. A Secret
// that doesn't exist yet gives an error that matches ErrNoAnchors.
func LoadPinned(ctx context.Context, reader client.Reader, namespace string, cfg RootsConfig) (Bundle, error) {
	if cfg.File != "" {
		text, err := os.ReadFile(cfg.File)
		if err != nil {
			return Bundle{}, fmt.Errorf("read trust anchors: %w", err)
		}
		bundle, err := ParseBundle(text)
		if err != nil {
			return Bundle{}, fmt.Errorf("trust anchors in file %s: %w", cfg.File, err)
		}
		return bundle, nil
	}
	key := cfg.Secret.Key
	if key == "" {
		key = "ca.crt"
	}
	name := types.NamespacedName{Namespace: namespace, Name: cfg.Secret.Name}
	var secret corev1.Secret
	if err := reader.Get(ctx, name, &secret); apierrors.IsNotFound(err) {
		return Bundle{}, fmt.Errorf("get Secret %s: not found: %w", name, ErrNoAnchors)
	} else if err != nil {
		return Bundle{}, fmt.Errorf("get Secret %s: %w", name, err)
	}
	text, ok := secret.Data[key]
	if !ok || len(text) == 0 {
		return Bundle{}, fmt.Errorf("secret %s has no key %s: %w", name, key, ErrNoAnchors)
	}
	bundle, err := ParseBundle(text)
	if err != nil {
		return Bundle{}, fmt.Errorf("trust anchors in Secret %s, key %s: %w", name, key, err)
	}
	return bundle, nil
}

// LoadFirstUse reads the anchor that was trusted on first use, by whichever replica. Where none was
// yet, the error matches ErrNoAnchors.
func LoadFirstUse(ctx context.Context, reader client.Reader, namespace string) (Bundle, error) {
	name := types.NamespacedName{Namespace: namespace, Name: FirstUseConfigMap}
	var stored corev1.ConfigMap
	if err := reader.Get(ctx, name, &stored); apierrors.IsNotFound(err) {
		return Bundle{}, fmt.Errorf("get ConfigMap %s: not found: %w", name, ErrNoAnchors)
	} else if err != nil {
		return Bundle{}, fmt.Errorf("get ConfigMap %s: %w", name, err)
	}
	bundle, err := ParseBundle([]byte(stored.Data[rootCertKey]))
	if err != nil {
		return Bundle{}, fmt.Errorf("trust anchors in ConfigMap %s, key %s: %w", name, rootCertKey, err)
	}
	return bundle, nil
}

// StoreFirstUse keeps root as the anchor trusted on first use. It only ever creates: when another
// replica was first, what that one stored is in force, and created is false.
func StoreFirstUse(ctx context.Context, c client.Client, reader client.Reader, namespace string, ref Ref, root *x509.Certificate) (bundle Bundle, created bool, err error) {
	bundle, err = NewBundle(root)
	if err != nil {
		return Bundle{}, false, err
	}
	err = c.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   namespace,
			Name:        FirstUseConfigMap,
			Labels:      map[string]string{"app.kubernetes.io/managed-by": "signet"},
			Annotations: map[string]string{"signet.dev/trusted-on-first-use": ref.String()},
		},
		Data: map[string]string{rootCertKey: bundle.PEM()},
	})
	switch {
	case apierrors.IsAlreadyExists(err):
		bundle, err = LoadFirstUse(ctx, reader, namespace)
		return bundle, false, err
	case err != nil:
		return Bundle{}, false, fmt.Errorf("create ConfigMap %s/%s: %w", namespace, FirstUseConfigMap, err)
	}
	return bundle, true, nil
}
