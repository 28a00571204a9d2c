package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"sync"
	"testing"
	"time"

	cmutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/signet-ca/signet/test/patiently"
	"github.com/signet-ca/signet/test/replica"
)

// authority is a CA whose key the test holds.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority makes one, signed by itself where parent is nil. It panics, because without a source
// of randomness there is no test.
func newAuthority(name string, parent *authority) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber:          serialNumber(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(10 * 365 * day),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a := &authority{key: key}
	signedBy := &authority{cert: template, key: key}
	if parent != nil {
		signedBy = parent
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, template, signedBy.cert, key.Public(), signedBy.key)
	if err != nil {
		panic(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		panic(err)
	}
	return a
}

func serialNumber() *big.Int {
	serial, err := cryptorand.Int(cryptorand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err)
	}
	return serial
}

func (a *authority) pem() []byte { return pemOf(a.cert.Raw) }

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// sign makes the certificate that cr asks for; change, where it isn't nil, changes it before.
func (a *authority) sign(cr *cmapi.CertificateRequest, change func(*x509.Certificate)) ([]byte, error) {
	block, _ := pem.Decode(cr.Spec.Request)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serialNumber(),
		NotBefore:             time.Now(),
		NotAfter:              time.Now().Add(cr.Spec.Duration.Duration),
		BasicConstraintsValid: true,
		ExtraExtensions:       csr.Extensions, // the names, byte for byte
	}
	for _, usage := range cr.Spec.Usages {
		if bit, ok := cmutil.KeyUsageType(usage); ok {
			template.KeyUsage |= bit
		}
		if extended, ok := cmutil.ExtKeyUsageType(usage); ok {
			template.ExtKeyUsage = append(template.ExtKeyUsage, extended)
		}
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, template, a.cert, csr.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return pemOf(der), nil
}

// handGroup is the API group of the issuer that answers by hand.
const handGroup = "test.signet.dev"

// hand is a Signet with an external issuer that signs Signet's own certificate by itself and leaves
// everything else to the test.
type hand struct {
	*stack
	ca *authority
}

// newHand starts one with further settings, and returns what ends it.
func newHand(ctx context.Context, settings map[string]any) (h *hand, stop func() error, err error) {
	h = &hand{ca: newAuthority("hand", nil)}
	h.stack = &stack{ns: "hand-" + rand.String(5), root: h.ca.pem(), trustDomain: "cluster.local"}
	if err := plane.Namespace(ctx, h.ns); err != nil {
		return nil, nil, err
	}
	h.config = replica.Config{Namespace: h.ns, RootPEM: h.root, Settings: base(settings)}
	h.config.Settings["issuer.group"], h.config.Settings["issuer.kind"] = handGroup, "Hand"

	signing, cancel := context.WithCancel(ctx)
	var signer sync.WaitGroup
	signer.Go(func() { h.signServing(signing) })
	started, err := replica.Start(ctx, plane, h.config)
	if err != nil {
		cancel()
		signer.Wait()
		return nil, nil, err
	}
	h.Replica = started
	return h, func() error {
		defer signer.Wait()
		defer cancel()
		return end(started)
	}, nil
}

// startHand is newHand for one test.
func startHand(t *testing.T, settings map[string]any) *hand {
	t.Helper()
	h, stop, err := newHand(context.WithoutCancel(t.Context()), settings)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, stop()) })
	return h
}

// slowStack has an issuer that takes its time, and a Signet that lets it.
var slowStack = sync.OnceValues(func() (*hand, error) {
	h, stop, err := newHand(context.Background(), map[string]any{"signer.timeout": "110s", "ca.requestTimeout": "120s"})
	if err != nil {
		return nil, err
	}
	onLeaving(stop)
	return h, nil
})

// slow is the Signet that waits for an answer by hand; parallel tests share it.
func slow(t *testing.T) *hand {
	t.Helper()
	h, err := slowStack()
	require.NoError(t, err)
	return h
}

// signServing answers requests for Signet's own certificate until ctx ends.
func (h *hand) signServing(ctx context.Context) {
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		var list cmapi.CertificateRequestList
		if plane.Client().List(ctx, &list, client.InNamespace(h.ns), client.MatchingLabels{"signet.dev/request": "serving"}) != nil {
			continue
		}
		for i := range list.Items {
			if len(list.Items[i].Status.Certificate) == 0 {
				_ = h.issue(ctx, &list.Items[i], nil) // tried again with the next tick
			}
		}
	}
}

// issue signs cr.
func (h *hand) issue(ctx context.Context, cr *cmapi.CertificateRequest, change func(*x509.Certificate)) error {
	text, err := h.ca.sign(cr, change)
	if err != nil {
		return err
	}
	return h.settle(ctx, cr, func(status *cmapi.CertificateRequestStatus) {
		status.Certificate, status.CA = text, h.root
		setCondition(status, cmapi.CertificateRequestConditionReady, cmapi.CertificateRequestReasonIssued)
	})
}

// settle writes the status of cr, whatever cert-manager's approver writes at the same time.
func (h *hand) settle(ctx context.Context, cr *cmapi.CertificateRequest, change func(*cmapi.CertificateRequestStatus)) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		var current cmapi.CertificateRequest
		if err := plane.Client().Get(ctx, client.ObjectKeyFromObject(cr), &current); err != nil {
			return err
		}
		change(&current.Status)
		return plane.Client().Status().Update(ctx, &current)
	})
}

// setCondition sets a condition: Ready is True only where the reason is Issued.
func setCondition(status *cmapi.CertificateRequestStatus, kind cmapi.CertificateRequestConditionType, reason string) {
	value := cmmeta.ConditionTrue
	if kind == cmapi.CertificateRequestConditionReady && reason != cmapi.CertificateRequestReasonIssued {
		value = cmmeta.ConditionFalse
	}
	for i, c := range status.Conditions {
		if c.Type == kind {
			status.Conditions = append(status.Conditions[:i], status.Conditions[i+1:]...)
			break
		}
	}
	status.Conditions = append(status.Conditions, cmapi.CertificateRequestCondition{
		Type: kind, Status: value, Reason: reason, Message: "by hand", LastTransitionTime: new(metav1.Now()), // or it is swept at once
	})
}

// request waits for the CertificateRequest that carries csr.
func (h *hand) request(t *testing.T, csr string) *cmapi.CertificateRequest {
	t.Helper()
	var found []cmapi.CertificateRequest
	patiently.Holds(t, func() bool {
		found = h.requestsFor(t, csr)
		return len(found) > 0
	}, "no CertificateRequest carries the request")
	require.Len(t, found, 1)
	return &found[0]
}

// answer signs the CertificateRequest that carries csr.
func (h *hand) answer(t *testing.T, csr string, change func(*x509.Certificate)) {
	t.Helper()
	require.NoError(t, h.issue(t.Context(), h.request(t, csr), change))
}
