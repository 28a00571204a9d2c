package ledger

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Source is how a record was learnt.
type Source string

const (
	// Own says that the replica issued the certificate itself and wrote the record before it left.
	Own Source = "own"
	// Observed says that the replica saw the certificate in the cluster; who asked for it, and from
	// where, is known only as far as the request said so.
	Observed Source = "observed"
)

// Issuance is the record of one certificate. Its key is IssuerKeyID and SerialNumber. Texts may be
// empty where something isn't known; they are kept as valid UTF-8 without NUL, at most 2048 bytes.
type Issuance struct {
	// Sequence is the record's place in the database it was read from, 1 or more; it counts up, with
	// gaps. Not read by Record.
	Sequence int64

	// IssuerKeyID is the leaf's authority key identifier, or the SHA-256 of its issuer's SPKI where it
	// has none; lower-case hex.
	IssuerKeyID string
	// SerialNumber is lower-case hex of whole bytes, without leading zero bytes.
	SerialNumber string
	// SHA256 and SPKISHA256 are those of the certificate and of its public key; lower-case hex.
	SHA256, SPKISHA256 string
	// DER is the certificate itself. Only [View.Certificate] reads it back.
	DER []byte

	// RecordedAt is when the record was made; Record takes the present where it is zero.
	RecordedAt time.Time
	// NotBefore and NotAfter are the certificate's validity, the last second included.
	NotBefore, NotAfter time.Time
	// RequestedLifetime is what was asked for, 0 where that isn't known; see Lifetime for what was given.
	RequestedLifetime time.Duration

	// Identity is the SPIFFE ID, "" for a certificate that has none.
	Identity string
	// TrustDomain, Namespace and ServiceAccount are what Identity is made of.
	TrustDomain, Namespace, ServiceAccount string
	// ServiceAccountUID is that of the service account which asked.
	ServiceAccountUID string
	// SANs are the certificate's names, as text: URIs, DNS names, IP addresses, mail addresses. At most
	// 100 are kept.
	SANs []string

	// KeyAlgorithm is ECDSA, RSA or Ed25519, and KeyBits the key's size.
	KeyAlgorithm string
	KeyBits      int
	// SignatureAlgorithm is the issuer's, such as ECDSA-SHA256.
	SignatureAlgorithm string

	// Issuer is kind.group/name of the cert-manager issuer.
	Issuer string
	// RootSHA256, lower-case hex, and RootSubject are those of the anchor at which the chain ends.
	RootSHA256, RootSubject string

	// Pod, PodUID and Node are the caller's, as proven by its credential.
	Pod, PodUID, Node string
	// Credential tells one token of a service account from another; it is no secret.
	Credential string
	// Cluster is the ID of the caller's cluster, and Peer its IP address.
	Cluster, Peer string
	// Impersonated says that a node's proxy asked for a pod beside it.
	Impersonated bool

	// RequestName and RequestUID are the CertificateRequest's.
	RequestName, RequestUID string
	// Replica issued the certificate, as far as that is known; else it wrote the record. Record fills its own name in
	// where it is "".
	Replica string
	// Source is how it learnt of the certificate; Record takes Own where it is "".
	Source Source
	// ProvenAt is when the caller last proved who it is by something else than the certificate that it renewed. Zero is
	// RecordedAt.
	ProvenAt time.Time
	// Delivered says that the certificate is known to have reached the caller. False says nothing.
	Delivered bool
}

// NewIssuance is the record of leaf as far as the certificates tell it. issuer signed leaf; it may be
// nil where leaf has an authority key identifier.
func NewIssuance(leaf, issuer *x509.Certificate) (Issuance, error) {
	i := Issuance{
		SerialNumber:       hex.EncodeToString(leaf.SerialNumber.Bytes()),
		SHA256:             hexSHA256(leaf.Raw),
		SPKISHA256:         hexSHA256(leaf.RawSubjectPublicKeyInfo),
		DER:                leaf.Raw,
		NotBefore:          leaf.NotBefore,
		NotAfter:           leaf.NotAfter,
		SignatureAlgorithm: leaf.SignatureAlgorithm.String(),
	}
	if i.SerialNumber == "" {
		i.SerialNumber = "00" // not positive, against RFC 5280 §4.1.2.2, but a number
	}
	switch {
	case len(leaf.AuthorityKeyId) != 0:
		i.IssuerKeyID = hex.EncodeToString(leaf.AuthorityKeyId)
	case issuer != nil:
		i.IssuerKeyID = hexSHA256(issuer.RawSubjectPublicKeyInfo)
	default:
		return Issuance{}, errors.New("the certificate has no authority key identifier, and its issuer isn't known")
	}
	switch key := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		i.KeyAlgorithm, i.KeyBits = "ECDSA", key.Curve.Params().BitSize
	case *rsa.PublicKey:
		i.KeyAlgorithm, i.KeyBits = "RSA", key.N.BitLen()
	case ed25519.PublicKey:
		i.KeyAlgorithm, i.KeyBits = "Ed25519", 256
	}
	for _, uri := range leaf.URIs {
		i.SANs = append(i.SANs, uri.String())
		if uri.Scheme == "spiffe" && i.Identity == "" { // X509-SVID §2: there is one
			i.Identity, i.TrustDomain = uri.String(), uri.Host
			if parts := strings.Split(uri.Path, "/"); len(parts) == 5 && parts[1] == "ns" && parts[3] == "sa" {
				i.Namespace, i.ServiceAccount = parts[2], parts[4]
			}
		}
	}
	i.SANs = append(i.SANs, leaf.DNSNames...)
	for _, address := range leaf.IPAddresses {
		i.SANs = append(i.SANs, address.String())
	}
	i.SANs = append(i.SANs, leaf.EmailAddresses...)
	return i, nil
}

