package controlplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// issuerTimeout is how long cert-manager may take for each object of a CA.
const issuerTimeout = 3 * time.Minute

// CAOptions says what kind of CA it shall be. The zero value is an ECDSA P-256 root that signs
// leaves itself.
type CAOptions struct {
	// RSA makes the keys RSA of 2048 bits.
	RSA bool

	// Lifetime is how long the root is valid. Cert-manager renews it, with the same key, when two
	// thirds have passed. Optional: the default is ten years.
	Lifetime time.Duration

	// Intermediate puts one CA between the root and the leaves.
	Intermediate bool

	// IntermediateLifetime is how long the intermediate is valid; renewed as the root is.
	// Optional: the default is half of Lifetime.
	IntermediateLifetime time.Duration
}

// BootstrapCA has cert-manager make a CA in a namespace, waits until it is ready, and returns its
// root, PEM. The Issuer that signs leaves is called name; its certificate and key are in the
// Secret name, made by the Certificate name, which the Issuer name-selfsigned signs; or, with an
// intermediate, the Issuer name-root, whose own Certificate and Secret are name-root too. What is
// there already is used as it is.
//
// A ClusterIssuer can sign with the same CA if the namespace is "cert-manager", by the Secret.
func (p *Plane) BootstrapCA(ctx context.Context, namespace, name string, opts CAOptions) (rootPEM []byte, err error) {
	if opts.Lifetime == 0 {
		opts.Lifetime = 10 * 365 * 24 * time.Hour
	}
	if opts.IntermediateLifetime == 0 {
		opts.IntermediateLifetime = opts.Lifetime / 2
	}
	b := caBuilder{p, namespace, opts}
	root := name
	if opts.Intermediate {
		root = name + "-root"
	}
	if err := b.issuer(ctx, name+"-selfsigned", certmanager.IssuerConfig{SelfSigned: &certmanager.SelfSignedIssuer{}}); err != nil {
		return nil, err
	}
	if err := b.authority(ctx, root, name+"-selfsigned", opts.Lifetime); err != nil {
		return nil, err
	}
	if opts.Intermediate {
		if err := b.authority(ctx, name, root, opts.IntermediateLifetime); err != nil {
			return nil, err
		}
	}

	secret := &corev1.Secret{}
	if err := p.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: root}, secret); err != nil {
		return nil, fmt.Errorf("get Secret %s/%s: %w", namespace, root, err)
	}
	return secret.Data[corev1.TLSCertKey], nil
}

// A caBuilder makes the objects of one CA.
type caBuilder struct {
	plane     *Plane
	namespace string
	opts      CAOptions
}

// authority makes a CA certificate, signed by an Issuer, and the Issuer that signs with it, both
// called name.
func (b caBuilder) authority(ctx context.Context, name, signedBy string, lifetime time.Duration) error {
	key := &certmanager.CertificatePrivateKey{
		Algorithm:      certmanager.ECDSAKeyAlgorithm,
		Size:           256,
		RotationPolicy: certmanager.RotationPolicyNever,
	}
	if b.opts.RSA {
		key.Algorithm, key.Size = certmanager.RSAKeyAlgorithm, 2048
	}
	cert := &certmanager.Certificate{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: name},
		Spec: certmanager.CertificateSpec{
			IsCA:       true,
			CommonName: b.namespace + " " + name,
			SecretName: name,
			Duration:   &metav1.Duration{Duration: lifetime},
			PrivateKey: key,
			Usages:     []certmanager.KeyUsage{certmanager.UsageCertSign, certmanager.UsageCRLSign, certmanager.UsageDigitalSignature},
			IssuerRef:  cmmeta.IssuerReference{Name: signedBy},
		},
	}
	err := b.create(ctx, cert, func() (string, string) {
		for _, c := range cert.Status.Conditions {
			if c.Type == certmanager.CertificateConditionReady {
				return string(c.Status), c.Message
			}
		}
		return "", ""
	})
	if err != nil {
		return err
	}
	return b.issuer(ctx, name, certmanager.IssuerConfig{CA: &certmanager.CAIssuer{SecretName: name}})
}

func (b caBuilder) issuer(ctx context.Context, name string, cfg certmanager.IssuerConfig) error {
	issuer := &certmanager.Issuer{
		ObjectMeta: metav1.ObjectMeta{Namespace: b.namespace, Name: name},
		Spec:       certmanager.IssuerSpec{IssuerConfig: cfg},
	}
	return b.create(ctx, issuer, func() (string, string) {
		for _, c := range issuer.Status.Conditions {
			if c.Type == certmanager.IssuerConditionReady {
				return string(c.Status), c.Message
			}
		}
		return "", ""
	})
}

// create creates obj unless it is there, and waits until its condition Ready, which ready reads
// from obj, is True.
func (b caBuilder) create(ctx context.Context, obj client.Object, ready func() (status, message string)) error {
	if err := b.plane.createIfAbsent(ctx, obj); err != nil {
		return err
	}
	err := poll(ctx, issuerTimeout, func(ctx context.Context) error {
		if err := b.plane.client.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
			return err
		}
		switch status, message := ready(); status {
		case string(cmmeta.ConditionTrue):
			return nil
		case "":
			return errors.New("no condition Ready")
		default:
			return fmt.Errorf("condition Ready is %s: %s", status, message)
		}
	})
	if err != nil {
		return fmt.Errorf("wait for %T %s: %w", obj, client.ObjectKeyFromObject(obj), err)
	}
	return nil
}
