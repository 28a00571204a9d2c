package inventory

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/signet-ca/signet/api"
)

// holderKind is what sort of holder a leaf has.
type holderKind uint8

// The kinds, in the order in which they are tried.
const (
	byNode    holderKind = iota // a node's proxy, for the pods beside it
	byPod                       // a pod, by its UID
	byAddress                   // whoever asked from an address, with a token that is bound to no pod
	byNobody                    // not known, because istiod asked as registration authority; each is a holder of its own
)

// leafKey tells holders apart. It stays the same from one renewal to the next.
type leafKey struct {
	account *account
	kind    holderKind
	id      string // node, UID, address, or SHA-256
}

// leaf is a certificate that was issued. What many have in common is kept once.
type leaf struct {
	// The following never change.
	sha256, spki                  [sha256.Size]byte
	serial                        string // its bytes
	identity                      string
	sans                          []string // nil where the identity is the only one
	kind                          holderKind
	impersonated                  bool
	requestedSeconds              int32
	holder, podName, node         string
	address                       netip.Addr
	common                        unique.Handle[provenance]
	requestName, requestUID       string
	issuedAt, notBefore, notAfter int64  // Unix s
	addressText                   string // where it is none that netip knows

	// The following are guarded by the index's mutex.
	account *account
	at      int32 // place in account.leaves
	gone    bool  // its pod was seen to be deleted
}

// provenance is what many leaves have in common.
type provenance struct {
	keyAlgorithm, signatureAlgorithm string
	keyBits                          int
	issuer, rootSHA256, rootSubject  string
	requestNamespace                 string
	cluster, replica                 string
}

// newLeaf is the leaf of a record. It keeps none of the record's strings.
func newLeaf(c *api.Certificate) (*leaf, error) {
	l := &leaf{
		identity: c.Identity, requestedSeconds: int32(min(c.RequestedSeconds, 1<<31-1)), impersonated: c.Holder.Impersonated,
		issuedAt: c.IssuedAt.Unix(), notBefore: c.NotBefore.Unix(), notAfter: c.NotAfter.Unix(),
		podName: c.Holder.Pod, node: c.Holder.Node,
		requestName: strings.Clone(c.Request.Name), requestUID: strings.Clone(c.Request.UID),
		common: unique.Make(provenance{
			keyAlgorithm: c.KeyAlgorithm, signatureAlgorithm: c.SignatureAlgorithm, keyBits: c.KeyBits,
			issuer: c.Issuer, rootSHA256: c.Root.SHA256, rootSubject: c.Root.Subject,
			requestNamespace: c.Request.Namespace, cluster: c.Holder.Cluster, replica: c.Replica,
		}),
	}
	if err := unhex(l.sha256[:], c.SHA256); err != nil {
		return nil, fmt.Errorf("SHA-256 %q: %w", c.SHA256, err)
	}
	if c.SPKISHA256 != "" {
		if err := unhex(l.spki[:], c.SPKISHA256); err != nil {
			return nil, fmt.Errorf("SHA-256 %q of the key: %w", c.SPKISHA256, err)
		}
	}
	serial, err := parseSerial(c.Serial)
	if err != nil {
		return nil, err
	}
	l.serial = serial
	if c.NotAfter.IsZero() || c.NotBefore.IsZero() {
		return nil, errors.New("its validity is missing")
	}
	if !slices.Equal(c.SANs, []string{uriSAN + c.Identity}) {
		l.sans = make([]string, len(c.SANs)) // never nil
		for n, san := range c.SANs {
			l.sans[n] = strings.Clone(san)
		}
	}
	if l.address, err = netip.ParseAddr(c.Holder.Address); err != nil {
		l.address, l.addressText = netip.Addr{}, strings.Clone(c.Holder.Address)
	}
	switch h := &c.Holder; {
	case h.Impersonated && h.Node != "":
		l.kind, l.holder = byNode, h.Node
	case h.PodUID != "":
		l.kind, l.holder = byPod, h.PodUID
	case h.Address != "":
		l.kind, l.holder = byAddress, strings.Clone(h.Address)
	default: // it replaces no other
		l.kind, l.holder = byNobody, strings.Clone(c.SHA256)
	}
	return l, nil
}

// uriSAN goes before a URI among SANs.
const uriSAN = "URI:"

func unhex(into []byte, text string) error {
	if hex.DecodedLen(len(text)) != len(into) {
		return fmt.Errorf("it has %d characters", len(text))
	}
	_, err := hex.Decode(into, []byte(text))
	return err
}

// parseSerial is the bytes of a serial number in hexadecimal.
func parseSerial(text string) (string, error) {
	if len(text)%2 == 1 {
		text = "0" + text
	}
	serial, err := hex.DecodeString(text)
	if err != nil {
		return "", fmt.Errorf("serial number %q: %w", text, err)
	}
	return string(serial), nil
}

// names is what is said of the certificate's subject alternative names.
func (l *leaf) names() []string {
	if l.sans == nil {
		return []string{uriSAN + l.identity}
	}
	return slices.Clone(l.sans)
}

// chain is what the leaf's chain is known by.
type chain struct{ issuer, rootSHA256 string }

func (l *leaf) chain() chain {
	common := l.common.Value()
	return chain{common.issuer, common.rootSHA256}
}

// later says whether l was issued after other, as far as whole seconds tell.
func (l *leaf) later(other *leaf) bool {
	return cmp.Or(cmp.Compare(l.issuedAt, other.issuedAt), cmp.Compare(l.notBefore, other.notBefore)) > 0
}

