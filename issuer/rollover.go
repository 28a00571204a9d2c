package issuer

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Phase is how far a trust anchor has come between its first publication and its last.
type Phase string

// The phases, in their order. An anchor that has left isn't kept.
const (
	// Published anchors are in every answer, and in every namespace or on the way there. Nothing is signed
	// under them yet: there are peers that don't know them.
	Published Phase = "published"
	// Distributed anchors are known to everybody who holds a living leaf: an issuer under them may sign.
	Distributed Phase = "distributed"
	// Signing anchors are those that leaves are issued under.
	Signing Phase = "signing"
	// Retiring anchors are named by no source any more. Nothing is signed under them; they stay until the
	// last leaf under them has ended.
	Retiring Phase = "retiring"
)

// Anchor is a trust anchor with its place in the rollover. Immutable.
type Anchor struct {
	Certificate *x509.Certificate
	Phase       Phase
	Since       time.Time // of the phase
	// Sources name the anchor; none while it retires.
	Sources []string
	// Federated anchors belong to another trust domain: answers carry them, but nothing of ours is under them.
	Federated bool
	// Until is when the phase ends by itself: a published anchor is distributed then, a retiring one leaves.
	// Zero while that isn't known.
	Until time.Time
	// LeavesEnd is a moment at which no leaf lives that was issued under the anchor; zero where there never was one.
	LeavesEnd time.Time
	// Waits says for people what a published anchor waits for before Until is known.
	Waits string
}

// ID is the SHA-256 of the certificate's DER in hexadecimal, as in `openssl x509 -fingerprint -sha256`
// without the colons.
func (a Anchor) ID() string { return AnchorID(a.Certificate) }

