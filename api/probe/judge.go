package probe

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/signet-ca/signet/api"
)

// verdicts from the best to the worst.
var verdicts = []api.ProbeVerdict{api.ProbeGood, api.ProbeNotDialed, api.ProbeUnreachable, api.ProbeUnsure, api.ProbeWarning, api.ProbeAlarm}

// worse is the worse of two.
func worse(a, b api.ProbeVerdict) api.ProbeVerdict {
	return verdicts[max(slices.Index(verdicts, a), slices.Index(verdicts, b), 0)]
}

// found adds a finding, and makes the verdict of the result at least as bad.
func found(r *api.ProbeResult, code api.ProbeCode, verdict api.ProbeVerdict, format string, args ...any) {
	r.Findings = append(r.Findings, api.ProbeFinding{Code: code, Verdict: verdict, Detail: fmt.Sprintf(format, args...)})
	r.Verdict = worse(r.Verdict, verdict)
}

const (
	// settling is how young a certificate may be that isn't in the records here yet: another replica's take a moment.
	settling = 2 * time.Minute
	// skew is how far clocks may differ, and backdating how long before its issuance an issuer lets a certificate begin.
	skew       = 5 * time.Minute
	backdating = time.Hour
)

// judged says what is to be said of what a pod showed, compared with what is known.
func (p *Prober) judged(ctx context.Context, r *api.ProbeResult, pod *api.Pod, s *seen, visible api.Visible, now time.Time) {
	leaf := s.chain[0]
	for _, certificate := range s.chain[:min(len(s.chain), maxChain)] {
		r.Chain = append(r.Chain, served(certificate, now))
	}
	mesh := meshProtocol(r.Protocol)
	switch {
	case now.After(leaf.NotAfter): // RFC 5280 §4.1.2.5: the last second is included
		found(r, api.FoundExpired, api.ProbeAlarm, "the certificate ended at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Add(skew).Before(leaf.NotBefore):
		found(r, api.FoundNotYetValid, api.ProbeAlarm, "the certificate begins at %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	p.judgeNames(r, pod, leaf, mesh)
	if mesh && (s.clientCert == api.ClientCertNone || s.clientCert == api.ClientCertRequested) {
		found(r, api.FoundNoClientCert, api.ProbeWarning, "it lets in who shows no certificate, so it doesn't know who asks")
	}

	anchors := p.anchors()
	if anchors == nil {
		found(r, api.FoundUnknown, api.ProbeUnsure, "the mesh's anchors aren't known yet")
	}
	var root *x509.Certificate
	if anchors != nil {
		root = rootOf(s.chain, anchors, now)
	}
	if mesh && anchors != nil && root == nil {
		found(r, api.FoundOtherChain, api.ProbeAlarm, "the certificate doesn't lead to the mesh's anchors; %.256q issued it", leaf.Issuer)
	}
	p.judgeRecord(ctx, r, pod, leaf, root, visible, now)
}

// judgeNames compares the names with the pod's identity, or with the host that was asked for.
func (p *Prober) judgeNames(r *api.ProbeResult, pod *api.Pod, leaf *x509.Certificate, mesh bool) {
	switch {
	case mesh:
		want, err := spiffeid.FromSegments(p.trustDomain, "ns", pod.Namespace, "sa", pod.ServiceAccount)
		if err != nil {
			found(r, api.FoundWrongNames, api.ProbeUnsure, "the pod's identity can't be told: %v", err)
		} else if !onlyURI(leaf, want.String()) {
			found(r, api.FoundWrongNames, api.ProbeAlarm, "the certificate has %s; it should have URI:%s and nothing else", named(leaf), want)
		}
	case r.ServerName != "":
		if err := leaf.VerifyHostname(r.ServerName); err != nil {
			found(r, api.FoundWrongNames, api.ProbeWarning, "the certificate isn't for %s; it has %s", r.ServerName, named(leaf))
		}
	}
}

// judgeRecord compares a leaf with the records. Root is the mesh's anchor that it leads to; nil where there is none.
func (p *Prober) judgeRecord(ctx context.Context, r *api.ProbeResult, pod *api.Pod, leaf, root *x509.Certificate, visible api.Visible, now time.Time) {
	record, err := p.inventory.Certificate(ctx, digestOf(leaf))
	switch {
	case err == nil:
		p.judgeHolder(r, pod, record, visible)
		return
	case !errors.Is(err, api.ErrNotFound):
		p.recordsFail(r, "records", err)
		return
	case root == nil:
		return // another's, of which nothing is known
	}
	if p.known != nil {
		in, name, ok, err := p.known.Known(ctx, leaf, pod.Namespace)
		if err != nil {
			p.recordsFail(r, "Certificates", err)
			return
		}
		if ok {
			r.KnownAs = "a Certificate of another namespace"
			if visible.All() || visible.Namespace(in) {
				r.KnownAs = "Certificate " + in + "/" + name
			}
			return
		}
	}
	reused, err := p.reusesSerial(ctx, leaf, root)
	if err != nil {
		p.recordsFail(r, "records", err)
		return
	}
	if reused {
		found(r, api.FoundReusedSerial, api.ProbeAlarm, "its serial number, %s, is recorded for another certificate of the same root", serialOf(leaf))
		return
	}
	coverage, err := p.coverage(ctx) // as it is now: what it says may have come since
	if err != nil {
		p.recordsFail(r, "records", err)
		return
	}
	if why := incomplete(coverage, leaf.NotBefore, now); why != "" {
		found(r, api.FoundUnknown, api.ProbeUnsure, "the certificate leads to the mesh's anchors and is in no record, but the records may lack it: %s", why)
		return
	}
	found(r, api.FoundUnrecorded, api.ProbeAlarm, "the certificate leads to the mesh's anchors, but Signet has no record of it, and no Certificate holds it")
}

func (p *Prober) recordsFail(r *api.ProbeResult, what string, err error) {
	p.log.Warn("compare a probe with what is known", "what", what, "err", err)
	found(r, api.FoundRecordsFailing, api.ProbeUnsure, "the certificate couldn't be compared with what is known (%s)", what)
}

// judgeHolder compares a pod with the one that the record of its certificate names.
func (p *Prober) judgeHolder(r *api.ProbeResult, pod *api.Pod, record *api.Certificate, visible api.Visible) {
	may := visible.All() || record.Namespace != "" && visible.Namespace(record.Namespace)
	switch {
	case may:
		r.Record = record
		r.Record.PEM = ""
	case record.Identity == "":
		r.KnownAs = "one of Signet's own"
	}
	to := "a holder in a namespace that you may not see"
	holder := record.Holder
	other := false
	switch {
	case record.Identity == "":
	case holder.Impersonated:
		other = holder.Node != pod.Node
		if may {
			to = fmt.Sprintf("the proxy of node %s", holder.Node)
		}
	case holder.PodUID != "":
		other = holder.PodUID != pod.UID
		if may {
			to = fmt.Sprintf("pod %s with UID %s", holder.Pod, holder.PodUID)
		}
	}
	if other {
		found(r, api.FoundOtherHolder, api.ProbeAlarm, "the certificate was issued to %s", to)
	}
	if record.Standing == api.Superseded {
		found(r, api.FoundSuperseded, api.ProbeWarning, "its holder has a later certificate than the one of %s, but serves this one", record.IssuedAt.UTC().Format(time.RFC3339))
	}
}

// sameSerial is how many records with one serial number are looked at; different CAs may give the same.
const sameSerial = 50

// reusesSerial says whether another certificate of the same root is recorded with the serial number of leaf.
func (p *Prober) reusesSerial(ctx context.Context, leaf, root *x509.Certificate) (bool, error) {
	list, err := p.inventory.Certificates(ctx, api.CertificateQuery{Page: api.Page{Limit: sameSerial}, Visible: everything{}, Serial: serialOf(leaf), Standing: "any"})
	if err != nil {
		return false, err
	}
	of := digestOf(root)
	return slices.ContainsFunc(list.Items, func(c api.Certificate) bool { return c.Root.SHA256 == of }), nil
}

// incomplete says why a certificate that began at a time may have been issued without being recorded here; "" where it
// can't.
func incomplete(c api.Coverage, begins, now time.Time) string {
	for _, source := range c.Sources {
		if !source.Up {
			return fmt.Sprintf("%s isn't up", source.Name)
		}
	}
	switch {
	case c.Since.IsZero() || begins.Before(c.Since):
		return fmt.Sprintf("they go back to %s only", c.Since.UTC().Format(time.RFC3339))
	case now.Sub(begins) < settling:
		return "it is so young that its record may be on its way"
	}
	for _, gap := range c.Gaps {
		if gap.From.Before(begins.Add(backdating)) && (gap.To.IsZero() || gap.To.After(begins.Add(-skew))) {
			return fmt.Sprintf("there is a gap from %s to %s", gap.From.UTC().Format(time.RFC3339), gap.To.UTC().Format(time.RFC3339))
		}
	}
	return ""
}

// rootOf is the anchor that a chain leads to, whatever it is for; nil where it leads to none. It is verified as of a time
// at which its leaf was valid, because that it isn't any more is another finding.
func rootOf(chain []*x509.Certificate, anchors *x509.CertPool, now time.Time) *x509.Certificate {
	at := now
	if leaf := chain[0]; at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	} else if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	between := x509.NewCertPool()
	for _, certificate := range chain[1:min(len(chain), maxChain)] {
		between.AddCert(certificate)
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{Roots: anchors, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil
	}
	return paths[0][len(paths[0])-1]
}

const (
	// maxChain is how many certificates of a chain are looked at.
	maxChain = 10
	// maxNames and maxNameBytes bound the names that are told of.
	maxNames     = 100
	maxNameBytes = 512
)

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// onlyURI says whether the names of leaf are, byte by byte, one URI (X509-SVID §2). Go's parsed fields leave out some
// kinds of names.
func onlyURI(leaf *x509.Certificate, uri string) bool {
	extensions := 0
	for _, extension := range leaf.Extensions {
		if !extension.Id.Equal(oidSAN) {
			continue
		}
		input := cryptobyte.String(extension.Value)
		var names, name cryptobyte.String
		if extensions++; !input.ReadASN1(&names, cbasn1.SEQUENCE) || !input.Empty() ||
			!names.ReadASN1(&name, cbasn1.Tag(6).ContextSpecific()) || !names.Empty() || string(name) != uri {
			return false
		}
	}
	return extensions == 1
}

// sansOf are the names of a certificate with their kind, as far as Go tells them.
func sansOf(certificate *x509.Certificate) []string {
	names := []string{}
	add := func(kind, name string) {
		if len(names) < maxNames {
			names = append(names, kind+":"+name[:min(len(name), maxNameBytes)])
		}
	}
	for _, uri := range certificate.URIs {
		add("URI", uri.String())
	}
	for _, name := range certificate.DNSNames {
		add("DNS", name)
	}
	for _, address := range certificate.IPAddresses {
		add("IP", address.String())
	}
	for _, address := range certificate.EmailAddresses {
		add("email", address)
	}
	return names
}

// named are the first of these names, for people.
func named(certificate *x509.Certificate) string {
	names := sansOf(certificate)
	if len(names) == 0 {
		return "no name that is known"
	}
	text := fmt.Sprintf("%.1024s", strings.Join(names[:min(len(names), 3)], ", "))
	if len(names) > 3 {
		text += fmt.Sprintf(" and %d more", len(names)-3)
	}
	return text
}

// serialOf is the serial number as records have it.
func serialOf(certificate *x509.Certificate) string {
	if text := hex.EncodeToString(certificate.SerialNumber.Bytes()); text != "" {
		return text
	}
	return "00"
}

func digestOf(certificate *x509.Certificate) string {
	digest := sha256.Sum256(certificate.Raw)
	return hex.EncodeToString(digest[:])
}

// served is what is told of a certificate.
func served(c *x509.Certificate, now time.Time) api.ServedCertificate {
	s := api.ServedCertificate{
		SHA256: digestOf(c), Serial: serialOf(c), Subject: fmt.Sprintf("%.512s", c.Subject), Issuer: fmt.Sprintf("%.512s", c.Issuer),
		SANs: sansOf(c), NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(),
		RemainingSeconds: max(0, int64(c.NotAfter.Sub(now)/time.Second)),
		KeyAlgorithm:     c.PublicKeyAlgorithm.String(), SignatureAlgorithm: c.SignatureAlgorithm.String(),
	}
	switch key := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		s.KeyBits = key.Curve.Params().BitSize
	case *rsa.PublicKey:
		s.KeyBits = key.N.BitLen()
	case ed25519.PublicKey:
		s.KeyBits = 256
	}
	return s
}

// everything may be seen: it is for questions whose answers aren't told.
type everything struct{}

func (everything) All() bool             { return true }
func (everything) Namespace(string) bool { return true }
