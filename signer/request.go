package signer

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/signet-ca/signet/issuer"
)

// RequestLabel marks the CertificateRequests that are Signet's. Its value says what for: a workload,
// Signet's own serving certificate, or only to learn where an issuer leads to. The shared informer sees only
// objects that carry it.
const RequestLabel = "signet.dev/request"

// Values of RequestLabel.
const (
	ForWorkload = "workload"
	ForServing  = "serving"
	ForProbe    = "probe"
)

// IdentitiesAnnotation holds the SPIFFE ID of a workload's request. It has the name that istio-csr
// gave it, because approver policies rely on it.
const IdentitiesAnnotation = "istio.cert-manager.io/identities"

// ownAnnotations is how the names of our other annotations begin.
const ownAnnotations = "signet.dev/"

// ReplicaAnnotation holds the name of the replica that made the CertificateRequest.
const ReplicaAnnotation = "signet.dev/replica"

// Request is an authorised wish for one certificate. Whoever makes it vouches for it: the signature
// of the CSR was checked, its key is acceptable, and Names are the caller's.
type Request struct {
	// CSR is the parsed PKCS#10 request; its Raw bytes go to the issuer unchanged.
	CSR *x509.CertificateRequest
	// Names are exactly those that the certificate must carry.
	Names Names
	// Usages are exactly those that the certificate must have.
	Usages Usages
	// Lifetime is what is asked of the issuer. It is at least a second.
	Lifetime time.Duration
	// MaxLifetime is the longest lifetime that is accepted from the issuer.
	MaxLifetime time.Duration
	// Issuer is asked instead of the one in force, where it is set.
	Issuer issuer.Ref
	// For is the value of RequestLabel.
	For string
	// Annotations are put on the CertificateRequest. They don't distinguish requests.
	Annotations map[string]string
}

// issuer is whom the request is for, as the snapshot says.
func (r *Request) issuer(snapshot *issuer.Snapshot) issuer.Ref {
	switch {
	case r.Issuer.Name != "":
		return r.Issuer
	case r.For == ForServing:
		return snapshot.ServingRef()
	}
	return snapshot.Ref
}

// RequestRef names one CertificateRequest object.
type RequestRef struct {
	Name string
	UID  types.UID
}

// name is derived from everything that makes two requests the same, so that a retry meets the
// object of its first attempt, whichever replica it reaches. The lifetime is the one asked for: a
// clamp to the issuer's remaining life changes from second to second.
func (r *Request) name(ref issuer.Ref, attempt int) string {
	names, err := r.Names.der()
	if err != nil {
		names = nil // only names that can't be written as DER, which no issued leaf can match either
	}
	hash := sha256.New()
	for _, part := range [][]byte{
		[]byte(ref.Group), []byte(ref.Kind), []byte(ref.Name), []byte(r.For), names, r.CSR.Raw,
		binary.BigEndian.AppendUint64(nil, uint64(r.Lifetime)),
		fmt.Append(nil, r.Usages),
	} {
		// Each part with its length, so that no two lists of parts read alike.
		hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		hash.Write(part)
	}
	return fmt.Sprintf("signet-%s-%d", hex.EncodeToString(hash.Sum(nil)[:20]), attempt)
}

// certificateRequest is the object that asks cert-manager for this request.
func (r *Request) certificateRequest(namespace string, ref issuer.Ref, attempt int, lifetime time.Duration) *cmapi.CertificateRequest {
	return &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   namespace,
			Name:        r.name(ref, attempt),
			Labels:      map[string]string{RequestLabel: r.For},
			Annotations: maps.Clone(r.Annotations),
		},
		Spec: cmapi.CertificateRequestSpec{
			Duration:  &metav1.Duration{Duration: lifetime},
			IssuerRef: ref.Reference(),
			Request:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.CSR.Raw}),
			Usages:    r.Usages,
		},
	}
}

// differs says in what an object found under the name of want isn't ours, or "" where it is: made by
// us (where the API server recorded by whom), visible to our informer, and asking for the same.
func differs(found, want *cmapi.CertificateRequest, username string, longest time.Duration) string {
	switch {
	case found.Spec.Username != "" && found.Spec.Username != username:
		return fmt.Sprintf("it was made by %q", found.Spec.Username)
	case found.Labels[RequestLabel] != want.Labels[RequestLabel]:
		return "its label " + RequestLabel + " is not ours"
	case !bytes.Equal(found.Spec.Request, want.Spec.Request):
		return "its CSR is another"
	case issuerOf(found).Reference() != want.Spec.IssuerRef:
		return "its issuer is another"
	case found.Spec.IsCA:
		return "it asks for a CA certificate"
	case !slices.Equal(found.Spec.Usages, want.Spec.Usages):
		return "its usages are others"
	case found.Spec.Duration == nil || found.Spec.Duration.Duration <= 0 || found.Spec.Duration.Duration > longest:
		return "its duration is another"
	}
	return ""
}
