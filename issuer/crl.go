package issuer

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// maxCRLBytes bounds the CRLs together: a ConfigMap holds 1 MiB.
const maxCRLBytes = 1 << 20

// CRLInfo is what a CRL says of itself.
type CRLInfo struct {
	// Issuer is the subject of the CA whose CRL it is.
	Issuer string
	// Number is the CRL number in hexadecimal, empty where it has none.
	Number string
	// ThisUpdate is when it was made, NextUpdate when the next one is made at the latest.
	ThisUpdate, NextUpdate time.Time
	// Revoked counts the certificates that it revokes.
	Revoked int
}

// CRLSet is what is in force of certificate revocation lists. It is immutable; the zero value is empty.
type CRLSet struct {
	lists   []crl
	pem     string
	remarks []string
}

// crl is a CRL with the CA that made it.
type crl struct {
	*x509.RevocationList
	ca      *x509.Certificate
	revoked map[string]bool // by serial number
}

// ParseCRLs reads the CRLs of cas, the CAs of all chains in force, from PEM. The text may hold only X509
// CRL blocks, at least one, each a whole CRL as RFC 5280 §5 has it, and white space or comment lines
// (beginning with '#') between them.
//
// Envoy demands of every chain a current CRL from each of its CAs once it has any CRL at all (R57), and
// refuses the connection otherwise. So the text is refused as a whole when one CRL isn't current at now,
// isn't signed by the CA that it names, or when a CA has none; CAs that have expired need none.
//
// A CRL of somebody who isn't among cas can't be verified. There is one whenever a CA comes or goes, so it
// is passed on while it is current, and remarked: proxies verify it themselves, and need it if they meet
// that CA after all.
func ParseCRLs(text []byte, cas []*x509.Certificate, now time.Time) (*CRLSet, error) {
	if len(text) > maxCRLBytes {
		return nil, fmt.Errorf("the CRLs have %d bytes; at most %d are allowed", len(text), maxCRLBytes)
	}
	blocks, err := pemBlocks(withoutComments(text), "X509 CRL", "X509 CRL")
	if err != nil {
		return nil, err
	}
	set := &CRLSet{}
	var given []*x509.RevocationList
	for i, der := range blocks {
		list, err := parseCRL(der)
		if err != nil {
			return nil, fmt.Errorf("CRL %d: %w", i+1, err)
		}
		ca, err := signerOf(list, cas)
		if err != nil {
			return nil, fmt.Errorf("CRL %d, of %q: %w", i+1, list.Issuer, err)
		}
		err = timely(list.ThisUpdate, list.NextUpdate, now)
		switch {
		case ca == nil && err != nil:
			set.remarks = append(set.remarks, fmt.Sprintf("CRL of %q, which is no CA of the mesh: left out, %v", list.Issuer, err))
			continue
		case ca == nil:
			set.remarks = append(set.remarks, fmt.Sprintf("CRL of %q, which is no CA of the mesh: passed on, not verified", list.Issuer))
			given = append(given, list)
			continue
		case err != nil:
			return nil, fmt.Errorf("CRL %d, of %q: %w", i+1, list.Issuer, err)
		}
		for _, other := range set.lists {
			if sameCA(other.ca, ca) {
				return nil, fmt.Errorf("CRL %d, of %q: it is the second one of this CA; there must be one", i+1, list.Issuer)
			}
		}
		revoked := make(map[string]bool, len(list.RevokedCertificateEntries))
		for _, entry := range list.RevokedCertificateEntries {
			revoked[entry.SerialNumber.Text(16)] = true
		}
		set.lists = append(set.lists, crl{list, ca, revoked})
		given = append(given, list)
	}
	if err := set.covers(cas, now); err != nil {
		return nil, err
	}
	// Replicas with the same CRLs must write the same bytes, whatever order their source has.
	order := func(a, b *x509.RevocationList) int {
		return cmp.Or(bytes.Compare(a.RawIssuer, b.RawIssuer), bytes.Compare(a.AuthorityKeyId, b.AuthorityKeyId), bytes.Compare(a.Raw, b.Raw))
	}
	slices.SortFunc(given, order)
	slices.SortFunc(set.lists, func(a, b crl) int { return order(a.RevocationList, b.RevocationList) })
	slices.Sort(set.remarks)
	var all bytes.Buffer
	for _, list := range given {
		if err := pem.Encode(&all, &pem.Block{Type: "X509 CRL", Bytes: list.Raw}); err != nil {
			return nil, err
		}
	}
	if all.Len() > maxCRLBytes { // lines may have been longer
		return nil, fmt.Errorf("the CRLs have %d bytes; at most %d are allowed", all.Len(), maxCRLBytes)
	}
	set.pem = all.String()
	return set, nil
}