// serves says whether a leaf of a node's proxy is for a pod of its account there: one that the proxy captures, or the
// proxy's own. One that has left ambient runs on without it.
func (l *leaf) serves(p *pod) bool { return p.class.plane == api.Ambient || p.name.name == l.podName }

// certificate is what is said of the leaf at now.
func (l *leaf) certificate(of name, standing api.Standing, now time.Time) api.Certificate {
	common := l.common.Value()
	c := api.Certificate{
		SHA256: hex.EncodeToString(l.sha256[:]), Serial: hex.EncodeToString([]byte(l.serial)),
		Identity: l.identity, SANs: l.names(), Namespace: of.namespace, ServiceAccount: of.name,
		Holder: api.Holder{
			Pod: l.podName, Node: l.node, Cluster: common.cluster, Address: l.addressText, Impersonated: l.impersonated,
		},
		IssuedAt: unix(l.issuedAt), NotBefore: unix(l.notBefore), NotAfter: unix(l.notAfter), RequestedSeconds: int64(l.requestedSeconds),
		KeyAlgorithm: common.keyAlgorithm, KeyBits: common.keyBits, SignatureAlgorithm: common.signatureAlgorithm,
		Issuer: common.issuer, Root: api.Root{SHA256: common.rootSHA256, Subject: common.rootSubject},
		Request: api.ObjectRef{Namespace: common.requestNamespace, Name: l.requestName, UID: l.requestUID},
		Replica: common.replica, Standing: standing,
	}
	if l.spki != [sha256.Size]byte{} {
		c.SPKISHA256 = hex.EncodeToString(l.spki[:])
	}
	if l.address.IsValid() {
		c.Holder.Address = l.address.String()
	}
	if l.kind == byPod {
		c.Holder.PodUID = l.holder
	}
	setLife(&c, now)
	return c
}

// setLife fills in what is relative to now.
func setLife(c *api.Certificate, now time.Time) {
	v := validityOf(c.NotBefore, c.NotAfter)
	c.State, c.RemainingSeconds, c.RemainingRatio = v.state(now), v.seconds(now), v.ratio(now)
}

// A leaf is due and overdue at these parts of its life; see [api.State].
const (
	dueAt     = 0.5
	overdueAt = 0.55
)

// validity is that of a leaf, in Unix seconds. Its last second belongs to it (RFC 5280 §4.1.2.5).
type validity struct{ notBefore, notAfter int64 }

func validityOf(notBefore, notAfter time.Time) validity {
	return validity{notBefore.Unix(), notAfter.Unix()}
}

func (l *leaf) validity() validity { return validity{l.notBefore, l.notAfter} }

// moments are those at which the state changes.
func (v validity) moments() (due, overdue, over time.Time) {
	begin, life := time.Unix(v.notBefore, 0), float64(v.notAfter-v.notBefore)*float64(time.Second)
	return begin.Add(time.Duration(life * dueAt)), begin.Add(time.Duration(life * overdueAt)), time.Unix(v.notAfter, 1)
}

// state is how far the life has come at now. What hasn't begun is fresh, because clocks differ.
func (v validity) state(now time.Time) api.State {
	due, overdue, over := v.moments()
	switch {
	case !now.Before(over), v.notAfter < v.notBefore:
		return api.Expired
	case !now.Before(overdue):
		return api.Overdue
	case !now.Before(due):
		return api.Due
	}
	return api.Fresh
}

// next is the first moment after now at which the state changes; zero where there is none.
func (v validity) next(now time.Time) time.Time {
	if v.notAfter < v.notBefore {
		return time.Time{}
	}
	due, overdue, over := v.moments()
	for _, moment := range [...]time.Time{due, overdue, over} {
		if moment.After(now) {
			return moment
		}
	}
	return time.Time{}
}

// seconds is how much of the life is left at now, in whole seconds.
func (v validity) seconds(now time.Time) int64 {
	return max(0, int64(time.Unix(v.notAfter, 0).Sub(now)/time.Second))
}

// ratio is the part of the life that is left at now, 0 to 1.
func (v validity) ratio(now time.Time) float64 { return min(1, max(0, v.left(now))) }

// left is the same, above 1 before the life begins and below 0 after its end.
func (v validity) left(now time.Time) float64 {
	life := time.Duration(v.notAfter-v.notBefore) * time.Second
	if life <= 0 {
		return 0
	}
	return float64(time.Unix(v.notAfter, 0).Sub(now)) / float64(life)
}

// less says whether less of v's life is left at now, or as much that passes faster.
func (v validity) less(other validity, now time.Time) bool {
	mine, theirs := v.left(now), other.left(now)
	return mine < theirs || mine == theirs && v.notAfter-v.notBefore < other.notAfter-other.notBefore
}

// overtakes is when less of other's life is left than of v's, where that isn't so at now; zero where that doesn't happen
// before v's end.
func (v validity) overtakes(other validity, now time.Time) time.Time {
	mine, theirs := float64(v.notAfter-v.notBefore), float64(other.notAfter-other.notBefore)
	if theirs >= mine || theirs <= 0 {
		return time.Time{}
	}
	// (mineEnd - t) / mine = (theirEnd - t) / theirs
	mineEnd, theirEnd := time.Unix(v.notAfter, 0).Sub(now).Seconds(), time.Unix(other.notAfter, 0).Sub(now).Seconds()
	in := (theirEnd*mine - mineEnd*theirs) / (mine - theirs)
	if in <= 0 || in >= mineEnd {
		return time.Time{}
	}
	return now.Add(time.Duration(in * float64(time.Second)))
}

func unix(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }
