package signer

import (
	"crypto/x509"
	"encoding/asn1"
	"slices"

	apiutil "github.com/cert-manager/cert-manager/pkg/api/util"
	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/signet-ca/signet/setting"
)

// Usages is what certificates may be used for, in the order in which CertificateRequests ask.
type Usages []cmapi.KeyUsage

// LeafUsages is what Istio's own CA gives workloads (R35).
func LeafUsages() Usages {
	return Usages{cmapi.UsageDigitalSignature, cmapi.UsageKeyEncipherment, cmapi.UsageClientAuth, cmapi.UsageServerAuth}
}

// ServingUsages is what a TLS server needs.
func ServingUsages() Usages {
	return Usages{cmapi.UsageDigitalSignature, cmapi.UsageKeyEncipherment, cmapi.UsageServerAuth}
}

// Validate reports usages that a workload's certificate may not have, and those it can't miss.
func (u Usages) Validate(p setting.Problems) {
	for i, usage := range u {
		if !slices.Contains(LeafUsages(), usage) {
			p.Addf("", "%q is not a usage of a workload's certificate; they are %q", usage, LeafUsages())
		}
		if slices.Contains(u[:i], usage) {
			p.Addf("", "%q stands twice; each usage must stand once", usage)
		}
	}
	for _, usage := range []cmapi.KeyUsage{cmapi.UsageClientAuth, cmapi.UsageServerAuth} {
		if len(u) != 0 && !slices.Contains(u, usage) {
			p.Addf("", "%q is missing; a workload's certificate is used for both ends of mutual TLS", usage)
		}
	}
}

// bits splits the usages as certificates carry them.
func (u Usages) bits() (x509.KeyUsage, []x509.ExtKeyUsage) {
	var keyUsage x509.KeyUsage
	var extended []x509.ExtKeyUsage
	for _, usage := range u {
		if bit, ok := apiutil.KeyUsageType(usage); ok {
			keyUsage |= bit
		} else if ext, ok := apiutil.ExtKeyUsageType(usage); ok {
			extended = append(extended, ext)
		}
	}
	return keyUsage, extended
}

// KeyUsage is the bits of the keyUsage extension; 0 where certificates don't have one.
func (u Usages) KeyUsage() x509.KeyUsage {
	keyUsage, _ := u.bits()
	return keyUsage
}

// MatchKeyUsage says whether value, of a keyUsage extension in DER, asks for exactly these usages.
func (u Usages) MatchKeyUsage(value []byte) bool {
	input := cryptobyte.String(value)
	var bits asn1.BitString
	if !input.ReadASN1BitString(&bits) || !input.Empty() {
		return false
	}
	var asked x509.KeyUsage
	for i := range bits.BitLength {
		if bits.At(i) != 0 {
			if i > 8 {
				return false
			}
			asked |= 1 << i
		}
	}
	keyUsage, _ := u.bits()
	return asked == keyUsage
}

// MatchExtKeyUsage says whether value, of an extendedKeyUsage extension in DER, asks for exactly
// these usages in this order, which is what cert-manager's webhook demands once it is present.
func (u Usages) MatchExtKeyUsage(value []byte) bool {
	input := cryptobyte.String(value)
	var sequence cryptobyte.String
	if !input.ReadASN1(&sequence, cbasn1.SEQUENCE) || !input.Empty() {
		return false
	}
	var asked []x509.ExtKeyUsage
	for !sequence.Empty() {
		var oid asn1.ObjectIdentifier
		if !sequence.ReadASN1ObjectIdentifier(&oid) {
			return false
		}
		usage, ok := extKeyUsageOf(oid)
		if !ok {
			return false
		}
		asked = append(asked, usage)
	}
	_, extended := u.bits()
	return slices.Equal(asked, extended)
}

// extKeyUsageOf knows the two usages that mesh certificates have (RFC 5280 §4.2.1.12).
func extKeyUsageOf(oid asn1.ObjectIdentifier) (x509.ExtKeyUsage, bool) {
	switch {
	case oid.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}):
		return x509.ExtKeyUsageServerAuth, true
	case oid.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}):
		return x509.ExtKeyUsageClientAuth, true
	}
	return 0, false
}