var (
	oidIssuingDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidDeltaCRLIndicator        = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidCertificateIssuer        = asn1.ObjectIdentifier{2, 5, 29, 29}
)

// removeFromCRL is the reason that only delta CRLs know (RFC 5280 §5.3.1).
const removeFromCRL = 8

// parseCRL reads one CRL, and refuses what the mesh's proxies can't use.
func parseCRL(der []byte) (*x509.RevocationList, error) {
	if err := wholeCRL(der); err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(der) // version 2 only: RFC 5280 §5.1.2.1
	if err != nil {
		return nil, err
	}
	if list.NextUpdate.IsZero() {
		return nil, errors.New("it has no nextUpdate; RFC 5280 §5.1.2.5 demands it")
	}
	if !list.NextUpdate.After(list.ThisUpdate) {
		return nil, fmt.Errorf("its nextUpdate, %s, is not after its thisUpdate, %s", stamp(list.NextUpdate), stamp(list.ThisUpdate))
	}
	switch list.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return nil, fmt.Errorf("its signature algorithm, %s, is not safe any more", list.SignatureAlgorithm)
	}
	if err := noneCritical(list.Extensions); err != nil { // RFC 5280 §5.2
		return nil, err
	}
	for _, entry := range list.RevokedCertificateEntries {
		if err := noneCritical(entry.Extensions); err != nil { // RFC 5280 §5.3
			return nil, fmt.Errorf("entry of serial %s: %w", Serial(entry.SerialNumber), err)
		}
		if entry.ReasonCode == removeFromCRL {
			return nil, fmt.Errorf("entry of serial %s: it is removed; that is for delta CRLs only", Serial(entry.SerialNumber))
		}
	}
	return list, nil
}

// noneCritical refuses extensions that narrow what a CRL says, and those that nobody here knows.
func noneCritical(extensions []pkix.Extension) error {
	for _, extension := range extensions {
		switch {
		case extension.Id.Equal(oidDeltaCRLIndicator):
			return errors.New("it is a delta CRL; only complete ones can be used")
		case extension.Id.Equal(oidIssuingDistributionPoint):
			return errors.New("it has an issuing distribution point, so it need not be about all certificates of its CA")
		case extension.Id.Equal(oidCertificateIssuer):
			return errors.New("it is an indirect CRL; only the CA's own can be used")
		case extension.Critical:
			return fmt.Errorf("it has an unknown critical extension, %s", extension.Id)
		}
	}
	return nil
}

// wholeCRL refuses bytes behind the CRL, or behind its signature, which nobody signed.
func wholeCRL(der []byte) error {
	rest, list := cryptobyte.String(der), cryptobyte.String(nil)
	if !rest.ReadASN1(&list, cryptobyteasn1.SEQUENCE) {
		return errors.New("it is no CRL in DER")
	}
	// What is signed, the algorithm, the signature.
	for _, part := range []cryptobyteasn1.Tag{cryptobyteasn1.SEQUENCE, cryptobyteasn1.SEQUENCE, cryptobyteasn1.BIT_STRING} {
		if !list.SkipASN1(part) {
			return errors.New("it is no CRL in DER")
		}
	}
	if !rest.Empty() || !list.Empty() {
		return errors.New("there are bytes behind it that nobody signed")
	}
	return nil
}

// signerOf is the one of cas that made list, or nil where none has the name. A signature by another key
// than those of the CAs with that name is an error.
func signerOf(list *x509.RevocationList, cas []*x509.Certificate) (*x509.Certificate, error) {
	var failed error
	for _, ca := range cas {
		if !bytes.Equal(ca.RawSubject, list.RawIssuer) {
			continue
		}
		err := list.CheckSignatureFrom(ca) // and the CA may sign CRLs: RFC 5280 §6.3.3 (f)
		if err != nil {
			failed = fmt.Errorf("not signed by that CA: %w", err)
			if ca.KeyUsage != 0 && ca.KeyUsage&x509.KeyUsageCRLSign == 0 {
				failed = errors.New("that CA may not sign CRLs; its certificate lacks the key usage")
			}
			continue
		}
		// Proxies look for the CA by its key identifier too.
		if len(list.AuthorityKeyId) != 0 && len(ca.SubjectKeyId) != 0 && !bytes.Equal(list.AuthorityKeyId, ca.SubjectKeyId) {
			failed = fmt.Errorf("its authority key identifier is %x; the CA's is %x", list.AuthorityKeyId, ca.SubjectKeyId)
			continue
		}
		return ca, nil
	}
	return nil, failed
}