// AnchorID is the SHA-256 of a certificate's DER in hexadecimal.
func AnchorID(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// maySign says whether an issuer under the anchor may sign.
func (a Anchor) maySign() bool {
	return !a.Federated && (a.Phase == Distributed || a.Phase == Signing)
}

// Rollover is the state of the mesh's trust, which all replicas share: it decides what is in force, and
// only it decides when an anchor leaves. Immutable.
type Rollover struct {
	// Anchors are in the order of their ID.
	Anchors []Anchor
	// Issuer signs leaves, as the replica saw it that wrote the state; empty at first.
	Issuer Ref
	// Serving signs the serving certificate and istiod's, which follow Issuer later.
	Serving Ref
	// ServingAnchor is the ID of the anchor that Serving leads to; empty where that isn't known.
	ServingAnchor string
	// ServingSince is since when Serving and ServingAnchor are what they are.
	ServingSince time.Time
	// FirstUse are the IDs of the anchors that were trusted on first use, by issuer.
	FirstUse map[string]string
	// Generation grows by one whenever an anchor comes or goes.
	Generation uint64
	// LeftOut says of each anchor that a step left out, which and why. It is not kept.
	LeftOut []string
}

func (r *Rollover) find(id string) int {
	return slices.IndexFunc(r.Anchors, func(a Anchor) bool { return a.ID() == id })
}

// another says whether there is an anchor of ours beside id that an issuer may sign under: the last one
// never leaves.
func (r *Rollover) another(id string) bool {
	return slices.ContainsFunc(r.Anchors, func(a Anchor) bool { return a.maySign() && a.ID() != id })
}

// own are the anchors of our trust domain.
func (r *Rollover) own() []Anchor {
	return slices.DeleteFunc(slices.Clone(r.Anchors), func(a Anchor) bool { return a.Federated })
}

// Anchor finds an anchor by its ID.
func (r *Rollover) Anchor(id string) (Anchor, bool) {
	if at := r.find(id); at >= 0 {
		return r.Anchors[at], true
	}
	return Anchor{}, false
}

// Bundle are all anchors, which every answer carries.
func (r *Rollover) Bundle() (Bundle, error) {
	return r.bundle(func(Anchor) bool { return true })
}

// Trusted are the anchors that issuers may sign under.
func (r *Rollover) Trusted() (Bundle, error) { return r.bundle(Anchor.maySign) }

// Own are the anchors of our own trust domain.
func (r *Rollover) Own() (Bundle, error) {
	return r.bundle(func(a Anchor) bool { return !a.Federated })
}

func (r *Rollover) bundle(keep func(Anchor) bool) (Bundle, error) {
	var certs []*x509.Certificate
	for _, a := range r.Anchors {
		if keep(a) {
			certs = append(certs, a.Certificate)
		}
	}
	if len(certs) == 0 {
		return Bundle{}, nil
	}
	b, err := NewBundle(certs...)
	if err == nil && len(b.PEM()) > maxBundleBytes {
		err = fmt.Errorf("the anchors have %d bytes together; at most %d are allowed", len(b.PEM()), maxBundleBytes)
	}
	return b, err
}

// Held says why an issuer that leads to an anchor may not sign, or "" where it may. The text is for people.
func (r *Rollover) Held(anchor *x509.Certificate, now time.Time) string {
	a, known := r.Anchor(AnchorID(anchor))
	switch {
	case !known:
		return fmt.Sprintf("its root %q (SHA-256 %.16s…) is none of the trust anchors; add it to the sources of roots", anchor.Subject, AnchorID(anchor))
	case a.maySign():
		return ""
	case a.Federated:
		return fmt.Sprintf("its root %q belongs to a federated trust domain", anchor.Subject)
	case a.Phase == Retiring:
		return fmt.Sprintf("its root %q is retiring; add it to the sources of roots again", anchor.Subject)
	case a.Until.IsZero():
		return fmt.Sprintf("its root %q is published and waits for %s, and then for the end of leaves that were answered without it", anchor.Subject, a.Waits)
	}
	return fmt.Sprintf("its root %q is published; leaves that were answered without it may live for another %s, and from %s on it may sign",
		anchor.Subject, max(0, a.Until.Sub(now)).Round(time.Second), a.Until.UTC().Format(time.RFC3339))
}

// Equal says whether two states are the same, but for what they wait for.
func (r *Rollover) Equal(other *Rollover) bool {
	a, errA := r.encode(false)
	b, errB := other.encode(false)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// Same says whether two states are the same, what they wait for included.
func (r *Rollover) Same(other *Rollover) bool {
	a, errA := r.encode(true)
	b, errB := other.encode(true)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// storedAnchor and storedRollover are the JSON in which the state is kept; the certificates are beside it.
type storedAnchor struct {
	SHA256    string    `json:"sha256"`
	Subject   string    `json:"subject"`
	NotAfter  time.Time `json:"notAfter"`
	Phase     Phase     `json:"phase"`
	Since     time.Time `json:"since"`
	Sources   []string  `json:"sources,omitempty"`
	Federated bool      `json:"federated,omitempty"`
	Until     time.Time `json:"until,omitzero"`
	LeavesEnd time.Time `json:"leavesEnd,omitzero"`
	Waits     string    `json:"waits,omitempty"`
}

type storedRollover struct {
	Anchors       []storedAnchor    `json:"anchors"`
	Issuer        Ref               `json:"issuer,omitzero"`
	Serving       Ref               `json:"serving,omitzero"`
	ServingAnchor string            `json:"servingAnchor,omitempty"`
	ServingSince  time.Time         `json:"servingSince,omitzero"`
	FirstUse      map[string]string `json:"firstUse,omitempty"`
	Generation    uint64            `json:"generation"`
}

func (r *Rollover) encode(waits bool) ([]byte, error) {
	stored := storedRollover{Issuer: r.Issuer, Serving: r.Serving, ServingAnchor: r.ServingAnchor,
		ServingSince: r.ServingSince.UTC().Truncate(time.Second), FirstUse: r.FirstUse, Generation: r.Generation}
	for _, a := range r.Anchors {
		s := storedAnchor{
			SHA256: a.ID(), Subject: a.Certificate.Subject.String(), NotAfter: a.Certificate.NotAfter.UTC(), Phase: a.Phase, Since: a.Since.UTC().Truncate(time.Second),
			Sources: a.Sources, Federated: a.Federated, Until: a.Until.UTC().Truncate(time.Second), LeavesEnd: a.LeavesEnd.UTC().Truncate(time.Second),
		}
		if waits {
			s.Waits = a.Waits
		}
		stored.Anchors = append(stored.Anchors, s)
	}
	return json.MarshalIndent(stored, "", "  ")
}

// Encode is the state as it is kept: JSON, and the certificates as PEM.
func (r *Rollover) Encode() (state, pem string, err error) {
	text, err := r.encode(true)
	if err != nil {
		return "", "", fmt.Errorf("encode the state of the rollover: %w", err)
	}
	bundle, err := r.Bundle()
	if err != nil {
		return "", "", err
	}
	return string(text), bundle.PEM(), nil
}

// ParseRollover reads what Encode wrote. Where there is no JSON, all certificates are anchors that issuers may
// sign under, as they were before there was a rollover.
func ParseRollover(state, pem string) (*Rollover, error) {
	bundle, err := ParseBundle([]byte(pem))
	if err != nil {
		return nil, err
	}
	r := &Rollover{}
	if strings.TrimSpace(state) == "" {
		for _, cert := range bundle.Anchors() {
			r.Anchors = append(r.Anchors, Anchor{Certificate: cert, Phase: Distributed})
		}
		return r, nil
	}
	var stored storedRollover
	if err := json.Unmarshal([]byte(state), &stored); err != nil {
		return nil, fmt.Errorf("state of the rollover: %w", err)
	}
	r.Issuer, r.Serving, r.ServingAnchor, r.ServingSince = stored.Issuer, stored.Serving, stored.ServingAnchor, stored.ServingSince
	r.FirstUse, r.Generation = stored.FirstUse, stored.Generation
	certs := make(map[string]*x509.Certificate)
	for _, cert := range bundle.Anchors() {
		certs[AnchorID(cert)] = cert
	}
	for _, s := range stored.Anchors {
		cert := certs[s.SHA256]
		switch {
		case cert == nil:
			return nil, fmt.Errorf("state of the rollover: the certificate of anchor %s is missing", s.SHA256)
		case s.Phase != Published && s.Phase != Distributed && s.Phase != Signing && s.Phase != Retiring:
			return nil, fmt.Errorf("state of the rollover: anchor %s has the unknown phase %q", s.SHA256, s.Phase)
		}
		delete(certs, s.SHA256)
		r.Anchors = append(r.Anchors, Anchor{
			Certificate: cert, Phase: s.Phase, Since: s.Since, Sources: s.Sources, Federated: s.Federated,
			Until: s.Until, LeavesEnd: s.LeavesEnd, Waits: s.Waits,
		})
	}
	if len(certs) > 0 {
		return nil, errors.New("state of the rollover: it has certificates that it says nothing of")
	}
	return r, nil
}