// Lifetime is how long the certificate was issued for.
func (i *Issuance) Lifetime() time.Duration { return i.NotAfter.Sub(i.NotBefore) }

// Holder is who keeps the certificate: the node for what its proxy asked for, else the pod, else the
// address that asked; "" where none is known. The next certificate for the same identity and holder
// supersedes this one.
func (i *Issuance) Holder() string {
	switch {
	case i.Impersonated && i.Node != "":
		return "node/" + i.Node
	case i.PodUID != "":
		return "pod/" + i.PodUID
	case i.Peer != "":
		return "address/" + i.Peer
	}
	return ""
}

// holding is the identity and the holder in 16 bytes. Certificates without an identity are held by
// their names.
func (i *Issuance) holding() []byte {
	whose := i.Identity
	if whose == "" {
		whose = strings.Join(i.SANs, " ")
	}
	sum := sha256.Sum256([]byte(whose + "\x00" + i.Holder()))
	return sum[:16]
}

// kind is a column's type.
type kind int

const (
	numbers kind = iota // BIGINT
	texts               // TEXT
	blobs               // BLOB or BYTEA
)

// column is one of the issuance table.
type column struct {
	name string
	kind kind
}

// columns are those of the issuance table but seq, in the order of row.values.
var columns = []column{
	{"issuer_key_id", blobs}, {"serial", blobs}, {"certificate_sha256", blobs}, {"spki_sha256", blobs}, {"holding", blobs},
	{"recorded_at", numbers}, {"not_before", numbers}, {"not_after", numbers}, {"requested_lifetime", numbers},
	{"identity", texts}, {"trust_domain", texts}, {"namespace", texts}, {"service_account", texts}, {"service_account_uid", texts}, {"sans", texts},
	{"key_algorithm", texts}, {"key_bits", numbers}, {"signature_algorithm", texts},
	{"issuer", texts}, {"root_sha256", blobs}, {"root_subject", texts},
	{"pod", texts}, {"pod_uid", texts}, {"node", texts}, {"credential", texts}, {"cluster", texts}, {"peer", texts}, {"impersonated", numbers},
	{"request_name", texts}, {"request_uid", texts}, {"replica", texts}, {"source", texts}, {"delivered", numbers}, {"proven_at", numbers},
	{"der", blobs},
}

// columnNames are the names of columns, with a prefix before each.
func columnNames(prefix string, columns []column) string {
	names := make([]string, len(columns))
	for n, c := range columns {
		names[n] = prefix + c.name
	}
	return strings.Join(names, ", ")
}

// row is an Issuance as the database has it. Its order is that of columns.
type row struct {
	seq                                                int64
	issuerKeyID, serial, certificateSHA, spki, holding []byte
	recordedAt, notBefore, notAfter, requested         int64
	sans                                               string // JSON list, "" for the identity alone
	keyBits                                            int64
	root                                               []byte
	impersonated, delivered, provenAt                  int64
	source                                             string
	issuance                                           Issuance // the texts that are kept as they are, and DER
}

// targets are where Scan puts seq, and each column.
func (r *row) targets() []any {
	i := &r.issuance
	return []any{
		&r.seq,
		&r.issuerKeyID, &r.serial, &r.certificateSHA, &r.spki, &r.holding,
		&r.recordedAt, &r.notBefore, &r.notAfter, &r.requested,
		&i.Identity, &i.TrustDomain, &i.Namespace, &i.ServiceAccount, &i.ServiceAccountUID, &r.sans,
		&i.KeyAlgorithm, &r.keyBits, &i.SignatureAlgorithm,
		&i.Issuer, &r.root, &i.RootSubject,
		&i.Pod, &i.PodUID, &i.Node, &i.Credential, &i.Cluster, &i.Peer, &r.impersonated,
		&i.RequestName, &i.RequestUID, &i.Replica, &r.source, &r.delivered, &r.provenAt,
		&i.DER,
	}
}

// values are what is written into each column.
func (r *row) values() []any {
	i := &r.issuance
	return []any{
		r.issuerKeyID, r.serial, r.certificateSHA, r.spki, r.holding,
		r.recordedAt, r.notBefore, r.notAfter, r.requested,
		i.Identity, i.TrustDomain, i.Namespace, i.ServiceAccount, i.ServiceAccountUID, r.sans,
		i.KeyAlgorithm, r.keyBits, i.SignatureAlgorithm,
		i.Issuer, r.root, i.RootSubject,
		i.Pod, i.PodUID, i.Node, i.Credential, i.Cluster, i.Peer, r.impersonated,
		i.RequestName, i.RequestUID, i.Replica, r.source, r.delivered, r.provenAt,
		i.DER,
	}
}

// own says that the replica issued the certificate itself.
func (r *row) own() bool { return r.source == string(Own) }

// newRow checks and encodes an Issuance. The error is that of a caller's mistake.
func newRow(i Issuance, replica string, now time.Time) (*row, error) {
	r := &row{issuance: i}
	if i.RecordedAt.IsZero() {
		i.RecordedAt = now
	}
	var errs []error
	unhex := func(name, value string) []byte {
		b, err := hex.DecodeString(value)
		if err != nil || len(b) == 0 && name != "" {
			errs = append(errs, fmt.Errorf("%s %q is not hex", name, value))
		}
		if b == nil {
			b = []byte{}
		}
		return b
	}
	r.issuerKeyID, r.serial = unhex("issuer key ID", i.IssuerKeyID), unhex("serial number", i.SerialNumber)
	r.certificateSHA, r.spki, r.root = unhex("certificate SHA-256", i.SHA256), unhex("", i.SPKISHA256), unhex("", i.RootSHA256)
	if i.NotAfter.IsZero() || len(i.DER) == 0 {
		errs = append(errs, errors.New("the validity or the certificate is missing"))
	}
	if i.Source == "" {
		i.Source = Own
	}
	if i.Source != Own && i.Source != Observed {
		errs = append(errs, fmt.Errorf("%q is not a source", i.Source))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("record of certificate %s: %w", i.SHA256, err)
	}

	c := &r.issuance
	for _, field := range []*string{
		&c.Identity, &c.TrustDomain, &c.Namespace, &c.ServiceAccount, &c.ServiceAccountUID, &c.KeyAlgorithm, &c.SignatureAlgorithm, &c.Issuer,
		&c.RootSubject, &c.Pod, &c.PodUID, &c.Node, &c.Credential, &c.Cluster, &c.Peer, &c.RequestName, &c.RequestUID, &c.Replica,
	} {
		*field = clean(*field)
	}
	if c.Replica == "" {
		c.Replica = replica
	}
	c.SANs = nil
	for _, san := range i.SANs[:min(len(i.SANs), maxSANs)] {
		c.SANs = append(c.SANs, clean(san))
	}
	if len(c.SANs) != 1 || c.SANs[0] != c.Identity {
		sans, err := json.Marshal(c.SANs)
		if err != nil {
			return nil, fmt.Errorf("encode names: %w", err)
		}
		r.sans = string(sans)
	}
	r.holding = c.holding()
	r.recordedAt, r.notBefore, r.notAfter = i.RecordedAt.Unix(), i.NotBefore.Unix(), i.NotAfter.Unix()
	r.requested, r.keyBits, r.source = int64(i.RequestedLifetime/time.Second), int64(i.KeyBits), string(i.Source)
	if !i.ProvenAt.IsZero() {
		r.provenAt = i.ProvenAt.Unix()
	}
	if i.Impersonated {
		r.impersonated = 1
	}
	if i.Delivered {
		r.delivered = 1
	}
	return r, nil
}

// moreSANs are the names besides the identity, which are looked up in a table of their own.
func (r *row) moreSANs() []string {
	var more []string
	for _, san := range r.issuance.SANs {
		if san != r.issuance.Identity {
			more = append(more, san)
		}
	}
	return more
}

// readSANs fills in the names of a row that was read.
func (r *row) readSANs() error {
	if r.sans == "" {
		r.issuance.SANs = []string{r.issuance.Identity}
		return nil
	}
	if err := json.Unmarshal([]byte(r.sans), &r.issuance.SANs); err != nil {
		return fmt.Errorf("names of record %d: %w", r.seq, err)
	}
	return nil
}

// decode is the record.
func (r *row) decode() Issuance {
	i := r.issuance
	i.Sequence = r.seq
	i.IssuerKeyID, i.SerialNumber = hex.EncodeToString(r.issuerKeyID), hex.EncodeToString(r.serial)
	i.SHA256, i.SPKISHA256, i.RootSHA256 = hex.EncodeToString(r.certificateSHA), hex.EncodeToString(r.spki), hex.EncodeToString(r.root)
	i.RecordedAt, i.NotBefore, i.NotAfter = unix(r.recordedAt), unix(r.notBefore), unix(r.notAfter)
	i.RequestedLifetime, i.KeyBits, i.Source = time.Duration(r.requested)*time.Second, int(r.keyBits), Source(r.source)
	i.Impersonated, i.Delivered = r.impersonated != 0, r.delivered != 0
	if r.provenAt != 0 {
		i.ProvenAt = unix(r.provenAt)
	}
	return i
}

const (
	maxSANs = 100
	maxText = 2048
)

// clean makes s a text that both databases take: valid UTF-8 without NUL, of bounded length.
func clean(s string) string {
	if plain(s) {
		return s
	}
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText-3], "") + "…"
	}
	return s
}

// plain says whether clean would leave s as it is.
func plain(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && !strings.Contains(s, "\x00")
}

func unix(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