// timely says why a CRL isn't current at now, or ends so soon that proxies might still hold it then.
func timely(thisUpdate, nextUpdate, now time.Time) error {
	if now.Before(thisUpdate) {
		return fmt.Errorf("it is not valid before %s", stamp(thisUpdate))
	}
	if !now.Before(nextUpdate) {
		return fmt.Errorf("it has expired: the next one was due at %s", stamp(nextUpdate))
	}
	if margin := withdrawal(thisUpdate, nextUpdate); !now.Before(nextUpdate.Add(-margin)) {
		return fmt.Errorf("it expires in less than %s: the next one is due at %s", margin, stamp(nextUpdate))
	}
	return nil
}

// withdrawal is how long before its end a CRL is withdrawn: 5 minutes, in which kubelets bring the news to
// all proxies, or a tenth of its time if that is less.
func withdrawal(thisUpdate, nextUpdate time.Time) time.Duration {
	return min(5*time.Minute, nextUpdate.Sub(thisUpdate)/10)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// sameCA says whether two certificates are of one CA, as far as CRLs go: of one name and one key.
func sameCA(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubject, b.RawSubject) && bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// covers says which of cas, but for the expired, have no CRL in the set.
func (s *CRLSet) covers(cas []*x509.Certificate, now time.Time) error {
	var missing []string
	for _, ca := range cas {
		if now.After(ca.NotAfter) || slices.ContainsFunc(s.lists, func(list crl) bool { return sameCA(list.ca, ca) }) {
			continue
		}
		if name := fmt.Sprintf("%q (serial %s)", ca.Subject, Serial(ca.SerialNumber)); !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) != 0 {
		return fmt.Errorf("there is no CRL of %s; proxies want one of every CA or none", strings.Join(missing, ", "))
	}
	if len(s.lists) == 0 {
		return errors.New("there is no CRL of any CA of the mesh")
	}
	return nil
}

// usable says why the set may not, or not any more, be given to proxies.
func (s *CRLSet) usable(cas []*x509.Certificate, now time.Time) error {
	for _, list := range s.lists {
		if err := timely(list.ThisUpdate, list.NextUpdate, now); err != nil {
			return fmt.Errorf("CRL of %q: %w", list.Issuer, err)
		}
	}
	return s.covers(cas, now)
}

// withdrawn is the set with nothing to publish. What it revokes stays revoked.
func (s *CRLSet) withdrawn() *CRLSet { return &CRLSet{lists: s.lists, remarks: s.remarks} }

// PEM is the CRLs as proxies get them: X509 CRL blocks, each ending with a newline. It is empty while proxies must check nothing. Then the file that they read must be empty as well, and not
// gone: without the file Envoy goes on with what it has read before.
func (s *CRLSet) PEM() string { return s.pem }

// Lists says what the CRLs of the mesh's CAs say of themselves, in the order of the PEM.
func (s *CRLSet) Lists() []CRLInfo {
	var all []CRLInfo
	for _, list := range s.lists {
		info := CRLInfo{Issuer: list.Issuer.String(), ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate, Revoked: len(list.revoked)}
		if list.Number != nil {
			info.Number = list.Number.Text(16)
		}
		all = append(all, info)
	}
	return all
}

// Remarks says for people what is odd about CRLs of the source. The slice must not be changed.
func (s *CRLSet) Remarks() []string { return s.remarks }

// NextUpdate is when the first of the CRLs expires, zero where there is none.
func (s *CRLSet) NextUpdate() time.Time {
	var first time.Time
	for _, list := range s.lists {
		if first.IsZero() || list.NextUpdate.Before(first) {
			first = list.NextUpdate
		}
	}
	return first
}

// Revoked says whether cert is revoked by the CA that signed it, also by a CRL that has expired or was
// withdrawn: what has been revoked stays so. It says nothing of the CAs above; ask for each certificate
// of a chain. Safe for concurrent use.
func (s *CRLSet) Revoked(cert *x509.Certificate) bool {
	for _, list := range s.lists {
		if !bytes.Equal(list.RawIssuer, cert.RawIssuer) || !list.revoked[cert.SerialNumber.Text(16)] {
			continue
		}
		// Another CA of the same name may have given the same serial number.
		if list.ca.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil {
			return true
		}
	}
	return false
}
